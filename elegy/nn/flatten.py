from __future__ import annotations

import math
import operator

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Shaped

from elegy.frames import path_of
from elegy.module import Module


class Flatten(Module):
    """Joins all axes but the first ones into one.

    **Arguments:**

    - `preserve_dims`: how many leading axes stay as they are. The default keeps the axis of the batch.
    - `name`: that of `elegy.Module`.

    ```python
    import elegy
    import jax.numpy as jnp

    images = jnp.ones([32, 8, 8, 3])
    assert elegy.nn.Flatten()(images).shape == (32, 192)
    ```
    """

    def __init__(self, preserve_dims: int = 1, *, name: str | None = None):
        super().__init__(name=name)
        self.preserve_dims = operator.index(preserve_dims)
        if self.preserve_dims < 0:
            raise ValueError(f"elegy.nn.Flatten: preserve_dims must not be negative, got {preserve_dims}.")

    def call(self, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
        """**Arguments:**

        - `x`: an array of at least `preserve_dims` axes, of any dtype.

        **Returns:** an array of `preserve_dims + 1` axes. If there is nothing to join, the last one has one element.
        """
        shape = jnp.shape(x)
        kept = shape[: self.preserve_dims]
        if len(kept) < self.preserve_dims:
            raise ValueError(
                f"{path_of(self)}: Flatten keeps the first {self.preserve_dims} axes of its input, which has shape "
                f"{shape}.\n"
                "  Give it a batch, or set preserve_dims."
            )
        return jnp.asarray(x).reshape(*kept, math.prod(shape[self.preserve_dims :]))
