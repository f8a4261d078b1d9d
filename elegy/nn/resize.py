from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Shaped

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.convolution_arguments import for_each_axis, layout_of_input, replicated, spatial_axes, spatial_count
from elegy.nn.inputs import Flag, boolean, floating
from elegy.nn.pooling import precise


class Resize(Module):
    """Images, or whatever has spatial axes, in another size, by `jax.image.resize`.

    Positions are those of the centres of pixels, as in Keras, and in PyTorch with `align_corners=False`.

    **Arguments:**

    - `shape`: how many positions the output has: an integer, or one for each spatial axis.
    - `method`: one of those of `jax.image.resize`: `"nearest"`, `"bilinear"`, `"bicubic"`, `"lanczos3"` and others.
    - `antialias`: whether to average over more of the input where the output is smaller. It makes no difference to
      `"nearest"`, nor to an output that is larger (unless the method is `"cubic-pytorch"`).
    - `data_format`: that of `elegy.nn.MaxPool`.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it, unless the method is `"nearest"`.

    The number of spatial axes is found as by `elegy.nn.MaxPool`. Half-precision numbers are interpolated in float32.

    ```python
    import elegy
    import jax.numpy as jnp

    resize = elegy.nn.Resize([6, 8])
    assert resize(jnp.ones([5, 4, 16, 3])).shape == (5, 6, 8, 3)
    ```
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        method: str = "bilinear",
        *,
        antialias: Flag = True,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_spatial_dims = spatial_count("Resize", data_format, shape)
        self.shape = for_each_axis("Resize", "shape", shape, self.num_spatial_dims)
        self.method = _method("Resize", method)
        self.antialias = boolean("Resize", "antialias", antialias)
        self.data_format = data_format

    def call(self, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same layout and dtype, with `shape` positions.
        """
        axes = spatial_axes(layout_of_input(self, jnp.shape(x), self.data_format, self.num_spatial_dims))
        return _resized(self, x, axes, replicated(self.shape, len(axes)), self.method, self.antialias)


class Upsample(Module):
    """Each spatial axis a whole number of times as long, by `jax.image.resize`.

    **Arguments:**

    - `scale`: how many times: an integer, or one for each spatial axis. For other sizes there is `elegy.nn.Resize`.
    - `method`: one of those of `jax.image.resize`: `"nearest"`, which repeats each element, `"bilinear"`, `"bicubic"`,
      `"lanczos3"` and others.
    - `data_format`: that of `elegy.nn.MaxPool`.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it, unless the method is `"nearest"`.

    The number of spatial axes is found as by `elegy.nn.MaxPool`. Half-precision numbers are interpolated in float32.

    ```python
    import elegy
    import jax.numpy as jnp

    upsample = elegy.nn.Upsample(2)
    assert upsample(jnp.ones([5, 4, 8, 3])).shape == (5, 8, 16, 3)
    assert upsample(jnp.arange(2)[None, :, None])[0, :, 0].tolist() == [0, 0, 1, 1]
    ```
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        method: str = "nearest",
        *,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_spatial_dims = spatial_count("Upsample", data_format, scale)
        self.scale = for_each_axis("Upsample", "scale", scale, self.num_spatial_dims)
        self.method = _method("Upsample", method)
        self.data_format = data_format

    def call(self, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same layout and dtype, `scale` times as large.
        """
        shape = jnp.shape(x)
        axes = spatial_axes(layout_of_input(self, shape, self.data_format, self.num_spatial_dims))
        sizes = [shape[axis] * scale for axis, scale in zip(axes, replicated(self.scale, len(axes)), strict=True)]
        # There is nothing to average over, and with antialiasing "cubic-pytorch" would be another kernel.
        return _resized(self, x, axes, sizes, self.method, antialias=False)


def _method(layer: str, method: str) -> str:
    try:
        jax.image.ResizeMethod.from_string(method)
    except ValueError:
        raise ValueError(
            f"elegy.nn.{layer}: method must be one that jax.image.resize knows, 'nearest', 'bilinear', 'bicubic', "
            f"'lanczos3' or another, got {method!r}."
        ) from None
    return method


def _resized(
    layer: Module, x: tp.Any, axes: Sequence[int], sizes: Sequence[int], method: str, antialias: bool
) -> Array:
    """`x` with these sizes along these axes, in its dtype."""
    x = jnp.asarray(x) if method == "nearest" else floating(layer, x)
    shape = list(x.shape)
    for axis, size in zip(axes, sizes, strict=True):
        if shape[axis] == 0:
            raise ValueError(f"{path_of(layer)}: an input of shape {x.shape} has no positions to take values from.")
        shape[axis] = size
    y = jax.image.resize(x if method == "nearest" else precise(x), tuple(shape), method, antialias=antialias)
    return y.astype(x.dtype)
