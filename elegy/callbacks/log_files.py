"""`CSVLogger` and `JSONLogger`: the logs of each epoch as a line of a file."""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
import typing as tp
from collections.abc import Mapping

from elegy.callbacks.callback import Callback, Logs


class LogFile(Callback):
    """A file of lines, which is complete after each epoch."""

    writes = True

    def __init__(self, path: str | os.PathLike[str], append: bool = False):
        self.path = pathlib.Path(path)
        self.append = append
        self._file: tp.TextIO | None = None
        self._position: int | None = None

    def on_train_begin(self) -> None:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        going_on = self._goes_on() and self._position is not None
        file = open(self.path, "a" if self.append or going_on else "w", encoding="utf-8", newline="")
        self._file = file
        if going_on:
            # What was written after the state was taken belongs to epochs that are now made again.
            file.truncate(file.seek(min(self._position or 0, file.tell())))
        self._position = file.tell()  # a checkpoint within the first epoch goes on from here

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        assert self._file is not None
        self._write(self._file, {"epoch": epoch, **{name: float(value) for name, value in logs.items()}})
        self._file.flush()
        self._position = self._file.tell()

    def _write(self, file: tp.TextIO, row: dict[str, tp.Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get_state(self) -> dict[str, tp.Any]:
        return {"position": self._position}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        self._position = state["position"]


class CSVLogger(LogFile):
    """Writes the logs of each epoch as a row of a CSV file. The columns are `epoch`, counted from 0, and the names of
    the logs of the first epoch. An epoch that leaves the validation out has `nan` in the columns of validation.

    **Arguments:**

    - `path`: the file. Folders that are missing are made.
    - `append`: whether to add rows to a file that is there already, which must have the same columns; else each
      `fit` writes the file anew. After `set_state` a `fit` with `initial_epoch=` goes on where that state was taken,
      and drops the rows that came after it.

    **Raises:** `ValueError` at the end of an epoch whose logs have other names than the file has columns.

    ```python
    import csv

    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    history = model.fit(x, 2 * x, epochs=2, callbacks=[elegy.callbacks.CSVLogger("logs.csv")], verbose=0)
    with open("logs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history.history["loss"]
    ```
    """

    def on_train_begin(self) -> None:
        super().on_train_begin()
        with open(self.path, encoding="utf-8", newline="") as file:
            self._columns = next(csv.reader(file), None)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if getattr(logs, "lacks_validation", False):  # its columns are there all the same
            names = [f"val_{name}" for name in getattr(logs, "of_model", logs) if name != "learning_rate"]
            logs = {**dict.fromkeys(names, math.nan), **logs}
        super().on_epoch_end(epoch, logs)

    def _write(self, file: tp.TextIO, row: dict[str, tp.Any]) -> None:
        if self._columns is None:
            self._columns = list(row)
            csv.writer(file).writerow(row)
        if set(self._columns) != set(row):
            raise ValueError(
                f"CSVLogger: {self.path} has the columns {', '.join(self._columns)}, and this epoch has "
                f"{', '.join(row)}.\n  Write to another file, or use elegy.callbacks.JSONLogger, which takes any names."
            )
        csv.writer(file).writerow([row[name] for name in self._columns])


class JSONLogger(LogFile):
    """Writes the logs of each epoch as a JSON object on a line of its own: `{"epoch": 0, "loss": 0.5}`. What is not
    finite is `null`, since JSON has no such numbers.

    **Arguments:**

    - `path`: the file. Folders that are missing are made.
    - `append`: whether to add lines to a file that is there already; else each `fit` writes the file anew. After
      `set_state` a `fit` with `initial_epoch=` goes on where that state was taken, and drops the lines that came after
      it.

    ```python
    import json

    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    history = model.fit(x, 2 * x, epochs=2, callbacks=[elegy.callbacks.JSONLogger("logs.jsonl")], verbose=0)
    with open("logs.jsonl") as file:
        assert [json.loads(line)["loss"] for line in file] == history.history["loss"]
    ```
    """

    def _write(self, file: tp.TextIO, row: dict[str, tp.Any]) -> None:
        file.write(json.dumps(finite_or_none(row)) + "\n")


def finite_or_none(row: Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """A row as JSON has it."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}
