from __future__ import annotations

import typing as tp

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.devices import sharded_like
from elegy.frames import path_of
from elegy.losses.arguments import comparable
from elegy.metrics.arguments import Mask, Weights, ratio, weighted, weights_of
from elegy.metrics.metric import Metric
from elegy.metrics.sums import added, gathered, summed
from elegy.precision import at_least_float32


class R2(Metric):
    """The coefficient of determination: `1 - sum((y_pred - y_true)**2) / sum((y_true - mean(y_true))**2)`.

    1 is the best, and 0 what the mean of the targets would get, to which the predictions are compared. Of several
    outputs, on the last axis, it is the mean of theirs. As in scikit-learn, where all targets are equal it is 1 if the
    predictions are right and 0 otherwise. Before the first update it is 0.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** `moments` of shape `[2, 4, outputs]`, of float32 at least: for each output the sum of the weights, the
    mean of the targets, the sum of the squares of their distances from it, and that of the squared errors; and what
    each of these lost by rounding. Batches are put together by equations 1.5 of Chan, Golub and LeVeque, *Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances* (1979), which lose no digits where the targets are
    far from 0.

    ```python
    import elegy
    import jax.numpy as jnp

    r2 = elegy.metrics.R2()
    r2.update(jnp.array([3.0, -0.5]), jnp.array([2.5, 0.0]))
    assert jnp.allclose(r2(jnp.array([2.0, 7.0]), jnp.array([2.0, 8.0])), 1 - 1.5 / 29.1875)
    ```
    """

    direction = "max"

    moments: Float[Array, "..."]

    def update(
        self,
        y_true: Num[ArrayLike, "*shape"],
        y_pred: Num[ArrayLike, "*shape"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: the targets, of shape `[batch]`, or `[*batch, outputs]`.
        - `y_pred`: the predictions, of the same shape.
        - `sample_weight`, `mask`: weights of the examples, or of each number of them, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        dtype = at_least_float32(self.dtype)
        y_true, y_pred = (y.astype(dtype) for y in comparable(path_of(self), y_true, y_pred))
        weights = weights_of(lambda: path_of(self), y_true, sample_weight, mask)
        weights = jnp.ones_like(y_true) if weights is None else weights
        columns = [y if y.ndim > 1 else y.reshape(-1, 1) for y in map(gathered, (y_true, y_pred, weights))]
        batch = jax.vmap(_moments, in_axes=-1, out_axes=-1)(*columns)
        before = self.add_parameter("moments", batch.shape, dtype, trainable=False)
        self.update_parameter("moments", sharded_like(_joined(before, batch), before))

    def compute(self) -> Float[Array, ""]:
        """The coefficient of all that was counted so far."""
        if not hasattr(self, "moments"):
            return jnp.zeros([], at_least_float32(self.dtype))
        count, _, variation, errors = self.moments[0]
        without = jnp.where((errors == 0) & (count != 0), 1, jnp.zeros_like(errors))
        r2 = jnp.where(variation == 0, without, 1 - errors / jnp.where(variation == 0, 1, variation))
        return jnp.mean(r2)

    def merge_states(self, states: dict[str, tp.Any]) -> dict[str, tp.Any]:
        parts = states["moments"]
        while (count := parts.shape[0]) > 1:
            joined = jax.vmap(_joined)(parts[: count // 2], parts[count // 2 : count // 2 * 2])
            parts = jnp.concatenate([joined, parts[count // 2 * 2 :]])
        return {"moments": parts[0]}

    def reset(self) -> None:
        """Starts again. The state is set to zero and stays, so what was compiled needs no new compilation."""
        if self.initialized:
            self.set_parameters({"moments": jnp.zeros_like(self.moments)})

    def _is_stacked(self) -> bool:
        return self.initialized and self.moments.ndim == 4


def _moments(y_true: Float[Array, "*shape"], y_pred: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Array:
    """The moments of one output in a batch. Distances are from one of the targets, the nearest to their mean, so that
    they are small, and exactly 0 where all targets are equal."""
    count = summed(weights)
    if y_true.size == 0:
        return jnp.zeros((2, 4), weights.dtype)
    mean = ratio(summed(weighted(y_true, weights))[0], count[0])
    distance = jnp.where(weights == 0, jnp.inf, jnp.abs(y_true - mean))
    # The index is none that counts from the end, for which the number of targets would be needed.
    nearest = jnp.ravel(jnp.where(weights == 0, 0, y_true)).at[jnp.argmin(distance)]
    center = nearest.get(mode="clip", wrap_negative_indices=False)
    center = jnp.where(count[0] == 0, 0, center)
    rest = weighted(y_true - center, weights)
    offset = ratio(summed(rest)[0], count[0])
    mean = added(jnp.stack([center, jnp.zeros_like(center)]), jnp.stack([offset, jnp.zeros_like(offset)]))
    variation = summed(weighted(jnp.square(y_true - center - offset), weights))
    errors = summed(weighted(jnp.square(y_pred - y_true), weights))
    return jnp.stack([count, mean, variation, errors], axis=1)


def _joined(a: Float[Array, "2 4 outputs"], b: Float[Array, "2 4 outputs"]) -> Float[Array, "2 4 outputs"]:
    """The moments of two sets of targets together."""
    count = added(a[:, 0], b[:, 0])
    share = ratio(b[0, 0], count[0])
    distance = (b[0, 1] - a[0, 1]) + (b[1, 1] - a[1, 1])
    # A set without weight has no mean.
    mean = jnp.where(a[0, 0] == 0, b[:, 1], added(a[:, 1], _precise(jnp.where(b[0, 0] == 0, 0, distance * share))))
    between = jnp.where((a[0, 0] == 0) | (b[0, 0] == 0), 0, jnp.square(distance) * share * a[0, 0])
    variation = added(added(a[:, 2], b[:, 2]), _precise(between))
    return jnp.stack([count, mean, variation, added(a[:, 3], b[:, 3])], axis=1)


def _precise(values: Float[Array, "outputs"]) -> Float[Array, "2 outputs"]:
    return jnp.stack([values, jnp.zeros_like(values)])
