"""`elegy.summary`: a table of the modules that run in a call, made without running it."""

from __future__ import annotations

import collections
import dataclasses
import html
import shutil
import sys
import typing as tp
from collections.abc import Callable, Iterator, Sequence

import jax
import wadler_lindig as wl

from elegy.draws import rng_context
from elegy.frames import Frame, name_of, paths_below
from elegy.layout import children, slots, walk
from elegy.leaves import Node, is_array, is_node
from elegy.module import Module
from elegy.operations import Tallies, Tally, count, marked
from elegy.rendering import in_bytes
from elegy.state import state, watching
from elegy.tracebacks import shorten


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
    - `is_part`: whether the module is that of the summary, or below it. The arrays of others are not counted; among these
      is a module that a transform of JAX got as an argument, since it makes a copy.
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

    `print(summary)` shows a plain table that fits the terminal; `show` and `rich.print` one in colours where Rich is
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
    """The cells of each column with one width; the longest of the columns of words are cut until all have room."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    while sum(widths) > room:
        widest = max(range(words), key=lambda column: widths[column])
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
    return cell if len(cell) <= width else f"{cell[: width - 3]}..."


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


# ---------------------------------------------------------------------------------------------------------------------
# Making one
# ---------------------------------------------------------------------------------------------------------------------


def summary(module: Module, /, *args: tp.Any, **kwargs: tp.Any) -> Summary:
    """The modules that run in `module(*args, **kwargs)`: what they return, hold and multiply.

    The call is traced and thrown away. Nothing of it is computed, and nothing changes: neither the module, which is
    not initialised if it was not before, nor the random stream, nor what a `hooks_context` collects. Initial values
    are not computed either, so a model that would not fit in memory can be summarised.

    **Arguments:**

    - `module`: initialised or not.
    - `args`, `kwargs`: what it takes. Arrays may be given as `jax.ShapeDtypeStruct`s.

    **Returns:** a `Summary`, to print or to read.

    Multiply–adds are those of matrix products and convolutions: half of what is often called FLOPs. A padded zero
    counts as an input. Steps of a scan, as in `elegy.nn.Stack` and the recurrent layers, are all counted; of a loop
    whose length is not known one round is, and the number has `>=` before it. Of several branches the most expensive
    one counts.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    mlp = elegy.nn.Sequential(lambda: [elegy.nn.Linear(64), jax.nn.relu, elegy.nn.Linear(10)])
    summary = elegy.summary(mlp, jax.ShapeDtypeStruct([32, 784], jnp.float32))
    assert [row.path for row in summary.rows] == ["sequential", "sequential/layers/0", "sequential/layers/2"]
    assert summary.trainable == 784 * 64 + 64 + 64 * 10 + 10
    assert summary.multiply_adds == 32 * (784 * 64 + 64 * 10)
    assert not mlp.initialized
    print(summary)
    ```
    """
    if not isinstance(module, Module):
        hint = "Construct it." if isinstance(module, type) else "Make one of a function by elegy.to_module(f)()."
        raise TypeError(f"elegy.summary takes a module, got {module!r}.\n  {hint}")
    leaves, treedef = jax.tree.flatten((module, args, kwargs), is_leaf=is_node)
    arrays = [jax.tree.leaves(leaf) if is_node(leaf) else [leaf] if is_array(leaf) else [] for leaf in leaves]
    watch = _Watch()

    def run(key: jax.Array, arrays: list[tp.Any]) -> None:
        copies = [_copied(leaf, given) for leaf, given in zip(leaves, arrays, strict=True)]
        module, args, kwargs = treedef.unflatten(copies)
        with rng_context(key), watch:
            module(*args, **kwargs)
        held.extend(_held_by([copy for copy in copies if is_node(copy)]))
        watch.locate(held)

    held: list[_Held] = []
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jaxpr = jax.make_jaxpr(run)(key, arrays)
    except Exception as error:
        shorten(error)
        raise
    return Summary(tuple(_rows(watch.runs, held, count(jaxpr.jaxpr))))


def _copied(leaf: tp.Any, arrays: list[tp.Any]) -> tp.Any:
    """What stands for an argument in the trace."""
    if is_node(leaf):
        return jax.tree.unflatten(jax.tree.structure(leaf), arrays).copy()
    return arrays[0] if is_array(leaf) else leaf


@dataclasses.dataclass
class _Held:
    """A module at or below those that were given: its first path, and the sizes of its own arrays."""

    module: Node | None
    path: str
    cls: type
    sizes: dict[str, int]
    is_shared: bool
    first_row: str | None = None


def _held_by(roots: Sequence[Node]) -> list[_Held]:
    paths: dict[int, str] = {}
    for root in roots:
        for identity, parts in paths_below(root).items():
            paths.setdefault(identity, "/".join((name_of(root), *parts)))
    nodes = walk(roots)
    places = collections.Counter(id(child) for node in nodes for _, child in children(node))
    return [_Held(node, paths[id(node)], type(node), _sizes(node), places[id(node)] > 1) for node in nodes]


def _sizes(node: Node) -> dict[str, int]:
    sizes = {"trainable": 0, "frozen": 0, "state": 0, "bytes": 0}
    for slot, array in slots(node):
        if slot.holds == "array":
            sizes[slot.kind] += array.size
            sizes["bytes"] += array.size * array.dtype.itemsize
    return sizes


@dataclasses.dataclass
class _Run:
    """One run of a method of a module, by the number with which it is marked in the trace."""

    number: int
    module: Node | None
    cls: type
    method: str
    path: str
    around: _Run | None
    output: tp.Any = None
    held: _Held | None = None

    @property
    def level(self) -> int:
        return 0 if self.around is None else self.around.level + 1


class _Watch:
    """Within it the runs of modules are written down, and marked in the trace. What hooks declare goes nowhere."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self._running: list[_Run] = []

    def __enter__(self) -> None:
        self._before = state.watch, state.collector
        state.watch, state.collector = self, None
        # JAX is to find no trace again, in which the runs were marked by other numbers, or not at all.
        self._fresh = watching(object())
        self._fresh.__enter__()

    def __exit__(self, *error: tp.Any) -> None:
        self._fresh.__exit__(*error)
        state.watch, state.collector = self._before

    def __call__(self, frame: Frame, run: Callable[..., tp.Any]) -> Callable[..., tp.Any]:
        """What runs instead of a method."""
        if state.init_pass is not None or (frame.parent is not None and frame.parent.module is frame.module):
            return run

        def watched(module: Node, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            around = self._running[-1] if self._running else None
            path = "/".join(frame.parts)
            noted = _Run(len(self.runs), module, type(module), frame.method_name, path, around)
            self.runs.append(noted)
            self._running.append(noted)
            try:
                with marked(noted.number):
                    output = run(module, *args, **kwargs)
            finally:
                self._running.pop()
            noted.output = jax.tree.map(_struct, output)
            return output

        return watched

    def locate(self, held: Sequence[_Held]) -> None:
        """Finds which module each run was of, and lets go of the modules, which belong to the trace. A transform of JAX
        makes copies: these have the paths of the modules."""
        by_id = {id(one.module): one for one in held}
        by_path = {(one.path, one.cls): one for one in held}
        for run in self.runs:
            run.held = by_id.get(id(run.module)) or by_path.get((run.path, run.cls))
        for one in (*self.runs, *held):
            one.module = None


def _struct(leaf: tp.Any) -> tp.Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array(leaf) else leaf


def _rows(runs: Sequence[_Run], held: Sequence[_Held], tallies: Tallies) -> list[Row]:
    rows: list[Row] = []
    for group in _by_place(runs).values():
        run = group[0]
        found = [tallies[run.number] for run in group if run.number in tallies] or [_tally_of(run, tallies)]
        sizes: dict[str, int] = {}
        same_as = None if run.held is None else run.held.first_row
        if run.held is not None and same_as is None:
            run.held.first_row, sizes = run.path, run.held.sizes
        rows.append(
            Row(
                path=run.path,
                cls=run.cls,
                method=run.method,
                level=run.level,
                output=run.output,
                runs=sum(tally.runs for tally in found),
                **sizes,
                multiply_adds=sum(tally.multiply_adds for tally in found),
                may_run_more=any(tally.may_run_more for tally in found),
                may_multiply_more=any(tally.may_multiply_more for tally in found),
                same_as=same_as,
                is_shared=run.held is not None and run.held.is_shared,
                is_part=run.held is not None,
            )
        )
    for one in held:
        if one.first_row is None and any(one.sizes.values()):
            _insert(rows, one)
    return rows


def _by_place(runs: Sequence[_Run]) -> dict[tp.Any, list[_Run]]:
    groups: dict[tp.Any, list[_Run]] = {}
    for run in runs:
        groups.setdefault((run.path, run.cls, run.method, id(run.held)), []).append(run)
    return groups


def _tally_of(run: _Run, tallies: Tallies) -> Tally:
    """That of a run in which JAX traced nothing: it ran as often as what is around it."""
    around = run.around
    while around is not None and around.number not in tallies:
        around = around.around
    outer = Tally(runs=1) if around is None else tallies[around.number]
    return Tally(outer.runs, may_run_more=outer.may_run_more)


def _insert(rows: list[Row], one: _Held) -> None:
    """Adds a row for a module that did not run, below the last one in which it is."""
    around = max(
        (index for index, row in enumerate(rows) if f"{one.path}/".startswith(f"{row.path}/")),
        key=lambda index: len(rows[index].path),
        default=0,
    )
    level, end = rows[around].level, around + 1
    while end < len(rows) and rows[end].level > level:
        end += 1
    rows.insert(end, Row(one.path, one.cls, "call", level + 1, None, 0, **one.sizes, is_shared=one.is_shared))
