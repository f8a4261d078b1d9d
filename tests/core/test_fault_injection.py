"""A fault at each hook, in each transform: nothing is left behind, and a retry gives what an untouched run gives.

Only what a user can see is compared. A run without a fault counts the points between the hooks; then an exception is
raised at each of them in turn, on one module, which must be after each as it was before the first.
"""

import contextlib
import copy
import functools
import gc
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import LostUpdateWarning

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(autouse=True)
def plain_calls() -> Iterator[None]:
    """Other tests check what the tracebacks of the package show. Here that would be most of the cost."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


class Fault(Exception):
    """An ordinary exception that nobody else raises."""


class Faults:
    """Counts the points that a run passes, and raises at one of them when asked."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.at: int | None = None
        self.kind: type[BaseException] = Fault

    def __call__(self, place: str) -> None:
        self.passed.append(place)
        if len(self.passed) - 1 == self.at:
            raise self.kind(f"at point {self.at}, {place}")

    def count(self) -> int:
        """How many points the runs since the last count have passed."""
        passed, self.passed = self.passed, []
        return len(passed)


tick = Faults()


# ---------------------------------------------------------------------------------------------------------------------
# A module that uses every hook
# ---------------------------------------------------------------------------------------------------------------------


class Small(elegy.Module):
    """A parameter, and a state that each call changes."""

    def __init__(self, name=None):
        super().__init__(name=name)

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], x.shape[-1]], initializer=jax.nn.initializers.normal())
        total = self.add_parameter("total", [], trainable=False)
        tick("between the parameters and the update of a submodule")
        self.update_parameter("total", total + jnp.mean(x) + 1)
        tick("after the update of a submodule")
        return jnp.dot(x, w)


