"""What happens beside training: the base class of callbacks, the history, the progress that is shown."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import typing as tp
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

if tp.TYPE_CHECKING:
    from elegy.model.model import Model

# From names to floats. Not said in the type, lest a type checker look into them and wait for the device.
Logs = Mapping


class Callback:
    """Base class of callbacks: override what is wanted. `self.model` is the model that trains.

    A callback may change the parameters of the module, freeze parts of it, or set `self.model.stop_training`; training
    goes on with what it finds.

    ```python
    import elegy
    import numpy as np
    import optax


    class StopBelow(elegy.model.Callback):
        def __init__(self, loss):
            self.loss = loss

        def on_epoch_end(self, epoch, logs):
            if logs["loss"] < self.loss:
                self.model.stop_training = True


    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    history = model.fit(x, 2 * x, epochs=1000, callbacks=[StopBelow(0.1)], verbose=0)
    assert history.history["loss"][-1] < 0.1
    ```
    """

    model: Model
    params: Mapping[str, tp.Any]
    # Whether the batch hooks may look at the module: it is then brought up to date before each of them, which takes
    # time.
    sees_module = True

    def on_train_begin(self) -> None:
        """Before the first epoch. `self.params` has `epochs`, `batch_size`, `steps` (per epoch) and `samples`."""

    def on_train_end(self) -> None:
        """After the last epoch; not after an exception."""

    def on_epoch_begin(self, epoch: int) -> None:
        """**Arguments:** `epoch`, counted from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """**Arguments:** `epoch`, counted from 0, and `logs`, its means; those of validation data begin with `val_`."""

    def on_train_batch_begin(self, batch: int) -> None:
        """**Arguments:** `batch`, counted from 0 in each epoch."""

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """**Arguments:** `batch`, counted from 0 in each epoch, and `logs`, the means of the epoch so far.

        Reading a value of `logs` blocks until it is computed.
        """


class LazyLogs(Mapping[str, float]):
    """Logs that are read from the device when someone looks into them."""

    def __init__(self, read: Callable[[], dict[str, float]]):
        self._read = read
        self._values: dict[str, float] | None = None

    @property
    def _now(self) -> dict[str, float]:
        if self._values is None:
            self._values = self._read()
        return self._values

    def __getitem__(self, name: str) -> float:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def __repr__(self) -> str:
        return repr(self._now)


_MOST_ROWS = 20  # epochs of a history that are printed


