"""The argument `activation` of layers."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable

from elegy.errors import show_value


def checked_activation(layer: str, value: tp.Any) -> Callable[..., tp.Any]:
    """A function of arrays, or a module."""
    if isinstance(value, type):
        raise TypeError(
            f"elegy.nn.{layer}: activation is the class {value.__name__}.\n  Construct it: {value.__name__}()."
        )
    if not callable(value):
        raise TypeError(
            f"elegy.nn.{layer}: activation must be a function of arrays, such as jax.nn.relu, got {show_value(value)}."
        )
    return value
