"""Labels that are no classes of what the module predicts are refused before a step runs; data in nested lists."""

import re
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.model.data import as_data, gives_batches
from tests.helpers import assert_same


def crossentropy(**options):
    return elegy.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def make(loss=None, metrics=None, module=None):
    module = elegy.nn.Linear(3) if module is None else module
    return elegy.Model(module, loss=loss, metrics=metrics, optimizer=optax.sgd(0.1))


X = np.ones([6, 2], np.float32)
GOOD = np.array([0, 1, 2, 0, 1, 2])
FROM_ONE = GOOD + 1
PADDED = np.array([0, 1, -1, -1, 1, 2])
MESSAGE = (
    "loss (SparseCategoricalCrossentropy): y has labels from 1 to 3, and y_pred has 3 classes, which are 0 to 2. "
    "2 of 6 labels are out of range, the first of which is y[2] = 3.\n  Labels that begin at 1 become classes by y - 1."
)


def test_labels_out_of_range_are_refused_in_each_way_that_data_come():
    model = make(crossentropy())
    for run in (
        lambda: model.fit(X, FROM_ONE, verbose=0),
        lambda: model.fit([(X, FROM_ONE)], verbose=0),
        lambda: model.fit(jnp.asarray(X), jnp.asarray(FROM_ONE), verbose=0),
        lambda: model.train_on_batch(X, FROM_ONE),
        lambda: model.evaluate(X, FROM_ONE),
        lambda: model.evaluate([(X, FROM_ONE)]),
        lambda: model.lr_find(X, FROM_ONE, optimizer=optax.sgd),
        lambda: model.lr_find([(X, FROM_ONE)], optimizer=optax.sgd),
        lambda: model.functional().init(X, FROM_ONE),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(MESSAGE)}"):
            run()
    with pytest.raises(ValueError, match=r"y of the validation data\[2\] = -1.\n.*ignore_class=-1"):
        model.fit(X, GOOD, validation_data=(X, PADDED), verbose=0)
    before = np.asarray(model.module.w)
    with pytest.raises(ValueError, match=r"1 of 6 labels is out of range, .* y\[5\] = 7.\n.*predict 8 classes"):
        model.fit([(X, GOOD), (X, np.array([0, 1, 2, 0, 1, 7]))], verbose=0)
    jax.eval_shape(model.functional().init, X, FROM_ONE)  # these are not there to be looked at
    assert model.steps == 1 and np.isfinite(model.module.w).all() and (np.asarray(model.module.w) != before).any()


def test_weights_of_classes_that_there_are_not():
    model = make(crossentropy())
    for run in (model.fit, model.train_on_batch):
        options = {"verbose": 0} if run == model.fit else {}
        with pytest.raises(
            ValueError, match="class_weight has a weight for class 9, and of loss .* y_pred has 3 classes"
        ):
            run(X, GOOD, class_weight={0: 2.0, 9: 1.0}, **options)
    model = make(crossentropy(), elegy.metrics.SparseCategoricalAccuracy())
    with pytest.raises(ValueError, match="labels from 1 to 3"):
        model.fit(X, FROM_ONE, class_weight={0: 2.0}, verbose=0)


class TwoHeads(elegy.Module):
    def call(self, x):
        return {"a": elegy.nn.Linear(3)(x), "b": elegy.nn.Linear(4)(x)}


def test_labels_of_one_head_and_labels_that_do_not_count():
    losses = [crossentropy(on="a", ignore_class=-1), crossentropy(on="b", check_bounds=False)]
    model = make(losses, elegy.metrics.SparseCategoricalAccuracy(on="b"), TwoHeads())
    weights = (PADDED >= 0).astype(np.float32)
    assert model.evaluate(X, {"a": PADDED, "b": PADDED}, sample_weight=weights)["loss"] > 0  # -1 has no weight
    with pytest.raises(ValueError, match=r"^metrics \(SparseCategoricalAcc\w*\): y\['b'\] has .* 1 to 4, .* 4 classes"):
        model.evaluate(X, {"a": PADDED, "b": FROM_ONE + (FROM_ONE == 3)})
    with pytest.raises(ValueError, match=r"^loss\[0\] \(SparseCategoricalCross\w*\): y\['a'\] has labels from 1 to 3"):
        model.evaluate(X, {"a": FROM_ONE, "b": GOOD})


