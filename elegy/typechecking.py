"""Checks annotated arrays: the fields of a module and the method that runs share one scope of axis names.

A checked method runs inside a scope of jaxtyping. The fields are checked first, then the arguments, then each parameter
that is created, at last the outputs, so that `in` and `out` mean the same in `w: Float[Array, "in out"]` and in
`call(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]`.

What runs between the entry of a scope and a check inside it must not be decorated by jaxtyping's import hook, which
would put a scope of its own in between: hence `no_type_check` below, which the hook knows by its name.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import threading
import types
import typing as tp
import weakref
from collections.abc import Callable, Mapping

import jax
import jaxtyping
import numpy as np
from jaxtyping import AnnotationError, Array, jaxtyped

from elegy import axes
from elegy.errors import ParameterError, TypeCheckError, UncheckedAnnotationWarning
from elegy.frames import path_of, warn
from elegy.leaves import Node
from elegy.state import state

Function = tp.TypeVar("Function", bound=Callable[..., tp.Any])
Checker = Callable[[tp.Any], tp.Any]
# A class of arrays, or None for all, and those that may stand for it.
StandIns = tuple[tp.Any, ...]

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
# The attribute in which a class keeps its methods that are replaced while a checker is on, each with what stands for
# it. (A table of all classes would keep those alive that are made on each run of a function.)
_ORIGINALS = "_elegy_originals"
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
        self._entered = False
        self._switch_on()

    def __enter__(self) -> None:
        if self._entered:  # the first block is that of the plain call
            self._switch_on()
        self._entered = True

    def __exit__(self, *_: object) -> None:
        with _lock:
            newest = next(index for index in reversed(range(len(_switched))) if _switched[index] is self)
            del _switched[newest]
            _switch()

    def _switch_on(self) -> None:
        with _lock:
            _switched.append(self)
            _switch()


def _require_a_checker(checker: tp.Any) -> None:
    test = _tester(int, checker)
    test(1)
    try:
        test("text")
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
    for cls in list(_classes):
        for name, (original, replacement) in vars(cls).get(_ORIGINALS, {}).items():
            if vars(cls).get(name) is replacement:
                setattr(cls, name, original)
        if _ORIGINALS in vars(cls):
            delattr(cls, _ORIGINALS)
    _active = _switched[-1]._checker if _switched else None
    _off = bool(_switched) and _active is None
    on = _active is not None or bool(_hooked)
    if _active is not None:
        for cls in list(_classes):
            _replace_methods(cls)


def _checker_now(hook: Checker | None) -> Checker | None:
    """The checker of a class that jaxtyping's import hook gave the checker `hook`, or None if nothing is checked."""
    return None if _off or jaxtyping.config.jaxtyping_disable else _active or hook


def adopt(cls: type) -> None:
    """Lets the methods of a new class be checked."""
    global on
    with _lock:
        _classes.add(cls)
        for value in list(vars(cls).values()):
            if hook := _hook_of(value):
                _hooked[cls] = hook
                on = True
        if on:
            _replace_methods(cls)


def _replace_methods(cls: type) -> None:
    for name in list(vars(cls)):
        if name == "__init__" or not name.startswith("__"):
            _replace_method(cls, name)


def _replace_method(cls: type, name: str) -> None:
    """Puts a checking method into a class: for good where jaxtyping's import hook was, else while a checker is on."""
    value = vars(cls)[name]
    hooked = _hook_of(value) is not None
    replacement = _checking(cls, name, value)
    if replacement is not value:
        setattr(cls, name, replacement)
        if not hooked:
            setattr(cls, _ORIGINALS, {**vars(cls).get(_ORIGINALS, {}), name: (value, replacement)})


