"""How many multiplications a traced function takes, and to which marked stretches of it they belong."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import re
import typing as tp
from collections.abc import Sequence

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

_MARK = re.compile(r"elegy_run_(\d+)")


def marked(number: int) -> contextlib.AbstractContextManager[tp.Any]:
    """Within it what JAX traces belongs to the stretch of this number; inside another one, to the inner one."""
    return jax.named_scope(f"elegy_run_{number}")


@dataclasses.dataclass
class Tally:
    """What one stretch takes, without those inside it.

    - `runs`: how many times it runs.
    - `multiply_adds`: the multiplications of matrix products and convolutions, each with an addition.
    - `may_run_more`, `may_multiply_more`: whether it does in a loop of unknown length, of which one round was counted.
    """

    runs: int = 0
    multiply_adds: int = 0
    may_run_more: bool = False
    may_multiply_more: bool = False


Tallies = dict[int, Tally]


def count(jaxpr: tp.Any) -> Tallies:
    """The tallies of the stretches of a traced function, by their numbers.

    The steps of a scan are counted all, those of a loop of unknown length once. Of the branches of a condition that
    which takes most is counted.
    """
    tallies: Tallies = collections.defaultdict(Tally)
    _Walk(tallies).walk(jaxpr, None)
    return dict(tallies)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Where the walk through the equations is.

    - `times`: how many times they run.
    - `copies`: on how many devices, each of which has a part of the arrays.
    - `is_open`: whether they are in a loop of unknown length.
    """

    tallies: Tallies
    times: int = 1
    copies: int = 1
    is_open: bool = False

    def walk(self, jaxpr: tp.Any, stretch: int | None) -> None:
        entered: set[int] = set()
        for equation in jaxpr.eqns:
            marks = [int(mark) for mark in _MARK.findall(str(equation.source_info.name_stack))]
            entered.update(marks)
            self._add(equation, marks[-1] if marks else stretch)
        for mark in entered:
            self.tallies[mark].runs += self.times
            self.tallies[mark].may_run_more |= self.is_open

    def _add(self, equation: tp.Any, stretch: int | None) -> None:
        name, params = equation.primitive.name, equation.params
        parts = [getattr(part, "jaxpr", part) for part in jaxprs_in_params(params)]
        if name in _MULTIPLY_ADDS and stretch is not None:
            tally = self.tallies[stretch]
            tally.multiply_adds += _MULTIPLY_ADDS[name](equation) * self.times * self.copies
            tally.may_multiply_more |= self.is_open
        elif name == "cond":
            self._add_largest(parts, stretch)
        else:
            inner = self
            if name == "scan":
                inner = dataclasses.replace(self, times=self.times * params["length"])
            elif name == "shard_map":
                sizes = [params["mesh"].shape[axis] for axis in params["newly_manual_axes"]]
                inner = dataclasses.replace(self, copies=self.copies * math.prod(sizes))
            elif name in _OF_UNKNOWN_LENGTH:
                inner = dataclasses.replace(self, is_open=True)
            for part in parts:
                inner.walk(part, stretch)

    def _add_largest(self, branches: list[tp.Any], stretch: int | None) -> None:
        found: list[Tallies] = []
        for branch in branches:
            found.append(collections.defaultdict(Tally))
            dataclasses.replace(self, tallies=found[-1]).walk(branch, stretch)
        largest = max(found, key=lambda tallies: sum(tally.multiply_adds for tally in tallies.values()))
        for tallies in found:
            for number, tally in tallies.items():
                own = self.tallies[number]
                own.runs += tally.runs
                own.may_run_more |= tally.may_run_more
                if tallies is largest:
                    own.multiply_adds += tally.multiply_adds
                    own.may_multiply_more |= tally.may_multiply_more


_OF_UNKNOWN_LENGTH = ("while", "pallas_call")


def _of_product(equation: tp.Any) -> int:
    """Each element of the left side meets those of the right side along the axes that only that has."""
    left, right = (value.aval for value in equation.invars[:2])
    (_, contracted), (_, batch) = equation.params["dimension_numbers"]
    return left.size * _others(right.shape, contracted, batch)


def _of_ragged_product(equation: tp.Any) -> int:
    left, right = (value.aval for value in equation.invars[:2])
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    return left.size * _others(right.shape, contracted, batch, numbers.rhs_group_dimensions)


def _others(shape: tuple[int, ...], *axes: Sequence[int]) -> int:
    """How many elements there are along the axes that are none of these."""
    return math.prod(size for axis, size in enumerate(shape) if axis not in {*itertools.chain(*axes)})


def _of_convolution(equation: tp.Any) -> int:
    """Zeros of the padding count as inputs, as is usual; those between inputs of a transposed convolution do not."""
    params = equation.params
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    numbers = params["dimension_numbers"]
    out_features, in_features, *spatial = numbers.rhs_spec
    batch, features, *out_spatial = numbers.out_spec
    taps = 1
    for index, (axis, out_axis) in enumerate(zip(spatial, out_spatial, strict=True)):
        taps *= _taps(
            out.shape[out_axis],
            kernel.shape[axis],
            params["window_strides"][index],
            params["padding"][index][0],
            params["lhs_dilation"][index],
            params["rhs_dilation"][index],
        )
    return out.shape[batch] * out.shape[features] * kernel.shape[in_features] * taps


@functools.lru_cache(maxsize=1024)
def _taps(size: int, kernel: int, stride: int, padding: int, spread: int, dilation: int) -> int:
    """How many pairs of an output and an element of the kernel meet an input, along one axis, in which the inputs stand
    `spread` apart."""
    if spread == 1:
        return size * kernel
    starts = np.arange(size)[:, None] * stride - padding
    return int(((starts + np.arange(kernel) * dilation) % spread == 0).sum())


_MULTIPLY_ADDS = {
    "dot_general": _of_product,
    "ragged_dot_general": _of_ragged_product,
    "conv_general_dilated": _of_convolution,
}
