"""A compiled layer and its gradient, against the same layer of other libraries with the same weights.

Each library runs its layer as a function of arrays under `jax.jit`, which is the fastest way to call it, so that what
is compared is what the layers compute. Those that keep statistics return them.
"""

from __future__ import annotations

import importlib.util
import os
import typing as tp
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import elegy
from tests.benchmarks.timing import Budget, Row, compare, interleave

# The arrays of a layer, and the function of them and of the input. What the function returns is the output, or a pair
# of it and of statistics.
Layer = tuple[tp.Any, Callable[[tp.Any, tp.Any], tp.Any]]
Weights = dict[str, np.ndarray]

PEERS = ("Flax NNX", "Equinox", "Keras")


class Case(tp.NamedTuple):
    """A computation, the shape of its input, and the layer of each library with given weights."""

    computation: str
    shape: tuple[int, ...]
    module: elegy.Module
    peers: dict[str, Callable[[elegy.Module], Layer]]


# ---------------------------------------------------------------------------------------------------------------------
# How each library is called
# ---------------------------------------------------------------------------------------------------------------------


def of_elegy(module: tp.Any) -> Layer:
    parameters, rest = elegy.partition(module)
    keeps_statistics = any(leaf.size > 2 for leaf in jax.tree.leaves(rest))

    def call(parameters: tp.Any, x: tp.Any) -> tp.Any:
        y, updated = elegy.combine(parameters, rest).apply(x)
        return (y, elegy.partition(updated)[1]) if keeps_statistics else y

    return parameters, call


def of_flax(module: tp.Any) -> Layer:
    from flax import nnx

    structure, parameters, rest = nnx.split(module, nnx.Param, ...)

    def call(parameters: tp.Any, x: tp.Any) -> tp.Any:
        merged = nnx.merge(structure, parameters, jax.tree.map(lambda leaf: leaf, rest))  # variables of this trace
        y = merged(x)
        statistics = nnx.state(merged, nnx.BatchStat)
        return (y, statistics) if jax.tree.leaves(statistics) else y

    return parameters, call


def of_equinox(module: tp.Any, run: Callable[[tp.Any, tp.Any], tp.Any] | None = None) -> Layer:
    parameters, static = eqx.partition(module, eqx.is_inexact_array)

    def call(parameters: tp.Any, x: tp.Any) -> tp.Any:
        combined = eqx.combine(parameters, static)
        return jax.vmap(combined)(x) if run is None else run(combined, x)

    return parameters, call


def of_keras(layer: tp.Any, weights: list[tp.Any], shape: tuple[int, ...]) -> Layer:
    layer.build(shape)
    layer.set_weights([np.asarray(weight) for weight in weights])
    parameters = [variable.value for variable in layer.trainable_variables]
    state = [variable.value for variable in layer.non_trainable_variables]
    options = {"training": True} if state else {}

    def call(parameters: tp.Any, x: tp.Any) -> tp.Any:
        y, updated = layer.stateless_call(parameters, state, x, **options)
        return (y, updated) if state else y

    return parameters, call


def keras() -> tp.Any:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return keras


# ---------------------------------------------------------------------------------------------------------------------
# The layers
# ---------------------------------------------------------------------------------------------------------------------


def convolution(size: int, channels: int) -> Case:
    shape = (8, size, size, channels)

    def flax(ours: tp.Any) -> Layer:
        from flax import nnx

        module = nnx.Conv(channels, channels, (3, 3), rngs=nnx.Rngs(0))
        module.kernel.set_value(ours.w)
        module.bias.set_value(ours.b)
        return of_flax(module)

    def equinox(ours: tp.Any) -> Layer:
        module = eqx.nn.Conv2d(channels, channels, 3, padding=1, key=jax.random.key(0))
        weights = jnp.transpose(ours.w, (3, 2, 0, 1)), ours.b[:, None, None]
        return of_equinox(eqx.tree_at(lambda m: (m.weight, m.bias), module, weights))

    def with_keras(ours: tp.Any) -> Layer:
        return of_keras(keras().layers.Conv2D(channels, 3, padding="same"), [ours.w, ours.b], shape)

    module = elegy.nn.Conv2D(channels, 3)
    return Case("convolution", shape, module, {"Flax NNX": flax, "Equinox": equinox, "Keras": with_keras})


