"""`elegy.Optimizer` against plain Optax."""

import contextlib
import functools
import re
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import ParameterError
from tests.helpers import assert_same

TRANSFORMATIONS = {
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "stateless": lambda: optax.sgd(0.05),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(optax.cosine_decay_schedule(0.1, 5))),
    "accumulating": lambda: optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation(),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    "copying": lambda: optax.contrib.schedule_free_adamw(0.05),
    "noisy": lambda: optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.05)),
}


def optax_like_its_users():
    """Optax does not run under the strict promotion of the test suite. `elegy.Optimizer` does."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)


class MLP(elegy.Module):
    def call(self, x):
        x = jax.nn.relu(elegy.nn.Linear(4)(x))
        return elegy.nn.Linear(2)(x)


def loss_of(module, x, y):
    return jnp.mean((module(x) - y) ** 2)


def make_update(module, optimizer):
    def update(x, y):
        loss, gradients = elegy.value_and_grad(lambda x, y: loss_of(module, x, y), modules=module)(x, y)
        optimizer.update(module, gradients)
        return loss

    return update


def loss_by_hand(parameters, x, y):
    """`loss_of` an `MLP` with these parameters."""
    first, second = parameters["linear"], parameters["linear_1"]
    hidden = jax.nn.relu(x @ first["w"] + first["b"][None])
    return jnp.mean((hidden @ second["w"] + second["b"][None] - y) ** 2)


def train_by_optax(loss_fn, parameters, transformation, steps):
    """The losses of each step, and the parameters at the end."""

    @jax.jit
    def step(parameters, state):
        loss, gradients = jax.value_and_grad(loss_fn)(parameters)
        updates, state = transformation.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, loss

    losses = []
    with optax_like_its_users():
        state = transformation.init(parameters)
        for _ in range(steps):
            parameters, state, loss = step(parameters, state)
            losses.append(loss)
    return losses, parameters


def assert_close(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "jitted"), [*((name, True) for name in TRANSFORMATIONS), ("adamw", False), ("stateless", False)]
)
def test_it_computes_what_optax_computes(name, jitted):
    x, y = data()
    module = MLP().init(x, rng=1)
    loss_fn = functools.partial(loss_by_hand, x=x, y=y)
    wanted, parameters = train_by_optax(loss_fn, module.get_parameters(), TRANSFORMATIONS[name](), 6)
    optimizer = elegy.Optimizer(TRANSFORMATIONS[name]())
    update = make_update(module, optimizer)
    if jitted:
        update = elegy.jit(update, modules=[module, optimizer])
    losses = [update(x, y) for _ in range(6)]
    assert_close(losses, wanted)
    assert_close(module.get_parameters(trainable=True), parameters)


def test_everything_is_created_lazily_and_the_first_step_learns():
    x, y = data()
    module, optimizer = MLP(), elegy.Optimizer(optax.adam(0.01))
    update = elegy.jit(make_update(module, optimizer), modules=[module, optimizer])
    losses = [float(update(x, y)) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert update.traces == 1
    assert int(optimizer.state[0].count) == 3
    assert jax.tree.structure(optimizer.state[0].mu) == jax.tree.structure(module.get_parameters())


def test_the_state_is_not_trainable():
    x, y = data()
    optimizer = elegy.Optimizer(optax.adam(0.01))
    make_update(MLP(), optimizer)(x, y)
    assert optimizer.get_parameters(trainable=True) == {}
    assert len(jax.tree.leaves(optimizer)) == 1 + 2 * 4


def test_a_call_touches_no_module():
    x, y = data()
    module, optimizer = MLP().init(x), elegy.Optimizer(optax.sgd(1.0))
    before = module.get_parameters()
    _, gradients = elegy.value_and_grad(lambda x, y: loss_of(module, x, y), modules=module)(x, y)
    new = optimizer(gradients, before)
    assert_close(new, jax.tree.map(lambda p, g: p - g, before, gradients))
    assert all(a is b for a, b in zip(jax.tree.leaves(module.get_parameters()), jax.tree.leaves(before), strict=True))
    # Any pytree of arrays has such an optimiser.
    assert elegy.Optimizer(optax.sgd(0.5))({"a": jnp.ones(2)}, {"a": jnp.ones(2)})["a"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_several_modules(kind):
    x, y = data()
    body, head = elegy.nn.Linear(4).init(x, rng=1), elegy.nn.Linear(2).init(np.ones([1, 4], np.float32), rng=2)
    modules = {"body": body, "head": head} if kind is dict else kind([body, head])
    optimizer = elegy.Optimizer(optax.adamw(0.1))

    def update(x, y):
        def loss_fn(x, y):
            return jnp.mean((head(body(x)) - y) ** 2)

        loss, gradients = elegy.value_and_grad(loss_fn, modules=modules)(x, y)
        optimizer.update(modules, gradients)
        return loss

    def by_hand(parameters):
        body, head = parameters["body"], parameters["head"]
        return jnp.mean(((x @ body["w"] + body["b"]) @ head["w"] + head["b"] - y) ** 2)

    start = {"body": body.get_parameters(), "head": head.get_parameters()}
    wanted, parameters = train_by_optax(by_hand, start, optax.adamw(0.1), 4)
    update = elegy.jit(update, modules=[modules, optimizer])
    assert_close([update(x, y) for _ in range(4)], wanted)
    assert_close({"body": body.get_parameters(), "head": head.get_parameters()}, parameters)


def test_a_module_that_is_listed_twice_is_updated_once():
    linear = elegy.nn.Linear(1).init(np.ones([1, 1], np.float32))
    w = linear.w
    optimizer = elegy.Optimizer(optax.sgd(0.1))
    _, gradients = elegy.value_and_grad(lambda: linear(jnp.ones([1, 1])).sum(), modules=[linear, linear])()
    optimizer.update([linear, linear], gradients)
    np.testing.assert_allclose(linear.w, w - 0.1, rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
def test_freezing_and_thawing_after_the_state_exists(jitted):
    x, y = data()
    module = MLP().init(x, rng=1)
    optimizer = elegy.Optimizer(optax.adamw(0.1))
    update = make_update(module, optimizer)
    if jitted:
        update = elegy.jit(update, modules=[module, optimizer])

    # The same by hand: where the first layer is frozen, Optax is given the second one and its part of the state.
    transformation: tp.Any = optax.adamw(0.1)
    parameters = module.get_parameters()
    state = transformation.init(parameters)

    @jax.jit
    def optax_step(gradients, state, parameters):
        updates, state = transformation.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    for frozen in [False, False, True, True, False, False]:
        module.linear.trainable = not frozen
        before = module.linear.get_parameters()
        update(x, y)
        gradients = jax.grad(loss_by_hand)(parameters, x, y)
        if not frozen:
            with optax_like_its_users():
                parameters, state = optax_step(gradients, state, parameters)
        else:
            assert_close(module.linear.get_parameters(), before)
            adam, *rest = state
            second = lambda tree: {"linear_1": tree["linear_1"]}  # noqa: E731
            part = adam._replace(mu=second(adam.mu), nu=second(adam.nu))
            with optax_like_its_users():
                new, (part, *_) = optax_step(second(gradients), (part, *rest), second(parameters))
            parameters = {**parameters, **new}
            state = (part._replace(mu={**adam.mu, **part.mu}, nu={**adam.nu, **part.nu}), *rest)
        assert_close(module.get_parameters(), parameters)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
def test_parameters_that_become_trainable_later_need_adapt(jitted):
    x, y = data()
    module = MLP().init(x, rng=1)
    optimizer = elegy.Optimizer(optax.adam(0.1))
    update = make_update(module, optimizer)
    if jitted:
        update = elegy.jit(update, modules=[module, optimizer])
    module.linear.trainable = False
    update(x, y)
    update(x, y)
    moments = optimizer.state[0].mu["linear_1"]
    module.linear.trainable = True
    before = module.get_parameters()
    with pytest.raises(ParameterError, match=r"no state for .*'linear'.*\n.*\n.*optimizer.adapt"):
        update(x, y)
    assert_close(module.get_parameters(), before)

    optimizer.adapt(module)
    assert_close(optimizer.state[0].mu["linear_1"], moments)
    assert_close(optimizer.state[0].mu["linear"], jax.tree.map(jnp.zeros_like, before["linear"]))
    assert int(optimizer.state[0].count) == 2
    losses = [float(update(x, y)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert not np.array_equal(module.linear.w, before["linear"]["w"])


def test_adapt_changes_nothing_that_is_covered():
    x, y = data()
    module, optimizer = MLP(), elegy.Optimizer(optax.adam(0.1))
    make_update(module, optimizer)(x, y)
    state = optimizer.state
    module.linear.trainable = False
    optimizer.adapt(module)
    assert optimizer.state is state


def test_adapt_creates_the_state():
    optimizer = elegy.Optimizer(optax.adam(0.1))
    optimizer.adapt(elegy.nn.Linear(2).init(np.ones([1, 3], np.float32)))
    assert optimizer.state[0].mu["w"].shape == (3, 2)


def test_gradients_of_other_parameters_are_refused():
    x, y = data()
    module, optimizer = MLP().init(x), elegy.Optimizer(optax.adam(0.1))
    _, gradients = elegy.value_and_grad(lambda x, y: loss_of(module, x, y), modules=module)(x, y)
    module.linear.trainable = False
    with pytest.raises(ParameterError, match="not those of the parameters"):
        optimizer.update(module, gradients)
    assert not optimizer.initialized


@pytest.mark.parametrize(
    "change",
    [lambda g: jnp.stack([g, g]), lambda g: g.mean(), lambda g: g[:1], lambda g: g[..., None]],
    ids=["of two samples", "scalars", "shorter", "one axis more"],
)
@pytest.mark.parametrize("transformation", [optax.sgd(0.1), optax.adam(0.1)], ids=["sgd", "adam"])
@pytest.mark.usefixtures("default_promotion")
def test_gradients_of_other_shapes_are_refused(change, transformation):
    x, y = data()
    module, optimizer = MLP().init(x), elegy.Optimizer(transformation)
    make_update(module, optimizer)(x, y)
    _, gradients = elegy.value_and_grad(lambda x, y: loss_of(module, x, y), modules=module)(x, y)
    wrong = {**gradients, "linear": jax.tree.map(change, gradients["linear"])}
    before = jax.tree.leaves((module, optimizer))
    given, wanted = wrong["linear"]["w"].shape, gradients["linear"]["w"].shape
    line = re.escape(f"  linear/w: the gradient has shape {given}, the parameter {wanted}\n")
    for misfit in (wrong, jax.tree.map(change, gradients)):
        for update in (
            lambda misfit=misfit: optimizer.update(module, misfit),
            lambda misfit=misfit: optimizer(misfit, module.get_parameters(trainable=True)),
        ):
            with pytest.raises(ParameterError, match=f"(?s)other shapes than the parameters:\n.*{line}"):
                update()
    assert all(a is b for a, b in zip(jax.tree.leaves((module, optimizer)), before, strict=True))


def test_gradients_of_single_samples_for_a_transformation_that_takes_them():
    x, y = data()
    module = MLP().init(x)
    private = optax.contrib.differentially_private_aggregate(1e6, 0.0, 0)
    optimizer = elegy.Optimizer(optax.chain(private, optax.sgd(0.1)))
    parameters = module.get_parameters()
    of_samples = jax.vmap(lambda x, y: jax.grad(loss_by_hand)(parameters, x[None], y[None]))(x, y)
    optimizer.update(module, of_samples)
    gradients = jax.grad(loss_by_hand)(parameters, x, y)
    assert_close(module.get_parameters(), jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradients))


@pytest.mark.parametrize("method", ["update", "adapt"])
def test_an_exception_leaves_the_module_and_the_state(method, monkeypatch):
    x, y = data()
    modules = [MLP().init(x), MLP().init(x, rng=1)]
    optimizer = elegy.Optimizer(optax.adam(0.1))
    gradients = [module.get_parameters() for module in modules]
    modules[1].trainable = False
    optimizer.update(modules, [gradients[0], optimizer.parameters(modules[1])])
    modules[1].trainable = True
    if method == "update":
        optimizer.adapt(modules)
    before, structure = jax.tree.flatten([modules, optimizer])
    set_parameters = elegy.Module.set_parameters

    def interrupted(self, values):
        set_parameters(self, values)
        if self is modules[1] or self is optimizer:
            raise KeyboardInterrupt

    monkeypatch.setattr(elegy.Module, "set_parameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.update(modules, gradients) if method == "update" else optimizer.adapt(modules)
    after, found = jax.tree.flatten([modules, optimizer])
    assert found == structure
    assert all(a is b for a, b in zip(after, before, strict=True))


def test_a_state_of_other_shapes_is_refused():
    optimizer = elegy.Optimizer(optax.adam(0.1))
    optimizer({"w": jnp.ones(2)}, {"w": jnp.ones(2)})
    with pytest.raises(ParameterError, match=r"no state for some of the parameters: \[0\].mu\['w'\]"):
        optimizer({"w": jnp.ones(3)}, {"w": jnp.ones(3)})


def test_extra_arguments():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    optimizer = elegy.Optimizer(optax.chain(optax.sgd(1.0), plateau))
    parameters = {"w": jnp.zeros([])}
    steps = []
    for _ in range(4):
        new = optimizer({"w": jnp.ones([])}, parameters, value=jnp.ones([]))
        steps.append(float(new["w"]))
    transformation: tp.Any = optax.chain(optax.sgd(1.0), plateau)
    wanted = []
    with optax_like_its_users():
        state = transformation.init(parameters)
        for _ in range(4):
            updates, state = transformation.update({"w": jnp.ones([])}, state, parameters, value=jnp.ones([]))
            wanted.append(float(updates["w"]))
    assert steps == wanted
    assert steps[-1] > -1
    # A transformation that takes none gets none.
    elegy.Optimizer(optax.sgd(1.0))({"w": jnp.ones([])}, parameters, value=jnp.ones([]))


def test_arguments_in_another_order_are_refused():
    linear: tp.Any = elegy.nn.Linear(1)
    for given in ((linear, optax.sgd(0.1)), (linear,)):
        with pytest.raises(TypeError, match=r"got a module, Linear; parameters come with update\(module, gradients\)"):
            elegy.Optimizer(*given)
    with pytest.raises(TypeError, match="got 2 positional arguments; where= and name= are given by keyword"):
        elegy.Optimizer(optax.sgd(0.1), "encoder")


def test_half_precision_parameters_keep_their_dtype():
    parameters = {"w": jnp.ones(2, jnp.bfloat16)}
    new = elegy.Optimizer(optax.adam(0.1))({"w": jnp.ones(2, jnp.bfloat16)}, parameters)
    assert new["w"].dtype == jnp.bfloat16


# ---------------------------------------------------------------------------------------------------------------------
# Other objects with init and update
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient_modules", [False, True])
def test_multi_steps_over_micro_batches_is_one_step_over_the_mean_gradient(gradient_modules, default_promotion):
    batches = jax.random.normal(jax.random.key(0), [4, 2, 3])
    module = elegy.nn.Linear(1).init(batches[0], rng=0)
    whole, before = module.copy(), module.copy()
    loss = lambda module, x: jnp.mean(module(x) ** 2)  # noqa: E731
    optimizer = elegy.Optimizer(optax.MultiSteps(optax.adam(0.1), every_k_schedule=4))

    def step(x):
        if gradient_modules:
            gradients, _ = elegy.grad(loss)(module, x)
        else:
            gradients = elegy.grad(lambda: loss(module, x), modules=module)()
        optimizer.update(module, gradients)

    step = elegy.jit(step, modules=[module, optimizer])
    for x in batches:
        assert_same(module, before)
        step(x)
    assert step.traces <= 2

    gradients, _ = elegy.grad(lambda module: jnp.mean(jnp.stack([loss(module, x) for x in batches])))(whole)
    elegy.Optimizer(optax.adam(0.1)).update(whole, gradients)
    assert_close(module, whole)


def test_a_model_takes_multi_steps():
    x, y = np.ones([8, 3], np.float32), np.zeros([8, 1], np.float32)
    optimizer = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=4)
    model = elegy.Model(elegy.nn.Linear(1).init(x, rng=0), loss=elegy.losses.MeanSquaredError(), optimizer=optimizer)
    before = model.module.copy()
    model.fit(x, y, batch_size=2, epochs=1, verbose=0, shuffle=False)
    loss, gradients = elegy.value_and_grad(lambda: jnp.mean((before(x) - y) ** 2), modules=before)()
    assert_close(model.module.w, before.w - 0.1 * gradients["w"])


class Descent:
    """An optimiser that is no transformation of Optax, and takes no extra arguments."""

    def __init__(self, rate):
        self.rate = rate

    def init(self, parameters):
        return {"steps": jnp.zeros([], jnp.int32)}

    def update(self, gradients, state, parameters):
        return jax.tree.map(lambda g: -self.rate * g, gradients), {"steps": state["steps"] + 1}


class DescentByValue(Descent):
    def update(self, gradients, state, parameters=None, *, value=1.0, **extra):
        return jax.tree.map(lambda g: -self.rate * value * g, gradients), state


def test_an_object_with_init_and_update_is_an_optimiser():
    optimizer = elegy.Optimizer(Descent(0.5))
    parameters = {"w": jnp.ones([2])}
    for _ in range(2):
        parameters = optimizer({"w": jnp.full([2], 0.5)}, parameters, value=jnp.full([], 3.0))
    assert parameters["w"].tolist() == [0.5, 0.5] and optimizer.state["steps"] == 2
    by_value = elegy.Optimizer(DescentByValue(0.5))
    assert by_value({"w": jnp.ones([])}, {"w": jnp.ones([])}, value=3.0)["w"] == -0.5


def test_objects_with_other_signatures_are_refused():
    class Other(Descent):
        def update(self, parameters, gradients):
            return parameters

    with pytest.raises(TypeError, match=r"Other\.update\(parameters, gradients\) cannot be called so"):
        elegy.Optimizer(Other(0.1))

    class Initialised(Descent):
        def init(self):
            return None

    with pytest.raises(TypeError, match=r"calls init\(parameters\) of a transformation, and Initialised\.init\(\)"):
        elegy.Optimizer(Initialised(0.1))


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (optax.adam, r"the function adam\.\n  Call it: optax\.adam\(\.\.\.\)"),
        ("adam", r"got 'adam'\.\n  Call the function of that name: optax\.adam\(\.\.\.\)"),
        (optax.MultiSteps, r"the class MultiSteps\.\n  Construct it: MultiSteps\(\.\.\.\)"),
        (Descent, r"the class Descent\.\n  Construct it"),
        (0.01, r"got 0\.01\.$"),
    ],
)
def test_what_is_no_transformation_is_refused_with_the_fix(given, fix):
    with pytest.raises(TypeError, match=f"takes an Optax transformation.*{fix}"):
        elegy.Optimizer(given)


# ---------------------------------------------------------------------------------------------------------------------
# The learning rate
# ---------------------------------------------------------------------------------------------------------------------

INJECTED = {
    "alone": lambda sgd: sgd(learning_rate=0.1),
    "in a chain": lambda sgd: optax.chain(optax.clip(10.0), optax.chain(sgd(learning_rate=0.1))),
    "accumulating": lambda sgd: optax.MultiSteps(sgd(learning_rate=0.1), 1),
    "masked": lambda sgd: optax.masked(
        sgd(learning_rate=0.1), lambda parameters: jax.tree.map(lambda _: True, parameters)
    ),
}


@pytest.mark.parametrize("make", INJECTED.values(), ids=INJECTED)
def test_the_learning_rate_is_read_and_set(make):
    linear = elegy.nn.Linear(1).init(jnp.ones([1, 3]))
    optimizer = elegy.Optimizer(make(optax.inject_hyperparams(optax.sgd)))
    assert optimizer.learning_rate is None

    def update():
        optimizer.update(linear, jax.tree.map(jnp.ones_like, linear.get_parameters()))

    update_jit = elegy.jit(update, modules=[linear, optimizer])
    for rate in (0.1, 0.5, np.float32(0.25), jnp.full([], 0.125)):
        if optimizer.initialized:
            optimizer.learning_rate = rate
            assert optimizer.learning_rate == rate
        before = linear.b
        update_jit()
        assert_close(linear.b, before - rate)
    assert update_jit.traces == 1

    @functools.partial(elegy.jit, modules=optimizer)
    def halve():
        optimizer.learning_rate = optimizer.learning_rate / 2

    halve()
    assert optimizer.learning_rate == 0.0625


def test_the_learning_rate_stays_where_the_parameters_are():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    linear = elegy.nn.Linear(1).init(jnp.ones([1, 3]))
    placed = jax.sharding.NamedSharding(mesh, jax.P())
    linear.set_parameters(jax.device_put(linear.get_parameters(), placed))
    optimizer = elegy.Optimizer(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1))
    optimizer.adapt(linear)
    before = optimizer.learning_rate
    optimizer.learning_rate = 0.5
    assert before.committed and optimizer.learning_rate.sharding == before.sharding


def test_only_what_is_injected_is_a_learning_rate():
    class Net(elegy.Module):
        def __init__(self):
            self.hyperparams = elegy.nn.Linear(1)
            self.learning_rate = self.add_parameter("learning_rate", initializer=jnp.ones)

    optimizer = elegy.Optimizer(optax.adam(0.1))
    optimizer.adapt(Net())
    assert optimizer.learning_rate is None


@pytest.mark.parametrize(
    ("transformation", "message"),
    [
        (optax.adam(1e-3), r"Write optax\.inject_hyperparams\(optax\.adam\)\(learning_rate=1e-3\) instead"),
        (optax.inject_hyperparams(optax.sgd)(optax.constant_schedule(0.1)), "follows a schedule"),
        (optax.chain(*2 * [optax.inject_hyperparams(optax.sgd)(0.1)]), "there are 2 learning rates"),
    ],
    ids=["constant", "schedule", "two"],
)
def test_a_learning_rate_that_cannot_be_set(transformation, message):
    optimizer = elegy.Optimizer(transformation)
    with pytest.raises(ParameterError, match="before it has a state"):
        optimizer.learning_rate = 0.1
    optimizer.adapt(elegy.nn.Linear(1).init(jnp.ones([1, 3])))
    before = optimizer.state
    with pytest.raises(ParameterError, match=message):
        optimizer.learning_rate = 0.1
    assert_same(optimizer.state, before)


def test_a_learning_rate_is_a_scalar():
    optimizer = elegy.Optimizer(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1))
    optimizer.adapt(elegy.nn.Linear(1).init(jnp.ones([1, 3])))
    with pytest.raises(ValueError, match=r"a scalar, got shape \(2,\)"):
        optimizer.learning_rate = jnp.ones([2])
