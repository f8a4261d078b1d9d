"""`CSVLogger` and `JSONLogger`."""

import csv
import json
import math
import re

import pytest

from elegy.callbacks import CSVLogger, EarlyStopping, History, JSONLogger, LambdaCallback, ModelCheckpoint, ProgressBar


def read(path):
    """The rows of a file, with numbers for what it holds."""
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(params=[CSVLogger, JSONLogger], ids=["CSV", "JSON"])
def make(request, tmp_path):
    """Makes a logger of each kind, always of the same file in a folder that is not there yet."""
    path = tmp_path / "new" / ("logs.csv" if request.param is CSVLogger else "logs.jsonl")

    class Make:
        def __init__(self):
            self.path = path

        def __call__(self, **kwargs):
            return request.param(path, **kwargs)

    return Make()


def test_a_row_for_each_epoch(fitted, make):
    seen = []
    look = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(len(read(make.path))))
    history = fitted(make(), look, epochs=3)
    rows = read(make.path)
    assert seen == [1, 2, 3]  # the file is complete after each epoch
    assert [row.pop("epoch") for row in rows] == [0, 1, 2]
    assert rows == [{name: history.history[name][i] for name in history.history} for i in range(3)]
    assert {"loss", "val_loss", "learning_rate"} < rows[0].keys()


def test_append(fitted, make):
    fitted(make(), epochs=2)
    fitted(make(), epochs=1)
    assert [row["epoch"] for row in read(make.path)] == [0]
    fitted(make(append=True), epochs=2)
    assert [row["epoch"] for row in read(make.path)] == [0, 0, 1]
    assert make.path.read_text().count("epoch,") in (0, 1)  # the header of a CSV file stands there once


def test_the_separator(fitted, tmp_path):
    for _ in range(2):
        fitted(CSVLogger(tmp_path / "logs.csv", ";", True), epochs=1)
    with open(tmp_path / "logs.csv", newline="") as file:
        rows = [*csv.DictReader(file, delimiter=";")]
    assert [row["epoch"] for row in rows] == ["0", "0"] and float(rows[1]["loss"]) > 0
    with pytest.raises(ValueError, match="(?s)has no column epoch, but .*epoch;.*give the separator"):
        fitted(CSVLogger(tmp_path / "logs.csv", append=True), epochs=1)
    assert (tmp_path / "logs.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("separator", ["", "; ", "\n", '"', True])
def test_what_is_no_separator(tmp_path, unchecked, separator):
    """A Boolean is what stands second in the arguments of another logger."""
    hint = "\n  Write append=True" if separator is True else "$"
    given = re.escape(repr(separator))
    with pytest.raises(ValueError, match=f"separator must be one character, such as ';', got {given}.{hint}"):
        CSVLogger(tmp_path / "logs.csv", separator)


def test_going_on_drops_what_came_after_the_state(fitted, make):
    logger, states = make(), []
    fitted(logger, LambdaCallback(on_epoch_end=lambda epoch, logs: states.append(logger.get_state())), epochs=3)
    other = make()
    other.set_state(json.loads(json.dumps(states[1])))
    fitted(other, epochs=4, initial_epoch=2)
    assert [row["epoch"] for row in read(make.path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("append", [False, True])
def test_going_on_within_the_first_epoch(fitted, make, append, tmp_path):
    """From a checkpoint before its end, which was noted already. An epoch has three steps."""
    fitted(make(), epochs=1)
    fitted.reset()

    def fail(batch, logs):
        if fitted.model.steps == 4:
            raise ZeroDivisionError

    def given():
        return make(append=append), ModelCheckpoint(tmp_path / "run", every_steps=2)

    with pytest.raises(ZeroDivisionError):
        fitted(*given(), LambdaCallback(on_train_batch_end=fail), epochs=2)
    assert [row["epoch"] for row in read(make.path)] == [0] * append + [0]
    fitted.reset()
    fitted(*given(), epochs=2, resume=tmp_path / "run")
    assert [row["epoch"] for row in read(make.path)] == [0] * append + [0, 1]


def test_the_file_is_closed_after_an_exception(fitted, make):
    def fail(epoch, logs):
        raise ZeroDivisionError

    logger = make()
    with pytest.raises(ZeroDivisionError):
        fitted(logger, LambdaCallback(on_epoch_end=fail))
    assert logger._file is None
    assert len(read(make.path)) == 1


def test_what_is_not_finite(fitted, tmp_path):
    values = [math.nan, math.inf, -math.inf, 1.0]
    score = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=values[epoch]))
    paths = tmp_path / "logs.csv", tmp_path / "logs.jsonl"
    fitted(score, CSVLogger(paths[0]), JSONLogger(paths[1]), epochs=4)
    assert [str(row["score"]) for row in read(paths[0])] == ["nan", "inf", "-inf", "1.0"]
    assert [row["score"] for row in read(paths[1])] == [None, None, None, 1.0]


def test_epochs_without_validation_have_its_columns(fitted, tmp_path):
    logger = CSVLogger(tmp_path / "logs.csv")
    history = fitted(logger, epochs=4, validation_freq=2).history
    found = [row["val_loss"] for row in read(tmp_path / "logs.csv")]
    assert [value for value in found if value == value] == [value for value in history["val_loss"] if value == value]
    assert [math.isnan(value) for value in found] == [True, False, True, False]


def test_columns_that_come_up_later(fitted, tmp_path):
    logger = CSVLogger(tmp_path / "logs.csv", append=True)
    fitted(logger, epochs=1)
    late = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update({"late": 1.0} if epoch else {}))
    fitted(late, logger, epochs=2, validation=False)
    rows = read(logger.path)
    assert [math.isnan(row["val_loss"]) for row in rows] == [False, True, True]
    assert [math.isnan(row["late"]) for row in rows] == [True, True, False]
    assert [*rows[0]][-1] == "late" and [path.name for path in tmp_path.iterdir()] == ["logs.csv"]
    lines = JSONLogger(tmp_path / "logs.jsonl")
    fitted(late, lines, epochs=2)
    assert ["late" in row for row in read(lines.path)] == [False, True]


