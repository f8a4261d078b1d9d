"""Values and gradients are compared with those of Flax, Equinox and Keras, with copied weights."""

import math
from typing import Any, cast

import equinox
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import elegy
from elegy.nn import (
    AdaptiveAvgPool,
    AvgPool,
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    ConvNDTranspose,
    DepthwiseConv1D,
    DepthwiseConv2D,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool,
    Resize,
    SeparableConv1D,
    SeparableConv2D,
    Upsample,
)
from tests.helpers import assert_close, assert_same

CONVOLUTIONS: tuple[Any, ...] = (Conv1D, Conv2D, Conv3D)
TRANSPOSED: tuple[Any, ...] = (Conv1DTranspose, Conv2DTranspose, Conv3DTranspose)
LEADING = [(2,), (2, 3), (0,), (), (1, 1, 2)]
LETTERS = {1: "W", 2: "HW", 3: "DHW"}
random_bias = elegy.initializers.RandomNormal()


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def differentiated(function: Any) -> Any:
    """The value of a function of parameters and an input, and the gradients of a number made of it."""

    def number(params: Any, x: Any) -> Any:
        y = function(params, x)
        return jnp.sum(jnp.sin(y)), y

    def run(params: Any, x: Any) -> Any:
        (_, y), gradients = jax.value_and_grad(number, argnums=(0, 1), has_aux=True)(params, x)
        return y, *gradients

    return jax.jit(run)


def assert_agrees(module: Any, reference: Any, x: np.ndarray) -> None:
    """The module, initialised, computes `reference(parameters, x)`, and has the same gradients."""
    params, rest = elegy.partition(module)
    y, of_params, of_x = differentiated(lambda params, x: elegy.combine(params, rest)(x))(params, x)
    expected = differentiated(reference)(module.get_parameters(trainable=True), x)
    assert_close((y, of_params.get_parameters(trainable=True), of_x), expected, rtol=2e-5, atol=2e-5)


def layout(n: int, first: bool, batch: bool = True) -> str:
    return "N" * batch + "C" * first + LETTERS[n] + "C" * (not first)


def moved(function: Any, n: int, first: bool) -> Any:
    """A function of parameters and an input with the channels last, for one with the channels first."""
    if not first:
        return function
    return lambda params, x: jnp.moveaxis(function(params, jnp.moveaxis(x, -1 - n, -1)), -1, -1 - n)


def random_input(random: np.random.Generator, n: int, padding: Any, window: Any, groups: int = 1) -> np.ndarray:
    """With channels last; often of one position or one channel, sometimes without a batch or with an empty one."""
    leading = LEADING[int(random.integers(len(LEADING)))]
    least = np.zeros(n, int) if padding in ("SAME", "CIRCULAR", "REFLECT", "CAUSAL") else np.array(window) - 1
    sizes = least + random.integers(1, 8 - n, n)
    return random.normal(size=(*leading, *sizes, groups * int(random.integers(1, 3)))).astype(np.float32)


def covered(options: dict[str, Any]) -> Any:
    return (np.array(options["kernel_shape"]) - 1) * options["rate"] + 1


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions
# ---------------------------------------------------------------------------------------------------------------------


