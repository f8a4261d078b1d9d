from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Shaped

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.convolution_arguments import layout_of_input, spatial_axes, spatial_count
from elegy.nn.inputs import Flag, boolean, floating
from elegy.nn.pooling import precise


class GlobalPool(Module):
    """What `GlobalMaxPool` and `GlobalAvgPool` have in common."""

    def __init__(
        self,
        *,
        keepdims: Flag = False,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = type(self).__name__
        self.keepdims = boolean(layer, "keepdims", keepdims)
        self.num_spatial_dims = spatial_count(layer, data_format)
        self.data_format = data_format

    def _axes(self, x: Array) -> tuple[int, ...]:
        axes = spatial_axes(layout_of_input(self, x.shape, self.data_format, self.num_spatial_dims))
        if 0 in (x.shape[axis] for axis in axes):
            raise ValueError(
                f"{path_of(self)}: an input of shape {x.shape} has no positions over which {type(self).__name__} could "
                "go."
            )
        return axes


class GlobalMaxPool(GlobalPool):
    """The maximum over all positions, for each channel.

    **Arguments:**

    - `keepdims`: whether the spatial axes stay, with size 1. By default they are dropped.
    - `data_format`: that of `elegy.nn.MaxPool`.
    - `name`: that of `elegy.Module`.

    An input of three, four or five axes has one, two or three spatial ones. If the letters of `data_format` say how
    many there are, there may be any number of axes of the batch.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.nn.GlobalMaxPool()(jnp.ones([5, 8, 8, 3])).shape == (5, 3)
    assert elegy.nn.GlobalMaxPool(keepdims=True)(jnp.ones([5, 8, 8, 3])).shape == (5, 1, 1, 3)
    ```
    """

    def __init__(self, *, keepdims: Flag = False, data_format: str = "channels_last", name: str | None = None):
        super().__init__(keepdims=keepdims, data_format=data_format, name=name)

    def call(self, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it, of real numbers, integers or bools.

        **Returns:** an array of the same dtype without the spatial axes, `[batch, channels]`.
        """
        x = jnp.asarray(x)
        axes = self._axes(x)
        if jnp.iscomplexobj(x):
            raise TypeError(f"{path_of(self)}: there is no largest of complex numbers, got {x.dtype}.")
        return jnp.max(x, axes, keepdims=self.keepdims)


class GlobalAvgPool(GlobalPool):
    """The average over all positions, for each channel.

    Lin, Chen and Yan, *Network In Network* (2014), section 3.2.

    **Arguments:**

    - `keepdims`: whether the spatial axes stay, with size 1. By default they are dropped.
    - `data_format`: that of `elegy.nn.MaxPool`.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    The number of spatial axes is found as by `elegy.nn.GlobalMaxPool`. Half-precision numbers are averaged in float32.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.nn.GlobalAvgPool()(jnp.ones([5, 8, 8, 3])).shape == (5, 3)
    assert elegy.nn.GlobalAvgPool(data_format="CHW")(jnp.ones([3, 8, 8])).shape == (3,)
    ```
    """

    def call(self, x: Shaped[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: a batch: `[batch, *spatial, channels]`, or as `data_format` has it.

        **Returns:** an array of the same dtype without the spatial axes, `[batch, channels]`.
        """
        x = floating(self, x)
        return jnp.mean(precise(x), self._axes(x), keepdims=self.keepdims).astype(x.dtype)
