"""Creating, reading and writing arrays; kinds; freezing; reset."""

import collections
import dataclasses
import re
import typing as tp

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from tests.helpers import Affine, Counter, Mask, Net, Norm, Stateful, assert_close, assert_same, batch, concrete


def one(initializer=jnp.zeros, shape=None, dtype=None, trainable=True, **kwargs):
    """A module class with one parameter, made in `call`."""

    class One(elegy.Module):
        def call(self, x=None):
            p = self.add_parameter("p", shape, dtype, initializer, trainable)
            return p if x is None else p * x

    return One(**kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# Initialisers
# ---------------------------------------------------------------------------------------------------------------------


def test_functions_of_shape_and_dtype():
    assert_same(one(jnp.ones, [2, 3]).init().p, jnp.ones([2, 3]))
    assert_same(one(jnp.zeros, (2,), jnp.bfloat16).init().p, jnp.zeros(2, jnp.bfloat16))
    seen = []
    one(lambda shape, dtype: seen.append((shape, dtype)) or jnp.full(shape, 3, dtype), [2], jnp.int32).init()
    assert seen[0] == ((2,), jnp.int32)


@pytest.mark.parametrize(
    "initializer",
    [
        jax.nn.initializers.normal(),
        jax.nn.initializers.lecun_normal(),
        jax.nn.initializers.glorot_uniform(),
        jax.nn.initializers.orthogonal(),
        jax.nn.initializers.ones,
        jax.nn.initializers.zeros,
        jax.nn.initializers.constant(0.5),
        jax.random.normal,
        jax.random.uniform,
        lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
        lambda rng, shape, dtype=jnp.float32: jax.random.normal(rng, shape, dtype),
    ],
)
def test_initializers_of_jax(initializer):
    p = one(initializer, [4, 6]).init(rng=0).p
    assert p.shape == (4, 6) and p.dtype == jnp.float32 and np.isfinite(p).all()
    assert_same(p, one(initializer, [4, 6]).init(rng=0).p)
    other = one(initializer, [4, 6]).init(rng=1).p
    deterministic = float(p.std()) == 0.0
    assert deterministic == np.array_equal(p, other)


def test_an_initializer_of_jax_gets_a_key_of_its_own():
    keys = []

    def initializer(key, shape, dtype):
        keys.append(jax.random.key_data(key).tolist())
        return jnp.zeros(shape, dtype)

    class Two(elegy.Module):
        def call(self):
            self.add_parameter("a", [1], initializer=initializer)
            self.add_parameter("b", [1], initializer=initializer)

    Two().init(rng=0)
    assert keys[0] != keys[-1] and not isinstance(keys[0], int)


@pytest.mark.parametrize("value", [jnp.arange(3.0), np.arange(3.0, dtype=np.float32), 2.5, 3, True, np.float32(1.5)])
def test_values_as_they_are(value):
    module = one(value)
    module.init()
    assert isinstance(module.p, jax.Array)
    np.testing.assert_array_equal(module.p, value)
    assert module.parameters_size() == np.size(value)
    elegy.jit(module)()
    if not hasattr(value, "dtype"):
        assert module.p.dtype == jnp.float32


def test_a_value_of_the_wrong_shape_is_refused():
    with pytest.raises(elegy.errors.ParameterError, match=r"one/p.*\(3,\).*\(2,\)"):
        one(jnp.arange(3.0), [2]).init()
    with pytest.raises(elegy.errors.ParameterError, match="one/p"):
        one(lambda shape, dtype: jnp.zeros([5]), [2]).init()


def test_a_function_without_arguments():
    assert_same(one(lambda: jnp.arange(3.0)).init().p, jnp.arange(3.0))


def test_pytrees_of_arrays():
    initial = {"w": jnp.ones([2]), "b": [jnp.zeros(1), (jnp.ones(1), None)]}
    module = one(initial).init()
    assert_same(module.p, initial)
    assert len(jax.tree.leaves(module)) == 3
    assert_same(module.get_parameters(), {"p": initial})
    moved = jax.jit(lambda m: m)(module)
    assert_same(moved.p, initial)
    module.set_parameters({"p": jax.tree.map(lambda a: a + 1, initial)})
    assert module.p["w"][0] == 2
    made_in_call = one(lambda: {"w": jnp.ones([2]), "n": jnp.zeros([], jnp.int32)}).init()
    assert made_in_call.p["n"].dtype == jnp.int32
    params, rest = elegy.partition(made_in_call)
    assert params.p["n"] is None and rest.p["w"] is None


def test_a_pytree_of_another_library_as_a_parameter():
    class Wraps(elegy.Module):
        def call(self, x):
            layer = self.add_parameter("layer", initializer=lambda: eqx.nn.Linear(3, 2, key=elegy.next_rng_key()))
            return jax.vmap(layer)(x)

    x, _ = batch()
    module = Wraps().init(x, rng=0)
    assert isinstance(module.layer, eqx.nn.Linear) and len(jax.tree.leaves(module.get_parameters(trainable=True))) == 2
    loss, grads = elegy.jit(lambda: elegy.value_and_grad(lambda: module(x).sum(), modules=module)(), modules=module)()
    assert np.isfinite(loss) and len(jax.tree.leaves(grads)) == 2
    assert_close(jax.jit(lambda m: m(x))(module), module(x))


def test_an_optimizer_state_as_a_parameter():
    # What a module that wraps an optimiser does: a pytree with counts, as state.
    class Optimizer(elegy.Module):
        def call(self, parameters, grads):
            optimizer = optax.adam(0.1)
            state = self.add_parameter("state", initializer=lambda: optimizer.init(parameters), trainable=False)
            updates, state = optimizer.update(grads, state, parameters)
            self.update_parameter("state", state)
            return optax.apply_updates(parameters, updates)

    x, _ = batch()
    with jax.numpy_dtype_promotion("standard"):
        layer, optimizer = Affine(1).init(x), Optimizer()

        def update():
            loss, grads = elegy.value_and_grad(lambda: jnp.mean(layer(x) ** 2), modules=layer)()
            layer.set_parameters(optimizer(layer.get_parameters(trainable=True), grads))
            return loss

        step = elegy.jit(update, modules=[layer, optimizer])
        losses = [float(step()) for _ in range(20)]
        assert int(optimizer.state[0].count) == 20 and step.traces == 1
        # Against optax by hand.
        reference = Affine(1).init(x, rng=0)
        layer2, optimizer2 = reference.copy(), Optimizer()

        def by_hand(p):
            return jnp.mean((x @ p["w"] + p["b"][None]) ** 2)

        parameters = reference.get_parameters()
        tx = optax.adam(0.1)
        state = tx.init(parameters)
        for _ in range(5):
            grads = elegy.grad(lambda: jnp.mean(layer2(x) ** 2), modules=layer2)()
            layer2.set_parameters(optimizer2(layer2.get_parameters(), grads))
            updates, state = tx.update(jax.grad(by_hand)(parameters), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
    assert losses[-1] < losses[0]
    assert_close(layer2.get_parameters(), parameters, rtol=1e-4)


def test_an_initializer_that_uses_data():
    class Whiten(elegy.Module):
        def call(self, x):
            mean = self.add_parameter("mean", x.shape[1:], initializer=lambda shape, dtype: x.mean(axis=0))
            return x - mean[None]

    x, _ = batch()
    for run in (lambda m: m(x), lambda m: elegy.jit(m)(x), lambda m: m.init(x)):
        module = Whiten()
        run(module)
        assert concrete(module)
        np.testing.assert_allclose(module.mean, x.mean(axis=0), rtol=1e-6)

    class Outer(elegy.Module):
        def call(self, x):
            return Whiten()(Affine(2)(x))

    module = Outer()
    elegy.jit(lambda: elegy.value_and_grad(lambda: module(x).sum(), modules=module)(), modules=module)()
    np.testing.assert_allclose(module.whiten.mean, module.affine(x).mean(axis=0), rtol=1e-5)
    with pytest.raises(elegy.errors.ParameterError, match=r"whiten/mean(?s:.*)data"):
        Whiten().init(jax.ShapeDtypeStruct([2, 3], jnp.float32))


def test_an_initial_value_that_was_computed_in_the_call():
    class Net(elegy.Module):
        def call(self, x):
            return x * self.add_parameter("p", initializer=jnp.full(x.shape, 2.0))

    for run in (lambda m: m(jnp.ones(3)), lambda m: elegy.jit(m)(jnp.ones(3)), lambda m: m.init(jnp.ones(3))):
        module = Net()
        run(module)
        assert_same(module.p, jnp.full([3], 2.0))


def test_an_initial_value_that_depends_on_another_parameter():
    class Net(elegy.Module):
        def call(self):
            a = self.add_parameter("a", [3], initializer=jax.nn.initializers.normal())
            return a, self.add_parameter("b", initializer=lambda: 2 * a)

    module = Net().init(rng=0)
    np.testing.assert_allclose(module.b, 2 * module.a)
    ensemble = jax.vmap(lambda key: Net().init(rng=key))(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(ensemble.b, 2 * ensemble.a, rtol=1e-6)


def test_dtypes_of_a_module():
    assert one(jnp.zeros, [2]).dtype == jnp.float32
    assert one(jnp.zeros, [2], dtype=None, trainable=True).init().p.dtype == jnp.float32

    class Half(elegy.Module):
        def __init__(self):
            super().__init__(dtype=jnp.bfloat16)

        def call(self):
            return self.add_parameter("p", [2], initializer=elegy.initializers.RandomUniform())

    assert Half().dtype == jnp.bfloat16 and Half().init().p.dtype == jnp.bfloat16


def test_scalars_and_empty_shapes():
    assert one(jnp.ones).init().p.shape == ()
    module = one(jnp.ones, [0, 3]).init()
    assert module.p.shape == (0, 3) and module.parameters_size() == 0
    grads = elegy.grad(lambda: module().sum(), modules=module)()
    assert grads["p"].shape == (0, 3)
    assert one(jnp.ones, (np.int64(2), 3)).init().p.shape == (2, 3)


# ---------------------------------------------------------------------------------------------------------------------
# add_parameter
# ---------------------------------------------------------------------------------------------------------------------


def test_a_second_call_gives_the_current_value():
    module = one(jnp.zeros, [2]).init()
    module.set_parameters({"p": jnp.ones(2)})
    assert_same(module(), jnp.ones(2))


def test_added_twice_in_one_call_it_is_one_parameter():
    class Twice(elegy.Module):
        def call(self):
            a = self.add_parameter("p", [2], initializer=elegy.initializers.RandomUniform())
            b = self.add_parameter("p", [2], initializer=elegy.initializers.RandomUniform())
            return a, b

    a, b = Twice()()
    assert_same(a, b)


def test_outside_of_any_run_it_is_refused():
    module = Affine(2)
    with pytest.raises(elegy.errors.HookError, match="affine.*add_parameter"):
        module.add_parameter("extra", [])
    module.init(jnp.ones([1, 2]))
    with pytest.raises(elegy.errors.HookError):
        module.add_parameter("extra", [])
    assert_same(module.add_parameter("w", [2, 2]), module.w)


def test_in_init_it_materialises_at_once():
    class Eager(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [2], initializer=elegy.initializers.RandomUniform())
            self.add_parameter("b", [2], trainable=False)
            self.total = float(self.w.sum())

        def call(self, x):
            return x * self.w + self.add_parameter("late", [2])

    module = Eager()
    assert module.w.shape == (2,) and module.total == float(module.w.sum())
    assert list(module.get_parameters(trainable=True)) == ["w"]
    assert list(module.get_parameters(trainable=False)) == ["b"]
    module(jnp.ones(2))
    assert list(module.get_parameters()) == ["w", "b", "late"]
    assert_same(Eager().w if elegy.set_rng(1) is None else None, Eager().w if elegy.set_rng(1) is None else None)
    assert not np.array_equal(Eager().w, Eager().w)


def test_in_init_of_a_module_made_in_call():
    class Inner(elegy.Module):
        def __init__(self, n):
            self.w = self.add_parameter("w", [n], initializer=jax.nn.initializers.normal())

        def call(self, x):
            return x * self.w

    class Outer(elegy.Module):
        def call(self, x):
            return Inner(x.shape[-1])(Inner(x.shape[-1])(x))

    for run in (lambda m: m(jnp.ones(3)), lambda m: elegy.jit(m)(jnp.ones(3)), lambda m: m.init(jnp.ones(3))):
        module = Outer()
        run(module)
        assert concrete(module) and not np.array_equal(module.inner.w, module.inner_1.w)
    keys = jax.random.split(jax.random.key(0), 2)
    ensemble = jax.vmap(lambda key: Outer().init(jnp.ones(3), rng=key))(keys)
    assert ensemble.inner.w.shape == (2, 3) and not np.array_equal(ensemble.inner.w[0], ensemble.inner.w[1])


# ---------------------------------------------------------------------------------------------------------------------
# State
# ---------------------------------------------------------------------------------------------------------------------


def test_state_is_told_from_parameters():
    x, _ = batch()
    module = Stateful().init(x)
    trainable, state = module.get_parameters(trainable=True), module.get_parameters(trainable=False)
    assert set(trainable["norm"]) == {"scale"} and set(state["norm"]) == {"mean", "var"}
    assert set(state["counter"]) == {"n"} and set(state["mask"]) == {"rng_key"}
    assert len(jax.tree.leaves(trainable)) == 5
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(state)) == len(jax.tree.leaves(module))


def test_integers_are_never_differentiated():
    class Table(elegy.Module):
        def call(self, x):
            table = self.add_parameter("table", [2], jnp.int32, jnp.ones)
            return x * self.add_parameter("w", []) * table.sum().astype(x.dtype)

    module = Table().init(1.0 * jnp.ones([]))
    assert list(module.get_parameters(trainable=True)) == ["w"]
    assert list(module.get_parameters(trainable=False)) == ["table"]
    grads = elegy.grad(lambda: module(jnp.ones([])), modules=module)()
    assert list(grads) == ["w"] and grads["w"] == 2.0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f, m: f,
        lambda f, m: elegy.jit(f, modules=m),
        lambda f, m: lambda: elegy.value_and_grad(f, modules=m)()[0],
        lambda f, m: elegy.jit(lambda: elegy.value_and_grad(f, modules=m)()[0], modules=m),
        lambda f, m: lambda: elegy.value_and_grad(elegy.jit(f, modules=m), modules=m)()[0],
    ],
    ids=["eager", "jit", "grad", "jit of grad", "grad of jit"],
)
def test_state_flows_out(wrap):
    class Ema(elegy.Module):
        def call(self, x):
            w = self.add_parameter("w", [], initializer=jnp.ones)
            ema = self.add_parameter("ema", [], initializer=jnp.zeros, trainable=False)
            self.update_parameter("ema", 0.5 * ema + 0.5 * x)
            return w * ema

    module = Ema()
    step = wrap(lambda: module(jnp.asarray(8.0)), module)
    assert [float(step()) for _ in range(4)] == [0.0, 4.0, 6.0, 7.0]
    assert module.ema == 7.5 and module.w == 1.0 and concrete(module)


