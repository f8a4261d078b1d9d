"""Flattening and unflattening modules, and both in a `jax.tree.map`, against `equinox.Module` of the same shape."""

from __future__ import annotations

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp

import elegy
from tests.benchmarks.timing import Budget, Row, compare, interleave, require_equal

ELEGY = "`elegy.Module`"
EQUINOX = "`equinox.Module`"


class Layer(elegy.Module):
    """Two arrays and two static attributes."""

    def __init__(self, w, b):
        self.w = w
        self.b = b
        self.width = 8
        self.activation = "relu"


class Pair(elegy.Module):
    def __init__(self, left, right):
        self.left = left
        self.right = right


class Layers(elegy.Module):
    def __init__(self, layers):
        self.layers = layers


class EquinoxLayer(eqx.Module):
    w: jax.Array
    b: jax.Array
    width: int = eqx.field(static=True, default=8)
    activation: str = eqx.field(static=True, default="relu")


class EquinoxPair(eqx.Module):
    left: eqx.Module
    right: eqx.Module


class EquinoxLayers(eqx.Module):
    layers: list[EquinoxLayer]


def nested(pair, layer, depth: int):
    """A binary tree of modules."""
    if depth == 0:
        return layer(jnp.ones([8, 8]), jnp.ones([8]))
    return pair(nested(pair, layer, depth - 1), nested(pair, layer, depth - 1))


def wide(layers, layer, width: int):
    """One module that holds many in a list."""
    return layers([layer(jnp.ones([8, 8]), jnp.ones([8])) for _ in range(width)])


def same(leaf):
    return leaf


def rows(quick: bool) -> Iterator[Row]:
    budget = Budget(rounds=2, seconds=0.0) if quick else Budget(rounds=1001, seconds=0.00025)
    depth, width = (1, 2) if quick else (5, 64)
    shapes = {
        "2 arrays, 2 static attributes": (nested(Pair, Layer, 0), nested(EquinoxPair, EquinoxLayer, 0)),
        f"tree of {2 ** (depth + 1) - 1}": (nested(Pair, Layer, depth), nested(EquinoxPair, EquinoxLayer, depth)),
        f"list of {width}": (wide(Layers, Layer, width), wide(EquinoxLayers, EquinoxLayer, width)),
    }
    for shape, (ours, theirs) in shapes.items():
        modules = {ELEGY: ours, EQUINOX: theirs}
        flat = {name: jax.tree.flatten(module) for name, module in modules.items()}
        require_equal({name: [leaf.size for leaf in leaves] for name, (leaves, _) in flat.items()})
        flatten = {name: lambda module=module: jax.tree.flatten(module) and None for name, module in modules.items()}
        yield from compare(f"flatten, {shape}", [(ELEGY, EQUINOX)], interleave(flatten, budget))
        unflatten = {
            name: lambda leaves=leaves, treedef=treedef: treedef.unflatten(leaves) and None
            for name, (leaves, treedef) in flat.items()
        }
        yield from compare(f"unflatten, {shape}", [(ELEGY, EQUINOX)], interleave(unflatten, budget))
        both = {name: lambda module=module: jax.tree.map(same, module) and None for name, module in modules.items()}
        yield from compare(f"both, {shape}", [(ELEGY, EQUINOX)], interleave(both, budget))
