"""`elegy.Model` against loops written by hand with Optax, and its metrics against scikit-learn."""

import contextlib
import functools
import gc
import io
import math
import os
import signal
import sys
import threading
import typing as tp
import weakref

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import sklearn.metrics
import sklearn.utils.class_weight
from jax.core import Tracer

import elegy
from elegy.callbacks import progress
from elegy.model import Callback, steps
from elegy.model.batches import Arrays
from tests.helpers import assert_close


def data(samples=20, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 3)).astype(np.float32)
    return x, (x.sum(axis=1, keepdims=True) + 0.1 * rng.normal(size=(samples, 1))).astype(np.float32)


def mlp() -> tp.Any:
    return elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), jax.nn.relu, elegy.nn.Linear(1)])


def mse(y_true, y_pred):
    return jnp.mean((y_true - y_pred) ** 2)


def make_model(module=None, **kwargs):
    kwargs = {"loss": elegy.losses.MeanSquaredError(), "optimizer": optax.sgd(0.05), **kwargs}
    return elegy.Model(mlp() if module is None else module, **kwargs)


def parameters_of(module):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(module.get_parameters())]


def assert_equal_parameters(a, b):
    for x, y in zip(parameters_of(a), parameters_of(b), strict=True):
        np.testing.assert_array_equal(x, y)


def loss_by_hand(parameters, x, y):
    """The mean squared error of `mlp()` with these parameters."""
    first, _, second = parameters["layers"]
    hidden = jax.nn.relu(x @ first["w"] + first["b"][None])
    return jnp.mean((hidden @ second["w"] + second["b"][None] - y) ** 2)


@functools.partial(jax.jit, static_argnums=0)
def step_by_hand(transformation, parameters, state, x, y):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loss, gradients = jax.value_and_grad(loss_by_hand)(parameters, x, y)
        updates, state = transformation.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, loss


def epoch_by_hand(transformation, parameters, state, batches):
    """One epoch over batches; its loss is the mean over samples."""
    total = count = 0
    for x, y in batches:
        parameters, state, loss = step_by_hand(transformation, parameters, state, x, y)
        total, count = total + len(x) * float(loss), count + len(x)
    return parameters, state, total / count


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "eagerly"),
    [(None, False), (optax.sgd(0.05, momentum=0.9), False), (optax.sgd(0.05, momentum=0.9), True)],
    ids=["default", "momentum", "momentum, eager"],
)
def test_fit_computes_what_a_loop_by_hand_computes(optimizer, eagerly):
    x, y = data(20)
    module = mlp().init(x, rng=3)
    model = make_model(module, optimizer=optimizer, run_eagerly=eagerly)
    transformation = optax.adam(1e-3) if optimizer is None else optimizer
    parameters = module.get_parameters()
    with jax.numpy_dtype_promotion("standard"):
        state = transformation.init(parameters)
    wanted = []
    epochs = 1 if eagerly else 4
    for _ in range(epochs):
        batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 20, 8)]  # the last one has 4
        parameters, state, loss = epoch_by_hand(transformation, parameters, state, batches)
        wanted.append(loss)
    history = model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], wanted, rtol=1e-5)
    found = module.get_parameters()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(parameters), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_module_is_trained_in_place():
    x, y = data()
    module = mlp()
    model = make_model(module)
    model.fit(x, y, verbose=0)
    linear, w = module.layers[0], module.layers[0].w
    model.fit(x, y, verbose=0)
    assert model.module is module
    assert module.layers[0] is linear
    assert not np.array_equal(linear.w, w)
    with elegy.training_context(False):
        np.testing.assert_allclose(module(x), model.predict(x), rtol=1e-5, atol=1e-6)


