"""States of sources as JSON, and back."""

import json
import sys
import types

import numpy as np
import pytest

from elegy.data.states import decode, encode
from tests.helpers import assert_same


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**100,
        0.1,
        "text",
        b"\x00\xff",
        [],
        [1, [2.0, "three"]],
        (),
        (1, (2, b"3")),
        {},
        {"a": 1, "dict": {"bytes": "b", 3: (None,)}, (1, 2): []},
    ],
    ids=repr,
)
def test_plain_values_come_back(value):
    found = decode(json.loads(json.dumps(encode(value))))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("dtype", ["float32", "uint8", ">i4", "bool", "int64"])
def test_arrays_come_back(dtype):
    value = np.arange(6).reshape(2, 3).astype(dtype)
    found = decode(json.loads(json.dumps(encode({"a": value, "b": value[1, 2]}))))
    assert_same(found["a"], value)
    assert_same(found["b"], np.asarray(value[1, 2]))
    found["a"][:] = 0  # it may be written to


def test_tensors_come_back_as_such(monkeypatch):
    """With a stand-in for PyTorch, whose random generators have tensors as states."""

    class Tensor:
        __module__ = "torch"

        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    torch = types.ModuleType("torch")
    torch.from_numpy = Tensor
    monkeypatch.setitem(sys.modules, "torch", torch)
    found = decode(json.loads(json.dumps(encode([Tensor(np.arange(3, dtype=np.uint8))]))))
    assert type(found[0]) is Tensor
    assert_same(found[0].array, np.arange(3, dtype=np.uint8))


@pytest.mark.parametrize("value", [object(), np.asarray([None]), {1, 2}], ids=["object", "object array", "set"])
def test_others_are_refused_with_their_path(value):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a (object|ndarray|set), and the state of a source"):
        encode({"a": [0, value]})