def test_names_of_training_and_of_validation_that_differ(fitted, tmp_path):
    """Of the former there are no columns of the latter."""

    class Other(type(fitted.model)):
        def train_step(self, x, y, sample_weight=None):
            return {"of_training": y.mean()}

        def test_step(self, x, y, sample_weight=None):
            return {"of_test": y.mean()}

    model = Other(fitted.model.module)
    logger = CSVLogger(tmp_path / "logs.csv")
    x, y = fitted.x, fitted.y
    for freq in (2, 1):
        model.fit(x, y, epochs=3, validation_data=(x, y), validation_freq=freq, callbacks=[logger], verbose=0)
        rows = read(logger.path)
        assert rows[0].keys() == {"epoch", "of_training", "val_of_test"}
        assert [math.isnan(row["val_of_test"]) for row in rows] == [freq == 2, False, freq == 2]


@pytest.mark.parametrize("steps", [2, 4, 7])
@pytest.mark.parametrize("append", [False, True])
def test_a_file_that_grew_is_resumed_bit_for_bit(fitted, tmp_path, append, steps):
    """There are three steps in an epoch, and validation after the second and the fourth one. The training fails in the
    third epoch, and goes on from before or after the columns of validation were added."""

    def train(name, *besides):
        path = tmp_path / name / "logs.csv"
        if append and not path.exists():
            path.parent.mkdir()
            path.write_text('epoch,"loss"\n0,1')  # by somebody else, without an end of its last line
        saving = ModelCheckpoint(tmp_path / name / "run", every_steps=steps)
        given = CSVLogger(path, append=append), saving, *besides
        fitted.reset()
        fitted(*given, epochs=4, validation_freq=2, resume=tmp_path / name / "run")
        return path.read_bytes()

    def fail(batch, logs):
        if fitted.model.steps == 8:
            raise ZeroDivisionError

    whole = train("whole")
    with pytest.raises(ZeroDivisionError):
        train("parts", LambdaCallback(on_train_batch_end=fail))
    assert train("parts") == whole
    assert len(read(tmp_path / "whole" / "logs.csv")) == 4 + append


def test_what_callbacks_add_has_no_column_of_validation(fitted, tmp_path):
    score = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=2.0))
    fitted(score, CSVLogger(tmp_path / "logs.csv"), epochs=2, validation_freq=2)
    rows = read(tmp_path / "logs.csv")
    assert [row["score"] for row in rows] == [2.0, 2.0] and "val_score" not in rows[0]


def test_what_is_no_number_is_named(fitted, make):
    note = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(note="good"))
    for reader in (make(), History(), ProgressBar(), EarlyStopping("note", mode="min")):
        with pytest.raises(TypeError, match="the value of 'note' in the logs must be a number, got 'good'"):
            fitted(note, reader)
