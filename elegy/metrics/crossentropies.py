"""Cross-entropies of classes, and perplexity."""

from __future__ import annotations

import typing as tp

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Num, Shaped

from elegy.frames import path_of
from elegy.losses import sparse_categorical_crossentropy
from elegy.losses.arguments import BINARY, LabelRange, On, class_labels, comparable
from elegy.metrics.arguments import Mask, Weights, rows
from elegy.metrics.average import Average

# As in Keras, and as in the losses.
_EPSILON = 1e-7


class _Crossentropy(Average):
    direction = "min"

    def __init__(
        self,
        from_logits: bool = False,
        *,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(on=on, name=name, dtype=dtype)
        if not isinstance(from_logits, bool):
            raise TypeError(
                f"elegy.metrics.{type(self).__name__}: from_logits must be True or False, got {from_logits!r}."
            )
        self.from_logits = from_logits


class BinaryCrossentropy(_Crossentropy):
    """The mean of `-y log p - (1 - y) log(1 - p)`, where `y` are the targets and `p` the predicted probabilities; 0 if
    there were none.

    **Arguments:**

    - `from_logits`: whether `y_pred` are logits, `p = sigmoid(y_pred)`. As in Keras they are *probabilities* unless it
      is True; these are not taken for less than 1e-7 or more than 1 - 1e-7.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    entropy = elegy.metrics.BinaryCrossentropy(from_logits=True)
    assert jnp.allclose(entropy(jnp.array([0, 1]), jnp.array([0.0, 0.0])), jnp.log(2.0))
    ```
    """

    def update(
        self,
        y_true: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
        y_pred: Num[ArrayLike, "*shape"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: labels of 0 and 1, or probabilities. Others make the result NaN.
        - `y_pred`: probabilities or logits, of the same shape.
        - `sample_weight`, `mask`: weights of the labels, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        y_true, y_pred = comparable(path_of(self), y_true, y_pred)
        if self.from_logits:
            values = optax.losses.sigmoid_binary_cross_entropy(y_pred, y_true)
        else:
            p = jnp.clip(y_pred, _EPSILON, 1 - _EPSILON)
            values = -y_true * jnp.log(p) - (1 - y_true) * jnp.log1p(-p)
        self.count_values(jnp.where((y_true >= 0) & (y_true <= 1), values, jnp.nan), sample_weight, mask)

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange:
        """Which labels the metric takes."""
        return BINARY


class CategoricalCrossentropy(_Crossentropy):
    """The mean of `-sum(y * log(p))`, where `y` are one-hot rows and `p` the predicted probabilities; 0 if there were
    none.

    **Arguments:**

    - `from_logits`: whether `y_pred` are logits, `p = softmax(y_pred)`. As in Keras they are *probabilities* unless it
      is True; these are divided by their sum, and not taken for less than 1e-7.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    entropy = elegy.metrics.CategoricalCrossentropy()
    assert jnp.allclose(entropy(jnp.eye(2), jnp.array([[0.5, 0.5], [0.5, 0.5]])), jnp.log(2.0))
    ```
    """

    def update(
        self,
        y_true: Num[ArrayLike, "*batch classes"] | Bool[ArrayLike, "*batch classes"],
        y_pred: Num[ArrayLike, "*batch classes"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: one-hot rows, or probabilities.
        - `y_pred`: probabilities or logits, of the same shape.
        - `sample_weight`, `mask`: weights of the rows, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        targets, scores = rows(path_of(self), y_true, y_pred)
        logits = scores if self.from_logits else jnp.log(jnp.maximum(scores, _EPSILON))
        self.count_values(-jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1), sample_weight, mask)


class SparseCategoricalCrossentropy(_Crossentropy):
    """The mean of `-log p[y]`, where `y` are integer labels and `p` the predicted probabilities; 0 if there were none.

    As a loss it is [`elegy.losses.SparseCategoricalCrossentropy`][elegy.losses.SparseCategoricalCrossentropy].

    **Arguments:** those of `elegy.metrics.CategoricalCrossentropy`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    entropy = elegy.metrics.SparseCategoricalCrossentropy(from_logits=True)
    assert jnp.allclose(entropy(jnp.array([0, 1]), jnp.zeros([2, 10])), jnp.log(10.0))
    ```
    """

    def update(
        self,
        y_true: Shaped[ArrayLike, "*labels"],
        y_pred: Num[ArrayLike, "*batch classes"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: integer labels of shape `[*batch]` or `[*batch, 1]`. Those that are no class, such as -1 in padding,
          make the result NaN, unless they have no weight: `mask=y_true >= 0`.
        - `y_pred`: probabilities or logits of shape `[*batch, classes]`.
        - `sample_weight`, `mask`: weights of the labels, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        labels, scores = class_labels(path_of(self), y_true, y_pred)
        self.count_values(sparse_categorical_crossentropy(labels, scores, self.from_logits), sample_weight, mask)

    def label_range(self, y_pred: Num[ArrayLike, "*batch classes"]) -> LabelRange:
        """Which labels the metric takes for such predictions."""
        return LabelRange(jnp.shape(y_pred)[-1])


class Perplexity(SparseCategoricalCrossentropy):
    """`exp` of the mean of `-log p[y]`, where `y` are the tokens and `p` the predicted probabilities; 1 if there were
    none.

    **Arguments:** those of `elegy.metrics.CategoricalCrossentropy`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    perplexity = elegy.metrics.Perplexity(from_logits=True)
    tokens = jnp.array([[3, 1, -1]])
    assert jnp.allclose(perplexity(tokens, jnp.zeros([1, 3, 10]), mask=tokens >= 0), 10)
    ```
    """

    def compute(self) -> Float[Array, ""]:
        """The perplexity of all that was counted so far."""
        return jnp.exp(self.mean())
