from __future__ import annotations

import functools
import inspect
import typing as tp
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from elegy.calls import run_method
from elegy.checks import no_type_check
from elegy.frames import path_of
from elegy.losses.arguments import On, select
from elegy.module import Module
from elegy.state import state
from elegy.tracebacks import shorten

Self = tp.TypeVar("Self", bound="Metric")


class Metric(Module):
    """Base class of metrics. A metric counts what it is given, and gives the value of all that it has counted.

    **Arguments:**

    - `on`: which part of `y_true` and `y_pred` the metric is about, when they are dicts, lists or tuples: a key, an
      index, or a sequence of them for nested ones. The default is all.
    - `name`, `dtype`: those of `elegy.Module`.

    All are given by keyword.

    **Attributes:**

    - `direction`: `"max"` if larger values are better, `"min"` if smaller ones are, and None if neither is known. It is
      an attribute of the class.

    Subclasses define `update`, which changes the state, and `compute`, which gives the value. State is made by
    `add_parameter(..., trainable=False)` and changed by `update_parameter`, so a metric counts inside `elegy.jit` as
    outside of it. To call the metric is to update and to compute; its arguments are those of `update`.

    ```python
    import elegy
    import jax.numpy as jnp


    class LargestError(elegy.metrics.Metric):
        direction = "min"

        def update(self, y_true, y_pred):
            largest = self.add_parameter("largest", [], trainable=False)
            largest = jnp.maximum(largest, jnp.max(jnp.abs(y_true - y_pred)))
            self.update_parameter("largest", largest)

        def compute(self):
            return self.largest if self.initialized else jnp.zeros([])

        def merge_states(self, states):
            return {"largest": jnp.max(states["largest"], axis=0)}


    metric = LargestError()
    assert metric(jnp.zeros([2]), jnp.array([3.0, -4.0])) == 4
    metric.update(jnp.zeros([2]), jnp.array([1.0, 2.0]))
    assert metric.compute() == 4

    other = LargestError()
    other.update(jnp.zeros([2]), jnp.array([1.0, 5.0]))
    assert metric.merge(other).compute() == 5
    ```

    A metric that is never merged or read between two calls may define `call` alone, which does both.
    """

    direction: tp.ClassVar[tp.Literal["min", "max"] | None] = None

    def __init__(self, *, on: On = None, name: str | None = None, dtype: tp.Any = None):
        super().__init__(name=name, dtype=dtype)
        self.on = on if on is None or isinstance(on, (str, int)) else tuple(on)

    def __init_subclass__(cls, **kwargs: tp.Any):
        super().__init_subclass__(**kwargs)
        function = vars(cls).get("update")
        if inspect.isfunction(function):
            cls.update = _run_as_call(function)
            if "call" not in vars(cls):
                cls.call = _call_of(function)

    if tp.TYPE_CHECKING:

        def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any: ...

    def __call__(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """Updates the state, and returns the value of all calls so far."""
        args, kwargs = select(self, self.on, args, kwargs)
        return super().__call__(*args, **kwargs)

    def update(self, *args: tp.Any, **kwargs: tp.Any) -> None:
        """Counts a batch. Subclasses define it; it takes what a call of the metric takes."""
        self(*args, **kwargs)

    def compute(self) -> tp.Any:
        """The value of all that was counted so far. Subclasses define it."""
        raise NotImplementedError(
            f"{path_of(self)}: {type(self).__name__} does not define `compute`, which gives the value without an "
            "update.\n  Define update(self, ...) and compute(self) in the place of call."
        )

    def merge(self: Self, *others: Metric) -> Self:
        """A new metric that has counted what this one and the others have. They stay as they are.

        **Arguments:**

        - `others`: metrics of the same class, with the same arguments. Names may differ.

        **Raises:** `ValueError` if they differ.

        ```python
        import elegy
        import jax.numpy as jnp

        a, b = elegy.metrics.Mean(), elegy.metrics.Mean()
        a.update(jnp.array([1.0, 2.0]))
        b.update(jnp.array([6.0]))
        assert a.merge(b).compute() == 3
        ```
        """
        for other in others:
            self._require_alike(other)
        metrics = [tp.cast(Self, metric) for metric in (self, *others) if metric.initialized]
        if len(metrics) < 2:
            return (metrics or [self])[0].copy()
        first, *rest = (metric.get_parameters() for metric in metrics)
        try:
            states = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *rest)
        except ValueError as error:
            raise ValueError(
                f"{path_of(self)}: metrics whose states differ in their shapes cannot be merged ({error})."
            ) from None
        return self._with(metrics[0], states)

    def merge_stacked(self: Self) -> Self:
        """A new metric that has counted what a stack of metrics has: one whose arrays have a leading axis more.

        Such a stack is what `jax.vmap` returns, and `jax.experimental.multihost_utils.process_allgather`.

        ```python
        import elegy
        import jax
        import jax.numpy as jnp


        @jax.vmap
        def count(values):
            mean = elegy.metrics.Mean()
            mean.update(values)
            return mean


        means = count(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
        assert means.merge_stacked().compute() == 3
        ```
        """
        if not self._is_stacked():
            shapes = [leaf.shape for leaf in jax.tree.leaves(self.get_parameters())]
            has = f"the shapes of this one are {', '.join(map(str, shapes))}" if shapes else "this one never ran"
            raise ValueError(
                f"{path_of(self)}: merge_stacked() is for metrics whose arrays have a leading axis more, as jax.vmap "
                f"returns them; {has}.\n  Several metrics are merged by a.merge(b, c)."
            )
        return self._with(self, self.get_parameters())

    def merge_over(self: Self, axis_name: str | Sequence[str]) -> Self:
        """A new metric that has counted what the metrics of all lanes or devices have.

        **Arguments:**

        - `axis_name`: the name of a mapped axis, of `jax.vmap(..., axis_name=...)` or `jax.shard_map`; or several.

        ```python
        import elegy
        import jax
        import jax.numpy as jnp


        def count(values):
            mean = elegy.metrics.Mean()
            mean.update(values)
            return mean.merge_over("lanes").compute()


        means = jax.vmap(count, axis_name="lanes")(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
        assert means.tolist() == [3, 3]
        ```
        """
        axis = axis_name if isinstance(axis_name, str) else tuple(axis_name)
        size, index = jax.lax.axis_size(axis), jax.lax.axis_index(axis)

        def gather(leaf: Array) -> Array:
            # Unlike the result of all_gather, that of psum is known to be the same on all devices.
            return jax.lax.psum(jnp.zeros((size, *leaf.shape), leaf.dtype).at[index].set(leaf), axis)

        return self._with(self, jax.tree.map(gather, self.get_parameters()))

    def merge_states(self, states: dict[str, tp.Any]) -> Mapping[str, tp.Any]:
        """The state of a metric that has counted what several have. Subclasses that can be merged define it.

        **Arguments:**

        - `states`: what `get_parameters` gives, each array with a leading axis, that of the metrics.

        **Returns:** the same without that axis.
        """
        raise NotImplementedError(
            f"{path_of(self)}: {type(self).__name__} does not say how it is merged.\n"
            "  Define merge_states(self, states), which gets the arrays of several metrics, stacked, and returns those "
            "of one: for sums {name: array.sum(0) for name, array in states.items()}."
        )

    def reset(self) -> None:
        """Starts again."""
        super().reset()

    def _with(self: Self, like: Self, states: dict[str, tp.Any]) -> Self:
        merged = dict(self.merge_states(states))
        leaves, treedef = jax.tree.flatten(like)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]  # distinct, whatever is shared
        new = {id(shape): value for shape, value in _pairs(treedef.unflatten(shapes).get_parameters(), merged)}
        return treedef.unflatten([new[id(shape)] for shape in shapes])

    def _is_stacked(self) -> bool:
        return self.initialized and all(leaf.ndim > 0 for leaf in jax.tree.leaves(self.get_parameters()))

    def _require_alike(self, other: tp.Any) -> None:
        if type(other) is not type(self) or _arguments(other) != _arguments(self):
            raise ValueError(
                f"{path_of(self)}: only metrics of the same class with the same arguments can be merged, got "
                f"{_shown(self)} and {_shown(other)}."
            )


