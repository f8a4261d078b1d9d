"""`EMA` against `optax.ema`."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.callbacks import EMA, Callback, LambdaCallback, ModelCheckpoint
from elegy.callbacks.ema import Average
from tests.helpers import assert_close, assert_same


class Recorder(Callback):
    """Notes the trainable parameters after each step, and in each validation."""

    def __init__(self):
        self.steps = []
        self.validated = []

    def on_train_batch_end(self, batch, logs):
        self.steps.append(self.now())

    def on_test_batch_end(self, batch, logs):
        self.validated.append(self.now())

    def now(self):
        return jax.tree.map(np.asarray, self.model.module.get_parameters(trainable=True))


def by_optax(decay, steps):
    """The averages after each step."""
    transformation = optax.ema(decay)
    state, averages = transformation.init(steps[0]), []
    for parameters in steps:
        with jax.numpy_dtype_promotion("standard"):
            average, state = transformation.update(parameters, state)
        averages.append(average)
    return averages


def test_the_average_is_that_of_optax_and_stands_in_for_validation(fitted):
    recorder, average = Recorder(), EMA(0.8)
    fitted(average, recorder, epochs=2)
    expected = by_optax(0.8, recorder.steps)
    assert len(expected) == 6
    assert_close(average.parameters, expected[-1])
    for epoch, validated in enumerate(recorder.validated):
        assert_close(validated, expected[3 * epoch + 2])
    # After validation training went on with its own parameters, and those are there in the end.
    assert_same(recorder.now(), recorder.steps[-1])
    assert not np.allclose(average.parameters["affine"]["b"], recorder.steps[-1]["affine"]["b"], atol=1e-4)


def test_training_is_what_it_is_without(fitted):
    with_average = fitted(EMA(0.9), epochs=2).history
    parameters = jax.tree.map(np.asarray, fitted.model.module.get_parameters())
    fitted.reset()
    without = fitted(epochs=2).history
    assert with_average["loss"] == without["loss"] and with_average["val_loss"] != without["val_loss"]
    assert_same(jax.tree.map(np.asarray, fitted.model.module.get_parameters()), parameters)


def test_at_the_end(fitted):
    recorder, average = Recorder(), EMA(0.8, validation=False, at_end=True)
    fitted(average, recorder, epochs=2)
    assert_same(recorder.validated[-1], recorder.steps[-1])
    assert_close(recorder.now(), by_optax(0.8, recorder.steps)[-1])


def test_evaluate_with_the_average(fitted):
    average = EMA(0.8)
    fitted(average, epochs=2, validation=False)
    own = fitted.model.module.get_parameters()
    value = fitted.model.evaluate(fitted.x, fitted.y, callbacks=[average])["loss"]
    assert_same(fitted.model.module.get_parameters(), own)
    fitted.model.module.set_parameters(average.parameters)
    assert fitted.model.evaluate(fitted.x, fitted.y)["loss"] == value


@pytest.mark.parametrize("hook", ["on_test_batch_end", "on_test_end", "on_test_begin"])
def test_an_exception_in_validation_leaves_the_modules_own_parameters(fitted, hook):
    def fail(*given):
        raise ZeroDivisionError

    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        fitted(recorder, EMA(0.8), LambdaCallback(**{hook: fail}))
    assert_same(recorder.now(), recorder.steps[-1])


def test_it_is_a_part_of_compiled_steps(fitted):
    fitted(EMA(0.7), epochs=1, validation=False)
    traces = fitted.model.traces["train"]
    fitted.reset()
    recorder, average = Recorder(), EMA(0.7)
    fitted(average, epochs=2, validation=False)
    assert fitted.model.traces["train"] == traces
    fitted.reset()
    fitted(EMA(0.7), recorder, epochs=2, validation=False)
    assert_close(average.parameters, by_optax(0.7, recorder.steps)[-1])
    fitted.reset()
    together = EMA(0.7)
    fitted(together, epochs=2, validation=False, steps_per_execution=3)
    assert_close(together.parameters, by_optax(0.7, recorder.steps)[-1])


def test_it_begins_anew_unless_it_goes_on(fitted):
    average, recorder = EMA(0.8), Recorder()
    fitted(average, epochs=1)
    fitted(average, recorder, epochs=1)
    assert_close(average.parameters, by_optax(0.8, recorder.steps)[-1])
    other = EMA(0.8)
    other.set_state(copy.deepcopy(average.get_state()))
    assert set(other.get_state()["parameters"]) == {"norm/scale", "affine/w", "affine/b"}
    fitted(average, other, recorder, epochs=2, initial_epoch=1)
    expected = by_optax(0.8, recorder.steps)
    assert len(expected) == 6
    assert_close(average.parameters, expected[-1])
    assert_same(other.parameters, average.parameters)


def test_half_precision_is_averaged_in_float32_and_frozen_parameters_are_left():
    module = elegy.nn.Linear(1, dtype=jnp.bfloat16).init(jnp.ones([1, 2], jnp.bfloat16))
    average, steps = Average(0.9), []
    average.begin(module, None)
    for step in range(20):
        module.set_parameters({"w": jnp.full([2, 1], 1 + step / 10, jnp.bfloat16)})
        steps.append({"w": np.asarray(module.w, np.float32)})
        average.follow(module)
    assert_close(average.state["average"]["w"], by_optax(0.9, steps)[-1]["w"])
    frozen = elegy.select(module, "w").freeze()
    average.adapt(frozen)
    average.follow(frozen)
    assert average.state["steps"].tolist() == [21, 20]  # of b and w


def test_parameters_that_are_thawed_have_an_average_from_then_on():
    x = np.ones([4, 2], np.float32)
    module = elegy.nn.Linear(1).init(x)
    frozen = elegy.select(module, "b").freeze()
    average = Average(0.9)
    average.begin(frozen, None)
    average.follow(frozen)
    average.adapt(module)
    assert average.state["steps"].tolist() == [0, 1]
    average.follow(module)
    assert_close(average.state["average"], {"b": module.b, "w": module.w})


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_arguments(decay):
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        EMA(decay)
    with pytest.raises(TypeError, match="For momentum= write decay="):
        EMA(momentum=0.9)


def test_before_it_has_a_model():
    with pytest.raises(RuntimeError, match=r"no model yet .*\n  Give it to fit first"):
        EMA(0.9).parameters  # noqa: B018


def test_of_two_averages_the_last_is_validated_and_training_is_what_it_is_without(fitted):
    without = fitted(epochs=2).history
    fitted.reset()
    alone = fitted(EMA(0.8), epochs=2).history
    fitted.reset()
    both = fitted(EMA(0.5), EMA(0.8), epochs=2).history
    assert both["loss"] == without["loss"] and both["val_loss"] == alone["val_loss"]


def test_states_of_averages_in_another_order(fitted, tmp_path):
    def train(name, *decays, epochs, **kwargs):
        averages = [EMA(decay) for decay in decays]
        saving = ModelCheckpoint(tmp_path / name)
        fitted.reset()
        fitted(*averages, saving, epochs=epochs, validation=False, **kwargs)
        return {average.decay: average.parameters for average in averages}

    whole = train("whole", 0.5, 0.8, epochs=2)
    train("parts", 0.5, 0.8, epochs=1)
    assert_same(train("parts", 0.8, 0.5, epochs=2, resume=tmp_path / "parts"), whole)


def test_a_state_of_another_decay(fitted):
    average, other = EMA(0.5), EMA(0.8)
    fitted(average, epochs=1, validation=False)
    state = average.get_state()
    with pytest.warns(elegy.errors.CheckpointWarning, match="(?s)one with decay=0.5, and EMA now has decay=0.8"):
        other.set_state(state)
    del state["decay"]  # as it was written once
    other.set_state(state)
    assert other.get_state()["steps"] == state["steps"] and other.get_state()["decay"] == 0.8


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_the_average_is_sharded_as_the_parameters_are(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType[kind],))
    linear = elegy.nn.Linear(4).init(jnp.ones([1, 3]))
    placed = jax.NamedSharding(mesh, jax.P(None, "data"))
    linear.set_parameters({"w": jax.device_put(linear.w, placed)})
    average = Average(0.9)
    average.begin(linear, None)
    assert average.state["average"]["w"].sharding == placed
    read = {"average": {"w": jnp.ones([3, 4])}, "steps": jnp.ones([1], jnp.int32)}  # from a file
    average.begin(linear, read)
    assert average.state["average"]["w"].sharding == placed
    assert average.state["average"]["w"].tolist() == np.ones([3, 4]).tolist()
