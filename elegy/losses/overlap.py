"""Losses that compare two regions by how much they overlap."""

from __future__ import annotations

import operator
import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import EPSILON, On, comparable, number
from elegy.losses.loss import Loss, Reduction

Axis = int | Sequence[int] | None


def dice(y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """`1 - 2 · sum(y_true · y_pred) / (sum(y_true) + sum(y_pred))`.

    Milletari et al., *V-Net* (2016), section 3, with sums instead of sums of squares in the denominator, as in Keras.

    **Arguments:**

    - `y_true`: masks of 0 and 1.
    - `y_pred`: probabilities, of the same shape.
    - `axis`: the axis or axes of the sums. The default is all, that of the batch included.

    **Returns:** an array without these axes, of float32 at least: 0 for masks that are equal, 1 for those that do not
    meet, and 1 where both are empty.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.dice(jnp.array([[1, 1, 0], [1, 0, 0]]), jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), axis=1)
    assert jnp.allclose(values, jnp.array([1 / 3, 0.0]), atol=1e-6)
    ```
    """
    y_true, y_pred = comparable("elegy.losses.dice", y_true, y_pred)
    axes = _axes(axis)
    common = jnp.sum(y_true * y_pred, axis=axes)
    return 1 - 2 * common / (jnp.sum(y_true, axis=axes) + jnp.sum(y_pred, axis=axes) + EPSILON)


def tversky(
    y_true: Shaped[ArrayLike, "..."],
    y_pred: Num[ArrayLike, "..."],
    alpha: float | int = 0.5,
    beta: float | int = 0.5,
    axis: Axis = None,
) -> Float[Array, "..."]:
    """`1 - common / (common + alpha · sum((1 - y_true) · y_pred) + beta · sum(y_true · (1 - y_pred)))`.

    Here `common = sum(y_true · y_pred)`. Salehi et al., *Tversky loss function for image segmentation* (2017),
    equation 4. With both factors 1/2 this is `elegy.losses.dice`.

    **Arguments:**

    - `y_true`: masks of 0 and 1.
    - `y_pred`: probabilities, of the same shape.
    - `alpha`: the weight of false positives.
    - `beta`: the weight of false negatives. In Keras the two are the other way round, against its own documentation.
    - `axis`: the axis or axes of the sums. The default is all, that of the batch included.

    **Returns:** an array without these axes, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    value = elegy.losses.tversky(jnp.array([1, 1, 0]), jnp.array([1.0, 0.0, 0.0]), alpha=0.5, beta=2)
    assert jnp.allclose(value, 1 - 1 / 3)
    ```
    """
    y_true, y_pred = comparable("elegy.losses.tversky", y_true, y_pred)
    axes = _axes(axis)
    common = jnp.sum(y_true * y_pred, axis=axes)
    false_positives = jnp.sum((1 - y_true) * y_pred, axis=axes)
    false_negatives = jnp.sum(y_true * (1 - y_pred), axis=axes)
    return 1 - common / (common + alpha * false_positives + beta * false_negatives + EPSILON)


def _axes(axis: Axis) -> int | tuple[int, ...] | None:
    if axis is None or isinstance(axis, Sequence):
        return axis if axis is None else tuple(map(operator.index, axis))
    return operator.index(axis)


class Dice(Loss):
    """How little predicted probabilities and a mask overlap.

    **Arguments:**

    - `axis`: the axis or axes of the sums: see `elegy.losses.dice`. As in Keras the default is all, so that there is
      one value for a batch, which no `sample_weight` of its examples fits; with `axis=(1, 2, 3)` each image has one.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `axis` are given by keyword.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.Dice(axis=(1, 2))
    masks = jnp.array([[[1, 1], [0, 0]], [[1, 0], [0, 0]]])
    value = loss(masks, jnp.array([[[1.0, 0.0], [0.0, 0.0]]] * 2))
    assert jnp.allclose(value, (1 / 3 + 0) / 2, atol=1e-6)
    ```
    """

    def __init__(
        self,
        axis: Axis = None,
        *,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.axis = _axes(axis)
        # An axis that is counted from the end may be that of the samples too, which is not known here.
        self.across_samples = self.axis is None or 0 in np.atleast_1d(self.axis)

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: masks of 0 and 1.
        - `y_pred`: probabilities, of the same shape.

        **Returns:** an array without `axis`: the values before they are weighted and reduced.
        """
        return dice(y_true, y_pred, self.axis)


class Tversky(Loss):
    """How little predicted probabilities and a mask overlap, with weights for the two kinds of errors.

    **Arguments:**

    - `alpha`, `beta`, `axis`: those of `elegy.losses.tversky`. What is said of `axis` in `elegy.losses.Dice` holds here
      too.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `alpha` and `beta` are given by keyword.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.Tversky(alpha=0.5, beta=2)
    assert jnp.allclose(loss(jnp.array([1, 1, 0]), jnp.array([1.0, 0.0, 0.0])), 1 - 1 / 3)
    ```
    """

    def __init__(
        self,
        alpha: float | int = 0.5,
        beta: float | int = 0.5,
        *,
        axis: Axis = None,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.alpha = number("losses.Tversky", "alpha", alpha)
        self.beta = number("losses.Tversky", "beta", beta)
        self.axis = _axes(axis)
        # An axis that is counted from the end may be that of the samples too, which is not known here.
        self.across_samples = self.axis is None or 0 in np.atleast_1d(self.axis)

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: masks of 0 and 1.
        - `y_pred`: probabilities, of the same shape.

        **Returns:** an array without `axis`: the values before they are weighted and reduced.
        """
        return tversky(y_true, y_pred, self.alpha, self.beta, self.axis)
