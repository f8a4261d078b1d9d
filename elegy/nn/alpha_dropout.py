from __future__ import annotations

import typing as tp

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.module import Module
from elegy.nn.dropout import drawn_mask, probability
from elegy.nn.inputs import Flag, floating
from elegy.random import KeyLike

# Of the SELU, with the digits that Klambauer et al. give in their appendix. Its limit at minus infinity is the negative
# of their product.
_SCALE, _ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


class AlphaDropout(Module):
    """Dropout for activations of `jax.nn.selu`: keeps their mean 0 and their variance 1.

    In training each element is replaced by `s = -1.758` (the limit of the SELU at minus infinity) with probability
    `rate`. What results is multiplied by `a = ((1 - rate) (1 + rate s^2))^(-1/2)`, and `-a rate s` is added. Klambauer
    et al., *Self-Normalizing Neural Networks* (2017), section "New Dropout Technique".

    **Arguments:**

    - `rate`: the probability, in `[0, 1)`.
    - `name`, `dtype`: those of `elegy.Module`. The dtype matters for inputs of integers or bools only, which are
      converted to it.

    **State:** `rng_key`, as that of `elegy.nn.Dropout`.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jax.nn.selu(jax.random.normal(jax.random.key(0), [10_000]))
    y = elegy.nn.AlphaDropout(0.2)(x)
    assert abs(y.mean()) < 0.05 and abs(y.std() - 1) < 0.05
    ```
    """

    def __init__(self, rate: float | int, *, name: str | None = None, dtype: tp.Any = None):
        super().__init__(name=name, dtype=dtype)
        self.rate = probability("AlphaDropout", rate)

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
        kept = drawn_mask(self, self.rate, x.shape, training, rng)
        if kept is None:
            return x
        limit = -_SCALE * _ALPHA
        a = ((1 - self.rate) * (1 + self.rate * limit**2)) ** -0.5
        return a * jnp.where(kept, x, limit) - a * self.rate * limit
