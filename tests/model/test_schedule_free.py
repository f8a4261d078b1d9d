"""Schedule-free optimisers, of which a model evaluates other parameters than it trains, against a loop by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.callbacks import EMA, Callback, EarlyStopping
from elegy.errors import ParameterError
from tests.helpers import assert_close, assert_same

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
eval_params = optax.contrib.schedule_free_eval_params


def make_model(transformation=None):
    if transformation is None:
        transformation = optax.chain(optax.clip_by_global_norm(1.0), optax.contrib.schedule_free_sgd(0.1, b1=0.6))
    module = elegy.nn.Linear(1).init(X, rng=1)
    return elegy.Model(module, loss=elegy.losses.MeanSquaredError(), optimizer=transformation)


def outputs(parameters, x=X):
    return x @ np.asarray(parameters["w"]) + np.asarray(parameters["b"])


def loss(parameters):
    return np.mean((outputs(parameters) - Y) ** 2)


def by_hand(transformation, parameters, epochs):
    """The parameters of training and those to evaluate with, after each epoch."""

    @jax.jit
    def step(parameters, state, x, y):
        gradients = jax.grad(lambda p: jnp.mean((x @ p["w"] + p["b"] - y) ** 2))(parameters)
        updates, state = transformation.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    state, found = transformation.init(parameters), []
    for _ in range(epochs):
        for start in (0, 8):
            parameters, state = step(parameters, state, X[start : start + 8], Y[start : start + 8])
        found.append((parameters, eval_params(state[1], parameters)))
    return found


class Seen(Callback):
    """Notes the parameters of training at the end of each epoch, and what the model predicts then."""

    def __init__(self):
        self.parameters = []
        self.outputs = []

    def on_epoch_end(self, epoch, logs):
        self.parameters.append(jax.tree.map(np.asarray, self.model.module.get_parameters()))
        self.outputs.append(self.model.predict(X))


@pytest.mark.usefixtures("default_promotion")
def test_evaluation_has_its_own_parameters_and_training_goes_on_with_the_trained_ones(tmp_path):
    model, seen = make_model(), Seen()
    first = jax.tree.map(np.asarray, model.module.get_parameters())
    np.testing.assert_allclose(model.evaluate(X, Y)["loss"], loss(first), rtol=1e-5)
    expected = by_hand(model.optimizer.transformation, model.module.get_parameters(), 3)

    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": [seen], "validation_data": (X, Y)}
    history = model.fit(X, Y, epochs=2, **options).history["val_loss"]
    history += model.fit(X, Y, epochs=1, **options).history["val_loss"]
    for trained, value, shown, (y, x) in zip(seen.parameters, history, seen.outputs, expected, strict=True):
        assert_close(trained, jax.tree.map(np.asarray, y))
        np.testing.assert_allclose(value, loss(x), rtol=1e-4)
        np.testing.assert_allclose(shown, outputs(x), rtol=1e-4, atol=1e-5)
        assert abs(outputs(x) - outputs(y)).max() > 1e-2
    assert model.traces["train"] == 1

    (y, x) = expected[-1]
    found = model.optimizer.evaluation_parameters(model.module)
    assert_close(found, x)
    np.testing.assert_allclose(model.test_on_batch(X, Y)["loss"], loss(x), rtol=1e-4)
    np.testing.assert_allclose(model.predict_on_batch(X), outputs(x), rtol=1e-4, atol=1e-5)
    functional = model.functional()
    state = functional.read()
    np.testing.assert_allclose(functional.eval_step(state, X, Y)["loss"], loss(x), rtol=1e-4)
    np.testing.assert_allclose(functional.predict(state, X), outputs(x), rtol=1e-4, atol=1e-5)
    assert_close(model.module.get_parameters(), y)

    # What a checkpoint gives back predicts the same; its weights alone are what they are.
    predicted = model.predict(X)
    model.save(tmp_path)
    model.fit(X, Y, epochs=1, **options)
    model.load(tmp_path)
    np.testing.assert_array_equal(model.predict(X), predicted)
    model.load(tmp_path, weights_only=True)
    np.testing.assert_allclose(model.predict(X), outputs(y), rtol=1e-4, atol=1e-5)

    # What is frozen is as it is.
    model.load(tmp_path)
    model.module.trainable = False
    np.testing.assert_allclose(model.predict(X), outputs(y), rtol=1e-4, atol=1e-5)


def test_callbacks_that_give_the_module_other_parameters():
    """An average that stands in the module is evaluated as it is; of the best epoch both kinds are restored."""
    model, seen, average = make_model(), Seen(), EMA(0.8, at_end=True)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "validation_data": (X, Y)}
    values = model.fit(X, Y, epochs=2, callbacks=[average, seen], **options).history["val_loss"]
    averaged = jax.tree.map(np.asarray, model.module.get_parameters())
    assert_same(averaged, jax.tree.map(np.asarray, average.parameters))
    np.testing.assert_allclose(values[-1], loss(averaged), rtol=1e-4)
    np.testing.assert_allclose(model.predict(X), outputs(averaged), rtol=1e-4, atol=1e-5)
    assert abs(seen.outputs[-1] - outputs(seen.parameters[-1])).max() > 1e-2

    class Worse(Callback):
        def on_epoch_end(self, epoch, logs):
            logs["score"] = float(epoch)

    seen, stopping = Seen(), EarlyStopping("score", mode="min", patience=2)
    assert len(model.fit(X, Y, epochs=5, callbacks=[Worse(), seen, stopping], **options).epoch) == 3
    assert_same(jax.tree.map(np.asarray, model.module.get_parameters()), seen.parameters[0])
    np.testing.assert_array_equal(model.predict(X), seen.outputs[0])
    other = EarlyStopping("score", mode="min")
    other.set_state(stopping.get_state())
    assert_same(other.get_state(), stopping.get_state())


def test_the_state_is_found_wherever_it_is():
    module = elegy.nn.Linear(2).init(X, rng=1)
    w, b = module.w, module.b
    inner = optax.contrib.schedule_free_sgd(0.1, b1=0.5)
    mask = {"w": True, "b": False}
    labels = {"w": "other", "b": "free"}
    injected = optax.inject_hyperparams(optax.contrib.schedule_free_sgd)(learning_rate=0.1, b1=0.5)
    cases = [
        (inner, None, "wb"),
        (optax.MultiSteps(inner, 2), None, "wb"),
        (optax.chain(optax.identity(), injected), None, "wb"),
        (optax.masked(inner, mask), None, "w"),
        (optax.multi_transform({"free": inner, "other": optax.sgd(0.1)}, labels), None, "b"),
        (inner, "w", "w"),
        (optax.sgd(0.1), None, ""),
    ]
    for transformation, where, changed in cases:
        optimizer = elegy.Optimizer(transformation, where=where)
        own = module.get_parameters()
        assert_same(optimizer.evaluation_parameters(module), own)
        optimizer.adapt(module)
        zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in optimizer._moving().items()}
        assert set(zeros) == {f"['{name}']" for name in changed}
        optimizer._move(zeros)  # so that the average is the parameters divided by 0.5
        found = optimizer.evaluation_parameters(module)
        assert_same(found, {"w": 2 * w if "w" in changed else w, "b": 2 * b if "b" in changed else b})

    optimizer = elegy.Optimizer(optax.chain(inner, inner))
    optimizer.adapt(module)
    with pytest.raises(ParameterError, match=r"several schedule-free transformations update \['b'\]"):
        optimizer.evaluation_parameters(module)


def test_a_training_step_of_ones_own_updates_what_it_likes():
    class Pair(elegy.Module):
        def __init__(self):
            self.first, self.second = elegy.nn.Linear(3), elegy.nn.Linear(1)

        def call(self, x):
            return self.second(self.first(x))

    class OfAPart(elegy.Model):
        def train_step(self, x, y, sample_weight):
            raise NotImplementedError

    module = Pair().init(X, rng=1)
    model = OfAPart(module, optimizer=optax.contrib.schedule_free_sgd(0.1))
    model.optimizer.adapt(module.first)
    assert not model._has_evaluation_parameters()
    model.optimizer.reset()
    assert not model._has_evaluation_parameters()
    model.optimizer.adapt(module)
    assert model._has_evaluation_parameters()
