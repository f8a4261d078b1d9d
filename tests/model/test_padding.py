"""A short last batch is filled up where that makes no difference, and is a shape of its own elsewhere."""

import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.model import loop, program
from tests.helpers import Norm, assert_close
from tests.model.test_model import data, make_model, mlp


def unpadded(monkeypatch):
    """Each shape of a batch is compiled on its own."""
    monkeypatch.setattr(loop, "filled", lambda program, feed: feed)


def squares(y_true, y_pred):
    return (y_true - y_pred) ** 2


def scalar(y_true, y_pred):
    return jnp.mean((y_true - y_pred) ** 2)


def contrastive(y_pred):
    """Each sample against all others of the batch."""
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(y_pred @ y_pred.T, axis=-1)))


def normalised() -> tp.Any:
    return elegy.nn.Sequential(
        lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(decay_rate=0.5), jnp.tanh, elegy.nn.Linear(1)]
    )


def mixing() -> tp.Any:
    """A normalisation that knows of no padding."""
    return elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), Norm(0.5), elegy.nn.Linear(1)])


class Unmasked(elegy.metrics.Metric):
    """A metric that takes no mask."""

    def call(self, y_true, y_pred):
        total = self.add_parameter("total", [], initializer=jnp.zeros, trainable=False) + jnp.sum(
            (y_true - y_pred) ** 2
        )
        count = self.add_parameter("count", [], initializer=jnp.zeros, trainable=False) + y_true.shape[0]
        self.update_parameter("total", total)
        self.update_parameter("count", count)
        return total / count


class Declaring(elegy.Module):
    def call(self, x):
        y = mlp()(x)
        elegy.add_loss("activity", 0.1 * jnp.mean(y**2))
        return y


MSE = elegy.losses.MeanSquaredError
ONE = {"train": 1, "test": 1, "predict": 1}
# How often steps are traced, by what is trained.
CASES: dict[str, tuple[tp.Any, dict[str, tp.Any], dict[str, int]]] = {
    "losses of Elegy": (mlp, {"loss": MSE(), "metrics": elegy.metrics.MeanSquaredError()}, ONE),
    "values of samples": (mlp, {"loss": squares, "metrics": squares}, ONE),
    "no metrics": (mlp, {"loss": {"a": MSE(), "b": elegy.losses.MeanAbsoluteError()}}, ONE),
    "a regulariser": (mlp, {"loss": [MSE(), lambda parameters: 0.1 * optax.tree.norm(parameters)]}, ONE),
    "batch normalisation": (normalised, {"loss": MSE(), "metrics": elegy.metrics.MeanSquaredError()}, ONE),
    "a sum": (mlp, {"loss": MSE(reduction="sum"), "optimizer": optax.sgd(0.001)}, ONE),
    "a scalar loss": (mlp, {"loss": scalar}, {"train": 2, "test": 2, "predict": 1}),
    "a scalar metric": (mlp, {"loss": MSE(), "metrics": scalar}, {"train": 2, "test": 2, "predict": 1}),
    "a metric without a mask": (mlp, {"loss": MSE(), "metrics": Unmasked()}, {"train": 2, "test": 2, "predict": 1}),
    "a loss across the batch": (mlp, {"loss": contrastive}, {"train": 2, "test": 2, "predict": 1}),
    "a module across the batch": (mixing, {"loss": MSE()}, {"train": 2, "test": 1, "predict": 1}),
    "a declared loss": (Declaring, {"loss": MSE()}, {"train": 2, "test": 2, "predict": 1}),
}


@pytest.mark.parametrize("form", ["arrays", "arrays of JAX", "weighted", "eager", "groups"])
@pytest.mark.parametrize(("make", "options", "traces"), CASES.values(), ids=CASES.keys())
def test_padding_changes_nothing(make, options, traces, form, monkeypatch):
    if form == "eager" and "metrics" not in options:
        pytest.skip("eagerly one loss is as another")
    if form == "arrays of JAX" and options["loss"] is not scalar and make is not normalised:
        pytest.skip("where the arrays are has nothing to do with the loss: one that is filled up, and one that is not")
    x, y = data(22)
    arrays: dict[str, tp.Any] = {"x": x, "y": y}
    if form == "arrays of JAX":
        arrays = jax.tree.map(jnp.asarray, arrays)
    if form == "weighted":
        functions = jax.tree.leaves((options["loss"], options.get("metrics")), is_leaf=callable)
        if any(function in (scalar, contrastive) or isinstance(function, Unmasked) for function in functions):
            pytest.skip("it takes no weights")
        arrays["sample_weight"] = np.linspace(0, 2, 22, dtype=np.float32)
    together = {"steps_per_execution": 2} if form == "groups" else {}

    def run():
        model = make_model(make().init(x, rng=1), run_eagerly=form == "eager", **options)
        fit = {"batch_size": 8, "epochs": 1 if form == "eager" else 2, "verbose": 0, **together}
        history = model.fit(**arrays, **fit).history
        return model, history, model.evaluate(**arrays, batch_size=8), model.predict(arrays["x"], batch_size=8)

    model, *found = run()
    if form != "eager":
        assert model.traces == traces
    unpadded(monkeypatch)
    reference, *wanted = run()
    if form != "eager":
        assert reference.traces == {"train": 2, "test": 2, "predict": 2}
    for a, b in zip(found[:2], wanted[:2], strict=True):
        assert list(a) == list(b)
        for name in b:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-4, atol=1e-6)
    # Running statistics among them.
    assert_close(model.module.get_parameters(), reference.module.get_parameters(), rtol=1e-4, atol=1e-6)


