"""The pure core of every transform: *partition → pure function → updated modules → write back*.

A `View` lists the places where the modules that a transform threads hold their arrays. `run` puts other arrays
(tracers) in those places, runs a function, and returns what it gave together with its `Effects`: the arrays that
changed, the state of the random stream, and what the hooks declared. Afterwards everything is as it was. `write_back`
gives effects to the world.
"""

from __future__ import annotations

import contextlib
import typing as tp
from collections.abc import Callable, Sequence

import jax
from jax.core import Tracer

from elegy import tracing
from elegy.errors import StructureError, TraceError
from elegy.frames import note_update, path_of, require_same_trace
from elegy.hooks import Collector, Event
from elegy.initialise import NeedsInitPass, run_init_pass
from elegy.leaves import Node, is_array, is_node, is_static
from elegy.parameters import collect, trainable_flags
from elegy.pytree import layout_of, meta_of, nodes_in, set_born, structure, walk
from elegy.state import log, state, undoing
from elegy.threads import Busy, begin_again, holding, lock, may_give_up

Place = tuple[dict[str, tp.Any], str]


class Group(tp.NamedTuple):
    """The arrays that one attribute holds in a container or a foreign pytree."""

    node: Node
    name: str
    positions: tuple[int, ...]
    start: int


class View:
    """The arrays of the threaded modules, as a flat list of places that stays valid until a structure changes."""

    def __init__(self, modules: tp.Any):
        self.modules = modules
        self.roots = nodes_in(modules)
        self.version: tp.Any = None
        self.signature: tp.Any = None
        # Modules and methods that an init pass did not reach.
        self.unreached: set[tuple[int, str]] = set()
        self._signatures: dict[tp.Any, tp.Any] = {}

    def refresh(self) -> None:
        """Walks the modules again if any structure changed since the last time."""
        version = structure.version
        if self.version is version:
            return
        self.nodes = walk(self.roots)
        self.places: list[Place] = []
        self.owners: list[tuple[Node, str]] = []
        self.groups: list[Group] = []
        self.trainable: list[bool] = []
        self.index: dict[tuple[int, str, int], int] = {}
        grouped: list[tuple[Node, str, tp.Any]] = []
        for node in self.nodes:
            parameters = meta_of(node).parameters
            for name, value in node.__dict__.items():
                if is_array(value):
                    self._add(node, name, 0, trainable_flags(node, name, value)[0])
                    self.places.append((node.__dict__, name))
                elif name in parameters or not (isinstance(value, Node) or is_static(value)):
                    grouped.append((node, name, value))
        for node, name, value in grouped:
            leaves = jax.tree.leaves(value, is_leaf=is_node)
            positions = tuple(i for i, leaf in enumerate(leaves) if is_array(leaf))
            if positions:
                flags = trainable_flags(node, name, value)
                self.groups.append(Group(node, name, positions, len(self.owners)))
                for position in positions:
                    self._add(node, name, position, flags[position])
        key = tuple(layout_of(node) for node in self.nodes)
        self.signature = self._signatures.setdefault(key, key)
        self.signature_id = id(self.signature)
        self.ids = {id(node): node for node in self.nodes}
        self.version = version

    def _add(self, node: Node, name: str, position: int, trainable: bool) -> None:
        self.index[id(node), name, position] = len(self.owners)
        self.owners.append((node, name))
        self.trainable.append(trainable)

    def read(self) -> list[tp.Any]:
        leaves = [attributes[name] for attributes, name in self.places]
        for group in self.groups:
            held = jax.tree.leaves(group.node.__dict__[group.name], is_leaf=is_node)
            leaves.extend(held[position] for position in group.positions)
        return leaves

    def write(self, indices: Sequence[int], values: Sequence[tp.Any]) -> None:
        places, simple = self.places, len(self.places)
        rest: dict[int, tp.Any] = {}
        for index, value in zip(indices, values, strict=True):
            if index < simple:
                attributes, name = places[index]
                attributes[name] = value
            else:
                rest[index] = value
        if rest:
            for group in self.groups:
                self._write_group(group, rest)

    def _write_group(self, group: Group, values: dict[int, tp.Any]) -> None:
        attributes = group.node.__dict__
        leaves, treedef = jax.tree.flatten(attributes[group.name], is_leaf=is_node)
        changed = False
        for offset, position in enumerate(group.positions):
            if group.start + offset in values:
                leaves[position] = values[group.start + offset]
                changed = True
        if changed:
            attributes[group.name] = treedef.unflatten(leaves)

    def trainable_tree(self) -> tp.Any:
        """The modules that were given, with the dict of `get_parameters(trainable=True)` in the place of each, and in
        it the indices of the arrays."""
        seen: set[int] = set()

        def indices(node: tp.Any) -> tp.Any:
            if not isinstance(node, Node):
                return None
            if id(node) in seen:
                return {}
            return collect(node, True, lambda owner, name, position, _: self.index[id(owner), name, position], seen)

        return jax.tree.map(indices, self.modules, is_leaf=is_node)

    def uninitialised(self) -> bool:
        return any(not meta_of(root).initialized for root in self.roots)

    def initialise(self, function: tp.Any, args: tp.Any, kwargs: tp.Any, needs: NeedsInitPass | None = None) -> None:
        """Runs the init pass of a function that uses the modules; `needs` says which of them asked for it."""
        run_init_pass(function, args, kwargs, self.roots)
        if needs is not None and needs.method not in meta_of(needs.module).hooks:
            self.unreached.add((id(needs.module), needs.method))
        self.refresh()

    def threads(self, module: Node) -> bool:
        """Whether a module is threaded by this view, and by no other one around it."""
        return id(module) in self.ids and id(module) not in state.threaded


