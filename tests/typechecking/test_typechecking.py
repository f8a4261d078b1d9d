"""Typed arrays: when annotations are checked, in which scope, and what the errors say."""

import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import re
import sys
import textwrap
import threading
import types
import typing as tp
import weakref
from typing import Annotated, Any, ClassVar, Final, Generic, NamedTuple, Optional, Self, TypeVar

import beartype
import cloudpickle
import equinox as eqx
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
    Int,
    Key,
    Num,
    PyTree,
    Shaped,
    UInt,
)

import elegy
from elegy.errors import TypeCheckError, UncheckedAnnotationWarning
from tests.helpers import checked, mismatch, ones

pytestmark = pytest.mark.usefixtures("no_checker_left_on")

X = jnp.ones([4, 3])
HOUR = 3600  # seconds, after which a thread that hangs is given up


def fits(value, annotation):
    """What typeguard 2 does with the annotations of these tests."""
    kind, parts = tp.get_origin(annotation), tp.get_args(annotation)
    if annotation is Any or isinstance(annotation, TypeVar):
        return True
    if kind in (tp.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind is tuple:
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if kind is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(fits(key, parts[0]) and fits(value[key], parts[1]) for key in value)
    return isinstance(value, kind or annotation)


def typeguard_like(function):
    """A checker that raises TypeError, looks at each item of a container, and reads the hints of the function."""

    @functools.wraps(function)
    def checked(*args, **kwargs):
        hints = tp.get_type_hints(function)
        for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
            if name in hints and not fits(value, hints[name]):
                raise TypeError(f"type of argument {name!r} must be {hints[name]}; got {type(value)} instead")
        return function(*args, **kwargs)

    return checked


CHECKERS = {
    "beartype": beartype.beartype,
    "configured beartype": beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True)),
    "like typeguard": typeguard_like,
}

with_each_checker = pytest.mark.parametrize("checker", CHECKERS.values(), ids=CHECKERS)


class Counting:
    """A checker that counts how often the functions that it made are called."""

    def __init__(self):
        self.count = 0

    def __call__(self, function):
        function = beartype.beartype(function)

        @functools.wraps(function)
        def counting(*args, **kwargs):
            self.count += 1
            return function(*args, **kwargs)

        return counting


