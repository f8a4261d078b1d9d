"""`DataLoader`: a dataset in batches, made by workers or not."""

from __future__ import annotations

import itertools
import numbers
import threading
import typing as tp
from collections.abc import Callable, Iterator

import jax
import numpy as np

from elegy.data.stacking import stack
from elegy.data.workers import Make, Processes, Threads

# What a sample may draw from, while it is made.
current = threading.local()
WORKER_TYPES = ("thread", "process", "spawn", "forkserver")


class DataLoader:
    """The samples of a dataset in batches, in an order that depends on `seed` and the number of the pass alone.

    Each pass over the loader is the next epoch; `batches` gives any epoch, from any batch on, and makes nothing of
    what comes before it. So training goes on exactly where it was broken off. Whatever the workers, the batches are
    the same, bit for bit, as long as a sample depends on its number only.

    Samples are arrays, numbers, nested lists of numbers, or tuples, dicts and named tuples of these, all alike; a batch
    has the same structure, with NumPy arrays of the dtypes that JAX computes with.

    **Arguments:**

    - `dataset`: an object with `__getitem__` and `__len__`, such as an `elegy.data.Dataset` or a list.
    - `batch_size`: how many samples make a batch.
    - `n_workers`: how many workers make batches ahead; with 0 a batch is made as it is asked for.
    - `shuffle`: whether each epoch has an order of its own.
    - `worker_type`: `"thread"` for threads, which are right where samples are read from files or made by NumPy, PIL and
      the like, which let other threads run. `"process"` for processes, which take longer to start, and are right for
      samples that are made in Python. They get a copy of the dataset, by pickle, when the first pass begins, import the
      main program again, so that it must have `if __name__ == "__main__":`, and compute on the CPU if they use JAX.
      `"spawn"` and `"forkserver"` say how processes start; `"process"` is `"spawn"`. `"fork"` is refused: JAX has
      threads, whose locks a fork would copy as they are held, and then wait for ever.
    - `seed`: of the order.
    - `drop_remainder`: whether a last batch that would be shorter than the others is left out.
    - `timeout`: after how many seconds of waiting for a batch of a worker there is a `TimeoutError`. Without workers it
      says nothing.
    - `prefetch`: how many batches workers may have under way or ready, together; by default two for each. Without
      workers it says nothing.
    - `batch_fn`: a function that makes a batch of a list of samples, instead of stacking them.

    **Raises:** `ValueError` for arguments out of range, and for samples that are not alike. While it is gone through,
    an error of the dataset passes through, with a note that has the number of the sample; `TimeoutError`, and
    `RuntimeError` for a process that died.

    The threads of a pass end with it, also if it is broken off. Processes wait for the next pass, and end with the
    loader, when `close` is called, or when a pass is broken off.

    ```python
    x = np.arange(10, dtype=np.float32)
    dataset = [(x[i], x[i] ** 2) for i in range(10)]
    loader = elegy.data.DataLoader(dataset, batch_size=4, shuffle=True, n_workers=2)
    assert [len(batch[0]) for batch in loader] == [4, 4, 2]

    whole = list(loader.batches(epoch=3))
    (last,) = loader.batches(epoch=3, start=2)
    assert (last[0] == whole[2][0]).all()
    ```
    """

    def __init__(
        self,
        dataset: tp.Any,
        batch_size: int,
        n_workers: int = 0,
        shuffle: bool = False,
        worker_type: str = "thread",
        seed: int = 0,
        drop_remainder: bool = False,
        timeout: float | int | None = None,
        prefetch: int | None = None,
        batch_fn: Callable[[list[tp.Any]], tp.Any] | None = None,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("n_workers", n_workers, 0),
            ("seed", seed, 0),
            ("prefetch", prefetch, 1),
        ):
            if value is None and name == "prefetch":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{name} must be an integer, got {value!r}.")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be positive, got {timeout}.")
        if worker_type == "fork":
            raise ValueError(
                'worker_type="fork" would hang: JAX has threads, and a fork copies the locks that they hold.\n  Write '
                '"process", which starts a new Python for each worker, or "thread".'
            )
        if worker_type not in WORKER_TYPES:
            raise ValueError(f"worker_type must be one of {', '.join(WORKER_TYPES)}, got {worker_type!r}.")
        for method in ("__getitem__", "__len__"):
            if not hasattr(dataset, method):
                raise TypeError(
                    f"a dataset has __getitem__ and __len__, and a {type(dataset).__name__} has no {method}."
                )
        self.dataset = dataset
        self.batch_size = batch_size
        self.n_workers = n_workers
        self.shuffle = shuffle
        self.worker_type = worker_type
        self.seed = seed
        self.drop_remainder = drop_remainder
        self.timeout = None if timeout is None else float(timeout)
        self.prefetch = 2 * n_workers if prefetch is None else prefetch
        self.batch_fn = batch_fn
        self._epoch = 0
        self._idle: Processes | None = None

    def __len__(self) -> int:
        """How many batches a pass has."""
        size = len(self.dataset)
        return size // self.batch_size if self.drop_remainder else -(-size // self.batch_size)

    @property
    def samples(self) -> int:
        """How many samples a pass has."""
        return len(self) * self.batch_size if self.drop_remainder else len(self.dataset)

    def __iter__(self) -> Iterator[tp.Any]:
        """The batches of the next epoch, the first time those of epoch 0."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self.batches(epoch)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tp.Any]:
        """The batches of an epoch, from a batch on, both counted from 0."""
        if epoch < 0 or start < 0:
            raise ValueError(f"epochs and batches are counted from 0, got epoch={epoch} and start={start}.")
        make = _Maker(self.dataset, self.batch_size, self.shuffle, self.seed, self.batch_fn)
        numbers = range(start, len(self))
        if self.n_workers == 0 or not numbers:
            return (make(epoch, number) for number in numbers)
        return self._by_workers(make, epoch, numbers)

    def _by_workers(self, make: _Maker, epoch: int, numbers: range) -> Iterator[tp.Any]:
        pool = self._pool(make)
        finished = False
        try:
            ahead = iter(numbers)
            for number in itertools.islice(ahead, self.prefetch):
                pool.submit(epoch, number)
            for number in numbers:
                batch = pool.result(epoch, number, self.timeout)
                for following in itertools.islice(ahead, 1):
                    pool.submit(epoch, following)
                yield batch
            finished = True
        finally:
            if isinstance(pool, Threads):
                pool.close(self.timeout)
            elif finished and self._idle is None:
                self._idle = pool
            else:
                pool.close()

    def _pool(self, make: Make) -> Threads | Processes:
        if self.worker_type == "thread":
            return Threads(make, self.n_workers)
        pool, self._idle = self._idle, None
        if pool is None:
            try:
                return Processes(make, self.n_workers, "spawn" if self.worker_type == "process" else self.worker_type)
            except Exception as error:
                error.add_note(
                    "The dataset and batch_fn are pickled for worker processes: their classes and functions must stand "
                    'at the top of a file.\nworker_type="thread" needs no copies.'
                )
                raise
        return pool

    def close(self) -> None:
        """Ends processes that wait for the next pass, which would start new ones."""
        pool, self._idle = self._idle, None
        if pool is not None:
            pool.close()


def sample_rng() -> np.random.Generator:
    """A generator of random numbers for the sample that is being made, for instance to augment it.

    Within `__getitem__` of the dataset of an `elegy.data.DataLoader` it depends on the seed of the loader, the epoch
    and the number of the sample alone: the same draws come with any workers, and when training goes on after it was
    broken off. Elsewhere it is seeded by chance.

    **Returns:** a generator of NumPy. Each call gives it anew, at its beginning.

    ```python
    class Noisy(elegy.data.Dataset):
        def __getitem__(self, index):
            return elegy.data.sample_rng().normal(index, 0.1)

        def __len__(self):
            return 10


    loader = elegy.data.DataLoader(Noisy(), batch_size=5)
    threads = elegy.data.DataLoader(Noisy(), batch_size=5, n_workers=2)
    assert (next(loader.batches(epoch=1)) == next(threads.batches(epoch=1))).all()
    ```
    """
    return np.random.default_rng(getattr(current, "draw", None))


class _Maker:
    """Makes batches by their numbers. Worker processes have a copy."""

    def __init__(
        self,
        dataset: tp.Any,
        batch_size: int,
        shuffle: bool,
        seed: int,
        batch_fn: Callable[[list[tp.Any]], tp.Any] | None,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.batch_fn = batch_fn
        self.x64 = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]: a context of this thread
        self._order: tuple[int, np.ndarray] | None = None  # of the epoch that was asked for last

    def __call__(self, epoch: int, number: int, at_sample: Callable[[int], None] | None = None) -> tp.Any:
        indices = self._indices(epoch, number)
        samples = []
        with jax.enable_x64(self.x64):
            try:
                for index in indices:
                    if at_sample is not None:
                        at_sample(index)
                    current.draw = (self.seed, epoch, 1, index)
                    samples.append(self._sample(index))
            except Exception as error:
                error.add_note(f"Raised by the dataset, for sample {indices[len(samples)]}.")
                raise
            finally:
                current.draw = None
            return stack(samples, indices) if self.batch_fn is None else self.batch_fn(samples)

    def _sample(self, index: int) -> tp.Any:
        try:
            return self.dataset[index]
        except StopIteration as error:  # which would end a generator that it passes through
            raise RuntimeError("the dataset raised StopIteration: is an iterator in it at its end?") from error

    def _indices(self, epoch: int, number: int) -> list[int]:
        first = number * self.batch_size
        size = len(self.dataset)
        if not self.shuffle:
            return list(range(first, min(first + self.batch_size, size)))
        known = self._order
        if known is None or known[0] != epoch:
            known = self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(size)
        return known[1][first : first + self.batch_size].tolist()
