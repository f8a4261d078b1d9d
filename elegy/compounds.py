"""Containers and foreign pytrees that hold dynamic and static values side by side.

A module keeps such a value as it is. While the module is flattened, its dynamic parts stand for it, and the static ones
are a part of the layout.
"""

from __future__ import annotations

import typing as tp
from collections.abc import Hashable, Iterable, Sequence

import jax
from jax.tree_util import DictKey, SequenceKey

from elegy.errors import FrozenModuleError
from elegy.leaves import Node, StaticKey, is_dynamic, is_foreign, is_node, set_fixed, static_key
from elegy.pickling import portable

# ---------------------------------------------------------------------------------------------------------------------
# How to split a value
# ---------------------------------------------------------------------------------------------------------------------


class Mixed(tp.NamedTuple):
    """How to split a foreign pytree into its dynamic and its static leaves."""

    treedef: tp.Any
    dynamic: tuple[bool, ...]
    static: tuple[tp.Any, ...]

    def __reduce__(self):
        return Mixed, (self.treedef, self.dynamic, portable(self.static))


class Branch(tp.NamedTuple):
    """The entries of a container that hold something dynamic: their keys, and for each another branch, or the number of
    the part that stands there."""

    keys: tuple[tp.Any, ...]
    below: tuple[Branch | int, ...]


class Compound(tp.NamedTuple):
    """How to split the value of an attribute, a container or foreign pytree, into its dynamic and its static part.

    - `treedef`: the structure down to the *parts*: foreign pytrees, None, wholly dynamic values and other leaves.
    - `static`: the static parts, and None in the places of the others.
    - `mixed`: how to split those parts that are foreign pytrees with static leaves, by their number.
    - `entries`: which parts are dynamic, and where they are.
    """

    treedef: tp.Any
    static: tuple[tp.Any, ...]
    mixed: dict[int, Mixed]
    entries: Branch | int

    def __reduce__(self):
        return Compound, (self.treedef, portable(self.static), self.mixed, self.entries)

    def key(self) -> Hashable:
        mixed = tuple((number, m.treedef, m.dynamic, static_key(m.static)) for number, m in self.mixed.items())
        return (self.treedef, static_key(self.static), mixed, self.entries)


def split(value: tp.Any) -> tuple[Compound | None, bool]:
    """How to split a value, or None if it is dynamic as a whole; and whether any part of it is dynamic."""
    places, treedef = jax.tree_util.tree_flatten_with_path(value, is_leaf=_is_part)
    static: list[tp.Any] = []
    mixed: dict[int, Mixed] = {}
    dynamic: list[tuple[tuple[tp.Any, ...], int]] = []
    for number, (path, part) in enumerate(places):
        is_static = part is not None and not _is_wholly_dynamic(part)
        if is_static and is_foreign(part):
            mixed[number], is_static = _mixed(part), False
        static.append(part if is_static else None)
        if not is_static:
            dynamic.append((path, number))
    has_dynamic = any(places[number][1] is not None for _, number in dynamic)
    if len(dynamic) == len(places) and not mixed:
        return None, has_dynamic
    return Compound(treedef, tuple(static), mixed, _entries(dynamic, 0)), has_dynamic


def _is_part(value: tp.Any) -> bool:
    return value is None or _is_wholly_dynamic(value) or is_foreign(value)


def _mixed(part: tp.Any) -> Mixed:
    leaves, treedef = jax.tree.flatten(part, is_leaf=_is_wholly_dynamic)
    dynamic = tuple(map(_is_wholly_dynamic, leaves))
    static = tuple(None if varies else leaf for varies, leaf in zip(dynamic, leaves, strict=True))
    return Mixed(treedef, dynamic, static)


def _entries(places: Sequence[tuple[tuple[tp.Any, ...], int]], depth: int) -> Branch | int:
    if len(places) == 1 and len(places[0][0]) == depth:
        return places[0][1]
    groups: dict[tp.Any, list[tuple[tuple[tp.Any, ...], int]]] = {}
    for path, number in places:
        groups.setdefault(path[depth], []).append((path, number))
    keys = tuple(groups)
    if any(isinstance(key, SequenceKey) and key.idx != number for number, key in enumerate(keys)):
        keys = tuple(IndexKey(key.idx) if isinstance(key, SequenceKey) else key for key in keys)
    return Branch(keys, tuple(_entries(group, depth + 1) for group in groups.values()))


def _is_wholly_dynamic(value: tp.Any) -> bool:
    """Whether a value is a leaf, a module, or a pytree of nothing else."""
    leaves = jax.tree.leaves(value, is_leaf=is_node)
    return bool(leaves) and all(map(is_dynamic, leaves))


