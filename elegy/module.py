"""`Module`: construction, frozen attributes, the call, the copy."""

from __future__ import annotations

import abc
import contextlib
import copy as copying
import dataclasses
import functools
import inspect
import types
import typing as tp
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy import layout, leaves, parameters as _parameters, pytree, tracing
from elegy.captures import note_capture, placed_if_captured
from elegy.containers import freeze_containers
from elegy.dtype_policy import DtypePolicy, computing, set_dtype_policy
from elegy.errors import (
    ClassDefinitionError,
    ElegyError,
    FrozenModuleError,
    NameCollisionError,
    ParameterError,
    StaticValueError,
)
from elegy.frames import (
    PRIVATE,
    RNG_ATTRIBUTE,
    Frame,
    class_of,
    default_name,
    note_update,
    path_of,
    plain_arguments,
    require_same_trace,
)
from elegy.habits import better_error, hint_for_call
from elegy.hooks import add_summary, rng_context
from elegy.initialise import NeedsInitPass, run_init_pass
from elegy.kept import HasCall, compiled
from elegy.layout import Meta, meta_of
from elegy.leaves import Node
from elegy.pickling import portable
from elegy.random import RNG, KeyLike
from elegy.state import is_to_be_run_again, state, training as training_mode, training_context, transact, transaction
from elegy.tracebacks import shorten
from elegy.transaction import NOTHING, Conflict, belongs, birthplace, commits, held, lock, under_construction, visible
from elegy.typechecking import axes, scopes, switch
from elegy.typechecking.import_hook import compact_methods, no_type_check

