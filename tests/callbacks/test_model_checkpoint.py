"""`ModelCheckpoint`: when it writes, what it keeps, and what it refuses. That training goes on from its checkpoints is
tried in `tests/model/test_resumption.py`."""

import os
import signal

import pytest

import elegy
from elegy.callbacks import Callback, ModelCheckpoint
from elegy.errors import CheckpointWarning


class Score(Callback):
    """Logs a value of its own for each epoch."""

    sees_module = False

    def __init__(self, *values):
        self.values = values

    def on_epoch_end(self, epoch, logs):
        logs["error"] = self.values[epoch]


class Stop(Exception):
    pass


class StopAt(Callback):
    """Raises after a step."""

    sees_module = False

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, batch, logs):
        if self.model.steps == self.step:
            raise Stop


@pytest.mark.parametrize("when", [{"every_steps": 5}, {"every_epochs": 4}, {"every_seconds": 1e9}], ids=str)
def test_the_best_epoch_is_kept_whenever_else_checkpoints_are_written(fitted, tmp_path, when):
    """An epoch has three steps, and the second epoch is the best one."""
    saving = ModelCheckpoint(tmp_path, monitor="error", keep=1, **when)
    fitted(Score(3.0, 1.0, 2.0, 5.0, 4.0), saving, validation=False)
    checkpoints = elegy.Checkpoints(tmp_path)
    assert checkpoints.best() == 6 and saving.best == 1.0


def test_only_the_best_of_some_epochs(fitted, tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="error", best_only=True, every_epochs=2, keep=None)
    fitted(Score(3.0, 2.0, 0.0, 2.5, 5.0, 1.0), saving, validation=False, epochs=6)
    assert elegy.Checkpoints(tmp_path).steps == [6, 18]
    assert saving.best == 1.0


@pytest.mark.parametrize(("options", "match"), [({"keep": 0}, "keep=0"), ({"backend": "zip"}, "backend='zip'")])
@pytest.mark.usefixtures("unchecked")
def test_what_the_directory_would_refuse_is_refused_at_once(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        ModelCheckpoint(tmp_path, **options)


def test_two_callbacks_with_one_directory(fitted, tmp_path):
    (tmp_path / "link").symlink_to("run")
    both = ModelCheckpoint(tmp_path / "run", every_steps=2), ModelCheckpoint(tmp_path / "link", monitor="loss")
    with pytest.raises(ValueError, match=r"2 callbacks ModelCheckpoint write into .*run: each would remove"):
        fitted(*both)
    fitted(both[0], ModelCheckpoint(tmp_path / "other", monitor="loss"), epochs=1)


def test_a_directory_of_a_longer_training(fitted, tmp_path):
    fitted(ModelCheckpoint(tmp_path, keep=2))
    fitted.reset()
    with pytest.warns(CheckpointWarning, match=r"later steps \(12, 15\) than the one at which this training begins, 0"):
        fitted(ModelCheckpoint(tmp_path), epochs=1)
    fitted.reset()
    assert fitted(ModelCheckpoint(tmp_path), resume=tmp_path).epoch == [0, 1, 2, 3, 4]


def test_an_object_that_has_seen_more_than_the_checkpoint(fitted, tmp_path):
    """It goes on with what was the best then, here nothing."""
    saving = ModelCheckpoint(tmp_path, monitor="error", every_steps=2, keep=1)
    seen = []

    class Look(Callback):
        def on_train_begin(self):
            seen.append(saving.best)

    with pytest.raises(Stop):
        fitted(Score(1.0), saving, StopAt(3), Look(), validation=False)
    fitted.reset()
    saving.best = 1.0  # as if an epoch had ended after the checkpoint, which is lost
    fitted(Score(3.0, 2.0), saving, Look(), validation=False, epochs=2, resume=tmp_path)
    assert seen == [None, None] and saving.best == 2.0


def test_another_value_is_watched_than_before(fitted, tmp_path):
    fitted(Score(0.5), ModelCheckpoint(tmp_path / "run", monitor="error"), epochs=1)
    fitted.reset()
    saving = ModelCheckpoint(tmp_path / "other", monitor="loss")
    with pytest.warns(CheckpointWarning, match="have 'error' as their score, and ModelCheckpoint now watches 'loss'"):
        history = fitted(saving, epochs=2, resume=tmp_path / "run").history
    assert saving.best == history["loss"][1]


@pytest.fixture
def interruptible():
    """Ctrl-C is what Python makes of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_before_the_first_step_leaves_the_best_checkpoint(fitted, tmp_path):
    """A checkpoint of the same step, which would replace it, would have no score."""

    class Interrupted:
        def __len__(self):
            return 1

        def __iter__(self):
            os.kill(os.getpid(), signal.SIGINT)
            yield fitted.x[:4], fitted.y[:4]

    saving = ModelCheckpoint(tmp_path, monitor="error", keep=1)
    fitted(Score(3.0, 1.0), saving, epochs=2)
    fitted.reset()
    options = {"resume": tmp_path, "validation": False, "validation_data": Interrupted(), "sanity_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        fitted(Score(3.0, 1.0, 2.0), saving, **options)
    assert fitted.model.steps == 6
    assert elegy.Checkpoints(tmp_path).best() == 6
