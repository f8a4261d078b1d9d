from __future__ import annotations

import functools
import typing as tp

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.frames import path_of
from elegy.losses.arguments import BINARY, LabelRange, On
from elegy.metrics.accumulator import Accumulator
from elegy.metrics.arguments import Mask, Weights, binary, positive_integer, ratio, valid_weights
from elegy.metrics.sums import gathered, summed_by


class AUC(Accumulator):
    """The area under a curve that shows how well scores tell the labels 0 and 1 apart, whatever the threshold.

    The curve is found from a histogram of the scores, which is what batches add up to. Scores between two neighbouring
    thresholds are taken for equal; the value is that of `sklearn.metrics.roc_auc_score`, or `average_precision_score`,
    for scores that were rounded so. As scores may be crowded anywhere, thresholds are dense for probabilities in the
    middle, near 0, near 1, and about 0.5, where a module that has learnt little has its own.

    **Arguments:**

    - `curve`: `"ROC"`, the share of positive labels above a threshold over that of negative ones; or `"PR"`, precision
      over recall, which says more where few labels are positive. The area under the latter is the average precision,
      `sum((recall[i] - recall[i - 1]) * precision[i])`.
    - `num_thresholds`: how many there are. More are more exact. With 200, the number in Keras, the areas may be off by
      0.02 for scores that are crowded, and that of PR by more if few labels are positive as well.
    - `from_logits`: whether `y_pred` are logits. As in Keras they are *probabilities* unless it is True.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    All but `curve` are given by name.

    **State:** `sums` of shape `[2, 2, num_thresholds + 1]`: the weights of the negative and of the positive labels
    between thresholds, and what these sums lost by rounding.

    ```python
    import elegy
    import jax.numpy as jnp

    auc = elegy.metrics.AUC()
    assert auc(jnp.array([0, 0, 1, 1]), jnp.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    ```
    """

    direction = "max"

    def __init__(
        self,
        curve: tp.Literal["ROC", "PR"] = "ROC",
        *,
        num_thresholds: int = 5000,
        from_logits: bool = False,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(on=on, name=name, dtype=dtype)
        if curve not in ("ROC", "PR"):
            raise ValueError(f"elegy.metrics.AUC: curve must be 'ROC' or 'PR', got {curve!r}.")
        if not isinstance(from_logits, bool):
            raise TypeError(f"elegy.metrics.AUC: from_logits must be True or False, got {from_logits!r}.")
        self.curve = curve
        self.num_thresholds = positive_integer("AUC", "num_thresholds", num_thresholds)
        self.from_logits = from_logits

    def update(
        self,
        y_true: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
        y_pred: Num[ArrayLike, "*shape"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: labels, 0 or 1. Others make the result NaN.
        - `y_pred`: probabilities or logits, of the same shape. Numbers that are no probabilities make the result NaN,
          unless `from_logits=True`.
        - `sample_weight`, `mask`: weights of the labels, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        positive, scores, valid = map(gathered, binary(path_of(self), y_true, y_pred))
        if not self.from_logits:
            scores = jnp.log(scores) - jnp.log1p(-scores)
            valid &= ~jnp.isnan(scores)
        weights, wrong = valid_weights(lambda: path_of(self), valid, self._dtype, sample_weight, mask)
        bins = self.num_thresholds + 1
        index = jnp.searchsorted(jnp.asarray(_thresholds(self.num_thresholds), scores.dtype), scores)
        sums = summed_by(jnp.where(positive, index + bins, index), 2 * bins, weights)
        self.add(jnp.where(wrong, jnp.nan, sums).reshape(2, 2, bins))

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange:
        """Which labels the metric takes."""
        return BINARY

    def compute(self) -> Float[Array, ""]:
        """The area of all that was counted so far; 0 if there was no positive label, or for ROC no negative one."""
        negative, positive = self.totals[:, ::-1]  # the highest scores first
        above = jnp.cumsum(positive)
        total = above[-1]
        if self.curve == "ROC":
            area = jnp.sum(negative * (above - positive / 2))
            return ratio(area, total * jnp.sum(negative))
        precision = ratio(above, above + jnp.cumsum(negative))
        return ratio(jnp.sum(positive * precision), total)

    def _shape(self) -> tuple[int, ...]:
        return (2, self.num_thresholds + 1)


@functools.cache
def _thresholds(count: int) -> np.ndarray:
    """Logits, in order, which are quantiles of a mixture of distributions: logistic, which is uniform in probability;
    uniform, for probabilities near 0 and 1; and uniform in the number of digits, for what is near 0.5."""
    digits = np.concatenate([np.geomspace(1e-6, 1e3, 20_000), np.linspace(0, 30, 20_000)])
    logits = np.sort(np.concatenate([-digits, digits]))
    middle, all_sizes = (1 + np.tanh(logits / 2)) / 2, np.arcsinh(logits / 1e-4) / np.arcsinh(100 / 1e-4)
    share = 0.4 * middle + 0.35 * np.clip((logits + 17) / 34, 0, 1) + 0.25 * np.clip((all_sizes + 1) / 2, 0, 1)
    return np.interp((np.arange(count) + 0.5) / count, share, logits).astype(np.float32)
