"""The init pass: keys, values of constructors, initial values made in the call, and functions that ask too early."""

import copy
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import ParameterError, TraceError, UninitialisedWarning
from tests.helpers import Affine, assert_close, assert_same, batch

X = jnp.ones((2, 3))
normal = jax.nn.initializers.normal()


class Part(elegy.Module):
    """Draws one parameter in the constructor, by an initializer that draws its own key."""

    def __init__(self):
        self.scale = self.add_parameter("scale", [2], initializer=elegy.initializers.RandomUniform())
        self.count = self.add_parameter("count", [], jnp.int32, jnp.zeros, trainable=False)

    def call(self, x):
        return x * jnp.broadcast_to(self.scale, x.shape)


class Eager(elegy.Module):
    """Draws one parameter in the constructor, and others in the call."""

    def __init__(self):
        self.w = self.add_parameter("w", [3, 2], initializer=normal)
        self.parts = [Part(), Part()]
        self.last = Affine(2)

    def call(self, x):
        y = x @ self.w
        for part in self.parts:
            y = part(y)
        return self.last(y)


class Lazy(elegy.Module):
    """The first parameter of `Eager`, drawn in the call."""

    def call(self, x):
        return x @ self.add_parameter("w", [3, 2], initializer=normal)


# ---------------------------------------------------------------------------------------------------------------------
# What constructors draw
# ---------------------------------------------------------------------------------------------------------------------


def test_a_key_of_init_decides_what_the_constructors_drew_too():
    first, same, other = (Eager().init(X, rng=seed) for seed in (0, 0, 1))
    assert_same(first, same)
    assert (first.w != other.w).all() and (first.last.w != other.last.w).all()
    assert (first.parts[0].scale != first.parts[1].scale).all() and (first.parts[0].scale != other.parts[0].scale).all()
    np.testing.assert_array_equal(first.w, Lazy().init(X, rng=0).w)  # by the same rule of keys by path


def test_without_a_key_init_keeps_them():
    module = Eager()
    w, scale = module.w, module.parts[0].scale
    module.init(X)
    assert module.w is w and module.parts[0].scale is scale
    assert module.init(X, rng=3).w is w  # it is initialised


def test_what_was_replaced_since_is_kept():
    module = Eager()
    module.set_parameters({"w": jnp.zeros((3, 2)), "parts": [{"count": 5}, {}]})
    module = eqx.tree_at(lambda m: m.parts[0].scale, module, jnp.full(2, 7.0))
    module.init(X, rng=0)
    assert (module.w == 0).all() and (module.parts[0].scale == 7).all() and module.parts[0].count == 5
    np.testing.assert_array_equal(module.parts[1].scale, Eager().init(X, rng=0).parts[1].scale)


def test_what_ran_before_is_kept():
    """A part of a model that was in use already stays as it is, whatever it is made of."""

    class Outer(elegy.Module):
        def __init__(self, inner):
            self.inner = inner

        def call(self, x):
            return Affine(2)(self.inner(x))

    inner = Eager()
    y = inner(X)
    outer = Outer(inner).init(X, rng=0)
    np.testing.assert_array_equal(outer.inner(X), y)


@pytest.mark.parametrize("duplicate", [lambda m: m.copy(), copy.copy, lambda m: jax.tree.map(lambda leaf: leaf, m)])
def test_copies_are_drawn_anew_and_the_original_is_not(duplicate):
    module = Eager()
    before = module.w
    assert_same(duplicate(module).init(X, rng=0), Eager().init(X, rng=0))
    assert module.w is before and not module.initialized


@pytest.mark.parametrize("inside", [True, False])
def test_each_lane_of_a_map_over_keys_is_drawn_by_its_key(inside):
    keys = jax.random.split(jax.random.key(0), 3)
    outside = Eager()
    members = jax.vmap(lambda key: (Eager() if inside else outside.copy()).init(X, rng=key))(keys)
    for lane in range(3):
        alone = Eager().init(X, rng=keys[lane])
        assert_close(jax.tree.map(lambda leaf, lane=lane: leaf[lane], members), alone)


