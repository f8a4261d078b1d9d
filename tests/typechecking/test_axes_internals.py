"""What an annotation says about an array: its axes, their sizes, its dtype, and how it is shown."""

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Optional, Union

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import (
    AnnotationError,
    Array,
    ArrayLike,
    BFloat16,
    Bool,
    Complex,
    Float,
    Float16,
    Inexact,
    Int,
    Int8,
    Key,
    Num,
    PyTree,
    Real,
    Shaped,
    UInt,
    UInt8,
    jaxtyped,
)

from elegy.typechecking import axes

# ---------------------------------------------------------------------------------------------------------------------
# Parts of an annotation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Float[Array, "n"], True),
        (Float[Array, "n"] | None, True),
        (dict[str, tuple[int, Float[Array, "n"]]], True),
        (PyTree[Float[Array, "n"]], True),
        (list[PyTree[Float[Array, "n"], "T"]], True),
        (Annotated[Float[Array, "n"], "metres"], True),
        (Callable[[Float[Array, "n"]], int], False),
        (ClassVar[Float[Array, "n"]], False),
        (PyTree, False),
        (PyTree[int], False),
        (Array, False),
        (int | None, False),
        (Literal["n"], False),
        ("n", False),
        (None, False),
    ],
)
def test_mentions_array(annotation, expected):
    assert axes.mentions_array(annotation) == expected


def test_alternatives_are_the_arrays_of_a_union():
    a, b = Float[Array, "n"], Int[Array, ""]
    for annotation in (a | b | None, Union[a, Optional[b]], Annotated[a | b, "metres"]):  # noqa: UP007, UP045
        assert list(axes.alternatives(annotation)) == [a, b]
    assert list(axes.alternatives(a)) == [a]
    assert list(axes.alternatives(list[a])) == list(axes.alternatives(None)) == []


A = Float[Array, "n"]
B = Int[Array, "m"]


class Pair(NamedTuple):
    first: A
    second: B


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (list[A], [1, 2], [("[0]", 1, A), ("[1]", 2, A)]),
        (Sequence[A], (1,), [("[0]", 1, A)]),
        (tuple[A, ...], (1, 2), [("[0]", 1, A), ("[1]", 2, A)]),
        (tuple[A, int, B], (1, 2, 3), [("[0]", 1, A), ("[1]", 2, int), ("[2]", 3, B)]),
        (tuple[A, B], (1,), [("[0]", 1, A)]),
        (dict[str, A], {"a": 1}, [("['a']", 1, A)]),
        (Mapping[int, A], {2: 1}, [("[2]", 1, A)]),
        (Optional[list[A]], [1], [("[0]", 1, A)]),  # noqa: UP045
        (list[A] | A, [1], [("[0]", 1, A)]),
        (Annotated[list[A], "metres"], [1], [("[0]", 1, A)]),
        (PyTree[A], {"a": [1, (2,)]}, [("['a'][0]", 1, A), ("['a'][1][0]", 2, A)]),
        (PyTree[A | int, "T"], [1], [("[0]", 1, A | int)]),
        (PyTree[A] | None, [1], [("[0]", 1, A)]),
        # Which member of the union is meant is not known, nor is it where a leaf ends, or what is behind "?".
        (list[A] | list[B], [1], []),
        (PyTree[tuple[A, B]], [(1, 2)], []),
        (PyTree[A | list[A]], [1], []),
        (PyTree[Float[Array, "?n"], "T"], [1], []),
        # Another kind of container, and none.
        (list[A], (1,), []),
        (tuple[A, ...], [1], []),
        (dict[str, A], [1], []),
        (list[A] | None, None, []),
        (PyTree[A] | None, None, []),
        (list[int], [1], []),
        (Pair, Pair(1, 2), []),  # ty: what is in a named tuple is its own affair
        (A, 1, []),
        (Literal["a"] | Callable[[A], A], "a", []),
        (None, None, []),
    ],
)
def test_items(annotation, value, expected):
    assert list(axes.items(annotation, value)) == expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, str),
        (list[int], list[str]),
        (int | None, str | None),
        (tuple[int, ...], tuple[str, ...]),
        (dict[str, list[int] | None], dict[str, list[str] | None]),
        (Annotated[int, "metres"], Annotated[str, "metres"]),
        (PyTree[int], PyTree[str]),
        (PyTree[int, "S T"], PyTree[str, "S T"]),
    ],
)
def test_rebuilt(annotation, expected):
    assert axes.rebuilt(annotation, lambda part: str if part is int else part) == expected