def batch_normalization(size: int, channels: int) -> Case:
    shape = (16, size, size, channels)

    def flax(ours: tp.Any) -> Layer:
        from flax import nnx

        return of_flax(nnx.BatchNorm(channels, epsilon=ours.eps, momentum=ours.decay_rate, rngs=nnx.Rngs(0)))

    def equinox(ours: tp.Any) -> Layer:
        module = eqx.nn.BatchNorm(channels, "batch", eps=ours.eps, momentum=ours.decay_rate, mode="batch")
        state = eqx.nn.State(module)

        def run(module: tp.Any, x: tp.Any) -> tp.Any:
            y, updated = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
            return y, eqx.filter(updated, eqx.is_array)

        return of_equinox(module, run)

    def with_keras(ours: tp.Any) -> Layer:
        ones, zeros = np.ones(channels), np.zeros(channels)
        layer = keras().layers.BatchNormalization(epsilon=ours.eps, momentum=ours.decay_rate)
        return of_keras(layer, [ones, zeros, zeros, ones], shape)

    module = elegy.nn.BatchNormalization()
    return Case("batch normalisation", shape, module, {"Flax NNX": flax, "Equinox": equinox, "Keras": with_keras})


def layer_normalization(length: int, features: int) -> Case:
    shape = (16, length, features)

    def flax(ours: tp.Any) -> Layer:
        from flax import nnx

        return of_flax(nnx.LayerNorm(features, epsilon=ours.eps, rngs=nnx.Rngs(0)))

    def equinox(ours: tp.Any) -> Layer:
        return of_equinox(eqx.nn.LayerNorm(features, eps=ours.eps), lambda module, x: jax.vmap(jax.vmap(module))(x))

    def with_keras(ours: tp.Any) -> Layer:
        layer = keras().layers.LayerNormalization(epsilon=ours.eps)
        return of_keras(layer, [np.ones(features), np.zeros(features)], shape)

    module = elegy.nn.LayerNormalization()
    return Case("layer normalisation", shape, module, {"Flax NNX": flax, "Equinox": equinox, "Keras": with_keras})


HEADS = 4


def flax_attention(ours: tp.Any, features: int) -> tp.Any:
    from flax import nnx

    module = nnx.MultiHeadAttention(HEADS, features, use_bias=False, decode=False, rngs=nnx.Rngs(0))
    for name in ("query", "key", "value"):
        getattr(module, name).kernel.set_value(getattr(ours, name).w.reshape(features, HEADS, -1))
    module.out.kernel.set_value(ours.output.w.reshape(HEADS, -1, features))
    return module


def equinox_attention(ours: tp.Any, features: int) -> tp.Any:
    module = eqx.nn.MultiheadAttention(HEADS, features, key=jax.random.key(0))
    return eqx.tree_at(
        lambda m: (m.query_proj.weight, m.key_proj.weight, m.value_proj.weight, m.output_proj.weight),
        module,
        [getattr(ours, name).w.T for name in ("query", "key", "value", "output")],
    )


def keras_attention_weights(ours: tp.Any, features: int) -> list[tp.Any]:
    heads = [getattr(ours, name).w.reshape(features, HEADS, -1) for name in ("query", "key", "value")]
    return [*heads, ours.output.w.reshape(HEADS, -1, features)]


