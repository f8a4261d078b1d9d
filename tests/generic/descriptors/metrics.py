"""Metrics. Those that are called as losses are have a prefix."""

import numpy as np

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats, labels

metrics = elegy.metrics
scores, classes, weights = floats(6, 4), labels(4, 6), np.abs(floats(6))
predicted, probabilities, binary = labels(4, 6, seed=2), 1 / (1 + np.exp(-floats(6))), labels(2, 6)
rows, normal = np.eye(4, dtype=np.float32)[classes], np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


def entry(name, factory, *inputs):
    return Descriptor(name, factory, (*inputs, weights), layer=False)


DESCRIPTORS = [
    entry("Mean", lambda dtype: metrics.Mean(dtype=dtype), scores),
    entry("Sum", lambda dtype: metrics.Sum(dtype=dtype), scores),
    entry("Accuracy", lambda dtype: metrics.Accuracy(dtype=dtype), classes, predicted),
    entry("BinaryAccuracy", lambda dtype: metrics.BinaryAccuracy(dtype=dtype), binary, probabilities),
    entry("CategoricalAccuracy", lambda dtype: metrics.CategoricalAccuracy(dtype=dtype), rows, scores),
    entry("SparseCategoricalAccuracy", lambda dtype: metrics.SparseCategoricalAccuracy(dtype=dtype), classes, scores),
    entry("TopKCategoricalAccuracy", lambda dtype: metrics.TopKCategoricalAccuracy(2, dtype=dtype), rows, scores),
    entry(
        "SparseTopKCategoricalAccuracy",
        lambda dtype: metrics.SparseTopKCategoricalAccuracy(2, dtype=dtype),
        classes,
        scores,
    ),
    entry("Precision", lambda dtype: metrics.Precision(dtype=dtype), binary, probabilities),
    entry("Precision, thresholds", lambda dtype: metrics.Precision(threshold=[0.2, 0.7]), binary, probabilities),
    entry("Recall", lambda dtype: metrics.Recall("macro", num_classes=4, dtype=dtype), classes, predicted),
    entry("Recall, one class", lambda dtype: metrics.Recall(class_id=2), classes, scores),
    entry("F1", lambda dtype: metrics.F1("weighted", dtype=dtype), classes, scores),
    entry("F1, all classes", lambda dtype: metrics.F1(None), classes, scores),
    entry("ConfusionMatrix", lambda dtype: metrics.ConfusionMatrix(4, dtype=dtype), classes, predicted),
    entry("IoU", lambda dtype: metrics.IoU(4, dtype=dtype), classes, predicted),
    entry("MeanIoU", lambda dtype: metrics.MeanIoU(4, dtype=dtype), classes, scores),
    entry("AUC", lambda dtype: metrics.AUC(num_thresholds=20, dtype=dtype), binary, probabilities),
    entry("AUC, PR", lambda dtype: metrics.AUC("PR", num_thresholds=20, from_logits=True), binary, floats(6)),
    entry("R2", lambda dtype: metrics.R2(dtype=dtype), scores, floats(6, 4, seed=3)),
    entry("metrics.MeanSquaredError", lambda dtype: metrics.MeanSquaredError(dtype=dtype), rows, scores),
    entry("metrics.RootMeanSquaredError", lambda dtype: metrics.RootMeanSquaredError(dtype=dtype), rows, scores),
    entry("metrics.MeanAbsoluteError", lambda dtype: metrics.MeanAbsoluteError(dtype=dtype), rows, scores),
    entry(
        "metrics.MeanAbsolutePercentageError",
        lambda dtype: metrics.MeanAbsolutePercentageError(dtype=dtype),
        normal,
        scores,
    ),
    entry("metrics.CosineSimilarity", lambda dtype: metrics.CosineSimilarity(dtype=dtype), rows, scores),
    entry("metrics.BinaryCrossentropy", lambda dtype: metrics.BinaryCrossentropy(dtype=dtype), binary, probabilities),
    entry("metrics.BinaryCrossentropy, logits", lambda dtype: metrics.BinaryCrossentropy(True), binary, floats(6)),
    entry("metrics.CategoricalCrossentropy", lambda dtype: metrics.CategoricalCrossentropy(dtype=dtype), rows, normal),
    entry("metrics.CategoricalCrossentropy, logits", lambda dtype: metrics.CategoricalCrossentropy(True), rows, scores),
    entry(
        "metrics.SparseCategoricalCrossentropy",
        lambda dtype: metrics.SparseCategoricalCrossentropy(dtype=dtype),
        classes,
        normal,
    ),
    entry("Perplexity", lambda dtype: metrics.Perplexity(True, dtype=dtype), classes, scores),
]
