"""The arrays of a checkpoint as Orbax writes them. All that is known of that library is in this file."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import threading
import typing as tp
import weakref
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from elegy.checkpoints import disk, file

_ARRAYS = "arrays"
_HEADER = "arrays.json"  # what Orbax has no place for: the header of the file, and arrays without elements

# The second version of its interface moves from one of these to the next.
_PATHS = ("orbax.checkpoint.v1", "orbax.checkpoint.experimental.v1", "orbax.checkpoint")


def prepare() -> None:
    _library()


def _library() -> tp.Any:
    if jax.process_count() > 1:
        raise NotImplementedError(
            "in several processes Orbax waits for all of them, and of elegy.Checkpoints only the first one writes.\n"
            "  Write backend='safetensors', or use Orbax itself."
        )
    for path in _PATHS:
        try:
            library = importlib.import_module(path)
        except ImportError:
            continue
        if hasattr(library, "Context"):
            return library
    raise ImportError(
        "checkpoints with backend='orbax' need a version of orbax-checkpoint that has its second interface.\n"
        "  Install it: pip install 'orbax-checkpoint>=0.11.20'. Or write backend='safetensors', which needs nothing."
    )


def _function(library: tp.Any, name: str) -> tp.Any:
    """A function on pytrees, which older versions have under a longer name."""
    return getattr(library, name, None) or getattr(library, f"{name}_pytree")


def write(folder: str, content: file.Content) -> dict[str, disk.Written]:
    """Writes into a folder; returns the files that are there now."""
    library = _library()
    filled = {name: array for name, array in content.arrays.items() if array.size}
    empty = {name: [array.dtype.name, array.shape] for name, array in content.arrays.items() if not array.size}
    files = {}
    if filled:
        path = os.path.join(folder, _ARRAYS)
        disk.do(_function(library, "save"), path, filled)
        for inner, _, names in os.walk(path, topdown=False):
            for name in names:
                written = os.path.join(inner, name)
                disk.synchronise_file(written)
                files[os.path.relpath(written, folder).replace(os.sep, "/")] = disk.read(written)
            disk.synchronise_folder(inner)
    text = json.dumps({"header": content.header, "empty": empty})
    return {**files, _HEADER: disk.write(os.path.join(folder, _HEADER), [text.encode()])}


@contextlib.contextmanager
def opened(folder: str) -> Iterator[file.File]:
    path = os.path.join(folder, _ARRAYS)
    with open(os.path.join(folder, _HEADER), encoding="utf-8") as header:
        known = json.load(header)
    arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in known["empty"].items()}
    if os.path.isdir(path):
        library = _library()
        arrays.update(_function(library, "load")(path))
    yield _Arrays(known["header"], arrays)


class _Arrays:
    """Arrays by name, with the interface of a file."""

    def __init__(self, header: str, arrays: dict[str, np.ndarray]):
        self._header = header
        self._arrays = arrays

    def metadata(self) -> dict[str, str]:
        return file.metadata(self._header)

    def keys(self) -> Iterable[str]:
        return self._arrays.keys()

    def get_slice(self, name: str, /) -> _Part:
        return _Part(self._arrays[name])

    def get_tensor(self, name: str, /) -> np.ndarray:
        return np.array(self._arrays[name])


class _Part(tp.NamedTuple):
    array: np.ndarray

    def get_shape(self) -> list[int]:
        return list(self.array.shape)

    def get_dtype(self) -> str:
        return file.CODES[self.array.dtype.name]


_writing: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def finish_at_exit(thread: threading.Thread) -> None:
    """Sees to it that a thread which writes ends before the interpreter does.

    Orbax has work done by executors, and these take no more of it when the main thread has ended. What is registered
    here runs before they stop. Where Python no longer has such a register, the write fails with a message.
    """
    _writing.add(thread)
    _register()


@functools.cache
def _register() -> None:
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        with contextlib.suppress(RuntimeError):  # the interpreter is about to end
            register(_finish)


def _finish() -> None:
    for thread in list(_writing):
        thread.join()
