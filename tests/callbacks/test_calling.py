"""How callbacks are called, and `LambdaCallback`."""

import functools
from unittest import mock

import jax
import pytest

import elegy
from elegy import habits
from elegy.callbacks import (
    Callback,
    CSVLogger,
    History,
    LambdaCallback,
    ModelCheckpoint,
    ProgressBar,
    TensorBoard,
)
from elegy.callbacks.calling import Callbacks
from elegy.model.carry import Carry

# Of those that cannot be constructed without.
ARGUMENTS = {
    "CSVLogger": ["log.csv"],
    "JSONLogger": ["log.json"],
    "LearningRateScheduler": [lambda epoch, rate: rate],
    "ModelCheckpoint": ["checkpoints"],
    "RemoteMonitor": ["http://127.0.0.1:9"],
    "TensorBoard": ["runs"],
}
HOOKS = [
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_end",
    "on_test_batch_begin",
    "on_test_batch_end",
]


def noting(calls, *hooks):
    """A callback that notes which of the hooks were called, with numbers, and with names in the place of logs."""

    def note(hook):
        return lambda *given: calls.append((hook, *(v if isinstance(v, int) else sorted(v) for v in given)))

    return LambdaCallback(**{hook: note(hook) for hook in hooks})


def test_all_hooks_in_their_order(fitted):
    calls = []
    callbacks = [noting(calls, *HOOKS)]
    fitted.model.fit(
        fitted.x[:8], fitted.y[:8], batch_size=4, validation_data=(fitted.x[8:], fitted.y[8:]), callbacks=callbacks,
        verbose=0,
    )  # fmt: skip
    of_test = ["function_loss", "loss"]
    of_train = ["function_loss", "learning_rate", "loss"]
    assert calls == [
        ("on_train_begin",),
        ("on_epoch_begin", 0),
        ("on_train_batch_begin", 0),
        ("on_train_batch_end", 0, of_test),
        ("on_train_batch_begin", 1),
        ("on_train_batch_end", 1, of_test),
        ("on_test_begin",),
        ("on_test_batch_begin", 0),
        ("on_test_batch_end", 0, of_test),
        ("on_test_batch_begin", 1),
        ("on_test_batch_end", 1, of_test),
        ("on_test_end", of_test),
        ("on_epoch_end", 0, of_train + [f"val_{name}" for name in of_test]),
        ("on_train_end",),
    ]
    assert len(callbacks) == 1  # the list is not added to


def test_evaluate_calls_the_hooks_of_tests(fitted):
    calls = []
    logs = fitted.model.evaluate(fitted.x, fitted.y, batch_size=8, callbacks=[noting(calls, *HOOKS)])
    assert [name for name, *_ in calls] == [*HOOKS[6:7], *2 * HOOKS[8:], HOOKS[7]]
    assert calls[-1] == ("on_test_end", sorted(logs))


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (LambdaCallback(), r"callbacks=\[callback\]"),
        ([LambdaCallback], "instances of elegy.callbacks.Callback, got .*Construct it"),
        ([print], "instances of elegy.callbacks.Callback, got <built-in function print>"),
    ],
    ids=["one", "class", "function"],
)
def test_what_is_no_list_of_callbacks(fitted, unchecked, callbacks, message):
    for run in (fitted.model.evaluate, fitted.model.fit):
        with pytest.raises(TypeError, match=message):
            run(fitted.x, fitted.y, callbacks=callbacks)


def test_a_hook_that_does_not_look_costs_no_read(fitted, monkeypatch):
    reads = []
    read = Carry.logs
    monkeypatch.setattr(Carry, "logs", lambda totals: reads.append(totals) or read(totals))
    fitted(LambdaCallback(on_test_batch_end=lambda batch, logs: None), epochs=1)
    assert len(reads) == 2  # at the end of the epoch, and of the validation


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end", "on_test_begin"])
def test_what_was_opened_is_closed(fitted, hook):
    closed = []

    class Closing(Callback):
        def __init__(self, number):
            self.number = number

        def close(self):
            closed.append(self.number)
            if self.number == 1:
                raise OSError("the disk is full")

    def fail(*given):
        raise ZeroDivisionError

    callbacks = [Closing(0), Closing(1), LambdaCallback(**{hook: fail}), Closing(2)]
    with pytest.raises(OSError, match="the disk is full") as raised:
        fitted(*callbacks)
    assert isinstance(raised.value.__context__, ZeroDivisionError)
    assert closed == [0, 1, 2]
    assert not fitted.model.stop_training


