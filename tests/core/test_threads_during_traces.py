"""While a thread traces or runs a module, other threads and callbacks on the host see the arrays that are committed.

Nobody waits for the end of a trace: here traced functions wait for what other threads do with the module meanwhile.
"""

import copy
import faulthandler
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
# After so many seconds a test that hangs fails; no machine is so slow.
ESCAPE = 300.0


SAME_THREAD = "JAX runs this callback in the thread that traces, where the modules hold tracers"


# ---------------------------------------------------------------------------------------------------------------------
# Threads that meet
# ---------------------------------------------------------------------------------------------------------------------


class Stuck(Exception):
    """The other thread did not come, or did not come to an end."""


def wait_for(event: threading.Event) -> None:
    if not event.wait(ESCAPE):
        raise Stuck


def run_together(*functions: Callable[[], Any]) -> list[Any]:
    """One thread for each function; gives what they returned or raised."""
    results: list[Any] = [None] * len(functions)

    def run(index):
        try:
            results[index] = functions[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * ESCAPE)
        if thread.is_alive():
            faulthandler.dump_traceback()
            pytest.fail("a thread did not end")
    return results


def good(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class Here:
    """A place in the middle of `Inner.call`, where a test may have something happen."""

    def __init__(self) -> None:
        self.happens: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self.happens is not None:
            self.happens()


here = Here()


@pytest.fixture(autouse=True)
def nothing_happens() -> Iterator[None]:
    here.happens = None
    yield
    here.happens = None


def while_it_is_there(runs: Callable[[], Any], other: Callable[[], Any], initializing: bool = False) -> list[Any]:
    """What `runs` gives, and what `other` gives in another thread, which works while the first one is at `here`.

    - `initializing`: whether it is the init pass that is interrupted, or the run itself.
    """
    reached, done = threading.Event(), threading.Event()
    thread: list[int] = []

    def happens():
        if threading.get_ident() in thread and elegy.is_initializing() == initializing:
            reached.set()
            wait_for(done)

    def run():
        thread.append(threading.get_ident())
        return runs()

    def work():
        wait_for(reached)
        try:
            return other()
        finally:
            done.set()

    here.happens = happens
    return good(run_together(run, work))


class Inner(elegy.Module):
    """A layer with a state that training changes; after the change, tests have something happen."""

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], 2], initializer=jax.nn.initializers.normal())
        total = self.add_parameter("total", [], trainable=False)
        if elegy.training():
            self.update_parameter("total", total + 1)
        here()
        return jnp.dot(x, w.astype(x.dtype))


class Net(elegy.Module):
    """Scales a layer's outputs by a parameter of its own."""

    def __init__(self):
        self.inner = Inner()

    def call(self, x):
        scale = self.add_parameter("scale", [], initializer=jnp.ones)
        return self.inner(x) * scale.astype(x.dtype)


def loss_of(net: Any) -> Callable[..., Any]:
    return lambda x: jnp.sum(net(x))


def predict(net: Any) -> Any:
    with elegy.training_context(False):
        return np.asarray(net(X))


# ---------------------------------------------------------------------------------------------------------------------
# Readers
# ---------------------------------------------------------------------------------------------------------------------

# What runs a module, in the middle of which another thread reads it.
PLACES: dict[str, Callable[[Any], Any]] = {
    "an eager call": lambda net: net(X),
    "elegy.jit": lambda net: elegy.jit(lambda x: net(x), modules=net)(X),
    "module.jit": lambda net: net.jit(X),
    "value_and_grad": lambda net: elegy.value_and_grad(loss_of(net), modules=net)(X),
    "value_and_grad in elegy.jit": lambda net: elegy.jit(elegy.value_and_grad(loss_of(net), modules=net), modules=net)(
        X
    ),
    "vmap": lambda net: elegy.vmap(lambda x: net(x), modules=net, reduce_state="mean")(X),
    "scan": lambda net: elegy.scan(lambda carry, x: (carry, net(x)), 0, X, modules=net),
    "remat": lambda net: elegy.remat(lambda x: net(x), modules=net)(X),
    "cond": lambda net: elegy.cond(True, lambda x: net(x), lambda x: x[:, :2], jnp.asarray(X), modules=net),
    "jax.jit of a pure function": lambda net: jax.jit(lambda net, x: (net(x), net))(net, X),
    "apply": lambda net: net.apply(X),
}


