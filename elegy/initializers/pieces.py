"""Random arrays of any shape, by one small program for each distribution.

To draw an array JAX compiles a program for its shape, which takes longer than to run it: a network of fifty
convolutions of twenty shapes spends seconds there. The bits of an element depend on the key and on the flat index of
the element alone, if threefry is partitionable, as it is by default. So a program that draws as many elements as a
piece has, from an index that is its argument, draws an array of any shape, piece by piece.

The programs call `jax.random` itself, with a key whose bits begin at the index. Hence the values are those that
`jax.random` gives for the whole array.
"""

from __future__ import annotations

import functools
import math
import typing as tp
from collections.abc import Callable

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Inexact

# As many elements have a piece: enough that few calls draw millions, few enough to be drawn for a small array. It is a
# power of two, so that the lower half of the index does not overflow within a piece.
_SIZE = 2**15

Distribution = Callable[..., Inexact[Array, "..."]]


def normal(key: tp.Any, shape: tp.Any, dtype: tp.Any) -> Inexact[Array, "..."]:
    return jax.random.normal(key, shape, dtype)


def uniform(key: tp.Any, shape: tp.Any, dtype: tp.Any, minval: tp.Any, maxval: tp.Any) -> Inexact[Array, "..."]:
    return jax.random.uniform(key, shape, dtype, minval, maxval)


def truncated_normal(key: tp.Any, shape: tp.Any, dtype: tp.Any, lower: tp.Any, upper: tp.Any) -> Inexact[Array, "..."]:
    return jax.random.truncated_normal(key, lower, upper, shape, dtype)


def draw(
    distribution: Distribution,
    key: tp.Any,
    shape: tuple[int, ...],
    dtype: tp.Any,
    *bounds: float | int,
    scale: tp.Any = 1.0,
    shift: tp.Any = 0.0,
) -> Inexact[Array, "..."]:
    """`shift + scale * distribution(key, shape, dtype, *bounds)`.

    **Arguments:**

    - `distribution`: `normal`, `uniform` or `truncated_normal`.
    - `key`: a key of `jax.random`, of any kind.
    - `dtype`: a dtype that the function of `jax.random` takes.
    - `bounds`: those of the distribution, if it has any, as the function of `jax.random` is given them.
    - `scale`, `shift`: numbers, which are rounded to the dtype.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    scale, shift = dtype.type(scale), dtype.type(shift)
    if not (jnp.issubdtype(dtype, np.floating) and _comes_in_pieces(key)):
        values = distribution(key, shape, dtype, *bounds)
        values = values if scale == 1 else scale * values
        return values if shift == 0 else shift + values
    raw = key if jnp.issubdtype(key.dtype, np.uint32) else jax.random.key_data(key)
    data, size = np.asarray(raw), math.prod(shape)
    starts = [np.array([*data, index >> 32, index & 0xFFFFFFFF], np.uint32) for index in range(0, size, _SIZE)]
    pieces = [_piece(distribution, dtype, start, *bounds) for start in starts]
    values = np.empty([len(pieces), _SIZE], dtype)
    for row, piece in zip(values, pieces, strict=True):
        row[:] = piece
    # By NumPy, since a program would round once where these operations round twice.
    values = values.reshape(-1)[:size].reshape(shape)
    if scale != 1:
        values *= scale
    if shift != 0:
        values += shift
    return jax.device_put(values, key.sharding) if key.committed else jnp.asarray(values)


def _comes_in_pieces(key: tp.Any) -> bool:
    """Whether the bits that follow from a key are at hand, and depend on their flat index alone."""
    return (
        isinstance(key, jax.Array)
        and not isinstance(key, Tracer)
        and tp.cast(tp.Any, jax.config).jax_threefry_partitionable
        and str(jax.random.key_impl(key)) == "threefry2x32"
        and key.size == (1 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 2)
        and len(key.sharding.device_set) == 1
        and jax.sharding.get_abstract_mesh().empty
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _piece(distribution: Distribution, dtype: tp.Any, start: tp.Any, *bounds: tp.Any) -> Inexact[Array, " piece"]:
    return distribution(jax.random.wrap_key_data(start, impl=_FROM_INDEX), (_SIZE,), dtype, *bounds)


def _bits(start: tp.Any, bit_width: int, shape: tuple[int, ...]) -> Array:
    """The bits of the elements from an index on, as `jax.random.bits` gives them to the whole array.

    `start` holds the two words of a key of threefry, and those of the index.
    """
    high = jnp.broadcast_to(start[2], [math.prod(shape)])
    low = start[3] + jax.lax.iota(np.uint32, math.prod(shape))
    first, second = jax.extend.random.threefry2x32_p.bind(start[0], start[1], high, low)
    if bit_width == 64:
        bits = first.astype(np.uint64) << np.uint64(32) | second.astype(np.uint64)
    else:
        bits = (first ^ second).astype(f"uint{bit_width}")
    return bits.reshape(shape)


def _refuse(*_: tp.Any) -> tp.Any:
    raise NotImplementedError("A key that begins at an index draws once.")


_FROM_INDEX = jax.extend.random.define_prng_impl(
    key_shape=(4,),
    seed=_refuse,
    split=_refuse,
    random_bits=_bits,
    fold_in=_refuse,
    name="threefry2x32_from_index",
    tag="from_index",
)
