"""Deep networks of equal blocks: traced, compiled and run, as a stack and otherwise."""

from __future__ import annotations

import importlib.util
import typing as tp
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import elegy
from tests.benchmarks.timing import Arm, Budget, Row, compare, interleave, require_equal

BLOCKS = 48
WIDTH = 32
BATCH = 8

FLOOR = "`jax.lax.scan` of a dict of arrays"
STACK = "`elegy.nn.Stack`"
LISTED = "list of Elegy blocks"
EQUINOX = "Equinox, stacked and scanned"
NNX = "`flax.nnx.scan`"
PAIRS = [(STACK, FLOOR), (LISTED, FLOOR), (EQUINOX, FLOOR), (NNX, FLOOR)]

Parameters = dict[str, jax.Array]
# A function of a model and an input that returns the loss and the gradient, the model, and how its library compiles it.
Gradient = tuple[Callable[..., tp.Any], tp.Any, Callable[..., tp.Any]]


def block(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    return x + jax.nn.gelu(x @ w1) @ w2


def rows(quick: bool) -> Iterator[Row]:
    x = jnp.asarray(np.random.default_rng(0).normal(size=[BATCH, WIDTH]), jnp.float32)
    blocks = 3 if quick else BLOCKS
    gradients = make_gradients(blocks)
    require_equal(
        {name: compiled(function, model)(model, x)[0] for name, (function, model, compiled) in gradients.items()}
    )
    for what, arms, budget, prepare in (
        ("trace", traces(gradients, x), Budget(2 if quick else 11, 0.0), lambda arm: jax.clear_caches()),
        ("compilation", compilations(gradients, x), Budget(2 if quick else 5, 0.0), lambda arm: jax.clear_caches()),
    ):
        yield from compare(f"{what} of the gradient, {blocks} blocks", PAIRS, interleave(arms, budget, prepare))
    deep, shallow = f"{STACK} of {blocks}", f"{STACK} of 2"
    depths = {deep: gradients[STACK], shallow: make_gradients(2)[STACK]}
    for what, arms in (("trace", traces(depths, x)), ("compilation", compilations(depths, x))):
        times = interleave(arms, Budget(2 if quick else 11, 0.0), prepare=lambda arm: jax.clear_caches())
        yield from compare(f"{what} of the gradient", [(deep, shallow)], times)
    times = interleave(steps(gradients, x), Budget(2 if quick else 101, 0.0 if quick else 1e-3))
    yield from compare(f"gradient, {blocks} blocks", PAIRS, times)


def traces(gradients: dict[str, Gradient], x: jax.Array) -> dict[str, Arm]:
    def arm(function, model):
        return lambda: jax.make_jaxpr(function)(model, x) and None

    return {name: arm(function, model) for name, (function, model, _) in gradients.items()}


def compilations(gradients: dict[str, Gradient], x: jax.Array) -> dict[str, Arm]:
    """From the lowered program on, as the trace has a row of its own."""

    def arm(function, model):
        arrays, treedef = jax.tree.flatten(eqx.filter(model, eqx.is_array))
        static = eqx.filter(model, eqx.is_array, inverse=True)

        def flat(arrays, x):
            loss, grads = function(eqx.combine(treedef.unflatten(arrays), static), x)
            return loss, jax.tree.leaves(grads)

        lowered = jax.jit(flat).lower(arrays, x)
        return lambda: lowered.compile() and None

    return {name: arm(function, model) for name, (function, model, _) in gradients.items()}


def steps(gradients: dict[str, Gradient], x: jax.Array) -> dict[str, Arm]:
    def arm(function, model, compiled):
        function = compiled(function, model)
        function(model, x)
        return lambda: function(model, x)

    return {name: arm(*gradient) for name, gradient in gradients.items()}


def make_gradients(blocks: int) -> dict[str, Gradient]:
    random = np.random.default_rng(1)
    parameters = {
        "w1": jnp.asarray(random.normal(size=[blocks, WIDTH, 4 * WIDTH]) / WIDTH, jnp.float32),
        "w2": jnp.asarray(random.normal(size=[blocks, 4 * WIDTH, WIDTH]) / WIDTH, jnp.float32),
    }
    makers = {FLOOR: floor, STACK: stack, LISTED: listed, EQUINOX: equinox}
    if importlib.util.find_spec("flax"):
        makers[NNX] = nnx
    return {name: make(parameters, blocks) for name, make in makers.items()}


def jitted(function: Callable[..., tp.Any], model: tp.Any) -> Callable[..., tp.Any]:
    return jax.jit(function)


def floor(parameters: Parameters, blocks: int) -> Gradient:
    def loss(parameters, x):
        x, _ = jax.lax.scan(lambda x, p: (block(x, p["w1"], p["w2"]), None), x, parameters)
        return jnp.mean(x**2)

    return jax.value_and_grad(loss), parameters, jitted


class Block(elegy.Module):
    def __init__(self, w1, w2):
        self.w1 = self.add_parameter("w1", initializer=w1)
        self.w2 = self.add_parameter("w2", initializer=w2)

    def call(self, x):
        return block(x, self.w1, self.w2)


class Listed(elegy.Module):
    def __init__(self, blocks):
        self.blocks = blocks

    def call(self, x):
        for layer in self.blocks:
            x = layer(x)
        return x


def elegy_gradient(model: elegy.Module, x: jax.Array) -> Gradient:
    model.init(x)

    def function(model, x):
        return jax.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)

    def compiled(function, model):
        step = elegy.jit(elegy.value_and_grad(lambda x: jnp.mean(model(x) ** 2), modules=model), modules=model)
        return lambda _, x: step(x)

    return function, model, compiled


def separate_blocks(parameters: Parameters, blocks: int) -> list[Block]:
    return [Block(parameters["w1"][index], parameters["w2"][index]) for index in range(blocks)]


def stack(parameters: Parameters, blocks: int) -> Gradient:
    model = elegy.nn.Stack.from_blocks(separate_blocks(parameters, blocks))
    return elegy_gradient(model, jnp.ones([BATCH, WIDTH]))


def listed(parameters: Parameters, blocks: int) -> Gradient:
    return elegy_gradient(Listed(separate_blocks(parameters, blocks)), jnp.ones([BATCH, WIDTH]))


def equinox(parameters: Parameters, blocks: int) -> Gradient:
    class EquinoxBlock(eqx.Module):
        w1: jax.Array
        w2: jax.Array

        def __call__(self, x):
            return block(x, self.w1, self.w2)

    def loss(model, x):
        arrays, static = eqx.partition(model, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, arrays: (eqx.combine(arrays, static)(x), None), x, arrays)
        return jnp.mean(x**2)

    model = EquinoxBlock(parameters["w1"], parameters["w2"])
    return eqx.filter_value_and_grad(loss), model, lambda function, model: eqx.filter_jit(function)


def nnx(parameters: Parameters, blocks: int) -> Gradient:
    from flax import nnx

    class NNXBlock(nnx.Module):
        def __init__(self, w1, w2):
            self.w1 = nnx.Param(w1)
            self.w2 = nnx.Param(w2)

        def __call__(self, x):
            return block(x, self.w1[...], self.w2[...])

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return layer(x)

    def loss(model, x):
        return jnp.mean(forward(x, model) ** 2)

    model = NNXBlock(parameters["w1"], parameters["w2"])
    return nnx.value_and_grad(loss), model, lambda function, model: nnx.jit(function)
