"""`ModelCheckpoint`: a directory of checkpoints that training writes."""

from __future__ import annotations

import os
import time
import typing as tp
from collections.abc import Callable, Mapping

import jax

from elegy.callbacks.callback import Callback, Logs
from elegy.callbacks.monitor import Monitor, require_at_least
from elegy.checkpoints import Checkpoints
from elegy.checkpoints.file import Path
from elegy.errors import CheckpointWarning
from elegy.frames import warn


class ModelCheckpoint(Callback):
    """Writes checkpoints from which training goes on as if nothing had happened, `fit(..., resume=directory)`.

    A checkpoint has all that training depends on: parameters, state, the optimiser, what metrics have counted, the
    place in the data, the history and the states of all callbacks. It is taken after the other callbacks have seen the
    step or the epoch, whatever their order, and is written by a thread meanwhile.

    **Arguments:**

    - `directory`: where the checkpoints are, each in a folder of its own. See `elegy.Checkpoints`.
    - `every_epochs`: after how many epochs there is one. If no other argument says when, after each.
    - `every_steps`: after how many steps, counted from the first one of epoch 0.
    - `every_seconds`: after how many seconds, at the end of the step that runs then.
    - `keep`: how many of the newest are kept; None: all.
    - `monitor`: a name in the logs. After each epoch in which it is better than before there is a checkpoint besides,
      and the best one is kept.
    - `best_only`: whether to write only after epochs in which `monitor` is better than before; with `every_epochs=` of
      those alone.
    - `mode`: `"min"`, `"max"` or `"auto"`: which values of `monitor` are better.
    - `backend`: `"safetensors"` or `"orbax"`, as for `elegy.Checkpoints`.

    While it is there, Ctrl-C and SIGTERM let the running step end, and a checkpoint is written before training stops. A
    second signal stops at once.

    One directory is for one training. If it has checkpoints of later steps than the one at which a training begins,
    there is a `CheckpointWarning`: they count as the newest.

    **Raises:** `ValueError` if arguments do not fit together, or another `ModelCheckpoint` of the same `fit` has the
    same directory; what `elegy.Checkpoints` raises, and for what happens on the disk at the latest at the end of `fit`.

    ```python
    import elegy
    import numpy as np

    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]


    def train(epochs):
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
        saving = elegy.callbacks.ModelCheckpoint("run", every_steps=3)
        return model.fit(x, 2 * x, batch_size=16, epochs=epochs, callbacks=[saving], resume="run", verbose=0)


    train(epochs=2)
    history = train(epochs=4)  # goes on after the second epoch
    assert history.epoch == [0, 1, 2, 3]
    ```
    """

    sees_module = False
    writes = True

    def __init__(
        self,
        directory: Path,
        *,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        every_seconds: float | int | None = None,
        keep: int | None = 3,
        monitor: str | None = None,
        best_only: bool = False,
        mode: str = "auto",
        backend: tp.Literal["safetensors", "orbax"] = "safetensors",
    ):
        for name, value in {"every_epochs": every_epochs, "every_steps": every_steps}.items():
            if value is not None:
                require_at_least(self, 1, **{name: value})
        if every_seconds is not None and not every_seconds > 0:
            raise ValueError(f"ModelCheckpoint: every_seconds must be positive, got {every_seconds!r}.")
        if best_only and monitor is None:
            raise ValueError("ModelCheckpoint: best_only= needs monitor=, the name of the value that is to be best.")
        if best_only and (every_steps is not None or every_seconds is not None):
            raise ValueError("ModelCheckpoint: best_only= is about the ends of epochs, not about steps or seconds.")
        if every_epochs is None and every_steps is None and every_seconds is None:
            every_epochs = 1
        Checkpoints(directory, keep=keep, backend=backend)  # refuses what it does not take, before any time is spent
        self.directory = directory
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.monitor = monitor
        self.best_only = best_only
        self.best: float | None = None
        self._monitor = None if monitor is None else Monitor(self, monitor, 0, mode)
        self._given = keep, backend
        self._opened: Checkpoints | None = None
        # What a checkpoint held when it was `max_steps` that ended an epoch.
        self._held: tuple[tp.Any, tp.Any] | None = None
        self._written = time.monotonic()

    def on_train_begin(self) -> None:
        self._written = time.monotonic()
        if not self._goes_on():
            self.best = None
            self._warn_of_later_steps()

    def _warn_of_later_steps(self) -> None:
        later = [str(step) for step in Checkpoints(self.directory).steps if step > self.model.steps]
        if later:
            warn(
                CheckpointWarning(
                    f"{os.fsdecode(self.directory)} has checkpoints of later steps ({', '.join(later)}) than the one "
                    f"at which this training begins, {self.model.steps}: they count as the newest, so those of this "
                    "training are removed before them, and resume= goes on from them.\n"
                    "  Go on from them, fit(..., resume=directory); or give another directory, or remove them."
                )
            )

    def get_state(self) -> dict[str, tp.Any]:
        return {} if self.monitor is None else {"monitor": self.monitor, "best": self.best}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        before = state.get("monitor", self.monitor)
        self.best = state.get("best") if before == self.monitor else None
        if self.monitor not in (None, before):
            warn(
                CheckpointWarning(
                    f"the checkpoints that the training wrote so far have {before!r} as their score, and "
                    f"ModelCheckpoint now watches {self.monitor!r}: of both together the best one means nothing.\n"
                    f"  Go on with monitor={before!r}, or write to another directory."
                )
            )

    def close(self) -> None:
        opened, self._opened, self._held = self._opened, None, None
        if opened is not None:
            opened.close()

    @property
    def _store(self) -> Checkpoints:
        if self._opened is None:
            keep, backend = self._given
            direction = "min" if self._monitor is None else self._monitor.direction
            self._opened = Checkpoints(
                self.directory,
                keep=keep,
                keep_best=0 if self._monitor is None else 1,
                direction=direction,
                backend=backend,
            )
        return self._opened

    def _hold(self, position: tp.Any, states: Callable[[], tp.Any]) -> None:
        """Keeps what is to be saved at the end of this epoch: with more steps, training goes on within it."""
        tree, extra = self.model._snapshot(position, states())
        self._held = jax.tree.map(lambda leaf: leaf, tree), extra  # callbacks may give the modules other arrays

    def _save(self, position: tp.Any, states: Callable[[], tp.Any], logs: Logs | None, always: bool) -> None:
        """Saves if it is time to."""
        score = None
        if always:
            # At the end of an epoch there may be a checkpoint, with a score, since which nothing was trained.
            due = position.made > 0 or self.model.steps not in self._store.steps
        else:
            due = self._is_time(position, logs)
        if logs is not None and self._monitor is not None:
            score = self._monitor.value(logs)
            is_better = score is not None and self._monitor.is_better(score, self.best)
            due = due and is_better if self.best_only else due or is_better
            self.best = score if due and is_better else self.best
        if not due:
            return
        self._written = time.monotonic()
        held, self._held = self._held, None
        tree, extra = self.model._snapshot(position, states()) if held is None else held
        self._store.save(self.model.steps, tree, extra, score=score, wait=always)

    def _is_time(self, position: tp.Any, logs: Logs | None) -> bool:
        """Whether enough epochs, steps or seconds have gone by."""
        made = position.done + position.made
        return (
            (self.every_epochs is not None and logs is not None and position.epoch % self.every_epochs == 0)
            # A checkpoint of the last step of an epoch is made again at its end, from where the next one begins.
            or (self.every_steps is not None and made % self.every_steps == 0)
            or (self.every_seconds is not None and time.monotonic() - self._written >= self.every_seconds)
        )
