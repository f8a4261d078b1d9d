from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import comparable, one_number_each
from elegy.losses.loss import Loss


def mean_absolute_error(
    y_true: Num[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`mean(|y_true - y_pred|, axis=-1)`.

    **Arguments:**

    - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.mean_absolute_error(jnp.zeros([2, 2]), jnp.array([[1.0, -3.0], [0.0, 0.0]]))
    assert values.tolist() == [2.0, 0.0]
    ```
    """
    y_true, y_pred = comparable("elegy.losses.mean_absolute_error", y_true, y_pred)
    return jnp.mean(jnp.abs(y_true - y_pred), axis=-1)


class MeanAbsoluteError(Loss):
    """The mean absolute difference of targets and predictions, `mean(|y_true - y_pred|)`.

    **Arguments:** those of `elegy.losses.Loss`.

    Shapes are treated as in `elegy.losses.MeanSquaredError`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.MeanAbsoluteError()
    assert loss(jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.array([[1.0, 1.0], [4.0, -1.0]])) == 1.5
    ```
    """

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return mean_absolute_error(*one_number_each(y_true, y_pred))
