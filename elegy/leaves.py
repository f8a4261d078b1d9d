"""What is a leaf of a module, what is static, and what can be neither."""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import types
import typing as tp
from collections.abc import Collection, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy.containers import FrozenDict, FrozenList, contents, is_plain_container, is_sortable
from elegy.errors import StaticValueError

if tp.TYPE_CHECKING:
    from elegy.layout import Layout, Meta, Tie


class Node:
    """The base class of modules. Attributes are in `__dict__`; what Elegy notes of a module is in `__slots__`.

    - `_elegy_layout`: the layout, or None if the structure changed since it was made.
    - `_elegy_meta`: the bookkeeping, while there is no layout; else the layout has it.
    - `_elegy_ties`: likewise the ties noted at this module; None if nobody has looked for them since a change.
    - `_elegy_born`: the trace to which the object belongs.

    Set when they are needed:

    - `_elegy_pending`: the updates inside a jax transform that nobody has read yet; see `elegy.frames.note_update`.
    - `_elegy_fixed`: what stands for the static leaves of foreign pytrees while the module is flattened.
    - `_elegy_compiled`: functions compiled for this very object, and values of its cached properties.
    - `_elegy_undrawn`: of a module whose `__init__` ran in a trace without the random stream: its attributes in order,
      each with a blank of the same shape if it waits for `init` to draw it, else with None.
    - `_elegy_class`: of a module whose class a method makes anew on each run: that of the last run without a trace.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_elegy_born",
        "_elegy_class",
        "_elegy_compiled",
        "_elegy_fixed",
        "_elegy_layout",
        "_elegy_meta",
        "_elegy_pending",
        "_elegy_ties",
        "_elegy_undrawn",
    )

    if tp.TYPE_CHECKING:
        __dict__: dict[str, tp.Any]

    # The names of the methods of every module.
    _elegy_methods: tp.ClassVar[frozenset[str]] = frozenset()
    # Of a module that stands for a list: the attribute with the one module that holds the elements, stacked.
    _elegy_items: tp.ClassVar[str] = ""
    # Whether the class was made inside a function, perhaps anew on each run, with other values in its closures.
    _elegy_is_local: tp.ClassVar[bool] = False

    _elegy_born: tp.Any
    _elegy_class: type
    _elegy_compiled: dict[tp.Any, tp.Any]
    _elegy_fixed: dict[tuple[str, int], tp.Any]
    _elegy_layout: Layout | None
    _elegy_meta: Meta
    _elegy_pending: tp.Any
    _elegy_ties: tuple[Tie, ...] | None
    _elegy_undrawn: dict[str, tp.Any]


# Assignment past the frozen __setattr__, at the price of one C call.
set_attributes = Node.__dict__["__dict__"].__set__
set_born = Node.__dict__["_elegy_born"].__set__
set_class = Node.__dict__["_elegy_class"].__set__
set_fixed = Node.__dict__["_elegy_fixed"].__set__
set_compiled = Node.__dict__["_elegy_compiled"].__set__
set_layout = Node.__dict__["_elegy_layout"].__set__
set_meta = Node.__dict__["_elegy_meta"].__set__
set_pending = Node.__dict__["_elegy_pending"].__set__
set_ties = Node.__dict__["_elegy_ties"].__set__
set_undrawn = Node.__dict__["_elegy_undrawn"].__set__


# These read what may not be set. `getattr` would then run the `__getattr__` of modules, which is slow.
_pending = Node.__dict__["_elegy_pending"].__get__
_undrawn = Node.__dict__["_elegy_undrawn"].__get__


def pending_of(version: Node) -> tp.Any:
    """The `_elegy_pending` of a version of a module; None if it is not set."""
    try:
        return _pending(version)
    except AttributeError:
        return None


def undrawn_of(version: Node) -> dict[str, tp.Any]:
    """The `_elegy_undrawn` of a version of a module; empty if it is not set."""
    try:
        return _undrawn(version)
    except AttributeError:
        return {}


def is_node(value: tp.Any) -> bool:
    return isinstance(value, Node)


# Classes whose objects are arrays, among those seen so far. `isinstance` takes three times as long.
_array_types: set[type] = {np.ndarray, jax.ShapeDtypeStruct}


def is_array(value: tp.Any) -> bool:
    if type(value) in _array_types:
        return True
    found = isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
    if found and not isinstance(value, Tracer):  # some tracers are no arrays: they stand for a `jax.Ref`, say
        _array_types.add(type(value))
    return found


def is_key(value: tp.Any) -> bool:
    """Whether a value is an array of typed random keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def is_inexact(value: tp.Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and _is_inexact_dtype(dtype)


@functools.cache
def _is_inexact_dtype(dtype: tp.Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.inexact))


