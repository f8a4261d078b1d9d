"""Whole trees of modules: where their leaves are, and their trainable part."""

from __future__ import annotations

import typing as tp

import equinox as eqx
import jax

from elegy.layout import slots
from elegy.leaves import Node, is_inexact, is_node


def trainable_mask(tree: tp.Any) -> tp.Any:
    """A pytree like `tree` with a bool for each array: whether it is trainable.

    Trainable are the trainable parameters of modules that are not frozen, and the inexact arrays of pytrees that are
    not modules of Elegy. Fits `optax.masked`.

    ```python
    import elegy
    import jax.numpy as jnp

    norm = elegy.nn.BatchNormalization().init(jnp.ones([4, 3]))
    mask = elegy.trainable_mask(norm)
    assert mask.scale is True and mask.mean is False
    ```
    """
    return jax.tree.map(_mask, tree, is_leaf=is_node)


def _mask(node: tp.Any) -> tp.Any:
    if not isinstance(node, Node):
        return is_inexact(node)
    return jax.tree.structure(node).unflatten(leaf_kinds(node))


class LeafPlace(tp.NamedTuple):
    """Where a leaf is: the module that holds it, the attribute, and the position in it; and whether it is trainable."""

    owner: Node
    name: str
    position: int
    trainable: bool


def leaf_kinds(root: Node) -> list[bool]:
    """Whether each leaf of a module is trainable, in the order of `jax.tree.leaves`."""
    return [place.trainable for place in leaf_places(root)]


def leaf_places(root: Node) -> list[LeafPlace]:
    """Where each leaf of a module is, in the order of `jax.tree.leaves`. Does not recurse."""
    places: list[LeafPlace] = []
    seen: set[int] = set()
    stack: list[Node | LeafPlace] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, LeafPlace):
            places.append(item)
            continue
        if id(item) in seen:
            continue
        seen.add(id(item))
        below = [
            value if slot.holds == "module" else LeafPlace(item, slot.name, slot.position, slot.trainable)
            for slot, value in slots(item)
        ]
        stack.extend(reversed(below))
    return places


def partition(tree: tp.Any) -> tuple[tp.Any, tp.Any]:
    """Splits a pytree of modules into its trainable part and the rest.

    **Returns:** two trees of the same classes. Each array is in one of them, and None stands in the other.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)
    params, rest = elegy.partition(linear)
    grads = jax.grad(lambda params: elegy.combine(params, rest)(x).sum())(params)
    assert grads.w.shape == (3, 2)
    ```
    """
    return eqx.partition(tree, trainable_mask(tree))


def combine(*trees: tp.Any) -> tp.Any:
    """Puts together what `partition` split: at each place, the first value that is not None.

    **Arguments:**

    - `trees`: one or more pytrees of one structure, with None where another one has the array.

    **Returns:** a new tree of the structure of the first.

    **Raises:** `ValueError` if the structures differ: modules of other classes, with other static attributes or
    parameters, or frozen in other parts.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    norm = elegy.nn.BatchNormalization().init(x)
    parameters, rest = elegy.partition(norm)
    doubled = elegy.combine(jax.tree.map(lambda value: 2 * value, parameters), rest)
    assert (doubled.scale == 2).all() and (doubled.var == 1).all()

    other = elegy.nn.BatchNormalization(eps=1e-3).init(x)
    elegy.combine(parameters, elegy.partition(other)[1])  # raises ValueError: metadata
    ```
    """
    return eqx.combine(*trees)
