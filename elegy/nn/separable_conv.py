from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.module import Module
from elegy.nn.conv import Conv1D, Conv2D
from elegy.nn.convolution_arguments import Padding, check_rank, layout_of, padding_names, padding_of
from elegy.nn.depthwise_conv import DepthwiseConv1D, DepthwiseConv2D
from elegy.nn.inputs import Flag, Nothing, boolean, positive, positives, refuse_more


class SeparableConvND(Module):
    """What `SeparableConv1D` and `SeparableConv2D` have in common."""

    num_spatial_dims: tp.ClassVar[int]

    def __init__(
        self,
        output_channels: int,
        kernel_shape: int | Sequence[int],
        *more: Nothing,
        channel_multiplier: int = 1,
        stride: int | Sequence[int] = 1,
        rate: int | Sequence[int] = 1,
        padding: Padding = "SAME",
        with_bias: Flag = True,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = type(self).__name__
        given = {"output_channels": output_channels, "kernel_shape": kernel_shape}
        refuse_more(layer, given, more, "The channels of the input are inferred", "stride=2")
        # The parts would name themselves if they refused an argument.
        n = self.num_spatial_dims
        self.output_channels = positive(layer, "output_channels", output_channels)
        self.data_format = layout_of(layer, data_format, n)
        depthwise, pointwise = _PARTS[n]
        self.depthwise = depthwise(
            positives(layer, "kernel_shape", kernel_shape, n),
            channel_multiplier=positive(layer, "channel_multiplier", channel_multiplier),
            stride=positives(layer, "stride", stride, n),
            rate=positives(layer, "rate", rate, n),
            padding=padding_of(layer, padding, n, padding_names(n)),
            with_bias=False,
            w_init=w_init,
            data_format=data_format,
            dtype=dtype,
        )
        self.pointwise = pointwise(
            output_channels,
            1,
            with_bias=boolean(layer, "with_bias", with_bias),
            w_init=w_init,
            b_init=b_init,
            data_format=data_format,
            dtype=dtype,
        )

    def call(self, x: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it. There may be any number of axes of
          the batch.

        **Returns:** an array of the same layout, with `output_channels` channels.
        """
        check_rank(self, jnp.shape(x), self.data_format)
        return self.pointwise(self.depthwise(x))


_PARTS: dict[int, tuple[tp.Any, tp.Any]] = {1: (DepthwiseConv1D, Conv1D), 2: (DepthwiseConv2D, Conv2D)}


class SeparableConv1D(SeparableConvND):
    """A convolution over one spatial axis in two steps, of inputs `[batch, width, channels]`.

    **Arguments:** those of `elegy.nn.SeparableConv2D`; `padding` may be `"CAUSAL"` too.

    **Parameters:** `w` of `depthwise`, of shape `[width, 1, in * channel_multiplier]`; `w` of `pointwise`, of shape
    `[1, in * channel_multiplier, out]`, and `b`, of shape `[out]`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.SeparableConv1D(8, 3, padding="CAUSAL")
    assert conv(jnp.ones([5, 20, 4])).shape == (5, 20, 8)
    ```
    """

    num_spatial_dims = 1


class SeparableConv2D(SeparableConvND):
    """A convolution over two spatial axes in two steps, of inputs `[batch, height, width, channels]`: each channel by
    itself (`DepthwiseConv2D`), then a linear map of the channels at each position (`Conv2D` with a window of 1).

    It has fewer parameters than a `Conv2D` with the same window: Chollet, *Xception* (2017), section 2.

    **Arguments:**

    - `output_channels`: the number of channels of the output. That of the input is inferred.
    - `kernel_shape`: the size of the window: an integer, or one for each spatial axis. The other arguments are given by
      name.
    - `channel_multiplier`: how many filters each channel has in the first step.
    - `stride`, `rate`, `padding`: those of `elegy.nn.ConvND`, for the first step.
    - `with_bias`: whether the second step has a `b`; the first has none.
    - `w_init`: the initializer of both `w`. The default is `elegy.initializers.VarianceScaling()`.
    - `b_init`: the initializer of `b`.
    - `data_format`: that of `elegy.nn.ConvND`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of `depthwise`, of shape `[*kernel_shape, 1, in * channel_multiplier]`; `w` of `pointwise`, of
    shape `[1, 1, in * channel_multiplier, out]`, and `b`, of shape `[out]`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.SeparableConv2D(8, 3, channel_multiplier=2)
    assert conv(jnp.ones([5, 16, 16, 4])).shape == (5, 16, 16, 8)
    assert conv.depthwise.w.shape == (3, 3, 1, 8)
    assert conv.pointwise.w.shape == (1, 1, 8, 8)
    ```
    """

    num_spatial_dims = 2
