"""Checks annotated arrays: the fields of a module and the method that runs share one scope of axis names.

A checked method runs inside a scope of jaxtyping. The fields are checked first, then the arguments, then each parameter
that is created, at last the outputs, so that `in` and `out` mean the same in `w: Float[Array, "in out"]` and in
`call(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]`.

What runs between the entry of a scope and a check inside it must not be decorated by jaxtyping's import hook, which
would put a scope of its own in between: hence `no_type_check` below, which the hook knows by its name.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
import typing as tp
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping

import jax
import jaxtyping
import numpy as np
from jaxtyping import AnnotationError, Array, jaxtyped

from elegy import axes
from elegy.errors import ParameterError, TypeCheckError, UncheckedAnnotationWarning
from elegy.frames import path_of, user_level
from elegy.leaves import Node

Function = tp.TypeVar("Function", bound=Callable[..., tp.Any])
Checker = Callable[[tp.Any], tp.Any]

if tp.TYPE_CHECKING:

    def no_type_check(function: Function) -> Function: ...  # static checkers keep the annotations
else:
    from typing import no_type_check


# ---------------------------------------------------------------------------------------------------------------------
# Switching on and off
# ---------------------------------------------------------------------------------------------------------------------

# Whether any class may have to be checked: a checker is on, or jaxtyping's import hook has been at work.
on = False

_lock = threading.RLock()
# What `typechecker` switched on and nobody has switched off, the newest last.
_switched: list[typechecker] = []
_active: Checker | None = None
# Whether the newest of them switched checking off, for classes that jaxtyping's import hook has decorated too.
_off = False
# The methods that are replaced while a checker is on: class, name, the method itself, and what stands for it.
_replaced: list[tuple[type, str, tp.Any, tp.Any]] = []
# The checker of classes that jaxtyping's import hook has decorated.
_hooked: weakref.WeakKeyDictionary[type, Checker] = weakref.WeakKeyDictionary()
# Every class of modules, those of this package included.
_classes: weakref.WeakSet[type] = weakref.WeakSet()
# The methods that `elegy.compact` made, and how to make another: their insides are what has to be checked.
compact_methods: weakref.WeakKeyDictionary[tp.Any, Callable[[tp.Any], tp.Any]] = weakref.WeakKeyDictionary()


class typechecker:  # noqa: N801
    """Switches a run-time type checker on, for `call` and every annotated method of every module.

    **Arguments:**

    - `checker`: a decorator that checks annotations when a function is called, such as `beartype.beartype` or
      `typeguard.typechecked` (of typeguard 2). None switches checking off, also where jaxtyping's import hook has
      switched it on.

    A plain call holds from then on; in a `with` statement it holds to the end of the block. Both hold for the whole
    process: a thread that runs meanwhile, or is started in the block, is checked too. Blocks of several threads may
    overlap, and the one that was entered last decides.

    Modules are checked when they are constructed, when a parameter is created and when a method runs; inside a compiled
    function that is while it is traced, so that compiled code runs at full speed. What was compiled before is not
    traced again.

    **Raises:** `ValueError` if the checker checks nothing, as typeguard 4 does with functions that have no source.

    ```python
    import beartype
    import elegy
    import jax.numpy as jnp
    from jaxtyping import Array, Float


    class Scale(elegy.Module):
        w: Float[Array, "features"]

        def call(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
            return x * self.add_parameter("w", initializer=jnp.ones)


    scale = Scale()
    with elegy.typechecker(beartype.beartype):
        scale(jnp.ones([4, 3]))
        scale(jnp.ones([4, 5]))  # raises TypeCheckError: the size of dimension features is 5
    ```
    """

    def __init__(self, checker: tp.Any):
        if checker is not None:
            _require_a_checker(checker)
        self._checker = checker
        with _lock:
            _switched.append(self)
            _switch()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with _lock:
            _switched.remove(self)
            _switch()


def _require_a_checker(checker: tp.Any) -> None:
    try:
        _tester(int, checker)("text")
    except Exception:
        return
    raise ValueError(
        f"the type checker {getattr(checker, '__qualname__', checker)!r} checks nothing: a str passed for an int.\n"
        "  Use beartype.beartype, or typeguard.typechecked of typeguard 2 (later versions need the source of a "
        "function). elegy.typechecker(None) switches checking off."
    )


def _switch() -> None:
    """Makes the newest checker the one that is on. The caller has the lock."""
    global _active, _off, on
    for cls, name, value, replacement in _replaced:
        if cls.__dict__.get(name) is replacement:
            setattr(cls, name, value)
    _replaced.clear()
    _active = _switched[-1]._checker if _switched else None
    _off = bool(_switched) and _active is None
    on = _active is not None or bool(_hooked)
    if _active is not None:
        fields.cache_clear()  # so that it warns again of what cannot be read
        _signature.cache_clear()
        for cls in list(_classes):
            _replace_methods(cls)


def adopt(cls: type) -> None:
    """Lets the methods of a new class be checked."""
    global on
    with _lock:
        _classes.add(cls)
        for value in list(cls.__dict__.values()):
            if checker := _hook_of(value):
                _hooked[cls] = checker
                on = True
        if on:
            _replace_methods(cls)


def _replace_methods(cls: type) -> None:
    """Puts checking methods into a class: for good where jaxtyping's import hook was, else while a checker is on."""
    for name, value in list(cls.__dict__.items()):
        if name.startswith("__") and name != "__init__":
            continue
        replacement = _checking(name, value)
        if replacement is not value:
            setattr(cls, name, replacement)
            if _hook_of(value) is None:
                _replaced.append((cls, name, value, replacement))


