"""Dense layers, and those that drop or rearrange elements.

Values and gradients are compared with those of Flax, Keras and Equinox; the same for every layer is in
tests/generic/test_every_layer.py.
"""

from collections.abc import Callable
from typing import Any, cast

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import scipy.special
from flax import nnx

import elegy
from elegy.nn import (
    GEGLU,
    GLU,
    MLP,
    AlphaDropout,
    Bilinear,
    Dropout,
    DropPath,
    Einsum,
    Embedding,
    Identity,
    Lambda,
    Linear,
    LinearGeneral,
    PReLU,
    Reshape,
    Sequential,
    SwiGLU,
)
from tests.helpers import assert_close, assert_same

pytestmark = pytest.mark.slow

NORMAL = elegy.initializers.RandomNormal()


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_agree(layer: Any, theirs: Callable[..., Any], *inputs: Any) -> None:
    """The outputs of an initialised layer, and the gradients of its parameters and of inputs of floats, are those of
    `theirs`, which is given the parameters as a dict, and the inputs."""
    parameters, rest = elegy.partition(layer)
    inputs = tuple(jnp.asarray(x) for x in inputs)

    def compare(function: Callable[..., Any], parameters: Any) -> Any:
        def loss(parameters: Any, floating: Any) -> Any:
            given = [x if y is None else y for x, y in zip(inputs, floating, strict=True)]
            y = function(parameters, *given)
            return jnp.sum(jnp.sin(y)), y

        floating = [x if jnp.issubdtype(x.dtype, jnp.inexact) else None for x in inputs]
        gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(parameters, floating)
        return y, gradients

    def ours(parameters: Any, *inputs: Any) -> Any:
        return elegy.combine(parameters, rest).apply(*inputs)[0]

    y, (of_ours, of_inputs) = jax.jit(lambda: compare(ours, parameters))()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, gradients = jax.jit(lambda: compare(theirs, layer.get_parameters(trainable=True)))()
    assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert_close((of_ours.get_parameters(), of_inputs), gradients, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Embedding
# ---------------------------------------------------------------------------------------------------------------------


def test_embedding_equals_those_of_others() -> None:
    """Also the gradient of a row that occurs several times."""
    ids = np.array([[3, 1, 3, 0], [3, 6, 0, 3]])
    embedding = Embedding(7, 4).init(ids)

    def of_flax(parameters: Any, ids: Any) -> Any:
        layer = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
        layer.embedding[...] = parameters["w"]
        return layer(ids)

    def of_keras(parameters: Any, ids: Any) -> Any:
        layer = keras.layers.Embedding(7, 4)
        layer.build()
        return layer.stateless_call([parameters["w"]], [], ids)[0]

    def of_equinox(parameters: Any, ids: Any) -> Any:
        return jax.vmap(jax.vmap(equinox.nn.Embedding(weight=parameters["w"])))(ids)

    for theirs in (of_flax, of_keras, of_equinox):
        assert_agree(embedding, theirs, ids)


def test_attend_equals_that_of_flax() -> None:
    embedding, query = Embedding(7, 4).init(0), floats(2, 3, 4)
    layer = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
    layer.embedding[...] = embedding.w
    assert_close(embedding.attend(query), layer.attend(jnp.asarray(query)))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_ids_of_any_integers(kind: Any) -> None:
    """A table of more rows than a small integer can count."""
    embedding = Embedding(300, 1, embedding_matrix=np.arange(300)[:, None])
    ids = np.array([[0, 1], [126, 127]], kind)
    expected = jnp.asarray(ids[..., None].astype(np.float32))
    assert_same(embedding(ids), expected)
    with jax.enable_x64(True):
        assert_same(embedding(jnp.asarray(ids)), expected)


def test_ids_that_are_scalars_or_none() -> None:
    embedding = Embedding(5, 2, embedding_matrix=np.arange(10).reshape(5, 2))
    for one in (3, np.int64(3), jnp.array(3)):
        assert_same(embedding(one), jnp.array([6.0, 7.0]))
    assert embedding(np.zeros([2, 0], int)).shape == (2, 0, 2)


@pytest.mark.parametrize("ids", [-1, 5, np.array([[0, 5]]), np.array([2**32]), np.array([2**64 - 1], np.uint64)])
def test_ids_out_of_range_of_numpy(ids: Any) -> None:
    wrong = int(np.max(np.abs(ids))) if np.ndim(ids) else ids
    message = f"embedding: the id {wrong} is out of range: .* vocab_size=5"
    with pytest.raises(IndexError, match=message):
        Embedding(5, 2).init(0)(ids)


@pytest.mark.parametrize("kind", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_ids_out_of_range_of_jax(kind: Any, transform: Any) -> None:
    """Their vectors are NaN, and the gradient has nothing from them."""
    embedding = Embedding(5, 2, embedding_matrix=np.arange(10).reshape(5, 2))
    ids = jnp.array([1, -1, 5, 1, 100], jnp.int32).astype(kind)
    parameters, rest = elegy.partition(embedding)

    def run(parameters: Any, ids: Any) -> Any:
        y = elegy.combine(parameters, rest).apply(ids)[0]
        return jnp.sum(y), y

    gradient, y = transform(jax.grad(run, has_aux=True))(parameters, ids)
    np.testing.assert_array_equal(y[:, 0], [2, np.nan, np.nan, 2, np.nan])
    np.testing.assert_array_equal(gradient.w, [[0, 0], [2, 2], [0, 0], [0, 0], [0, 0]])


def test_large_ids_do_not_wrap() -> None:
    with jax.enable_x64(True):
        embedding = Embedding(5, 2, dtype=jnp.float32).init(0)
        assert jnp.isnan(embedding(jnp.array([2**32, 2**63 - 1]))).all()
        assert jnp.isnan(embedding(jnp.array([2**64 - 1], jnp.uint64))).all()


def test_embedding_initialisation() -> None:
    embedding = Embedding(500, 400).init(0)
    np.testing.assert_allclose(jnp.std(embedding.w), 1 / 20, rtol=0.02)
    assert (Embedding(3, 2, w_init=jnp.ones).init(0).w == 1).all()
    reference = nnx.Embed(500, 400, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jnp.std(embedding.w), jnp.std(reference.embedding[...]), rtol=0.02)


def test_embedding_matrix() -> None:
    matrix = floats(5, 2)
    embedding = Embedding(5, 2, embedding_matrix=matrix)
    before = matrix.copy()
    matrix[:] = 0
    assert_same(embedding(np.arange(5)), jnp.asarray(before))
    assert set(embedding.get_parameters(trainable=True)) == {"w"}
    given = jnp.asarray(before)
    jax.jit(lambda module: module, donate_argnums=0)(Embedding(5, 2, embedding_matrix=given))
    assert_same(given, jnp.asarray(before))


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        (np.float16, None, jnp.float16),
        (np.float32, jnp.bfloat16, jnp.bfloat16),
        (np.int32, None, jnp.float32),
        (np.int32, jnp.float16, jnp.float16),
    ],
)
def test_dtype_of_an_embedding_matrix(kind: Any, dtype: Any, expected: Any) -> None:
    embedding = Embedding(3, 2, embedding_matrix=np.ones([3, 2], kind), dtype=dtype)
    assert embedding(np.array([0])).dtype == embedding.attend(floats(4, 2)).dtype == expected


