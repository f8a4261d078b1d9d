"""`Checkpoints`: which checkpoints of a directory are kept, which is loaded, and the thread that writes them."""

from __future__ import annotations

import atexit
import functools
import importlib
import math
import operator
import os
import threading
import typing as tp
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from elegy.checkpoints import disk, file, folders, nested
from elegy.checkpoints.file import Path, Rename, Tree
from elegy.checkpoints.folders import Damaged, Folder, Manifest
from elegy.errors import CheckpointError, CheckpointWarning
from elegy.frames import warn
from elegy.selections import Selection

_EXTRA = "extra.safetensors"
_BACKENDS = {"safetensors": "elegy.checkpoints.one_file", "orbax": "elegy.checkpoints.orbax"}

Result = tp.TypeVar("Result")


def is_writer() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def _backend(name: str) -> tp.Any:
    return importlib.import_module(_BACKENDS[name])


class _Known(tp.NamedTuple):
    """What was read of a checkpoint, and still holds if its signature does."""

    signature: tuple[int, ...]
    score: float | None
    files: dict[str, tp.Any]


class Checkpoints:
    """A directory of checkpoints, each in a folder of its own, of which the newest and the best are kept.

    A folder appears under its name when everything in it is on the disk, so whatever stops the program, those that are
    there stay complete. What was damaged afterwards is noticed when it is loaded, by checksums.

    **Arguments:**

    - `directory`: where the folders are. It is made by the first `save`.
    - `keep`: how many of the newest checkpoints are kept: those with the highest steps. None keeps all.
    - `keep_best`: how many are kept besides because their scores are the best.
    - `direction`: which scores are better, those that are smaller (`"min"`) or greater (`"max"`). nan is the worst
      score, and of equal scores the earlier one is better. Checkpoints without a score are never the best.
    - `backend`: what writes the arrays. `"safetensors"`: one file, as `elegy.save` makes it. `"orbax"`: a folder, by
      [Orbax](https://orbax.readthedocs.io), which must be installed, in a single process. Either reads what the other
      wrote.

    By default `save` returns when it has copied the arrays, and a thread writes them. A program that ends waits for
    that thread. `close` raises what went wrong in it, and so does the end of a `with` block. The attribute `directory`
    is the absolute path.

    Several objects and processes may use one directory at once. Where JAX runs in several processes, the first one
    writes, and all may read; nobody waits for the others.

    **Raises:** `ValueError` if an argument is none of the above; `ImportError` if Orbax is wanted and is not there,
    `NotImplementedError` if there are several processes.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp
    import optax

    module = elegy.nn.Linear(3).init(jnp.ones([1, 2]))
    optimizer = optax.adam(1e-3)
    state = {"module": module, "optimizer": optimizer.init(module.get_parameters())}

    with elegy.Checkpoints("run", keep=2, direction="max") as checkpoints:
        for step, accuracy in [(100, 0.7), (200, 0.9), (300, 0.8), (400, 0.8)]:
            checkpoints.save(step, state, extra={"history": [accuracy]}, score=accuracy)

    assert checkpoints.steps == [200, 300, 400]
    assert checkpoints.latest() == 400 and checkpoints.best() == 200
    state, extra = checkpoints.load(like=jax.eval_shape(lambda: state))
    assert extra == {"history": [0.8]}
    ```
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int | None = 3,
        keep_best: int = 1,
        direction: tp.Literal["min", "max"] = "min",
        backend: tp.Literal["safetensors", "orbax"] = "safetensors",
    ):
        for name, number in {"keep": 1 if keep is None else keep, "keep_best": keep_best}.items():
            if not isinstance(number, (int, np.integer)):
                raise TypeError(f"{name}={number!r} is no number of checkpoints, but a {type(number).__name__}.")
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: at least the newest checkpoint is kept. Give 1, or None to keep all.")
        if keep_best < 0:
            raise ValueError(f"keep_best={keep_best} is negative.")
        if direction not in ("min", "max"):
            raise ValueError(f"direction={direction!r} is neither 'min' nor 'max'.")
        if backend not in _BACKENDS:
            raise ValueError(f"backend={backend!r} is none of {', '.join(map(repr, _BACKENDS))}.")
        _backend(backend).prepare()
        self.directory = os.path.abspath(os.fsdecode(directory))
        self._keep = keep
        self._keep_best = keep_best
        self._direction = direction
        self._backend = backend
        self._lock = threading.RLock()  # so that one thread at a time saves
        self._thread: threading.Thread | None = None  # that writes
        self._failure: tuple[int, BaseException] | None = None  # of that thread, which nobody has been told of
        self._known: dict[str, _Known] = {}

    def __repr__(self) -> str:
        return f"Checkpoints({self.directory!r})"

    # -----------------------------------------------------------------------------------------------------------------
    # Saving
    # -----------------------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        tree: tp.Any,
        extra: tp.Any = None,
        *,
        score: tp.SupportsFloat | None = None,
        wait: bool = False,
    ) -> None:
        """Writes a checkpoint. Afterwards, removes those that are neither among the newest nor among the best.

        **Arguments:**

        - `step`: the number of the checkpoint. One of the same step that is there is replaced: the new one gets a name
          of its own, `step-0000000012.1` after `step-0000000012`, and then the old one is removed.
        - `tree`: any pytree that `elegy.save` takes. It may be changed, and its arrays may be donated, as soon as
          `save` has returned.
        - `extra`: nested plain values, which are read without knowing what to expect: None, `bool`, `int`, `float`,
          `str`, lists, tuples, dicts whose keys are strings or integers, and JAX or NumPy arrays and PRNG keys.
        - `score`: how good the checkpoint is. See `direction`.
        - `wait`: whether to return only when the checkpoint is on the disk.

        If the checkpoint before is still being written, `save` waits for that. So there is never more than one copy
        of the arrays.

        **Raises:** `CheckpointError` if a leaf or a value cannot be saved, with the names of all of these. `OSError` if
        the checkpoint cannot be written and `wait` is True; else the next `save`, `wait` or `close` raises a
        `CheckpointError` with that error as its cause, and does nothing else.

        ```python
        import elegy
        import jax.numpy as jnp

        checkpoints = elegy.Checkpoints("run")
        checkpoints.save(1, {"w": jnp.ones(3)}, extra={"epoch": 0, "seen": (128, "samples")}, wait=True)
        assert checkpoints.steps == [1]
        ```
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"the step of a checkpoint is not negative, got {step}.")
        if not is_writer():
            return
        with self._lock:
            self._finish()
            content = file.collect(tree, f"the checkpoint of step {step}", copy=not wait)
            number = nested.encode(None if score is None else float(score)).structure
            write = functools.partial(self._write, step, content, nested.encode(extra), number)
            if wait:
                write()
                return
            self._thread = threading.Thread(target=self._run, args=(step, write), name=f"checkpoint of step {step}")
            self._thread.start()
            _backend(self._backend).finish_at_exit(self._thread)

    def _run(self, step: int, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self._failure = step, error
            atexit.register(self.wait)  # so that it is shown, even if nobody asks

    def _write(self, step: int, content: file.Content, extra: nested.Encoded, score: tp.Any) -> None:
        def fill(folder: str) -> tuple[Manifest, dict[str, disk.Written]]:
            files = _backend(self._backend).write(folder, content)
            if extra.content is not None:
                files[_EXTRA] = disk.write(os.path.join(folder, _EXTRA), file.serialised(extra.content))
            return {"score": score, "backend": self._backend, "extra": extra.structure}, files

        saved = folders.write(self.directory, step, fill)
        try:
            self._prune(saved)
        except OSError as error:
            error.add_note(f"{saved.path} is complete; older checkpoints could not be removed.")
            raise

    def _prune(self, saved: Folder) -> None:
        everything = folders.find(self.directory)
        current = {folder.step: folder for folder in everything if folder.is_listed}
        obsolete = [
            folder for folder in everything if folder.step in current and folder.number < current[folder.step].number
        ]
        if self._keep is not None:
            scores = dict(self._read_scores(current.values()))
            kept = {saved, *list(scores)[-self._keep :], *self._ranked(scores)[: self._keep_best]}
            obsolete += [folder for folder in scores if folder not in kept]
        for folder in obsolete:
            folders.remove(folder)
            self._known.pop(folder.path, None)

    def wait(self) -> None:
        """Returns when everything that was saved is on the disk.

        **Raises:** `CheckpointError` if that failed, with the error as its cause. It is raised once.
        """
        with self._lock:
            self._finish()

    def close(self) -> None:
        """Does what `wait` does. The object may still be used."""
        self.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: tp.Any, error: BaseException | None, traceback: tp.Any) -> None:
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(f"Besides, {failure}")

    def _join(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.join()

    def _finish(self) -> None:
        self._join()
        self._thread = None
        if self._failure is not None:
            (step, error), self._failure = self._failure, None
            atexit.unregister(self.wait)
            notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
            raise CheckpointError(
                f"saving the checkpoint of step {step} to {self.directory} failed, in the background: "
                f"{type(error).__name__}: {error}{notes}"
            ) from error

    # -----------------------------------------------------------------------------------------------------------------
    # Looking
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, in ascending order. No file is read for it."""
        self._join()
        return sorted({folder.step for folder in folders.find(self.directory) if folder.is_listed})

    def latest(self) -> int | None:
        """The step of the newest checkpoint; None if there is none.

        One of which a file is missing or has another size is left out, with a `CheckpointWarning`. Only `load` reads
        all of it.
        """
        self._join()
        for folder in reversed(folders.find(self.directory)):
            if list(self._read_scores([folder])):
                return folder.step
        return None

    def best(self) -> int | None:
        """The step of the checkpoint with the best score; None if none has a score.

        One of which a file is missing or has another size is left out, with a `CheckpointWarning`.
        """
        self._join()
        current = {folder.step: folder for folder in folders.find(self.directory)}
        ranked = self._ranked(dict(self._read_scores(current.values())))
        return ranked[0].step if ranked else None

    def score(self, step: int) -> float | None:
        """The score of a checkpoint; None if it has none, or is not there.

        ```python
        import elegy

        checkpoints = elegy.Checkpoints("run")
        checkpoints.save(1, {}, score=0.5)
        assert checkpoints.score(1) == 0.5 and checkpoints.score(2) is None
        ```
        """
        self._join()
        current = {folder.step: folder for folder in folders.find(self.directory)}
        return next((score for _, score in self._read_scores([current[step]])), None) if step in current else None

    def _read_scores(self, found: Iterable[Folder]) -> Iterator[tuple[Folder, float | None]]:
        """The folders that seem complete, with their scores."""
        for folder in found:
            try:
                signature = folders.signature(folder)
                known = self._known.get(folder.path)
                if known is None or known.signature != signature:
                    manifest = folders.read_manifest(folder)
                    score = nested.decode(manifest["score"], None, folder.path)
                    known = self._known[folder.path] = _Known(signature, score, manifest["files"])
                folders.check(folder, known.files, thoroughly=False)
                yield folder, known.score
            except (Damaged, OSError) as error:
                if os.path.isdir(folder.path):  # else another process has removed it
                    _warn_of(folder, error)
            except CheckpointError:  # of a later version of the format
                yield folder, None

    def _ranked(self, scores: dict[Folder, float | None]) -> list[Folder]:
        """The folders that have a score, the best one first."""

        def rank(folder: Folder) -> tuple[bool, float, int]:
            score = scores[folder]
            if score is None or math.isnan(score):
                return True, 0.0, folder.step
            return False, score if self._direction == "min" else -score, folder.step

        return sorted((folder for folder, score in scores.items() if score is not None), key=rank)

    # -----------------------------------------------------------------------------------------------------------------
    # Loading
    # -----------------------------------------------------------------------------------------------------------------

    @tp.overload
    def load(
        self, step: int | None = None, *, like: Selection[Tree], strict: bool = True, rename: Rename | None = None
    ) -> tuple[Tree, tp.Any]: ...
    @tp.overload
    def load(
        self, step: int | None = None, *, like: Tree, strict: bool = True, rename: Rename | None = None
    ) -> tuple[Tree, tp.Any]: ...
    def load(
        self, step: int | None = None, *, like: tp.Any, strict: bool = True, rename: Rename | None = None
    ) -> tuple[tp.Any, tp.Any]:
        """Reads a checkpoint, after its checksums were compared.

        **Arguments:**

        - `step`: which one. None is the newest one that is complete: those that are damaged are passed over, with a
          `CheckpointWarning` for each.
        - `like`, `strict`, `rename`: those of `elegy.load`.

        **Returns:** the tree, and the extra values.

        **Raises:** `FileNotFoundError` if there is no such checkpoint. `CheckpointError` if it is damaged, was written
        in a later version of the format, or does not fit `like`.

        ```python
        import elegy
        import jax.numpy as jnp

        checkpoints = elegy.Checkpoints("run")
        checkpoints.save(1, {"w": jnp.ones(3)}, extra="of the first step")
        checkpoints.save(2, {"w": jnp.zeros(3)}, extra="of the second step")

        tree, extra = checkpoints.load(1, like={"w": jnp.empty(3)})
        assert extra == "of the first step" and (tree["w"] == 1).all()
        ```
        """
        return self.load_part(step, like, strict, rename, part=False)

    def load_part(
        self, step: int | None, like: tp.Any, strict: bool, rename: Rename | None, part: bool = True
    ) -> tuple[tp.Any, tp.Any]:
        """As `load`, where `like` is a part of what the checkpoint holds, and the rest is left alone."""

        def read(folder: Folder, manifest: Manifest) -> tuple[tp.Any, tp.Any]:
            with _backend(manifest["backend"]).opened(folder.path) as opened:
                tree = file.restore(opened, folder.path, like, strict, rename, part)
            return tree, _read_extra(folder, manifest)

        return self._first(step, read)

    def extra(self, step: int | None = None) -> tp.Any:
        """Reads the extra values of a checkpoint alone.

        **Arguments:**

        - `step`: which one. None is the one that `load` would read.

        **Returns:** what was given to `save`: the same types, and the same bits.

        **Raises:** as `load`.

        ```python
        import elegy
        import numpy as np

        checkpoints = elegy.Checkpoints("run")
        checkpoints.save(1, {}, extra={"epoch": 3, "losses": [0.5, float("inf")], "order": np.arange(4)})

        extra = checkpoints.extra()
        assert extra["epoch"] == 3 and extra["losses"] == [0.5, float("inf")]
        assert isinstance(extra["order"], np.ndarray)
        ```
        """
        return self._first(step, _read_extra)

    def _first(self, step: int | None, read: Callable[[Folder, Manifest], Result]) -> Result:
        """What is read from a checkpoint of this step, or from the newest one that is complete."""
        self._join()
        damaged: list[Folder] = []
        while True:
            found = folders.find(self.directory)
            fitting = [folder for folder in found if step in (None, folder.step) and folder not in damaged]
            if not fitting:
                raise self._nothing(step, found)
            folder = fitting[-1]
            try:
                manifest = folders.read_manifest(folder)
                folders.check(folder, manifest["files"], thoroughly=True)
                return read(folder, manifest)
            except (Damaged, OSError) as error:
                if not os.path.isdir(folder.path):
                    continue  # another process has removed it
                if step is not None:
                    raise CheckpointError(f"{folder.path} is damaged: {error}.") from error
                _warn_of(folder, error)
                damaged.append(folder)

    def _nothing(self, step: int | None, found: list[Folder]) -> Exception:
        if step is None and found:
            return CheckpointError(f"all checkpoints in {self.directory} are damaged.")
        there = ", ".join(map(str, self.steps)) or "none"
        which = "" if step is None else f" of step {step}"
        return FileNotFoundError(f"there is no checkpoint{which} in {self.directory}. There are: {there}.")


def _warn_of(folder: Folder, error: Exception) -> None:
    warn(CheckpointWarning(f"{folder.path} is damaged, and is passed over: {error}."))


def _read_extra(folder: Folder, manifest: Manifest) -> tp.Any:
    if _EXTRA not in manifest["files"]:
        return nested.decode(manifest["extra"], None, folder.path)
    with file.opened(os.path.join(folder.path, _EXTRA)) as opened:
        return nested.decode(manifest["extra"], opened, folder.path)
