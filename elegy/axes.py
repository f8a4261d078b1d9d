"""What an annotation such as `Float[Array, "in out"]` says about an array: the sizes of its axes, and its dtype."""

from __future__ import annotations

import functools
import itertools
import types
import typing as tp
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

# The value of each axis that has a name (a tuple for `*name`), and the name of the array that gave it.
Sizes = dict[str, tuple[tp.Any, str]]


class UnknownAxisError(Exception):
    """An axis whose size is not known. The message is the axis and the reason, without a full stop."""


class Axis(tp.NamedTuple):
    """One entry of an annotation's shape: its text without the modifiers of jaxtyping, and what they said."""

    text: str
    variadic: bool
    anonymous: bool
    broadcast: bool

    @property
    def name(self) -> str:
        """The key of its size among `Sizes`."""
        return f"*{self.text}" if self.variadic else self.text


def is_array_annotation(annotation: tp.Any) -> tp.TypeGuard[type[AbstractArray]]:
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def is_union(annotation: tp.Any) -> bool:
    return tp.get_origin(annotation) in (tp.Union, types.UnionType)


def mentions_array(annotation: tp.Any) -> bool:
    """Whether an annotation, or a part of it, is one of jaxtyping."""
    if tp.get_origin(annotation) is tp.ClassVar:
        return False
    return is_array_annotation(annotation) or any(map(mentions_array, tp.get_args(annotation)))


def alternatives(annotation: tp.Any) -> Iterator[type[AbstractArray]]:
    """The arrays among what an annotation allows: itself, or the members of a union."""
    if is_array_annotation(annotation):
        yield annotation
    elif is_union(annotation) or tp.get_origin(annotation) in (tp.Annotated, tp.Final):
        for part in tp.get_args(annotation):
            yield from alternatives(part)


def show(annotation: tp.Any) -> str:
    """The annotation as one would write it."""
    if is_array_annotation(annotation):
        array = getattr(annotation.array_type, "__name__", str(annotation.array_type)).rpartition(".")[-1]
        return f'{annotation.dtype.__name__}[{array}, "{annotation.dim_str}"]'
    if is_union(annotation):
        return " | ".join("None" if part is type(None) else show(part) for part in tp.get_args(annotation))
    if isinstance(annotation, type) and not tp.get_args(annotation):
        return annotation.__name__
    if args := tp.get_args(annotation):
        origin = getattr(annotation, "__name__", None) or str(tp.get_origin(annotation))
        return f"{origin}[{', '.join(show(part) for part in args)}]"
    return str(annotation).replace("typing.", "")


_MOST_SHOWN = 8  # elements of a container
_LONGEST_STRING = 40


def show_value(value: tp.Any) -> str:
    """A value in an error message: an array by its dtype and shape, of long things the beginning."""
    if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        numpy = "NumPy " if isinstance(value, np.ndarray) else ""
        return f"{numpy}{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return f"{opening}{', '.join(_first(map(show_value, value), len(value)))}{closing}"
    if isinstance(value, dict):
        items = (f"{key}: {show_value(item)}" for key, item in value.items())
        return f"{{{', '.join(_first(items, len(value)))}}}"
    if isinstance(value, (bool, int, float, complex, str, type(None))):
        text = repr(value)
        return text if len(text) <= _LONGEST_STRING else f"{text[:_LONGEST_STRING]}…"
    return type(value).__name__


def _first(shown: Iterator[str], length: int) -> list[str]:
    return [*itertools.islice(shown, _MOST_SHOWN), *(["…"] if length > _MOST_SHOWN else [])]


@functools.lru_cache(maxsize=4096)
def _axes(text: str) -> tuple[Axis, ...]:
    axes = []
    for axis in text.split():
        if axis == "...":
            axes.append(Axis(axis, True, True, False))
            continue
        modifiers = set()
        while axis and (axis[0] in "#*_?" or axis.count("=") == 1):
            if axis[0] in "#*_?":
                modifiers.add(axis[0])
                axis = axis[1:]
            else:
                axis = axis.split("=")[1]
        # What stands behind "?" differs from leaf to leaf of a pytree: it is no name of the scope.
        axes.append(Axis(axis, "*" in modifiers, bool({"_", "?"} & modifiers), "#" in modifiers))
    return tuple(axes)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------