def attention(length: int, features: int) -> Case:
    shape = (8, length, features)

    def flax(ours: tp.Any) -> Layer:
        return of_flax(flax_attention(ours, features))

    def equinox(ours: tp.Any) -> Layer:
        return of_equinox(equinox_attention(ours, features), lambda module, x: jax.vmap(module)(x, x, x))

    def with_keras(ours: tp.Any) -> Layer:
        k = keras()
        inputs = k.Input(shape[1:], batch_size=shape[0])
        layer = k.layers.MultiHeadAttention(HEADS, features // HEADS, use_bias=False)
        model = k.Model(inputs, layer(inputs, inputs))
        return of_keras(model, keras_attention_weights(ours, features), shape)

    module = elegy.nn.MultiHeadAttention(HEADS, with_bias=False)
    return Case("attention", shape, module, {"Flax NNX": flax, "Equinox": equinox, "Keras": with_keras})


def lstm(length: int, units: int) -> Case:
    shape = (16, length, units)

    def flax(ours: tp.Any) -> Layer:
        from flax import nnx

        cell = nnx.OptimizedLSTMCell(units, units, rngs=nnx.Rngs(0))
        cell.dense_i.kernel.set_value(ours.cell.w)
        cell.dense_h.kernel.set_value(ours.cell.recurrent_w)
        cell.dense_h.bias.set_value(ours.cell.b)
        return of_flax(nnx.RNN(cell, rngs=nnx.Rngs(0)))

    def equinox(ours: tp.Any) -> Layer:
        cell = eqx.nn.LSTMCell(units, units, key=jax.random.key(0))
        weights = ours.cell.w.T, ours.cell.recurrent_w.T, ours.cell.b
        cell = eqx.tree_at(lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias), cell, weights)

        def run(cell: tp.Any, x: tp.Any) -> tp.Any:
            def over_time(x: tp.Any) -> tp.Any:
                def step(state: tp.Any, x: tp.Any) -> tp.Any:
                    state = cell(x, state)
                    return state, state[0]

                return jax.lax.scan(step, (jnp.zeros(units), jnp.zeros(units)), x)[1]

            return jax.vmap(over_time)(x)

        return of_equinox(cell, run)

    def with_keras(ours: tp.Any) -> Layer:
        layer = keras().layers.LSTM(units, return_sequences=True)
        return of_keras(layer, [ours.cell.w, ours.cell.recurrent_w, ours.cell.b], shape)

    return Case("LSTM", shape, elegy.nn.LSTM(units), {"Flax NNX": flax, "Equinox": equinox, "Keras": with_keras})


LAYERS = 2


