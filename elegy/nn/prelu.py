from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.devices import beside
from elegy.initializers import Constant
from elegy.module import Module
from elegy.nn.axes import axis_numbers, counted
from elegy.nn.inputs import converted


class PReLU(Module):
    """A rectifier whose negative side has a slope that is learned: `y = x` where `x >= 0`, else `negative_slope * x`.

    He et al., *Delving Deep into Rectifiers* (2015), equation 1.

    **Arguments:**

    - `axis`: the axes along which the slope differs, an integer or several. The default is one slope for all, as in
      Flax and PyTorch, and in the paper's "channel-shared" variant. `axis=-1` has one for each channel, as the paper's
      other variant; the `PReLU` of Keras has one for each element of an example, `axis=(1, 2, 3)` for images, except
      along its `shared_axes`.
    - `negative_slope_init`: the initializer of the slope. The default is the constant 0.25, as in the paper and in
      PyTorch. (Flax begins with 0.01, Keras with 0.)
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `negative_slope`, with the sizes of the axes `axis`, in the order of the input. It should have no
    weight decay, which would pull it towards a `relu` (section 2.1 of the paper).

    The layer computes in the dtype of its parameter, and converts the input to it.

    ```python
    import elegy
    import jax.numpy as jnp

    prelu = elegy.nn.PReLU(axis=-1)
    assert prelu(jnp.array([[-1.0, 2.0]])).tolist() == [[-0.25, 2.0]]
    assert prelu.negative_slope.shape == (2,)
    ```
    """

    negative_slope: Float[Array, "..."]

    def __init__(
        self,
        *,
        axis: int | Sequence[int] | None = None,
        negative_slope_init: tp.Any = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.axis = () if axis is None else axis_numbers("PReLU", "axis", axis)
        self.negative_slope_init = Constant(0.25) if negative_slope_init is None else negative_slope_init

    def call(self, x: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """**Arguments:**

        - `x`: an array of real numbers that has the axes `axis`.

        **Returns:** an array of the shape of `x`.
        """
        shape = jnp.shape(x)
        axes = sorted(counted(self, "axis", self.axis, shape))
        sizes = [shape[axis] for axis in axes]
        slope = self.add_parameter("negative_slope", sizes, initializer=self.negative_slope_init)
        x = converted(self, x, slope.dtype)
        return jnp.where(x >= 0, x, x * jax.lax.broadcast_in_dim(beside(x, slope), shape, axes))
