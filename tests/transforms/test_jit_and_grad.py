"""`elegy.jit`, `value_and_grad` and `grad`: shim form, pure form and eager give the same."""

import functools
import gc
import typing as tp
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from tests import helpers
from tests.helpers import Affine, Counter, Mask, Net, Norm, Stateful, assert_close, assert_same, batch, concrete


def mse(prediction, y):
    return jnp.mean((prediction - y) ** 2)


class Regular(elegy.Module):
    """Layers and running statistics; draws nothing."""

    def call(self, x):
        x = jnp.tanh(Affine(4)(x))
        x = Norm()(x)
        Counter()()
        return Affine(1)(x)


def fresh(cls: tp.Any = Regular, seed=0) -> tp.Any:
    """An initialised module; the random stream of the thread is left at a known place."""
    elegy.set_rng(elegy.RNG(seed))
    return cls().init(batch()[0], rng=seed)


# ---------------------------------------------------------------------------------------------------------------------
# Functional style
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False, None])
def test_apply_leaves_the_module_bit_identical(training):
    x, _ = batch()
    module = fresh(Stateful)
    before, key = module.copy(), elegy.get_rng().key
    objects = jax.tree.leaves(module)
    y, updated = module.apply(x, rng=jax.random.key(1), training=training)
    assert_same(module, before)
    assert all(a is b for a, b in zip(jax.tree.leaves(module), objects, strict=True))
    assert_same(elegy.get_rng().key, key)
    assert elegy.training()
    assert updated is not module and updated.counter is not module.counter
    assert int(updated.counter.n) == 1 and int(module.counter.n) == 0
    assert bool((updated.norm.mean != module.norm.mean).any()) is (training is not False)
    again, _ = module.apply(x, rng=jax.random.key(1), training=training)
    assert_same(y, again)


def test_apply_of_a_fresh_module_leaves_it_fresh():
    x, _ = batch()
    module = Net()
    y, updated = module.apply(x, rng=3)
    assert not module.initialized and module.get_parameters() == {}
    assert updated.initialized
    assert_close(updated(x), y)
    assert_same(updated.get_parameters(), Net().init(x, rng=3).get_parameters())


def test_apply_takes_seeds_keys_and_methods():
    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x, *, scale):
            return Affine(2, name="encoder")(x) * scale

        def call(self, x):
            return self.encode(x, scale=1.0)

    x, _ = batch()
    module = Coder().init(x)
    z, _ = module.apply(x, scale=2.0, method="encode")
    np.testing.assert_allclose(z, 2 * module(x), rtol=1e-6)
    noise = Mask().init(x)
    assert_same(noise.apply(x, rng=0)[0], noise.apply(x, rng=jax.random.key(0))[0])
    assert_same(noise.apply(x, rng=0)[0], noise.apply(x, rng=jax.random.PRNGKey(0))[0])


def shim_loop(module, optimizer, steps, x, y):
    state = optimizer.init(module.get_parameters(trainable=True))
    optimizer_state = [state]

    def loss_fn(x, y):
        return mse(module(x), y)

    def update(x, y, state):
        loss, grads = elegy.value_and_grad(loss_fn, modules=module)(x, y)
        parameters = module.get_parameters(trainable=True)
        updates, state = optimizer.update(grads, state, parameters)
        module.set_parameters(optax.apply_updates(parameters, updates))
        return loss, state

    step = elegy.jit(update, modules=module)
    losses = []
    for _ in range(steps):
        loss, optimizer_state[0] = step(x, y, optimizer_state[0])
        losses.append(float(loss))
    return losses, module


def functional_loop(module, optimizer, steps, x, y):
    state = optimizer.init(elegy.partition(module)[0])

    def loss_fn(module, x, y):
        return mse(module(x), y)

    @jax.jit
    def step(module, state, x, y):
        (loss, module), grads = elegy.value_and_grad(loss_fn)(module, x, y)
        parameters, rest = elegy.partition(module)
        updates, state = optimizer.update(grads, state, parameters)
        return loss, elegy.combine(optax.apply_updates(parameters, updates), rest), state

    losses = []
    for _ in range(steps):
        loss, module, state = step(module, state, x, y)
        losses.append(float(loss))
    assert step._cache_size() == 1
    return losses, module


def partitioned_loop(module, optimizer, steps, x, y):
    state = optimizer.init(elegy.partition(module)[0])

    @jax.jit
    def step(module, state, x, y):
        params, rest = elegy.partition(module)

        def loss_fn(params):
            module = elegy.combine(params, rest)
            return mse(module(x), y), module

        (loss, module), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        params, rest = elegy.partition(module)
        updates, state = optimizer.update(grads, state, params)
        return loss, elegy.combine(optax.apply_updates(params, updates), rest), state

    losses = []
    for _ in range(steps):
        loss, module, state = step(module, state, x, y)
        losses.append(float(loss))
    return losses, module


def eager_loop(module, optimizer, steps, x, y):
    state = optimizer.init(module.get_parameters(trainable=True))
    losses = []
    for _ in range(steps):
        loss, grads = elegy.value_and_grad(lambda: mse(module(x), y), modules=module)()
        parameters = module.get_parameters(trainable=True)
        updates, state = optimizer.update(grads, state, parameters)
        module.set_parameters(optax.apply_updates(parameters, updates))
        losses.append(float(loss))
    return losses, module


@pytest.mark.usefixtures("default_promotion")  # optax promotes
@pytest.mark.parametrize("loop", [functional_loop, partitioned_loop, eager_loop])
def test_every_style_trains_to_the_same_numbers(loop):
    x, y = batch(12)
    optimizer = optax.adam(1e-2)
    expected, shim = shim_loop(fresh(), optimizer, 8, x, y)
    start = fresh()
    before = start.copy()
    losses, module = loop(start, optimizer, 8, x, y)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(module.get_parameters(), shim.get_parameters(), rtol=1e-3, atol=1e-5)
    assert int(module.counter.n) == 8
    if loop is not eager_loop:
        assert_same(start, before)
    assert expected[-1] < expected[0]


def test_functional_training_with_dropout_inside_jit():
    # The random stream of the thread cannot enter jax.jit; the module's own key can.
    x, y = batch()
    module = fresh(Stateful)

    @jax.jit
    def step(module):
        (loss, module), grads = elegy.value_and_grad(lambda m: mse(m(x), y))(module)
        return loss, module, grads

    loss, second, grads = step(module)
    assert int(second.counter.n) == 1 and concrete((loss, second, grads))
    other, _, _ = step(second)
    assert loss != other


def test_functional_training_with_a_key_inside_jit():
    x, y = batch()
    module = fresh(Stateful)

    @jax.jit
    def step(module, key):
        with elegy.rng_context(key):
            return elegy.value_and_grad(lambda m: mse(m(x), y))(module)

    (a, _), _ = step(module, jax.random.key(0))
    (b, _), _ = step(module, jax.random.key(0))
    (c, _), _ = step(module, jax.random.key(1))
    assert a == b and a != c


