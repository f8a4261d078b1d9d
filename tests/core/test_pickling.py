"""Configurations that Python cannot pickle, in copies of modules; structures of modules in pickles; protocols."""

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys
import types
import typing as tp

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from tests.helpers import Affine

X = jnp.ones((2, 3))
DEVICE = jax.devices()[-1]


@dataclasses.dataclass(frozen=True)
class Config:
    value: tp.Any
    size: int = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: tp.Any


class Named(tp.NamedTuple):
    value: tp.Any
    size: int = 3


class Holder(elegy.Module):
    def __init__(self, config):
        self.config = config
        self.affine = Affine(2)

    def call(self, x):
        return self.affine(x)


class Mix(elegy.Module):
    """Lists and dicts in which arrays, modules and static values stand side by side."""

    def __init__(self):
        self.layers = [jax.nn.relu, Affine(2), "text", {"a": Affine(3), "b": 1, "c": [jnp.ones(2), 2.0]}, [3]]
        self.table = {"scale": jnp.full(2, 0.5), "name": "mix", "none": None}

    def call(self, x):
        return self.layers[1](x) * jnp.broadcast_to(self.table["scale"], x.shape[:1] + (2,))


VALUES = {
    "a compiled function of JAX": jax.nn.softplus,
    "an activation": jax.nn.relu,
    "a device": DEVICE,
    "a sharding": jax.sharding.SingleDeviceSharding(DEVICE),
    "a sharding on a mesh": jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",)), jax.sharding.PartitionSpec("data")
    ),
}
WRAPPERS = {
    "alone": lambda value: value,
    "dataclass": Config,
    "dataclass with slots": Slotted,
    "named tuple": Named,
    "partial": lambda value: functools.partial(max, value, key=value),
    "in containers": lambda value: [(value, 1), {"config": Config(Named(value))}],
}
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
}


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_have_the_structure_of_the_original(duplicate):
    for value in VALUES:
        for wrapper in WRAPPERS:
            module = Holder(WRAPPERS[wrapper](VALUES[value])).init(X)
            other = COPIES[duplicate](module)
            assert jax.tree.structure(other) == jax.tree.structure(module), (value, wrapper)
            assert type(other.config) is type(module.config), (value, wrapper)
    namespace = Holder(types.SimpleNamespace(act=jax.nn.gelu)).init(X)
    assert COPIES[duplicate](namespace).config == namespace.config


def test_a_copy_keeps_compiled_functions_without_a_name():
    module = Holder(Config((jax.jit(lambda x: x),)))
    assert jax.tree.structure(copy.deepcopy(module)) == jax.tree.structure(module)


def test_a_copy_of_a_configuration_is_independent():
    @dataclasses.dataclass
    class Mutable:
        act: tp.Any
        sizes: list[int]

    module = Holder(Mutable(jax.nn.softplus, [1, 2]))
    other = copy.deepcopy(module)
    other.config.sizes.append(3)
    assert module.config.sizes == [1, 2] and other.config.act is jax.nn.softplus


def test_a_device_that_is_not_there():
    text = pickle.dumps(Holder(DEVICE))
    number = b"K" + bytes([DEVICE.id])
    assert text.count(number) == 1
    with pytest.raises(ValueError, match="the device 99 of the platform 'cpu' is not there"):
        pickle.loads(text.replace(number, b"K" + bytes([99])))  # of a machine with more devices
    assert pickle.loads(text).config is DEVICE


@pytest.mark.parametrize("make", [lambda: Mix().init(X), lambda: Holder(Config(jax.nn.relu)).init(X), Affine])
def test_structures_in_pickles(make):
    module = make()
    leaves, structure = jax.tree.flatten(module)
    again = pickle.loads(pickle.dumps(structure))
    assert again == structure and hash(again) == hash(structure)
    assert jax.tree.structure(again.unflatten(leaves)) == structure
    shared = [Affine(2).init(X)] * 2
    structure = jax.tree.structure({"both": Holder(1), "shared": shared})
    assert pickle.loads(pickle.dumps(structure)) == structure


def test_a_structure_in_another_process(tmp_path):
    structure = jax.tree.structure(Mix().init(X))
    (tmp_path / "structure").write_bytes(pickle.dumps(structure))
    program = (
        "import pickle, jax, jax.numpy as jnp, tests.core.test_pickling as t; "
        f"structure = pickle.load(open({str(tmp_path / 'structure')!r}, 'rb')); "
        "assert structure == jax.tree.structure(t.Mix().init(t.X)); print(structure.num_leaves)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout == f"{structure.num_leaves}\n", run.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Containers of arrays and static values
# ---------------------------------------------------------------------------------------------------------------------


def has_no_children(value):
    leaves = jax.tree.leaves(value, is_leaf=lambda part: part is not value)
    return not leaves or leaves[0] is value


def test_maps_that_stop_at_empty_nodes_change_nothing():
    module = Mix().init(X)
    stopped = []

    def note(value):
        stopped.append(value)
        return value

    again = jax.tree.map(note, module, is_leaf=has_no_children)
    assert jax.tree.structure(again) == jax.tree.structure(module)
    assert [type(value) for value in stopped if not isinstance(value, jax.Array)] == [Affine, type(None)]
    marked = jax.tree.map(lambda value: "mark", module, is_leaf=has_no_children)
    assert marked.layers[0] is jax.nn.relu and marked.layers[2] == "text" and marked.layers[3]["b"] == 1
    assert marked.layers[3]["c"] == ["mark", 2.0] and marked.layers[4] == [3]


def test_the_paths_of_containers_with_static_values():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(Mix().init(X))[0]]
    assert paths == [
        ".layers[1].w",
        ".layers[1].b",
        ".layers[3]['c'][0]",
        ".table['scale']",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Protocols
# ---------------------------------------------------------------------------------------------------------------------


class Encodes(tp.Protocol):
    size: int

    def encode(self, x: jax.Array) -> jax.Array: ...


@tp.runtime_checkable
class Decodes(tp.Protocol):
    def decode(self, x: jax.Array) -> jax.Array: ...


class Coder(elegy.Module, Encodes, Decodes):
    def __init__(self, size: int):
        self.size = size

    def encode(self, x):
        return Affine(self.size)(x)

    def decode(self, x):
        return Affine(3)(x)

    def call(self, x):
        return self.decode(self.encode(x))


def test_a_module_of_protocols():
    coder = Coder(2)
    assert coder(X).shape == (2, 3) and set(coder.submodules) == {"affine", "affine_1"}
    assert isinstance(coder, Decodes) and isinstance(coder, elegy.Module) and not isinstance(3, Coder)
    for other in (copy.deepcopy(coder), pickle.loads(pickle.dumps(coder)), jax.tree.map(lambda a: a, coder)):
        assert jax.tree.structure(other) == jax.tree.structure(coder)
        np.testing.assert_array_equal(other(X), coder(X))
    np.testing.assert_allclose(elegy.jit(coder)(X), coder(X), rtol=1e-6)
