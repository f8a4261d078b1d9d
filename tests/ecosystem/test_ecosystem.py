"""Modules go into other libraries as the pytrees that they are: solvers, fits, samplers, optimisers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.optimize
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import elegy
from elegy.errors import TraceError

# None of these libraries runs under the strict promotion of this suite.
pytestmark = pytest.mark.usefixtures("default_promotion")

ROTATION = np.array([[0.1, -2.0], [2.0, 0.1]], np.float32)
START = np.array([1.0, 0.5], np.float32)


class Regression(elegy.Module):
    """A linear layer over fixed features, with a layer used twice, state, and a container that holds static values."""

    def __init__(self):
        self.features = [elegy.nn.Linear(3, with_bias=False, w_init=jax.nn.initializers.orthogonal(2.0)), "tanh"]
        self.again = self.features[0]

    def call(self, x):
        calls = self.add_parameter("calls", [], jnp.int32, trainable=False)
        if elegy.training():
            self.update_parameter("calls", calls + 1)
        hidden = jnp.tanh(self.features[0](x))
        return elegy.nn.Linear(1, name="head")(jnp.tanh(self.again(hidden)))[:, 0]


def regression(seed=0, size=24, noise=0.3):
    """A module of which the head alone is trainable, the data, and the design matrix of the head."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    module = Regression().init(x, rng=seed)
    module.features[0].trainable = False
    hidden = np.tanh(x @ np.asarray(module.features[0].w))
    design = np.concatenate([np.tanh(hidden @ np.asarray(module.features[0].w)), np.ones([size, 1], np.float32)], 1)
    y = (design @ np.array([1.0, -2.0, 0.5, 0.3]) + noise * rng.normal(size=size)).astype(np.float32)
    return module, x, y, design


def coefficients(parameters):
    """The weights and the offset of the head, from a module or a dict, also of many samples at once."""
    parameters = parameters.get_parameters() if isinstance(parameters, elegy.Module) else parameters
    head = parameters["head"]
    return np.concatenate([np.asarray(head["w"])[..., 0], np.asarray(head["b"])], axis=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Differential equations
# ---------------------------------------------------------------------------------------------------------------------


class Field(elegy.Module):
    """dy/dt = y A, as Diffrax calls a vector field."""

    def call(self, t, y, args=None):
        return elegy.nn.Linear(2, with_bias=False, name="rate")(y)


def rotation():
    field = Field().init(0.0, START)
    field.set_parameters({"rate": {"w": ROTATION}})
    return field


def exact(times):
    return np.stack([START @ scipy.linalg.expm(ROTATION * time) for time in times])


def test_diffrax_solves_a_module():
    diffrax = pytest.importorskip("diffrax")
    times = np.linspace(0, 1, 4, dtype=np.float32)

    @jax.jit
    def solve(field, start):
        term, save = diffrax.ODETerm(field), diffrax.SaveAt(ts=times)
        steps = diffrax.PIDController(rtol=1e-6, atol=1e-6)
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, 0.1, start, saveat=save, stepsize_controller=steps
        ).ys

    np.testing.assert_allclose(solve(rotation(), START), exact(times), rtol=1e-4, atol=1e-5)


def test_diffrax_trains_a_neural_ode():
    diffrax = pytest.importorskip("diffrax")
    times = np.linspace(0, 1, 6, dtype=np.float32)
    wanted = exact(times)
    field, optimizer = Field().init(0.0, START, rng=1), elegy.Optimizer(optax.adam(0.2))

    def distance(start):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(t, y)),
            diffrax.Heun(),
            0.0,
            1.0,
            0.05,
            start,
            saveat=diffrax.SaveAt(ts=times),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=32,
        )
        return jnp.mean((solution.ys - wanted) ** 2)

    def update(start):
        loss, grads = elegy.value_and_grad(distance, modules=field)(start)
        optimizer.update(field, grads)
        return loss

    update = elegy.jit(update, modules=[field, optimizer])
    losses = [float(update(START)) for _ in range(120)]
    assert losses[0] > 0.1 and losses[-1] < 1e-3 * losses[0]
    np.testing.assert_allclose(field.rate.w, ROTATION, atol=0.1)


