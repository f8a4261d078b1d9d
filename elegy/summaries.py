"""`elegy.summary`: which modules run in a call, found by tracing it."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import typing as tp
from collections.abc import Callable, Sequence

import jax
from jax.core import Tracer

from elegy.checks import no_type_check
from elegy.draws import rng_context
from elegy.frames import Frame, name_of, paths_below
from elegy.layout import children, slots, walk
from elegy.leaves import Node, is_array, is_node
from elegy.module import Module
from elegy.operations import Tallies, Tally, count, marked
from elegy.state import state, watching
from elegy.tables import Row, Summary
from elegy.tracebacks import shorten


@no_type_check  # what is no module is refused by a message of its own
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
    sizes: dict[str, tp.Any]
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


def _sizes(node: Node) -> dict[str, tp.Any]:
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


_numbers = itertools.count()  # never the same twice: there may be a summary within a call of which one is made


class _Watch:
    """Within it the runs of modules are written down, and marked in the trace. They run as outside of any module, and
    what hooks declare goes nowhere."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self._running: list[_Run] = []

    def __enter__(self) -> None:
        self._before = state.watch, state.collector, state.init_pass, state.frames
        state.watch, state.collector, state.init_pass, state.frames = self, None, None, []
        # JAX is to find no trace again, in which the runs were marked by other numbers, or not at all.
        self._fresh = watching(object())
        self._fresh.__enter__()

    def __exit__(self, *error: tp.Any) -> None:
        self._fresh.__exit__(*error)
        state.watch, state.collector, state.init_pass, state.frames = self._before

    def __call__(self, frame: Frame, run: Callable[..., tp.Any]) -> Callable[..., tp.Any]:
        """What runs instead of a method."""
        is_inner = frame.parent is not None and frame.parent.module is frame.module
        if is_inner or state.init_pass is not None:
            return run

        def watched(module: Node, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            around = self._running[-1] if self._running else None
            path = "/".join(frame.parts)
            noted = _Run(next(_numbers), module, type(module), frame.method_name, path, around)
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
            run.held = by_id.get(id(run.module))
            if run.held is None and not _is_from_outside(run.module):
                run.held = by_path.get((run.path, run.cls))
        for one in (*self.runs, *held):
            one.module = None


def _is_from_outside(module: Node | None) -> bool:
    """Whether a module has arrays that have values, and so is none of those that were given, or a copy of one."""
    arrays = jax.tree.leaves(module)
    return any(isinstance(array, jax.Array) and not isinstance(array, Tracer) for array in arrays)


def _struct(leaf: tp.Any) -> tp.Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array(leaf) else leaf


def _rows(runs: Sequence[_Run], held: Sequence[_Held], tallies: Tallies) -> list[Row]:
    rows: list[Row] = []
    for group in _by_place(runs).values():
        run = group[0]
        found = [tallies[run.number] for run in group if run.number in tallies] or [_tally_of(run, tallies)]
        sizes: dict[str, tp.Any] = {}
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
