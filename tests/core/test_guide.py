"""The guide to the module system, block by block, in its order: what it writes must run.

JAX promotes dtypes and ranks here as it does for a user.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from tests.helpers import assert_close, assert_same, concrete

pytestmark = pytest.mark.usefixtures("default_promotion")


class EagerLinear(elegy.Module):
    """Parameters made in `__init__`."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.w = self.add_parameter("w", [n_in, n_out], initializer=elegy.initializers.RandomUniform())
        self.b = self.add_parameter("b", [n_out], initializer=elegy.initializers.RandomUniform())

    def call(self, x):
        return jnp.dot(x, self.w) + self.b


class EagerMLP(elegy.Module):
    """Layers made in `__init__`, with no call of the super constructor."""

    def __init__(self, n_in):
        self.linear1 = EagerLinear(n_in, 64)
        self.linear2 = EagerLinear(64, 32)
        self.linear3 = EagerLinear(32, 1)

    def call(self, x):
        x = jax.nn.relu(self.linear1(x))
        x = jax.nn.relu(self.linear2(x))
        return self.linear3(x)


class Linear(elegy.Module):
    def __init__(self, n_out):
        super().__init__()
        self.n_out = n_out

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.n_out], initializer=elegy.initializers.RandomUniform())
        b = self.add_parameter("b", [self.n_out], initializer=jnp.zeros)
        return jnp.dot(x, w) + b


class MLP(elegy.Module):
    def call(self, x):
        x = jax.nn.relu(Linear(64)(x))
        x = jax.nn.relu(Linear(32)(x))
        return Linear(1)(x)


def data():
    generator = np.random.default_rng(0)
    return generator.uniform(size=(15, 3)), generator.uniform(size=(15, 1))


def forward(parameters, names, x):
    """The same computation on plain arrays."""
    for name in names:
        x = x @ parameters[name]["w"] + parameters[name]["b"]
        if name != names[-1]:
            x = jax.nn.relu(x)
    return x


# Object-oriented style


def test_parameters_made_in_init_are_there_at_once():
    linear = EagerLinear(3, 4)
    assert linear.w.shape == (3, 4) and linear.b.shape == (4,)
    assert linear.w.dtype == jnp.float32
    assert 0 <= linear.w.min() and linear.w.max() <= 1 and linear.w.std() > 0.1
    assert set(linear.get_parameters(trainable=True)) == {"w", "b"}


def test_object_oriented_mlp_runs():
    mlp = EagerMLP(3)
    shapes = jax.tree.map(jnp.shape, mlp.get_parameters(), is_leaf=lambda leaf: hasattr(leaf, "shape"))
    assert shapes == {
        "linear1": {"w": (3, 64), "b": (64,)},
        "linear2": {"w": (64, 32), "b": (32,)},
        "linear3": {"w": (32, 1), "b": (1,)},
    }
    x, _ = data()
    expected = forward(mlp.get_parameters(), ["linear1", "linear2", "linear3"], jnp.asarray(x))
    np.testing.assert_allclose(mlp(x), expected, rtol=1e-5)
    # Three layers of one class have three different initial values.
    assert not np.array_equal(mlp.linear2.w[:3, :32], mlp.linear1.w[:, :32])


def test_object_oriented_mlp_learns():
    x, y = data()
    mlp = EagerMLP(3)
    losses = train(mlp, x, y, steps=4, compiled=True, rate=1e-5)
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))


# Functional style


def test_shapes_come_from_the_input():
    x, _ = data()
    mlp = MLP()
    assert mlp.get_parameters() == {} and not mlp.initialized
    y = mlp(x)
    assert y.shape == (15, 1)
    assert mlp.initialized
    names = ["linear", "linear_1", "linear_2"]
    assert list(mlp.get_parameters()) == names
    assert [getattr(mlp, name).w.shape for name in names] == [(3, 64), (64, 32), (32, 1)]
    assert not mlp.linear.b.any()
    np.testing.assert_allclose(y, forward(mlp.get_parameters(), names, jnp.asarray(x)), rtol=1e-5)


