from __future__ import annotations

import typing as tp

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.losses.arguments import On, comparable, number, one_number_each
from elegy.losses.loss import Loss, Reduction


def huber(
    y_true: Num[ArrayLike, "*batch features"], y_pred: Num[ArrayLike, "*batch features"], delta: float | int = 1.0
) -> Float[Array, "*batch"]:
    """The mean over the last axis of `error² / 2` where `|error| <= delta`, else of `delta · (|error| - delta / 2)`.

    Huber, *Robust Estimation of a Location Parameter* (1964).

    **Arguments:**

    - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.
    - `delta`: where the loss changes from a square to a line.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.huber(jnp.zeros([2, 1]), jnp.array([[1.0], [3.0]]))
    assert values.tolist() == [0.5, 2.5]
    ```
    """
    y_true, y_pred = comparable("elegy.losses.huber", y_true, y_pred)
    return jnp.mean(optax.losses.huber_loss(y_pred, y_true, delta=delta), axis=-1)


class Huber(Loss):
    """Half the squared error where that is small, and a line where it is large, so that outliers count for less.

    **Arguments:**

    - `delta`: the magnitude of the error from which on the loss is a line: see `elegy.losses.huber`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `delta` are given by keyword. Shapes are treated as in `elegy.losses.MeanSquaredError`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.Huber(delta=2.0)
    assert loss(jnp.zeros([2, 1]), jnp.array([[1.0], [3.0]])) == (0.5 + 4) / 2
    ```
    """

    def __init__(
        self,
        delta: float | int = 1.0,
        *,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.delta = number("losses.Huber", "delta", delta, exclusive=True)

    def call(self, y_true: Num[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`, `y_pred`: arrays of one shape, of any dtype of real numbers.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return huber(*one_number_each(y_true, y_pred), self.delta)
