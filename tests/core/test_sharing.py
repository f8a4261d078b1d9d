"""A module that is reachable by two paths is one module, everywhere and after everything."""

import copy
import gc
import pickle
import typing as tp
import warnings

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from tests.helpers import Affine, Counter, assert_close, assert_same, batch, concrete

# Module level, so that pickle finds them.


class TwoAttributes(elegy.Module):
    def __init__(self):
        self.first = Affine(3)
        self.second = self.first

    def occurrences(self):
        return [self.first, self.second]

    def call(self, x):
        return self.second(self.first(x))


class ListAndAttribute(elegy.Module):
    def __init__(self):
        self.own = Affine(3)
        self.layers = [Affine(3), self.own, self.own]

    def occurrences(self):
        return [self.own, self.layers[1], self.layers[2]]

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.own(x)


class DictsOfLists(elegy.Module):
    def __init__(self):
        shared = Affine(3)
        self.blocks = {"b": [shared, Affine(3)], "a": ({"deep": shared},)}

    def occurrences(self):
        return [self.blocks["b"][0], self.blocks["a"][0]["deep"]]

    def call(self, x):
        return self.blocks["a"][0]["deep"](self.blocks["b"][1](self.blocks["b"][0](x)))


class Holder(elegy.Module):
    def __init__(self, inner):
        self.inner = inner

    def call(self, x):
        return self.inner(x)


class TwoParents(elegy.Module):
    def __init__(self):
        shared = Affine(3)
        self.left = Holder(shared)
        self.right = Holder(shared)

    def occurrences(self):
        return [self.left.inner, self.right.inner]

    def call(self, x):
        return self.right(self.left(x))


class DeepParents(elegy.Module):
    """The shared module lies at different depths, one of them in a module that is itself shared."""

    def __init__(self):
        shared = Affine(3)
        middle = Holder(Holder(shared))
        self.left = Holder(middle)
        self.right = [middle, Holder(shared)]

    def occurrences(self):
        return [self.left.inner.inner.inner, self.right[0].inner.inner, self.right[1].inner]

    def call(self, x):
        return self.right[1](self.right[0](self.left(x)))


class MadeInCall(elegy.Module):
    """Made by a hook, and given to another module that keeps it."""

    def call(self, x):
        shared = Affine(3)
        holder = Holder(shared)
        return holder(shared(x))

    def occurrences(self):
        return [self.affine, self.holder.inner]


class ParentAndChild(elegy.Module):
    """Shared between a module and its own child."""

    def __init__(self):
        self.holder = Holder(Affine(3))
        self.direct = self.holder.inner

    def occurrences(self):
        return [self.holder.inner, self.direct]

    def call(self, x):
        return self.direct(self.holder(x))


KINDS = [TwoAttributes, ListAndAttribute, DictsOfLists, TwoParents, DeepParents, MadeInCall, ParentAndChild]
OTHERS = {ListAndAttribute: 1, DictsOfLists: 1}  # further, unshared layers

every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind):
    return kind().init(batch()[0], rng=0)


def assert_shared(module):
    first, *rest = module.occurrences()
    assert isinstance(first, Affine)
    assert all(other is first for other in rest)


@every_kind
def test_counted_once(kind):
    module = made(kind)
    layers = 1 + OTHERS.get(kind, 0)
    assert_shared(module)
    assert len(jax.tree.leaves(module)) == 2 * layers
    assert len(jax.tree.leaves(module.get_parameters())) == 2 * layers
    assert module.parameters_size() == 12 * layers
    assert module.parameters_bytes() == 48 * layers
    assert len(jax.tree.leaves(elegy.partition(module)[0])) == 2 * layers
    assert len(jax.tree.leaves(elegy.trainable_mask(module))) == 2 * layers
    state: tp.Any = optax.adam(1e-3).init(module.get_parameters())
    assert len(jax.tree.leaves(state[0].mu)) == 2 * layers
    assert len(jax.tree_util.tree_flatten_with_path(module)[0]) == 2 * layers


