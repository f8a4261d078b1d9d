"""Random streams: what is accepted, what repeats, and that no key is ever used twice."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


class Linear(elegy.Module):
    def __init__(self, size):
        self.size = size

    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.size], initializer=jax.nn.initializers.normal())
        b = self.add_parameter("b", [self.size], initializer=elegy.initializers.RandomUniform())
        return x @ w + b[None]


class Dropout(elegy.Module):
    def call(self, x):
        if not elegy.training():
            return x
        keep = jax.random.bernoulli(elegy.next_rng_key(), 0.5, x.shape)
        return jnp.where(keep, x, 0.0)


class Net(elegy.Module):
    def __init__(self):
        self.scale = self.add_parameter("scale", [], initializer=jax.nn.initializers.normal())

    def call(self, x):
        x = Dropout()(Linear(16)(x))
        return self.scale * Dropout()(Linear(16)(x))


def leaves(tree):
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(tree)]


# ---------------------------------------------------------------------------------------------------------------------
# What is accepted
# ---------------------------------------------------------------------------------------------------------------------

SAME = {
    "int": 7,
    "numpy int": np.int64(7),
    "numpy array": np.asarray(7, np.int32),
    "typed key": jax.random.key(7),
    "legacy key": jax.random.PRNGKey(7),
    "legacy key in numpy": np.asarray(jax.random.PRNGKey(7)),
    "RNG": elegy.RNG(7),
}


@pytest.mark.parametrize("kind", SAME)
def test_seeds_and_keys_of_every_kind_are_accepted_everywhere(kind):
    def given():
        return elegy.RNG(7) if kind == "RNG" else SAME[kind]

    if kind != "RNG":
        assert data(elegy.RNG(given())()) == data(elegy.RNG(7)())
    net = Net()
    expected = leaves(net.copy().init(X, rng=jax.random.key(7)))
    assert leaves(net.copy().init(X, rng=given())) == expected
    net.init(X, rng=0)
    y, _ = net.apply(X, rng=given())
    np.testing.assert_array_equal(y, net.apply(X, rng=jax.random.key(7))[0])
    with elegy.rng_context(given()):
        inside = data(elegy.next_rng_key())
    elegy.set_rng(given())
    assert inside == data(elegy.next_rng_key()) == data(elegy.RNG(7)())


def test_the_keys_that_are_handed_out_are_typed():
    for key in (elegy.next_rng_key(), elegy.RNG(0)(), elegy.RNG(jax.random.PRNGKey(0))()):
        assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_other_implementations_of_keys(impl):
    key = jax.random.key(3, impl=impl)
    net = Net().init(X, rng=key)
    assert leaves(net) == leaves(net.copy()) and not np.isnan(np.asarray(net.linear.w)).any()
    y, _ = net.apply(X, rng=key)
    with elegy.rng_context(key):
        assert str(jax.random.key_impl(elegy.next_rng_key())) == str(jax.random.key_impl(key))
        compiled = elegy.jit(net)
        np.testing.assert_allclose(compiled(X).shape, y.shape)
    jax.jit(lambda m, x: (m(x), m))(net, X)


@pytest.mark.parametrize("wrong", ["seed", 1.5, None, np.zeros(2, np.float32), jax.random.split(jax.random.key(0), 3)])
def test_what_is_no_key_is_refused(wrong):
    with pytest.raises((TypeError, ValueError)) as caught:
        elegy.RNG(wrong)
    # Under the checker of the tests it may be the annotation that refuses.
    assert "key" in str(caught.value).lower()


def test_a_stream_can_be_pickled_copied_and_flattened():
    rng = elegy.RNG(3)
    rng()
    again = pickle.loads(pickle.dumps(rng))
    mapped = jax.tree.map(lambda leaf: leaf, rng)
    expected = [data(rng()), data(rng())]
    assert [data(again()), data(again())] == expected
    assert [data(mapped()), data(mapped())] == expected
    assert "RNG" in repr(rng)


def test_contexts_nest_and_restore():
    elegy.set_rng(1)
    outer = elegy.get_rng()
    with elegy.rng_context(2) as inner:
        assert elegy.get_rng() is inner
        a = data(elegy.next_rng_key())
        with elegy.rng_context(3):
            elegy.next_rng_key()
        b = data(elegy.next_rng_key())
    assert elegy.get_rng() is outer
    rng = elegy.RNG(2)
    assert (a, b) == (data(rng()), data(rng()))
    assert data(elegy.next_rng_key()) == data(elegy.RNG(1)())


# ---------------------------------------------------------------------------------------------------------------------
# Seeded runs repeat
# ---------------------------------------------------------------------------------------------------------------------


def loss_of(net):
    return lambda x: jnp.mean(net(x) ** 2)


def train(net, steps, transform):
    def update(x):
        loss, grads = elegy.value_and_grad(loss_of(net), modules=net)(x)
        parameters = net.get_parameters(trainable=True)
        net.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, parameters, grads))
        return loss

    update = transform(update, net)
    return [np.asarray(update(X)).tolist() for _ in range(steps)]


def eagerly(function, net):
    return function


def compiled(function, net):
    return elegy.jit(function, modules=net)


@pytest.mark.parametrize("transform", [eagerly, compiled])
def test_a_seeded_training_repeats_bit_for_bit(transform):
    def run():
        elegy.set_rng(5)
        net = Net()
        return train(net, 3, transform), leaves(net), data(elegy.next_rng_key())

    assert run() == run()


def test_initial_parameters_masks_and_stream_do_not_depend_on_the_transform():
    """The masks are compared by which elements are zero, since rounding may differ between eager and compiled code."""

    def zeros(y):
        return (np.asarray(y) == 0).tolist()

    cases = {
        "eager": lambda: lambda net: zeros(net(X)),
        "elegy.jit": lambda: lambda net: zeros(net.jit(X)),
        "elegy.jit of a function": lambda: lambda net: zeros(elegy.jit(lambda x: net(x), modules=net)(X)),
        "init, then eager": lambda: lambda net: zeros(net.init(X)(X)),
        "elegy.value_and_grad": lambda: lambda net: zeros(grad_outputs(net)),
        "in elegy.jit": lambda: lambda net: zeros(elegy.jit(lambda x: grad_outputs(net), modules=net)(X)),
    }
    results = {}
    for name, make in cases.items():
        elegy.set_rng(5)
        net = Net()
        function = make()
        outputs = [function(net), function(net)]
        results[name] = (outputs, leaves(net.get_parameters(trainable=True)), data(elegy.next_rng_key()))
    assert results["eager"][0][0] != results["eager"][0][1]
    for name, result in results.items():
        assert result[1] == results["eager"][1], f"initial parameters: {name}"
        assert result[0] == results["eager"][0], f"masks: {name}"
        assert result[2] == results["eager"][2], f"stream: {name}"


def grad_outputs(net):
    """The outputs of `net` as a function that is differentiated sees them."""

    def loss(x):
        y = net(x)
        return jnp.sum(y), y

    (_, y), _ = elegy.value_and_grad(loss, modules=net)(X)
    return y


def test_the_initial_parameters_of_a_seed_are_the_same_under_vmap():
    keys = jax.random.split(jax.random.key(0), 3)

    def make(key):
        with elegy.rng_context(key):  # for the parameter of the constructor
            return Net().init(X, rng=key)

    ensemble = jax.vmap(make)(keys)
    compiled = jax.jit(make)(keys[1])
    for index in range(3):
        alone = make(keys[index])
        assert leaves(jax.tree.map(lambda leaf, index=index: leaf[index], ensemble)) == leaves(alone)
    # Compiled as a whole the numbers are rounded elsewhere, and they are the same random numbers.
    for one, other in zip(leaves(compiled), leaves(make(keys[1])), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert not np.array_equal(ensemble.linear.w[0], ensemble.linear.w[1])


def test_init_with_a_key_does_not_depend_on_the_stream_nor_move_it():
    elegy.set_rng(1)
    linear = Linear(3)
    before = data(elegy.get_rng().key)
    first = leaves(linear.copy().init(X, rng=4))
    elegy.next_rng_key()
    assert leaves(linear.copy().init(X, rng=4)) == first
    elegy.set_rng(1)
    assert data(elegy.get_rng().key) == before
    net = Linear(3)
    other = net.copy().init(X)
    assert leaves(other) != first


def test_a_neighbour_does_not_change_the_initial_parameters():
    class One(elegy.Module):
        def call(self, x):
            return Linear(3)(x)

    class Two(elegy.Module):
        def call(self, x):
            Linear(3)(x)
            return Dropout()(Linear(4)(x))

    one, two = One().init(X, rng=3), Two().init(X, rng=3)
    assert leaves(one.linear) == leaves(two.linear)
    assert not np.array_equal(two.linear.w, two.linear_1.w[:, :3])


def test_two_inits_of_one_stream_differ_and_do_not_depend_on_draws():
    elegy.set_rng(1)
    first, second = Linear(3).init(X), Linear(3).init(X)
    assert leaves(first) != leaves(second)
    elegy.set_rng(1)
    elegy.next_rng_key()
    third = Linear(3).init(X)
    elegy.next_rng_key()
    fourth = Linear(3).init(X)
    assert leaves(third) == leaves(first) and leaves(fourth) == leaves(second)


def test_modules_initialised_inside_one_function_differ():
    a, b = Linear(3), Linear(3)
    elegy.jit(lambda x: a(x) + b(x), modules=[a, b])(X)
    assert leaves(a) != leaves(b)
    c, d = Linear(3), Linear(3)
    elegy.value_and_grad(lambda x: jnp.sum(c(x) + d(x)), modules=[c, d])(X)
    assert leaves(c) != leaves(d)


def test_a_module_made_and_run_inside_elegy_jit_is_new_on_each_call():
    fresh = elegy.jit(lambda x: Linear(3)(x))
    first, second = fresh(X), fresh(X)
    assert not np.array_equal(first, second)


def test_a_compiled_function_draws_what_the_eager_one_draws():
    def draw():
        return [jax.random.key_data(elegy.next_rng_key()) for _ in range(3)]

    def run(function):
        elegy.set_rng(11)
        return [np.asarray(key).tolist() for _ in range(3) for key in function()]

    keys = run(draw)
    assert run(elegy.jit(draw)) == keys
    assert run(elegy.jit(elegy.jit(draw))) == keys
    assert len({tuple(key) for key in keys}) == 9


def test_the_own_key_of_a_module_advances_under_stock_transforms():
    net = Dropout().init(X)
    x = jnp.ones([20, 20])
    step = jax.jit(lambda m, x: (m(x), m))
    first, net_1 = step(net, x)
    second, net_2 = step(net_1, x)
    again, _ = step(net, x)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)
    _, drawn = jax.lax.scan(lambda m, x: ((y := m(x)), (m, y))[1], net, jnp.stack([x, x]))
    np.testing.assert_array_equal(drawn[0], first)
    np.testing.assert_array_equal(drawn[1], second)


# ---------------------------------------------------------------------------------------------------------------------
# No key is used twice
# ---------------------------------------------------------------------------------------------------------------------


def test_the_keys_of_initialisation_are_none_of_the_stream(monkeypatch):
    """Nor those that the user makes of the seed's key by `split` or by `fold_in` of small numbers."""
    seen = []

    def initializer(key, shape, dtype):
        seen.append(data(key))
        return jnp.zeros(shape, dtype)

    class Many(elegy.Module):
        def call(self, x):
            for index in range(20):
                self.add_parameter(f"w{index}", [], initializer=initializer)
            return x

    seed = jax.random.key(0)
    elegy.set_rng(seed)
    for _ in range(3):
        Many().init(X)
    stream = [data(elegy.next_rng_key()) for _ in range(100)]
    own = [data(key) for count in (2, 3, 100) for key in jax.random.split(seed, count)]
    own += [data(jax.random.fold_in(seed, number)) for number in range(100)]
    assert len(set(seen)) == len(seen) == 60
    assert len(set(stream)) == 100
    assert not set(seen) & (set(stream) | set(own) | {data(seed)})


