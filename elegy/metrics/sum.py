from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.frames import path_of
from elegy.metrics.accumulator import Accumulator
from elegy.metrics.arguments import Mask, Weights, weighted, weights_of
from elegy.metrics.sums import summed


class Sum(Accumulator):
    """The weighted sum of all values so far; 0 if there were none.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** `sums` of shape `[2]`: the sum and what it lost by rounding.

    ```python
    import elegy
    import jax.numpy as jnp

    total = elegy.metrics.Sum()
    total(jnp.array([1.0, 2.0]))
    assert total(jnp.array([6.0]), sample_weight=jnp.array([0.5])) == 6
    ```
    """

    def update(
        self,
        values: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `values`: an array of any shape.
        - `sample_weight`: weights of the values, whose shape is that of their first axes. The default is 1.
        - `mask`: bools of such a shape; where they are False, values do not count.
        """
        values = jnp.asarray(values).astype(self._dtype)
        self.add(summed(weighted(values, weights_of(lambda: path_of(self), values, sample_weight, mask))))

    def compute(self) -> Float[Array, ""]:
        """The sum of all values so far."""
        return self.totals

    def _shape(self) -> tuple[int, ...]:
        return ()
