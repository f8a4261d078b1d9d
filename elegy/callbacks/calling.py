"""How `fit` and `evaluate` call their callbacks: all in turn, with logs that are read when someone looks into them."""

from __future__ import annotations

import collections
import dataclasses
import os
import typing as tp
from collections.abc import Callable, Iterable, Iterator, Mapping

from elegy.callbacks.callback import Callback, Logs, require_hook
from elegy.callbacks.history import History
from elegy.callbacks.model_checkpoint import ModelCheckpoint
from elegy.callbacks.progress import EpochLines, ProgressBar
from elegy.checkpoints.store import is_writer

States = dict[str, dict[str, tp.Any]]


class LazyLogs(Mapping[str, float]):
    """Logs that are read from the device when someone looks into them."""

    def __init__(self, read: Callable[[], dict[str, float]]):
        self._read = read
        self._values: dict[str, float] | None = None

    @property
    def _now(self) -> dict[str, float]:
        if self._values is None:
            self._values = self._read()
        return self._values

    def __getitem__(self, name: str) -> float:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def __repr__(self) -> str:
        return repr(self._now)


class EpochLogs(dict[str, float]):
    """The logs of an epoch. `lacks_validation`: whether there are validation data, and this epoch leaves them out."""

    def __init__(self, logs: Mapping[str, float], lacks_validation: bool):
        super().__init__(logs)
        self.lacks_validation = lacks_validation


@dataclasses.dataclass
class Ending:
    """The end of an epoch, of which callbacks are told in turn: one of them may save the model.

    - `logs`: what they are told.
    - `left`: the names of those that are not told yet; None: of all.
    """

    logs: EpochLogs
    left: list[str] | None = None


class Callbacks:
    """All callbacks of one call of `fit` or `evaluate`, called in turn."""

    def __init__(self, callbacks: Iterable[tp.Any], model: tp.Any, params: Mapping[str, tp.Any]):
        self._all = list(callbacks)
        # One that the user gives shows the progress, in the place of that of `verbose=`, which is the last.
        *others, last = self._all or [None]
        if type(last) in (EpochLines, ProgressBar) and any(isinstance(other, EpochLines) for other in others):
            self._all.pop()
        self._model = model
        _require_once(self._all)
        for callback in self._all:
            if not isinstance(callback, Callback):
                hint = " Construct it." if isinstance(callback, type) else ""
                raise TypeError(f"callbacks must be instances of elegy.callbacks.Callback, got {callback!r}.{hint}")
            _require_hooks(callback, trains="epochs" in params)
            # A model keeps its history: a way back would make a cycle, which only the garbage collector frees.
            if not isinstance(callback, History):
                callback.model = model
            callback.params = params
        # Where JAX runs in several processes, the first one tells of the training. What is compiled must be the same in
        # all of them, and depends on all callbacks.
        self._called = self._all if is_writer() else [callback for callback in self._all if not _tells(callback)]
        # Callbacks without batch hooks cost nothing in the inner loop.
        of_batches = "on_train_batch_begin", "on_train_batch_end"
        self.of_batches = _overriding(self._called, *of_batches)
        self.of_test_batches = _overriding(self._called, "on_test_batch_begin", "on_test_batch_end")
        self.see_module = any(callback.sees_module for callback in _overriding(self._all, *of_batches))
        self.see_epochs = any(callback.sees_module for callback in self._all)
        self._savers = [callback for callback in self._all if isinstance(callback, ModelCheckpoint)]
        _require_apart(self._savers)
        self.saves = bool(self._savers)
        # Someone saves at the multiples of these numbers of steps.
        self.save_every = [saver.every_steps for saver in self._savers if saver.every_steps is not None]
        # Whether someone may hold arrays of the module: then these are not given away.
        self.kept = True
        self.need_state = any(callback.needs_state for callback in self._all)

    def train_begin(self) -> None:
        for callback in self._called:
            callback.on_train_begin()

    def train_end(self) -> None:
        for callback in self._called:
            callback.on_train_end()

    def epoch_begin(self, epoch: int) -> None:
        for callback in self._called:
            callback.on_epoch_begin(epoch)

    def epoch_resume(self, epoch: int) -> None:
        for callback in self._called:
            callback.on_epoch_resume(epoch)

    def epoch_end(self, epoch: int, ending: Ending) -> None:
        called = [(name, callback) for name, callback in self._named().items() if callback in self._called]
        ending.left = [name for name, _ in called] if ending.left is None else ending.left
        for name, callback in called:
            if name in ending.left:
                ending.left.remove(name)
                callback.on_epoch_end(epoch, ending.logs)

    def batch_begin(self, batch: int) -> None:
        for callback in self.of_batches:
            callback.on_train_batch_begin(batch)

    def batch_end(self, batch: int, logs: Logs) -> None:
        for callback in self.of_batches:
            callback.on_train_batch_end(batch, logs)

    def save(self, position: tp.Any, logs: Logs | None = None, always: bool = False) -> None:
        """Lets those that save decide whether to. It comes after all other hooks, whose effects are saved.

        **Arguments:**

        - `position`: how far the training is.
        - `logs`: those of the epoch that has just ended; None within one.
        - `always`: whether to save in any case, and to wait until that is done.
        """
        for saver in self._savers:
            saver._save(position, self.states, logs, always)

    def hold(self, position: tp.Any) -> None:
        """Has those that save keep what a checkpoint holds now, to write that at the end of the epoch."""
        for saver in self._savers:
            saver._hold(position, self.states)

    def states(self) -> States:
        """The states of all callbacks, each with a name and an identity by which it is found again."""
        return {
            name: {"identity": callback._identity(), "state": callback.get_state()}
            for name, callback in self._named().items()
        }

    def restore(self, states: States) -> list[str]:
        """Gives the callbacks their states. Those of one class may be in another order now: each takes the state of one
        that was like it, or else of the one that had its place. If one of them fails, the others have the states of
        before. **Returns:** the names of those that are not there now."""
        known = self._named()
        left = {name: found for name, found in states.items() if found["state"]}
        before: list[tuple[Callback, tp.Any]] = []
        for is_owner in (_is_same, _is_alike, _has_place):
            for name, found in list(left.items()):
                owner = next((now for now, callback in known.items() if is_owner(name, found, now, callback)), None)
                if owner is not None:
                    callback = known.pop(owner)
                    own = callback.get_state()
                    try:
                        callback.set_state(left.pop(name)["state"])
                    except BaseException as error:
                        error.add_note(f"Raised by set_state of the callback {owner}, with a state of the checkpoint.")
                        for other, state in before:
                            other.set_state(state)
                        raise
                    if own:
                        before.append((callback, own))
        return [*left]

    def _named(self) -> dict[str, Callback]:
        counts: collections.Counter[str] = collections.Counter()
        found = {}
        for callback in self._all:
            name = type(callback).__name__
            counts[name] += 1
            found[f"{name} {counts[name]}"] = callback
        return found

    @property
    def in_steps(self) -> list[tp.Any]:
        """The modules that take part in each training step."""
        found = [callback._in_steps() for callback in self._all]
        return list({id(module): module for module in found if module is not None}.values())

    def test_begin(self) -> None:
        for callback in self._called:
            callback.on_test_begin()

    def test_failed(self) -> None:
        for callback in self._called:
            callback._after_failed_test()

    def test_end(self, logs: Logs) -> None:
        for callback in self._called:
            callback.on_test_end(logs)

    def test_batch_begin(self, batch: int) -> None:
        for callback in self.of_test_batches:
            callback.on_test_batch_begin(batch)

    def test_batch_end(self, batch: int, logs: Logs) -> None:
        for callback in self.of_test_batches:
            callback.on_test_batch_end(batch, logs)

    def compiling(self) -> None:
        for callback in self._called:
            if isinstance(callback, ProgressBar):
                callback.compiling()

    def close(self) -> None:
        """After the last epoch, or an exception. If closing one of them fails, the others are closed all the same."""
        failed: Exception | None = None
        for callback in self._called:
            try:
                callback.close()
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def stop(self) -> bool:
        """Whether one of them has set `stop_training`."""
        return self._model.stop_training


