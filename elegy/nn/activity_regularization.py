from __future__ import annotations

import typing as tp

from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.hooks import add_loss
from elegy.losses.arguments import number
from elegy.module import Module
from elegy.nn.inputs import floating
from elegy.nn.samples import real_only, real_rows, row_count
from elegy.regularizers import L1L2


class ActivityRegularization(Module):
    """Returns its input, and declares a penalty for its size as a loss.

    The loss `"activity_regularization_loss"` is `(l1 · sum(|x|) + l2 · sum(x²)) / batch`, where `batch` is the size of
    the first axis, as in Keras. Of a padded batch only the samples count, by `elegy.sample_mask`. A `Model` minimises
    it together with its own losses; in a loop of your own `elegy.get_losses` has it. The losses of several layers are
    summed.

    **Arguments:**

    - `l1`, `l2`: the factors, not negative.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    ```python
    import elegy
    import jax.numpy as jnp

    with elegy.hooks_context():
        y = elegy.nn.ActivityRegularization(l1=0.5)(jnp.array([[1.0, -1.0], [2.0, 0.0]]))
        assert elegy.get_losses() == {"activity_regularization_loss": 1}
    ```
    """

    def __init__(
        self,
        l1: float | int = 0.0,
        l2: float | int = 0.0,
        *,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.l1 = number("nn.ActivityRegularization", "l1", l1)
        self.l2 = number("nn.ActivityRegularization", "l2", l2)

    def call(self, x: Num[ArrayLike, "*shape"]) -> Inexact[Array, "*shape"]:
        """**Arguments:**

        - `x`: an array of any shape. A scalar is not divided by anything.

        **Returns:** an array of the shape and dtype of `x`.
        """
        x = floating(self, x)
        real = real_rows(self, x) if x.ndim else None
        penalty = L1L2(self.l1, self.l2)(real_only(x, real))
        batch = (max(x.shape[0], 1) if x.ndim else 1) if real is None else row_count(real, penalty.dtype)
        add_loss("activity_regularization", penalty / batch)
        return x