def test_what_is_no_hook(unchecked):
    with pytest.raises(TypeError, match="on_epoch_ends.*\n  For on_epoch_ends= write on_epoch_end="):
        LambdaCallback(on_epoch_ends=print)
    with pytest.raises(TypeError, match="on_batch_end.*\n  For on_batch_end= write on_train_batch_end="):
        LambdaCallback(on_batch_end=print)
    with pytest.raises(TypeError, match="on_epoch_end must be a function, got 3"):
        LambdaCallback(on_epoch_end=3)


class Begun(Callback):
    def on_epoch_begin(self, epoch, logs): ...


class Ended(Callback):
    def on_epoch_end(self, epoch): ...


class OfKeras(Callback):
    """Hooks as Keras has them, each with a default for its logs."""

    def on_train_begin(self, logs=None):
        self.called = [logs]

    def on_epoch_begin(self, epoch, logs=None):
        self.called.append(logs)

    def on_epoch_end(self, *given):
        self.called.append(given[0])

    on_test_begin = mock.Mock()

    @staticmethod
    def on_train_batch_begin(batch): ...

    @functools.wraps(Begun.on_epoch_begin)
    def on_train_batch_end(self, batch, logs): ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Begun, r"Begun: on_epoch_begin is given epoch, .*'logs'.\n  Write def on_epoch_begin\(self, epoch\)\."),
        (Ended, r"Ended: on_epoch_end is given epoch, logs, .*\n  Write def on_epoch_end\(self, epoch, logs\)\."),
        (
            lambda: LambdaCallback(on_train_end=lambda logs: None),
            r"LambdaCallback: on_train_end is given nothing, .*'logs'.\n  Write on_train_end=lambda: \.\.\.",
        ),
        (
            lambda: LambdaCallback(on_train_batch_begin=functools.partial(lambda a, batch, logs: None, 1)),
            r"Write on_train_batch_begin=lambda batch: \.\.\.",
        ),
    ],
)
def test_hooks_that_cannot_be_called(fitted, make, message):
    before = fitted.model.steps
    with pytest.raises(TypeError, match=message):
        fitted(make())
    assert fitted.model.steps == before


def test_hooks_of_other_libraries_with_defaults(fitted):
    given = OfKeras()
    given.on_train_end = functools.partial(given.on_train_begin, None)
    given.on_test_end = max  # says nothing of what it takes
    LambdaCallback(on_epoch_end=print, on_train_begin=dict, on_epoch_begin=[].append)
    fitted(given, epochs=2, validation=False)
    assert given.called == [None]  # on_train_end comes last
    fitted.model.evaluate(fitted.x, fitted.y, callbacks=[Ended()])  # calls no such hook


def test_a_callback_that_is_given_twice(fitted):
    stopping = elegy.callbacks.EarlyStopping("loss", patience=4)
    with pytest.raises(ValueError, match="the callback <.*EarlyStopping.*> is given twice"):
        fitted(stopping, LambdaCallback(), stopping)


def test_a_callback_of_a_user_has_the_errors_of_python():
    class Mine(Callback):
        def __init__(self, units):
            self.units = units

    assert Mine(units=3).units == 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'features'$"):
        Mine(features=3)
    with pytest.raises(TypeError):
        Callback(3)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("on_batch_end", "on_train_batch_end"),
        ("on_validation_epoch_start", "on_test_begin"),
        ("on_save_checkpoint", "get_state"),
        ("on_epoch_ends", "on_epoch_end"),
        ("onEpochEnd", "on_epoch_end"),
        ("on_trian_batch_begin", "on_train_batch_begin"),
        ("on_click", None),
        ("on_best_epoch_end", None),
        ("on_epoch", None),
        ("_on_epoch_ends", None),
        ("on_predict_end", None),
    ],
)
def test_what_is_nearly_a_hook(name, hook):
    """Or one of another library. Other methods are of one's own."""
    if hook is None:
        type("Mine", (Callback,), {name: print})
        return
    with pytest.raises(elegy.errors.ClassDefinitionError, match=f"class Mine defines {name}, .*\n  Name it {hook}"):
        type("Mine", (Callback,), {name: print})


def test_a_mixin_with_a_hook_of_another_library():
    class Mixin:
        def on_batch_end(self, batch, logs): ...

    with pytest.raises(elegy.errors.ClassDefinitionError, match="defines on_batch_end"):
        type("Mine", (Mixin, Callback), {})


def test_an_epoch_that_goes_on_is_told_to_a_function():
    epochs = []
    LambdaCallback(on_epoch_resume=epochs.append).on_epoch_resume(3)
    assert epochs == [3]


def test_hints_for_hooks_name_hooks():
    assert set(habits.HOOKS.values()) == {*HOOKS, "get_state", "set_state", "close"}
    assert not {habits._plain(hook) for hook in HOOKS} & habits.HOOKS.keys()


