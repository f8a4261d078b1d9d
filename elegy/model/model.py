"""`Model`: a module with what it takes to train it."""

from __future__ import annotations

import contextlib
import typing as tp
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import optax

from elegy.callbacks import Callback, History
from elegy.callbacks.calling import Callbacks
from elegy.callbacks.progress import PassLine, progress
from elegy.habits import optimizer_for
from elegy.hooks import numbered
from elegy.losses import Loss
from elegy.metrics import Metric
from elegy.model import loop
from elegy.model.data import Data, arguments_of, as_data, batches, split, with_class_weight
from elegy.model.objectives import Losses, Metrics, require_targets
from elegy.model.optimizer import Optimizer
from elegy.model.steps import Step, predict, test, train
from elegy.module import Module
from elegy.random import RNG
from elegy.rendering import totals
from elegy.state import training_context
from elegy.summaries import summary
from elegy.tables import Summary
from elegy.tracebacks import shorten

Arrays = tp.Any  # an array, or a tuple or dict of arrays
if tp.TYPE_CHECKING:
    Transformation = optax.GradientTransformation | Optimizer
else:
    Transformation = tp.Any  # other values are refused by messages of our own

_ARGUMENTS = ("module", "loss", "metrics", "optimizer", "seed")
_ASSIGNABLE = ("run_eagerly", "stop_training")


