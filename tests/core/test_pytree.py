"""Modules under plain JAX: they are pytrees, no wrapper needed."""

import collections
import dataclasses
import functools
import typing as tp

import equinox as eqx
import jax
import jax.extend.core
import jax.interpreters.mlir
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

import elegy
from tests.helpers import Affine, Counter, Mask, Net, Norm, Stateful, assert_close, assert_same, batch, concrete


def traced(function):
    """`function`, and the list that grows by one on each run of its body."""
    runs = []

    @functools.wraps(function)
    def counted(*args, **kwargs):
        runs.append(None)
        return function(*args, **kwargs)

    return counted, runs


def run(module, x):
    return module(x), module


# ---------------------------------------------------------------------------------------------------------------------
# jax.jit
# ---------------------------------------------------------------------------------------------------------------------


def test_jit_of_a_module_gives_outputs_and_updated_module():
    x, _ = batch()
    module = Norm().init(x)
    before = module.get_parameters()
    y, updated = jax.jit(run)(module, x)
    assert_same(module.get_parameters(), before)
    assert type(updated) is Norm
    np.testing.assert_allclose(updated.mean, 0.1 * x.mean(axis=0), rtol=1e-5)
    expected, eager = module.apply(x)
    assert_close(y, expected)
    assert_close(updated, eager)


def test_jit_does_not_compile_again_for_new_values():
    x, _ = batch()
    module = Stateful().init(x)
    function, runs = traced(run)
    step = jax.jit(function)
    for _ in range(4):
        _, module = step(module, x)
    assert len(runs) == 1
    step(jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), module), x)
    step(Stateful().init(x, rng=7), x)
    module.set_parameters(jax.tree.map(jnp.zeros_like, module.get_parameters()))
    step(module, x)
    step(module.copy(), x)
    assert len(runs) == 1
    assert int(module.counter.n) == 0


def test_jit_compiles_again_when_something_static_changes_and_not_when_it_changes_back():
    class Scaled(elegy.Module):
        def __init__(self, factor):
            self.factor = factor

        def call(self, x):
            return self.factor * Affine(2)(x)

    x, _ = batch()
    a, b = Scaled(2.0).init(x, rng=0), Scaled(3.0).init(x, rng=0)
    function, runs = traced(lambda m, x: m(x))
    step = jax.jit(function)
    np.testing.assert_allclose(3 * step(a, x), 2 * step(b, x), rtol=1e-6)
    assert len(runs) == 2
    step(a, x)
    step(b, x)
    step(Scaled(2.0).init(x, rng=1), x)
    assert len(runs) == 2
    a.trainable = False
    step(a, x)
    assert len(runs) == 3
    a.trainable = True
    step(a, x)
    assert len(runs) == 3


@pytest.mark.parametrize("pair", [(1, 1.0), (True, 1), (0.0, -0.0), ((1, 2), [1, 2]), ("a", b"a")])
def test_static_values_that_python_finds_equal_are_told_apart(pair):
    class Holder(elegy.Module):
        def __init__(self, value):
            self.value = value

        def call(self, x):
            if not elegy.is_initializing():
                seen.append((type(self.value), str(self.value)))
            return x

    seen = []
    step = jax.jit(lambda m, x: m(x))
    for value in (*pair, *pair):
        step(Holder(value).init(jnp.ones(2)), jnp.ones(2))
    assert len(set(seen)) == 2


def test_a_nan_among_static_values_does_not_compile_every_time():
    class Holder(elegy.Module):
        def __init__(self):
            self.missing = float("nan")

        def call(self, x):
            return x

    function, runs = traced(lambda m, x: m(x))
    step = jax.jit(function)
    for _ in range(3):
        step(Holder().init(1.0), 1.0)
    assert len(runs) == 1


def test_a_method_can_be_compiled():
    x, _ = batch()
    module = Net().init(x)
    assert_close(jax.jit(Net.__call__)(module, x), module(x))


def test_jit_of_a_closure_over_a_module_reads_it():
    x, _ = batch()
    module = Net().init(x)
    assert_close(jax.jit(lambda x: module(x))(x), module(x))
    assert concrete(module)


def test_a_fresh_module_initialises_inside_a_jax_transform_where_it_is_an_argument():
    x, _ = batch()

    def make(key, x):
        module = Net()
        with elegy.rng_context(key):
            y = module(x)
        return y, module

    y, module = jax.jit(make)(jax.random.key(3), x)
    assert module.initialized and concrete(module)
    same = Net().init(x, rng=jax.random.key(3))
    assert_close(module.get_parameters(), same.get_parameters())
    assert_close(module(x), y)


def test_an_uninitialised_module_can_cross_a_transform():
    module = jax.jit(lambda m: m)(Net())
    assert isinstance(module, Net) and not module.initialized
    x, _ = batch()
    assert module(x).shape == (6, 1)