def test_the_guide_without_an_optimiser():
    rng = np.random.default_rng(0)
    model = elegy.Model(
        module=elegy.nn.Sequential(
            lambda: [elegy.nn.Linear(64), jax.nn.relu, elegy.nn.Linear(32), jax.nn.relu, elegy.nn.Linear(1)]
        ),
        loss=elegy.losses.MeanSquaredError(),
    )
    history = model.fit(x=rng.uniform(size=(15, 3)), y=rng.uniform(size=(15, 1)), batch_size=15, epochs=100, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert model.traces["train"] == 1


def test_evaluate_is_a_mean_over_samples_whatever_the_batch_size():
    x, y = data(20)
    module = mlp().init(x)
    model = make_model(module, metrics=[mse])
    wanted = float(jnp.mean((module(x) - y) ** 2))
    for size in (3, 8, 20, 100):
        logs = model.evaluate(x, y, batch_size=size)
        assert set(logs) == {"loss", "mean_squared_error_loss", "mse"}
        assert all(type(value) is float for value in logs.values())
        np.testing.assert_allclose(list(logs.values()), wanted, rtol=1e-5)


@pytest.mark.parametrize("metric", [elegy.metrics.MeanSquaredError, lambda: mse], ids=["a Metric", "a function"])
@pytest.mark.parametrize("eagerly", [False, True])
def test_looking_at_a_model_leaves_its_state(metric, eagerly):
    class Counting(elegy.Module):
        def call(self, x):
            n = self.add_parameter("n", [], jnp.int32, jnp.zeros, trainable=False)
            self.update_parameter("n", n + 1)
            return elegy.nn.Linear(1)(x)

    x, y = data()
    model = make_model(Counting(), metrics=metric(), run_eagerly=eagerly)
    model.fit(x, y, batch_size=5, verbose=0)
    for _ in range(2):
        model.evaluate(x, y, batch_size=5)
        model.predict(x)
        assert model.module.n == 4


def test_predict_gives_numpy_arrays_of_all_samples():
    x, _ = data(20)
    module = mlp().init(x)
    predicted = make_model(module).predict(x, batch_size=8)
    assert type(predicted) is np.ndarray
    np.testing.assert_allclose(predicted, module(x), rtol=1e-5, atol=1e-6)


def test_metrics_of_a_classifier_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    y = (x[:, 0] + 0.5 * rng.normal(size=50) > 0).astype(np.int32) + (x[:, 1] > 1)
    weight = rng.uniform(size=50).astype(np.float32)
    model = elegy.Model(
        elegy.nn.Sequential(lambda: [elegy.nn.Linear(3), jax.nn.softmax]),
        loss=elegy.losses.SparseCategoricalCrossentropy(),
        metrics=elegy.metrics.SparseCategoricalAccuracy(),
        optimizer=optax.adam(0.05),
    )
    model.fit(x, y, epochs=3, batch_size=16, verbose=0)
    probabilities = model.predict(x, batch_size=16)
    chosen = probabilities.argmax(axis=1)
    probabilities = probabilities.astype(np.float64) / probabilities.astype(np.float64).sum(axis=1, keepdims=True)
    logs = model.evaluate(x, y, batch_size=16)
    np.testing.assert_allclose(logs["loss"], sklearn.metrics.log_loss(y, probabilities, labels=[0, 1, 2]), rtol=1e-5)
    np.testing.assert_allclose(
        logs["sparse_categorical_accuracy"], sklearn.metrics.accuracy_score(y, chosen), rtol=1e-6
    )
    logs = model.evaluate(x, y, batch_size=16, sample_weight=weight)
    wanted = sklearn.metrics.accuracy_score(y, chosen, sample_weight=weight)
    np.testing.assert_allclose(logs["sparse_categorical_accuracy"], wanted, rtol=1e-5)


def test_metrics_start_anew_with_each_epoch_and_evaluation():
    x, y = data(10)

    class Count(elegy.metrics.Metric):
        def call(self, y_true):
            count = self.add_parameter("count", [], trainable=False) + y_true.shape[0]
            self.update_parameter("count", count)
            return count

    metric = Count()
    metric(y)
    model = make_model(metrics=metric)
    history = model.fit(x, y, batch_size=4, epochs=3, validation_data=(x[:7], y[:7]), verbose=0)
    counted = history.history["count"], history.history["val_count"], model.evaluate(x, y, batch_size=3)["count"]
    assert counted == ([10, 10, 10], [7, 7, 7], 10)
    assert metric.count == 10  # the model has its own


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def test_names_of_losses_and_metrics():
    x, y = data()

    def per_sample(y_true, y_pred):
        return jnp.abs(y_true - y_pred)[:, 0]

    def parts(y_true, y_pred):
        return {"a": mse(y_true, y_pred), "b": 2 * mse(y_true, y_pred)}

    model = make_model(
        loss={"main": [elegy.losses.MeanSquaredError(), mse], "extra": parts},
        metrics=[mse, mse, {"group": per_sample}, functools.partial(mse), lambda y_true, y_pred: mse(y_true, y_pred)],
    )
    logs = model.evaluate(x, y)
    assert set(logs) == {
        "loss",
        "main_loss/mean_squared_error",
        "main_loss/mse",
        "extra_loss/parts/a",
        "extra_loss/parts/b",
        "mse",
        "mse_1",
        "mse_2",
        "group/per_sample",
        "function",
    }
    assert next(iter(logs)) == "loss"
    np.testing.assert_allclose(logs["loss"], 5 * logs["mse"], rtol=1e-5)


def test_names_of_losses_follow_the_rule_of_add_loss():
    x, y = data()

    def closs(y_true, y_pred):
        return mse(y_true, y_pred)

    def loss(y_true, y_pred):
        return mse(y_true, y_pred)

    logs = make_model(loss=[closs, loss, mse]).evaluate(x, y)
    assert list(logs) == ["loss", "closs", "loss_1", "mse_loss"]  # the total has the name "loss"


@pytest.mark.parametrize(
    "loss",
    [optax.sigmoid_binary_cross_entropy, optax.squared_error, optax.huber_loss, optax.safe_softmax_cross_entropy],
)
def test_losses_of_optax_get_predictions_and_targets_by_their_names(loss):
    x, y = data(12)
    y = (y > 0).astype(np.float32)
    module = mlp().init(x)
    weight = np.linspace(0, 1, 12, dtype=np.float32)
    expected = np.asarray(loss(module(x), y)).reshape(12, -1).mean(1)
    logs = elegy.Model(module, loss=loss, metrics=loss).evaluate(x, y, batch_size=4)
    np.testing.assert_allclose(logs["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(logs[loss.__name__], expected.mean(), rtol=1e-5)
    logs = elegy.Model(module, loss=loss).evaluate(x, y, sample_weight=weight)
    np.testing.assert_allclose(logs["loss"], np.mean(weight * expected), rtol=1e-5)


def scalar_mse(y_true, y_pred):
    return ((y_pred - y_true) ** 2).mean()


@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize("eagerly", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize(
    ("function", "flat", "message"),
    [
        (optax.sigmoid_binary_cross_entropy, "y", r"labels of shape \(8,\) and logits of shape \(8, 1\) to \(8, 8\)"),
        (scalar_mse, "y", r"y_true of shape \(8,\) and y_pred of .*\n.* last axis of y_true .* y_true\[..., None\]"),
        (scalar_mse, "prediction", r"y_true of shape \(8, 1\) and y_pred of shape \(8,\) .*\n.*y_pred\[..., None\]"),
        (jax.jit(scalar_mse), "y", "would compare each sample with every other one"),
    ],
)
def test_functions_that_broadcast_samples_against_samples_are_refused(function, flat, message, eagerly):
    x, y = data(8)
    module = elegy.nn.Linear(1).init(x)
    if flat == "prediction":
        module = elegy.to_module(lambda x: elegy.nn.Linear(1)(x)[:, 0])()
    y = y[:, 0] if flat == "y" else y
    for kind in ("loss", "metrics"):
        model = make_model(module, **{"loss": None, kind: function}, run_eagerly=eagerly)
        with pytest.raises(ValueError, match=message):
            model.evaluate(x, y)


@pytest.mark.usefixtures("default_promotion")
def test_a_function_that_broadcasts_the_weights_is_refused():
    def weighted(y_true, y_pred, sample_weight):
        return (y_true - y_pred) ** 2 * sample_weight

    x, y = data(8)
    with pytest.raises(ValueError, match=r"sample_weight of shape \(8,\).*\n.* added by sample_weight\[..., None\]"):
        make_model(loss=weighted).evaluate(x, y, sample_weight=np.ones(8, np.float32))


@pytest.mark.usefixtures("default_promotion")
def test_functions_that_bring_samples_together_are_called():
    x, y = data(8)
    labels = (y[:, 0] > 0).astype(np.int32)
    module = elegy.nn.Linear(1).init(x)
    scores = np.asarray(module(x))[:, 0]
    calls = []

    def without_the_axis(y_true, y_pred):
        return (y_true - y_pred[:, 0]) ** 2

    def of_all_pairs(y_true, y_pred):
        calls.append(None)
        return jax.nn.relu(y_pred - y_pred.T) * (y_true[:, None] - y_true[None])

    def scaled(y_true, y_pred):  # broadcasts something else
        return (y_pred * jnp.ones([1, 1, 1]))[0, :, 0] - y_true

    def declaring(y_true, y_pred):
        elegy.add_metric("seen", y_true.mean())
        return scaled(y_true, y_pred)

    functions = [without_the_axis, of_all_pairs, scaled, declaring]
    logs = make_model(module, loss=None, metrics=functions).evaluate(x, labels)
    np.testing.assert_allclose(logs["without_the_axis"], np.mean((labels - scores) ** 2), rtol=1e-5)
    np.testing.assert_allclose(logs["scaled"], np.mean(scores - labels), rtol=1e-5)
    pairs = np.maximum(scores[:, None] - scores[None], 0) * (labels[:, None] - labels[None])
    np.testing.assert_allclose(logs["of_all_pairs"], pairs.mean(), rtol=1e-4, atol=1e-7)
    assert len(calls) == 2  # the init pass, and the trace
    # As many samples as classes, and a single sample.
    ten = elegy.nn.Linear(8).init(x)
    one_hot = lambda y_true, y_pred: jax.nn.one_hot(y_true, 8) * y_pred  # noqa: E731
    assert make_model(ten, loss=one_hot).evaluate(x, labels)
    assert make_model(module, loss=scalar_mse).evaluate(x[:1], y[:1, 0])


@pytest.mark.parametrize("function", [lambda a, b: a - b, lambda *args: args[0], lambda sample_weight: 0.0, max])
def test_functions_that_name_no_input_are_refused(function):
    with pytest.raises(TypeError, match=r"the loss .*names none of .*y_true, targets.*\n.*lambda y_true, y_pred"):
        elegy.Model(mlp(), loss=function)
    with pytest.raises(TypeError, match="the metric .*names none of"):
        elegy.Model(mlp(), metrics=[mse, function])


def test_what_modules_declare():
    x, y = data()

    class Net(elegy.Module):
        def call(self, x):
            y = elegy.nn.Linear(1)(x)
            elegy.add_loss("activity", 0.5 * jnp.mean(y**2))
            elegy.add_metric("size", jnp.mean(jnp.abs(y)))
            elegy.add_metric("batch", x.shape[0])
            return y

    net = Net().init(x)
    y_pred = net(x)
    logs = make_model(net).evaluate(x, y)
    np.testing.assert_allclose(logs["activity_loss"], 0.5 * jnp.mean(y_pred**2), rtol=1e-5)
    np.testing.assert_allclose(logs["net/size"], jnp.mean(jnp.abs(y_pred)), rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], logs["mean_squared_error_loss"] + logs["activity_loss"], rtol=1e-5)

    # Each epoch, not only the one that is traced; and the declared loss is minimised.
    model = make_model(net, loss=None)
    history = model.fit(x, batch_size=8, epochs=3, verbose=0).history
    assert history["loss"] == history["activity_loss"]
    assert history["loss"][2] < history["loss"][1] < history["loss"][0]
    np.testing.assert_allclose(history["net/batch"], [(8 * 8 + 8 * 8 + 4 * 4) / 20] * 3)


def test_losses_get_what_they_name():
    x, _ = data()

    def autoencoder(x, y_pred):
        return jnp.mean((x - y_pred) ** 2)

    module = elegy.nn.Linear(3).init(x)
    logs = make_model(module, loss=autoencoder).evaluate(x)
    assert set(logs) == {"loss", "autoencoder_loss"}
    np.testing.assert_allclose(logs["loss"], np.mean((x - module(x)) ** 2), rtol=1e-5)


def test_sample_weights():
    x, y = data(20)
    weight = np.linspace(0, 1, 20, dtype=np.float32)
    module = mlp().init(x)
    squares = np.square(np.asarray(module(x)) - y)[:, 0]

    def plain(y_true, y_pred):
        return (y_true - y_pred) ** 2

    def weighted(y_true, y_pred, sample_weight):
        return jnp.sum((y_true - y_pred)[:, 0] ** 2 * sample_weight) / sample_weight.shape[0]

    losses = [elegy.losses.MeanSquaredError(), plain, weighted]
    logs = make_model(module, loss=losses).evaluate(x, y, sample_weight=weight, batch_size=8)
    for name in ("mean_squared_error_loss", "plain_loss", "weighted_loss"):
        np.testing.assert_allclose(logs[name], np.mean(weight * squares), rtol=1e-5)
    # A weight for each value.
    both = np.concatenate([y, 2 * y], axis=1)
    weights = np.stack([weight, 1 - weight], axis=1)
    module = elegy.nn.Linear(2).init(x)
    logs = make_model(module, loss=plain).evaluate(x, both, sample_weight=weights, batch_size=8)
    np.testing.assert_allclose(logs["loss"], np.mean(weights * (module(x) - both) ** 2), rtol=1e-5)
    with pytest.raises(ValueError, match=r"loss \(mse\): there is a sample_weight"):
        make_model(module, loss=mse).evaluate(x, y, sample_weight=weight)


def classes(samples=30):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 3)).astype(np.float32)
    return x, np.abs(x).argmax(axis=1).astype(np.int32)


LABELS = {
    "labels": lambda y: y,
    "a column": lambda y: y[:, None],
    "small integers": lambda y: y.astype(np.uint8),
    "one-hot rows": lambda y: np.eye(3, dtype=np.float32)[y],
}


@pytest.mark.parametrize("weights", [{0: 2.0, 2: 0.5}, np.asarray([2.0, 1.0, 0.5])], ids=["dict", "array"])
def test_class_weights_are_weights_of_samples(weights):
    """Those of scikit-learn, for targets in any form; with weights of samples they are multiplied."""
    x, y = classes()
    of_class = sklearn.utils.class_weight.compute_sample_weight({0: 2.0, 1: 1.0, 2: 0.5}, y).astype(np.float32)
    given = np.linspace(0, 1, 30, dtype=np.float32) if isinstance(weights, dict) else None
    losses = {True: elegy.losses.CategoricalCrossentropy, False: elegy.losses.SparseCategoricalCrossentropy}
    plain = elegy.Model(elegy.nn.Linear(3), loss=losses[False](from_logits=True))
    history = plain.fit(x, y, sample_weight=of_class if given is None else of_class * given, verbose=0).history
    for form, as_form in LABELS.items():
        model = elegy.Model(elegy.nn.Linear(3), loss=losses[form == "one-hot rows"](from_logits=True))
        found = model.fit(x, as_form(y), class_weight=weights, sample_weight=given, verbose=0).history
        np.testing.assert_allclose(found["loss"], history["loss"], rtol=1e-6)
        assert_close(model.module.get_parameters(), plain.module.get_parameters())


def test_class_weights_of_labels_at_each_position():
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    y = np.abs(x).argmax(axis=-1)
    model = elegy.Model(elegy.nn.Linear(3), loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True))
    values = np.asarray(
        elegy.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(y, model.predict(x))
    )
    of_samples = np.arange(6, dtype=np.float32)
    logs = model.train_on_batch(x, y, sample_weight=of_samples, class_weight={1: 3.0})
    weight = np.where(y == 1, 3.0, 1.0) * of_samples[:, None]
    np.testing.assert_allclose(logs["loss"], np.mean(values * weight), rtol=1e-5)


