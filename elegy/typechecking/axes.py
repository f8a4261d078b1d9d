"""What an annotation such as `Float[Array, "in out"]` says about an array: the sizes of its axes, and its dtype."""

from __future__ import annotations

import functools
import itertools
import operator
import types
import typing as tp
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, AbstractDtype, PyTree

_PYTREE: tp.Any = PyTree  # static checkers take it for Any itself, which has no parts

# The size of each axis that has a name (a tuple for `*name`), and the name of the array that gave it.
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


def is_pytree_annotation(annotation: tp.Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, PyTree) and hasattr(annotation, "leaftype")


def is_union(annotation: tp.Any) -> bool:
    return tp.get_origin(annotation) in (tp.Union, types.UnionType)


def _parts(annotation: tp.Any) -> tuple[tp.Any, ...]:
    return (annotation.leaftype,) if is_pytree_annotation(annotation) else tp.get_args(annotation)


def mentions_array(annotation: tp.Any) -> bool:
    """Whether an annotation, or a part of it, is one of jaxtyping."""
    if tp.get_origin(annotation) is tp.ClassVar:
        return False
    return is_array_annotation(annotation) or any(map(mentions_array, _parts(annotation)))


def alternatives(annotation: tp.Any) -> Iterator[type[AbstractArray]]:
    """The arrays among what an annotation allows: itself, or the members of a union."""
    if is_array_annotation(annotation):
        yield annotation
    elif is_union(annotation):
        for part in tp.get_args(annotation):
            yield from alternatives(part)
    elif tp.get_origin(annotation) is tp.Annotated:
        yield from alternatives(tp.get_args(annotation)[0])


def items(annotation: tp.Any, value: tp.Any) -> Iterator[tuple[str, tp.Any, tp.Any]]:
    """The items of a container that are annotated as arrays: the index as one would write it, the item, its annotation.

    Those of a union are those of its only member that is such a container.
    """
    kind, parts = tp.get_origin(annotation), _parts(annotation)
    if kind is tp.Annotated:
        yield from items(parts[0], value)
    elif is_union(annotation):
        alike = [part for part in parts if _is_container(part, value)]
        if len(alike) == 1:
            yield from items(alike[0], value)
    elif not _is_container(annotation, value) or not any(map(mentions_array, parts)):
        return
    elif is_pytree_annotation(annotation):
        # What "?" stands for is known to jaxtyping alone, and so is where a leaf that is a container ends.
        leaves = tp.get_args(parts[0]) if is_union(parts[0]) else parts
        if not any(_parts(leaf) or "?" in getattr(leaf, "dim_str", "") for leaf in leaves):
            for path, leaf in jax.tree_util.tree_leaves_with_path(value):
                yield jax.tree_util.keystr(path), leaf, parts[0]
    elif issubclass(kind, Mapping):
        yield from ((f"[{key!r}]", item, parts[-1]) for key, item in value.items())
    else:
        annotations = parts if kind is tuple and parts[1:] != (...,) else itertools.repeat(parts[0])
        for index, (item, part) in enumerate(zip(value, annotations, strict=False)):
            yield f"[{index}]", item, part


def _is_container(annotation: tp.Any, value: tp.Any) -> bool:
    kind = tp.get_origin(annotation)
    if is_pytree_annotation(annotation):
        return value is not None
    return isinstance(kind, type) and issubclass(kind, (Mapping, Sequence)) and isinstance(value, kind)


def rebuilt(annotation: tp.Any, change: Callable[[tp.Any], tp.Any]) -> tp.Any:
    """An annotation, each part of which that has no parts itself is replaced by what `change` makes of it."""
    old = _parts(annotation)
    if not old:
        return change(annotation)
    new = tuple(rebuilt(part, change) for part in old)
    if all(a is b for a, b in zip(old, new, strict=True)):
        return annotation
    if is_pytree_annotation(annotation):
        return _PYTREE[new[0]] if annotation.structure is None else _PYTREE[new[0], annotation.structure]
    return functools.reduce(operator.or_, new) if is_union(annotation) else tp.get_origin(annotation)[new]


@functools.lru_cache(maxsize=1024)
def with_type(annotation: type[AbstractArray], array_type: tp.Any, shape: str | None = None) -> tp.Any:
    """The same annotation of another class of arrays, or of arrays of another shape too."""
    dtype: tp.Any = annotation.dtype
    if annotation.dtypes != dtype.dtypes:  # `Shaped[Image, "batch"]` has the dtypes of `Image`
        dtype = type(dtype.__name__, (AbstractDtype,), {"dtypes": annotation.dtypes})
    return dtype[array_type, annotation.dim_str if shape is None else shape]


def allowing(annotation: tp.Any, kind: tp.Any = None, *substitutes: tp.Any) -> tp.Any:
    """The same, where arrays of other classes may stand for those of the class `kind`; for all if it is None."""

    def change(part: tp.Any) -> tp.Any:
        if is_array_annotation(part) and kind in (part.array_type, None):
            return functools.reduce(operator.or_, (with_type(part, substitute) for substitute in substitutes), part)
        return functools.reduce(operator.or_, substitutes, part) if part is kind else part

    return rebuilt(annotation, change)


