"""Tests lower many programs in one context of MLIR; see `tests.contexts`."""

import threading

import jax
import jax.numpy as jnp
import pytest
from jax._src.interpreters import mlir

from tests.contexts import PROGRAMS, Contexts


@pytest.fixture
def make():
    if not isinstance(mlir.make_ir_context, Contexts):
        pytest.skip("JAX has contexts that serve for several programs itself")
    return Contexts(mlir.make_ir_context._make)


def test_a_context_serves_for_some_programs(make):
    contexts = [make() for _ in range(2 * PROGRAMS)]
    assert len(set(map(id, contexts))) == 2
    assert contexts[0] is contexts[PROGRAMS - 1] and contexts[PROGRAMS] is contexts[-1]


def test_a_program_within_another_one_has_its_own(make):
    with make() as outer:
        assert make() is not outer
    assert make() is outer


def test_a_thread_has_its_own(make):
    found = [make()]
    thread = threading.Thread(target=lambda: found.append(make()))
    thread.start()
    thread.join()
    assert found[0] is not found[1]


def test_programs_are_what_they_are_in_a_context_of_their_own(make, monkeypatch):
    def lowered():
        return jax.jit(lambda x: jnp.sum(jax.nn.softmax(x @ x))).lower(jnp.ones([3, 3])).as_text()

    one, another = lowered(), lowered()
    monkeypatch.setattr(mlir, "make_ir_context", make._make)
    assert one == another == lowered()