def test_validation_data_have_no_class_weights():
    x, y = classes()
    model = elegy.Model(elegy.nn.Linear(3), loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x, y, class_weight={0: 0, 1: 0, 2: 0}, validation_split=0.2, epochs=2, verbose=0).history
    assert history["loss"] == [0.0, 0.0] and min(history["val_loss"]) > 0


@pytest.mark.parametrize(
    ("weights", "y", "error", "match"),
    [
        ({"cat": 1.0}, np.zeros(4, int), ValueError, "labels, which are integers from 0 on"),
        ({-1: 1.0}, np.zeros(4, int), ValueError, "labels, which are integers from 0 on"),
        ({0: -1.0}, np.zeros(4, int), ValueError, "not negative"),
        ({0: np.nan}, np.zeros(4, int), ValueError, "not negative"),
        ([1.0, "two"], np.zeros(4, int), ValueError, "the weight '1.0'"),
        (
            "balanced",
            np.zeros(4, int),
            TypeError,
            "a dict from labels to weights, or a list of weights, got 'balanced'",
        ),
        ({}, np.zeros(4, int), TypeError, "got {}"),
        ({0: 1.0}, {"a": np.zeros(4, int)}, TypeError, "one array of targets, and y is a dict.*\n.*sample_weight"),
        ({0: 1.0}, np.full([4], 0.5, np.float32), ValueError, "no labels of classes.*\n.*sample_weight"),
        ({3: 1.0}, np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], ValueError, "a weight for class 3, and y has 3 columns"),
        ({0: 1.0}, np.ones([4, 3], np.float32), ValueError, "no probabilities of classes"),
        ({0: 1.0}, np.full([4, 2], [-1, 2], np.float32), ValueError, "no probabilities of classes"),
    ],
    ids=range(12),
)
def test_class_weights_that_fit_no_targets_are_refused(weights, y, error, match):
    x = np.ones([4, 3], np.float32)
    model = elegy.Model(elegy.nn.Linear(3), loss=lambda y_true, y_pred: jnp.mean(y_pred))
    with pytest.raises(error, match=match):
        model.fit(x, y, class_weight=weights, verbose=0)
    assert not model.module.initialized


@pytest.mark.parametrize(("validation_freq", "validated"), [(2, [1, 3]), ([1, 4], [0, 3]), (np.int64(5), [])])
def test_some_epochs_are_validated(validation_freq, validated):
    x, y = data()
    wanted = make_model().fit(x, y, validation_data=(x, y), epochs=4, verbose=0).history
    history = (
        make_model().fit(x, y, validation_data=(x, y), epochs=4, validation_freq=validation_freq, verbose=0).history
    )
    assert history["loss"] == wanted["loss"]
    expected = [value if epoch in validated else math.nan for epoch, value in enumerate(wanted["val_loss"])]
    np.testing.assert_array_equal(history.get("val_loss", [math.nan] * 4), expected)


def test_a_value_that_will_never_come_is_not_watched():
    x, y = data()
    stopping = elegy.callbacks.EarlyStopping(monitor="val_loss")
    with pytest.raises(ValueError, match="EarlyStopping watches 'val_loss', and validation_freq=5 leaves out each of"):
        make_model().fit(x, y, validation_data=(x, y), epochs=4, validation_freq=5, callbacks=[stopping], verbose=0)


def test_callbacks_wait_for_the_next_validation():
    """Of epochs with validation alone they count how many were not better."""
    x, y = data()
    stopping = elegy.callbacks.EarlyStopping(min_delta=100.0, patience=2)
    plateau = elegy.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=100.0)
    history = make_model(optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)).fit(
        x, y, validation_data=(x, y), epochs=20, validation_freq=2, callbacks=[stopping, plateau], verbose=0
    )
    assert stopping.best_epoch == 1 and history.epoch[-1] == stopping.stopped_epoch == 5
    np.testing.assert_allclose(history.history["learning_rate"], [0.1, 0.1, 0.1, 0.1, 0.05, 0.05], rtol=1e-6)
    with pytest.raises(ValueError, match="no 'val_acc' among the logs of this epoch"):
        make_model().fit(
            *(x, y), 32, 3, 0, [elegy.callbacks.EarlyStopping("val_acc")], validation_split=0.2, validation_freq=2
        )


@pytest.mark.parametrize("validation_freq", [0, -1, 1.5, "2", [0], [1, 2.5], True])
def test_other_frequencies_of_validation_are_refused(validation_freq):
    x, y = data()
    with pytest.raises(ValueError, match="validation_freq must be a positive integer"):
        make_model().fit(x, y, validation_split=0.2, validation_freq=validation_freq, verbose=0)


def test_learning_curves():
    x, y = data()
    history = make_model(metrics=mse).fit(x, y, validation_split=0.2, validation_freq=2, epochs=4, verbose=0)
    figure = history.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "mse"]
    training, validation = figure.axes[0].lines
    np.testing.assert_allclose(training.get_xydata(), np.stack([[1, 2, 3, 4], history.history["loss"]], axis=1))
    np.testing.assert_allclose(validation.get_xydata(), [[n, history.history["val_loss"][n - 1]] for n in (2, 4)])
    assert [axes.get_ylabel() for axes in history.plot(["mse"]).axes] == ["mse"]
    with pytest.raises(ValueError, match=r"there is no accuracy; there is \['loss', "):
        history.plot("accuracy")
    with pytest.raises(ValueError, match="there is no epoch"):
        elegy.model.History().plot()


