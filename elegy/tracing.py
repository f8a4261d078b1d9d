"""Which trace is running. The only file that asks JAX about its traces."""

from __future__ import annotations

import threading
import types
import typing as tp
import weakref

from jax.extend.core import get_opaque_trace_state


def _eager() -> tp.Any:
    # A new thread is never inside a trace, even if this package is being imported inside one.
    states: list[tp.Any] = []
    thread = threading.Thread(target=lambda: states.append(get_opaque_trace_state()))
    thread.start()
    thread.join()
    return states[0]


EAGER = _eager()


def current() -> tp.Any:
    """The trace that is running on this thread, `EAGER` where none is.

    Two states are equal when they belong to one trace, they differ under each of jit, vmap, grad, scan, checkpoint and
    eval_shape, and asking costs 0.3 microseconds.
    """
    try:
        return get_opaque_trace_state()
    except (AssertionError, AttributeError):
        return EAGER  # inside a rule of a primitive, such as its abstract evaluation, JAX 0.12 has no state at all


def is_traced() -> bool:
    """Whether any trace is running."""
    return current() != EAGER


def is_equal_in_all_lanes(value: tp.Any) -> bool:
    """Whether the running trace is that of a `jax.vmap`, and a value is not mapped by it.

    JAX has no public name for this: where its private ones are missing, the answer is False.
    """
    trace = getattr(current(), "_trace_ref", lambda: None)()
    return type(trace).__name__ == "BatchTrace" and getattr(value, "_trace", None) is not trace


def traced_function(frame: types.FrameType) -> tp.Any:
    """What JAX traces if `frame` is the one in which it does so, to keep the trace by the identity of the function.

    JAX has no public name for this: where its private ones are missing, the answer is None.
    """
    if frame.f_globals.get("__name__") == _TRACER and frame.f_code.co_name in _TRACING:
        return frame.f_locals.get("fun")
    return None


_TRACER = "jax._src.interpreters.partial_eval"
_TRACING = {"trace_to_jaxpr", "trace_to_jaxpr_nocache"}


def is_traced_itself(function: tp.Any, caller: types.FrameType) -> bool:
    """Whether `caller`, the frame that calls an object, is JAX tracing this very object."""
    if traced_function(caller) is function:
        return True
    # A loop wraps the function, and keeps the wrapper by the identity of what it wraps.
    held = caller.f_locals.values() if caller.f_code.co_name == "scanned_fun" else ()
    return any(value is function or (isinstance(value, weakref.ref) and value() is function) for value in held)