def test_a_field_that_counts_its_calls_is_refused_by_name():
    """The solver calls its field inside of its own loop, out of which no update could come."""
    diffrax = pytest.importorskip("diffrax")

    class Counting(elegy.Module):
        def call(self, t, y, args=None):
            calls = self.add_parameter("calls", [], jnp.int32, trainable=False)
            self.update_parameter("calls", calls + 1)
            return -y

    field = Counting().init(0.0, START)
    with pytest.raises(TraceError, match="counting: updated the parameter 'calls' inside a jax transform"):
        diffrax.diffeqsolve(diffrax.ODETerm(lambda t, y, args: field(t, y)), diffrax.Euler(), 0.0, 1.0, 0.1, START)
    assert field.calls == 0


def test_odeint_takes_modules_as_arguments():
    from jax.experimental.ode import odeint

    times = np.linspace(0, 1, 4, dtype=np.float32)

    def solve(field):
        return odeint(lambda y, t, field: field(t, y), START, times, field)

    np.testing.assert_allclose(solve(rotation()), exact(times), rtol=1e-4, atol=1e-5)
    # The derivative of the sum of y(1) = START exp(A) by A, against that of the matrix exponential.
    (_, _), grads = elegy.value_and_grad(lambda field: solve(field)[-1].sum())(rotation())
    by_scipy = [
        (START @ scipy.linalg.expm_frechet(ROTATION.astype(float), unit.reshape(2, 2), compute_expm=False)).sum()
        for unit in np.eye(4)
    ]
    np.testing.assert_allclose(grads.rate.w.ravel(), by_scipy, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Least squares, and other fits
# ---------------------------------------------------------------------------------------------------------------------


def by_partition(module, x, y):
    """Parameters as a module of the same class, and the residuals as a function of them."""
    parameters, rest = elegy.partition(module)

    def residuals(parameters, data):
        rest, x, y = data
        return elegy.combine(parameters, rest)(x) - y

    return residuals, parameters, (rest, x, y)


def by_dict(module, x, y):
    """Parameters as nested dicts."""

    def residuals(parameters, data):
        module, x, y = data
        module = module.copy()  # its own, so that no update of the given one is lost
        module.set_parameters(parameters)
        return module(x) - y

    return residuals, module.get_parameters(trainable=True), (module, x, y)


@pytest.mark.parametrize("split", [by_partition, by_dict])
def test_optimistix_fits_the_trainable_parameters(split):
    optimistix = pytest.importorskip("optimistix")
    module, x, y, design = regression()
    frozen = np.asarray(module.features[0].w)
    with elegy.training_context(False):
        residuals, parameters, data = split(module, x, y)
        solver = optimistix.LevenbergMarquardt(rtol=1e-6, atol=1e-6)
        solution = optimistix.least_squares(residuals, solver, parameters, data)
    wanted = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(coefficients(solution.value), wanted, rtol=1e-3, atol=1e-4)
    if split is by_partition:
        fitted = elegy.combine(solution.value, data[0])
        assert fitted.again is fitted.features[0] and fitted.calls == 0
        np.testing.assert_array_equal(fitted.again.w, frozen)
    else:
        module.set_parameters(solution.value)
        with elegy.training_context(False):
            np.testing.assert_allclose(module(x), design @ wanted, rtol=1e-3, atol=1e-3)


def test_optimistix_minimises_and_finds_roots():
    optimistix = pytest.importorskip("optimistix")
    module, x, y, design = regression()
    with elegy.training_context(False):
        residuals, parameters, data = by_partition(module, x, y)
        loss = lambda parameters, data: jnp.mean(residuals(parameters, data) ** 2)  # noqa: E731
        minimum = optimistix.minimise(loss, optimistix.BFGS(rtol=1e-6, atol=1e-8), parameters, data, max_steps=500)
        root = optimistix.root_find(jax.grad(loss), optimistix.Newton(rtol=1e-6, atol=1e-6), parameters, data)
    wanted = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(coefficients(minimum.value), wanted, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(coefficients(root.value), wanted, rtol=1e-3, atol=1e-3)


def test_lineax_takes_parameters_as_vectors():
    lineax = pytest.importorskip("lineax")
    module, x, y, design = regression()
    with elegy.training_context(False):
        residuals, parameters, data = by_partition(module, x, y)
        jacobian = lineax.JacobianLinearOperator(residuals, parameters, data)
        # Leaves come in the order of creation: w, then b.
        np.testing.assert_allclose(jacobian.as_matrix(), design, rtol=1e-5, atol=1e-6)
        # The residuals are linear in the parameters: one Gauss-Newton step from anywhere is the solution.
        right = residuals(parameters, data)
        step = lineax.linear_solve(jacobian, -right, solver=lineax.QR()).value
        value, linear = jax.linearize(lambda parameters: residuals(parameters, data), parameters)
        operator = lineax.FunctionLinearOperator(linear, jax.eval_shape(lambda: parameters))
        transposed = operator.transpose()
        normal = lineax.TaggedLinearOperator(transposed @ operator, lineax.positive_semidefinite_tag)
        solver = lineax.CG(rtol=1e-6, atol=1e-6)
        by_cg = lineax.linear_solve(normal, transposed.mv(-value), solver=solver).value
    wanted = np.linalg.lstsq(design, y, rcond=None)[0]
    for found in (step, by_cg):
        assert isinstance(found, Regression)
        np.testing.assert_allclose(coefficients(optax.apply_updates(parameters, found)), wanted, rtol=1e-3, atol=1e-3)


def test_jax_scipy_solves_for_modules():
    module, x, y, design = regression()
    with elegy.training_context(False):
        residuals, parameters, data = by_partition(module, x, y)
        value, pullback = jax.vjp(lambda parameters: residuals(parameters, data), parameters)
        gauss_newton = lambda step: pullback(jax.jvp(lambda p: residuals(p, data), (parameters,), (step,))[1])[0]  # noqa: E731
        step, _ = jax.scipy.sparse.linalg.cg(gauss_newton, pullback(-value)[0], tol=1e-6)
    wanted = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(coefficients(optax.apply_updates(parameters, step)), wanted, rtol=1e-3, atol=1e-3)


def test_ravel_pytree_makes_a_vector_of_a_module_for_jax_scipy_optimize():
    module, x, y, design = regression()
    with elegy.training_context(False):
        residuals, parameters, data = by_partition(module, x, y)
        vector, unravel = ravel_pytree(parameters)
        assert vector.shape == (4,)
        loss = lambda vector: jnp.mean(residuals(unravel(vector), data) ** 2)  # noqa: E731
        found = jax.scipy.optimize.minimize(loss, vector, method="BFGS")
    wanted = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(coefficients(unravel(found.x)), wanted, rtol=1e-3, atol=1e-3)


def test_ravel_pytree_keeps_dtypes_sharing_and_what_is_static():
    module, x, _, _ = regression()
    vector, unravel = ravel_pytree(module)
    again = unravel(vector)
    assert vector.size == sum(leaf.size for leaf in jax.tree.leaves(module))
    assert eqx.tree_equal(again, module) and again.calls.dtype == jnp.int32
    assert again.again is again.features[0] and not again.again.trainable
    assert again.features[1] == "tanh"


# ---------------------------------------------------------------------------------------------------------------------
# Bayesian regression
# ---------------------------------------------------------------------------------------------------------------------

NOISE, PRIOR = 0.3, 2.0


def posterior(design, y):
    """Mean and standard deviations for y ~ N(design w, NOISE²), w ~ N(0, PRIOR²). Bishop (2006), equations 3.50-51."""
    covariance = np.linalg.inv(design.T @ design / NOISE**2 + np.eye(design.shape[1]) / PRIOR**2)
    return covariance @ design.T @ y / NOISE**2, np.sqrt(np.diag(covariance))


def assert_from_posterior(samples, design, y):
    mean, deviation = posterior(design, y)
    drawn = coefficients(samples)
    assert drawn.shape == (1000, 4)
    assert (abs(drawn.mean(0) - mean) < 0.25 * deviation).all(), (drawn.mean(0), mean, deviation)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.2)


def log_density(residuals, data):
    def density(parameters):
        likelihood = -0.5 * jnp.sum(residuals(parameters, data) ** 2) / NOISE**2
        return likelihood - 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(parameters)) / PRIOR**2

    return density


