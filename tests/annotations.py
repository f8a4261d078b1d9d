"""The checks of jaxtyping's import hook, for less.

The hook decorates every function of the package, and those that are defined anew in each call too, which was a quarter
of what the tests took. Most have annotations without axes, for which the scope that jaxtyping enters is of no use: the
checker that the hook was given checks them by itself here, and once it has seen the code of a function, what it made of
it serves for the next one of the same code. Functions with axes, and the methods of modules, on which the package looks
for what jaxtyping has left, are decorated as ever.
"""

import functools
import inspect
import types
import typing as tp

import beartype
import jaxtyping
from jax._src import traceback_util
from jaxtyping import _decorator, _import_hook, config

Function = types.FunctionType

OF_MODULES = (
    "elegy.callbacks.ema elegy.losses elegy.metrics elegy.model.foreign elegy.model.objectives elegy.model.optimizer "
    "elegy.module elegy.nn elegy.pytree elegy.regularizers"
).split()

by_jaxtyping = jaxtyping.jaxtyped
check = beartype.beartype(conf=beartype.BeartypeConf(violation_type=jaxtyping.TypeCheckError))
# What the checker made of a function, by its code; None if the function is left to jaxtyping.
made: dict[tuple[str, types.CodeType], Function | None] = {}

# Nobody is to take the frames of this file for those of a caller. The package passes over checkers, which it knows by
# the names of their modules and by files that are none; JAX passes over what is registered.
FILE = "<annotations of the tests>"
traceback_util.register_exclusion(FILE)
names: dict[str, tp.Any] = {"__name__": "jaxtyping.of_tests", "config": config, "wraps": functools.wraps}
exec(
    compile(
        """
def unless_disabled(function, checking):
    @wraps(function)
    def checked(*args, **kwargs):
        __tracebackhide__ = True
        return (function if config.jaxtyping_disable else checking)(*args, **kwargs)

    return checked
""",
        FILE,
        "exec",
    ),
    names,
)
unless_disabled = names["unless_disabled"]


def jaxtyped(function: tp.Any = None, **options: tp.Any) -> tp.Any:
    """Stands in the place of `jaxtyping.jaxtyped`."""
    if options.get("typechecker") not in _import_hook.Typechecker.lookup.values():
        return by_jaxtyping(*([] if function is None else [function]), **options)
    if function is None:
        return functools.partial(jaxtyped, **options)
    if not isinstance(function, Function) or _is_of_modules(function) or inspect.isgeneratorfunction(function):
        return by_jaxtyping(function, **options)
    if not function.__annotations__:
        return function
    key = function.__module__, function.__code__
    if key not in made:
        made[key] = _make(function)
    template = made[key]
    if template is None:
        return by_jaxtyping(function, **options)
    if template.__code__ is function.__code__:  # there is nothing to check
        return function
    return unless_disabled(function, _again(template, function))


def _is_of_modules(function: Function) -> bool:
    owner = function.__qualname__.rpartition(".")[0]
    is_method = owner != "" and not owner.endswith("<locals>")
    return is_method and any(f"{function.__module__}.".startswith(f"{name}.") for name in OF_MODULES)


def _make(function: Function) -> Function | None:
    """What the checker makes of a function; from a copy, since it is kept, and the function may hold what is to die."""
    hints = {
        name: _decorator._destring_annotation(hint, function.__globals__)
        for name, hint in function.__annotations__.items()
    }
    if any(map(_has_axes, hints.values())):
        return None
    cells = tuple(types.CellType() for _ in function.__code__.co_freevars)
    copy = Function(function.__code__, function.__globals__, function.__name__, None, cells)
    copy.__annotations__ = hints
    copy.__qualname__ = function.__qualname__
    return tp.cast(Function, check(copy))


def _again(checking: Function, function: Function) -> Function:
    """What the checker would have made of another function of the same code: it calls what it is given by keyword."""
    again = Function(checking.__code__, checking.__globals__, checking.__name__, checking.__defaults__)
    again.__kwdefaults__ = {**checking.__kwdefaults__, "__beartype_func": function}
    return again


def _has_axes(hint: tp.Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_has_axes, hint))
    return type(hint).__module__.startswith("jaxtyping") or any(map(_has_axes, tp.get_args(hint)))


jaxtyping.jaxtyped = jaxtyped