@pytest.mark.parametrize("form", LABELS)
def test_validation_data_split_off_sorted_classes(form):
    x, y = classes()
    model = elegy.Model(elegy.nn.Linear(3), loss=lambda y_pred, y_true: jnp.mean(y_pred))
    with pytest.warns(elegy.errors.SortedDataWarning, match="these are of 1 of the 3 classes") as caught:
        model.fit(x, LABELS[form](np.sort(y)), validation_split=0.1, verbose=0)
    assert caught[0].filename == __file__
    model.fit(x, LABELS[form](y), validation_split=0.1, verbose=0)


@pytest.mark.parametrize(
    "y", [np.ones(20, int), np.linspace(0, 1, 20, dtype=np.float32), np.arange(40).reshape(20, 2)], ids=range(3)
)
def test_other_targets_may_be_sorted(y):
    elegy.Model(elegy.nn.Linear(1), loss=lambda y_pred, y_true: jnp.mean(y_pred)).fit(
        np.ones([20, 2], np.float32), y, validation_split=0.2, verbose=0
    )


def test_single_batches_make_the_steps_of_fit():
    x, y = data(8)
    model, other = make_model(metrics=mse), make_model(metrics=mse)
    history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    steps = [other.train_on_batch(x, y) for _ in range(3)]
    assert {name: [logs[name] for logs in steps] for name in steps[0]} == history
    assert_equal_parameters(model.module, other.module)
    assert other.test_on_batch(x, y) == other.evaluate(x, y)
    np.testing.assert_array_equal(other.predict_on_batch(x), other.predict(x))
    with pytest.raises(ValueError, match="compares predictions with targets"):
        other.train_on_batch(x)


def test_a_function_as_a_metric_is_a_weighted_mean_over_all_samples():
    """As scikit-learn has it, whatever the batches, of which the last is short and another has no weight at all."""
    x, y = data(20)
    weight = np.linspace(0, 1, 20, dtype=np.float32) * (np.arange(20) >= 8)
    module = mlp().init(x)

    def square(y_true, y_pred):
        return (y_true - y_pred) ** 2

    def both(y_true, y_pred):
        return {"square": square(y_true, y_pred), "absolute": jnp.abs(y_true - y_pred)}

    wanted = sklearn.metrics.mean_squared_error(y, module(x), sample_weight=weight)
    absolute = sklearn.metrics.mean_absolute_error(y, module(x), sample_weight=weight)
    for batch_size in (8, 20):
        model = elegy.Model(module, loss=square, metrics=[square, both])
        logs = model.evaluate(x, y, sample_weight=weight, batch_size=batch_size)
        np.testing.assert_allclose(logs["square"], wanted, rtol=1e-5)
        np.testing.assert_allclose(logs["both/square"], wanted, rtol=1e-5)
        np.testing.assert_allclose(logs["both/absolute"], absolute, rtol=1e-5)
        np.testing.assert_allclose(logs["loss"], wanted * weight.mean(), rtol=1e-5)
    assert model.evaluate(x, y, sample_weight=0 * weight)["square"] == 0
    unweighted = sklearn.metrics.mean_squared_error(y, module(x))
    np.testing.assert_allclose(model.evaluate(x, y, batch_size=8)["square"], unweighted, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Inputs and outputs
# ---------------------------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_in_tuples_and_dicts():
    x, y = data(10)

    class Net(elegy.Module):
        def call(self, a, b, training):
            assert isinstance(training, bool)
            return {"sum": elegy.nn.Linear(1)(a + b), "parts": (a, b)}

    loss = elegy.losses.MeanSquaredError(on="sum")
    for inputs in ((x, x), {"b": x, "a": x}):
        model = make_model(Net(), loss=loss)
        model.fit(inputs, {"sum": y}, batch_size=4, verbose=0)
        predicted = model.predict(inputs, batch_size=4)
        assert predicted["sum"].shape == (10, 1)
        np.testing.assert_array_equal(predicted["parts"][1], x)


def test_arrays_of_jax_and_of_double_precision():
    x, y = data()
    histories = [
        make_model().fit(a, b, verbose=0).history for a, b in [(x, y), (jnp.asarray(x), y), (x.astype(np.float64), y)]
    ]
    assert histories[0] == histories[1] == histories[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": np.zeros([19, 1], np.float32)}, ValueError, "differ in length: x has 20, y has 19"),
        ({"x": [1.0, 2.0]}, ValueError, "differ in length: x has 2, y has 20"),
        ({"x": {"a": 1.0}}, ValueError, r"x\['a'\] is a scalar"),
        ({"x": np.float32(1)}, ValueError, "x is a scalar"),
        ({"x": np.array(["a"] * 20)}, TypeError, "x has dtype <U1"),
        ({"x": ()}, ValueError, "x holds no array"),
        ({"x": np.zeros([0, 3]), "y": np.zeros([0, 1])}, ValueError, "no samples"),
        ({"verbose": 3}, ValueError, "verbose must be 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a positive integer"),
        ({"validation_split": 1.0}, ValueError, "must be between 0 and 1"),
        ({"validation_split": 0.99}, ValueError, "leaves none to train on"),
        ({"validation_split": 1e-20}, ValueError, "leaves none to validate on.*\n.*a larger fraction"),
        ({"x": np.ma.masked_array(np.ones([20, 3]), mask=np.ones([20, 3]))}, TypeError, "x is a masked array"),
        ({"y": {"a": np.ma.masked_array(np.ones(20), mask=True)}}, TypeError, r"y\['a'\] is a masked array"),
        ({"validation_split": 0.1, "validation_data": (1, 2)}, ValueError, "both given"),
        ({"validation_data": 1}, ValueError, r"must be a tuple \(x, y\)"),
        ({"callbacks": [Callback]}, TypeError, r"callbacks must be instances.*\n*.*Construct it"),
        ({"sample_weight": np.ones(3)}, ValueError, "sample_weight has 3"),
    ],
)
def test_bad_arguments_of_fit(arguments, error, message, unchecked):
    x, y = data(20)
    module = mlp()
    with pytest.raises(error, match=message):
        make_model(module).fit(**{"x": x, "y": y, "verbose": 0, **arguments})
    assert not module.initialized


def test_bad_arguments_of_a_model(unchecked):
    with pytest.raises(TypeError, match="Give it a module, a function, or a callable pytree"):
        elegy.Model(3)
    with pytest.raises(TypeError, match="a loss must be a function.*\n.*Construct it: MeanSquaredError"):
        make_model(loss=elegy.losses.MeanSquaredError)
    with pytest.raises(TypeError, match="a metric must be a function or a module, got 'accuracy'"):
        make_model(metrics=["accuracy"])
    with pytest.raises(TypeError, match="takes an Optax transformation"):
        make_model(optimizer=0.1)
    with pytest.raises(ValueError, match="seed must be"):
        make_model(seed=-1)


@pytest.mark.parametrize("name", ["module", "loss", "metrics", "optimizer", "seed", "stop_trainig", "history"])
def test_what_a_model_is_constructed_with_is_fixed(name):
    model = make_model()
    with pytest.raises(AttributeError, match=f"{name} of a Model cannot be assigned.*run_eagerly.*\n.*Construct"):
        setattr(model, name, None)
    model.run_eagerly, model.stop_training = True, True

    class Own(elegy.Model):
        def __init__(self):
            super().__init__(mlp())
            self.extra = 1

    own = Own()
    own.extra = 2
    if name != "stop_trainig" and name != "history":
        with pytest.raises(AttributeError, match=f"{name} of a Own cannot be assigned"):
            setattr(own, name, None)


def test_nothing_to_minimise():
    x, y = data()
    model = make_model(loss=None)
    with pytest.raises(ValueError, match="nothing to minimise"):
        model.fit(x, y, verbose=0)
    assert model.evaluate(x, y) == {}


def test_nothing_to_train():
    x, y = data()
    module = mlp().init(x)
    module.trainable = False
    with pytest.raises(elegy.errors.NothingToDifferentiateError):
        make_model(module).fit(x, y, verbose=0)


def test_logs_are_scalars():
    x, y = data()
    model = make_model(metrics=lambda y_pred: {"a": y_pred})
    assert set(model.evaluate(x, y)) == {"loss", "mean_squared_error_loss", "function/a"}  # means over the batch

    class Confusion(elegy.metrics.Metric):
        def call(self, y_true):
            return self.add_parameter("matrix", [2, 2], trainable=False)

    with pytest.raises(ValueError, match=r"confusion: what is logged must be a scalar, got shape \(2, 2\)"):
        make_model(metrics=Confusion()).evaluate(x, y)


def test_outputs_that_are_not_of_samples():
    x, _ = data()
    model = make_model(elegy.to_module(lambda x: {"mean": x.mean()})())
    with pytest.raises(ValueError, match=r"output\['mean'\] of the module has shape \(\)"):
        model.predict(x)


