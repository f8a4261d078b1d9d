"""`TensorBoard`, by what is in its files."""

import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

import elegy
from elegy.callbacks import LambdaCallback, ModelCheckpoint, TensorBoard


def events(directory):
    """What TensorBoard shows of the files of a run: the tag, the step, and the value or the histogram. The start of a
    session hides what came before, of its step and later ones; that of the first one hides nothing."""
    found, sessions = [], 0
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:  # a length, its checksum, an event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                found = [shown for shown in found if shown[1] < event.step or not sessions]
                sessions += 1
            for value in event.summary.value:
                shown = value.histo if value.HasField("histo") else value.simple_value
                found.append((value.tag, event.step, shown))
            data = data[16 + length :]
    return found


def test_epochs(fitted, tmp_path):
    history = fitted(TensorBoard(tmp_path / "new"), epochs=2).history
    for run, prefix in (("train", ""), ("validation", "val_")):
        written = events(tmp_path / "new" / run)
        names = [name for name in history if name.startswith("val_") == bool(prefix)]
        assert len(written) == 2 * len(names) > 2
        for tag, epoch, value in written:
            assert value == pytest.approx(history[prefix + tag.removeprefix("epoch_")][epoch], rel=1e-6)


@pytest.mark.parametrize(("update_freq", "steps"), [("batch", [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), ("epoch", [])])
def test_batches(fitted, tmp_path, update_freq, steps):
    of_batches = []
    note = LambdaCallback(on_train_batch_end=lambda batch, logs: of_batches.append(logs["loss"]))
    fitted(note, TensorBoard(tmp_path, update_freq=update_freq), epochs=2, validation=False)
    written = {step: value for tag, step, value in events(tmp_path / "train/batches") if tag == "batch_loss"}
    assert written == {step: pytest.approx(of_batches[step], rel=1e-6) for step in steps}
    fitted(TensorBoard(tmp_path / "rest", update_freq=2), epochs=3, initial_epoch=2)
    assert {step for tag, step, _ in events(tmp_path / "rest/train/batches") if tag == "batch_loss"} == {7}


def test_histograms(fitted, tmp_path):
    class Odd(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [3], initializer=lambda: jnp.asarray([1.0, np.nan, 3.0], jnp.bfloat16))
            self.key = self.add_parameter("key", initializer=lambda: jax.random.key(0), trainable=False)
            self.flag = self.add_parameter("flag", initializer=lambda: jnp.asarray(True), trainable=False)
            self.lost = self.add_parameter("lost", initializer=lambda: jnp.asarray(np.nan), trainable=False)

    board = TensorBoard(tmp_path, histograms=2)
    fitted(board, epochs=3)
    written = {tag: (step, shown) for tag, step, shown in events(tmp_path / "train") if not tag.startswith("epoch_")}
    assert set(written) == {"norm/mean", "norm/var", "norm/scale", "affine/w", "affine/b"}
    assert {step for step, _ in written.values()} == {1}
    board = TensorBoard(tmp_path / "odd", histograms=True)
    board.model = type("Stub", (), {"module": Odd()})
    board.on_epoch_end(0, {})
    board.close()
    ((tag, _, histogram),) = events(tmp_path / "odd" / "train")
    assert (tag, histogram.num, histogram.min, histogram.max) == ("w", 2, 1, 3)


@pytest.mark.parametrize(("profile", "seen"), [((0, 0), [0, 0]), ((1, 4), [1, 4]), ((4, 100), [4, None])])
def test_profile(fitted, tmp_path, monkeypatch, profile, seen):
    batches, calls = [], []
    count = LambdaCallback(on_train_batch_begin=batches.append, on_train_end=lambda: batches.clear())
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append((path, len(batches) - 1)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(len(batches) - 1 if batches else None))
    fitted(count, TensorBoard(tmp_path, profile=profile), epochs=2)
    assert calls == [(str(tmp_path), seen[0]), seen[1]]


def test_going_on_within_an_epoch(fitted, tmp_path):
    """Batches are counted on; also where nobody knows how many of them an epoch has."""

    class Batches:
        def __iter__(self):
            return iter([(fitted.x[:4], fitted.y[:4])] * 3)

    def fit(name, **options):
        saving = ModelCheckpoint(tmp_path / "checkpoints", every_steps=2)
        given = [TensorBoard(tmp_path / name, update_freq="batch"), saving, *options.pop("besides", ())]
        fitted.model.fit(Batches(), epochs=2, callbacks=given, verbose=0, **options)

    def fail(batch, logs):
        if fitted.model.steps == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit("begun", besides=[LambdaCallback(on_train_batch_end=fail)])
    fitted.reset()
    with pytest.warns(elegy.errors.ResumptionWarning):  # the batches have no state
        fit("resumed", resume=tmp_path / "checkpoints")
    assert [step for tag, step, _ in events(tmp_path / "resumed/train/batches") if tag == "batch_loss"] == [4, 5]


def test_after_an_exception_the_files_and_the_profile_are_closed(fitted, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))

    def fail(batch, logs):
        raise ZeroDivisionError

    board = TensorBoard(tmp_path, update_freq="batch", profile=(0, 9))
    with pytest.raises(ZeroDivisionError):
        fitted(board, LambdaCallback(on_train_batch_end=fail))
    assert calls == ["start", "stop"] and board._writers == {}
    assert [tag for tag, _, _ in events(tmp_path / "train/batches")].count("batch_loss") == 1


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="TensorBoard needs the library tensorboardX(?s:.*)pip install tensorboardX"):
        TensorBoard()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"update_freq": "step"}, ValueError, "update_freq must be 'epoch', 'batch' or a number, got 'step'"),
        ({"update_freq": 0}, ValueError, "update_freq must be an integer of at least 1, got 0"),
        ({"histograms": -1}, ValueError, "histograms must be an integer of at least 0, got -1"),
        ({"profile": (3, 2)}, ValueError, "profile must be the first and the last batch"),
        ({"log_dir": "logs"}, TypeError, "For log_dir= write directory="),
        ({"profile_batch": (1, 2)}, TypeError, "For profile_batch= write profile="),
    ],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=message):
        TensorBoard(**options)


