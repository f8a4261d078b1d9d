"""What is a leaf of a module, and how a module is taken apart and put together again.

A module's attributes are split once, when its structure is fixed, into *dynamic* ones (arrays, modules, and containers
or foreign pytrees that hold some) and *static* ones. The result is a `Layout`, interned so that modules of equal
structure share one object and JAX compares structures by identity.
"""

from __future__ import annotations

import dataclasses
import operator
import typing as tp
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import jax
import numpy as np

from elegy import tracing
from elegy.compounds import Compound, as_in_containers, dynamic_part, join, split
from elegy.containers import FrozenDict
from elegy.errors import StaticValueError, TraceError
from elegy.leaves import (
    Incomparable,
    Node,
    incomparable,
    is_array,
    is_node,
    is_plain,
    is_static,
    static_key,
)
from elegy.pickling import portable
from elegy.threads import holders, is_held_elsewhere, lock, wait_for


class _Tied:
    """Stands, while a module is flattened, for a submodule that is found by an earlier path."""

    def __repr__(self) -> str:
        return "tied"


TIED = _Tied()


# ---------------------------------------------------------------------------------------------------------------------
# Bookkeeping and layouts
# ---------------------------------------------------------------------------------------------------------------------


class Record(tp.NamedTuple):
    """A module that a method created at one position in its order of creation."""

    attribute: str
    arguments: tp.Any
    site: str
    cls: type


@dataclasses.dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a module besides its attributes."""

    trainable: bool = True
    initialized: bool = False
    # Parameter name -> whether it was declared trainable.
    parameters: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    # Parameter name -> the dtype that was asked for when it was created, if one was.
    dtypes: Mapping[str, tp.Any] = dataclasses.field(default_factory=dict)
    # Arrays that are frozen one by one, whatever they were declared: the attribute, and the number among its leaves,
    # where None counts too.
    frozen: frozenset[tuple[str, int]] = frozenset()
    # Names of the parameters that were created in __init__, which a reset keeps.
    constructed: tuple[str, ...] = ()
    # Method name -> what it creates, in order.
    hooks: Mapping[str, tuple[Record, ...]] = dataclasses.field(default_factory=dict)
    # The dtypes in which it runs, if it was given some.
    dtype_policy: Hashable = None

    def key(self) -> Hashable:
        # Creation sites stay out: modules made in two places have one structure.
        return (
            self.trainable,
            self.initialized,
            tuple(self.parameters.items()),
            tuple(self.dtypes.items()),
            self.frozen,
            self.constructed,
            self.dtype_policy,
            tuple(
                (method, tuple((record.attribute, record.arguments) for record in self.hooks[method]))
                for method in sorted(self.hooks)
            ),
        )


# The way from a module to a child: the attribute, and the position among the leaves of the attribute's value when that
# value is a container.
Step = tuple[str, int | None]


class Tie(tp.NamedTuple):
    target: tuple[Step, ...]
    source: tuple[Step, ...]


class Layout:
    """The static structure of a module: the auxiliary data of its pytree node."""

    __slots__ = (
        "__weakref__",
        "_key",
        "cls",
        "compounds",
        "keys",
        "meta",
        "names",
        "order",
        "read",
        "simple",
        "static",
        "ties",
    )

    def __init__(self, cls, meta, names, static, compounds, ties, order, key):
        self.cls = cls
        self.meta = meta
        self.names = names
        self.static = static
        self.compounds = compounds
        self.ties = ties
        # The order of the attributes, where a tied one is among them: it decides by which path a shared module goes.
        self.order = order
        self.simple = not compounds and not ties
        self.keys = tuple(_AttributeKey(name) for name in names)
        self.read = _reader(names)
        self._key = key

    def __eq__(self, other):
        if self is other:
            return True
        if not isinstance(other, Layout) or self.cls is not other.cls:
            return False
        try:
            return self._key == other._key
        except Incomparable as error:
            raise _named(self, other, error) from None

    def __hash__(self):
        return hash((self.cls, self.names))

    def __reduce__(self):
        static = FrozenDict(self.static)
        return _remade, (self.cls, self.meta, self.names, portable(static), self.compounds, self.ties, self.order)

    def __repr__(self):
        parts = [f"{name}={value!r}" for name, value in self.static.items()]
        if not self.meta.trainable:
            parts.append("trainable=False")
        if self.meta.frozen:
            parts.append(f"frozen={sorted(self.meta.frozen)}")
        if self.meta.initialized:
            parts.append("initialized")
        return f"{self.cls.__name__}({', '.join(parts)})"


def _named(one: Layout, other: Layout, error: Incomparable) -> StaticValueError:
    """What is wrong with the static value that cannot be compared, with the name of its attribute."""
    pairs = [(name, value, other.static.get(name)) for name, value in one.static.items()]
    for name, compound in one.compounds.items():
        pairs.append((name, compound.static, other.compounds[name].static if name in other.compounds else None))
    for name, value, counterpart in pairs:
        try:
            bool(static_key(value) == static_key(counterpart))
        except Incomparable as what:
            return incomparable(f"{one.cls.__name__}.{name}", value, what)
    return incomparable(one.cls.__name__, one, error)


class _AttributeKey(jax.tree_util.GetAttrKey):
    """The key of an attribute in a path. JAX's message for trees of different structures reads `key` of any key."""

    key = property(lambda self: self.name)


