"""What stops a save at any operation on the disk leaves the checkpoints of before, and the next save works."""

import errno
import os
import shutil
import threading

import numpy as np
import pytest

import elegy
from elegy.checkpoints import disk
from elegy.errors import CheckpointError
from tests.checkpoints.test_file import assert_same

LIKE = {"w": np.zeros(3), "n": np.zeros([2, 0])}


def tree(value):
    return {"w": np.full(3, float(value)), "n": np.zeros([2, 0])}


class Death(BaseException):
    """The end of the process: whatever it would do to the disk afterwards does not happen."""


class Fault:
    """Stands in the place of `disk.do` and fails at one operation, of which only the half is done."""

    def __init__(self, number, kind):
        self.number, self.kind, self.count, self.failed = number, kind, 0, False

    def __call__(self, operation, *arguments):
        self.count += 1
        name = operation.__name__
        if self.kind == "full disk":
            fails = self.count >= self.number and name in ("open", "write", "mkdir")
        elif self.kind == "death":
            fails = self.count >= self.number
        else:
            fails = self.count == self.number
        if not fails:
            return operation(*arguments)
        if name == "write" and not self.failed:
            operation(arguments[0][: len(arguments[0]) // 2])
        self.failed = True
        raise {
            "full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "error": OSError(errno.EIO, os.strerror(errno.EIO)),
            "death": Death(),
        }[self.kind]


def nothing(directory):
    """No directory yet."""


def two(directory):
    """Two checkpoints, of which one is to be removed."""
    checkpoints = elegy.Checkpoints(directory, keep=2, keep_best=0)
    for step in (1, 2):
        checkpoints.save(step, tree(step), [step, np.ones(1)], wait=True)


def the_same(directory):
    """Two, of which one is to be replaced."""
    checkpoints = elegy.Checkpoints(directory)
    for step in (2, 3):
        checkpoints.save(step, tree(step), [step, np.ones(1)], wait=True)


def leftovers(directory):
    """Two, and what other processes left behind."""
    two(directory)
    for name in (".step-0000000002.0123abcd.tmp", ".step-0000000009.3.4567cdef.tmp"):
        (directory / name / "inner").mkdir(parents=True)
        (directory / name / "inner" / "file").touch()
        (directory / name / "file").touch()


@pytest.mark.parametrize("kind", ["error", "full disk", "death"])
@pytest.mark.parametrize(
    ("before", "wait"), [(nothing, True), (two, True), (two, False), (the_same, True), (leftovers, True)]
)
@pytest.mark.usefixtures("unchecked")
def test_a_save_that_stops_anywhere(before, kind, wait, tmp_path, monkeypatch):
    template = tmp_path / "template"
    before(template)
    number, new = 0, 0
    while True:
        number += 1
        directory = tmp_path / str(number)
        if template.exists():
            shutil.copytree(template, directory)
        there = elegy.Checkpoints(directory).steps
        checkpoints = elegy.Checkpoints(directory, keep=2, keep_best=0)
        with monkeypatch.context() as patch:
            fault = Fault(number, kind)
            patch.setattr(disk, "do", fault)
            try:
                checkpoints.save(3, tree(30), [30, np.ones(1)], wait=wait)
                checkpoints.wait()
            except (OSError, Death) as error:
                assert wait and error is not None
            except CheckpointError as error:
                assert not wait and isinstance(error.__cause__, (OSError, Death))

        # Either the newest of before is there, or the new one; which is decided by a single operation.
        value = elegy.Checkpoints(directory).extra()[0] if elegy.Checkpoints(directory).steps else None
        assert value in (30, max(there, default=None))
        if before is not leftovers:  # to fail to remove these stops nothing
            assert value == 30 or not new  # once it is there, later failures do not take it away
        new = new or value == 30
        if value is not None:
            assert_same(elegy.Checkpoints(directory).load(like=LIKE)[0], tree(value))
        if there and value != 30:
            assert elegy.Checkpoints(directory).steps == there
        if not fault.failed:
            assert value == 30 and elegy.Checkpoints(directory).steps == ([2, 3] if there else [3])
            break

        for step in (4, 5):  # with the object that failed, and with a new one
            checkpoints.save(step, tree(step), wait=True)
            assert checkpoints.steps[-1] == step
            assert_same(checkpoints.load(like=LIKE)[0], tree(step))
            checkpoints = elegy.Checkpoints(directory, keep=2, keep_best=0)
        assert sorted(os.listdir(directory)) == ["step-0000000004", "step-0000000005"]
        shutil.rmtree(directory)
    assert number > (6 if kind == "full disk" else 15)


def test_the_thread_that_writes_dies_with_the_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "do", Fault(3, "death"))
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, tree(1))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.close()
    assert isinstance(caught.value.__cause__, Death)
    assert not [thread for thread in threading.enumerate() if "checkpoint of step" in thread.name]


def test_a_failure_to_remove_says_that_the_new_one_is_complete(tmp_path, monkeypatch):
    checkpoints = elegy.Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, tree(1), wait=True)
    do = disk.do

    def fail(operation, *arguments):
        if operation is os.unlink:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return do(operation, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "do", fail)
        checkpoints.save(2, tree(2))
        with pytest.raises(CheckpointError, match="(?s)Operation not permitted.*step-0000000002 is complete; older"):
            checkpoints.wait()
    assert checkpoints.steps == [2]
    checkpoints.save(3, tree(3), wait=True)
    assert os.listdir(tmp_path) == ["step-0000000003"]


def test_everything_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    do, events = disk.do, []

    def record(operation, *arguments):
        result = do(operation, *arguments)
        if operation is os.fsync:
            events.append(os.fstat(arguments[0]).st_ino)
        elif operation is os.rename:
            events.append("rename")
        return result

    monkeypatch.setattr(disk, "do", record)
    directory = tmp_path / "run"
    elegy.Checkpoints(directory).save(1, tree(1), np.ones(3), wait=True)
    folder = directory / "step-0000000001"
    files = ["arrays.safetensors", "extra.safetensors", "checkpoint.json"]
    assert events == [
        tmp_path.stat().st_ino,
        *((folder / name).stat().st_ino for name in files),
        folder.stat().st_ino,
        "rename",
        directory.stat().st_ino,
    ]


def test_a_disk_that_is_really_full(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), wait=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(2, {"w": np.ones(100_000)}, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["step-0000000001"]
    assert_same(checkpoints.load(like=LIKE)[0], tree(1))