def transformer(length: int, features: int) -> Case:
    """A few layers with the norm first, and one at the end; no biases in the linear maps."""
    shape = (8, length, features)

    def blocks(ours: tp.Any) -> list[tp.Any]:
        return [ours.layers[number] for number in range(LAYERS)]

    def flax(ours: tp.Any) -> Layer:
        from flax import nnx

        def norm() -> tp.Any:
            return nnx.LayerNorm(features, epsilon=1e-5, rngs=nnx.Rngs(0))

        def linear(w: tp.Any) -> tp.Any:
            module = nnx.Linear(*w.shape, use_bias=False, rngs=nnx.Rngs(0))
            module.kernel.set_value(w)
            return module

        class Block(nnx.Module):
            def __init__(self, block: tp.Any):
                self.attention_norm, self.feedforward_norm = norm(), norm()
                self.attention = flax_attention(block.attention, features)
                self.expand, self.contract = linear(block.expand.w), linear(block.contract.w)

            def __call__(self, x: tp.Any) -> tp.Any:
                x = x + self.attention(self.attention_norm(x))
                return x + self.contract(nnx.relu(self.expand(self.feedforward_norm(x))))

        class Encoder(nnx.Module):
            def __init__(self) -> None:
                self.blocks = nnx.List([Block(block) for block in blocks(ours)])
                self.norm = norm()

            def __call__(self, x: tp.Any) -> tp.Any:
                for block in self.blocks:
                    x = block(x)
                return self.norm(x)

        return of_flax(Encoder())

    def equinox(ours: tp.Any) -> Layer:
        def linear(w: tp.Any) -> tp.Any:
            module = eqx.nn.Linear(*w.shape, use_bias=False, key=jax.random.key(0))
            return eqx.tree_at(lambda m: m.weight, module, w.T)

        norms = [[eqx.nn.LayerNorm(features, eps=1e-5) for _ in range(2)] for _ in range(LAYERS)]
        attentions = [equinox_attention(block.attention, features) for block in blocks(ours)]
        linears = [(linear(block.expand.w), linear(block.contract.w)) for block in blocks(ours)]
        last = eqx.nn.LayerNorm(features, eps=1e-5)

        def run(model: tp.Any, x: tp.Any) -> tp.Any:
            norms, attentions, linears, last = model

            def one(x: tp.Any) -> tp.Any:
                for (first, second), attention, (expand, contract) in zip(norms, attentions, linears, strict=True):
                    h = jax.vmap(first)(x)
                    x = x + attention(h, h, h)
                    x = x + jax.vmap(contract)(jax.nn.relu(jax.vmap(expand)(jax.vmap(second)(x))))
                return jax.vmap(last)(x)

            return jax.vmap(one)(x)

        return of_equinox((norms, attentions, linears, last), run)

    def with_keras(ours: tp.Any) -> Layer:
        k = keras()
        ones, zeros, weights = np.ones(features), np.zeros(features), []
        inputs = x = k.Input(shape[1:], batch_size=shape[0])
        for block in blocks(ours):
            h = k.layers.LayerNormalization(epsilon=1e-5)(x)
            x = x + k.layers.MultiHeadAttention(HEADS, features // HEADS, use_bias=False)(h, h)
            h = k.layers.LayerNormalization(epsilon=1e-5)(x)
            h = k.layers.Dense(4 * features, activation="relu", use_bias=False)(h)
            x = x + k.layers.Dense(features, use_bias=False)(h)
            weights += [ones, zeros, *keras_attention_weights(block.attention, features)]
            weights += [ones, zeros, block.expand.w, block.contract.w]
        model = k.Model(inputs, k.layers.LayerNormalization(epsilon=1e-5)(x))
        return of_keras(model, [*weights, ones, zeros], shape)

    module = elegy.nn.TransformerEncoder(LAYERS, HEADS, norm_first=True, with_bias=False, unroll=True)
    peers = {"Flax NNX": flax, "Equinox": equinox, "Keras": with_keras}
    return Case(f"transformer, {LAYERS} layers", shape, module, peers)


# ---------------------------------------------------------------------------------------------------------------------
# Timing
# ---------------------------------------------------------------------------------------------------------------------


def rows(quick: bool) -> Iterator[Row]:
    if quick:
        cases = [convolution(4, 2), batch_normalization(4, 2), layer_normalization(3, 4), attention(3, 8), lstm(3, 4)]
        cases.append(transformer(3, 8))
    else:
        cases = [
            convolution(32, 64),
            batch_normalization(32, 64),
            layer_normalization(128, 256),
            attention(128, 256),
            lstm(64, 128),
            transformer(128, 128),
        ]
    for case in cases:
        yield from rows_of(case, Budget(3, 0.0) if quick else Budget(21, 0.05))


def rows_of(case: Case, budget: Budget) -> Iterator[Row]:
    x = np.random.default_rng(0).normal(size=case.shape).astype(np.float32)
    module = case.module.init(x, rng=0)
    packages = {"Flax NNX": "flax", "Equinox": "equinox", "Keras": "keras"}
    layers = {"Elegy": of_elegy(module)}
    layers |= {name: make(module) for name, make in case.peers.items() if importlib.util.find_spec(packages[name])}
    # Equinox has its channels first.
    last = case.computation in ("convolution", "batch normalisation")
    inputs = {name: jnp.asarray(np.moveaxis(x, -1, 1) if last and name == "Equinox" else x) for name in layers}
    forward, gradient, outputs = {}, {}, {}
    for name, (parameters, call) in layers.items():
        compiled = jax.jit(call)
        cotangent = jax.tree.map(jnp.cos, _output(compiled(parameters, inputs[name])))
        forward[name] = _bound(compiled, parameters, inputs[name])
        gradient[name] = _bound(jax.jit(_gradient(call)), parameters, inputs[name], cotangent)
        arrays = gradient[name]()[0], gradient[name]()[2]
        outputs[name] = [np.moveaxis(a, 1, -1) if last and name == "Equinox" else np.asarray(a) for a in arrays]
    for name, arrays in outputs.items():
        for ours, theirs in zip(outputs["Elegy"], arrays, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-3 * np.abs(ours).max(), err_msg=name)
    pairs = [("Elegy", peer) for peer in PEERS]
    yield from compare(f"{case.computation}, forward", pairs, interleave(forward, budget))
    yield from compare(f"{case.computation}, gradient", pairs, interleave(gradient, budget))


def _bound(function: Callable[..., tp.Any], *arguments: tp.Any) -> Callable[[], tp.Any]:
    return lambda: function(*arguments)


def _output(result: tp.Any) -> tp.Any:
    return result[0] if isinstance(result, tuple) else result


def _gradient(call: Callable[..., tp.Any]) -> Callable[..., tp.Any]:
    """The output, and the gradients by the parameters and by the input for a cotangent of it; and the statistics."""

    def gradient(parameters: tp.Any, x: tp.Any, cotangent: tp.Any) -> tp.Any:
        def split(parameters: tp.Any, x: tp.Any) -> tp.Any:
            result = call(parameters, x)
            return _output(result), result[1] if isinstance(result, tuple) else None

        output, pull, statistics = jax.vjp(split, parameters, x, has_aux=True)
        return output, *pull(cotangent), statistics

    return gradient
