"""`WandB` and `MLflow`: the logs of each epoch in the services of these names."""

from __future__ import annotations

import typing as tp
from collections.abc import Mapping

from elegy.callbacks.callback import Callback, Logs, as_number
from elegy.callbacks.optional import imported


class HasRun(Callback):
    """A callback that may begin a run in a service, and goes on with this run when training does."""

    writes = True
    _begun: str | None = None  # the run that it began for this training, or for that of which this one is the rest

    def on_train_begin(self) -> None:
        if not self._goes_on():
            self._begun = None

    def get_state(self) -> dict[str, tp.Any]:
        return {} if self._begun is None else {"run": self._begun}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        self._begun = state.get("run")


class WandB(HasRun):
    """Logs each epoch to Weights & Biases: the values by their names, and the number of the epoch as `epoch`.

    **Arguments:**

    - `run`: a run, as `wandb.init` gives it, or another object with a method `log` that takes a dict. Without one
      `wandb.init()` begins a run with each `fit`, which ends with it. A training that goes on, with `initial_epoch=` or
      `resume=`, goes on with the run that it began. Epochs that are made again are logged again.

    **Raises:** `ImportError` when training begins, without `run` and without the library wandb.

    ```python
    import elegy
    import numpy as np


    class Run:  # as wandb.init(project="mine") gives one
        def log(self, values):
            print(sorted(values))


    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    model.fit(x, 2 * x, callbacks=[elegy.callbacks.WandB(Run())], verbose=0)
    ```
    """

    def __init__(self, run: tp.Any = None):
        self._given = run
        self._run: tp.Any = None

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._run = self._begin() if self._given is None else self._given

    def _begin(self) -> tp.Any:
        same = {} if self._begun is None else {"id": self._begun, "resume": "allow"}
        run = imported(self, "wandb").init(**same)
        self._begun = run.id
        return run

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._run.log({"epoch": epoch, **logs})

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None and self._given is None:
            run.finish()


class MLflow(HasRun):
    """Logs each epoch to MLflow, as metrics whose step is the number of the epoch.

    **Arguments:**

    - `run_id`: the run to log to. Without one it is the active run; if there is none, each `fit` begins one, which ends
      with it. A training that goes on, with `initial_epoch=` or `resume=`, goes on with the run that it began. Epochs
      that are made again are logged again.

    **Raises:** `ImportError` when training begins, without the library mlflow.

    ```python
    import sys
    import types

    import elegy
    import numpy as np

    # In the place of the library, which this example does without.
    sys.modules["mlflow"] = types.SimpleNamespace(log_metrics=lambda values, **options: print(options))

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    model.fit(x, 2 * x, callbacks=[elegy.callbacks.MLflow(run_id="a1b2")], verbose=0)
    del sys.modules["mlflow"]
    ```
    """

    def __init__(self, run_id: str | None = None):
        self.run_id = run_id
        self._started = False

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._library = imported(self, "mlflow")
        if self.run_id is None and self._library.active_run() is None:
            run = self._library.start_run(**({} if self._begun is None else {"run_id": self._begun}))
            self._started, self._begun = True, run.info.run_id

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        of_run = {} if self.run_id is None else {"run_id": self.run_id}
        self._library.log_metrics({name: as_number(name, value) for name, value in logs.items()}, step=epoch, **of_run)

    def close(self) -> None:
        if self._started:
            self._started = False
            self._library.end_run()
