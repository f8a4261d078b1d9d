from __future__ import annotations

import operator
import typing as tp

import jax.numpy as jnp
from jaxtyping import ArrayLike, Num

from elegy.frames import path_of
from elegy.losses.arguments import On, comparable
from elegy.metrics.arguments import Mask, Weights, ratio
from elegy.metrics.average import Average


class CosineSimilarity(Average):
    """The mean of the cosines of the angles between targets and predictions, `a·b / (|a| |b|)`; 0 if there were none.

    A vector of length 0 has similarity 0. Unlike the loss of that name, it is larger the more alike they are.

    **Arguments:**

    - `axis`: that of the vectors. The default is the last one.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    similarity = elegy.metrics.CosineSimilarity()
    assert jnp.allclose(similarity(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 2.0], [3.0, 3.0]])), 0.5)
    ```
    """

    direction = "max"

    def __init__(
        self,
        axis: int = -1,
        *,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(on=on, name=name, dtype=dtype)
        self.axis = operator.index(axis)

    def update(
        self,
        y_true: Num[ArrayLike, "*shape"],
        y_pred: Num[ArrayLike, "*shape"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`, `y_pred`: vectors, of the same shape.
        - `sample_weight`, `mask`: weights of the vectors, whose shape is that of the first axes without `axis`, and
          which of them count, as for `elegy.metrics.Average.count_values`.
        """
        y_true, y_pred = comparable(path_of(self), y_true, y_pred)
        if not -y_true.ndim <= self.axis < y_true.ndim:
            raise ValueError(f"{path_of(self)}: axis={self.axis} is not an axis of arrays of shape {y_true.shape}.")
        dot = jnp.sum(y_true * y_pred, axis=self.axis)
        norms = [jnp.linalg.norm(vectors, axis=self.axis) for vectors in (y_true, y_pred)]
        self.count_values(ratio(dot, norms[0] * norms[1]), sample_weight, mask)
