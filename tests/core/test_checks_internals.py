"""The core with nobody who reads annotations and checks them."""

import importlib.util
import types

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, Float16

import elegy
from elegy import checks
from tests.helpers import checked, ones

SPEC = importlib.util.spec_from_file_location("checks", checks.__file__)
AS_WRITTEN = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(AS_WRITTEN)
QUESTIONS = [name for name, value in vars(AS_WRITTEN).items() if isinstance(value, types.FunctionType)]
QUESTIONS = [name for name in QUESTIONS if name not in ("instead_of", "no_type_check")]


@pytest.fixture
def alone(monkeypatch):
    """`elegy.checks` as it is before `elegy.typechecking` is imported."""
    for name in QUESTIONS:
        monkeypatch.setattr(checks, name, getattr(AS_WRITTEN, name))


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_the_core_asks_is_answered(name):
    assert getattr(checks, name).__module__.startswith("elegy.typechecking.")


def test_nothing_is_read_off_annotations(alone):
    class Scale(elegy.Module):
        w: Float16[Array, "n"]

        def call(self, x: Float[Array, "n"]):
            return x * self.add_parameter("w", initializer=jnp.ones)

    scale = Scale()
    scale(ones(3))
    assert (scale.w.shape, scale.w.dtype) == ((), jnp.float32)


def test_nothing_is_checked(alone):
    class Scale(elegy.Module):
        w: Float[Array, "n"]
        b: Float[Array, "n"]

        def __init__(self):
            self.b = ones(2, 2)

        def call(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
            return x * self.add_parameter("w", [2, 2], initializer=jnp.ones) + self.b

    @elegy.to_module
    def double(x: Float[Array, "n"]):
        return 2 * x

    with checked():
        scale = Scale()
        assert scale(ones(2, 2)).shape == scale(ones(2, 2)).shape == double()(ones(2, 2)).shape == (2, 2)


def test_the_note_on_an_error_has_no_word_on_annotations(alone):
    class Fails(elegy.Module):
        def call(self, x: Float[Array, "n"]):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as raised:
        Fails()(ones(2, 2))
    assert raised.value.__notes__[0] == "in fails (Fails.call); parameters: none; inputs: float32[2,2]"
