from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from elegy.frames import path_of
from elegy.losses.arguments import On, number
from elegy.losses.loss import Loss, Reduction
from elegy.precision import at_least_float32


def contrastive(
    y_true: Shaped[ArrayLike, "*batch"],
    first: Shaped[ArrayLike, "*batch features"],
    second: Shaped[ArrayLike, "*batch features"],
    margin: float | int = 1.0,
) -> Float[Array, "*batch"]:
    """`d²` for a pair that is alike, and `max(0, margin - d)²` for one that is not, where `d` is their distance.

    Hadsell et al., *Dimensionality Reduction by Learning an Invariant Mapping* (2006), equation 4, without its factor
    of one half.

    **Arguments:**

    - `y_true`: 1 where a pair is alike, 0 where it is not: bools or numbers.
    - `first`, `second`: the embeddings of the pairs, in arrays of one shape.
    - `margin`: how far from each other those are to be that are not alike.

    **Returns:** an array of the shape of `y_true`, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.contrastive(jnp.array([1, 0]), jnp.array([[0.0], [0.0]]), jnp.array([[0.5], [0.25]]))
    assert jnp.allclose(values, jnp.array([0.25, 0.5625]))
    ```
    """
    y_true, first, second = jnp.asarray(y_true), jnp.asarray(first), jnp.asarray(second)
    if first.shape != second.shape or not first.shape or y_true.shape != first.shape[:-1]:
        raise ValueError(
            "elegy.losses.contrastive: both embeddings must have one shape (..., features), and y_true that without "
            f"the last axis, got y_true of shape {y_true.shape} and embeddings of shapes {first.shape} and "
            f"{second.shape}."
        )
    dtype = at_least_float32(first.dtype, second.dtype)
    squared = jnp.sum(jnp.square(first.astype(dtype) - second.astype(dtype)), axis=-1)
    # The root has no gradient at 0, and where the distance does not count none is to come from it.
    distance = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    alike = y_true.astype(dtype)
    return alike * squared + (1 - alike) * jnp.square(jnp.maximum(margin - distance, 0))


class Contrastive(Loss):
    """Embeddings of pairs that are alike are to be equal, and others to be at least a margin from each other.

    **Arguments:**

    - `margin`: that of `elegy.losses.contrastive`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `margin` are given by keyword. In a `Model` the module returns the two embeddings as a tuple.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.Contrastive(margin=1.0)
    first, second = jnp.array([[0.0], [0.0]]), jnp.array([[0.5], [2.0]])
    assert jnp.allclose(loss(jnp.array([1, 0]), (first, second)), 0.125)
    ```
    """

    def __init__(
        self,
        margin: float | int = 1.0,
        *,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.margin = number("losses.Contrastive", "margin", margin)

    def call(
        self, y_true: Shaped[ArrayLike, "*batch"], y_pred: Sequence[Shaped[ArrayLike, "..."]]
    ) -> Float[Array, "*batch"]:
        """**Arguments:**

        - `y_true`: 1 where a pair is alike, 0 where it is not.
        - `y_pred`: a tuple of the two embeddings, arrays of one shape.

        **Returns:** the values for each pair, before they are weighted and reduced.
        """
        if not isinstance(y_pred, (tuple, list)) or len(y_pred) != 2:
            given = f"{len(y_pred)} of them" if isinstance(y_pred, (tuple, list)) else "one value"
            raise ValueError(f"{path_of(self)}: y_pred must be a pair of embeddings, got {given}.")
        return contrastive(y_true, *y_pred, margin=self.margin)
