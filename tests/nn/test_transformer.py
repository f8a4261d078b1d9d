"""Transformers, against the same architectures made of the parts of Flax."""

import functools
from typing import Any, cast

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.nn import (
    RotaryEmbedding,
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from tests.helpers import assert_close, assert_same, case_name

pytestmark = pytest.mark.slow

NORMAL = elegy.initializers.RandomNormal()


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bools(*shape: int, seed: int = 0) -> np.ndarray:
    """At random, but for the first key, which is seen."""
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[..., 0] = True
    return mask


@functools.partial(jax.jit, static_argnames=("training", "causal"))
def run(module: Any, *args: Any, training: bool = False, **kwargs: Any) -> jax.Array:
    return module.apply(*args, rng=0, training=training, **kwargs)[0]


@jax.jit
def step(module: Any, *args: Any, **masks: Any) -> Any:
    return module.apply(*args, decode=True, training=False, **masks)


@jax.jit
def gradients_of(module: Any, *args: Any, **masks: Any) -> Any:
    """With respect to the parameters and the arguments."""
    params, rest = elegy.partition(module)

    def loss(params: Any, args: Any) -> jax.Array:
        return jnp.sum(jnp.sin(run(elegy.combine(params, rest), *args, **masks)))

    by_params, by_args = jax.grad(loss, (0, 1))(params, args)
    return by_params.get_parameters(trainable=True), by_args


def with_random_norms(module: Any) -> Any:
    """Scales and offsets at their initial values would hide much."""
    norms = elegy.select(module, "**/scale", "**/offset")
    return norms.apply(lambda x: x + 0.3 * jnp.asarray(floats(*x.shape, seed=x.size)))


def initialised(module: Any, *args: Any) -> Any:
    return with_random_norms(module.init(*args, rng=1))


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


def their_norm(values: Any, eps: float, x: Any) -> Any:
    norm = flax.nnx.LayerNorm(x.shape[-1], epsilon=eps, rngs=flax.nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = values["scale"], values["offset"]
    return norm(x)


def their_linear(values: Any, x: Any) -> Any:
    linear = flax.nnx.Linear(*values["w"].shape, rngs=flax.nnx.Rngs(0))
    linear.kernel[...], linear.bias[...] = values["w"], values["b"]
    return linear(x)


def their_attention(values: Any, heads: int, x: Any, memory: Any, mask: Any) -> Any:
    layer = flax.nnx.MultiHeadAttention(
        heads, x.shape[-1], in_kv_features=memory.shape[-1], decode=False, rngs=flax.nnx.Rngs(0)
    )
    for name in ("query", "key", "value"):
        linear = getattr(layer, name)
        linear.kernel[...] = values[name]["w"].reshape(linear.kernel.shape)
        linear.bias[...] = values[name]["b"].reshape(linear.bias.shape)
    layer.out.kernel[...] = values["output"]["w"].reshape(layer.out.kernel.shape)
    layer.out.bias[...] = values["output"]["b"]
    return layer(x, memory, mask=mask)


def their_layer(values: Any, x: Any, memory: Any, options: dict[str, Any], masks: tuple[Any, Any]) -> Any:
    """A layer of the encoder, or with a memory one of the decoder."""
    heads, eps = options["num_heads"], options.get("eps", 1e-5)

    def added(part: str, run: Any, x: Any) -> Any:
        norm = functools.partial(their_norm, values[f"{part}_norm"], eps)
        return x + run(norm(x)) if options.get("norm_first", False) else norm(x + run(x))

    def feedforward(x: Any) -> Any:
        activation = options.get("activation", jax.nn.relu)
        return their_linear(values["contract"], activation(their_linear(values["expand"], x)))

    x = added("attention", lambda x: their_attention(values["attention"], heads, x, x, masks[0]), x)
    if memory is not None:
        cross = functools.partial(their_attention, values["cross_attention"], heads)
        x = added("cross_attention", lambda x: cross(x, memory, masks[1]), x)
    return added("feedforward", feedforward, x)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"norm_first": True},
    {"activation": jax.nn.gelu, "eps": 0.1, "feedforward_size": 5},
]


