"""Training that was interrupted goes on as if it had not been."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import typing as tp
import weakref

import jax
import numpy as np
import optax
import pytest

import elegy
from elegy.callbacks import EMA, Callback, EarlyStopping, LearningRateScheduler, ModelCheckpoint
from tests.helpers import assert_same

rng = np.random.default_rng(0)
X = rng.normal(size=(44, 3)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int32)


def make(**options):
    layers = lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(), elegy.nn.Dropout(0.2), elegy.nn.Linear(2)]  # noqa: E731
    return elegy.Model(
        elegy.nn.Sequential(layers),
        loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=elegy.metrics.SparseCategoricalAccuracy(),
        optimizer=optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
        **options,
    )


class Stop(Exception):
    pass


class Interrupt(Callback):
    """Counts steps, and raises after so many."""

    sees_module = False

    def __init__(self, at=None, how=None):
        self.at = at
        self.how = how
        self.steps = 0

    def on_train_batch_end(self, batch, logs):
        self.steps += 1
        if self.at is not None and self.steps >= self.at:
            self.at = None
            if self.how is None:
                raise Stop
            os.kill(os.getpid(), self.how)

    def get_state(self):
        return {"steps": self.steps}

    def set_state(self, state):
        self.steps = state["steps"]


def callbacks(directory=None, at=None, how=None, **options):
    found: list[Callback] = [EMA(0.9), EarlyStopping(monitor="loss", patience=50), Interrupt(at, how)]
    found.append(LearningRateScheduler(lambda epoch, rate: 0.9 * rate))
    if directory is not None:
        found.insert(1, ModelCheckpoint(directory, **({"every_steps": 1} | options)))
    return found


def outcome(model, history, given):
    arrays = jax.tree.map(np.asarray, [model.module.get_parameters(), model.optimizer.state, given[0].parameters])
    return (
        arrays,
        history.history,
        history.epoch,
        model.steps,
        [part.steps for part in given if type(part) is Interrupt],
    )


def batches():
    for start in range(0, 36, 4):
        yield X[start : start + 4], Y[start : start + 4]


class Random(elegy.data.Dataset):
    def __len__(self):
        return 36

    def __getitem__(self, index):
        return X[index], Y[index]


def grain_dataset():
    import grain

    return grain.MapDataset.source([(X[i], Y[i]) for i in range(36)]).seed(1).shuffle().batch(4).to_iter_dataset()


DATA = {
    "arrays": lambda: {"x": X[:36], "y": Y[:36], "batch_size": 5},
    "arrays on the device": lambda: {"x": jax.numpy.asarray(X[:36]), "y": jax.numpy.asarray(Y[:36]), "batch_size": 4},
    "a list of batches": lambda: {"x": list(batches())},
    "a loader": lambda: {"x": elegy.data.DataLoader(Random(), 4, shuffle=True)},
    "a dataset of Grain": lambda: {"x": grain_dataset()},
}
WAYS = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "several steps in one": {"steps_per_execution": 3},
    "validated within epochs": {"validate_every": 4, "max_steps": 25, "epochs": None},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", DATA)
def test_what_was_interrupted_after_any_step_goes_on_as_if_it_had_not_been(tmp_path, data, way):
    if (data, way) not in [(name, "plain") for name in DATA] + [("arrays", name) for name in WAYS]:
        pytest.skip("the ways are tried on arrays, and the data in the plain way")
    options = {"epochs": 3, "validation_data": (X[36:], Y[36:]), "verbose": 0} | WAYS[way]

    def train(directory=None, at=None, resume=None):
        model, given = make(), callbacks(directory, at, every_steps=options.get("steps_per_execution", 1))
        return outcome(model, model.fit(**DATA[data](), **options, callbacks=given, resume=resume), given)

    whole = train()
    for at in (1, 4, 7) if (data, way) == ("arrays", "plain") else (7,):
        directory = tmp_path / str(at)
        with pytest.raises(Stop):
            train(directory, at)
        found = train(directory, resume=directory)
        jax.tree.map(np.testing.assert_array_equal, found[0], whole[0])
        # Checkpoints part the steps that go together, so that a callback is called more often.
        end = 4 if "steps_per_execution" in options else 5
        assert found[1:end] == whole[1:end]


def run_killed(directory, seed, compiled):
    """Runs `killed.py`. What one of the processes has compiled serves for the others."""
    program = str(pathlib.Path(__file__).with_name("killed.py"))
    done = subprocess.run(
        [sys.executable, program, str(directory / "checkpoints"), str(seed)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The output of a process that is not killed, and the directory of what it has compiled."""
    directory = tmp_path_factory.mktemp("whole")
    code, output, error = run_killed(directory, 0, directory / "compiled")
    assert code == 0, error
    return output, directory / "compiled"


