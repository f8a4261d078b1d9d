"""Callbacks that set the learning rate: on a plateau, or by a function of the epoch."""

from __future__ import annotations

import inspect
import typing as tp
from collections.abc import Callable, Mapping

from elegy.callbacks.callback import Callback, Logs
from elegy.callbacks.monitor import Monitor, require_at_least


class SetsLearningRate(Callback):
    """A callback for an optimiser whose state has a learning rate."""

    needs_state = True

    def on_train_begin(self) -> None:
        # Assigned for the error that an optimiser without one raises, before any time is spent.
        self.model.optimizer.learning_rate = self.model.optimizer.learning_rate

    @property
    def _rate(self) -> float:
        return float(self.model.optimizer.learning_rate)

    @_rate.setter
    def _rate(self, rate: float) -> None:
        self.model.optimizer.learning_rate = rate


class ReduceLROnPlateau(SetsLearningRate):
    """Multiplies the learning rate by a factor when a value of the logs has not become better for some epochs.

    **Arguments:**

    - `monitor`, `min_delta`, `mode`: as for `EarlyStopping`.
    - `factor`: from 0 to 1, both excluded.
    - `patience`: after how many epochs in a row that are not better. 0 and 1 both mean the first one.
    - `cooldown`: for how many epochs after a reduction nothing is counted.
    - `min_learning_rate`: the learning rate does not fall below.

    The optimiser must keep its learning rate in its state: `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`.

    **Raises:** `ValueError` for arguments out of range, and as `EarlyStopping` does; `ParameterError` when training
    begins, if the optimiser has no learning rate that can be set.

    ```python
    import elegy
    import numpy as np
    import optax

    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optimizer)
    plateau = elegy.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)
    history = model.fit(x, 2 * x, epochs=3, callbacks=[plateau], verbose=0)
    assert np.allclose(history.history["learning_rate"], [0.1, 0.1, 0.05])
    ```
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float | int = 0.1,
        patience: int = 10,
        *,
        min_delta: float | int = 1e-4,
        mode: str = "auto",
        cooldown: int = 0,
        min_learning_rate: float | int = 0.0,
    ):
        require_at_least(self, 0, patience=patience, cooldown=cooldown)
        if not 0 < factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor must be between 0 and 1, both excluded, got {factor!r}.")
        if not min_learning_rate >= 0:
            raise ValueError(f"ReduceLROnPlateau: min_learning_rate must not be negative, got {min_learning_rate!r}.")
        self.monitor = monitor
        self._monitor = Monitor(self, monitor, min_delta, mode)
        self.factor = factor
        self.patience = patience
        self.cooldown = cooldown
        self.min_learning_rate = min_learning_rate
        self._reset()

    def _reset(self) -> None:
        self.best: float | None = None
        self.wait = 0
        self._cooling = 0

    def on_train_begin(self) -> None:
        super().on_train_begin()
        if not self._goes_on():
            self._reset()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self._monitor.value(logs)
        if value is None:
            return
        cooling, self._cooling = self._cooling > 0, max(self._cooling - 1, 0)
        if self._monitor.is_better(value, self.best):
            self.best, self.wait = value, 0
        elif not cooling:
            self.wait += 1
            if self.wait >= self.patience:
                if self._rate > self.min_learning_rate:
                    self._rate = max(self._rate * self.factor, self.min_learning_rate)
                self.wait, self._cooling = 0, self.cooldown

    def get_state(self) -> dict[str, tp.Any]:
        return {"best": self.best, "wait": self.wait, "cooling": self._cooling, "monitor": self.monitor}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        if not self._monitor.knows(state):
            self._reset()
            return
        self.best, self.wait, self._cooling = state["best"], state["wait"], state["cooling"]

    def _identity(self) -> str:
        return self.monitor


class LearningRateScheduler(SetsLearningRate):
    """Sets the learning rate at the beginning of each epoch.

    **Arguments:**

    - `schedule`: a function of the epoch, counted from 0, or of the epoch and the learning rate so far, that returns
      the learning rate.

    The optimiser must keep its learning rate in its state: `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`.
    A learning rate that changes with each step is a schedule of Optax, which needs no callback:
    `optax.adam(optax.cosine_decay_schedule(1e-3, steps))`.

    **Raises:** `TypeError` if `schedule` cannot be called so; `ParameterError` when training begins, if the optimiser
    has no learning rate that can be set.

    ```python
    import elegy
    import numpy as np
    import optax

    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optimizer)
    halves = elegy.callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)
    history = model.fit(x, 2 * x, epochs=3, callbacks=[halves], verbose=0)
    assert np.allclose(history.history["learning_rate"], [0.1, 0.05, 0.025])
    ```
    """

    def __init__(self, schedule: Callable[..., tp.Any]):
        self.schedule = schedule
        self._arguments = _number_of_arguments(schedule)

    def on_epoch_begin(self, epoch: int) -> None:
        given = (epoch, self._rate)
        self._rate = float(self.schedule(*given[: self._arguments]))


def _number_of_arguments(schedule: tp.Any) -> int:
    """Two, if the second has no default, else one."""
    try:
        signature = inspect.signature(schedule)
    except (TypeError, ValueError):  # not a function, or one that does not say what it takes
        signature = None
    for number in (1, 2):
        try:
            if signature is not None:
                signature.bind(*range(number))
                return number
        except TypeError:
            continue
    raise TypeError(
        "LearningRateScheduler takes a function of the epoch, or of the epoch and the learning rate: "
        f"lambda epoch: 0.1 * 0.9**epoch. Got {schedule!r}."
    )