def normal(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


def drawing(shape, dtype):
    tick("in an initializer, before it draws")
    value = jax.random.normal(elegy.next_rng_key(), shape, dtype)
    tick("in an initializer, after it drew")
    return value


class Everything(elegy.Module):
    """Every hook, with a point before and after each."""

    def __init__(self):
        self.scale = self.add_parameter("scale", [], initializer=jnp.ones)
        self.shared = Small()
        self.blocks = [self.shared]

    def call(self, x):
        tick("at the start")
        gain = self.add_parameter("gain", [], initializer=normal)
        tick("after add_parameter")
        bias = self.add_parameter("bias", x.shape[-1:], initializer=drawing)
        mean = self.add_parameter("mean", [], trainable=False)
        tick("before update_parameter")
        self.update_parameter("mean", 0.5 * mean + 0.5 * jnp.mean(x))
        tick("after update_parameter")
        made = Small(name="made")
        tick("after a module was made")
        x = made(x)
        for block in self.blocks:
            x = block(x)
        x = self.shared(x) * gain * self.scale
        tick("after the shared module, before add_loss")
        elegy.add_loss("size", jnp.mean(jnp.square(self.made.w)))
        tick("after add_loss")
        elegy.add_metric("mean", jnp.mean(x))
        tick("after add_metric")
        elegy.add_summary("inner", x)
        tick("after add_summary")
        key = elegy.next_rng_key()
        tick("after next_rng_key")
        x = x + jax.random.normal(key, x.shape)
        with elegy.training_context(not elegy.training()), elegy.name_context("part"):
            tick("in a training_context")
            elegy.add_loss("inner", jnp.mean(x))
        with elegy.hooks_context():
            elegy.add_loss("own", jnp.mean(x))
            tick("in a hooks_context")
        with elegy.rng_context(elegy.next_rng_key()):
            elegy.next_rng_key()
            tick("in an rng_context")
        tick("before parameters are read")
        read = self.get_parameters()
        tick("before set_parameters")
        self.set_parameters({"mean": read["mean"] + 1, "shared": {"total": self.shared.total * 2}})
        tick("after set_parameters")
        x = self.head(x)
        return x + jnp.broadcast_to(bias, x.shape)

    @elegy.compact
    def head(self, x):
        tick("at the start of a compact method")
        x = Small(name="last")(x)
        return x


class Probe(elegy.Module):
    """Tells where it runs."""

    def call(self):
        return elegy.get_static_context().names


# ---------------------------------------------------------------------------------------------------------------------
# What a user can see
# ---------------------------------------------------------------------------------------------------------------------

OF_CLASSES = {*dir(elegy.Module), "head"}


def bits(value: Any) -> Any:
    """An array in a form that `==` compares bit for bit."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.dtype.name, array.shape, array.tobytes()


def all_bits(tree: Any) -> list[Any]:
    return [bits(leaf) for leaf in jax.tree.leaves(tree)]


def attributes(module: elegy.Module) -> dict[str, Any]:
    """What is found under public names that the classes do not have."""
    names = [name for name in dir(module) if not name.startswith("_") and name not in OF_CLASSES]
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def modules_below(module: elegy.Module) -> list[elegy.Module]:
    found = [module]
    for node in found:
        found.extend(child for child in node.submodules.values() if not any(child is other for other in found))
    return found


def next_key() -> Any:
    """The key that would be drawn next; the stream stays where it is."""
    return bits(copy.deepcopy(elegy.get_rng())())


def collected() -> Any:
    summaries = [(path, all_bits(value)) for _, path, value in elegy.get_summaries() or []]
    declared = [
        {name: bits(value) for name, value in (get() or {}).items()} for get in (elegy.get_losses, elegy.get_metrics)
    ]
    return declared, summaries


@functools.cache
def probe() -> Probe:
    return Probe().init()


def where_modules_run() -> Any:
    """Names around a module that is called here, when one more was made; that one is nobody's."""
    assert elegy.get_module() is None
    Probe()
    with elegy.hooks_context(summaries=True):  # which keeps what the probe returns out of those around
        return probe()()


class View(NamedTuple):
    """Everything that is compared by `==`; objects are compared by their ids, and kept alive by `Before`."""

    names: list[list[str]]
    identities: list[int]
    arrays: list[Any]
    structure: Any
    parameters: Any
    initialized: list[bool]
    trainable: list[bool]
    stream: int
    next_key: Any
    context: Any
    collected: Any
    place: Any


def flat(value: Any) -> list[Any]:
    """What a list of modules holds, or the value itself."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def view(module: elegy.Module) -> tuple[View, Any]:
    """What there is to see, and the objects whose ids are a part of it."""
    nodes = modules_below(module)
    seen = [attributes(node) for node in nodes]
    parts = [part for names in seen for value in names.values() for part in flat(value)]
    leaves = jax.tree.leaves(module)
    parameters = module.get_parameters()
    kept = [*nodes, *parts, *leaves, *jax.tree.leaves(parameters)]
    return (
        View(
            [sorted(names) for names in seen],
            [id(part) for part in kept],
            all_bits(leaves),
            jax.tree.structure(module),
            (jax.tree.structure(parameters), jax.tree.structure(module.get_parameters(trainable=True))),
            [node.initialized for node in nodes],
            [node.trainable for node in nodes],
            id(elegy.get_rng()),
            next_key(),
            elegy.get_static_context(),
            collected(),
            where_modules_run(),
        ),
        kept,
    )


def assert_unchanged(before: View, module: elegy.Module, message: str, but: tuple[str, ...] = ()) -> None:
    now = view(module)[0]
    changed = [name for name in View._fields if name not in but and getattr(before, name) != getattr(now, name)]
    assert not changed, f"{message}: {changed}"


def outcome(result: Any, module: elegy.Module) -> Any:
    """What a run leaves behind, in a form that compares between two worlds."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(module)[0]]
    initialized = [node.initialized for node in modules_below(module)]
    return all_bits(result), paths, all_bits(module), initialized, next_key(), collected()


# ---------------------------------------------------------------------------------------------------------------------
# Where it runs
# ---------------------------------------------------------------------------------------------------------------------

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
SMALL = X[:2]


def loss_of(module, x):
    return jnp.mean(module(x) ** 2)


def with_module(function: Callable[..., Any]) -> Callable[..., Any]:
    """A pure function of a module that also returns the module."""
    return lambda module, x: (function(module, x), module)


def alone(module, x):
    """A pure function for stock JAX, which has a stream and a collection of its own."""
    with elegy.hooks_context(summaries=True):
        out, module = module.apply(x, rng=3)
        return out, module, elegy.get_losses(), elegy.get_metrics()


def update_of(m: Any) -> Callable[..., Any]:
    def update(x):
        lanes = elegy.vmap(lambda x: loss_of(m, x), modules=m, reduce_state="mean")
        loss, grads = elegy.value_and_grad(lambda x: jnp.mean(lanes(x)), modules=m)(x)
        m.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, m.get_parameters(trainable=True), grads))
        return loss

    return update


