"""Steps of one's own, steps of several batches, and several steps as one: against loops written by hand."""

import functools
import itertools
import operator
import os
import signal
import threading
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.model import Callback
from tests.helpers import assert_close, assert_same
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
    if form == "arrays of JAX" and "max_steps" in options:
        pytest.skip("the number of steps has nothing to do with where the arrays are")
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


@pytest.mark.parametrize("form", ["arrays", "batches", "function", "iterator"])
def test_how_often_groups_are_traced(form):
    x, y = data(26)
    arrays: dict[str, tp.Any] = {"x": x, "y": y, "batch_size": 4}
    if form != "arrays":
        batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 26, 4)]
        arrays = {"x": batches if form == "batches" else lambda: iter(batches)}
    if form == "iterator":
        arrays = {"x": itertools.cycle(batches), "steps_per_epoch": 7}
    model = make_model(started(x))
    for _ in range(2):
        model.fit(**arrays, steps_per_execution=4, epochs=2, verbose=0)
    # A short batch is filled up, unless an iterator gives it, whose batches are equal as a rule.
    assert model.traces["train"] == (2 if form == "iterator" else 1)
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


# ---------------------------------------------------------------------------------------------------------------------
# Steps of one's own
# ---------------------------------------------------------------------------------------------------------------------


class GAN(elegy.Model):
    """Two modules, two optimisers, and random numbers."""

    def __init__(self, generator, discriminator, **kwargs):
        super().__init__(generator, optimizer=optax.adam(0.01), **kwargs)
        self.discriminator = discriminator
        self.second = elegy.Optimizer(optax.adam(0.02))

    def real_or_not(self, x, y, sample_weight):
        noise = jax.random.normal(elegy.next_rng_key(), x.shape)
        real, made = self.discriminator(x), self.discriminator(jax.lax.stop_gradient(self.pred_step(noise)))
        return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(made)), real

    def deceived(self, x, y, sample_weight):
        noise = jax.random.normal(elegy.next_rng_key(), x.shape)
        return jnp.mean(jax.nn.softplus(-self.discriminator(self.pred_step(noise)))), None

    def train_step(self, x, y, sample_weight):
        (judged, _), gradients = self.value_and_grad(self.real_or_not, modules=self.discriminator)(x, y, sample_weight)
        self.second.update(self.discriminator, gradients)
        (made, _), gradients = self.value_and_grad(self.deceived)(x, y, sample_weight)
        self.optimizer.update(self.module, gradients)
        return {"judged": judged["loss"], "made": made["loss"]}

    def test_step(self, x, y, sample_weight):
        return {"made": self.deceived(x, y, sample_weight)[0]}


def gan(**kwargs):
    return GAN(
        elegy.nn.Linear(3), elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), jnp.tanh, elegy.nn.Linear(1)]), **kwargs
    )


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2}, {"steps_per_execution": 2}], ids=["plain", "accumulated", "grouped"]
)
def test_two_modules_with_two_optimisers(options):
    x, _ = data(20)
    model, eager = gan(), gan(run_eagerly=True)
    fit: tp.Any = {"batch_size": 4, "epochs": 2, "verbose": 0, "validation_data": (x,), **options}
    history = model.fit(x, **fit).history
    assert set(history) == {"judged", "made", "val_made"}
    assert model.discriminator.initialized and model.second.initialized
    again = gan()
    assert again.fit(x, **fit).history == history
    assert_same(again.discriminator.get_parameters(), model.discriminator.get_parameters())
    found = eager.fit(x, **fit).history
    for name, values in history.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)
    assert_close(eager.discriminator.get_parameters(), model.discriminator.get_parameters(), rtol=1e-3, atol=1e-5)
    assert_close(eager.module.get_parameters(), model.module.get_parameters(), rtol=1e-3, atol=1e-5)
    if "steps_per_execution" in options:
        plain = gan()
        plain.fit(x, **{**fit, "steps_per_execution": 1})
        assert_close(plain.module.get_parameters(), model.module.get_parameters(), rtol=1e-4, atol=1e-6)


