"""Modules of equal structure as a single one, whose arrays have a leading axis."""

from __future__ import annotations

import operator
import typing as tp
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy.errors import StructureError, show_value
from elegy.frames import name_of
from elegy.layout import change, walk
from elegy.leaves import set_born
from elegy.module import Module
from elegy.state import state
from elegy.transaction import held

Self = tp.TypeVar("Self", bound="Stacked")


class Stacked(Module):
    """Base class of modules that stand for a list of `n` modules, and hold them as one at `_elegy_items`."""

    n: int

    def _hold(self, factory: Callable[[], tp.Any], n: int) -> None:
        """Makes the modules. Called by the constructor."""
        if isinstance(factory, Module) or not callable(factory):
            raise TypeError(
                f"{type(self).__name__}: expected a factory, which is called once for each of the modules, got "
                f"{'a module, ' if callable(factory) else ''}{show_value(factory)}.\n"
                "  Give a function that constructs one: lambda: elegy.nn.Linear(8). A class will do, too."
            )
        self.n = operator.index(n)
        if self.n < 1:
            raise ValueError(f"{type(self).__name__}: n is the number of modules, at least 1; got {n}")
        modules = [factory() for _ in range(self.n)]
        _check(type(self).__name__, modules)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)
        for node in walk([stacked]):
            set_born(node, self._elegy_born)
            if state.init_pass is not None:
                state.init_pass.modules.append(node)
        setattr(self, self._elegy_items, stacked)

    @property
    def _items(self) -> tp.Any:
        """The modules as one."""
        return held(self)[self._elegy_items]

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tp.Any]:
        return (self[index] for index in range(self.n))

    @tp.overload
    def __getitem__(self: Self, index: slice) -> Self: ...
    @tp.overload
    def __getitem__(self, index: tp.Any) -> tp.Any: ...
    def __getitem__(self, index: tp.Any) -> tp.Any:
        """One of the modules as an ordinary one, or for a slice a copy of this module with a part of them.

        **Arguments:**

        - `index`: an integer, a scalar array of one, or a slice. An integer that is traced is clamped to the range.

        **Raises:** `IndexError` if there is no such module; `TypeError` for other indices.
        """
        if isinstance(index, slice):
            return self._part(np.arange(self.n)[index])
        number = self._number(index)
        return jax.tree.map(lambda leaf: leaf[number], self._items)

    def _number(self, index: tp.Any) -> tp.Any:
        """The number of one module; where it is traced, its value is not known."""
        if isinstance(index, (jax.Array, np.ndarray)):
            is_integer = index.ndim == 0 and jnp.issubdtype(index.dtype, jnp.integer)
        else:
            is_integer = hasattr(index, "__index__") and not isinstance(index, (bool, np.bool_))
        if not is_integer:
            raise TypeError(
                f"{name_of(self)}[{show_value(index)}]: the index must be one integer, or a slice.\n"
                "  For several modules take one after the other: [stack[i] for i in (0, 2)]."
            )
        if isinstance(index, Tracer):
            return index
        number = operator.index(tp.cast(tp.Any, index))
        if not -self.n <= number < self.n:
            raise IndexError(f"{name_of(self)}[{number}]: there are {self.n}")
        return number

    def _part(self: Self, numbers: np.ndarray) -> Self:
        if len(numbers) == 0:
            raise ValueError(f"{name_of(self)}: the slice is empty, and there must be one module at least")
        part = self.copy()
        attributes: tp.Any = part.__dict__
        attributes["n"] = len(numbers)
        attributes[self._elegy_items] = jax.tree.map(lambda leaf: leaf[numbers], part._items)
        change(part)
        return part


def _check(owner: str, modules: Sequence[tp.Any]) -> None:
    """Refuses what cannot be stacked, or would be something else afterwards."""
    for module in modules:
        if not isinstance(module, Module):
            raise TypeError(
                f"{owner}: the factory must return a module, got {type(module).__name__}.\n"
                "  Give a function that constructs one, such as lambda: elegy.nn.Linear(8)."
            )
    met: dict[int, int] = {}
    first = jax.tree.structure(modules[0])
    leaves = jax.tree.leaves(modules[0])
    for number, module in enumerate(modules):
        for node in walk([module]):
            if met.setdefault(id(node), number) != number:
                raise StructureError(
                    f"{owner}: {name_of(node)} is in number {met[id(node)]} and in number {number}, and stacked each "
                    "would have one of its own.\n"
                    "  Construct it inside the factory. To run one module several times use "
                    "elegy.scan(..., modules=module); to start from equal values give copies, module.copy()."
                )
        if jax.tree.structure(module) != first:
            raise StructureError(
                f"{owner}: modules can be stacked if they differ in their arrays only, and number {number} has another "
                f"structure than number 0:\n  0: {first}\n  {number}: {jax.tree.structure(module)}\n"
                "  Make all of them by one factory, and a function or class that they hold outside of it; modules of "
                "different structures go into elegy.nn.Sequential."
            )
        for (path, leaf), like in zip(jax.tree_util.tree_flatten_with_path(module)[0], leaves, strict=True):
            if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise StructureError(
                    f"{owner}: modules can be stacked if their arrays have equal shapes and dtypes: {where} is "
                    f"{show_value(like)} in number 0, and {show_value(leaf)} in number {number}.\n"
                    "  Make all of them by one factory, or cast the arrays first."
                )
