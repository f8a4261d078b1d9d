"""Fits a small network by Levenberg and Marquardt's method, until it converges. Needs `elegy[ecosystem]`.

Optimistix minimises the residuals over the pytree that it is given: the trainable part of a module. It needs a few
hundred steps; Adam, for comparison, is still far from the minimum after thousands. Run it with
`python examples/least_squares.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix

import elegy

ADAM_STEPS = 2000


class Network(elegy.Module):
    def call(self, x):
        x = jnp.tanh(elegy.nn.Linear(10)(x))
        return elegy.nn.Linear(1)(x)[:, 0]


def residuals(parameters, data):
    rest, x, y = data
    return elegy.combine(parameters, rest)(x) - y


def fit(module, x, y):
    """The module that fits, the number of steps, and whether the solver has converged."""
    parameters, rest = elegy.partition(module)
    solver = optimistix.LevenbergMarquardt(rtol=1e-3, atol=1e-4)
    solution = optimistix.least_squares(residuals, solver, parameters, (rest, x, y), max_steps=1000, throw=False)
    converged = solution.result == optimistix.RESULTS.successful
    return elegy.combine(solution.value, rest), solution.stats["num_steps"], converged


def train(module, x, y):
    """The module after many steps of Adam."""
    optimizer = elegy.Optimizer(optax.adam(1e-2))

    def update(x, y):
        loss, gradients = elegy.value_and_grad(lambda: jnp.mean((module(x) - y) ** 2), modules=module)()
        optimizer.update(module, gradients)
        return loss

    update_jit = elegy.jit(update, modules=[module, optimizer])
    for _ in range(ADAM_STEPS):
        update_jit(x, y)
    return module


def error(module, x, y):
    return float(jnp.sqrt(jnp.mean((module(x) - y) ** 2)))


def main() -> None:
    x = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    y = np.sin(5 * x[:, 0]) + 0.3 * np.cos(11 * x[:, 0])
    module = Network().init(x, rng=1)
    print(f"root mean square error at the start: {error(module, x, y):.6f}")

    fitted, steps, converged = jax.jit(fit)(module, x, y)
    assert converged
    print(f"Levenberg-Marquardt, {steps} steps: {error(fitted, x, y):.6f}")
    print(f"Adam, {ADAM_STEPS} steps: {error(train(module, x, y), x, y):.6f}")

    # A part that is frozen is no parameter. With the hidden layer fixed the problem is linear, and has a closed form.
    fitted.linear.trainable = False
    head, _, converged = jax.jit(fit)(fitted, x, y)
    assert converged
    hidden = np.asarray(jnp.tanh(fitted.linear(x)))
    design = np.concatenate([hidden, np.ones_like(x)], axis=1)
    exact = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    print(f"the last layer alone: {error(head, x, y):.6f}, in closed form: {np.sqrt(np.mean((exact - y) ** 2)):.6f}")


if __name__ == "__main__":
    main()