def _checking(cls: type, name: str, value: tp.Any) -> tp.Any:
    """What checks in the place of an attribute of a class; the attribute itself if there is nothing to check."""
    if isinstance(value, property):
        getter = _checking(cls, name, value.fget)
        return value if getter is value.fget else value.getter(getter)
    if isinstance(value, (classmethod, staticmethod)):
        function = checked_function(value.__func__)
        return value if function is value.__func__ else type(value)(function)
    if not isinstance(value, types.FunctionType) or _is_exempt(value):
        return value
    if value in compact_methods:
        method = _inside(value)
        inner = _checking(cls, "call", method)
        return value if inner is method else compact_methods[value](inner)
    if _hook_of(value) is None and (_active is None or not (name == "call" or _is_annotated(value))):
        return value
    return _checked(value, cls)


def checked_function(function: Function) -> Function:
    """A function that is no method, checked if a checker is on."""
    if _is_exempt(function) or not (_hook_of(function) or (_active and _is_annotated(function))):
        return function
    return _checked(function)


def _is_annotated(function: tp.Any) -> bool:
    return bool(getattr(function, "__annotations__", None))


def _is_exempt(decorated: tp.Any) -> bool:
    """Whether a function, or a class itself and not one of its bases, is marked by `no_type_check`."""
    return getattr(decorated, "__dict__", {}).get("__no_type_check__", False)


@no_type_check
def _checked(original, owner=None) -> tp.Any:
    """A function that checks where a checker is on; `owner` is the class, if it is a method."""
    shares = owner is not None and not _is_annotated(original)
    hook = _hook_of(original)
    if hook is not None:
        original = _without_hook(original)

    @no_type_check
    @functools.wraps(original)
    def checked(*args, **kwargs):
        return _run(original, owner, shares, hook, args, kwargs)

    return checked


@no_type_check
def _run(function, owner, shares, hook, args, kwargs):
    checker = _checker_now(hook)
    if checker is None or _is_exempt(owner):
        return function(*args, **kwargs)
    module = args[0] if owner is not None and args else None
    # Without annotations of its own a method belongs to the scope of the one that uses it.
    if shares and _threads.scopes and _threads.scopes[-1].module is module:
        return function(*args, **kwargs)
    return Scope(module, function, args, kwargs, checker).run()


# ---------------------------------------------------------------------------------------------------------------------
# Functions that jaxtyping's import hook decorated
# ---------------------------------------------------------------------------------------------------------------------


def _inside(function: tp.Any) -> tp.Any:
    return getattr(function, "__wrapped__", None)


def _closure(function: tp.Any) -> dict[str, tp.Any]:
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
    while isinstance(function, types.FunctionType) and not _is_exempt(function):
        if function not in compact_methods and function.__globals__.get("__name__") == "jaxtyping._decorator":
            return function
        function = _inside(function)
    return None


def _hook_of(value: tp.Any) -> Checker | None:
    """The checker with which jaxtyping, or its import hook, decorated a method."""
    # The function does not tell its checker; it is found by the name of the argument of `jaxtyped`.
    function = _jaxtyped_in(value)
    inner = None if function is None else _closure(function).get("wrapped_fn_impl")
    return None if inner is None else _closure(inner).get("typechecker")


def _without_hook(function: tp.Any) -> tp.Any:
    """A function without the scope of jaxtyping, which would be another one than that of the fields."""
    inner = _jaxtyped_in(function)
    if inner is function and _closure(function).get("fn") is _inside(function):
        return _inside(function)
    while inner is not None:  # with other decorators around and between; it will let everything through
        inner.__no_type_check__ = True
        inner = _jaxtyped_in(_inside(inner))
    return function


# ---------------------------------------------------------------------------------------------------------------------
# Annotations
# ---------------------------------------------------------------------------------------------------------------------

# Stands for an annotation that cannot be read.
_UNREADABLE = object()


