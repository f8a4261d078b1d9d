from __future__ import annotations

import operator
import typing as tp

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.losses.arguments import LabelRange, On
from elegy.losses.loss import Loss, Reduction
from elegy.precision import at_least_float32

_OWNER = "elegy.losses.ctc"


def ctc(
    y_true: Shaped[ArrayLike, "..."],
    y_pred: Num[ArrayLike, "..."],
    blank: int = 0,
    logit_lengths: Shaped[ArrayLike, "..."] | None = None,
) -> Float[Array, "batch"]:
    """`-log p(labels)` of sequences of labels, each of which may have been emitted at any of several steps.

    The probability is that of all ways to write the labels over the steps, with a blank or repeated labels between
    them. Graves et al., *Connectionist Temporal Classification* (2006), equation 3; `optax.losses.ctc_loss` computes
    it.

    **Arguments:**

    - `y_true`: integer labels of shape `[batch, labels]`. Sequences that are shorter end in padding: the label `blank`,
      as in Keras.
    - `y_pred`: logits of shape `[batch, steps, classes]`, one class of which is the blank.
    - `blank`: the class of blanks.
    - `logit_lengths`: how many of the steps count, of shape `[batch]`. The default is all.

    **Returns:** an array of shape `[batch]`, of float32 at least. It is NaN for labels out of range, and for padding
    that is not at the end. Labels that do not fit in the steps, with a blank between equal ones, are impossible: their
    value is about 1e5, in place of infinity.

    ```python
    import elegy
    import jax.numpy as jnp

    # One label in two steps: (1, 1), (blank, 1) or (1, blank), each of probability 1/9.
    values = elegy.losses.ctc(jnp.array([[1, 0]]), jnp.zeros([1, 2, 3]))
    assert jnp.allclose(values, jnp.log(3.0))
    ```
    """
    labels, logits = jnp.asarray(y_true), jnp.asarray(y_pred)
    if labels.ndim != 2 or logits.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{_OWNER}: expected labels of shape (batch, labels) and logits of shape (batch, steps, classes), got "
            f"{labels.shape} and {logits.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{_OWNER}: y_true must hold integer class labels, got {labels.dtype}.")
    labels, logits = labels.astype(jnp.int32), logits.astype(at_least_float32(logits.dtype))
    batch, steps, classes = logits.shape
    if not 0 <= blank < classes:
        raise ValueError(f"{_OWNER}: blank={blank} is not one of the {classes} classes of y_pred.")
    if logit_lengths is None:
        lengths = jnp.full([batch], steps, jnp.int32)
    elif jnp.shape(logit_lengths) != (batch,):
        raise ValueError(f"{_OWNER}: logit_lengths must have shape {(batch,)}, got {jnp.shape(logit_lengths)}.")
    elif not jnp.issubdtype(jnp.result_type(logit_lengths), jnp.integer):
        raise TypeError(f"{_OWNER}: logit_lengths must hold integers, got {jnp.result_type(logit_lengths)}.")
    else:
        lengths = jnp.asarray(logit_lengths).astype(jnp.int32)
    paddings = labels == blank
    with jax.numpy_dtype_promotion("standard"):  # it mixes float32 with the default dtype, which may be float64
        values = optax.losses.ctc_loss(
            logits,
            (jnp.arange(steps, dtype=jnp.int32)[None] >= lengths[:, None]).astype(logits.dtype),
            jnp.clip(labels, 0, classes - 1),
            paddings.astype(logits.dtype),
            blank_id=blank,
        ).astype(logits.dtype)
    wrong = jnp.any(paddings[:, :-1] & ~paddings[:, 1:], axis=-1) | jnp.any((labels < 0) | (labels >= classes), axis=-1)
    return jnp.where(wrong, jnp.nan, values)


class CTC(Loss):
    """Connectionist temporal classification: labels that are known in their order, but not by the step.

    **Arguments:**

    - `blank`: the class of blanks, which is also the padding of labels: see `elegy.losses.ctc`.
    - `reduction`, `weight`, `on`, `name`, `dtype`: those of `elegy.losses.Loss`.

    All but `blank` are given by keyword. As in Keras `y_pred` are *logits* here.

    ```python
    import elegy
    import jax.numpy as jnp

    loss = elegy.losses.CTC()
    assert jnp.allclose(loss(jnp.array([[1, 0]]), jnp.zeros([1, 2, 3])), jnp.log(3.0))
    ```
    """

    def __init__(
        self,
        blank: int = 0,
        *,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(reduction=reduction, weight=weight, on=on, name=name, dtype=dtype)
        self.blank = operator.index(blank)

    def call(
        self,
        y_true: Shaped[ArrayLike, "..."],
        y_pred: Num[ArrayLike, "..."],
        *,
        logit_lengths: Shaped[ArrayLike, "..."] | None = None,
    ) -> Float[Array, "batch"]:
        """**Arguments:**

        - `y_true`: integer labels of shape `[batch, labels]`, padded at the end by `blank`.
        - `y_pred`: logits of shape `[batch, steps, classes]`.
        - `logit_lengths`: how many of the steps count, of shape `[batch]`. The default is all.

        **Returns:** the values for each sequence, before they are weighted and reduced.
        """
        return ctc(y_true, y_pred, self.blank, logit_lengths)

    def label_range(self, y_pred: Num[ArrayLike, "batch steps classes"]) -> LabelRange:
        """Which labels the loss takes for such predictions; the blank, which fills up, is among them."""
        return LabelRange(jnp.shape(y_pred)[-1], counts_all=True, left_out=f"by the label {self.blank}, the blank")
