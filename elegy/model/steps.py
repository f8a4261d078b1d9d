"""What one batch does: train, test, predict.

A step runs the methods of a model, `train_step`, `test_step` or `pred_step`, which change modules in place as code
without transforms does. What an epoch adds up, and the metrics, are a value, a `Carry`, that a step takes and gives:
passes that run at the same time do not meet.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import typing as tp
from collections.abc import Iterator

import jax

from elegy.contexts import is_initializing
from elegy.layout import nodes_in
from elegy.model.carry import Carry, stacked, summed
from elegy.model.data import Data, hinting_at_tuples
from elegy.model.foreign import Outside
from elegy.model.objectives import Labels, Losses, Metrics, Notes, Scalars, add_values, labels_of
from elegy.random import fold_in_path

if tp.TYPE_CHECKING:
    from elegy.model.model import Model


class Running:
    """What the methods of a model share in one step.

    - `model`: whose step it is.
    - `metrics`: those that count.
    - `part`: for how many samples gradients are computed together; None: for all of a batch.
    - `so_far`: the values of metrics that add up by themselves.
    - `notes`: which values are no means over all samples alike.
    - `labels`: where to add which labels the targets `y` may hold; None if nobody asks.
    """

    def __init__(
        self,
        model: Model,
        metrics: Metrics,
        part: int | None,
        y: tp.Any = None,
        labels: list[Labels] | None = None,
    ):
        self.model = model
        self.metrics = metrics
        self.part = part
        self.so_far: Scalars = {}
        self.notes = Notes(model._losses.divides, model._losses.shown)
        self.y = y
        self.labels = labels

    def find_labels(self, objectives: Losses | Metrics, inputs: dict[str, tp.Any]) -> None:
        """Notes which labels losses or metrics take, if somebody asks."""
        if self.labels is not None:
            self.labels += labels_of(objectives, self.y, inputs)


_running: contextvars.ContextVar[Running | None] = contextvars.ContextVar("running", default=None)


def running_or_none(model: Model) -> Running | None:
    """The step that runs, if it is one of this model."""
    found = _running.get()
    return found if found is not None and found.model is model else None


def running(model: Model, method: str) -> Running:
    """The step that runs.

    **Raises:** `RuntimeError` outside of one.
    """
    found = running_or_none(model)
    if found is None:
        raise RuntimeError(
            f"{type(model).__name__}.{method} is a part of a step, which fit, evaluate and predict run.\n"
            "  Outside of them call train_on_batch, test_on_batch or predict_on_batch."
        )
    return found


@contextlib.contextmanager
def run_by(step: Running) -> Iterator[None]:
    token = _running.set(step)
    try:
        yield
    finally:
        _running.reset(token)


_ANYWHERE = contextlib.nullcontext()


def made(
    model: Model,
    training: bool,
    metrics: Metrics,
    batch: Data,
    part: int | None = None,
    labels: list[Labels] | None = None,
) -> tuple[Scalars, Scalars]:
    """Trains or tests on a batch. **Returns:** what is logged of it, and the values of metrics that add up by
    themselves."""
    step = Running(model, metrics, part, batch.y, labels)
    is_first = training and labels is not None
    with run_by(step), hinting_at_tuples(batch.x), Outside(model.module) if is_first else _ANYWHERE as outside:
        found = (model.train_step if training else model.test_step)(*batch)
    if outside is not None:
        outside.warn(nodes_in([model._modules("train"), model._used]))  # what a function uses is refused elsewhere
    return values_of(step, "train_step" if training else "test_step", found), step.so_far


def outputs_of(model: Model, x: tp.Any) -> tp.Any:
    """The outputs for a batch."""
    with run_by(Running(model, model._metrics, None)), hinting_at_tuples(x):
        return model.pred_step(x)


def put_evaluation_parameters(model: Model) -> None:
    """Gives the module the parameters to evaluate with. Whoever calls it takes them away again."""
    if not is_initializing():
        model.module.set_parameters(model.optimizer.evaluation_parameters(model.module))


def stream_of(seed: int, kind: str, step: tp.Any) -> tp.Any:
    """The key from which a step draws."""
    return jax.random.fold_in(fold_in_path(jax.random.key(seed), kind), step)


def counted(
    model: Model,
    training: bool,
    carry: Carry | None,
    batch: Data,
    real: tp.Any,
    part: int | None,
    labels: list[Labels] | None = None,
) -> Carry:
    """Trains or tests on a batch, and adds to the carry what was counted. None begins one."""
    metrics = model._metrics if carry is None else carry.structure.treedef.unflatten(carry.metrics)
    values, so_far = made(model, training, metrics, batch, part, labels)
    size = batch.size if real is None else real
    sums, names = summed(size, values)
    vector, names_so_far = stacked([*so_far.values()]) if so_far else None, (*so_far,)
    if carry is None:
        return Carry([], sums, vector, None, names, names_so_far)
    if (names, names_so_far) != (carry.names, carry.names_so_far):
        before, now = (", ".join(all_of) for all_of in (carry.names + carry.names_so_far, names + names_so_far))
        raise ValueError(
            f"the batches of one epoch log different values: {before}; and then {now}.\n"
            "  Losses, metrics, add_loss and add_metric must give the same names for every batch, of any size."
        )
    return dataclasses.replace(carry, metrics=jax.tree.leaves(metrics), sums=carry.sums + sums, so_far=vector)


def values_of(step: Running, method: str, found: tp.Any) -> Scalars:
    if not isinstance(found, dict):
        raise TypeError(
            f"{type(step.model).__name__}.{method} returned {type(found).__name__}; it returns a dict of what is "
            'logged, such as {"loss": loss}.'
        )
    values: Scalars = {}
    for name, value in found.items():
        add_values(values, name, jax.tree.map(step.notes.about, value))
    return values
