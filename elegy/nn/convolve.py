"""The convolution itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jaxtyping import Array

from elegy.devices import for_convolution
from elegy.nn.convolution_arguments import SPATIAL, Pairs, channel_axis


def convolve(
    x: Array,
    w: Array,
    layout: str,
    *,
    padding: str | Pairs,
    stride: Sequence[int] | None = None,
    input_rate: Sequence[int] | None = None,
    rate: Sequence[int],
    groups: int = 1,
) -> Array:
    """`x` with any number of leading axes, or none, convolved with `w` of shape `[*spatial, in / groups, out]`.

    `input_rate` is the distance at which the elements of `x` are spread out, with zeros between them.
    """
    example = layout.removeprefix("N")
    n = len(example) - 1
    leading = x.shape[: x.ndim - len(example)]
    if len(leading) != 1:
        x = x.reshape(math.prod(leading), *x.shape[len(leading) :])
    w, out_sharding = for_convolution(x, w, x.ndim + channel_axis(layout))
    y = jax.lax.conv_general_dilated(
        x,
        w,
        window_strides=stride or (1,) * n,
        padding=padding,
        lhs_dilation=input_rate,
        rhs_dilation=rate,
        dimension_numbers=(f"N{example}", f"{SPATIAL[n]}IO", f"N{example}"),
        feature_group_count=groups,
        out_sharding=out_sharding,
    )
    return y if len(leading) == 1 else y.reshape(*leading, *y.shape[1:])
