"""What `fit`, `evaluate` and `predict` show on a terminal, in a notebook and elsewhere."""

import io
import sys
import types

import numpy as np
import pytest

import elegy
from elegy.callbacks import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    """A terminal knows escape sequences, whatever the one of the tests does."""
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def notebook(monkeypatch):
    """An output of the class that a kernel of Jupyter puts into the place of the standard output."""

    class OutStream(io.StringIO):
        pass

    module = types.ModuleType("ipykernel.iostream")
    module.OutStream = OutStream  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipykernel.iostream", module)
    return OutStream()


def frames(text):
    """What the last line of a notebook shows after each carriage return, and the lines that remain."""
    shown, lines = [], []
    for line in text.split("\n"):
        held = ""
        for part in line.split("\r"):
            held = part + held[len(part) :]
            shown.append(held.rstrip())
        lines.append(held.rstrip())
    return shown, lines


def batches(fitted):
    """As many as nobody knows."""

    def give():
        for start in (0, 4, 8):
            yield fitted.x[start : start + 4], fitted.y[start : start + 4]

    return give


def test_a_notebook_keeps_one_line_up_to_date(fitted, notebook, monkeypatch):
    monkeypatch.setattr(sys, "stdout", notebook)
    monkeypatch.setattr(progress.ProgressBar, "_SECONDS", 0)
    model, x, y = fitted.model, fitted.x[:12], fitted.y[:12]
    logs = model.fit(x, y, batch_size=4, epochs=2, verbose=1).history
    text = notebook.getvalue()
    shown, lines = frames(text)
    assert len(lines) == 3 and lines[-1] == "" and "\x1b" not in text
    assert [line[:11] for line in lines[:2]] == ["Epoch 1/2  ", "Epoch 2/2  "]
    assert f"loss: {logs['loss'][1]:.4g}" in lines[1]
    for epoch in (1, 2):
        parts = [line.split("  ") for line in shown if line.startswith(f"Epoch {epoch}/2")]
        assert [part[1] for part in parts if "/" in part[1]] == ["1/3", "2/3", "3/3"]
        assert all(part[2].startswith("loss: ") for part in parts if part[1] != "compiling")

    notebook.truncate(0)
    notebook.seek(0)
    model.evaluate(x, y, batch_size=4, verbose=1)
    shown, lines = frames(notebook.getvalue())
    assert {"Evaluate  1/3", "Evaluate  2/3", "Evaluate  3/3"} <= set(shown)
    assert len(lines) == 2 and lines[0].startswith("Evaluate  3/3  ") and " loss: " in lines[0]

    notebook.truncate(0)
    notebook.seek(0)
    model.fit(x, y, batch_size=4, verbose=2)
    assert "\r" not in notebook.getvalue() and notebook.getvalue().count("\n") == 1


@pytest.mark.parametrize("kind", ["terminal", "dumb terminal", "file"])
def test_what_is_not_known_is_not_shown(fitted, monkeypatch, kind):
    output = io.StringIO() if kind == "file" else Terminal()
    if kind == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(progress.ProgressBar, "_SECONDS", 0)
    model, give = fitted.model, batches(fitted)
    model.fit(give, max_steps=5, verbose=1)
    model.evaluate(give, verbose=1)
    model.predict(lambda: (x for x, _ in give()), verbose=1)
    text = output.getvalue()
    assert "None" not in text
    lines = [line.split("\r\x1b[K")[-1] for line in text.split("\n")][:4]
    assert [line.split("  ")[0] for line in lines] == ["Epoch 1", "Epoch 2", "Evaluate", "Predict"]
    assert [line.split("  ")[1] for line in lines[2:]] == ["3", "3"]
    if kind == "terminal":
        assert "Epoch 2  2  loss: " in text and "Evaluate  2\r" in text and "Predict  3\r" in text
        model.fit(fitted.x[:12], fitted.y[:12], batch_size=4, max_steps=model.steps + 3, verbose=1)
        assert "Epoch 1  2/3  loss: " in output.getvalue()
    else:
        assert "\r" not in text and "\x1b" not in text


def test_the_compilation_before_the_first_epoch_is_told(monkeypatch):
    """Which labels there may be is found out before it."""
    output = Terminal()
    monkeypatch.setattr(sys, "stdout", output)
    loss = elegy.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = np.ones([8, 2], np.float32), np.zeros(8, np.int32)
    bar = elegy.callbacks.ProgressBar()
    for _ in range(2):
        elegy.Model(elegy.nn.Linear(3), loss).fit(x, y, epochs=2, callbacks=[bar], verbose=0)
        shown = [part for line in output.getvalue().split("\n") for part in line.split("\r\x1b[K") if part]
        assert shown[:2] == ["Compiling", "Epoch 1/2  compiling"]
        assert [line for line in shown if line.startswith("Epoch 2/2")] == [shown[-1]]
        output.truncate(0)
        output.seek(0)


def test_a_progress_bar_given_to_evaluate_shows_no_epoch(fitted, monkeypatch):
    model = elegy.Model(fitted.model.module, loss=elegy.losses.MeanSquaredError())  # which has yet to be compiled
    monkeypatch.setattr(sys, "stdout", output := Terminal())
    assert model.evaluate(fitted.x, fitted.y, callbacks=[progress.ProgressBar()])["loss"] > 0
    assert "Epoch" not in output.getvalue()


def test_a_progress_bar_of_ones_own_stands_in_for_that_of_fit(fitted, capsys):
    fitted.model.fit(fitted.x, fitted.y, epochs=2, callbacks=[progress.ProgressBar()], verbose=1)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("kind", ["writes only", "none"])
def test_an_output_that_does_not_say_whether_it_is_a_terminal(fitted, monkeypatch, kind):
    written = []
    output = types.SimpleNamespace(write=written.append, flush=lambda: None) if kind == "writes only" else None
    monkeypatch.setattr(sys, "stdout", output)
    assert fitted.model.fit(fitted.x, fitted.y, verbose=1).epoch == [0]
    assert "".join(written).startswith("Epoch 1/1" if output else "")


def test_verbosity_as_in_keras(fitted, unchecked):
    with pytest.raises(ValueError, match=r"verbose must be 0 .*, got 'auto'\.\n  Write verbose=1"):
        fitted.model.fit(fitted.x, fitted.y, verbose="auto")
