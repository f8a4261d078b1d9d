"""Learns to balance a pole by proximal policy optimisation, three times at once, and draws the learning curves.

The whole training is one function of a key: a rollout is a `jax.lax.scan` over environments under `jax.vmap`, the
updates are a scan over rollouts, `jax.vmap` maps all of it over three keys, and `jax.jit` compiles it once. The network
is a module; it is a part of the carry as it is. Run it by `python examples/ppo.py`.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import elegy

PICTURE = Path(__file__).with_suffix(".png")
SEEDS, ENVIRONMENTS, STEPS, ROLLOUTS, EPOCHS, MINIBATCHES = 3, 32, 64, 120, 4, 4
LONGEST = 500  # steps, after which an episode ends in any case, as if the pole had fallen
DISCOUNT, LAMBDA, CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT = 0.99, 0.95, 0.2, 0.5, 0.01


# ---------------------------------------------------------------------------------------------------------------------
# The environment: a pole on a cart (Barto, Sutton and Anderson 1983, appendix), in steps of 0.02 seconds
# ---------------------------------------------------------------------------------------------------------------------


class Cart(NamedTuple):
    physics: jax.Array  # position and velocity of the cart, angle and angular velocity of the pole
    time: jax.Array


def reset(key):
    return Cart(jax.random.uniform(key, [4], minval=-0.05, maxval=0.05), jnp.array(0))


def step(cart, action, key):
    """The next state, a new one if the episode has ended, and whether it has."""
    gravity, cart_mass, pole_mass, half_length, force = 9.8, 1.0, 0.1, 0.5, jnp.where(action == 1, 10.0, -10.0)
    position, velocity, angle, spin = cart.physics
    mass = cart_mass + pole_mass
    push = (force + pole_mass * half_length * spin**2 * jnp.sin(angle)) / mass
    turn = (gravity * jnp.sin(angle) - push * jnp.cos(angle)) / (
        half_length * (4 / 3 - pole_mass * jnp.cos(angle) ** 2 / mass)
    )
    thrust = push - pole_mass * half_length * turn * jnp.cos(angle) / mass
    moved = Cart(cart.physics + 0.02 * jnp.stack([velocity, thrust, spin, turn]), cart.time + 1)
    fallen = (jnp.abs(moved.physics[0]) > 2.4) | (jnp.abs(moved.physics[2]) > 12 * jnp.pi / 180)
    done = fallen | (moved.time >= LONGEST)
    return jax.tree.map(lambda new, old: jnp.where(done, new, old), reset(key), moved), done


# ---------------------------------------------------------------------------------------------------------------------
# The network and its loss
# ---------------------------------------------------------------------------------------------------------------------


class ActorCritic(elegy.Module):
    """The logits of the two actions, and the value of a state."""

    def call(self, x):
        actor = jnp.tanh(elegy.nn.Linear(64, name="actor")(x))
        critic = jnp.tanh(elegy.nn.Linear(64, name="critic")(x))
        return elegy.nn.Linear(2, name="logits")(actor), elegy.nn.Linear(1, name="value")(critic)[..., 0]


class Batch(NamedTuple):
    state: jax.Array
    action: jax.Array
    log_probability: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array
    length: jax.Array


def loss_fn(parameters, rest, batch, advantage, target):
    """The clipped objective (Schulman et al. 2017, equations 7 and 9), to be minimised."""
    logits, value = elegy.combine(parameters, rest)(batch.state)
    log_probabilities = jax.nn.log_softmax(logits)
    taken = jnp.take_along_axis(log_probabilities, batch.action[:, None], axis=-1)[:, 0]
    ratio = jnp.exp(taken - batch.log_probability)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
    entropy = -(jnp.exp(log_probabilities) * log_probabilities).sum(axis=-1).mean()
    return -gain + VALUE_WEIGHT * ((value - target) ** 2).mean() - ENTROPY_WEIGHT * entropy


def advantages(batch, last_value):
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), backwards in time."""

    def back(carry, now):
        advantage, next_value = carry
        alive = 1 - now.done
        error = now.reward + DISCOUNT * next_value * alive - now.value
        advantage = error + DISCOUNT * LAMBDA * alive * advantage
        return (advantage, now.value), advantage

    return jax.lax.scan(back, (jnp.zeros_like(last_value), last_value), batch, reverse=True)[1]


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def rollout(network, carts, key):
    """`STEPS` steps in each environment: the environments after them, and what happened."""

    def act(carts, key):
        choice, fresh = jax.random.split(key)
        logits, value = network(carts.physics)
        action = jax.random.categorical(choice, logits)
        log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=-1)[:, 0]
        moved, done = jax.vmap(step)(carts, action, jax.random.split(fresh, ENVIRONMENTS))
        reward, length = jnp.ones_like(value), carts.time + 1
        return moved, Batch(carts.physics, action, log_probability, value, reward, done.astype(value.dtype), length)

    return jax.lax.scan(act, carts, jax.random.split(key, STEPS))