def test_the_first_call_updates_state_once_and_init_does_not():
    module = Counter()
    module()
    assert int(module.n) == 1
    assert int(Counter().init().n) == 0
    module = Counter()
    elegy.jit(module)()
    assert int(module.n) == 1


def test_state_is_updated_while_its_module_is_frozen():
    x, _ = batch()
    module = Norm().init(x)
    module.trainable = False
    before = module.mean
    module(x)
    assert not np.array_equal(module.mean, before)
    elegy.jit(module)(x)


def test_update_parameter_outside_of_call():
    module = Counter().init()
    module.update_parameter("n", 5)
    assert int(module.n) == 5 and module.n.dtype == jnp.int32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (jnp.zeros([3]), r"norm/mean is float32\[2\].*float32\[3\]"),
        (jnp.zeros([2], jnp.bfloat16), "bfloat16"),
        ("text", "str"),
        (None, "NoneType"),
        ([1.0, 2.0], "list"),
    ],
)
def test_update_parameter_checks_shape_and_dtype(value, message):
    module = Norm().init(jnp.ones([1, 2]))
    with pytest.raises(elegy.errors.ParameterError, match=message):
        module.update_parameter("mean", value)
    assert_same(module.mean, jnp.zeros(2))


def test_update_parameter_of_an_unknown_name():
    module = Norm().init(jnp.ones([1, 2]))
    for name in ("nothing", "decay", "call"):
        with pytest.raises(elegy.errors.ParameterError, match=f"norm.*{name}.*mean, var, scale"):
            module.update_parameter(name, 0.0)
    assert module.decay == 0.9


