from __future__ import annotations

import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from elegy.frames import default_name
from elegy.metrics.metric import Metric

# The second is that of a `clu.metrics.Collection`.
_MAKERS = ("from_model_output", "single_from_model_output")


def is_mergeable(metric: tp.Any) -> bool:
    """Whether an object or a class is a metric of the kind that `Adapted` takes."""
    has = [name for name in (*_MAKERS, "merge", "compute") if callable(getattr(metric, name, None))]
    return len(has) > 2 and has[-2:] == ["merge", "compute"]


def maker_of(metric: tp.Any) -> Callable[..., tp.Any]:
    """The class method that counts a batch."""
    return next(maker for name in _MAKERS if callable(maker := getattr(metric, name, None)))


class Adapted(Metric):
    """A metric of another library, of those that are merged: `clu.metrics`, `metrax`, or your own.

    `elegy.Model` takes such metrics as they are, `metrics=clu.metrics.Accuracy`, and makes this of them.

    **Arguments:**

    - `metric`: a class with a class method `from_model_output(...)`, which gives an object that is a pytree of what was
      counted in a batch, and methods `merge(other)` and `compute()` of that object. Or a collection of `clu`, whose
      class method is called `single_from_model_output`.
    - `name`: that of `elegy.Module`. The default is the name of the class.

    **State:** `counted`, the merged object, and `started`, whether there is one.

    ```python
    import elegy
    import flax.struct
    import jax
    import jax.numpy as jnp


    @flax.struct.dataclass
    class Count:
        total: jax.Array

        @classmethod
        def from_model_output(cls, labels):
            return cls(total=jnp.sum(labels))

        def merge(self, other):
            return Count(total=self.total + other.total)

        def compute(self):
            return self.total


    count = elegy.metrics.Adapted(Count)
    count.update(labels=jnp.array([1, 0]))
    assert count(labels=jnp.array([1, 1])) == 3
    assert count.merge(count).compute() == 6
    ```
    """

    def __init__(
        self,
        metric: tp.Any,
        *,
        name: str | None = None,
    ):
        metric = metric if isinstance(metric, type) else type(metric)
        if not is_mergeable(metric):
            raise TypeError(
                f"elegy.metrics.Adapted: {metric.__name__} needs a class method from_model_output, and methods merge "
                "and compute."
            )
        super().__init__(name=default_name(metric) if name is None else name)
        self.metric = metric

    def update(self, *args: tp.Any, **kwargs: tp.Any) -> None:
        """Takes the arguments of `from_model_output`."""
        # NumPy's integers are of 64 bits, which such a metric may refuse.
        args, kwargs = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, (args, kwargs))
        batch = jax.tree.map(jnp.asarray, maker_of(self.metric)(*args, **kwargs))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        zeros = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)  # noqa: E731
        counted = self.add_parameter("counted", initializer=zeros, trainable=False)
        started = self.add_parameter("started", [], jnp.bool_, trainable=False)
        self.update_parameter("counted", _chosen(started, counted.merge(batch), batch))
        self.update_parameter("started", jnp.ones_like(started))

    def compute(self) -> tp.Any:
        """What `compute` of the merged object gives."""
        if not hasattr(self, "counted"):
            raise ValueError(f"elegy.metrics.Adapted: {self.metric.__name__} has no value before the first update.")
        return self.counted.compute()

    def merge_states(self, states: dict[str, tp.Any]) -> dict[str, tp.Any]:
        started, parts = states["started"], states["counted"]
        counted = jax.tree.map(lambda leaf: leaf[0], parts)
        for number in range(1, len(started)):
            part = jax.tree.map(lambda leaf, number=number: leaf[number], parts)
            merged = _chosen(started[number], counted.merge(part), counted)
            counted = _chosen(jnp.any(started[:number]), merged, part)
        return {"started": jnp.any(started, axis=0), "counted": counted}


def _chosen(condition: tp.Any, these: tp.Any, those: tp.Any) -> tp.Any:
    """One of two objects, in the dtypes of the second."""
    return jax.tree.map(lambda this, that: jnp.where(condition, jnp.asarray(this, that.dtype), that), these, those)
