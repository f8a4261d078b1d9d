"""Construction: classes of modules, what is refused in them, and how an object is made, checked and sealed."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import inspect
import types
import typing as tp
from collections.abc import Callable

import jax
import numpy as np

from elegy import checks, leaves, parameters as _parameters, pytree, tracing
from elegy.calls import call_of, compact_methods, run_method
from elegy.containers import freeze_containers
from elegy.errors import ClassDefinitionError, NameCollisionError, ParameterError, StaticValueError
from elegy.frames import PRIVATE, RNG_ATTRIBUTE, Frame, path_of, plain_arguments
from elegy.habits import better_error
from elegy.kept import compiled
from elegy.layout import Meta, children, meta_of
from elegy.leaves import Node
from elegy.state import state, transaction
from elegy.tracebacks import shorten
from elegy.transaction import NOTHING, Attribute, birthplace, under_construction

# The metaclass of `typing.Protocol` derives from ABCMeta, so that a module may also be of a class of protocols.
_Meta = abc.ABCMeta if tp.TYPE_CHECKING else type(tp.Protocol)


class ModuleMeta(_Meta):
    """Makes construction a hook: inside `call` it gives the module of the first run back."""

    # No class of modules is itself a protocol, for which that of Protocol would look at each question.
    __instancecheck__ = abc.ABCMeta.__instancecheck__
    __subclasscheck__ = abc.ABCMeta.__subclasscheck__

    def __new__(mcs, name, bases, namespace, **kwargs):
        if namespace.get("__slots__"):
            raise ClassDefinitionError(
                f"class {name} declares __slots__, but a module keeps its attributes in __dict__, where JAX "
                "finds its arrays.\n"
                "  Remove __slots__ (for a dataclass: slots=True)."
            )
        cached = {
            key: _cached(key, value) for key, value in namespace.items() if isinstance(value, functools.cached_property)
        }
        namespace = {**namespace, **cached}
        _tell_apart(namespace)
        if "call" in namespace:
            namespace["call"] = _as_call(namespace["call"])
        cls: tp.Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        for base in cls.__mro__:
            if not issubclass(base, Node):  # of a mixin: it would write past the frozen attributes
                for key, value in vars(base).items():
                    if isinstance(value, functools.cached_property) and inspect.getattr_static(cls, key) is value:
                        setattr(cls, key, _cached(key, value))
        # A class of a function may be made anew on each run, and close over other values then.
        cls._elegy_is_local = "<locals>" in cls.__qualname__
        if bases != (Node,):
            _check_class(cls)
            checks.define(cls)
        return cls

    def __setattr__(cls, name: str, value: tp.Any) -> None:
        if name == "call":
            value = _as_call(value)
        elif leaves.holds_module(value):
            raise _module_in_class(cls, name)
        elif isinstance(cls.__dict__.get(name), Attribute):
            value = Attribute(name, value)
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        known = cls.__dict__.get(name)
        if not isinstance(known, Attribute):
            super().__delattr__(name)
        elif known.default is NOTHING:
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}", name=name, obj=cls)
        else:
            super().__setattr__(name, Attribute(name))

    @property
    def __signature__(cls) -> inspect.Signature:
        signature = inspect.signature(cls.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(cls, *args, **kwargs):
        frame = state.frames[-1] if state.frames else None
        if frame is None or frame.building:
            try:
                return _construct(cls, args, kwargs)
            except Exception as error:
                shorten(error)
                raise
        return frame.create(cls, plain_arguments(args, kwargs), lambda: _construct(cls, args, kwargs))


class Call:
    """The method `call` as a class holds it. Read from the class it is the function that the user wrote; `module.call`
    runs as the module itself does."""

    def __init__(self, function: tp.Any):
        self.__func__ = function

    @property
    def __isabstractmethod__(self) -> bool:
        return getattr(self.__func__, "__isabstractmethod__", False)

    def __get__(self, instance: tp.Any, owner: tp.Any = None) -> tp.Any:
        function = self.__func__
        if instance is None or not hasattr(function, "__get__"):
            return function
        frame = state.frames[-1] if state.frames else None
        if frame is not None and frame.module is instance:
            # `super().call` runs in the frame of the method that uses it.
            if frame.method == "call" or inspect.getattr_static(type(instance), "call") is not self:
                return function.__get__(instance, owner)
        return types.MethodType(self._direct, instance)

    @functools.cached_property
    def _direct(self) -> Callable[..., tp.Any]:
        @functools.wraps(self.__func__, updated=())
        def call(module: Node, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            function = call_of(module)
            if inspect.getattr_static(type(module), "call") is not self:
                function = self.__func__
            try:
                return run_method(module, "call", function, args, kwargs)
            except Exception as error:
                shorten(error)
                raise

        return call

    def __getstate__(self) -> tp.Any:
        return self.__func__

    def __setstate__(self, function: tp.Any) -> None:
        self.__func__ = function


def _as_call(value: tp.Any) -> tp.Any:
    """What a class keeps under the name `call`."""
    return Call(value) if callable(value) and not isinstance(value, Call) else value


def _check_class(cls: type) -> None:
    """Refuses a class whose instances would not do what its body says."""
    where = next(base for base in cls.__mro__ if "__call__" in vars(base))
    has_call = not _is_base(next(base for base in cls.__mro__ if "call" in vars(base)))
    if not _is_base(where) and not has_call and not _uses_super(vars(where)["__call__"]):
        raise ClassDefinitionError(
            f"class {cls.__qualname__} defines __call__ and no `call`. Parameters and layers that __call__ makes would "
            "be new ones each time.\n"
            "  Rename it: def call(self, ...), which runs when the module is called. What is to happen around `call` "
            "uses super().__call__(...)."
        )
    for base in cls.__mro__:
        if base is cls or not issubclass(base, Node):
            for name, value in vars(base).items():
                if leaves.holds_module(value.default if isinstance(value, dataclasses.Field) else value):
                    raise _module_in_class(cls, name)


def _is_base(cls: type) -> bool:
    """Whether a class is `Module` itself."""
    return Node in cls.__bases__


def _uses_super(function: tp.Any) -> bool:
    """Whether a `__call__` hands on to that of its base: then it is one around the `call` of subclasses."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and "__call__" in code.co_names


