from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.module import Module
from elegy.nn.activation import checked_activation
from elegy.nn.dropout import Dropout, probability
from elegy.nn.inputs import Flag, boolean, positive
from elegy.nn.linear import Linear


class MLP(Module):
    """A multilayer perceptron: layers `elegy.nn.Linear`, with an activation between each two of them.

    **Arguments:**

    - `output_sizes`: the size of the output of each layer. That of the input is inferred.
    - `activation`: a function of arrays, or a module such as `elegy.nn.PReLU()`, which all layers share.
    - `activate_final`: whether the activation, and the dropout, follow the last layer too.
    - `dropout_rate`: the rate of an `elegy.nn.Dropout` after each activation. The default is no dropout.
    - `with_bias`, `w_init`, `b_init`: those of each `elegy.nn.Linear`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Attributes:** `layers`, a tuple of `elegy.nn.Linear`; the weight of the first one is found at `layers/0/w`.

    **State:** with a `dropout_rate`, and an activation that it can follow, that of `dropout`, an `elegy.nn.Dropout`.

    It is what Haiku has under this name, except that dropout follows the activation, as in the paper about dropout, and
    does not precede it. Where the activation is a `relu`, this is the same.

    ```python
    import elegy
    import jax.numpy as jnp

    mlp = elegy.nn.MLP([64, 64, 10], dropout_rate=0.2)
    assert mlp(jnp.ones([32, 8])).shape == (32, 10)
    assert mlp.layers[0].w.shape == (8, 64)
    ```
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        *,
        activation: Callable[..., tp.Any] = jax.nn.relu,
        activate_final: Flag = False,
        dropout_rate: float | int | None = None,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        if not isinstance(output_sizes, (list, tuple)) or not output_sizes:
            raise ValueError(
                f"elegy.nn.MLP: output_sizes must be a list with the size of each layer, got {output_sizes!r}."
            )
        sizes = [positive("MLP", "output_sizes", size) for size in output_sizes]
        self.activation = checked_activation("MLP", activation)
        self.activate_final = boolean("MLP", "activate_final", activate_final)
        given = {"with_bias": boolean("MLP", "with_bias", with_bias), "w_init": w_init, "b_init": b_init}
        self.layers = [Linear(size, **given, dtype=dtype) for size in sizes]
        rate = None if dropout_rate is None else probability("MLP", dropout_rate, "dropout_rate")
        activates = len(sizes) > 1 or self.activate_final
        self.dropout = None if rate is None or not activates else Dropout(rate, dtype=dtype)

    def call(self, x: Num[ArrayLike, "*batch in"], training: Flag | None = None) -> Inexact[Array, "*batch out"]:
        """**Arguments:**

        - `x`: an array of at least one axis.
        - `training`: whether to drop. The default is `elegy.training()`.

        **Returns:** an array of the same shape but for the last axis, which has the last of `output_sizes` elements.
        """
        y = x
        for number, layer in enumerate(self.layers, 1):
            y = layer(y)
            if number < len(self.layers) or self.activate_final:
                y = self.activation(y)
                y = y if self.dropout is None else self.dropout(y, training)
        return jnp.asarray(y)
