"""Copies in memory and through bytes: independent of their original, and modules in every respect."""

import copy
import dataclasses
import gc
import pickle
import subprocess
import sys
import textwrap
import typing as tp

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


class Linear(elegy.Module):
    def __init__(self, size, name=None):
        super().__init__(name=name)
        self.size = size

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.size], initializer=jax.nn.initializers.normal())
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        self.update_parameter("count", count + 1)
        return x @ w


class Net(elegy.Module):
    """Everything that an attribute may be."""

    def __init__(self):
        self.scale = self.add_parameter("scale", [], initializer=jnp.ones)
        self.layers = [Linear(3), {"b": Linear(3), "a": (Linear(3), 7)}]
        self.shared = self.layers[0]
        self.array = jnp.arange(3.0)
        self.numpy = np.arange(3.0)
        self.key = jax.random.key(0)
        self.half = jnp.ones(2, jnp.bfloat16)
        self.foreign = eqx.nn.Linear(3, 3, key=jax.random.key(1))
        self.activation = jnp.tanh
        self.config = {"rates": [0.1, 0.2], "dtype": jnp.dtype("float32")}

    def call(self, x):
        x = self.layers[0](x) + self.layers[1]["a"][0](x) + self.layers[1]["b"](x)
        x = jax.vmap(self.foreign)(x) + jax.random.normal(elegy.next_rng_key(), x.shape)
        return self.activation(Linear(2, name="out")(x)) * self.scale


def local_class():
    class Local(elegy.Module):
        def call(self, x):
            return Linear(2)(x) * self.add_parameter("scale", [], initializer=jnp.ones)

    return Local


COPIES = {
    "module.copy": lambda m: m.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle, oldest protocol": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
    "cloudpickle": lambda m: cloudpickle.loads(cloudpickle.dumps(m)),
    "jax.tree.map": lambda m: jax.tree.map(lambda leaf: leaf, m),
    "copy of a copy": lambda m: copy.deepcopy(pickle.loads(pickle.dumps(m.copy()))),
}


def raw(leaf):
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return (str(leaf.dtype), np.asarray(leaf).tobytes(), leaf.shape)


def bits(tree):
    return [raw(leaf) for leaf in jax.tree.leaves(tree)]


def prepared(state):
    net = Net()
    if state != "fresh":
        net(X)
    if state == "frozen":
        net.layers[1]["b"].trainable = False
    if state == "reset":
        net.reset()
    if state == "compiled":
        net.jit(X)
    return net


# The copies of other states in the ways that have code of their own.
@pytest.mark.parametrize(
    ("state", "how"),
    [("called", how) for how in COPIES]
    + [
        (state, how)
        for state in ("fresh", "frozen", "reset", "compiled")
        for how in ("module.copy", "copy.deepcopy", "pickle", "jax.tree.map")
    ],
)
def test_a_copy_is_equal_and_independent(how, state):
    net = prepared(state)
    before, structure = bits(net), jax.tree.structure(net)
    other = COPIES[how](net)
    assert type(other) is type(net) and other is not net
    assert bits(other) == before
    assert jax.tree.structure(other) == structure
    assert other.initialized == net.initialized
    assert list(vars(other)) == list(vars(net))
    assert jax.tree.structure(other.get_parameters()) == jax.tree.structure(net.get_parameters())
    assert bits(elegy.partition(other)[0]) == bits(elegy.partition(net)[0])
    assert other.activation is net.activation and other.config == net.config and other.layers[1]["a"][1] == 7
    # Sharing is kept, inside the copy.
    assert other.shared is other.layers[0] and other.shared is not net.shared
    # The same outputs from the same key, and nothing of it reaches the original.
    np.testing.assert_array_equal(other.copy().apply(X, rng=3)[0], net.copy().apply(X, rng=3)[0])
    other(X)
    other.set_parameters({"scale": 5.0})
    other.layers[0].trainable = False
    assert bits(net) == before and jax.tree.structure(net) == structure
    assert net.layers[0].trainable and not other.shared.trainable
    # And the other way round.
    mine = bits(other)
    net(X)
    net.set_parameters({"array": jnp.zeros(3)})
    net.reset()
    assert bits(other) == mine and other.initialized


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_a_module_in_every_respect(how):
    other = COPIES[how](prepared("called"))
    with pytest.raises(elegy.errors.FrozenModuleError):
        other.scale = 3
    with pytest.raises(elegy.errors.FrozenModuleError):
        other.layers.append(3)
    with pytest.raises(elegy.errors.FrozenModuleError):
        other.layers[1]["c"] = 3
    with pytest.raises(elegy.errors.FrozenModuleError):
        other.config["rates"].append(3)
    out = other.out
    other(X)
    assert other.out is out and other.shared.count == 2
    elegy.jit(lambda x: other(x), modules=other)(X)
    loss, grads = elegy.value_and_grad(lambda x: jnp.sum(other(x)), modules=other)(X)
    assert grads["scale"].shape == () and other.shared.count == 4
    y, third = jax.jit(lambda m, x: (m(x), m))(other, X)
    assert third.shared is third.layers[0] and third.shared.count == 5


