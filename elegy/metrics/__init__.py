"""Metrics: modules whose state sums up what they were called with."""

from elegy.metrics.average import Average as Average
from elegy.metrics.mean import Mean as Mean
from elegy.metrics.metric import Metric as Metric
from elegy.metrics.sparse_categorical_accuracy import (
    SparseCategoricalAccuracy as SparseCategoricalAccuracy,
    sparse_categorical_accuracy as sparse_categorical_accuracy,
)

__all__ = ["Average", "Mean", "Metric", "sparse_categorical_accuracy", "SparseCategoricalAccuracy"]
