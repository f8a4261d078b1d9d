"""What is no module, as one: functions, and callable pytrees of other libraries."""

from __future__ import annotations

import typing as tp

import jax

from elegy.leaves import is_array
from elegy.losses import Loss
from elegy.metrics import Metric
from elegy.module import Module, to_module


class Wrapped(Module):
    """A callable pytree, such as a layer of Equinox, as a module. It is trained in its floating-point arrays.

    **Attributes:** `wrapped`, the pytree with the arrays that it has now.
    """

    def __init__(self, wrapped: tp.Any):
        super().__init__(name=type(wrapped).__name__.lower())
        self.wrapped = wrapped

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return self.wrapped(*args, **kwargs)


def as_module(given: tp.Any) -> Module:
    """The module that a `Model` is to train.

    **Raises:** `TypeError` for what is none, and cannot become one.
    """
    if isinstance(given, Module) and not isinstance(given, (Loss, Metric)):
        return given
    if callable(given) and not isinstance(given, (type, Module)):
        if any(is_array(leaf) for leaf in jax.tree.leaves(given)):
            return Wrapped(given)
        return to_module(given)()
    hint = "Give it a module, a function, or a callable pytree."
    hint = "Construct it." if isinstance(given, type) else hint
    hint = "The module comes first, then loss= and metrics=." if isinstance(given, Module) else hint
    raise TypeError(f"elegy.Model takes a module, got {given!r}.\n  {hint}")
