"""Values are compared with scikit-learn and with formulas written out in NumPy."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics

import elegy
from elegy import losses
from elegy.losses import MeanSquaredError, SparseCategoricalCrossentropy

RNG = np.random.default_rng(0)
Y_TRUE = RNG.normal(size=(6, 3)).astype(np.float32)
Y_PRED = RNG.normal(size=(6, 3)).astype(np.float32)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
LABELS = RNG.integers(0, 4, size=6)
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0], np.float32)


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
def test_the_name_is_not_the_second_argument() -> None:
    loss = MeanSquaredError("sum", 0.5, "a")
    assert (loss.weight, loss.on) == (0.5, "a")
    with pytest.raises(TypeError, match="MeanSquaredError: weight must be a number, got 'name'.\n.*name="):
        MeanSquaredError("sum", "name")


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
        lambda: SparseCategoricalCrossentropy(True, "sum"),
        lambda: elegy.Loss("sum", 0.5, None, "name"),
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


# ---------------------------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------------------------

ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]
OF_EQUAL_SHAPES = [
    losses.MeanSquaredError,
    losses.MeanAbsoluteError,
    losses.MeanAbsolutePercentageError,
    losses.MeanSquaredLogarithmicError,
    losses.Huber,
    losses.LogCosh,
    losses.Poisson,
    losses.Hinge,
    losses.SquaredHinge,
    losses.BinaryCrossentropy,
    losses.BinaryFocalCrossentropy,
    losses.CosineSimilarity,
    losses.KLDivergence,
    losses.CategoricalHinge,
    losses.CategoricalCrossentropy,
    losses.CategoricalFocalCrossentropy,
    losses.Dice,
    losses.Tversky,
]
FROM_LOGITS = [
    losses.BinaryCrossentropy,
    losses.BinaryFocalCrossentropy,
    losses.CategoricalCrossentropy,
    losses.CategoricalFocalCrossentropy,
]
OVERLAPS = [losses.Dice, losses.Tversky]
of_equal_shapes = pytest.mark.parametrize("cls", OF_EQUAL_SHAPES, ids=lambda cls: cls.__name__)
from_logits = pytest.mark.parametrize("cls", FROM_LOGITS, ids=lambda cls: cls.__name__)


def test_a_class_and_a_function_for_each_name() -> None:
    """The class has the name of the function in Keras's spelling, and both are listed."""
    names = set(losses.__all__) - {"Loss", "Reduction"}
    functions = {name for name in names if name.islower()}
    classes = names - functions
    assert {elegy.frames.name_of(getattr(losses, name)()) for name in classes} == functions


def test_the_table_lists_every_loss_of_targets_and_predictions() -> None:
    others = {losses.SparseCategoricalCrossentropy, losses.CTC, losses.Triplet, losses.NTXent, losses.Loss}
    others |= {losses.Contrastive}
    found = [getattr(losses, name) for name in losses.__all__]
    classes = {value for value in found if isinstance(value, type) and issubclass(value, elegy.Loss)}
    assert classes - others == set(OF_EQUAL_SHAPES)


@pytest.mark.usefixtures("unchecked")
@of_equal_shapes
def test_shapes_are_never_broadcast(cls: Any) -> None:
    loss = cls()
    for shape, other in (((3,), (3, 1)), ((3, 1), (3,)), ((1, 4), (3, 4))):
        with pytest.raises(ValueError, match="they must be equal"):
            loss(jnp.ones(shape), jnp.ones(other))


@of_equal_shapes
def test_half_precision_is_computed_in_single(cls: Any) -> None:
    """Targets in NumPy's float64, predictions in bfloat16: the value is that of the rounded predictions."""
    y_pred = jnp.asarray(PROBABILITIES, jnp.bfloat16)
    loss = cls()
    np.testing.assert_allclose(
        loss(ONE_HOT.astype(np.float64), y_pred), loss(ONE_HOT, y_pred.astype(jnp.float32)), rtol=1e-6
    )
    gradient = jax.eval_shape(jax.grad(loss, argnums=1), ONE_HOT, y_pred)
    assert gradient.dtype == jnp.bfloat16 and loss(ONE_HOT, y_pred).dtype == jnp.float32


