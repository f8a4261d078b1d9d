"""What is a leaf of a module, and how a module is taken apart and put together again.

A module's attributes are split once, when its structure is fixed, into *dynamic* ones (arrays, modules, and containers
or foreign pytrees that hold some) and *static* ones. The result is a `Layout`, interned so that modules of equal
structure share one object and JAX compares structures by identity.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import sys
import types
import typing as tp
import weakref

import jax
import numpy as np

from elegy import tracing
from elegy.errors import FrozenModuleError, StaticValueError

# ---------------------------------------------------------------------------------------------------------------------
# Frozen containers
# ---------------------------------------------------------------------------------------------------------------------


def _refuse(self: tp.Any, *args: tp.Any, **kwargs: tp.Any) -> tp.NoReturn:
    raise FrozenModuleError(
        f"this {type(self).__base__.__name__} is an attribute of a module, and modules are immutable.\n"
        "  Fill it in __init__, or build a new module; to change the arrays in it use set_parameters or equinox.tree_at."
    )


class FrozenList(list):
    """A list that belongs to a constructed module: it reads as any list and refuses to change."""

    __slots__ = ()
    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self):
        return FrozenList, (list(self),)

    def __deepcopy__(self, memo):
        import copy

        return FrozenList(copy.deepcopy(list(self), memo))


class FrozenDict(dict):
    """A dict that belongs to a constructed module: it reads as any dict and refuses to change."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self):
        return FrozenDict, (dict(self),)

    def __deepcopy__(self, memo):
        import copy

        return FrozenDict(copy.deepcopy(dict(self), memo))


def _sorted_keys(mapping: dict[tp.Any, tp.Any]) -> tuple[tp.Any, ...]:
    try:
        return tuple(sorted(mapping))
    except TypeError:  # keys of several types have no order of their own
        return tuple(mapping)


def _flatten_dict(mapping: FrozenDict):
    keys = _sorted_keys(mapping)
    return tuple(mapping[key] for key in keys), keys


def _flatten_dict_with_keys(mapping: FrozenDict):
    keys = _sorted_keys(mapping)
    return tuple((jax.tree_util.DictKey(key), mapping[key]) for key in keys), keys


jax.tree_util.register_pytree_with_keys(
    FrozenList,
    lambda x: (tuple((jax.tree_util.SequenceKey(i), value) for i, value in enumerate(x)), None),
    lambda _, children: FrozenList(children),
    lambda x: (tuple(x), None),
)
jax.tree_util.register_pytree_with_keys(
    FrozenDict,
    _flatten_dict_with_keys,
    lambda keys, children: FrozenDict(zip(keys, children, strict=True)),
    _flatten_dict,
)


def freeze_containers(value: tp.Any) -> tp.Any:
    """Lists and dicts, nested ones included, in their frozen form."""
    kind = type(value)
    if kind is list or kind is FrozenList:
        return FrozenList(freeze_containers(item) for item in value)
    if kind is dict or kind is FrozenDict:
        return FrozenDict((key, freeze_containers(item)) for key, item in value.items())
    if kind is tuple:
        return tuple(freeze_containers(item) for item in value)
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Leaves and static values
# ---------------------------------------------------------------------------------------------------------------------


class Node:
    """What the pytree machinery needs of a module: attributes in `__dict__`, and four slots beside it.

    - `_layout`: the interned structure, or None after a structural change.
    - `_meta`: the bookkeeping from which the layout is made.
    - `_ties`: submodules reachable by two paths that part at this node; None when nobody has looked.
    - `_born`: the trace to which the object belongs.
    """

    __slots__ = ("__dict__", "__weakref__", "_born", "_compiled", "_depth", "_layout", "_meta", "_pending", "_ties")

    _born: tp.Any
    _compiled: tp.Any
    _depth: int
    _layout: Layout | None
    _meta: Meta
    _pending: tp.Any
    _ties: tuple[Tie, ...] | None


def is_node(value: tp.Any) -> bool:
    return isinstance(value, Node)


