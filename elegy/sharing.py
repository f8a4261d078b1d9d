"""Modules that are reachable by two paths: they are flattened once, and put together as one again.

A *tie* says that a module found at one place of the tree, its target, is the one at another, its source. It is written
down at the module where the two paths part. While that module is flattened, a marker without leaves stands at the
target.
"""

from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax

from elegy import tracing
from elegy.layout import Step, Tie, change, children, meta_of, relayout
from elegy.leaves import Node, is_node, pending_of, set_born, set_layout, set_meta, set_pending, set_ties
from elegy.transaction import visible, writable


class _Tied:
    """Stands, while a module is flattened, for a submodule that is found by an earlier path."""

    def __repr__(self) -> str:
        return "tied"


TIED = _Tied()


def find_ties(root: Node) -> None:
    """Looks for modules that are reachable by two paths, and notes the ties at the modules where the paths part."""
    seen = {id(root)}
    order = [root]
    shared = False
    for node in order:  # grows while it is read
        for _, child in children(node):
            if id(child) in seen:
                shared = True
            else:
                seen.add(id(child))
                order.append(child)
    ties = _ties_by_module(root) if shared else {}
    for node in order:
        found = tuple(sorted(ties.get(id(node), ()), key=repr))
        version = visible(node)
        layout = version._elegy_layout
        if (version._elegy_ties if layout is None else layout.ties) != found:
            version = writable(node)
            if layout is not None:
                change(version)
            set_ties(version, found)


def _ties_by_module(root: Node) -> dict[int, list[Tie]]:
    """The ties between paths that part at a module, by the id of the module."""
    first: dict[int, tuple[Step, ...]] = {}
    repeats: dict[int, list[tuple[Step, ...]]] = {}
    stack: list[tuple[Node, tuple[Step, ...]]] = [(root, ())]
    paths: dict[tuple[Step, ...], Node] = {}
    while stack:
        node, path = stack.pop()
        if id(node) in first:
            repeats.setdefault(id(node), []).append(path)
        else:
            first[id(node)] = path
            paths[path] = node
            stack.extend((child, (*path, step)) for step, child in reversed(children(node)))
    ties: dict[int, list[Tie]] = {}
    for identity, others in repeats.items():
        inside: dict[tuple[Step, ...], list[tuple[Step, ...]]] = {}
        for place in (first[identity], *others):
            for size in range(len(place)):
                inside.setdefault(place[:size], []).append(place)
        for path, (source, *targets) in inside.items():
            for target in targets:
                if target[len(path)] != source[len(path)]:
                    ties.setdefault(id(paths[path]), []).append(Tie(target[len(path) :], source[len(path) :]))
    return ties


class _Contents:
    """Reads and replaces submodules by their step. Each container is flattened once, and put together by `write`."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], tuple[Node, list[tp.Any], tp.Any]] = {}
        self._changed: set[tuple[int, str]] = set()

    def _leaves(self, node: Node, name: str) -> list[tp.Any]:
        key = (id(node), name)
        if key not in self._held:
            is_leaf = lambda leaf: is_node(leaf) or leaf is TIED  # noqa: E731
            self._held[key] = (node, *jax.tree.flatten(node.__dict__[name], is_leaf=is_leaf))
        return self._held[key][1]

    def child(self, node: Node, step: Step) -> tp.Any:
        name, index = step
        return node.__dict__[name] if index is None else self._leaves(node, name)[index]

    def place(self, node: Node, step: Step, child: tp.Any) -> None:
        name, index = step
        if index is None:
            node.__dict__[name] = child
        else:
            self._leaves(node, name)[index] = child
            self._changed.add((id(node), name))

    def write(self) -> None:
        for node, name in self._changed:
            node, leaves, treedef = self._held[node, name]
            node.__dict__[name] = treedef.unflatten(leaves)


def shallow_copy(node: Node) -> Node:
    """A new object with the same attributes and ties."""
    if visible(node)._elegy_layout is None and visible(node)._elegy_ties is None:
        find_ties(node)
    node = visible(node)
    copy = object.__new__(type(node))
    copy.__dict__.update(node.__dict__)
    set_born(copy, tracing.current())
    set_meta(copy, meta_of(node))
    set_ties(copy, node._elegy_ties if node._elegy_layout is None else node._elegy_layout.ties)
    set_layout(copy, None)
    return copy


def cut(node: Node, targets: Sequence[tuple[Step, ...]]) -> Node:
    """A copy of a module, and of those on the way to the `targets`, with the marker `TIED` at the end of each way."""
    copy = shallow_copy(node)
    pending = pending_of(visible(node))
    if pending:
        set_pending(copy, pending)  # one list for both: what is read of the copy is read of the module
    groups: dict[Step, list[tuple[Step, ...]]] = {}
    for target in targets:
        groups.setdefault(target[0], []).append(target[1:])
    contents = _Contents()
    for step, rests in groups.items():
        deeper = [rest for rest in rests if rest]
        contents.place(copy, step, cut(contents.child(copy, step), deeper) if deeper else TIED)
    contents.write()
    return copy


def tie_together(node: Node, ties: Sequence[Tie]) -> None:
    """Puts the module found at the source of each tie at its target too."""
    contents = _Contents()
    # The order of the attributes of each module in which something is put, by its id.
    orders: dict[int, tuple[Node, tuple[str, ...]]] = {}

    def note(parent: Node) -> None:
        if id(parent) not in orders:
            layout = parent._elegy_layout
            orders[id(parent)] = parent, () if layout is None else layout.order

    note(node)
    for tie in ties:
        try:
            source = parent = node
            for step in tie.source:
                source = contents.child(source, step)
            for step in tie.target[:-1]:
                parent = contents.child(parent, step)
                note(parent)
                relayout(parent)
                set_ties(parent, None)
            contents.place(parent, tie.target[-1], source)
        except (AttributeError, IndexError, KeyError):
            continue  # the tree was put together with other objects in the places of modules
    contents.write()
    for parent, order in orders.values():
        attributes = parent.__dict__
        if order and len(order) == len(attributes):
            ordered = {name: attributes[name] for name in order}
            attributes.clear()
            attributes.update(ordered)
