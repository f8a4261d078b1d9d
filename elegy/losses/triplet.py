from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.frames import path_of
from elegy.losses.arguments import On, number
from elegy.losses.loss import Loss, Reduction
from elegy.precision import at_least_float32


def triplet(
    anchors: Num[ArrayLike, "*batch features"],
    positives: Num[ArrayLike, "*batch features"],
    negatives: Num[ArrayLike, "*batch features"],
    margin: float | int = 1.0,
) -> Float[Array, "*batch"]:
    """`max(0, margin + ‖anchor - positive‖ - ‖anchor - negative‖)`.

    Balntas et al., *Learning local feature descriptors with triplets* (2016), equation 2. Lengths are square roots of a
    sum to which 1e-6 is added, as in `optax.losses.triplet_margin_loss`, so that equal vectors have a gradient.

    **Arguments:**

    - `anchors`, `positives`, `negatives`: embeddings, in arrays of one shape: a positive is to be nearer to its anchor
      than the negative is.
    - `margin`: by how much.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.triplet(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([[1.5, 0.0]]))
    assert jnp.allclose(values, 0.5)
    ```
    """
    embeddings = [jnp.asarray(array) for array in (anchors, positives, negatives)]
    shapes = [array.shape for array in embeddings]
    if len(set(shapes)) > 1 or not shapes[0]:
        raise ValueError(
            "elegy.losses.triplet: anchors, positives and negatives must have one shape (..., features), got "
            f"{', '.join(map(str, shapes))}."
        )
    dtype = at_least_float32(*(array.dtype for array in embeddings))
    anchors, positives, negatives = (array.astype(dtype) for array in embeddings)
    return optax.losses.triplet_margin_loss(anchors, positives, negatives, margin=margin)


class Triplet(Loss):
    """Embeddings of what is alike are to be nearer to each other, by a margin, than to what is not.

    **Arguments:**

    - `margin`: that of `elegy.losses.triplet`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `margin` are given by keyword. The loss has no targets: in a `Model` the module returns the three embeddings
    as a tuple, and `fit(x)` is enough.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.Triplet(margin=1.0)
    anchors, positives, negatives = jnp.array([[[0.0, 0.0]], [[0.0, 1.0]], [[1.5, 0.0]]])
    assert jnp.allclose(loss((anchors, positives, negatives)), 0.5)
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
        self.margin = number("losses.Triplet", "margin", margin)

    def call(self, y_pred: Sequence[Num[ArrayLike, "..."]]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_pred`: a tuple of anchors, positives and negatives: arrays of one shape.

        **Returns:** the values for each triplet, before they are weighted and reduced.
        """
        if not isinstance(y_pred, (tuple, list)) or len(y_pred) != 3:
            given = f"{len(y_pred)} of them" if isinstance(y_pred, (tuple, list)) else "one value"
            raise ValueError(f"{path_of(self)}: y_pred must be (anchors, positives, negatives), got {given}.")
        return triplet(*y_pred, margin=self.margin)
