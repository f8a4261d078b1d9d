"""`trace`, `lower`, `compile` and `eval_shape` of `elegy.jit`: as those of `jax.jit`, with modules carried through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.errors import CompiledForOthersError

X = jnp.arange(12.0).reshape(4, 3)
SHAPE = jax.ShapeDtypeStruct(X.shape, X.dtype)


class Net(elegy.Module):
    """State, draws, a loss and a metric."""

    def call(self, x, scale=1):
        n = self.add_parameter("n", [], jnp.int32, jnp.zeros, trainable=False)
        self.update_parameter("n", n + 1)
        x = scale * elegy.nn.Dropout(0.5)(elegy.nn.Linear(2)(x))
        elegy.add_loss("size", jnp.sum(x))
        elegy.add_metric("largest", jnp.max(x))
        return x


def leaves(*trees):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]


def results(net, run):
    """What some calls return, declare and leave behind."""
    found = []
    with elegy.hooks_context():
        for number in range(3):
            out = run(X + number)
            found += leaves(out, elegy.get_losses(), elegy.get_metrics())
    return [*found, *leaves(net.get_parameters()), np.asarray(jax.random.key_data(elegy.next_rng_key()))]


@pytest.mark.parametrize("given", [X, SHAPE], ids=["array", "shape"])
@pytest.mark.parametrize("initialised", [True, False])
def test_a_compiled_function_does_what_the_function_does(given, initialised):
    def fresh():
        elegy.set_rng(elegy.RNG(0))
        return Net().init(X) if initialised else Net()

    eager = results(net := fresh(), lambda x: net(x))
    module = fresh()
    with elegy.hooks_context():
        compiled = elegy.jit(lambda x: module(x), modules=module).lower(given).compile()
        assert module.initialized and int(module.n) == 0
        assert elegy.get_losses() == {}
    assert compiled.out_info.shape == (4, 2)
    for found, wanted in zip(results(module, compiled), eager, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_static_and_keyword_arguments():
    net = elegy.nn.Linear(2).init(X)
    function = elegy.jit(lambda x, kind, *, bias: getattr(jnp, kind)(net(x)) + bias, static_argnums=1)
    compiled = function.lower(X, "tanh", bias=jnp.ones([])).compile()
    np.testing.assert_allclose(compiled(2 * X, bias=jnp.zeros([])), jnp.tanh(net(2 * X)), rtol=1e-6)
    with pytest.raises(TypeError, match="pytree"):
        compiled(X, "tanh", bias=jnp.zeros([]))


def test_donated_modules():
    net = elegy.nn.BatchNormalization().init(X)
    wanted = elegy.nn.BatchNormalization().init(X)
    compiled = elegy.jit(net, donate_modules=True).lower(X).compile()
    for _ in range(2):
        np.testing.assert_allclose(compiled(X), wanted(X), rtol=1e-5)
    np.testing.assert_allclose(net.mean, wanted.mean, rtol=1e-6)


def test_a_module_among_outputs_is_the_module_itself():
    net = elegy.nn.Linear(2).init(X)
    compiled = elegy.jit(lambda x: (net, x), modules=net).lower(X).compile()
    module, struct = compiled.out_info
    assert module.w.shape == (3, 2) and struct.shape == (4, 3)
    assert compiled(X)[0] is net


def test_a_method():
    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return elegy.nn.Linear(2)(x)

        def call(self, x):
            return self.encode(x)

    net = Coder().init(X)
    np.testing.assert_allclose(elegy.jit(net.encode).lower(X).compile()(X), net(X), rtol=1e-6)


def test_pure_functions():
    net = elegy.nn.BatchNormalization().init(X)
    y, updated = elegy.jit(lambda net, x: (net(x), net)).lower(net, SHAPE).compile()(net, X)
    assert not net.mean.any()
    net(X)
    np.testing.assert_allclose(updated.mean, net.mean, rtol=1e-6)


def test_stages_have_the_attributes_of_those_of_jax():
    net = elegy.nn.Linear(2).init(X)
    function, stock = elegy.jit(net), jax.jit(lambda w, b, x: x @ w + jnp.broadcast_to(b, [4, 2]))
    traced, other = function.trace(X), stock.trace(net.w, net.b, X)
    assert [str(value.aval) for value in traced.jaxpr.jaxpr.outvars] == [
        str(value.aval) for value in other.jaxpr.jaxpr.outvars
    ]
    lowered = traced.lower()
    assert "stablehlo.dot_general" in lowered.as_text() and "as_text" in dir(lowered)
    assert lowered.cost_analysis()["flops"] == other.lower().cost_analysis()["flops"]
    compiled, compiled_other = lowered.compile(), other.lower().compile()
    assert "ENTRY" in compiled.as_text()
    assert compiled.memory_analysis().output_size_in_bytes == 32
    for name in ("out_info", "output_shardings"):
        assert getattr(compiled, name) == getattr(compiled_other, name)
    assert traced.out_info.shape == lowered.out_info.shape == (4, 2)
    assert compiled.input_shardings == (compiled_other.input_shardings[0][2:], {})
    with pytest.raises(AttributeError, match="colour"):
        _ = compiled.colour


@pytest.mark.parametrize("given", [X, SHAPE], ids=["array", "shape"])
def test_eval_shape_changes_nothing(given):
    net, rng = Net(), elegy.get_rng()
    before = rng.snapshot()
    function = elegy.jit(lambda x: {"y": net(x), "n": net.n}, modules=net)
    with elegy.hooks_context():
        shapes = function.eval_shape(given)
        assert elegy.get_losses() == {}
    assert shapes == {"y": jax.ShapeDtypeStruct([4, 2], jnp.float32), "n": jax.ShapeDtypeStruct([], jnp.int32)}
    assert not net.initialized and rng.snapshot() == before
    assert function(X)["y"].shape == (4, 2) and int(net.n) == 1


# ---------------------------------------------------------------------------------------------------------------------
# What it was not compiled for
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    net = Net().init(X)
    return net, elegy.jit(lambda x: net(x), modules=net).lower(X).compile()


def refused(net, compiled, what):
    before = [*jax.tree.leaves(net), elegy.get_rng().data]
    with pytest.raises(CompiledForOthersError, match=rf"(?s)compiled ahead of time for something else.*{what}"):
        compiled(X)
    assert all(one is other for one, other in zip([*jax.tree.leaves(net), elegy.get_rng().data], before, strict=True))


def test_another_mode(compiled):
    with elegy.training_context(False):
        refused(*compiled, "training: True -> False")


def test_other_hooks(compiled):
    with elegy.hooks_context():
        refused(*compiled, "hooks: None -> ")


def test_another_structure(compiled):
    net, function = compiled
    net.linear.trainable = False
    refused(net, function, "static part of net/linear")
    net.linear.trainable = True
    assert function(X).shape == (4, 2)


def test_a_stream_of_another_implementation(compiled):
    elegy.set_rng(jax.random.key(0, impl="rbg"))
    refused(*compiled, "random implementation: threefry2x32 -> rbg")


def test_other_arguments_are_for_jax_to_refuse(compiled):
    net, function = compiled
    with pytest.raises(TypeError, match=r"args\[0\].*float32\[4,3\].*float32\[2,3\]"):
        function(X[:2])
    assert int(net.n) == 0


def test_inside_a_transform(compiled):
    with pytest.raises(TypeError, match="compiled ahead of time, and cannot be a part of a jax transform"):
        jax.jit(lambda x: compiled[1](x))(X)
