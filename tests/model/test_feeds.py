"""What `fit`, `evaluate` and `predict` read: arrays, also on the device, and whatever gives batches; and how much."""

import contextlib
import gc
import itertools
import typing as tp

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import ResumptionWarning
from elegy.model import Callback
from elegy.model.batches import Arrays, Stream
from elegy.model.data import as_data
from tests.helpers import assert_close, assert_same
from tests.model.test_model import data, jaxtyping_off, make_model, mlp, parameters_of


def started(x, **kwargs):
    return make_model(mlp().init(x, rng=1), **kwargs)


def in_batches(size=4, samples=20):
    x, y = data(samples)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, samples, size)]


class Loader:
    """Gives batches as a loader of PyTorch does."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter([list(batch) for batch in self.batches])


class Own(elegy.data.Source):
    """A source that has no `__iter__`."""

    def __init__(self, batches):
        self.made = batches
        self.steps = len(batches)

    def batches(self, epoch=0, start=0):
        for batch in self.made[start:]:
            yield elegy.data.Batch(*batch, *[None] * (3 - len(batch)))


class Samples:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def in_grain(batches):
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    return grain.MapDataset.source(Samples(x, y)).batch(len(batches[0][0]))


def in_loader(batches):
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    return elegy.data.DataLoader(Samples(x, y), batch_size=len(batches[0][0]))


FORMS: dict[str, tp.Any] = {
    "list": lambda batches: batches,
    "list of elegy.data.Batch": lambda batches: list(Own(batches).batches()),
    "prefetch": lambda batches: lambda: elegy.data.prefetch(Own(batches).batches()),
    "list of lists": lambda batches: [list(batch) for batch in batches],
    "function": lambda batches: lambda: iter(batches),
    "loader": Loader,
    "source": Own,
    "elegy.data.DataLoader": in_loader,
    "grain": in_grain,
    "iterator": lambda batches: itertools.cycle(batches),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("samples", [20, 18], ids=["even", "ragged"])
def test_batches_train_as_the_arrays_do(form, samples):
    x, y = data(samples)
    batches = in_batches(samples=samples)
    whole, model = started(x), started(x)
    options: tp.Any = {"epochs": 3, "verbose": 0}
    wanted = whole.fit(x, y, batch_size=4, shuffle=False, validation_data=(x, y), validation_batch_size=4, **options)
    steps = 5 if form == "iterator" else None
    history = model.fit(
        FORMS[form](batches),
        validation_data=FORMS[form](batches),
        steps_per_epoch=steps,
        validation_steps=steps,
        **options,
    )
    for name, values in wanted.history.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(parameters_of(model.module), parameters_of(whole.module), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    found = model.evaluate(FORMS[form](batches), steps=steps)
    np.testing.assert_allclose(found["loss"], model.evaluate(x, y)["loss"], rtol=1e-5)
    np.testing.assert_allclose(model.predict(FORMS[form](batches), steps=steps), model.predict(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_batches_that_are_dicts_of_inputs_and_targets(call):
    x, y = data(8)
    options = {"verbose": 0} if call == "fit" else {}
    with pytest.raises(TypeError, match="unexpected keyword argument 'label'") as raised:
        getattr(make_model(elegy.nn.Linear(1)), call)(lambda: iter([{"label": y, "x": x}]), **options)
    note = raised.value.__notes__[-1]
    assert note.startswith("Each batch is a dict with the keys 'label', 'x', which is x as a whole")
    assert note.endswith("as_source(data, transform=lambda batch: (batch['x'], batch['label'])).")


def test_a_generator_goes_on_from_epoch_to_epoch():
    batches = in_batches()
    drawn = []

    def endless():
        for number in itertools.count():
            drawn.append(number)
            yield batches[number % 5]

    x, _ = data()
    data_of_training, data_of_validation = endless(), endless()
    model = started(x)
    model.fit(data_of_training, steps_per_epoch=2, epochs=2, verbose=0)
    assert drawn == [0, 1, 2, 3]
    drawn.clear()
    model.fit(data_of_training, steps_per_epoch=3, max_steps=4, verbose=0)
    assert drawn == [4, 5, 6, 7]  # none is drawn that is not trained on
    drawn.clear()
    model.fit(batches, validation_data=data_of_validation, validation_steps=2, epochs=3, verbose=0)
    assert drawn == [0, 1, 2, 3, 4, 5]
    assert model.steps == 4 + 4 + 15


@pytest.mark.parametrize("together", [1, 2, 3, 4])
def test_no_step_is_lost_to_a_validation(together):
    model = started(data()[0])
    tested = []

    class Watch(Callback):
        def on_test_begin(self):
            tested.append(self.model.steps)

    drawn = []

    def batches():
        for number, batch in enumerate(in_batches(4, 48)):
            drawn.append((number, model.steps))
            yield batch

    model.fit(
        batches,
        steps_per_execution=together,
        validate_every=5,
        max_steps=11,
        validation_data=data(),
        callbacks=[Watch()],
        verbose=0,
    )
    assert model.steps == 11
    assert tested == [5, 10, 11]
    # The first batch comes to look at its shape. None comes before those of an earlier group are trained on.
    assert len(drawn) == 11
    assert all(number - made < together for number, made in drawn)


def test_a_generator_that_ends_leaves_the_model_usable():
    x, y = data()
    model = started(x)
    with pytest.raises(ValueError, match="the generator .* is at its end: epoch 1 needs 3 batches and got 2; 5 were"):
        model.fit((batch for batch in in_batches()), steps_per_epoch=3, epochs=2, verbose=0)
    assert model.steps == 5
    reference = started(x)
    reference.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    assert_same(model.module.get_parameters(), reference.module.get_parameters())
    model.fit(in_batches(), verbose=0)
    with pytest.raises(ValueError, match="give steps_per_epoch, or a function"):
        model.fit(iter(in_batches()), epochs=2, verbose=0)


@pytest.mark.parametrize("together", [1, 2])
def test_data_that_fail_leave_the_steps_before(together):
    x, y = data()

    def failing():
        for number, batch in enumerate(in_batches()):
            if number == 3:
                raise OSError("the disk is gone")
            yield batch

    model, reference = started(x), started(x)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        model.fit(failing, epochs=2, steps_per_execution=together, verbose=0)
    assert "batch 3 of epoch 0" in raised.value.__notes__[0]
    made = 3 // together * together
    assert model.steps == made
    reference.fit(x[: 4 * made], y[: 4 * made], batch_size=4, shuffle=False, verbose=0)
    assert_same(model.module.get_parameters(), reference.module.get_parameters())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(model.optimizer.get_parameters()))
    model.fit(x, y, verbose=0)


def test_a_callback_that_fails_leaves_the_steps_before():
    x, y = data()

    class Failing(Callback):
        sees_module = False

        def on_train_batch_end(self, batch, logs):
            if batch == 2:
                raise ArithmeticError("no")

    model, reference = started(x), started(x)
    with pytest.raises(ArithmeticError):
        model.fit(x, y, batch_size=4, shuffle=False, callbacks=[Failing()], verbose=0)
    reference.fit(x[:12], y[:12], batch_size=4, shuffle=False, verbose=0)
    assert model.steps == 3
    assert_same(model.module.get_parameters(), reference.module.get_parameters())
    model.fit(x, y, verbose=0)


def test_batches_of_varying_size():
    x, y = data(21)
    sizes = [4, 4, 7, 1, 5]
    ends = np.cumsum(sizes)
    batches = [(x[end - size : end], y[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    model = make_model(mlp(), optimizer=optax.sgd(0.0))
    for together in (1, 3):
        history = model.fit(batches, steps_per_execution=together, verbose=0).history
        wanted = np.mean((np.asarray(model.module(x)) - y) ** 2)
        np.testing.assert_allclose(history["loss"], wanted, rtol=1e-5)
    history = model.fit(batches, accumulate=2, verbose=0).history
    np.testing.assert_allclose(history["loss"], wanted, rtol=1e-5)
    assert model.steps == 5 + 5 + 3
    assert model.predict(batches).shape == (21, 1)
    np.testing.assert_allclose(model.evaluate(batches)["loss"], wanted, rtol=1e-5)


def test_batches_with_weights_and_class_weights():
    x, y = data(18)
    labels, weight = (y[:, 0] > 0).astype(np.int32), np.linspace(0, 2, 18, dtype=np.float32)
    batches = [(x[i : i + 4], labels[i : i + 4], weight[i : i + 4]) for i in range(0, 18, 4)]

    def make():
        return make_model(
            elegy.nn.Sequential(lambda: [elegy.nn.Linear(2)]).init(x, rng=1),
            loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=elegy.metrics.SparseCategoricalAccuracy(),
        )

    options: tp.Any = {"class_weight": {1: 3.0}, "epochs": 2, "verbose": 0}
    wanted = make().fit(x, labels, sample_weight=weight, batch_size=4, shuffle=False, **options).history
    found = make().fit(batches, **options).history
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.ones([20, 1])}, "x gives batches, and y or sample_weight was given besides"),
        ({"sample_weight": np.ones(20)}, "x gives batches, and y or sample_weight was given besides"),
        ({"shuffle": True}, "not shuffled here"),
        ({"validation_split": 0.5}, "validation_split is for arrays"),
        ({"batch_size": 4}, "batch_size=4, but the list gives batches already"),
    ],
)
def test_what_does_not_go_with_batches(arguments, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.fit(in_batches(), verbose=0, **arguments)
    assert model.steps == 0 and not model.module.initialized


# ---------------------------------------------------------------------------------------------------------------------
# Arrays on the device
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 2}, {"accumulate": 2}, {"sample_weight": 1}])
def test_arrays_on_the_device_stay_there(options, monkeypatch):
    x, y = data(22)
    arrays: dict[str, tp.Any] = {"x": x, "y": y}
    if "sample_weight" in options:
        options, arrays["sample_weight"] = {}, np.linspace(0, 1, 22, dtype=np.float32)
    options = {**options, "batch_size": 4, "epochs": 2, "verbose": 0}
    wanted, model = started(x), started(x)
    history = wanted.fit(**arrays, validation_data=(x, y), **options).history

    found, batches = [], Arrays.batches

    def watched(*args, **kwargs):
        for count, batch in batches(*args, **kwargs):
            found.append(batch)
            yield count, batch

    monkeypatch.setattr(Arrays, "batches", watched)
    on_device = jax.tree.map(jnp.asarray, arrays)
    x, y = on_device["x"], on_device["y"]
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        same = model.fit(**on_device, validation_data=(x, y), **options).history
    assert same == history
    assert_same(model.module.get_parameters(), wanted.module.get_parameters())
    assert all(batch.source.x is x and batch.source.y is y for batch in found)
    assert all(batch.data.dtype == np.int32 for batch in found)
    np.testing.assert_array_equal(model.predict(x, batch_size=4), wanted.predict(arrays["x"], batch_size=4))


def test_arrays_of_both_kinds_go_to_the_host():
    x, y = data(10)
    history = started(x).fit(jnp.asarray(x), y, batch_size=4, verbose=0).history
    assert history == started(x).fit(x, y, batch_size=4, verbose=0).history


def test_batches_on_the_device():
    batches = in_batches()
    on_device = jax.tree.map(jnp.asarray, batches)
    x, _ = data()
    for together in (1, 2):
        wanted = started(x).fit(batches, steps_per_execution=together, verbose=0).history
        assert started(x).fit(on_device, steps_per_execution=together, verbose=0).history == wanted


# ---------------------------------------------------------------------------------------------------------------------
# How much
# ---------------------------------------------------------------------------------------------------------------------


class Seen(Callback):
    """What happened, in order: batches of training, and passes over validation data with how many batches they had."""

    def __init__(self):
        self.events: list[tp.Any] = []

    def on_train_batch_end(self, batch, logs):
        self.events.append(batch)

    def on_test_begin(self):
        self.tested = 0

    def on_test_batch_end(self, batch, logs):
        self.tested += 1

    def on_test_end(self, logs):
        self.events.append(f"test {self.tested}")


@pytest.mark.parametrize("form", ["arrays", "batches"])
@pytest.mark.parametrize(
    ("options", "events", "epochs"),
    [
        ({"max_steps": 7}, [0, 1, 2, 3, 4, "test 3", 0, 1, "test 3"], 2),
        ({"max_steps": 5}, [0, 1, 2, 3, 4, "test 3"], 1),
        ({"max_steps": 7, "epochs": 1}, [0, 1, 2, 3, 4, "test 3"], 1),
        ({"max_steps": 2, "epochs": 9}, [0, 1, "test 3"], 1),
        ({"validate_every": 2}, [0, 1, "test 3", 2, 3, "test 3", 4, "test 3"], 1),
        ({"validate_every": 5}, [0, 1, 2, 3, 4, "test 3"], 1),
        ({"validate_every": 3, "validation_freq": 2}, [0, 1, 2, "test 3", 3, 4], 1),
        (
            {"validate_every": 3, "validation_freq": 2, "epochs": 2},
            [0, 1, 2, "test 3", 3, 4, 0, "test 3", 1, 2, 3, "test 3", 4, "test 3"],
            2,
        ),
        ({"validate_every": 9}, [0, 1, 2, 3, 4, "test 3"], 1),
        ({"steps_per_epoch": 2, "epochs": 2}, [0, 1, "test 3", 0, 1, "test 3"], 2),
        ({"validation_steps": 1}, [0, 1, 2, 3, 4, "test 1"], 1),
        ({"sanity_steps": 2}, [0, 1, 2, 3, 4, "test 3"], 1),
        ({"overfit_batches": 2, "epochs": 2}, [0, 1, "test 3", 0, 1, "test 3"], 2),
        ({"overfit_batches": 4, "steps_per_epoch": 2}, [0, 1, "test 3"], 1),
        ({"fast_dev_run": True, "epochs": 5, "max_steps": 9}, [0, "test 1"], 1),
        ({"fast_dev_run": 2, "initial_epoch": 3, "epochs": 5, "validation_freq": [5]}, [0, 1, "test 2"], 1),
        ({"fast_dev_run": 9}, [0, 1, 2, 3, 4, "test 3"], 1),
    ],
)
def test_what_happens_when(options, events, epochs, form):
    x, y = data(20)
    arrays: dict[str, tp.Any] = {"x": x, "y": y, "batch_size": 4, "validation_data": (x[:12], y[:12])}
    if form == "batches":
        arrays = {"x": in_batches(), "validation_data": in_batches()[:3]}
    seen = Seen()
    model = started(x)
    history = model.fit(**arrays, **options, callbacks=[seen], verbose=0).history
    assert seen.events == events
    assert len(history["loss"]) == len(history["val_loss"]) == epochs
    assert all(np.isfinite(history["val_loss"]))


def test_the_values_of_an_epoch_are_those_of_its_last_validation():
    x, y = data(20)
    found = []

    class Keep(Callback):
        def on_test_end(self, logs):
            found.append(logs["loss"])

    model = started(x)
    options: tp.Any = {"batch_size": 4, "validate_every": 3, "validation_freq": 9, "epochs": 2, "verbose": 0}
    history = model.fit(x, y, validation_data=(x, y), callbacks=[Keep()], **options).history
    assert history["val_loss"] == [found[0], found[2]]


def test_batches_of_validation_data_have_a_size_of_their_own():
    x, y = data(20)
    seen = Seen()
    model = started(x)
    model.fit(x, y, batch_size=4, validation_data=(x, y), validation_batch_size=10, callbacks=[seen], verbose=0)
    assert seen.events[-1] == "test 2"
    assert model.traces["test"] == 1


def test_a_mistake_in_the_validation_is_found_before_training():
    x, y = data(20)

    def broken(y_true, y_pred):
        if not elegy.training():
            raise ArithmeticError("in the validation")
        return jnp.abs(y_true - y_pred)

    model = started(x, metrics=broken)
    with pytest.raises(ArithmeticError):
        model.fit(x, y, batch_size=4, validation_data=(x, y), sanity_steps=1, verbose=0)
    assert model.steps == 0
    with pytest.raises(ArithmeticError):
        model.fit(x, y, batch_size=4, validation_data=(x, y), verbose=0)
    assert model.steps == 5


def test_trying_the_validation_changes_nothing():
    x, y = data(20)
    plain, tried = (make_model(mlp(), metrics=elegy.metrics.MeanSquaredError()) for _ in range(2))
    options: tp.Any = {"batch_size": 4, "validation_data": (x, y), "epochs": 2, "verbose": 0}
    assert tried.fit(x, y, **options, sanity_steps=2).history == plain.fit(x, y, **options).history

    # Of an iterator, which writes to the same memory again, the batches of the trial are given again.
    def endless(drawn):
        held = np.empty_like(x[:4]), np.empty_like(y[:4])
        for number in itertools.count():
            drawn.append(number)
            held[0][:], held[1][:] = in_batches()[number % 5]
            yield held

    found, drawn = [], []
    for model, steps in ((plain, 0), (tried, 2), (tried, 9)):
        model.reset()
        drawn.append([])
        options = {"batch_size": 4, "validation_data": endless(drawn[-1]), "validation_steps": 3, "epochs": 2}
        found.append(model.fit(x, y, **options, sanity_steps=steps, verbose=0).history)
    assert found[0] == found[1] == found[2]
    assert drawn == [[0, 1, 2, 3, 4, 5]] * 3


def test_epochs_of_before_that_have_nobody_knows_how_many_steps():
    x, _ = data(20)
    model, give = started(x), lambda: iter(in_batches())
    with pytest.raises(ValueError, match=r"(?s)initial_epoch=2 of a model that has made no steps.*resume=directory"):
        model.fit(give, epochs=3, initial_epoch=2, verbose=0)
    assert model.steps == 0
    model.fit(give, epochs=2, verbose=0)
    assert model.fit(give, epochs=9, initial_epoch=2, max_steps=12, verbose=0).epoch == [2]
    assert model.steps == 12
    model.reset()
    with pytest.warns(ResumptionWarning, match="its first 10 batches are made and dropped"):
        model.fit(give, epochs=3, initial_epoch=2, steps_per_epoch=5, verbose=0)
    assert model.steps == 15


@pytest.mark.parametrize("form", ["arrays", "batches that change"])
def test_a_few_batches_are_learnt_by_heart(form):
    x, y = data(20)
    drawn = []

    class Changing(elegy.data.Source):
        def batches(self, epoch=0, start=0):
            for step in range(start, 5):
                drawn.append((epoch, step))
                yield elegy.data.Batch(*in_batches()[(step + epoch) % 5], None)

    model, reference = started(x), started(x)
    options: tp.Any = {"epochs": 3, "verbose": 0, "overfit_batches": 2}
    if form == "arrays":
        history = model.fit(x, y, batch_size=4, shuffle=True, **options).history
    else:
        history = model.fit(Changing(), **options).history
        assert drawn == [(0, 0), (0, 1)]
    wanted = reference.fit(x[:8], y[:8], batch_size=4, shuffle=False, epochs=3, verbose=0).history
    assert history == wanted
    assert_same(model.module.get_parameters(), reference.module.get_parameters())


def test_a_trial_run_writes_nothing(tmp_path):
    x, y = data(20)
    logger = elegy.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    stopping = elegy.callbacks.EarlyStopping(monitor="val_loss")
    options: tp.Any = {"batch_size": 4, "epochs": 4, "validation_data": (x, y), "verbose": 0}
    model = started(x)
    model.fit(x, y, fast_dev_run=True, validation_freq=3, callbacks=[logger, stopping], **options)
    assert list(tmp_path.iterdir()) == [] and model.steps == 1
    model.fit(x, y, callbacks=[logger], **options)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


INTEGERS = ("max_steps", "validate_every", "overfit_batches", "steps_per_epoch", "validation_steps")
INTEGERS += ("validation_batch_size", "accumulate", "steps_per_execution", "batch_size")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: value}, f"{name} must be a positive integer") for name in INTEGERS for value in (0, -1, 1.5, True)),
        ({"accumulate": None}, "accumulate must be a positive integer, got None"),
        ({"steps_per_execution": None}, "steps_per_execution must be a positive integer, got None"),
        ({"sanity_steps": -1}, "sanity_steps must be an integer that is not negative"),
        ({"fast_dev_run": -1}, "fast_dev_run must be a positive integer"),
        ({"fast_dev_run": 1.5}, "fast_dev_run must be a positive integer"),
        ({"validate_every": 2, "validation_data": None}, "validate_every was given, and there are no validation data"),
        ({"validation_freq": 0}, "validation_freq must be a positive integer"),
    ],
)
def test_values_that_are_refused_before_anything_changes(options, message):
    x, y = data(8)
    model = make_model()
    with jaxtyping_off(), pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0, **{"validation_data": (x, y), **options})
    assert model.steps == 0 and model.history is None and not model.module.initialized


def test_how_much_is_evaluated_and_predicted():
    x, y = data(20)
    model = started(x)
    for given in (x, y), (in_batches(), None):
        size = None if given[1] is None else 4
        found = model.evaluate(*given, batch_size=size, steps=2)
        np.testing.assert_allclose(found["loss"], model.evaluate(x[:8], y[:8])["loss"], rtol=1e-5)
        assert model.predict(given[0], batch_size=size, steps=2).shape == (8, 1)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("iterator", "source")])
def test_more_steps_than_there_are_batches_take_none_twice(form):
    x, y = data(20)
    model, batches = started(x), in_batches()
    expected = model.evaluate(x, y)["loss"]
    np.testing.assert_allclose(model.evaluate(FORMS[form](batches), steps=7)["loss"], expected, rtol=1e-5)
    assert model.predict(FORMS[form](batches), steps=7).shape == (20, 1)
    validation = {"validation_data": FORMS[form](batches), "validation_steps": 7}
    history = model.fit(x, y, epochs=2, verbose=0, **validation).history
    np.testing.assert_allclose(history["val_loss"][-1], model.evaluate(x, y)["loss"], rtol=1e-5)


def test_nothing_stays_behind():
    x, y = data(20)
    on_device = jnp.asarray(x), jnp.asarray(y)
    model = started(x, metrics=elegy.metrics.MeanSquaredError())

    def run():
        model.fit(x, y, batch_size=8, validation_data=(x, y), steps_per_execution=2, verbose=0)
        model.fit(*on_device, batch_size=8, callbacks=[elegy.callbacks.EMA(0.9)], verbose=0)
        model.fit(in_batches(), accumulate=2, verbose=0)
        model.evaluate(x, y)
        model.predict(x)

    counts = []
    for number in range(12):
        run()
        if number in (3, 11):
            gc.collect()
            counts.append((len(jax.live_arrays()), len(model._programs)))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("form", ["list", "elegy.data.DataLoader", "function", "loader"])
def test_a_short_batch_is_filled_up(form, together):
    batches = in_batches(size=8)  # 8, 8 and 4
    whole, padded = started(data()[0]), started(data()[0])
    expected = whole.fit(itertools.cycle(batches), steps_per_epoch=3, epochs=2, verbose=0)
    history = padded.fit(FORMS[form](batches), epochs=2, verbose=0, steps_per_execution=together)
    assert (whole.traces["train"], padded.traces["train"]) == (2, 1)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-6)
    assert_close(parameters_of(padded.module), parameters_of(whole.module))
    found, evaluated = padded.predict(FORMS[form](batches)), padded.evaluate(FORMS[form](batches))
    assert padded.traces["test"] == padded.traces["predict"] == 1
    np.testing.assert_allclose(found, padded.predict(data()[0]), rtol=1e-6)
    np.testing.assert_allclose(evaluated["loss"], padded.evaluate(*data())["loss"], rtol=1e-6)


@pytest.mark.parametrize("form", ["elegy.data.DataLoader", "list", "function"])
def test_training_that_goes_on_with_the_short_batch_fills_it_up_likewise(form, tmp_path):
    make, batches = FORMS[form], in_batches(size=8)
    whole = started(data()[0])
    whole.fit(make(batches), epochs=2, verbose=0)
    saver = elegy.callbacks.ModelCheckpoint(tmp_path, every_steps=5)

    class Failing(Callback):
        def on_train_batch_begin(self, batch):
            if self.model.steps == 5:  # after two of the three batches of the second epoch
                raise OSError

    with pytest.raises(OSError):
        started(data()[0]).fit(make(batches), epochs=2, callbacks=[saver, Failing()], verbose=0)
    assert elegy.Checkpoints(tmp_path).latest() == 5
    resumed = started(data()[0])
    with contextlib.nullcontext() if form != "function" else pytest.warns(elegy.errors.ResumptionWarning):
        resumed.fit(make(batches), epochs=2, callbacks=[saver], resume=tmp_path, verbose=0)
    assert_same(parameters_of(resumed.module), parameters_of(whole.module))
    assert resumed.traces["train"] == 1


def test_large_batches_lie_in_memory_that_is_aligned():
    x = np.arange(3 * 2**16, dtype=np.float32).reshape(3, 2**16)
    feed = Arrays(as_data(x, np.arange(3)), 2)
    for _, batch in feed.batches(np.array([2, 0, 1])):
        assert batch.data.x.ctypes.data % 64 == 0
        np.testing.assert_array_equal(batch.data.x, x[batch.data.y])


@pytest.mark.parametrize("size", [8, 2**14], ids=["small", "large"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"steps_per_execution": 3}, {"max_steps": 5}], ids=str)
def test_a_source_may_write_all_its_batches_to_the_same_memory(options, size):
    """A step may not have run when the next batch is made, and JAX may take the memory of an array for its own."""
    values = [np.random.default_rng(number).normal(size=(4, size)).astype(np.float32) for number in range(6)]
    memory = np.empty(4 * size * 4 + 64, np.uint8)
    buffer = np.ndarray((4, size), np.float32, memory, -memory.ctypes.data % 64)

    def refilled():
        for value in values:
            buffer[...] = value
            yield buffer, buffer[:, :1]
        buffer[...] = 1e9

    batches = [(value, value[:, :1]) for value in values]
    expected, found = ([], [])
    for data_, losses in ((batches, expected), (refilled, found)):
        model = started(values[0])
        losses += model.fit(data_, epochs=2, verbose=0, **options).history["loss"]
        losses += [model.evaluate(data_, verbose=0)["loss"], model.predict(data_, verbose=0)]
    assert_same(found, expected)


def test_what_is_fed_is_no_memory_of_the_source():
    buffer = np.zeros((4, 2), np.float32)
    seen = []
    for _, batch in Stream(elegy.data.as_source([buffer])).batches():
        buffer[...] = 1
        seen.append(batch.data.x.copy())
    np.testing.assert_array_equal(seen, np.zeros((1, 4, 2)))


def test_a_batch_of_too_many_parts_is_told_as_such():
    x = np.ones([4, 3], np.float32)
    model = elegy.Model(elegy.nn.Linear(1), elegy.losses.MeanSquaredError())
    with pytest.raises(ValueError, match="it is a tuple of 4: a batch is x"):
        model.fit([(x, x, x, x)], verbose=0)
