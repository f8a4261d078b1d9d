"""A directory of checkpoints whose arrays are written by Orbax."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.checkpoints import orbax
from elegy.errors import CheckpointError, CheckpointWarning
from tests.checkpoints.test_file import assert_same, blank
from tests.helpers import Net

pytest.importorskip("orbax.checkpoint")

X = jnp.ones([2, 3])


def state(seed):
    module, optimizer = Net().init(X, rng=seed), optax.adam(1e-3)
    return {
        "module": module,
        "optimizer": optimizer.init(module.get_parameters()),
        "key": jax.random.key(seed),
        "half": jnp.full(3, 1 / 3, jnp.bfloat16),
        "small": jnp.ones(3, jnp.float8_e4m3fn),
        "empty": np.zeros([2, 0], np.int16),
        "a/b": {"": np.array(True), "..": 3, "é.x": "text"},
    }


def test_the_state_of_a_training_run(tmp_path):
    with elegy.Checkpoints(tmp_path, keep=1, backend="orbax") as checkpoints:
        for seed in (1, 2):
            checkpoints.save(seed, state(seed), {"order": np.arange(3)}, score=seed)
    assert checkpoints.steps == [1, 2] and checkpoints.best() == 1
    reader = elegy.Checkpoints(tmp_path)  # of either kind
    loaded, extra = reader.load(like=jax.tree.map(blank, state(0)))
    assert_same(loaded, state(2))
    assert list(extra["order"]) == [0, 1, 2]
    assert sorted(os.listdir(tmp_path / "step-0000000002")) == [
        "arrays",
        "arrays.json",
        "checkpoint.json",
        "extra.safetensors",
    ]


@pytest.mark.parametrize("tree", [{}, {"n": 3}, {"w": np.zeros([0])}, np.ones(3)], ids=["{}", "n", "empty", "array"])
def test_trees_of_few_arrays(tree, tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path, backend="orbax")
    checkpoints.save(1, tree)
    assert_same(checkpoints.load(like=jax.tree.map(blank, tree))[0], tree)


def test_what_does_not_fit_and_a_part(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path, backend="orbax")
    checkpoints.save(1, {"a": jnp.ones(3), "b": jnp.ones(2)})
    with pytest.raises(CheckpointError, match=r"'a': float32\[3\] in the file, int32\[3\]"):
        checkpoints.load(like={"a": jnp.zeros(3, jnp.int32), "b": jnp.ones(2)})
    loaded, _ = checkpoints.load(like={"c": jnp.zeros(3)}, strict=False, rename={"a": "c"})
    assert_same(loaded, {"c": jnp.ones(3)})


def test_damage_is_noticed(tmp_path):
    checkpoints = elegy.Checkpoints(tmp_path, backend="orbax")
    for step in (1, 2):
        checkpoints.save(step, {"w": np.full(300, float(step))}, wait=True)
    files = [path for path in (tmp_path / "step-0000000002" / "arrays").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(CheckpointWarning, match=f"arrays/.*{path.name} has changed since it was written"):
        assert_same(checkpoints.load(like={"w": np.zeros(300)})[0], {"w": np.ones(300)})


def test_a_program_that_ends_writes_what_it_saved(tmp_path):
    code = """
        import sys
        import numpy as np
        import elegy

        checkpoints = elegy.Checkpoints(sys.argv[1], backend="orbax")
        checkpoints.save(1, {str(i): np.full(1000, float(i)) for i in range(100)})
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    loaded, _ = elegy.Checkpoints(tmp_path).load(1, like={"7": np.zeros(1000)}, strict=False)
    assert (loaded["7"] == 7).all()


def test_several_processes(tmp_path, monkeypatch):
    checkpoints = elegy.Checkpoints(tmp_path, backend="orbax")
    checkpoints.save(1, {"w": np.ones(3)}, wait=True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(NotImplementedError, match="Write backend='safetensors'"):
        elegy.Checkpoints(tmp_path, backend="orbax")
    with pytest.raises(NotImplementedError, match="Orbax waits for all of them"):
        checkpoints.load(like={"w": np.ones(3)})


@pytest.mark.parametrize("there", orbax._PATHS)
def test_the_second_interface_may_be_in_several_places(there, monkeypatch):
    class Library:
        Context = None

    def find(path):
        if path != there:
            raise ImportError(path)
        return Library

    monkeypatch.setattr(orbax.importlib, "import_module", find)
    assert orbax._library() is Library


def test_orbax_is_not_there(monkeypatch, tmp_path):
    find = orbax.importlib.import_module

    def fail(path):
        if path.startswith("orbax"):
            raise ImportError(path)
        return find(path)

    monkeypatch.setattr(orbax.importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"backend='orbax' need(?s:.*)pip install 'orbax-checkpoint"):
        elegy.Checkpoints(tmp_path, backend="orbax")
    elegy.Checkpoints(tmp_path).save(1, {}, wait=True)