def test_dropout_inside_jit_has_a_key_that_moves_on():
    x = jnp.ones([4, 50])
    module = Mask().init(x)
    step = jax.jit(run)
    a, second = step(module, x)
    b, third = step(second, x)
    again, _ = step(module, x)
    assert_same(a, again)
    assert not np.array_equal(a, b)
    assert 0.3 < float((a == 0).mean()) < 0.7


def test_apply_with_a_key_inside_jit():
    x = jnp.ones([4, 50])
    module = Mask().init(x)
    step = jax.jit(lambda m, x, key: m.apply(x, rng=key)[0])
    a, b, c = (step(module, x, jax.random.key(seed)) for seed in (0, 1, 0))
    assert_same(a, c)
    assert not np.array_equal(a, b)
    assert_same(a, module.apply(x, rng=jax.random.key(0))[0])


def test_donated_modules():
    x, _ = batch()
    module = Norm().init(x)
    step = jax.jit(run, donate_argnums=0)
    for _ in range(3):
        _, module = step(module, x)
    assert np.isfinite(module.mean).all()


# ---------------------------------------------------------------------------------------------------------------------
# jax.vmap
# ---------------------------------------------------------------------------------------------------------------------


def test_an_ensemble_has_different_members_and_is_the_members():
    x, _ = batch()
    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = jax.vmap(lambda key: Net().init(x, rng=key))(keys)
    assert isinstance(ensemble, Net) and concrete(ensemble)
    assert ensemble.affine.w.shape == (3, 3, 8)
    outputs = jax.vmap(lambda m: m(x))(ensemble)
    assert outputs.shape == (3, 6, 1)
    for lane, key in enumerate(keys):
        member = Net().init(x, rng=key)
        assert_close(jax.tree.map(lambda leaf, lane=lane: leaf[lane], ensemble), member)
        np.testing.assert_allclose(outputs[lane], member(x), rtol=1e-5)
    assert not np.array_equal(ensemble.affine.w[0], ensemble.affine.w[1])


def test_an_ensemble_with_state_and_randomness():
    x, _ = batch()
    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = jax.vmap(lambda key: Stateful().init(x, rng=key))(keys)
    y, updated = jax.jit(jax.vmap(run, in_axes=(0, None)))(ensemble, x)
    np.testing.assert_array_equal(updated.counter.n, [1, 1, 1])
    assert not np.array_equal(updated.norm.mean[0], updated.norm.mean[1])
    # Each member draws a mask of its own.
    masks, _ = jax.vmap(run, in_axes=(0, None))(jax.vmap(lambda key: Mask().init(x, rng=key))(keys), jnp.ones([4, 50]))
    assert y.shape == (3, 6, 1) and not np.array_equal(masks[0], masks[1])


def test_an_ensemble_with_an_initializer_that_draws_by_the_hook():
    class Drawn(elegy.Module):
        def call(self, x):
            init = lambda shape, dtype: jax.random.normal(elegy.next_rng_key(), shape, dtype)  # noqa: E731
            return x * self.add_parameter("scale", x.shape, initializer=init)

    keys = jax.random.split(jax.random.key(0), 4)
    scales = jax.vmap(lambda key: Drawn().init(jnp.ones(3), rng=key))(keys).scale
    assert len({row.tobytes() for row in np.asarray(scales)}) == 4


def test_vmap_over_the_input_alone():
    x, _ = batch()
    module = Net().init(x)
    np.testing.assert_allclose(jax.vmap(lambda row: module(row[None])[0])(x), module(x), rtol=1e-5)


def test_vmap_axes_may_be_a_module():
    x, _ = batch()
    modules = jax.vmap(lambda key: Affine(2).init(x, rng=key))(jax.random.split(jax.random.key(0), 2))
    axes = jax.tree.map(lambda _: 0, modules)
    assert jax.vmap(lambda m, x: m(x), in_axes=(axes, None))(modules, x).shape == (2, 6, 2)


# ---------------------------------------------------------------------------------------------------------------------
# jax.lax.scan and friends
# ---------------------------------------------------------------------------------------------------------------------


def test_scan_carries_state_and_draws_new_masks():
    xs = jnp.ones([5, 4, 20])
    module = Stateful().init(xs[0])

    def body(module, x):
        y = module(x)
        return module, y

    final, ys = jax.lax.scan(body, module, xs)
    assert type(final) is Stateful and ys.shape == (5, 4, 1)
    assert int(final.counter.n) == 5 and int(module.counter.n) == 0

    # The same steps one by one: the module's own key follows the same path under jit.
    one = module
    step = jax.jit(body)
    outputs = []
    for x in xs:
        one, y = step(one, x)
        outputs.append(y)
    assert_close(final, one, rtol=1e-4)
    np.testing.assert_allclose(ys, np.stack(outputs), rtol=1e-4)


