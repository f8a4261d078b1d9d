"""Every function of the package has its annotations checked in tests; see `tests.annotations`."""

import gc
import typing as tp
import weakref

import jax.numpy as jnp
import jaxtyping
import pytest
from jaxtyping import Array, Float

import elegy
from elegy import leaves
from tests import annotations


def decorated(function):
    """What the import hook makes of a function of the package."""
    (checker,) = jaxtyping._import_hook.Typechecker.lookup.values()
    return jaxtyping.jaxtyped(typechecker=checker)(function)


def repeat(default=2, wrong=False):
    result: tp.Any = [default] if wrong else "done"

    @decorated
    def repeated(text: "str", *, times: "int" = default) -> "str":
        return result if wrong else text * times

    return repeated


def test_functions_of_the_package_are_checked():
    assert len([template for template in annotations.made.values() if template is not None]) > 500
    with pytest.raises(jaxtyping.TypeCheckError, match="owner"):
        leaves.check_static(3, "name", None)
    with pytest.raises(jaxtyping.TypeCheckError, match="size"):
        elegy.nn.Linear("wide")


def test_arguments_and_results_of_each_function_of_the_same_code():
    first, second, wrong = repeat(), repeat(3), repeat(wrong=True)
    assert (first("a"), second("a"), second("a", times=1)) == ("aa", "aaa", "a")
    for function in (first, second):
        with pytest.raises(jaxtyping.TypeCheckError, match="text"):
            function(1)
        with pytest.raises(jaxtyping.TypeCheckError, match="times"):
            function("a", times="b")
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        wrong("a")


def test_nothing_is_checked_where_that_is_switched_off(unchecked):
    assert repeat()([1]) == [1, 1]


def test_axes_have_a_scope():
    @decorated
    def added(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, " n"]:
        return x + y

    assert added(jnp.ones(2), jnp.ones(2)).shape == (2,)
    with pytest.raises(jaxtyping.TypeCheckError):
        added(jnp.ones(2), jnp.ones(1))


def test_what_a_function_holds_dies_with_it():
    class Held:
        pass

    def make(held):
        @decorated
        def holding(x: int) -> int:
            return x + bool(held)

        return holding

    held = Held()
    reference, function = weakref.ref(held), make(held)
    assert function(1) == 2
    del held, function
    gc.collect()
    assert reference() is None
