from __future__ import annotations

import operator
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.devices import for_convolution
from elegy.frames import path_of
from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.inputs import Flag, Nothing, boolean, converted, positive, positives, refuse_more

Padding = str | int | Sequence[int] | Sequence[Sequence[int]]

# By the number of spatial axes; the channels are last.
_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


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
    - `padding`: `"SAME"` (the output has `ceil(size / stride)` positions), `"VALID"` (no padding), the number of
      zeros to add at both ends of every spatial axis, or for each spatial axis that number or a pair `(before,
      after)`.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`: a truncated normal of
      variance `1 / (inputs of a filter)`, as in Flax (`lecun_normal`).
    - `b_init`: the initializer of `b`.
    - `data_format`: `"channels_last"` or `"channels_first"`, or the layout by its letters, such as `"NHWC"` or
      `"NCHW"`.
    - `mask`: an array that is multiplied with `w`, of the shape of `w` or one that broadcasts to it.
    - `groups`: the number of groups into which the input channels are split; each filter sees one group.
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
        self.padding = _padding(layer, padding, n)
        self.with_bias = boolean(layer, "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init
        self.data_format = _data_format(layer, data_format, n)
        self.mask = None if mask is None else jnp.asarray(mask)
        self.groups = positive(layer, "groups", groups)
        if self.output_channels % self.groups:
            raise ValueError(
                f"elegy.nn.{layer}: output_channels={output_channels} cannot be split into groups={groups} equal parts."
            )

    def call(self, x: Num[ArrayLike, "batch ..."]) -> Inexact[Array, "batch ..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same layout, with `output_channels` channels.
        """
        self._check_rank(jnp.shape(x))
        channel_axis = self.data_format.index("C")
        channels = jnp.shape(x)[channel_axis]
        if channels % self.groups:
            raise ValueError(
                f"{path_of(self)}: the {channels} channels of the input cannot be split into groups={self.groups} "
                "equal parts."
            )
        shape = (*self.kernel_shape, channels // self.groups, self.output_channels)
        w = self.add_parameter("w", shape, initializer=self.w_init)
        x = converted(self, x, w.dtype)
        w = w if self.mask is None else w * self._fitted(self.mask, w)
        w, out_sharding = for_convolution(x, w, channel_axis)
        y = jax.lax.conv_general_dilated(
            x,
            w,
            window_strides=self.stride,
            padding=self.padding,
            rhs_dilation=self.rate,
            dimension_numbers=(self.data_format, _SPATIAL[self.num_spatial_dims] + "IO", self.data_format),
            feature_group_count=self.groups,
            out_sharding=out_sharding,
        )
        if self.with_bias:
            b = self.add_parameter("b", [self.output_channels], initializer=self.b_init)
            y = y + jax.lax.broadcast_in_dim(b, y.shape, (channel_axis,))
        return y

    def _check_rank(self, shape: tuple[int, ...]) -> None:
        if not hasattr(type(self), "num_spatial_dims"):
            raise TypeError("elegy.nn.ConvND is the base class of Conv1D, Conv2D and Conv3D: use one of those.")
        n = self.num_spatial_dims
        if len(shape) != n + 2:
            one_less = (
                "\n  Give one image an axis of the batch, x[None], and images without channels one, x[..., None]."
            )
            hint = one_less if len(shape) == n + 1 else ""
            raise ValueError(
                f"{path_of(self)}: the input of {type(self).__name__} must have {n + 2} axes, {self.data_format}, "
                f"got shape {shape}.{hint}"
            )

    def _fitted(self, mask: Array, w: Array) -> Array:
        try:
            return jnp.broadcast_to(mask, w.shape).astype(w.dtype)
        except ValueError:
            raise ValueError(
                f"{path_of(self)}: mask has shape {mask.shape}, which does not broadcast to that of w, {w.shape}."
            ) from None


class Conv1D(ConvND):
    """A convolution over one spatial axis, of inputs `[batch, width, channels]`.

    **Arguments:** those of `elegy.nn.ConvND`.

    ```python
    import elegy
    import jax.numpy as jnp

    conv = elegy.nn.Conv1D(output_channels=8, kernel_shape=3)
    assert conv(jnp.ones([5, 20, 2])).shape == (5, 20, 8)
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


def _padding(layer: str, padding: tp.Any, n: int) -> str | tuple[tuple[int, int], ...]:
    """`"SAME"`, `"VALID"`, or the zeros before and after each spatial axis."""
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"elegy.nn.{layer}: padding must be 'SAME', 'VALID' or numbers of zeros, got {padding!r}.")
        return padding.upper()
    axes = (padding,) * n if isinstance(padding, int) else tuple(padding)
    pairs = tuple(tuple(axis) if isinstance(axis, (tuple, list)) else (axis, axis) for axis in axes)
    if len(pairs) != n or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"elegy.nn.{layer}: padding must be 'SAME', 'VALID', an integer, or for each of the {n} spatial axes an "
            f"integer or a pair (before, after), got {padding!r}."
        )
    return tuple((operator.index(before), operator.index(after)) for before, after in pairs)


def _data_format(layer: str, data_format: str, n: int) -> str:
    """The layout by its letters, such as `NHWC`."""
    spatial = _SPATIAL[n]
    layouts = {"channels_last": f"N{spatial}C", "channels_first": f"NC{spatial}"}
    if data_format not in (*layouts, *layouts.values()):
        raise ValueError(
            f"elegy.nn.{layer}: data_format must be one of {', '.join((*layouts, *layouts.values()))}, "
            f"got {data_format!r}."
        )
    return layouts.get(data_format, data_format)
