"""Training, from the first epoch to the last: passes over data, batch by batch, with what callbacks see of them."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import typing as tp
from collections.abc import Callable, Iterator

import jax
import numpy as np

from elegy.callbacks.calling import Callbacks, EpochLogs, LazyLogs
from elegy.callbacks.progress import PassLine
from elegy.hooks import numbered
from elegy.model.batches import Arrays, Feed
from elegy.model.steps import Program
from elegy.transaction import structure

if tp.TYPE_CHECKING:
    from elegy.model.model import Model

Logs = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `fit` was told about when to do what.

    - `epochs`, `initial_epoch`: the epochs are those from `initial_epoch` on and before `epochs`; None: no end.
    - `max_steps`: at how many steps training ends, counted like epochs; None: there is no such number.
    - `validates`: whether there is a validation after an epoch, counted from 0.
    - `validate_every`: after how many steps there is one besides, within an epoch; None: after none.
    - `sanity_steps`: on how many batches of the validation data to try the validation before all else.
    - `shuffle`: whether the samples come in another order in each epoch.
    """

    epochs: int | None
    initial_epoch: int
    max_steps: int | None
    validates: Callable[[int], bool]
    validate_every: int | None
    sanity_steps: int
    shuffle: bool


def fit(model: Model, feed: Feed, validation: Feed | None, callbacks: Callbacks, plan: Plan) -> None:
    """Trains epoch by epoch. After an exception the module holds the parameters of the last completed step."""
    with interrupts() as interrupted:
        if validation is not None and plan.sanity_steps:
            evaluate(model, validation.first(plan.sanity_steps), Callbacks([], model, {}), interrupted)
        if callbacks.need_state:
            _program(model, feed, callbacks, plan).start(feed.example(), model.steps)
        callbacks.train_begin()
        # Steps are counted as epochs are; those of epochs before the first one are not made here.
        done = plan.initial_epoch * (feed.steps or 0)
        epoch = plan.initial_epoch
        while (plan.epochs is None or epoch < plan.epochs) and (plan.max_steps is None or done < plan.max_steps):
            callbacks.epoch_begin(epoch)
            training = Training(model, feed, validation, callbacks, plan, interrupted)
            logs = training.epoch(epoch, done)
            done += training.made
            if (rate := model.optimizer.learning_rate) is not None:
                logs.setdefault("learning_rate", float(rate))
            tested = training.tested
            if validation is not None and not training.is_validated and plan.validates(epoch):
                tested = evaluate(model, validation, callbacks, interrupted)
            for name, value in (tested or {}).items():
                logs[numbered(f"val_{name}", logs)[0]] = value
            callbacks.epoch_end(epoch, EpochLogs(logs, validation is not None and tested is None))
            if model.stop_training:
                break
            epoch += 1
        callbacks.train_end()