# ---------------------------------------------------------------------------------------------------------------------
# Eager, jitted, nested: the same
# ---------------------------------------------------------------------------------------------------------------------


def program(module, x, y, wrap):
    """Three updates by every kind of effect, through `wrap(function)`."""
    results = []

    def update(x, y):
        loss = mse(module(x), y)
        key = elegy.next_rng_key()
        module.set_parameters({"affine": {"b": module.affine.b + jax.random.normal(key, module.affine.b.shape)}})
        elegy.add_loss("fit", loss)
        return loss

    step = wrap(update)
    with elegy.hooks_context():
        for _ in range(3):
            results.append(step(x, y))
        collected = dict(helpers.losses())
    return results, collected, module.get_parameters(), elegy.get_rng().key


def wrappers(module):
    jit = functools.partial(elegy.jit, modules=module)
    first = lambda f: lambda *args: elegy.value_and_grad(f, modules=module)(*args)[0]  # noqa: E731
    return {
        "jit": jit,
        "value_and_grad": first,
        "jit of jit": lambda f: jit(jit(f)),
        "jit of value_and_grad": lambda f: jit(first(f)),
        "value_and_grad of jit": lambda f: first(jit(f)),
        "jit of value_and_grad of jit": lambda f: jit(first(jit(f))),
        "value_and_grad of value_and_grad": lambda f: first(first(f)),
        "jit of jit of value_and_grad of jit of jit": lambda f: jit(jit(first(jit(jit(f))))),
    }


@pytest.mark.parametrize("kind", list(wrappers(None)))
def test_a_transformed_program_does_what_the_eager_one_does(kind):
    x, y = batch()
    module = fresh(Stateful)
    expected = program(module, x, y, lambda f: f)
    module = fresh(Stateful)
    result = program(module, x, y, wrappers(module)[kind])
    assert_close(result[:3], expected[:3], rtol=1e-4, atol=1e-5)
    assert_same(result[3], expected[3])
    assert concrete(result)
    assert int(module.counter.n) == 3


@pytest.mark.parametrize("kind", ["jit", "value_and_grad", "jit of value_and_grad", "jit of value_and_grad of jit"])
def test_a_fresh_module_in_any_nesting_starts_as_the_eager_one(kind):
    x, y = batch()
    elegy.set_rng(elegy.RNG(5))
    module = Stateful()
    expected = program(module, x, y, lambda f: f)
    elegy.set_rng(elegy.RNG(5))
    module = Stateful()
    result = program(module, x, y, wrappers(module)[kind])
    assert_close(result[:3], expected[:3], rtol=1e-4, atol=1e-5)
    assert concrete(result)
    assert int(module.counter.n) == 3


def test_jax_transforms_inside_elegy_transforms():
    x, y = batch()
    module = fresh()

    def per_example(x, y):
        with elegy.training_context(False):
            return mse(module(x[None]), y[None])

    class Plain(elegy.Module):
        def call(self, x):
            return Affine(1)(jnp.tanh(Affine(4)(x)))

    module = fresh(Plain)
    eager = jax.vmap(per_example)(x, y)
    compiled = elegy.jit(lambda x, y: jax.vmap(per_example)(x, y), modules=module)(x, y)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
    loss, grads = elegy.value_and_grad(lambda x, y: jax.vmap(per_example)(x, y).mean(), modules=module)(x, y)
    expected, expected_grads = elegy.value_and_grad(lambda: mse(module(x), y), modules=module)()
    assert_close((loss, grads), (expected, expected_grads), rtol=1e-4)
    loss = elegy.jit(jax.checkpoint(lambda x: module(x).sum()), modules=module)(x)
    np.testing.assert_allclose(loss, module(x).sum(), rtol=1e-5)


def test_elegy_transforms_inside_jax_transforms():
    x, y = batch()
    module = fresh()

    @jax.jit
    def step(module, x, y):
        loss, grads = elegy.value_and_grad(lambda x, y: mse(module(x), y), modules=module)(x, y)
        elegy.jit(lambda x: module(x), modules=module)(x)
        return loss, grads, module

    loss, grads, updated = step(module, x, y)
    expected = module.copy()
    expected_loss, expected_grads = elegy.value_and_grad(lambda: mse(expected(x), y), modules=expected)()
    expected(x)
    assert_close((loss, grads, updated), (expected_loss, expected_grads, expected), rtol=1e-4)
    assert int(module.counter.n) == 0


def test_elegy_grad_under_jax_vmap_over_an_ensemble():
    x, y = batch()
    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = jax.vmap(lambda key: Net().init(x, rng=key))(keys)
    (losses, updated), grads = jax.vmap(lambda m: elegy.value_and_grad(lambda m: mse(m(x), y))(m))(ensemble)
    assert losses.shape == (3,) and grads.affine.w.shape == (3, 3, 8)
    assert isinstance(updated, Net)


# ---------------------------------------------------------------------------------------------------------------------
# elegy.jit
# ---------------------------------------------------------------------------------------------------------------------


def test_jit_of_a_module_and_of_its_method():
    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            Counter()()
            return Affine(2, name="encoder")(x)

        @elegy.compact
        def decode(self, z, scale=1.0):
            return Affine(3, name="decoder")(z) * scale

        def call(self, x, scale=1.0):
            return self.decode(self.encode(x), scale)

    x, _ = batch()
    module = Coder()
    y = module.jit(x)
    assert module.initialized and int(module.counter.n) == 1
    np.testing.assert_allclose(y, module(x), rtol=1e-6)
    np.testing.assert_allclose(module.jit(x, scale=2.0), 2 * y, rtol=1e-6)
    assert int(module.counter.n) == 3

    compiled = elegy.jit(module)
    np.testing.assert_allclose(compiled(x), y, rtol=1e-6)
    encode, decode = elegy.jit(module.encode), elegy.jit(module.decode)
    np.testing.assert_allclose(decode(encode(x)), y, rtol=1e-6)
    assert int(module.counter.n) == 5
    np.testing.assert_allclose(decode(encode(x), scale=2.0), 2 * y, rtol=1e-6)
    assert decode(jnp.ones([7, 2])).shape == (7, 3)


def test_a_compact_method_of_a_fresh_module_can_be_compiled_first():
    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return Affine(2, name="encoder")(x)

        @elegy.compact
        def decode(self, z):
            return Affine(3, name="decoder")(z)

        def call(self, x):
            return self.decode(self.encode(x))

    x, _ = batch()
    module = Coder()
    z = elegy.jit(module.encode)(x)
    assert list(module.get_parameters()) == ["encoder"]
    assert elegy.jit(module.decode)(z).shape == (6, 3)
    np.testing.assert_allclose(module(x), module.decode(module.encode(x)), rtol=1e-6)
    assert list(module.get_parameters()) == ["encoder", "decoder"]


