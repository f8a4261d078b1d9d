"""Initial values of parameters, as functions of `(shape, dtype)` that draw from `elegy.next_rng_key`, or of
`(key, shape, dtype)`.

Inside `add_parameter` that key is the parameter's own: it depends on the seed and on the path of the parameter alone.
The functions of `jax.nn.initializers` are initializers too.
"""

from elegy.initializers.constants import Constant as Constant
from elegy.initializers.initializer import Initializer as Initializer
from elegy.initializers.named import (
    constant as constant,
    delta_orthogonal as delta_orthogonal,
    glorot_normal as glorot_normal,
    glorot_uniform as glorot_uniform,
    he_normal as he_normal,
    he_uniform as he_uniform,
    kaiming_normal as kaiming_normal,
    kaiming_uniform as kaiming_uniform,
    lecun_normal as lecun_normal,
    lecun_uniform as lecun_uniform,
    normal as normal,
    ones as ones,
    orthogonal as orthogonal,
    truncated_normal as truncated_normal,
    uniform as uniform,
    variance_scaling as variance_scaling,
    xavier_normal as xavier_normal,
    xavier_uniform as xavier_uniform,
    zeros as zeros,
)
from elegy.initializers.orthonormal import DeltaOrthogonal as DeltaOrthogonal, Orthogonal as Orthogonal
from elegy.initializers.random import (
    RandomNormal as RandomNormal,
    RandomUniform as RandomUniform,
    TruncatedNormal as TruncatedNormal,
)
from elegy.initializers.scaling import UniformScaling as UniformScaling, VarianceScaling as VarianceScaling

__all__ = [
    "Constant",
    "DeltaOrthogonal",
    "Initializer",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "UniformScaling",
    "VarianceScaling",
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