def test_a_numpy_array_of_a_copy_is_its_own():
    net = prepared("called")
    for how in ("module.copy", "copy.copy", "copy.deepcopy", "pickle"):
        other = COPIES[how](net)
        other.numpy[0] = 9.0
        assert net.numpy[0] == 0.0, how


def test_order_of_creation_is_copied():
    """A copy of an initialised module finds the modules of its `call`, and notices drift."""

    class Drifts(elegy.Module):
        def call(self, x, size=3):
            return Linear(size)(x)

    net = Drifts().init(X)
    for how in COPIES:
        if how.startswith("pickle") or how == "copy of a copy":
            continue  # a local class
        other = COPIES[how](net)
        other(X)
        with pytest.raises(elegy.errors.ModuleOrderError, match="test_copies.py"):
            other(X, size=4)


def test_a_deep_copy_of_a_container_keeps_sharing_between_modules():
    shared = Linear(3).init(X)

    class Holds(elegy.Module):
        def __init__(self):
            self.inner = shared

        def call(self, x):
            return self.inner(x)

    pair = [Holds(), Holds(), shared]
    first, second, inner = copy.deepcopy(pair)
    assert first.inner is second.inner is inner and inner is not shared
    first, second, inner = cloudpickle.loads(cloudpickle.dumps(pair))
    assert first.inner is second.inner is inner


def test_a_local_class_through_cloudpickle():
    cls = local_class()
    net = cls()
    net(X)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(net)
    other = cloudpickle.loads(cloudpickle.dumps(net))
    assert type(other) is cls and bits(other) == bits(net)


def in_a_new_process(program, tmp_path, payload):
    path = tmp_path / "module.pickle"
    path.write_bytes(payload)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.split()


NEW_PROCESS = """
    import pickle, sys
    import jax, jax.numpy as jnp, numpy as np

    net = pickle.loads(open(sys.argv[1], "rb").read())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    assert len(jax.tree.leaves(net)) == 3, jax.tree.leaves(net)
    y = net(x)
    jax.jit(lambda m: m)(net)
    print(*np.asarray(y).ravel().tolist())
"""


def test_a_pickle_is_read_in_a_new_process(tmp_path):
    net = elegy.nn.Linear(2).init(X)
    program = NEW_PROCESS.replace("== 3", f"== {len(jax.tree.leaves(net))}")
    out = in_a_new_process(program, tmp_path, pickle.dumps(net))
    np.testing.assert_allclose(list(map(float, out)), np.asarray(net(X)).ravel(), rtol=1e-6)


def test_a_cloudpickle_of_a_local_class_is_read_in_a_new_process(tmp_path):
    class Inner(elegy.Module):
        def __init__(self, size):
            self.size = size

        def call(self, x):
            return x @ self.add_parameter("w", [x.shape[-1], self.size], initializer=jax.nn.initializers.normal())

    class Outer(elegy.Module):
        def __init__(self):
            self.inner = Inner(3)

        def call(self, x):
            return Inner(2)(self.inner(x)) * self.add_parameter("scale", [], initializer=jnp.ones)

    net = Outer().init(X)
    out = in_a_new_process(NEW_PROCESS, tmp_path, cloudpickle.dumps(net))
    np.testing.assert_allclose(list(map(float, out)), np.asarray(net(X)).ravel(), rtol=1e-6)