def test_the_compiled_call_of_a_module_is_kept():
    x, _ = batch()
    runs = []

    class Spied(elegy.Module):
        def call(self, x):
            runs.append(None)
            return Affine(1)(x)

    module = Spied().init(x)
    runs.clear()
    for _ in range(3):
        module.jit(x)
    assert len(runs) == 1


@pytest.mark.parametrize(
    "options", [{"static_argnums": 1}, {"static_argnums": (1,)}, {"static_argnums": -1}, {"static_argnames": "power"}]
)
def test_static_arguments(options):
    module = fresh(Affine)
    x, _ = batch()

    def f(x, power):
        assert isinstance(power, int)
        for _ in range(power):
            x = 2 * x
        return module(x)

    step = elegy.jit(f, modules=module, **options)
    for power in (0, 1, 2, 1):
        np.testing.assert_allclose(step(x, power), module(2**power * x), rtol=1e-6)
    assert step.traces == 3
    if options != {"static_argnums": -1}:
        np.testing.assert_allclose(step(x, power=2), module(4 * x), rtol=1e-6)


def test_static_arguments_of_a_module_and_of_a_pure_function():
    class Switch(elegy.Module):
        def call(self, x, flag, *, mode="a"):
            assert isinstance(flag, bool) and isinstance(mode, str)
            return Affine(1)(x) * (2.0 if flag else 1.0) * (3.0 if mode == "b" else 1.0)

    x, _ = batch()
    module = Switch()
    compiled = elegy.jit(module, static_argnums=1, static_argnames="mode")
    y = compiled(x, False)
    np.testing.assert_allclose(compiled(x, True), 2 * y, rtol=1e-6)
    np.testing.assert_allclose(compiled(x, True, mode="b"), 6 * y, rtol=1e-6)

    pure = elegy.jit(lambda m, x, flag: m(x, flag), static_argnums=2)
    np.testing.assert_allclose(pure(module, x, True), 2 * y, rtol=1e-6)


def test_keyword_arguments_and_variadic_functions():
    module = fresh(Affine)
    x, _ = batch()
    step = elegy.jit(lambda *xs, scale, **more: module(sum(xs[1:], xs[0])) * scale + more["shift"], modules=module)
    result = step(x, x, scale=jnp.asarray(2.0), shift=jnp.asarray(1.0))
    np.testing.assert_allclose(result, 2 * module(2 * x) + 1, rtol=1e-6)


def test_arguments_named_like_internal_ones():
    module = fresh(Affine)
    x, _ = batch()
    names = ("config", "leaves", "rng_data", "args", "kwargs", "self", "function", "view", "modules")
    step = elegy.jit(lambda **named: {name: module(value) for name, value in named.items()}, modules=module)
    result = step(**dict.fromkeys(names, x))
    assert_close(result, dict.fromkeys(names, module(x)))
    value, _ = elegy.value_and_grad(lambda **named: sum(module(v).sum() for v in named.values()), modules=module)(
        **dict.fromkeys(names, x)
    )
    np.testing.assert_allclose(value, len(names) * module(x).sum(), rtol=1e-5)


def test_donated_arguments():
    module = fresh(Counter)
    step = elegy.jit(lambda a, b: (module(a) + 1, b * 2), modules=module, donate_argnums=0)
    a, b = jnp.ones(3), jnp.ones(3)
    result, _ = step(a, b)
    assert a.is_deleted() and not b.is_deleted()
    assert not result.is_deleted() and int(module.n) == 1
    named = elegy.jit(lambda a, b: (a + 1, b * 2), donate_argnames="b")
    a, b = jnp.ones(3), jnp.ones(3)
    named(a, b=b)
    assert b.is_deleted() and not a.is_deleted()


def test_donated_modules():
    x, y = batch()
    module = fresh()
    w = module.affine.w
    expected = fresh()

    def make(module):
        def update(x, y):
            loss, grads = elegy.value_and_grad(lambda: mse(module(x), y), modules=module)()
            parameters = module.get_parameters(trainable=True)
            module.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, parameters, grads))
            return loss

        return update

    step = elegy.jit(make(module), modules=module, donate_modules=True)
    reference = elegy.jit(make(expected), modules=expected)
    for _ in range(3):
        np.testing.assert_allclose(step(x, y), reference(x, y), rtol=1e-5)
    assert w.is_deleted()
    assert_close(module.get_parameters(), expected.get_parameters(), rtol=1e-4)
    # What is not changed can be read on as well.
    forward = elegy.jit(lambda x: module(x), modules=module, donate_modules=True)
    with elegy.training_context(False):
        assert_close(forward(x), forward(x))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(module))


def test_donated_modules_with_shared_and_equal_arrays():
    class Pair(elegy.Module):
        def __init__(self):
            self.a = Affine(2)
            self.b = self.a

        def call(self, x):
            return self.a(x) + self.b(x)

    x, _ = batch()
    module = Pair().init(x)
    expected = module(x)
    step = elegy.jit(lambda x: module(x), modules=module, donate_modules=True)
    np.testing.assert_allclose(step(x), expected, rtol=1e-6)
    np.testing.assert_allclose(step(x), expected, rtol=1e-6)
    # One array held by two modules cannot be donated twice.
    first, second = Affine(2).init(x), Affine(2).init(x)
    second.set_parameters(first.get_parameters())
    step = elegy.jit(lambda x: first(x) + second(x), modules=[first, second], donate_modules=True)
    np.testing.assert_allclose(step(x), 2 * first(x), rtol=1e-6)


def test_modules_may_be_any_container_and_are_never_mutated():
    x, _ = batch()
    a, b = fresh(Counter), fresh(Counter)
    for modules in ([a, b], (a, b), {"a": a, "b": [b]}):
        copy = dict(modules) if isinstance(modules, dict) else list(modules)
        before = int(a.n)
        elegy.jit(lambda: (a(), b()), modules=modules)()
        assert int(a.n) == int(b.n) == before + 1
        assert (modules == copy) if isinstance(modules, dict) else list(modules) == copy
    # A module listed twice, and a module listed with its child.
    net = fresh(Stateful)
    elegy.jit(lambda: net(x), modules=[net, net.counter, net])()
    assert int(net.counter.n) == 1
    listed = [a]
    elegy.jit(b, modules=listed)()
    assert listed == [a]


def test_a_module_listed_below_another_is_threaded():
    net = fresh(Stateful)
    elegy.jit(lambda: net.counter(), modules=net)()
    assert int(net.counter.n) == 1
    elegy.jit(lambda: net.counter(), modules=net.counter)()
    assert int(net.counter.n) == 2


def test_what_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match="class Affine"):
        elegy.jit(lambda: None, modules=Affine)
    with pytest.raises(TypeError, match="module"):
        elegy.jit(lambda: None, modules=[fresh(Affine), 3])
    with pytest.raises(TypeError, match="module"):
        elegy.value_and_grad(lambda: None, modules="text")


