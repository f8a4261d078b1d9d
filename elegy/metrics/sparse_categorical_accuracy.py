from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import class_labels
from elegy.metrics.average import Average


def sparse_categorical_accuracy(
    y_true: Shaped[ArrayLike, "*labels"], y_pred: Num[ArrayLike, "*batch classes"]
) -> Float[Array, "*batch"]:
    """1 where the class of the highest score is the label, 0 elsewhere.

    **Arguments:**

    - `y_true`: integer labels, of the shape of `y_pred` without its last axis. A further last axis of size 1 is
      ignored.
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
    return (jnp.argmax(scores, axis=-1).astype(labels.dtype) == labels).astype(scores.dtype)


class SparseCategoricalAccuracy(Average):
    """The share of examples, over all calls so far, whose highest score is that of their label.

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

    def call(
        self,
        y_true: Shaped[ArrayLike, "*labels"],
        y_pred: Num[ArrayLike, "*batch classes"],
        sample_weight: Num[ArrayLike, "..."] | None = None,
    ) -> Float[Array, ""]:
        """**Arguments:**

        - `y_true`: integer labels of shape `[*batch]` or `[*batch, 1]`.
        - `y_pred`: probabilities or logits of shape `[*batch, classes]`.
        - `sample_weight`: weights of the examples. The default is 1.

        **Returns:** the accuracy of all calls so far.
        """
        return self.average(sparse_categorical_accuracy(y_true, y_pred), sample_weight)
