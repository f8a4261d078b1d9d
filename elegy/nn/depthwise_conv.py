from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.convolution_arguments import (
    Padding,
    along_channels,
    channel_axis,
    check_not_empty,
    check_rank,
    covered,
    layout_of,
    padded,
    padding_names,
    padding_of,
)
from elegy.nn.convolve import convolve
from elegy.nn.inputs import Flag, Nothing, boolean, converted, positive, positives, refuse_more


class DepthwiseConvND(Module):
    """What `DepthwiseConv1D` and `DepthwiseConv2D` have in common."""

    w: Inexact[Array, "*window 1 out"]
    b: Inexact[Array, "out"]
    num_spatial_dims: tp.ClassVar[int]

    def __init__(
        self,
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
        inferred = "The channels of the output are those of the input, channel_multiplier times"
        refuse_more(layer, {"kernel_shape": kernel_shape}, more, inferred, "channel_multiplier=2")
        n = self.num_spatial_dims
        self.kernel_shape = positives(layer, "kernel_shape", kernel_shape, n)
        self.channel_multiplier = positive(layer, "channel_multiplier", channel_multiplier)
        self.stride = positives(layer, "stride", stride, n)
        self.rate = positives(layer, "rate", rate, n)
        self.padding = padding_of(layer, padding, n, padding_names(n))
        self.with_bias = boolean(layer, "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init
        self.data_format = layout_of(layer, data_format, n)

    def call(self, x: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it. There may be any number of axes of
          the batch.

        **Returns:** an array of the same layout, with `channels * channel_multiplier` channels.
        """
        shape = jnp.shape(x)
        check_rank(self, shape, self.data_format)
        channels = shape[channel_axis(self.data_format)]
        output_channels = channels * self.channel_multiplier
        w = self.add_parameter("w", [*self.kernel_shape, 1, output_channels], initializer=self.w_init)
        x = converted(self, x, w.dtype)
        window = covered(self.kernel_shape, self.rate)
        x, padding = padded(self, x, self.data_format, self.padding, window)
        y = convolve(x, w, self.data_format, padding=padding, stride=self.stride, rate=self.rate, groups=channels)
        check_not_empty(self, shape, y.shape, self.data_format, window)
        if self.with_bias:
            b = self.add_parameter("b", [output_channels], initializer=self.b_init)
            y = y + along_channels(b, y, self.data_format)
        return y


class DepthwiseConv1D(DepthwiseConvND):
    """A convolution of each channel with filters of its own, over one spatial axis, of inputs
    `[batch, width, channels]`.

    **Arguments:** those of `elegy.nn.DepthwiseConv2D`; `padding` may be `"CAUSAL"` too.

    **Parameters:** `w` of shape `[width, 1, in * channel_multiplier]`; `b` of shape `[in * channel_multiplier]`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.DepthwiseConv1D(3, padding="CAUSAL")
    assert conv(jnp.ones([5, 20, 4])).shape == (5, 20, 4)
    assert conv.w.shape == (3, 1, 4)
    ```
    """

    num_spatial_dims = 1


class DepthwiseConv2D(DepthwiseConvND):
    """A convolution of each channel with filters of its own, over two spatial axes, of inputs
    `[batch, height, width, channels]`.

    The channels of the output that come from channel `i` of the input are `channel_multiplier` neighbours, from
    `i * channel_multiplier` on. It is a `Conv2D` of as many groups as there are channels.

    **Arguments:**

    - `kernel_shape`: the size of the window: an integer, or one for each spatial axis. The other arguments are given by
      name.
    - `channel_multiplier`: how many filters each channel has.
    - `stride`, `rate`, `padding`: those of `elegy.nn.ConvND`.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`: the inputs of a filter
      are the elements of one window.
    - `b_init`: the initializer of `b`.
    - `data_format`: that of `elegy.nn.ConvND`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[*kernel_shape, 1, in * channel_multiplier]`, in every data format; `b` of shape
    `[in * channel_multiplier]`. Keras keeps the kernel as `[*kernel_shape, in, channel_multiplier]`: `jnp.reshape`
    makes one of the other.

    The layer computes in the dtype of its parameters, and converts the input to it.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.DepthwiseConv2D(3, channel_multiplier=2)
    assert conv(jnp.ones([5, 8, 8, 4])).shape == (5, 8, 8, 8)
    assert conv.w.shape == (3, 3, 1, 8)
    ```
    """

    num_spatial_dims = 2
