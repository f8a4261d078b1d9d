"""Numbers are compared with flax.linen and with NumPy in double precision; the same for every layer is in
tests/generic/test_every_layer.py."""

import itertools
import statistics
from typing import Any, cast

import flax.linen
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import elegy
from elegy.errors import ParameterError
from elegy.nn import (
    BatchNormalization,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvND,
    Dropout,
    Flatten,
    Linear,
    Sequential,
    sequential,
)
from tests.helpers import assert_close, assert_same, checked


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Linear
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_linear(shape: tuple[int, ...]) -> None:
    linear, x = Linear(4, b_init=elegy.initializers.RandomNormal()), floats(*shape)
    y = linear(x)
    expected: Any = flax.linen.Dense(4).apply({"params": {"kernel": linear.w, "bias": linear.b}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_linear_without_bias() -> None:
    linear = Linear(4, with_bias=False)
    assert set(linear.init(floats(3, 5)).get_parameters()) == {"w"}


def test_bools_may_be_those_of_numpy() -> None:
    assert Linear(4, with_bias=np.False_).with_bias is False
    norm = BatchNormalization(create_scale=np.True_, create_offset=np.False_)
    assert norm.create_scale is True and norm.create_offset is False
    x = floats(3, 5)
    assert_same(Dropout(0.5)(x, np.False_), jnp.asarray(x))


def test_default_initialisation() -> None:
    linear, conv = Linear(300).init(floats(1, 400)), Conv2D(200, 5).init(floats(1, 5, 5, 16))
    for layer in (linear, conv):
        assert (layer.b == 0).all()
        np.testing.assert_allclose(jnp.std(layer.w), 1 / 20, rtol=0.02)
        np.testing.assert_allclose(jnp.mean(layer.w), 0, atol=1e-3)


def test_initializers_of_jax_and_of_elegy() -> None:
    for init in (jax.nn.initializers.uniform(), elegy.initializers.RandomUniform(0, 0.01)):
        linear = Linear(3, w_init=init, b_init=jnp.ones).init(floats(1, 2))
        assert (linear.w >= 0).all() and (linear.w < 0.01).all() and (linear.b == 1).all()


def test_linear_complex() -> None:
    x = floats(3, 5) + 1j * floats(3, 5, seed=1)
    linear = Linear(4, dtype=jnp.complex64)
    np.testing.assert_allclose(linear(x), x @ np.asarray(linear.w), rtol=1e-5, atol=1e-6)
    assert Linear(4, dtype=jnp.complex64)(floats(3, 5)).dtype == jnp.complex64


def test_linear_computes_in_the_dtype_of_its_parameters() -> None:
    assert Linear(4)(floats(3, 5).astype(jnp.bfloat16)).dtype == jnp.float32
    assert Linear(4, dtype=jnp.bfloat16)(floats(3, 5)).dtype == jnp.bfloat16


def test_another_size_of_input() -> None:
    linear = Linear(4).init(floats(3, 5))
    with (
        elegy.typechecker(None),
        pytest.raises(elegy.errors.ParameterError, match=r"w has shape \(5, 4\), but \(6, 4\)"),
    ):
        linear(floats(3, 6))
    mismatch = "(?s)size of dimension in is 6.*axes: in=5 .from w"
    with checked(), pytest.raises(elegy.errors.TypeCheckError, match=mismatch):
        linear(floats(3, 6))


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"stride": 2}, {"strides": 2}),
        ({"stride": [1, 3]}, {"strides": (1, 3)}),
        ({"padding": "valid"}, {"padding": "VALID"}),
        ({"padding": "VALID", "stride": 2}, {"padding": "VALID", "strides": 2}),
        ({"padding": 2}, {"padding": 2}),
        ({"padding": [1, (0, 2)]}, {"padding": [1, (0, 2)]}),
        ({"rate": 2}, {"kernel_dilation": 2}),
        ({"rate": [2, 1], "padding": "VALID"}, {"kernel_dilation": (2, 1), "padding": "VALID"}),
        ({"groups": 2}, {"feature_group_count": 2}),
        ({"groups": 4, "stride": 2, "with_bias": False}, {"feature_group_count": 4, "strides": 2, "use_bias": False}),
    ],
    ids=str,
)
def test_conv2d(options: dict[str, Any], theirs: dict[str, Any]) -> None:
    x = floats(2, 7, 8, 4)
    conv = Conv2D(8, [3, 2], b_init=elegy.initializers.RandomNormal(), **options)
    y = conv(x)
    params = {"kernel": conv.w} | ({"bias": conv.b} if conv.with_bias else {})
    expected: Any = flax.linen.Conv(8, (3, 2), **theirs).apply({"params": params}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layer", "n"), [(Conv1D, 1), (Conv3D, 3)])
def test_conv_of_other_dimensions(layer: Any, n: int) -> None:
    x = floats(2, *(5, 6, 4)[:n], 3)
    conv = layer(4, 3, stride=2)
    y = conv(x)
    params = {"kernel": conv.w, "bias": conv.b}
    expected: Any = flax.linen.Conv(4, (3,) * n, strides=2).apply({"params": params}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_first", "NCHW"])
def test_channels_first(data_format: str) -> None:
    x = floats(2, 7, 8, 4)
    last = Conv2D(6, 3, b_init=elegy.initializers.RandomNormal()).init(x, rng=0)
    first = Conv2D(6, 3, data_format=data_format).init(np.moveaxis(x, -1, 1))
    first.set_parameters(last.get_parameters())
    np.testing.assert_allclose(jnp.moveaxis(first(np.moveaxis(x, -1, 1)), 1, -1), last(x), rtol=1e-5, atol=1e-5)


def test_mask() -> None:
    mask = np.ones([3, 3, 1, 1], np.float32)
    mask[1, 2:], mask[2] = 0, 0
    x = floats(1, 5, 5, 2)
    masked, plain = (Conv2D(4, 3, mask=m).init(x, rng=0) for m in (mask, None))
    plain.set_parameters({"w": plain.w * jnp.broadcast_to(mask, plain.w.shape)})
    assert_same(masked(x), plain(x))
    assert set(masked.get_parameters(trainable=True)) == {"w", "b"}


# ---------------------------------------------------------------------------------------------------------------------
# BatchNormalization
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "theirs"),
    [
        ((16, 3), {}, {}),
        ((4, 5, 6, 3), {"decay_rate": 0.9, "eps": 1e-3}, {"momentum": 0.9, "epsilon": 1e-3}),
        ((4, 3, 5, 6), {"data_format": "channels_first"}, {"axis": 1}),
        ((4, 3, 5), {"data_format": "NCW"}, {"axis": 1}),
        ((16, 3), {"create_scale": False}, {"use_scale": False}),
        ((16, 3), {"create_offset": False}, {"use_bias": False}),
        ((8, 2, 3), {"axis": 0}, {"axis": (1, 2)}),
        ((8, 2, 3), {"axis": [0, -1]}, {"axis": 1}),
    ],
    ids=str,
)
def test_batch_normalization(shape: tuple[int, ...], options: dict[str, Any], theirs: dict[str, Any]) -> None:
    normal = elegy.initializers.RandomNormal(1.0, 2.0)
    norm = BatchNormalization(scale_init=normal, offset_init=normal, **options).init(floats(*shape))
    theirs = {"momentum": 0.99} | theirs
    reference = flax.linen.BatchNorm(**theirs)
    params = {
        theirs_: norm.get_parameters()[ours]
        for ours, theirs_ in (("scale", "scale"), ("offset", "bias"))
        if ours in norm.get_parameters()
    }
    stats: Any = {"mean": norm.mean, "var": norm.var}

    def check(training: bool, x: np.ndarray) -> None:
        nonlocal stats
        expected, updated = reference.apply(
            {"params": params, "batch_stats": stats}, x, use_running_average=not training, mutable=["batch_stats"]
        )
        stats = updated["batch_stats"]
        y = norm(x, training=training)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.mean, stats["mean"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm.var, stats["var"], rtol=1e-5, atol=1e-6)

    check(False, floats(*shape))  # before any training
    for seed in range(3):
        check(True, 3 + 2 * floats(*shape, seed=seed))
    check(False, floats(*shape))


