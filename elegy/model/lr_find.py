"""The learning-rate range test."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import threading
import typing as tp
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from elegy.figures import new_figure
from elegy.model.batches import Arrays, Feed
from elegy.model.data import Data, LabelCheck
from elegy.model.functional import Functional
from elegy.model.optimizer import Optimizer
from elegy.random import RNG
from elegy.state import transaction

if tp.TYPE_CHECKING:
    from elegy.model.model import Model

_EXPLODED = 4  # times the smallest smoothed loss
_MEMORY = 0.8  # of the smoothed loss, by which it is judged whether the loss explodes
_FEWEST = 5  # rates, to tell a slope
_VISIBLE = 1e-4  # of the mean loss: what falls less may be rounding


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """What `Model.lr_find` returns.

    **Attributes:**

    - `rates`, `losses`: the learning rates that were tried, and the loss of the batch before each step: float64 arrays
      of NumPy. They end where the loss exploded.
    - `suggestion`: the rate at which the smoothed loss falls most steeply, over the logarithm of the rate; None if
      there is no such rate.
    - `reason`: why there is no suggestion; None if there is one.
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None
    reason: str | None

    def plot(self) -> tp.Any:
        """Draws the losses over the rates, with the suggestion, by Matplotlib.

        **Returns:** a `matplotlib.figure.Figure`, to show or to save: `found.plot().savefig("rates.png")`.

        **Raises:** `ImportError` if Matplotlib is not installed.
        """
        figure = new_figure("LearningRates.plot")
        axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.plot(self.rates, self.losses, label="loss")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, linestyle="--", color="tab:red", label=f"suggestion: {self.suggestion:.2g}")
        axes.legend()
        return figure


def find_rates(
    model: Model, feed: Feed, check: LabelCheck | None, optimizer: tp.Any, start: float, end: float, steps: int
) -> LearningRates:
    """Trains at rising rates, and leaves everything as it was."""
    if not 0 < start < end < math.inf:
        raise ValueError(f"lr_find: start and end must be positive, and end the larger one; got {start!r} and {end!r}.")
    rates = start * (end / start) ** (np.arange(steps) / (steps - 1))
    trial = _trial(model, _made(optimizer, start, end, steps, model.optimizer.where))
    losses: list[float] = []
    with contextlib.suppress(_Undone), transaction():
        trial._require_labels(trial._program("train"), feed, check)
        losses.extend(_losses(trial.functional(), _endless(model, feed), steps))
        raise _Undone
    rates, found = rates[: len(losses)], np.asarray(losses, np.float64)
    return LearningRates(rates, found, *suggested(rates, found))


class _Undone(Exception):
    """Ends a block of which nothing shall remain."""


def _made(optimizer: tp.Any, start: float, end: float, steps: int, where: tp.Any) -> Optimizer:
    if isinstance(optimizer, Optimizer) or not callable(optimizer):
        raise TypeError(
            f"lr_find: optimizer is a function that makes a transformation of a learning rate, got {optimizer!r}.\n"
            "  Give optax.adam, or lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))."
        )
    growth = math.log(end / start) / (steps - 1)

    def schedule(count: tp.Any) -> tp.Any:
        return start * jnp.exp(growth * jnp.asarray(count, jnp.result_type(float)))

    made = optimizer(schedule)
    return made if isinstance(made, Optimizer) else Optimizer(made, where=where)


def _trial(model: Model, optimizer: Optimizer) -> Model:
    """A model of the same modules, with an optimiser, random numbers and counts of its own."""
    trial = object.__new__(type(model))
    initial = RNG(model._seed)
    initial.restore(model._initial.snapshot())
    own = {"optimizer": optimizer, "_initial": initial, "_programs": {}, "_averages": {}, "_turn": threading.RLock()}
    vars(trial).update({**vars(model), **own})
    return trial


def _endless(model: Model, feed: Feed) -> Iterator[Data]:
    """Batches of the data, epoch after epoch."""
    seed = [model._seed, model._orders]
    for epoch in itertools.count():
        order = None
        if isinstance(feed, Arrays):
            order = np.random.default_rng([*seed, epoch]).permutation(feed.samples)
        size, none = 0, True
        for _, batch in feed.batches(order, epoch):
            data = batch.data
            if batch.source is not None:
                data = jax.tree.map(lambda array, chosen=data: array[chosen], batch.source)
            size = max(size, data.size)
            if data.size == size:
                none = False
                yield data
        if none:
            return


def _losses(functional: Functional, batches: Iterator[Data], steps: int) -> Iterator[float]:
    """The loss before each step, until it explodes."""
    state: tp.Any = None
    smoothed = smallest = math.inf
    weight = 0.0
    train_step = jax.jit(functional.train_step, donate_argnums=0)
    for number, data in enumerate(itertools.islice(batches, steps), 1):
        state = functional.init(*data) if state is None else state
        state, logs = train_step(state, *data)
        if "loss" not in logs:
            raise ValueError(f'lr_find: train_step returned no "loss" to look at; it returned {", ".join(logs)}.')
        loss = float(logs["loss"])
        yield loss
        total = (_MEMORY * weight * smoothed if weight else 0.0) + (1 - _MEMORY) * loss
        weight = _MEMORY * weight + 1 - _MEMORY
        smoothed = total / weight
        if number >= _FEWEST:
            smallest = min(smallest, smoothed)
        if not math.isfinite(smoothed) or smoothed > _EXPLODED * max(smallest, 0.0) > 0:
            return


def suggested(rates: np.ndarray, losses: np.ndarray) -> tuple[float | None, str | None]:
    """The rate at which the loss falls most steeply, and why there is none.

    The slope at a rate is that of the line which fits the losses around it best: a tenth of the rates on either side.
    """
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(np.argmin(finite))
    if count < _FEWEST:
        return None, f"the loss was finite at the first {count} rates only, which are too few to see a slope."
    logarithms = np.log(rates[:count])
    around = max(count // 10, 2)
    slopes = np.full(count, np.inf)
    for middle in range(around, count - around):
        near = slice(middle - around, middle + around + 1)
        offsets = logarithms[near] - logarithms[middle]
        slopes[middle] = np.mean(offsets * (losses[near] - losses[near].mean())) / np.mean(offsets**2)
    steepest = int(np.argmin(slopes))
    fall = -slopes[steepest] * (logarithms[around] - logarithms[0])
    if fall <= _VISIBLE * np.abs(losses[:count]).mean():
        return None, "the loss falls at none of the rates."
    return float(rates[steepest]), None
