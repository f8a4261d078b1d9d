"""Layouts, windows and padding: what convolutions, pooling and resizing are told about their input."""

from __future__ import annotations

import operator
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import positive, positives

Padding = str | int | Sequence[int] | Sequence[Sequence[int]]
Pairs = tuple[tuple[int, int], ...]

# By the number of spatial axes; the channels are last.
SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


# ---------------------------------------------------------------------------------------------------------------------
# Layouts: the axes of an input by their letters, `NHWC`. One without `N` has no axis of the batch.
# ---------------------------------------------------------------------------------------------------------------------


def layout_of(layer: str, data_format: str, n: int) -> str:
    """The layout of an input of `n` spatial axes by its letters."""
    spatial = SPATIAL[n]
    layouts = {"channels_last": f"N{spatial}C", "channels_first": f"NC{spatial}"}
    allowed = (*layouts, *layouts.values(), f"{spatial}C", f"C{spatial}")
    if data_format not in allowed:
        raise ValueError(f"elegy.nn.{layer}: data_format must be one of {', '.join(allowed)}, got {data_format!r}.")
    return layouts.get(data_format, data_format)


_COUNTS = {
    layout: n
    for n, spatial in SPATIAL.items()
    for layout in (f"N{spatial}C", f"NC{spatial}", f"{spatial}C", f"C{spatial}")
}


def spatial_count(layer: str, data_format: str, *sizes: tp.Any) -> int | None:
    """How many spatial axes a layout by its letters has, or the first of `sizes` that is one for each axis.

    None if the arguments are for any number of them, so that the input says how many there are.
    """
    if data_format in _COUNTS:
        return _COUNTS[data_format]
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"elegy.nn.{layer}: data_format must be channels_last, channels_first, or one of {', '.join(_COUNTS)}, "
            f"got {data_format!r}."
        )
    for given in sizes:
        if isinstance(given, (list, tuple)):
            if len(given) not in SPATIAL:
                raise ValueError(
                    f"elegy.nn.{layer}: there are one, two or three spatial axes, got sizes for {len(given)}, {given}."
                )
            return len(given)
    return None


def layout_of_input(layer: Module, shape: tuple[int, ...], data_format: str, n: int | None) -> str:
    """The layout of an input, of `n` spatial axes or, if that is None, of all but two axes; it must be of its rank."""
    found = len(shape) - 2 if n is None else n
    if found not in SPATIAL:
        hint = "" if found < 1 else '\n  If there are several axes of the batch, say data_format="NHWC", or what it is.'
        raise ValueError(
            f"{path_of(layer)}: the input of {type(layer).__name__} must have an axis of the batch, one, two or three "
            f"spatial axes and one of channels, got shape {shape}.{hint}"
        )
    layout = layout_of(type(layer).__name__, data_format, found)
    check_rank(layer, shape, layout)
    return layout


def channel_axis(layout: str) -> int:
    """The axis of the channels, counted from the end."""
    return layout.index("C") - len(layout)


def spatial_axes(layout: str) -> tuple[int, ...]:
    """The spatial axes, counted from the end."""
    return tuple(axis - len(layout) for axis, letter in enumerate(layout) if letter not in "NC")


def check_rank(layer: Module, shape: tuple[int, ...], layout: str) -> None:
    """An input has the axes of the layout. Where there is one of the batch, others may come before it."""
    wanted = len(layout)
    if len(shape) == wanted or (layout[0] == "N" and len(shape) > wanted):
        return
    hint = ""
    if layout[0] == "N" and len(shape) == wanted - 1:
        # Not taken for one example: a batch of grey images without an axis of channels looks the same.
        hint = (
            "\n  Give one image an axis of the batch, x[None], and images without channels one, x[..., None].\n"
            f'  A layer that takes single images says so: {type(layer).__name__}(..., data_format="{layout[1:]}").'
        )
    elif layout[0] != "N" and len(shape) > wanted:
        hint = f'\n  A layer that takes batches says so: {type(layer).__name__}(..., data_format="N{layout}").'
    raise ValueError(
        f"{path_of(layer)}: the input of {type(layer).__name__} must have {wanted} axes, {layout}, got shape "
        f"{shape}.{hint}"
    )


def for_each_axis(layer: str, name: str, value: tp.Any, n: int | None) -> int | tuple[int, ...]:
    """An argument that is a positive integer for each of `n` axes, or one for all; one for all if `n` is not known."""
    return positive(layer, name, value) if n is None else positives(layer, name, value, n)


