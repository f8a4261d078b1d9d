"""Trains a classifier of handwritten digits on scikit-learn's 1,797 images, and draws its learning curve.

Run it by `make demo`, or `python examples/digits.py`.
"""

from pathlib import Path

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elegy

PICTURE = Path(__file__).with_suffix(".png")


class Classifier(elegy.Module):
    """Two convolutions and a dense layer, from images to the logits of the ten digits."""

    def call(self, x):
        for channels in (16, 32):
            x = elegy.nn.Conv2D(channels, [3, 3], stride=2)(x)
            x = elegy.nn.BatchNormalization(decay_rate=0.9)(x)
            x = jax.nn.relu(x)
        x = elegy.nn.Flatten()(x)
        x = elegy.nn.Dropout(0.3)(x)
        return elegy.nn.Linear(10)(x)


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)

    model = elegy.Model(
        module=Classifier(),
        loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=elegy.metrics.SparseCategoricalAccuracy(name="accuracy"),
        optimizer=optax.adam(3e-3),
        seed=0,
    )
    history = model.fit(x_train, y_train, batch_size=64, epochs=25, validation_split=0.1)
    print(f"held-out accuracy: {model.evaluate(x_test, y_test)['accuracy']:.4f}")

    draw(history)
    print(f"learning curve: {PICTURE}")


def draw(history: elegy.callbacks.History) -> None:
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for name, axis in zip(("loss", "accuracy"), figure.subplots(1, 2), strict=True):
        axis.plot(history.epoch, history.history[name], label="training")
        axis.plot(history.epoch, history.history[f"val_{name}"], label="validation")
        axis.set(xlabel="epoch", ylabel=name)
        axis.legend()
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
