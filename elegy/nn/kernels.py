"""Initial values of kernels that have several axes of inputs or of outputs."""

from __future__ import annotations

import math
import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp

from elegy.creation import Recipe
from elegy.draws import next_rng_key
from elegy.module import Module


def drawn_as_matrix(layer: Module, initializer: tp.Any, summed: Sequence[int]) -> tp.Any:
    """An initializer of the kernel `w` of `layer` that asks `initializer` for a matrix, and brings that into shape.

    The axes `summed` of the kernel, those of its inputs, are the rows, so that an initializer such as
    `VarianceScaling` counts each input once, wherever the axes are. Arrays, and functions that take no shape, give the
    whole kernel as it is.
    """
    if not Recipe(None, None, None, initializer).draws:
        return initializer

    def initialise(shape: Sequence[int], dtype: tp.Any) -> tp.Any:
        order = [*summed, *(axis for axis in range(len(shape)) if axis not in summed)]
        sizes = [shape[axis] for axis in order]
        matrix = (math.prod(sizes[: len(summed)]), math.prod(sizes[len(summed) :]))
        make, finish = Recipe(matrix, dtype, None, initializer).maker(layer, "w", next_rng_key)
        return jnp.moveaxis(finish(make()).reshape(sizes), range(len(order)), order)

    return initialise
