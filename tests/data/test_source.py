"""`as_source`: one protocol for all that gives batches.

What is of PyTorch, TensorFlow, torchdata and Hugging Face is here by stand-ins, which have the methods that those have,
since the libraries are heavy. Grain is tested itself, in `test_grain.py`.
"""

import gc
import itertools
import json
import re
import types
import warnings
import weakref

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import elegy
from elegy.errors import BatchCountWarning, ResumptionWarning


def batch(number, size=2):
    return np.full([size, 1], number, np.float32), np.full([size], number, np.int32)


def numbers(batches):
    """Which batches these are."""
    found = []
    for x, y, sample_weight in batches:
        assert (x == x[0, 0]).all() and (y == x[0, 0]).all() and sample_weight is None
        found.append(int(y[0]))
    return found


def ten():
    return (batch(number) for number in range(10))


class Loader:
    """As a DataLoader of PyTorch: `__iter__` and `__len__`, and a sampler that is told the epoch. Its passes differ."""

    def __init__(self, size=10):
        self.size = size
        self.sampler = self.dataset = self
        self.batch_sampler = types.SimpleNamespace(sampler=self, set_epoch=self.set_epoch_of_batches)
        self.epochs = []
        self.epochs_of_batches = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def set_epoch_of_batches(self, epoch):
        self.epochs_of_batches.append(epoch)

    def __len__(self):
        return self.size

    def __iter__(self):
        return (batch(100 * self.epochs[-1] + number) for number in range(self.size))


class TensorFlowDataset:
    """As a dataset of `tf.data`: `len` fails where the cardinality is not known."""

    def __init__(self, cardinality):
        self._cardinality = cardinality

    def cardinality(self):
        return np.int64(self._cardinality)

    def __len__(self):
        raise TypeError("The dataset is infinite.")

    def __iter__(self):
        return ten()


class Columns:
    """As a `Dataset` of Hugging Face: a slice is a batch, and iteration gives samples."""

    column_names = ["x", "y"]

    def __init__(self, size=23):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        found = range(self.size)[index]
        return {"x": [[float(i)] for i in found], "y": list(found)}

    def __iter__(self):
        raise AssertionError("samples")

    def iter(self, batch_size, drop_last_batch=False):
        raise AssertionError("cannot begin anywhere")


class StreamedColumns:
    """As an `IterableDataset` of Hugging Face: the state is that of the dataset, and counts for its epoch alone."""

    column_names = None

    def __init__(self):
        self.epoch = 0
        self.state = None
        self.wanted = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return None if self.state is None else dict(self.state)

    def load_state_dict(self, state):
        self.wanted = state

    def iter(self, batch_size, drop_last_batch=False):
        start = self.wanted["index"] if self.wanted and self.wanted["epoch"] == self.epoch else 0
        self.state = {"epoch": self.epoch, "index": start}
        for index in range(start, 10):
            self.state["index"] = index + 1
            number = 100 * self.epoch + index
            yield {"x": [[float(number)]] * batch_size, "y": [number] * batch_size}


class StatefulLoader:
    """As a `StatefulDataLoader` of torchdata: the order of a pass goes on from that of the last one."""

    def __init__(self, size=10):
        self.size = size
        self.drawn = 0  # what a random generator would be
        self.position = None
        self.wanted = None

    def __len__(self):
        return self.size

    def state_dict(self):
        return {"drawn": self.drawn, "position": self.position, "bytes": b"\x00\xff", "pair": (1, None), 3: True}

    def load_state_dict(self, state):
        assert state["bytes"] == b"\x00\xff" and state["pair"] == (1, None) and state[3] is True
        self.wanted = state

    def __iter__(self):
        wanted, self.wanted = self.wanted, None
        if wanted is not None and wanted["position"] not in (None, self.size):
            self.drawn, self.position = wanted["drawn"], wanted["position"]
        else:
            self.drawn = (self.drawn if wanted is None else wanted["drawn"]) + 1
            self.position = 0
        return self.go_on()

    def go_on(self):
        while self.position < self.size:
            self.position += 1
            yield batch(100 * self.drawn + self.position - 1)


