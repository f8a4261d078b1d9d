"""The weights of ResNet-50's convolutions, created in a fresh process that has compiled nothing yet."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.timing import Row, compare

# What each library runs: `shapes` are (window, inputs, outputs), and the result is a list of arrays.
PROGRAMS = {
    "Elegy": """
class Convolutions(elegy.Module):
    def call(self, inputs):
        for (window, _, outputs), x in zip(shapes, inputs):
            elegy.nn.Conv2D(outputs, window, with_bias=False)(x)


inputs = [jax.ShapeDtypeStruct((1, 8, 8, inputs), jnp.float32) for _, inputs, _ in shapes]
arrays = jax.tree.leaves(Convolutions().init(inputs, rng=0))
""",
    "Flax NNX": """
rngs = nnx.Rngs(0)
convolutions = [
    nnx.Conv(inputs, outputs, (window, window), use_bias=False, rngs=rngs) for window, inputs, outputs in shapes
]
arrays = [convolution.kernel.get_value() for convolution in convolutions]
""",
    "Equinox": """
keys = jax.random.split(jax.random.key(0), len(shapes))
convolutions = [
    eqx.nn.Conv2d(inputs, outputs, window, use_bias=False, key=key)
    for (window, inputs, outputs), key in zip(shapes, keys)
]
arrays = [convolution.weight for convolution in convolutions]
""",
    "Keras": """
arrays = []
for window, inputs, outputs in shapes:
    convolution = keras.layers.Conv2D(outputs, window, use_bias=False)
    convolution.build((None, None, None, inputs))
    arrays.append(convolution.kernel.value)
""",
}
IMPORTS = {
    "Elegy": "import elegy",
    "Flax NNX": "from flax import nnx",
    "Equinox": "import equinox as eqx",
    "Keras": "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras",
}
PACKAGES = {"Flax NNX": "flax", "Equinox": "equinox", "Keras": "keras"}

PROGRAM = """
import time
import jax
import jax.numpy as jnp
{imports}
jax.block_until_ready(jnp.zeros([]))
shapes = {shapes}
start = time.perf_counter()
{program}
jax.block_until_ready(arrays)
print(time.perf_counter() - start)
assert sum(array.size for array in arrays) == sum(window**2 * inputs * outputs for window, inputs, outputs in shapes)
"""


def shapes(blocks: tuple[int, ...] = (3, 4, 6, 3)) -> list[tuple[int, int, int]]:
    """The windows, inputs and outputs of the convolutions of He et al. (2015), *Deep Residual Learning*, table 1."""
    found, inputs = [(7, 3, 64)], 64
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(number):
            found += [(1, inputs, width), (3, width, width), (1, width, 4 * width)]
            found += [(1, inputs, 4 * width)] * (block == 0)
            inputs = 4 * width
    return found


def rows(quick: bool) -> Iterator[Row]:
    convolutions = shapes((1,) if quick else (3, 4, 6, 3))
    libraries = [name for name in PROGRAMS if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]
    times: dict[str, list[float]] = {name: [] for name in libraries}
    for turn in range(1 if quick else 5):
        for library in libraries[:: -1 if turn % 2 else 1]:
            times[library].append(seconds(library, convolutions))
    computation = f"cold initialisation, {len(convolutions)} convolutions"
    yield from compare(computation, [("Elegy", peer) for peer in PACKAGES], times)


def seconds(library: str, convolutions: list[tuple[int, int, int]]) -> float:
    """The seconds that a process of its own takes to create the weights, without its imports."""
    program = PROGRAM.format(imports=IMPORTS[library], program=PROGRAMS[library], shapes=convolutions)
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
