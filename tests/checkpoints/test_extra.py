"""Extra values of checkpoints: nested, and read back without knowing what to expect."""

import collections
import enum
import json
import math
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import elegy
from elegy.errors import CheckpointError
from tests.checkpoints.test_file import bits


@pytest.fixture
def checkpoints(tmp_path):
    return elegy.Checkpoints(tmp_path)


def picture(value):
    """All that must come back: types, order, and every bit."""
    match value:
        case list() | tuple():
            return type(value), [picture(item) for item in value]
        case dict():
            return dict, [(type(key), key, picture(item)) for key, item in value.items()]
        case float() if type(value) is float:
            return float, struct.pack("<d", value)
        case np.ndarray():
            return np.ndarray, value.dtype.str, bits(value)
        case int() if type(value) is int:
            return int, value
        case _:
            return bits(value)


def assert_comes_back(checkpoints, extra):
    checkpoints.save(0, {}, extra, wait=True)
    assert picture(checkpoints.extra()) == picture(extra)


@pytest.mark.parametrize(
    "extra",
    [
        None,
        True,
        0,
        -(2**63),
        2**64,
        [-(10**5000)],
        -0.0,
        float("nan"),
        -float("nan"),
        struct.unpack("<d", b"\1\0\0\0\0\0\xf8\x7f")[0],
        [float("-inf"), 1e-320, math.pi, 0.1],
        [0.5, 1],
        "",
        'é\n\0"\\ \U0001f600',
        "\ud83d\ude00",
        (),
        [(), [], {}, ((1,), [2])],
        {"a": 1, 1: "a", "1": None, -3: (), 2**70: 0},
        {"$": "tuple", "items": [1]},
        {"\ud800": {"$": {"$": "dict"}}},
        {"b": 1, "a": 2},
        [{"": [{}]}] * 2,
    ],
)
def test_plain_values(extra, checkpoints):
    assert_comes_back(checkpoints, extra)


ARRAYS = {
    "jax": lambda: jnp.arange(6.0).reshape(2, 3),
    "jax, no axes": lambda: jnp.int8(3),
    "jax, weakly typed": lambda: jnp.asarray(0.1),
    "jax, bfloat16": lambda: jnp.full(3, 1 / 3, jnp.bfloat16),
    "jax, float8": lambda: jnp.ones(3, jnp.float8_e4m3fn),
    "jax, empty": lambda: jnp.zeros([2, 0]),
    "a key": lambda: jax.random.key(3),
    "keys of another kind": lambda: jax.random.split(jax.random.key(3, impl="rbg"), [2, 2]),
    "numpy": lambda: np.arange(6).reshape(2, 3).T,
    "numpy, no axes": lambda: np.array(True),
    "numpy, big endian": lambda: np.arange(3, dtype=">f4"),
    "numpy, bfloat16": lambda: np.full([2, 2], 0.1, ml_dtypes.bfloat16),
    "numpy, complex": lambda: np.array([1 + 2j, complex("nan+infj")]),
    "numpy, float64": lambda: np.array([math.pi, float("nan"), -0.0]),
    "a scalar": lambda: np.float32(0.1),
    "a scalar, bfloat16": lambda: ml_dtypes.bfloat16(0.1),
    "a scalar, bool": lambda: np.bool_(True),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_arrays_anywhere(make, checkpoints):
    assert_comes_back(checkpoints, {"here": (make(), [make()]), 3: {"there": make()}, "arrays": None})
    array = checkpoints.extra()["here"][0]
    assert bits(array) == bits(make())
    if isinstance(array, np.ndarray):
        array[...] = 0  # it is an array of its own


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=[])),
    st.sampled_from(list(ARRAYS.values())).map(lambda make: make()),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=2), st.just("$"), st.integers()), inner, max_size=3),
    ),
    max_leaves=10,
)


@settings(max_examples=100)
@given(values)
def test_any_value_comes_back(tmp_path_factory, extra):
    assert_comes_back(elegy.Checkpoints(tmp_path_factory.mktemp("run"), keep=1), extra)


def test_what_is_saved_is_what_was_there_then(checkpoints):
    extra = {"array": np.zeros(3), "list": [0.5], "inner": {"a": [1]}}
    before = picture(extra)
    checkpoints.save(0, {}, extra)
    extra["array"][...] = 1
    extra["list"].append(1.5)
    extra["inner"]["a"].append(2)
    assert picture(checkpoints.extra()) != picture(extra)
    extra["array"][...] = 0
    del extra["list"][1], extra["inner"]["a"][1]
    assert picture(checkpoints.extra()) == before


class Number(enum.IntEnum):
    ONE = 1


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"extra\['x'\]\[0\]: a builtins.object cannot be saved. There may be None, bool"),
        (Pair(1, 2), "Pair cannot be saved"),
        (Number.ONE, "Number cannot be saved"),
        (collections.OrderedDict(), "collections.OrderedDict cannot be saved"),
        ({1, 2}, "set cannot be saved"),
        (b"bytes", "bytes cannot be saved"),
        (1j, "complex cannot be saved"),
        ({True: 1}, r"extra\['x'\]\[0\]: the key True is a bool"),
        ({(1,): 1}, r"the key \(1,\) is a tuple"),
        (np.array([object()]), "dtype object is not a numeric one"),
        (np.array("text"), "dtype <U4 is not a numeric one"),
        (jax.ShapeDtypeStruct([2], jnp.float32), "ShapeDtypeStruct cannot be saved"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_saved(value, message, checkpoints):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(0, {}, {"x": [value]})
    assert checkpoints.steps == []


def test_all_that_cannot_be_saved_is_listed(checkpoints):
    with pytest.raises(CheckpointError, match=r"(?s)extra\['a'\]: .*extra\['b'\]\[1\]: "):
        checkpoints.save(0, {}, {"a": object(), "b": [1, object()]})


def test_a_donated_array(checkpoints):
    array = jnp.ones(3)
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    with pytest.raises(CheckpointError, match=r"extra\[0\]: the array was donated"):
        checkpoints.save(0, {}, [array])


def test_a_list_in_itself(checkpoints):
    extra = []
    extra.append(extra)
    with pytest.raises(CheckpointError, match="contains itself, or is nested too deeply"):
        checkpoints.save(0, {}, extra)


def test_double_precision(checkpoints):
    with jax.enable_x64(True):
        extra = [jnp.asarray([0.1]), np.float64(0.1)]
        assert extra[0].dtype == jnp.float64
        assert_comes_back(checkpoints, extra)
    with pytest.raises(CheckpointError, match="JAX has no float64 here"):
        checkpoints.extra()


def test_the_structure_is_plain_json(checkpoints, tmp_path):
    checkpoints.save(0, {}, {"epoch": 3, "losses": [0.5, 0.25], "name": "run"}, wait=True)
    manifest = json.loads((tmp_path / "step-0000000000" / "checkpoint.json").read_text())
    assert manifest["extra"] == {"epoch": 3, "losses": [0.5, 0.25], "name": "run"}
    assert list(manifest["files"]) == ["arrays.safetensors"]
