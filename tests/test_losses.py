"""Values are compared with scikit-learn and with formulas written out in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import sklearn.metrics

import elegy
from elegy.losses import MeanSquaredError, SparseCategoricalCrossentropy

RNG = np.random.default_rng(0)
Y_TRUE = RNG.normal(size=(6, 3)).astype(np.float32)
Y_PRED = RNG.normal(size=(6, 3)).astype(np.float32)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
LABELS = RNG.integers(0, 4, size=6)
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0], np.float32)


@pytest.fixture
def unchecked() -> Any:
    """As for a user without a type checker, who sees the errors of the library itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_mean_squared_error() -> None:
    values = elegy.losses.mean_squared_error(Y_TRUE, Y_PRED)
    np.testing.assert_allclose(values, ((Y_TRUE - Y_PRED) ** 2).mean(-1), rtol=1e-6)
    expected = sklearn.metrics.mean_squared_error(Y_TRUE, Y_PRED)
    np.testing.assert_allclose(MeanSquaredError()(Y_TRUE, Y_PRED), expected, rtol=1e-6)


def test_sparse_categorical_crossentropy() -> None:
    expected = sklearn.metrics.log_loss(LABELS, PROBABILITIES, labels=range(4))
    from_logits = SparseCategoricalCrossentropy(from_logits=True)(LABELS, LOGITS)
    from_probabilities = SparseCategoricalCrossentropy()(LABELS, PROBABILITIES)
    np.testing.assert_allclose(from_logits, expected, rtol=1e-6)
    np.testing.assert_allclose(from_probabilities, expected, rtol=1e-6)
    values = elegy.losses.sparse_categorical_crossentropy(LABELS, LOGITS, from_logits=True)
    np.testing.assert_allclose(values, -np.log(PROBABILITIES[np.arange(6), LABELS]), rtol=1e-5)


def test_labels_as_a_column() -> None:
    loss = SparseCategoricalCrossentropy(from_logits=True)
    assert loss(LABELS[:, None], LOGITS) == loss(LABELS, LOGITS)


def test_more_axes_of_the_batch() -> None:
    loss = SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(loss(LABELS.reshape(2, 3), LOGITS.reshape(2, 3, 4)), loss(LABELS, LOGITS), rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize("from_logits", [True, False])
def test_labels_out_of_range_give_nan(label: int, from_logits: bool) -> None:
    scores = LOGITS if from_logits else PROBABILITIES
    labels = np.array([0, label, 3, 1, 2, 0])
    values = elegy.losses.sparse_categorical_crossentropy(labels, scores, from_logits=from_logits)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False, False, False, False])
    assert jnp.isnan(SparseCategoricalCrossentropy(from_logits=from_logits)(labels, scores))


def test_labels_of_any_integer_dtype() -> None:
    scores = jnp.zeros([2, 300])
    for dtype in (np.int8, np.uint8, np.int16, np.int64):
        values = elegy.losses.sparse_categorical_crossentropy(np.array([1, 43], dtype), scores, from_logits=True)
        np.testing.assert_allclose(values, np.log(300), rtol=1e-6)


def test_certain_and_wrong_is_finite() -> None:
    values, gradient = jax.value_and_grad(
        lambda p: elegy.losses.sparse_categorical_crossentropy(jnp.array([1]), p).sum()
    )(jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(values, -np.log(1e-7), rtol=1e-5)
    assert jnp.isfinite(gradient).all()


def test_extreme_logits() -> None:
    loss = SparseCategoricalCrossentropy(from_logits=True)
    values, gradient = jax.value_and_grad(lambda x: loss(jnp.array([0]), x))(jnp.array([[-1e4, 1e4]]))
    np.testing.assert_allclose(values, 2e4)
    np.testing.assert_allclose(gradient, [[-1, 1]])


@pytest.mark.parametrize("position", ["keyword", "positional"])
@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [
        ("sum_over_batch_size", lambda values: values.sum() / 6),
        ("sum", np.sum),
        ("none", lambda values: values),
        (elegy.losses.Reduction.SUM, np.sum),
        (None, lambda values: values.sum() / 6),
    ],
)
def test_sample_weight_and_reduction(position: str, reduction: Any, reduce: Any) -> None:
    values = ((Y_TRUE - Y_PRED) ** 2).mean(-1) * WEIGHTS
    loss = MeanSquaredError(reduction=reduction, weight=0.5)
    if position == "keyword":
        found = loss(y_true=Y_TRUE, y_pred=Y_PRED, sample_weight=WEIGHTS)
    else:
        found = loss(Y_TRUE, Y_PRED, WEIGHTS)
    np.testing.assert_allclose(found, 0.5 * reduce(values), rtol=1e-5)