def test_a_cloudpickle_of_to_module_is_read_in_a_new_process(tmp_path):
    """Both sides are new processes, since the checker of the tests wraps functions in what cannot be pickled."""
    made = in_a_new_process(
        """
        import sys
        import cloudpickle, elegy, jax.numpy as jnp

        def local():
            @elegy.to_module
            def block(x):
                return elegy.nn.Linear(2)(x)
            return block

        net = local()()
        x = jnp.linspace(-1, 1, 6).reshape(2, 3)
        y = net(x)
        open(sys.argv[1], "wb").write(cloudpickle.dumps(net))
        print(*y.ravel().tolist())
        """,
        tmp_path,
        b"",
    )
    program = NEW_PROCESS.replace("== 3", "== 2")
    read = in_a_new_process(program, tmp_path, (tmp_path / "module.pickle").read_bytes())
    np.testing.assert_allclose(list(map(float, read)), list(map(float, made)), rtol=1e-6)


def test_functions_of_elegy_survive_cloudpickle():
    net = local_class()().init(X)
    compiled = cloudpickle.loads(cloudpickle.dumps(lambda x: elegy.jit(net)(x)))
    np.testing.assert_allclose(compiled(X), net(X), rtol=1e-6)


def test_to_module_is_copied():
    @elegy.to_module
    def block(x):
        return Linear(2)(x)

    net = block().init(X)
    for how in ("module.copy", "copy.copy", "copy.deepcopy", "jax.tree.map"):
        other = COPIES[how](net)
        np.testing.assert_array_equal(other(X), net.copy()(X))


@pytest.mark.filterwarnings("ignore::elegy.errors.LostUpdateWarning")
def test_a_copy_inside_a_transform_belongs_to_it():
    net = Linear(2).init(X)

    def inside(x):
        for how in ("module.copy", "copy.copy", "copy.deepcopy"):
            other = COPIES[how](net)
            other(x)
            other.set_parameters({"w": other.w * jnp.sum(x)})
        return jax.tree.leaves(other)

    jax.jit(inside)(X)
    gc.collect()
    assert net.count == 0


@pytest.mark.filterwarnings("ignore::elegy.errors.LostUpdateWarning")
def test_a_module_being_threaded_can_be_copied():
    net = Linear(2).init(X)

    def inside(x):
        other = net.copy()
        other(x)
        other(x)
        return net(x), other.count

    _, count = elegy.jit(inside, modules=net)(X)
    gc.collect()
    assert count == 2 and net.count == 1


# ---------------------------------------------------------------------------------------------------------------------
# repr
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["fresh", "called", "frozen", "reset"])
def test_repr_is_short_and_has_no_effect(state):
    net = prepared(state)
    before, structure = bits(net), jax.tree.structure(net)
    for text in (repr(net), str(net), f"{net}"):
        assert "Net" in text
        assert "0.5" not in text and "array(" not in text  # shapes and not values
        assert len(text) < 4000
    assert bits(net) == before and jax.tree.structure(net) == structure
    repr(structure)


def test_repr_shows_what_is_inside():
    text = repr(prepared("called").layers[0])
    assert "Linear" in text
    assert "w" in text and "3" in text


def test_repr_of_modules_that_hold_something_else_than_arrays():
    net = prepared("called")
    for leaf in (None, object(), 3, "axis", jax.ShapeDtypeStruct((2,), jnp.float32)):
        assert "Net" in repr(jax.tree.map(lambda _, leaf=leaf: leaf, net))
    jax.jit(lambda m: [repr(m), None][1])(net)
    elegy.jit(lambda x: [repr(net), None][1], modules=net)(X)


def test_repr_inside_construction_and_call():
    seen = []

    class Shows(elegy.Module):
        def __init__(self):
            seen.append(repr(self))
            self.size = 3
            seen.append(repr(self))

        def call(self, x):
            seen.append(repr(self))
            return x

    Shows()(X)
    assert all("Shows" in text for text in seen) and len(seen) == 4