def test_update_parameter_of_a_pytree():
    Stats = collections.namedtuple("Stats", "sum count")

    class Mean(elegy.Module):
        def call(self, x):
            stats = self.add_parameter(
                "stats", initializer=lambda: Stats(jnp.zeros([]), jnp.zeros([], jnp.int32)), trainable=False
            )
            self.update_parameter("stats", Stats(stats.sum + x.sum(), stats.count + x.size))
            return self.stats.sum / self.stats.count.astype(jnp.float32)

    module = Mean()
    step = elegy.jit(module)
    assert step(jnp.ones(2)) == 1.0 and step(jnp.zeros(2)) == 0.5
    assert isinstance(module.stats, Stats) and int(module.stats.count) == 4
    with pytest.raises(elegy.errors.ParameterError, match="structure"):
        module.update_parameter("stats", (jnp.zeros([]), jnp.zeros([], jnp.int32)))
    with pytest.raises(elegy.errors.ParameterError, match="mean/stats"):
        module.update_parameter("stats", Stats(jnp.zeros([3]), jnp.zeros([], jnp.int32)))
    assert int(module.stats.count) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Freezing
# ---------------------------------------------------------------------------------------------------------------------


def test_freezing_is_recursive_and_partial():
    x, y = batch()
    module = Net().init(x)
    module.affine.trainable = False
    assert module.trainable and not module.affine.trainable
    assert [leaf.shape for leaf in jax.tree.leaves(module.get_parameters(trainable=True))] == [
        (4,),
        (8, 4),
        (1,),
        (4, 1),
    ]
    assert len(jax.tree.leaves(module.get_parameters(trainable=False))) == 2
    module.trainable = False
    assert not module.affine_1.trainable
    module.trainable = True
    assert module.affine.trainable
    _, grads = elegy.value_and_grad(lambda: jnp.mean((module(x) - y) ** 2), modules=module)()
    assert len(jax.tree.leaves(grads)) == 6