class Scale(elegy.Module):
    """Whose parameter gets its shape from its annotation."""

    w: Float[Array, "features"]

    def call(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        w = self.add_parameter("w", initializer=jnp.ones)
        return x * jnp.broadcast_to(w, x.shape)


class Linear(elegy.Module):
    """Whose parameter gets a shape that may be wrong."""

    w: Float[Array, "in out"]

    def __init__(self, shape, name=None):
        super().__init__(name=name)
        self.shape = shape

    def call(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return jnp.dot(x, self.add_parameter("w", self.shape))


class Twice(elegy.Module):
    """Whose argument and output are annotated, and nothing else."""

    def call(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        return 2 * x


WRONG = ones(2, 2)  # no argument of Twice


# ---------------------------------------------------------------------------------------------------------------------
# Switching on and off
# ---------------------------------------------------------------------------------------------------------------------


@with_each_checker
def test_a_block_is_checked_and_nothing_after_it(checker):
    twice = Twice()
    twice(WRONG)
    with elegy.typechecker(checker):
        twice(ones(3))
        with mismatch("twice (Twice.call): the argument x is float32[2,2]"):
            twice(WRONG)
    twice(WRONG)


def test_methods_are_what_the_user_wrote_while_no_checker_is_on():
    class Net(elegy.Module):
        def call(self, x: Float[Array, "n"]):
            return x

        def plain(self, x):
            return x

        def annotated(self, x: int) -> int:
            return x

        @property
        def width(self) -> int:
            return 1

        @classmethod
        def make(cls, width: int):
            return cls()

        @staticmethod
        def double(x: int) -> int:
            return 2 * x

        @elegy.compact
        def encode(self, x: int) -> int:
            return x

    written = dict(vars(Net))
    names = ["call", "annotated", "width", "make", "double", "encode"]
    assert all(vars(Net)[name] is written[name] for name in written)
    with checked():
        assert all(vars(Net)[name] is not written[name] for name in names)
        assert Net.plain is written["plain"]
    assert dict(vars(Net)) == written
    assert not hasattr(Net.call, "__wrapped__")


def test_blocks_nest():
    twice = Twice()
    with checked():
        with elegy.typechecker(None):
            twice(WRONG)
            with checked(), mismatch():
                twice(WRONG)
            twice(WRONG)
        with mismatch():
            twice(WRONG)
    twice(WRONG)


def test_of_blocks_that_overlap_the_last_one_decides():
    twice, first, second, third = Twice(), contextlib.ExitStack(), contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(checked())
    second.enter_context(elegy.typechecker(None))
    third.enter_context(checked())
    first.close()
    with mismatch():
        twice(WRONG)
    third.close()
    twice(WRONG)
    second.close()
    twice(WRONG)


def test_a_plain_call_holds_until_another_one():
    twice = Twice()
    on = elegy.typechecker(beartype.beartype)
    try:
        with mismatch():
            twice(WRONG)
        off = elegy.typechecker(None)
        try:
            twice(WRONG)
        finally:
            with off:
                pass
        with mismatch():
            twice(WRONG)
    finally:
        with on:
            pass
    twice(WRONG)


def test_a_context_can_be_entered_again():
    twice, context = Twice(), checked()
    with context:
        pass
    twice(WRONG)
    with context, elegy.typechecker(None), context:
        with mismatch():
            twice(WRONG)
    twice(WRONG)
    with context:
        with elegy.typechecker(None):
            with context:
                pass
            twice(WRONG)
        with mismatch():
            twice(WRONG)
    twice(WRONG)


def test_an_exception_ends_a_block():
    with pytest.raises(ZeroDivisionError), checked():
        1 / 0  # noqa: B018
    Twice()(WRONG)


@pytest.mark.parametrize(
    ("checker", "error", "message"),
    [
        (lambda function: function, ValueError, "<lambda>' checks nothing: a str passed for an int"),
        (5, TypeError, "not callable"),
        (print, TypeError, "not callable"),
    ],
    ids=["checks nothing", "no function", "no decorator"],
)
def test_what_is_no_checker_is_refused(checker, error, message):
    with pytest.raises(error, match=message):
        elegy.typechecker(checker)
    Twice()(WRONG)


def test_a_class_is_checked_wherever_it_was_defined():
    with checked():

        class Inside(elegy.Module):
            def call(self, x: Float[Array, "n"]):
                return x

        class Derived(Twice):
            pass

        for cls in (Inside, Derived):
            with mismatch(f"({cls.__name__}.call)"):
                cls()(WRONG)
    Inside()(WRONG)
    Derived()(WRONG)
    assert not hasattr(Inside.call, "__wrapped__")
    with checked(), mismatch():
        Inside()(WRONG)


def test_a_method_that_was_replaced_meanwhile_stays():
    class Net(Twice):
        def call(self, x: Float[Array, "n"]):
            return x

    def another(self, x):
        return 3 * x

    with checked():
        Net.call = another
    assert Net.call is another


def test_classes_that_are_made_again_and_again_are_not_kept():
    class Net(elegy.Module):
        def call(self, x):
            @elegy.to_module
            def double(x: Float[Array, "n"]):
                return 2 * x

            classes.add(double)
            return double()(x)

    classes, net = weakref.WeakSet[type](), Net()
    with checked():
        for _ in range(10):
            net(ones(3))
        gc.collect()
        assert len(classes) <= 2  # the first one, which the module has, and perhaps the last


def test_a_module_of_a_class_without_a_name_can_be_pickled_while_a_checker_is_on():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x: Float[Array, "n"]):
            return x * self.add_parameter("w")

    Net.__module__ = "__main__"
    net = Net()
    with checked():
        net(ones(3))
        copy = cloudpickle.loads(cloudpickle.dumps(net))
        with mismatch():
            copy(ones(4))
    copy(ones(1))


def test_the_switch_of_jaxtyping_is_heeded():
    twice = Twice()
    with checked():
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            twice(WRONG)
            Scale()(X)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
        with mismatch():
            twice(WRONG)


# ---------------------------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------------------------


def outcome(function, *args):
    try:
        function(*args)
    except TypeCheckError:
        return "refused"
    return "passed"


def in_thread(function, *args):
    """Runs a function in a thread of its own, and returns what it returns."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join(HOUR)
    return found[0]


def test_a_thread_that_is_started_in_a_block_is_checked():
    twice = Twice()
    with checked():
        assert in_thread(outcome, twice, WRONG) == "refused"
    assert in_thread(outcome, twice, WRONG) == "passed"


def test_a_thread_that_runs_already_is_checked_and_blocks_of_threads_overlap():
    twice, found = Twice(), []
    entered, left = threading.Event(), threading.Event()

    def run():
        found.append(outcome(twice, WRONG))
        with checked():
            entered.set()
            left.wait(HOUR)
            found.append(outcome(twice, WRONG))

    with elegy.typechecker(None):
        thread = threading.Thread(target=run)
        thread.start()
        entered.wait(HOUR)
        assert outcome(twice, WRONG) == "refused"
    assert outcome(twice, WRONG) == "refused"
    left.set()
    thread.join(HOUR)
    assert found == ["passed", "refused"]
    assert outcome(twice, WRONG) == "passed"


def test_scopes_belong_to_their_thread():
    class Slow(elegy.Module):
        def call(self, x: Float[Array, "n"]):
            if slowly:
                entered.set()
                left.wait(HOUR)
            return x

    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x: Float[Array, "n"]):
            thread.start()
            entered.wait(HOUR)
            return self.add_parameter("w", [2, 2])

    slowly, entered, left, five = False, threading.Event(), threading.Event(), ones(5)
    slow = Slow().init(five)
    slowly = True
    thread = threading.Thread(target=slow, args=[five])
    try:
        with checked(), mismatch("net (Net.call): the parameter w is float32[2,2]"):
            Net()(ones(3))
    finally:
        left.set()
        thread.join(HOUR)


# ---------------------------------------------------------------------------------------------------------------------
# One scope
# ---------------------------------------------------------------------------------------------------------------------


def test_a_field_and_an_argument():
    scale = Scale()
    scale(X)
    with checked():
        scale(ones(7, 2, 3))
        with mismatch("the argument x is float32[4,5]", "dimension features is 5 which does not equal", "of 3"):
            scale(ones(4, 5))


def test_an_argument_and_a_parameter_that_is_being_created():
    with checked():
        linear = Linear([3, 2])
        assert linear(X).shape == (4, 2)
        with mismatch("the parameter w is float32[5,2]", "dimension in is 5", "in=3 (from x)"):
            Linear([5, 2])(X)


def test_a_parameter_and_the_return_value():
    class Project(elegy.Module):
        w: Float[Array, "in out"]

        def call(self, x: Float[Array, "b in"]) -> Float[Array, "b out"]:
            w = self.add_parameter("w", [3, 2])
            return jnp.dot(jnp.dot(x, w), w.T)

    project = Project()
    with checked():
        for _ in range(2):  # when the parameter is new, and when it is there
            with mismatch("the return value is float32[4,3]", "dimension out is 3", "of 2", "out=2 (from w)"):
                project(X)


def test_two_fields():
    class Pair(elegy.Module):
        a: Float[Array, "n"]
        b: Float[Array, "n m"]

        def __init__(self, a, b):
            self.a, self.b = a, b

        def call(self):
            return self.a

    with checked():
        Pair(ones(2), ones(2, 3))()
        with mismatch("pair (Pair.__init__): the field b is float32[3,2]", "n=2 (from a)"):
            Pair(ones(2), ones(3, 2))
    pair = Pair(ones(2), ones(3, 2))
    with checked(), mismatch("pair (Pair.call): the field b"):
        pair()


def test_two_arguments_of_any_kind():
    class Sum(elegy.Module):
        def call(self, x: Float[Array, "n"], *xs: Float[Array, "n"], y: Any = None, **ys: Float[Array, "n"]):
            return x

    total = Sum()
    with checked():
        total(ones(2), ones(2), ones(2), y=ones(3), z=ones(2))
        with mismatch("the argument xs[1] is float32[3]"):
            total(ones(2), ones(2), ones(3))
        with mismatch("the argument z is float32[3]"):
            total(ones(2), y=1, z=ones(3))
        with mismatch("the argument x is float32[2,2]"):
            total(x=ones(2, 2))


def test_defaults_are_not_checked():
    class Masked(elegy.Module):
        def call(self, x: Float[Array, "n"], mask: Bool[Array, "n"] = None):  # type: ignore[assignment]
            return x

    with checked():
        Masked()(ones(2))
        with mismatch("the argument mask is None"):
            Masked()(ones(2), None)


def test_arguments_that_do_not_fit_the_signature_are_told_by_python():
    with checked(), pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Twice()()
    with checked(), pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        Twice()(1, 2)


def test_each_module_has_a_scope_of_its_own():
    class Outer(elegy.Module):
        w: Float[Array, "in"]

        def call(self, x: Float[Array, "batch in"]) -> Float[Array, "in"]:
            y = Linear([3, 2])(x)  # its `in` is 3, and so is that of the next one 2
            Linear([2, 5])(y)
            return self.add_parameter("w", initializer=jnp.ones)

    with checked():
        Outer()(X)


def test_a_module_that_is_not_checked_has_no_part_in_the_scope_of_another():
    class Free(elegy.Module):
        w: Float[Array, "n"]

        @tp.no_type_check
        def call(self, x):
            return self.add_parameter("w", [2, 2])

    class Outer(elegy.Module):
        def call(self, x: Float[Array, "n"]):
            return Free()(x)

    with checked():
        Outer()(ones(3))


def test_a_mismatch_in_a_nested_module_has_its_path():
    class Outer(elegy.Module):
        def call(self, x: Float[Array, "batch in"]):
            y = Linear([3, 2], name="first")(x)
            return Linear([3, 2], name="second")(y)

    outer = Outer()
    with checked():
        with mismatch("outer/second (Linear.call): the parameter w is float32[3,2]", "in=2 (from x)"):
            outer(X)


def test_the_call_of_a_base_class_is_checked_too():
    class Sub(Twice):
        def call(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
            return super().call(x)

    with checked():
        Sub()(ones(3))
        with mismatch("sub (Sub.call): the argument x is float32[2,2]"):
            Sub()(WRONG)


def test_a_method_with_annotations_has_a_scope_of_its_own():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x: Float[Array, "k"]):
            self.add_parameter("w", [2])
            return self.double(x[:2], x[:1]) + self.double(x[1:3], x[:2])

        def double(self, x: Float[Array, "n"], y: Float[Array, "k"]) -> Float[Array, "n"]:
            return 2 * x

    with checked():
        Net()(ones(5))
        with mismatch("net (Net.double): the argument x is float32[1]", "n=2 (from w)"):
            Net()(ones(2))


def test_a_parameter_that_a_method_creates_is_checked_in_the_scope_of_the_method():
    class Net(elegy.Module):
        w: Float[Array, "in out"]
        b: Float[Array, "out"]

        def call(self, x: Float[Array, "k"]):
            return self.affine(x) + self.bias()

        def affine(self, x: Float[Array, "in"]) -> Float[Array, "out"]:
            return jnp.dot(x, self.add_parameter("w", [3, 2]))

        def bias(self):
            return self.add_parameter("b", [2])

    class Wrong(Net):
        def affine(self, x: Float[Array, "in"]) -> Float[Array, "out"]:
            return jnp.dot(x[:1], self.add_parameter("w", [1, 2]))

    with checked():
        Net()(ones(3))
        with mismatch("wrong (Wrong.affine): the parameter w is float32[1,2]"):
            Wrong()(ones(3))


def test_fields_are_checked_where_call_has_no_annotation():
    class Net(elegy.Module):
        a: Float[Array, "n"]
        b: Float[Array, "n"]

        def call(self, x):
            self.add_parameter("a", [2])
            return self.add_parameter("b", [x])

    net = Net()
    with checked():
        with mismatch("net (Net.call): the parameter b is float32[3]", "n=2 (from a)"):
            net(3)
        net(2)


def test_constructors_are_checked():
    class Net(elegy.Module):
        w: Float[Array, "n {self.width}"]

        def __init__(self, width: int, w: Float[Array, "n m"], n: Shaped[Array, "n"]):
            self.width = width
            self.w = w

        def call(self):
            return self.w

    with checked():
        Net(3, ones(2, 3), ones(2))
        with mismatch("net (Net.__init__): the argument width is '3', which is not int"):
            Net("3", ones(2, 3), ones(2))
        with mismatch("net (Net.__init__): the argument n is float32[3]"):
            Net(3, ones(2, 3), ones(3))
        with mismatch("net (Net.__init__): the field w is float32[2,4]"):
            Net(3, ones(2, 4), ones(2))


def test_constructors_of_base_classes_are_checked():
    class Base(elegy.Module):
        def __init__(self, width: int):
            self.width = width

    class Sub(Base):
        w: Float[Array, "{self.height}"]

        def __init__(self, width, height: int):
            self.w = ones(2)
            super().__init__(width)
            self.height = height  # which the base class does without

    with checked():
        Sub(1, 2)
        with mismatch("sub (Sub.__init__): the argument width is '1'"):
            Sub("1", 2)
        with mismatch("sub (Sub.__init__): the field w is float32[2]"):
            Sub(1, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of methods and classes
# ---------------------------------------------------------------------------------------------------------------------


def test_properties_class_methods_and_static_methods():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def __init__(self, w):
            self.w = w

        @property
        def doubled(self) -> Float[Array, "n"]:
            """Its docstring."""
            return jnp.concatenate([self.w, self.w])

        @classmethod
        def make(cls, n: int) -> "Net":  # noqa: F821
            return cls(ones(n))

        @staticmethod
        def add(x: Float[Array, "n"], y: Float[Array, "n"]):
            return x

    net = Net(ones(2))
    with checked():
        with mismatch("net (Net.doubled): the return value is float32[4]", "n=2 (from w)"):
            net.doubled  # noqa: B018
        assert Net.doubled.__doc__ == "Its docstring."
        Net.add(ones(2), ones(2))
        with mismatch("Net.add: the argument y is float32[3]", "n=2 (from x)"):
            net.add(ones(2), ones(3))
        with mismatch("Net.make: the argument n is 'a', which is not int"):
            Net.make("a")
    assert net.doubled.shape == (4,)


def test_compact_methods():
    class Auto(elegy.Module):
        w: Float[Array, "n"]
        v: Float[Array, "m n"]

        @elegy.compact
        def encode(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
            return x * jnp.broadcast_to(self.add_parameter("w", initializer=jnp.ones), x.shape)

        @elegy.compact
        def decode(self, z: Float[Array, "m"], shape=None):
            return self.add_parameter("v", shape)

        def call(self, x):
            return self.decode(self.encode(x))

    auto = Auto()
    with checked():
        auto.encode(X)
        assert auto.w.shape == (3,)
        with mismatch("auto (Auto.encode): the argument x is float32[4,5]"):
            auto.encode(ones(4, 5))
        assert auto.decode(ones(2)).shape == (2, 3)
    other = Auto()
    with checked():
        with mismatch("auto (Auto.decode): the parameter v is float32[5,3]", "m=2 (from z)"):
            other.decode(ones(2), [5, 3])
    assert auto.encode(X).shape == (4, 3)


def test_what_is_marked_as_no_type_check_is_not_checked():
    class Net(elegy.Module):
        @tp.no_type_check
        def call(self, x: Float[Array, "n"]):
            return x

        @tp.no_type_check
        @elegy.compact
        def above(self, x: int):
            return x

        @elegy.compact
        @tp.no_type_check
        def below(self, x: int):
            return x

        @staticmethod
        @tp.no_type_check
        def static(x: int):
            return x

    written = dict(vars(Net))
    with checked():
        assert dict(vars(Net)) == written
        for method in (Net(), Net().above, Net().below, Net.static):
            method("no array, no int")


@pytest.mark.parametrize("before", [True, False], ids=["defined before", "defined in the block"])
def test_a_class_that_is_marked_as_no_type_check_is_not_checked(before):
    def define():
        @tp.no_type_check
        class Net(elegy.Module):
            w: Float[Array, "n"]

            def __init__(self, w: int):
                self.w = w

            def call(self, x: int):
                return self.add_parameter("v", [2])

        class Sub(Net):
            u: Float[Array, "n"]

            def __init__(self, u: Float[Array, "n"]):
                super().__init__(ones(2, 2))
                self.u = u

        return Net, Sub

    classes = define() if before else None
    with checked():
        Net, Sub = classes or define()
        net = Net(ones(2, 2))
        net("no int")
        # The mark is of the class, and not of classes that derive from it.
        with mismatch("sub (Sub.__init__): the argument u"):
            Sub(ones(2, 2))
        Sub(ones(2))("no int")


@pytest.mark.parametrize("before", [True, False], ids=["defined before", "defined in the block"])
def test_dataclasses(before):
    def define():
        @dataclasses.dataclass
        class Data(elegy.Module):
            width: int
            w: Float[Array, "n {self.width}"] | None = None

            def call(self, x: Float[Array, "n"]) -> Float[Array, "{self.width}"]:
                return jnp.dot(x, self.add_parameter("v", [x.shape[0], self.width]))

        @dataclasses.dataclass
        class Sub(Data):
            b: Float[Array, "n"] = dataclasses.field(default_factory=lambda: ones(3))

        @dataclasses.dataclass
        class Initial(elegy.Module):
            like: dataclasses.InitVar[Float[Array, "n"]]
            _: dataclasses.KW_ONLY
            w: Float[Array, "n"]

            def __post_init__(self, like):
                pass

        return Data, Sub, Initial

    classes = define() if before else None
    with checked():
        Data, Sub, Initial = classes or define()
        with mismatch("initial (Initial.__init__): the argument w is float32[3]", "n=2 (from like)"):
            Initial(ones(2), w=ones(3))
        for _ in range(2):  # the first construction and a later one
            for cls in (Data, Sub):
                with mismatch("__init__): the argument width is 'a', which is not int"):
                    cls("a")
                with mismatch("__init__): the argument w is float32[3,4]", "dimension size 4 does not equal"):
                    cls(2, ones(3, 4))
        with mismatch("sub (Sub.__init__): the argument w is float32[3,2]", "existing value of 4", "n=4 (from b)"):
            Sub(2, ones(3, 2), ones(4))
        assert Sub(2, ones(3, 2))(ones(3)).shape == (2,)
        with mismatch("sub (Sub.call): the argument x is float32[4]", "n=3 (from"):
            Sub(2, ones(3, 2))(ones(4))
    Data("a")


def test_fields_of_base_classes():
    class Base(elegy.Module):
        w: Float[Array, "n"]
        v: Float[Array, "n"]

        def __init__(self, w, v):
            self.w, self.v = w, v

    class Mixin(elegy.Module):
        u: Float[Array, "n"]

    class Sub(Base, Mixin):
        v: Float[Array, "n n"]  # in the place of that of the base class

        def call(self, x: Float[Array, "n"]):
            return self.add_parameter("u", initializer=jnp.ones)

    with checked():
        assert Sub(ones(2), ones(2, 2))(ones(2)).shape == (2,)
        with mismatch("sub (Sub.__init__): the field v is float32[2]"):
            Sub(ones(2), ones(2))
        with mismatch("sub (Sub.call): the argument x is float32[3]", "n=2 (from w)"):
            Sub(ones(2), ones(2, 2))(ones(3))

        class Loose(Base):
            v: Any

        Loose(ones(2), ones(3))


T = TypeVar("T")


def test_generic_classes():
    class Box(elegy.Module, Generic[T]):
        content: T
        w: Float[Array, "n"]

        def __init__(self, content: T):
            self.content = content

        def call(self, x: Float[Array, "n"], other: T) -> tuple[T, Float[Array, "n"]]:
            return other, self.add_parameter("w")

    with checked():
        for box in (Box(1), Box[int](1)):
            assert box(ones(3), "any")[1].shape == (3,)
            with mismatch("box (Box.call): the argument x is float32[4]"):
                box(ones(4), 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is new in Python 3.12")
def test_generic_classes_with_type_parameters(tmp_path, monkeypatch):
    source = """
        from __future__ import annotations

        import elegy
        from jaxtyping import Array, Float


        class Box[T](elegy.Module):
            w: Float[Array, "n"] | list[T] | None

            def call(self, x: Float[Array, "n"], content: T) -> T:
                self.add_parameter("w")
                return self.same(content)

            def same[S](self, content: S) -> S:
                return content


        type Weights = Float[Array, "n"]
        type Several = list[Weights] | None


        class Aliases(elegy.Module):
            w: Weights

            def call(self, x: Weights, xs: Several = None) -> Weights:
                return self.add_parameter("w")
    """
    module = import_package(tmp_path, monkeypatch, "boxes", source)
    box = module.Box()
    with checked():
        assert box(ones(3), 1) == 1 and box.w.shape == (3,)
        with mismatch("the argument x is float32[4]"):
            box(ones(4), 1)
        aliases = module.Aliases()
        assert aliases(ones(3), [ones(3)]).shape == (3,)
        with mismatch("the argument xs[0] is float32[4]", "n=3 (from w)"):
            aliases(ones(3), [ones(4)])


def test_the_class_itself():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, other: Self | None, others: "list[Self]") -> "Net":  # noqa: F821
            return self

    with checked():
        net = Net()
        assert net(None, [net]) is net and net(net, []) is net
        with mismatch("the argument other is Scale, which is not Net | None"):
            net(Scale(), [])
        with mismatch("the argument others is [Scale], which is not list[Net]"):
            net(None, [Scale()])


def test_string_annotations():
    class Net(elegy.Module):
        w: "Float[Array, 'n'] | Net | None"  # noqa: F821

        def call(self, x: "Float[Array, 'n']", net: "Net | None" = None) -> "Float[Array, 'n']":  # noqa: F821
            return self.add_parameter("w")

    net = Net()
    with checked():
        assert net(ones(3), net).shape == (3,)
        with mismatch('the argument x is float32[4], which is not Float[Array, "n"]'):
            net(ones(4))


def test_string_annotations_with_names_of_the_function_around():
    Vector = Float[Array, "n"]

    class Net(elegy.Module):
        def call(self, x: "Vector"):  # type: ignore
            return Vector, x

    with checked(), mismatch('the argument x is float32[2,2], which is not Float[Array, "n"]'):
        Net()(WRONG)


def test_future_annotations(tmp_path, monkeypatch):
    source = """
        from __future__ import annotations

        import dataclasses
        import typing

        import elegy
        from jaxtyping import Array, Float

        if typing.TYPE_CHECKING:
            from typing import Self


        @dataclasses.dataclass
        class Net(elegy.Module):
            width: int
            w: Float[Array, "n {self.width}"] | None = None

            def call(self, x: Float[Array, "n"], other: Self | None = None) -> Float[Array, "{self.width}"]:
                return x[: self.width]
    """
    net = import_package(tmp_path, monkeypatch, "futures", source).Net(2)
    with checked():
        assert net(ones(3), net).shape == (2,)
        with mismatch("net (Net.call): the return value is float32[1]"):
            net(ones(1))


def import_package(tmp_path, monkeypatch, name, source):
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    __import__(name)
    return sys.modules[name]


def test_functions_that_became_modules():
    @elegy.to_module
    def shift(x: Float[Array, "n"], by: Float[Array, "n"]) -> Float[Array, "n"]:
        return x + by

    with checked():
        shift()(ones(2), ones(2))
        with mismatch("shift: the argument by is float32[3]", "n=2 (from x)"):
            shift()(ones(2), ones(3))
    assert shift()(ones(2), ones(1, 2)[0]).shape == (2,)


def test_decorated_methods():
    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return wrapper

    class Net(elegy.Module):
        w: Float[Array, "n"]

        @logged
        def call(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
            return self.add_parameter("w")

    calls, net = [], Net()
    with checked():
        net(ones(3))
        with mismatch("net (Net.call): the argument x is float32[4]"):
            net(ones(4))
    assert set(calls) == {"call"}


def logged_by_name(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


DECORATED = {
    "remat": elegy.remat,
    "jit": elegy.jit,
    "jit of remat": lambda function: elegy.jit(elegy.remat(function)),
    "remat of a decorator": lambda function: elegy.remat(logged_by_name(function)),
    "compact remat": lambda function: elegy.compact(elegy.remat(function)),
    "remat of compact": lambda function: elegy.remat(elegy.compact(function)),
}


@pytest.mark.parametrize("decorate", DECORATED.values(), ids=DECORATED)
@pytest.mark.parametrize("inside", [True, False], ids=["class made inside", "class made before"])
def test_methods_with_a_transform(decorate, inside):
    def make():
        class Net(elegy.Module):
            w: Float[Array, "n"]

            def __init__(self):
                self.w = ones(3)

            @decorate
            def same(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
                return x

            @decorate
            def call(self, x):
                return self.same(x)

        return Net

    cls = None if inside else make()
    with checked():
        net = (cls or make())()
        net.same(ones(3))
        net(ones(3))
        for run in (net, net.same):
            with mismatch("(Net.same): the argument x is float32[4]", "n=3 (from w)"):
                run(ones(4))
    net.same(ones(5))


def test_outputs_of_methods_with_a_transform():
    class Net(elegy.Module):
        @elegy.remat
        def one(self, x: Float[Array, "n"]) -> Float[Array, "n n"]:
            return x

        @elegy.value_and_grad
        def slope(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
            return jnp.sum(x) * self.add_parameter("w", initializer=jnp.ones)

        @elegy.vmap
        def lanes(self, x: Float[Array, "n"]) -> Float[Array, ""]:
            return x.sum()

        @property
        @elegy.jit
        def width(self) -> Int[Array, ""]:
            return ones()

        @staticmethod
        @elegy.vmap
        def total(x: Float[Array, "n"]) -> Float[Array, ""]:
            return x.sum()

    net = Net()
    with checked():
        with mismatch("net (Net.one): the return value is float32[3]"):
            net.one(ones(3))
        with mismatch("net (Net.lanes): the argument x is float32[2,2]"):
            net.lanes(ones(5, 2, 2))
        with mismatch("net (Net.width): the return value is float32[]"):
            _ = net.width
        with mismatch("Net.total: the argument x is float32[]"):
            Net.total(ones(3))
        assert net.lanes(ones(5, 2)).shape == Net.total(ones(5, 2)).shape == (5,)
    assert net.one(ones(3)).shape == (3,) and net.width == 1


def test_functions_with_a_transform_that_became_modules():
    @elegy.to_module
    @elegy.vmap
    def total(x: Float[Array, "n"]) -> Float[Array, ""]:
        return x.sum()

    with checked():
        assert total()(ones(3, 2)).shape == (3,)
        with mismatch("total: the argument x is float32[]"):
            total()(ones(3))


def test_methods_with_a_transform_are_not_compiled_again_by_switching():
    class Net(elegy.Module):
        @elegy.jit
        def same(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
            traces.append(x.shape)
            return x

    traces, net, written = [], Net(), Net.same
    net.same(ones(3))
    traces.clear()
    for _ in range(3):
        with checked():
            net.same(ones(3))
            with mismatch("the argument x is float32[2,2]"):
                net.same(WRONG)
    assert traces == [] and Net.same is written
    copy = cloudpickle.loads(cloudpickle.dumps(net))
    with checked(), mismatch("the argument x is float32[2,2]"):
        copy.same(WRONG)


def test_methods_with_a_transform_that_are_marked_as_no_type_check():
    class Net(elegy.Module):
        @elegy.remat
        @tp.no_type_check
        def same(self, x: Float[Array, "n"]):
            return x

    with checked():
        Net().same(WRONG)


def test_a_note_on_a_mapped_method_is_about_a_lane():
    class Net(elegy.Module):
        @elegy.vmap
        def call(self, x: Float[Array, "n"], y: Float[Array, "n"]):
            return jnp.dot(x, y)

    net = Net()
    assert net(ones(5, 3), ones(5, 3)).shape == (5,)
    notes = notes_of(net, ones(5, 3), ones(5, 2))
    assert notes[0].startswith('in net (Net.call): the argument y is float32[2], which is not Float[Array, "n"]')
    assert notes[1] == "in net (Net.call); parameters: none; inputs: float32[5,3], float32[5,2]"


def test_operators():
    class Vector(elegy.Module):
        w: Float[Array, "n"]

        def __init__(self, w):
            self.w = w

        def __add__(self, other: Float[Array, "n"]) -> Float[Array, "n"]:
            return self.w + other

        def __getitem__(self, index: int) -> Float[Array, ""]:
            return self.w[index]

        def __call__(self, x: Float[Array, "n"]) -> Any:
            return super().__call__(x)

        def call(self, x):
            return x

        def __repr__(self) -> int:  # type: ignore[override]
            return "vector"  # type: ignore[return-value]

    vector = Vector(ones(3))
    with checked():
        assert (vector + ones(3)).shape == vector(ones(3)).shape == (3,) and vector[0] == 1
        with mismatch("vector (Vector.__add__): the argument other is float32[4]", "n=3 (from w)"):
            vector + ones(4)
        with mismatch("vector (Vector.__getitem__): the argument index is 'a'"):
            vector["a"]
        with mismatch("vector (Vector.__call__): the argument x is float32[4]"):
            vector(ones(4))
        assert repr(vector) == "vector"  # showing a module checks nothing
        copy.deepcopy(vector)
    vector + ones(1)


def test_post_init():
    @dataclasses.dataclass
    class Net(elegy.Module):
        w: Float[Array, "n"]
        scale: dataclasses.InitVar[Float[Array, "n"]]

        def __post_init__(self, scale: Float[Array, "n"]) -> None:
            self.scaled = self.w * scale

    with checked():
        assert Net(ones(3), ones(3)).scaled.shape == (3,)
        with mismatch("scale is float32[2]"):
            Net(ones(3), ones(2))


def test_a_method_of_a_function_that_is_not_there_yet():
    class Net(elegy.Module):
        def call(self, x: Float[Array, "n"]):
            return later(x) if x.shape[0] > 5 else x

    with checked(), mismatch("the argument x is float32[2,2]"):
        Net()(WRONG)

    def later(x):
        return x


# ---------------------------------------------------------------------------------------------------------------------
# Annotations
# ---------------------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Any
    y: Any


def key(number):
    return jax.random.key(number)


# An annotation, values that it takes, and values that it refuses, in a module in which `n` is 2 and `self.width` is 3.
ANNOTATIONS = [
    (Float[Array, "n"], [ones(2)], [ones(3), ones(2, 2), np.ones(2, np.float32), 1.0, [1.0, 2.0], None]),
    (Float[Array, "{self.width}"], [ones(3)], [ones(2)]),
    (Float[Array, "2*n n+{self.width}"], [ones(4, 5)], [ones(4, 4), ones(2, 5)]),
    (Float[Array, "*batch n"], [ones(2), ones(7, 8, 2)], [ones(7), ones()]),
    (Float[Array, "... n"], [ones(2), ones(7, 8, 2)], [ones(7), ones()]),
    (Float[Array, "#n m"], [ones(2, 3), ones(1, 3)], [ones(3, 3)]),
    (Float[Array, "_ n"], [ones(7, 2)], [ones(7, 3), ones(2)]),
    (Float[Array, "_rows n"], [ones(7, 2)], [ones(7, 3)]),
    (Float[Array, "rows=4 n"], [ones(4, 2)], [ones(5, 2)]),
    (Float[Array, ""], [ones()], [ones(1)]),
    (Float[Array, "n"] | None, [ones(2), None], [ones(3)]),
    (Optional[Int[Array, "n"]], [ones(2, dtype=jnp.int32), None], [ones(2)]),  # noqa: UP045
    (Float[Array, "n"] | Int[Array, "m"], [ones(2), ones(5, dtype=jnp.int32)], [ones(5)]),
    (Float[Array, "n"] | int, [ones(2), 1], [ones(3), 1.0]),
    (Float[ArrayLike, "n"], [ones(2), np.ones(2)], [ones(3), np.ones(3)]),
    (Float[np.ndarray, "n"], [np.ones(2)], [ones(2), np.ones(3)]),
    (Num[Any, "n"], [np.ones(2), ones(2)], [np.ones(3), 1]),
    (
        tuple[Float[Array, "n"], Int[Array, "m"]],
        [(ones(2), ones(5, dtype=jnp.int32))],
        [(ones(2), ones(5)), (ones(2),)],
    ),
    (tuple[Float[Array, "n"], ...], [(), (ones(2), ones(2))], [(ones(2), ones(3)), [ones(2)]]),
    (list[Float[Array, "n"]], [[], [ones(2), ones(2)]], [[ones(2)] * 9 + [ones(3)], (ones(2),)]),
    (list[Float[Array, "m"]], [[ones(5), ones(5)]], [[ones(5), ones(6)]]),
    (dict[str, Float[Array, "n"]], [{}, {"a": ones(2)}], [{"a": ones(2), "b": ones(3)}, {1: ones(2)}]),
    (list[Float[Array, "n"]] | None, [None, [ones(2)]], [[ones(2), ones(3)]]),
    (PyTree[Float[Array, "n"]], [ones(2), {"a": [ones(2)]}, Point(ones(2), None)], [{"a": [ones(2), ones(3)]}, 1]),
    (PyTree[Float[Array, "n"] | int], [{"a": 1, "b": ones(2)}], [{"a": 1.0}, [ones(3)]]),
    (PyTree[int], [[1, 2]], [[1, "a"]]),
    (Key[Array, ""], [key(0)], [ones(), jax.random.PRNGKey(0), jax.random.split(key(0), 2)]),
    (Key[Array, "n"], [jax.random.split(key(0), 2)], [key(0), jax.random.split(key(0), 3)]),
    (UInt[Array, "n"], [jax.random.PRNGKey(0)], [key(0)]),
    (Int[Array, "n"], [ones(2, dtype=jnp.int8)], [ones(2, dtype=jnp.uint8), ones(2), ones(2, dtype=bool)]),
    (Bool[Array, "n"], [ones(2, dtype=bool)], [ones(2, dtype=jnp.int32)]),
    (Complex[Array, "n"], [ones(2, dtype=jnp.complex64)], [ones(2)]),
    (BFloat16[Array, "n"], [ones(2, dtype=jnp.bfloat16)], [ones(2), ones(2, dtype=jnp.float16)]),
    (Float[Array, "n"], [ones(2, dtype=jnp.bfloat16)], [ones(2, dtype=jnp.int32)]),
    (Annotated[Float[Array, "n"], "metres"], [ones(2)], [ones(3)]),
    (int, [1], ["a", 1.0]),
]
ARRAY_ANNOTATIONS = [case for case in ANNOTATIONS if case[0] not in (int, PyTree[int])]


def each_with_a_checker(cases):
    """All cases with beartype, and some with each of the other checkers."""
    first, *others = CHECKERS.values()
    rows = [(first, *case) for case in cases] + [(other, *case) for other in others for case in cases[::4]]
    return pytest.mark.parametrize(("checker", "annotation", "good", "bad"), rows)


@each_with_a_checker(ANNOTATIONS)
def test_annotations_of_arguments_and_outputs(checker, annotation, good, bad):
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def __init__(self):
            self.width = 3
            self.w = ones(2)

        def call(self, x: annotation):  # type: ignore
            return None

        def give(self, x) -> annotation:  # type: ignore
            return x

    net = Net()
    with elegy.typechecker(checker):
        for value in good:
            net(value)
            net.give(value)
        for value in bad:
            with mismatch("net (Net.call): the argument x"):
                net(value)
            with mismatch("net (Net.give): the return value"):
                net.give(value)


@each_with_a_checker(ARRAY_ANNOTATIONS)
def test_annotations_of_fields(checker, annotation, good, bad):
    class Net(elegy.Module):
        first: Float[Array, "n"]
        w: annotation  # type: ignore

        def __init__(self, w):
            self.width = 3
            self.first = ones(2)
            self.w = w

        def call(self):
            return self.w

    with elegy.typechecker(checker):
        for value in good:
            Net(value)()
        for value in bad:
            # None is a field without a value, and NumPy's arrays are leaves as good as those of JAX.
            allowed = value is None or (
                isinstance(value, np.ndarray) and value.shape == (2,) and "ndarray" not in str(annotation)
            )
            with contextlib.nullcontext() if allowed else mismatch("net (Net.__init__): the field w"):
                Net(value)()


@pytest.mark.parametrize(
    ("annotation", "wrap"),
    [
        (Float[Array, "n"], lambda x: x),
        (Float[Array, "n"] | None, lambda x: x),
        (list[Float[Array, "n"]], lambda x: [x]),
        (dict[str, Float[Array, "n"] | None], lambda x: {"a": x}),
        (tuple[Float[Array, "n"], ...], lambda x: (x,)),
        (PyTree[Float[Array, "n"]], lambda x: {"a": [x]}),
    ],
)
def test_leaves_may_be_arrays_of_numpy(annotation, wrap):
    class Net(elegy.Module):
        w: annotation  # type: ignore

        def __init__(self, w):
            self.w = w

        def call(self, x: Float[Array, "n"]):
            return x

    with checked():
        net = Net(wrap(np.ones(2, np.float32)))
        net(ones(2))
        with mismatch("the argument x", "n=2 (from w"):
            net(ones(3))
        with mismatch("the field w", 'which is not Float[Array, "n"]', ": this array has 2 dimensions"):
            Net(wrap(np.ones([2, 2], np.float32)))
        with mismatch("the field w", ": int32 is not a dtype of Float."):
            Net(wrap(np.ones(2, np.int32)))
        jax.tree.map(np.asarray, Scale().init(X))(ones(4, 3))
        Net(wrap(jax.ShapeDtypeStruct((2,), jnp.float32)))
        with mismatch("the field w", "float32[2,2]"):
            Net(wrap(jax.ShapeDtypeStruct((2, 2), jnp.float32)))


def test_arrays_below_a_question_mark_may_differ():
    class Net(elegy.Module):
        def call(self, x: PyTree[Float[Array, "?n"], "T"], y: PyTree[Float[Array, "?n"], "T"]):
            return x

    with checked():
        Net()([ones(2), ones(3)], [ones(2), ones(3)])
        with mismatch("the argument y is [float32[3], float32[2]]"):
            Net()([ones(2), ones(3)], [ones(3), ones(2)])
        with mismatch("the argument y is (float32[2], float32[3])"):
            Net()([ones(2), ones(3)], (ones(2), ones(3)))


def test_broadcasting_axes():
    class Add(elegy.Module):
        def call(self, x: Float[Array, "*#batch n"], y: Float[Array, "*#batch n"]) -> Float[Array, "*batch n"]:
            return jnp.add(*jnp.broadcast_arrays(x, y))

    with checked():
        assert Add()(ones(5, 1, 2), ones(4, 2)).shape == (5, 4, 2)
        with mismatch("the argument y is float32[4,2]", "*batch=(5, 3) (from x)"):
            Add()(ones(5, 3, 2), ones(4, 2))


def test_the_item_that_does_not_fit_is_named():
    class Net(elegy.Module):
        w: dict[str, list[Float[Array, "n"]]]

        def __init__(self, w):
            self.w = w

        def call(self, xs: tuple[Float[Array, "n"], ...]) -> PyTree[Float[Array, "n"]]:
            return {"out": [*xs, ones(4)]}

    with checked():
        with mismatch("the field w['a'][1] is float32[3], which is not Float[Array, \"n\"]", "n=2 (from w['a'][0])"):
            Net({"a": [ones(2), ones(3)]})
        with mismatch("the argument xs[2] is float32[3]"):
            Net({"a": [ones(2)]})((ones(2), ones(2), ones(3)))
        with mismatch("the return value['out'][1] is float32[4]"):
            Net({"a": [ones(2)]})((ones(2),))


def test_fields_that_are_about_no_array_or_belong_to_the_class():
    class Net(elegy.Module):
        shared: ClassVar[Float[Array, "n"]] = ones(2, 2)
        fixed: Final[Float[Array, "n"]]
        width: int
        name_of_it: "str"

        def __init__(self, fixed, width="not an int"):
            self.fixed = fixed
            self.width = width

        def call(self, x: Float[Array, "n"]):
            return x

    with checked():
        Net(ones(2))(ones(2))
        with mismatch("the field fixed is float32[2,2]"):
            Net(ones(2, 2))
        with mismatch("the argument x is float32[3]", "n=2 (from fixed)"):
            Net(ones(2))(ones(3))


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be checked
# ---------------------------------------------------------------------------------------------------------------------


@with_each_checker
def test_an_annotation_that_cannot_be_read_warns_and_the_rest_is_checked(checker):
    class Net(elegy.Module):
        w: "Missing[Array, 'n']"  # type: ignore[name-defined]

        def call(self, x: "Absent[Array, 'n']", y: Float[Array, "n"]) -> "Lost[Array, 'n']":  # type: ignore
            self.add_parameter("w", [2])
            return x

    net = Net()
    net(WRONG, ones(2))  # nothing is checked, so nothing is missed
    with elegy.typechecker(checker):
        with pytest.warns(UncheckedAnnotationWarning) as warned:
            net(WRONG, ones(2))
        texts = [str(warning.message) for warning in warned]
        assert [re.findall("the (?:return )?annotation(?: of \\w)?", text)[0] for text in texts] == [
            "the annotation of w",
            "the annotation of x",
            "the return annotation",
        ]
        assert all("Net" in text and "cannot be read, so it is not checked" in text for text in texts)
        with pytest.warns(UncheckedAnnotationWarning), mismatch("the argument y is float32[2,2]"):
            net(WRONG, WRONG)


def test_an_annotation_that_cannot_be_read_has_no_part_in_shapes_and_notes():
    class Net(elegy.Module):
        w: "Missing[Array, 'n']"  # type: ignore[name-defined]

        def call(self, x: "Absent[Array, 'n']", y: Float[Array, "n"]):  # type: ignore[name-defined]
            self.add_parameter("w", [])
            raise ZeroDivisionError

    [note] = notes_of(Net(), 1, WRONG)
    assert note.startswith("in net (Net.call); parameters: w: float32[]; inputs: 1, float32[2,2]")
    assert "the argument y is float32[2,2]" in note


def test_an_annotation_that_the_checker_does_not_know_warns():
    class Net(elegy.Module):
        def call(self, x: Annotated[int, []]):
            return x

    with checked(), pytest.warns(UncheckedAnnotationWarning, match="Net.call: the annotation of x cannot be read"):
        Net()(1)


def test_axes_that_only_the_call_knows_are_checked_in_the_call():
    class Net(elegy.Module):
        w: Float[Array, "2*n"]

        def __init__(self, w=None):
            if w is not None:
                self.w = w

        def call(self, x: Float[Array, "n"]):
            return self.add_parameter("w", [x.shape[0] + 2]) if "w" not in self.__dict__ else self.w

    with checked():
        Net(ones(4))(ones(2))
        Net()(ones(2))
        with mismatch("net (Net.call): the field w is float32[4]", "existing value of 2*n=6"):
            Net(ones(4))(ones(3))
        with mismatch("net (Net.call): the parameter w is float32[5]", "n=3 (from x)"):
            Net()(ones(3))


def test_a_field_is_checked_before_the_method_runs_if_the_arguments_have_its_axes():
    class Net(elegy.Module):
        w: Float[Array, "2*n"]

        def __init__(self):
            self.w = ones(4)

        def call(self, x: Float[Array, "n"]):
            raise ZeroDivisionError

    with checked(), mismatch("net (Net.call): the field w is float32[4]"):
        Net()(ones(3))


def test_an_expression_that_cannot_be_computed_is_a_mismatch():
    class Net(elegy.Module):
        w: Float[Array, "{self.widht}"]

        def __init__(self):
            self.width = 3
            self.w = ones(3)

        def call(self, x: Float[Array, "{self.widht}"]):
            return x

    net = Net()
    with checked():
        with mismatch("net (Net.__init__): the field w", "AttributeError: 'Net' object has no attribute 'widht'"):
            Net()
        with mismatch("net (Net.call): the field w", "AttributeError: 'Net' object has no attribute 'widht'"):
            net(ones(3))


def test_axes_that_nobody_knows_warn():
    class Net(elegy.Module):
        w: Float[Array, "2*n"]

        def __init__(self):
            self.w = ones(4)

        def call(self, x):
            return self.double(x)

        def double(self, x: Float[Array, "n"]):
            return x

    class Lazy(elegy.Module):
        w: Float[Array, "2*n"]

        def call(self, x):
            return self.add_parameter("w", [4])

    net = Net()
    with checked():
        with pytest.warns(UncheckedAnnotationWarning, match="Lazy: the annotation of w refers to axes that no"):
            Lazy()(1)
        with pytest.warns(UncheckedAnnotationWarning, match="Net: the annotation of w refers to axes that no"):
            net(ones(2))
        with pytest.raises(TypeCheckError, match="net .Net.double.: the field w is float32.4."):
            net(ones(3))


def test_arguments_may_refer_to_axes_of_later_ones():
    class Net(elegy.Module):
        def call(self, x: Float[Array, "2*n"], y: Float[Array, "n"] | None) -> Float[Array, "{y.shape[0]}"]:
            return x[:2]

    with checked():
        Net()(ones(4), ones(2))
        with mismatch("net (Net.call): the argument x is float32[5]", "existing value of 2*n=4"):
            Net()(ones(5), ones(2))
        with pytest.raises(AnnotationError, match=r"Cannot process symbolic axis '2\*n'"):
            Net()(ones(4), None)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms
# ---------------------------------------------------------------------------------------------------------------------


def net_and_traces():
    traces = []

    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
            traces.append(x.shape)
            w = self.add_parameter("w", initializer=jnp.ones)
            return x * jnp.broadcast_to(w, x.shape)

    return Net().init(X), traces


@pytest.mark.parametrize("compiled", ["elegy.jit", "jax.jit", "method"])
def test_compiled_code_checks_nothing_and_is_not_traced_again(compiled):
    net, traces = net_and_traces()
    function = {
        "elegy.jit": elegy.jit(net),
        "jax.jit": functools.partial(jax.jit(lambda net, x: net(x)), net),
        "method": net.jit,
    }[compiled]
    counting = Counting()
    with elegy.typechecker(counting):
        function(X)
        seen, count = len(traces), counting.count
        assert count > 0
        for _ in range(3):
            function(X)
        assert (len(traces), counting.count) == (seen, count)
    function(X)
    with checked():
        function(X)
    with elegy.typechecker(None):
        function(X)
    assert len(traces) == seen
    with checked(), mismatch("the argument x is float32[4,5]"):
        function(ones(4, 5))


def test_code_that_was_compiled_without_a_checker_is_not_traced_again():
    net, traces = net_and_traces()
    compiled = elegy.jit(net)
    compiled(X)
    seen, counting = len(traces), Counting()
    with elegy.typechecker(counting):
        count = counting.count
        compiled(X)
    assert (len(traces), counting.count) == (seen, count)


class Body(elegy.Module):
    """Whose output is a scalar for each row."""

    w: Float[Array, "n"]

    def call(self, x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(x * self.add_parameter("w", initializer=jnp.ones))


TRANSFORMS = {
    "plain": lambda net, x: net(x[0]),
    "jax.jit": lambda net, x: jax.jit(lambda net, x: net(x))(net, x[0]),
    "elegy.jit": lambda net, x: elegy.jit(net)(x[0]),
    "jax.vmap": lambda net, x: jax.vmap(lambda x: net(x))(x),
    "jax.vmap of a module": lambda net, x: jax.vmap(lambda net, x: net(x), in_axes=(None, 0))(net, x),
    "elegy.vmap": lambda net, x: elegy.vmap(net)(x),
    "jax.lax.scan": lambda net, x: jax.lax.scan(lambda total, x: (total + net(x), None), 0.0, x),
    "elegy.scan": lambda net, x: elegy.scan(lambda total, x: (total + net(x), None), 0.0, x, modules=net),
    "jax.grad": lambda net, x: jax.grad(lambda net, x: net(x))(net, x[0]),
    "elegy.grad": lambda net, x: elegy.grad(net)(x[0]),
    "elegy.value_and_grad": lambda net, x: elegy.value_and_grad(lambda x: net(x), modules=net)(x[0]),
    "jax.checkpoint": lambda net, x: jax.checkpoint(lambda net, x: net(x))(net, x[0]),
    "elegy.remat": lambda net, x: elegy.remat(net)(x[0]),
    "elegy.cond": lambda net, x: elegy.cond(True, net, net, x[0]),
    "jax.eval_shape": lambda net, x: jax.eval_shape(lambda x: net(x), x[0]),
    "jax.vmap of jax.grad under elegy.jit": lambda net, x: elegy.jit(
        lambda x: jax.vmap(jax.grad(lambda x: net(x)))(x), modules=net
    )(x),
    "filter_jit": lambda net, x: eqx.filter_jit(lambda net, x: net(x))(net, x[0]),
    "apply": lambda net, x: net.apply(x[0]),
    "stacked": lambda net, x: jax.vmap(lambda net, x: net(x))(jax.tree.map(lambda w: jnp.stack([w] * len(x)), net), x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_is_checked_as_plain_code_is(transform):
    body = Body().init(ones(3))
    with checked():
        transform(body, ones(4, 3))
        with mismatch("body (Body.call): the argument x is float32[5]", "n=3 (from w)"):
            transform(body, ones(4, 5))
        transform(body, ones(4, 3))


class Step(elegy.Module):
    w: Float[Array, "n"]

    def call(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        w = self.add_parameter("w", initializer=jax.nn.initializers.normal())
        return x + jnp.broadcast_to(w, x.shape)


FIRST_CALLS = {
    "plain": lambda net, x: net(x),
    "init": lambda net, x: net.init(x),
    "init with a shape": lambda net, x: net.init(jax.ShapeDtypeStruct(x.shape, x.dtype)),
    "elegy.jit": lambda net, x: elegy.jit(net)(x),
    "elegy.vmap": lambda net, x: elegy.vmap(net)(x),
    "elegy.scan": lambda net, x: elegy.scan(lambda c, x: (c, net(x)), 0, x, modules=net),
    "elegy.value_and_grad": lambda net, x: elegy.value_and_grad(lambda x: net(x).sum(), modules=net)(x),
    "jax.vmap over keys": lambda net, x: jax.vmap(lambda key: net.copy().init(x, rng=key))(jax.random.split(key(0), 2)),
    "jax.jit": lambda net, x: jax.jit(lambda x, key: Step().init(x, rng=key))(x, key(0)),
    "jax.eval_shape": lambda net, x: jax.eval_shape(lambda x, key: Step().init(x, rng=key), x, key(0)),
    "Stack": lambda net, x: elegy.nn.Stack(Step, 3)(x),
    "Ensemble": lambda net, x: elegy.nn.Ensemble(Step, 3).init(x),
}


@pytest.mark.parametrize("first_call", FIRST_CALLS.values(), ids=FIRST_CALLS)
def test_the_first_call_is_checked(first_call):
    with checked():
        first_call(Step(), ones(4, 3))
        with mismatch("call): the argument x is int32"):
            first_call(Step(), ones(4, 3, dtype=jnp.int32))


@pytest.mark.parametrize("compiled", [False, True])
def test_stacks_and_ensembles_are_checked(compiled):
    with checked():
        for module in (elegy.nn.Stack(Step, 3), elegy.nn.Ensemble(lambda: elegy.nn.Linear(2), 3)):
            run = elegy.jit(module) if compiled else module
            run(ones(4, 3))
            run(ones(4, 3))
            with mismatch(".call): the argument x is float32[4,5]"):
                run(ones(4, 5))


def test_a_module_whose_arrays_have_an_axis_more_is_no_error_until_it_is_called():
    with checked():
        stacked = jax.vmap(lambda key: Step().init(ones(4, 3), rng=key))(jax.random.split(key(0), 5))
        assert stacked.w.shape == (5, 3)
        stacked = jax.tree.map(lambda w: 2 * w, stacked.copy())
        assert "5,3" in repr(stacked)
        stacked.set_parameters({"w": ones(5, 3)})
        with mismatch("step (Step.call): the field w is float32[5,3]"):
            stacked(ones(4, 3))


def test_flattening_and_unflattening_checks_nothing():
    scale, counting = Scale().init(X), Counting()
    with elegy.typechecker(counting):
        count = counting.count
        leaves, treedef = jax.tree.flatten(scale)
        for leaf in (None, 1, object(), "text", ones(7, 7), jax.ShapeDtypeStruct((7,), jnp.int8)):
            treedef.unflatten([leaf])
            jax.tree.map(lambda _, leaf=leaf: leaf, scale)
            eqx.tree_at(lambda scale: scale.w, scale, leaf)
        jax.tree.map(jnp.add, scale, scale)
        elegy.combine(*elegy.partition(scale))
        jax.vmap(lambda scale, x: x, in_axes=(jax.tree.map(lambda _: None, scale), 0))(scale, X)
        elegy.select(scale, "w").apply(lambda w: w + 1)
        scale.copy()
        assert counting.count == count


@pytest.mark.parametrize("compiled", [False, True])
def test_after_an_error_everything_is_as_before(compiled):
    class Net(elegy.Module):
        w: Float[Array, "n m"]

        def call(self, x: Float[Array, "n"]):
            Twice()(x)
            self.add_parameter("v", [2])
            return jnp.dot(x, self.add_parameter("w", [3, 2]))

    net = Net()
    run = elegy.jit(net) if compiled else net
    with checked():
        with mismatch("net (Net.call): the parameter w is float32[3,2]"):
            run(ones(4))
        assert not net.initialized and net.get_parameters() == {} and net.submodules == {}
        assert run(ones(3)).shape == (2,)
        with mismatch("net (Net.call): the argument x is float32[4]"):
            run(ones(4))
        assert run(ones(3)).shape == (2,)
    assert set(net.get_parameters()) == {"v", "w", "twice"}


def test_deeply_nested_modules():
    class Nest(elegy.Module):
        def __init__(self, depth):
            self.depth = depth

        def call(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
            return Nest(self.depth - 1)(x) if self.depth else x

    with checked():
        nest = Nest(39)
        nest(ones(3))
        with mismatch("the argument x is float32[2,2]"):
            nest(WRONG)


# ---------------------------------------------------------------------------------------------------------------------
# What the errors say
# ---------------------------------------------------------------------------------------------------------------------


class Outer(elegy.Module):
    def call(self, x):
        return Linear([3, 2], name="project")(x)


def test_the_text_of_a_mismatch():
    outer = Outer()
    outer(X)
    with checked(), pytest.raises(TypeCheckError) as raised:
        outer(ones(4, 5))
    assert str(raised.value) == (
        'outer/project (Linear.call): the argument x is float32[4,5], which is not Float[Array, "*batch in"]: the size '
        "of dimension in is 5 which does not equal the existing value of 3.\n"
        "  axes: in=3 (from w), out=2 (from w)"
    )
    assert isinstance(raised.value, jaxtyping.TypeCheckError) and isinstance(raised.value, TypeError)
    link, note = raised.value.__notes__[:2]
    assert link.startswith("See docs/errors.md#typecheckerror")
    assert note == "in outer/project (Linear.call); parameters: w: float32[3,2]; inputs: float32[4,5]"
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_the_text_of_a_mismatch_of_a_new_parameter():
    with checked(), pytest.raises(TypeCheckError) as raised:
        Outer()(ones(4, 5))
    assert str(raised.value) == (
        'outer/project (Linear.call): the parameter w is float32[3,2], which is not Float[Array, "in out"]: the size '
        "of dimension in is 3 which does not equal the existing value of 5.\n"
        "  axes: *batch=(4,) (from x), in=5 (from x)"
    )


def test_a_mismatch_is_raised_where_the_parameter_is_created():
    class Net(elegy.Module):
        w: Float[Array, "n"]

        def call(self, x):
            with pytest.raises(TypeCheckError):
                self.add_parameter("w", [2, 2])
            return x

    with checked(), mismatch("net (Net.call): the field w is float32[2,2]"):
        Net()(1)


def notes_of(module, *args, **kwargs):
    with pytest.raises(Exception) as raised:  # noqa: B017, PT011
        module(*args, **kwargs)
    return [note for note in raised.value.__notes__ if note.startswith("in ")]


def test_an_error_of_jax_has_a_note_while_no_checker_is_on():
    outer = Outer()
    outer(X)
    assert notes_of(outer, ones(4, 5)) == [
        "in outer/project (Linear.call); parameters: w: float32[3,2]; inputs: float32[4,5]\n"
        '  the argument x is float32[4,5], which is not Float[Array, "*batch in"]: the size of dimension in is 5 which '
        "does not equal the existing value of 3\n"
        "  axes: in=3 (from w), out=2 (from w)"
    ]


def test_an_error_of_a_dtype_has_a_note():
    class Add(elegy.Module):
        def call(self, x: Float[Array, "n"], *, y: Float[Array, "n"]):
            return x + y

    assert notes_of(Add(), ones(2), y=ones(2, dtype=jnp.int32)) == [
        "in add (Add.call); parameters: none; inputs: float32[2], y=int32[2]\n"
        '  the argument y is int32[2], which is not Float[Array, "n"]: int32 is not a dtype of Float\n'
        "  axes: n=2 (from x)"
    ]


@pytest.mark.parametrize(
    "annotation", [Float[Array, "2*m"], Float[Array, "?n"], Float[Array, "{self.missing}"], Float[Array, "n"]]
)
def test_an_error_of_any_kind_has_a_note_whatever_the_annotations_are(annotation):
    class Net(elegy.Module):
        w: annotation  # type: ignore

        def __init__(self):
            self.w = ones(2)

        def call(self, x: annotation):  # type: ignore
            raise ZeroDivisionError

    assert notes_of(Net(), ones(2))[0].startswith("in net (Net.call); parameters: w: float32[2]; inputs: float32[2]")


def test_a_note_is_about_dtypes_and_shapes():
    class Net(elegy.Module):
        def call(self, x: Float[Array, "n"], y: Int[np.ndarray, "n"] | None, mode: int):
            if mode != 1:
                raise ZeroDivisionError

    net = Net()
    net(ones(2), None, 1)
    assert "the argument" not in notes_of(net, np.ones(2), jnp.ones(2, jnp.int32), "no int")[0]
    assert "the argument" not in notes_of(net, np.ones(2), None, 2)[0]
    assert "the argument x is NumPy int64[2]" in notes_of(net, np.ones(2, np.int64), None, 2)[0]
    assert "the argument x is [1.0]" in notes_of(net, [1.0], None, 2)[0]


def test_annotations_that_are_no_types_have_no_part_in_notes():
    class Net(elegy.Module):
        @tp.no_type_check
        def call(self, x: Float[Array, "n"]):
            raise ZeroDivisionError

    assert notes_of(Net(), WRONG) == ["in net (Net.call); parameters: none; inputs: float32[2,2]"]


def test_items_of_containers_are_named_in_notes():
    class Net(elegy.Module):
        def call(self, xs: list[Float[Array, "n"]]):
            return jnp.stack(xs)

    assert "the argument xs[1] is float32[3]" in notes_of(Net(), [ones(2), ones(3)])[0]
