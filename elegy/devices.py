"""On which devices arrays lie: what Elegy makes by itself follows the arrays of the program."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from elegy import tracing


def is_placed(array: tp.Any) -> bool:
    """Whether an array was put on devices on purpose; JAX moves others to where they are needed."""
    return isinstance(array, jax.Array) and not isinstance(array, Tracer) and array.committed


def replicated(sharding: Sharding) -> Sharding | None:
    """A sharding with a whole copy on each device of `sharding`; None if that is neither on a mesh nor whole itself."""
    if isinstance(sharding, NamedSharding):
        return _whole(sharding.mesh)
    return sharding if sharding.is_fully_replicated else None


@functools.lru_cache(maxsize=64)
def _whole(mesh: tp.Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def home_of(arrays: Iterable[tp.Any]) -> Sharding | None:
    """`replicated` for the first array that was put on devices on purpose; None if there is no such array."""
    return next((replicated(array.sharding) for array in arrays if is_placed(array)), None)


def place_of(arrays: Iterable[tp.Any]) -> Sharding | None:
    """The sharding of something new that is used together with arrays: a copy on each of their devices, or else on each
    of those of `jax.set_mesh`; None if it may lie anywhere."""
    place = home_of(arrays)
    if place is not None:
        return place
    mesh = None if tracing.is_traced() else jax.sharding.get_mesh()
    return None if mesh is None or mesh.empty else _whole(mesh)


def moved(data: jax.Array, place: Sharding | None) -> jax.Array:
    """The state of a random stream, on the devices where it is needed.

    Functions that compute in different places share the stream. Moving is asynchronous, except from chosen devices to
    none in particular (`place` is None): JAX has no way to do this without waiting.
    """
    if place is None:
        return jnp.asarray(np.asarray(data)) if is_placed(data) else data
    sharding = data.sharding
    return data if sharding == place or _is_whole_on(sharding, place) else jax.device_put(data, place)


def _is_whole_on(sharding: Sharding, place: Sharding) -> bool:
    """Whether a sharding is a whole copy on each device of the mesh of `place`, however it is written."""
    if not (isinstance(sharding, NamedSharding) and isinstance(place, NamedSharding)):
        return False
    return sharding.is_fully_replicated and sharding.mesh == place.mesh


def sharded_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """`value` with the sharding of `like`, where shardings are a part of the type: on an explicit mesh.

    State that comes back sharded otherwise than it went in would have another type in the next step.
    """
    sharding = jax.typeof(like).sharding
    if sharding.mesh.empty or jax.typeof(value).sharding == sharding:
        return value
    if isinstance(value, Tracer) or isinstance(like, Tracer):
        return jax.sharding.reshard(value, sharding)
    return jax.device_put(value, like.sharding)


def for_lookup(ids: jax.Array, w: jax.Array) -> tuple[jax.Array, tp.Any]:
    """A matrix whose rows can be looked up on an explicit mesh, and the sharding of what is found, which JAX has to be
    told. Of the matrix only the columns stay sharded, over axes that do not shard the ids."""
    of_ids, of_w = _explicit(ids), _explicit(w)
    if of_w is None or (of_ids is not None and of_ids[0] != of_w[0]):
        return w, None
    axes = [()] * ids.ndim if of_ids is None else of_ids[1]
    used = {axis for part in axes for axis in part}
    columns = tuple(axis for axis in of_w[1][1] if axis not in used)
    if of_w[1] != [(), columns]:
        w = _to(w, [(), columns])
    return w, _over([*axes, columns], w)


def beside(x: jax.Array, w: jax.Array) -> jax.Array:
    """A parameter of any number of axes that can be used together with `x` on an explicit mesh: it is gathered over the
    axes of the mesh that shard `x`."""
    of_x, of_w = _explicit(x), _explicit(w)
    if of_x is None or of_w is None or of_x[0] != of_w[0]:
        return w
    used = {axis for part in of_x[1] for axis in part}
    kept = [tuple(axis for axis in part if axis not in used) for part in of_w[1]]
    return w if kept == of_w[1] else _to(w, kept)


def _explicit(array: jax.Array) -> tuple[tp.Any, list[tuple[str, ...]]] | None:
    """The mesh of an array, and the axes over which each of its dimensions is sharded, where its type says so."""
    sharding = jax.typeof(array).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    axes = [() if part is None else part if isinstance(part, tuple) else (part,) for part in sharding.spec]
    return sharding.mesh, axes


def _over(axes: list[tuple[str, ...]], *arrays: jax.Array) -> NamedSharding:
    """A sharding over axes of the mesh of some arrays. In a trace that mesh has no devices, else it has."""
    array = next((array for array in arrays if isinstance(array, Tracer)), arrays[0])
    sharding: tp.Any = jax.typeof(array).sharding if isinstance(array, Tracer) else array.sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*(part or None for part in axes)))


def _to(array: jax.Array, axes: list[tuple[str, ...]]) -> jax.Array:
    sharding = _over(axes, array)
    return jax.sharding.reshard(array, sharding) if isinstance(array, Tracer) else jax.device_put(array, sharding)


def for_product(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tp.Any]:
    """A matrix that can be multiplied with `x` on an explicit mesh, and the sharding of the product if JAX has to be
    told.

    An axis over which the batch is sharded is gathered in the matrix (fully sharded data parallelism), and so is one
    that shards the contracted dimension of the matrix only. Where it shards that of both, the product is a sum over the
    devices (tensor parallelism by rows).
    """
    of_w, of_x = _explicit(w), _explicit(x)
    if of_w is None or of_x is None or of_w[0] != of_x[0] or w.ndim != 2:
        return w, None
    rows, columns = of_w[1]
    *batch, contracted = of_x[1]
    used = {axis for part in batch for axis in part}
    new_rows = contracted if set(contracted) <= set(rows) else ()
    new_columns = tuple(axis for axis in columns if axis not in used and axis not in new_rows)
    if (new_rows, new_columns) != (rows, columns):
        w = _to(w, [new_rows, new_columns])
    if not new_rows:
        return w, None
    return w, _over([*batch, new_columns], x, w)


def for_convolution(x: jax.Array, w: jax.Array, channel_axis: int) -> tuple[jax.Array, tp.Any]:
    """A kernel `[*spatial, in, out]` that can be applied to `x` on an explicit mesh, and the sharding of the result if
    JAX has to be told. Of the kernel only the outgoing channels stay sharded, over axes that do not shard the batch."""
    of_w, of_x = _explicit(w), _explicit(x)
    if of_w is None or of_x is None or of_w[0] != of_x[0] or not any(of_w[1]) or of_x[1][channel_axis]:
        return w, None
    result = list(of_x[1])
    used = {axis for part in result for axis in part}
    result[channel_axis] = tuple(axis for axis in of_w[1][-1] if axis not in used)
    kept = [*[()] * (w.ndim - 1), result[channel_axis]]
    if kept != of_w[1]:
        w = _to(w, kept)
    return w, _over(result, x, w) if any(kept) else None


def for_sum(b: jax.Array, y: jax.Array) -> jax.Array:
    """A vector that can be added to the last dimension of `y` on an explicit mesh."""
    of_b, of_y = _explicit(b), _explicit(y)
    if of_b is None or of_y is None or of_b[0] != of_y[0] or of_b[1][-1] in ((), of_y[1][-1]) or b.ndim != 1:
        return b
    return _to(b, [of_y[1][-1]])


def described(array: tp.Any) -> str:
    """What JAX distinguishes of an array when it looks for an earlier trace: `float32[8@data,4] (mesh data=8)`."""
    aval: tp.Any = jax.typeof(array)
    sizes = [str(size) for size in aval.shape]
    sharding = getattr(aval, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    if sharding is not None and mesh is not None and not mesh.empty:
        for number, axes in enumerate(sharding.spec):
            if axes is not None:
                sizes[number] += "@" + (axes if isinstance(axes, str) else "+".join(map(str, axes)))
    parts = [f"{aval.dtype}[{', '.join(sizes)}]"]
    if getattr(aval, "weak_type", False):
        parts.append("weakly typed")
    if mesh is not None and not mesh.empty:
        parts.append(f"on the {described_mesh(mesh)}")
    varying = tracing.varying_axes(array)
    if varying:
        parts.append(f"varying over {', '.join(sorted(map(str, varying)))}")
    return ", ".join(parts)


def described_mesh(mesh: tp.Any) -> str:
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return "mesh " + " ".join(f"{name}={size}:{kind.name}" for name, size, kind in axes)
