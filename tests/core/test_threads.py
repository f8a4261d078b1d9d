"""Contexts and streams belong to a thread; modules may be used by several."""

import copy
import faulthandler
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
# After so many seconds a test that hangs fails; no machine is so slow.
HOUR = 3600


@pytest.fixture(autouse=True)
def eager_switching() -> Iterator[None]:
    """Makes Python change threads as often as it can, so that a race shows in a few runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_together(*functions: Callable[[], Any]) -> list[Any]:
    """Starts one thread for each function, at the same moment; gives what they returned."""
    barrier = threading.Barrier(len(functions))
    results: list[Any] = [None] * len(functions)

    def run(index):
        barrier.wait()
        try:
            results[index] = functions[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=HOUR)
        if thread.is_alive():
            faulthandler.dump_traceback()
            pytest.fail("a thread did not end")
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def alone(function: Callable[[], Any]) -> Any:
    return run_together(function)[0]


class Linear(elegy.Module):
    def __init__(self, size):
        self.size = size

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.size], initializer=jax.nn.initializers.normal())
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        if elegy.training():
            self.update_parameter("count", count + 1)
        return x @ w


class Net(elegy.Module):
    def call(self, x):
        x = jnp.tanh(Linear(4)(x))
        if elegy.training():
            x = jnp.where(jax.random.bernoulli(elegy.next_rng_key(), 0.8, x.shape), x, 0.0)
        elegy.add_loss("size", jnp.mean(x**2))
        return Linear(1)(x)


def values(tree):
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(tree)]


# ---------------------------------------------------------------------------------------------------------------------
# Contexts
# ---------------------------------------------------------------------------------------------------------------------


def test_a_new_thread_starts_with_contexts_of_its_own():
    def look():
        return (
            elegy.training(),
            elegy.get_losses(),
            elegy.get_module(),
            jax.random.key_data(elegy.next_rng_key()).tolist(),
        )

    default = alone(look)
    assert default[:3] == (True, None, None)
    assert default[3] == jax.random.key_data(elegy.RNG(42)()).tolist()
    elegy.set_rng(1)
    with elegy.training_context(False), elegy.hooks_context(), elegy.name_context("name"):
        before = jax.random.key_data(elegy.get_rng().key).tolist()
        assert alone(look) == default
        assert jax.random.key_data(elegy.get_rng().key).tolist() == before
        alone(lambda: [elegy.set_training(True), elegy.set_rng(9), elegy.add_loss("other", jnp.float32(1))])
        assert not elegy.training() and elegy.get_losses() == {}
        assert jax.random.key_data(elegy.get_rng().key).tolist() == before


def test_a_thread_started_inside_a_call_is_not_inside_it():
    seen = []

    class Starts(elegy.Module):
        def call(self, x):
            if not elegy.is_initializing():
                seen.append(alone(lambda: (elegy.get_module(), elegy.get_static_context().names)))
            return x

    Starts().init(X)(X)
    assert seen == [(None, ())]


# ---------------------------------------------------------------------------------------------------------------------
# Each thread its own module
# ---------------------------------------------------------------------------------------------------------------------


def training_run(seed: int, steps: int, compiled: bool) -> Callable[[], Any]:
    def run():
        elegy.set_rng(seed)
        net = Net()

        def loss_fn(x):
            with elegy.hooks_context():
                return jnp.mean(net(x) ** 2) + sum(elegy.get_losses().values())

        def update(x):
            loss, grads = elegy.value_and_grad(loss_fn, modules=net)(x)
            parameters = net.get_parameters(trainable=True)
            net.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, parameters, grads))
            elegy.add_metric("loss", loss)
            return loss

        function = elegy.jit(update, modules=net) if compiled else update
        losses, metrics = [], []
        for _ in range(steps):
            with elegy.hooks_context():
                losses.append(np.asarray(function(X)).tolist())
                metrics.append(values(elegy.get_metrics()))
        return losses, metrics, values(net), jax.random.key_data(elegy.next_rng_key()).tolist()

    return run


@pytest.mark.parametrize(("compiled", "repeats"), [(False, 2), (True, 2)])
def test_two_threads_train_their_own_modules(compiled, repeats):
    expected = [alone(training_run(seed, 3, compiled)) for seed in (1, 2)]
    assert expected[0] != expected[1]
    for _ in range(repeats):
        assert run_together(training_run(1, 3, compiled), training_run(2, 3, compiled)) == expected


def test_modes_of_two_threads_do_not_mix():
    net = Net().init(X)

    def switch(mode):
        def run():
            for _ in range(50):
                with elegy.training_context(mode):
                    net.copy()(X)
                    if elegy.training() is not mode:
                        return False
            return True

        return run

    assert run_together(switch(True), switch(False)) == [True, True]


# ---------------------------------------------------------------------------------------------------------------------
# One module for two threads
# ---------------------------------------------------------------------------------------------------------------------


def predict_eagerly(net, x=X):
    with elegy.training_context(False):
        return np.asarray(net(x)).tolist()


def predict_compiled(net, x=X):
    with elegy.training_context(False):
        return np.asarray(elegy.jit(net)(x)).tolist()


def predict_jit_method(net, x=X):
    with elegy.training_context(False):
        return np.asarray(net.jit(x)).tolist()


def predict_purely(net, x=X):
    return np.asarray(net.apply(x, training=False)[0]).tolist()


def predict_plainly(net, x=X):
    with elegy.training_context(False):
        return np.asarray(jax.jit(lambda m, x: m(x))(net, x)).tolist()


def predict_with_gradient(net, x=X):
    with elegy.training_context(False):
        loss, _ = elegy.value_and_grad(lambda x: (jnp.sum(y := net(x)), y), modules=net)(x)
        return np.asarray(loss[1]).tolist()


WAYS = [predict_eagerly, predict_compiled, predict_jit_method, predict_purely, predict_plainly, predict_with_gradient]


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS[:3])
def test_two_threads_predict_with_one_module(first, second):
    net = Net().init(X)
    before = [id(leaf) for leaf in jax.tree.leaves(net)]
    expected = [alone(lambda: first(net)), alone(lambda: second(net))]
    for _ in range(3):
        assert run_together(lambda: first(net), lambda: second(net)) == expected
    assert [id(leaf) for leaf in jax.tree.leaves(net)] == before


@pytest.mark.parametrize("way", WAYS)
def test_many_predictions_while_the_other_thread_traces(way):
    """One thread calls eagerly all the time, while the other one keeps threading tracers through the module."""
    net = Net().init(X)
    expected = alone(lambda: predict_eagerly(net))
    done = threading.Event()

    def keep_predicting():
        rounds = 0
        while not done.is_set() or rounds < 5:
            y = predict_eagerly(net)
            assert y == expected
            assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(net))
            rounds += 1

    def keep_tracing():
        try:
            return [way(net, np.ones([size, 3], np.float32)) for size in range(1, 6)]
        finally:
            done.set()

    run_together(keep_predicting, keep_tracing)


@pytest.mark.parametrize("first", [predict_eagerly, predict_compiled, predict_with_gradient])
@pytest.mark.parametrize("second", [predict_eagerly, predict_compiled, predict_jit_method])
def test_two_threads_make_the_first_call_at_once(first, second):
    expected = [alone(lambda: first(Net())), alone(lambda: second(Net()))]
    for _ in range(3):
        net = Net()
        results = run_together(lambda net=net: first(net), lambda net=net: second(net))
        np.testing.assert_allclose(results[0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(results[1], expected[1], rtol=1e-6)
        assert sorted(net.get_parameters()) == ["linear", "linear_1"]
        assert net.linear.count == 0


def test_two_threads_call_one_compiled_function_of_an_uninitialised_module():
    expected = alone(lambda: predict_compiled(Net()))
    for _ in range(4):
        net = Net()
        function = elegy.jit(net)

        def predict(function=function):
            with elegy.training_context(False):
                return [np.asarray(function(X)).tolist() for _ in range(3)]

        for result in run_together(predict, predict, predict):
            assert result == [expected] * 3
        assert function.traces <= 2


class Waiting(elegy.Module):
    """Lets a thread wait in its first run, before anything is created."""

    def __init__(self, wait=lambda: None):
        self.wait = wait

    def call(self, x):
        self.wait()
        return Linear(1)(Linear(4)(x))


FIRST_CALLS = {
    "a call": lambda net: net(X),
    "init": lambda net: net.init(X)(X),
    "elegy.jit": lambda net: elegy.jit(net)(X),
    "value_and_grad": lambda net: elegy.value_and_grad(lambda: net(X).sum(), modules=net)()[0],
}


@pytest.mark.parametrize("way", FIRST_CALLS)
def test_a_first_run_in_progress_is_run_again_when_another_thread_has_initialised_the_module(way):
    begun, done, slow = threading.Event(), threading.Event(), []

    def wait():
        if threading.get_ident() in slow:
            begun.set()
            done.wait(timeout=HOUR)

    def slowly():
        slow.append(threading.get_ident())
        return np.asarray(FIRST_CALLS[way](net))

    def at_once():
        begun.wait(timeout=HOUR)
        net(X)
        done.set()

    expected, net = FIRST_CALLS[way](Waiting()), Waiting(wait)
    found, _ = run_together(slowly, at_once)
    assert sorted(net.get_parameters()) == ["linear", "linear_1"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_eager_call_in_progress_does_not_see_the_tracers_of_another_thread():
    """The two threads are led to the worst moment: a call that has begun, and a trace that begins before it reads."""
    begun, traced, read = threading.Event(), threading.Event(), threading.Event()
    eager_thread = []

    class Slow(elegy.Module):
        def call(self, x):
            w = self.add_parameter("w", [3], initializer=jnp.ones)
            if eager_thread and threading.current_thread() is eager_thread[0]:
                begun.set()
                traced.wait(timeout=0.5)  # the trace may also be kept waiting until this call has ended
                result = x * self.w[None]
                read.set()
                return result
            if begun.is_set():
                traced.set()
                read.wait(timeout=0.5)
            return x * w[None]

    net = Slow().init(X)

    def call():
        eager_thread.append(threading.current_thread())
        return np.asarray(net(X)).tolist()

    def trace():
        begun.wait(timeout=HOUR)
        return np.asarray(elegy.jit(net)(X)).tolist()

    assert run_together(call, trace) == [X.tolist(), X.tolist()]


def held_by(net, way):
    """Runs `way(net)` in another thread, while this one is in the middle of a trace that threads the module."""
    in_the_middle, done = threading.Event(), threading.Event()

    def slow(x):
        in_the_middle.set()
        done.wait(timeout=0.3)  # the reader may also be kept waiting until this trace has ended
        return net(x)

    def read():
        in_the_middle.wait(timeout=HOUR)
        try:
            return way(net)
        finally:
            done.set()

    return run_together(lambda: elegy.jit(slow, modules=net)(X), read)[1]


READERS = {
    "jax.tree.leaves": jax.tree.leaves,
    "jax.tree.map": lambda net: jax.tree.leaves(jax.tree.map(lambda leaf: leaf, net)),
    "get_parameters": lambda net: jax.tree.leaves(net.get_parameters()),
    "copy": lambda net: jax.tree.leaves(net.copy()),
    "deepcopy": lambda net: jax.tree.leaves(copy.deepcopy(net)),
    "pickle": lambda net: jax.tree.leaves(pickle.loads(pickle.dumps(net))),
    "partition": lambda net: jax.tree.leaves(elegy.partition(net)),
    "apply": lambda net: jax.tree.leaves(net.apply(X, training=False)[1]),
    "jax.jit": lambda net: jax.tree.leaves(jax.jit(lambda m: m)(net)),
    "eager call": lambda net: [predict_eagerly(net), jax.tree.leaves(net)][1],
    "elegy.jit": lambda net: [predict_compiled(net), jax.tree.leaves(net)][1],
    "value_and_grad": lambda net: [predict_with_gradient(net), jax.tree.leaves(net)][1],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_waits_for_the_trace_of_another_thread(reader):
    net = Net().init(X)
    expected = sorted(map(str, values(net)))
    elegy.set_training(False)
    found = held_by(net, READERS[reader])
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in found)
    # In training mode the traced call may have counted already.
    assert len(found) == len(expected)


@pytest.mark.parametrize("writer", ["set_parameters", "trainable", "training call"])
def test_a_writer_waits_for_the_trace_of_another_thread(writer):
    net = Net().init(X)
    ones = jax.tree.map(jnp.ones_like, net.get_parameters(trainable=True))
    writers = {
        "set_parameters": lambda net: net.set_parameters(ones),
        "trainable": lambda net: setattr(net, "trainable", False),
        "training call": lambda net: net(X),
    }
    held_by(net, writers[writer])
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(net))
    if writer == "set_parameters":
        assert net.linear.w.tolist() == jnp.ones([3, 4]).tolist()
    elif writer == "trainable":
        assert not net.trainable and not net.linear.trainable
    else:
        assert net.linear.count in (1, 2)  # of two calls that compute at the same time, the later one decides


def test_an_init_pass_is_not_seen_by_a_reader():
    """While one thread initialises a module, another one that reads it sees nothing or arrays, never tracers."""
    for _ in range(3):
        net = Net()
        done = threading.Event()
        seen = []

        def read(net=net, done=done, seen=seen):
            while not done.is_set():
                seen.extend(type(leaf) for leaf in jax.tree.leaves(net) if isinstance(leaf, jax.core.Tracer))

        def initialise(net=net, done=done):
            try:
                with elegy.training_context(True):
                    net.init(X)
            finally:
                done.set()

        run_together(read, initialise)
        assert seen == []


def test_an_exception_in_one_thread_does_not_disturb_the_other():
    net = Net().init(X)
    expected = alone(lambda: predict_eagerly(net))

    def fail():
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                elegy.jit(lambda x: net(x) / (1 // 0), modules=net)(X)

    def predict():
        return [predict_eagerly(net) for _ in range(10)]

    assert run_together(fail, predict)[1] == [expected] * 10


def test_threads_that_construct_the_same_new_class():
    for _ in range(5):

        class Fresh(elegy.Module):
            def call(self, x):
                return x * self.add_parameter("w", [], initializer=jnp.ones)

        def run(cls=Fresh):
            module = cls().init(X)
            return len(jax.tree.leaves(module)), jax.tree.structure(module)

        results = run_together(*[run] * 4)
        assert all(result == results[0] for result in results) and results[0][0] == 1


def test_the_warnings_of_lost_updates_come_in_the_thread_that_lost_them():
    net = Net().init(X)

    def drop():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jax.jit(lambda m, x: m(x))(net, X)
        assert any("net/linear" in str(warning.message) for warning in caught)

    alone(drop)


class Scale(elegy.Module):
    def call(self, x):
        return x * self.add_parameter("w", [], initializer=jnp.ones)


def test_a_trace_and_a_compiled_function_called_inside_it_do_not_deadlock():
    """One thread traces `inner` for a shape; the other one, in the middle of a trace of its own, needs the same."""
    net = Scale().init(jnp.ones([1]))
    inner = elegy.jit(net)
    inner(jnp.ones([2]))  # so that only the shape is new below
    in_the_middle = threading.Event()

    def outer(x):
        in_the_middle.set()
        time.sleep(0.3)
        return inner(x)

    def call():
        in_the_middle.wait(timeout=HOUR)
        return inner(jnp.ones([3]))

    results = run_together(lambda: elegy.jit(outer, modules=net)(jnp.ones([3])), call)
    assert [result.tolist() for result in results] == [[1.0] * 3] * 2


DEADLOCKS = {
    "value_and_grad": lambda m, x: elegy.value_and_grad(lambda m, x: m(x).sum())(m, x)[0][0],
    "get_parameters": lambda m, x: m.get_parameters()["w"].sum() + m(x).sum(),
    "set_parameters": lambda m, x: m.set_parameters(m.get_parameters()) or m(x).sum(),
    "elegy.jit": lambda m, x: elegy.jit(lambda m, x: m(x).sum())(m, x),
}


@pytest.mark.parametrize("inside", DEADLOCKS)
def test_a_trace_of_jax_that_both_threads_need_does_not_deadlock(inside):
    """One thread is inside a function that jax.jit compiles; the other one, inside Elegy, waits for that function."""
    x = jnp.ones([3])
    m, m2 = Scale().init(x), Scale().init(x)
    begun = threading.Event()

    def slow(m, x):
        begun.set()
        time.sleep(0.3)
        return DEADLOCKS[inside](m, x)

    inner = jax.jit(slow)

    def other():
        begun.wait(timeout=HOUR)
        return elegy.value_and_grad(lambda x: inner(m2, x) + m2(x).sum(), modules=m2)(x)[0]

    one, other = run_together(lambda: inner(m, x), other)
    assert other == one + 3


def test_a_compiled_function_that_two_threads_call_for_the_first_time_is_traced_once():
    traces = []

    def slow(x):
        traces.append(1)
        time.sleep(0.2)
        return 2 * x

    function = elegy.jit(slow)
    results = run_together(*[lambda: np.asarray(function(X)).tolist()] * 3)
    assert results == [(2 * X).tolist()] * 3 and len(traces) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks on the host
# ---------------------------------------------------------------------------------------------------------------------


def reads(module):
    return values(module.get_parameters())


def flattens(module):
    return values(jax.tree.leaves(module))


def runs(module):
    with elegy.training_context(False):
        return np.asarray(module(np.ones((2, 3), np.float32))).tolist()


@pytest.mark.parametrize("host", [reads, flattens, runs])
@pytest.mark.parametrize("callback", ["pure_callback", "debug.callback"])
@pytest.mark.parametrize("how", ["elegy.jit of it", "elegy.jit that lists it", "uninitialised"])
def test_a_callback_may_use_the_module_that_is_threaded(host, callback, how):
    """It runs in a thread of XLA, as early as in the call that compiles."""
    seen = []

    class Tells(elegy.Module):
        def call(self, x):
            y = Linear(3)(x)
            return y if elegy.is_initializing() or not elegy.training() else told(self, y)

    def told(module, y):
        def look(y):
            seen.append(host(module))
            return np.asarray(y)

        if callback == "pure_callback":
            return jax.pure_callback(look, jax.ShapeDtypeStruct(y.shape, y.dtype), y)
        jax.debug.callback(look, y)
        return y

    module = Tells()
    if how != "uninitialised":
        module.init(X)
    compiled = elegy.jit(lambda x: module(x), modules=module) if "lists" in how else elegy.jit(module)

    def use():
        for _ in range(3):
            jax.block_until_ready(compiled(X))
        jax.effects_barrier()

    alone(use)
    assert len(seen) == 3 and int(module.linear.count) == 3
    if host is runs:
        np.testing.assert_allclose(seen[-1], np.ones((2, 3)) @ np.asarray(module.linear.w), rtol=1e-5)
    else:
        assert sorted(map(np.shape, seen[0])) == [(), (3, 3)]


@pytest.mark.parametrize("initialised", [False, True])
@pytest.mark.parametrize("callback", ["pure_callback", "debug.callback"])
def test_a_callback_on_another_thread_does_not_wait_for_the_compiling_call(initialised, callback):
    """Programs that are large enough run, and call back, in threads of XLA."""
    size, module, seen = 800, elegy.nn.Linear(800), []
    x = jnp.ones([size, size])
    if initialised:
        module.init(x)

    def look(_):
        seen.append(module.get_parameters()["b"].shape)
        return np.ones((size, size), np.float32)

    def f(x):
        y = module(x)
        if callback == "pure_callback":
            return jax.pure_callback(look, jax.ShapeDtypeStruct(y.shape, y.dtype), y)
        jax.debug.callback(look, y)
        return y

    alone(lambda: [jax.block_until_ready(elegy.jit(f, modules=module)(x)), jax.effects_barrier()])
    assert seen == [(size,)]
