from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, Float

from elegy.devices import sharded_like
from elegy.metrics.metric import Metric
from elegy.metrics.sums import added, folded
from elegy.precision import at_least_float32


class Accumulator(Metric):
    """Base class of the metrics whose value is computed from sums over all that was counted.

    Subclasses call `add` in `update`, and read `totals` in `compute`.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** `sums`, of float32 at least, whatever the dtype of the values. Each sum is kept as two floats, the sum
    and what it lost by rounding, so that it is right beyond 2**24, at which a sum of ones in float32 stops growing.
    """

    sums: Float[Array, "..."]

    def add(self, sums: Float[Array, "2 ..."]) -> None:
        """Adds to the sums."""
        before = self.add_parameter("sums", sums.shape, self._dtype, trainable=False)
        self.update_parameter("sums", sharded_like(added(before, sums), before))

    @property
    def totals(self) -> Float[Array, "..."]:
        """The sums of all that was counted so far."""
        return self.sums[0] if hasattr(self, "sums") else jnp.zeros(self._shape(), self._dtype)

    def merge_states(self, states: dict[str, tp.Any]) -> dict[str, tp.Any]:
        return {"sums": folded(states["sums"])}

    def reset(self) -> None:
        """Starts again. The state is set to zero and stays, so what was compiled needs no new compilation."""
        if self.initialized:
            self.set_parameters({"sums": jnp.zeros_like(self.sums)})

    def _shape(self) -> tuple[int, ...]:
        """The shape of the sums."""
        raise NotImplementedError

    @property
    def _dtype(self) -> tp.Any:
        return at_least_float32(self.dtype)

    def _is_stacked(self) -> bool:
        return self.initialized and self.sums.ndim == len(self._shape()) + 2
