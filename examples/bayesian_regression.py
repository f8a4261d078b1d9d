"""Samples the posterior of a module's parameters, and compares it with the exact one. Needs `elegy[ecosystem]`.

BlackJAX moves through a space of pytrees, and a module is one: each sample is a module. The posterior of a linear model
with Gaussian noise is known in closed form (Bishop, *Pattern Recognition and Machine Learning*, 2006, section 3.3), so
that the samples can be checked. Run it by `python examples/bayesian_regression.py`.
"""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import elegy

NOISE = 0.2  # standard deviation of the observations
PRIOR = 2.0  # standard deviation of each parameter
SAMPLES = 2000


class Cubic(elegy.Module):
    """A polynomial of the third degree: a linear layer over powers."""

    def call(self, x):
        powers = jnp.stack([x, x**2, x**3], axis=-1)
        return elegy.nn.Linear(1)(powers)[..., 0]


def sample(module, x, y, key):
    """Modules from the posterior, as one module whose arrays have a leading axis."""

    def log_density(module):
        likelihood = -0.5 * jnp.sum((module(x) - y) ** 2) / NOISE**2
        prior = -0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(module)) / PRIOR**2
        return likelihood + prior

    key_warmup, key_samples = jax.random.split(key)
    warmup = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, parameters), _ = warmup.run(key_warmup, module, num_steps=500)
    kernel = blackjax.nuts(log_density, **parameters)

    def step(state, key):
        state, _ = kernel.step(key, state)
        return state, state.position

    return jax.lax.scan(step, state, jax.random.split(key_samples, SAMPLES))[1]


def exact_posterior(x, y):
    """Mean and standard deviation of each parameter."""
    design = np.stack([x, x**2, x**3, np.ones_like(x)], axis=1)
    covariance = np.linalg.inv(design.T @ design / NOISE**2 + np.eye(4) / PRIOR**2)
    return covariance @ design.T @ y / NOISE**2, np.sqrt(np.diag(covariance))


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 30).astype(np.float32)
    y = (x**3 - 0.5 * x + 0.3 + NOISE * rng.normal(size=30)).astype(np.float32)

    module = Cubic().init(x, rng=0)
    modules = jax.jit(sample)(module, x, y, jax.random.key(0))
    drawn = np.concatenate([modules.linear.w[:, :, 0], modules.linear.b], axis=1)

    print("parameter   exact mean   deviation   sampled mean   deviation")
    rows = zip(["x", "x^2", "x^3", "1"], *exact_posterior(x, y), drawn.mean(0), drawn.std(0), strict=True)
    for name, *numbers in rows:
        print("{:9}   {:10.3f}   {:9.3f}   {:12.3f}   {:9.3f}".format(name, *numbers))

    # An ensemble: every member predicts, and their spread is the uncertainty, which grows outside of the data.
    for at in (0.0, 1.5):
        predictions = jax.vmap(lambda module, at=at: module(jnp.asarray(at)))(modules)
        print(f"prediction at {at}: {predictions.mean():.2f} +- {predictions.std():.2f}")


if __name__ == "__main__":
    main()
