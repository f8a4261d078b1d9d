from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Shaped

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import positive


class Reshape(Module):
    """Gives the axes after the first ones another shape.

    **Arguments:**

    - `output_shape`: the new sizes of these axes. One of them may be -1, and is inferred.
    - `preserve_dims`: how many leading axes stay as they are. The default keeps the axis of the batch.
    - `name`: that of `elegy.Module`.

    ```python
    import elegy
    import jax.numpy as jnp

    vectors = jnp.ones([32, 192])
    assert elegy.nn.Reshape([8, 8, -1])(vectors).shape == (32, 8, 8, 3)
    ```
    """

    def __init__(self, output_shape: Sequence[int], preserve_dims: int = 1, *, name: str | None = None):
        super().__init__(name=name)
        if not isinstance(output_shape, (list, tuple)) or output_shape.count(-1) > 1:
            raise ValueError(
                "elegy.nn.Reshape: output_shape must be a list of positive integers, of which one may be -1, "
                f"got {output_shape!r}."
            )
        self.output_shape = tuple(
            -1 if size == -1 else positive("Reshape", "output_shape", size) for size in output_shape
        )
        self.preserve_dims = operator.index(preserve_dims)
        if self.preserve_dims < 0:
            raise ValueError(f"elegy.nn.Reshape: preserve_dims must not be negative, got {preserve_dims}.")

    def call(self, x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
        """**Arguments:**

        - `x`: an array of at least `preserve_dims` axes, of any dtype.

        **Returns:** an array of the first `preserve_dims` axes and those of `output_shape`, with the elements of `x` in
        their order.
        """
        shape = jnp.shape(x)
        kept = shape[: self.preserve_dims]
        if len(kept) < self.preserve_dims:
            raise ValueError(
                f"{path_of(self)}: Reshape keeps the first {self.preserve_dims} axes of its input, which has shape "
                f"{shape}.\n"
                "  Give it a batch, or set preserve_dims."
            )
        elements = math.prod(shape[self.preserve_dims :])
        known = math.prod(size for size in self.output_shape if size != -1)
        # Not left to JAX, which cannot infer a size where the batch is empty.
        inferred = [elements // known if size == -1 else size for size in self.output_shape]
        if math.prod(inferred) != elements:
            raise ValueError(
                f"{path_of(self)}: output_shape={self.output_shape} does not fit the input of shape {shape}, which has "
                f"{elements} elements after its first {self.preserve_dims} axes."
            )
        return jnp.asarray(x).reshape(*kept, *inferred)
