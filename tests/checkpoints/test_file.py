"""Saving trees to files and loading them back."""

import json
import os
import string
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings, strategies as st

import elegy
from elegy.errors import CheckpointError
from tests.helpers import Affine, Net

SMALL_FLOATS = [name for name in dir(ml_dtypes) if name.startswith(("bfloat", "float", "int", "uint"))]
DTYPES = [
    *(np.dtype(name) for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()),
    *(np.dtype(name) for name in "float16 float32 float64 complex64 complex128 >f4 >i2 >c8".split()),
    *(np.dtype(getattr(ml_dtypes, name)) for name in SMALL_FLOATS),
]
IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg"]
SHAPES = [(), (0,), (3,), (2, 3), (2, 0, 3)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.safetensors"


def bits(leaf):
    """Everything that must survive: the type, the dtype, the shape and every bit."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        kind = (jax.Array, leaf.weak_type) if isinstance(leaf, jax.Array) else type(leaf)
        return kind, leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()
    return type(leaf), repr(leaf)


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert bits(left) == bits(right)


def random_array(dtype, shape, seed=0):
    """An array of random bits, as far as the dtype has a meaning for all of them."""
    data = np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize)
    array = np.frombuffer(data, np.uint8)
    if dtype == np.bool_:
        array = array % 2
    elif dtype.name.endswith(("int4", "int2", "int1")):
        bits_of = int(dtype.name[-1])
        values = array % 2**bits_of
        return (
            (values.astype(np.int8) - (0 if dtype.name[0] == "u" else 2 ** (bits_of - 1))).astype(dtype).reshape(shape)
        )
    elif dtype.name.startswith(("float4", "float6")):
        array = array % 2 ** int(dtype.name[5])
    return array.view(dtype).reshape(shape)


def blank(leaf):
    """Something like a leaf, with another value."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.zeros_like(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        return jnp.zeros_like(leaf)
    if isinstance(leaf, (np.ndarray, np.generic)):
        zeros = np.zeros(leaf.shape, leaf.dtype)
        return zeros[()] if isinstance(leaf, np.generic) else zeros
    return type(leaf)()


# ---------------------------------------------------------------------------------------------------------------------
# Round trips
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.str if dtype.byteorder == ">" else dtype.name)
def test_numpy_arrays_keep_every_bit(dtype, path):
    tree = [random_array(dtype, shape) for shape in SHAPES]
    elegy.save(path, tree)
    loaded = elegy.load(path, like=jax.tree.map(blank, tree))
    assert_same(tree, loaded)
    for array in loaded:
        array[...] = 0  # it is an array of its own, and may be written to


@pytest.mark.parametrize(
    "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "complex64", "bool", "int8"]
)
def test_jax_arrays_keep_every_bit(name, path):
    tree = [jnp.asarray(random_array(jnp.dtype(name), shape)) for shape in SHAPES]
    elegy.save(path, tree)
    assert_same(tree, elegy.load(path, like=jax.tree.map(blank, tree)))
    abstract = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in tree]
    assert_same(tree, elegy.load(path, like=abstract))


@pytest.mark.parametrize("shape", [(), (3,), (2, 0)], ids=str)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_keys(impl, shape, path):
    count = int(np.prod(shape))
    keys = jax.random.split(jax.random.key(7, impl=impl), (1 + count,))[:count].reshape(shape)
    elegy.save(path, {"key": keys})
    loaded = elegy.load(path, like={"key": jax.ShapeDtypeStruct(keys.shape, keys.dtype)})
    assert_same({"key": keys}, loaded)
    for old, new in zip(keys.reshape(-1), loaded["key"].reshape(-1), strict=True):
        assert bits(jax.random.normal(old, [2])) == bits(jax.random.normal(new, [2]))


def test_weakly_typed_arrays_stay_so(path):
    tree = {
        "rate": jnp.asarray(0.1),
        "steps": jnp.asarray(3),
        "vector": jnp.full([2], 1 / 3),
        "none": jnp.full([0], 1.0),
    }
    assert all(leaf.weak_type for leaf in jax.tree.leaves(tree))
    elegy.save(path, tree)
    assert_same(tree, elegy.load(path, like=jax.tree.map(lambda leaf: leaf * 0, tree)))
    assert_same(tree, elegy.load(path, like=jax.eval_shape(lambda: tree)))


