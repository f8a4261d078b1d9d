"""`WandB` and `MLflow`, with stubs of these libraries."""

import contextlib
import subprocess
import sys
import types

import pytest

from elegy.callbacks import LambdaCallback, MLflow, ModelCheckpoint, WandB


class Run:
    def __init__(self, calls, name=None):
        self.calls = calls
        self.id = name

    def log(self, values):
        self.calls.append(values)

    def finish(self):
        self.calls.append("finish")


def rows(history, **more):
    return [
        {name: values[i] for name, values in history.history.items()} | {k: f(i) for k, f in more.items()}
        for i in range(len(history.epoch))
    ]


def test_wandb(fitted, monkeypatch):
    calls = []
    history = fitted(WandB(Run(calls)), epochs=2)
    assert calls == rows(history, epoch=int)  # a run that was given goes on

    calls.clear()
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda: Run(calls, "new")))
    callback = WandB()
    for _ in range(2):
        fitted(callback, epochs=1)
    assert [call == "finish" for call in calls] == [False, True, False, True]


@pytest.fixture
def mlflow(monkeypatch):
    """A stub of the library, with the names of what was called."""

    class Library:
        active = None

        def __init__(self):
            self.calls = []

        def active_run(self):
            return self.active

        def start_run(self, run_id="new"):
            self.calls.append("start")
            self.active = run_id
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

        def end_run(self):
            self.calls.append("end")
            self.active = None

        def log_metrics(self, metrics, step, run_id=None):
            self.calls.append((metrics, step, run_id or self.active))

    library = Library()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    return library


@pytest.mark.parametrize(
    ("active", "run_id", "logged_to"),
    [(None, None, "new"), ("active", None, "active"), ("active", "given", "given"), (None, "given", "given")],
)
def test_mlflow(fitted, mlflow, active, run_id, logged_to):
    mlflow.active = active
    history = fitted(MLflow(run_id), epochs=2)
    logged = [call for call in mlflow.calls if not isinstance(call, str)]
    assert logged == [(row, step, logged_to) for step, row in enumerate(rows(history))]
    begun = logged_to == "new"
    assert [mlflow.calls[0], mlflow.calls[-1]] == (["start", "end"] if begun else [logged[0], logged[-1]])


def test_a_run_that_was_begun_ends_after_an_exception(fitted, mlflow):
    with pytest.raises(ZeroDivisionError):
        fitted(MLflow(), LambdaCallback(on_epoch_begin=lambda epoch: fail(epoch, {})))
    assert mlflow.calls == ["start", "end"]


def fail(epoch, logs):
    raise ZeroDivisionError


def resumed(fitted, directory, make):
    """Trains for an epoch, fails, and trains for the second epoch from the checkpoint of the first."""
    failing = LambdaCallback(on_epoch_end=lambda epoch, logs: epoch == 1 and fail(epoch, logs))
    for more in ([failing], []):
        fitted.reset()
        saving = ModelCheckpoint(directory)
        with contextlib.suppress(ZeroDivisionError):
            fitted(*more, make(), saving, epochs=2, validation=False, resume=directory)


def test_a_training_that_goes_on_has_one_run_of_wandb(fitted, monkeypatch, tmp_path):
    given = []

    def init(**options):
        given.append(options)
        return Run([], options.get("id", f"run {len(given)}"))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    resumed(fitted, tmp_path, WandB)
    assert given == [{}, {"id": "run 1", "resume": "allow"}]

    callback = WandB()
    for epochs, initial_epoch in ((1, 0), (2, 1), (1, 0)):
        fitted(callback, epochs=epochs, initial_epoch=initial_epoch)
    assert given[2:] == [{}, {"id": "run 3", "resume": "allow"}, {}]
    assert WandB(Run([], "mine")).get_state() == {}


@pytest.mark.parametrize("active", [None, "active"])
def test_a_training_that_goes_on_has_one_run_of_mlflow(fitted, mlflow, tmp_path, active):
    names = iter(["first", "second"])
    begin = mlflow.start_run
    mlflow.start_run = lambda **options: begin(**{"run_id": next(names), **options})
    mlflow.active = active
    resumed(fitted, tmp_path, MLflow)
    logged = [(step, run) for _, step, run in (call for call in mlflow.calls if not isinstance(call, str))]
    assert logged == [(epoch, active or "first") for epoch in (0, 1)]


@pytest.mark.parametrize("callback", [WandB, MLflow])
def test_without_the_library(fitted, monkeypatch, callback):
    name = callback.__name__.lower()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"{callback.__name__} needs the library {name}, .*\n.*pip install {name}"):
        fitted(callback())


def test_no_library_is_imported_before_it_is_used():
    code = "import elegy, sys; print({'tensorboardX', 'wandb', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