class Denoising(elegy.Model):
    def loss_step(self, x, y, sample_weight):
        noisy = x + 0.1 * jax.random.normal(elegy.next_rng_key(), x.shape)
        restored = self.pred_step(noisy)
        return {"restored": jnp.mean((restored - x) ** 2), "size": 0.01 * jnp.mean(restored**2)}, restored


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"steps_per_execution": 2}, {"run_eagerly": True}])
def test_a_loss_of_ones_own(options):
    x, _ = data(20)
    options = dict(options)
    make = functools.partial(Denoising, optimizer=optax.adam(0.05), run_eagerly=options.pop("run_eagerly", False))
    model = make(elegy.nn.Linear(3))
    history = model.fit(x, batch_size=4, epochs=3, validation_data=(x,), verbose=0, **options).history
    assert {"loss", "restored", "size", "val_loss", "val_restored", "val_size"} == set(history)
    np.testing.assert_allclose(history["loss"], np.add(history["restored"], history["size"]), rtol=1e-5)
    assert history["loss"][-1] < history["loss"][0]


class Hooked(elegy.Model):
    """Declares losses and metrics outside of modules."""

    def loss_step(self, x, y, sample_weight):
        y_pred = self.pred_step(x)
        elegy.add_loss("size", 0.5 * jnp.mean(y_pred**2))
        elegy.add_metric("largest", jnp.mean(jnp.abs(y_pred)))
        return jnp.mean((y_pred - y) ** 2), y_pred

    def train_step(self, x, y, sample_weight):
        (values, _), gradients = self.value_and_grad(self.loss_step)(x, y, sample_weight)
        self.optimizer.update(self.module, gradients)
        return values


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"steps_per_execution": 2}, {"run_eagerly": True}])
def test_hooks_in_steps_of_ones_own(options):
    x, y = data(20)
    options = dict(options)
    model = Hooked(mlp().init(x, rng=1), optimizer=optax.sgd(0.0), run_eagerly=options.pop("run_eagerly", False))
    history = model.fit(x, y, batch_size=4, verbose=0, validation_data=(x, y), **options).history
    y_pred = np.asarray(model.module(x))
    wanted = {
        "loss": np.mean((y_pred - y) ** 2) + 0.5 * np.mean(y_pred**2),
        "size_loss": 0.5 * np.mean(y_pred**2),
        "largest": np.mean(np.abs(y_pred)),
    }
    assert set(history) == {*wanted, *(f"val_{name}" for name in wanted)}
    for name, value in wanted.items():
        np.testing.assert_allclose(history[name], value, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(history[f"val_{name}"], value, rtol=1e-5, err_msg=name)


def returning(value, method="train_step"):
    return type("Own", (elegy.Model,), {method: lambda self, x, y, sample_weight: (self.module(x), value(x))[1]})


@pytest.mark.parametrize(
    ("cls", "error", "message"),
    [
        (
            returning(lambda x: None),
            TypeError,
            r"Own.train_step returned NoneType; it returns a dict of what is logged",
        ),
        (returning(lambda x: jnp.mean(x)), TypeError, "Own.train_step returned .*; it returns a dict"),
        (returning(lambda x: {"a": x}), ValueError, r"a: what is logged must be a scalar, got shape \(8, 3\)"),
        (returning(lambda x: (x, x), "loss_step"), TypeError, "must return a scalar loss"),
        (returning(lambda x: None, "loss_step"), ValueError, "there is nothing to minimise"),
    ],
)
@pytest.mark.parametrize("eagerly", [False, True], ids=["compiled", "eager"])
def test_what_steps_must_return(cls, error, message, eagerly):
    x, y = data(8)
    model = cls(elegy.nn.Linear(3), run_eagerly=eagerly)
    with pytest.raises(error, match=message):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize("method", ["train_step", "test_step", "compute_metrics", "value_and_grad"])
def test_steps_are_called_by_fit(method):
    x, y = data(8)
    model = make_model(started(x))
    arguments = {"compute_metrics": (x, y, y, None), "value_and_grad": (model.loss_step,)}.get(method, (x, y, None))
    with pytest.raises(RuntimeError, match=r"is a part of a step, .*\n.*call train_on_batch"):
        getattr(model, method)(*arguments)
    model.fit(x, y, verbose=0)


def test_outputs_that_cannot_be_joined():
    class Summing(elegy.Model):
        def loss_step(self, x, y, sample_weight):
            y_pred = self.pred_step(x)
            return jnp.mean((y_pred - y) ** 2), self.extra(y_pred)

        def extra(self, y_pred):
            return jnp.sum(y_pred)

    class Halving(Summing):
        def extra(self, y_pred):
            return y_pred[:2]

    x, y = data(8)
    for cls, message in (Summing, "samples along its first axis"), (Halving, "there are 4 for 8 samples"):
        model = cls(started(x))
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, batch_size=4, accumulate=2, verbose=0)
        model.fit(x, y, batch_size=4, verbose=0)


