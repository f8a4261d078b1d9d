"""The hidden state of the library, all of it: an object for each thread, and the log by which a call is undone."""

from __future__ import annotations

import contextlib
import threading
import typing as tp
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import jax

from elegy import tracing
from elegy.errors import TraceError
from elegy.layout import Meta, change, meta_of
from elegy.leaves import Node
from elegy.random import RNG

if tp.TYPE_CHECKING:
    from elegy.frames import Frame
    from elegy.hooks import Collector
    from elegy.initialise import InitPass


DEFAULT_SEED = 42


# What hooks answer is fixed while a function is compiled, also by stock jax.jit: these are parts of its cache key. They
# belong to a thread.
_mode = jax.make_user_context(True)
_collecting = jax.make_user_context(None)
# Where code runs. JAX finds a function that it has traced by its identity, together with the arrays in its closure, but
# never in another context than the one in which it traced it.
_place = jax.make_user_context(None)


class State(threading.local):
    """Everything that a thread keeps between calls."""

    def __init__(self) -> None:
        # Plain Python values.
        self.frames: list[Frame] = []
        self.name_levels: list[tuple[int, str]] = []
        self.init_pass: InitPass | None = None
        # Whether an initializer runs in an init pass: what it draws comes from the key of its parameter.
        self.in_initializer: bool = False
        # How to undo what the running call has done so far; None outside of calls.
        self.log: list[Undo] | None = None
        # Where in it the first change of each attribute is, as far as the innermost level made it.
        self.changed: dict[tuple[int, str], int] = {}
        # The modules that a transform of elegy carries in and out of the running trace, by id.
        self.threaded: Mapping[int, Node] = {}
        # Those among them that an init pass did not reach, with the method.
        self.unreached: frozenset[tuple[int, str]] = frozenset()
        # How many modules were constructed so far.
        self.constructed: int = 0
        # Whether the code runs within `elegy.debug`.
        self.debugging: bool = False
        # How many functions that elegy.vmap maps are running in each other.
        self.maps: int = 0
        # The dtypes in which the innermost module with a policy runs.
        self.dtype_policy: tp.Any = None
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


# ---------------------------------------------------------------------------------------------------------------------
# Undoing: an exception leaves nothing behind
# ---------------------------------------------------------------------------------------------------------------------


class Undo(tp.NamedTuple):
    """How to take one change back, and whether it is a creation, which an init pass keeps.

    - `place`: which attribute changed. Of several changes of one attribute only the first is kept: it has the value to
      go back to, and the others would keep all arrays in between alive.
    """

    back: Callable[[], None]
    created: bool
    module: Node
    place: tuple[int, str] | None = None


@contextlib.contextmanager
def undoing(created_only: bool = False, forget: Callable[[Node], bool] | None = None):
    """Takes back every change of the body if it fails.

    On success, `created_only` takes back what is not a creation, and the changes of the modules that `forget` names
    become final, as their caller restores them.
    """
    outermost, collector, rng, mode = state.log is None, state.collector, state._rng, training()
    rng_before = None if rng is None else rng.snapshot()
    events_before: list[tuple[Collector, int]] = []
    outer_collector = collector
    while outer_collector is not None:
        events_before.append((outer_collector, len(outer_collector.events)))
        outer_collector = outer_collector.outer
    if state.log is None:
        state.log = []
    entries, outer = state.log, state.changed
    start, state.changed = len(entries), {}
    try:
        yield
    except BaseException:
        _take_back(entries[start:])
        del entries[start:]
        state._rng, state.collector = rng, collector
        if training() != mode:
            _set_mode(mode)
        if rng is not None and rng_before is not None:
            rng.restore(rng_before)
        for changed_collector, length in events_before:
            del changed_collector.events[length:]
        raise
    else:
        if created_only:
            _take_back([undo for undo in entries[start:] if not undo.created])
            entries[start:] = [undo for undo in entries[start:] if undo.created]
        if forget is not None:
            entries[start:] = [undo for undo in entries[start:] if undo is not _NOTHING and not forget(undo.module)]
        if created_only or forget is not None:
            state.changed = {undo.place: start + i for i, undo in enumerate(entries[start:]) if undo.place}
        if not outermost:
            outer = _merged(entries, outer, state.changed)
    finally:
        state.changed = outer
        if outermost:
            state.log = None


