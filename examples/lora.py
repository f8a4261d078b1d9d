"""Adapts a classifier of handwritten digits to digits that lie on their side, by low-rank adaptation (LoRA).

Run it by `python examples/lora.py`.
"""

import os
import tempfile

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elegy


def classifier() -> elegy.Module:
    return elegy.nn.Sequential(
        lambda: [elegy.nn.Linear(256), jax.nn.relu, elegy.nn.Linear(256), jax.nn.relu, elegy.nn.Linear(10)]
    )


def adapt(base: elegy.Module) -> elegy.Module:
    return elegy.select(base, elegy.nn.Linear).replace(lambda linear: elegy.nn.LoRA(linear, rank=4))


def model(module: elegy.Module, learning_rate: float) -> elegy.Model:
    return elegy.Model(
        module=module,
        loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=elegy.metrics.SparseCategoricalAccuracy(name="accuracy"),
        optimizer=optax.adam(learning_rate),
        seed=0,
    )


def accuracy(module: elegy.Module, images: np.ndarray, labels: np.ndarray) -> float:
    logits, _ = module.apply(images, training=False)
    return float((np.asarray(logits).argmax(axis=1) == labels).mean())


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    turned = np.rot90(images.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
    parts = train_test_split(images, turned, labels, test_size=0.25, random_state=0, stratify=labels)
    upright_train, upright, lying_train, lying, y_train, y_test = map(np.asarray, parts)

    base = classifier().init(upright)
    model(base, 1e-3).fit(upright_train, y_train, batch_size=64, epochs=20, verbose=0)
    print(f"base:    upright {accuracy(base, upright, y_test):.3f}, lying {accuracy(base, lying, y_test):.3f}")

    adapted = adapt(base)
    model(adapted, 1e-2).fit(lying_train, y_train, batch_size=64, epochs=20, verbose=0)
    adapters = elegy.select(adapted, "**/lora_*")
    print(f"adapted: lying {accuracy(adapted, lying, y_test):.3f}")
    print(f"trained: {adapted.parameters_size():,} of {base.parameters_size():,} parameters")

    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"base": base, "adapters": adapters}.items():
            elegy.save(os.path.join(folder, name), content)
            print(f"saved:   {name} in {os.path.getsize(os.path.join(folder, name)):,} bytes")
        loaded = elegy.load(os.path.join(folder, "adapters"), like=elegy.select(adapt(base), "**/lora_*"))
    print(f"loaded:  lying {accuracy(loaded, lying, y_test):.3f}, on the base as it was")


if __name__ == "__main__":
    main()
