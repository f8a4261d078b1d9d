"""The annotations of fields and methods, read: names looked up, strings evaluated."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing as tp
from collections.abc import Callable, Mapping

from elegy.leaves import Node
from elegy.typechecking import axes
from elegy.typechecking.import_hook import Checker, closure, is_exempt, no_type_check

# A class of arrays, or None for all, and those that may stand for it.
StandIns = tuple[tp.Any, ...]

# Stands for an annotation that cannot be read.
UNREADABLE = object()


def _read(annotation: tp.Any, module_globals: dict[str, tp.Any], names: Mapping[str, tp.Any], owner: tp.Any) -> tp.Any:
    carrier = type("carrier", (), {"__annotations__": {"value": annotation}})
    try:
        read = tp.get_type_hints(carrier, module_globals, {"Self": tp.Self, **names}, include_extras=True)["value"]
    except Exception:
        return UNREADABLE
    if tp.get_origin(read) is tp.Final:
        (read,) = tp.get_args(read)
    if isinstance(read, dataclasses.InitVar):
        read = read.type

    def change(part: tp.Any) -> tp.Any:
        if isinstance(part, getattr(tp, "TypeAliasType", ())):  # new in Python 3.12
            return axes.rebuilt(part.__value__, change)
        return owner if part is tp.Self else part

    return axes.rebuilt(read, change)


def _by_name(*named: tp.Any) -> dict[str, tp.Any]:
    return {item.__name__: item for item in named}


def _type_parameters(owner: tp.Any) -> dict[str, tp.Any]:
    return _by_name(*getattr(owner, "__type_params__", ()))


@functools.lru_cache(maxsize=1024)
def fields(cls: type) -> dict[str, tp.Any]:
    """The attributes whose annotations in the class body, or in one of a base class, are about arrays."""
    found: dict[str, tp.Any] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Node) or is_exempt(base):
            continue
        module_globals = getattr(sys.modules.get(base.__module__), "__dict__", {})
        for name, annotation in inspect.get_annotations(base).items():
            read = _read(annotation, module_globals, {**vars(base), **_by_name(base), **_type_parameters(base)}, cls)
            found.pop(name, None)
            # What cannot be read may have been about an array if there are axes in it, which are in quotes.
            if axes.mentions_array(read) or (read is UNREADABLE and any(quote in str(annotation) for quote in "'\"")):
                found[name] = read
    return found


def field(module: Node, name: str) -> tp.Any:
    """The annotation of one field, or None."""
    annotation = fields(type(module)).get(name)
    return None if annotation is UNREADABLE else annotation


@functools.lru_cache(maxsize=4096)
def signature_of(function: tp.Any, owner: type | None) -> inspect.Signature:
    """The signature of a function, of a method of `owner`, with its annotations read."""
    signature = inspect.signature(function)
    function = inspect.unwrap(function)
    names: dict[str, tp.Any] = {}
    for base in () if owner is None else reversed(owner.__mro__):
        names |= _by_name(base) | _type_parameters(base)
    if isinstance(function, types.FunctionType):
        names |= closure(function) | _type_parameters(function)
    module_globals = getattr(function, "__globals__", {})

    def read(annotation: tp.Any) -> tp.Any:
        if annotation is inspect.Parameter.empty or is_exempt(function):
            return inspect.Parameter.empty
        return _read(annotation, module_globals, names, owner)

    parameters = [
        parameter.replace(annotation=read(parameter.annotation)) for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters, return_annotation=read(signature.return_annotation))


@functools.lru_cache(maxsize=4096)
@no_type_check
def tester(annotation: tp.Any, checker: Checker, stand_ins: StandIns = ()) -> Callable[[tp.Any], None]:
    """A function that raises if its argument is not what the annotation says."""
    if annotation is UNREADABLE:
        raise NameError

    def check(value):
        pass

    check.__annotations__ = {"value": axes.allowing(annotation, *stand_ins)}
    return checker(check)
