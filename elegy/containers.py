"""Lists and dicts that belong to a constructed module: they read as any other, and refuse to change."""

from __future__ import annotations

import collections
import copy as copying
import typing as tp
from collections.abc import Iterable

import jax

from elegy.errors import FrozenModuleError


def _refuse(self: tp.Any, *args: tp.Any, **kwargs: tp.Any) -> tp.NoReturn:
    where = getattr(self, "where", None) or f"this {'list' if isinstance(self, list) else 'dict'}"
    raise FrozenModuleError(
        f"{where} is an attribute of a module, and modules are immutable.\n"
        "  Fill it in __init__, or build a new module; to change the arrays in it use set_parameters or "
        "equinox.tree_at."
    )


class FrozenList(list):
    """A list that belongs to a constructed module: it reads as any list and refuses to change."""

    # Two answers of `elegy.leaves`, which keeps them here, and the name of the attribute for the error message.
    __slots__ = ("plain", "static_key", "where")
    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self):
        return FrozenList, (list(self),)

    def __deepcopy__(self, memo):
        return FrozenList(copying.deepcopy(list(self), memo))


class FrozenDict(dict):
    """A dict that belongs to a constructed module: it reads as any dict and refuses to change."""

    __slots__ = ("plain", "static_key", "where")
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self):
        return FrozenDict, (dict(self),)

    def __deepcopy__(self, memo):
        return FrozenDict(copying.deepcopy(dict(self), memo))


def is_sortable(mapping: dict[tp.Any, tp.Any]) -> bool:
    try:
        sorted(mapping)
    except TypeError:
        return False
    return True


# JAX sorts the keys of a plain dict. Here they keep their order, so that a module that runs the values one after the
# other does the same when it has been flattened and put together again.


def _flatten_dict(mapping: FrozenDict):
    return tuple(mapping.values()), tuple(mapping)


def _flatten_dict_with_keys(mapping: FrozenDict):
    return tuple((jax.tree_util.DictKey(key), value) for key, value in mapping.items()), tuple(mapping)


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


_LISTS = frozenset((list, FrozenList))
_DICTS = frozenset((dict, FrozenDict, collections.OrderedDict, collections.defaultdict))
_CONTAINERS = _LISTS | _DICTS | {tuple}


def contents(value: tp.Any) -> Iterable[tp.Any] | None:
    """The items of a list, tuple or dict, or None for anything else."""
    kind = type(value)
    return value.values() if kind in _DICTS else value if kind in _CONTAINERS else None


def freeze_containers(value: tp.Any, where: str = "") -> tp.Any:
    """Lists and dicts, nested ones included, in their frozen form. `where` names the attribute in error messages."""
    kind = type(value)
    items = contents(value)
    if items is None:
        return value
    flat = _CONTAINERS.isdisjoint(map(type, items))  # then one copy is enough, which is fast for large tables
    if kind is tuple:
        return value if flat else tuple(freeze_containers(item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind in _LISTS:
        frozen = FrozenList(
            value if flat else (freeze_containers(item, f"{where}[{i}]") for i, item in enumerate(value))
        )
    else:
        frozen = FrozenDict(
            value if flat else ((key, freeze_containers(item, f"{where}[{key!r}]")) for key, item in value.items())
        )
    frozen.where = where
    return frozen


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


def is_plain_container(value: tp.Any) -> bool:
    return type(value) in (tuple, list, dict, FrozenList, FrozenDict) or (
        isinstance(value, tuple) and hasattr(value, "_fields")
    )
