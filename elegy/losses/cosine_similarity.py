from __future__ import annotations

import operator
import typing as tp

import optax
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import EPSILON, On, axis_last, comparable
from elegy.losses.loss import Loss, Reduction


def cosine_similarity(
    y_true: Num[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."], axis: int = -1
) -> Float[Array, "..."]:
    """Minus the cosine of the angle between two vectors: from -1, for vectors of one direction, to 1.

    `-sum(y_true · y_pred) / (‖y_true‖ ‖y_pred‖)`. The sign makes it a loss, as in Keras.

    **Arguments:**

    - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers. A vector of zeros has the cosine zero with
      any other.
    - `axis`: the axis of the vectors.

    **Returns:** an array without that axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.cosine_similarity(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 3.0]]))
    assert values.tolist() == [-1.0, 0.0]
    ```
    """
    owner = "elegy.losses.cosine_similarity"
    y_true, y_pred = comparable(owner, y_true, y_pred)
    y_true, y_pred = axis_last(owner, axis, y_true), axis_last(owner, axis, y_pred)
    # The least squared length, so that the gradient of the length of zeros is defined.
    return -optax.losses.cosine_similarity(y_pred, y_true, epsilon=EPSILON**2)


class CosineSimilarity(Loss):
    """Minus the cosine of the angle between targets and predictions, whose lengths do not matter.

    **Arguments:**

    - `axis`: the axis of the vectors: see `elegy.losses.cosine_similarity`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `axis` are given by keyword.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.CosineSimilarity()
    assert loss(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 3.0]])) == -0.5
    ```
    """

    def __init__(
        self,
        axis: int = -1,
        *,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.axis = operator.index(axis)

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

        **Returns:** an array without `axis`: the values before they are weighted and reduced.
        """
        return cosine_similarity(y_true, y_pred, self.axis)
