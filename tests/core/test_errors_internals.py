"""How a message shows a value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.errors import show_value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (jnp.ones([2, 3]), "float32[2,3]"),
        (jnp.int8(1), "int8[]"),
        (np.ones([2]), "NumPy float64[2]"),
        (jax.ShapeDtypeStruct((2,), jnp.bfloat16), "bfloat16[2]"),
        (jax.random.key(0), "key<fry>[]"),
        ((jnp.ones([2]), [1, None]), "(float32[2], [1, None])"),
        ({"a": jnp.ones([2])}, "{a: float32[2]}"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, …]"),
        ({index: index for index in range(9)}, "{0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, …}"),
        ("long " * 100, "'long long long long long long long long…"),
        (object(), "object"),
    ],
)
def test_values_are_shown_by_dtype_and_shape(value, expected):
    assert show_value(value) == expected


def test_a_tracer_is_shown_as_the_array_that_it_stands_for():
    shown = []
    jax.vmap(lambda x: shown.append(show_value(x)))(jnp.ones([2, 3]))
    assert shown == ["float32[3]"]
