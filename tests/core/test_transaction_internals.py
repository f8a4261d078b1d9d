"""Internals: a transaction takes back what is written inside it, in any nesting, and keeps little for it."""

import contextlib
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest

import elegy
from elegy import tracing
from elegy.state import transaction, write
from elegy.transaction import Overlay, held, thread


class Two(elegy.Module):
    def __init__(self):
        for name in "ab":
            setattr(self, name, self.add_parameter(name, [], trainable=False))

    def call(self, work):
        return work(self)


WRITES = {
    "update_parameter": lambda module, name, value: module.update_parameter(name, value),
    "set_parameters": lambda module, name, value: module.set_parameters({name: value}),
}


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("how", WRITES)
def test_the_arrays_in_between_are_not_kept(how, levels):
    """Of many values of a parameter in one call two are alive: the first one, to go back to, and the last one."""

    def work(module):
        before = set(map(id, jax.live_arrays()))
        for step in range(20):
            with contextlib.ExitStack() as stack:
                for _ in range(levels):
                    stack.enter_context(transaction())
                WRITES[how](module, "a", jnp.full([], float(step)))
                WRITES[how](module, "b", jnp.full([], float(-step)))
        return len([array for array in jax.live_arrays() if id(array) not in before])

    module = Two().init(lambda module: None)
    assert module(work) == 2
    assert (float(module.a), float(module.b)) == (19, -19)


class Caught(Exception):
    pass


def play(program, write, level):
    """Runs a nesting of levels: a number is a write, a tuple `(kind, fails, parts)` a level."""
    for part in program:
        if isinstance(part, int):
            write("ab"[part % 2], float(part))
            continue
        kind, fails, parts = part
        try:
            with level(kind):
                play(parts, write, level)
                if fails:
                    raise Caught
        except Caught:
            if fails == "through":  # the level around fails, too
                raise


@contextlib.contextmanager
def dropped():
    """What happens within is not kept, as in an init pass."""
    with transaction(), Overlay(tracing.current()):
        yield


LEVELS = {"transaction": transaction, "dropped": dropped}
PROGRAMS = st.recursive(
    st.integers(1, 99),
    lambda parts: st.tuples(
        st.sampled_from(sorted(LEVELS)), st.sampled_from([False, "here", "through"]), st.lists(parts, max_size=5)
    ),
    max_leaves=25,
)


@hypothesis.given(program=st.lists(PROGRAMS, max_size=8))
@hypothesis.settings(max_examples=300)
def test_any_nesting_of_levels_goes_back_to_what_full_snapshots_say(program):
    module = Two()
    expected = {"a": 0.0, "b": 0.0}

    @contextlib.contextmanager
    def snapshots(kind):
        before = dict(expected)
        try:
            yield
        except Caught:
            expected.update(before)
            raise
        if kind == "dropped":
            expected.update(before)

    def values():
        return {name: held(module)[name] for name in "ab"}

    def run(put, read, level):
        seen: list[Any] = []

        def put_and_look(name, value):
            put(name, value)
            seen.append(dict(read()))

        with contextlib.suppress(Caught), level("transaction"):
            play(program, put_and_look, level)
        return seen, dict(read())

    for name in "ab":
        module.__dict__[name] = 0.0
    found = run(lambda name, value: write(module, name, value), values, lambda kind: LEVELS[kind]())
    assert found == run(lambda name, value: expected.update({name: value}), lambda: expected, snapshots)
    assert thread.top is None


def test_an_exception_after_many_updates_restores_the_first_values():
    module = Two()
    module.set_parameters({"a": jnp.float32(5), "b": jnp.float32(6)})
    first = module.a, module.b

    def work(module):
        for step in range(10):
            module.update_parameter("a", jnp.float32(step))
            try:
                with transaction():
                    module.set_parameters({"a": jnp.float32(-1), "b": jnp.float32(-1)})
                    module.set_parameters({"b": jnp.float32(-2)})
                    raise KeyError
            except KeyError:
                assert (float(module.a), float(module.b)) == (step, 6 if step == 0 else step - 1)
            with transaction():
                module.set_parameters({"b": jnp.float32(step)})
        raise RuntimeError("as asked")

    with pytest.raises(RuntimeError, match="as asked"):
        module(lambda module: None if elegy.is_initializing() else work(module))
    assert module.a is first[0] and module.b is first[1]