@pytest.mark.parametrize("annotation", [A, A | None, list[A], Callable[[A], int], Literal["a"], PyTree[A], tuple[()]])
def test_what_nothing_is_replaced_in_is_the_same_object(annotation):
    assert axes.rebuilt(annotation, lambda part: part) is annotation


def test_another_class_of_arrays():
    assert axes.show(axes.with_type(Float[Array, "2 n"], np.ndarray)) == 'Float[ndarray, "2 n"]'
    assert axes.show(axes.with_type(Float[Array, "2 n"], Any, "...")) == 'Float[Any, "..."]'


def test_another_class_of_arrays_of_an_annotation_of_an_annotation():
    image = UInt8[Array, "height width"]
    batch = axes.with_type(Shaped[image, "batch"], np.ndarray)
    assert isinstance(np.zeros([2, 3, 4], np.uint8), batch)
    assert not isinstance(np.zeros([2, 3, 4], np.float32), batch)
    assert not isinstance(np.zeros([3, 4], np.uint8), batch)


def test_arrays_that_may_stand_for_others():
    def allowing(annotation):
        return axes.allowing(annotation, Array, np.ndarray)

    both = 'Float[Array | ndarray, "n"]'
    assert axes.show(allowing(A)) == both
    assert axes.show(allowing(list[A] | None)) == f"list[{both}] | None"
    assert axes.show(allowing(PyTree[A, "T"])) == f'PyTree[{both}, "T"]'
    assert allowing(tuple[Array, ...]) == tuple[Array | np.ndarray, ...]
    for other in (Float[np.ndarray, "n"], Float[Any, "n"], list[int], int):
        assert allowing(other) is other
        assert axes.allowing(A) is A
    several = axes.allowing(A | Float[np.ndarray, "m"], None, jax.ShapeDtypeStruct, Any)
    assert axes.show(several) == (
        'Float[Array | ShapeDtypeStruct | Any, "n"] | Float[ndarray | ShapeDtypeStruct | Any, "m"]'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Float[Array, "*batch {self.n}"], 'Float[Array, "*batch {self.n}"]'),
        (Float[np.ndarray, ""], 'Float[ndarray, ""]'),
        (Shaped[Any, "..."], 'Shaped[Any, "..."]'),
        (Shaped[Float[Array, "n"], "b"], 'Shaped[Array, "b n"]'),
        (Float[Array, "n"] | None, 'Float[Array, "n"] | None'),
        (Optional[Int[Array, ""]], 'Int[Array, ""] | None'),  # noqa: UP045
        (Float[Array | np.ndarray, "n"] | None, 'Float[Array | ndarray, "n"] | None'),
        (Float[Array, "n"] | Float[np.ndarray, "m"], 'Float[Array, "n"] | Float[ndarray, "m"]'),
        (tuple[Float[Array, "n"], ...], 'tuple[Float[Array, "n"], ...]'),
        (dict[str, int | None], "dict[str, int | None]"),
        (PyTree[Float[Array, "n"]], 'PyTree[Float[Array, "n"]]'),
        (PyTree[Float[Array, "?n"] | int, "T"], 'PyTree[Float[Array, "?n"] | int, "T"]'),
        (Literal["same", 1], "Literal['same', 1]"),
        (Callable[..., int], "Callable[..., int]"),
        (int, "int"),
        (None, "None"),
        (type(None), "None"),
        (Any, "Any"),
        (PyTree, "PyTree"),
    ],
)
def test_annotations_are_shown_as_one_writes_them(annotation, expected):
    assert axes.show(annotation) == expected


def test_sizes_are_shown_with_their_origins():
    assert axes.show_sizes({"*batch": ((2,), "x"), "n": (3, "w")}) == "*batch=(2,) (from x), n=3 (from w)"
    assert axes.show_sizes({}) == "none"


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------


