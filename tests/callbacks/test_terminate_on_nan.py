"""`TerminateOnNaN`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.callbacks import Callback, TerminateOnNaN
from elegy.model.carry import Carry


class Spoil(Callback):
    """Makes the parameters `nan` before a step, counted over all epochs."""

    def __init__(self, step):
        self.step = step
        self.made = -1

    def on_train_batch_begin(self, batch):
        self.made += 1
        if self.made == self.step:
            module = self.model.module
            module.set_parameters(jax.tree.map(lambda a: jnp.full_like(a, math.nan), module.get_parameters()))


@pytest.mark.parametrize(
    ("step", "every", "made", "when"),
    [
        (0, 1, 0, "batch 0 of epoch 0"),
        (4, 1, 4, "batch 1 of epoch 1"),
        (3, 2, 4, "batch 1 of epoch 1"),
        (3, 100, 5, "epoch 1"),
        (5, 2, 5, "epoch 1"),
    ],
)
def test_when_it_stops(fitted, step, every, made, when):
    spoil = Spoil(step)
    with pytest.warns(UserWarning, match=rf"the loss is nan after {when} \(counted from 0\): training stops") as caught:
        history = fitted(spoil, TerminateOnNaN(every=every))
    assert len(caught) == 1
    assert spoil.made == made and history.epoch[-1] == step // 3


def test_raise_error(fitted):
    with pytest.raises(FloatingPointError, match="TerminateOnNaN: the loss is nan after batch 2 of epoch 0"):
        fitted(Spoil(2), TerminateOnNaN(raise_error=True))


def test_training_that_goes_well(fitted):
    history = fitted(TerminateOnNaN(), epochs=2)
    assert history.epoch == [0, 1] and np.isfinite(history.history["loss"]).all()


def test_how_often_it_waits_for_the_device(fitted, monkeypatch):
    reads = []
    read = Carry.logs
    monkeypatch.setattr(Carry, "logs", lambda totals: reads.append(totals) or read(totals))
    fitted(TerminateOnNaN(every=2), epochs=2, validation=False)
    assert len(reads) == 4  # in each epoch of three batches after the second, and at the end


@pytest.mark.parametrize(("every", "looks"), [(1, 3), (3, 2), (4, 1), (8, 0)])
def test_several_steps_in_one_execution(every, looks):
    """It is told of the last batch of each execution, of which no number need be a multiple."""
    seen = []

    class Logs(dict):
        def __getitem__(self, name):
            seen.append(name)
            return 0.0

    callback = TerminateOnNaN(every=every)
    callback.on_epoch_begin(0)
    for batch in (1, 4, 6):
        callback.on_train_batch_end(batch, Logs(loss=0.0))
    assert len(seen) == looks


def test_logs_without_a_loss():
    with pytest.raises(ValueError, match="there is no 'loss' among the logs after epoch 0: accuracy"):
        TerminateOnNaN().on_epoch_end(0, {"accuracy": 1.0})


def test_arguments():
    with pytest.raises(ValueError, match="every must be an integer of at least 1, got 0"):
        TerminateOnNaN(every=0)


def test_the_epoch_that_goes_on_from_its_middle_is_named():
    callback = TerminateOnNaN(raise_error=True)
    callback.on_epoch_resume(4)
    with pytest.raises(FloatingPointError, match="after batch 3 of epoch 4"):
        callback.on_train_batch_end(3, {"loss": math.nan})