def test_an_embedding_matrix_inside_call() -> None:
    matrix = floats(5, 2)

    class Net(elegy.Module):
        def call(self, ids: Any) -> Any:
            return Embedding(5, 2, embedding_matrix=matrix)(ids)

    net: Any = Net().init(jax.ShapeDtypeStruct([3], jnp.int32))
    assert_same(net.embedding.w, jnp.asarray(matrix))
    assert_same(jax.jit(lambda net, ids: net(ids))(net, jnp.arange(5)), jnp.asarray(matrix))


def test_tied_weights() -> None:
    """There is one parameter, whichever method runs first, and both uses add to its gradient."""

    class Language(elegy.Module):
        def call(self, ids: Any) -> Any:
            embedding = Embedding(7, 4)
            return embedding.attend(jnp.tanh(embedding(ids)))

    ids = np.array([[3, 1, 3, 0]])
    model = Language().init(ids)

    def theirs(parameters: Any, ids: Any) -> Any:
        w = parameters["embedding"]["w"]
        return jnp.tanh(w[ids]) @ w.T

    assert_agree(model, theirs, ids)
    attending = Embedding(7, 4)
    assert attending.attend(floats(2, 4)).shape == (2, 7)
    assert attending(np.array([1])).shape == (1, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Linear maps of several axes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "output_shape", "axis", "with_bias"),
    [
        ((3, 5), 4, -1, True),
        ((5,), (2, 3), -1, True),
        ((2, 3, 4, 5), (2, 3), (-2, -1), True),
        ((2, 3, 4, 5), 6, (-1, 1), False),
        ((2, 3, 4), (2, 1), (0,), True),
        ((2, 3), 4, (0, 1), True),
        ((0, 3, 4), (2, 2), 1, True),
    ],
    ids=str,
)
def test_linear_general(shape: Any, output_shape: Any, axis: Any, with_bias: bool) -> None:
    x = floats(*shape)
    layer = LinearGeneral(output_shape, axis=axis, with_bias=with_bias, b_init=NORMAL).init(x)

    def theirs(parameters: Any, x: Any) -> Any:
        named = {{"w": "kernel", "b": "bias"}[name]: value for name, value in parameters.items()}
        return flax.linen.DenseGeneral(output_shape, axis, use_bias=with_bias).apply({"params": named}, x)

    assert_agree(layer, theirs, x)


