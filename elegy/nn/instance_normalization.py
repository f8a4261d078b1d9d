from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import Flag, boolean
from elegy.nn.standardise import (
    affine,
    channel_axis_of,
    dtype_of,
    not_negative,
    other_axes,
    real,
    scale_and_offset,
    standardised,
)
from elegy.precision import at_least_float32


class InstanceNormalization(Module):
    """Normalises each channel of each example: `y = scale * (x - mean) / sqrt(var + eps) + offset`.

    `mean` and `var` (the biased variance) are those of one channel of one example, over all positions: the first axis
    of the input is that of the batch, and all axes that are neither this nor that of the channels are averaged over.
    Nothing is remembered, so that the layer does the same in training and outside of it. Ulyanov, Vedaldi and
    Lempitsky, *Instance Normalization* (2016), [arXiv:1607.08022](https://arxiv.org/abs/1607.08022).

    **Arguments:**

    - `create_scale`, `create_offset`: whether there is a parameter `scale`, and `offset`.
    - `eps`: added to the variance.
    - `scale_init`, `offset_init`: initializers; the defaults are ones and zeros.
    - `data_format`: where the channel axis is: `"channels_last"` or `"channels_first"` (or a layout such as `"NHWC"`).
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `scale` and `offset` of shape `[channels]`.

    The statistics are computed in float32 at least. The output has the dtype of the parameters; without any it has that
    of the input.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    norm = elegy.nn.InstanceNormalization()
    y = norm(3 + jax.random.normal(jax.random.key(0), [2, 8, 8, 16]))
    assert norm.scale.shape == (16,)
    assert jnp.allclose(y.mean([1, 2]), 0, atol=1e-5)
    ```
    """

    scale: Float[Array, "channels"]
    offset: Float[Array, "channels"]

    def __init__(
        self,
        *,
        create_scale: Flag = True,
        create_offset: Flag = True,
        eps: float | int = 1e-5,
        scale_init: tp.Any = jnp.ones,
        offset_init: tp.Any = jnp.zeros,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.create_scale = boolean("InstanceNormalization", "create_scale", create_scale)
        self.create_offset = boolean("InstanceNormalization", "create_offset", create_offset)
        self.eps = not_negative("InstanceNormalization", "eps", eps)
        self.scale_init = jnp.ones if scale_init is None else scale_init
        self.offset_init = jnp.zeros if offset_init is None else offset_init
        self.data_format = data_format
        self.channel_axis = channel_axis_of("InstanceNormalization", data_format)

    def call(self, x: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same shape.
        """
        x = real(self, x)
        if x.ndim < 3:
            raise ValueError(
                f"{path_of(self)}: the input of InstanceNormalization needs an axis of the batch, at least one of "
                f"positions and one of channels, got shape {x.shape}.\n"
                "  Over the features of each example normalises LayerNormalization."
            )
        axis = self.channel_axis % x.ndim
        scale, offset = scale_and_offset(self, [x.shape[axis]])
        dtype = dtype_of(x, scale, offset)
        x = x.astype(at_least_float32(x.dtype, dtype))
        y = standardised(self, x, other_axes([0, axis], x.ndim), self.eps)
        return affine(y, scale, offset, other_axes([axis], x.ndim)).astype(dtype)
