"""Initial values of parameters, as functions of `(shape, dtype)` that draw from `elegy.next_rng_key`."""

from __future__ import annotations

import typing as tp

import jax

from elegy.hooks import next_rng_key


class RandomUniform:
    """Uniform."""

    def __init__(self, minval: float = 0.0, maxval: float = 1.0):
        self.minval = minval
        self.maxval = maxval

    def __call__(self, shape: tp.Sequence[int], dtype: tp.Any) -> jax.Array:
        return jax.random.uniform(next_rng_key(), tuple(shape), dtype, self.minval, self.maxval)
