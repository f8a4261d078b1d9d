"""Several threads and one module: who may look while whose trace has put tracers in.

A transform that threads modules makes them hold tracers while it traces. Meanwhile its thread *holds* these modules: no
other thread may run, read or write them, and it does not begin while another thread runs one. Each side says what it is
about to do before it looks at the other, so that of two that come at once one at least waits. A thread that waits
counts as absent, so no two wait for each other.
"""

from __future__ import annotations

import contextlib
import threading
import typing as tp
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

if tp.TYPE_CHECKING:
    from elegy.leaves import Node

# Guards what is written down here, and reading or writing several arrays at once. No code of users and no trace runs
# while it is held: in there JAX waits for other threads, which might wait for this lock.
lock = threading.RLock()
_turn = threading.Condition(lock)

# Which thread holds a module, by the id of the module.
holders: dict[int, int] = {}
# The outermost module that each thread runs right now, unless the thread waits.
_running: dict[int, Node] = {}
_waiting = 0
# After how many seconds a thread that waits says so.
PATIENCE = 20.0


class Busy(BaseException):
    """Raised inside a trace that would have to wait for another thread: the trace is given up and begun again later."""

    def __init__(self, identities: Collection[int]):
        super().__init__()
        self.identities = identities


class _Thread(threading.local):
    # Whether the code around is a trace of elegy, which is begun again if it is given up.
    may_give_up = False


_thread = _Thread()


@contextlib.contextmanager
def may_give_up() -> Iterator[None]:
    """While a trace runs for which `Busy` is caught."""
    before, _thread.may_give_up = _thread.may_give_up, True
    try:
        yield
    finally:
        _thread.may_give_up = before


def begin_again(busy: Busy) -> None:
    """Called where `Busy` is caught: waits, or hands it on to the trace around this one."""
    if _thread.may_give_up:
        raise busy
    _wait_until(lambda: _are_free(busy.identities))


@contextlib.contextmanager
def running(module: Node) -> Iterator[None]:
    """While a module of no trace runs, outermost on this thread."""
    me = threading.get_ident()
    _running[me] = module
    try:
        if holders:
            wait_for(module)
        yield
    finally:
        del _running[me]
        if _waiting:
            with _turn:
                _turn.notify_all()


def is_held_elsewhere(module: Node) -> bool:
    return holders.get(id(module), threading.get_ident()) != threading.get_ident()


def wait_for(module: Node) -> None:
    """Waits while another thread holds a module."""
    if is_held_elsewhere(module):
        _wait_until(lambda: not is_held_elsewhere(module))


def wait_for_all(modules: Sequence[Node]) -> None:
    """Waits while another thread holds one of some modules. The caller has the lock, and has it again afterwards."""
    identities = set(map(id, modules))
    if not _are_free(identities):
        _wait_until(lambda: _are_free(identities))


@contextlib.contextmanager
def looking(modules: Callable[[], Sequence[Node]]) -> Iterator[None]:
    """While all arrays of some modules are read or written; no other thread holds one of them meanwhile.

    `modules` gives them; it is asked only where some thread holds something.
    """
    with lock:
        if holders:
            wait_for_all(modules())
        yield


@contextlib.contextmanager
def holding(modules: Sequence[Node]) -> Iterator[None]:
    """While modules hold tracers of this thread.

    Waits while another thread holds or runs one of them, or where waiting might never end gives up by `Busy`.
    """
    me = threading.get_ident()
    with lock:
        identities = {identity for module in modules if holders.get(identity := id(module)) != me}
        if not _are_free(identities):
            _wait_or_give_up(lambda: _are_free(identities), identities)
        holders.update(dict.fromkeys(identities, me))
    try:
        if _is_run_elsewhere(identities):
            # Those that run now go on to the end; those that come wait for this thread.
            _wait_or_give_up(lambda: not _is_run_elsewhere(identities), identities)
        yield
    finally:
        with lock:
            for identity in identities:
                del holders[identity]
            if _waiting:
                _turn.notify_all()


def _are_free(identities: Collection[int]) -> bool:
    me = threading.get_ident()
    return not holders or all(holders.get(identity, me) == me for identity in identities)


def _is_run_elsewhere(identities: Collection[int]) -> bool:
    from elegy.layout import walk

    me = threading.get_ident()
    others = [root for thread, root in list(_running.items()) if thread != me] if identities else []
    return any(id(node) in identities for node in walk(others))


def _wait_or_give_up(condition: Callable[[], bool], identities: Collection[int]) -> None:
    if _thread.may_give_up:
        raise Busy(identities)
    _wait_until(condition)


def _warn_of_a_long_wait() -> None:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    others = ", ".join(sorted({names.get(thread, "a thread that ended") for thread in holders.values()} or {"another"}))
    warnings.warn(
        f"the thread {threading.current_thread().name} has waited {PATIENCE} s for modules that are being traced "
        f"(by: {others}).\n  While a function is traced, or a module runs, it must not wait for code on another thread "
        "that uses the same module, such as a callback on the host: give that code a copy, module.copy().",
        RuntimeWarning,
        stacklevel=3,
    )


def _wait_until(condition: Callable[[], bool]) -> None:
    global _waiting
    me = threading.get_ident()
    with _turn:
        mine = _running.pop(me, None)  # a thread that waits reads nothing
        _waiting += 1
        _turn.notify_all()
        try:
            if not _turn.wait_for(condition, PATIENCE):
                _warn_of_a_long_wait()
                _turn.wait_for(condition)
        finally:
            _waiting -= 1
            if mine is not None:
                _running[me] = mine
