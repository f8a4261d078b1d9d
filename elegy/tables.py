"""`Summary`: rows that say what modules return, hold and multiply, and how they are shown."""

from __future__ import annotations

import dataclasses
import html
import shutil
import sys
import typing as tp
from collections.abc import Callable, Iterator, Sequence

import wadler_lindig as wl

from elegy.leaves import is_array
from elegy.rendering import in_bytes


class Row(tp.NamedTuple):
    """A module in a summary. Its numbers do not include those of the modules below it, which have rows of their own.

    - `path`: beginning with the name of the outermost module.
    - `cls`: the class.
    - `method`: the method that ran, `"call"` unless it is one marked by `elegy.compact`.
    - `level`: how many modules were running around it.
    - `output`: what it returned at first, with `jax.ShapeDtypeStruct`s as arrays; None if it did not run. Under a map
      it is that of one lane.
    - `runs`: how many times it ran at this path; 0 for a module that holds arrays and did not run.
    - `trainable`, `frozen`, `state`: the number of elements of its arrays, by kind.
    - `bytes`: of all its arrays.
    - `multiply_adds`: the multiplications in matrix products and convolutions, in all its runs.
    - `may_run_more`, `may_multiply_more`: whether it does in a loop of unknown length, of which one round was counted.
    - `same_as`: the path of the row that has the arrays, if the module has run at another path, or by another method,
      before. Then none are counted here.
    - `is_shared`: whether two paths lead to the module.
    - `is_part`: whether the module is that of the summary, or below it. The arrays of others are not counted; one that
      a transform of JAX got as an argument is among these, since it is a copy.
    """

    path: str
    cls: type
    method: str
    level: int
    output: tp.Any
    runs: int
    trainable: int = 0
    frozen: int = 0
    state: int = 0
    bytes: int = 0
    multiply_adds: int = 0
    may_run_more: bool = False
    may_multiply_more: bool = False
    same_as: str | None = None
    is_shared: bool = False
    is_part: bool = True

    @property
    def notes(self) -> str:
        """What is special, in words."""
        notes: list[str] = []
        if self.same_as is not None:
            notes.append("counted above" if self.same_as == self.path else f"same as {self.same_as}")
        elif self.is_shared:
            notes.append("shared")
        if not self.is_part:
            notes.append("arrays not counted")
        if not self.runs:
            notes.append("did not run")
        elif self.may_run_more:
            notes.append(f"{self.runs} or more runs")
        elif self.runs > 1:
            notes.append(f"{self.runs} runs")
        return ", ".join(notes)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The modules that run in a call, what they return, hold and multiply. `elegy.summary` makes it.

    `print(summary)` shows a plain table that fits the terminal; `show` and `rich.print` a drawn one where Rich is
    installed; a notebook shows one in HTML.

    **Attributes:**

    - `rows`: a `Row` for each module, in the order in which they began to run. Each array is counted in one row.
    """

    rows: tuple[Row, ...]

    @property
    def trainable(self) -> int:
        """The number of trainable elements."""
        return sum(row.trainable for row in self.rows)

    @property
    def frozen(self) -> int:
        """The number of elements that are frozen."""
        return sum(row.frozen for row in self.rows)

    @property
    def state(self) -> int:
        """The number of elements of state: running statistics, caches, keys."""
        return sum(row.state for row in self.rows)

    @property
    def bytes(self) -> int:
        """The bytes of all arrays."""
        return sum(row.bytes for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """The multiplications in matrix products and convolutions, each of which comes with an addition."""
        return sum(row.multiply_adds for row in self.rows)

    def at_depth(self, depth: int) -> Summary:
        """A shorter summary, in which modules at a lower level are counted in those around them.

        **Arguments:**

        - `depth`: the lowest level that is shown; that of the outermost module is 0.
        """
        rows: list[Row] = []
        for row in self.rows:
            if row.level <= depth or not rows:
                rows.append(row)
                continue
            into = rows[-1]
            sums = {name: getattr(into, name) + getattr(row, name) for name in _SUMMED}
            may_multiply_more = into.may_multiply_more or row.may_multiply_more
            rows[-1] = into._replace(**sums, may_multiply_more=may_multiply_more)
        return Summary(tuple(rows))

    def show(self) -> None:
        """Prints the summary: by Rich if that is installed and the output is a terminal, else as plain text."""
        if sys.stdout.isatty():
            try:
                import rich
            except ImportError:
                pass
            else:
                rich.print(self)
                return
        print(self)

    def __str__(self) -> str:
        return self.text(shutil.get_terminal_size().columns)

    __repr__ = __str__

    def text(self, width: int) -> str:
        """The table as plain text, with columns of words cut so that lines have no more than `width` characters if the
        numbers leave room for it."""
        table, words = self._table()
        gap = "  "
        lines = [gap.join(line).rstrip() for line in _fitted(table, words, width - len(gap) * (len(table[0]) - 1))]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, self._total()])

    def _table(self) -> tuple[list[list[str]], int]:
        """The cells of the title and of each row, and how many columns there are of words, which come before those of
        numbers. Columns in which there would be nothing are left out."""
        columns: dict[str, Callable[[Row, str], str]] = {
            "Module": lambda row, name: "  " * row.level + name + (row.method != "call") * f".{row.method}",
            "Class": lambda row, _: row.cls.__name__,
            "Output": lambda row, _: _shown(row.output) if row.runs else "",
            "Notes": lambda row, _: row.notes,
        }
        if not any(row.notes for row in self.rows):
            del columns["Notes"]
        words = len(columns)
        for title in ("Trainable", "Frozen", "State"):
            field = title.lower()
            if title == "Trainable" or any(getattr(row, field) for row in self.rows):
                columns[title] = lambda row, _, field=field: _number(getattr(row, field))
        columns["Bytes"] = lambda row, _: in_bytes(row.bytes) if row.bytes else "-"
        columns["Multiply-adds"] = lambda row, _: _at_least(row.may_multiply_more) + _number(row.multiply_adds)
        cells = [[cell(row, name) for cell in columns.values()] for row, name in _named(self.rows)]
        return [[*columns], *cells], words

    def _total(self) -> str:
        kinds = {"trainable": self.trainable, "frozen": self.frozen, "state": self.state}
        arrays = ", ".join(f"{size:,} {kind}" for kind, size in kinds.items() if size)
        held = f"{arrays} ({in_bytes(self.bytes)})" if arrays else "no parameters"
        is_open = any(row.may_multiply_more for row in self.rows)
        return f"Total: {held}; {_at_least(is_open)}{self.multiply_adds:,} multiply-adds"

    def _repr_html_(self) -> str:
        (titles, *rows), words = self._table()
        head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
        body = "".join(
            f"<tr>{''.join(_html_cell(cell, column < words) for column, cell in enumerate(row))}</tr>" for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table><p>{html.escape(self._total())}</p>"

    def __rich_console__(self, console: tp.Any, options: tp.Any) -> Iterator[tp.Any]:
        from rich import table as tables, text as texts

        cells, words = self._table()
        columns = len(cells[0])
        titles, *rows = _fitted(cells, words, options.max_width - 3 * columns - 1)
        table = tables.Table(caption=self._total(), caption_justify="left")
        for title in titles:
            table.add_column(texts.Text(title), no_wrap=True)
        for row in rows:
            table.add_row(*map(texts.Text, row))
        yield table


_SUMMED = ("trainable", "frozen", "state", "bytes", "multiply_adds")
_LEAST_WIDTH = 6  # of a column of words


def _named(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """The rows, each with its path below the row that it belongs to."""
    above: list[str] = []
    for row in rows:
        del above[row.level :]
        yield row, row.path.removeprefix(f"{above[-1]}/") if above else row.path
        above.append(row.path)


def _fitted(table: Sequence[Sequence[str]], words: int, room: int) -> list[list[str]]:
    """The cells of each column with one width. Those of words are cut until all have room, the widest first, but the
    names, which come first, may be twice as wide as the others."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    while sum(widths) > room:
        widest = max(range(words), key=lambda column: widths[column] / (2 if column == 0 else 1))
        if widths[widest] <= _LEAST_WIDTH:
            break
        widths[widest] -= 1
    return [
        [
            cell.rjust(width) if column >= words else _cut(cell, width).ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in table
    ]


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def _html_cell(cell: str, is_words: bool) -> str:
    align, text = "left" if is_words else "right", html.escape(cell)
    indent = len(cell) - len(cell.lstrip())
    return f'<td style="text-align: {align}">{"&nbsp;" * indent}{text.lstrip()}</td>'


def _number(number: int) -> str:
    if number == 0:
        return "-"
    if number < 1_000_000:
        return f"{number:,}"
    units = ["M", "G", "T", "P"]
    scaled = number / 1e6
    while scaled >= 1000 and len(units) > 1:
        scaled /= 1000
        del units[0]
    return f"{scaled:.4g} {units[0]}"


def _at_least(is_open: bool) -> str:
    return ">=" if is_open else ""


def _shown(output: tp.Any) -> str:
    """What a module returned, on one line: `(f32[4,3], i32[4])`."""
    return wl.pformat(output, width=sys.maxsize, custom=_short)


def _short(value: tp.Any) -> wl.AbstractDoc | None:
    return wl.array_summary(tuple(value.shape), value.dtype.name, None) if is_array(value) else None
