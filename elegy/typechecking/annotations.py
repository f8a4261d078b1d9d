"""The annotations of fields and methods, read: names looked up, strings evaluated."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing as tp
from collections.abc import Callable, Mapping

from elegy.checks import no_type_check
from elegy.leaves import Node
from elegy.typechecking import axes
from elegy.typechecking.import_hook import Checker, closure, is_exempt

# A class of arrays, or None for all, and those that may stand for it.
StandIns = tuple[tp.Any, ...]


class Unreadable:
    """Stands for an annotation that cannot be read.

    **Attributes:**

    - `text`: the annotation as it was written.
    - `reason`: the error.
    """

    def __init__(self, annotation: tp.Any, error: Exception):
        self.text = annotation if isinstance(annotation, str) else axes.show(annotation)
        self.reason = f"{type(error).__name__}: {error}"

    def __repr__(self) -> str:
        return self.text

    @property
    def may_be_array(self) -> bool:
        """Whether it may be about an array: it has axes, which are in quotes."""
        return any(quote in self.text for quote in "'\"")


class _Unfinished(Exception):
    """Carries what a function gives past its cache."""


def _cached(compute: Callable[..., tuple[tp.Any, bool]]) -> Callable[..., tp.Any]:
    """A function with a cache. `compute` gives the result, and whether it is final: an annotation that cannot be read
    now may refer to a name that is defined later."""

    @functools.lru_cache(maxsize=4096)
    def final(*args: tp.Any) -> tp.Any:
        result, is_final = compute(*args)
        if not is_final:
            raise _Unfinished(result)
        return result

    @functools.wraps(compute)
    def get(*args: tp.Any) -> tp.Any:
        try:
            return final(*args)
        except _Unfinished as unfinished:
            return unfinished.args[0]

    return get


def _read(annotation: tp.Any, module_globals: dict[str, tp.Any], names: Mapping[str, tp.Any], owner: tp.Any) -> tp.Any:
    carrier = type("carrier", (), {"__annotations__": {"value": annotation}})
    try:
        read = tp.get_type_hints(carrier, module_globals, {"Self": tp.Self, **names}, include_extras=True)["value"]
    except Exception as error:  # whatever the code in a string raises
        return Unreadable(annotation, error)
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


@_cached
def _annotations_of(cls: type) -> tuple[tuple[dict[str, tp.Any], dict[str, Unreadable]], bool]:
    """The annotations in the class body and in those of base classes: those that are about arrays, the unreadable."""
    found: dict[str, tp.Any] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Node) or base is Node or is_exempt(base):
            continue  # what a node itself holds is no field of the user
        module_globals = getattr(sys.modules.get(base.__module__), "__dict__", {})
        names = {**vars(base), **_by_name(base), **_type_parameters(base)}
        for name, annotation in inspect.get_annotations(base).items():
            found.pop(name, None)
            found[name] = _read(annotation, module_globals, names, cls)
    unreadable = {name: read for name, read in found.items() if isinstance(read, Unreadable)}
    arrays = {
        name: read
        for name, read in found.items()
        if (read.may_be_array if isinstance(read, Unreadable) else axes.mentions_array(read))
    }
    return (arrays, unreadable), not unreadable


def fields(cls: type) -> dict[str, tp.Any]:
    """The attributes whose annotations in the class body, or in one of a base class, are about arrays."""
    return _annotations_of(cls)[0]


def field(module: Node, name: str) -> tp.Any:
    """The annotation of one field if it is about an array or cannot be read, or None."""
    arrays, unreadable = _annotations_of(type(module))
    return unreadable.get(name, arrays.get(name))


@_cached
def _signature_of(function: tp.Any, owner: type | None) -> tuple[inspect.Signature, bool]:
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
    signature = signature.replace(parameters=parameters, return_annotation=read(signature.return_annotation))
    found = [*(parameter.annotation for parameter in parameters), signature.return_annotation]
    return signature, not any(isinstance(annotation, Unreadable) for annotation in found)


def signature_of(function: tp.Any, owner: type | None) -> inspect.Signature:
    """The signature of a function, of a method of `owner`, with its annotations read."""
    return _signature_of(function, owner)


@functools.lru_cache(maxsize=4096)
@no_type_check
def tester(annotation: tp.Any, checker: Checker, stand_ins: StandIns = ()) -> Callable[[tp.Any], None]:
    """A function that raises if its argument is not what the annotation says."""
    if isinstance(annotation, Unreadable):
        raise NameError(annotation.reason)

    def check(value):
        pass

    check.__annotations__ = {"value": axes.allowing(annotation, *stand_ins)}
    return checker(check)
