"""One call: its fields, arguments, new parameters and outputs are checked in one scope of axis names.

A checked method runs inside a scope of jaxtyping. The fields are checked first, then the arguments, then each parameter
that is created, at last the outputs, so that `in` and `out` mean the same in `w: Float[Array, "in out"]` and in
`call(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]`.

What runs between the entry of a scope and a check inside it must not be decorated by jaxtyping's import hook, which
would put a scope of its own in between: hence `no_type_check`, which the hook knows by its name.
"""

from __future__ import annotations

import functools
import inspect
import threading
import typing as tp

import jax
import numpy as np
from jaxtyping import AnnotationError, Array, jaxtyped

from elegy.checks import no_type_check
from elegy.errors import ElegyError, TypeCheckError, UncheckedAnnotationWarning, show_value
from elegy.frames import path_of, warn
from elegy.state import state
from elegy.transaction import held
from elegy.typechecking import axes
from elegy.typechecking.annotations import fields, signature_of, tester
from elegy.typechecking.import_hook import is_transform


class _Local(threading.local):
    def __init__(self) -> None:
        # The methods that are checked, and the first runs of methods, which create parameters; the innermost last.
        self.scopes: list[Scope] = []
        self.first_runs: list[Scope] = []


local = _Local()


class Mismatch(Exception):
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
        self.there_before = set() if module is None else set(held(module))
        self.fitting = []  # in the order in which axes got their sizes

    @functools.cached_property
    def signature(self):
        return signature_of(self.function, None if self.module is None else type(self.module))

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
        except Mismatch as mismatch:
            raise self.error(mismatch) from None

    def enter(self):
        local.scopes.append(self)
        try:
            return _entering(self.function)(*self.args, **self.kwargs)
        finally:
            local.scopes.pop()

    def entered(self):
        """What happens inside the scope of jaxtyping: checks, the function, checks."""
        waiting = self.check_all([*self.fields(there_before=True), *self.arguments()])
        waiting = self.check_all(waiting)
        if self.checker is arrays_only:
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
        return name_of(self.function) in ("__init__", "__post_init__") and self.function is not constructed

    def fields(self, there_before):
        """The fields that were there before the function ran, or those that came later."""
        if self.module is not None:
            for name, annotation in fields(type(self.module)).items():
                value = held(self.module).get(name)
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
            test = tester(annotation, self.checker, stand_ins)
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
            text = f"the {kind} {name} is {show_value(value)}, which is not {axes.show(annotation)}"
            raise Mismatch(f"{text}: {reason}" if reason else text) from None
        self.fitting.append(entry)

    def stand_ins(self, kind):
        if self.checker is arrays_only:
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
        if self.checker is not arrays_only:
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
def arrays_only(function):
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
        return local.scopes[-1].entered()

    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    entered.__signature__ = inspect.Signature(bare)
    return jaxtyped(entered, typechecker=lambda function: function)


@no_type_check
def constructed(self):
    pass


constructed.__name__ = "__init__"


@no_type_check
def check_parameter(module, name, value):
    """Checks a parameter that was just created, in the scope of the method that created it."""
    scope = local.scopes[-1] if local.scopes else None
    annotation = fields(type(module)).get(name)
    if scope is not None and scope.module is module and annotation is not None:
        try:
            scope.check(Entry("parameter", name, value, annotation))
        except AnnotationError:
            pass  # it is checked again when the method has run
        except Mismatch as mismatch:
            raise scope.error(mismatch) from None


@no_type_check
def explain(module, function, args, kwargs):
    """Which field or argument does not fit its annotation, for the note on an error of any kind."""
    if is_transform(function):
        return ""  # what it is given inside counts: see `run_below`
    scope = Scope(module, function, (module, *args), kwargs, arrays_only)
    try:
        if scope.bound is not None:
            scope.enter()
    except Mismatch as mismatch:
        return f"{mismatch}\n  {scope.show_axes()}"
    return ""


@no_type_check
def note(error, module, function, args, kwargs):
    """Adds to an error which argument does not fit, if no module below has said what it knows."""
    if isinstance(error, ElegyError) or getattr(error, "_elegy_noted", False):
        return
    try:
        if mismatch := explain(module, function, args, kwargs):
            error.add_note(f"in {path_of(module)} ({type(module).__name__}.{name_of(function)}): {mismatch}")
    except Exception:
        pass  # an error that takes no note must not hide the error itself
