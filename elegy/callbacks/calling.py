"""How `fit` and `evaluate` call their callbacks: all in turn, with logs that are read when someone looks into them."""

from __future__ import annotations

import collections
import dataclasses
import os
import typing as tp
from collections.abc import Callable, Iterable, Iterator, Mapping

from elegy.callbacks.callback import Callback, Logs
from elegy.callbacks.history import History
from elegy.callbacks.model_checkpoint import ModelCheckpoint
from elegy.callbacks.progress import EpochLines, ProgressBar

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
    """The logs of an epoch.

    - `lacks_validation`: whether there are validation data, and this epoch leaves them out.
    - `of_model`: the names of what the model gives, without what callbacks add.
    """

    def __init__(self, logs: Mapping[str, float], lacks_validation: bool):
        super().__init__(logs)
        self.lacks_validation = lacks_validation
        self.of_model = tuple(logs)


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
        for callback in self._all:
            if not isinstance(callback, Callback):
                hint = " Construct it." if isinstance(callback, type) else ""
                raise TypeError(f"callbacks must be instances of elegy.callbacks.Callback, got {callback!r}.{hint}")
            # A model keeps its history: a way back would make a cycle, which only the garbage collector frees.
            if not isinstance(callback, History):
                callback.model = model
            callback.params = params
        # Callbacks without batch hooks cost nothing in the inner loop.
        self.of_batches = self._with("on_train_batch_begin", "on_train_batch_end")
        self.of_test_batches = self._with("on_test_batch_begin", "on_test_batch_end")
        self.see_module = any(callback.sees_module for callback in self.of_batches)
        self.see_epochs = any(callback.sees_module for callback in self._all)
        self._savers = [callback for callback in self._all if isinstance(callback, ModelCheckpoint)]
        _require_apart(self._savers)
        self.saves = bool(self._savers)
        # Someone saves at the multiples of these numbers of steps.
        self.save_every = [saver.every_steps for saver in self._savers if saver.every_steps is not None]
        # Whether someone may hold arrays of the module: then these are not given away.
        self.kept = True
        self.need_state = any(callback.needs_state for callback in self._all)

    def _with(self, *hooks: str) -> list[Callback]:
        """Those that override one of the hooks, by their class or with an attribute."""

        def overrides(callback: Callback, hook: str) -> bool:
            return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)

        return [callback for callback in self._all if any(overrides(callback, hook) for hook in hooks)]

    def train_begin(self) -> None:
        for callback in self._all:
            callback.on_train_begin()

    def train_end(self) -> None:
        for callback in self._all:
            callback.on_train_end()

    def epoch_begin(self, epoch: int) -> None:
        for callback in self._all:
            callback.on_epoch_begin(epoch)

    def epoch_resume(self, epoch: int) -> None:
        for callback in self._all:
            callback.on_epoch_resume(epoch)

    def epoch_end(self, epoch: int, ending: Ending) -> None:
        named = self._named()
        ending.left = [name for name, _ in named] if ending.left is None else ending.left
        for name, callback in named:
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
        """The states of all callbacks, by names under which they are found again."""
        return {name: callback.get_state() for name, callback in self._named()}

    def restore(self, states: States) -> list[str]:
        """Gives the callbacks their states. **Returns:** the names of those that are not there now."""
        known, given = dict(self._named()), []
        try:
            for name, state in states.items():
                if name in known and state:
                    given.append((name, known[name].get_state()))
                    known[name].set_state(state)
        except BaseException as error:
            error.add_note(f"Raised by set_state of the callback {given[-1][0]}, with the state of the checkpoint.")
            for name, state in given[:-1]:
                if state:
                    known[name].set_state(state)
            raise
        return [name for name, state in states.items() if name not in known and state]

    def _named(self) -> list[tuple[str, Callback]]:
        names: dict[str, int] = {}
        found = []
        for callback in self._all:
            name = type(callback).__name__
            names[name] = names.get(name, 0) + 1
            found.append((f"{name} {names[name]}", callback))
        return found

    @property
    def in_steps(self) -> list[tp.Any]:
        """The modules that take part in each training step."""
        found = [callback._in_steps() for callback in self._all]
        return list({id(module): module for module in found if module is not None}.values())

    def test_begin(self) -> None:
        for callback in self._all:
            callback.on_test_begin()

    def test_failed(self) -> None:
        for callback in self._all:
            callback._after_failed_test()

    def test_end(self, logs: Logs) -> None:
        for callback in self._all:
            callback.on_test_end(logs)

    def test_batch_begin(self, batch: int) -> None:
        for callback in self.of_test_batches:
            callback.on_test_batch_begin(batch)

    def test_batch_end(self, batch: int, logs: Logs) -> None:
        for callback in self.of_test_batches:
            callback.on_test_batch_end(batch, logs)

    def compiling(self) -> None:
        for callback in self._all:
            if isinstance(callback, ProgressBar):
                callback.compiling()

    def close(self) -> None:
        """After the last epoch, or an exception. If closing one of them fails, the others are closed all the same."""
        failed: Exception | None = None
        for callback in self._all:
            try:
                callback.close()
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def stop(self) -> bool:
        """Whether one of them has set `stop_training`."""
        return self._model.stop_training


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
