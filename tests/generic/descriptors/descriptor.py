"""One entry of the table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import elegy


class Descriptor(NamedTuple):
    """`factory` takes the dtype; `inputs` are NumPy arrays of float32 and int32."""

    name: str
    factory: Callable[[Any], elegy.Module]
    inputs: tuple[np.ndarray, ...]
    # Whether the first input is what the layer computes with, in any dtype.
    layer: bool = True


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels(classes: int, *shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, size=shape).astype(np.int32)
