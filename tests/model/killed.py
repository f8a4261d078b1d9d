"""A program that trains with checkpoints, and goes on from them. `python killed.py DIRECTORY SEED`

With a seed it kills itself at a random moment: after a step, in a hook, or in the middle of writing a checkpoint. It
prints the history and a digest of the parameters when it comes to the end.
"""

import hashlib
import json
import os
import random
import signal
import sys

import jax
import numpy as np
import optax

import elegy
from elegy.callbacks import EMA, Callback, EarlyStopping, LearningRateScheduler, ModelCheckpoint
from elegy.checkpoints import disk

directory, seed = sys.argv[1:]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Die(Callback):
    """Kills the process after so many steps, or at one of the operations on the disk."""

    sees_module = False

    def __init__(self, seed):
        draw = random.Random(seed)
        self.left = draw.randint(2, 5) if draw.random() < 0.5 else None
        operations = draw.randint(5, 60)
        if self.left is None:
            real = disk.do

            def do(*args, **kwargs):
                nonlocal operations
                operations -= 1
                if operations == 0:
                    die()
                return real(*args, **kwargs)

            disk.do = do

    def on_train_batch_end(self, batch, logs):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                die()


class Count(Callback):
    """Has a state, and sees the module."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, batch, logs):
        self.steps += 1

    def get_state(self):
        return {"steps": self.steps}

    def set_state(self, state):
        self.steps = state["steps"]


rng = np.random.default_rng(0)
x = rng.normal(size=(44, 3)).astype(np.float32)
y = (x.sum(axis=1) > 0).astype(np.int32)
module = elegy.nn.Sequential(
    lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(), elegy.nn.Dropout(0.2), elegy.nn.Linear(2)]
)
model = elegy.Model(
    module,
    loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=elegy.metrics.SparseCategoricalAccuracy(),
    optimizer=optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
)
average, count = EMA(0.9), Count()
callbacks = [
    average,
    count,
    EarlyStopping(monitor="loss", patience=50),
    LearningRateScheduler(lambda epoch, rate: 0.9 * rate),
    ModelCheckpoint(directory, every_steps=1, keep=2),
]
if int(seed):
    callbacks.append(Die(int(seed)))
history = model.fit(
    x[:36],
    y[:36],
    batch_size=4,
    epochs=6,
    validation_data=(x[36:], y[36:]),
    accumulate=2,
    callbacks=callbacks,
    resume=directory,
    verbose=0,
)
digest = hashlib.sha256()
for leaf in jax.tree.leaves((model.module, model.optimizer, average.parameters)):
    digest.update(np.asarray(leaf).tobytes())
print(json.dumps([history.history, history.epoch, count.steps, model.steps, digest.hexdigest()]))