def test_a_history_goes_on_from_its_state(fitted):
    whole = fitted(epochs=2)
    history = History()
    history.set_state(whole.get_state())
    history.on_epoch_end(2, {"loss": 0.0})
    assert history.epoch == [0, 1, 2] and history.history["loss"][:2] == whole.history["loss"]
    assert whole.epoch == [0, 1] and len(whole.history["loss"]) == 2


@pytest.mark.parametrize("name", elegy.callbacks.__all__)
def test_the_state_of_a_callback_that_has_not_trained(name):
    """It can be given to another one."""
    cls = getattr(elegy.callbacks, name)
    callback, other = (cls(*ARGUMENTS.get(name, ())) for _ in range(2))
    other.set_state(callback.get_state())
    assert other.get_state() == callback.get_state()


def test_a_history_draws_both_under_the_name_of_training():
    history = History()
    history.on_epoch_end(0, {"loss": 1.0, "val_loss": 2.0})
    with pytest.raises(ValueError, match="no val_loss.*\n  Write 'loss': .*drawn together"):
        history.plot("val_loss")


class Marked(Callback):
    """Has a state, and an identity that is its mark."""

    def __init__(self, mark):
        self.mark = mark
        self.state = None

    def get_state(self):
        return {"mark": self.mark}

    def set_state(self, state):
        self.state = state["mark"]

    def _identity(self):
        return self.mark


@pytest.mark.parametrize(
    ("before", "now", "states", "left"),
    [
        ("ab", "ba", "ba", []),
        ("ab", "b", "b", ["Marked 1"]),
        ("ab", "bc", "b-", ["Marked 1"]),
        ("ab", "cb", "ab", []),
        ("aa", "aa", "aa", []),
        ("a", "b", "a", []),
        ("ab", "ab", "ab", []),
    ],
)
def test_whose_state_is_whose(before, now, states, left):
    """By what tells those of a class apart, and else by their places in the list."""
    given = [Marked(mark) for mark in now]
    assert Callbacks(given, None, {}).restore(Callbacks(map(Marked, before), None, {}).states()) == left
    assert "".join(callback.state or "-" for callback in given) == states


def test_states_without_identities_go_by_their_places():
    given = [Marked("b"), Marked("a")]
    states = {f"Marked {i + 1}": {"state": {"mark": mark}} for i, mark in enumerate("ab")}
    assert Callbacks(given, None, {}).restore(states) == []
    assert [callback.state for callback in given] == ["a", "b"]


def test_of_several_processes_the_first_one_tells(fitted, tmp_path, monkeypatch, capsys):
    """The others train alike, and write and show nothing."""

    def tells():
        note = noting(calls := [], "on_epoch_end", "on_train_batch_end")
        note.writes = True
        saving = ModelCheckpoint(tmp_path / "run")
        given = [note, CSVLogger(tmp_path / "logs.csv"), TensorBoard(tmp_path / "board"), saving, ProgressBar()]
        fitted.reset()
        callbacks = Callbacks(given, fitted.model, {})
        assert callbacks.see_module and callbacks.saves
        history = fitted.model.fit(fitted.x, fitted.y, epochs=2, callbacks=given, verbose=1).history
        assert fitted.model.evaluate(fitted.x, fitted.y, verbose=1)["loss"] > 0
        return history, calls, capsys.readouterr().out, sorted(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    history, calls, shown, written = tells()
    assert (calls, shown, written) == ([], "", [])
    monkeypatch.undo()
    same, calls, shown, written = tells()
    assert same == history and len(calls) > 2 and shown.count("\n") == 3
    assert written == ["board", "logs.csv", "run"]


def test_a_progress_bar_of_ones_own(fitted, capsys):
    fitted(ProgressBar(), epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in lines] == ["Epoch 1/2 ", "Epoch 2/2 "]


def test_names_of_other_libraries():
    with pytest.raises(AttributeError, match="Write elegy.callbacks.ModelCheckpoint"):
        elegy.callbacks.BackupAndRestore  # noqa: B018
    with pytest.raises(AttributeError, match="Write elegy.callbacks.EarlyStopping"):
        elegy.EarlyStopping  # noqa: B018


def test_a_callback_that_stops_before_the_first_epoch(fitted):
    before = fitted.model.steps
    stop = LambdaCallback(on_train_begin=lambda: setattr(stop.model, "stop_training", True))
    assert fitted(stop).epoch == [] and fitted.model.steps == before


def test_no_callbacks(fitted):
    model, x, y = fitted.model, fitted.x, fitted.y
    assert model.fit(x, y, callbacks=None, verbose=0).epoch == [0]
    assert model.evaluate(x, y, callbacks=None)["loss"] > 0
