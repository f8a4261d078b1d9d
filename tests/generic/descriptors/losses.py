"""Losses."""

from typing import Any

import numpy as np

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats, labels

losses = elegy.losses
scores, classes = floats(6, 4), labels(4, 6)
numbers, signs = floats(6, 4, seed=2), np.sign(floats(6, 4, seed=3))
rows, bits = np.eye(4, dtype=np.float32)[classes], (signs + 1) / 2
sequences, steps = labels(3, 2, 2) + 1, floats(2, 5, 4)
views = np.tile(np.arange(3, dtype=np.int32), 2)


class Pairs(elegy.Module):
    """The first axis of an array stands for the two arrays of a pair."""

    def __init__(self, loss: elegy.Loss):
        self.loss = loss

    def call(self, y_true: Any, pairs: Any) -> Any:
        return self.loss(y_true, tuple(pairs))


DESCRIPTORS = [
    Descriptor(
        "MeanSquaredError",
        lambda dtype: losses.MeanSquaredError(dtype=dtype),
        (floats(6, 4) + 1, scores),
        layer=False,
    ),
    Descriptor(
        "SparseCategoricalCrossentropy",
        lambda dtype: losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype),
        (classes, scores),
        layer=False,
    ),
    Descriptor(
        "SparseCategoricalCrossentropy, probabilities, ignored and smoothed",
        lambda dtype: losses.SparseCategoricalCrossentropy(ignore_class=1, label_smoothing=0.1, dtype=dtype),
        (classes, np.abs(scores)),
        layer=False,
    ),
    Descriptor(
        "MeanAbsoluteError",
        lambda dtype: losses.MeanAbsoluteError(dtype=dtype),
        (numbers, scores),
        layer=False,
    ),
    Descriptor(
        "MeanAbsolutePercentageError",
        lambda dtype: losses.MeanAbsolutePercentageError(dtype=dtype),
        (numbers, scores),
        layer=False,
    ),
    Descriptor(
        "MeanSquaredLogarithmicError",
        lambda dtype: losses.MeanSquaredLogarithmicError(dtype=dtype),
        (np.abs(numbers), scores),
        layer=False,
    ),
    Descriptor("CosineSimilarity", lambda dtype: losses.CosineSimilarity(dtype=dtype), (numbers, scores), layer=False),
    Descriptor("Huber", lambda dtype: losses.Huber(dtype=dtype), (numbers, scores), layer=False),
    Descriptor("LogCosh", lambda dtype: losses.LogCosh(dtype=dtype), (numbers, scores), layer=False),
    Descriptor("Poisson", lambda dtype: losses.Poisson(dtype=dtype), (bits, np.abs(scores)), layer=False),
    Descriptor("Hinge", lambda dtype: losses.Hinge(dtype=dtype), (signs, scores), layer=False),
    Descriptor("SquaredHinge", lambda dtype: losses.SquaredHinge(dtype=dtype), (signs, scores), layer=False),
    Descriptor("CategoricalHinge", lambda dtype: losses.CategoricalHinge(dtype=dtype), (rows, scores), layer=False),
    Descriptor("KLDivergence", lambda dtype: losses.KLDivergence(dtype=dtype), (rows, np.abs(scores)), layer=False),
    Descriptor(
        "BinaryCrossentropy",
        lambda dtype: losses.BinaryCrossentropy(from_logits=True, dtype=dtype),
        (bits, scores),
        layer=False,
    ),
    Descriptor(
        "BinaryCrossentropy, probabilities",
        lambda dtype: losses.BinaryCrossentropy(label_smoothing=0.1, dtype=dtype),
        (bits, np.abs(scores) / 4),
        layer=False,
    ),
    Descriptor(
        "BinaryFocalCrossentropy",
        lambda dtype: losses.BinaryFocalCrossentropy(from_logits=True, alpha=0.3, dtype=dtype),
        (bits, scores),
        layer=False,
    ),
    Descriptor(
        "CategoricalCrossentropy",
        lambda dtype: losses.CategoricalCrossentropy(from_logits=True, dtype=dtype),
        (rows, scores),
        layer=False,
    ),
    Descriptor(
        "CategoricalFocalCrossentropy",
        lambda dtype: losses.CategoricalFocalCrossentropy(from_logits=True, alpha=[1, 2, 3, 4], dtype=dtype),
        (rows, scores),
        layer=False,
    ),
    Descriptor("CTC", lambda dtype: losses.CTC(dtype=dtype), (sequences, steps), layer=False),
    Descriptor("Dice", lambda dtype: losses.Dice(axis=1, dtype=dtype), (bits, np.abs(scores) / 4), layer=False),
    Descriptor("Tversky", lambda dtype: losses.Tversky(dtype=dtype), (bits, np.abs(scores) / 4), layer=False),
    # The first axis of an array stands for the three arrays of a tuple.
    Descriptor(
        "Triplet",
        lambda dtype: elegy.nn.Sequential(lambda: [tuple, losses.Triplet(dtype=dtype)]),
        (floats(3, 6, 4),),
        layer=False,
    ),
    Descriptor(
        "Contrastive",
        lambda dtype: Pairs(losses.Contrastive(dtype=dtype)),
        (bits[:, 0], np.stack([scores, scores + 1])),
        layer=False,
    ),
    Descriptor("NTXent", lambda dtype: losses.NTXent(dtype=dtype), (views, scores), layer=False),
]
