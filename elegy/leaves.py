"""What is a leaf of a module, what is static, and what can be neither."""

from __future__ import annotations

import copy as copying
import functools
import math
import types
import typing as tp
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np

from elegy.containers import FrozenDict, FrozenList, is_plain_container, is_sortable
from elegy.errors import StaticValueError

if tp.TYPE_CHECKING:
    from elegy.pytree import Layout, Meta, Tie


class Node:
    """What the pytree machinery needs of a module: attributes in `__dict__`, and four slots beside it.

    - `_layout`: the interned structure, or None after a structural change.
    - `_meta`: the bookkeeping from which the layout is made.
    - `_ties`: submodules reachable by two paths that part at this node; None when nobody has looked.
    - `_born`: the trace to which the object belongs.
    """

    __slots__ = ("__dict__", "__weakref__", "_born", "_compiled", "_depth", "_layout", "_meta", "_pending", "_ties")

    if tp.TYPE_CHECKING:
        __dict__: dict[str, tp.Any]

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


def is_key(value: tp.Any) -> bool:
    """Whether a value is an array of typed random keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def is_inexact(value: tp.Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, np.inexact)


_PLAIN = (int, float, complex, str, bytes, bool, type(None), type, np.dtype, np.generic, range)


_CALLABLE = (types.FunctionType, types.BuiltinFunctionType, np.ufunc)


def is_static(value: tp.Any) -> bool:
    """Whether a value is static at first sight. Containers and unknown objects need a closer look."""
    return isinstance(value, (*_PLAIN, *_CALLABLE))


def is_foreign(value: tp.Any) -> bool:
    """Whether a value is a pytree of another library: an `equinox` layer, say."""
    if value is None or isinstance(value, (Node, jax.Array, *_PLAIN, *_CALLABLE)) or is_plain_container(value):
        return False
    return not jax.tree_util.all_leaves([value])


def is_dynamic(leaf: tp.Any) -> bool:
    return isinstance(leaf, Node) or is_array(leaf)


# ---------------------------------------------------------------------------------------------------------------------
# Static values
# ---------------------------------------------------------------------------------------------------------------------


def check_static(owner: str, name: str, value: tp.Any) -> None:
    """Refuses a static value that hides arrays or cannot be compared."""
    if is_static(value):
        return
    where = f"{owner}.{name}"
    if isinstance(value, types.MethodType) and isinstance(value.__self__, Node):
        raise StaticValueError(
            f"{where} is the bound method {value.__qualname__} of a module. It would keep that module's arrays "
            "out of sight "
            f"of JAX.\n  Store the module itself, or the plain function {value.__qualname__}."
        )
    if isinstance(value, functools.partial):
        for item in (value.func, *value.args, *value.keywords.values()):
            if any(is_dynamic(leaf) for leaf in jax.tree.leaves(item, is_leaf=is_node)):
                raise StaticValueError(
                    f"{where} is a functools.partial that holds an array or a module, which JAX would not see.\n"
                    "  Use jax.tree_util.Partial, which is a pytree."
                )
            check_static(owner, name, item)
        return
    if isinstance(value, (set, frozenset)):
        if any(is_dynamic(item) for item in value):
            raise StaticValueError(
                f"{where} is a set that holds a module, which JAX would not see.\n  Use a tuple, a list or a dict."
            )
        return
    if isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            check_static(owner, name, item)
        return
    if isinstance(value, np.ndarray):
        raise StaticValueError(
            f"{where} is a NumPy array of dtype {value.dtype}, which JAX cannot hold.\n  Use a tuple."
        )
    _check_comparable(where, value)


def _check_comparable(where: str, value: tp.Any) -> None:
    if type(value).__eq__ is object.__eq__:
        return
    try:
        other = copying.deepcopy(value)
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
        f"{where} is a {type(value).__name__} whose == {what}, not a bool. JAX compares static values to decide "
        "whether a "
        "compiled function can be used again.\n  Give the class an __eq__ that returns a bool, or keep its arrays in "
        "attributes of the module."
    )


def static_key(value: tp.Any) -> Hashable:
    """A key that tells apart what `==` does not: 1, 1.0 and True, 0.0 and -0.0, a list and a tuple."""
    kind = type(value)
    if kind is float:
        return (kind, value.hex() if math.isfinite(value) else repr(value))
    if kind in (tuple, FrozenList, list):
        return (kind, tuple(static_key(item) for item in value))
    if kind in (FrozenDict, dict):
        return (kind, tuple((static_key(key), static_key(item)) for key, item in value.items()))
    return (kind, value)


class StaticKey:
    """A static value that is compared as `static_key` tells."""

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
    """Refuses a dict that holds arrays or modules under keys without a common order: JAX could not flatten it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        check_keys(f"{where}[{key!r}]", item)
    if isinstance(value, FrozenDict) and not is_sortable(value):
        if any(is_dynamic(leaf) for leaf in jax.tree.leaves(value, is_leaf=is_node)):
            raise StaticValueError(
                f"{where} is a dict whose keys have no common order, so JAX cannot flatten it.\n  Use keys of one type."
            )
