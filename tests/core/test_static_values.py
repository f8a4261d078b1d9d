"""Static values: looked at only where it can matter, compared as late as possible."""

import collections
import copy
import dataclasses
import functools
import pickle
import types
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

X = np.ones([2, 3], np.float32)


class Holds(elegy.Module):
    def __init__(self, value, name=None):
        super().__init__(name=name)
        self.value = value

    def call(self, x):
        return x


class Counted:
    """Counts how often it is compared and copied."""

    compared = copied = 0

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        type(self).compared += 1
        return isinstance(other, Counted) and self.number == other.number

    def __hash__(self):
        return hash(self.number)

    def __deepcopy__(self, memo):
        type(self).copied += 1
        return self


@dataclasses.dataclass(frozen=True)
class Config:
    inner: tp.Any


class Table:
    def __init__(self, table):
        self.inner = table

    def __eq__(self, other):
        return self.inner == other.inner

    __hash__: tp.Any = None


class HashedTable(Table):
    def __hash__(self):
        return 1


class Shy:
    """Does not look like one that holds an array."""

    def __init__(self, table):
        self.hidden = [table]

    def __eq__(self, other):
        return self.hidden[0] == other.hidden[0]

    def __hash__(self):
        return 1


class Bare:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner

    def __eq__(self, other):
        return self.inner == other.inner

    __hash__: tp.Any = None


@pytest.mark.parametrize("hold", [lambda v: v, lambda v: [v], lambda v: {"a": (v,)}, frozenset, Config])
def test_parts_of_a_static_value_are_neither_copied_nor_compared_at_construction(hold):
    Counted.compared = Counted.copied = 0
    value = hold(Counted(1)) if hold is not frozenset else frozenset(map(Counted, range(5)))
    module = Holds(value)
    jax.tree.leaves(module)
    assert (Counted.compared, Counted.copied) == (0, 0)
    # Of two modules that hold the very object, it is not compared either.
    assert jax.tree.structure(Holds(value)) == jax.tree.structure(module) and Counted.compared == 0


def test_an_equal_and_another_value_of_a_class_with_its_own_equality():
    first, same, other = (Holds([Counted(number)]) for number in (1, 1, 2))
    assert jax.tree.structure(first) == jax.tree.structure(same) != jax.tree.structure(other)
    # As a part of what is static in a container with layers.
    first, same, other = (Holds([elegy.nn.Linear(2), Counted(number)]) for number in (1, 1, 2))
    assert jax.tree.structure(first) == jax.tree.structure(same) != jax.tree.structure(other)


def test_an_object_may_refer_back_to_a_module():
    class Settings:
        def __init__(self):
            self.owner = elegy.nn.Linear(3)
            self.table = jnp.ones(3)

    for settings in (Settings(), [Settings()], Config(Settings()), types.SimpleNamespace(inner=Settings())):
        module = Holds(settings)
        assert jax.tree.leaves(module) == [] and module.copy().value == module.value


def test_what_a_container_of_another_class_holds_is_not_read():
    class Lazy(tp.Sequence):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            raise AssertionError("read")

    Holds(Lazy())


@pytest.mark.parametrize(
    "hold",
    [
        lambda v: Config([v]),
        lambda v: types.SimpleNamespace(inner={"a": v}),
        lambda v: Config(functools.partial(len, v)),
        lambda v: [Config((1, 2, {"deep": Config(v)}))],
    ],
)
@pytest.mark.parametrize("value", [jnp.ones(2), elegy.nn.Linear(2)], ids=["array", "module"])
def test_arrays_and_modules_in_containers_in_dataclasses_are_refused(hold, value):
    with pytest.raises(elegy.errors.StaticValueError, match=r"Holds\.value is a .* that holds a"):
        Holds(hold(value))


@dataclasses.dataclass
class Pair:
    module: tp.Any
    number: int = 1


class Odd(list):
    pass


class Object:
    def __init__(self, inner):
        self.inner = inner


HIDING = {
    "dataclass": lambda value: Pair(value),
    "deque": lambda value: collections.deque([value]),
    "namespace": lambda value: types.SimpleNamespace(inner=value),
    "mapping": lambda value: types.MappingProxyType({"inner": value}),
    "subclass of list": lambda value: Odd([value]),
    "set": lambda value: {value} if isinstance(value, elegy.Module) else Odd([{"deep": Odd([value])}]),
    "object": lambda value: Object(value),
    "dataclass in a list": lambda value: [Pair(Pair(value))],
}


@pytest.mark.parametrize("how", HIDING)
def test_modules_and_arrays_that_jax_would_not_see_are_refused(how):
    if how != "object":  # what another object keeps is its own affair
        with pytest.raises(elegy.errors.StaticValueError, match=r"Holds\.value is a .* a module \(Linear\)"):
            Holds(HIDING[how](elegy.nn.Linear(2)))
        with pytest.raises(elegy.errors.StaticValueError, match=r"Holds\.value is a .* an array"):
            Holds(HIDING[how](jnp.ones([])))
    Holds(HIDING[how]("text"))


def test_a_value_behind_many_others_is_found():
    with pytest.raises(elegy.errors.StaticValueError, match="an array"):
        Holds(Config([*map(str, range(5000)), jnp.ones(2)]))