def flax_convolution(layer: Any, channels: int, options: dict[str, Any], x: np.ndarray) -> Any:
    """A layer of flax.linen with the options of ours, as a function of our parameters."""
    n, padding, mask = len(options["kernel_shape"]), options["padding"], options["mask"]
    groups = options.get("groups", 1)
    theirs = layer(
        channels,
        options["kernel_shape"],
        strides=options["stride"],
        padding=[(padding, padding)] * n if isinstance(padding, int) else padding,
        kernel_dilation=options["rate"],
        use_bias=options["with_bias"],
        mask=None if mask is None else jnp.broadcast_to(mask, (*mask.shape[:-2], x.shape[-1] // groups, channels)),
        **({"feature_group_count": groups} if "groups" in options else {}),
    )
    names = {"w": "kernel", "b": "bias"}
    return lambda params, x: theirs.apply({"params": {names[name]: value for name, value in params.items()}}, x)


def random_options(seed: int, random: np.random.Generator, n: int, paddings: list[Any]) -> dict[str, Any]:
    kernel_shape, stride, rate = (tuple(random.integers(1, most, n).tolist()) for most in (4, 4, 3))
    return {
        "kernel_shape": kernel_shape,
        "stride": stride,
        "rate": rate,
        "padding": paddings[seed // 3 % len(paddings)],
        "with_bias": bool(random.integers(2)),
        "mask": random.integers(0, 2, (*kernel_shape, 1, 1)).astype(np.float32) if random.integers(2) else None,
    }


@pytest.mark.parametrize("seed", range(21))
def test_convolution(seed: int) -> None:
    random, n = np.random.default_rng(seed), 1 + seed % 3
    groups, channels, first = int(random.integers(1, 3)), 2 * int(random.integers(1, 3)), bool(random.integers(2))
    paddings = ["SAME", "VALID", "CIRCULAR", "REFLECT", 1, [(1, 2), (0, 3), (2, 0)][:n], *["CAUSAL"] * (n == 1)]
    options = {**random_options(seed, random, n, paddings), "groups": groups}
    x = random_input(random, n, options["padding"], covered(options), groups)
    reference = moved(flax_convolution(flax.linen.Conv, channels, options, x), n, first)
    x = np.moveaxis(x, -1, -1 - n) if first else x
    conv = CONVOLUTIONS[n - 1](
        channels, **options, b_init=random_bias, data_format=layout(n, first, batch=x.ndim > n + 1)
    )
    assert_agrees(conv.init(x), reference, x)


@pytest.mark.parametrize("seed", range(15))
def test_transposed_convolution(seed: int) -> None:
    random, n = np.random.default_rng(100 + seed), 1 + seed % 3
    channels, first = int(random.integers(1, 4)), bool(random.integers(2))
    options = random_options(seed, random, n, ["SAME", "VALID", 1, [(1, 2), (0, 3), (2, 0)][:n], "CIRCULAR"])
    x = random_input(random, n, options["padding"], covered(options))
    reference = moved(flax_convolution(flax.linen.ConvTranspose, channels, options, x), n, first)
    x = np.moveaxis(x, -1, -1 - n) if first else x
    conv = TRANSPOSED[n - 1](
        channels, **options, b_init=random_bias, data_format=layout(n, first, batch=x.ndim > n + 1)
    )
    assert_agrees(conv.init(x), reference, x)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 3])
def test_every_output_shape_that_a_convolution_takes_to_the_input(padding: str, stride: int) -> None:
    """With a flipped kernel a transposed convolution is the gradient of a convolution, of inputs of any size."""
    window, size = 2, 3
    x = floats(2, size, 4)
    found = []
    for wanted in range(window, size * stride + window + 1):
        conv = Conv1DTranspose(3, window, stride=stride, padding=padding, output_shape=wanted, with_bias=False)
        large = jax.ShapeDtypeStruct((2, wanted, 3), jnp.float32)
        forward = Conv1D(4, window, stride=stride, padding=padding, with_bias=False).init(large)
        if jax.eval_shape(forward, large).shape[1] != size:
            with pytest.raises(ValueError, match=f"conv1d_transpose: an output of {wanted} positions"):
                conv(x)
            continue
        conv = conv.init(x)
        conv.set_parameters({"w": jnp.swapaxes(forward.w[::-1], 1, 2)})
        (expected,) = jax.linear_transpose(forward, large)(x)
        assert_close(conv(x), expected)
        found.append(wanted)
    assert len(found) == stride


def test_no_positions() -> None:
    x = jnp.ones([2, 0, 3])
    layers: list[Any] = [
        Conv1D(3, 3),
        Conv1D(3, 3, padding="VALID"),
        Conv1DTranspose(3, 3, stride=2),
        DepthwiseConv1D(3),
        MaxPool(2),
        AvgPool(3, 1, "SAME"),
    ]
    assert {layer(x).shape for layer in layers} == {x.shape}


def test_output_shape_by_axis() -> None:
    x = floats(2, 4, 3, 3)
    assert Conv2DTranspose(2, 3, stride=2, output_shape=[8, 5])(x).shape == (2, 8, 5, 2)
    assert Conv2DTranspose(2, 3, stride=2, output_shape=5, data_format="NCHW")(x[:, :3]).shape == (2, 2, 5, 5)


@pytest.mark.slow
def test_layers_of_nnx() -> None:
    x = floats(2, 4, 5, 3)
    pairs: list[tuple[Any, Any]] = [
        (Conv2D(2, [3, 2], padding="REFLECT"), flax.nnx.Conv(3, 2, (3, 2), padding="REFLECT", rngs=flax.nnx.Rngs(0))),
        (Conv2DTranspose(2, [3, 2], stride=2), flax.nnx.ConvTranspose(3, 2, (3, 2), 2, rngs=flax.nnx.Rngs(0))),
    ]
    for ours, theirs in pairs:
        theirs.kernel = flax.nnx.Param(ours.init(x).w)
        assert_close(ours(x), theirs(x))


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_transposed_convolution_with_the_weights_of_keras(padding: str) -> None:
    x = floats(2, 4, 5, 3)
    conv = Conv2DTranspose(2, [3, 2], stride=2, padding=padding, b_init=random_bias).init(x)
    theirs = keras.layers.Conv2DTranspose(2, [3, 2], strides=2, padding=padding.lower())
    theirs.build(x.shape)
    theirs.set_weights([np.swapaxes(np.flip(conv.w, (0, 1)), 2, 3), np.asarray(conv.b)])
    assert_close(conv(x), cast(Any, theirs(x)), rtol=1e-4, atol=1e-5)


def test_numbers_as_padding_of_pytorch() -> None:
    """Equinox has the padding of PyTorch, and weights `[out, in, *window]` that are applied as they are."""
    x, window = floats(3, 5, 6), (3, 2)
    conv = Conv2DTranspose(
        2, window, stride=2, padding=[(k - 1 - 1, k - 1 - 1) for k in window], data_format="CHW", b_init=random_bias
    ).init(x)
    theirs = equinox.nn.ConvTranspose2d(3, 2, window, stride=2, padding=1, key=jax.random.key(0))
    theirs = equinox.tree_at(
        lambda layer: (layer.weight, layer.bias), theirs, (jnp.transpose(conv.w, (3, 2, 0, 1)), conv.b[:, None, None])
    )
    assert_close(conv(x), theirs(x))


# ---------------------------------------------------------------------------------------------------------------------
# Depthwise and separable convolutions
# ---------------------------------------------------------------------------------------------------------------------


def keras_layer(layer: Any, arrange: Any, shape: tuple[int, ...]) -> Any:
    """A layer of Keras as a function of our parameters, which `arrange` lists in its order."""
    layer.build(shape)
    return lambda params, x: layer.stateless_call(arrange(params), [], x)[0]


OF_KERAS: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    (1, {}, {"padding": "same"}),
    (1, {"padding": "VALID", "rate": 2}, {"padding": "valid", "dilation_rate": 2}),
    (2, {"channel_multiplier": 2, "stride": 2}, {"depth_multiplier": 2, "strides": 2, "padding": "same"}),
    (2, {"padding": "VALID", "rate": [2, 2]}, {"padding": "valid", "dilation_rate": [2, 2]}),
    (2, {"channel_multiplier": 3, "with_bias": False}, {"depth_multiplier": 3, "use_bias": False, "padding": "same"}),
    (2, {"data_format": "NCHW"}, {"data_format": "channels_first", "padding": "same"}),
]


