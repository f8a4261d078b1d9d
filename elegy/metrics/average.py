from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.frames import path_of
from elegy.losses.arguments import weights_for
from elegy.metrics.metric import Metric
from elegy.precision import at_least_float32


class Average(Metric):
    """Base class of metrics that are weighted means: `call` computes values, and returns `self.average(values)`.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** `total`, the weighted sum of the values, and `count`, the sum of their weights: scalars of float32 at
    least, whatever the dtype of the values.

    ```python
    import elegy
    import jax.numpy as jnp


    class MeanError(elegy.metrics.Average):
        def call(self, y_true, y_pred, sample_weight=None):
            return self.average(jnp.abs(y_true - y_pred), sample_weight)


    metric = MeanError()
    metric(jnp.zeros([2]), jnp.array([1.0, 2.0]))
    assert metric(jnp.zeros([1]), jnp.array([6.0])) == 3
    ```
    """

    total: Float[Array, ""]
    count: Float[Array, ""]

    def average(
        self,
        values: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
        sample_weight: Num[ArrayLike, "..."] | None = None,
    ) -> Float[Array, ""]:
        """Adds values, and returns the mean of all so far.

        **Arguments:**

        - `values`: an array of any shape.
        - `sample_weight`: weights of the values, whose shape is that of their first axes. The default is 1.

        **Returns:** the sum of the weighted values divided by the sum of the weights; 0 if all weights were 0.
        """
        dtype = at_least_float32(self.dtype)
        total = self.add_parameter("total", [], dtype, trainable=False)
        count = self.add_parameter("count", [], dtype, trainable=False)
        values = jnp.asarray(values).astype(total.dtype)
        if sample_weight is None:
            total, count = total + jnp.sum(values), count + values.size
        else:
            weights = weights_for(lambda: path_of(self), values, sample_weight)
            total, count = total + jnp.sum(weights * values), count + jnp.sum(weights)
        self.update_parameter("total", total)
        self.update_parameter("count", count)
        return jnp.where(count == 0, 0, total / jnp.where(count == 0, 1, count))

    def reset(self) -> None:
        """Starts again. The state is set to zero and stays, so what was compiled needs no new compilation."""
        if self.initialized:
            self.set_parameters({"total": 0, "count": 0})
