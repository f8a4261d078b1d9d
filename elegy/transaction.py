"""The one mechanism of change: what happens is written beside the modules, and kept or dropped as a whole.

Each thread has a stack of *overlays*. An overlay holds, for some modules, a *shadow*: an object of the same class with
the attributes and the structure that the running code sees, while the module itself stays as it was. Everything is
read through the stack and written to its top, so:

- a call runs in an overlay that is committed when it has returned; if it raises, the overlay is dropped, and nothing
  has happened;
- a transform runs its function in an overlay whose shadows hold tracers, and reads its effects out of it: no module
  ever holds the tracers of somebody else's trace, so no other thread sees one;
- an init pass runs in an overlay that is dropped, but for what it created.

Where no overlay is open, code sees the modules themselves. Under `lock` attributes are read or written, and no code of
users runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import typing as tp
from collections.abc import Callable, Collection, Iterator, Sequence

from elegy import tracing
from elegy.leaves import (
    Node,
    pending_of,
    set_attributes,
    set_born,
    set_layout,
    set_meta,
    set_pending,
    set_ties,
    set_undrawn,
    undrawn_of,
)

# Guards reading or writing the attributes of several modules at once.
lock = threading.RLock()


class Conflict(BaseException):
    """Raised at a commit: another thread changed the structure of a module meanwhile. The call is to be run again."""


class Commits:
    """How often the structure of modules was changed by a commit, on any thread."""

    number = 0


commits = Commits()


class Structure:
    """`version` is another object after each structural change of any module, so that a cached view knows when to look
    again. It is no number, since two threads that count at once might lose a change.
    """

    version = object()


structure = Structure()


class Entry:
    """What an overlay knows of one of its shadows.

    - `node`: the module.
    - `origin`: the bookkeeping from which the shadow started.
    - `written`: the attributes that were written.
    - `created`: those among them that were created, in order, with their first values; an init pass keeps them.
    - `changed`: whether the structure changed.
    - `created_meta`, `created_flags`: whether a creation changed the bookkeeping, and in it a flag, as `trainable`.
    """

    __slots__ = ("changed", "created", "created_flags", "created_meta", "node", "origin", "written")

    def __init__(self, node: Node, origin: tp.Any):
        self.node = node
        self.origin = origin
        self.written: set[str] = set()
        self.created: dict[str, tp.Any] = {}
        self.changed = self.created_meta = self.created_flags = False

    def copy(self) -> Entry:
        entry = Entry(self.node, self.origin)
        entry.note(self)
        return entry

    def note(self, other: Entry) -> None:
        """Adds what another entry of the module knows."""
        self.written |= other.written
        self.created.update(other.created)
        self.changed |= other.changed
        self.created_meta |= other.created_meta
        self.created_flags |= other.created_flags


# The shadows to go back to, with their entries, by the ids of the modules; None where there was none.
Saved = dict[int, tuple[Node, Entry] | None]


class Overlay:
    """Shadows of some modules, by the ids of the modules.

    - `trace`: that of the code which runs in it.
    - `outer`: of an init pass, the trace around it; the pass may change the modules of that trace too.
    - `saved`: what to go back to if the innermost running call fails and its caller goes on.
    - `changed`: whether the structure of a module changed.
    - `views`: the views of transforms that contain such a change, and so are of no use to other threads.
    - `frame`: of a transform, the id of the Python frame that runs its function; outside of it modules have other
      arrays.
    """

    __slots__ = ("below", "changed", "entries", "frame", "outer", "saved", "shadows", "trace", "views")

    def __init__(self, trace: tp.Any, outer: tp.Any = None):
        self.below: Overlay | None = None
        self.trace = trace
        self.outer = outer
        self.shadows: dict[int, Node] = {}
        self.entries: dict[int, Entry] = {}
        self.saved: Saved | None = None
        self.changed = False
        self.frame: int | None = None
        self.views: dict[tp.Any, tp.Any] = {}

    def __enter__(self) -> None:
        """Within the block the overlay is on top; afterwards it has no effect."""
        self.below = thread.top
        opened.add(id(self))
        thread.top = self  # comes last: an interrupt before it leaves nothing behind

    def __exit__(self, *_: object) -> None:
        thread.top = self.below
        opened.discard(id(self))

    def add(self, node: Node, born: tp.Any) -> Node:
        """Makes a shadow of a module as it is visible now. The shadow belongs to the trace `born`."""
        with lock:
            below = visible(node)
            shadow = self.shadows[id(node)] = _copy(below)
            self.entries[id(node)] = Entry(node, _meta(below))
        set_born(shadow, born)
        return shadow


class _Thread(threading.local):
    top: Overlay | None = None


thread = _Thread()
# The ids of the open overlays of all threads. While there are none, no look-up needs to search for a shadow.
opened: set[int] = set()


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def visible(node: Node) -> Node:
    """The module as the running code sees it: a shadow, or the module itself. Not to be written to."""
    if opened:
        identity, overlay = id(node), thread.top
        while overlay is not None:
            shadow = overlay.shadows.get(identity)
            if shadow is not None:
                return shadow
            overlay = overlay.below
    return node


def held(node: Node) -> dict[str, tp.Any]:
    """The attributes of a module, as the running code sees them."""
    return visible(node).__dict__


NOTHING: tp.Any = object()


class Attribute:
    """Stands in a class for an attribute that may differ between a module and its shadows.

    It is installed under the names of arrays and submodules, when the first module of the class has one. `default` is
    what stands in the class itself.
    """

    __slots__ = ("default", "name")

    def __init__(self, name: str, default: tp.Any = NOTHING):
        self.name, self.default = name, default

    def __get__(self, instance: tp.Any, owner: tp.Any = None) -> tp.Any:
        name = self.name
        if instance is not None:
            try:
                return (visible(instance) if opened else instance).__dict__[name]
            except KeyError:
                pass
        for cls in owner.__mro__:
            default = _in_class(cls, name)
            if default is not NOTHING:
                return default.__get__(instance, owner) if hasattr(default, "__get__") else default
        raise AttributeError(name)

    def __set__(self, instance: tp.Any, value: tp.Any) -> None:
        instance.__dict__[self.name] = value  # only a constructor comes here, when nobody else knows the module

    def __delete__(self, instance: tp.Any) -> None:
        try:
            del instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __reduce__(self):
        return Attribute, ((self.name,) if self.default is NOTHING else (self.name, self.default))


def install_attribute(cls: type, name: str) -> None:
    """Puts an `Attribute` into a class, so that the name is read through overlays in its instances."""
    known = next((base.__dict__[name] for base in cls.__mro__ if name in base.__dict__), NOTHING)
    if not isinstance(known, Attribute) and not hasattr(type(known), "__set__"):
        type.__setattr__(cls, name, Attribute(name, cls.__dict__.get(name, NOTHING)))


def in_class(cls: type, name: str) -> bool:
    """Whether a class itself defines a name; an `Attribute` that was put there does not count."""
    return _in_class(cls, name) is not NOTHING


def _in_class(cls: type, name: str) -> tp.Any:
    value = cls.__dict__.get(name, NOTHING)
    return value.default if isinstance(value, Attribute) else value


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------

# The ids of the objects whose __init__ is running: nobody else knows them, so they are written to directly.
under_construction: set[int] = set()


def writable(node: Node) -> Node:
    """The version of a module to write to: a shadow in the top overlay, or the module where nothing need be undone."""
    top = thread.top
    if top is None or id(node) in under_construction or _is_of_inner_trace(node, top):
        return node
    return _shadow_in(top, node)


def entry_of(node: Node) -> Entry | None:
    """What the top overlay knows of its shadow of a module, after `writable`; None if it has none."""
    top = thread.top
    return None if top is None else top.entries.get(id(node))


def _is_of_inner_trace(node: Node, top: Overlay) -> bool:
    """Whether a module was made in a trace in which no overlay is open: nobody outside of that trace knows it, and it
    ends with the trace."""
    born = node._elegy_born
    if born == tracing.EAGER:
        return False
    overlay: Overlay | None = top
    while overlay is not None:
        if id(node) in overlay.shadows or overlay.trace == born:
            return False
        overlay = overlay.below
    return True


def _shadow_in(overlay: Overlay, node: Node, origin: tp.Any = None) -> Node:
    """The shadow of a module in an overlay, copied from below if it is not there yet. `origin` is the bookkeeping from
    which a shadow above began that is to be merged into it: what was committed since then is a conflict."""
    identity, saved = id(node), overlay.saved
    shadow = overlay.shadows.get(identity)
    if saved is not None and identity not in saved:
        saved[identity] = None if shadow is None else (_copy(shadow), overlay.entries[identity].copy())
    if shadow is None:
        below = overlay.below
        while below is not None and identity not in below.shadows:
            below = below.below
        with lock:  # another thread may commit
            original = node if below is None else below.shadows[identity]
            shadow = overlay.shadows[identity] = _copy(original)
            overlay.entries[identity] = Entry(node, _meta(original) if origin is None else origin)
    return shadow


def _copy(version: Node) -> Node:
    shadow = object.__new__(type(version))
    set_attributes(shadow, version.__dict__.copy())
    set_born(shadow, version._elegy_born)
    _take_structure(shadow, version)
    return shadow


def _take_structure(target: Node, source: Node) -> None:
    set_layout(target, source._elegy_layout)
    set_meta(target, _meta(source))
    set_ties(target, source._elegy_ties if source._elegy_layout is None else source._elegy_layout.ties)
    set_pending(target, pending_of(source))
    set_undrawn(target, undrawn_of(source))


def _meta(version: Node) -> tp.Any:
    layout = version._elegy_layout
    return version._elegy_meta if layout is None else layout.meta


# ---------------------------------------------------------------------------------------------------------------------
# Keeping and dropping
# ---------------------------------------------------------------------------------------------------------------------


def restore(overlay: Overlay, saved: Saved, outer: Saved | None) -> None:
    """Takes back what happened in an overlay since `saved` was begun; `outer` is that of the call around."""
    for identity, before in saved.items():
        if before is None:
            del overlay.shadows[identity], overlay.entries[identity]
        else:
            overlay.shadows[identity], overlay.entries[identity] = before
    overlay.saved = outer


def keep(overlay: Overlay, saved: Saved, outer: Saved | None) -> None:
    """Keeps what happened in an overlay since `saved` was begun, as a part of what happened since `outer` was."""
    if outer is not None:
        for identity, before in saved.items():
            outer.setdefault(identity, before)
    overlay.saved = outer


def commit(overlay: Overlay, but: Collection[int] = ()) -> None:
    """Gives what happened in an overlay, which is off the stack again, to the overlay below or to the modules.

    **Arguments:**

    - `but`: the ids of modules of which nothing is kept.

    **Raises:** `Conflict` if another thread was first; then nothing is kept.
    """
    below = thread.top
    finished: list[tuple[Entry, Node]] = []
    for identity, entry in overlay.entries.items():
        if identity in but:
            continue
        shadow = overlay.shadows[identity]
        if below is None or (entry.node._elegy_born == overlay.trace and below.trace != overlay.trace):
            finished.append((entry, shadow))
        else:
            _merge(below, entry, shadow)
    if not finished:
        return
    with lock:
        for entry, _ in finished:
            meta = _meta(entry.node)
            if entry.changed and meta is not entry.origin and meta != entry.origin:
                raise Conflict
        if below is None and any(entry.changed for entry, _ in finished):
            commits.number += 1
        try:
            for entry, shadow in finished:
                _apply(entry, shadow)
        except BaseException:  # an interrupt may come anywhere: all is written nevertheless
            for entry, shadow in finished:
                _apply(entry, shadow)
            raise
        finally:
            if any(entry.changed for entry, _ in finished):
                structure.version = object()


def _apply(entry: Entry, shadow: Node) -> None:
    attributes, new = entry.node.__dict__, shadow.__dict__
    for name in entry.written:
        if name not in new:
            attributes.pop(name, None)
    for name in new if len(entry.written) > 1 else entry.written:  # in the order of the leaves
        if name in entry.written and name in new:
            attributes[name] = new[name]
    if entry.changed and list(attributes) != list(new):
        kept = {name: attributes[name] for name in new}
        attributes.clear()
        attributes.update(kept)
    meta = _meta(entry.node)
    if entry.changed or meta is entry.origin or meta == entry.origin:
        _take_structure(entry.node, shadow)


def _merge(below: Overlay, entry: Entry, shadow: Node) -> None:
    target = _shadow_in(below, entry.node, entry.origin)
    attributes, new = target.__dict__, shadow.__dict__
    attributes.clear()
    attributes.update(new)
    below.entries[id(entry.node)].note(entry)
    below.changed |= entry.changed
    _take_structure(target, shadow)


def keep_created(overlay: Overlay) -> None:
    """Gives what was created in the overlay of an init pass, which is off the stack again, to the overlay below."""
    below = thread.top
    assert below is not None
    for identity, entry in overlay.entries.items():
        if not entry.created and not entry.created_meta:
            continue
        shadow, target = overlay.shadows[identity], _shadow_in(below, entry.node, entry.origin)
        known = below.entries[identity]
        target.__dict__.update(entry.created)
        known.written.update(entry.created)
        known.created.update(entry.created)
        known.changed = known.created_meta = below.changed = True
        known.created_flags |= entry.created_flags
        if entry.created_meta:
            meta, kept = _meta(shadow), _meta(target)
            if not entry.created_flags:
                flags = {name: getattr(kept, name) for name in ("trainable", "frozen", "dtype_policy")}
                meta = dataclasses.replace(meta, **flags)
            _take_structure(target, shadow)
            set_meta(target, meta)
        set_layout(target, None)
        set_ties(target, None)
        if list(target.__dict__) != list(shadow.__dict__) and target.__dict__.keys() == shadow.__dict__.keys():
            ordered = {name: target.__dict__[name] for name in shadow.__dict__}
            target.__dict__.clear()
            target.__dict__.update(ordered)


@contextlib.contextmanager
def temporarily(
    values: Sequence[tuple[Node, str, tp.Any]], kept: Callable[[tp.Any, tp.Any], tp.Any] = lambda new, old: new
) -> Iterator[None]:
    """Within the block attributes have other values. If the block itself sets one, it is `kept(new, old)` afterwards,
    where `old` is the value from before the block."""
    overlay = Overlay(tracing.current())
    with overlay:
        for node, name, value in values:
            install_attribute(type(node), name)
            _shadow_in(overlay, node).__dict__[name] = value
        yield
    for node, name, value in values:
        attributes = overlay.shadows[id(node)].__dict__
        before, now = held(node)[name], attributes[name]
        attributes[name] = before if now is value else kept(now, before)
    commit(overlay)


def is_changed() -> bool:
    """Whether the running code sees a module with another structure than the module has."""
    overlay = thread.top
    while overlay is not None:
        if overlay.changed:
            return True
        overlay = overlay.below
    return False


def shadowed_since(node: Node) -> int | None:
    """The id of the Python frame in which the innermost transform that gives a module other arrays runs its function;
    None outside of such transforms."""
    overlay = thread.top
    while overlay is not None:
        if overlay.frame is not None and id(node) in overlay.shadows:
            return overlay.frame
        overlay = overlay.below
    return None


def belongs(node: Node) -> bool:
    """Whether the running code may change a module: it is of its trace, or of the one around an init pass."""
    trace, born = tracing.current(), visible(node)._elegy_born
    if born == trace:
        return True
    overlay = thread.top
    while overlay is not None:
        if overlay.outer is not None and overlay.trace == trace:
            trace = overlay.outer
            if born == trace:
                return True
        overlay = overlay.below
    return False


def birthplace() -> tp.Any:
    """The trace to which a new module belongs: that around the init pass, if one runs."""
    trace = tracing.current()
    overlay = thread.top
    while overlay is not None:
        if overlay.outer is not None and overlay.trace == trace:
            trace = overlay.outer
        overlay = overlay.below
    return trace