@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize("decodes", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=case_name)
def test_values_and_gradients_equal_those_of_a_composition_from_flax(options: dict[str, Any], decodes: bool) -> None:
    x, memory = floats(2, 4, 6), floats(2, 3, 5, seed=1)
    mask, key_mask = bools(2, 2, 4, 4), bools(2, 4, seed=1)
    memory_mask, memory_key_mask = bools(2, 1, 4, 3), bools(2, 3, seed=1)
    options = {"num_heads": 2, **options}
    masks: dict[str, Any] = {"mask": mask, "key_mask": key_mask}
    theirs = mask & key_mask[:, None, None]
    if decodes:
        layer: Any = initialised(TransformerDecoderLayer(**options, b_init=NORMAL), x, memory)
        masks |= {"memory_mask": memory_mask, "memory_key_mask": memory_key_mask}
        theirs = theirs & np.tril(np.ones([4, 4], bool))  # its default
    else:
        layer = initialised(TransformerEncoderLayer(**options, b_init=NORMAL), x)
    args = (x, memory) if decodes else (x,)
    peer_masks = (theirs, memory_mask & memory_key_mask[:, None, None])

    def peer(values: Any, args: Any) -> Any:
        return their_layer(values, args[0], args[1] if decodes else None, options, peer_masks)

    values = layer.get_parameters(trainable=True)
    expected = jax.jit(peer)(values, args)
    np.testing.assert_allclose(run(layer, *args, **masks), expected, rtol=1e-4, atol=1e-5)
    their_gradients = jax.jit(jax.grad(lambda *all: jnp.sum(jnp.sin(peer(*all))), (0, 1)))(values, args)
    assert_close(gradients_of(layer, *args, **masks), their_gradients, rtol=1e-3, atol=1e-4)


def test_the_encoder_is_causal_if_told_so_and_the_decoder_unless_told_otherwise() -> None:
    x, memory = floats(1, 4, 6), floats(1, 3, 6, seed=1)
    changed = x.copy()
    changed[:, -1] += 1
    encoder, decoder = TransformerEncoder(2, 2).init(x), TransformerDecoder(2, 2).init(x, memory)
    for module, args in ((encoder, ()), (decoder, (memory,))):
        for causal in (False, True):
            before, after = (run(module, array, *args, causal=causal)[:, :-1] for array in (x, changed))
            assert bool(jnp.allclose(before, after, atol=1e-6)) == causal
        assert_same(run(module, x, *args), run(module, x, *args, causal=module is decoder))


# ---------------------------------------------------------------------------------------------------------------------
# Stacks of layers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"remat": True}, {"unroll": 2}, {"norm_first": True, "remat": jax.checkpoint_policies.dots_saveable}],
    ids=case_name,
)
def test_an_encoder_is_its_layers_one_after_the_other(options: dict[str, Any]) -> None:
    x, masks = floats(2, 4, 6), {"mask": bools(2, 1, 4, 4), "key_mask": bools(2, 4)}
    encoder: Any = initialised(TransformerEncoder(3, 2, **options), x)
    y: Any = x
    for layer in encoder.layers:
        y = run(layer, y, **masks)
    if "norm_first" in options:
        y = encoder.final_norm(y)
    else:
        assert encoder.final_norm is None
    np.testing.assert_allclose(run(encoder, x, **masks), y, rtol=1e-4, atol=1e-5)
    assert encoder.layers.n == 3 and encoder.layers.remat == options.get("remat", False)
    assert encoder.layers.unroll == options.get("unroll", 1)
    if "remat" in options:
        plain = TransformerEncoder(3, 2, norm_first="norm_first" in options).init(x)
        plain.set_parameters(encoder.get_parameters())
        assert_close(gradients_of(encoder, x, **masks), gradients_of(plain, x, **masks), rtol=1e-3, atol=1e-4)


def test_a_decoder_is_its_layers_one_after_the_other() -> None:
    x, memory = floats(2, 4, 6), floats(2, 3, 5, seed=1)
    masks = {"mask": bools(2, 1, 4, 4), "key_mask": bools(2, 4)}
    masks |= {"memory_mask": bools(2, 1, 4, 3), "memory_key_mask": bools(2, 3, seed=1)}
    decoder: Any = initialised(TransformerDecoder(2, 2, final_norm=True), x, memory)
    y: Any = x
    for layer in decoder.layers:
        y = run(layer, y, memory, **masks)
    np.testing.assert_allclose(run(decoder, x, memory, **masks), decoder.final_norm(y), rtol=1e-4, atol=1e-5)


