"""`DataLoader`: batches in the order of a plain implementation, whoever makes them."""

import collections
import contextlib
import gc
import itertools
import multiprocessing
import re
import threading
import weakref

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from tests.data.datasets import Failing, Oddly, Process, Squares, Stuck, Unreadable
from tests.helpers import assert_same
from tests.model.test_model import jaxtyping_off

Point = collections.namedtuple("Point", "a b")


def reference(size, batch_size, shuffle, seed, drop_remainder, epoch):
    """The numbers of the samples of each batch."""
    order = np.random.default_rng([seed, epoch]).permutation(size) if shuffle else np.arange(size)
    parts = [order[first : first + batch_size].tolist() for first in range(0, size, batch_size)]
    return [part for part in parts if len(part) == batch_size or not drop_remainder]


def square_batch(indices):
    x = np.stack([np.full([2, 3], index, np.float32) for index in indices])
    n = np.asarray(indices, np.int32)
    return {"x": x, "n": n, "pair": (x.sum(axis=(1, 2)), np.stack([n, n + 1], axis=1))}


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("elegy-data")]


@contextlib.contextmanager
def nothing_left():
    """Fails if threads or processes are left behind."""
    yield
    assert our_threads() == []
    assert [process for process in multiprocessing.active_children() if process.name.startswith("elegy-data")] == []


