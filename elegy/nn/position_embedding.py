from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.frames import path_of
from elegy.initializers import RandomNormal
from elegy.module import Module
from elegy.nn.inputs import converted, positive, refuse_more
from elegy.nn.positions import Offset, known, positions


class PositionEmbedding(Module):
    """Adds a learned vector for each position: `y[..., p, :] = x[..., p, :] + w[p]`.

    Gehring et al., *Convolutional Sequence to Sequence Learning* (2017),
    [arXiv:1705.03122](https://arxiv.org/abs/1705.03122), section 3.1; it is that of BERT and GPT-2.

    **Arguments:**

    - `max_length`: the number of positions.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.RandomNormal(0.02)`, that of GPT-2.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[max_length, features]`.

    **Raises:** `ValueError` if a sequence goes beyond `max_length`. Where that cannot be seen, since the offset is
    traced, the output is NaN there.

    ```python
    import elegy
    import jax.numpy as jnp

    embedding = elegy.nn.PositionEmbedding(512)
    y = embedding(jnp.zeros([2, 10, 8]))
    assert y.shape == (2, 10, 8)
    assert (embedding(jnp.zeros([2, 1, 8]), offset=9) == y[:, 9:]).all()
    ```
    """

    w: Inexact[Array, "max_length features"]

    def __init__(
        self, max_length: int, *more: tp.Any, w_init: tp.Any = None, name: str | None = None, dtype: tp.Any = None
    ):
        super().__init__(name=name, dtype=dtype)
        inferred = "The number of features is inferred"
        if more:
            refuse_more("PositionEmbedding", {"max_length": max_length}, more, inferred, "w_init=...")
        self.max_length = positive("PositionEmbedding", "max_length", max_length)
        self.w_init = RandomNormal(0.02) if w_init is None else w_init

    def call(
        self, x: Num[ArrayLike, "*batch length features"], offset: Offset = 0
    ) -> Inexact[Array, "*batch length features"]:
        """**Arguments:**

        - `x`: an array of at least two axes.
        - `offset`: the position of the first element, an integer or integers of `[*batch]`; when a sequence is
          decoded piece by piece it is the number of elements before.

        **Returns:** an array of the shape of `x`, in the dtype of `w`.
        """
        shape = jnp.shape(x)
        if len(shape) < 2:
            raise ValueError(
                f"{path_of(self)}: the input of PositionEmbedding must have the shape [*batch, length, features], "
                f"got {shape}."
            )
        w = self.add_parameter("w", [self.max_length, shape[-1]], initializer=self.w_init)
        x = converted(self, x, w.dtype)
        where = positions(self, offset, x, -2)
        first = known(offset)
        if shape[-2] > self.max_length or (first is not None and self._is_outside(first, shape[-2])):
            at = "" if first is None or not first.any() else f", of which the first is at offset {offset}"
            raise ValueError(
                f"{path_of(self)}: there are {self.max_length} positions, and the input of shape {shape} has "
                f"{shape[-2]}{at}.\n  Set a larger max_length, or give a part of the sequence."
            )
        where = jnp.where(where < 0, self.max_length, where)  # else they would count from the end
        vectors = jnp.take(w, where, axis=0, mode="fill", fill_value=jnp.nan)
        return x + jnp.broadcast_to(vectors, x.shape)

    def _is_outside(self, first: tp.Any, length: int) -> bool:
        return bool(((first < 0) | (first + length > self.max_length)).any())