def test_jit_without_modules_is_pure():
    x, _ = batch()
    module = fresh()
    step = elegy.jit(lambda m, x: (m(x), m))
    before = module.copy()
    step(module, x)
    y, updated = step(module, x)
    assert_same(module, before)
    assert int(updated.counter.n) == 1
    assert step.traces == 1
    assert_close((y, updated), module.apply(x), rtol=1e-5)


def test_jit_without_any_module_is_jax_jit_with_a_random_stream():
    step = elegy.jit(lambda x: x + jax.random.normal(elegy.next_rng_key(), x.shape))
    x = jnp.zeros(3)
    a, b = step(x), step(x)
    assert not np.array_equal(a, b)
    elegy.set_rng(elegy.RNG(42))
    eager = [x + jax.random.normal(elegy.next_rng_key(), x.shape) for _ in range(2)]
    assert_close([a, b], eager)
    assert step.traces == 1


def test_jit_of_a_pure_function_with_a_fresh_module():
    x, _ = batch()
    module = Net()
    y, updated = elegy.jit(lambda m, x: (m(x), m))(module, x)
    assert updated.initialized and not module.initialized and concrete(updated)
    np.testing.assert_allclose(updated(x), y, rtol=1e-5)


def test_a_module_as_an_argument_and_another_threaded():
    x, _ = batch()
    state, module = fresh(Counter), fresh(Affine)

    def f(module, x):
        state()
        return module(x)

    step = elegy.jit(f, modules=state)
    np.testing.assert_allclose(step(module, x), module(x), rtol=1e-6)
    step(module, x)
    assert int(state.n) == 2 and step.traces == 1


def test_a_compiled_function_as_a_decorator_and_on_a_class():
    module = fresh(Counter)
    x, _ = batch()

    @functools.partial(elegy.jit, modules=module)
    def step(x):
        """Says what it does."""
        return module(x)

    assert step.__name__ == "step" and step.__doc__ == "Says what it does."
    step(x)
    assert int(module.n) == 1

    class Trainer:
        @elegy.jit
        def double(self_or_x, x):  # noqa: N805
            return 2 * x

    assert Trainer.double(1.0, 2.0) == 4.0


def test_jit_does_not_wait():
    # A call returns arrays, not NumPy arrays nor Python numbers, and never fetches them.
    module = fresh(Counter)
    step = elegy.jit(lambda x: (module(x), 3, None, "text") if False else (module(x), 3), modules=module)
    with jax.transfer_guard_device_to_host("disallow"):
        out, three = step(jnp.ones(3))
    assert isinstance(out, jax.Array) and isinstance(three, jax.Array) and isinstance(module.n, jax.Array)


def test_only_what_changed_is_written_back():
    x, _ = batch()
    module = fresh()
    w, mean = module.affine.w, module.norm.mean
    step = elegy.jit(lambda x: module(x), modules=module)
    step(x)
    assert module.affine.w is w and module.norm.mean is not mean
    step(x)
    assert module.affine.w is w


def test_values_set_outside_are_seen_inside():
    x, _ = batch()
    module = fresh(Affine)
    step = elegy.jit(lambda x: module(x), modules=module)
    step(x)
    module.set_parameters(jax.tree.map(jnp.zeros_like, module.get_parameters()))
    assert not step(x).any()
    assert step.traces == 1


def test_the_training_mode_is_seen_inside():
    x = jnp.ones([4, 20])
    module = Mask().init(x)
    step = elegy.jit(lambda x: module(x), modules=module)
    assert (step(x) == 0).any()
    with elegy.training_context(False):
        assert_same(step(x), x)
    assert (step(x) == 0).any()
    assert step.traces == 2


def test_lower_and_compile():
    x, _ = batch()
    module = fresh()
    lowered = elegy.jit(lambda x: module(x), modules=module).lower(x)
    assert "tanh" in lowered.as_text() and lowered.compile() is not None
    assert int(module.counter.n) == 0 and concrete(module)


def test_disable_jit():
    x, y = batch()
    module, other = fresh(), fresh()
    step = lambda m: elegy.jit(lambda: elegy.value_and_grad(lambda: mse(m(x), y), modules=m)(), modules=m)()  # noqa: E731
    with jax.disable_jit():
        result = step(module)
    assert_close(result, step(other), rtol=1e-4)
    assert_close(module, other, rtol=1e-4)


@pytest.mark.parametrize("enabled", [False, True])
def test_x64(enabled):
    with jax.enable_x64(enabled):
        x = jnp.asarray(np.ones([2, 3]), jnp.float64 if enabled else jnp.float32)

        class Wide(elegy.Module):
            def call(self, x):
                w = self.add_parameter("w", [3, 1], x.dtype, jax.nn.initializers.normal())
                n = self.add_parameter("n", [], int, jnp.zeros, trainable=False)
                self.update_parameter("n", n + 1)
                return x @ w

        module = Wide()
        loss, grads = elegy.jit(
            lambda x: elegy.value_and_grad(lambda: jnp.sum(module(x) ** 2), modules=module)(), modules=module
        )(x)
        assert loss.dtype == x.dtype and grads["w"].dtype == x.dtype
        assert module.w.dtype == x.dtype
        assert module.n.dtype == (jnp.int64 if enabled else jnp.int32) and int(module.n) == 1
        assert jax.random.normal(elegy.next_rng_key(), [2]).shape == (2,)


