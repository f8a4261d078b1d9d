"""Precision, recall, and F1: three ratios of the same counts."""

from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.frames import path_of
from elegy.losses.arguments import BINARY, LabelRange, On
from elegy.metrics.arguments import Mask, Weights, positive_integer, ratio
from elegy.metrics.class_counts import ClassCounts

Average = tp.Literal["binary", "macro", "micro", "weighted"] | None
_AVERAGES = ("binary", "macro", "micro", "weighted", None)


class _OfClasses(ClassCounts):
    direction = "max"

    def __init__(
        self,
        average: Average = "binary",
        *,
        threshold: float | int | Sequence[float | int] = 0.5,
        num_classes: int | None = None,
        class_id: int | None = None,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(on=on, name=name, dtype=dtype)
        owner = f"elegy.metrics.{type(self).__name__}"
        if average not in _AVERAGES:
            raise ValueError(
                f"{owner}: average must be one of {', '.join(map(repr, _AVERAGES))}, got {average!r}."
                + ("\n  The threshold is given by name: threshold=..." if isinstance(average, (int, float)) else "")
            )
        if class_id is not None and average != "binary":
            raise ValueError(f"{owner}: class_id is one class, of which there is no average={average!r}.")
        several = average == "binary" and class_id is None
        if several and num_classes is not None:
            raise ValueError(
                f"{owner}: average='binary' is of labels 0 and 1, and num_classes={num_classes} says that there are "
                "more.\n  Give average='macro', 'micro', 'weighted' or None."
            )
        if not several and threshold != 0.5:
            raise ValueError(
                f"{owner}: a threshold is for labels 0 and 1. Of several classes, that of the highest score is "
                "predicted."
            )
        self.average = average
        if isinstance(threshold, Sequence) and len(threshold) == 0:
            raise ValueError(f"{owner}: threshold must be a number or some of them, got {threshold!r}.")
        self.threshold = tuple(map(float, threshold)) if isinstance(threshold, Sequence) else float(threshold)
        self.num_classes = (
            None if num_classes is None else positive_integer(type(self).__name__, "num_classes", num_classes)
        )
        self.class_id = class_id
        if class_id is not None and (class_id < 0 or num_classes is not None and class_id >= num_classes):
            raise ValueError(f"{owner}: class_id must be the number of a class, got {class_id}.")

    def update(
        self,
        y_true: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
        y_pred: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: labels. For `average="binary"` they are 0 and 1, of any shape; else integers from 0 to
          `num_classes - 1`, of shape `[*batch]`. Others, such as -1 in padding, make the result NaN, unless they have
          no weight: `mask=y_true >= 0`.
        - `y_pred`: for `average="binary"` scores or labels, of the shape of `y_true`; else scores, floats of shape
          `[*batch, classes]`, or integer labels of shape `[*batch]`.
        - `sample_weight`, `mask`: weights of the labels, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        if self.average != "binary" or self.class_id is not None:
            self.count_classes(y_true, y_pred, self.num_classes, sample_weight, mask)
        else:
            thresholds = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
            self.count_above(y_true, y_pred, thresholds, sample_weight, mask)

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange | None:
        """Which labels the metric takes for such predictions; None if that cannot be told."""
        if self.average == "binary" and self.class_id is None:
            return BINARY
        return self.range_of(y_pred, self.num_classes)

    def compute(self) -> Float[Array, "..."]:
        """The ratio of all that was counted so far: a scalar, or for `average=None` and several thresholds a vector."""
        hits, predicted, true = self.totals
        if self.average == "micro":
            hits, predicted, true = jnp.sum(hits), jnp.sum(predicted), jnp.sum(true)
        ratios = self._ratio(hits, predicted, true)
        if self.average == "macro":
            there = jnp.where(predicted + true == 0, 0, jnp.ones_like(true))
            return ratio(jnp.sum(there * ratios), jnp.sum(there))
        if self.average == "weighted":
            return ratio(jnp.sum(true * ratios), jnp.sum(true))
        if self.class_id is not None:
            return self._of_class(ratios)
        return ratios if self.average != "binary" or isinstance(self.threshold, tuple) else ratios[0]

    def _of_class(self, ratios: Float[Array, "classes"]) -> Float[Array, ""]:
        class_id = tp.cast(int, self.class_id)
        if not hasattr(self, "sums"):
            return jnp.zeros([], self._dtype)
        if class_id >= len(ratios):
            raise ValueError(f"{path_of(self)}: class_id={class_id} is none of the {len(ratios)} classes.")
        return ratios[class_id]

    def _ratio(
        self, hits: Float[Array, "*shape"], predicted: Float[Array, "*shape"], true: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        raise NotImplementedError

    def _shape(self) -> tuple[int, ...]:
        if self.average == "binary" and self.class_id is None:
            return (3, len(self.threshold) if isinstance(self.threshold, tuple) else 1)
        return (3, self.num_classes or 0)


class Precision(_OfClasses):
    """Of what was predicted to be in a class, the share that is: true positives / (true + false positives).

    0 where nothing was predicted to be.

    **Arguments:**

    - `average`: what is given of the classes.
        - `"binary"`: labels are 0 and 1, and the ratio is that of class 1.
        - `"macro"`: the mean over classes. As in scikit-learn, those that are neither true nor predicted are left out.
        - `"weighted"`: the mean over classes, weighted by how often each is true.
        - `"micro"`: the ratio of the counts of all classes together.
        - `None`: an array of the ratios of all classes.
    - `threshold`: for binary labels, the scores greater than it predict 1: 0.5 for probabilities, 0 for logits. Of
      several thresholds, in a list, the result is an array.
    - `num_classes`: how many classes there are. The default is inferred from scores; labels do not tell.
    - `class_id`: gives the ratio of this one of several classes.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    All but `average` are given by name.

    **State:** `sums` of shape `[2, 3, classes]`, or `[2, 3, thresholds]`.

    ```python
    import elegy
    import jax.numpy as jnp

    precision = elegy.metrics.Precision()
    assert precision(jnp.array([1, 0, 1, 0]), jnp.array([0.9, 0.8, 0.2, 0.1])) == 0.5

    precision = elegy.metrics.Precision(average=None, num_classes=3)
    assert precision(jnp.array([0, 1, 2, 2]), jnp.array([0, 2, 2, 2])).tolist()[:2] == [1, 0]
    ```
    """

    def _ratio(
        self, hits: Float[Array, "*shape"], predicted: Float[Array, "*shape"], true: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return ratio(hits, predicted)


class Recall(_OfClasses):
    """Of what is in a class, the share that was predicted to be: true positives / (true positives + false negatives).

    0 where nothing is.

    **Arguments:** those of `elegy.metrics.Precision`.

    **State:** that of `elegy.metrics.Precision`.

    ```python
    import elegy
    import jax.numpy as jnp

    recall = elegy.metrics.Recall(threshold=[0.5, 0.15])
    assert recall(jnp.array([1, 0, 1, 0]), jnp.array([0.9, 0.8, 0.2, 0.1])).tolist() == [0.5, 1]
    ```
    """

    def _ratio(
        self, hits: Float[Array, "*shape"], predicted: Float[Array, "*shape"], true: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return ratio(hits, true)


class F1(_OfClasses):
    """The harmonic mean of precision and recall: 2 true positives / (2 true positives + false positives and negatives).

    0 where a class is neither true nor predicted.

    **Arguments:** those of `elegy.metrics.Precision`.

    **State:** that of `elegy.metrics.Precision`.

    ```python
    import elegy
    import jax.numpy as jnp

    f1 = elegy.metrics.F1("macro")
    scores = jnp.array([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.0, 0.1, 0.9]])
    assert jnp.allclose(f1(jnp.array([0, 1, 2]), scores), (1 + 0 + 2 / 3) / 3)
    ```
    """

    def _ratio(
        self, hits: Float[Array, "*shape"], predicted: Float[Array, "*shape"], true: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return ratio(2 * hits, predicted + true)
