"""Hooks: what a running module can ask of its surroundings."""

from __future__ import annotations

import contextlib
import typing as tp
from collections.abc import Callable, Container, Hashable, Iterator, Sequence

from elegy import tracing
from elegy.errors import HookError, TraceError, ways_out
from elegy.frames import path_of, scope
from elegy.leaves import Node
from elegy.state import collecting, sample_mask_key, state, training

# ---------------------------------------------------------------------------------------------------------------------
# Kinds
# ---------------------------------------------------------------------------------------------------------------------


def _scoped(name: str) -> str:
    return "/".join([*scope(), name])


class Kind(tp.NamedTuple):
    """How the values of one kind of hook are combined. Collectors and transforms read it.

    - `plural`: what messages call several values.
    - `full_name`: the name under which a value is collected, from the one under which it was declared.
    - `repeated`: what becomes of two values of one name: they are added up, or the later one gets a number.
    - `lanes`: what becomes of the values of the lanes of a mapped function.
    - `steps`: what becomes of the values of the steps of a scan or a loop. A loop, of any length, cannot stack.
    - `absent`: the value that a branch gives for what only another branch declares; 0 if the dtype does not have it.
    - `is_scalar`: whether the values must be scalars.
    """

    plural: str
    full_name: Callable[[str], str]
    repeated: tp.Literal["sum", "number"]
    lanes: tp.Literal["sum", "mean", "stack"]
    steps: tp.Literal["sum", "mean", "stack"]
    absent: float
    is_scalar: bool


KINDS: dict[str, Kind] = {
    "loss": Kind(
        plural="losses",
        full_name=lambda name: name if name.endswith("loss") else f"{name}_loss",
        repeated="sum",
        lanes="mean",
        steps="sum",
        absent=0.0,
        is_scalar=True,
    ),
    "metric": Kind(
        plural="metrics",
        full_name=_scoped,
        repeated="number",
        lanes="mean",
        steps="mean",
        absent=float("nan"),
        is_scalar=True,
    ),
    "summary": Kind(
        plural="summaries",
        full_name=_scoped,
        repeated="number",
        lanes="stack",
        steps="stack",
        absent=float("nan"),
        is_scalar=False,
    ),
}


class Event(tp.NamedTuple):
    """One call of add_loss, add_metric or add_summary, before repeated names are resolved.

    - `module`: the module for which a summary was given; None if it lives in a transform only.
    - `is_of_module`: whether the summary was given for a module. Then its name is a path, and may be repeated.
    """

    kind: str
    name: str
    module: Node | None
    value: tp.Any
    is_of_module: bool = False


class Collector:
    """What a `hooks_context` collects: the events, in the order in which they came.

    Summaries go to the nearest context around that wants them, if this one does not.
    """

    def __init__(self, summaries: bool = False, outer: Collector | None = None):
        self.born = tracing.current()
        self.outer = outer if outer is not None and outer.wants_summaries and not summaries else None
        self.wants_summaries = summaries or self.outer is not None
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        if self.born != tracing.current():
            raise TraceError(
                f"{'/'.join(scope()) or 'elegy'}: add_{event.kind}({event.name!r}) was called inside a jax transform, "
                "but the hooks_context that collects it is outside.\n"
                "  The value could not leave the transform. There are two ways out:"
                + ways_out(
                    "Open elegy.hooks_context() inside the transformed function and return what it collects.",
                    "Use the transform of the same name in elegy (elegy.jit, elegy.value_and_grad, …), whose "
                    "outputs they are.",
                )
            )
        if event.kind == "summary" and self.outer is not None:
            self.outer.add(event)
        else:
            self.events.append(event)

    def collected(self, kind: str) -> list[Event]:
        """The events of one kind, each with the name under which it is read."""
        if kind == "summary" and self.outer is not None:
            return self.outer.collected(kind)
        events = [event for event in self.events if event.kind == kind]
        return _added_up(events) if KINDS[kind].repeated == "sum" else _numbered(events)

    def drop(self, kind: str) -> None:
        """Forgets the events of one kind."""
        self.events[:] = [event for event in self.events if event.kind != kind]


def _added_up(events: Sequence[Event]) -> list[Event]:
    found: dict[str, Event] = {}
    for event in events:
        known = found.get(event.name)
        found[event.name] = event if known is None else known._replace(value=known.value + event.value)
    return list(found.values())


def _numbered(events: Sequence[Event]) -> list[Event]:
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    found: list[Event] = []
    for event in events:
        if not event.is_of_module:
            name, numbers[event.name] = numbered(event.name, taken, numbers.get(event.name, 0))
            taken.add(name)
            event = event._replace(name=name)
        found.append(event)
    return found


def numbered(name: str, taken: Container[str], number: int = 0) -> tuple[str, int]:
    """`name`, `name_1`, `name_2`, …: the first from `number` on that is not taken, and the number that comes next."""
    while True:
        unique, number = f"{name}_{number}" if number else name, number + 1
        if unique not in taken:
            return unique, number


@contextlib.contextmanager
def hooks_context(summaries: bool = False) -> Iterator[None]:
    """Collects what `add_loss`, `add_metric` and, with `summaries=True`, `add_summary` declare inside the `with` block.

    Read the collected values inside the block with `get_losses`, `get_metrics` and `get_summaries`.

    ```python
    import elegy

    with elegy.hooks_context():
        elegy.add_loss("penalty", 0.5)
        elegy.add_loss("penalty", 0.25)
        assert elegy.get_losses() == {"penalty_loss": 0.75}
    ```
    """
    before = state.collector
    state.collector = Collector(summaries, before)
    try:
        with collecting(state.collector):
            yield
    finally:
        state.collector = before


