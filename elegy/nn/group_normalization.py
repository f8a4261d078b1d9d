from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import Flag, boolean, positive
from elegy.nn.standardise import (
    affine,
    channel_axis_of,
    check_not_empty,
    dtype_of,
    not_negative,
    other_axes,
    real,
    scale_and_offset,
    standardised,
)
from elegy.precision import at_least_float32


class GroupNormalization(Module):
    """Normalises groups of the channels of each example: `y = scale * (x - mean) / sqrt(var + eps) + offset`.

    The channels are split into `groups` parts of neighbouring ones. `mean` and `var` (the biased variance) are those of
    one part of one example, over its channels and all positions: the first axis of the input is that of the batch, and
    all axes that are neither this nor that of the channels are averaged over. An input `[batch, channels]` has none of
    those. Nothing is remembered, so that the layer does the same in training and outside of it. Wu and He,
    *Group Normalization* (2018), [arXiv:1803.08494](https://arxiv.org/abs/1803.08494), equation 7.

    **Arguments:**

    - `groups`: the number of groups, by which the number of channels must be divisible. The other arguments are given
      by name. With one group the layer normalises over everything but the batch; with as many as there are channels it
      is `InstanceNormalization`.
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
    import jax.numpy as jnp

    norm = elegy.nn.GroupNormalization(4)
    assert norm(jnp.ones([2, 8, 8, 16])).shape == (2, 8, 8, 16)
    assert norm.scale.shape == (16,)
    ```
    """

    scale: Float[Array, "channels"]
    offset: Float[Array, "channels"]

    def __init__(
        self,
        groups: int = 32,
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
        self.groups = positive("GroupNormalization", "groups", groups)
        self.create_scale = boolean("GroupNormalization", "create_scale", create_scale)
        self.create_offset = boolean("GroupNormalization", "create_offset", create_offset)
        self.eps = not_negative("GroupNormalization", "eps", eps)
        self.scale_init = jnp.ones if scale_init is None else scale_init
        self.offset_init = jnp.zeros if offset_init is None else offset_init
        self.data_format = data_format
        self.channel_axis = channel_axis_of("GroupNormalization", data_format)

    def call(self, x: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same shape.
        """
        x = real(self, x)
        if x.ndim < 2:
            raise ValueError(
                f"{path_of(self)}: the input of GroupNormalization needs an axis of the batch and one of channels, "
                f"got shape {x.shape}.\n  Give one example an axis of the batch: x[None]."
            )
        axis = self.channel_axis % x.ndim
        shape, channels = x.shape, x.shape[axis]
        if channels % self.groups:
            divisors = ", ".join(str(number) for number in range(1, channels + 1) if channels % number == 0)
            raise ValueError(
                f"{path_of(self)}: the {channels} channels of the input, of shape {shape}, cannot be split into "
                f"groups={self.groups} equal parts.\n  Use a divisor of {channels}: groups={divisors}."
            )
        check_not_empty(self, shape, range(1, x.ndim))
        scale, offset = scale_and_offset(self, [channels])
        dtype = dtype_of(x, scale, offset)
        x = x.astype(at_least_float32(x.dtype, dtype))
        x = jnp.reshape(x, (*shape[:axis], self.groups, channels // self.groups, *shape[axis + 1 :]))
        y = standardised(self, x, other_axes([0, axis], x.ndim), self.eps)
        return affine(jnp.reshape(y, shape), scale, offset, other_axes([axis], len(shape))).astype(dtype)
