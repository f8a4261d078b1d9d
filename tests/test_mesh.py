"""Modules on meshes: eight devices, of which axes are explicit or automatic, give what one device gives."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import elegy

X = jax.random.normal(jax.random.key(0), [8, 6])


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def on(mesh, tree, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def by_columns(mesh, module):
    """The arrays of a module with the last axis over "model", where they have two axes or more."""
    return jax.tree.map(lambda leaf: on(mesh, leaf, *[None] * (leaf.ndim - 1), *["model"] * (leaf.ndim > 1)), module)


def assert_close(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-4, atol=1e-5)


kinds = pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
entered = pytest.mark.parametrize("enter", [False, True], ids=["placed", "set_mesh"])


def entering(mesh, enter):
    return jax.set_mesh(mesh) if enter else contextlib.nullcontext()


def mlp():
    nn = elegy.nn
    return nn.Sequential(
        lambda: [nn.Linear(4), nn.BatchNormalization(), jax.nn.relu, nn.Dropout(0.5), nn.LoRA(nn.Linear(2), 2)]
    ).init(X, rng=0)


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def train(module, x, steps=3, transform=elegy.jit):
    """Losses of some steps of training, and everything that they leave behind."""
    elegy.set_rng(elegy.RNG(3))
    optimizer = elegy.Optimizer(optax.sgd(optax.constant_schedule(0.1), momentum=0.9))

    def step(x):
        loss, gradients = elegy.value_and_grad(lambda x: jnp.mean(module(x) ** 2), modules=module)(x)
        optimizer.update(module, gradients)
        return loss

    step = transform(step, modules=[module, optimizer])
    losses = [step(x) for _ in range(steps)]
    return step, (
        losses,
        module.get_parameters(),
        optimizer.get_parameters(),
        jax.random.key_data(elegy.next_rng_key()),
    )


@pytest.fixture(scope="module")
def trained_on_one_device():
    with elegy.training_context(True):
        return train(mlp(), X)[1]


@kinds
@entered
@pytest.mark.parametrize("spread", [on, by_columns], ids=["replicated", "sharded"])
def test_a_step_is_that_of_one_device_and_traces_once(kind, enter, spread, trained_on_one_device):
    mesh = mesh_of(kind)
    with entering(mesh, enter):
        step, found = train(spread(mesh, mlp()), on(mesh, X, "data"))
    assert_close(found, trained_on_one_device)
    assert step.traces == 1


@kinds
def test_dropout_of_a_sharded_batch(kind):
    mesh, x = mesh_of(kind), jnp.ones([8, 6])
    for transform in (lambda f, modules: f, elegy.jit):
        found = []
        for placed in (x, on(mesh, x, "data")):
            elegy.set_rng(elegy.RNG(1))
            dropout = elegy.nn.Dropout(0.5)
            run = transform(lambda x, dropout=dropout: dropout(x), modules=dropout)
            found.append([run(placed) for _ in range(3)])
        assert_close(found[1], found[0])
        assert {float(value) for value in np.unique(np.asarray(found[1]))} == {0.0, 2.0}
        assert found[1][2].sharding.is_equivalent_to(on(mesh, x, "data").sharding, 2)


@kinds
def test_the_random_stream_goes_where_the_modules_are(kind):
    mesh, x = mesh_of(kind), jnp.ones([8, 6])
    spread, second, free = on(mesh, x, "data"), jax.device_put(x, jax.devices()[1]), x
    elegy.set_rng(elegy.RNG(1))
    expected = [elegy.nn.Dropout(0.5)(x) for _ in range(4)]
    elegy.set_rng(elegy.RNG(1))
    dropout = elegy.nn.Dropout(0.5)
    found = [elegy.jit(lambda x: dropout(x))(batch) for batch in (spread, second, free, spread)]
    assert_close(found, expected)
    assert [len(y.devices()) for y in found] == [8, 1, 1, 8]
    assert found[1].devices() == {jax.devices()[1]} and not found[2].committed


@kinds
def test_batch_statistics_keep_their_sharding(kind):
    mesh = mesh_of(kind)
    norm, expected = elegy.nn.BatchNormalization().init(X), elegy.nn.BatchNormalization().init(X)
    norm = on(mesh, norm)
    columns = on(mesh, X, "data", "model")
    for transform in (lambda f, modules: f, elegy.jit):
        transform(lambda x: norm(x), modules=norm)(columns)
        expected(X)
        assert_close(norm.get_parameters(), expected.get_parameters())
        if kind == AxisType.Explicit:
            assert jax.typeof(norm.mean).sharding.spec == PartitionSpec(None)


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers
# ---------------------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("how", ["adapt", "adapt again", "first update", "jit", "call"])
def test_the_state_of_an_optimiser_follows_the_parameters(kind, how):
    mesh = mesh_of(kind)
    module = by_columns(mesh, elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), elegy.nn.Linear(2)]).init(X))
    optimizer = elegy.Optimizer(optax.adam(0.1))
    gradients = jax.tree.map(jnp.zeros_like, module.get_parameters(trainable=True))
    if how == "adapt":
        optimizer.adapt(module)
    elif how == "adapt again":
        module.layers[0].trainable = False
        optimizer.adapt(module)
        module.trainable = True
        optimizer.adapt(module)
    elif how == "first update":
        optimizer.update(module, gradients)
    elif how == "call":
        with jax.set_mesh(mesh):
            optimizer(gradients, module.get_parameters(trainable=True))
    else:
        elegy.jit(lambda gradients: optimizer.update(module, gradients), modules=[module, optimizer])(gradients)
    adam = optimizer.state[0]
    for moments in (adam.mu, adam.nu):
        for moment, parameter in zip(
            jax.tree.leaves(moments), jax.tree.leaves(module.get_parameters(trainable=True)), strict=True
        ):
            assert moment.sharding.is_equivalent_to(parameter.sharding, parameter.ndim), how
    assert len(adam.count.devices()) == 8


# ---------------------------------------------------------------------------------------------------------------------
# What is said of a second trace
# ---------------------------------------------------------------------------------------------------------------------


def test_explain_names_shardings_meshes_and_weak_types():
    mesh = mesh_of(AxisType.Explicit)
    said = []
    double = elegy.jit(lambda x: 2 * x, explain=said.append)
    double(on(mesh, X))
    double(on(mesh, X, "data"))
    assert "argument 0: float32[8, 6], on the mesh data=4:Explicit model=2:Explicit -> float32[8@data, 6]" in said[-1]
    double(on(mesh_of(AxisType.Auto), X, "data"))
    assert "-> float32[8, 6], on the mesh data=4:Auto model=2:Auto" in said[-1]
    double(X)
    with jax.set_mesh(mesh):
        double(X)
    assert "jax.set_mesh: no mesh -> mesh data=4:Explicit model=2:Explicit" in said[-1]
    double(jnp.float32(1))
    double(jnp.asarray(1.0))
    assert "argument 0: float32[] -> float32[], weakly typed" in said[-1]
    assert len(said) == double.traces - 1 == 6


# ---------------------------------------------------------------------------------------------------------------------
# Ahead of time
# ---------------------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("spread", [on, by_columns], ids=["replicated", "sharded"])
def test_a_step_compiled_ahead_of_time(kind, spread, trained_on_one_device):
    mesh = mesh_of(kind)

    def compiled(step, modules):
        modules[1].adapt(modules[0])
        return elegy.jit(step, modules=modules).lower(on(mesh, X, "data")).compile()

    _, found = train(spread(mesh, mlp()), on(mesh, X, "data"), transform=compiled)
    assert_close(found, trained_on_one_device)


def test_arrays_on_other_devices_than_it_was_compiled_for():
    mesh = mesh_of(AxisType.Auto)
    linear = on(mesh, elegy.nn.Linear(2).init(X))
    compiled = elegy.jit(linear).lower(on(mesh, X, "data")).compile()
    linear.set_parameters(jax.device_put(linear.get_parameters(), jax.devices()[1]))
    with pytest.raises(elegy.errors.CompiledForOthersError, match="linear/w|linear/b"):
        compiled(on(mesh, X, "data"))
