"""Batches, as steps get them: of arrays, in an order; and of what gives batches by itself."""

from __future__ import annotations

import abc
import itertools
import math
import typing as tp
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from elegy.data import Source
from elegy.data.source import GivenTwice
from elegy.model.data import Data
from elegy.model.placement import between, rows_of
from elegy.model.program import Batch

Order = Int[np.ndarray, "samples"] | None
# At which step the batches that go together after so many steps have to end, at the latest; None: anywhere.
Until = Callable[[int], int | None]
# Of batches that are gone, as plain values.
Shapes = Mapping[str, tp.Any]


class Feed(abc.ABC):
    """What a pass over data reads.

    - `steps`, `samples`: how many there are in a pass; None if that is not known.
    - `is_many`: whether a step gets several batches, to go through them in one loop.
    - `varies`: whether batches may come in shapes that `example` does not tell.
    - `source`: what gives batches by itself, and may have a state; None for arrays.
    - `is_one_shot`: whether a pass goes on where the last one ended, and none can be repeated.
    - `batch_size`: how many samples make a batch; None if the source decides.
    - `joined`: how many batches make one of a step.
    - `part`: for how many samples of a batch gradients are computed together; None: for all.
    - `is_short`: whether the last batch has fewer samples than the others, or may have where nobody knows.
    """

    is_many: bool
    varies: bool
    source: Source | None
    is_one_shot: bool = False
    batch_size: int | None = None
    joined: int = 1

    @property
    @abc.abstractmethod
    def is_short(self) -> bool: ...

    @property
    @abc.abstractmethod
    def part(self) -> int | None: ...

    @property
    @abc.abstractmethod
    def steps(self) -> int | None: ...

    @property
    @abc.abstractmethod
    def samples(self) -> int | None: ...

    @abc.abstractmethod
    def example(self) -> Data:
        """A batch of the shape of most, of arrays or `jax.ShapeDtypeStruct`s."""

    def begin_at(self, epoch: int, start: int, shapes: Shapes | None) -> None:  # noqa: B027  (arrays need not know)
        """Says which batch the first pass begins with, before anything is asked for, and the `shapes` of then."""

    def shapes(self) -> Shapes | None:
        """What `begin_at` is to know of batches that are gone: their shapes, and into how large parts they are taken
        apart. None for arrays, and before the first batch."""
        return None

    @abc.abstractmethod
    def padded(self) -> Feed:
        """The same with short batches that are filled up with samples that do not count."""

    @abc.abstractmethod
    def first(self, steps: int) -> Feed:
        """The first batches alone."""

    @abc.abstractmethod
    def repeated(self, steps: int) -> Feed:
        """The first batches alone, and these in each pass."""

    @abc.abstractmethod
    def batches(
        self, order: Order = None, epoch: int = 0, start: int = 0, until: Until = lambda made: None
    ) -> Iterator[tuple[int, Batch]]:
        """The batches of an epoch from the `start`-th on, each with how many steps it is.

        **Arguments:**

        - `order`: in which order the samples come, if that is not for the data to say.
        """


