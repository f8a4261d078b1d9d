from __future__ import annotations

import dataclasses
import math
import typing as tp
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Inexact

from elegy.initializers import pieces
from elegy.initializers.initializer import Initializer, is_real, require_not_negative

Axes = int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Samples of variance `scale / n`, so that a layer neither amplifies nor damps what passes through it.

    **Arguments:**

    - `scale`: the factor, positive.
    - `mode`: what `n` counts: `"fan_in"` the inputs of a unit, `"fan_out"` its outputs, `"fan_avg"` the mean of both,
      `"fan_geo_avg"` their geometric mean.
    - `distribution`: `"truncated_normal"`, `"normal"` (or, as NumPy users know it, `"untruncated_normal"`) or
      `"uniform"`.
    - `in_axis`, `out_axis`: the axis of the inputs, and that of the outputs, or several axes. The axes that are neither
      are the window of a convolution. By default the last axis of the shape is that of the outputs, and the one before
      it that of the inputs.
    - `batch_axis`: axes along which there are several kernels, each of which counts for itself.

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
    in_axis: Axes = -2
    out_axis: Axes = -1
    batch_axis: Axes = ()

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"elegy.initializers.VarianceScaling: scale must be positive, got {self.scale}.")
        _require_one_of(self.mode, "mode", tuple(_DENOMINATORS))
        _require_one_of(self.distribution, "distribution", tuple(_DISTRIBUTIONS))
        for name in ("in_axis", "out_axis", "batch_axis"):
            axes = getattr(self, name)
            object.__setattr__(self, name, axes if isinstance(axes, int) else tuple(axes))

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Inexact[Array, "..."]:
        if len(shape) < 2:
            raise ValueError(
                "elegy.initializers.VarianceScaling needs a shape with an axis of inputs and one of outputs, got "
                f"{shape}.\n  For a vector, such as a bias, use another initializer, RandomNormal for example."
            )
        distribution = _DISTRIBUTIONS[self.distribution]
        if not is_real(dtype):
            axes = self.in_axis, self.out_axis, self.batch_axis
            return jax.nn.initializers.variance_scaling(self.scale, tp.cast(tp.Any, self.mode), distribution, *axes)(
                key, shape, dtype
            )
        if math.prod(shape) == 0:
            return pieces.draw(pieces.normal, key, shape, dtype)
        variance = np.asarray(self.scale / _DENOMINATORS[self.mode](*self._fans(shape)), dtype)
        if distribution == "truncated_normal":
            # The standard deviation of a standard normal that is truncated at two.
            stddev = np.sqrt(variance) / np.asarray(0.87962566103423978, dtype)
            return pieces.draw(pieces.truncated_normal, key, shape, dtype, -2, 2, scale=stddev)
        if distribution == "normal":
            return pieces.draw(pieces.normal, key, shape, dtype, scale=np.sqrt(variance))
        return pieces.draw(pieces.uniform, key, shape, dtype, -1, 1, scale=np.sqrt(np.asarray(3, dtype) * variance))

    def _fans(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """The numbers of inputs and of outputs of a unit."""

        def size(axes: Axes) -> int:
            return math.prod(shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes))

        inputs, outputs = size(self.in_axis), size(self.out_axis)
        window = math.prod(shape) / (inputs * outputs * size(self.batch_axis))
        return inputs * window, outputs * window


_DENOMINATORS: dict[str, tp.Callable[[float, float], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,
    "fan_out": lambda fan_in, fan_out: fan_out,
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
    "fan_geo_avg": lambda fan_in, fan_out: (fan_in * fan_out) ** 0.5,
}
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


@dataclasses.dataclass(frozen=True)
class UniformScaling(Initializer):
    """Uniformly distributed within `±scale * sqrt(3 / inputs)`, where all axes but the last one are those of inputs.

    Sussillo and Abbott, *Random Walk Initialization for Training Very Deep Feedforward Networks* (2014).

    **Arguments:**

    - `scale`: the factor, not negative. The variance of the samples is `scale² / inputs`.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.UniformScaling(1.43))
    ```
    """

    scale: float | int = 1.0

    def __post_init__(self) -> None:
        require_not_negative(self, "scale", self.scale)

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Inexact[Array, "..."]:
        bound = self.scale * math.sqrt(3 / max(1, math.prod(shape[:-1])))
        return pieces.draw(pieces.uniform, key, shape, dtype, -bound, bound)
