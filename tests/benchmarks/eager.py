"""What a module costs where nothing is compiled: reading an array, calling a module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import elegy
from tests.benchmarks.timing import Budget, Row, compare, interleave, require_equal

ELEGY = "Elegy"
EQUINOX = "Equinox"
NNX = "Flax NNX"
READS = 100  # of an attribute, in one call of an arm


class Leaf(elegy.Module):
    """Holds two arrays, and returns its input."""

    def __init__(self, w, b):
        self.w = w
        self.b = b

    def call(self, x):
        return x


class Dense(Leaf):
    def call(self, x):
        return x @ self.w + self.b


class Leaves(elegy.Module):
    def __init__(self, leaves):
        self.leaves = leaves

    def call(self, x):
        for leaf in self.leaves:
            x = leaf(x)
        return x


class EquinoxLeaf(eqx.Module):
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return x


class EquinoxDense(EquinoxLeaf):
    def __call__(self, x):
        return x @ self.w + self.b


class EquinoxLeaves(eqx.Module):
    leaves: list[EquinoxLeaf]

    def __call__(self, x):
        for leaf in self.leaves:
            x = leaf(x)
        return x


def rows(quick: bool) -> Iterator[Row]:
    budget = Budget(rounds=2, seconds=0.0) if quick else Budget(rounds=1001, seconds=0.00025)
    width, x = 2 if quick else 50, jnp.ones([8])
    arrays = [(jnp.ones([8, 8]), jnp.ones([8])) for _ in range(width)]
    makers = {ELEGY: (Leaf, Dense, Leaves), EQUINOX: (EquinoxLeaf, EquinoxDense, EquinoxLeaves)}
    if importlib.util.find_spec("flax"):
        makers[NNX] = nnx_classes()
    leaves = {name: leaf(*arrays[0]) for name, (leaf, _, _) in makers.items()}
    dense = {name: dense(*arrays[0]) for name, (_, dense, _) in makers.items()}
    nested = {name: together([leaf(*pair) for pair in arrays]) for name, (leaf, _, together) in makers.items()}
    pairs = [(ELEGY, EQUINOX), (ELEGY, NNX)]

    def compared(computation: str, run: Callable[[Any], Any], modules: dict[str, Any]) -> Iterator[Row]:
        require_equal({name: run(module) for name, module in modules.items()})
        arms = {name: lambda module=module: run(module) for name, module in modules.items()}
        yield from compare(computation, pairs, interleave(arms, budget))

    yield from compared("attribute read", read, leaves)
    yield from compared(f"eager call of {width} modules that do nothing", lambda module: module(x), nested)
    yield from compared("eager call of a dense layer", lambda module: module(x), dense)


def read(leaf: Any) -> int:
    for _ in range(READS):
        leaf.w  # noqa: B018
    return READS


def nnx_classes() -> Any:
    from flax import nnx

    class Leaf(nnx.Module):
        def __init__(self, w, b):
            self.w = nnx.Param(w)
            self.b = nnx.Param(b)

        def __call__(self, x):
            return x

    class Dense(Leaf):
        def __call__(self, x):
            return x @ self.w[...] + self.b[...]

    class Leaves(nnx.Module):
        def __init__(self, leaves):
            self.leaves = nnx.List(leaves)

        def __call__(self, x):
            for leaf in self.leaves:
                x = leaf(x)
            return x

    return Leaf, Dense, Leaves
