from __future__ import annotations

import typing as tp

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import BINARY, EPSILON, LabelRange, On, comparable, flag, number, one_number_each, smoothed
from elegy.losses.binary_crossentropy import of_probabilities
from elegy.losses.loss import Loss, Reduction


def binary_focal_crossentropy(
    y_true: Shaped[ArrayLike, "*batch features"],
    y_pred: Num[ArrayLike, "*batch features"],
    from_logits: bool = False,
    alpha: float | int | None = None,
    gamma: float | int = 2.0,
    label_smoothing: float | int = 0.0,
) -> Float[Array, "*batch"]:
    """The mean over the last axis of `(1 - p_t)^gamma` times the binary cross-entropy.

    `p_t = y_true · p + (1 - y_true) · (1 - p)` is the probability of the true class: the surer a right prediction, the
    less it counts. Lin et al., *Focal Loss for Dense Object Detection* (2017), equation 5.

    **Arguments:**

    - `y_true`, `y_pred`, `from_logits`, `label_smoothing`: as for `elegy.losses.binary_crossentropy`.
    - `alpha`: the weight of ones, while `1 - alpha` is that of zeros. The default is no such weight.
    - `gamma`: how much less what is known counts. With 0 this is the cross-entropy.

    **Returns:** an array without the last axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.binary_focal_crossentropy(jnp.array([[1]]), jnp.array([[0.25]]))
    assert jnp.allclose(values, -(0.75**2) * jnp.log(0.25))
    ```
    """
    y_true, y_pred = comparable("elegy.losses.binary_focal_crossentropy", y_true, y_pred)
    y_true = smoothed(y_true, label_smoothing, 2)
    if from_logits:
        values = optax.losses.sigmoid_focal_loss(y_pred, y_true, gamma=gamma)
    else:
        # The probability of the wrong class. The power has no gradient at zero if gamma is less than one.
        wrong = y_true * (1 - y_pred) + (1 - y_true) * y_pred
        values = jnp.maximum(wrong, EPSILON) ** gamma * of_probabilities(y_true, y_pred)
    if alpha is not None:
        values = (alpha * y_true + (1 - alpha) * (1 - y_true)) * values
    return jnp.mean(values, axis=-1)


class BinaryFocalCrossentropy(Loss):
    """The cross-entropy of targets of 0 and 1, in which examples that are easy count for less.

    **Arguments:**

    - `from_logits`, `alpha`, `gamma`, `label_smoothing`: those of `elegy.losses.binary_focal_crossentropy`. As in Keras
      `y_pred` are *probabilities* unless `from_logits=True`. `alpha=0.25` is what Keras does with
      `apply_class_balancing=True`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `from_logits` are given by keyword. Shapes are treated as in `elegy.losses.MeanSquaredError`.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.BinaryFocalCrossentropy(from_logits=True)
    assert jnp.allclose(loss(jnp.array([1, 0]), jnp.zeros([2])), 0.25 * jnp.log(2.0))
    ```
    """

    def __init__(
        self,
        from_logits: bool = False,
        *,
        alpha: float | int | None = None,
        gamma: float | int = 2.0,
        label_smoothing: float | int = 0.0,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        owner = "losses.BinaryFocalCrossentropy"
        self.from_logits = flag(owner, "from_logits", from_logits)
        self.alpha = None if alpha is None else number(owner, "alpha", alpha, most=1)
        self.gamma = number(owner, "gamma", gamma)
        self.label_smoothing = number(owner, "label_smoothing", label_smoothing, most=1)

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: 0 or 1, or a probability.
        - `y_pred`: probabilities or logits, of the same shape.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        y_true, y_pred = one_number_each(y_true, y_pred)
        return binary_focal_crossentropy(y_true, y_pred, self.from_logits, self.alpha, self.gamma, self.label_smoothing)

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange:
        """Which labels the loss takes."""
        return BINARY
