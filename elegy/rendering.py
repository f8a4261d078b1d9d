"""How a module is shown: `repr`, `wadler_lindig` documents (`equinox.tree_pformat`, jaxtyping's messages), treescope.

    MLP(
      width=64,
      linear=Linear(output_size=64, w=f32[3,64], b=f32[64]),
      norm=BatchNormalization(frozen, scale=f32[64], mean=f32[64], var=f32[64]),
      head=Linear(uninitialised, output_size=1)
    )

An array that is not trainable is marked `(state)` or `(frozen)`, unless its whole module is `frozen`. Equal neighbours
in a list are counted, `12 x Block(...)`, and a module that was shown above is named, `Linear(same as encoder/linear)`.
What is too deep, too many or too long is left out, and nothing that a module holds can make this fail.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing as tp
from collections.abc import Iterator

import jax
import numpy as np
import wadler_lindig as wl

from elegy.containers import is_plain_container
from elegy.layout import Slot, children, meta_of, slots, walk
from elegy.leaves import Node, is_array, is_node, is_static
from elegy.transaction import held

_WIDTH = 100  # characters on a line
_MOST_LEVELS = 16  # of modules and containers in each other
_MOST_NEIGHBOURS = 40  # attributes of one module, or elements of one container
_MOST_ENTRIES = 500  # attributes and elements in total
_LONGEST_STRING = 80  # characters of a string
_LONGEST_OBJECT = 2000  # characters of an object of another library

_MOST_LEVELS_IN_TREESCOPE = 30

_SKETCH = "elegy_sketch"


def summarise(module: Node) -> str:
    """The `repr` of a module."""
    return wl.pformat(module, width=_WIDTH, custom=_short)


def totals(module: Node) -> str:
    """How many elements and bytes a module and all below it hold, by kind: the last line of `print(module)`."""
    sizes = {"trainable": [0, 0], "state": [0, 0], "frozen": [0, 0]}
    for node in walk([module]):
        for slot, array in _arrays(node):
            sizes[slot.kind][0] += array.size
            sizes[slot.kind][1] += array.size * array.dtype.itemsize
    parts = [f"{size:,} {kind} ({in_bytes(room)})" for kind, (size, room) in sizes.items() if size]
    if len(parts) > 1:
        size, room = (sum(column) for column in zip(*sizes.values(), strict=True))
        parts[-1] += f"; {size:,} in all ({in_bytes(room)})"
    if not meta_of(module).initialized:
        return f"Parameters: {', '.join(parts)}; the first call may create more" if parts else "Parameters: none yet"
    return f"Parameters: {', '.join(parts) or 'none'}"


def _arrays(module: Node) -> list[tuple[Slot, tp.Any]]:
    """The arrays that a module holds itself, with their slots."""
    try:
        return [(slot, value) for slot, value in slots(module) if slot.holds == "array"]
    except Exception:  # some other object stands where an attribute was
        return []


def in_bytes(number: float | int) -> str:
    """A number of bytes in the unit that fits: `1.5 KiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{number:.4g} {units[0]}"


def document(module: Node, **kwargs: tp.Any) -> wl.AbstractDoc:
    """A module as a `wadler_lindig` document; `kwargs` are the options that `wadler_lindig.pdoc` hands down."""
    # The options reach every __pdoc__ below this one, through objects of other libraries too, and so does the sketch.
    sketch = kwargs.setdefault(_SKETCH, _Sketch())
    return sketch.module(module, kwargs)


class _Sketch:
    """What has been shown so far, and where we are."""

    def __init__(self) -> None:
        self.path: list[str] = []
        self.shown: dict[int, str] = {}
        self.room = _MOST_ENTRIES

    def module(self, module: Node, options: dict[str, tp.Any]) -> wl.AbstractDoc:
        name = type(module).__name__
        if id(module) in self.shown:
            return wl.TextDoc(f"{name}(same as {self.shown[id(module)]})")
        if self.is_full():
            return wl.TextDoc(f"{name}(...)")
        self.shown[id(module)] = "/".join(self.path)
        docs: list[wl.AbstractDoc] = [wl.TextDoc(mark) for mark in _marks(module)]
        attributes, states = _shown_attributes(module, options["hide_defaults"]), _states(module)
        for index, (key, value) in enumerate(attributes):
            if index == _MOST_NEIGHBOURS or not self.room:
                docs.append(_more(len(attributes) - index))
                break
            with self.at(key):
                docs.append(wl.TextDoc(f"{key}=") + self.value(value, states, options))
        return _bracketed(f"{name}(", docs, ")", options)

    def value(self, value: tp.Any, states: dict[int, str], options: dict[str, tp.Any]) -> wl.AbstractDoc:
        """An attribute, or a part of one; `states` says why arrays are not trainable, by their ids."""
        try:
            doc = self._value(value, states, options)
        except Exception:  # the repr of an object may do anything, and a module must be printable all the same
            return wl.TextDoc(f"<{type(value).__name__}>")
        return doc + wl.TextDoc(f" ({states[id(value)]})") if id(value) in states else doc

    def _value(self, value: tp.Any, states: dict[int, str], options: dict[str, tp.Any]) -> wl.AbstractDoc:
        if is_node(value):
            return wl.pdoc(value, **options)
        if (custom := options["custom"](value)) is not None:
            return custom
        if is_plain_container(value):
            return self.container(value, states, options)
        if type(value) is str and len(value) > _LONGEST_STRING:
            return wl.TextDoc(f"{value[:_LONGEST_STRING]!r}...")
        if (options["short_arrays"] or not is_array(value)) and (short := _short(value)) is not None:
            return short
        doc = wl.pdoc(value, **options)
        is_long = len(wl.pformat(doc, width=_LONGEST_OBJECT)) > _LONGEST_OBJECT
        return wl.TextDoc(f"{type(value).__name__}(...)") if is_long else doc

    def container(self, container: tp.Any, states: dict[int, str], options: dict[str, tp.Any]) -> wl.AbstractDoc:
        """A list, tuple, named tuple or dict, with equal modules next to each other counted."""
        begin, labels, items, end = _parts(container)
        if self.is_full() and items:
            return wl.TextDoc(f"{begin}...{end}")
        docs: list[wl.AbstractDoc] = []
        counts: list[int] = []
        for index, (label, item) in enumerate(zip(labels, items, strict=True)):
            room = self.room
            with self.at(str(index) if label is None else str(label)):
                doc = self.value(item, states, options)
            if label is not None:
                docs.append(_label(container, label) + doc)
                counts.append(1)
            elif is_node(item) and docs and docs[-1] == doc:
                counts[-1] += 1
                self.room = room
            else:
                docs.append(doc)
                counts.append(1)
            if index + 1 < len(items) and (len(docs) == _MOST_NEIGHBOURS or not self.room):
                docs.append(_more(len(items) - index - 1))
                counts.append(1)
                break
        docs = [doc if count == 1 else wl.TextDoc(f"{count} x ") + doc for doc, count in zip(docs, counts, strict=True)]
        return _bracketed(begin, docs, ",)" if begin == "(" and len(items) == 1 else end, options)

    def is_full(self) -> bool:
        return not self.room or len(self.path) >= _MOST_LEVELS

    @contextlib.contextmanager
    def at(self, part: str) -> Iterator[None]:
        self.room -= 1
        self.path.append(part)
        try:
            yield
        finally:
            self.path.pop()


def _bracketed(begin: str, docs: list[wl.AbstractDoc], end: str, options: dict[str, tp.Any]) -> wl.AbstractDoc:
    return wl.bracketed(wl.TextDoc(begin), docs, wl.comma, wl.TextDoc(end), options["indent"])


def _more(count: int) -> wl.AbstractDoc:
    return wl.TextDoc(f"... {count} more")


def _parts(container: tp.Any) -> tuple[str, list[tp.Any], list[tp.Any], str]:
    """Opening bracket, labels (None for those without), elements, closing bracket."""
    if isinstance(container, dict):
        return "{", list(container), list(container.values()), "}"
    if hasattr(container, "_fields"):
        return f"{type(container).__name__}(", list(container._fields), list(container), ")"
    begin, end = "()" if isinstance(container, tuple) else "[]"
    return begin, [None] * len(container), list(container), end


def _label(container: tp.Any, label: tp.Any) -> wl.AbstractDoc:
    return wl.TextDoc(f"{label!r}: " if isinstance(container, dict) else f"{label}=")


def _short(value: tp.Any) -> wl.AbstractDoc | None:
    """An array as `f32[3,64]`, with its kind if it is none of JAX's; the name of a dtype, type or function."""
    if is_array(value):
        kinds = {jax.ShapeDtypeStruct: "struct", np.ndarray: "numpy"}
        kind = next((kind for cls, kind in kinds.items() if isinstance(value, cls)), None)
        return wl.array_summary(tuple(value.shape), value.dtype.name, kind)
    name = _name(value)
    return None if name is None else wl.TextDoc(name)


def _name(value: tp.Any) -> str | None:
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type):
        return value.__name__
    if callable(value) and not isinstance(value, functools.partial):
        name = getattr(value, "__name__", None)
        return name if isinstance(name, str) else None
    return None


def _marks(module: Node) -> list[str]:
    meta = meta_of(module)
    dtype = getattr(meta.dtype_policy, "compute_dtype", None)
    computes = [] if dtype is None else [f"computes in {dtype.name}"]
    return ["uninitialised"] * (not meta.initialized) + ["frozen"] * (not meta.trainable) + computes


def _shown_attributes(module: Node, hide_defaults: bool) -> list[tuple[str, tp.Any]]:
    """The attributes without the private static ones, and without those that are the defaults of their arguments."""
    defaults = _defaults(type(module)) if hide_defaults else {}
    parameters = meta_of(module).parameters
    return [
        (name, value)
        for name, value in held(module).items()
        if name in parameters
        or not is_static(value)
        or not (name.startswith("_") or (name in defaults and defaults[name] is value))
    ]


def _defaults(cls: type) -> dict[str, tp.Any]:
    try:
        parameters = inspect.signature(cls.__init__).parameters
    except (TypeError, ValueError):
        return {}
    return {name: parameter.default for name, parameter in parameters.items()}


def _states(module: Node) -> dict[int, str]:
    """Why arrays of a module are not trainable, though it is not frozen; by the ids of the arrays."""
    if not meta_of(module).trainable:
        return {}
    return {id(value): slot.kind for slot, value in _arrays(module) if not slot.trainable}


# ---------------------------------------------------------------------------------------------------------------------
# Treescope
# ---------------------------------------------------------------------------------------------------------------------


def render_in_treescope(module: Node, path: str | None, subtree_renderer: tp.Any) -> tp.Any:
    """A module as a part of a treescope figure: it folds, its arrays are drawn, its attributes have paths to copy."""
    from treescope import formatting_util, rendering_parts

    if _is_deep(module):
        return rendering_parts.on_separate_lines(
            [rendering_parts.text(line) for line in summarise(module).splitlines()]
        )

    def comment(text: str) -> tp.Any:
        return rendering_parts.fold_condition(
            expanded=rendering_parts.comment_color(rendering_parts.text(f"  # {text}"))
        )

    lines, states = [], _states(module)
    for index, (name, value) in enumerate(held(module).items()):
        rendered = subtree_renderer(value, path=None if path is None else f"{path}.{name}")
        is_last = index == len(held(module)) - 1
        pieces = [f"{name}=", rendered, rendering_parts.fold_condition(expanded=rendering_parts.text(","))]
        if not is_last:
            pieces.append(rendering_parts.fold_condition(collapsed=rendering_parts.text(", ")))
        if state := states.get(id(value)):
            pieces.append(comment(state))
        lines.append(rendering_parts.build_full_line_with_annotations(*pieces))
    marks = _marks(module)
    title = [rendering_parts.maybe_qualified_type_name(type(module)), "("]
    return rendering_parts.build_foldable_tree_node_from_children(
        prefix=rendering_parts.siblings(*title, *([comment(", ".join(marks))] if marks else [])),
        children=lines,
        suffix=")",
        path=path,
        background_color=formatting_util.color_from_string(type(module).__qualname__),
    )


def _is_deep(module: Node) -> bool:
    """Whether treescope, which recurses, might exceed Python's recursion limit."""
    level = {id(module): module}
    for _ in range(_MOST_LEVELS_IN_TREESCOPE):
        level = {id(child): child for node in level.values() for _, child in children(node)}
        if not level:
            return False
    return True