@of_equal_shapes
def test_targets_of_other_dtypes(cls: Any) -> None:
    takes_bools = "entropy" in cls.__name__ or "Hinge" in cls.__name__ or cls in OVERLAPS
    loss = cls()
    found = loss(ONE_HOT.astype(bool if takes_bools else np.uint8), PROBABILITIES)
    np.testing.assert_allclose(found, loss(ONE_HOT, PROBABILITIES), rtol=1e-6)


@pytest.mark.parametrize(
    ("cls", "y_true", "y_pred"),
    [
        *((cls, ONE_HOT, PROBABILITIES) for cls in OF_EQUAL_SHAPES),
        (SparseCategoricalCrossentropy, LABELS, PROBABILITIES),
        (losses.CTC, LABELS[:, None], LOGITS[:, None]),
        (losses.NTXent, np.array([0, 1, 2, 0, 1, 2]), LOGITS),
        (losses.Triplet, None, (LOGITS, LOGITS + 1, LOGITS[::-1])),
        (losses.Contrastive, np.array([0, 1, 1, 0, 1, 0]), (LOGITS, LOGITS + 0.1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_of_the_base_class(cls: Any, y_true: Any, y_pred: Any) -> None:
    loss = cls(reduction="sum", weight=3, on="part", name="named", dtype=jnp.bfloat16)
    given = {"y_pred": {"part": y_pred}} | ({} if y_true is None else {"y_true": {"part": y_true}})
    found = loss(**given)
    values = cls(reduction="none")(*(() if y_true is None else (y_true,)), y_pred)
    np.testing.assert_allclose(found, 3 * values.sum(), rtol=1e-5)
    assert (loss.name, loss.dtype, found.dtype) == ("named", jnp.bfloat16, jnp.float32)


@of_equal_shapes
def test_weights_by_keyword_and_by_position(cls: Any) -> None:
    loss = cls(axis=-1) if cls in OVERLAPS else cls()
    expected = np.asarray(loss(ONE_HOT, PROBABILITIES, WEIGHTS))
    np.testing.assert_array_equal(loss(ONE_HOT, PROBABILITIES, sample_weight=WEIGHTS), expected)
    np.testing.assert_array_equal(loss(y_pred=PROBABILITIES, y_true=ONE_HOT, sample_weight=WEIGHTS), expected)
    assert expected != loss(ONE_HOT, PROBABILITIES)


@of_equal_shapes
def test_numbers_of_one_axis_are_examples_where_features_are_averaged(cls: Any) -> None:
    averaged = OF_EQUAL_SHAPES.index(cls) <= OF_EQUAL_SHAPES.index(losses.BinaryFocalCrossentropy)
    values = cls(reduction="none")(ONE_HOT[:, 0], PROBABILITIES[:, 0])
    assert values.shape == ((6,) if averaged else ())


@of_equal_shapes
def test_the_edges_of_what_is_predicted_are_finite(cls: Any) -> None:
    """Probabilities of exactly zero and one, right and wrong, and vectors of zeros; targets are differentiated too."""
    y_true = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.5, 0.5]])
    y_pred = jnp.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    value, gradients = jax.value_and_grad(cls(), argnums=(0, 1))(y_true, y_pred)
    assert jnp.isfinite(value) and all(jnp.isfinite(gradient).all() for gradient in gradients)


@from_logits
def test_extreme_and_excluded_logits_are_finite(cls: Any) -> None:
    loss = cls(from_logits=True, reduction="none")
    y_true = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    logits = jnp.array([[1e4, -1e4], [1e4, -1e4], [0.0, 0.0]])
    values = loss(y_true, logits)
    gradient = jax.grad(lambda x: loss(y_true, x).sum())(logits)
    assert jnp.isfinite(values).all() and jnp.isfinite(gradient).all()
    # What is sure and right costs nothing, what is sure and wrong costs much, and its gradient is not lost.
    assert values[0] == 0 and values[1] > 1e3 and jnp.abs(gradient[1]).min() > 0.1 * (values[1] / 2e4)
    if "Categorical" in cls.__name__:
        excluded = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0], [1.0, -jnp.inf]])
        assert (loss(y_true, excluded) == 0).all()
        assert jnp.isfinite(jax.grad(lambda x: loss(y_true, x).sum())(excluded)).all()


