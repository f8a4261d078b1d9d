"""Normalising layers: numbers are compared with Flax, Keras and Equinox, and with NumPy in double precision. The same
for every layer is in test_layers_generic.py; BatchNormalization is in test_nn.py."""

import functools
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import keras
import numpy as np
import pytest
from flax import nnx

import elegy
from elegy.errors import ParameterError
from elegy.nn import (
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    RMSNormalization,
)
from tests.helpers import assert_close, assert_same

NORMAL = elegy.initializers.RandomNormal(0.5, 1.5)


@pytest.fixture
def unchecked() -> Any:
    """As for a user without a type checker, who sees the errors of the library itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_group_normalization_of_keras(data_format: str) -> None:
    x = 2 + floats(2, 4, 3, 8)
    axis = -1 if data_format == "channels_last" else 1
    theirs = keras.layers.GroupNormalization(groups=2, axis=axis, epsilon=1e-3)
    layer = GroupNormalization(2, eps=1e-3, scale_init=NORMAL, offset_init=NORMAL, data_format=data_format)
    compare(layer, x, keras_layer(theirs, x, ("scale", "offset")))


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
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e4])
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