def _checking(name: str, value: tp.Any) -> tp.Any:
    """What checks in the place of an attribute of a class; the attribute itself if there is nothing to check."""
    if isinstance(value, property):
        getter = _checking(name, value.fget)
        return value if getter is value.fget else property(getter, value.fset, value.fdel, value.__doc__)
    if isinstance(value, (classmethod, staticmethod)):
        function = checked_function(value.__func__)
        return value if function is value.__func__ else type(value)(function)
    if not isinstance(value, types.FunctionType):
        return value
    if value in compact_methods:
        inner = _checking("call", value.__wrapped__)
        return value if inner is value.__wrapped__ else compact_methods[value](inner)
    if _is_exempt(value):
        return value
    hook = _hook_of(value)
    if hook is None and (_active is None or not (name == "call" or getattr(value, "__annotations__", None))):
        return value
    return _method(_unwrapped(value), hook, shares=name != "call")


def _is_exempt(function: tp.Any) -> bool:
    return getattr(function, "__no_type_check__", False)


def _is_jaxtyped(function: tp.Any) -> bool:
    return isinstance(function, types.FunctionType) and function.__globals__.get("__name__") == "jaxtyping._decorator"


def _unwrapped(function: tp.Any) -> tp.Any:
    """The function that jaxtyping decorated, so that its scope is not another one than that of the fields."""
    return function.__wrapped__ if _is_jaxtyped(function) and _hook_of(function) is not None else function


def _hook_of(value: tp.Any) -> Checker | None:
    """The checker with which jaxtyping, or its import hook, decorated a method, below other decorators too."""
    function = getattr(value, "fget", value)
    while isinstance(function, types.FunctionType) and not _is_exempt(function):
        if _is_jaxtyped(function):
            # The wrapper does not tell its checker; it is found by the name of the argument of `jaxtyped`.
            inner = inspect.getclosurevars(function).nonlocals.get("wrapped_fn_impl")
            return None if inner is None else inspect.getclosurevars(inner).nonlocals.get("typechecker")
        function = getattr(function, "__wrapped__", None)
    return None


@no_type_check
def _method(original: tp.Any, hook: Checker | None, shares: bool) -> tp.Any:
    """A method that checks where a checker is on.

    `shares`: without annotations of its own it belongs to the scope of the method that uses it.
    """
    shares = shares and not getattr(original, "__annotations__", None)

    @functools.wraps(original)
    def method(self, /, *args, **kwargs):
        checker = None if _off else _active or hook
        if checker is None or jaxtyping.config.jaxtyping_disable:
            return original(self, *args, **kwargs)
        running = _threads.scopes[-1] if _threads.scopes else None
        if shares and running is not None and running.module is self and not running.outermost:
            return original(self, *args, **kwargs)
        return Scope(self, original, args, kwargs, checker).run()

    method.__no_type_check__ = True
    return method


def checked_function(function: Function) -> Function:
    """A function that is no method, checked if a checker is on."""
    if _active is None or _hook_of(function) or _is_exempt(function) or not getattr(function, "__annotations__", None):
        return function
    return jaxtyped(function, typechecker=_active)