def test_x64_switched_between_calls():
    x = np.ones([2, 3], np.float32)
    module = fresh(Affine)
    step = elegy.jit(lambda x: module(x), modules=module)
    y = step(x)
    with jax.enable_x64(True):
        np.testing.assert_allclose(step(x), y, rtol=1e-6)
    np.testing.assert_allclose(step(x), y, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    class Half(elegy.Module):
        def call(self, x):
            w = self.add_parameter("w", [x.shape[-1], 2], initializer=elegy.initializers.RandomUniform())
            ema = self.add_parameter("ema", [], initializer=jnp.zeros, trainable=False)
            y = x @ w
            self.update_parameter("ema", ema + y.mean())
            return y

    module = Half(dtype=dtype)
    x = jnp.ones([4, 3], dtype)
    step = elegy.jit(lambda x: elegy.value_and_grad(lambda: module(x).sum(), modules=module)(), modules=module)
    loss, grads = step(x)
    step(x)
    assert module.w.dtype == module.ema.dtype == grads["w"].dtype == loss.dtype == dtype
    assert step.traces == 1


# ---------------------------------------------------------------------------------------------------------------------
# elegy.value_and_grad and elegy.grad
# ---------------------------------------------------------------------------------------------------------------------


def test_gradients_match_plain_jax():
    x, y = batch()
    module = fresh(Net)

    def plain(p):
        h = jnp.tanh(x @ p["affine"]["w"] + p["affine"]["b"][None])
        h = jnp.tanh(h @ p["affine_1"]["w"] + p["affine_1"]["b"][None])
        return mse(h @ p["affine_2"]["w"] + p["affine_2"]["b"][None], y)

    expected = jax.value_and_grad(plain)(module.get_parameters())
    assert_close(elegy.value_and_grad(lambda: mse(module(x), y), modules=module)(), expected, rtol=1e-4)
    assert_close(elegy.grad(lambda: mse(module(x), y), modules=module)(), expected[1], rtol=1e-4)
    (loss, _), grads = elegy.value_and_grad(lambda m: mse(m(x), y))(module)
    assert_close((loss, grads.get_parameters()), expected, rtol=1e-4)
    grads, updated = elegy.grad(lambda m: mse(m(x), y))(module)
    assert_close(grads.get_parameters(), expected[1], rtol=1e-4)
    assert isinstance(updated, Net)


def test_outputs_are_whole():
    x, y = batch()
    module = fresh(Net)

    def loss_fn(x):
        prediction = module(x)
        return mse(prediction, y), prediction, {"x": x, "text": "kept"}

    out, _ = elegy.value_and_grad(loss_fn, modules=module)(x)
    assert isinstance(out, tuple) and len(out) == 3 and out[2]["text"] == "kept"
    assert_close(out[1], module(x))
    out, _ = elegy.value_and_grad(lambda x: list(loss_fn(x)[:2]), modules=module)(x)
    assert isinstance(out, list)
    assert concrete(out)


def test_a_tuple_a_list_or_a_dict_of_modules_gives_gradients_in_that_form():
    x, _ = batch()
    a, b = fresh(Affine), fresh(Affine, 1)
    loss_fn = lambda: jnp.sum(a(x) * b(x))  # noqa: E731
    _, (grads_a, grads_b) = elegy.value_and_grad(loss_fn, modules=(a, b))()
    _, as_list = elegy.value_and_grad(loss_fn, modules=[a, b])()
    _, as_dict = elegy.value_and_grad(loss_fn, modules={"a": a, "b": b})()
    assert isinstance(as_list, list)
    assert_same(as_list, [grads_a, grads_b])
    assert_same(as_dict, {"a": grads_a, "b": grads_b})
    assert_same(elegy.grad(loss_fn, modules=a)(), grads_a)
    (_, (_, new_b)), pure = elegy.value_and_grad(lambda ms: jnp.sum(ms[0](x) * ms[1](x)))((a, b))
    assert_close(tuple(module.get_parameters() for module in pure), (grads_a, grads_b))
    assert isinstance(new_b, Affine) and new_b is not b


def test_only_the_listed_modules_are_differentiated():
    x, _ = batch()
    a, b = fresh(Affine), fresh(Affine, 1)
    grads = elegy.grad(lambda: jnp.sum(b(a(x)[:, :1] * jnp.ones([1, 3]))), modules=b)()
    assert set(grads) == {"w", "b"}


def test_state_flows_out_and_is_not_differentiated():
    x, y = batch()
    module = fresh()
    _, grads = elegy.value_and_grad(lambda: mse(module(x), y), modules=module)()
    assert int(module.counter.n) == 1 and concrete(module)
    np.testing.assert_allclose(module.norm.mean != 0, True)
    assert jax.tree.structure(grads) == jax.tree.structure(module.get_parameters(trainable=True))
    assert "mean" not in grads["norm"] and "scale" in grads["norm"]


def test_the_pure_form_leaves_its_module_alone():
    x, y = batch()
    module = fresh()
    before = module.copy()
    (_, updated), _ = elegy.value_and_grad(lambda m, x, y: mse(m(x), y))(module, x, y)
    assert_same(module, before)
    assert int(updated.counter.n) == 1
    (_, updated), _ = elegy.value_and_grad(lambda m, *, x, y: mse(m(x), y))(updated, x=x, y=y)
    assert int(updated.counter.n) == 2


def test_the_pure_form_of_a_fresh_module():
    x, y = batch()
    module = Net()
    (loss, updated), grads = elegy.value_and_grad(lambda m, x: mse(m(x), y))(module, x)
    assert not module.initialized and updated.initialized
    assert jax.tree.structure(grads) == jax.tree.structure(elegy.partition(updated)[0])
    np.testing.assert_allclose(mse(updated(x), y), loss, rtol=1e-6)


def test_frozen_parts_have_no_gradient():
    x, y = batch()
    module = fresh(Net)
    module.affine.trainable = False
    _, grads = elegy.value_and_grad(lambda: mse(module(x), y), modules=module)()
    assert jax.tree.structure(grads) == jax.tree.structure(module.get_parameters(trainable=True))
    assert len(jax.tree.leaves(grads)) == 4
    module.trainable = False
    with pytest.raises(elegy.errors.NothingToDifferentiateError, match="net"):
        elegy.value_and_grad(lambda: mse(module(x), y), modules=module)()
    with pytest.raises(elegy.errors.NothingToDifferentiateError):
        elegy.value_and_grad(lambda: jnp.zeros([]), modules=[])()


def test_parameters_fn_selects():
    x, y = batch()
    module = fresh(Net)
    picked = elegy.value_and_grad(lambda: mse(module(x), y), modules=module, parameters_fn=lambda m: [m.affine_1.w])()
    whole = elegy.value_and_grad(lambda: mse(module(x), y), modules=module)()
    assert_close(picked[1], [whole[1]["affine_1"]["w"]], rtol=1e-5)
    with pytest.raises(ValueError, match="parameters_fn"):
        elegy.value_and_grad(lambda: mse(module(x), y), modules=module, parameters_fn=lambda m: m.affine.w * 2)()


@pytest.mark.parametrize("bad", [lambda y: y, lambda y: (), lambda y: None, lambda y: jnp.asarray(1), lambda y: "loss"])
def test_what_is_not_a_scalar_loss_is_refused(bad):
    x, _ = batch()
    module = fresh(Net)
    before = module.copy()
    with pytest.raises(TypeError, match="scalar loss"):
        elegy.value_and_grad(lambda: bad(module(x)), modules=module)()
    assert_same(module, before)


def test_a_constant_loss_has_zero_gradients():
    module = fresh(Net)
    loss, grads = elegy.value_and_grad(lambda: jnp.asarray(3.0), modules=module)()
    assert loss == 3.0 and not any(leaf.any() for leaf in jax.tree.leaves(grads))


def test_options_of_jax_value_and_grad_that_have_no_meaning_are_refused():
    module = fresh(Net)
    options: tp.Any = {"has_aux": True}
    with pytest.raises(TypeError, match="has_aux"):
        elegy.value_and_grad(lambda: jnp.zeros([]), modules=module, **options)


def test_complex_parameters():
    class Wave(elegy.Module):
        def call(self):
            return self.add_parameter("z", [2], jnp.complex64, jnp.ones)

    module = Wave().init()
    grads = elegy.grad(lambda: jnp.sum(jnp.abs(module()) ** 2), modules=module)()
    expected = jax.grad(lambda z: jnp.sum(jnp.abs(z) ** 2))(module.z)
    assert_close(grads["z"], expected)


def test_gradient_checkpointing_and_second_order():
    x, y = batch()
    module = fresh(Affine)

    def penalty():
        _, grads = elegy.value_and_grad(lambda: jnp.mean(module(x) ** 2), modules=module)()
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads))

    value, grads = elegy.value_and_grad(penalty, modules=module)()

    def plain(p):
        inner = jax.grad(lambda p: jnp.mean((x @ p["w"] + p["b"][None]) ** 2))(p)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(inner))

    expected, expected_grads = jax.value_and_grad(plain)(module.get_parameters())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close(grads, expected_grads, rtol=1e-4)
    del y


