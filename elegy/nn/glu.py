from __future__ import annotations

import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.module import Module
from elegy.nn.activation import checked_activation
from elegy.nn.inputs import Flag, boolean, positive
from elegy.nn.linear import Linear


class GLU(Module):
    """A gated linear unit: `y = sigmoid(x w + b) * (x v + c)`, one linear map that opens and closes another.

    Dauphin et al., *Language Modeling with Gated Convolutional Networks* (2017), equation 1, in the form of Shazeer,
    [*GLU Variants Improve Transformer*](https://arxiv.org/abs/2002.05202) (2020), equation 4. The feed-forward part of
    a transformer, equation 6 there, is such a unit and a `Linear` that maps back. `SwiGLU` and `GEGLU` have other
    activations.

    **Arguments:**

    - `output_size`: the size of the last axis of the output. That of the input is inferred.
    - `activation`: the function of the gate.
    - `with_bias`: whether both maps have a `b`. The feed-forward layers of the paper have none.
    - `w_init`, `b_init`: the initializers of both maps, as those of `elegy.nn.Linear`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** those of two layers `elegy.nn.Linear`: `gate` (`w` and `b` of the formula), `value` (`v` and `c`).

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([2, 7, 64])
    feed_forward = elegy.nn.Sequential(lambda: [elegy.nn.SwiGLU(170), elegy.nn.Linear(64, with_bias=False)])
    assert feed_forward(x).shape == x.shape
    assert feed_forward.layers[0].gate.w.shape == (64, 170)
    ```
    """

    gate: Linear
    value: Linear

    def __init__(
        self,
        output_size: int,
        *,
        activation: Callable[..., tp.Any] = jax.nn.sigmoid,
        with_bias: Flag = False,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = type(self).__name__
        self.output_size = positive(layer, "output_size", output_size)
        self.activation = checked_activation(layer, activation)
        given = {
            "with_bias": boolean(layer, "with_bias", with_bias),
            "w_init": w_init,
            "b_init": b_init,
            "dtype": dtype,
        }
        self.gate = Linear(self.output_size, **given)
        self.value = Linear(self.output_size, **given)

    def call(self, x: Num[ArrayLike, "*batch in"]) -> Inexact[Array, "*batch out"]:
        """**Arguments:**

        - `x`: an array of at least one axis.

        **Returns:** an array of the same shape but for the last axis, which has `output_size` elements.
        """
        return self.activation(self.gate(x)) * self.value(x)


class SwiGLU(GLU):
    """A gated linear unit with `jax.nn.silu`: `y = silu(x w + b) * (x v + c)`.

    Shazeer, [*GLU Variants Improve Transformer*](https://arxiv.org/abs/2002.05202) (2020), equation 5, with `beta = 1`.

    **Arguments:** those of `elegy.nn.GLU`.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.nn.SwiGLU(8)(jnp.ones([2, 3])).shape == (2, 8)
    ```
    """

    def __init__(
        self,
        output_size: int,
        *,
        activation: Callable[..., tp.Any] = jax.nn.silu,
        with_bias: Flag = False,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(
            output_size,
            activation=activation,
            with_bias=with_bias,
            w_init=w_init,
            b_init=b_init,
            name=name,
            dtype=dtype,
        )


def _gelu(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    return jax.nn.gelu(x, approximate=False)


class GEGLU(GLU):
    """A gated linear unit with the Gaussian error linear unit: `y = gelu(x w + b) * (x v + c)`.

    Shazeer, [*GLU Variants Improve Transformer*](https://arxiv.org/abs/2002.05202) (2020), equation 5.
    `gelu(x) = x P(X <= x)` is exact; models that were trained with its approximation by `tanh` are given
    `activation=jax.nn.gelu`.

    **Arguments:** those of `elegy.nn.GLU`.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.nn.GEGLU(8)(jnp.ones([2, 3])).shape == (2, 8)
    ```
    """

    def __init__(
        self,
        output_size: int,
        *,
        activation: Callable[..., tp.Any] = _gelu,
        with_bias: Flag = False,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(
            output_size,
            activation=activation,
            with_bias=with_bias,
            w_init=w_init,
            b_init=b_init,
            name=name,
            dtype=dtype,
        )
