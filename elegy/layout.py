"""The structure of a module: its bookkeeping, its slots, and the layout in which both are fixed.

A module's attributes are split once, when its structure is fixed, into *dynamic* ones (arrays, modules, and containers
or foreign pytrees that hold some) and *static* ones. The result is a `Layout`, interned so that modules of equal
structure share one object and JAX compares structures by identity.

A *slot* is one place for a module or an array: an attribute, or one of the leaves of its value. Code that goes
through a module reads its slots.
"""

from __future__ import annotations

import dataclasses
import operator
import typing as tp
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import jax

from elegy.compounds import Compound, split
from elegy.errors import StaticValueError
from elegy.leaves import (
    Incomparable,
    Node,
    incomparable,
    is_array,
    is_foreign,
    is_inexact,
    is_node,
    is_plain,
    is_static,
    set_layout,
    set_meta,
    set_ties,
    static_key,
)
from elegy.transaction import install_attribute, structure, visible

# ---------------------------------------------------------------------------------------------------------------------
# Bookkeeping
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
    records: Mapping[str, tuple[Record, ...]] = dataclasses.field(default_factory=dict)
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
                (method, tuple((record.attribute, record.arguments) for record in self.records[method]))
                for method in sorted(self.records)
            ),
        )


# The way from a module to a child: the attribute, and the position among the leaves of the attribute's value when that
# value is a container.
Step = tuple[str, int | None]


class Tie(tp.NamedTuple):
    target: tuple[Step, ...]
    source: tuple[Step, ...]


def meta_of(node: Node) -> Meta:
    version = visible(node)
    layout = version._elegy_layout
    return version._elegy_meta if layout is None else layout.meta


def change(version: Node, meta: Meta | None = None, *, ties: bool = True) -> None:
    """Marks the structure of a version of a module as changed. With `ties=False` its submodules are what they were."""
    layout = version._elegy_layout
    set_meta(version, meta_of(version) if meta is None else meta)
    if ties:
        set_ties(version, None)
    elif layout is not None:
        set_ties(version, layout.ties)
    set_layout(version, None)
    if layout is not None:
        structure.version = object()  # without a layout, nobody has looked at the module since its last change


def relayout(version: Node) -> None:
    """Drops the layout of a version of a module, so that `layout_of` makes it again. The bookkeeping and ties stay."""
    layout = version._elegy_layout
    if layout is not None:
        set_meta(version, layout.meta)
        set_ties(version, layout.ties)
        set_layout(version, None)
        structure.version = object()


# ---------------------------------------------------------------------------------------------------------------------
# Layouts
# ---------------------------------------------------------------------------------------------------------------------


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
        "put",
        "read",
        "rows",
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
        # The order of the attributes if there are ties, else empty: the first path to a shared module depends on it.
        self.order = order
        self.simple = not compounds and not ties
        self.keys = tuple(_AttributeKey(name) for name in names)
        self.read, self.put = _reader(names), _writer(names)
        # The slots of a module that has this layout, once somebody asked.
        self.rows: Sequence[_Row] | None = None
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
    """The error that names the attribute whose static value cannot be compared."""
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


def _writer(names: tuple[str, ...]) -> Callable[[dict[str, tp.Any], Iterable[tp.Any]], None]:
    """The inverse of `_reader`. Few names are written out, which takes half the time of a loop."""
    a, b, c = (*names, "", "", "")[:3]

    def put_one(attributes: dict[str, tp.Any], children: Iterable[tp.Any]) -> None:
        (attributes[a],) = children

    def put_two(attributes: dict[str, tp.Any], children: Iterable[tp.Any]) -> None:
        attributes[a], attributes[b] = children

    def put_three(attributes: dict[str, tp.Any], children: Iterable[tp.Any]) -> None:
        attributes[a], attributes[b], attributes[c] = children

    def put(attributes: dict[str, tp.Any], children: Iterable[tp.Any]) -> None:
        attributes.update(zip(names, children, strict=True))

    return {1: put_one, 2: put_two, 3: put_three}.get(len(names), put)


