from __future__ import annotations

import dataclasses
import typing as tp

import jax
from jaxtyping import Array, Inexact

from elegy.initializers.initializer import Initializer


@dataclasses.dataclass(frozen=True)
class Orthogonal(Initializer):
    """A random matrix whose columns are orthonormal, or its rows if there are more columns, times `scale`.

    Saxe et al., *Exact solutions to the nonlinear dynamics of learning in deep linear neural networks* (2013). Of a
    shape with more than two axes, all but the one of the columns are taken for one. It is
    `jax.nn.initializers.orthogonal`.

    **Arguments:**

    - `scale`: the factor.
    - `axis`: that of the columns.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    w = elegy.initializers.Orthogonal()(jax.random.key(0), (4, 3))
    assert jnp.allclose(w.T @ w, jnp.eye(3), atol=1e-6)
    ```
    """

    scale: float | int = 1.0
    axis: int = -1

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Inexact[Array, "..."]:
        if len(shape) < 2:
            raise ValueError(f"elegy.initializers.Orthogonal needs a shape of at least two axes, got {shape}.")
        return jax.nn.initializers.orthogonal(self.scale, self.axis)(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class DeltaOrthogonal(Initializer):
    """A convolution that maps each position by one orthogonal matrix: zero but in the centre of the window.

    Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs* (2018), algorithm 1. Shapes are
    `[*window, inputs, outputs]` with a window of one to three axes, and at least as many outputs as inputs. It is
    `jax.nn.initializers.delta_orthogonal`.

    **Arguments:**

    - `scale`: the factor.
    - `axis`: that of the columns.

    ```python
    import elegy

    conv = elegy.nn.Conv2D(8, 3, w_init=elegy.initializers.DeltaOrthogonal())
    ```
    """

    scale: float | int = 1.0
    axis: int = -1

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Inexact[Array, "..."]:
        if not 3 <= len(shape) <= 5 or shape[-1] < shape[-2]:
            raise ValueError(
                "elegy.initializers.DeltaOrthogonal needs the shape of a convolution over one to three axes, "
                f"[*window, inputs, outputs], with no more inputs than outputs, got {shape}."
            )
        return jax.nn.initializers.delta_orthogonal(self.scale, self.axis)(key, shape, dtype)
