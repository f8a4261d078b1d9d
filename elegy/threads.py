"""Several threads and one module: who may look while whose trace has put tracers in.

A transform that threads modules makes them hold tracers while it traces. No other thread may run such a module
meanwhile, and the transform may not begin while another thread runs it. Threads that wait count as absent, so no two
wait for each other.
"""

from __future__ import annotations

import contextlib
import threading
import typing as tp
from collections.abc import Callable, Collection, Iterator, Sequence

if tp.TYPE_CHECKING:
    from elegy.leaves import Node

# Held by whoever traces or initialises. Taken before JAX's own caches are entered, never while inside them.
lock = threading.RLock()
_turn = threading.Condition(lock)

# Which thread makes a module, by id, hold tracers right now.
holders: dict[int, int] = {}
# The outermost module that each thread runs right now, unless the thread waits.
_running: dict[int, Node] = {}
_waiting = 0


class Busy(BaseException):
    """Raised inside a trace that would have to wait for another thread: the trace is given up and begun again later."""


@contextlib.contextmanager
def running(module: Node) -> Iterator[None]:
    """While a module of no trace runs, outermost on this thread."""
    me = threading.get_ident()
    _running[me] = module
    try:
        yield
    finally:
        del _running[me]
        if _waiting:
            with _turn:
                _turn.notify_all()


def wait_for(module: Node) -> None:
    """Waits while another thread makes a module hold tracers."""
    if holders.get(id(module), threading.get_ident()) != threading.get_ident():
        me = threading.get_ident()
        _wait_until(lambda: holders.get(id(module), me) == me)


def wait_until_idle(modules: Sequence[Node]) -> None:
    """Waits while another thread runs one of the modules."""
    if len(_running) > (threading.get_ident() in _running):
        ids = {id(module) for module in modules}
        _wait_until(lambda: not _is_run_elsewhere(ids))


def is_run_elsewhere(modules: Sequence[Node]) -> bool:
    """Whether another thread runs one of the modules right now."""
    return len(_running) > (threading.get_ident() in _running) and _is_run_elsewhere({id(module) for module in modules})


def _is_run_elsewhere(ids: Collection[int]) -> bool:
    from elegy.pytree import walk

    me = threading.get_ident()
    others = [root for thread, root in list(_running.items()) if thread != me]
    return any(id(node) in ids for node in walk(others))


def _wait_until(condition: Callable[[], bool]) -> None:
    global _waiting
    me = threading.get_ident()
    with _turn:
        mine = _running.pop(me, None)  # a thread that waits reads nothing
        _waiting += 1
        _turn.notify_all()
        try:
            while not condition():
                _turn.wait()
        finally:
            _waiting -= 1
            if mine is not None:
                _running[me] = mine


@contextlib.contextmanager
def holding(modules: Sequence[Node]) -> Iterator[None]:
    """While modules hold tracers of this thread. The caller has the lock."""
    me = threading.get_ident()
    marked = [id(module) for module in modules if id(module) not in holders]
    holders.update((identity, me) for identity in marked)
    try:
        yield
    finally:
        for identity in marked:
            del holders[identity]
        if _waiting:
            with _turn:
                _turn.notify_all()
