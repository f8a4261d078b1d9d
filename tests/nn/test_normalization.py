"""Normalising layers: numbers are compared with Flax, Keras and Equinox, and with NumPy in double precision. The same
for every layer is in tests/generic/test_every_layer.py; BatchNormalization is in test_nn.py."""

import functools
import threading
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import elegy
from elegy.errors import ParameterError
from elegy.nn import (
    BatchNormalization,
    Conv1D,
    Conv2D,
    Dropout,
    Ensemble,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    Linear,
    LoRA,
    RMSNormalization,
    Sequential,
    SpectralNormalization,
    Stack,
    WeightNormalization,
)
from tests.helpers import assert_close, assert_same, concrete

NORMAL = elegy.initializers.RandomNormal(0.5, 1.5)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def values_and_gradients(function: Callable[[Any, Any], Any], params: Any, x: Any) -> Any:
    """The outputs, and the gradients of a loss by the parameters and by the input."""

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params: Any, x: Any) -> Any:
        y = function(params, x)
        weights = jnp.reshape(jnp.linspace(-1, 2, y.size, dtype=y.dtype), y.shape)
        return jnp.sum(weights * jnp.sin(y)), y

    (_, y), gradients = run(params, x)
    return y, gradients


def compare(layer: Any, x: np.ndarray, peer: Callable[[dict[str, Any], Any], Any], **tolerances: float) -> None:
    """Values and gradients of a layer, and of a function of its parameters and the input."""
    params, rest = elegy.partition(layer.init(x))
    ours = values_and_gradients(lambda params, x: elegy.combine(params, rest).apply(x)[0], params, jnp.asarray(x))
    named = layer.get_parameters(trainable=True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        y, (theirs, of_x) = values_and_gradients(peer, named, jnp.asarray(x))
    gradients = ours[1][0].get_parameters(trainable=True)
    assert_close((ours[0], gradients, ours[1][1]), (y, theirs, of_x), **{"rtol": 1e-4, "atol": 1e-4} | tolerances)


def in_double(x: np.ndarray, axes: Any, eps: float) -> np.ndarray:
    """`x` normalised over some axes by NumPy."""
    exact = x.astype(np.float64)
    mean, var = (f(axis=axes, keepdims=True) for f in (exact.mean, exact.var))
    return (exact - mean) / np.sqrt(var + eps)


def with_values(norm: Any, params: dict[str, Any]) -> Any:
    """A layer of Flax NNX, with our parameters."""
    for name, theirs in (("scale", "scale"), ("offset", "bias")):
        if name in params:
            getattr(norm, theirs)[...] = params[name]
    return norm


def keras_layer(layer: Any, x: np.ndarray, names: tuple[str, ...]) -> Callable[[dict[str, Any], Any], Any]:
    """A layer of Keras as a function of our parameters, in the order in which it has its own."""
    layer.build(x.shape)

    def run(params: dict[str, Any], x: Any) -> Any:
        return layer.stateless_call([params[name] for name in names if name in params], [], x)[0]

    return run


def flags(seed: int) -> dict[str, Any]:
    """Some arguments of a layer, at random."""
    generator = np.random.default_rng(seed)
    return {
        "create_scale": bool(generator.random() < 0.7),
        "create_offset": bool(generator.random() < 0.7),
        "eps": float(10.0 ** generator.integers(-6, 0)),
    }


def random_shape(seed: int, ndim: int) -> tuple[int, ...]:
    return tuple(int(size) for size in np.random.default_rng(seed).integers(1, 5, size=ndim))


# ---------------------------------------------------------------------------------------------------------------------
# LayerNormalization and RMSNormalization
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_layer_normalization_of_the_last_axis(seed: int) -> None:
    shape, options = (*random_shape(seed, seed % 4), 5), flags(seed)
    layer = LayerNormalization(scale_init=NORMAL, offset_init=NORMAL, **options)

    def peer(params: dict[str, Any], x: Any) -> Any:
        norm = nnx.LayerNorm(
            5,
            epsilon=options["eps"],
            use_scale=options["create_scale"],
            use_bias=options["create_offset"],
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
        )
        return with_values(norm, params)(x)

    compare(layer, 3 + 2 * floats(*shape, seed=seed), peer)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 5), 1), ((3, 4, 2), 1), ((2, 3, 4, 2), (1, 2, 3)), ((2, 3, 4, 2), (1, 3)), ((3, 4), (0, 1))],
)
def test_layer_normalization_over_other_axes(shape: tuple[int, ...], axis: Any) -> None:
    x = 1 + floats(*shape)
    theirs = keras.layers.LayerNormalization(axis=axis, epsilon=1e-3)
    layer = LayerNormalization(axis=axis, eps=1e-3, scale_init=NORMAL, offset_init=NORMAL)
    compare(layer, x, keras_layer(theirs, x, ("scale", "offset")))
    axes = (axis,) if isinstance(axis, int) else axis
    assert layer.scale.shape == tuple(shape[number] for number in axes)


