"""On which devices arrays lie: what Elegy makes by itself follows the arrays of the program."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from elegy import tracing


def is_placed(array: tp.Any) -> bool:
    """Whether an array was put on devices on purpose; JAX moves others to where they are needed."""
    return isinstance(array, jax.Array) and not isinstance(array, Tracer) and array.committed


def replicated(sharding: Sharding) -> Sharding | None:
    """A whole copy on each of the devices of a sharding; None where it says nothing of a mesh or of one device."""
    if isinstance(sharding, NamedSharding):
        return _whole(sharding.mesh)
    return sharding if sharding.is_fully_replicated else None


@functools.lru_cache(maxsize=64)
def _whole(mesh: tp.Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place_of(arrays: Iterable[tp.Any]) -> Sharding | None:
    """Where something new goes that is used together with arrays: whole on all devices on which they lie, or else on
    those of `jax.set_mesh`, or else nowhere in particular."""
    for array in arrays:
        if is_placed(array):
            return replicated(array.sharding)
    mesh = None if tracing.is_traced() else jax.sharding.get_mesh()
    return None if mesh is None or mesh.empty else _whole(mesh)


def moved(data: jax.Array, place: Sharding | None) -> jax.Array:
    """The state of a random stream, on the devices where it is needed.

    It is carried from function to function, and these may compute in different places. Moving it is asynchronous, but
    for the way from some devices to none in particular, where JAX has none that does not wait.
    """
    if place is None:
        return jnp.asarray(np.asarray(data)) if is_placed(data) else data
    sharding = data.sharding
    return data if sharding == place or _is_whole_on(sharding, place) else jax.device_put(data, place)


def _is_whole_on(sharding: Sharding, place: Sharding) -> bool:
    """Whether the two differ in their spelling only."""
    if not (isinstance(sharding, NamedSharding) and isinstance(place, NamedSharding)):
        return False
    return sharding.is_fully_replicated and sharding.mesh == place.mesh


def sharded_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """`value` with the sharding of `like`, where shardings are a part of the type: on an explicit mesh.

    State that comes back sharded otherwise than it went in would be another type to the next step.
    """
    sharding = jax.typeof(like).sharding
    if sharding.mesh.empty or jax.typeof(value).sharding == sharding:
        return value
    if isinstance(value, Tracer) or isinstance(like, Tracer):
        return jax.sharding.reshard(value, sharding)
    return jax.device_put(value, like.sharding)


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