def test_blackjax_samples_modules():
    blackjax = pytest.importorskip("blackjax")
    module, x, y, design = regression()
    with elegy.training_context(False):
        residuals, parameters, data = by_partition(module, x, y)
        density = log_density(residuals, data)
        key_warmup, key_samples = jax.random.split(jax.random.key(0))
        warmup = blackjax.window_adaptation(blackjax.nuts, density)
        (start, tuned), _ = warmup.run(key_warmup, parameters, num_steps=300)
        kernel = blackjax.nuts(density, **tuned)

        @jax.jit
        def sample(state, keys):
            def step(state, key):
                state, _ = kernel.step(key, state)
                return state, state.position

            return jax.lax.scan(step, state, keys)[1]

        samples = sample(start, jax.random.split(key_samples, 1000))
    assert isinstance(samples, Regression) and samples.calls is None
    assert_from_posterior(samples, design, y)
    # The samples are an ensemble, whose mean prediction is that of the mean of the posterior.
    members = jax.vmap(lambda sample: elegy.combine(sample, data[0]))(samples)
    with elegy.training_context(False):
        predictions = jax.vmap(lambda member: member(x))(members)
    np.testing.assert_allclose(predictions.mean(0), design @ posterior(design, y)[0], atol=0.05)


def test_numpyro_models_name_parameters_by_path():
    numpyro = pytest.importorskip("numpyro")
    from numpyro import distributions
    from numpyro.infer import MCMC, NUTS

    module, x, y, design = regression()
    parameters, rest = elegy.partition(module)

    def draw(path, leaf):
        prior = distributions.Normal(jnp.zeros(leaf.shape), PRIOR).to_event(leaf.ndim)
        return numpyro.sample(jax.tree_util.keystr(path, simple=True, separator="/"), prior)

    def model(x, y):
        sampled = elegy.combine(jax.tree_util.tree_map_with_path(draw, parameters), rest)
        numpyro.sample("y", distributions.Normal(sampled(x), NOISE), obs=y)

    with elegy.training_context(False):
        mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=1000, progress_bar=False)
        mcmc.run(jax.random.key(0), x, y)
    samples = mcmc.get_samples()
    assert set(samples) == {"head/w", "head/b"}
    assert_from_posterior({"head": {"w": samples["head/w"], "b": samples["head/b"]}}, design, y)


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers that ask for more than gradients
# ---------------------------------------------------------------------------------------------------------------------

