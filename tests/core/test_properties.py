"""Properties of module trees of any shape, and of what programs do to them."""

import copy
import dataclasses
import pickle
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

import elegy
from tests import strategies
from tests.strategies import X, bits, build, occurrences, picture, recipes, sharing, specs

# Strategies build modules, which takes JAX some time.
settings.register_profile("modules", parent=settings.get_profile("elegy"), suppress_health_check=list(HealthCheck))

# Some of the modules never ran, and are asked for their trainable parameters all the same.
pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore::elegy.errors.UninitialisedWarning"),
]


def some(examples: int):
    return settings(settings.get_profile("modules"), max_examples=examples)


# ---------------------------------------------------------------------------------------------------------------------
# Pytrees
# ---------------------------------------------------------------------------------------------------------------------


@some(60)
@given(recipes())
def test_unflatten_after_flatten_is_the_identity(recipe):
    module = recipe.build()
    before = picture(module)
    leaves, treedef = jax.tree.flatten(module)
    again = treedef.unflatten(leaves)
    assert picture(again) == before
    new, structure = jax.tree.flatten(again)
    assert structure == treedef and hash(structure) == hash(treedef)
    assert all(a is b for a, b in zip(leaves, new, strict=True))
    assert picture(module) == before  # looking changes nothing
    # No module of the copy is one of the original.
    assert not {id(node) for _, node in occurrences(module)} & {id(node) for _, node in occurrences(again)}


@some(40)
@given(recipes())
def test_paths_name_each_leaf_once(recipe):
    module = recipe.build()
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(module)
    leaves, plain = jax.tree.flatten(module)
    assert treedef == plain
    assert all(a is b for (_, a), b in zip(with_paths, leaves, strict=True))
    assert len({path for path, _ in with_paths}) == len(leaves)
    for path, leaf in with_paths:
        value: Any = module
        for key in path:
            value = (
                getattr(value, key.name)
                if hasattr(key, "name")
                else value[getattr(key, "idx", getattr(key, "key", None))]
            )
        assert value is leaf


@some(40)
@given(recipes(), st.sampled_from([None, object(), 0, "axis", ()]))
def test_anything_may_stand_in_the_place_of_leaves(recipe, leaf):
    module = recipe.build()
    leaves, treedef = jax.tree.flatten(module)
    other = treedef.unflatten([leaf] * len(leaves))
    assert sharing(other) == sharing(module)
    if leaf not in (None, ()):
        assert jax.tree.leaves(other) == [leaf] * len(leaves)
        back = jax.tree.map(lambda _, kept: kept, other, module)
        assert picture(back) == picture(module)


@some(30)
@given(recipes())
def test_each_shared_module_is_counted_once(recipe):
    module = recipe.build()
    nodes = {id(node): node for _, node in occurrences(module)}
    own = 0
    for node in nodes.values():
        for value in vars(node).values():
            parts = jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, elegy.Module))
            own += sum(isinstance(part, (jax.Array, np.ndarray)) for part in parts)
    assert len(jax.tree.leaves(module)) == own
    assert len(jax.tree.leaves(module.get_parameters())) == own


@some(12)
@given(recipes(depth=2, initialised=True))
def test_a_trip_through_jit_is_the_identity(recipe):
    module = recipe.build()
    again = jax.jit(lambda module: module)(module)
    assert sharing(again) == sharing(module)
    assert jax.tree.structure(again) == jax.tree.structure(module)
    assert bits(again) == bits(module)


@some(25)
@given(recipes())
def test_copies_are_equal_and_independent(recipe):
    module = recipe.build()
    before = picture(module)
    for other in (module.copy(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert picture(other) == before
        with elegy.rng_context(1):
            other(X)
        other.trainable = not other.trainable
        assert picture(module) == before


@some(40)
@given(specs(), st.integers(0, 3))
def test_what_is_built_twice_is_equal(spec, seed):
    one, two = build(spec, seed), build(spec, seed)
    assert picture(one) == picture(two)
    # Equal structures are one object, which JAX compares by identity.
    assert jax.tree.structure(one) == jax.tree.structure(two)
    lazily = build(spec, seed, initialise=False)
    assert {path for path, _ in sharing(lazily)} <= {path for path, _ in sharing(one)}


# ---------------------------------------------------------------------------------------------------------------------
# Kinds, reading and writing
# ---------------------------------------------------------------------------------------------------------------------


@some(40)
@given(recipes())
def test_partition_and_combine(recipe):
    module = recipe.build()
    before = picture(module)
    trainable, rest = elegy.partition(module)
    assert picture(elegy.combine(trainable, rest)) == before
    assert picture(elegy.combine(rest, trainable)) == before
    assert sharing(trainable) == sharing(module)
    assert bits(module.get_parameters(trainable=True)) == bits(trainable.get_parameters())
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(rest)) == len(jax.tree.leaves(module))
    mask = elegy.trainable_mask(module)
    chosen = [leaf for leaf, yes in zip(jax.tree.leaves(module), jax.tree.leaves(mask), strict=True) if yes]
    assert bits(chosen) == bits(trainable)
    inexact, others = eqx.partition(module, eqx.is_inexact_array)
    assert picture(eqx.combine(inexact, others)) == before
    assert all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(trainable))


