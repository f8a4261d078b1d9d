"""The running trace is read off a cell of JAX that has no public name; JAX's public function must agree with it."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from elegy import tracing

PUBLIC = tracing._Running()

TRANSFORMS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "jit": lambda f: jax.jit(f)(1.0),
    "vmap": lambda f: jax.vmap(f)(jnp.ones(2)),
    "grad": lambda f: jax.grad(f)(1.0),
    "scan": lambda f: jax.lax.scan(lambda c, x: (f(c), None), 1.0, None, length=2),
    "checkpoint": lambda f: jax.checkpoint(f)(1.0),
    "eval_shape": lambda f: jax.eval_shape(f, 1.0),
    "jit of vmap": lambda f: jax.jit(jax.vmap(f))(jnp.ones(2)),
}


def test_the_pinned_versions_of_jax_have_the_private_name():
    assert type(tracing.running) is not tracing._Running


@pytest.mark.parametrize("name", TRANSFORMS)
def test_both_names_see_the_same_changes_of_trace(name):
    seen = []

    def look():
        seen.append((tracing.current(), PUBLIC.value))

    def body(x):
        look()
        jax.vmap(lambda y: look() or y)(jnp.ones(2))
        look()
        return x

    look()
    TRANSFORMS[name](body)
    look()
    assert len(seen) >= 5
    for private, public in seen:
        for other_private, other_public in seen:
            assert (private == other_private) == (public == other_public)
    assert seen[0][0] == seen[-1][0] == tracing.EAGER
    assert seen[1][0] != tracing.EAGER and seen[1][0] == seen[3][0] != seen[2][0]


def test_the_trace_of_a_dead_transform_is_equal_to_no_other():
    seen = []
    for _ in range(3):
        jax.jit(lambda x: seen.append(tracing.current()) or x)(1.0)
        jax.clear_caches()
    first, second, third = seen
    assert first != second and second != third and first != third and first == first


def test_a_thread_that_is_started_in_a_trace_is_in_none():
    found = []

    @jax.jit
    def f(x):
        thread = threading.Thread(target=lambda: found.append((tracing.current(), PUBLIC.value)))
        thread.start()
        thread.join()
        return x

    f(1.0)
    ((private, public),) = found
    assert private == tracing.EAGER and public == PUBLIC.value


@pytest.mark.parametrize("is_private", [True, False])
def test_an_abstract_evaluation_counts_as_eager_or_as_its_trace(is_private, monkeypatch):
    if not is_private:
        monkeypatch.setattr(tracing, "running", PUBLIC)
        monkeypatch.setattr(tracing, "EAGER", PUBLIC.value)
    seen = []
    primitive = jax.extend.core.Primitive("looks")
    primitive.def_abstract_eval(lambda x: seen.append(tracing.current()) or x)
    jax.make_jaxpr(lambda x: primitive.bind(x))(1.0)
    assert seen and None not in seen


def test_the_public_name_serves_where_the_private_one_is_missing(monkeypatch):
    monkeypatch.setattr(tracing, "running", PUBLIC)
    monkeypatch.setattr(tracing, "EAGER", PUBLIC.value)
    assert not tracing.is_traced()
    assert jax.jit(lambda x: x + 1.0 if tracing.is_traced() else x)(1.0) == 2.0
    assert not tracing.is_traced()