def scan_of(m: Any) -> Callable[..., Any]:
    inner = elegy.remat(lambda x: m(x), modules=m)
    return lambda xs: elegy.scan(lambda carry, x: (carry + jnp.mean(y := inner(x)), y), jnp.float32(0), xs, modules=m)


def cond_of(m: Any) -> Callable[..., Any]:
    return lambda x: elegy.cond(jnp.sum(x) > 100, lambda x: x, lambda x: m(x), jnp.asarray(x), modules=m)


def while_of(m: Any) -> Callable[..., Any]:
    def loop(x):
        def body(state):
            return state[0] + 1, m(state[1])

        return elegy.while_loop(lambda state: state[0] < 2, body, (jnp.int32(0), jnp.asarray(x)), modules=m)

    return loop


def apart(m: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: function(m, x)


# From a module to the function that is tried.
RUNS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "eager": lambda m: m,
    "init": lambda m: lambda x: jax.tree.leaves(m.init(x)),
    "init with a key": lambda m: lambda x: jax.tree.leaves(m.init(x, rng=jax.random.key(3))),
    "apply": lambda m: lambda x: m.apply(x),
    "apply with a key": lambda m: lambda x: m.apply(x, rng=3, training=True),
    "elegy.jit": lambda m: elegy.jit(lambda x: m(x), modules=m),
    "elegy.jit, pure": lambda m: apart(m, elegy.jit(with_module(lambda m, x: m(x)))),
    "elegy.value_and_grad": lambda m: elegy.value_and_grad(lambda x: loss_of(m, x), modules=m),
    "elegy.value_and_grad, pure": lambda m: apart(m, elegy.value_and_grad(loss_of)),
    "elegy.grad": lambda m: elegy.grad(lambda x: loss_of(m, x), modules=m),
    "elegy.grad, pure": lambda m: apart(m, elegy.grad(loss_of)),
    "elegy.vmap": lambda m: elegy.vmap(lambda x: m(x), modules=m, reduce_state="mean"),
    "elegy.scan": lambda m: lambda xs: elegy.scan(lambda c, x: (c + 1, m(x)), jnp.int32(0), xs, modules=m),
    "elegy.remat": lambda m: elegy.remat(lambda x: m(x), modules=m),
    "elegy.cond": cond_of,
    "elegy.while_loop": while_of,
    "elegy.fori_loop": lambda m: lambda x: elegy.fori_loop(0, 2, lambda _, x: m(x), jnp.asarray(x), modules=m),
    "jax.jit, pure": lambda m: apart(m, jax.jit(lambda m, x: alone(m, x))),
    "elegy.vmap in elegy.value_and_grad in elegy.jit": lambda m: elegy.jit(update_of(m), modules=m),
    "elegy.remat in elegy.scan in elegy.jit": lambda m: elegy.jit(scan_of(m), modules=m),
}
ONCE = {"init", "init with a key"}  # of a module that is initialised these do nothing


