"""Functions that live on and close over a module, traced by stock JAX: right inside Elegy's transforms, else told."""

import functools
import gc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.errors import StaleClosureWarning

X = jnp.ones(3)
XS = jnp.ones((5, 3))


def linear(size=3):
    return elegy.nn.Linear(size).init(X)


def cell_of(net):
    """A step of a scan, made once: JAX finds its trace again by the identity of the function."""

    def cell(carry, x):
        return carry + net(x).sum(), None

    return cell


def scanned(cell):
    return jax.lax.scan(cell, 0.0, XS)[0]


def warnings_of(run):
    with elegy.debug(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    assert all(issubclass(warning.category, StaleClosureWarning) for warning in caught), caught
    return [str(warning.message) for warning in caught]


# ---------------------------------------------------------------------------------------------------------------------
# Inside the transforms of Elegy
# ---------------------------------------------------------------------------------------------------------------------


def gradient_of_a_method():
    class Net(elegy.Module):
        def __init__(self):
            self.net = linear(2)

        def call(self, xs):
            return jax.lax.scan(self.cell, 0.0, xs)[0]

        def cell(self, carry, x):
            return carry + self.net(x).sum(), None

    net = Net()
    return elegy.value_and_grad(lambda: net(XS), modules=net)()[1]["net"]["b"]


def gradient_twice():
    net = linear(2)
    cell = cell_of(net)
    for _ in range(2):
        _, grads = elegy.value_and_grad(lambda: scanned(cell), modules=net)()
    return grads["b"]


def gradient_after_an_eager_run():
    net = linear(2)
    cell = cell_of(net)
    scanned(cell)
    return elegy.value_and_grad(lambda: scanned(cell), modules=net)()[1]["b"]


def gradient_with_the_init_pass():
    net = elegy.nn.Linear(2)
    cell = cell_of(net)
    return elegy.value_and_grad(lambda: net(XS).sum() * 0 + scanned(cell), modules=net)()[1]["b"]


def difference_in_a_compiled_function():
    net = linear(2)
    cell = cell_of(net)
    compiled = elegy.jit(lambda: scanned(cell), modules=net)
    before = compiled()
    net.set_parameters({"b": net.b + 1})
    difference = compiled() - before
    again = elegy.jit(lambda: scanned(cell), modules=net)
    np.testing.assert_allclose(again() - before, difference, rtol=1e-5)
    return jnp.full(2, difference / 2)


@pytest.mark.parametrize(
    "run",
    [
        gradient_of_a_method,
        gradient_twice,
        gradient_after_an_eager_run,
        gradient_with_the_init_pass,
        difference_in_a_compiled_function,
    ],
)
def test_a_function_that_lives_on_sees_the_arrays_of_each_transform(run):
    """Each of the two biases is added at each of the five steps."""
    np.testing.assert_allclose(run(), [5.0, 5.0], rtol=1e-5)


def test_training_by_a_function_that_lives_on():
    net, reference = linear(2), linear(2)
    reference.set_parameters(net.get_parameters())
    cell = cell_of(net)

    def step(net, loss):
        _, grads = elegy.value_and_grad(loss, modules=net)()
        net.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, net.get_parameters(), grads))

    for _ in range(3):
        step(net, lambda: scanned(cell) ** 2)
        step(reference, lambda: reference(XS).sum() ** 2)
    np.testing.assert_allclose(net.w, reference.w, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Outside of them
# ---------------------------------------------------------------------------------------------------------------------


def test_new_arrays_of_a_module_in_a_kept_function_are_told_once():
    net = linear(2)
    cell = cell_of(net)

    def run():
        for _ in range(3):
            scanned(cell)
            net.set_parameters({"b": net.b + 1})

    (message,) = warnings_of(run)
    assert "linear" in message and f"cell ({__file__}:" in message


def make_custom_vjp(net):
    @jax.custom_vjp
    def f(x):
        return net(x)

    f.defvjp(lambda x: (net(x), x), lambda residual, g: (g,))
    return f


# Functions that nobody keeps, or that take the module: what they traced cannot be found again.
SILENT = {
    "scan": lambda net, keep: jax.lax.scan(lambda c, _: (net(c), None), X, None, length=2),
    "fori_loop": lambda net, keep: jax.lax.fori_loop(0, 3, lambda i, c: net(c), X),
    "fori_loop of a traced length": lambda net, keep: jax.lax.fori_loop(0, jnp.array(3), lambda i, c: net(c), X),
    "while_loop": lambda net, keep: jax.lax.while_loop(lambda c: c.sum() < -1000, lambda c: net(c), X),
    "cond": lambda net, keep: jax.lax.cond(X.sum() > 0, lambda c: net(c), lambda c: c, X),
    "map": lambda net, keep: jax.lax.map(net, jnp.ones((2, 3))),
    "vmap": lambda net, keep: jax.vmap(net)(jnp.ones((2, 3))),
    "jit": lambda net, keep: jax.jit(lambda x: net(x))(X),
    "grad of jit": lambda net, keep: jax.grad(lambda x: jax.jit(lambda x: net(x))(x).sum())(X),
    "checkpoint": lambda net, keep: jax.grad(lambda x: jax.checkpoint(lambda x: net(x))(x).sum())(X),
    "partial": lambda net, keep: jax.lax.fori_loop(0, 3, functools.partial(lambda n, i, c: n(c), net), X),
    "associative_scan": lambda net, keep: jax.lax.associative_scan(lambda a, b: a + net(b), jnp.ones((4, 3))),
    "hessian": lambda net, keep: jax.hessian(lambda x: net(x).sum())(X),
    "jacfwd of jit": lambda net, keep: jax.jacfwd(jax.jit(lambda x: net(x)))(X),
    "eval_shape": lambda net, keep: jax.eval_shape(lambda x: net(x), X),
    "custom_vjp": lambda net, keep: jax.grad(lambda x: make_custom_vjp(net)(x).sum())(X),
    "kept elegy.jit that lists it": lambda net, keep: keep(elegy.jit(lambda x: net(x), modules=net))(X),
    "kept elegy.jit of it": lambda net, keep: keep(elegy.jit(net))(X),
    "kept step of elegy.scan": lambda net, keep: elegy.scan(keep(lambda c, _: (net(c), None)), X, None, length=2),
    "kept jit that takes it": lambda net, keep: keep(jax.jit(lambda net, x: net(x)))(net, X),
}
TOLD = {
    "scan": lambda net, keep: jax.lax.scan(keep(lambda c, _: (net(c), None)), X, None, length=2),
    "fori_loop": lambda net, keep: jax.lax.fori_loop(0, 3, keep(lambda i, c: net(c)), X),
    "while_loop": lambda net, keep: jax.lax.while_loop(lambda c: c.sum() < -1000, keep(lambda c: net(c)), X),
    "cond": lambda net, keep: jax.lax.cond(X.sum() > 0, keep(lambda c: net(c)), lambda c: c, X),
    "jit": lambda net, keep: keep(jax.jit(lambda x: net(x)))(X),
    "elegy.jit that does not list it": lambda net, keep: keep(elegy.jit(lambda x: net(x)))(X),
}


def messages_after(use):
    net, kept = linear(), []

    def keep(function):
        kept.append(function)
        return function

    with elegy.debug():
        use(net, keep)
    return warnings_of(lambda: net.set_parameters({"b": net.b + 1}))


@pytest.mark.parametrize("name", SILENT)
def test_what_cannot_go_stale_is_not_told(name):
    assert messages_after(SILENT[name]) == []


@pytest.mark.parametrize("name", TOLD)
def test_what_goes_stale_is_told(name):
    assert len(messages_after(TOLD[name])) == 1


@pytest.mark.parametrize("name", TOLD)
def test_nothing_is_told_to_those_who_do_not_debug(name):
    net, kept = linear(), []
    TOLD[name](net, lambda function: kept.append(function) or function)
    net.set_parameters({"b": net.b + 1})


def test_a_kept_function_that_was_dropped_is_not_told():
    net = linear()
    step = jax.jit(lambda x: net(x))
    with elegy.debug():
        step(X)
    del step
    gc.collect()
    assert warnings_of(lambda: net.set_parameters({"b": net.b + 1})) == []


@pytest.mark.parametrize("how", ["call", "elegy.jit"])
def test_changes_by_calls_are_told(how):
    net = elegy.nn.BatchNormalization().init(XS)
    with elegy.training_context(False), elegy.debug():
        predict = jax.jit(lambda x: net(x))
        predict(XS)
    train = net if how == "call" else elegy.jit(net)
    (message,) = warnings_of(lambda: [train(XS), train(XS)])
    assert "batch_normalization" in message and "modules=" in message


def test_a_function_of_no_module():
    namespace = {"net": elegy.nn.Linear(3).init(jnp.ones(3)), "jax": jax, "x": jnp.ones(3)}
    exec("def function(x): return net(x)", namespace)
    namespace["function"].__module__ = None
    with elegy.debug():
        exec("y = jax.jit(function)(x)", namespace)
    with elegy.debug(), pytest.warns(elegy.errors.StaleClosureWarning, match="function"):
        namespace["net"].set_parameters({"b": jnp.ones(3)})


def test_a_function_that_an_init_pass_ran_first():
    """The init pass initialises the module and then gives the function to JAX, before the gradient does."""
    xs = jax.random.normal(jax.random.key(0), (5, 3))

    def make():
        return elegy.nn.Linear(3, w_init=lambda shape, dtype: 0.5 * jnp.eye(3, dtype=dtype))

    net = make()

    def body(carry, x):
        return jnp.tanh(net(carry + x)), None

    def loss_fn(xs):
        net(xs[0])
        return jax.lax.scan(body, jnp.zeros(3), xs)[0].sum()

    def unrolled(parameters):
        carry = jnp.zeros(3)
        for x in xs:
            carry = jnp.tanh((carry + x) @ parameters["w"] + parameters["b"])
        return carry.sum()

    step = elegy.jit(lambda xs: elegy.value_and_grad(loss_fn, modules=net)(xs), modules=net)
    for _ in range(2):
        loss, gradients = step(xs)
        expected, expected_gradients = jax.value_and_grad(unrolled)(net.get_parameters())
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, expected_gradients)
        net.set_parameters(jax.tree.map(lambda w: 2 * w, net.get_parameters()))
    assert step.traces == 1
