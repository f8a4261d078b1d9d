"""What must hold of every layer, loss and metric: the table is in descriptors/."""

import contextlib
import functools
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from tests.generic.descriptors import DESCRIPTORS, FAMILIES, Descriptor, describe, golden
from tests.helpers import assert_close, assert_same, concrete

GOLDEN = {family: golden(family) for family in FAMILIES}
FROZEN = {name: described for frozen in GOLDEN.values() for name, described in frozen.items()}
LAYERS = [descriptor for descriptor in DESCRIPTORS if descriptor.layer]
# Those that consist of others here, and take long to compile, are left to the tests over all.
ONE_OF_EACH = [
    descriptor
    for descriptor in DESCRIPTORS
    if "," not in descriptor.name and descriptor.name not in ("Transformer", "TransformerDecoder")
]

# What is run by the tests below with the same kinds of arguments need not have its annotations checked once more.
unchecked = pytest.mark.usefixtures("unchecked")

over_all = pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=lambda descriptor: descriptor.name)
over_one_of_each = pytest.mark.parametrize("descriptor", ONE_OF_EACH, ids=lambda descriptor: descriptor.name)
over_layers = pytest.mark.parametrize("descriptor", LAYERS, ids=lambda descriptor: descriptor.name)

KEY = jax.random.key(7)
TRACES: list[None] = []


@functools.cache
def _initialised(name: str, dtype: Any) -> elegy.Module:
    descriptor = next(descriptor for descriptor in DESCRIPTORS if descriptor.name == name)
    return descriptor.factory(dtype).init(*descriptor.inputs, rng=3)


def initialised(descriptor: Descriptor, dtype: Any = None) -> elegy.Module:
    return _initialised(descriptor.name, dtype).copy()


def apply(module: Any, *inputs: Any, training: bool = True, rng: Any = KEY) -> tuple[Any, Any]:
    return module.apply(*inputs, rng=rng, training=training)


# For what is compared with: modules of equal structure share one compilation, over all tests.
@functools.partial(jax.jit, static_argnames="training")
def reference(module: Any, *inputs: Any, training: bool = True, rng: Any = KEY) -> tuple[Any, Any]:
    TRACES.append(None)
    return apply(module, *inputs, training=training, rng=rng)


def cast(inputs: tuple[np.ndarray, ...], dtype: Any) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(x).astype(dtype) if x.dtype == np.float32 else jnp.asarray(x) for x in inputs)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        elegy.set_rng(42)
        yield


def test_the_table_and_the_golden_file_list_the_same() -> None:
    for family, descriptors in FAMILIES.items():
        assert [descriptor.name for descriptor in descriptors] == list(GOLDEN[family])
    names = [descriptor.name for descriptor in DESCRIPTORS]
    assert len(names) == len(set(names))


@unchecked
@over_all
def test_names_shapes_and_kinds(descriptor: Descriptor) -> None:
    assert describe(initialised(descriptor)) == FROZEN[descriptor.name]


@unchecked
@over_all
def test_equal_arguments_make_equal_structures(descriptor: Descriptor) -> None:
    one, other = initialised(descriptor), descriptor.factory(None).init(*descriptor.inputs, rng=3)
    if descriptor.name != "block":  # is given a lambda, and no two lambdas are equal
        assert jax.tree.structure(one) == jax.tree.structure(other)
    assert_same(jax.tree.leaves(one), jax.tree.leaves(other))


@over_all
def test_init_from_shapes_alone(descriptor: Descriptor) -> None:
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in descriptor.inputs]
    module = descriptor.factory(None).init(*shapes, rng=3)
    assert concrete(module)
    assert_same(module.get_parameters(), initialised(descriptor).get_parameters())


@over_all
def test_jax_jit(descriptor: Descriptor) -> None:
    """With a key for the random draws, what is compiled equals what is not; and what it returns is not traced anew."""
    for training in (True, False):
        eager = compiled = initialised(descriptor)
        for seed in range(2):
            expected, eager = apply(eager, *descriptor.inputs, training=training, rng=seed)
            before = len(TRACES)
            rng = jax.random.key(seed)
            outputs, compiled = reference(compiled, *descriptor.inputs, training=training, rng=rng)
            assert len(TRACES) == before or seed == 0
            assert_close((outputs, compiled), (expected, eager))