def test_arrays_that_do_not_lie_in_rows(path):
    tree = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(10)[::3],
        "reversed": np.arange(3, dtype=np.complex64)[::-1],
        "broadcast": np.broadcast_to(np.float32(2), [2, 2]),
    }
    elegy.save(path, tree)
    for name, array in elegy.load(path, like=jax.tree.map(blank, tree)).items():
        np.testing.assert_array_equal(array, tree[name])


def test_scalars_of_numpy_and_python(path):
    tree = {
        "numpy": np.float32(0.1),
        "brain": ml_dtypes.bfloat16(3),
        "flag": True,
        "count": -(2**70),
        "rates": (0.1, -0.0, float("inf"), 5e-324),
        "text": 'a "quoted"\nwörd \0',
        "nothing": None,
    }
    elegy.save(path, tree)
    assert_same(tree, elegy.load(path, like=jax.tree.map(blank, tree)))


def test_nan_as_a_python_float(path):
    elegy.save(path, [float("nan")])
    (value,) = elegy.load(path, like=[0.0])
    assert type(value) is float and value != value


@pytest.mark.parametrize("tree", [{}, None, (), [None, {}]], ids=repr)
def test_empty_trees(tree, path):
    elegy.save(path, tree)
    assert elegy.load(path, like=tree) == tree


def test_one_array_is_a_tree_too(path):
    elegy.save(path, jnp.arange(3))
    assert_same(jnp.arange(3), elegy.load(path, like=jnp.zeros(3, jnp.int32)))


@pytest.mark.usefixtures("default_promotion")
def test_a_module_with_its_optimizer(path):
    module = Affine(2).init(jnp.ones([1, 3]))
    optimizer = optax.chain(optax.masked(optax.adam(0.1), {"w": True, "b": False}), optax.sgd(0.1, 0.9))
    parameters = module.get_parameters()
    state = optimizer.update(parameters, optimizer.init(parameters))[1]
    tree = {"module": module, "optimizer": state}
    elegy.save(path, tree)
    loaded = elegy.load(path, like=jax.tree.map(jnp.zeros_like, tree))
    assert_same(tree, loaded)
    assert type(loaded["optimizer"][1][0]) is optax.TraceState
    x = jnp.linspace(0, 1, 6).reshape(2, 3)
    np.testing.assert_array_equal(loaded["module"](x), module(x))


def test_names(path):
    module = Net().init(jnp.ones([1, 3]))
    tree = {"module": module, "optimizer": optax.adam(0.1).init(module.get_parameters()), "steps": [jnp.zeros(2), 3]}
    elegy.save(path, tree)
    with safetensors.safe_open(path, framework="numpy") as file:
        names, header = set(file.keys()), json.loads(file.metadata()["elegy"])
    layers = [f"{layer}/{name}" for layer in ("affine", "affine_1", "affine_2") for name in "wb"]
    moments = [f"optimizer/0/{moment}/{layer}" for moment in ("mu", "nu") for layer in layers]
    assert names == {"steps/0", "optimizer/0/count", *moments, *(f"module/{layer}" for layer in layers)}
    assert header["format"] == 1
    assert header["elegy"] == elegy.__version__
    assert header["values"] == {"steps/1": {"type": "int", "value": "3"}}


def test_other_programs_can_read_the_file(path):
    elegy.save(path, {"a": jnp.arange(3.0), "b": [jnp.ones([2], bool)]})
    arrays = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    np.testing.assert_array_equal(arrays["b/0"], [True, True])


