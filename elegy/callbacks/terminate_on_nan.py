"""`TerminateOnNaN`: training ends when the loss is no number any more."""

from __future__ import annotations

import math
import warnings

from elegy.callbacks.callback import Callback, Logs
from elegy.callbacks.monitor import require_at_least


class TerminateOnNaN(Callback):
    """Stops training, with a warning, when the loss is `nan` or infinite.

    **Arguments:**

    - `every`: after how many batches to look at the loss; the end of each epoch is looked at too. Each look waits until
      the step has been computed, so that a device is busy without a break only between two of them. What is `nan` once
      stays so, hence nothing is overlooked.
    - `raise_error`: whether to raise `FloatingPointError` instead of stopping with a warning.

    **Raises:** `ValueError` if `every` is no positive integer.

    ```python
    import warnings

    import elegy
    import numpy as np
    import optax

    x = np.linspace(0, 100, 64, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(10.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(x, x, epochs=1000, callbacks=[elegy.callbacks.TerminateOnNaN()], verbose=0)
    assert len(history.epoch) < 1000 and "training stops" in str(caught[-1].message)
    ```
    """

    sees_module = False

    def __init__(self, *, every: int = 1, raise_error: bool = False):
        require_at_least(self, 1, every=every)
        self.every = every
        self.raise_error = raise_error
        self._epoch = 0
        self._batches = 0  # of the epoch, that have gone by
        self._stopped = False

    def on_epoch_begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._batches = 0
        self._stopped = False

    def on_epoch_resume(self, epoch: int) -> None:
        self.on_epoch_begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        # With several steps in one execution, `batch` is the last of them.
        before, self._batches = self._batches, batch + 1
        if self._batches // self.every > before // self.every:
            self._look(logs, f"after batch {batch} of epoch {self._epoch}")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._look(logs, f"after epoch {epoch}")

    def _look(self, logs: Logs, when: str) -> None:
        if "loss" not in logs:
            raise ValueError(f"TerminateOnNaN: there is no 'loss' among the logs {when}: {', '.join(logs)}.")
        loss = float(logs["loss"])
        if math.isfinite(loss) or self._stopped:
            return
        text = f"TerminateOnNaN: the loss is {loss} {when} (counted from 0)"
        if self.raise_error:
            raise FloatingPointError(f"{text}.")
        warnings.warn(f"{text}: training stops.", stacklevel=2)
        self._stopped = self.model.stop_training = True