@unchecked
@over_one_of_each
def test_jax_jit_without_a_key(descriptor: Descriptor) -> None:
    module, traces = initialised(descriptor), []

    @jax.jit
    def step(module: Any, *inputs: Any) -> Any:
        traces.append(None)
        return module(*inputs), module

    outputs = []
    for _ in range(3):
        output, module = step(module, *descriptor.inputs)
        outputs.append(output)
    assert len(traces) == 1
    assert concrete(module)
    if "Dropout" == descriptor.name:
        assert (outputs[0] != outputs[1]).any() and (outputs[1] != outputs[2]).any()


@over_one_of_each
def test_elegy_jit(descriptor: Descriptor) -> None:
    eager, module = descriptor.factory(None), descriptor.factory(None)
    compiled = elegy.jit(module)
    elegy.set_rng(5)
    expected = [eager(*descriptor.inputs) for _ in range(2)]
    elegy.set_rng(5)
    outputs = [compiled(*descriptor.inputs) for _ in range(2)]
    assert_close(outputs, expected)
    assert_close(module.get_parameters(), eager.get_parameters())
    assert compiled.traces == 1


@unchecked
@over_all
def test_apply_leaves_the_module_alone(descriptor: Descriptor) -> None:
    module = initialised(descriptor)
    before = jax.tree.map(np.array, module.get_parameters())
    reference(module, *descriptor.inputs)
    apply(module, *descriptor.inputs)
    assert_same(jax.tree.map(np.array, module.get_parameters()), before)


@unchecked
@over_one_of_each
@pytest.mark.filterwarnings("ignore::elegy.errors.IdenticalMembersWarning")  # of layers whose parameters are constants
def test_ensemble(descriptor: Descriptor) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    ensemble = jax.jit(jax.vmap(lambda key: descriptor.factory(None).init(*descriptor.inputs, rng=key)))(keys)

    @jax.jit
    @jax.vmap
    def run(module: Any, rng: jax.Array) -> Any:
        return apply(module, *descriptor.inputs, rng=rng)

    ran = jax.tree.leaves(run(ensemble, keys))
    for lane in range(2):
        member = jax.tree.map(operator.itemgetter(lane), ensemble)
        expected = reference(member, *descriptor.inputs, rng=keys[lane])
        assert_close([leaf[lane] for leaf in ran], jax.tree.leaves(expected), rtol=1e-4, atol=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(ensemble.get_parameters()):
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith(("w", "rng_key")):
            assert (leaf[0] != leaf[1]).any()


@unchecked
@over_one_of_each
def test_scan_with_the_module_as_carry(descriptor: Descriptor) -> None:
    module = initialised(descriptor)
    keys = jax.random.split(jax.random.key(0), 3)

    def step(module: Any, rng: jax.Array) -> Any:
        outputs, module = apply(module, *descriptor.inputs, rng=rng)
        return module, outputs

    scanned, outputs = jax.lax.scan(step, module, keys)
    for number, key in enumerate(keys):
        expected, module = reference(module, *descriptor.inputs, rng=key)
        assert_close(jax.tree.map(operator.itemgetter(number), outputs), expected)
    assert_close(scanned, module)


@unchecked
@over_layers
def test_gradients(descriptor: Descriptor) -> None:
    """Along a random direction the gradient equals a central difference; running statistics count too."""
    with double_precision():
        module = initialised(descriptor, jnp.float64)
        params, rest = elegy.partition(module)
        point = (params, jnp.asarray(descriptor.inputs[0], jnp.float64))

        @jax.jit
        @jax.value_and_grad
        def loss_and_gradient(point: Any) -> jax.Array:
            outputs, updated = apply(elegy.combine(point[0], rest), point[1])
            state = [leaf for leaf in jax.tree.leaves(updated) if leaf.dtype == jnp.float64]
            parts = [jnp.sum(jnp.sin(leaf)) for leaf in (*jax.tree.leaves(outputs), *state)]
            return sum(parts[1:], parts[0])

        leaves, treedef = jax.tree.flatten(point)
        generator = np.random.default_rng(0)
        direction = [generator.normal(size=leaf.shape) for leaf in leaves]
        step = 1e-5

        def moved(distance: float) -> Any:
            return treedef.unflatten([leaf + distance * d for leaf, d in zip(leaves, direction, strict=True)])

        ahead, behind = (loss_and_gradient(moved(distance)) for distance in (step, -step))
        _, gradient = loss_and_gradient(point)
        slope = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), direction, strict=True))
        np.testing.assert_allclose(slope, (ahead[0] - behind[0]) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("descriptor", "dtype"),
    [(descriptor, jnp.bfloat16) for descriptor in LAYERS]
    + [
        (descriptor, jnp.float16)
        for descriptor in LAYERS
        if descriptor.name in ("Conv2D", "BatchNormalization", "block")
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_half_precision(descriptor: Descriptor, dtype: Any) -> None:
    module = descriptor.factory(dtype).init(*cast(descriptor.inputs, dtype), rng=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(module.get_parameters(trainable=True))} <= {jnp.dtype(dtype)}
    outputs, updated = reference(module, *cast(descriptor.inputs, dtype))
    assert outputs.dtype == dtype
    assert describe(updated) == describe(module)
    wide = [leaf.astype(jnp.float32) if leaf.dtype == dtype else leaf for leaf in jax.tree.leaves(module)]
    precise, _ = reference(jax.tree.structure(initialised(descriptor)).unflatten(wide), *descriptor.inputs)
    tolerance = 0.1 if dtype == jnp.bfloat16 else 0.02
    np.testing.assert_allclose(outputs.astype(jnp.float32), precise, rtol=tolerance, atol=tolerance)


@unchecked
@over_layers
def test_parameters_cast_to_half_precision(descriptor: Descriptor) -> None:
    parameters, rest = elegy.partition(initialised(descriptor))
    half = elegy.combine(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters), rest)
    outputs, updated = reference(half, *cast(descriptor.inputs, jnp.bfloat16))
    assert describe(updated) == describe(half)
    if "no parameters" not in descriptor.name:  # computes in the dtype it was given
        assert outputs.dtype == jnp.bfloat16


@over_one_of_each
def test_double_precision(descriptor: Descriptor) -> None:
    with double_precision():
        inputs = cast(descriptor.inputs, jnp.float64)
        module = initialised(descriptor, jnp.float64)
        outputs, updated = reference(module, *inputs)
        assert outputs.dtype == jnp.float64
        found = {leaf.dtype for leaf in jax.tree.leaves(updated.get_parameters(trainable=True))}
        assert found <= {jnp.dtype(jnp.float64)}
        assert describe(updated) == describe(module)


# What computes nothing, or compares only.
KEEPS_ITS_DTYPE = {"Flatten", "GlobalMaxPool", "MaxPool", "MaxPool, padding", "Sequential, empty", "Upsample"}


@over_layers
@pytest.mark.parametrize("kind", [np.float64, np.uint8])
def test_numpy_inputs_of_other_dtypes(descriptor: Descriptor, kind: Any) -> None:
    x = np.abs(10 * descriptor.inputs[0]).astype(kind)
    module = initialised(descriptor)
    outputs, _ = reference(module, x)
    if descriptor.name in KEEPS_ITS_DTYPE:
        assert outputs.dtype == jnp.asarray(x).dtype
        return
    expected, _ = reference(module, x.astype(np.float32))
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)


