"""The time JAX takes to trace the gradient of a transformer: what modules add to it.

The floor is the same function over a nested dict of arrays. Every library gets the same parameters and the same
arithmetic, and is asked for `jax.make_jaxpr` of the gradient when all caches of JAX have been cleared.
"""

from __future__ import annotations

import collections
import importlib.util
import typing as tp
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import elegy
from tests.benchmarks.timing import Arm, Budget, Row, compare, interleave, require_equal

BLOCKS = 12
WIDTH = 32
HEADS = 4
VOCABULARY = 64
LENGTH = 16
BATCH = 2

FLOOR = "dict of arrays"
ELEGY = "Elegy"
EQUINOX = "Equinox"
HAIKU = "Haiku"
LINEN = "Flax Linen"
NNX = "Flax NNX"
PAIRS = [(ELEGY, FLOOR), (HAIKU, FLOOR), (LINEN, FLOOR), (NNX, FLOOR), (EQUINOX, FLOOR)]

Parameters = dict[str, tp.Any]
# A function that returns the loss and its gradient, and its first argument: the parameters in the library's form. The
# second argument are the tokens.
Gradient = tuple[Callable[..., tp.Any], tp.Any]


def rows(quick: bool) -> Iterator[Row]:
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, VOCABULARY, [BATCH, LENGTH]))
    # Compiling takes much longer than tracing, so the losses that are compared are those of one block.
    short = make_gradients(1, tokens)
    require_equal({name: loss(*gradient, tokens) for name, gradient in short.items()})
    blocks = 1 if quick else BLOCKS
    gradients = short if quick else make_gradients(blocks, tokens)
    require_same_operations(gradients, tokens)
    arms = {name: trace(*gradient, tokens) for name, gradient in gradients.items()}
    times = interleave(arms, Budget(rounds=2 if quick else 11, seconds=0.0), prepare=lambda arm: jax.clear_caches())
    yield from compare(f"trace of the gradient, {blocks}-block transformer", PAIRS, times)


def make_gradients(blocks: int, tokens: jax.Array) -> dict[str, Gradient]:
    makers = {FLOOR: floor_gradient, ELEGY: elegy_gradient, EQUINOX: equinox_gradient}
    if importlib.util.find_spec("haiku"):
        makers[HAIKU] = haiku_gradient
    if importlib.util.find_spec("flax"):
        makers |= {LINEN: linen_gradient, NNX: nnx_gradient}
    parameters = initial_parameters(blocks)
    return {name: make(parameters, tokens) for name, make in makers.items()}


def loss(function: Callable[..., tp.Any], model: tp.Any, tokens: jax.Array) -> jax.Array:
    return jax.jit(lambda model, tokens: function(model, tokens)[0])(model, tokens)


def trace(function: Callable[..., tp.Any], model: tp.Any, tokens: jax.Array) -> Arm:
    return lambda: jax.make_jaxpr(function)(model, tokens) and None


def require_same_operations(gradients: dict[str, Gradient], tokens: jax.Array) -> None:
    """Refuses to time arms whose traces differ in the number of any primitive."""
    counts = {
        name: collections.Counter(str(eqn.primitive) for eqn in jax.make_jaxpr(function)(model, tokens).eqns)
        for name, (function, model) in gradients.items()
    }
    for name, count in counts.items():
        assert count == counts[FLOOR], f"{name} differs from {FLOOR}: {count - counts[FLOOR]}, {counts[FLOOR] - count}"


# ---------------------------------------------------------------------------------------------------------------------
# What all have in common
# ---------------------------------------------------------------------------------------------------------------------


def initial_parameters(blocks: int) -> Parameters:
    """Parameters of a transformer, by the names that every arm gives them."""
    generator = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    def linear(size_in: int, size_out: int) -> Parameters:
        return {"w": array(size_in, size_out), "b": jnp.zeros([size_out])}

    def norm() -> Parameters:
        return {"scale": jnp.ones([WIDTH]), "offset": jnp.zeros([WIDTH])}

    def block() -> Parameters:
        return {
            "attention_norm": norm(),
            "attention": {name: linear(WIDTH, WIDTH) for name in ("query", "key", "value", "output")},
            "mlp_norm": norm(),
            "mlp": {"expand": linear(WIDTH, 4 * WIDTH), "contract": linear(4 * WIDTH, WIDTH)},
        }

    embedding = {"w": array(VOCABULARY, WIDTH), "position": array(LENGTH, WIDTH)}
    layers = {f"block_{i}": block() for i in range(blocks)}
    return {"embedding": embedding, **layers, "norm": norm(), "head": linear(WIDTH, VOCABULARY)}