def _reader(names: tuple[str, ...]) -> Callable[[dict[str, tp.Any]], tuple[tp.Any, ...]]:
    if not names:
        return lambda attributes: ()
    if len(names) == 1:
        (name,) = names
        return lambda attributes: (attributes[name],)
    return operator.itemgetter(*names)


_layouts: weakref.WeakValueDictionary[Hashable, Layout] = weakref.WeakValueDictionary()


def _split(attributes: dict[str, tp.Any], parameters: Mapping[str, bool]):
    """Names of the dynamic attributes, the static ones, and how to split the compound ones."""
    names: list[str] = []
    static: dict[str, tp.Any] = {}
    compounds: dict[str, Compound] = {}
    for name, value in attributes.items():
        if value is None or isinstance(value, Node) or is_array(value):
            names.append(name)  # None is a tree without leaves, for which equinox.tree_at can put something
        elif name in parameters and jax.tree_util.all_leaves([value]):
            names.append(name)
        elif (is_static(value) or is_plain(value)) and name not in parameters:
            static[name] = value
        else:
            compound, moves = split(value)
            if moves or name in parameters:
                names.append(name)
                if compound is not None:
                    compounds[name] = compound
            else:
                static[name] = value
    return tuple(names), static, compounds


def make_layout(node: Node, ties: tuple[Tie, ...]) -> Layout:
    cls, meta = type(node), node._elegy_meta
    names, static, compounds = _split(node.__dict__, meta.parameters)
    order = tuple(node.__dict__) if ties or any(value is TIED for value in static.values()) else ()
    return _interned(cls, meta, names, static, compounds, ties, order)


def _interned(cls, meta, names, static, compounds, ties, order) -> Layout:
    key = (
        cls,
        meta.key(),
        names,
        order,
        tuple((name, static_key(value)) for name, value in static.items()),
        tuple((name, compound.key()) for name, compound in compounds.items()),
        ties,
    )
    try:
        layout = _layouts.get(key)
    except TypeError:  # an unhashable static value: such layouts are compared by value
        return Layout(cls, meta, names, static, compounds, ties, order, key)
    except Incomparable as error:
        raise _culprit(Layout(cls, meta, names, static, compounds, ties, order, key), error) from None
    if layout is None:
        layout = Layout(cls, meta, names, static, compounds, ties, order, key)
        layout = _layouts.setdefault(key, layout)
    return layout


