"""Running a method of a module: in a frame and a transaction of its own, after an init pass if it never ran."""

from __future__ import annotations

import contextlib
import functools
import types
import typing as tp
import weakref
from collections.abc import Callable

import jax
from jax.core import Tracer

from elegy import checks, leaves, pytree, tracing
from elegy.captures import captures, note_capture, placed_if_captured
from elegy.dtype_policy import computing
from elegy.errors import ElegyError, show_value
from elegy.frames import Frame, class_of, note_update
from elegy.habits import hint_for_call
from elegy.hooks import add_summary
from elegy.initialise import NeedsInitPass, run_init_pass
from elegy.layout import meta_of
from elegy.leaves import Node
from elegy.state import is_to_be_run_again, state, transaction
from elegy.tracebacks import shorten
from elegy.transaction import Conflict, belongs, commits, held, writable


def run_method(module: Node, method: str, function: Callable[..., tp.Any], args: tp.Any, kwargs: tp.Any) -> tp.Any:
    """Runs a method of a module in a frame of its own, after an init pass if it never ran; again if another thread
    initialised the module meanwhile."""
    outermost = not state.frames and not state.threaded and state.init_pass is None
    while True:
        begun = commits.number
        try:
            with transaction(), placed_if_captured(module) if outermost and captures else _ANYWHERE:
                trace = tracing.current()
                run = function if isinstance(function, types.FunctionType) else _bound_first(function)
                meta = meta_of(module)
                if method not in meta.records:
                    # What follows rests on that: if another thread initialises the module from here on, it conflicts.
                    writable(module)
                    meta = meta_of(module)
                if method not in meta.records:
                    _initialise(module, method, function, args, kwargs)
                    run = functools.partial(checks.first_run, run)
                    meta = meta_of(module)
                if meta.dtype_policy is not None:
                    run = computing(meta.dtype_policy, run)
                frame = Frame(module, method, trace)
                if state.watch is not None:
                    run = state.watch(frame, run)
                state.frames.append(frame)
                try:
                    outputs = run(module, *args, **kwargs)
                    _close(frame, outputs)
                except Exception as error:
                    _annotate(error, frame, function, args, kwargs)
                    raise
                finally:
                    state.frames.pop()
            return outputs
        except (Conflict, Exception) as error:
            if not is_to_be_run_again(error, begun):
                raise


_ANYWHERE = contextlib.nullcontext()


def _close(frame: Frame, outputs: tp.Any) -> None:
    """Ends a method that has returned."""
    frame.close()
    if state.collector is not None and state.collector.wants_summaries:
        add_summary(frame.module, outputs)
    # Else a module around it in this trace will be noted, with all below.
    if (frame.parent is None or frame.parent.trace != frame.trace) and not belongs(frame.module):
        note_capture(frame.module)


def _bound_first(function: tp.Any) -> Callable[..., tp.Any]:
    """A transformed method as a function that takes the module first: bound to the module, it threads it."""
    bind = getattr(function, "__get__", None)
    if bind is None:
        return function

    @functools.wraps(function, updated=())
    def run(module: Node, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return bind(module, type(module))(*args, **kwargs)

    return run


def _initialise(module: Node, method: str, function: Callable[..., tp.Any], args: tp.Any, kwargs: tp.Any) -> None:
    """Runs the init pass of a method, where one is due."""
    if id(module) in state.threaded:
        if (id(module), method) in state.unreached:
            return
        raise NeedsInitPass(module, method)
    if state.init_pass is not None:
        return  # the pass that is running creates what the method asks for
    if not belongs(module):
        return  # a module of an outer trace may run if it creates nothing; what it creates is refused where it does
    pytree.require_drawn(module)

    def run(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return run_method(module, method, function, args, kwargs)

    init_pass_of(module, method, run, args, kwargs)


def init_pass_of(
    module: Node, method: str, run: Callable[..., tp.Any], args: tp.Any, kwargs: tp.Any, anew: Node | None = None
) -> None:
    if run_init_pass(run, args, kwargs, [module], anew=anew):
        note_update(module, "its parameters")


def _annotate(error: Exception, frame: Frame, function: tp.Any, args: tuple[tp.Any, ...], kwargs: tp.Any) -> None:
    """Adds to an error, once, in which module it happened and on what."""
    if getattr(error, "_elegy_noted", False):
        return
    try:
        error._elegy_noted = True  # type: ignore[attr-defined]
        module, parameters = frame.module, meta_of(frame.module).parameters
        arrays = {name: value for name, value in held(module).items() if name in parameters or leaves.is_array(value)}
        own = ", ".join(f"{name}: {show_value(value)}" for name, value in arrays.items())
        named = [f"{name}={show_value(value)}" for name, value in kwargs.items()]
        given = ", ".join([*map(show_value, args), *named])
        note = (
            f"in {'/'.join(frame.parts)} ({type(module).__name__}.{frame.method_name}); parameters: {own or 'none'}; "
            f"inputs: {given or 'none'}"
        )
        if not isinstance(error, ElegyError) and (mismatch := checks.explain(module, function, args, kwargs)):
            note += f"\n  {mismatch}"
        if any(isinstance(leaf, jax.Array) and _is_deleted(leaf) for leaf in jax.tree.leaves(arrays)):
            note += (
                "\n  Its arrays were donated to a compiled function: use the module which that function returned, or "
                "donate a copy, jax.tree.map(jnp.copy, module)."
            )
        if isinstance(error, TypeError) and any(leaves.is_key(leaf) for leaf in args):
            note += "\n  Keys are given by name: init(x, rng=key), apply(x, rng=key)."
        if hint := hint_for_call(error, kwargs):
            note += f"\n  {hint}"
        error.add_note(note)
    except Exception:
        pass  # an error that takes no note, or a module whose repr fails, must not hide the error itself


def _is_deleted(array: jax.Array) -> bool:
    return not isinstance(array, Tracer) and array.is_deleted()


Method = tp.TypeVar("Method", bound=Callable[..., tp.Any])

# The methods that `compact` made, and how to make another.
compact_methods: weakref.WeakKeyDictionary[tp.Any, Callable[[tp.Any], tp.Any]] = weakref.WeakKeyDictionary()


def compact(method: Method) -> Method:
    """Marks a method, other than `call`, that creates parameters and modules of its own.

    The method gets what `call` has: shape inference on its first run, modules that are found again on every later one,
    and a module of its own as their owner.

    ```python
    import elegy
    import jax.numpy as jnp


    class Autoencoder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return elegy.nn.Linear(2, name="encoder")(x)

        @elegy.compact
        def decode(self, z):
            return elegy.nn.Linear(5, name="decoder")(z)

        def call(self, x):
            return self.decode(self.encode(x))


    model = Autoencoder()
    model(jnp.ones([1, 5]))
    assert model.decode(jnp.ones([7, 2])).shape == (7, 5)
    ```
    """

    @functools.wraps(method)
    def wrapper(self, /, *args, **kwargs):
        try:
            return run_method(self, method.__qualname__, method, args, kwargs)
        except Exception as error:
            shorten(error)
            raise

    compact_methods[wrapper] = compact
    return tp.cast(Method, wrapper)


def call_of(module: Node) -> tp.Any:
    """The function that a module runs when it is called."""
    cls: tp.Any = type(module)
    return (class_of(module) if cls._elegy_is_local else cls).call
