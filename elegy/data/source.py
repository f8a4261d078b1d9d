"""Whatever gives batches, as one protocol that the training loop reads."""

from __future__ import annotations

import abc
import inspect
import itertools
import typing as tp
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from elegy.data.batch import Batch, as_batch
from elegy.data.loader import DataLoader
from elegy.data.states import decode, encode
from elegy.errors import BatchCountWarning, ResumptionWarning
from elegy.frames import warn

Transform = Callable[[tp.Any], tp.Any]
# What says that it has more of them has no end: a dataset of Grain that is repeated and batched.
MOST_BATCHES = 2**45
# How a state is read and set: iterators of Grain; loaders of torchdata and datasets of Hugging Face.
STATE_METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


class Source(abc.ABC):
    """A stream of batches that can be gone through again and again: what `Model.fit` makes of data that are no arrays.

    `elegy.data.as_source` makes one of almost anything. Derive from this class where that is not enough, and define
    `batches`; `fit` takes the object as it is.

    **Attributes:**

    - `steps`: how many batches a pass has, or None if that is not known before its end. Where `steps_per_epoch` says
      it, a pass has that many; else it is what `len()` of the data promises, and the end of the iterator decides.
    - `samples`: how many samples a pass has, or None.
    - `one_shot`: whether a pass goes on where the last one ended, and no pass can be repeated.

    ```python
    class Sines(elegy.data.Source):
        steps = 10

        def batches(self, epoch=0, start=0):
            for step in range(start, self.steps):
                x = np.random.default_rng([epoch, step]).uniform(-3, 3, [32, 1]).astype(np.float32)
                yield elegy.data.Batch(x, np.sin(x), None)


    first, *_ = Sines().batches(epoch=2, start=8)
    assert first.size == 32
    ```
    """

    steps: int | None = None
    samples: int | None = None
    one_shot: bool = False

    @abc.abstractmethod
    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of pass number `epoch`, from its batch number `start` on, both counted from 0.

        An array may lie in memory that the source writes to when it makes the next batch; `elegy.data.prefetch` copies.
        """

    def get_state(self) -> dict[str, tp.Any] | None:
        """Where the source is after the batch that it gave last, as JSON can hold it; None for a source that needs only
        the numbers of epoch and batch to go on, or that cannot say."""
        return None

    def set_state(self, state: dict[str, tp.Any] | None) -> None:
        """Makes the next call of `batches`, if it asks for what followed then, go on from a state of `get_state`."""
        if state is not None:
            raise ValueError(f"a {type(self).__name__} has no state to set: its get_state gives None.")


class GivenTwice(Source):
    """A source of which no pass can be repeated, but for the first one, of which a few batches are taken to try them:
    these are kept, and the second pass begins with them."""

    one_shot = True

    def __init__(self, source: Source):
        self._source = source
        self.steps = source.steps
        self.samples = source.samples
        self._kept: list[Batch] | None = []  # None when they were given again
        self._before: dict[str, tp.Any] | None = None  # the state before the first pass

    def get_state(self) -> dict[str, tp.Any] | None:
        return self._before if self._kept else self._source.get_state()

    def set_state(self, state: dict[str, tp.Any] | None) -> None:
        self._source.set_state(state)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        kept = self._kept
        if kept:
            self._kept = None
            yield from kept
            start += len(kept)
        elif kept is not None:
            self._before = self._source.get_state()
        for batch in self._source.batches(epoch, start):
            if self._kept is not None:
                # A copy, since the source may write to the same memory again.
                self._kept.append(jax.tree.map(_copied, batch))
            yield batch


class First(Source):
    """The first `count` batches of each pass of another source, or all if there are fewer."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._count = count
        self.steps = count if source.steps is None else min(count, source.steps)
        self.samples = source.samples if self.steps == source.steps else None

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        return itertools.islice(self._source.batches(epoch, start), max(self._count - start, 0))

    def get_state(self) -> dict[str, tp.Any] | None:
        return self._source.get_state()

    def set_state(self, state: dict[str, tp.Any] | None) -> None:
        self._source.set_state(state)


def _copied(array: tp.Any) -> tp.Any:
    return array if isinstance(array, jax.Array) else np.array(array)


