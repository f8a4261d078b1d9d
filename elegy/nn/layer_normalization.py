from __future__ import annotations

import typing as tp

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.module import Module
from elegy.precision import at_least_float32


class LayerNormalization(Module):
    scale: Inexact[Array, "features"]
    offset: Inexact[Array, "features"]

    def __init__(
        self,
        axis: int = -1,
        *,
        create_scale: bool = True,
        create_offset: bool = True,
        eps: float | int = 1e-5,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.eps = float(eps)

    def call(self, x: Num[ArrayLike, "*batch features"]) -> Inexact[Array, "*batch features"]:
        scale = self.add_parameter("scale", jnp.shape(x)[-1:], initializer=jnp.ones)
        offset = self.add_parameter("offset", jnp.shape(x)[-1:], initializer=jnp.zeros)
        x = jnp.asarray(x)
        x = x.astype(at_least_float32(x.dtype, scale.dtype))
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        scale, offset = (jnp.broadcast_to(value, x.shape).astype(x.dtype) for value in (scale, offset))
        return (y * scale + offset).astype(self.scale.dtype)
