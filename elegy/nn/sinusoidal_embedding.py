from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import floating
from elegy.nn.positions import Offset, positions
from elegy.precision import at_least_float32


class SinusoidalEmbedding(Module):
    """Adds sines and cosines of the position: to element `2 i` at position `p` the sine of
    `p * base ** (-2 i / features)`, to element `2 i + 1` the cosine of the same.

    Vaswani et al., *Attention Is All You Need* (2017), [arXiv:1706.03762](https://arxiv.org/abs/1706.03762),
    section 3.5.

    **Arguments:**

    - `base`: the wavelengths grow from `2 π` to nearly `2 π base`.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    It has no parameters, and the length of the sequence has no limit. Angles are computed in float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    embedding = elegy.nn.SinusoidalEmbedding()
    y = embedding(jnp.zeros([2, 10, 8]))
    assert y.shape == (2, 10, 8)
    assert (y[:, 0, 0::2] == 0).all() and (y[:, 0, 1::2] == 1).all()
    ```
    """

    def __init__(self, base: float | int = 10000.0, *, name: str | None = None, dtype: tp.Any = None):
        super().__init__(name=name, dtype=dtype)
        if isinstance(base, bool) or not base > 0:
            raise ValueError(f"elegy.nn.SinusoidalEmbedding: base must be a positive number, got {base}.")
        self.base = float(base)

    def call(
        self, x: Num[ArrayLike, "*batch length features"], offset: Offset = 0
    ) -> Inexact[Array, "*batch length features"]:
        """**Arguments:**

        - `x`: an array of at least two axes.
        - `offset`: the position of the first element, an integer or integers of `[*batch]`; when a sequence is
          decoded piece by piece it is the number of elements before.

        **Returns:** an array of the shape and dtype of `x`: the sum of both.
        """
        x = floating(self, x)
        if x.ndim < 2:
            raise ValueError(
                f"{path_of(self)}: the input of SinusoidalEmbedding must have the shape [*batch, length, features], "
                f"got {x.shape}."
            )
        precise = at_least_float32(x.dtype)
        features = x.shape[-1]
        pairs = (features + 1) // 2
        speeds = self.base ** (-2 * jnp.arange(pairs, dtype=precise) / max(features, 1))
        angles = jnp.multiply.outer(positions(self, offset, x, -2).astype(precise), speeds)
        waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        waves = waves.reshape(*angles.shape[:-1], 2 * pairs)[..., :features]  # an odd number ends with a sine
        if jnp.iscomplexobj(x):
            return x + jnp.broadcast_to(waves, x.shape).astype(x.dtype)
        return (x.astype(precise) + jnp.broadcast_to(waves, x.shape)).astype(x.dtype)
