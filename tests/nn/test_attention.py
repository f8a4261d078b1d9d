"""Attention and positions: numbers and gradients against Flax, Equinox and Keras."""

import functools
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.nn import MultiHeadAttention, PositionEmbedding, RotaryEmbedding, SinusoidalEmbedding
from tests.helpers import assert_close, assert_same

NORMAL = elegy.initializers.RandomNormal()


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bools(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.6


def attention(num_heads: int, **options: Any) -> MultiHeadAttention:
    """One whose biases are not zero."""
    return MultiHeadAttention(num_heads, b_init=NORMAL, **options)


def trainable(module: elegy.Module) -> dict[str, Any]:
    return module.get_parameters(trainable=True)


@functools.partial(jax.jit, static_argnames=("causal", "training"))
def run(module: Any, *args: Any, training: bool = False, **kwargs: Any) -> jax.Array:
    """In one compilation. Eager calls compile each operation."""
    return module.apply(*args, rng=0, training=training, **kwargs)[0]


def loss_of(run: Callable[..., Any], *args: Any) -> jax.Array:
    """A number on which all elements of the output have different influence."""
    y = run(*args)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))


@functools.partial(jax.jit, static_argnames=("causal", "decode", "training"))
def gradients_of(module: elegy.Module, *args: Any, **kwargs: Any) -> Any:
    """With respect to the parameters and the arguments."""
    params, rest = elegy.partition(module)

    def loss(params: Any, args: Any) -> jax.Array:
        return loss_of(lambda: elegy.combine(params, rest).apply(*args, rng=0, **kwargs)[0])

    by_params, by_args = jax.grad(loss, (0, 1))(params, args)
    return trainable(by_params), by_args


# ---------------------------------------------------------------------------------------------------------------------
# Against other libraries
# ---------------------------------------------------------------------------------------------------------------------