class Record:
    """The static part of effects: which arrays changed, and what the declared values are called."""

    __slots__ = ("events", "indices", "places", "version")

    def __init__(self, indices: list[int], events: list[tuple[str, str, Node | None]]):
        self.indices = indices
        self.events = events
        # Where the changed arrays go, as of a version of the view; None where that takes more than an assignment.
        self.places: list[Place] | None = None
        self.version: tp.Any = None

    def resolve(self, view: View) -> list[Place] | None:
        if self.version is not view.version:
            simple = all(index < len(view.places) for index in self.indices)
            self.places = [view.places[index] for index in self.indices] if simple else None
            self.version = view.version
        return self.places


jax.tree_util.register_pytree_node(Record, lambda record: ((), record), lambda record, _: record)

# What a function did besides returning, as outputs that can leave any transform: the arrays that changed, the state of
# the random stream if it advanced, the values that hooks declared, and their static part.
Effects = tuple[list[tp.Any], tp.Any, list[tp.Any], Record]


class Opaque:
    """Static data inside a collected value: a summary may hold what is not an array."""

    __slots__ = ("value",)

    def __init__(self, value: tp.Any):
        self.value = value


jax.tree_util.register_pytree_node(Opaque, lambda opaque: ((), opaque.value), lambda value, _: Opaque(value))


def _seal_value(value: tp.Any) -> tp.Any:
    return jax.tree.map(lambda leaf: leaf if is_array(leaf) or isinstance(leaf, (int, float)) else Opaque(leaf), value)


def _open_value(value: tp.Any) -> tp.Any:
    is_opaque = lambda leaf: isinstance(leaf, Opaque)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.value if is_opaque(leaf) else leaf, value, is_leaf=is_opaque)


