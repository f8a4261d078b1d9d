from __future__ import annotations

import operator
import typing as tp

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import EPSILON, On, axis_last, comparable, flag, number, smoothed
from elegy.losses.loss import Loss, Reduction


def categorical_crossentropy(
    y_true: Shaped[ArrayLike, "..."],
    y_pred: Num[ArrayLike, "..."],
    from_logits: bool = False,
    label_smoothing: float | int = 0.0,
    axis: int = -1,
) -> Float[Array, "..."]:
    """`-sum(y_true · log p, axis)`, where `p` are the probabilities of the classes.

    **Arguments:**

    - `y_true`: one-hot rows, or probabilities. For integer labels there is
      `elegy.losses.sparse_categorical_crossentropy`.
    - `y_pred`: probabilities, or logits, of the same shape. As in Keras probabilities are divided by their sum, and
      are not taken for less than 1e-7, below which there is no gradient.
    - `from_logits`: whether `y_pred` are logits, `p = softmax(y_pred)`. Numerically that is the better choice. A logit
      of minus infinity, by which a class is excluded, is harmless where `y_true` is zero.
    - `label_smoothing`: the part of the targets that is spread evenly over the classes.
    - `axis`: the axis of the classes.

    **Returns:** an array without that axis, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.categorical_crossentropy(jnp.array([[0, 1, 0]]), jnp.array([[0.25, 0.5, 0.25]]))
    assert jnp.allclose(values, jnp.log(2.0))
    ```
    """
    y_true, logits = targets_and_logits(
        "elegy.losses.categorical_crossentropy", y_true, y_pred, from_logits, label_smoothing, axis
    )
    return optax.losses.safe_softmax_cross_entropy(logits, y_true)


def targets_and_logits(
    owner: str,
    y_true: Shaped[ArrayLike, "..."],
    y_pred: Num[ArrayLike, "..."],
    from_logits: bool,
    label_smoothing: float | int,
    axis: int,
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    """Smoothed targets, and logits up to a constant, with the axis of the classes at the end."""
    y_true, y_pred = comparable(owner, y_true, y_pred)
    y_true, y_pred = axis_last(owner, axis, y_true), axis_last(owner, axis, y_pred)
    logits = y_pred if from_logits else jnp.log(jnp.maximum(y_pred, EPSILON))
    return smoothed(y_true, label_smoothing, y_true.shape[-1]), logits


class CategoricalCrossentropy(Loss):
    """The cross-entropy of one-hot targets, or of probabilities, and predicted probabilities or logits.

    **Arguments:**

    - `from_logits`, `label_smoothing`, `axis`: those of `elegy.losses.categorical_crossentropy`. As in Keras `y_pred`
      are *probabilities* unless `from_logits=True`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `from_logits` are given by keyword.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    assert jnp.allclose(loss(jnp.eye(10), jnp.zeros([10, 10])), jnp.log(10.0))
    ```
    """

    def __init__(
        self,
        from_logits: bool = False,
        *,
        label_smoothing: float | int = 0.0,
        axis: int = -1,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        owner = "losses.CategoricalCrossentropy"
        self.from_logits = flag(owner, "from_logits", from_logits)
        self.label_smoothing = number(owner, "label_smoothing", label_smoothing, most=1)
        self.axis = operator.index(axis)

    def call(self, y_true: Shaped[ArrayLike, "*shape"], y_pred: Num[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """**Arguments:**

        - `y_true`: one-hot rows, or probabilities.
        - `y_pred`: probabilities or logits, of the same shape.

        **Returns:** an array without `axis`: the values before they are weighted and reduced.
        """
        return categorical_crossentropy(y_true, y_pred, self.from_logits, self.label_smoothing, self.axis)