def _module_in_class(cls: type, name: str) -> ClassDefinitionError:
    return ClassDefinitionError(
        f"{cls.__qualname__}.{name} is a module in the body of a class: it is no part of the instances, whose "
        "parameters it would not be among, and all of them would share it.\n"
        f"  Make it in __init__ (self.{name} = ...) or in call; in a dataclass give the field a factory: "
        f"{name}: elegy.Module = dataclasses.field(default_factory=lambda: ...)."
    )


def _tell_apart(namespace: dict[str, tp.Any]) -> None:
    """Gives compact methods that a factory made names of their own: by these they find what they created."""
    for key, value in namespace.items():
        if isinstance(value, types.FunctionType) and value in compact_methods:
            method = tp.cast(tp.Any, value).__wrapped__
            name = f"{namespace['__qualname__']}.{key}"
            if method.__qualname__ != name and not vars(method).get("_elegy_named", False):
                method.__qualname__ = value.__qualname__ = name
                method._elegy_named = True


def _cached(name: str, attribute: functools.cached_property) -> property:
    """A cached property that keeps its value beside the attributes, where it is no part of the structure."""

    @functools.wraps(attribute.func)
    def get(module: Node) -> tp.Any:
        def compute() -> tp.Any:
            value = attribute.func(module)
            if any(leaves.is_dynamic(leaf) for leaf in jax.tree.leaves(value, is_leaf=leaves.is_node)):
                raise StaticValueError(
                    f"{path_of(module, name)} is a functools.cached_property that gives an array or a "
                    "module, which would go stale when parameters change.\n  Use property."
                )
            return value

        return compiled(module, attribute, compute)

    return property(get)


