"""Metrics: modules whose state sums up what they were called with."""

import typing as _tp

from elegy import habits as _habits
from elegy.metrics.average import Average as Average
from elegy.metrics.mean import Mean as Mean
from elegy.metrics.metric import Metric as Metric
from elegy.metrics.sparse_categorical_accuracy import (
    SparseCategoricalAccuracy as SparseCategoricalAccuracy,
    sparse_categorical_accuracy as sparse_categorical_accuracy,
)

__all__ = ["Average", "Mean", "Metric", "sparse_categorical_accuracy", "SparseCategoricalAccuracy"]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.metrics", __all__, _habits.METRICS)
