"""Folders of checkpoints on the disk: each is made as a whole, checked before it is read, and removed as a whole.

The folder of step 12 is `step-0000000012`. If the step is saved again, the new folder is `step-0000000012.1`, and so
on: of several the one with the highest number counts, and the others are removed when it is complete. So nothing is
ever replaced.

A folder is filled under another name, which begins with a dot, and renamed when it is complete and on the disk. To
remove one, it is first renamed so. While a process fills a folder it holds a lock on it, which the system releases when
the process ends, however it does; a folder with such a name and without a lock is of no use to anyone.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import typing as tp
from collections.abc import Callable, Iterator

import jax

from elegy.checkpoints import disk, file
from elegy.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows, where what a killed process leaves behind stays
    fcntl = None

_FORMAT = 1
_MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step-(\d{10,})(?:\.(\d+))?")
_TEMPORARY = re.compile(r"\.step-\d{10,}(?:\.\d+)?\.[0-9a-f]{8}\.tmp")

Manifest = dict[str, tp.Any]


class Damaged(CheckpointError):
    """A folder is not what was written; the message says which file, and why."""


class Folder(tp.NamedTuple):
    """A folder with the name of a checkpoint. They are ordered: the last of several is the newest."""

    step: int
    number: int  # how many folders of this step there were before it
    path: str

    @property
    def is_listed(self) -> bool:
        return os.path.isfile(os.path.join(self.path, _MANIFEST))


def find(directory: str) -> list[Folder]:
    """The folders of a directory, complete or not, in order. Reads their names only."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise NotADirectoryError(
            f"{directory} is no directory of checkpoints: it, or what it is said to be in, is a file."
        ) from None
    if _MANIFEST in names:
        parent, name = os.path.split(directory)
        raise CheckpointError(
            f"{directory} is a checkpoint itself, not a directory of them.\n  Give {parent}, in which {name} is."
        )
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    return sorted(Folder(int(match[1]), int(match[2] or 0), os.path.join(directory, match.string)) for match in matches)


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write(directory: str, step: int, fill: Callable[[str], tuple[Manifest, dict[str, disk.Written]]]) -> Folder:
    """Makes a folder. `fill` writes into the path that it is given, and returns what is to be known of the checkpoint,
    and the files that it wrote."""
    disk.make_folders(directory)
    _remove_leftovers(directory)
    with _temporary(directory, step) as temporary:
        known, files = fill(temporary)
        manifest = {
            "format": _FORMAT,
            "elegy": file.version(),
            "jax": jax.__version__,
            "step": step,
            "time": datetime.datetime.now(datetime.UTC).isoformat(),
            **known,
            "files": {name: written._asdict() for name, written in files.items()},
        }
        manifest["checksum"] = disk.checksum_of(_text(manifest))
        disk.write(os.path.join(temporary, _MANIFEST), [_text(manifest).encode()])
        disk.synchronise_folder(temporary)
        folder = _named(temporary, directory, step)
    disk.synchronise_folder(directory)
    return folder


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest, allow_nan=False)


@contextlib.contextmanager
def _temporary(directory: str, step: int) -> Iterator[str]:
    """A new folder with a lock on it. If the block fails, it is removed."""
    with contextlib.ExitStack() as stack:
        while True:
            path = _temporary_path(directory, f"step-{step:010d}")
            disk.do(os.mkdir, path)
            if stack.enter_context(_locked(path)) is not False and os.path.isdir(path):
                break  # else somebody took it for a leftover, before it had its lock
        try:
            yield path
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(path)
            raise


def _temporary_path(directory: str, name: str) -> str:
    return os.path.join(directory, f".{name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool | None]:
    """Whether the block has a lock on a folder; None if there are no locks here."""
    if fcntl is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            locked = False
        except OSError:  # this file system has none
            locked = None
        yield locked
    finally:
        os.close(descriptor)


def _named(temporary: str, directory: str, step: int) -> Folder:
    """Gives a folder the name of a checkpoint that is newer than all others of the step."""
    number = max((folder.number + 1 for folder in find(directory) if folder.step == step), default=0)
    while True:
        path = os.path.join(directory, f"step-{step:010d}" + (f".{number}" if number else ""))
        try:
            disk.do(os.rename, temporary, path)
        except OSError:
            if not os.path.lexists(path):
                raise
            number += 1  # another process was faster
        else:
            return Folder(step, number, path)


# ---------------------------------------------------------------------------------------------------------------------
# Removing
# ---------------------------------------------------------------------------------------------------------------------


def remove(folder: Folder) -> None:
    temporary = _temporary_path(os.path.dirname(folder.path), os.path.basename(folder.path))
    try:
        disk.do(os.rename, folder.path, temporary)
    except FileNotFoundError:  # another process was faster
        return
    disk.remove(temporary)


def _remove_leftovers(directory: str) -> None:
    """Removes what processes that have died left behind."""
    for name in os.listdir(directory):
        if _TEMPORARY.fullmatch(name):
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError), _locked(path) as locked:
                if locked:
                    disk.remove(path)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_manifest(folder: Folder) -> Manifest:
    """What is known of a checkpoint. Raises `Damaged` if it is not what was written."""
    path = os.path.join(folder.path, _MANIFEST)
    try:
        with open(path, encoding="utf-8") as opened:
            manifest = json.load(opened)
        version, writer = int(manifest["format"]), manifest["elegy"]
        checksum = manifest.pop("checksum", None)
        is_whole = disk.checksum_of(_text(manifest)) == checksum
        was_known = disk.checksum_of(_text({**manifest, "format": _FORMAT})) == checksum
    except FileNotFoundError:
        raise Damaged(f"{_MANIFEST} is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{_MANIFEST} cannot be read: {type(error).__name__}: {error}") from error
    if version > _FORMAT and not was_known:  # else it is the number of the format that has changed
        raise CheckpointError(
            f"{folder.path} has format {version}, and this version of Elegy reads formats up to {_FORMAT}.\n"
            f"  Upgrade to Elegy {writer}, which wrote it."
        )
    if not is_whole:
        raise Damaged(f"{_MANIFEST} has changed since it was written: its checksum is another one")
    return manifest


def signature(folder: Folder) -> tuple[int, ...]:
    """Something that is another one if what is known of a checkpoint was written anew."""
    try:
        status = os.stat(os.path.join(folder.path, _MANIFEST))
    except FileNotFoundError:
        raise Damaged(f"{_MANIFEST} is missing") from None
    return status.st_ino, status.st_mtime_ns, status.st_size


def check(folder: Folder, files: dict[str, tp.Any], thoroughly: bool) -> None:
    """Raises `Damaged` if a file is missing or has another size; thoroughly, if it has another checksum."""
    for name, expected in files.items():
        path = os.path.join(folder.path, *name.split("/"))
        try:
            size = os.path.getsize(path)
            if size != expected["size"]:
                raise Damaged(f"{name} has {size} bytes, and had {expected['size']} when it was written")
            if thoroughly and disk.read(path).checksum != expected["checksum"]:
                raise Damaged(f"{name} has changed since it was written: its checksum is another one")
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