@unchecked
@pytest.mark.filterwarnings("ignore::elegy.errors.UninitialisedWarning")
@over_one_of_each
def test_pickle(descriptor: Descriptor) -> None:
    fresh, module = descriptor.factory(None), initialised(descriptor)
    for pickler in (pickle, cloudpickle):
        assert describe(pickler.loads(pickler.dumps(fresh))) == describe(fresh)
        if pickler is pickle and descriptor.name == "block":
            continue  # holds a lambda
        loaded = pickler.loads(pickler.dumps(module))
        assert_same(loaded.get_parameters(), module.get_parameters())
        assert_same(reference(loaded, *descriptor.inputs)[0], reference(module, *descriptor.inputs)[0])


@unchecked
@pytest.mark.usefixtures("no_leaks")
@over_one_of_each
def test_no_tracer_leaks(descriptor: Descriptor) -> None:
    """In one trace, since looking for leaks turns off the caches: each eager operation would be compiled anew."""
    modules = []

    def run(*inputs: Any) -> Any:
        modules.append(descriptor.factory(None))
        return apply(modules[0].init(*inputs, rng=3), *inputs)

    jax.eval_shape(run, *descriptor.inputs)
    assert concrete(modules)


def keeps_its_shape(descriptor: Descriptor) -> bool:
    """Whether a layer can follow itself."""
    if not descriptor.layer or len(descriptor.inputs) > 1:
        return False
    output, _ = jax.eval_shape(apply, initialised(descriptor), *descriptor.inputs)
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), output) == (descriptor.inputs[0].shape, jnp.float32)


