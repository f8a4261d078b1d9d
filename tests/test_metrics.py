"""Values are compared with scikit-learn on all batches at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

import elegy
from elegy.metrics import Mean, SparseCategoricalAccuracy

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
        expected = sklearn.metrics.accuracy_score(
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
    assert set(mean.get_parameters(trainable=False)) == {"total", "count"}


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
