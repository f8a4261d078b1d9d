"""What a batch may be, and what becomes of its arrays. Stand-ins have the protocol of tensors of other libraries."""

import collections
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import elegy
from tests.helpers import assert_same

Point = collections.namedtuple("Point", "a b")
X = np.arange(6, dtype=np.float32).reshape(3, 2)
Y = np.arange(3, dtype=np.int32)
W = np.ones(3, np.float32)


def batch_of(value):
    (batch,) = elegy.data.as_source([value]).batches()
    return batch


class Tensor:
    """As tensors of PyTorch and TensorFlow are: `__array__` alone."""

    def __init__(self, array, requires_grad=False):
        self.array = array
        self.requires_grad = requires_grad

    def detach(self):
        return Tensor(self.array)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.array


class BFloat16Tensor:
    """As a bfloat16 tensor of PyTorch is: `__array__` fails, and dlpack works."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_a_batch_is_its_parts_and_another_named_tuple_is_x():
    source = elegy.data.as_source([(X, Y), (X, Y, W)])
    first, second = elegy.data.as_source(list(source.batches())).batches()
    assert_same((first, second), (elegy.data.Batch(X, Y, None), elegy.data.Batch(X, Y, W)))
    assert_same(batch_of(Point(X, Y)), elegy.data.Batch(Point(X, Y), None, None))
    transform = lambda value: elegy.data.Batch(value["a"], value["b"], None)  # noqa: E731
    (batch,) = elegy.data.as_source([{"a": X, "b": Y}], transform=transform).batches()
    assert_same(batch, first)


@pytest.mark.parametrize(
    "value, expected",
    [
        (X, (X, None, None)),
        ((X,), (X, None, None)),
        ([X], (X, None, None)),
        ((X, Y), (X, Y, None)),
        ([X, Y], (X, Y, None)),
        ((X, Y, W), (X, Y, W)),
        ((X, None, W), (X, None, W)),
        ({"a": X, "b": Y}, ({"a": X, "b": Y}, None, None)),
        (Point(X, Y), (Point(X, Y), None, None)),
        (((X, Y), {"c": W}), ((X, Y), {"c": W}, None)),
        (([X, X], Y), ([X, X], Y, None)),
        (collections.UserDict(a=X), ({"a": X}, None, None)),
        (([[0, 1], [2, 3], [4, 5]], [0, 1, 2]), (X.astype(np.int32), Y, None)),
        (([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [0, 1, 2]), (X, Y, None)),
        (({"a": [0, 1, 2]}, Y), ({"a": Y}, Y, None)),
    ],
)
def test_the_forms_of_a_batch(value, expected):
    assert_same(tuple(batch_of(value)), expected)
    assert batch_of(value).size == 3


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("float64", "float32"),
        ("int64", "int32"),
        ("uint64", "uint32"),
        ("complex128", "complex64"),
        ("float16", "float16"),
        ("bool", "bool"),
        ("uint8", "uint8"),
        (ml_dtypes.bfloat16, "bfloat16"),
    ],
)
def test_dtypes_become_those_of_jax(given, wanted):
    assert batch_of(np.ones([2, 3]).astype(given)).x.dtype == wanted


def test_with_x64_dtypes_stay():
    with jax.enable_x64(True):
        assert batch_of((np.ones(2), [1, 2])).x.dtype == np.float64
        assert batch_of((np.ones(2), [1, 2])).y.dtype == np.int64
    assert batch_of(np.ones(2)).x.dtype == np.float32


def test_arrays_stay_where_they_are():
    assert batch_of(X).x is X
    x = jnp.ones([2, 3])
    assert batch_of((x, np.ones(2))).x is x


@pytest.mark.parametrize("requires_grad", [False, True])
def test_tensors_become_numpy_arrays(requires_grad):
    batch = batch_of((Tensor(X.astype(np.float64), requires_grad), Tensor(Y)))
    assert_same((batch.x, batch.y), (X, Y))
    assert type(batch.x) is type(batch.y) is np.ndarray


def test_what_numpy_does_not_know_comes_by_dlpack_and_is_a_copy():
    x = jnp.asarray(X, jnp.bfloat16)
    found = batch_of(BFloat16Tensor(x)).x
    assert_same(found, X.astype(ml_dtypes.bfloat16))
    assert not np.shares_memory(found, np.asarray(x))


def test_views_of_tensors_are_resolved():
    """Of a tensor of PyTorch whose bit says that it is the negative, `__array__` refuses, and DLPack tells the values
    without the sign; DLPack of JAX takes no strides."""

    class View(BFloat16Tensor):
        def resolve_conj(self):
            return self

        def resolve_neg(self):
            return View(-self.array)

        def contiguous(self):
            return View(self.array.reshape(3, 2))

        def __dlpack__(self, **kwargs):
            if self.array.ndim == 1:
                raise ValueError("strides")
            return super().__dlpack__(**kwargs)

    found = batch_of(View(jnp.arange(6, dtype=jnp.bfloat16))).x
    assert_same(found, (-X).astype(ml_dtypes.bfloat16))


def test_arrays_of_the_other_byte_order():
    found = batch_of((X.astype(X.dtype.newbyteorder()), Y.astype(np.dtype(np.int64).newbyteorder())))
    assert found.x.dtype.isnative and found.y.dtype.isnative
    assert_same((found.x, found.y), (X, Y))


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="a long double is a double here")
def test_long_doubles():
    with pytest.raises(TypeError, match=r"y has dtype float\d+, with which JAX cannot compute"):
        batch_of((X, np.zeros(3, np.longdouble)))


@pytest.mark.parametrize("integers", [[2**31, 0], [0, -(2**31) - 1], [2**63, 0]], ids=str)
def test_integers_that_do_not_fit(integers):
    array = np.asarray(integers, np.uint64 if max(integers) == 2**63 else np.int64)
    message = rf"y\['id'\] has integers from {min(integers)} to {max(integers)}, which do not fit into u?int32"
    with pytest.raises(ValueError, match=message):
        batch_of((X[:2], {"id": array}))
    with jax.enable_x64(True):
        assert_same(batch_of((X[:2], {"id": array})).y["id"], array)


def test_the_integers_at_the_limits_fit():
    limits = np.asarray([-(2**31), 2**31 - 1, 0])
    assert_same(batch_of((X, limits)).y, limits.astype(np.int32))


def test_many_arrays_of_various_lengths_are_not_all_listed():
    with pytest.raises(ValueError, match=r"differ in length: of 101, x\[0\] has 3, y has 2 samples\.$"):
        batch_of(([X] * 100, Y[:2]))


def test_other_pytrees_are_kept():
    graph = jax.tree.map(lambda leaf: leaf, Pair(X.astype(np.float64), Y))
    found = batch_of((graph, Y)).x
    assert isinstance(found, Pair)
    assert_same((found.first, found.second), (X, Y))


class Pair:
    def __init__(self, first, second):
        self.first = first
        self.second = second


jax.tree_util.register_pytree_with_keys(
    Pair,
    lambda pair: (
        ((jax.tree_util.GetAttrKey("first"), pair.first), (jax.tree_util.GetAttrKey("second"), pair.second)),
        None,
    ),
    lambda _, children: Pair(*children),
)


@pytest.mark.parametrize(
    "value, error, message",
    [
        ((), ValueError, "it is a tuple of 0"),
        ((X, Y, W, W), ValueError, "it is a tuple of 4: a batch is x, (x,), (x, y) or (x, y, sample_weight)"),
        ([1, 2, 3], ValueError, "x is a scalar"),
        (None, ValueError, "x holds no array"),
        ((None, Y), ValueError, "x holds no array"),
        ({}, ValueError, "x holds no array"),
        ((X, 1), ValueError, "y is a scalar: its first axis must be that of the samples. Are these samples, one by"),
        ((X, Y[:2]), ValueError, "the arrays differ in length: x has 3, y has 2 samples"),
        (
            ({"a": X, "b": (Y, Y[:1])}, Y),
            ValueError,
            "the arrays differ in length: x['a'] has 3, x['b'][0] has 3, x['b'][1] has 1, y has 3",
        ),
        ((Point(X, Y[:2]), Y), ValueError, "the arrays differ in length: x.a has 3, x.b has 2, y has 3"),
        ((X[:0], Y[:0]), ValueError, "there are no samples"),
        ((X, np.array(["a", "b", "c"])), TypeError, "y has dtype <U1, with which JAX cannot compute"),
        ((X, {"k": ["a", "b", "c"]}), TypeError, "y['k'][0] is a str"),
        (
            (X, np.array([None] * 3)),
            TypeError,
            "y has dtype object, with which JAX cannot compute.\n  If it holds numbers, write .astype(np.float32).",
        ),
        ((X, np.zeros(3, "M8[s]")), TypeError, "y has dtype datetime64[s]"),
        ((X, np.zeros(3, [("a", "f4")])), TypeError, "y has dtype [('a', '<f4')]"),
        ((np.ma.masked_array(X), Y), TypeError, "x is a masked array, and would lose its mask"),
        (([[1, 2], [3]], Y), ValueError, "x holds lists that make no array: x[0] is a list of 2"),
        ((X, object()), TypeError, "y is a object: give an array"),
        ((Pair(X, "text"), Y), TypeError, "x.second is a str"),
    ],
)
def test_what_is_no_batch(value, error, message):
    source = elegy.data.as_source([X, X, value])
    batches = source.batches(epoch=4)
    next(batches)
    next(batches)
    with pytest.raises(error, match=re.escape(f"the list, batch 2 of epoch 4: {message}")):
        next(batches)


def test_a_tensor_that_is_elsewhere():
    class Away:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(TypeError, match=r"x is a Away that is no array in the memory of the host: can't convert cuda"):
        batch_of(Away())
