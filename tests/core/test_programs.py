"""Random programs over random module trees do the same in every way in which they may be run.

For a hunt, set `ELEGY_PROGRAMS` to the number of programs that each test draws; the programs then differ from run to
run, and what fails is printed as the shortest program that was found.
"""

import contextlib
import copy
import gc
import os
import pickle

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings

import elegy
from tests.core.programs import TRANSFORMS, BoomError, Program, Scale, X, differences, named, programs, record, world
from tests.helpers import Affine, summaries

HUNT = int(os.environ.get("ELEGY_PROGRAMS", "0"))

# Modules that never ran are asked for their trainable parameters all the same.
pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore::elegy.errors.UninitialisedWarning"),
    pytest.mark.filterwarnings("ignore::elegy.errors.LostUpdateWarning"),
]

settings.register_profile("programs", parent=settings.get_profile("elegy"), suppress_health_check=list(HealthCheck))


def some(examples: int):
    if HUNT:
        return settings(settings.get_profile("programs"), max_examples=HUNT, derandomize=False)
    return settings(settings.get_profile("programs"), max_examples=examples)


@pytest.fixture(autouse=True)
def garbage_is_collected_between_programs():
    """What watches modules die is checked by beartype, which draws random numbers; while Hypothesis draws, none may."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def assert_same(expected, other, ignore=()):
    found = differences(expected, other, ignore)
    assert not found, "\n".join(found)


@some(15)
@given(programs())
def test_a_program_compiled_with_its_module_does_what_it_does_eagerly(program: Program):
    with world(program) as built:
        expected = record(built, "eager")
        for name, value in expected.items():
            if "module" in name:
                assert value["leaves"] == value["leaves by path"], name
        assert_same(expected, record(built, "eager"))
        assert_same(expected, record(built, "shim"))


@some(8)
@given(programs(starts=("init", "called")), st.sampled_from(["jax.jit", "elegy.jit"]))
def test_a_program_in_the_pure_form_does_what_it_does_eagerly(program: Program, style: str):
    # What a stock transform compiles cannot declare anything outside.
    ignored = ("declared",) if style == "jax.jit" else ()
    with world(program) as built:
        assert_same(record(built, "eager", seeded=True), record(built, style, seeded=True), ignored)


TRIPS = {
    "none": lambda m: m,
    "copy": lambda m: m.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "tree.map": lambda m: jax.tree.map(lambda leaf: leaf, m),
    "jax.jit": jax.jit(lambda m: m),
    "partition": lambda m: elegy.combine(*elegy.partition(m)),
}


@some(18)
@given(programs(), st.sampled_from(sorted(TRIPS)), st.sampled_from(["eager", "eager", "shim"]))
def test_a_copy_takes_the_place_of_its_original(program: Program, trip: str, style: str):
    with world(program) as built:
        expected = record(built, "eager", calls=2, trip=TRIPS["none"])
        assert_same(expected, record(built, style, calls=2, trip=TRIPS[trip]))


FEATURES = {
    "a list": " = [",
    "a dict": '{"k": ',
    "a module given to a child": "(self.a",
    "a module of a child": ".a0.",
    "another name": 'name="',
    "conditional use": "if elegy.training() else x",
    "state": "update_parameter",
    "a compact method": "@elegy.compact",
    "a method that is rematerialised": "@elegy.remat",
    "an exception": "armed(",
    "an exception caught within": "except BoomError:\n            x = -x",
    "another seed": "rng_context(3)",
    **{f"elegy.{name}": f"elegy.{name}(" for name in TRANSFORMS},
    **{f"start: {start}": f"# module: {start}" for start in ("lazy", "init", "called")},
    "copy": "c = m.copy()",
    "apply": "m.apply(x)",
    "the pure form of jit": "elegy.jit(lambda m, x",
    "the pure form of value_and_grad": "elegy.value_and_grad(lambda m, x",
    "tree.map": "c = jax.tree.map",
    "set_parameters": "m.set_parameters(",
    "looks": "out(named(",
    "freezes": "freezes: ((",
    "resets": "and resets",
}


@pytest.mark.skipif(HUNT > 0, reason="it counts in the same programs each time")
def test_the_programs_have_what_they_are_for():
    """What holds of every program would hold of empty ones too."""
    seen = dict.fromkeys(FEATURES, 0)

    @some(400)
    @given(programs())
    def look(program):
        source = repr(program)
        for name, text in FEATURES.items():
            seen[name] += text in source

    look()
    assert not {name: count for name, count in seen.items() if count < 2}


# ---------------------------------------------------------------------------------------------------------------------
# Known faults, which the programs keep away from
# ---------------------------------------------------------------------------------------------------------------------


class Coder(elegy.Module):
    """Its methods are initialised one by one."""

    def call(self, x):
        return Scale(name="called")(x)

    @elegy.compact
    def encode(self, x):
        return Scale(name="encoded")(x)

    @elegy.compact
    def decode(self, x):
        return Scale(name="decoded")(x)


METHODS = {
    "call, then a method": lambda m: m.encode(m(X)),
    "a method, then call": lambda m: m(m.encode(X)),
    "two methods": lambda m: m.decode(m.encode(X)),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_compact_methods_create_has_the_values_of_the_seed(name):
    with elegy.rng_context(0):
        eager = Coder()
        METHODS[name](eager)
    with elegy.rng_context(0):
        compiled = Coder()
        elegy.jit(lambda: METHODS[name](compiled), modules=compiled)()
    assert not differences({"values": named(eager)}, {"values": named(compiled)})


BIRTHS = {
    "constructed": lambda m: Scale()(X),
    "copy": lambda m: m.copy()(X),
    "apply": lambda m: m.apply(X)[0],
}


@pytest.mark.xfail(strict=True, reason="the keys of a module that lives in a compiled function are drawn otherwise")
@pytest.mark.parametrize("name", BIRTHS)
def test_what_is_born_and_initialised_in_a_function_has_the_values_of_the_seed(name):
    module = Scale()
    with elegy.rng_context(0):
        expected = BIRTHS[name](module), jax.random.key_data(elegy.next_rng_key())
    with elegy.rng_context(0):
        compiled = elegy.jit(lambda: BIRTHS[name](module), modules=module)
        found = compiled(), jax.random.key_data(elegy.next_rng_key())
    assert not differences({"value and next key": expected}, {"value and next key": found})


def seeded(x):
    with elegy.rng_context(7):
        return x + jax.random.uniform(elegy.next_rng_key(), [3])


TRANSFORMED = {
    "remat": lambda m, x: elegy.remat(seeded, modules=m)(x),
    "scan": lambda m, x: elegy.scan(lambda x, _: (seeded(x), None), x, None, length=1, modules=m)[0],
    "cond": lambda m, x: elegy.cond(x[0] > 0, seeded, lambda x: x, x, modules=m),
    "vmap": lambda m, x: elegy.vmap(seeded, modules=m)(x[None])[0],
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_stream_of_its_own_within_a_transform_in_a_first_call(name):
    class Own(elegy.Module):
        def call(self, x):
            return TRANSFORMED[name](self, x)

    assert jnp.allclose(Own()(X), seeded(X))


class FailsLate(elegy.Module):
    def __init__(self):
        self.late = Scale()

    def call(self, x):
        return x

    @elegy.compact
    def fails(self, x):
        self.late(x)
        raise BoomError


@pytest.mark.xfail(strict=True, raises=elegy.errors.ParameterError, reason="what the call created is taken back")
def test_a_call_that_creates_and_fails_may_be_caught_in_a_compiled_function():
    module = FailsLate().init(X)

    def function():
        with contextlib.suppress(BoomError):
            module.fails(X)
        return module(X)

    assert jnp.array_equal(function(), X)
    assert jnp.array_equal(elegy.jit(function, modules=module)(), X)


class Draws(elegy.Module):
    def call(self, x):
        return x + jax.random.uniform(elegy.next_rng_key(), [3])


class DrawsLate(elegy.Module):
    def call(self, x):
        x = x + jax.random.uniform(elegy.next_rng_key(), [3])
        draws = Draws()
        return x if elegy.training() else draws(x)


@pytest.mark.xfail(strict=True, reason="it has another value in a compiled function")
def test_a_random_key_that_a_later_call_creates_has_the_value_of_the_seed():
    def run(compiled):
        module = DrawsLate()

        def function():
            module(X)
            with elegy.training_context(False):
                module(X)

        with elegy.rng_context(0):
            (elegy.jit(function, modules=module) if compiled else function)()
        return {"values": named(module)}

    assert not differences(run(False), run(True))


class Seen(elegy.Module):
    def call(self, x):
        elegy.add_summary("h", x)
        return x


@pytest.mark.parametrize("way", ["copy", "apply"])
def test_summaries_of_a_copy_have_the_names_that_they_have_eagerly(way):
    seen = Seen().init(X)

    def function(x):
        for _ in range(2):
            if way == "copy":
                seen.copy()(x)
            else:
                seen.apply(x)

    def paths(function):
        with elegy.hooks_context(summaries=True):
            function(X)
            return [path for _, path, _ in summaries()]

    assert paths(elegy.jit(function, modules=seen)) == paths(function)


class HoldsTwice(elegy.Module):
    def __init__(self, given):
        self.outer = given
        self.p = Affine(3)
        self.q = self.p

    def call(self, x):
        return self.q(self.p(self.outer(x)))


class SharesWithChild(elegy.Module):
    def __init__(self):
        self.h = Affine(3)
        self.c = HoldsTwice(self.h)

    def call(self, x):
        return self.c(self.h(x))


def through_jit(module):
    compiled = elegy.jit(lambda module: module)
    return compiled(module)


def test_leaves_of_a_child_that_shares_and_holds_another_module_twice():
    module = SharesWithChild().init(X)
    assert len(jax.tree.leaves(module)) == len(jax.tree.leaves(module.get_parameters())) == 4


@pytest.mark.parametrize("way", ["copy", "tree.map", "jax.jit", "partition", "elegy.jit"])
def test_copies_of_a_child_that_shares_and_holds_another_module_twice(way):
    module = SharesWithChild().init(X)
    again = through_jit(module) if way == "elegy.jit" else TRIPS[way](module)
    assert again.c.p is again.c.q and again.c.outer is again.h


class HoldsThrice(elegy.Module):
    """Holds a module at an attribute and, in a child, at two places of a list."""

    def __init__(self):
        self.first = Scale()
        self.second = Pair(self.first)

    def call(self, x):
        return self.second(self.first(x))


class Pair(elegy.Module):
    def __init__(self, given):
        self.second = [given, given]
        self.first = 1

    def call(self, x):
        return self.second[1](self.second[0](x))


class ListOfAll(elegy.Module):
    def __init__(self):
        first = Scale()
        self.all = [first, Listed(first)]

    def call(self, x):
        return self.all[1](self.all[0](x))


class Listed(elegy.Module):
    def __init__(self, given):
        self.pair = [given, given]

    def call(self, x):
        return self.pair[1](self.pair[0](x))


COPIES = ["copy", "tree.map", "jax.jit", "partition"]


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_has_the_structure_of_a_module_that_is_held_twice_in_a_list_of_a_child(way):
    module = HoldsThrice().init(X)
    again = TRIPS[way](module)
    assert list(vars(again.second)) == list(vars(module.second))
    assert jax.tree.structure(again) == jax.tree.structure(module)


@pytest.mark.parametrize("way", COPIES)
def test_a_module_that_is_held_twice_in_a_list_of_a_child_is_copied(way):
    module = ListOfAll().init(X)
    again = TRIPS[way](module)
    assert again.all[0] is again.all[1].pair[0] is again.all[1].pair[1]


class Takes(elegy.Module):
    def __init__(self, given):
        self.given = given

    def call(self, x):
        return self.given(x)


class FailsOnce(elegy.Module):
    """Is flattened while a child that holds one of its modules exists, and then may fail."""

    def __init__(self, way):
        self.way = way
        self.h = Affine(3)

    def call(self, x, fails):
        takes = Takes(self.h)
        if self.way == "flatten":
            jax.tree.leaves(self)
        else:
            x = self.again(x)
        if fails:
            raise BoomError
        return takes(x)

    @elegy.remat
    def again(self, x):
        return self.h(x)


@pytest.mark.parametrize("way", ["flatten", "remat"])
def test_leaves_after_a_first_call_that_failed(way):
    module = FailsOnce(way)
    with pytest.raises(BoomError):
        module(X, True)
    assert jax.tree.leaves(module) == []
    module(X, False)
    assert len(jax.tree.leaves(module)) == 2


class CreatesAndFails(elegy.Module):
    """Shares nothing; is flattened before it has a child and after, and then may fail."""

    def __init__(self, way):
        self.way = way

    def call(self, x, fails):
        if self.way == "flatten":
            jax.tree.leaves(self)
            x = Scale()(x)
            jax.tree.leaves(self)
        else:
            x = elegy.remat(lambda x: Scale()(x), modules=self)(x)
        if fails:
            raise BoomError
        return x


LOOKS = {"leaves": jax.tree.leaves, "copy": lambda m: m.copy(), "call": lambda m: m(X, False)}


@pytest.mark.parametrize("way, look", [("flatten", look) for look in LOOKS] + [("remat", "leaves"), ("remat", "copy")])
def test_a_module_without_sharing_after_a_first_call_that_failed(way, look):
    module = CreatesAndFails(way)
    with pytest.raises(BoomError):
        module(X, True)
    LOOKS[look](module)
    module(X, False)
    assert len(jax.tree.leaves(module)) == 1