def _pairs(shapes: tp.Any, merged: tp.Any) -> list[tuple[tp.Any, Array]]:
    return list(zip(jax.tree.leaves(shapes), jax.tree.structure(shapes).flatten_up_to(merged), strict=True))


def _arguments(metric: Metric) -> dict[str, tp.Any]:
    state = metric.get_parameters()
    return {name: value for name, value in vars(metric).items() if name != "name" and name not in state}


def _shown(metric: tp.Any) -> str:
    if not isinstance(metric, Metric):
        return f"a {type(metric).__name__}"
    given = ", ".join(f"{name}={value!r}" for name, value in _arguments(metric).items() if value is not None)
    return f"{type(metric).__name__}({given})"


def _run_as_call(function: tp.Any) -> Callable[..., None]:
    """A method that runs as `call` does: parameters that it creates are those that `call` creates."""

    @functools.wraps(function)
    @no_type_check  # which `function` is for itself
    def update(self: Metric, /, *args: tp.Any, **kwargs: tp.Any) -> None:
        if state.frames and state.frames[-1].module is self:
            function(self, *args, **kwargs)
            return
        try:
            args, kwargs = select(self, self.on, args, kwargs)
            run_method(self, "call", function, args, kwargs)
        except Exception as error:
            shorten(error)
            raise

    return update


def _call_of(update: tp.Any) -> Callable[..., tp.Any]:
    """The `call` of a class that defines `update`."""

    @no_type_check
    def call(self: Metric, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        self.update(*args, **kwargs)
        return self.compute()

    signature = inspect.signature(update)
    call.__signature__ = signature.replace(return_annotation=signature.empty)  # type: ignore[attr-defined]
    call.__qualname__ = f"{update.__qualname__.rpartition('.')[0]}.call"
    call.__module__ = update.__module__
    call.__doc__ = update.__doc__
    return call
