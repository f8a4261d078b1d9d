"""What jaxtyping and its import hook made of a function.

The one place that knows the insides of jaxtyping: a decorated function does not tell its checker.
"""

from __future__ import annotations

import types
import typing as tp
from collections.abc import Callable

from elegy.calls import compact_methods

Checker = Callable[[tp.Any], tp.Any]


def is_exempt(decorated: tp.Any) -> bool:
    """Whether a function, or a class itself and not one of its bases, is marked by `no_type_check`."""
    return getattr(decorated, "__dict__", {}).get("__no_type_check__", False)


def is_transform(function: tp.Any) -> bool:
    """Whether a transform of Elegy made a function; its `_around` makes the same transform of another one."""
    return hasattr(type(function), "_around")


def inside(function: tp.Any) -> tp.Any:
    return getattr(function, "__wrapped__", None)


def closure(function: tp.Any) -> dict[str, tp.Any]:
    """The variables of the functions around a function, those that have a value."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def _jaxtyped_in(value: tp.Any) -> tp.Any:
    """The function that jaxtyping made of a method, itself or below other decorators; None if there is none."""
    function = getattr(value, "fget", getattr(value, "__func__", value))
    while (isinstance(function, types.FunctionType) or is_transform(function)) and not is_exempt(function):
        module_globals = getattr(function, "__globals__", {})
        if module_globals.get("__name__") == "jaxtyping._decorator" and function not in compact_methods:
            return function
        function = inside(function)
    return None


def hook_of(value: tp.Any) -> Checker | None:
    """The checker with which jaxtyping, or its import hook, decorated a method."""
    # The function does not tell its checker; it is found by the name of the argument of `jaxtyped`.
    function = _jaxtyped_in(value)
    inner = None if function is None else closure(function).get("wrapped_fn_impl")
    return None if inner is None else closure(inner).get("typechecker")


def without_hook(function: tp.Any) -> tp.Any:
    """A function without the scope of jaxtyping, which would be another one than that of the fields."""
    inner = _jaxtyped_in(function)
    if inner is function and closure(function).get("fn") is inside(function):
        return inside(function)
    while inner is not None:  # with other decorators around and between; it will let everything through
        inner.__no_type_check__ = True
        inner = _jaxtyped_in(inside(inner))
    return function