# ---------------------------------------------------------------------------------------------------------------------
# Validation, epochs, callbacks
# ---------------------------------------------------------------------------------------------------------------------


def test_validation_data_is_evaluated_after_each_epoch():
    x, y = data(20)
    after = []

    class Evaluate(Callback):
        def on_epoch_end(self, epoch, logs):
            after.append(self.model.evaluate(x[15:], y[15:], batch_size=4)["loss"])

    split = make_model(metrics=mse)
    given = make_model(metrics=mse)
    a = split.fit(x, y, batch_size=4, epochs=3, validation_split=0.25, verbose=0, callbacks=[Evaluate()]).history
    b = given.fit(x[:15], y[:15], batch_size=4, epochs=3, validation_data=(x[15:], y[15:]), verbose=0).history
    assert a == b
    assert a["val_loss"] == after
    assert set(a) == {prefix + name for prefix in ("", "val_") for name in ("loss", "mean_squared_error_loss", "mse")}


def test_names_that_begin_as_those_of_validation_data_do():
    x, y = data()

    def val_loss(y_true, y_pred):
        return jnp.float32(7)

    logs = make_model(metrics=val_loss).fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    assert logs["val_loss"] == [7, 7] == logs["val_val_loss"]
    assert logs["val_loss_1"] == logs["val_mean_squared_error_loss"]


def test_initial_epoch_and_the_numbers_of_epochs():
    x, y = data()
    model = make_model()
    history = model.fit(x, y, epochs=5, initial_epoch=3, verbose=0)
    assert history.epoch == [3, 4]
    assert len(history.history["loss"]) == 2
    assert model.history is history
    assert model.fit(x, y, epochs=2, initial_epoch=2, verbose=0).epoch == []


def test_the_order_of_callbacks():
    x, y = data(10)
    calls = []

    class Note(Callback):
        def on_train_begin(self):
            calls.append(("train", dict(self.params)))

        def on_epoch_begin(self, epoch):
            calls.append(("epoch", epoch))

        def on_train_batch_begin(self, batch):
            calls.append(("batch", batch))

        def on_train_batch_end(self, batch, logs):
            calls.append(("batch end", batch, len(logs), logs["loss"]))

        def on_epoch_end(self, epoch, logs):
            calls.append(("epoch end", epoch, logs["loss"]))

        def on_train_end(self):
            calls.append("train end")

    history = make_model().fit(x, y, batch_size=4, callbacks=[Note()], verbose=0).history
    assert calls[0] == ("train", {"epochs": 1, "initial_epoch": 0, "batch_size": 4, "samples": 10, "steps": 3})
    assert [call[:2] for call in calls[1:-1]] == [
        ("epoch", 0),
        *((kind, batch) for batch in range(3) for kind in ("batch", "batch end")),
        ("epoch end", 0),
    ]
    assert calls[-1] == "train end"
    assert calls[-2][2] == history["loss"][0] == calls[-3][3]


def test_batch_callbacks_change_nothing_by_looking():
    x, y = data()
    module = mlp()

    class Look(Callback):
        weights = []

        def on_train_batch_end(self, batch, logs):
            self.weights.append(np.asarray(module.layers[0].w))

    watched = make_model(module).fit(x, y, batch_size=4, epochs=2, callbacks=[Look()], verbose=0).history
    assert len({weight.tobytes() for weight in Look.weights}) == 10
    assert watched == make_model().fit(x, y, batch_size=4, epochs=2, verbose=0).history


def test_logs_of_a_batch_stay_what_they_were():
    x, y = data()
    kept, seen = [], []

    class Keep(Callback):
        def on_train_batch_end(self, batch, logs):
            kept.append(logs)

    class Look(Callback):
        def on_train_batch_end(self, batch, logs):
            seen.append(dict(logs))

    make_model().fit(x, y, batch_size=4, callbacks=[Keep()], verbose=0)
    make_model().fit(x, y, batch_size=4, callbacks=[Look()], verbose=0)
    assert [dict(logs) for logs in kept] == seen
    assert len({logs["loss"] for logs in kept}) == 5


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end"])
def test_a_callback_that_trains_too(hook):
    x, y = data()

    class Stop(Callback):
        def on_epoch_end(self, epoch, logs):
            self.model.stop_training = True

    class Train(Callback):
        inner = []

    def train(self, number, logs):
        if number == 1:
            history = self.model.fit(x, y, epochs=3, callbacks=[Stop()], verbose=0)
            self.inner.append((history, self.model.module.get_parameters()))

    setattr(Train, hook, train)
    model = make_model()
    history = model.fit(x, y, batch_size=20, epochs=4, callbacks=[Train()], verbose=0)
    if hook == "on_epoch_end":
        assert [inner.epoch for inner, _ in Train.inner] == [[0]]
    assert history.epoch == [0, 1, 2, 3]  # what stops the inner training does not stop the outer one
    assert model.history is history
    # What a callback does at the last batch stays.
    history = model.fit(x, y, batch_size=10, callbacks=[Train()], verbose=0)
    if hook == "on_train_batch_end":
        (_, trained), found = Train.inner[-1], model.module.get_parameters()
        jax.tree.map(np.testing.assert_array_equal, found, trained)


def test_an_exception_keeps_what_a_callback_has_changed():
    x, y = data()

    class Change(Callback):
        def on_train_batch_begin(self, batch):
            if batch == 1:
                raise KeyboardInterrupt

        def on_train_batch_end(self, batch, logs):
            self.model.module.set_parameters({"b": jnp.full([1], 7.0)})

    module = elegy.nn.Linear(1)
    with pytest.raises(KeyboardInterrupt):
        make_model(module).fit(x, y, batch_size=4, callbacks=[Change()], verbose=0)
    assert module.b == 7


def test_a_model_is_freed_without_the_garbage_collector():
    x, y = data()
    model = make_model(mlp())
    model.fit(x, y, validation_data=(x, y), verbose=0)
    model.predict(x)
    history = model.history
    references = [weakref.ref(part) for part in (model, model.module, *model._programs.values())]
    references.append(weakref.ref(model.module.layers[0].w))
    gc.collect()
    gc.disable()
    try:
        del model
        assert [reference() for reference in references] == [None] * 6
    finally:
        gc.enable()
    assert history is not None and history.history["loss"]


def test_callbacks_may_change_and_freeze_the_module():
    x, y = data()
    module = mlp()

    class Meddle(Callback):
        def on_train_batch_end(self, batch, logs):
            if batch == 0:
                module.layers[0].set_parameters({"b": jnp.full([8], 7.0)})
                module.layers[0].trainable = False

    model = make_model(module)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[Meddle()])
    assert module.layers[0].b.tolist() == [7.0] * 8

    class Thaw(Callback):
        def on_epoch_end(self, epoch, logs):
            module.layers[0].trainable = True

    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[Thaw()])
    assert module.layers[0].b.tolist() != [7.0] * 8


def test_parts_that_are_thawed_after_the_optimiser_has_state():
    x, y = data()
    module = mlp().init(x)
    model = make_model(module, optimizer=optax.adam(0.01))
    module.layers[0].trainable = False
    before = module.layers[0].w
    model.fit(x, y, verbose=0)
    assert np.array_equal(module.layers[0].w, before)
    module.layers[0].trainable = True
    model.fit(x, y, verbose=0)
    assert not np.array_equal(module.layers[0].w, before)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
def test_stop_training(hook):
    x, y = data(12)

    class Stop(Callback):
        pass

    def stop(self, number, logs):
        self.model.stop_training = number == 1

    setattr(Stop, hook, stop)
    model = make_model()
    history = model.fit(x, y, batch_size=4, epochs=5, callbacks=[Stop()], verbose=0)
    assert history.epoch == ([0] if hook == "on_train_batch_end" else [0, 1])
    assert model.steps == (2 if hook == "on_train_batch_end" else 6)


def test_history_of_names_that_come_late():
    history = elegy.model.History()
    history.on_epoch_end(0, {"loss": 1.0})
    history.on_epoch_end(1, {"loss": 2.0, "val_loss": 3.0})
    history.on_epoch_end(2, {"loss": 3.0})
    assert history.history["loss"] == [1, 2, 3]
    assert history.history["val_loss"][1] == 3
    assert [math.isnan(value) for value in history.history["val_loss"]] == [True, False, True]


