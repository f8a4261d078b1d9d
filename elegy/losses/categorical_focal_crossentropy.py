from __future__ import annotations

import operator
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import EPSILON, On, flag, number
from elegy.losses.categorical_crossentropy import targets_and_logits
from elegy.losses.loss import Loss, Reduction


def categorical_focal_crossentropy(
    y_true: Shaped[ArrayLike, "..."],
    y_pred: Num[ArrayLike, "..."],
    from_logits: bool = False,
    alpha: float | int | Sequence[float | int] = 0.25,
    gamma: float | int = 2.0,
    label_smoothing: float | int = 0.0,
    axis: int = -1,
) -> Float[Array, "..."]:
    """`-sum(alpha · (1 - p)^gamma · y_true · log p, axis)`, where `p` are the probabilities of the classes.

    The surer a right prediction, the less it counts: Lin et al., *Focal Loss for Dense Object Detection* (2017),
    equation 5.

    **Arguments:**

    - `y_true`, `y_pred`, `from_logits`, `label_smoothing`, `axis`: as for `elegy.losses.categorical_crossentropy`.
    - `alpha`: a weight, or one for each class.
    - `gamma`: how much less what is known counts. With 0 this is `alpha` times the cross-entropy.

    **Returns:** an array without that axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    y_true, y_pred = jnp.array([[0, 1, 0]]), jnp.array([[0.25, 0.5, 0.25]])
    values = elegy.losses.categorical_focal_crossentropy(y_true, y_pred)
    assert jnp.allclose(values, 0.25 * 0.5**2 * jnp.log(2.0))
    ```
    """
    owner = "elegy.losses.categorical_focal_crossentropy"
    y_true, logits = targets_and_logits(owner, y_true, y_pred, from_logits, label_smoothing, axis)
    classes = logits.shape[-1]
    if not isinstance(alpha, (int, float)) and len(alpha) != classes:
        raise ValueError(f"{owner}: alpha has {len(alpha)} numbers, and there are {classes} classes.")
    factors = jnp.broadcast_to(jnp.asarray(alpha, logits.dtype), logits.shape)
    # A class that is excluded by a logit of minus infinity has no part in the sum, nor in its gradient.
    log_p = jnp.where(y_true == 0, 0, jax.nn.log_softmax(logits))
    # The power has no gradient at zero if gamma is less than one.
    unsure = jnp.maximum(-jnp.expm1(log_p), EPSILON) ** gamma
    return -jnp.sum(factors * unsure * y_true * log_p, axis=-1)


class CategoricalFocalCrossentropy(Loss):
    """The cross-entropy of one-hot targets, in which examples that are easy count for less.

    **Arguments:**

    - `from_logits`, `alpha`, `gamma`, `label_smoothing`, `axis`: those of
      `elegy.losses.categorical_focal_crossentropy`. As in Keras `y_pred` are *probabilities* unless
      `from_logits=True`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `from_logits` are given by keyword.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.CategoricalFocalCrossentropy(from_logits=True, alpha=1.0, gamma=1.0)
    assert jnp.allclose(loss(jnp.eye(10), jnp.zeros([10, 10])), 0.9 * jnp.log(10.0))
    ```
    """

    def __init__(
        self,
        from_logits: bool = False,
        *,
        alpha: float | int | Sequence[float | int] = 0.25,
        gamma: float | int = 2.0,
        label_smoothing: float | int = 0.0,
        axis: int = -1,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        owner = "losses.CategoricalFocalCrossentropy"
        self.from_logits = flag(owner, "from_logits", from_logits)
        if isinstance(alpha, (int, float)):
            self.alpha = number(owner, "alpha", alpha)
        else:
            self.alpha = tuple(number(owner, "alpha", weight) for weight in alpha)
        self.gamma = number(owner, "gamma", gamma)
        self.label_smoothing = number(owner, "label_smoothing", label_smoothing, most=1)
        self.axis = operator.index(axis)

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: one-hot rows, or probabilities.
        - `y_pred`: probabilities or logits, of the same shape.

        **Returns:** an array without `axis`: the values before they are weighted and reduced.
        """
        return categorical_focal_crossentropy(
            y_true, y_pred, self.from_logits, self.alpha, self.gamma, self.label_smoothing, self.axis
        )
