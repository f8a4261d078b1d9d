"""Equinox's functions work on modules, its layers inside them, and modules inside its layers."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


class Linear(elegy.Module):
    def __init__(self, size, name=None):
        super().__init__(name=name)
        self.size = size

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.size], initializer=jax.nn.initializers.normal())
        b = self.add_parameter("b", [self.size])
        return x @ w + b[None]


class Norm(elegy.Module):
    def call(self, x):
        mean = self.add_parameter("mean", [x.shape[-1]], trainable=False)
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        if elegy.training():
            self.update_parameter("mean", 0.9 * mean + 0.1 * jnp.mean(x, axis=0))
            self.update_parameter("count", count + 1)
        return x - mean[None]


class Net(elegy.Module):
    def __init__(self):
        self.layers = [Linear(3), Norm()]
        self.shared = self.layers[0]
        self.activation = jnp.tanh

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return Linear(2)(self.activation(self.shared(x)))


def trained():
    return Net().init(X, rng=0)


def evaluate(net, x=X):
    with elegy.training_context(False):
        return np.asarray(net(x))


def values(tree):
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(tree)]


# ---------------------------------------------------------------------------------------------------------------------
# tree_at
# ---------------------------------------------------------------------------------------------------------------------


def test_tree_at_replaces_a_leaf():
    net = trained()
    before = values(net)
    new = eqx.tree_at(lambda m: m.linear.w, net, jnp.zeros_like(net.linear.w))
    assert values(net) == before
    assert not new.linear.w.any() and new.linear.b is net.linear.b
    assert type(new) is Net and new.initialized and jax.tree.structure(new) == jax.tree.structure(net)
    np.testing.assert_allclose(evaluate(new), 0, atol=1e-6)
    new(X)
    assert new.layers[1].count == 1 and net.layers[1].count == 0


def test_tree_at_replaces_several_leaves_and_uses_replace_fn():
    net = trained()
    new = eqx.tree_at(lambda m: (m.linear.w, m.layers[1].mean), net, replace_fn=lambda leaf: leaf + 1)
    np.testing.assert_array_equal(new.linear.w, net.linear.w + 1)
    np.testing.assert_array_equal(new.layers[1].mean, net.layers[1].mean + 1)
    other = eqx.tree_at(lambda m: [m.layers[0].w, m.linear.b], net, [jnp.zeros([3, 3]), jnp.ones(2)])
    np.testing.assert_array_equal(evaluate(other), evaluate(eqx.tree_at(lambda m: m.linear.b, other, jnp.ones(2))))


def test_tree_at_may_change_shape_and_dtype():
    net = trained()
    new = eqx.tree_at(lambda m: m.linear.w, net, jnp.ones([3, 2], jnp.bfloat16))
    assert new.linear.w.dtype == jnp.bfloat16 and new.get_parameters()["linear"]["w"].dtype == jnp.bfloat16


def test_tree_at_of_a_shared_leaf_changes_it_everywhere():
    net = trained()
    for where in (lambda m: m.layers[0].w, lambda m: m.shared.w):
        new = eqx.tree_at(where, net, jnp.zeros([3, 3]))
        assert new.shared is new.layers[0]
        assert not new.shared.w.any()


def test_tree_at_replaces_a_submodule():
    net = trained()
    other = Linear(2).init(X, rng=5)
    new = eqx.tree_at(lambda m: m.linear, net, other)
    np.testing.assert_array_equal(new.linear.w, other.w)
    assert net.linear.w is not new.linear.w
    assert evaluate(new).shape == (2, 2)
    assert len(jax.tree.leaves(new)) == len(jax.tree.leaves(net))
    loss, grads = elegy.value_and_grad(lambda x: new(x).sum(), modules=new)(X)
    assert grads["linear"]["w"].shape == (3, 2)
    elegy.jit(new)(X)


def test_tree_at_replaces_a_submodule_of_a_list_by_another_class():
    net = trained()
    new = eqx.tree_at(lambda m: m.layers[1], net, Linear(3).init(X, rng=5))
    assert isinstance(new.layers[1], Linear) and isinstance(net.layers[1], Norm)
    assert evaluate(new).shape == (2, 2)
    assert new.shared is new.layers[0]
    assert jax.tree.structure(new) != jax.tree.structure(net)
    assert set(new.get_parameters()["layers"][1]) == {"w", "b"}
    frozen = eqx.tree_at(lambda m: m.layers[1], net, eqx.nn.Identity())
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(net)) - 2


def test_tree_at_replaces_a_shared_submodule_everywhere():
    net = trained()
    other = Linear(3).init(X, rng=5)
    for where in (lambda m: m.layers[0], lambda m: m.shared):
        new = eqx.tree_at(where, net, other)
        assert new.shared is new.layers[0]
        np.testing.assert_array_equal(new.shared.w, other.w)
        assert len(jax.tree.leaves(new)) == len(jax.tree.leaves(net))


def test_tree_at_separates_nothing_else():
    """The other children of a changed module are its own: a copy, as after `tree.map`."""
    net = trained()
    new = eqx.tree_at(lambda m: m.linear.b, net, jnp.ones(2))
    new(X)
    new.layers[0].trainable = False
    assert net.layers[1].count == 0 and net.layers[0].trainable


def test_tree_at_keeps_what_is_frozen():
    net = trained()
    net.layers[0].trainable = False
    new = eqx.tree_at(lambda m: m.linear.b, net, jnp.ones(2))
    assert not new.layers[0].trainable and new.linear.trainable
    assert "layers" not in new.get_parameters(trainable=True) or not jax.tree.leaves(
        new.get_parameters(trainable=True)["layers"]
    )


def test_tree_at_puts_none_and_takes_it_back():
    net = trained()
    without = eqx.tree_at(lambda m: m.linear.b, net, None)
    assert without.linear.b is None and len(jax.tree.leaves(without)) == len(jax.tree.leaves(net)) - 1
    back = eqx.tree_at(lambda m: m.linear.b, without, net.linear.b, is_leaf=lambda leaf: leaf is None)
    assert values(back) == values(net)
    assert jax.tree.structure(back) == jax.tree.structure(net)


def test_tree_at_on_the_root_of_an_uninitialised_module():
    class Holds(elegy.Module):
        def __init__(self):
            self.inner = Linear(3)
            self.array = jnp.ones(3)

        def call(self, x):
            return self.inner(x) * self.array[None]

    net = Holds()
    new = eqx.tree_at(lambda m: m.array, net, jnp.zeros(3))
    assert not new.initialized
    assert not np.asarray(new(X)).any() and new.initialized and not net.initialized
    replaced = eqx.tree_at(lambda m: m.inner, net, Linear(3).init(X))
    assert replaced(X).shape == (2, 3)


def test_tree_at_inside_a_transform():
    net = trained()

    @jax.jit
    def double(net, x):
        return eqx.tree_at(lambda m: m.linear.w, net, replace_fn=lambda w: 2 * w)

    np.testing.assert_array_equal(double(net, X).linear.w, 2 * net.linear.w)


# ---------------------------------------------------------------------------------------------------------------------
# Other functions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", [eqx.is_array, eqx.is_inexact_array, lambda leaf: leaf.ndim == 2], ids=["array", "inexact", "matrix"]
)
def test_partition_and_combine(what):
    net = trained()
    yes, no = eqx.partition(net, what)
    assert type(yes) is Net and yes.shared is yes.layers[0]
    assert len(jax.tree.leaves(yes)) + len(jax.tree.leaves(no)) == len(jax.tree.leaves(net))
    whole = eqx.combine(yes, no)
    assert values(whole) == values(net) and jax.tree.structure(whole) == jax.tree.structure(net)
    assert whole.shared is whole.layers[0]
    np.testing.assert_array_equal(evaluate(whole), evaluate(net))


def test_filter_is_what_equinox_does():
    net = trained()
    assert values(eqx.filter(net, eqx.is_array)) == values(net)


def test_filter_jit_traces_once():
    net = trained()
    traces = []

    @eqx.filter_jit
    def run(net, x, mode):
        traces.append(mode)
        return net(x), net

    y, updated = run(net, X, "a")
    run(updated, X, "a")
    run(net.copy(), X, "a")
    assert traces == ["a"]
    run(net, X, "b")
    assert traces == ["a", "b"]
    assert updated.layers[1].count == 1 and net.layers[1].count == 0
    np.testing.assert_allclose(y, net.copy()(X), rtol=1e-5)


def test_filter_grad_and_filter_value_and_grad_agree_with_ours():
    net = trained()
    with elegy.training_context(False):
        grads = eqx.filter_grad(lambda net: jnp.sum(net(X) ** 2))(net)
        ours = elegy.grad(lambda x: jnp.sum(net(x) ** 2), modules=net)(X)
        loss, again = eqx.filter_jit(eqx.filter_value_and_grad(lambda net: jnp.sum(net(X) ** 2)))(net)
    assert grads.layers[1].count is None
    for path in (lambda g: g["layers"][0]["w"], lambda g: g["linear"]["b"]):
        expected = path(ours)
        np.testing.assert_allclose(path(grads.get_parameters()), expected, rtol=1e-5)
        np.testing.assert_allclose(path(again.get_parameters()), expected, rtol=1e-4)
    new = eqx.apply_updates(net, jax.tree.map(lambda g: -0.1 * g, grads))
    np.testing.assert_allclose(new.linear.b, net.linear.b - 0.1 * ours["linear"]["b"], rtol=1e-5)
    assert new.shared is new.layers[0]


def test_filter_vmap_makes_and_runs_an_ensemble():
    keys = jax.random.split(jax.random.key(0), 4)
    ensemble = eqx.filter_vmap(lambda key: Net().init(X, rng=key))(keys)
    assert ensemble.linear.w.shape == (4, 3, 2) and ensemble.shared is ensemble.layers[0]
    with elegy.training_context(False):
        ys = eqx.filter_vmap(lambda net: net(X))(ensemble)
    alone = evaluate(Net().init(X, rng=keys[2]))
    np.testing.assert_allclose(ys[2], alone, rtol=1e-4, atol=1e-6)


def test_filter_eval_shape():
    net = eqx.filter_eval_shape(lambda: Net().init(X, rng=0))
    assert net.linear.w.shape == (3, 2) and isinstance(net.linear.w, jax.ShapeDtypeStruct)
    y = eqx.filter_eval_shape(lambda net: net.apply(X, training=False)[0], trained())
    assert y.shape == (2, 2)


def test_tree_equal():
    net = trained()
    assert eqx.tree_equal(net, net.copy())
    assert not eqx.tree_equal(net, eqx.tree_at(lambda m: m.linear.b, net, jnp.ones(2)))
    assert not eqx.tree_equal(net, Net())
    frozen = net.copy()
    frozen.trainable = False
    assert not eqx.tree_equal(net, frozen)


def test_tree_serialise_leaves(tmp_path):
    net = trained()
    net(X)
    path = tmp_path / "net.eqx"
    eqx.tree_serialise_leaves(path, net)
    back = eqx.tree_deserialise_leaves(path, Net().init(X, rng=9))
    assert values(back) == values(net) and back.shared is back.layers[0]
    shapes = eqx.filter_eval_shape(lambda: Net().init(X, rng=0))
    assert values(eqx.tree_deserialise_leaves(path, shapes)) == values(net)
    buffer = io.BytesIO()
    eqx.tree_serialise_leaves(buffer, {"net": net, "step": 3})
    buffer.seek(0)
    back = eqx.tree_deserialise_leaves(buffer, {"net": Net().init(X), "step": 0})
    assert back["step"] == 3 and values(back["net"]) == values(net)


def test_tree_pformat():
    for net in (trained(), Net()):
        text = eqx.tree_pformat(net)
        assert "Net" in text
    assert "0.5" not in eqx.tree_pformat(eqx.tree_at(lambda m: m.linear.b, trained(), jnp.full(2, 0.5)))


def test_inference_mode_and_unknown_attributes():
    net = trained()
    assert not hasattr(net, "inference") and not hasattr(Net(), "inference")
    same = eqx.nn.inference_mode(net)
    assert values(same) == values(net)

    class Holds(elegy.Module):
        def __init__(self):
            self.dropout = eqx.nn.Dropout(0.5)

        def call(self, x, key=None):
            return self.dropout(x, key=key)

    holds = Holds().init(X, key=jax.random.key(0))
    assert not holds.dropout.inference
    off = eqx.nn.inference_mode(holds)
    assert off.dropout.inference is True and holds.dropout.inference is False
    np.testing.assert_array_equal(off(X), X)


def test_error_if_and_filter_checkpoint():
    net = trained()

    @eqx.filter_jit
    def checked(net, x):
        x = eqx.error_if(x, jnp.any(x > 10), "too large")
        with elegy.training_context(False):
            return eqx.filter_checkpoint(lambda net, x: net(x))(net, x)

    np.testing.assert_allclose(checked(net, X), evaluate(net), rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="too large"):
        jax.block_until_ready(checked(net, X * 100))


# ---------------------------------------------------------------------------------------------------------------------
# One library inside the other
# ---------------------------------------------------------------------------------------------------------------------


class Mixed(elegy.Module):
    def __init__(self):
        self.mlp = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
        self.norm = Norm()
        self.list = [eqx.nn.Linear(2, 2, key=jax.random.key(1)), "a string"]

    def call(self, x):
        x = jax.vmap(self.mlp)(self.norm(x))
        return jax.vmap(self.list[0])(x)


def test_equinox_layers_are_children_of_modules():
    net = Mixed().init(X)
    parameters = net.get_parameters(trainable=True)
    assert set(parameters) == {"mlp", "norm", "list"} and parameters["norm"] == {}
    # Two layers of the MLP, one of the list: a weight and a bias each.
    assert len(jax.tree.leaves(parameters)) == 6
    loss, grads = elegy.value_and_grad(lambda x: jnp.sum(net(x) ** 2), modules=net)(X)
    direct = eqx.filter_grad(lambda mlp: jnp.sum(jax.vmap(net.list[0])(jax.vmap(mlp)(X)) ** 2))(net.mlp)
    np.testing.assert_allclose(grads["mlp"].layers[0].weight, direct.layers[0].weight, rtol=1e-5)
    elegy.jit(net)(X)
    y, _ = jax.jit(lambda m, x: (m(x), m))(net, X)
    net.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, parameters, grads))
    assert float(jnp.sum(net(X) ** 2)) < float(loss)


def test_an_equinox_layer_in_a_module_is_frozen_and_replaced():
    net = Mixed().init(X)
    net.trainable = False
    assert not jax.tree.leaves(net.get_parameters(trainable=True))
    net.trainable = True
    new = eqx.tree_at(lambda m: m.mlp.layers[0].weight, net, replace_fn=jnp.zeros_like)
    assert not new.mlp.layers[0].weight.any() and net.mlp.layers[0].weight.any()
    swapped = eqx.tree_at(lambda m: m.list[0], net, eqx.nn.Linear(2, 5, key=jax.random.key(3)))
    assert evaluate(swapped).shape == (2, 5)
    swapped = eqx.tree_at(lambda m: m.mlp.layers[1], net, eqx.nn.Linear(4, 2, key=jax.random.key(3)))
    assert evaluate(swapped).shape == (2, 2)


def test_modules_are_children_of_equinox_layers():
    class Holder(eqx.Module):
        inner: Linear
        scale: jax.Array

        def __call__(self, x):
            return self.inner(x) * self.scale

    holder = Holder(Linear(2).init(X), jnp.asarray(2.0))
    grads = eqx.filter_jit(eqx.filter_grad(lambda holder: jnp.sum(holder(X))))(holder)
    assert grads.inner.w.shape == (3, 2)
    layers = eqx.nn.Sequential([eqx.nn.Lambda(Linear(2).init(X)), eqx.nn.Lambda(jnp.tanh)])
    assert eqx.filter_jit(layers)(X).shape == (2, 2)


@pytest.mark.usefixtures("default_promotion")
def test_optax_works_on_modules_and_on_dicts():
    net = trained()
    optimiser = optax.adam(1e-2)
    params, rest = elegy.partition(net)
    state = optimiser.init(params)

    @jax.jit
    def step(params, rest, state, x):
        def loss(params):
            whole = elegy.combine(params, rest)
            return jnp.mean((whole(x) - 1.0) ** 2), elegy.partition(whole)[1]

        (loss, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimiser.update(grads, state, params)
        return loss, optax.apply_updates(params, updates), rest, state

    losses = []
    for _ in range(10):
        loss, params, rest, state = step(params, rest, state, X)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    whole = elegy.combine(params, rest)
    assert whole.layers[1].count == 10 and whole.shared is whole.layers[0]
    as_dict = net.get_parameters(trainable=True)
    updates, _ = optimiser.update(as_dict, optimiser.init(as_dict), as_dict)
    net.set_parameters(optax.apply_updates(as_dict, updates))


def test_trainable_mask_fits_optax_masked():
    net = trained()
    net.layers[0].trainable = False
    mask = elegy.trainable_mask(net)
    optimiser = optax.masked(optax.sgd(1.0), mask)
    ones = jax.tree.map(jnp.ones_like, net)
    updates, _ = optimiser.update(ones, optimiser.init(net), net)
    np.testing.assert_array_equal(updates.linear.w, -jnp.ones([3, 2]))
    np.testing.assert_array_equal(updates.layers[0].w, jnp.ones([3, 3]))
    np.testing.assert_array_equal(updates.layers[1].mean, jnp.ones(3))


def test_tree_at_fills_what_was_none():
    class Optional(elegy.Module):
        def __init__(self):
            self.head = None

        def call(self, x):
            return x if self.head is None else self.head(x)

    module = Optional()
    assert module(X) is not None and jax.tree.leaves(module) == []
    head = Linear(2).init(X)
    filled = eqx.tree_at(lambda m: m.head, module, head, is_leaf=lambda part: part is None)
    np.testing.assert_allclose(filled(X), head(X), rtol=1e-6)
    assert set(filled.get_parameters()) == {"head"} and module.head is None
    assert elegy.jit(filled)(X).shape == filled(X).shape
