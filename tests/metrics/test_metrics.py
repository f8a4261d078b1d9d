"""Values are compared with scikit-learn on all batches at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec as P

import elegy
from elegy.metrics import (
    AUC,
    F1,
    R2,
    Accuracy,
    Adapted,
    BinaryAccuracy,
    BinaryCrossentropy,
    CategoricalAccuracy,
    CategoricalCrossentropy,
    ConfusionMatrix,
    CosineSimilarity,
    IoU,
    Mean,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanIoU,
    MeanOf,
    MeanSquaredError,
    Perplexity,
    Precision,
    Recall,
    RootMeanSquaredError,
    SparseCategoricalAccuracy,
    SparseCategoricalCrossentropy,
    SparseTopKCategoricalAccuracy,
    Sum,
    TopKCategoricalAccuracy,
)
from tests.helpers import assert_same

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(3, 5, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, size=(3, 5))
WEIGHTS = RNG.uniform(size=(3, 5)).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_accuracy_of_all_batches_so_far(weighted: bool) -> None:
    accuracy = SparseCategoricalAccuracy()
    predicted = SCORES.argmax(-1)
    for batch in range(3):
        weights = WEIGHTS[batch] if weighted else None
        found = accuracy(LABELS[batch], SCORES[batch], sample_weight=weights)
        expected = sk.accuracy_score(
            LABELS[: batch + 1].ravel(),
            predicted[: batch + 1].ravel(),
            sample_weight=WEIGHTS[: batch + 1].ravel() if weighted else None,
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mean() -> None:
    mean = Mean()
    for batch in range(3):
        found = mean(SCORES[batch], WEIGHTS[batch])
        values, weights = SCORES[: batch + 1], np.broadcast_to(WEIGHTS[: batch + 1, :, None], (batch + 1, 5, 4))
        np.testing.assert_allclose(found, np.average(values, weights=weights), rtol=1e-5)


@pytest.mark.parametrize("values", [3, 3.0, True, np.array([3, 3]), np.array([True, True])])
def test_mean_of_other_types(values: Any) -> None:
    assert Mean()(values) == np.mean(values)


def test_the_function_twin() -> None:
    values = elegy.metrics.sparse_categorical_accuracy(LABELS, SCORES)
    np.testing.assert_array_equal(values, (SCORES.argmax(-1) == LABELS).astype(np.float32))
    column = elegy.metrics.sparse_categorical_accuracy(LABELS[..., None], SCORES)
    np.testing.assert_array_equal(column, values)


def test_labels_of_any_integer_dtype() -> None:
    scores = np.zeros([2, 300], np.float32)
    scores[0, 299], scores[1, 43] = 1, 1
    for dtype in (np.int8, np.uint8, np.int16, np.int64):
        assert elegy.metrics.sparse_categorical_accuracy(np.array([43, 43], dtype), scores).tolist() == [0, 1]


def test_reset_keeps_what_was_compiled() -> None:
    accuracy = SparseCategoricalAccuracy()
    compiled = elegy.jit(accuracy)
    for _ in range(2):
        found = [float(compiled(LABELS[batch], SCORES[batch], WEIGHTS[batch])) for batch in range(3)]
        eager = SparseCategoricalAccuracy()
        expected = [float(eager(LABELS[batch], SCORES[batch], WEIGHTS[batch])) for batch in range(3)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        accuracy.reset()
    assert compiled.traces == 1
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(accuracy)} == {"float32"}


def test_reset_before_the_first_call() -> None:
    accuracy = SparseCategoricalAccuracy()
    accuracy.reset()
    assert accuracy(LABELS[0], np.eye(4, dtype=np.float32)[LABELS[0]]) == 1


def test_reset_inside_a_compiled_function() -> None:
    mean = Mean()

    @elegy.jit
    def pure(mean: Any, values: Any) -> Any:
        mean.reset()
        return mean(values), mean

    mean(jnp.ones([2]))
    found, mean = pure(mean, jnp.full([2], 3.0))
    assert found == 3 and mean.count == 2


def test_no_weight_at_all_is_zero() -> None:
    assert Mean()(jnp.ones([2]), jnp.zeros([2])) == 0
    assert Mean()(jnp.ones([0])) == 0


def test_state_is_not_trainable() -> None:
    mean = Mean().init(jnp.ones([2]))
    assert mean.get_parameters(trainable=True) == {}
    assert set(mean.get_parameters(trainable=False)) == {"sums"}


def test_half_precision_counts_in_single() -> None:
    mean = Mean(dtype=jnp.bfloat16)
    for _ in range(3):
        mean(jnp.ones([1000], jnp.bfloat16))
    assert mean.count == 3000 and mean.count.dtype == jnp.float32


@pytest.mark.parametrize(("on", "wrap"), [("a", lambda y: {"a": y}), (1, lambda y: (None, y))])
def test_on(on: Any, wrap: Any) -> None:
    expected = SparseCategoricalAccuracy()(LABELS, SCORES)
    assert SparseCategoricalAccuracy(on=on)(wrap(LABELS), wrap(SCORES)) == expected
    assert SparseCategoricalAccuracy(on=on)(y_true=wrap(LABELS), y_pred=wrap(SCORES)) == expected


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"sparse_categorical_accuracy: sample_weight has shape \(3,\)"):
        SparseCategoricalAccuracy()(LABELS[0], SCORES[0], jnp.ones([3]))


def test_a_name_is_given_by_keyword() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        Mean(*["loss"])  # as in Keras; here the first option is `on`
    with pytest.raises(ValueError, match="mean: on='loss' selects a part of y_true and y_pred.*neither.*\n.*name="):
        Mean(on="loss")(jnp.ones([2]))


# ---------------------------------------------------------------------------------------------------------------------
# All metrics
# ---------------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A metric, what makes targets and predictions for it, and the value in NumPy or scikit-learn, given weights."""

    name: str
    make: Callable[[], Any]
    data: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    expected: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
    empty: Any = 0.0
    direction: str | None = "min"


