"""`EarlyStopping`: training ends when it no longer helps."""

from __future__ import annotations

import typing as tp
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from elegy.callbacks.callback import Callback, Logs
from elegy.callbacks.monitor import Monitor, require_at_least


class EarlyStopping(Callback):
    """Stops training when a value of the logs has not become better for some epochs, and restores the best epoch.

    **Arguments:**

    - `monitor`: the name of the value, as it stands in the history.
    - `min_delta`: by how much a value must be better than the best one so far to count as better.
    - `patience`: after how many epochs in a row that are not better training stops. 0 and 1 both mean the first one.
      For a value of validation data only the epochs with validation count.
    - `mode`: `"min"` if smaller values are better, `"max"` if larger ones are. `"auto"` asks the metric of that name
      for its `direction`, and else goes by words of the name, such as `loss` and `accuracy`.
    - `baseline`: a value that an epoch must surpass, besides being the best one, for the waiting to begin anew.
    - `restore_best`: whether the module gets back, when training ends, the parameters and the state that it had at the
      end of the best epoch. They are kept as copies, so this takes the memory of a second module. The state of the
      optimiser stays as it is, but for that part of a schedule-free one which makes the parameters to evaluate with.
    - `start_from_epoch`: the epochs before this one, counted from 0, are not looked at.

    **Attributes:** `best`, the best value; `best_epoch`, its epoch; `wait`, how many epochs have gone by since then;
    and `stopped_epoch`, the epoch after which it stopped training. They are None, and `wait` 0, until there is
    something to say.

    **Raises:** `ValueError` for arguments out of range; and at the end of the first epoch, if the logs have no such
    value, or if `"auto"` does not know its direction. A value that is `nan` is never better.

    ```python
    import elegy
    import numpy as np
    import optax

    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    stopping = elegy.callbacks.EarlyStopping("loss", min_delta=1e-4, patience=3)
    history = model.fit(x, 2 * x, epochs=1000, callbacks=[stopping], verbose=0)
    assert stopping.stopped_epoch == history.epoch[-1] == stopping.best_epoch + 3
    ```
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float | int = 0.0,
        patience: int = 0,
        *,
        mode: str = "auto",
        baseline: float | int | None = None,
        restore_best: bool = True,
        start_from_epoch: int = 0,
    ):
        require_at_least(self, 0, patience=patience, start_from_epoch=start_from_epoch)
        self.monitor = monitor
        self._monitor = Monitor(self, monitor, min_delta, mode)
        self.patience = patience
        self.baseline = baseline
        self.restore_best = restore_best
        self.start_from_epoch = start_from_epoch
        self._reset()

    def _reset(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self.wait = 0
        self._parameters: tp.Any = None
        self._moving: tp.Any = {}

    def on_train_begin(self) -> None:
        if not self._goes_on():
            self._reset()
        elif self.params.get("resumes") and self.stopped_epoch is not None:
            if self.wait >= self.patience:  # the training had ended, and there is no more of it
                self.model.stop_training = True
            else:  # it is to be more patient now
                self.stopped_epoch = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self._monitor.value(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self._monitor.is_better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best:
                self._parameters = _copied(self.model.module.get_parameters())
                self._moving = _copied(self.model.optimizer._moving())
            if self.baseline is None or self._monitor.is_better(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self) -> None:
        if self._parameters is not None:
            self.model.module.set_parameters(_copied(self._parameters))
            self.model.optimizer._move(self._moving)

    def get_state(self) -> dict[str, tp.Any]:
        state: dict[str, tp.Any] = {"best": self.best, "best_epoch": self.best_epoch, "wait": self.wait}
        state |= {"stopped_epoch": self.stopped_epoch, "monitor": self.monitor}
        return state | {"parameters": _copied(self._parameters), "moving": _copied(self._moving)}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        if not self._monitor.knows(state):
            self._reset()
            return
        self.best, self.best_epoch, self.wait = state["best"], state["best_epoch"], state["wait"]
        self.stopped_epoch = state.get("stopped_epoch")
        self._parameters = _copied(state["parameters"])
        self._moving = _copied(state.get("moving", {}))

    def _identity(self) -> str:
        return self.monitor


def _copied(parameters: tp.Any) -> tp.Any:
    """Arrays of their own: those of the module may be given away by a compiled step."""
    return jax.tree.map(jnp.copy, parameters)