class _Reports:
    """What is wrong with the data, as it comes to light."""

    def __init__(self, name: str):
        self._name = name
        self._told: set[type] = set()

    def empty(self) -> ValueError:
        return ValueError(
            f"{self._name} gave no batches when it was gone through.\n  If it gives the same iterator each time, that "
            "is at its end after the first time: give a function that makes it anew."
        )

    def check_count(self, found: int, promised: int | None) -> None:
        if promised is not None and found != promised:
            self.warn_once(
                BatchCountWarning(
                    f"{self._name}: len() says that it has {promised} batches, and a pass gave {found}.\n"
                    "  What was planned by the number of steps, such as a learning rate, is off by as much."
                )
            )

    def warn_once(self, warning: Warning) -> None:
        if type(warning) not in self._told:
            self._told.add(type(warning))
            warn(warning)


class _Converted(Source):
    """A source whose batches come from elsewhere, and are checked and converted here."""

    def __init__(self, name: str, steps: int | None, transform: Transform | None):
        self._name = name
        self._transform = transform
        self._reports = _Reports(name)
        self.steps = steps

    @abc.abstractmethod
    def _raw(self, epoch: int, start: int) -> Iterator[tp.Any]:
        """What the data give, from the batch on from which it is wanted."""

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        if epoch < 0 or start < 0:
            raise ValueError(f"epochs and batches are counted from 0, got epoch={epoch} and start={start}.")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        raw = self._raw(epoch, start)
        try:
            for number in itertools.count(start):
                try:
                    value = next(raw, raw)
                    if value is raw:
                        return
                    value = value if self._transform is None else self._transform(value)
                except Exception as error:
                    error.add_note(f"Raised by the data, for batch {number} of epoch {epoch} (both counted from 0).")
                    raise
                try:
                    batch = as_batch(value)
                except (TypeError, ValueError) as error:
                    kind = TypeError if isinstance(error, TypeError) else ValueError
                    raise kind(f"{self._name}, batch {number} of epoch {epoch}: {error}") from error
                yield batch
        finally:
            raw.close()  # pyright: ignore[reportAttributeAccessIssue]: each `_raw` is a generator


class _Indexed(_Converted):
    """A source that can begin at any batch of any pass without making those before. `count` is None if it never
    ends."""

    def __init__(
        self,
        name: str,
        begin: Callable[[int, int], Iterator[tp.Any]],
        count: int | None,
        samples: int | None,
        steps: int | None,
        transform: Transform | None,
    ):
        super().__init__(name, count if steps is None else steps, transform)
        self._begin = begin
        self._count = count
        self._per_epoch = steps
        self._row: Iterator[tp.Any] | None = None
        self._row_at = 0
        self.samples = samples if steps is None else None

    def _raw(self, epoch: int, start: int) -> Iterator[tp.Any]:
        if self._per_epoch is None:
            yield from _pass(self._reports, self._begin, self._count, epoch, start)
            return
        position, end = epoch * self._per_epoch + start, (epoch + 1) * self._per_epoch
        # Workers of the last epoch go on, unless somebody broke off.
        row = self._row
        if row is None or self._row_at != position:
            row = _endless(self._reports, self._begin, self._count, position)
        self._row = None
        yield from itertools.islice(row, max(0, end - position))
        self._row, self._row_at = row, end


# Functions, since a source that keeps a generator of its own would die only when garbage is collected.
Begin = Callable[[int, int], Iterator[tp.Any]]


def _endless(reports: _Reports, begin: Begin, count: int | None, position: int) -> Iterator[tp.Any]:
    """All passes in a row, from a batch on."""
    number, position = divmod(position, count) if count else (0, position)
    while True:
        yield from _pass(reports, begin, count, number, position)
        number, position = number + 1, 0


def _pass(reports: _Reports, begin: Begin, count: int | None, number: int, start: int) -> Iterator[tp.Any]:
    found = start
    iterator = begin(number, start)
    try:
        for value in iterator:
            yield value
            found += 1
    finally:
        _close(iterator)
    if found == 0:
        raise reports.empty()
    reports.check_count(found, count)