def test_scan_with_dropout_draws_differently_in_each_step():
    xs = jnp.ones([3, 40])
    module = Mask().init(xs[0])

    def body(module, x):
        return (lambda y: (module, y))(module(x))

    final, ys = jax.lax.scan(body, module, xs)
    assert len({row.tobytes() for row in np.asarray(ys)}) == 3
    assert not np.array_equal(final.rng_key, module.rng_key)


def test_scan_over_stacked_modules_is_a_deep_network():
    x = jnp.ones([2, 3])
    keys = jax.random.split(jax.random.key(0), 4)
    layers = jax.vmap(lambda key: Affine(3).init(x, rng=key))(keys)
    y, _ = jax.lax.scan(lambda x, layer: (layer(x) / 10, None), x, layers)
    expected = x
    for key in keys:
        expected = Affine(3).init(x, rng=key)(expected) / 10
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_while_loop_fori_loop_and_cond_carry_modules():
    module = Counter().init()
    count = lambda m: (m(), m)[1]  # noqa: E731
    assert int(jax.lax.fori_loop(0, 4, lambda _, m: count(m), module).n) == 4
    assert int(jax.lax.while_loop(lambda m: m.n < 3, count, module).n) == 3
    assert int(jax.lax.cond(True, count, lambda m: m, module).n) == 1
    assert int(module.n) == 0


def test_training_inside_scan():
    x, y = batch()
    module = Net().init(x)
    optimizer = optax.sgd(0.05)

    def loss_fn(params, rest):
        return jnp.mean((elegy.combine(params, rest)(x) - y) ** 2)

    def body(carry, _):
        module, state = carry
        params, rest = elegy.partition(module)
        loss, grads = jax.value_and_grad(loss_fn)(params, rest)
        updates, state = optimizer.update(grads, state)
        return (elegy.combine(optax.apply_updates(params, updates), rest), state), loss

    start = (module, optimizer.init(elegy.partition(module)[0]))
    (trained, _), losses = jax.lax.scan(body, start, length=30)
    assert losses[-1] < 0.5 * losses[0]
    assert_close(trained(x), jax.jit(lambda m: m(x))(trained))


# ---------------------------------------------------------------------------------------------------------------------
# jax.grad
# ---------------------------------------------------------------------------------------------------------------------


def test_grad_through_partition_and_combine():
    x, y = batch()
    module = Stateful().init(x)

    def loss_fn(params, rest, x, y):
        module = elegy.combine(params, rest)
        loss = jnp.mean((module(x) - y) ** 2)
        return loss, module

    params, rest = elegy.partition(module)
    (loss, updated), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, rest, x, y)
    assert type(grads) is Stateful and jax.tree.structure(grads) == jax.tree.structure(params)
    assert grads.counter.n is None and grads.norm.mean is None and grads.norm.scale.shape == (4,)
    assert int(updated.counter.n) == 1 and int(module.counter.n) == 0
    assert np.isfinite(loss)
    assert updated.counter.n.dtype == jnp.int32


def test_gradients_are_those_of_plain_arrays():
    x, y = batch()
    module = Net().init(x)
    params, rest = elegy.partition(module)
    grads = jax.grad(lambda params: jnp.mean((elegy.combine(params, rest)(x) - y) ** 2))(params)

    def plain(p):
        h = jnp.tanh(x @ p["affine"]["w"] + p["affine"]["b"][None])
        h = jnp.tanh(h @ p["affine_1"]["w"] + p["affine_1"]["b"][None])
        return jnp.mean((h @ p["affine_2"]["w"] + p["affine_2"]["b"][None] - y) ** 2)

    assert_close(grads.get_parameters(), jax.grad(plain)(module.get_parameters()), rtol=1e-4)


def test_grad_with_respect_to_a_module_without_state():
    x, y = batch()
    module = Net().init(x)
    grads = jax.grad(lambda m: jnp.mean((m(x) - y) ** 2))(module)
    assert isinstance(grads, Net) and jax.tree.structure(grads) == jax.tree.structure(module)
    stepped = jax.tree.map(lambda p, g: p - 0.01 * g, module, grads)
    assert jnp.mean((stepped(x) - y) ** 2) < jnp.mean((module(x) - y) ** 2)


def test_optax_on_module_pytrees(default_promotion):
    x, y = batch()
    module = Stateful().init(x)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))

    @jax.jit
    def step(module, state):
        params, rest = elegy.partition(module)

        def loss_fn(params):
            module = elegy.combine(params, rest)
            with elegy.training_context(True):
                return jnp.mean((module(x) - y) ** 2), module

        (loss, module), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        params, rest = elegy.partition(module)
        updates, state = optimizer.update(grads, state, params)
        return elegy.combine(optax.apply_updates(params, updates), rest), state, loss

    state = optimizer.init(elegy.partition(module)[0])
    losses = []
    for _ in range(60):
        module, state, loss = step(module, state)
        losses.append(loss)
    assert losses[-1] < losses[0]
    assert int(module.counter.n) == 60
    assert step._cache_size() == 1