class StatefulIterator:
    """As an iterator of Grain: the state is that of the iterator."""

    def __init__(self, size=1000):
        self.size = size
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == self.size:
            raise StopIteration
        self.next += 1
        return batch(self.next - 1)

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


class Stateful:
    """A re-iterable whose iterators have a state."""

    def __iter__(self):
        return StatefulIterator(10)


def columns_source(**kwargs):
    return elegy.data.as_source(Columns(), batch_size=5, transform=lambda b: (b["x"], b["y"]), **kwargs)


# --- what is a source


@pytest.mark.parametrize(
    "make, steps",
    [
        (lambda: list(ten()), 10),
        (lambda: ten, None),
        (lambda: TensorFlowDataset(10), 10),
        (lambda: TensorFlowDataset(-2), None),
        (lambda: Stateful(), None),
    ],
    ids=["list", "function", "tf.data", "tf.data, unknown", "stateful"],
)
def test_what_gives_batches_again_and_again(make, steps):
    source = elegy.data.as_source(data := make())
    samples = sum(batch.size for batch in source.batches()) if isinstance(data, list) else None
    assert (source.steps, source.samples, source.one_shot) == (steps, samples, False)
    for epoch in range(2):
        assert numbers(source.batches(epoch)) == list(range(10))


def test_a_loader_is_told_the_epoch():
    loader = Loader()
    source = elegy.data.as_source(loader)
    assert source.steps == 10
    assert numbers(source.batches(epoch=3)) == list(range(300, 310))
    assert loader.epochs == loader.epochs_of_batches == [3]  # each once


def test_the_parts_of_a_loader_are_told_the_epoch():
    class Part:
        def __init__(self, **parts):
            vars(self).update(parts)
            self.epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

        def __iter__(self):
            return iter([batch(0)])

    dataset, own, sampler = Part(), Part(), Part()
    of_batches = Part(sampler=sampler)
    loader = Part(dataset=dataset, sampler=own, batch_sampler=of_batches)
    numbers(elegy.data.as_source(loader).batches(epoch=2))
    assert [part.epochs for part in (loader, dataset, own, of_batches, sampler)] == [[2]] * 5


def test_a_dataset_of_columns():
    source = elegy.data.as_source(Columns(), batch_size=5)
    assert (source.steps, source.samples) == (5, 23)
    found = [b.x["y"].tolist() for b in source.batches(0, 3)]
    assert found == [[15, 16, 17, 18, 19], [20, 21, 22]]
    with pytest.raises(ValueError, match="the Columns gives samples: give batch_size."):
        elegy.data.as_source(Columns())


def test_transform_sees_each_batch_first():
    x, y, sample_weight = next(columns_source().batches())
    assert x.dtype == np.float32 and x.shape == (5, 1) and y.dtype == np.int32 and sample_weight is None


def test_a_source_is_taken_as_it_is():
    source = elegy.data.as_source(ten, steps_per_epoch=3)
    assert elegy.data.as_source(source) is source
    assert elegy.data.as_source(source, steps_per_epoch=3) is source
    for arguments in ({"steps_per_epoch": 4}, {"transform": tuple}, {"batch_size": 2}):
        with pytest.raises(ValueError, match="a Source is taken as it is"):
            elegy.data.as_source(source, **arguments)


def test_a_source_of_ones_own():
    class Own(elegy.data.Source):
        def batches(self, epoch=0, start=0):
            yield elegy.data.Batch(*batch(epoch), None)

    source = elegy.data.as_source(Own())
    assert numbers(source.batches(7)) == [7]
    assert (source.steps, source.samples, source.one_shot, source.get_state()) == (None, None, False, None)
    source.set_state(None)
    with pytest.raises(ValueError, match="a Own has no state to set"):
        source.set_state({"epoch": 0})


class SparseMatrix:
    """As one of SciPy: its rows are such matrices, too."""

    def __iter__(self):
        return iter([self])

    def toarray(self):
        return np.zeros([1, 2])


class SampleDataset:
    def __getitem__(self, index):
        return index

    def __len__(self):
        return 3