def test_a_large_mean_costs_no_digits() -> None:
    x = (1e4 + floats(64, 3)).astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(BatchNormalization()(x), expected, rtol=1e-2, atol=1e-2)


def test_batch_normalization_follows_the_mode() -> None:
    norm, x = BatchNormalization().init(floats(8, 3)), floats(8, 3)
    with elegy.training_context(False):
        before = norm.get_parameters()
        y = norm(x)
        assert_same(norm.get_parameters(), before)
    assert_close(y, jnp.asarray(x) / jnp.sqrt(1 + 1e-5))
    norm(x)
    assert (norm.mean != 0).all()


def test_local_statistics_in_evaluation() -> None:
    norm, x = BatchNormalization().init(floats(8, 3)), floats(8, 3)
    before = norm.get_parameters()
    y = norm(x, training=False, test_local_stats=True)
    assert_same(norm.get_parameters(), before)
    assert_close(y, norm(x, training=True))


def test_scale_and_offset_of_the_call() -> None:
    norm, x = BatchNormalization(create_scale=False, create_offset=False).init(floats(8, 3)), floats(8, 3)
    plain = norm(x, test_local_stats=True)
    scale, offset = floats(3), floats(8, 3, seed=1)
    y = norm(x, scale=scale, offset=offset)
    assert_close(y, plain * jnp.broadcast_to(scale, (8, 3)) + offset)
    assert_close(norm(x, scale=2), 2 * plain)