_PLAIN = (int, float, complex, str, bytes, bool, type(None), type, np.dtype, np.generic, range)


# A tuple of its own, since `is_static` is called more than anything else.
_STATIC = (*_PLAIN, types.FunctionType, types.BuiltinFunctionType, np.ufunc)


def is_static(value: tp.Any) -> bool:
    """Whether a value is static at first sight. Containers and unknown objects need a closer look."""
    return isinstance(value, _STATIC)


def is_plain(value: tp.Any) -> bool:
    """Whether a value is a number, a text, a class or the like, or a list, tuple or dict of nothing else.

    Such a value needs no closer look. A frozen container remembers the answer, for it is asked in every walk.
    """
    items = contents(value)
    if items is None:
        return isinstance(value, _PLAIN)
    known = getattr(value, "plain", None)
    if known is None:
        odd = [kind for kind in set(map(type, items)) if not issubclass(kind, _PLAIN)]
        known = not odd or all(map(is_plain, items))
        if isinstance(value, (FrozenList, FrozenDict)):
            value.plain = known
    return known


def is_foreign(value: tp.Any) -> bool:
    """Whether a value is a pytree of another library: an `equinox` layer, say."""
    if isinstance(value, (Node, jax.Array)) or is_static(value) or is_plain_container(value):
        return False
    return not jax.tree_util.all_leaves([value])


def holds_module(value: tp.Any) -> bool:
    """Whether a value is a module, or a list, tuple or dict with one in it."""
    if isinstance(value, dict):
        return any(map(holds_module, value.values()))
    return isinstance(value, Node) or isinstance(value, (list, tuple)) and any(map(holds_module, value))


def is_dynamic(leaf: tp.Any) -> bool:
    return isinstance(leaf, Node) or is_array(leaf)


# ---------------------------------------------------------------------------------------------------------------------
# Static values
# ---------------------------------------------------------------------------------------------------------------------


def check_static(owner: str, name: str, value: tp.Any) -> None:
    """Refuses a static value that hides arrays or modules, or cannot be compared."""
    where = f"{owner}.{name}"
    _check_function(where, value)
    if is_static(value):
        return
    if isinstance(value, functools.partial):
        for item in (value.func, *value.args, *value.keywords.values()):
            if any(is_dynamic(leaf) for leaf in jax.tree.leaves(item, is_leaf=is_node)):
                raise StaticValueError(
                    f"{where} is a functools.partial that holds an array or a module, which JAX would not see.\n"
                    "  Use jax.tree_util.Partial, which is a pytree."
                )
            check_static(owner, name, item)
        return
    if isinstance(value, np.ndarray):
        raise StaticValueError(
            f"{where} is a NumPy array of dtype {value.dtype}, which JAX cannot hold.\n  Use a tuple."
        )
    hidden = _hidden(value)
    if hidden is not None:
        raise StaticValueError(
            f"{where} is a {type(value).__name__} that holds {_article(hidden)}, which JAX would not see.\n"
            "  Use a tuple, a list or a dict, or register the class as a pytree (jax.tree_util.register_dataclass)."
        )
    if isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            check_static(owner, name, item)
        return
    _check_comparable(where, value)


def _check_function(where: str, value: tp.Any) -> None:
    """Refuses a function that keeps a module to itself."""
    if isinstance(value, types.MethodType) and isinstance(value.__self__, Node):
        raise StaticValueError(
            f"{where} is the bound method {value.__qualname__} of a module. It would keep that module's arrays "
            f"out of sight of JAX.\n  Store the module itself, or the plain function {value.__qualname__}."
        )
    inner = value
    while callable(inner) and not isinstance(inner, (Node, type)) and hasattr(inner, "__wrapped__"):
        inner = tp.cast(tp.Any, inner).__wrapped__
    threaded = getattr(value, "threaded_modules", ()) or (inner,)
    if isinstance(threaded[0], Node) and not is_node(value):
        raise StaticValueError(
            f"{where} is a function that a transform made of a module, {type(threaded[0]).__name__}, whose arrays JAX "
            "would not see.\n"
            "  Store the module and transform it where it is called: self.block = Block(), and in call "
            "elegy.remat(self.block)(x)."
        )


