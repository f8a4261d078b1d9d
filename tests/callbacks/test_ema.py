"""`EMA` against `optax.ema`."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.callbacks import EMA, Callback, LambdaCallback
from elegy.model.loop import Reference
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


def test_no_step_waits_for_the_device(fitted, monkeypatch):
    average, events = EMA(0.8), []
    mix = average._after_step
    monkeypatch.setattr(average, "_after_step", lambda module: events.append("step") or mix(module))
    write = Reference.write
    monkeypatch.setattr(Reference, "write", lambda *given: events.append("write") or write(*given))
    fitted(average, epochs=1, validation=False)
    assert events == ["step"] * 3 + ["write"]  # the module is written once, at the end of the epoch


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
    average, steps = EMA(0.9), []
    average.model = type("Stub", (), {"module": module})
    for step in range(20):
        module.set_parameters({"w": jnp.full([2, 1], 1 + step / 10, jnp.bfloat16)})
        steps.append({"w": np.asarray(module.w, np.float32)})
        average._after_step(module)
    assert_close(average._average["w"], by_optax(0.9, steps)[-1]["w"])
    assert average.parameters["w"].dtype == jnp.bfloat16
    module = average.model.module = elegy.select(module, "w").freeze()
    assert set(average.parameters) == {"b"}
    average._after_step(module)
    assert (average._steps["w"], average._steps["b"]) == (20, 21)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_arguments(decay):
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        EMA(decay)
    with pytest.raises(TypeError, match="For momentum= write decay="):
        EMA(momentum=0.9)
