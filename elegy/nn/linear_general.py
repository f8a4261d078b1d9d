from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.devices import beside
from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.axes import axis_numbers, counted
from elegy.nn.inputs import Flag, boolean, converted, positive
from elegy.nn.kernels import drawn_as_matrix


class LinearGeneral(Module):
    """An affine map from some axes of the input to several new ones, as if both were flattened.

    The other axes come first in the output, in their order, and the new ones last. For a map that puts axes elsewhere,
    or that has weights of its own along one of the other axes, there is `elegy.nn.Einsum`.

    **Arguments:**

    - `output_shape`: the sizes of the new axes, or the size of one.
    - `axis`: the axes that are summed over: an integer, or several. Their sizes are inferred.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. It is asked for a matrix with a row for each input of the sum, as in Flax. The
      default is `elegy.initializers.VarianceScaling()`: a truncated normal of variance `1 / (inputs of the sum)`.
    - `b_init`: the initializer of `b`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[*in, *out]`, where `in` are the sizes of the axes `axis`, in the order of the
    input; `b` of shape `[*out]`.

    The layer computes in the dtype of its parameters, and converts the input to it.

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([2, 7, 64])
    heads = elegy.nn.LinearGeneral((8, 16))
    assert heads(x).shape == (2, 7, 8, 16)

    joined = elegy.nn.LinearGeneral(64, axis=(-2, -1))
    assert joined(heads(x)).shape == (2, 7, 64)
    assert joined.w.shape == (8, 16, 64)
    ```
    """

    w: Inexact[Array, "..."]
    b: Inexact[Array, "..."]

    def __init__(
        self,
        output_shape: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        sizes = output_shape if isinstance(output_shape, (list, tuple)) else (output_shape,)
        self.output_shape = tuple(positive("LinearGeneral", "output_shape", size) for size in sizes)
        self.axis = axis_numbers("LinearGeneral", "axis", axis)
        self.with_bias = boolean("LinearGeneral", "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init

    def call(self, x: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: an array that has the axes `axis`.

        **Returns:** an array of the other axes and `output_shape`.
        """
        axes = sorted(counted(self, "axis", self.axis, jnp.shape(x)))
        rows = range(len(axes))
        shape = (*(jnp.shape(x)[axis] for axis in axes), *self.output_shape)
        w = self.add_parameter("w", shape, initializer=drawn_as_matrix(self, self.w_init, rows))
        x = converted(self, x, w.dtype)
        y = jax.lax.dot_general(x, beside(x, w), ((axes, rows), ((), ())))
        if self.with_bias:
            b = self.add_parameter("b", self.output_shape, initializer=self.b_init)
            y = y + jax.lax.broadcast_in_dim(beside(y, b), y.shape, range(y.ndim - b.ndim, y.ndim))
        return y