def trace_key() -> Hashable:
    """What a traced function depends on besides its arguments and modules: for another key it is traced again."""
    collector = state.collector
    collects = None if collector is None else (collector.wants_summaries, *scope())
    return training(), collects, (state._rng or state.rng)._impl, sample_mask_key()


def add_loss(name: str, value: tp.Any) -> None:
    """Declares a loss. Does nothing unless a `hooks_context` collects it.

    **Arguments:**

    - `name`: ends in `"loss"`, or `"_loss"` is appended. Values of equal names are summed.
    - `value`: a scalar array.

    ```python
    import elegy
    import jax.numpy as jnp


    class Penalised(elegy.Module):
        def call(self, x):
            elegy.add_loss("activity", 0.1 * jnp.sum(x**2))
            return x


    with elegy.hooks_context():
        Penalised()(jnp.ones(5))
        assert elegy.get_losses() == {"activity_loss": 0.5}
    ```
    """
    _add("loss", name, value)


def _add(kind: str, name: str, value: tp.Any) -> None:
    if state.collector is not None:
        if KINDS[kind].is_scalar:
            _require_scalar(kind, name, value)
        state.collector.add(Event(kind, KINDS[kind].full_name(name), None, value))


def _require_scalar(kind: str, name: str, value: tp.Any) -> None:
    is_number = isinstance(value, (bool, int, float, complex))
    if not is_number and getattr(value, "shape", None) != ():
        given = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise HookError(
            f"{_scoped(name)}: add_{kind}({name!r}) takes a scalar, got {given}.\n"
            "  Reduce it, for example with jnp.mean; add_summary takes any arrays."
        )


def add_metric(name: str, value: tp.Any) -> None:
    """Declares a metric. Does nothing unless a `hooks_context` collects it.

    **Arguments:**

    - `name`: the path of the running module is put before it: `"mlp/linear/norm"`. Repeated names are numbered.
    - `value`: a scalar array.

    ```python
    import elegy
    import jax.numpy as jnp


    class Block(elegy.Module):
        def call(self, x):
            elegy.add_metric("largest", jnp.max(x))
            return x


    with elegy.hooks_context():
        Block()(jnp.arange(3))
        assert elegy.get_metrics() == {"block/largest": 2}
    ```
    """
    _add("metric", name, value)


def add_summary(module_or_name: Node | str, value: tp.Any) -> None:
    """Declares a summary. Does nothing unless a `hooks_context(summaries=True)` collects it.

    **Arguments:**

    - `module_or_name`: a name, before which the path of the running module is put, or a module, which is recorded with
      its path. Each module records its outputs in this way when it has run.
    - `value`: any pytree of arrays.

    ```python
    import elegy
    import jax.numpy as jnp


    class Block(elegy.Module):
        def call(self, x):
            elegy.add_summary("doubled", 2 * x)
            return x


    with elegy.hooks_context(summaries=True):
        Block()(jnp.ones(3))
        assert [path for module, path, value in elegy.get_summaries()] == ["block/doubled", "block"]
    ```
    """
    collector = state.collector
    if collector is None or not collector.wants_summaries:
        return
    if not isinstance(module_or_name, Node):
        _add("summary", module_or_name, value)
        return
    is_running = bool(state.name_levels) and state.frames and state.frames[-1].module is module_or_name
    path = "/".join(scope()) if is_running else path_of(module_or_name)
    collector.add(Event("summary", path, module_or_name, value, is_of_module=True))


def get_losses() -> dict[str, tp.Any] | None:
    """The losses collected so far by the innermost `hooks_context`, by name; None outside of one.

    ```python
    import elegy

    assert elegy.get_losses() is None
    with elegy.hooks_context():
        elegy.add_loss("penalty", 0.5)
        assert elegy.get_losses() == {"penalty_loss": 0.5}
    ```
    """
    return _collected("loss")


def _collected(kind: str) -> dict[str, tp.Any] | None:
    collector = state.collector
    return None if collector is None else {event.name: event.value for event in collector.collected(kind)}


def get_metrics() -> dict[str, tp.Any] | None:
    """The metrics collected so far by the innermost `hooks_context`, by path; None outside of one.

    ```python
    import elegy

    with elegy.hooks_context():
        elegy.add_metric("speed", 1.0)
        elegy.add_metric("speed", 2.0)
        assert elegy.get_metrics() == {"speed": 1.0, "speed_1": 2.0}
    ```
    """
    return _collected("metric")


def get_summaries() -> list[tuple[tp.Any, str, tp.Any]] | None:
    """The `(module or None, path, value)` collected so far; None unless a `hooks_context(summaries=True)` is open.

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(2)
    with elegy.hooks_context(summaries=True):
        y = linear(jnp.ones([4, 3]))
        ((module, path, value),) = elegy.get_summaries()
    assert module is linear and path == "linear" and value is y
    ```
    """
    collector = state.collector
    if collector is None or not collector.wants_summaries:
        return None
    return [(event.module, event.name, event.value) for event in collector.collected("summary")]


@contextlib.contextmanager
def name_context(name: str) -> Iterator[None]:
    """Adds a level to the paths of metrics and summaries inside the `with` block. Parameter paths stay as they are.

    ```python
    import elegy

    with elegy.hooks_context(), elegy.name_context("encoder"):
        elegy.add_metric("norm", 1.0)
        assert elegy.get_metrics() == {"encoder/norm": 1.0}
    ```
    """
    state.name_levels.append((len(state.frames), name))
    try:
        yield
    finally:
        state.name_levels.pop()
