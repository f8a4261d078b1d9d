"""`prefetch`: batches ahead of time, in memory of their own."""

import gc
import itertools
import threading
import weakref

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import elegy
from elegy.data import prefetching
from tests.helpers import assert_same


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "elegy-prefetch"]


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    assert threads() == []


def aligned(size):
    """An array at an address that JAX's CPU takes as it is."""
    memory = np.zeros(size + 16, np.float32)
    offset = -memory.ctypes.data % 64 // 4
    return memory[offset : offset + size]


def refilled(buffer, count=20):
    """A source that writes all its batches to one array."""
    for number in range(count):
        buffer[:] = number
        yield {"x": buffer, "y": (buffer[:3],)}


def test_jax_does_share_memory_on_the_cpu():
    buffer = aligned(256)
    array = jax.block_until_ready(jax.device_put(buffer))
    buffer[:] = 1
    assert (np.asarray(array) == 1).all(), "if JAX copies now, `place` need not"


@pytest.mark.parametrize("size", [1, 2, 30])
@pytest.mark.parametrize(
    "buffer", [aligned(256), aligned(1 << 18), aligned(1 << 18)[1:]], ids=["", "large", "unaligned"]
)
def test_batches_of_one_buffer_keep_their_values(size, buffer):
    found = list(elegy.data.prefetch(refilled(buffer), size))
    assert len(found) == 20
    for number, batch in enumerate(found):
        assert_same(batch, {"x": np.full_like(buffer, number), "y": (np.full([3], number, np.float32),)})
        assert isinstance(batch["x"], jax.Array)


def test_sources_of_one_buffer_too():
    def batches():
        for batch in refilled(buffer):
            yield batch["x"], batch["x"]

    buffer = aligned(64)
    source = elegy.data.as_source(batches)
    for number, batch in enumerate(elegy.data.prefetch(source.batches())):
        assert isinstance(batch, elegy.data.Batch) and batch.sample_weight is None
        assert (batch.x == number).all() and (batch.y == number).all()


def test_a_device_that_copies_is_waited_for(monkeypatch):
    """As on a GPU: nothing is copied on the host, and the next batch is asked for when the last one is there."""
    events = []
    monkeypatch.setattr(prefetching, "COPYING_PLATFORMS", ("cpu",))
    real_put, real_wait = jax.device_put, jax.block_until_ready
    monkeypatch.setattr(jax, "device_put", lambda value, device: (events.append(value), real_put(value, device))[1])
    monkeypatch.setattr(jax, "block_until_ready", lambda value: (events.append("there"), real_wait(value))[1])
    batches = [np.ones(3, np.float32), np.zeros(3, np.float32)]

    def source():
        for batch in batches:
            events.append("asked")
            yield batch

    list(elegy.data.prefetch(source()))
    assert [event if isinstance(event, str) else id(event) for event in events] == [
        *("asked", id(batches[0]), "there"),
        *("asked", id(batches[1]), "there"),
    ]


def test_arrays_go_where_they_are_wanted():
    batch = np.zeros([8, 2], np.float32), np.zeros([8], np.int32)
    device = jax.devices()[3]
    for x in elegy.data.prefetch([batch], device=device):
        assert x[0].devices() == x[1].devices() == {device}
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    for x in elegy.data.prefetch([batch], device=sharding):
        assert x[0].sharding.is_equivalent_to(sharding, 2) and x[1].sharding.is_equivalent_to(sharding, 1)
    for x in elegy.data.prefetch([batch], device=(device, None)):
        assert x[0].devices() == {device} and x[1].devices() == {jax.devices()[0]}


def test_contexts_of_the_caller_hold_in_the_thread():
    device = jax.devices()[2]
    with jax.enable_x64(True), jax.default_device(device):
        ahead = elegy.data.prefetch([np.zeros(3)])
    (batch,) = ahead
    assert batch.dtype == np.float64 and batch.devices() == {device}