def test_statistics_of_half_precision_are_single() -> None:
    norm = BatchNormalization(dtype=jnp.bfloat16)
    x = jnp.asarray(floats(2048, 2) + 1, jnp.bfloat16)
    norm(x)
    assert norm.mean.dtype == norm.var.dtype == jnp.float32
    np.testing.assert_allclose(norm.mean, 0.01 * np.asarray(x, np.float64).mean(0), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_that_were_cast_to_half_precision_are_refused_in_training(dtype: Any) -> None:
    model: Any = Sequential(lambda: [BatchNormalization()]).init(floats(4, 2))
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
    assert half.apply(floats(4, 2), training=False)[0].dtype == dtype
    with pytest.raises(ParameterError, match=f"sequential/layers/0/mean is {jnp.dtype(dtype)}") as raised:
        half(floats(4, 2))
    assert half.layers[0].mean.dtype == dtype and not half.layers[0].mean.any()

    names = {"elegy": elegy, "jax": jax, "jnp": jnp, "module": model}
    exec("\n".join(line.strip() for line in str(raised.value).splitlines()[2:4]), names)
    mended: Any = names["module"]
    x = jnp.full([4, 2], 10.0)
    step = elegy.jit(mended)
    for _ in range(500):
        y = step(x)
    assert y.dtype == mended.layers[0].scale.dtype == dtype
    np.testing.assert_allclose(mended.layers[0].mean, 10, rtol=0.01)


def test_statistics_over_replicas() -> None:
    x = floats(2, 8, 3)
    norm = BatchNormalization(cross_replica_axis="replicas").init(x[0])
    run = jax.vmap(lambda norm, x: norm.apply(x), in_axes=(None, 0), out_axes=(0, None), axis_name="replicas")
    y, updated = run(norm, x)
    whole = BatchNormalization().init(x[0])
    expected = whole(x.reshape(16, 3))
    assert_close(y.reshape(16, 3), expected, atol=1e-5)
    assert_close((updated.mean, updated.var), (whole.mean, whole.var))


def test_dropped_statistics_warn() -> None:
    norm = BatchNormalization().init(floats(8, 3))
    with pytest.warns(elegy.errors.LostUpdateWarning, match="batch_normalization: the update of mean, var"):
        jax.jit(lambda norm, x: norm(x))(norm, floats(8, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------


def test_dropout_equals_that_of_flax() -> None:
    x, key = floats(16, 8), jax.random.key(3)
    for rate in (0.1, 0.5, 0.9):
        expected = flax.linen.Dropout(rate).apply({}, x, deterministic=False, rng=key)
        assert_close(Dropout(rate)(x, rng=key), expected)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate: float) -> None:
    n = 40_000
    y = np.asarray(Dropout(rate)(np.ones(n)))
    kept = (y != 0).sum()
    deviation = (n * rate * (1 - rate)) ** 0.5
    assert abs(kept - n * (1 - rate)) < 4 * deviation
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_follows_the_mode() -> None:
    dropout, x = Dropout(0.5), floats(16, 8)
    assert (dropout(x) == 0).any()
    with elegy.training_context(False):
        assert_same(dropout(x), jnp.asarray(x))
        assert (dropout(x, training=True) == 0).any()
    assert_same(dropout(x, training=False), jnp.asarray(x))


def test_dropout_draws_another_mask_on_each_call() -> None:
    for dropout in (Dropout(0.5), elegy.jit(Dropout(0.5))):
        masks = [np.asarray(dropout(np.ones([8, 8])) == 0) for _ in range(4)]
        assert all((one != other).any() for one, other in itertools.combinations(masks, 2))


def test_masks_are_independent_across_lanes() -> None:
    dropout = Dropout(0.5).init(np.ones(1000))
    keys = jax.random.split(jax.random.key(0), 4)
    masks = jax.vmap(lambda key: dropout.copy()(np.ones(1000), rng=key))(keys) != 0
    agreement = [float((one == other).mean()) for one, other in itertools.combinations(np.asarray(masks), 2)]
    assert 0.45 < statistics.mean(agreement) < 0.55


@pytest.mark.parametrize("rate", [0.5, 0])
def test_dropout_draws_no_key_without_need(rate: float) -> None:
    dropout, x = Dropout(rate).init(floats(4, 4)), floats(4, 4)
    rng = elegy.get_rng()
    before = jax.random.key_data(rng.key)
    dropout(x, training=False)
    if rate == 0:
        dropout(x)
    dropout(x, rng=0)
    assert_same(jax.random.key_data(rng.key), before)


def test_initialised_in_evaluation_and_trained_inside_jax_jit() -> None:
    x = floats(8, 8)
    with elegy.training_context(False):
        dropout = Dropout(0.5)
        dropout(x)
    step = jax.jit(lambda dropout, x: (dropout(x), dropout))
    one, dropout = step(dropout, x)
    other, dropout = step(dropout, x)
    assert (one == 0).any() and (one != other).any()


# ---------------------------------------------------------------------------------------------------------------------
# Flatten, Sequential
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "preserve_dims", "expected"),
    [
        ((2, 3, 4), 1, (2, 12)),
        ((2, 3, 4), 2, (2, 3, 4)),
        ((2, 3, 4, 5), 2, (2, 3, 20)),
        ((2, 3), 0, (6,)),
        ((2,), 1, (2, 1)),
        ((), 0, (1,)),
        ((0, 3, 4), 1, (0, 12)),
        ((2, 0, 4), 1, (2, 0)),
    ],
)
def test_flatten(shape: tuple[int, ...], preserve_dims: int, expected: tuple[int, ...]) -> None:
    x = floats(*shape)
    y = Flatten(preserve_dims)(x)
    assert_same(y, jnp.asarray(x.reshape(expected)))


