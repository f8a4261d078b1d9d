"""Dtypes of intermediate results."""

import typing as tp

import jax
import jax.numpy as jnp
import numpy as np

from elegy.leaves import is_array, is_node

# Kinds of number, each of which can hold the values of those before it.
PYTHON_NUMBERS = (bool, int, float, complex)
NUMBERS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def at_least_float32(*dtypes: tp.Any) -> tp.Any:
    """The dtype in which to sum values of these dtypes: float32, or float64 if one of them is.

    Unlike `jnp.promote_types` it works under strict dtype promotion too.
    """
    return jnp.float64 if any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes) else jnp.float32


def accumulating(dtype: tp.Any) -> tp.Any:
    """The dtype in which to add up many arrays of a dtype, which may be complex."""
    return dtype if jnp.issubdtype(dtype, jnp.complexfloating) else at_least_float32(dtype)


def cast(tree: tp.Any, dtype: tp.Any) -> tp.Any:
    """A tree whose arrays of floating-point numbers have a dtype; None leaves them as they are. Modules in the tree are
    not looked into."""
    if dtype is None:
        return tree

    def cast_leaf(leaf: tp.Any) -> tp.Any:
        if not is_array(leaf) or leaf.dtype == dtype or not jnp.issubdtype(leaf.dtype, np.floating):
            return leaf
        return jnp.asarray(leaf).astype(dtype)

    return jax.tree.map(cast_leaf, tree, is_leaf=is_node)


def strong(value: tp.Any) -> tp.Any:
    """An array without JAX's weak type, with which a compiled function would be traced again for its own output."""
    return jnp.asarray(value, value.dtype) if getattr(value, "weak_type", False) else value
