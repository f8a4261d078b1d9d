"""Batches of arrays: in which order they come, and what a step gets of them."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Int

from elegy.model.data import Data
from elegy.model.steps import Batch


class Feed:
    """Arrays, as batches.

    **Arguments:**

    - `data`: arrays of NumPy, whose batches are copied to the device one by one; or all of JAX, which are on the
      device already: a compiled step picks the samples of its batch.
    - `batch_size`: of a step; the last batch has what remains.
    - `together`: how many batches a compiled step goes through.
    - `pads`: whether a short last batch is filled up with samples that do not count.
    """

    def __init__(self, data: Data, batch_size: int, together: int = 1, pads: bool = False):
        self._data = data
        self._batch_size = min(batch_size, data.size)
        self._pads = pads and data.size % self._batch_size != 0
        self.is_many = together > 1
        self._together = together
        self._resident = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data))

    @property
    def samples(self) -> int:
        return self._data.size

    @property
    def steps(self) -> int:
        return -(-self._data.size // self._batch_size)

    def first(self, steps: int) -> Feed:
        """The first batches alone."""
        end = steps * self._batch_size
        data = jax.tree.map(lambda array: array[:end], self._data)
        return Feed(data, self._batch_size, self._together, self._pads)

    def example(self) -> Data:
        """A batch of the shape of most."""
        shape = lambda leaf: jax.ShapeDtypeStruct((self._batch_size, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
        return jax.tree.map(shape, self._data)

    def size_of(self, batch: Batch) -> int:
        """How many samples of a single batch count."""
        return len(jax.tree.leaves(batch.data)[0]) if batch.real is None else int(batch.real)

    def batches(
        self,
        order: Int[np.ndarray, "samples"] | None = None,
        start: int = 0,
        until: Callable[[int], int | None] = lambda made: None,
    ) -> Iterator[tuple[int, Batch]]:
        """The batches from the `start`-th on, each with how many steps it is.

        **Arguments:**

        - `order`: in which order the samples come.
        - `until`: at which step the batches that go together after `made` steps have to end, at the latest.
        """
        size, made = self._batch_size, start
        whole = self._data.size // size
        while made < self.steps:
            end = until(made)
            if end is not None and end <= made:
                return
            last = min(made + self._together, self.steps if self._pads else max(whole, made + 1), end or self.steps)
            yield last - made, self._batch(order, made, last)
            made = last

    def _batch(self, order: Int[np.ndarray, "samples"] | None, first: int, last: int) -> Batch:
        """The batches from number `first` to before `last`, for one call of a step."""
        size = self._batch_size
        begin, end = first * size, min(last * size, self._data.size)
        real: tp.Any = None
        if not self._pads and not self.is_many and not self._resident:
            chosen = slice(begin, end) if order is None else order[begin:end]
            return Batch(jax.tree.map(lambda array: array[chosen], self._data))
        chosen = np.arange(begin, end, dtype=np.int32) if order is None else order[begin:end].astype(np.int32)
        count = last - first
        if self._pads:
            # What fills up are samples, so that whatever is computed of them is finite.
            chosen = np.resize(chosen, count * size)
            real = np.minimum(size, end - begin - size * np.arange(count, dtype=np.int32)).astype(np.int32)
        if self.is_many and len(chosen) == count * size:
            chosen = np.resize(chosen.reshape(count, size), (self._together, size))
            real = None if real is None else np.resize(real, self._together)
            counted: tp.Any = np.asarray(count, np.int32)
        elif self.is_many:  # a short batch by itself
            chosen, counted = chosen[None], np.asarray(1, np.int32)
        else:
            real, counted = None if real is None else real[0], None
        if self._resident:
            return Batch(chosen, real, counted, self._data)
        return Batch(jax.tree.map(lambda array: array[chosen], self._data), real, counted)