def test_final_norm() -> None:
    x = floats(2, 3, 4)
    for norm_first, final_norm, expected in ((True, None, True), (False, None, False), (True, False, False)):
        for module in (TransformerEncoder, TransformerDecoder):
            made = module(1, 2, norm_first=norm_first, final_norm=final_norm, eps=0.1)
            assert (made.final_norm is not None) == expected
            assert made.final_norm is None or made.final_norm.eps == 0.1
        both = Transformer(1, 1, 2, norm_first=norm_first, final_norm=final_norm)
        assert {both.encoder.final_norm is None, both.decoder.final_norm is None} == {not expected}
    y = TransformerEncoder(1, 2, norm_first=True)(x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Both
# ---------------------------------------------------------------------------------------------------------------------


def test_a_transformer_is_an_encoder_and_a_decoder() -> None:
    source, target = floats(2, 5, 6), floats(2, 4, 6, seed=1)
    source_mask, target_mask = bools(2, 5), bools(2, 4, seed=1)
    transformer = initialised(Transformer(1, 2, 2, norm_first=True), source, target)
    memory = run(transformer.encoder, source, key_mask=source_mask)
    expected = run(transformer.decoder, target, memory, key_mask=target_mask, memory_key_mask=source_mask)
    y = run(transformer, source, target, source_mask=source_mask, target_mask=target_mask)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert transformer.encoder.layers.n == 1 and transformer.decoder.layers.n == 2


def test_padding_of_the_source_has_no_influence() -> None:
    source, target = floats(2, 5, 6), floats(2, 4, 6, seed=1)
    mask = np.array([[True, True, True, False, False]] * 2)
    transformer = Transformer(2, 2, 2).init(source, target)
    y = run(transformer, source, target, source_mask=mask)
    np.testing.assert_allclose(y, run(transformer, source[:, :3], target), rtol=1e-4, atol=1e-5)
    assert abs(run(transformer, source, target) - y).max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [True, False])
def test_dropout_is_that_of_the_output_of_each_part(norm_first: bool) -> None:
    """If nearly everything is dropped, the input is left."""
    x, memory = floats(2, 4, 6), floats(2, 3, 6, seed=1)
    layer = TransformerDecoderLayer(2, dropout_rate=1 - 1e-7, norm_first=norm_first).init(x, memory)
    y = run(layer, x, memory, training=True)
    if norm_first:
        np.testing.assert_array_equal(y, x)
    else:
        norm = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        np.testing.assert_allclose(y, norm, rtol=1e-3, atol=1e-4)
    assert abs(run(layer, x, memory) - x).max() > 0.1
    assert elegy.select(layer, trainable=False).paths == (
        "attention_dropout/rng_key",
        "cross_attention_dropout/rng_key",
        "feedforward_dropout/rng_key",
    )


def test_dropout_of_the_weights_of_the_attention() -> None:
    """If nearly all are dropped, what is left of a part is the bias of its output."""
    x, memory = floats(2, 4, 6), floats(2, 3, 6, seed=1)
    options: dict[str, Any] = {"attention_dropout_rate": 1 - 1e-7, "norm_first": True, "b_init": jnp.ones}
    layer = TransformerDecoderLayer(2, **options).init(x, memory)
    expected = x + 2
    norm = layer.feedforward_norm(expected)
    expected = expected + layer.contract(jax.nn.relu(layer.expand(norm)))
    np.testing.assert_allclose(run(layer, x, memory, training=True), expected, rtol=1e-4, atol=1e-4)
    assert abs(run(layer, x, memory) - expected).max() > 0.01


def test_draws_differ_between_layers_and_follow_the_mode() -> None:
    x = floats(2, 4, 6)
    encoder = TransformerEncoder(2, 2, dropout_rate=0.5).init(x)
    assert (encoder(x) != encoder(x)).any()
    assert_same(encoder(x, training=False), encoder(x, training=False))
    keys = encoder.layers.blocks.attention_dropout.rng_key
    assert (keys[0] != keys[1]).any()