def test_initial_keys_inside_elegy_jit_are_distinct_from_each_other_and_from_draws():
    seen = []

    def initializer(key, shape, dtype):
        return jax.random.key_data(key)

    class Keeps(elegy.Module):
        def call(self, x):
            return self.add_parameter("k", [2], jnp.uint32, initializer=initializer, trainable=False)

    def function():
        drawn = [jax.random.key_data(elegy.next_rng_key()) for _ in range(2)]
        return [*drawn, Keeps()(X), Keeps()(X), jax.random.key_data(elegy.next_rng_key())]

    function = elegy.jit(function)
    for _ in range(3):
        seen.extend(tuple(np.asarray(key).tolist()) for key in function())
    assert len(set(seen)) == len(seen) == 15


def test_the_module_s_own_keys_are_distinct_from_those_of_the_thread():
    class Draws(elegy.Module):
        def call(self, x):
            return jax.random.key_data(elegy.next_rng_key())

    elegy.set_rng(0)
    modules = [Draws().init(X) for _ in range(3)]
    keys = [tuple(np.asarray(module(X)).tolist()) for module in modules for _ in range(3)]
    step = jax.jit(lambda m, x: (m(x), m))
    for module in modules:
        for _ in range(3):
            key, module = step(module, X)
            keys.append(tuple(np.asarray(key).tolist()))
    keys += [tuple(np.asarray(module.rng_key).tolist()) for module in modules]
    assert len(set(keys)) == len(keys) == 21


def test_a_raw_transform_of_a_module_without_a_key_of_its_own_says_what_to_do():
    class Sometimes(elegy.Module):
        def call(self, x, draw=False):
            return jax.random.normal(elegy.next_rng_key(), x.shape) if draw else x

    module = Sometimes().init(X)
    with pytest.raises(elegy.errors.TraceError, match="(?s)sometimes.*rng="):
        jax.jit(lambda m, x: (m(x, draw=True), m))(module, X)
    y, _ = jax.jit(lambda m, x, key: m.apply(x, draw=True, rng=key))(module, X, jax.random.key(0))
    assert y.shape == X.shape
