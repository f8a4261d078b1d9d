from __future__ import annotations

import typing as tp
from collections.abc import Callable

from elegy.errors import show_value
from elegy.module import Module


class Lambda(Module):
    """A function as a layer.

    A `Sequential` takes functions as they are. As a `Lambda` a function has a path and a row of its own in summaries,
    and modules that it creates are found again on every later call, as those of a `call` are. A module of the outside
    that it uses is no part of the layer: it is not trained with it, and a compiled layer goes on with the parameters
    that the module had when it was compiled.

    **Arguments:**

    - `function`: a function. It is static: two layers are equal if their functions are the same object, so a function
      that is defined once is compiled once.
    - `name`: that of `elegy.Module`.

    ```python
    import elegy
    import jax.numpy as jnp

    standardise = elegy.nn.Lambda(lambda x, eps: (x - x.mean()) / (x.std() + eps))
    assert standardise(jnp.arange(4.0), eps=1e-5).shape == (4,)
    ```
    """

    def __init__(self, function: Callable[..., tp.Any], *, name: str | None = None):
        super().__init__(name=name)
        if not callable(function) or isinstance(function, (Module, type)):
            raise TypeError(
                f"elegy.nn.Lambda: function must be a function, got {show_value(function)}.\n"
                "  A module is a layer already; one that is to be called otherwise is called in a function."
            )
        self.function = function

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """**Arguments:** those of the function.

        **Returns:** what the function returns.
        """
        return self.function(*args, **kwargs)
