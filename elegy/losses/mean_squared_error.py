from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import comparable, one_number_each
from elegy.losses.loss import Loss


def mean_squared_error(
    y_true: Num[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`mean((y_true - y_pred)², axis=-1)`.

    **Arguments:**

    - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.mean_squared_error(jnp.zeros([2, 3]), jnp.ones([2, 3]))
    assert values.tolist() == [1.0, 1.0]
    ```
    """
    y_true, y_pred = comparable("elegy.losses.mean_squared_error", y_true, y_pred)
    return jnp.mean(optax.losses.squared_error(y_pred, y_true), axis=-1)


class MeanSquaredError(Loss):
    """The mean squared difference of targets and predictions.

    **Arguments:** those of `elegy.losses.Loss`.

    The values that `sample_weight` and `reduction` see are the means over the last axis. Inputs of one axis are taken
    as one number for each example, so that `sample_weight` of the same shape weights each of them.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.MeanSquaredError()
    y_true = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    y_pred = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    assert loss(y_true, y_pred) == 0.5
    assert loss(y_true, y_pred, sample_weight=jnp.array([1.0, 0.0])) == 0.25
    ```
    """

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return mean_squared_error(*one_number_each(y_true, y_pred))
