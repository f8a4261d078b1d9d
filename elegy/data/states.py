"""States of sources as values that JSON can hold, and back."""

from __future__ import annotations

import base64
import typing as tp

import numpy as np


def encode(value: tp.Any, path: str = "state") -> tp.Any:
    """A state as JSON can hold it. Numbers, strings and lists stay; what else there may be is a dict with one key,
    which says what it is: `{"dict": [[key, value], ...]}`, `{"tuple": [...]}`, `{"bytes": base64}`,
    `{"array": [dtype, shape, base64]}`, `{"tensor": ...}`.

    **Raises:** `TypeError` for anything else, with its path.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        pairs = [[encode(key, path), encode(item, f"{path}[{key!r}]")] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        items = [encode(item, f"{path}[{number}]") for number, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [value.dtype.str, list(value.shape), data]}
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "__array__"):
        return {"tensor": encode(np.asarray(value), path)}  # states of PyTorch's random generators
    raise TypeError(
        f"{path} is a {type(value).__name__}, and the state of a source must be of numbers, strings, bytes, arrays, "
        "and lists, tuples and dicts of these."
    )


def decode(value: tp.Any) -> tp.Any:
    """What `encode` was given. Arrays come back as NumPy arrays, tensors as those of PyTorch."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind == "tuple":
        return tuple(decode(item) for item in content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tensor":
        import torch  # pyright: ignore[reportMissingImports]

        return torch.from_numpy(decode(content))
    dtype, shape, data = content
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape).copy()
