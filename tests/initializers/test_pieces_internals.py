"""Internals: arrays that are drawn piece by piece are those that `jax.random` draws at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.initializers import pieces
from tests.helpers import assert_same

initializers, peers = elegy.initializers, jax.nn.initializers

# Of one piece and of several, and with a last one that is not full.
SHAPES = [(3, 5), (2, 3, 50, 70), (1, pieces._SIZE)]
PAIRS: dict[str, tuple[Any, Any]] = {
    "zeros": (initializers.zeros, peers.zeros),
    "ones": (initializers.ones, peers.ones),
    "constant": (initializers.constant(0.3), peers.constant(0.3)),
    "uniform": (initializers.uniform(0.2), peers.uniform(0.2)),
    "normal": (initializers.normal(0.2), peers.normal(0.2)),
    "truncated_normal": (initializers.truncated_normal(0.2), peers.truncated_normal(0.2)),
    "truncated_normal, bounds": (
        initializers.truncated_normal(0.2, -1.0, 3.0),
        peers.truncated_normal(0.2, lower=-1.0, upper=3.0),
    ),
    "orthogonal": (initializers.orthogonal(2.0, -2), peers.orthogonal(2.0, -2)),
    "variance_scaling": (
        initializers.variance_scaling(0.5, "fan_geo_avg", "normal", -1, 0),
        peers.variance_scaling(0.5, "fan_geo_avg", "normal", -1, 0),
    ),
    "variance_scaling, batch": (
        initializers.variance_scaling(0.5, "fan_out", "uniform", batch_axis=(0,), in_axis=(-2,), out_axis=[-1]),
        peers.variance_scaling(0.5, "fan_out", "uniform", batch_axis=(0,), in_axis=(-2,), out_axis=(-1,)),
    ),
}
for name in ("glorot", "he", "kaiming", "lecun", "xavier"):
    for distribution in ("normal", "uniform"):
        PAIRS[f"{name}_{distribution}"] = tuple(
            getattr(library, f"{name}_{distribution}")() for library in (initializers, peers)
        )

over_pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def batched(shape: tuple[int, ...], pair: tuple[Any, Any]) -> tuple[int, ...]:
    return (2, *shape) if pair is PAIRS["variance_scaling, batch"] else shape


def assert_equal(ours: jax.Array, theirs: jax.Array) -> None:
    """To the last digit but one: JAX may multiply by the scale in the program that draws, which then rounds once."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    wide = np.complex128 if jnp.iscomplexobj(theirs) else np.float64
    rtol = 4 * float(jnp.finfo(theirs.dtype).eps)
    np.testing.assert_allclose(np.asarray(ours, wide), np.asarray(theirs, wide), rtol=rtol, atol=0)