@contextlib.contextmanager
def world(name: str, when: str) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """A module and what is tried on it, amid contexts that hold something already."""
    tick.at = None
    summaries = name != "elegy.while_loop"  # there they are refused
    with (
        elegy.rng_context(7),
        elegy.training_context(False),
        elegy.name_context("around"),
        elegy.hooks_context(summaries=summaries),
    ):
        elegy.next_rng_key()
        elegy.add_loss("before", jnp.float32(1))
        elegy.add_metric("before", jnp.float32(2))
        elegy.add_summary("before", jnp.float32(3))
        module = Everything()
        run = RUNS[name](module)
        if when == "later":
            module(SMALL)
            run(SMALL)  # the next argument has another shape, and so it is traced again
        tick.count()
        yield module, run
    tick.at = None


@functools.cache
def untouched(name: str, when: str) -> tuple[int, Any]:
    """Of a run without a fault: how many points it passes, and what comes of it."""
    with world(name, when) as (module, run):
        result = run(X)
        return tick.count(), outcome(result, module)


def fail_at(point: int, kind: type[BaseException], run: Callable[..., Any]) -> str:
    tick.at, tick.kind = point, kind
    with pytest.raises(kind, match=f"at point {point},") as raised:
        run(X)
    tick.at = None
    assert tick.count() == point + 1
    return str(raised.value)


def try_all_points(name: str, when: str, kinds: list[type[BaseException]]) -> None:
    points, expected = untouched(name, when)
    assert points >= (20 if when == "later" or name in ONCE else 40)
    with world(name, when) as (module, run), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before, kept = view(module)
        for point in range(points):
            kind = kinds[point % len(kinds)]
            place = fail_at(point, kind, run)
            assert_unchanged(before, module, f"{name}, {when} call, {kind.__name__} {place}")
        del kept
        assert outcome(run(X), module) == expected
        gc.collect()
    assert not [warning for warning in caught if issubclass(warning.category, LostUpdateWarning)]


KINDS: list[type[BaseException]] = [Fault, KeyboardInterrupt]
EACH_KIND = ["eager", "init", "apply", "elegy.jit", "elegy.value_and_grad"]  # the rest is made of these


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EACH_KIND)
def test_a_fault_at_any_point_of_a_first_call_leaves_everything_as_it_was(name, kind):
    try_all_points(name, "first", [kind])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in EACH_KIND])
def test_alternate_faults_at_all_points_of_a_first_call_leave_everything_as_it_was(name):
    try_all_points(name, "first", KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in ONCE])
def test_alternate_faults_at_all_points_of_a_later_call_leave_everything_as_it_was(name):
    try_all_points(name, "later", KINDS[::-1])


def test_a_fault_in_the_first_step_of_fit_leaves_at_most_the_initial_parameters():
    """Before the first step the module is initialised, in a run of its own. A fault in that one leaves nothing; after
    it there are the initial parameters, and a retry goes on from them."""

    def fit(module):
        model = elegy.Model(module, loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        model.fit(X, X, batch_size=len(X), verbose=0)

    with world("eager", "first") as (module, _):
        fit(module)
        points, expected = tick.count(), outcome(None, module)
    with world("eager", "first") as (module, _):
        states = [view(module)[0]]
        for point in itertools.count():
            tick.at, tick.kind = point, Fault
            try:
                fit(module)
            except Fault as fault:
                tick.at = None
                tick.count()
                if module.initialized and len(states) == 1:
                    states.append(view(module)[0])
                # Training copies the arrays, to donate the copies.
                assert_unchanged(states[-1], module, f"Model.fit {fault}", but=("identities",))
            else:  # a module that is initialised passes fewer points than one that is not
                break
        assert len(states) == 2 and 40 <= point <= points
        assert outcome(None, module) == expected
