from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.devices import for_product, for_sum
from elegy.frames import path_of
from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.inputs import Flag, boolean, converted, positive, refuse_more


class Linear(Module):
    """An affine map of the last axis: `y = x w + b`.

    **Arguments:**

    - `output_size`: the size of the last axis of the output. That of the input is inferred. The other arguments are
      given by name. (A kernel shape, as `Conv2D` takes it, may follow, and means nothing.)
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`: a truncated normal of
      variance `1 / in`, as in Flax (`lecun_normal`).
    - `b_init`: the initializer of `b`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[in, out]`; `b` of shape `[out]`.

    The layer computes in the dtype of its parameters, and converts the input to it: integers and NumPy's float64 can be
    given as they are, and `Linear(64, dtype=jnp.bfloat16)` computes and returns bfloat16.

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(64)
    y = linear(jnp.ones([15, 3]))
    assert y.shape == (15, 64)
    assert linear.w.shape == (3, 64)
    ```
    """

    w: Inexact[Array, "in out"]
    b: Inexact[Array, "out"]

    def __init__(
        self,
        output_size: int,
        *more: Sequence[int],
        with_bias: Flag = True,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        # The guide to modules swaps a Conv2D and a Linear that are given the same arguments, a kernel shape among them.
        if len(more) != 1 or not isinstance(more[0], (list, tuple)):
            given = {"output_size": output_size}
            refuse_more("Linear", given, more, "The size of the input is inferred", "with_bias=False")
        self.output_size = positive("Linear", "output_size", output_size)
        self.with_bias = boolean("Linear", "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init

    def call(self, x: Num[ArrayLike, "*batch in"]) -> Inexact[Array, "*batch out"]:
        """**Arguments:**

        - `x`: an array of at least one axis.

        **Returns:** an array of the same shape but for the last axis, which has `output_size` elements.
        """
        if jnp.ndim(x) == 0:
            raise ValueError(f"{path_of(self)}: the input of Linear must have at least one axis, got a scalar.")
        w = self.add_parameter("w", [jnp.shape(x)[-1], self.output_size], initializer=self.w_init)
        x = converted(self, x, w.dtype)
        w, out_sharding = for_product(x, w)
        y = jnp.dot(x, w, out_sharding=out_sharding)
        if self.with_bias:
            b = self.add_parameter("b", [self.output_size], initializer=self.b_init)
            y = y + jnp.broadcast_to(for_sum(b, y), y.shape)
        return y
