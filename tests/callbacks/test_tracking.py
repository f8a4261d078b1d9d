"""`WandB` and `MLflow`, with stubs of these libraries."""

import subprocess
import sys
import types

import pytest

from elegy.callbacks import LambdaCallback, MLflow, WandB


class Run:
    def __init__(self, calls):
        self.calls = calls

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
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda: Run(calls)))
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

        def start_run(self):
            self.calls.append("start")
            self.active = "new"

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
    def fail(epoch, logs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fitted(MLflow(), LambdaCallback(on_epoch_begin=lambda epoch: fail(epoch, {})))
    assert mlflow.calls == ["start", "end"]


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
