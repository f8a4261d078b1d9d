"""Creating parameters: what `add_parameter` was asked for, and how it becomes an array."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from elegy import checks, tracing
from elegy.checks import no_type_check
from elegy.drawn import remember
from elegy.draws import rng_context
from elegy.errors import (
    HookError,
    NameCollisionError,
    ParameterError,
)
from elegy.frames import RESERVED, RNG_ATTRIBUTE, Frame, is_taken, path_of, require_same_trace
from elegy.layout import meta_of
from elegy.leaves import Node, is_array, is_inexact, set_undrawn, undrawn_of
from elegy.precision import NUMBERS, cast, strong
from elegy.random import RNG, fold_in_path
from elegy.state import state, write, write_meta
from elegy.transaction import held

Make = Callable[[], tp.Any]
# How many zeros or ones are made by NumPy, since JAX would compile a program for each shape. More of them are not
# copied to the device.
_SMALL = 1 << 16


@no_type_check
def add_parameter(
    module: Node,
    name: str,
    shape: Sequence[tp.SupportsIndex] | None,
    dtype: tp.Any,
    initializer: tp.Any,
    trainable: bool,
) -> tp.Any:
    frame = state.frames[-1] if state.frames else None
    meta = meta_of(module)
    wanted = None if shape is None else tuple(operator.index(size) for size in shape)
    asked = None if dtype is None else _as_dtype(dtype)
    if name in meta.parameters and name in held(module) and name != RNG_ATTRIBUTE:
        value = held(module)[name]
        if is_array(value):
            _require_as_before(module, name, value, wanted, asked)
        return value
    constructing = frame is not None and frame.building and frame.module is module
    _require_creatable(module, name, frame, constructing)
    dtypes = meta.dtypes if asked is None else {**meta.dtypes, name: asked}
    if dtype is None:
        dtype = checks.infer_dtype(module, name, tp.cast(tp.Any, module).dtype)
    if wanted is None and callable(initializer) and _positional(initializer):
        wanted = checks.infer_shape(module, name)
    recipe = Recipe(wanted, dtype, asked, initializer)
    key = _key(module, name, constructing) if recipe.draws else None
    make, finish = recipe.maker(module, name, key)
    policy = state.dtype_policy if trainable else None
    if policy is not None and policy.param_dtype is not None:
        finish = functools.partial(_finish_in, policy.param_dtype, finish)
    if state.init_pass is not None:
        compute_dtype = None if policy is None else policy.compute_dtype
        value = state.init_pass.create(module, name, make, finish, key, compute_dtype)
    else:
        value = finish(make())
        if key is not None:
            value = _drawn(module, name, value, recipe)
        write(module, name, value, created=True)
    constructed = (*meta.constructed, name) if constructing else meta.constructed
    meta = dataclasses.replace(
        meta, parameters={**meta.parameters, name: bool(trainable)}, dtypes=dtypes, constructed=constructed
    )
    write_meta(module, meta, created=True)
    if checks.on:
        checks.check_parameter(module, name, value)
    return value


def _finish_in(dtype: tp.Any, finish: Callable[[tp.Any], tp.Any], value: tp.Any) -> tp.Any:
    return cast(finish(value), dtype)


def _require_as_before(module: Node, name: str, value: tp.Any, shape: tuple[int, ...] | None, dtype: tp.Any) -> None:
    """Refuses to give a parameter to code that asks for another one. A shape or dtype of None asks for nothing."""
    if shape is not None and tuple(value.shape) != shape:
        raise ParameterError(
            f"{path_of(module, name)} has shape {tuple(value.shape)}, but {shape} is asked for now.\n"
            "  The shape was fixed by the first call; does this input have another size than that one?\n"
            "  Use another module for it, or module.reset() to start again."
        )
    # A module whose arrays were cast to another dtype since the first call goes on asking for the first one.
    first = meta_of(module).dtypes.get(name, dtype)
    if dtype is not None and dtype not in (first, value.dtype):
        raise ParameterError(
            f"{path_of(module, name)} has dtype {value.dtype}, but {dtype} is asked for now.\n"
            "  The dtype was fixed by the first call: give the module a dtype, or convert its input."
        )


def _require_creatable(module: Node, name: str, frame: Frame | None, constructing: bool) -> None:
    """Refuses to create a parameter where none can be created, or under a name that cannot be had."""
    if frame is None:
        overridden = getattr(type(module).__call__, "__module__", "") != "elegy.module"
        hint = f" {type(module).__name__} overrides __call__: define `call` instead." if overridden else ""
        raise HookError(
            f"{path_of(module)}: add_parameter({name!r}) was called while no module is running.{hint}\n"
            "  Call it in __init__, in call, or in a method marked @elegy.compact."
        )
    if is_taken(module, name) or name in RESERVED:
        raise NameCollisionError(
            f"{path_of(module)}: add_parameter({name!r}) would replace another attribute or a method of "
            f"{type(module).__name__}.\n  Choose another name."
        )
    if not name.isidentifier():
        raise NameCollisionError(f"{path_of(module)}: the parameter name {name!r} is not a Python identifier.")
    require_same_trace(module, f"created the parameter {name!r}")
    if not constructing and (state.init_pass is None or (frame.module is module and not frame.first)):
        raise ParameterError(
            f"{path_of(module, name)} does not exist, and parameters are created by the first run of a method only.\n"
            "  Call add_parameter unconditionally, so that the first run creates every parameter."
        )


def _as_dtype(dtype: tp.Any) -> tp.Any:
    return dtype if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype)


class Recipe(tp.NamedTuple):
    """How to make an initial value: what `add_parameter` was given, with the shape and dtype that it made of it.

    - `asked`: the dtype that was asked for, if one was.
    """

    shape: tuple[int, ...] | None
    dtype: tp.Any
    asked: tp.Any
    initializer: tp.Any

    @property
    def draws(self) -> bool:
        """Whether the initializer takes a key, or may draw one."""
        given = self.initializer
        return (
            callable(given) and bool(_positional(given)) and (_takes_key(given) or given not in (jnp.zeros, jnp.ones))
        )

    def maker(self, module: Node, name: str, key: Make | None) -> tuple[Make, Callable[[tp.Any], tp.Any]]:
        """The initial value as a function to be called in any trace, and the check of what it gives."""
        shape, dtype, asked, initializer = self
        size = () if shape is None else shape

        def make() -> tp.Any:
            if not callable(initializer):
                return initializer
            if not _positional(initializer):
                return initializer()
            if key is None:  # it is jnp.zeros or jnp.ones
                if dtype is None or math.prod(size) > _SMALL:
                    return initializer(size, dtype)
                return jnp.asarray(np.full(size, initializer is jnp.ones, dtype))
            if _takes_key(initializer):
                return initializer(key(), size, dtype)
            with rng_context(RNG(key())):
                return initializer(size, dtype)

        def finish(value: tp.Any) -> tp.Any:
            if jax.tree_util.all_leaves([value]):
                value = _in_dtype(module, name, value, dtype, asked, callable(initializer))
                sized = shape is not None or callable(initializer) and bool(_positional(initializer))
                if sized and value.shape != size:
                    raise ParameterError(
                        f"{path_of(module, name)}: the initializer gave shape {value.shape} instead of {size}."
                    )
                return value
            return jax.tree.map(strong, value)

        return make, finish


def _in_dtype(module: Node, name: str, value: tp.Any, dtype: tp.Any, asked: tp.Any, computed: bool) -> jax.Array:
    """An initial value in the dtype that was asked for, here or of the module. Without one it keeps its own."""
    value = strong(jnp.asarray(value, dtype=None if is_array(value) else dtype))
    if asked is None and "dtype" in module.__dict__ and is_inexact(value):
        asked = _as_dtype(module.__dict__["dtype"])
    if asked is None or value.dtype == jax.dtypes.canonicalize_dtype(asked):
        return value
    same_kind = any(jnp.issubdtype(value.dtype, kind) and jnp.issubdtype(asked, kind) for kind in NUMBERS)
    if computed or not same_kind:
        raise ParameterError(
            f"{path_of(module, name)}: the dtype {jnp.dtype(asked)} was asked for, and the initializer gave "
            f"{value.dtype}.\n  Use the dtype that it is given: lambda shape, dtype: jnp.ones(shape, dtype)."
        )
    return value.astype(asked)


def _key(module: Node, name: str, constructing: bool) -> Callable[[], jax.Array]:
    if state.init_pass is not None:
        journal = state.init_pass
        return journal.constructor_key(module, name) if constructing else journal.key_for(module, name)
    rng = state.rng
    if rng._born != tracing.current():
        return lambda: jax.random.key(0)  # for the shape of what cannot be drawn here
    base = rng.base_key()
    return lambda: fold_in_path(base(), name)


def _drawn(module: Node, name: str, value: tp.Any, recipe: Recipe) -> tp.Any:
    """A value that a constructor drew. Inside a jax transform, where the random stream is not, it stands for one that
    waits for `init`."""
    if state.rng._born != tracing.current():
        value = jax.tree.map(lambda array: jnp.full_like(array, jnp.nan if is_inexact(array) else 0), value)
        set_undrawn(module, {**undrawn_of(module), name: value})
    remember(value, recipe)
    return value


_KEY_NAMES = ("key", "rng", "rng_key", "prng_key", "random_key", "k")


def _positional(initializer: tp.Any) -> list[inspect.Parameter]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    try:
        parameters = inspect.signature(initializer).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return [inspect.Parameter("shape", inspect.Parameter.POSITIONAL_ONLY)]
    return [parameter for parameter in parameters if parameter.kind in kinds]


def _takes_key(initializer: tp.Any) -> bool:
    """Whether the initializer is called as `(key, shape, dtype)`, like those of `jax.nn.initializers`."""
    parameters = _positional(initializer)
    required = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind is not p.VAR_POSITIONAL]
    return bool(parameters) and (parameters[0].name in _KEY_NAMES or len(required) >= 3)