class Pair(tp.NamedTuple):
    first: tp.Any
    second: tp.Any = 0


class Row(tuple):
    """A tuple of another class."""


@dataclasses.dataclass(frozen=True)
class Config:
    value: tp.Any
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass
class Mutable:
    value: tp.Any


@dataclasses.dataclass(frozen=True)
class Own:
    """Says itself what it is equal to."""

    value: tp.Any

    def __eq__(self, other):
        return isinstance(other, Own) and abs(self.value) == abs(other.value)

    def __hash__(self):
        return hash(abs(self.value))


class Holds(elegy.Module):
    def __init__(self, value):
        self.value = value

    def call(self, x):
        return x


# Values that `==` takes for equal.
LOOK_ALIKE = {
    "bool": (True, 1),
    "zeros": (0.0, -0.0),
    "complex": (complex(0, -0.0), 0j),
    "complex, real part": (complex(-0.0, 0), 0j),
    "float64": (np.float64(-0.0), np.float64(0.0)),
    "complex64": (np.complex64(complex(0, -0.0)), np.complex64(0)),
    "units of time": (np.datetime64("2020-01-01", "D"), np.datetime64("2020-01-01", "h")),
    "named tuple": (Pair(2), Pair(2.0)),
    "named tuple in a tuple": ((1, Pair(2)), (1, Pair(True + 1.0))),
    "other tuple": (Row((1, 0.0)), Row((1, -0.0))),
    "frozenset": (frozenset([1]), frozenset([1.0])),
    "set": ({1}, {True}),
    "dataclass": (Config(True), Config(1.0)),
    "dataclass in a named tuple": (Pair(Config(0.0)), Pair(Config(-0.0))),
    "mutable dataclass": (Mutable(1), Mutable(1.0)),
}


@pytest.mark.parametrize(("first", "second"), LOOK_ALIKE.values(), ids=LOOK_ALIKE)
def test_values_that_look_alike_do_not_replace_each_other(first, second):
    assert first == second
    for values in ((first, second), (second, first)):
        modules = [Holds(value) for value in values]
        structures = [jax.tree.structure(module) for module in modules]
        assert structures[0] != structures[1]
        for module, value in zip(modules, values, strict=True):
            for how in COPIES.values():
                assert shown(how(module).value) == shown(value)
            assert jax.tree.structure(Holds(copy.deepcopy(value))) == jax.tree.structure(module)


def shown(value):
    """A text in which values differ that `==` takes for equal."""
    return type(value), repr(value), value.dtype if isinstance(value, np.generic) else None


def test_what_a_class_of_values_says_of_equality_is_heeded():
    structure = jax.tree.structure
    assert structure(Holds(Own(2))) == structure(Holds(Own(-2)))
    assert structure(Holds(Config(2, "one"))) == structure(Holds(Config(2, "two")))
    assert structure(Holds(np.float64("nan"))) == structure(Holds(np.float64("nan")))
    assert structure(Holds(Pair(2))) != structure(Holds((2, 0)))
    assert structure(Holds(frozenset([1]))) != structure(Holds({1}))


def test_a_value_that_changes_later_is_not_that_of_other_modules():
    for value, change in (
        ({1}, lambda value: value.add(2)),
        (Mutable(1), lambda value: setattr(value, "value", 2)),
        (Pair([1]), lambda value: value.first.append(2)),
    ):
        first, second = Holds(copy.deepcopy(value)), Holds(copy.deepcopy(value))
        assert jax.tree.structure(first) == jax.tree.structure(second)
        change(first.value)
        assert second.copy().value == value == Holds(copy.deepcopy(value)).copy().value


def test_arguments_that_look_alike_are_told_apart_in_call():
    class Makes(elegy.Module):
        def call(self, value):
            return Holds(value)(1)

    for first, second in ((1j, complex(-0.0, 1)), (np.float32(1), np.float64(1)), (Pair(2), Pair(2.0))):
        module = Makes()
        module(first)
        module(first)
        with pytest.raises(elegy.errors.ModuleOrderError, match="Holds"):
            module(second)
