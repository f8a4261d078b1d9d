from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.dropout import drawn_mask, probability
from elegy.nn.inputs import Flag, floating
from elegy.random import KeyLike


class DropPath(Module):
    """In training, sets each example to zero with probability `rate`, and divides the others by `1 - rate`.

    At the end of a residual branch, `x + drop_path(branch(x))`, it skips the branch for some examples: this is
    stochastic depth, Huang et al., *Deep Networks with Stochastic Depth* (2016), equation 2, drawn for each example on
    its own. (The paper does not divide, and multiplies the branch by `1 - rate` in evaluation, equation 5.)

    **Arguments:**

    - `rate`: the probability, in `[0, 1)`.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    **State:** `rng_key`, as that of `elegy.nn.Dropout`.

    ```python
    import elegy
    import jax.numpy as jnp

    drop_path = elegy.nn.DropPath(0.5)
    x = jnp.ones([4, 3, 3])
    branch = drop_path(2 * x)
    assert all(bool(jnp.all(example == 0) | jnp.all(example == 4)) for example in branch)
    assert bool(jnp.all(drop_path(x, training=False) == x))
    ```
    """

    def __init__(self, rate: float | int, *, name: str | None = None, dtype: tp.Any = None):
        super().__init__(name=name, dtype=dtype)
        self.rate = probability("DropPath", rate)

    def call(
        self,
        x: Num[ArrayLike, "*shape"],
        training: Flag | None = None,
        rng: KeyLike | None = None,
    ) -> Inexact[Array, "*shape"]:
        """**Arguments:**

        - `x`: a batch: an array whose first axis is that of the examples.
        - `training`: whether to drop. The default is `elegy.training()`.
        - `rng`: a seed or a key. The default is `elegy.next_rng_key()`, which is asked only when something is to be
          dropped.

        **Returns:** an array of the shape and dtype of `x`.
        """
        x = floating(self, x)
        if x.ndim == 0:
            raise ValueError(f"{path_of(self)}: the input of DropPath must have an axis of examples, got a scalar.")
        kept = drawn_mask(self, self.rate, (x.shape[0],) + (1,) * (x.ndim - 1), training, rng)
        if kept is None:
            return x
        return jnp.where(jnp.broadcast_to(kept, x.shape), x / (1 - self.rate), 0)
