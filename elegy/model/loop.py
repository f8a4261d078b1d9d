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

from elegy.callbacks.calling import Callbacks, Ending, EpochLogs, LazyLogs
from elegy.callbacks.progress import PassLine
from elegy.errors import CheckpointError
from elegy.hooks import numbered
from elegy.model.batches import Feed
from elegy.model.carry import Carry
from elegy.model.program import Program
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


@dataclasses.dataclass
class Position:
    """How far a training is: what a checkpoint needs besides modules and callbacks to go on from there.

    - `epoch`: the one that runs, or comes next.
    - `made`: how many of its steps were made.
    - `done`: how many steps the epochs before it had.
    - `order`: the number of the order of its samples.
    - `carry`: what was counted in it; None before its first step. One that was read from a checkpoint holds arrays
      alone.
    - `tested`: the logs of the last validation in it; None if there was none.
    - `is_validated`: whether that was after the last step.
    - `validations`: how many there were in all.
    - `ending`: what its end is told with, once there is nothing left but that.
    """

    epoch: int = 0
    made: int = 0
    done: int = 0
    order: int = 0
    carry: tp.Any = None
    tested: Logs | None = None
    is_validated: bool = False
    validations: int = 0
    ending: Ending | None = None

    def next_epoch(self, order: int) -> Position:
        return Position(self.epoch + 1, 0, self.done + self.made, order, validations=self.validations)


def fit(
    model: Model, feed: Feed, validation: Feed | None, callbacks: Callbacks, plan: Plan, position: Position
) -> None:
    """Trains epoch by epoch, from a position on. After an exception the module holds the parameters of the last
    completed step."""
    with interrupts(callbacks.saves) as interrupted:
        training = Training(model, feed, validation, callbacks, plan, position, interrupted)
        try:
            tries = validation is not None and plan.sanity_steps > 0
            if callbacks.need_state or tries:  # it is the shapes of the training data that parameters have
                program, example = training_program(model, feed, callbacks, plan), feed.example()
                with model._turn:
                    program.prepare(example)
            if validation is not None and tries:
                few = validation.first(plan.sanity_steps)
                evaluate(model, few, Callbacks([], model, {}), interrupted, position.validations)
            callbacks.train_begin()
            while training.goes_on():
                training.epoch()
                interrupted.check()
            callbacks.train_end()
        except BaseException:
            if interrupted.was_raised and model.module.initialized:
                callbacks.save(training.position, always=True)
            raise