def test_sequential_runs_in_order() -> None:
    model: Any = Sequential(lambda: [Linear(4), jnp.tanh, Linear(2)])
    x = floats(3, 5)
    y = model(x)
    first, _, last = model.layers
    assert_close(y, last(jnp.tanh(first(x))))
    assert set(model.submodules) == {"layers/0", "layers/2"}


def test_the_first_layer_takes_all_arguments() -> None:
    model = Sequential(lambda: [lambda x, *, y: x - y, jnp.abs])
    assert model(jnp.array(1.0), y=jnp.array(3.0)) == 2
    assert sequential(lambda x, y: x - y, jnp.abs)(1.0, 3.0) == 2


def test_no_layers() -> None:
    assert Sequential(lambda: [])(3) == 3
    assert sequential()(3) == 3
    with pytest.raises(TypeError, match="argument"):
        sequential()(1, 2)


def test_lists_and_tuples_of_layers() -> None:
    x = floats(3, 5)
    for layers in ([Linear(4), jax.nn.relu], (Linear(4), jax.nn.relu)):
        model: Any = Sequential(layers)
        model(x)
        assert model.layers[0].w.shape == (5, 4)


def test_sequential_inside_call() -> None:
    made = []

    class Net(elegy.Module):
        def call(self, x: Any) -> Any:
            def layers() -> list[Any]:
                made.append(None)
                return [Linear(4), jax.nn.relu, Sequential(lambda: [Linear(2), jnp.tanh])]

            return Linear(1)(Sequential(layers)(x))

    net: Any = Net()
    x = floats(3, 5)
    y = net(x)
    assert_same(net(x), y)
    assert len(made) == 1
    assert set(net.submodules) == {"sequential", "linear"}
    assert set(net.sequential.submodules) == {"layers/0", "layers/2"}
    assert net.sequential.layers[2].layers[0].w.shape == (4, 2)


def test_a_list_of_layers_inside_call_shares_them_with_the_parent() -> None:
    class Net(elegy.Module):
        def call(self, x: Any) -> Any:
            return Sequential([Linear(4), jax.nn.relu, Linear(2)], name="stack")(x)

    net: Any = Net()
    net(floats(3, 5))
    assert net.linear_1 is net.stack.layers[2]
    assert net.parameters_size() == 5 * 4 + 4 + 4 * 2 + 2


