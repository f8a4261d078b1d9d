from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Inexact, Num

from elegy.contexts import is_initializing
from elegy.draws import next_rng_key
from elegy.module import Module
from elegy.nn.axes import axis_numbers, counted
from elegy.nn.inputs import Flag, floating, trains
from elegy.random import KeyLike, as_key


class Dropout(Module):
    """In training, sets each element to zero with probability `rate`, and divides the others by `1 - rate`.

    The division keeps the expectation, so that nothing needs to be scaled outside of training, where the layer
    returns its input. Srivastava et al., *Dropout* (2014), with the scaling of section 10.

    **Arguments:**

    - `rate`: the probability, in `[0, 1)`.
    - `shared_axes`: the axes along which the mask is the same, an integer or several: `(1, 2)` drops whole channels of
      images `[batch, height, width, channels]`. The default is a draw for each element.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    **State:** `rng_key`, the raw data of a key. The layer draws from `elegy.next_rng_key`, and uses this key of its
    own only inside a stock `jax` transform, which cannot carry the random stream of the thread.

    ```python
    import elegy
    import jax.numpy as jnp

    dropout = elegy.nn.Dropout(0.5)
    x = jnp.ones([2, 3])
    y = dropout(x)
    assert bool(jnp.all((y == 0) | (y == 2)))
    assert bool(jnp.all(dropout(x, training=False) == x))
    ```
    """

    def __init__(
        self,
        rate: float | int,
        *,
        shared_axes: int | Sequence[int] = (),
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.rate = probability("Dropout", rate)
        self.shared_axes = axis_numbers("Dropout", "shared_axes", shared_axes)

    def call(
        self,
        x: Num[ArrayLike, "*shape"],
        training: Flag | None = None,
        rng: KeyLike | None = None,
    ) -> Inexact[Array, "*shape"]:
        """**Arguments:**

        - `x`: an array of any shape.
        - `training`: whether to drop. The default is `elegy.training()`.
        - `rng`: a seed or a key. The default is `elegy.next_rng_key()`, which is asked only when something is to be
          dropped.

        **Returns:** an array of the shape and dtype of `x`.
        """
        x = floating(self, x)
        shared = counted(self, "shared_axes", self.shared_axes, x.shape)
        shape = tuple(1 if axis in shared else size for axis, size in enumerate(x.shape))
        kept = drawn_mask(self, self.rate, shape, training, rng)
        if kept is None:
            return x
        kept = jnp.broadcast_to(kept, x.shape) if shared else kept
        # A scalar goes with any sharding of the mask; an array of zeros has that of `x`, which the mask need not have.
        return jnp.where(kept, x / (1 - self.rate), 0)


def probability(layer: str, rate: tp.Any, name: str = "rate") -> float:
    """An argument that is the rate of a layer that drops something."""
    if isinstance(rate, bool) or not 0 <= rate < 1:
        raise ValueError(
            f"elegy.nn.{layer}: {name} is the probability to drop an element and must be in [0, 1), got {rate}."
        )
    return float(rate)


def drawn_mask(
    layer: Module, rate: float, shape: tuple[int, ...], training: tp.Any, rng: KeyLike | None
) -> Bool[Array, "..."] | None:
    """What stays, with probability `1 - rate` each; None if everything does, because nothing is to be dropped."""
    training = trains(layer, training)
    # An init pass in evaluation mode draws too, so that the layer has a key of its own when training begins.
    if rate == 0 or not (training or is_initializing()):
        return None
    key = next_rng_key() if rng is None else as_key(rng)
    return jax.random.bernoulli(key, 1 - rate, shape) if training else None
