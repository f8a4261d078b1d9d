"""Distributions are compared with those of SciPy, the default with that of Flax."""

import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import elegy
from tests.helpers import assert_same

initializers, peers = elegy.initializers, jax.nn.initializers

SHAPE = (200, 50)


def drawn(initializer: Any, shape: Any = SHAPE, dtype: Any = jnp.float32, seed: int = 0) -> np.ndarray:
    with elegy.rng_context(seed):
        value = initializer(shape, dtype)
    assert value.shape == tuple(shape) and value.dtype == dtype
    return np.asarray(value, np.float64).ravel()


@pytest.mark.parametrize(
    ("initializer", "distribution"),
    [
        (elegy.initializers.RandomUniform(), scipy.stats.uniform()),
        (elegy.initializers.RandomUniform(-2, 0.5), scipy.stats.uniform(-2, 2.5)),
        (elegy.initializers.RandomNormal(), scipy.stats.norm()),
        (elegy.initializers.RandomNormal(stddev=0.1, mean=3), scipy.stats.norm(3, 0.1)),
        (elegy.initializers.TruncatedNormal(), scipy.stats.truncnorm(-2, 2)),
        (elegy.initializers.TruncatedNormal(stddev=0.1, mean=-1), scipy.stats.truncnorm(-2, 2, -1, 0.1)),
        (elegy.initializers.VarianceScaling(2, "fan_out", "normal"), scipy.stats.norm(0, (2 / 50) ** 0.5)),
        (
            elegy.initializers.VarianceScaling(1, "fan_avg", "uniform"),
            scipy.stats.uniform(-((3 / 125) ** 0.5), 2 * (3 / 125) ** 0.5),
        ),
        (
            elegy.initializers.VarianceScaling(),
            scipy.stats.truncnorm(-2, 2, 0, (1 / 200) ** 0.5 / scipy.stats.truncnorm(-2, 2).std()),
        ),
    ],
    ids=lambda value: repr(value) if dataclasses.is_dataclass(value) else "",
)
def test_distribution(initializer: Any, distribution: Any) -> None:
    assert scipy.stats.kstest(drawn(initializer), distribution.cdf).pvalue > 0.01


def test_the_default_is_that_of_flax() -> None:
    key = jax.random.key(0)
    with elegy.rng_context(key):
        expected = jax.nn.initializers.lecun_normal()(elegy.next_rng_key(), (3, 3, 2, 8), jnp.float32)
    found = drawn(elegy.initializers.VarianceScaling(), (3, 3, 2, 8), seed=0)
    np.testing.assert_array_equal(found, np.asarray(expected, np.float64).ravel())


def test_constant() -> None:
    np.testing.assert_array_equal(drawn(elegy.initializers.Constant(3), (2, 2)), 3)
    assert drawn(elegy.initializers.Constant(3), (), jnp.int32) == 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "initializer",
    [
        elegy.initializers.RandomUniform(-1, 1),
        elegy.initializers.RandomNormal(0.5, 1),
        elegy.initializers.TruncatedNormal(0.5, 1),
        elegy.initializers.VarianceScaling(),
    ],
    ids=repr,
)
def test_half_precision(initializer: Any, dtype: Any) -> None:
    values = drawn(initializer, dtype=dtype)
    np.testing.assert_allclose(values.std(), drawn(initializer).std(), rtol=0.05)


def test_each_parameter_draws_from_a_key_of_its_own() -> None:
    class Two(elegy.Module):
        def call(self) -> Any:
            uniform = elegy.initializers.RandomUniform()
            return self.add_parameter("a", [3], initializer=uniform), self.add_parameter("b", [3], initializer=uniform)

    class One(elegy.Module):
        def call(self) -> Any:
            return self.add_parameter("b", [3], initializer=elegy.initializers.RandomUniform())

    two: Any = Two().init(rng=0)
    again: Any = Two().init(rng=0)
    one: Any = One(name="two").init(rng=0)
    assert (two.a != two.b).all()
    np.testing.assert_array_equal(two.a, again.a)
    np.testing.assert_array_equal(two.b, one.b)


def test_equality_and_pickle() -> None:
    initializer = elegy.initializers.VarianceScaling(2.0)
    assert initializer == elegy.initializers.VarianceScaling(2.0)
    assert initializer != elegy.initializers.VarianceScaling(1.0)
    assert pickle.loads(pickle.dumps(initializer)) == initializer


def test_a_vector_has_no_fans() -> None:
    with pytest.raises(ValueError, match="an axis of inputs and one of outputs"):
        elegy.nn.Linear(2, b_init=elegy.initializers.VarianceScaling())(jnp.ones([1, 3]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: elegy.initializers.RandomNormal(-1.0), "RandomNormal: stddev must not be negative"),
        (lambda: elegy.initializers.TruncatedNormal(-1.0), "TruncatedNormal: stddev must not be negative"),
        (lambda: elegy.initializers.RandomUniform(1.0, 0.0), "minval must not exceed maxval"),
        (lambda: elegy.initializers.VarianceScaling(0.0), "scale must be positive"),
        (lambda: elegy.initializers.VarianceScaling(mode="fan"), "mode must be one of fan_in"),
        (lambda: elegy.initializers.VarianceScaling(distribution="cauchy"), "distribution must be one of"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_initializer_of_jax_is_here() -> None:
    assert set(peers.__all__ if hasattr(peers, "__all__") else vars(peers)) - {"Initializer"} <= {
        *initializers.__all__,
        *(name for name in vars(peers) if name.startswith("_")),
    }


def test_delta_orthogonal() -> None:
    key = jax.random.key(0)
    assert_same(
        initializers.delta_orthogonal(2.0)(key, (3, 3, 2, 4), jnp.float32),
        peers.delta_orthogonal(2.0)(key, (3, 3, 2, 4), jnp.float32),
    )
    with pytest.raises(ValueError, match="DeltaOrthogonal needs the shape of a convolution"):
        initializers.delta_orthogonal()(key, (3, 3, 4, 2), jnp.float32)


def test_either_signature() -> None:
    initializer = initializers.RandomNormal(0.5)
    with elegy.rng_context(jax.random.key(1)):
        drawn = initializer((2, 3), jnp.float32)
    with elegy.rng_context(jax.random.key(1)):
        assert_same(initializer(elegy.next_rng_key(), (2, 3), jnp.float32), drawn)
    assert initializer(jax.random.key(0), (2, 3), dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert initializer(jax.random.key(0), 3).shape == (3,)
    assert initializers.zeros([2], jnp.int32).dtype == jnp.int32
    assert initializers.ones(jax.random.key(0), (2,), jnp.int32).tolist() == [1, 1]


@pytest.mark.parametrize("arguments", [(), ((2, 3), jnp.float32, None, None), ("ab",), ((1.5,),)], ids=repr)
def test_bad_calls(arguments: Any) -> None:
    with pytest.raises(TypeError, match="is called as|must be a sequence of integers"):
        initializers.RandomNormal()(*arguments)


def test_a_subclass() -> None:
    class Diagonal(initializers.Initializer):
        draws = False

        def draw(self, key: Any, shape: Any, dtype: Any) -> Any:
            assert key is None
            return jnp.eye(*shape, dtype=dtype)

    linear = elegy.nn.Linear(3, w_init=Diagonal()).init(jnp.ones([1, 3]))
    assert_same(linear.w, jnp.eye(3))
    with pytest.raises(NotImplementedError, match="must define draw"):
        initializers.Initializer()((2, 3))