def test_freezing_before_the_first_call():
    x, _ = batch()
    module = Net()
    module.trainable = False
    module(x)
    assert jax.tree.leaves(module.get_parameters(trainable=True)) == []
    # Layers that come to a frozen module are frozen with it.
    assert not module.affine.trainable
    module.trainable = True
    assert len(jax.tree.leaves(module.get_parameters(trainable=True))) == 6


def test_freezing_in_init():
    class Frozen(elegy.Module):
        def __init__(self):
            self.inner = Affine(2)
            self.trainable = False

        def call(self, x):
            return self.inner(x)

    module = Frozen()
    module(jnp.ones([1, 2]))
    assert not module.trainable and not module.inner.trainable
    assert jax.tree.leaves(module.get_parameters(trainable=True)) == []

    class Part(elegy.Module):
        def __init__(self):
            self.inner = Affine(2)
            self.inner.trainable = False
            self.head = Affine(1)

        def call(self, x):
            return self.head(self.inner(x))

    module = Part()
    module(jnp.ones([1, 2]))
    assert list(jax.tree.leaves(module.get_parameters(trainable=True))[0].shape) == [1]
    assert module.trainable and not module.inner.trainable and module.head.trainable


@pytest.mark.usefixtures("default_promotion")
def test_freezing_after_the_optimizer_has_state():
    x, y = batch()
    module = Net().init(x)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(module.get_parameters())

    def update(state) -> tp.Any:
        loss, grads = elegy.value_and_grad(lambda: jnp.mean((module(x) - y) ** 2), modules=module)()
        # The optimiser knows all parameters; frozen ones get a gradient of zero.
        everything = module.get_parameters()
        zeros: tp.Any = jax.tree.map(jnp.zeros_like, everything)
        grads = {name: {**zeros[name], **grads.get(name, {})} for name in zeros}
        updates, state = optimizer.update(grads, state, everything)
        new: tp.Any = optax.apply_updates(everything, updates)
        module.set_parameters({name: new[name] for name in new if getattr(module, name).trainable})
        return loss, state

    step = elegy.jit(update, modules=module)
    for _ in range(2):
        _, state = step(state)
    module.affine.trainable = False
    frozen, others = module.affine.get_parameters(), module.affine_1.get_parameters()
    for _ in range(2):
        _, state = step(state)
    assert_same(module.affine.get_parameters(), frozen)
    assert not np.array_equal(module.affine_1.w, others["w"])
    module.affine.trainable = True
    loss, _ = step(state)
    assert not np.array_equal(module.affine.w, frozen["w"])
    assert step.traces == 2 and np.isfinite(loss)


