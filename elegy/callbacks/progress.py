"""The progress that is shown: of `fit`, epoch by epoch, and of one pass over data."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator

from elegy.callbacks.callback import Callback, Logs, as_number
from elegy.callbacks.history import distinct
from elegy.checkpoints.store import is_writer


class EpochLines(Callback):
    """Prints one line for each epoch."""

    sees_module = False

    def on_epoch_begin(self, epoch: int) -> None:
        self._began = time.perf_counter()

    def on_epoch_resume(self, epoch: int) -> None:
        self.on_epoch_begin(epoch)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        print(self._line(epoch, f"{time.perf_counter() - self._began:.1f}s", logs), flush=True)

    def _line(self, epoch: int, position: str, logs: Logs) -> str:
        return f"Epoch {_of(epoch + 1, self.params['epochs'])}  {position}{_shown(logs)}"


def _of(number: int, all_of_them: int | None) -> str:
    return str(number) if all_of_them is None else f"{number}/{all_of_them}"


def _shown(logs: Logs) -> str:
    return "".join(f"  {name}: {as_number(name, value):.4g}" for name, value in distinct(logs).items())


class ProgressBar(EpochLines):
    """Keeps one line of a terminal or a notebook up to date during each epoch, at most ten times a second, and leaves
    one line for each. Where the output is something else, such as a file or a terminal with `TERM=dumb`, there is only
    the latter. It is what `fit(verbose=1)` shows.

    ```python
    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    model.fit(x, 2 * x, epochs=2, callbacks=[elegy.callbacks.ProgressBar()], verbose=0)
    ```
    """

    _SECONDS = 0.1
    _width = 0  # of the line that is shown now
    _epoch: int | None = None  # that runs

    def on_epoch_begin(self, epoch: int) -> None:
        super().on_epoch_begin(epoch)
        self._epoch = epoch
        self._shown = self._began

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if time.perf_counter() - self._shown >= self._SECONDS:
            self._show(self._of_epoch(_of(batch + 1, self.params["steps"]), logs))
            self._shown = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._show("")
        super().on_epoch_end(epoch, logs)

    def compiling(self) -> None:
        """While a step is traced and compiled, which happens before the first batch of each shape."""
        self._show(self._of_epoch("compiling", {}))

    def close(self) -> None:
        self._show("")
        self._epoch = None

    def _of_epoch(self, position: str, logs: Logs) -> str:
        return position.capitalize() if self._epoch is None else self._line(self._epoch, position, logs)

    def _show(self, line: str) -> None:
        if _is_live():
            self._width = _show(line, self._width)


def _is_live() -> bool:
    """Whether a line of the output can be kept up to date."""
    # What stands in the place of the standard output may have `write` only, and a program without a console has none.
    is_terminal = bool(getattr(sys.stdout, "isatty", bool)())
    return _is_notebook() or (is_terminal and os.environ.get("TERM") != "dumb")  # which knows no escape sequences


def _is_notebook() -> bool:
    """Whether the output goes to a notebook: then it is of this class, which is no terminal."""
    stream = getattr(sys.modules.get("ipykernel.iostream"), "OutStream", None)
    return stream is not None and isinstance(sys.stdout, stream)


def _show(line: str, width: int) -> int:
    """Puts a line in the place of the one that is shown, which has a width. **Returns:** that of the new line."""
    if _is_notebook():
        # Not all that show notebooks know escape sequences: spaces overwrite what was longer.
        if line or width:
            sys.stdout.write("\r" + line.ljust(width) + "\r" * (not line))
    else:
        columns = shutil.get_terminal_size().columns - 1
        # Carriage return, and the escape sequence that clears the line.
        sys.stdout.write("\r\x1b[K" + line[:columns])
    sys.stdout.flush()
    return len(line)


class PassLine:
    """One line for one pass over data, kept up to date on a terminal or in a notebook: what `evaluate` and `predict`
    show."""

    def __init__(self, name: str, steps: int | None, verbose: int):
        self._name = name
        self._steps = steps
        # Where JAX runs in several processes, the first one tells of it.
        self._silent = _verbosity(verbose) == 0 or not is_writer()
        self._live = verbose == 1 and not self._silent and _is_live()
        self._width = self._done = 0
        self._began = self._last = time.perf_counter()

    def compiling(self) -> None:
        if self._live:
            self._show(f"{self._name}  compiling")

    def done(self, batches: int) -> None:
        """After each batch: a look at the clock."""
        self._done = batches
        if self._live and time.perf_counter() - self._last >= ProgressBar._SECONDS:
            self._show(f"{self._name}  {_of(batches, self._steps)}")
            self._last = time.perf_counter()

    def callbacks(self) -> list[Callback]:
        """What keeps the line up to date during an evaluation, and counts batches where nobody knows how many."""
        return [_OfBatches(self)] if self._live or (self._steps is None and not self._silent) else []

    @contextlib.contextmanager
    def shown(self) -> Iterator[dict[str, float]]:
        """Shows, at the end, what is put into the dict; after an exception it clears the line."""
        logs: dict[str, float] = {}
        try:
            yield logs
        finally:
            if self._live:
                self._show("")
        if not self._silent:
            count = self._done if self._steps is None else self._steps
            seconds = f"{time.perf_counter() - self._began:.1f}s"
            print(f"{self._name}  {_of(count, self._steps)}  {seconds}{_shown(logs)}")

    def _show(self, line: str) -> None:
        self._width = _show(line, self._width)


class _OfBatches(ProgressBar):
    """Tells a line how far an evaluation is."""

    def __init__(self, line: PassLine):
        self._line_of_pass = line

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        self._line_of_pass.done(batch + 1)

    def compiling(self) -> None:
        self._line_of_pass.compiling()

    def close(self) -> None:
        pass


def progress(verbose: int) -> list[Callback]:
    """What shows the progress: nothing for 0; for 1 a line that is kept up to date, on a terminal or in a notebook;
    else lines."""
    if _verbosity(verbose) == 0:
        return []
    return [ProgressBar()] if verbose == 1 and _is_live() else [EpochLines()]


def _verbosity(verbose: int) -> int:
    if verbose not in (0, 1, 2):
        hint = "\n  Write verbose=1, which fits itself to the output." if verbose == "auto" else ""
        text = f"verbose must be 0 (silent), 1 (progress) or 2 (a line for each epoch), got {verbose!r}."
        raise ValueError(f"{text}{hint}")
    return int(verbose)