def _read(annotation: tp.Any, module_globals: dict[str, tp.Any], names: Mapping[str, tp.Any], owner: tp.Any) -> tp.Any:
    carrier = type("carrier", (), {"__annotations__": {"value": annotation}})
    try:
        read = tp.get_type_hints(carrier, module_globals, {"Self": tp.Self, **names}, include_extras=True)["value"]
    except Exception:
        return _UNREADABLE
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
        if base not in _classes or _is_exempt(base):
            continue
        module_globals = getattr(sys.modules.get(base.__module__), "__dict__", {})
        for name, annotation in inspect.get_annotations(base).items():
            read = _read(annotation, module_globals, {**vars(base), **_by_name(base), **_type_parameters(base)}, cls)
            found.pop(name, None)
            # What cannot be read may have been about an array if there are axes in it, which are in quotes.
            if axes.mentions_array(read) or (read is _UNREADABLE and any(quote in str(annotation) for quote in "'\"")):
                found[name] = read
    return found


def _field(module: Node, name: str) -> tp.Any:
    """The annotation of one field, or None."""
    annotation = fields(type(module)).get(name)
    return None if annotation is _UNREADABLE else annotation


@functools.lru_cache(maxsize=4096)
def _signature(function: tp.Any, owner: type | None) -> inspect.Signature:
    """The signature of a function, of a method of `owner`, with its annotations read."""
    signature = inspect.signature(function)
    function = inspect.unwrap(function)
    names: dict[str, tp.Any] = {}
    for base in () if owner is None else reversed(owner.__mro__):
        names |= _by_name(base) | _type_parameters(base)
    if isinstance(function, types.FunctionType):
        names |= _closure(function) | _type_parameters(function)
    module_globals = getattr(function, "__globals__", {})

    def read(annotation: tp.Any) -> tp.Any:
        if annotation is inspect.Parameter.empty or _is_exempt(function):
            return inspect.Parameter.empty
        return _read(annotation, module_globals, names, owner)

    parameters = [
        parameter.replace(annotation=read(parameter.annotation)) for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters, return_annotation=read(signature.return_annotation))


@functools.lru_cache(maxsize=4096)
@no_type_check
def _tester(annotation: tp.Any, checker: Checker, stand_ins: StandIns = ()) -> Callable[[tp.Any], None]:
    """A function that raises if its argument is not what the annotation says."""
    if annotation is _UNREADABLE:
        raise NameError

    def check(value):
        pass

    check.__annotations__ = {"value": axes.allowing(annotation, *stand_ins)}
    return checker(check)


# ---------------------------------------------------------------------------------------------------------------------
# One call
# ---------------------------------------------------------------------------------------------------------------------


class _Threads(threading.local):
    def __init__(self) -> None:
        # The methods that are checked, and the first runs of methods, which create parameters; the innermost last.
        self.scopes: list[Scope] = []
        self.first_runs: list[Scope] = []


_threads = _Threads()


class _Mismatch(Exception):
    """A value does not fit. The message is without the place."""


class Entry(tp.NamedTuple):
    """A value that has an annotation."""

    kind: tp.Literal["field", "parameter", "argument", "return"]
    name: str
    value: tp.Any
    annotation: tp.Any