def steps_in(directory):
    return [step for tag, step, _ in events(directory / "train/batches") if tag == "batch_loss"]


def test_batches_of_data_whose_length_nobody_knows(fitted, tmp_path):
    def give():
        for start in (0, 4, 8):
            yield fitted.x[start : start + 4], fitted.y[start : start + 4]

    fitted.model.fit(give, epochs=2, callbacks=[TensorBoard(tmp_path, update_freq="batch")], verbose=0)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_several_steps_in_one_execution(fitted, tmp_path):
    boards = [TensorBoard(tmp_path / "each", update_freq="batch"), TensorBoard(tmp_path / "third", update_freq=3)]
    fitted(*boards, epochs=2, steps_per_execution=2, validation=False)
    assert steps_in(tmp_path / "each") == [1, 2, 4, 5] and steps_in(tmp_path / "third") == [2, 5]


def test_numbers_of_batches_go_on_in_the_middle_of_an_epoch(fitted, tmp_path):
    def train(name, *more):
        callbacks = [
            TensorBoard(tmp_path / name, update_freq="batch"),
            elegy.callbacks.ModelCheckpoint(tmp_path / "run", every_steps=2),
        ]
        fitted(*callbacks, *more, epochs=2, resume=tmp_path / "run", validation=False)

    def fail(epoch, logs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train("first", LambdaCallback(on_epoch_end=fail))
    fitted.reset()
    train("rest")
    assert steps_in(tmp_path / "first") == [0, 1, 2]
    assert steps_in(tmp_path / "rest") == [2, 3, 4, 5]  # the third was made twice


@pytest.mark.parametrize("every_steps", [2, 7])
def test_what_is_made_again_is_there_once(fitted, tmp_path, every_steps):
    """A training of four epochs of three steps, which fails after the eleventh."""

    def train(name, *more):
        fitted.reset()
        saving = ModelCheckpoint(tmp_path / name / "run", every_steps=every_steps, keep=1)
        board = TensorBoard(tmp_path / name, update_freq="batch", histograms=True)
        given = [board, saving, *more]
        fitted(*given, epochs=4, validation_freq=3, resume=tmp_path / name / "run")

    def fail(batch, logs):
        if fitted.model.steps == 11:
            raise ZeroDivisionError

    train("whole")
    with pytest.raises(ZeroDivisionError):
        train("cut", LambdaCallback(on_train_batch_end=fail))
    assert len(steps_in(tmp_path / "cut")) == 11
    train("cut")
    for run in ("train", "train/batches", "validation"):
        whole, cut = ([event[:2] for event in events(tmp_path / name / run)] for name in ("whole", "cut"))
        assert cut == whole and len(set(cut)) == len(cut) > 0


def test_an_epoch_whose_end_it_was_told_of_before_the_model_was_saved(fitted, tmp_path):
    def save(epoch, logs):
        if epoch == 1:
            fitted.model.save(tmp_path / "run")

    saving = LambdaCallback(on_epoch_end=save)
    fitted(TensorBoard(tmp_path), saving, epochs=3)
    fitted.reset()
    fitted(TensorBoard(tmp_path), saving, epochs=4, resume=tmp_path / "run")
    for run in ("train", "validation"):
        assert [step for tag, step, _ in events(tmp_path / run) if tag == "epoch_loss"] == [0, 1, 2, 3]


def test_runs_that_begin_within_a_second_have_files_of_their_own(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1.0)  # they are named by it
    both = TensorBoard(tmp_path), TensorBoard(tmp_path)
    for epochs in (1, 2):
        fitted(*both, epochs=epochs, validation=False)
    assert [step for tag, step, _ in events(tmp_path / "train") if tag == "epoch_loss"] == [0, 0, 0, 1, 0, 1]
