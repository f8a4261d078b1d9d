from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import EPSILON, comparable, one_number_each
from elegy.losses.loss import Loss


def mean_squared_logarithmic_error(
    y_true: Num[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`mean((log(1 + y_true) - log(1 + y_pred))², axis=-1)`.

    **Arguments:**

    - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers. As in Keras, neither is taken for less
      than 1e-7, below which there is no gradient: they are meant to be counts or sizes.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.mean_squared_logarithmic_error(jnp.array([[jnp.e - 1]]), jnp.array([[jnp.e**3 - 1]]))
    assert jnp.allclose(values, 4.0)
    ```
    """
    y_true, y_pred = comparable("elegy.losses.mean_squared_logarithmic_error", y_true, y_pred)
    logarithms = (jnp.log1p(jnp.maximum(y, EPSILON)) for y in (y_pred, y_true))
    return jnp.mean(optax.losses.squared_error(*logarithms), axis=-1)


class MeanSquaredLogarithmicError(Loss):
    """The mean squared difference of `log(1 + y)` of targets and predictions, which compares their magnitudes.

    **Arguments:** those of `elegy.losses.Loss`.

    Shapes are treated as in `elegy.losses.MeanSquaredError`, numbers below zero as in
    `elegy.losses.mean_squared_logarithmic_error`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.MeanSquaredLogarithmicError()
    assert jnp.allclose(loss(jnp.array([[jnp.e - 1], [1.0]]), jnp.array([[jnp.e**3 - 1], [1.0]])), 2.0)
    ```
    """

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return mean_squared_logarithmic_error(*one_number_each(y_true, y_pred))
