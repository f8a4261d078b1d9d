"""What users of other libraries write, and what the errors tell them to write instead."""

import copy
import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

X = np.ones([4, 3], np.float32)
Y = np.ones([4, 1], np.float32)


def message(function, *args, **kwargs):
    with pytest.raises(Exception) as caught:
        function(*args, **kwargs)
    return f"{type(caught.value).__name__}: {caught.value}"


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, instead",
    [
        ("elegy.nn.Dense", "Write elegy.nn.Linear."),
        ("elegy.nn.BatchNorm", "Write elegy.nn.BatchNormalization."),
        ("elegy.nn.Conv", "Write elegy.nn.Conv1D, elegy.nn.Conv2D or elegy.nn.Conv3D."),
        ("elegy.nn.Conv2d", "Write elegy.nn.Conv2D."),
        ("elegy.nn.relu", "Write jax.nn.relu."),
        ("elegy.nn.ReLU", "Activations are functions of JAX, such as jax.nn.relu"),
        ("elegy.nn.compact", "Write elegy.compact."),
        ("elegy.nn.Linaer", "Did you mean elegy.nn.Linear?"),
        ("elegy.Dense", "Write elegy.nn.Linear."),
        ("elegy.Sequential", "Write elegy.nn.Sequential."),
        ("elegy.filter_jit", "Write elegy.jit"),
        ("elegy.nnx", "layers are in elegy.nn."),
        ("elegy.valu_and_grad", "Did you mean elegy.value_and_grad?"),
        ("elegy.losses.MSE", "Write elegy.losses.MeanSquaredError."),
        ("elegy.losses.SparseCategoricalCrossEntropy", "Write elegy.losses.SparseCategoricalCrossentropy."),
        ("elegy.losses.hinge_loss", "Write optax.losses.hinge_loss."),
        ("elegy.metrics.acc", "Write elegy.metrics.SparseCategoricalAccuracy"),
        ("elegy.nn.LayerNorm", "Write elegy.nn.LayerNormalization."),
        ("elegy.nn.Embed", "Write elegy.nn.Embedding."),
        ("elegy.nn.MultiHeadDotProductAttention", "Write elegy.nn.MultiHeadAttention"),
        ("elegy.nn.MultiheadAttention", "Write elegy.nn.MultiHeadAttention."),
        ("elegy.nn.Dropout2d", "Write elegy.nn.Dropout with shared_axes="),
        ("elegy.nn.MaxPool2d", "Write elegy.nn.MaxPool."),
        ("elegy.nn.OptimizedLSTMCell", "Write elegy.nn.LSTMCell."),
        ("elegy.losses.L1Loss", "Write elegy.losses.MeanAbsoluteError."),
        ("elegy.losses.BCEWithLogitsLoss", "Write elegy.losses.BinaryCrossentropy."),
        ("elegy.metrics.F1Score", "Write elegy.metrics.F1."),
        ("elegy.L2", "Write elegy.regularizers.L2."),
        ("elegy.Input", "Inputs are not declared"),
        ("elegy.layers", "Layers are in elegy.nn."),
        ("elegy.load_model", "Write model.save(directory)"),
    ],
)
def test_a_name_of_another_library(name, instead):
    text = message(eval, name, {"elegy": elegy})
    place, _, attribute = name.rpartition(".")
    assert text.startswith(f"AttributeError: module {place!r} has no attribute {attribute!r}.\n  ")
    assert instead in text


@pytest.mark.parametrize("name", ["nets", "datasets"])
def test_what_is_not_here_yet(name):
    assert "not here yet (docs/index.md#what-is-not-here-yet)" in message(getattr, elegy, name)


