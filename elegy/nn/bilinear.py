from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.devices import beside
from elegy.frames import path_of
from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.inputs import Flag, boolean, converted, positive
from elegy.nn.kernels import drawn_as_matrix


class Bilinear(Module):
    """A map of two vectors that is linear in each of them: `z_k = sum_ij x_i y_j w_ijk + b_k`.

    **Arguments:**

    - `output_size`: the size of the last axis of the output. Those of the inputs are inferred.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. It is asked for a matrix of `left * right` rows. The default is
      `elegy.initializers.VarianceScaling()`: a truncated normal of variance `1 / (left * right)`. (PyTorch draws
      uniformly with variance `1 / (3 left)`, so that its outputs grow with `right`.)
    - `b_init`: the initializer of `b`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[left, right, out]` (in PyTorch the outputs are the first axis); `b` of shape `[out]`.

    The layer computes in the dtype of its parameters, and converts the inputs to it.

    ```python
    import elegy
    import jax.numpy as jnp

    bilinear = elegy.nn.Bilinear(4)
    assert bilinear(jnp.ones([8, 3]), jnp.ones([8, 5])).shape == (8, 4)
    assert bilinear.w.shape == (3, 5, 4)
    ```
    """

    w: Inexact[Array, "left right out"]
    b: Inexact[Array, "out"]

    def __init__(
        self,
        output_size: int,
        *,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.output_size = positive("Bilinear", "output_size", output_size)
        self.with_bias = boolean("Bilinear", "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init

    def call(self, x: Num[ArrayLike, "*batch left"], y: Num[ArrayLike, "*batch right"]) -> Inexact[Array, "*batch out"]:
        """**Arguments:**

        - `x`, `y`: arrays of at least one axis, of equal shapes but for the last axis.

        **Returns:** an array of the same shape but for the last axis, which has `output_size` elements.
        """
        left, right = jnp.shape(x), jnp.shape(y)
        if not left or not right or left[:-1] != right[:-1]:
            raise ValueError(
                f"{path_of(self)}: the inputs of Bilinear must have at least one axis, and equal shapes but for the "
                f"last one, got {left} and {right}.\n  Broadcast one to the other: jnp.broadcast_to."
            )
        shape = [left[-1], right[-1], self.output_size]
        w = self.add_parameter("w", shape, initializer=drawn_as_matrix(self, self.w_init, (0, 1)))
        x, y = converted(self, x, w.dtype), converted(self, y, w.dtype)
        z = jnp.einsum("...i,...j,ijk->...k", x, y, beside(y, beside(x, w)))
        if self.with_bias:
            b = self.add_parameter("b", [self.output_size], initializer=self.b_init)
            z = z + jnp.broadcast_to(beside(z, b), z.shape)
        return z
