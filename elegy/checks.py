"""What the core asks of annotations: to check values, and to say which shape a parameter has.

Nothing is checked here. When `elegy` is imported, `elegy.typechecking` puts its own functions in the place of these, so
that the core knows no checker.
"""

from __future__ import annotations

import typing as tp
import weakref
from collections.abc import Callable

from elegy.leaves import Node

Function = tp.TypeVar("Function", bound=Callable[..., tp.Any])
Arguments = tp.ParamSpec("Arguments")
Result = tp.TypeVar("Result")

if tp.TYPE_CHECKING:

    def no_type_check(function: Function) -> Function: ...  # static checkers keep the annotations
else:
    no_type_check = tp.no_type_check

# Whether any class may have to be checked.
on = False
# Every class of modules, those of this package included.
classes: weakref.WeakSet[type] = weakref.WeakSet()


def instead_of(known: Callable[Arguments, Result]) -> Callable[[Callable[Arguments, Result]], None]:
    """Puts what it is called with next in the place of a function of this file."""

    def put(function: Callable[Arguments, Result]) -> None:
        globals()[known.__name__] = function

    return put


def define(cls: type) -> None:
    """Takes note of a new class of modules."""
    classes.add(cls)


def first_run(function: tp.Any, module: Node, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
    """Runs a method, `__init__` or another, that may create parameters."""
    return function(module, *args, **kwargs)


def infer_shape(module: Node, name: str) -> tuple[int, ...] | None:
    """The shape of a new parameter for which none was given; None if no annotation says it."""


def infer_dtype(module: Node, name: str, default: tp.Any) -> tp.Any:
    """The dtype of a new parameter for which none was given."""
    return default


def check_parameter(module: Node, name: str, value: tp.Any) -> None:
    """Checks a parameter that was just created. Called while `on`."""


def check_constructed(module: Node) -> None:
    """Checks a module whose `__init__` has returned. Called while `on`."""


def checked_function(function: Function) -> Function:
    """What to run in the place of a function that is no method."""
    return function


def explain(module: Node, function: tp.Any, args: tuple[tp.Any, ...], kwargs: dict[str, tp.Any]) -> str:
    """Which value does not fit its annotation, for the note on an error in a method; empty if all fit."""
    return ""