class Shifting(elegy.Model):
    def loss_step(self, x, y, sample_weight):
        y_pred = self.pred_step(x)
        return self.compute_losses(x, y - 1, y_pred, sample_weight), y_pred


def test_targets_that_a_step_changes_are_not_known():
    model = Shifting(elegy.nn.Linear(3), crossentropy())
    assert np.isfinite(model.evaluate(X, FROM_ONE)["loss"])


# ---------------------------------------------------------------------------------------------------------------------
# Nested lists
# ---------------------------------------------------------------------------------------------------------------------


def test_numbers_in_nested_lists_are_arrays():
    x, y = [[1, 2.5], [3, 4], [5, 6]], [0, 1, 2]
    assert not gives_batches(x) and not gives_batches(y) and not gives_batches([[True, False]])
    found = as_data({"a": x, "b": ([1, 2, 3], np.zeros(3))}, y, [1.0, 2.0, 3.0])
    shapes = [(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(found)]
    floats, ints = np.dtype(np.float32), np.dtype(np.int32)
    assert shapes == [(floats, (3, 2)), (ints, (3,)), (floats, (3,)), (ints, (3,)), (floats, (3,))]
    assert found.x["a"].tolist() == x and as_data([[True], [False]]).x.dtype == np.bool_


def test_lists_of_arrays_and_tuples_are_batches():
    assert gives_batches([(X, GOOD), (X, GOOD)]) and gives_batches([[X, GOOD]]) and gives_batches([([1.0], [2.0])])
    assert not gives_batches([X, X]) and not gives_batches([])
    assert isinstance(as_data([X, X]).x, list)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1, 2], [3]], r"x\[0\] is a list of 2, and x\[1\] a list of 1"),
        ([[1, 2], 3], r"x\[0\] is a list of 2, and x\[1\] a number"),
        ([[[1], [2]], [[3], [4, 5]]], r"x\[0\]\[0\] is a list of 1, and x\[1\]\[1\] a list of 2"),
    ],
    ids=["rows", "a number", "deep"],
)
def test_lists_that_make_no_array(x, message):
    with pytest.raises(ValueError, match=message):
        as_data(x)


def test_a_model_takes_nested_lists():
    model = make(crossentropy())
    history = model.fit(X.tolist(), GOOD.tolist(), validation_data=[X.tolist(), GOOD.tolist()], verbose=0)
    assert set(history.history) > {"loss", "val_loss"}
    assert model.predict(X.tolist()).shape == (6, 3)


class Pair(elegy.Module):
    def call(self, a, b):
        return elegy.nn.Linear(3)(a + b)


def test_validation_data_that_can_be_read_in_two_ways():
    model = make(crossentropy(), module=Pair())
    with pytest.raises(ValueError, match=r"two batches \(x, y\) with one input each.*\n.*write a tuple"):
        model.fit((X, X), GOOD, validation_data=[(X, X), (GOOD, GOOD)], verbose=0)
    batch = (X, X), GOOD
    assert "val_loss" in model.fit((X, X), GOOD, validation_data=[batch, batch], verbose=0).history


def test_more_steps_than_a_list_has_batches():
    model = make(crossentropy())
    assert model.predict([(X,), (X,)], steps=5).shape == (12, 3)
    assert model.predict(X, batch_size=2, steps=5).shape == (6, 3)
    assert model.evaluate([(X, GOOD)], steps=3) == model.evaluate(X, GOOD)
    batches = [(X[:2], GOOD[:2]), (X[2:], GOOD[2:])]
    history = model.fit(X, GOOD, validation_data=batches, validation_steps=3, verbose=0).history
    assert history["val_loss"] == [model.evaluate(batches)["loss"]]


@pytest.mark.parametrize(
    "metric",
    [
        elegy.metrics.Precision("macro"),
        elegy.metrics.Recall("micro", num_classes=3),
        elegy.metrics.F1(class_id=1),
        elegy.metrics.MeanIoU(3),
        type("Matrix", (elegy.metrics.ConfusionMatrix,), {"compute": lambda self: self.totals.sum()})(3),
    ],
    ids=["Precision", "Recall", "F1", "MeanIoU", "ConfusionMatrix"],
)
def test_metrics_that_count_classes_refuse_other_labels(metric):
    model = make(metrics=metric)
    with pytest.raises(ValueError, match=r"y has labels from 1 to 3, and y_pred has 3 classes"):
        model.evaluate(X, FROM_ONE)
    assert all(np.isfinite(value) for value in model.evaluate(X, GOOD).values())
    weights = (PADDED >= 0).astype(np.float32)
    assert all(np.isfinite(value) for value in model.evaluate(X, PADDED, sample_weight=weights).values())


