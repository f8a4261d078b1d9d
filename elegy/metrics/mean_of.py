from __future__ import annotations

import typing as tp
from collections.abc import Callable

from elegy.losses.arguments import On
from elegy.metrics.arguments import Mask, Weights
from elegy.metrics.average import Average


class MeanOf(Average):
    """The weighted mean of the values of a function, over all that was counted; 0 if there were none.

    **Arguments:**

    - `function`: takes targets and predictions, in this order, and returns an array: a value for each example, or for
      each number of it.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`. The default name is that of the function.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp


    def distance(y_true, y_pred):
        return jnp.linalg.norm(y_true - y_pred, axis=-1)


    metric = elegy.metrics.MeanOf(distance)
    metric.update(jnp.zeros([2, 2]), jnp.array([[3.0, 4.0], [0.0, 1.0]]))
    assert metric.compute() == 3 and metric.name == "distance"
    ```
    """

    def __init__(
        self,
        function: Callable[..., tp.Any],
        *,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        if not callable(function):
            raise TypeError(f"elegy.metrics.MeanOf: expected a function of targets and predictions, got {function!r}.")
        given = getattr(function, "__name__", "")
        name = given if name is None and given.isidentifier() else name
        super().__init__(on=on, name=name, dtype=dtype)
        self.function = function

    def update(self, y_true: tp.Any, y_pred: tp.Any, sample_weight: Weights = None, mask: Mask = None) -> None:
        """**Arguments:**

        - `y_true`, `y_pred`: what the function takes.
        - `sample_weight`, `mask`: weights of the values, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        self.count_values(self.function(y_true, y_pred), sample_weight, mask)