def _construct(cls: tp.Any, args: tuple[tp.Any, ...], kwargs: dict[str, tp.Any]) -> tp.Any:
    pytree.register(cls)
    state.constructed += 1
    module = cls.__new__(cls, *args, **kwargs)
    leaves.set_meta(module, Meta())
    leaves.set_layout(module, None)
    leaves.set_ties(module, None)
    leaves.set_born(module, birthplace())
    leaves.set_pending(module, None if module._elegy_born == tracing.EAGER else PRIVATE)
    leaves.set_undrawn(module, {})
    under_construction.add(id(module))
    frame = Frame(module, "__init__")
    state.frames.append(frame)
    # What __init__ computes from constants is concrete, though the call around it may be abstract.
    concretely = contextlib.nullcontext() if state.init_pass is None else jax.ensure_compile_time_eval()
    try:
        with transaction(), concretely:
            checks.first_run(cls.__init__, module, *args, **kwargs)
            if state.init_pass is not None:
                state.init_pass.modules.append(module)
            _seal(module)
            pytree.set_aside_undrawn(module)
            if checks.on:
                checks.check_constructed(module)
    except TypeError:
        if (better := better_error(cls, args, kwargs)) is not None:
            raise better from None
        raise
    finally:
        state.frames.pop()
        under_construction.discard(id(module))
    return module


def _seal(module: Node) -> None:
    """Fixes the attributes of a new module: values are checked, containers frozen."""
    owner, meta = type(module).__name__, meta_of(module)
    attributes = tp.cast(dict[str, tp.Any], module.__dict__)
    if RNG_ATTRIBUTE in attributes:
        raise NameCollisionError(
            f"{owner}.{RNG_ATTRIBUTE} is the attribute in which a module keeps the key of its random draws.\n"
            "  Choose another name."
        )
    parameters = {id(attributes[name]): name for name in meta.parameters}
    for name, value in attributes.items():
        if name in type(module)._elegy_methods:
            raise NameCollisionError(
                f"{owner}.{name} is a method of every module, and the attribute would stand in its place.\n"
                "  Choose another name."
            )
        if leaves.is_static(value) and not hasattr(value, "__wrapped__"):
            continue
        if id(value) in parameters and name not in meta.parameters:
            raise ParameterError(
                f"{owner}.{name} holds the parameter {parameters[id(value)]!r} under another name, and would keep its "
                f"old value when the parameter changes.\n  Write self.{name} = self.add_parameter({name!r}, ...)."
            )
        if leaves.is_plain(value):
            attributes[name] = freeze_containers(value, f"{owner}.{name}")
            continue
        _check_attribute(owner, name, value)
        if not isinstance(value, Node) and not leaves.is_array(value) and name not in meta.parameters:
            for leaf in jax.tree.leaves(value, is_leaf=leaves.is_node) if parameters else ():
                if id(leaf) in parameters:
                    raise ParameterError(
                        f"{owner}.{name} holds the parameter {parameters[id(leaf)]!r} in a container, where it would "
                        "keep its old value when the parameter changes.\n  Make the container the parameter: "
                        f"self.{name} = self.add_parameter({name!r}, initializer=lambda: [...])."
                    )
            attributes[name] = frozen = freeze_containers(value, f"{owner}.{name}")
            leaves.check_keys(f"{owner}.{name}", frozen)
    if not meta.trainable:  # assigned in __init__, perhaps before the submodules were there
        for _, child in children(module):
            _parameters.set_trainable(child, False)


def _check_attribute(owner: str, name: str, value: tp.Any) -> None:
    """Refuses what a module cannot hold."""
    if isinstance(value, Node):
        if id(value) in under_construction:
            raise StaticValueError(
                f"{owner}.{name} is a module whose __init__ is still running: a module cannot be below itself.\n"
                "  Pass what the child needs from its parent when it is called."
            )
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OSUMm":
        leaves.check_static(owner, name, value)
    elif isinstance(value, jax.tree_util.Partial) and isinstance(value.func, Node):
        raise StaticValueError(
            f"{owner}.{name} is a jax.tree_util.Partial whose function is a module: JAX sees the arguments of a "
            "Partial, not its function.\n  Store the module and the arguments as attributes."
        )
    elif not leaves.is_array(value):
        for leaf in jax.tree.leaves(freeze_containers(value), is_leaf=leaves.is_node):
            if isinstance(leaf, Node):
                _check_attribute(owner, name, leaf)
            elif not leaves.is_array(leaf):
                leaves.check_static(owner, name, leaf)
