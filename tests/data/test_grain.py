"""The loaders and datasets of Grain, the library itself."""

import itertools
import json
import subprocess
import sys
import warnings

import grain
import numpy as np
import pytest

import elegy
from elegy.errors import ResumptionWarning

SIZE, BATCH = 23, 4
EPOCHS = 3
# By default it reads hundreds of batches ahead.
READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def pair(index):
    return np.full([3], index, np.float32), np.int64(index)


def map_dataset(seed=3):
    return grain.MapDataset.source(range(SIZE)).seed(seed).shuffle().map(pair)


def loader(num_epochs=1):
    class Pair(grain.transforms.Map):
        def map(self, element):
            return pair(element)

    return grain.DataLoader(
        data_source=range(SIZE),
        sampler=grain.samplers.IndexSampler(SIZE, shuffle=True, seed=1, num_epochs=num_epochs),
        operations=[Pair(), grain.transforms.Batch(BATCH)],
        worker_count=0,
    )


# What there is, and the steps of an epoch.
CASES = {
    "map": (lambda: map_dataset().batch(BATCH), None),
    "map, cut": (lambda: map_dataset().batch(BATCH), 4),
    "map, endless": (lambda: map_dataset().repeat().batch(BATCH), 5),
    "iter": (lambda: map_dataset().to_iter_dataset(READ).batch(BATCH), None),
    "iter, cut": (lambda: map_dataset().to_iter_dataset(READ).batch(BATCH), 4),
    "iter, filtered": (
        lambda: map_dataset().to_iter_dataset(READ).filter(lambda sample: sample[1] % 3 > 0).batch(BATCH),
        None,
    ),
    "iter, endless": (lambda: map_dataset().repeat().batch(BATCH).to_iter_dataset(READ), 5),
    "iterator": (lambda: iter(map_dataset().repeat().batch(BATCH).to_iter_dataset(READ)), 5),
    "loader": (loader, None),
    "loader, cut": (loader, 4),
    "loader, endless": (lambda: loader(None), 5),
    "loader's iterator": (lambda: iter(loader(None)), 5),
}


def make(name):
    data, steps = CASES[name]
    return elegy.data.as_source(data(), steps_per_epoch=steps)


def plain(batches):
    return [(batch.x.tolist(), batch.y.tolist()) for batch in batches]


def all_of(source, epoch=0, start=0):
    parts = []
    for number in range(epoch, EPOCHS):
        parts.append(plain(source.batches(number, start)))
        start = 0
    return parts


@pytest.mark.parametrize("name", CASES)
def test_batches_are_those_of_grain(name):
    data, steps = CASES[name]
    data, source = data(), make(name)
    found = all_of(source)
    if steps is None:
        assert source.steps == (6 if name == "map" else None)
        expected = [list(data)] * EPOCHS
    else:
        assert source.steps == steps
        row = itertools.islice(itertools.chain.from_iterable(itertools.repeat(data)), EPOCHS * steps)
        expected = [list(itertools.islice(row, steps)) for _ in range(EPOCHS)]
    assert found == [[(np.asarray(x).tolist(), np.asarray(y).tolist()) for x, y in part] for part in expected]
    first = next(make(name).batches())
    assert type(first.x) is np.ndarray and (first.x.dtype, first.y.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("name", CASES)
def test_going_on_in_the_middle_of_an_epoch_is_exact(name):
    whole = all_of(make(name))
    for epoch, start in ((0, 1), (1, 0), (1, 3)):
        broken_off = make(name)
        for number in range(epoch):
            plain(broken_off.batches(number))
        batches = broken_off.batches(epoch)
        assert plain(itertools.islice(batches, start)) == whole[epoch][:start]
        state = json.loads(json.dumps(broken_off.get_state()))
        batches.close()
        resumed = make(name)
        resumed.set_state(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResumptionWarning)
            found = all_of(resumed, epoch, start)
        assert found == [whole[epoch][start:], *whole[epoch + 1 :]]


def test_the_state_belongs_to_the_batch_that_was_given_last_whatever_a_thread_has_made():
    source = make("iter")
    whole = plain(source.batches())
    with elegy.data.prefetch(source.batches(), size=3, state=source.get_state) as ahead:
        assert ahead.get_state() is None
        assert plain(itertools.islice(ahead, 2)) == whole[:2]
        state = ahead.get_state()
    resumed = make("iter")
    resumed.set_state(state)
    assert plain(resumed.batches(0, 2)) == whole[2:]


def test_without_a_state_an_iterator_is_skipped():
    whole = all_of(make("loader"))
    with pytest.warns(ResumptionWarning, match="the DataLoader has no state to go on from: its first 3 batches"):
        assert plain(make("loader").batches(0, 3)) == whole[0][3:]


@pytest.mark.parametrize(
    "data",
    [lambda: map_dataset().repeat().batch(BATCH), lambda: iter(map_dataset().batch(BATCH).to_iter_dataset(READ))],
    ids=["endless", "iterator"],
)
def test_what_needs_steps_per_epoch(data):
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        elegy.data.as_source(data())


def test_a_dataset_of_grain_in_a_loader():
    data = map_dataset()
    loader = elegy.data.DataLoader(data, batch_size=BATCH, n_workers=2)
    assert [y.tolist() for _, y in loader] == [y.tolist() for _, y in data.batch(BATCH)]


def test_elegy_imports_none_of_these_libraries():
    code = "import sys, elegy; sys.exit(len({'grain', 'torch', 'tensorflow', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