class Training:
    """One epoch of training.

    **Attributes**, once it ran:

    - `made`: how many steps it made.
    - `tested`: the logs of the last validation within the epoch; None if there was none.
    - `is_validated`: whether that was after the last step.
    """

    def __init__(
        self,
        model: Model,
        feed: Feed,
        validation: Feed | None,
        callbacks: Callbacks,
        plan: Plan,
        interrupted: Interrupts,
    ):
        self._model = model
        self._feed = feed
        self._validation = validation
        self._callbacks = callbacks
        self._plan = plan
        self._interrupted = interrupted
        self.made = 0
        self.tested: Logs | None = None
        self.is_validated = False

    def epoch(self, epoch: int, done: int) -> Logs:
        """Makes the steps of an epoch, after `done` of those before it. **Returns:** the means over its samples."""
        model, callbacks, plan = self._model, self._callbacks, self._plan
        eagerly = model.run_eagerly
        program = _program(model, self._feed, callbacks, plan)
        order = model._next_order(self._feed.samples if plan.shuffle else None)
        with program.tracing.telling(None if eagerly else callbacks.compiling), _restored(model, program):
            carry = program.start(self._feed.example(), model.steps)
            feed = filled(program, self._feed)
            batches = feed.batches(order, epoch, until=self._until(done))
            adapted = structure.version
            number, steps = -1, model.steps
            for count, batch in batches:
                number += count
                if callbacks.of_batches:
                    callbacks.batch_begin(number)
                    if model.steps != steps:  # a callback has trained
                        carry = dataclasses.replace(carry, step=np.asarray(model.steps, np.int32))
                if structure.version is not adapted:  # a part was frozen, or thawed
                    model._adapt()
                    adapted = structure.version
                if feed.varies:
                    program.start(batch.example(), model.steps)  # initialises what this shape needs
                with model._turn:
                    if program.donates and callbacks.kept:
                        program.renew()
                        callbacks.kept = False
                    carry = program(carry, batch, eagerly)
                    self.made += count
                    model._steps = steps = model.steps + count
                if callbacks.of_batches:
                    callbacks.batch_end(number, LazyLogs(carry.logs))
                self.is_validated = False
                if (
                    self._validation is not None
                    and plan.validate_every
                    and not (done + self.made) % plan.validate_every
                ):
                    self.tested = evaluate(model, self._validation, callbacks, self._interrupted)
                    self.is_validated = True
                self._interrupted.check()
                if model.stop_training:
                    break
            logs = carry.logs()
        callbacks.kept = callbacks.kept or callbacks.see_epochs
        return logs

    def _until(self, done: int) -> Callable[[int], int | None]:
        """After how many steps of the epoch, counted from its begin, something else is due; None: not in it."""
        every, most = self._plan.validate_every, self._plan.max_steps

        def until(made: int) -> int | None:
            ends = [] if most is None else [most - done]
            if every and self._validation is not None:
                ends.append(((done + made) // every + 1) * every - done)
            return min(ends, default=None)

        return until


def _program(model: Model, feed: Feed, callbacks: Callbacks, plan: Plan) -> Program:
    donates = model._donates and not model.run_eagerly and not callbacks.see_module and not _debugging()
    return model._program("train", feed.part, feed.is_many, donates, callbacks.in_steps)


def filled(program: Program, feed: Feed) -> Feed:
    """With a short last batch that is filled up, if that makes no difference: else it is compiled on its own."""
    if isinstance(feed, Arrays) and feed.is_short and program.can_pad(feed.example()):
        return feed.padded()
    return feed


def _debugging() -> bool:
    """Whether JAX may run a computation once more, and needs its arguments then."""
    return bool(jax.config.jax_debug_nans or jax.config.jax_debug_infs)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _restored(model: Model, program: Program) -> Iterator[None]:
    """If it is the computation that fails, the arrays are what they were before, if they were not given away."""
    before, steps = None if program.donates else program.read(), model.steps
    try:
        yield
    except BaseException as error:
        try:
            jax.block_until_ready([leaf for leaf in program.read() if isinstance(leaf, jax.Array)])
        except Exception:
            if before is None:
                error.add_note(
                    "The parameters are lost: the step that failed had been given their memory. Load a checkpoint, or "
                    "initialise the module again.\n"
                    "  elegy.Model(..., donate=False) keeps them, in twice the memory."
                )
            else:
                program.write(before)
                model._steps = steps
        raise


def evaluate(model: Model, feed: Feed, callbacks: Callbacks, interrupted: Interrupts | None = None) -> Logs:
    """The means over the batches. The objects stay as they are."""
    callbacks.test_begin()
    eagerly = model.run_eagerly
    program = model._program("test", is_many=feed.is_many)
    with program.tracing.telling(None if eagerly else callbacks.compiling):
        with model._turn:
            carry = program.start(feed.example(), 0)
            feed = filled(program, feed)
        number = -1
        for count, batch in feed.batches():
            number += count
            callbacks.test_batch_begin(number)
            with model._turn:
                if feed.varies:
                    program.start(batch.example(), 0)
                carry = program(carry, batch, eagerly)
            if callbacks.of_test_batches:
                callbacks.test_batch_end(number, LazyLogs(carry.logs))
            if interrupted is not None:
                interrupted.check()
        logs = carry.logs()
    callbacks.test_end(logs)
    return logs


def predict(model: Model, feed: Feed, line: PassLine) -> tp.Any:
    """The outputs for all batches, as NumPy arrays. The objects stay as they are."""
    eagerly = model.run_eagerly
    program = model._program("predict")
    done: list[tp.Any] = []
    waiting: tp.Any = None
    with program.tracing.telling(None if eagerly else line.compiling):
        with model._turn:
            carry = program.start(feed.example(), 0)
            feed = filled(program, feed)
        for number, (_, batch) in enumerate(feed.batches()):
            # One batch stays behind, so that the device has work while another is copied from it.
            ready = waiting
            with model._turn:
                carry, outputs = program(carry, batch, eagerly)
            size = len(jax.tree.leaves(batch.data)[0])
            waiting = outputs, size if batch.real is None else int(batch.real)
            _require_samples(outputs, size)
            if ready is not None:
                done.append(_fetched(*ready))
            line.done(number + 1)
    done.append(_fetched(*waiting))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *done)


def _fetched(outputs: tp.Any, size: int) -> tp.Any:
    return jax.tree.map(lambda leaf: leaf[:size], jax.device_get(outputs))


def _require_samples(outputs: tp.Any, size: int) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
        if jax.numpy.shape(leaf)[:1] != (size,):
            raise ValueError(
                f"predict: output{jax.tree_util.keystr(path)} of the module has shape {jax.numpy.shape(leaf)} for a "
                f"batch of {size} samples.\n  Its first axis must be that of the samples, so batches can be joined."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Interrupts
# ---------------------------------------------------------------------------------------------------------------------


class Interrupts:
    """The first Ctrl-C lets the running step end; the second one interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, number: int, frame: tp.Any) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if there was a Ctrl-C."""
        if self.is_set:
            self.is_set = False
            raise KeyboardInterrupt


_nothing = Interrupts()


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Holds Ctrl-C back while steps run, in the main thread and where nobody else handles it."""
    before = signal.getsignal(signal.SIGINT)
    if isinstance(before, Interrupts):
        yield before  # a callback trains too
        return
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield _nothing
        return
    held = Interrupts()
    signal.signal(signal.SIGINT, held)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)
    held.check()