@pytest.mark.slow
@pytest.mark.parametrize("chain", range(2))
def test_processes_that_are_killed_at_random_moments(tmp_path, whole, chain):
    """Twenty in all: each goes on from what the one before it has left."""
    output_of_whole, compiled = whole
    for seed in range(1, 11):
        code, output, error = run_killed(tmp_path, 10 * chain + seed, compiled)
        assert code == -signal.SIGKILL or (code == 0 and output == output_of_whole), error
    code, output, error = run_killed(tmp_path, 0, compiled)
    assert code == 0, error
    assert json.loads(output) == json.loads(output_of_whole)


@pytest.mark.parametrize(("how", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_lets_the_step_end_and_a_checkpoint_be_written(tmp_path, how, raised):
    """Nothing but the signal makes one be written."""
    options = {"x": X[:36], "y": Y[:36], "batch_size": 4, "epochs": 3, "verbose": 0}
    model, given = make(), callbacks()
    whole = outcome(model, model.fit(**options, callbacks=given), given)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        model, given = make(), callbacks(tmp_path, 5, how, every_steps=None, every_epochs=100)
        with pytest.raises(raised) as found:
            model.fit(**options, callbacks=given)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, handlers[0])
        signal.signal(signal.SIGTERM, handlers[1])
    if how == signal.SIGTERM:
        assert isinstance(found.value, SystemExit) and found.value.code == 128 + signal.SIGTERM
    assert elegy.Checkpoints(tmp_path).steps == [5]
    model, given = make(), callbacks(tmp_path, every_steps=None, every_epochs=100)
    resumed = outcome(model, model.fit(**options, callbacks=given, resume=tmp_path), given)
    jax.tree.map(np.testing.assert_array_equal, resumed[0], whole[0])
    assert resumed[1:] == whole[1:]


def fit(model, directory=None, **options):
    given = [] if directory is None else [ModelCheckpoint(directory, every_steps=1)]
    options = {"x": X[:36], "y": Y[:36], "batch_size": 4, "verbose": 0, "callbacks": given} | options
    return model.fit(**options)


def test_a_model_is_saved_and_loaded(tmp_path):
    model = make()
    fit(model, epochs=2)
    model.save(tmp_path)
    other = make()
    with pytest.raises(elegy.errors.CheckpointError, match="not initialised"):
        other.load(tmp_path)
    other.load(tmp_path, X, Y)
    assert_same(other.module.get_parameters(), model.module.get_parameters())
    assert other.steps == model.steps == 18
    # Both go on in the same way.
    assert fit(other, epochs=1).history == fit(model, epochs=1).history


def test_training_goes_on_from_a_model_that_was_saved_after_it(tmp_path):
    whole = make()
    wanted = fit(whole, epochs=4).history
    model = make()
    fit(model, epochs=2)
    model.save(tmp_path)
    history = fit(make(), epochs=4, resume=tmp_path)
    assert history.history == wanted and history.epoch == [0, 1, 2, 3]
    assert fit(make(), epochs=2, resume=tmp_path).epoch == [0, 1]  # there is nothing left to do


def test_weights_alone_are_taken_for_another_training(tmp_path):
    model = make()
    fit(model)
    model.save(tmp_path)
    other = make(seed=7)
    other.load(tmp_path, X, Y, weights_only=True)
    assert_same(other.module.get_parameters(), model.module.get_parameters())
    assert other.steps == 0 and int(other.optimizer.state.count) == 0

    larger = elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(), elegy.nn.Linear(3)])
    other = elegy.Model(larger, loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = jax.tree.map(np.asarray, larger.init(X).get_parameters())
    with pytest.raises(elegy.errors.CheckpointError, match=r"module\W+layers\W+2\W+w") as raised:
        other.load(tmp_path, X, Y, weights_only=True)
    assert "not in the file" in str(raised.value)
    assert_same(jax.tree.map(np.asarray, larger.get_parameters()), before)
    other.load(tmp_path, X, Y, weights_only=True, strict=False)
    found = larger.get_parameters()["layers"]
    assert_same(found[0], model.module.get_parameters()["layers"][0])
    assert_same(found[2], before["layers"][2])


def test_what_does_not_fit_is_refused(tmp_path):
    fit(make(), tmp_path, epochs=1)
    with pytest.raises(elegy.errors.CheckpointError, match="began with seed=42, and this model has seed=1"):
        fit(make(seed=1), resume=tmp_path)
    with pytest.raises(ValueError, match="resume= and initial_epoch= were both given"):
        fit(make(), resume=tmp_path, initial_epoch=1)
    with pytest.warns(elegy.errors.CheckpointWarning, match=r"steps=9, and now 18,\s+batch_size=4, and now 2\."):
        fit(make(), resume=tmp_path, batch_size=2, callbacks=[ModelCheckpoint(tmp_path / "other")])

    with pytest.raises(Stop):
        fit(make(), callbacks=callbacks(tmp_path / "middle", 3))
    for options, match in [
        ({"batch_size": 2}, r"There were\s+steps=9, and now 18,\s+batch_size=4, and now 2\."),
        ({"x": X[:33], "y": Y[:33]}, r"There were\s+samples=36, and now 33\."),
        ({"batch_size": 2, "accumulate": 2}, r"There were\s+batch_size=4, and now 2,\s+accumulate=1, and now 2\."),
        ({"shuffle": False}, r"There were\s+shuffle=True, and now False\."),
    ]:
        with pytest.raises(elegy.errors.CheckpointError, match=match):
            fit(make(), resume=tmp_path / "middle", **options)
    with pytest.warns(elegy.errors.CheckpointWarning, match="not there now: EMA 1, EarlyStopping 1, Interrupt 1"):
        fit(make(), resume=tmp_path / "middle")
    model = make()
    model.module.init(X)
    model.module.layers[0].trainable = False
    with pytest.raises(elegy.errors.CheckpointError, match="optimizer"):
        fit(model, resume=tmp_path / "middle", callbacks=callbacks())

    elegy.Checkpoints(tmp_path / "own").save(1, {"module": {"w": jax.numpy.ones(3)}}, wait=True)
    with pytest.raises(elegy.errors.CheckpointError, match="not written by a Model"):
        fit(make(), resume=tmp_path / "own")


def test_there_is_nothing_to_go_on_from(tmp_path):
    assert fit(make(), resume=tmp_path / "missing", epochs=2).history == fit(make(), epochs=2).history


def test_when_checkpoints_are_written_and_which_are_kept(tmp_path):
    def steps(epochs=3, **options):
        directory = tmp_path / "-".join(map(str, options.items()))
        fit(make(), callbacks=[ModelCheckpoint(directory, keep=None, **options)], epochs=epochs)
        return elegy.Checkpoints(directory).steps

    assert steps() == [9, 18, 27]
    assert steps(every_epochs=2) == [18]
    assert steps(every_steps=10) == [10, 20]
    assert steps(every_steps=9, every_epochs=3) == [9, 18, 27]
    assert steps(every_seconds=1e-9) == list(range(1, 28))
    assert steps(every_seconds=1e9) == []


def test_the_best_epoch_is_kept(tmp_path):
    class Score(Callback):
        values = [3.0, 1.0, 2.0, 0.5, 5.0]

        def on_epoch_end(self, epoch, logs):
            logs["error"] = self.values[epoch]

    def steps(**options):
        saving = ModelCheckpoint(tmp_path / str(len(options)), monitor="error", keep=1, **options)
        fit(make(), callbacks=[Score(), saving], epochs=5)
        return elegy.Checkpoints(tmp_path / str(len(options))).steps, saving.best

    assert steps() == ([36, 45], 0.5)
    assert steps(best_only=True) == ([36], 0.5)


def test_arguments_of_the_callback(tmp_path):
    for options, match in [
        ({"every_steps": 0}, "every_steps must be an integer of at least 1"),
        ({"every_seconds": 0}, "every_seconds must be positive"),
        ({"best_only": True}, "needs monitor="),
        ({"best_only": True, "monitor": "loss", "every_steps": 2}, "about the ends of epochs"),
        ({"monitor": "loss", "mode": "best"}, "mode must be"),
    ]:
        with pytest.raises(ValueError, match=match):
            ModelCheckpoint(tmp_path, **options)
    with pytest.raises(ValueError, match="there is no 'val_loss'"):
        fit(make(), callbacks=[ModelCheckpoint(tmp_path, monitor="val_loss")])


def test_a_checkpoint_that_cannot_be_written_is_an_error_of_fit(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "checkpoints")
    with pytest.raises(elegy.errors.CheckpointError, match="in the background: FileNotFoundError"):
        fit(make(), tmp_path / "link")


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    whole = fit(make(), epochs=2)
    with pytest.raises(Stop):
        fit(make(), epochs=2, callbacks=[ModelCheckpoint(tmp_path, every_steps=1), Interrupt(6)])
    newest = elegy.Checkpoints(tmp_path).latest()
    (file,) = tmp_path.glob(f"step-*{newest}/arrays.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    model = make()
    with pytest.warns(elegy.errors.CheckpointWarning, match="arrays.safetensors"):
        history = fit(model, epochs=2, resume=tmp_path, callbacks=[ModelCheckpoint(tmp_path), Interrupt()])
    assert history.history == whole.history


def test_modules_in_a_list_of_a_subclass_are_saved(tmp_path):
    class Heads(elegy.Model):
        def __init__(self):
            super().__init__(elegy.nn.Linear(4), optimizer=optax.sgd(0.1))
            self.heads = [elegy.nn.Linear(2), elegy.nn.Linear(2)]

        def loss_step(self, x, y, sample_weight):
            hidden = self.pred_step(x)
            return sum(jax.numpy.mean(head(hidden) ** 2) for head in self.heads), hidden

    model, other = Heads(), Heads()
    fit(model)
    model.save(tmp_path)
    other.load(tmp_path, X, Y)
    for one, another in zip(model.heads, other.heads, strict=True):
        assert_same(one.get_parameters(), another.get_parameters())


def test_a_model_does_not_keep_the_data():
    x = X.copy()
    reference, model = weakref.ref(x), make()
    fit(model, x=x, y=Y)
    del x
    assert reference() is None


def test_what_was_frozen_while_it_trained_is_frozen_again(tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    inner = lambda: elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), jax.nn.relu, elegy.nn.Linear(4)])  # noqa: E731

    class Freezing(Callback):
        def on_epoch_begin(self, epoch):
            first, _, last = self.model.module.layers
            if epoch == 1:
                first.trainable = False
                first.layers[2].trainable = True
            if epoch == 2:
                last.trainable = False

    def fit(directory, stop=None, **options):
        net: tp.Any = elegy.nn.Sequential(lambda: [inner(), jax.nn.relu, elegy.nn.Linear(1)]).init(x, rng=0)
        model = elegy.Model(net, elegy.losses.MeanSquaredError(), optimizer=optax.adam(0.1))

        class Failing(Callback):
            def on_train_batch_begin(self, batch):
                if self.model.steps == stop:
                    raise ZeroDivisionError

        callbacks = [Freezing(), elegy.callbacks.ModelCheckpoint(directory, every_steps=1), Failing()]
        with contextlib.suppress(ZeroDivisionError):
            model.fit(x, x[:, :1], batch_size=4, epochs=4, callbacks=callbacks, verbose=0, **options)
        flags = [node.trainable for node in (net, *net.layers[0].layers[::2], net.layers[2])]
        return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(net)], flags, model.steps

    expected = fit(tmp_path / "whole")
    assert expected[1:] == ([True, False, True, False], 16)
    for stop in (6, 8, 11):
        fit(tmp_path / str(stop), stop)
        assert fit(tmp_path / str(stop), resume=tmp_path / str(stop)) == expected


def test_a_callback_may_save_the_model(tmp_path):
    """The checkpoint has the states that the callbacks have then."""
    x, y = np.ones([8, 2], np.float32), np.ones([8, 1], np.float32)

    class Saving(Callback):
        def on_train_batch_begin(self, batch):
            if self.model.steps == 3:
                self.model.save(tmp_path)

    def construct():
        return elegy.Model(elegy.nn.Linear(1), elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))

    model = construct()
    model.fit(x, y, epochs=1, verbose=0)
    model.reset()
    whole = model.fit(x, y, batch_size=4, epochs=3, callbacks=[Saving()], verbose=0)
    resumed = construct().fit(x, y, batch_size=4, epochs=3, callbacks=[Saving()], resume=tmp_path, verbose=0)
    assert resumed.history["loss"] == whole.history["loss"] and resumed.epoch == [0, 1, 2]
