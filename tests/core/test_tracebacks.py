"""Tracebacks are about the code of the user: which frames of the library they show, and what else an error keeps."""

import gc
import os
import sys
import traceback
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy

HOME = os.path.dirname(elegy.__file__) + os.sep
MOST = 8  # frames of the library

X, Y, WRONG = np.ones([4, 3], np.float32), np.ones([4, 1], np.float32), np.ones([4, 5], np.float32)


class Layer(elegy.Module):
    def __init__(self, size):
        self.size = size

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.size])  # the line that fails
        return x @ w


class MLP(elegy.Module):
    def call(self, x):
        return Layer(1)(jax.nn.relu(Layer(4)(x)))


def failing(run, *args):
    """The error, its frames as they are printed, and of these the ones of the library."""
    with pytest.raises(Exception) as caught:
        run(*args)
    error = caught.value
    # The text also has the frames of what caused the error, or what it came in the way of.
    text = "".join(traceback.format_exception(error))
    files = [line.split('"')[1] for line in text.splitlines() if line.startswith('  File "')]
    return error, traceback.extract_tb(error.__traceback__), [file for file in files if file.startswith(HOME)]


def jitted_gradient():
    mlp, optimizer = MLP(), elegy.Optimizer(optax.sgd(0.1))

    def loss_fn(x, y):
        return jnp.mean((mlp(x) - y) ** 2)

    def update(x, y):
        loss, gradients = elegy.value_and_grad(loss_fn, modules=mlp)(x, y)
        optimizer.update(mlp, gradients)
        return loss

    step = elegy.jit(update, modules=[mlp, optimizer])
    step(X, Y)
    return lambda: step(WRONG, Y)


def eager_call():
    mlp = MLP().init(X)
    return lambda: mlp(WRONG)


def of_model(method, *args, **kwargs):
    def make():
        model = elegy.Model(MLP(), loss=elegy.losses.MeanSquaredError())
        model.module.init(X)
        return lambda: getattr(model, method)(*args, **kwargs)

    return make


def under(transform):
    def make():
        mlp = MLP().init(X)
        return lambda: transform(mlp)

    return make