def test_masked_optimizer_with_trainable_mask():
    x, _ = batch()
    module = Norm().init(x)
    mask: tp.Any = elegy.trainable_mask(module)
    assert jax.tree.leaves(mask) == [leaf is module.scale for leaf in jax.tree.leaves(module)]
    optimizer: tp.Any = optax.masked(optax.sgd(1.0), mask)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, module), optimizer.init(module))
    np.testing.assert_array_equal(updates.scale, -jnp.ones(3))
    np.testing.assert_array_equal(updates.mean, jnp.ones(3))


def test_partition_and_combine_are_inverse():
    x, _ = batch()
    module = Stateful().init(x)
    params, rest = elegy.partition(module)
    assert type(params) is type(rest) is Stateful
    assert len(jax.tree.leaves(params)) + len(jax.tree.leaves(rest)) == len(jax.tree.leaves(module))
    assert_same(elegy.combine(params, rest), module)
    assert_same(elegy.combine(rest, params), module)
    module.norm.trainable = False
    assert elegy.partition(module)[0].norm.scale is None
    module.trainable = False
    assert jax.tree.leaves(elegy.partition(module)[0]) == []


def test_second_derivatives_and_jvp():
    x, _ = batch()
    module = Affine(1).init(x)

    def loss_fn(module):
        return jnp.sum(module(x) ** 2)

    hessian = jax.hessian(loss_fn)(module)
    assert hessian.b.b.shape == (1, 1)
    np.testing.assert_allclose(hessian.b.b, [[2 * 6.0]], rtol=1e-6)
    _, tangent = jax.jvp(loss_fn, (module,), (jax.tree.map(jnp.ones_like, module),))
    np.testing.assert_allclose(tangent, jnp.sum(2 * module(x) * (x.sum(1, keepdims=True) + 1)), rtol=1e-5)


def test_remat_and_custom_derivatives_take_modules():
    x, _ = batch()
    module = Net().init(x)
    loss = lambda m: jnp.sum(m(x))  # noqa: E731
    assert_close(jax.grad(jax.checkpoint(loss))(module), jax.grad(loss)(module))


def test_the_rules_of_a_primitive_may_rebuild_a_module():
    # JAX evaluates a rule between two traces. Libraries whose primitives take pytrees rebuild their arguments there.
    x, _ = batch()
    net = Net().init(x, rng=0)
    leaves, structure = jax.tree.flatten((net, x))

    def run(*leaves):
        module, inputs = jax.tree.unflatten(structure, leaves)
        return module.apply(inputs, training=False)[0]

    def abstract(*leaves):
        module, inputs = jax.tree.unflatten(structure, leaves)
        out = jax.eval_shape(lambda module, inputs: module.apply(inputs, training=False)[0], module, inputs)
        return jax.core.ShapedArray(out.shape, out.dtype)

    primitive = jax.extend.core.Primitive("run")
    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(run))
    jax.interpreters.mlir.register_lowering(primitive, jax.interpreters.mlir.lower_fun(run, multiple_results=False))
    expected = net.apply(x, training=False)[0]
    assert_close(primitive.bind(*leaves), expected)
    assert_close(jax.jit(primitive.bind)(*leaves), expected)


# ---------------------------------------------------------------------------------------------------------------------
# jax.tree, jax.eval_shape and others
# ---------------------------------------------------------------------------------------------------------------------


def test_tree_map_gives_an_independent_module():
    x, _ = batch()
    module = Stateful().init(x)
    doubled = jax.tree.map(lambda leaf: leaf * leaf.dtype.type(2), module)
    assert type(doubled) is Stateful and doubled is not module and doubled.affine is not module.affine
    np.testing.assert_array_equal(doubled.affine.w, 2 * module.affine.w)
    doubled.set_parameters({"affine": {"b": jnp.ones(4)}})
    assert not module.affine.b.any()
    assert doubled(x).shape == (6, 1)


def test_tree_paths_are_attribute_names():
    class Mixed(elegy.Module):
        def __init__(self):
            self.blocks = [Affine(2), {"a": Affine(2)}]

        def call(self, x):
            return self.blocks[1]["a"](self.blocks[0](x))

    module = Mixed().init(jnp.ones([1, 2]))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(module)[0]]
    assert paths == [".blocks[0].w", ".blocks[0].b", ".blocks[1]['a'].w", ".blocks[1]['a'].b"]


def test_leaves_of_any_kind_survive_a_round_trip():
    x, _ = batch()
    module = Stateful().init(x)
    leaves, treedef = jax.tree.flatten(module)
    for strange in (None, object(), 0, (), "text", jax.ShapeDtypeStruct((2,), jnp.float32)):
        rebuilt = treedef.unflatten([strange] * len(leaves))
        assert isinstance(rebuilt, Stateful) and rebuilt.affine.w is strange
        if strange is not None and strange != ():
            assert jax.tree.leaves(rebuilt) == [strange] * len(leaves)
    assert_same(treedef.unflatten(leaves), module)


