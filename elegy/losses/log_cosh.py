from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import comparable, one_number_each
from elegy.losses.loss import Loss


def log_cosh(
    y_true: Num[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`mean(log(cosh(y_pred - y_true)), axis=-1)`.

    **Arguments:**

    - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.log_cosh(jnp.zeros([1, 2]), jnp.array([[1.0, -1.0]]))
    assert jnp.allclose(values, jnp.log(jnp.cosh(1.0)))
    ```
    """
    y_true, y_pred = comparable("elegy.losses.log_cosh", y_true, y_pred)
    return jnp.mean(optax.losses.log_cosh(y_pred, y_true), axis=-1)


class LogCosh(Loss):
    """The logarithm of the hyperbolic cosine of the error: `error² / 2` if it is small, `|error| - log(2)` if large.

    **Arguments:** those of `elegy.losses.Loss`.

    Shapes are treated as in `elegy.losses.MeanSquaredError`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.LogCosh()
    assert jnp.allclose(loss(jnp.zeros([2, 1]), jnp.array([[1000.0], [0.0]])), (1000 - jnp.log(2.0)) / 2)
    ```
    """

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return log_cosh(*one_number_each(y_true, y_pred))
