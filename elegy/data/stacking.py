"""Samples become a batch."""

from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import numpy as np

from elegy.data.batch import Path, as_array, children, show_path


def stack(samples: list[tp.Any], indices: Sequence[int]) -> tp.Any:
    """One batch of samples of one structure: their arrays and numbers, stacked. `indices` are for messages."""
    return _stack(samples, indices, ("sample",))


def _stack(values: list[tp.Any], indices: Sequence[int], path: Path) -> tp.Any:
    kind = type(values[0])
    if all(type(value) is kind for value in values):  # the usual cases, at less cost
        if kind is tuple and all(len(value) == len(values[0]) for value in values):
            return tuple(
                _stack(list(column), indices, (*path, key)) for key, column in enumerate(zip(*values, strict=True))
            )
        first = values[0]
        if kind is np.ndarray and all(v.dtype == first.dtype and v.shape == first.shape for v in values):
            return as_array(np.stack(values), path)
    if all(value is None for value in values):
        return None
    nests: list[tp.Any] = [children(value) for value in values]
    first = nests[0]
    kinds = [(type(value), tuple(nest[0])) if nest else None for value, nest in zip(values, nests, strict=True)]
    _require_alike(path, indices, kinds, "the structure", values)
    if first is None:
        arrays = [np.asarray(as_array(value, path)) for value in values]
        _require_alike(path, indices, [array.dtype for array in arrays], "dtype")
        _require_alike(path, indices, [array.shape for array in arrays], "shape")
        return np.stack(arrays)
    keys, _, build = first
    columns = zip(*(nest[1] for nest in nests if nest), strict=True)
    return build([_stack(list(column), indices, (*path, key)) for key, column in zip(keys, columns, strict=True)])


def _require_alike(
    path: Path, indices: Sequence[int], found: list[tp.Any], what: str, values: list[tp.Any] | None = None
) -> None:
    for number, value in enumerate(found):
        if value != found[0]:
            first, other = (found[0], value) if values is None else (_show(values[0]), _show(values[number]))
            raise ValueError(
                f"{show_path(path)}: the samples of a batch must be alike, and {what} is {first} in sample "
                f"{indices[0]} and {other} in sample {indices[number]}.\n  Pad or convert them in the dataset, or give "
                "batch_fn, which makes a batch of a list of samples."
            )


def _show(value: tp.Any) -> str:
    nest = children(value)
    name = type(value).__name__
    return f"{name} of {', '.join(str(key) for key in nest[0])}" if nest and nest[1] else name