@no_type_check
class Scope:
    """One running function, what it was given, and the checker."""

    def __init__(self, module, function, args, kwargs, checker):
        self.module = module  # None for a function that is no method
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.checker = checker
        self.there_before = set() if module is None else set(module.__dict__)
        self.fitting = []  # in the order in which axes got their sizes

    @functools.cached_property
    def signature(self):
        return _signature(self.function, None if self.module is None else type(self.module))

    @functools.cached_property
    def bound(self):
        """The arguments by name, or None if they do not fit the signature."""
        try:
            return self.signature.bind(*self.args, **self.kwargs).arguments
        except (TypeError, ValueError):
            return None

    def run(self):
        """Checks the function and gives its outputs."""
        __tracebackhide__ = True
        if self.bound is None:
            return self.function(*self.args, **self.kwargs)  # Python says what is wrong with them
        try:
            return self.enter()
        except _Mismatch as mismatch:
            raise self.error(mismatch) from None

    def enter(self):
        _threads.scopes.append(self)
        try:
            return _entering(self.function)(*self.args, **self.kwargs)
        finally:
            _threads.scopes.pop()

    def entered(self):
        """What happens inside the scope of jaxtyping: checks, the function, checks."""
        waiting = self.check_all([*self.fields(there_before=True), *self.arguments()])
        waiting = self.check_all(waiting)
        if self.checker is _arrays_only:
            return None
        for entry in waiting:
            if entry.kind == "argument" and not self.constructing:
                self.check(entry)  # raises: says which axis it lacks
        outputs = self.function(*self.args, **self.kwargs)
        waiting = self.check_all([*waiting, *self.fields(there_before=False)])
        self.check(Entry("return", "value", outputs, self.signature.return_annotation))
        for entry in self.check_all(waiting):
            if name_of(self.function) == "call":
                self.warn(entry, "refers to axes that no field and no argument has, so it is not checked.")
        return outputs

    @property
    def constructing(self):
        return name_of(self.function) == "__init__" and self.function is not _constructed

    def fields(self, there_before):
        """The fields that were there before the function ran, or those that came later."""
        if self.module is not None:
            for name, annotation in fields(type(self.module)).items():
                value = self.module.__dict__.get(name)
                if value is not None and (name in self.there_before) == there_before:
                    yield Entry("field", name, value, annotation)

    def arguments(self):
        """The arguments, those of `*args` and `**kwargs` one by one."""
        for name, value in (self.bound or {}).items():
            parameter = self.signature.parameters[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                named = {f"{name}[{index}]": item for index, item in enumerate(value)}
            else:
                named = value if parameter.kind is parameter.VAR_KEYWORD else {name: value}
            for name, item in named.items():
                yield Entry("argument", name, item, parameter.annotation)

    def check_all(self, entries):
        """Checks values, and returns those that mention axes which have no size yet."""
        waiting = []
        for entry in entries:
            try:
                self.check(entry)
            except AnnotationError:
                waiting.append(entry)
        return waiting

    def check(self, entry):
        """Checks a value against an annotation in the scope that is entered."""
        kind, name, value, annotation = entry
        if annotation is inspect.Parameter.empty or annotation is tp.Any:
            return
        # One by one, so that the message names the item, and since a checker may look at some of them only.
        for index, item, part in axes.items(annotation, value):
            self.check(Entry(kind, name + index, item, part))
        stand_ins = self.stand_ins(kind)
        try:
            test = _tester(annotation, self.checker, stand_ins)
        except Exception:  # unhashable, or unknown to the checker
            self.warn(
                entry,
                "cannot be read, so it is not checked.\n"
                "  Are its names defined in the module, and not in a function or under `if TYPE_CHECKING:` only?",
            )
            return
        try:
            test(value)
        except AnnotationError:
            raise
        except Exception as error:
            if self.constructing and isinstance(error, AttributeError):
                raise AnnotationError(str(error)) from None  # `{self.width}`, which is not there yet
            reason = _reason(value, axes.allowing(annotation, *stand_ins))
            text = f"the {kind} {name} is {axes.show_value(value)}, which is not {axes.show(annotation)}"
            raise _Mismatch(f"{text}: {reason}" if reason else text) from None
        self.fitting.append(entry)

    def stand_ins(self, kind):
        if self.checker is _arrays_only:
            return (None, tp.Any)
        if kind in ("field", "parameter"):
            return (Array, np.ndarray, jax.ShapeDtypeStruct)  # which are leaves of a pytree too
        return () if state.init_pass is None else (np.ndarray, Array)  # it is abstract in an init pass

    def error(self, mismatch):
        where = name_of(self.function, "__qualname__")
        if self.module is not None:
            where = f"{path_of(self.module)} ({type(self.module).__name__}.{name_of(self.function)})"
        return TypeCheckError(f"{where}: {mismatch}.\n  {self.show_axes()}")

    def show_axes(self):
        return f"axes: {axes.show_sizes(self.sizes(self.fitting))}"

    def warn(self, entry, text):
        if self.checker is not _arrays_only:
            owner = type(self.module) if entry.kind in ("field", "parameter") else self.function
            what = "return annotation" if entry.kind == "return" else f"annotation of {entry.name}"
            text = f"{owner.__module__}.{name_of(owner, '__qualname__')}: the {what} {text}"
            warn(UncheckedAnnotationWarning(text))

    def names(self):
        """What an expression in braces can refer to."""
        defaults = {name: parameter.default for name, parameter in self.signature.parameters.items()}
        return {"self": self.module, **defaults, **(self.bound or {})}

    def sizes(self, entries):
        """The axes that values bind."""
        found, names = {}, self.names()
        for entry in entries:
            found = axes.bind(entry.annotation, entry.value, entry.name, found, names)
        return found


def name_of(function: tp.Any, attribute: str = "__name__") -> str:
    return getattr(function, attribute, type(function).__name__)


@no_type_check
def _arrays_only(function):
    """The checker of errors that happened while no checker was on: it looks at dtypes and shapes."""
    annotation = function.__annotations__["value"]
    arrays = list(axes.alternatives(annotation))
    no_other = len(arrays) == len(tp.get_args(annotation))

    def check(value):
        if arrays and (no_other or hasattr(value, "shape")) and not any(isinstance(value, array) for array in arrays):
            raise TypeError

    return check


@no_type_check
def _reason(value, annotation):
    """What is wrong with an array, if it is one of the kind that is asked for."""
    for array in axes.alternatives(annotation) if hasattr(value, "dtype") else ():
        if array.array_type is tp.Any or isinstance(value, array.array_type):
            if not isinstance(value, axes.with_type(array, tp.Any, "...")):
                return f"{value.dtype} is not a dtype of {array.dtype.__name__}"
            try:
                return array.__instancecheck_str__(value)
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
    if on and function is type(module).__init__:
        function = _checked_constructor(type(module))
    _threads.first_runs.append(Scope(module, function, (module, *args), kwargs, _arrays_only))
    try:
        return function(module, *args, **kwargs)
    finally:
        _threads.first_runs.pop()


def _checked_constructor(cls: tp.Any) -> tp.Any:
    """The `__init__` of a class, which a decorator such as `dataclass` may have made after the class."""
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    if owner in _classes:
        with _lock:
            _replace_method(owner, "__init__")
    return cls.__init__


def check_constructed(module: Node) -> None:
    """Checks the fields of a new module against each other."""
    cls = type(module)
    checker = _checker_now(next((_hooked[base] for base in cls.__mro__ if base in _hooked), None))
    if checker is not None and fields(cls):
        Scope(module, _constructed, (module,), {}, checker).run()


@no_type_check
def _constructed(self):
    pass


_constructed.__name__ = "__init__"


@no_type_check
def check_parameter(module, name, value):
    """Checks a parameter that was just created, in the scope of the method that created it."""
    scope = _threads.scopes[-1] if _threads.scopes else None
    annotation = fields(type(module)).get(name)
    if scope is not None and scope.module is module and annotation is not None:
        try:
            scope.check(Entry("parameter", name, value, annotation))
        except AnnotationError:
            pass  # it is checked again when the method has run
        except _Mismatch as mismatch:
            raise scope.error(mismatch) from None


def infer_shape(module: Node, name: str) -> tuple[int, ...] | None:
    """The shape of a parameter from its annotation and the axes that are bound; None if it has no annotation."""
    annotation = _field(module, name)
    if annotation is None:
        return None
    scope = next((scope for scope in reversed(_threads.first_runs) if scope.module is module), None)
    scope = Scope(module, _constructed, (module,), {}, _arrays_only) if scope is None else scope
    sizes = scope.sizes([*scope.fields(there_before=True), *scope.arguments(), *scope.fields(there_before=False)])
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
    annotation = _field(module, name)
    return default if annotation is None else axes.dtype_of(annotation, default)


@no_type_check
def explain(module, function, args, kwargs):
    """Which field or argument does not fit its annotation, for the note on an error of any kind."""
    scope = Scope(module, function, (module, *args), kwargs, _arrays_only)
    try:
        if scope.bound is not None:
            scope.enter()
    except _Mismatch as mismatch:
        return f"{mismatch}\n  {scope.show_axes()}"
    return ""