def test_metrics_of_which_the_range_cannot_be_told():
    assert elegy.metrics.F1().label_range(jnp.zeros([6])).is_binary
    assert elegy.metrics.F1("macro").label_range(jnp.zeros([6], int)) is None
    assert elegy.metrics.F1("macro", num_classes=4).label_range(jnp.zeros([6], int)).classes == 4


@pytest.mark.parametrize(
    "objective",
    [
        {"loss": elegy.losses.BinaryCrossentropy(from_logits=True)},
        {"loss": elegy.losses.BinaryFocalCrossentropy(from_logits=True)},
        {"metrics": elegy.metrics.BinaryAccuracy()},
        {"metrics": elegy.metrics.AUC()},
        {"metrics": elegy.metrics.F1()},
        {"metrics": elegy.metrics.BinaryCrossentropy(from_logits=True)},
    ],
    ids=["loss", "focal loss", "accuracy", "AUC", "F1", "crossentropy"],
)
def test_binary_labels_out_of_range(objective):
    model = make(module=elegy.nn.Linear(1), **objective)
    signs = np.array([[-1], [1], [1], [-1], [1], [1]])
    for labels in (signs, signs.astype(np.float32)):
        with pytest.raises(ValueError, match=r"y has labels from -1.* to 1.*, and a label is 0 or 1, or a probability"):
            model.evaluate(X, labels)
    with pytest.raises(ValueError, match=r"from 1 to 2.*4 of 6 labels are out of range.*\n.* \(y > 1\).astype\(int\)"):
        model.evaluate(X, (signs + 3) // 2)
    for labels in (signs > 0, (signs > 0).astype(np.float32)):
        assert all(np.isfinite(value) for value in model.evaluate(X, labels).values())


def test_probabilities_are_binary_labels_and_pictures_are_not_looked_at():
    model = make(elegy.losses.BinaryCrossentropy(from_logits=True), module=elegy.nn.Linear(1))
    assert model.evaluate(X, np.full([6, 1], 0.3, np.float32))["loss"] > 0
    model = make(elegy.losses.BinaryCrossentropy(from_logits=True), module=elegy.nn.Linear(2))
    assert np.isfinite(model.evaluate(X, X + 1)["loss"])


def test_ctc_refuses_labels_that_are_no_class():
    model = make(elegy.losses.CTC())
    x, weights = np.ones([2, 4, 2], np.float32), np.array([1, 0], np.float32)
    assert model.evaluate(x, np.array([[1, 2], [2, 0]]))["loss"] > 0
    for given in (None, weights):
        with pytest.raises(ValueError, match=r"loss \(CTC\): y has labels from 0 to 3, and y_pred has 3 classes"):
            model.evaluate(x, np.array([[1, 2], [3, 0]]), sample_weight=given)


# ---------------------------------------------------------------------------------------------------------------------
# Weights, lists, and what is no data
# ---------------------------------------------------------------------------------------------------------------------


def squares(y_true, y_pred):
    return (y_true - y_pred) ** 2


ONES = np.ones([6, 3], np.float32)
WEIGHTS = np.array([1, 1, np.nan, 1, np.inf, 1], np.float32)


def test_weights_that_are_not_finite_are_refused_in_each_way_that_data_come():
    model = make(squares)
    message = r"^sample_weight: 2 of 6 weights are not finite, the first of which is sample_weight\[2\] = nan\."
    for run in (
        lambda: model.fit(X, ONES, sample_weight=WEIGHTS, verbose=0),
        lambda: model.fit([(X, ONES, WEIGHTS)], verbose=0),
        lambda: model.fit(*map(jnp.asarray, (X, ONES)), sample_weight=jnp.asarray(WEIGHTS), verbose=0),
        lambda: model.train_on_batch(X, ONES, WEIGHTS),
        lambda: model.evaluate(X, ONES, sample_weight=WEIGHTS),
        lambda: model.lr_find(X, ONES, sample_weight=WEIGHTS),
        lambda: model.functional().init(X, ONES, WEIGHTS),
    ):
        with pytest.raises(ValueError, match=message):
            run()
    with pytest.raises(ValueError, match=r"^sample_weight of the validation data: .* sample_weight\[2\] = nan"):
        model.fit(X, ONES, validation_data=(X, ONES, WEIGHTS), verbose=0)
    with pytest.raises(ValueError, match=r"sample_weight\['a'\]: 1 of 6 .* sample_weight\['a'\]\[1, 0\] = -inf"):
        model.evaluate(X, ONES, sample_weight={"a": np.array([[1], [-np.inf], *[[1]] * 4], np.float32), "b": None})
    with pytest.raises(TypeError, match=r"sample_weight holds real numbers, got complex64\[6\]"):
        model.evaluate(X, ONES, sample_weight=np.ones(6, np.complex64))
    assert model.steps == 0


def test_weights_may_be_negative():
    module, advantages = elegy.nn.Linear(3).init(X), np.array([1, -2, 3, -1, 0.5, -0.5], np.float32)
    logs = make(squares, module=module).evaluate(X, ONES, sample_weight=advantages)
    values = (np.asarray(module(X)) - ONES) ** 2
    np.testing.assert_allclose(logs["loss"], np.mean(values * advantages[:, None]), rtol=1e-5)


class Sum(elegy.Module):
    def call(self, a, b):
        return elegy.nn.Linear(3)(a + b)


class SumOfList(elegy.Module):
    def call(self, parts):
        return elegy.nn.Linear(3)(sum(parts))


def test_a_list_of_arrays_is_one_argument():
    both = [X, 2 * X]
    for module in (Sum(), lambda a, b: elegy.nn.Linear(3)(a + b)):
        model = make(squares, module=module)
        for run in (lambda m=model: m.fit(both, ONES, verbose=0), lambda m=model: m.predict(both)):
            with pytest.raises(TypeError, match=r"takes 2 arguments, and x is a list of 2.*\n  Give a tuple of inputs"):
                run()
    model = make(squares, module=SumOfList())
    model.fit(both, ONES, verbose=0)  # it takes a list
    np.testing.assert_allclose(model.predict(both), model.module(both), rtol=1e-6)
    model = make(squares)
    assert model.evaluate([(X, ONES), (X, ONES)]) == model.evaluate(X, ONES)
    with pytest.raises((TypeError, DeprecationWarning)) as caught:  # JAX takes no list for an array
        model.predict(both)
    assert any("x is a list of 2 arrays" in note and "fit((a, b), y)" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match=r"differ in length.*\n  If the 6 arrays .* samples.* np.stack\(x\)"):
        model.evaluate([*X], ONES)


@pytest.mark.parametrize("form", ["one", "tuple", "dict"])
def test_numbers_in_nested_lists_are_arrays_everywhere(form):
    weights = np.arange(6, dtype=np.float32)
    x: tp.Any = {"one": X, "tuple": (X, 2 * X), "dict": {"a": X, "b": 2 * X}}[form]
    given = jax.tree.map(lambda array: array.tolist(), (x, ONES, weights))
    module = elegy.nn.Linear(3) if form == "one" else Sum()

    def results(x, y, weights):
        model = make(squares, module=module.copy())
        functional = model.functional()
        assert model.summary(x).trainable == 9
        state = functional.init(x, y, weights)
        found = [functional.predict(state, x), functional.eval_step(state, x, y, weights)]
        found += [functional.train_step(state, x, y, weights)[1], model.predict(x), model.predict_on_batch(x)]
        return [*found, model.test_on_batch(x, y, weights), model.train_on_batch(x, y, weights)]

    assert_same(results(*given), results(x, ONES, weights))


def test_what_is_no_data_says_what_to_give():
    model = make(squares)
    with pytest.raises(TypeError, match="y is a generator, which gives .*\n.* let x give batches"):
        model.fit(X, (row for row in ONES), verbose=0)
    with pytest.raises(ValueError, match="differ in length: x has 6, y has 5") as caught:
        model.fit(X, ONES, validation_data=(X, ONES[:5]), verbose=0)
    assert "It is validation_data that this is about." in caught.value.__notes__


# ---------------------------------------------------------------------------------------------------------------------
# Weights of several outputs
# ---------------------------------------------------------------------------------------------------------------------


class TwoEqual(elegy.Module):
    def call(self, x):
        return {"a": elegy.nn.Linear(3)(x), "b": elegy.nn.Linear(3)(x)}


def test_each_output_has_weights_of_its_own():
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    module, weight = TwoEqual().init(x, rng=0), np.arange(6, dtype=np.float32)
    both = lambda **options: [crossentropy(on=on, name=f"{on}_loss", **options) for on in ("a", "b")]  # noqa: E731
    model = make(both(), elegy.metrics.SparseCategoricalAccuracy(on="a", name="accuracy"), module)
    y, weights = {"a": GOOD, "b": GOOD[::-1].copy()}, {"a": weight, "b": None}
    batches = [(x[:4], *part(y, weights, slice(4))), (x[4:], *part(y, weights, slice(4, 6)))]
    for given in (x, y, 4, weights), (batches,):
        found = model.evaluate(*given)
        for name, wanted in (("a", weight), ("b", None)):
            alone = make(crossentropy(on=name), elegy.metrics.SparseCategoricalAccuracy(on="a"), module)
            alone = alone.evaluate(x, y, sample_weight=wanted)
            np.testing.assert_allclose(found[f"{name}_loss"], alone["loss"], rtol=1e-6)
            if name == "a":
                np.testing.assert_allclose(found["accuracy"], alone["sparse_categorical_accuracy"], rtol=1e-6)
    assert np.isfinite(model.fit(x, y, sample_weight=weights, batch_size=4, verbose=0).history["loss"][0])


def part(y, weights, which):
    return {key: value[which] for key, value in y.items()}, {"a": weights["a"][which], "b": None}


def test_weights_of_outputs_that_fit_no_loss():
    module = TwoEqual()
    weight = np.ones(6, np.float32)
    with pytest.raises(ValueError, match=r"is about the output b, and sample_weight has no weights of it; .* 'a'"):
        make(crossentropy(on="b"), module=module).evaluate(X, {"a": GOOD, "b": GOOD}, sample_weight={"a": weight})
    with pytest.raises(ValueError, match=r"takes one array of weights, and sample_weight is a dict of several"):
        make(crossentropy()).evaluate(X, GOOD, sample_weight={"a": weight})
    with pytest.raises(TypeError, match="class_weight weighs one array"):
        make(crossentropy()).fit(X, GOOD, sample_weight={"a": weight}, class_weight={0: 2.0}, verbose=0)


def test_weights_of_an_output_within_others_may_be_none_above_it():
    class Nested(elegy.Module):
        def call(self, x):
            return {"a": elegy.nn.Linear(3)(x), "b": (elegy.nn.Linear(2)(x),)}

    losses = [crossentropy(on="a"), elegy.losses.MeanSquaredError(on=("b", 0))]
    y, weight = {"a": GOOD, "b": (X,)}, np.arange(6, dtype=np.float32)
    model = make(losses, module=Nested().init(X, rng=0))
    found = model.evaluate(X, y, sample_weight={"a": weight, "b": None})
    assert found == model.evaluate(X, y, sample_weight={"a": weight, "b": (None,)})


def test_one_hot_rows_of_integers_have_classes():
    """Unless there are labels, in which each of the integers is one."""
    y, weights = np.eye(3, dtype=int)[GOOD], {0: 2.0, 2: 0.5}
    module = elegy.nn.Linear(3).init(X, rng=0)
    loss = elegy.losses.CategoricalCrossentropy(from_logits=True)
    found = [
        make(loss, module=module.copy()).train_on_batch(X, y.astype(dtype), class_weight=weights)
        for dtype in (np.int32, np.float32, bool)
    ]
    assert found[0] == found[1] == found[2]
    module = elegy.nn.Sequential(lambda: [elegy.nn.Linear(9), elegy.nn.Reshape((3, 3))]).init(X, rng=0)
    of_labels = make(crossentropy(), module=module.copy()).train_on_batch(X, y, class_weight={0: 2.0, 1: 0.5})
    weight = np.where(y == 0, 2.0, 0.5).astype(np.float32)
    assert of_labels == make(crossentropy(), module=module.copy()).train_on_batch(X, y, sample_weight=weight)


@pytest.mark.parametrize("labels", [FROM_ONE, PADDED])
def test_labels_of_a_loss_of_optax_are_looked_at(labels):
    loss = optax.softmax_cross_entropy_with_integer_labels
    with pytest.raises(ValueError, match=r"loss \(softmax_cross_entropy_with_integer_labels\): y has labels from"):
        make(loss).fit(X, labels, verbose=0)
    # What has the weight 0 may be anything.
    weight = (labels == GOOD).astype(np.float32)
    assert make(loss).fit(X, labels, sample_weight=weight, verbose=0).epoch == [0]
