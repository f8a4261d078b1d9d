from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import floating
from elegy.nn.positions import Offset, positions
from elegy.precision import at_least_float32


class RotaryEmbedding(Module):
    """Rotates queries and keys by angles that grow with the position, so that their products know the distance.

    Elements `i` and `i + head_size / 2` of a head are the coordinates of a point, which at position `p` is turned by
    the angle `p * base ** (-2 i / head_size)`. Su et al., *RoFormer* (2021),
    [arXiv:2104.09864](https://arxiv.org/abs/2104.09864), equation 15. (There the pairs are neighbours, `2 i` and
    `2 i + 1`. Halves, as here, are what Equinox, Keras, GPT-NeoX and Llama have; the two differ in the order of the
    elements of a head, so that weights of the one kind do not fit the other.)

    **Arguments:**

    - `base`: the larger it is, the slower the last pairs turn.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    It has no parameters. Angles are computed in float32 at least.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    rotary = elegy.nn.RotaryEmbedding()
    query, key = jax.random.normal(jax.random.key(0), [2, 10, 1, 8])  # ten positions, one head
    scores = jnp.einsum("qnh,knh->qk", rotary(query), rotary(key))
    moved = jnp.einsum("qnh,knh->qk", rotary(query, offset=5), rotary(key, offset=5))
    assert jnp.allclose(scores, moved, atol=1e-4)
    ```
    """

    def __init__(self, base: float | int = 10000.0, *, name: str | None = None, dtype: tp.Any = None):
        super().__init__(name=name, dtype=dtype)
        if isinstance(base, bool) or not base > 0:
            raise ValueError(f"elegy.nn.RotaryEmbedding: base must be a positive number, got {base}.")
        self.base = float(base)

    def call(
        self, x: Num[ArrayLike, "*batch length heads head_size"], offset: Offset = 0
    ) -> Inexact[Array, "*batch length heads head_size"]:
        """**Arguments:**

        - `x`: an array of at least three axes, whose last one has an even size.
        - `offset`: the position of the first element, an integer or integers of `[*batch]`; when a sequence is
          decoded piece by piece it is the number of elements before.

        **Returns:** an array of the shape and dtype of `x`.
        """
        x = floating(self, x)
        if x.ndim < 3 or x.shape[-1] % 2:
            raise ValueError(
                f"{path_of(self)}: the input of RotaryEmbedding must have the shape [*batch, length, heads, head_size] "
                f"with an even head_size, got {x.shape}.\n  Where there is one head only, give it x[..., None, :]."
            )
        if jnp.iscomplexobj(x):
            raise TypeError(f"{path_of(self)}: RotaryEmbedding takes real numbers, got {x.dtype}.")
        precise = at_least_float32(x.dtype)
        half = x.shape[-1] // 2
        speeds = self.base ** (-jnp.arange(half, dtype=precise) / max(half, 1))
        angles = jnp.multiply.outer(positions(self, offset, x, -3).astype(precise), speeds)
        angles = jnp.broadcast_to(jnp.expand_dims(angles, -2), (*x.shape[:-1], half))
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second = jnp.split(x.astype(precise), 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
