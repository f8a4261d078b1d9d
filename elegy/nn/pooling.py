from __future__ import annotations

import functools
import math
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact, Shaped

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.convolution_arguments import (
    Padding,
    Pairs,
    check_not_empty,
    for_each_axis,
    layout_of_input,
    padding_of,
    replicated,
    spatial_axes,
    spatial_count,
)
from elegy.nn.inputs import Flag, boolean, floating
from elegy.precision import at_least_float32


class Windows(tp.NamedTuple):
    """The windows of a pooling layer over an input: for each axis of it a size, a step, and the padding."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pairs
    layout: str

    def reduce(self, layer: Module, x: Array, identity: tp.Any, operation: tp.Any) -> Array:
        start = np.array(identity, x.dtype)
        y = jax.lax.reduce_window(x, start, operation, self.shape, self.strides, self.padding)
        of_window = [self.shape[axis] for axis in spatial_axes(self.layout)]
        check_not_empty(layer, x.shape, y.shape, self.layout, of_window)
        return y

    def counts(self, shape: tuple[int, ...]) -> np.ndarray:
        """How many elements of an input of this shape each window has, of size 1 along axes where all have as many."""
        of_axes = []
        for axis, size in enumerate(shape):
            window, (before, after) = self.shape[axis], self.padding[axis]
            starts = np.arange(-before, size + after - window + 1, self.strides[axis])
            if window == 1:
                starts = np.zeros(1, int)  # nothing is padded here
            count = np.minimum(starts + window, max(size, 1)) - np.maximum(starts, 0)
            of_axes.append(count.reshape([-1 if axis == other else 1 for other in range(len(shape))]))
        return functools.reduce(np.multiply, of_axes)


class Pool(Module):
    """What `MaxPool` and `AvgPool` have in common."""

    def __init__(
        self,
        window_shape: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        padding: Padding = "VALID",
        *,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = type(self).__name__
        n = spatial_count(layer, data_format, window_shape, strides, padding)
        self.num_spatial_dims = n
        self.window_shape = for_each_axis(layer, "window_shape", window_shape, n)
        self.strides = self.window_shape if strides is None else for_each_axis(layer, "strides", strides, n)
        self.padding = padding_of(layer, padding, n or 1)
        self.data_format = data_format
        if not isinstance(self.padding, str):
            windows = replicated(self.window_shape, len(self.padding))
            for window, pair in zip(windows, self.padding, strict=True):
                if not all(0 <= number < window for number in pair):
                    raise ValueError(
                        f"elegy.nn.{layer}: padding must be less than window_shape={window_shape}, so that each window "
                        f"has an element of the input, and not negative, got {padding!r}."
                    )

    def _windows(self, x: Array) -> Windows:
        layout = layout_of_input(self, x.shape, self.data_format, self.num_spatial_dims)
        axes = [axis % x.ndim for axis in spatial_axes(layout)]
        n = len(axes)
        shape, strides, padding = [1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim
        of_window, of_strides = replicated(self.window_shape, n), replicated(self.strides, n)
        if isinstance(self.padding, str):
            pairs = jax.lax.padtype_to_pads([x.shape[axis] for axis in axes], of_window, of_strides, self.padding)
        else:
            pairs = self.padding if len(self.padding) == n else self.padding * n
            if 0 in (x.shape[axis] for axis in axes):
                raise ValueError(
                    f"{path_of(self)}: the windows over an input of shape {x.shape} have no elements but the padding."
                )
        for axis, size, step, (before, after) in zip(axes, of_window, of_strides, pairs, strict=True):
            shape[axis], strides[axis], padding[axis] = size, step, (before, after)
        return Windows(tuple(shape), tuple(strides), tuple(padding), layout)


class MaxPool(Pool):
    """The maximum of each window, for each channel.

    **Arguments:**

    - `window_shape`: the size of the window: an integer, or one for each spatial axis.
    - `strides`: the step of the window: an integer, or one for each spatial axis. The default is `window_shape`: the
      windows lie side by side.
    - `padding`: `"VALID"` (windows lie inside the input), `"SAME"` (the output has `ceil(size / stride)` positions), or
      how far windows may reach beyond both ends of every spatial axis, or for each spatial axis that number or a pair
      `(before, after)`. What is beyond the ends is never the maximum.
    - `data_format`: `"channels_last"` or `"channels_first"`, or the layout by its letters, such as `"NHWC"` or
      `"NCHW"`. Without the `N`, as in `"HWC"` or `"CHW"`, the layer takes single examples.
    - `name`: that of `elegy.Module`.

    An input of three, four or five axes has one, two or three spatial ones, if nothing says how many there are. If
    `window_shape`, another argument or the letters of `data_format` do, there may be any number of axes of the batch.

    Where several elements of a window are the maximum, one of them gets the gradient.

    ```python
    import elegy
    import jax.numpy as jnp

    pool = elegy.nn.MaxPool(2)
    assert pool(jnp.ones([5, 8, 8, 3])).shape == (5, 4, 4, 3)
    assert pool(jnp.ones([5, 8, 3])).shape == (5, 4, 3)

    pool = elegy.nn.MaxPool([3, 3], strides=2, padding="SAME", data_format="NCHW")
    assert pool(jnp.ones([5, 3, 9, 9])).shape == (5, 3, 5, 5)
    ```
    """

    def __init__(
        self,
        window_shape: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        padding: Padding = "VALID",
        *,
        data_format: str = "channels_last",
        name: str | None = None,
    ):
        super().__init__(window_shape, strides, padding, data_format=data_format, name=name)

    def call(self, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it, of real numbers, integers or bools.

        **Returns:** an array of the same layout and dtype.
        """
        x = jnp.asarray(x)
        windows = self._windows(x)
        if jnp.iscomplexobj(x):
            raise TypeError(f"{path_of(self)}: there is no largest of complex numbers, got {x.dtype}.")
        if x.dtype == bool:
            smallest = False
        else:
            smallest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        return windows.reduce(self, x, smallest, jax.lax.max)


