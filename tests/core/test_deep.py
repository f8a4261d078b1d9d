"""Deep and wide models: forty levels under Python's recursion limit, and a cost that is linear in the modules.

Costs are counted, never timed: each Python and C function that is called counts one.
"""

import copy
import functools
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

DEEP = 40  # levels that must work under Python's own recursion limit
ROOT = Path(__file__).parents[2]
X = np.linspace(0.5, 1.5, 3, dtype=np.float32)
# XLA's fusion takes minutes over a chain of many additions, whoever writes it.
QUICKLY = {"xla_disable_hlo_passes": "fusion"}


class Leaf(elegy.Module):
    def call(self, x):
        return x + self.add_parameter("w", [])


class Counting(elegy.Module):
    """A leaf with state."""

    def call(self, x):
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        self.update_parameter("count", count + 1)
        return x + self.add_parameter("w", [])


class Around(elegy.Module):
    """A module around another one that exists already."""

    def __init__(self, inner):
        self.inner = inner

    def call(self, x):
        return self.inner(x) + self.add_parameter("w", [])


class Nest(elegy.Module):
    """A module that creates the next one in its call."""

    def __init__(self, depth):
        self.depth = depth

    def call(self, x):
        if self.depth > 1:
            x = Nest(self.depth - 1)(x)
        return x + self.add_parameter("w", [])


