from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from elegy.module import Module
from elegy.nn.inputs import Flag, boolean
from elegy.nn.reparametrised import Reparametrised, Weight
from elegy.nn.standardise import Axes, axes_of, not_negative, other_axes, some_axes
from elegy.precision import at_least_float32


class WeightNormalization(Reparametrised):
    """Runs a layer with a weight whose length and direction are separate: `scale * w / |w|`, for each output feature.

    `|w| = sqrt(sum(w²) + eps)` is the length of what leads to one output. Salimans and Kingma, *Weight Normalization*
    (2016), [arXiv:1602.07868](https://arxiv.org/abs/1602.07868), equation 2, where `w` is called v and `scale` g.

    **Arguments:**

    - `layer`: the layer to wrap, initialised or not, or a function without arguments that constructs it. The others are
      given by name. Inside `call` give a function: a layer that is constructed there by itself belongs to the module
      that is running, which is where its parameters are then found, and is shared with the wrapper.
    - `axis`: the axis or axes of the output features in a weight, each entry of which has a length of its own; the
      default is the last one. None gives the whole weight one length.
    - `create_scale`: whether there is a `scale`. Without it all lengths are 1.
    - `eps`: added to the square of the length.
    - `scale_init`: the initializer of `scale`. The default is ones, as in Flax; around a layer that has been
      initialised it is the lengths of the weight, so that the wrapped layer at first computes what it did before.
    - `names`: the name, or the names, of the parameters to normalise: all of that name with at least two axes, in the
      layer and below it.
    - `name`: that of `elegy.Module`.

    **Parameters:** those of the layer, below `layer`, of which `layer/w` gives the direction only; `scale`, of the
    shape of `axis` in the weight and of its dtype, for the `w` of the layer itself. For other weights the path follows:
    `scale_layers_0_w`.

    Lengths are computed in float32 at least. The call takes the arguments of the layer.

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([2, 3])
    linear = elegy.nn.Linear(4).init(x)
    layer = elegy.nn.WeightNormalization(linear)
    assert layer.scale.shape == (4,)
    assert jnp.allclose(layer(x), linear(x))
    ```
    """

    scale: Float[Array, "..."]

    def __init__(
        self,
        layer: Module | Callable[[], Module],
        *,
        axis: Axes | None = -1,
        create_scale: Flag = True,
        eps: float | int = 1e-12,
        scale_init: tp.Any = None,
        names: str | Sequence[str] = "w",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self._wrap(layer, names)
        self.axis = None if axis is None else some_axes("WeightNormalization", axis)
        self.create_scale = boolean("WeightNormalization", "create_scale", create_scale)
        self.eps = not_negative("WeightNormalization", "eps", eps)
        self.scale_init = scale_init
        if self.layer.initialized and scale_init is None and self.create_scale:
            for weight in self._weights():
                value = weight.read()
                axes = self._features(weight, value)
                lengths = jnp.sqrt(self._squared_length(value, axes))
                lengths = jnp.squeeze(lengths, other_axes(axes, value.ndim)).astype(value.dtype)
                self.add_parameter(weight.beside("scale"), initializer=lengths)

    def _changed(self, weight: Weight, value: Array, training: bool) -> Array:
        axes = self._features(weight, value)
        squared = self._squared_length(value, axes)
        factor = jax.lax.rsqrt(squared)
        if self.create_scale:
            name, shape = weight.beside("scale"), [value.shape[axis] for axis in axes]
            initializer = jnp.ones if self.scale_init is None else self.scale_init
            scale = self.add_parameter(name, shape, self._dtype_of(name, value.dtype), initializer)
            factor = factor * jnp.reshape(scale.astype(factor.dtype), factor.shape)
        return (value.astype(factor.dtype) * jnp.broadcast_to(factor, value.shape)).astype(value.dtype)

    def _features(self, weight: Weight, value: Array) -> tuple[int, ...]:
        if self.axis is None:
            return ()
        return axes_of(self, self.axis, value.shape, "/".join(weight.parts))

    def _squared_length(self, value: Array, axes: Sequence[int]) -> Array:
        """`sum(w²) + eps` over all axes but those, which are kept with size 1."""
        value = value.astype(at_least_float32(value.dtype))
        return jnp.sum(jnp.square(value), other_axes(axes, value.ndim), keepdims=True) + self.eps
