from __future__ import annotations

from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.metrics.average import Average


class Mean(Average):
    """The weighted mean of all values so far.

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

    def call(
        self,
        values: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
        sample_weight: Num[ArrayLike, "..."] | None = None,
    ) -> Float[Array, ""]:
        """**Arguments:**

        - `values`: an array of any shape.
        - `sample_weight`: weights of the values, whose shape is that of their first axes. The default is 1.

        **Returns:** the mean of all calls so far; 0 if all weights were 0.
        """
        return self.average(values, sample_weight)