# ---------------------------------------------------------------------------------------------------------------------
# Annotations
# ---------------------------------------------------------------------------------------------------------------------

# Stands for an annotation that cannot be read.
_UNREADABLE = object()


def _read(annotation: tp.Any, module_globals: dict[str, tp.Any], names: Mapping[str, tp.Any]) -> tp.Any:
    if annotation is tp.Self or annotation == "Self":
        return Node
    carrier = type("carrier", (), {"__annotations__": {"value": annotation}})
    try:
        return tp.get_type_hints(carrier, module_globals, dict(names), include_extras=True)["value"]
    except Exception:
        return _UNREADABLE


@functools.lru_cache(maxsize=1024)
def fields(cls: type) -> dict[str, tp.Any]:
    """The attributes whose annotations in the class body, or in one of a base class, are about arrays."""
    found: dict[str, tp.Any] = {}
    for base in reversed(cls.__mro__):
        if base not in _classes:
            continue
        module_globals = getattr(sys.modules.get(base.__module__), "__dict__", {})
        for name, annotation in inspect.get_annotations(base).items():
            read = _read(annotation, module_globals, {**vars(base), base.__name__: base})
            found.pop(name, None)
            if read is _UNREADABLE:
                if "'" in str(annotation) or '"' in str(annotation):  # it may have been about an array
                    _warn_unreadable(base, f"the annotation of {name}")
            elif axes.mentions_array(read):
                found[name] = read
    return found


@functools.lru_cache(maxsize=4096)
def _signature(function: tp.Any, owner: type) -> inspect.Signature:
    """The signature of a method with its annotations read; `inspect.Parameter.empty` for those that cannot be."""
    signature = inspect.signature(function)
    function = inspect.unwrap(function)
    names = {cls.__name__: cls for cls in reversed(owner.__mro__)}
    closure = inspect.getclosurevars(function).nonlocals if isinstance(function, types.FunctionType) else {}
    module_globals = getattr(function, "__globals__", {})

    def read(what: str, annotation: tp.Any) -> tp.Any:
        if annotation is inspect.Parameter.empty:
            return annotation
        annotation = _read(annotation, module_globals, {**names, **closure})
        if annotation is _UNREADABLE:
            _warn_unreadable(function, what)
            return inspect.Parameter.empty
        return annotation

    parameters = [
        parameter.replace(annotation=read(f"the annotation of {name}", parameter.annotation))
        for name, parameter in signature.parameters.items()
    ]
    return signature.replace(
        parameters=parameters,
        return_annotation=read("the return annotation", signature.return_annotation),
    )


def _warn_unreadable(owner: tp.Any, what: str) -> None:
    if on:
        warnings.warn(
            UncheckedAnnotationWarning(
                f"{owner.__module__}.{owner.__qualname__}: {what} cannot be read, so it is not checked.\n"
                "  Are its names defined in the module, and not in a function or under `if TYPE_CHECKING:` only?"
            ),
            stacklevel=user_level(),
        )


@functools.lru_cache(maxsize=4096)
@no_type_check
def _tester(annotation: tp.Any, checker: Checker) -> Callable[[tp.Any], None]:
    """A function that raises if its argument is not what the annotation says."""

    def check(value):
        pass

    check.__annotations__ = {"value": annotation}
    return checker(check)


# ---------------------------------------------------------------------------------------------------------------------
# One call
# ---------------------------------------------------------------------------------------------------------------------


class _Threads(threading.local):
    def __init__(self) -> None:
        self.scopes: list[Scope] = []


_threads = _Threads()


class _Mismatch(Exception):
    """A value does not fit. `what` names it in a sentence."""

    def __init__(self, what: str, value: tp.Any, annotation: tp.Any, reason: str):
        super().__init__(what)
        reason = f": {reason}" if reason else ""
        self.text = f"{what} is {axes.show_value(value)}, which is not {axes.show(annotation)}{reason}"