def _remade(cls, meta, names, static, compounds, ties, order) -> Layout:
    """A layout from a pickle, which is the one that is here already if there is an equal one."""
    register(cls)
    return _interned(cls, meta, names, dict(static), compounds, ties, order)


def _culprit(made: Layout, error: Incomparable) -> StaticValueError:
    """Which static value was at fault when a layout was looked up among all others."""
    for layout in list(_layouts.values()):
        if layout.cls is made.cls:
            try:
                bool(made == layout)
            except StaticValueError as found:
                return found
    return incomparable(made.cls.__name__, made, error)


def layout_of(node: Node) -> Layout:
    """The layout of a module, made anew if its structure changed."""
    layout = node._elegy_layout
    if layout is not None:
        return layout
    require_drawn(node)
    if getattr(node, "_elegy_pending", None):
        node._elegy_pending.clear()
        set_pending(node, None)
    if node._elegy_ties is None:
        find_ties(node)
    ties = node._elegy_ties or ()
    layout = make_layout(cut(node, [tie.target for tie in ties]) if ties else node, ties)
    set_layout(node, layout)
    return layout


def set_aside_undrawn(node: Node) -> None:
    """Takes the parameters that a constructor could not draw out of the attributes, so that nobody reads them."""
    blanks = getattr(node, "_elegy_undrawn", None)
    if blanks:
        set_undrawn(node, {name: blanks.get(name) for name in node.__dict__})
        for name in blanks:
            node.__dict__.pop(name, None)


def require_drawn(node: Node) -> None:
    """Refuses to use a module whose constructor could draw nothing, and that `init` was not called on since."""
    waiting = [name for name, blank in getattr(node, "_elegy_undrawn", {}).items() if blank is not None]
    if waiting:
        raise TraceError(
            f"{type(node).__name__}: the parameter {waiting[0]!r} was created in __init__ inside a jax transform, but "
            "the random stream belongs to the code outside of it. There are two ways out:\n"
            "  1. Pass a key as an argument of the transformed function, and give it to the module: "
            "module.init(x, rng=key).\n"
            "  2. Construct the module inside `with elegy.rng_context(key):`."
        )


def forget_pending(root: Node) -> None:
    """Called when the state of a module is read by name: what was updated inside a jax transform is not lost then."""
    if root._elegy_born != tracing.EAGER:
        for node in walk([root]):
            if getattr(node, "_elegy_pending", None):
                node._elegy_pending.clear()


def meta_of(node: Node) -> Meta:
    layout = node._elegy_layout
    return node._elegy_meta if layout is None else layout.meta


def change(node: Node, meta: Meta | None = None, *, ties: bool = True) -> None:
    """Marks the structure of a module as changed. With `ties=False` its submodules are what they were."""
    layout = node._elegy_layout
    set_meta(node, meta_of(node) if meta is None else meta)
    if ties:
        set_ties(node, None)
    elif layout is not None:
        set_ties(node, layout.ties)
    set_layout(node, None)
    if layout is not None:
        structure.version = object()  # else nobody has looked at the module since its last change


def relayout(node: Node) -> None:
    """Sends the next flatten of a module through `layout_of`, its structure being what it was."""
    layout = node._elegy_layout
    if layout is not None:
        set_meta(node, layout.meta)
        set_ties(node, layout.ties)
        set_layout(node, None)
        structure.version = object()


class Structure:
    """Another object after each structural change of a module, so that a cached view of one knows when to look again.

    An object and not a number, since two threads that count at once might lose a change.
    """

    version = object()


structure = Structure()