def test_modules_made_and_initialised_inside_transforms():
    expected = Eager().init(X, rng=0)
    shapes = jax.eval_shape(lambda: Eager().init(X, rng=0))
    assert jax.tree.structure(shapes) == jax.tree.structure(expected)
    assert jax.tree.leaves(jax.tree.map(lambda a, b: a.shape == b.shape, shapes, expected))
    assert_close(jax.jit(lambda key: Eager().init(X, rng=key))(jax.random.key(0)), expected)


@pytest.mark.parametrize(
    "use",
    [lambda m: m(X), lambda m: m, lambda m: m.apply(X)[0], lambda m: m.parts[0], lambda m: m.w, lambda m: m.copy()],
)
def test_what_was_drawn_without_a_stream_is_not_used(use):
    with pytest.raises(TraceError, match=r"the parameter '(w|scale)' .* random stream[\s\S]*init\(x, rng=key\)"):
        jax.jit(lambda: use(Eager()))()


def test_a_failed_init_leaves_the_values_of_the_constructor():
    class Fails(Eager):
        def call(self, x):
            super().call(x)
            raise RuntimeError("of the user")

    module = Fails()
    w = module.w
    with pytest.raises(RuntimeError, match="of the user"):
        module.init(X, rng=0)
    assert module.w is w and not module.initialized and "w" not in module.last.__dict__


# ---------------------------------------------------------------------------------------------------------------------
# Initial values that are made in the call
# ---------------------------------------------------------------------------------------------------------------------


def test_constants_made_in_the_call():
    """They cost no second run, also where there are only shapes."""
    runs = []

    class Net(elegy.Module):
        def call(self, x):
            runs.append(elegy.is_initializing())
            a = self.add_parameter("a", initializer=jnp.array(0.5))
            b = self.add_parameter("b", initializer=jnp.array([1.0, 2.0]) * 3)
            c = self.add_parameter("c", initializer=lambda: {"one": jnp.ones(2), "two": jnp.arange(3)})
            return (x * a).sum() + b.sum() + c["one"].sum()

    def check(net):
        assert net.a == 0.5 and net.a.dtype == jnp.float32 and not net.a.weak_type
        np.testing.assert_array_equal(net.b, [3.0, 6.0])
        np.testing.assert_array_equal(net.c["two"], [0, 1, 2])

    net = Net()
    net(X)
    assert runs == [True, False]
    check(net)
    runs.clear()
    check(Net().init(jax.ShapeDtypeStruct((2, 3), jnp.float32)))
    assert runs == [True]
    runs.clear()
    net = Net()
    elegy.jit(net)(X)
    check(net)
    assert runs == [True, False]


def test_values_of_the_data_are_computed_and_the_rest_is_not():
    executed = []

    def report(x):
        executed.append(x)
        return x

    class Net(elegy.Module):
        def call(self, x):
            noise = jax.pure_callback(report, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
            mean = self.add_parameter("mean", initializer=jnp.mean(x, axis=0))
            return x - jnp.broadcast_to(mean, x.shape) + noise

    x, _ = batch()
    net = Net().init(x)
    np.testing.assert_allclose(net.mean, np.mean(x, axis=0), rtol=1e-6)
    assert executed == []
    with pytest.raises(ParameterError, match="net/mean: the initializer uses data of the call"):
        Net().init(jax.ShapeDtypeStruct(x.shape, x.dtype))


def test_constants_in_a_stack_and_in_an_ensemble():
    class Block(elegy.Module):
        def call(self, x):
            return x * self.add_parameter("a", initializer=jnp.array(0.5))

    class OfData(elegy.Module):
        def call(self, x):
            return x * self.add_parameter("a", initializer=jnp.mean(x))

    stack = elegy.nn.Stack(Block, 3)
    np.testing.assert_allclose(stack(X), X / 8)
    assert [leaf.tolist() for leaf in jax.tree.leaves(stack)] == [[0.5] * 3]
    with pytest.raises(ParameterError, match="a: the initializer uses data of the call, but the module is stacked"):
        elegy.nn.Stack(OfData, 3)(X)


# ---------------------------------------------------------------------------------------------------------------------
# Functions that ask before anything is there
# ---------------------------------------------------------------------------------------------------------------------


def update_of(net):
    def update(x, y):
        parameters = net.get_parameters(trainable=True)
        loss, grads = elegy.value_and_grad(lambda x, y: jnp.mean((net(x) - y) ** 2), modules=net)(x, y)
        net.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, parameters, grads))
        return loss

    return update


