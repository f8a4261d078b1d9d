"""`CSVLogger` and `JSONLogger`: the logs of each epoch as a line of a file."""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
import shutil
import typing as tp
from collections.abc import Mapping

from elegy.callbacks.callback import Callback, Logs, as_number


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
        file = open(self.path, "a" if self._keeps() else "w", encoding="utf-8", newline="")
        self._file = file
        if self._is_rest():
            # What was written after the state was taken belongs to epochs that are now made again.
            file.truncate(file.seek(min(self._position or 0, file.tell())))
        elif self.append and not _ends_its_last_line(self.path):
            file.write("\n")
        self._position = file.tell()  # a checkpoint within the first epoch goes on from here

    def _is_rest(self) -> bool:
        """Whether the training that begins is the rest of one that has written the file."""
        return self._goes_on() and self._position is not None

    def _keeps(self) -> bool:
        """Whether something of the file that is there stays in it."""
        return self.append or self._is_rest()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._write({"epoch": epoch, **{name: as_number(name, value) for name, value in logs.items()}})
        self._opened.flush()
        self._position = self._opened.tell()

    @property
    def _opened(self) -> tp.TextIO:
        assert self._file is not None
        return self._file

    def _write(self, row: dict[str, tp.Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get_state(self) -> dict[str, tp.Any]:
        return {"position": self._position}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        self._position = state["position"]

    def _identity(self) -> str:
        return str(self.path)


def _ends_its_last_line(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        return size == 0 or (file.seek(size - 1), file.read())[1] == b"\n"


class CSVLogger(LogFile):
    """Writes the logs of each epoch as a row of a CSV file. The columns are `epoch`, counted from 0, and the names of
    the logs. When a name comes up that has no column yet, such as those of validation data with `validation_freq=2`,
    the file is written anew with one more; a row that has no value in a column has `nan` there.

    **Arguments:**

    - `path`: the file. Folders that are missing are made.
    - `separator`: the character between two columns.
    - `append`: whether to add rows to a file that is there already; else each `fit` writes the file anew. After
      `set_state` a `fit` with `initial_epoch=` goes on where that state was taken, and drops the rows that came after
      it.

    **Raises:** `ValueError` if `separator` is not one character; and when training begins, if the file to append to has
    no column `epoch`.

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

    def __init__(self, path: str | os.PathLike[str], separator: str = ",", append: bool = False):
        if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n':
            hint = f"\n  Write append={separator}." if isinstance(separator, bool) else ""
            raise ValueError(f"CSVLogger: separator must be one character, such as ';', got {separator!r}.{hint}")
        super().__init__(path, append)
        self.separator = separator
        self._columns: list[str] = []  # none before the first row
        self._rows = 0

    def on_train_begin(self) -> None:
        columns, rows = self._read() if self._keeps() and self.path.exists() else ([], [])
        if columns and "epoch" not in columns and not self._is_rest():
            raise ValueError(
                f"CSVLogger: {self.path} is to be appended to, and has no column epoch, but {columns}.\n"
                "  Write to another file, or give the separator that it has: separator=';'."
            )
        before = len(self._columns)
        if self._is_rest() and 0 < before < len(columns) and columns[:before] == self._columns:
            # Columns that came up after the state was taken do so again.
            self._write_anew(self._columns, rows[: self._rows])
            self._position = self.path.stat().st_size
        super().on_train_begin()
        self._columns, rows = self._read()
        self._rows = len(rows)

    def _read(self) -> tuple[list[str], list[dict[str, tp.Any]]]:
        """The columns and the rows of the file."""
        with open(self.path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="nan", delimiter=self.separator)
            return [*(reader.fieldnames or ())], [*reader]

    def _write(self, row: dict[str, tp.Any]) -> None:
        columns = list(dict.fromkeys([*self._columns, *row]))
        if not self._columns:
            self._writer(self._opened, columns).writeheader()
        elif columns != self._columns:
            self._write_anew(columns, self._read()[1])
        self._columns = columns
        self._writer(self._opened, columns).writerow(row)
        self._rows += 1

    def _writer(self, file: tp.TextIO, columns: list[str]) -> csv.DictWriter[str]:
        return csv.DictWriter(file, columns, restval="nan", extrasaction="ignore", delimiter=self.separator)

    def _write_anew(self, columns: list[str], rows: list[dict[str, tp.Any]]) -> None:
        """The file is the one that was there until it is the new one, whatever happens meanwhile."""
        path = os.path.realpath(self.path)
        with open(f"{path}.new", "w", encoding="utf-8", newline="") as file:
            writer = self._writer(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        shutil.copymode(path, file.name)
        is_open = self._file is not None
        self.close()
        os.replace(file.name, path)
        if is_open:
            self._file = open(path, "a", encoding="utf-8", newline="")

    def get_state(self) -> dict[str, tp.Any]:
        return {**super().get_state(), "columns": [*self._columns], "rows": self._rows}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        super().set_state(state)
        self._columns, self._rows = [*state.get("columns", ())], state.get("rows", 0)


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

    def _write(self, row: dict[str, tp.Any]) -> None:
        self._opened.write(json.dumps(finite_or_none(row)) + "\n")


def finite_or_none(row: Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """A row as JSON has it."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}