Self = tp.TypeVar("Self", bound="Module")
Own = tp.TypeVar("Own")
Own_co = tp.TypeVar("Own_co", covariant=True)
Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")
Outputs_co = tp.TypeVar("Outputs_co", covariant=True)


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
            switch.adopt(cls)
        return cls

    def __setattr__(cls, name: str, value: tp.Any) -> None:
        if name == "call":
            value = _as_call(value)
        elif leaves.holds_module(value):
            raise _module_in_class(cls, name)
        super().__setattr__(name, value)

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
        def call(module: Module, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            function = _call_of(module)
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
    has_call = next(base for base in cls.__mro__ if "call" in vars(base)) is not Module
    if where is not Module and not has_call and not _uses_super(vars(where)["__call__"]):
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
    def get(module: Module) -> tp.Any:
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
    if module._elegy_born != tracing.EAGER:
        leaves.set_pending(module, PRIVATE)
    under_construction.add(id(module))
    frame = Frame(module, "__init__")
    state.frames.append(frame)
    # What __init__ computes from constants is concrete, though the call around it may be abstract.
    concretely = contextlib.nullcontext() if state.init_pass is None else jax.ensure_compile_time_eval()
    try:
        with transaction(), concretely:
            switch.first_run(cls.__init__, module, *args, **kwargs)
            if state.init_pass is not None:
                state.init_pass.modules.append(module)
            _seal(module)
            pytree.set_aside_undrawn(module)
            if switch.on:
                switch.check_constructed(module)
    except TypeError:
        if (better := better_error(cls, args, kwargs)) is not None:
            raise better from None
        raise
    finally:
        state.frames.pop()
        under_construction.discard(id(module))
    return module


def _seal(module: Module) -> None:
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
        if name in _METHODS:
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
        for _, child in layout.children(module):
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


def run_method(module: Module, method: str, function: Callable[..., tp.Any], args: tp.Any, kwargs: tp.Any) -> tp.Any:
    """Runs a method of a module in a frame of its own, after an init pass if it never ran; again if another thread
    initialised the module meanwhile."""
    frames = state.frames
    outermost = not frames and not state.threaded and state.init_pass is None
    while True:
        begun = commits.number
        try:
            with transaction(), placed_if_captured(module) if outermost else contextlib.nullcontext():
                trace = tracing.current()
                captured = not belongs(module)
                run = function if isinstance(function, types.FunctionType) else _bound_first(function)
                if method not in meta_of(module).hooks:
                    _initialise(module, method, function, args, kwargs)
                    run = functools.partial(switch.first_run, run)
                policy = meta_of(module).dtype_policy
                if policy is not None:
                    run = computing(policy, run)
                frame = Frame(module, method, trace)
                frames.append(frame)
                try:
                    outputs = run(module, *args, **kwargs)
                    _close(frame, captured, outputs)
                except Exception as error:
                    _annotate(error, frame, function, args, kwargs)
                    raise
                finally:
                    frames.pop()
            return outputs
        except (Conflict, Exception) as error:
            if not is_to_be_run_again(error, begun):
                raise


def _close(frame: Frame, captured: bool, outputs: tp.Any) -> None:
    """Ends a method that has returned."""
    frame.close()
    if state.collector is not None and state.collector.wants_summaries:
        add_summary(frame.module, outputs)
    # Else a module around it in this trace will be noted, with all below.
    if captured and (frame.parent is None or frame.parent.trace != frame.trace):
        note_capture(frame.module)


def _bound_first(function: tp.Any) -> Callable[..., tp.Any]:
    """A transformed method as a function that takes the module first: bound to the module, it threads it."""
    bind = getattr(function, "__get__", None)
    if bind is None:
        return function

    @functools.wraps(function, updated=())
    def run(module: Module, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return bind(module, type(module))(*args, **kwargs)

    return run


def _initialise(module: Module, method: str, function: Callable[..., tp.Any], args: tp.Any, kwargs: tp.Any) -> None:
    """Runs the init pass of a method, where one is due."""
    if id(module) in state.threaded:
        if (id(module), method) in state.unreached:
            return
        raise NeedsInitPass(module, method)
    if state.init_pass is not None:
        return  # the pass that is running creates what the method asks for
    if not belongs(module):
        return  # a module of an outer trace may run if it creates nothing; what it creates is refused where it does
    pytree.require_drawn(module)

    def run(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return run_method(module, method, function, args, kwargs)

    _init_pass(module, method, run, args, kwargs)


def _init_pass(
    module: Module, method: str, run: Callable[..., tp.Any], args: tp.Any, kwargs: tp.Any, anew: Module | None = None
) -> None:
    if run_init_pass(run, args, kwargs, [module], anew=anew):
        note_update(module, "its parameters")


def _annotate(error: Exception, frame: Frame, function: tp.Any, args: tuple[tp.Any, ...], kwargs: tp.Any) -> None:
    """Adds to an error, once, in which module it happened and on what."""
    if getattr(error, "_elegy_noted", False):
        return
    try:
        error._elegy_noted = True  # type: ignore[attr-defined]
        module, parameters = frame.module, meta_of(frame.module).parameters
        arrays = {name: value for name, value in held(module).items() if name in parameters or leaves.is_array(value)}
        own = ", ".join(f"{name}: {axes.show_value(value)}" for name, value in arrays.items())
        named = [f"{name}={axes.show_value(value)}" for name, value in kwargs.items()]
        given = ", ".join([*map(axes.show_value, args), *named])
        note = (
            f"in {'/'.join(frame.parts)} ({type(module).__name__}.{frame.method_name}); parameters: {own or 'none'}; "
            f"inputs: {given or 'none'}"
        )
        if not isinstance(error, ElegyError) and (mismatch := scopes.explain(module, function, args, kwargs)):
            note += f"\n  {mismatch}"
        if any(isinstance(leaf, jax.Array) and _is_deleted(leaf) for leaf in jax.tree.leaves(arrays)):
            note += (
                "\n  Its arrays were donated to a compiled function: use the module which that function returned, or "
                "donate a copy, jax.tree.map(jnp.copy, module)."
            )
        if isinstance(error, TypeError) and any(leaves.is_key(leaf) for leaf in args):
            note += "\n  Keys are given by name: init(x, rng=key), apply(x, rng=key)."
        if hint := hint_for_call(error, kwargs):
            note += f"\n  {hint}"
        error.add_note(note)
    except Exception:
        pass  # an error that takes no note, or a module whose repr fails, must not hide the error itself


def _is_deleted(array: jax.Array) -> bool:
    return not isinstance(array, Tracer) and array.is_deleted()


Method = tp.TypeVar("Method", bound=Callable[..., tp.Any])


def compact(method: Method) -> Method:
    """Marks a method, other than `call`, that creates parameters and modules of its own.

    The method gets what `call` has: shape inference on its first run, modules that are found again on every later one,
    and a module of its own as their owner.

    ```python
    import elegy
    import jax.numpy as jnp


    class Autoencoder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return elegy.nn.Linear(2, name="encoder")(x)

        @elegy.compact
        def decode(self, z):
            return elegy.nn.Linear(5, name="decoder")(z)

        def call(self, x):
            return self.decode(self.encode(x))


    model = Autoencoder()
    model(jnp.ones([1, 5]))
    assert model.decode(jnp.ones([7, 2])).shape == (7, 5)
    ```
    """

    @functools.wraps(method)
    def wrapper(self, /, *args, **kwargs):
        try:
            return run_method(self, method.__qualname__, method, args, kwargs)
        except Exception as error:
            shorten(error)
            raise

    compact_methods[wrapper] = compact
    return tp.cast(Method, wrapper)


class Module(Node, metaclass=ModuleMeta):
    """A neural-network module: an immutable pytree whose object is a reference to it.

    Subclasses define `call`, and `__init__` where they need one. Inside `call`, parameters are made by
    `add_parameter` and modules by constructing them; both are created by the first call, with the shapes that the
    data asks for, and found again on every later one.

    **Arguments:**

    - `name`: the attribute under which a parent that creates this module inside `call` keeps it. The default is the
      class name in lower case, `linear` for `Linear`.
    - `dtype`: the dtype of the parameters that do not state one. The default is `jnp.float32`.

    Calling `super().__init__()` is not required.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp


    class MLP(elegy.Module):
        def __init__(self, width):
            self.width = width

        def call(self, x):
            x = jax.nn.relu(elegy.nn.Linear(self.width)(x))
            return elegy.nn.Linear(1)(x)


    mlp = MLP(64)
    y = mlp(jnp.ones([15, 3]))
    assert mlp.linear.w.shape == (3, 64)
    ```
    """

    __slots__ = ()

    if tp.TYPE_CHECKING:
        name: str
        dtype: tp.Any

    def __init__(self, name: str | None = None, dtype: tp.Any = None):
        if name is not None:
            if not isinstance(name, str) or not name.isidentifier():
                hint = (
                    f"\n  To run it, construct it first: {type(self).__name__}()(x)." if leaves.is_array(name) else ""
                )
                raise ValueError(
                    f"{type(self).__name__}: the name of a module must be a Python identifier, got {name!r}.{hint}"
                )
            self.name = name
        if dtype is not None:
            self.dtype = dtype

    # -----------------------------------------------------------------------------------------------------------------
    # Calling
    # -----------------------------------------------------------------------------------------------------------------

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """The computation of the module. Define it in the subclass; run it by calling the module."""
        defined = {name for cls in _own_classes(self) for name in vars(cls)}
        own = [name for name in ("forward", "__call__") if name in defined]
        rename = f" It defines {own[0]}: rename it." if own else ""
        raise NotImplementedError(
            f"{path_of(self)}: {type(self).__name__} does not define `call`.\n"
            f"  Define call(self, ...), which runs when the module is called.{rename}"
        )

    @no_type_check
    def __call__(
        self: HasCall[Arguments, Outputs, tp.Any], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Outputs:
        """Runs `call`. The first time, an init pass creates the parameters before."""
        module = tp.cast(Module, self)
        try:
            return run_method(module, "call", _call_of(module), args, kwargs)
        except Exception as error:
            shorten(error)
            raise

    def init(
        self: Self, /, *args: tp.Any, rng: KeyLike | RNG | None = None, method: str = "call", **kwargs: tp.Any
    ) -> Self:
        """Creates the parameters, by an abstract run of `call`: nothing of the forward computation is executed and no
        state is updated. Parameters that exist stay as they are, but for those that an initializer drew in the
        `__init__` of a module that never ran: if a key is given and nobody has replaced them, they are drawn anew.

        **Arguments:**

        - `args`, `kwargs`: what the method takes; arrays may be given as `jax.ShapeDtypeStruct`.
        - `method`: the method to run instead of `call`, such as one that is marked by `elegy.compact`.
        - `rng`: a seed or a key. The default is the random stream of the thread. Equal keys give equal parameters, and
          under `jax.vmap` over keys each lane gets parameters of its own.

        **Returns:** the module itself.
        """
        if method in meta_of(self).hooks:
            return self
        require_same_trace(self, "created its parameters")
        run = self if method == "call" else getattr(self, method)
        if id(self) in state.threaded:
            raise NeedsInitPass(self, getattr(run, "__qualname__", method))

        def initialise() -> None:
            if method not in meta_of(self).hooks:  # another thread may have been first
                with contextlib.nullcontext() if rng is None else rng_context(rng):
                    _init_pass(self, method, run, args, kwargs, anew=None if rng is None else self)

        try:
            transact(initialise)
        except Exception as error:
            shorten(error)
            raise
        return self

    @tp.overload
    def apply(
        self: HasCall[..., Outputs, Own],
        /,
        *args: tp.Any,
        rng: KeyLike | RNG | None = None,
        training: bool | None = None,
        method: tp.Literal["call"] = "call",
        **kwargs: tp.Any,
    ) -> tuple[Outputs, Own]: ...
    @tp.overload
    def apply(
        self: Self,
        /,
        *args: tp.Any,
        rng: KeyLike | RNG | None = None,
        training: bool | None = None,
        method: str,
        **kwargs: tp.Any,
    ) -> tuple[tp.Any, Self]: ...
    def apply(
        self,
        /,
        *args: tp.Any,
        rng: KeyLike | RNG | None = None,
        training: bool | None = None,
        method: str = "call",
        **kwargs: tp.Any,
    ) -> tuple[tp.Any, tp.Any]:
        """The pure call: runs a copy, and returns what it gives together with the copy.

        **Arguments:**

        - `rng`: a seed or a key for `next_rng_key`. The default is the random stream of the thread.
        - `training`: the mode of this call. The default is the mode of the thread.
        - `method`: the method to run.

        **Returns:** `(outputs, module)`, where `module` has the updated state. The module itself is untouched.
        """
        module = self.copy()
        with training_context(training_mode() if training is None else training):
            run = module if method == "call" else getattr(module, method)
            if rng is None:
                return run(*args, **kwargs), module
            with rng_context(rng):
                return run(*args, **kwargs), module

    @no_type_check
    def jit(self: HasCall[Arguments, Outputs, tp.Any], /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs:
        """Calls the module through `elegy.jit`."""
        from elegy.transforms import jit

        return compiled(tp.cast(Module, self), "call", lambda: jit(tp.cast(tp.Any, self)))(*args, **kwargs)

    def init_jit(self: Self, /, *args: tp.Any, **kwargs: tp.Any) -> Self:
        """As `init`; kept for code that compiles the initialisation, which needs no compilation here."""
        return self.init(*args, **kwargs)

    # -----------------------------------------------------------------------------------------------------------------
    # Parameters and state
    # -----------------------------------------------------------------------------------------------------------------

    @no_type_check
    def add_parameter(
        self,
        name: str,
        shape: Sequence[tp.SupportsIndex] | None = None,
        dtype: tp.Any = None,
        initializer: tp.Any = jnp.zeros,
        trainable: bool = True,
    ) -> tp.Any:
        """The parameter `name` of this module, created by the first run.

        **Arguments:**

        - `name`: the attribute that holds it.
        - `shape`: the default is the shape of `initializer` if that is an array, else that of the annotation of `name`
          in the class body, whose axes must be known by now: `w: Float[Array, "in {self.width}"]`. Without an
          annotation it is `()`.
        - `dtype`: the default is the `dtype` of the module, or what the annotation asks for if that is another kind.
        - `initializer`: a function of `(shape, dtype)`, a function of `(key, shape, dtype)` such as those of
          `jax.nn.initializers`, a function without arguments, or the initial value itself (an array, or a pytree of
          arrays).
        - `trainable`: False makes it state: it is never differentiated, and `update_parameter` changes it.

        **Returns:** its current value.

        **Raises:** `ParameterError` if it exists with another shape, or does not exist and this is not the first run;
        `NameCollisionError` if the name is taken.
        """
        return _parameters.add_parameter(self, name, shape, dtype, initializer, trainable)

    def update_parameter(self, name: str, value: tp.Any) -> None:
        """Gives the parameter `name` another value of the same shape and dtype."""
        _parameters.update_parameter(self, name, value)

    def get_parameters(self, trainable: bool | None = None) -> dict[str, tp.Any]:
        """The arrays of the module and of its submodules, as a nested dict by attribute name.

        **Arguments:**

        - `trainable`: True for the trainable ones, False for the rest, None for all.

        Lists, tuples and dicts of modules keep their form, with `()` where there is nothing. A module that is reachable
        by two paths appears at the first.
        """
        return _parameters.get_parameters(self, trainable)

    def set_parameters(self, values: Mapping[str, tp.Any] | Module) -> None:
        """Replaces arrays by name. `values` may be a part of what `get_parameters` returns.

        **Raises:** `ParameterError`, naming every unknown name, wrong shape and wrong dtype, and changing nothing.
        """
        _parameters.set_parameters(self, values)

    def reset(self) -> None:
        """Returns to the state before the first call. Parameters that `__init__` created keep their values."""
        _parameters.reset(self)

    @property
    def initialized(self) -> bool:
        """Whether a first run has created the parameters."""
        return meta_of(self).initialized

    @property
    def trainable(self) -> bool:
        """Whether the parameters are trainable. Assigning it freezes or unfreezes the module and all below it."""
        return meta_of(self).trainable

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        _parameters.set_trainable(self, trainable)

    @property
    def dtype_policy(self) -> DtypePolicy | None:
        """The dtypes in which the module keeps its parameters, computes, and answers. Assigning it decides for the
        module and all below it that have no policy of their own; the default, None, casts nothing."""
        return tp.cast(tp.Any, meta_of(self).dtype_policy)

    @dtype_policy.setter
    def dtype_policy(self, policy: DtypePolicy | None) -> None:
        set_dtype_policy(self, policy)

    @property
    def submodules(self) -> dict[str, tp.Any]:
        """The modules that this one holds itself, by name."""
        return {"/".join(parts): child for parts, child in layout.child_parts(self)}

    def parameters_size(self, include_submodules: bool = True) -> int:
        """The number of trainable elements."""
        return sum(leaf.size for leaf in self._arrays(True, include_submodules))

    def parameters_bytes(self, include_submodules: bool = True) -> int:
        """The number of bytes of the trainable arrays."""
        return sum(leaf.nbytes for leaf in self._arrays(True, include_submodules))

    def states_size(self, include_submodules: bool = True) -> int:
        """The number of elements that are not trainable."""
        return sum(leaf.size for leaf in self._arrays(False, include_submodules))

    def states_bytes(self, include_submodules: bool = True) -> int:
        """The number of bytes of the arrays that are not trainable."""
        return sum(leaf.nbytes for leaf in self._arrays(False, include_submodules))

    def _arrays(self, trainable: bool, include_submodules: bool) -> list[tp.Any]:
        seen = set() if include_submodules else {id(child) for _, child in layout.children(self)}
        found = _parameters.collect(self, trainable, lambda module, name, index, value: value, seen)
        return jax.tree.leaves(found)

    # -----------------------------------------------------------------------------------------------------------------
    # Attributes
    # -----------------------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: tp.Any) -> None:
        if id(self) in under_construction or name in ("trainable", "dtype_policy"):
            object.__setattr__(self, name, value)
            return
        if held(self).get(name, NOTHING) is value:
            return  # as in `self.bias = self.add_parameter("bias", ...)`: nothing changes
        raise FrozenModuleError(
            f"{path_of(self)}.{name} cannot be assigned: a module is immutable once its __init__ has returned.\n"
            "  To change arrays use set_parameters (or update_parameter in call); to get a changed copy use "
            f"equinox.tree_at(lambda m: m.{name}, module, new); to freeze parameters assign module.trainable.\n"
            "  A module made in call is kept by itself: give it a name by its name= argument."
        )

    def __delattr__(self, name: str) -> None:
        if id(self) in under_construction:
            object.__delattr__(self, name)
            return
        raise FrozenModuleError(
            f"{path_of(self)}.{name} cannot be deleted: a module is immutable once its __init__ has returned."
        )

    if tp.TYPE_CHECKING:

        def __getattr__(self, name: str) -> tp.Any: ...

    else:

        def __getattr__(self, name):
            # Reached only by names that are not there.
            if name == "name":
                return default_name(type(self))
            if name == "dtype":
                return jnp.float32
            if name != "_elegy_undrawn" and name in getattr(visible(self), "_elegy_undrawn", ()):
                pytree.require_drawn(self)
            if hasattr(type(self), name):
                return object.__getattribute__(self, name)  # a property raised: it says what is missing
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if not name.startswith("_") and not meta_of(self).initialized:
                message += "; the module is not initialised: parameters appear with its first call, or with init"
            raise AttributeError(message, name=name, obj=self)

    # -----------------------------------------------------------------------------------------------------------------
    # Copies
    # -----------------------------------------------------------------------------------------------------------------

    def copy(self: Self) -> Self:
        """A copy of the module and of all below it. Its arrays are shared, as they are immutable."""
        with lock:
            arrays, treedef = jax.tree.flatten(self)
        copy = treedef.unflatten(map(pytree.fresh, arrays))
        if copy._elegy_born != tracing.EAGER:
            for module in layout.walk([copy]):
                leaves.set_pending(module, PRIVATE)
        return copy

    def __copy__(self: Self) -> Self:
        return self.copy()

    def __deepcopy__(self: Self, memo: dict[int, tp.Any]) -> Self:
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(copying.deepcopy(_state_of(self, copying=True), memo))
        return copy

    def __getstate__(self) -> tp.Any:
        return _state_of(self)

    def __setstate__(self, saved: tp.Any) -> None:
        attributes, meta = saved
        pytree.register(type(self))
        tp.cast(dict[str, tp.Any], self.__dict__).update(attributes)
        leaves.set_meta(self, meta)
        leaves.set_ties(self, None)
        leaves.set_layout(self, None)
        leaves.set_born(self, tracing.current())
        if self._elegy_born != tracing.EAGER:
            leaves.set_pending(self, PRIVATE)

    def __repr__(self) -> str:
        from elegy.rendering import summarise

        return summarise(self)

    def __str__(self) -> str:
        """What `print` shows: the `repr`, and below it how many elements and bytes the module holds, by kind."""
        from elegy.rendering import totals

        text = repr(self)
        is_ours = type(self).__repr__ is Module.__repr__ or dataclasses.is_dataclass(self)
        return f"{text}\n{totals(self)}" if is_ours else text

    def __pdoc__(self, **kwargs: tp.Any) -> tp.Any:
        """How `wadler_lindig`, and with it `equinox.tree_pformat` and jaxtyping, show a module."""
        from elegy.rendering import document

        return document(self, **kwargs)

    def __treescope_repr__(self, path: str | None, subtree_renderer: tp.Any) -> tp.Any:
        """How treescope shows a module."""
        from elegy.rendering import render_in_treescope

        return render_in_treescope(self, path, subtree_renderer)


def _call_of(module: Module) -> tp.Any:
    """The function that a module runs when it is called."""
    cls: tp.Any = type(module)
    return (class_of(module) if cls._elegy_is_local else cls).call


def _state_of(module: Module, copying: bool = False) -> tp.Any:
    """What makes up a module, for a pickle or a copy."""
    attributes = {name: portable(value, copying) for name, value in held(module).items()}
    return (attributes, meta_of(module))


def _own_classes(module: Module) -> list[type]:
    return [cls for cls in type(module).__mro__ if issubclass(cls, Module) and cls is not Module]


if tp.TYPE_CHECKING:

    class FunctionModule(Module, tp.Generic[Arguments, Outputs]):
        """What `to_module` makes, to a static checker."""

        def __init__(self, name: str | None = None): ...

        def call(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs: ...


@no_type_check
def to_module(function: Callable[Arguments, Outputs]) -> type[FunctionModule[Arguments, Outputs]]:
    """A module class whose instances run `function`, in which hooks and modules can be used.

    **Arguments:**

    - `function`: takes no `self`.

    **Returns:** a class; its constructor takes `name`.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp


    @elegy.to_module
    def block(x):
        return jax.nn.relu(elegy.nn.Linear(8)(x))


    y = block()(jnp.ones([2, 3]))
    assert y.shape == (2, 8)
    ```
    """
    name = getattr(function, "__name__", type(function).__name__)

    class ThisModule(Module):
        def __init__(self, name: str | None = None):
            super().__init__(name=name)

        @tp.no_type_check  # a checker's wrapper could not be pickled with the class
        def call(self, *args, **kwargs):
            return switch.checked_function(function)(*args, **kwargs)

    ThisModule.__name__ = "lambda_" if name == "<lambda>" else name
    ThisModule.__qualname__ = getattr(function, "__qualname__", name)
    ThisModule.__module__ = getattr(function, "__module__", __name__)
    ThisModule.__doc__ = function.__doc__
    return tp.cast(tp.Any, ThisModule)


_METHODS = frozenset(name for name in vars(Module) if not name.startswith("_")) - {"name", "dtype"}
