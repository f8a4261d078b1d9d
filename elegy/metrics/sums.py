"""Sums that stay exact over many batches: two floats for each number, of which the second is what the first lost."""

from __future__ import annotations

import math
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

# So many values are added up in one float: a sum of ones is exact in float32 up to 2**24.
_CHUNK = 2**16


def exact(number: int, dtype: jnp.dtype) -> Float[np.ndarray, "2"]:
    """An integer as a sum of two floats."""
    high = np.asarray(number, dtype)
    return np.stack([high, np.asarray(number - int(high), dtype)])


def added(a: Float[Array, "2 *shape"], b: Float[Array, "2 *shape"]) -> Float[Array, "2 *shape"]:
    """The sum of two sums: Knuth, *The Art of Computer Programming*, volume 2, section 4.2.2, theorem B.

    The first float of the result is the sum in the precision of a float, so that nothing is lost by reading it alone.
    """
    total, error = _two_sum(a[0], b[0])
    high, low = _two_sum(total, a[1] + b[1] + error)
    finite = jnp.isfinite(high)  # the error of an infinite sum is NaN
    return jnp.stack([jnp.where(finite, high, total), jnp.where(finite, low, 0)])


def _two_sum(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> tuple[Array, Array]:
    """`a + b`, rounded, and the rounding error, which is a float too."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def folded(parts: Float[Array, "parts 2 *shape"]) -> Float[Array, "2 *shape"]:
    """The sum of several sums, added up in pairs."""
    if parts.shape[0] == 0:
        return jnp.zeros(parts.shape[1:], parts.dtype)
    while (count := parts.shape[0]) > 1:
        if count % 2:
            parts, count = jnp.concatenate([parts, jnp.zeros_like(parts[:1])]), count + 1
        parts = jax.vmap(added)(parts[: count // 2], parts[count // 2 :])
    return parts[0]


def summed(values: Float[Array, "..."]) -> Float[Array, "2"]:
    """The sum of all values of an array."""
    if values.size > _CHUNK and math.prod(values.shape[1:]) <= _CHUNK:
        values = jnp.sum(values, axis=tuple(range(1, values.ndim)))
    if values.size <= _CHUNK:
        return _precise(jnp.sum(values))
    values = jnp.ravel(gathered(values))
    chunks = -(-values.size // _CHUNK)
    values = jnp.pad(values, (0, chunks * _CHUNK - values.size)).reshape(chunks, _CHUNK)
    return folded(jax.vmap(_precise)(jnp.sum(values, axis=1)))


def summed_by(index: Int[Array, "*shape"], size: int, values: Float[Array, "*shape"]) -> Float[Array, "2 {size}"]:
    """For each number below `size`, the sum of the values whose index it is."""
    index, values = jnp.ravel(gathered(index)), jnp.ravel(gathered(values))
    chunks = max(1, -(-values.size // _CHUNK))
    index = index + size * (jnp.arange(values.size, dtype=index.dtype) // _CHUNK)
    sums = jax.ops.segment_sum(values, index, chunks * size)
    return folded(jax.vmap(_precise)(sums.reshape(chunks, size)))


def _precise(values: Float[Array, "*shape"]) -> Float[Array, "2 *shape"]:
    return jnp.stack([values, jnp.zeros_like(values)])


def gathered(values: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The values on each device, where shardings are a part of the type: on an explicit mesh JAX asks how to count what
    lies on several of them."""
    sharding = jax.typeof(values).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types or not any(sharding.spec):
        return values
    if isinstance(values, Tracer):
        return jax.sharding.reshard(values, NamedSharding(sharding.mesh, PartitionSpec()))
    return jax.device_put(values, NamedSharding(tp.cast(NamedSharding, values.sharding).mesh, PartitionSpec()))
