"""What a batch is: inputs, targets and weights, as NumPy arrays of the dtypes that JAX computes with."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Mapping

import jax
import numpy as np

# What one batch of a source may be, for messages.
FORMS = "x, (x,), (x, y) or (x, y, sample_weight)"
# Names and keys from x, y or sample_weight down to an array.
Path = tuple[tp.Any, ...]


class Batch(tp.NamedTuple):
    """Inputs, targets and weights of some samples: pytrees of arrays whose first axis is that of the samples; or
    None."""

    x: tp.Any
    y: tp.Any
    sample_weight: tp.Any

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(jax.tree.leaves(self)[0])


def as_batch(value: tp.Any) -> Batch:
    """Takes apart what a source gives, and checks and converts its arrays. A `Batch` is its parts.

    **Raises:** `TypeError` or `ValueError`, with the path of the array.
    """
    if type(value) in (tuple, list, Batch):
        if not 1 <= len(value) <= 3:
            raise ValueError(f"it is a {type(value).__name__} of {len(value)}: a batch is {FORMS}.")
        parts = value
    else:
        parts = (value,)
    lengths: list[tuple[Path, int]] = []
    found = [_convert(part, (name,), lengths) for name, part in zip(Batch._fields, parts, strict=False)]
    if not lengths or lengths[0][0][0] != "x":
        raise ValueError(f"x holds no array: a batch is {FORMS}, where x is an array, or a tuple or dict of arrays.")
    sizes = {length for _, length in lengths}
    if len(sizes) > 1:
        shown = [f"{show_path(path)} has {length}" for path, length in lengths]
        if len(shown) > 8:  # as many as a list of samples has that should be one array
            other = next(number for number, (_, length) in enumerate(lengths) if length != lengths[0][1])
            shown = [f"of {len(shown)}, {shown[0]}", shown[other]]
        raise ValueError(f"the arrays differ in length: {', '.join(shown)} samples.")
    if sizes == {0}:
        raise ValueError("there are no samples: the arrays are empty.")
    return Batch(*found, *[None] * (3 - len(found)))


def show_path(path: Path) -> str:
    return path[0] + "".join(f".{part}" if isinstance(part, _Field) else f"[{part!r}]" for part in path[1:])


class _Field(str):
    """A name of a namedtuple, in a path."""


def _convert(value: tp.Any, path: Path, lengths: list[tuple[Path, int]]) -> tp.Any:
    if value is None:
        return None
    nest = children(value)
    if nest is None:
        array = as_array(value, path)
        if not array.shape:
            raise ValueError(
                f"{show_path(path)} is a scalar: its first axis must be that of the samples. Are these samples, one by "
                "one? Then make batches of them."
            )
        lengths.append((path, array.shape[0]))
        return array
    keys, values, build = nest
    return build([_convert(child, (*path, key), lengths) for key, child in zip(keys, values, strict=True)])


def children(value: tp.Any) -> tuple[tp.Any, tp.Any, tp.Any] | None:
    """Keys, values, and a function that builds the same of other values; None for what is one array."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array, bool, int, float, complex, str, bytes)):
        return None
    if isinstance(value, tuple):
        fields: tp.Any = getattr(value, "_fields", None)
        if fields is not None:
            return [_Field(name) for name in fields], value, lambda values: type(value)(*values)
        return range(len(value)), value, tuple
    if isinstance(value, list):
        return None if is_numbers(value) else (range(len(value)), value, list)
    if isinstance(value, Mapping):
        return list(value), list(value.values()), lambda values: dict(zip(value, values, strict=True))
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return None
    leaves, structure = jax.tree_util.tree_flatten_with_path(value)
    if len(leaves) == 1 and not leaves[0][0]:
        return None
    keys = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return [_Field(key) for key in keys], [leaf for _, leaf in leaves], structure.unflatten


def is_numbers(value: list[tp.Any]) -> bool:
    """Whether a list is an array that is written as nested lists of numbers."""
    first: tp.Any = value
    while isinstance(first, list):
        if not first:
            return True
        first = first[0]
    return isinstance(first, (bool, int, float, complex, np.number, np.bool_))