def test_gradients_of_pytree_valued_parameters():
    class Tree(elegy.Module):
        def call(self, x):
            p = self.add_parameter("p", initializer={"w": jnp.ones(2), "b": (jnp.zeros(1), jnp.ones(1))})
            return x * p["w"].sum() + p["b"][0] + p["b"][1]

    module = Tree()
    step = elegy.jit(lambda x: elegy.value_and_grad(lambda: jnp.sum(module(x)), modules=module)(), modules=module)
    loss, grads = step(jnp.ones(1))
    assert loss == 3
    assert_close(grads, {"p": {"w": jnp.ones(2), "b": (jnp.ones(1), jnp.ones(1))}})
    module.set_parameters(jax.tree.map(lambda p, g: p - g, module.get_parameters(), grads))
    assert step(jnp.ones(1))[0] == -1 and step.traces == 1


# ---------------------------------------------------------------------------------------------------------------------
# Modules among the outputs
# ---------------------------------------------------------------------------------------------------------------------


def test_a_module_that_a_pure_function_returns_has_the_updates():
    """As `has_aux` is used with Equinox."""
    x, y = batch()
    ((loss, inner), outer), _ = elegy.value_and_grad(lambda m: (mse(m(x), y), m))(fresh())
    assert int(inner.counter.n) == int(outer.counter.n) == 1
    assert inner is outer


@pytest.mark.parametrize("transform", [elegy.jit, elegy.vmap, elegy.remat, elegy.value_and_grad])
def test_a_threaded_module_comes_out_as_itself(transform):
    class Holder(elegy.Module):
        def __init__(self, inner):
            self.inner = inner

    x, _ = batch()
    x = x[None] if transform is elegy.vmap else x
    module = fresh(Counter) if transform is elegy.vmap else fresh()
    options = {"reduce_state": lambda n: n.max(0)} if transform is elegy.vmap else {}

    def function(x):
        loss = jnp.mean(module(x))
        counter = module if transform is elegy.vmap else module.counter
        return loss, {"module": module, "part": [counter]}, Holder(counter)

    for count in (1, 2):
        out = transform(function, modules=module, **options)(x)
        _, found, holder = out[0] if transform is elegy.value_and_grad else out
        assert found["module"] is module
        assert int(found["part"][0].n) == count
        # A module that the function made holds a copy, of the same moment.
        assert int(np.max(holder.inner.n)) == count
    assert concrete(module)


def test_modules_of_two_roots_that_share_are_one_in_the_pure_form_too():
    x, _ = batch()
    shared = fresh(Affine)

    class Around(elegy.Module):
        def __init__(self):
            self.inner = shared

        def call(self, x):
            return self.inner(x)

    modules = (Around().init(x), Around().init(x))
    function = lambda modules, x: sum(jnp.sum(module(x)) for module in modules)  # noqa: E731
    (_, new), pure = elegy.value_and_grad(function)(modules, x)
    _, shim = elegy.value_and_grad(lambda x: function(modules, x), modules=modules)(x)
    assert_same(pure[0].get_parameters(), shim[0])
    assert_same(pure[1].inner, pure[0].inner)
    assert new[0].inner is new[1].inner is not shared


def test_an_update_of_a_module_that_is_not_returned_is_refused():
    x, _ = batch()
    module, other = fresh(Affine), fresh(Counter)
    with pytest.raises(elegy.errors.StructureError, match="counter: n was updated.*first argument only"):
        elegy.value_and_grad(lambda m, c, x: jnp.sum(m(c(x))))(module, other, x)
    assert int(other.n) == 0
    (_, (_, counted)), _ = elegy.value_and_grad(lambda m, x: jnp.sum(m[0](m[1](x))))((module, other), x)
    assert int(counted.n) == 1
    loss, _ = elegy.value_and_grad(lambda m, x: jnp.sum(m[0](m[1](x))), modules=[module, other])((module, other), x)


def test_the_list_given_as_modules_may_change_afterwards():
    x, _ = batch()
    modules = [fresh(Affine)]
    function = elegy.value_and_grad(lambda x: jnp.sum(modules[0](x)), modules=modules)
    modules.append(fresh(Affine))
    _, grads = function(x)
    assert len(grads) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Gradients with respect to arguments
# ---------------------------------------------------------------------------------------------------------------------


def test_gradients_with_respect_to_arguments():
    x, y = batch()
    module, plain = fresh(), fresh()
    loss = lambda module, x, y: jnp.mean((module(x) - y) ** 2)  # noqa: E731
    expected = jax.grad(lambda x, y: loss(plain.copy(), x, y), argnums=(0, 1))(x, y)
    value, slope = elegy.value_and_grad(lambda x, y: loss(module, x, y), modules=module, argnums=0)(x, y)
    assert_close(slope, expected[0])
    assert int(module.counter.n) == 1  # state is carried as ever
    assert_close(elegy.grad(lambda x, y: loss(module, x, y), modules=module, argnums=(0, 1))(x, y), expected)
    (value, new), slope = elegy.value_and_grad(loss, argnums=2)(fresh(), x, y)
    assert_close(slope, expected[1])
    assert int(new.counter.n) == 1
    both, slope = elegy.grad(lambda x: loss(module, x, y), modules=module, where="affine", argnums=0)(x)
    assert len(jax.tree.leaves(both)) == 2 and slope.shape == x.shape
    assert_close(elegy.grad(jnp.sum, argnums=0)(x), jnp.ones_like(x))


def test_a_gradient_with_respect_to_the_input_inside_call():
    """As for a score, a force or the residual of a differential equation, also in the first call and under vmap."""

    class Force(elegy.Module):
        def __init__(self):
            self.energy = Net()

        def call(self, x):
            return elegy.vmap(elegy.grad(lambda x: self.energy(x[None])[0, 0], modules=self.energy, argnums=0))(x)

    x, y = batch()
    module = Force()
    step = elegy.jit(elegy.value_and_grad(lambda x: jnp.mean(module(x) ** 2), modules=module), modules=module)
    loss, grads = step(x)
    energy = module.energy
    force = jax.vmap(jax.grad(lambda x: energy(x[None])[0, 0]))(x)
    assert_close(loss, jnp.mean(force**2))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads["energy"]["affine"]))


