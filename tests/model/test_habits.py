"""What went wrong in silence: constants of compiled steps, names that meet, losses that are no mean of samples."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.callbacks import LambdaCallback
from tests.helpers import assert_close
from tests.model.test_model import data, make_model, mlp, mse, parameters_of

MSE = elegy.losses.MeanSquaredError


class Mean(elegy.losses.Loss):
    """Gives a scalar of its own."""

    def call(self, y_true, y_pred):
        return jnp.mean((y_true - y_pred) ** 2)


def per_output(y_true, y_pred):
    return jnp.mean((y_true - y_pred) ** 2, axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# A short last batch
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [per_output, Mean()], ids=["a value for each output", "a scalar"])
@pytest.mark.parametrize("role", ["loss", "metrics"])
def test_what_has_no_value_for_each_sample_has_short_batches_of_their_own(loss, role):
    x, y = data(20)
    module = mlp().init(x, rng=0)
    options = {"loss": loss} if role == "loss" else {"loss": MSE(), "metrics": loss}
    model = make_model(module, **options)
    found = model.evaluate(x, y, batch_size=8)
    parts = [model.evaluate(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
    for name, value in found.items():
        np.testing.assert_allclose(value, np.average([part[name] for part in parts], weights=[8, 8, 4]), rtol=1e-5)
    assert len(model.fit(x, y, batch_size=8, epochs=2, verbose=0).epoch) == 2 and model.traces["train"] == 2


@jax.custom_vjp
def normalised_gradient(x):
    return x


normalised_gradient.defvjp(lambda x: (x, None), lambda _, g: (g / (jnp.sqrt(jnp.mean(g**2)) + 1e-8),))


def test_gradients_that_mix_samples_are_those_of_batches_without_padding():
    x, y = data(20)

    def construct():
        def net(x):
            return elegy.nn.Linear(1)(normalised_gradient(elegy.nn.Linear(4)(x)))

        return make_model(net)

    model, single = construct(), construct()
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for i in (0, 8, 16):
        single.train_on_batch(x[i : i + 8], y[i : i + 8])
    assert_close(parameters_of(model.module), parameters_of(single.module))
    assert model.traces["train"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# Losses that are metrics, and names
# ---------------------------------------------------------------------------------------------------------------------


def test_a_loss_as_a_metric_is_exact_whatever_the_batch_size():
    x, y = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), np.arange(20) % 3
    crossentropy = functools.partial(elegy.losses.SparseCategoricalCrossentropy, from_logits=True)
    metrics = [crossentropy(ignore_class=0, name="some"), crossentropy(reduction="sum", name="sum"), crossentropy()]
    model = elegy.Model(elegy.nn.Linear(3).init(x, rng=0), crossentropy(), metrics)
    whole, parts = model.evaluate(x, y), model.evaluate(x, y, batch_size=7)
    assert whole.keys() == parts.keys() == {
        "loss", "sparse_categorical_crossentropy_loss", "some", "sum", "sparse_categorical_crossentropy"
    }  # fmt: skip
    logits = np.asarray(model.module(x), np.float64)
    values = np.log(np.exp(logits).sum(1)) - logits[np.arange(20), y]
    for found in whole, parts:
        np.testing.assert_allclose(found["some"], values[y != 0].mean(), rtol=1e-5)
        np.testing.assert_allclose(found["sum"], values.sum(), rtol=1e-5)
        np.testing.assert_allclose(found["loss"], values.mean(), rtol=1e-5)


def mae(y_true, y_pred):
    return jnp.mean(jnp.abs(y_true - y_pred), axis=-1)


def test_equal_names_are_numbered_whatever_they_are_of():
    x, y = data(20)
    metrics = [elegy.metrics.MeanAbsoluteError(name="loss"), mae, elegy.metrics.MeanAbsoluteError(name="mae"), mae]
    model = make_model(mlp().init(x, rng=0), loss=[MSE(name="error_loss"), mse], metrics=metrics)
    found = model.evaluate(x, y, batch_size=8)
    assert found.keys() == {"loss", "error_loss", "mse_loss", "loss_1", "mae", "mae_1", "mae_2"}
    np.testing.assert_allclose(found["loss"], 2 * found["mse_loss"], rtol=1e-5)
    np.testing.assert_allclose([found[name] for name in ("loss_1", "mae_1", "mae_2")], found["mae"], rtol=1e-5)


class Declaring(elegy.Model):
    def loss_step(self, x, y, sample_weight):
        losses, y_pred = super().loss_step(x, y, sample_weight)
        elegy.add_metric("mae", jnp.mean(jnp.abs(y_pred)))
        elegy.add_metric("mae_so_far", jnp.mean(jnp.abs(y_pred)) + 1)
        return losses, y_pred


def test_names_of_what_steps_declare_are_not_taken_by_metrics():
    x, y = data(20)
    metrics = [mae, elegy.metrics.MeanAbsoluteError(name="mae_so_far")]
    model = Declaring(mlp().init(x, rng=0), MSE(), metrics)
    found, history = model.evaluate(x, y, batch_size=8), model.fit(x, y, batch_size=8, verbose=0).history
    assert {"mae", "mae_1", "mae_so_far", "mae_so_far_1"} < found.keys() and found.keys() == history.keys()
    np.testing.assert_allclose(found["mae_so_far"], found["mae"] + 1, rtol=1e-5)
    np.testing.assert_allclose(found["mae_so_far_1"], found["mae_1"], rtol=1e-5)


@pytest.mark.parametrize("outputs", [lambda y: {"a": y, "b": y}, lambda y: (y, y)], ids=["dict", "tuple"])
@pytest.mark.parametrize("options", [{"loss": MSE()}, {"metrics": elegy.metrics.MeanSquaredError()}])
def test_an_objective_that_is_given_all_outputs_is_told_of_on(outputs, options):
    x, y = data(8)
    module = elegy.to_module(lambda x: outputs(elegy.nn.Linear(1)(x)))()
    with pytest.raises(Exception) as raised:  # noqa: PT011  (it is that of whatever was done with them)
        elegy.Model(module, **options).evaluate(x, outputs(y))
    assert any("was given all outputs" in note and "on=" in note for note in raised.value.__notes__)


# ---------------------------------------------------------------------------------------------------------------------
# Constants of compiled steps
# ---------------------------------------------------------------------------------------------------------------------


class Annealed(elegy.Model):
    beta = 0.0

    def loss_step(self, x, y, sample_weight):
        y_pred = self.pred_step(x)
        return {"fit_loss": mse(y, y_pred), "size_loss": self.beta * jnp.mean(y_pred**2)}, y_pred


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_begin"])
def test_an_attribute_of_a_subclass_that_changes_changes_the_step(hook):
    x, y = data(16)

    def fit(run_eagerly):
        model = Annealed(mlp().init(x, rng=0), optimizer=optax.sgd(0.01), run_eagerly=run_eagerly)
        change = LambdaCallback(**{hook: lambda number, *_: setattr(model, "beta", float(number // 2))})
        history = model.fit(x, y, batch_size=8, epochs=4, callbacks=[change], verbose=0).history
        model.beta = 1.0
        return history, model.evaluate(x, y), model.traces["train"]

    (compiled, after, traces), (eager, after_eager, _) = fit(False), fit(True)
    for name, values in eager.items():
        np.testing.assert_allclose(compiled[name], values, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(after[name], after_eager[name], rtol=1e-5, err_msg=name)
    assert traces == (2 if hook == "on_epoch_begin" else 1)  # an equal value is the same constant
    assert (compiled["size_loss"][-1] > 0) == (hook == "on_epoch_begin") and after["size_loss"] > 0


def test_an_attribute_that_no_method_refers_to_is_none_of_their_constants():
    x, y = data(16)
    model = Annealed(mlp().init(x, rng=0), optimizer=optax.sgd(0.01))
    note = LambdaCallback(on_train_batch_end=lambda batch, _: setattr(model, "latest", batch))
    model.fit(x, y, batch_size=8, epochs=2, callbacks=[note], verbose=0)
    assert model.traces["train"] == 1 and model.latest == 1
    model.beta = 0.0  # which it was
    model.fit(x, y, batch_size=8, callbacks=[note], verbose=0)
    assert model.traces["train"] == 1


def scaled(model, values):
    return model.scale * values


def test_an_attribute_that_a_function_of_the_file_reads_for_a_method():
    x, y = data(8)

    class Scaled(elegy.Model):
        def pred_step(self, x):
            return scaled(self, self.module(x))

    model = Scaled(mlp().init(x, rng=0), MSE())
    model.scale, model.calls = 1.0, 0
    before = model.predict(x)
    model.scale, model.calls = 2.0, 1
    np.testing.assert_allclose(model.predict(x), 2 * before, rtol=1e-6)
    assert model.traces["predict"] == 2
    model.calls = 2
    model.predict(x)
    assert model.traces["predict"] == 2


def test_a_class_of_models_is_not_kept_alive():
    def construct():
        class Short(elegy.Model):
            def loss_step(self, x, y, sample_weight):
                return self.beta, None

        model = Short(elegy.nn.Linear(1))
        model.beta = 1.0
        return weakref.ref(Short)

    reference = construct()
    gc.collect()
    assert reference() is None


def test_a_method_that_stops_training_makes_nothing_be_compiled_anew():
    x, y = data(16)

    class Stopping(elegy.Model):
        def stop(self):
            self.stop_training = True

    model = Stopping(mlp().init(x, rng=0), MSE())
    stop = LambdaCallback(on_epoch_end=lambda epoch, _: model.stop())
    for _ in range(2):
        assert model.fit(x, y, batch_size=8, epochs=3, callbacks=[stop], verbose=0).epoch == [0]
    assert model.traces["train"] == 1


def test_another_module_as_an_attribute_takes_part():
    x, y = data(8)

    class WithHead(elegy.Model):
        def pred_step(self, x):
            return self.head(self.module(x))

    model = WithHead(elegy.nn.Linear(4).init(x, rng=0), MSE())
    model.head = elegy.nn.Linear(1).init(np.ones([1, 4], np.float32), rng=0)
    before = model.predict(x)
    model.head = elegy.nn.Linear(1).init(np.ones([1, 4], np.float32), rng=1)
    assert not np.allclose(model.predict(x), before)
    model.train_on_batch(x, y)
    assert model.traces == {"train": 1, "test": 0, "predict": 2}


def functions():
    outside = elegy.nn.Linear(4)
    initialised = elegy.nn.Linear(4).init(data(8)[0])
    return {
        "closure": (outside, lambda x: elegy.nn.Linear(1)(outside(x))),
        "initialised": (initialised, lambda x: elegy.nn.Linear(1)(initialised(x))),
        "inner function": (outside, lambda x: (lambda z: elegy.nn.Linear(1)(outside(z)))(x)),
        "global": (GLOBAL, lambda x: elegy.nn.Linear(1)(GLOBAL(x))),
    }


GLOBAL = elegy.nn.Linear(4)


@pytest.mark.parametrize("name", functions())
def test_a_function_with_modules_from_outside(name):
    x, y = data(8)
    outside, function = functions()[name]
    with pytest.raises(elegy.errors.StructureError, match=r"uses \w+, a Linear with trainable parameters.*\n.*freeze"):
        make_model(function).fit(x, y, verbose=0)
    outside.init(x)
    outside.trainable = False
    before = parameters_of(outside)
    make_model(function).fit(x, y, verbose=0)
    for a, b in zip(parameters_of(outside), before, strict=True):
        np.testing.assert_array_equal(a, b)


class Using(elegy.Module):
    """Uses a module of which it does not know as a module."""

    def __init__(self, use):
        super().__init__()
        self.use = use

    def call(self, x):
        return self.use(elegy.nn.Linear(4)(x))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_a_module_that_uses_one_from_outside_of_it(transform):
    x, y = data(8)
    outside = elegy.nn.Sequential(lambda: [elegy.nn.Linear(1)]).init(np.ones([1, 4], np.float32))
    module = Using(transform(lambda z: outside(z)))
    with pytest.warns(elegy.errors.UntrainedModuleWarning, match="Using uses sequential, .* 5 trainable") as caught:
        make_model(module).fit(x, y, epochs=2, verbose=0)
    assert len(caught) == 1
    make_model(module).evaluate(x, y)  # nobody expects it to be trained there
    outside.trainable = False
    make_model(module).fit(x, y, verbose=0)


def test_modules_that_a_module_holds_are_not_from_outside_of_it():
    x, y = data(8)

    class Holding(elegy.Module):
        def __init__(self):
            super().__init__()
            self.heads = {"a": [elegy.nn.Linear(4), elegy.nn.Linear(4)]}

        def call(self, x):
            for layer in self.heads["a"]:
                x = layer(x)
            x = elegy.nn.Stack(lambda: elegy.nn.Linear(4), 2)(x)
            block = elegy.nn.Linear(1)
            elegy.add_loss("size", MSE()(x, jnp.zeros_like(x)))
            return elegy.remat(block)(self.heads["a"][1].copy()(x))

    def apart(y_true, x):
        return (reference(x) - y_true) ** 2

    reference = elegy.nn.Linear(1).init(x)
    make_model(Holding(), loss=[MSE(), apart]).fit(x, y, verbose=0)


def test_a_function_with_names_that_are_no_modules_it_uses():
    x, y = data(8)
    dropout = elegy.nn.Dropout(0.1)

    class Holder:
        GLOBAL = 1.0

    make_model(lambda x: elegy.nn.Linear(1)(dropout(x)) * Holder.GLOBAL).fit(x, y, verbose=0)


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers, arguments
# ---------------------------------------------------------------------------------------------------------------------


def test_value_fn_gives_the_value_and_the_gradient_that_were_taken():
    x, y = data(16)
    seen = []

    def update(updates, state, params=None, *, value, value_fn, **_):
        same, gradient = jax.value_and_grad(value_fn)(params)
        jax.debug.callback(lambda *found: seen.append(found), (value, same), (updates, gradient))
        return updates, state

    class Counting(elegy.Module):
        def call(self, x):
            count = self.add_parameter("count", [], trainable=False)
            self.update_parameter("count", count + 1)
            return elegy.nn.Linear(1)(elegy.nn.Dropout(0.5)(x)) * count

    transformation = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    make_model(Counting(), optimizer=transformation).fit(x, y, batch_size=8, epochs=2, verbose=0)
    jax.effects_barrier()
    assert len(seen) == 4
    for values, gradients in seen:
        np.testing.assert_allclose(*values, rtol=1e-6)
        assert_close(jax.tree.leaves(gradients[0]), jax.tree.leaves(gradients[1]))


def test_a_transformation_is_given_what_it_names():
    x, y = data(16)

    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: -0.1 * g * jnp.minimum(value, 1.0), updates), state

    transformation = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    history = make_model(optimizer=transformation).fit(x, y, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    sam = optax.contrib.sam(optax.sgd(0.05), optax.sgd(0.01), sync_period=2)
    history = make_model(optimizer=sam).fit(x, y, batch_size=4, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_steps": 2}, "validation_steps was given, and there are no validation data"),
        ({"validation_batch_size": 2}, "validation_batch_size was given"),
        ({"sanity_steps": 2}, "sanity_steps was given"),
        ({"steps_per_epoch": 9}, r"steps_per_epoch=9, and the 16 samples make 4 steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_would_be_ignored(arguments, message):
    x, y = data(16)
    with pytest.raises(ValueError, match=message):
        make_model().fit(x, y, batch_size=4, verbose=0, **arguments)


def test_an_iterator_serves_for_one_epoch():
    x, y = data(16)
    batches = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8)]
    whole, parts = (make_model(mlp().init(x, rng=0)) for _ in range(2))
    whole.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert parts.fit(iter(batches), verbose=0).params["steps"] is None
    assert_close(parameters_of(parts.module), parameters_of(whole.module))
    with pytest.raises(ValueError, match="can be gone through once only"):
        parts.fit(iter(batches), epochs=2, verbose=0)
    with pytest.raises(ValueError, match="validation_data is an iterator.* give validation_steps"):
        parts.fit(x, y, validation_data=iter(batches), verbose=0)


def test_a_start_that_failed_counts_nothing():
    x, y = data(16)
    whole = make_model(mlp().init(x, rng=0))
    expected = whole.fit(x, y, batch_size=4, epochs=3, initial_epoch=1, verbose=0).history
    model = make_model(mlp().init(x, rng=0))

    class Failing(elegy.callbacks.Callback):
        def on_train_begin(self):
            raise OSError

    for options in ({"x": x, "y": y[:, :0]}, {"x": x, "y": y, "callbacks": [Failing()]}):
        with pytest.raises((ValueError, TypeError, OSError)):
            model.fit(**options, batch_size=8, epochs=3, initial_epoch=1, verbose=0)
        assert model.steps == 0
    found = model.fit(x, y, batch_size=4, epochs=3, initial_epoch=1, verbose=0).history
    assert found == expected and model.steps == whole.steps == 12


def test_validation_data_of_another_shape_do_not_shape_the_module():
    x, y = data(16)
    model = make_model()
    with pytest.raises(Exception, match=r"the argument x is float32\[16,2\]"):
        model.fit(x, y, validation_data=(x[:, :2], y), sanity_steps=1, verbose=0)
    assert len(model.fit(x, y, validation_data=(x, y), sanity_steps=1, verbose=0).epoch) == 1


class OwnSteps(elegy.Model):
    """A training step that counts in no metric."""

    def train_step(self, x, y, sample_weight):
        (values, _), gradients = self.value_and_grad(self.loss_step)(x, y, sample_weight)
        self.optimizer.update(self.module, gradients)
        return values


def test_functional_evaluates_what_a_training_step_does_not_count():
    x, y = data(16)
    model = OwnSteps(mlp(), MSE(), elegy.metrics.MeanAbsoluteError())
    functional = model.functional()
    logs = jax.jit(functional.eval_step)(functional.init(x, y), x, y)
    expected = model.evaluate(x, y)
    assert logs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-6)


def test_functional_trains_a_model_that_cannot_be_evaluated():
    x, y = data(16)

    class TrainsOnly(OwnSteps):
        def test_step(self, x, y, sample_weight):
            raise NotImplementedError("it is not evaluated")

    functional = TrainsOnly(mlp(), MSE()).functional()
    state, logs = functional.train_step(functional.init(x, y), x, y)
    assert np.isfinite(logs["loss"])
    with pytest.raises(NotImplementedError, match="it is not evaluated"):
        functional.eval_step(state, x, y)