def as_array(value: tp.Any, path: Path) -> tp.Any:
    """A leaf as a NumPy array of a dtype that JAX computes with. An array of JAX stays what it is."""
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{show_path(path)} is a masked array, and would lose its mask.\n  Give its data, and say by "
            "sample_weight, or by one more input, what is masked."
        )
    array = value if type(value) is np.ndarray else _as_numpy(value, path)
    wanted = _dtype(array.dtype, bool(jax.config.jax_enable_x64))  # pyright: ignore[reportAttributeAccessIssue]
    if wanted is None:
        hint = "\n  If it holds numbers, write .astype(np.float32)." if array.dtype.kind == "O" else ""
        raise TypeError(f"{show_path(path)} has dtype {array.dtype}, with which JAX cannot compute.{hint}")
    if array.dtype == wanted:
        return array
    if wanted.kind in "iu" and array.size:
        _require_range(array, wanted, path)
    return array.astype(wanted)


def _require_range(array: np.ndarray, wanted: np.dtype, path: Path) -> None:
    """Refuses integers that others would be made of."""
    least, most, limits = array.min(), array.max(), np.iinfo(wanted)
    if least < limits.min or most > limits.max:
        raise ValueError(
            f"{show_path(path)} has integers from {least} to {most}, which do not fit into {wanted}, as JAX makes of "
            f"{array.dtype}.\n  Number them anew, or compute with 64 bits: jax.config.update('jax_enable_x64', True)."
        )


@functools.lru_cache(maxsize=256)
def _dtype(dtype: np.dtype, x64: bool) -> np.dtype | None:
    """What JAX makes of a dtype; None where it cannot compute with it. `x64` is in the key of the cache."""
    if dtype.kind in "OSUTMm" or dtype.names is not None:
        return None
    dtype = dtype.newbyteorder("=")
    if dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16):
        return None  # np.longdouble
    try:
        return np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    except TypeError:
        return None


def _as_numpy(value: tp.Any, path: Path) -> np.ndarray:
    where = show_path(path)
    if isinstance(value, (list, bool, int, float, complex, np.generic)):
        try:
            return np.asarray(value)
        except ValueError as error:
            if isinstance(value, list):
                _require_equal_lengths(where, value)
            raise ValueError(f"{where} is a list, and no array of one shape: {error}") from error
    if getattr(value, "requires_grad", False):
        value = value.detach()  # a tensor of PyTorch refuses __array__ otherwise
    for method in ("resolve_conj", "resolve_neg"):  # DLPack would leave out what a view of PyTorch has still to do
        value = getattr(value, method)() if hasattr(value, method) else value
    reason: Exception | None = None
    if hasattr(value, "__array__"):
        try:
            return np.asarray(value)
        except Exception as error:  # of whichever library
            reason = error
    if hasattr(value, "__dlpack__"):
        try:
            # NumPy's from_dlpack does not know bfloat16. What it gives lies in memory of the source.
            value = value.contiguous() if hasattr(value, "contiguous") else value
            return np.array(jax.dlpack.from_dlpack(value))
        except Exception as error:
            reason = reason or error
    if reason is None:
        kind, hint = type(value).__name__, ""
        if hasattr(value, "toarray"):
            hint = "\n  Of a sparse matrix that is .toarray(), or batches that are made so."
        elif hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
            hint = f"\n  If it gives samples, one by one: elegy.data.DataLoader({kind}(...), batch_size=32)."
        raise TypeError(f"{where} is a {kind}: give an array, or a tuple or dict of arrays.{hint}")
    raise TypeError(
        f"{where} is a {type(value).__name__} that is no array in the memory of the host: {reason}"
    ) from reason


def _require_equal_lengths(where: str, numbers: list[tp.Any]) -> None:
    """**Raises:** `ValueError` with the first place where nested lists are not as long as those beside them."""
    level = [(where, numbers)]
    while level:
        inner = [(f"{name}[{i}]", part) for name, parts in level for i, part in enumerate(parts)]
        sizes = [(name, len(part) if isinstance(part, list) else None) for name, part in inner]
        first, size = sizes[0]
        for name, other in sizes:
            if other != size:
                what = lambda size: "a number" if size is None else f"a list of {size}"  # noqa: E731
                raise ValueError(
                    f"{where} holds lists that make no array: {first} is {what(size)}, and {name} {what(other)}.\n"
                    "  Fill them up to one length, and say by a mask or sample_weight what counts."
                )
        level = [] if size is None else inner