def test_freezing_survives_round_trips():
    x, _ = batch()
    module = Net().init(x)
    module.affine.trainable = False
    for moved in (jax.jit(lambda m: m)(module), module.copy(), jax.tree.map(lambda a: a, module), module.apply(x)[1]):
        assert not moved.affine.trainable and moved.affine_1.trainable
        moved.affine.trainable = True
    assert not module.affine.trainable


def test_freezing_does_not_change_the_mode():
    x = jnp.ones([4, 50])
    module = Mask().init(x)
    module.trainable = False
    assert (module(x) == 0).any()


# ---------------------------------------------------------------------------------------------------------------------
# get_parameters and set_parameters
# ---------------------------------------------------------------------------------------------------------------------


class Mixed(elegy.Module):
    """Modules in dicts of lists, arrays that are no parameters, a foreign layer, things that are neither."""

    def __init__(self):
        self.blocks = {"encoder": [Affine(4), jnp.tanh, Affine(3)], "decoder": (Affine(2), {"last": Affine(1)})}
        self.buffer = jnp.arange(3.0)
        self.buffers = [jnp.ones(1), {"count": np.zeros([], np.int32)}]
        self.foreign = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        self.plain = {"a": [1, 2]}
        self.empty = []

    def call(self, x):
        for step in self.blocks["encoder"]:
            x = step(x)
        x = self.blocks["decoder"][0](x)
        x = self.blocks["decoder"][1]["last"](x)
        return jax.vmap(self.foreign)(x)


def test_get_parameters_keeps_the_form_of_containers():
    module = Mixed().init(jnp.ones([2, 3]))
    parameters = module.get_parameters()
    assert list(parameters) == ["blocks", "buffer", "buffers", "foreign"]
    assert parameters["blocks"]["encoder"][1] == () and isinstance(parameters["blocks"]["decoder"], tuple)
    assert parameters["blocks"]["decoder"][1]["last"]["w"].shape == (2, 1)
    assert isinstance(parameters["foreign"], eqx.nn.Linear)
    # It belongs to the caller.
    parameters["blocks"]["encoder"].append(1)
    parameters["new"] = 1
    assert len(module.blocks["encoder"]) == 3

    trainable = module.get_parameters(trainable=True)
    assert list(trainable) == ["blocks", "foreign"]
    assert len(jax.tree.leaves(trainable)) == 10
    state = module.get_parameters(trainable=False)
    assert_same(state["buffer"], jnp.arange(3.0))
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(3,), (1,), ()]


@pytest.mark.parametrize("trainable", [None, True, False])
def test_what_was_read_can_be_written(trainable):
    module = Mixed().init(jnp.ones([2, 3]), rng=0)
    other = Mixed().init(jnp.ones([2, 3]), rng=1)
    other.set_parameters(module.get_parameters(trainable=trainable))
    assert_same(other.get_parameters(trainable=trainable), module.get_parameters(trainable=trainable))
    assert jax.tree.structure(other) == jax.tree.structure(module)
    shifted = jax.tree.map(lambda a: a + np.ones([], a.dtype), module.get_parameters(trainable=trainable))
    step = elegy.jit(lambda values: other.set_parameters(values), modules=other)
    step(shifted)
    assert_same(other.get_parameters(trainable=trainable), shifted)
    assert jax.tree.structure(other) == jax.tree.structure(module)


def test_an_uninitialised_module_has_no_parameters():
    assert Net().get_parameters() == {}
    assert Mixed().get_parameters(trainable=True)["foreign"].weight.shape == (1, 1)


def test_set_parameters_takes_a_part():
    x, _ = batch()
    module = Net().init(x)
    before = module.get_parameters()
    module.set_parameters({"affine_1": {"b": jnp.ones(4)}})
    after = module.get_parameters()
    assert_same(after["affine_1"]["b"], jnp.ones(4))
    after["affine_1"]["b"] = before["affine_1"]["b"]
    assert_same(after, before)
    module.set_parameters({})
    module.set_parameters({"affine": {}})


def test_set_parameters_of_a_submodule():
    x, _ = batch()
    module = Net().init(x)
    step = elegy.jit(lambda: module.affine.set_parameters({"b": module.affine.b + 1}), modules=module)
    step()
    step()
    np.testing.assert_array_equal(module.affine.b, 2 * np.ones(8))


