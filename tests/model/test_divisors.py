"""Losses that are no means over all samples alike: in parts of a batch, and over the batches of an epoch."""

import functools
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from tests.helpers import assert_close

SAMPLES, CLASSES = 22, 3


def crossentropy(name, **options):
    return elegy.losses.SparseCategoricalCrossentropy(from_logits=True, name=name, **options)


def losses() -> tp.Any:
    return [
        crossentropy("plain_loss"),
        crossentropy("not_reduced_loss", reduction="none"),
        crossentropy("sum_loss", reduction="sum", weight=0.1),
        crossentropy("weighted_loss", reduction="mean_with_sample_weight"),
        crossentropy("ignoring_loss", ignore_class=0, weight=2.0),
        crossentropy("both_loss", ignore_class=1, reduction="mean_with_sample_weight"),
        crossentropy("ignoring_sum_loss", ignore_class=0, reduction="sum", weight=0.1),
    ]


def samples():
    """Samples whose labels and weights come unevenly, so that no two parts have equal divisors."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(SAMPLES, 4)).astype(np.float32)
    labels = np.sort(generator.integers(CLASSES, size=SAMPLES)).astype(np.int32)
    return x, labels, (np.linspace(0, 3, SAMPLES, dtype=np.float32) ** 2)


def declaring(x):
    mask = elegy.sample_mask()
    mask = None if mask is None else jnp.broadcast_to(mask[:, None], x.shape)
    elegy.add_loss("activity", 0.1 * jnp.mean(x**2, where=mask))
    return elegy.nn.Linear(CLASSES, name="linear")(x)


def make(loss: tp.Any, **options) -> tp.Any:
    module = elegy.to_module(declaring)().init(samples()[0], rng=1)
    return elegy.Model(module, loss=loss, optimizer=optax.sgd(0.1), **options)


def by_hand(model, x, labels, weight):
    """What the losses are over all samples, with 64 bits."""
    logits = np.asarray(model.module(x), np.float64)
    values = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), labels]
    weighted = values * weight
    first, second = labels != 0, labels != 1
    return {
        "plain_loss": weighted.mean(),
        "not_reduced_loss": weighted.mean(),
        "weighted_loss": np.average(values, weights=weight),
        "ignoring_loss": 2 * weighted[first].mean(),
        "both_loss": np.average(values[second], weights=weight[second]),
        "sum_loss": 0.1 * weighted.sum(),
        "ignoring_sum_loss": 0.1 * weighted[first].sum(),
        "activity_loss": 0.1 * np.mean(np.float64(x) ** 2),
    }


@pytest.mark.parametrize("is_weighted", [True, False], ids=["weighted", "unweighted"])
def test_parts_add_up_to_the_whole_batch_for_each_reduction(is_weighted):
    x, labels, weight = samples()
    data = {"x": x, "y": labels, "sample_weight": weight if is_weighted else None}
    whole, parts = make(losses()), make(losses())
    wanted = whole.fit(**data, batch_size=12, epochs=2, shuffle=False, verbose=0).history
    # Groups of 4, 4, 4 and of 4, 4, 2 samples.
    found = parts.fit(**data, batch_size=4, accumulate=3, epochs=2, shuffle=False, verbose=0).history
    assert found.keys() == wanted.keys() == {"loss", "activity_loss", *(loss.name for loss in losses())}
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
        assert values[0] != values[1] or name == "activity_loss"
    assert_close(parts.module.get_parameters(), whole.module.get_parameters(), rtol=1e-5, atol=1e-6)


def test_values_over_batches_are_those_over_all_samples():
    x, labels, weight = samples()
    model = make(losses())
    at_once, in_batches = (model.evaluate(x, labels, size, weight) for size in (SAMPLES, 5))
    wanted = by_hand(model, x, labels, weight)
    for name, value in wanted.items():
        np.testing.assert_allclose(in_batches[name], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(at_once[name], value, rtol=1e-6, err_msg=name)
    for logs in (at_once, in_batches):
        assert logs.keys() == {"loss", *wanted}
        np.testing.assert_allclose(logs["loss"], sum(wanted.values()), rtol=1e-6)
    assert model.traces["test"] == 2  # the short last batch was filled up


class Adding(elegy.Model):
    """Minimises what the model was given, and more."""

    def loss_step(self, x, y, sample_weight):
        y_pred = self.pred_step(x)
        losses = self.compute_losses(x, y, y_pred, sample_weight)
        losses["squares"] = 0.1 * jnp.mean(y_pred**2)
        return losses, y_pred


class Changing(Adding):
    def loss_step(self, x, y, sample_weight):
        losses, y_pred = super().loss_step(x, y, sample_weight)
        return {name: 2 * value for name, value in losses.items()}, y_pred


def test_without_compilation_and_in_steps_of_ones_own():
    x, labels, _ = (array[4:12] for array in samples())
    module = elegy.to_module(declaring)().init(x, rng=1)
    make = functools.partial(Adding, loss=crossentropy("ignoring_loss", ignore_class=0), optimizer=optax.sgd(0.1))
    whole, parts = make(module.copy()), make(module.copy(), run_eagerly=True)
    wanted = whole.fit(x, labels, shuffle=False, verbose=0).history
    found = parts.fit(x, labels, batch_size=4, accumulate=2, shuffle=False, verbose=0).history
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    assert_close(parts.module.get_parameters(), whole.module.get_parameters(), rtol=1e-5, atol=1e-6)
    functional = whole.functional()
    logs, of_state = whole.evaluate(x, labels), jax.jit(functional.eval_step)(functional.read(), x, labels)
    assert logs.keys() == of_state.keys() == wanted.keys()
    for name, value in of_state.items():
        np.testing.assert_allclose(value, logs[name], rtol=1e-6, err_msg=name)


class Watching(elegy.Model):
    """Logs the total of the model, and one that was added up by hand."""

    def test_step(self, x, y, sample_weight):
        losses = self.compute_losses(x, y, self.pred_step(x), sample_weight)
        return {**super().test_step(x, y, sample_weight), "by_hand": sum(losses.values())}


def test_the_total_of_a_test_step_is_exact_and_one_that_is_added_up_is_a_mean_over_batches():
    x, labels, weight = samples()
    weighted = crossentropy("weighted_loss", reduction="mean_with_sample_weight")
    model = Watching(elegy.nn.Linear(CLASSES).init(x, rng=1), weighted)
    logs = [model.evaluate(x[i : i + 8], labels[i : i + 8], 8, weight[i : i + 8]) for i in range(0, SAMPLES, 8)]
    found = model.evaluate(x, labels, 8, weight)
    sizes, weights = [8, 8, 6], [weight[i : i + 8].sum() for i in range(0, SAMPLES, 8)]
    np.testing.assert_allclose(found["loss"], np.average([part["loss"] for part in logs], weights=weights), rtol=1e-5)
    wanted = np.average([part["loss"] for part in logs], weights=sizes)
    np.testing.assert_allclose(found["by_hand"], wanted, rtol=1e-5)
    assert abs(found["by_hand"] - found["loss"]) > 1e-3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: make([crossentropy("plain_loss"), elegy.losses.NTXent()]),
            r"loss\[1\] \(NTXent\) looks at the samples",
        ),
        (lambda: make(elegy.losses.Dice()), r"loss \(Dice\) looks at .*\n.* With axis="),
        (lambda: make(elegy.losses.Tversky(axis=(0, 1))), r"loss \(Tversky\) looks at"),
        (lambda: Changing(elegy.nn.Linear(CLASSES), crossentropy("a", ignore_class=0)), "as compute_losses gave it"),
    ],
    ids=["pairs", "regions", "regions by axis", "changed"],
)
def test_what_parts_do_not_add_up_to(model, message):
    x, labels, _ = samples()
    with pytest.raises(ValueError, match=message):
        model().fit(x, labels, batch_size=4, accumulate=2, verbose=0)
