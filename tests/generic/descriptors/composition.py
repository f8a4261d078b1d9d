"""Layers of layers."""

from typing import Any

import jax
import jax.numpy as jnp

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats


class Block(elegy.Module):
    """Every layer that is common in networks, made inside `call`."""

    def call(self, x: Any) -> Any:
        dtype = self.dtype
        x = elegy.nn.sequential(
            elegy.nn.Conv2D(4, 3, dtype=dtype),
            elegy.nn.BatchNormalization(dtype=dtype),
            jax.nn.relu,
            elegy.nn.Dropout(0.5, dtype=dtype),
            elegy.nn.Flatten(),
        )(x)
        return elegy.nn.Sequential(
            lambda: [
                elegy.nn.Linear(3, dtype=dtype),
                elegy.nn.Sequential(lambda: [jnp.tanh, elegy.nn.Linear(2, dtype=dtype)]),
            ]
        )(x)


def mlp(dtype: Any) -> elegy.Module:
    return elegy.nn.Sequential(lambda: [elegy.nn.Linear(4, dtype=dtype), jax.nn.relu, elegy.nn.Linear(2, dtype=dtype)])


nn = elegy.nn

DESCRIPTORS = [
    Descriptor("Sequential", mlp, (floats(3, 5),)),
    Descriptor("Sequential, empty", lambda dtype: nn.Sequential([]), (floats(3, 5),)),
    Descriptor("block", lambda dtype: Block(dtype=dtype), (floats(4, 3, 3, 2),)),
]