def test_set_parameters_takes_numbers_numpy_and_modules():
    x, _ = batch()
    module, other = Net().init(x), Net().init(x)
    ones = np.ones(8, np.float32)
    module.set_parameters({"affine": {"b": ones}})
    assert isinstance(module.affine.b, jax.Array)
    ones[:] = 2
    assert_same(module.affine.b, jnp.ones(8))
    device = jax.devices()[3]
    placed = jax.device_put(module, device)
    placed.set_parameters({"affine": {"b": ones}})
    assert placed.affine.b.devices() == {device}
    counter = Counter().init()
    counter.set_parameters({"n": 3})
    assert counter.n.dtype == jnp.int32 and int(counter.n) == 3
    module.set_parameters(other)
    assert_same(module, other)


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({"nothing": jnp.zeros(1)}, ["net/nothing", "affine, affine_1, affine_2"]),
        ({"affine": {"nothing": jnp.zeros(1)}}, ["net/affine/nothing", "w, b"]),
        ({"affine": {"b": jnp.zeros(3)}}, ["net/affine/b", "[8]", "[3]"]),
        ({"affine": {"b": jnp.zeros(8, jnp.bfloat16)}}, ["net/affine/b", "bfloat16", "float32"]),
        ({"affine": {"b": jnp.zeros(8, jnp.int32)}}, ["net/affine/b", "int32"]),
        ({"affine": {"b": "text"}}, ["net/affine/b", "str"]),
        ({"affine": {"b": None}}, ["net/affine/b"]),
        ({"affine": {"width": jnp.zeros(1)}}, ["net/affine/width"]),
        ({"affine": jnp.zeros(8)}, ["net/affine", "dict"]),
        ({"affine": {"w": jnp.zeros(1)}, "affine_1": {"b": jnp.zeros(1)}, "x": 1}, ["affine/w", "affine_1/b", "net/x"]),
    ],
)
def test_set_parameters_names_all_problems_and_changes_nothing(values, messages):
    x, _ = batch()
    module = Net().init(x)
    before = jax.tree.leaves(module)
    bad = {"affine_2": {"b": jnp.ones(1)}, **values}
    with pytest.raises(elegy.errors.ParameterError) as caught:
        module.set_parameters(bad)
    for message in messages:
        assert message in str(caught.value)
    assert all(a is b for a, b in zip(jax.tree.leaves(module), before, strict=True))


@pytest.mark.parametrize("values", [None, 3, [1], "text"])
def test_set_parameters_of_what_is_not_a_dict(values):
    module = Net().init(batch()[0])
    with pytest.raises((elegy.errors.ParameterError, TypeError)):
        module.set_parameters(values)


def test_set_parameters_of_containers_is_checked():
    module = Mixed().init(jnp.ones([2, 3]))
    before = jax.tree.leaves(module)
    cases = [
        {"blocks": {"encoder": [()]}},
        {"blocks": {"encoder": [{"w": jnp.zeros(1)}, (), ()], "decoder": ((), {"last": ()})}},
        {"blocks": {"encoder": [{}, jnp.zeros(1), {}], "decoder": ((), {"last": ()})}},
        {"buffers": [jnp.zeros(2), {"count": jnp.zeros([], jnp.int32)}]},
        {"plain": {"a": [1, 2]}},
        {"foreign": jnp.zeros(1)},
    ]
    for values in cases:
        with pytest.raises(elegy.errors.ParameterError, match="mixed/"):
            module.set_parameters(values)
        assert all(a is b for a, b in zip(jax.tree.leaves(module), before, strict=True))
    part = {"blocks": {"encoder": [(), (), {"b": jnp.ones(3)}], "decoder": ((), {"last": ()})}}
    module.set_parameters(part)
    assert_same(module.blocks["encoder"][2].b, jnp.ones(3))


def test_set_parameters_takes_a_part_of_a_container():
    module = Mixed().init(jnp.ones([2, 3]))
    module.set_parameters({"blocks": {"decoder": ((), {"last": {"b": jnp.ones(1)}})}})
    assert_same(module.blocks["decoder"][1]["last"].b, jnp.ones(1))


def test_sizes():
    x, _ = batch()
    module = Stateful().init(x)
    assert module.parameters_size() == 3 * 4 + 4 + 4 + 4 + 1
    assert module.parameters_bytes() == 4 * module.parameters_size()
    key = module.mask.rng_key
    assert module.states_size() == 4 + 4 + 1 + key.size
    assert module.states_bytes() == 4 * (4 + 4 + 1) + key.nbytes
    assert module.parameters_size(include_submodules=False) == 0
    assert module.norm.parameters_size(include_submodules=False) == 4
    assert module.norm.states_size(include_submodules=False) == 8
    module.norm.trainable = False
    assert module.parameters_size() == 3 * 4 + 4 + 4 + 1


# ---------------------------------------------------------------------------------------------------------------------
# reset
# ---------------------------------------------------------------------------------------------------------------------


def test_reset_starts_again():
    x, _ = batch()
    module = Stateful().init(x, rng=0)
    expected = module.get_parameters()
    module(x)
    module.reset()
    assert not module.initialized and jax.tree.leaves(module) == [] and module.submodules == {}
    module.reset()
    module.init(x, rng=0)
    assert_same(module.get_parameters(), expected)
    module.reset()
    assert module(jnp.ones([2, 7])).shape == (2, 1)
    assert module.affine.w.shape == (7, 4)


def test_reset_keeps_what_init_made():
    class Eager(elegy.Module):
        def __init__(self):
            self.inner = Affine(2)
            self.w = self.add_parameter("w", [2], initializer=elegy.initializers.RandomUniform())

        def call(self, x):
            return self.inner(x) * jnp.broadcast_to(self.w, (x.shape[0], 2)) * self.add_parameter("late", [])

    module = Eager()
    w, inner = module.w, module.inner
    module(jnp.ones([1, 2]))
    module.reset()
    assert module.inner is inner and not inner.initialized
    assert_same(module.get_parameters(), {"inner": {}, "w": w})
    module(jnp.ones([1, 5]))
    assert inner.w.shape == (5, 2)


def test_a_compiled_module_works_on_after_reset():
    module = Affine(2)
    step = elegy.jit(module)
    step(jnp.ones([1, 3]))
    module.reset()
    assert step(jnp.ones([1, 5])).shape == (1, 2) and module.w.shape == (5, 2)
    module.reset()
    assert step(jnp.ones([1, 3])).shape == (1, 2)