@over_pairs
def test_values_are_those_of_jax(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for number, shape in enumerate(SHAPES[:2]):
        key, shape = jax.random.key(number), batched(shape, pair)
        expected = theirs(key, shape, jnp.float32)
        assert_equal(ours(key, shape, jnp.float32), expected)
        assert_equal(ours(jax.random.key_data(key), shape), expected)


@over_pairs
def test_values_are_the_same_as_if_they_were_drawn_at_once(pair: tuple[Any, Any], monkeypatch: Any) -> None:
    ours, _ = pair
    drawn = [ours(jax.random.key(1), batched(shape, pair), jnp.float32) for shape in SHAPES]
    monkeypatch.setattr(pieces, "_comes_in_pieces", lambda key: False)
    for shape, expected in zip(SHAPES, drawn, strict=True):
        assert_same(ours(jax.random.key(1), batched(shape, pair), jnp.float32), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64, jnp.complex64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", ["uniform", "normal", "truncated_normal", "he_normal", "he_uniform"])
def test_other_dtypes(name: str, dtype: Any) -> None:
    if dtype == jnp.complex64 and "he" not in name and name != "normal":
        return
    ours, theirs = PAIRS[name]
    with jax.enable_x64(dtype == jnp.float64):
        for shape in SHAPES[1:]:
            assert_equal(ours(jax.random.key(2), shape, dtype), theirs(jax.random.key(2), shape, dtype))


@pytest.mark.parametrize(
    "initializer",
    [
        initializers.RandomNormal(0.1, 3.0),
        initializers.TruncatedNormal(0.1, 3.0),
        initializers.RandomUniform(-3, 0.5),
        initializers.UniformScaling(1.4),
        initializers.VarianceScaling(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_the_same_values_however_they_are_drawn(initializer: Any, impl: str) -> None:
    """At once, when the key is traced; in pieces, when it is concrete."""
    keys = jax.random.split(jax.random.key(5, impl=impl), 2)
    shape = SHAPES[1]

    def draw(key: Any) -> Any:
        return initializer(key, shape, jnp.float32)

    concrete = [draw(key) for key in keys]
    assert all(value.shape == shape and value.dtype == jnp.float32 for value in concrete)
    assert (concrete[0] != concrete[1]).any()
    mapped = jax.vmap(draw)(keys)
    assert jax.eval_shape(draw, keys[0]) == jax.ShapeDtypeStruct(shape, jnp.float32)
    # A compiled program may round products and sums once; and a mapped generator of another kind draws other bits.
    np.testing.assert_allclose(jax.jit(draw)(keys[0]), concrete[0], rtol=1e-5, atol=1e-6)
    if impl == "threefry2x32":
        np.testing.assert_allclose(mapped, concrete, rtol=1e-5, atol=1e-6)


def test_threefry_that_is_not_partitionable() -> None:
    with jax.threefry_partitionable(False):
        key, shape = jax.random.key(0), SHAPES[1]
        expected = peers.normal(0.1)(key, shape, jnp.float32)
        assert_equal(initializers.normal(0.1)(key, shape, jnp.float32), expected)
    assert (initializers.normal(0.1)(key, shape, jnp.float32) != expected).any()


def test_empty_arrays_and_scalars() -> None:
    for shape in ((0, 3), ()):
        assert_equal(
            initializers.normal(0.1)(jax.random.key(0), shape, jnp.float32),
            peers.normal(0.1)(jax.random.key(0), shape, jnp.float32),
        )
    assert initializers.VarianceScaling()(jax.random.key(0), (0, 3), jnp.float32).shape == (0, 3)
    assert initializers.UniformScaling()(jax.random.key(0), (0, 3), jnp.float32).shape == (0, 3)


def test_indices_of_more_than_32_bits() -> None:
    """The second half of a piece that begins below 2³² follows the first one, and a key begins anywhere."""
    for start in (0, 2**32 - pieces._SIZE, 2**32, 3 * 2**33):
        data = np.array([7, 9, start >> 32, start & 0xFFFFFFFF], np.uint32)
        bits = jax.jit(lambda data: pieces._bits(data, 32, (4,)))(data)
        index = start + np.arange(4)
        high, low = (index >> 32).astype(np.uint32), (index & 0xFFFFFFFF).astype(np.uint32)
        words = jax.extend.random.threefry_2x32((np.uint32(7), np.uint32(9)), jnp.concatenate([high, low]))
        np.testing.assert_array_equal(bits, words[:4] ^ words[4:])


def test_one_program_for_all_shapes() -> None:
    traces = []

    def counted(key: Any, shape: Any, dtype: Any) -> Any:
        traces.append(shape)
        return jax.random.normal(key, shape, dtype)

    for shape in [(3,), (4, 5), (3, 3, 20, 200), (1000, 100)]:
        for scale in (0.1, 1.0):
            pieces.draw(counted, jax.random.key(0), shape, jnp.float32, scale=scale)
    assert traces == [(pieces._SIZE,)]


def test_the_device_of_the_key_is_that_of_the_values() -> None:
    device = jax.devices()[3]
    key = jax.device_put(jax.random.key(0), device)
    values = initializers.normal(0.1)(key, (3, 5), jnp.float32)
    assert values.devices() == {device} and values.committed
    assert_same(values, initializers.normal(0.1)(jax.random.key(0), (3, 5), jnp.float32))
    with jax.default_device(device):
        values = initializers.normal(0.1)(jax.random.key(0), (3, 5), jnp.float32)
    assert values.devices() == {device} and not values.committed


def test_keys_of_several_devices_and_meshes() -> None:
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Explicit,))
    expected = peers.normal(0.1)(jax.random.key(0), (4, 5), jnp.float32)
    with jax.set_mesh(mesh):
        values = initializers.normal(0.1)(jax.random.key(0), (4, 5), jnp.float32)
        peer = peers.normal(0.1)(jax.random.key(0), (4, 5), jnp.float32)
        assert values.sharding == peer.sharding
    assert_equal(values, expected)
    spread = jax.device_put(jax.random.key(0), jax.sharding.NamedSharding(mesh, jax.P()))
    assert_equal(initializers.normal(0.1)(spread, (4, 5), jnp.float32), expected)


def test_a_user_knows_nothing_of_it() -> None:
    """An initializer of one's own is called once, with a key, and gives what it gives."""
    calls = []

    def initializer(key: Any, shape: Any, dtype: Any) -> Any:
        calls.append(key)
        return jax.random.gamma(key, 2.0, shape, dtype)

    linear = elegy.nn.Linear(3, w_init=initializer).init(jnp.ones([1, 2]), rng=0)
    assert len(calls) == 1
    assert_same(linear.w, jax.random.gamma(calls[0], 2.0, (2, 3), jnp.float32))


def test_a_layer_has_the_same_weights_eagerly_and_compiled() -> None:
    x = jnp.ones([1, 40])
    eager = elegy.nn.Linear(500).init(x, rng=3)
    compiled = jax.jit(lambda key: elegy.nn.Linear(500).init(x, rng=key))(jax.random.key(3))
    np.testing.assert_allclose(eager.w, compiled.w, rtol=1e-6)