@unchecked
@over_one_of_each
@pytest.mark.filterwarnings("ignore::elegy.errors.IdenticalMembersWarning")  # of layers whose parameters are constants
def test_stack_and_ensemble(descriptor: Descriptor) -> None:
    """Two of a layer in sequence, recomputed in the backward pass, and side by side, are those two by themselves."""
    x, *others = descriptor.inputs
    with elegy.training_context(False):
        if keeps_its_shape(descriptor):
            stack = elegy.nn.Stack(functools.partial(descriptor.factory, None), 2, remat=True).init(x, rng=3)
            first, second = stack
            expected = reference(second, reference(first, x, training=False)[0], training=False)[0]
            assert_close(reference(stack, x, training=False)[0], expected, rtol=1e-4, atol=1e-5)
        ensemble = elegy.nn.Ensemble(functools.partial(descriptor.factory, None), 2).init(x, *others, rng=3)
        outputs = reference(ensemble, x, *others, training=False)[0]
        for lane, member in enumerate(ensemble):
            expected = reference(member, x, *others, training=False)[0]
            assert_close(jax.tree.map(operator.itemgetter(lane), outputs), expected, rtol=1e-4, atol=1e-5)


@unchecked
@pytest.mark.parametrize(
    "descriptor",
    [descriptor for descriptor in ONE_OF_EACH if descriptor.layer],
    ids=lambda descriptor: descriptor.name,
)
def test_remat_under_a_dtype_policy(descriptor: Descriptor) -> None:
    """A policy is the cast by hand, also where the forward pass runs twice; gradients are float32."""
    module, inputs = initialised(descriptor), descriptor.inputs
    parameters, rest = elegy.partition(module)
    module.dtype_policy = elegy.DtypePolicy(compute_dtype=jnp.bfloat16, output_dtype=jnp.float32)

    def total(outputs: Any) -> Any:
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(outputs))

    @jax.jit
    def both(module: Any, parameters: Any, rest: Any) -> Any:
        def by_policy(module: Any) -> Any:
            with elegy.rng_context(KEY):
                return total(elegy.remat(module)(*inputs))

        def by_hand(parameters: Any) -> Any:
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters)
            outputs, updated = apply(elegy.combine(half, rest), *cast(inputs, jnp.bfloat16))
            return total(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)), elegy.partition(updated)[1]

        if not jax.tree.leaves(parameters):
            with elegy.rng_context(KEY):
                return (total(elegy.remat(module)(*inputs)), module, None), (*by_hand(parameters), None)
        (value, module), gradient = elegy.value_and_grad(by_policy)(module)
        (expected, updated), wanted = jax.value_and_grad(by_hand, has_aux=True)(parameters)
        return (value, module, gradient), (expected, updated, wanted)

    (value, module, gradient), (expected, updated, wanted) = both(module, parameters, rest)
    assert describe(module) == FROZEN[descriptor.name]
    found = jax.tree.leaves((elegy.partition(module)[1], gradient))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} <= {jnp.dtype(jnp.float32)}
    for ours, theirs in zip(found, jax.tree.leaves((updated, wanted)), strict=True):
        if jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.05 * max(1.0, np.abs(theirs).max(initial=0.0)))
    np.testing.assert_allclose(value, expected, rtol=0.02, atol=0.2)


@unchecked
@over_one_of_each
@pytest.mark.filterwarnings("ignore::elegy.errors.UninitialisedWarning")
def test_checkpoint(descriptor: Descriptor, tmp_path: Any) -> None:
    module = initialised(descriptor)
    elegy.save(tmp_path / "module.safetensors", module)
    other = descriptor.factory(None).init(*descriptor.inputs, rng=4)
    assert_same(elegy.load(tmp_path / "module.safetensors", like=other).get_parameters(), module.get_parameters())


# Whose input has other axes than those of a batch before the last ones that it looks at.
OF_WHOLE_INPUTS = {
    "AvgPool",
    "Einsum",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "MaxPool",
    "Upsample",
    "block",
}


@pytest.mark.parametrize(
    "descriptor",
    [d for d in ONE_OF_EACH if d.layer and d.name not in OF_WHOLE_INPUTS],
    ids=lambda descriptor: descriptor.name,
)
def test_one_more_axis_of_the_batch(descriptor: Descriptor) -> None:
    """Examples in a batch do not see each other, and a batch may have any number of axes."""
    module, (x, *others) = initialised(descriptor), descriptor.inputs
    x = np.stack([x, x + 1])
    others = [np.stack([other, other]) for other in others]
    found = reference(module, x, *others, training=False)[0]
    expected = [reference(module, *entry, training=False)[0] for entry in zip(x, *others, strict=True)]
    assert_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected), rtol=1e-4, atol=1e-5)
