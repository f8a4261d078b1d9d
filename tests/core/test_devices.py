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


# ---------------------------------------------------------------------------------------------------------------------
# Products of sharded arrays
# ---------------------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    "of_x, of_w, of_b",
    [
        (["data", "model"], ["model", None], [None]),  # by rows
        (["data", None], [None, "model"], ["model"]),  # by columns
        (["data", None], ["data", None], ["data"]),  # fully sharded
        (["data", None], [None, "data"], ["data"]),
        (["data", None], ["model", "data"], [None]),
    ],
    ids=str,
)
def test_a_product_of_sharded_arrays(kind, of_x, of_w, of_b):
    mesh = mesh_of(kind)
    x, linear = jax.random.normal(jax.random.key(1), [8, 4]), elegy.nn.Linear(4, b_init=jnp.ones)
    expected = elegy.value_and_grad(lambda x: jnp.sum(linear(x) ** 2), modules=linear)(x)
    placed = linear.copy()
    placed.set_parameters({"w": on(mesh, linear.w, *of_w), "b": on(mesh, linear.b, *of_b)})
    spread = on(mesh, x, *of_x)
    np.testing.assert_allclose(placed(spread), linear(x), rtol=1e-5)
    run = elegy.jit(elegy.value_and_grad(lambda x: jnp.sum(placed(x) ** 2), modules=placed))
    found = run(spread)
    assert_close(found, expected)
    if kind == AxisType.Explicit:
        assert jax.typeof(found[1]["w"]) == jax.typeof(placed.w)
    with jax.set_mesh(mesh):
        assert_close(jax.jit(lambda x: placed(x))(spread), linear(x))


@kinds
@pytest.mark.parametrize("of_w", [(None, None, "model"), (None, None, "data"), (None, "model", None)], ids=str)
def test_a_convolution_with_a_sharded_kernel(kind, of_w):
    mesh = mesh_of(kind)
    x, conv = jax.random.normal(jax.random.key(1), [8, 5, 2]), elegy.nn.Conv1D(4, 3)
    expected = elegy.value_and_grad(lambda x: jnp.sum(conv(x) ** 2), modules=conv)(x)
    placed = conv.copy()
    placed.set_parameters({"w": on(mesh, conv.w, *of_w), "b": on(mesh, conv.b)})
    spread = on(mesh, x, "data")
    np.testing.assert_allclose(placed(spread), conv(x), rtol=1e-4, atol=1e-5)
    assert_close(elegy.jit(elegy.value_and_grad(lambda x: jnp.sum(placed(x) ** 2), modules=placed))(spread), expected)


class Block(elegy.Module):
    """Two layers: the first is split by columns, the second by rows."""

    def call(self, x):
        return x + elegy.nn.Linear(x.shape[-1], name="down")(jax.nn.relu(elegy.nn.Linear(4, name="up")(x)))


@kinds
@pytest.mark.parametrize("remat", [False, True])
def test_a_stack_of_blocks_that_are_split(kind, remat):
    mesh = mesh_of(kind)

    def results(place, x):
        stack = elegy.nn.Stack(Block, 3, remat=remat).init(X, rng=0)
        stack = jax.tree_util.tree_map_with_path(lambda path, leaf: place(jax.tree_util.keystr(path), leaf), stack)
        return elegy.jit(elegy.value_and_grad(lambda x: jnp.mean(stack(x) ** 2), modules=stack))(x)

    def split(path, leaf):
        spec = {"up.w": (None, None, "model"), "up.b": (None, "model"), "down.w": (None, "model", None)}
        return on(mesh, leaf, *next((spec for name, spec in spec.items() if name in path), ()))

    assert_close(results(split, on(mesh, X, "data")), results(lambda path, leaf: leaf, X))


@kinds
def test_an_ensemble_with_its_members_on_other_devices(kind):
    mesh = mesh_of(kind)
    ensemble = elegy.nn.Ensemble(lambda: elegy.nn.Linear(4), 2).init(X, rng=0)
    spread = jax.tree.map(lambda leaf: on(mesh, leaf, "model"), ensemble)
    np.testing.assert_allclose(elegy.jit(spread)(on(mesh, X)), ensemble(X), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# shard_map
# ---------------------------------------------------------------------------------------------------------------------


def over_data(function, outputs, *args, **options):
    """A function of a module, which all shards share, of a batch that is split, and of what else they share."""
    mesh = mesh_of(AxisType.Explicit)
    module, x, *more = args
    inputs = (PartitionSpec(), PartitionSpec("data"), *[PartitionSpec()] * len(more))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, **options)
    return jax.jit(mapped)(on(mesh, module), on(mesh, x, "data"), *(on(mesh, leaf) for leaf in more))