def some_labels(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 4, size), rng.integers(0, 4, size)


def some_scores(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 4, size), rng.normal(size=(size, 4)).astype(np.float32)


def some_probabilities(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = some_scores(rng, size)
    return labels, softmax(scores)


def some_rows(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = some_scores(rng, size)
    return np.eye(4, dtype=np.float32)[labels], scores


def some_binary(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 2, size), rng.uniform(0.01, 0.99, size=size).astype(np.float32)


def some_logits(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 2, size), rng.normal(size=size).astype(np.float32)


def some_numbers(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    y_true, noise = rng.normal(size=(2, size, 3)).astype(np.float32)
    return y_true, y_true + noise


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


def unit_sum(p: np.ndarray) -> np.ndarray:
    return p / p.sum(-1, keepdims=True)


def average(values: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    def expected(y_true: Any, y_pred: Any, w: Any) -> Any:
        found = np.asarray(values(y_true, y_pred), np.float64)
        return np.average(found, weights=np.broadcast_to(w.reshape(-1, *[1] * (found.ndim - 1)), found.shape))

    return expected


def scored(score: Any, **options: Any) -> Callable[[Any, Any, Any], Any]:
    """A score of scikit-learn; of scores the class of the highest one is predicted."""

    def expected(y_true: Any, y_pred: Any, w: Any) -> Any:
        chosen = y_pred if y_pred.ndim == 1 else y_pred.argmax(-1)
        return score(y_true, chosen, sample_weight=w, zero_division=0, **options)

    return expected


def above(threshold: float) -> Callable[[Any, Any, Any], Any]:
    return lambda y_true, y_pred, w: sk.precision_score(y_true, y_pred > threshold, sample_weight=w, zero_division=0)


def log_loss(labels: list[int], convert: Callable[[Any], Any] = lambda p: p) -> Callable[[Any, Any, Any], Any]:
    return lambda y_true, y_pred, w: sk.log_loss(
        y_true if y_true.ndim == 1 else y_true.argmax(-1),
        convert(y_pred.astype(np.float64)),
        sample_weight=w,
        labels=labels,
    )


def top_k(k: int) -> Callable[[Any, Any, Any], Any]:
    return lambda y_true, y_pred, w: sk.top_k_accuracy_score(
        y_true if y_true.ndim == 1 else y_true.argmax(-1), y_pred, k=k, sample_weight=w, labels=range(4)
    )


def confusion(y_true: Any, y_pred: Any, w: Any, normalize: Any = None) -> Any:
    return sk.confusion_matrix(y_true, y_pred, sample_weight=w, labels=range(4), normalize=normalize)


FOUR = [0, 1, 2, 3]
CASES = [
    Case(
        "Accuracy",
        Accuracy,
        some_labels,
        lambda y_true, y_pred, w: sk.accuracy_score(y_true, y_pred, sample_weight=w),
        direction="max",
    ),
    Case(
        "BinaryAccuracy",
        BinaryAccuracy,
        some_binary,
        lambda y_true, y_pred, w: sk.accuracy_score(y_true, y_pred > 0.5, sample_weight=w),
        direction="max",
    ),
    Case(
        "BinaryAccuracy, threshold",
        lambda: BinaryAccuracy(0.3),
        some_binary,
        lambda y_true, y_pred, w: sk.accuracy_score(y_true, y_pred > 0.3, sample_weight=w),
        direction="max",
    ),
    Case(
        "CategoricalAccuracy",
        CategoricalAccuracy,
        some_rows,
        average(lambda y_true, y_pred: y_true.argmax(-1) == y_pred.argmax(-1)),
        direction="max",
    ),
    Case(
        "SparseCategoricalAccuracy",
        SparseCategoricalAccuracy,
        some_scores,
        average(lambda y_true, y_pred: y_true == y_pred.argmax(-1)),
        direction="max",
    ),
    Case("TopK", lambda: TopKCategoricalAccuracy(2), some_rows, top_k(2), direction="max"),
    Case("SparseTopK", lambda: SparseTopKCategoricalAccuracy(3), some_scores, top_k(3), direction="max"),
    Case("Precision", Precision, some_binary, above(0.5), direction="max"),
    Case(
        "Precision, thresholds",
        lambda: Precision(threshold=[0.2, 0.7]),
        some_binary,
        lambda *data: [above(0.2)(*data), above(0.7)(*data)],
        empty=[0.0, 0.0],
        direction="max",
    ),
    Case(
        "Recall, logits",
        lambda: Recall(threshold=0),
        some_logits,
        lambda y_true, y_pred, w: scored(sk.recall_score)(y_true, (y_pred > 0).astype(int), w),
        direction="max",
    ),
    *[
        Case(
            f"F1, {kind}",
            functools.partial(F1, kind),
            some_scores,
            scored(sk.f1_score, average=kind),
            empty=0.0 if kind else [],
            direction="max",
        )
        for kind in ("macro", None)
    ],
    Case(
        "F1, labels",
        lambda: F1("macro", num_classes=7),  # some are never there
        some_labels,
        scored(sk.f1_score, average="macro"),
        direction="max",
    ),
    Case(
        "Recall, one class",
        lambda: Recall(class_id=2),
        some_scores,
        lambda *data: scored(sk.recall_score, average=None)(*data)[2],
        direction="max",
    ),
    Case("AUC", AUC, some_binary, lambda a, b, w: sk.roc_auc_score(a, b, sample_weight=w), direction="max"),
    Case(
        "AUC, PR",
        lambda: AUC("PR", from_logits=True),
        some_logits,
        lambda a, b, w: sk.average_precision_score(a, b, sample_weight=w),
        direction="max",
    ),
    Case(
        "R2",
        R2,
        lambda rng, size: tuple(part + np.float32(1e3) for part in some_numbers(rng, size)),
        lambda a, b, w: sk.r2_score(a.astype(np.float64), b.astype(np.float64), sample_weight=w),
        direction="max",
    ),
    Case(
        "R2, one output",
        R2,
        lambda rng, size: tuple(part[:, 0] for part in some_numbers(rng, size)),
        lambda a, b, w: sk.r2_score(a, b, sample_weight=w),
        direction="max",
    ),
    Case("IoU", lambda: IoU(4), some_labels, scored(sk.jaccard_score, average=None), [0.0] * 4, direction="max"),
    Case("MeanIoU", lambda: MeanIoU(7), some_labels, scored(sk.jaccard_score, average="macro"), direction="max"),
    Case("ConfusionMatrix", lambda: ConfusionMatrix(4), some_labels, confusion, np.zeros([4, 4]), direction=None),
    Case(
        "MeanSquaredError", MeanSquaredError, some_numbers, lambda a, b, w: sk.mean_squared_error(a, b, sample_weight=w)
    ),
    Case(
        "RootMeanSquaredError",
        RootMeanSquaredError,
        some_numbers,
        lambda a, b, w: np.sqrt(sk.mean_squared_error(a, b, sample_weight=w)),
    ),
    Case(
        "MeanAbsoluteError",
        MeanAbsoluteError,
        some_numbers,
        lambda a, b, w: sk.mean_absolute_error(a, b, sample_weight=w),
    ),
    Case(
        "MeanAbsolutePercentageError",
        MeanAbsolutePercentageError,
        some_numbers,
        lambda a, b, w: 100 * sk.mean_absolute_percentage_error(a, b, sample_weight=w),
    ),
    Case(
        "CosineSimilarity",
        CosineSimilarity,
        some_numbers,
        average(lambda a, b: (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)),
        direction="max",
    ),
    Case(
        "CosineSimilarity, axis",
        lambda: CosineSimilarity(axis=1),
        lambda rng, size: tuple(rng.normal(size=(2, size, 3, 2)).astype(np.float32)),
        average(lambda a, b: (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)),
        direction="max",
    ),
    Case("BinaryCrossentropy", BinaryCrossentropy, some_binary, log_loss([0, 1])),
    Case(
        "BinaryCrossentropy, logits",
        lambda: BinaryCrossentropy(from_logits=True),
        some_logits,
        log_loss([0, 1], lambda x: 1 / (1 + np.exp(-x))),
    ),
    Case(
        "CategoricalCrossentropy", lambda: CategoricalCrossentropy(from_logits=True), some_rows, log_loss(FOUR, softmax)
    ),
    Case("SparseCategoricalCrossentropy", SparseCategoricalCrossentropy, some_probabilities, log_loss(FOUR, unit_sum)),
    Case(
        "Perplexity",
        lambda: Perplexity(from_logits=True),
        some_scores,
        lambda *data: np.exp(log_loss(FOUR, softmax)(*data)),
        empty=1.0,
    ),
]

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# One of each way to count.
COUNTERS = [
    case
    for case in CASES
    if case.name in ("SparseCategoricalAccuracy", "Precision, thresholds", "F1, macro", "R2", "AUC")
]
over_counters = pytest.mark.parametrize("case", COUNTERS, ids=lambda case: case.name)


@jax.jit
def updated(metric: Any, *batch: Any) -> Any:
    """The metric after a batch. Compiled once for each size of a batch and kind of metric."""
    metric.update(*batch)
    return metric


def counted(case: Case, batches: list[tuple[Any, ...]]) -> Any:
    metric = case.make().init(*batches[0])
    for batch in batches:
        metric = updated(metric, *batch)
    return metric


def data_of(case: Case, size: int = 24, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    # Among the weights are whole ones, as of repeated examples, and others.
    return *case.data(rng, size), rng.choice([0.25, 0.7, 1, 2], size=size).astype(np.float32)


def split(data: tuple[np.ndarray, ...], *sizes: int) -> list[tuple[np.ndarray, ...]]:
    ends = np.cumsum(sizes)
    return [tuple(part[end - size : end] for part in data) for size, end in zip(sizes, ends, strict=True)]


@over_cases
def test_agrees_with_scikit_learn_however_batches_are_split(case: Case) -> None:
    data = data_of(case)
    for sizes in ((8, 8, 8), (16, 8)):
        np.testing.assert_allclose(
            counted(case, split(data, *sizes)).compute(), case.expected(*data), rtol=2e-5, atol=1e-6
        )
    found = counted(case, [batch[:2] for batch in split(data, 8, 8, 8)]).compute()
    np.testing.assert_allclose(found, case.expected(*data[:2], np.ones(24)), rtol=2e-5, atol=1e-6)
    assert found.dtype == jnp.float32


@settings(max_examples=8)
@given(st.lists(st.sampled_from([0, 3]), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_any_split_and_any_order_of_merging_counts_the_same(sizes: list[int], random: Any) -> None:
    rng = np.random.default_rng(sum(sizes))
    labels, scores = rng.integers(0, 3, sum(sizes)), rng.normal(size=[sum(sizes), 3]).astype(np.float32)
    weights = rng.uniform(size=sum(sizes)).astype(np.float32)
    bounds = np.cumsum(sizes)[:-1]
    for make in (SparseCategoricalAccuracy, lambda: F1(average="macro", num_classes=3)):
        whole = make()
        whole.update(labels, scores, sample_weight=weights)
        parts, one_by_one = [], make()
        for batch in zip(*(np.split(array, bounds) for array in (labels, scores, weights)), strict=True):
            part = make()
            for metric in (part, one_by_one):
                metric.update(*batch[:2], sample_weight=batch[2])
            parts.append(part)
        random.shuffle(parts)
        for metric in (one_by_one, parts[0].merge(*parts[1:])):
            np.testing.assert_allclose(metric.compute(), whole.compute(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@over_cases
def test_merging_equals_one_pass(case: Case) -> None:
    data = data_of(case, seed=1)
    a, b, c = (counted(case, [batch]) for batch in split(data, 8, 8, 8))
    before = jax.tree.map(np.asarray, (a, b, c))
    merged = [a.merge(b, c), a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a, b), b.merge(a).merge(c)]
    for metric in merged:
        np.testing.assert_allclose(metric.compute(), case.expected(*data), rtol=2e-5, atol=1e-6)
    assert_same((a, b, c), before)
    # Metrics that never ran add nothing.
    fresh = case.make()
    assert_same(fresh.merge(a, case.make()).compute(), a.compute())
    assert_same(a.merge(fresh).compute(), a.compute())
    assert not fresh.merge(case.make()).initialized


@over_cases
def test_the_value_of_nothing(case: Case) -> None:
    metric = case.make()
    assert metric.direction == case.direction
    np.testing.assert_array_equal(metric.compute(), case.empty)
    assert not metric.initialized
    y_true, y_pred, weight = data_of(case, 8)
    metric = updated(metric.init(y_true, y_pred, weight), y_true, y_pred, np.zeros_like(weight))
    empty = np.broadcast_to(case.empty, np.shape(metric.compute())) if np.size(case.empty) else 0
    np.testing.assert_array_equal(metric.compute(), empty)
    metric = updated(metric, y_true, y_pred, weight)
    metric.reset()
    np.testing.assert_array_equal(metric.compute(), empty)


@over_cases
def test_what_is_masked_does_not_count(case: Case) -> None:
    """It may be what would make the result NaN otherwise: labels that are none, and NaNs."""
    y_true, y_pred, weight = data_of(case, 8, seed=2)
    keep = np.arange(8) % 3 != 0
    bad_true = np.where(keep.reshape(-1, *[1] * (y_true.ndim - 1)), y_true, np.nan if y_true.dtype.kind == "f" else -1)
    bad_true = bad_true.astype(y_true.dtype)
    bad_pred = y_pred.copy()
    bad_pred[~keep] = np.nan if y_pred.dtype.kind == "f" else -1
    expected = case.expected(y_true[keep], y_pred[keep], weight[keep])
    found = counted(case, [(bad_true, bad_pred, weight, keep)]).compute()
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    by_weight = counted(case, [(bad_true, bad_pred, np.where(keep, weight, 0))]).compute()
    np.testing.assert_allclose(by_weight, found, rtol=1e-6)
    spoilt = counted(case, [(bad_true, bad_pred, weight)]).compute()
    if case.name != "Accuracy":  # has no labels that are none
        assert np.isnan(spoilt).all() or case.name.startswith("ConfusionMatrix") and np.isnan(spoilt).any()


@over_counters
def test_under_transforms(case: Case) -> None:
    data = data_of(case)
    batches = [np.stack(parts) for parts in zip(*split(data, 8, 8, 8), strict=True)]
    expected = case.expected(*data)
    close = functools.partial(np.testing.assert_allclose, desired=expected, rtol=2e-5, atol=1e-6)
    fresh = case.make().init(*split(data, 8, 8, 8)[0])

    scanned, _ = jax.lax.scan(lambda metric, batch: (updated(metric, *batch), None), fresh, tuple(batches))
    close(scanned.compute())

    lanes = jax.vmap(lambda *batch: updated(case.make(), *batch))(*batches)
    close(lanes.merge_stacked().compute())
    with pytest.raises(ValueError, match="merge_stacked.. is for metrics whose arrays have a leading axis more"):
        scanned.merge_stacked()

    merged = jax.vmap(lambda *batch: updated(fresh, *batch).merge_over("lanes").compute(), axis_name="lanes")(*batches)
    for lane in merged:
        close(lane)

    compiled = case.make()
    update = elegy.jit(compiled.update)
    for batch in split(data, 8, 8, 8):
        update(*batch)
    assert update.traces == 1
    close(compiled.compute())


def test_merging_over_devices() -> None:
    """Of a sharded batch, the value on all devices is that of the whole."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    y_true, y_pred, weight = data_of(COUNTERS[0])

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P())
    def count(*batch: Any) -> Any:
        metric = SparseCategoricalAccuracy()
        metric.update(*batch)
        return metric.merge_over("data")

    metric = count(y_true, y_pred, weight)
    np.testing.assert_allclose(metric.compute(), COUNTERS[0].expected(y_true, y_pred, weight), rtol=1e-6)
    assert metric.sums.shape == (2, 2)


@over_counters
def test_on_an_explicit_mesh(case: Case) -> None:
    """There the sharding of an array is a part of its type, and that of the state stays as it was."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    data = data_of(case)
    placed = [jax.device_put(part, jax.NamedSharding(mesh, P("data"))) for part in data]
    with jax.set_mesh(mesh):
        metric = case.make().init(*placed)
        before = [*map(jax.typeof, jax.tree.leaves(metric))]
        metric = updated(metric, *placed)
        assert [*map(jax.typeof, jax.tree.leaves(metric))] == before
        np.testing.assert_allclose(metric.compute(), case.expected(*data), rtol=2e-5, atol=1e-6)


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 2**24), min_size=1, max_size=3), min_size=1, max_size=5), st.randoms())
def test_sums_of_integers_are_exact_in_any_order(parts: list[list[int]], random: Any) -> None:
    def sum_of(part: list[int]) -> Any:
        metric = Sum()
        for number in part:
            metric = updated(metric.init(jnp.zeros([])), np.float32(number))
        return metric

    metrics = [sum_of(part) for part in parts]
    random.shuffle(metrics)
    while len(metrics) > 1:
        metrics.append(metrics.pop(0).merge(metrics.pop(0)))
    high, low = np.asarray(metrics[0].sums, np.float64)
    assert high + low == sum(map(sum, parts))
    assert metrics[0].compute() == np.float32(sum(map(sum, parts)))


@pytest.mark.parametrize("case", [case for case in COUNTERS if case.name != "R2"], ids=lambda case: case.name)
def test_counts_go_on_past_two_to_the_24(case: Case) -> None:
    """In float32 2**24 + 1 is 2**24, so that a plain sum of ones stops there."""
    y_true, y_pred, _ = data_of(case, 8)
    metric = updated(case.make().init(y_true, y_pred, np.ones(8)), y_true, y_pred, np.full(8, 2**24, np.float32))
    for _ in range(40):  # one half of the data, as often as one in 2**17 of the weights says
        metric = updated(metric, y_true[:4], y_pred[:4], np.ones(4, np.float32))
    exact = np.asarray(metric.sums, np.float64).sum(0)
    metric = case.make()
    metric = updated(metric.init(y_true, y_pred, np.ones(8)), y_true, y_pred, np.ones(8, np.float32))
    whole = np.asarray(metric.sums, np.float64).sum(0)
    metric.reset()
    half = np.asarray(updated(metric, y_true[:4], y_pred[:4], np.ones(4, np.float32)).sums, np.float64).sum(0)
    np.testing.assert_array_equal(exact, 2**24 * whole + 40 * half)


def test_large_batches_are_summed_exactly() -> None:
    weights = np.full(2**17 + 1, 255, np.float32)
    total = 255 * weights.size  # is odd, so that there is no such float32
    mean, matrix = Mean(), ConfusionMatrix(2)
    mean.update(np.ones_like(weights), weights)
    matrix.update(np.zeros(weights.size, np.int8), np.zeros(weights.size, np.int8), weights)
    assert np.asarray(mean.sums, np.float64).sum(0).tolist() == [total, total]
    assert np.asarray(matrix.sums, np.float64).sum(0).tolist() == [[total, 0], [0, 0]]


def test_infinite_values_stay_infinite() -> None:
    error = MeanSquaredError()
    for y_pred in (jnp.inf, 1.0):
        error.update(jnp.zeros([1]), jnp.full([1], y_pred))
    assert error.compute() == jnp.inf
    error.update(jnp.zeros([1]), jnp.full([1], jnp.nan))
    assert jnp.isnan(error.compute())


def test_averages_over_classes() -> None:
    """Of four classes; the third is not predicted, and the last is not there at all."""
    rng = np.random.default_rng(0)
    y_true, y_pred, w = rng.integers(0, 3, 20), rng.integers(0, 2, 20), rng.uniform(0.1, 1, 20).astype(np.float32)
    scores = {Precision: sk.precision_score, Recall: sk.recall_score, F1: sk.f1_score}
    for cls, score in scores.items():
        for kind in ("macro", "micro", "weighted"):
            expected = score(y_true, y_pred, average=kind, sample_weight=w, zero_division=0)
            np.testing.assert_allclose(cls(kind, num_classes=4)(y_true, y_pred, w), expected, rtol=1e-5)
        each = score(y_true, y_pred, average=None, labels=range(4), sample_weight=w, zero_division=0)
        np.testing.assert_allclose(cls(None, num_classes=4)(y_true, y_pred, w), each, rtol=1e-5)
        np.testing.assert_allclose(cls(class_id=1, num_classes=4)(y_true, y_pred, w), each[1], rtol=1e-5)
    for normalize in ("true", "pred", "all"):
        found = ConfusionMatrix(4, normalize=normalize)(y_true, y_pred, w)
        np.testing.assert_allclose(found, confusion(y_true, y_pred, w, normalize), rtol=1e-5)


CURVES = {"ROC": sk.roc_auc_score, "PR": sk.average_precision_score}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(
    "scores",
    [
        lambda t: t,
        lambda t: t - 8,  # probabilities of one in thousands
        lambda t: t + 6,
        lambda t: 10 * t,
        lambda t: 1e-2 * t,
        lambda t: 1e-4 * t,
        lambda t: 0.05 * t - 1,
        lambda t: np.round(t),
    ],
    ids=["middle", "near 0", "near 1", "sure", "about 0.5", "close about 0.5", "about 0.27", "few values"],
)
def test_area_of_scores_that_are_crowded(curve: Any, scores: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(3)
    for rate in (0.5, 0.02):
        y_true = (rng.uniform(size=3000) < rate).astype(int)
        logits = scores(rng.normal(size=3000) + 1.5 * y_true)
        probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
        for area, output in ((AUC(curve), probabilities), (AUC(curve, from_logits=True), logits)):
            assert abs(area(y_true, output) - CURVES[curve](y_true, output)) < 0.015


def test_area_of_one_kind_of_labels_and_of_scores_at_the_ends() -> None:
    scores = np.array([0, 0, 1, 1], np.float32)
    for curve in CURVES:
        assert AUC(curve)(np.array([0, 0, 0, 0]), scores) == 0
        assert AUC(curve)(np.array([0, 0, 1, 1]), scores) == 1
        assert np.isnan(AUC(curve)(np.array([0, 0, 1, 1]), scores + 0.5))  # no probabilities
        assert np.isnan(AUC(curve)(np.array([0, 0, 1, 2]), scores))
    assert AUC()(np.array([1, 0, 1, 0]), np.full(4, 0.5, np.float32)) == 0.5
    coarse = AUC(num_thresholds=1)
    assert coarse(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.8, 0.9], np.float32)) == 0.5
    assert coarse.sums.shape == (2, 2, 2)


def test_determination_far_from_zero() -> None:
    """In float32 the squares of 1e4 have no digit left for deviations of 1."""
    rng = np.random.default_rng(0)
    y_true = (1e4 + rng.normal(size=3000)).astype(np.float32)
    y_pred = (y_true + 0.5 * rng.normal(size=3000)).astype(np.float32)
    expected = sk.r2_score(y_true.astype(np.float64), y_pred.astype(np.float64))
    whole, parts = R2(), R2()
    whole.update(y_true, y_pred)
    for batch in range(0, 3000, 10):
        parts = updated(parts.init(y_true[:10], y_pred[:10]), y_true[batch : batch + 10], y_pred[batch : batch + 10])
    np.testing.assert_allclose([whole.compute(), parts.compute(), whole.merge(parts).compute()], expected, rtol=1e-5)


def test_determination_of_equal_targets() -> None:
    """As in scikit-learn: right predictions of what does not vary are worth 1, and wrong ones 0."""
    same = np.full(5, 0.1, np.float32)
    assert R2()(same, same) == 1
    assert R2()(same, same + 1) == 0
    both = R2()(
        np.stack([same, np.arange(5, dtype=np.float32)], 1), np.stack([same + 1, np.arange(5, dtype=np.float32)], 1)
    )
    assert both == 0.5
    assert R2()(same[:0], same[:0]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# The protocol
# ---------------------------------------------------------------------------------------------------------------------


class Largest(elegy.metrics.Metric):
    def update(self, y_true: Any, y_pred: Any) -> None:
        largest = self.add_parameter("largest", [], trainable=False)
        self.update_parameter("largest", jnp.maximum(largest, jnp.max(jnp.abs(y_true - y_pred))))

    def compute(self) -> Any:
        return self.largest if self.initialized else jnp.zeros([])

    def merge_states(self, states: dict[str, Any]) -> dict[str, Any]:
        return {"largest": jnp.max(states["largest"], axis=0)}


class CallAlone(elegy.metrics.Average):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.average(jnp.abs(y_true - y_pred))


class NeitherNor(elegy.metrics.Metric):
    def call(self, y_true: Any) -> Any:
        count = self.add_parameter("count", [], trainable=False)
        self.update_parameter("count", count + y_true.size)
        return count + y_true.size


def test_a_metric_of_update_and_compute() -> None:
    a, b = Largest(), Largest(on="y")
    assert a(jnp.zeros([2]), jnp.array([1.0, -3.0])) == 3
    assert a.update(y_pred=jnp.zeros([2]), y_true=jnp.ones([2])) is None
    assert a.compute() == 3
    b.update({"y": jnp.zeros([2])}, {"y": jnp.full([2], 7.0)})
    assert b.compute() == 7
    with pytest.raises(ValueError, match=r"same arguments can be merged, got Largest\(\) and Largest\(on='y'\)"):
        a.merge(b)
    with pytest.raises(ValueError, match=r"got Largest\(\) and Mean\(\)"):
        a.merge(Mean())
    assert a.merge(Largest(name="other")).compute() == 3
    model = elegy.Model(elegy.nn.Linear(2), metrics=Largest(name="worst"))
    logs = model.evaluate(np.zeros([5, 3], np.float32), np.full([5, 2], -4, np.float32), batch_size=2)
    assert logs == {"worst": 4}
    a.reset()
    assert a.compute() == 0


def test_a_metric_of_call_alone() -> None:
    metric = CallAlone()
    metric.update(jnp.zeros([2]), jnp.ones([2]))
    assert metric.compute() == 1 and metric.merge(metric).count == 4
    metric = NeitherNor()
    metric.update(jnp.zeros([2]))
    assert metric(jnp.zeros([3])) == 5
    with pytest.raises(NotImplementedError, match="neither_nor: NeitherNor does not define `compute`.*\n.*Define upd"):
        metric.compute()
    with pytest.raises(NotImplementedError, match="NeitherNor does not say how it is merged"):
        metric.merge(metric)
    with pytest.raises(NotImplementedError, match="`call`"):
        elegy.metrics.Metric()()


@pytest.mark.usefixtures("unchecked")
def test_an_update_that_fails_changes_nothing() -> None:
    metric = SparseCategoricalAccuracy()
    metric.update(LABELS, SCORES)
    before = metric.sums
    with pytest.raises(TypeError, match="unexpected keyword argument 'weights'"):
        metric.update(LABELS, SCORES, weights=WEIGHTS)
    with pytest.raises(TypeError, match="mask must hold bools"):
        metric.update(LABELS, SCORES, mask=np.ones([3, 5], np.float32))
    assert metric.sums is before


def test_mean_of_a_function() -> None:
    def difference(y_true: Any, y_pred: Any) -> Any:
        return y_true - y_pred

    x, weight = SCORES[0], WEIGHTS[0]
    model = elegy.Model(elegy.nn.Linear(4), metrics=[MeanOf(difference), MeanOf(lambda a, b: a - b)])
    logs = model.evaluate(x, x, sample_weight=weight, batch_size=2)
    expected = np.average((x - model.predict(x)).mean(-1), weights=weight)
    assert logs == pytest.approx({"difference": expected, "mean_of": expected}, rel=1e-5)
    assert MeanOf(difference, name="other", on="a")({"a": x}, {"a": x + 1}, mask=weight > 0) == pytest.approx(-1)
    with pytest.raises(ValueError, match="sample_weight has shape"):
        MeanOf(lambda a, b: jnp.mean(a - b))(x, x, weight)


def test_default_names() -> None:
    names = [metric.name for metric in (IoU(2), MeanIoU(2), F1(), R2(), AUC())]
    assert names == ["iou", "mean_iou", "f1", "r2", "auc"]


def test_top_k_of_equal_scores() -> None:
    """The first ones count as the higher, so that one of one is what SparseCategoricalAccuracy counts."""
    scores = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [np.nan, 0, 1]], np.float32)
    twin = elegy.metrics.sparse_top_k_categorical_accuracy
    for label in range(3):
        labels = np.full(4, label)
        single = elegy.metrics.sparse_categorical_accuracy(labels[:3], scores[:3])
        np.testing.assert_array_equal(twin(labels, scores, 1), [*single, np.nan])
        np.testing.assert_array_equal(twin(labels, scores, 3), [1, 1, 1, np.nan])
    np.testing.assert_array_equal(twin(np.full(4, 1), scores, 2), [1, 1, 1, np.nan])
    assert np.isnan(twin(np.array([3, -1, 0, 0]), scores, 2)).tolist() == [True, True, False, True]


def test_accuracy_compares_labels_of_any_dtype() -> None:
    large = np.array([2**24 + 1, 2**24], np.int32)
    assert elegy.metrics.accuracy(large, large[::-1]).tolist() == [0, 0]
    assert elegy.metrics.accuracy(np.array([200], np.uint8), np.array([200], np.int32)).tolist() == [1]
    assert elegy.metrics.accuracy(np.array([1.0], np.float32), np.array([True])).tolist() == [1]


def test_labels_that_are_none_give_nan() -> None:
    assert np.isnan(elegy.metrics.sparse_categorical_accuracy(np.array([4, -1, 0]), SCORES[0, :3])).tolist() == [
        1,
        1,
        0,
    ]
    assert np.isnan(elegy.metrics.binary_accuracy(np.array([2, -1, 0]), np.zeros(3, np.float32))).tolist() == [1, 1, 0]
    matrix = ConfusionMatrix(2)
    assert not np.isnan(matrix(np.array([0]), np.array([1]))).any()
    assert np.isnan(matrix(np.array([2]), np.array([1]))).all()
    assert np.isnan(matrix(np.array([0]), np.array([1]))).all()  # until the next reset
    matrix.reset()
    assert matrix.compute().sum() == 0
    assert np.isnan(Precision()(np.array([2, 0]), np.array([0.1, 0.9], np.float32)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Accuracy()(LABELS, SCORES), ValueError, "Labels are compared with labels. Of scores take Sparse"),
        (lambda: Accuracy()(LABELS, LABELS[..., None]), ValueError, r"y_true is added by y_true\[..., None\]"),
        (lambda: BinaryAccuracy()(LABELS[0], SCORES[0]), ValueError, r"y_true has shape \(5,\) and y_pred \(5, 4\)"),
        (lambda: CategoricalAccuracy()(LABELS, SCORES), ValueError, "Integer labels are for the .*begins with sparse"),
        (lambda: CategoricalAccuracy()(1.0, 2.0), ValueError, "must have an axis of classes, got scalars"),
        (lambda: MeanSquaredError()(LABELS[0], np.ones([5, 1])), ValueError, r"y_true is added by y_true\[..., None\]"),
        (lambda: CosineSimilarity(axis=2)(SCORES[0], SCORES[0]), ValueError, "axis=2 is not an axis of arrays of sha"),
        (lambda: SparseTopKCategoricalAccuracy()(LABELS, SCORES), ValueError, "k=5 is more than the 4 classes"),
        (lambda: SparseTopKCategoricalAccuracy(0), ValueError, "SparseTopKCategoricalAccuracy: k must be a positive"),
        (lambda: TopKCategoricalAccuracy(2.5), ValueError, "k must be a positive integer, got 2.5"),
        (lambda: ConfusionMatrix(True), ValueError, "ConfusionMatrix: num_classes must be a positive integer, got Tr"),
        (lambda: ConfusionMatrix(2, normalize="rows"), ValueError, "normalize must be 'true', 'pred', 'all' or None"),
        (lambda: ConfusionMatrix(3)(LABELS, SCORES), ValueError, "scores of 4 classes, and num_classes is 3"),
        (lambda: ConfusionMatrix(3)(LABELS, LABELS[0]), ValueError, "Scores of classes, in one axis more, are floats"),
        (lambda: ConfusionMatrix(3)(LABELS * 1.0, LABELS), TypeError, "y_true must hold integer class labels, got fl"),
        (lambda: F1(0.5), ValueError, "F1: average must be one of .* got 0.5.\n  The threshold is given by name"),
        (lambda: F1("macro")(LABELS, LABELS), ValueError, "do not say how many classes.*\n  Give num_classes=..."),
        (lambda: F1("macro", threshold=0.3), ValueError, "F1: a threshold is for labels 0 and 1"),
        (lambda: F1(threshold=[]), ValueError, r"F1: threshold must be a number or some of them, got \[\]"),
        (lambda: F1(num_classes=3), ValueError, "average='binary' is of labels 0 and 1, and num_classes=3"),
        (lambda: F1("macro", class_id=3), ValueError, "class_id is one class, of which there is no average='macro'"),
        (lambda: F1(class_id=-1), ValueError, "class_id must be the number of a class, got -1"),
        (lambda: F1(class_id=4)(LABELS, SCORES), ValueError, "class_id=4 is none of the 4 classes"),
        (lambda: MeanOf("mse"), TypeError, "MeanOf: expected a function of targets and predictions, got 'mse'"),
        (lambda: AUC("roc"), ValueError, "AUC: curve must be 'ROC' or 'PR', got 'roc'"),
        (lambda: AUC(from_logits="no"), TypeError, "AUC: from_logits must be True or False, got 'no'"),
        (lambda: AUC(num_thresholds=0), ValueError, "AUC: num_thresholds must be a positive integer, got 0"),
        (lambda: AUC()(LABELS[0], SCORES[0]), ValueError, "of several classes take one at a time"),
        (lambda: R2()(LABELS[0], SCORES[0]), ValueError, r"r2: y_true has shape \(5,\) and y_pred \(5, 4\)"),
        (lambda: Perplexity(from_logits=1), TypeError, "Perplexity: from_logits must be True or False, got 1"),
    ],
)
def test_misuse(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------------------------------------------------------------
# Metrics of other libraries
# ---------------------------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class WeightedError:
    """As `metrax` writes them."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def from_model_output(cls, predictions: Any, labels: Any, sample_weights: Any = None) -> Any:
        weights = jnp.ones_like(labels) if sample_weights is None else sample_weights
        return cls(total=jnp.sum(weights * jnp.abs(predictions - labels)), count=jnp.sum(weights))

    def merge(self, other: Any) -> Any:
        return type(self)(self.total + other.total, self.count + other.count)

    def compute(self) -> Any:
        return self.total / self.count


@pytest.mark.usefixtures("default_promotion")
def test_metrics_of_other_libraries() -> None:
    labels, scores = LABELS[:2].astype(np.int32), SCORES[:2]
    expected = np.mean(scores.argmax(-1) == labels)
    metric = Adapted(clu.metrics.Accuracy)
    for batch in range(2):
        metric.update(labels=labels[batch], logits=scores[batch])
    np.testing.assert_allclose(metric.compute(), expected, rtol=1e-6)

    fresh = Adapted(clu.metrics.Accuracy).init(labels=labels[0], logits=scores[0])

    @jax.vmap
    def lanes(labels: Any, scores: Any) -> Any:
        _, counted = fresh.apply(labels=labels, logits=scores)
        return counted

    stacked = lanes(labels, scores)
    merged = stacked.merge_stacked()
    assert_same(merged.merge(fresh, Adapted(clu.metrics.Accuracy)).counted, metric.counted)
    assert_same(fresh.merge(merged).counted, metric.counted)
    traced = jax.jit(lambda a, b: a.merge(b))(fresh, merged)
    assert_same(traced.counted, metric.counted)
    assert traced.started

    metric.reset()
    with pytest.raises(ValueError, match="Adapted: Accuracy has no value before the first update"):
        metric.compute()
    with pytest.raises(TypeError, match="Adapted: int needs a class method from_model_output, and methods merge and"):
        Adapted(int)
    with pytest.raises(ValueError, match="only metrics of the same class with the same arguments"):
        metric.merge(Adapted(WeightedError))


@pytest.mark.usefixtures("default_promotion")
def test_metrics_of_other_libraries_in_a_model() -> None:
    x, y = SCORES[0], LABELS[0]
    both = clu.metrics.Collection.create(accuracy=clu.metrics.Accuracy, label=clu.metrics.Average.from_output("labels"))
    metrics = {"one": clu.metrics.Accuracy, "two": [both, Adapted(clu.metrics.Accuracy, name="named")]}
    model = elegy.Model(elegy.nn.Linear(4), metrics=metrics)
    for _ in range(2):  # each starts anew
        logs = model.evaluate(x, y, batch_size=2)
        accuracy = np.mean(model.predict(x).argmax(-1) == y)
        expected = {
            "one/accuracy": accuracy,
            "two/inline_collection/accuracy": accuracy,
            "two/inline_collection/label": y.mean(),
            "two/named": accuracy,
        }
        assert logs == pytest.approx(expected)

    model = elegy.Model(elegy.nn.Linear(1), metrics=WeightedError)
    y, weight = x[:, :1], WEIGHTS[0][:, None]
    logs = model.evaluate(x, y, sample_weight=weight, batch_size=2)
    assert logs == pytest.approx({"weighted_error": np.average(np.abs(model.predict(x) - y), weights=weight)})
    with pytest.raises(TypeError, match="a loss must be a function or a module"):
        elegy.Model(elegy.nn.Linear(1), loss=WeightedError)


def test_metrics_in_a_model_weigh_samples() -> None:
    """The last batch is smaller, and the value is that of all samples at once."""
    x, y, weight = SCORES.reshape(15, 4), LABELS.ravel(), WEIGHTS.ravel()
    model = elegy.Model(
        elegy.nn.Linear(4), metrics=[F1("macro"), SparseTopKCategoricalAccuracy(2), Perplexity(from_logits=True)]
    )
    logs = model.evaluate(x, y, sample_weight=weight, batch_size=4)
    logits = model.predict(x)
    expected = {
        "f1": sk.f1_score(y, logits.argmax(-1), average="macro", sample_weight=weight),
        "sparse_top_k_categorical_accuracy": sk.top_k_accuracy_score(y, logits, k=2, sample_weight=weight),
        "perplexity": np.exp(sk.log_loss(y, softmax(logits.astype(np.float64)), sample_weight=weight)),
    }
    assert logs == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalize", [None, "true"])
def test_a_picture_of_a_confusion_matrix(normalize: Any) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    matrix = ConfusionMatrix(3, normalize=normalize)
    given = figures.Figure().add_subplot()
    assert matrix.plot(ax=given) is given.figure and {text.get_text() for text in given.texts} <= {"0", "0.00"}
    matrix.update(jnp.array([0, 0, 0, 1, 2]), jnp.array([0, 0, 1, 1, 0]))
    (axes,) = matrix.plot(["a", "b", "c"]).axes
    counts = ["2", "1", "0", "0", "1", "0", "1", "0", "0"]
    shares = ["0.67", "0.33", "0.00", "0.00", "1.00", "0.00", "1.00", "0.00", "0.00"]
    assert [text.get_text() for text in axes.texts] == (counts if normalize is None else shares)
    assert {text.get_color() for text in axes.texts} == {"white", "black"}
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in matrix.plot().axes[0].get_xticklabels()] == ["0", "1", "2"]
    for wrong, shown in ((["a", "b"], "2 of them"), ("abc", "'abc'")):
        with pytest.raises(ValueError, match=f"a name for each of 3 classes, got {shown}"):
            matrix.plot(wrong)
