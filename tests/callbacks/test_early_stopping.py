"""`EarlyStopping` and what it monitors."""

import copy
import math

import jax
import numpy as np
import pytest

import elegy
from elegy.callbacks import Callback, EarlyStopping, LambdaCallback, ReduceLROnPlateau
from tests.helpers import assert_same

NAN = math.nan


class Recorder(Callback):
    """Gives the logs the values of a series, and notes the parameters of each epoch."""

    def __init__(self, values, name="score"):
        self.values = values
        self.name = name
        self.parameters = []

    def on_epoch_end(self, epoch, logs):
        logs[self.name] = self.values[epoch]
        self.parameters.append(jax.tree.map(np.asarray, self.model.module.get_parameters()))


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([3.0, 2.0, 1.0, 0.0], {}, 4, 3),
        ([3.0, 2.0, 2.5, 0.0], {}, 3, 1),
        ([3.0, 2.0, 2.5, 0.0], {"patience": 1}, 3, 1),
        ([3.0, 2.0, 2.5, 0.0], {"patience": 2, "min_delta": 0}, 4, 3),
        ([3.0, 2.0, 2.5, 2.5, 0.0], {"patience": 2}, 4, 1),
        ([3.0, 4.0, 5.0, 4.5], {"mode": "max"}, 4, 2),
        ([3.0, 2.95, 2.0], {"min_delta": 0.1}, 2, 0),
        ([3.0, 2.85, 2.75], {"min_delta": 0.1}, 3, 1),
        ([1.0, 9.0, 8.0, 8.5], {"start_from_epoch": 1}, 4, 2),
        ([3.0, 2.0, 1.0, 1.5], {"baseline": 1.5}, 4, 2),
        ([3.0, 2.0, 2.5, 0.0], {"baseline": 1, "patience": 3}, 3, 1),
        ([NAN, 2.0, 1.0, NAN], {"patience": 2}, 4, 2),
        ([NAN, NAN, NAN], {"patience": 2}, 2, None),
    ],
)
def test_when_it_stops_and_what_it_restores(fitted, values, options, epochs, best):
    recorder, stopping = Recorder(values), EarlyStopping("score", **{"mode": "min", **options})
    history = fitted(recorder, stopping, epochs=len(values), validation=False)
    assert len(history.epoch) == epochs
    assert stopping.best_epoch == best
    assert stopping.best == (None if best is None else values[best])
    wanted = recorder.parameters[-1 if best is None else best]
    assert_same(jax.tree.map(np.asarray, fitted.model.module.get_parameters()), wanted)
    assert not np.array_equal(recorder.parameters[0]["norm"]["mean"], recorder.parameters[1]["norm"]["mean"])
    stopped = stopping.wait >= options.get("patience", 1)
    assert stopping.stopped_epoch == (epochs - 1 if stopped else None)
    assert stopped or epochs == len(values)


def test_without_restoring(fitted):
    recorder, stopping = Recorder([1.0, 2.0]), EarlyStopping("score", mode="min", restore_best=False)
    fitted(recorder, stopping, epochs=2, validation=False)
    assert stopping.best_epoch == 0 and stopping.get_state()["parameters"] is None
    assert_same(jax.tree.map(np.asarray, fitted.model.module.get_parameters()), recorder.parameters[1])


def test_what_it_keeps_is_a_copy(fitted):
    def give_away(epoch, logs):
        for array in jax.tree.leaves(fitted.model.module.get_parameters()):
            array.delete()  # as a compiled step does to which it is donated

    stopping = EarlyStopping("loss")
    fitted(stopping, LambdaCallback(on_epoch_end=give_away), epochs=1, validation=False)
    restored = jax.tree.leaves(fitted.model.module.get_parameters())
    for array in jax.tree.leaves(stopping.get_state()["parameters"]):
        array.delete()
    assert all(np.isfinite(np.asarray(array)).all() for array in restored)
    assert not any(array.is_deleted() for array in jax.tree.leaves(stopping.get_state()["parameters"]))


def test_each_fit_begins_anew_unless_it_goes_on(fitted):
    stopping = EarlyStopping("score", mode="min", patience=2)
    values = [1.0, 2.0, 2.0, 0.0]
    assert fitted(Recorder(values), stopping, epochs=2).epoch == [0, 1]
    assert stopping.wait == 1
    assert fitted(Recorder(values), stopping, epochs=2).epoch == [0, 1]
    state = copy.deepcopy(stopping.get_state())

    other = EarlyStopping("score", mode="min", patience=2)
    other.set_state(state)
    for goes_on in (stopping, other):
        fit = {"epochs": 4, "initial_epoch": 2}
        recorder = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=values[epoch]))
        assert fitted(recorder, goes_on, **fit).epoch == [2]
        assert (goes_on.best, goes_on.best_epoch, goes_on.stopped_epoch) == (1.0, 0, 2)
        assert_same(fitted.model.module.get_parameters(), state["parameters"])


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau])
def test_a_state_of_another_value_is_forgotten(kind):
    """Of which the best one, or a waiting for a better one, says nothing."""
    before, now, same = kind("loss"), kind("accuracy"), kind("loss")
    before.best, before.wait = 0.25, 3
    state = before.get_state()
    with pytest.warns(elegy.errors.CheckpointWarning, match="watched 'loss' so far, and now watches 'accuracy'"):
        now.set_state(state)
    assert (now.best, now.wait) == (None, 0)
    for given in (state, {name: value for name, value in state.items() if name != "monitor"}):  # as it was once
        same.set_state(given)
        assert (same.best, same.wait) == (0.25, 3)