class _Stream(_Converted):
    """A source that gives its batches in a row, with or without a state from which it goes on."""

    def __init__(
        self,
        name: str,
        data: tp.Any,
        begin: Callable[[], Iterator[tp.Any]],
        count: int | None,
        steps: int | None,
        transform: Transform | None,
        one_shot: bool,
    ):
        super().__init__(name, count if steps is None else steps, transform)
        self._data = data
        self._begin = begin
        self._count = count
        self._per_epoch = steps
        self.samples = _samples(data) if steps is None else None
        self.one_shot = one_shot
        self._iterator: Iterator[tp.Any] | None = None
        self._at = (0, 0)  # epoch and batch that come next
        self._pass = 0  # the number of the pass of the data, which is the epoch unless steps_per_epoch cuts passes
        self._in_pass: int | None = 0  # how many batches this pass has given; None if it began in the middle
        self._given = 0  # how many batches came from an iterator in all
        self._finished = False  # whether the pass is at its end
        self._wanted: dict[str, tp.Any] | None = None
        self._kept: tp.Any = None  # the state of an iterator that is gone

    def get_state(self) -> dict[str, tp.Any] | None:
        if self._wanted is not None:
            return self._wanted
        if self._iterator is not None:
            inner = self._read()
        elif self._kept is not None:
            inner = self._kept
        else:
            return None
        if inner is None:
            return None
        epoch, batch = self._at
        at = {"epoch": epoch, "batch": batch, "pass": self._pass, "finished": self._finished}
        try:
            return {**at, "state": encode(inner)}
        except TypeError as error:
            # The batches can be had all the same; whoever goes on from here is told.
            return {**at, "state": None, "why": str(error)}

    def set_state(self, state: dict[str, tp.Any] | None) -> None:
        if state is not None and not {"epoch", "batch", "pass", "finished", "state"} <= state.keys():
            raise ValueError(f"this is no state of a source: {state!r}.")
        self._wanted = state
        if not self.one_shot:
            _close(self._iterator)
            self._iterator = self._kept = None

    def _read(self) -> tp.Any:
        """The state that the iterator has, or what it iterates over."""
        for owner in (self._data, self._iterator):
            for pair in STATE_METHODS:
                if all(hasattr(owner, method) for method in pair):
                    return getattr(owner, pair[0])()
        return None

    def _raw(self, epoch: int, start: int) -> Iterator[tp.Any]:
        if self._per_epoch is None:
            yield from self._whole_pass(epoch, start)
        else:
            yield from self._part(epoch, start, self._per_epoch)

    def _whole_pass(self, epoch: int, start: int) -> Iterator[tp.Any]:
        self._go_to(epoch, start, epoch, start)
        iterator = self._iterator
        assert iterator is not None
        self._at = (epoch, start)
        try:
            for value in iterator:
                epoch, batch = self._at
                self._at = (epoch, batch + 1)
                yield value
            self._finished = True
            if self._at[1] == 0:
                raise self._reports.empty()
            self._reports.check_count(self._at[1], self._count)
        finally:
            if self._iterator is iterator and not self.one_shot:
                self._kept, self._iterator = self._read(), None
                _close(iterator)

    def _part(self, epoch: int, start: int, steps: int) -> Iterator[tp.Any]:
        """`steps` batches of an endless row of passes."""
        if self._iterator is None or self._number(*self._at) != self._number(epoch, start) or self._wanted is not None:
            self._go_to(epoch, start, 0, self._number(epoch, start))
        for batch in range(start, steps):
            value = self._next(epoch, batch)
            self._at = (epoch, batch + 1)
            yield value

    def _number(self, epoch: int, batch: int) -> int:
        """How many batches there are before this one, where passes are cut."""
        return epoch * (self._per_epoch or 0) + batch

    def _next(self, epoch: int, batch: int) -> tp.Any:
        """The next batch of this pass, or of the next one."""
        for _ in range(2):
            assert self._iterator is not None
            try:
                value = next(self._iterator)
            except StopIteration:
                if self.one_shot:
                    raise ValueError(
                        f"{self._name} is at its end: epoch {epoch} needs {self._per_epoch} batches and got {batch}; "
                        f"{self._given} were given in all.\n  Train for fewer epochs or steps_per_epoch, or give a "
                        "function that makes the iterator anew."
                    ) from None
                if self._in_pass == 0:
                    raise self._reports.empty() from None
                if self._in_pass is not None:
                    self._reports.check_count(self._in_pass, self._count)
                self._pass += 1
                self._in_pass = 0
                self._iterator = self._open(self._pass)
            else:
                self._given += 1
                self._in_pass = None if self._in_pass is None else self._in_pass + 1
                return value
        raise self._reports.empty()

    def _go_to(self, epoch: int, start: int, number: int, skipped: int) -> None:
        """Has the iterator stand before a batch, which is batch `skipped` from the beginning of pass `number` on."""
        wanted, self._wanted = self._wanted, None
        self._finished = False
        if wanted is not None and wanted["state"] is None:
            self._reports.warn_once(
                ResumptionWarning(
                    f"{self._name} has a state, which could not be saved: {wanted['why']}\n  It goes on as data "
                    f"without a state do: it begins anew, and {skipped} batches are made and dropped, to go on with "
                    f"batch {start} of epoch {epoch}."
                )
            )
            wanted = None
        if wanted is not None:
            then = wanted["epoch"], wanted["batch"]
            cut = self._per_epoch is not None
            if self._number(*then) == self._number(epoch, start) if cut else then == (epoch, start):
                self._pass, self._in_pass = wanted["pass"] if cut else epoch, None
                self._restore(decode(wanted["state"]))
                return
            if wanted["finished"] and (epoch, start) == (then[0] + 1, 0):
                _set(self._data, decode(wanted["state"]))
        if self.one_shot and self._iterator is not None:
            return  # it goes on from where it is
        self._pass, self._in_pass = number, 0
        self._iterator = self._open(number)
        if skipped == 0:
            return
        self._reports.warn_once(
            ResumptionWarning(
                f"{self._name} has no state to go on from: its first {skipped} batches are made and dropped, to go on "
                f"with batch {start} of epoch {epoch}.\n  What follows is what would have followed only if it gives "
                "the same batches each time."
            )
        )
        self._at = (0, 0)
        for dropped in range(skipped):
            if self._per_epoch is not None:
                self._next(*divmod(dropped, self._per_epoch))
            elif next(self._iterator, self) is self:
                raise ValueError(
                    f"{self._name} has {dropped} batches in epoch {epoch}, and batch {start} was asked for."
                )

    def _restore(self, state: tp.Any) -> None:
        of_data = _set(self._data, state)
        if self._iterator is None or not self.one_shot:
            self._iterator = self._open(self._pass)
        if not of_data and not _set(self._iterator, state):
            raise ValueError(f"{self._name} has no state, and one was set: it was that of other data.")

    def _open(self, number: int) -> Iterator[tp.Any]:
        """An iterator over pass `number` of the data, which is told that number where it wants to know."""
        of_batches = getattr(self._data, "batch_sampler", None)
        told: list[tp.Any] = []
        for owner in (
            self._data,
            getattr(self._data, "sampler", None),
            of_batches,
            getattr(of_batches, "sampler", None),
            getattr(self._data, "dataset", None),
        ):
            if callable(set_epoch := getattr(owner, "set_epoch", None)) and not any(owner is one for one in told):
                told.append(owner)
                set_epoch(number)
        return self._begin()