SPLIT, SHARED = PartitionSpec("data"), PartitionSpec()


class Noisy(elegy.Module):
    """Draws by itself."""

    def call(self, x):
        return x + jax.random.normal(elegy.next_rng_key(), x.shape)


@pytest.mark.parametrize("make", [lambda: elegy.nn.Dropout(0.5), Noisy])
@pytest.mark.parametrize(
    "run", [lambda m, x: m(x), lambda m, x: elegy.jit(m)(x), lambda m, x: jax.jit(Noisy.__call__)(m, x)]
)
@pytest.mark.parametrize("check", [True, False])
def test_shards_that_would_draw_the_same_are_refused(make, run, check):
    module = make().init(X)
    with pytest.raises(
        elegy.errors.TraceError, match=r"(?s)in each shard of a jax.shard_map.*fold_in.*axis_index\('data'\)"
    ):
        over_data(run, SPLIT, module, X, check_vma=check)


def test_the_stream_of_the_code_around_is_refused():
    mesh, module = mesh_of(AxisType.Explicit), on(mesh_of(AxisType.Explicit), elegy.nn.Dropout(0.5).init(X))
    mapped = jax.shard_map(lambda x: module(x), mesh=mesh, in_specs=SPLIT, out_specs=SPLIT)
    with pytest.raises(elegy.errors.TraceError, match=r"(?s)stream belongs.*draw a key outside, and fold.*'data'"):
        elegy.jit(mapped, modules=module)(on(mesh, X, "data"))


@pytest.mark.parametrize("check", [True, False])
def test_shards_with_keys_of_their_own(check):
    module, x, key = elegy.nn.Dropout(0.5).init(X), jnp.ones([8, 16]), jax.random.key(3)

    def folded(module, x, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        with elegy.rng_context(key):
            return module.apply(x, rng=key)[0], module(x)

    wanted = [folded_by_hand(module, x[2 * n : 2 * n + 2], jax.random.fold_in(key, n)) for n in range(4)]
    found = over_data(folded, SPLIT, module, x, key, check_vma=check)
    assert_close(found, jax.tree.map(lambda *parts: jnp.concatenate(parts), *wanted))
    assert len(np.unique(np.asarray(found[0]).reshape(4, 2, 16), axis=0)) == 4
    # The same key for all is possible, where one says so.
    same = np.asarray(
        over_data(lambda module, x, key: module.apply(x, rng=key)[0], SPLIT, module, x, key, check_vma=check)
    )
    assert (same.reshape(4, 2, 16) == same[:2]).all()


def folded_by_hand(module, x, key):
    with elegy.rng_context(key):
        return module.apply(x, rng=key)[0], module(x)


def test_a_key_that_differs_from_shard_to_shard():
    mesh = mesh_of(AxisType.Explicit)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 4))
    module, x = elegy.nn.Dropout(0.5).init(X), jnp.ones([8, 16])

    def run(data, x):
        own = jax.tree.map(lambda _: data[0], module)
        return own(x), jax.tree.map(lambda leaf: leaf[None], own)

    with jax.set_mesh(mesh):
        mapped = jax.jit(jax.shard_map(run, in_specs=(SPLIT, SPLIT), out_specs=(SPLIT, SPLIT)))
        found, advanced = mapped(on(mesh, keys, "data"), on(mesh, x, "data"))
    assert len(np.unique(np.asarray(found).reshape(4, 2, 16), axis=0)) == 4
    wanted = [jax.random.key_data(jax.random.split(jax.random.wrap_key_data(data))[0]) for data in keys]
    assert (np.asarray(advanced.rng_key) == np.stack(wanted)).all()


def scanned(norm, x):
    return elegy.scan(lambda carry, _: (norm(carry), None), x, None, length=2, modules=norm)[0]


def looped(norm, x):
    test, body = (lambda c: c[0] < 2), (lambda c: (c[0] + 1, norm(c[1])))
    with elegy.hooks_context():
        return elegy.while_loop(test, body, (jnp.int32(0), x), modules=norm)[1]


def chosen(norm, x):
    return elegy.cond(norm.mean.sum() >= 0, lambda x: norm(x), lambda x: x, x, modules=norm)