def test_sequential_function_inside_call() -> None:
    class Net(elegy.Module):
        def call(self, x: Any) -> Any:
            return sequential(Linear(4), jax.nn.relu, Linear(2))(x)

    net: Any = Net()
    x = floats(3, 5)
    y = net(x)
    assert set(net.submodules) == {"linear", "linear_1"}
    assert_close(y, net.linear_1(jax.nn.relu(net.linear(x))))


def test_summaries_of_functions_among_the_layers() -> None:
    model = Sequential(lambda: [Linear(4), jax.nn.relu, Linear(2)]).init(floats(3, 5))
    with elegy.hooks_context(summaries=True):
        y = model(floats(3, 5))
        summaries = elegy.get_summaries()
    assert summaries is not None
    names = [name for _, name, _ in summaries]
    assert names == ["sequential/layers/0", "sequential/relu", "sequential/layers/2", "sequential"]
    assert_same(summaries[-1][2], y)


def test_layers_without_parameters_of_the_outside_in_a_jax_transform() -> None:
    """They have nothing to create, so their first call may be anywhere."""
    x = floats(3, 2, 2)
    for make in (Flatten, lambda: Sequential(lambda: [jnp.abs, Flatten()]), lambda: Sequential([])):
        expected = make()(x)
        layer = make()
        assert_same(jax.jit(lambda x, layer=layer: layer(x))(x), expected)
        layer = make()
        assert_same(elegy.jit(lambda x, layer=layer: layer(x))(x), expected)
        assert_same(layer(x), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Linear(0), ValueError, "nn.Linear: output_size must be a positive integer, got 0"),
        (lambda: Linear(cast(Any, 2.5)), ValueError, "nn.Linear: output_size must be a positive integer, got 2.5"),
        (
            lambda: Linear(3, cast(Any, 8)),
            TypeError,
            r"Linear: by position .*output_size only, got \(3, 8\).\n.*Linear\(8\)",
        ),
        (lambda: Linear(4, cast(Any, False)), TypeError, r"got \(4, False\).\n  Give the others by name: Linear\("),
        (lambda: Linear(4, with_bias=cast(Any, 8)), TypeError, "nn.Linear: with_bias must be True or False, got 8"),
        (lambda: Linear(2)(1.0), ValueError, "linear: the input of Linear must have at least one axis"),
        (lambda: Linear(2, name="head")(jnp.ones([3], jnp.complex64)), TypeError, r"head: .*\n.*dtype=jnp.complex64"),
        (lambda: ConvND(2, 3), TypeError, "base class of Conv1D, Conv2D and Conv3D"),
        (lambda: Conv2D(0, 3), ValueError, "nn.Conv2D: output_channels must be a positive integer"),
        (
            lambda: Conv2D(1, 8, cast(Any, 3)),
            TypeError,
            r"got \(1, 8, 3\).\n.*channels .* are inferred: Conv2D\(8, 3\)",
        ),
        (lambda: Conv2D(8, 3, cast(Any, "SAME")), TypeError, r"\(8, 3, 'SAME'\).\n  Give the others by name: Conv2D\("),
        (lambda: Conv2D(8, 3, with_bias=cast(Any, None)), TypeError, "nn.Conv2D: with_bias must be True or False"),
        (lambda: Conv2D(2, [3]), ValueError, "nn.Conv2D: kernel_shape must be an integer or 2 of them"),
        (lambda: Conv2D(2, 3, stride=0), ValueError, "nn.Conv2D: stride must be a positive integer, got 0"),
        (lambda: Conv2D(2, 3, rate=[1, 2, 3]), ValueError, "nn.Conv2D: rate must be an integer or 2"),
        (lambda: Conv2D(2, 3, padding="FULL"), ValueError, "nn.Conv2D: padding must be 'SAME', 'VALID'"),
        (lambda: Conv2D(2, 3, padding=[1, 2, 3]), ValueError, "nn.Conv2D: padding must be"),
        (lambda: Conv2D(2, 3, data_format="NWC"), ValueError, "nn.Conv2D: data_format must be one of"),
        (lambda: Conv2D(3, 3, groups=2), ValueError, "nn.Conv2D: output_channels=3 cannot be split into groups=2"),
        (lambda: Conv2D(2, 3)(jnp.ones([4, 8, 8])), ValueError, r"conv2d: .* 4 axes, NHWC(.|\n)*x\[\.\.\., None\]"),
        (lambda: Conv2D(2, 3)(jnp.ones([4])), ValueError, r"conv2d: .* got shape \(4,\)"),
        (lambda: Conv2D(2, 3, groups=2)(jnp.ones([1, 4, 4, 3])), ValueError, "conv2d: the 3 channels"),
        (lambda: Conv2D(2, 3, mask=jnp.ones([3]))(jnp.ones([1, 4, 4, 3])), ValueError, "conv2d: mask has shape"),
        (lambda: cast(Any, BatchNormalization)(1), TypeError, "positional argument"),
        (lambda: BatchNormalization(create_scale=cast(Any, 1)), TypeError, "create_scale must be True or False, got 1"),
        (lambda: BatchNormalization(create_offset=cast(Any, 1)), TypeError, "create_offset must be True or False"),
        (
            lambda: BatchNormalization()(jnp.ones([2, 3]), cast(Any, 1)),
            TypeError,
            "batch_normalization: training must be True or",
        ),
        (
            lambda: BatchNormalization()(jnp.ones([2, 3]), test_local_stats=cast(Any, jnp.array(True))),
            TypeError,
            r"test_local_stats must be True or False, got bool\[\]",
        ),
        (lambda: BatchNormalization(decay_rate=1.5), ValueError, r"decay_rate must be in \[0, 1\]"),
        (lambda: BatchNormalization(eps=-1), ValueError, "eps must not be negative"),
        (lambda: BatchNormalization(data_format="CN"), ValueError, "data_format must be one of"),
        (lambda: BatchNormalization()(jnp.ones([3])), ValueError, "batch_normalization: .* an axis of the batch"),
        (lambda: BatchNormalization(axis=2)(jnp.ones([3, 3])), ValueError, "axis=2 is not an axis of the input"),
        (lambda: BatchNormalization()(jnp.ones([0, 3])), ValueError, "batch_normalization: .* nothing to average"),
        (lambda: BatchNormalization()(jnp.ones([2, 3]), scale=1), ValueError, r"create_scale=False"),
        (
            lambda: BatchNormalization()(jnp.ones([2, 3], jnp.complex64)),
            TypeError,
            "batch_normalization: .* real numbers",
        ),
        (lambda: cast(Any, Dropout)(0.5, 0), TypeError, "positional argument"),
        (
            lambda: Dropout(0.5)(jnp.ones(3), cast(Any, jax.random.key(0))),
            TypeError,
            "dropout: training must be True or",
        ),
        (lambda: Dropout(1), ValueError, r"nn.Dropout: rate .* must be in \[0, 1\), got 1"),
        (lambda: Dropout(-0.1), ValueError, "nn.Dropout: rate"),
        (lambda: Dropout(float("nan")), ValueError, "nn.Dropout: rate"),
        (lambda: cast(Any, Flatten)(1, 2), TypeError, "positional argument"),
        (lambda: Flatten(-1), ValueError, "nn.Flatten: preserve_dims must not be negative"),
        (lambda: Flatten(2)(jnp.ones([3])), ValueError, "flatten: Flatten keeps the first 2 axes"),
        (lambda: Sequential(Linear(2)), TypeError, "Sequential takes a function that returns the layers"),
        (lambda: Sequential(Linear(2), cast(Any, jax.nn.relu)), TypeError, r"Sequential\(lambda: \[layer, ...\]\)"),
        (lambda: Sequential([Linear(2)], cast(Any, "mlp")), TypeError, "Sequential takes a function that returns"),
        (lambda: cast(Any, Sequential)(lambda: [], dtype=jnp.bfloat16), TypeError, "unexpected .* argument 'dtype'"),
        (
            lambda: Sequential(cast(Any, lambda: Linear(2))),
            TypeError,
            "Sequential: expected a list of layers, got Linear",
        ),
        (lambda: Sequential(lambda: [Linear]), TypeError, r"Sequential: layer 0 is the class Linear.\n.*Linear\(...\)"),
        (lambda: Sequential(cast(Any, [Linear(2), None])), TypeError, "Sequential: layer 1 cannot be called: None"),
        (lambda: sequential(Linear(2), cast(Any, 3)), TypeError, "sequential: layer 1 cannot be called: 3"),
    ],
)
def test_errors_name_the_layer(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_an_error_inside_a_stack_names_the_way() -> None:
    model = Sequential(lambda: [Flatten(), Conv2D(2, 3)])
    with pytest.raises(ValueError, match="sequential/layers/1: the input of Conv2D must have 4 axes"):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            model(floats(2, 3, 4, 5))
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
