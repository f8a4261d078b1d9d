"""Modules that jaxtyping's import hook, or its flag of pytest, has decorated."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

PACKAGE = """
from __future__ import annotations

import dataclasses
import functools
import typing

import elegy
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

T = typing.TypeVar("T")


class Linear(elegy.Module):
    w: Float[Array, "in out"]

    def __init__(self, shape: tuple[int, int]):
        self.shape = shape

    def call(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return jnp.dot(x, self.parameter())

    def parameter(self):
        return self.add_parameter("w", self.shape)


class Loose(Linear):
    def call(self, x):
        return jnp.dot(x, self.parameter())


@dataclasses.dataclass
class Data(elegy.Module):
    width: int
    w: Float[Array, "n {self.width}"]
    b: Float[Array, "n"] | None = None

    def call(self, x: Float[Array, "n"]) -> Float[Array, "{self.width}"]:
        return jnp.dot(x, self.w)


class Box(Linear, typing.Generic[T]):
    def call(self, x: Float[Array, "*batch in"], content: T) -> tuple[T, Float[Array, "*batch out"]]:
        return content, super().call(x)

    @property
    def total(self) -> Float[Array, ""]:
        return self.w.sum(0)

    @classmethod
    def make(cls, width: int) -> Box:
        return cls((width, width))

    @staticmethod
    def add(x: Float[Array, "n"], y: Float[Array, "n"]):
        return x


class Auto(elegy.Module):
    w: Float[Array, "n"]

    @elegy.compact
    def encode(self, x: Float[Array, "b n"]):
        return x * jnp.broadcast_to(self.add_parameter("w", initializer=jnp.ones), x.shape)


class Transformed(elegy.Module):
    w: Float[Array, "n"]

    @elegy.remat
    def call(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x * self.add_parameter("w", initializer=jnp.ones)

    @elegy.jit
    @elegy.vmap
    def lanes(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    @staticmethod
    @elegy.remat
    def add(x: Float[Array, "n"], y: Float[Array, "n"]):
        return x

    def __add__(self, x: Float[Array, "n"]):
        return x


logs = []


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        logs.append(function.__name__)
        return function(*args, **kwargs)

    return wrapper


class Decorated(elegy.Module):
    w: Float[Array, "n"]

    @logged
    def call(self, x: Float[Array, "n"], shape):
        return self.add_parameter("w", shape)


class Nested(elegy.Module):
    w: Float[Array, "n"]

    def call(self, x: Float[Array, "n"], shape):
        def make():
            return self.add_parameter("w", shape)

        return make()


class Unreadable(elegy.Module):
    def call(self, x: Missing[Array, "n"]):
        return x


class Free(elegy.Module):
    @typing.no_type_check
    def call(self, x: int):
        return x


@typing.no_type_check
class AllFree(elegy.Module):
    w: Float[Array, "n"]

    def __init__(self, w: int):
        self.w = w

    def call(self, x: int):
        return x
"""

CASES = """
import contextlib
import json
import os
import sys
import warnings

import beartype
import elegy
import jax
import jax.numpy as jnp
import jaxtyping

with jaxtyping.install_import_hook("hooked", "beartype.beartype"):
    import hooked
import plain

x, y = jnp.ones([4, 3]), jnp.ones([4, 5])


def checked_in(package):
    box = package.Box((3, 2))
    linear = package.Linear((3, 2)).init(x)
    return {
        "fitting": lambda: (linear(x), box(x, 1), package.Data(2, jnp.ones([3, 2]))(jnp.ones(3))),
        "field and argument": lambda: linear(y),
        "compiled": lambda: elegy.jit(linear)(y),
        "new parameter": lambda: package.Linear((3, 2))(y),
        "constructor": lambda: package.Linear("ab"),
        "dataclass, argument": lambda: package.Data("2", jnp.ones([3, 2])),
        "dataclass, fields": lambda: package.Data(2, jnp.ones([3, 2]), jnp.ones(4)),
        "dataclass, call": lambda: package.Data(2, jnp.ones([3, 2]))(jnp.ones(4)),
        "derived": lambda: type("Derived", (package.Linear,), {})((3, 2))(y),
        "generic": lambda: package.Box[int]((3, 2))(y, 1),
        "property": lambda: package.Box((3, 2)).init(x, 1).total,
        "class method": lambda: package.Box.make("a"),
        "static method": lambda: package.Box.add(jnp.ones(2), jnp.ones(3)),
        "compact": lambda: (auto := package.Auto(), auto.encode(x), auto.encode(y)),
        "decorated": lambda: package.Decorated()(jnp.ones(3), [4]),
        "decorator": lambda: logs_of(package, lambda: package.Decorated()(jnp.ones(3), [3])),
        "decorated, argument": lambda: package.Decorated()(x, [3]),
        "transforms": lambda: (net := package.Transformed(), net(jnp.ones(3)), net.lanes(x), net.add(x[0], x[0])),
        "transformed call": lambda: (net := package.Transformed(), net(jnp.ones(3)), net(jnp.ones(4))),
        "transformed method": lambda: (net := package.Transformed(), net(jnp.ones(3)), net.lanes(y)),
        "transformed static method": lambda: package.Transformed.add(jnp.ones(2), jnp.ones(3)),
        "operator": lambda: (net := package.Transformed(), net(jnp.ones(3)), net + jnp.ones(4)),
        "nested": lambda: package.Nested().init(jnp.ones(3), [4]),
        "unreadable": lambda: package.Unreadable()(x),
        "no_type_check": lambda: (package.Free()("a"), package.AllFree(jnp.ones([2, 2]))("a")),
        "without annotations": lambda: package.Loose((3, 2))(x),
    }


def logs_of(package, function):
    package.logs.clear()
    function()
    assert set(package.logs) == {"call"}


checked = []


def recording(function):
    checked.append(function)
    return beartype.beartype(function)


@contextlib.contextmanager
def disabled():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def run(function):
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
        if caught:
            return f"warned in {os.path.basename(caught[0].filename)}: {caught[0].message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "passed"


MODES = {
    "hook": (hooked, contextlib.nullcontext),
    "hook, and a checker": (hooked, lambda: elegy.typechecker(recording)),
    "hook, switched off": (hooked, lambda: elegy.typechecker(None)),
    "hook, disabled": (hooked, disabled),
    "hook, again": (hooked, contextlib.nullcontext),
    "a checker": (plain, lambda: elegy.typechecker(beartype.beartype)),
    "nothing": (plain, contextlib.nullcontext),
}
results = {}
for mode in sys.argv[1:]:
    package, context = MODES[mode]
    cases = checked_in(package)
    with context():
        checked.clear()
        results[mode] = {name: run(case) for name, case in cases.items()}
    assert bool(checked) == (mode == "hook, and a checker"), "it goes before that of the hook"
print(json.dumps(results))
"""

MODES = ["hook", "hook, and a checker", "hook, switched off", "hook, disabled", "hook, again", "a checker", "nothing"]

REFUSED = {
    "field and argument": "linear (Linear.call): the argument x is float32[4,5]",
    "compiled": "linear (Linear.call): the argument x is float32[4,5]",
    "new parameter": "linear (Linear.call): the parameter w is float32[3,2]",
    "constructor": "linear (Linear.__init__): the argument shape is 'ab'",
    "dataclass, argument": "data (Data.__init__): the argument width is '2'",
    "dataclass, fields": "data (Data.__init__): the argument w is float32[3,2]",
    "dataclass, call": "data (Data.call): the argument x is float32[4]",
    "derived": "derived (Derived.call): the parameter w is float32[3,2]",
    "generic": "box (Box.call): the parameter w is float32[3,2]",
    "property": "box (Box.total): the return value is float32[2]",
    "class method": "Box.make: the argument width is 'a'",
    "static method": "Box.add: the argument y is float32[3]",
    "compact": "auto (Auto.encode): the argument x is float32[4,5]",
    "decorated": "decorated (Decorated.call): the parameter w is float32[4]",
    "decorated, argument": "decorated (Decorated.call): the argument x is float32[4,3]",
    "transformed call": "transformed (Transformed.call): the argument x is float32[4]",
    "transformed method": "transformed (Transformed.lanes): the argument x is float32[5]",
    "transformed static method": "Transformed.add: the argument y is float32[3]",
    "operator": "transformed (Transformed.__add__): the argument x is float32[4]",
    "nested": "nested (Nested.call): the ",  # field or parameter: the hook puts a scope in between
}


def run_python(folder, *args):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()]), "PYTHONWARNINGS": "error"}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True)


def run_cases(folder, modes):
    for name, source in {"hooked": PACKAGE, "plain": PACKAGE, "cases": CASES}.items():
        (folder / f"{name}.py").write_text(source)
    done = run_python(folder, "cases.py", *modes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What happens in each mode and case, in a process in which Elegy itself is not checked."""
    return run_cases(tmp_path_factory.mktemp("packages"), MODES)


@pytest.mark.parametrize("mode", ["hook", "hook, and a checker", "hook, again", "a checker"])
def test_the_import_hook_checks_as_a_checker_does(outcomes, mode):
    for case, found in outcomes[mode].items():
        expected = f"TypeCheckError: {REFUSED[case]}" if case in REFUSED else "passed"
        if case == "unreadable":
            expected = (
                f"warned in cases.py: {'plain' if mode == 'a checker' else 'hooked'}.Unreadable.call: the annotation"
            )
        assert found.startswith(expected), (mode, case)


@pytest.mark.parametrize("mode", ["hook, switched off", "hook, disabled", "nothing"])
def test_nothing_is_checked_where_the_hook_is_switched_off(outcomes, mode):
    assert [(case, found) for case, found in outcomes[mode].items() if "TypeCheckError" in found] == []
    assert {case for case, found in outcomes[mode].items() if found == "passed"} >= {
        "constructor",
        "property",
        "fitting",
    }


def test_the_first_construction_of_a_dataclass_is_not_checked_where_the_hook_is_switched_off(tmp_path):
    found = run_cases(tmp_path, ["hook, switched off"])["hook, switched off"]
    assert found["dataclass, argument"] == found["dataclass, fields"] == "passed"


def test_the_flag_of_pytest(tmp_path):
    (tmp_path / "hooked.py").write_text(PACKAGE)
    (tmp_path / "test_hooked.py").write_text(
        textwrap.dedent("""
        import elegy
        import hooked
        import jax.numpy as jnp
        import pytest


        def test_checked():
            linear = hooked.Linear((3, 2)).init(jnp.ones([4, 3]))
            with pytest.raises(elegy.errors.TypeCheckError, match="in=3 .from w"):
                linear(jnp.ones([4, 5]))
            with elegy.typechecker(None), pytest.raises(TypeError, match="dot_general"):
                linear(jnp.ones([4, 5]))


        def test_the_layers_of_the_package_are_checked_too():
            with pytest.raises(elegy.errors.TypeCheckError, match="the argument x is 'text', which is not Num"):
                elegy.nn.Linear(2)("text")
        """)
    )
    done = run_python(
        tmp_path, "-m", "pytest", "-q", "--jaxtyping-packages=elegy,hooked,beartype.beartype", "-p", "no:cacheprovider"
    )
    assert done.returncode == 0, done.stdout
