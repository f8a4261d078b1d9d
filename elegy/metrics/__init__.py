"""Metrics: modules whose state sums up what they were called with."""

import typing as _tp

from elegy import habits as _habits
from elegy.metrics.accuracy import Accuracy as Accuracy, accuracy as accuracy
from elegy.metrics.adapted import Adapted as Adapted
from elegy.metrics.auc import AUC as AUC
from elegy.metrics.average import Average as Average
from elegy.metrics.binary_accuracy import BinaryAccuracy as BinaryAccuracy, binary_accuracy as binary_accuracy
from elegy.metrics.categorical_accuracy import (
    CategoricalAccuracy as CategoricalAccuracy,
    categorical_accuracy as categorical_accuracy,
)
from elegy.metrics.confusion_matrix import ConfusionMatrix as ConfusionMatrix
from elegy.metrics.cosine_similarity import CosineSimilarity as CosineSimilarity
from elegy.metrics.crossentropies import (
    BinaryCrossentropy as BinaryCrossentropy,
    CategoricalCrossentropy as CategoricalCrossentropy,
    Perplexity as Perplexity,
    SparseCategoricalCrossentropy as SparseCategoricalCrossentropy,
)
from elegy.metrics.errors import (
    MeanAbsoluteError as MeanAbsoluteError,
    MeanAbsolutePercentageError as MeanAbsolutePercentageError,
    MeanSquaredError as MeanSquaredError,
    RootMeanSquaredError as RootMeanSquaredError,
)
from elegy.metrics.f1 import F1 as F1, Precision as Precision, Recall as Recall
from elegy.metrics.iou import IoU as IoU, MeanIoU as MeanIoU
from elegy.metrics.mean import Mean as Mean
from elegy.metrics.mean_of import MeanOf as MeanOf
from elegy.metrics.metric import Metric as Metric
from elegy.metrics.r2 import R2 as R2
from elegy.metrics.sparse_categorical_accuracy import (
    SparseCategoricalAccuracy as SparseCategoricalAccuracy,
    sparse_categorical_accuracy as sparse_categorical_accuracy,
)
from elegy.metrics.sum import Sum as Sum
from elegy.metrics.top_k import (
    SparseTopKCategoricalAccuracy as SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy as TopKCategoricalAccuracy,
    sparse_top_k_categorical_accuracy as sparse_top_k_categorical_accuracy,
    top_k_categorical_accuracy as top_k_categorical_accuracy,
)

__all__ = [
    "Accuracy",
    "accuracy",
    "Adapted",
    "AUC",
    "Average",
    "binary_accuracy",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "categorical_accuracy",
    "CategoricalAccuracy",
    "CategoricalCrossentropy",
    "ConfusionMatrix",
    "CosineSimilarity",
    "F1",
    "IoU",
    "Mean",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanIoU",
    "MeanOf",
    "MeanSquaredError",
    "Metric",
    "Perplexity",
    "Precision",
    "R2",
    "Recall",
    "RootMeanSquaredError",
    "sparse_categorical_accuracy",
    "sparse_top_k_categorical_accuracy",
    "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy",
    "Sum",
    "top_k_categorical_accuracy",
    "TopKCategoricalAccuracy",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.metrics", __all__, _habits.METRICS)
