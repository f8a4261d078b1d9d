"""Training from arrays of NumPy in shuffled batches: `Model.fit` against loops by hand, and what other libraries have.

Every arm has the same initial parameters, samples, loss and optimiser, adds the losses of an epoch up on the device,
and reads their mean at its end.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import typing as tp
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

import elegy
from tests.benchmarks.timing import Budget, Row, compare, difference, interleave, require_equal

RAW = "loop of `jax.jit`"
SCAN = "loop of `jax.lax.scan`"
FIT = "`Model.fit`"
TOGETHER = "`Model.fit(steps_per_execution=50)`"
NNX = "loop of `flax.nnx.jit`"
CACHED = "loop of `flax.nnx.cached_partial`"
KERAS = "Keras `fit`"
PACKAGES = {NNX: "flax", CACHED: "flax", KERAS: "keras"}

STEPS = 50  # that go together
RATE = 1e-3

# An epoch: takes whether the samples come in a new order, and returns the mean of the losses.
Epoch = Callable[[bool], float]


class Network(tp.NamedTuple):
    """Convolutions, if there are any, and dense layers, with ReLU between them.

    - `shape`: of one input.
    - `convolutions`: the outputs of those, each of which halves the image.
    - `widths`: the outputs of the dense layers.
    - `classifies`: whether the loss is the cross-entropy of labels; else it is the mean squared error.
    """

    shape: tuple[int, ...]
    convolutions: tuple[int, ...]
    widths: tuple[int, ...]
    classifies: bool

    def samples(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(0)
        x = generator.normal(size=(number, *self.shape)).astype(np.float32)
        if self.classifies:
            return x, generator.integers(self.widths[-1], size=number).astype(np.int32)
        return x, generator.normal(size=(number, self.widths[-1])).astype(np.float32)

    def parameters(self) -> list[np.ndarray]:
        """The weights and biases of the layers, in turn."""
        generator = np.random.default_rng(1)
        side, inputs = self.shape[0], self.shape[-1]
        shapes: list[tuple[int, ...]] = []
        for outputs in self.convolutions:
            shapes.append((3, 3, inputs, outputs))
            side, inputs = side // 2, outputs
        inputs = inputs * side**2 if self.convolutions else inputs
        for outputs in self.widths:
            shapes.append((inputs, outputs))
            inputs = outputs
        weights = [generator.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for shape in shapes]
        return [part.astype(np.float32) for w in weights for part in (w, np.zeros(w.shape[-1]))]

    def loss(self, y: jax.Array, y_pred: jax.Array) -> jax.Array:
        if self.classifies:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y_pred, y))
        return jnp.mean(jnp.square(y_pred - y))


MLP = Network((16,), (), (32, 2), classifies=False)
IMAGES = Network((784,), (), (128, 10), classifies=True)
CNN = Network((28, 28, 1), (16, 32), (10,), classifies=True)


def rows(quick: bool) -> Iterator[Row]:
    small = compared(MLP, 2 * STEPS if quick else 8 * STEPS, 32, Budget(2 if quick else 21, 0.0))
    computation = "epoch of small steps"
    pairs = [*((arm, RAW) for arm in (FIT, NNX, CACHED, KERAS)), *((FIT, arm) for arm in (NNX, CACHED, KERAS))]
    yield from compare(computation, pairs, small)
    steps = 2 * STEPS if quick else 8 * STEPS
    pairs = [(arm, RAW) for arm in (FIT, NNX, CACHED, KERAS)]
    yield from difference("small step: microseconds more", pairs, small, 1e6 / steps)
    groups = 2 if quick else 40
    together = compared(MLP, groups * STEPS, 32, Budget(2 if quick else 41, 0.0), (SCAN, TOGETHER))
    yield from compare(f"epoch of {groups} loops of 50 small steps", [(TOGETHER, SCAN)], together)
    pairs = [(FIT, arm) for arm in (RAW, NNX, CACHED, KERAS)]
    for name, network, batch, samples, rounds in (
        ("dense network, 784-128-10", IMAGES, 128, 60_000, 11),
        ("convolutional network", CNN, 64, 6_400, 7),
    ):
        steps, budget = (2, Budget(2, 0.0)) if quick else (samples // batch, Budget(rounds, 0.0))
        yield from compare(f"epoch, {name}", pairs, compared(network, steps, batch, budget))


def compared(
    network: Network, steps: int, batch: int, budget: Budget, arms: tuple[str, ...] = (RAW, FIT, NNX, CACHED, KERAS)
) -> dict[str, list[float]]:
    """The seconds of an epoch of each arm, in each round."""
    x, y = network.samples(steps * batch)
    epochs = {
        name: MAKERS[name](network, x, y, batch)
        for name in arms
        if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])
    }
    require_equal({name: [epoch(False) for _ in range(2)] for name, epoch in epochs.items()}, rtol=1e-3)
    shuffled = {name: functools.partial(epoch, True) for name, epoch in epochs.items()}
    return interleave(shuffled, budget, prepare=lambda arm: None)


class Orders:
    """The order of the samples in each epoch."""

    def __init__(self, samples: int):
        self._samples = samples
        self._generator = np.random.default_rng(0)

    def __call__(self, shuffles: bool) -> np.ndarray:
        return self._generator.permutation(self._samples) if shuffles else np.arange(self._samples)


def fit_epoch(network: Network, x: np.ndarray, y: np.ndarray, batch: int, together: int = 1) -> Epoch:
    layers: list[tp.Any] = []
    for outputs in network.convolutions:
        layers += [elegy.nn.Conv2D(outputs, 3, stride=2), jax.nn.relu]
    layers += [elegy.nn.Flatten()] if network.convolutions else []
    for width in network.widths[:-1]:
        layers += [elegy.nn.Linear(width), jax.nn.relu]
    module = elegy.nn.Sequential([*layers, elegy.nn.Linear(network.widths[-1])]).init(x[:1])
    parameters = network.parameters()
    with_arrays = [layer for layer in module.layers if isinstance(layer, (elegy.nn.Linear, elegy.nn.Conv2D))]
    for layer, w, b in zip(with_arrays, parameters[::2], parameters[1::2], strict=True):
        layer.set_parameters({"w": jnp.asarray(w), "b": jnp.asarray(b)})
    loss = elegy.losses.MeanSquaredError()
    if network.classifies:
        loss = elegy.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = elegy.Model(module, loss=loss, optimizer=optax.adam(RATE))

    def epoch(shuffles: bool) -> float:
        history = model.fit(x, y, batch, verbose=0, shuffle=shuffles, steps_per_execution=together)
        return history.history["loss"][0]

    return epoch


def by_hand(network: Network) -> tuple[list[jax.Array], tp.Any, Callable[..., tp.Any]]:
    """The parameters, the state of the optimiser, and a step."""
    parameters = [jnp.asarray(part) for part in network.parameters()]
    optimizer = optax.adam(RATE)

    def loss_fn(parameters: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        layers = list(zip(parameters[::2], parameters[1::2], strict=True))
        for number, (w, b) in enumerate(layers):
            if w.ndim == 4:
                x = jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
            else:
                x = x.reshape(len(x), -1) @ w + b
            x = x if number == len(layers) - 1 else jax.nn.relu(x)
        return network.loss(y, x)

    def step(parameters: tp.Any, state: tp.Any, total: jax.Array, x: jax.Array, y: jax.Array) -> tp.Any:
        loss, gradients = jax.value_and_grad(loss_fn)(parameters, x, y)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, total + loss

    return parameters, optimizer.init(parameters), step


def raw_epoch(network: Network, x: np.ndarray, y: np.ndarray, batch: int) -> Epoch:
    parameters, state, step = by_hand(network)
    step_jit = jax.jit(step, donate_argnums=(0, 1, 2))
    orders = Orders(len(x))

    def epoch(shuffles: bool) -> float:
        nonlocal parameters, state
        order, total = orders(shuffles), jnp.zeros([])
        for begin in range(0, len(x), batch):
            chosen = order[begin : begin + batch]
            parameters, state, total = step_jit(parameters, state, total, x[chosen], y[chosen])
        return float(total) / (len(x) // batch)

    return epoch


def scan_epoch(network: Network, x: np.ndarray, y: np.ndarray, batch: int) -> Epoch:
    parameters, state, step = by_hand(network)
    orders = Orders(len(x))

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(carry: tp.Any, x: jax.Array, y: jax.Array) -> tp.Any:
        return jax.lax.scan(lambda carry, batch: (step(*carry, *batch), None), carry, (x, y))[0]

    def epoch(shuffles: bool) -> float:
        nonlocal parameters, state
        order, total = orders(shuffles), jnp.zeros([])
        for begin in range(0, len(x), STEPS * batch):
            chosen = order[begin : begin + STEPS * batch].reshape(STEPS, batch)
            parameters, state, total = steps((parameters, state, total), x[chosen], y[chosen])
        return float(total) / (len(x) // batch)

    return epoch


def nnx_epoch(network: Network, x: np.ndarray, y: np.ndarray, batch: int, caches: bool = False) -> Epoch:
    from flax import nnx

    layers: list[tp.Any] = []
    parameters = network.parameters()
    for w, b in zip(parameters[::2], parameters[1::2], strict=True):
        if w.ndim == 4:
            layer = nnx.Conv(w.shape[2], w.shape[3], (3, 3), strides=2, rngs=nnx.Rngs(0))
        else:
            layer = nnx.Linear(*w.shape, rngs=nnx.Rngs(0))
        layer.kernel.set_value(jnp.asarray(w))
        layer.bias.set_value(jnp.asarray(b))
        layers.append(layer)

    class Layers(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List(layers)

        def __call__(self, x: jax.Array) -> jax.Array:
            for number, layer in enumerate(self.layers):
                x = layer(x.reshape(len(x), -1) if isinstance(layer, nnx.Linear) else x)
                x = x if number == len(self.layers) - 1 else jax.nn.relu(x)
            return x

    module = Layers()
    optimizer = nnx.Optimizer(module, optax.adam(RATE), wrt=nnx.Param)

    def step(module: tp.Any, optimizer: tp.Any, total: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda module: network.loss(y, module(x)))(module)
        optimizer.update(module, gradients)
        return total + loss

    bind = nnx.cached_partial if caches else functools.partial
    step_of_both = bind(nnx.jit(step, donate_argnums=(0, 1, 2)), module, optimizer)
    orders = Orders(len(x))

    def epoch(shuffles: bool) -> float:
        order, total = orders(shuffles), jnp.zeros([])
        for begin in range(0, len(x), batch):
            chosen = order[begin : begin + batch]
            total = step_of_both(total, x[chosen], y[chosen])
        return float(total) / (len(x) // batch)

    return epoch


def keras_epoch(network: Network, x: np.ndarray, y: np.ndarray, batch: int) -> Epoch:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layers: list[tp.Any] = [keras.Input(network.shape)]
    for outputs in network.convolutions:
        layers.append(keras.layers.Conv2D(outputs, 3, strides=2, padding="same", activation="relu"))
    layers += [keras.layers.Flatten()] if network.convolutions else []
    layers += [keras.layers.Dense(width, activation="relu") for width in network.widths[:-1]]
    model = keras.Sequential([*layers, keras.layers.Dense(network.widths[-1])])
    model.set_weights(network.parameters())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if network.classifies else "mean_squared_error"
    model.compile(optimizer=keras.optimizers.Adam(RATE, epsilon=1e-8), loss=loss)

    def epoch(shuffles: bool) -> float:
        return model.fit(x, y, batch_size=batch, epochs=1, verbose=0, shuffle=shuffles).history["loss"][0]

    return epoch


MAKERS: dict[str, Callable[..., Epoch]] = {
    RAW: raw_epoch,
    FIT: fit_epoch,
    NNX: nnx_epoch,
    CACHED: functools.partial(nnx_epoch, caches=True),
    KERAS: keras_epoch,
    SCAN: scan_epoch,
    TOGETHER: functools.partial(fit_epoch, together=STEPS),
}