def test_parameters_read_before_the_first_use():
    x, y = batch()
    lazy, known = Affine(1), Affine(1).init(x)
    elegy.set_rng(42)
    known = Affine(1).init(x)
    elegy.set_rng(42)
    step, reference = elegy.jit(update_of(lazy), modules=lazy), elegy.jit(update_of(known), modules=known)
    losses = [(float(step(x, y)), float(reference(x, y))) for _ in range(3)]
    assert step.traces == 1 and losses[0][0] > losses[2][0]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-6)
    assert_close(lazy.get_parameters(), known.get_parameters())


def test_two_modules_that_need_each_other_first():
    """Each pass creates one more, until nothing is missing."""
    first, second = Affine(2), Affine(1)

    def update(x):
        first(x)
        first.w + 0  # AttributeError before the first run
        second(x)
        return first(x).sum() + (second.w * second.w).sum()

    def wrong_way(x):
        y = first(x)
        return (y @ first.w.T).sum() + second(x).sum()

    x, _ = batch()
    for function in (update, wrong_way):
        first.reset(), second.reset()
        assert elegy.jit(function, modules=[first, second])(x).shape == ()
        assert first.initialized and second.initialized


def test_an_error_of_the_function_counts_when_nothing_more_is_created():
    net, runs = Affine(1), []

    def fails(x):
        runs.append(None)
        net(x)
        raise ValueError("of the user")

    for transform in (elegy.jit, elegy.value_and_grad):
        runs.clear()
        with pytest.raises(ValueError, match="of the user"):
            transform(fails, modules=net)(X)
        assert len(runs) == 2 and not net.initialized and jax.tree.leaves(net) == []


def test_what_the_function_makes_for_itself_is_nothing_new():
    """It is new in each pass, which would be repeated for ever."""
    net, runs = Affine(1), []

    def fails(x):
        runs.append(None)
        assert len(runs) < 10
        net(x)
        Affine(2)(x)
        raise ValueError("of the user")

    with pytest.raises(ValueError, match="of the user"):
        elegy.jit(fails, modules=net)(X)
    assert len(runs) == 2 and not net.initialized


def test_asking_a_module_that_never_ran_for_its_trainable_parameters():
    module = elegy.nn.Sequential([Affine(2), Affine(1)])
    with pytest.warns(UninitialisedWarning, match=r"sequential has no trainable parameters yet[\s\S]*init\(x\)"):
        optax.adam(1e-3).init(module.get_parameters(trainable=True))


def test_questions_that_are_right_give_no_warning():
    frozen = Affine(2)
    frozen.trainable = False

    class Constructed(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [2], initializer=jnp.ones)

        def call(self, x):
            return x * self.w

    class Holder(elegy.Module):
        def __init__(self):
            self.affine = Affine(2).init(X)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in (frozen, Constructed(), Holder(), elegy.nn.Flatten().init(X)):
            module.get_parameters(trainable=True)
            elegy.partition(module)
        Affine(2).get_parameters()
        Affine(2).get_parameters(trainable=False)