class IndexKey(DictKey):
    """The key of an entry of a list from which static entries were left out. It is no `SequenceKey`, since code that
    builds a list from such keys, as Orbax does, expects every number to be there."""

    def __reduce__(self):
        return IndexKey, (self.key,)


def as_in_containers(keys: tuple[tp.Any, ...]) -> tuple[tp.Any, ...]:
    """A key path with an `IndexKey` replaced by the `SequenceKey` that JAX has for the list which the module holds."""
    return tuple(SequenceKey(key.key) if isinstance(key, IndexKey) else key for key in keys)


# ---------------------------------------------------------------------------------------------------------------------
# Taking apart and putting together
# ---------------------------------------------------------------------------------------------------------------------


class Entries:
    """The dynamic entries of a container, while its module is flattened. No node without leaves stands for the static
    ones: code that maps a tree and takes such nodes for leaves would change them."""

    __slots__ = ("items", "keys")

    def __init__(self, keys: tuple[tp.Any, ...], items: Iterable[tp.Any]):
        self.keys = keys
        self.items = tuple(items)


jax.tree_util.register_pytree_with_keys(
    Entries,
    lambda entries: (tuple(zip(entries.keys, entries.items, strict=True)), entries.keys),
    Entries,
    lambda entries: (entries.items, entries.keys),
)


class Fixed:
    """A static leaf of a foreign pytree, while its module is flattened: a node without leaves.

    It is one object for each place, so that `equinox.nn.inference_mode` can find the place and put another value there.
    """

    __slots__ = ("value",)

    def __init__(self, value: tp.Any):
        self.value = value


jax.tree_util.register_pytree_node(Fixed, lambda fixed: ((), StaticKey(fixed.value)), lambda key, _: Fixed(key.value))


def _fixed_leaves(node: Node, place: tuple[str, int], mixed: Mixed) -> tuple[Fixed, ...]:
    found = getattr(node, "_elegy_fixed", None)
    if found is None:
        set_fixed(node, found := {})
    if place not in found:
        found[place] = tuple(map(Fixed, mixed.static))
    return found[place]


def dynamic_part(node: Node, name: str, compound: Compound) -> tp.Any:
    value = node.__dict__[name]
    try:
        parts = compound.treedef.flatten_up_to(value)
        for number, mixed in compound.mixed.items():
            leaves = mixed.treedef.flatten_up_to(parts[number])
            fixed = _fixed_leaves(node, (name, number), mixed)
            parts[number] = mixed.treedef.unflatten(
                leaf if varies else stand_in
                for varies, leaf, stand_in in zip(mixed.dynamic, leaves, fixed, strict=True)
            )
    except (TypeError, ValueError) as error:
        raise FrozenModuleError(
            f"{type(node).__name__}.{name} has another structure than when the module was constructed, and modules are "
            f"immutable: {error}\n  Build a new module, or change the arrays only (set_parameters, equinox.tree_at)."
        ) from None
    return _gather(compound.entries, parts)


def _gather(entries: Branch | int, parts: Sequence[tp.Any]) -> tp.Any:
    if isinstance(entries, int):
        return parts[entries]
    return Entries(entries.keys, (_gather(below, parts) for below in entries.below))


def _scatter(entries: Branch | int, child: tp.Any, parts: list[tp.Any]) -> None:
    if isinstance(entries, int):
        parts[entries] = child
        return
    if not entries.keys:
        return  # nothing in the value is dynamic
    if not isinstance(child, Entries) or child.keys != entries.keys:
        raise ValueError
    for below, item in zip(entries.below, child.items, strict=True):
        _scatter(below, item, parts)


def join(compound: Compound, child: tp.Any) -> tuple[tp.Any, bool]:
    """The value of a container attribute, and whether its static leaves are those of the layout."""
    parts = list(compound.static)
    same = True
    try:
        _scatter(compound.entries, child, parts)
        for number, mixed in compound.mixed.items():
            leaves = mixed.treedef.flatten_up_to(parts[number])
            for index, (leaf, varies) in enumerate(zip(leaves, mixed.dynamic, strict=True)):
                if isinstance(leaf, Fixed):
                    leaves[index] = leaf.value
                    same = same and leaf.value is mixed.static[index]
                else:
                    same = same and varies  # else equinox.tree_at has replaced a static leaf
            parts[number] = mixed.treedef.unflatten(leaves)
    except (TypeError, ValueError):
        return child, False  # an object that a caller of tree_unflatten put in the place of the whole container
    return compound.treedef.unflatten(parts), same