class Arrays(Feed):
    """Arrays, as batches.

    **Arguments:**

    - `data`: arrays of NumPy, whose batches are copied to the device one by one; or all of JAX, which are on the
      device already: a compiled step picks the samples of its batch.
    - `batch_size`: the last batch has what remains.
    - `joined`: how many batches make one of a step.
    - `together`: how many batches a compiled step goes through.
    - `pads`: whether a short last batch is filled up with samples that do not count.
    - `most`: how many steps there are in a pass, if not all.
    """

    varies = False
    source = None

    def __init__(
        self,
        data: Data,
        batch_size: int,
        joined: int = 1,
        together: int = 1,
        pads: bool = False,
        most: int | None = None,
    ):
        self._data = data
        self._leaves, self._treedef = jax.tree.flatten(data)
        self._samples = data.size
        self._given = batch_size, joined, together
        self.batch_size, self.joined = min(batch_size, self._samples), joined
        self._batch_size = min(batch_size * joined, self._samples)
        self._pads = pads and self.is_short
        self._most = most
        self.is_many = together > 1
        self._together = together
        self._resident = all(isinstance(leaf, jax.Array) for leaf in self._leaves)

    @property
    def part(self) -> int | None:
        batch_size, joined, _ = self._given
        return batch_size if joined > 1 else None

    @property
    def is_short(self) -> bool:
        return self._samples % self._batch_size != 0

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def steps(self) -> int:
        steps = -(-self._samples // self._batch_size)
        return steps if self._most is None else min(steps, self._most)

    def first(self, steps: int) -> Arrays:
        end = min(steps, self.steps) * self._batch_size
        data = jax.tree.map(lambda array: between(array, 0, min(end, self.samples)), self._data)
        return Arrays(data, *self._given, self._pads)

    def repeated(self, steps: int) -> Arrays:
        return self.first(steps)

    def padded(self) -> Arrays:
        return Arrays(self._data, *self._given, True, self._most)

    def example(self) -> Data:
        shape = lambda leaf: jax.ShapeDtypeStruct((self._batch_size, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
        return jax.tree.map(shape, self._data)

    def batches(
        self, order: Order = None, epoch: int = 0, start: int = 0, until: Until = lambda made: None
    ) -> Iterator[tuple[int, Batch]]:
        made, steps = start, self.steps
        whole = steps if self._pads else self._samples // self._batch_size
        while made < steps:
            end = until(made)
            if end is not None and end <= made:
                return
            last = made + 1
            if self._together > 1:
                last = min(made + self._together, max(whole, last), steps, steps if end is None else end)
            yield last - made, self._batch(order, made, last)
            made = last

    def _batch(self, order: Order, first: int, last: int) -> Batch:
        """The batches from number `first` to before `last`, for one call of a step."""
        size = self._batch_size
        begin, end = first * size, min(last * size, self._samples)
        real: tp.Any = None
        if not self._pads and not self.is_many and not self._resident:
            if order is None:
                return Batch(self._treedef.unflatten([leaf[begin:end] for leaf in self._leaves]))
            return Batch(self._taken(order[begin:end]))
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
        return Batch(self._taken(chosen), real, counted)

    def _taken(self, chosen: np.ndarray) -> Data:
        return self._treedef.unflatten([_rows(leaf, chosen) for leaf in self._leaves])


_ALIGNMENT = 64  # bytes
_LARGE = 1 << 16  # bytes


def _rows(array: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Rows of an array, in new memory: where it is aligned, XLA reads large batches on a CPU without a copy."""
    shape = chosen.shape + array.shape[1:]
    if math.prod(shape) * array.itemsize < _LARGE:
        return array.take(chosen, 0, None, "clip")
    return array.take(chosen, 0, _in_new_memory(shape, array.dtype), "clip")


def _in_new_memory(shape: tuple[int, ...], dtype: np.dtype, values: np.ndarray | None = None) -> np.ndarray:
    """An array, with the given values if there are any; a large one is aligned."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        made = np.empty(shape, dtype)
    else:
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        made = np.ndarray(shape, dtype, memory, -memory.ctypes.data % _ALIGNMENT)
    if values is not None:
        made[...] = values
    return made


class Stream(Feed):
    """What gives batches by itself.

    **Arguments:**

    - `source`: gives the batches.
    - `joined`: how many batches make one of a step.
    - `together`: how many batches a compiled step goes through; those that go together have one shape.
    - `transform`: what becomes of each batch.
    - `epoch`, `start`: where the first pass begins.
    - `most`: how many steps there are in a pass, if not all.
    - `is_cut`: whether passes end where somebody said, and not where the data do.
    """

    varies = True

    def __init__(
        self,
        source: Source,
        joined: int = 1,
        together: int = 1,
        transform: Callable[[Data], Data] = lambda data: data,
        epoch: int = 0,
        start: int = 0,
        most: int | None = None,
        is_cut: bool = False,
    ):
        self._source = self.source = source
        self.is_one_shot = source.one_shot
        self._is_cut = is_cut
        self.is_many = together > 1
        self._together = together
        self._joined = self.joined = joined
        self._transform = transform
        self._begin = epoch, start
        self._most = most
        self._part: int | None = None
        self._drawn = 0  # how many batches of the source this pass has taken
        self._pads = False
        self._example: Data | None = None
        # The pass that has begun, to know the shape of its batches.
        self._begun: tuple[tuple[int, int], Data, Iterator[Data]] | None = None

    @property
    def samples(self) -> int | None:
        return self._source.samples

    @property
    def steps(self) -> int | None:
        steps = None if self._source.steps is None else -(-self._source.steps // self._joined)
        return self._most if steps is None or (self._most is not None and self._most < steps) else steps

    @property
    def part(self) -> int | None:
        if self._joined == 1:
            return None
        if self._part is None:
            self.example()
        return self._part

    @property
    def is_short(self) -> bool:
        samples, steps = self._source.samples, self._source.steps
        if samples is None or steps is None:  # where passes are cut, or never end, batches are equal as a rule
            return not (self._is_cut or self._source.one_shot)
        return samples < steps * self.example().size

    def begin_at(self, epoch: int, start: int, shapes: Shapes | None) -> None:
        self._begin = epoch, start
        if shapes is not None:
            shape = lambda leaf: jax.ShapeDtypeStruct((shapes["size"], *leaf.shape[1:]), leaf.dtype)  # noqa: E731
            self._example = jax.tree.map(shape, Data(*shapes["data"]))
            self._part = shapes["part"]
            self._drawn = shapes["drawn"]

    def shapes(self) -> Shapes | None:
        example = self._example
        if example is None:
            return None
        parts = example.x, example.y, example.sample_weight
        data = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape[1:]), leaf.dtype), parts)
        return (
            {"size": example.size, "data": data, "part": self._part, "drawn": self._drawn} if _is_plain(data) else None
        )

    def padded(self) -> Stream:
        self._pads = True
        self.example()
        return self

    def first(self, steps: int) -> Stream:
        steps = steps if self._most is None else min(steps, self._most)
        begin = self._begin
        return Stream(self._source, self._joined, self._together, self._transform, *begin, most=steps, is_cut=True)

    def given_twice(self) -> Stream:
        """The same, where the batches that a first pass takes are given again, once."""
        given = self._joined, self._together, self._transform, *self._begin, self._most, self._is_cut
        return Stream(GivenTwice(self._source), *given)

    def repeated(self, steps: int) -> Stream:
        steps = steps if self._most is None else min(steps, self._most)
        source = _Kept(self._source, *self._begin, steps * self._joined)
        return Stream(source, self._joined, self._together, self._transform, *self._begin, is_cut=True)

    def example(self) -> Data:
        example = self._example
        if example is None:
            data = self._of_epoch(*self._begin)
            first = next(data, None)
            if first is None:
                raise ValueError("there are no batches: the data ended before the first one.")
            self._begun = self._begin, first, data
            self._example = example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first)
        return example

    def batches(
        self, order: Order = None, epoch: int = 0, start: int = 0, until: Until = lambda made: None
    ) -> Iterator[tuple[int, Batch]]:
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == (epoch, start):
            data: Iterator[Data] = itertools.chain([begun[1]], begun[2])
        else:
            data = self._of_epoch(epoch, start)
        if self._most is not None:
            data = itertools.islice(data, self._most - start)
        each = map(self._filled, data) if self._pads else map(Batch, data)
        groups = self._stacked(each, start, until) if self.is_many else ((1, batch) for batch in each)
        made, end = start, until(start)
        # What is not trained on is not drawn either: an iterator would have lost it.
        while end is None or made < end:
            group = next(groups, None)
            if group is None:
                return
            yield group
            made += group[0]
            end = until(made)

    def _of_epoch(self, epoch: int, start: int) -> Iterator[Data]:
        parts: list[Data] = []
        first = start * self._joined
        if (epoch, start) == self._begin:  # the last step of an epoch may have fewer
            first = min(first, self._drawn or first)
        for drawn, batch in enumerate(self._source.batches(epoch, first), first + 1):
            self._drawn = drawn
            parts.append(self._transform(jax.tree.map(_unshared, Data(*batch))))
            self._part = self._part or parts[0].size
            if len(parts) == self._joined:
                yield _concatenated(parts)
                parts = []
        if parts:
            yield _concatenated(parts)

    def _filled(self, data: Data) -> Batch:
        """A batch with samples that do not count, repeated ones, up to the size of the others."""
        example = self.example()
        if data.size < example.size:
            places = np.resize(np.arange(data.size), example.size)
            filled = jax.tree.map(lambda leaf: rows_of(leaf, places), data)
            if _shapes(filled) == _shapes(example):
                return Batch(filled, np.asarray(data.size, np.int32))
        return Batch(data, np.asarray(data.size, np.int32))

    def _stacked(self, each: Iterator[Batch], made: int, until: Until) -> Iterator[tuple[int, Batch]]:
        waiting: list[Batch] = []
        for batch in each:
            if waiting and _shapes(batch.data) != _shapes(waiting[0].data):
                yield self._together_as_one(waiting)
                made, waiting = made + len(waiting), []
            waiting.append(batch)
            end = until(made)
            if len(waiting) == (self._together if end is None else min(self._together, end - made)):
                yield self._together_as_one(waiting)
                made, waiting = made + len(waiting), []
        if waiting:
            yield self._together_as_one(waiting)

    def _together_as_one(self, batches: list[Batch]) -> tuple[int, Batch]:
        count = len(batches)
        rows = batches + [batches[0]] * (self._together - count)
        data, real = jax.tree.map(_stack, *((batch.data, batch.real) for batch in rows))
        return count, Batch(data, real, np.asarray(count, np.int32))


def _unshared(array: tp.Any) -> tp.Any:
    """An array that stays as it is: the source may write to its memory when it makes the next batch, while a step that
    was given this one has yet to run."""
    return array if isinstance(array, jax.Array) else _in_new_memory(array.shape, array.dtype, array)


class _Kept(Source):
    """The first `count` batches of another source, from a place on, in each pass."""

    def __init__(self, source: Source, epoch: int, start: int, count: int):
        self.steps = count if source.steps is None else min(count, source.steps)
        self._begin = lambda: itertools.islice(source.batches(epoch, start), count)
        self._batches: list[tp.Any] | None = None

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tp.Any]:
        if self._batches is None:
            self._batches = [jax.tree.map(_unshared, batch) for batch in self._begin()]
        yield from self._batches[start:]


