"""Trains a small GPT on the manual of Python, one character at a time, and lets it write.

The corpus is `pydoc_data.topics`, which comes with Python. The model is a decoder-only transformer: a stack of layers
that is compiled once and recomputed in the backward pass, an embedding that is also the last layer, rotary positions,
dropout. It computes in bfloat16 and keeps its weights in float32. It writes with a cache of keys and values, in one
compiled `jax.lax.scan` over characters. Run it by `python examples/gpt.py`, which takes a minute or two on two cores;
another number of steps may follow.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import elegy

PICTURE = Path(__file__).with_suffix(".png")
LAYERS, HEADS, WIDTH, CONTEXT = 3, 4, 96, 96
BATCH, WRITTEN = 24, 400
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 450
DROPOUT, LEARNING_RATE = 0.05, 4e-3

text = "\n\n".join(topics[name] for name in sorted(topics))
text = "".join(character if character.isascii() else "?" for character in text)
alphabet = sorted(set(text))
number_of = {character: number for number, character in enumerate(alphabet)}
corpus = np.array([number_of[character] for character in text], np.int32)
training, held_out = np.split(corpus, [int(0.95 * len(corpus))])


class GPT(elegy.Module):
    """Logits of the next character at each position."""

    def __init__(self, cache_size=None):
        self.embedding = elegy.nn.Embedding(len(alphabet), WIDTH, w_init=elegy.initializers.RandomNormal(0.05))
        self.dropout = elegy.nn.Dropout(DROPOUT)
        self.decoder = elegy.nn.TransformerEncoder(
            LAYERS,
            HEADS,
            norm_first=True,
            activation=jax.nn.gelu,
            dropout_rate=DROPOUT,
            rotary=True,
            window=CONTEXT - 1,  # what is written may be longer than what was read
            remat=True,
            cache_size=cache_size,
        )

    def call(self, ids, decode=False):
        x = self.dropout(self.embedding(ids))
        x = self.decoder(x, causal=True, decode=decode)
        return self.embedding.attend(x)


def windows(text, key, size):
    """Pieces of the text that begin anywhere."""
    starts = jax.random.randint(key, [size, 1], 0, len(text) - CONTEXT - 1)
    return jnp.asarray(text)[starts + jnp.arange(CONTEXT + 1)]


def loss_fn(model, batch):
    logits = model(batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warmup_steps=STEPS // 10, decay_steps=STEPS)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.1))


@jax.jit
def step(model, state, batch):
    (loss, model), gradients = elegy.value_and_grad(loss_fn)(model, batch)
    parameters, rest = elegy.partition(model)
    updates, state = optimizer.update(gradients, state, parameters)
    return elegy.combine(optax.apply_updates(parameters, updates), rest), state, loss


@jax.jit
def evaluate(model, batch):
    with elegy.training_context(False):
        return loss_fn(model, batch)


def write(trained, beginning, length, key, temperature=0.7):
    """Draws characters one by one. The model that writes has caches, and the weights of the one that was trained."""
    ids = jnp.array([[number_of[character] for character in beginning]])
    model = GPT(cache_size=len(beginning) + length).init(ids, decode=True, rng=0)
    model.set_parameters(trained.get_parameters(trainable=True))

    @jax.jit
    def run(model, key):
        def one_more(carry, key):
            model, last = carry
            logits, model = model.apply(last, decode=True, training=False)
            chosen = jax.random.categorical(key, logits[:, -1] / temperature)[:, None]
            return (model, chosen), chosen[0, 0]

        _, model = model.apply(ids[:, :-1], decode=True, training=False)
        return jax.lax.scan(one_more, (model, ids[:, -1:]), jax.random.split(key, length))[1]

    return beginning + "".join(alphabet[number] for number in run(model, key).tolist())


def draw(losses, steps, held_out_losses):
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, linewidth=0.8, label="training, with dropout")
    axes.plot(steps, held_out_losses, "o-", markersize=3, label="held out")
    axes.set(xlabel="step", ylabel="nats per character", title="A small GPT on the manual of Python")
    axes.legend()
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    model = GPT()
    model.dtype_policy = elegy.DtypePolicy(compute_dtype=jnp.bfloat16, output_dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(0), STEPS + 2)
    model.init(windows(training, keys[0], BATCH)[:, :-1], rng=0)
    state = optimizer.init(elegy.partition(model)[0])
    fixed = windows(held_out, keys[1], 4 * BATCH)
    print(f"{len(corpus):,} characters, {len(alphabet)} different ones; {model.parameters_size():,} parameters")

    losses, steps, held_out_losses = [], [], []
    for number, key in enumerate(keys[2:], 1):
        model, state, loss = step(model, state, windows(training, key, BATCH))
        losses.append(loss)
        if number == 1 or number % 50 == 0:
            steps.append(number)
            held_out_losses.append(float(evaluate(model, fixed)))
            print(f"step {number}: {float(loss):.3f} nats per character, held out {held_out_losses[-1]:.3f}")
    draw(jax.device_get(losses), steps, held_out_losses)
    print(f"the losses are drawn in {PICTURE.name}\n")
    print(write(model, "The statement ", WRITTEN, jax.random.key(1)))