def train(key):
    """Trains a network, and gives the mean length of the episodes that ended in each rollout."""
    key, init_key, reset_key = jax.random.split(key, 3)
    network = ActorCritic().init(jax.ShapeDtypeStruct([1, 4], jnp.float32), rng=init_key)
    updates = ROLLOUTS * EPOCHS * MINIBATCHES
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(2e-3, 0.0, updates)))
    state = optimizer.init(elegy.partition(network)[0])
    carts = jax.vmap(reset)(jax.random.split(reset_key, ENVIRONMENTS))

    def update(carry, minibatch):
        network, state = carry
        parameters, rest = elegy.partition(network)
        changes, state = optimizer.update(jax.grad(loss_fn)(parameters, rest, *minibatch), state, parameters)
        return (elegy.combine(optax.apply_updates(parameters, changes), rest), state), None

    def learn(carry, key):
        network, state, carts = carry
        act_key, *shuffle_keys = jax.random.split(key, 1 + EPOCHS)
        carts, batch = rollout(network, carts, act_key)
        advantage = advantages(batch, network(carts.physics)[1])
        data = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (batch, advantage, advantage + batch.value))

        def epoch(carry, key):
            order = jax.random.permutation(key, STEPS * ENVIRONMENTS).reshape(MINIBATCHES, -1)
            return jax.lax.scan(update, carry, jax.tree.map(lambda a: a[order], data))

        (network, state), _ = jax.lax.scan(epoch, (network, state), jnp.stack(shuffle_keys))
        length = (batch.done * batch.length).sum() / jnp.maximum(batch.done.sum(), 1)
        return (network, state, carts), jnp.where(batch.done.sum() > 0, length, jnp.nan)

    (network, _, _), lengths = jax.lax.scan(learn, (network, state, carts), jax.random.split(key, ROLLOUTS))
    return network, lengths


def test(network, key):
    """The mean length of the first episode of each environment, with the more probable action each time."""
    carts = jax.vmap(reset)(jax.random.split(key, ENVIRONMENTS))

    def act(carry, key):
        carts, running, length = carry
        action = jnp.argmax(network(carts.physics)[0], axis=-1)
        carts, done = jax.vmap(step)(carts, action, jax.random.split(key, ENVIRONMENTS))
        return (carts, running & ~done, length + running), None

    start = carts, jnp.ones(ENVIRONMENTS, bool), jnp.zeros(ENVIRONMENTS)
    return jax.lax.scan(act, start, jax.random.split(key, LONGEST))[0][2].mean()


def main() -> None:
    keys = jax.random.split(jax.random.key(0), SEEDS)
    networks, lengths = jax.jit(jax.vmap(train))(keys)
    tested = jax.jit(jax.vmap(test))(networks, keys)
    steps = STEPS * ENVIRONMENTS * np.arange(1, ROLLOUTS + 1)
    shown = np.asarray(lengths)
    for rollouts in (1, ROLLOUTS // 2, ROLLOUTS):
        found = ", ".join(f"{np.nanmean(row[max(0, rollouts - 10) : rollouts]):.1f}" for row in shown)
        print(f"after {steps[rollouts - 1]:,} steps: episodes of {found}")
    print(f"by the best actions: episodes of {', '.join(f'{length:.1f}' for length in tested)} of {LONGEST} steps")

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for seed, row in enumerate(shown):
        axis.plot(steps, row, label=f"seed {seed}")
    axis.set(xlabel="steps in the environment", ylabel="mean length of an episode", ylim=(0, LONGEST))
    axis.legend()
    figure.savefig(PICTURE, dpi=120)
    print(f"learning curves: {PICTURE}")


if __name__ == "__main__":
    main()
