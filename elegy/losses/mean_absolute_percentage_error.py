from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import EPSILON, comparable, one_number_each
from elegy.losses.loss import Loss


def mean_absolute_percentage_error(
    y_true: Num[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`100 · mean(|y_true - y_pred| / |y_true|, axis=-1)`.

    **Arguments:**

    - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers. As in Keras, targets are not taken for
      less than 1e-7 in magnitude where they divide.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.mean_absolute_percentage_error(jnp.array([[2.0, 4.0]]), jnp.array([[1.0, 4.0]]))
    assert values.tolist() == [25.0]
    ```
    """
    y_true, y_pred = comparable("elegy.losses.mean_absolute_percentage_error", y_true, y_pred)
    return 100 * jnp.mean(jnp.abs((y_true - y_pred) / jnp.maximum(jnp.abs(y_true), EPSILON)), axis=-1)


class MeanAbsolutePercentageError(Loss):
    """The mean absolute difference of targets and predictions, in percent of the targets.

    **Arguments:** those of `elegy.losses.Loss`.

    Shapes are treated as in `elegy.losses.MeanSquaredError`. A target of zero makes the loss enormous: see
    `elegy.losses.mean_absolute_percentage_error`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.MeanAbsolutePercentageError()
    assert loss(jnp.array([[2.0], [4.0]]), jnp.array([[1.0], [4.0]])) == 25
    ```
    """

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return mean_absolute_percentage_error(*one_number_each(y_true, y_pred))