def show(annotation: tp.Any) -> str:
    """The annotation as one would write it."""
    if is_array_annotation(annotation):
        return _show_arrays([annotation])
    if annotation is type(None) or annotation is ...:
        return "None" if annotation is type(None) else "..."
    if isinstance(annotation, str):
        return repr(annotation)
    if is_union(annotation):
        members: dict[tp.Any, list[tp.Any]] = {}
        for part in tp.get_args(annotation):
            alike = (part.dtype, part.dim_str) if is_array_annotation(part) else part
            members.setdefault(alike, []).append(part)
        return " | ".join(_show_arrays(parts) if len(parts) > 1 else show(*parts) for parts in members.values())
    parts = list(map(show, _parts(annotation)))
    if is_pytree_annotation(annotation):
        name, parts = "PyTree", parts if annotation.structure is None else [*parts, f'"{annotation.structure}"']
    else:
        name = getattr(annotation, "__name__", None) or str(tp.get_origin(annotation) or annotation)
    return (f"{name}[{', '.join(parts)}]" if parts else name).replace("typing.", "")


def _show_arrays(annotations: Sequence[type[AbstractArray]]) -> str:
    """Annotations that differ in the class of the array only, as one."""
    classes = [getattr(array.array_type, "__name__", str(array.array_type)) for array in annotations]
    classes = " | ".join(name.rpartition(".")[-1] for name in classes)
    return f'{annotations[0].dtype.__name__}[{classes}, "{annotations[0].dim_str}"]'


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


class _Broadcast(tuple):
    """The sizes of a `*#name`: those of one array, or what those of several broadcast to."""


def bind(annotation: tp.Any, value: tp.Any, origin: str, sizes: Sizes, names: Mapping[str, tp.Any]) -> Sizes:
    """`sizes`, and the axes that a value binds. A value that does not fit its annotation binds nothing.

    **Arguments:**

    - `origin`: what to call the value.
    - `names`: what `{self.features}` and the like may refer to.
    """
    for array in alternatives(annotation):
        found = _match(array, value, origin, sizes, names)
        if found is not None:
            return found
    for index, item, part in items(annotation, value):
        sizes = bind(part, item, origin + index, sizes, names)
    return sizes


def _match(
    annotation: type[AbstractArray], value: tp.Any, origin: str, sizes: Sizes, names: Mapping[str, tp.Any]
) -> Sizes | None:
    if not isinstance(value, with_type(annotation, tp.Any, "...")):
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
        if axis.anonymous or (axis.broadcast and size == 1):
            continue
        if axis.variadic:
            known, first = found.get(axis.name, (None, origin))
            joined = _joined(axis, size, known)
            if joined is None:
                return None
            found[axis.name] = (joined, first)
        elif axis.text.isidentifier():
            if found.setdefault(axis.name, (size, origin))[0] != size:
                return None
        else:
            try:
                if _size(axis, found, names) != size:
                    return None
            except UnknownAxisError:
                continue  # an expression of axes that come later
    return found


def _joined(axis: Axis, size: tuple[int, ...], known: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The sizes of a variadic axis of one more array, or None if they do not fit those that are known."""
    if known is None:
        return _Broadcast(size) if axis.broadcast else size
    grows = isinstance(known, _Broadcast)
    if not grows and not axis.broadcast:
        return known if size == known else None
    try:
        both = np.broadcast_shapes(known, size)
    except ValueError:
        return None
    if grows and axis.broadcast:
        return _Broadcast(both)
    fixed = size if grows else known  # the one that does not broadcast has the sizes of both
    return fixed if both == fixed else None


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
        return eval(text, {name: size for name, (size, _) in sizes.items()})
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
                shape.extend(size if axis.variadic else (_as_size(axis, size),))
            return tuple(shape)
        except UnknownAxisError as error:
            problem = error
    raise problem


def _as_size(axis: Axis, value: tp.Any) -> int:
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = -1
    if size < 0 or size != value:
        raise UnknownAxisError(f"{axis.text!r} is {value!r}, which is no size")
    return size


def show_sizes(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size} (from {origin})" for name, (size, origin) in sizes.items()) or "none"


# ---------------------------------------------------------------------------------------------------------------------
# Dtypes
# ---------------------------------------------------------------------------------------------------------------------


def dtype_of(annotation: tp.Any, default: tp.Any) -> tp.Any:
    """The dtype that an annotation asks for: `default` where it allows that, else the usual one of its kind."""
    for array in alternatives(annotation):
        kind = with_type(array, tp.Any, "...")
        for dtype in _candidates(array, default):
            if isinstance(jax.ShapeDtypeStruct((), dtype), kind):
                return dtype
    return default


def _candidates(annotation: type[AbstractArray], default: tp.Any) -> Iterator[tp.Any]:
    yield default
    yield from map(jnp.result_type, (float, int, bool, complex))
    yield jnp.uint32
    names = annotation.dtypes
    for name in names if isinstance(names, (tuple, list)) else ():
        try:
            yield jnp.dtype(name)
        except TypeError:
            continue  # a pattern, or a dtype of another library