@pytest.mark.parametrize(("n", "options", "theirs"), OF_KERAS, ids=str)
@pytest.mark.usefixtures("default_promotion")
def test_depthwise_convolution(n: int, options: dict[str, Any], theirs: dict[str, Any]) -> None:
    x = floats(2, *(6, 5)[:n], 3)
    x = np.moveaxis(x, -1, 1) if "data_format" in options else x
    ours: Any = (DepthwiseConv1D, DepthwiseConv2D)[n - 1]
    conv = ours([3, 2][:n], b_init=random_bias, **options).init(x)
    layer: Any = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)[n - 1]

    def arrange(params: Any) -> list[Any]:
        kernel = params["w"].reshape(*params["w"].shape[:-2], 3, -1)
        return [kernel, *([params["b"]] if "b" in params else [])]

    assert_agrees(conv, keras_layer(layer([3, 2][:n], **theirs), arrange, x.shape), x)


@pytest.mark.parametrize(("n", "options", "theirs"), OF_KERAS, ids=str)
@pytest.mark.usefixtures("default_promotion")
def test_separable_convolution(n: int, options: dict[str, Any], theirs: dict[str, Any]) -> None:
    x = floats(2, *(6, 5)[:n], 3)
    x = np.moveaxis(x, -1, 1) if "data_format" in options else x
    ours: Any = (SeparableConv1D, SeparableConv2D)[n - 1]
    conv = ours(4, [3, 2][:n], b_init=random_bias, **options).init(x)
    assert "b" not in conv.depthwise.get_parameters()
    layer: Any = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)[n - 1]

    def arrange(params: Any) -> list[Any]:
        first, second = params["depthwise"], params["pointwise"]
        kernel = first["w"].reshape(*first["w"].shape[:-2], 3, -1)
        return [kernel, second["w"], *([second["b"]] if "b" in second else [])]

    assert_agrees(conv, keras_layer(layer(4, [3, 2][:n], **theirs), arrange, x.shape), x)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"padding": "CIRCULAR"}, (2, 5, 3)),
        ({"padding": "REFLECT", "stride": 2}, (2, 3, 5, 3)),
        ({"padding": "CAUSAL", "rate": 2, "data_format": "channels_first"}, (2, 3, 5)),
        ({"padding": [(2, 0)], "data_format": "WC"}, (5, 3)),
    ],
    ids=str,
)
def test_a_depthwise_convolution_is_one_of_a_group_for_each_channel(
    options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    x = floats(*shape)
    conv = DepthwiseConv1D(3, channel_multiplier=2, b_init=random_bias, **options).init(x)
    grouped = Conv1D(6, 3, groups=3, **options).init(x)
    grouped.set_parameters(conv.get_parameters())
    assert_same(conv(x), grouped(x))
    separable = SeparableConv1D(4, 3, channel_multiplier=2, **options).init(x)
    separable.depthwise.set_parameters({"w": conv.w})
    pointwise = Conv1D(4, 1, data_format=options.get("data_format", "channels_last")).init(grouped(x))
    pointwise.set_parameters(separable.pointwise.get_parameters())
    grouped.set_parameters({"b": jnp.zeros(6)})
    assert_close(separable(x), pointwise(grouped(x)))


def test_initializers() -> None:
    x = floats(1, 4, 4, 8)
    for layer in (
        Conv2DTranspose(3, 2, w_init=jnp.ones, b_init=jnp.ones),
        DepthwiseConv2D(2, w_init=jnp.ones, b_init=jnp.ones),
        SeparableConv2D(3, 2, w_init=jnp.ones, b_init=jnp.ones),
    ):
        assert all((leaf == 1).all() for leaf in jax.tree.leaves(layer.init(x).get_parameters()))
    scales = {
        Conv2DTranspose(300, 5): 1 / np.sqrt(25 * 8),
        DepthwiseConv2D(5, channel_multiplier=50): 1 / 5,
        SeparableConv2D(300, 5, channel_multiplier=50): 1 / 20,
    }
    for layer, scale in scales.items():
        w = layer.init(x).pointwise.w if isinstance(layer, SeparableConv2D) else layer.init(x).w
        np.testing.assert_allclose(jnp.std(w), scale, rtol=0.03)


# ---------------------------------------------------------------------------------------------------------------------
# Pooling
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.usefixtures("default_promotion")
def test_pooling(seed: int) -> None:
    random, n = np.random.default_rng(200 + seed), 1 + seed % 3
    window, strides = (tuple(random.integers(1, 4, n).tolist()) for _ in range(2))
    explicit = [(size - 1, int(random.integers(size))) for size in window]
    padding: Any = ["SAME", "VALID", explicit][seed // 3 % 3]
    options = {"padding": padding} | ({"strides": strides} if random.integers(2) else {})
    first, x = bool(random.integers(2)), random_input(random, n, padding, window)
    data_format = layout(n, first, batch=x.ndim > n + 1)
    largest, inside = seed % 4 == 0, seed % 2 == 1
    if largest:
        pool: Any = MaxPool(window, data_format=data_format, **options)
    else:
        pool = AvgPool(window, data_format=data_format, count_include_padding=not inside, **options)

    def reference(_: Any, x: Any) -> Any:
        theirs: Any = {"window_shape": window, "padding": padding, "strides": options.get("strides", window)}
        one_batch = x.reshape(math.prod(x.shape[: -1 - n]), *x.shape[-1 - n :])
        if largest:
            y = flax.linen.max_pool(one_batch, **theirs)
        else:
            y = flax.linen.avg_pool(one_batch, count_include_pad=not inside, **theirs)
        return y.reshape(*x.shape[: -1 - n], *y.shape[1:])

    x = np.moveaxis(x, -1, -1 - n) if first else x
    assert_agrees(pool.init(x), moved(reference, n, first), x)


@pytest.mark.parametrize("n", [1, 3])
def test_the_input_says_how_many_spatial_axes_there_are(n: int) -> None:
    x = floats(2, *(5, 4, 3)[:n], 3)
    pairs: list[tuple[Any, Any]] = [
        (MaxPool(2, 1, 1), MaxPool([2] * n, 1, 1)),
        (AvgPool(2, padding="SAME"), AvgPool(2, [2] * n, "SAME")),
        (AvgPool(2, padding=1), AvgPool(2, padding=[(1, 1)] * n)),
        (GlobalAvgPool(), GlobalAvgPool(data_format=layout(n, first=False))),
        (AdaptiveAvgPool(2), AdaptiveAvgPool([2] * n)),
        (Upsample(2), Upsample([2] * n)),
        (Resize(4), Resize([4] * n)),
    ]

    @jax.jit
    def run(x: Any) -> Any:
        return [(pool(x), known(x), known(x[None, None])[0, 0]) for pool, known in pairs]

    for pool, known in pairs:
        pool.init(x), known.init(x)
    for unknown, known, of_many_axes in run(x):
        assert_close(unknown, known)
        assert_close(of_many_axes, known)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (MaxPool, {"window_shape": 2}),
        (AvgPool, {"window_shape": 2}),
        (AdaptiveAvgPool, {"output_shape": 3}),
        (Upsample, {"scale": 2}),
        (Resize, {"shape": 4}),
        (GlobalAvgPool, {"keepdims": True}),
        (GlobalMaxPool, {"keepdims": True}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_channels_first(layer: Any, options: dict[str, Any]) -> None:
    x = floats(2, 5, 4, 3)
    expected = layer(**options)(x)
    for data_format in ("channels_first", "NCHW"):
        y = layer(**options, data_format=data_format)(np.moveaxis(x, -1, 1))
        assert_close(jnp.moveaxis(y, 1, -1), expected)


@pytest.mark.slow
def test_the_default_average_is_that_of_keras() -> None:
    x = floats(2, 5, 4, 3)
    theirs = keras.layers.AveragePooling2D(3, strides=2, padding="same")
    assert_close(AvgPool(3, 2, "SAME")(x), cast(Any, theirs(x)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, bool])
def test_the_maximum_of_integers_and_bools(dtype: Any) -> None:
    x = np.array([-3, -2, -7, -1, 0], np.int32).astype(dtype)[None, :, None]
    pooled = MaxPool(2, padding=1)(x)
    assert pooled.dtype == dtype
    padded = [x[0, :1, 0], x[0, 1:3, 0], x[0, 3:, 0]]
    assert pooled[0, :, 0].tolist() == [part.max() for part in padded]
    assert GlobalMaxPool()(x).dtype == dtype and GlobalMaxPool()(x)[0, 0] == x.max()


def test_averages_of_integers_have_the_dtype_of_the_layer() -> None:
    x = np.arange(4)[None, :, None]
    for dtype in (None, jnp.bfloat16):
        layers: list[Any] = [
            AvgPool(2, dtype=dtype),
            GlobalAvgPool(dtype=dtype),
            AdaptiveAvgPool(2, dtype=dtype),
            Upsample(2, "bilinear", dtype=dtype),
            Resize(2, dtype=dtype),
        ]
        assert {layer(x).dtype for layer in layers} == {jnp.dtype(dtype or jnp.float32)}
    assert {layer(x).dtype for layer in (Resize(2, "nearest"), Upsample(2))} == {jnp.dtype(jnp.int32)}


def test_the_gradient_of_equal_maxima_goes_to_one_of_them() -> None:
    gradient = jax.grad(lambda x: MaxPool(3)(x).sum())(jnp.ones([1, 3, 1]))
    assert sorted(gradient[0, :, 0].tolist()) == [0, 0, 1]


def test_global_pooling() -> None:
    x = floats(2, 5, 4, 3)
    for keepdims in (False, True):
        assert_agrees(
            GlobalAvgPool(keepdims=keepdims).init(x), lambda _, x, k=keepdims: jnp.mean(x, (1, 2), keepdims=k), x
        )
        assert_agrees(
            GlobalMaxPool(keepdims=keepdims).init(x), lambda _, x, k=keepdims: jnp.max(x, (1, 2), keepdims=k), x
        )
    assert_close(GlobalAvgPool(data_format="CHW")(x[0]), x[0].mean((1, 2)))
    assert GlobalAvgPool()(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("size", [1, 2, 5, 7])
@pytest.mark.parametrize("wanted", [1, 3, 5, 8])
def test_adaptive_average(size: int, wanted: int) -> None:
    def along_first_axis(x: Any) -> Any:
        windows = [(math.floor(i * size / wanted), math.ceil((i + 1) * size / wanted)) for i in range(wanted)]
        return jnp.stack([jnp.mean(x[start:end], 0) for start, end in windows])

    def reference(_: Any, x: Any) -> Any:
        return jnp.moveaxis(along_first_axis(jnp.moveaxis(x, 1, 0)), 0, 1)

    x = floats(2, size, 3)
    assert_agrees(AdaptiveAvgPool(wanted).init(x), reference, x)


@pytest.mark.slow
def test_adaptive_average_of_equal_parts_is_that_of_equinox() -> None:
    x = floats(3, 6, 8)
    theirs = equinox.nn.AdaptiveAvgPool2d([3, 2])
    assert_close(AdaptiveAvgPool([3, 2], data_format="CHW")(x), theirs(x))
    assert_close(AdaptiveAvgPool([6, 8], data_format="CHW")(x), jnp.asarray(x))


def test_an_infinity_stays_in_its_windows() -> None:
    x = jnp.ones([1, 5, 1]).at[0, 0].set(jnp.inf)
    assert AdaptiveAvgPool(3)(x)[0, :, 0].tolist() == [jnp.inf, 1, 1]
    assert AvgPool(2, padding=1)(x)[0, :, 0].tolist() == [jnp.inf, 1, 1]


def test_averages_of_half_precision_are_computed_in_single() -> None:
    x = jnp.ones([1, 1000, 1], jnp.bfloat16)  # 256 + 1 is 256 in bfloat16
    for pool in (AvgPool(1000), GlobalAvgPool(), AdaptiveAvgPool(1)):
        y = pool(x)
        assert y.dtype == jnp.bfloat16 and (y == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# Resizing
# ---------------------------------------------------------------------------------------------------------------------


def interpolated(x: Any, axis: int, size: int) -> Any:
    """Linear interpolation between the centres of pixels, without antialiasing."""
    centres = np.clip((np.arange(size) + 0.5) * x.shape[axis] / size - 0.5, 0, x.shape[axis] - 1)
    before = np.floor(centres).astype(int)
    after = np.minimum(before + 1, x.shape[axis] - 1)
    weight = (centres - before).reshape([-1 if other == axis else 1 for other in range(x.ndim)]).astype(np.float32)
    return jnp.take(x, before, axis) * (1 - weight) + jnp.take(x, after, axis) * weight


def test_resize() -> None:
    x = floats(2, 4, 5, 3)
    bilinear = Resize([3, 7], antialias=False).init(x)
    assert_agrees(bilinear, lambda _, x: interpolated(interpolated(x, 1, 3), 2, 7), x)
    assert np.abs(Resize([3, 7])(x) - bilinear(x)).max() > 0.1
    assert_same(Resize([4, 5])(x), jnp.asarray(x))
    constant = Resize([6, 2], "lanczos3")(np.ones([1, 4, 5, 1], np.float32))
    assert_close(constant, jnp.ones([1, 6, 2, 1]))


@pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic", "cubic-pytorch", "lanczos5"])
def test_resize_has_the_methods_of_jax(method: str) -> None:
    x = floats(3, 4, 5)
    resized = Resize([6, 2], method, data_format="CHW")(x)
    for image, original in zip(resized, x, strict=True):
        assert_close(image, jax.image.resize(original, (6, 2), method))


def test_upsample() -> None:
    x = floats(2, 4, 3, 3)
    assert_agrees(Upsample([2, 3]).init(x), lambda _, x: jnp.repeat(jnp.repeat(x, 2, 1), 3, 2), x)
    assert_close(Upsample(2, "bilinear")(x), cast(Any, keras.layers.UpSampling2D(2, interpolation="bilinear")(x)))
    labels = np.arange(3, dtype=np.uint8)[None, :, None]
    assert_same(Upsample(2)(labels), jnp.asarray(np.repeat(labels, 2, 1)))
    assert Upsample(2, "bilinear")(labels).dtype == jnp.float32
    assert Upsample(2, "bilinear")(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    by_pytorch = jax.image.resize(x[0, ..., 0], (8, 6), "cubic-pytorch", antialias=False)
    assert_close(Upsample(2, "cubic-pytorch")(x)[0, ..., 0], by_pytorch)


# ---------------------------------------------------------------------------------------------------------------------
# What the layers have in common
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "layer",
    # Not those in groups: XLA's partitioner doubles the gradient of a kernel of which each device has some groups.
    [Conv1D(4, 3, padding="CIRCULAR"), Conv1DTranspose(4, 3, stride=2)],
    ids=lambda layer: type(layer).__name__,
)
def test_kernels_that_are_sharded(kind: Any, layer: Any) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    x, layer = jnp.asarray(floats(4, 3, 5, 2)), layer.copy().init(floats(4, 3, 5, 2))
    expected = elegy.value_and_grad(lambda x: jnp.sum(layer(x) ** 2), modules=layer)(x)

    def on_mesh(leaf: Any, *spec: Any) -> Any:
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    placed = jax.tree.map(lambda leaf: on_mesh(leaf, *[None] * (leaf.ndim - 1), *["model"] * (leaf.ndim > 1)), layer)
    found = elegy.jit(elegy.value_and_grad(lambda x: jnp.sum(placed(x) ** 2), modules=placed))(on_mesh(x, "data"))
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Conv2D(2, 3, padding="CAUSAL"), ValueError, "Conv2D: padding must be .*'REFLECT' or .*got 'CAUSAL'"),
        (lambda: Conv2D(2, 3, data_format="NHC"), ValueError, "must be one of .*, NHWC, NCHW, HWC, CHW, got 'NHC'"),
        (
            lambda: Conv2D(2, 3)(jnp.ones([4, 8, 8])),
            ValueError,
            r'4 axes, NHWC, got shape \(4, 8, 8\).\n(.|\n)*Conv2D\(\.\.\., data_format="HWC"\)',
        ),
        (
            lambda: Conv1D(2, 3, data_format="CW")(jnp.ones([4, 8, 8])),
            ValueError,
            r'2 axes, CW, got shape \(4, 8, 8\).\n.*batches .* Conv1D\(\.\.\., data_format="NCW"\)',
        ),
        (lambda: Conv1D(2, 3, data_format="CW")(jnp.ones([4])), ValueError, r"conv1d: .* 2 axes, CW, got shape \(4,\)"),
        (
            lambda: Conv1D(2, 3, padding="REFLECT")(jnp.ones([1, 0, 2])),
            ValueError,
            r"conv1d: .*\(1, 0, 2\) has no elements to pad it with",
        ),
        (
            lambda: Conv2D(2, 3, rate=2, padding="VALID")(jnp.ones([1, 8, 4, 1])),
            ValueError,
            r"conv2d: the window covers \(5, 5\) .* of shape \(1, 8, 4, 1\), .* empty",
        ),
        (lambda: DepthwiseConv1D(3, padding="VALID")(jnp.ones([1, 2, 1])), ValueError, r"depthwise_conv1d: .*\(3,\)"),
        (lambda: Conv1DTranspose(2, 5, padding=1)(jnp.ones([1, 2, 1])), ValueError, r"covers \(5,\) positions"),
        (lambda: MaxPool(3)(jnp.ones([1, 2, 1])), ValueError, r"max_pool: the window covers \(3,\) positions"),
        (lambda: ConvNDTranspose(2, 3), TypeError, "base class of Conv1DTranspose, Conv2DTranspose and"),
        (lambda: Conv2DTranspose(0, 3), ValueError, "nn.Conv2DTranspose: output_channels must be a positive integer"),
        (lambda: Conv2DTranspose(2, [3]), ValueError, "nn.Conv2DTranspose: kernel_shape must be an integer or 2"),
        (lambda: Conv2DTranspose(2, 3, stride=0), ValueError, "nn.Conv2DTranspose: stride must be a positive"),
        (lambda: Conv2DTranspose(2, 3, rate=0), ValueError, "nn.Conv2DTranspose: rate must be a positive"),
        (lambda: Conv2DTranspose(2, 3, output_shape=[1]), ValueError, "nn.Conv2DTranspose: output_shape must be an"),
        (lambda: Conv2DTranspose(2, 3, padding="CAUSAL"), ValueError, "padding must be 'SAME', 'VALID', 'CIRCULAR' or"),
        (lambda: Conv1DTranspose(2, 3, padding="CIRCULAR")(jnp.ones([1, 0, 2])), ValueError, "no elements to pad it"),
        (
            lambda: Conv2DTranspose(2, 3, padding=1, output_shape=4),
            ValueError,
            "Conv2DTranspose: output_shape=4 goes with padding 'SAME' or 'VALID', got padding=1",
        ),
        (lambda: Conv2DTranspose(2, 3, data_format="NWC"), ValueError, "nn.Conv2DTranspose: data_format must be"),
        (lambda: Conv2DTranspose(2, 3, with_bias=cast(Any, 1)), TypeError, "with_bias must be True or False, got 1"),
        (lambda: Conv2DTranspose(1, 8, cast(Any, 3)), TypeError, r"channels .* are inferred: Conv2DTranspose\(8, 3\)"),
        (lambda: Conv2DTranspose(2, 3)(jnp.ones([4, 8, 8])), ValueError, r"conv2d_transpose: .* 4 axes, NHWC"),
        (
            lambda: Conv2DTranspose(2, 3, mask=jnp.ones([3]))(jnp.ones([1, 4, 4, 3])),
            ValueError,
            "conv2d_transpose: mask has shape",
        ),
        (
            lambda: Conv1DTranspose(2, 3, stride=2, output_shape=9)(jnp.ones([1, 4, 3])),
            ValueError,
            r"output of 9 positions, as output_shape=\(9,\) .* 4 positions .* between 7 and 8",
        ),
        (lambda: DepthwiseConv2D(3, cast(Any, 2)), TypeError, r"by position there is kernel_shape only, got \(3, 2\)"),
        (lambda: DepthwiseConv2D([3]), ValueError, "nn.DepthwiseConv2D: kernel_shape must be an integer or 2"),
        (lambda: DepthwiseConv2D(3, channel_multiplier=0), ValueError, "DepthwiseConv2D: channel_multiplier must be a"),
        (lambda: DepthwiseConv2D(3, padding="CAUSAL"), ValueError, "nn.DepthwiseConv2D: padding must be"),
        (lambda: DepthwiseConv2D(3, data_format="NWC"), ValueError, "nn.DepthwiseConv2D: data_format must be"),
        (lambda: DepthwiseConv2D(3, with_bias=cast(Any, 1)), TypeError, "nn.DepthwiseConv2D: with_bias must be"),
        (lambda: DepthwiseConv2D(3)(jnp.ones([4, 8, 8])), ValueError, r"depthwise_conv2d: .* 4 axes, NHWC"),
        (lambda: SeparableConv2D(0, 3), ValueError, "nn.SeparableConv2D: output_channels must be a positive integer"),
        (lambda: SeparableConv2D(2, [3]), ValueError, "nn.SeparableConv2D: kernel_shape must be"),
        (lambda: SeparableConv2D(2, 3, channel_multiplier=0), ValueError, "SeparableConv2D: channel_multiplier must"),
        (lambda: SeparableConv2D(2, 3, stride=0), ValueError, "nn.SeparableConv2D: stride must be"),
        (lambda: SeparableConv2D(2, 3, rate=0), ValueError, "nn.SeparableConv2D: rate must be"),
        (lambda: SeparableConv2D(2, 3, padding="FULL"), ValueError, "nn.SeparableConv2D: padding must be"),
        (lambda: SeparableConv2D(2, 3, with_bias=cast(Any, 1)), TypeError, "nn.SeparableConv2D: with_bias must be"),
        (lambda: SeparableConv2D(2, 3, data_format="NWC"), ValueError, "nn.SeparableConv2D: data_format must be"),
        (lambda: SeparableConv2D(1, 8, cast(Any, 3)), TypeError, r"channels .* are inferred: SeparableConv2D\(8, 3\)"),
        (lambda: SeparableConv2D(2, 3)(jnp.ones([4, 8, 8])), ValueError, r"separable_conv2d: the input of SeparableC"),
        (lambda: MaxPool(0), ValueError, "nn.MaxPool: window_shape must be a positive integer, got 0"),
        (
            lambda: MaxPool([2, 2, 1, 1]),
            ValueError,
            r"MaxPool: there are one, two or three .* for 4, \[2, 2, 1, 1\]",
        ),
        (lambda: MaxPool([2], data_format="NHWC"), ValueError, "nn.MaxPool: window_shape must be an integer or 2"),
        (lambda: MaxPool([2], strides=[2, 2]), ValueError, "nn.MaxPool: strides must be an integer or 1"),
        (lambda: MaxPool(2, padding="FULL"), ValueError, "nn.MaxPool: padding must be 'SAME', 'VALID' or numbers"),
        (lambda: MaxPool(2, padding="CAUSAL"), ValueError, "nn.MaxPool: padding must be 'SAME', 'VALID' or numbers"),
        (
            lambda: MaxPool([2, 3], padding=2),
            ValueError,
            r"MaxPool: padding must be less than window_shape=\[2, 3\]",
        ),
        (lambda: AvgPool(2, padding=[(0, -1)]), ValueError, "nn.AvgPool: padding must be less .* not negative"),
        (lambda: MaxPool(2, data_format="NHC"), ValueError, "nn.MaxPool: data_format must be .*, got 'NHC'"),
        (lambda: AvgPool(2, count_include_padding=cast(Any, 1)), TypeError, "AvgPool: count_include_padding must be"),
        (lambda: MaxPool(2)(jnp.ones([3, 3])), ValueError, r"max_pool: the input of MaxPool .*, got shape \(3, 3\)"),
        (
            lambda: MaxPool(2)(jnp.ones([1, 1, 3, 3, 3, 1])),
            ValueError,
            r'max_pool: .*got shape \(1, 1, 3, 3, 3, 1\).\n.*several axes of the batch, say data_format="NHWC"',
        ),
        (lambda: MaxPool([2, 2])(jnp.ones([8, 8, 3])), ValueError, r"max_pool: .* 4 axes, NHWC, got shape \(8, 8, 3\)"),
        (lambda: MaxPool(2, padding=1)(jnp.ones([1, 0, 3])), ValueError, "max_pool: .* no elements but the padding"),
        (lambda: MaxPool(2)(jnp.ones([1, 4, 3], jnp.complex64)), TypeError, "max_pool: there is no largest of complex"),
        (lambda: GlobalMaxPool(keepdims=cast(Any, 1)), TypeError, "nn.GlobalMaxPool: keepdims must be True or False"),
        (lambda: GlobalMaxPool(data_format="C"), ValueError, "nn.GlobalMaxPool: data_format must be"),
        (lambda: GlobalMaxPool()(jnp.ones([2, 0, 3])), ValueError, "global_max_pool: .* no positions"),
        (
            lambda: GlobalMaxPool()(jnp.ones([1, 4, 3], jnp.complex64)),
            TypeError,
            "global_max_pool: there is no largest",
        ),
        (lambda: GlobalAvgPool()(jnp.ones([2, 0, 3])), ValueError, "global_avg_pool: .* no positions"),
        (lambda: GlobalAvgPool()(jnp.ones([2, 3])), ValueError, "global_avg_pool: the input of GlobalAvgPool must"),
        (lambda: AdaptiveAvgPool(0), ValueError, "nn.AdaptiveAvgPool: output_shape must be a positive integer"),
        (lambda: AdaptiveAvgPool(2)(jnp.ones([2, 0, 3])), ValueError, "adaptive_avg_pool: .* no positions to average"),
        (lambda: Upsample(0), ValueError, "nn.Upsample: scale must be a positive integer"),
        (lambda: Upsample(2, "bilinea"), ValueError, "nn.Upsample: method must be one .*, got 'bilinea'"),
        (lambda: Upsample(2)(jnp.ones([2, 0, 3])), ValueError, "upsample: .* no positions to take values from"),
        (lambda: Resize(0), ValueError, "nn.Resize: shape must be a positive integer"),
        (lambda: Resize(2, "area "), ValueError, "nn.Resize: method must be one"),
        (lambda: Resize(2, antialias=cast(Any, 1)), TypeError, "nn.Resize: antialias must be True or False"),
        (lambda: Resize(2)(jnp.ones([2, 0, 3])), ValueError, "resize: .* no positions to take values from"),
    ],
)
def test_errors_name_the_layer(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