# ---------------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verbose", [1, 2])
def test_one_line_for_each_epoch_where_there_is_no_terminal(verbose, capsys):
    x, y = data()
    model = make_model(loss=mse)
    history = model.fit(x, y, epochs=2, validation_split=0.2, verbose=verbose).history
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    # The only loss is the total, and is shown once.
    assert {"mse_loss", "val_mse_loss"} < history.keys()
    for name, values in history.items():
        assert (f"  {name}: {values[1]:.4g}" in lines[1]) == (not name.endswith("mse_loss"))
    assert lines[0].split()[2].endswith("s")
    assert "\r" not in "".join(lines)


def test_silence(capsys):
    x, y = data()
    model = make_model()
    model.fit(x, y, verbose=0)
    model.evaluate(x, y)
    model.predict(x)
    assert capsys.readouterr() == ("", "")


def test_one_line_that_is_kept_up_to_date_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    x, y = data(20)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(progress.ProgressBar, "_SECONDS", 0)
    monkeypatch.setenv("COLUMNS", "40")
    make_model().fit(x, y, batch_size=4, epochs=2, verbose=1)
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown[1:3] == ["Epoch 1/2  compiling"] * 2  # the init pass, and the trace of the step
    assert [part[:15] for part in shown[3:8]] == [f"Epoch 1/2  {i}/5 " for i in range(1, 6)]
    assert all(len(part) < 40 for part in shown[1:8])
    assert shown[8].startswith("Epoch 1/2  ") and shown[8].count("\n") == 1 and "loss: " in shown[8]
    assert terminal.getvalue().count("\n") == 2 and terminal.getvalue().count("compiling") == 2


def test_after_an_exception_the_terminal_shows_no_progress(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def fail(y_true, y_pred):
        raise ZeroDivisionError

    x, y = data()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    model = make_model(loss=fail)
    for run in (model.fit, model.evaluate):
        with pytest.raises(ZeroDivisionError):
            run(x, y, verbose=1)
        assert terminal.getvalue().endswith("compiling\r\x1b[K")


@pytest.mark.parametrize("verbose", [1, 2])
def test_evaluate_and_predict_show_a_line(verbose, capsys):
    x, y = data(20)
    model = make_model(loss=mse, metrics=mse)
    logs = model.evaluate(x, y, batch_size=6, verbose=verbose)
    line = capsys.readouterr().out
    assert line.startswith("Evaluate  4/4  ") and line.count("\n") == 1
    assert line.endswith(f"s  loss: {logs['loss']:.4g}  mse: {logs['mse']:.4g}\n")
    predicted = model.predict(x, batch_size=6, verbose=verbose)
    line = capsys.readouterr().out
    assert line.startswith("Predict  4/4  ") and line.endswith("s\n") and line.count("\n") == 1
    np.testing.assert_array_equal(predicted, model.predict(x, batch_size=6))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="verbose must be 0"):
        model.evaluate(x, y, verbose=3)


def test_evaluate_and_predict_keep_one_line_up_to_date_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    x, y = data(20)
    model = make_model(loss=mse)
    model.module.init(x)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(progress.ProgressBar, "_SECONDS", 0)
    model.evaluate(x, y, batch_size=10, verbose=1)
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown[1:6] == ["Evaluate  compiling"] * 2 + ["Evaluate  1/2", "Evaluate  2/2", shown[5]]
    assert shown[5].startswith("Evaluate  2/2  ") and shown[5].endswith("\n")
    model.predict(x, batch_size=10, verbose=1)
    assert "\r\x1b[KPredict  1/2\r\x1b[KPredict  2/2\r\x1b[KPredict  2/2  " in terminal.getvalue()


def test_a_history_is_printed_as_a_table():
    history = elegy.model.History()
    assert str(history) == repr(history) == "History(no epochs)"
    for epoch, loss in enumerate([0.5, 0.25, float("nan")]):
        history.on_epoch_end(epoch, {"loss": loss, "mse_loss": loss, "accuracy": 0.9})
    assert repr(history) == "History(3 epochs: loss 0.5 -> nan, accuracy 0.9 -> 0.9)"
    assert str(history).splitlines() == [
        "epoch  loss  accuracy",
        "    1   0.5       0.9",
        "    2  0.25       0.9",
        "    3   nan       0.9",
    ]
    for epoch in range(3, 100):
        history.on_epoch_end(epoch, {"loss": 1.0, "mse_loss": 0.75, "other_loss": 0.25, "accuracy": 0.9})
    lines = str(history).splitlines()
    assert lines[0].split() == ["epoch", "loss", "mse_loss", "accuracy", "other_loss"]
    numbers = [*range(1, 11), "...", *range(91, 101)]
    assert [line.split()[0] for line in lines[1:]] == list(map(str, numbers))


def test_a_model_is_printed():
    x, y = data()
    model = make_model(loss=mse, metrics=mse)
    model.fit(x, y, batch_size=len(x), epochs=2, verbose=0)
    name = type(model.module).__name__
    assert repr(model) == (
        f"Model(module={name}, losses=[mse_loss], metrics=[mse], optimizer={type(model.optimizer).__name__}, steps=2)"
    )
    text = str(model)
    assert text.startswith(
        "Model after 2 steps\n  losses: mse_loss\n  metrics: mse\n  optimizer: Optimizer. Parameters: "
    )
    assert text.endswith(str(model.module))


def test_the_progress_line_reads_the_device_at_a_limited_rate(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    reads = []
    read = steps.Carry.logs
    monkeypatch.setattr(steps.Carry, "logs", lambda totals: reads.append(totals) or read(totals))
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(progress.ProgressBar, "_SECONDS", 3600)
    x, y = data(20)
    make_model().fit(x, y, batch_size=4, epochs=2, verbose=1)
    assert len(reads) == 2  # once at the end of each epoch


# ---------------------------------------------------------------------------------------------------------------------
# Compilation, state, randomness, threads
# ---------------------------------------------------------------------------------------------------------------------


def test_how_often_things_are_traced():
    x, y = data(20)
    model = make_model(metrics=mse)
    model.fit(x, y, batch_size=10, epochs=3, validation_split=0.5, verbose=0)
    assert (model.traces["train"], model.traces["test"]) == (1, 1)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    assert model.traces["train"] == 3  # batches of 8, and a last one of 4
    model.evaluate(x, y, batch_size=10)
    model.fit(x, y, batch_size=10, verbose=0)
    assert (model.traces["train"], model.traces["test"]) == (3, 1)
    model.predict(x[:10])
    model.fit(x, y, batch_size=10, verbose=0)
    model.predict(x[10:])
    assert model.traces["predict"] == 1

    model.module.layers[0].trainable = False
    model.fit(x, y, batch_size=10, verbose=0)
    assert model.traces["train"] == 4
    model.module.layers[0].trainable = True
    model.fit(x, y, batch_size=10, verbose=0)
    assert model.traces["train"] == 4


def test_targets_of_another_structure():
    x, y = data()

    def each(y_true, y_pred):
        return {name: mse(part, y_pred) for name, part in y_true.items()}

    model = make_model(loss=each, metrics=each)
    assert {"each_loss/a", "each/a"} <= set(model.evaluate(x, {"a": y}))
    assert {"each_loss/a", "each_loss/b", "each/a", "each/b"} <= set(model.evaluate(x, {"a": y, "b": y}))
    assert "each/a" not in model.evaluate(x, {"b": y})
    assert model.traces["test"] == 3
    assert set(model.evaluate(x, {"a": y})) == {"loss", "each_loss/a", "each/a"}
    assert model.traces["test"] == 3


@pytest.mark.parametrize("names", [("a", "b"), ("a", "ab")])
def test_batches_that_log_different_values(names):
    x, y = data(20)

    def by_size(y_pred):
        return dict.fromkeys(names[y_pred.shape[0] == 8], y_pred.mean())

    with pytest.raises(ValueError, match="batches of one epoch log different values: .*function/a.*"):
        make_model(metrics=lambda y_pred: by_size(y_pred)).evaluate(x, y, batch_size=8)


@pytest.mark.parametrize("eagerly", [False, True], ids=["compiled", "eager"])
def test_a_module_that_changes_its_structure(eagerly):
    class Freezing(elegy.Module):
        def call(self, x):
            linear = elegy.nn.Linear(1)
            y = linear(x)
            linear.trainable = False
            return y

    x, y = data(8)
    model = make_model(elegy.nn.Sequential(lambda: [elegy.nn.Linear(2), Freezing()]), run_eagerly=eagerly)
    for run in (lambda: model.predict(x), lambda: model.evaluate(x, y)):
        with pytest.raises(elegy.errors.StructureError, match="sequential/layers/1/linear: "):
            run()
    with pytest.raises(elegy.errors.StructureError, match="sequential/layers/1/linear: "):
        model.fit(x, y, verbose=0)


def test_state_of_the_module_is_kept_in_training_only():
    class Count(elegy.Module):
        def call(self, x):
            count = self.add_parameter("count", [], jnp.int32, trainable=False)
            self.update_parameter("count", count + 1)
            return elegy.nn.Linear(1)(x)

    x, y = data(20)
    module = Count()
    model = make_model(module)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert module.count == 10
    model.evaluate(x, y)
    model.predict(x)
    assert module.count == 10


def test_batch_normalisation_and_dropout():
    class Net(elegy.Module):
        def call(self, x):
            x = elegy.nn.BatchNormalization()(x)
            x = elegy.nn.Dropout(0.5)(x)
            return elegy.nn.Linear(1)(x)

    x, y = data(64)
    x = 3 * x + 1
    module = Net()
    model = make_model(module)
    predicted = model.predict(x)  # initialises in evaluation mode
    np.testing.assert_array_equal(predicted, model.predict(x))
    model.fit(x, y, batch_size=64, epochs=300, shuffle=False, verbose=0)
    np.testing.assert_allclose(module.batch_normalization.mean, x.mean(axis=0) * (1 - 0.99**300), rtol=1e-3)
    with elegy.training_context(False):
        np.testing.assert_allclose(model.predict(x), module(x), rtol=1e-4, atol=1e-5)


def random_net() -> tp.Any:
    return elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), elegy.nn.Dropout(0.3), elegy.nn.Linear(1)])


