from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.frames import path_of
from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.convolution_arguments import (
    Padding,
    Pairs,
    along_channels,
    channel_axis,
    check_not_empty,
    check_rank,
    covered,
    extended,
    fitted,
    layout_of,
    padding_of,
    spatial_axes,
)
from elegy.nn.convolve import convolve
from elegy.nn.inputs import Flag, Nothing, boolean, converted, positive, positives, refuse_more


class ConvNDTranspose(Module):
    """A transposed convolution over the spatial axes: `stride` makes the output larger, not smaller.

    The elements of the input are spread out, with `stride - 1` zeros between neighbours, and the window `w` slides over
    them step by step (Dumoulin and Visin, *A guide to convolution arithmetic for deep learning* (2016), chapter 4).
    Subclasses fix the number of spatial axes: see `Conv1DTranspose`, `Conv2DTranspose` and `Conv3DTranspose`.

    **Arguments:**

    - `output_channels`: the number of filters. The number of channels of the input is inferred.
    - `kernel_shape`: the size of the window: an integer, or one for each spatial axis. The other arguments are given by
      name.
    - `stride`: the distance at which the input is spread out: an integer, or one for each spatial axis.
    - `rate`: the distance between neighbouring elements of the window (its dilation): an integer, or one for each
      spatial axis.
    - `output_shape`: how many positions the output has: an integer, or one for each spatial axis. With a stride there
      are several sizes that a convolution with the same `padding` takes to the size of this input; the default is
      that which `padding` says.
    - `padding`: what is around the input once it is spread out. A window covers
      `window = (kernel_shape - 1) * rate + 1` positions.
        - `"SAME"`: zeros, so that the output has `size * stride` positions;
        - `"VALID"`: zeros, so that it has `(size - 1) * stride + max(window, stride)`;
        - an integer: that many zeros at both ends of every spatial axis; or for each spatial axis such a number or a
          pair `(before, after)`;
        - `"CIRCULAR"`: the input itself, over and over; the output has `size * stride` positions.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`.
    - `b_init`: the initializer of `b`.
    - `data_format`: `"channels_last"` or `"channels_first"`, or the layout by its letters, such as `"NHWC"` or
      `"NCHW"`. Without the `N`, as in `"HWC"` or `"CHW"`, the layer takes single examples.
    - `mask`: an array that is multiplied with `w`, of the shape of `w` or one that broadcasts to it.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[*kernel_shape, in, out]`, in every data format; `b` of shape `[out]`.

    As in Flax, `w` is applied as it is. (So it is in Haiku, which stores it as `[*kernel_shape, out, in]`.) In Keras
    and PyTorch the layer is the gradient of a convolution: it flips the kernel along the spatial axes, and stores it as
    `[*kernel_shape, out, in]` or `[in, out, *kernel_shape]`, so that one takes over their weights by flipping the
    spatial axes and moving the others. Numbers as `padding` are zeros that are added here; in PyTorch they are
    positions that are cropped from the output: `padding=p` of PyTorch is `padding=window - 1 - p` here.

    The layer computes in the dtype of its parameters, and converts the input to it.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv2DTranspose(8, 3, stride=2)
    assert conv(jnp.ones([5, 16, 16, 4])).shape == (5, 32, 32, 8)
    assert conv.w.shape == (3, 3, 4, 8)

    conv = elegy.nn.Conv2DTranspose(8, 3, stride=2, output_shape=[31, 32])
    assert conv(jnp.ones([5, 16, 16, 4])).shape == (5, 31, 32, 8)
    ```
    """

    w: Inexact[Array, "*window in out"]
    b: Inexact[Array, "out"]
    num_spatial_dims: tp.ClassVar[int]

    def __init__(
        self,
        output_channels: int,
        kernel_shape: int | Sequence[int],
        *more: Nothing,
        stride: int | Sequence[int] = 1,
        rate: int | Sequence[int] = 1,
        output_shape: int | Sequence[int] | None = None,
        padding: Padding = "SAME",
        with_bias: Flag = True,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        data_format: str = "channels_last",
        mask: Num[ArrayLike, "..."] | None = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = type(self).__name__
        if not hasattr(type(self), "num_spatial_dims"):
            raise TypeError(
                "elegy.nn.ConvNDTranspose is the base class of Conv1DTranspose, Conv2DTranspose and Conv3DTranspose: "
                "use one of those."
            )
        given = {"output_channels": output_channels, "kernel_shape": kernel_shape}
        refuse_more(layer, given, more, "The channels of the input are inferred", "stride=2")
        n = self.num_spatial_dims
        self.output_channels = positive(layer, "output_channels", output_channels)
        self.kernel_shape = positives(layer, "kernel_shape", kernel_shape, n)
        self.stride = positives(layer, "stride", stride, n)
        self.rate = positives(layer, "rate", rate, n)
        self.output_shape = None if output_shape is None else positives(layer, "output_shape", output_shape, n)
        self.padding = padding_of(layer, padding, n, ("SAME", "VALID", "CIRCULAR"))
        self.with_bias = boolean(layer, "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init
        self.data_format = layout_of(layer, data_format, n)
        self.mask = None if mask is None else jnp.asarray(mask)
        if self.output_shape is not None and self.padding not in ("SAME", "VALID"):
            raise ValueError(
                f"elegy.nn.{layer}: output_shape={output_shape} goes with padding 'SAME' or 'VALID', got "
                f"padding={padding!r}, which says by itself how large the output is."
            )

    def call(self, x: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it. There may be any number of axes of
          the batch.

        **Returns:** an array of the same layout, with `output_channels` channels.
        """
        shape = jnp.shape(x)
        check_rank(self, shape, self.data_format)
        padding = self._padding_of([shape[axis] for axis in spatial_axes(self.data_format)])
        of_w = (*self.kernel_shape, shape[channel_axis(self.data_format)], self.output_channels)
        w = self.add_parameter("w", of_w, initializer=self.w_init)
        x = converted(self, x, w.dtype)
        w = w if self.mask is None else w * fitted(self, self.mask, w)
        if self.padding == "CIRCULAR":
            x, padding = self._repeated(x, padding)
        y = convolve(x, w, self.data_format, padding=padding, input_rate=self.stride, rate=self.rate)
        check_not_empty(self, shape, y.shape, self.data_format, covered(self.kernel_shape, self.rate))
        if self.with_bias:
            b = self.add_parameter("b", [self.output_channels], initializer=self.b_init)
            y = y + along_channels(b, y, self.data_format)
        return y

    def _padding_of(self, sizes: Sequence[int]) -> Pairs:
        """The zeros around the input, of these sizes, once it is spread out."""
        if not isinstance(self.padding, str):
            return self.padding
        windows = covered(self.kernel_shape, self.rate)
        pairs = []
        for number, (size, window, stride) in enumerate(zip(sizes, windows, self.stride, strict=True)):
            smallest, largest = self._output_sizes(size, window, stride)
            if self.output_shape is None:
                wanted = (size - 1) * stride + max(window, stride) if self.padding == "VALID" else largest
            else:
                wanted = self.output_shape[number]
                if not smallest <= wanted <= largest:
                    raise ValueError(
                        f"{path_of(self)}: an output of {wanted} positions, as output_shape={self.output_shape} wants "
                        f"it, is impossible: of {size} positions of the input, stride={stride} and "
                        f"padding='{self.padding}' make between {smallest} and {largest}."
                    )
            # A convolution that takes `wanted` positions to `size` adds `total` zeros, the odd one behind.
            total = 0 if self.padding == "VALID" else max((size - 1) * stride + window - wanted, 0)
            before = window - 1 - total // 2
            spread_out = max((size - 1) * stride + 1, 0)
            pairs.append((before, wanted - spread_out + window - 1 - before))
        return tuple(pairs)

    def _repeated(self, x: Array, padding: Pairs) -> tuple[Array, Pairs]:
        """`x` repeated as far beyond its ends as this padding reaches, and what is to be taken off again."""
        strides = list(zip(padding, self.stride, strict=True))
        widths = [(-(-before // stride), -(-after // stride)) for (before, after), stride in strides]
        rest = tuple(
            (before - stride * width[0], after - stride * width[1])
            for ((before, after), stride), width in zip(strides, widths, strict=True)
        )
        return extended(self, x, self.data_format, widths, "wrap"), rest

    def _output_sizes(self, size: int, window: int, stride: int) -> tuple[int, int]:
        """The fewest and the most positions that a convolution takes to `size`."""
        if self.padding == "VALID":
            return (size - 1) * stride + window, size * stride + window - 1
        return (size - 1) * stride + 1, size * stride


class Conv1DTranspose(ConvNDTranspose):
    """A transposed convolution over one spatial axis, of inputs `[batch, width, channels]`.

    **Arguments:** those of `elegy.nn.ConvNDTranspose`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv1DTranspose(output_channels=8, kernel_shape=4, stride=2)
    assert conv(jnp.ones([5, 20, 2])).shape == (5, 40, 8)
    ```
    """

    num_spatial_dims = 1


class Conv2DTranspose(ConvNDTranspose):
    """A transposed convolution over two spatial axes, of inputs `[batch, height, width, channels]`.

    **Arguments:** those of `elegy.nn.ConvNDTranspose`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv2DTranspose(output_channels=3, kernel_shape=[3, 3], stride=2)
    assert conv(jnp.ones([5, 8, 8, 16])).shape == (5, 16, 16, 3)
    ```
    """

    num_spatial_dims = 2


class Conv3DTranspose(ConvNDTranspose):
    """A transposed convolution over three spatial axes, of inputs `[batch, depth, height, width, channels]`.

    **Arguments:** those of `elegy.nn.ConvNDTranspose`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv3DTranspose(output_channels=4, kernel_shape=3, padding="VALID")
    assert conv(jnp.ones([2, 3, 3, 3, 1])).shape == (2, 5, 5, 5, 4)
    ```
    """

    num_spatial_dims = 3