def bind(dims, shape, sizes=None, names=None):
    return axes.bind(Float[np.ndarray, dims], np.zeros(shape), "x", sizes or {}, names or {})


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        ("a b", (2, 3), {"a": 2, "b": 3}),
        ("*batch in", (2, 3, 4), {"*batch": (2, 3), "in": 4}),
        ("first *middle last", (2, 3), {"first": 2, "*middle": (), "last": 3}),
        ("... n", (2, 3, 4), {"n": 4}),
        ("_ _rows n", (2, 3, 4), {"n": 4}),
        ("*_ n", (2, 3, 4), {"n": 4}),
        ("#n m", (1, 3), {"m": 3}),
        ("#n m", (2, 3), {"n": 2, "m": 3}),
        ("*#batch n", (2, 1, 3), {"*batch": (2, 1), "n": 3}),
        ("rows=2 n", (2, 3), {"n": 3}),
        ("n 2*n", (2, 4), {"n": 2}),
        ("n {size}*n", (2, 6), {"n": 2}),
        ("n unknown+1", (2, 4), {"n": 2}),
        ("", (), {}),
    ],
)
def test_what_an_array_binds(dims, shape, expected):
    assert bind(dims, shape, names={"size": 3}) == {name: (size, "x") for name, size in expected.items()}


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("a", (2, 3)),
        ("a b *c", (2,)),
        ("a a", (2, 3)),
        ("rows=3 n", (2, 3)),
        ("n 2*n", (2, 5)),
        ("n n/2", (5, 2)),
        ("n {size}", (2, 4)),
    ],
)
def test_an_array_that_does_not_fit_binds_nothing(dims, shape):
    sizes = {"z": (1, "before")}
    assert bind(dims, shape, sizes, {"size": 3}) is sizes


def test_an_array_of_another_dtype_binds_nothing():
    assert axes.bind(Int[Array, "n"], jnp.ones([3]), "x", {}, {}) == {}
    assert axes.bind(Shaped[Int[Array, "n"], "m"], jnp.ones([2, 3]), "x", {}, {}) == {}


def test_the_first_array_gives_the_size():
    sizes = bind("n m", (2, 3), {"n": (2, "w")})
    assert sizes == {"n": (2, "w"), "m": (3, "x")}
    assert bind("n m", (4, 5), {"n": (2, "w")}) == {"n": (2, "w")}


def test_a_union_binds_as_its_first_member_that_fits():
    annotation = Float[Array, "n"] | Float[Array, "n m"] | None
    assert axes.bind(annotation, jnp.ones([2, 3]), "x", {}, {}) == {"n": (2, "x"), "m": (3, "x")}
    assert axes.bind(annotation, None, "x", {}, {}) == {}
    assert axes.bind(Float[ArrayLike, "n"], np.ones([2]), "x", {}, {}) == {"n": (2, "x")}


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"*#x": (2, 1), "*#x m": (1, 3, 5)}, (2, 3)),
        ({"*#x": (3,), "*#x m": (2, 3, 5)}, (2, 3)),
        ({"*#x": (2, 3), "*#x m": (2, 4, 5)}, (2, 3)),
        ({"*#x": (1, 3), "*x m": (2, 3, 5)}, (2, 3)),
        ({"*#x": (1, 3), "*x m": (3, 5)}, (1, 3)),
        ({"*#x": (1, 3), "*x m": (2, 3, 5), "*#x k": (4, 2, 3, 5)}, (2, 3)),
        ({"*x": (2, 3), "*#x m": (3, 5)}, (2, 3)),
        ({"*x": (2, 3), "*#x m": (2, 2, 3, 5)}, (2, 3)),
        ({"*x": (2, 3), "*x m": (2, 1, 5)}, (2, 3)),
    ],
)
def test_sizes_that_broadcast(arrays, expected):
    sizes: axes.Sizes = {}
    for dims, shape in arrays.items():
        sizes = bind(dims, shape, sizes)
    assert sizes["*x"] == (expected, "x")


def test_items_of_containers_bind():
    x, y = jnp.ones([2]), jnp.ones([3])
    assert axes.bind(tuple[A, Float[Array, "m"]], (x, y), "x", {}, {}) == {"n": (2, "x[0]"), "m": (3, "x[1]")}
    assert axes.bind(list[A], [x, y], "x", {}, {}) == {"n": (2, "x[0]")}
    assert axes.bind(dict[str, A], {"a": y}, "x", {}, {}) == {"n": (3, "x['a']")}
    assert axes.bind(PyTree[A] | None, {"a": [y]}, "x", {}, {}) == {"n": (3, "x['a'][0]")}