@no_type_check
class Scope:
    """One running method, what it was given, and the checker, or None if nothing is checked."""

    __slots__ = ("args", "checker", "function", "kwargs", "module", "outermost")

    def __init__(self, module, function, args, kwargs, checker=None, outermost=False):
        self.module = module
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.checker = checker
        # Whether it is the scope of `call`, and not of a method that `call` uses.
        self.outermost = outermost

    def run(self):
        """Checks the method and gives its outputs."""
        _threads.scopes.append(self)
        try:
            if self.bound() is None:
                return self.function(self.module, *self.args, **self.kwargs)  # Python says what is wrong with them
            return _entering(self.function)(self.module, *self.args, **self.kwargs)
        except _Mismatch as error:
            raise TypeCheckError(self.message(error)) from None
        finally:
            _threads.scopes.pop()

    def explain(self):
        """What does not fit in the fields and arguments, or nothing."""
        if self.bound() is None:
            return ""
        self.checker = None
        _threads.scopes.append(self)
        try:
            _entering(self.function)(self.module, *self.args, **self.kwargs)
        except _Mismatch as error:
            return f"{error.text}\n  axes: {axes.show_sizes(self.sizes())}"
        finally:
            _threads.scopes.pop()
        return ""

    def entered(self):
        """What happens inside the scope of jaxtyping: checks, the method, checks."""
        later = self.check_fields(self.fields())
        for what, value, annotation in self.arguments():
            self.check(f"the argument {what}", value, annotation)
        for name, value, annotation in self.check_fields(later):
            self.check(f"the field {name}", value, annotation)  # raises: says which axis it lacks
        if self.checker is None:
            return None
        outputs = self.function(self.module, *self.args, **self.kwargs)
        if name_of(self.function) == "__init__":
            self.check_fields(self.fields())
        self.check("the return value", outputs, _signature(self.function, type(self.module)).return_annotation)
        return outputs

    def check_fields(self, fields):
        """Checks fields, and returns those that mention axes of the arguments."""
        later = []
        for name, value, annotation in fields:
            try:
                self.check(f"the field {name}", value, annotation)
            except AnnotationError:
                later.append((name, value, annotation))
        return later

    def fields(self):
        attributes = self.module.__dict__
        for name, annotation in fields(type(self.module)).items():
            value = attributes.get(name)
            if value is None or isinstance(value, jax.ShapeDtypeStruct):
                continue
            if (
                isinstance(value, np.ndarray)
                and axes.is_array_annotation(annotation)
                and annotation.array_type is Array
            ):
                # NumPy's arrays may stand for JAX's as the leaves of a pytree.
                annotation = annotation.dtype[np.ndarray, annotation.dim_str]
            yield name, value, annotation

    def bound(self):
        """The arguments by name, or None if they do not fit the signature."""
        try:
            return _signature(self.function, type(self.module)).bind(self.module, *self.args, **self.kwargs)
        except (TypeError, ValueError):
            return None

    def arguments(self):
        """Name, value and annotation of each argument, those of `*args` and `**kwargs` one by one."""
        parameters = _signature(self.function, type(self.module)).parameters
        for name, value in self.bound().arguments.items():
            parameter = parameters[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                yield from ((f"{name}[{index}]", item, parameter.annotation) for index, item in enumerate(value))
            elif parameter.kind is parameter.VAR_KEYWORD:
                yield from ((key, item, parameter.annotation) for key, item in value.items())
            else:
                yield name, value, parameter.annotation

    def check(self, what, value, annotation):
        """Checks a value against an annotation in the scope that is entered."""
        if annotation is inspect.Parameter.empty or annotation is tp.Any:
            return
        if self.checker is None:
            arrays = [array.dtype[tp.Any, array.dim_str] for array in axes.alternatives(annotation)]
            about_arrays = axes.is_array_annotation(annotation) or hasattr(value, "shape")
            if arrays and about_arrays and not any(isinstance(value, array) for array in arrays):
                raise _Mismatch(what, value, annotation, _reason(value, arrays))
            return
        tester = self.tester(what, annotation)
        try:
            tester(value)
        except AnnotationError:
            raise
        except Exception:
            raise _Mismatch(what, value, annotation, _reason(value, axes.alternatives(annotation))) from None

    def tester(self, what, annotation):
        try:
            return _tester(annotation, self.checker)
        except Exception:  # unhashable, or an annotation that the checker does not know
            _warn_unreadable(self.function, f"the annotation of {what}")
            return lambda value: None

    def names(self):
        """What an expression in braces can refer to."""
        bound = self.bound()
        if bound is None:
            return {"self": self.module}
        bound.apply_defaults()
        return {"self": self.module, **bound.arguments}

    def sizes(self):
        """The axes that the fields and the arguments bind."""
        found, names = {}, self.names()
        for _ in range(2):  # again, for expressions of axes that came later
            for name, value, annotation in self.fields():
                found = axes.bind(annotation, value, name, found, names)
            if self.bound() is not None:
                for name, value, annotation in self.arguments():
                    found = axes.bind(annotation, value, name, found, names)
        return found

    def message(self, error):
        where = f"{path_of(self.module)} ({type(self.module).__name__}.{name_of(self.function)})"
        return f"{where}: {error.text}.\n  axes: {axes.show_sizes(self.sizes())}"


def name_of(function: tp.Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


@no_type_check
def _reason(value, annotations):
    """What is wrong with an array, if it is one of the kind that is asked for."""
    for annotation in annotations:
        if annotation.array_type is tp.Any or isinstance(value, annotation.array_type):
            try:
                return annotation.__instancecheck_str__(value)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
    return ""


@functools.lru_cache(maxsize=1024)
@no_type_check
def _entering(function):
    """Enters a scope of jaxtyping in which the arguments of `function` have their names."""

    def entered(*args, **kwargs):
        return _threads.scopes[-1].entered()

    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    entered.__signature__ = inspect.Signature(bare)
    return jaxtyped(entered, typechecker=lambda function: function)


# ---------------------------------------------------------------------------------------------------------------------
# What modules and parameters call
# ---------------------------------------------------------------------------------------------------------------------


@no_type_check
def first_run(function, module, /, *args, **kwargs):
    """Runs a method that may create parameters, whose shapes can be read off their annotations."""
    scope = Scope(module, function, args, kwargs, outermost=True)
    _threads.scopes.append(scope)
    try:
        return function(module, *args, **kwargs)
    finally:
        _threads.scopes.pop()


def check_constructed(module: Node) -> None:
    """Checks the fields of a new module against each other."""
    cls = type(module)
    owner = next(base for base in cls.__mro__ if "__init__" in base.__dict__)
    if owner in _classes and not _is_exempt(cls.__init__):
        with _lock:
            _replace_methods(owner)  # the __init__ of a dataclass, which was made after the class
    checker = _active or next((_hooked[base] for base in cls.__mro__ if base in _hooked), None)
    if checker is not None and not _off and not jaxtyping.config.jaxtyping_disable and fields(cls):
        Scope(module, _constructed, (), {}, checker).run()


@no_type_check
def _constructed(self):
    pass


_constructed.__name__ = "__init__"


@no_type_check
def check_parameter(module, name, value):
    """Checks a parameter that was just created, in the scope of the method that created it."""
    scopes = _threads.scopes
    scope = next((scope for scope in reversed(scopes) if not scope.outermost), None)
    if scope is None or scope.module is not module or scope.checker is None:
        return
    annotation = fields(type(module)).get(name)
    if annotation is not None:
        scope.check(f"the parameter {name}", value, annotation)


def infer_shape(module: Node, name: str) -> tuple[int, ...] | None:
    """The shape of a parameter from its annotation and the axes that are bound; None if it has no annotation."""
    annotation = fields(type(module)).get(name)
    if annotation is None:
        return None
    scope = _outermost_scope(module)
    sizes = scope.sizes()
    try:
        return axes.shape_of(annotation, sizes, scope.names())
    except axes.UnknownAxisError as error:
        raise ParameterError(
            f"{path_of(module, name)}: its shape is to be read off {axes.show(annotation)}, but {error}.\n"
            f"  axes: {axes.show_sizes(sizes)}\n"
            f"  Annotate an argument of {name_of(scope.function)} with that axis, write its size as an attribute, "
            f"{{self.size}}, or give the shape: self.add_parameter({name!r}, [...])."
        ) from None


def infer_dtype(module: Node, name: str, default: tp.Any) -> tp.Any:
    """The dtype of a parameter for which none was given."""
    annotation = fields(type(module)).get(name)
    return default if annotation is None else axes.dtype_of(annotation, default)


def _outermost_scope(module: Node) -> Scope:
    scopes: Iterator[Scope] = reversed(_threads.scopes)
    found = next((scope for scope in scopes if scope.outermost and scope.module is module), None)
    return Scope(module, _constructed, (), {}) if found is None else found


def explain(module: Node, function: tp.Any, args: tp.Any, kwargs: tp.Any) -> str:
    """Which field or argument does not fit its annotation, for the note on an error of any kind."""
    return Scope(module, inspect.unwrap(function), args, kwargs).explain()