_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
_MAPPINGS = (dict, types.MappingProxyType)


def _hidden(value: tp.Any) -> tp.Any:
    """A module or an array in a container, dataclass, namespace or partial function that is no pytree; or None.

    Objects of other kinds are not searched: they may refer back to a module, and be of any size.
    """
    seen: set[int] = set()
    stack = [value]
    while stack:
        part = stack.pop()
        if is_dynamic(part):
            return part
        if id(part) in seen or is_static(part) or is_plain(part):
            continue
        seen.add(id(part))
        held = _held(part)
        if not all(issubclass(kind, _STATIC) for kind in set(map(type, held))):
            stack.extend(held)
    return None


def _held(part: tp.Any) -> Collection[tp.Any]:
    """What a container, dataclass, namespace or partial function holds."""
    if isinstance(part, _MAPPINGS):
        return part.values()
    if isinstance(part, _SEQUENCES):
        return part
    if isinstance(part, functools.partial):
        return (part.func, *part.args, *part.keywords.values())
    if isinstance(part, types.SimpleNamespace):
        return vars(part).values()
    if dataclasses.is_dataclass(part):
        return [getattr(part, field.name, None) for field in dataclasses.fields(part)]
    return ()


def _article(hidden: tp.Any) -> str:
    return f"a module ({type(hidden).__name__})" if isinstance(hidden, Node) else "an array"


def _has_own_equality(value: tp.Any) -> bool:
    """Whether the class of a value, or a class from which it derives, has an `__eq__` that a user wrote."""
    equal = type(value).__eq__
    code = getattr(equal, "__code__", None)
    return isinstance(equal, types.FunctionType) and getattr(code, "co_filename", "") != "<string>"


def _check_comparable(where: str, value: tp.Any) -> None:
    """Refuses an object whose `==` gives no bool. Only an object that holds an array and whose `__eq__` a user wrote is
    tried here; others are found out when two of them are compared."""
    if not _has_own_equality(value) or not any(map(is_array, _attributes(value))):
        return
    try:
        _equal(value, value)
    except Incomparable as error:
        raise incomparable(where, value, error) from None


def _attributes(value: tp.Any) -> list[tp.Any]:
    slots = [name for cls in type(value).__mro__ for name in tuple(cls.__dict__.get("__slots__", ()))]
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]


class Incomparable(Exception):
    """Says what the `==` of a static value does instead of giving a bool. Becomes a `StaticValueError` where the name
    of the attribute is known."""


def _equal(one: tp.Any, other: tp.Any) -> bool:
    try:
        equal = one == other
    except Exception as error:
        raise Incomparable(f"raises {type(error).__name__}: {error}") from None
    if not isinstance(equal, (bool, np.bool_)):
        raise Incomparable(f"gives a {type(equal).__name__}")
    return bool(equal)


def incomparable(where: str, value: tp.Any, what: Incomparable) -> StaticValueError:
    return StaticValueError(
        f"{where} is a {type(value).__name__} whose == {what}, not a bool. JAX compares static values to decide "
        "whether a compiled function can be used again.\n"
        "  Give the class an __eq__ that returns a bool, or keep its arrays in attributes of the module."
    )