def test_swapping_hooks_on_a_condition_is_refused():
    class Invalid(elegy.Module):
        def call(self, x):
            if x.shape[0] > 5:
                x = elegy.nn.Conv2D(32, [3, 3])(x)
                x = elegy.nn.Linear(48)(x)
            else:
                x = elegy.nn.Linear(48)(x)
                x = elegy.nn.Conv2D(32, [3, 3])(x)
            return x

    module = Invalid()
    assert module(jnp.ones([8, 4, 4, 2])).shape == (8, 4, 4, 48)
    with pytest.raises(elegy.errors.ModuleOrderError) as caught:
        module(jnp.ones([2, 4, 4, 2]))
    message = str(caught.value)
    # Both places are named: the first creation at this position and the one of now.
    line = Invalid.call.__code__.co_firstlineno
    assert f"{__file__}:{line + 2}" in message and f"{__file__}:{line + 5}" in message
    assert "invalid" in message and "Conv2D" in message and "Linear" in message


class Valid(elegy.Module):
    """Declared unconditionally, used on a condition; the widths are the guide's, with its second argument."""

    def call(self, x):
        linear = elegy.nn.Linear(48, [3, 3])
        conv2d = elegy.nn.Conv2D(32, [3, 3])

        if x.shape[0] > 5:
            x = conv2d(x)
            x = linear(x)
        else:
            x = linear(x)
            x = conv2d(x)
        return x


@pytest.mark.parametrize(("size", "channels"), [(8, 48), (2, 32)])
def test_declaring_unconditionally_runs_in_both_branches(size, channels):
    module = Valid()
    assert module(jnp.ones([size, 4, 4, 2])).shape == (size, 4, 4, channels)
    assert module(jnp.ones([size, 4, 4, 2])).shape == (size, 4, 4, channels)


def test_the_other_branch_with_other_widths_says_which_parameter_does_not_fit():
    module = Valid()
    module(jnp.ones([8, 4, 4, 2]))
    with elegy.typechecker(None), pytest.raises(elegy.errors.ParameterError, match="linear/w"):
        module(jnp.ones([2, 4, 4, 2]))


def test_one_module_runs_both_branches_when_the_widths_allow_it():
    class Both(elegy.Module):
        def call(self, x):
            linear = elegy.nn.Linear(2)
            conv2d = elegy.nn.Conv2D(2, [3, 3])
            return linear(conv2d(x)) if x.shape[0] > 5 else conv2d(linear(x))

    module = Both()
    module(jnp.ones([8, 4, 4, 2]))
    before = module.get_parameters()
    module(jnp.ones([2, 4, 4, 2]))
    assert_same(before, module.get_parameters())
    assert list(before) == ["linear", "conv2d"]


# References


def test_references_are_kept():
    x, _ = data()
    mlp = MLP()
    mlp(x)
    linear, linear_1, linear_2 = mlp.linear, mlp.linear_1, mlp.linear_2
    mlp(x)
    assert linear is mlp.linear and linear_1 is mlp.linear_1 and linear_2 is mlp.linear_2
    # They survive compiled calls too, and see the new values.
    elegy.jit(lambda: mlp.set_parameters(jax.tree.map(jnp.zeros_like, mlp.get_parameters())), modules=mlp)()
    assert linear is mlp.linear and not linear.w.any()
    # A submodule can be used on its own.
    assert linear_1(jnp.ones([2, 64])).shape == (2, 32)


# The low-level loop


def train(mlp, x, y, steps, compiled, rate=0.01):
    def loss_fn(x, y):
        y_pred = mlp(x)
        return jnp.mean(jnp.square(y - y_pred))

    def update(x, y):
        loss, gradients = elegy.value_and_grad(loss_fn, modules=mlp)(x, y)
        parameters = mlp.get_parameters(trainable=True)
        new_parameters = jax.tree.map(lambda p, g: p - rate * g, parameters, gradients)
        mlp.set_parameters(new_parameters)
        return loss

    step = elegy.jit(update, modules=mlp) if compiled else update
    return [float(step(x, y)) for _ in range(steps)]


def reference(parameters, x, y, steps, rate):
    """The same gradient descent on a dict of arrays."""
    names = list(parameters)

    def loss_fn(parameters):
        return jnp.mean(jnp.square(y - forward(parameters, names, x)))

    losses = []
    for _ in range(steps):
        loss, gradients = jax.value_and_grad(loss_fn)(parameters)
        parameters = jax.tree.map(lambda p, g: p - rate * g, parameters, gradients)
        losses.append(float(loss))
    return losses, parameters