def test_a_file_of_another_program(path):
    arrays = {"encoder.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "encoder.phase": np.ones(2, np.complex64)}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    like = {"encoder": {"weight": jnp.zeros([2, 3]), "phase": jnp.zeros(2, jnp.complex64)}}
    loaded = elegy.load(path, like=like, rename=lambda name: name.replace(".", "/"))
    assert_same(loaded["encoder"]["weight"], jnp.arange(6.0).reshape(2, 3))
    assert_same(loaded["encoder"]["phase"], jnp.ones(2, jnp.complex64))


def test_a_dtype_of_another_program_that_cannot_be_read(path):
    safetensors.numpy.save_file({"w": np.ones(2, ml_dtypes.float8_e4m3fn)}, path)
    with pytest.raises(CheckpointError, match=r"'w': F8_E4M3\[2\] in the file, float8_e4m3fn\[2\] in `like`"):
        elegy.load(path, like={"w": jnp.zeros(2, jnp.float8_e4m3fn)})


def test_equal_trees_make_equal_files(path, tmp_path):
    tree = {"a": jnp.ones(3, jnp.int4), "b": jax.random.key(0), "c": 1.5, "d": jnp.zeros([2, 2])}
    elegy.save(path, tree)
    elegy.save(tmp_path / "again", tree)
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_two_processes_agree(path):
    code = """
        import sys, jax, jax.numpy as jnp, elegy
        like = {"x": jax.ShapeDtypeStruct([3], jnp.float8_e5m2), "key": jax.eval_shape(lambda: jax.random.key(0))}
        tree = elegy.load(sys.argv[1], like=like)
        print(tree["x"].astype(jnp.float32).tolist(), jax.random.key_data(tree["key"]).tolist())
    """
    elegy.save(path, {"x": jnp.asarray([1, 2, 3], jnp.float8_e5m2), "key": jax.random.key(5)})
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "XLA_FLAGS": ""})
    assert done.stdout.strip() == "[1.0, 2.0, 3.0] [0, 5]"


# ---------------------------------------------------------------------------------------------------------------------
# Random trees
# ---------------------------------------------------------------------------------------------------------------------

