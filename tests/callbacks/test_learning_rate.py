"""`ReduceLROnPlateau`, `LearningRateScheduler`, and the learning rate in the logs."""

import copy

import numpy as np
import optax
import pytest

import elegy
from elegy.callbacks import LambdaCallback, LearningRateScheduler, ReduceLROnPlateau


def series(values):
    return LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=values[epoch]))


def rates(history):
    """By what the learning rate was multiplied from epoch to epoch, the beginning included."""
    return np.asarray(history.history["learning_rate"]) / 0.05


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([1, 1, 1, 1], {"patience": 1}, [1, 1, 0.5, 0.25]),
        ([1, 1, 1, 1, 1], {"patience": 2}, [1, 1, 1, 0.5, 0.5]),
        ([3, 2, 1, 0], {"patience": 0}, [1, 1, 1, 1]),
        ([1, 2, 3, 3, 3], {"patience": 1, "mode": "max"}, [1, 1, 1, 1, 0.5]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1, "cooldown": 2}, [1, 1, 0.5, 0.5, 0.5, 0.25]),
        ([1, 1, 1, 1], {"patience": 1, "min_learning_rate": 0.02}, [1, 1, 0.5, 0.4]),
        ([1, 0.95, 0.9], {"patience": 1, "min_delta": 0.2}, [1, 1, 0.5]),
    ],
)
def test_a_plateau(fitted, values, options, expected):
    plateau = ReduceLROnPlateau("score", factor=0.5, **{"mode": "min", **options})
    history = fitted(series(values), plateau, epochs=len(values), validation=False)
    np.testing.assert_allclose(rates(history), expected, rtol=1e-6)


def test_the_step_is_the_smaller_and_is_not_compiled_anew(fitted):
    moves, before = [], {}

    def note(module):
        moves.append(float(np.abs(np.asarray(module.affine.b) - before.get("b", 0)).max()))
        before["b"] = np.asarray(module.affine.b)

    look = LambdaCallback(on_epoch_end=lambda epoch, logs: note(fitted.model.module))
    fitted(epochs=1, validation=False)
    traces = fitted.model.traces["train"]
    stop = LearningRateScheduler(lambda epoch: 0.05 * (epoch < 2))
    fitted(stop, look, epochs=4, validation=False)
    assert moves[0] > 0 and moves[1] > 0 and moves[2:] == [0, 0]
    assert fitted.model.traces["train"] == traces


def test_a_plateau_begins_anew_unless_it_goes_on(fitted):
    options = {"factor": 0.5, "patience": 2, "mode": "min"}
    plateau = ReduceLROnPlateau("score", **options)
    for _ in range(2):
        fitted(series([0, 1]), plateau, epochs=2)
        assert plateau.wait == 1
    other = ReduceLROnPlateau("score", **options)
    other.set_state(copy.deepcopy(plateau.get_state()))
    for goes_on in (plateau, other):
        fitted.model.optimizer.learning_rate = 0.05
        fitted(series([0, 1, 1]), goes_on, epochs=3, initial_epoch=2)
        np.testing.assert_allclose(fitted.model.optimizer.learning_rate, 0.025, rtol=1e-6)


def test_schedules(fitted):
    history = fitted(LearningRateScheduler(lambda epoch: 0.05 / (1 + epoch)), epochs=3)
    np.testing.assert_allclose(rates(history), [1, 1 / 2, 1 / 3], rtol=1e-6)
    fitted.model.optimizer.learning_rate = 0.05
    history = fitted(LearningRateScheduler(lambda epoch, rate: rate if epoch == 1 else rate / 2), epochs=3)
    np.testing.assert_allclose(rates(history), [1 / 2, 1 / 2, 1 / 4], rtol=1e-6)
    # A schedule of Optax is a function of one number.
    history = fitted(LearningRateScheduler(optax.linear_schedule(0.05, 0.0, 2)), epochs=3)
    np.testing.assert_allclose(rates(history), [1, 1 / 2, 0], rtol=1e-6)


@pytest.mark.parametrize("callback", [LearningRateScheduler(lambda epoch: 0.1), ReduceLROnPlateau("loss")])
def test_an_optimiser_without_a_learning_rate(callback):
    x, begun = np.ones([4, 3], np.float32), []
    model = elegy.Model(elegy.nn.Linear(1), loss=lambda y_pred: y_pred, optimizer=optax.sgd(0.1))
    note = LambdaCallback(on_train_batch_begin=begun.append)
    with pytest.raises(elegy.errors.ParameterError, match=r"optax.inject_hyperparams\(optax.adam\)\(learning_rate"):
        model.fit(x, callbacks=[callback, note], verbose=0)
    assert begun == []
    assert "learning_rate" not in model.fit(x, verbose=0).history


def test_the_first_step_of_a_new_model_has_the_scheduled_rate():
    x = np.ones([4, 3], np.float32)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    model = elegy.Model(elegy.nn.Linear(1), loss=lambda y_pred: y_pred, optimizer=optimizer)
    model.fit(x, callbacks=[LearningRateScheduler(lambda epoch: 0.5)], verbose=0)
    np.testing.assert_allclose(model.module.b, [-0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ReduceLROnPlateau(factor=1.0), ValueError, "factor must be between 0 and 1"),
        (lambda: ReduceLROnPlateau(patience=-1), ValueError, "patience must be an integer of at least 0"),
        (lambda: ReduceLROnPlateau(min_learning_rate=-1.0), ValueError, "min_learning_rate must not be negative"),
        (lambda: ReduceLROnPlateau(min_lr=1e-5), TypeError, "For min_lr= write min_learning_rate="),
        (lambda: LearningRateScheduler(lambda: 0.1), TypeError, "a function of the epoch"),
    ],
)
def test_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