def _distinct(values: Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """What is to be shown: without the only loss where it is the total, which says the same under `loss`."""
    shown = dict(values)
    for total in ("loss", "val_loss"):
        of_validation = total.startswith("val_")
        losses = [
            name
            for name in values
            if name != total and "loss" in name.partition("/")[0] and name.startswith("val_") == of_validation
        ]
        if total in values and len(losses) == 1 and np.array_equal(values[total], values[losses[0]], equal_nan=True):
            del shown[losses[0]]
    return shown


class History(Callback):
    """The logs of all epochs: what `Model.fit` returns.

    **Attributes:**

    - `history`: a list of floats for each name. Where an epoch has no such value, its list has `nan`.
    - `epoch`: the numbers of the epochs, counted from 0.

    ```python
    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    history = model.fit(x, 2 * x, epochs=3, verbose=0)
    assert history.epoch == [0, 1, 2]
    assert len(history.history["loss"]) == 3
    ```
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def __repr__(self) -> str:
        """The first and the last value of each name, on one line."""
        if not self.epoch:
            return "History(no epochs)"
        ends = [f"{name} {values[0]:.4g} -> {values[-1]:.4g}" for name, values in _distinct(self.history).items()]
        return f"History({len(self.epoch)} epoch{'s' * (len(self.epoch) > 1)}: {', '.join(ends)})"

    def __str__(self) -> str:
        """A table with a row for each epoch, or for the first and the last ones if there are many."""
        if not self.epoch:
            return repr(self)
        columns = {"epoch": [str(epoch + 1) for epoch in self.epoch]}
        for name, values in _distinct(self.history).items():
            columns[name] = [f"{value:.4g}" for value in values]
        if len(self.epoch) > _MOST_ROWS:
            for name, cells in columns.items():
                columns[name] = [*cells[: _MOST_ROWS // 2], "...", *cells[-_MOST_ROWS // 2 :]]
        widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths.values())) for row in rows)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        for name in {**self.history, **logs}:
            before = [float("nan")] * len(self.epoch)
            self.history.setdefault(name, before).append(float(logs.get(name, float("nan"))))
        self.epoch.append(epoch)


class EpochLines(Callback):
    """Prints one line for each epoch."""

    def on_epoch_begin(self, epoch: int) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        print(self._line(epoch, f"{time.perf_counter() - self._began:.1f}s", logs), flush=True)

    def _line(self, epoch: int, position: str, logs: Logs) -> str:
        return f"Epoch {epoch + 1}/{self.params['epochs']}  {position}{_shown(logs)}"


def _shown(logs: Logs) -> str:
    return "".join(f"  {name}: {value:.4g}" for name, value in _distinct(logs).items())


class ProgressLine(EpochLines):
    """Keeps one line of a terminal up to date during each epoch, at most ten times a second."""

    sees_module = False
    _SECONDS = 0.1

    def on_epoch_begin(self, epoch: int) -> None:
        super().on_epoch_begin(epoch)
        self._epoch = epoch
        self._shown = self._began

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if time.perf_counter() - self._shown >= self._SECONDS:
            self._show(self._line(self._epoch, f"{batch + 1}/{self.params['steps']}", logs))
            self._shown = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.close()
        super().on_epoch_end(epoch, logs)

    def compiling(self) -> None:
        """While a step is traced and compiled, which happens before the first batch of each shape."""
        self._show(self._line(self._epoch, "compiling", {}))

    def close(self) -> None:
        self._show("")

    def _show(self, line: str) -> None:
        _show(line)


def _show(line: str) -> None:
    """Puts a line in the place of the one that the terminal shows."""
    columns = shutil.get_terminal_size().columns - 1
    # Carriage return, and the escape sequence that clears the line.
    sys.stdout.write("\r\x1b[K" + line[:columns])
    sys.stdout.flush()


class PassLine:
    """One line for one pass over data, kept up to date on a terminal: what `evaluate` and `predict` show."""

    def __init__(self, name: str, steps: int, verbose: int):
        self._name = name
        self._steps = steps
        self._silent = _verbosity(verbose) == 0
        self._live = verbose == 1 and sys.stdout.isatty()
        self._began = self._last = time.perf_counter()

    def compiling(self) -> None:
        if self._live:
            _show(f"{self._name}  compiling")

    def over(self, batches: Iterable[tp.Any]) -> Iterator[tp.Any]:
        """The batches, with a look at the clock after each."""
        for number, batch in enumerate(batches):
            yield batch
            if self._live and time.perf_counter() - self._last >= ProgressLine._SECONDS:
                _show(f"{self._name}  {number + 1}/{self._steps}")
                self._last = time.perf_counter()

    @contextlib.contextmanager
    def shown(self) -> Iterator[dict[str, float]]:
        """Shows, at the end, what is put into the dict; after an exception it clears the line."""
        logs: dict[str, float] = {}
        try:
            yield logs
        finally:
            if self._live:
                _show("")
        if not self._silent:
            print(f"{self._name}  {self._steps}/{self._steps}  {time.perf_counter() - self._began:.1f}s{_shown(logs)}")


def progress(verbose: int) -> list[Callback]:
    """What shows the progress: nothing for 0; for 1 a line that is kept up to date, on a terminal; else lines."""
    if _verbosity(verbose) == 0:
        return []
    return [ProgressLine()] if verbose == 1 and sys.stdout.isatty() else [EpochLines()]


def _verbosity(verbose: int) -> int:
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose must be 0 (silent), 1 (progress) or 2 (a line for each epoch), got {verbose!r}.")
    return int(verbose)


class Callbacks:
    """All callbacks of one call of `fit`, called in turn."""

    def __init__(self, callbacks: Iterable[tp.Any], model: tp.Any, params: Mapping[str, tp.Any]):
        self._all = list(callbacks)
        self._model = model
        for callback in self._all:
            if not isinstance(callback, Callback):
                hint = " Construct it." if isinstance(callback, type) else ""
                raise TypeError(f"callbacks must be instances of elegy.model.Callback, got {callback!r}.{hint}")
            # A model keeps its history: a way back would make a cycle, which only the garbage collector frees.
            if not isinstance(callback, History):
                callback.model = model
            callback.params = params
        hooks = ("on_train_batch_begin", "on_train_batch_end")
        # Callbacks without batch hooks cost nothing in the inner loop.
        self.of_batches = [c for c in self._all if any(getattr(type(c), h) is not getattr(Callback, h) for h in hooks)]
        self.see_module = any(callback.sees_module for callback in self.of_batches)

    def train_begin(self) -> None:
        for callback in self._all:
            callback.on_train_begin()

    def train_end(self) -> None:
        for callback in self._all:
            callback.on_train_end()

    def epoch_begin(self, epoch: int) -> None:
        for callback in self._all:
            callback.on_epoch_begin(epoch)

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        for callback in self._all:
            callback.on_epoch_end(epoch, logs)

    def batch_begin(self, batch: int) -> None:
        for callback in self.of_batches:
            callback.on_train_batch_begin(batch)

    def batch_end(self, batch: int, logs: Logs) -> None:
        for callback in self.of_batches:
            callback.on_train_batch_end(batch, logs)

    def compiling(self) -> None:
        for callback in self._all:
            if isinstance(callback, ProgressLine):
                callback.compiling()

    def close(self) -> None:
        """After the last epoch, or an exception: the terminal shows no line that was to be replaced."""
        for callback in self._all:
            if isinstance(callback, ProgressLine):
                callback.close()

    def stop(self) -> bool:
        """Whether one of them has set `stop_training`."""
        return self._model.stop_training