def test_the_same_seed_gives_the_same_history():
    x, y = data(20)

    def run(seed):
        elegy.next_rng_key()  # the stream of the thread plays no role
        module = random_net()
        return make_model(module, seed=seed).fit(x, y, batch_size=4, epochs=3, verbose=0).history, module

    (a, module_a), (b, module_b), (c, _) = run(1), run(1), run(2)
    assert a == b
    assert_equal_parameters(module_a, module_b)
    assert a["loss"] != c["loss"]


def test_training_in_two_calls_is_training_in_one():
    x, y = data(20)
    once, twice = make_model(random_net()), make_model(random_net())
    whole = once.fit(x, y, batch_size=8, epochs=4, verbose=0).history["loss"]
    parts = twice.fit(x, y, batch_size=8, epochs=2, verbose=0).history["loss"]
    twice.predict(x)
    parts += twice.fit(x, y, batch_size=8, epochs=4, initial_epoch=2, verbose=0).history["loss"]
    assert whole == parts
    assert_equal_parameters(once.module, twice.module)


def test_training_goes_on_in_another_process(tmp_path):
    x, y = data(20)
    path = tmp_path / "training.safetensors"

    def fit(model, epochs, initial_epoch=0):
        return model.fit(
            x,
            y,
            batch_size=8,
            epochs=epochs,
            initial_epoch=initial_epoch,
            validation_split=0.1,
            verbose=0,
        ).history

    def construct():
        return make_model(random_net(), optimizer=optax.adam(0.01), metrics=mse)

    def parts(model):
        return {"module": model.module, "optimizer": model.optimizer}

    once, first, second = construct(), construct(), construct()
    whole = fit(once, 4)
    begun = fit(first, 2)
    elegy.save(path, parts(first))
    second.module.init(x)
    second.optimizer.adapt(second.module)
    for name, saved in elegy.load(path, like=parts(second)).items():
        parts(second)[name].set_parameters(saved.get_parameters())
    rest = fit(second, 4, initial_epoch=2)
    assert {name: begun[name] + rest[name] for name in rest} == whole
    assert_equal_parameters(once.module, second.module)
    # Both go on in the same way, with numbers that have not been drawn before.
    assert fit(once, 2) == fit(second, 2)
    assert once.steps == second.steps == 6 * 3


