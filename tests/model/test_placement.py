"""Data and modules on meshes of eight devices, as `fit`, `evaluate` and `predict` take them, train as on one device."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from elegy.model.batches import Arrays
from elegy.model.data import as_data
from elegy.model.placement import rows_of
from tests.model.test_model import data, make_model, mlp, parameters_of

kinds = pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])


def mesh_of(kind=AxisType.Explicit):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def on(mesh, tree, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def in_batches(x, y, size, put=lambda batch: batch):
    return [put((x[begin : begin + size], y[begin : begin + size])) for begin in range(0, len(x), size)]


def assert_trains_alike(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@kinds
@pytest.mark.parametrize("together", [1, 2])
def test_whole_sharded_arrays(kind, together):
    x, y = data(40)
    mesh = mesh_of(kind)
    x_sharded, y_sharded = on(mesh, (x, y), "data")

    def train(module, x, y):
        model = make_model(module, seed=2)
        # The last batch is short; those of the validation are no multiple of the devices.
        history = model.fit(
            x,
            y,
            batch_size=16,
            epochs=2,
            verbose=0,
            validation_data=(x, y),
            validation_batch_size=6,
            sanity_steps=1,
            steps_per_execution=together,
        )
        found = [*history.history["loss"], *history.history["val_loss"], *parameters_of(model.module)]
        if together == 1:
            found += [model.train_on_batch(x, y)["loss"], model.evaluate(x, y, steps=1)["loss"], model.predict(x, 16)]
        return found

    module = mlp().init(x, rng=1)
    assert_trains_alike(train(on(mesh, module), x_sharded, y_sharded), train(module, x, y))


@kinds
def test_parts_of_sharded_arrays(kind):
    """Parts of batches, one of which is no multiple of the devices; and samples to validate on."""
    x, y = data(40)
    mesh = mesh_of(kind)

    def train(module, x, y):
        model = make_model(module, seed=2)
        history = model.fit(x, y, batch_size=8, accumulate=2, epochs=2, validation_split=0.25, verbose=0)
        odd = model.fit(x, y, batch_size=6, accumulate=2, verbose=0)
        return [*history.history["loss"], *history.history["val_loss"], *odd.history["loss"]]

    module = mlp().init(x, rng=1)
    sharded = on(mesh, (x, y), "data")
    assert_trains_alike(train(on(mesh, module), *sharded), train(module, x, y))


@kinds
@pytest.mark.parametrize("together", [1, 2])
def test_sharded_batches(kind, together):
    x, y = data(40)
    mesh = mesh_of(kind)

    def train(module, batches):
        model = make_model(module, seed=2)
        history = model.fit(batches, verbose=0, validation_data=batches, steps_per_execution=together)
        return [*history.history["loss"], *history.history["val_loss"], *parameters_of(model.module)]

    module = mlp().init(x, rng=1)
    sharded = in_batches(x, y, 16, lambda batch: on(mesh, batch, "data"))  # the last one is short
    assert_trains_alike(train(on(mesh, module), sharded), train(module, in_batches(x, y, 16)))


def test_sharded_parameters_stay_sharded():
    x, y = data(16)
    mesh = mesh_of()
    module = mlp().init(x, rng=1)
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    by_columns = on(mesh, module)
    by_columns.layers[0].set_parameters({"w": jax.device_put(module.layers[0].w, sharding)})

    def train(module, x, y):
        model = make_model(module)
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
        return model.module

    trained = train(by_columns, *on(mesh, (x, y), "data"))
    assert trained.layers[0].w.sharding.is_equivalent_to(sharding, 2)
    assert_trains_alike(parameters_of(trained), parameters_of(train(module, x, y)))


def test_a_batch_is_sharded_as_the_array_is_where_it_can_be():
    x = np.arange(48, dtype=np.float32).reshape(12, 4)
    mesh = mesh_of()
    for spec, size, wanted in [
        (("data", "model"), 8, ("data", "model")),
        (("data", "model"), 6, (None, "model")),
        ((("data", "model"),), 8, (("data", "model"), None)),
        ((None, "model"), 6, (None, "model")),
        ((), 6, (None, None)),
    ]:
        x = np.arange(64, dtype=np.float32).reshape(16, 4)
        places = np.random.default_rng(0).permutation(16)[:size]
        for take in (rows_of, jax.jit(rows_of)):
            found = take(on(mesh, x, *spec), places)
            assert found.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*wanted)), 2), (spec, size)
            np.testing.assert_array_equal(found, x[places])


@pytest.mark.parametrize("enter", [False, True], ids=["placed", "set_mesh"])
def test_a_module_that_is_not_on_the_mesh(enter):
    """JAX says no more than that an operation is ambiguous, unless the mesh is set."""
    x, y = data(16)
    mesh = mesh_of()
    batches = [on(mesh, (x, y), "data")]
    model = make_model()
    if enter:
        with jax.set_mesh(mesh):
            model.fit(batches, verbose=0)
        return
    with pytest.raises(Exception, match="Contracting dimensions are sharded") as raised:
        model.fit(batches, verbose=0)
    assert (
        "the module does not. Put it there before Model is given it: jax.device_put(module"
        in raised.value.__notes__[-1]
    )


def test_a_step_picks_its_samples_from_arrays_on_the_device():
    """What comes from the host is their places; the rest is in the compiled step."""
    x, y = jax.device_put(data(20))
    model = make_model(mlp().init(x, rng=1))
    feed = Arrays(as_data(x, y), 4)
    ((_, batch), *_) = feed.batches(np.arange(20)[::-1])
    assert batch.source.x is x and batch.source.y is y
    assert [leaf.shape for leaf in jax.tree.leaves(batch) if not isinstance(leaf, jax.Array)] == [(4,)]

    program = model._program("train")
    text = program.compiled.lower(program.start(feed.example()), batch, 0).as_text()
    gathers = [line for line in text.splitlines() if "gather" in line and "tensor<20x" in line]
    assert any("tensor<4x3xf32>" in line for line in gathers)
    assert any("tensor<4x1xf32>" in line for line in gathers)