def test_init_of_an_initialised_module_changes_nothing():
    x, _ = batch()
    module = Net().init(x)
    leaves = jax.tree.leaves(module)
    assert module.init(x, rng=5) is module
    assert all(a is b for a, b in zip(jax.tree.leaves(module), leaves, strict=True))


def test_a_child_that_was_called_before_its_parent_keeps_its_values():
    x, _ = batch()
    layer = Affine(4)
    layer(x)
    w = layer.w

    class Outer(elegy.Module):
        def __init__(self):
            self.layer = layer

        def call(self, x):
            return Affine(1)(self.layer(x))

    module = Outer()
    module(x)
    assert module.layer.w is w


# ---------------------------------------------------------------------------------------------------------------------
# Trees of modules
# ---------------------------------------------------------------------------------------------------------------------


def test_partition_of_containers_of_modules_and_arrays():
    x, _ = batch()
    tree = {"a": Norm().init(x), "b": [jnp.ones(2), 3, jnp.zeros(1, jnp.int32)]}
    params, rest = elegy.partition(tree)
    assert params["a"].mean is None and rest["a"].scale is None
    assert params["b"][0] is not None and params["b"][2] is None and rest["b"][2] is not None
    assert_same(elegy.combine(params, rest)["a"], tree["a"])
    mask = elegy.trainable_mask(tree)
    assert jax.tree.leaves(mask["b"]) == [True, False, False]


def test_partition_of_an_uninitialised_module_and_of_shapes():
    params, rest = elegy.partition(Net())
    assert isinstance(params, Net) and not elegy.combine(params, rest).initialized
    shapes = jax.eval_shape(lambda: Norm().init(jnp.ones([1, 2]), rng=0))
    params, rest = elegy.partition(shapes)
    assert params.scale is not None and params.mean is None


def test_partition_of_dataclasses_with_arrays():
    @dataclasses.dataclass
    class Scale(elegy.Module):
        factor: jax.Array

        def call(self, x):
            return x * self.factor

    module = Scale(jnp.ones([])).init(1.0)
    # A bare array is state: what is trained is declared by add_parameter.
    params, rest = elegy.partition(module)
    assert params.factor is None and rest.factor is not None


# ---------------------------------------------------------------------------------------------------------------------
# Containers of modules and arrays
# ---------------------------------------------------------------------------------------------------------------------


class Parts(elegy.Module):
    def __init__(self):
        self.parts = [Affine(3), jnp.ones(3)]
        self.named = {"inner": Affine(3), "shift": np.zeros(3, np.float32)}

    def call(self, x):
        x = self.parts[0](x) * self.parts[1][None]
        return self.named["inner"](x) + self.named["shift"][None]


def test_a_container_of_modules_and_arrays_trains():
    x, _ = batch()
    module = Parts().init(x)
    for kind in (True, False, None):
        module.set_parameters(module.get_parameters(trainable=kind))
    optimizer = elegy.Optimizer(optax.sgd(0.1))
    _, grads = elegy.value_and_grad(lambda x: jnp.sum(module(x) ** 2), modules=module)(x)
    before = module.parts[0].w
    optimizer.update(module, grads)
    assert (module.parts[0].w != before).any() and (module.parts[1] == 1).all()
    with pytest.raises(elegy.errors.ParameterError, match="parts/1: expected an array"):
        module.set_parameters({"parts": [{}, "text"]})


@pytest.mark.parametrize("value", [1 + 2j, jax.ShapeDtypeStruct([], jnp.float32), "text", None])
def test_values_that_are_no_arrays_of_the_kind(value):
    module = one(shape=[], initializer=jnp.ones)
    module()
    with pytest.raises(elegy.errors.ParameterError, match="p: expected an array|p is float32"):
        module.set_parameters({"p": value})
    assert module.p == 1


def test_a_parameter_that_is_cast_goes_on_asking_for_its_first_dtype():
    class Precise(elegy.Module):
        def call(self, x):
            return x * self.add_parameter("w", [3], jnp.float32, jnp.ones)[None].astype(x.dtype)

    x, _ = batch()
    module = Precise().init(x)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), module)
    assert half(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16 and half.w.dtype == jnp.bfloat16


def test_a_state_of_many_arrays_takes_python_numbers():
    class Stats(elegy.Module):
        def call(self, x):
            stats = self.add_parameter(
                "stats", initializer=lambda: {"a": jnp.zeros([]), "b": jnp.ones(2)}, trainable=False
            )
            self.update_parameter("stats", {"a": 3.0, "b": stats["b"]})
            return x

    x, _ = batch()
    module = Stats()
    module(x)
    assert isinstance(module.stats["a"], jax.Array) and module.stats["a"] == 3


# ---------------------------------------------------------------------------------------------------------------------
# What would go stale or be rounded in silence
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hold",
    [
        lambda w: [w],
        lambda w: (w, 1),
        lambda w: {"w": w},
        lambda w: {"deep": [(None, w)]},
        lambda w: w,
    ],
    ids=["list", "tuple", "dict", "deep", "another name"],
)
def test_a_parameter_may_not_stand_in_a_second_place(hold):
    class Holds(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [2])
            self.held = hold(self.w)

    class Only(elegy.Module):
        def __init__(self):
            self.held = hold(self.add_parameter("w", [2]))

    for cls in (Holds, Only):
        with pytest.raises(elegy.errors.ParameterError, match=rf"{cls.__name__}.held holds the parameter 'w'"):
            cls()


