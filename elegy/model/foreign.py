"""What is no module, as one: functions, and callable pytrees of other libraries."""

from __future__ import annotations

import contextlib
import dis
import inspect
import types
import typing as tp
import weakref
from collections.abc import Callable, Iterable

import jax
from jax.core import Tracer

from elegy.errors import UntrainedModuleWarning
from elegy.frames import Frame, name_of, warn
from elegy.layout import walk
from elegy.leaves import Node, is_array
from elegy.losses import Loss
from elegy.metrics import Metric
from elegy.module import Module, to_module
from elegy.state import state, training
from elegy.tracing import EAGER


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


# By the class, which is not kept alive.
_names: weakref.WeakKeyDictionary[type, dict[type, frozenset[str]]] = weakref.WeakKeyDictionary()


def names_in_methods(cls: type, base: type) -> frozenset[str]:
    """The names of attributes and globals in the code of what a class defines, and its bases before `base`; and in that
    of the functions of the same file that it calls."""
    known = _names.setdefault(cls, {})
    if base not in known:
        found: set[str] = set()
        seen: set[types.FunctionType] = set()
        for part in cls.__mro__[: cls.__mro__.index(base)]:
            for value in vars(part).values():
                inner = "fget" if isinstance(value, property) else "func" if hasattr(value, "func") else "__func__"
                function = getattr(value, inner, value)
                function = inspect.unwrap(function) if callable(function) else function
                if isinstance(function, types.FunctionType):
                    _add_names(function, found, seen)
        known[base] = frozenset(found)
    return known[base]


def _add_names(function: types.FunctionType, found: set[str], seen: set[types.FunctionType]) -> None:
    waiting = [function]
    for one in waiting:  # grows while it is read
        if one in seen:
            continue
        seen.add(one)
        names = {name for code in _codes(one.__code__) for name in code.co_names}
        found |= names
        outer = {name: one.__globals__.get(name) for name in names}
        cells = zip(one.__code__.co_freevars, one.__closure__ or (), strict=True)
        outer |= {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
        waiting += [
            value
            for value in outer.values()
            if isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        ]


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


class Outside:
    """Within it the modules that run in a call of `module` are noted, so that those are found which belong to nobody
    that trains them."""

    def __init__(self, module: Module):
        self._module = module
        self._ran: dict[int, tuple[Node, str]] = {}

    def __enter__(self) -> Outside:
        self._before, state.watch = state.watch, self
        return self

    def __exit__(self, *error: tp.Any) -> None:
        state.watch = self._before

    def __call__(self, frame: Frame, run: Callable[..., tp.Any]) -> Callable[..., tp.Any]:
        """What runs instead of a method: the method."""
        if any(other.module is self._module for other in state.frames):
            self._ran.setdefault(id(frame.module), (frame.module, type(state.frames[-1].module).__name__))
        return run if self._before is None else self._before(frame, run)

    def warn(self, trained: Iterable[Node]) -> None:
        """Warns of modules with trainable parameters that are none of those that are trained."""
        inside = {id(node) for node in walk(trained)}
        for module, user in self._ran.values():
            if id(module) not in inside and (count := _trainable_constants(module)):
                inside |= {id(node) for node in walk([module])}
                warn(
                    UntrainedModuleWarning(
                        f"{user} uses {name_of(module)}, a {type(module).__name__} with {count} trainable parameters "
                        "that is not a part of what is trained: its parameters are constants of the compiled steps.\n"
                        "  To train it, make it an attribute of the module that uses it. To use it as it is, freeze "
                        f"it: {name_of(module)}.trainable = False."
                    )
                )


def _trainable_constants(module: Node) -> int:
    """How many trainable numbers a module has that are those of no trace."""
    if module._elegy_born != EAGER:
        return 0
    found = jax.tree.leaves(tp.cast(Module, module).get_parameters(trainable=True))
    return 0 if any(isinstance(leaf, Tracer) for leaf in found) else sum(leaf.size for leaf in found)
