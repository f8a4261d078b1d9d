"""How the static values of modules are pickled and copied: what Python cannot pickle goes by its name.

Functions that JAX compiles, such as `jax.nn.softplus`, and devices are compared by identity, so a copy must have the
very same ones. They may stand anywhere in lists, tuples, dicts, dataclasses, named tuples and partial functions.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import types
import typing as tp
from collections.abc import Iterable

import jax
import numpy as np

from elegy.containers import FrozenDict, FrozenList


class _Reduced:
    """Pickles an object in the way that is given."""

    def __init__(self, *reduced: tp.Any):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class _Kept:
    """An object of which `copy.deepcopy` gives the very same one."""

    def __init__(self, value: tp.Any):
        self.value = value

    def __deepcopy__(self, memo: dict[int, tp.Any]) -> tp.Any:
        return self.value


def _import(module: str, name: str) -> tp.Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _device(platform: str, number: int) -> tp.Any:
    for device in jax.devices(platform):
        if device.id == number:
            return device
    raise ValueError(f"the device {number} of the platform {platform!r} is not there")


def _new(cls: type, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
    return cls.__new__(cls, *args, **kwargs)


def _objects(items: list[tp.Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


def portable(value: tp.Any, copying: bool = False) -> tp.Any:
    """A value with something that can be pickled in the place of each function and device that cannot.

    What comes back from a pickle, or from `copy.deepcopy`, is as the value was. A value in which there is nothing to
    replace is returned itself. With `copying`, also compiled functions without a name are kept, which a pickle cannot.
    """
    kind = type(value)
    if kind in (FrozenList, list, tuple):
        items = [portable(item, copying) for item in value]
        return value if _same(items, value) else kind(items)
    if kind in (FrozenDict, dict):
        items = [portable(item, copying) for item in value.values()]
        return value if _same(items, value.values()) else kind(zip(value, items, strict=True))
    if isinstance(value, jax.Device):
        return _Reduced(_device, (value.platform, value.id))
    if isinstance(value, np.ndarray):
        objects = value.dtype == object  # such as the devices of a mesh
        return _Reduced(_objects, (portable(list(value.flat), copying), value.shape)) if objects else value
    if isinstance(value, _TAKEN_APART) or _is_record(value):
        function, args, *states = value.__reduce_ex__(4)
        parts = [portable(part, copying) for part in (*args, *states)]
        if _same(parts, (*args, *states)):
            return value
        function = _new if function is _NEW else function  # which must be given the class of what is pickled
        return _Reduced(function, tuple(parts[: len(args)]), *parts[len(args) :])
    return _named(value, copying)


_TAKEN_APART = (functools.partial, types.SimpleNamespace, jax.sharding.Sharding, jax.sharding.Mesh)
_NEW = object().__reduce_ex__(4)[0]  # copyreg.__newobj__


def _same(parts: Iterable[tp.Any], others: Iterable[tp.Any]) -> bool:
    return all(part is other for part, other in zip(parts, others, strict=True))


def _is_record(value: tp.Any) -> bool:
    """Whether a value is a dataclass or a named tuple, which pickle takes apart into its fields."""
    is_record = dataclasses.is_dataclass(value) or (isinstance(value, tuple) and hasattr(value, "_fields"))
    return is_record and not isinstance(value, type)


def _named(value: tp.Any, copying: bool) -> tp.Any:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not callable(value) or isinstance(value, (type, types.FunctionType)) or not (module and name):
        return value
    found = functools.reduce(lambda place, part: getattr(place, part, None), name.split("."), sys.modules.get(module))
    if found is value:
        return _Reduced(_import, (module, name))
    return _Kept(value) if copying and hasattr(value, "__wrapped__") else value
