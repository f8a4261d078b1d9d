"""Shapes and dtypes of parameters that are read off annotations."""

import contextlib
import re
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import (
    Array,
    BFloat16,
    Bool,
    Complex,
    Float,
    Float16,
    Int,
    Int32,
    Key,
    Shaped,
    UInt,
)

import elegy
from elegy.errors import ParameterError
from tests.helpers import checked, mismatch, ones

X = ones(4, 3)


def created(annotation, *args, dtype=None, attributes=None, **options):
    """The parameter that a call creates from its annotation."""

    class Net(elegy.Module):
        w: annotation  # type: ignore

        def __init__(self):
            super().__init__(dtype=dtype)
            for name, value in (attributes or {}).items():
                setattr(self, name, value)

        def call(self, x: Float[Array, "*batch n"], y: Shaped[Array, "m"] | None = None):
            return self.add_parameter("w", **options)

    net = Net()
    with checked():
        checked_value = net.copy()(*args)
    value = net(*args)
    assert (value.shape, value.dtype) == (checked_value.shape, checked_value.dtype)
    return value


@pytest.mark.parametrize(
    ("annotation", "shape"),
    [
        (Float[Array, "n"], (3,)),
        (Float[Array, "n m"], (3, 7)),
        (Float[Array, "*batch n"], (5, 4, 3)),
        (Float[Array, "{self.width} 2*n"], (6, 6)),
        (Float[Array, "rows=2 n+m-{self.width}"], (2, 4)),
        (Float[Array, "n {x.shape[0]}"], (3, 5)),
        (Float[Array, ""], ()),
        (Float[Array, "n"] | None, (3,)),
        (Int[Array, "#n"], (3,)),
    ],
)
def test_shapes_from_annotations(annotation, shape):
    value = created(annotation, ones(5, 4, 3), ones(7), attributes={"width": 6}, initializer=jnp.ones)
    assert value.shape == shape


@pytest.mark.parametrize(
    ("annotation", "dtype", "expected"),
    [
        (Float[Array, "n"], None, jnp.float32),
        (Float[Array, "n"], jnp.bfloat16, jnp.bfloat16),
        (Int[Array, "n"], None, jnp.int32),
        (Int32[Array, "n"], jnp.bfloat16, jnp.int32),
        (UInt[Array, "n"], None, jnp.uint32),
        (Bool[Array, "n"], None, jnp.bool_),
        (Complex[Array, "n"], None, jnp.complex64),
        (BFloat16[Array, "n"], None, jnp.bfloat16),
        (Float16[Array, "n"] | None, None, jnp.float16),
        (Shaped[Array, "n"], jnp.float16, jnp.float16),
    ],
)
def test_dtypes_from_annotations(annotation, dtype, expected):
    value = created(annotation, X, dtype=dtype, initializer=jnp.ones)
    assert value.dtype == expected and value.shape == (3,)


@pytest.mark.parametrize(
    "initializer",
    [
        jnp.ones,
        jax.nn.initializers.normal(),
        elegy.initializers.RandomUniform(),
        lambda shape, dtype: jnp.ones(shape, dtype),
    ],
    ids=["of shape and dtype", "of jax", "of elegy", "lambda"],
)
def test_each_kind_of_initializer_gets_the_shape(initializer):
    assert created(Float[Array, "n n"], X, initializer=initializer).shape == (3, 3)


def test_what_is_given_goes_before_the_annotation():
    assert created(Float[Array, "..."], X, shape=[2]).shape == (2,)
    assert created(Float[Array, "..."], X, initializer=ones(5)).shape == (5,)
    assert created(Float[Array, "..."], X, initializer=lambda: ones(6)).shape == (6,)
    assert created(Shaped[Array, "n"], X, dtype=jnp.bfloat16, initializer=jnp.ones).dtype == jnp.bfloat16
    keys = created(Key[Array, "n"], X, initializer=jax.random.split(jax.random.key(0), 3))
    assert jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)


def test_shapes_from_the_default_of_an_argument():
    class Net(elegy.Module):
        w: Float[Array, "{size}"]

        def call(self, x, size: int = 5):
            return self.add_parameter("w")

    assert Net()(1).shape == (5,) and Net()(1, 7).shape == (7,)


def test_shapes_in_a_constructor():
    class Net(elegy.Module):
        w: Float[Array, "{self.width} n"]

        def __init__(self, width: int, like: Float[Array, "n"]):
            self.width = width
            self.add_parameter("w", initializer=jnp.ones)

        def call(self):
            return self.w

    assert Net(2, ones(3)).w.shape == (2, 3)
    with checked():
        assert Net(2, ones(3)).w.shape == (2, 3)


def test_shapes_from_another_parameter():
    class Net(elegy.Module):
        w: Float[Array, "in out"]
        b: Float[Array, "out"]

        def call(self, x: Float[Array, "*batch in"]):
            self.add_parameter("w", [x.shape[-1], 7])
            return self.add_parameter("b")

    assert Net()(X).shape == (7,)


def test_a_shape_is_that_of_the_call_whether_a_checker_is_on_or_not():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x: Float[Array, "n"]):
            return self.other(x[:1])

        def other(self, x: Float[Array, "n"]):  # its n is another one
            return self.add_parameter("w")

    net = Net()
    assert net(ones(3)).shape == (3,)
    with checked(), mismatch("net (Net.other): the parameter w is float32[3]"):
        Net()(ones(3))