def _set(owner: tp.Any, state: tp.Any) -> bool:
    """Sets the state of what has one."""
    for pair in STATE_METHODS:
        if all(hasattr(owner, method) for method in pair):
            getattr(owner, pair[1])(state)
            return True
    return False


def _close(iterator: tp.Any) -> None:
    if callable(getattr(iterator, "close", None)):
        iterator.close()


def as_source(
    data: tp.Any,
    *,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    transform: Transform | None = None,
    single_pass: bool = False,
) -> Source:
    """Makes a `Source` of what gives batches, whichever library it is of.

    A batch is `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as a tuple, a list or an `elegy.data.Batch`; a dict or
    another named tuple is `x`. Each of the parts is an array, or a tuple, list or dict of arrays; numbers in nested
    lists are an array. Whatever has `__array__` or `__dlpack__` is one, such as a tensor of PyTorch or TensorFlow, and
    becomes a NumPy array of the dtype that JAX computes with.

    **Arguments:**

    - `data`: one of
        - an `elegy.data.DataLoader`;
        - a list of batches, or any object whose `__iter__` gives a new iterator each time, such as a `DataLoader` of
          PyTorch, a dataset of `tf.data`, and a `DataLoader`, `MapDataset` or `IterDataset` of Grain;
        - a function without arguments that gives an iterator, such as a generator function;
        - an iterator, such as a generator, which goes on from epoch to epoch and needs `steps_per_epoch`;
        - a `Dataset` or `IterableDataset` of Hugging Face, which needs `batch_size`;
        - a `Source`, which is returned as it is.
    - `steps_per_epoch`: how many batches an epoch has. The next one goes on with the batches that follow, and at the
      end of the data the next pass begins. None means that an epoch is one pass.
    - `batch_size`: how many samples make a batch, for the datasets that give samples; an error for all others.
    - `transform`: a function that is called with each batch before it is taken apart, for instance
      `lambda batch: (batch["image"], batch["label"])`.
    - `single_pass`: whether one pass is all that is wanted. Then an iterator needs no `steps_per_epoch`, and data of
      which each pass begins anew give at most so many batches, and none of them twice.

    **Returns:** a `Source`. Where the data can begin anywhere (lists, `elegy.data.DataLoader`, a `MapDataset` of
    Grain, a `Dataset` of Hugging Face), a pass begins at any batch at no cost. Else a state is used where there is
    one (`get_state` and `set_state`, or `state_dict` and `load_state_dict`), and where there is none, or none that
    can be saved, batches are made and dropped, of which a `ResumptionWarning` tells.

    **Raises:** `TypeError` for what gives no batches, `ValueError` for what has no end, or cannot be repeated,
    without `steps_per_epoch`. While it is gone through: `TypeError` or `ValueError` for a batch that is none, with
    its number and the path of the array; `ValueError` if there are too few batches. An error of the data themselves
    passes through, with a note that says for which batch it was.

    ```python
    def squares():
        for start in range(0, 100, 10):
            x = np.arange(start, start + 10, dtype=np.float32)
            yield x, x**2


    source = elegy.data.as_source(squares)
    assert [batch.size for batch in source.batches()] == [10] * 10

    endless = elegy.data.as_source(squares, steps_per_epoch=4)
    assert [batch.x[0] for batch in endless.batches(epoch=0)] == [0, 10, 20, 30]
    assert [batch.x[0] for batch in endless.batches(epoch=1)] == [40, 50, 60, 70]
    assert [batch.x[0] for batch in endless.batches(epoch=2)] == [80, 90, 0, 10]
    ```
    """
    for name, value in (("steps_per_epoch", steps_per_epoch), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if isinstance(data, Source):
        if batch_size is not None or transform is not None or steps_per_epoch not in (None, data.steps):
            raise ValueError("a Source is taken as it is: give steps_per_epoch and transform where it is made.")
        return data
    if steps_per_epoch is None or not single_pass or isinstance(data, Iterator):
        return _source(data, steps_per_epoch, batch_size, transform, single_pass, may_be_endless=False)
    return First(_source(data, None, batch_size, transform, single_pass, may_be_endless=True), steps_per_epoch)


def _source(
    data: tp.Any,
    steps_per_epoch: int | None,
    batch_size: int | None,
    transform: Transform | None,
    single_pass: bool,
    may_be_endless: bool,
) -> Source:
    name = _name(data)
    if _gives_samples(data):
        return _of_columns(name, data, batch_size, steps_per_epoch, transform)
    if batch_size is not None:
        raise ValueError(f"batch_size={batch_size}, but {name} gives batches already, of its own size.")
    if isinstance(data, DataLoader):
        return _Indexed(name, data.batches, len(data), data.samples, steps_per_epoch, transform)
    _refuse(name, data)
    if isinstance(data, Sequence):
        begin = lambda _, start: (data[number] for number in range(start, len(data)))  # noqa: E731
        samples = _in_list(data) if isinstance(data, list) and transform is None else None
        return _Indexed(name, begin, len(data), samples, steps_per_epoch, transform)
    one_shot = isinstance(data, Iterator)
    count = _count(data)
    endless = count == np.inf and not may_be_endless
    if steps_per_epoch is None and (endless or (one_shot and not single_pass)):
        why = "can be gone through once only" if one_shot else "has no end"
        remedy = ", or a function without arguments that makes the iterator anew for each epoch" * one_shot
        raise ValueError(f"{name} {why}: give steps_per_epoch{remedy}.")
    finite = None if count is None or count == np.inf else int(count)
    if all(hasattr(data, attribute) for attribute in ("to_iter_dataset", "__getitem__", "__len__")):
        return _Indexed(name, lambda _, start: iter(data[start:]), finite, None, steps_per_epoch, transform)
    if hasattr(data, "__iter__"):
        return _Stream(name, data, lambda: iter(data), finite, steps_per_epoch, transform, one_shot)
    return _Stream(name, None, lambda: iter(data()), None, steps_per_epoch, transform, False)


def _name(data: tp.Any) -> str:
    """What the data are called in messages."""
    if inspect.isgenerator(data):
        return f"the generator {data.__name__}"
    if inspect.isroutine(data):
        return f"the function {data.__name__}"
    return f"the {type(data).__name__}"


def _refuse(name: str, data: tp.Any) -> None:
    """Refuses what gives no batches."""
    if hasattr(data, "toarray"):
        raise TypeError(f"{name} is a sparse matrix: give it by .toarray(), or batches that are made so.")
    if hasattr(data, "__array__") or isinstance(data, (tuple, Mapping, str, bytes)):
        raise TypeError(
            f"{name} is no source of batches: give whole arrays as such, as in fit(x, y, batch_size=32), and batches "
            "in a list, from an iterator, or from a loader."
        )
    if hasattr(data, "__iter__"):
        return
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        raise TypeError(f"{name} gives samples: give elegy.data.DataLoader({type(data).__name__}(...), batch_size=32).")
    if not callable(data):
        raise TypeError(f"{name} gives no batches: it has no __iter__, and is no function that makes an iterator.")
    try:
        inspect.signature(data).bind()
    except TypeError as error:
        raise TypeError(f"{name} is called without arguments to make an iterator: {error}.") from None
    except ValueError:
        pass  # a function that is not written in Python, and says nothing about its arguments


def _count(data: tp.Any) -> float | int | None:
    """How many batches there are: `np.inf` if there is no end, None if nobody knows."""
    if callable(getattr(data, "cardinality", None)):  # a dataset of tf.data
        count = int(data.cardinality())
        return np.inf if count == -1 else None if count < 0 else count
    try:
        count = len(data)
    except (TypeError, NotImplementedError):
        return None
    return np.inf if count > MOST_BATCHES else count


def _in_list(batches: list[tp.Any]) -> int | None:
    """How many samples a list of batches has; None if something is no batch, of which its error will tell."""
    try:
        return sum(len(jax.tree.leaves(batch)[0]) for batch in batches)
    except (IndexError, TypeError):
        return None


def _samples(data: tp.Any) -> int | None:
    """How many samples a pass of a loader of PyTorch has; None if that is not said, or it is something else."""
    # With a batch_sampler of one's own it has no batch_size itself.
    sizes = data if getattr(data, "batch_size", None) is not None else getattr(data, "batch_sampler", None)
    size, drops = getattr(sizes, "batch_size", None), getattr(sizes, "drop_last", None)
    try:
        count = len(getattr(sizes, "sampler", None))  # type: ignore[arg-type]
    except TypeError:  # also of a sampler that has no length
        return None
    if not isinstance(size, int) or not isinstance(drops, bool):
        return None
    return count - count % size if drops else count


def _gives_samples(data: tp.Any) -> bool:
    """Whether it is a dataset of Hugging Face, of which iteration gives samples, and `iter(batch_size)` batches."""
    return hasattr(data, "column_names") and callable(getattr(data, "iter", None))


def _of_columns(
    name: str, data: tp.Any, batch_size: int | None, steps: int | None, transform: Transform | None
) -> Source:
    if batch_size is None:
        raise ValueError(f"{name} gives samples: give batch_size.")
    if not hasattr(data, "__len__"):
        return _Stream(name, data, lambda: iter(data.iter(batch_size=batch_size)), None, steps, transform, False)
    size = len(data)

    def begin(_: int, start: int) -> Iterator[tp.Any]:
        return (data[first : first + batch_size] for first in range(start * batch_size, size, batch_size))

    return _Indexed(name, begin, -(-size // batch_size), size, steps, transform)
