"""Losses for scores of two classes, or of several, that ask for a margin of one."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import comparable, one_number_each
from elegy.losses.loss import Loss


def hinge(
    y_true: Shaped[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`mean(max(0, 1 - y_true · y_pred), axis=-1)`.

    **Arguments:**

    - `y_true`: -1 or 1. A target of 0 is taken for -1, so that 0 and 1 will do as well. Keras does that too, if there
      is nothing but 0 and 1 in a batch; here each number is looked at by itself.
    - `y_pred`: scores, of the same shape.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.hinge(jnp.array([[1, -1]]), jnp.array([[0.5, 0.5]]))
    assert values.tolist() == [1.0]
    ```
    """
    return jnp.mean(_margins("hinge", y_true, y_pred), axis=-1)


def squared_hinge(
    y_true: Shaped[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """`mean(max(0, 1 - y_true · y_pred)², axis=-1)`.

    **Arguments:** as for `elegy.losses.hinge`.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.squared_hinge(jnp.array([[1, -1]]), jnp.array([[0.5, 0.5]]))
    assert values.tolist() == [1.25]
    ```
    """
    return jnp.mean(_margins("squared_hinge", y_true, y_pred) ** 2, axis=-1)


def _margins(name: str, y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
    """What is missing for a margin of one."""
    y_true, y_pred = comparable(f"elegy.losses.{name}", y_true, y_pred)
    return optax.losses.hinge_loss(y_pred, jnp.where(y_true == 0, -1, y_true))


def categorical_hinge(
    y_true: Shaped[ArrayLike, "*batch classes"], y_pred: Num[ArrayLike, "*batch classes"]
) -> Float[Array, "*batch"]:
    """`max(0, 1 + wrong - right)`, where `right` is the score of the true class and `wrong` the best of the others.

    As in Keras that is computed by `right = sum(y_true · y_pred)` and `wrong = max((1 - y_true) · y_pred)`, so the
    score of `wrong` is not below zero where `y_true` is one-hot.

    **Arguments:**

    - `y_true`: one-hot rows.
    - `y_pred`: scores, of the same shape.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.categorical_hinge(jnp.array([[0, 1, 0]]), jnp.array([[0.5, 1.0, 0.25]]))
    assert values.tolist() == [0.5]
    ```
    """
    y_true, y_pred = comparable("elegy.losses.categorical_hinge", y_true, y_pred)
    right, wrong = jnp.sum(y_true * y_pred, axis=-1), jnp.max((1 - y_true) * y_pred, axis=-1)
    return jnp.maximum(1 + wrong - right, 0)


class Hinge(Loss):
    """The loss of support vector machines for two classes, `max(0, 1 - y_true · y_pred)`.

    **Arguments:** those of `elegy.losses.Loss`.

    Shapes are treated as in `elegy.losses.MeanSquaredError`, targets of 0 as in `elegy.losses.hinge`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.Hinge()
    assert loss(jnp.array([1, -1]), jnp.array([0.5, 0.5])) == 1
    ```
    """

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: -1 or 1, or 0 or 1.
        - `y_pred`: scores, of the same shape.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return hinge(*one_number_each(y_true, y_pred))


class SquaredHinge(Loss):
    """The square of the hinge loss, `max(0, 1 - y_true · y_pred)²`, which is smooth.

    **Arguments:** those of `elegy.losses.Loss`.

    Shapes are treated as in `elegy.losses.MeanSquaredError`, targets of 0 as in `elegy.losses.hinge`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.SquaredHinge()
    assert loss(jnp.array([1, -1]), jnp.array([0.5, 0.5])) == 1.25
    ```
    """

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: -1 or 1, or 0 or 1.
        - `y_pred`: scores, of the same shape.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return squared_hinge(*one_number_each(y_true, y_pred))


class CategoricalHinge(Loss):
    """The hinge loss for several classes: the score of the true one is to exceed that of any other by one.

    **Arguments:** those of `elegy.losses.Loss`.

    The formula is that of `elegy.losses.categorical_hinge`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.CategoricalHinge()
    assert loss(jnp.array([[0, 1, 0]]), jnp.array([[0.5, 1.0, 0.25]])) == 0.5
    ```
    """

    def call(
        self, y_true: Shaped[ArrayLike, "*batch classes"], y_pred: Num[ArrayLike, "*batch classes"]
    ) -> Float[Array, "*batch"]:
        """**Arguments:**

        - `y_true`: one-hot rows of shape `[*batch, classes]`.
        - `y_pred`: scores of the same shape.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return categorical_hinge(y_true, y_pred)