@pytest.mark.parametrize(
    "value, message",
    [
        (np.ones([3, 2]), "the ndarray is no source of batches: give whole arrays as such"),
        ((np.ones(3), np.ones(3)), "the tuple is no source"),
        ({"a": np.ones(3)}, "the dict is no source"),
        ("text", "the str is no source"),
        (3, "the int gives no batches: it has no __iter__"),
        (None, "the NoneType gives no batches"),
        (
            SampleDataset(),
            "the SampleDataset gives samples: give elegy.data.DataLoader(SampleDataset(...), batch_size=32)",
        ),
        (SparseMatrix(), "the SparseMatrix is a sparse matrix: give it by .toarray()"),
        (batch, "the function batch is called without arguments to make an iterator: missing a required argument"),
    ],
    ids=["array", "tuple", "dict", "str", "int", "None", "dataset", "sparse", "function"],
)
def test_what_is_no_source(value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        elegy.data.as_source(value)


@pytest.mark.parametrize("arguments", [{"steps_per_epoch": 0}, {"batch_size": -1}], ids=str)
def test_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        elegy.data.as_source(ten, **arguments)
    for position in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="counted from 0"):
            elegy.data.as_source(ten).batches(*position)


def test_a_batch_size_for_what_has_one():
    with pytest.raises(ValueError, match="batch_size=3, but the list gives batches already"):
        elegy.data.as_source([batch(0)], batch_size=3)


# --- no end, one end


@pytest.mark.parametrize(
    "data, message",
    [
        (ten(), "the generator ten can be gone through once only: give steps_per_epoch, or a function"),
        (iter([]), "the list_iterator can be gone through once only"),
        (TensorFlowDataset(-1), "the TensorFlowDataset has no end: give steps_per_epoch."),
        (Loader(2**60), "the Loader has no end: give steps_per_epoch."),
    ],
    ids=["generator", "iterator", "tf.data", "2**60"],
)
def test_what_needs_steps_per_epoch(data, message):
    with pytest.raises(ValueError, match=re.escape(message.replace("the generator ten", _name(data)))):
        elegy.data.as_source(data)


def _name(data):
    return "the generator <genexpr>" if hasattr(data, "gi_frame") else ""


def test_an_iterator_goes_on_and_says_where_it_ends():
    source = elegy.data.as_source(ten(), steps_per_epoch=4)
    assert (source.steps, source.one_shot) == (4, True)
    assert numbers(source.batches(0)) == [0, 1, 2, 3]
    assert numbers(source.batches(1)) == [4, 5, 6, 7]
    last = source.batches(2)
    assert numbers(itertools.islice(last, 2)) == [8, 9]
    with pytest.raises(ValueError, match=r"is at its end: epoch 2 needs 4 batches and got 2; 10 were given in all\."):
        next(last)


def test_an_iterator_is_not_begun_again():
    source = elegy.data.as_source(ten(), steps_per_epoch=3)
    assert numbers(source.batches(0)) == [0, 1, 2]
    assert numbers(source.batches(0)) == [3, 4, 5]


def test_a_single_pass_of_an_iterator():
    source = elegy.data.as_source(ten(), single_pass=True)
    assert source.steps is None
    assert numbers(source.batches()) == list(range(10))


@pytest.mark.parametrize("make", [lambda: ten, lambda: list(ten()), lambda: TensorFlowDataset(10)])
def test_steps_per_epoch_cuts_passes(make):
    source = elegy.data.as_source(make(), steps_per_epoch=4)
    assert source.steps == 4
    assert [numbers(source.batches(epoch)) for epoch in range(4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 0, 1],
        [2, 3, 4, 5],
    ]


def test_more_steps_than_a_pass_has():
    source = elegy.data.as_source([batch(0), batch(1)], steps_per_epoch=5)
    assert numbers(source.batches(1)) == [1, 0, 1, 0, 1]
    loader = Loader(2)
    source = elegy.data.as_source(loader, steps_per_epoch=5)
    assert numbers(source.batches()) == [0, 1, 100, 101, 200]


def test_no_batches():
    for steps in (None, 3):
        for data in ([], lambda: iter([])):
            with pytest.raises(ValueError, match="gave no batches when it was gone through"):
                list(elegy.data.as_source(data, steps_per_epoch=steps).batches())


