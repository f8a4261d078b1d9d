"""What goes from batch to batch: what a pass over data has counted so far."""

from __future__ import annotations

import dataclasses
import functools
import typing as tp

import jax
import jax.numpy as jnp

from elegy.model.objectives import Scalars, Sum, Total, Weighted, scalar_of


class Structure:
    """The structure of metrics. One object stands for all equal ones: JAX compares it by identity."""

    def __init__(self, treedef: tp.Any):
        self.treedef = treedef


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["metrics", "sums", "so_far"],
    meta_fields=["structure", "names", "names_so_far"],
)
@dataclasses.dataclass(eq=False)
class Carry:
    """What a pass over data has counted, in few arrays: each one that a step gives back makes a small step on a CPU
    longer, by a microsecond or more. It is not changed, and not frozen all the same: a frozen one takes longer to make.

    - `metrics`: the arrays of the metrics.
    - `sums`: for each of `names` the sum over samples, and then for each what it is divided by: the number of samples,
      or the sum of their weights; 0 if it is to stay a sum. A name that is there several times is that of a sum, of
      terms that add up in different ways.
    - `so_far`: for each of `names_so_far` a metric that adds up by itself; None if there is none.
    """

    # Arrays, not said as types: JAX also puts shapes in their places.
    metrics: tp.Any
    sums: tp.Any
    so_far: tp.Any
    structure: tp.Any
    names: tuple[str, ...]
    names_so_far: tuple[str, ...]

    def logs(self) -> dict[str, float]:
        """The means and sums, as floats: this waits for the device. `"loss"` comes first, and its parts last."""
        sums, so_far = jax.device_get((self.sums, self.so_far))
        sums, so_far = sums.tolist(), [] if so_far is None else so_far.tolist()
        pairs = zip(sums[: len(self.names)], sums[len(self.names) :], strict=True)
        values: dict[str, float] = {}
        for name, (value, count) in zip(self.names, pairs, strict=True):
            values[name] = values.get(name, 0.0) + value / (count or 1)
        values.update(zip(self.names_so_far, so_far, strict=True))
        return {name: values[name] for name in sorted(values, key=lambda name: (name != "loss", "loss" in name))}


def summed(size: tp.Any, scalars: Scalars) -> tuple[tp.Any, tuple[str, ...]]:
    """What `Carry.sums` says of a batch of so many samples, and the name of each value."""
    size = jnp.asarray(size, jnp.result_type(float)).reshape([])
    named = [(name, term) for name, value in scalars.items() for term in _terms(value)]
    parts = [_part(term, size) for _, term in named]
    return stacked([value for value, _ in parts] + [count for _, count in parts]), tuple(name for name, _ in named)


def _terms(value: tp.Any) -> tuple[tp.Any, ...]:
    return value.terms if isinstance(value, Total) else (value,)


def _part(term: tp.Any, size: tp.Any) -> tuple[tp.Any, tp.Any]:
    """What a batch adds to a sum, and to what that is divided by."""
    if isinstance(term, Sum):
        return term.value, jnp.zeros_like(size)
    count = term.weight if isinstance(term, Weighted) else size
    return scalar_of(term) * count, count


def stacked(scalars: list[tp.Any]) -> tp.Any:
    dtype = jnp.result_type(float)
    return jnp.stack([jnp.asarray(scalar, dtype) for scalar in scalars]) if scalars else jnp.zeros([0], dtype)
