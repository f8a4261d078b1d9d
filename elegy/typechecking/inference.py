"""Shapes and dtypes of new parameters, read off their annotations and what a first run is given."""

from __future__ import annotations

import inspect
import typing as tp

from elegy.checks import no_type_check
from elegy.errors import ParameterError
from elegy.frames import path_of
from elegy.leaves import Node
from elegy.typechecking import axes
from elegy.typechecking.annotations import Unreadable, field
from elegy.typechecking.scopes import Scope, arrays_only, constructed, local, name_of, note


def infer_shape(module: Node, name: str) -> tuple[int, ...] | None:
    """The shape of a parameter from its annotation and the axes that are bound; None if it has no annotation."""
    annotation = field(module, name)
    if annotation is None:
        return None
    if isinstance(annotation, Unreadable):
        raise ParameterError(
            f"{path_of(module, name)}: its shape is to be read off its annotation, {annotation}, which cannot be read: "
            f"{annotation.reason}.\n"
            "  Define the names in it in the module of the class, and not in a function or under `if TYPE_CHECKING:` "
            f"only, or give the shape: self.add_parameter({name!r}, [...])."
        )
    scope = next((scope for scope in reversed(local.first_runs) if scope.module is module), None)
    scope = Scope(module, constructed, (module,), {}, arrays_only) if scope is None else scope
    sizes = scope.sizes([*scope.fields(there_before=True), *scope.arguments(), *scope.fields(there_before=False)])
    try:
        return axes.shape_of(annotation, sizes, scope.names())
    except axes.UnknownAxisError as error:
        unread = [entry for entry in scope.arguments() if isinstance(entry.annotation, Unreadable)]
        hint = "".join(f"  The annotation of {e.name} cannot be read: {e.annotation.reason}.\n" for e in unread)
        raise ParameterError(
            f"{path_of(module, name)}: its shape is to be read off {axes.show(annotation)}, but {error}.\n"
            f"  axes: {axes.show_sizes(sizes)}\n{hint}"
            f"  Annotate an argument of {name_of(scope.function)} with that axis, write its size as an attribute, "
            f"{{self.size}}, or give the shape: self.add_parameter({name!r}, [...])."
        ) from None


def infer_dtype(module: Node, name: str, default: tp.Any) -> tp.Any:
    """The dtype of a parameter for which none was given."""
    annotation = field(module, name)
    return default if annotation is None else axes.dtype_of(annotation, default)


@no_type_check
def run_below(function, args, kwargs):
    """Runs a method that a transform was made of. What it is given here counts, such as a lane of what the transform is
    given: axes are read off that, and the note on an error is about it."""
    module = args[0] if args else None
    first = local.first_runs[-1] if local.first_runs else None
    is_first = first is not None and first.module is module and _is_same(first.function, function)
    if is_first:
        local.first_runs.append(Scope(module, function, args, kwargs, arrays_only))
    try:
        return function(*args, **kwargs)
    except Exception as error:
        note(error, module, function, args[1:], kwargs)
        raise
    finally:
        if is_first:
            local.first_runs.pop()


def _is_same(function: tp.Any, other: tp.Any) -> bool:
    """Whether two functions are decorated forms of one."""
    return inspect.unwrap(function) is inspect.unwrap(other)