def test_a_function_that_gives_one_iterator_twice():
    iterator = ten()
    source = elegy.data.as_source(lambda: iterator)
    assert len(numbers(source.batches(0))) == 10
    with pytest.raises(ValueError, match="If it gives the same iterator each time"):
        next(source.batches(1))


class Liar(Loader):
    def __init__(self, says, gives):
        super().__init__(gives)
        self.says = says

    def __len__(self):
        return self.says


@pytest.mark.parametrize("says, gives", [(4, 3), (3, 4)])
@pytest.mark.parametrize("steps", [None, 8])
def test_a_length_that_is_not_right_is_told_once(says, gives, steps):
    source = elegy.data.as_source(Liar(says, gives), steps_per_epoch=steps)
    message = rf"the Liar: len\(\) says that it has {says} batches, and a pass gave {gives}\."
    with pytest.warns(BatchCountWarning, match=message) as caught:
        for epoch in range(3):
            assert len(list(source.batches(epoch))) == (steps or gives)
    assert len(caught) == 1
    assert caught[0].filename == __file__


# --- errors


@pytest.mark.parametrize("data", [Loader, lambda: Loader, None], ids=["re-iterable", "function", "transform"])
def test_errors_of_the_data_pass_through_with_a_note(data):
    def broken():
        yield batch(0)
        yield batch(1)
        raise KeyError("lost")

    class Broken:
        def __iter__(self):
            return broken()

    def fail(value):
        if value[1][0] == 2:
            raise KeyError("lost")
        return value

    sources = {Loader: Broken(), None: ten}
    source = elegy.data.as_source(sources.get(data, broken), transform=fail if data is None else None)
    found = source.batches(epoch=5)
    assert numbers(itertools.islice(found, 2)) == [0, 1]
    with pytest.raises(KeyError) as raised:
        next(found)
    assert raised.value.__notes__ == ["Raised by the data, for batch 2 of epoch 5 (both counted from 0)."]
    names = [entry.name for entry in raised.traceback]
    assert names[-1] in ("broken", "fail")
    with pytest.raises(StopIteration):
        next(found)


def test_a_stop_iteration_of_transform_does_not_end_a_pass():
    def stop(value):
        raise StopIteration

    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        list(elegy.data.as_source(ten, transform=stop).batches())


def test_breaking_off_closes_a_generator():
    closed = []

    def watched():
        try:
            yield from ten()
        finally:
            closed.append(True)

    batches = elegy.data.as_source(watched).batches()
    next(batches)
    batches.close()
    assert closed == [True]


def test_breaking_off_leaves_an_iterator_open():
    source = elegy.data.as_source(ten(), steps_per_epoch=5)
    batches = source.batches()
    next(batches)
    batches.close()
    assert numbers(source.batches(1)) == [1, 2, 3, 4, 5]


# --- going on


def test_skipping_is_told_once():
    source = elegy.data.as_source(ten)
    with pytest.warns(
        ResumptionWarning, match="its first 7 batches are made and dropped, to go on with batch 7 of"
    ) as told:
        assert numbers(source.batches(2, 7)) == [7, 8, 9]
        assert numbers(source.batches(3, 5)) == [5, 6, 7, 8, 9]
    assert len(told) == 1
    assert told[0].filename == __file__


def test_skipping_with_cut_passes_tells_the_right_epochs():
    loader = Loader()
    source = elegy.data.as_source(loader, steps_per_epoch=4)
    with pytest.warns(ResumptionWarning, match="its first 14 batches are made and dropped"):
        assert numbers(source.batches(3, 2)) == [104, 105]
    assert numbers(source.batches(4)) == [106, 107, 108, 109]
    assert numbers(source.batches(5)) == [200, 201, 202, 203]


def test_a_fresh_iterator_is_skipped():
    source = elegy.data.as_source(ten(), steps_per_epoch=3)
    with pytest.warns(ResumptionWarning):
        assert numbers(source.batches(2, 1)) == [7, 8]


def test_skipping_past_the_end():
    with pytest.warns(ResumptionWarning):
        with pytest.raises(ValueError, match="has 10 batches in epoch 1, and batch 12 was asked for"):
            list(elegy.data.as_source(ten).batches(1, 12))


