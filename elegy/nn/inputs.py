"""What layers ask of their inputs and arguments; each error names the layer."""

from __future__ import annotations

import operator
import typing as tp

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Shaped

from elegy.errors import show_value
from elegy.frames import path_of
from elegy.module import Module
from elegy.state import state, training as training_mode

Flag = bool | np.bool_

if tp.TYPE_CHECKING:
    # The type of arguments that are taken only to be refused by a message of our own.
    Nothing = tp.Never
else:
    Nothing = tp.Any  # as an annotation of arguments no run-time checker knows Never


def converted(layer: Module, x: Shaped[ArrayLike, "..."], dtype: tp.Any) -> Shaped[Array, "..."]:
    """`x` as an array of `dtype`, which is that of the layer's parameters."""
    x = jnp.asarray(x)
    if x.dtype == dtype:
        return x
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{path_of(layer)}: the input is {x.dtype} and the parameters are {jnp.dtype(dtype)}, so the imaginary "
            f"part would be lost.\n  Give the layer a complex dtype: {type(layer).__name__}(..., dtype=jnp.complex64)."
        )
    return x.astype(dtype)


def dtype_of_new(layer: Module) -> tp.Any:
    """The dtype in which a layer that runs would see a parameter that it creates now."""
    policy = state.dtype_policy
    return layer.dtype if policy is None else policy.compute_dtype or policy.param_dtype or layer.dtype


def floating(layer: Module, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """`x` as it is, or in the layer's dtype if it holds integers or bools."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(layer.dtype)


def boolean(layer: str | Module, name: str, value: tp.Any) -> bool:
    """An argument that must be a bool, of a layer that is constructed, given by its name, or of one that runs."""
    if not isinstance(value, Flag):
        where = path_of(layer) if isinstance(layer, Module) else f"elegy.nn.{layer}"
        raise TypeError(f"{where}: {name} must be True or False, got {show_value(value)}.")
    return bool(value)


def trains(layer: Module, training: tp.Any) -> bool:
    """Whether a layer is to do what it does in training: the argument `training` of its call, else the mode."""
    return training_mode() if training is None else boolean(layer, "training", training)


def refuse_more(layer: str, given: dict[str, tp.Any], more: tuple[tp.Any, ...], inferred: str, example: str) -> None:
    """Refuses arguments by position after those that are `given`: other libraries put the size of the input first."""
    if not more:
        return
    everything = (*given.values(), *more)
    fix = f"Give the others by name: {layer}(..., {example})."
    if len(everything) == len(given) + 1 and isinstance(more[-1], int) and not isinstance(more[-1], bool):
        fix = f"{inferred}: {layer}({', '.join(map(repr, everything[1:]))}). {fix}"
    raise TypeError(
        f"elegy.nn.{layer}: by position there is {' and '.join(given)} only, got "
        f"({', '.join(map(show_value, everything))}).\n  {fix}"
    )


def positive(layer: str, name: str, value: tp.Any) -> int:
    """An argument that must be a positive integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"elegy.nn.{layer}: {name} must be a positive integer, got {value!r}.")
    return number


def positives(layer: str, name: str, value: tp.Any, length: int) -> tuple[int, ...]:
    """An argument that is a positive integer for each of `length` axes, or one for all of them."""
    try:
        values = tuple(value)
    except TypeError:
        values = (value,) * length
    if len(values) != length:
        raise ValueError(
            f"elegy.nn.{layer}: {name} must be an integer or {length} of them, one for each spatial axis, "
            f"got {value!r}."
        )
    return tuple(positive(layer, name, item) for item in values)
