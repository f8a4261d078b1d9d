from __future__ import annotations

import dataclasses
import typing as tp

from jaxtyping import Array, Inexact

from elegy.initializers import pieces
from elegy.initializers.initializer import Initializer, require_not_negative


@dataclasses.dataclass(frozen=True)
class RandomNormal(Initializer):
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
        require_not_negative(self, "stddev", self.stddev)

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Inexact[Array, "..."]:
        return pieces.draw(pieces.normal, key, shape, dtype, scale=self.stddev, shift=self.mean)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal samples, redrawn until they lie within bounds.

    **Arguments:**

    - `stddev`: the standard deviation before truncation, not negative; by the default bounds it becomes about
      `0.88 * stddev`.
    - `mean`: the mean.
    - `lower`, `upper`: the bounds of `(value - mean) / stddev`. The defaults are two standard deviations.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.TruncatedNormal(stddev=0.02))
    ```
    """

    stddev: float | int = 1.0
    mean: float | int = 0.0
    lower: float | int = -2.0
    upper: float | int = 2.0

    def __post_init__(self) -> None:
        require_not_negative(self, "stddev", self.stddev)
        if self.lower >= self.upper:
            raise ValueError(
                f"elegy.initializers.TruncatedNormal: lower must be less than upper, got {self.lower} and {self.upper}."
            )

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Inexact[Array, "..."]:
        bounds = self.lower, self.upper
        return pieces.draw(pieces.truncated_normal, key, shape, dtype, *bounds, scale=self.stddev, shift=self.mean)


@dataclasses.dataclass(frozen=True)
class RandomUniform(Initializer):
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

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Inexact[Array, "..."]:
        return pieces.draw(pieces.uniform, key, shape, dtype, self.minval, self.maxval)