def _tells(callback: Callback) -> bool:
    """Whether a callback is for the first process alone. Those that save know themselves which process writes."""
    return isinstance(callback, EpochLines) or (callback.writes and not isinstance(callback, ModelCheckpoint))


def _overriding(callbacks: Iterable[Callback], *hooks: str) -> list[Callback]:
    """Those that override one of the hooks."""
    return [callback for callback in callbacks if any(_overrides(callback, hook) for hook in hooks)]


def _overrides(callback: Callback, hook: str) -> bool:
    """Whether it does so by its class or with an attribute."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def _require_hooks(callback: Callback, trains: bool) -> None:
    """Refuses hooks that cannot be called as they are called, before any time is spent."""
    for name in vars(Callback):
        if name.startswith("on_" if trains else "on_test_") and _overrides(callback, name):
            require_hook(callback, name)


def _require_once(callbacks: Iterable[tp.Any]) -> None:
    """Refuses a callback that is there twice, and would count everything twice."""
    found: set[int] = set()
    for callback in callbacks:
        if id(callback) in found:
            raise ValueError(
                f"the callback {callback!r} is given twice, and each of its hooks would be called twice.\n"
                "  Give it once; or construct two of them."
            )
        found.add(id(callback))


def _is_same(then: str, found: Mapping[str, tp.Any], now: str, callback: Callback) -> bool:
    return _has_place(then, found, now, callback) and _is_alike(then, found, now, callback)


def _is_alike(then: str, found: Mapping[str, tp.Any], now: str, callback: Callback) -> bool:
    identity = callback._identity()
    is_of_class = then.rpartition(" ")[0] == type(callback).__name__
    return is_of_class and identity is not None and found.get("identity") == identity


def _has_place(then: str, found: Mapping[str, tp.Any], now: str, callback: Callback) -> bool:
    return then == now


def _require_apart(savers: Iterable[ModelCheckpoint]) -> None:
    """Refuses several that write into one directory."""
    counts = collections.Counter(os.path.realpath(os.fsdecode(saver.directory)) for saver in savers)
    for directory, count in counts.items():
        if count > 1:
            raise ValueError(
                f"{count} callbacks ModelCheckpoint write into {directory}: each would remove what another one keeps.\n"
                "  Give one of them all of it, ModelCheckpoint(directory, every_steps=..., monitor=...); or each a "
                "directory of its own."
            )