def _merged(entries: list[Undo], outer: dict[tp.Any, int], inner: dict[tp.Any, int]) -> dict[tp.Any, int]:
    """The changes of a level and of an inner one, which came later. Costs what the smaller one has."""
    smaller, larger = (inner, outer) if len(inner) <= len(outer) else (outer, inner)
    for place, position in smaller.items():
        if place in larger:
            entries[max(position, larger[place])] = _NOTHING
            position = min(position, larger[place])
        larger[place] = position
    while entries and entries[-1] is _NOTHING:
        entries.pop()
    return larger


def _take_back(entries: Sequence[Undo]) -> None:
    for undo in reversed(entries):
        undo.back()


def log(module: Node, back: Callable[[], None], created: bool = False, place: tuple[int, str] | None = None) -> None:
    if state.log is None or place in state.changed:
        return
    if place is not None:
        state.changed[place] = len(state.log)
    state.log.append(Undo(back, created, module, place))


_NOTHING = Undo(lambda: None, False, tp.cast(tp.Any, None))
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

        log(module, back, created, None if created else (id(attributes), name))
    attributes[name] = value


def write_meta(module: Node, meta: Meta, ties: bool = False, created: bool = False) -> None:
    """Replaces a module's bookkeeping, so that it can be taken back."""
    old = meta_of(module)
    log(module, lambda: change(module, old), created)
    change(module, meta, ties=ties)


# ---------------------------------------------------------------------------------------------------------------------
# Mode
# ---------------------------------------------------------------------------------------------------------------------


def training() -> bool:
    """Whether training is happening: True unless `training_context` or `set_training` said otherwise.

    ```python
    import elegy
    import jax.numpy as jnp


    class Noise(elegy.Module):
        def call(self, x):
            return x + 1 if elegy.training() else x


    y, _ = Noise().apply(jnp.zeros(3), training=False)
    assert not y.any()
    ```
    """
    return _mode.value


is_training = training


def set_training(training: bool) -> None:
    """Sets the mode of this thread, until it is set again or the `training_context` around ends.

    **Raises:** `TraceError` inside a transform or an init pass, where the mode is fixed; there `training_context` sets
    it for a part of the code.

    ```python
    import elegy
    import jax.numpy as jnp

    dropout, x = elegy.nn.Dropout(0.5), jnp.ones(3)
    elegy.set_training(False)
    assert (dropout(x) == x).all()
    elegy.set_training(True)
    ```
    """
    if tracing.is_traced():
        raise TraceError(
            "elegy.set_training was called inside a jax transform, and could not be undone or repeated when the "
            "compiled function runs.\n"
            "  Call it outside, or use `with elegy.training_context(...):` inside."
        )
    _set_mode(training)


def _set_mode(training: bool) -> None:
    _mode(bool(training)).__enter__()


@contextlib.contextmanager
def training_context(training: bool) -> Iterator[None]:
    """Sets the mode of this thread for the duration of a `with` block.

    ```python
    import elegy

    with elegy.training_context(False):
        assert not elegy.training()
    assert elegy.training()
    ```
    """
    with _mode(bool(training)):
        yield


def placed(place: Hashable) -> tp.Any:
    """Within it JAX finds nothing again that it traced in another place."""
    return _place(place)


def collecting(collector: Collector | None) -> tp.Any:
    """Within it compiled functions are those that declare what a collector collects."""
    return _collecting(None if collector is None else collector.wants_summaries)