# Assignment past the frozen __setattr__, at the price of one C call.
set_attributes = Node.__dict__["__dict__"].__set__
set_born = Node.__dict__["_elegy_born"].__set__
set_class = Node.__dict__["_elegy_class"].__set__
set_compiled = Node.__dict__["_elegy_compiled"].__set__
set_layout = Node.__dict__["_elegy_layout"].__set__
set_meta = Node.__dict__["_elegy_meta"].__set__
set_pending = Node.__dict__["_elegy_pending"].__set__
set_ties = Node.__dict__["_elegy_ties"].__set__
set_undrawn = Node.__dict__["_elegy_undrawn"].__set__


# ---------------------------------------------------------------------------------------------------------------------
# Flatten and unflatten
# ---------------------------------------------------------------------------------------------------------------------


def _children(node: Node, layout: Layout) -> tuple[tp.Any, ...]:
    if layout.ties:
        node = cut(node, [tie.target for tie in layout.ties])
    compounds = layout.compounds
    return tuple(
        dynamic_part(node, name, compounds[name]) if name in compounds else node.__dict__[name] for name in layout.names
    )


def flatten(node: Node) -> tuple[tuple[tp.Any, ...], Layout]:
    if holders:
        wait_for(node)
    layout = node._elegy_layout
    if layout is None:
        layout = layout_of(node)
    children = layout.read(node.__dict__) if layout.simple else _children(node, layout)
    if holders and is_held_elsewhere(node):
        return flatten(node)  # what was read may be tracers of that thread
    return children, layout


def flatten_with_keys(node: Node):
    children, layout = flatten(node)
    return tuple(zip(layout.keys, children, strict=True)), layout


def unflatten(layout: Layout, children: Iterable[tp.Any]) -> Node:
    node = object.__new__(layout.cls)
    attributes = layout.static.copy()
    attributes.update(zip(layout.names, children))  # noqa: B905  (hot, and JAX checked the length)
    set_attributes(node, attributes)
    set_layout(node, layout)
    set_born(node, tracing.current())
    if not layout.simple:
        for name, compound in layout.compounds.items():
            attributes[name], same = join(compound, attributes[name])
            if not same:
                relayout(node)
        if layout.ties:
            _tie(node, layout.ties)
    return node


_registered: weakref.WeakSet[type[Node]] = weakref.WeakSet()


def register(cls: type[Node]) -> None:
    """Makes `cls` a pytree. Done when the first instance appears, so that classes without instances cost nothing."""
    if cls in _registered:
        return
    with lock:
        if cls in _registered:  # another thread may have been first
            return
        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        for base in cls.__mro__:
            if issubclass(base, Node) and dataclasses.is_dataclass(base):
                _be_a_module(base)
        _registered.add(cls)


def _be_a_module(cls: type) -> None:
    """Takes from a dataclass what `dataclasses` wrote. Comparing field by field has no meaning for arrays: a module is
    equal to itself. And it is shown and frozen in its own way."""
    if _is_generated(cls.__eq__):  # its own, or that of a dataclass which is no module
        cls.__eq__ = object.__eq__  # type: ignore[method-assign]
        if cls.__hash__ is None or _is_generated(cls.__hash__):
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]
    for name in ("__repr__", "__setattr__", "__delattr__"):
        method = cls.__dict__.get(name)
        if _is_generated(method) and (name != "__repr__" or hasattr(method, "__wrapped__")):
            type.__delattr__(cls, name)


def _is_generated(method: tp.Any) -> bool:
    """Whether a method was written by `dataclasses` rather than by the user."""
    code = getattr(getattr(method, "__wrapped__", method), "__code__", None)
    return code is not None and code.co_filename == "<string>"


# ---------------------------------------------------------------------------------------------------------------------
# Walking, and modules that are reachable by two paths
# ---------------------------------------------------------------------------------------------------------------------


def children(node: Node) -> list[tuple[Step, Node]]:
    """The submodules that a module holds itself, in the order of its leaves."""
    found: list[tuple[Step, Node]] = []
    for name, value in node.__dict__.items():
        if isinstance(value, Node):
            found.append(((name, None), value))
        elif not isinstance(value, jax.Array) and not is_static(value) and not is_plain(value):
            for index, leaf in enumerate(jax.tree.leaves(value, is_leaf=is_node)):
                if isinstance(leaf, Node):
                    found.append(((name, index), leaf))
    return found