def test_arrays_bind_by_what_they_look_like():
    for value in (np.ones([2], np.float32), jax.ShapeDtypeStruct((2,), jnp.float32)):
        assert axes.bind(A, value, "x", {}, {}) == {"n": (2, "x")}


SIZES: axes.Sizes = {"*batch": ((2, 3), "x"), "m": (4, "x"), "n": (5, "w")}


class Owner:
    features = 7


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Float[Array, "m n"], (4, 5)),
        (Float[Array, "*batch m"], (2, 3, 4)),
        (Float[Array, "m {self.features}"], (4, 7)),
        (Float[Array, "2*m n-1 {self.features}+n"], (8, 4, 12)),
        (Float[Array, "m/2"], (2,)),
        (Float[Array, "#m rows=3"], (4, 3)),
        (Float[Array, ""], ()),
        (Float[Array, "m"] | None, (4,)),
        (Float[Array, "unknown"] | Int[Array, "m"], (4,)),
    ],
)
def test_shape_of(annotation, expected):
    shape = axes.shape_of(annotation, SIZES, {"self": Owner()})
    assert shape == expected and all(type(size) is int for size in shape)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Float[Array, "out"], "'out' is not bound yet"),
        (Float[Array, "*rest"], "'*rest' is not bound yet"),
        (Float[Array, "_"], "'_' stands for any size"),
        (Float[Array, "_rows"], "'rows' stands for any size"),
        (Float[Array, "..."], "'...' stands for any size"),
        (Float[Array, "?n"], "'n' stands for any size"),
        (Float[Array, "{self.width}"], "'{self.width}' cannot be computed (AttributeError: 'Owner' object has no"),
        (Float[Array, "out+1"], "'out+1' cannot be computed (NameError: name 'out' is not defined)"),
        (Float[Array, "m/3"], "'m/3' is 1.33"),
        (Float[Array, "n-6"], "'n-6' is -1, which is no size"),
        (Float[Array, "min"], "'min' is not bound yet"),
        (Float[Array, "{self}"], "cannot be computed (SyntaxError"),
        (Float[Array, "{self.__class__.__name__!r}"], "is 'Owner', which is no size"),
        (int, "it names no array"),
        (list[Float[Array, "n"]], "it names no array"),
    ],
)
def test_a_shape_that_is_not_known(annotation, message):
    with pytest.raises(axes.UnknownAxisError, match=re.escape(message)):
        axes.shape_of(annotation, SIZES, {"self": Owner()})


# ---------------------------------------------------------------------------------------------------------------------
# The same as jaxtyping
# ---------------------------------------------------------------------------------------------------------------------

NAMES = {"k": 2}
ENTRIES = [
    "a",
    "b",
    "c",
    "#a",
    "#b",
    "_",
    "_a",
    "1",
    "2",
    "#3",
    "rows=2",
    "a+1",
    "2*b",
    "a*b",
    "#a+1",
    "a/2",
    "{k}",
    "{k}*a",
]
VARIADIC = ["*x", "*#x", "*y", "*#y", "...", "*_"]


@st.composite
def dims(draw, entries=ENTRIES, variadic=VARIADIC):
    """The text of a shape, with one variadic axis at most."""
    parts = draw(st.lists(st.sampled_from(entries), max_size=3))
    if variadic and draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(variadic)))
    return " ".join(parts)


SIZE = st.integers(1, 3)


class Drawn(NamedTuple):
    """The text of a shape, and what it takes to make up a shape that often fits it."""

    text: str
    anonymous: list[int]
    spoilt: dict[int, int]
    dropped: int

    def shape(self, sizes: dict[str, Any]):
        shape: list[int] = []
        for part in self.text.split():
            try:
                shape.extend(axes.shape_of(Float[np.ndarray, part], {name: (sizes[name], "") for name in sizes}, NAMES))
            except axes.UnknownAxisError:
                shape.extend(self.anonymous if "*" in part or "." in part else self.anonymous[:1])
        return tuple(self.spoilt.get(index, size) for index, size in enumerate(shape))[self.dropped :]


DRAWN = st.builds(
    Drawn,
    dims(),
    st.lists(SIZE, min_size=1, max_size=2),
    st.one_of(st.just({}), st.dictionaries(st.integers(0, 3), SIZE, max_size=1)),
    st.sampled_from([0, 0, 0, 0, 1]),
)
SINGLE = {name: SIZE for name in "abc"}
SEVERAL = {f"*{name}": st.lists(SIZE, max_size=2) for name in "xy"}


