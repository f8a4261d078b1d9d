from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import EPSILON, comparable
from elegy.losses.loss import Loss


def kl_divergence(
    y_true: Num[ArrayLike, "*batch classes"], y_pred: Num[ArrayLike, "*batch classes"]
) -> Float[Array, "*batch"]:
    """`sum(y_true · log(y_true / y_pred), axis=-1)`, the divergence of Kullback and Leibler of two distributions.

    **Arguments:**

    - `y_true`, `y_pred`: probabilities, in arrays of one shape. As in Keras, they are not taken for less than 1e-7 or
      more than 1, beyond which there is no gradient, and are not divided by their sum.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.kl_divergence(jnp.array([[0.5, 0.5]]), jnp.array([[0.25, 0.75]]))
    assert jnp.allclose(values, 0.5 * jnp.log(2.0) + 0.5 * jnp.log(2 / 3))
    ```
    """
    y_true, y_pred = comparable("elegy.losses.kl_divergence", y_true, y_pred)
    y_true, y_pred = (jnp.clip(y, EPSILON, 1) for y in (y_true, y_pred))
    return optax.losses.kl_divergence(jnp.log(y_pred), y_true)


class KLDivergence(Loss):
    """How much a predicted distribution differs from the true one, `sum(y_true · log(y_true / y_pred))`.

    **Arguments:** those of `elegy.losses.Loss`.

    Both are *probabilities*: of logits take `jax.nn.softmax`, or minimise `elegy.losses.CategoricalCrossentropy`
    instead, which differs from this loss by what depends on the targets alone.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.KLDivergence()
    assert loss(jnp.array([[0.5, 0.5]]), jnp.array([[0.5, 0.5]])) == 0
    ```
    """

    def call(
        self, y_true: Num[ArrayLike, "*batch classes"], y_pred: Num[ArrayLike, "*batch classes"]
    ) -> Float[Array, "*batch"]:
        """**Arguments:**

        - `y_true`, `y_pred`: probabilities of shape `[*batch, classes]`.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return kl_divergence(y_true, y_pred)