def child_parts(node: Node) -> list[tuple[tuple[str, ...], Node]]:
    """The submodules that a module holds itself, with the readable parts of the way to each: `("layers", "0")`."""
    found: list[tuple[tuple[str, ...], Node]] = []
    for name, value in node.__dict__.items():
        if isinstance(value, Node):
            found.append(((name,), value))
        elif not isinstance(value, jax.Array) and not is_static(value) and not is_plain(value):
            for path, leaf in jax.tree_util.tree_flatten_with_path(value, is_leaf=is_node)[0]:
                if isinstance(leaf, Node):
                    found.append(((name, *(jax.tree_util.keystr((key,), simple=True) for key in path)), leaf))
    return found


def walk(roots: Iterable[Node]) -> list[Node]:
    """Every module reachable from `roots`, each once, parents before children. Does not recurse."""
    seen: dict[int, Node] = {}
    stack = list(roots)[::-1]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack.extend(child for _, child in reversed(children(node)))
    return list(seen.values())


def nodes_in(tree: tp.Any) -> list[Node]:
    """The modules at the top of a pytree, each once."""
    unique = {id(leaf): leaf for leaf in jax.tree.leaves(tree, is_leaf=is_node) if isinstance(leaf, Node)}
    return list(unique.values())


def find_ties(root: Node) -> None:
    """Looks for modules reachable by two paths; every module below `root` learns what it must know to flatten."""
    seen = {id(root)}
    order = [root]
    shared = False
    for node in order:  # grows while it is read
        for _, child in children(node):
            if id(child) in seen:
                shared = True
            else:
                seen.add(id(child))
                order.append(child)
    ties = _part_points(root) if shared else {}
    for node in order:
        found = tuple(sorted(ties.get(id(node), ()), key=repr))
        if node._elegy_layout is not None and node._elegy_layout.ties != found:
            change(node)
        if node._elegy_layout is None:
            set_ties(node, found)


def _part_points(root: Node) -> dict[int, list[Tie]]:
    """For each module, by id, the pairs of occurrences that part there."""
    first: dict[int, tuple[Step, ...]] = {}
    repeats: dict[int, list[tuple[Step, ...]]] = {}
    stack: list[tuple[Node, tuple[Step, ...]]] = [(root, ())]
    paths: dict[tuple[Step, ...], Node] = {}
    while stack:
        node, path = stack.pop()
        if id(node) in first:
            repeats.setdefault(id(node), []).append(path)
        else:
            first[id(node)] = path
            paths[path] = node
            stack.extend((child, (*path, step)) for step, child in reversed(children(node)))
    ties: dict[int, list[Tie]] = {}
    for identity, others in repeats.items():
        inside: dict[tuple[Step, ...], list[tuple[Step, ...]]] = {}
        for place in (first[identity], *others):
            for size in range(len(place)):
                inside.setdefault(place[:size], []).append(place)
        for path, (source, *targets) in inside.items():
            for target in targets:
                if target[len(path)] != source[len(path)]:
                    ties.setdefault(id(paths[path]), []).append(Tie(target[len(path) :], source[len(path) :]))
    return ties


