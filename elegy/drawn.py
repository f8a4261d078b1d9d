"""Initial values that constructors drew, so that `init` with a key can draw them anew.

A parameter that `__init__` creates has its value at once, from the random stream of the thread. Which values were
drawn is remembered by the arrays themselves: a copy of a module has the same arrays, and what was replaced since is
another one.
"""

from __future__ import annotations

import typing as tp
import weakref

import jax

if tp.TYPE_CHECKING:
    from elegy.creation import Recipe

_recipes: dict[int, tuple[weakref.ref[tp.Any], Recipe]] = {}


def remember(value: tp.Any, recipe: Recipe) -> None:
    """Notes that an array was drawn by a recipe. A value of another kind, such as a dict of arrays, is not noted."""
    if isinstance(value, jax.Array):
        identity = id(value)
        _recipes[identity] = weakref.ref(value, lambda _: _recipes.pop(identity, None)), recipe


def recipe_of(value: tp.Any) -> Recipe | None:
    """The recipe by which an array was drawn; None for any other value."""
    reference, recipe = _recipes.get(id(value), (None, None))
    return recipe if reference is not None and reference() is value else None
