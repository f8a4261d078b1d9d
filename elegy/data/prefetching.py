"""Batches that are ready, on the device, when they are asked for."""

from __future__ import annotations

import contextlib
import threading
import typing as tp
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

# Where putting an array on the device always makes a copy, which is there when JAX says so.
COPYING_PLATFORMS = ("gpu", "cuda", "rocm", "tpu")
_T = tp.TypeVar("_T")


def place(batch: _T, device: tp.Any = None) -> _T:
    """Puts the arrays of a batch on a device, or where a sharding says, in memory of their own: whatever happens to the
    NumPy arrays later, the result keeps its values.

    On a GPU or TPU this waits until the arrays are there. Elsewhere they are copied first, since JAX may take the
    memory of a NumPy array as that of its own. An array of JAX that is there already stays what it is.
    """
    places = jax.tree.leaves(device, is_leaf=lambda leaf: leaf is None)
    devices = [found for place in places for found in _devices(place)]
    if not all(found.platform in COPYING_PLATFORMS for found in devices):
        batch = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.array(leaf), batch)
        return jax.device_put(batch, device)
    return jax.block_until_ready(jax.device_put(batch, device))


def _devices(place: tp.Any) -> Iterable[tp.Any]:
    if place is None:
        place = jax.config.jax_default_device or jax.local_devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(place, str):  # a platform, which `jax_default_device` may be
        return jax.devices(place)
    return [place] if isinstance(place, jax.Device) else place.device_set


class _Shared:
    """What the thread and the iterator have in common. The thread knows nothing else, so that the iterator can die."""

    def __init__(self, size: int):
        self.changed = threading.Condition()
        self.ready: deque[tuple[str, tp.Any, tp.Any]] = deque()
        self.size = size
        self.stopped = False

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.ready.clear()
            self.changed.notify_all()

    def wait_for_room(self) -> bool:
        """Whether one more is wanted."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or len(self.ready) < self.size)
            return not self.stopped

    def put(self, kind: str, value: tp.Any, state: tp.Any = None) -> None:
        with self.changed:
            if not self.stopped:
                self.ready.append((kind, value, state))
                self.changed.notify_all()

    def take(self) -> tuple[str, tp.Any, tp.Any]:
        with self.changed:
            self.changed.wait_for(lambda: bool(self.ready) or self.stopped)
            found = self.ready.popleft() if self.ready else ("closed", None, None)
            self.changed.notify_all()
            return found


def _run(
    shared: _Shared,
    iterator: Iterator[tp.Any],
    put: Callable[[tp.Any], tp.Any],
    state: Callable[[], tp.Any] | None,
    x64: bool,
    default_device: tp.Any,
) -> None:
    try:
        with jax.enable_x64(x64), jax.default_device(default_device):  # contexts of the thread that asked
            while shared.wait_for_room():
                value = next(iterator, shared)
                if value is shared:
                    shared.put("end", None)
                    return
                shared.put("batch", put(value), None if state is None else state())
    except BaseException as error:
        shared.put("error", error)
    finally:
        if callable(close := getattr(iterator, "close", None)):
            with contextlib.suppress(Exception):
                close()


class Prefetched(tp.Generic[_T]):
    """An iterator whose next batches are made by a thread: what `elegy.data.prefetch` gives."""

    def __init__(
        self,
        iterable: Iterable[_T],
        size: int,
        put: Callable[[_T], _T],
        state: Callable[[], tp.Any] | None,
    ):
        self._shared = _Shared(size)
        self._state: tp.Any = None
        self._done = False
        x64, default_device = jax.config.jax_enable_x64, jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        self._thread = threading.Thread(
            target=_run,
            args=(self._shared, iter(iterable), put, state, bool(x64), default_device),
            daemon=True,
            name="elegy-prefetch",
        )
        self._finalize = weakref.finalize(self, _stop, self._shared, self._thread)
        self._thread.start()

    def __iter__(self) -> Prefetched[_T]:
        return self

    def __next__(self) -> _T:
        if self._done:
            raise StopIteration
        kind, value, state = self._shared.take()
        if kind == "batch":
            self._state = state
            return value
        self._done = True
        if kind != "closed":
            self._finalize()
        if kind == "error":
            raise value
        raise StopIteration

    def get_state(self) -> tp.Any:
        """The state of the source right after it made the batch that was given last; None before the first."""
        return self._state

    def close(self) -> None:
        """Ends the thread, and waits until it has let go of the source."""
        self._done = True
        self._shared.stop()
        self._thread.join()

    def __enter__(self) -> Prefetched[_T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stop(shared: _Shared, thread: threading.Thread) -> None:
    shared.stop()
    if thread is not threading.current_thread():
        thread.join(5)  # not longer, since this may run wherever garbage is collected


def prefetch(
    iterable: Iterable[_T], size: int = 2, device: tp.Any = None, *, state: Callable[[], tp.Any] | None = None
) -> Prefetched[_T]:
    """Goes through batches ahead, in a thread, and puts their arrays on a device.

    Each batch has memory of its own, also if the source writes all its batches to the same NumPy array: on a GPU or
    TPU the thread waits until a batch is there before it asks for the next, and elsewhere, where JAX would use the
    memory of NumPy arrays as it is, it copies them first. Arrays of JAX are copied to where they are not yet, and
    else stay the same.

    **Arguments:**

    - `iterable`: what gives the batches: arrays, or pytrees of arrays. It is gone through once, in another thread.
    - `size`: how many batches may be ready. One more may be under way.
    - `device`: a device, a sharding, or a pytree of them for the parts of a batch. None is JAX's default device.
    - `state`: a function that gives the state of the source, called after each batch.

    **Returns:** an iterator. It has `get_state()`, the state after the batch that it gave last, whatever the thread
    has made since; and `close()`, which ends the thread, as the end of a `with` block does, the end of the batches,
    or the end of the iterator itself.

    **Raises:** `ValueError` for a size below 1. An error of the source is raised in its place, after the batches
    before it.

    ```python
    batches = [np.full([2, 3], number, np.float32) for number in range(5)]
    with elegy.data.prefetch(batches) as ahead:
        assert [float(batch[0, 0]) for batch in ahead] == [0, 1, 2, 3, 4]
    ```
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    return Prefetched(iterable, size, lambda batch: place(batch, device), state)
