"""Initial values of parameters, as functions of `(shape, dtype)` that draw from `elegy.next_rng_key`.

Inside `add_parameter` that key is the parameter's own: it depends on the seed and on the path of the parameter alone.
The functions of `jax.nn.initializers`, which take the key as their first argument, are initializers too.
"""

from __future__ import annotations

import dataclasses
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Num

from elegy.hooks import next_rng_key

Shape = Sequence[int]


def _require_not_negative(owner: object, name: str, value: float | int) -> None:
    if value < 0:
        raise ValueError(f"elegy.initializers.{type(owner).__name__}: {name} must not be negative, got {value}.")


@dataclasses.dataclass(frozen=True)
class Constant:
    """Every element is `constant`.

    **Arguments:**

    - `constant`: a number. An array of initial values needs no initializer: give it to `add_parameter` itself.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, b_init=elegy.initializers.Constant(0.1))
    ```
    """

    constant: float | int

    def __call__(self, shape: Shape, dtype: tp.Any) -> Num[Array, "..."]:
        return jnp.full(tuple(shape), self.constant, dtype)


@dataclasses.dataclass(frozen=True)
class RandomNormal:
    """Normally distributed with the given mean and standard deviation.

    **Arguments:**

    - `stddev`: the standard deviation, not negative.
    - `mean`: the mean.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.RandomNormal(stddev=0.02))
    ```
    """

    stddev: float | int = 1.0
    mean: float | int = 0.0

    def __post_init__(self) -> None:
        _require_not_negative(self, "stddev", self.stddev)

    def __call__(self, shape: Shape, dtype: tp.Any) -> Inexact[Array, "..."]:
        return self.mean + self.stddev * jax.random.normal(next_rng_key(), tuple(shape), dtype)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """Normal samples, redrawn until they lie within two `stddev` of the mean.

    **Arguments:**

    - `stddev`: the standard deviation before truncation, not negative; afterwards it is about `0.88 * stddev`.
    - `mean`: the mean.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.TruncatedNormal(stddev=0.02))
    ```
    """

    stddev: float | int = 1.0
    mean: float | int = 0.0

    def __post_init__(self) -> None:
        _require_not_negative(self, "stddev", self.stddev)

    def __call__(self, shape: Shape, dtype: tp.Any) -> Inexact[Array, "..."]:
        return self.mean + self.stddev * jax.random.truncated_normal(next_rng_key(), -2, 2, tuple(shape), dtype)


@dataclasses.dataclass(frozen=True)
class RandomUniform:
    """Uniformly distributed in `[minval, maxval)`.

    **Arguments:**

    - `minval`: the lower bound.
    - `maxval`: the upper bound.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.RandomUniform(-0.1, 0.1))
    ```
    """

    minval: float | int = 0.0
    maxval: float | int = 1.0

    def __post_init__(self) -> None:
        if self.minval > self.maxval:
            raise ValueError(
                f"elegy.initializers.RandomUniform: minval must not exceed maxval, got {self.minval} and {self.maxval}."
            )

    def __call__(self, shape: Shape, dtype: tp.Any) -> Num[Array, "..."]:
        return jax.random.uniform(next_rng_key(), tuple(shape), dtype, self.minval, self.maxval)


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """Samples of variance `scale / n`, so that a layer neither amplifies nor damps what passes through it.

    **Arguments:**

    - `scale`: the factor, positive.
    - `mode`: what `n` counts: `"fan_in"` the inputs of a unit, `"fan_out"` its outputs, `"fan_avg"` the mean of both.
      The last axis of the shape is that of the outputs, the one before it that of the inputs, and the axes before
      those, if any, are the window of a convolution.
    - `distribution`: `"truncated_normal"`, `"normal"` (or, as NumPy users know it, `"untruncated_normal"`) or
      `"uniform"`.

    `VarianceScaling(1.0)` is the initializer of LeCun et al., *Efficient BackProp* (1998), section 4.6, and the
    default of the layers in `elegy.nn`; `VarianceScaling(2.0)` is that of He et al., *Delving Deep into Rectifiers*
    (2015), equation 10; `VarianceScaling(1.0, "fan_avg", "uniform")` that of Glorot and Bengio (2010), equation 16.
    The standard deviation is that of the samples: for the truncated normal it is corrected for the truncation, as in
    `jax.nn.initializers`.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.VarianceScaling(2.0))
    ```
    """

    scale: float | int = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"elegy.initializers.VarianceScaling: scale must be positive, got {self.scale}.")
        _require_one_of(self.mode, "mode", _MODES)
        _require_one_of(self.distribution, "distribution", tuple(_DISTRIBUTIONS))

    def __call__(self, shape: Shape, dtype: tp.Any) -> Inexact[Array, "..."]:
        if len(shape) < 2:
            raise ValueError(
                "elegy.initializers.VarianceScaling needs a shape with an axis of inputs and one of outputs, got "
                f"{tuple(shape)}.\n  For a vector, such as a bias, use another initializer, RandomNormal for example."
            )
        scaled = jax.nn.initializers.variance_scaling(
            self.scale, tp.cast(tp.Any, self.mode), _DISTRIBUTIONS[self.distribution]
        )
        return scaled(next_rng_key(), tuple(shape), dtype)


_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS: dict[str, tp.Any] = {
    "truncated_normal": "truncated_normal",
    "normal": "normal",
    "untruncated_normal": "normal",
    "uniform": "uniform",
}


def _require_one_of(value: str, name: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(
            f"elegy.initializers.VarianceScaling: {name} must be one of {', '.join(allowed)}, got {value!r}."
        )
