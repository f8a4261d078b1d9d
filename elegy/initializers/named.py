"""The names of `jax.nn.initializers`, which give the same values, in either signature."""

from __future__ import annotations

import typing as tp

from jaxtyping import Array, Num

from elegy.initializers.constants import Constant
from elegy.initializers.orthonormal import DeltaOrthogonal, Orthogonal
from elegy.initializers.random import RandomNormal, RandomUniform, TruncatedNormal
from elegy.initializers.scaling import Axes, VarianceScaling


def zeros(*arguments: tp.Any, dtype: tp.Any = None) -> Num[Array, "..."]:
    """Zeros, as a function of `(shape, dtype)` or of `(key, shape, dtype)`.

    ```python
    import elegy

    assert elegy.initializers.zeros((2, 3)).shape == (2, 3)
    ```
    """
    return _ZEROS(*arguments, dtype=dtype)


def ones(*arguments: tp.Any, dtype: tp.Any = None) -> Num[Array, "..."]:
    """Ones, as a function of `(shape, dtype)` or of `(key, shape, dtype)`.

    ```python
    import elegy

    assert elegy.initializers.ones((2, 3)).sum() == 6
    ```
    """
    return _ONES(*arguments, dtype=dtype)


_ZEROS, _ONES = Constant(0), Constant(1)


def constant(value: float | int | complex) -> Constant:
    """`elegy.initializers.Constant(value)`.

    ```python
    import elegy

    assert elegy.initializers.constant(0.5) == elegy.initializers.Constant(0.5)
    ```
    """
    return Constant(value)


def uniform(scale: float | int = 1e-2) -> RandomUniform:
    """Uniformly distributed in `[0, scale)`.

    ```python
    import elegy

    assert elegy.initializers.uniform(0.1) == elegy.initializers.RandomUniform(0, 0.1)
    ```
    """
    return RandomUniform(0, scale)


def normal(stddev: float | int = 1e-2) -> RandomNormal:
    """Normally distributed with mean 0.

    ```python
    import elegy

    assert elegy.initializers.normal(0.1) == elegy.initializers.RandomNormal(0.1)
    ```
    """
    return RandomNormal(stddev)


def truncated_normal(
    stddev: float | int = 1e-2, lower: float | int = -2.0, upper: float | int = 2.0
) -> TruncatedNormal:
    """Normally distributed with mean 0, within `lower * stddev` and `upper * stddev`.

    ```python
    import elegy

    assert elegy.initializers.truncated_normal(0.1) == elegy.initializers.TruncatedNormal(0.1)
    ```
    """
    return TruncatedNormal(stddev, lower=lower, upper=upper)


def variance_scaling(
    scale: float | int,
    mode: str,
    distribution: str,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
) -> VarianceScaling:
    """`elegy.initializers.VarianceScaling`.

    ```python
    import elegy

    he = elegy.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
    assert he == elegy.initializers.he_normal()
    ```
    """
    return VarianceScaling(scale, mode, distribution, in_axis, out_axis, batch_axis)


def orthogonal(scale: float | int = 1.0, column_axis: int = -1) -> Orthogonal:
    """`elegy.initializers.Orthogonal`.

    ```python
    import elegy

    assert elegy.initializers.orthogonal(2.0) == elegy.initializers.Orthogonal(2.0)
    ```
    """
    return Orthogonal(scale, column_axis)


def delta_orthogonal(scale: float | int = 1.0, column_axis: int = -1) -> DeltaOrthogonal:
    """`elegy.initializers.DeltaOrthogonal`.

    ```python
    import elegy

    assert elegy.initializers.delta_orthogonal(2.0) == elegy.initializers.DeltaOrthogonal(2.0)
    ```
    """
    return DeltaOrthogonal(scale, column_axis)


def glorot_uniform(in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> VarianceScaling:
    """`VarianceScaling(1.0, "fan_avg", "uniform")`: Glorot and Bengio (2010), equation 16.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.glorot_uniform())
    ```
    """
    return VarianceScaling(1.0, "fan_avg", "uniform", in_axis, out_axis, batch_axis)


def glorot_normal(in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> VarianceScaling:
    """`VarianceScaling(1.0, "fan_avg", "truncated_normal")`: Glorot and Bengio (2010), with a truncated normal.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.glorot_normal())
    ```
    """
    return VarianceScaling(1.0, "fan_avg", "truncated_normal", in_axis, out_axis, batch_axis)


def lecun_uniform(in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> VarianceScaling:
    """`VarianceScaling(1.0, "fan_in", "uniform")`: LeCun et al. (1998), section 4.6, with a uniform distribution.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.lecun_uniform())
    ```
    """
    return VarianceScaling(1.0, "fan_in", "uniform", in_axis, out_axis, batch_axis)


def lecun_normal(in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> VarianceScaling:
    """`VarianceScaling(1.0, "fan_in", "truncated_normal")`: LeCun et al. (1998), section 4.6.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.lecun_normal())
    ```
    """
    return VarianceScaling(1.0, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis)


def he_uniform(in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> VarianceScaling:
    """`VarianceScaling(2.0, "fan_in", "uniform")`: He et al. (2015), equation 10, with a uniform distribution.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.he_uniform())
    ```
    """
    return VarianceScaling(2.0, "fan_in", "uniform", in_axis, out_axis, batch_axis)


def he_normal(in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> VarianceScaling:
    """`VarianceScaling(2.0, "fan_in", "truncated_normal")`: He et al. (2015), equation 10.

    ```python
    import elegy

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.he_normal())
    ```
    """
    return VarianceScaling(2.0, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis)


xavier_uniform, xavier_normal = glorot_uniform, glorot_normal
kaiming_uniform, kaiming_normal = he_uniform, he_normal
