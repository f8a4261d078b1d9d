"""Axes that a layer is told by their numbers: checked when it is constructed, and counted from 0 when it runs."""

from __future__ import annotations

import operator
import typing as tp

from elegy.frames import path_of
from elegy.module import Module


def axis_numbers(layer: str, name: str, value: tp.Any) -> tuple[int, ...]:
    """An argument that is an integer or a sequence of different ones, which may be negative."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    try:
        numbers = tuple(operator.index(item) for item in items if not isinstance(item, bool))
    except TypeError:
        numbers = ()
    if len(set(numbers)) < len(items):
        raise ValueError(f"elegy.nn.{layer}: {name} must be an integer or a list of different ones, got {value!r}.")
    return numbers


def counted(layer: Module, name: str, numbers: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an input of a given shape, counted from 0, in the order in which they were given."""
    found = tuple(number + len(shape) if number < 0 else number for number in numbers)
    if any(not 0 <= number < len(shape) for number in found) or len(set(found)) < len(found):
        raise ValueError(
            f"{path_of(layer)}: {name}={numbers} must be different axes of the input, which has shape {shape}."
        )
    return found