class _Contents:
    """The leaves of the containers that some modules hold, each flattened once, and what is to be put among them."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], tuple[Node, list[tp.Any], tp.Any]] = {}
        self._changed: set[tuple[int, str]] = set()

    def _leaves(self, node: Node, name: str) -> list[tp.Any]:
        key = (id(node), name)
        if key not in self._held:
            is_leaf = lambda leaf: is_node(leaf) or leaf is TIED  # noqa: E731
            self._held[key] = (node, *jax.tree.flatten(node.__dict__[name], is_leaf=is_leaf))
        return self._held[key][1]

    def child(self, node: Node, step: Step) -> tp.Any:
        name, index = step
        return node.__dict__[name] if index is None else self._leaves(node, name)[index]

    def place(self, node: Node, step: Step, child: tp.Any) -> None:
        name, index = step
        if index is None:
            node.__dict__[name] = child
        else:
            self._leaves(node, name)[index] = child
            self._changed.add((id(node), name))

    def write(self) -> None:
        for node, name in self._changed:
            node, leaves, treedef = self._held[node, name]
            node.__dict__[name] = treedef.unflatten(leaves)


class _Together(Node):
    """Holds a tree of modules, so that what two of them share is flattened once."""


def joined(tree: tp.Any) -> Node:
    """A module whose attribute `tree` is a tree of modules."""
    register(_Together)
    together = object.__new__(_Together)
    set_attributes(together, {"tree": tree})
    set_meta(together, Meta())
    set_ties(together, None)
    set_layout(together, None)
    return together


def copied(tree: tp.Any, change: Callable[[tp.Any, tp.Any], tp.Any] = lambda keys, leaf: leaf) -> tp.Any:
    """A tree with copies of its modules; what two of them share, their copies share.

    **Arguments:**

    - `change`: gives the leaf of the copy for the key path of a leaf in `tree` and the leaf itself.
    """

    if not nodes_in(tree):
        return jax.tree_util.tree_map_with_path(change, tree)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(joined(tree))
    changed = [change(as_in_containers(keys[1:]), leaf) for keys, leaf in leaves]
    return treedef.unflatten(changed).__dict__["tree"]


def fresh(leaf: tp.Any) -> tp.Any:
    """A leaf for a copy: JAX's arrays are immutable, NumPy's are not."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def shallow_copy(node: Node) -> Node:
    """A new object with the same attributes."""
    copy = object.__new__(type(node))
    copy.__dict__.update(node.__dict__)
    set_born(copy, tracing.current())
    set_meta(copy, meta_of(node))
    set_ties(copy, ())
    set_layout(copy, None)
    return copy


def cut(node: Node, targets: Sequence[tuple[Step, ...]]) -> Node:
    """A copy of the nodes along `targets`, in which a marker stands at the end of each."""
    copy = shallow_copy(node)
    pending = getattr(node, "_elegy_pending", None)
    if pending:
        set_pending(copy, pending)  # what becomes of the copy becomes of the node
    groups: dict[Step, list[tuple[Step, ...]]] = {}
    for target in targets:
        groups.setdefault(target[0], []).append(target[1:])
    contents = _Contents()
    for step, rests in groups.items():
        deeper = [rest for rest in rests if rest]
        contents.place(copy, step, cut(contents.child(copy, step), deeper) if deeper else TIED)
    contents.write()
    return copy


def _tie(node: Node, ties: Sequence[Tie]) -> None:
    """Puts the module found at the source of each tie at its target too."""
    contents = _Contents()
    orders: dict[int, tuple[Node, tuple[str, ...]]] = {}
    for tie in ties:
        try:
            source = parent = node
            for step in tie.source:
                source = contents.child(source, step)
            order = node._elegy_layout.order if node._elegy_layout is not None else ()
            for step in tie.target[:-1]:
                parent = contents.child(parent, step)
                if parent._elegy_layout is not None:
                    order = parent._elegy_layout.order
                    relayout(parent)
                set_ties(parent, None)
            contents.place(parent, tie.target[-1], source)
            if order:
                orders.setdefault(id(parent), (parent, order))
        except (AttributeError, IndexError, KeyError):
            continue  # objects without structure stand where the modules were
    contents.write()
    for parent, order in orders.values():
        attributes = parent.__dict__
        if len(order) == len(attributes):
            ordered = {name: attributes[name] for name in order}
            attributes.clear()
            attributes.update(ordered)
