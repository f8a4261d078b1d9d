"""Losses and metrics of a model, as its errors name them: by where the user gave them."""

import re
import typing as tp

import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.losses import MeanSquaredError

X, Y = np.ones([8, 4], np.float32), np.zeros([8, 3], np.float32)


class Raising(elegy.losses.Loss):
    def call(self, y_true, y_pred):
        raise RuntimeError("something else")


class Around(elegy.losses.Loss):
    def __init__(self):
        super().__init__()
        self.inner = Raising()

    def call(self, y_true, y_pred):
        return self.inner(y_true, y_pred)


class Counting(elegy.metrics.Metric):
    def update(self, y_true, y_pred):
        self.add_parameter("n", [], trainable=False)
        raise RuntimeError("something else")

    def compute(self): ...


def too_long(y_true, y_pred):
    return y_true - y_pred[:5]


def free(x):
    return x


CASES: dict[str, tuple[tp.Any, str]] = {
    "the only loss": ({"loss": Raising()}, r"in loss \(Raising.call\)"),
    "in a dict": ({"loss": {"aux": [MeanSquaredError(), Raising()]}}, r"in loss\['aux'\]\[1\] \(Raising.call\)"),
    "in another": ({"loss": [Around()]}, r"in loss\[0\]/inner \(Raising.call\)"),
    "given twice": ({"loss": {"a": free, "b": (loss := Raising()), "c": loss}}, r"in loss\['b'\] \(Raising.call\)"),
    "a function": ({"loss": {"a": too_long}}, r"in loss\['a'\] \(too_long\); inputs: x=.*y_true=float32\[8,3\]"),
    "a lambda": ({"loss": lambda y_true, y_pred: too_long(y_true, y_pred)}, r"in loss \(<lambda>\)"),
    "a metric": ({"loss": free, "metrics": [free, Counting()]}, r"in metrics\[1\] \(Counting.call\)"),
    "a function as a metric": ({"loss": free, "metrics": {"q": too_long}}, r"in metrics\['q'\] \(too_long\)"),
    "a loss as a metric": ({"loss": free, "metrics": Raising()}, r"in metrics \(Raising.call\)"),
    "no such output": (
        {"loss": {"a": MeanSquaredError(on="k")}},
        r"^loss\['a'\] \(MeanSq\w*\): on='k' .* is float32\[",
    ),
    "a sample for an output": (
        {"loss": MeanSquaredError(on=0)},
        r"^loss \(MeanSq\w*\): on=0 selects 0 of y_true, which is",
    ),
}


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_an_error_says_which_of_the_given_it_is(case, run_eagerly):
    arguments, message = CASES[case]
    model = elegy.Model(elegy.nn.Linear(3), run_eagerly=run_eagerly, **arguments)
    with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
        model.fit(X, Y, verbose=0)
    text = "\n".join([str(caught.value), *caught.value.__notes__])
    assert len([*_found(message, text)]) == 1, text
    assert "functions/" not in text and "(Losses.call)" not in text and "(Metrics.call)" not in text


def _found(message, text):
    return re.finditer(message, text, re.MULTILINE)


@pytest.mark.parametrize("loss", [MeanSquaredError(), lambda y_true, y_pred: (y_true - y_pred) ** 2])
def test_weights_that_fit_no_values_name_the_loss(loss):
    model = elegy.Model(elegy.nn.Linear(3), loss={"aux": loss})
    with pytest.raises(
        ValueError, match=r"^loss\['aux'\] \((MeanSquaredError|<lambda>)\): sample_weight has shape \(8, 7\)"
    ):
        model.evaluate(X, Y, sample_weight=np.ones([8, 7], np.float32))


@pytest.mark.parametrize(
    ("x", "y", "hint"),
    [
        (X, {"out": Y}, "given y_true, a dict, and y_pred, one array.*give one array of targets"),
        (X[:, 0], Y, r"y_pred has shape \(3,\) for a batch of 8 samples.* by x\[:, None\]"),
    ],
    ids=["targets by name", "a row of numbers"],
)
def test_outputs_that_are_not_those_of_the_samples(x, y, hint):
    class Array(MeanSquaredError):
        def call(self, y_true, y_pred):
            return super().call(jnp.asarray(y_true), y_pred)

    with pytest.raises((TypeError, ValueError)) as caught:
        elegy.Model(elegy.nn.Linear(3), loss=Array()).evaluate(x, y)
    assert len([*_found(hint, "\n".join(caught.value.__notes__))]) == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("loss", "y", "hint"),
    [
        (elegy.losses.CategoricalCrossentropy(), np.zeros([8], int), r"name begins with sparse"),
        (elegy.losses.CategoricalCrossentropy(), np.zeros([8, 1], int), r"name begins with sparse"),
        (elegy.losses.SparseCategoricalCrossentropy(), np.eye(3, dtype=int)[[0] * 8], r"take y_true.argmax\(-1\)"),
    ],
    ids=["labels for rows", "a column of labels for rows", "rows for labels"],
)
def test_labels_and_rows_that_were_taken_for_each_other(loss, y, hint):
    with pytest.raises(ValueError, match=rf"they must be equal.*\n.*{hint}|without its last axis.*\n.*{hint}"):
        elegy.Model(elegy.nn.Linear(3), loss=loss).evaluate(X, y)


class Declaring(elegy.losses.Loss):
    def call(self, y_true, y_pred):
        elegy.add_metric("largest", jnp.max(y_pred))
        return jnp.mean((y_true - y_pred) ** 2, axis=-1)


def test_a_metric_that_a_loss_declares_has_the_name_of_the_loss():
    logs = elegy.Model(elegy.nn.Linear(3), loss={"aux": [free, Declaring()]}).evaluate(X, Y)
    assert set(logs) == {"loss", "aux_loss/free", "aux_loss/declaring", "aux_loss/declaring/largest"}


class Learning(elegy.losses.Loss):
    def call(self, y_true, y_pred):
        return elegy.nn.Linear(1)(y_true - y_pred)


class TwoNumbers(elegy.metrics.Metric):
    def update(self, y_pred): ...

    def compute(self):
        return jnp.zeros(2)


def test_what_a_loss_holds_and_what_a_metric_gives_are_named_as_well():
    with pytest.raises(elegy.errors.ParameterError, match=r"those of the module only: loss\['aux'\]/linear/b, "):
        elegy.Model(elegy.nn.Linear(3), loss={"aux": Learning()}).fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="two_numbers: what is logged must be a scalar") as caught:
        elegy.Model(elegy.nn.Linear(3), loss=free, metrics=[TwoNumbers()]).evaluate(X, Y)
    assert any(note.startswith("in metrics[0] (TwoNumbers)") for note in caught.value.__notes__)


@pytest.mark.usefixtures("unchecked")
def test_a_message_that_names_a_metric_names_it_as_it_was_given():
    model = elegy.Model(elegy.nn.Linear(3), loss=free, metrics=[free, elegy.metrics.F1()])
    with pytest.raises(ValueError, match=r"^metrics\[1\] \(F1\): y_true has shape \(8, 2\) and y_pred \(8, 3\)"):
        model.evaluate(X, Y[:, :2])
