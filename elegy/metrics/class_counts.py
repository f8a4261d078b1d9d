from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num, Shaped

from elegy.frames import path_of
from elegy.losses.arguments import LabelRange
from elegy.metrics.accumulator import Accumulator
from elegy.metrics.arguments import Mask, Weights, binary, classes_of, is_class, valid_weights
from elegy.metrics.sums import summed, summed_by


class ClassCounts(Accumulator):
    """Base class of the metrics that are computed from how often each class was predicted, was true, and was both.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** `sums` of shape `[2, 3, classes]`: for each class the weights of the examples in which it is rightly
    predicted, predicted, and true; and what each of these sums lost by rounding.
    """

    @property
    def hits(self) -> Float[Array, "..."]:
        """For each class the weight of the examples in which it is rightly predicted."""
        return self.totals[0]

    @property
    def predicted(self) -> Float[Array, "..."]:
        """For each class the weight of the examples in which it is predicted."""
        return self.totals[1]

    @property
    def true(self) -> Float[Array, "..."]:
        """For each class the weight of the examples in which it is true."""
        return self.totals[2]

    def count_classes(
        self,
        y_true: Shaped[ArrayLike, "..."],
        y_pred: Num[ArrayLike, "..."],
        num_classes: int | None,
        sample_weight: Weights,
        mask: Mask,
    ) -> None:
        """Counts integer labels, and scores or labels that were predicted."""
        true, predicted, classes = classes_of(lambda: path_of(self), y_true, y_pred, num_classes)
        valid = is_class(true, classes) & is_class(predicted, classes)
        weights, wrong = self._weights(valid, sample_weight, mask)
        true, predicted = jnp.where(valid, true, 0), jnp.where(valid, predicted, 0)
        counted = [(true, jnp.where(true == predicted, weights, 0)), (predicted, weights), (true, weights)]
        sums = jnp.stack([summed_by(index, classes, values) for index, values in counted], axis=1)
        self.add(jnp.where(wrong, jnp.nan, sums))

    def range_of(self, y_pred: Num[ArrayLike, "..."], num_classes: int | None) -> LabelRange | None:
        """Which labels `count_classes` takes for such predictions; None if that cannot be told."""
        if num_classes is None and jnp.ndim(y_pred) and jnp.issubdtype(jnp.result_type(y_pred), jnp.floating):
            num_classes = jnp.shape(y_pred)[-1]
        return None if num_classes is None else LabelRange(num_classes)

    def count_above(
        self,
        y_true: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
        y_pred: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
        thresholds: tuple[float, ...],
        sample_weight: Weights,
        mask: Mask,
    ) -> None:
        """Counts labels of 0 and 1, and scores; for each threshold those above it predict 1."""
        true, scores, valid = binary(path_of(self), y_true, y_pred)
        weights, wrong = self._weights(valid, sample_weight, mask)

        def count(threshold: Float[Array, ""]) -> Float[Array, "2 3"]:
            predicted = scores > threshold
            return jnp.stack([summed(jnp.where(kind, weights, 0)) for kind in (true & predicted, predicted, true)], 1)

        sums = jnp.moveaxis(jax.lax.map(count, jnp.asarray(thresholds, scores.dtype)), 0, -1)
        self.add(jnp.where(wrong, jnp.nan, sums))

    def _weights(
        self, valid: Bool[Array, "*shape"], sample_weight: Weights, mask: Mask
    ) -> tuple[Float[Array, "*shape"], Bool[Array, ""]]:
        """The weights, and whether an example that has one is not valid."""
        return valid_weights(lambda: path_of(self), valid, self._dtype, sample_weight, mask)
