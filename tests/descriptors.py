"""A table of every layer, loss and metric: how to make it, and what to call it with.

The tests in test_layers_generic.py run over all of it. Names, shapes and kinds of parameters are frozen in
golden/layers.json; a change on purpose is accepted by

    python -m tests.descriptors > tests/golden/layers.json
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elegy


class Descriptor(NamedTuple):
    """`factory` takes the dtype; `inputs` are NumPy arrays of float32 and int32."""

    name: str
    factory: Callable[[Any], elegy.Module]
    inputs: tuple[np.ndarray, ...]
    # Whether the first input is what the layer computes with, in any dtype.
    layer: bool = True


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def labels(classes: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, classes, size=shape).astype(np.int32)


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


nn, losses, metrics = elegy.nn, elegy.losses, elegy.metrics
scores, classes, weights = floats(6, 4), labels(4, 6), np.abs(floats(6))

DESCRIPTORS = [
    Descriptor("Linear", lambda dtype: nn.Linear(4, dtype=dtype), (floats(3, 5),)),
    Descriptor("Linear, many axes", lambda dtype: nn.Linear(4, dtype=dtype), (floats(2, 3, 4, 5),)),
    Descriptor("Linear, one axis", lambda dtype: nn.Linear(4, dtype=dtype), (floats(5),)),
    Descriptor("Linear, no bias", lambda dtype: nn.Linear(4, with_bias=False, dtype=dtype), (floats(3, 5),)),
    Descriptor("Conv1D", lambda dtype: nn.Conv1D(3, 3, dtype=dtype), (floats(2, 7, 2),)),
    Descriptor("Conv2D", lambda dtype: nn.Conv2D(3, [3, 2], stride=2, dtype=dtype), (floats(2, 5, 6, 2),)),
    Descriptor(
        "Conv2D, dilated groups",
        lambda dtype: nn.Conv2D(4, 3, rate=2, groups=2, padding="VALID", with_bias=False, dtype=dtype),
        (floats(2, 6, 6, 2),),
    ),
    Descriptor(
        "Conv2D, channels first",
        lambda dtype: nn.Conv2D(3, 3, padding=[1, (0, 2)], data_format="NCHW", dtype=dtype),
        (floats(2, 2, 5, 6),),
    ),
    Descriptor(
        "Conv2D, mask",
        lambda dtype: nn.Conv2D(3, 3, mask=np.triu(np.ones([3, 3], np.float32))[:, :, None, None], dtype=dtype),
        (floats(2, 5, 6, 2),),
    ),
    Descriptor("Conv3D", lambda dtype: nn.Conv3D(2, 2, dtype=dtype), (floats(2, 3, 3, 3, 2),)),
    Descriptor("BatchNormalization", lambda dtype: nn.BatchNormalization(dtype=dtype), (floats(8, 3),)),
    Descriptor(
        "BatchNormalization, channels first",
        lambda dtype: nn.BatchNormalization(data_format="channels_first", decay_rate=0.5, dtype=dtype),
        (floats(4, 3, 2, 2),),
    ),
    Descriptor(
        "BatchNormalization, no parameters",
        lambda dtype: nn.BatchNormalization(create_scale=False, create_offset=False, axis=0, dtype=dtype),
        (floats(4, 2, 3),),
    ),
    Descriptor("Dropout", lambda dtype: nn.Dropout(0.5, dtype=dtype), (floats(4, 8),)),
    Descriptor("Dropout, rate 0", lambda dtype: nn.Dropout(0, dtype=dtype), (floats(4, 8),)),
    Descriptor("Flatten", lambda dtype: nn.Flatten(), (floats(2, 3, 4),)),
    Descriptor("Sequential", mlp, (floats(3, 5),)),
    Descriptor("Sequential, empty", lambda dtype: nn.Sequential([]), (floats(3, 5),)),
    Descriptor("block", lambda dtype: Block(dtype=dtype), (floats(4, 3, 3, 2),)),
    Descriptor(
        "MeanSquaredError",
        lambda dtype: losses.MeanSquaredError(dtype=dtype),
        (floats(6, 4) + 1, scores),
        layer=False,
    ),
    Descriptor(
        "SparseCategoricalCrossentropy",
        lambda dtype: losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype),
        (classes, scores),
        layer=False,
    ),
    Descriptor("Mean", lambda dtype: metrics.Mean(dtype=dtype), (scores, weights), layer=False),
    Descriptor(
        "SparseCategoricalAccuracy",
        lambda dtype: metrics.SparseCategoricalAccuracy(dtype=dtype),
        (classes, scores, weights),
        layer=False,
    ),
]


def describe(module: elegy.Module) -> dict[str, str]:
    """The dtype, shape and kind of each array of a module, by path."""
    described = {}
    for trainable in (True, False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(module.get_parameters(trainable=trainable)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            described[name] = f"{leaf.dtype}{list(leaf.shape)} {'trainable' if trainable else 'state'}"
    return dict(sorted(described.items()))


def golden() -> dict[str, dict[str, str]]:
    found = {}
    for descriptor in DESCRIPTORS:
        module = descriptor.factory(None)
        module(*descriptor.inputs)
        found[descriptor.name] = describe(module)
    return found


if __name__ == "__main__":
    print(json.dumps(golden(), indent=2))
