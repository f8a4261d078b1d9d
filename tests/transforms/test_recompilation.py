"""When `elegy.jit` traces again, when it does not, and what it says about it."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.errors import RecompilationWarning

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


class Linear(elegy.Module):
    def __init__(self, size, scale=1.0, activation=None, name=None):
        super().__init__(name=name)
        self.size = size
        self.scale = scale
        self.activation = activation

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.size], initializer=jax.nn.initializers.normal())
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        if elegy.training():
            self.update_parameter("count", count + 1)
        elegy.add_loss("size", jnp.sum(w**2))
        elegy.add_summary("w", w)
        x = x @ w * self.scale
        return x if self.activation is None else self.activation(x)


class Net(elegy.Module):
    def __init__(self):
        self.layers = [Linear(4), Linear(2)]

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return Linear(1)(x)


class Traced:
    """A function with a count of how often its Python code ran on tracers of the real trace."""

    def __init__(self, function):
        self.function = function
        self.traces = 0
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        if not elegy.is_initializing():
            self.traces += 1
        return self.function(*args, **kwargs)


def threaded(net):
    """The same three traced functions, each in one of the ways in which elegy.jit is used."""
    counted = Traced(lambda x: net(x))
    compiled = elegy.jit(counted, modules=net)

    def call(x=X):
        return compiled(x)

    return counted, compiled, call


def pure(net):
    counted = Traced(lambda net, x: (net(x), net))
    compiled = elegy.jit(counted)

    def call(x=X):
        return compiled(net, x)

    return counted, compiled, call


def differentiated(net):
    counted = Traced(lambda x: net(x).sum())

    def update(x):
        loss, grads = elegy.value_and_grad(counted, modules=net)(x)
        net.set_parameters(jax.tree.map(lambda p, g: p - 0.01 * g, net.get_parameters(trainable=True), grads))
        return loss

    compiled = elegy.jit(update, modules=net)

    def call(x=X):
        return compiled(x)

    return counted, compiled, call


def stock(net):
    counted = Traced(lambda net, x: (net(x), net))
    compiled = jax.jit(counted)

    def call(x=X):
        return compiled(net, x)

    return counted, compiled, call


STYLES = [threaded, pure, differentiated]


def count(counted, call, times=2):
    """How many new traces these calls make."""
    before = counted.traces
    for _ in range(times):
        call()
    return counted.traces - before


# ---------------------------------------------------------------------------------------------------------------------
# No trace without a reason
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [*STYLES, stock])
def test_one_trace_for_many_calls(style):
    net = Net().init(X)
    counted, _, call = style(net)
    assert count(counted, call, times=4) == 1


@pytest.mark.parametrize("style", [threaded, differentiated])
def test_an_uninitialised_module_costs_an_init_pass_and_one_trace(style):
    net = Net()
    counted, compiled, call = style(net)
    assert count(counted, call, times=3) == 1
    assert compiled.traces == 1
    assert net.initialized


def test_the_function_of_an_uninitialised_module_runs_twice():
    net = Net()
    runs = []
    compiled = elegy.jit(lambda x: [runs.append(elegy.is_initializing()), net(x)][1], modules=net)
    compiled(X)
    compiled(X)
    assert runs == [True, False]


@pytest.mark.parametrize("style", [*STYLES, stock])
def test_new_values_are_no_reason(style):
    net = Net().init(X)
    counted, _, call = style(net)
    assert count(counted, call) == 1
    parameters = net.get_parameters()
    for new in (
        jax.tree.map(lambda p: p + 1, parameters),
        jax.tree.map(lambda p: np.asarray(p), parameters),
        jax.tree.map(jnp.array, parameters),
    ):
        net.set_parameters(new)
        assert count(counted, call) == 0
    net.set_parameters({"layers": [{"count": 3}, {"count": 3}]})  # Python scalars
    assert count(counted, call) == 0
    net(X)
    assert count(counted, call) == 0
    assert count(counted, lambda: call(X * 2)) == 0
    assert count(counted, lambda: call(jnp.asarray(X))) == 0


def test_new_values_of_a_weakly_typed_initial_value_are_no_reason():
    class Scale(elegy.Module):
        def call(self, x):
            scale = self.add_parameter("scale", initializer=jnp.asarray(2.0))
            state = self.add_parameter("state", initializer=lambda: jnp.asarray(0.0), trainable=False)
            self.update_parameter("state", state * np.float32(0.9) + jnp.sum(x))
            return x * scale

    net = Scale().init(X)
    for style in (threaded, differentiated):
        counted, _, call = style(net)
        assert count(counted, call, times=3) == 1
        net.set_parameters({"scale": np.float32(3)})
        assert count(counted, call) == 0


def test_a_new_seed_and_drawn_keys_are_no_reason():
    class Noise(elegy.Module):
        def call(self, x):
            return x + jax.random.normal(elegy.next_rng_key(), x.shape)

    net = Noise().init(X)
    counted, _, call = threaded(net)
    assert count(counted, call) == 1
    elegy.set_rng(7)
    assert count(counted, call) == 0
    with elegy.rng_context(jax.random.PRNGKey(3)):
        assert count(counted, call) == 0
    with elegy.rng_context(jax.random.key(3, impl="rbg")):
        assert count(counted, call) == 1
    assert count(counted, call) == 0


@pytest.mark.parametrize("style", [*STYLES, stock])
def test_what_happens_to_other_modules_is_no_reason(style):
    net = Net().init(X)
    counted, _, call = style(net)
    assert count(counted, call) == 1
    other = Net()
    assert count(counted, call) == 0
    other.init(X)
    assert count(counted, call) == 0
    other.trainable = False
    assert count(counted, call) == 0
    other.reset()
    elegy.jit(other)(X)
    del other
    assert count(counted, call) == 0


@pytest.mark.parametrize("style", [pure, stock])
def test_another_module_of_equal_structure_is_no_reason(style):
    net = Net().init(X)
    counted, compiled, _ = style(net)
    compiled(net, X)
    for other in (net.copy(), Net().init(X), eqx.tree_at(lambda m: m.layers[0].w, net, net.layers[0].w * 2)):
        compiled(other, X)
    compiled(jax.tree.map(lambda leaf: leaf + 1, net), X)
    _, updated = compiled(net, X)
    compiled(updated, X)
    assert counted.traces == 1


def test_one_compiled_function_may_be_made_many_times_for_one_module():
    """The guide makes its value_and_grad anew on each call: that must not trace what is compiled already."""
    net = Net().init(X)
    counted, _, call = differentiated(net)
    assert count(counted, call, times=5) == 1

    class Counting(elegy.Module):
        def call(self, x):
            runs.append(x)
            return x

    runs = []
    counting = Counting().init(X)
    runs.clear()
    for _ in range(3):
        counting.jit(X)
        assert len(runs) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Reasons, and the way back
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [*STYLES, stock])
def test_the_training_mode(style):
    net = Net().init(X)
    counted, compiled, call = style(net)
    assert count(counted, call) == 1
    with elegy.training_context(False):
        assert count(counted, call) == 1
    assert count(counted, call) == 0
    elegy.set_training(False)
    assert count(counted, call) == 0
    elegy.set_training(True)
    assert count(counted, call) == 0
    with elegy.training_context(False):
        elegy.set_training(True)
        assert count(counted, call) == 0
    assert elegy.training() and count(counted, call) == 0
    assert counted.traces == 2
    assert style is stock or compiled.traces == 2


@pytest.mark.parametrize("style", STYLES)
def test_what_is_collected(style):
    net = Net().init(X)
    counted, compiled, call = style(net)
    assert count(counted, call) == 1
    with elegy.hooks_context():
        assert count(counted, call) == 1
        assert elegy.get_losses()
    with elegy.hooks_context(summaries=True):
        assert count(counted, call) == 1
        assert elegy.get_summaries()
    assert count(counted, call) == 0
    with elegy.hooks_context():
        assert count(counted, call) == 0
    with elegy.hooks_context(summaries=True):
        assert count(counted, call) == 0
    assert compiled.traces == 3


@pytest.mark.parametrize("style", [*STYLES, stock])
def test_freezing(style):
    net = Net().init(X)
    counted, compiled, call = style(net)
    assert count(counted, call) == 1
    net.layers[0].trainable = False
    assert count(counted, call) == 1
    net.layers[0].trainable = True
    assert count(counted, call) == 0
    net.layers[1].trainable = False
    assert count(counted, call) == 1
    net.layers[1].trainable = True
    net.layers[0].trainable = False
    assert count(counted, call) == 0
    net.trainable = True
    assert count(counted, call) == 0
    net.layers[0].trainable = True  # nothing changes
    assert count(counted, call) == 0
    assert counted.traces == 3
    assert style is stock or compiled.traces == 3


@pytest.mark.parametrize("style", [*STYLES, stock])
def test_shapes_and_dtypes_of_arguments(style):
    net = Net().init(X)
    counted, _, call = style(net)
    assert count(counted, call) == 1
    assert count(counted, lambda: call(X[:1])) == 1
    assert count(counted, call) == 0
    assert count(counted, lambda: call(X[:1])) == 0


@pytest.mark.parametrize("style", [pure, stock])
def test_static_attributes_of_a_module_that_is_passed(style):
    first, second = Linear(3, scale=1.0).init(X), Linear(3, scale=2.0).init(X)
    counted, compiled, _ = style(first)
    a = compiled(first, X)[0]
    b = compiled(second, X)[0]
    assert counted.traces == 2
    np.testing.assert_allclose(a, X @ first.w, rtol=1e-5)
    np.testing.assert_allclose(b, 2 * (X @ second.w), rtol=1e-5)
    compiled(first, X)
    compiled(second, X)
    compiled(Linear(3, scale=2.0).init(X), X)
    assert counted.traces == 2


@pytest.mark.parametrize("style", [pure, stock])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        ("a", "b"),
        (jnp.tanh, jnp.sin),
        (None, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_static_values_that_look_alike_are_told_apart(style, one, other):
    class Static(elegy.Module):
        def __init__(self, value):
            self.value = value

        def call(self, x):
            return x

    modules = [Static(value).init(X) for value in (one, other)]
    counted, compiled, _ = style(modules[0])
    for _ in range(2):
        for module in modules:
            compiled(module, X)
    assert counted.traces == 2


def test_lists_and_methods_of_modules():
    net, other = Net().init(X), Net().init(X)
    counted = Traced(lambda x: net(x) + other(x))
    compiled = elegy.jit(counted, modules={"a": net, "b": [other]})
    assert count(counted, lambda: compiled(X)) == 1
    other.trainable = False
    assert count(counted, lambda: compiled(X)) == 1
    other.trainable = True
    assert count(counted, lambda: compiled(X)) == 0


def test_static_arguments():
    net = Net().init(X)
    counted = Traced(lambda x, times, flip=False: net(x) * times * (-1 if flip else 1))
    compiled = elegy.jit(counted, modules=net, static_argnums=1, static_argnames="flip")
    for times, flip in [(1, False), (2, False), (1, True), (1, False), (2, False), (1, True)]:
        compiled(X, times, flip=flip)
    assert counted.traces == 3


def test_a_reset_module_is_initialised_again_and_hits_the_cache():
    net = Net().init(X)
    counted, _, call = threaded(net)
    assert count(counted, call) == 1
    net.reset()
    assert count(counted, call) == 0
    assert net.initialized


def test_a_module_that_is_first_called_later_costs_one_more_trace():
    class Later(elegy.Module):
        def call(self, x, use=False):
            extra = Linear(1)
            return extra(x) if use else x

    net = Later()
    counted = Traced(lambda x, use: net(x, use=use))
    compiled = elegy.jit(counted, modules=net, static_argnums=1)
    compiled(X, False)
    assert counted.traces == 1 and not net.linear.initialized
    for _ in range(3):
        compiled(X, True)
    assert net.linear.initialized
    # One trace that finds that an init pass is needed, and the one after it.
    assert counted.traces <= 3
    before = counted.traces
    compiled(X, True)
    assert counted.traces == before


def test_stock_transforms_see_the_collecting_context_of_their_call():
    """A function compiled without a context must not stay silent in one, nor the other way round."""
    net = Net().init(X)

    def inside(net, x):
        with elegy.hooks_context():
            net(x)
            return elegy.get_losses()["size_loss"], net

    compiled = jax.jit(inside)
    compiled(net, X)
    outside = jax.jit(lambda net, x: (net(x), net))
    outside(net, X)
    with elegy.hooks_context():
        compiled(net, X)
        assert not elegy.get_losses()
        with pytest.raises(elegy.errors.TraceError, match="net/layers/0"):
            outside(net, X)
    outside(net, X)


# ---------------------------------------------------------------------------------------------------------------------
# What is said about it
# ---------------------------------------------------------------------------------------------------------------------


def explained(net, modules=True, function=None):
    said = []
    function = function or (lambda x: net(x))
    return said, elegy.jit(function, modules=net if modules else None, explain=said.append)


def test_explain_says_nothing_of_the_first_trace():
    said, compiled = explained(Net())
    compiled(X)
    compiled(X)
    assert said == []


def test_explain_names_what_changed():
    net = Net().init(X)
    said, compiled = explained(net)
    compiled(X)
    for change, back, parts in [
        (lambda: elegy.set_training(False), lambda: elegy.set_training(True), ["training", "True", "False"]),
        (lambda: setattr(net.layers[1], "trainable", False), lambda: None, ["net/layers/1", "trainable"]),
    ]:
        change()
        compiled(X)
        back()
        assert all(part in said[-1] for part in parts), said[-1]
        assert "net/layers/0" not in said[-1]
        net.trainable = True
    assert len(said) == 2
    with elegy.hooks_context():
        compiled(X)
    assert "hooks" in said[-1]
    compiled(X[:1])
    assert "argument 0" in said[-1] and "[2, 3]" in said[-1] and "[1, 3]" in said[-1]
    assert len(said) == 4
    compiled(X)
    with elegy.hooks_context():
        compiled(X)
    assert len(said) == 4


def test_explain_names_the_path_of_a_static_attribute_in_an_argument():
    modules = [Linear(3, scale=scale).init(X) for scale in (1.0, 2.0)]
    said, compiled = explained(None, False, lambda net, x: net(x))
    for module in modules:
        with elegy.training_context(False):
            compiled(module, X)
    assert len(said) == 1
    assert "scale" in said[0] and "1.0" in said[0] and "2.0" in said[0], said[0]
    assert "argument 0" in said[0] or "linear" in said[0]


def test_explain_names_the_path_of_a_frozen_submodule_in_an_argument():
    net = Net().init(X)
    said, compiled = explained(None, False, lambda net, x: net(x))
    with elegy.training_context(False):
        compiled(net, X)
        net.layers[1].trainable = False
        compiled(net, X)
    assert len(said) == 1
    assert "layers/1" in said[0] and "trainable" in said[0], said[0]


def test_explain_names_static_arguments():
    said = []
    compiled = elegy.jit(lambda x, mode: x, static_argnums=1, explain=said.append)
    compiled(X, "a")
    compiled(X, "b")
    assert len(said) == 1 and "argument 1" in said[0] and "'a'" in said[0] and "'b'" in said[0], said


def test_explain_names_a_shape_of_a_parameter():
    class Free(elegy.Module):
        def call(self, x):
            return x

    class Holds(elegy.Module):
        def __init__(self, size):
            self.w = jnp.ones(size)

        def call(self, x):
            return x + jnp.sum(self.w)

    said, compiled = explained(None, False, lambda net, x: net(x))
    compiled(Holds(2), X)
    compiled(Holds(3), X)
    assert len(said) == 1 and "w" in said[0] and "[2]" in said[0] and "[3]" in said[0], said


def test_explain_prints(capsys):
    compiled = elegy.jit(lambda x: x * 2, explain=True)
    compiled(X)
    assert capsys.readouterr().out == ""
    compiled(X[:1])
    out = capsys.readouterr().out
    assert "argument 0" in out and "[2, 3]" in out and "[1, 3]" in out and "<lambda>" in out


def test_the_tenth_trace_warns_once_and_says_why():
    compiled = elegy.jit(lambda x: x * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in range(1, 10):
            compiled(jnp.ones(size))
    with pytest.warns(RecompilationWarning, match=r"(?s)10 times.*argument 0.*\[9\].*\[10\]"):
        compiled(jnp.ones(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in range(10, 13):
            compiled(jnp.ones(size))
    assert compiled.traces == 12