class AvgPool(Pool):
    """The average of each window, for each channel.

    **Arguments:**

    - `window_shape`, `strides`, `padding`, `data_format`: those of `elegy.nn.MaxPool`.
    - `count_include_padding`: what a window that reaches beyond the input is the average of: of its elements inside
      the input (False, as in Keras), or of all its elements, with zeros for those outside (True, the default of Flax
      and PyTorch).
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    The sum of half-precision numbers is computed in float32.

    ```python
    import elegy
    import jax.numpy as jnp

    pool = elegy.nn.AvgPool(2)
    assert pool(jnp.ones([5, 8, 8, 3])).shape == (5, 4, 4, 3)

    x = jnp.ones([1, 4, 1])
    assert elegy.nn.AvgPool(3, 1, padding=1)(x)[0, 0, 0] == 1
    assert elegy.nn.AvgPool(4, 1, padding=2, count_include_padding=True)(x)[0, 0, 0] == 0.5
    ```
    """

    def __init__(
        self,
        window_shape: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        padding: Padding = "VALID",
        *,
        count_include_padding: Flag = False,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(window_shape, strides, padding, data_format=data_format, name=name, dtype=dtype)
        self.count_include_padding = boolean("AvgPool", "count_include_padding", count_include_padding)

    def call(self, x: Shaped[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same layout and dtype.
        """
        x = floating(self, x)
        windows = self._windows(x)
        total = windows.reduce(self, precise(x), 0, jax.lax.add)
        if self.count_include_padding:
            return (total / math.prod(windows.shape)).astype(x.dtype)
        return (total / jnp.asarray(windows.counts(x.shape), total.dtype)).astype(x.dtype)


def precise(x: Array) -> Array:
    """`x` in a dtype in which it can be averaged."""
    return x if jnp.iscomplexobj(x) else x.astype(at_least_float32(x.dtype))