# Ways to read all arrays of a module: its scale, the matrix and the state, in this order.
READERS: dict[str, Callable[[Any], list[Any]]] = {
    "attributes": lambda net: [net.scale, net.inner.w, net.inner.total],
    "get_parameters": lambda net: (lambda p: [p["scale"], p["inner"]["w"], p["inner"]["total"]])(net.get_parameters()),
    "jax.tree.leaves": lambda net: by_name(net),
    "jax.tree.map": lambda net: by_name(jax.tree.map(lambda leaf: leaf, net)),
    "copy": lambda net: by_name(net.copy()),
    "deepcopy": lambda net: by_name(copy.deepcopy(net)),
    "pickle": lambda net: by_name(pickle.loads(pickle.dumps(net))),
    "select": lambda net: [
        jax.tree.leaves(elegy.select(net, name).get())[0] for name in ("scale", "inner/w", "inner/total")
    ],
    "partition": lambda net: by_name(elegy.combine(*elegy.partition(net))),
}


def by_name(net: Any) -> list[Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(net)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    return [leaves[name] for name in (".scale", ".inner.w", ".inner.total")]


def plain(arrays: list[Any]) -> list[Any]:
    """Dtypes and values; what is no array of JAX on a device, as a tracer is none, does not pass."""
    assert not any(isinstance(array, jax.core.Tracer) for array in arrays)
    return [(str(array.dtype), np.asarray(array).tolist()) for array in arrays]


# Each reader in one place, and each place with one reader.
READ = [("elegy.jit", reader) for reader in READERS] + [(place, "jax.tree.leaves") for place in PLACES]


@pytest.mark.parametrize(("place", "reader"), dict.fromkeys(READ))
def test_a_reader_gets_the_committed_arrays_at_once(place, reader):
    net = Net().init(X)
    committed = plain(READERS["attributes"](net))
    assert committed[2] == ("float32", 0.0)
    _, found = while_it_is_there(lambda: PLACES[place](net), lambda: plain(READERS[reader](net)))
    assert found == committed


@pytest.mark.parametrize("place", PLACES)
def test_the_very_arrays_are_read(place):
    """No copy, such as one that went through a cast or a trace."""
    net = Net().init(X)
    committed = READERS["attributes"](net)
    _, found = while_it_is_there(lambda: PLACES[place](net), lambda: READERS["attributes"](net))
    assert all(a is b for a, b in zip(found, committed, strict=True))


@pytest.mark.parametrize("reader", ["attributes", "get_parameters", "copy"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_reader_never_sees_the_casts_of_a_dtype_policy(compiled, reader):
    net = Net().init(X)
    net.dtype_policy = elegy.DtypePolicy(compute_dtype=jnp.bfloat16, output_dtype=jnp.float32)
    committed = plain(READERS["attributes"](net))
    seen: list[str] = []

    def run():
        return elegy.jit(net)(X) if compiled else net(X)

    def read():
        found = plain(READERS[reader](net))
        seen.extend(dtype for dtype, _ in found)
        return found

    _, found = while_it_is_there(run, read)
    assert found == committed and seen == ["float32"] * 3


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [elegy.nn.SpectralNormalization, elegy.nn.WeightNormalization])
def test_a_reader_never_sees_the_weights_that_a_normalisation_computes(kind, compiled):
    layer = kind(Inner())
    layer.init(X)
    layer.set_parameters({"layer": {"w": layer.layer.w * 3}})
    committed = plain([layer.layer.w, layer.layer.total])

    def run():
        return elegy.jit(layer)(X) if compiled else layer(X)

    _, found = while_it_is_there(run, lambda: plain([layer.layer.w, layer.layer.total]))
    assert found == committed


FIRST_CALLS: dict[str, Callable[[Any], Any]] = {
    "init": lambda net: net.init(X),
    "an eager call": lambda net: net(X),
    "elegy.jit": lambda net: elegy.jit(lambda x: net(x), modules=net)(X),
    "value_and_grad": lambda net: elegy.value_and_grad(loss_of(net), modules=net)(X),
}


@pytest.mark.parametrize("how", FIRST_CALLS)
def test_a_reader_during_an_init_pass_sees_what_is_committed(how):
    """The layer was initialised before, and the module around it is being initialised."""
    net = Net()
    with elegy.training_context(False):
        net.inner.init(X)
    committed = [net.inner.w, net.inner.total]

    def read():
        return [net.inner.w, net.inner.total], jax.tree.leaves(net.get_parameters()), jax.tree.leaves(net)

    _, (found, parameters, leaves) = while_it_is_there(lambda: FIRST_CALLS[how](net), read, initializing=True)
    assert all(a is b for a, b in zip(found, committed, strict=True))
    plain(parameters + leaves)
    assert net.initialized and {id(array) for array in committed} <= {id(leaf) for leaf in parameters}


@pytest.mark.parametrize("how", FIRST_CALLS)
def test_a_reader_during_the_first_pass_of_all_sees_no_tracers(how):
    net = Net()

    def read():
        return net.inner.initialized, jax.tree.leaves(net), jax.tree.leaves(net.get_parameters()), repr(net)

    _, (initialized, leaves, parameters, text) = while_it_is_there(lambda: FIRST_CALLS[how](net), read, True)
    assert not initialized
    plain(leaves + parameters)
    assert "Tracer" not in text
    assert len(plain(READERS["attributes"](net))) == 3


# ---------------------------------------------------------------------------------------------------------------------
# First calls of two threads
# ---------------------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], Any]] = {
    "eagerly": lambda net: net(X),
    "elegy.jit": lambda net: elegy.jit(lambda x: net(x), modules=net)(X),
    "value_and_grad": lambda net: elegy.value_and_grad(lambda x: (jnp.sum(y := net(x)), y), modules=net)(X)[0][1],
}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("first", CALLS)
@pytest.mark.parametrize("second", CALLS)
def test_two_first_calls_end_with_one_set_of_parameters(first, second, together):
    """The streams of the threads differ, and so would the parameters; `together`, both are in their passes at once."""

    def call(net, how, seed):
        def run():
            elegy.set_rng(seed)
            with elegy.training_context(False):
                y = np.asarray(CALLS[how](net))
                return y, plain(READERS["get_parameters"](net))

        return run

    alone = []
    for how, seed in ((first, 1), (second, 2)):
        alone.append(good(run_together(call(Net(), how, seed)))[0][1])
    assert alone[0] != alone[1]

    net, barrier, came = Net(), threading.Barrier(2), set()

    def happens():
        if elegy.is_initializing() and threading.get_ident() not in came:
            came.add(threading.get_ident())
            barrier.wait(ESCAPE)

    here.happens = happens if together else None
    (y, one), (z, other) = good(run_together(call(net, first, 1), call(net, second, 2)))
    here.happens = None
    kept = plain(READERS["attributes"](net))
    assert one == other == kept and kept in alone
    np.testing.assert_allclose(y, X @ np.asarray(net.inner.w), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z, y, rtol=1e-6)
    assert sorted(net.get_parameters()) == ["inner", "scale"] and len(jax.tree.leaves(net)) == 3


# ---------------------------------------------------------------------------------------------------------------------
# Training in one thread, predicting in another
# ---------------------------------------------------------------------------------------------------------------------


class Pair(elegy.Module):
    """Two arrays that training keeps equal, so that a mixture of two steps shows."""

    def __init__(self):
        self.a = self.add_parameter("a", [])
        self.b = self.add_parameter("b", [])
        self.steps = self.add_parameter("steps", [], jnp.int32, trainable=False)

    def call(self, x):
        if elegy.training():
            self.update_parameter("steps", self.steps + 1)
        return x * (self.a - self.b)


def step_of(pair: Any) -> Callable[..., Any]:
    def step(x):
        _, grads = elegy.value_and_grad(loss_of(pair), modules=pair)(x)
        parameters = pair.get_parameters(trainable=True)
        pair.set_parameters(jax.tree.map(lambda p, g: p + jnp.abs(g), parameters, grads))

    return step


# An eager call is none of them: it reads an array when it needs it.
WHOLE = ["elegy.jit", "apply", "get_parameters", "copy", "jax.jit"]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", WHOLE)
def test_what_is_read_during_training_is_that_of_a_finished_step(how, compiled):
    pair, done = Pair(), threading.Event()
    pair.init(jnp.ones([]))
    steps = 12
    predictors = {
        "elegy.jit": elegy.jit(pair),
        "get_parameters": lambda x: (lambda found: found["a"] - found["b"])(pair.get_parameters()),
        "copy": lambda x: pair.copy()(x),
        "apply": lambda x: pair.apply(x, training=False)[0],
        "jax.jit": lambda x: jax.jit(lambda pair, x: pair(x))(pair, x),
    }

    def train():
        step = elegy.jit(step_of(pair), modules=pair) if compiled else step_of(pair)
        try:
            for _ in range(steps):
                step(jnp.ones([]))
        finally:
            done.set()
        return pair.steps.item()

    def keep_predicting():
        found, rounds = set(), 0
        with elegy.training_context(False):
            while not done.is_set() or rounds < 5:
                found.add(float(predictors[how](jnp.ones([]))))
                rounds += 1
        return found

    counted, found = good(run_together(train, keep_predicting))
    assert counted == steps and pair.a == pair.b == steps
    assert found == {0.0}


def test_a_prediction_in_the_middle_of_a_training_step_uses_the_weights_before_it():
    net = Net().init(X)
    before = predict(net)

    def train():
        elegy.jit(lambda x: step(x), modules=net)(X)

    def step(x):
        net.set_parameters({"scale": net.scale * 2})
        return net(x)

    _, found = while_it_is_there(train, lambda: predict(net))
    np.testing.assert_array_equal(found, before)
    np.testing.assert_allclose(predict(net), 2 * before, rtol=1e-6)
    assert net.inner.total == 1


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks on the host
# ---------------------------------------------------------------------------------------------------------------------


def ask_purely(look: Callable[[Any], Any], y: Any) -> Any:
    return jax.pure_callback(look, jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="sequential")


def ask_in_order(look: Callable[[Any], Any], y: Any) -> Any:
    return jax.experimental.io_callback(look, jax.ShapeDtypeStruct(y.shape, y.dtype), y, ordered=True)


def tell(look: Callable[[Any], Any], y: Any) -> Any:
    jax.debug.callback(look, y)
    return y


CALLBACKS = {"pure_callback": ask_purely, "io_callback": ask_in_order, "debug.callback": tell}
# What runs with a callback, which is in the function around the module.
WITH_CALLBACK: dict[str, Callable[[Any, Any], Any]] = {
    "an eager function": lambda f, net: f,
    "elegy.jit": lambda f, net: elegy.jit(f, modules=net),
    "remat in elegy.jit": lambda f, net: elegy.jit(elegy.remat(f, modules=net), modules=net),
    "scan": lambda f, net: lambda x: elegy.scan(lambda carry, x: (carry, f(x)), 0, x[None], modules=net),
    "value_and_grad": lambda f, net: elegy.value_and_grad(lambda x: jnp.sum(f(x)), modules=net),
    "value_and_grad in elegy.jit": lambda f, net: elegy.jit(
        elegy.value_and_grad(lambda x: jnp.sum(f(x)), modules=net), modules=net
    ),
}


def is_possible(how: str, callback: str) -> bool:
    """JAX differentiates a `debug.callback` only, and does not recompute an ordered effect."""
    return callback == "debug.callback" or not ("grad" in how or (callback, how[:5]) == ("io_callback", "remat"))


IN_THE_THREAD = ("value_and_grad", "debug.callback")
ASKED = [(how, callback) for how in WITH_CALLBACK for callback in CALLBACKS if is_possible(how, callback)]


@pytest.mark.parametrize(
    ("how", "callback"),
    [
        pytest.param(*case, marks=pytest.mark.xfail(strict=True, reason=SAME_THREAD) if case == IN_THE_THREAD else ())
        for case in ASKED
    ],
)
def test_a_callback_reads_no_tracers(how, callback):
    """Also in the call that traces and compiles. The state may be that before or after the step."""
    net = Net().init(X)
    w, scale, seen = np.asarray(net.inner.w), np.asarray(net.scale), []

    def look(y):
        leaves = [*jax.tree.leaves(net), *jax.tree.leaves(net.get_parameters()), net.inner.w, net.inner.total]
        assert not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        seen.append([np.asarray(net.inner.w).tolist(), np.asarray(net.scale).tolist()])
        return np.asarray(y)

    run = WITH_CALLBACK[how](lambda x: CALLBACKS[callback](look, net(x)), net)

    def use():
        for _ in range(3):
            jax.block_until_ready(run(X))
        jax.effects_barrier()

    good(run_together(use))
    assert len(seen) >= 3 and all(found == [w.tolist(), scale.tolist()] for found in seen)
    assert net.inner.total == 3


# ---------------------------------------------------------------------------------------------------------------------
# Threads that begin inside a trace
# ---------------------------------------------------------------------------------------------------------------------
INSIDE = ["attributes", "jax.tree.leaves", "get_parameters"]


@pytest.mark.parametrize("place", PLACES)
def test_a_thread_that_begins_inside_a_trace_reads_what_is_committed(place):
    net = Net().init(X)
    committed = plain(READERS["attributes"](net))
    found: list[Any] = []

    def happens():
        if not elegy.is_initializing() and not found:
            found.append(None)
            found[0] = good(run_together(lambda: [plain(READERS[reader](net)) for reader in INSIDE]))[0]

    here.happens = happens
    good(run_together(lambda: PLACES[place](net)))
    assert found == [[committed] * len(INSIDE)]


STARTS = ["an eager call", "elegy.jit", "value_and_grad", "scan", "jax.jit of a pure function"]


@pytest.mark.parametrize(
    ("place", "call"),
    [(place, call) for place in STARTS for call in CALLS],
)
def test_a_thread_that_begins_inside_a_trace_calls_the_module(place, call):
    net = Net().init(X)
    expected = predict(net)
    found: list[Any] = []

    def inside():
        with elegy.training_context(False):
            return np.asarray(CALLS[call](net))

    def happens():
        if not elegy.is_initializing() and not found:
            found.append(None)
            found[0] = good(run_together(inside))[0]

    here.happens = happens
    good(run_together(lambda: PLACES[place](net)))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(predict(net), expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Two traces at once, and one that ends early
# ---------------------------------------------------------------------------------------------------------------------


PAIRS = [(first, second) for first in CALLS for second in CALLS]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_threads_are_in_the_middle_of_one_module_at_once(first, second):
    net, barrier, came = Net().init(X), threading.Barrier(2), set()
    expected = predict(net)
    w = net.inner.w

    def happens():
        if threading.get_ident() not in came:
            came.add(threading.get_ident())
            barrier.wait(ESCAPE)

    def run(how):
        def call():
            with elegy.training_context(False):
                return np.asarray(CALLS[how](net))

        return call

    here.happens = happens
    for found in good(run_together(run(first), run(second))):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert net.inner.w is w and net.inner.total == 0


@pytest.mark.parametrize(("fails", "other"), PAIRS)
def test_an_interrupt_in_the_middle_leaves_the_other_thread_alone(fails, other):
    """Both are in the middle of the module; one of them fails there, and the other one goes on when it has failed."""
    net, barrier, failed = Net().init(X), threading.Barrier(2), threading.Event()
    expected, committed = predict(net), READERS["attributes"](net)
    failing: list[int] = []
    came: set[int] = set()

    def happens():
        me = threading.get_ident()
        if me in came:
            return
        came.add(me)
        barrier.wait(ESCAPE)
        if me in failing:
            raise KeyboardInterrupt
        wait_for(failed)

    def fail():
        failing.append(threading.get_ident())
        try:
            return CALLS[fails](net)
        finally:
            failed.set()

    def go_on():
        with elegy.training_context(False):
            return np.asarray(CALLS[other](net)), elegy.get_module(), elegy.training()

    here.happens = happens
    error, result = run_together(fail, go_on)
    here.happens = None
    assert isinstance(error, KeyboardInterrupt)
    found, module, mode = good([result])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert module is None and not mode
    assert all(a is b for a, b in zip(READERS["attributes"](net), committed, strict=True))
    np.testing.assert_array_equal(predict(net), expected)


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_while_another_thread_reads(place):
    net = Net().init(X)
    committed = READERS["attributes"](net)
    reached, read = threading.Event(), threading.Event()

    def happens():
        if threading.current_thread().name == "interrupted":
            reached.set()
            wait_for(read)
            raise KeyboardInterrupt

    def interrupted():
        threading.current_thread().name = "interrupted"
        return PLACES[place](net)

    def reads():
        wait_for(reached)
        try:
            return READERS["attributes"](net)
        finally:
            read.set()

    here.happens = happens
    error, found = run_together(interrupted, reads)
    assert isinstance(error, KeyboardInterrupt)
    assert all(a is b for a, b in zip(good([found])[0], committed, strict=True))
    assert all(a is b for a, b in zip(READERS["attributes"](net), committed, strict=True))
