"""Passes over data, batch by batch; and the way between the objects of a user and the values that steps compute."""

from __future__ import annotations

import contextlib
import typing as tp
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.calling import Callbacks, LazyLogs
from elegy.model.data import Data
from elegy.model.objectives import Losses, Metrics
from elegy.model.optimizer import Optimizer
from elegy.model.steps import Parts, State, Step, Totals
from elegy.module import Module
from elegy.transaction import lock


class Reference:
    """The objects of a model, of which a `State` is a value. Metrics stay as they are: each pass starts from them.

    - `steps`: how many training steps came before the next one.
    """

    def __init__(self, module: Module, losses: Losses, metrics: Metrics, optimizer: Optimizer):
        self.module = module
        self.losses = losses
        self.metrics = metrics
        self.optimizer = optimizer
        self.steps = 0

    def to_train(self, metrics: Metrics | None = None) -> State:
        parts = Parts(self.module, self.losses, metrics or self.metrics, self.optimizer)
        return State(parts, np.asarray(self.steps, np.int32))

    def to_test(self) -> State:
        return State(Parts(self.module, self.losses, self.metrics), np.asarray(0, np.int32))

    def to_predict(self) -> State:
        return State(Parts(self.module), np.asarray(0, np.int32))

    def write(self, state: State) -> None:
        """Gives the objects the arrays of a state, in place, once these are there."""
        jax.block_until_ready(jax.tree.leaves(state))
        with lock:
            for name in ("module", "losses", "optimizer"):
                getattr(self, name).set_parameters(getattr(state.parts, name).get_parameters())
            self.steps = int(state.step)


class Pass:
    """A state that moves on with each batch, and the totals since the first one."""

    def __init__(self, step: Step, state: State, examples: Sequence[Data], eager: bool):
        self._step = step
        self._run: Callable[..., tp.Any] = step.eager if eager else step.compiled
        self._examples = examples
        self._structure, leaves, outputs = step.flatten(state, examples)
        self._now = (leaves, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs))
        self._written = self._now

    def advance(self, batch: Data) -> None:
        # One assignment: an interrupt comes either before it or after it, so a step is done or it is not.
        self._now = self._run(self._structure, *self._now, batch)

    @property
    def state(self) -> State:
        return self._structure.treedef.unflatten(self._now[0])

    def go_on_from(self, reference: Reference) -> None:
        """Takes what the objects hold now, which may have changed; metrics go on counting."""
        state = reference.to_train(self.state.parts.metrics)
        self._structure, leaves, _ = self._step.flatten(state, self._examples)
        self._now = self._written = (leaves, self._now[1])

    def write(self, reference: Reference) -> None:
        """Gives the objects the state, unless they have had it: then what they hold now is newer."""
        now = self._now
        if now is not self._written:
            reference.write(self.state)
            self._written = now

    @property
    def totals(self) -> Totals:
        """What has added up since the first batch."""
        return self._now[1]


def train(
    step: Step,
    reference: Reference,
    batches: Iterable[Data],
    examples: Sequence[Data],
    callbacks: Callbacks,
    eager: bool,
) -> dict[str, float]:
    """Trains on the batches, and leaves the module in the state of the last completed step, whatever happens.

    **Returns:** the means over the batches.
    """
    passing = Pass(step, reference.to_train(), examples, eager)
    try:
        if callbacks.of_batches or callbacks.of_steps:
            _with_callbacks(passing, reference, batches, callbacks)
        else:
            for batch in batches:
                passing.advance(batch)
        logs = passing.totals.logs()
        passing.write(reference)
        return logs
    except BaseException:
        # If it is the computation that failed there is nothing to write, and the module keeps what it had before.
        with contextlib.suppress(Exception):
            passing.write(reference)
        raise


def _with_callbacks(passing: Pass, reference: Reference, batches: Iterable[Data], callbacks: Callbacks) -> None:
    for number, batch in enumerate(batches):
        callbacks.batch_begin(number)
        if callbacks.see_module:
            passing.go_on_from(reference)
        passing.advance(batch)
        callbacks.after_step(lambda: passing.state.parts.module)
        if callbacks.see_module:
            passing.write(reference)
        callbacks.batch_end(number, LazyLogs(passing.totals.logs))
        if callbacks.stop():
            return


def test(
    step: Step,
    reference: Reference,
    batches: Iterable[Data],
    examples: Sequence[Data],
    callbacks: Callbacks,
    eager: bool,
) -> dict[str, float]:
    """The means over the batches. The objects stay as they are."""
    callbacks.test_begin()
    passing = Pass(step, reference.to_test(), examples, eager)
    for number, batch in enumerate(batches):
        callbacks.test_batch_begin(number)
        passing.advance(batch)
        if callbacks.of_test_batches:
            callbacks.test_batch_end(number, LazyLogs(passing.totals.logs))
    logs = passing.totals.logs()
    callbacks.test_end(logs)
    return logs


def predict(step: Step, reference: Reference, batches: Iterable[Data], examples: Sequence[Data], eager: bool) -> tp.Any:
    """The outputs for all batches, as NumPy arrays. The objects stay as they are."""
    run = step.eager if eager else step.compiled
    structure, leaves, _ = step.flatten(reference.to_predict(), examples)
    done: list[tp.Any] = []
    running: tp.Any = None
    for batch in batches:
        # One batch stays behind, so that the device has work while another is copied from it.
        ready, (leaves, running) = running, run(structure, leaves, None, batch)
        _require_samples(running, batch.size)
        if ready is not None:
            done.append(jax.device_get(ready))
    done.append(jax.device_get(running))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *done)


def _require_samples(outputs: tp.Any, size: int) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
        if jax.numpy.shape(leaf)[:1] != (size,):
            raise ValueError(
                f"predict: output{jax.tree_util.keystr(path)} of the module has shape {jax.numpy.shape(leaf)} for a "
                f"batch of {size} samples.\n  Its first axis must be that of the samples, so batches can be joined."
            )
