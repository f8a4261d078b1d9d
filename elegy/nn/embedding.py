from __future__ import annotations

import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact, Integer, Num

from elegy.calls import compact
from elegy.devices import for_lookup, for_product
from elegy.frames import path_of
from elegy.initializers import RandomNormal
from elegy.module import Module
from elegy.nn.inputs import converted, floating, positive


class Embedding(Module):
    """A table of vectors, one for each id: the row `w[id]`.

    It is also the last layer of a language model whose weights are tied: see `attend`.

    **Arguments:**

    - `vocab_size`: the number of rows. Ids are at least 0 and less than `vocab_size`.
    - `embed_dim`: the size of a vector.
    - `w_init`: the initializer of `w`. The default is a normal distribution of variance `1 / embed_dim`, as in Flax, so
      that a vector has length 1 on average.
    - `embedding_matrix`: an array `[vocab_size, embed_dim]` of initial values, instead of `w_init`. It is copied, and
      keeps its dtype unless `dtype` is given or it holds integers.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[vocab_size, embed_dim]`.

    There is no row for an id that is out of range, not even for a negative one:

    - In ids of NumPy and in Python integers it raises an `IndexError`.
    - The values of a `jax.Array` are not looked at, since they are unknown inside a transform, and reading them would
      wait for the device outside of one. The vector is NaN there, and the gradient of `w` gets nothing from it.

    ```python
    import elegy
    import jax.numpy as jnp
    import numpy as np

    embedding = elegy.nn.Embedding(1000, 64)
    tokens = np.array([[3, 1, 999], [0, 3, 3]])
    assert embedding(tokens).shape == (2, 3, 64)
    assert bool(jnp.isnan(embedding(jnp.array([1000]))).all())
    ```
    """

    w: Inexact[Array, "vocab_size embed_dim"]

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        w_init: tp.Any = None,
        embedding_matrix: Num[ArrayLike, "..."] | None = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.vocab_size = positive("Embedding", "vocab_size", vocab_size)
        self.embed_dim = positive("Embedding", "embed_dim", embed_dim)
        self.w_init = RandomNormal(self.embed_dim**-0.5) if w_init is None else w_init
        if embedding_matrix is None:
            return
        if w_init is not None:
            raise ValueError("elegy.nn.Embedding: give initial values by w_init or by embedding_matrix, not by both.")
        if jnp.shape(embedding_matrix) != (self.vocab_size, self.embed_dim):
            raise ValueError(
                f"elegy.nn.Embedding: embedding_matrix must have the shape (vocab_size, embed_dim) = "
                f"{(self.vocab_size, self.embed_dim)}, got {jnp.shape(embedding_matrix)}."
            )
        # A copy, which may be donated, and which does not change with an array of NumPy.
        self.add_parameter("w", initializer=floating(self, jnp.array(embedding_matrix)))

    def call(self, ids: Integer[ArrayLike, "*ids"]) -> Inexact[Array, "*ids embed_dim"]:
        """**Arguments:**

        - `ids`: integers of any dtype, in an array of any shape.

        **Returns:** an array with one axis more, of `embed_dim` elements, in the dtype of `w`.
        """
        w = self._matrix()
        self._check(ids)
        ids = jnp.asarray(ids)
        if ids.dtype.itemsize == 8:  # JAX takes the lower half of a large integer
            ids = jnp.clip(ids.astype(jnp.int64), -1, self.vocab_size)
        # Small integers cannot hold the number of rows, with which they are compared.
        ids = ids.astype(jnp.int32)
        w, out_sharding = for_lookup(ids, w)
        return w.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=out_sharding)

    @compact
    def attend(self, query: Num[ArrayLike, "*batch embed_dim"]) -> Inexact[Array, "*batch vocab_size"]:
        """The inner products of a vector with all rows: `query w^T`, the logits of a language model with tied weights.

        Press and Wolf, *Using the Output Embedding to Improve Language Models* (2017), section 2.

        **Arguments:**

        - `query`: an array of at least one axis, the last of `embed_dim` elements.

        **Returns:** an array of the same shape but for the last axis, which has `vocab_size` elements, in the dtype of
        `w`.

        ```python
        import elegy
        import jax.numpy as jnp

        embedding = elegy.nn.Embedding(1000, 64)
        vectors = embedding(jnp.array([[3, 1, 2]]))
        assert embedding.attend(vectors).shape == (1, 3, 1000)
        ```
        """
        if jnp.shape(query)[-1:] != (self.embed_dim,):
            raise ValueError(
                f"{path_of(self)}: the last axis of the query must have embed_dim={self.embed_dim} elements, got shape "
                f"{jnp.shape(query)}."
            )
        w = self._matrix()
        query = converted(self, query, w.dtype)
        transposed, out_sharding = for_product(query, w.T)
        return jnp.dot(query, transposed, out_sharding=out_sharding)

    def _matrix(self) -> Inexact[Array, "vocab_size embed_dim"]:
        return self.add_parameter("w", [self.vocab_size, self.embed_dim], initializer=self.w_init)

    def _check(self, ids: tp.Any) -> None:
        """Refuses ids that are no integers, and those that are out of range if that can be seen for free."""
        dtype = ids.dtype if hasattr(ids, "dtype") else np.asarray(ids).dtype
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(f"{path_of(self)}: the ids of Embedding must be integers, got {dtype}.")
        if isinstance(ids, jax.Array):
            return
        numbers = np.asarray(ids)
        wrong = numbers[(numbers < 0) | (numbers >= self.vocab_size)]
        if wrong.size:
            raise IndexError(
                f"{path_of(self)}: the id {wrong[0]} is out of range: ids must be at least 0 and less than "
                f"vocab_size={self.vocab_size}.\n"
                "  Give the layer a row for each id that occurs, or map unknown ids to a row of their own."
            )