def test_arrays_of_jax_that_are_there_stay():
    x = jax.numpy.ones(3)
    (found,) = elegy.data.prefetch([x])
    assert found is x or found.unsafe_buffer_pointer() == x.unsafe_buffer_pointer()


class Counted:
    """An iterator that says how many batches it has made."""

    def __init__(self, size, fails_at=None):
        self.size = size
        self.fails_at = fails_at
        self.number = 0
        self.made = [threading.Event() for _ in range(size)]
        self.threads = set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.current_thread().name)
        if self.number == self.fails_at:
            raise KeyError("lost")
        if self.number == self.size:
            raise StopIteration
        self.number += 1
        self.made[self.number - 1].set()
        return np.full(2, self.number - 1, np.float32)


@pytest.mark.parametrize("size", [1, 4])
def test_it_runs_ahead_by_size_and_no_further(size):
    source = Counted(12)
    with elegy.data.prefetch(source, size) as ahead:
        for number in range(3):
            assert ahead.__next__()[0] == number
            # `size` are ready when one more was given than that.
            assert source.made[number + size].wait()
            with ahead._shared.changed:
                ahead._shared.changed.wait_for(lambda: len(ahead._shared.ready) == size)
            assert source.number == number + size + 1
    assert source.threads == {"elegy-prefetch"}


@pytest.mark.parametrize("where", ["source", "device"])
def test_errors_come_after_the_batches_before_them(where):
    source = Counted(5, fails_at=3) if where == "source" else iter([np.zeros(2)] * 3 + [np.asarray(["text"])])
    ahead = elegy.data.prefetch(source, size=10)
    assert len(list(itertools.islice(ahead, 3))) == 3
    with pytest.raises((KeyError, TypeError)) as raised:
        next(ahead)
    names = [entry.name for entry in raised.traceback]
    assert ("__next__" if where == "source" else "place") in names
    assert list(ahead) == []


def test_the_end_is_the_end():
    ahead = elegy.data.prefetch(Counted(2))
    assert len(list(ahead)) == 2
    assert list(ahead) == [] == list(ahead)
    ahead.close()


@pytest.mark.parametrize("how", ["close", "with", "break", "del"])
def test_breaking_off_ends_the_thread_and_closes_the_source(how):
    closed = []

    def source():
        try:
            yield from Counted(1000)
        finally:
            closed.append(threading.current_thread().name)

    gc.disable()
    try:
        ahead = elegy.data.prefetch(source())
        if how == "with":
            with ahead:
                next(ahead)
        elif how == "break":
            for _ in ahead:
                break
            del ahead, _
        else:
            next(ahead)
            if how == "close":
                ahead.close()
                assert list(ahead) == []
            else:
                del ahead
    finally:
        gc.enable()
    assert threads() == []
    assert closed == ["elegy-prefetch"]


def test_what_was_given_is_not_kept():
    class Box:
        pass

    box = Box()
    reference = weakref.ref(box)

    def source(box):
        yield np.zeros(2), np.zeros(2)
        del box
        yield np.zeros(2), np.zeros(2)

    ahead = elegy.data.prefetch(source(box))
    del box
    list(ahead)
    assert reference() is None


def test_closing_while_another_thread_waits():
    gate = threading.Event()

    def source():
        gate.wait()
        yield np.zeros(2)

    ahead = elegy.data.prefetch(source())
    found = []
    waiting = threading.Thread(target=lambda: found.extend(ahead))
    waiting.start()
    ahead._shared.stop()
    waiting.join()
    gate.set()
    ahead.close()
    assert found == []


def test_states_are_those_of_the_batches():
    source = Counted(6)
    ahead = elegy.data.prefetch(source, size=6, state=lambda: source.number)
    assert ahead.get_state() is None
    found = [(int(batch[0]), ahead.get_state()) for batch in ahead]
    assert found == [(number, number + 1) for number in range(6)]


def test_size_is_at_least_one():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        elegy.data.prefetch([], 0)
