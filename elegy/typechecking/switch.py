"""Which checker is on, and the methods that check while one is."""

from __future__ import annotations

import functools
import threading
import types
import typing as tp
import weakref

import jaxtyping

from elegy.leaves import Node
from elegy.typechecking.annotations import fields, tester
from elegy.typechecking.import_hook import (
    Checker,
    Function,
    compact_methods,
    hook_of,
    inside,
    is_exempt,
    no_type_check,
    without_hook,
)
from elegy.typechecking.scopes import Scope, arrays_only, constructed, local

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
    test = tester(int, checker)
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
            if hook := hook_of(value):
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
    hooked = hook_of(value) is not None
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
    if not isinstance(value, types.FunctionType) or is_exempt(value):
        return value
    if value in compact_methods:
        method = inside(value)
        inner = _checking(cls, "call", method)
        return value if inner is method else compact_methods[value](inner)
    if hook_of(value) is None and (_active is None or not (name == "call" or _is_annotated(value))):
        return value
    return _checked(value, cls)


def checked_function(function: Function) -> Function:
    """A function that is no method, checked if a checker is on."""
    if is_exempt(function) or not (hook_of(function) or (_active and _is_annotated(function))):
        return function
    return _checked(function)


def _is_annotated(function: tp.Any) -> bool:
    return bool(getattr(function, "__annotations__", None))


@no_type_check
def _checked(original, owner=None) -> tp.Any:
    """A function that checks where a checker is on; `owner` is the class, if it is a method."""
    shares = owner is not None and not _is_annotated(original)
    hook = hook_of(original)
    if hook is not None:
        original = without_hook(original)

    @no_type_check
    @functools.wraps(original)
    def checked(*args, **kwargs):
        return _run(original, owner, shares, hook, args, kwargs)

    return checked


@no_type_check
def _run(function, owner, shares, hook, args, kwargs):
    checker = _checker_now(hook)
    if checker is None or is_exempt(owner):
        return function(*args, **kwargs)
    module = args[0] if owner is not None and args else None
    # Without annotations of its own a method belongs to the scope of the one that uses it.
    if shares and local.scopes and local.scopes[-1].module is module:
        return function(*args, **kwargs)
    return Scope(module, function, args, kwargs, checker).run()


# ---------------------------------------------------------------------------------------------------------------------
# What modules call
# ---------------------------------------------------------------------------------------------------------------------


@no_type_check
def first_run(function, module, /, *args, **kwargs):
    """Runs a method that may create parameters, whose shapes can be read off their annotations."""
    if on and function is type(module).__init__:
        function = _checked_constructor(type(module))
    local.first_runs.append(Scope(module, function, (module, *args), kwargs, arrays_only))
    try:
        return function(module, *args, **kwargs)
    finally:
        local.first_runs.pop()


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
        Scope(module, constructed, (module,), {}, checker).run()
