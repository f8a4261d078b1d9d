"""Samples of arrays that may be sharded: JAX wants to be told how rows of theirs lie on a mesh of explicit axes."""

from __future__ import annotations

import math
import typing as tp

import jax
import numpy as np


def rows_of(array: tp.Any, places: tp.Any) -> tp.Any:
    """Rows of an array. They are sharded as the array is or, where their number is no multiple of the devices, whole on
    each of those."""
    sharding = _of_rows(array, len(places))
    return array[places] if sharding is None else array.at[places].get(out_sharding=sharding)


def between(array: tp.Any, begin: int, end: int) -> tp.Any:
    """The rows from `begin` to before `end`."""
    if (begin, end) == (0, len(array)):
        return array
    sharding = _of_rows(array, end - begin)
    return array[begin:end] if sharding is None else array.at[np.arange(begin, end)].get(out_sharding=sharding)


def folded(array: tp.Any, number: int, size: int) -> tp.Any:
    """The first `number * size` rows, in parts of `size` along a new first axis."""
    rows, shape = between(array, 0, number * size), (number, size, *array.shape[1:])
    sharding = _of_rows(array, size)
    if sharding is None:
        return rows.reshape(shape)
    return jax.lax.reshape(rows, shape, out_sharding=_on(sharding.mesh, None, *sharding.spec))


def unfolded(array: tp.Any) -> tp.Any:
    """The rows of all parts, along one axis."""
    number, size, *others = array.shape
    spec = _spec(array)
    if spec is None or spec[1] is None:
        return array.reshape(number * size, *others)
    sharding = _on(jax.typeof(array).sharding.mesh, *spec[1:])
    return jax.lax.reshape(array, (number * size, *others), out_sharding=sharding)


def _of_rows(array: tp.Any, count: int) -> jax.NamedSharding | None:
    """How so many rows of an array are to lie; None if there is nothing to say."""
    spec = _spec(array)
    if spec is None or spec[0] is None:
        return None
    axes, *others = spec
    mesh: tp.Any = jax.typeof(array).sharding.mesh
    devices = math.prod(mesh.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))
    return _on(mesh, axes if count % devices == 0 else None, *others)


def _spec(array: tp.Any) -> tp.Any:
    """The explicit axes on which an array lies, for each of its axes; None if it is no array of JAX."""
    return tuple(jax.typeof(array).sharding.spec) if isinstance(array, jax.Array) else None


def _on(mesh: tp.Any, *spec: tp.Any) -> jax.NamedSharding:
    return jax.NamedSharding(mesh, jax.P(*spec))