def flax_kernels(module: MultiHeadAttention, heads: int, kv_heads: int) -> dict[str, dict[str, Any]]:
    """Our parameters in the form of Flax."""
    kernels: dict[str, dict[str, Any]] = {}
    for name, count in (("query", heads), ("key", kv_heads), ("value", kv_heads)):
        linear = getattr(module, name)
        kernels[name] = {"kernel": linear.w.reshape(linear.w.shape[0], count, -1), "bias": linear.b.reshape(count, -1)}
    kernels["out"] = {"kernel": module.output.w.reshape(heads, -1, module.output.w.shape[-1]), "bias": module.output.b}
    return kernels


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "batch", "lengths", "masked", "causal"),
    [
        (2, 2, (3,), (4, 4), False, False),
        (2, 2, (3,), (4, 4), False, True),
        (4, 2, (2, 3), (4, 4), True, False),
        (4, 1, (), (3, 5), True, False),
        (1, 1, (2,), (1, 5), True, False),
        (3, 3, (2,), (5, 1), False, False),
    ],
)
def test_values_and_gradients_equal_those_of_flax(
    heads: int, kv_heads: int, batch: tuple[int, ...], lengths: tuple[int, int], masked: bool, causal: bool
) -> None:
    queries, keys = lengths
    query, memory = floats(*batch, queries, 12), floats(*batch, keys, 12, seed=1)
    mask = bools(*batch, heads, queries, keys) if masked else None
    if mask is not None:
        mask[..., 0] = True  # Flax lets what sees nothing see everything
    module = attention(heads, num_kv_heads=kv_heads).init(query, memory, rng=1)
    peer = flax.nnx.MultiHeadAttention(
        heads, 12, num_kv_heads=kv_heads, decode=False, deterministic=True, rngs=flax.nnx.Rngs(0)
    )
    graph, variables = flax.nnx.split(peer, flax.nnx.Param)

    def theirs(kernels: Any, query: Any, memory: Any) -> Any:
        filled = flax.nnx.clone(variables)
        flax.nnx.replace_by_pure_dict(filled, kernels)
        return flax.nnx.merge(graph, filled)(query, memory, mask=mask, is_causal=causal)

    kernels = flax_kernels(module, heads, kv_heads)
    expected = jax.jit(theirs)(kernels, query, memory)
    np.testing.assert_allclose(run(module, query, memory, mask=mask, causal=causal), expected, rtol=1e-4, atol=1e-5)

    found, by_args = gradients_of(module, query, memory, mask=mask, causal=causal)
    by_kernels, *by_their_args = jax.jit(jax.grad(lambda *args: loss_of(theirs, *args), (0, 1, 2)))(
        kernels, query, memory
    )
    assert_close(list(by_args), by_their_args, rtol=1e-3, atol=1e-4)
    for name, theirs_name in (("query", "query"), ("key", "key"), ("value", "value"), ("output", "out")):
        for ours, peers in (("w", "kernel"), ("b", "bias")):
            gradient = by_kernels[theirs_name][peers].reshape(found[name][ours].shape)
            np.testing.assert_allclose(found[name][ours], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize("rotary", [False, True])
def test_values_equal_those_of_equinox(rotary: bool) -> None:
    """With other sizes of keys, values, heads and output; queries and keys normalised, then rotated."""
    query, key, value = floats(4, 6), floats(5, 3, seed=1), floats(5, 7, seed=2)
    mask = bools(2, 4, 5)
    mask[..., 0] = True
    module = attention(2, head_size=4, output_size=9, qk_norm=True, rotary=rotary).init(query, key, value, rng=1)
    scales = {"query_scale": 1 + floats(4), "key_scale": 1 + floats(4, seed=3)}
    module.set_parameters(scales)
    biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
    peer: Any = eqx.nn.MultiheadAttention(2, 6, 3, 7, 9, 4, 4, key=jax.random.key(0), **biases)
    for name in ("query", "key", "value", "output"):
        linear = getattr(module, name)
        peer = eqx.tree_at(
            lambda m, name=name: [getattr(m, f"{name}_proj").weight, getattr(m, f"{name}_proj").bias],
            peer,
            [linear.w.T, linear.b],
        )

    def process(query: Any, key: Any, value: Any) -> Any:
        out = []
        for x, name in ((query, "query_scale"), (key, "key_scale")):
            norm = eqx.tree_at(lambda m: m.weight, eqx.nn.RMSNorm(4, eps=1e-6, use_bias=False), scales[name])
            x = jax.vmap(jax.vmap(norm))(x)
            out.append(jax.vmap(eqx.nn.RotaryPositionalEmbedding(4), 1, 1)(x) if rotary else x)
        return *out, value

    expected = jax.jit(lambda *args: peer(*args, process_heads=process))(query, key, value, mask)
    np.testing.assert_allclose(run(module, query, key, value, mask=mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_values_equal_those_of_keras(kv_heads: int) -> None:
    import keras

    query, memory = floats(2, 4, 8), floats(2, 4, 8, seed=1)
    mask, key_mask = bools(2, 4, 4), bools(2, 4, seed=1)
    key_mask[:, 0] = mask[..., 0] = True
    module = attention(4, head_size=3, num_kv_heads=kv_heads).init(query, memory, rng=1)
    if kv_heads == 4:
        peer: Any = keras.layers.MultiHeadAttention(4, 3)
    else:
        peer = keras.layers.GroupQueryAttention(3, 4, kv_heads)
    peer.build(query.shape, memory.shape, memory.shape)
    kernels = flax_kernels(module, 4, kv_heads)
    peer.set_weights([np.asarray(kernels[n][p]) for n in ("query", "key", "value", "out") for p in ("kernel", "bias")])
    ours = module(query, memory, mask=mask[:, None], key_mask=key_mask, causal=True)
    options = {"attention_mask": mask & key_mask[:, None], "use_causal_mask": True}
    np.testing.assert_allclose(ours, peer(query, memory, **options), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Against itself, by another way
# ---------------------------------------------------------------------------------------------------------------------


def test_key_and_value_default_to_what_was_given() -> None:
    x, memory = floats(2, 3, 8), floats(2, 5, 8, seed=1)
    module = attention(2).init(x)
    assert_same(run(module, x), run(module, x, x, x))
    assert_same(run(module, x, memory), run(module, x, memory, memory))
    assert_same(run(module, x, value=2 * x), run(module, x, x, 2 * x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("window", "causal", "queries", "keys"),
    [
        (2, False, 6, 6),
        (2, True, 6, 6),
        ((0, 3), False, 6, 6),
        ((3, 1), True, 6, 6),
        (0, False, 4, 4),
        (1, False, 6, 3),
    ],
)
def test_a_window_is_a_mask(window: Any, causal: bool, queries: int, keys: int, training: bool) -> None:
    query, memory = floats(2, queries, 8), floats(2, keys, 8, seed=1)
    module = attention(2, window=window, dropout_rate=1e-9).init(query, memory)
    plain = attention(2, dropout_rate=1e-9).init(query, memory)
    plain.set_parameters(trainable(module))
    before, after = window if isinstance(window, tuple) else (window, window)
    mask = np.zeros([1, 1, queries, keys], bool)
    for i in range(queries):
        for j in range(keys):
            mask[..., i, j] = i - before <= j <= (i if causal else i + after)
    y = run(module, query, memory, causal=causal, training=training)
    np.testing.assert_allclose(y, run(plain, query, memory, mask=mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_head_of_keys_serves_the_heads_of_queries_that_follow_one_another(kv_heads: int) -> None:
    x = floats(2, 5, 8)
    grouped, full = attention(4, num_kv_heads=kv_heads).init(x, rng=1), attention(4).init(x)
    values = trainable(grouped)
    for name in ("key", "value"):
        for parameter, array in values[name].items():
            heads = array.reshape(*array.shape[:-1], kv_heads, 2)
            values[name][parameter] = jnp.repeat(heads, 4 // kv_heads, axis=-2).reshape(*array.shape[:-1], 8)
    full.set_parameters(values)
    mask = bools(2, 4, 5, 5)
    np.testing.assert_allclose(run(grouped, x, mask=mask), run(full, x, mask=mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2, "qk_norm": True}], ids=str)
def test_without_a_drop_training_computes_the_same(options: dict[str, Any]) -> None:
    """It computes the weights by another way."""
    x, mask = floats(2, 5, 8), bools(2, 4, 5, 5)
    module = attention(4, dropout_rate=1e-9, **options).init(x)
    for given in ({}, {"causal": True}, {"mask": mask}):
        y, expected = (run(module, x, training=training, **given) for training in (True, False))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_dropout_drops_weights() -> None:
    """Values that are the unit vectors show the weights."""
    module = MultiHeadAttention(1, head_size=200, output_size=200, with_bias=False, dropout_rate=0.4)
    x = floats(50, 200)
    x[:, :50] = np.eye(50)
    module.init(x)
    identity = jnp.eye(200)
    module.set_parameters({"value": {"w": identity}, "output": {"w": identity}})
    weights, expected = (np.asarray(module(x, training=training))[:, :50] for training in (True, False))
    dropped = weights == 0
    assert abs(dropped.mean() - 0.4) < 0.05
    np.testing.assert_allclose(weights[~dropped], expected[~dropped] / 0.6, rtol=1e-5)
    assert (module(x) != module(x)).any()
    with elegy.training_context(False):
        assert_same(module(x), module(x))


@pytest.mark.parametrize("axes", [(), (2, 3)])
def test_any_number_of_axes_of_the_batch(axes: tuple[int, ...]) -> None:
    x, mask, key_mask = floats(6, 4, 8), bools(6, 2, 4, 4), bools(6, 4, seed=1)
    module = attention(2, rotary=True).init(x)
    expected = run(module, x, mask=mask, key_mask=key_mask)
    if axes:
        x, mask, key_mask = (array.reshape(*axes, *array.shape[1:]) for array in (x, mask, key_mask))
        y = run(module, x, mask=mask, key_mask=key_mask)
        np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
    else:
        y = jax.vmap(lambda x, mask, key_mask: run(module, x, mask=mask, key_mask=key_mask))(x, mask, key_mask)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            run(module, x[0], mask=mask[0], key_mask=key_mask[0]), expected[0], rtol=1e-5, atol=1e-6
        )


def test_masks_are_broadcast() -> None:
    x, mask = floats(2, 3, 4, 8), bools(2, 3, 2, 4, 4)
    module = attention(2).init(x)
    for part in (np.s_[:1, :1], np.s_[:, :1], np.s_[:, :, :1], np.s_[:, :, :, :1], np.s_[:, :, :, :, :1]):
        full = np.broadcast_to(mask[part], mask.shape)
        np.testing.assert_allclose(run(module, x, mask=mask[part]), run(module, x, mask=full), rtol=1e-5, atol=1e-6)
    key_mask = bools(1, 3, 4)
    full = np.broadcast_to(key_mask[..., None, None, :], mask.shape)
    np.testing.assert_allclose(run(module, x, key_mask=key_mask), run(module, x, mask=full), rtol=1e-5, atol=1e-6)
    assert run(module, x[:0], key_mask=key_mask).shape == (0, 3, 4, 8)


# ---------------------------------------------------------------------------------------------------------------------
# Edges
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64])
@pytest.mark.parametrize("training", [False, True])
def test_what_sees_nothing_gets_zeros(dtype: Any, training: bool) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        elegy.set_rng(1)
        x, mask = jnp.asarray(floats(2, 3, 4), dtype), bools(2, 2, 3, 3)
        mask[0, :, 1] = mask[1] = False
        mask[0, :, 0, 0] = mask[0, :, 2, 0] = True
        module = attention(2, dropout_rate=1e-9, dtype=dtype).init(x)
        y = run(module, x, mask=mask, training=training)
        assert y.dtype == dtype and bool(jnp.isfinite(y).all())
        bias = jnp.broadcast_to(module.output.b, [3, 4])
        assert_same(y[1], bias)
        assert_same(y[0, 1], bias[0])
        assert (y[0, 0] != bias[0]).all()
        by_params, (by_x,) = gradients_of(module, x, mask=mask, training=training)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((by_params, by_x)))
        assert (by_x[1] == 0).all() and (by_x[0] != 0).any()


def test_a_window_beyond_all_keys_sees_nothing() -> None:
    module = attention(2, window=1).init(floats(5, 4), floats(2, 4))
    y = run(module, floats(5, 4), floats(2, 4))
    assert_same(y[3:], jnp.broadcast_to(module.output.b, [2, 4]))
    assert (y[:3] != y[3:4]).all()


@pytest.mark.parametrize("options", [{}, {"window": 1, "rotary": True, "num_kv_heads": 1}], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_lengths_of_one_and_none(options: dict[str, Any], training: bool) -> None:
    module = attention(2, dropout_rate=1e-9, **options).init(floats(2, 3, 4))
    for query, memory in (
        ((2, 0, 4), (2, 3, 4)),
        ((0, 2, 4), (0, 2, 4)),
        ((2, 0, 4), (2, 0, 4)),
        ((2, 1, 4), (2, 1, 4)),
    ):
        for causal in (False, True):
            y = run(module, floats(*query), floats(*memory), causal=causal, training=training)
            assert y.shape == query and bool(jnp.isfinite(y).all())
    y = run(module, floats(2, 3, 4), floats(2, 0, 4), training=training)
    assert_same(y, jnp.broadcast_to(module.output.b, y.shape))


def test_one_key_gets_the_whole_weight() -> None:
    module = attention(2).init(floats(1, 4))
    expected = module.output(module.value(floats(1, 4)))
    np.testing.assert_allclose(module(floats(1, 4)), expected, rtol=1e-6)


def test_half_precision_has_a_softmax_of_single_precision() -> None:
    """Of a thousand weights bfloat16 would lose a good part."""
    x = floats(1000, 8)
    half = attention(2, dtype=jnp.bfloat16, dropout_rate=1e-9).init(x)
    single = attention(2, dropout_rate=1e-9).init(x)
    single.set_parameters(jax.tree.map(lambda w: w.astype(jnp.float32), trainable(half)))
    rounded = jnp.asarray(x, jnp.bfloat16)
    for training in (False, True):
        y = run(half, x, training=training)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            y.astype(jnp.float32), run(single, rounded.astype(jnp.float32)), rtol=0.03, atol=0.03
        )


def test_half_precision_where_jax_promotes_dtypes() -> None:
    """There `jax.nn.dot_product_attention` can be used, which must be told to promote; elsewhere it is another way."""
    x, mask = jnp.asarray(floats(2, 5, 8), jnp.bfloat16), bools(2, 1, 5, 5)
    mask[1, :, 2] = False
    module = attention(4, num_kv_heads=2, dtype=jnp.bfloat16).init(x)
    found = []
    for promotion in ("strict", "standard"):
        with jax.numpy_dtype_promotion(promotion):
            out = [run(module, x, causal=True), run(module, x, mask=mask), gradients_of(module, x, mask=mask)]
        found.append(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), out))
    assert_close(*found, rtol=0.05, atol=0.05)


def test_double_precision_is_double() -> None:
    """`jax.nn.dot_product_attention` computes the softmax in single precision."""
    with jax.enable_x64(True):
        elegy.set_rng(1)
        x = np.random.default_rng(0).normal(size=[3, 4])
        module = attention(1, dtype=jnp.float64).init(x)
        q, k, v = (np.asarray(layer(x)) for layer in (module.query, module.key, module.value))
        weights = np.exp(q @ k.T / 2)
        expected = module.output(weights / weights.sum(-1, keepdims=True) @ v)
        np.testing.assert_allclose(module(x), expected, rtol=1e-13)
        module = attention(2, cache_size=3, rotary=True, window=1, dtype=jnp.float64).init(x)
        np.testing.assert_allclose(decode(module, x, [2, 1])[0], run(module, x, causal=True), rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def test_sizes_and_initializers() -> None:
    module = MultiHeadAttention(6, head_size=5, num_kv_heads=3, output_size=7, w_init=jnp.ones, b_init=jnp.ones)
    assert module(floats(2, 4), floats(3, 9)).shape == (2, 7)
    shapes = jax.tree.map(jnp.shape, trainable(module))
    assert shapes == {
        "query": {"w": (4, 30), "b": (30,)},
        "key": {"w": (9, 15), "b": (15,)},
        "value": {"w": (9, 15), "b": (15,)},
        "output": {"w": (30, 7), "b": (7,)},
    }
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(trainable(module)))
    bare = MultiHeadAttention(2, with_bias=False).init(floats(2, 4))
    assert set(bare.get_parameters()["query"]) == {"w"} and bare.get_parameters()["output"].keys() == {"w"}


def test_default_initialisation_is_that_of_linear() -> None:
    """By the true number of inputs of each projection."""
    module = MultiHeadAttention(2, head_size=8).init(floats(2, 400))
    np.testing.assert_allclose(jnp.std(module.query.w), 1 / 20, rtol=0.05)
    np.testing.assert_allclose(jnp.std(module.output.w), 1 / 4, rtol=0.05)
    assert (module.query.b == 0).all()


def test_scale() -> None:
    x = floats(5, 8)
    module = attention(2).init(x)
    scaled = attention(2, scale=0.25).init(x)
    values = trainable(module)
    scaled.set_parameters(values)
    assert abs(run(scaled, x) - run(module, x)).max() > 1e-3
    values["query"] = jax.tree.map(lambda w: w / 2, values["query"])  # 0.25 instead of 0.5 of a head of four
    module.set_parameters(values)
    np.testing.assert_allclose(run(scaled, x), run(module, x), rtol=1e-5, atol=1e-6)


def test_the_implementation_is_that_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no fused kernel on a CPU: what is checked is that it is asked for."""
    asked = []
    function = jax.nn.dot_product_attention

    def spy(*args: Any, implementation: Any, **kwargs: Any) -> Any:
        asked.append(implementation)
        return function(*args, implementation=None, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    x = floats(1, 5, 8)
    for implementation in (None, "xla", "cudnn"):
        layer = elegy.nn.TransformerEncoderLayer(2, implementation=implementation)
        with elegy.training_context(False):
            layer(x, causal=True)
            layer(x, key_mask=np.ones([1, 5], bool))
            assert set(asked) == {implementation}
        asked.clear()
    with pytest.raises(ValueError, match="implementation must be 'xla', 'cudnn' or None, got 'flash'"):
        MultiHeadAttention(2, implementation="flash")
    with pytest.raises(ValueError, match="implementation='cudnn' is of attention without dropout"):
        MultiHeadAttention(2, implementation="cudnn", dropout_rate=0.1)


def test_normalisation_of_small_queries_and_keys() -> None:
    """Where the number under the root counts."""
    x = 1e-3 * floats(5, 4)
    module = MultiHeadAttention(1, with_bias=False, qk_norm=True).init(x)
    q, k, v = (x @ np.asarray(layer.w) for layer in (module.query, module.key, module.value))
    q, k = (y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) for y in (q, k))
    weights = np.exp(q @ k.T / 2)
    expected = weights / weights.sum(-1, keepdims=True) @ v @ np.asarray(module.output.w)
    np.testing.assert_allclose(run(module, x), expected, rtol=1e-4, atol=1e-8)


def test_a_rotary_layer_is_copied() -> None:
    x, rotary = floats(5, 8), RotaryEmbedding(10)
    first, second = attention(2, rotary=rotary).init(x, rng=1), attention(2, rotary=True).init(x, rng=1)
    assert first.rotary is not rotary and first.rotary.base == 10 and second.rotary.base == 10000
    assert abs(run(first, x) - run(second, x)).max() > 1e-4
    assert attention(2).rotary is None


# ---------------------------------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------------------------------

CACHED = [
    {},
    {"num_kv_heads": 2, "rotary": True, "window": 2},
    {"num_kv_heads": 1, "qk_norm": True, "rotary": True, "dropout_rate": 0.5},
]
PARTS = [[1] * 6, [4, 1, 1], [6]]
over_cached = pytest.mark.parametrize("options", CACHED, ids=str)


@jax.jit
def step(module: Any, x: Any, **masks: Any) -> Any:
    return module.apply(x, decode=True, training=False, **masks)


def decode(module: Any, x: Any, parts: list[int], **masks: Any) -> tuple[jax.Array, Any]:
    outputs = []
    for part in np.split(x, np.cumsum(parts)[:-1], axis=-2):
        y, module = step(module, part, **masks)
        outputs.append(y)
    return jnp.concatenate(outputs, -2), module


def emptied(module: Any) -> Any:
    return elegy.select(module, "**/cache_*").apply(jnp.zeros_like)


@over_cached
@pytest.mark.parametrize("size", [6, 8])
def test_decoding_equals_the_whole_causal_call(options: dict[str, Any], size: int) -> None:
    x = floats(2, 6, 8)
    module = attention(4, cache_size=size, **options).init(x)
    expected = run(module, x, causal=True)
    for parts in PARTS:
        y, after = decode(module, x, parts)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        assert after.cache_index == 6 and after.cache_index.dtype == jnp.int32
        assert_same(emptied(after), module)


def test_the_first_call_may_decode() -> None:
    x = floats(3, 4, 8)
    module = attention(2, cache_size=4)
    y = jnp.concatenate([module(x[:, :3], decode=True), module(x[:, 3:], decode=True)], axis=1)
    np.testing.assert_allclose(y, run(module, x, causal=True), rtol=1e-4, atol=1e-5)
    assert module.cache_index == 4


def test_decoding_in_elegy_jit() -> None:
    x = floats(2, 6, 8)
    module = attention(4, cache_size=6, **CACHED[2]).init(x)
    expected = run(module, x, causal=True)
    compiled = elegy.jit(module, static_argnames=("decode", "training"))
    y = [compiled(x[:, i : i + 1], decode=True, training=False) for i in range(6)]
    np.testing.assert_allclose(jnp.concatenate(y, 1), expected, rtol=1e-4, atol=1e-5)
    assert module.cache_index == 6 and compiled.traces == 1


def test_decoding_in_a_scan() -> None:
    """Of `jax.lax`, inside `jax.jit`, with the module as a carry."""
    x = floats(2, 6, 8)
    module = attention(4, cache_size=6, **CACHED[1]).init(x)

    @jax.jit
    def generate(module: Any, x: Any) -> Any:
        def step(module: Any, token: Any) -> Any:
            y, module = module.apply(token[:, None], decode=True, training=False)
            return module, y[:, 0]

        return jax.lax.scan(step, module, jnp.swapaxes(x, 0, 1))

    after, y = generate(module, x)
    expected = run(module, x, causal=True)
    np.testing.assert_allclose(jnp.swapaxes(y, 0, 1), expected, rtol=1e-4, atol=1e-5)
    assert after.cache_index == 6 and module.cache_index == 0


def test_decoding_in_vmap_from_different_positions() -> None:
    """Each lane has a cache and a position of its own."""
    x = floats(2, 6, 8)
    module = attention(2, cache_size=6, rotary=True).init(x[0])
    lanes = []
    for lane, length in enumerate((2, 4)):
        lanes.append(step(module, x[lane, :length])[1])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    tokens = jnp.stack([x[0, 2:4], x[1, 4:6]])
    y, after = jax.vmap(step)(stacked, tokens)
    for lane, part in enumerate((np.s_[2:4], np.s_[4:6])):
        np.testing.assert_allclose(y[lane], run(module, x[lane], causal=True)[part], rtol=1e-4, atol=1e-5)
    assert after.cache_index.tolist() == [4, 6]


def test_the_cache_in_training_and_then_in_generation() -> None:
    """Training writes no cache, and takes any batch; another batch is decoded by a module of its own."""
    module = attention(2, cache_size=4).init(floats(2, 4, 8))
    before = module.get_parameters(trainable=False)
    structure = jax.tree.structure(module)
    for size in (2, 5):
        loss_and_grads = elegy.value_and_grad(lambda x: jnp.sum(module(x, causal=True) ** 2), modules=module)
        loss, _ = elegy.jit(loss_and_grads, modules=module)(floats(size, 4, 8))
        assert jnp.isfinite(loss)
    assert_same(module.get_parameters(trainable=False), before)
    assert jax.tree.structure(module) == structure
    plain = attention(2).init(floats(3, 4, 8))
    assert jax.tree.structure(trainable(plain)) == jax.tree.structure(trainable(module))
    generator = attention(2, cache_size=4).init(jax.ShapeDtypeStruct([1, 1, 8], jnp.float32))
    generator.set_parameters(trainable(plain))
    x = floats(1, 4, 8)
    np.testing.assert_allclose(decode(generator, x, [2, 2])[0], run(plain, x, causal=True), rtol=1e-4, atol=1e-5)


def test_masks_while_decoding_are_over_the_cache() -> None:
    """Sequences that are padded on the left."""
    x, real = floats(2, 5, 8), np.array([[False, False, True, True, True], [True] * 5])
    module = attention(2, cache_size=5).init(x)
    expected = run(module, x, causal=True, key_mask=real)
    matrix = np.broadcast_to(real[:, None, None], [2, 1, 1, 5])
    for masks in ({"key_mask": real}, {"mask": matrix}):
        np.testing.assert_allclose(decode(module, x, [3, 2], **masks)[0], expected, rtol=1e-4, atol=1e-5)


def test_an_overflow_is_an_error_or_nan() -> None:
    x = floats(1, 5, 8)
    module = attention(2, cache_size=4).init(x)
    module(x[:, :4], decode=True)
    full = module.get_parameters()
    with pytest.raises(
        ValueError, match=r"is full: it has cache_size=4 positions, of which 4 are taken, and 1 (.|\n)*select"
    ):
        module(x[:, 4:], decode=True)
    assert_same(module.get_parameters(), full)
    with pytest.raises(ValueError, match="cache_size=4 positions, of which 0 are taken, and 5 were"):
        jax.jit(lambda module: module(x, decode=True))(emptied(module))

    started = emptied(module)
    y, started = step(started, x[:, :2])
    assert jnp.isfinite(y).all()
    for _ in range(2):  # three do not fit, and what follows is lost too
        y, started = step(started, x[:, :3])
        assert jnp.isnan(y).all()
    y, _ = step(emptied(started), x[:, :3])
    assert jnp.isfinite(y).all()


def test_a_cache_of_half_precision() -> None:
    """The parameters may be cast after the cache was made."""
    x = floats(2, 4, 8)
    parameters, rest = elegy.partition(attention(2, cache_size=4, rotary=True).init(x))
    module = elegy.combine(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters), rest)
    y, after = decode(module, x, [2, 2])
    assert y.dtype == jnp.bfloat16 and after.cache_key.dtype == jnp.float32
    expected = run(module, x, causal=True).astype(jnp.float32)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.02, atol=0.02)
    assert attention(2, cache_size=4, dtype=jnp.bfloat16).init(x).cache_value.dtype == jnp.bfloat16


def test_the_batch_on_an_explicit_mesh() -> None:
    x, mask = floats(4, 3, 8), bools(4, 1, 3, 3)
    module = attention(2, cache_size=3, rotary=True).init(x)
    expected = run(module, x, mask=mask), *step(module, x)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        module = jax.device_put(module, replicated)
        y, decoded, after = run(module, sharded, mask=mask), *step(module, sharded)
        assert jax.typeof(y) == jax.typeof(decoded) == jax.typeof(sharded)
        assert jax.typeof(after.cache_key) == jax.typeof(module.cache_key)
        assert_close((y, decoded, after), expected)


def test_gradients_through_decoding() -> None:
    x = floats(2, 4, 8)
    module = attention(2, cache_size=4).init(x)
    expected, _ = gradients_of(module, x, causal=True)
    found, _ = gradients_of(module, x, decode=True)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Positions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("base", [10000.0, 100])
def test_rotary_equals_that_of_equinox(base: float) -> None:
    x = floats(2, 7, 3, 6)
    peer = eqx.nn.RotaryPositionalEmbedding(6, theta=base)
    # Equinox keeps the angles of the first base that it met for a size.
    eqx.nn._embedding.internal_rope_embedding_cache.clear()  # type: ignore[attr-defined]
    expected = jax.vmap(jax.vmap(peer, 1, 1))(jnp.asarray(x))
    rotary = jax.jit(RotaryEmbedding(base))
    np.testing.assert_allclose(rotary(x), expected, rtol=1e-5, atol=1e-5)
    for offset in (3, jnp.array(3), np.array([3, 3])):
        np.testing.assert_allclose(rotary(x[:, 3:], offset=offset), expected[:, 3:], rtol=1e-5, atol=1e-5)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    query, key = jnp.asarray(floats(1, 1, 8)), jnp.asarray(floats(1, 1, 8, seed=1))
    rotary = RotaryEmbedding()

    def product(p: int, q: int) -> float:
        return float(jnp.vdot(rotary(query, offset=p), rotary(key, offset=q)))

    for distance in (0, 5):
        np.testing.assert_allclose(product(100 + distance, 100), product(distance, 0), rtol=1e-4)
    assert abs(product(1, 0) - product(0, 1)) > 1e-3
    np.testing.assert_allclose(jnp.linalg.norm(rotary(query, offset=9)), jnp.linalg.norm(query), rtol=1e-6)


def test_attention_with_rotation_knows_distances_alone() -> None:
    """A shift of all positions changes nothing, as a prefix that nobody sees shows."""
    x = floats(1, 8, 4)
    module = attention(2, rotary=True).init(x)
    key_mask = np.arange(8)[None] >= 3
    np.testing.assert_allclose(run(module, x, key_mask=key_mask)[:, 3:], run(module, x[:, 3:]), rtol=1e-4, atol=1e-5)
    assert abs(run(module, x[:, ::-1])[:, ::-1] - run(module, x)).max() > 1e-3


@pytest.mark.parametrize(("features", "base"), [(6, 10000.0), (5, 10), (1, 10)])
def test_sinusoidal_embedding(features: int, base: float) -> None:
    """Section 3.5 of the paper, element by element."""
    expected = np.zeros([20, features])
    for position in range(20):
        for i in range(features):
            angle = position / base ** (2 * (i // 2) / features)
            expected[position, i] = np.cos(angle) if i % 2 else np.sin(angle)
    x, embedding = floats(2, 20, features), SinusoidalEmbedding(base)
    np.testing.assert_allclose(embedding(x), x + expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedding(x[:, 5:9], offset=5), x[:, 5:9] + expected[5:9], rtol=1e-4, atol=1e-5)
    y = embedding(x[:, :3], offset=np.array([2, 17]))
    np.testing.assert_allclose(y, x[:, :3] + np.stack([expected[2:5], expected[17:]]), rtol=1e-4, atol=1e-5)


def test_angles_of_half_precision_are_single() -> None:
    """In bfloat16 there is no position 1001."""
    for embedding, shape in ((SinusoidalEmbedding(), (1, 8)), (RotaryEmbedding(), (1, 1, 8))):
        x = floats(*shape)
        y = embedding(jnp.asarray(x, jnp.bfloat16), offset=1001)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y.astype(jnp.float32), embedding(x, offset=1001), rtol=0.02, atol=0.02)


def test_position_embedding() -> None:
    x = floats(2, 4, 3)
    embedding = PositionEmbedding(6, w_init=NORMAL).init(x)
    assert embedding.w.shape == (6, 3)
    w = np.asarray(embedding.w)
    np.testing.assert_allclose(embedding(x), x + w[:4], rtol=1e-6)
    np.testing.assert_allclose(embedding(x, offset=2), x + w[2:], rtol=1e-6)
    np.testing.assert_allclose(embedding(x, offset=np.array([1, 2])), x + np.stack([w[1:5], w[2:]]), rtol=1e-6)
    np.testing.assert_allclose(jnp.std(PositionEmbedding(100).init(floats(1, 50)).w), 0.02, rtol=0.05)
    _, (by_x,) = gradients_of(embedding, x)
    np.testing.assert_allclose(by_x, np.cos(x + w[:4]), rtol=1e-4, atol=1e-5)


def test_positions_that_are_traced_and_too_large_give_nan() -> None:
    x = floats(2, 4, 3)
    embedding = PositionEmbedding(6).init(x)
    run = jax.jit(lambda x, offset: embedding(x, offset=offset))
    assert_same(run(x, 2), embedding(x, offset=2))
    assert np.isnan(run(x, 4)).all(-1).tolist() == [[False, False, True, True]] * 2
    assert np.isnan(run(x, -1)).all(-1).tolist() == [[True, False, False, False]] * 2


def test_embeddings_of_no_positions() -> None:
    for embedding, shape in (
        (SinusoidalEmbedding(), (2, 0, 4)),
        (PositionEmbedding(2), (2, 0, 4)),
        (RotaryEmbedding(), (2, 0, 1, 4)),
        (RotaryEmbedding(), (2, 3, 1, 0)),
    ):
        assert embedding(floats(*shape)).shape == shape


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

X = np.ones([2, 3, 4], np.float32)
any_ = cast(Any, MultiHeadAttention)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MultiHeadAttention(0), ValueError, "nn.MultiHeadAttention: num_heads must be a positive integer"),
        (lambda: any_(2, 8, 64), TypeError, r"by position .*num_heads and head_size only, got \(2, 8, 64\)"),
        (lambda: MultiHeadAttention(2, head_size=0), ValueError, "head_size must be a positive integer, got 0"),
        (lambda: MultiHeadAttention(4, num_kv_heads=3), ValueError, "num_heads=4 cannot .* num_kv_heads=3.\n.*divisor"),
        (lambda: MultiHeadAttention(4, num_kv_heads=0), ValueError, "num_kv_heads must be a positive integer"),
        (lambda: MultiHeadAttention(4, output_size=-1), ValueError, "output_size must be a positive integer, got -1"),
        (lambda: MultiHeadAttention(4, dropout_rate=1), ValueError, r"dropout_rate .* must be in \[0, 1\), got 1"),
        (lambda: MultiHeadAttention(4, with_bias=cast(Any, 1)), TypeError, "with_bias must be True or False, got 1"),
        (lambda: MultiHeadAttention(4, qk_norm=cast(Any, 1)), TypeError, "qk_norm must be True or False, got 1"),
        (lambda: any_(4, rotary=10000.0), TypeError, "rotary must be True or False, got 10000.0"),
        (lambda: MultiHeadAttention(4, window=-1), ValueError, "window must be an integer that is not .* got -1"),
        (lambda: MultiHeadAttention(4, window=[1, 2, 3]), ValueError, "window must be"),
        (lambda: MultiHeadAttention(4, window=cast(Any, 1.5)), ValueError, "window must be .* got 1.5"),
        (lambda: MultiHeadAttention(4, cache_size=0), ValueError, "cache_size must be a positive integer, got 0"),
        (lambda: any_(4, scale="large"), ValueError, "nn.MultiHeadAttention: scale must be a number, got 'large'"),
        (
            lambda: MultiHeadAttention(3)(X),
            ValueError,
            "attention: the 4 features .* num_heads=3.\n.*head_size",
        ),
        (lambda: MultiHeadAttention(2)(X[0, 0]), ValueError, r"\[\*batch, length, features\], got \(4,\)"),
        (lambda: MultiHeadAttention(2)(X, X[0]), ValueError, r"same axes of the batch, .* got \(2, 3, 4\), \(3, 4\)"),
        (lambda: MultiHeadAttention(2)(X, X, X[:, :2]), ValueError, "the same length"),
        (lambda: MultiHeadAttention(2)(X, causal=cast(Any, 1)), TypeError, "attention: causal must be True or False"),
        (lambda: MultiHeadAttention(2)(X, decode=cast(Any, 1)), TypeError, "attention: decode must be True or False"),
        (lambda: MultiHeadAttention(2)(X, training=cast(Any, 1)), TypeError, "attention: training must be True or"),
        (lambda: MultiHeadAttention(2)(X, decode=True), ValueError, "with a cache.\n  Construct .* cache_size="),
        (lambda: MultiHeadAttention(2, cache_size=3)(X, X, decode=True), ValueError, "Give it the query only"),
        (
            lambda: MultiHeadAttention(2, cache_size=3).init(X)(X[:1], decode=True),
            ValueError,
            r"for a batch of shape \(2,\), and there is one of shape \(1,\)(.|\n)*set_parameters",
        ),
        (lambda: MultiHeadAttention(2)(X, mask=X[:, :, :3]), TypeError, "mask holds bools, .* float32.\n.*mask == 0"),
        (
            lambda: MultiHeadAttention(2)(X, mask=np.ones([3, 3], bool)),
            ValueError,
            r"mask must have the shape \[.*\], here \(2, 2, 3, 3\), .* got \(3, 3\).\n.*matrix\[None, None\]",
        ),
        (lambda: MultiHeadAttention(2)(X, mask=np.ones([2, 3, 3, 3], bool)), ValueError, r"got \(2, 3, 3, 3\)"),
        (lambda: MultiHeadAttention(2)(X, key_mask=X[..., 0]), TypeError, "key_mask holds bools"),
        (
            lambda: MultiHeadAttention(2)(X, key_mask=np.ones([3], bool)),
            ValueError,
            r"key_mask must have the shape \[\*batch, key_length\], here \(2, 3\), .* got \(3,\)",
        ),
        (lambda: MultiHeadAttention(2)(X.astype(np.complex64)), TypeError, "imaginary"),
        (lambda: MultiHeadAttention(2, dtype=jnp.complex64)(X), TypeError, "multi_head_attention: .* real numbers"),
        (lambda: MultiHeadAttention(4, rotary=True)(X), ValueError, "attention/rotary: .* an even head_size"),
        (lambda: RotaryEmbedding(0), ValueError, "nn.RotaryEmbedding: base must be a positive number, got 0"),
        (lambda: RotaryEmbedding()(X[0]), ValueError, r"rotary_embedding: .* got \(3, 4\).\n.*x\[\.\.\., None, :\]"),
        (lambda: RotaryEmbedding()(X, offset=cast(Any, 0.5)), TypeError, "rotary_embedding: offset must be an integer"),
        (
            lambda: RotaryEmbedding()(X[None], offset=np.array([1, 2])),
            ValueError,
            r"one for each sequence, of shape \(1,\); got shape \(2,\)",
        ),
        (lambda: RotaryEmbedding(dtype=jnp.complex64)(X.astype(np.complex64)), TypeError, "takes real numbers"),
        (lambda: SinusoidalEmbedding(-1), ValueError, "nn.SinusoidalEmbedding: base must be a positive number"),
        (lambda: SinusoidalEmbedding()(X[0, 0]), ValueError, r"sinusoidal_embedding: .* got \(4,\)"),
        (lambda: PositionEmbedding(0), ValueError, "nn.PositionEmbedding: max_length must be a positive integer"),
        (lambda: cast(Any, PositionEmbedding)(512, 64), TypeError, "by position there is max_length only"),
        (lambda: PositionEmbedding(2)(X[0, 0]), ValueError, r"position_embedding: .* got \(4,\)"),
        (lambda: PositionEmbedding(2)(X), ValueError, r"there are 2 positions, and .* \(2, 3, 4\) has 3.\n"),
        (lambda: PositionEmbedding(4)(X, offset=2), ValueError, "has 3, of which the first is at offset 2.\n"),
        (lambda: PositionEmbedding(4)(X, offset=-1), ValueError, "at offset -1"),
        (lambda: PositionEmbedding(4)(X, offset=np.array([0, 2])), ValueError, r"at offset \[0 2\]"),
    ],
)
def test_errors_name_the_layer(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
