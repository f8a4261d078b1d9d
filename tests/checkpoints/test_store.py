"""A directory of checkpoints: what is saved, kept, found and loaded."""

import gc
import itertools
import json
import os
import shutil
import sys
import threading
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import elegy
from elegy.checkpoints import disk, store
from elegy.errors import CheckpointError, CheckpointWarning
from tests.checkpoints.test_file import assert_same, blank
from tests.helpers import Net
from tests.strategies import recipes

X = jnp.ones([2, 3])
LIKE = {"w": jnp.zeros(3)}


def tree(value):
    return {"w": jnp.full(3, float(value), jnp.float32)}


def names(directory):
    return sorted(os.listdir(directory))


def damage(path, position=-1):
    """Changes one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


class Gate:
    """Holds back the thread that writes, at its first operation, until it is opened."""

    def __init__(self, monkeypatch, error=None):
        self.reached, self.open, do = threading.Event(), threading.Event(), disk.do

        def wait(*arguments):
            self.reached.set()
            self.open.wait()
            if error is not None:
                raise error
            return do(*arguments)

        monkeypatch.setattr(disk, "do", wait)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.open.set()


# ---------------------------------------------------------------------------------------------------------------------
# Round trips
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
def test_the_state_of_a_training_run(wait, tmp_path):
    module, optimizer = Net().init(X), optax.adam(1e-3)
    state = {"module": module, "optimizer": optimizer.init(module.get_parameters()), "key": jax.random.key(3)}
    state["half"] = jnp.full(3, 1 / 3, jnp.bfloat16)
    elegy.Checkpoints(tmp_path).save(7, state, {"epoch": 2, "history": {"loss": [0.5, 0.25]}}, wait=wait)

    checkpoints = elegy.Checkpoints(tmp_path)
    while not checkpoints.steps:  # the other object has a thread of its own
        pass
    loaded, extra = checkpoints.load(like=jax.eval_shape(lambda: state))
    assert_same(loaded, state)
    assert extra == {"epoch": 2, "history": {"loss": [0.5, 0.25]}} == checkpoints.extra()


@settings(max_examples=15)
@given(recipes(depth=2, initialised=True))
def test_any_module_comes_back(tmp_path_factory, recipe):
    with elegy.Checkpoints(tmp_path_factory.mktemp("run")) as checkpoints:
        module = recipe.build()
        checkpoints.save(1, module)
        assert_same(checkpoints.load(like=jax.tree.map(blank, module))[0], module)


def test_a_folder_holds_a_file_that_elegy_reads_and_json(tmp_path):
    elegy.Checkpoints(tmp_path / "a" / "run").save(12, tree(1), {"order": np.arange(3)}, score=0.5, wait=True)
    folder = tmp_path / "a" / "run" / "step-0000000012"
    assert names(folder) == ["arrays.safetensors", "checkpoint.json", "extra.safetensors"]
    assert_same(elegy.load(folder / "arrays.safetensors", like=LIKE), tree(1))
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["format"] == 1 and manifest["step"] == 12 and manifest["score"] == 0.5
    assert manifest["elegy"] == elegy.__version__ and manifest["jax"] == jax.__version__
    assert manifest["files"]["arrays.safetensors"]["size"] == (folder / "arrays.safetensors").stat().st_size
    assert manifest["files"].keys() == {"arrays.safetensors", "extra.safetensors"}


def test_a_selection(tmp_path):
    module = Net().init(X)
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, elegy.select(module, "**/w"))
    other = Net().init(X, rng=1)
    loaded, _ = checkpoints.load(like=elegy.select(other, "**/w"))
    assert_same(elegy.select(loaded, "**/w").get(), elegy.select(module, "**/w").get())
    assert_same(elegy.select(loaded, "**/b").get(), elegy.select(other, "**/b").get())


def test_every_difference_is_listed(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.ones(3), "b": jnp.ones(2)})
    with pytest.raises(CheckpointError, match=r"(?s)'a': float32\[3\] in the file, int32\[3\].*'c': not.*'b': not in"):
        checkpoints.load(like={"a": jnp.zeros(3, jnp.int32), "c": jnp.ones(1)})


def test_a_part_and_other_names(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.ones(3), "b": jnp.ones(2)}, "extra")
    loaded, extra = checkpoints.load(1, like={"c": jnp.zeros(3)}, strict=False, rename={"a": "c"})
    assert_same(loaded, {"c": jnp.ones(3)})
    assert extra == "extra"


def test_a_leaf_that_cannot_be_saved(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match="the checkpoint of step 3 was not written:\n  'f': a function is not"):
        checkpoints.save(3, {"f": names})
    checkpoints.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0}, "keep=0: at least the newest"),
        ({"keep_best": -1}, "keep_best=-1 is negative"),
        ({"direction": "up"}, "direction='up' is neither"),
        ({"backend": "pickle"}, "backend='pickle' is none of 'safetensors', 'orbax'"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        elegy.Checkpoints(tmp_path, **arguments)


@pytest.mark.parametrize("arguments", [{"keep": 2.5}, {"keep": "all"}, {"keep_best": None}], ids=str)
@pytest.mark.usefixtures("unchecked")
def test_numbers_of_checkpoints_are_integers(arguments, tmp_path):
    (name,) = arguments
    with pytest.raises(TypeError, match=f"{name}=.* is no number of checkpoints"):
        elegy.Checkpoints(tmp_path, **arguments)


@pytest.mark.usefixtures("unchecked")
def test_steps_are_integers(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="not negative, got -1"):
        checkpoints.save(-1, {})
    with pytest.raises(TypeError):
        checkpoints.save(1.0, {})
    checkpoints.save(np.int64(3), {}, wait=True)
    checkpoints.save(10**11, {}, wait=True)
    assert checkpoints.steps == [3, 10**11]


def test_a_relative_directory_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = elegy.Checkpoints("run")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    checkpoints.save(1, {}, wait=True)
    assert names(tmp_path / "run") == ["step-0000000001"]
    assert repr(checkpoints) == f"Checkpoints({str(tmp_path / 'run')!r})"


# ---------------------------------------------------------------------------------------------------------------------
# What is kept
# ---------------------------------------------------------------------------------------------------------------------


def test_nothing_is_there(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path / "run")
    assert checkpoints.steps == [] and checkpoints.latest() is None and checkpoints.best() is None
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in .*run. There are: none"):
        checkpoints.load(like=LIKE)
    checkpoints.save(1, {})
    checkpoints.save(3, {})
    with pytest.raises(FileNotFoundError, match="there is no checkpoint of step 2 in .*run. There are: 1, 3"):
        checkpoints.extra(2)


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        checkpoints = elegy.Checkpoints(path)
        for call in (checkpoints.latest, checkpoints.best, checkpoints.extra, lambda there=checkpoints: there.steps):
            with pytest.raises(NotADirectoryError, match="is no directory of checkpoints: it, or what it is said"):
                call()


def test_a_checkpoint_is_no_directory_of_them(tmp_path):
    elegy.Checkpoints(tmp_path / "run").save(1, {}, wait=True)
    inner = elegy.Checkpoints(tmp_path / "run" / "step-0000000001")
    for call in (inner.latest, lambda: inner.load(like={}), lambda: inner.save(2, {}, wait=True)):
        with pytest.raises(CheckpointError, match=r"is a checkpoint itself.*\n  Give .*run, in which step-0000"):
            call()
    assert elegy.Checkpoints(tmp_path / "run").load(like={}) == ({}, None)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "step-1").mkdir()
    (tmp_path / ".step-0000000001.tmp").mkdir()
    checkpoints = elegy.Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {})
    checkpoints.save(2, {}, wait=True)
    assert names(tmp_path) == [".step-0000000001.tmp", "notes.txt", "step-0000000002", "step-1"]


def expected(saved, keep, keep_best, direction):
    """Which steps are there after these were saved, by the definition."""
    there = {}
    for step, score in saved:
        there[step] = score
        if keep is None:
            continue
        sign = 1 if direction == "min" else -1
        ranked = sorted(
            (step for step in there if there[step] is not None),
            key=lambda step: (np.inf if np.isnan(there[step]) else sign * there[step], np.isnan(there[step]), step),
        )
        kept = {step, *sorted(there)[-keep:], *ranked[:keep_best]}
        there = {step: score for step, score in there.items() if step in kept}
    return sorted(there)


scores = st.one_of(st.none(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.integers(0, 3))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 9), scores), max_size=7),
    st.one_of(st.none(), st.integers(1, 3)),
    st.integers(0, 2),
    st.sampled_from(["min", "max"]),
)
def test_the_newest_and_the_best_are_kept(tmp_path_factory, saved, keep, keep_best, direction):
    directory = tmp_path_factory.mktemp("run")
    checkpoints = elegy.Checkpoints(directory, keep=keep, keep_best=keep_best, direction=direction)
    for step, score in saved:
        checkpoints.save(step, {"step": step}, score=score, wait=True)
    there = expected(saved, keep, keep_best, direction)
    for other in (checkpoints, elegy.Checkpoints(directory, direction=direction)):
        assert other.steps == there
        assert other.latest() == max(there, default=None)
    assert len(names(directory)) == len(there)
    assert [checkpoints.load(step, like={"step": 0})[0]["step"] for step in there] == there


@pytest.mark.parametrize(
    ("direction", "scored", "best"),
    [
        ("min", [3, 1, 2], 1),
        ("max", [3, 1, 2], 0),
        ("min", [1, 1], 0),
        ("max", [1, 1], 0),
        ("min", [float("nan"), float("inf")], 1),
        ("max", [float("nan"), -float("inf")], 1),
        ("max", [None, float("nan")], 1),
        ("min", [None, None], None),
        ("min", [np.float32(2), jnp.float32(1)], 1),
    ],
    ids=str,
)
def test_the_best(direction, scored, best, tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path, keep=None, direction=direction)
    for step, score in enumerate(scored):
        checkpoints.save(step, {}, score=score)
    assert checkpoints.best() == best == elegy.Checkpoints(tmp_path, direction=direction).best()


def test_a_step_saved_again_replaces_the_other(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path)
    for value in range(3):
        checkpoints.save(5, tree(value), value, score=value, wait=True)
        assert checkpoints.steps == [5] and checkpoints.extra(5) == value
        assert_same(checkpoints.load(5, like=LIKE)[0], tree(value))
    assert names(tmp_path) == ["step-0000000005.2"]


def test_a_step_that_was_removed_may_come_again_with_another_score(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path, keep=1)
    for step, score in [(1, 5.0), (2, 1.0), (1, 0.0), (3, 3.0)]:
        checkpoints.save(step, {}, score=score)
    assert checkpoints.best() == 1 and checkpoints.steps == [1, 3]


def test_an_older_step_is_not_removed_at_once(tmp_path):
    """After a run went back, say."""
    checkpoints = elegy.Checkpoints(tmp_path, keep=1, keep_best=0)
    checkpoints.save(10, {})
    checkpoints.save(4, tree(4))
    assert checkpoints.steps == [4, 10]
    assert_same(checkpoints.load(4, like=LIKE)[0], tree(4))


def test_both_names_of_a_step_are_never_absent(tmp_path, monkeypatch):
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(5, tree(0), wait=True)
    do, seen = disk.do, []

    def look(*arguments):
        result = do(*arguments)
        seen.append(float(elegy.Checkpoints(tmp_path).load(5, like=LIKE)[0]["w"][0]))
        return result

    monkeypatch.setattr(disk, "do", look)
    checkpoints.save(5, tree(1), wait=True)
    assert sorted(set(seen)) == [0, 1] and seen == sorted(seen)


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


def remove_folder_content(folder):
    for path in folder.iterdir():
        path.unlink()


def rewrite(folder, **changes):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


# What is done to the newest folder, what the message says, and whether names and sizes show it.
DAMAGE = {
    "a bit of the arrays": (
        lambda folder: damage(folder / "arrays.safetensors"),
        "arrays.safetensors has changed since it was written",
        False,
    ),
    "a bit of the table": (
        lambda folder: damage(folder / "arrays.safetensors", 20),
        "arrays.safetensors has changed since it was written",
        False,
    ),
    "arrays cut off": (lambda folder: cut(folder / "arrays.safetensors"), r"arrays.safetensors has \d+ bytes", True),
    "no arrays": (lambda folder: (folder / "arrays.safetensors").unlink(), "arrays.safetensors is missing", True),
    "no extra": (lambda folder: (folder / "extra.safetensors").unlink(), "extra.safetensors is missing", True),
    "a bit of extra": (lambda folder: damage(folder / "extra.safetensors"), "extra.safetensors has changed", False),
    "no JSON": (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json is missing", True),
    "JSON cut off": (lambda folder: cut(folder / "checkpoint.json"), "checkpoint.json cannot be read", True),
    "JSON emptied": (lambda folder: (folder / "checkpoint.json").write_text(""), "checkpoint.json cannot be", True),
    "other JSON": (lambda folder: (folder / "checkpoint.json").write_text("[1]"), "checkpoint.json cannot be", True),
    "JSON of another step": (lambda folder: rewrite(folder, step=3), "checkpoint.json has changed since", True),
    "JSON without a checksum": (lambda folder: rewrite(folder, checksum=None), "checkpoint.json has changed", True),
    "nothing left": (remove_folder_content, "checkpoint.json is missing", True),
}


@pytest.mark.parametrize(("harm", "message", "shows"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(harm, message, shows, tmp_path):
    for step in (1, 2):
        elegy.Checkpoints(tmp_path).save(step, tree(step), [step, np.ones(1)], score=-step, wait=True)
    harm(tmp_path / "step-0000000002")
    checkpoints = elegy.Checkpoints(tmp_path)
    with pytest.warns(CheckpointWarning, match=f"step-0000000002 is damaged, and is passed over: {message}") as caught:
        loaded, extra = checkpoints.load(like=LIKE)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    assert_same(loaded, tree(1))
    assert extra[0] == 1
    with pytest.warns(CheckpointWarning, match=message):
        assert checkpoints.extra()[0] == 1
    with pytest.raises(CheckpointError, match=f"step-0000000002 is damaged: {message}"):
        checkpoints.load(2, like=LIKE)
    if shows:
        with pytest.warns(CheckpointWarning, match=message) as caught:
            assert checkpoints.latest() == checkpoints.best() == 1
        assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name] * 2
    else:
        assert checkpoints.latest() == checkpoints.best() == 2


@pytest.mark.parametrize(("harm", "message", "shows"), DAMAGE.values(), ids=DAMAGE)
def test_damage_that_comes_while_an_object_lives(harm, message, shows, tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree(step), [np.ones(1)], score=-step, wait=True)
    assert checkpoints.best() == 2
    harm(tmp_path / "step-0000000002")
    if shows:
        with pytest.warns(CheckpointWarning, match=message):
            assert checkpoints.best() == 1


def test_any_bit_of_what_is_known_of_a_checkpoint(tmp_path):
    for step in (1, 2):
        elegy.Checkpoints(tmp_path).save(step, {}, wait=True)
    path = tmp_path / "step-0000000002" / "checkpoint.json"
    content = path.read_bytes()
    for place, bit in itertools.product(range(len(content)), range(8)):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.warns(CheckpointWarning, match="step-0000000002 is damaged, and is passed over: checkpoint.json"):
            assert elegy.Checkpoints(tmp_path).latest() == 1, (place, bit)


def test_a_damaged_checkpoint_does_not_count_among_the_newest(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path, keep=2, keep_best=0)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step), wait=True)
    cut(tmp_path / "step-0000000003" / "arrays.safetensors")
    with pytest.warns(CheckpointWarning, match="step-0000000003"):
        checkpoints.save(4, tree(4), wait=True)
    assert checkpoints.steps == [2, 3, 4]
    checkpoints.save(3, tree(5), wait=True)
    assert names(tmp_path) == ["step-0000000003.1", "step-0000000004"]


def test_all_are_damaged(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), wait=True)
    cut(tmp_path / "step-0000000001" / "arrays.safetensors")
    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"),
    ):
        checkpoints.load(like=LIKE)
    with pytest.warns(CheckpointWarning):
        assert checkpoints.latest() is None


def test_a_tree_that_does_not_fit_is_no_damage(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(3)})
    checkpoints.save(2, {"v": jnp.zeros(3)})
    with pytest.raises(CheckpointError, match=r"step-0000000002 does not fit the tree(?s:.*)'w': not in the file"):
        checkpoints.load(like=LIKE)


# ---------------------------------------------------------------------------------------------------------------------
# Other versions
# ---------------------------------------------------------------------------------------------------------------------


def state_of_format_1():
    return {
        "layer": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16(0.5)},
        "half": jnp.asarray([0.5, -1.5], jnp.bfloat16),
        "small": np.array([1 + 2j], np.complex64),
        "key": jax.random.key(3),
        "steps": 4,
        "rate": 0.1,
    }


EXTRA_OF_FORMAT_1 = {
    "history": {"loss": [0.5, float("inf"), 0.25]},
    "nested": (None, True, -3, 2**70, "é", {1: "one", "$": ()}),
    "order": np.array([2, 0, 1]),
    "rate": np.float32(0.1),
}


def test_format_1_is_read():
    """The folder was written by the first version that had this format."""
    checkpoints = elegy.Checkpoints(Path(__file__).parent / "format_1")
    assert checkpoints.steps == [7] and checkpoints.latest() == checkpoints.best() == 7
    loaded, extra = checkpoints.load(like=jax.tree.map(blank, state_of_format_1()))
    assert_same(loaded, state_of_format_1())
    key = extra.pop("key")
    assert jax.random.bits(key) == jax.random.bits(jax.random.key(5))
    assert isinstance(extra["order"], np.ndarray) and isinstance(extra["rate"], np.float32)
    assert {**extra, "order": list(extra["order"])} == {**EXTRA_OF_FORMAT_1, "order": [2, 0, 1]}


def test_a_later_format_is_refused(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path, keep=1, keep_best=0)
    checkpoints.save(1, tree(1))
    checkpoints.save(2, tree(2), wait=True)
    rewrite(tmp_path / "step-0000000002", format=2, elegy="9.0", checksum="another")
    for step in (None, 2):
        with pytest.raises(CheckpointError, match=r"has format 2.* reads formats up to 1.\n  Upgrade to Elegy 9.0"):
            checkpoints.load(step, like=LIKE)
    assert checkpoints.latest() == 2 and checkpoints.best() is None
    checkpoints.save(1, tree(3), wait=True)
    assert checkpoints.steps == [1, 2]
    assert_same(checkpoints.load(1, like=LIKE)[0], tree(3))


# ---------------------------------------------------------------------------------------------------------------------
# In the background
# ---------------------------------------------------------------------------------------------------------------------


def test_arrays_may_be_donated_and_changed_at_once(tmp_path, monkeypatch):
    array, host, key = jnp.arange(300_000.0), np.arange(3.0), jax.random.key(3)
    sharding = jax.sharding.NamedSharding(jax.make_mesh([8], ["x"]), jax.sharding.PartitionSpec("x"))
    state = {"array": array, "host": host, "key": key, "spread": jax.device_put(jnp.arange(16.0), sharding)}
    like = jax.tree.map(blank, state)
    before = jax.tree.map(lambda leaf: leaf if isinstance(leaf, np.ndarray) else jnp.copy(leaf), state)
    before["host"] = host.copy()

    checkpoints = elegy.Checkpoints(tmp_path)
    extra = [jnp.arange(300_000.0)]
    with Gate(monkeypatch) as gate:
        checkpoints.save(1, state, extra)
        gate.reached.wait()
        host[...] = 7
        for donated in (array, state["spread"], extra[0]):
            pointers = [shard.data.unsafe_buffer_pointer() for shard in donated.addressable_shards]
            new = jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
            # The buffers were reused, which they are not while something else refers to them.
            assert donated.is_deleted()
            assert [shard.data.unsafe_buffer_pointer() for shard in new.addressable_shards] == pointers

    loaded, loaded_extra = checkpoints.load(like=like)
    assert_same(loaded, before)
    assert_same(loaded_extra, [jnp.arange(300_000.0)])


def test_save_returns_before_the_checkpoint_is_written(tmp_path, monkeypatch):
    checkpoints = elegy.Checkpoints(tmp_path)
    with Gate(monkeypatch) as gate:
        checkpoints.save(1, tree(1))
        gate.reached.wait()
        assert elegy.Checkpoints(tmp_path).steps == []
    checkpoints.wait()
    assert elegy.Checkpoints(tmp_path).steps == [1]


def test_what_is_being_written_is_waited_for(tmp_path, monkeypatch):
    checkpoints = elegy.Checkpoints(tmp_path)
    questions = [
        lambda: checkpoints.steps,
        checkpoints.latest,
        checkpoints.best,
        checkpoints.extra,
        lambda: checkpoints.load(like=LIKE)[1],
    ]
    answers: list = [None] * len(questions)

    def ask(index):
        answers[index] = questions[index]()

    with Gate(monkeypatch) as gate:
        checkpoints.save(3, tree(1), "extra", score=1)
        gate.reached.wait()
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(questions))]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[3], 3, 3, "extra", "extra"]


def test_checkpoints_are_written_in_order(tmp_path, monkeypatch):
    written, write = [], store.folders.write
    monkeypatch.setattr(store.folders, "write", lambda *arguments: written.append(arguments[1]) or write(*arguments))
    with elegy.Checkpoints(tmp_path, keep=None) as checkpoints:
        for step in range(10):
            checkpoints.save(step, tree(step), wait=step % 3 == 0)
    assert written == list(range(10)) == checkpoints.steps


CALLS = {
    "save": lambda checkpoints: checkpoints.save(2, {}),
    "save, waiting": lambda checkpoints: checkpoints.save(2, {}, wait=True),
    "wait": lambda checkpoints: checkpoints.wait(),
    "close": lambda checkpoints: checkpoints.close(),
    "with": lambda checkpoints: checkpoints.__exit__(None, None, None),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_failure_in_the_background_is_raised_once(call, tmp_path, monkeypatch):
    checkpoints = elegy.Checkpoints(tmp_path)
    error = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        Gate(patch, error).open.set()
        checkpoints.save(1, {})
        assert checkpoints.steps == []  # waits
    with pytest.raises(CheckpointError, match="saving the checkpoint of step 1 to .* failed.*No space left") as caught:
        call(checkpoints)
    assert caught.value.__cause__ is error
    assert "make_folders" in "".join(traceback.format_tb(error.__traceback__)) or tmp_path.exists()
    assert any(frame.name == "_run" for frame in traceback.extract_tb(error.__traceback__))
    checkpoints.wait()
    assert checkpoints.steps == []
    checkpoints.save(3, {}, wait=True)
    assert checkpoints.steps == [3]


def test_an_error_in_a_block_is_not_hidden(tmp_path, monkeypatch):
    Gate(monkeypatch, OSError(28, "No space left on device")).open.set()
    with pytest.raises(ZeroDivisionError) as caught, elegy.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {})
        raise ZeroDivisionError
    assert "Besides, saving the checkpoint of step 1" in caught.value.__notes__[0]


def test_no_thread_is_left(tmp_path):
    before = threading.active_count()
    with elegy.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {})
        checkpoints.save(2, {})
    assert threading.active_count() == before
    del checkpoints
    gc.collect()


# ---------------------------------------------------------------------------------------------------------------------
# Several writers
# ---------------------------------------------------------------------------------------------------------------------


def test_one_process_writes_and_all_read(tmp_path, monkeypatch):
    first = elegy.Checkpoints(tmp_path)
    first.save(1, tree(1), wait=True)
    monkeypatch.setattr(store, "is_writer", lambda: False)
    other = elegy.Checkpoints(tmp_path)
    other.save(2, tree(2))
    other.save(3, tree(3), wait=True)
    other.close()
    assert other.steps == [1] and names(tmp_path) == ["step-0000000001"]
    assert_same(other.load(like=LIKE)[0], tree(1))


def test_two_objects_write_into_one_directory(tmp_path):
    """Every load finds a checkpoint that is whole, whatever is written, replaced and removed meanwhile."""
    elegy.Checkpoints(tmp_path).save(0, {"w": np.zeros(1000), "value": 0}, wait=True)
    start, errors = threading.Barrier(3), []

    def write(offset):
        checkpoints = elegy.Checkpoints(tmp_path, keep=2)
        try:
            start.wait()
            for value in range(offset, 60, 2):
                state = {"w": np.full(1000, float(value)), "value": value}
                checkpoints.save(value // 4, state, value, score=-value, wait=value % 3 == 0)
            checkpoints.close()
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(offset,)) for offset in (0, 1)]
    for thread in writers:
        thread.start()
    start.wait()
    reader, loads = elegy.Checkpoints(tmp_path), 0
    while any(thread.is_alive() for thread in writers) or not loads:
        loaded, extra = reader.load(like={"w": np.zeros(1000), "value": 0})
        assert (loaded["w"] == loaded["value"]).all()
        loads += 1
    assert errors == []
    assert reader.steps[-1] == 14
    # What one was removing while the other looked may be left over; the next save sees to that.
    reader.save(20, {}, wait=True)
    assert all(name.startswith("step-") for name in names(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_leftovers_are_removed_unless_somebody_writes_them(tmp_path):
    import fcntl

    mine, dead = tmp_path / ".step-0000000001.0123abcd.tmp", tmp_path / ".step-0000000002.1.0123abcd.tmp"
    for folder in (mine, dead):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").touch()
    descriptor = os.open(mine, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(3, {}, wait=True)
    assert names(tmp_path) == [mine.name, "step-0000000003"] and names(mine) == ["inner"]
    os.close(descriptor)
    checkpoints.save(4, {}, wait=True)
    assert names(tmp_path) == ["step-0000000003", "step-0000000004"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked", "while it is locked"])
def test_a_folder_that_is_taken_for_a_leftover_too_early(moment, tmp_path, monkeypatch):
    import fcntl

    do, flock, taken = disk.do, fcntl.flock, []

    def make(operation, *arguments):
        result = do(operation, *arguments)
        if operation is os.mkdir and not taken:
            taken.append(arguments[0])
            if moment == "before it is opened":
                shutil.rmtree(arguments[0])
        return result

    def lock(descriptor, kind):
        if moment == "before it is locked" and os.path.exists(taken[0]):
            shutil.rmtree(taken[0])
        if moment == "while it is locked" and len(taken) == 1:
            taken.append("locked by another process")
            raise BlockingIOError
        flock(descriptor, kind)

    monkeypatch.setattr(disk, "do", make)
    monkeypatch.setattr(fcntl, "flock", lock)
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), wait=True)
    assert checkpoints.steps == [1] and taken
    assert names(tmp_path)[-1] == "step-0000000001"
    assert os.path.exists(taken[0]) == (moment == "while it is locked")


def test_another_process_takes_the_name_first(tmp_path, monkeypatch):
    do = disk.do

    def rename_late(operation, *arguments):
        if operation is os.rename:
            monkeypatch.setattr(disk, "do", do)
            elegy.Checkpoints(tmp_path).save(1, tree(1), wait=True)
        return do(operation, *arguments)

    monkeypatch.setattr(disk, "do", rename_late)
    checkpoints = elegy.Checkpoints(tmp_path)
    checkpoints.save(1, tree(2), wait=True)
    assert_same(checkpoints.load(1, like=LIKE)[0], tree(2))
    assert names(tmp_path) == ["step-0000000001.1"]


def test_a_checkpoint_that_is_removed_while_it_is_read(tmp_path, monkeypatch):
    checkpoints = elegy.Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree(step), wait=True)
    check = store.folders.check

    def remove(folder, *arguments, **options):
        if folder.step == 2:
            shutil.rmtree(folder.path)
        check(folder, *arguments, **options)

    monkeypatch.setattr(store.folders, "check", remove)
    assert_same(checkpoints.load(like=LIKE)[0], tree(1))  # and no warning
