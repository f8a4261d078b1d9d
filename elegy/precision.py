"""Dtypes of intermediate results."""

import typing as tp

import jax
import jax.numpy as jnp
import numpy as np

from elegy.leaves import is_array, is_node


def at_least_float32(*dtypes: tp.Any) -> tp.Any:
    """The dtype in which to sum values of these dtypes: float32, or float64 if one of them is.

    Unlike `jnp.promote_types` it does not ask how strict JAX was told to be.
    """
    return jnp.float64 if any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes) else jnp.float32


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
