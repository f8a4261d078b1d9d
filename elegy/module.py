"""`Module`: its methods, its frozen attributes, its copies."""

from __future__ import annotations

import contextlib
import copy as copying
import dataclasses
import typing as tp
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from elegy import checks, layout, leaves, parameters as _parameters, pytree, tracing
from elegy.calls import call_of, init_pass_of, run_method
from elegy.checks import no_type_check
from elegy.construction import ModuleMeta
from elegy.creation import add_parameter
from elegy.draws import rng_context
from elegy.dtype_policy import DtypePolicy, set_dtype_policy
from elegy.errors import (
    FrozenModuleError,
)
from elegy.frames import (
    PRIVATE,
    default_name,
    path_of,
    require_same_trace,
)
from elegy.initialise import NeedsInitPass
from elegy.kept import HasCall, compiled
from elegy.layout import meta_of
from elegy.leaves import Node, undrawn_of
from elegy.pickling import portable
from elegy.random import RNG, KeyLike
from elegy.state import state, training as training_mode, training_context, transact
from elegy.tracebacks import shorten
from elegy.transaction import (
    NOTHING,
    held,
    lock,
    under_construction,
    visible,
)

Self = tp.TypeVar("Self", bound="Module")
Own = tp.TypeVar("Own")
Own_co = tp.TypeVar("Own_co", covariant=True)
Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")
Outputs_co = tp.TypeVar("Outputs_co", covariant=True)


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
            return run_method(module, "call", call_of(module), args, kwargs)
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
        if method in meta_of(self).records:
            return self
        require_same_trace(self, "created its parameters")
        run = self if method == "call" else getattr(self, method)
        if id(self) in state.threaded:
            raise NeedsInitPass(self, getattr(run, "__qualname__", method))

        def initialise() -> None:
            if method not in meta_of(self).records:  # another thread may have been first
                with contextlib.nullcontext() if rng is None else rng_context(rng):
                    init_pass_of(self, method, run, args, kwargs, anew=None if rng is None else self)

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
        return add_parameter(self, name, shape, dtype, initializer, trainable)

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
            if name in undrawn_of(visible(self)):
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
            return checks.checked_function(function)(*args, **kwargs)

    ThisModule.__name__ = "lambda_" if name == "<lambda>" else name
    ThisModule.__qualname__ = getattr(function, "__qualname__", name)
    ThisModule.__module__ = getattr(function, "__module__", __name__)
    ThisModule.__doc__ = function.__doc__
    return tp.cast(tp.Any, ThisModule)


Module._elegy_methods = frozenset(name for name in vars(Module) if not name.startswith("_")) - {"name", "dtype"}
