"""Steps of one's own, steps of several batches, and several steps as one: against loops written by hand."""

import functools
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.model import Callback
from tests.helpers import assert_close
from tests.model.test_model import data, loss_by_hand, make_model, mlp, mse


def started(x, make=mlp, seed=1):
    return make().init(x, rng=seed)


def per_sample(y_true, y_pred):
    return jnp.abs(y_true - y_pred)[:, 0]


def ridge(parameters):
    return 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(parameters))


class Declaring(elegy.Module):
    """Declares a loss and a metric, which are means over samples."""

    def call(self, x):
        y = mlp()(x)
        elegy.add_loss("activity", 0.1 * jnp.mean(y**2))
        elegy.add_metric("size", jnp.mean(jnp.abs(y)))
        return y


# ---------------------------------------------------------------------------------------------------------------------
# Steps of several batches
# ---------------------------------------------------------------------------------------------------------------------


def labels_of(y):
    return (y[:, 0] > 0).astype(np.int32)


CASES: dict[str, tuple[tp.Any, dict[str, tp.Any]]] = {
    "plain": ({}, {}),
    "weights": ({"metrics": [per_sample]}, {"sample_weight": np.linspace(0, 3, 22, dtype=np.float32)}),
    "a weight for each value": ({}, {"sample_weight": np.linspace(0, 3, 22, dtype=np.float32)[:, None]}),
    "losses in a dict": ({"loss": {"a": elegy.losses.MeanSquaredError(), "b": [per_sample, mse]}}, {}),
    "a regulariser": ({"loss": [elegy.losses.MeanSquaredError(), ridge]}, {}),
    "a metric": ({"metrics": [elegy.metrics.MeanSquaredError(), per_sample]}, {}),
    "clipped": ({"optimizer": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01))}, {}),
}


@pytest.mark.parametrize("form", ["arrays", "arrays of JAX", "batches"])
@pytest.mark.parametrize(("model", "fit"), CASES.values(), ids=CASES.keys())
def test_parts_add_up_to_the_whole_batch(model, fit, form):
    if form != "arrays" and fit == {}:
        pytest.skip("the data do not come differently")
    x, y = data(22)
    arrays = {"x": x, "y": y, **fit}
    whole, parts = (make_model(started(x), **model) for _ in range(2))
    wanted = whole.fit(**arrays, batch_size=12, epochs=2, shuffle=False, verbose=0).history
    if form == "batches":
        weight = fit["sample_weight"]
        arrays = {"x": [(x[i : i + 4], y[i : i + 4], weight[i : i + 4]) for i in range(0, 22, 4)]}
    elif form == "arrays of JAX":
        arrays = jax.tree.map(jnp.asarray, arrays)
    options = {"shuffle": None} if form == "batches" else {"shuffle": False, "batch_size": 4}
    # Groups of 4, 4, 4 and of 4, 4, 2 samples.
    found = parts.fit(**arrays, **options, accumulate=3, epochs=2, verbose=0).history
    assert parts.steps == whole.steps == 4
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    assert_close(parts.module.get_parameters(), whole.module.get_parameters(), rtol=1e-5, atol=1e-6)


def test_parts_with_class_weights():
    x, y = data(22)
    labels = labels_of(y)
    make = functools.partial(
        make_model,
        loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=elegy.metrics.SparseCategoricalAccuracy(),
    )
    net = lambda: elegy.nn.Sequential(lambda: [elegy.nn.Linear(2)])  # noqa: E731
    whole, parts = (make(started(x, net)) for _ in range(2))
    options: tp.Any = {"class_weight": {0: 0.3, 1: 2.0}, "epochs": 2, "shuffle": False, "verbose": 0}
    wanted = whole.fit(x, labels, batch_size=12, **options).history
    found = parts.fit(x, labels, batch_size=4, accumulate=3, **options).history
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    assert_close(parts.module.get_parameters(), whole.module.get_parameters(), rtol=1e-5, atol=1e-6)