@some(40)
@given(recipes())
def test_set_after_get_changes_nothing(recipe):
    module = recipe.build()
    before = picture(module)
    for kind in (None, True, False):
        module.set_parameters(module.get_parameters(trainable=kind))
        assert picture(module) == before
    assert bits(module.get_parameters(True)) == bits(elegy.partition(module)[0].get_parameters())


@some(40)
@given(recipes(), st.sampled_from([None, True, False]))
def test_get_after_set_gives_what_was_set(recipe, kind):
    module = recipe.build()
    structure, shared = jax.tree.structure(module), sharing(module)
    others = bits(module.get_parameters(None if kind is None else not kind))
    old = module.get_parameters(kind)
    new = jax.tree.map(lambda leaf: (jnp.asarray(leaf) ^ True) if leaf.dtype == bool else -jnp.asarray(leaf), old)
    module.set_parameters(new)
    assert bits(module.get_parameters(kind)) == bits(new)
    assert jax.tree.structure(module.get_parameters(kind)) == jax.tree.structure(old)
    if kind is not None:
        assert bits(module.get_parameters(not kind)) == others
    assert jax.tree.structure(module) == structure and sharing(module) == shared


@some(30)
@given(recipes(), st.data())
def test_a_wrong_value_anywhere_changes_nothing(recipe, data):
    module = recipe.build()
    before = picture(module)
    values = module.get_parameters()
    leaves, treedef = jax.tree.flatten(values)
    assume(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    wrong = data.draw(
        st.sampled_from([np.zeros((7, 7), leaves[index].dtype), leaves[index].astype(np.complex64), "text"])
    )
    changed = [leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.number) else leaf for leaf in leaves]
    changed[index] = wrong
    with pytest.raises(elegy.errors.ParameterError):
        module.set_parameters(treedef.unflatten(changed))
    assert picture(module) == before


@some(40)
@given(recipes(), st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4))
def test_freezing(recipe, changes):
    module = recipe.build()
    values = bits(module)
    for number, trainable in changes:
        nodes = occurrences(module)
        _, node = nodes[number % len(nodes)]
        node.trainable = trainable
        assert all(below.trainable is trainable for _, below in occurrences(node))
    assert bits(module) == values
    count = len(jax.tree.leaves(module.get_parameters(True))) + len(jax.tree.leaves(module.get_parameters(False)))
    assert count == len(values)
    assert picture(module.copy()) == picture(module)
    module.trainable = False
    assert not jax.tree.leaves(module.get_parameters(True))


@some(30)
@given(specs(), st.integers(0, 3))
def test_save_and_load(spec, seed):
    module, like = build(spec, seed), build(spec, seed + 1)
    with elegy.rng_context(0):
        module(X)
    before, other = picture(module), picture(like)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.safetensors"
        elegy.save(path, module)
        assert picture(module) == before
        back = elegy.load(path, like=like)
        assert bits(back) == bits(module)
        assert jax.tree.structure(back) == jax.tree.structure(like) and sharing(back) == sharing(module)
        assert picture(like) == other  # loading is pure
        elegy.save(path, {"module": module, "step": jnp.asarray(3)})
        both = elegy.load(path, like={"module": like, "step": jnp.asarray(0)})
        assert both["step"] == 3 and bits(both["module"]) == bits(module)


@some(30)
@given(recipes())
def test_reset_and_init(recipe):
    module = recipe.build()
    module.init(X)
    first = sharing(module)
    module.reset()
    assert not module.initialized
    with elegy.rng_context(5):
        module.init(X)
    assert sharing(module) == first
    assert module.initialized


# ---------------------------------------------------------------------------------------------------------------------
# Programs: eager, shim and pure
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """What a function does with a module."""

    what: str
    training: bool
    number: int


@dataclasses.dataclass(frozen=True)
class Phase:
    """What is frozen or unfrozen outside, and the steps of the function that is run then."""

    freezes: tuple[tuple[int, bool], ...]
    steps: tuple[Step, ...]


steps = st.builds(
    Step,
    st.sampled_from(["call", "call", "gradient", "set", "losses", "apply", "nested"]),
    st.booleans(),
    st.integers(1, 3),
)
phases = st.builds(
    Phase,
    freezes=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=2).map(tuple),
    steps=st.lists(steps, min_size=1, max_size=4).map(tuple),
)


def run_steps(module: elegy.Module, x, steps, pure: bool) -> tuple[list[Any], elegy.Module]:
    """The outputs of the steps, and the module to go on with."""
    outputs: list[Any] = []
    for step in steps:
        with elegy.training_context(step.training):
            module = run_step(module, x * step.number, step, pure, outputs)
    return outputs, module