@pytest.mark.parametrize(
    "module", [elegy, elegy.data, elegy.nn, elegy.losses, elegy.metrics], ids=lambda module: module.__name__
)
def test_modules_of_python_behave_as_without_hints(module):
    assert not hasattr(module, "Dense") and not hasattr(module, "__wrapped__")
    assert getattr(module, "Dense", None) is None
    with pytest.raises(ImportError, match="cannot import name 'Dense'"):
        exec(f"from {module.__name__} import Dense")
    assert message(getattr, module, "_private").endswith("has no attribute '_private'")
    assert message(getattr, module, "zzz").endswith("has no attribute 'zzz'")
    assert {name for name in dir(module) if name in ("habits", "tp", "missing_attribute")} <= {"habits"}
    namespace = {}
    exec(f"from {module.__name__} import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(module.__all__)


def test_classes_are_pickled_and_copied_as_before():
    assert pickle.loads(pickle.dumps(elegy.nn.Linear)) is elegy.nn.Linear
    assert copy.deepcopy(elegy.nn.Linear(2)).output_size == 2


# ---------------------------------------------------------------------------------------------------------------------
# Arguments of constructors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"key": 0}, {"rngs": 0}, {"rng": 0}], ids=str)
def test_keys_are_not_given_to_constructors(arguments):
    (name,) = arguments
    text = message(elegy.nn.Linear, 5, **arguments)
    assert text.startswith(f"TypeError: elegy.nn.Linear got an unexpected keyword argument {name!r}.\n")
    assert "init(x, rng=key)" in text and "The size of the input" not in text
    assert "The size of the input is inferred" in message(elegy.nn.Linear, 3, 5, **arguments)


@pytest.mark.parametrize(
    "layer, arguments, instead",
    [
        ("Linear", {"features": 5}, "For features= write output_size=."),
        ("Linear", {"units": 5}, "For units= write output_size=."),
        ("Linear", {"in_features": 3, "out_features": 5}, "For out_features= write output_size=."),
        ("Linear", {"in_features": 3, "out_features": 5}, "The size of the input is inferred by the first call."),
        ("Linear", {"output_size": 5, "use_bias": False}, "For use_bias= write with_bias=."),
        ("Linear", {"output_sizes": 5}, "For output_sizes= write output_size=."),
        ("Conv2D", {"features": 5, "kernel_size": 3}, "For features= write output_channels=."),
        ("Conv2D", {"features": 5, "kernel_size": 3}, "For kernel_size= write kernel_shape=."),
        ("BatchNormalization", {"epsilon": 1e-3}, "For epsilon= write eps=."),
        ("BatchNormalization", {"use_running_average": True}, "elegy.training_context(False)"),
        ("Dropout", {"p": 0.5}, "For p= write rate=."),
    ],
)
def test_the_names_of_arguments(layer, arguments, instead):
    text = message(getattr(elegy.nn, layer), **arguments)
    assert text.startswith(f"TypeError: elegy.nn.{layer} got ") and instead in text
    assert "Its arguments are " in text and ", name, dtype." in text


@pytest.mark.parametrize(
    "callback, arguments, instead",
    [
        ("ModelCheckpoint", {"filepath": "x"}, "For filepath= write directory=."),
        ("ModelCheckpoint", {"directory": "x", "save_best_only": True}, "For save_best_only= write best_only=."),
        ("ModelCheckpoint", {"directory": "x", "save_weights_only": True}, "elegy.save(path, model.module)"),
        ("ModelCheckpoint", {"directory": "x", "save_freq": 100}, "Write every_epochs=1, or every_steps="),
        ("EarlyStopping", {"verbose": 1}, "fit(verbose=...) shows the progress"),
        ("CSVLogger", {"filename": "logs.csv"}, "For filename= write path=."),
        ("TensorBoard", {"write_graph": True}, "It writes logs, histograms= and profile= only."),
        ("RemoteMonitor", {"root": "http://localhost"}, "For root= write url=."),
    ],
)
def test_the_names_of_arguments_of_callbacks(callback, arguments, instead):
    text = message(getattr(elegy.callbacks, callback), **arguments)
    assert text.startswith(f"TypeError: elegy.callbacks.{callback} got ")
    assert instead in text and "Its arguments are " in text


def placed(cls):
    """The arguments that may be given by their places, with their defaults."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize(
    "name",
    "EarlyStopping ReduceLROnPlateau LearningRateScheduler CSVLogger TensorBoard RemoteMonitor TerminateOnNaN "
    "LambdaCallback ModelCheckpoint".split(),
)
def test_callbacks_take_by_their_places_what_keras_takes_there(name):
    import keras

    of_keras, here = placed(getattr(keras.callbacks, name)), placed(getattr(elegy.callbacks, name))
    others = {"filename": "path", "log_dir": "directory", "filepath": "directory", "root": "url"}
    assert [name for name, _ in here] == [others.get(name, name) for name, _ in of_keras[: len(here)]]
    assert all(default in (inspect.Parameter.empty, of_keras[i][1]) for i, (_, default) in enumerate(here))


def test_what_has_no_place_is_given_by_name():
    text = message(elegy.callbacks.EarlyStopping, "loss", 0, 3, 1)
    taken = "got 4 positional arguments, where it takes only monitor, min_delta, patience."
    assert text.startswith(f"TypeError: elegy.callbacks.EarlyStopping {taken}\n  Give the others by name: mode=, ")
    assert "it takes nothing.\n  Give the others by name: every=, " in message(elegy.callbacks.TerminateOnNaN, True)


@pytest.mark.parametrize(
    "arguments, instead",
    [
        ({"train": True}, "apply(x, training=False)"),
        ({"deterministic": True}, "elegy.training_context(False)"),
        ({"key": 0}, "apply(x, rng=key)"),
        ({"rngs": {}}, "elegy.next_rng_key()"),
        ({"mutable": ["batch_stats"]}, "returns the module with its new state"),
    ],
    ids=str,
)
def test_arguments_of_calls(arguments, instead):
    class Net(elegy.Module):
        def call(self, x):
            return x

    for net in (Net(), Net().init(X)):
        with pytest.raises(TypeError, match="unexpected keyword argument") as caught:
            net(X, **arguments)
        assert instead in caught.value.__notes__[0]
    with pytest.raises(TypeError) as caught:
        Net()(X, other=1)
    assert "\n" not in caught.value.__notes__[0]


def test_arguments_of_ones_own_modules():
    class Net(elegy.Module):
        def __init__(self, width=3):
            self.width = width

        def call(self, x):
            return elegy.nn.Linear(self.width, key=0)(x)

    text = message(Net, widht=4)
    assert text.endswith(
        "Net got an unexpected keyword argument 'widht'.\n  For widht= write width=.\n  Its arguments are width."
    )
    # What the constructor of another module was given is told of that one, also inside a call.
    net = Net()
    assert message(net, X).startswith("TypeError: elegy.nn.Linear got an unexpected keyword argument 'key'.")
    assert not net.initialized


def test_an_error_of_the_constructor_itself_stays():
    class Net(elegy.Module):
        def __init__(self, width, **options):
            len(width)

    assert message(Net, 3, key=0) == "TypeError: object of type 'int' has no len()"
    assert "missing 1 required positional argument" in message(elegy.nn.Linear)


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, instead",
    [
        ({"loss": "mse"}, "loss=elegy.losses.MeanSquaredError()."),
        ({"loss": "mean_squared_error"}, "loss=elegy.losses.MeanSquaredError()."),
        (
            {"loss": "sparse_categorical_crossentropy"},
            "loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True).",
        ),
        ({"loss": "my_own"}, "loss=elegy.losses.MeanSquaredError(), or any function of y_true and y_pred."),
        ({"metrics": "accuracy"}, "metrics=elegy.metrics.SparseCategoricalAccuracy()."),
        ({"metrics": ["accuracy"]}, "metrics=elegy.metrics.SparseCategoricalAccuracy()."),
        ({"optimizer": "adam"}, "optimizer=optax.adam(1e-3)."),
        ({"optimizer": "RMSprop"}, "optimizer=optax.rmsprop(1e-3)."),
        ({"optimizer": "the best"}, "optimizer=optax.adam(1e-3)."),
    ],
    ids=str,
)
def test_names_of_objects(arguments, instead):
    text = message(elegy.Model, elegy.nn.Linear(1), **arguments)
    assert text.startswith("TypeError: ") and text.endswith(f"Give the object instead of its name: {instead}")


def make_model():
    return elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_list_of_samples(method):
    """A list of pairs gives batches, and samples are none."""
    model = make_model()
    text = message(getattr(model, method), [(X[0], 1.0), (X[1], 2.0)])
    assert "batch 0 of epoch 0" in text and "y is a scalar" in text
    assert not model.module.initialized


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize("pair", [(X, Y), [X, Y]], ids=["tuple", "list"])
def test_a_pair_in_the_place_of_x(method, pair):
    model = make_model()
    text = message(getattr(model, method), pair)
    assert "loss (MeanSquaredError) compares predictions with targets, and there are none." in text
    assert text.endswith("Is it in x, as (x, y)? Then write fit(*x).")
    assert not model.module.initialized


def test_a_loader():
    assert "list_iterator can be gone through once only: give steps_per_epoch" in message(
        make_model().fit, iter([(X, Y)]), epochs=2
    )


# ---------------------------------------------------------------------------------------------------------------------
# remat
# ---------------------------------------------------------------------------------------------------------------------


class Block(elegy.Module):
    @elegy.remat
    def call(self, x, flag, mode=None):
        y = elegy.nn.Linear(3)(x)
        return jax.nn.relu(y) if flag else y


def notes(function, *args, **kwargs):
    with pytest.raises(TypeError) as caught:
        function(*args, **kwargs)
    return [note for note in caught.value.__notes__ if "elegy.remat" in note]


def test_remat_names_the_flag():
    (note,) = notes(Block(), X, True)
    assert "flag=True" in note and "elegy.remat(f, static_argnames='flag')" in note
    assert "@functools.partial(elegy.remat, static_argnames='flag')" in note
    block = Block()
    (note,) = notes(block, X, flag=True, mode="train")
    assert "flag=True, mode='train'" in note and "static_argnames=('flag', 'mode')" in note

    linear = elegy.nn.Linear(3).init(X)
    (note,) = notes(elegy.remat(lambda x, flag: linear(x) if flag else x, modules=linear), X, True)
    assert "static_argnames='flag'" in note


def test_what_the_note_says_works():
    class Fixed(elegy.Module):
        @functools.partial(elegy.remat, static_argnames="flag")
        def call(self, x, flag):
            y = elegy.nn.Linear(3)(x)
            return jax.nn.relu(y) if flag else y

    fixed = Fixed()
    plain = fixed(X, False)
    np.testing.assert_array_equal(fixed(X, True), np.maximum(plain, 0))
    np.testing.assert_array_equal(fixed(X, flag=True), np.maximum(plain, 0))
    np.testing.assert_allclose(plain, X @ np.asarray(fixed.linear.w), rtol=1e-6)


def test_arguments_without_names_of_their_own():
    def choose(*args):
        return args[0] if args[2] else args[1]

    with pytest.raises(jax.errors.TracerBoolConversionError):
        elegy.remat(choose, static_argnums=1)(X, 2, True)


def test_another_error_says_nothing_of_flags():
    def wrong(x, n):
        raise TypeError("of the user")

    with pytest.raises(TypeError, match="of the user") as caught:
        elegy.remat(wrong)(jnp.ones(2), 3)
    assert not any("elegy.remat" in note for note in getattr(caught.value, "__notes__", ()))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("compile", r"elegy\.Model\(module, loss="),
        ("get_weights", r"model\.module\.get_parameters\(\)"),
        ("load_weights", "weights_only=True"),
        ("layers", r"attributes of model\.module"),
        ("other", "no attribute 'other'$"),
    ],
)
def test_attributes_of_models_of_other_libraries(name, instead):
    model = make_model()
    with pytest.raises(AttributeError, match=instead) as raised:
        getattr(model, name)
    assert raised.value.name == name and not hasattr(model, name)
    assert copy.copy(model).steps == 0