_layouts: weakref.WeakValueDictionary[Hashable, Layout] = weakref.WeakValueDictionary()


def split_attributes(attributes: dict[str, tp.Any], parameters: Mapping[str, bool]):
    """Names of the dynamic attributes, the static ones, and how to split the compound ones."""
    names: list[str] = []
    static: dict[str, tp.Any] = {}
    compounds: dict[str, Compound] = {}
    for name, value in attributes.items():
        if value is None or isinstance(value, Node) or is_array(value):
            names.append(name)  # None is a place to which equinox.tree_at may put an array
        elif name in parameters and jax.tree_util.all_leaves([value]):
            names.append(name)
        elif (is_static(value) or is_plain(value)) and name not in parameters:
            static[name] = value
        else:
            compound, has_dynamic = split(value)
            if has_dynamic or name in parameters:
                names.append(name)
                if compound is not None:
                    compounds[name] = compound
            else:
                static[name] = value
    return tuple(names), static, compounds


def interned(cls, meta, names, static, compounds, ties, order) -> Layout:
    for name in names:
        install_attribute(cls, name)
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
    except TypeError:  # an unhashable static value: the layout is not interned, but compared by value
        return Layout(cls, meta, names, static, compounds, ties, order, key)
    except Incomparable as error:
        raise _culprit(Layout(cls, meta, names, static, compounds, ties, order, key), error) from None
    if layout is None:
        layout = Layout(cls, meta, names, static, compounds, ties, order, key)
        layout = _layouts.setdefault(key, layout)
    return layout


def _culprit(made: Layout, error: Incomparable) -> StaticValueError:
    """The error that names the static value at fault when the comparison of a layout with known ones has failed."""
    for layout in list(_layouts.values()):
        if layout.cls is made.cls:
            try:
                bool(made == layout)
            except StaticValueError as found:
                return found
    return incomparable(made.cls.__name__, made, error)


# ---------------------------------------------------------------------------------------------------------------------
# Slots
# ---------------------------------------------------------------------------------------------------------------------


class Slot(tp.NamedTuple):
    """A place of a module where another module or an array stands.

    - `name`: the attribute.
    - `position`: the number among the leaves of the attribute's value, modules counting as leaves.
    - `number`: the same, where None counts as a leaf too. A single frozen array is noted by it, since it is the same in
      each part of a module that `elegy.partition` gives, where None stands for other arrays.
    - `keys`: the way from the attribute's value to the place, None if the value itself stands there.
    - `holds`: what stands there.
    - `declared`: whether it is trainable unless it is frozen: an inexact array of a parameter that was declared
      trainable, or of a pytree of another library.
    - `trainable`: whether it is trainable.
    """

    name: str
    position: int
    number: int
    keys: tuple[tp.Any, ...] | None
    holds: tp.Literal["module", "array", "object"]
    declared: bool
    trainable: bool

    @property
    def step(self) -> Step:
        return (self.name, None if self.keys is None else self.position)

    @property
    def parts(self) -> tuple[str, ...]:
        """The readable parts of the way from the module: `("layers", "0")`."""
        return (self.name, *(jax.tree_util.keystr((key,), simple=True) for key in self.keys or ()))

    @property
    def kind(self) -> tp.Literal["trainable", "frozen", "state"]:
        return "trainable" if self.trainable else "frozen" if self.declared else "state"


# The slots of one attribute: its name, whether its value is the module or the array itself, and the slot of each leaf
# of the value, with None for the leaves that are static.
_Row = tuple[str, bool, tuple[Slot | None, ...]]


def slots(node: Node) -> list[tuple[Slot, tp.Any]]:
    """The places of a module where modules and arrays stand, in the order of its leaves, with what stands there."""
    return [place for places in slots_by_attribute(node).values() for place in places]


def slots_by_attribute(node: Node) -> dict[str, list[tuple[Slot, tp.Any]]]:
    """What `slots` gives, for each attribute that has any."""
    version = visible(node)
    layout = version._elegy_layout
    if layout is not None and layout.rows is not None:
        known = _read(layout.rows, version.__dict__)
        if known is not None:
            return known
    # There is no layout yet, or no slots of it, or the module was put together from objects of other kinds.
    rows = _rows(version)
    if layout is not None:
        layout.rows = rows
    found = _read(rows, version.__dict__)
    assert found is not None
    return found