def known_to_jaxtyping():
    """The axes that are bound in the running scope of jaxtyping."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        jaxtyping.print_bindings()
    found = {}
    for name, size in re.findall(r"(?m)^(\w+)=(.*)$", out.getvalue()):
        size = eval(size)
        found[f"*{name}" if isinstance(size, tuple) else name] = size
    return found


def in_scope(function):
    """Runs a function in a scope of jaxtyping in which `k` is an argument."""

    @jaxtyped(typechecker=lambda function: function)
    def scope(k):
        return function()

    return scope(**NAMES)


@hypothesis.given(st.lists(DRAWN, min_size=1, max_size=4), st.fixed_dictionaries({**SINGLE, **SEVERAL}))
@hypothesis.settings(max_examples=400)
def test_an_array_binds_what_it_binds_in_jaxtyping(drawn, drawn_sizes):
    def compare():
        sizes: axes.Sizes = {}
        for text, shape in [(one.text, one.shape(drawn_sizes)) for one in drawn]:
            value = np.zeros(shape)
            try:
                isinstance(value, Float[np.ndarray, text])
            except AnnotationError:
                continue  # it asks for an axis that has no size yet
            sizes = axes.bind(Float[np.ndarray, text], value, text, sizes, NAMES)
            assert {name: size for name, (size, _) in sizes.items()} == known_to_jaxtyping(), (text, shape)

    in_scope(compare)


@hypothesis.given(dims(variadic=["*x", "*#x"]), st.lists(st.integers(0, 4), min_size=3, max_size=5))
@hypothesis.settings(max_examples=200)
def test_jaxtyping_accepts_the_shape_that_an_annotation_gives(text, shape):
    def compare():
        assert isinstance(np.zeros(shape), Float[np.ndarray, "a b c *x"])
        sizes = bind("a b c *x", shape)
        try:
            given = axes.shape_of(Float[np.ndarray, text], sizes, NAMES)
        except axes.UnknownAxisError:
            assert "_" in text or "a/2" in text and shape[0] % 2
            return
        assert isinstance(np.zeros(given), Float[np.ndarray, text])

    in_scope(compare)


# ---------------------------------------------------------------------------------------------------------------------
# Dtypes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        (Float[Array, "n"], jnp.float32, jnp.float32),
        (Float[Array, "n"], jnp.bfloat16, jnp.bfloat16),
        (Float[Array, "n"], jnp.int32, jnp.float32),
        (Inexact[Array, "n"], jnp.complex64, jnp.complex64),
        (Num[Array, "n"], jnp.float32, jnp.float32),
        (Real[Array, "n"], jnp.complex64, jnp.float32),
        (Shaped[Array, "n"], jnp.float16, jnp.float16),
        (Int[Array, "n"], jnp.float32, jnp.int32),
        (UInt[Array, "n"], jnp.float32, jnp.uint32),
        (Bool[Array, "n"], jnp.float32, jnp.bool_),
        (Complex[Array, "n"], jnp.float32, jnp.complex64),
        (BFloat16[Array, "n"], jnp.float32, jnp.bfloat16),
        (Float16[Array, "n"], jnp.float32, jnp.float16),
        (Int8[Array, "n"], jnp.float32, jnp.int8),
        (Shaped[UInt8[Array, "n"], "m"], jnp.float32, jnp.uint8),
        (Int[Array, "n"] | None, jnp.float32, jnp.int32),
        (Int[Array, "n"] | Float[Array, "n"], jnp.float32, jnp.int32),
        (Key[Array, ""], jnp.float32, jnp.float32),
        (int, jnp.float32, jnp.float32),
    ],
)
def test_dtype_of(annotation, default, expected):
    assert jnp.dtype(axes.dtype_of(annotation, jnp.dtype(default))) == jnp.dtype(expected)


def test_dtype_of_a_kind_of_ones_own():
    class Half(jaxtyping.AbstractDtype):
        dtypes = [re.compile("b?float16"), "unheard_of"]

    assert axes.dtype_of(Half[Array, "n"], jnp.dtype(jnp.bfloat16)) == jnp.bfloat16
    assert axes.dtype_of(Half[Array, "n"], jnp.dtype(jnp.float32)) == jnp.float32
