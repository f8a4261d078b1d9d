from __future__ import annotations

import typing as tp

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num, Shaped

from elegy.losses.arguments import EPSILON, On, number
from elegy.losses.loss import Loss, Reduction
from elegy.precision import at_least_float32

_OWNER = "elegy.losses.nt_xent"


def nt_xent(
    y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."], temperature: float | int = 0.07
) -> Float[Array, "batch"]:
    """For each example, the mean of `-log(e^s / (e^s + sum_n e^n))` over those of its group.

    Here `s` is the cosine similarity of two of one group, divided by the temperature, and `n` those of the example and
    all of other groups. This is the normalised temperature-scaled cross-entropy, known as InfoNCE too, of Chen et al.,
    *A Simple Framework for Contrastive Learning of Visual Representations* (2020), equation 1, for groups of any size.
    Others of the group are no negatives.

    **Arguments:**

    - `y_true`: the group of each example: integers of shape `[batch]`. With two views of each image, one half of the
      batch after the other, that is `jnp.tile(jnp.arange(batch // 2), 2)`.
    - `y_pred`: embeddings of shape `[batch, features]`.
    - `temperature`: the smaller, the more the hardest negatives count.

    **Returns:** an array of shape `[batch]`, of float32 at least; zero for an example that is alone in its group. Where
    groups have one size the mean is `optax.losses.ntxent`.

    ```python
    import elegy
    import jax.numpy as jnp

    values = elegy.losses.nt_xent(jnp.array([0, 0, 1]), jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), temperature=1)
    assert jnp.allclose(values, jnp.array([1, 1, 0]) * jnp.log(1 + 1 / jnp.e))
    ```
    """
    together, embeddings = _groups(y_true, y_pred)
    squared = jnp.sum(embeddings**2, axis=-1, keepdims=True)
    unit = embeddings / jnp.sqrt(jnp.maximum(squared, EPSILON**2))
    similarities = unit @ unit.T / temperature
    # An example without any negative: its logarithm of a sum of nothing has no gradient, so it is not asked for.
    apart = ~together
    alone = ~jnp.any(apart, axis=-1)
    negatives = jax.nn.logsumexp(similarities, axis=-1, where=apart | alone[:, None], keepdims=True)
    values = jnp.where(alone[:, None], 0, jax.nn.softplus(negatives - similarities))
    positives = _positives(together)
    return jnp.sum(values, axis=-1, where=positives) / jnp.maximum(jnp.sum(positives, axis=-1), 1).astype(values.dtype)


def _groups(
    y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]
) -> tuple[Bool[Array, "batch batch"], Float[Array, "batch features"]]:
    """Which two examples are of one group, and the embeddings."""
    labels, embeddings = jnp.asarray(y_true), jnp.asarray(y_pred)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{_OWNER}: expected groups of shape (batch,) and embeddings of shape (batch, features), got "
            f"{labels.shape} and {embeddings.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{_OWNER}: y_true must hold integers, got {labels.dtype}.")
    return labels[:, None] == labels[None], embeddings.astype(at_least_float32(embeddings.dtype))


def _positives(together: Bool[Array, "batch batch"]) -> Bool[Array, "batch batch"]:
    return together & ~jnp.eye(len(together), dtype=bool)


class NTXent(Loss):
    """Embeddings of one group are to point in one direction, and those of others elsewhere.

    **Arguments:**

    - `temperature`: that of `elegy.losses.nt_xent`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `temperature` are given by keyword. An example that is alone in its group does not count in a mean.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.NTXent(temperature=1)
    value = loss(jnp.array([0, 0, 1]), jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    assert jnp.allclose(value, jnp.log(1 + 1 / jnp.e))
    ```
    """

    across_samples = True

    def __init__(
        self,
        temperature: float | int = 0.07,
        *,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.temperature = number("losses.NTXent", "temperature", temperature, exclusive=True)

    def call(self, y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]) -> Float[Array, "batch"]:
        """**Arguments:**

        - `y_true`: the group of each example: integers of shape `[batch]`.
        - `y_pred`: embeddings of shape `[batch, features]`.

        **Returns:** the values for each example, before they are weighted and reduced.
        """
        return nt_xent(y_true, y_pred, self.temperature)

    def _counted(self, y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]) -> Bool[Array, "batch"]:
        together, _ = _groups(y_true, y_pred)
        return jnp.any(_positives(together), axis=-1)