line_search = {"value", "grad", "value_fn"}

# A transformation, and what its update takes besides gradients and parameters.
OPTIMISERS = {
    "reduce_on_plateau": (lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)), {"value"}),
    "backtracking": (lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)), line_search),
    "lbfgs": (optax.lbfgs, line_search),
    "polyak_sgd": (optax.polyak_sgd, {"value"}),
    "momo": (lambda: optax.contrib.momo(0.5), {"value"}),
    "dog": (lambda: optax.contrib.dog(init_step=("heuristic", 1e-1)), set()),
    "prodigy": (lambda: optax.contrib.prodigy(1.0, estim_lr0=1e-2), set()),
    "cocob": (lambda: optax.contrib.cocob(1.0), set()),
    "schedule_free": (lambda: optax.contrib.schedule_free_sgd(0.1), set()),
    "sophia": (lambda: optax.contrib.sophia(0.05), {"obj_fn"}),
}

STEPS = 12


def linear_problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3
    return x, y


def extra_arguments(wanted, value, grad, loss_fn):
    """What the transformations of the table may ask for."""
    return {name: {"value": value, "grad": grad, "value_fn": loss_fn, "obj_fn": loss_fn}[name] for name in wanted}


def train_plain(transformation, wanted, parameters, loss_fn):
    """The parameters after some steps of Optax alone, whatever pytree they are."""
    transformation = optax.with_extra_args_support(transformation)

    @jax.jit
    def step(parameters, state):
        value, grads = jax.value_and_grad(loss_fn)(parameters)
        extra = extra_arguments(wanted, value, grads, loss_fn)
        updates, state = transformation.update(grads, state, parameters, **extra)
        return optax.apply_updates(parameters, updates), state, value

    state, losses = transformation.init(parameters), []
    for _ in range(STEPS):
        parameters, state, value = step(parameters, state)
        losses.append(float(value))
    return parameters, losses


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_computes_the_same_on_arrays_modules_dicts_and_through_ours(name):
    make, wanted = OPTIMISERS[name]
    x, y = linear_problem()
    linear = elegy.nn.Linear(1).init(x, rng=0)

    def on_arrays(parameters):
        return jnp.mean((x @ parameters["w"] + parameters["b"] - y) ** 2)

    def on_module(module):
        return jnp.mean((module(x) - y) ** 2)

    plain = {"b": linear.b, "w": linear.w}
    expected, losses = train_plain(make(), wanted, plain, on_arrays)
    assert losses[-1] < losses[0]

    module, found = train_plain(make(), wanted, linear, on_module)
    assert isinstance(module, elegy.nn.Linear)
    np.testing.assert_allclose(found, losses, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(module.w, expected["w"], rtol=1e-3, atol=1e-4)

    ours, optimizer = linear.copy(), elegy.Optimizer(make())

    def update():
        value, grads = elegy.value_and_grad(lambda: on_module(ours), modules=ours)()
        optimizer.update(ours, grads, **extra_arguments(wanted, value, grads, on_arrays))
        return value

    update = elegy.jit(update, modules=[ours, optimizer])
    found = [float(update()) for _ in range(STEPS)]
    np.testing.assert_allclose(found, losses, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.w, expected["w"], rtol=1e-3, atol=1e-4)
    assert update.traces == 1


@pytest.mark.parametrize("name", [name for name, (_, wanted) in OPTIMISERS.items() if "value" in wanted])
def test_a_missing_extra_argument_is_named_and_changes_nothing(name):
    x, y = linear_problem()
    linear, optimizer = elegy.nn.Linear(1).init(x), elegy.Optimizer(OPTIMISERS[name][0]())
    before = linear.get_parameters()
    _, grads = elegy.value_and_grad(lambda: jnp.mean((linear(x) - y) ** 2), modules=linear)()
    with pytest.raises(TypeError, match="missing .*'value'") as raised:
        optimizer.update(linear, grads)
    assert "optimizer" in raised.value.__notes__[0]
    assert linear.w is before["w"] and not optimizer.initialized
    with pytest.raises(TypeError, match="missing .*'value'"):
        optimizer.update(linear, grads, valeu=1.0)


def test_a_model_gives_its_optimiser_the_loss():
    x, y = linear_problem()
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0)  # no loss is ever good enough
    model = elegy.Model(
        module=elegy.nn.Linear(1),
        loss=elegy.losses.MeanSquaredError(),
        optimizer=optax.chain(optax.sgd(0.01), plateau),
        seed=0,
    )
    model.fit(x, y, batch_size=16, epochs=6, verbose=0)
    assert float(model.optimizer.state[1].scale) < 1


def test_the_evaluation_parameters_of_schedule_free_come_from_the_state_of_our_optimiser():
    x, y = linear_problem()
    linear, optimizer = elegy.nn.Linear(1).init(x), elegy.Optimizer(optax.contrib.schedule_free_sgd(0.1))
    for _ in range(STEPS):
        _, grads = elegy.value_and_grad(lambda: jnp.mean((linear(x) - y) ** 2), modules=linear)()
        optimizer.update(linear, grads)
    averaged = linear.copy()
    averaged.set_parameters(optax.contrib.schedule_free_eval_params(optimizer.state, linear.get_parameters()))
    assert jnp.mean((averaged(x) - y) ** 2) < jnp.mean((elegy.nn.Linear(1).init(x)(x) - y) ** 2)
    assert not np.array_equal(averaged.w, linear.w)
