"""Modules as pytrees: how one is taken apart and put together again."""

from __future__ import annotations

import copyreg
import dataclasses
import typing as tp
import weakref
from collections.abc import Callable, Iterable

import jax
import numpy as np

from elegy import tracing
from elegy.compounds import as_in_containers, dynamic_part, join
from elegy.containers import FrozenDict
from elegy.errors import TraceError, ways_out
from elegy.layout import Layout, Meta, Tie, interned, nodes_in, relayout, split_attributes, walk
from elegy.leaves import (
    Node,
    pending_of,
    set_attributes,
    set_born,
    set_layout,
    set_meta,
    set_ties,
    set_undrawn,
    undrawn_of,
)
from elegy.pickling import portable
from elegy.sharing import TIED, cut, find_ties, tie_together
from elegy.tracing import EAGER, running
from elegy.transaction import lock, opened, visible, writable


def make_layout(node: Node, ties: tuple[Tie, ...]) -> Layout:
    cls, meta = type(node), node._elegy_meta
    names, static, compounds = split_attributes(node.__dict__, meta.parameters)
    order = tuple(node.__dict__) if ties or any(value is TIED for value in static.values()) else ()
    return interned(cls, meta, names, static, compounds, ties, order)


def _reduced(layout: Layout) -> tp.Any:
    static = portable(FrozenDict(layout.static))
    return _remade, (layout.cls, layout.meta, layout.names, static, layout.compounds, layout.ties, layout.order)


copyreg.pickle(Layout, _reduced)  # type: ignore[arg-type]


def _remade(cls, meta, names, static, compounds, ties, order) -> Layout:
    """A layout from a pickle, or the equal one that is interned already."""
    register(cls)
    return interned(cls, meta, names, dict(static), compounds, ties, order)


def layout_of(node: Node) -> Layout:
    """The layout of a module, made anew if its structure changed."""
    version = visible(node)
    if version._elegy_layout is not None:
        return version._elegy_layout
    require_drawn(version)
    if pending := pending_of(version):
        pending.clear()
    if version._elegy_ties is None:
        find_ties(node)
        version = visible(node)
    ties = version._elegy_ties or ()
    layout = make_layout(cut(version, [tie.target for tie in ties]) if ties else version, ties)
    set_layout(writable(node), layout)
    return layout


def set_aside_undrawn(node: Node) -> None:
    """Takes the parameters that a constructor could not draw out of the attributes, so that nobody reads them."""
    blanks = undrawn_of(node)
    if blanks:
        set_undrawn(node, {name: blanks.get(name) for name in node.__dict__})
        for name in blanks:
            node.__dict__.pop(name, None)


def require_drawn(node: Node) -> None:
    """Refuses to use a module whose constructor could draw nothing, and on which `init` was not called since."""
    undrawn = undrawn_of(visible(node))
    waiting = [name for name, blank in undrawn.items() if blank is not None]
    if waiting:
        raise TraceError(
            f"{type(node).__name__}: the parameter {waiting[0]!r} was created in __init__ inside a jax transform, but "
            "the random stream belongs to the code outside of it. There are two ways out:"
            + ways_out(
                "Pass a key as an argument of the transformed function, and give it to the module: "
                "module.init(x, rng=key).",
                "Construct the module inside `with elegy.rng_context(key):`.",
            )
        )


def forget_pending(root: Node) -> None:
    """Counts the updates inside a jax transform as read, since the caller is given the state of the module itself."""
    if root._elegy_born != tracing.EAGER:
        for node in walk([root]):
            if pending := pending_of(visible(node)):
                pending.clear()


# ---------------------------------------------------------------------------------------------------------------------
# Flatten and unflatten
# ---------------------------------------------------------------------------------------------------------------------


def _children(node: Node, layout: Layout) -> tuple[tp.Any, ...]:
    if layout.ties:
        node = cut(node, [tie.target for tie in layout.ties])
    compounds = layout.compounds
    return tuple(
        dynamic_part(node, name, compounds[name]) if name in compounds else node.__dict__[name] for name in layout.names
    )


def flatten(node: Node) -> tuple[tuple[tp.Any, ...], Layout]:
    version = visible(node) if opened else node
    layout = version._elegy_layout
    if layout is None:
        layout = layout_of(node)
        version = visible(node)
    return layout.read(version.__dict__) if layout.simple else _children(version, layout), layout


def flatten_with_keys(node: Node):
    children, layout = flatten(node)
    return tuple(zip(layout.keys, children, strict=True)), layout


_new = object.__new__


def unflatten(layout: Layout, children: Iterable[tp.Any]) -> Node:
    node = _new(layout.cls)
    set_layout(node, layout)
    set_born(node, running.value or EAGER)
    attributes = node.__dict__
    if layout.static:
        attributes.update(layout.static)
    layout.put(attributes, children)
    if not layout.simple:
        for name, compound in layout.compounds.items():
            attributes[name], same = join(compound, attributes[name])
            if not same:
                relayout(node)
        if layout.ties:
            tie_together(node, layout.ties)
    return node


_registered: weakref.WeakSet[type[Node]] = weakref.WeakSet()


def register(cls: type[Node]) -> None:
    """Makes `cls` a pytree. Done when the first instance appears, so that classes without instances cost nothing."""
    if cls in _registered:
        return
    with lock:
        if cls in _registered:  # another thread may have been first
            return
        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        for base in cls.__mro__:
            if issubclass(base, Node) and dataclasses.is_dataclass(base):
                _drop_generated_methods(base)
        _registered.add(cls)


def _drop_generated_methods(cls: type) -> None:
    """Takes from a dataclass the methods that `dataclasses` wrote. Arrays cannot be compared field by field: a module
    is equal to itself only. `Module` says how it is shown and frozen."""
    if _is_generated(cls.__eq__):  # written for this class, or for a base that is no module
        cls.__eq__ = object.__eq__  # type: ignore[method-assign]
        if cls.__hash__ is None or _is_generated(cls.__hash__):
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]
    for name in ("__repr__", "__setattr__", "__delattr__"):
        method = cls.__dict__.get(name)
        if _is_generated(method) and (name != "__repr__" or hasattr(method, "__wrapped__")):
            type.__delattr__(cls, name)


def _is_generated(method: tp.Any) -> bool:
    """Whether a method was written by `dataclasses` rather than by the user."""
    code = getattr(getattr(method, "__wrapped__", method), "__code__", None)
    return code is not None and code.co_filename == "<string>"


class _Together(Node):
    """Holds a tree of modules, so that what two of them share is flattened once."""


def joined(tree: tp.Any) -> Node:
    """A module whose attribute `tree` is a tree of modules."""
    register(_Together)
    together = object.__new__(_Together)
    set_attributes(together, {"tree": tree})
    set_born(together, tracing.current())
    set_meta(together, Meta())
    set_ties(together, None)
    set_layout(together, None)
    return together


def copied(tree: tp.Any, change: Callable[[tp.Any, tp.Any], tp.Any] = lambda keys, leaf: leaf) -> tp.Any:
    """A tree with copies of its modules; what two of them share, their copies share.

    **Arguments:**

    - `change`: gives the leaf of the copy for the key path of a leaf in `tree` and the leaf itself.
    """

    if not nodes_in(tree):
        return jax.tree_util.tree_map_with_path(change, tree)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(joined(tree))
    changed = [change(as_in_containers(keys[1:]), leaf) for keys, leaf in leaves]
    return treedef.unflatten(changed).__dict__["tree"]


def fresh(leaf: tp.Any) -> tp.Any:
    """A leaf for a copy: JAX's arrays are immutable, NumPy's are not."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
