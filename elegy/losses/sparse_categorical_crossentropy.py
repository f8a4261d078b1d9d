from __future__ import annotations

import typing as tp

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import On, class_labels
from elegy.losses.loss import Loss, Reduction

_EPSILON = 1e-7


def sparse_categorical_crossentropy(
    y_true: Shaped[ArrayLike, "*labels"],
    y_pred: Num[ArrayLike, "*batch classes"],
    from_logits: bool = False,
    check_bounds: bool = True,
) -> Float[Array, "*batch"]:
    """`-log p[y_true]`, where `p` are the probabilities of the classes.

    **Arguments:**

    - `y_true`: integer labels, from 0 to `classes - 1`, of the shape of `y_pred` without its last axis. A further
      last axis of size 1 is ignored.
    - `y_pred`: probabilities, or logits. As in Keras probabilities are divided by their sum, and are not taken
      for less than 1e-7, below which there is no gradient.
    - `from_logits`: whether `y_pred` are logits, `p = softmax(y_pred)`. Numerically that is the better choice.
    - `check_bounds`: labels out of range give NaN. Otherwise the result is not specified for them.

    **Returns:** an array of shape `[*batch]`, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.sparse_categorical_crossentropy(
        jnp.array([1, 2]), jnp.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])
    )
    assert jnp.allclose(values, -jnp.log(jnp.array([0.5, 0.25])))
    ```
    """
    labels, scores = class_labels("elegy.losses.sparse_categorical_crossentropy", y_true, y_pred)
    logits = scores if from_logits else jnp.log(jnp.maximum(scores, _EPSILON))
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    if check_bounds:
        values = jnp.where((labels >= 0) & (labels < logits.shape[-1]), values, jnp.nan)
    return values


class SparseCategoricalCrossentropy(Loss):
    """The cross-entropy of integer class labels and predicted probabilities or logits.

    **Arguments:**

    - `from_logits`, `check_bounds`: those of `elegy.losses.sparse_categorical_crossentropy`. As in Keras `y_pred` are
      *probabilities* unless `from_logits=True`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `from_logits` are given by keyword.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.SparseCategoricalCrossentropy(from_logits=True)
    value = loss(jnp.array([0, 1]), jnp.zeros([2, 10]))
    assert jnp.allclose(value, jnp.log(10.0))
    ```
    """

    def __init__(
        self,
        from_logits: bool = False,
        *,
        check_bounds: bool = True,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.from_logits = from_logits
        self.check_bounds = check_bounds

    def call(
        self, y_true: Shaped[ArrayLike, "*labels"], y_pred: Num[ArrayLike, "*batch classes"]
    ) -> Float[Array, "*batch"]:
        """**Arguments:**

        - `y_true`: integer labels of shape `[*batch]` or `[*batch, 1]`.
        - `y_pred`: probabilities or logits of shape `[*batch, classes]`.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return sparse_categorical_crossentropy(y_true, y_pred, self.from_logits, self.check_bounds)