@hypothesis.given(
    size=st.integers(0, 20),
    batch_size=st.integers(1, 7),
    n_workers=st.integers(0, 3),
    prefetch=st.none() | st.integers(1, 5),
    shuffle=st.booleans(),
    drop_remainder=st.booleans(),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_batches_are_those_of_a_plain_implementation(
    size, batch_size, n_workers, prefetch, shuffle, drop_remainder, seed, epoch, data
):
    loader = elegy.data.DataLoader(
        Squares(size),
        batch_size,
        n_workers,
        shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        prefetch=prefetch,
    )
    expected = reference(size, batch_size, shuffle, seed, drop_remainder, epoch)
    with nothing_left():
        found = list(loader.batches(epoch))
    assert len(loader) == len(found) == len(expected)
    assert loader.samples == sum(map(len, expected))
    for (batch, drawn), indices in zip(found, expected, strict=True):
        assert_same(batch, square_batch(indices))
        rngs = [np.random.default_rng([seed, epoch, 1, index]) for index in indices]
        assert_same(drawn, np.asarray([rng.normal() for rng in rngs], np.float32))
    start = data.draw(st.integers(0, len(expected) + 1))
    assert_same(list(loader.batches(epoch, start)), found[start:])


def test_each_pass_is_the_next_epoch():
    loader = elegy.data.DataLoader(Squares(7), 3, shuffle=True, seed=5)
    for epoch in range(3):
        assert [batch["n"].tolist() for batch, _ in loader] == reference(7, 3, True, 5, False, epoch)
    assert reference(7, 3, True, 5, False, 0) != reference(7, 3, True, 5, False, 1)


def test_what_is_skipped_is_not_made():
    made = []

    class Watched(elegy.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            made.append(index)
            return index

    list(elegy.data.as_source(elegy.data.DataLoader(Watched(), 3)).batches(4, 2))
    assert made == [6, 7, 8, 9]


def test_workers_go_on_over_epochs_that_are_cut():
    threads = set()

    class Watched:
        def __len__(self):
            return 12

        def __getitem__(self, index):
            threads.add(threading.current_thread())
            return index

    loader = elegy.data.DataLoader(Watched(), 1, n_workers=1, prefetch=4)
    source = elegy.data.as_source(loader, steps_per_epoch=4)
    with nothing_left():
        assert [[int(batch.x[0]) for batch in source.batches(epoch)] for epoch in range(2)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]
        gc.disable()
        try:
            del source
            assert our_threads() == []
        finally:
            gc.enable()
    assert len(threads) == 1


def test_a_dataset_needs_both_methods():
    with pytest.raises(TypeError, match="abstract"):
        elegy.data.Dataset()  # pyright: ignore[reportAbstractUsage]
    with pytest.raises(TypeError, match="a dataset has __getitem__ and __len__, and a int has no __getitem__"):
        elegy.data.DataLoader(3, 2)
    with pytest.raises(TypeError, match="a generator has no __getitem__"):
        elegy.data.DataLoader((i for i in range(3)), 2)


# --- stacking


@pytest.mark.parametrize(
    "samples, expected",
    [
        ([1, 2], np.asarray([1, 2], np.int32)),
        ([1.5, 2.5], np.asarray([1.5, 2.5], np.float32)),
        ([True, False], np.asarray([True, False])),
        ([np.float64(1), np.float64(2)], np.asarray([1, 2], np.float32)),
        ([[1, 2], [3, 4]], np.asarray([[1, 2], [3, 4]], np.int32)),
        (
            [(1, [np.ones(2), 2.0])] * 2,
            (np.asarray([1, 1], np.int32), [np.ones([2, 2], np.float32), np.float32([2, 2])]),
        ),
        ([Point(1, {"k": 2})] * 2, Point(np.asarray([1, 1], np.int32), {"k": np.asarray([2, 2], np.int32)})),
        ([{"b": 1, "a": 2}] * 2, {"b": np.asarray([1, 1], np.int32), "a": np.asarray([2, 2], np.int32)}),
        ([(1, None)] * 2, (np.asarray([1, 1], np.int32), None)),
        ([jnp.ones(2, jnp.bfloat16)] * 2, np.ones([2, 2], jnp.bfloat16)),
    ],
)
def test_samples_are_stacked(samples, expected):
    (batch,) = elegy.data.DataLoader(samples, 2)
    assert_same(batch, expected)


@pytest.mark.parametrize(
    "samples, error, message",
    [
        (
            [1, 2.0],
            ValueError,
            "sample: the samples of a batch must be alike, and dtype is int32 in sample 0 and float32 in",
        ),
        ([np.ones(2), np.ones(3)], ValueError, "shape is (2,) in sample 0 and (3,) in sample 1."),
        ([{"a": 1}, {"b": 1}], ValueError, "the structure is dict of a in sample 0 and dict of b in sample 1."),
        ([(1, {"k": np.ones(2)}), (1, {"k": 3.0})], ValueError, "sample[1]['k']: the samples of a batch must be alike"),
        (
            [(1, 2), (1, 2, 3)],
            ValueError,
            "the structure is tuple of 0, 1 in sample 0 and tuple of 0, 1, 2 in sample 1",
        ),
        ([1, None], ValueError, "the structure is int in sample 0 and NoneType in sample 1"),
        ([Point(1, "a"), Point(1, "b")], TypeError, "sample.b is a str"),
        ([object()] * 2, TypeError, "sample is a object: give an array"),
    ],
)
def test_samples_that_cannot_be_stacked(samples, error, message):
    with pytest.raises(error, match=re.escape(message)):
        list(elegy.data.DataLoader(samples, 2))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_with_x64_dtypes_stay(n_workers):
    with jax.enable_x64(True):
        (batch,) = elegy.data.DataLoader([np.ones(2), np.zeros(2)], 2, n_workers)
    assert batch.dtype == np.float64


@pytest.mark.parametrize("n_workers", [0, 2])
def test_batch_fn_makes_the_batch(n_workers):
    loader = elegy.data.DataLoader([[1], [1, 2], [3]], 2, n_workers, batch_fn=lambda samples: [len(s) for s in samples])
    assert list(loader) == [[1, 2], [1]]


# --- arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"n_workers": -1}, "n_workers must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"worker_type": "greenlet"}, "worker_type must be one of thread, process, spawn, forkserver, got 'greenlet'"),
        ({"worker_type": "fork"}, "JAX has threads, and a fork copies the locks that they hold"),
    ],
    ids=str,
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        elegy.data.DataLoader([1], **{"batch_size": 1, **arguments})
    loader = elegy.data.DataLoader([1], 1)
    for position in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="counted from 0"):
            loader.batches(*position)


