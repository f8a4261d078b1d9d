"""Which method of which module is running: creation order, paths, and the rule that a trace changes only its own."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import types
import typing as tp
import warnings
import weakref
from collections.abc import Callable

import numpy as np

from elegy import tracing
from elegy.errors import LostUpdateWarning, ModuleOrderError, NameCollisionError, TraceError, ways_out
from elegy.layout import Record, change, child_parts, meta_of, relayout, walk
from elegy.leaves import Node, pending_of, set_class, set_pending, static_key
from elegy.state import state, write, write_meta
from elegy.transaction import belongs, held, in_class, visible, writable

# The attribute in which a module that draws random numbers keeps a key of its own.
RNG_ATTRIBUTE = "rng_key"
# What no parameter or submodule may be called, since the library reads it.
RESERVED = ("name", "dtype", RNG_ATTRIBUTE)


def default_name(cls: type) -> str:
    """`Conv2D` -> `conv2d`, `BatchNormalization` -> `batch_normalization`, `MLP` -> `mlp`."""
    name = re.sub(r"\W+", "", cls.__name__)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    return re.sub(r"__+", "_", name).lstrip("_") or "module"


def name_of(module: Node) -> str:
    name = module.__dict__.get("name")
    return name if isinstance(name, str) else default_name(type(module))


def class_of(module: Node) -> tp.Any:
    """The class whose code a module runs. Where a method defines the class, and so makes it anew on each run, that is
    the class of the present run, or else of the last run outside of any trace."""
    for frame in reversed(state.frames):
        if id(module) in frame.classes:
            return frame.classes[id(module)]
    return getattr(module, "_elegy_class", type(module))


class Frame:
    """One running method of one module. `method` is `__init__` while the module is being constructed."""

    __slots__ = (
        "_below",
        "_parts",
        "classes",
        "first",
        "index",
        "method",
        "module",
        "names",
        "parent",
        "records",
        "trace",
    )

    def __init__(self, module: Node, method: str, trace: tp.Any = None):
        self.module = module
        self.method = method
        # The trace in which the method was called.
        self.trace = trace
        frames = state.frames
        self.parent = frames[-1] if frames else None
        records = meta_of(module).records.get(method) if method != "__init__" else None
        # On the first run of a method the modules that it creates are recorded; later runs must match the record.
        self.first = records is None
        self.records: list[Record] = [] if records is None else list(records)
        self.index = 0
        self.names: dict[str, int] = {}
        # The classes of this run, for modules whose class is made anew on each run, by the module's id.
        self.classes: dict[int, type] = {}
        self._parts: tuple[str, ...] | None = None
        self._below: dict[int, tuple[str, ...]] | None = None

    @property
    def method_name(self) -> str:
        return self.method.rsplit(".", 1)[-1]

    @property
    def building(self) -> bool:
        return self.method == "__init__"

    @property
    def parts(self) -> tuple[str, ...]:
        """The path of the module, the root's name first."""
        if self._parts is None:
            name = (name_of(self.module),)
            if self.parent is None or self.parent.building:
                self._parts = name
            elif self.parent.module is self.module:
                self._parts = self.parent.parts
            else:
                self._parts = self.parent.parts + (self.parent.find(self.module) or name)
        return self._parts

    def find(self, module: Node) -> tuple[str, ...] | None:
        """The path from this frame's module to a module below it."""
        if self._below is None:
            self._below = {id(child): parts for parts, child in reversed(child_parts(self.module))}
        if id(module) not in self._below:  # it is further below, or was created since
            self._below = paths_below(self.module)
        return self._below.get(id(module))

    def create(self, cls: type, arguments: Arguments, construct: Callable[[], Node]) -> Node:
        """The module that the running method creates at this position: a new one, or that of the first run."""
        position = self.index
        if position < len(self.records) or not self.first:
            found = self._match(position, cls, arguments)
            self.index += 1
            return found
        require_same_trace(self.module, f"created {cls.__name__}")
        module = construct()
        attribute = self._free_name(module)
        self.index += 1
        write(self.module, attribute, module, created=True)
        write_meta(self.module, ties=True, created=True)
        self._change_above()
        if self._below is not None:
            self._below[id(module)] = (attribute,)
        self.records.append(Record(attribute, arguments, call_site(), cls))
        if not meta_of(self.module).trainable:
            for node in walk([module]):  # what a frozen module creates is frozen
                write_meta(node, dataclasses.replace(meta_of(node), trainable=False), created=True)
        return module

    def _change_above(self) -> None:
        """Marks the structure of the running modules above as changed: the new module may share one of theirs."""
        for frame in reversed(state.frames):
            if frame.module is not self.module and not frame.building:
                version = visible(frame.module)
                if version._elegy_layout is None and version._elegy_ties is None:
                    break  # it is marked already, and so are those above it
                change(writable(frame.module))

    def position(self) -> tuple[tp.Any, ...]:
        """Where the method is, to `go_back` to."""
        return self.index, len(self.records), self.names.copy()

    def go_back(self, position: tuple[tp.Any, ...]) -> None:
        self.index, count, self.names = position
        self._below = None
        del self.records[count:]

    def _created(self, cls: type) -> str:
        here = f"{'/'.join(self.parts)}.{self.method_name}"
        return f"{here} created {cls.__name__} at position {self.index} ({call_site()})"

    def _match(self, position: int, cls: type, arguments: Arguments) -> Node:
        if position >= len(self.records):
            count = len(self.records)
            raise ModuleOrderError(
                f"{self._created(cls)}, but its first run created only {count} module{'s' * (count != 1)}.\n"
                "  Create every module on every run; use it conditionally."
            )
        record = self.records[position]
        module = held(self.module)[record.attribute]
        # An instance of a subclass may have been put in the place of the module: an adapter around it, say.
        found = record.cls if isinstance(module, record.cls) else type(module)
        if found is not cls and (found.__module__, found.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ModuleOrderError(
                f"{self._created(cls)}, where its first run created {found.__name__} ({record.site}).\n"
                "  Create modules unconditionally and in one order; use them in any order, or not at all."
            )
        if found is not cls:  # a class that is made anew on each run: it closes over the values of this run
            self.classes[id(module)] = cls
            if not tracing.is_traced():
                set_class(module, cls)
        if arguments != record.arguments:
            raise ModuleOrderError(
                f"{self._created(cls)} with {arguments}, but its first run ({record.site}) used "
                f"{record.arguments}.\n"
                "  A module keeps the arguments of its first creation: use the same ones, or another module."
            )
        return module

    def _free_name(self, module: Node) -> str:
        base = name_of(module)
        explicit = "name" in module.__dict__
        if explicit and (base in RESERVED or (base not in self.names and is_taken(self.module, base))):
            raise NameCollisionError(
                f"{'/'.join(self.parts)}: the name {base!r} given to {type(module).__name__} ({call_site()}) is "
                f"already that of an attribute or a method of {type(self.module).__name__}.\n  Choose another name=."
            )
        number = self.names.get(base, 0)
        attribute = f"{base}_{number}" if number else base
        while attribute in RESERVED or is_taken(self.module, attribute):
            number += 1
            attribute = f"{base}_{number}"
        self.names[base] = number + 1
        return attribute

    def close(self) -> None:
        """Ends a method that has returned: records a first run, and refuses a later one that created fewer modules."""
        if self.first:
            if id(self.module) in state.threaded and state.init_pass is None:
                return  # an init pass could not reach it: what it does, it does without creating
            if not belongs(self.module):
                return  # a module of an outer trace that creates nothing: it may run, and is left as it was
            meta = meta_of(self.module)
            records = {**meta.records, self.method: tuple(self.records)}
            write_meta(self.module, dataclasses.replace(meta, records=records, initialized=True), created=True)
        elif self.index < len(self.records):
            record = self.records[self.index]
            raise ModuleOrderError(
                f"{'/'.join(self.parts)}.{self.method_name} created fewer modules than on its first run: {self.index} "
                f"instead of {len(self.records)}. The first one missing is {record.attribute} ({record.site}).\n"
                "  Create every module on every run; use it conditionally."
            )


class Replay:
    """Lets the running method find the same modules each time that a transform runs one of its functions.

    A transform may trace a function more than once, and an init pass runs it before; all these runs stand for one place
    in the code of the method.
    """

    __slots__ = ("_begin", "_end", "_frame", "_starts")

    def __init__(self) -> None:
        frame = state.frames[-1] if state.frames else None
        self._frame = None if frame is None or frame.building else frame
        self._starts: dict[int, int] = {}
        self._begin = self._end = 0 if frame is None else frame.index

    @property
    def place(self) -> tp.Any:
        """Where in which method the functions run."""
        return None if self._frame is None else (id(self._frame.module), self._frame.method, self._begin)

    def of(self, function: Callable[..., tp.Any], number: int = 0) -> Callable[..., tp.Any]:
        """The `number`-th function of the transform, to be run any number of times."""
        frame = self._frame
        if frame is None:
            return function

        @functools.wraps(function, updated=())
        def replayed(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            frame.index = self._starts.setdefault(number, self._end)
            out = function(*args, **kwargs)
            self._end = max(self._end, frame.index)
            return out

        return replayed

    def finish(self) -> None:
        """Ends the transform: the method goes on behind what its functions created."""
        if self._frame is not None:
            self._frame.index = self._end


class Arguments:
    """The constructor arguments that are plain data, compared strictly: 1 is neither 1.0 nor True."""

    __slots__ = ("key", "named")

    def __init__(self, named: list[tuple[tp.Any, tp.Any]]):
        self.named = named
        self.key = tuple((name, static_key(value)) for name, value in named)

    def __eq__(self, other: tp.Any) -> bool:
        return isinstance(other, Arguments) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        shown = [_text(value) if isinstance(name, int) else f"{name}={_text(value)}" for name, value in self.named]
        return f"({', '.join(shown)})"


def plain_arguments(args: tuple[tp.Any, ...], kwargs: dict[str, tp.Any]) -> Arguments:
    named = [*enumerate(args), *sorted(kwargs.items())]
    return Arguments([(name, value) for name, value in named if _is_plain(value)])


def _text(value: tp.Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    return getattr(value, "__name__", repr(value))


def _is_plain(value: tp.Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.dtype, np.generic, type))


def is_taken(module: Node, name: str) -> bool:
    return name in held(module) or any(in_class(cls, name) for cls in type(module).__mro__)


# ---------------------------------------------------------------------------------------------------------------------
# Places in the code, and paths
# ---------------------------------------------------------------------------------------------------------------------

# The files that are passed over in the search for the caller of the core. Layers are not among them: they are callers.
_CORE = {
    f"elegy.{name}"
    for name in (
        "calls checks construction creation draws frames hooks initialise module parameters state transaction"
    ).split()
}
_CHECKERS = {"beartype", "contextlib", "jaxtyping"}
_LIBRARIES = {"elegy", "jax", "weakref", *_CHECKERS}


def _is_core(frame: types.FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    is_core = name in _CORE or name.startswith("elegy.typechecking.")
    return is_core or name.partition(".")[0] in _CHECKERS or frame.f_code.co_filename.startswith("<")


def _is_library(frame: types.FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES


def warn(warning: Warning) -> None:
    """Gives a warning that points at the nearest caller outside of libraries."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_library(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)


def user_site() -> str:
    """File and line of the nearest caller outside of libraries."""
    return _site(_is_library)


def call_site() -> str:
    """File and line of the nearest caller outside the core and outside type checkers."""
    return _site(_is_core)


def _site(is_between: Callable[[types.FrameType], bool]) -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None and is_between(frame):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def paths_below(root: Node) -> dict[int, tuple[str, ...]]:
    """The path from `root` to each module at or below it, by the module's id."""
    paths: dict[int, tuple[str, ...]] = {id(root): ()}
    queue = [root]
    for node in queue:  # grows while it is read
        for parts, child in child_parts(node):
            if id(child) not in paths:
                paths[id(child)] = (*paths[id(node)], *parts)
                queue.append(child)
    return paths


def path_below(root: Node, module: Node) -> tuple[str, ...] | None:
    """The path from `root` to a module below it, or None."""
    return None if module is root else paths_below(root).get(id(module))


def parts_of(module: Node) -> tuple[str, ...]:
    for frame in reversed(state.frames):
        if frame.module is module:
            return frame.parts
    for frame in reversed(state.frames):
        if not frame.building:
            below = path_below(frame.module, module)
            if below is not None:
                return frame.parts + below
    for root in state.threaded.values():
        below = path_below(root, module)
        if below is not None:
            return (name_of(root), *below)
    return (name_of(module),)


def path_of(module: Node, name: str | None = None) -> str:
    """The readable path of a module, or of one of its parameters: `mlp/linear_1/w`."""
    return "/".join(parts_of(module) if name is None else (*parts_of(module), name))


def scope() -> list[str]:
    """The levels of the current path: modules that run, and name contexts."""
    parts: list[str] = []
    frames = [frame for frame in state.frames if not frame.building]
    if frames and not state.name_levels:
        return list(frames[-1].parts)
    shown: tuple[str, ...] = ()
    for depth in range(len(state.frames) + 1):
        parts.extend(name for level, name in state.name_levels if level == depth)
        if depth < len(state.frames) and not state.frames[depth].building:
            own = state.frames[depth].parts
            parts.extend(own[len(shown) :] if own[: len(shown)] == shown else own)
            shown = own
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Changes that a trace may make, and updates that nobody returns
# ---------------------------------------------------------------------------------------------------------------------


def require_same_trace(module: Node, what: str, path: str | None = None) -> None:
    """Refuses to change a module of an outer trace."""
    if not belongs(module):
        raise TraceError(
            f"{path or path_of(module)}: {what} inside a jax transform, but the module belongs to the code outside "
            "of it.\n"
            "  The change is a value of the trace and could not leave it. The ways out:"
            + ways_out(
                "Make the module an argument of the transformed function and return it: "
                "jax.jit(lambda m, x: (m(x), m))(module, x).",
                "Use the transform of the same name in elegy and list the module: elegy.jit(f, modules=module)(x).",
                *(["Initialise it before: module.init(x)."] if what.startswith("created") else []),
            )
            + (
                "\n  A transform of elegy around this one lists the module. If this one is of elegy too, list it here "
                "as well: modules=[..., module]."
                if id(module) in state.threaded
                else ""
            )
        )


def note_update(module: Node, name: str, path: str | None = None) -> None:
    """Inside a jax transform: remembers an update until the module is flattened or its state is read, and warns if the
    module dies before.

    A module that the transformed function made itself, anew or by `copy` or `apply`, may lose its state without a
    warning, but not its random key: it would draw the same numbers in every call.
    """
    version = visible(module)
    if version._elegy_born == tracing.EAGER or id(module) in state.threaded or state.init_pass is not None:
        return
    pending = pending_of(version)
    if pending is PRIVATE and name != RNG_ATTRIBUTE:
        return
    if not isinstance(pending, list):
        pending = []
        set_pending(module, pending)
        set_pending(version, pending)
        finalizer = weakref.finalize(module, _warn_if_lost, pending, path or path_of(module), version._elegy_born)
        finalizer.atexit = False
    pending.append((name, user_site()))
    state.undo.append(lambda: pending.pop() if pending else None)
    relayout(writable(module))


# Stands for the pending updates of a module that was made inside a transform.
PRIVATE = ()


def _warn_if_lost(pending: list[tuple[str, str]], path: str, trace: tp.Any) -> None:
    # A module that dies in another trace was in the traceback of an exception, or stored somewhere: nothing is wrong.
    if pending and trace == tracing.current():
        names = sorted({name for name, _ in pending})
        without = (
            "pass a key (m.apply(x, rng=key))" if names == [RNG_ATTRIBUTE] else "run the module in evaluation mode"
        )
        warn(
            LostUpdateWarning(
                f"{path}: the update of {', '.join(names)} inside a jax transform was lost, since the changed module "
                f"was not returned ({pending[0][1]}).\n  Return the module from the transformed function, use the "
                f"transform of the same name in elegy with modules=, or {without}."
            )
        )