def is_array(value: tp.Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def is_inexact(value: tp.Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, np.inexact)


def is_foreign(value: tp.Any) -> bool:
    """Whether a value is a pytree of another library: an `equinox` layer, say."""
    if value is None or isinstance(value, (Node, jax.Array, *_PLAIN, *_CALLABLE)) or is_plain_container(value):
        return False
    return not jax.tree_util.all_leaves([value])


def is_static(value: tp.Any) -> bool:
    """Whether a value is static at first sight. Containers and unknown objects need a closer look."""
    return isinstance(value, (*_PLAIN, *_CALLABLE))


def _is_dynamic(leaf: tp.Any) -> bool:
    return isinstance(leaf, Node) or is_array(leaf)


class _Tied:
    """Stands, while a module is flattened, for a submodule that is found by an earlier path."""

    def __repr__(self) -> str:
        return "tied"


TIED = _Tied()

_PLAIN = (int, float, complex, str, bytes, bool, type(None), type, np.dtype, np.generic, range)
_CALLABLE = (types.FunctionType, types.BuiltinFunctionType, np.ufunc)


def check_static(owner: str, name: str, value: tp.Any) -> None:
    """Refuses a static value that hides arrays or cannot be compared."""
    if is_static(value):
        return
    where = f"{owner}.{name}"
    if isinstance(value, types.MethodType) and isinstance(value.__self__, Node):
        raise StaticValueError(
            f"{where} is the bound method {value.__qualname__} of a module. It would keep that module's arrays out of sight "
            f"of JAX.\n  Store the module itself, or the plain function {value.__qualname__}."
        )
    if isinstance(value, functools.partial):
        for item in (value.func, *value.args, *value.keywords.values()):
            if any(_is_dynamic(leaf) for leaf in jax.tree.leaves(item, is_leaf=is_node)):
                raise StaticValueError(
                    f"{where} is a functools.partial that holds an array or a module, which JAX would not see.\n"
                    "  Use jax.tree_util.Partial, which is a pytree."
                )
            check_static(owner, name, item)
        return
    if isinstance(value, (set, frozenset)):
        if any(_is_dynamic(item) for item in value):
            raise StaticValueError(
                f"{where} is a set that holds a module, which JAX would not see.\n  Use a tuple, a list or a dict."
            )
        return
    if isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            check_static(owner, name, item)
        return
    if isinstance(value, np.ndarray):
        raise StaticValueError(f"{where} is a NumPy array of dtype {value.dtype}, which JAX cannot hold.\n  Use a tuple.")
    _check_comparable(where, value)


def _check_comparable(where: str, value: tp.Any) -> None:
    if type(value).__eq__ is object.__eq__:
        return
    import copy

    try:
        other = copy.deepcopy(value)
    except Exception:
        return  # what cannot be copied is compared by identity first, which always works
    try:
        equal = value == other
    except Exception as error:
        raise _incomparable(where, value, f"raises {type(error).__name__}: {error}") from None
    if not isinstance(equal, (bool, np.bool_)):
        raise _incomparable(where, value, f"gives a {type(equal).__name__}")


def _incomparable(where: str, value: tp.Any, what: str) -> StaticValueError:
    return StaticValueError(
        f"{where} is a {type(value).__name__} whose == {what}, not a bool. JAX compares static values to decide whether a "
        "compiled function can be used again.\n  Give the class an __eq__ that returns a bool, or keep its arrays in "
        "attributes of the module."
    )


def static_key(value: tp.Any) -> tp.Hashable:
    """A key that tells apart what `==` does not: 1, 1.0 and True, 0.0 and -0.0, a list and a tuple."""
    kind = type(value)
    if kind is float:
        return (kind, value.hex() if math.isfinite(value) else repr(value))
    if kind in (tuple, FrozenList, list):
        return (kind, tuple(static_key(item) for item in value))
    if kind in (FrozenDict, dict):
        return (kind, tuple((static_key(key), static_key(item)) for key, item in value.items()))
    return (kind, value)


def thaw(value: tp.Any) -> tp.Any:
    """Frozen containers as plain lists and dicts."""
    kind = type(value)
    if kind is FrozenList:
        return [thaw(item) for item in value]
    if kind is FrozenDict:
        return {key: thaw(item) for key, item in value.items()}
    if kind is tuple:
        return tuple(thaw(item) for item in value)
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Bookkeeping and layouts
# ---------------------------------------------------------------------------------------------------------------------


class Record(tp.NamedTuple):
    """A module that a method created at one position in its order of creation."""

    attribute: str
    arguments: tuple[tp.Any, ...]
    site: str


@dataclasses.dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a module besides its attributes."""

    trainable: bool = True
    initialized: bool = False
    # Parameter name -> whether it was declared trainable.
    parameters: tp.Mapping[str, bool] = dataclasses.field(default_factory=dict)
    # Names of the parameters that were created in __init__, which a reset keeps.
    constructed: tuple[str, ...] = ()
    # Method name -> what it creates, in order.
    hooks: tp.Mapping[str, tuple[Record, ...]] = dataclasses.field(default_factory=dict)

    def key(self) -> tp.Hashable:
        # Creation sites and arguments stay out: modules made in two places have one structure.
        return (
            self.trainable,
            self.initialized,
            tuple(self.parameters.items()),
            self.constructed,
            tuple((method, tuple(record.attribute for record in self.hooks[method])) for method in sorted(self.hooks)),
        )


# The way from a module to a child: the attribute, and the position among the leaves of the attribute's value when that
# value is a container.
Step = tuple[str, tp.Union[int, None]]


class Tie(tp.NamedTuple):
    target: tuple[Step, ...]
    source: tuple[Step, ...]


class Compound(tp.NamedTuple):
    """How to split a container or foreign pytree into its dynamic and its static part."""

    treedef: tp.Any
    dynamic: tuple[bool, ...]
    static: tuple[tp.Any, ...]


class Layout:
    """The static structure of a module: the auxiliary data of its pytree node."""

    __slots__ = ("__weakref__", "_key", "cls", "compounds", "keys", "meta", "names", "read", "simple", "static", "ties")

    def __init__(self, cls, meta, names, static, compounds, ties, key):
        self.cls = cls
        self.meta = meta
        self.names = names
        self.static = static
        self.compounds = compounds
        self.ties = ties
        self.simple = not compounds and not ties
        self.keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)
        self.read = _reader(names)
        self._key = key

    def __eq__(self, other):
        if self is other:
            return True
        return isinstance(other, Layout) and self.cls is other.cls and self._key == other._key

    def __hash__(self):
        return hash((self.cls, self.names))

    def __repr__(self):
        parts = [f"{name}={value!r}" for name, value in self.static.items()]
        if not self.meta.trainable:
            parts.append("trainable=False")
        if self.meta.initialized:
            parts.append("initialized")
        return f"{self.cls.__name__}({', '.join(parts)})"


def _reader(names: tuple[str, ...]) -> tp.Callable[[dict[str, tp.Any]], tuple[tp.Any, ...]]:
    if not names:
        return lambda attributes: ()
    if len(names) == 1:
        (name,) = names
        return lambda attributes: (attributes[name],)
    return operator.itemgetter(*names)


_layouts: weakref.WeakValueDictionary[tp.Hashable, Layout] = weakref.WeakValueDictionary()


def _split(attributes: dict[str, tp.Any], parameters: tp.Mapping[str, bool]):
    """Names of the dynamic attributes, the static ones, and how to split the compound ones."""
    names: list[str] = []
    static: dict[str, tp.Any] = {}
    compounds: dict[str, Compound] = {}
    for name, value in attributes.items():
        if isinstance(value, Node) or is_array(value):
            names.append(name)
        elif name in parameters and jax.tree_util.all_leaves([value]):
            names.append(name)
        elif is_static(value) and name not in parameters:
            static[name] = value
        else:
            leaves, treedef = jax.tree.flatten(value, is_leaf=is_node)
            dynamic = tuple(_is_dynamic(leaf) for leaf in leaves)
            if any(dynamic) or is_foreign(value) or name in parameters:
                names.append(name)
                if not all(dynamic):
                    rest = tuple(None if moves else leaf for moves, leaf in zip(dynamic, leaves, strict=True))
                    compounds[name] = Compound(treedef, dynamic, rest)
            else:
                static[name] = value
    return tuple(names), static, compounds


def is_plain_container(value: tp.Any) -> bool:
    return type(value) in (tuple, list, dict, FrozenList, FrozenDict) or (
        isinstance(value, tuple) and hasattr(value, "_fields")
    )


def make_layout(node: Node, ties: tuple[Tie, ...]) -> Layout:
    cls, meta = type(node), node._meta
    names, static, compounds = _split(node.__dict__, meta.parameters)
    key = (
        cls,
        meta.key(),
        names,
        tuple((name, static_key(value)) for name, value in static.items()),
        tuple((name, c.treedef, c.dynamic, static_key(c.static)) for name, c in compounds.items()),
        ties,
    )
    try:
        layout = _layouts.get(key)
    except TypeError:  # an unhashable static value: such layouts are compared by value
        return Layout(cls, meta, names, static, compounds, ties, key)
    if layout is None:
        layout = Layout(cls, meta, names, static, compounds, ties, key)
        layout = _layouts.setdefault(key, layout)
    return layout


def layout_of(node: Node) -> Layout:
    """The layout of a module, made anew if its structure changed."""
    layout = node._layout
    if layout is not None:
        return layout
    pending = getattr(node, "_pending", None)
    if pending is not None:
        pending.clear()
        set_pending(node, None)
    if node._ties is None:
        find_ties(node)
    ties = node._ties or ()
    layout = make_layout(cut(node, [tie.target for tie in ties]) if ties else node, ties)
    set_layout(node, layout)
    return layout


def meta_of(node: Node) -> Meta:
    layout = node._layout
    return node._meta if layout is None else layout.meta


def change(node: Node, meta: Meta | None = None, *, ties: bool = True) -> None:
    """Marks the structure of a module as changed. With `ties=False` its submodules are what they were."""
    layout = node._layout
    set_meta(node, meta_of(node) if meta is None else meta)
    if ties:
        set_ties(node, None)
    elif layout is not None:
        set_ties(node, layout.ties)
    set_layout(node, None)
    structure.version += 1


def relayout(node: Node) -> None:
    """Sends the next flatten of a module through `layout_of`, its structure being what it was."""
    layout = node._layout
    if layout is not None:
        set_meta(node, layout.meta)
        set_ties(node, layout.ties)
        set_layout(node, None)


class Structure:
    """Counts structural changes of constructed modules, so that a cached view of one knows when to look again."""

    version = 0


structure = Structure()

# Assignment past the frozen __setattr__, at the price of one C call.
set_layout = Node.__dict__["_layout"].__set__
set_meta = Node.__dict__["_meta"].__set__
set_ties = Node.__dict__["_ties"].__set__
set_born = Node.__dict__["_born"].__set__
set_pending = Node.__dict__["_pending"].__set__
set_depth = Node.__dict__["_depth"].__set__
set_compiled = Node.__dict__["_compiled"].__set__


# ---------------------------------------------------------------------------------------------------------------------
# Flatten and unflatten
# ---------------------------------------------------------------------------------------------------------------------


def _dynamic_part(node: Node, name: str, compound: Compound) -> tp.Any:
    leaves, treedef = jax.tree.flatten(node.__dict__[name], is_leaf=is_node)
    if treedef != compound.treedef:
        raise FrozenModuleError(
            f"{type(node).__name__}.{name} has another structure than when the module was constructed: modules are immutable.\n"
            f"  then: {compound.treedef}\n  now:  {treedef}\n"
            "  Build a new module, or change the arrays only (set_parameters, equinox.tree_at)."
        )
    return treedef.unflatten([leaf if moves else None for moves, leaf in zip(compound.dynamic, leaves, strict=True)])


def _join(compound: Compound, child: tp.Any) -> tp.Any:
    try:
        parts = compound.treedef.flatten_up_to(child)
    except (TypeError, ValueError):
        return child  # some object that a caller of tree_unflatten put in the place of the whole container
    return compound.treedef.unflatten(
        part if moves or part is not None else fixed
        for moves, part, fixed in zip(compound.dynamic, parts, compound.static, strict=True)
    )


def _children(node: Node, layout: Layout) -> tuple[tp.Any, ...]:
    if layout.ties:
        node = cut(node, [tie.target for tie in layout.ties])
    compounds = layout.compounds
    return tuple(
        _dynamic_part(node, name, compounds[name]) if name in compounds else node.__dict__[name] for name in layout.names
    )


def flatten(node: Node) -> tuple[tuple[tp.Any, ...], Layout]:
    layout = node._layout
    if layout is None:
        layout = layout_of(node)
    if layout.simple:
        return layout.read(node.__dict__), layout
    return _children(node, layout), layout


def flatten_with_keys(node: Node):
    children, layout = flatten(node)
    return tuple(zip(layout.keys, children, strict=True)), layout


def unflatten(layout: Layout, children: tp.Iterable[tp.Any]) -> Node:
    node = object.__new__(layout.cls)
    attributes = node.__dict__
    attributes.update(layout.static)
    attributes.update(zip(layout.names, children))  # noqa: B905  (hot, and JAX checked the length)
    set_layout(node, layout)
    set_born(node, tracing.current())
    if not layout.simple:
        for name, compound in layout.compounds.items():
            attributes[name] = _join(compound, attributes[name])
        for tie in layout.ties:
            _tie(node, tie)
    return node


def register(cls: type[Node]) -> None:
    """Makes `cls` a pytree. Done when the first instance appears, so that classes without instances cost nothing."""
    if "_registered" in cls.__dict__:
        return
    type.__setattr__(cls, "_registered", True)
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    if dataclasses.is_dataclass(cls) and cls.__hash__ is None and "__eq__" in cls.__dict__:
        # A dataclass compares field by field, which has no meaning for arrays: a module is equal to itself.
        cls.__eq__ = object.__eq__  # type: ignore[method-assign]
        cls.__hash__ = object.__hash__  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------------------------
# Walking, and modules that are reachable by two paths
# ---------------------------------------------------------------------------------------------------------------------


def children(node: Node) -> list[tuple[Step, Node]]:
    """The submodules that a module holds itself, in the order of its leaves."""
    found: list[tuple[Step, Node]] = []
    for name, value in node.__dict__.items():
        if isinstance(value, Node):
            found.append(((name, None), value))
        elif not isinstance(value, jax.Array) and not is_static(value):
            for index, leaf in enumerate(jax.tree.leaves(value, is_leaf=is_node)):
                if isinstance(leaf, Node):
                    found.append(((name, index), leaf))
    return found


def step_parts(node: Node, step: Step) -> tuple[str, ...]:
    """The readable parts of a step: `("layers", "0")`."""
    name, index = step
    if index is None:
        return (name,)
    paths = jax.tree_util.tree_flatten_with_path(node.__dict__[name], is_leaf=is_node)[0]
    return (name, *(jax.tree_util.keystr((key,), simple=True) for key in paths[index][0]))


def walk(roots: tp.Iterable[Node]) -> list[Node]:
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
        if node._layout is not None and node._layout.ties != found:
            change(node)
        if node._layout is None:
            set_ties(node, found)


def _part_points(root: Node) -> dict[int, list[Tie]]:
    """For each module, by id, the pairs of occurrences that part there."""
    first: dict[int, tuple[Step, ...]] = {id(root): ()}
    repeats: dict[int, list[tuple[Step, ...]]] = {}
    stack: list[tuple[Node, tuple[Step, ...]]] = [(root, ())]
    paths: dict[tuple[Step, ...], Node] = {(): root}
    while stack:
        node, path = stack.pop()
        below: list[tuple[Node, tuple[Step, ...]]] = []
        for step, child in children(node):
            place = (*path, step)
            if id(child) in first:
                repeats.setdefault(id(child), []).append(place)
            else:
                first[id(child)] = place
                paths[place] = child
                below.append((child, place))
        stack.extend(reversed(below))
    ties: dict[int, list[Tie]] = {}
    for identity, others in repeats.items():
        places = [first[identity], *others]
        for path in {place[:size] for place in places for size in range(len(place))}:
            inside = [place for place in places if place[: len(path)] == path]
            for other in inside[1:]:
                if other[len(path)] != inside[0][len(path)]:
                    tie = Tie(other[len(path) :], inside[0][len(path) :])
                    ties.setdefault(id(paths[path]), []).append(tie)
    return ties


def child_at(node: Node, path: tp.Iterable[Step]) -> tp.Any:
    for name, index in path:
        value = node.__dict__[name]
        node = value if index is None else jax.tree.leaves(value, is_leaf=is_node)[index]
    return node


def place(node: Node, step: Step, child: tp.Any) -> None:
    name, index = step
    if index is None:
        node.__dict__[name] = child
        return
    leaves, treedef = jax.tree.flatten(node.__dict__[name], is_leaf=lambda leaf: is_node(leaf) or leaf is TIED)
    leaves[index] = child
    node.__dict__[name] = treedef.unflatten(leaves)


def shallow_copy(node: Node) -> Node:
    """A new object with the same attributes."""
    copy = object.__new__(type(node))
    copy.__dict__.update(node.__dict__)
    set_born(copy, tracing.current())
    set_meta(copy, meta_of(node))
    set_ties(copy, ())
    set_layout(copy, None)
    return copy


def cut(node: Node, targets: tp.Sequence[tuple[Step, ...]]) -> Node:
    """A copy of the nodes along `targets`, in which a marker stands at the end of each."""
    copy = shallow_copy(node)
    groups: dict[Step, list[tuple[Step, ...]]] = {}
    for target in targets:
        groups.setdefault(target[0], []).append(target[1:])
    for step, rests in groups.items():
        deeper = [rest for rest in rests if rest]
        place(copy, step, cut(child_at(node, [step]), deeper) if deeper else TIED)
    return copy


def _tie(node: Node, tie: Tie) -> None:
    """Puts the module found at `tie.source` at `tie.target` too."""
    try:
        source = child_at(node, tie.source)
        parent = node
        for step in tie.target[:-1]:
            parent = child_at(parent, [step])
            change(parent)
        place(parent, tie.target[-1], source)
    except (AttributeError, IndexError, KeyError):
        return  # objects without structure stand where the modules were