def test_linear_general_without_new_axes() -> None:
    layer, x = LinearGeneral(()), floats(2, 3)
    y = layer(x)
    assert layer.w.shape == (3,) and layer.b.shape == ()
    assert_close(y, jnp.asarray(x) @ layer.w)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda **options: LinearGeneral((30, 20), axis=(1, 2), **options), floats(1, 20, 20)),
        (lambda **options: Einsum("bij,kilj->bkl", (30, 20), **options), floats(1, 20, 20)),
        (lambda **options: Bilinear(600, **options), (floats(1, 20), floats(1, 20))),
    ],
    ids=["LinearGeneral", "Einsum", "Bilinear"],
)
def test_kernels_are_drawn_as_matrices(make: Any, x: Any) -> None:
    """The inputs of a unit are all that is summed over."""
    inputs = x if isinstance(x, tuple) else (x,)
    layer = make().init(*inputs)
    np.testing.assert_allclose(jnp.std(layer.w), 1 / 20, rtol=0.02)
    asked = []

    def recorded(shape: Any, dtype: Any) -> Any:
        asked.append(tuple(shape))
        return jnp.zeros(shape, dtype)

    for initializer in (recorded, jnp.ones, lambda: jnp.ones(layer.w.shape), np.ones(layer.w.shape, np.float32)):
        assert make(w_init=initializer).init(*inputs).w.shape == layer.w.shape
    assert set(asked) == {(400, 600)}
    orthogonal = make(w_init=jax.nn.initializers.orthogonal()).init(*inputs).w
    rows = orthogonal if layer.w.shape[0] == 20 else jnp.transpose(orthogonal, (1, 3, 0, 2))
    rows = rows.reshape(400, 600)
    assert_close(rows @ rows.T, jnp.eye(400), atol=1e-4)


@pytest.mark.parametrize(
    ("equation", "shape", "output_shape", "bias_axes"),
    [
        ("ab,bc->ac", (3, 5), 4, "c"),
        ("ab,bc->ac", (3, 5), 4, None),
        ("abc,cd->abd", (2, 3, 5), (None, 4), "d"),
        ("abc,cde->abde", (2, 3, 5), (None, 2, 4), "de"),
        ("abc,cde->abed", (2, 3, 5), (3, 4, 2), "ed"),
        ("btnh,nhd->btd", (2, 3, 2, 5), (None, 4), "d"),
        ("abc,bcd->abd", (2, 3, 5), (3, 4), "bd"),
        ("abc,bd->adc", (2, 3, 5), (4, None), "d"),
        ("...x,xy->...y", (2, 3, 5), 4, "y"),
        ("...xz,xy->...zy", (2, 3, 5), (5, 4), "zy"),
        ("ab...,bc->ac...", (2, 3, 4, 5), 6, "c"),
    ],
    ids=str,
)
def test_einsum_equals_that_of_keras(equation: str, shape: Any, output_shape: Any, bias_axes: Any) -> None:
    x = floats(*shape)
    layer = Einsum(equation, output_shape, bias_axes=bias_axes, b_init=NORMAL).init(x)
    reference = keras.layers.EinsumDense(equation, output_shape, bias_axes=bias_axes)
    reference.build(x.shape)

    def theirs(parameters: Any, x: Any) -> Any:
        variables = [parameters["w"]]
        if bias_axes:
            variables.append(parameters["b"].reshape(reference.bias.shape))  # theirs has axes of one element
        return reference.stateless_call(variables, [], x)[0]

    assert_agree(layer, theirs, x)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 1, 3, 5)])
def test_ellipsis_of_any_rank(shape: Any) -> None:
    x = floats(*shape)
    layer = Einsum("... d, d e -> ... e", 4, bias_axes="e", b_init=NORMAL).init(x)

    def theirs(parameters: Any, x: Any) -> Any:
        reference = nnx.Einsum("...d,de->...e", (5, 4), (4,), rngs=nnx.Rngs(0))
        reference.kernel[...], cast(Any, reference.bias)[...] = parameters["w"], parameters["b"]
        return reference(x)

    assert_agree(layer, theirs, x)


@pytest.mark.parametrize("seed", range(12))
def test_einsum_of_random_equations(seed: int) -> None:
    """Axes in any order and of all kinds: of the input, of the input and the weight (summed over or not), and new."""
    generator = np.random.default_rng(seed)
    letters = {"abcdefgh"[axis]: int(size) for axis, size in enumerate(generator.integers(1, 4, 8))}
    kept, own, summed, new = "abc"[: seed % 3 + 1], "d"[: seed % 2], "ef"[: seed // 2 % 3], "gh"[: seed // 3 % 2 + 1]

    def shuffled(*parts: str) -> list[str]:
        return list(generator.permutation([*"".join(parts)]))

    x, w, y = shuffled(kept, own, summed), shuffled(own, summed, new), shuffled(own, new, kept[1:])
    y.insert(0, kept[0])  # the batch
    bias = "".join(shuffled("".join(y))[: seed % 4])
    shape = [letters[letter] for letter in x]
    sizes = [letters[letter] if letter in w or generator.random() < 0.5 else None for letter in y[1:]]
    if seed % 4 == 3:
        x.insert(int(generator.integers(len(x) + 1)), "...")
        y.insert(int(generator.integers(1, len(y) + 1)), "...")
        shape[x.index("...") : x.index("...")] = [2, 3]
    equation = f"{''.join(x)},{''.join(w)}->{''.join(y)}"
    inputs = floats(*shape)
    layer = Einsum(equation, sizes, bias_axes=bias, b_init=NORMAL).init(inputs)

    expected = np.einsum(equation, inputs, np.asarray(layer.w), dtype=np.float64)
    if bias:
        of_bias = "".join(letter for letter in y if letter in bias)
        ones = np.ones_like(expected)
        expected = expected + np.einsum(f"{''.join(y)},{of_bias}->{''.join(y)}", ones, np.asarray(layer.b))
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-4, atol=1e-5)


