"""A model for all tests of a file, so that its steps are compiled once: each test finds it as it was at first.

Nothing here may import `elegy` at the top, since the annotation checker must be in place first.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest


@pytest.fixture(scope="module")
def shared_model():
    import elegy
    from tests.helpers import Affine, Norm

    class Net(elegy.Module):
        def call(self, x):
            return Affine(1)(Norm()(x))

    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.05)
    model = elegy.Model(Net(), loss=lambda y_true, y_pred: jnp.mean((y_true - y_pred) ** 2), optimizer=optimizer)
    model.module.init(jnp.ones([4, 3]))
    model.optimizer.adapt(model.module)
    return model, [jax.tree.map(np.asarray, part.get_parameters()) for part in (model.module, model.optimizer)]


class Fit:
    """Trains a model for some epochs of three steps, and gives the history."""

    def __init__(self, model, parameters, state):
        self._at_first = parameters, state
        rng = np.random.default_rng(0)
        self.model = model
        self.x = rng.normal(size=(16, 3)).astype(np.float32)
        self.y = self.x.sum(axis=1, keepdims=True)
        self.reset()

    def reset(self):
        """Brings the model back to its beginning."""
        parameters, state = self._at_first
        self.model.module.set_parameters(parameters)
        self.model.optimizer.set_parameters(state)
        self.model._steps = self.model._orders = 0

    def __call__(self, *callbacks, epochs=5, validation=True, **kwargs):
        x, y = self.x, self.y
        if validation:
            kwargs["validation_data"] = x[12:], y[12:]
        return self.model.fit(x[:12], y[:12], batch_size=4, epochs=epochs, callbacks=callbacks, verbose=0, **kwargs)


@pytest.fixture
def fitted(shared_model):
    """A function that trains the model from its beginning."""
    model, (parameters, state) = shared_model
    return Fit(model, parameters, state)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked, so that an argument of a wrong type comes to the check of the library."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
