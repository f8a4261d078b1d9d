"""What is done to a disk: each operation waits until it is there, and goes through `do`, where tests make it fail."""

from __future__ import annotations

import contextlib
import os
import typing as tp
import zlib
from collections.abc import Callable, Iterable

_BLOCK = 2**22  # bytes that are written at once: what is small enough for the caches of a processor is read once


class Written(tp.NamedTuple):
    """What is known of a file: the number of its bytes, and their CRC-32."""

    size: int
    checksum: str


def do(operation: Callable[..., tp.Any], *arguments: tp.Any) -> tp.Any:
    """Every operation that changes something on a disk."""
    return operation(*arguments)


def write(path: str, parts: Iterable[tp.Any]) -> Written:
    """Writes a file, of parts that are bytes or have a buffer of them. What was in it is replaced."""
    size = checksum = 0
    with do(open, path, "wb") as file:
        for part in parts:
            for start in range(0, len(part), _BLOCK):
                block = part[start : start + _BLOCK]
                do(file.write, block)
                checksum = zlib.crc32(block, checksum)
            size += len(part)
        file.flush()
        do(os.fsync, file.fileno())
    return Written(size, _shown(checksum))


def read(path: str) -> Written:
    """What is in a file."""
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
    return Written(size, _shown(checksum))


def checksum_of(text: str) -> str:
    return _shown(zlib.crc32(text.encode()))


def _shown(checksum: int) -> str:
    return f"crc32:{checksum:08x}"


def synchronise_file(path: str) -> None:
    """Waits until a file that was written by somebody else is on the disk."""
    _synchronise(path, os.O_RDWR)


def synchronise_folder(path: str) -> None:
    """Waits until the entries of a folder are on the disk."""
    if os.name != "nt":  # there, a folder cannot be opened
        _synchronise(path, os.O_RDONLY)


def _synchronise(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        do(os.fsync, descriptor)
    finally:
        os.close(descriptor)


def make_folders(path: str) -> None:
    """Makes a folder, and those that it is in."""
    if os.path.isdir(path):
        return
    make_folders(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):  # another process was faster
        do(os.mkdir, path)
    synchronise_folder(os.path.dirname(path))


def remove(path: str) -> None:
    """Removes a folder with all that is in it, as far as nobody else does so at the same time."""
    for folder, folders, files in os.walk(path, topdown=False):
        for operation, names in ((os.unlink, files), (os.rmdir, folders)):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    do(operation, os.path.join(folder, name))
    with contextlib.suppress(FileNotFoundError):
        do(os.rmdir, path)
