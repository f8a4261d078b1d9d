"""Which rows of a batch are samples, for layers that look at several rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from elegy.devices import sharded_like
from elegy.errors import SampleMaskError
from elegy.frames import path_of
from elegy.module import Module
from elegy.state import sample_mask


def real_rows(layer: Module, x: Shaped[Array, "rows *shape"]) -> Bool[Array, "rows *shape"] | None:
    """For each element of `x` whether it is one of a sample; None if all are.

    **Raises:** `SampleMaskError` if the rows of `x` are not those of the batch.
    """
    mask = sample_mask()
    if mask is None:
        return None
    if mask.shape != x.shape[:1]:
        raise SampleMaskError(
            f"{path_of(layer)}: the input has {x.shape[0]} rows (shape {x.shape}) and the sample mask {mask.shape[0]}, "
            "so which of the rows are samples cannot be known; statistics over all of them would count padded ones.\n"
            "  Around what calls the layer, say which rows are real: with elegy.sample_mask_context(mask), or with "
            "elegy.sample_mask_context(None) if all are."
        )
    return sharded_like(jax.lax.broadcast_in_dim(mask, x.shape, (0,)), x)


def real_only(x: Shaped[Array, "*shape"], real: Bool[Array, "*shape"] | None) -> Shaped[Array, "*shape"]:
    """`x`, with zeros where it is not real."""
    return x if real is None else jnp.where(real, x, jnp.zeros_like(x))


def row_count(real: Bool[Array, "rows *shape"], dtype: jnp.dtype) -> Float[Array, ""]:
    """How many rows are samples, and at least 1."""
    return jnp.maximum(jnp.sum(real.reshape(real.shape[0], -1)[:, 0], dtype=dtype), 1)