@pytest.mark.parametrize("make", [lambda: elegy.data.as_source(list(ten())), columns_source], ids=["list", "columns"])
def test_what_can_begin_anywhere_has_no_state(make):
    source = make()
    whole = list(source.batches(1))
    assert source.get_state() is None
    assert [b.y.tolist() for b in source.batches(1, 3)] == [b.y.tolist() for b in whole[3:]]


STATEFUL = {
    "StatefulLoader": StatefulLoader,
    "StreamedColumns": StreamedColumns,
    "Stateful": Stateful,
    "StatefulIterator": StatefulIterator,
}


def stateful_source(name, steps):
    arguments = {"steps_per_epoch": steps}
    if name == "StreamedColumns":
        arguments |= {"batch_size": 2, "transform": lambda b: (b["x"], b["y"])}
    return elegy.data.as_source(STATEFUL[name](), **arguments)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("steps", [None, 4, 10, 25])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=15)
def test_states_go_on_exactly(name, steps, data):
    if name == "StatefulIterator" and steps is None:
        return
    length = steps or 10
    epoch, start = data.draw(st.integers(0, 3)), data.draw(st.integers(0, length))
    source = stateful_source(name, steps)
    whole = [numbers(source.batches(number)) for number in range(5)]
    assert [len(part) for part in whole] == [length] * 5

    broken_off = stateful_source(name, steps)
    for number in range(epoch):
        list(broken_off.batches(number))
    batches = broken_off.batches(epoch)
    assert numbers(itertools.islice(batches, start)) == whole[epoch][:start]
    if start == length:
        assert list(batches) == []
    if data.draw(st.booleans()):
        batches.close()
    state = json.loads(json.dumps(broken_off.get_state()))

    resumed = stateful_source(name, steps)
    if start == 0 and state is None and epoch == 0:
        return  # nothing was read
    if start == length:
        epoch, start = epoch + 1, 0
    if start == 0 and steps is None and name != "StatefulLoader":
        return  # epochs begin anew in any case, without a state
    resumed.set_state(state)
    assert resumed.get_state() == state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(epoch, 5):
            assert numbers(resumed.batches(number, start if number == epoch else 0)) == whole[number][start:]
            start = 0


def test_a_state_of_another_place_is_not_used():
    source = stateful_source("Stateful", None)
    list(itertools.islice(source.batches(), 3))
    state = source.get_state()
    other = stateful_source("Stateful", None)
    other.set_state(state)
    with pytest.warns(ResumptionWarning):
        assert numbers(other.batches(0, 8)) == [8, 9]


def test_states_that_are_none():
    with pytest.raises(ValueError, match="this is no state of a source"):
        elegy.data.as_source(ten).set_state({"epoch": 1})
    source = stateful_source("Stateful", None)
    list(itertools.islice(source.batches(), 3))
    other = elegy.data.as_source(ten)
    other.set_state(source.get_state())
    with pytest.raises(ValueError, match="has no state, and one was set"):
        next(other.batches(0, 3))


def test_sources_die_with_their_last_reference():
    source = elegy.data.as_source(ten, steps_per_epoch=3)
    next(source.batches())
    reference = weakref.ref(source)
    gc.disable()
    try:
        del source
        assert reference() is None  # without a search for cycles
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "samples"), [(4, False, 10), (4, True, 8), (None, False, None), (4, None, None)]
)
def test_the_samples_of_a_loader_of_pytorch(batch_size, drop_last, samples):
    loader = [np.zeros([4, 1], np.float32)]
    of_torch = type("Loader", (), {"__iter__": lambda self: iter(loader), "__len__": lambda self: 1})()
    of_torch.sampler, of_torch.batch_size, of_torch.drop_last = range(10), batch_size, drop_last
    assert elegy.data.as_source(of_torch).samples == samples
    assert elegy.data.as_source(of_torch, steps_per_epoch=2).samples is None
    # A `batch_sampler` of one's own has what the loader lacks then.
    of_torch.batch_sampler = types.SimpleNamespace(sampler=range(10), batch_size=batch_size, drop_last=drop_last)
    of_torch.sampler, of_torch.batch_size, of_torch.drop_last = range(77), None, False
    assert elegy.data.as_source(of_torch).samples == samples