def test_gradients_of_a_fresh_module_are_complete():
    x, y = data()
    mlp = MLP()

    def loss_fn(x, y):
        return jnp.mean(jnp.square(y - mlp(x)))

    loss, gradients = elegy.value_and_grad(loss_fn, modules=mlp)(x, y)
    parameters = mlp.get_parameters(trainable=True)
    assert jax.tree.structure(gradients) == jax.tree.structure(parameters)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    names = list(parameters)
    expected = jax.grad(lambda p: jnp.mean(jnp.square(y - forward(p, names, jnp.asarray(x)))))(parameters)
    assert_close(gradients, expected, rtol=1e-4)
    np.testing.assert_allclose(loss, loss_fn(x, y), rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loop_on_a_fresh_module_is_gradient_descent(compiled):
    # The guide's rate of 0.01 overshoots from uniform weights in [0, 1], whose first loss is near 1e5: it is the
    # first steps of a small rate that must fall.
    x, y = data()
    elegy.set_rng(elegy.RNG(1))
    start = MLP().init(x).get_parameters()
    elegy.set_rng(elegy.RNG(1))
    mlp = MLP()
    losses = train(mlp, x, y, steps=8, compiled=compiled, rate=1e-6)
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False)), losses
    expected, parameters = reference(start, jnp.asarray(x), y, steps=8, rate=1e-6)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(mlp.get_parameters(), parameters, rtol=1e-4)


def test_the_loop_learns_the_same_compiled_and_eager():
    x, y = data()
    results = []
    for compiled in (False, True):
        elegy.set_rng(elegy.RNG(3))
        mlp = MLP()
        losses = train(mlp, x, y, steps=20, compiled=compiled)
        results.append((losses, mlp.get_parameters()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-3)
    assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-4)


def test_the_compiled_loop_is_traced_once_and_learns():
    x, y = data()
    mlp = MLP()
    traced = []

    def loss_fn(x, y):
        traced.append(mlp.initialized)
        return jnp.mean(jnp.square(y - mlp(x)))

    def update(x, y):
        loss, gradients = elegy.value_and_grad(loss_fn, modules=mlp)(x, y)
        parameters = mlp.get_parameters(trainable=True)
        mlp.set_parameters(jax.tree.map(lambda p, g: p - 0.01 * g, parameters, gradients))
        return loss

    update_jit = elegy.jit(update, modules=mlp)
    losses = [float(update_jit(x, y)) for _ in range(1000)]
    assert update_jit.traces == 1
    assert len(traced) <= 3  # the init pass, the trace, and what jax.value_and_grad repeats at most
    assert losses[-1] < 0.2 < losses[0] and np.isfinite(losses).all()
    assert concrete(mlp.get_parameters())


# The high-level equivalent


def sequential():
    return elegy.nn.Sequential(
        lambda: [
            elegy.nn.Linear(64),
            jax.nn.relu,
            elegy.nn.Linear(32),
            jax.nn.relu,
            elegy.nn.Linear(1),
        ]
    )


def test_model_without_an_optimizer_trains():
    x, y = data()
    model = elegy.Model(module=sequential(), loss=elegy.losses.MeanSquaredError())
    history = model.fit(x=x, y=y, batch_size=15, epochs=100, verbose=0)
    losses = history.history["loss"]
    assert len(losses) == 100 and losses[-1] < 0.5 * losses[0]
    assert all(isinstance(loss, float) for loss in losses)


def test_the_default_optimizer_is_adam_with_its_usual_rate():
    x, y = data()
    x, y = jnp.asarray(x), jnp.asarray(y)
    module = sequential().init(x)
    parameters = module.get_parameters(trainable=True)
    start = module.copy()

    optimizer = optax.adam(1e-3)
    state = optimizer.init(parameters)
    expected = []
    for _ in range(5):

        def loss_fn(parameters):
            copy = start.copy()
            copy.set_parameters(parameters)
            return jnp.mean(jnp.square(y - copy(x)))

        loss, gradients = jax.value_and_grad(loss_fn)(parameters)
        updates, state = optimizer.update(gradients, state)
        parameters = optax.apply_updates(parameters, updates)
        expected.append(float(loss))

    model = elegy.Model(module=module, loss=elegy.losses.MeanSquaredError())
    history = model.fit(x=x, y=y, batch_size=15, epochs=5, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-4)
    assert_close(model.module.get_parameters(trainable=True), parameters, rtol=1e-4)
