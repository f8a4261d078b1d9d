"""Labels that are no classes of what the module predicts are refused before a step runs."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy


def crossentropy(**options):
    return elegy.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def make(loss=None, metrics=None, module=None):
    module = elegy.nn.Linear(3) if module is None else module
    return elegy.Model(module, loss=loss, metrics=metrics, optimizer=optax.sgd(0.1))


X = np.ones([6, 2], np.float32)
GOOD = np.array([0, 1, 2, 0, 1, 2])
FROM_ONE = GOOD + 1
PADDED = np.array([0, 1, -1, -1, 1, 2])
MESSAGE = (
    "sparse_categorical_crossentropy_loss: y has labels from 1 to 3, and y_pred has 3 classes, which are 0 to 2. "
    "2 of 6 labels are out of range, the first of which is y[2] = 3.\n  Labels that begin at 1 become classes by y - 1."
)


def test_labels_out_of_range_are_refused_in_each_way_that_data_come():
    model = make(crossentropy())
    for run in (
        lambda: model.fit(X, FROM_ONE, verbose=0),
        lambda: model.fit([(X, FROM_ONE)], verbose=0),
        lambda: model.fit(jnp.asarray(X), jnp.asarray(FROM_ONE), verbose=0),
        lambda: model.train_on_batch(X, FROM_ONE),
        lambda: model.evaluate(X, FROM_ONE),
        lambda: model.evaluate([(X, FROM_ONE)]),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(MESSAGE)}"):
            run()
    with pytest.raises(ValueError, match=r"y of the validation data\[2\] = -1.\n.*ignore_class=-1"):
        model.fit(X, GOOD, validation_data=(X, PADDED), verbose=0)
    before = np.asarray(model.module.w)
    with pytest.raises(ValueError, match=r"1 of 6 labels is out of range, .* y\[5\] = 7.\n.*predict 8 classes"):
        model.fit([(X, GOOD), (X, np.array([0, 1, 2, 0, 1, 7]))], verbose=0)
    assert model.steps == 1 and np.isfinite(model.module.w).all() and (np.asarray(model.module.w) != before).any()


class TwoHeads(elegy.Module):
    def call(self, x):
        return {"a": elegy.nn.Linear(3)(x), "b": elegy.nn.Linear(4)(x)}


def test_labels_of_one_head_and_labels_that_do_not_count():
    losses = [crossentropy(on="a", ignore_class=-1), crossentropy(on="b", check_bounds=False)]
    model = make(losses, elegy.metrics.SparseCategoricalAccuracy(on="b"), TwoHeads())
    weights = (PADDED >= 0).astype(np.float32)
    assert model.evaluate(X, {"a": PADDED, "b": PADDED}, sample_weight=weights)["loss"] > 0  # -1 has no weight
    with pytest.raises(ValueError, match=r"sparse_categorical_accuracy: y\['b'\] has labels from 1 to 4, .* 4 classes"):
        model.evaluate(X, {"a": PADDED, "b": FROM_ONE + (FROM_ONE == 3)})
    with pytest.raises(ValueError, match=r"crossentropy_loss: y\['a'\] has labels from 1 to 3"):
        model.evaluate(X, {"a": FROM_ONE, "b": GOOD})


class Shifting(elegy.Model):
    def loss_step(self, x, y, sample_weight):
        y_pred = self.pred_step(x)
        return self.compute_losses(x, y - 1, y_pred, sample_weight), y_pred


def test_targets_that_a_step_changes_are_not_known():
    model = Shifting(elegy.nn.Linear(3), crossentropy())
    assert np.isfinite(model.evaluate(X, FROM_ONE)["loss"])