def test_a_container_may_be_the_parameter():
    class Polynomial(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", initializer=lambda: [jnp.ones([]), jnp.ones([])])

        def call(self, x):
            return self.w[0] + self.w[1] * x

    module = Polynomial()
    _, grads = elegy.value_and_grad(lambda: module(3.0), modules=module)()
    assert jax.tree.map(float, grads) == {"w": [1.0, 3.0]}
    module.set_parameters({"w": [jnp.float32(5), jnp.float32(5)]})
    assert float(module(3.0)) == 20


class Numbers(elegy.Module):
    """A parameter of each kind; `call` updates one of them."""

    def __init__(self):
        for name, dtype in dict(i=jnp.int32, u=jnp.uint8, b=jnp.bool_, f=jnp.bfloat16, c=jnp.complex64).items():
            setattr(self, name, self.add_parameter(name, [], dtype, trainable=False))
        self.k = self.add_parameter("k", initializer=jax.random.key(0), trainable=False)

    def call(self, name, value):
        self.update_parameter(name, value)


def assign(module, name, value):
    module.set_parameters({name: value})


@pytest.mark.parametrize("how", [Numbers.__call__, assign], ids=["update_parameter", "set_parameters"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("i", 2.7),
        ("i", 2.0),
        ("i", 2**40),
        ("i", float("nan")),
        ("i", 1j),
        ("u", -1),
        ("u", 300),
        ("b", 1),
        ("b", 0.0),
        ("f", 1j),
        ("k", 3),
    ],
)
def test_a_number_that_the_dtype_cannot_hold_is_refused(how, name, value):
    module = Numbers()
    with pytest.raises(elegy.errors.ParameterError) as raised:
        how(module, name, value)
    assert re.search(rf"numbers/{name} is .*cannot hold the Python {type(value).__name__} {value!r}", str(raised.value))
    assert_same(module.get_parameters(), Numbers().get_parameters())


@pytest.mark.parametrize("how", [Numbers.__call__, assign], ids=["update_parameter", "set_parameters"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("i", 2), ("i", True), ("i", -(2**31)), ("u", 255), ("b", True), ("f", 2), ("f", 2.5), ("c", 1j), ("c", 2)],
)
def test_a_number_that_the_dtype_holds_is_taken(how, name, value):
    module = Numbers()
    dtype = getattr(module, name).dtype
    how(module, name, value)
    found = getattr(module, name)
    assert found.dtype == dtype and not found.weak_type and found == jnp.asarray(value, dtype)


@pytest.mark.parametrize(
    ("dtype", "initializer", "works"),
    [
        (jnp.bfloat16, np.ones(3), True),
        (jnp.bfloat16, jnp.ones(3), True),
        (jnp.int8, np.arange(3), True),
        (jnp.int32, np.ones(3), False),
        (jnp.float32, np.arange(3), False),
        (jnp.bfloat16, lambda shape, dtype: jnp.ones(shape), False),
        (jnp.bfloat16, lambda: jnp.ones(3), False),
        (jnp.bfloat16, lambda key, shape, dtype: jax.random.normal(key, shape), False),
        (jnp.bfloat16, lambda shape, dtype: jnp.ones(shape, dtype), True),
    ],
)
def test_a_dtype_that_was_asked_for_is_what_there_is(dtype, initializer, works):
    shape = [3] if callable(initializer) and initializer.__code__.co_argcount else None
    module = one(initializer, shape, dtype)
    if works:
        assert module().dtype == dtype and module.p.dtype == dtype
        return
    with pytest.raises(elegy.errors.ParameterError, match=rf"one/p: the dtype {jnp.dtype(dtype)} was asked for"):
        module()
    assert not module.initialized


def test_layers_cast_the_arrays_that_they_are_given():
    layer = elegy.nn.Linear(2, dtype=jnp.bfloat16, w_init=np.ones((3, 2)))
    assert layer(jnp.ones((2, 3), jnp.bfloat16)).dtype == layer.w.dtype == layer.b.dtype == jnp.bfloat16


def test_a_key_of_another_type_is_told_apart():
    class Table(elegy.Module):
        def __init__(self):
            self.rows = {10: Affine(2), 2: Affine(2)}

        def call(self, x):
            return self.rows[10](x)

    table = Table().init(jnp.ones((1, 3)))
    before = table.get_parameters()
    with pytest.raises(
        elegy.errors.ParameterError, match=r"rows/10: no such entry: the key is '10', and should be 10\."
    ):
        table.set_parameters({"rows": {"10": before["rows"][10]}})
    table.set_parameters({"rows": {10: before["rows"][10]}})
    with pytest.raises(elegy.errors.ParameterError, match=r"table/rows/3: no such entry \(there is: 10, 2\)"):
        table.set_parameters({"rows": {3: before["rows"][10]}})


def test_a_key_of_another_type_in_a_file(tmp_path):
    """The names in a file are texts, so that an entry of either key goes where `like` has one."""
    elegy.save(tmp_path / "a", {10: jnp.ones(2)})
    assert list(elegy.load(tmp_path / "a", like={"10": jnp.zeros(2)})) == ["10"]
