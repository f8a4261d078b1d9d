"""A step of gradient descent on small layers: how long Python takes to hand it to XLA.

The floor is `jax.jit` of a function of a flat list of arrays. Every arm computes the same step from the same initial
parameters, as the users of its library write it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import elegy
from tests.benchmarks.timing import Arm, Budget, Row, compare, interleave, require_equal

# For each depth, how long to measure. The shorter the step, the more rounds can be had in the same time; batches hold
# several steps at every depth, as a step alone is mostly the wake of the threads that run it.
BUDGETS = {4: Budget(1501, 0.00025), 50: Budget(501, 0.0005), 300: Budget(201, 0.005)}
WIDTH = 8
BATCH = 16
RATE = 0.01

FLOOR = "`jax.jit` of a list of arrays"
ELEGY = "`elegy.jit`"
PURE = "`jax.jit` of an Elegy module"
EQUINOX = "`equinox.filter_jit`"
NNX = "`flax.nnx.jit`"
PAIRS = [(ELEGY, FLOOR), (PURE, FLOOR), (EQUINOX, FLOOR), (NNX, FLOOR), (ELEGY, EQUINOX), (ELEGY, NNX), (PURE, EQUINOX)]

# The weights and biases of the layers, in turn.
Arrays = list[jax.Array]


def rows(quick: bool) -> Iterator[Row]:
    for depth, budget in ({2: Budget(2, 0.0)} if quick else BUDGETS).items():
        arms = make_arms(depth)
        require_equal({name: [float(arm()) for _ in range(3)] for name, arm in arms.items()})
        times = interleave(arms, budget)
        yield from compare(f"training step, {depth} layers", PAIRS, times)


def make_arms(depth: int) -> dict[str, Arm]:
    """Each arm takes a step when called, and returns its loss."""
    generator = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape) / np.sqrt(WIDTH), jnp.float32)

    initial = [part for _ in range(depth) for part in (array(WIDTH, WIDTH), array(WIDTH))]
    x, y = array(BATCH, WIDTH), array(BATCH, WIDTH)
    makers = {FLOOR: floor_arm, ELEGY: elegy_arm, PURE: pure_arm, EQUINOX: equinox_arm}
    if importlib.util.find_spec("flax"):
        makers[NNX] = nnx_arm
    return {name: make(initial, x, y) for name, make in makers.items()}


def mean_squared_error(y: jax.Array, y_pred: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(y - y_pred))


def floor_arm(initial: Arrays, x: jax.Array, y: jax.Array) -> Arm:
    parameters = initial

    def loss_fn(parameters, x, y):
        for w, b in zip(parameters[::2], parameters[1::2], strict=True):
            x = jnp.tanh(x @ w + b)
        return mean_squared_error(y, x)

    @jax.jit
    def update(parameters, x, y):
        loss, gradients = jax.value_and_grad(loss_fn)(parameters, x, y)
        return [p - RATE * g for p, g in zip(parameters, gradients, strict=True)], loss

    def step():
        nonlocal parameters
        parameters, loss = update(parameters, x, y)
        return loss

    return step


class Linear(elegy.Module):
    def __init__(self, width):
        self.width = width

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.width], initializer=jax.nn.initializers.lecun_normal())
        b = self.add_parameter("b", [self.width])
        return x @ w + b


class MLP(elegy.Module):
    def __init__(self, depth):
        self.depth = depth

    def call(self, x):
        for _ in range(self.depth):
            x = jnp.tanh(Linear(WIDTH)(x))
        return x


def make_mlp(initial: Arrays, x: jax.Array) -> MLP:
    mlp = MLP(len(initial) // 2).init(x)
    layers = [{"w": w, "b": b} for w, b in zip(initial[::2], initial[1::2], strict=True)]
    mlp.set_parameters(dict(zip(mlp.get_parameters(), layers, strict=True)))
    return mlp


def elegy_arm(initial: Arrays, x: jax.Array, y: jax.Array) -> Arm:
    mlp = make_mlp(initial, x)

    def loss_fn(x, y):
        return mean_squared_error(y, mlp(x))

    def update(x, y):
        loss, gradients = elegy.value_and_grad(loss_fn, modules=mlp)(x, y)
        parameters = mlp.get_parameters(trainable=True)
        mlp.set_parameters(jax.tree.map(lambda p, g: p - RATE * g, parameters, gradients))
        return loss

    update_jit = elegy.jit(update, modules=mlp)
    return lambda: update_jit(x, y)


def pure_arm(initial: Arrays, x: jax.Array, y: jax.Array) -> Arm:
    mlp = make_mlp(initial, x)

    def loss_fn(mlp, x, y):
        return mean_squared_error(y, mlp(x))

    @jax.jit
    def update(mlp, x, y):
        loss, gradients = jax.value_and_grad(loss_fn)(mlp, x, y)
        return jax.tree.map(lambda p, g: p - RATE * g, mlp, gradients), loss

    def step():
        nonlocal mlp
        mlp, loss = update(mlp, x, y)
        return loss

    return step


def equinox_arm(initial: Arrays, x: jax.Array, y: jax.Array) -> Arm:
    class Linear(eqx.Module):
        w: jax.Array
        b: jax.Array

        def __call__(self, x):
            return x @ self.w + self.b

    class MLP(eqx.Module):
        layers: list[Linear]

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.tanh(layer(x))
            return x

    mlp = MLP([Linear(w, b) for w, b in zip(initial[::2], initial[1::2], strict=True)])

    def loss_fn(mlp, x, y):
        return mean_squared_error(y, mlp(x))

    @eqx.filter_jit
    def update(mlp, x, y):
        loss, gradients = eqx.filter_value_and_grad(loss_fn)(mlp, x, y)
        return eqx.apply_updates(mlp, jax.tree.map(lambda g: -RATE * g, gradients)), loss

    def step():
        nonlocal mlp
        mlp, loss = update(mlp, x, y)
        return loss

    return step


def nnx_arm(initial: Arrays, x: jax.Array, y: jax.Array) -> Arm:
    from flax import nnx

    class Linear(nnx.Module):
        def __init__(self, w, b):
            self.w = nnx.Param(w)
            self.b = nnx.Param(b)

        def __call__(self, x):
            return x @ self.w[...] + self.b[...]

    class MLP(nnx.Module):
        def __init__(self, layers):
            self.layers = nnx.List(layers)

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.tanh(layer(x))
            return x

    mlp = MLP([Linear(w, b) for w, b in zip(initial[::2], initial[1::2], strict=True)])

    def loss_fn(mlp, x, y):
        return mean_squared_error(y, mlp(x))

    @nnx.jit
    def update(mlp, x, y):
        loss, gradients = nnx.value_and_grad(loss_fn)(mlp, x, y)
        parameters = nnx.state(mlp, nnx.Param)
        nnx.update(mlp, jax.tree.map(lambda p, g: p - RATE * g, parameters, gradients))
        return loss

    return lambda: update(mlp, x, y)