def normalise(x: jax.Array, scale: jax.Array, offset: jax.Array) -> jax.Array:
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * scale + offset


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    split = lambda x: x.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS)  # noqa: E731
    return jax.nn.dot_product_attention(split(query), split(key), split(value), is_causal=True).reshape(query.shape)


def cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    predicted = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(predicted, tokens[:, 1:, None], axis=-1).mean()


# ---------------------------------------------------------------------------------------------------------------------
# The arms
# ---------------------------------------------------------------------------------------------------------------------


def floor_gradient(parameters: Parameters, tokens: jax.Array) -> Gradient:
    def linear(p, x):
        return x @ p["w"] + p["b"]

    def attention(p, x):
        return linear(p["output"], attend(linear(p["query"], x), linear(p["key"], x), linear(p["value"], x)))

    def mlp(p, x):
        return linear(p["contract"], jax.nn.gelu(linear(p["expand"], x)))

    def block(p, x):
        x = x + attention(p["attention"], normalise(x, **p["attention_norm"]))
        return x + mlp(p["mlp"], normalise(x, **p["mlp_norm"]))

    def loss_fn(p, tokens):
        x = p["embedding"]["w"][tokens] + p["embedding"]["position"]
        for i in range(len(p) - 3):
            x = block(p[f"block_{i}"], x)
        return cross_entropy(linear(p["head"], normalise(x, **p["norm"])), tokens)

    return jax.value_and_grad(loss_fn), parameters


class Linear(elegy.Module):
    def __init__(self, width, name=None):
        super().__init__(name=name)
        self.width = width

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.width], initializer=jax.nn.initializers.lecun_normal())
        b = self.add_parameter("b", [self.width])
        return x @ w + b


class LayerNorm(elegy.Module):
    def call(self, x):
        scale = self.add_parameter("scale", [x.shape[-1]], initializer=jnp.ones)
        offset = self.add_parameter("offset", [x.shape[-1]])
        return normalise(x, scale, offset)


class Attention(elegy.Module):
    def call(self, x):
        query = Linear(WIDTH, name="query")(x)
        key = Linear(WIDTH, name="key")(x)
        value = Linear(WIDTH, name="value")(x)
        return Linear(WIDTH, name="output")(attend(query, key, value))


