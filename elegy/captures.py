"""Functions of the user that stock JAX traced while they closed over a module.

JAX traces a function once, keeps the arrays in its closure as constants, and finds the trace again by the identity of
the function, for as long as that lives. A function that is made anew for each use, as a lambda in a method is, sees the
present arrays; one that lives on would go on with those of its first use, without an error. So this file notes which
functions were traced with the arrays of which modules. Where a transform of Elegy gives these modules other arrays, or
such a module is called outside of any trace, JAX is kept from finding the trace again. Where the arrays change
otherwise, `debug` turns on a warning: whether such a function will ever run again cannot be known.
"""

from __future__ import annotations

import contextlib
import sys
import types
import typing as tp
import weakref
from collections.abc import Collection, Iterator, Mapping

from elegy import tracing
from elegy.errors import StaleClosureWarning
from elegy.frames import path_of, warn
from elegy.layout import walk
from elegy.leaves import Node
from elegy.state import placed, state
from elegy.transaction import shadowed_since

# The functions that were traced with the arrays of a module, by its id.
captures: dict[int, list[weakref.ref[tp.Any]]] = {}
# Those among them to warn of when the arrays change: traced within `debug`, with arrays of no trace. (For arrays of an
# earlier trace JAX itself raises an error.)
constants: dict[int, list[weakref.ref[tp.Any]]] = {}


@contextlib.contextmanager
def debug() -> Iterator[None]:
    """Within it Elegy watches for mistakes that it cannot tell from correct programs.

    A function that stock JAX traces meanwhile, and that closes over a module, holds the arrays of that moment for as
    long as it lives; when they change, a `StaleClosureWarning` names the module and the function. Functions that were
    only looked at, by `jax.eval_shape` or `jax.make_jaxpr`, are among them, since JAX keeps these traces too.

    It holds for the thread that enters it, and costs nothing outside.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)
    with elegy.debug():
        predict = jax.jit(lambda x: linear(x))
        predict(x)
        linear.set_parameters({"b": jnp.ones(2)})  # warns StaleClosureWarning: linear: its arrays change
    ```
    """
    before, state.debugging = state.debugging, True
    try:
        yield
    finally:
        state.debugging = before


def note_capture(module: Node) -> None:
    """Notes the functions that JAX is tracing, out to where a transform threads the module: they hold its arrays."""
    outermost = shadowed_since(module)
    frame: tp.Any = sys._getframe(1)
    while frame is not None and id(frame) != outermost:
        function = tracing.traced_function(frame)
        if function is not None:
            _add(module, function)
        frame = frame.f_back


def _add(module: Node, function: tp.Any) -> None:
    if isinstance(function, types.FunctionType) and (function.__module__ or "").startswith("elegy."):
        return  # the functions of Elegy itself are made anew for each use
    if any(known() is function for known in captures.get(id(module), ())):
        return
    try:
        reference = weakref.ref(function)
    except TypeError:
        return
    for node in walk([module]):
        if id(node) not in captures:
            weakref.finalize(node, _forget, id(node)).atexit = False
        captures.setdefault(id(node), []).append(reference)
        if state.debugging and node._elegy_born == tracing.EAGER and state.init_pass is None:
            constants.setdefault(id(node), []).append(reference)


def _forget(identity: int) -> None:
    captures.pop(identity, None)
    constants.pop(identity, None)


def is_captured(nodes: Mapping[int, tp.Any]) -> bool:
    """Whether a function lives that JAX traced with arrays of one of these modules, given by their ids."""
    found = False
    for identity in captures.keys() & nodes.keys():
        captures[identity] = [function for function in captures[identity] if function() is not None]
        found = found or bool(captures[identity])
    return found


def placed_for(nodes: Mapping[int, tp.Any]) -> tp.Any:
    """A context for code that sees other arrays in these modules than code outside: JAX uses no trace from there."""
    if captures and is_captured(nodes):
        return placed(object())
    return placed("transform" if state.init_pass is None else "init pass")


def placed_if_captured(module: Node) -> tp.Any:
    """A context for running a module: JAX uses no trace that holds earlier arrays of it."""
    if captures and is_captured({id(node): node for node in walk([module])}):
        return placed(object())
    return contextlib.nullcontext()


def check_constants(nodes: Collection[Node]) -> None:
    """Warns of functions that hold the arrays of modules as constants, which are about to change. (Callers look first
    whether there are any `constants`.)"""
    stale: dict[int, tuple[Node, tp.Any]] = {}
    for node in nodes:
        for reference in constants.pop(id(node), ()):
            function = reference()
            if function is not None:
                stale.setdefault(id(function), (node, function))
    for module, function in stale.values():
        warn(
            StaleClosureWarning(
                f"{path_of(module)}: its arrays change, and {_described(function)} was traced by JAX with the old ones "
                "as constants. While that function lives, JAX goes on with these.\n"
                "  Make the module an argument of the function, or list it in the modules= of a transform of elegy, or "
                "make the function anew where it is used: a lambda, or a function in the body of another."
            )
        )


def _described(function: tp.Any) -> str:
    function = getattr(function, "function", function)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"
