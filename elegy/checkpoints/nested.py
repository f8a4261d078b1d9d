"""Nested values as JSON and arrays, which say themselves what they are: nothing else is needed to read them.

None, booleans, numbers, strings, lists, and dicts with strings as keys are what they are in JSON. What JSON cannot say
is an object with the key `$`, which names its kind:

- `tuple` and `dict` have `items`, the latter as pairs: a dict with a key that is an integer, or `$` itself;
- `int` has `hex`, where it has more than 63 bits; `float` has the `bytes` of one that is not finite;
- `str` has `bytes`, where it is not valid Unicode;
- `array` has the `name` of an array in a file beside, and its `type`: `jax`, `numpy` or `scalar`, one of NumPy.
"""

from __future__ import annotations

import math
import struct
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np

from elegy.checkpoints import file
from elegy.errors import CheckpointError

_KIND = "$"
_TYPES = "None, bool, int, float, str, lists, tuples, dicts with str or int keys, and JAX or NumPy arrays"


class Encoded(tp.NamedTuple):
    """A nested value: what goes into JSON, and the content of the file beside; None if there are no arrays."""

    structure: tp.Any
    content: file.Content | None


def encode(value: tp.Any) -> Encoded:
    """Takes a nested value apart. Nothing of it is shared with what is returned."""
    arrays: dict[str, tp.Any] = {}
    problems: list[str] = []
    try:
        structure = _encode(value, (), arrays, problems)
    except RecursionError:
        raise CheckpointError("extra was not saved: it contains itself, or is nested too deeply.") from None
    if problems:
        raise CheckpointError(file.message("extra was not saved", problems))
    return Encoded(structure, file.collect(arrays, "extra", copy=True) if arrays else None)


def _encode(value: tp.Any, path: tuple[tp.Any, ...], arrays: dict[str, tp.Any], problems: list[str]) -> tp.Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if value.bit_length() < 64 else {_KIND: "int", "hex": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {_KIND: "float", "bytes": struct.pack(">d", value).hex()}
    if kind is str:
        return value if _is_unicode(value) else {_KIND: "str", "bytes": value.encode("utf-8", "surrogatepass").hex()}
    if kind is list or kind is tuple:
        if set(map(type, value)) == {float} and all(map(math.isfinite, value)):  # a history may be long
            items = list(value)
        else:
            items = [_encode(item, (*path, index), arrays, problems) for index, item in enumerate(value)]
        return items if kind is list else {_KIND: "tuple", "items": items}
    if kind is dict:
        for key in value:
            if type(key) not in (str, int):
                problems.append(f"{_shown(path)}: the key {key!r} is a {type(key).__name__}. Keys are str or int.")
        pairs = [[key, _encode(item, (*path, key), arrays, problems)] for key, item in value.items()]
        if all(type(key) is str and key != _KIND and _is_unicode(key) for key in value):
            return dict(pairs)
        return {_KIND: "dict", "items": [[_encode(key, path, arrays, problems), item] for key, item in pairs]}
    if isinstance(value, jax.Array) or kind is np.ndarray or isinstance(value, np.generic):
        return _encode_array(value, path, arrays, problems)
    problems.append(f"{_shown(path)}: a {kind.__module__}.{kind.__qualname__} cannot be saved. There may be {_TYPES}.")
    return None


def _shown(path: tuple[tp.Any, ...]) -> str:
    return "extra" + "".join(f"[{part!r}]" for part in path)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _encode_array(value: tp.Any, path: tuple[tp.Any, ...], arrays: dict[str, tp.Any], problems: list[str]) -> tp.Any:
    problem = file.why_not(value)
    if problem is not None:
        problems.append(f"{_shown(path)}: {problem}")
        return None
    name = str(len(arrays))
    arrays[name] = value
    if isinstance(value, jax.Array):
        return {_KIND: "array", "name": name, "type": "jax", "weak": getattr(value, "weak_type", False)}
    kind = "numpy" if isinstance(value, np.ndarray) else "scalar"
    return {_KIND: "array", "name": name, "type": kind, "order": value.dtype.byteorder}


def decode(structure: tp.Any, opened: file.File | None, location: str) -> tp.Any:
    """The value that was encoded; `opened` is the file beside, if there is one."""
    entries = {} if opened is None else file.read_entries(opened, location)
    try:
        return _decode(structure, opened, entries, location)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{location}: extra cannot be read: {type(error).__name__}: {error}") from error


def _decode(value: tp.Any, opened: file.File | None, entries: dict[str, file.Entry], location: str) -> tp.Any:
    if isinstance(value, list):
        return [_decode(item, opened, entries, location) for item in value]
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {key: _decode(item, opened, entries, location) for key, item in value.items()}
    match value[_KIND]:
        case "tuple":
            return tuple(_decode(value["items"], opened, entries, location))
        case "dict":
            return dict(_decode(value["items"], opened, entries, location))
        case "int":
            return int(value["hex"], 16)
        case "float":
            return struct.unpack(">d", bytes.fromhex(value["bytes"]))[0]
        case "str":
            return bytes.fromhex(value["bytes"]).decode("utf-8", "surrogatepass")
        case "array":
            return _decode_array(value, opened, entries[value["name"]], location)
        case kind:
            raise ValueError(f"nothing is known of {kind!r}")


def _decode_array(value: dict[str, tp.Any], opened: file.File | None, entry: file.Entry, location: str) -> tp.Any:
    if opened is None or entry.shape is None:
        raise ValueError(f"{entry.name!r} is not an array")
    if value["type"] == "jax":
        dtype = jnp.float32 if entry.key is not None else np.dtype(entry.dtype)
        like = jax.ShapeDtypeStruct(entry.shape, dtype, weak_type=value["weak"])
        problem = file.unreadable(entry, like)
        if problem is not None:
            raise CheckpointError(f"{location}: extra cannot be read: {problem}")
        return file.decode(opened, entry, like)
    array = file.decode(opened, entry, np.empty(entry.shape, np.dtype(entry.dtype).newbyteorder(value["order"])))
    return array if value["type"] == "numpy" else array[()]
