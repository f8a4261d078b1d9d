"""What metrics do with their arguments: weights and masks, and labels that must fit scores."""

from __future__ import annotations

import operator
import typing as tp
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num, Shaped

from elegy.losses.arguments import class_labels, comparable, missing_axis, weights_for

Weights = Num[ArrayLike, "..."] | None
Mask = Bool[ArrayLike, "..."] | None


def weights_of(
    owner: Callable[[], str], like: Float[Array, "*shape"], sample_weight: Weights, mask: Mask
) -> Float[Array, "*shape"] | None:
    """The weights of values: `sample_weight`, and 0 where the mask is False. None if neither is given."""
    weights = None
    if sample_weight is not None:
        weights = weights_for(owner, like, sample_weight)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"{owner()}: mask must hold bools, True for what counts, got {mask.dtype}{list(mask.shape)}.\n"
                "  Numbers are given as sample_weight; those of 0 and 1 are a mask by mask.astype(bool)."
            )
        kept = weights_for(owner, like, mask, "mask")
        weights = kept if weights is None else jnp.where(kept == 0, 0, weights)
    return weights


def weighted(values: Float[Array, "*shape"], weights: Float[Array, "*shape"] | None) -> Float[Array, "*shape"]:
    """Values times weights. What has no weight does not count, not even if it is NaN, as padding may be."""
    return values if weights is None else jnp.where(weights == 0, 0, weights * values)


def ratio(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`a / b`, and 0 where both are."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def valid_weights(
    owner: Callable[[], str], valid: Bool[Array, "*shape"], dtype: tp.Any, sample_weight: Weights, mask: Mask
) -> tuple[Float[Array, "*shape"], Bool[Array, ""]]:
    """The weights of examples, 0 for those that are not valid; and whether one of these had another weight."""
    ones = jnp.ones(valid.shape, dtype)
    weights = weighted(ones, weights_of(owner, ones, sample_weight, mask))
    return jnp.where(valid, weights, 0), jnp.any(~valid & (weights != 0))


def is_class(labels: Int[Array, "*shape"], classes: int) -> Bool[Array, "*shape"]:
    """Where labels are from 0 to `classes - 1`."""
    return (labels >= 0) & (labels < classes)


def has_nan(scores: Float[Array, "*batch classes"]) -> Bool[Array, "*batch"]:
    """Where some score is NaN, so that none is the highest."""
    return jnp.any(jnp.isnan(scores), axis=-1)


def where_valid(
    values: Bool[Array, "*shape"], valid: Bool[Array, "*shape"], dtype: tp.Any = jnp.float32
) -> Float[Array, "*shape"]:
    """0 and 1, and NaN where there is no label or prediction: a mean of it shows what a wrong count would hide."""
    return jnp.where(valid, values.astype(dtype), jnp.nan)


def same_shape(
    owner: str, y_true: Shaped[ArrayLike, "..."], y_pred: Shaped[ArrayLike, "..."], hint: str = ""
) -> tuple[Array, Array]:
    """Targets and predictions as arrays, whose shapes must be equal."""
    y_true, y_pred = jnp.asarray(y_true), jnp.asarray(y_pred)
    if y_true.shape != y_pred.shape:
        missing = missing_axis({"y_true": y_true.shape, "y_pred": y_pred.shape})
        raise ValueError(
            f"{owner}: y_true has shape {y_true.shape} and y_pred {y_pred.shape}; they must be equal."
            + (missing or hint and f"\n  {hint}")
        )
    return y_true, y_pred


def rows(owner: str, y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]) -> tuple[Array, Array]:
    """One-hot rows and scores, in one dtype of at least float32, with an axis of classes."""
    y_true, y_pred = jnp.asarray(y_true), jnp.asarray(y_pred)
    if y_true.shape == y_pred.shape[:-1] and y_pred.ndim > 0:
        raise ValueError(
            f"{owner}: y_true has shape {y_true.shape} and y_pred {y_pred.shape}; they must be equal.\n"
            "  Integer labels are for the function or metric whose name begins with sparse; or make them rows by "
            "jax.nn.one_hot."
        )
    targets, scores = comparable(owner, y_true, y_pred)
    if targets.ndim == 0:
        raise ValueError(f"{owner}: y_true and y_pred must have an axis of classes, got scalars.")
    return targets, scores


def binary(
    owner: str, y_true: Shaped[ArrayLike, "..."], y_pred: Shaped[ArrayLike, "..."]
) -> tuple[Bool[Array, "*shape"], Float[Array, "*shape"], Bool[Array, "*shape"]]:
    """Which labels are 1, the scores, of at least float32, and where both are valid: labels 0 or 1, and no NaN."""
    y_true, y_pred = same_shape(owner, y_true, y_pred, "The labels are 0 and 1; of several classes take one at a time.")
    labels, scores = comparable(owner, y_true, y_pred)
    return labels == 1, scores, ((labels == 0) | (labels == 1)) & ~jnp.isnan(scores)


def positive_integer(metric: str, name: str, value: tp.Any) -> int:
    """An argument that must be a positive integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"elegy.metrics.{metric}: {name} must be a positive integer, got {value!r}.")
    return number


def classes_of(
    owner: Callable[[], str], y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."], num_classes: int | None
) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"], int]:
    """True and predicted labels, and how many classes there are. A row of scores with a NaN predicts -1."""
    y_true, y_pred = jnp.asarray(y_true), jnp.asarray(y_pred)
    if jnp.issubdtype(y_pred.dtype, jnp.floating):
        labels, scores = class_labels(owner(), y_true, y_pred)
        classes = scores.shape[-1]
        if num_classes not in (None, classes):
            raise ValueError(f"{owner()}: y_pred has scores of {classes} classes, and num_classes is {num_classes}.")
        predicted = jnp.argmax(scores, axis=-1).astype(labels.dtype)
        return labels, jnp.where(has_nan(scores), -1, predicted), classes
    for name, labels in (("y_true", y_true), ("y_pred", y_pred)):
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(
                f"{owner()}: {name} must hold integer class labels, got {labels.dtype}{list(labels.shape)}."
            )
    y_true, y_pred = same_shape(owner(), y_true, y_pred, "Scores of classes, in one axis more, are floats.")
    if num_classes is None:
        raise ValueError(
            f"{owner()}: y_pred holds labels, which do not say how many classes there are.\n"
            "  Give num_classes=..., or scores of the classes for y_pred."
        )
    return y_true.astype(jnp.int32), y_pred.astype(jnp.int32), num_classes
