from __future__ import annotations

from jaxtyping import ArrayLike, Bool, Num

from elegy.metrics.arguments import Mask, Weights
from elegy.metrics.average import Average


class Mean(Average):
    """The weighted mean of all values so far; 0 if there were none.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    mean = elegy.metrics.Mean()
    mean(jnp.array([1.0, 2.0]))
    assert mean(jnp.array([6.0])) == 3
    mean.reset()
    assert mean(jnp.array([6.0])) == 6
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
        self.count_values(values, sample_weight, mask)