def test_eval_shape_of_a_module():
    x, _ = batch()
    module = Stateful().init(x)
    before = module.get_parameters()
    y, shapes = jax.eval_shape(run, module, x)
    assert y.shape == (6, 1) and isinstance(shapes, Stateful)
    assert shapes.affine.w.shape == (3, 4) and isinstance(shapes.affine.w, jax.ShapeDtypeStruct)
    assert_same(module.get_parameters(), before)
    assert jax.eval_shape(run, shapes, x)[0].shape == (6, 1)


def test_eval_shape_of_a_construction():
    x, _ = batch()
    shapes = jax.eval_shape(lambda key: Net().init(x, rng=key), jax.random.key(0))
    assert isinstance(shapes, Net) and shapes.affine.w.shape == (3, 8)


def test_init_takes_shapes():
    module = Net().init(jax.ShapeDtypeStruct((6, 3), jnp.float32), rng=0)
    assert_same(module, Net().init(batch()[0], rng=0))


def test_init_runs_nothing_of_the_forward_computation():
    ran = []

    class Spy(elegy.Module):
        def call(self, x):
            jax.debug.callback(lambda: ran.append("spied"))
            return Affine(2)(x)

    module = Spy().init(jnp.ones([1, 2]))
    jax.effects_barrier()
    assert ran == []
    module(jnp.ones([1, 2]))
    jax.effects_barrier()
    assert ran == ["spied"]


def test_device_put_and_block_until_ready():
    x, _ = batch()
    module = jax.device_put(Net().init(x), jax.devices()[1])
    assert module.affine.w.devices() == {jax.devices()[1]}
    assert jax.block_until_ready(module).initialized


def test_no_wrapper_is_needed_for_odd_static_attributes():
    class Odd(elegy.Module):
        def __init__(self):
            self.activation = jnp.tanh
            self.dtype_ = jnp.bfloat16
            self.text = "text"
            self.nothing = None
            self.kinds = {"relu": jax.nn.relu, 3: (len, lambda x: x)}
            self.slices = slice(0, 2)
            self.partial = functools.partial(jnp.sum, axis=0)
            self.empty_list, self.empty_dict, self.empty_tuple = [], {}, ()
            self.color = collections.namedtuple("Color", "r g b")(1, 2, 3)
            self.cls = Affine

        def call(self, x):
            return self.activation(x) * self.color.g

    module = Odd().init(jnp.ones(2))
    assert jax.tree.leaves(module) == []
    function, runs = traced(run)
    step = jax.jit(function)
    y, same = step(module, jnp.ones(2))
    _, same = step(same, jnp.ones(2))
    assert len(runs) == 1
    assert same.empty_list == [] and same.empty_dict == {} and same.empty_tuple == () and same.color.b == 3
    np.testing.assert_allclose(y, 2 * np.tanh(np.ones(2)), rtol=1e-6)


def test_arrays_in_any_attribute_are_leaves():
    class Arrays(elegy.Module):
        def __init__(self):
            self.bare = jnp.ones(2)
            self.numpy = np.ones(3)
            self.listed = [jnp.ones(1), 5, {"deep": (jnp.zeros(1), "text")}]
            self.key = jax.random.key(0)

        def call(self):
            return self.bare

    module = Arrays().init()
    assert len(jax.tree.leaves(module)) == 5
    moved = jax.jit(lambda m: m)(module)
    assert moved.listed[1] == 5 and moved.listed[2]["deep"][1] == "text"
    assert jnp.issubdtype(moved.key.dtype, jax.dtypes.prng_key)
    # None of them is trainable.
    assert module.get_parameters(trainable=True) == {}


def test_containers_of_a_module_cannot_be_changed():
    class Layers(elegy.Module):
        def __init__(self):
            self.layers = [Affine(2), Affine(2)]
            self.named = {"a": Affine(2)}

        def call(self, x):
            return self.layers[0](x)

    module: tp.Any = Layers()
    changes = [
        lambda: module.layers.append(Affine(2)),
        lambda: module.layers.pop(),
        lambda: module.layers.__setitem__(0, Affine(2)),
        lambda: module.named.update(b=Affine(2)),
        lambda: module.named.pop("a"),
        lambda: module.named.__setitem__("b", 1),
    ]
    for change in changes:
        with pytest.raises(elegy.errors.FrozenModuleError):
            change()
    # They still read as what they were, and what is built from them is free.
    assert isinstance(module.layers, list) and isinstance(module.named, dict)
    assert [*module.layers, 1][2] == 1 and list(module.layers)[0] is module.layers[0]
    fresh = module.layers + [3]
    fresh.append(4)


