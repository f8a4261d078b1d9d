"""What layers ask of their inputs and arguments; each error names the layer."""

from __future__ import annotations

import operator
import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Shaped

from elegy.frames import path_of
from elegy.module import Module


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


def floating(layer: Module, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """`x` as it is, or in the layer's dtype if it holds integers or bools."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(layer.dtype)


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
