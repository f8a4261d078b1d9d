"""Losses."""

import numpy as np

import elegy
from tests.descriptors.descriptor import Descriptor, floats, labels

losses = elegy.losses
scores, classes, weights = floats(6, 4), labels(4, 6), np.abs(floats(6))

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
]
