"""Which checker is on, and the methods that check while one is."""

from __future__ import annotations

import functools
import threading
import types
import typing as tp
import weakref

import jaxtyping

from elegy import checks
from elegy.calls import compact_methods
from elegy.checks import Function, no_type_check
from elegy.leaves import Node
from elegy.typechecking.annotations import fields, tester
from elegy.typechecking.import_hook import Checker, hook_of, inside, is_exempt, is_transform, without_hook
from elegy.typechecking.inference import run_below
from elegy.typechecking.scopes import Scope, arrays_only, constructed, local

_lock = threading.RLock()
# What `typechecker` switched on and nobody has switched off, the newest last.
_switched: list[_Switch] = []
_active: Checker | None = None
# Whether the newest of them switched checking off, for classes that jaxtyping's import hook has decorated too.
_off = False
# The attribute in which a class keeps its methods that are replaced while a checker is on, each with what stands for
# it. (A table of all classes would keep those alive that are made on each run of a function.)
_ORIGINALS = "_elegy_originals"
# The checker of classes that jaxtyping's import hook has decorated.
_hooked: weakref.WeakKeyDictionary[type, Checker] = weakref.WeakKeyDictionary()


class _Switch:
    """A checker, or None, that holds until a block ends, or for good: then nobody has a `typechecker` to end it by."""

    def __init__(self, checker: Checker | None):
        self.checker = checker
        self.is_for_good = False


def _keep(switches: list[_Switch]) -> None:
    """Lets switches hold for good. The last one that was entered decides, so the others are forgotten."""
    with _lock:
        for switch in switches:
            switch.is_for_good = True
        for switch in [switch for switch in _switched if switch.is_for_good][:-1]:
            _switched.remove(switch)


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
        self._switches: list[_Switch] = []
        # A plain call lets the object go at once, and a block holds it to its end.
        weakref.finalize(self, _keep, self._switches).atexit = False
        self._switch_on()

    def __enter__(self) -> None:
        if self._entered:  # the first block is that of the plain call
            self._switch_on()
        self._entered = True

    def __exit__(self, *_: object) -> None:
        with _lock:
            _switched.remove(self._switches.pop())
            _switch()

    def _switch_on(self) -> None:
        with _lock:
            self._switches.append(_Switch(self._checker))
            _switched.append(self._switches[-1])
            _switch()


def _require_a_checker(checker: tp.Any) -> None:
    test = tester(int, checker)
    test(1)
    try:
        test("text")
    except Exception as error:
        error.__traceback__ = None  # its frames may hold it, and would keep those around them, with the `typechecker`
        return
    raise ValueError(
        f"the type checker {getattr(checker, '__qualname__', checker)!r} checks nothing: a str passed for an int.\n"
        "  Use beartype.beartype, or typeguard.typechecked of typeguard 2 (later versions need the source of a "
        "function). elegy.typechecker(None) switches checking off."
    )


def _switch() -> None:
    """Makes the newest checker the one that is on. The caller has the lock."""
    global _active, _off
    for cls in list(checks.classes):
        for name, (original, replacement) in vars(cls).get(_ORIGINALS, {}).items():
            if vars(cls).get(name) is replacement:
                setattr(cls, name, original)
        if _ORIGINALS in vars(cls):
            delattr(cls, _ORIGINALS)
    _active = _switched[-1].checker if _switched else None
    _off = bool(_switched) and _active is None
    checks.on = _active is not None or bool(_hooked)
    if _active is not None:
        for cls in list(checks.classes):
            _replace_methods(cls)


def _checker_now(hook: Checker | None) -> Checker | None:
    """The checker of a class that jaxtyping's import hook gave the checker `hook`, or None if nothing is checked."""
    return None if _off or jaxtyping.config.jaxtyping_disable else _active or hook


def define(cls: type) -> None:
    """Lets the methods of a new class be checked."""
    with _lock:
        checks.classes.add(cls)
        for value in list(vars(cls).values()):
            if hook := hook_of(value):
                _hooked[cls] = hook
                checks.on = True
        if checks.on or any(map(_has_transform, vars(cls).values())):
            _replace_methods(cls)


# What Python and this library call on a module that is not whole yet, to copy it, or to show and compare it, where no
# check may come in between; and what is no method of an instance.
_UNCHECKED = frozenset(
    "__new__ __init_subclass__ __class_getitem__ __del__ __getattribute__ __getattr__ __setattr__ __delattr__ "
    "__copy__ __deepcopy__ __replace__ __reduce__ __reduce_ex__ __getstate__ __setstate__ __getnewargs__ "
    "__getnewargs_ex__ __sizeof__ __dir__ __eq__ __ne__ __hash__ __repr__ __str__ __format__ __pdoc__ "
    "__treescope_repr__".split()
)