@pytest.mark.parametrize("value", ["7", 2.0, True, None])
def test_numbers_that_are_none(value):
    with jaxtyping_off(), pytest.raises(TypeError, match=f"batch_size must be an integer, got {value!r}"):
        elegy.data.DataLoader([1], value)


# --- threads


class Gated:
    """Samples that wait until a gate is opened, and say that they have begun."""

    def __init__(self, size, gates=()):
        self.size = size
        self.begun = [threading.Event() for _ in range(size)]
        self.gates = {index: threading.Event() for index in gates}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.begun[index].set()
        if index in self.gates:
            self.gates[index].wait()
        return index


def test_a_slow_batch_keeps_its_place():
    data = Gated(6, gates=[0])
    batches = elegy.data.DataLoader(data, 1, n_workers=2, prefetch=6).batches()
    opener = threading.Thread(target=lambda: [data.begun[5].wait(), data.gates[0].set()])
    opener.start()
    assert [int(batch[0]) for batch in batches] == list(range(6))
    opener.join()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_workers_do_not_run_further_ahead_than_prefetch(prefetch):
    data = Gated(10)
    loader = elegy.data.DataLoader(data, 1, n_workers=2, prefetch=prefetch)
    batches = loader.batches()
    for number in range(10 - prefetch):
        assert int(next(batches)[0]) == number
        assert data.begun[number + prefetch].wait()
        assert not any(event.is_set() for event in data.begun[number + prefetch + 1 :])
    with nothing_left():
        batches.close()


def test_breaking_off_ends_the_threads():
    data = Gated(100)
    with nothing_left():
        for _ in elegy.data.DataLoader(data, 2, n_workers=3):
            break
    assert not data.begun[30].is_set()
    with nothing_left():
        batches = elegy.data.as_source(elegy.data.DataLoader(data, 2, n_workers=3)).batches()
        next(batches)
        assert our_threads()
        del batches


def maker(data, size):
    def make(epoch, number, at_sample):
        for index in range(size):
            at_sample(index)
            data[index]

    return make


def test_threads_end_within_a_batch():
    data = Gated(100, gates=[1])
    loader = elegy.data.DataLoader(data, 50, n_workers=1)
    pool = loader._pool(maker(data, 50))
    pool.submit(0, 0)
    data.begun[1].wait()
    opener = threading.Thread(target=data.gates[1].set)
    pool._closed.set()
    opener.start()
    with nothing_left():
        pool.close()
    assert data.begun[1].is_set() and not data.begun[2].is_set()
    opener.join()


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_errors_come_in_order_with_the_number_of_the_sample(n_workers):
    loader = elegy.data.DataLoader(Failing(12, fails_at=7), 3, n_workers)
    batches = elegy.data.as_source(loader).batches(epoch=1)
    assert [batch.x.tolist() for batch in itertools.islice(batches, 2)] == [[0, 1, 2], [3, 4, 5]]
    with nothing_left(), pytest.raises(KeyError, match="no such file") as raised:
        next(batches)
    assert raised.value.__notes__ == [
        "Raised by the dataset, for sample 7.",
        "Raised by the data, for batch 2 of epoch 1 (both counted from 0).",
    ]
    assert raised.traceback[-1].name == "__getitem__"


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_dataset_that_raises_stop_iteration_is_not_at_its_end(n_workers):
    class Ended:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return next(iter([] if index == 5 else [index]))

    with pytest.raises(RuntimeError, match="the dataset raised StopIteration") as raised:
        list(elegy.data.DataLoader(Ended(), 4, n_workers))
    assert raised.value.__notes__ == ["Raised by the dataset, for sample 5."]


def test_a_thread_that_takes_too_long():
    data = Gated(4, gates=[1])
    batches = elegy.data.DataLoader(data, 2, n_workers=1, timeout=0.01).batches(3)
    with pytest.raises(TimeoutError, match=r"batch 0 of epoch 3 was not there after 0.01 seconds: (no|a) worker "):
        next(batches)
    data.gates[1].set()
    for thread in our_threads():
        thread.join()


