"""Interleaved timing: each round times every arm once, and gives one ratio for each pair of arms.

Whatever else the machine does slows down all arms of a round alike, so that ratios within a round mean something where
times do not.
"""

from __future__ import annotations

import gc
import statistics
import time
import typing as tp
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np

# What is timed. Its result is waited for at the end of each timed batch.
Arm = Callable[[], tp.Any]


class Ratio(tp.NamedTuple):
    """The median, over the rounds, of the time of one arm by that of another, with the quartiles. Of a `difference`
    it is how much longer the one takes."""

    median: float
    lower: float
    upper: float


class Row(tp.NamedTuple):
    """One line of the table. The ratio is None where a library is not installed."""

    computation: str
    arm: str
    reference: str
    ratio: Ratio | None


class Budget(tp.NamedTuple):
    """How long to measure: the number of rounds, and the seconds that one arm may take in each."""

    rounds: int
    seconds: float


def batch_time(arm: Arm, calls: int) -> float:
    """The seconds that some calls in a row take, with one wait, at the end, for the result of the last."""
    result = None
    start = time.perf_counter()
    for _ in range(calls):
        result = arm()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def shortest_time(arm: Arm) -> float:
    return min(batch_time(arm, 1) for _ in range(3))


def warm(arm: Arm) -> None:
    jax.block_until_ready(arm())


def interleave(
    arms: Mapping[str, Arm], budget: Budget, prepare: Callable[[Arm], tp.Any] = warm
) -> dict[str, list[float]]:
    """The seconds per call of each arm, in each round.

    **Arguments:**

    - `arms`: what to time, by name. What must be compiled has been, by an earlier call.
    - `budget`: how long to measure. Each arm is called at least once in a round. Batches shorter than the time slices
      of the system are best: most of them are then not interrupted at all.
    - `prepare`: runs before each batch and is not timed.

    Every other round goes through the arms backwards, so that none always follows the same neighbour. The garbage
    collector runs between rounds only.
    """
    calls = {name: max(1, round(budget.seconds / shortest_time(arm))) for name, arm in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    enabled = gc.isenabled()
    freezes = gc.get_freeze_count() == 0  # under pytest somebody has, and counts on it
    if freezes:
        gc.collect()
        gc.freeze()
    gc.disable()
    try:
        for turn in range(budget.rounds):
            gc.collect()
            for name in list(arms)[:: -1 if turn % 2 else 1]:
                prepare(arms[name])
                times[name].append(batch_time(arms[name], calls[name]) / calls[name])
    finally:
        if freezes:
            gc.unfreeze()
        if enabled:
            gc.enable()
    return times


def compare(computation: str, pairs: Iterable[tuple[str, str]], times: Mapping[str, list[float]]) -> Iterator[Row]:
    """A row for each pair of an arm and its reference. Arms that were not timed are of missing libraries."""
    for arm, reference in pairs:
        ratio = median_ratio(times[arm], times[reference]) if arm in times and reference in times else None
        yield Row(computation, arm, reference, ratio)


def difference(
    computation: str, pairs: Iterable[tuple[str, str]], times: Mapping[str, list[float]], factor: float
) -> Iterator[Row]:
    """As `compare`, with differences times a factor in the place of ratios."""
    for arm, reference in pairs:
        found = None
        if arm in times and reference in times:
            more = [factor * (a - b) for a, b in zip(times[arm], times[reference], strict=True)]
            found = _quartiles(more)
        yield Row(computation, arm, reference, found)


def median_ratio(times: list[float], reference: list[float]) -> Ratio:
    """The median over the rounds of the ratio of two arms."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    return _quartiles(ratios)


def _quartiles(values: list[float]) -> Ratio:
    if len(values) == 1:
        return Ratio(*3 * values)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, lower, upper)


def require_equal(values: Mapping[str, tp.Any], rtol: float = 1e-5) -> None:
    """Refuses to time arms that do not compute the same: `values` holds what each has computed."""
    (first, expected), *others = values.items()
    for name, value in others:
        np.testing.assert_allclose(value, expected, rtol=rtol, err_msg=f"{name} differs from {first}")