def test_parts_of_what_modules_declare():
    x, y = data(22)
    whole, parts = (make_model(started(x, Declaring)) for _ in range(2))
    wanted = whole.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0).history
    found = parts.fit(x, y, batch_size=4, accumulate=3, epochs=2, shuffle=False, verbose=0).history
    assert set(found) == {"loss", "mean_squared_error_loss", "activity_loss", "declaring/size"}
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    assert_close(parts.module.get_parameters(), whole.module.get_parameters(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eagerly", [False, True], ids=["compiled", "eager"])
def test_parts_of_a_module_without_parameters_yet(eagerly):
    x, y = data(12)
    whole, parts = (make_model(run_eagerly=eagerly) for _ in range(2))
    wanted = whole.fit(x, y, batch_size=12, verbose=0).history
    found = parts.fit(x, y, batch_size=4, accumulate=3, verbose=0).history
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)
    assert_close(parts.module.get_parameters(), whole.module.get_parameters(), rtol=1e-5, atol=1e-6)
    assert parts.traces["train"] == (0 if eagerly else 1)


def test_the_parts_are_those_of_optax_multi_steps():
    x, y = data(24)
    transformation = optax.adam(0.01)
    parts = make_model(started(x), optimizer=transformation)
    other = make_model(started(x), optimizer=optax.MultiSteps(transformation, every_k_schedule=3))
    parts.fit(x, y, batch_size=4, accumulate=3, epochs=2, shuffle=False, verbose=0)
    other.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert (parts.steps, other.steps) == (4, 12)
    assert_close(parts.module.get_parameters(), other.module.get_parameters(), rtol=1e-4, atol=1e-6)


def test_normalisation_looks_at_one_part():
    x, y = data(8)
    net = lambda: elegy.nn.Sequential(  # noqa: E731
        lambda: [elegy.nn.BatchNormalization(decay_rate=0.5), elegy.nn.Linear(1)]
    )
    model = make_model(started(x, net), optimizer=optax.sgd(0.0))
    model.fit(x, y, batch_size=4, accumulate=2, shuffle=False, verbose=0)
    mean = np.zeros(3)
    for part in (x[:4], x[4:]):
        mean = 0.5 * mean + 0.5 * part.mean(0)
    states = [leaf for leaf in jax.tree.leaves(model.module.get_parameters(trainable=False)) if leaf.shape == (3,)]
    assert any(np.allclose(leaf, mean, atol=1e-6) for leaf in states)


@pytest.mark.parametrize(
    "make", [optax.lbfgs, lambda: optax.polyak_sgd(max_learning_rate=0.1)], ids=["lbfgs", "polyak"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_optimisers_that_ask_for_values(make, accumulate):
    x, y = data(16)
    model = make_model(started(x), optimizer=make())
    parameters = model.module.get_parameters()
    transformation = make()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = transformation.init(parameters)
        for _ in range(4):
            value, gradients = jax.value_and_grad(loss_by_hand)(parameters, x, y)
            updates, state = transformation.update(
                gradients,
                state,
                parameters,
                value=value,
                grad=gradients,
                value_fn=lambda parameters: loss_by_hand(parameters, x, y),
            )
            parameters = optax.apply_updates(parameters, updates)
    model.fit(x, y, batch_size=16 // accumulate, accumulate=accumulate, epochs=4, shuffle=False, verbose=0)
    assert_close(model.module.get_parameters(), parameters, rtol=1e-3, atol=1e-5)


def test_a_rate_that_is_reduced_on_a_plateau():
    x, y = data(16)
    chain = lambda: optax.chain(  # noqa: E731
        optax.sgd(0.05), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, atol=10.0)
    )
    model = make_model(started(x), optimizer=chain())
    parameters, transformation = model.module.get_parameters(), chain()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = transformation.init(parameters)
        for _ in range(6):
            value, gradients = jax.value_and_grad(loss_by_hand)(parameters, x, y)
            updates, state = transformation.update(gradients, state, parameters, value=value)
            parameters = optax.apply_updates(parameters, updates)
    model.fit(x, y, batch_size=4, accumulate=4, epochs=6, shuffle=False, verbose=0)
    assert_close(model.module.get_parameters(), parameters, rtol=1e-4, atol=1e-6)
    assert float(optax.tree.get(state, "scale")) < 1


# ---------------------------------------------------------------------------------------------------------------------
# Several steps as one
# ---------------------------------------------------------------------------------------------------------------------


def noisy() -> tp.Any:
    return elegy.nn.Sequential(
        lambda: [
            elegy.nn.Linear(8),
            elegy.nn.BatchNormalization(),
            jax.nn.relu,
            elegy.nn.Dropout(0.3),
            elegy.nn.Linear(1),
        ]
    )


OPTIONS: dict[str, dict[str, tp.Any]] = {
    "plain": {"epochs": 2},
    "max_steps in a group": {"max_steps": 8},
    "max_steps at the end of a group": {"max_steps": 6},
    "validation in a group": {"epochs": 2, "validate_every": 4},
    "accumulated": {"epochs": 2, "accumulate": 2},
}


@pytest.mark.parametrize("form", ["arrays", "arrays of JAX", "batches"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_groups_of_steps_change_nothing(options, form):
    x, y = data(26)
    test = data(9, seed=1)

    def run(together):
        model = make_model(
            noisy(),
            optimizer=optax.adam(0.01),
            metrics=[elegy.metrics.MeanSquaredError(), mse, per_sample],
        )
        average = elegy.callbacks.EMA(0.8)
        arrays: dict[str, tp.Any] = {"x": x, "y": y, "batch_size": 4}
        if form == "arrays of JAX":
            arrays.update(x=jnp.asarray(x), y=jnp.asarray(y))
        elif form == "batches":
            arrays = {"x": [(x[i : i + 4], y[i : i + 4]) for i in range(0, 26, 4)]}
        history = model.fit(
            **arrays,
            **options,
            callbacks=[average],
            steps_per_execution=together,
            validation_data=test,
            verbose=0,
        )
        return history.history, model.module.get_parameters(), average.parameters, model.steps

    wanted, found = run(1), run(3)
    assert found[3] == wanted[3]
    assert found[0].keys() == wanted[0].keys()
    for name, values in wanted[0].items():
        np.testing.assert_allclose(found[0][name], values, rtol=1e-5, err_msg=name)
    assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-6)
    assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["arrays", "batches"])
def test_callbacks_see_the_last_batch_of_each_group(form):
    x, y = data(28)
    seen = []

    class Watch(Callback):
        def on_train_batch_begin(self, batch):
            seen.append(("begin", batch, self.model.steps))

        def on_train_batch_end(self, batch, logs):
            seen.append(("end", batch, self.model.steps))

    model = make_model(started(x))
    arrays: dict[str, tp.Any] = {"x": x, "y": y, "batch_size": 4}
    if form == "batches":
        arrays = {"x": [(x[i : i + 4], y[i : i + 4]) for i in range(0, 28, 4)]}
    model.fit(**arrays, steps_per_execution=3, validate_every=5, validation_data=(x, y), callbacks=[Watch()], verbose=0)
    # Steps 0 to 2; 3 and 4, since then there is a validation; 5 and 6.
    assert seen == [
        ("begin", 2, 0),
        ("end", 2, 3),
        ("begin", 4, 3),
        ("end", 4, 5),
        ("begin", 6, 5),
        ("end", 6, 7),
    ]
    assert model.traces["train"] == 1


@pytest.mark.parametrize("form", ["arrays", "batches"])
def test_how_often_groups_are_traced(form):
    x, y = data(26)
    arrays: dict[str, tp.Any] = {"x": x, "y": y, "batch_size": 4}
    if form == "batches":
        arrays = {"x": [(x[i : i + 4], y[i : i + 4]) for i in range(0, 26, 4)]}
    model = make_model(started(x))
    for _ in range(2):
        model.fit(**arrays, steps_per_execution=4, epochs=2, verbose=0)
    # The short batch of arrays is filled up, and that of others is a shape of its own.
    assert model.traces["train"] == (1 if form == "arrays" else 2)
    assert model.steps == 28


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"steps_per_execution": 2}, {"accumulate": 2, "steps_per_execution": 2}]
)
def test_eager_steps_see_arrays(options):
    x, y = data(20)
    seen = []

    class Looking(elegy.Module):
        def call(self, x):
            if not elegy.is_initializing():
                seen.append(np.asarray(x))
            return elegy.nn.Linear(1)(x)

    def run(eagerly, module):
        model = make_model(module, run_eagerly=eagerly)
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, **options)
        return model

    model = run(True, Looking())
    assert model.traces["train"] == 0
    np.testing.assert_array_equal(np.concatenate(seen), x)
    compiled = run(False, elegy.to_module(lambda x: elegy.nn.Linear(1)(x))().init(x))
    assert model.steps == compiled.steps


def test_eager_steps_get_arrays_of_jax():
    x, y = data(10)

    class First(elegy.metrics.Metric):
        def call(self, y_true):
            total = self.add_parameter("total", [2], initializer=jnp.zeros, trainable=False)
            self.update_parameter("total", total.at[0].add(jnp.sum(y_true.at[:].get())))
            return self.total.sum()

    def doubled(x):
        return elegy.nn.Linear(1)(x.at[:, 0].multiply(2.0))

    found = []
    for eagerly in (False, True):
        model = make_model(elegy.to_module(doubled)().init(x, rng=1), metrics=First(), run_eagerly=eagerly)
        history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
        found.append([history, model.evaluate(x, y, batch_size=4), model.predict(x, batch_size=4)])
    assert_close(*found, rtol=1e-4)