@from_logits
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_small_powers_have_finite_gradients(cls: Any, gamma: float) -> None:
    if "Focal" in cls.__name__:
        for from_logits, y_pred in ((False, jnp.array([[1.0, 0.0]])), (True, jnp.array([[50.0, -50.0]]))):
            loss = cls(from_logits=from_logits, gamma=gamma)
            assert jnp.isfinite(jax.grad(lambda y, loss=loss: loss(jnp.array([[1.0, 0.0]]), y))(y_pred)).all()


@from_logits
def test_smoothing_by_hand(cls: Any) -> None:
    """A smoothed loss is that of smoothed targets."""
    classes = 2 if "Binary" in cls.__name__ else 4
    smooth = 0.8 * ONE_HOT + 0.2 / classes
    for logits, y_pred in ((True, LOGITS), (False, PROBABILITIES)):
        found = cls(from_logits=logits, label_smoothing=0.2)(ONE_HOT, y_pred)
        np.testing.assert_allclose(found, cls(from_logits=logits)(smooth, y_pred), rtol=1e-5)
        assert found != cls(from_logits=logits)(ONE_HOT, y_pred)


def test_sparse_smoothing_is_that_of_one_hot_rows() -> None:
    for logits, y_pred in ((True, LOGITS), (False, PROBABILITIES)):
        sparse = SparseCategoricalCrossentropy(from_logits=logits, label_smoothing=0.2)(LABELS, y_pred)
        dense = losses.CategoricalCrossentropy(from_logits=logits, label_smoothing=0.2)(ONE_HOT, y_pred)
        np.testing.assert_allclose(sparse, dense, rtol=1e-5)


def test_the_axis_of_classes() -> None:
    scores = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    labels, last = RNG.integers(0, 4, size=(2, 3)), np.moveaxis(scores, 1, -1)
    rows = np.eye(4, dtype=np.float32)[labels]
    for axis in (1, -2):
        found = SparseCategoricalCrossentropy(True, axis=axis, reduction="none")(labels, scores)
        expected = SparseCategoricalCrossentropy(True, reduction="none")(labels, last)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        for cls in (losses.CategoricalCrossentropy, losses.CategoricalFocalCrossentropy):
            loss = cls(True, label_smoothing=0.1, axis=axis, reduction="none")
            expected = cls(True, label_smoothing=0.1, reduction="none")(rows, last)
            np.testing.assert_allclose(loss(np.moveaxis(rows, -1, 1), scores), expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Labels that do not count
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [-1, 2, 255])
def test_ignored_labels(ignored: int) -> None:
    labels = LABELS.copy()
    labels[[1, 4]] = ignored
    counted = labels != ignored
    scores = jnp.asarray(LOGITS).at[1].set(jnp.nan)
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored)
    value, gradient = jax.value_and_grad(lambda scores: loss(labels, scores))(scores)
    expected = -np.log(PROBABILITIES[np.arange(6), np.where(counted, labels, 0)])[counted].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert jnp.isfinite(gradient).all() and (np.asarray(gradient)[~counted] == 0).all()
    if ignored == 255:
        np.testing.assert_allclose(loss(labels.astype(np.uint8), scores), expected, rtol=1e-5)


def test_all_labels_ignored_is_zero() -> None:
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    value, gradient = jax.value_and_grad(lambda x: loss(np.full(6, -1), x))(jnp.asarray(LOGITS))
    assert value == 0 and (gradient == 0).all()


def test_labels_out_of_range_without_a_check_are_those_of_the_nearest_class() -> None:
    found = losses.sparse_categorical_crossentropy(np.array([-5, 9]), LOGITS[:2], from_logits=True, check_bounds=False)
    np.testing.assert_allclose(found, -np.log(PROBABILITIES[[0, 1], [0, 3]]), rtol=1e-5)