def test_bias_in_the_middle_and_before_an_ellipsis() -> None:
    x = floats(2, 3, 4, 5)
    layer = Einsum("ab...d,bc->a...cd", (6, None), bias_axes="ac", b_init=NORMAL).init(x)

    def theirs(parameters: Any, x: Any) -> Any:
        return jnp.einsum("abed,bc->aecd", x, parameters["w"]) + parameters["b"][:, None, :, None]

    assert layer.b.shape == (2, 6)
    assert_agree(layer, theirs, x)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_bilinear(shape: Any, with_bias: bool) -> None:
    x, y = floats(*shape, 3), floats(*shape, 5, seed=1)
    layer = Bilinear(2, with_bias=with_bias, b_init=NORMAL).init(x, y)

    def theirs(parameters: Any, x: Any, y: Any) -> Any:
        outer = x[..., :, None] * y[..., None, :]
        return outer.reshape(*shape, 15) @ parameters["w"].reshape(15, 2) + parameters.get("b", jnp.zeros(2))

    assert_agree(layer, theirs, x, y)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: Embedding(8, 8), (np.arange(32).reshape(8, 4) % 8,)),
        (lambda: LinearGeneral((8, 8)), (floats(8, 4, 8),)),
        (lambda: Einsum("btd,dhk->bthk", (None, 8, 8), bias_axes="hk"), (floats(8, 4, 8),)),
        (lambda: Bilinear(8), (floats(8, 8), floats(8, 8, seed=1))),
        (lambda: SwiGLU(8), (floats(8, 8),)),
    ],
    ids=["Embedding", "LinearGeneral", "Einsum", "Bilinear", "SwiGLU"],
)
def test_explicit_meshes(make: Any, inputs: Any, axis: int) -> None:
    """The batch and the parameters are sharded over the same axis of a mesh."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    layer = make().init(*inputs, rng=0)

    def run(layer: Any, *inputs: Any) -> Any:
        return jax.value_and_grad(lambda layer: jnp.sum(layer.apply(*inputs)[0] ** 2))(layer)

    expected, gradients = run(layer, *inputs)

    def on_mesh(leaf: Any, axis: int) -> jax.Array:
        axes = [None] * leaf.ndim
        axes[axis] = cast(Any, "data")
        return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*axes)))

    with jax.set_mesh(mesh):
        sharded = jax.tree.map(lambda leaf: on_mesh(leaf, axis), layer)
        loss, of_sharded = jax.jit(run)(sharded, *(on_mesh(jnp.asarray(x), 0) for x in inputs))
    assert_close((loss, of_sharded.get_parameters()), (expected, gradients.get_parameters()), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Gated units, MLP
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "activation"),
    [
        (GLU, lambda x: 1 / (1 + np.exp(-x))),
        (SwiGLU, lambda x: x / (1 + np.exp(-x))),
        (GEGLU, lambda x: x * scipy.special.ndtr(x)),
        (lambda *args, **options: GLU(*args, activation=jax.nn.relu, **options), lambda x: np.maximum(x, 0)),
    ],
    ids=["GLU", "SwiGLU", "GEGLU", "activation"],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gated_units(layer: Any, activation: Any, with_bias: bool) -> None:
    x = floats(2, 3, 5)
    gated = layer(4, with_bias=with_bias, b_init=NORMAL).init(x)
    parameters = jax.tree.map(np.float64, gated.get_parameters())
    gate, value = (x @ part["w"] + part.get("b", 0) for part in (parameters["gate"], parameters["value"]))
    np.testing.assert_allclose(gated(x), activation(gate) * value, rtol=1e-5, atol=1e-6)
    assert (parameters["gate"]["w"] != parameters["value"]["w"]).any()


def test_gated_units_have_no_bias() -> None:
    for layer in (GLU, SwiGLU, GEGLU):
        assert set(layer(4).init(floats(2, 5)).get_parameters()["gate"]) == {"w"}


@pytest.mark.parametrize("activate_final", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_mlp_equals_that_of_equinox(activate_final: bool, with_bias: bool) -> None:
    x = floats(3, 5)
    mlp = MLP([4, 4, 2], activation=jnp.tanh, activate_final=activate_final, with_bias=with_bias, b_init=NORMAL).init(x)
    final = jnp.tanh if activate_final else lambda x: x
    options = {"use_bias": with_bias, "use_final_bias": with_bias, "final_activation": final}
    reference: Any = equinox.nn.MLP(5, 2, 4, 2, jnp.tanh, key=jax.random.key(0), **options)

    def theirs(parameters: Any, x: Any) -> Any:
        given = parameters["layers"]
        layers = [reference.layers[number] for number in range(3)]
        for number in range(3):
            part = given[number] if isinstance(given, (list, tuple)) else given[str(number)]
            layers[number] = equinox.tree_at(lambda layer: layer.weight, layers[number], part["w"].T)
            if with_bias:
                layers[number] = equinox.tree_at(lambda layer: layer.bias, layers[number], part["b"])
        return jax.vmap(equinox.tree_at(lambda mlp: mlp.layers, reference, tuple(layers)))(x)

    assert_agree(mlp, theirs, x)


def test_defaults_of_mlp() -> None:
    x = floats(3, 5)
    mlp: Any = MLP([4, 2], w_init=NORMAL, dtype=jnp.float32).init(x)
    first, last = mlp.layers
    assert_close(mlp(x), last(jax.nn.relu(first(x))))
    np.testing.assert_allclose(jnp.std(MLP([400], w_init=NORMAL).init(x).layers[0].w), 1, rtol=0.1)


def test_activations_that_are_modules() -> None:
    for layer in (MLP([4, 2], activation=PReLU()), GLU(2, activation=PReLU())):
        parameters = layer.init(floats(3, 5)).get_parameters(trainable=True)
        assert set(parameters["activation"]) == {"negative_slope"}


def test_dropout_of_mlp_follows_the_activation() -> None:
    x = floats(64, 5)
    mlp: Any = MLP([8, 8], activation=jnp.cos, activate_final=True, dropout_rate=0.5).init(x)
    y = mlp(x)
    assert 0.3 < (y == 0).mean() < 0.7
    first, last = mlp.layers
    assert_close(mlp(x, training=False), jnp.cos(last(jnp.cos(first(x)))))
    with elegy.training_context(False):
        assert_same(mlp(x), mlp(x, training=False))
    linear: Any = MLP([8, 8], activation=jnp.cos, dropout_rate=0.5).init(x)
    assert (linear(x) != 0).all() and (linear(x) != linear(x)).any()
    for without in (MLP([8, 8]), MLP([8], dropout_rate=0.5)):  # a single layer has no activation to follow
        assert set(without.init(x).get_parameters()) == {"layers"}


# ---------------------------------------------------------------------------------------------------------------------
# Dropout and its kin
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, (1, 2), (0, -1), (0, 1, 2)])
def test_shared_axes_equal_those_of_flax(axes: Any) -> None:
    x, key = floats(16, 4, 6), jax.random.key(3)
    given = tuple(np.arange(3)[np.array(axes if isinstance(axes, tuple) else (axes,))].tolist())
    reference = nnx.Dropout(0.5, broadcast_dims=given, deterministic=False)
    expected = reference(jnp.asarray(x), rngs=key)
    y = Dropout(0.5, shared_axes=axes)(x, rng=key)
    assert_close(y, expected)
    dropped = np.asarray(y == 0)
    assert (dropped == dropped.any(given, keepdims=True)).all()
    assert 0 < dropped.mean() < 1 or axes == (0, 1, 2)


@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 3, 2), (0, 3), (1, 3)])
def test_drop_path_drops_whole_examples(shape: Any) -> None:
    """As the dropout of Flax does whose mask is the same along all axes but the first."""
    x, key = floats(*shape), jax.random.key(5)
    reference = nnx.Dropout(0.5, broadcast_dims=range(1, len(shape)), deterministic=False)
    assert_close(DropPath(0.5)(x, rng=key), reference(jnp.asarray(x), rngs=key))


def test_drop_path_keeps_the_expectation() -> None:
    y = np.asarray(DropPath(0.2)(np.ones([20_000, 2])))
    assert (y[:, 0] == y[:, 1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 1.25], rtol=1e-6)
    assert abs((y[:, 0] == 0).mean() - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_alpha_dropout_equals_that_of_keras(rate: float) -> None:
    """What is dropped, and what is kept, becomes the same as in Keras, and the moments are those of the input."""
    n = 40_000
    x = np.asarray(jax.nn.selu(floats(n)))
    y = np.asarray(AlphaDropout(rate)(x))
    reference = np.asarray(keras.layers.AlphaDropout(rate, seed=0)(x, training=True))
    dropped, of_keras = y == _constant(y), reference == _constant(reference)
    np.testing.assert_allclose(_constant(y), _constant(reference), rtol=1e-5)
    assert abs(dropped.mean() - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    both = ~dropped & ~of_keras
    np.testing.assert_allclose(y[both], reference[both], rtol=1e-4, atol=1e-5)
    assert abs(y.mean()) < 0.05 and abs(y.var() - 1) < 0.1


def _constant(y: np.ndarray) -> Any:
    """The value that occurs most often."""
    values, counts = np.unique(y, return_counts=True)
    return values[np.argmax(counts)]


@pytest.mark.parametrize(
    "layer", [Dropout(0.5, shared_axes=1), AlphaDropout(0.5), DropPath(0.5)], ids=lambda layer: type(layer).__name__
)
def test_they_follow_the_mode_and_draw_no_key_without_need(layer: Any) -> None:
    x = floats(16, 8)
    layer = layer.copy().init(x)
    before = jax.random.key_data(elegy.get_rng().key)
    with elegy.training_context(False):
        assert_same(layer(x), jnp.asarray(x))
        assert (layer(x, training=True, rng=0) != x).any()
    assert_same(layer(x, training=False), jnp.asarray(x))
    assert_same(layer(x, rng=0), layer(x, rng=jax.random.key(0)))
    assert_same(jax.random.key_data(elegy.get_rng().key), before)
    assert (layer(x) != layer(x)).any()
    zero = type(layer)(0)
    assert_same(zero(x), jnp.asarray(x))


# ---------------------------------------------------------------------------------------------------------------------
# PReLU, Reshape, Identity, Lambda
# ---------------------------------------------------------------------------------------------------------------------


def test_prelu_equals_that_of_flax() -> None:
    x = floats(3, 5)
    x[0, 0] = 0
    layer = PReLU().init(x)
    assert layer.negative_slope == 0.25

    def theirs(parameters: Any, x: Any) -> Any:
        reference = nnx.PReLU(0.1)
        reference.negative_slope[...] = parameters["negative_slope"]
        return reference(x)

    assert_agree(layer, theirs, x)


@pytest.mark.parametrize(("axis", "shared"), [((1, 2, 3), None), (-1, (1, 2)), ((3, 1), (2,)), ((1, 2), (3,))], ids=str)
def test_prelu_equals_that_of_keras(axis: Any, shared: Any) -> None:
    x = floats(2, 3, 4, 5)
    layer = PReLU(axis=axis, negative_slope_init=NORMAL).init(x)
    reference = keras.layers.PReLU(shared_axes=shared)
    reference.build(x.shape)

    def theirs(parameters: Any, x: Any) -> Any:
        return reference.stateless_call([parameters["negative_slope"].reshape(reference.alpha.shape)], [], x)[0]

    assert_agree(layer, theirs, x)


@pytest.mark.parametrize(
    ("shape", "output_shape", "preserve_dims", "expected"),
    [
        ((2, 12), [3, 4], 1, (2, 3, 4)),
        ((2, 12), (3, -1), 1, (2, 3, 4)),
        ((2, 3, 4), [-1], 2, (2, 3, 4)),
        ((2, 3, 4), [-1, 2], 0, (12, 2)),
        ((2,), [1, 1], 1, (2, 1, 1)),
        ((2,), [], 1, (2,)),
        ((2, 1, 1), [], 1, (2,)),
        ((0, 12), [-1, 4], 1, (0, 3, 4)),
        ((0, 12), [3, 4], 1, (0, 3, 4)),
        ((2, 0, 4), [-1, 2], 1, (2, 0, 2)),
    ],
    ids=str,
)
def test_reshape(shape: Any, output_shape: Any, preserve_dims: int, expected: Any) -> None:
    x = np.arange(np.prod(shape)).reshape(shape).astype(np.int32)
    assert_same(Reshape(output_shape, preserve_dims)(x), jnp.asarray(x.reshape(expected)))


def test_identity() -> None:
    tree = {"a": [jnp.ones(2)], "b": None}
    assert Identity()(tree) is tree
    assert_same(elegy.jit(Identity(name="nothing"))(tree), tree)


def test_lambda() -> None:
    assert Lambda(lambda x, *, y: x - y)(5, y=3) == 2
    x = floats(2, 3)
    assert_same(elegy.jit(Lambda(jnp.tanh))(x), jnp.tanh(x))


def test_modules_that_a_lambda_creates() -> None:
    layer: Any = Lambda(lambda x: jnp.tanh(Linear(4)(x)), name="mapped")
    x = floats(2, 3)
    y = layer(x)
    assert layer.linear.w.shape == (3, 4)
    assert_same(layer(x), y)
    model: Any = Sequential(lambda: [Lambda(lambda x: Linear(4)(x)), Identity(), Linear(2)]).init(x)
    assert model.layers[0].linear.w.shape == (3, 4)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda **options: Embedding(3, 2, **options), (np.array([1]),)),
        (lambda **options: LinearGeneral((2, 3), **options), (floats(2, 3),)),
        (lambda **options: Einsum("ab,bc->ac", 3, bias_axes="c", **options), (floats(2, 3),)),
        (lambda **options: Bilinear(3, **options), (floats(2, 3), floats(2, 3))),
        (lambda **options: GLU(3, with_bias=True, **options), (floats(2, 3),)),
        (lambda **options: SwiGLU(3, with_bias=True, **options), (floats(2, 3),)),
        (lambda **options: GEGLU(3, with_bias=True, **options), (floats(2, 3),)),
        (lambda **options: MLP([3, 2], **options), (floats(2, 3),)),
        (lambda **options: PReLU(**options), (floats(2, 3),)),
    ],
    ids=["Embedding", "LinearGeneral", "Einsum", "Bilinear", "GLU", "SwiGLU", "GEGLU", "MLP", "PReLU"],
)
def test_initializers_names_and_dtypes(make: Any, inputs: Any) -> None:
    kinds = {"w": 2, "b": 3, "negative_slope": 4}
    found = make().init(*inputs).get_parameters()
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(found)}
    options = {f"{name}_init": elegy.initializers.Constant(kinds[name]) for name in names}
    layer = make(name="mine", dtype=jnp.float16, **options).init(*inputs)
    assert layer.name == "mine"
    for path, leaf in jax.tree_util.tree_leaves_with_path(layer.get_parameters()):
        assert leaf.dtype == jnp.float16 and (leaf == kinds[path[-1].key]).all()
    assert layer(*inputs).dtype == jnp.float16
    plain = make(**dict.fromkeys(options)).init(*inputs, rng=0)  # None is the default
    assert_same(plain.get_parameters(), make().init(*inputs, rng=0).get_parameters())


@pytest.mark.parametrize("layer", [Dropout, AlphaDropout, DropPath])
def test_dtype_of_integers_that_are_dropped(layer: Any) -> None:
    dropping = layer(0.5, name="mine", dtype=jnp.float16)
    assert dropping.name == "mine"
    assert dropping(np.arange(4)).dtype == jnp.float16
    assert dropping(floats(4)).dtype == jnp.float32


def test_names_of_layers_without_parameters() -> None:
    for layer in (Identity(name="mine"), Lambda(jnp.tanh, name="mine"), Reshape([1], name="mine")):
        assert layer.name == "mine"


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

anything: Any = None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Embedding(0, 3), ValueError, "nn.Embedding: vocab_size must be a positive integer, got 0"),
        (lambda: Embedding(3, cast(Any, 2.5)), ValueError, "nn.Embedding: embed_dim must be a positive integer"),
        (lambda: cast(Any, Embedding)(3, 2, jnp.ones), TypeError, "positional argument"),
        (
            lambda: Embedding(3, 2, w_init=jnp.ones, embedding_matrix=np.ones([3, 2])),
            ValueError,
            "by w_init or by embedding_matrix, not by both",
        ),
        (lambda: Embedding(3, 2, embedding_matrix=np.ones([2, 3])), ValueError, r"= \(3, 2\), got \(2, 3\)"),
        (
            lambda: Embedding(3, 2)(floats(2)),
            TypeError,
            "embedding: the ids of Embedding must be integers, got float32",
        ),
        (lambda: Embedding(3, 2)(np.array(True)), TypeError, "ids of Embedding must be integers, got bool"),
        (lambda: Embedding(3, 2)(cast(Any, jnp.ones(2))), TypeError, "ids of Embedding must be integers, got float32"),
        (lambda: Embedding(3, 2, name="words")(3), IndexError, r"words: the id 3 .*vocab_size=3.\n  Give the layer"),
        (lambda: Embedding(3, 2).attend(floats(4, 3)), ValueError, r"embedding: .* embed_dim=2 .* got shape \(4, 3\)"),
        (lambda: Embedding(3, 2).attend(1.0), ValueError, r"embed_dim=2 elements, got shape \(\)"),
        (lambda: LinearGeneral(0), ValueError, "nn.LinearGeneral: output_shape must be a positive integer, got 0"),
        (lambda: LinearGeneral((2, -1)), ValueError, "output_shape must be a positive integer, got -1"),
        (
            lambda: LinearGeneral(2, axis=(1, 1)),
            ValueError,
            r"axis must be an integer or a list of different .* \(1, 1\)",
        ),
        (lambda: LinearGeneral(2, axis=cast(Any, 1.5)), ValueError, "axis must be an integer or a list"),
        (lambda: LinearGeneral(2, axis=cast(Any, True)), ValueError, "axis must be an integer or a list"),
        (lambda: LinearGeneral(2, with_bias=cast(Any, 1)), TypeError, "LinearGeneral: with_bias must be True or False"),
        (lambda: LinearGeneral(2, axis=2)(floats(2, 3)), ValueError, r"linear_general: axis=\(2,\) .* shape \(2, 3\)"),
        (lambda: LinearGeneral(2, axis=(-1, 1))(floats(2, 3)), ValueError, "must be different axes of the input"),
        (lambda: LinearGeneral(2)(1.0), ValueError, r"which has shape \(\)"),
        (lambda: Einsum("ab,bc", 3), ValueError, "Einsum: equation 'ab,bc' must have the form"),
        (lambda: Einsum("ab,...c->ac", 3), ValueError, "must have the form"),
        (lambda: Einsum("aab,bc->ac", 3), ValueError, "has a letter twice in one operand"),
        (lambda: Einsum("...b,bc->ac", 3), ValueError, "an ellipsis of the input must be in the output too"),
        (lambda: Einsum("abd,bc->ac", 3), ValueError, "the letter 'd' must occur twice at least"),
        (lambda: Einsum("ab,bc->acz", (3, 3)), ValueError, "the letter 'z' must occur twice at least"),
        (lambda: Einsum("abc,cd->abd", 3), ValueError, r"an output_shape of 2 sizes, for the axes 'bd' .* got \(3,\)"),
        (lambda: Einsum("abc,cd->abd", (3, None)), ValueError, "size of 'd' cannot be inferred .* give its size"),
        (lambda: Einsum("b,bc->c", ()), ValueError, "size of 'c' cannot .* begin with the batch"),
        (lambda: Einsum("ab,bc->ac", 0), ValueError, "Einsum: output_shape must be a positive integer, got 0"),
        (lambda: Einsum("ab,bc->ac", 3, bias_axes="b"), ValueError, "different letters of the output 'ac', got 'b'"),
        (lambda: Einsum("ab,bc->ac", 3, bias_axes="cc"), ValueError, "different letters of the output"),
        (lambda: Einsum("ab,bc->ac", 3)(floats(2, 3, 4)), ValueError, r"einsum: .* axes 'ab', got shape \(2, 3, 4\)"),
        (lambda: Einsum("...ab,bc->...ac", (None, 3))(floats(2)), ValueError, r"axes '...ab', got shape \(2,\)"),
        (
            lambda: Einsum("abc,cd->abd", (4, 3))(floats(2, 5, 3)),
            ValueError,
            r"einsum: output_shape=\(4, 3\) says .* 'b' .* has 4 elements; it has 5 in the input",
        ),
        (lambda: Bilinear(0), ValueError, "nn.Bilinear: output_size must be a positive integer"),
        (lambda: Bilinear(2, with_bias=cast(Any, 0)), TypeError, "nn.Bilinear: with_bias must be True or False"),
        (lambda: Bilinear(2)(floats(2, 3), floats(1, 3)), ValueError, r"bilinear: .* got \(2, 3\) and \(1, 3\)"),
        (lambda: Bilinear(2)(1.0, floats(3)), ValueError, r"bilinear: .* got \(\) and \(3,\)"),
        (lambda: SwiGLU(0), ValueError, "nn.SwiGLU: output_size must be a positive integer"),
        (lambda: GLU(3, with_bias=cast(Any, 1)), TypeError, "nn.GLU: with_bias must be True or False, got 1"),
        (lambda: GLU(3)(1.0), ValueError, "glu/gate: the input of Linear must have at least one axis"),
        (lambda: MLP([]), ValueError, r"nn.MLP: output_sizes must be a list .* got \[\]"),
        (
            lambda: MLP(cast(Any, 3)),
            ValueError,
            "nn.MLP: output_sizes must be a list with the size of each layer, got 3",
        ),
        (lambda: MLP([3], activation=cast(Any, "relu")), TypeError, "MLP: activation must be a function .* got 'relu'"),
        (lambda: MLP([3], activation=PReLU), TypeError, r"MLP: activation is the class PReLU.\n  Construct it: PReLU"),
        (lambda: SwiGLU(3, activation=cast(Any, 3)), TypeError, "nn.SwiGLU: activation must be a function"),
        (lambda: MLP([3, 0]), ValueError, "nn.MLP: output_sizes must be a positive integer, got 0"),
        (lambda: MLP([3], activate_final=cast(Any, 1)), TypeError, "MLP: activate_final must be True or False"),
        (lambda: MLP([3], with_bias=cast(Any, 1)), TypeError, "MLP: with_bias must be True or False"),
        (lambda: MLP([3], dropout_rate=1), ValueError, r"nn.MLP: dropout_rate .* must be in \[0, 1\), got 1"),
        (lambda: Dropout(0.5, shared_axes=(1, 1)), ValueError, "nn.Dropout: shared_axes must be an integer or a list"),
        (lambda: Dropout(0.5, shared_axes=2)(floats(2, 3)), ValueError, r"dropout: shared_axes=\(2,\) must be"),
        (lambda: AlphaDropout(1), ValueError, r"nn.AlphaDropout: rate .* must be in \[0, 1\), got 1"),
        (
            lambda: AlphaDropout(0.5)(floats(2), cast(Any, 1)),
            TypeError,
            "alpha_dropout: training must be True or False",
        ),
        (lambda: DropPath(-0.5), ValueError, r"nn.DropPath: rate .* must be in \[0, 1\), got -0.5"),
        (lambda: DropPath(0.5)(1.0), ValueError, "drop_path: .* must have an axis of examples, got a scalar"),
        (lambda: PReLU(axis=(1, 1)), ValueError, "nn.PReLU: axis must be an integer or a list of different ones"),
        (lambda: PReLU(axis=3)(floats(2, 3)), ValueError, r": axis=\(3,\) must be different axes"),
        (lambda: PReLU()(jnp.ones(3, jnp.complex64)), TypeError, r"imaginary part(.|\n)*PReLU\(\.\.\., dtype="),
        (lambda: Reshape([-1, -1]), ValueError, r"nn.Reshape: output_shape must be a list .* got \[-1, -1\]"),
        (lambda: Reshape(cast(Any, 3)), ValueError, "nn.Reshape: output_shape must be a list .* got 3"),
        (lambda: Reshape([0]), ValueError, "nn.Reshape: output_shape must be a positive integer, got 0"),
        (lambda: Reshape([2], -1), ValueError, "nn.Reshape: preserve_dims must not be negative, got -1"),
        (
            lambda: Reshape([3])(floats(2, 4)),
            ValueError,
            r"reshape: output_shape=\(3,\) .* shape \(2, 4\).* 4 elements",
        ),
        (lambda: Reshape([3, -1])(floats(2, 4)), ValueError, r"reshape: output_shape=\(3, -1\) does not fit"),
        (lambda: Reshape([3], 2)(floats(3)), ValueError, "reshape: Reshape keeps the first 2 axes"),
        (
            lambda: Lambda(Linear(3)),
            TypeError,
            r"nn.Lambda: function must be a function, got .*\n  A module is a layer",
        ),
        (lambda: Lambda(cast(Any, 3)), TypeError, "nn.Lambda: function must be a function, got 3"),
    ],
)
def test_errors_name_the_layer(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
