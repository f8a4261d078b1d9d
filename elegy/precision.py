"""Dtypes of intermediate results."""

import typing as tp

import jax.numpy as jnp


def at_least_float32(*dtypes: tp.Any) -> tp.Any:
    """The dtype in which to sum values of these dtypes: float32, or float64 if one of them is.

    Unlike `jnp.promote_types` it does not ask how strict JAX was told to be.
    """
    return jnp.float64 if any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes) else jnp.float32