def run(
    function: Callable[..., tp.Any],
    view: View,
    leaves: Sequence[tp.Any],
    rng_data: tp.Any,
    args: tp.Any,
    kwargs: tp.Any,
    return_all: bool = False,
    enter: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[tp.Any, Effects]:
    """Runs `function` with `leaves` in the places of the view, and leaves everything as it was.

    `enter` derives the random stream of the function from `rng_data` when something is drawn.
    """
    outer = state.collector
    with lock, _threaded(view, leaves):
        before_rng, version, trace = state._rng, structure.version, tracing.current()
        rng = state.rng
        if rng_data is not None:
            state.rng = rng = rng.threaded(rng_data, enter)
        state.collector = collector = None if outer is None else Collector(outer.wants_summaries)
        try:
            # The threaded modules are restored below, and those that were made in this trace end with it.
            with undoing(forget=lambda module: id(module) in view.ids or module._born == trace):
                out = function(*args, **kwargs)
                if structure.version is not version:
                    _check_structure(view)
        finally:
            state._rng, state.collector = before_rng, outer
        after = view.read()
        indices = [
            index for index, (old, new) in enumerate(zip(leaves, after, strict=True)) if return_all or old is not new
        ]
        events = [] if collector is None else collector.events
        record = Record(indices, [(event.kind, event.name, event.module) for event in events])
        values = [after[index] for index in indices]
        advanced = None if rng_data is None or rng._data is rng_data else rng._data
    return out, (values, advanced, [_seal_value(event.value) for event in events], record)


@contextlib.contextmanager
def _threaded(view: View, leaves: Sequence[tp.Any]):
    """Within it the modules of the view hold `leaves`, and belong to the running trace."""
    everything, trace = range(len(leaves)), tracing.current()
    with holding(view.nodes):
        before, saved, born = (state.threaded, state.unreached), view.read(), [node._born for node in view.nodes]
        state.threaded, state.unreached = {**state.threaded, **view.ids}, state.unreached | view.unreached
        view.write(everything, leaves)
        for node in view.nodes:
            set_born(node, trace)
        try:
            yield
        finally:
            state.threaded, state.unreached = before
            view.write(everything, saved)
            for node, old in zip(view.nodes, born, strict=True):
                set_born(node, old)


def _check_structure(view: View) -> None:
    for node, layout in zip(view.nodes, view.signature, strict=True):
        if layout_of(node) != layout:
            raise StructureError(
                f"{path_of(node)}: the structure of the module changed inside a transformed function.\n"
                "  Change it outside: what is not an array is fixed while a function is compiled."
            )


def rng_data(leaves: Sequence[tp.Any]) -> tp.Any:
    """The state of the random stream to thread, or None where the stream belongs to code around a jax transform.

    The question costs a microsecond, so it is asked only where the threaded arrays do not answer it.
    """
    rng = state._rng or state.rng
    if leaves and not isinstance(leaves[0], Tracer):
        return rng.data
    return rng.data if rng._born == tracing.current() else None


def write_back(view: View, effects: Effects, inputs: Sequence[tp.Any] = ()) -> None:
    """Gives the effects of a function to the modules, the random stream and the collector of the caller.

    Tracers among the effects or the inputs show that the caller is inside a transform.
    """
    values, advanced, events, record = effects
    if values:
        if isinstance(values[0], Tracer) or any([isinstance(value, Tracer) for value in inputs]):
            for root in view.roots:
                require_same_trace(root, "was updated by a transform of elegy")
            for index in record.indices:
                note_update(*view.owners[index])
        if state.log is not None:
            _log(view, record.indices)
        with lock:
            places = record.resolve(view)
            if places is None:
                view.write(record.indices, values)
            else:
                for (attributes, name), value in zip(places, values):  # noqa: B905  (hot, and of equal length)
                    attributes[name] = value
    if advanced is not None:
        rng = state._rng or state.rng
        if isinstance(advanced, Tracer) and rng._born != tracing.current():
            raise TraceError(
                "a function transformed by elegy drew random keys inside a jax transform, but the random stream "
                "belongs to the code outside of it.\n  Pass a key as an argument of the jax-transformed function and "
                "call inside `with elegy.rng_context(key):`."
            )
        rng._data = advanced
    if events and state.collector is not None:
        for (kind, name, module), value in zip(record.events, events, strict=True):
            state.collector.add(Event(kind, name, module, _open_value(value)))


def _log(view: View, indices: Sequence[int]) -> None:
    for node, name in dict.fromkeys(view.owners[index] for index in indices):
        log(
            node, lambda attributes=node.__dict__, name=name, old=node.__dict__[name]: attributes.__setitem__(name, old)
        )


def with_modules(view: View, once: tp.Any, args: tp.Any, kwargs: tp.Any, attempt: Callable[[], tp.Any]) -> tp.Any:
    """Runs `attempt`, which traces functions of the modules of a view, after an init pass over `once` if one is due."""
    with lock, undoing():
        needs: NeedsInitPass | None = None
        while True:
            view.refresh()
            try:
                with holding(view.nodes):
                    if needs is not None or view.uninitialised():
                        view.initialise(once, args, kwargs, needs)
                    with may_give_up():
                        return attempt()
            except NeedsInitPass as found:
                if not view.threads(found.module):
                    raise
                needs = found
            except Busy as busy:
                begin_again(busy)


def modules_of(function: tp.Any, modules: tp.Any) -> tp.Any:
    """The modules to thread: those that were listed, and the one whose method `function` is."""
    bound = function if isinstance(function, Node) else getattr(function, "__self__", None)
    if not isinstance(bound, Node):
        return modules
    if modules is None:
        return bound
    return modules if any(node is bound for node in walk(nodes_in(modules))) else (bound, modules)


def check_function(transform: str, function: tp.Any) -> None:
    if isinstance(function, type):
        raise TypeError(
            f"{transform} takes a function or a module, got the class {function.__name__}: construct it first."
        )
    if not callable(function):
        raise TypeError(f"{transform} takes a function or a module, got {function!r}.")


def check_modules(modules: tp.Any) -> None:
    for leaf in jax.tree.leaves(modules, is_leaf=is_node):
        if not isinstance(leaf, Node):
            kind = f"the class {leaf.__name__}" if isinstance(leaf, type) else f"a {type(leaf).__name__}"
            raise TypeError(f"modules= takes a module or a list, tuple or dict of modules; it holds {kind}.")
