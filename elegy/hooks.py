"""Hooks: what a running module can ask of its surroundings.

All hidden state of the library is the one thread-local object `state` below: the stack of running methods, the mode,
the collectors, the random stream, and the log by which a failed call is undone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import threading
import typing as tp
import warnings
import weakref

import jax
import numpy as np

from elegy import tracing
from elegy.errors import LostUpdateWarning, ModuleOrderError, NameCollisionError, TraceError
from elegy.pytree import (
    Meta,
    Node,
    Record,
    change,
    children,
    meta_of,
    relayout,
    set_pending,
    static_key,
    step_parts,
)
from elegy.random import RNG, KeyLike

if tp.TYPE_CHECKING:
    from elegy.initialise import InitPass

DEFAULT_SEED = 42
RNG_ATTRIBUTE = "rng_key"


class State(threading.local):
    """Everything that a thread keeps between calls."""

    def __init__(self) -> None:
        # Plain Python values.
        self.frames: list[Frame] = []
        self.training: bool = True
        self.name_levels: list[tuple[int, str]] = []
        self.init_pass: InitPass | None = None
        # How to undo what the running call has done so far; None outside of calls.
        self.log: list[Undo] | None = None
        # The modules that a transform of elegy carries in and out of the running trace, by id.
        self.threaded: tp.Mapping[int, Node] = {}
        # JAX values.
        self.collector: Collector | None = None
        self._rng: RNG | None = None

    @property
    def rng(self) -> RNG:
        if self._rng is None:
            with jax.ensure_compile_time_eval():
                self._rng = RNG(DEFAULT_SEED)
            self._rng._born = tracing.EAGER
        return self._rng

    @rng.setter
    def rng(self, rng: RNG | None) -> None:
        self._rng = rng


state = State()

# Held while modules are made to hold tracers (an init pass, the trace of a transform that threads them), so that other
# threads do not see those.
lock = threading.RLock()


# ---------------------------------------------------------------------------------------------------------------------
# Undoing: an exception leaves nothing behind
# ---------------------------------------------------------------------------------------------------------------------


class Undo(tp.NamedTuple):
    """How to take one change back, and whether it is a creation, which an init pass keeps."""

    back: tp.Callable[[], None]
    created: bool
    module: int


@contextlib.contextmanager
def undoing(created_only: bool = False, forget: tp.Container[int] = ()):
    """Takes back every change of the body if it fails.

    On success, `created_only` takes back what is not a creation, and the changes of the modules in `forget` (by id) become
    final, as their caller restores them.
    """
    outer, collector, rng = state.log, state.collector, state._rng
    rng_before = None if rng is None else rng.snapshot()
    events_before = None if collector is None else len(collector.events)
    mine: list[Undo] = []
    state.log = mine
    try:
        yield
    except BaseException:
        _take_back(mine)
        mine.clear()
        state._rng, state.collector = rng, collector
        if rng is not None:
            rng.restore(rng_before)
        if collector is not None:
            collector.shorten(events_before)
        raise
    else:
        if created_only:
            _take_back([undo for undo in mine if not undo.created])
        if outer is not None:
            outer.extend(
                undo for undo in mine if (undo.created or not created_only) and undo.module not in forget
            )
    finally:
        state.log = outer


def _take_back(entries: tp.Sequence[Undo]) -> None:
    for undo in reversed(entries):
        undo.back()


def log(module: Node, back: tp.Callable[[], None], created: bool = False) -> None:
    if state.log is not None:
        state.log.append(Undo(back, created, id(module)))


_ABSENT = object()


def write(module: Node, name: str, value: tp.Any, created: bool = False) -> None:
    """Sets an attribute of a constructed module, so that it can be taken back."""
    attributes = module.__dict__
    if state.log is not None:
        old = attributes.get(name, _ABSENT)

        def back() -> None:
            if old is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = old

        state.log.append(Undo(back, created, id(module)))
    attributes[name] = value


def write_meta(module: Node, meta: Meta, ties: bool = False, created: bool = False) -> None:
    """Replaces a module's bookkeeping, so that it can be taken back."""
    old = meta_of(module)
    log(module, lambda: change(module, old), created)
    change(module, meta, ties=ties)


