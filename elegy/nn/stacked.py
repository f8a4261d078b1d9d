"""Modules of one class as a single module, whose arrays have a leading axis."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from elegy.errors import StructureError
from elegy.module import Module
from elegy.pytree import set_born, walk
from elegy.state import state


def construct(owner: Module, factory: Callable[[], tp.Any], n: int) -> tp.Any:
    """`n` modules made by `factory`, stacked."""
    if n < 1:
        raise ValueError(f"{type(owner).__name__}: n is the number of modules, at least 1; got {n}")
    modules = [factory() for _ in range(n)]
    for module in modules:
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(owner).__name__}: the factory must return a module, got {type(module).__name__}.\n"
                "  Give a function that constructs one, such as lambda: elegy.nn.Linear(8)."
            )
    stacked = stack(modules)
    for node in walk([stacked]):
        set_born(node, owner._born)
        if state.init_pass is not None:
            state.init_pass.modules.append(node)
    return stacked


def stack(modules: Sequence[tp.Any]) -> tp.Any:
    """The modules as one, whose arrays have a leading axis."""
    first = jax.tree.structure(modules[0])
    shapes = [leaf.shape for leaf in jax.tree.leaves(modules[0])]
    for number, module in enumerate(modules):
        if jax.tree.structure(module) != first:
            raise StructureError(
                f"modules can be stacked if they differ in their arrays only, and number {number} has another "
                f"structure than number 0:\n  0: {first}\n  {number}: {jax.tree.structure(module)}\n"
                "  Make all of them by one factory; modules of different structures go into elegy.nn.Sequential."
            )
        for (path, leaf), shape in zip(jax.tree_util.tree_flatten_with_path(module)[0], shapes, strict=True):
            if leaf.shape != shape:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise StructureError(
                    f"modules can be stacked if their arrays have equal shapes: {where} has shape {tuple(shape)} in "
                    f"number 0, and {tuple(leaf.shape)} in number {number}"
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)


def take(stacked: tp.Any, index: int | slice) -> tp.Any:
    """One of the modules, or a part of them, still stacked."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)
