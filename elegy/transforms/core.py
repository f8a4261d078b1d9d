"""The pure core of every transform: *partition → pure function → updated modules → write back*.

A `View` lists the places where the modules that a transform threads hold their arrays. `run` puts other arrays
(tracers) in those places, runs a function, and returns what it gave together with its `Effects`: the arrays that
changed, the state of the random stream, and what the hooks declared. Afterwards everything is as it was. `write_back`
gives effects to the world.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import sys
import types
import typing as tp
from collections.abc import Callable, Iterator, Sequence

import jax

from elegy import tracing
from elegy.captures import check_constants, constants, placed_for
from elegy.draws import require_lanes_apart
from elegy.errors import StructureError
from elegy.frames import RNG_ATTRIBUTE, note_update, parts_of, paths_below, require_same_trace
from elegy.hooks import Collector, Event
from elegy.initialise import Axis, NeedsInitPass, run_init_pass
from elegy.kept import compiled
from elegy.layout import Slot, meta_of, nodes_in, slots_by_attribute, walk
from elegy.leaves import Node, is_array, is_node
from elegy.parameters import collect
from elegy.pytree import layout_of
from elegy.state import state, transact, transaction, write
from elegy.tracebacks import shorten
from elegy.transaction import Overlay, commit, held, install_attribute, is_changed, lock, structure, thread

Place = tuple[dict[str, tp.Any], str]


class Group(tp.NamedTuple):
    """The arrays that one attribute holds in a container or a foreign pytree."""

    node: Node
    name: str
    positions: tuple[int, ...]
    start: int
    # `is_node` if there are modules among the leaves; else None, since JAX calls it for every leaf.
    is_leaf: Callable[[tp.Any], bool] | None
    # The structure of the container, if it holds these arrays and nothing else.
    treedef: tp.Any


class Targets:
    """Where values go: some of the places of a view.

    - `places`, `owners`: of the first values, which are attributes, the `__dict__` or the module, and the name.
    - `groups`: of the others, the container, the positions in it, and the number of the first value.
    """

    def __init__(
        self, places: list[Place], owners: list[tuple[Node, str]], groups: list[tuple[Group, tuple[int, ...], int]]
    ):
        self.places = places
        self.owners = owners
        self.groups = groups

    def write(self, values: Sequence[tp.Any]) -> None:
        if thread.top is None:
            for (attributes, name), value in zip(self.places, values):  # noqa: B905  (hot, and containers' come after)
                attributes[name] = value
        else:
            for (node, name), value in zip(self.owners, values):  # noqa: B905
                write(node, name, value)
        for group, positions, start in self.groups:
            treedef, leaves = group.treedef, values[start : start + len(positions)]
            if treedef is None or len(positions) < len(group.positions):
                news = leaves
                leaves, treedef = jax.tree.flatten(held(group.node)[group.name], is_leaf=group.is_leaf)
                for position, value in zip(positions, news, strict=True):
                    leaves[position] = value
            if thread.top is None:
                group.node.__dict__[group.name] = treedef.unflatten(leaves)
            else:
                write(group.node, group.name, treedef.unflatten(leaves))


class View:
    """The arrays of some modules, as a flat list of places; it does not change, and is valid until a structure does."""

    def __init__(self, modules: tp.Any, roots: list[Node]):
        self.version = structure.version
        self.modules = modules
        self.roots = roots
        self.nodes = walk(roots)
        self.positions = {id(node): position for position, node in enumerate(self.nodes)}
        self.places: list[Place] = []
        self.groups: list[Group] = []
        # The module and the attribute of each array, and the number of each array.
        self.owners: list[tuple[Node, str]] = []
        self.index: dict[tuple[int, str, int], int] = {}
        grouped: list[tuple[Node, list[Slot], tp.Any]] = []
        for node in self.nodes:
            for name, row in slots_by_attribute(node).items():
                arrays = [slot for slot, _ in row if slot.holds == "array"]
                if row[0][0].keys is not None:
                    grouped.append((node, arrays, is_node if len(arrays) < len(row) else None))
                elif arrays:
                    self._add(node, name, 0)
                    self.places.append((node.__dict__, name))
        for node, arrays, is_leaf in grouped:
            if arrays:
                name, positions = arrays[0].name, tuple(slot.position for slot in arrays)
                install_attribute(type(node), name)
                treedef = jax.tree.structure(held(node)[name], is_leaf=is_leaf)
                whole = positions == tuple(range(treedef.num_leaves))
                self.groups.append(Group(node, name, positions, len(self.owners), is_leaf, treedef if whole else None))
                for position in positions:
                    self._add(node, name, position)
        self.signature = tuple(layout_of(node) for node in self.nodes)
        self._paths: dict[int, tuple[str, ...]] | None = None
        self._targets: dict[EffectsRecord, Targets] = {}

    def _add(self, node: Node, name: str, position: int) -> None:
        self.index[id(node), name, position] = len(self.owners)
        self.owners.append((node, name))

    def read(self) -> list[tp.Any]:
        if thread.top is None:
            leaves = [attributes[name] for attributes, name in self.places]
        else:
            leaves = [held(node)[name] for node, name in self.owners[: len(self.places)]]
        for group in self.groups:
            value = held(group.node)[group.name]
            if group.treedef is not None:
                leaves += group.treedef.flatten_up_to(value)
                continue
            contents = jax.tree.leaves(value, is_leaf=group.is_leaf)
            leaves.extend(contents[position] for position in group.positions)
        return leaves

    def write(self, indices: Sequence[int], values: Sequence[tp.Any]) -> None:
        """Puts values in the places of these numbers, which ascend."""
        self.targets(indices).write(values)

    def targets(self, indices: Sequence[int]) -> Targets:
        simple = bisect.bisect_left(indices, len(self.places))
        groups: list[tuple[Group, tuple[int, ...], int]] = []
        start = simple
        for group in self.groups:
            end = bisect.bisect_left(indices, group.start + len(group.positions), start)
            if end > start:
                positions = tuple(group.positions[index - group.start] for index in indices[start:end])
                groups.append((group, positions, start))
            start = end
        direct = indices[:simple]
        return Targets([self.places[index] for index in direct], [self.owners[index] for index in direct], groups)

    def targets_of(self, record: EffectsRecord) -> Targets:
        """Where the arrays go that a function changed."""
        found = self._targets.get(record)
        if found is None:
            found = self._targets[record] = self.targets(record.indices)
        return found

    def path(self, index: int) -> str:
        """The readable path of an array: `net/linear/w`."""
        node, name = self.owners[index]
        return f"{self.path_of(node)}/{name}"

    def path_of(self, node: Node) -> str:
        """The readable path of a module: `net/linear`."""
        if self._paths is None:
            self._paths = {}
            for root in self.roots:
                for identity, parts in paths_below(root).items():
                    self._paths.setdefault(identity, (*parts_of(root), *parts))
        return "/".join(self._paths[id(node)])

    def trainable_tree(self, modules: tp.Any) -> tp.Any:
        """`modules` with the dict of `get_parameters(trainable=True)` in the place of each, and in it the numbers of
        the arrays."""
        seen: set[int] = set()

        def indices(node: tp.Any) -> tp.Any:
            if not isinstance(node, Node):
                return None
            if id(node) in seen:
                return {}
            return collect(node, True, lambda owner, name, position, _: self.index[id(owner), name, position], seen)

        return jax.tree.map(indices, modules, is_leaf=is_node)


class Threaded:
    """The modules that a transform threads, and the latest view of them."""

    def __init__(self, modules: tp.Any):
        self.modules = jax.tree.map(lambda node: node, modules, is_leaf=is_node)  # the caller's list may change
        self.roots = nodes_in(modules)
        # Modules and methods that an init pass did not reach.
        self.unreached: frozenset[tuple[int, str]] = frozenset()
        self.latest: View | None = None
        self._signatures: dict[tp.Any, tp.Any] = {}

    def view(self) -> View:
        """Walks the modules again if any structure changed since the last time."""
        top = thread.top
        # A view of structures that this thread alone sees is kept in its overlay.
        is_own = top is not None and is_changed()
        latest = top.views.get(self) if top is not None and is_own else self.latest
        if latest is None or latest.version is not structure.version:
            with lock:
                latest = View(self.modules, self.roots)
            # Equal signatures are one object, so that going back to an earlier structure can be seen by identity.
            latest.signature = self._signatures.setdefault(latest.signature, latest.signature)
            if top is not None and is_own:
                top.views[self] = latest
            else:
                self.latest = latest
        return latest

    def uninitialised(self) -> bool:
        """Whether a module never ran. Modules that an enclosing transform threads are left to that transform."""
        return any(not meta_of(root).initialized for root in self.roots if id(root) not in state.threaded)

    def initialise(
        self,
        function: tp.Any,
        args: tp.Any,
        kwargs: tp.Any,
        needs: NeedsInitPass | None = None,
        axis: Axis | None = None,
    ) -> None:
        """Runs the init pass of a function that uses the modules; `needs` says which of them asked for it."""
        run_init_pass(function, args, kwargs, self.roots, axis)
        if needs is not None and needs.method not in meta_of(needs.module).records:
            self.unreached |= {(id(needs.module), needs.method)}


class Declaration(tp.NamedTuple):
    """The static part of an event: `position` is that of its module in the view, if the module is there."""

    kind: str
    name: str
    is_of_module: bool
    position: int | None


class EffectsRecord:
    """The static part of effects. It becomes a part of what JAX caches, so it holds no module.

    - `indices`: which arrays of the view changed.
    - `events`: what hooks declared.
    - `has_references`: whether a `Reference` is among the outputs.
    """

    __slots__ = ("events", "has_references", "indices")

    def __init__(self, indices: list[int], events: list[Declaration], has_references: bool = False):
        self.indices = indices
        self.events = events
        self.has_references = has_references


jax.tree_util.register_pytree_node(EffectsRecord, lambda record: ((), record), lambda record, _: record)

# What a function did besides returning, as outputs that can leave any transform: the arrays that changed, the state of
# the random stream if it advanced, the values that hooks declared, and their static part.
Effects = tuple[list[tp.Any], tp.Any, list[tp.Any], EffectsRecord]


class Reference:
    """Stands for a threaded module among the outputs of a function: its arrays go out once, as effects."""

    __slots__ = ("position",)

    def __init__(self, position: int):
        self.position = position


jax.tree_util.register_pytree_node(
    Reference, lambda reference: ((), reference.position), lambda position, _: Reference(position)
)


def is_reference(value: tp.Any) -> bool:
    return isinstance(value, Reference)


def _refer(out: tp.Any, view: View) -> tuple[tp.Any, bool]:
    """Outputs with references in the place of threaded modules. Must run while these hold their new arrays."""
    nodes = nodes_in(out)

    def referred(part: tp.Any) -> tp.Any:
        if id(part) in view.positions:
            return Reference(view.positions[id(part)])
        if isinstance(part, Node) and any(id(node) in view.positions for node in walk([part])):
            leaves, treedef = jax.tree.flatten(part)
            return treedef.unflatten(leaves)  # a module made by the function, with a threaded one in it
        return part

    if any(id(node) in view.positions for node in walk(nodes)):
        out = jax.tree.map(referred, out, is_leaf=is_node)
    return out, any(id(node) in view.positions for node in nodes)


class Opaque:
    """Static data inside a collected value: a summary may hold what is not an array."""

    __slots__ = ("value",)

    def __init__(self, value: tp.Any):
        self.value = value


jax.tree_util.register_pytree_node(Opaque, lambda opaque: ((), opaque.value), lambda value, _: Opaque(value))


def _wrap_static(value: tp.Any) -> tp.Any:
    return jax.tree.map(lambda leaf: leaf if is_array(leaf) or isinstance(leaf, (int, float)) else Opaque(leaf), value)


def _unwrap_static(value: tp.Any) -> tp.Any:
    is_opaque = lambda leaf: isinstance(leaf, Opaque)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.value if is_opaque(leaf) else leaf, value, is_leaf=is_opaque)


def run(
    function: Callable[..., tp.Any],
    threaded: Threaded,
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
    with inside(threaded, view, leaves) as overlay:
        overlay.frame = id(sys._getframe())
        before_rng, version = state._rng, structure.version
        rng = state.rng
        if rng_data is not None:
            state.rng = rng = rng.threaded(rng_data, enter)
        state.collector = collector = None if outer is None else Collector(outer.wants_summaries)
        try:
            with placed_for(view.positions):
                out = function(*args, **kwargs)
                if structure.version is not version:
                    check_structure(view)
        except jax.errors.UnexpectedTracerError as error:
            if not getattr(error, "_elegy_explained", False):
                error._elegy_explained = True  # type: ignore[attr-defined]
                error.add_note(
                    "If a transform of JAX, such as jax.lax.scan, was given a function that closes over a module: JAX "
                    "keeps its trace, with the arrays of then, for as long as the function lives.\n"
                    "  Make the function anew where it is used (a lambda, or a function in the body of another), or "
                    "use the transform of the same name in elegy."
                )
            raise
        finally:
            state._rng, state.collector = before_rng, outer
        out, has_references = _refer(out, view)
        after = view.read()
    indices = [
        index for index, (old, new) in enumerate(zip(leaves, after, strict=True)) if return_all or old is not new
    ]
    events = [] if collector is None else collector.events
    declared = [
        Declaration(event.kind, event.name, event.is_of_module, view.positions.get(id(event.module)))
        for event in events
    ]
    values = [after[index] for index in indices]
    advanced = None if rng_data is None or rng._data is rng_data else rng._data
    return out, (
        values,
        advanced,
        [_wrap_static(event.value) for event in events],
        EffectsRecord(indices, declared, has_references),
    )


@contextlib.contextmanager
def inside(threaded: Threaded, view: View, leaves: Sequence[tp.Any]) -> Iterator[Overlay]:
    """Within the block the modules of the view hold `leaves`, and belong to the running trace. What happens to other
    modules of that trace is kept."""
    before = state.threaded, state.unreached
    overlay = Overlay(tracing.current())
    for node in view.nodes:
        overlay.add(node, overlay.trace)
    with overlay:
        view.write(range(len(leaves)), leaves)
        state.threaded = {**state.threaded, **{id(node): node for node in view.nodes}}
        state.unreached = state.unreached | threaded.unreached
        try:
            yield overlay
        finally:
            state.threaded, state.unreached = before
    commit(overlay, but=view.positions)


def check_structure(view: View) -> None:
    for node, layout in zip(view.nodes, view.signature, strict=True):
        if layout_of(node) != layout:
            raise StructureError(
                f"{view.path_of(node)}: the structure of the module changed inside a transformed function.\n"
                "  Change it outside: what is not an array is fixed while a function is compiled."
            )


def rng_data(traced: bool) -> tp.Any:
    """The state of the random stream to thread, or None where the stream belongs to code around a jax transform."""
    rng = state._rng or state.rng
    return rng.data if not traced or rng._born == tracing.current() else None


def write_back(view: View, out: tp.Any, effects: Effects, traced: bool) -> tp.Any:
    """Gives the effects of a function to the modules, the random stream and the collector of the caller.

    **Arguments:**

    - `traced`: whether the caller is inside a trace, which may change its own modules only.

    **Returns:** the outputs, with the modules themselves in the place of references.
    """
    values, advanced, events, record = effects
    if values:
        if traced:
            _check_trace(view, record)
        if constants:
            check_constants([view.owners[index][0] for index in record.indices])
        with lock:
            view.targets_of(record).write(values)
    if advanced is not None:
        (state._rng or state.rng)._data = advanced
    if events and state.collector is not None:
        for declared, value in zip(record.events, events, strict=True):
            module = None if declared.position is None else view.nodes[declared.position]
            event = Event(declared.kind, declared.name, module, _unwrap_static(value), declared.is_of_module)
            state.collector.add(event)
    if record.has_references:
        resolve = lambda part: view.nodes[part.position] if is_reference(part) else part  # noqa: E731
        out = jax.tree.map(resolve, out, is_leaf=is_reference)
    return out


def _check_trace(view: View, record: EffectsRecord) -> None:
    for root in view.roots:
        require_same_trace(root, "was updated by a transform of elegy")
    for index in record.indices:
        node, name = view.owners[index]
        if name == RNG_ATTRIBUTE:
            require_lanes_apart(node)
        note_update(node, name, view.path(index).rpartition("/")[0])


def with_modules(
    threaded: Threaded,
    once: tp.Any,
    args: tp.Any,
    kwargs: tp.Any,
    attempt: Callable[[View], tp.Any],
    axis: Axis | None = None,
) -> tp.Any:
    """Runs `attempt`, which traces functions of the modules, after an init pass over `once` if one is due."""
    needs: NeedsInitPass | None = None

    def attempts() -> tp.Any:
        nonlocal needs
        while True:
            try:
                if needs is not None or threaded.uninitialised():
                    threaded.initialise(once, args, kwargs, needs, axis)
                with transaction():
                    return attempt(threaded.view())
            except NeedsInitPass as found:
                needs = require_threaded_here(found, threaded.view())

    try:
        return transact(attempts)
    except Exception as error:
        shorten(error)
        raise


def require_threaded_here(needs: NeedsInitPass, view: View) -> NeedsInitPass:
    """Raises a request for an init pass again if its module is not in the view, or a transform around threads it."""
    if id(needs.module) not in view.positions or id(needs.module) in state.threaded:
        raise needs
    return needs


Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")
Owner = tp.TypeVar("Owner")
Rest = tp.ParamSpec("Rest")


class Transformed(tp.Generic[Arguments, Outputs]):
    """A transformed function. In the body of a class it is a method, and threads the module to which it belongs.

    It must not hold a reference to itself, not even through a closure: what it threads, perhaps the arrays of a trace,
    would live on until the garbage collector runs.

    **Attributes:**

    - `function`: what was transformed.
    - `threaded_modules`: the modules that the function uses without taking them as arguments.
    """

    def __init__(self, function: tp.Any, threaded: Threaded | None):
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.threaded_modules = () if threaded is None else tuple(threaded.roots)

    def __call__(self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs:
        raise NotImplementedError

    def _bound(self, method: tp.Any) -> Transformed[..., tp.Any]:
        """The same transform of a bound method, which does not count `self` among its arguments."""
        raise NotImplementedError

    def _around(self, function: tp.Any) -> Transformed[..., tp.Any]:
        """The same transform of another function of the same arguments."""
        raise NotImplementedError

    @tp.overload
    def __get__(self, instance: None, owner: tp.Any = None) -> Transformed[Arguments, Outputs]: ...
    @tp.overload
    def __get__(
        self: Transformed[tp.Concatenate[Owner, Rest], Outputs], instance: Owner, owner: tp.Any = None
    ) -> Callable[Rest, Outputs]: ...
    def __get__(self, instance: tp.Any, owner: tp.Any = None) -> tp.Any:
        if instance is None or not hasattr(self.function, "__get__"):
            return self
        if isinstance(instance, Node):
            return compiled(instance, self, lambda: self._bound(self.function.__get__(instance)))
        return types.MethodType(self, instance)


def modules_of(function: tp.Any, modules: tp.Any) -> tp.Any:
    """The modules to thread: those that were listed, and those to which `function` belongs or that it threads."""
    bound = function if isinstance(function, Node) else getattr(function, "__self__", None)
    own = (bound,) if isinstance(bound, Node) else getattr(function, "threaded_modules", ())
    listed = {id(node) for node in walk(nodes_in(modules))}
    more = [node for node in own if id(node) not in listed]
    if not more:
        return modules
    if modules is None:
        return more[0] if len(more) == 1 else tuple(more)
    return (*more, modules)


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
