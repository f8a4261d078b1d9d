from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import LabelRange, class_labels
from elegy.metrics.arguments import Mask, Weights, has_nan, is_class, where_valid
from elegy.metrics.average import Average


def sparse_categorical_accuracy(
    y_true: Shaped[ArrayLike, "*labels"], y_pred: Num[ArrayLike, "*batch classes"]
) -> Float[Array, "*batch"]:
    """1 where the class of the highest score is the label, 0 elsewhere.

    **Arguments:**

    - `y_true`: integer labels, of the shape of `y_pred` without its last axis. A further last axis of size 1 is
      ignored. Labels that are no class give NaN, and so do scores of which one is.
    - `y_pred`: probabilities or logits. Of equal scores the first one counts.

    **Returns:** a float array of shape `[*batch]`.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.metrics.sparse_categorical_accuracy(jnp.array([1, 0]), jnp.array([[0.1, 0.9], [0.2, 0.8]]))
    assert values.tolist() == [1.0, 0.0]
    ```
    """
    labels, scores = class_labels("elegy.metrics.sparse_categorical_accuracy", y_true, y_pred)
    correct = jnp.argmax(scores, axis=-1).astype(labels.dtype) == labels
    return where_valid(correct, is_class(labels, scores.shape[-1]) & ~has_nan(scores), scores.dtype)


class SparseCategoricalAccuracy(Average):
    """The share of examples, over all that was counted, whose highest score is that of their label; 0 if there
    were none.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    accuracy = elegy.metrics.SparseCategoricalAccuracy()
    accuracy(jnp.array([1, 0]), jnp.array([[0.1, 0.9], [0.2, 0.8]]))
    assert accuracy(jnp.array([1, 1]), jnp.array([[0.1, 0.9], [0.2, 0.8]])) == 0.75
    ```
    """

    direction = "max"

    def update(
        self,
        y_true: Shaped[ArrayLike, "*labels"],
        y_pred: Num[ArrayLike, "*batch classes"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: integer labels of shape `[*batch]` or `[*batch, 1]`. Those that are no class, such as -1 in padding,
          make the result NaN, unless they have no weight: `mask=y_true >= 0`.
        - `y_pred`: probabilities or logits of shape `[*batch, classes]`.
        - `sample_weight`, `mask`: weights of the examples, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        self.count_values(sparse_categorical_accuracy(y_true, y_pred), sample_weight, mask)

    def label_range(self, y_pred: Num[ArrayLike, "*batch classes"]) -> LabelRange:
        """Which labels the metric takes for such predictions."""
        return LabelRange(jnp.shape(y_pred)[-1])