def test_statistics_of_a_filled_batch_are_those_of_its_samples():
    x, y = data(11)
    model = make_model(normalised().init(x, rng=1), optimizer=optax.sgd(0.0))
    mean, variance = np.zeros(4), np.ones(4)
    first = model.module.layers[0]
    for part in (x[:8], x[8:]):
        hidden = np.asarray(part @ first.w + first.b[None])
        mean, variance = 0.5 * mean + 0.5 * hidden.mean(0), 0.5 * variance + 0.5 * hidden.var(0)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert model.traces["train"] == 1
    found = [leaf for leaf in jax.tree.leaves(model.module.get_parameters(trainable=False)) if leaf.shape == (4,)]
    assert any(np.allclose(leaf, mean, atol=1e-6) for leaf in found)
    assert any(np.allclose(leaf, variance, atol=1e-5) for leaf in found)


def test_means_over_samples_by_hand():
    x, y = data(11)
    module = mlp().init(x)
    model = make_model(module, loss=[MSE(), squares], metrics=elegy.metrics.MeanSquaredError())
    wanted = np.mean((np.asarray(module(x)) - y) ** 2, dtype=np.float64)
    logs = model.evaluate(x, y, batch_size=4)
    assert model.traces["test"] == 1
    np.testing.assert_allclose(logs["mean_squared_error"], wanted, rtol=1e-6)
    np.testing.assert_allclose(logs["squares_loss"], wanted, rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], 2 * wanted, rtol=1e-6)
    weight = np.arange(11, dtype=np.float32)
    logs = model.evaluate(x, y, batch_size=4, sample_weight=weight)
    each = (np.asarray(module(x)) - y)[:, 0] ** 2
    np.testing.assert_allclose(logs["mean_squared_error_loss"], np.mean(each * weight), rtol=1e-5)
    np.testing.assert_allclose(logs["mean_squared_error"], np.average(each, weights=weight), rtol=1e-5)


class Two(elegy.Module):
    """Several inputs and outputs, in tuples and dicts."""

    def call(self, a, b):
        return {"sum": elegy.nn.Linear(3)(a) + elegy.nn.Linear(3)(b), "ids": b[:, 0]}


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_structures_and_labels(form, monkeypatch):
    a, _ = data(11)
    b, y = data(11, seed=1)
    labels = (y[:, 0] > 0).astype(np.int32)
    x: tp.Any = (a, b) if form == "tuple" else {"a": a, "b": b}

    def run():
        module = Two()
        module.init(a, b, rng=1)
        model = elegy.Model(
            module,
            loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True, on="sum"),
            metrics=elegy.metrics.SparseCategoricalAccuracy(on="sum"),
            optimizer=optax.sgd(0.1),
        )
        targets = {"sum": labels}
        history = model.fit(x, targets, batch_size=4, epochs=2, verbose=0).history
        return model, [history, model.evaluate(x, targets, batch_size=4), model.predict(x, batch_size=4)]

    model, found = run()
    assert model.traces == ONE
    np.testing.assert_array_equal(found[2]["ids"], b[:, 0])
    unpadded(monkeypatch)
    _, wanted = run()
    assert_close(found, wanted, rtol=1e-5)


def test_outputs_without_an_axis_of_samples_are_not_filled_up():
    x, _ = data(10)
    model = elegy.Model(elegy.to_module(lambda x: (x * 2, x.sum()))())
    with pytest.raises(ValueError, match="Its first axis must be that of the samples"):
        model.predict(x, batch_size=4)


class OwnLoss(elegy.Model):
    def loss_step(self, x, y, sample_weight):
        y_pred = self.pred_step(x)
        values = self.compute_losses(x, y, y_pred, sample_weight)
        return values | {"extra_loss": 0.5 * self.scale * values["mean_squared_error_loss"]}, y_pred

    scale = 1.0


class OwnMean(elegy.Model):
    def loss_step(self, x, y, sample_weight):
        y_pred = self.pred_step(x)
        return jnp.mean((y_pred - y) ** 2), y_pred


