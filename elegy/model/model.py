"""`Model`: a module with what it takes to train it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
import typing as tp
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
import optax

from elegy.callbacks import Callback, History
from elegy.callbacks.calling import Callbacks, States
from elegy.callbacks.ema import Average
from elegy.callbacks.progress import PassLine, progress
from elegy.checkpoints import Checkpoints
from elegy.checkpoints.file import Path, Rename
from elegy.data import as_source
from elegy.dtype_policy import DtypePolicy
from elegy.errors import CheckpointError
from elegy.habits import attribute_of_model, optimizer_for
from elegy.layout import nodes_in
from elegy.model import batches, checkpointing, loop
from elegy.model.arguments import (
    give_policy,
    list_of,
    require_apart,
    require_optional,
    require_positive,
    require_unambiguous,
    require_unwatched,
    steps_before,
    validates_after,
    validation_of,
)
from elegy.model.batches import Feed
from elegy.model.data import (
    Data,
    LabelCheck,
    arguments_of,
    as_data,
    from_numbers,
    gives_batches,
    require_finite,
    split,
    with_class_weight,
)
from elegy.model.foreign import as_module, names_in_methods, used_by
from elegy.model.functional import Functional
from elegy.model.gradients import differentiated, value_fn, valued
from elegy.model.lr_find import LearningRates, find_rates
from elegy.model.objectives import Losses, Metrics, accepted, free_names, have_labels, require_targets
from elegy.model.optimizer import Optimizer, require_fixed, trainable_parameters
from elegy.model.program import Program
from elegy.model.steps import running, running_or_none
from elegy.module import Module
from elegy.random import RNG
from elegy.rendering import totals
from elegy.selections import select_trainable
from elegy.state import training_context, transact
from elegy.summaries import summary
from elegy.tables import Summary
from elegy.tracebacks import shortened

Arrays = tp.Any  # an array, or a tuple or dict of arrays
if tp.TYPE_CHECKING:
    Transformation = optax.GradientTransformation | Optimizer
    Schedulable = Callable[[tp.Any], Transformation]
else:
    Transformation = Schedulable = tp.Any  # other values are refused by messages of our own

_ARGUMENTS = ("module", "loss", "metrics", "optimizer", "seed", "donate")
_ASSIGNABLE = ("run_eagerly", "stop_training")
# What a model keeps for itself; any other attribute is one of a subclass.
_OWN = frozenset(
    ("_about_data", "_averages", "_constructed", "_covered", "_donates", "_history", "_holds_average", "_initial")
    + ("_losses", "_metrics", "_orders", "_position", "_programs", "_seed", "_states", "_steps", "_traced", "_turn")
    + ("_used",)
)
# Types of which equal values are the same constant.
_COMPARED = (bool, int, float, complex, str, bytes, type(None))


class Model:
    """Trains a module, evaluates it, and predicts with it.

    **Arguments:**

    - `module`: what to train. The model works on this very object: after `fit` it holds the trained parameters. A
      function, or a callable pytree of another library, such as a layer of Equinox, becomes a module; trainable modules
      that a function uses from outside are refused, since they would not be trained. Whichever has a parameter
      `training` is told whether it is being trained.
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
      under `jax.jit`; put such code under `if not elegy.is_initializing():`. In training steps it fails too, since
      arrays are those of `jax.grad` there; `print` shows their values.
    - `seed`: what is random derives from it: the initial parameters of a module that is not initialised, the order of
      the samples, dropout.

    - `donate`: whether a training step may use the memory of the parameters and of the optimiser's state again, so that
      they are there once. Arrays that were taken from the module before `fit`, or by a callback, stay. If it is the
      computation of a step that fails, as by a check on the device, the parameters are lost; with False, in twice the
      memory, they are then what they were at the begin of the epoch.
    - `policy`: an `elegy.DtypePolicy` for the module, to train in mixed precision: `module.dtype_policy = policy`.
      Losses and metrics get outputs of its `output_dtype`. A module that has another one already is refused. Given by
      keyword.

    The same seed and data give the same history, bit for bit, on the same machine.

    **Attributes:** `module`, `optimizer`, `run_eagerly`, `history` (of the last `fit`), `steps` (how many were made so
    far), and `stop_training`, which a callback may set. Of these `run_eagerly` and `stop_training` can be assigned; for
    another module, loss, metric or optimiser, construct another model.

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

    **Steps of one's own.** A subclass may define `pred_step`, `loss_step`, `train_step` or `test_step` in its own way.
    They are written as code without transforms is, with modules and hooks, and are compiled. Modules and optimisers
    that are attributes of the subclass take part. Other attributes to which methods refer are constants: assigning
    another value compiles the steps anew.

    ```python
    import elegy
    import jax.numpy as jnp
    import numpy as np
    import optax


    class Denoising(elegy.Model):
        def loss_step(self, x, y, sample_weight):
            noisy = x + 0.1 * jax.random.normal(elegy.next_rng_key(), x.shape)
            restored = self.pred_step(noisy)
            return jnp.mean((restored - x) ** 2), restored


    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(32, 2)
    model = Denoising(elegy.nn.Linear(2), optimizer=optax.adam(0.1))
    history = model.fit(x, epochs=20, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    ```
    """

    _constructed = False

    def __init__(
        self,
        module: tp.Any,
        loss: tp.Any = None,
        metrics: tp.Any = None,
        optimizer: Transformation | None = None,
        run_eagerly: bool = False,
        seed: int = 42,
        donate: bool = True,
        *,
        policy: DtypePolicy | None = None,
    ):
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be an integer that is not negative, got {seed!r}.")
        if isinstance(optimizer, str):
            raise TypeError(
                f"elegy.Model takes an Optax transformation, got {optimizer!r}.\n  {optimizer_for(optimizer)}"
            )
        optimizer = optax.adam(1e-3) if optimizer is None else optimizer
        self.module: Module = as_module(module)
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer)
        self.run_eagerly = run_eagerly
        self.stop_training = False
        self._history: History | None = None
        # Modules that a function uses, which has none of its own.
        self._used = used_by(module) if inspect.isfunction(module) else {}
        self._seed = int(seed)
        self._donates = donate
        self._losses = Losses(loss)
        self._metrics = Metrics(metrics, self._losses.names)
        # How many steps, and how many orders of samples, were made so far.
        self._steps = 0
        self._orders = 0
        self._initial = RNG(self._seed)
        self._programs: dict[tp.Any, Program] = {}
        self._traced = {"train": 0, "test": 0, "predict": 0}  # by programs that are gone
        self._averages: dict[float, Average] = {}
        # Whether the module has an average for a while, which is evaluated as it is.
        self._holds_average = False
        # For checkpoints: where the last `fit` is, or ended; on what data; and the states of its callbacks at the end.
        self._position: loop.Position | None = None
        self._about_data: Callable[[], dict[str, tp.Any]] = dict
        self._states: Callable[[], States] = dict
        # What was trainable when the state of the optimiser was fitted to that; None if it never was since its begin.
        self._covered: list[tp.Any] | None = None
        # Held while a step is given the arrays of the modules, until the modules have the new ones.
        self._turn = threading.RLock()
        if policy is not None:
            give_policy(self.module, policy)
        self._constructed = True

    def __setattr__(self, name: str, value: tp.Any) -> None:
        if name in _OWN:  # first, since each step counts
            object.__setattr__(self, name, value)
            return
        is_own = type(self) is not Model and name not in _ARGUMENTS  # a subclass may have attributes besides
        if self._constructed and not (name in _ASSIGNABLE or is_own):
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be assigned: the model goes on with what it was constructed "
                f"with. What can be assigned: {', '.join(_ASSIGNABLE)}.\n"
                "  Construct a new one: elegy.Model(module, loss=..., metrics=..., optimizer=...)."
            )
        old = inspect.getattr_static(self, name, None)
        super().__setattr__(name, value)
        if self._constructed and name not in _ASSIGNABLE and name in names_in_methods(type(self), Model):
            self._forget(old, value)

    if not tp.TYPE_CHECKING:

        def __getattr__(self, name):
            # Reached only by names that are not there.
            hint = attribute_of_model(name)
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{message}.\n  {hint}" if hint else message, name=name, obj=self)

    def _forget(self, old: tp.Any, new: tp.Any) -> None:
        """Steps are compiled anew after an attribute has changed: it is a constant of theirs."""
        is_same = new is old or (type(new) is type(old) and isinstance(new, _COMPARED) and new == old)
        if is_same or running_or_none(self) is not None:  # a step may note what it likes
            return
        if nodes_in([old, new]):
            self._traced.update(self.traces)
            self._programs.clear()
        for program in self._programs.values():
            program.forget()

    @property
    def steps(self) -> int:
        """How many training steps were made so far."""
        return self._steps

    @property
    def traces(self) -> dict[str, int]:
        """How many times the steps `"train"`, `"test"` and `"predict"` were traced, to be compiled then."""
        found = dict(self._traced)
        for program in self._programs.values():
            found[program.kind] += program.traces
        return found

    @property
    def history(self) -> History | None:
        """What the last `fit` returned, or has noted before an exception; None before the first."""
        return self._history

    # -----------------------------------------------------------------------------------------------------------------
    # Steps, which a subclass may define in its own way
    # -----------------------------------------------------------------------------------------------------------------

    def pred_step(self, x: tp.Any) -> tp.Any:
        """The outputs for a batch: of the module, called with `x`."""
        args, kwargs = arguments_of(self.module, x)
        return self.module(*args, **kwargs)

    def loss_step(self, x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> tp.Any:
        """What is minimised.

        **Returns:** a scalar, or a dict of scalars by name, whose sum is minimised; and the outputs, which metrics get:
        `(loss, y_pred)`. What is declared by `elegy.add_loss` is added.
        """
        y_pred = self.pred_step(x)
        return self.compute_losses(x, y, y_pred, sample_weight), y_pred

    def train_step(self, x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> dict[str, tp.Any]:
        """One step of training. It changes modules and optimisers in place.

        **Returns:** what is logged of the batch: scalars, by name.
        """
        extra: dict[str, tp.Any] = {}
        if self.optimizer.takes_functions:
            extra["value_fn"] = self._value_fn(self.loss_step, Data(x, y, sample_weight))
        (values, y_pred), gradients = self.value_and_grad(self.loss_step)(x, y, sample_weight)
        require_fixed(self.module, self._losses.by_place())
        extra |= {"value": values["loss"]} | ({"grad": gradients} if extra else {})
        self.optimizer.update(self.module, gradients, **extra)
        return values | self.compute_metrics(x, y, y_pred, sample_weight)

    def test_step(self, x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> dict[str, tp.Any]:
        """Losses and metrics of a batch that is not trained on.

        **Returns:** what is logged of the batch: scalars, by name.
        """
        values, y_pred = valued(self.loss_step, running(self, "test_step").notes)(x, y, sample_weight)
        return values | self.compute_metrics(x, y, y_pred, sample_weight)

    def compute_losses(self, x: tp.Any, y: tp.Any, y_pred: tp.Any, sample_weight: tp.Any) -> dict[str, tp.Any]:
        """The losses that were given to the model, by name: scalars.

        A step that returns them as they are logs them exactly: those with a divisor of their own, as of
        `reduction="mean_with_sample_weight"` or with `ignore_class`, are means over all weights or labels of an epoch,
        and those with `reduction="sum"` are sums over it. What is computed of them, their sum included, is averaged
        over samples as any other number, and for such losses it depends on the size of the batches. A `loss_step` that
        returns this dict has an exact total, also in `super().test_step`.
        """
        inputs = self._inputs(self._losses, x, y, y_pred, sample_weight)
        values, known = self._losses(**inputs)
        if (step := running_or_none(self)) is not None:
            step.find_labels(self._losses, inputs)
            for name, about in known.items():
                step.notes.note(values[name], about)
        return values

    def compute_metrics(self, x: tp.Any, y: tp.Any, y_pred: tp.Any, sample_weight: tp.Any) -> dict[str, tp.Any]:
        """Updates the metrics that were given to the model. It is called once in a `train_step` or `test_step`.

        **Returns:** the values of those metrics that are averaged over batches. Those that add up by themselves are
        logged without being returned.
        """
        step = running(self, "compute_metrics")
        inputs = self._inputs(step.metrics, x, y, y_pred, sample_weight)
        of_batch, so_far = step.metrics(**inputs)
        step.so_far = free_names(so_far, {*step.notes.names, *of_batch})
        step.find_labels(step.metrics, inputs)
        return free_names(of_batch, {*step.notes.names, *step.so_far})

    def value_and_grad(
        self, function: Callable[..., tp.Any], modules: tp.Any = None, where: tp.Any = None
    ) -> Callable[..., tp.Any]:
        """As `elegy.value_and_grad`, for a `train_step`: with `fit(accumulate=k)` it goes through a batch in `k` parts,
        whose activations are not there at the same time.

        **Arguments:**

        - `function`: takes `x`, `y` and `sample_weight`, and returns what `loss_step` returns.
        - `modules`: what to differentiate with respect to: a module, or a list, tuple or dict of modules. The default
          is the module of the model, and of that what its optimiser updates.
        - `where`: which parts of them, as for `elegy.value_and_grad`.

        **Returns:** a function of `x`, `y` and `sample_weight` that gives `(values, y_pred), gradients`: under
        `values["loss"]` the total, and beside it what is to be logged.
        """
        step = running(self, "value_and_grad")
        at = self.module if modules is None else modules

        def parameters_fn(everything: tp.Any) -> tp.Any:
            if where is not None:
                return select_trainable(at, where).get()
            return self.optimizer.parameters(at) if modules is None else trainable_parameters(at)

        return differentiated(function, [at, self._modules("train")], parameters_fn, step.notes, step.part)

    def _value_fn(self, function: Callable[..., tp.Any], data: Data) -> Callable[[tp.Any], tp.Any]:
        return value_fn(function, self.module, self._modules("train"), data, running(self, "train_step").notes)

    def _inputs(
        self, objectives: Losses | Metrics, x: tp.Any, y: tp.Any, y_pred: tp.Any, sample_weight: tp.Any
    ) -> dict[str, tp.Any]:
        """What losses or metrics may ask for. Parameters are many, and in an error message too: only if one does."""
        inputs = {"x": x, "y_true": y, "y_pred": y_pred, "sample_weight": sample_weight}
        if any("parameters" in accepted(function) for function in objectives.functions):
            inputs["parameters"] = self.module.get_parameters(trainable=True)
        return inputs

    # -----------------------------------------------------------------------------------------------------------------
    # What runs steps
    # -----------------------------------------------------------------------------------------------------------------

    def _others(self) -> dict[str, tp.Any]:
        """What a subclass has as attributes that are, or hold, modules."""
        own = {name: value for name, value in vars(self).items() if name not in _OWN and name not in _ARGUMENTS}
        return {name: value for name, value in own.items() if nodes_in(value)}

    def _modules(self, kind: str) -> list[tp.Any]:
        """All modules that a kind of step uses."""
        others = [node for node in nodes_in(self._others()) if kind == "train" or not isinstance(node, Optimizer)]
        optimizers = [self.optimizer] if kind == "train" or self._has_evaluation_parameters() else []
        if kind == "predict":
            return [self.module, *optimizers, *others]
        return [self.module, self._losses, *optimizers, *others]

    def _has_evaluation_parameters(self) -> bool:
        """Whether the optimiser says that the module is evaluated with other parameters than it trains. What a
        `train_step` of one's own updates with it is looked for."""
        optimizer = self.optimizer
        if self._holds_average or not optimizer._schedule_free:
            return False
        return type(self).train_step is Model.train_step or optimizer._is_of(self.module)

    def _begin_averages(self) -> None:
        """After the module was given parameters that training did not make: they are to be evaluated, and what a
        schedule-free optimiser averages begins with them."""
        if self._has_evaluation_parameters():
            parameters = jax.tree_util.tree_flatten_with_path(self.module.get_parameters())[0]
            self.optimizer._move({jax.tree_util.keystr(path): leaf for path, leaf in parameters})

    def _program(
        self,
        kind: str,
        part: int | None = None,
        is_many: bool = False,
        donates: bool = False,
        followers: Sequence[tp.Any] = (),
    ) -> Program:
        """The compiled step of a kind, which is kept. The arguments are those of `Program`."""
        modules = self._modules(kind)
        key = kind, part, is_many, donates, tuple(map(id, [*modules, *followers]))
        with self._turn:
            found = self._programs.get(key)
            if found is None:
                found = Program(self, kind, modules, self._seed, self._initial, donates, part, is_many, followers)
                self._programs[key] = found
        return found

    def _adapt(self) -> None:
        """Fits the state of the optimiser to what is trainable now. What a `train_step` of one's own updates with it is
        not known here."""
        if not self.module.initialized:
            return
        if type(self).train_step is Model.train_step:
            before = self.optimizer.state if self.optimizer.initialized else None
            self.optimizer.adapt(self.module)
            if before is not None and self.optimizer.state is not before:
                self._covered = checkpointing.flags(self)
        for average in self._averages.values():
            average.adapt(self.module)

    def _average(self, decay: float | int) -> Average:
        """The moving average of the parameters that training steps update. It is one for all callbacks, so that steps
        are not compiled again for a new one."""
        return self._averages.setdefault(float(decay), Average(decay))

    def _has_default_steps(self, kind: str) -> bool:
        """Whether a kind of step is computed from `pred_step` and `loss_step`, and by nothing else."""
        names = {"train": ("train_step", "test_step"), "test": ("test_step",)}.get(kind, ())
        return all(getattr(type(self), name) is getattr(Model, name) for name in names)

    def _next_order(self, size: int | None) -> np.ndarray | None:
        """The order of the samples in the epoch that begins: a function of the seed and of how many there were. None
        if they are not to be shuffled."""
        number, self._orders = self._orders, self._orders + 1
        return None if size is None else np.random.default_rng([self._seed, number]).permutation(size)

    def _feed(
        self,
        x: Arrays,
        y: Arrays | None,
        sample_weight: tp.Any,
        batch_size: int | None,
        *,
        class_weight: tp.Any = None,
        joined: int = 1,
        together: int = 1,
        most: int | None = None,
        single_pass: bool = False,
        epoch: int = 0,
        check: LabelCheck | None = None,
        of: str = "",
    ) -> Feed:
        """The batches of data: `joined` of them make one of a step, and `together` steps are one loop. `of` follows
        `sample_weight` in messages."""

        def transform(data: Data, on_device: bool = False) -> Data:
            data = require_finite(data, of, on_device)
            return with_class_weight(data if check is None else check(data), class_weight, check is not None)

        if not gives_batches(x):
            data = transform(self._data(x, y, sample_weight), on_device=True)
            return batches.Arrays(data, batch_size or 32, joined, together, most=most)
        steps = None if most is None else most * joined
        source = as_source(x, steps_per_epoch=steps, batch_size=batch_size, single_pass=single_pass)
        if y is not None or sample_weight is not None:
            raise ValueError(
                "x gives batches, and y or sample_weight was given besides: a batch is (x, y) or (x, y, sample_weight)."
            )
        return batches.Stream(source, joined, together, transform, epoch=epoch, is_cut=most is not None)

    def _validation_feed(
        self, data: tp.Any, batch_size: int | None, steps: int | None, check: LabelCheck | None
    ) -> Feed:
        """Batches to validate on, of a tuple (x, y) or (x, y, sample_weight), or of what gives batches."""
        parts = (data,) if gives_batches(data) else validation_of(data)
        x, y, sample_weight = (*parts, None, None)[:3]
        if steps is None and isinstance(data, Iterator):
            raise ValueError(
                f"validation_data is an iterator, a {type(data).__name__}, which can be gone through once only: give "
                "validation_steps, or a function without arguments that makes the iterator anew for each validation."
            )
        single_pass, of = steps is not None, " of the validation data"
        try:
            return self._feed(x, y, sample_weight, batch_size, most=steps, single_pass=single_pass, check=check, of=of)
        except (TypeError, ValueError) as error:
            error.add_note("It is validation_data that this is about.")
            raise

    def _label_check(self, name: str = "y", class_weight: tp.Any = None) -> LabelCheck | None:
        return LabelCheck(name, class_weight) if have_labels(self._losses, self._metrics) else None

    def _require_labels(self, program: Program, feed: Feed, *checks: LabelCheck | None) -> None:
        """Refuses labels that are no classes of what the module predicts, before a step runs."""
        if any(check is not None for check in checks):
            with self._turn:
                labels = program.prepare(feed.example()).labels
            for check in checks:
                if check is not None:
                    check.learn(labels)

    def fit(
        self,
        x: Arrays,
        y: Arrays | None = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        verbose: int = 1,
        callbacks: Iterable[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: tp.Any = None,
        shuffle: bool | None = None,
        sample_weight: tp.Any = None,
        initial_epoch: int = 0,
        class_weight: tp.Any = None,
        validation_freq: tp.Any = 1,
        *,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        max_steps: int | None = None,
        validate_every: int | None = None,
        sanity_steps: int = 0,
        overfit_batches: int | None = None,
        fast_dev_run: bool | int = False,
        accumulate: int = 1,
        steps_per_execution: int = 1,
        resume: Path | None = None,
    ) -> History:
        """Trains.

        **Arguments:**

        - `x`: the inputs: an array whose first axis is that of the samples, or numbers in nested lists; a tuple of
          arrays for a module that takes several arguments, where Keras takes a list; a dict for one that takes them by
          keyword. Where all arrays are those of JAX they stay on the device, and a compiled step picks the samples of
          its batch. Or something that gives batches, `x`, `(x, y)` or `(x, y, sample_weight)`: whatever
          `elegy.data.as_source` takes. Then there is no `y`.
        - `y`: the targets, an array, tuple or dict as losses and metrics take it.
        - `batch_size`: how many samples make a batch, 32 by default. The last batch of an epoch has what remains. It is
          filled up with samples that do not count, so that nothing is compiled for it; unless the loss, a metric or the
          module may make a difference then, which an analysis of the traced step tells.
        - `epochs`: how many epochs there are, counted from 0: training makes those from `initial_epoch` on. The default
          is 1, or with `max_steps` as many as it takes.
        - `verbose`: 0 shows nothing; 1 a line that is kept up to date if the output is a terminal or a notebook, and
          otherwise, as 2, a line for each epoch.
        - `callbacks`: instances of `elegy.callbacks.Callback`, called in this order.
        - `validation_split`: the fraction of samples, the last ones, to validate on instead of training on them. They
          are taken before shuffling, so sorted data must be shuffled before.
        - `validation_data`: `(x, y)` or `(x, y, sample_weight)` to validate on after each epoch, or something that
          gives batches.
        - `shuffle`: whether to draw a new order for each epoch, as is the default for arrays. Batches come as they are.
        - `sample_weight`: an array with a weight for each sample, or for each value; or, where there are several
          outputs, a dict or tuple of them, or of None, of which losses and metrics take what their `on` says. Losses of
          Elegy divide by the number of samples, not by the sum of weights; metrics, functions among them, give weighted
          means. A metric object that takes no `sample_weight` counts all samples alike. Weights are finite. They may
          be negative, as advantages of a policy gradient are, whose loss is `-sum(advantage * log_probability)`; a
          mean that is divided by the sum of such weights says little, as those of metrics are.
        - `initial_epoch`: how many epochs were made before. Of a model that has not trained yet these are taken to be
          epochs of another process, on the same number of samples with the same `batch_size`: it goes on with the
          order of samples and the random numbers that come next. If nobody knows how many batches an epoch has, that is
          an error, and `resume` is the way.
        - `class_weight`: a weight for each class, as a dict from labels to weights (a class that is not in it weighs
          1) or as a list. Each sample, or each label of it, weighs as much as its class, times `sample_weight`. `y` is
          one array of labels, or of one-hot rows. Validation data are not weighted so.
        - `validation_freq`: after every how many epochs to validate; or a list of the epochs after which to validate,
          counted from 1. Other epochs have `nan` in the history.
        - `steps_per_epoch`, `validation_steps`: how many steps, or batches of validation, a pass has, if not all.
        - `validation_batch_size`: how many samples make a batch of validation; the default is `batch_size`.
        - `max_steps`: at how many steps to end, counted as epochs are, from the first step of epoch 0; also within an
          epoch. A step is one update of the parameters.
        - `validate_every`: after how many steps, counted likewise, to validate besides. The values of an epoch are
          those of the last validation in it.
        - `sanity_steps`: on how many batches of the validation data to try the validation before all else, so that a
          mistake there is found at once. An iterator loses none by it.
        - `overfit_batches`: trains on the first so many batches alone, in their order: a model that is right can learn
          them by heart.
        - `fast_dev_run`: True, or a number of batches: one epoch of so many batches, of training and of validation, and
          nothing is written by callbacks, nor is a checkpoint read. It tries whether everything runs.
        - `accumulate`: how many batches of `batch_size` make one step: its gradients are those of all of them, for each
          `reduction` of a loss, and the memory of activations is that of one. Layers that look at a whole batch, as
          `BatchNormalization` does, look at one of `batch_size`, and losses that do are refused. What `elegy.add_loss`
          declares, and a `loss_step` of your own makes, is averaged over samples.
        - `resume`: a directory of checkpoints, as `elegy.callbacks.ModelCheckpoint` and `save` write them. Training
          goes on from the newest one that is complete, in the middle of an epoch too, as if it had not been
          interrupted, bit for bit; or it begins, if there is none. The model, the data and the callbacks are made as
          they were then.
        - `steps_per_execution`: how many steps to compile as one loop, which runs on the device without Python. It is
          for small steps; callbacks see the last batch of each loop.

        **Returns:** the `History`: `history.history["loss"]` is a list with a float for each epoch. The values of an
        epoch are means over samples, taken while the parameters change; those of a `Metric` are its own. A loss whose
        mean is over the weights, or over the values that it does not ignore, is so over the epoch too; one with
        `reduction="sum"` is the sum over all samples of the epoch.

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
        callbacks = list_of(callbacks)
        shown = progress(verbose)
        require_optional(
            batch_size=batch_size,
            max_steps=max_steps,
            validate_every=validate_every,
            overfit_batches=overfit_batches,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
        )
        for name, value in {"accumulate": accumulate, "steps_per_execution": steps_per_execution}.items():
            require_positive(name, value)
        epochs = 1 if epochs is None and max_steps is None else epochs
        for name, value in {"epochs": epochs, "initial_epoch": initial_epoch, "sanity_steps": sanity_steps}.items():
            if value is not None:
                require_positive(name, value, least=0)
        if shuffle not in (True, False, None):
            raise TypeError(f"shuffle is True, False or None, got {shuffle!r}.")
        if gives_batches(x):
            if validation_split:
                raise ValueError("validation_split is for arrays: give validation_data=, which may give batches too.")
            if shuffle:
                raise ValueError("x gives batches, which are not shuffled here: shuffle where they are made.")
        validation: tp.Any = validation_data
        if validation_split:
            if validation_data is not None:
                raise ValueError("validation_split and validation_data were both given: give one of them.")
            (x, y, sample_weight), validation = split(self._data(x, y, sample_weight), validation_split)
        if accumulate > 1:
            require_apart(self._losses)
        feed = self._feed(
            x,
            y,
            sample_weight,
            batch_size,
            class_weight=class_weight,
            joined=accumulate,
            together=steps_per_execution,
            most=steps_per_epoch,
            single_pass=steps_per_epoch is None and (bool(fast_dev_run) or epochs == initial_epoch + 1),
            epoch=initial_epoch,
            check=(check := self._label_check(class_weight=class_weight)),
        )
        if steps_per_epoch is not None and feed.source is None and (feed.steps or 0) < steps_per_epoch:
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch}, and the {feed.samples} samples make {feed.steps} steps.\n"
                "  Leave it out to train on all of them."
            )
        tested: Feed | None = None
        of_validation = self._label_check("y of the validation data")
        if validation is not None:
            require_unambiguous(x, validation)
            size = validation_batch_size or (None if gives_batches(validation) else batch_size)
            tested = self._validation_feed(validation, size, validation_steps, of_validation)
            if sanity_steps and isinstance(tested, batches.Stream) and tested.is_one_shot:
                tested = tested.given_twice()
        if tested is None:
            options = {"validate_every": validate_every, "validation_steps": validation_steps}
            options |= {"validation_batch_size": validation_batch_size, "sanity_steps": sanity_steps}
            for name, value in options.items():
                if value:
                    raise ValueError(f"{name} was given, and there are no validation data: give validation_data=.")
        if overfit_batches is not None:
            feed, shuffle = feed.repeated(overfit_batches), False
        if fast_dev_run:
            number = 1 if fast_dev_run is True else fast_dev_run
            require_positive("fast_dev_run", number)
            feed, tested = feed.first(number), None if tested is None else tested.first(number)
            epochs, initial_epoch, max_steps, validation_freq = 1, 0, None, 1
            callbacks, resume = [callback for callback in callbacks if not callback.writes], None
        validates = validates_after(validation_freq)
        is_validated = tested is not None and (
            validate_every is not None or epochs is None or any(map(validates, range(initial_epoch, epochs)))
        )
        if not is_validated and tested is not None and max(epochs or 0, initial_epoch) > initial_epoch:
            require_unwatched(callbacks, f"validation_freq={validation_freq!r} leaves out each of the {epochs} epochs")
        if resume is not None and initial_epoch:
            raise ValueError("resume= and initial_epoch= were both given: a checkpoint says which epoch comes next.")
        begins = loop.Position(initial_epoch, done=steps_before(initial_epoch, feed.steps, self._steps))
        params = {
            "epochs": epochs,
            "initial_epoch": initial_epoch,
            "batch_size": batch_size or 32,
            "samples": feed.samples,
            "steps": feed.steps,
        }
        plan = loop.Plan(
            epochs,
            initial_epoch,
            max_steps,
            validates,
            validate_every,
            sanity_steps,
            shuffle is not False and feed.source is None,
        )
        history, before = History(), self.stop_training
        everything = Callbacks([history, *callbacks, *shown], self, params)
        is_new, failed = self._steps == 0, True
        try:
            with shortened():
                position = self._resumed(resume, feed, plan.shuffle, tested, everything)
                if position is not None:
                    params |= {"initial_epoch": position.epoch, "resumes": True}
                program = loop.training_program(self, feed, everything, plan)
                with program.tracing.telling(None if self.run_eagerly else everything.compiling):
                    self._require_labels(program, feed, check, of_validation)
                self._history, self.stop_training = history, False
                self._position = self._begun(begins) if position is None else position
                self._about_data = functools.partial(checkpointing.about_data, feed, plan.shuffle, tested)
                self._states = everything.states
                loop.fit(self, feed, tested, everything, plan, self._position)
                failed = False
        finally:
            # A callback may have called `fit` in between, or itself be called by a `fit`.
            self._history, self.stop_training = history, before
            if failed and is_new and self._steps == begins.done:  # nothing was trained
                self._steps = self._orders = 0
            try:
                about = checkpointing.about_data(feed, plan.shuffle, tested)  # the model shall not keep the data
                self._about_data, self._states = lambda: about, dict
                # After a step that failed arrays of callbacks may be lost: that error is the one to be told.
                with contextlib.suppress(*[Exception] * failed):
                    states = everything.states()
                    self._states = lambda: states
            finally:
                everything.close()
        return history

    def save(self, directory: Path) -> None:
        """Writes a checkpoint: parameters, state, the optimiser, and how far the model has trained.

        **Arguments:**

        - `directory`: of an `elegy.Checkpoints`, in which the checkpoint is one of those that are there. `fit(...,
          resume=directory)` goes on from it.

        **Raises:** `CheckpointError` for what cannot be saved; `OSError` if it cannot be written.

        ```python
        import elegy
        import numpy as np

        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
        model.fit(x, 2 * x, epochs=2, verbose=0)
        model.save("trained")

        other = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
        other.load("trained", x, 2 * x)
        assert (other.predict(x) == model.predict(x)).all() and other.steps == model.steps
        ```
        """
        with shortened(), self._turn:
            tree, about = checkpointing.snapshot(self, self._position, self._states(), self._about_data())
            with Checkpoints(directory, keep=None) as store:
                checkpointing.warn_of_score(store, self._steps)
                store.save(self._steps, tree, about, wait=True)

    def load(
        self,
        directory: Path,
        x: Arrays | None = None,
        y: Arrays | None = None,
        *,
        step: int | None = None,
        weights_only: bool = False,
        strict: bool = True,
        rename: Rename | None = None,
    ) -> None:
        """Takes what a checkpoint holds: of `save`, or of `elegy.callbacks.ModelCheckpoint`.

        **Arguments:**

        - `directory`: where the checkpoints are.
        - `x`, `y`: a batch, of which only the shapes matter, for a model that is not initialised: it has to be.
        - `step`: which checkpoint; the default is the newest that is complete.
        - `weights_only`: whether to take parameters and state of the module alone, for another training.
        - `strict`, `rename`: as for `elegy.load`.

        **Raises:** `CheckpointError`, with all that does not fit. Then nothing has changed.
        """

        def take() -> None:
            if x is not None:
                self._initialise(batches.Arrays(self._data(x, y, None), 32))
            if not self.module.initialized:
                raise CheckpointError(
                    f"{type(self).__name__}.load: the module is not initialised, so it has no parameters to give "
                    "values to.\n  Give load a batch too, model.load(directory, x, y), of which only the shapes matter."
                )
            if not weights_only and not self.optimizer.initialized:
                self._adapt()
            checkpointing.load(self, directory, step, weights_only, strict, rename)
            if weights_only:
                self._begin_averages()

        with shortened(), self._turn:
            checkpointing.unless_it_fails(self, take)

    def _resumed(
        self, directory: Path | None, feed: Feed, shuffle: bool, validation: Feed | None, callbacks: Callbacks
    ) -> loop.Position | None:
        """Takes the newest checkpoint. **Returns:** from where to go on, or None if there is no checkpoint."""
        if directory is None:
            return None
        initialise = functools.partial(self._initialise, feed)
        given = self, directory, feed, shuffle, validation, callbacks, initialise
        return checkpointing.unless_it_fails(self, lambda: checkpointing.resumed(*given))

    def _begun(self, position: loop.Position) -> loop.Position:
        """Where a training without a checkpoint begins. A new model counts the steps and orders of epochs before."""
        if self._steps == 0:
            self._steps, self._orders = position.done, position.epoch
        return dataclasses.replace(position, order=self._orders)

    def _initialise(self, feed: Feed) -> None:
        """Creates parameters, and the state of the optimiser."""
        self._program("train", feed.part, feed.is_many).prepare(feed.example())

    def _snapshot(self, position: loop.Position, states: States) -> tuple[tp.Any, tp.Any]:
        """What a checkpoint in the middle of `fit` holds."""
        return checkpointing.snapshot(self, position, states, self._about_data())

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
        data = require_finite(self._data(x, y, sample_weight))
        if (check := self._label_check(class_weight=class_weight)) is not None:
            check(data)
        feed = batches.Arrays(with_class_weight(data, class_weight, check is not None), data.size)
        with shortened():
            eagerly = self.run_eagerly
            program = self._program("train", donates=self._donates and not eagerly)
            self._adapt()
            self._require_labels(program, feed, check)
            with self._turn:
                carry = program.start(feed.example())
                if self._donates:
                    program.renew()
                ((_, batch),) = feed.batches()
                carry = program(carry, batch, self._steps, eagerly)
                self._steps += 1
            return carry.logs()

    def test_on_batch(self, x: Arrays, y: Arrays | None = None, sample_weight: tp.Any = None) -> dict[str, float]:
        """The losses and metrics of one batch: `evaluate` of all of it at once."""
        return self.evaluate(x, y, max(as_data(x).size, 1), sample_weight)

    def predict_on_batch(self, x: Arrays) -> tp.Any:
        """The outputs of the module for one batch: `predict` of all of it at once."""
        return self.predict(x, max(as_data(x).size, 1))

    def evaluate(
        self,
        x: Arrays,
        y: Arrays | None = None,
        batch_size: int | None = None,
        sample_weight: tp.Any = None,
        verbose: int = 0,
        callbacks: Iterable[Callback] | None = None,
        steps: int | None = None,
    ) -> dict[str, float]:
        """The losses and metrics of data, with `elegy.training()` false. The model stays as it is, but a module that is
        not initialised yet gets its parameters.

        **Arguments:** as for `fit`. `steps` is how many batches to take, if not all. `verbose` is 0, which shows
        nothing, or else a line at the end, which 1 keeps up to date meanwhile if the output is a terminal or a
        notebook. Of `callbacks` the hooks named `on_test_` are called.

        **Returns:** a float for each name: means over samples, and sums of losses with `reduction="sum"`; the values of
        a `Metric` are its own. Without any loss there is no `"loss"`.
        """
        require_optional(batch_size=batch_size, steps=steps)
        callbacks = list_of(callbacks)
        check = self._label_check()
        feed = self._feed(x, y, sample_weight, batch_size, most=steps, single_pass=True, check=check)
        params = {"batch_size": batch_size or 32, "samples": feed.samples, "steps": feed.steps}
        line = PassLine("Evaluate", feed.steps, verbose)
        everything = Callbacks([*callbacks, *line.callbacks()], self, params)
        with shortened(), line.shown() as logs:
            try:
                self._require_labels(self._program("test", is_many=feed.is_many), feed, check)
                logs.update(loop.evaluate(self, feed, everything))
            finally:
                everything.close()
        return logs

    def predict(self, x: Arrays, batch_size: int | None = None, verbose: int = 0, steps: int | None = None) -> tp.Any:
        """The outputs of the module, with `elegy.training()` false. The model stays as it is, but a module that is not
        initialised yet gets its parameters.

        **Arguments:** as for `fit`, of batches the inputs `x`; `steps` and `verbose` as for `evaluate`.

        **Returns:** what the module returns, in NumPy arrays for all samples. Several threads may predict at once.
        Where the module draws random numbers, they are the same in each call.
        """
        require_optional(batch_size=batch_size, steps=steps)
        if gives_batches(x):
            feed = self._feed(x, None, None, batch_size, most=steps, single_pass=True)
        else:
            feed = batches.Arrays(as_data(x), batch_size or 32, most=steps)
        line = PassLine("Predict", feed.steps, verbose)
        with shortened(), line.shown():
            return loop.predict(self, feed, line)

    def functional(self) -> Functional:
        """The steps of the model as pure functions of one state, for loops of one's own under `jax.jit`,
        `jax.lax.scan`, `jax.vmap` and others. They compute what `fit` computes, with the same random keys; steps that a
        subclass defines are among them.

        **Returns:** an object with

        - `init(x, y, sample_weight=None) -> state`, for a batch. What the model lacks of parameters is created, in the
          model as well; so it is called outside of transforms the first time.
        - `train_step(state, x, y, sample_weight=None) -> (state, logs)`,
          `eval_step(state, x, y, sample_weight=None) -> logs` and `predict(state, x) -> outputs`, which are pure.
          `logs` are scalar arrays, by name: means over the batch; an `elegy.metrics.Metric` gives its value for all
          batches of training since the beginning, or since `state = reset_metrics(state)`.
        - `read() -> state` and `write(state)`: out of the model, and into it, in copies.

        A state is a pytree of the arrays of `module`, `optimizer`, `losses`, `metrics` and `others`, in the form of
        `get_parameters()`, and of `step`, the number of steps so far. What is no array is that of the model. If a part
        of the model is frozen, or its structure changes otherwise, `read` the state again.

        ```python
        import elegy
        import jax
        import numpy as np
        import optax

        x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8, 1)  # eight batches of eight samples
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        functional = model.functional()
        state = functional.init(x[0], 2 * x[0])


        def step(state, batch):
            return functional.train_step(state, *batch)


        state, logs = jax.jit(lambda state: jax.lax.scan(step, state, (x, 2 * x)))(state)
        assert logs["loss"].shape == (8,)
        assert functional.eval_step(state, x[0], 2 * x[0])["loss"] < logs["loss"][0]
        functional.write(state)
        assert model.steps == 8
        ```
        """
        return Functional(self)

    def lr_find(
        self,
        x: Arrays,
        y: Arrays | None = None,
        *,
        optimizer: Schedulable = optax.adam,
        start: float | int = 1e-7,
        end: float | int = 10.0,
        steps: int = 100,
        batch_size: int | None = None,
        sample_weight: tp.Any = None,
        class_weight: tp.Any = None,
    ) -> LearningRates:
        """Tries learning rates: trains for some steps while the rate rises from `start` to `end`, by the same factor
        from step to step, and looks at which rates the loss falls (Smith, *Cyclical Learning Rates for Training Neural
        Networks* (2017), section 3.3). It ends early when the loss explodes.

        Nothing of it remains: the module, the optimiser and the random numbers are what they were, and a module that
        was not initialised is not.

        **Arguments:**

        - `x`, `y`, `batch_size`, `sample_weight`, `class_weight`: as for `fit`. Samples come in a random order, as
          often as it takes. Batches of fewer than `batch_size` are left out, if there are others.
        - `optimizer`: a function that makes a transformation of a learning rate, which is a schedule. It takes the
          place of the optimiser of the model; which parameters are updated stays as it is.
        - `start`, `end`: the first rate, and that of the last step.
        - `steps`: how many rates to try.

        **Returns:** an `elegy.model.LearningRates`: `rates` and `losses`, the `suggestion` of a rate, or None and a
        `reason`, and `plot()`.

        **Raises:** `ValueError` or `TypeError` for arguments that do not fit together.

        ```python
        import elegy
        import numpy as np
        import optax

        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
        found = model.lr_find(x, 3 * x, optimizer=optax.sgd, batch_size=16)
        assert 1e-4 < found.suggestion < 10
        assert not model.module.initialized
        model = elegy.Model(model.module, loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(found.suggestion))
        ```
        """
        require_optional(batch_size=batch_size)
        require_positive("steps", steps, least=2)
        check = self._label_check(class_weight=class_weight)
        feed = self._feed(x, y, sample_weight, batch_size, class_weight=class_weight, check=check)
        with shortened():
            return find_rates(self, feed, check, optimizer, float(start), float(end), steps)

    def reset(self) -> None:
        """Goes back to what the model was when it was constructed: parameters that first runs created are gone, and
        with them the state of the optimiser, the metrics, the history, and the counts of steps and epochs, so that the
        next `fit` draws and computes the same as the first. What was compiled stays, and is used again.

        That is so also for a module that had run before the model was constructed: its next parameters are drawn from
        the `seed` of the model. Arrays that are there before any run, such as those that `__init__` makes or a module
        of another library brings, keep the values that they have now.

        ```python
        import elegy
        import numpy as np

        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
        first = model.fit(x, 2 * x, epochs=2, verbose=0)
        model.reset()
        assert model.steps == 0 and not model.module.initialized
        assert model.fit(x, 2 * x, epochs=2, verbose=0).history == first.history
        ```
        """

        def forget() -> None:
            for node in [*self._modules("train"), self._metrics]:
                node.reset()

        with self._turn:
            transact(forget)
            self._averages.clear()
            self._initial.restore(RNG(self._seed).snapshot())
            self._steps = self._orders = 0
            self._history, self.stop_training = None, False
            self._position, self._about_data, self._states, self._covered = None, dict, dict, None

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
        with training_context(False):
            args, kwargs = arguments_of(self.module, from_numbers(x))
            return summary(self.module, *args, **kwargs)

    def __repr__(self) -> str:
        names = f"losses=[{', '.join(self._losses.names)}], metrics=[{', '.join(self._metrics.names)}]"
        made = f"optimizer={type(self.optimizer).__name__}, steps={self._steps}"
        return f"{type(self).__name__}(module={type(self.module).__name__}, {names}, {made})"

    def __str__(self) -> str:
        """What it was made of, how far it has trained, and the module as `print` shows it."""
        losses, metrics = self._losses.names, self._metrics.names
        return "\n".join(
            [
                f"{type(self).__name__} after {self._steps} steps",
                f"  losses: {', '.join(losses) or 'those of add_loss'}",
                f"  metrics: {', '.join(metrics) or 'none'}",
                f"  optimizer: {type(self.optimizer).__name__}. {totals(self.optimizer)}",
                str(self.module),
            ]
        )

    def _data(self, x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> Data:
        data = as_data(x, y, sample_weight)
        require_targets(self._losses, self._metrics, x, y)
        return data
