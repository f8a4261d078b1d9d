from __future__ import annotations

import operator
import typing as tp

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Num, Shaped

from elegy.losses.arguments import EPSILON, LabelRange, On, axis_last, class_labels, flag, number
from elegy.losses.loss import Loss, Reduction

_OWNER = "elegy.losses.sparse_categorical_crossentropy"


def sparse_categorical_crossentropy(
    y_true: Shaped[ArrayLike, "*labels"],
    y_pred: Num[ArrayLike, "*scores"],
    from_logits: bool = False,
    check_bounds: bool = True,
    ignore_class: int | None = None,
    label_smoothing: float | int = 0.0,
    axis: int = -1,
) -> Float[Array, "..."]:
    """`-log p[y_true]`, where `p` are the probabilities of the classes.

    **Arguments:**

    - `y_true`: integer labels, from 0 to `classes - 1`, of the shape of `y_pred` without the axis of the classes. Where
      that is the last one, a last axis of size 1 is ignored.
    - `y_pred`: probabilities, or logits. As in Keras probabilities are divided by their sum, and are not taken
      for less than 1e-7, below which there is no gradient.
    - `from_logits`: whether `y_pred` are logits, `p = softmax(y_pred)`. Numerically that is the better choice.
    - `check_bounds`: labels out of range give NaN. Otherwise they are taken for the nearest class.
    - `ignore_class`: a label, in range or not, whose value is zero, whatever is predicted.
    - `label_smoothing`: the part of the targets that is spread evenly over the classes.
    - `axis`: the axis of the classes.

    **Returns:** an array of the shape of the labels, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.sparse_categorical_crossentropy(
        jnp.array([1, 2]), jnp.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])
    )
    assert jnp.allclose(values, -jnp.log(jnp.array([0.5, 0.25])))
    ```
    """
    labels, scores = _labels_and_scores(y_true, y_pred, axis)
    counted = None if ignore_class is None else labels != ignore_class
    if counted is not None:
        # Scores too are replaced, since a gradient of zero times one that is infinite would be NaN.
        labels, scores = jnp.where(counted, labels, 0), jnp.where(counted[..., None], scores, 1)
    classes = scores.shape[-1]
    logits = scores if from_logits else jnp.log(jnp.maximum(scores, EPSILON))
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.clip(labels, 0, classes - 1))
    if label_smoothing:
        values = (1 - label_smoothing) * values - label_smoothing * jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    if check_bounds:
        values = jnp.where((labels >= 0) & (labels < classes), values, jnp.nan)
    return values if counted is None else jnp.where(counted, values, 0)


def _labels_and_scores(
    y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."], axis: int
) -> tuple[Num[Array, "*batch"], Float[Array, "*batch classes"]]:
    if jnp.ndim(y_pred) > 0 and axis not in (-1, jnp.ndim(y_pred) - 1):
        y_pred = axis_last(_OWNER, axis, y_pred)
    return class_labels(_OWNER, y_true, y_pred)


class SparseCategoricalCrossentropy(Loss):
    """The cross-entropy of integer class labels and predicted probabilities or logits.

    **Arguments:**

    - `from_logits`, `check_bounds`, `ignore_class`, `label_smoothing`, `axis`: those of
      `elegy.losses.sparse_categorical_crossentropy`. As in Keras `y_pred` are *probabilities* unless
      `from_logits=True`, and what is ignored does not count in a mean.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `from_logits` are given by keyword.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    value = loss(jnp.array([0, 1, -1]), jnp.zeros([3, 10]))
    assert jnp.allclose(value, jnp.log(10.0))
    ```
    """

    def __init__(
        self,
        from_logits: bool = False,
        *,
        check_bounds: bool = True,
        ignore_class: int | None = None,
        label_smoothing: float | int = 0.0,
        axis: int = -1,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        owner = "losses.SparseCategoricalCrossentropy"
        self.from_logits = flag(owner, "from_logits", from_logits)
        self.check_bounds = flag(owner, "check_bounds", check_bounds)
        self.ignore_class = None if ignore_class is None else operator.index(ignore_class)
        self.label_smoothing = number(owner, "label_smoothing", label_smoothing, most=1)
        self.axis = operator.index(axis)

    def call(self, y_true: Shaped[ArrayLike, "*labels"], y_pred: Num[ArrayLike, "*scores"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: integer labels of shape `[*batch]` or `[*batch, 1]`.
        - `y_pred`: probabilities or logits of shape `[*batch, classes]`, or with the classes in another `axis`.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return sparse_categorical_crossentropy(
            y_true,
            y_pred,
            self.from_logits,
            self.check_bounds,
            self.ignore_class,
            self.label_smoothing,
            self.axis,
        )

    def label_range(self, y_pred: Num[ArrayLike, "*scores"]) -> LabelRange | None:
        """Which labels the loss takes for such predictions; None if any."""
        if not self.check_bounds:
            return None
        return LabelRange(jnp.shape(y_pred)[self.axis], self.ignore_class, True, "by the loss: ignore_class=-1")

    def _counted(
        self, y_true: Shaped[ArrayLike, "*labels"], y_pred: Num[ArrayLike, "*scores"]
    ) -> Bool[Array, "..."] | None:
        if self.ignore_class is None:
            return None
        labels, _ = _labels_and_scores(y_true, y_pred, self.axis)
        return labels != self.ignore_class
