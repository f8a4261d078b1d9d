"""`Model.lr_find`: the learning-rate range test."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.model.lr_find import suggested
from tests.helpers import Affine, Stateful, assert_same


def data(samples=40):
    x = np.random.default_rng(0).normal(size=(samples, 3)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)


def make_model(module=None, **kwargs):
    kwargs = {"loss": elegy.losses.MeanSquaredError(), "metrics": elegy.metrics.MeanSquaredError()} | kwargs
    return elegy.Model(Stateful() if module is None else module, **kwargs)


def everything(model):
    modules = [*model._modules("train"), model._metrics]
    return [module.get_parameters() for module in modules], model.steps, model._orders, model._initial.snapshot()[2]


def test_rates_and_losses_are_those_of_steps_at_these_rates():
    x, y = data(8)
    model = make_model(Affine(1), optimizer=optax.sgd(123.0))
    found = model.lr_find(x, y, optimizer=optax.sgd, start=1e-4, end=1e-2, steps=5, batch_size=8)
    np.testing.assert_allclose(found.rates, [1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2])

    peer = make_model(Affine(1), optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=1e-4))
    losses = []
    for rate in found.rates:
        if peer.steps:
            peer.optimizer.learning_rate = rate
        losses.append(peer.train_on_batch(x, y)["loss"])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert found.rates.dtype == found.losses.dtype == np.float64


def test_weights_of_classes_are_weights_of_samples():
    x, labels = data(8)[0], np.arange(8) % 2
    loss = elegy.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = make_model(Affine(2), loss=loss, metrics=None)
    options: dict = {"start": 1e-3, "end": 1e-1, "steps": 5}
    found = model.lr_find(x, labels, class_weight={1: 3.0}, **options)
    wanted = model.lr_find(x, labels, sample_weight=np.where(labels == 1, 3.0, 1.0), **options)
    plain = model.lr_find(x, labels, **options)
    np.testing.assert_array_equal(found.losses, wanted.losses)
    assert (found.losses != plain.losses).all()
    with pytest.raises(ValueError, match="class_weight has a weight for class 2, and of loss"):
        model.lr_find(x, labels, class_weight={2: 3.0}, **options)


@pytest.mark.parametrize("trained", [False, True], ids=["uninitialised", "trained"])
def test_nothing_remains(trained):
    x, y = data()
    model, peer = make_model(), make_model()
    if trained:
        assert model.fit(x, y, verbose=0).history == peer.fit(x, y, verbose=0).history
    before, module, optimizer = everything(model), model.module, model.optimizer
    generator, traces = elegy.get_rng().data, model.traces
    found = model.lr_find(x, y, steps=10, batch_size=8)
    assert len(found.losses) == 10
    assert_same(everything(model), before)
    assert model.module is module and model.optimizer is optimizer
    assert model.module.initialized == model.optimizer.initialized == trained
    assert (elegy.get_rng().data == generator).all()
    assert model.traces == traces
    # What comes after is what would have come without.
    assert model.fit(x, y, verbose=0).history == peer.fit(x, y, verbose=0).history
    again = model.lr_find(x, y, steps=10, batch_size=8)
    assert (again.losses != found.losses).any()


def test_nothing_remains_of_one_that_fails():
    x, y = data()

    def loss(y_true, y_pred):
        raise ArithmeticError("no loss")

    model = make_model(loss=loss)
    with pytest.raises(ArithmeticError, match="no loss"):
        model.lr_find(x, y)
    assert not model.module.initialized
    assert everything(model)[1:] == (0, 0, 0)


def test_it_ends_when_the_loss_explodes():
    x, y = data()
    found = make_model(Affine(1)).lr_find(x, y, optimizer=optax.sgd, end=1e6, batch_size=8)
    assert 10 < len(found.rates) == len(found.losses) < 100
    assert found.losses[-1] > 4 * found.losses.min()
    assert found.suggestion is not None and 1e-4 < found.suggestion < 1
    assert found.reason is None


def test_a_suggestion_trains():
    x, y = data()
    found = make_model(Affine(1)).lr_find(x, y, batch_size=8)
    assert found.suggestion is not None
    losses = make_model(Affine(1), optimizer=optax.adam(found.suggestion)).fit(x, y, epochs=20, verbose=0)
    assert losses.history["loss"][-1] < 0.1 * losses.history["loss"][0]


def test_where_there_is_nothing_to_suggest():
    x, y = data()
    found = make_model(Affine(1)).lr_find(x, y, optimizer=lambda rate: optax.set_to_zero(), batch_size=40, steps=20)
    assert found.suggestion is None
    assert found.reason == "the loss falls at none of the rates."
    rates = np.geomspace(1e-3, 1, 10)
    assert suggested(rates[:3], np.array([3.0, 2.0, 1.0]))[0] is None
    losses = np.array([1.0, math.nan, *range(8)])
    assert suggested(rates, losses) == (
        None,
        "the loss was finite at the first 1 rates only, which are too few to see a slope.",
    )


def test_the_steepest_descent():
    logarithms = np.linspace(-6, 0, 61)
    losses = 1 / (1 + np.exp(4 * (logarithms + 2)))  # steepest at 10**-2
    rate, reason = suggested(10**logarithms, losses)
    assert reason is None and rate == pytest.approx(1e-2)
    noise = 0.05 * np.random.default_rng(0).normal(size=61)
    rate, _ = suggested(10**logarithms, losses + noise)
    assert rate is not None and 1e-3 < rate < 1e-1


def test_which_parameters_are_trained_stays():
    x, y = data(8)
    module = elegy.nn.Sequential([Affine(4), Affine(1)])
    model = make_model(module, optimizer=elegy.Optimizer(optax.sgd(0.1), where="layers/1"))
    limited = model.lr_find(x, y, optimizer=optax.sgd, steps=5, start=1e-3, end=1e-1, batch_size=8)
    free = make_model(module).lr_find(x, y, optimizer=optax.sgd, steps=5, start=1e-3, end=1e-1, batch_size=8)
    assert limited.losses[0] == free.losses[0]
    assert limited.losses[-1] > free.losses[-1]


@pytest.mark.parametrize("form", ["arrays of JAX", "batches"])
def test_other_data(form):
    x, y = data()
    expected = make_model(Affine(1)).lr_find(x, y, steps=12, batch_size=10)
    if form == "batches":
        given = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 40, 10)]
        found = make_model(Affine(1)).lr_find(given, steps=12)
        assert found.losses.shape == (12,)
    else:
        found = make_model(Affine(1)).lr_find(jnp.asarray(x), jnp.asarray(y), steps=12, batch_size=10)
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


def test_short_batches_are_left_out():
    x, y = data(20)
    shapes = []

    def loss(y_true, y_pred):
        shapes.append(y_pred.shape)
        return jnp.mean((y_true - y_pred) ** 2)

    assert len(make_model(loss=loss).lr_find(x, y, steps=7, batch_size=8).losses) == 7
    assert set(shapes) == {(8, 1)}


@pytest.mark.parametrize("wrong", [[0], [1], [0, 1]], ids=str)
def test_labels_that_are_no_classes_are_refused(wrong):
    x, _ = data(8)
    labels = np.arange(8, dtype=np.int32) % 3
    batches = [(x, labels + 3 if number in wrong else labels) for number in range(2)]
    model = make_model(Affine(3), loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=None)
    with pytest.raises(ValueError, match="labels from 3 to 5, and y_pred has 3 classes"):
        model.lr_find(batches, steps=5)
    assert not model.module.initialized and model.steps == 0
    assert len(model.lr_find([(x, labels)], steps=5).losses) == 5


def test_a_step_of_ones_own():
    class Own(elegy.Model):
        def train_step(self, x, y, sample_weight):
            values = super().train_step(x, y, sample_weight)
            return {"loss": 2 * values["loss"]}

    x, y = data(8)
    given = {"steps": 5, "batch_size": 8}
    losses = make_model(Affine(1)).lr_find(x, y, **given).losses
    model = Own(Affine(1), loss=elegy.losses.MeanSquaredError())
    np.testing.assert_allclose(model.lr_find(x, y, **given).losses, 2 * losses, rtol=1e-6)

    class Silent(elegy.Model):
        def train_step(self, x, y, sample_weight):
            return {"other": super().train_step(x, y, sample_weight)["loss"]}

    with pytest.raises(ValueError, match=r'train_step returned no "loss" to look at; it returned other'):
        Silent(Affine(1), loss=elegy.losses.MeanSquaredError()).lr_find(x, y)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"start": 1.0, "end": 0.1}, ValueError, "end the larger one"),
        ({"start": 0.0}, ValueError, "must be positive"),
        ({"end": math.inf}, ValueError, "must be positive"),
        ({"steps": 1}, ValueError, "steps must be an integer of at least 2, got 1"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"optimizer": optax.adam(0.1)}, TypeError, "Give optax.adam"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        make_model().lr_find(*data(), **arguments)


def test_a_picture():
    found = make_model(Affine(1)).lr_find(*data(), batch_size=8)
    (axes,) = found.plot().axes
    losses, suggestion = axes.lines
    np.testing.assert_array_equal(losses.get_xdata(), found.rates)
    np.testing.assert_array_equal(losses.get_ydata(), found.losses)
    assert suggestion.get_xdata()[0] == found.suggestion
    assert axes.get_xscale() == "log"
    assert len(axes.get_legend().get_texts()) == 2