def _read(rows: Sequence[_Row], attributes: dict[str, tp.Any]) -> dict[str, list[tuple[Slot, tp.Any]]] | None:
    """What stands in the slots, or None if it is not what the slots are for."""
    found: dict[str, list[tuple[Slot, tp.Any]]] = {}
    for name, is_direct, row in rows:
        value = attributes[name]
        leaves = (value,) if is_direct else jax.tree.leaves(value, is_leaf=is_node)
        if len(leaves) != len(row):
            return None
        places: list[tuple[Slot, tp.Any]] = []
        for slot, leaf in zip(row, leaves):  # noqa: B905  (hot)
            if slot is None:
                if isinstance(leaf, Node) or is_array(leaf):
                    return None
            elif slot.holds != _holds(leaf):
                return None
            else:
                places.append((slot, leaf))
        if places:
            found[name] = places
    return found


def _holds(leaf: tp.Any) -> tp.Literal["module", "array", "object"]:
    return "array" if is_array(leaf) else "module" if isinstance(leaf, Node) else "object"


def _rows(version: Node) -> list[_Row]:
    meta = meta_of(version)
    rows: list[_Row] = []
    for name, value in list(version.__dict__.items()):  # another thread may commit meanwhile
        is_parameter = name in meta.parameters
        if is_array(value) or isinstance(value, Node) or value is None or (is_parameter and not _is_tree(value)):
            rows.append((name, True, (_slot(meta, name, value, 0, 0, None, False),)))
        elif is_parameter or (not (is_static(value) or is_plain(value)) and _is_tree(value)):
            parts = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda part: part is None or is_node(part))[0]
            places = [(number, keys, leaf) for number, (keys, leaf) in enumerate(parts) if leaf is not None]
            foreign = frozenset() if is_parameter else _leaves_of_foreign(value)
            row = tuple(
                _slot(meta, name, leaf, position, number, keys, position in foreign)
                for position, (number, keys, leaf) in enumerate(places)
            )
            if any(row):
                rows.append((name, False, row))
    return rows


def _is_tree(value: tp.Any) -> bool:
    return not jax.tree_util.all_leaves([value])


def _slot(
    meta: Meta, name: str, leaf: tp.Any, position: int, number: int, keys: tp.Any, is_foreign: bool
) -> Slot | None:
    is_parameter, holds = name in meta.parameters, _holds(leaf)
    if holds == "object" and (leaf is None or not is_parameter):
        return None
    may_be = meta.parameters[name] if is_parameter else is_foreign
    declared = may_be and holds == "array" and is_inexact(leaf)
    return Slot(
        name, position, number, keys, holds, declared, declared and meta.trainable and (name, number) not in meta.frozen
    )


def _leaves_of_foreign(value: tp.Any) -> frozenset[int]:
    """The positions of those leaves of a value that are in pytrees of other libraries."""
    found: list[bool] = []
    for part in jax.tree.leaves(value, is_leaf=lambda part: isinstance(part, Node) or is_foreign(part)):
        leaves = jax.tree.leaves(part, is_leaf=is_node) if is_foreign(part) else [part]
        found.extend([is_foreign(part)] * len(leaves))
    return frozenset(position for position, is_in_foreign in enumerate(found) if is_in_foreign)


# ---------------------------------------------------------------------------------------------------------------------
# Walking
# ---------------------------------------------------------------------------------------------------------------------


def children(node: Node) -> list[tuple[Step, Node]]:
    """The submodules that a module holds itself, in the order of its leaves."""
    return [(slot.step, value) for slot, value in slots(node) if slot.holds == "module"]


def child_parts(node: Node) -> list[tuple[tuple[str, ...], Node]]:
    """The submodules that a module holds itself, with the readable parts of the way to each: `("layers", "0")`."""
    return [(slot.parts, value) for slot, value in slots(node) if slot.holds == "module"]


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