def test_the_time_out_says_the_sample():
    data = Gated(4, gates=[1])
    loader = elegy.data.DataLoader(data, 2, n_workers=1)
    pool = loader._pool(maker(data, 2))
    pool.submit(0, 0)
    data.begun[1].wait()
    with pytest.raises(TimeoutError, match="a worker is at sample 1"):
        pool.result(0, 0, 0.01)
    data.gates[1].set()
    pool.close()


def test_a_loader_dies_with_its_last_reference():
    loader = elegy.data.DataLoader(Squares(10), 2, n_workers=2)
    batches = iter(loader)
    next(batches)
    reference = weakref.ref(loader)
    gc.disable()
    try:
        with nothing_left():
            del loader, batches
            assert reference() is None
    finally:
        gc.enable()


def test_draws_outside_of_a_loader_come_by_chance():
    assert elegy.data.sample_rng().integers(2**60) != elegy.data.sample_rng().integers(2**60)


# --- processes


def process_loader(dataset, batch_size=2, n_workers=2, **kwargs):
    return elegy.data.DataLoader(dataset, batch_size, n_workers, worker_type="process", **kwargs)


def test_processes_give_the_same_batches_and_stay_for_the_next_pass():
    plain = elegy.data.DataLoader(Squares(9), 2, shuffle=True, seed=3)
    loader = process_loader(Squares(9), shuffle=True, seed=3, timeout=1000, prefetch=3)
    with nothing_left():
        for epoch in range(2):
            assert_same(list(loader), list(plain.batches(epoch)))
            workers = {process.pid for process in multiprocessing.active_children()}
            assert len(workers) == 2
        assert_same(list(loader.batches(1, 3)), list(plain.batches(1, 3)))
        assert workers == {process.pid for process in multiprocessing.active_children()}
        for _ in loader:
            break
        assert_same(list(loader.batches(0, 4)), list(plain.batches(0, 4)))
        loader.close()
        loader.close()


def test_processes_end_with_the_loader():
    with nothing_left():
        loader = process_loader(Process(), n_workers=1, batch_size=8)
        (batch,) = loader
        assert set(batch.tolist()) == {process.pid for process in multiprocessing.active_children()}
        del loader


def test_errors_of_a_process():
    batches = process_loader(Failing(8, fails_at=3), n_workers=1).batches()
    assert next(batches).tolist() == [0, 1]
    with nothing_left(), pytest.raises(KeyError, match="no such file") as raised:
        next(batches)
    first, second = raised.value.__notes__
    assert first == "Raised by the dataset, for sample 3."
    assert second.startswith("In a worker process:\nTraceback") and 'raise KeyError("no such file")' in second


def test_errors_that_cannot_be_pickled():
    with nothing_left(), pytest.raises(RuntimeError, match="Odd: 1") as raised:
        next(process_loader(Oddly(), n_workers=1).batches())
    assert "raise Odd(1, 2)" in raised.value.__notes__[0]


def test_a_process_that_dies():
    batches = process_loader(Failing(8, exits_at=3), n_workers=1).batches()
    assert next(batches).tolist() == [0, 1]
    with nothing_left(), pytest.raises(RuntimeError, match=r"batch 1 of epoch 0 died at sample 3 \(exit code 3\)\.$"):
        next(batches)


def test_a_process_that_takes_too_long():
    batches = process_loader(Stuck(), n_workers=1, timeout=0.01).batches()
    with nothing_left(), pytest.raises(TimeoutError, match="batch 0 of epoch 0 was not there after 0.01 seconds"):
        next(batches)


def test_a_dataset_that_a_process_cannot_read():
    with nothing_left(), pytest.raises(OSError, match="the archive is closed") as raised:
        next(process_loader(Unreadable(), n_workers=1).batches())
    assert "In a worker process:" in raised.value.__notes__[0]


def test_a_dataset_that_cannot_be_pickled():
    with nothing_left(), pytest.raises((TypeError, AttributeError), match="pickle") as raised:
        next(process_loader([lambda: None], n_workers=1).batches())
    assert 'worker_type="thread" needs no copies.' in raised.value.__notes__[0]
