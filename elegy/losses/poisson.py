from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import EPSILON, comparable, one_number_each
from elegy.losses.loss import Loss


def poisson(
    y_true: Num[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`mean(y_pred - y_true · log(y_pred + 1e-7), axis=-1)`.

    That is the negative logarithm of the probability of `y_true` in a Poisson distribution of mean `y_pred`, without
    the term `log(y_true!)`, which has no gradient.

    **Arguments:**

    - `y_true`: counts.
    - `y_pred`: their expected values, which must not be negative: the logarithm of a negative number is NaN.

    Both are arrays of one shape, of any dtype of real numbers.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.poisson(jnp.array([[2.0]]), jnp.array([[jnp.e]]))
    assert jnp.allclose(values, jnp.e - 2)
    ```
    """
    y_true, y_pred = comparable("elegy.losses.poisson", y_true, y_pred)
    return jnp.mean(y_pred - y_true * jnp.log(y_pred + EPSILON), axis=-1)


class Poisson(Loss):
    """The negative log-likelihood of counts, up to a constant, for predicted means: `y_pred - y_true · log(y_pred)`.

    **Arguments:** those of `elegy.losses.Loss`.

    Shapes are treated as in `elegy.losses.MeanSquaredError`, zeros as in `elegy.losses.poisson`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.Poisson()
    assert jnp.allclose(loss(jnp.array([[2.0], [0.0]]), jnp.array([[jnp.e], [1.0]])), (jnp.e - 1) / 2)
    ```
    """

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: counts.
        - `y_pred`: their expected values, in an array of the same shape.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return poisson(*one_number_each(y_true, y_pred))