class Model:
    """Trains a module, evaluates it, and predicts with it.

    **Arguments:**

    - `module`: what to train. The model works on this very object: after `fit` it holds the trained parameters.
    - `loss`: a loss, or a list or dict of them, whose sum is minimised together with what modules declare by
      `elegy.add_loss`. A loss is an `elegy.losses.Loss` or any function; it is called with those of `x`, `y_true`,
      `y_pred`, `sample_weight` and `parameters` (the trainable ones of the module) that its parameters name. Those of
      Optax say `labels` or `targets`, and `logits` or `predictions`: they can be given as they are. It returns a
      scalar, or values of which the mean is taken.
      Parameters of a loss are not trained, and are refused unless they are frozen or those of the module too: what is
      to be learnt, such as the weights of several losses, belongs into the module.
    - `metrics`: a metric, or a list or dict of them. An `elegy.metrics.Metric` starts anew with each epoch; the values
      of any other function are averaged over samples. The model works on copies.
    - `optimizer`: an Optax transformation or an `elegy.Optimizer`. The default is `optax.adam(1e-3)`.
    - `run_eagerly`: whether to do without compilation, for debugging. It can be assigned at any time. The first batch
      of each shape is traced all the same, to create parameters: there `np.asarray` or `float` of an array fails, as
      under `jax.jit`; put such code under `if not elegy.is_initializing():`.
    - `seed`: what is random derives from it: the initial parameters of a module that is not initialised, the order of
      the samples, dropout.

    The same seed and data give the same history, bit for bit, on the same machine.

    **Attributes:** `module`, `optimizer`, `run_eagerly`, `history` (of the last `fit`), and `stop_training`, which a
    callback may set. Of these `run_eagerly` and `stop_training` can be assigned; for another module, loss, metric or
    optimiser, construct another model.

    **Names of logs:** `loss`, the total; the name of each loss, to which `_loss` is appended unless it ends in
    `loss`; the name of each metric; the names given to `add_loss` and `add_metric`. Under a key of a dict they are
    `key_loss/mean_squared_error` and `key/accuracy`. Equal names are numbered. Those of validation data begin with
    `val_`. `learning_rate` is that of the end of the epoch, where the optimiser keeps one in its state.

    ```python
    import elegy
    import jax
    import numpy as np

    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    model = elegy.Model(
        module=elegy.nn.Sequential(lambda: [elegy.nn.Linear(16), jax.nn.relu, elegy.nn.Linear(1)]),
        loss=elegy.losses.MeanSquaredError(),
    )
    history = model.fit(x, x**2, epochs=100, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert model.predict(x).shape == (64, 1)
    ```
    """

    _constructed = False

    def __init__(
        self,
        module: Module,
        loss: tp.Any = None,
        metrics: tp.Any = None,
        optimizer: Transformation | None = None,
        run_eagerly: bool = False,
        seed: int = 42,
    ):
        if not isinstance(module, Module) or isinstance(module, (Loss, Metric)):
            hint = "Construct it." if isinstance(module, type) else "Make one of a function by elegy.to_module(f)()."
            hint = "The module comes first, then loss= and metrics=." if isinstance(module, Module) else hint
            raise TypeError(f"elegy.Model takes a module, got {module!r}.\n  {hint}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be an integer that is not negative, got {seed!r}.")
        if isinstance(optimizer, str):
            raise TypeError(
                f"elegy.Model takes an Optax transformation, got {optimizer!r}.\n  {optimizer_for(optimizer)}"
            )
        optimizer = optax.adam(1e-3) if optimizer is None else optimizer
        self.module = module
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer)
        self.run_eagerly = run_eagerly
        self.stop_training = False
        self._history: History | None = None
        # Whether the epoch that runs leaves the validation data out.
        self._skips_validation = False
        self._seed = int(seed)
        self._reference = loop.Reference(module, Losses(loss), Metrics(metrics), self.optimizer)
        initial = RNG(self._seed)
        self._train = Step(train, True, self._seed, initial)
        self._test = Step(test, False, self._seed, initial)
        self._predict = Step(predict, False, self._seed, initial)
        self._constructed = True

    def __setattr__(self, name: str, value: tp.Any) -> None:
        is_own = type(self) is not Model and name not in _ARGUMENTS  # a subclass may have attributes besides
        if self._constructed and not (name in _ASSIGNABLE or name.startswith("_") or is_own):
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be assigned: the model goes on with what it was constructed "
                f"with. What can be assigned: {', '.join(_ASSIGNABLE)}.\n"
                "  Construct a new one: elegy.Model(module, loss=..., metrics=..., optimizer=...)."
            )
        super().__setattr__(name, value)

    @property
    def history(self) -> History | None:
        """What the last `fit` returned, or has noted before an exception; None before the first."""
        return self._history

    def fit(
        self,
        x: Arrays,
        y: Arrays | None = None,
        batch_size: int = 32,
        epochs: int = 1,
        verbose: int = 1,
        callbacks: Iterable[Callback] = (),
        validation_split: float = 0.0,
        validation_data: tuple[Arrays, ...] | None = None,
        shuffle: bool = True,
        sample_weight: tp.Any = None,
        initial_epoch: int = 0,
        class_weight: tp.Any = None,
        validation_freq: tp.Any = 1,
    ) -> History:
        """Trains.

        **Arguments:**

        - `x`: the inputs: an array whose first axis is that of the samples; a tuple of arrays for a module that takes
          several arguments; a dict for one that takes them by keyword.
        - `y`: the targets, an array, tuple or dict as losses and metrics take it.
        - `batch_size`: the last batch of an epoch has what remains. It has another shape, so it is compiled on its own.
        - `epochs`: how many epochs there are, counted from 0: training makes those from `initial_epoch` on.
        - `verbose`: 0 shows nothing; 1 a line that is kept up to date if the output is a terminal, and otherwise, as
          2, a line for each epoch.
        - `callbacks`: instances of `elegy.callbacks.Callback`, called in this order.
        - `validation_split`: the fraction of samples, the last ones, to validate on instead of training on them. They
          are taken before shuffling, so sorted data must be shuffled before.
        - `validation_data`: `(x, y)` or `(x, y, sample_weight)` to validate on after each epoch.
        - `shuffle`: whether to draw a new order for each epoch.
        - `sample_weight`: an array with a weight for each sample, or for each value. Losses of Elegy divide by the
          number of samples, not by the sum of weights; metrics, functions among them, give weighted means. A
          metric object that takes no `sample_weight` counts all samples alike.
        - `initial_epoch`: how many epochs were made before. Of a model that has not trained yet these are taken to be
          epochs of another process, on the same number of samples with the same `batch_size`: it goes on with the
          order of samples and the random numbers that come next.

        - `class_weight`: a weight for each class, as a dict from labels to weights (a class that is not in it weighs
          1) or as a list. Each sample, or each label of it, weighs as much as its class, times `sample_weight`. `y` is
          one array of labels, or of one-hot rows. Validation data are not weighted so.

        - `validation_freq`: after every how many epochs to validate; or a list of the epochs after which to validate,
          counted from 1. Other epochs have `nan` in the history.

        **Returns:** the `History`: `history.history["loss"]` is a list with a float for each epoch. The values of an
        epoch are means over samples, taken while the parameters change; those of a `Metric` are its own.

        After an exception, `KeyboardInterrupt` included, the module holds the parameters of the last completed step.
        Calling `fit` again goes on from there, with the state of the optimiser.

        To go on in another process, save the module and the optimiser, and give `initial_epoch` there. The history is
        that of a run which was not interrupted, bit for bit:

        ```python
        import elegy
        import numpy as np
        import optax

        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]


        def construct():
            module = elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), elegy.nn.Dropout(0.1), elegy.nn.Linear(1)])
            optimizer = elegy.Optimizer(optax.adam(1e-2))
            return elegy.Model(module, loss=elegy.losses.MeanSquaredError(), optimizer=optimizer)


        model = construct()
        model.fit(x, x**2, epochs=2, verbose=0)
        elegy.save("training.safetensors", {"module": model.module, "optimizer": model.optimizer})

        # In another process.
        model = construct()
        model.module.init(x)
        model.optimizer.adapt(model.module)
        saved = elegy.load("training.safetensors", like={"module": model.module, "optimizer": model.optimizer})
        model.module.set_parameters(saved["module"].get_parameters())
        model.optimizer.set_parameters(saved["optimizer"].get_parameters())
        history = model.fit(x, x**2, epochs=4, initial_epoch=2, verbose=0)

        whole = construct().fit(x, x**2, epochs=4, verbose=0)
        assert history.history["loss"] == whole.history["loss"][2:]
        ```

        **Raises:** `ValueError` or `TypeError` for arguments that do not fit together.
        """
        _require_positive("batch_size", batch_size)
        _require_positive("epochs", epochs, least=0)
        _require_positive("initial_epoch", initial_epoch, least=0)
        _require_list(callbacks)
        shown = progress(verbose)
        data = self._data(x, y, sample_weight)
        validation: Data | None = None
        if validation_data is not None:
            if validation_split:
                raise ValueError("validation_split and validation_data were both given: give one of them.")
            validation = _validation(validation_data)
        elif validation_split:
            data, validation = split(data, validation_split)
        data = with_class_weight(data, class_weight)
        validates = _validates(validation_freq)
        steps = -(-data.size // batch_size)
        if self._reference.steps == 0:
            self._reference.steps = initial_epoch * steps
        params = {
            "epochs": epochs,
            "initial_epoch": initial_epoch,
            "batch_size": batch_size,
            "samples": data.size,
            "steps": steps,
        }
        history, before = History(), self.stop_training
        everything = Callbacks([history, *callbacks, *shown], self, params)
        self._history, self.stop_training = history, False
        try:
            if everything.need_state:
                self._train.flatten(self._reference.to_train(), _batched(data, batch_size)[1])
            everything.train_begin()
            for epoch in range(initial_epoch, epochs):
                everything.epoch_begin(epoch)
                order = self._order(data.size) if shuffle else None
                self._skips_validation = validation is not None and not validates(epoch)
                due = None if self._skips_validation else validation
                logs = self._epoch(data, order, due, batch_size, everything)
                everything.epoch_end(epoch, logs)
                if self.stop_training:
                    break
            everything.train_end()
        except Exception as error:
            shorten(error)
            raise
        finally:
            # A callback may have called `fit` in between, or itself be called by a `fit`.
            self._history, self.stop_training = history, before
            everything.close()
        return history

    def _epoch(
        self, data: Data, order: np.ndarray | None, validation: Data | None, batch_size: int, callbacks: Callbacks
    ) -> dict[str, float]:
        """Trains and validates once. **Returns:** the logs of both."""
        eagerly = self.run_eagerly
        tell = None if eagerly else callbacks.compiling
        with self._train.tracing.telling(tell), self._test.tracing.telling(tell):
            logs = loop.train(self._train, self._reference, *_batched(data, batch_size, order), callbacks, eagerly)
            if (rate := self.optimizer.learning_rate) is not None:
                logs.setdefault("learning_rate", float(rate))
            if validation is None:
                return logs
            tested = loop.test(self._test, self._reference, *_batched(validation, batch_size), callbacks, eagerly)
        for name, value in tested.items():
            logs[numbered(f"val_{name}", logs)[0]] = value
        return logs

    def train_on_batch(
        self, x: Arrays, y: Arrays | None = None, sample_weight: tp.Any = None, class_weight: tp.Any = None
    ) -> dict[str, float]:
        """One step of the optimiser on one batch, for a loop of one's own. The module, the optimiser and the random
        numbers go on as in `fit`.

        **Arguments:** as for `fit`. Each shape of a batch is compiled on its own.

        **Returns:** a float for each name, of this batch: losses and metrics before the step.

        ```python
        import elegy
        import numpy as np
        import optax

        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        losses = [model.train_on_batch(x, 2 * x)["loss"] for _ in range(10)]
        assert losses[-1] < losses[0]
        assert model.test_on_batch(x, 2 * x)["loss"] < losses[-1]
        assert model.predict_on_batch(x[:3]).shape == (3, 1)
        ```
        """
        data = with_class_weight(self._data(x, y, sample_weight), class_weight)
        try:
            callbacks = Callbacks([], self, {})
            return loop.train(self._train, self._reference, [data], [data], callbacks, self.run_eagerly)
        except Exception as error:
            shorten(error)
            raise

    def test_on_batch(self, x: Arrays, y: Arrays | None = None, sample_weight: tp.Any = None) -> dict[str, float]:
        """The losses and metrics of one batch: `evaluate` of all of it at once."""
        return self.evaluate(x, y, _size(x), sample_weight)

    def predict_on_batch(self, x: Arrays) -> tp.Any:
        """The outputs of the module for one batch: `predict` of all of it at once."""
        return self.predict(x, _size(x))

    def evaluate(
        self,
        x: Arrays,
        y: Arrays | None = None,
        batch_size: int = 32,
        sample_weight: tp.Any = None,
        verbose: int = 0,
        callbacks: Iterable[Callback] = (),
    ) -> dict[str, float]:
        """The losses and metrics of data, with `elegy.training()` false. The model stays as it is, but a module that is
        not initialised yet gets its parameters.

        **Arguments:** as for `fit`. `verbose` is 0, which shows nothing, or else a line at the end, which 1 keeps up to
        date meanwhile if the output is a terminal. Of `callbacks` the hooks named `on_test_` are called.

        **Returns:** a float for each name: means over samples; the values of a `Metric` are its own. Without any loss
        there is no `"loss"`.
        """
        _require_positive("batch_size", batch_size)
        data = self._data(x, y, sample_weight)
        _require_list(callbacks)
        batches, examples = _batched(data, batch_size)
        steps = -(-data.size // batch_size)
        everything = Callbacks(callbacks, self, {"batch_size": batch_size, "samples": data.size, "steps": steps})
        with self._shown("Evaluate", batches, steps, self._test, verbose) as (shown, logs):
            try:
                logs.update(loop.test(self._test, self._reference, shown, examples, everything, self.run_eagerly))
            except Exception as error:
                shorten(error)
                raise
            finally:
                everything.close()
        return logs

    def predict(self, x: Arrays, batch_size: int = 32, verbose: int = 0) -> tp.Any:
        """The outputs of the module, with `elegy.training()` false. The model stays as it is, but a module that is not
        initialised yet gets its parameters.

        **Arguments:** as for `fit`; `verbose` as for `evaluate`.

        **Returns:** what the module returns, in NumPy arrays for all samples. Several threads may predict at once.
        Where the module draws random numbers, they are the same in each call.
        """
        _require_positive("batch_size", batch_size)
        data = as_data(x)
        batches, examples = _batched(data, batch_size)
        with self._shown("Predict", batches, -(-data.size // batch_size), self._predict, verbose) as (shown, _):
            try:
                return loop.predict(self._predict, self._reference, shown, examples, self.run_eagerly)
            except Exception as error:
                shorten(error)
                raise

    def summary(self, x: Arrays) -> Summary:
        """The modules that run when the model predicts for `x`: what they return, hold and multiply. Nothing is
        computed, and nothing changes; see `elegy.summary`.

        **Arguments:**

        - `x`: a batch as for `fit`. Arrays may be given as `jax.ShapeDtypeStruct`s.

        **Returns:** an `elegy.Summary`. `print` it, or let it `show` itself.

        ```python
        import elegy
        import numpy as np

        model = elegy.Model(module=elegy.nn.Linear(10))
        summary = model.summary(np.ones([1, 784], np.float32))
        assert summary.trainable == summary.rows[0].trainable == 7850
        ```
        """
        args, kwargs = arguments_of(self.module, x, training=False)
        with training_context(False):
            return summary(self.module, *args, **kwargs)

    @contextlib.contextmanager
    def _shown(
        self, name: str, batches: Iterable[Data], steps: int, step: Step, verbose: int
    ) -> Iterator[tuple[Iterable[Data], dict[str, float]]]:
        """Shows how far a pass is: gives the batches, and a dict for what is to be shown at the end."""
        line = PassLine(name, steps, verbose)
        if not verbose:
            yield batches, {}
            return
        with step.tracing.telling(None if self.run_eagerly else line.compiling), line.shown() as logs:
            yield line.over(batches), logs

    def __repr__(self) -> str:
        names = (
            f"losses=[{', '.join(self._reference.losses.names)}], metrics=[{', '.join(self._reference.metrics.names)}]"
        )
        made = f"optimizer={type(self.optimizer).__name__}, steps={self._reference.steps}"
        return f"{type(self).__name__}(module={type(self.module).__name__}, {names}, {made})"

    def __str__(self) -> str:
        """What it was made of, how far it has trained, and the module as `print` shows it."""
        losses, metrics = self._reference.losses.names, self._reference.metrics.names
        return "\n".join(
            [
                f"{type(self).__name__} after {self._reference.steps} steps",
                f"  losses: {', '.join(losses) or 'those of add_loss'}",
                f"  metrics: {', '.join(metrics) or 'none'}",
                f"  optimizer: {type(self.optimizer).__name__}. {totals(self.optimizer)}",
                str(self.module),
            ]
        )

    def _data(self, x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> Data:
        data = as_data(x, y, sample_weight)
        require_targets(self._reference.losses, self._reference.metrics, x, y)
        return data

    def _order(self, size: int) -> np.ndarray:
        # From the number of steps made, so that each epoch has another order, also across several calls of `fit`.
        return np.random.default_rng([self._seed, self._reference.steps]).permutation(size)


def _validates(validation_freq: tp.Any) -> Callable[[int], bool]:
    """Whether there is a validation after an epoch, counted from 0."""
    if isinstance(validation_freq, (list, tuple, set, frozenset, range)):
        epochs = list(validation_freq)
        for epoch in epochs:
            _require_positive("an epoch of validation_freq", epoch)
        return lambda epoch: epoch + 1 in epochs
    _require_positive("validation_freq", validation_freq)
    return lambda epoch: (epoch + 1) % validation_freq == 0


def _size(x: tp.Any) -> int:
    return max(as_data(x).size, 1)


def _require_positive(name: str, value: tp.Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        kind = "a positive integer" if least else "an integer that is not negative"
        raise ValueError(f"{name} must be {kind}, got {value!r}.")


def _require_list(callbacks: tp.Any) -> None:
    if isinstance(callbacks, Callback):
        raise TypeError("callbacks is a list of callbacks, got one: callbacks=[callback].")


def _validation(data: tp.Any) -> Data:
    if not isinstance(data, (tuple, list)) or not 1 <= len(data) <= 3:
        raise ValueError("validation_data must be a tuple (x, y) or (x, y, sample_weight).")
    return as_data(*data)


def _batched(data: Data, batch_size: int, order: np.ndarray | None = None) -> tuple[Iterator[Data], list[Data]]:
    """The batches, and an example of each shape that they have."""
    first = next(batches(data, batch_size))
    rest = data.size % first.size
    return batches(data, batch_size, order), [first, next(batches(data, rest))] if rest else [first]
