"""`TensorBoard`: logs, histograms of parameters and profiles as TensorBoard reads them."""

from __future__ import annotations

import itertools
import os
import pathlib
import typing as tp
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.callback import Callback, Logs, as_number
from elegy.callbacks.monitor import require_at_least
from elegy.callbacks.optional import imported
from elegy.selections import parts_of_leaves

_TRAIN, _VALIDATION, _BATCHES = "train", "validation", "train/batches"  # runs
_numbers = itertools.count()  # of the files that this process writes


class TensorBoard(Callback):
    """Writes logs for TensorBoard, by the library tensorboardX: `pip install tensorboardX`.

    **Arguments:**

    - `directory`: a folder, made where it is missing. Values of the training data are written into a run `train` there,
      and those of validation data into a run `validation` under the same tags, so that TensorBoard draws both into one
      chart. The tags are `epoch_loss`, by epoch; and in a run `train/batches` `batch_loss`, by batch, counted over all
      epochs.
    - `update_freq`: `"epoch"`; `"batch"` for the means so far after each batch as well, which waits for the device each
      time; or a number of batches between two such looks.
    - `histograms`: whether to write a histogram of each parameter after each epoch, or a number of epochs between two.
      Parameters that are spread over several processes are left out.
    - `profile`: the first and the last batch, counted from 0 over this `fit`, of which `jax.profiler` takes a profile.
      It goes into the same folder.

    A training that goes on, with `initial_epoch=` or `resume=`, has TensorBoard hide what was written into the same
    folder of the epochs and batches that are now made again.

    **Raises:** `ImportError` without tensorboardX; `ValueError` for arguments out of range.

    ```python
    import pathlib

    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    board = elegy.callbacks.TensorBoard("runs", update_freq=10, histograms=True)
    model.fit(x, 2 * x, epochs=2, validation_split=0.25, callbacks=[board], verbose=0)
    assert [path.name for path in sorted(pathlib.Path("runs").iterdir())] == ["train", "validation"]
    ```
    """

    writes = True
    sees_module = False

    def __init__(
        self,
        directory: str | os.PathLike[str] = "logs",
        *,
        update_freq: str | int = "epoch",
        histograms: bool | int = False,
        profile: tuple[int, int] | None = None,
    ):
        if isinstance(update_freq, str):
            if update_freq not in ("epoch", "batch"):
                raise ValueError(f"TensorBoard: update_freq must be 'epoch', 'batch' or a number, got {update_freq!r}.")
            update_freq = int(update_freq == "batch")
        else:
            require_at_least(self, 1, update_freq=update_freq)
        require_at_least(self, 0, histograms=int(histograms))
        if profile is not None and not 0 <= profile[0] <= profile[1]:
            raise ValueError(f"TensorBoard: profile must be the first and the last batch, got {profile!r}.")
        self.directory = pathlib.Path(directory)
        self.update_freq = update_freq  # 0 for no batch at all
        self.histograms = int(histograms)
        self.profile = profile
        self._library = imported(self, "tensorboardX")
        self._writers: dict[str, tp.Any] = {}
        self._profiling = self._profiled = False
        self._done = self._batches = 0
        self._epochs = 0  # that it was told of to the end

    def on_train_begin(self) -> None:
        # How many batches there were; of an epoch whose length nobody knows, what the state says.
        if not self._goes_on():
            self._batches = self._epochs = 0
        elif (steps := self.params["steps"]) is not None and not (self.params.get("resumes") and self._batches):
            self._done = self._batches = self.params["initial_epoch"] * steps
        self._first_batch, self._profiled = self._batches, False
        if self._goes_on():
            for run, step in self._made_again().items():
                if (self.directory / run).exists():
                    # TensorBoard takes the first session of a run that says where it starts for the beginning of the
                    # run, and hides something for later ones only.
                    self._new_writer(run, purge_step=step).close()
                    self._writers[run] = self._new_writer(run, purge_step=step)

    def _made_again(self) -> dict[str, int]:
        """By run, the first step that this training makes. A run has steps of one kind, since TensorBoard hides from a
        step on all that there is in a run, under whatever tag."""
        # The model may have been saved after this callback was told of the end of an epoch, and before others were.
        told = self._epochs if self.params.get("resumes") else 0
        epoch: int = told or self.params["initial_epoch"]
        # Without a state nobody may know how many batches there were.
        of_batches = {_BATCHES: self._batches} if self._batches else {}
        return {_TRAIN: epoch, _VALIDATION: epoch, **of_batches}

    def on_epoch_begin(self, epoch: int) -> None:
        self._done = self._batches

    def on_train_batch_begin(self, batch: int) -> None:
        # With several steps in one execution, `batch` is the last of them.
        starts = self.profile is not None and self._done + batch - self._first_batch >= self.profile[0]
        if starts and not self._profiled:
            jax.profiler.start_trace(str(self.directory))
            self._profiling = self._profiled = True

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        before, self._batches = self._batches, self._done + batch + 1
        if self._profiling and self.profile is not None and self._batches - self._first_batch > self.profile[1]:
            len(logs)  # waits until the step has been computed
            self._stop_profiling()
        if self.update_freq and self._batches // self.update_freq > before // self.update_freq:
            self._write("batch", logs, self._batches - 1)

    def get_state(self) -> dict[str, tp.Any]:
        return {"done": self._done, "batches": self._batches, "epochs": self._epochs}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        self._done, self._batches, self._epochs = state["done"], state["batches"], state.get("epochs", 0)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._write("epoch", logs, epoch)
        if self.histograms and (epoch + 1) % self.histograms == 0:
            self._write_histograms(epoch)
        for writer in self._writers.values():
            writer.flush()
        self._epochs = epoch + 1

    def close(self) -> None:
        self._stop_profiling()
        while self._writers:
            self._writers.popitem()[1].close()

    def _stop_profiling(self) -> None:
        if self._profiling:
            self._profiling = False
            jax.profiler.stop_trace()

    def _writer(self, run: str) -> tp.Any:
        if run not in self._writers:
            self._writers[run] = self._new_writer(run)
        return self._writers[run]

    def _new_writer(self, run: str, **options: tp.Any) -> tp.Any:
        # Else two files that are begun within a second have one name, and the second one overwrites the first.
        suffix = f".{os.getpid()}.{next(_numbers):06}"
        return self._library.SummaryWriter(str(self.directory / run), filename_suffix=suffix, **options)

    def _write(self, kind: str, logs: Logs, step: int) -> None:
        for name, value in logs.items():
            run = _VALIDATION if name.startswith("val_") else _BATCHES if kind == "batch" else _TRAIN
            self._writer(run).add_scalar(f"{kind}_{name.removeprefix('val_')}", as_number(name, value), step)

    def _write_histograms(self, epoch: int) -> None:
        parameters = self.model.module.get_parameters()
        for parts, leaf in zip(parts_of_leaves(parameters), jax.tree.leaves(parameters), strict=True):
            if not jnp.issubdtype(leaf.dtype, jnp.number) or jnp.iscomplexobj(leaf):
                continue  # keys, flags and complex numbers have no histogram
            if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
                continue  # other processes hold parts of it
            values = np.asarray(leaf).astype(np.float64)
            values = values[np.isfinite(values)]
            if values.size:
                self._writer(_TRAIN).add_histogram("/".join(parts), values, epoch)
