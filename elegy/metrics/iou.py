"""Intersection over union, of each class and on average."""

from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.frames import default_name
from elegy.losses.arguments import LabelRange, On
from elegy.metrics.arguments import Mask, Weights, positive_integer, ratio
from elegy.metrics.class_counts import ClassCounts


class IoU(ClassCounts):
    """Intersection over union of each class: of the elements that are or were predicted to be in it, the share of those
    that both are. Also called Jaccard index. 0 for a class that is neither true nor predicted.

    **Arguments:**

    - `num_classes`: how many classes there are.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** `sums` of shape `[2, 3, num_classes]`.

    ```python
    import elegy
    import jax.numpy as jnp

    iou = elegy.metrics.IoU(2)
    assert jnp.allclose(iou(jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 1])), jnp.array([1 / 2, 2 / 3]))
    ```
    """

    direction = "max"

    def __init__(
        self,
        num_classes: int,
        *,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        name = default_name(type(self)).replace("io_u", "iou") if name is None else name
        super().__init__(on=on, name=name, dtype=dtype)
        self.num_classes = positive_integer(type(self).__name__, "num_classes", num_classes)

    def update(
        self,
        y_true: Shaped[ArrayLike, "..."],
        y_pred: Num[ArrayLike, "..."],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: integer labels from 0 to `num_classes - 1`, of shape `[*batch]`, such as that of an image. Others
          make the result NaN, unless they have no weight: `mask=y_true != 255`.
        - `y_pred`: scores, floats of shape `[*batch, num_classes]`, or integer labels of shape `[*batch]`.
        - `sample_weight`, `mask`: weights of the labels, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        self.count_classes(y_true, y_pred, self.num_classes, sample_weight, mask)

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange:
        """Which labels the metric takes."""
        return LabelRange(self.num_classes)

    def compute(self) -> Float[Array, "..."]:
        """The ratio of each class, of shape `[num_classes]`."""
        hits, predicted, true = self.totals
        return ratio(hits, predicted + true - hits)

    def _shape(self) -> tuple[int, ...]:
        return (3, self.num_classes)


class MeanIoU(IoU):
    """The mean of [`IoU`][elegy.metrics.IoU] over the classes that are true or predicted; 0 if there are none.

    **Arguments:** those of `elegy.metrics.IoU`.

    **State:** that of `elegy.metrics.IoU`.

    ```python
    import elegy
    import jax.numpy as jnp

    iou = elegy.metrics.MeanIoU(5)
    assert jnp.allclose(iou(jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 1])), (1 / 2 + 2 / 3) / 2)
    ```
    """

    def compute(self) -> Float[Array, ""]:
        """The mean of the ratios."""
        ratios = super().compute()
        there = self.predicted + self.true != 0
        return ratio(jnp.sum(jnp.where(there, ratios, 0)), jnp.sum(there.astype(ratios.dtype)))