def test_arguments_of_the_attention_reach_it() -> None:
    x, memory = floats(1, 3, 8), floats(1, 4, 8)
    options: dict[str, Any] = {
        "head_size": 6,
        "num_kv_heads": 2,
        "with_bias": False,
        "qk_norm": True,
        "w_init": jnp.ones,
        "attention_dropout_rate": 0.25,
    }
    positional: dict[str, Any] = {"rotary": RotaryEmbedding(7), "window": (1, 2), "cache_size": 5}
    layer = TransformerDecoderLayer(4, **options, **positional)
    layer.init(x, memory)
    for attention in (layer.attention, layer.cross_attention):
        assert attention.num_heads == 4 and attention.dropout_rate == 0.25
        shapes = jax.tree.map(jnp.shape, attention.get_parameters(trainable=True))
        assert {name: shapes[name] for name in ("query", "key", "query_scale")} == {
            "query": {"w": (8, 24)},
            "key": {"w": (8, 12)},
            "query_scale": (6,),
        }
    for linear in (layer.expand, layer.contract, layer.attention.query):
        assert not linear.with_bias and (linear.w == 1).all()
    assert layer.attention.rotary is not None and layer.attention.rotary.base == 7
    assert layer.attention.window == (1, 2) and layer.attention.cache_size == 5
    other = layer.cross_attention
    assert other.rotary is None and other.window is None and other.cache_size is None
    assert (TransformerEncoderLayer(2, b_init=jnp.ones).init(x).expand.b == 1).all()
    both = Transformer(1, 1, 4, cache_size=5, head_size=3, remat=True, unroll=2)
    assert both.encoder.layers.blocks.attention.cache_size is None
    assert both.decoder.layers.blocks.attention.cache_size == 5
    for part in (both.encoder, both.decoder):
        assert part.layers.remat is True and part.layers.unroll == 2
        assert part.layers.blocks.attention.head_size == 3


def test_default_sizes() -> None:
    layer = TransformerEncoderLayer(2).init(floats(1, 3, 6))
    assert layer.expand.w.shape == (6, 24) and layer.contract.w.shape == (24, 6)
    assert layer.activation is jax.nn.relu and not layer.norm_first and layer.eps == 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------------------

DECODING: list[dict[str, Any]] = [
    {},
    {"norm_first": True, "rotary": True, "window": 2, "num_kv_heads": 1, "head_size": 4},
]


@pytest.mark.parametrize("options", DECODING, ids=case_name)
def test_an_encoder_decodes_as_a_language_model(options: dict[str, Any]) -> None:
    x = floats(2, 5, 6)
    encoder = TransformerEncoder(2, 2, cache_size=5, **options).init(x)
    expected = run(encoder, x, causal=True)
    outputs, module = [], encoder
    for part in np.split(x, [2, 3, 4], axis=1):
        y, module = step(module, part)
        outputs.append(y)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), expected, rtol=1e-4, atol=1e-5)
    assert module.layers.blocks.attention.cache_index.tolist() == [5, 5]
    assert_same(elegy.select(module, "**/cache_*").apply(jnp.zeros_like), encoder)
    y, _ = step(module, x[:, :1])
    assert jnp.isnan(y).all()


@pytest.mark.parametrize("options", DECODING, ids=case_name)
def test_a_decoder_decodes_in_a_scan(options: dict[str, Any]) -> None:
    x, memory, memory_key_mask = floats(2, 5, 6), floats(2, 3, 6, seed=1), bools(2, 3)
    decoder = TransformerDecoder(2, 2, cache_size=5, **options).init(x, memory)
    expected = run(decoder, x, memory, memory_key_mask=memory_key_mask)

    def body(module: Any, token: Any) -> Any:
        y, module = step(module, token[:, None], memory, memory_key_mask=memory_key_mask)
        return module, y[:, 0]

    _, y = jax.jit(lambda module, x: jax.lax.scan(body, module, x))(decoder, jnp.swapaxes(x, 0, 1))
    np.testing.assert_allclose(jnp.swapaxes(y, 0, 1), expected, rtol=1e-4, atol=1e-5)


def test_eager_decoding_and_another_batch_in_training() -> None:
    x = floats(2, 3, 6)
    decoder = TransformerDecoder(2, 2, cache_size=3)
    memory = floats(2, 4, 6, seed=1)
    y = [decoder(part, memory, decode=True) for part in (x[:, :2], x[:, 2:])]
    np.testing.assert_allclose(jnp.concatenate(y, 1), run(decoder, x, memory), rtol=1e-4, atol=1e-5)
    assert run(decoder, floats(5, 7, 6), floats(5, 4, 6)).shape == (5, 7, 6)


