"""The hidden state of the library: an object for each thread, and transactions, which keep or undo all of a call."""

from __future__ import annotations

import contextlib
import threading
import typing as tp
from collections.abc import Callable, Hashable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from elegy import tracing
from elegy.errors import TraceError
from elegy.layout import Meta, change, meta_of
from elegy.leaves import Node
from elegy.random import RNG
from elegy.transaction import (
    Conflict,
    Overlay,
    commit,
    commits,
    entry_of,
    install_attribute,
    keep,
    lock,
    restore,
    thread,
    writable,
)

if tp.TYPE_CHECKING:
    from elegy.frames import Frame
    from elegy.hooks import Collector
    from elegy.initialise import InitPass


Result = tp.TypeVar("Result")

DEFAULT_SEED = 42


# The mode of a thread, and whether its collector wants summaries. They are parts of JAX's cache keys, so that for other
# values stock jax.jit too compiles a function again.
_mode = jax.make_user_context(True)
_collecting = jax.make_user_context(None)
# Where code runs. JAX finds the trace of a function again by the function's identity, with the arrays that were in its
# closure then; but not where this has another value than when it was traced.
_place = jax.make_user_context(None)
# Stands for the sample mask, which may be a tracer that no cache must keep alive. None where there is no mask, so that
# nothing is traced again for code that has none.
_masked = jax.make_user_context(None)


class State(threading.local):
    """Everything that a thread keeps between calls."""

    def __init__(self) -> None:
        # Plain Python values.
        self.frames: list[Frame] = []
        self.name_levels: list[tuple[int, str]] = []
        self.init_pass: InitPass | None = None
        # Whether an initializer runs in an init pass: what it draws comes from the key of its parameter.
        self.in_initializer: bool = False
        # Functions that take back what was done outside of overlays, the newest last.
        self.undo: list[Callable[[], object]] = []
        # The modules that a transform of elegy carries in and out of the running trace, by id.
        self.threaded: Mapping[int, Node] = {}
        # The ids of those among them that an init pass did not reach, each with the method: it may create nothing.
        self.unreached: frozenset[tuple[int, str]] = frozenset()
        # How many modules were constructed so far.
        self.constructed: int = 0
        # Whether the code runs within `elegy.debug`.
        self.debugging: bool = False
        # What gives the function to run instead of a method of a module, while `elegy.summary` looks on.
        self.watch: Callable[[Frame, Callable[..., tp.Any]], Callable[..., tp.Any]] | None = None
        # How many calls of elegy.vmap are running, each inside the one before.
        self.maps: int = 0
        # The dtypes in which the innermost module with a policy runs.
        self.dtype_policy: tp.Any = None
        # JAX values.
        self.collector: Collector | None = None
        self.sample_mask: Array | None = None
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
# Transactions
# ---------------------------------------------------------------------------------------------------------------------


class transaction:  # noqa: N801
    """What happens within is kept if the block ends; if it raises, nothing has happened.

    If the top overlay is of the running trace, changes go into it, and are taken back on failure; else an overlay is
    opened, and committed at the end. What a thread keeps besides modules is noted at the start, to go back to.

    **Raises:** `Conflict` if another thread changed the structure of the same modules meanwhile; see `transact`.
    """

    __slots__ = (
        *("collected", "collector", "frame", "journal", "mode", "outer", "overlay", "rng", "saved", "stream", "top"),
        "undone",
    )

    def __enter__(self) -> None:
        self.mode, self.collector, self.rng, self.undone = _mode.value, state.collector, state._rng, len(state.undo)
        self.stream = None if self.rng is None else self.rng.snapshot()
        self.collected: list[tuple[Collector, int]] = []
        collector = self.collector
        while collector is not None:
            self.collected.append((collector, len(collector.events)))
            collector = collector.outer
        frame = state.frames[-1] if state.frames else None
        self.frame = None if frame is None else (frame, frame.position())
        journal = state.init_pass
        self.journal = None if journal is None else (journal, len(journal.creations), len(journal.modules))
        self.top = top = thread.top
        trace = tracing.current()
        # What takes effect comes last: an interrupt before it leaves nothing behind.
        if top is not None and top.trace == trace:
            self.overlay, self.outer, self.saved = None, top.saved, {}
            top.saved = self.saved
        else:
            self.overlay = Overlay(trace)
            self.overlay.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        top, overlay = self.top, self.overlay
        if overlay is None:
            assert top is not None
            if kind is None:
                keep(top, self.saved, self.outer)
            else:
                thread.top = top  # an interrupt may have left another overlay on top
                restore(top, self.saved, self.outer)
                self._go_back()
            return
        overlay.__exit__()
        if kind is not None:
            self._go_back()
            return
        try:
            commit(overlay)
            if top is None:
                del state.undo[self.undone :]
        except BaseException:
            thread.top = top
            self._go_back()
            raise

    def _go_back(self) -> None:
        state._rng, state.collector = self.rng, self.collector
        if training() != self.mode:
            _set_mode(self.mode)
        if self.rng is not None and self.stream is not None:
            self.rng.restore(self.stream)
        for collector, length in self.collected:
            del collector.events[length:]
        if self.frame is not None:
            frame, position = self.frame
            frame.go_back(position)
        if self.journal is not None:
            journal, creations, modules = self.journal
            del journal.creations[creations:], journal.modules[modules:]
        while len(state.undo) > self.undone:
            state.undo.pop()()


def transact(function: Callable[[], Result]) -> Result:
    """Runs a function in a transaction, again if another thread was faster."""
    while True:
        begun = commits.number
        try:
            with transaction():
                return function()
        except (Conflict, Exception) as error:
            if not is_to_be_run_again(error, begun):
                raise