@every_kind
def test_gradients_are_summed_over_the_uses(kind):
    x, _ = batch()
    module = made(kind)
    step = lambda m: jnp.sum(m(x) ** 2)  # noqa: E731
    loss, grads = elegy.value_and_grad(lambda: step(module), modules=module)()
    assert jax.tree.structure(grads) == jax.tree.structure(module.get_parameters())
    # Finite differences of the one shared bias.
    b, epsilon = module.occurrences()[0].b, 1e-2
    direction = jnp.asarray([1.0, -1.0, 0.5])
    values = []
    for sign in (1, -1):
        moved = module.copy()
        moved.occurrences()[0].set_parameters({"b": b + sign * epsilon * direction})
        values.append(step(moved))
    (found,) = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(jax.grad(step)(module))[0]
        if leaf.shape == (3,) and not is_unshared(kind, path)
    ]
    np.testing.assert_allclose(found @ direction, (values[0] - values[1]) / (2 * epsilon), rtol=2e-2)
    assert_close(jax.grad(step)(module).get_parameters(), grads, rtol=1e-4)
    assert np.isfinite(loss)


def is_unshared(kind, path):
    text = jax.tree_util.keystr(path)
    return (kind is ListAndAttribute and "layers[0]" in text) or (kind is DictsOfLists and "['b'][1]" in text)


ROUND_TRIPS = {
    "tree.map": lambda m: jax.tree.map(lambda leaf: leaf, m),
    "jit": lambda m: jax.jit(lambda m: m)(m),
    "jit called twice": lambda m: jax.jit(lambda m: m)(jax.jit(lambda m: m)(m)),
    "elegy.jit": lambda m: elegy.jit(lambda m: m)(m),
    "vmap": lambda m: jax.tree.map(lambda a: a[0], jax.vmap(lambda m, _: m, in_axes=(None, 0))(m, jnp.ones(2))),
    "scan": lambda m: jax.lax.scan(lambda m, _: (m, None), m, length=2)[0],
    "eval_shape": lambda m: jax.tree.map(lambda s, a: a, jax.eval_shape(lambda m: m, m), m),
    "partition and combine": lambda m: elegy.combine(*elegy.partition(m)),
    "copy": lambda m: m.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "cloudpickle": lambda m: cloudpickle.loads(cloudpickle.dumps(m)),
    "device_put": lambda m: jax.device_put(m),
    "equinox partition": lambda m: eqx.combine(*eqx.partition(m, eqx.is_array)),
    "apply": lambda m: m.apply(batch()[0])[1],
}


@pytest.mark.slow
@pytest.mark.parametrize("trip", list(ROUND_TRIPS))
@every_kind
def test_still_shared_after(kind, trip):
    x, _ = batch()
    module = made(kind)
    expected = module(x)
    moved = ROUND_TRIPS[trip](module)
    assert moved is not module and type(moved) is kind
    assert_shared(moved)
    assert moved.occurrences()[0] is not module.occurrences()[0]
    assert_same(moved.get_parameters(), module.get_parameters())
    assert jax.tree.structure(moved) == jax.tree.structure(module)
    np.testing.assert_allclose(moved(x), expected, rtol=1e-6)
    # An update of one occurrence is an update of all, and of the moved module only.
    moved.occurrences()[-1].set_parameters({"b": jnp.full([3], 5.0)})
    assert moved.occurrences()[0].b[0] == 5.0 and module.occurrences()[0].b[0] == 0.0
    assert len(jax.tree.leaves(moved)) == len(jax.tree.leaves(module))


@every_kind
def test_still_shared_after_a_round_trip_on_disk(kind, tmp_path):
    x, _ = batch()
    module = made(kind)
    path = tmp_path / "module.safetensors"
    elegy.save(path, module)
    loaded = elegy.load(path, like=kind().init(x, rng=1))
    assert_shared(loaded)
    assert_same(loaded.get_parameters(), module.get_parameters())
    np.testing.assert_allclose(loaded(x), module(x), rtol=1e-6)


@every_kind
def test_not_shared_before_a_first_call_either(kind):
    x, _ = batch()
    module = kind()
    if kind is not MadeInCall:
        assert_shared(jax.tree.map(lambda leaf: leaf, module))
        assert_shared(copy.deepcopy(module))
        assert_shared(pickle.loads(pickle.dumps(module)))
    elegy.jit(module)(x)
    assert_shared(module)