# ---------------------------------------------------------------------------------------------------------------------
# Edges
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 6, 8), (2, 1, 8), (2, 0, 8), (0, 3, 8)])
def test_lengths_and_axes_of_the_batch(shape: tuple[int, ...]) -> None:
    x = floats(*shape)
    transformer = Transformer(1, 1, 2, norm_first=True).init(x, x)
    y = run(transformer, x, x)
    assert y.shape == shape and bool(jnp.isfinite(y).all())
    if len(shape) == 4:
        y = y.reshape(6, 6, 8)
        np.testing.assert_allclose(y, run(transformer, x.reshape(6, 6, 8), x.reshape(6, 6, 8)), rtol=1e-4, atol=1e-5)


def test_the_dtype_is_that_of_the_parameters() -> None:
    x = floats(2, 3, 8)
    single = Transformer(1, 2, 2).init(x, x)
    half = Transformer(1, 2, 2, dtype=jnp.bfloat16).init(x, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.get_parameters())} == {jnp.dtype(jnp.bfloat16)}
    parameters, rest = elegy.partition(single)
    cast_later = elegy.combine(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters), rest)
    for module in (half, cast_later):
        y = run(module, x, x)
        assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), run(single, x, x), rtol=0.1, atol=0.1)
    assert run(single, jnp.asarray(x, jnp.bfloat16), x.astype(int)).dtype == jnp.float32


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

X = np.ones([2, 3, 4], np.float32)
Encoder, Decoder = cast(Any, TransformerEncoderLayer), cast(Any, TransformerDecoderLayer)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Encoder(0), ValueError, "nn.TransformerEncoderLayer: num_heads must be a positive integer, got 0"),
        (lambda: Encoder(64, 8), TypeError, r"num_heads only, got \(64, 8\).\n.*TransformerEncoderLayer\(8\)"),
        (lambda: Decoder(2, feedforward_size=0), ValueError, "nn.TransformerDecoderLayer: feedforward_size must be"),
        (lambda: Encoder(2, dropout_rate=1), ValueError, r"nn.TransformerEncoderLayer: dropout_rate .* got 1"),
        (lambda: Encoder(2, attention_dropout_rate=-1), ValueError, "Layer: attention_dropout_rate .* got -1"),
        (lambda: Encoder(2, activation="relu"), TypeError, "Layer: activation must be a function, .* got 'relu'"),
        (lambda: Encoder(2, norm_first=1), TypeError, "Layer: norm_first must be True or False, got 1"),
        (lambda: Encoder(2, with_bias=1), TypeError, "Layer: with_bias must be True or False, got 1"),
        (lambda: Encoder(2, eps=-1), ValueError, "Layer: eps must not be negative, got -1"),
        (lambda: Encoder(2)(X[0, 0]), ValueError, r"transformer_encoder_layer: the input .* got \(4,\)"),
        (lambda: Decoder(2)(X[0, 0], X), ValueError, r"transformer_decoder_layer: the input .* got \(4,\)"),
        (lambda: Decoder(2)(X, X[0]), ValueError, "decoder_layer/cross_attention: .* same axes of the batch"),
        (lambda: Encoder(3)(X), ValueError, "encoder_layer/attention: the 4 features .* num_heads=3"),
        (lambda: Encoder(2)(X, decode=True), ValueError, "encoder_layer/attention: decode=True .*\n.*cache_size="),
        (lambda: TransformerEncoder(0, 2), ValueError, "nn.TransformerEncoder: num_layers must be a positive integer"),
        (lambda: TransformerDecoder(0, 2), ValueError, "nn.TransformerDecoder: num_layers must be a positive integer"),
        (lambda: TransformerEncoder(2, 4, 64), TypeError, r"num_layers and num_heads only, got \(2, 4, 64\)"),
        (lambda: TransformerEncoder(2, 4, final_norm=cast(Any, 1)), TypeError, "Encoder: final_norm must be True or"),
        (lambda: TransformerEncoder(2, 2)(X[0, 0]), ValueError, r"transformer_encoder: the input .* got \(4,\)"),
        (lambda: TransformerEncoder(2, 2, heads=3), TypeError, "unexpected keyword argument 'heads'"),
        (lambda: Transformer(2, 2, 4, 64), TypeError, r"num_heads only, got \(2, 2, 4, 64\)"),
        (lambda: Transformer(1, 1, 2)(X, X[0, 0]), ValueError, r"transformer/decoder: the input .* got \(4,\)"),
    ],
)
def test_errors_name_the_layer(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