class Training:
    """A training, epoch by epoch.

    **Attributes:** `position`, how far it is.
    """

    def __init__(
        self,
        model: Model,
        feed: Feed,
        validation: Feed | None,
        callbacks: Callbacks,
        plan: Plan,
        position: Position,
        interrupted: Interrupts,
    ):
        self._model = model
        self._feed = feed
        self._validation = validation
        self._callbacks = callbacks
        self._plan = plan
        self._interrupted = interrupted
        self.position = position

    def goes_on(self) -> bool:
        """Whether there is another epoch."""
        position, plan = self.position, self._plan
        ended = plan.epochs is not None and position.epoch >= plan.epochs
        # An epoch all of whose steps were made may still lack its end.
        full = plan.max_steps is not None and position.done >= plan.max_steps
        return not (ended or full or self._model.stop_training)

    def epoch(self) -> None:
        """Trains for an epoch, or for the rest of one, and validates."""
        model, callbacks, position = self._model, self._callbacks, self.position
        if position.made:
            callbacks.epoch_resume(position.epoch)
        else:
            callbacks.epoch_begin(position.epoch)
        if position.ending is None:
            logs = self._steps()
            if self._is_cut():
                callbacks.hold(position)
            if (rate := model.optimizer.learning_rate) is not None:
                logs.setdefault("learning_rate", float(rate))
            if not position.is_validated and self._plan.validates(position.epoch):
                self._validate()
            for name, value in (position.tested or {}).items():
                logs[numbered(f"val_{name}", logs)[0]] = value
            position.ending = Ending(EpochLogs(logs, self._validation is not None and position.tested is None))
        else:
            model._orders = position.order + 1
        ending = position.ending
        callbacks.epoch_end(position.epoch, ending)
        self.position = model._position = position.next_epoch(model._orders)
        callbacks.save(self.position, ending.logs)

    def _is_cut(self) -> bool:
        """Whether it is `max_steps` that ends the epoch."""
        most, made, steps = self._plan.max_steps, self.position.made, self._feed.steps
        return most is not None and self.position.done + made >= most and (steps is None or made < steps)

    def _validate(self) -> None:
        validation, position = self._validation, self.position
        if validation is None:
            return
        position.tested = evaluate(self._model, validation, self._callbacks, self._interrupted, position.validations)
        position.is_validated = True
        position.validations += 1

    def _is_time_to_validate(self) -> bool:
        """Whether there is a validation after the last step, within the epoch."""
        every, position = self._plan.validate_every, self.position
        return bool(every) and (position.done + position.made) % every == 0 and not position.is_validated

    def _steps(self) -> Logs:
        """Makes the steps of the epoch that are not made yet. **Returns:** the means over its samples."""
        model, callbacks, plan, position = self._model, self._callbacks, self._plan, self.position
        interrupted = self._interrupted
        eagerly = model.run_eagerly
        program = training_program(model, self._feed, callbacks, plan)
        position.order = model._orders
        order = model._next_order(self._feed.samples if plan.shuffle else None)
        with program.tracing.telling(None if eagerly else callbacks.compiling), _restored(model, program):
            example = self._feed.example()
            with model._turn:
                carry = program.start(example)
            if position.carry is not None:
                carry = _continued(carry, position.carry)
            position.carry = carry
            feed = filled(program, self._feed)
            adapted, of_batches, varies = structure.version, callbacks.of_batches, feed.varies
            validates = self._validation is not None and plan.validate_every is not None
            if validates and position.made and self._is_time_to_validate():  # the checkpoint was made before
                self._validate()
            for count, batch in feed.batches(order, position.epoch, position.made, self._until(position.done)):
                if of_batches:
                    callbacks.batch_begin(position.made + count - 1)
                with model._turn:
                    if structure.version is not adapted:  # a part was frozen, or thawed
                        model._adapt()
                        adapted = structure.version
                    if varies:
                        program.prepare(batch.example())  # initialises what this shape needs
                    if callbacks.kept and program.donates:
                        program.renew()
                        callbacks.kept = False
                    position.carry = carry = program(carry, batch, model._steps, eagerly)
                    position.made += count
                    model._steps += count
                    position.is_validated = False
                if of_batches:
                    callbacks.batch_end(position.made - 1, LazyLogs(carry.logs))
                if validates and self._is_time_to_validate():
                    self._validate()
                if callbacks.saves:
                    callbacks.save(position)
                if interrupted.signal is not None:
                    interrupted.check()
                if model.stop_training:
                    break
            logs = carry.logs()
        callbacks.kept = callbacks.kept or callbacks.see_epochs
        return logs

    def _until(self, done: int) -> Callable[[int], int | None]:
        """After how many steps of the epoch, counted from its begin, something else is due; None: not in it. The
        epoch ends where that is not after the steps that were made."""
        every, most = self._plan.validate_every, self._plan.max_steps
        multiples = [*self._callbacks.save_every]
        if every is not None and self._validation is not None:
            multiples.append(every)
        if most is None and not multiples:
            return lambda made: None

        def until(made: int) -> int | None:
            ends = [] if most is None else [most - done]
            ends.extend(((done + made) // multiple + 1) * multiple - done for multiple in multiples)
            return min(ends, default=None)

        return until


def _continued(begun: Carry, found: tp.Any) -> Carry:
    """A carry that begins, with what a checkpoint has counted."""
    if isinstance(found, Carry):
        return found
    given = tuple(found["names"]), tuple(found["names_so_far"])
    shapes = [(leaf.shape, leaf.dtype) for leaf in begun.metrics]
    if given != (begun.names, begun.names_so_far) or shapes != [(leaf.shape, leaf.dtype) for leaf in found["metrics"]]:
        raise CheckpointError(
            "the checkpoint is of the middle of an epoch, in which other values were counted: "
            f"{', '.join(given[0] + given[1])}; and now {', '.join(begun.names + begun.names_so_far)}.\n"
            "  Resume with the losses and metrics of then."
        )
    return dataclasses.replace(
        begun,
        metrics=[*found["metrics"]],
        sums=found["sums"],
        so_far=found["so_far"] if begun.names_so_far else None,
    )


def training_program(model: Model, feed: Feed, callbacks: Callbacks, plan: Plan) -> Program:
    donates = model._donates and not model.run_eagerly and not callbacks.see_module and not _debugging()
    return model._program("train", feed.part, feed.is_many, donates, callbacks.in_steps)


def filled(program: Program, feed: Feed) -> Feed:
    """With a short last batch that is filled up, if that makes no difference: else it is compiled on its own."""
    if feed.is_short and program.can_pad(feed.example()):
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


def evaluate(
    model: Model, feed: Feed, callbacks: Callbacks, interrupted: Interrupts | None = None, number: int = 0
) -> Logs:
    """The means over the batches. The objects stay as they are.

    **Arguments:**

    - `number`: how many passes there were over the same data, which those that can be gone through once have to know.
    """
    callbacks.test_begin()
    try:
        logs = _evaluated(model, feed, callbacks, interrupted, number if feed.is_one_shot else 0)
    except BaseException:
        callbacks.test_failed()
        raise
    callbacks.test_end(logs)
    return logs


def _evaluated(model: Model, feed: Feed, callbacks: Callbacks, interrupted: Interrupts | None, number: int) -> Logs:
    eagerly = model.run_eagerly
    program = model._program("test", is_many=feed.is_many)
    with program.tracing.telling(None if eagerly else callbacks.compiling):
        with model._turn:
            carry = program.start(feed.example())
            feed = filled(program, feed)
        made = 0
        for count, batch in feed.batches(epoch=number):
            callbacks.test_batch_begin(made + count - 1)
            with model._turn:
                if feed.varies:
                    program.prepare(batch.example())
                carry = program(carry, batch, made, eagerly)
            made += count
            if callbacks.of_test_batches:
                callbacks.test_batch_end(made - 1, LazyLogs(carry.logs))
            if interrupted is not None:
                interrupted.check()
        return carry.logs()


def predict(model: Model, feed: Feed, line: PassLine) -> tp.Any:
    """The outputs for all batches, as NumPy arrays. The objects stay as they are."""
    eagerly = model.run_eagerly
    program = model._program("predict")
    done: list[tp.Any] = []
    waiting: tp.Any = None
    with program.tracing.telling(None if eagerly else line.compiling):
        with model._turn:
            program.prepare(feed.example())
            feed = filled(program, feed)
        for number, (_, batch) in enumerate(feed.batches()):
            # One batch stays behind, so that the device has work while another is copied from it.
            ready = waiting
            with model._turn:
                outputs = program(None, batch, number, eagerly)
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
    """The first signal lets the running step end; the second one interrupts at once.

    - `signal`: the number of the signal for which `check` has not raised yet; None if there was none.
    - `was_raised`: whether `check` has raised.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.was_raised = False

    def __call__(self, number: int, frame: tp.Any) -> None:
        if self.signal is not None or self.was_raised:  # the last checkpoint may be on its way
            raise _exception(number)
        self.signal = number

    def check(self) -> None:
        """Raises if there was a signal: `KeyboardInterrupt` for Ctrl-C, `SystemExit` if the process was told to end."""
        if self.signal is not None:
            self.was_raised, number, self.signal = True, self.signal, None
            raise _exception(number)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def interrupts(saves: bool) -> Iterator[Interrupts]:
    """Holds Ctrl-C back while steps run, in the main thread and where nobody else handles it; and SIGTERM, if something
    can be saved then."""
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    outer = before[signal.SIGINT]
    if isinstance(outer, Interrupts):
        yield outer  # a callback trains too
        return
    held = Interrupts()
    if outer is signal.default_int_handler:
        signal.signal(signal.SIGINT, held)
    if saves and before[signal.SIGTERM] is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, held)
    try:
        yield held
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is held:
                signal.signal(number, handler)
    held.check()
