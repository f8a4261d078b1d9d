from __future__ import annotations

import typing as tp

from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.losses.arguments import BINARY, LabelRange, On
from elegy.metrics.arguments import Mask, Weights, binary, where_valid
from elegy.metrics.average import Average


def binary_accuracy(
    y_true: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
    y_pred: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
    threshold: float | int = 0.5,
) -> Float[Array, "*shape"]:
    """1 where a score is on the side of the threshold that the label says, 0 elsewhere.

    **Arguments:**

    - `y_true`: labels, 0 or 1. Others give NaN.
    - `y_pred`: scores, of the same shape. Those greater than the threshold predict 1.
    - `threshold`: 0.5 for probabilities; for logits give 0.

    **Returns:** an array of float32 of that shape.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.metrics.binary_accuracy(jnp.array([1, 0, 1]), jnp.array([0.9, 0.8, 0.5]))
    assert values.tolist() == [1, 0, 0]
    ```
    """
    positive, scores, valid = binary("elegy.metrics.binary_accuracy", y_true, y_pred)
    return where_valid((scores > threshold) == positive, valid)


class BinaryAccuracy(Average):
    """The share of scores, over all that was counted, on the side of a threshold that the label says; 0 if there were
    none.

    **Arguments:**

    - `threshold`: scores greater than it predict 1: 0.5 for probabilities, 0 for logits.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    accuracy = elegy.metrics.BinaryAccuracy()
    assert accuracy(jnp.array([1, 0, 1, 0]), jnp.array([0.9, 0.8, 0.7, 0.1])) == 0.75
    ```
    """

    direction = "max"

    def __init__(
        self,
        threshold: float | int = 0.5,
        *,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(on=on, name=name, dtype=dtype)
        self.threshold = float(threshold)

    def update(
        self,
        y_true: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
        y_pred: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: labels, 0 or 1. Others make the result NaN.
        - `y_pred`: scores, of the same shape.
        - `sample_weight`, `mask`: weights of the scores, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        self.count_values(binary_accuracy(y_true, y_pred, self.threshold), sample_weight, mask)

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange:
        """Which labels the metric takes."""
        return BINARY
