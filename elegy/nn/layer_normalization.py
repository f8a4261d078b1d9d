from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.module import Module
from elegy.nn.inputs import Flag, boolean
from elegy.nn.standardise import (
    Axes,
    affine,
    axes_of,
    dtype_of,
    not_negative,
    other_axes,
    real,
    scale_and_offset,
    some_axes,
    standardised,
)
from elegy.precision import at_least_float32


class LayerNormalization(Module):
    """Normalises each example by itself: `y = scale * (x - mean) / sqrt(var + eps) + offset`.

    `mean` and `var` (the biased variance) are taken over `axis`, for each position of the other axes. Nothing is
    remembered, so that the layer does the same in training and outside of it. Ba, Kiros and Hinton,
    *Layer Normalization* (2016), [arXiv:1607.06450](https://arxiv.org/abs/1607.06450), equations 3 and 4.

    **Arguments:**

    - `axis`: the axis or axes to normalise over. The default is the last one.
    - `create_scale`, `create_offset`: whether there is a parameter `scale`, and `offset`.
    - `eps`: added to the variance.
    - `scale_init`, `offset_init`: initializers; the defaults are ones and zeros.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `scale` and `offset`, of the shape of the normalised axes, in their order in the input: `[features]`
    by default, and `[height, width, channels]` for images with `axis=[1, 2, 3]`, as in Keras. (Flax by default has
    parameters of the last axis only, whichever are normalised over.)

    The statistics are computed in float32 at least. The output has the dtype of the parameters; without any it has that
    of the input.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    norm = elegy.nn.LayerNormalization()
    y = norm(3 + jax.random.normal(jax.random.key(0), [5, 7, 64]))
    assert norm.scale.shape == (64,)
    assert jnp.allclose(y.mean(-1), 0, atol=1e-5) and jnp.allclose(y.std(-1), 1, atol=1e-3)
    ```
    """

    scale: Float[Array, "..."]
    offset: Float[Array, "..."]

    def __init__(
        self,
        *,
        axis: Axes = -1,
        create_scale: Flag = True,
        create_offset: Flag = True,
        eps: float | int = 1e-5,
        scale_init: tp.Any = jnp.ones,
        offset_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.axis = some_axes("LayerNormalization", axis)
        self.create_scale = boolean("LayerNormalization", "create_scale", create_scale)
        self.create_offset = boolean("LayerNormalization", "create_offset", create_offset)
        self.eps = not_negative("LayerNormalization", "eps", eps)
        self.scale_init = jnp.ones if scale_init is None else scale_init
        self.offset_init = jnp.zeros if offset_init is None else offset_init

    def call(self, x: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """**Arguments:**

        - `x`: an array that has the normalised axes. With `axis=-1` any number of axes may come before.

        **Returns:** an array of the same shape.
        """
        x = real(self, x)
        axes = axes_of(self, self.axis, x.shape)
        scale, offset = scale_and_offset(self, [x.shape[axis] for axis in axes])
        dtype = dtype_of(x, scale, offset)
        x = x.astype(at_least_float32(x.dtype, dtype))
        y = standardised(self, x, axes, self.eps)
        return affine(y, scale, offset, other_axes(axes, x.ndim)).astype(dtype)
