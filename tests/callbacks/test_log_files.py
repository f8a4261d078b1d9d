"""`CSVLogger` and `JSONLogger`."""

import csv
import json
import math

import pytest

from elegy.callbacks import CSVLogger, JSONLogger, LambdaCallback, ModelCheckpoint


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


def test_other_names_than_the_columns(fitted, tmp_path):
    logger = CSVLogger(tmp_path / "logs.csv", append=True)
    fitted(logger, epochs=1)
    with pytest.raises(ValueError, match="(?s)has the columns epoch, loss, .*this epoch has epoch, .*JSONLogger"):
        fitted(logger, epochs=1, validation=False)
    late = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update({"late": 1.0} if epoch else {}))
    lines = JSONLogger(tmp_path / "logs.jsonl")
    fitted(late, lines, epochs=2)
    assert ["late" in row for row in read(lines.path)] == [False, True]


def test_what_callbacks_add_has_no_column_of_validation(fitted, tmp_path):
    score = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=2.0))
    fitted(score, CSVLogger(tmp_path / "logs.csv"), epochs=2, validation_freq=2)
    rows = read(tmp_path / "logs.csv")
    assert [row["score"] for row in rows] == [2.0, 2.0] and "val_score" not in rows[0]
