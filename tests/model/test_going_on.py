"""What checkpoints are for besides interruptions: longer trainings, callbacks that save; and what fails."""

import os
import signal

import grain
import jax
import numpy as np
import optax
import pytest

import elegy
from elegy.callbacks import Callback, EarlyStopping, ModelCheckpoint
from elegy.errors import CheckpointError, CheckpointWarning

rng = np.random.default_rng(0)
X = rng.normal(size=(18, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def make(**options):
    layers = lambda: [elegy.nn.Linear(4), elegy.nn.Dropout(0.2), elegy.nn.Linear(1)]  # noqa: E731
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    return elegy.Model(elegy.nn.Sequential(layers), elegy.losses.MeanSquaredError(), optimizer=optimizer, **options)


def fit(model, directory=None, *callbacks, **options):
    if directory is not None:
        callbacks = (ModelCheckpoint(directory, every_steps=1), *callbacks)
    data = {"x": X, "y": Y, "batch_size": 4} if "x" not in options else {}
    return model.fit(**data, callbacks=callbacks, verbose=0, **options)


def outcome(model, history):
    arrays = jax.tree.map(np.asarray, [model.module.get_parameters(), model.optimizer.state])
    return [leaf.tolist() for leaf in jax.tree.leaves(arrays)], history.history, history.epoch, model.steps


class Stop(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_begin(self, batch):
        if self.model.steps == self.step:
            raise Stop


def batches():
    for start in range(0, 18, 4):
        yield X[start : start + 4], Y[start : start + 4]


class Halving(Callback):
    """Halves the learning rate after each epoch: the optimiser is not what it was before the end of the epoch."""

    def on_epoch_end(self, epoch, logs):
        self.model.optimizer.learning_rate = 0.5 * self.model.optimizer.learning_rate


@pytest.mark.filterwarnings("ignore::elegy.errors.ResumptionWarning")
@pytest.mark.parametrize(
    "data", [{"x": X, "y": Y, "batch_size": 4}, {"x": batches}], ids=["arrays", "batches of unknown number"]
)
def test_training_in_parts_of_some_steps_is_training_at_once(tmp_path, data):
    """The epoch that `max_steps` cuts ends, with its logs; with more steps it is gone on with."""
    options = data | {"epochs": None, "validation_data": (X[:4], Y[:4])}
    model = make()
    whole = outcome(model, fit(model, None, Halving(), max_steps=12, **options))
    for most in (3, 5, 7, 7, 12):
        model = make()
        callbacks = Halving(), ModelCheckpoint(tmp_path)
        found = fit(model, None, *callbacks, max_steps=most, resume=tmp_path, **options)
        assert model.steps == most and len(found.epoch) == -(-most // 5)
    assert outcome(model, found) == whole


def validating():
    """Batches that can be gone through once."""
    for number in range(100):
        yield X[number % 7 : number % 7 + 2], Y[number % 7 : number % 7 + 2]


def iterator_of_grain():
    pairs = [(X[number], Y[number]) for number in range(18)]
    return iter(grain.MapDataset.source(pairs).seed(1).shuffle().repeat(100).batch(2).to_iter_dataset())


class UnsavableState:
    """Batches that can be gone through once, of a state that a checkpoint cannot hold."""

    def __init__(self):
        self.rows = validating()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.rows)

    def get_state(self):
        return {"rows": self.rows}

    def set_state(self, state):
        raise AssertionError("there is none to set")


LOST = {
    validating: "the generator validating has no state",
    UnsavableState: r"(?s)UnsavableState.* has a state, which could not be saved: state\['rows'\] is a generator",
}


@pytest.mark.parametrize(
    ("make_data", "options"),
    [
        (validating, {}),
        (validating, {"validate_every": 2}),
        (UnsavableState, {}),
        (UnsavableState, {"sanity_steps": 2}),
        (iterator_of_grain, {"sanity_steps": 2}),
    ],
)
def test_data_to_validate_on_that_can_be_gone_through_once_go_on(tmp_path, make_data, options):
    def train(directory, *callbacks, **more):
        given = {"validation_data": make_data(), "validation_steps": 3, "epochs": 3} | options | more
        return fit(make(), directory, *callbacks, **given)

    whole = train(None)
    with pytest.raises(Stop):
        train(tmp_path, StopAt(7))
    if make_data in LOST:
        with pytest.warns(elegy.errors.ResumptionWarning, match=LOST[make_data]):
            resumed = train(tmp_path, resume=tmp_path)
    else:
        with pytest.raises(Stop):
            train(tmp_path, StopAt(12), resume=tmp_path)
        resumed = train(tmp_path, resume=tmp_path)
    assert resumed.history == whole.history


@pytest.mark.parametrize("stopped", [2, 6], ids=["within an epoch", "at its end"])
def test_data_to_train_on_whose_state_cannot_be_saved_go_on(tmp_path, stopped):
    def train(directory, *callbacks, **more):
        return fit(make(), directory, *callbacks, x=UnsavableState(), steps_per_epoch=3, epochs=3, **more)

    whole = train(None)
    with pytest.raises(Stop):
        train(tmp_path, StopAt(stopped))
    with pytest.warns(elegy.errors.ResumptionWarning, match=LOST[UnsavableState]):
        resumed = train(tmp_path, resume=tmp_path)
    assert resumed.history == whole.history


def test_a_validation_within_an_epoch_that_a_signal_interrupts_is_made_again(tmp_path):
    class Interrupting(Callback):
        def on_test_batch_begin(self, batch):
            if self.model.steps == 2:
                os.kill(os.getpid(), signal.SIGINT)

    options = {"validation_data": (X[:8], Y[:8]), "validate_every": 2, "validation_freq": 3, "epochs": 2}
    # The values of epoch 0 are those of its last validation, which is the one that is interrupted.
    options |= {"steps_per_epoch": 3}
    whole = fit(make(), **options)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here, as in a background job
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(make(), tmp_path, Interrupting(), **options)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert fit(make(), tmp_path, resume=tmp_path, **options).history == whole.history


class Saving(Callback):
    def __init__(self, directory, epoch=0):
        self.directory = directory
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs):
        if epoch == self.epoch:
            self.model.save(self.directory)


class Counting(Callback):
    def __init__(self):
        self.epochs = []

    def on_epoch_end(self, epoch, logs):
        logs[f"counted_{len(self.epochs)}"] = 1.0
        self.epochs.append(epoch)

    def get_state(self):
        return {"epochs": [*self.epochs]}

    def set_state(self, state):
        self.epochs = [*state["epochs"]]


def test_a_callback_that_saves_at_the_end_of_an_epoch_ends_it_once(tmp_path):
    """Those before it in the list have seen the end, and those after it see it when training is resumed."""

    def train(**options):
        model, given = make(), [Counting(), Saving(tmp_path), Counting(), Halving(), EarlyStopping("loss", patience=9)]
        history = model.fit(X, Y, 4, epochs=3, callbacks=given, validation_split=0.2, verbose=0, **options)
        return outcome(model, history), given[0].epochs, given[2].epochs, given[4].get_state()["wait"]

    whole = train()
    assert whole[1] == whole[2] == [0, 1, 2]
    assert train(resume=tmp_path) == whole


def test_a_model_that_was_loaded_is_saved_as_it_was(tmp_path):
    whole = fit(make(), epochs=3)
    with pytest.raises(Stop):
        fit(make(), tmp_path / "first", StopAt(7), epochs=3)
    other = make()
    other.load(tmp_path / "first", X, Y)
    other.save(tmp_path / "second")
    assert fit(make(), tmp_path / "second", resume=tmp_path / "second", epochs=3).history == whole.history


def test_nothing_is_begun_anew_where_all_checkpoints_are_damaged(tmp_path):
    fit(make(), tmp_path)
    for file in tmp_path.glob("*/arrays.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match="all checkpoints in .* are damaged"), pytest.warns(CheckpointWarning):
        fit(make(), resume=tmp_path)


def test_a_model_is_what_it_was_where_a_checkpoint_cannot_be_taken(tmp_path):
    class Failing(Counting):
        def set_state(self, state):
            raise ZeroDivisionError

    def untouched(model):
        assert not model.module.initialized and model.steps == 0
        return outcome(model, fit(model))

    expected = untouched(make())
    fit(make(), tmp_path, Counting(), Counting())
    model, first = make(), Counting()
    with pytest.raises(ZeroDivisionError) as raised:
        fit(model, None, first, type("Counting", (Failing,), {})(), resume=tmp_path)
    assert raised.value.__notes__[0].startswith("Raised by set_state of the callback Counting 2")
    assert first.epochs == []
    assert untouched(model) == expected

    model = make()
    with pytest.raises(CheckpointError, match="layers"):
        model.load(tmp_path, X[:, :2], Y)
    with pytest.raises(FileNotFoundError):
        model.load(tmp_path / "absent", X, Y)
    assert untouched(model) == expected


def test_a_state_that_cannot_be_saved_is_named_by_its_callback(tmp_path):
    class Holding(Callback):
        def get_state(self):
            return {"best": {"of": object()}}

    with pytest.raises(
        CheckpointError, match=r"extra\['callbacks'\]\['Holding 1'\]\['state'\]\['best'\]\['of'\]: a builtins.object"
    ):
        fit(make(), tmp_path, Holding())


def test_a_checkpoint_with_a_score_is_not_replaced_without_a_word(tmp_path):
    model = make()
    fit(model, None, ModelCheckpoint(tmp_path, monitor="loss"))
    with pytest.warns(CheckpointWarning, match="the checkpoint of step 5 had a score"):
        model.save(tmp_path)


def test_arrays_that_were_thawed_while_it_trained_are_so_again(tmp_path):
    class Thawing(Callback):
        def on_epoch_begin(self, epoch):
            if epoch == 1:
                self.model.module.trainable = True

    def train(*callbacks, **options):
        module = elegy.select(elegy.nn.Linear(1).init(X, rng=0), "b").freeze()
        model = elegy.Model(module, elegy.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
        return outcome(model, fit(model, tmp_path, Thawing(), *callbacks, epochs=3, **options))

    whole = train()
    for path in sorted(tmp_path.iterdir()):
        os.rename(path, tmp_path.with_name("whole-" + path.name))
    with pytest.raises(Stop):
        train(StopAt(7))
    assert train(resume=tmp_path) == whole


@pytest.mark.filterwarnings("ignore::elegy.errors.ResumptionWarning")
@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 3}, {"overfit_batches": 3}, {"accumulate": 2}], ids=str)
def test_what_is_left_of_an_epoch_may_be_its_validation_alone(tmp_path, options):
    """No batch is left then to tell of which shapes they are."""

    class Failing(Callback):
        def on_test_begin(self):
            if self.model.steps == steps:
                raise Stop

    steps = options.get("steps_per_epoch") or options.get("overfit_batches") or (3 if options else 5)
    options = options | {"x": batches, "epochs": 2, "validation_data": (X, Y)}
    whole = fit(make(), **options)
    with pytest.raises(Stop):
        fit(make(), tmp_path, Failing(), **options)
    assert fit(make(), tmp_path, resume=tmp_path, **options).history == whole.history


def test_parts_of_accumulated_batches_have_the_size_of_then(tmp_path):
    """What is left of the epoch is a short batch, which would be the measure of all others."""

    def train(*callbacks, **options):
        layers = lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(), elegy.nn.Linear(1)]  # noqa: E731
        model = elegy.Model(elegy.nn.Sequential(layers), elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.01))
        data = [*batches()]  # of four samples, and the last one of two
        return outcome(model, fit(model, tmp_path, *callbacks, x=data, accumulate=2, epochs=2, **options))

    with pytest.raises(Stop):
        train(StopAt(2))
    resumed = train(resume=tmp_path)
    for path in tmp_path.iterdir():
        os.rename(path, tmp_path.with_name("other-" + path.name))
    assert resumed == train()


def test_a_trial_run_reads_no_checkpoint(tmp_path):
    fit(make(), tmp_path)
    model = make()
    assert fit(model, None, resume=tmp_path, epochs=9, fast_dev_run=True).epoch == [0] and model.steps == 1
