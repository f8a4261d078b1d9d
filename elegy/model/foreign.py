"""What is no module, as one: functions, and callable pytrees of other libraries."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import types
import typing as tp

import jax

from elegy.leaves import is_array
from elegy.losses import Loss
from elegy.metrics import Metric
from elegy.module import Module, to_module
from elegy.state import training


class Wrapped(Module):
    """A callable pytree, such as a layer of Equinox, as a module. It is trained in its floating-point arrays. If it
    takes `training`, it is told.

    **Attributes:** `wrapped`, the pytree with the arrays that it has now.
    """

    def __init__(self, wrapped: tp.Any):
        super().__init__(name=type(wrapped).__name__.lower())
        self.wrapped = wrapped

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        if "training" not in kwargs and _takes_training(self.wrapped):
            kwargs["training"] = training()
        return self.wrapped(*args, **kwargs)


def _takes_training(function: tp.Any) -> bool:
    try:
        return "training" in inspect.signature(function).parameters
    except ValueError:  # it is not written in Python, and says nothing
        return False


def _of_function(function: tp.Any) -> Module:
    """A function as a module, whose `call` has the parameters of the function, to be called accordingly."""
    module = to_module(function)()
    call: tp.Any = type(module).call
    with contextlib.suppress(ValueError):
        signature = inspect.signature(function)
        own = inspect.Parameter("_module", inspect.Parameter.POSITIONAL_ONLY)
        call.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    return module


def used_by(function: types.FunctionType) -> dict[str, Module]:
    """The modules to which the code of a function refers by names from outside, by these names."""
    found: dict[str, Module] = {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    values = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    for code in _codes(function.__code__):
        names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
        values |= {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, value in values.items():
        if isinstance(value, Module) and not isinstance(value, (Loss, Metric)):
            found[name] = value
    return found


@functools.lru_cache(maxsize=256)
def names_in_methods(cls: type, base: type) -> frozenset[str]:
    """The names of attributes and globals in the code of what a class defines, and its bases before `base`."""
    found: set[str] = set()
    for part in cls.__mro__[: cls.__mro__.index(base)]:
        for value in vars(part).values():
            function = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
            if isinstance(function, types.FunctionType):
                found.update(name for code in _codes(function.__code__) for name in code.co_names)
    return frozenset(found)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """The code of a function, and of those within it."""
    found = [code]
    for one in found:
        found.extend(constant for constant in one.co_consts if isinstance(constant, types.CodeType))
    return found


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def as_module(given: tp.Any) -> Module:
    """The module that a `Model` is to train.

    **Raises:** `TypeError` for what is none, and cannot become one.
    """
    if isinstance(given, Module) and not isinstance(given, (Loss, Metric)):
        return given
    if callable(given) and not isinstance(given, (type, Module)):
        if any(is_array(leaf) for leaf in jax.tree.leaves(given)):
            return Wrapped(given)
        return _of_function(given)
    hint = "Give it a module, a function, or a callable pytree."
    hint = "Construct it." if isinstance(given, type) else hint
    hint = "The module comes first, then loss= and metrics=." if isinstance(given, Module) else hint
    raise TypeError(f"elegy.Model takes a module, got {given!r}.\n  {hint}")
