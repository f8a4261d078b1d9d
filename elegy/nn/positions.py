"""Positions of the elements of a sequence, of which a part may have been seen before."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from elegy.frames import path_of
from elegy.module import Module

# The position of the first element: one for all sequences, or one for each sequence of a batch.
Offset = int | np.integer | Int[Array | np.ndarray, "..."]


def positions(layer: Module, offset: Offset, x: Shaped[Array, "*shape"], axis: int) -> Int[Array, "..."]:
    """The positions of `x` along an axis, given from the end: `offset`, `offset + 1`, …

    **Returns:** an array of `[length]`, or of `[*batch, length]` if there is an offset for each sequence.
    """
    start = jnp.asarray(offset)
    batch = x.shape[:axis]
    if not jnp.issubdtype(start.dtype, jnp.integer):
        raise TypeError(f"{path_of(layer)}: offset must be an integer, or an array of integers, got {start.dtype}.")
    if start.ndim and start.shape != batch:
        raise ValueError(
            f"{path_of(layer)}: offset must be one integer, or one for each sequence, of shape {batch}; "
            f"got shape {start.shape}."
        )
    start = jnp.expand_dims(start.astype(jnp.int32), -1)
    steps = jnp.arange(x.shape[axis], dtype=jnp.int32)
    return start + jnp.broadcast_to(steps, (*start.shape[:-1], *steps.shape))


def known(offset: Offset) -> np.ndarray | None:
    """The value of an offset, unless it is traced."""
    return None if isinstance(offset, Tracer) else np.asarray(offset)