@pytest.mark.parametrize(
    ("argnums", "error", "message"),
    [
        (3, ValueError, "argnums=3, but there are 1 positional arguments"),
        ((0, -2), ValueError, "there are 1 positional"),
    ],
)
def test_argument_numbers_that_are_not_there(argnums, error, message):
    x, _ = batch()
    module = fresh()
    with pytest.raises(error, match=message):
        elegy.grad(lambda x: jnp.sum(module(x)), modules=module, argnums=argnums)(x)
    with pytest.raises(ValueError, match="argument 0 is the modules"):
        elegy.grad(lambda module, x: jnp.sum(module(x)), argnums=0)(module, x)
    with pytest.raises(TypeError, match="argument 0 is a module"):
        elegy.grad(lambda other, x: jnp.sum(module(x)), modules=module, argnums=0)(module, x)


# ---------------------------------------------------------------------------------------------------------------------
# In the body of a class
# ---------------------------------------------------------------------------------------------------------------------


def test_a_transform_decorates_a_method():
    """The module of the method is threaded: it is initialised, updated, and compiled once."""
    traces = []

    class Decorated(elegy.Module):
        def __init__(self):
            self.layers = Regular()

        @elegy.remat
        def features(self, x):
            return self.layers(x)

        @functools.partial(elegy.vmap, in_axes=(None, 0, None), reduce_state=lambda value: value[0])
        def rows(self, x, shift):
            return self.layers(x[None])[0] + shift

        @functools.partial(elegy.jit, static_argnums=2)
        def compiled(self, x, power):
            traces.append(power)
            return self.layers(x) ** power

        @functools.partial(elegy.grad, argnums=1)
        def slope(self, x):
            return jnp.sum(self.layers(x))

        def call(self, x):
            return self.features(x) + self.rows(x, 1.0) + self.compiled(x, 2) + self.slope(x).sum()

    x, _ = batch()
    module = Decorated().init(x)
    assert set(module.get_parameters()) == {"layers"}
    traces.clear()
    module(x)
    module.compiled(x, 2)
    assert int(module.layers.counter.n) == 5 and traces == [2]
    assert_close(module.copy().compiled(x, 2), module.copy().layers(x) ** 2)
    assert Decorated.features is not module.features


def test_numbers_of_arguments_of_a_method_count_its_module():
    """And negative ones count from the right, as everywhere."""
    array = jax.sharding.SingleDeviceSharding(jax.devices()[1])

    class Net(elegy.Module):
        @functools.partial(elegy.grad, argnums=-1)
        def last(self, x, y):
            return 3.0 * x + 5.0 * y

        @functools.partial(elegy.grad, argnums=(1, -1))
        def both(self, x, y):
            return 3.0 * x + 5.0 * y

        @functools.partial(elegy.grad, argnums=0)
        def own(self, x, y):
            return 3.0 * x + 5.0 * y

        @functools.partial(elegy.jit, static_argnums=-1, in_shardings=(None, array))
        def power(self, x, exponent):
            return x**exponent

    net, x = Net(), jnp.float32(2.0)
    assert net.last(x, x) == 5.0
    assert net.both(x, x) == (3.0, 5.0)
    with pytest.raises(TypeError, match="argnums=0: argument 0 of a method is its module"):
        net.own(x, x)
    assert net.power(x, 3) == 8.0 and net.power(x, 3).devices() == {jax.devices()[1]}


def test_a_transform_decorates_a_method_of_a_class_that_is_no_module():
    class Trainer:
        factor = 3.0

        @elegy.jit
        def scaled(self, x):
            return self.factor * x

    trainer = Trainer()
    jax.tree_util.register_static(Trainer)
    assert trainer.scaled(jnp.float32(2.0)) == 6.0