# ---------------------------------------------------------------------------------------------------------------------
# Updates that nobody returns
# ---------------------------------------------------------------------------------------------------------------------


def note_update(module: Node, name: str) -> None:
    """Inside a jax transform: remembers an update until the module is flattened, and warns if it never is."""
    if module._born == tracing.EAGER or id(module) in state.threaded or state.init_pass is not None:
        return
    pending = getattr(module, "_pending", None)
    if pending is None:
        pending = []
        set_pending(module, pending)
        weakref.finalize(module, _warn_if_lost, pending, path_of(module)).atexit = False
    pending.append(name)
    relayout(module)


def forget_updates(module: Node) -> None:
    pending = getattr(module, "_pending", None)
    if pending is not None:
        pending.clear()


def _warn_if_lost(pending: list[str], path: str) -> None:
    if pending:
        names = ", ".join(sorted(set(pending)))
        warnings.warn(
            LostUpdateWarning(
                f"{path}: the update of {names} inside a jax transform was lost, since the changed module was not returned.\n"
                "  Return the module from the transformed function, use the transform of the same name in elegy with "
                "modules=, or run the module with elegy.training_context(False)."
            ),
            stacklevel=2,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Frames: which method of which module is running
# ---------------------------------------------------------------------------------------------------------------------


def default_name(cls: type) -> str:
    """`Conv2D` -> `conv2d`, `BatchNormalization` -> `batch_normalization`, `MLP` -> `mlp`."""
    name = re.sub(r"\W+", "", cls.__name__)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    return re.sub(r"__+", "_", name).lstrip("_") or "module"


def name_of(module: Node) -> str:
    name = module.__dict__.get("name")
    return name if isinstance(name, str) else default_name(type(module))


class Frame:
    """One running method of one module. `method` is `__init__` while the module is being constructed."""

    __slots__ = ("_below", "_parts", "constructed", "first", "index", "method", "module", "names", "parent", "records")

    def __init__(self, module: Node, method: str):
        self.module = module
        self.method = method
        frames = state.frames
        self.parent = frames[-1] if frames else None
        records = meta_of(module).hooks.get(method) if method != "__init__" else None
        # On the first run of a method the modules that it creates are recorded; later runs must match the record.
        self.first = records is None
        self.records: list[Record] = [] if records is None else list(records)
        self.index = 0
        self.names: dict[str, int] = {}
        self._parts: tuple[str, ...] | None = None
        self._below: dict[int, tuple[str, ...]] | None = None

    @property
    def building(self) -> bool:
        return self.method == "__init__"

    @property
    def parts(self) -> tuple[str, ...]:
        """The path of the module, the root's name first."""
        if self._parts is None:
            name = (name_of(self.module),)
            if self.parent is None or self.parent.building:
                self._parts = name
            elif self.parent.module is self.module:
                self._parts = self.parent.parts
            else:
                self._parts = self.parent.parts + (self.parent.find(self.module) or name)
        return self._parts

    def find(self, module: Node) -> tuple[str, ...] | None:
        """The path from this frame's module to a module below it."""
        if self._below is None or id(module) not in self._below:
            self._below = {id(child): step_parts(self.module, step) for step, child in reversed(children(self.module))}
        return self._below.get(id(module)) or path_below(self.module, module)

    def create(self, cls: type, arguments: tuple[tp.Any, ...], construct: tp.Callable[[], Node]) -> Node:
        """The module that the running method creates at this position: a new one, or that of the first run."""
        position = self.index
        if not self.first:
            found = self._match(position, cls, arguments)
            self.index += 1
            return found
        require_same_trace(self.module, f"created {cls.__name__}")
        module = construct()
        attribute = self._free_name(module)
        self.index += 1
        write(self.module, attribute, module, created=True)
        change(self.module)
        if self._below is not None:
            self._below[id(module)] = (attribute,)
        self.records.append(Record(attribute, arguments, call_site()))
        return module

    def _match(self, position: int, cls: type, arguments: tuple[tp.Any, ...]) -> Node:
        where = f"{'/'.join(self.parts)}.{self.method}"
        if position >= len(self.records):
            raise ModuleOrderError(
                f"{where} created {cls.__name__} at position {position} ({call_site()}), but its first run created only "
                f"{len(self.records)} modules.\n  Create every module on every run; use it conditionally."
            )
        record = self.records[position]
        module = self.module.__dict__[record.attribute]
        found = type(module)
        if found is not cls and (found.__module__, found.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ModuleOrderError(
                f"{where} created {cls.__name__} at position {position} ({call_site()}), where its first run created "
                f"{found.__name__} ({record.site}).\n"
                "  Create modules unconditionally and in one order; use them in any order, or not at all."
            )
        if "function" in cls.__dict__ and found is not cls:
            # A class made anew by to_module on each run: its function closes over this run's values, not the first one's.
            type.__setattr__(found, "function", cls.__dict__["function"])
        if arguments != record.arguments:
            raise ModuleOrderError(
                f"{where} created {cls.__name__} at position {position} ({call_site()}) with {_show(arguments)}, but its "
                f"first run ({record.site}) used {_show(record.arguments)}.\n"
                "  A module keeps the arguments of its first creation: use the same ones, or another module."
            )
        return module

    def _free_name(self, module: Node) -> str:
        base = name_of(module)
        explicit = "name" in module.__dict__
        if explicit and base not in self.names and is_taken(self.module, base):
            raise NameCollisionError(
                f"{'/'.join(self.parts)}: the name {base!r} given to {type(module).__name__} ({call_site()}) is already an "
                f"attribute or a method of {type(self.module).__name__}.\n  Choose another name=."
            )
        number = self.names.get(base, 0)
        attribute = f"{base}_{number}" if number else base
        while is_taken(self.module, attribute):
            number += 1
            attribute = f"{base}_{number}"
        self.names[base] = number + 1
        return attribute

    def close(self) -> None:
        """Called when the method has returned: records a first run, and refuses a later one that created fewer modules."""
        if self.first:
            meta = meta_of(self.module)
            hooks = {**meta.hooks, self.method: tuple(self.records)}
            write_meta(self.module, dataclasses.replace(meta, hooks=hooks, initialized=True), created=True)
        elif self.index < len(self.records):
            record = self.records[self.index]
            raise ModuleOrderError(
                f"{'/'.join(self.parts)}.{self.method} created {self.index} modules, fewer than the {len(self.records)} of "
                f"its first run; the first one missing is {record.attribute} ({record.site}).\n"
                "  Create every module on every run; use it conditionally."
            )


def _show(arguments: tuple[tp.Any, ...]) -> str:
    def value(key: tp.Any) -> str:
        kind, content = key
        if kind is float and isinstance(content, str):
            return repr(float.fromhex(content)) if "x" in content else content
        if isinstance(content, tuple):
            return "[" + ", ".join(value(item) for item in content) + "]"
        return getattr(content, "__name__", repr(content))

    shown = [value(key) if isinstance(name, int) else f"{name}={value(key)}" for name, key in arguments]
    return f"({', '.join(shown)})"


def plain_arguments(args: tuple[tp.Any, ...], kwargs: dict[str, tp.Any]) -> tuple[tp.Any, ...]:
    """The constructor arguments that are plain data, in a form that `==` compares strictly."""
    named = [*enumerate(args), *sorted(kwargs.items())]
    return tuple((name, static_key(value)) for name, value in named if _is_plain(value))


def _is_plain(value: tp.Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.dtype, np.generic, type))


def is_taken(module: Node, name: str) -> bool:
    return name in module.__dict__ or any(name in cls.__dict__ for cls in type(module).__mro__)


_HERE = os.path.dirname(os.path.abspath(__file__))
_CORE = {os.path.join(_HERE, name) for name in ("hooks.py", "module.py", "initialise.py", "parameters.py")}


def call_site() -> str:
    """File and line of the nearest caller outside the core."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename in _CORE:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def path_below(root: Node, module: Node) -> tuple[str, ...] | None:
    """The path from `root` to a module, or None."""
    queue: list[tuple[Node, tuple[str, ...]]] = [(root, ())]
    seen = {id(root)}
    for node, path in queue:
        for step, child in children(node):
            if id(child) not in seen:
                seen.add(id(child))
                parts = (*path, *step_parts(node, step))
                if child is module:
                    return parts
                queue.append((child, parts))
    return None


def parts_of(module: Node) -> tuple[str, ...]:
    for frame in reversed(state.frames):
        if frame.module is module:
            return frame.parts
    for frame in reversed(state.frames):
        if not frame.building:
            below = path_below(frame.module, module)
            if below is not None:
                return frame.parts + below
    for root in state.threaded.values():
        below = path_below(root, module)
        if below is not None:
            return (name_of(root), *below)
    return (name_of(module),)


def path_of(module: Node, name: str | None = None) -> str:
    """The readable path of a module, or of one of its parameters: `mlp/linear_1/w`."""
    return "/".join(parts_of(module) if name is None else (*parts_of(module), name))


def require_same_trace(module: Node, what: str) -> None:
    """Refuses to change a module of an outer trace."""
    if module._born != tracing.current():
        raise TraceError(
            f"{path_of(module)}: {what} inside a jax transform, but the module belongs to the code outside of it.\n"
            "  The change is a value of the trace and could not leave it. There are two ways out:\n"
            "  1. Make the module an argument of the transformed function and return it: "
            "jax.jit(lambda m, x: (m(x), m))(module, x).\n"
            "  2. Use the transform of the same name in elegy and list the module: elegy.jit(f, modules=module)(x)."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Collected values: losses, metrics, summaries
# ---------------------------------------------------------------------------------------------------------------------


class Event(tp.NamedTuple):
    """One call of add_loss, add_metric or add_summary, before repeated names are resolved."""

    kind: str
    name: str
    module: Node | None
    value: tp.Any


class Collector:
    """What a `hooks_context` collects. The events are the truth; the three collections are derived from them."""

    def __init__(self, summaries: bool = False, outer: Collector | None = None):
        self.born = tracing.current()
        self.outer = outer if outer is not None and outer.wants_summaries and not summaries else None
        self.wants_summaries = summaries or self.outer is not None
        self.events: list[Event] = []
        self.losses: dict[str, tp.Any] = {}
        self.metrics: dict[str, tp.Any] = {}
        self.summaries: list[tuple[Node | None, str, tp.Any]] | None = [] if summaries else None
        if self.outer is not None:
            self.summaries = self.outer.summaries

    def add(self, event: Event) -> None:
        if self.born != tracing.current():
            raise TraceError(
                f"elegy.add_{event.kind}({event.name!r}) was called inside a jax transform, but the hooks_context that "
                "collects it is outside.\n  The value could not leave the transform. There are two ways out:\n"
                "  1. Open elegy.hooks_context() inside the transformed function and return what it collects.\n"
                "  2. Use the transform of the same name in elegy (elegy.jit, elegy.value_and_grad, …), whose outputs they are."
            )
        if event.kind == "summary" and self.outer is not None:
            self.outer.add(event)
            return
        self.events.append(event)
        self._derive(event)

    def _derive(self, event: Event) -> None:
        if event.kind == "loss":
            losses = self.losses
            losses[event.name] = losses[event.name] + event.value if event.name in losses else event.value
        elif event.kind == "metric":
            self.metrics[_numbered(event.name, self.metrics)] = event.value
        elif self.summaries is not None:
            name = event.name
            if event.module is None:
                name = _numbered(name, {entry[1] for entry in self.summaries if entry[0] is None})
            self.summaries.append((event.module, name, event.value))

    def shorten(self, length: int | None) -> None:
        """Forgets all but the first events."""
        if length is None or len(self.events) == length:
            return
        kept = self.events[:length]
        self.events.clear()
        self.losses.clear()
        self.metrics.clear()
        if self.summaries is not None and self.outer is None:
            self.summaries.clear()
        for event in kept:
            self.events.append(event)
            self._derive(event)


def _numbered(name: str, taken: tp.Container[str]) -> str:
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


@contextlib.contextmanager
def collecting(collector: Collector | None):
    before, state.collector = state.collector, collector
    try:
        yield collector
    finally:
        state.collector = before


@contextlib.contextmanager
def hooks_context(summaries: bool = False) -> tp.Iterator[None]:
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
    with collecting(Collector(summaries, state.collector)):
        yield


def _scope() -> list[str]:
    """The levels of the current path: modules that run, and name contexts."""
    parts: list[str] = []
    frames = [frame for frame in state.frames if not frame.building]
    if frames and not state.name_levels:
        return list(frames[-1].parts)
    shown: tuple[str, ...] = ()
    for depth in range(len(state.frames) + 1):
        parts.extend(name for level, name in state.name_levels if level == depth)
        if depth < len(state.frames) and not state.frames[depth].building:
            own = state.frames[depth].parts
            parts.extend(own[len(shown) :] if own[: len(shown)] == shown else own)
            shown = own
    return parts


def _scoped(name: str) -> str:
    return "/".join([*_scope(), name])


def add_loss(name: str, value: tp.Any) -> None:
    """Declares a loss. Does nothing unless a `hooks_context` collects it.

    **Arguments:**

    - `name`: ends in `"loss"`, or `"_loss"` is appended. Values of equal names are summed.
    - `value`: a scalar array.
    """
    if state.collector is not None:
        name = name if name.endswith("loss") else f"{name}_loss"
        state.collector.add(Event("loss", name, None, value))


def add_metric(name: str, value: tp.Any) -> None:
    """Declares a metric. Does nothing unless a `hooks_context` collects it.

    **Arguments:**

    - `name`: the path of the running module is put before it: `"mlp/linear/norm"`. Repeated names are numbered.
    - `value`: a scalar array.
    """
    if state.collector is not None:
        state.collector.add(Event("metric", _scoped(name), None, value))


def add_summary(module_or_name: Node | str, value: tp.Any) -> None:
    """Declares a summary. Does nothing unless a `hooks_context(summaries=True)` collects it.

    **Arguments:**

    - `module_or_name`: a name, before which the path of the running module is put, or a module, which is recorded with
      its path. Each module records its outputs in this way when it has run.
    - `value`: any pytree of arrays.
    """
    if state.collector is not None and state.collector.wants_summaries:
        if isinstance(module_or_name, Node):
            event = Event("summary", path_of(module_or_name), module_or_name, value)
        else:
            event = Event("summary", _scoped(module_or_name), None, value)
        state.collector.add(event)


def get_losses() -> dict[str, tp.Any] | None:
    """The losses collected so far by the innermost `hooks_context`, by name; None outside of one."""
    return None if state.collector is None else state.collector.losses


def get_metrics() -> dict[str, tp.Any] | None:
    """The metrics collected so far by the innermost `hooks_context`, by path; None outside of one."""
    return None if state.collector is None else state.collector.metrics


def get_summaries() -> list[tuple[tp.Any, str, tp.Any]] | None:
    """The `(module or None, path, value)` collected so far; None unless a `hooks_context(summaries=True)` is open."""
    return None if state.collector is None else state.collector.summaries


@contextlib.contextmanager
def name_context(name: str) -> tp.Iterator[None]:
    """Adds a level to the paths of metrics and summaries inside the `with` block. Parameter paths stay as they are."""
    state.name_levels.append((len(state.frames), name))
    try:
        yield
    finally:
        state.name_levels.pop()


# ---------------------------------------------------------------------------------------------------------------------
# Mode and randomness
# ---------------------------------------------------------------------------------------------------------------------


def training() -> bool:
    """Whether training is happening: True unless `training_context` or `set_training` said otherwise."""
    return state.training


is_training = training


def set_training(training: bool) -> None:
    """Sets the mode of this thread."""
    state.training = bool(training)


@contextlib.contextmanager
def training_context(training: bool) -> tp.Iterator[None]:
    """Sets the mode of this thread for the duration of a `with` block.

    ```python
    import elegy

    with elegy.training_context(False):
        assert not elegy.training()
    assert elegy.training()
    ```
    """
    before, state.training = state.training, bool(training)
    try:
        yield
    finally:
        state.training = before


def is_initializing() -> bool:
    """Whether an init pass is running: the computation is abstract and its results are thrown away."""
    return state.init_pass is not None


def get_module() -> tp.Any:
    """The module whose method is running, or None."""
    frames = state.frames
    return frames[-1].module if frames else None


def get_rng() -> RNG:
    """The random stream of this thread."""
    return state.rng


def set_rng(rng: RNG | KeyLike) -> None:
    """Replaces the random stream of this thread; a seed or a key is made into an `RNG`.

    Every thread starts with `RNG(42)`.
    """
    state.rng = rng if isinstance(rng, RNG) else RNG(rng)


@contextlib.contextmanager
def rng_context(rng: RNG | KeyLike) -> tp.Iterator[RNG]:
    """Uses another random stream for the duration of a `with` block."""
    before = state._rng
    state.rng = inner = rng if isinstance(rng, RNG) else RNG(rng)
    try:
        yield inner
    finally:
        state._rng = before


def next_rng_key() -> jax.Array:
    """A new typed key.

    It comes from the random stream of the thread, or from the `rng` given to `init` or `apply`. Inside a stock `jax`
    transform, which cannot carry that stream, a module that came in as an argument draws from a key of its own: an
    array of its state, made when the module was initialised, which it advances and which leaves with it.

    ```python
    import elegy
    import jax

    noise = jax.random.normal(elegy.next_rng_key(), [3])
    ```
    """
    rng = state.rng
    frame = state.frames[-1] if state.frames else None
    if rng._born == tracing.current():
        if state.init_pass is not None and frame is not None and not frame.building:
            state.init_pass.create_rng_key(frame.module)
        return rng()
    if frame is not None and frame.module._born == tracing.current():
        return _own_key(frame.module)
    raise TraceError(
        f"{'/'.join(_scope()) or 'elegy'}: next_rng_key() was called inside a jax transform, but the random stream belongs "
        "to the code outside of it, so every call would draw the same key. There are two ways out:\n"
        "  1. Pass a key as an argument of the transformed function: m.apply(x, rng=key), or elegy.rng_context(key).\n"
        "  2. Use the transform of the same name in elegy, which carries the stream through: elegy.jit(f, modules=module)."
    )


def _own_key(module: Node) -> jax.Array:
    data = module.__dict__.get(RNG_ATTRIBUTE)
    if data is None:
        raise TraceError(
            f"{path_of(module)}: next_rng_key() was called inside a jax transform, and the module has no key of its own, "
            "since it drew none when it was initialised.\n"
            "  Pass a key as an argument of the transformed function: m.apply(x, rng=key), or elegy.rng_context(key)."
        )
    pair = jax.random.split(jax.random.wrap_key_data(data))
    write(module, RNG_ATTRIBUTE, jax.random.key_data(pair[0]))
    note_update(module, RNG_ATTRIBUTE)
    return pair[1]


# ---------------------------------------------------------------------------------------------------------------------
# The whole context at once
# ---------------------------------------------------------------------------------------------------------------------


class StaticContext(tp.NamedTuple):
    """The part of a thread's context that is plain Python."""

    training: bool
    initializing: bool
    collecting: bool
    summaries: bool
    names: tuple[str, ...]
    module: tp.Any


class DynamicContext(tp.NamedTuple):
    """The part of a thread's context that JAX computes with."""

    rng: RNG


def get_static_context() -> StaticContext:
    """Mode, collection and position of this thread."""
    collector = state.collector
    return StaticContext(
        state.training,
        is_initializing(),
        collector is not None,
        collector is not None and collector.wants_summaries,
        tuple(_scope()),
        get_module(),
    )


def get_dynamic_context() -> DynamicContext:
    """A copy of the random stream of this thread."""
    return DynamicContext(state.rng.fork())


def set_context(static: StaticContext, dynamic: DynamicContext) -> None:
    """Restores the mode and the random stream of this thread. Collection and position belong to their `with` blocks."""
    state.training = static.training
    state.rng = dynamic.rng.fork()
