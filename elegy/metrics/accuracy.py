from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from elegy.metrics.arguments import Mask, Weights, same_shape
from elegy.metrics.average import Average


def accuracy(y_true: Shaped[ArrayLike, "*shape"], y_pred: Shaped[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """1 where a predicted label is the true one, 0 elsewhere.

    **Arguments:**

    - `y_true`, `y_pred`: labels, of the same shape.

    **Returns:** an array of float32 of that shape.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.metrics.accuracy(jnp.array([1, 0, 2]), jnp.array([1, 1, 2]))
    assert values.tolist() == [1, 0, 1]
    ```
    """
    y_true, y_pred = same_shape(
        "elegy.metrics.accuracy",
        y_true,
        y_pred,
        "Labels are compared with labels. Of scores take SparseCategoricalAccuracy, CategoricalAccuracy or "
        "BinaryAccuracy, or give y_pred.argmax(-1).",
    )
    if y_true.dtype != y_pred.dtype:
        dtype = jnp.dtype(np.promote_types(y_true.dtype, y_pred.dtype))
        y_true, y_pred = y_true.astype(dtype), y_pred.astype(dtype)
    return (y_true == y_pred).astype(jnp.float32)


class Accuracy(Average):
    """The share of predicted labels, over all that was counted, that are the true ones; 0 if there were none.

    As in Keras it compares labels for equality. What has scores for `y_pred` is counted by
    [`SparseCategoricalAccuracy`][elegy.metrics.SparseCategoricalAccuracy] (integer labels),
    [`CategoricalAccuracy`][elegy.metrics.CategoricalAccuracy] (one-hot rows) or
    [`BinaryAccuracy`][elegy.metrics.BinaryAccuracy].

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    accuracy = elegy.metrics.Accuracy()
    assert accuracy(jnp.array([1, 0, 2, 3]), jnp.array([1, 1, 2, 3])) == 0.75
    ```
    """

    direction = "max"

    def update(
        self,
        y_true: Shaped[ArrayLike, "*shape"],
        y_pred: Shaped[ArrayLike, "*shape"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`, `y_pred`: labels, of the same shape.
        - `sample_weight`, `mask`: weights of the labels, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        self.count_values(accuracy(y_true, y_pred), sample_weight, mask)