def test_parameters_have_the_order_of_the_input() -> None:
    x = floats(2, 3, 4)
    layer = LayerNormalization(axis=[2, -2], scale_init=NORMAL).init(x)
    assert layer.scale.shape == (3, 4)
    np.testing.assert_allclose(layer(x), in_double(x, (1, 2), 1e-5) * np.asarray(layer.scale), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_layer_normalization_of_equinox() -> None:
    def peer(params: dict[str, Any], x: Any) -> Any:
        norm: Any = eqx.nn.LayerNorm((3, 4), eps=1e-2)
        norm = eqx.tree_at(lambda norm: (norm.weight, norm.bias), norm, (params["scale"], params["offset"]))
        return jax.vmap(norm)(x)

    compare(LayerNormalization(axis=(1, 2), eps=1e-2, scale_init=NORMAL, offset_init=NORMAL), floats(2, 3, 4), peer)


@pytest.mark.parametrize("seed", range(4))
def test_rms_normalization(seed: int) -> None:
    shape, options = (*random_shape(seed, seed % 4), 5), flags(seed)
    del options["create_offset"]

    def peer(params: dict[str, Any], x: Any) -> Any:
        norm = nnx.RMSNorm(5, epsilon=options["eps"], use_scale=options["create_scale"], rngs=nnx.Rngs(0))
        return with_values(norm, params)(x)

    compare(RMSNormalization(scale_init=NORMAL, **options), 3 + 2 * floats(*shape, seed=seed), peer)


@pytest.mark.parametrize("axis", [-1, (1, 2)])  # over other axes Keras does not broadcast its scale
def test_rms_normalization_over_other_axes(axis: Any) -> None:
    x = 1 + floats(2, 3, 4)
    theirs = keras.layers.RMSNormalization(axis=axis, epsilon=1e-3)
    compare(RMSNormalization(axis=axis, eps=1e-3, scale_init=NORMAL), x, keras_layer(theirs, x, ("scale",)))


@pytest.mark.slow
def test_rms_normalization_of_equinox() -> None:
    def peer(params: dict[str, Any], x: Any) -> Any:
        norm: Any = eqx.nn.RMSNorm(4, eps=1e-3, use_bias=False)
        return jax.vmap(eqx.tree_at(lambda norm: norm.weight, norm, params["scale"]))(x)

    compare(RMSNormalization(eps=1e-3, scale_init=NORMAL), floats(3, 4), peer)


def test_the_mean_is_not_subtracted() -> None:
    x = np.full([2, 4], 3, np.float32)
    np.testing.assert_allclose(RMSNormalization()(x), 1, rtol=1e-5)
    np.testing.assert_allclose(LayerNormalization()(x), 0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# GroupNormalization and InstanceNormalization
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_group_normalization(seed: int) -> None:
    shape, options = (*random_shape(seed, 1 + seed % 4), 6), flags(seed)
    groups = (1, 2, 3, 2, 6)[seed]

    def peer(params: dict[str, Any], x: Any) -> Any:
        norm = nnx.GroupNorm(
            6,
            num_groups=groups,
            epsilon=options["eps"],
            use_scale=options["create_scale"],
            use_bias=options["create_offset"],
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
        )
        return with_values(norm, params)(x)

    layer = GroupNormalization(groups, scale_init=NORMAL, offset_init=NORMAL, **options)
    compare(layer, 3 + 2 * floats(*shape, seed=seed), peer)


@pytest.mark.slow
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_group_normalization_of_keras(data_format: str) -> None:
    x = 2 + floats(2, 4, 3, 8)
    axis = -1 if data_format == "channels_last" else 1
    theirs = keras.layers.GroupNormalization(groups=2, axis=axis, epsilon=1e-3)
    layer = GroupNormalization(2, eps=1e-3, scale_init=NORMAL, offset_init=NORMAL, data_format=data_format)
    compare(layer, x, keras_layer(theirs, x, ("scale", "offset")))


@pytest.mark.slow
def test_group_normalization_of_equinox() -> None:
    def peer(params: dict[str, Any], x: Any) -> Any:
        norm: Any = eqx.nn.GroupNorm(2, 6, eps=1e-3)
        norm = eqx.tree_at(lambda norm: (norm.weight, norm.bias), norm, (params["scale"], params["offset"]))
        return jax.vmap(norm)(x)

    layer = GroupNormalization(2, eps=1e-3, scale_init=NORMAL, offset_init=NORMAL, data_format="NCHW")
    compare(layer, floats(2, 6, 3, 2), peer)


def test_by_default_there_are_32_groups() -> None:
    x = floats(2, 3, 64)
    expected = in_double(x.reshape(2, 3, 32, 2), (1, 3), 1e-5).reshape(x.shape)
    np.testing.assert_allclose(GroupNormalization()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_instance_normalization(seed: int) -> None:
    shape, options = (*random_shape(seed, 2 + seed % 3), 3), flags(seed)

    def peer(params: dict[str, Any], x: Any) -> Any:
        norm = nnx.InstanceNorm(
            3,
            epsilon=options["eps"],
            use_scale=options["create_scale"],
            use_bias=options["create_offset"],
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
        )
        return with_values(norm, params)(x)

    layer = InstanceNormalization(scale_init=NORMAL, offset_init=NORMAL, **options)
    compare(layer, 3 + 2 * floats(*shape, seed=seed), peer)


def test_instance_normalization_is_that_of_groups_of_one() -> None:
    x = floats(2, 3, 4, 5)
    np.testing.assert_allclose(InstanceNormalization()(x), GroupNormalization(5)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [functools.partial(GroupNormalization, 3), InstanceNormalization])
@pytest.mark.parametrize("data_format", ["channels_first", "NCHW"])
def test_channels_first(layer: Any, data_format: str) -> None:
    x = floats(2, 3, 4, 6)
    last = layer(scale_init=NORMAL, offset_init=NORMAL).init(x)
    first = layer(data_format=data_format).init(np.moveaxis(x, -1, 1))
    first.set_parameters(last.get_parameters())
    np.testing.assert_allclose(jnp.moveaxis(first(np.moveaxis(x, -1, 1)), 1, -1), last(x), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# All of them: numbers
# ---------------------------------------------------------------------------------------------------------------------

# By name: how to make the layer, and the axes over which it normalises an input of `[batch, height, width, channels]`.
LAYERS: dict[str, tuple[Any, Any]] = {
    "layer": (LayerNormalization, -1),
    "layer, several axes": (functools.partial(LayerNormalization, axis=[1, 2, 3]), (1, 2, 3)),
    "rms": (RMSNormalization, -1),
    "group": (functools.partial(GroupNormalization, 1), (1, 2, 3)),
    "instance": (InstanceNormalization, (1, 2)),
}
over_layers = pytest.mark.parametrize("name", LAYERS)


def expected_of(name: str, x: Any, eps: float) -> np.ndarray:
    axes = LAYERS[name][1]
    if name == "rms":
        exact = np.asarray(x, np.float64)
        return exact / np.sqrt(np.mean(exact**2, axes, keepdims=True) + eps)
    return in_double(np.asarray(x, np.float64), axes, eps)


@over_layers
def test_a_large_mean_costs_no_digits(name: str) -> None:
    """None of those that the input has, though its mean, rounded to float32, is off by a tenth of the deviation."""
    x = (1e4 + 1e-2 * floats(2, 8, 8, 16)).astype(np.float32)
    y = LAYERS[name][0](eps=1e-8)(x)
    expected = expected_of(name, x, 1e-8)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@over_layers
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_single(name: str, dtype: Any) -> None:
    """The squares of these numbers, and their sum, are beyond float16."""
    x = jnp.asarray(20000 * floats(2, 8, 8, 16).clip(-3, 3), dtype)
    for create_scale in (True, False):
        options = {} if name == "rms" else {"create_offset": create_scale}
        layer = LAYERS[name][0](create_scale=create_scale, dtype=dtype, **options)
        y = layer(x)
        assert y.dtype == dtype
        precision = 2 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(y.astype(jnp.float32), expected_of(name, x, 1e-5), rtol=precision, atol=precision)
        gradient = jax.grad(lambda x, layer=layer: jnp.sum(layer(x).astype(jnp.float32) ** 3))(x)
        assert gradient.dtype == dtype and jnp.isfinite(gradient).all()


@over_layers
def test_tiny_numbers_are_seen_in_half_precision(name: str) -> None:
    x = jnp.asarray(1e-4 * floats(2, 8, 8, 16), jnp.float16)
    y = LAYERS[name][0](eps=1e-12, dtype=jnp.float16)(x)
    np.testing.assert_allclose(y.astype(jnp.float32), expected_of(name, x, 1e-12), rtol=2e-3, atol=2e-3)


@over_layers
@pytest.mark.parametrize("constant", [0.0, 1e4])
def test_gradients_at_a_constant_input_are_finite(name: str, constant: float) -> None:
    layer = LAYERS[name][0]()
    params, rest = elegy.partition(layer.init(jnp.ones([2, 3, 3, 4])))

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(elegy.combine(params, rest)(x)))

    gradients = jax.grad(loss, argnums=(0, 1))(params, jnp.full([2, 3, 3, 4], constant))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert jnp.isfinite(layer(jnp.full([2, 3, 3, 4], constant))).all()


@over_layers
def test_an_empty_batch(name: str) -> None:
    layer = LAYERS[name][0]()
    assert layer(jnp.ones([0, 3, 3, 4])).shape == (0, 3, 3, 4)
    assert layer(floats(2, 3, 3, 4)).shape == (2, 3, 3, 4)


@over_layers
def test_training_changes_nothing(name: str) -> None:
    x, layer = floats(2, 3, 3, 4), LAYERS[name][0]()
    assert_same(layer.apply(x, training=True)[0], layer.apply(x, training=False)[0])
    assert not layer.get_parameters(trainable=False)


@over_layers
def test_examples_do_not_see_each_other(name: str) -> None:
    x, layer = floats(3, 3, 3, 4), LAYERS[name][0]()
    np.testing.assert_allclose(layer(x)[1:2], layer(x[1:2]), rtol=1e-5, atol=1e-6)


@over_layers
def test_dtypes(name: str) -> None:
    make, x = LAYERS[name][0], floats(2, 3, 3, 4)
    plain = {"create_scale": False} | ({} if name == "rms" else {"create_offset": False})
    assert make(dtype=jnp.bfloat16)(x).dtype == jnp.bfloat16
    assert make(**plain, dtype=jnp.bfloat16)(x).dtype == jnp.float32
    assert make(**plain)(jnp.asarray(x, jnp.float16)).dtype == jnp.float16
    assert make(**plain)(np.ones([2, 3, 3, 4], np.int32)).dtype == jnp.float32
    with jax.enable_x64(True):
        y = make(dtype=jnp.float64, eps=1e-3)(x)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, expected_of(name, x, 1e-3), rtol=1e-12, atol=1e-12)


def test_one_position_and_one_channel() -> None:
    x = floats(3, 1, 1, 1)
    for name, (make, _) in LAYERS.items():
        expected = np.sign(x) if name == "rms" else np.zeros_like(x)
        np.testing.assert_allclose(make()(x), expected, atol=1e-2)


def test_initial_parameters() -> None:
    x = floats(2, 3, 3, 4)
    for make, _ in LAYERS.values():
        layer = make().init(x)
        assert (layer.scale == 1).all()
        if not isinstance(layer, RMSNormalization):
            assert (layer.offset == 0).all()
        assert (make(scale_init=None).init(x).scale == 1).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cast(Any, LayerNormalization)(64), TypeError, "positional argument"),
        (lambda: LayerNormalization(eps=-1), ValueError, "LayerNormalization: eps must not be negative, got -1"),
        (lambda: RMSNormalization(eps=float("nan")), ValueError, "RMSNormalization: eps must not be negative, got nan"),
        (lambda: LayerNormalization(axis=cast(Any, 1.5)), TypeError, "axis must be an integer or several, got 1.5"),
        (lambda: RMSNormalization(axis=[]), TypeError, r"axis must be an integer or several, got \[\]"),
        (lambda: LayerNormalization(create_scale=cast(Any, 1)), TypeError, "create_scale must be True or False, got 1"),
        (lambda: InstanceNormalization(create_offset=cast(Any, 0)), TypeError, "create_offset must be True or False"),
        (lambda: LayerNormalization(axis=2)(floats(3, 3)), ValueError, r"axis=2 is not an axis .*\(3, 3\)"),
        (lambda: RMSNormalization(axis=(0, -3))(floats(3, 3)), ValueError, r"rms_normalization: axis=\(0, -3\) is not"),
        (lambda: LayerNormalization()(1.0), ValueError, r"axis=-1 is not an axis of the input, of shape \(\)"),
        (lambda: LayerNormalization()(floats(3, 0)), ValueError, r"nothing to average over .* \(3, 0\)"),
        (lambda: RMSNormalization()(floats(3, 0)), ValueError, r"nothing to average over .* \(3, 0\)"),
        (lambda: GroupNormalization(1)(floats(3, 0, 2)), ValueError, r"nothing to average over .* \(3, 0, 2\)"),
        (lambda: InstanceNormalization()(floats(3, 0, 2)), ValueError, r"nothing to average over .* \(3, 0, 2\)"),
        (lambda: LayerNormalization()(jnp.ones([2, 3], jnp.complex64)), TypeError, "takes real numbers, got complex64"),
        (lambda: RMSNormalization()(jnp.ones([2, 3], jnp.complex64)), TypeError, "RMSNormalization takes real numbers"),
        (lambda: GroupNormalization(0), ValueError, "GroupNormalization: groups must be a positive integer, got 0"),
        (lambda: cast(Any, GroupNormalization)(2, 64), TypeError, "positional argument"),
        (
            lambda: GroupNormalization()(floats(2, 5, 12)),
            ValueError,
            r"group_normalization: the 12 channels .* groups=32 equal .*\n.*divisor of 12: groups=1, 2, 3, 4, 6, 12\.",
        ),
        (lambda: GroupNormalization(2)(floats(4)), ValueError, r"axis of the batch and one of channels, .*\n.*x\[None"),
        (lambda: GroupNormalization(data_format="CN"), ValueError, "GroupNormalization: data_format must be one of"),
        (lambda: InstanceNormalization(data_format="NH"), ValueError, "InstanceNormalization: data_format must be one"),
        (
            lambda: InstanceNormalization()(floats(3, 4)),
            ValueError,
            r"one of positions .*\(3, 4\)\.\n.*LayerNorm",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_another_size_than_that_of_the_first_input() -> None:
    layer = LayerNormalization().init(floats(2, 3))
    with pytest.raises(ParameterError, match="layer_normalization/scale has shape"):
        layer(floats(2, 4))


# ---------------------------------------------------------------------------------------------------------------------
# SpectralNormalization: numbers
# ---------------------------------------------------------------------------------------------------------------------


def kernel_of(layer: Any) -> dict[str, Any]:
    """The parameters of a Linear or a convolution under the names of Flax."""
    return {"kernel": layer["w"], "bias": layer["b"]}


def spectral_of_numpy(w: Any, u: Any, iterations: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The weight, the vector and the singular value by the algorithm of the paper, in double precision."""
    w, u = np.asarray(w, np.float64), np.asarray(u, np.float64)
    matrix = w.reshape(-1, w.shape[-1])
    v = np.zeros(len(matrix))
    for _ in range(iterations):
        v = matrix @ u
        v /= np.linalg.norm(v)
        u = matrix.T @ v
        u /= np.linalg.norm(u)
    sigma = v @ matrix @ u
    return w / sigma, u, sigma


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: Linear(4), floats(5, 3)),
        (lambda: Linear(1), floats(5, 3)),
        (lambda: Linear(3), floats(5, 1)),
        (lambda: Conv2D(4, [2, 3]), floats(2, 4, 5, 3)),
        (lambda: Conv1D(4, 2, groups=2), floats(2, 4, 6)),
    ],
    ids=["linear", "one output", "one input", "conv", "groups"],
)
def test_spectral_normalization_is_that_of_the_paper(make: Any, x: np.ndarray) -> None:
    iterations = x.ndim - 1  # some number
    layer = SpectralNormalization(make(), iterations=iterations).init(x)
    assert layer.sigma == 1 and layer.u.shape == (layer.layer.w.shape[-1],)
    assert elegy.select(layer, trainable=False).paths == ("u", "sigma")
    plain = layer.layer.copy()
    for training in (True, True, False):
        before = layer.get_parameters()
        w, u, sigma = spectral_of_numpy(layer.layer.w, layer.u, iterations)
        with elegy.training_context(training):
            y = layer(x)
        plain.set_parameters({"w": jnp.asarray(w, jnp.float32)})
        np.testing.assert_allclose(y, plain(x), rtol=1e-4, atol=1e-5)
        if training:
            np.testing.assert_allclose(layer.u, u, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(layer.sigma, sigma, rtol=1e-4)
        else:
            assert_same(layer.get_parameters(), before)
        assert_same(layer.layer.get_parameters(), before["layer"])


@pytest.mark.parametrize("make", [lambda: Linear(4), lambda: Conv2D(4, 2)], ids=["linear", "conv"])
def test_it_finds_the_largest_singular_value(make: Any) -> None:
    x = floats(2, 3, 3, 5)
    layer = SpectralNormalization(make(), iterations=10)
    for _ in range(10):
        layer(x)
    matrix = np.asarray(layer.layer.w).reshape(-1, 4)
    np.testing.assert_allclose(layer.sigma, np.linalg.norm(matrix, ord=2), rtol=1e-4)
    _, _, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(abs(np.vdot(right[0], layer.u)), 1, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "iterations"), [("dense", 1), ("conv", 2)])
def test_spectral_normalization_of_linen(kind: str, iterations: int) -> None:
    """Values, gradients and states over several steps. (The layer of NNX overwrites its kernel by the quotient.)"""
    x = floats(2, 4, 4, 3)
    ours = SpectralNormalization(Linear(5) if kind == "dense" else Conv2D(5, [2, 3]), iterations=iterations).init(x)

    class Peer(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x: Any, training: bool) -> Any:
            dense = kind == "dense"
            inner = flax.linen.Dense(5, name="inner") if dense else flax.linen.Conv(5, (2, 3), name="inner")
            return flax.linen.SpectralNorm(inner, n_steps=iterations)(x, update_stats=training)

    peer = Peer()
    stats = {"SpectralNorm_0": {"inner/kernel/u": ours.u[None], "inner/kernel/sigma": ours.sigma}}
    for training in (False, True):

        def theirs(params: dict[str, Any], x: Any, training: bool = training, stats: Any = stats) -> Any:
            variables = {"params": {"inner": kernel_of(params["layer"])}, "batch_stats": stats}
            return peer.apply(variables, x, training=training, mutable=["batch_stats"])

        with elegy.training_context(training):
            compare(ours, x, lambda params, x, theirs=theirs: theirs(params, x)[0])
            ours(x)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            stats = cast(Any, theirs(ours.get_parameters(), x)[1])["batch_stats"]
        np.testing.assert_allclose(ours.u, stats["SpectralNorm_0"]["inner/kernel/u"][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours.sigma, stats["SpectralNorm_0"]["inner/kernel/sigma"], rtol=1e-4)


@pytest.mark.slow
def test_spectral_normalization_of_nnx() -> None:
    x = floats(4, 3)
    ours = SpectralNormalization(Linear(5), iterations=2).init(x)

    def peer(params: dict[str, Any], x: Any) -> Any:
        linear = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        linear.kernel[...], linear.bias[...] = params["layer"]["w"], params["layer"]["b"]
        norm = nnx.SpectralNorm(linear, n_steps=2, rngs=nnx.Rngs(0))
        norm.batch_stats[("kernel", "u")][...] = ours.u[None]
        return norm(x, update_stats=True)

    compare(ours, x, peer)


@pytest.mark.slow
def test_spectral_normalization_of_keras() -> None:
    x = floats(2, 4, 4, 3)
    ours = SpectralNormalization(Conv2D(5, 2), iterations=2).init(x)
    layer = keras.layers.SpectralNormalization(keras.layers.Conv2D(5, 2, padding="same"), power_iterations=2)
    layer.build(x.shape)
    layer.vector_u.assign(ours.u[None])

    def peer(params: dict[str, Any], x: Any) -> Any:
        values = [params["layer"]["w"], params["layer"]["b"]]
        return layer.stateless_call(values, [ours.u[None]], x, training=True)[0]

    compare(ours, x, peer)


@pytest.mark.slow
def test_spectral_normalization_of_equinox() -> None:
    """In training; outside of it Equinox takes the vectors of the last step, and iterates no more."""

    class Affine(eqx.Module):
        """With the weight as we have it, so that the iteration begins at the same end."""

        weight: Any
        bias: Any

        def __call__(self, x: Any) -> Any:
            return x @ self.weight + self.bias

    x = floats(4, 3)
    ours = SpectralNormalization(Linear(5)).init(x)

    def peer(params: dict[str, Any], x: Any) -> Any:
        affine = Affine(params["layer"]["w"], params["layer"]["b"])
        norm, state = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(affine, "weight", key=jax.random.key(0))
        state = state.set(norm.uv_index, (jnp.zeros(3), ours.u))
        return jax.vmap(lambda x: norm(x, state)[0])(x)

    compare(ours, x, peer)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_weights_of_any_size(scale: float) -> None:
    """A weight of zeros stays one, and its gradient is finite."""
    x = floats(4, 3)
    layer = SpectralNormalization(Linear(5), iterations=3).init(x)
    layer.layer.set_parameters({"w": jnp.float32(scale) * layer.layer.w})
    w, _, sigma = spectral_of_numpy(layer.layer.w, layer.u, 3) if scale else (np.zeros([3, 5]), None, 0)
    np.testing.assert_allclose(layer(x), x @ w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.sigma, sigma, rtol=1e-4)
    gradient = elegy.grad(lambda: jnp.sum(jnp.sin(layer(x))), modules=layer)()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not scale or abs(np.max(gradient["layer"]["w"])) > 1e-8


def test_eps_is_the_least_length() -> None:
    """With a large one the estimate is too small, since the vectors have no unit length."""
    x = floats(4, 3)
    w = Linear(5).init(x).w
    fine, coarse = (SpectralNormalization(Linear(5, w_init=lambda shape, dtype: w), eps=eps) for eps in (1e-12, 100.0))
    assert (fine(x) != coarse(x)).any() and coarse.sigma < 0.01 * fine.sigma


# ---------------------------------------------------------------------------------------------------------------------
# WeightNormalization: numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("create_scale", [True, False])
@pytest.mark.parametrize("axis", [-1, 0, (0, 1), (-1, 1), None])
def test_weight_normalization_of_linen(axis: Any, create_scale: bool) -> None:
    x = floats(2, 4, 4, 3)
    ours = WeightNormalization(Conv2D(5, [2, 3]), axis=axis, create_scale=create_scale, eps=1e-2, scale_init=NORMAL)

    class Peer(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x: Any) -> Any:
            inner = flax.linen.Conv(5, (2, 3), name="inner")
            return flax.linen.WeightNorm(inner, feature_axes=axis, use_scale=create_scale, epsilon=1e-2)(x)

    def peer(params: dict[str, Any], x: Any) -> Any:
        theirs = {"inner": kernel_of(params["layer"])}
        if create_scale:
            theirs["WeightNorm_0"] = {"inner/kernel/scale": params["scale"]}
        return Peer().apply({"params": theirs}, x)

    compare(ours, x, peer)
    assert sorted(ours.get_parameters()) == ["layer", "scale"][: 1 + create_scale]


@pytest.mark.slow
def test_weight_normalization_of_nnx() -> None:
    x = floats(4, 3)
    ours = WeightNormalization(Linear(5), scale_init=NORMAL)

    def peer(params: dict[str, Any], x: Any) -> Any:
        linear = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        linear.kernel[...], linear.bias[...] = params["layer"]["w"], params["layer"]["b"]
        norm = nnx.WeightNorm(linear, scale_init=lambda *_: params["scale"], rngs=nnx.Rngs(0))
        return norm(x)

    compare(ours, x, peer)


@pytest.mark.slow
def test_weight_normalization_of_equinox() -> None:
    x = floats(4, 3)
    ours = WeightNormalization(Linear(5), scale_init=NORMAL)

    def peer(params: dict[str, Any], x: Any) -> Any:
        linear: Any = eqx.nn.Linear(3, 5, key=jax.random.key(0))
        weights = (params["layer"]["w"].T, params["layer"]["b"])
        linear = eqx.tree_at(lambda linear: (linear.weight, linear.bias), linear, weights)
        norm: Any = eqx.tree_at(lambda norm: norm.g, eqx.nn.WeightNorm(linear), params["scale"][:, None])
        return jax.vmap(norm)(x)

    compare(ours, x, peer)


@pytest.mark.parametrize("axis", [-1, (0, 2), None])
def test_around_a_trained_layer_it_computes_the_same(axis: Any) -> None:
    x = floats(2, 4, 3)
    conv = Conv1D(5, 2).init(x)
    layer = WeightNormalization(conv, axis=axis)
    shape = () if axis is None else (5,) if axis == -1 else (2, 5)
    assert layer.scale.shape == shape and not layer.initialized
    np.testing.assert_allclose(layer(x), conv(x), rtol=1e-5, atol=1e-6)
    assert layer.scale.shape == shape
    assert (WeightNormalization(Conv1D(5, 2), axis=axis).init(x).scale == 1).all()
    assert (WeightNormalization(conv, axis=axis, scale_init=jnp.zeros).init(x).scale == 0).all()


def test_a_weight_of_zeros_has_a_gradient() -> None:
    x = floats(4, 3)
    layer = WeightNormalization(Linear(5, w_init=jnp.zeros)).init(x)
    gradient = elegy.grad(lambda: jnp.sum(jnp.sin(layer(x))), modules=layer)()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (layer(x) == 0).all()


@pytest.mark.parametrize("wrapper", [SpectralNormalization, WeightNormalization])
def test_weights_in_half_precision_are_summed_in_single(wrapper: Any) -> None:
    """The sum of the squares of 4096 numbers, each about 30, is beyond float16; that of small ones is below."""
    for size in (30, 1e-4):
        x = jnp.asarray(floats(2, 4096), jnp.float16)
        w = jnp.asarray(size * floats(4096, 2), jnp.float16)
        layer = wrapper(Linear(2, w_init=lambda shape, dtype, w=w: w, dtype=jnp.float16)).init(x)
        y = layer(x)
        assert y.dtype == jnp.float16
        exact = np.asarray(w, np.float64)
        if wrapper is WeightNormalization:
            expected = exact / np.linalg.norm(exact, axis=0)
        else:
            assert layer.u.dtype == layer.sigma.dtype == jnp.float32
            expected = exact / float(layer.sigma)
        np.testing.assert_allclose(y, np.asarray(x, np.float64) @ expected, rtol=1e-2, atol=1e-2)


# ---------------------------------------------------------------------------------------------------------------------
# Layers around layers: what is left of the inner one
# ---------------------------------------------------------------------------------------------------------------------

WRAPPERS = [SpectralNormalization, WeightNormalization]
over_wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)


class Inner(elegy.Module):
    """Has state, draws, and declares something of each kind."""

    def call(self, x: Any) -> Any:
        x = Linear(4)(x)
        x = BatchNormalization()(x)
        elegy.add_loss("activity", jnp.mean(x**2))
        elegy.add_metric("size", jnp.max(jnp.abs(self.linear.w)))
        return Linear(2)(Dropout(0.5)(x))


def replaced_by_hand(layer: Any) -> Any:
    """A copy of the inner layer with the weights that it is run with."""
    inner = layer.layer.copy()
    for name in ("linear", "linear_1"):
        w = getattr(inner, name).w
        if isinstance(layer, SpectralNormalization):
            w = w / spectral_of_numpy(w, getattr(layer, f"u_{name}_w"), 1)[2]
        else:
            scale = getattr(layer, f"scale_{name}_w")
            w = w / jnp.broadcast_to(jnp.linalg.norm(w, axis=0) / scale, w.shape)
        inner.set_parameters({name: {"w": jnp.asarray(w, jnp.float32)}})
    return inner


@over_wrappers
@pytest.mark.parametrize("training", [True, False])
def test_state_draws_and_hooks_are_those_of_the_inner_layer(wrapper: Any, training: bool) -> None:
    x = floats(8, 3)
    layer = wrapper(Inner()).init(x, rng=0)
    inner = replaced_by_hand(layer)
    before = layer.layer.get_parameters(trainable=True)

    def run(module: Any) -> Any:
        with elegy.rng_context(3), elegy.training_context(training), elegy.hooks_context(summaries=True):
            y = module(x)
            summaries: Any = elegy.get_summaries()
            return y, elegy.get_losses(), elegy.get_metrics(), summaries, elegy.next_rng_key()

    y, losses, metrics, summaries, key = run(layer)
    expected = run(inner)
    assert_close((y, losses), expected[:2], rtol=1e-4, atol=1e-5)
    name = "spectral_normalization" if wrapper is SpectralNormalization else "weight_normalization"
    assert list(metrics) == [f"{name}/layer/size"]
    np.testing.assert_allclose(metrics[f"{name}/layer/size"], expected[2]["inner/size"], rtol=1e-4)
    assert [path for _, path, _ in summaries] == [
        *(path.replace("inner", f"{name}/layer") for _, path, _ in expected[3]),
        name,
    ]
    assert key == expected[4]
    states = layer.layer.get_parameters(trainable=False), inner.get_parameters(trainable=False)
    assert_close(*states, rtol=1e-4, atol=1e-5)
    assert (layer.layer.batch_normalization.mean != 0).any() == training
    assert_same(layer.layer.get_parameters(trainable=True), before)


@over_wrappers
def test_parameters_appear_once_and_below_the_layer(wrapper: Any) -> None:
    layer = wrapper(Linear(4)).init(floats(2, 3))
    own = () if wrapper is SpectralNormalization else ("scale",)
    assert set(elegy.select(layer, trainable=True).paths) == {"layer/w", "layer/b", *own}
    assert layer.parameters_size() == 16 + (4 if own else 0)
    assert wrapper(Linear(4), name="head").name == "head"


@over_wrappers
def test_training(wrapper: Any) -> None:
    x = floats(16, 3)
    target = jnp.sum(x, axis=1, keepdims=True) / 3
    model: Any = Sequential(lambda: [wrapper(Linear(8)), jnp.tanh, wrapper(Linear(1))])
    optimizer = elegy.Optimizer(optax.adam(0.03))

    def step() -> Any:
        loss, grads = elegy.value_and_grad(lambda: jnp.mean((model(x) - target) ** 2), modules=model)()
        optimizer.update(model, grads)
        return loss

    step = elegy.jit(step, modules=[model, optimizer])
    losses = [float(step()) for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0]
    assert concrete(model)


class Block(elegy.Module):
    """Has state, and draws."""

    def call(self, x: Any) -> Any:
        return Dropout(0.5)(BatchNormalization()(Linear(4)(x)))


@over_wrappers
def test_transforms(wrapper: Any) -> None:
    x = floats(4, 3)
    layer = wrapper(Block()).init(x, rng=0)

    @jax.jit
    def run(module: Any, x: Any) -> Any:
        return module.apply(x, rng=1)

    expected = run(layer, x)
    assert_close(expected, layer.apply(x, rng=1))
    _, outputs = jax.lax.scan(lambda module, x: run(module, x)[::-1], layer, x[None])
    assert_close(outputs[0], expected[0])
    mapped = jax.vmap(jax.checkpoint(run), in_axes=(None, 0))(layer, jnp.stack([x, 2 * x]))
    assert_close(jax.tree.map(lambda leaf: leaf[0], mapped), expected)
    with elegy.training_context(False):
        y = layer(x)
        assert_close(elegy.vmap(lambda x: layer(x[None])[0], modules=layer)(x), y)
        assert_close(elegy.remat(layer)(x), y)
        assert_close(jax.jit(lambda x: layer(x))(x), y)


@over_wrappers
def test_a_layer_of_the_code_around_a_transform(wrapper: Any) -> None:
    """It may run there, and is left as it was; in training what it updates is refused, as without the wrapper."""
    x = floats(4, 3)
    layer = wrapper(elegy.nn.Sequential(lambda: [Linear(4), BatchNormalization()])).init(x)
    before = layer.get_parameters()
    with pytest.raises(elegy.errors.TraceError, match="updated the parameter"):
        jax.jit(lambda x: layer(x))(x)
    assert_same(layer.get_parameters(), before)
    assert concrete(layer)


@over_wrappers
def test_compiled_from_the_start(wrapper: Any) -> None:
    """What is initialised within a transform equals what is initialised outside."""
    x = floats(4, 3)
    eager = wrapper(Linear(2)).init(x, rng=0)
    outside: Any = jax.jit(lambda key: wrapper(Linear(2)).init(x, rng=key))(jax.random.key(0))
    assert_close(outside.get_parameters(), eager.get_parameters())
    abstract = jax.eval_shape(lambda: wrapper(Linear(2)).init(x, rng=0))
    assert list(map(jnp.shape, jax.tree.leaves(abstract))) == list(map(jnp.shape, jax.tree.leaves(eager)))
    compiled = elegy.jit(wrapper(Linear(2)))
    assert compiled(x).shape == (4, 2) and compiled.traces == 1
    members = jax.vmap(lambda key: wrapper(Linear(2)).init(x, rng=key))(jax.random.split(jax.random.key(0), 3))
    assert members.layer.w.shape == (3, 3, 2) and (members.layer.w[0] != members.layer.w[1]).any()


@over_wrappers
def test_in_stacks_and_ensembles(wrapper: Any) -> None:
    x = floats(4, 3)
    stack = Stack(lambda: wrapper(Linear(3)), 3)
    expected = x
    with elegy.training_context(False):
        y = stack(x)
        for block in stack:
            expected = block(expected)
    assert_close(y, expected)
    assert stack.blocks.layer.w.shape == (3, 3, 3)
    trained = Stack.from_blocks([wrapper(Linear(3).init(x)) for _ in range(2)])
    assert trained(x).shape == (4, 3)
    ensemble = Ensemble(lambda: wrapper(Linear(2)), 2)
    assert ensemble(x).shape == (2, 4, 2) and (ensemble.members.layer.w[0] != ensemble.members.layer.w[1]).any()


@over_wrappers
@pytest.mark.parametrize("factory", [True, False])
def test_around_a_layer_that_is_made_in_call(wrapper: Any, factory: bool) -> None:
    class Net(elegy.Module):
        def call(self, x: Any) -> Any:
            hidden = jnp.tanh(wrapper((lambda: Linear(4)) if factory else Linear(4))(x))
            return wrapper((lambda: Linear(2)) if factory else Linear(2))(hidden)

    net, x = Net(), floats(4, 3)
    assert net(x).shape == (4, 2)
    paths = elegy.select(net, trainable=True).paths
    name = "spectral_normalization" if wrapper is SpectralNormalization else "weight_normalization"
    owners = (f"{name}/layer", f"{name}_1/layer") if factory else ("linear", "linear_1")
    assert {path for path in paths if not path.endswith("scale")} == {f"{owner}/{p}" for owner in owners for p in "wb"}
    assert len(set(paths)) == len(paths)
    with elegy.training_context(False):
        compiled, again = jax.jit(lambda net, x: (net(x), net))(net, x)
        assert_close((compiled, again), net.apply(x))
    if factory:
        compiled, again = jax.jit(lambda net, x: (net(x), net))(net, x)
        assert_close((compiled, again), net.apply(x))


def test_one_in_the_other() -> None:
    """The inner one is given the weights of the outer one."""
    x = floats(4, 3)
    with elegy.training_context(False):
        layer = WeightNormalization(SpectralNormalization(Linear(5), iterations=2), scale_init=NORMAL).init(x)
        w = layer.layer.layer.w
        scale = getattr(layer, "scale_layer_w")  # noqa: B009  (a checker does not know the name)
        w = np.asarray(w / jnp.broadcast_to(jnp.linalg.norm(w, axis=0) / scale, w.shape))
        np.testing.assert_allclose(layer(x), x @ spectral_of_numpy(w, layer.layer.u, 2)[0], rtol=1e-4, atol=1e-5)


def test_around_an_adapted_layer() -> None:
    x = floats(4, 3)
    layer = WeightNormalization(LoRA(Linear(5), 2)).init(x)
    assert set(elegy.select(layer, trainable=True).paths) == {"layer/lora_a", "layer/lora_b", "scale"}
    w = np.asarray(layer.layer.w)
    np.testing.assert_allclose(layer(x), x @ (w / np.linalg.norm(w, axis=0)), rtol=1e-4, atol=1e-5)


@over_wrappers
def test_layers_of_a_trained_model_are_wrapped(wrapper: Any) -> None:
    x = floats(4, 3)
    model: Any = Sequential(lambda: [Linear(5), jnp.tanh, Linear(2)]).init(x)
    wrapped = elegy.select(model, Linear).replace(wrapper)
    paths = elegy.select(wrapped).paths
    assert {"layers/0/layer/w", "layers/2/layer/b"} < set(paths) and len(paths) == len(set(paths)) > 5
    y, updated = jax.jit(lambda model, x: (model(x), model))(wrapped, x)
    assert_close(y, wrapped(x))
    assert elegy.select(updated).paths == paths
    if wrapper is WeightNormalization:
        assert_close(y, model(x))
    else:
        assert (wrapped.layers[0].u[:2] != wrapped.layers[2].u).any()
        drawn = [wrapper(model.layers[0]).init(x, rng=seed).u for seed in (0, 0, 1)]
        assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


@over_wrappers
def test_names_say_which_weights(wrapper: Any) -> None:
    class Bilinear(elegy.Module):
        def call(self, x: Any) -> Any:
            left = self.add_parameter("left", [3, 2], initializer=NORMAL)
            right = self.add_parameter("right", [3, 2], initializer=NORMAL)
            size = self.add_parameter("size", [2], initializer=NORMAL)
            return jnp.dot(x, left) * jnp.dot(x, right) * jnp.broadcast_to(size, (len(x), 2))

    x, state = floats(4, 3), "u" if wrapper is SpectralNormalization else "scale"
    for names, expected in (("left", {"left"}), (["right", "left", "size"], {"left", "right"})):
        layer = wrapper(Bilinear(), names=names).init(x)
        found = {name.removeprefix(f"{state}_") for name in layer.get_parameters() if name.startswith(f"{state}_")}
        assert found == expected
    y = layer(x)
    layer.layer.set_parameters({"left": 3 * layer.layer.left, "right": 7 * layer.layer.right})
    if wrapper is WeightNormalization:
        assert_close(layer(x), y, rtol=1e-4)


def test_other_parameters_stay_as_they_are() -> None:
    x = floats(4, 3)
    layer = SpectralNormalization(Linear(1, b_init=NORMAL)).init(x)
    w = layer.layer.w
    expected = x @ np.asarray(w) / np.linalg.norm(w) + np.asarray(layer.layer.b)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_the_argument_training_holds_for_both() -> None:
    x = floats(4, 3)
    layer = SpectralNormalization(
        elegy.to_module(lambda x, training=None: BatchNormalization()(Linear(2)(x), training=training))()
    ).init(x)
    before = layer.get_parameters()
    layer(x, training=False)
    assert_same(layer.get_parameters(), before)
    with elegy.training_context(False):
        layer(x, training=True)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), layer.get_parameters(), before)
    assert changed["u_linear_w"] and changed["layer"]["batch_normalization"]["mean"]
    assert not changed["layer"]["linear"]["w"]


@over_wrappers
def test_frozen_weights_are_normalised_too(wrapper: Any) -> None:
    x = floats(4, 3)
    layer = wrapper(Linear(2)).init(x)
    y = layer.apply(x)[0]
    layer.trainable = False
    assert_close(layer.apply(x)[0], y)


@over_wrappers
def test_an_error_leaves_the_weights_as_they_were(wrapper: Any) -> None:
    class Failing(elegy.Module):
        def call(self, x: Any, fail: bool = False) -> Any:
            x = BatchNormalization()(Linear(2)(x))
            if fail:
                raise ArithmeticError("on purpose")
            return x

    x = floats(4, 3)
    layer = wrapper(Failing()).init(x)
    before = layer.get_parameters()
    with pytest.raises(ArithmeticError):
        layer(x, fail=True)
    assert_same(layer.get_parameters(), before)
    with pytest.raises(ArithmeticError):
        elegy.jit(lambda: layer(x, fail=True), modules=layer)()
    assert_same(layer.get_parameters(), before)
    assert concrete(layer)


def test_several_threads() -> None:
    """No thread sees the weights that another one put in the place of the layer's own."""
    x = floats(4, 3)
    inner = Sequential(lambda: [Linear(64) for _ in range(8)])
    layer = WeightNormalization(inner, scale_init=elegy.initializers.Constant(2)).init(x)
    before = layer.get_parameters()
    expected, different = layer(x), []

    def run() -> None:
        different.extend(number for number in range(10) if not np.array_equal(layer(x), expected))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different
    assert_same(layer.get_parameters(), before)


@over_wrappers
def test_after_a_reset_the_layer_begins_again(wrapper: Any) -> None:
    x = floats(4, 3)
    layer = wrapper(Linear(2)).init(x)
    layer.reset()
    assert layer(x).shape == (4, 2)
    layer.layer.reset()
    assert layer(x).shape == (4, 2)
    layer.reset()
    assert layer(floats(4, 7)).shape == (4, 2)


@over_wrappers
def test_saved_and_loaded(wrapper: Any, tmp_path: Any) -> None:
    x, path = floats(4, 3), tmp_path / "layer.safetensors"
    layer, other = (wrapper(Inner()).init(x, rng=seed) for seed in (0, 1))
    layer(x)
    elegy.save(path, layer)
    loaded = elegy.load(path, like=other)
    with elegy.training_context(False):
        assert_same(loaded(x), layer(x))


@pytest.mark.usefixtures("unchecked")
@over_wrappers
def test_errors_of_layers_around_layers(wrapper: Any) -> None:
    x, name = floats(4, 3), wrapper.__name__
    with pytest.raises(TypeError, match=rf"elegy.nn.{name} takes a module, .* got .*\n  Construct it: Linear\("):
        wrapper(Linear)
    with pytest.raises(TypeError, match=f"elegy.nn.{name} takes a module, .* got 3"):
        wrapper(3)
    with pytest.raises(TypeError, match=f"elegy.nn.{name} takes a module, .* got a function that gives 3"):
        wrapper(lambda: 3)
    with pytest.raises(TypeError, match=f"elegy.nn.{name}: names must be the names of parameters, such as 'w', got "):
        wrapper(Linear(2), names=[])
    with pytest.raises(TypeError, match=f"elegy.nn.{name}: names must be the names of parameters"):
        wrapper(Linear(2), names=[0])
    with pytest.raises(ValueError, match=f"elegy.nn.{name}: eps must not be negative, got -1"):
        wrapper(Linear(2), eps=-1)
    with pytest.raises(TypeError, match="positional argument"):
        wrapper(Linear(2), 3)
    with pytest.raises(ParameterError, match=r"_normalization: Dropout has no trainable .* name 'w'.*\n.*names=\.\.\."):
        wrapper(Dropout(0.5))(x)
    with pytest.raises(ParameterError, match=r"Linear has no trainable parameter of two axes or more .* 'b' or 'c'"):
        wrapper(Linear(2), names=["b", "c"])(x)
    with pytest.raises(TypeError, match=rf"weights of a Stack are .*\n.*Stack\(lambda: {name}\("):
        wrapper(Stack(lambda: Linear(3), 2))(x)


@pytest.mark.usefixtures("unchecked")
def test_errors_of_their_own() -> None:
    x = floats(4, 3)
    with pytest.raises(ValueError, match="SpectralNormalization: iterations must be a positive integer, got 0"):
        SpectralNormalization(Linear(2), iterations=0)
    with pytest.raises(TypeError, match=r"axis must be an integer or several, got \(\)"):
        WeightNormalization(Linear(2), axis=())
    with pytest.raises(ValueError, match=r"weight_normalization: axis=2 is not an axis of w, of shape \(3, 2\)"):
        WeightNormalization(Linear(2), axis=2)(x)
    with pytest.raises(ValueError, match=r"axis=2 is not an axis of w, of shape \(3, 2\)"):
        WeightNormalization(Linear(2).init(x), axis=2)
    with pytest.raises(ParameterError, match="layer/w has shape"):
        SpectralNormalization(Linear(2).init(x))(floats(4, 5))


def test_weights_that_cannot_be_told_apart() -> None:
    class Outer(elegy.Module):
        def __init__(self, **parts: Any):
            self.a = Sequential(lambda: [Linear(2)])
            self.a_layers_0 = Linear(2)

        def call(self, x: Any) -> Any:
            return self.a(x) + self.a_layers_0(x)

    with pytest.raises(ParameterError, match=r"differ in '/' and '_' only: .*a_layers_0/w"):
        SpectralNormalization(Outer())(floats(4, 3))


@pytest.mark.parametrize(
    ("wrapper", "make"),
    [(SpectralNormalization, lambda: Conv1D(4, 2)), (WeightNormalization, lambda: Linear(4))],
    ids=["spectral", "weight"],
)
def test_sharded_weights(wrapper: Any, make: Any) -> None:
    x = floats(4, 6, 8)
    plain = wrapper(make()).init(x, rng=0)
    expected = plain.apply(x)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        layer = wrapper(make()).init(x, rng=0)
        spec = jax.sharding.PartitionSpec(*[None] * (layer.layer.w.ndim - 2), "data", "model")
        layer.layer.set_parameters({"w": jax.device_put(layer.layer.w, jax.sharding.NamedSharding(mesh, spec))})
        inputs = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        y, updated = jax.jit(lambda layer, x: layer.apply(x))(layer, inputs)
    assert updated.layer.w.sharding.spec == spec
    assert_close((y, updated), expected)