def bind(annotation: tp.Any, value: tp.Any, origin: str, sizes: Sizes, names: Mapping[str, tp.Any]) -> Sizes:
    """Adds the axes that a value binds to `sizes`. A value that does not fit its annotation binds nothing.

    **Arguments:**

    - `origin`: what to call the value.
    - `names`: what `{self.features}` and the like may refer to.
    """
    kind, parts = tp.get_origin(annotation), tp.get_args(annotation)
    for array in alternatives(annotation):
        found = _match(array, value, origin, sizes, names)
        if found is not None:
            return found
    if kind is tuple and isinstance(value, tuple) and parts:
        annotations = [parts[0]] * len(value) if len(parts) == 2 and parts[1] is ... else list(parts)
        for index, (part, item) in enumerate(zip(annotations, value, strict=False)):
            sizes = bind(part, item, f"{origin}[{index}]", sizes, names)
    elif kind is list and isinstance(value, list):
        for index, item in enumerate(value):
            sizes = bind(parts[0], item, f"{origin}[{index}]", sizes, names)
    elif kind is dict and isinstance(value, dict):
        for key, item in value.items():
            sizes = bind(parts[1], item, f"{origin}[{key!r}]", sizes, names)
    return sizes


def _match(
    annotation: type[AbstractArray], value: tp.Any, origin: str, sizes: Sizes, names: Mapping[str, tp.Any]
) -> Sizes | None:
    if not isinstance(value, annotation.dtype[tp.Any, "..."]):
        return None
    axes, shape = _axes(annotation.dim_str), tuple(value.shape)
    position = next((index for index, axis in enumerate(axes) if axis.variadic), None)
    if position is not None:
        after = len(axes) - position - 1
        if len(shape) < len(axes) - 1:
            return None
        shape = (*shape[:position], shape[position : len(shape) - after], *shape[len(shape) - after :])
    if len(shape) != len(axes):
        return None
    found = dict(sizes)
    for axis, size in zip(axes, shape, strict=True):
        if axis.anonymous or (axis.broadcast and (size == 1 or axis.variadic)):
            continue
        if axis.text.isidentifier():
            if found.setdefault(axis.name, (size, origin))[0] != size:
                return None
        else:
            try:
                if _size(axis, found, names) != size:
                    return None
            except UnknownAxisError:
                continue  # an expression of axes that come later
    return found


def _size(axis: Axis, sizes: Sizes, names: Mapping[str, tp.Any]) -> tp.Any:
    if axis.anonymous:
        raise UnknownAxisError(f"{axis.text or '_'!r} stands for any size")
    if axis.text.isidentifier():
        if axis.name not in sizes:
            raise UnknownAxisError(f"{axis.name!r} is not bound yet")
        return sizes[axis.name][0]
    try:
        # As jaxtyping does: first what is in braces, from the arguments of the call, then the axes by their names.
        text = eval(f"f'{axis.text}'", dict(names))
        return int(eval(text, {name: size for name, (size, _) in sizes.items()}))
    except Exception as error:
        raise UnknownAxisError(f"{axis.text!r} cannot be computed ({type(error).__name__}: {error})") from None


def shape_of(annotation: tp.Any, sizes: Sizes, names: Mapping[str, tp.Any]) -> tuple[int, ...]:
    """The shape that an annotation describes.

    **Raises:** `UnknownAxisError` if the size of an axis is not known.
    """
    problem = UnknownAxisError("it names no array")
    for array in alternatives(annotation):
        shape: list[int] = []
        try:
            for axis in _axes(array.dim_str):
                size = _size(axis, sizes, names)
                shape.extend(size if axis.variadic else (size,))
            return tuple(shape)
        except UnknownAxisError as error:
            problem = error
    raise problem


def show_sizes(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size} (from {origin})" for name, (size, origin) in sizes.items()) or "none"


# ---------------------------------------------------------------------------------------------------------------------
# Dtypes
# ---------------------------------------------------------------------------------------------------------------------


def dtype_of(annotation: tp.Any, default: tp.Any) -> tp.Any:
    """The dtype that an annotation asks for: `default` where it allows that, else the usual one of its kind."""
    for array in alternatives(annotation):
        kind = array.dtype[tp.Any, "..."]
        for dtype in _candidates(array, default):
            if isinstance(jax.ShapeDtypeStruct((), dtype), kind):
                return dtype
    return default


def _candidates(annotation: type[AbstractArray], default: tp.Any) -> Iterator[tp.Any]:
    yield default
    yield from map(jnp.result_type, (float, int, bool, complex))
    yield jnp.uint32
    names = annotation.dtype.dtypes
    for name in names if isinstance(names, (tuple, list)) else ():
        try:
            yield jnp.dtype(name)
        except TypeError:
            continue  # a pattern, or a dtype of another library