def test_a_mask() -> None:
    """What is masked is zero, be it NaN, and does not count; the mask of a caller and that of labels are combined."""
    y_pred = Y_PRED.copy()
    y_pred[0] = np.nan
    mask = np.array([False, True, True, False, True, True])
    values = ((Y_TRUE - y_pred) ** 2).mean(-1)
    loss = MeanSquaredError()
    np.testing.assert_allclose(loss(Y_TRUE, y_pred, mask=mask), values[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(loss(Y_TRUE, y_pred, mask=mask[:, None]), values[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(loss(Y_TRUE, y_pred, mask=mask.astype(int)), values[mask].mean(), rtol=1e-6)
    weighted = loss(Y_TRUE, y_pred, WEIGHTS, mask=mask)
    np.testing.assert_allclose(weighted, (values * WEIGHTS)[mask].sum() / 4, rtol=1e-6)
    np.testing.assert_allclose(MeanSquaredError("sum")(Y_TRUE, y_pred, mask=mask), values[mask].sum(), rtol=1e-6)
    none = MeanSquaredError("none")(Y_TRUE, y_pred, mask=mask)
    np.testing.assert_allclose(none, np.where(mask, values, 0), rtol=1e-6)
    assert loss(Y_TRUE, y_pred, mask=np.zeros(6, bool)) == 0

    labels = np.where(np.arange(6) == 1, -1, LABELS)
    loss = SparseCategoricalCrossentropy(True, ignore_class=-1)
    expected = losses.sparse_categorical_crossentropy(LABELS, LOGITS, True)[np.array([2, 4, 5])].mean()
    np.testing.assert_allclose(loss(labels, LOGITS, mask=mask), expected, rtol=1e-6)


def test_a_mask_reaches_a_call_that_asks_for_it() -> None:
    class Own(elegy.Loss):
        def call(self, y_true: Any, y_pred: Any, mask: Any = None) -> Any:
            seen.append(mask)
            return jnp.abs(y_true - y_pred)

    seen: list[Any] = []
    mask = np.array([True, False])
    assert Own()(jnp.zeros([2]), jnp.array([1.0, 5.0]), mask=mask) == 1
    assert seen[-1] is mask


def test_the_mean_of_weights() -> None:
    values = ((Y_TRUE - Y_PRED) ** 2).mean(-1)
    loss = MeanSquaredError("mean_with_sample_weight")
    np.testing.assert_allclose(loss(Y_TRUE, Y_PRED, WEIGHTS), np.average(values, weights=WEIGHTS), rtol=1e-6)
    np.testing.assert_allclose(loss(Y_TRUE, Y_PRED), values.mean(), rtol=1e-6)
    value, gradient = jax.value_and_grad(lambda y: loss(Y_TRUE, y, np.zeros(6)))(jnp.asarray(Y_PRED))
    assert value == 0 and (gradient == 0).all()
    # A weight for each row of values counts once for each of them. (Keras divides by the sum over rows alone.)
    shape = (3, 2, 1)
    rows = loss(np.zeros(shape), np.arange(6.0).reshape(shape), np.array([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(rows, (0 + 1 + 3 * (16 + 25)) / 8)
    mask = np.arange(6) > 2
    masked = loss(Y_TRUE, Y_PRED, WEIGHTS, mask=mask)
    np.testing.assert_allclose(masked, np.average(values[3:], weights=WEIGHTS[3:]), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# One by one
# ---------------------------------------------------------------------------------------------------------------------


def test_hinge_takes_each_zero_for_minus_one() -> None:
    y_true, y_pred = np.array([0.0, 1.0, -1.0]), np.array([0.5, 0.25, -3.0])
    np.testing.assert_allclose(losses.Hinge("none")(y_true, y_pred), [1.5, 0.75, 0])
    np.testing.assert_allclose(losses.SquaredHinge("none")(y_true, y_pred), [1.5**2, 0.75**2, 0])


def test_large_errors() -> None:
    assert losses.LogCosh()(np.zeros([1, 1]), np.full([1, 1], 1e4)) == np.float32(1e4 - np.log(2))
    np.testing.assert_allclose(losses.Huber(0.5)(np.zeros([1, 1]), np.full([1, 1], 1e4)), 0.5 * (1e4 - 0.25))


def test_focal_weights_of_classes() -> None:
    loss = losses.CategoricalFocalCrossentropy(True, alpha=[1, 2, 3, 4], gamma=0)
    expected = -(np.log(PROBABILITIES[np.arange(6), LABELS]) * (1 + LABELS)).mean()
    np.testing.assert_allclose(loss(ONE_HOT, LOGITS), expected, rtol=1e-5)
    binary = losses.BinaryFocalCrossentropy(alpha=0.9, gamma=0)
    expected = -(0.9 * np.log(0.3) + 0.1 * np.log(0.6)) / 2
    np.testing.assert_allclose(binary(np.array([1, 0]), np.array([0.3, 0.4])), expected, rtol=1e-5)


def _ctc_by_paths(labels: Any, probabilities: Any) -> float:
    """The sum over all ways to write labels, by trying each."""
    total = 0.0
    for path in itertools.product(range(probabilities.shape[-1]), repeat=len(probabilities)):
        merged = [key for key, _ in itertools.groupby(path) if key != 0]
        if merged == [label for label in labels if label != 0]:
            total += np.prod([row[key] for row, key in zip(probabilities, path, strict=True)])
    return -np.log(total)


def test_ctc_sums_over_all_paths() -> None:
    labels = np.array([[1, 2], [2, 0], [1, 1], [0, 0]])
    logits = RNG.normal(size=(4, 4, 3)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [_ctc_by_paths(*pair) for pair in zip(labels, probabilities, strict=True)]
    np.testing.assert_allclose(losses.CTC(reduction="none")(labels, logits), expected, rtol=1e-4)
    # With another blank, the classes move.
    moved = losses.CTC(blank=2, reduction="none")((labels + 2) % 3, np.roll(logits, -1, axis=-1))
    np.testing.assert_allclose(moved, expected, rtol=1e-4)
    lengths = np.array([3, 2, 3, 1])
    short = [_ctc_by_paths(a, b[:n]) for a, b, n in zip(labels, probabilities, lengths, strict=True)]
    found = losses.CTC(reduction="none")(labels, logits, logit_lengths=lengths)
    np.testing.assert_allclose(found, short, rtol=1e-4)
    weighted = losses.CTC()(labels, logits, np.array([1.0, 0, 0, 2]), logit_lengths=lengths)
    np.testing.assert_allclose(weighted, (short[0] + 2 * short[3]) / 4, rtol=1e-4)


def test_ctc_never_gives_a_wrong_number() -> None:
    """Classes that are not there, padding at the start, labels that do not fit, and logits that are extreme."""
    labels = np.array([[3, 0], [-1, 1], [0, 1], [1, 1], [1, 0]])
    logits = jnp.zeros([5, 2, 3]).at[4].set(jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]]))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient_and_values(logits: Any) -> Any:
        values = losses.ctc(labels, logits)
        return values.sum(), values

    gradient, values = gradient_and_values(logits)
    np.testing.assert_array_equal(np.isnan(values), [True, True, True, False, False])
    assert values[3] > 1e4  # two equal labels need a third step between them
    assert jnp.isfinite(gradient).all()


def test_triplet() -> None:
    anchors, positives, negatives = RNG.normal(size=(3, 6, 4)).astype(np.float32)
    distance = lambda a, b: np.linalg.norm(a - b, axis=-1)  # noqa: E731
    expected = np.maximum(0, 0.5 + distance(anchors, positives) - distance(anchors, negatives))
    loss = losses.Triplet(margin=0.5, reduction="none")
    np.testing.assert_allclose(loss((anchors, positives, negatives)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss([anchors, positives, negatives], WEIGHTS), expected * WEIGHTS, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda x: losses.Triplet()((x, x, x)))(jnp.asarray(anchors))
    assert jnp.isfinite(gradient).all()


def test_contrastive() -> None:
    first, second = RNG.normal(size=(2, 6, 4)).astype(np.float32)
    alike = np.array([1, 0, 1, 0, 0, 1])
    distance = np.linalg.norm(first - second, axis=-1)
    expected = np.where(alike, distance**2, np.maximum(0, 2.5 - distance) ** 2)
    loss = losses.Contrastive(margin=2.5, reduction="none")
    np.testing.assert_allclose(loss(alike, (first, second)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss(alike == 1, [first, second], WEIGHTS), expected * WEIGHTS, rtol=1e-5, atol=1e-5)
    assert (losses.Contrastive(reduction="none")(alike, (first, second)) != expected).any()
    # Equal embeddings, of which those that are not alike are as near as can be.
    value, gradient = jax.value_and_grad(lambda x: losses.Contrastive(margin=2)(alike, (x, jnp.asarray(first))))(
        jnp.asarray(first)
    )
    assert value == 2 and jnp.isfinite(gradient).all()


@pytest.mark.usefixtures("default_promotion")
def test_nt_xent() -> None:
    embeddings, groups = RNG.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    loss, labels = losses.NTXent(0.3), jnp.asarray(groups)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(labels, x)))(embeddings)
    expected, expected_gradient = jax.jit(jax.value_and_grad(lambda x: optax.losses.ntxent(x, labels, 0.3)))(embeddings)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)

    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    similar, groups = np.exp(unit @ unit.T / 0.3), np.array([0, 0, 0, 1, 1, 2])
    by_hand = np.zeros(6)
    for i in range(5):
        others = [j for j in range(6) if groups[j] == groups[i] and j != i]
        rest = similar[i][groups != groups[i]].sum()
        by_hand[i] = np.mean([-np.log(similar[i, j] / (similar[i, j] + rest)) for j in others])
    np.testing.assert_allclose(losses.NTXent(0.3, reduction="none")(groups, embeddings), by_hand, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses.NTXent(0.3)(groups, embeddings), by_hand[:5].mean(), rtol=1e-4)


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 2], [0, 0, 1]])
def test_nt_xent_of_degenerate_groups(groups: list[int]) -> None:
    loss = losses.NTXent()
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(np.array(groups), x)))(jnp.zeros([3, 2]))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    assert (value == 0) == (groups != [0, 0, 1])