def test_the_caller_keeps_the_list_given_to_a_constructor():
    class Layers(elegy.Module):
        def __init__(self, layers):
            self.layers = layers

        def call(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    layers = [Affine(2)]
    module = Layers(layers)
    layers.append(Affine(5))
    assert len(layers) == 2 and len(module.layers) == 1
    assert module(jnp.ones([1, 2])).shape == (1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The layers of the library, under all of these
# ---------------------------------------------------------------------------------------------------------------------


def layers():
    return elegy.nn.Sequential(
        lambda: [
            elegy.nn.Linear(4),
            elegy.nn.BatchNormalization(),
            jax.nn.relu,
            elegy.nn.Dropout(0.5),
            elegy.nn.Linear(1),
        ]
    )


def test_layers_of_the_library_under_plain_jax():
    x, y = batch()
    module = layers().init(x, rng=0)
    before = module.copy()
    function, runs = traced(run)
    step = jax.jit(function)
    a, second = step(module, x)
    b, third = step(second, x)
    assert len(runs) == 1 and not np.array_equal(a, b)
    assert_same(module, before)
    assert jax.tree.structure(third) == jax.tree.structure(module)
    state = lambda m: m.get_parameters(trainable=False)  # noqa: E731
    assert any(np.any(p != q) for p, q in zip(*map(jax.tree.leaves, (state(second), state(third))), strict=True))

    final, outputs = jax.lax.scan(lambda m, x: run(m, x)[::-1], module, jnp.stack([x, x]))
    assert_close((outputs[0], outputs[1], final), (a, b, third), rtol=1e-4)

    params, rest = elegy.partition(module)
    loss_fn = lambda params: jnp.mean((elegy.combine(params, rest).apply(x)[0] - y) ** 2)  # noqa: E731
    with elegy.training_context(False):
        grads = jax.jit(jax.grad(loss_fn))(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params) and len(jax.tree.leaves(grads)) == 6

    shape, shapes = jax.eval_shape(run, module, x)
    assert shape.shape == (6, 1) and jax.tree.structure(shapes) == jax.tree.structure(module)

    ensemble = jax.vmap(lambda key: layers().init(x, rng=key))(jax.random.split(jax.random.key(0), 3))
    outputs, ensemble = jax.vmap(run, in_axes=(0, None))(ensemble, x)
    assert len({row.tobytes() for row in np.asarray(outputs)}) == 3


# ---------------------------------------------------------------------------------------------------------------------
# Equinox inside, and Elegy inside Equinox
# ---------------------------------------------------------------------------------------------------------------------


def test_an_equinox_layer_as_a_child():
    class Hybrid(elegy.Module):
        def __init__(self, key):
            self.inner = eqx.nn.MLP(3, 4, 8, 1, key=key)

        def call(self, x):
            return Affine(1)(jax.vmap(self.inner)(x))

    x, y = batch()
    module = Hybrid(jax.random.key(0)).init(x)
    parameters = module.get_parameters(trainable=True)
    assert len(jax.tree.leaves(parameters)) == 6
    function, runs = traced(run)
    step = jax.jit(function)
    out, moved = step(module, x)
    step(moved, x)
    assert len(runs) == 1
    assert_close(out, module(x))
    assert moved.inner.activation is module.inner.activation

    loss, grads = elegy.value_and_grad(lambda: jnp.mean((module(x) - y) ** 2), modules=module)()
    assert jax.tree.structure(grads) == jax.tree.structure(parameters)
    module.set_parameters(jax.tree.map(lambda p, g: p - 0.01 * g, parameters, grads))
    assert jnp.mean((module(x) - y) ** 2) < loss
    assert isinstance(module.inner, eqx.nn.MLP)
    module.trainable = False
    assert jax.tree.leaves(module.get_parameters(trainable=True)) == []


def test_an_elegy_module_inside_an_equinox_module():
    class Outer(eqx.Module):
        inner: Affine
        scale: jax.Array

        def __call__(self, x):
            return self.inner(x) * self.scale

    x, _ = batch()
    module = Outer(Affine(2).init(x), jnp.asarray(2.0))
    y = eqx.filter_jit(lambda m: m(x))(module)
    np.testing.assert_allclose(y, 2 * module.inner(x), rtol=1e-6)
    grads = eqx.filter_grad(lambda m: m(x).sum())(module)
    assert isinstance(grads.inner, Affine) and grads.inner.w.shape == (3, 2)


def test_equinox_transforms_take_modules():
    class Regular(elegy.Module):
        def call(self, x):
            return Affine(1)(Mask()(Norm()(x)))

    x, _ = batch()
    module = Regular().init(x)
    with elegy.training_context(False):
        expected = module(x)
        assert_close(eqx.filter_jit(lambda m: m(x))(module), expected)
        assert eqx.filter_eval_shape(lambda m: m(x), module).shape == (6, 1)
        params, rest = eqx.partition(module, eqx.is_inexact_array)
        assert_close(eqx.combine(params, rest)(x), expected)
    assert eqx.tree_equal(module, module.copy())


# ---------------------------------------------------------------------------------------------------------------------
# Dataclasses
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_a_dataclass_is_a_module(frozen):
    @dataclasses.dataclass(frozen=frozen)
    class Block(elegy.Module):
        width: int
        rate: float = 0.5
        activations: tuple[tp.Any, ...] = dataclasses.field(default_factory=lambda: (jnp.tanh,))

        def call(self, x):
            return self.activations[0](Affine(self.width)(x)) * self.rate

    x, _ = batch()
    make: tp.Any = Block
    block = make(4)
    assert block(x).shape == (6, 4) and block.width == 4
    assert block == block and block != make(4) and len({block, make(4)}) == 2
    assert_close(jax.jit(lambda m: m(x))(block), block(x))
    with pytest.raises((elegy.errors.FrozenModuleError, dataclasses.FrozenInstanceError)):
        block.width = 5
    assert block.width == 4
    np.testing.assert_allclose(block.copy()(x), block(x))
    block.trainable = False
    assert jax.tree.leaves(block.get_parameters(trainable=True)) == []


def test_a_dataclass_of_modules_and_arrays_that_inherits():
    @dataclasses.dataclass
    class Base(elegy.Module):
        first: elegy.Module
        scale: Float[Array, "1"] = dataclasses.field(default_factory=lambda: jnp.full([1], 2.0))

        def call(self, x):
            return self.tail(self.first(x))

        def tail(self, x):
            return x * jnp.broadcast_to(self.scale, x.shape)

    @dataclasses.dataclass
    class Derived(Base):
        second: elegy.Module = dataclasses.field(default_factory=lambda: Affine(1))

        def call(self, x):
            return self.second(super().call(x))

    x, _ = batch()
    module = Derived(Affine(4))
    assert module(x).shape == (6, 1)
    assert list(module.submodules) == ["first", "second"]
    assert len(jax.tree.leaves(module)) == 5
    other = Derived(Affine(4))
    assert other.second is not module.second
    assert isinstance(jax.tree.map(lambda leaf: leaf, module), Derived)


def test_a_plain_subclass_of_a_dataclass_module():
    @dataclasses.dataclass
    class Base(elegy.Module):
        width: int = 3

        def call(self, x):
            return Affine(self.width)(x)

    class Derived(Base):
        pass

    a, b = Derived(), Derived()
    assert a == a and a != b and hash(a) != hash(b)
    assert a(jnp.ones([1, 2])).shape == (1, 3)
    assert_same(jax.jit(lambda m: m)(a), a)


def test_slots_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match="slots"):

        class Slotted(elegy.Module):
            __slots__ = ("a",)

    with pytest.raises(TypeError, match="slots=True"):

        @dataclasses.dataclass(slots=True)
        class SlottedDataclass(elegy.Module):
            a: int = 0


def test_dataclass_replace_gives_a_new_module():
    @dataclasses.dataclass
    class Block(elegy.Module):
        width: int
        inner: elegy.Module

        def call(self, x):
            return self.inner(x) * self.width

    x, _ = batch()
    block = Block(2, Affine(2))
    y = block(x)
    wider = dataclasses.replace(block, width=4)
    np.testing.assert_allclose(wider(x), 2 * y, rtol=1e-6)


def test_methods_of_a_dataclass_that_the_user_wrote_are_kept():
    @dataclasses.dataclass
    class Equal(elegy.Module):
        width: int

        def __eq__(self, other):
            return isinstance(other, Equal) and self.width == other.width

        def __hash__(self):
            return hash(self.width)

        def __repr__(self):
            return "mine"

    assert Equal(1) == Equal(1) and Equal(1) != Equal(2) and hash(Equal(3)) == hash(3) and repr(Equal(1)) == "mine"


def test_a_subclass_of_a_dataclass_of_which_there_is_no_instance_yet():
    @dataclasses.dataclass(frozen=True)
    class Base(elegy.Module):
        width: int

    class Sub(Base):
        pass

    module = Sub(1)
    before = repr(module)
    Base(1)
    assert repr(module) == before and module == module and module != Sub(1)  # noqa: PLR0124
    with pytest.raises(elegy.errors.FrozenModuleError):
        module.width = 2
    module.trainable = False


def test_a_dataclass_that_is_no_module_stays_what_it_is_among_the_bases():
    @dataclasses.dataclass
    class Config:
        width: int

    class Net(Config, elegy.Module):
        def call(self, x):
            return self.width * x

    net = Net(2)
    assert net(3) == 6 and net == net and net != Net(2) and hash(net) != hash(Net(2))  # noqa: PLR0124
    assert Config(1) == Config(1) and "width=1" in repr(Config(1))


# ---------------------------------------------------------------------------------------------------------------------
# Static values
# ---------------------------------------------------------------------------------------------------------------------


def test_an_unhashable_static_value_works_and_is_compared():
    class Config:
        def __init__(self, size):
            self.size = size

        def __eq__(self, other):
            return isinstance(other, Config) and self.size == other.size

    class Holder(elegy.Module):
        def __init__(self, size):
            self.config = Config(size)

        def call(self, x):
            return x * self.config.size

    function, runs = traced(lambda m, x: m(x))
    step = jax.jit(function)
    outputs = [float(step(Holder(size).init(1.0), 1.0)) for size in (2, 3, 2, 3)]
    assert outputs == [2, 3, 2, 3]
    assert len(runs) == 2


# ---------------------------------------------------------------------------------------------------------------------
# What a module cannot hide
# ---------------------------------------------------------------------------------------------------------------------


def test_a_module_may_compare_as_it_likes():
    class Equal(elegy.Module):
        def __init__(self, k, activation):
            self.k, self.layers = k, [Affine(3), activation]

        def __eq__(self, other):
            return isinstance(other, Equal) and self.k == other.k

        def call(self, x):
            return self.layers[0](x)

    class Hashed(Equal):
        def __hash__(self):
            return hash(self.k)

    x, _ = batch()
    for cls in (Equal, Hashed):
        one, other = cls(1, "relu").init(x), cls(1, "tanh").init(x)
        assert one.copy().layers[1] == "relu" and other.copy().layers[1] == "tanh"
        assert jax.jit(lambda m, x: m(x))(one, x).shape == (6, 3)


@pytest.mark.parametrize(
    "name", ["_born", "_compiled", "_depth", "_fixed", "_layout", "_meta", "_pending", "_ties", "_class"]
)
def test_the_names_of_the_bookkeeping_are_free(name):
    class Own(elegy.Module):
        def __init__(self):
            setattr(self, name, "NHWC")
            self.inner = Affine(2)

        def call(self, x):
            return self.inner(x)

    x, _ = batch()
    module = Own().init(x)
    assert getattr(module.copy(), name) == getattr(module, name) == "NHWC"
    assert_close(jax.jit(lambda m, x: m(x))(module, x), module(x))


def test_cached_properties_keep_static_values_and_refuse_arrays():
    computed = []

    class Cached(elegy.Module):
        def __init__(self):
            self.sizes = (2, 3)

        @functools.cached_property
        def total(self):
            computed.append(1)
            return sum(self.sizes)

        @functools.cached_property
        def norm(self):
            return jnp.sum(self.w**2)

        def call(self, x):
            return x * self.add_parameter("w", [3], initializer=jnp.ones)[None] * self.total

    x, _ = batch()
    module = Cached()
    structure = jax.tree.structure(module.init(x))
    assert module.total == module.copy().total == 5 and len(computed) == 2
    assert jax.tree.structure(module) == structure
    with pytest.raises(elegy.errors.StaticValueError, match="(?s)cached/norm .* Use property"):
        print(module.norm)
    assert set(module.get_parameters()) == {"w"}


def test_partial_functions_are_compared_by_what_they_do():
    class Activated(elegy.Module):
        def __init__(self, slope):
            self.activation = functools.partial(jax.nn.leaky_relu, negative_slope=slope)
            self.inner = Affine(2)

        def call(self, x):
            return self.activation(self.inner(x))

    x, _ = batch()
    function, runs = traced(lambda m, x: m(x))
    compiled = jax.jit(function)
    one, other, third = Activated(0.1).init(x), Activated(0.1).init(x), Activated(0.2).init(x)
    compiled(one, x), compiled(other, x), compiled(one.copy(), x)
    assert len(runs) == 1
    compiled(third, x)
    assert len(runs) == 2
    jax.tree.map(jnp.add, one, other)
    assert elegy.nn.Ensemble(lambda: Activated(0.1), 3)(x).shape == (3, 6, 2)


@pytest.mark.parametrize("cls", [dict, collections.OrderedDict, lambda d: collections.defaultdict(list, d)])
def test_dicts_keep_their_order_and_refuse_to_change(cls):
    """A module that runs its layers in turn must do the same when JAX has taken it apart."""

    class Turns(elegy.Module):
        def __init__(self):
            self.layers = cls({"second": Affine(3), "first": Affine(2), "a": Affine(1)})

        def call(self, x):
            for layer in self.layers.values():
                x = layer(x)
            return x

    x, _ = batch()
    module = Turns().init(x)
    assert_close(jax.jit(lambda m, x: m(x))(module, x), module(x))
    assert list(module.copy().layers) == ["second", "first", "a"]
    with pytest.raises(elegy.errors.FrozenModuleError, match="Turns.layers"):
        module.layers["new"] = jnp.ones(3)
    module.set_parameters(module.get_parameters())


def test_nothing_is_left_of_the_arguments_of_other_instances():
    """Instances of one class share what is known of their structure, not what their methods were given."""
    size = [3]

    class Sized(elegy.Module):
        def call(self, x):
            return Affine(size[0])(x)

    x, _ = batch()
    one = Sized().init(x)
    jax.tree.leaves(one)
    size[0] = 4
    other = Sized().init(x)
    jax.tree.leaves(other)
    assert other(x).shape == (6, 4)
    size[0] = 3
    assert one(x).shape == (6, 3)
