"""The arrays of a checkpoint in one safetensors file, as `elegy.save` writes it."""

from __future__ import annotations

import contextlib
import os
import threading

from elegy.checkpoints import disk, file

ARRAYS = "arrays.safetensors"


def prepare() -> None:
    """Raises what is missing."""


def write(folder: str, content: file.Content) -> dict[str, disk.Written]:
    """Writes into a folder; returns the files that are there now."""
    return {ARRAYS: disk.write(os.path.join(folder, ARRAYS), file.serialised(content))}


def opened(folder: str) -> contextlib.AbstractContextManager[file.File]:
    return file.opened(os.path.join(folder, ARRAYS))


def finish_at_exit(thread: threading.Thread) -> None:
    """Sees to it that a thread which writes ends before the interpreter does: it waits for such threads anyway."""