finite = st.integers(0, 2**32 - 1)
numpy_arrays = st.builds(random_array, st.sampled_from(DTYPES), st.sampled_from(SHAPES), finite)
jax_arrays = st.builds(
    lambda name, shape, seed: jnp.asarray(random_array(jnp.dtype(name), shape, seed)),
    st.sampled_from(["bool", "int8", "uint32", "float16", "float32", "bfloat16", "complex64", "int4", "float8_e4m3fn"]),
    st.sampled_from(SHAPES),
    finite,
)
random_keys = st.builds(lambda seed, impl: jax.random.key(seed, impl=impl), finite, st.sampled_from(IMPLEMENTATIONS))
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.none()
leaves = numpy_arrays | jax_arrays | random_keys | scalars
keys = st.text(string.ascii_letters + "_äß", min_size=1, max_size=4)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(tree=trees)
def test_any_tree_comes_back(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("trees") / "tree"
    elegy.save(path, tree)
    like = jax.tree.map(blank, tree)
    before = [bits(leaf) for leaf in jax.tree.leaves(like)]
    assert_same(tree, elegy.load(path, like=like))
    assert [bits(leaf) for leaf in jax.tree.leaves(like)] == before
    assert_same(tree, elegy.load(path, like=tree, strict=False))


class Branch(elegy.Module):
    """A module of whatever a test puts in it."""

    def __init__(self, values, size, label):
        self.values = values
        self.size = size
        self.label = label

    def call(self):
        self.add_parameter("w", [self.size], initializer=elegy.initializers.RandomUniform())
        self.add_parameter("n", [], jnp.int32, trainable=False)
        for child in jax.tree.leaves(self.values, is_leaf=lambda leaf: isinstance(leaf, Branch)):
            if isinstance(child, Branch) and not child.initialized:
                child()


# The values of each module: arrays, and the numbers of modules made before.
plans = st.lists(
    st.recursive(
        jax_arrays | st.none() | st.integers(0, 4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=2),
        max_leaves=4,
    ),
    min_size=1,
    max_size=5,
)


def grow(plan):
    """Modules below modules, in attributes, lists and dicts, some of them in several places."""
    made = []
    for size, values in enumerate(plan):
        values = jax.tree.map(lambda v: made[v % len(made)] if isinstance(v, int) and made else v, values)
        made.append(Branch(values, size, f"branch {size}"))
    root = Branch(made, 1, "root")
    root()
    return root


@settings(max_examples=25)
@given(plan=plans, seed=finite, frozen=st.sets(st.integers(0, 4)))
def test_any_module_comes_back(plan, seed, frozen, tmp_path_factory):
    with elegy.rng_context(seed):
        module = grow(plan)
    for index, branch in enumerate(module.values):
        branch.trainable = branch.trainable and index not in frozen
    path = tmp_path_factory.mktemp("modules") / "module"
    elegy.save(path, module)
    loaded = elegy.load(path, like=jax.tree.map(blank, module))
    assert_same(module, loaded)
    places = jax.tree.leaves(module.values, is_leaf=lambda leaf: isinstance(leaf, Branch))
    loaded_places = jax.tree.leaves(loaded.values, is_leaf=lambda leaf: isinstance(leaf, Branch))
    for place, loaded_place in zip(places, loaded_places, strict=True):
        assert place.trainable == loaded_place.trainable
        inner, loaded_inner = place.values, loaded_place.values
        if isinstance(inner, Branch):
            assert loaded_inner is loaded_places[places.index(inner)]


# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------


class Tied(elegy.Module):
    """One layer in three places."""

    def __init__(self):
        self.first = Affine(2)
        self.layers = [Affine(2), self.first]
        self.again = self.first

    def call(self, x):
        return self.again(self.layers[1](self.layers[0](self.first(x))))


def test_a_shared_module_is_saved_once_and_stays_shared(path):
    x = jnp.ones([1, 2])
    module = Tied().init(x)
    elegy.save(path, module)
    assert set(safetensors.numpy.load_file(path)) == {"first/w", "first/b", "layers/0/w", "layers/0/b"}
    loaded = elegy.load(path, like=Tied().init(x))
    assert loaded.first is loaded.layers[1] is loaded.again
    np.testing.assert_array_equal(loaded(x), module(x))


def test_frozen_flags_come_from_like(path):
    x = jnp.ones([1, 2])
    elegy.save(path, Net().init(x))
    like = Net().init(x)
    like.affine.trainable = False
    loaded = elegy.load(path, like=like)
    assert [loaded.affine.trainable, loaded.affine_1.trainable] == [False, True]


def test_like_is_not_modified(path):
    x = jnp.ones([1, 2])
    elegy.save(path, Net().init(x))
    like = Net().init(x)
    before = [bits(leaf) for leaf in jax.tree.leaves(like)]
    loaded = elegy.load(path, like=like)
    assert [bits(leaf) for leaf in jax.tree.leaves(like)] == before
    assert not np.array_equal(loaded.affine.w, like.affine.w)


def test_an_abstract_module(path):
    module = Net().init(jnp.ones([1, 3]))
    elegy.save(path, module)
    assert_same(module, elegy.load(path, like=jax.eval_shape(lambda: module)))


def test_into_the_module_that_one_has(path):
    x = jnp.ones([1, 2])
    module, other = Tied().init(x, rng=1), Tied().init(x, rng=2)
    elegy.save(path, module)
    first = other.first
    other.set_parameters(elegy.load(path, like=other).get_parameters())
    assert other.first is first
    assert_same(module, other)


def test_state_and_the_key_of_a_module_are_saved(path):
    class Noisy(elegy.Module):
        def call(self, x):
            n = self.add_parameter("n", [], jnp.int32, trainable=False)
            self.update_parameter("n", n + 1)
            return x + jax.random.normal(elegy.next_rng_key(), x.shape)

    noisy = jax.jit(lambda m, x: (m(x), m)[1])(Noisy().init(jnp.ones(2)), jnp.ones(2))
    elegy.save(path, noisy)
    loaded = elegy.load(path, like=Noisy().init(jnp.ones(2)))
    assert loaded.n == 1
    step = jax.jit(lambda m, x: (m(x), m))
    assert bits(step(noisy, jnp.ones(2))[0]) == bits(step(loaded, jnp.ones(2))[0])


def test_a_layer_of_equinox_in_a_module(path):
    class Wrapped(elegy.Module):
        def __init__(self, key):
            self.mlp = eqx.nn.MLP(2, 1, 4, 1, key=key)

        def call(self, x):
            return self.mlp(x)

    module, other = Wrapped(jax.random.key(0)), Wrapped(jax.random.key(1))
    elegy.save(path, module)
    loaded = elegy.load(path, like=other)
    np.testing.assert_array_equal(loaded(jnp.ones(2)), module(jnp.ones(2)))


def test_a_module_forty_levels_deep(path):
    class Level(elegy.Module):
        def __init__(self, below, value):
            self.w = self.add_parameter("w", initializer=jnp.float32(value))
            self.below = below

    def chain(sign):
        level = None
        for value in range(40):
            level = Level(level, sign * value)
        return level

    elegy.save(path, chain(1))
    loaded = elegy.load(path, like=chain(-1))
    for value in reversed(range(40)):
        assert loaded.w == value
        loaded = loaded.below


@pytest.mark.parametrize("strict", [True, False])
def test_an_uninitialised_like(strict, path):
    elegy.save(path, {"module": Net().init(jnp.ones([1, 2]))})
    with pytest.raises(CheckpointError, match="'module': this Net of `like` is not initialised.*module.init"):
        elegy.load(path, like={"module": Net()}, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_a_like_with_one_uninitialised_layer(strict, path):
    class Pair(elegy.Module):
        def __init__(self):
            self.layers = [Affine(2), Affine(2)]

        def call(self, x, both):
            return [layer(x) for layer in self.layers[: 1 + both]]

    elegy.save(path, Pair().init(jnp.ones([1, 2]), True))
    with pytest.raises(CheckpointError, match="'layers/1': this Affine of `like` is not initialised"):
        elegy.load(path, like=Pair().init(jnp.ones([1, 2]), False), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_an_optimiser_without_state(strict, path):
    module, optimizer = Net().init(jnp.ones([1, 2])), elegy.Optimizer(optax.adam(1e-3))
    optimizer.adapt(module)
    elegy.save(path, {"module": module, "optimizer": optimizer})
    new = {"module": Net().init(jnp.ones([1, 2])), "optimizer": elegy.Optimizer(optax.adam(1e-3))}
    with pytest.raises(CheckpointError) as raised:
        elegy.load(path, like=new, strict=strict)
    _, line, *rest = str(raised.value).splitlines()
    assert "'optimizer': this Optimizer of `like` is not initialised, and the file has arrays below it (" in line
    assert line.endswith("Create its state first: optimizer.adapt(module).")
    assert not any("optimizer" in other for other in rest)  # not the names below it, nor strict=
    new["optimizer"].adapt(new["module"])
    elegy.load(path, like=new, strict=strict)
    with pytest.raises(CheckpointError, match="this Optimizer is not initialised. Create .*optimizer.adapt"):
        elegy.save(path, elegy.Optimizer(optax.adam(1e-3)))


def test_the_cause_comes_first(path):
    elegy.save(path, {"module": Net().init(jnp.ones([1, 2])), "extra": jnp.ones(2)})
    with pytest.raises(CheckpointError) as raised:
        elegy.load(path, like={"module": Net(), "other": jnp.ones(2)})
    _, first, *rest = str(raised.value).splitlines()
    assert first.startswith("  'module': this Net of `like` is not initialised")
    assert [line.split(":")[0] for line in rest[:2]] == ["  'other'", "  'extra'"]
    assert not any(line.startswith("  'module") for line in rest)


def test_a_module_that_need_not_be_initialised(path):
    class Constructed(elegy.Module):
        def __init__(self, value):
            self.w = self.add_parameter("w", initializer=jnp.float32(value))

    elegy.save(path, Constructed(1))
    assert elegy.load(path, like=Constructed(2)).w == 1


# ---------------------------------------------------------------------------------------------------------------------
# Devices and precision
# ---------------------------------------------------------------------------------------------------------------------


def test_arrays_go_where_like_has_them(path):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    second = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    tree = {
        "spread": jax.device_put(jnp.arange(4.0), spread),
        "second": jax.device_put(jax.random.key(3), second),
        "free": jnp.ones(2),
    }
    elegy.save(path, tree)
    abstract = {**tree, "spread": jax.ShapeDtypeStruct([4], jnp.float32, sharding=spread)}
    for like in (tree, abstract):
        loaded = elegy.load(path, like=like)
        assert_same(tree, loaded)
        assert loaded["spread"].sharding == spread
        assert loaded["second"].sharding == second
        assert not loaded["free"].committed


def test_double_precision(path):
    elegy.save(path, {"x": np.full(2, 1 / 3)})
    like = {"x": jax.ShapeDtypeStruct([2], np.float64)}
    with pytest.raises(CheckpointError, match="JAX has no float64 here.*jax_enable_x64"):
        elegy.load(path, like=like)
    with jax.enable_x64(True):
        loaded = elegy.load(path, like=like)
        assert loaded["x"].dtype == np.float64
        assert (loaded["x"] == 1 / 3).all()


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit
# ---------------------------------------------------------------------------------------------------------------------


def test_every_difference_is_listed_at_once(path):
    elegy.save(path, {"a": jnp.ones([2, 3]), "b": jnp.ones(2), "c": jnp.ones(1), "d": 1, "f": 2})
    like = {"a": jnp.ones([3, 2]), "b": jnp.ones(2, jnp.int32), "e": jnp.ones(()), "d": 1.0, "f": 3}
    with pytest.raises(CheckpointError) as caught:
        elegy.load(path, like=like)
    message = str(caught.value)
    for line in [
        "'a': float32[2,3] in the file, float32[3,2] in `like`.",
        "'b': float32[2] in the file, int32[2] in `like`.",
        "'c': not in `like` (float32[1] in the file).",
        "'d': Python int in the file, Python float in `like`.",
        "'e': not in the file (float32[] in `like`).",
        "strict=False",
    ]:
        assert line in message
    assert "'f'" not in message


def test_only_names_call_for_the_advice_on_names(path):
    elegy.save(path, {"a": jnp.ones(2)})
    with pytest.raises(CheckpointError) as caught:
        elegy.load(path, like={"a": jnp.ones(3)})
    assert "strict=False" not in str(caught.value)


def test_a_part_of_a_tree(path):
    elegy.save(path, {"a": jnp.ones(2), "b": jnp.ones(3)})
    like = {"a": jnp.zeros(2), "c": jnp.zeros(4), "d": jax.ShapeDtypeStruct([], jnp.float32)}
    loaded = elegy.load(path, like=like, strict=False)
    assert_same({**like, "a": jnp.ones(2)} | {"d": 0}, {**loaded, "d": 0})
    assert loaded["d"] is like["d"]


@pytest.mark.parametrize("like", [jnp.ones(3), jnp.ones(2, jnp.int32), np.ones(2), 1.0, jax.random.key(0)], ids=str)
def test_a_part_of_a_tree_must_still_fit(like, path):
    elegy.save(path, {"a": jnp.ones(2)})
    with pytest.raises(CheckpointError, match="'a': "):
        elegy.load(path, like={"a": like}, strict=False)


def test_python_types_must_be_equal(path):
    elegy.save(path, [True])
    with pytest.raises(CheckpointError, match="Python bool in the file, Python int in `like`"):
        elegy.load(path, like=[1])


def test_keys_of_another_implementation(path):
    elegy.save(path, jax.random.key(0))
    with pytest.raises(CheckpointError, match="key<fry>"):
        elegy.load(path, like=jax.random.key(0, impl="rbg"))


def test_keys_of_an_unknown_implementation(path):
    data = np.zeros(2, np.uint32)
    entry = {"dtype": "key<fry>", "shape": [], "key": "nobody's"}
    header = {"format": 1, "elegy": "1", "arrays": {"k": entry}, "values": {}}
    safetensors.numpy.save_file({"k": data}, path, metadata={"elegy": json.dumps(header)})
    with pytest.raises(CheckpointError, match='the implementation "nobody\'s", which cannot be made here'):
        elegy.load(path, like={"k": jax.random.key(0)})


# ---------------------------------------------------------------------------------------------------------------------
# Renaming
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def renamable(path):
    elegy.save(path, {"a": {"b": {"w": jnp.ones(1)}, "c": jnp.ones(2)}, "ab": jnp.ones(3), "d": 4})
    return path


@pytest.mark.parametrize(
    "rename, like",
    [
        ({}, {"a": {"b": {"w": [1]}, "c": [2]}, "ab": [3], "d": 4}),
        ({"a": "x"}, {"x": {"b": {"w": [1]}, "c": [2]}, "ab": [3], "d": 4}),
        ({"a": "x/y", "d": "z"}, {"x": {"y": {"b": {"w": [1]}, "c": [2]}}, "ab": [3], "z": 4}),
        ({"a": "x", "a/b": "y"}, {"x": {"c": [2]}, "y": {"w": [1]}, "ab": [3], "d": 4}),
        ({"a/b/w": "w"}, {"a": {"c": [2]}, "w": [1], "ab": [3], "d": 4}),
        ({"a": "", "ab": "a"}, {"b": {"w": [1]}, "c": [2], "a": [3], "d": 4}),
        ({"": "all"}, {"all": {"a": {"b": {"w": [1]}, "c": [2]}, "ab": [3], "d": 4}}),
        ({"ab": "d", "d": "ab"}, {"a": {"b": {"w": [1]}, "c": [2]}, "d": [3], "ab": 4}),
        (str.upper, {"A": {"B": {"W": [1]}, "C": [2]}, "AB": [3], "D": 4}),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_renaming(rename, like, renamable):
    def filled(make):
        return jax.tree.map(
            lambda x: make(x) if isinstance(x, list) else x, like, is_leaf=lambda x: isinstance(x, list)
        )

    loaded = elegy.load(renamable, like=filled(jnp.zeros), rename=rename)
    assert_same(filled(jnp.ones), loaded)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "rename, message",
    [
        ({"b": "x"}, "'b': no name in the file is this or begins with 'b/'"),
        ({"a/": "x"}, "'a/': no name"),
        ({"a/b": "x", "a/b/w": "y"}, "'a/b': no name"),
        ({"ab": "d"}, "'d': both 'ab' and 'd' would have this name"),
        (lambda name: "same", "'same': both"),
        (lambda name: None, "rename gives None, which is not a name"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_renaming_that_cannot_be(rename, message, strict, renamable):
    with pytest.raises(CheckpointError, match=message):
        elegy.load(renamable, like={"x": jnp.zeros(1)}, rename=rename, strict=strict)


def test_the_module_out_of_a_checkpoint(path):
    module = Net().init(jnp.ones([1, 2]))
    elegy.save(path, {"module": module, "steps": 5})
    loaded = elegy.load(path, like=Net().init(jnp.ones([1, 2])), rename={"module": ""}, strict=False)
    assert_same(module, loaded)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be saved
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf, message",
    [
        (jax.nn.relu, "is not an array. Save the arrays only: equinox.filter"),
        (object(), "a object is not an array"),
        (1j, "a complex is not an array"),
        (np.array(["text"]), "the dtype <U4 is not a numeric one"),
        (np.array([None]), "the dtype object is not a numeric one"),
        (np.zeros(2, "m8[s]"), "is not a numeric one"),
        (np.zeros(2, [("a", "f4")]), "is not a numeric one"),
        (np.zeros(2, jax.dtypes.float0), "is not a numeric one"),
        (np.str_("text"), "is not a numeric one"),
        (np.ma.masked_array([1, 2], [True, False]), "would lose its mask"),
        (jax.ShapeDtypeStruct([2], jnp.float32), "has no value"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_leaves_that_cannot_be_saved(leaf, message, path):
    with pytest.raises(CheckpointError) as caught:
        elegy.save(path, {"fine": jnp.ones(1), "bad": [leaf], "worse": {"still": leaf}})
    assert "'bad/0': " in str(caught.value) and "'worse/still': " in str(caught.value)
    assert message in str(caught.value)
    assert "'fine'" not in str(caught.value)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("excess", [0, 8])
def test_a_table_that_nobody_could_read(excess, path, monkeypatch):
    tree = {"w": np.ones(2), "text": ""}
    elegy.save(path, tree)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    tree["text"] = "x" * (100_000_000 - size + excess)
    if excess:
        with pytest.raises(CheckpointError, match=r"of the 1 arrays take 100000\d+ bytes.*\n  Stack arrays"):
            elegy.save(path, tree)
        assert list(path.parent.iterdir()) == [path]
        tree["text"] = ""
    else:
        elegy.save(path, tree)
    assert elegy.load(path, tree)["text"] == tree["text"]


def test_a_traced_array(path):
    with pytest.raises(CheckpointError, match="'x': the array is being traced.*outside of jax transforms"):
        jax.jit(lambda x: elegy.save(path, {"x": x}))(jnp.ones(2))


def test_a_donated_array(path):
    x = jnp.ones(2)
    x.delete()
    with pytest.raises(CheckpointError, match="'x': the array was donated"):
        elegy.save(path, {"x": x})


@pytest.mark.parametrize("tree", [{"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(2)}, {"a": [1], "a/0": 2}], ids=str)
def test_two_leaves_of_one_name(tree, path):
    with pytest.raises(CheckpointError, match="two leaves have this name"):
        elegy.save(path, tree)
    elegy.save(path, jnp.ones(()))
    with pytest.raises(CheckpointError, match="two leaves of `like` have this name"):
        elegy.load(path, like=tree, strict=False)


def test_the_reserved_name(path):
    with pytest.raises(CheckpointError, match="'__metadata__': this name is reserved"):
        elegy.save(path, {"__metadata__": jnp.ones(1)})


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_a_path_may_be_text(tmp_path):
    elegy.save(str(tmp_path / "text"), [1])
    assert elegy.load(str(tmp_path / "text"), like=[0]) == [1]


def test_a_link_stays_a_link(path):
    link = path.with_name("latest")
    link.symlink_to(path)
    elegy.save(path, [1])
    elegy.save(link, [2])
    assert link.is_symlink()
    assert elegy.load(path, like=[0]) == [2]


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_of_the_file_is_that_of_any_new_file(mask, mode, path):
    before = os.umask(mask)
    try:
        elegy.save(path, [jnp.ones(2)])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_relative_path(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    elegy.save(path.name, [1])
    assert elegy.load(path.name, like=[0]) == [1]


class Stop(BaseException):
    """As an interrupt from the keyboard."""


@pytest.mark.parametrize("error", [OSError("no space"), Stop()], ids=repr)
@pytest.mark.parametrize("name", ["os.fsync", "os.replace", "zlib.crc32"])
def test_a_failed_write_leaves_the_old_file(name, error, path, monkeypatch):
    elegy.save(path, {"x": jnp.ones(3)})
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(name, fail)
    with pytest.raises(type(error)):
        elegy.save(path, {"x": jnp.zeros(3)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_the_old_file(path):
    resource = pytest.importorskip("resource")  # not on Windows
    elegy.save(path, {"x": np.ones(3)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="was not written"):
            elegy.save(path, {"x": np.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_file_is_whole_before_it_takes_its_name(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("replace"), replace(old, new)))
    elegy.save(path, {"x": jnp.ones(3)})
    assert events == [path.stat().st_ino, "replace", path.parent.stat().st_ino]


def test_a_killed_process_leaves_a_whole_file(path):
    code = """
        import sys, numpy as np, elegy
        value = 0
        while True:
            value += 1
            elegy.save(sys.argv[1], {"x": np.full(300_000, value), "value": value})
            print(value, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": ""}) as process:
        assert process.stdout is not None
        written = [int(process.stdout.readline()) for _ in range(3)]
        process.kill()
    tree = elegy.load(path, like={"x": np.zeros(300_000, int), "value": 0})
    assert tree["value"] >= max(written)
    assert (tree["x"] == tree["value"]).all()


def test_no_such_file(path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        elegy.load(path, like=[1])


def test_a_folder(path):
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        elegy.load(path, like=[1])
    with pytest.raises(IsADirectoryError, match="is a folder. Give the path of a file"):
        elegy.save(path, [1])
    assert os.listdir(path.parent) == [path.name]


def test_no_such_folder(path):
    with pytest.raises(FileNotFoundError, match="does not exist. Create it first: os.makedirs"):
        elegy.save(path / "below", [1])


@pytest.mark.parametrize("content", [b"", b"PK\3\4 some other format", b"\x08" + 7 * b"\0" + b'{"x": 1}'], ids=repr)
def test_a_file_of_another_kind(content, path):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged, or not a safetensors file"):
        elegy.load(path, like=[1])


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off(kept, path):
    elegy.save(path, {"x": jnp.ones(300)})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="is damaged, or not a safetensors file"):
        elegy.load(path, like={"x": jnp.ones(300)})


@pytest.mark.parametrize(
    "header",
    [
        "no JSON",
        "[]",
        '{"format": "new"}',
        '{"arrays": {"x": 3}}',
        '{"arrays": {"x": {"dtype": "object", "shape": [2]}}}',
        '{"arrays": {"x": {"dtype": "nothing", "shape": [2]}}}',
        '{"arrays": {"x": {"dtype": "int4", "shape": [3]}}}',
        '{"arrays": {"x": {"dtype": "complex64", "shape": [2]}}}',
        '{"arrays": {"x": {"dtype": "key<fry>", "shape": [3], "key": "threefry2x32"}}}',
        '{"values": {"y": {"type": "eval", "value": "1"}}}',
        '{"values": {"y": {"type": "int", "value": "one"}}}',
    ],
)
def test_a_damaged_header(header, path):
    safetensors.numpy.save_file({"x": np.ones([2, 1], np.uint8)}, path, metadata={"elegy": header})
    with pytest.raises(CheckpointError, match="its header is damaged"):
        elegy.load(path, like={"x": jnp.ones(2)})


def test_a_file_of_the_future(path):
    header = {"format": 2, "elegy": "9.0", "arrays": "something else"}
    safetensors.numpy.save_file({"x": np.ones(2)}, path, metadata={"elegy": json.dumps(header)})
    with pytest.raises(CheckpointError, match="has format 2.*\n.*Upgrade to Elegy 9.0"):
        elegy.load(path, like={"x": jnp.ones(2)})


def test_safetensors_is_imported_when_it_is_needed():
    code = "import sys, elegy; print([name for name in sys.modules if 'safetensors' in name])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "XLA_FLAGS": ""})
    assert done.stdout.strip() == "[]"