def test_losses_without_targets_in_a_model() -> None:
    class Towers(elegy.Module):
        def call(self, x: Any) -> Any:
            linear = elegy.nn.Linear(2)
            return linear(x), linear(-x), linear(0.5 * x)

    model = elegy.Model(Towers(), loss=losses.Triplet(), optimizer=optax.sgd(0.1))
    history = model.fit(Y_TRUE, sample_weight=WEIGHTS, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    embedding = elegy.Model(elegy.nn.Linear(2), loss=losses.NTXent(0.5), optimizer=optax.sgd(0.1))
    history = embedding.fit(Y_TRUE, np.array([0, 0, 1, 1, 2, 2]), epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_weights_in_a_model() -> None:
    """They reach a loss that leaves out some labels, and one with its own reduction."""
    labels = np.where(np.arange(6) == 2, -1, LABELS)
    module = elegy.nn.Linear(4).init(Y_TRUE, rng=0)
    values = np.asarray(losses.sparse_categorical_crossentropy(LABELS, module(Y_TRUE), from_logits=True)) * WEIGHTS
    model = elegy.Model(
        module,
        loss={
            "mean": SparseCategoricalCrossentropy(True, ignore_class=-1),
            "average": SparseCategoricalCrossentropy(True, ignore_class=-1, reduction="mean_with_sample_weight"),
        },
        optimizer=optax.sgd(0.1),
    )
    logs = model.evaluate(Y_TRUE, labels, sample_weight=WEIGHTS)
    counted = labels >= 0
    found = [logs[f"{name}_loss/sparse_categorical_crossentropy"] for name in ("mean", "average")]
    total = values[counted].sum()
    np.testing.assert_allclose(found, [total / 5, total / WEIGHTS[counted].sum()], rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.Huber(0), ValueError, "losses.Huber: delta must be a number greater than 0, got 0"),
        (lambda: losses.Huber(float("nan")), ValueError, "delta must be"),
        (lambda: losses.BinaryCrossentropy(label_smoothing=1.5), ValueError, "label_smoothing must be a number from 0"),
        (lambda: losses.BinaryCrossentropy("yes"), TypeError, "from_logits must be True or False, got 'yes'"),
        (lambda: losses.BinaryFocalCrossentropy(alpha=2), ValueError, "alpha must be a number from 0 to 1, got 2"),
        (lambda: losses.BinaryFocalCrossentropy(gamma=-1), ValueError, "gamma must be a number of at least 0, got -1"),
        (lambda: losses.CategoricalCrossentropy(label_smoothing=-0.1), ValueError, "label_smoothing must be"),
        (lambda: losses.CategoricalCrossentropy(axis=2)(ONE_HOT, LOGITS), ValueError, "axis=2 is not an axis"),
        (lambda: losses.CategoricalFocalCrossentropy(alpha=[1, -1]), ValueError, "alpha must be"),
        (
            lambda: losses.CategoricalFocalCrossentropy(alpha=[1, 1])(ONE_HOT, LOGITS),
            ValueError,
            "alpha has 2 numbers, and there are 4 classes",
        ),
        (lambda: SparseCategoricalCrossentropy(label_smoothing=2), ValueError, "label_smoothing must be"),
        (lambda: SparseCategoricalCrossentropy(check_bounds=1), TypeError, "check_bounds must be True or False"),
        (lambda: SparseCategoricalCrossentropy(axis=3)(LABELS, LOGITS), ValueError, "axis=3 is not an axis"),
        (lambda: losses.CosineSimilarity(axis=2)(Y_TRUE, Y_PRED), ValueError, "axis=2 is not an axis"),
        (lambda: losses.Tversky(alpha=-1), ValueError, "alpha must be"),
        (lambda: losses.Tversky(beta=-1), ValueError, "beta must be"),
        (lambda: losses.Dice()(ONE_HOT, PROBABILITIES, WEIGHTS), ValueError, "There is one number for all examples"),
        (lambda: losses.Triplet(margin=-1), ValueError, "margin must be"),
        (lambda: losses.Triplet()((Y_TRUE, Y_PRED)), ValueError, "must be .anchors, positives, negatives., got 2"),
        (lambda: losses.Contrastive(margin=-1), ValueError, "margin must be"),
        (lambda: losses.Contrastive()(LABELS, Y_TRUE), ValueError, "must be a pair of embeddings, got one value"),
        (lambda: losses.Contrastive()(LABELS, (Y_TRUE, Y_PRED[:1])), ValueError, "both embeddings must have one shape"),
        (lambda: losses.Triplet()(Y_TRUE), ValueError, "must be .anchors, positives, negatives., got one value"),
        (lambda: losses.Triplet()((Y_TRUE, Y_PRED, Y_PRED[:1])), ValueError, r"one shape .*\(1, 3\)"),
        (lambda: losses.NTXent(0), ValueError, "temperature must be a number greater than 0"),
        (lambda: losses.NTXent()(LABELS[:, None], LOGITS), ValueError, r"got \(6, 1\) and \(6, 4\)"),
        (lambda: losses.NTXent()(LABELS * 1.0, LOGITS), TypeError, "must hold integers"),
        (lambda: losses.CTC()(LABELS, LOGITS), ValueError, r"got \(6,\) and \(6, 4\)"),
        (lambda: losses.CTC()(LABELS[:, None] * 1.0, LOGITS[:, None]), TypeError, "integer class labels"),
        (lambda: losses.CTC(blank=4)(LABELS[:, None], LOGITS[:, None]), ValueError, "blank=4 is not one of the 4"),
        (
            lambda: losses.CTC()(LABELS[:, None], LOGITS[:, None], logit_lengths=np.ones(5, int)),
            ValueError,
            r"logit_lengths must have shape \(6,\), got \(5,\)",
        ),
        (
            lambda: losses.CTC()(LABELS[:, None], LOGITS[:, None], logit_lengths=np.ones(6)),
            TypeError,
            "logit_lengths must hold integers",
        ),
        (
            lambda: MeanSquaredError()(Y_TRUE, Y_PRED, mask=np.ones(5, bool)),
            ValueError,
            r"mean_squared_error: mask has shape \(5,\), and the values that it selects from \(6,\)",
        ),
        (lambda: MeanSquaredError()(Y_TRUE, Y_PRED, mask=np.ones(6)), TypeError, "mask must hold bools, got float"),
    ],
)
def test_bad_arguments_of_the_others(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
