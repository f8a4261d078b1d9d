from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num, Shaped

from elegy.losses.arguments import LabelRange, On, class_labels
from elegy.metrics.arguments import Mask, Weights, has_nan, is_class, positive_integer, rows, where_valid
from elegy.metrics.average import Average


def sparse_top_k_categorical_accuracy(
    y_true: Shaped[ArrayLike, "*labels"], y_pred: Num[ArrayLike, "*batch classes"], k: int = 5
) -> Float[Array, "*batch"]:
    """1 where the label is among the `k` classes of the highest scores, 0 elsewhere.

    **Arguments:**

    - `y_true`: integer labels, of the shape of `y_pred` without its last axis. A further last axis of size 1 is
      ignored. Labels that are no class give NaN.
    - `y_pred`: probabilities or logits. Of equal scores the first one counts as the higher.
    - `k`: at most the number of classes.

    **Returns:** an array of float32, or float64, of shape `[*batch]`. Rows with a NaN give NaN.

    ```python
    import elegy
    import jax.numpy as jnp

    scores = jnp.array([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3]])
    values = elegy.metrics.sparse_top_k_categorical_accuracy(jnp.array([2, 0]), scores, k=2)
    assert values.tolist() == [1, 0]
    ```
    """
    owner = "elegy.metrics.sparse_top_k_categorical_accuracy"
    labels, scores = class_labels(owner, y_true, y_pred)
    return _top_k(owner, labels, scores, k)


def top_k_categorical_accuracy(
    y_true: Num[ArrayLike, "*batch classes"] | Bool[ArrayLike, "*batch classes"],
    y_pred: Num[ArrayLike, "*batch classes"],
    k: int = 5,
) -> Float[Array, "*batch"]:
    """1 where the class of the highest target is among the `k` classes of the highest scores, 0 elsewhere.

    **Arguments:**

    - `y_true`: one-hot rows, or probabilities.
    - `y_pred`: probabilities or logits, of the same shape. Of equal scores the first one counts as the higher.
    - `k`: at most the number of classes.

    **Returns:** an array of float32, or float64, of shape `[*batch]`. Rows with a NaN give NaN.

    ```python
    import elegy
    import jax.numpy as jnp

    scores = jnp.array([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3]])
    values = elegy.metrics.top_k_categorical_accuracy(jnp.array([[0, 0, 1], [1, 0, 0]]), scores, k=2)
    assert values.tolist() == [1, 0]
    ```
    """
    owner = "elegy.metrics.top_k_categorical_accuracy"
    targets, scores = rows(owner, y_true, y_pred)
    labels = jnp.where(has_nan(targets), -1, jnp.argmax(targets, axis=-1))
    return _top_k(owner, labels, scores, k)


def _top_k(owner: str, labels: Int[Array, "*batch"], scores: Float[Array, "*batch classes"], k: int) -> Array:
    classes = scores.shape[-1]
    if k > classes:
        raise ValueError(
            f"{owner}: k={k} is more than the {classes} classes of y_pred, so that every label would be among them.\n"
            "  Give a smaller one: k=..."
        )
    labels = labels[..., None]
    valid = is_class(labels, classes)
    target = jnp.take_along_axis(scores, jnp.where(valid, labels, 0), axis=-1)
    numbers = jnp.broadcast_to(jnp.arange(classes, dtype=labels.dtype), scores.shape)
    target, position = jnp.broadcast_to(target, scores.shape), jnp.broadcast_to(labels, scores.shape)
    ahead = (scores > target) | (scores == target) & (numbers < position)
    return where_valid(jnp.sum(ahead, axis=-1) < k, valid[..., 0] & ~has_nan(scores), scores.dtype)


class _TopK(Average):
    direction = "max"

    def __init__(
        self,
        k: int = 5,
        *,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(on=on, name=name, dtype=dtype)
        self.k = positive_integer(type(self).__name__, "k", k)


class SparseTopKCategoricalAccuracy(_TopK):
    """The share of examples, over all that was counted, whose integer label is among the `k` classes of the highest
    scores; 0 if there were none.

    **Arguments:**

    - `k`: how many classes. At most all of them.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    accuracy = elegy.metrics.SparseTopKCategoricalAccuracy(k=2)
    assert accuracy(jnp.array([2, 0]), jnp.array([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3]])) == 0.5
    ```
    """

    def update(
        self,
        y_true: Shaped[ArrayLike, "*labels"],
        y_pred: Num[ArrayLike, "*batch classes"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: integer labels of shape `[*batch]` or `[*batch, 1]`. Those that are no class make the result NaN.
        - `y_pred`: probabilities or logits of shape `[*batch, classes]`.
        - `sample_weight`, `mask`: weights of the examples, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        self.count_values(sparse_top_k_categorical_accuracy(y_true, y_pred, self.k), sample_weight, mask)

    def label_range(self, y_pred: Num[ArrayLike, "*batch classes"]) -> LabelRange:
        """Which labels the metric takes for such predictions."""
        return LabelRange(jnp.shape(y_pred)[-1])


class TopKCategoricalAccuracy(_TopK):
    """The share of examples, over all that was counted, whose class, given as a one-hot row, is among the `k` classes
    of the highest scores; 0 if there were none.

    **Arguments:**

    - `k`: how many classes. At most all of them.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    accuracy = elegy.metrics.TopKCategoricalAccuracy(k=2)
    assert accuracy(jnp.array([[0, 0, 1], [1, 0, 0]]), jnp.array([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3]])) == 0.5
    ```
    """

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
        self.count_values(top_k_categorical_accuracy(y_true, y_pred, self.k), sample_weight, mask)
