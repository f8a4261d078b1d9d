from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.metrics.arguments import Mask, Weights, has_nan, rows, where_valid
from elegy.metrics.average import Average


def categorical_accuracy(
    y_true: Num[ArrayLike, "*batch classes"] | Bool[ArrayLike, "*batch classes"],
    y_pred: Num[ArrayLike, "*batch classes"],
) -> Float[Array, "*batch"]:
    """1 where the class of the highest score is that of the highest target, 0 elsewhere.

    **Arguments:**

    - `y_true`: one-hot rows, or probabilities.
    - `y_pred`: probabilities or logits, of the same shape. Of equal scores the first one counts.

    **Returns:** an array of float32, or float64, of shape `[*batch]`. Rows with a NaN give NaN.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.metrics.categorical_accuracy(jnp.eye(2), jnp.array([[0.1, 0.9], [0.2, 0.8]]))
    assert values.tolist() == [0, 1]
    ```
    """
    targets, scores = rows("elegy.metrics.categorical_accuracy", y_true, y_pred)
    correct = jnp.argmax(targets, axis=-1) == jnp.argmax(scores, axis=-1)
    return where_valid(correct, ~has_nan(targets) & ~has_nan(scores), scores.dtype)


class CategoricalAccuracy(Average):
    """The share of examples, over all that was counted, whose highest score is that of their class; 0 if there were
    none.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    accuracy = elegy.metrics.CategoricalAccuracy()
    assert accuracy(jnp.eye(2), jnp.array([[0.1, 0.9], [0.2, 0.8]])) == 0.5
    ```
    """

    direction = "max"

    def update(
        self,
        y_true: Num[ArrayLike, "*batch classes"] | Bool[ArrayLike, "*batch classes"],
        y_pred: Num[ArrayLike, "*batch classes"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: one-hot rows, or probabilities.
        - `y_pred`: probabilities or logits, of the same shape.
        - `sample_weight`, `mask`: weights of the examples, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        self.count_values(categorical_accuracy(y_true, y_pred), sample_weight, mask)
