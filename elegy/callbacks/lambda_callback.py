"""`LambdaCallback`: functions as a callback."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable

from elegy.callbacks.callback import Callback, require_hook

Hook = Callable[..., tp.Any]


class LambdaCallback(Callback):
    """Calls functions of your own, without a class. Functions for batches find the module up to date, as in `Callback`.

    **Arguments:** a function for each hook of `Callback` that is wanted, by its name. It takes the arguments of the
    hook.

    **Raises:** `TypeError` for what cannot be called, or not with the arguments of the hook.

    ```python
    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    losses = []
    note = elegy.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]))
    history = model.fit(x, 2 * x, epochs=2, callbacks=[note], verbose=0)
    assert losses == history.history["loss"]
    ```
    """

    def __init__(
        self,
        *,
        on_train_begin: Hook | None = None,
        on_train_end: Hook | None = None,
        on_epoch_begin: Hook | None = None,
        on_epoch_resume: Hook | None = None,
        on_epoch_end: Hook | None = None,
        on_train_batch_begin: Hook | None = None,
        on_train_batch_end: Hook | None = None,
        on_test_begin: Hook | None = None,
        on_test_end: Hook | None = None,
        on_test_batch_begin: Hook | None = None,
        on_test_batch_end: Hook | None = None,
    ):
        given = {
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_resume": on_epoch_resume,
            "on_epoch_end": on_epoch_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
            "on_test_begin": on_test_begin,
            "on_test_end": on_test_end,
            "on_test_batch_begin": on_test_batch_begin,
            "on_test_batch_end": on_test_batch_end,
        }
        for name, function in given.items():
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"LambdaCallback: {name} must be a function, got {function!r}.")
            setattr(self, name, function)
            require_hook(self, name)
