from __future__ import annotations

import typing as tp

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import BINARY, EPSILON, LabelRange, On, comparable, flag, number, one_number_each, smoothed
from elegy.losses.loss import Loss, Reduction


def binary_crossentropy(
    y_true: Shaped[ArrayLike, "*batch features"],
    y_pred: Num[ArrayLike, "*batch features"],
    from_logits: bool = False,
    label_smoothing: float | int = 0.0,
) -> Float[Array, "*batch"]:
    """`mean(-y_true · log p - (1 - y_true) · log(1 - p), axis=-1)`, where `p` is the probability of a one.

    **Arguments:**

    - `y_true`: 0 or 1, or a probability.
    - `y_pred`: probabilities, or logits, of the same shape. As in Keras, probabilities are not taken for less than 1e-7
      or more than `1 - 1e-7`, beyond which there is no gradient.
    - `from_logits`: whether `y_pred` are logits, `p = sigmoid(y_pred)`. Numerically that is the better choice.
    - `label_smoothing`: how far targets are moved from 0 and 1 towards 1/2: 0.1 makes them 0.05 and 0.95.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.binary_crossentropy(jnp.array([[1], [0]]), jnp.array([[0.25], [0.25]]))
    assert jnp.allclose(values, -jnp.log(jnp.array([0.25, 0.75])))
    ```
    """
    y_true, y_pred = comparable("elegy.losses.binary_crossentropy", y_true, y_pred)
    y_true = smoothed(y_true, label_smoothing, 2)
    if from_logits:
        values = optax.losses.sigmoid_binary_cross_entropy(y_pred, y_true)
    else:
        values = of_probabilities(y_true, y_pred)
    return jnp.mean(values, axis=-1)


def of_probabilities(y_true: Float[Array, "*shape"], y_pred: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The cross-entropy of each target and predicted probability."""
    y_pred = jnp.clip(y_pred, EPSILON, 1 - EPSILON)
    return -y_true * jnp.log(y_pred) - (1 - y_true) * jnp.log1p(-y_pred)


class BinaryCrossentropy(Loss):
    """The cross-entropy of targets of 0 and 1 and predicted probabilities or logits.

    **Arguments:**

    - `from_logits`, `label_smoothing`: those of `elegy.losses.binary_crossentropy`. As in Keras `y_pred` are
      *probabilities* unless `from_logits=True`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `from_logits` are given by keyword. Shapes are treated as in `elegy.losses.MeanSquaredError`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.BinaryCrossentropy(from_logits=True)
    assert jnp.allclose(loss(jnp.array([1, 0]), jnp.zeros([2])), jnp.log(2.0))
    ```
    """

    def __init__(
        self,
        from_logits: bool = False,
        *,
        label_smoothing: float | int = 0.0,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        owner = "losses.BinaryCrossentropy"
        self.from_logits = flag(owner, "from_logits", from_logits)
        self.label_smoothing = number(owner, "label_smoothing", label_smoothing, most=1)

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: 0 or 1, or a probability.
        - `y_pred`: probabilities or logits, of the same shape.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return binary_crossentropy(*one_number_each(y_true, y_pred), self.from_logits, self.label_smoothing)

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange:
        """Which labels the loss takes."""
        return BINARY
