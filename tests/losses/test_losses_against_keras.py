"""Values and gradients are compared with those of Keras, for each reduction, weighting and smoothing.

Where Keras differs from the formula, or from another one of its own, the formula is what is compared with.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import elegy

pytestmark = pytest.mark.usefixtures("default_promotion", "unchecked")

losses, theirs = elegy.losses, keras.losses
RNG = np.random.default_rng(0)
SHAPE = (4, 3, 5)  # two axes of samples: a weight for each row, or for each value


def normal() -> np.ndarray:
    return RNG.normal(size=SHAPE).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


NUMBERS, OTHERS = normal(), normal()
POSITIVE, COUNTS = np.abs(normal()) + 0.1, RNG.poisson(2.0, size=SHAPE).astype(np.float32)
BINARY = RNG.integers(0, 2, size=SHAPE).astype(np.float32)
SIGNS = 2 * BINARY - 1
PROBABILITIES, CHANCES = softmax(normal()), (1 / (1 + np.exp(-normal())))
LABELS = RNG.integers(0, 5, size=SHAPE[:2])
ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]
PER_ROW = np.array([1.0, 0.0, 2.0, 0.5], np.float32)[:, None]
PER_VALUE = RNG.uniform(0, 2, size=SHAPE[:2]).astype(np.float32)

REDUCTIONS = ("none", "sum", "sum_over_batch_size", "mean", "mean_with_sample_weight")

# Name, our arguments, Keras's arguments if they are others, targets, predictions.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], np.ndarray, np.ndarray]] = {}


def case(name: str, y_true: np.ndarray, y_pred: np.ndarray, own: dict[str, Any] | None = None, **options: Any) -> None:
    label = ", ".join([name, *(f"{key}={value}" for key, value in options.items())])
    CASES[label] = name, options if own is None else own, options, y_true, y_pred


case("MeanSquaredError", NUMBERS, OTHERS)
case("MeanAbsoluteError", NUMBERS, OTHERS)
case("MeanAbsolutePercentageError", NUMBERS, OTHERS)
case("MeanSquaredLogarithmicError", POSITIVE, NUMBERS)
case("CosineSimilarity", NUMBERS, OTHERS)
case("CosineSimilarity", NUMBERS[:, 0], OTHERS[:, 0], axis=0)
case("Huber", NUMBERS, OTHERS)
case("Huber", NUMBERS, OTHERS, delta=0.3)
case("LogCosh", NUMBERS, OTHERS)
case("Hinge", SIGNS, OTHERS)
case("Hinge", BINARY, OTHERS)
case("SquaredHinge", SIGNS, OTHERS)
case("SquaredHinge", BINARY, OTHERS)
case("CategoricalHinge", ONE_HOT, OTHERS)
case("KLDivergence", PROBABILITIES, softmax(OTHERS))
case("KLDivergence", ONE_HOT, PROBABILITIES)
case("Poisson", COUNTS, POSITIVE)
for smoothing in (0.0, 0.2):
    for name in ("BinaryCrossentropy", "BinaryFocalCrossentropy"):
        case(name, BINARY, CHANCES, label_smoothing=smoothing)
        case(name, BINARY, NUMBERS, from_logits=True, label_smoothing=smoothing)
    for name in ("CategoricalCrossentropy", "CategoricalFocalCrossentropy"):
        case(name, ONE_HOT, PROBABILITIES, label_smoothing=smoothing)
        case(name, PROBABILITIES, NUMBERS, from_logits=True, label_smoothing=smoothing)
for focus in (0.5, 1.0, 3.0):
    case("BinaryFocalCrossentropy", BINARY, CHANCES, gamma=focus)
    case("CategoricalFocalCrossentropy", ONE_HOT, NUMBERS, gamma=focus, alpha=0.6, from_logits=True)
case("BinaryFocalCrossentropy", CHANCES, 1 - CHANCES, {"alpha": 0.3}, alpha=0.3, apply_class_balancing=True)
case("CategoricalFocalCrossentropy", ONE_HOT, PROBABILITIES, alpha=[0.1, 0.2, 0.3, 0.4, 0.5])
case("CategoricalCrossentropy", np.moveaxis(ONE_HOT, -1, 1), np.moveaxis(NUMBERS, -1, 1), from_logits=True, axis=1)
case("SparseCategoricalCrossentropy", LABELS, NUMBERS, from_logits=True)
case("SparseCategoricalCrossentropy", LABELS, 3 * PROBABILITIES)
case("SparseCategoricalCrossentropy", LABELS, NUMBERS, from_logits=True, ignore_class=2)
case("SparseCategoricalCrossentropy", LABELS, PROBABILITIES, ignore_class=2)
case("SparseCategoricalCrossentropy", LABELS - 1, NUMBERS, from_logits=True, ignore_class=-1)
case("Dice", BINARY, CHANCES)
case("Dice", BINARY, CHANCES, axis=(1, 2))
case("Tversky", BINARY, CHANCES)
# In Keras alpha weights what its documentation, and the paper, call false negatives.
case("Tversky", BINARY, CHANCES, {"alpha": 0.3, "beta": 0.8}, alpha=0.8, beta=0.3)
case("Tversky", BINARY, CHANCES, {"alpha": 0.3, "beta": 0.8, "axis": (1, 2)}, alpha=0.8, beta=0.3, axis=(1, 2))
case("CTC", np.array([[1, 2], [3, 0], [2, 2], [4, 1]]), normal())


def compare(ours: Any, other: Any, y_pred: Any, rtol: float = 2e-5) -> None:
    """Values and gradients with respect to predictions, along one direction for losses that are not reduced."""

    def value_and_gradient(loss: Callable[..., Any]) -> Any:
        def call(y_pred: Any) -> Any:
            value = jnp.asarray(loss(y_pred))
            return jnp.sum(value * jnp.cos(jnp.arange(value.size)).reshape(value.shape)), value

        return jax.grad(call, has_aux=True)(jnp.asarray(y_pred))

    gradient, value = value_and_gradient(ours)
    expected_gradient, expected = value_and_gradient(other)
    assert value.shape == expected.shape and value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=rtol, atol=2e-6)


@pytest.mark.parametrize("label", CASES)
def test_values_and_gradients(label: str) -> None:
    name, own, options, y_true, y_pred = CASES[label]
    values = getattr(losses, name)(reduction="none", **own)(y_true, y_pred)
    weights = RNG.uniform(0, 2, size=values.shape).astype(np.float32)
    for reduction, weight in itertools.product(REDUCTIONS, (None, weights)):
        if values.ndim == 0 and weight is not None and reduction == "mean_with_sample_weight":
            continue  # Keras returns one value as it is, without dividing by its weight
        ours = getattr(losses, name)(reduction=reduction, **own)
        other = getattr(theirs, name)(reduction=reduction, **options)
        if (reduction, weight is None) in (("none", True), ("sum_over_batch_size", False)):
            compare(
                lambda y, loss=ours, weight=weight: loss(y_true, y, weight),
                lambda y, loss=other, weight=weight: loss(y_true, y, weight),
                y_pred,
            )
        else:
            np.testing.assert_allclose(ours(y_true, y_pred, weight), other(y_true, y_pred, weight), rtol=2e-5)


@pytest.mark.parametrize("name", ["MeanAbsoluteError", "SparseCategoricalCrossentropy, ignored"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighting", [None, "row", "value"])
@pytest.mark.parametrize("reduction", [None, *REDUCTIONS])
def test_reductions_weights_and_masks(reduction: Any, weighting: Any, masked: bool, name: str) -> None:
    name, *ignored = name.split(", ")
    options: dict[str, Any] = {"from_logits": True, "ignore_class": 2} if ignored else {}
    y_true = LABELS if ignored else NUMBERS
    weight = {None: None, "row": np.broadcast_to(PER_ROW, SHAPE[:2]), "value": PER_VALUE}[weighting]
    mask = np.arange(12).reshape(SHAPE[:2]) % 3 > 0 if masked else None
    # None is the default here and no reduction in Keras.
    ours = getattr(losses, name)(reduction=reduction, **options)
    other = getattr(theirs, name)(reduction=reduction or "sum_over_batch_size", **options)

    def with_mask(y_pred: Any) -> Any:
        y_pred = jnp.array(y_pred)
        if mask is not None:
            keras.src.backend.set_keras_mask(y_pred, jnp.asarray(mask))
        return keras.src.losses.loss.reduce_weighted_values(
            *_values_and_mask(other, y_true, y_pred, weight, mask), reduction=other.reduction
        )

    compare(lambda y: ours(y_true, y, sample_weight=weight, mask=mask), with_mask, OTHERS)


def _values_and_mask(loss: Any, y_true: Any, y_pred: Any, weight: Any, mask: Any) -> tuple[Any, Any, Any]:
    values = loss.call(y_true, y_pred)
    of_values = keras.src.backend.get_keras_mask(values)
    masks = [one for one in (mask, of_values) if one is not None]
    return values, weight, np.logical_and.reduce(masks) if masks else None
