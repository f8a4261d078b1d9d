"""Small modules and comparisons that several test files share."""

import contextlib
import re

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import elegy
from elegy.errors import TypeCheckError
from elegy.typechecking import scopes


class Affine(elegy.Module):
    """`x @ w + b`, with shapes from the first input, and without rank promotion."""

    def __init__(self, width=2, name=None):
        super().__init__(name=name)
        self.width = width

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.width], initializer=elegy.initializers.RandomUniform())
        b = self.add_parameter("b", [self.width], initializer=jnp.zeros)
        y = jnp.dot(x, w)
        return y + jnp.broadcast_to(b, y.shape)


class Net(elegy.Module):
    """Three layers made inside `call`."""

    def call(self, x):
        x = jnp.tanh(Affine(8)(x))
        x = jnp.tanh(Affine(4)(x))
        return Affine(1)(x)


class Mask(elegy.Module):
    """Dropout: draws a key in training mode only."""

    def __init__(self, rate=0.5):
        self.rate = rate

    def call(self, x):
        if not elegy.training():
            return x
        kept = jax.random.bernoulli(elegy.next_rng_key(), 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))


class Norm(elegy.Module):
    """Batch normalisation: running statistics as state, a trainable scale."""

    def __init__(self, decay=0.9):
        self.decay = decay

    def call(self, x):
        size = x.shape[-1:]
        mean = self.add_parameter("mean", size, initializer=jnp.zeros, trainable=False)
        var = self.add_parameter("var", size, initializer=jnp.ones, trainable=False)
        scale = self.add_parameter("scale", size, initializer=jnp.ones)
        if elegy.training():
            batch_mean, batch_var = x.mean(axis=0), x.var(axis=0)
            self.update_parameter("mean", self.decay * mean + (1 - self.decay) * batch_mean)
            self.update_parameter("var", self.decay * var + (1 - self.decay) * batch_var)
            mean, var = batch_mean, batch_var
        shown = [jnp.broadcast_to(value, x.shape) for value in (mean, var, scale)]
        return (x - shown[0]) / jnp.sqrt(shown[1] + 1e-5) * shown[2]


class Counter(elegy.Module):
    """Counts its calls in a state that has no gradient."""

    def call(self, x=None):
        n = self.add_parameter("n", [], jnp.int32, jnp.zeros, trainable=False)
        self.update_parameter("n", n + 1)
        return x


class Stateful(elegy.Module):
    """A little of everything: layers, running statistics, random draws, a counter."""

    def call(self, x):
        x = Affine(4)(x)
        x = Norm()(x)
        x = Mask()(x)
        Counter()()
        return Affine(1)(x)


def batch(size=6, features=3, seed=0):
    """Inputs and targets of a regression, as float32 arrays."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(size=(size, features)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(x.sum(axis=1, keepdims=True))


def assert_same(a, b):
    """Equal structures, and equal arrays, bit for bit, dtypes included."""
    jax.tree.map(_assert_same_leaf, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def _assert_same_leaf(a, b):
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    """Equal structures, and arrays equal to a tolerance."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol, atol), a, b)


def case_name(value):
    """The name of a case of a test, without addresses: each process of a run must find the same names."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def concrete(tree):
    """Whether no leaf is a tracer."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def losses():
    """`elegy.get_losses()` inside a context."""
    found = elegy.get_losses()
    assert found is not None
    return found


def metrics():
    """`elegy.get_metrics()` inside a context."""
    found = elegy.get_metrics()
    assert found is not None
    return found


def summaries():
    """`elegy.get_summaries()` inside a context that collects them."""
    found = elegy.get_summaries()
    assert found is not None
    return found


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


def checked():
    """Within it annotations are checked."""
    return elegy.typechecker(beartype.beartype)


@contextlib.contextmanager
def mismatch(*parts):
    """Fails unless a TypeCheckError is raised whose message has the parts; it leaves no scope behind."""
    with pytest.raises(TypeCheckError) as raised:
        yield raised
    for part in parts:
        assert part in str(raised.value)
    assert scopes.local.scopes == scopes.local.first_runs == []
