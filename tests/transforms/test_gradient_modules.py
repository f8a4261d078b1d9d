"""Gradients of the pure form of `elegy.value_and_grad` and `elegy.grad`: modules like `elegy.partition(m)[0]`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings, strategies as st

import elegy
from tests.helpers import assert_close, assert_same

X = jax.random.normal(jax.random.key(0), [8, 3])


class Net(elegy.Module):
    """Has state, a container, a foreign layer, and a module on two paths."""

    def __init__(self, width=4):
        super().__init__()
        self.layers = [elegy.nn.Linear(width), jnp.tanh, elegy.nn.Linear(width)]
        self.again = self.layers[2]
        self.foreign = eqx.nn.Linear(width, 2, key=jax.random.key(1))
        self.empty = None

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        x = elegy.nn.BatchNormalization()(self.again(x))
        return jax.vmap(self.foreign)(x)


def loss_fn(tree, x=X):
    return sum((jnp.mean(part(x) ** 2) for part in jax.tree.leaves(tree, is_leaf=callable)), jnp.zeros([]))


def net(seed=0):
    return Net().init(X, rng=seed)


def reference(tree, loss=loss_fn):
    """What `jax.grad` gives for the partitioned function."""
    parameters, rest = elegy.partition(tree)

    def pure(parameters):
        whole = elegy.combine(parameters, rest)
        return loss(whole), whole

    return jax.grad(pure, has_aux=True)(parameters)[0]


def assert_gradients(grads, tree, expected=None):
    assert jax.tree.structure(grads) == jax.tree.structure(elegy.partition(tree)[0])
    expected = reference(tree) if expected is None else expected
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    assert_close(grads, expected, rtol=1e-5)


FIRST = {
    "a module": net,
    "a tuple": lambda: (net(), net(1)),
    "a dict": lambda: {"b": net(), "a": elegy.nn.Linear(2).init(X)},
    "frozen as a whole, below": lambda: elegy.select(net(), "layers/0").freeze(),
    "frozen one by one": lambda: elegy.select(net(), "**/b", "foreign/weight").freeze(),
}


def a_part_frozen():
    module = net()
    module.layers[0].trainable = False
    return module


FIRST["module.trainable"] = a_part_frozen


@pytest.mark.parametrize("first", FIRST)
def test_gradients_are_those_of_jax_of_the_partitioned_function(first):
    tree = FIRST[first]()
    (loss, updated), grads = elegy.value_and_grad(loss_fn)(tree)
    assert_close(loss, loss_fn(jax.tree.map(lambda leaf: leaf, tree)))
    assert_gradients(grads, tree)
    assert jax.tree.structure(grads) == jax.tree.structure(elegy.partition(updated)[0])
    again, _ = elegy.grad(loss_fn)(tree)
    assert jax.tree.structure(again) == jax.tree.structure(grads)
    assert_same(again, grads)


def test_classes_kinds_and_static_attributes_are_those_of_the_module():
    module = a_part_frozen()
    grads, updated = elegy.grad(loss_fn)(module)
    assert type(grads) is Net and isinstance(grads.foreign, eqx.nn.Linear) and grads.layers[1] is jnp.tanh
    assert grads.layers[0].w is None and grads.batch_normalization.mean is None and grads.empty is None
    assert grads.again is grads.layers[2] and not grads.layers[0].trainable and grads.initialized
    stepped = jax.tree.map(lambda p, g: p - g, elegy.partition(updated)[0], grads)
    assert_close(stepped.layers[2].w, module.layers[2].w - grads.layers[2].w)
    # As those of partition, they read and write by name.
    assert_same(grads.get_parameters(), elegy.grad(lambda: loss_fn(module), modules=module)())
    copy = module.copy()
    copy.set_parameters(grads)
    assert_same(copy.again.w, grads.again.w)


@pytest.mark.parametrize(
    "within",
    ["jax.jit", "elegy.jit", "jax.vmap", "elegy.vmap", "elegy.scan"],
)
def test_within(within):
    module = net()
    expected = reference(module)
    function = elegy.value_and_grad(loss_fn)
    one = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)  # noqa: E731
    if within.endswith("jit"):
        (_, updated), grads = (jax if within == "jax.jit" else elegy).jit(function)(module)
    elif within.endswith("vmap"):
        vmap = jax.vmap if within == "jax.vmap" else elegy.vmap
        (_, updated), grads = one(vmap(function, in_axes=(None, 0))(module, jnp.stack([X, X])))
    else:

        def step(module, x):
            (loss, module), grads = function(module, x)
            return module, grads

        updated, grads = elegy.scan(step, module, X[None])
        grads = one(grads)
    assert_gradients(grads, module, expected)
    assert jax.tree.structure(elegy.partition(updated)[0]) == jax.tree.structure(grads)
    assert_close(updated.batch_normalization.mean, elegy.grad(loss_fn)(module)[1].batch_normalization.mean)


def test_gradients_of_gradients():
    linear = elegy.nn.Linear(1).init(X)

    def loss(linear):
        return jnp.sum(linear(X) ** 3)

    def penalty(take):
        return lambda linear: sum(jnp.sum(g**2) for g in jax.tree.leaves(take(linear)))

    pure = penalty(lambda linear: elegy.grad(loss)(linear)[0])
    grads, _ = elegy.grad(pure)(linear)
    assert_gradients(grads, linear, jax.grad(penalty(jax.grad(loss)))(linear))


def test_a_first_argument_that_is_initialised_by_the_call():
    with elegy.rng_context(0):
        (_, updated), grads = elegy.value_and_grad(loss_fn)(Net())
    assert jax.tree.structure(grads) == jax.tree.structure(elegy.partition(updated)[0])
    assert grads.layers[0].w.shape == (3, 4)


def test_where_gives_none_outside_the_selection():
    module = net()
    whole = reference(module)
    for where in ("layers/2", elegy.select(module, "layers/2"), ("layers/2/b", lambda path, _: path == "layers/2/w")):
        (_, updated), grads = elegy.value_and_grad(loss_fn, where=where)(module)
        assert len(jax.tree.leaves(grads)) == 2 and grads.layers[0].w is None and grads.foreign.weight is None
        assert_close(grads.layers[2].w, whole.layers[2].w, rtol=1e-5)
        assert grads.again is grads.layers[2]
        chosen, rest = eqx.partition(updated, elegy.select(updated, "layers/2").mask)
        assert jax.tree.structure(chosen) == jax.tree.structure(grads)


def test_arrays_beside_the_modules():
    linear, scale, count = elegy.nn.Linear(2).init(X), jnp.full([2], 2.0), jnp.array(3)
    first = (linear, {"scale": scale, "count": count}, eqx.nn.Linear(2, 1, key=jax.random.key(2)), "text")

    def loss(first, y):
        linear, arrays, last, _ = first
        return jnp.sum(jax.vmap(last)(linear(X) * arrays["scale"][None] + arrays["count"].astype(float)) * y)

    y = jnp.full([1, 1], 0.5)
    grads, updated = elegy.grad(loss)(first, y)
    assert_gradients(grads, first, reference(first, lambda first: loss(first, y)))
    assert updated[1]["scale"] is scale and grads[1]["count"] is None and grads[3] is None
    chosen, _ = elegy.grad(loss, where=("1/scale", "0/w"))(first, y)
    assert len(jax.tree.leaves(chosen)) == 2
    assert_same((chosen[0].w, chosen[1]["scale"]), (grads[0].w, grads[1]["scale"]))
    (chosen, slope), _ = elegy.grad(loss, where="1", argnums=1)(first, y)
    assert_same(chosen[1]["scale"], grads[1]["scale"])
    assert_close(slope, jax.grad(loss, argnums=1)(first, y))


def test_an_equinox_module_with_modules_in_it():
    inner = elegy.nn.Linear(1).init(jnp.ones([2]))
    layers = eqx.nn.Sequential([eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Lambda(inner)])
    loss = lambda layers: jnp.sum(jax.vmap(layers)(X) ** 2)  # noqa: E731
    grads, _ = elegy.grad(loss)(layers)
    assert_gradients(grads, layers, reference(layers, loss))


class Around(elegy.Module):
    def __init__(self, inner):
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def test_what_two_modules_of_a_tuple_share_has_its_whole_gradient_in_both():
    shared = elegy.nn.Linear(2)
    tree = (Around(shared).init(X), Around(shared))
    grads, updated = elegy.grad(loss_fn)(tree)
    whole, _ = elegy.grad(lambda linear: 2 * loss_fn(linear))(shared)
    assert jax.tree.structure(grads) == jax.tree.structure(elegy.partition(updated)[0])
    assert_close((grads[0].inner.w, grads[1].inner.w), (whole.w, whole.w))

    optimizer = elegy.Optimizer(optax.sgd(0.1))
    expected = shared.w - 0.1 * whole.w
    optimizer.update(tree, grads)
    assert_close(shared.w, expected)


def test_parameters_fn_gives_what_it_returns():
    module = net()
    grads, _ = elegy.grad(loss_fn, parameters_fn=lambda m: [m.layers[0].w, m.layers[0].w])(module)
    whole = reference(module)
    assert_close(grads, [whole.layers[0].w] * 2, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# With Optax and elegy.Optimizer
# ---------------------------------------------------------------------------------------------------------------------

# Not clip_by_global_norm: dicts are sorted, and modules are not, so that the norm is summed in another order.
TRANSFORMATION = optax.chain(optax.clip(0.1), optax.adamw(0.1))


def by_hand(module, steps, x):
    @jax.jit
    def step(module, state, x):
        (_, module), grads = elegy.value_and_grad(loss_fn)(module, x)
        parameters, rest = elegy.partition(module)
        updates, state = TRANSFORMATION.update(grads, state, parameters)
        return elegy.combine(optax.apply_updates(parameters, updates), rest), state

    state = TRANSFORMATION.init(elegy.partition(module)[0])
    for _ in range(steps):
        module, state = step(module, state, x)
    return module


def with_modules(module, steps, x, pure=False):
    optimizer = elegy.Optimizer(TRANSFORMATION)

    def step(x):
        if pure:
            (_, updated), grads = elegy.value_and_grad(loss_fn)(module, x)
            module.set_parameters(updated)
        else:
            _, grads = elegy.value_and_grad(lambda x: loss_fn(module, x), modules=module)(x)
        optimizer.update(module, grads)

    step = elegy.jit(step, modules=[module, optimizer])
    for _ in range(steps):
        step(x)
    return module, optimizer


def test_a_loop_of_optax_gives_the_bits_of_the_form_with_modules(default_promotion):
    for first in (net, a_part_frozen):
        found = by_hand(first(), 3, X)
        expected, optimizer = with_modules(first(), 3, X)
        assert_same(found, expected)
        pure, other = with_modules(first(), 3, X, pure=True)
        assert_same(pure, expected)
        assert_same(optimizer.state, other.state)


@pytest.mark.parametrize("form", [tuple, list, lambda pair: dict(zip("ab", pair, strict=True))])
def test_an_optimiser_takes_gradient_modules_in_the_form_of_the_modules(form):
    modules = form((net(), net(1)))
    others = jax.tree.map(lambda m: m.copy(), modules, is_leaf=lambda m: isinstance(m, elegy.Module))
    optimizer, other = elegy.Optimizer(optax.adam(0.1)), elegy.Optimizer(optax.adam(0.1))
    for _ in range(2):
        grads, _ = elegy.grad(loss_fn)(modules)
        optimizer.update(modules, grads)
        other.update(others, elegy.grad(lambda: loss_fn(others), modules=others)())
    assert_close(elegy.partition(modules)[0], elegy.partition(others)[0], rtol=1e-5)
    assert jax.tree.structure(optimizer.state) == jax.tree.structure(other.state)


def test_an_optimiser_with_where_takes_the_gradients_with_where():
    module = net()
    before = module.copy()
    optimizer = elegy.Optimizer(optax.sgd(0.1), where="layers/2")
    grads, _ = elegy.grad(loss_fn, where="layers/2")(module)
    optimizer.update(module, grads)
    assert_close(module.layers[2].w, before.layers[2].w - 0.1 * grads.layers[2].w)
    assert_same(module.layers[0], before.layers[0])
    with pytest.raises(elegy.errors.ParameterError, match="only among the gradients: .*layers/0/w"):
        optimizer.update(module, elegy.grad(loss_fn)(module)[0])


def test_an_optimiser_called_with_modules_gives_modules():
    module = net()
    for gradients, parameters in (
        (elegy.grad(loss_fn)(module)[0], elegy.partition(module)[0]),
        (elegy.grad(loss_fn)(module)[0].get_parameters(), elegy.partition(module)[0]),
    ):
        optimizer, other = elegy.Optimizer(optax.adam(0.1)), elegy.Optimizer(optax.adam(0.1))
        new = optimizer(gradients, parameters)
        expected = other(elegy.grad(loss_fn)(module)[0].get_parameters(), module.get_parameters(trainable=True))
        assert jax.tree.structure(new) == jax.tree.structure(parameters)
        assert_same(new.get_parameters(), expected)
        assert jax.tree.structure(optimizer.state) == jax.tree.structure(other.state)
        # The state is that of `update` too.
        optimizer.update(module.copy(), gradients)


def test_gradient_modules_that_do_not_fit_are_refused_by_path():
    module = net()
    optimizer = elegy.Optimizer(optax.adam(0.1))
    grads, _ = elegy.grad(loss_fn)(module)
    optimizer.update(module, grads)
    before = (module.copy(), optimizer.copy())
    other = elegy.select(module, "layers/0").freeze()
    with pytest.raises(elegy.errors.ParameterError, match="only among the parameters: layers/0/b, layers/0/w"):
        optimizer.update(module, elegy.grad(loss_fn)(other)[0])
    with pytest.raises(elegy.errors.ParameterError, match="only among the gradients: .*batch_normalization/mean"):
        optimizer.update(module, module)
    wrong = jax.tree.map(lambda g: g[:1], grads)
    with pytest.raises(elegy.errors.ParameterError, match=r"layers/0/w: the gradient has shape \(1, 4\), the param"):
        optimizer.update(module, wrong)
    with pytest.raises(elegy.errors.ParameterError, match="only among the gradients"):
        optimizer.update(module, (grads,))
    assert_same((module, optimizer), before)


@given(
    frozen=st.sets(st.sampled_from(["layers/0/w", "layers/2/b", "foreign/bias", "batch_normalization"])),
    sharing=st.booleans(),
)
@settings(max_examples=8)
def test_any_frozen_part(frozen, sharing):
    module = MODULE if not sharing else Around(MODULE).init(X)
    prefix = "inner/" if sharing else ""
    if frozen:
        module = elegy.select(module, *(prefix + path for path in sorted(frozen))).freeze()
    grads, updated = elegy.grad(loss_fn)(module)
    assert_gradients(grads, module)
    assert jax.tree.structure(grads) == jax.tree.structure(elegy.partition(updated)[0])


MODULE = net()


def test_arrays_of_a_container_that_are_frozen_one_by_one():
    """In the gradient None stands for those that are frozen, and the others are found all the same."""

    class Weights(elegy.Module):
        def __init__(self):
            ones = lambda: [jnp.ones(1), None, 2 * jnp.ones(2), 3 * jnp.ones(3)]  # noqa: E731
            self.ws = self.add_parameter("ws", initializer=ones)

        def call(self):
            return jnp.prod(jnp.stack([w.sum() for w in self.ws if w is not None]))

    module = elegy.select(Weights().init(), "ws/0").freeze()
    (_, updated), grads = elegy.value_and_grad(lambda module: module())(module)
    parameters, _ = elegy.partition(updated)
    assert jax.tree.structure(grads) == jax.tree.structure(parameters)
    assert elegy.trainable_mask(module).ws == [False, None, True, True]
    for part in (parameters, grads):
        assert [w is None for w in part.ws] == [True, True, False, False]
        assert_close(part.get_parameters(trainable=True), part.get_parameters())
    assert_close(grads.ws[2], jnp.full(2, 9.0))
    before = module.ws
    elegy.Optimizer(optax.sgd(0.1)).update(module, grads)
    assert module.ws[0] is before[0]
    assert_close(module.ws[2], before[2] - 0.9)
    unfrozen = elegy.select(module, "ws/0").unfreeze()
    assert elegy.trainable_mask(unfrozen).ws == [True, None, True, True]