def run_step(module, x, step, pure, outputs):
    if step.what == "call":
        outputs.append(module(x))
    elif step.what == "apply":
        y, updated = module.apply(x)
        outputs.append((y, updated.get_parameters()))
    elif step.what == "losses":
        with elegy.hooks_context(summaries=True):
            module(x)
            summaries = {f"{index}: {path}": value for index, (_, path, value) in enumerate(elegy.get_summaries())}
            outputs.append((dict(elegy.get_losses()), dict(elegy.get_metrics()), summaries))
    elif step.what == "set":
        halved = jax.tree.map(lambda p: p if p.dtype == bool else p - p // 2, module.get_parameters(trainable=None))
        module.set_parameters(halved)
    elif step.what == "nested":
        compiled = elegy.jit(lambda x: module(x), modules=module)
        outputs.append(compiled(x))
    elif step.what == "gradient" and jax.tree.leaves(module.get_parameters(trainable=True)):
        if pure:
            (loss, module), grads = elegy.value_and_grad(lambda module, x: jnp.sum(module(x) ** 2))(module, x)
            grads = grads.get_parameters()
        else:
            loss, grads = elegy.value_and_grad(lambda x: jnp.sum(module(x) ** 2), modules=module)(x)
        parameters = module.get_parameters(trainable=True)
        module.set_parameters(jax.tree.map(lambda p, g: p - (0.1 * g).astype(p.dtype), parameters, grads))
        outputs.append((loss, grads))
    return module


def in_style(style: str, module, steps, key):
    """Runs the steps, and gives the outputs and the module that has the updates."""
    if style == "eager":
        with elegy.rng_context(key):
            return run_steps(module, X, steps, pure=False)[0], module
    static: list[Any] = []

    def function(module, x, key, pure):
        with elegy.rng_context(key):
            outputs, module = run_steps(module, x, steps, pure)
        leaves, treedef = jax.tree.flatten(outputs)
        static.append(treedef)
        return leaves, module

    if style == "shim":
        compiled = elegy.jit(lambda x, key: function(module, x, key, pure=False)[0], modules=module)
        leaves = compiled(X, key)
        return static[-1].unflatten(leaves), module
    if style == "shim, stream of the thread":

        def drawing(x):
            leaves, treedef = jax.tree.flatten(run_steps(module, x, steps, pure=False)[0])
            static.append(treedef)
            return leaves

        with elegy.rng_context(key):
            leaves = elegy.jit(drawing, modules=module)(X)
        return static[-1].unflatten(leaves), module
    transform = jax.jit if style == "jax.jit" else elegy.jit
    leaves, module = transform(lambda module, x, key: function(module, x, key, pure=True))(module, X, key)
    return static[-1].unflatten(leaves), module


def assert_close(one: Any, other: Any) -> None:
    assert isinstance(one, elegy.Module) or jax.tree.structure(one) == jax.tree.structure(other)
    a, b = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        exact = not jnp.issubdtype(left.dtype, jnp.inexact)
        tolerance = 0 if exact else (5e-2 if left.dtype == jnp.bfloat16 else 2e-4)
        np.testing.assert_allclose(
            np.asarray(left, np.float64), np.asarray(right, np.float64), rtol=tolerance, atol=tolerance
        )


@some(24)
@given(
    st.sampled_from(["shim", "shim, stream of the thread", "jax.jit", "elegy.jit, pure"]),
    specs(depth=2),
    st.lists(phases, min_size=1, max_size=2),
    st.booleans(),
)
def test_programs_do_the_same_in_every_style(style, spec, program, lazily):
    # A function that looks at a module before it calls it sees one that is initialised already, if it is compiled.
    first = program[0].steps[0].what
    lazily = lazily and style.startswith("shim") and first in ("call", "losses", "nested")
    eager, other = build(spec, 0, initialise=not lazily), build(spec, 0, initialise=not lazily)
    for index, phase in enumerate(program):
        for number, trainable in phase.freezes:
            for module in (eager, other):
                nodes = occurrences(module)
                nodes[number % len(nodes)][1].trainable = trainable
        key = jax.random.key(index)
        expected, eager = in_style("eager", eager, phase.steps, key)
        outputs, other = in_style(style, other, phase.steps, key)
        assert_close(outputs, expected)
        assert sharing(other) == sharing(eager)
        assert jax.tree.structure(other) == jax.tree.structure(eager)
        assert_close(other, eager)
        assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(other))


def test_the_strategies_reach_what_they_are_for():
    """The properties above would hold of empty modules too."""
    seen = {"shared": 0, "frozen": 0, "created": 0, "list": 0, "state": 0, "deep": 0}

    @settings(settings.get_profile("modules"), max_examples=80)
    @given(specs())
    def look(spec):
        module = build(spec)
        paths = sharing(module)
        seen["shared"] += len({number for _, number in paths}) < len(paths)
        seen["frozen"] += any(not node.trainable for _, node in occurrences(module))
        seen["created"] += bool(spec.created)
        seen["list"] += any(
            isinstance(value, (list, dict)) for _, node in occurrences(module) for value in vars(node).values()
        )
        seen["state"] += bool(jax.tree.leaves(module.get_parameters(trainable=False)))
        seen["deep"] += any(len(path) > 2 for path, _ in paths)

    look()
    assert all(count >= 3 for count in seen.values()), seen
    assert len(strategies._classes) > 20