# Arrays of JAX stay on their devices.
_stack_there = jax.jit(lambda arrays: jnp.stack(arrays))
_concatenate_there = jax.jit(lambda arrays: jnp.concatenate(arrays))


def _stack(*arrays: tp.Any) -> tp.Any:
    return _stack_there(arrays) if _are_of_jax(arrays) else np.stack(arrays)


def _concatenate(*arrays: tp.Any) -> tp.Any:
    return _concatenate_there(arrays) if _are_of_jax(arrays) else np.concatenate(arrays)


def _concatenated(parts: list[Data]) -> Data:
    return parts[0] if len(parts) == 1 else jax.tree.map(_concatenate, *parts)


def _are_of_jax(arrays: tuple[tp.Any, ...]) -> bool:
    return all(isinstance(array, jax.Array) for array in arrays)


def _is_plain(tree: tp.Any) -> bool:
    """Whether a checkpoint can hold it: its containers are those that need no class."""
    if type(tree) is dict:
        return all(type(key) in (str, int) and _is_plain(value) for key, value in tree.items())
    if type(tree) in (list, tuple):
        return all(map(_is_plain, tree))
    return tree is None or isinstance(tree, np.ndarray)


def _shapes(data: Data) -> tp.Any:
    return jax.tree.structure(data), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(data)]
