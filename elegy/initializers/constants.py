from __future__ import annotations

import dataclasses
import typing as tp

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from elegy.initializers.initializer import Initializer


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """Every element is `constant`.

    **Arguments:**

    - `constant`: a number. An array of initial values needs no initializer: give it to `add_parameter` itself.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, b_init=elegy.initializers.Constant(0.1))
    ```
    """

    constant: float | int | complex

    draws = False

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Num[Array, "..."]:
        # From NumPy, since JAX would compile a program for each shape.
        return jnp.asarray(np.full(shape, self.constant, dtype))
