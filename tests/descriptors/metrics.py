"""Metrics."""

import numpy as np

import elegy
from tests.descriptors.descriptor import Descriptor, floats, labels

metrics = elegy.metrics
scores, classes, weights = floats(6, 4), labels(4, 6), np.abs(floats(6))

DESCRIPTORS = [
    Descriptor("Mean", lambda dtype: metrics.Mean(dtype=dtype), (scores, weights), layer=False),
    Descriptor(
        "SparseCategoricalAccuracy",
        lambda dtype: metrics.SparseCategoricalAccuracy(dtype=dtype),
        (classes, scores, weights),
        layer=False,
    ),
]