# ---------------------------------------------------------------------------------------------------------------------
# What is no module of Elegy
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"steps_per_execution": 2}])
def test_layers_of_equinox(options):
    equinox = pytest.importorskip("equinox")
    x, y = data(20)
    net = equinox.nn.MLP(3, 1, 4, 1, key=jax.random.key(0))  # it holds functions too

    class Rows(equinox.Module):
        inner: tp.Any

        def __call__(self, x, training):
            assert training is elegy.training()
            return jax.vmap(self.inner)(x)

    model = elegy.Model(Rows(net), loss=elegy.losses.MeanSquaredError(), optimizer=optax.adam(0.05))
    history = model.fit(x, y, batch_size=4, epochs=4, verbose=0, **options).history
    assert history["loss"][-1] < history["loss"][0]
    trained = model.module.wrapped
    np.testing.assert_allclose(model.predict(x, batch_size=8), trained(x, elegy.training()), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(trained.inner.layers[0].weight, net.layers[0].weight)


def test_a_function_that_makes_its_layers():
    def net(x, training):
        assert training is elegy.training()
        return elegy.nn.Linear(1)(x * (2.0 if training else 1.0))

    x, y = data(20)
    model = elegy.Model(net, loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))
    history = model.fit(x, y, batch_size=4, accumulate=2, validation_data=(x, y), verbose=0).history
    linear = model.module.linear
    assert elegy.Model(operator.methodcaller("sum", axis=1)).predict(x).shape == (20,)  # does not say what it takes
    w, b = np.asarray(linear.w), np.asarray(linear.b)
    np.testing.assert_allclose(history["loss"], np.mean((2 * x @ w + b - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"], np.mean((x @ w + b - y) ** 2), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Interrupts and threads
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def default_handler():
    """A process that a shell started in the background ignores this signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class Interrupting(Callback):
    sees_module = False

    def __init__(self, times, at=2):
        self.times = times
        self.at = at
        self.survived = 0

    def on_train_batch_begin(self, batch):
        if batch == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(100):  # the handler runs between two instructions
                    pass
                self.survived += 1


@pytest.mark.parametrize(("times", "steps", "survived"), [(1, 3, 1), (2, 2, 1)])
@pytest.mark.parametrize("together", [1, 3])
def test_the_first_interrupt_lets_the_step_end_and_the_second_does_not(
    times, steps, survived, together, default_handler
):
    x, y = data(40)
    model, reference = make_model(started(x)), make_model(started(x))
    callback = Interrupting(times)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=4, shuffle=False, steps_per_execution=together, callbacks=[callback], verbose=0)
    made = steps if together == 1 or steps == 3 else 0
    assert callback.survived == survived
    assert model.steps == made
    assert signal.getsignal(signal.SIGINT) is default_handler
    if made:
        reference.fit(
            x[: 4 * made], y[: 4 * made], batch_size=4, steps_per_execution=together, shuffle=False, verbose=0
        )
    assert_close(model.module.get_parameters(), reference.module.get_parameters(), rtol=1e-5, atol=1e-7)
    model.fit(x, y, verbose=0)


def test_an_interrupt_while_data_are_made(default_handler):
    x, y = data(20)
    drawn = []

    def batches():
        for number in range(5):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            drawn.append(number)
            yield x[4 * number :][:4], y[4 * number :][:4]

    model = make_model(started(x))
    with pytest.raises(KeyboardInterrupt):
        model.fit(batches, verbose=0)
    assert drawn == [0, 1, 2] and model.steps == 3
    assert signal.getsignal(signal.SIGINT) is default_handler


def test_an_interrupt_of_a_fit_within_a_fit(default_handler):
    x, y = data(20)
    inner, outer = make_model(started(x)), make_model(started(x))

    class Inner(Callback):
        def on_epoch_end(self, epoch, logs):
            inner.fit(x, y, batch_size=4, callbacks=[Interrupting(1)], verbose=0)

    with pytest.raises(KeyboardInterrupt):
        outer.fit(x, y, batch_size=4, callbacks=[Inner()], epochs=2, verbose=0)
    assert (inner.steps, outer.steps) == (3, 5)
    assert signal.getsignal(signal.SIGINT) is default_handler


def test_an_interrupt_of_the_validation_and_after_the_last_step(default_handler):
    x, y = data(20)

    class InValidation(Callback):
        def on_test_batch_begin(self, batch):
            os.kill(os.getpid(), signal.SIGINT)

    class AtEnd(Callback):
        def on_train_end(self):
            os.kill(os.getpid(), signal.SIGINT)

    for callback in InValidation(), AtEnd():
        model = make_model(started(x))
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, batch_size=4, validation_data=(x, y), callbacks=[callback], verbose=0)
        assert model.steps == 5
        assert signal.getsignal(signal.SIGINT) is default_handler


def test_an_interrupt_at_the_end_of_the_last_epoch_is_saved(default_handler, tmp_path):
    x, y = data(20)

    class AtEnd(Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    model = make_model(started(x))
    saver = elegy.callbacks.ModelCheckpoint(tmp_path, every_steps=7)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=4, epochs=2, callbacks=[saver, AtEnd()], verbose=0)
    assert model.steps == elegy.Checkpoints(tmp_path).latest() == 10


def test_a_second_interrupt_while_the_last_checkpoint_is_written(default_handler, tmp_path, monkeypatch):
    x, y = data(20)
    model = make_model(started(x))
    saver = elegy.callbacks.ModelCheckpoint(tmp_path, every_epochs=9)
    reached = []

    def save(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):  # the handler runs between two instructions
            pass
        reached.append("after the second")

    monkeypatch.setattr(elegy.Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=4, epochs=2, callbacks=[saver, Interrupting(1)], verbose=0)
    assert model.steps == 3 and reached == []


def test_another_handler_stays():
    x, y = data(20)
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        model = make_model(started(x))
        model.fit(x, y, batch_size=4, callbacks=[Interrupting(2)], verbose=0)
        assert heard == [signal.SIGINT] * 2 and model.steps == 5
    finally:
        signal.signal(signal.SIGINT, before)


def in_threads(*functions):
    """Runs functions at the same time, and gives what they return."""
    found: list[tp.Any] = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def run(number):
        start.wait()
        try:
            found[number] = functions[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_training_in_another_thread(default_handler):
    x, y = data(20)
    wanted = make_model(started(x)).fit(x, y, batch_size=4, epochs=2, verbose=0).history
    (history,) = in_threads(lambda: make_model(started(x)).fit(x, y, batch_size=4, epochs=2, verbose=0).history)
    assert history == wanted
    assert signal.getsignal(signal.SIGINT) is default_handler


def test_evaluating_in_two_threads():
    x, y = data(64)
    model = make_model(started(x), metrics=elegy.metrics.MeanSquaredError())
    wanted = make_model(started(x), metrics=elegy.metrics.MeanSquaredError()).evaluate(x, y, batch_size=4)
    found = in_threads(*[lambda: [model.evaluate(x, y, batch_size=4) for _ in range(10)]] * 2)
    assert found == [[wanted] * 10] * 2


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 4}, {"accumulate": 2}], ids=str)
def test_predicting_while_another_thread_trains(options):
    x, y = data(64)
    model, quiet = make_model(started(x)), make_model(started(x))
    model.predict(x)
    done = threading.Event()

    def train():
        try:
            return model.fit(x, y, batch_size=4, epochs=10, verbose=0, **options).history
        finally:
            done.set()

    def look():
        found = [model.predict(x, batch_size=16)]
        while not done.is_set():
            found += [model.predict(x, batch_size=16), model.evaluate(x, y, batch_size=16)]
        return found

    history, seen, more = in_threads(train, look, look)
    assert history == quiet.fit(x, y, batch_size=4, epochs=10, verbose=0, **options).history
    for found in (seen, more):
        assert isinstance(found, list), found
        assert all(np.isfinite(value).all() for entry in found for value in jax.tree.leaves(entry))


def test_an_optimiser_of_a_step_of_ones_own_keeps_its_state():
    class Both(elegy.Model):
        def __init__(self, module, head, **options):
            super().__init__(module, **options)
            self.head = head

        def loss_step(self, x, y, sample_weight):
            y_pred = self.head(self.pred_step(x))
            return jnp.mean((y_pred - y) ** 2), y_pred

        def train_step(self, x, y, sample_weight):
            both = [self.module, self.head]
            (values, _), gradients = self.value_and_grad(self.loss_step, modules=both)(x, y, sample_weight)
            self.optimizer.update(both, gradients)
            return values

    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    model = Both(elegy.nn.Linear(4), elegy.nn.Linear(1), optimizer=optax.sgd(0.1, momentum=0.9))
    model.fit(x, x[:, :1], batch_size=16, verbose=0)
    before = jax.tree.map(np.asarray, model.optimizer.state)
    model.fit(x[:8], x[:8, :1], batch_size=8, epochs=1, verbose=0)
    after = jax.tree.map(np.asarray, model.optimizer.state)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(before))


def test_attributes_of_a_subclass_may_begin_with_an_underscore():
    x = np.ones([8, 3], np.float32)

    class Private(elegy.Model):
        def __init__(self, module):
            super().__init__(module, optimizer=optax.sgd(0.0))
            self._shift = 0.0
            self._head = elegy.nn.Linear(1).init(x, rng=0)

        def loss_step(self, x, y, sample_weight):
            return self._shift + jnp.mean(self._head(self.pred_step(x)) ** 2), None

    model = Private(elegy.nn.Linear(3))
    assert model.train_on_batch(x)["loss"] > 0
    model._head.set_parameters(jax.tree.map(jnp.zeros_like, model._head.get_parameters()))
    assert model.train_on_batch(x) == {"loss": 0.0}
    model._shift = 7.0
    assert model.train_on_batch(x) == {"loss": 7.0}
    # All that a model has by itself is known.
    own = vars(elegy.Model(elegy.nn.Linear(1)))
    assert {name for name in own if name.startswith("_")} == elegy.model.model._OWN


def test_gradients_of_many_parts_are_added_up_in_more_digits_than_parameters_have():
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 1, size=(256, 3)).astype(np.float32), rng.normal(size=(256, 1)).astype(np.float32)
    policy = elegy.DtypePolicy(param_dtype=jnp.bfloat16, compute_dtype=jnp.float32, output_dtype=jnp.float32)
    found = []
    for parts in (1, 128):
        model = elegy.Model(
            elegy.nn.Linear(1), elegy.losses.MeanSquaredError(), optimizer=optax.sgd(1.0), policy=policy
        )
        model.module.init(x, rng=0)
        before = model.module.w.astype(jnp.float32)
        model.fit(x, y, batch_size=256 // parts, accumulate=parts, verbose=0)
        found.append(model.module.w.astype(jnp.float32) - before)
    np.testing.assert_allclose(found[1], found[0], rtol=2**-6)


def test_a_line_search_may_try_parameters_of_other_digits():
    x, y = np.ones([8, 3], np.float32), np.ones([8, 1], np.float32)
    policy = elegy.DtypePolicy(param_dtype=jnp.bfloat16, output_dtype=jnp.float32)
    model = elegy.Model(elegy.nn.Linear(1), elegy.losses.MeanSquaredError(), optimizer=optax.lbfgs(), policy=policy)
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert model.module.w.dtype == jnp.bfloat16 and losses[-1] < 1e-3 * losses[0]


def test_parameters_may_be_complex():
    class Complex(elegy.Module):
        def call(self, x):
            values = jnp.asarray([1 + 2j, 3 - 1j], jnp.complex64)
            return jnp.abs(x @ self.add_parameter("w", initializer=lambda: values)[:, None])

    x, y = np.random.default_rng(0).normal(size=(8, 2)).astype(np.complex64), np.ones([8, 1], np.float32)
    found = []
    for accumulate in (1, 2):
        model = elegy.Model(Complex(), elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        average = elegy.callbacks.EMA(0.5)
        model.fit(x, y, batch_size=8 // accumulate, accumulate=accumulate, callbacks=[average], verbose=0)
        np.testing.assert_allclose(average.parameters["w"], model.module.w, rtol=1e-6)  # after one step
        found.append(model.module.w)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    assert abs(found[0].imag).min() > 0.1


def test_a_layer_that_a_step_constructs_is_told_where_it_belongs():
    class Constructing(elegy.Model):
        def loss_step(self, x, y, sample_weight):
            return jnp.mean(elegy.nn.Linear(2)(self.pred_step(x)) ** 2), None

    with pytest.raises(elegy.errors.TraceError, match="or one that the traced function constructs"):
        Constructing(elegy.nn.Linear(3)).train_on_batch(np.ones([8, 3], np.float32))