def replicated(value: int | tuple[int, ...], n: int) -> tuple[int, ...]:
    """One value for each of `n` axes."""
    return (value,) * n if isinstance(value, int) else value


# ---------------------------------------------------------------------------------------------------------------------
# Padding
# ---------------------------------------------------------------------------------------------------------------------


def padding_names(n: int) -> tuple[str, ...]:
    """The names of padding that a convolution over `n` spatial axes knows."""
    return ("SAME", "VALID", "CIRCULAR", "REFLECT", *["CAUSAL"] * (n == 1))


def padding_of(layer: str, padding: tp.Any, n: int, names: Sequence[str] = ("SAME", "VALID")) -> str | Pairs:
    """One of the names, or the numbers of elements before and after each spatial axis."""
    if isinstance(padding, str):
        if padding.upper() not in names:
            listed = ", ".join(map(repr, names))
            raise ValueError(f"elegy.nn.{layer}: padding must be {listed} or numbers of zeros, got {padding!r}.")
        return padding.upper()
    axes = (padding,) * n if isinstance(padding, int) else tuple(padding)
    pairs = tuple(tuple(axis) if isinstance(axis, (tuple, list)) else (axis, axis) for axis in axes)
    if len(pairs) != n or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"elegy.nn.{layer}: padding must be {', '.join(map(repr, names))}, an integer, or for each of the {n} "
            f"spatial axes an integer or a pair (before, after), got {padding!r}."
        )
    return tuple((operator.index(before), operator.index(after)) for before, after in pairs)


def padded(
    layer: Module, x: Array, layout: str, padding: str | Pairs, window: Sequence[int]
) -> tuple[Array, str | Pairs]:
    """`x` with the elements that are not zeros, and the padding of zeros that remains to be done.

    `window` has the sizes that the window covers, gaps included.
    """
    if padding == "CAUSAL":
        return x, tuple((size - 1, 0) for size in window)
    if padding not in ("CIRCULAR", "REFLECT"):
        return x, padding
    widths = [((size - 1) // 2, size // 2) for size in window]
    return extended(layer, x, layout, widths, "wrap" if padding == "CIRCULAR" else "reflect"), "VALID"


def extended(layer: Module, x: Array, layout: str, widths: Sequence[tuple[int, int]], mode: str) -> Array:
    """`x` with that many elements of its own before and after each spatial axis, as `jnp.pad` has them."""
    axes = spatial_axes(layout)
    if 0 in (x.shape[axis] for axis in axes):
        raise ValueError(f"{path_of(layer)}: an input of shape {x.shape} has no elements to pad it with.")
    of_all = [(0, 0)] * x.ndim
    for axis, width in zip(axes, widths, strict=True):
        of_all[axis] = width
    return jnp.pad(x, of_all, mode=mode)


def covered(kernel_shape: Sequence[int], rate: Sequence[int]) -> tuple[int, ...]:
    """How many positions a window covers, the gaps between its elements included."""
    return tuple((size - 1) * distance + 1 for size, distance in zip(kernel_shape, rate, strict=True))


def check_not_empty(
    layer: Module, shape: tuple[int, ...], output: tuple[int, ...], layout: str, window: Sequence[int]
) -> None:
    """A window that is larger than the input, padding included, would leave an output of nothing."""
    axes = spatial_axes(layout)
    if 0 in (output[axis] for axis in axes) and 0 not in (shape[axis] for axis in axes):
        raise ValueError(
            f"{path_of(layer)}: the window covers {tuple(window)} positions, more than there are in an input of shape "
            f"{shape}, its padding included, so that the output would be empty.\n"
            '  Make the window smaller, or pad the input: padding="SAME".'
        )


def fitted(layer: Module, mask: Array, w: Array) -> Array:
    """A mask of the shape of `w`."""
    try:
        return jnp.broadcast_to(mask, w.shape).astype(w.dtype)
    except ValueError:
        raise ValueError(
            f"{path_of(layer)}: mask has shape {mask.shape}, which does not broadcast to that of w, {w.shape}."
        ) from None


def along_channels(b: Array, y: Array, layout: str) -> Array:
    """A vector of one element for each channel in the shape of `y`."""
    return jax.lax.broadcast_in_dim(b, y.shape, (y.ndim + channel_axis(layout),))