@pytest.mark.parametrize("cls", [Table, HashedTable, Bare])
def test_an_incomparable_value_that_holds_an_array_is_refused_at_construction(cls):
    for value in (cls(np.arange(3)), [cls(np.arange(3))], {"a": (cls(np.arange(3)),)}):
        with pytest.raises(elegy.errors.StaticValueError, match=r"Holds\.value is a \w+ whose == gives a ndarray"):
            Holds(value)
    Holds(cls(3))


def test_methods_of_modules_and_arrays_of_strings_are_refused():
    with pytest.raises(elegy.errors.StaticValueError, match="bound method"):
        Holds(elegy.nn.Linear(2).call)
    with pytest.raises(elegy.errors.StaticValueError):
        Holds(np.array(["a", "b"]))


@pytest.mark.parametrize("mixed", [False, True])
def test_an_incomparable_value_is_refused_where_it_is_first_compared(mixed):
    class Other(Holds):
        pass

    def make(table):
        return Other([elegy.nn.Linear(2), Shy(table)] if mixed else Shy(table))

    first, second = make(np.arange(3)), make(np.arange(3))
    with pytest.raises(elegy.errors.StaticValueError, match=r"Other\.value is .* whose == gives a ndarray, not"):
        assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.structure(first.copy()) == jax.tree.structure(first)
    assert float(jax.jit(lambda m, x: m(x))(first, 2.0)) == 2.0
    # NumPy's == of a single number is no plain bool either.
    with pytest.raises(elegy.errors.StaticValueError, match=r"Other\.value"):
        assert jax.tree.structure(make(np.ones(1))) == jax.tree.structure(make(np.ones(1)))


def test_jit_says_that_a_value_cannot_be_compared():
    class Other(Holds):  # else it may meet a module of another test
        pass

    step = jax.jit(lambda m, x: m(x))
    step(Other(Shy(np.arange(3))), 1.0)
    with pytest.raises(elegy.errors.StaticValueError, match=r"Other\.value is a Shy whose == gives a ndarray"):
        step(Other(Shy(np.arange(3))), 1.0)


TABLES = {
    "ints": ({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": True}),
    "floats": ([0.0, 1.0], [0.0, 1.0], [-0.0, 1.0]),
    "not numbers": ([float("nan")], [float("nan")], [float("inf")]),
    "kinds": (["1", 1], ["1", 1], ["1", 1.0]),
    "nested": ({"a": [1, {"b": (2,)}]}, {"a": [1, {"b": (2,)}]}, {"a": [1, {"b": [2]}]}),
    "order": ({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "empty": ([], [], {}),
    "kinds of keys": ({1: "a"}, {1: "a"}, {True: "a"}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_compared_by_value_and_type(name):
    one, same, other = map(Holds, TABLES[name])
    assert jax.tree.structure(one) == jax.tree.structure(same)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(same))
    assert jax.tree.structure(one) != jax.tree.structure(other)


def test_a_large_table_is_static_and_is_looked_at_once():
    class Word(str):
        hashed = 0

        def __hash__(self):
            Word.hashed += 1
            return super().__hash__()

    table = {"words": tuple(map(Word, "abc")), "numbers": {str(number): number for number in range(5000)}}
    module = Holds(table)
    structure = jax.tree.structure(module)
    before = Word.hashed
    step = jax.jit(lambda m, x: m(x))
    step(module, 1.0), step(module, 1.0), jax.tree.map(jnp.add, module, module)
    assert jax.tree.structure(module) == structure and Word.hashed == before
    assert module.value["numbers"]["17"] == 17
    with pytest.raises(elegy.errors.FrozenModuleError, match=r"Holds\.value\['numbers'\]"):
        module.value["numbers"]["17"] = 3


# ---------------------------------------------------------------------------------------------------------------------
# Protocols
# ---------------------------------------------------------------------------------------------------------------------


@tp.runtime_checkable
class HasEncode(tp.Protocol):
    width: int

    def encode(self, x): ...


class Encodes(tp.Protocol):
    def encode(self, x): ...


class After(elegy.Module, HasEncode):
    def __init__(self, width):
        self.width = width
        self.inner = elegy.nn.Linear(width)

    def call(self, x):
        return self.encode(x)

    def encode(self, x):
        return self.inner(x)


class Before(Encodes, elegy.Module):
    """Has no constructor of its own, nor has its protocol."""

    def call(self, x):
        return self.encode(x)

    def encode(self, x):
        return elegy.nn.Linear(2, name="inner")(x)


@pytest.mark.parametrize("make", [lambda: After(2), Before])
def test_a_module_may_derive_from_a_protocol(make):
    module = make().init(X)
    expected = X @ np.asarray(module.inner.w) + np.asarray(module.inner.b)
    for other in (module, module.copy(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert jax.tree.structure(other) == jax.tree.structure(module)
        np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(other, X), expected, rtol=1e-5)
    assert isinstance(module, elegy.Module) and not isinstance(3, elegy.Module)
    assert isinstance(module, HasEncode) == (type(module) is After)
    assert not issubclass(elegy.nn.Linear, After)


def test_the_structure_of_a_module_with_a_table_is_hashed_anew_where_it_is_read():
    structure = jax.tree.structure(Holds(["a", 1]))
    other = pickle.loads(pickle.dumps(structure))
    assert other == structure and hash(other) == hash(structure) and other is not structure