class _SelfCompared:
    """The key of a value whose `__eq__` a user wrote. That runs when two keys are compared, and must give a bool."""

    __slots__ = ("value",)

    def __init__(self, value: tp.Any):
        self.value = value

    def __eq__(self, other: tp.Any) -> bool:
        if not isinstance(other, _SelfCompared):
            return False
        return self.value is other.value or _equal(self.value, other.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


# Types two values of which are equal only if they are the same in every way.
_EXACT = frozenset((bool, int, str, bytes, type, type(None), types.FunctionType, types.BuiltinFunctionType))


def static_key(value: tp.Any) -> Hashable:
    """A key that tells apart what `==` does not: 1, 1.0 and True, 0.0 and -0.0, a list and a tuple; also as parts of
    tuples, sets and dataclasses. A value whose `__eq__` a user wrote is compared by that."""
    kind = type(value)
    if kind in _EXACT:
        return (kind, value)
    if kind is float:
        return (kind, value.hex())
    if kind in (FrozenList, FrozenDict):
        known = getattr(value, "static_key", None)
        if known is None:
            known = _container_key(value)
            if isinstance(known, _Hashed):
                value.static_key = known
        return known
    if kind in (tuple, list, dict):
        return _container_key(value)
    if kind is functools.partial:  # Python compares these by identity
        return (kind, static_key(value.func), static_key(value.args), static_key(value.keywords))
    parts = _compared_parts(kind, value)
    if parts is not None:
        return (kind, _ByParts(value, parts))
    return (kind, _SelfCompared(value) if _has_own_equality(value) else value)


class _Hashed:
    """The key of a container whose parts never change: hashed once, and equal to itself without a look inside."""

    __slots__ = ("hash", "key")

    def __init__(self, key: Hashable):
        self.key = key
        self.hash = hash(key)

    def __eq__(self, other: tp.Any) -> bool:
        return self is other or (isinstance(other, _Hashed) and self.hash == other.hash and self.key == other.key)

    def __hash__(self) -> int:
        return self.hash

    def __reduce__(self) -> tp.Any:
        return _Hashed, (self.key,)  # hashes differ between processes

    def __repr__(self) -> str:
        return repr(self.key)


def _container_key(value: tp.Any) -> Hashable:
    kind = type(value)
    if isinstance(value, dict):
        names, items = _sequence_key(tuple(value)), _sequence_key(tuple(value.values()))
        exact, key = names[0] and items[0], (kind, names[1], items[1])
    else:
        exact, key = _sequence_key(value)
        key = (kind, key)
    return _Hashed(key) if exact else key


def _sequence_key(items: Sequence[tp.Any]) -> tuple[bool, Hashable]:
    """Whether the key of several values in their order can never change, and the key. For large tables of one simple
    type no Python code runs for each item."""
    kinds = set(map(type, items))
    if kinds <= _EXACT:
        return True, (tuple(map(type, items)) if len(kinds) > 1 else tuple(kinds), tuple(items))
    if kinds == {float}:
        return True, (float, array.array("d", items).tobytes())
    keys = tuple(map(static_key, items))
    exact = all(
        isinstance(key, _Hashed) or kind in _EXACT or kind is float
        for key, kind in zip(keys, map(type, items), strict=True)
    )
    return exact, keys


def _compared_parts(kind: type, value: tp.Any) -> tp.Any:
    """The keys of the parts that the `==` of a value compares, if it was written by Python or NumPy; else None."""
    equal = kind.__eq__
    if equal is complex.__eq__:
        return (static_key(value.real), static_key(value.imag))
    if equal is tuple.__eq__:
        return tuple(static_key(item) for item in value)
    if equal is frozenset.__eq__ or equal is set.__eq__:
        kinds = set(map(type, value))
        if len(kinds) <= 1 and kinds <= _EXACT:
            return (tuple(kinds), frozenset(value))
        return frozenset(static_key(item) for item in value)
    if isinstance(value, np.generic):
        return (value.dtype, value.tobytes())
    if getattr(getattr(equal, "__code__", None), "co_filename", "") == "<string>" and dataclasses.is_dataclass(kind):
        compared = (field.name for field in dataclasses.fields(kind) if field.compare)  # as its `__eq__` does
        return tuple(static_key(getattr(value, name)) for name in compared)
    return None


class _ByParts:
    """A value that is compared by keys of its parts. It has no hash if the value, which may then change, has none."""

    __slots__ = ("parts", "value")

    def __init__(self, value: tp.Any, parts: Hashable):
        self.value = value
        self.parts = parts

    def __eq__(self, other: tp.Any) -> bool:
        return isinstance(other, _ByParts) and self.parts == other.parts

    def __hash__(self) -> int:
        hash(self.value)
        return hash(self.parts)

    def __repr__(self) -> str:
        return repr(self.value)


class StaticKey:
    """A static value that is compared by its `static_key`."""

    __slots__ = ("value",)

    def __init__(self, value: tp.Any):
        self.value = value

    def __eq__(self, other: tp.Any) -> bool:
        return isinstance(other, StaticKey) and static_key(self.value) == static_key(other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


def check_keys(where: str, value: tp.Any) -> None:
    """Refuses a dict that holds arrays or modules under keys without a common order. JAX could not flatten
    the plain dict that `get_parameters` makes of it."""
    if is_plain(value):
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        check_keys(f"{where}[{key!r}]", item)
    if isinstance(value, FrozenDict) and not is_sortable(value):
        if any(is_dynamic(leaf) for leaf in jax.tree.leaves(value, is_leaf=is_node)):
            raise StaticValueError(
                f"{where} is a dict whose keys have no common order, so JAX cannot flatten it.\n  Use keys of one type."
            )