class MLP(elegy.Module):
    def call(self, x):
        x = jax.nn.gelu(Linear(4 * x.shape[-1], name="expand")(x))
        return Linear(x.shape[-1] // 4, name="contract")(x)


class Block(elegy.Module):
    def call(self, x):
        x = x + Attention(name="attention")(LayerNorm(name="attention_norm")(x))
        return x + MLP(name="mlp")(LayerNorm(name="mlp_norm")(x))


class Embedding(elegy.Module):
    def call(self, tokens):
        w = self.add_parameter("w", [VOCABULARY, WIDTH], initializer=jax.nn.initializers.normal())
        position = self.add_parameter("position", [tokens.shape[-1], WIDTH], initializer=jax.nn.initializers.normal())
        return w[tokens] + position


class Transformer(elegy.Module):
    def __init__(self, blocks):
        self.blocks = blocks

    def call(self, tokens):
        x = Embedding(name="embedding")(tokens)
        for i in range(self.blocks):
            x = Block(name=f"block_{i}")(x)
        return Linear(VOCABULARY, name="head")(LayerNorm(name="norm")(x))


def elegy_gradient(parameters: Parameters, tokens: jax.Array) -> Gradient:
    transformer = Transformer(len(parameters) - 3).init(tokens)
    transformer.set_parameters(parameters)

    def loss_fn(transformer, tokens):
        return cross_entropy(transformer(tokens), tokens)

    def gradient(transformer, tokens):
        (loss, _), gradients = elegy.value_and_grad(loss_fn)(transformer, tokens)
        return loss, gradients.get_parameters()

    return gradient, transformer


def equinox_gradient(parameters: Parameters, tokens: jax.Array) -> Gradient:
    class Linear(eqx.Module):
        w: jax.Array
        b: jax.Array

        def __call__(self, x):
            return x @ self.w + self.b

    class LayerNorm(eqx.Module):
        scale: jax.Array
        offset: jax.Array

        def __call__(self, x):
            return normalise(x, self.scale, self.offset)

    class Attention(eqx.Module):
        query: Linear
        key: Linear
        value: Linear
        output: Linear

        def __call__(self, x):
            return self.output(attend(self.query(x), self.key(x), self.value(x)))

    class MLP(eqx.Module):
        expand: Linear
        contract: Linear

        def __call__(self, x):
            return self.contract(jax.nn.gelu(self.expand(x)))

    class Block(eqx.Module):
        attention_norm: LayerNorm
        attention: Attention
        mlp_norm: LayerNorm
        mlp: MLP

        def __call__(self, x):
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))

    class Embedding(eqx.Module):
        w: jax.Array
        position: jax.Array

        def __call__(self, tokens):
            return self.w[tokens] + self.position

    class Transformer(eqx.Module):
        embedding: Embedding
        blocks: list[Block]
        norm: LayerNorm
        head: Linear

        def __call__(self, tokens):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    def block(p):
        attention = Attention(**{name: Linear(**values) for name, values in p["attention"].items()})
        mlp = MLP(**{name: Linear(**values) for name, values in p["mlp"].items()})
        return Block(LayerNorm(**p["attention_norm"]), attention, LayerNorm(**p["mlp_norm"]), mlp)

    transformer = Transformer(
        Embedding(**parameters["embedding"]),
        [block(parameters[f"block_{i}"]) for i in range(len(parameters) - 3)],
        LayerNorm(**parameters["norm"]),
        Linear(**parameters["head"]),
    )

    def loss_fn(transformer, tokens):
        return cross_entropy(transformer(tokens), tokens)

    return lambda m, tokens: eqx.filter_value_and_grad(loss_fn)(m, tokens), transformer


def haiku_gradient(parameters: Parameters, tokens: jax.Array) -> Gradient:
    import haiku as hk

    class Linear(hk.Module):
        def __init__(self, width, name):
            super().__init__(name)
            self.width = width

        def __call__(self, x):
            w = hk.get_parameter("w", [x.shape[-1], self.width], init=jnp.zeros)
            b = hk.get_parameter("b", [self.width], init=jnp.zeros)
            return x @ w + b

    class LayerNorm(hk.Module):
        def __call__(self, x):
            scale = hk.get_parameter("scale", [x.shape[-1]], init=jnp.ones)
            offset = hk.get_parameter("offset", [x.shape[-1]], init=jnp.zeros)
            return normalise(x, scale, offset)

    class Attention(hk.Module):
        def __call__(self, x):
            query, key, value = (Linear(WIDTH, name)(x) for name in ("query", "key", "value"))
            return Linear(WIDTH, "output")(attend(query, key, value))

    class MLP(hk.Module):
        def __call__(self, x):
            width = x.shape[-1]
            return Linear(width, "contract")(jax.nn.gelu(Linear(4 * width, "expand")(x)))

    class Block(hk.Module):
        def __call__(self, x):
            x = x + Attention("attention")(LayerNorm("attention_norm")(x))
            return x + MLP("mlp")(LayerNorm("mlp_norm")(x))

    class Embedding(hk.Module):
        def __call__(self, tokens):
            w = hk.get_parameter("w", [VOCABULARY, WIDTH], init=jnp.zeros)
            position = hk.get_parameter("position", [tokens.shape[-1], WIDTH], init=jnp.zeros)
            return w[tokens] + position

    class Transformer(hk.Module):
        def __call__(self, tokens):
            x = Embedding("embedding")(tokens)
            for i in range(len(parameters) - 3):
                x = Block(f"block_{i}")(x)
            return Linear(VOCABULARY, "head")(LayerNorm("norm")(x))

    def by_module(values: Parameters, path: str) -> Parameters:
        arrays = {name: value for name, value in values.items() if not isinstance(value, dict)}
        found = {path: arrays} if arrays else {}
        for name, value in values.items():
            if isinstance(value, dict):
                found |= by_module(value, f"{path}/{name}")
        return found

    transformed = hk.without_apply_rng(hk.transform(lambda tokens: cross_entropy(Transformer()(tokens), tokens)))
    return jax.value_and_grad(transformed.apply), by_module(parameters, "transformer")