def _replace_methods(cls: type) -> None:
    for name in vars(cls).keys() - _UNCHECKED:
        _replace_method(cls, name)


def _replace_method(cls: type, name: str) -> None:
    """Puts a checking method into a class: while a checker is on, or for good where jaxtyping's import hook was, or a
    transform, which keeps what it compiled."""
    value = vars(cls)[name]
    # Asked before, since what the hook left is taken away.
    is_for_good = hook_of(value) is not None or _has_transform(value)
    replacement = _checking(cls, name, value)
    if replacement is not value:
        setattr(cls, name, replacement)
        if not is_for_good:
            setattr(cls, _ORIGINALS, {**vars(cls).get(_ORIGINALS, {}), name: (value, replacement)})


def _has_transform(value: tp.Any) -> bool:
    function = getattr(value, "fget", getattr(value, "__func__", value))
    while isinstance(function, types.FunctionType) and function in compact_methods:
        function = inside(function)
    return is_transform(function)


def _checking(cls: type, name: str, value: tp.Any, below: bool = False) -> tp.Any:
    """What checks in the place of an attribute of a class; the attribute itself if there is nothing to check.

    `below` says that a transform was made of it.
    """
    if isinstance(value, property):
        getter = _checking(cls, name, value.fget)
        return value if getter is value.fget else value.getter(getter)
    if isinstance(value, (classmethod, staticmethod)):
        function = checked_function(value.__func__)
        return value if function is value.__func__ else type(value)(function)
    if name == "call" and hasattr(value, "__func__"):  # the method as a class of modules keeps it
        function = _checking(cls, name, value.__func__, below)
        return value if function is value.__func__ else type(value)(function)
    if is_transform(value):
        inner = _checking(cls, name, value.function, below=True)
        return value if inner is value.function else value._around(inner)
    if not isinstance(value, types.FunctionType) or is_exempt(value):
        return value
    if value in compact_methods:
        method = inside(value)
        inner = _checking(cls, "call", method, below)
        return value if inner is method else compact_methods[value](inner)
    is_wanted = (below or _active is not None) and (name == "call" or _is_annotated(value))
    if hook_of(value) is None and not is_wanted:
        return value
    return _checked(value, cls, below)


def checked_function(function: Function, below: bool = False) -> Function:
    """A function that is no method, checked if a checker is on. `below` says that a transform was made of it."""
    if is_transform(function):
        transform: tp.Any = function
        inner = checked_function(transform.function, below=True)
        if inner is transform.function:
            return function
        # Always the same one, since it keeps what it compiled.
        return vars(transform).setdefault("_elegy_checked", transform._around(inner))
    is_wanted = (below or _active is not None) and _is_annotated(function)
    if is_exempt(function) or not (hook_of(function) or is_wanted):
        return function
    return _checked(function)


def _is_annotated(function: tp.Any) -> bool:
    return bool(getattr(function, "__annotations__", None))


@no_type_check
def _checked(original, owner=None, below=False) -> tp.Any:
    """A function that checks where a checker is on; `owner` is the class, if it is a method."""
    shares = owner is not None and not _is_annotated(original)
    hook = hook_of(original)
    if hook is not None:
        original = without_hook(original)

    @no_type_check
    @functools.wraps(original)
    def checked(*args, **kwargs):
        return _run(original, owner, shares, hook, args, kwargs)

    if owner is None or not below:
        return checked

    @no_type_check
    @functools.wraps(checked)
    def checked_below(*args, **kwargs):
        return run_below(checked, args, kwargs)

    return checked_below


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
# What the core asks
# ---------------------------------------------------------------------------------------------------------------------


@no_type_check
def first_run(function, module, /, *args, **kwargs):
    """Runs a method that may create parameters, whose shapes can be read off their annotations."""
    if checks.on and function is type(module).__init__:
        function = _checked_constructor(type(module))
    local.first_runs.append(Scope(module, function, (module, *args), kwargs, arrays_only))
    try:
        return function(module, *args, **kwargs)
    finally:
        local.first_runs.pop()


def _checked_constructor(cls: tp.Any) -> tp.Any:
    """The `__init__` of a class, which a decorator such as `dataclass` may have made after the class."""
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    if owner in checks.classes:
        with _lock:
            _replace_method(owner, "__init__")
    return cls.__init__


def check_constructed(module: Node) -> None:
    """Checks the fields of a new module against each other."""
    cls = type(module)
    checker = _checker_now(next((_hooked[base] for base in cls.__mro__ if base in _hooked), None))
    if checker is not None and fields(cls):
        Scope(module, constructed, (module,), {}, checker).run()
