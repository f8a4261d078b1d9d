from __future__ import annotations

import typing as tp

from elegy.losses.arguments import On, select
from elegy.module import Module


class Metric(Module):
    """Base class of metrics. Subclasses define `call`, which updates state and returns the metric of all calls so far.

    **Arguments:**

    - `on`: which part of `y_true` and `y_pred` the metric is about, when they are dicts, lists or tuples: a key, an
      index, or a sequence of them for nested ones. The default is all.
    - `name`, `dtype`: those of `elegy.Module`.

    All are given by keyword.

    State is made by `add_parameter(..., trainable=False)` and changed by `update_parameter`, so a metric counts inside
    `elegy.jit` as outside of it. `reset` starts again.

    ```python
    import elegy
    import jax.numpy as jnp


    class LargestError(elegy.metrics.Metric):
        def call(self, y_true, y_pred):
            largest = self.add_parameter("largest", [], trainable=False)
            largest = jnp.maximum(largest, jnp.max(jnp.abs(y_true - y_pred)))
            self.update_parameter("largest", largest)
            return largest


    metric = LargestError()
    assert metric(jnp.zeros([2]), jnp.array([3.0, -4.0])) == 4
    assert metric(jnp.zeros([2]), jnp.array([1.0, 2.0])) == 4
    ```
    """

    def __init__(self, *, on: On = None, name: str | None = None, dtype: tp.Any = None):
        super().__init__(name=name, dtype=dtype)
        self.on = on if on is None or isinstance(on, (str, int)) else tuple(on)

    if tp.TYPE_CHECKING:

        def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any: ...

    def __call__(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """Updates the state, and returns the metric of all calls so far."""
        args, kwargs = select(self, self.on, args, kwargs)
        return super().__call__(*args, **kwargs)