@every_kind
def test_trained_once_per_step(kind):
    x, _ = batch()
    x = x / 10
    module = made(kind)
    reference = module.copy()
    optimizer = optax.sgd(0.01)

    def loss_fn(module):
        return jnp.mean(module(x) ** 2)

    def update():
        loss, grads = elegy.value_and_grad(lambda: loss_fn(module), modules=module)()
        parameters = module.get_parameters(trainable=True)
        module.set_parameters(jax.tree.map(lambda p, g: p - 0.01 * g, parameters, grads))
        return loss

    step = elegy.jit(update, modules=module)
    state = optimizer.init(reference)
    for _ in range(3):
        loss = step()
        expected, grads = jax.value_and_grad(loss_fn)(reference)
        updates, state = optimizer.update(grads, state)
        reference = optax.apply_updates(reference, updates)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
        assert_shared(reference)
    assert_close(module.get_parameters(), reference.get_parameters(), rtol=1e-4)
    assert_shared(module)
    assert step.traces == 1 and concrete(module)


@every_kind
def test_tree_at_replaces_the_one_module(kind):
    module = made(kind)
    changed = eqx.tree_at(lambda m: m.occurrences()[0].b, module, jnp.ones(3))
    assert_shared(changed)
    np.testing.assert_array_equal(changed.occurrences()[-1].b, jnp.ones(3))
    assert not module.occurrences()[0].b.any()


@every_kind
def test_frozen_once(kind):
    module = made(kind)
    module.occurrences()[-1].trainable = False
    assert len(jax.tree.leaves(module.get_parameters(trainable=True))) == 2 * OTHERS.get(kind, 0)
    assert not module.occurrences()[0].trainable
    module.occurrences()[0].trainable = True
    assert len(jax.tree.leaves(module.get_parameters(trainable=True))) == 2 + 2 * OTHERS.get(kind, 0)


def test_shared_state_is_updated_by_every_use():
    class Shares(elegy.Module):
        def __init__(self):
            self.a = Counter()
            self.listed = [self.a, Counter()]

        def call(self, x):
            self.a()
            for counter in self.listed:
                counter()
            return x

    module = Shares().init(1.0)
    step = elegy.jit(module)
    step(1.0)
    module(1.0)
    assert int(module.a.n) == 4 and int(module.listed[0].n) == 4 and int(module.listed[1].n) == 2
    _, updated = jax.jit(lambda m: (m(1.0), m))(module)
    assert int(updated.a.n) == 6 and updated.a is updated.listed[0]
    carried, _ = jax.lax.scan(lambda m, _: ((m(1.0), m)[1], None), module, length=3)
    assert int(carried.a.n) == 10


def test_get_and_set_parameters_of_a_shared_module():
    module = made(ListAndAttribute)
    parameters = module.get_parameters()
    assert list(parameters) == ["own", "layers"]
    assert parameters["layers"][1:] == [(), ()] and set(parameters["layers"][0]) == {"w", "b"}
    module.set_parameters(jax.tree.map(jnp.ones_like, parameters))
    assert (module.layers[2].w == 1).all()
    # By its other path it can be set too.
    module.set_parameters({"layers": [(), (), {"b": jnp.full([3], 7.0)}]})
    assert module.own.b[0] == 7.0


def test_modules_shared_between_two_roots():
    x, _ = batch()
    shared = Affine(3)
    a, b = Holder(shared), Holder(shared)

    def loss_fn():
        return jnp.sum(a(x) + b(x))

    loss, (grads_a, grads_b) = elegy.value_and_grad(loss_fn, modules=(a, b))()
    _, whole = elegy.value_and_grad(loss_fn, modules=shared)()
    assert_close(grads_a["inner"], whole)
    assert jax.tree.leaves(grads_b) == []
    step = elegy.jit(loss_fn, modules=[b, a, shared])
    assert_close(step(), loss)
    assert a.inner is b.inner is shared

    def update():
        shared.set_parameters({"b": shared.b + 1})

    elegy.jit(update, modules=[a, b])()
    np.testing.assert_array_equal(shared.b, jnp.ones(3))


def test_sharing_is_part_of_the_structure():
    class Pair(elegy.Module):
        def __init__(self, a, b):
            self.a, self.b = a, b

        def call(self, x):
            return self.a(x) + self.b(x)

    x, _ = batch()
    layer = Affine(3)
    shared, apart = Pair(layer, layer).init(x), Pair(Affine(3), Affine(3)).init(x)
    assert jax.tree.structure(shared) != jax.tree.structure(apart)
    step = jax.jit(lambda m: (m(x), m))
    (a, new_shared), (b, new_apart) = step(shared), step(apart)
    assert step._cache_size() == 2
    assert new_shared.a is new_shared.b and new_apart.a is not new_apart.b
    assert len(jax.tree.leaves(new_apart)) == 4
    assert a.shape == b.shape


