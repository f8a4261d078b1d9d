"""What normalising layers share: their arguments, the arithmetic, and the scale and offset that come after."""

from __future__ import annotations

import math
import operator
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import floating

Axes = int | Sequence[int]

_CHANNEL_AXES = {
    **dict.fromkeys(("channels_last", "NC", "NWC", "NHWC", "NDHWC"), -1),
    **dict.fromkeys(("channels_first", "NCW", "NCHW", "NCDHW"), 1),
}


def channel_axis_of(layer: str, data_format: str) -> int:
    """Where a data format has its channels: 1 or -1."""
    if data_format not in _CHANNEL_AXES:
        raise ValueError(
            f"elegy.nn.{layer}: data_format must be one of {', '.join(_CHANNEL_AXES)}, got {data_format!r}."
        )
    return _CHANNEL_AXES[data_format]


def not_negative(layer: str, name: str, value: tp.Any) -> float:
    """An argument that must be a number of at least 0."""
    if not value >= 0:
        raise ValueError(f"elegy.nn.{layer}: {name} must not be negative, got {value}.")
    return float(value)


def some_axes(layer: str, axis: tp.Any) -> int | tuple[int, ...]:
    """An argument that is the number of an axis, or of several."""
    several = isinstance(axis, (list, tuple))
    try:
        axes = tuple(map(operator.index, axis if several else [axis]))
    except TypeError:
        axes = ()
    if not axes:
        raise TypeError(f"elegy.nn.{layer}: axis must be an integer or several, got {axis!r}.")
    return axes if several else axes[0]


def axes_of(layer: Module, axis: Axes, shape: Sequence[int], array: str = "the input") -> tuple[int, ...]:
    """The axes of an array that `axis` names, counted from the left, in ascending order."""
    axes = (axis,) if isinstance(axis, int) else axis
    if any(not -len(shape) <= number < len(shape) for number in axes):
        raise ValueError(f"{path_of(layer)}: axis={axis} is not an axis of {array}, of shape {tuple(shape)}.")
    return tuple(sorted({number % len(shape) for number in axes}))


def other_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """All axes but those."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def real(layer: Module, x: tp.Any) -> Array:
    """`x` as an array of floating-point numbers."""
    x = floating(layer, x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"{path_of(layer)}: {type(layer).__name__} takes real numbers, got {x.dtype}.")
    return x


def check_not_empty(layer: Module, shape: Sequence[int], axes: Sequence[int]) -> None:
    if math.prod(shape[axis] for axis in axes) == 0:
        raise ValueError(f"{path_of(layer)}: there is nothing to average over in an input of shape {tuple(shape)}.")


def standardised(layer: Module, x: Array, axes: Sequence[int], eps: float) -> Array:
    """`(x - mean) / sqrt(var + eps)` with the mean and the biased variance over some axes.

    The variance is that of what is left when the mean is gone: E[x²] - E[x]² loses all digits where the mean is large.
    There the mean itself is rounded, by perhaps as much as `x` varies, and so what is left has a mean again, which is
    taken from it and from its variance.
    """
    check_not_empty(layer, x.shape, axes)
    x = x - _mean(x, axes)
    left = jax.lax.stop_gradient(jnp.mean(x, axes, keepdims=True))  # zero but for rounding, for every input
    var = jnp.mean(jnp.square(x), axes, keepdims=True) - jnp.square(left)
    factor = jax.lax.rsqrt(jnp.maximum(var, 0) + eps)
    return (x - jnp.broadcast_to(left, x.shape)) * jnp.broadcast_to(factor, x.shape)


def _mean(x: Array, axes: Sequence[int]) -> Array:
    return jnp.broadcast_to(jnp.mean(x, axes, keepdims=True), x.shape)


def scale_and_offset(layer: tp.Any, shape: Sequence[int]) -> tuple[Array | None, Array | None]:
    """The parameters of a layer that has the attributes `create_scale` and so on; None where there is none."""
    scale = layer.add_parameter("scale", shape, initializer=layer.scale_init) if layer.create_scale else None
    offset = layer.add_parameter("offset", shape, initializer=layer.offset_init) if layer.create_offset else None
    return scale, offset


def affine(y: Array, scale: tp.Any, offset: tp.Any, axes: Sequence[int]) -> Array:
    """`y * scale + offset`, each of which may be None, in the dtype of `y`.

    They are numbers, or have the shape of `y`, or that without `axes`.
    """
    if scale is not None:
        y = y * aligned(scale, y, axes)
    return y if offset is None else y + aligned(offset, y, axes)


def aligned(value: tp.Any, y: Array, axes: Sequence[int]) -> Array:
    """A number, or an array of the shape of `y` or of that without `axes`, in the shape and dtype of `y`."""
    value = jnp.asarray(value).astype(y.dtype)
    if value.ndim not in (0, y.ndim):
        value = jnp.expand_dims(value, axes)
    return jnp.broadcast_to(value, y.shape)


def dtype_of(x: Array, *parameters: Array | None) -> tp.Any:
    """The dtype of the output: that of the parameters, or of the input if there are none."""
    return next((value.dtype for value in parameters if value is not None), x.dtype)