class OwnTrain(elegy.Model):
    def train_step(self, x, y, sample_weight):
        (values, _), gradients = self.value_and_grad(self.loss_step)(x, y, sample_weight)
        self.optimizer.update(self.module, gradients)
        return values


class OwnTest(elegy.Model):
    def test_step(self, x, y, sample_weight):
        return {"loss": jnp.mean((self.pred_step(x) - y) ** 2)}


class OwnPrediction(elegy.Model):
    def pred_step(self, x):
        return super().pred_step(x) - 1.0


class CentredPrediction(elegy.Model):
    def pred_step(self, x):
        y = super().pred_step(x)
        return y - jnp.mean(y)


@pytest.mark.parametrize(
    ("cls", "traces"),
    [
        (OwnLoss, (1, 1, 1)),
        (OwnMean, (2, 2, 1)),
        (OwnTrain, (2, 1, 1)),
        (OwnTest, (2, 2, 1)),
        (OwnPrediction, (1, 1, 1)),
        (CentredPrediction, (2, 2, 2)),
    ],
)
def test_steps_of_ones_own(cls, traces, monkeypatch):
    x, y = data(11)

    def run():
        model = cls(mlp().init(x, rng=1), loss=MSE(), optimizer=optax.sgd(0.05))
        history = model.fit(x, y, batch_size=4, epochs=2, verbose=0).history
        return model, [history, model.evaluate(x, y, batch_size=4), model.predict(x, batch_size=4)]

    model, found = run()
    assert tuple(model.traces.values()) == traces
    unpadded(monkeypatch)
    _, wanted = run()
    assert_close(found, wanted, rtol=1e-5)


def test_data_of_other_sizes_are_filled_up_to_one_size():
    x, y = data(23)
    model = make_model(mlp().init(x))
    for size in (23, 22, 17, 9):
        model.fit(x[:size], y[:size], batch_size=8, verbose=0)
        model.evaluate(x[:size], y[:size], batch_size=8)
        assert model.predict(x[:size], batch_size=8).shape == (size, 1)
    model.fit(x[:16], y[:16], batch_size=8, verbose=0)  # nothing to fill up, and compiled as such
    assert model.traces == {"train": 2, "test": 1, "predict": 1}


def test_values_that_are_not_finite_stay_with_their_samples():
    x, y = data(11)
    module = mlp().init(x)
    predicted = make_model(module).predict(x, batch_size=4)
    x[10] = np.nan
    found = make_model(module).predict(x, batch_size=4)
    np.testing.assert_array_equal(found[:10], predicted[:10])
    assert np.isnan(found[10]).all()
    logs = make_model(module).evaluate(x[:10], y[:10], batch_size=4)
    assert np.isfinite(logs["loss"])


class Counts(elegy.Module):
    def call(self, x):
        rows = self.add_parameter("rows", [], initializer=jnp.zeros, trainable=False)
        self.update_parameter("rows", rows + x.shape[0])
        return elegy.nn.Linear(1)(x)


class Declares(elegy.Module):
    def call(self, x):
        elegy.add_metric("rows", jnp.asarray(x.shape[0], jnp.float32))
        return elegy.nn.Linear(1)(x)


@pytest.mark.parametrize("what", ["a loss", "state", "a metric"])
def test_what_computes_with_the_size_of_a_batch_is_not_padded(what):
    x = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    loss = (lambda y_true, y_pred: (y_true - y_pred) ** 2 / len(y_true)) if what == "a loss" else lambda y_pred: y_pred
    module = {"a loss": lambda: elegy.nn.Linear(1), "state": Counts, "a metric": Declares}[what]()
    model = elegy.Model(module, loss=loss)
    if what == "state":
        model.fit(x, y, batch_size=8, verbose=0)
        assert module.rows == 22
    else:
        logs = model.evaluate(x, y, batch_size=8)
        whole = [model.evaluate(x[at : at + 8], y[at : at + 8], batch_size=8) for at in (0, 8, 16)]
        for name in logs:
            mean = np.average([part[name] for part in whole], weights=[8, 8, 6])
            np.testing.assert_allclose(logs[name], mean, rtol=1e-5)
    assert max(model.traces.values()) == 2


def test_a_step_is_analysed_once(monkeypatch):
    analyses = []
    analysis = program.leaks_of
    counted = lambda *given, **options: analyses.append(None) or analysis(*given, **options)  # noqa: E731
    monkeypatch.setattr(program, "leaks_of", counted)
    x, y = data(22)
    model = make_model(metrics=elegy.metrics.MeanSquaredError())
    model.fit(x, y, batch_size=8, epochs=3, validation_data=(x[:9], y[:9]), verbose=0)
    model.fit(x, y, batch_size=8, epochs=3, validation_data=(x[:9], y[:9]), verbose=0)
    assert len(analyses) == 2  # of training, and of validation
    assert model.traces == {"train": 1, "test": 1, "predict": 0}
