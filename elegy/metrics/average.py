from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.frames import path_of
from elegy.metrics.accumulator import Accumulator
from elegy.metrics.arguments import Mask, Weights, ratio, weighted, weights_of
from elegy.metrics.sums import exact, summed


class Average(Accumulator):
    """Base class of metrics that are weighted means: `update` computes values, and gives them to `count_values`.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** `sums` of shape `[2, 2]`, of float32 at least, whatever the dtype of the values: the weighted sum of the
    values and the sum of their weights, and what each of them lost by rounding.

    ```python
    import elegy
    import jax.numpy as jnp


    class MeanError(elegy.metrics.Average):
        direction = "min"

        def update(self, y_true, y_pred, sample_weight=None):
            self.count_values(jnp.abs(y_true - y_pred), sample_weight)


    metric = MeanError()
    metric.update(jnp.zeros([2]), jnp.array([1.0, 2.0]))
    assert metric(jnp.zeros([1]), jnp.array([6.0])) == 3
    assert metric.total == 9 and metric.count == 3
    ```

    A subclass may also define `call`, and return `self.average(values, sample_weight)`.
    """

    @property
    def total(self) -> Float[Array, ""]:
        """The weighted sum of all values so far."""
        return self.totals[..., 0]

    @property
    def count(self) -> Float[Array, ""]:
        """The sum of all weights so far."""
        return self.totals[..., 1]

    def count_values(
        self,
        values: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """Adds values.

        **Arguments:**

        - `values`: an array of any shape.
        - `sample_weight`: weights of the values, whose shape is that of their first axes. The default is 1. Values of
          weight 0 are not looked at: they may be NaN.
        - `mask`: bools of such a shape; where they are False, values do not count.
        """
        values = jnp.asarray(values).astype(self._dtype)
        weights = weights_of(lambda: path_of(self), values, sample_weight, mask)
        count = jnp.asarray(exact(values.size, values.dtype)) if weights is None else summed(weights)
        self.add(jnp.stack([summed(weighted(values, weights)), count], axis=1))

    def average(
        self,
        values: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> Float[Array, ""]:
        """Adds values as `count_values` does, and returns the mean of all so far."""
        self.count_values(values, sample_weight, mask)
        return self.mean()

    def mean(self) -> Float[Array, ""]:
        """The sum of the weighted values so far divided by the sum of the weights; 0 if all weights were 0."""
        return ratio(self.total, self.count)

    def compute(self) -> Float[Array, ""]:
        """The mean of all values so far; 0 if there were none, or all weights were 0."""
        return self.mean()

    def _shape(self) -> tuple[int, ...]:
        return (2,)