@pytest.mark.parametrize("transform", [elegy.jit, elegy.vmap, elegy.remat, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("where", ["attribute", "list", "method"])
def test_a_transformed_module_cannot_be_an_attribute(transform, where):
    class Net(elegy.Module):
        def __init__(self):
            inner = Affine(2)
            block = transform(inner.call if where == "method" else inner)
            self.block = [block] if where == "list" else block

    if where == "method" and transform in (jax.jit, jax.checkpoint):
        return  # what they wrap is a function that does not tell to whom it belongs
    with pytest.raises(elegy.errors.StaticValueError, match="Net.block.* made of a module, Affine"):
        Net()


# ---------------------------------------------------------------------------------------------------------------------
# Modules that a compiled function creates inside call
# ---------------------------------------------------------------------------------------------------------------------


def test_each_call_of_a_compiled_function_creates_modules_of_its_own():
    class Twice(elegy.Module):
        def call(self, x):
            f = elegy.jit(lambda x: Affine(3)(x), modules=self)
            return f(f(x))

    x, _ = batch()
    module = Twice()
    for _ in range(2):
        y = module(x)
    assert list(module.submodules) == ["affine", "affine_1"]
    assert_close(y, module.affine_1(module.affine(x)))
    assert_close(elegy.jit(module)(x), y)


def test_one_compiled_function_runs_in_call_again_and_again():
    inner = elegy.jit(lambda module, x: module.make()(x))

    class Net(elegy.Module):
        @elegy.compact
        def make(self):
            return Affine(3)

        def call(self, x):
            return elegy.jit(self.inner, modules=self)(x) + compiled(x)

        def inner(self, x):
            return Affine(3)(x)

    x, _ = batch()
    net = Net()
    compiled = elegy.jit(lambda x: Affine(3)(x), modules=net)
    y = net(x)
    for _ in range(3):
        assert_close(net(x), y)
    assert list(net.submodules) == ["affine", "affine_1"] and compiled.traces <= 2
    assert inner is not None


def test_nothing_is_kept_alive_by_a_transform():
    """No circle of references: what a transform threads is freed when it is dropped, not when the collector comes."""
    x, _ = batch()
    gc.collect()
    gc.disable()
    try:
        for transform in (elegy.jit, elegy.vmap, elegy.remat, elegy.value_and_grad, elegy.grad):
            module = fresh(Affine)
            alive = weakref.ref(module)
            function = transform(lambda x, module=module: jnp.sum(module(x)), modules=module)
            function(x)
            del module, function
            assert alive() is None, transform
    finally:
        gc.enable()


def test_a_compiled_function_with_summaries_keeps_no_module_alive():
    x, _ = batch()
    module = fresh(Net)
    alive = weakref.ref(module)
    with elegy.hooks_context(summaries=True):
        elegy.jit(module)(x)
        summaries = helpers.summaries()
        assert {name for _, name, _ in summaries} >= {"net", "net/affine"}
        assert all(node is None or concrete(node) for node, _, _ in summaries)
        del summaries
    del module
    gc.collect()
    assert alive() is None


# ---------------------------------------------------------------------------------------------------------------------
# Modules that are first used later, inside transforms in each other
# ---------------------------------------------------------------------------------------------------------------------

INNER: dict[str, tp.Callable[..., tp.Any]] = {
    "value_and_grad": lambda f, modules, x: elegy.value_and_grad(f, modules=modules)(x)[0],
    "jit": lambda f, modules, x: elegy.jit(f, modules=modules)(x),
    "remat": lambda f, modules, x: elegy.remat(f, modules=modules)(x),
    "scan": lambda f, modules, x: elegy.scan(lambda c, x: (c, f(x)), None, x[None], modules=modules)[1][0],
    "vmap": lambda f, modules, x: elegy.vmap(f, modules=modules)(x[None])[0],
    "cond": lambda f, modules, x: elegy.cond(True, f, lambda x: 0.0 * f(x), x, modules=modules),
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("jitted", [True, False])
def test_a_listed_module_that_is_first_used_later(name, jitted):
    x, _ = batch()
    a, b = Affine(3), Affine(2)

    def step(x, first):
        return INNER[name](lambda x: (a(x) if first else b(x)).sum(), [a, b], x)

    if jitted:
        step = elegy.jit(step, modules=[a, b], static_argnums=1)
    np.testing.assert_allclose(step(x, True), a(x).sum(), rtol=1e-5)
    assert a.initialized and not b.initialized
    np.testing.assert_allclose(step(x, False), b(x).sum(), rtol=1e-5)
    np.testing.assert_allclose(step(x, True), a(x).sum(), rtol=1e-5)
    assert b.initialized


# ---------------------------------------------------------------------------------------------------------------------
# Transforms that decorate methods
# ---------------------------------------------------------------------------------------------------------------------

DECORATED = {
    "elegy.jit": elegy.jit,
    "elegy.remat": elegy.remat,
    "elegy.remat with options": functools.partial(elegy.remat, prevent_cse=False),
    "both": lambda f: elegy.jit(elegy.remat(f)),
}


def regular(decorate):
    class Decorated(elegy.Module):
        @decorate
        def call(self, x):
            x = jnp.tanh(Affine(4)(x))
            x = Norm()(x)
            Counter()()
            return Affine(1)(x)

    return Decorated


@pytest.mark.parametrize("name", DECORATED)
def test_a_transform_that_decorates_call_threads_the_module(name):
    """Lazy creation, outputs, state and gradients are those of the plain method."""
    x, y = batch()
    modules = []
    for decorate in (DECORATED[name], lambda f: f):
        elegy.set_rng(0)
        module = regular(decorate)()
        module(x)
        modules.append(module)
    module, plain = modules
    close = functools.partial(assert_close, atol=1e-5)  # fused or not, sums are rounded otherwise
    for _ in range(2):
        close(module(x), plain(x))
        close(module.get_parameters(), plain.get_parameters())
    assert int(module.counter.n) == 3
    losses = [elegy.value_and_grad(lambda m=m: mse(m(x), y), modules=m)() for m in (module, plain)]
    close(*losses)
    close(*[elegy.jit(m)(x) for m in (module, plain)])
    close(module.get_parameters(), plain.get_parameters())
    assert int(module.counter.n) == 5
    close(*[m.apply(x)[0] for m in (module, plain)])
    assert concrete(module)


@pytest.mark.parametrize("name", DECORATED)
def test_a_transform_of_a_compact_method_threads_the_module(name):
    class Coder(elegy.Module):
        @elegy.compact
        @DECORATED[name]
        def encode(self, x):
            Counter()()
            return Affine(2)(x)

        def call(self, x):
            return self.encode(x)

    x, _ = batch()
    module = Coder()
    y = module.encode(x)
    assert_close(module(x), y)
    assert_close(module.encode(x), y)
    assert_close(y, x @ module.affine.w + jnp.broadcast_to(module.affine.b, y.shape))
    assert int(module.counter.n) == 3
    grads = elegy.grad(lambda: module.encode(x).sum(), modules=module)()
    np.testing.assert_allclose(grads["affine"]["b"], [6.0, 6.0])
    assert list(module.submodules) == ["counter", "affine"] and concrete(module)


def test_state_of_a_decorated_call_by_whatever_way_it_is_called():
    class Counts(elegy.Module):
        def __init__(self):
            self.n = self.add_parameter("n", [], trainable=False)

        @elegy.jit
        def call(self, x):
            self.update_parameter("n", self.n + 1)
            return x

    module = Counts()
    module(1.0), module.call(1.0), elegy.jit(module)(1.0)
    assert float(module.n) == 3


def test_a_compiled_compact_method_that_never_ran_is_lowered():
    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return Affine(2)(x)

        def call(self, x):
            return Affine(3)(x)

    x, _ = batch()
    module = Coder().init(x)
    lowered = elegy.jit(module.encode).lower(x)
    assert "tensor<6x2xf32>" in lowered.as_text()
    assert module.affine_1.w.shape == (3, 2) and concrete(module)
    assert elegy.jit(module.encode)(x).shape == (6, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The options of elegy.remat
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["n", ["n"], ("n", "unused")])
def test_remat_takes_static_argnames(names):
    layer = Affine(3).init(batch()[0])

    def f(x, *, n, unused=None):
        assert isinstance(n, int)
        return layer(x) * n

    x, _ = batch()
    assert_close(elegy.remat(f, static_argnames=names, modules=layer)(x, n=2), 2 * layer(x))
    grads = elegy.grad(lambda: elegy.remat(f, static_argnames=names, modules=layer)(x, n=3).sum(), modules=layer)()
    np.testing.assert_allclose(grads["b"], [18.0, 18.0, 18.0])


@pytest.mark.parametrize("value", [(True, False), 1, None])
def test_prevent_cse_is_a_bool(value):
    with pytest.raises((TypeError, helpers.TypeCheckError), match="prevent_cse"):
        elegy.remat(lambda x: x, prevent_cse=value)


def test_transforms_that_come_and_go_in_a_first_call_know_their_own_modules():
    """Python gives the address of one that is gone to the next."""

    class Many(elegy.Module):
        def __init__(self):
            self.parts = [Affine(size).init(jnp.ones([1, 2])) for size in (1, 2, 3)]

        def call(self, x):
            shapes = []
            for part in self.parts * 3:
                elegy.nn.Linear(1)(x)  # so that the structure differs from that outside
                grads = elegy.grad(lambda x, part=part: part(x).sum(), modules=part)(x)
                shapes.append(grads["w"].shape)
            return shapes

    assert Many()(jnp.ones([1, 2])) == [(2, 1), (2, 2), (2, 3)] * 3
