from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.figures import new_figure
from elegy.frames import path_of
from elegy.losses.arguments import LabelRange, On
from elegy.metrics.accumulator import Accumulator
from elegy.metrics.arguments import (
    Mask,
    Weights,
    classes_of,
    is_class,
    positive_integer,
    ratio,
    valid_weights,
)
from elegy.metrics.sums import summed_by

Normalize = tp.Literal["true", "pred", "all"] | None
_SUMMED = {"true": (1,), "pred": (0,), "all": (0, 1)}


class ConfusionMatrix(Accumulator):
    """How often examples of each class were predicted to be in each class.

    Rows are true classes and columns predicted ones, as in scikit-learn.

    **Arguments:**

    - `num_classes`: how many classes there are.
    - `normalize`: divides by the sum of the row, `"true"`, of the column, `"pred"`, or of `"all"`. Where that is 0, the
      result is.
    - `on`, `name`, `dtype`: those of `elegy.metrics.Metric`.

    **State:** `sums` of shape `[2, num_classes, num_classes]`.

    `elegy.Model` logs scalars only: count a matrix in a loop over batches, or in a subclass whose `compute` takes a
    number of it.

    ```python
    import elegy
    import jax.numpy as jnp

    matrix = elegy.metrics.ConfusionMatrix(2)
    matrix(jnp.array([0, 0, 1]), jnp.array([0, 1, 1]))
    assert matrix(jnp.array([0]), jnp.array([[0.2, 0.8]])).tolist() == [[1, 2], [0, 1]]
    figure = matrix.plot(["cat", "dog"])
    ```
    """

    def __init__(
        self,
        num_classes: int,
        *,
        normalize: Normalize = None,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(on=on, name=name, dtype=dtype)
        self.num_classes = positive_integer("ConfusionMatrix", "num_classes", num_classes)
        if normalize not in (None, *_SUMMED):
            raise ValueError(
                f"elegy.metrics.ConfusionMatrix: normalize must be 'true', 'pred', 'all' or None, got {normalize!r}."
            )
        self.normalize = normalize

    def update(
        self,
        y_true: Shaped[ArrayLike, "..."],
        y_pred: Num[ArrayLike, "..."],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: integer labels from 0 to `num_classes - 1`, of shape `[*batch]`. Others, such as -1 in padding, make
          the result NaN, unless they have no weight: `mask=y_true >= 0`.
        - `y_pred`: scores, floats of shape `[*batch, num_classes]`, or integer labels of shape `[*batch]`.
        - `sample_weight`, `mask`: weights of the labels, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        owner, classes = lambda: path_of(self), self.num_classes
        true, predicted, _ = classes_of(owner, y_true, y_pred, classes)
        valid = is_class(true, classes) & is_class(predicted, classes)
        weights, wrong = valid_weights(owner, valid, self._dtype, sample_weight, mask)
        counts = summed_by(jnp.where(valid, true * classes + predicted, 0), classes**2, weights)
        self.add(jnp.where(wrong, jnp.nan, counts).reshape(2, classes, classes))

    def label_range(self, y_pred: Num[ArrayLike, "..."]) -> LabelRange:
        """Which labels the metric takes."""
        return LabelRange(self.num_classes)

    def compute(self) -> Float[Array, "..."]:
        """The matrix of all that was counted so far, of shape `[num_classes, num_classes]`."""
        matrix = self.totals
        if self.normalize is None:
            return matrix
        summed = jnp.sum(matrix, axis=_SUMMED[self.normalize], keepdims=True)
        return ratio(matrix, jnp.broadcast_to(summed, matrix.shape))

    def plot(self, labels: Sequence[str] | None = None, ax: tp.Any = None) -> tp.Any:
        """Draws the matrix with Matplotlib: a row for each true class, with the numbers in the cells.

        **Arguments:**

        - `labels`: a name for each class. The default is the numbers of the classes.
        - `ax`: a `matplotlib.axes.Axes` to draw on. The default is that of a new figure.

        **Returns:** a `matplotlib.figure.Figure`, to show or to save: `matrix.plot().savefig("matrix.png")`.

        **Raises:** `ValueError` if there are not as many names as classes.

        ```python
        import elegy
        import jax.numpy as jnp

        matrix = elegy.metrics.ConfusionMatrix(2, normalize="true")
        matrix(jnp.array([0, 0, 1]), jnp.array([0, 1, 1]))
        figure = matrix.plot(["cat", "dog"])
        assert [text.get_text() for text in figure.axes[0].texts] == ["0.50", "0.50", "0.00", "1.00"]
        ```
        """
        classes = self.num_classes
        if isinstance(labels, str) or (labels is not None and len(labels) != classes):
            given = repr(labels) if isinstance(labels, str) else f"{len(labels or ())} of them"
            raise ValueError(
                f"ConfusionMatrix.plot: labels must hold a name for each of {classes} classes, got {given}."
            )
        if ax is None:
            side = 2.0 + 0.5 * classes
            ax = new_figure("ConfusionMatrix.plot", figsize=(side, side)).add_subplot()
        matrix = np.asarray(self.compute(), np.float64)
        highest = np.nanmax(np.append(matrix, 0.0))
        ax.imshow(matrix, cmap="Blues", vmin=0, vmax=highest or 1)
        names = list(map(str, range(classes) if labels is None else labels))
        ax.set_xticks(range(classes), names, rotation=45, rotation_mode="anchor", ha="right")
        ax.set_yticks(range(classes), names)
        ax.set(xlabel="predicted", ylabel="true")
        # Sums of weights may be fractions too.
        form = "{:.2f}" if self.normalize is not None else "{:.10g}"
        for (row, column), value in np.ndenumerate(matrix):
            colour = "white" if value > highest / 2 else "black"
            ax.text(column, row, form.format(value), ha="center", va="center", color=colour)
        return ax.figure

    def _shape(self) -> tuple[int, ...]:
        return (self.num_classes, self.num_classes)