DECORATORS = {
    "remat": elegy.remat,
    "jit": elegy.jit,
    "jit of remat": lambda function: elegy.jit(elegy.remat(function)),
    "compact": elegy.compact,
    "compact remat": lambda function: elegy.compact(elegy.remat(function)),
    "remat of compact": lambda function: elegy.remat(elegy.compact(function)),
}


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
def test_shapes_in_a_method_with_a_decorator(decorate):
    class Net(elegy.Module):
        w: Float[Array, "n"]

        @decorate
        def call(self, x: Float[Array, "*batch n"]):
            return x * jnp.broadcast_to(self.add_parameter("w", initializer=jnp.ones), x.shape)

    net = Net()
    assert net(X).shape == X.shape and net.w.shape == (3,)
    with checked():
        assert Net()(X).shape == X.shape
        with mismatch("(Net.call): the argument x is float32[4,5]", "n=3 (from w)"):
            net(ones(4, 5))


def test_shapes_in_a_mapped_method_are_those_of_a_lane():
    class Net(elegy.Module):
        w: Float[Array, "n m"]

        @elegy.vmap
        def call(self, x: Float[Array, "n"], y: Float[Array, "m"]) -> Float[Array, "m"]:
            return x @ self.add_parameter("w", initializer=jnp.ones) + y

    net = Net()
    assert net(ones(5, 3), ones(5, 2)).shape == (5, 2) and net.w.shape == (3, 2)
    with checked():
        assert Net()(ones(5, 3), ones(5, 2)).shape == (5, 2)


def test_shapes_in_a_differentiated_method():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        @elegy.value_and_grad
        def call(self, x: Float[Array, "n"]) -> Float[Array, ""]:
            return jnp.sum(x * self.add_parameter("w", initializer=jnp.ones))

    for context in (contextlib.nullcontext(), checked()):
        with context:
            loss, grads = Net()(ones(3))
            assert loss == 3 and grads["w"].shape == (3,)


def test_a_method_that_call_uses_has_no_part_in_shapes_with_or_without_a_decorator():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x: Float[Array, "n"]):
            return self.other(x[:1])

        @elegy.remat
        def other(self, x: Float[Array, "n"]):  # its n is another one
            return self.add_parameter("w")

    assert Net()(ones(3)).shape == (3,)


def test_a_shape_whose_annotation_cannot_be_read_is_refused(tmp_path, monkeypatch):
    source = """
        from __future__ import annotations

        import typing

        import elegy
        import jax.numpy as jnp

        if typing.TYPE_CHECKING:
            from jaxtyping import Array, Float


        class Scale(elegy.Module):
            w: Float[Array, "features"]

            def __init__(self, **options):
                self.options = options

            def call(self, x: Float[Array, "*batch features"]):
                return x * self.add_parameter("w", **self.options)
    """
    (tmp_path / "unread.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    Scale = __import__("unread").Scale
    with pytest.raises(ParameterError) as raised:
        Scale(initializer=jnp.ones)(ones(3))
    assert str(raised.value).startswith(
        "scale/w: its shape is to be read off its annotation, Float[Array, 'features'], which cannot be read: "
        "NameError: name 'Float' is not defined.\n"
        "  Define the names in it in the module of the class, and not in a function or under `if TYPE_CHECKING:` only, "
        "or give the shape: self.add_parameter('w', [...])."
    )
    assert Scale(initializer=jnp.ones, shape=[3])(ones(3)).shape == (3,)
    assert Scale(initializer=ones(3))(ones(3)).shape == (3,)


def test_an_annotation_may_be_defined_after_its_first_use(monkeypatch):
    class Net(elegy.Module):
        w: "Vector"  # type: ignore[name-defined]  # noqa: F821

        def call(self, x: "Vector") -> "Vector":  # type: ignore[name-defined]  # noqa: F821
            return x * self.add_parameter("w", initializer=jnp.ones)

    with pytest.raises(ParameterError, match="net/w: .* annotation, Vector, .*name 'Vector' is not defined"):
        Net()(ones(3))
    monkeypatch.setitem(globals(), "Vector", Float[Array, "n"])
    net = Net()
    assert net(ones(3)).shape == net.w.shape == (3,)
    with checked(), mismatch("the argument x is float32[4]", "n=3 (from w)"):
        net(ones(4))


def test_an_argument_whose_annotation_cannot_be_read_is_named():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x: "Absent[Array, 'n']"):  # type: ignore[name-defined]  # noqa: F821
            return self.add_parameter("w")

    with pytest.raises(
        ParameterError, match="'n' is not bound yet(.|\n)*The annotation of x cannot be read: NameError"
    ):
        Net()(ones(3))


def test_a_shape_that_cannot_be_read_off_says_what_is_missing():
    class Net(elegy.Module):
        w: Float[Array, "n out"]

        def call(self, x: Float[Array, "*batch n"]):
            return self.add_parameter("w")

    with pytest.raises(ParameterError) as raised:
        Net()(X)
    assert str(raised.value) == (
        "net/w: its shape is to be read off Float[Array, \"n out\"], but 'out' is not bound yet.\n"
        "  axes: *batch=(4,) (from x), n=3 (from x)\n"
        "  Annotate an argument of call with that axis, write its size as an attribute, {self.size}, or give the "
        "shape: self.add_parameter('w', [...])."
    )


@pytest.mark.parametrize(
    ("dims", "part"),
    [
        ("_", "'_' stands for any size"),
        ("...", "'...' stands for any size"),
        ("{self.missing}", "'{self.missing}' cannot be computed (AttributeError"),
        ("n-4", "'n-4' is -1, which is no size"),
    ],
)
def test_axes_without_a_size(dims, part):
    with pytest.raises(ParameterError, match=re.escape(part)):
        created(Float[Array, dims], X, initializer=jnp.ones)
