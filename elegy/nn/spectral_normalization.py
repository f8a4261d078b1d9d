from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from elegy.devices import sharded_like
from elegy.initializers import RandomNormal
from elegy.module import Module
from elegy.nn.inputs import positive
from elegy.nn.reparametrised import Reparametrised, Weight
from elegy.nn.standardise import not_negative
from elegy.precision import at_least_float32


class SpectralNormalization(Reparametrised):
    """Runs a layer with its weight divided by an estimate of its largest singular value: `w / sigma`.

    So the map of a `Linear` layer lengthens no vector, which keeps the discriminator of a generative adversarial
    network smooth. The estimate is that of a power iteration, which starts where the last training step left it:
    `v = w u / |w u|`, `u = wᵀ v / |wᵀ v|`, `sigma = vᵀ w u`. Gradients take `u` and `v` as constants. Miyato et al.,
    *Spectral Normalization for Generative Adversarial Networks* (2018),
    [arXiv:1802.05957](https://arxiv.org/abs/1802.05957), algorithm 1.

    The last axis of a weight is that of its outputs; the others are taken as one, so that the kernel of a convolution
    is a matrix `[window * in, out]`.

    **Arguments:**

    - `layer`: the layer to wrap, initialised or not, or a function without arguments that constructs it. The others are
      given by name. Inside `call` give a function: a layer that is constructed there by itself belongs to the module
      that is running, which is where its parameters are then found, and is shared with the wrapper.
    - `iterations`: the number of power iterations of a call.
    - `eps`: the least length by which a vector is divided in the iteration.
    - `names`: the name, or the names, of the parameters to normalise: all of that name with at least two axes, in the
      layer and below it.
    - `name`: that of `elegy.Module`.

    **Parameters:** those of the layer, below `layer`: it is `layer/w` that is trained.

    **State:** `u` of shape `[out]`, and the last `sigma`, a scalar, for the `w` of the layer itself; for other weights
    the path follows: `u_layers_0_w`. They are updated in training only, and are in float32 at least, in which they are
    computed. Outside of training the iterations begin at the same `u` each time. Before the first training step `u` is
    random, and `sigma` 1: a new layer needs some steps, or a larger `iterations`, until the estimate is good.

    The call takes the arguments of the layer. An argument `training=` holds for both.

    ```python
    import elegy
    import jax.numpy as jnp
    import numpy as np

    layer = elegy.nn.SpectralNormalization(elegy.nn.Linear(4), iterations=50)
    y = layer(jnp.ones([2, 3]))
    assert elegy.select(layer, trainable=True).paths == ("layer/w", "layer/b")
    assert np.isclose(layer.sigma, np.linalg.norm(layer.layer.w, ord=2))
    ```
    """

    u: Float[Array, "..."]
    sigma: Float[Array, ""]

    def __init__(
        self,
        layer: Module | Callable[[], Module],
        *,
        iterations: int = 1,
        eps: float | int = 1e-12,
        names: str | Sequence[str] = "w",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self._wrap(layer, names)
        self.iterations = positive("SpectralNormalization", "iterations", iterations)
        self.eps = not_negative("SpectralNormalization", "eps", eps)
        if self.layer.initialized:
            for weight in self._weights():
                self._states(weight)

    def _changed(self, weight: Weight, value: Array, training: bool) -> Array:
        w = value.astype(at_least_float32(value.dtype))
        states = self._states(weight)
        u, v = self._singular_vectors(jax.lax.stop_gradient(w), states["u"].astype(w.dtype))
        sigma = jnp.sum(w * _outer(v, u, w.shape))
        if training:
            for name, new in (("u", u), ("sigma", sigma)):
                old = states[name]
                self.update_parameter(weight.beside(name), sharded_like(new.astype(old.dtype), old))
        return (w / jnp.where(sigma == 0, 1, sigma)).astype(value.dtype)

    def _states(self, weight: Weight) -> dict[str, Array]:
        outputs, dtype = weight.read().shape[-1], at_least_float32(weight.read().dtype)
        states = {}
        for state, shape, initializer in (("u", [outputs], RandomNormal()), ("sigma", [], jnp.ones)):
            name = weight.beside(state)
            states[state] = self.add_parameter(name, shape, self._dtype_of(name, dtype), initializer, trainable=False)
        return states

    def _singular_vectors(self, w: Array, u: Array) -> tuple[Array, Array]:
        """The estimates of the vectors with the largest singular value: that of the outputs, `[out]`, and that of the
        inputs, which has all other axes of `w`."""
        v = jnp.zeros(w.shape[:-1], w.dtype)
        for _ in range(self.iterations):
            # Sums of products instead of matrix products, which some devices compute in half precision, and for which
            # the axes of a weight that is sharded could not be taken as one.
            v = self._normalised(jnp.sum(w * jnp.broadcast_to(u, w.shape), -1))
            u = self._normalised(jnp.sum(w * jnp.broadcast_to(v[..., None], w.shape), tuple(range(w.ndim - 1))))
        return u, v

    def _normalised(self, vector: Array) -> Array:
        return vector / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(vector))), self.eps)


def _outer(v: Array, u: Array, shape: Sequence[int]) -> Array:
    return jnp.broadcast_to(v[..., None], shape) * jnp.broadcast_to(u, shape)