def test_each_epoch_has_its_own_order_and_every_sample_once():
    x = np.arange(20, dtype=np.float32)[:, None]
    seen = []

    class Net(elegy.Module):
        def call(self, x):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)[:, 0].tolist()), x, ordered=True)
            return elegy.nn.Linear(1)(x)

    model = make_model(Net())
    model.fit(x, x, batch_size=8, epochs=2, verbose=0)
    model.fit(x, x, batch_size=8, verbose=0)
    jax.effects_barrier()
    assert [len(batch) for batch in seen] == [8, 8, 4] * 3
    orders = [sum(seen[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(order) == x[:, 0].tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_initial_parameters_are_those_of_init_with_the_seed():
    x, y = data()
    wanted = mlp().init(x, rng=5)
    for first in ("predict", "evaluate"):
        model = make_model(seed=5)
        model.predict(x) if first == "predict" else model.evaluate(x, y)
        assert_equal_parameters(model.module, wanted)


def test_predict_draws_the_same_numbers_each_time_and_others_in_each_batch():
    x = np.zeros([20, 3], np.float32)
    noise = elegy.to_module(lambda x: x + jax.random.normal(elegy.next_rng_key(), x.shape))
    model = make_model(noise())
    first = model.predict(x, batch_size=10)
    np.testing.assert_array_equal(first, model.predict(x, batch_size=10))
    assert len(np.unique(first)) == 60


@pytest.mark.parametrize("watched", [False, True], ids=["plain", "with a batch callback"])
def test_an_interrupt_leaves_the_last_completed_step(watched):
    x, y = data(40)
    module = mlp().init(x, rng=1)
    reference = mlp().init(x, rng=1)

    model = make_model(module)
    batches = Arrays.batches

    def interrupted(*args, **options):
        for number, batch in enumerate(batches(*args, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    class Watch(Callback):
        def on_train_batch_end(self, batch, logs):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arrays, "batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[Watch()] if watched else [])
    make_model(reference).fit(x[:24], y[:24], batch_size=8, shuffle=False, verbose=0)
    assert_equal_parameters(module, reference)
    assert model.steps == 3
    model.fit(x, y, verbose=0)


def test_a_signal_at_any_time_leaves_a_completed_step():
    x, y = data(4096)
    module = mlp().init(x, rng=1)
    model = make_model(module)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    # A process that a shell started in the background ignores this signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, batch_size=4, shuffle=False, epochs=1000, verbose=0)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, handler)
    epochs, rest = divmod(model.steps, 1024)
    reference = make_model(mlp().init(x, rng=1))
    reference.fit(x, y, batch_size=4, shuffle=False, epochs=epochs, verbose=0)
    if rest:
        reference.fit(x[: 4 * rest], y[: 4 * rest], batch_size=4, shuffle=False, verbose=0)
    assert_equal_parameters(module, reference.module)


@pytest.mark.parametrize("average", [False, True], ids=["plain", "EMA"])
@pytest.mark.parametrize("donate", [False, True], ids=["kept", "donated"])
def test_a_failing_computation(donate, average):
    x, y = data(20)
    failing = threading.Event()

    def check(x):
        if failing.is_set():
            raise FloatingPointError("broken")
        return x

    class Net(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(1)(jax.pure_callback(check, jax.typeof(x), x))

    module = Net()
    model = make_model(module, donate=donate)
    model.fit(x, y, batch_size=4, verbose=0)
    before, steps = parameters_of(module), model.steps
    failing.set()
    with pytest.raises(Exception, match="broken") as raised:
        model.fit(x, y, batch_size=4, callbacks=[elegy.callbacks.EMA()] * average, verbose=0)
    failing.clear()
    if donate:
        assert "donate=False" in raised.value.__notes__[-1]
        return
    for a, b in zip(parameters_of(module), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.steps == steps
    model.fit(x, y, batch_size=4, verbose=0)


def test_arrays_that_were_taken_from_the_module_stay():
    x, y = data(20)
    module = mlp().init(x)
    taken = [module.get_parameters()]

    class Take(Callback):
        def on_epoch_end(self, epoch, logs):
            taken.append(module.get_parameters())

    class TakeEach(Callback):
        def on_train_batch_end(self, batch, logs):
            taken.append(module.get_parameters())

    model = make_model(module)
    model.fit(x, y, batch_size=10, epochs=2, callbacks=[Take()], verbose=0)
    model.fit(x, y, batch_size=10, epochs=2, callbacks=[TakeEach()], verbose=0)
    model.train_on_batch(x, y)
    assert len(taken) == 7
    values = [np.asarray(found["layers"][0]["w"]) for found in taken]
    assert len({value.tobytes() for value in values}) == 7


def test_threads_that_predict_with_one_model():
    x, _ = data(64)
    model = make_model(random_net())
    wanted = make_model(random_net()).predict(x, batch_size=8)
    results: list[tp.Any] = [None] * 4
    start = threading.Barrier(4)

    def run(number):
        start.wait()
        results[number] = [model.predict(x, batch_size=8 + number) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results:
        for predicted in found:
            np.testing.assert_allclose(predicted, wanted, rtol=1e-5, atol=1e-6)


def test_predicting_in_one_thread_while_another_trains():
    x, y = data(64)
    module = random_net()
    model = make_model(module)
    quiet = make_model(random_net())
    model.predict(x)
    stop = threading.Event()
    found = []

    def run():
        while not stop.is_set():
            found.append(model.predict(x))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        history = model.fit(x, y, epochs=20, verbose=0).history
    finally:
        stop.set()
        thread.join()
    assert history == quiet.fit(x, y, epochs=20, verbose=0).history
    assert found and all(np.isfinite(predicted).all() for predicted in found)


def test_two_models_train_in_two_threads_as_in_one():
    x, y = data(32)
    wanted = [make_model(random_net(), seed=seed).fit(x, y, epochs=5, verbose=0).history for seed in (1, 2)]
    found: list[tp.Any] = [None, None]

    def run(number):
        found[number] = make_model(random_net(), seed=number + 1).fit(x, y, epochs=5, verbose=0).history

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_the_optimiser_goes_on_where_it_was():
    x, y = data()
    module = mlp().init(x)
    optimizer = elegy.Optimizer(optax.adam(0.01))
    model = make_model(module, optimizer=optimizer)
    assert model.optimizer is optimizer
    model.fit(x, y, batch_size=4, verbose=0)
    assert int(optimizer.state[0].count) == 5

    # The same optimiser in a loop of one's own.
    _, gradients = elegy.value_and_grad(lambda: mse(y, module(x)), modules=module)()
    optimizer.update(module, gradients)
    assert int(optimizer.state[0].count) == 6
    model.fit(x, y, batch_size=4, verbose=0)
    assert int(optimizer.state[0].count) == 11


def test_a_schedule_that_asks_for_the_loss():
    x, y = data()
    optimizer = optax.chain(optax.sgd(1e-8), optax.contrib.reduce_on_plateau(patience=1, rtol=0.5))
    model = make_model(optimizer=optimizer)
    model.fit(x, y, batch_size=20, epochs=10, verbose=0)
    assert model.optimizer.state[1].scale < 1


def test_losses_with_arrays_and_state():
    class Weighted(elegy.losses.Loss):
        def __init__(self, factors):
            super().__init__()
            self.factors = jnp.asarray(factors)

        def call(self, y_true, y_pred):
            calls = self.add_parameter("calls", [], trainable=False)
            self.update_parameter("calls", calls + 1)
            return (self.factors[None] * (y_true - y_pred) ** 2).mean(axis=-1)

    x, y = data(20)
    loss = Weighted([2.0])
    module = mlp().init(x)
    model = make_model(module, loss=loss)
    np.testing.assert_allclose(model.evaluate(x, y)["loss"], 2 * np.mean((module(x) - y) ** 2), rtol=1e-5)
    assert loss.calls == 0
    model.fit(x, y, batch_size=4, verbose=0)
    assert loss.calls == 5


def test_losses_with_trainable_parameters_are_refused():
    class Uncertain(elegy.losses.Loss):
        def call(self, y_true, y_pred):
            logvar = self.add_parameter("logvar", [])
            return ((y_true - y_pred) ** 2).mean(axis=-1) * jnp.exp(-logvar) + logvar

    x, y = data(8)
    loss = Uncertain()
    model = make_model(mlp(), loss={"a": [mse, loss]})
    message = r"losses have trainable parameters.* loss\['a'\]\[1\]/logvar.\n.*elegy.add_loss.*loss.trainable = False"
    for _ in range(2):
        with pytest.raises(elegy.errors.ParameterError, match=message):
            model.fit(x, y, verbose=0)
        assert not model.module.initialized
        loss = loss.init(y, y)
    assert model.evaluate(x, y)
    loss.trainable = False
    assert model.fit(x, y, verbose=0)


def test_what_is_learnt_of_a_loss_is_in_the_module():
    class Uncertain(elegy.Module):
        def call(self, x):
            self.add_parameter("logvar", [])
            elegy.add_loss("size", self.logvar)
            return elegy.nn.Linear(1)(x)

    x, y = data(8)
    model = make_model(Uncertain())
    model.fit(x, y, verbose=0)
    assert model.module.logvar < 0


def test_a_loss_that_shares_the_module():
    class Decay(elegy.losses.Loss):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def call(self, x):
            return 0.5 * sum(jnp.sum(w**2) for w in jax.tree.leaves(self.module.get_parameters()))

    x, y = data(8)
    module = elegy.nn.Linear(1).init(x)
    before = module.get_parameters()
    model = make_model(module, loss=Decay(module), optimizer=optax.sgd(0.1))
    model.fit(x, y, batch_size=4, verbose=0)
    for a, b in zip(jax.tree.leaves(module.get_parameters()), jax.tree.leaves(before), strict=True):
        np.testing.assert_allclose(a, 0.9**2 * b, rtol=1e-5)


def test_running_eagerly():
    x, y = data(8)
    concrete = []

    class Net(elegy.Module):
        def call(self, x):
            concrete.append(not isinstance(x, Tracer))
            return elegy.nn.Linear(1)(x)

    model = make_model(Net(), run_eagerly=True)
    eager = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
    assert any(concrete)
    assert model.traces["train"] == 0
    model.run_eagerly = False
    model.fit(x, y, batch_size=4, verbose=0)
    assert model.traces["train"] == 1
    compiled = make_model(Net()).fit(x, y, batch_size=4, shuffle=False, verbose=0).history
    np.testing.assert_allclose(eager["loss"], compiled["loss"], rtol=1e-5)


def test_layers_that_only_some_batches_use():
    class Net(elegy.Module):
        def call(self, x):
            large, small = elegy.nn.Linear(1), elegy.nn.Linear(1)
            return large(x) if x.shape[0] == 8 else small(x)

    x, y = data(20)
    model = make_model(Net())
    model.predict(x[:8])
    assert model.module.linear.initialized and not model.module.linear_1.initialized
    model.fit(x, y, batch_size=4, verbose=0)  # creates the layer of the batches of 4, and state for it
    before = model.module.get_parameters()
    model.fit(x[:16], y[:16], batch_size=8, verbose=0)
    model.fit(x, y, batch_size=4, verbose=0)
    for layer in ("linear", "linear_1"):
        assert not np.array_equal(model.module.get_parameters()[layer]["w"], before[layer]["w"])


def test_shared_layers_stay_shared():
    class Tied(elegy.Module):
        def __init__(self):
            self.first = elegy.nn.Linear(3)
            self.second = self.first

        def call(self, x):
            return self.second(self.first(x))

    x, _ = data()
    module = Tied()
    make_model(module).fit(x, x, epochs=2, verbose=0)
    assert module.first is module.second
    assert module.second.w.shape == (3, 3)


def test_no_tracer_escapes(no_leaks):
    x, y = data(4)
    module = random_net()
    model = make_model(module)
    model.fit(x, y, batch_size=4, verbose=0)
    assert not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(module))


# ---------------------------------------------------------------------------------------------------------------------
# Arguments that do not fit
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fit", "evaluate", "validation"])
def test_a_loss_without_targets_says_so(how):
    x = np.ones([4, 3], np.float32)
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    call = {
        "fit": lambda: model.fit(x, verbose=0),
        "evaluate": lambda: model.evaluate(x),
        "validation": lambda: model.fit(x, x[:, :1], validation_data=(x,), verbose=0),
    }[how]
    with pytest.raises(ValueError, match=r"loss \(MeanSquaredError\) compares predictions with targets"):
        call()
    # A function that can do without is called without.
    model = elegy.Model(elegy.nn.Linear(1), loss=lambda y_pred, y_true=None: jnp.mean(y_pred**2))
    assert model.fit(x, verbose=0).history["loss"]


@contextlib.contextmanager
def jaxtyping_off():
    """The checks of the library itself, without those of the annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 1.5}, ValueError, "epochs must be an integer"),
        ({"epochs": "3"}, ValueError, "epochs must be an integer"),
        ({"initial_epoch": -1}, ValueError, "initial_epoch must be an integer that is not negative"),
        ({"callbacks": elegy.model.Callback()}, TypeError, r"callbacks=\[callback\]"),
    ],
)
def test_other_arguments_of_fit(options, error, message):
    x = np.ones([4, 3], np.float32)
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    with jaxtyping_off(), pytest.raises(error, match=message):
        model.fit(x, x[:, :1], verbose=0, **options)
