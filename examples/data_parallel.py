"""Trains a classifier of handwritten digits on eight devices, and shows that it learns what one device would teach it.

The batch is split over the devices and the parameters are on each of them; XLA does the rest, also for the statistics
of batch normalisation, which are those of the whole batch. Where there are not eight devices, one CPU stands for
them. Run it by `python examples/data_parallel.py`.
"""

import os
from pathlib import Path

# Read by JAX when it looks for its devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec as P
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elegy

PICTURE = Path(__file__).with_suffix(".png")
BATCH, EPOCHS = 256, 40


class Classifier(elegy.Module):
    """Two normalised dense layers, from the 64 pixels to the logits of the ten digits."""

    def call(self, x):
        for width in (128, 64):
            x = elegy.nn.Linear(width)(x)
            x = jax.nn.relu(elegy.nn.BatchNormalization(decay_rate=0.9)(x))
        return elegy.nn.Linear(10)(x)


def train(x, y, mesh):
    """Trains on the devices of a mesh: the module, and its loss at each step."""
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    classifier = jax.device_put(Classifier().init(x[:1], rng=0), everywhere)
    optimizer = elegy.Optimizer(optax.adam(2e-3))

    def loss_fn(x, y):
        return optax.softmax_cross_entropy(classifier(x), jax.nn.one_hot(y, 10)).mean()

    def update(x, y):
        loss, gradients = elegy.value_and_grad(loss_fn, modules=classifier)(x, y)
        optimizer.update(classifier, gradients)
        return loss

    update_jit = elegy.jit(update, modules=[classifier, optimizer])
    losses = []
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            loss = update_jit(jax.device_put(x[rows], split), jax.device_put(y[rows], split))
            # Eight devices made of one CPU share its threads: steps that pile up could wait for each other for ever.
            losses.append(float(loss))
    assert update_jit.traces == 1
    return classifier, np.asarray(losses)


def accuracy(classifier, x, y):
    with elegy.training_context(False):
        logits = jax.jit(lambda classifier, x: classifier(x))(jax.device_get(classifier), x)
    return float((jnp.argmax(logits, axis=-1) == y).mean())


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)

    devices = jax.devices() if jax.device_count() >= 8 else jax.devices("cpu")
    together, losses = train(x_train, y_train, jax.make_mesh((8,), ("data",), devices=devices[:8]))
    alone, expected = train(x_train, y_train, jax.make_mesh((1,), ("data",), devices=devices[:1]))
    print(f"eight devices: loss {losses[0]:.4f} -> {losses[-1]:.4f}, one: {expected[0]:.4f} -> {expected[-1]:.4f}")
    print(f"the largest difference of a loss: {np.abs(losses - expected).max():.1e}")
    weights = together.linear.w
    print(f"the weights lie on {len(weights.devices())} devices, replicated: {weights.sharding.is_fully_replicated}")
    print(f"held-out accuracy: {accuracy(together, x_test, y_test):.4f}, of one: {accuracy(alone, x_test, y_test):.4f}")

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(losses, linewidth=4, alpha=0.4, label="eight devices")
    axis.plot(expected, linewidth=1, label="one device")
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.legend()
    figure.savefig(PICTURE, dpi=120)
    print(f"learning curves: {PICTURE}")


if __name__ == "__main__":
    main()