def test_one_array_in_two_places_is_two_parameters():
    # Sharing is that of modules: an array is a value.
    x, _ = batch()
    a = Affine(3).init(x)
    b = Affine(3).init(x)
    b.set_parameters(a.get_parameters())
    module = Holder(None)
    assert module.submodules == {}
    pair = [a, b]
    moved = jax.tree.map(lambda leaf: leaf, pair)
    assert moved[0] is not moved[1]
    elegy.jit(lambda: a.set_parameters({"b": a.b + 1}), modules=[a, b])()
    assert a.b[0] == 1 and b.b[0] == 0


def test_many_occurrences():
    class Many(elegy.Module):
        def __init__(self):
            layer = Affine(3)
            self.layers = [Holder(layer) for _ in range(30)]

        def call(self, x):
            for layer in self.layers:
                x = layer(x) / 3
            return x

    x, _ = batch()
    module = Many().init(x)
    assert len(jax.tree.leaves(module)) == 2
    moved = jax.jit(lambda m: m)(module)
    assert len({id(holder.inner) for holder in moved.layers}) == 1
    assert_close(elegy.jit(moved)(x), module(x))


# ---------------------------------------------------------------------------------------------------------------------
# Sharing that arises in the first call
# ---------------------------------------------------------------------------------------------------------------------


class Takes(elegy.Module):
    """Makes a module that holds what it is given."""

    def call(self, x, shared):
        return Holder(shared)(x)


class Late(elegy.Module):
    """The parent learns of the sharing by what its child does."""

    def __init__(self):
        self.shared = Affine(3)
        self.takes = Takes()

    def call(self, x):
        return self.takes(x, self.shared)


def looked_at():
    module = Late()
    jax.tree.leaves(module)
    return module


FIRST_CALLS: dict[str, tp.Callable[[tp.Any], tp.Any]] = {
    "call": lambda x: called(Late(), x),
    "call after a look": lambda x: called(looked_at(), x),
    "init after a look": lambda x: looked_at().init(x),
    "apply": lambda x: Late().apply(x)[1],
    "apply after a look": lambda x: looked_at().apply(x)[1],
    "elegy.jit": lambda x: called_by(elegy.jit, x),
    "elegy.remat": lambda x: called_by(elegy.remat, x),
    "copy": lambda x: called(looked_at(), x).copy(),
    "fit": lambda x: fitted(x),
}


def called(module, x):
    module(x)
    return module


def called_by(transform, x):
    module = looked_at()
    transform(module)(x)
    return module


def fitted(x):
    model = elegy.Model(Late(), loss=elegy.losses.MeanSquaredError(), optimizer=elegy.Optimizer(optax.sgd(0.1)))
    model.fit(np.asarray(x), np.zeros_like(x), batch_size=len(x), verbose=0)
    return model.module


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_sharing_that_arises_in_the_first_call_is_known(name):
    x, _ = batch()
    module = FIRST_CALLS[name](x)
    assert module.takes.holder.inner is module.shared
    assert len(jax.tree.leaves(module)) == 2
    for other in (module.copy(), jax.tree.map(lambda leaf: leaf, module)):
        assert other.takes.holder.inner is other.shared
        other.set_parameters({"shared": {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)}})
        np.testing.assert_array_equal(other(x), np.zeros((6, 3)))
    grads = jax.grad(lambda module: module(x).sum())(module)
    np.testing.assert_allclose(grads.shared.b, [6.0, 6.0, 6.0])


def test_state_above_a_shared_module_is_returned_and_not_lost():
    """The outer module finds the inner one in two places, and the counter is between them."""

    class Counting(elegy.Module):
        def __init__(self, inner):
            self.inner = inner

        def call(self, x):
            n = self.add_parameter("n", [], jnp.int32, jnp.zeros, trainable=False)
            self.update_parameter("n", n + 1)
            return self.inner(x)

    class Outer(elegy.Module):
        def call(self, x):
            return Counting(Affine())(x)

    x = jnp.ones([2, 3])
    outer = Outer().init(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, outer = jax.jit(lambda outer, x: (outer(x), outer))(outer, x)
        gc.collect()
    assert outer.counting.n == 1
    assert caught == []
