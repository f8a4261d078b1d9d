"""The first step of training, in a fresh process: how long it takes from the start of Python, and the peak of memory of
a few steps with large parameters."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.benchmarks.timing import Row, compare

RAW = "loop of `jax.jit`"
PACKAGES = {"Flax NNX": "flax", "Keras": "keras"}
PAIRS = [("Elegy", RAW), ("Flax NNX", RAW), ("Keras", RAW), ("Elegy", "Flax NNX"), ("Elegy", "Keras")]

# What each library imports, and how it trains dense layers of `widths` for `steps` steps on the batch `x`, `y`.
IMPORTS = {
    RAW: "import functools, jax, jax.numpy as jnp, optax",
    "Elegy": "import elegy, jax, optax",
    "Flax NNX": "import jax, jax.numpy as jnp, optax; from flax import nnx",
    "Keras": "import os; os.environ['KERAS_BACKEND'] = 'jax'; import jax, keras",
}
PROGRAMS = {
    RAW: """
init = jax.nn.initializers.lecun_normal()
keys = jax.random.split(jax.random.key(0), len(widths))
shapes = list(zip([x.shape[1], *widths], widths))
parameters = [(init(key, shape), jnp.zeros(shape[1])) for key, shape in zip(keys, shapes)]
optimizer = optax.adam(1e-3)
state = optimizer.init(parameters)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(parameters, state, x, y):
    def loss_fn(parameters):
        hidden = x
        for w, b in parameters[:-1]:
            hidden = jax.nn.relu(hidden @ w + b)
        w, b = parameters[-1]
        return jnp.mean((hidden @ w + b - y) ** 2)

    loss, gradients = jax.value_and_grad(loss_fn)(parameters)
    updates, state = optimizer.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state, loss


for _ in range(steps):
    parameters, state, loss = step(parameters, state, x, y)
loss = float(loss)
""",
    "Elegy": """
layers = [layer for width in widths[:-1] for layer in (elegy.nn.Linear(width), jax.nn.relu)]
module = elegy.nn.Sequential([*layers, elegy.nn.Linear(widths[-1])])
model = elegy.Model(module, loss=elegy.losses.MeanSquaredError(), optimizer=optax.adam(1e-3))
loss = model.fit(x, y, batch_size=len(x), epochs=steps, verbose=0).history["loss"][-1]
""",
    "Flax NNX": """
class MLP(nnx.Module):
    def __init__(self, rngs):
        shapes = zip([x.shape[1], *widths], widths)
        self.layers = nnx.List([nnx.Linear(*shape, rngs=rngs) for shape in shapes])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


module = MLP(nnx.Rngs(0))
optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)


@nnx.jit(donate_argnums=(0, 1))
def step(module, optimizer, x, y):
    loss, gradients = nnx.value_and_grad(lambda module: jnp.mean((module(x) - y) ** 2))(module)
    optimizer.update(module, gradients)
    return loss


for _ in range(steps):
    loss = step(module, optimizer, x, y)
loss = float(loss)
""",
    "Keras": """
layers = [keras.layers.Dense(width, activation="relu") for width in widths[:-1]]
model = keras.Sequential([keras.Input(x.shape[1:]), *layers, keras.layers.Dense(widths[-1])])
model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mean_squared_error")
loss = model.fit(x, y, batch_size=len(x), epochs=steps, verbose=0).history["loss"][-1]
""",
}

PROGRAM = """
import math
import resource
import time
import numpy as np
{imports}


def peak():
    "The peak of memory of this process, in KiB: Linux hands `ru_maxrss` down from the process that started it."
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


generator = np.random.default_rng(0)
widths, steps = {widths}, {steps}
x = generator.normal(size=({batch}, widths[0])).astype(np.float32)
y = generator.normal(size=({batch}, widths[-1])).astype(np.float32)
jax.block_until_ready(jax.device_put(x))
before = peak()
{program}
assert math.isfinite(loss)
print(time.time(), peak() - before)
"""


def rows(quick: bool) -> Iterator[Row]:
    times, _ = measured(2 if quick else 3, widths=(16, 32, 2), steps=1, batch=32)
    yield from compare("start of Python to the end of the first step", PAIRS, times)
    width = 1024 if quick else 3072
    _, peaks = measured(2, widths=(width, width, width, width), steps=3, batch=32)
    yield from compare(f"peak of memory, {4 * width**2 / 1e6:.2g} million parameters", PAIRS, peaks)


def measured(
    rounds: int, widths: tuple[int, ...], steps: int, batch: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Of processes of their own, the seconds until training ended, and how far the peak of memory is above that of the
    imports."""
    libraries = [name for name in PROGRAMS if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]
    times: dict[str, list[float]] = {name: [] for name in libraries}
    peaks: dict[str, list[float]] = {name: [] for name in libraries}
    for turn in range(rounds):
        for library in libraries[:: -1 if turn % 2 else 1]:
            program = PROGRAM.format(
                imports=IMPORTS[library], program=PROGRAMS[library], widths=widths, steps=steps, batch=batch
            )
            start = time.time()
            run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
            end, peak = map(float, run.stdout.split())
            times[library].append(end - start)
            peaks[library].append(peak)
    return times, peaks
