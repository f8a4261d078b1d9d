"""Learns how a damped pendulum moves from short trajectories, and predicts a long one. Needs `elegy[ecosystem]`.

The right-hand side of the differential equation is a module; Diffrax solves the equation, and gradients flow back
through the solver. Run it by `python examples/neural_ode.py`.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import elegy

SHORT = np.linspace(0, 1, 11, dtype=np.float32)  # seconds
LONG = np.linspace(0, 6, 61, dtype=np.float32)
STEPS = 800


class Field(elegy.Module):
    """dy/dt as a function of y, the angle and its velocity."""

    def call(self, t, y, args=None):
        hidden = jnp.tanh(elegy.nn.Linear(32)(y))
        return elegy.nn.Linear(2)(hidden)


def pendulum(t, y, args=None):
    angle, velocity = y
    return jnp.stack([velocity, -4 * jnp.sin(angle) - 0.3 * velocity])


def solve(field, start, times):
    """The states at the times."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Heun(), 0.0, times[-1], 0.1, start, saveat=diffrax.SaveAt(ts=times)
    )
    return solution.ys


def main() -> None:
    starts = np.random.default_rng(0).uniform([-1.5, -2.5], [1.5, 2.5], [64, 2]).astype(np.float32)
    wanted = jax.vmap(lambda start: solve(pendulum, start, SHORT))(starts)
    field = Field().init(0.0, starts[0], rng=0)
    optimizer = elegy.Optimizer(optax.adam(optax.cosine_decay_schedule(2e-2, STEPS)))

    def loss_fn(starts, wanted):
        found = jax.vmap(lambda start: solve(field, start, SHORT))(starts)
        return jnp.mean((found - wanted) ** 2)

    def update(starts, wanted):
        loss, gradients = elegy.value_and_grad(loss_fn, modules=field)(starts, wanted)
        optimizer.update(field, gradients)
        return loss

    update_jit = elegy.jit(update, modules=[field, optimizer])
    for step in range(1, STEPS + 1):
        loss = update_jit(starts, wanted)
        if step == 1 or step % 200 == 0:
            print(f"step {step}: loss {loss:.6f}")

    # Modules are pytrees: the trained one goes into a stock transform as it is.
    start = np.array([1.2, 0.0], np.float32)
    found, truth = jax.jit(solve)(field, start, LONG), solve(pendulum, start, LONG)
    swing, error = jnp.max(jnp.abs(truth[:, 0])), jnp.max(jnp.abs(found[:, 0] - truth[:, 0]))
    print(f"six seconds from a new start: the pendulum swings by {swing:.2f} rad, the largest error is {error:.3f} rad")


if __name__ == "__main__":
    main()