def test_after_an_exception_the_module_is_that_of_the_last_step(fitted):
    def fail(epoch, logs):
        if epoch == 1:
            raise ZeroDivisionError

    recorder, stopping = Recorder([1.0, 2.0]), EarlyStopping("score", mode="min", patience=9)
    with pytest.raises(ZeroDivisionError):
        fitted(recorder, stopping, LambdaCallback(on_epoch_end=fail))
    assert_same(jax.tree.map(np.asarray, fitted.model.module.get_parameters()), recorder.parameters[1])


# ---------------------------------------------------------------------------------------------------------------------
# What is monitored
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "larger_is_better"),
    [
        ("loss", False),
        ("val_loss", False),
        ("key_loss/mean_squared_error", False),
        ("val_relative_error_1", False),
        ("accuracy", True),
        ("val_sparse_categorical_accuracy", True),
        ("head/auc", True),
        ("F1", True),
        ("val_mean_iou", True),
    ],
)
def test_a_name_says_what_is_better(fitted, name, larger_is_better):
    stopping = EarlyStopping(name)
    stopping.model = fitted.model
    for epoch, value in enumerate([1.0, 2.0]):
        stopping.on_epoch_end(epoch, {name: value})
    assert stopping.best_epoch == int(larger_is_better)


def test_a_metric_says_what_is_better():
    class Odd(elegy.metrics.MeanAbsoluteError):
        direction = "max"

    metrics = {"a": Odd(name="error"), "b": elegy.metrics.MeanAbsoluteError(name="level"), "c": lambda y_pred: y_pred}
    model = elegy.Model(elegy.nn.Linear(1), loss=lambda y_pred: y_pred, metrics=metrics)
    for name, best in (("a/error", 1), ("val_b/level", 0)):
        stopping = EarlyStopping(name)
        stopping.model = model
        for epoch, value in enumerate([1.0, 2.0]):
            stopping.on_epoch_end(epoch, {name: value})
        assert stopping.best_epoch == best


@pytest.mark.parametrize("name", ["score", "accuracy_loss"])
def test_a_name_that_says_nothing(fitted, name):
    with pytest.raises(ValueError, match='(?s)EarlyStopping: .*larger or a smaller.*mode="max" or mode="min"'):
        fitted(Recorder([1.0], name), EarlyStopping(name), epochs=1)


@pytest.mark.parametrize(
    ("name", "validation", "message"),
    [
        ("val_los", True, "(?s)'val_los' among the logs of this epoch: loss, .*Did you mean 'val_loss'"),
        ("val_loss", False, "(?s)'val_loss' among .*: loss, .*Give fit validation_data="),
        ("quality", True, "(?s)'quality' among .*Did you mean "),
    ],
)
def test_a_value_that_is_not_among_the_logs(fitted, name, validation, message):
    with pytest.raises(ValueError, match=message):
        fitted(EarlyStopping(name, start_from_epoch=3), validation=validation)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "largest"}, ValueError, "mode must be 'auto', 'min' or 'max', got 'largest'"),
        ({"patience": -1}, ValueError, "patience must be an integer of at least 0, got -1"),
        ({"min_delta": -0.5}, ValueError, "min_delta must not be negative"),
        ({"restore_best_weights": True}, TypeError, "For restore_best_weights= write restore_best="),
    ],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=message):
        EarlyStopping(**options)


def test_a_training_that_has_stopped_is_not_resumed(fitted, tmp_path):
    values = [3.0, 2.0, 2.5, 2.6, 1.0, 0.9, 0.8]

    def resume(patience=2):
        fitted.reset()
        recorder, stopping = Recorder(values), EarlyStopping("score", mode="min", patience=patience)
        saver = elegy.callbacks.ModelCheckpoint(tmp_path)
        history = fitted(recorder, stopping, saver, epochs=len(values), validation=False, resume=tmp_path)
        parameters = jax.tree.map(np.asarray, fitted.model.module.get_parameters())
        return history.epoch, fitted.model.steps, stopping.stopped_epoch, stopping.best_epoch, parameters

    first = resume()
    assert first[:4] == ([0, 1, 2, 3], 12, 3, 1)
    for _ in range(2):
        again = resume()
        assert again[:4] == first[:4]
        assert_same(again[4], first[4])
    assert resume(patience=3)[:4] == ([0, 1, 2, 3, 4, 5, 6], 21, None, 6)