def linen_gradient(parameters: Parameters, tokens: jax.Array) -> Gradient:
    from flax import linen

    zeros, ones = linen.initializers.zeros, linen.initializers.ones

    class Linear(linen.Module):
        width: int

        @linen.compact
        def __call__(self, x):
            w = self.param("w", zeros, (x.shape[-1], self.width))
            b = self.param("b", zeros, (self.width,))
            return x @ w + b

    class LayerNorm(linen.Module):
        @linen.compact
        def __call__(self, x):
            scale = self.param("scale", ones, (x.shape[-1],))
            offset = self.param("offset", zeros, (x.shape[-1],))
            return normalise(x, scale, offset)

    class Attention(linen.Module):
        @linen.compact
        def __call__(self, x):
            query, key, value = (Linear(WIDTH, name=name)(x) for name in ("query", "key", "value"))
            return Linear(WIDTH, name="output")(attend(query, key, value))

    class MLP(linen.Module):
        @linen.compact
        def __call__(self, x):
            width = x.shape[-1]
            return Linear(width, name="contract")(jax.nn.gelu(Linear(4 * width, name="expand")(x)))

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = x + Attention(name="attention")(LayerNorm(name="attention_norm")(x))
            return x + MLP(name="mlp")(LayerNorm(name="mlp_norm")(x))

    class Embedding(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            w = self.param("w", zeros, (VOCABULARY, WIDTH))
            position = self.param("position", zeros, (tokens.shape[-1], WIDTH))
            return w[tokens] + position

    class Transformer(linen.Module):
        blocks: int

        @linen.compact
        def __call__(self, tokens):
            x = Embedding(name="embedding")(tokens)
            for i in range(self.blocks):
                x = Block(name=f"block_{i}")(x)
            return Linear(VOCABULARY, name="head")(LayerNorm(name="norm")(x))

    transformer = Transformer(len(parameters) - 3)

    def loss_fn(parameters, tokens):
        return cross_entropy(transformer.apply({"params": parameters}, tokens), tokens)

    return jax.value_and_grad(loss_fn), parameters


def nnx_gradient(parameters: Parameters, tokens: jax.Array) -> Gradient:
    from flax import nnx

    class Linear(nnx.Module):
        def __init__(self, p):
            self.w = nnx.Param(p["w"])
            self.b = nnx.Param(p["b"])

        def __call__(self, x):
            return x @ self.w[...] + self.b[...]

    class LayerNorm(nnx.Module):
        def __init__(self, p):
            self.scale = nnx.Param(p["scale"])
            self.offset = nnx.Param(p["offset"])

        def __call__(self, x):
            return normalise(x, self.scale[...], self.offset[...])

    class Attention(nnx.Module):
        def __init__(self, p):
            self.query = Linear(p["query"])
            self.key = Linear(p["key"])
            self.value = Linear(p["value"])
            self.output = Linear(p["output"])

        def __call__(self, x):
            return self.output(attend(self.query(x), self.key(x), self.value(x)))

    class MLP(nnx.Module):
        def __init__(self, p):
            self.expand = Linear(p["expand"])
            self.contract = Linear(p["contract"])

        def __call__(self, x):
            return self.contract(jax.nn.gelu(self.expand(x)))

    class Block(nnx.Module):
        def __init__(self, p):
            self.attention_norm = LayerNorm(p["attention_norm"])
            self.attention = Attention(p["attention"])
            self.mlp_norm = LayerNorm(p["mlp_norm"])
            self.mlp = MLP(p["mlp"])

        def __call__(self, x):
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))

    class Embedding(nnx.Module):
        def __init__(self, p):
            self.w = nnx.Param(p["w"])
            self.position = nnx.Param(p["position"])

        def __call__(self, tokens):
            return self.w[...][tokens] + self.position[...]

    class Transformer(nnx.Module):
        def __init__(self, p):
            self.embedding = Embedding(p["embedding"])
            self.blocks = nnx.List([Block(p[f"block_{i}"]) for i in range(len(p) - 3)])
            self.norm = LayerNorm(p["norm"])
            self.head = Linear(p["head"])

        def __call__(self, tokens):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    def loss_fn(transformer, tokens):
        return cross_entropy(transformer(tokens), tokens)

    return nnx.value_and_grad(loss_fn), Transformer(parameters)
