from __future__ import annotations

import typing as tp

from elegy.module import Module


class Identity(Module):
    """Returns its input, for a place where a layer is expected and nothing is to be done.

    **Arguments:**

    - `name`: that of `elegy.Module`.

    ```python
    import elegy
    import jax.numpy as jnp

    normalise = False
    layer = elegy.nn.BatchNormalization() if normalise else elegy.nn.Identity()
    x = jnp.ones([2, 3])
    assert layer(x) is x
    ```
    """

    def __init__(self, *, name: str | None = None):
        super().__init__(name=name)

    def call(self, x: tp.Any) -> tp.Any:
        """**Arguments:**

        - `x`: anything.

        **Returns:** `x` as it is.
        """
        return x