def test_weights_in_other_shapes() -> None:
    values = RNG.normal(size=(2, 3)).astype(np.float32)
    truth, scores = np.zeros([2, 3, 1]), values[..., None]
    loss = MeanSquaredError(reduction="none")
    for weight in (np.array([1, 2]), np.array([[1], [2]]), np.array([[[1]], [[2]]])):
        np.testing.assert_allclose(loss(truth, scores, weight), values**2 * [[1], [2]], rtol=1e-6)
    per_value = np.arange(6).reshape(2, 3)
    np.testing.assert_allclose(loss(truth, scores, per_value), values**2 * per_value, rtol=1e-6)
    np.testing.assert_allclose(loss(truth, scores, 3), values**2 * 3, rtol=1e-6)


def test_one_number_for_each_example() -> None:
    """Targets of one axis: sample_weight weights each number of them."""
    y_true, y_pred = Y_TRUE[:, 0], Y_PRED[:, 0]
    expected = np.mean((y_true - y_pred) ** 2 * WEIGHTS)
    np.testing.assert_allclose(MeanSquaredError()(y_true, y_pred, WEIGHTS), expected, rtol=1e-6)
    assert MeanSquaredError()(1.0, 3.0) == 4


def test_sample_weight_reaches_a_call_that_asks_for_it() -> None:
    class Own(elegy.Loss):
        def call(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            seen.append(sample_weight)
            return jnp.abs(y_true - y_pred)

    seen: list[Any] = []
    ones = jnp.ones([2])
    assert Own()(0 * ones, ones, sample_weight=2 * ones) == 2
    assert seen[-1] is not None
    assert Own()(0 * ones, ones) == 1
    assert seen[-1] is None


def test_positional_sample_weight_of_a_call_that_asks_for_it_is_used() -> None:
    class Own(elegy.Loss):
        def call(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return jnp.abs(y_true - y_pred)

    ones = jnp.ones([2])
    assert Own()(0 * ones, ones, 2 * ones) == 2


def test_a_dict_of_values_and_other_arguments() -> None:
    class Own(elegy.Loss):
        def call(self, x: Any, y_pred: Any) -> Any:
            return {"reconstruction": jnp.square(x - y_pred), "size": jnp.abs(y_pred)}

    found = Own(weight=2)(x=jnp.array([1.0, 2.0]), y_pred=jnp.array([2.0, 2.0]), sample_weight=jnp.array([1.0, 3.0]))
    assert jax.tree.map(float, found) == {"reconstruction": 1.0, "size": 8.0}


@pytest.mark.parametrize(
    ("on", "wrap"),
    [
        ("a", lambda y: {"a": y, "b": None}),
        (1, lambda y: (None, y)),
        (("a", 0), lambda y: {"a": [y]}),
    ],
)
def test_on(on: Any, wrap: Any) -> None:
    expected = MeanSquaredError()(Y_TRUE, Y_PRED)
    assert MeanSquaredError(on=on)(wrap(Y_TRUE), wrap(Y_PRED)) == expected
    assert MeanSquaredError(on=on)(y_pred=wrap(Y_PRED), y_true=wrap(Y_TRUE)) == expected


def test_on_a_part_that_is_not_there() -> None:
    with pytest.raises(
        ValueError, match=r"mean_squared_error: on='c' selects 'c' of y_true, which has the keys \['a'\]"
    ):
        MeanSquaredError(on="c")({"a": Y_TRUE}, {"a": Y_PRED})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_single(dtype: Any) -> None:
    y_pred = jnp.full([4096, 1], 0.1, dtype)
    loss = MeanSquaredError(reduction="sum")
    value, gradient = jax.value_and_grad(lambda y_pred: loss(np.zeros([4096, 1]), y_pred))(y_pred)
    assert value.dtype == jnp.float32 and gradient.dtype == dtype
    np.testing.assert_allclose(value, 4096 * float(y_pred[0, 0]) ** 2, rtol=1e-5)


def test_integer_targets() -> None:
    assert MeanSquaredError()(np.array([[1], [0]]), np.array([[3.0], [0.0]])) == 2


def test_a_loss_in_the_loop_of_a_user() -> None:
    x = jnp.asarray(Y_TRUE)
    linear = elegy.nn.Linear(1).init(x, rng=0)
    loss = MeanSquaredError()
    loss(x, x)
    value, grads = elegy.value_and_grad(lambda x, y: loss(y, linear(x)), modules=linear)(x, x[:, :1])
    w, b = linear.w, linear.b
    expected = jax.grad(lambda w, b: jnp.mean((x @ w + b[None] - x[:, :1]) ** 2), argnums=(0, 1))(w, b)
    np.testing.assert_allclose(grads["w"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(grads["b"], expected[1], rtol=1e-5)


def test_a_loss_of_the_outside_in_a_jax_transform() -> None:
    """It has nothing to create, so its first call may be anywhere."""
    expected = MeanSquaredError()(Y_TRUE, Y_PRED)
    for make in (MeanSquaredError, lambda: MeanSquaredError(name="named")):
        loss = make()
        np.testing.assert_allclose(jax.jit(lambda a, b, loss=loss: loss(a, b))(Y_TRUE, Y_PRED), expected, rtol=1e-6)
        loss = make()
        rows = jax.vmap(lambda a, b, loss=loss: loss(a, b))(Y_TRUE, Y_PRED)
        np.testing.assert_allclose(rows.mean(), expected, rtol=1e-6)
        loss = make()
        jax.grad(lambda a, b, loss=loss: loss(a, b))(Y_TRUE, Y_PRED)
        assert loss(Y_TRUE, Y_PRED) == expected


def test_a_call_that_is_replaced() -> None:
    class Own(elegy.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return jnp.abs(y_true - y_pred)

    def call(self: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return jnp.full([2], 3.0) if sample_weight is not None else jnp.zeros([2])

    ones = jnp.ones([2])
    assert Own()(0 * ones, ones, sample_weight=ones) == 1
    Own.call = call
    assert Own()(0 * ones, ones, sample_weight=ones) == 3


@pytest.mark.parametrize("where", ["elegy.losses.loss", "elegy.metrics.average"])
def test_a_path_is_computed_for_an_error_only(where: str, monkeypatch: Any) -> None:
    paths: list[Any] = []
    monkeypatch.setattr(f"{where}.path_of", lambda module: paths.append(module) or "path")
    called = MeanSquaredError() if "losses" in where else elegy.metrics.Mean()
    inputs = (Y_TRUE, Y_PRED) if "losses" in where else (Y_TRUE,)
    called(*inputs, sample_weight=WEIGHTS)
    assert not paths
    with pytest.raises(ValueError, match="path: sample_weight"):
        called(*inputs, sample_weight=jnp.ones([5]))
    assert len(paths) == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shape", "other", "hint"),
    [((3,), (3, 1), "y_true"), ((3, 1), (3,), "y_pred"), ((3, 1), (3, 8, 1), None), ((3, 1), (3, 2), None)],
)
def test_the_hint_that_fits(shape: Any, other: Any, hint: Any) -> None:
    with pytest.raises(ValueError, match="they must be equal") as raised:
        MeanSquaredError()(jnp.ones(shape), jnp.ones(other))
    assert ("None]" in str(raised.value)) == (hint is not None)
    if hint is not None:
        assert f"The missing last axis of {hint} is added by {hint}[..., None]." in str(raised.value)


@pytest.mark.parametrize(
    "construct",
    [
        lambda: MeanSquaredError("sum", "name"),
        lambda: SparseCategoricalCrossentropy(True, "sum"),
        lambda: elegy.Loss("sum", 0.5),
    ],
)
def test_options_are_given_by_keyword(construct: Any) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        construct()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MeanSquaredError()(jnp.ones([3]), jnp.ones([3, 1])), ValueError, "they must be equal"),
        (lambda: MeanSquaredError()(jnp.ones([3, 1]), jnp.ones([3, 2])), ValueError, r"\(3, 1\) and y_pred \(3, 2\)"),
        (
            lambda: MeanSquaredError()(jnp.ones([3, 1]), jnp.ones([3, 1], jnp.complex64)),
            TypeError,
            "expected real numbers",
        ),
        (
            lambda: MeanSquaredError()(Y_TRUE, Y_PRED, jnp.ones([3])),
            ValueError,
            r"mean_squared_error: sample_weight has shape \(3,\), and the values that it weights \(6,\)",
        ),
        (lambda: MeanSquaredError()(Y_TRUE, Y_PRED, jnp.ones([6, 3])), ValueError, "sample_weight has shape"),
        (
            lambda: MeanSquaredError(reduction="average"),
            ValueError,
            "MeanSquaredError: reduction must be one of 'none'",
        ),
        (lambda: SparseCategoricalCrossentropy()(LABELS * 1.0, LOGITS), TypeError, "integer class labels"),
        (
            lambda: SparseCategoricalCrossentropy()(np.eye(4, dtype=int)[LABELS], LOGITS),
            ValueError,
            "without its last",
        ),
        (lambda: SparseCategoricalCrossentropy()(LABELS[:3], LOGITS), ValueError, "without its last axis"),
        (lambda: SparseCategoricalCrossentropy()(1, 0.5), ValueError, "must have an axis of classes"),
        (lambda: MeanSquaredError()(Y_TRUE, Y_PRED, wrong=1), TypeError, "wrong"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
