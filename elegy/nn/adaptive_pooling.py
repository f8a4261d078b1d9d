from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact, Shaped

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.convolution_arguments import for_each_axis, layout_of_input, replicated, spatial_axes, spatial_count
from elegy.nn.inputs import floating
from elegy.nn.pooling import precise


class AdaptiveAvgPool(Module):
    """The averages of as many windows as are wanted, whatever the size of the input.

    Of an axis of `size` positions the window number `i` of `wanted` has those from `floor(i * size / wanted)` to
    before `ceil((i + 1) * size / wanted)`, as in PyTorch. So windows overlap where `wanted` does not divide `size`, and
    an input that is too small is repeated.

    **Arguments:**

    - `output_shape`: how many positions the output has: an integer, or one for each spatial axis.
    - `data_format`: that of `elegy.nn.MaxPool`.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    The number of spatial axes is found as by `elegy.nn.MaxPool`. Half-precision numbers are averaged in float32.

    ```python
    import elegy
    import jax.numpy as jnp

    pool = elegy.nn.AdaptiveAvgPool(2)
    assert pool(jnp.arange(5.0)[None, :, None])[0, :, 0].tolist() == [1, 3]  # of 0, 1, 2 and of 2, 3, 4
    assert elegy.nn.AdaptiveAvgPool([7, 7])(jnp.ones([5, 16, 9, 3])).shape == (5, 7, 7, 3)
    ```
    """

    def __init__(
        self,
        output_shape: int | Sequence[int],
        *,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_spatial_dims = spatial_count("AdaptiveAvgPool", data_format, output_shape)
        self.output_shape = for_each_axis("AdaptiveAvgPool", "output_shape", output_shape, self.num_spatial_dims)
        self.data_format = data_format

    def call(self, x: Shaped[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same layout and dtype, with `output_shape` positions.
        """
        x = floating(self, x)
        axes = spatial_axes(layout_of_input(self, x.shape, self.data_format, self.num_spatial_dims))
        if 0 in (x.shape[axis] for axis in axes):
            raise ValueError(f"{path_of(self)}: an input of shape {x.shape} has no positions to average.")
        y = precise(x)
        for axis, wanted in zip(axes, replicated(self.output_shape, len(axes)), strict=True):
            y = _averages(y, axis % x.ndim, wanted)
        return y.astype(x.dtype)


def _averages(x: Array, axis: int, wanted: int) -> Array:
    """The averages of `wanted` windows of one axis."""
    size, numbers = x.shape[axis], np.arange(wanted)
    starts, ends = numbers * size // wanted, -(-(numbers + 1) * size // wanted)
    most = max(ends - starts)
    positions = starts[:, None] + np.arange(most)
    inside = positions < ends[:, None]
    shape = [1] * axis + [wanted, most] + [1] * (x.ndim - axis - 1)
    elements = jnp.take(x, jnp.asarray(np.minimum(positions, size - 1)), axis)
    # Selected, not multiplied by zero: an infinity beyond the window would make it NaN.
    total = jnp.sum(jnp.where(inside.reshape(shape), elements, 0), axis + 1)
    counts = (ends - starts).reshape(shape[: axis + 1] + shape[axis + 2 :])
    return total / jnp.asarray(counts, total.dtype)