def switched(norm, x):
    return elegy.switch(jnp.int32(1), [lambda x: x, lambda x: norm(x)], x, modules=norm)


def recomputed(norm, x):
    return elegy.remat(lambda x: norm(x), modules=norm)(x)


@pytest.mark.parametrize("run", [scanned, looped, chosen, switched, recomputed, lambda norm, x: elegy.jit(norm)(x)])
def test_state_that_differs_from_shard_to_shard(run):
    norm = elegy.nn.BatchNormalization(decay_rate=0.5).init(X)

    def averaged(norm, x):
        y = run(norm, x)
        return y, jax.tree.map(lambda leaf: jax.lax.pmean(leaf, "data"), norm)

    y, updated = over_data(averaged, (SPLIT, SHARED), norm, X)
    copies = [norm.copy() for _ in range(4)]
    wanted = jnp.concatenate([run(copy, X[2 * n : 2 * n + 2]) for n, copy in enumerate(copies)])
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *[copy.get_parameters() for copy in copies])
    assert_close(updated.get_parameters(), mean)


def test_gradients_and_statistics_over_all_shards():
    norm = elegy.nn.BatchNormalization(cross_replica_axis="data").init(X)

    def step(norm, x):
        loss, gradients = elegy.value_and_grad(lambda x: jnp.mean((norm(x) - 1) ** 2), modules=norm)(x)
        return jax.lax.pmean(loss, "data"), jax.tree.map(lambda leaf: leaf / 4, gradients), norm

    loss, gradients, updated = over_data(step, SHARED, norm, X)
    plain = elegy.nn.BatchNormalization().init(X)
    wanted = elegy.value_and_grad(lambda x: jnp.mean((plain(x) - 1) ** 2), modules=plain)(X)
    assert_close((loss, gradients), wanted)
    assert_close(updated.get_parameters(), plain.get_parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Losses, metrics, Model
# ---------------------------------------------------------------------------------------------------------------------


@kinds
def test_losses_and_metrics_of_a_sharded_batch(kind):
    mesh = mesh_of(kind)
    logits, labels = X[:, :4], jnp.arange(8) % 4

    def results(place):
        loss = elegy.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy, mean = elegy.metrics.SparseCategoricalAccuracy(), elegy.metrics.Mean()

        def evaluate(logits, labels):
            value = loss(y_true=labels, y_pred=logits)
            return value, mean(value), accuracy(y_true=labels, y_pred=logits)

        evaluate = elegy.jit(evaluate, modules=[accuracy, mean])
        found = [evaluate(place(logits + number), place(labels)) for number in range(3)]
        return evaluate.traces, found

    (traces, found), (_, wanted) = results(lambda leaf: on(mesh, leaf, "data")), results(lambda leaf: leaf)
    assert_close(found, wanted)
    assert traces == 1


@kinds
def test_a_model_is_fitted_on_a_mesh(kind):
    mesh = mesh_of(kind)

    def history(place):
        elegy.set_rng(elegy.RNG(0))
        model = elegy.Model(
            place(elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), elegy.nn.Dropout(0.5)]).init(X, rng=0)),
            loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=elegy.metrics.SparseCategoricalAccuracy(),
            optimizer=optax.sgd(0.1),
        )
        model.fit(x=np.asarray(X), y=np.arange(8) % 4, epochs=2, batch_size=4, verbose=0)
        return model.evaluate(x=np.asarray(X), y=np.arange(8) % 4, batch_size=4)

    assert_close(history(lambda module: on(mesh, module)), history(lambda module: module))


def test_one_stream_goes_from_mesh_to_mesh():
    """JAX refuses arrays of one mesh inside another; the stream may have been used in any before."""

    def use():
        linear, dropout = elegy.nn.Linear(2).init(X), elegy.nn.Dropout(0.5)
        compiled = elegy.jit(lambda x: dropout(linear(x)), modules=[linear, dropout])
        return [np.asarray(value) for value in (linear.w, dropout(X), compiled(X))]

    contexts = [None, mesh_of(AxisType.Auto), mesh_of(AxisType.Explicit), jax.make_mesh((2,), ("other",)), None]
    elegy.set_rng(elegy.RNG(0))
    wanted = [use() for _ in range(2 * len(contexts))]
    for order in (contexts * 2, [*contexts[::-1], *contexts]):
        elegy.set_rng(elegy.RNG(0))
        for mesh, expected in zip(order, wanted, strict=True):
            with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
                found = use()
            assert_close(found, expected)
