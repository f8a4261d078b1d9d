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
    along_channels,
    channel_axis,
    check_not_empty,
    check_rank,
    covered,
    fitted,
    layout_of,
    padded,
    padding_names,
    padding_of,
)
from elegy.nn.convolve import convolve
from elegy.nn.inputs import Flag, Nothing, boolean, converted, positive, positives, refuse_more


class ConvND(Module):
    """A convolution over the spatial axes (as in all libraries for neural networks, a cross-correlation).

    Subclasses fix the number of spatial axes: see `Conv1D`, `Conv2D` and `Conv3D`.

    **Arguments:**

    - `output_channels`: the number of filters. The number of channels of the input is inferred.
    - `kernel_shape`: the size of the window: an integer, or one for each spatial axis. The other arguments are given by
      name.
    - `stride`: the step of the window: an integer, or one for each spatial axis.
    - `rate`: the distance between neighbouring elements of the window (its dilation): an integer, or one for each
      spatial axis.
    - `padding`: what is added at the ends of the spatial axes:
        - `"SAME"`: zeros, so that the output has `ceil(size / stride)` positions;
        - `"VALID"`: nothing;
        - an integer: that many zeros at both ends of every spatial axis; or for each spatial axis such a number or a
          pair `(before, after)`;
        - `"CIRCULAR"`, `"REFLECT"`: as many elements as `"SAME"` with a stride of 1 adds zeros, from the other end of
          the axis, or the mirror image about the element at the end;
        - `"CAUSAL"`, in `Conv1D` only: `(kernel_shape - 1) * rate` zeros before the first position, so that no output
          depends on later inputs.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`: a truncated normal of
      variance `1 / (inputs of a filter)`, as in Flax (`lecun_normal`).
    - `b_init`: the initializer of `b`.
    - `data_format`: `"channels_last"` or `"channels_first"`, or the layout by its letters, such as `"NHWC"` or
      `"NCHW"`. Without the `N`, as in `"HWC"` or `"CHW"`, the layer takes single examples.
    - `mask`: an array that is multiplied with `w`, of the shape of `w` or one that broadcasts to it.
    - `groups`: the number of groups into which the input channels are split; each filter sees one group. On a mesh
      keep the kernel of such a layer whole: XLA, as of JAX 0.10 to 0.12, multiplies its gradient where devices share
      out the batch along one axis of the mesh and the filters along another.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[*kernel_shape, in / groups, out]`, in every data format; `b` of shape `[out]`.

    The layer computes in the dtype of its parameters, and converts the input to it.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv2D(8, 3, groups=2, with_bias=False, data_format="NCHW")
    assert conv(jnp.ones([5, 4, 16, 16])).shape == (5, 8, 16, 16)
    assert conv.w.shape == (3, 3, 2, 8)
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
        padding: Padding = "SAME",
        with_bias: Flag = True,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        data_format: str = "channels_last",
        mask: Num[ArrayLike, "..."] | None = None,
        groups: int = 1,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = type(self).__name__
        if not hasattr(type(self), "num_spatial_dims"):
            raise TypeError("elegy.nn.ConvND is the base class of Conv1D, Conv2D and Conv3D: use one of those.")
        given = {"output_channels": output_channels, "kernel_shape": kernel_shape}
        refuse_more(layer, given, more, "The channels of the input are inferred", "stride=2")
        n = self.num_spatial_dims
        self.output_channels = positive(layer, "output_channels", output_channels)
        self.kernel_shape = positives(layer, "kernel_shape", kernel_shape, n)
        self.stride = positives(layer, "stride", stride, n)
        self.rate = positives(layer, "rate", rate, n)
        self.padding = padding_of(layer, padding, n, padding_names(n))
        self.with_bias = boolean(layer, "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init
        self.data_format = layout_of(layer, data_format, n)
        self.mask = None if mask is None else jnp.asarray(mask)
        self.groups = positive(layer, "groups", groups)
        if self.output_channels % self.groups:
            raise ValueError(
                f"elegy.nn.{layer}: output_channels={output_channels} cannot be split into groups={groups} equal parts."
            )

    def call(self, x: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it. There may be any number of axes of
          the batch.

        **Returns:** an array of the same layout, with `output_channels` channels.
        """
        shape = jnp.shape(x)
        check_rank(self, shape, self.data_format)
        channels = shape[channel_axis(self.data_format)]
        if channels % self.groups:
            raise ValueError(
                f"{path_of(self)}: the {channels} channels of the input cannot be split into groups={self.groups} "
                "equal parts."
            )
        of_w = (*self.kernel_shape, channels // self.groups, self.output_channels)
        w = self.add_parameter("w", of_w, initializer=self.w_init)
        x = converted(self, x, w.dtype)
        w = w if self.mask is None else w * fitted(self, self.mask, w)
        window = covered(self.kernel_shape, self.rate)
        x, padding = padded(self, x, self.data_format, self.padding, window)
        y = convolve(x, w, self.data_format, padding=padding, stride=self.stride, rate=self.rate, groups=self.groups)
        check_not_empty(self, shape, y.shape, self.data_format, window)
        if self.with_bias:
            b = self.add_parameter("b", [self.output_channels], initializer=self.b_init)
            y = y + along_channels(b, y, self.data_format)
        return y


class Conv1D(ConvND):
    """A convolution over one spatial axis, of inputs `[batch, width, channels]`.

    **Arguments:** those of `elegy.nn.ConvND`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv1D(output_channels=8, kernel_shape=3, padding="CAUSAL")
    x = jnp.ones([5, 20, 2])
    y = conv(x)
    assert y.shape == (5, 20, 8)
    assert bool((conv(x.at[:, 10:].set(0))[:, :10] == y[:, :10]).all())
    ```
    """

    num_spatial_dims = 1


class Conv2D(ConvND):
    """A convolution over two spatial axes, of inputs `[batch, height, width, channels]`.

    **Arguments:** those of `elegy.nn.ConvND`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv2D(output_channels=16, kernel_shape=[3, 3], stride=2)
    assert conv(jnp.ones([5, 8, 8, 3])).shape == (5, 4, 4, 16)
    ```
    """

    num_spatial_dims = 2


class Conv3D(ConvND):
    """A convolution over three spatial axes, of inputs `[batch, depth, height, width, channels]`.

    **Arguments:** those of `elegy.nn.ConvND`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv3D(output_channels=4, kernel_shape=3, padding="VALID")
    assert conv(jnp.ones([2, 5, 5, 5, 1])).shape == (2, 3, 3, 3, 4)
    ```
    """

    num_spatial_dims = 3
