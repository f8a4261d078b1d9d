"""`Model.summary`."""

import jax
import numpy as np
import pytest

import elegy


class Pair(elegy.Module):
    """Takes two arrays, and is told the mode, which `predict` sets to False."""

    def call(self, a, b, training):
        assert not training and not elegy.training()
        return elegy.nn.Linear(2)(a) + b


@pytest.mark.parametrize("form", ["tuple", "dict", "shapes"])
def test_inputs_are_those_of_predict(form):
    a, b = np.ones([4, 3], np.float32), np.ones([4, 2], np.float32)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, b))
    x = {"tuple": (a, b), "dict": {"a": a, "b": b}, "shapes": shapes}[form]
    model = elegy.Model(module=Pair())
    summary = model.summary(x)
    assert [row.path for row in summary.rows] == ["pair", "pair/linear"]
    assert (summary.trainable, summary.multiply_adds) == (8, 24)
    assert not model.module.initialized and elegy.training()


def test_counts_are_those_of_keras():
    import keras

    theirs = keras.Sequential(
        [
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    theirs.build((None, 8, 8, 3))
    ours = elegy.nn.Sequential(
        lambda: [
            elegy.nn.Conv2D(8, 3, padding="VALID"),
            elegy.nn.BatchNormalization(),
            elegy.nn.Flatten(),
            elegy.nn.Linear(10),
        ]
    )
    summary = elegy.Model(ours).summary(np.ones([1, 8, 8, 3], np.float32))
    assert summary.trainable + summary.state == theirs.count_params()
    assert summary.trainable == sum(weight.value.size for weight in theirs.trainable_weights)