CASES = {
    "eager call": eager_call,
    "jitted gradient": jitted_gradient,
    "gradient": under(lambda mlp: elegy.value_and_grad(lambda x: mlp(x).sum(), modules=mlp)(WRONG)),
    "pure gradient": under(lambda mlp: elegy.value_and_grad(lambda mlp, x: mlp(x).sum())(mlp, WRONG)),
    "jitted module": under(lambda mlp: mlp.jit(WRONG)),
    "apply": under(lambda mlp: mlp.apply(WRONG)),
    "module.call": under(lambda mlp: mlp.call(WRONG)),
    "fit": of_model("fit", WRONG, Y, verbose=0),
    "evaluate": of_model("evaluate", WRONG, Y),
    "predict": of_model("predict", WRONG),
    "scan": under(lambda mlp: elegy.scan(lambda c, x: (c, mlp(x)), 0.0, WRONG[None], modules=mlp)),
    "vmap": under(lambda mlp: elegy.vmap(mlp, modules=mlp)(WRONG[None])),
    "remat": under(lambda mlp: elegy.remat(mlp, modules=mlp)(WRONG)),
    "cond": under(lambda mlp: elegy.cond(True, lambda x: mlp(x), lambda x: x[:, :1], WRONG, modules=mlp)),
    "all of them": under(
        lambda mlp: elegy.jit(
            elegy.grad(
                lambda x: elegy.vmap(lambda x: elegy.scan(lambda c, x: (c, mlp(x)), 0.0, x)[1])(x).sum(), modules=mlp
            )
        )(WRONG[None, None])
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_few_frames_of_the_library_are_shown(case):
    error, frames, ours = failing(CASES[case]())
    assert isinstance(error, elegy.errors.ParameterError)
    assert str(error).startswith("mlp/layer_1/w has shape (3, 4), but (5, 4) is asked for now.")
    assert len(ours) <= MOST
    lines = [frame.line or "" for frame in frames if frame.filename == __file__]
    assert lines[-1].endswith("# the line that fails")


def test_the_first_call_and_init():
    for run in (lambda: MLP()(jnp.ones([])), lambda: MLP().init(jnp.ones([])), lambda: elegy.jit(MLP())(jnp.ones([]))):
        error, frames, ours = failing(run)
        assert isinstance(error, IndexError) and len(ours) <= MOST
        lines = [frame.line or "" for frame in frames if frame.filename == __file__]
        assert lines[-1].endswith("# the line that fails")


def test_layers_are_shown():
    """What a user might have written says where in it the error is."""
    error, _, ours = failing(elegy.nn.Linear(1), X.astype(np.complex64))
    assert isinstance(error, TypeError) and "the imaginary part would be lost" in str(error)
    assert ours == [os.path.join(HOME, "nn", name) for name in ("linear.py", "inputs.py")]


def test_constructors_inside_constructors():
    def run():
        elegy.nn.Sequential(lambda: [elegy.nn.Sequential(lambda: [elegy.nn.Linear(0)])])

    error, _, ours = failing(run)
    assert str(error) == "elegy.nn.Linear: output_size must be a positive integer, got 0."
    assert len(ours) <= MOST


def test_where_the_library_alone_is_on_the_way_little_is_left_but_the_line_of_the_user():
    linear = elegy.nn.Linear(1).init(X)
    linear.trainable = False
    gradient = elegy.jit(elegy.grad(lambda x: linear(x).sum(), modules=linear))
    error, frames, ours = failing(gradient, X)
    assert isinstance(error, elegy.errors.NothingToDifferentiateError)
    assert len(ours) <= 1 and any(frame.filename == __file__ for frame in frames)


def test_an_error_that_is_not_ours_keeps_the_place_where_it_was_raised(monkeypatch):
    def broken(*args, **options):
        raise KeyError("a bug of the library")

    monkeypatch.setattr(Layer, "add_parameter", broken)
    error, frames, _ = failing(Layer(1), X)
    assert isinstance(error, KeyError) and frames[-1].name == "broken"

    linear = elegy.nn.Linear(1).init(X)
    error, frames, ours = failing(lambda: elegy.value_and_grad(lambda x: x, modules=linear, argnums=7)(X))
    assert isinstance(error, ValueError) and "raise ValueError" in (frames[-1].line or "")
    assert frames[-1].filename.startswith(HOME) and len(ours) <= MOST


def test_all_frames_where_jax_filters_none():
    before = jax.config.jax_traceback_filtering  # pyright: ignore
    jax.config.update("jax_traceback_filtering", "off")
    try:
        _, _, ours = failing(jitted_gradient())
    finally:
        jax.config.update("jax_traceback_filtering", before)
    assert len(ours) > MOST
    assert ours[-1] == os.path.join(HOME, "creation.py")


def test_an_error_keeps_its_type_notes_cause_and_context():
    class Own(Exception):
        pass

    class Fails(elegy.Module):
        def call(self, x):
            try:
                Layer(2)(jnp.ones([]))
            except IndexError as error:
                try:
                    raise Own("outer") from error
                except Own as own:
                    own.add_note("a note")
                    raise

    error, frames, ours = failing(lambda: elegy.jit(Fails())(X))
    assert type(error) is Own and error.args == ("outer",)
    assert error.__notes__[0] == "a note" and any(note.startswith("in fails (Fails.call)") for note in error.__notes__)
    assert isinstance(error.__cause__, IndexError) and error.__context__ is error.__cause__
    assert error.__suppress_context__
    cause = traceback.extract_tb(error.__cause__.__traceback__)
    assert [frame.name for frame in cause if frame.filename == __file__] == ["call", "call"]
    assert len(ours) <= MOST  # those of the cause included
    assert frames[-1].name == "call"


def test_a_debugger_finds_the_frames_of_the_user():
    error, _, _ = failing(jitted_gradient())
    frames = {frame.f_code.co_name: frame for frame, _ in traceback.walk_tb(error.__traceback__)}
    assert frames["update"].f_locals["x"].shape == (4, 5)
    assert frames["call"].f_code is Layer.call.__code__
    assert frames["call"].f_locals["self"].size == 4 and frames["call"].f_locals["x"].shape == (4, 5)
    # Above it is the whole stack, as `up` of a debugger shows it.
    assert frames["call"].f_back.f_code.co_filename.startswith(HOME)


def test_an_error_makes_no_circle_of_references():
    gc.collect()
    gc.disable()
    try:
        mlp = MLP().init(X)
        module = weakref.ref(mlp)
        try:
            mlp(WRONG)
        except elegy.errors.ParameterError:
            del mlp
        assert module() is None
    finally:
        gc.enable()


def test_a_call_has_no_more_frames_than_before():
    """Between the line that calls a module and its `call` there are two frames of the library."""
    names = []

    class Deep(elegy.Module):
        def call(self):
            frame = sys._getframe(1)
            while frame.f_code is not run.__code__:
                if frame.f_code.co_filename.startswith(HOME):
                    names.append(frame.f_code.co_name)
                frame = frame.f_back

    deep = Deep()

    def run():
        names.clear()
        deep()

    run()
    run()
    assert names == ["run_method", "__call__"]
