from __future__ import annotations

import typing as tp

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.module import Module
from elegy.nn.inputs import Flag, boolean
from elegy.nn.standardise import (
    Axes,
    affine,
    axes_of,
    check_not_empty,
    dtype_of,
    not_negative,
    other_axes,
    real,
    some_axes,
)
from elegy.precision import at_least_float32


class RMSNormalization(Module):
    """Divides each example by its root mean square: `y = scale * x / sqrt(mean(x²) + eps)`.

    As `LayerNormalization`, without subtracting the mean and without an offset. Zhang and Sennrich, *Root Mean Square
    Layer Normalization* (2019), [arXiv:1910.07467](https://arxiv.org/abs/1910.07467), equation 4, with `eps` added
    inside of the root, as in Flax and Keras.

    **Arguments:**

    - `axis`: the axis or axes over which the mean square is taken. The default is the last one.
    - `create_scale`: whether there is a parameter `scale`.
    - `eps`: added to the mean square.
    - `scale_init`: the initializer of `scale`; the default is ones.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `scale`, of the shape of the normalised axes, in their order in the input.

    The mean square is computed in float32 at least. The output has the dtype of `scale`; without it it has that of the
    input.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    norm = elegy.nn.RMSNormalization()
    y = norm(3 + jax.random.normal(jax.random.key(0), [5, 7, 64]))
    assert norm.scale.shape == (64,)
    assert jnp.allclose(jnp.mean(y**2, -1), 1, atol=1e-3)
    ```
    """

    scale: Float[Array, "..."]

    def __init__(
        self,
        *,
        axis: Axes = -1,
        create_scale: Flag = True,
        eps: float | int = 1e-6,
        scale_init: tp.Any = jnp.ones,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.axis = some_axes("RMSNormalization", axis)
        self.create_scale = boolean("RMSNormalization", "create_scale", create_scale)
        self.eps = not_negative("RMSNormalization", "eps", eps)
        self.scale_init = jnp.ones if scale_init is None else scale_init

    def call(self, x: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """**Arguments:**

        - `x`: an array that has the normalised axes. With `axis=-1` any number of axes may come before.

        **Returns:** an array of the same shape.
        """
        x = real(self, x)
        axes = axes_of(self, self.axis, x.shape)
        check_not_empty(self, x.shape, axes)
        shape = [x.shape[axis] for axis in axes]
        scale = self.add_parameter("scale", shape, initializer=self.scale_init) if self.create_scale else None
        dtype = dtype_of(x, scale)
        x = x.astype(at_least_float32(x.dtype, dtype))
        factor = jax.lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + self.eps)
        y = x * jnp.broadcast_to(factor, x.shape)
        return affine(y, scale, None, other_axes(axes, x.ndim)).astype(dtype)