def is_to_be_run_again(error: BaseException, begun: int) -> bool:
    """Whether a transaction failed, or may have failed, because another thread changed modules meanwhile.

    - `begun`: the number of commits when it began.
    """
    if thread.top is not None:
        return False  # only the outermost transaction is run again
    with lock:
        return isinstance(error, Conflict) or commits.number != begun


def write(module: Node, name: str, value: tp.Any, created: bool = False) -> None:
    """Sets an attribute of a module."""
    install_attribute(type(module), name)
    version = writable(module)
    version.__dict__[name] = value
    if version is not module and (entry := entry_of(module)) is not None:
        entry.written.add(name)
        if created:
            entry.created[name] = value


def remove(module: Node, name: str) -> None:
    """Takes an attribute from a module, if it has it."""
    version = writable(module)
    if version.__dict__.pop(name, None) is not None and version is not module:
        if (entry := entry_of(module)) is not None:
            entry.written.add(name)


def write_meta(module: Node, meta: Meta | None = None, ties: bool = False, created: bool = False) -> None:
    """Replaces the bookkeeping, if given, and marks the structure as changed; with `ties` the submodules too."""
    version = writable(module)
    before = meta_of(version)
    change(version, meta, ties=ties)
    top = thread.top
    if version is not module and top is not None:
        entry, top.changed = top.entries[id(module)], True
        entry.changed = True
        entry.created_meta |= created
        entry.created_flags |= created and meta is not None and _flags(meta) != _flags(before)


def _flags(meta: Meta) -> tuple[tp.Any, ...]:
    return meta.trainable, meta.frozen, meta.dtype_policy


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


# ---------------------------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------------------------


def sample_mask() -> Bool[Array, "samples"] | None:
    """Which samples of the batch that is being processed are real, or None where all are.

    A batch may be padded to a full one with rows that are no samples, so that nothing is compiled for another size.
    What is computed for each row does not matter then; but what looks at several, such as statistics of the batch,
    leaves out the rows for which this is False. `BatchNormalization` and `ActivityRegularization` do.

    The mask is that of the nearest `sample_mask_context` around. It is meant for arrays whose first axis are the
    samples. Code that sees another axis there, as within a `jax.vmap` over samples, on a part of the batch, or in a
    `jax.shard_map`, opens a context of its own, with the mask of what it sees, or with None.

    ```python
    import elegy
    import jax.numpy as jnp


    class Centre(elegy.Module):
        def call(self, x):
            mask = elegy.sample_mask()
            return x - jnp.mean(x, axis=0, where=None if mask is None else mask[:, None], keepdims=True)


    x = jnp.array([[1.0], [3.0], [100.0]])
    assert elegy.sample_mask() is None
    with elegy.sample_mask_context(jnp.array([True, True, False])):
        assert (Centre()(x)[:2] == jnp.array([[-1.0], [1.0]])).all()
    ```
    """
    return state.sample_mask


@contextlib.contextmanager
def sample_mask_context(mask: Bool[Array | np.ndarray, "samples"] | None) -> Iterator[None]:
    """Says for the duration of a `with` block, and for this thread, which samples of the batch are real.

    A compiled function that is to run with different masks takes the mask as an argument, and opens the context inside.
    Around a compiled function the mask is a constant of it, and each other one is compiled anew.

    **Arguments:**

    - `mask`: an array of bools, one for each row of the batch, or None where all are real, or where the rows are no
      samples. What `sample_mask` returns.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    norm = elegy.nn.BatchNormalization().init(jnp.ones([4, 3]))


    def normalised(x, mask):
        with elegy.sample_mask_context(mask):
            return norm(x)


    step = elegy.jit(normalised, modules=norm)
    x = jax.random.normal(jax.random.key(0), [4, 3])
    y = step(x, jnp.array([True, True, True, False]))
    assert jnp.allclose(y[:3].mean(0), 0, atol=1e-6)
    assert jnp.allclose(norm.mean, 0.01 * x[:3].mean(0))
    ```
    """
    if mask is not None:
        mask = _as_mask(mask)
    before, state.sample_mask = state.sample_mask, mask
    try:
        with _masked(_token(mask)):
            yield
    finally:
        state.sample_mask = before


def _as_mask(mask: tp.Any) -> Array:
    dtype, shape = getattr(mask, "dtype", None), np.shape(mask)
    if dtype != np.bool_ or len(shape) != 1:
        given = type(mask).__name__ if dtype is None else f"{dtype}{list(shape)}"
        raise TypeError(
            f"elegy.sample_mask_context takes an array of bools, one for each row of the batch, got {given}.\n"
            "  Weights of samples are no mask: mask = weights > 0."
        )
    if isinstance(mask, Tracer):
        return mask
    with jax.ensure_compile_time_eval():
        return jnp.asarray(mask)


def _token(mask: Array | None) -> Hashable:
    """What is a part of JAX's cache keys in the place of a mask. Masks of equal values have one, so that a loop without
    a compiled step does not compile each operation again for each batch."""
    if mask is None:
        return None
    if isinstance(mask, Tracer) or not mask.is_fully_addressable:
        return object()
    return np.asarray(mask).tobytes(), mask.sharding


def sample_mask_key() -> Hashable:
    """What a traced function depends on in the place of the sample mask."""
    return _masked.value


def placed(place: Hashable) -> tp.Any:
    """A context in which JAX uses no trace that it made with another `place`."""
    return _place(place)


def collecting(collector: Collector | None) -> tp.Any:
    """A context in which compiled functions declare what a collector collects."""
    return _collecting(None if collector is None else collector.wants_summaries)


def watching(watch: Hashable) -> tp.Any:
    """Within it JAX finds nothing again that it traced before."""
    return _collecting(watch)