class List(elegy.Module):
    def __init__(self, leaf, n):
        self.layers = [leaf() for _ in range(n)]

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Grandchildren(elegy.Module):
    """Runs what its children hold, and not the children."""

    def __init__(self, n):
        self.layers = [Around(Counting()) for _ in range(n // 2)]

    def call(self, x):
        for layer in self.layers:
            x = layer.inner(x)
        return x


class Created(elegy.Module):
    def __init__(self, n):
        self.n = n

    def call(self, x):
        for _ in range(self.n):
            x = Leaf()(x)
        return x


class Parameters(elegy.Module):
    def __init__(self, n):
        self.n = n

    def call(self, x):
        for index in range(self.n):
            x = x + self.add_parameter(f"w{index}", [])
        return x


def nested(n):
    module = Leaf()
    for _ in range(n - 1):
        module = Around(module)
    return module


def nested_with_state(n):
    module = Counting()
    for _ in range(n - 1):
        module = Around(module) if _ % 2 else AroundCounting(module)
    return module


class AroundCounting(elegy.Module):
    def __init__(self, inner):
        self.inner = inner

    def call(self, x):
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        self.update_parameter("count", count + 1)
        return self.inner(x) + self.add_parameter("w", [])


class Reported(elegy.Module):
    def __init__(self, inner):
        self.inner = inner

    def call(self, x):
        elegy.add_metric("size", jnp.sum(x))
        elegy.add_loss("size", jnp.sum(x))
        x = x if self.inner is None else self.inner(x)
        return x + self.add_parameter("w", [])


def reporting(n):
    """Modules that declare losses and metrics, in a list."""
    return List(lambda: Reported(None), n)


def sharing(n):
    """Siblings that all hold one module; it is one module and not n."""
    shared = Leaf()
    return List(lambda: Around(shared), n)


# Each has about n modules, or parameters, of one scalar weight.
MODELS: dict[str, Callable[[int], Any]] = {
    "nested": nested,
    "nested by creation": Nest,
    "nested, with state": nested_with_state,
    "siblings": lambda n: List(Leaf, n),
    "siblings, with state": lambda n: List(Counting, n),
    "siblings by creation": Created,
    "grandchildren": Grandchildren,
    "siblings that report": reporting,
    "siblings that share": sharing,
    "parameters": Parameters,
}
NESTED = {"nested", "nested by creation", "nested, with state"}


# ---------------------------------------------------------------------------------------------------------------------
# Forty levels
# ---------------------------------------------------------------------------------------------------------------------


def loss_of(y):
    return jnp.mean((y - 0.5) ** 2)


def in_a_new_process(expression: str) -> str:
    """What the expression prints, where the checker of the tests does not make each call five times as deep."""
    program = f"import tests.core.test_deep as t; {expression}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, f"exit {run.returncode}: {run.stderr[-3000:]}"
    return run.stdout


def test_forty_levels_work_under_the_recursion_limit_of_python():
    assert in_a_new_process("t.use('nested'); t.use('nested by creation')") == "done\ndone\n"


def use(name: str) -> None:
    limit = sys.getrecursionlimit()
    assert limit == 1000
    model = MODELS[name](DEEP)
    lazy, eager = MODELS[name](DEEP), MODELS[name](DEEP)
    model.init(X)
    np.testing.assert_allclose(eager(X), X)
    again = jax.tree.map(lambda leaf: leaf, model)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]]
    assert len(set(paths)) == DEEP
    for other in (model.copy(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert jax.tree.structure(other) == jax.tree.structure(model)
        np.testing.assert_allclose(other(X), X)
    assert type(model).__name__ in repr(model)

    def update(x):
        loss, grads = elegy.value_and_grad(lambda x: loss_of(lazy(x)), modules=lazy)(x)
        parameters = lazy.get_parameters(trainable=True)
        lazy.set_parameters(jax.tree.map(lambda p, g: p - 1e-3 * g, parameters, grads))
        return loss

    compiled = elegy.jit(update, modules=lazy)
    losses = [float(compiled(X)) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]

    @jax.jit
    def step(model, x):
        def loss(params, rest):
            return loss_of(elegy.combine(params, rest)(x))

        params, rest = elegy.partition(model)
        loss, grads = jax.value_and_grad(loss)(params, rest)
        return loss, elegy.combine(jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), rest)

    for expected in losses:
        loss, model = step(model, X)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    with elegy.typechecker(beartype.beartype):
        np.testing.assert_allclose(MODELS[name](DEEP)(X), X)
    assert sys.getrecursionlimit() == limit
    print("done")


# ---------------------------------------------------------------------------------------------------------------------
# Linear cost
# ---------------------------------------------------------------------------------------------------------------------


def operations(function: Callable[[], Any]) -> int:
    """How many functions are called while `function` runs."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


def warm(function):
    """The operation on a model for which everything was done once already: what each later step costs."""
    function()
    return function


def train(model):
    def loss(x):
        return loss_of(model(x))

    return lambda: elegy.value_and_grad(loss, modules=model)(X)


@functools.cache
def started(make, n):
    """For operations that leave a model as it is."""
    return make(n).init(X)


# From a way to make a model and its size to the operation that is counted.
OPERATIONS = {
    "construct": lambda make, n: lambda: make(n),
    "init": lambda make, n: (model := make(n)) and (lambda: model.init(X)),
    "first flatten": lambda make, n: (model := make(n).init(X)) and (lambda: jax.tree.leaves(model)),
    "flatten": lambda make, n: (model := started(make, n)) and warm(lambda: jax.tree.leaves(model)),
    "flatten and unflatten": lambda make, n: (model := started(make, n)) and warm(lambda: jax.tree.map(id, model)),
    "call": lambda make, n: (model := started(make, n)) and warm(lambda: model(X)),
    "call in a hooks_context": lambda make, n: (model := started(make, n)) and warm(lambda: collect(model)),
    "get_parameters": lambda make, n: (
        (model := started(make, n)) and warm(lambda: model.get_parameters(trainable=True))
    ),
    "set_parameters": lambda make, n: (
        (model := started(make, n)) and warm(lambda: model.set_parameters(model.get_parameters()))
    ),
    "partition": lambda make, n: (model := started(make, n)) and warm(lambda: elegy.partition(model)),
    "elegy.jit, first call": lambda make, n: (
        (model := make(n)) and (lambda: elegy.jit(model, compiler_options=QUICKLY)(X))
    ),
    "elegy.jit, later call": lambda make, n: warm(functools.partial(elegy.jit(make(n), compiler_options=QUICKLY), X)),
    "elegy.value_and_grad": lambda make, n: (model := started(make, n)) and warm(train(model)),
    "freeze": lambda make, n: (model := make(n).init(X)) and (lambda: setattr(model, "trainable", False)),
    "deepcopy": lambda make, n: (model := started(make, n)) and (lambda: copy.deepcopy(model)),
}


def collect(model):
    with elegy.hooks_context(summaries=True):
        return model(X)


def measure() -> dict[str, dict[str, tuple[int, int]]]:
    """For each kind of model and each operation, the calls for n and for 2n modules."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for name, make in MODELS.items():
        n = DEEP // 2 if name in NESTED else 32
        counts[name] = {}
        for operation, prepare in OPERATIONS.items():
            prepare(make, 5)()  # what JAX and Python do once
            counts[name][operation] = operations(prepare(make, n)), operations(prepare(make, 2 * n))
    return counts


@pytest.mark.slow
def test_the_cost_is_linear_in_the_number_of_modules():
    """In a process of its own: the checker of the tests would be counted, and is slow."""
    counts = json.loads(in_a_new_process("import json; print(json.dumps(t.measure()))"))
    constant = 500  # what does not depend on the number of modules
    slow = {
        (name, operation): f"{once} calls for n modules, {twice} for 2n"
        for name, of_model in counts.items()
        for operation, (once, twice) in of_model.items()
        if twice > 2.3 * once + constant
    }
    assert not slow


def test_a_cached_call_of_elegy_jit_does_no_work_for_each_module():
    """The floor: in steady state the Python work is reading the leaves from a list."""
    counts = []
    for n in (50, 500):
        compiled = elegy.jit(List(Leaf, n), compiler_options=QUICKLY)
        compiled(X)
        compiled(X)
        counts.append(operations(lambda compiled=compiled: compiled(X)))
    assert counts[1] <= counts[0] + 20, counts


# ---------------------------------------------------------------------------------------------------------------------
# Recursion without end
# ---------------------------------------------------------------------------------------------------------------------

HEADER = """
import sys, threading
import jax, jax.numpy as jnp
import elegy

x = jnp.ones(3)

class Calls(elegy.Module):
    def call(self, x):
        return self(x)

class Creates(elegy.Module):
    def call(self, x):
        return Creates()(x)

class Constructs(elegy.Module):
    def __init__(self):
        self.inner = Constructs()
    def call(self, x):
        return x

class Twice(elegy.Module):
    def __init__(self):
        self.inner = None
    def call(self, x):
        return x

class Ping(elegy.Module):
    def __init__(self):
        self.functions = []
    @elegy.compact
    def ping(self, x):
        return self.pong(x)
    @elegy.compact
    def pong(self, x):
        return self.ping(x)
    def call(self, x):
        return self.ping(x)

class Later(elegy.Module):
    def call(self, x, forever=False):
        y = x + self.add_parameter("w", [])
        return self(y, forever=True) if forever else y

def expect(function):
    try:
        function()
    except RecursionError as error:
        assert len(str(error)) < 10000 and sys.getrecursionlimit() == 1000
        print("RecursionError", flush=True)
    else:
        print("nothing", flush=True)
"""

ENDLESS = {
    "a call that calls itself": "expect(lambda: Calls()(x))",
    "a call that creates its own class": "expect(lambda: Creates()(x))",
    "a constructor that constructs its own class": "expect(Constructs)",
    "two methods that call each other": "expect(lambda: Ping()(x))",
    "in elegy.jit": "expect(lambda: elegy.jit(Calls())(x))",
    "in elegy.value_and_grad": "expect(lambda: elegy.value_and_grad(Creates())(x))",
    "after the first call": "m = Later(); m(x); expect(lambda: m(x, forever=True))",
    "after the first call, in elegy.jit": (
        "m = Later(); m(x); expect(lambda: elegy.jit(lambda x: m(x, True), modules=m)(x))"
    ),
    "in jax.jit": "m = Later(); m(x); expect(lambda: jax.jit(lambda m, x: m(x, True))(m, x))",
    "in a thread": "t = threading.Thread(target=expect, args=(lambda: Calls()(x),)); t.start(); t.join()",
    "twice": "m = Calls(); expect(lambda: m(x)); assert not m.initialized",
    "and then a good call": "m = Later(); m(x); expect(lambda: m(x, True)); assert (m(x) == x).all()",
}


def test_endless_recursion_is_an_error_and_no_crash():
    """Python's own error, each time. In a process of its own, since one that crashes would take all tests with it."""
    program = HEADER + "".join(f"print({name!r}, end=': ')\n{use}\n" for name, use in ENDLESS.items())
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"exit {run.returncode}: {run.stdout} {run.stderr[-2000:]}"
    lines = dict(line.split(": ") for line in run.stdout.splitlines())
    assert lines == dict.fromkeys(ENDLESS, "RecursionError")


@pytest.mark.parametrize("held", ["Child(self)", "self", "[self]", "{'me': (1, self)}", "[Child(self)]"])
def test_a_module_that_holds_itself_is_refused(held):
    class Child(elegy.Module):
        def __init__(self, parent):
            self.parent = parent

    class Holds(elegy.Module):
        def __init__(self):
            self.held = eval(held, {"self": self, "Child": Child})

    with pytest.raises(elegy.errors.StaticValueError, match="itself"):
        Holds()
