"""Mixed precision: what is cast during a call, what is not, and that nothing stays cast."""

import functools
import pickle
import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import StructureError, TraceError
from tests.helpers import assert_close, assert_same, concrete

HALF = elegy.DtypePolicy(compute_dtype=jnp.bfloat16, output_dtype=jnp.float32)
X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = (X[:, :1] - 2 * X[:, 1:2]).astype(np.float32)


class Spy(elegy.Module):
    """Tells in which dtypes it runs, by its parameter as an attribute, as what `add_parameter` gives, and its input."""

    def __init__(self) -> None:
        self.seen: Any = SEEN

    def call(self, x: Any) -> Any:
        w = self.add_parameter("w", [x.shape[-1]], initializer=jnp.ones)
        n = self.add_parameter("n", [], jnp.float32, jnp.zeros, trainable=False)
        self.update_parameter("n", n + 1)
        SEEN.append((jnp.dtype(w.dtype).name, jnp.dtype(self.w.dtype).name, jnp.dtype(x.dtype).name, n.dtype.name))
        return x * jnp.broadcast_to(self.w, x.shape)


SEEN: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


class Net(elegy.Module):
    def call(self, x: Any) -> Any:
        x = elegy.nn.Linear(16)(x)
        x = elegy.nn.BatchNormalization()(x)
        return elegy.nn.Linear(1)(jax.nn.relu(x))


def with_policy(module: Any, policy: Any = HALF) -> Any:
    module.dtype_policy = policy
    return module


def cast_by_hand(module: Any, x: Any) -> Any:
    """The recipe: cast what is trainable, run, put the state back."""
    parameters, rest = elegy.partition(module)
    half = elegy.combine(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters), rest)
    y, half = half.apply(x.astype(jnp.bfloat16), training=True)
    return y.astype(jnp.float32), elegy.combine(parameters, elegy.partition(half)[1])


def test_a_call_sees_cast_arrays_and_leaves_them_as_they_were() -> None:
    spy = with_policy(Spy())
    y = spy(X)
    # The init pass, and the run.
    assert SEEN == [("bfloat16", "bfloat16", "bfloat16", "float32")] * 2
    assert y.dtype == spy.w.dtype == spy.n.dtype == jnp.float32
    assert spy.n == 1
    np.testing.assert_array_equal(y, X.astype(jnp.bfloat16).astype(np.float32))


def test_it_is_the_cast_by_hand() -> None:
    net = with_policy(Net().init(X, rng=0))
    plain = Net().init(X, rng=0)
    assert_same(net.get_parameters(), plain.get_parameters())
    expected, plain = cast_by_hand(plain, X)
    y, updated = net.apply(X, training=True)
    assert_same(y, expected)
    assert_same(updated.get_parameters(), plain.get_parameters())
    assert (updated.batch_normalization.mean != 0).all()


def test_gradients_in_every_form() -> None:
    """The pure form, `modules=`, stock JAX and the cast by hand agree; gradients and statistics are float32."""
    plain = Net().init(X, rng=0)
    net = with_policy(plain.copy())

    def by_hand(parameters: Any, rest: Any) -> Any:
        y, updated = cast_by_hand(elegy.combine(parameters, rest), X)
        return jnp.mean((y - Y) ** 2), updated

    (loss, updated), expected = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(*elegy.partition(plain))

    def loss_fn(net: Any) -> Any:
        return jnp.mean((net(X) - Y) ** 2)

    (pure, changed), gradients = jax.jit(lambda net: elegy.value_and_grad(loss_fn)(net))(net)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
    assert_close((pure, jax.tree.leaves(gradients)), (loss, jax.tree.leaves(expected)), rtol=1e-2, atol=1e-3)
    assert_close(changed.get_parameters(trainable=False), updated.get_parameters(trainable=False), rtol=1e-2, atol=1e-3)

    shim = net.copy()
    step = elegy.jit(elegy.value_and_grad(lambda: loss_fn(shim), modules=shim), modules=shim)
    for _ in range(2):
        value, dict_of_gradients = step()
    assert step.traces == 1
    assert concrete(shim)
    assert_close(value, loss, rtol=1e-2, atol=1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves((dict_of_gradients, shim))} == {jnp.dtype(jnp.float32)}


def test_a_lazy_step_of_elegy_jit() -> None:
    def first_step(net: Any) -> Any:
        elegy.set_rng(7)
        loss_fn = elegy.value_and_grad(lambda: jnp.mean((net(X) - Y) ** 2), modules=net)
        return elegy.jit(loss_fn, modules=net)()[1]

    mixed, plain = with_policy(Net()), Net()
    gradients = first_step(mixed)
    first_step(plain)
    assert jax.tree.structure(gradients) == jax.tree.structure(mixed.get_parameters(trainable=True))
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed)} == {jnp.dtype(jnp.float32)}
    assert_same(mixed.get_parameters(trainable=True), plain.get_parameters(trainable=True))


def test_a_model_trains() -> None:
    """A step is less than the resolution of bfloat16 near a weight of one, and counts all the same."""

    def train(module: Any) -> Any:
        elegy.set_rng(0)
        model = elegy.Model(module, loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(1e-3))
        model.fit(X, Y, batch_size=4, epochs=100, verbose=0)
        return model.evaluate(X, Y, verbose=0)["loss"]

    plain, mixed = Net(), with_policy(Net())
    losses = train(plain), train(mixed)
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert losses[1] < 0.5 * np.mean(Y**2)
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed)} == {jnp.dtype(jnp.float32)}
    assert_close(mixed.batch_normalization.mean, plain.batch_normalization.mean, rtol=0.05, atol=0.05)


def test_the_state_of_an_optimiser_is_that_of_the_weights() -> None:
    """Both are created in one pass, in which the weights were cast a moment ago."""

    class Deep(elegy.Module):
        def call(self, x: Any) -> Any:
            return elegy.nn.Linear(1)(elegy.nn.Stack(lambda: elegy.nn.Linear(3), 2, remat=True)(x))

    model = elegy.Model(with_policy(Deep()), loss=elegy.losses.Huber(), optimizer=optax.adam(1e-2))
    history = model.fit(X, Y, batch_size=16, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]

    net, optimizer = with_policy(Net()), elegy.Optimizer(optax.adam(1e-2))

    def step() -> Any:
        loss, gradients = elegy.value_and_grad(lambda: jnp.mean((net(X) - Y) ** 2), modules=net)()
        optimizer.update(net, gradients)
        return loss

    step_jit = elegy.jit(step, modules=[net, optimizer])
    losses = [step_jit() for _ in range(3)]
    assert losses[-1] < losses[0]
    floating = [leaf for leaf in jax.tree.leaves((net, optimizer)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(floating) > 10 and {leaf.dtype for leaf in floating} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "transform",
    [
        lambda module: module(X),
        lambda module: jax.jit(lambda module: module(X))(module),
        lambda module: jax.vmap(lambda x: module.apply(x)[0])(X),
        lambda module: elegy.remat(lambda x: module(x), modules=module)(X),
        lambda module: elegy.scan(lambda carry, x: (carry, module(x)), None, X, modules=module)[1],
        lambda module: jax.lax.scan(lambda module, x: (module, module(x)), module, X)[1],
        lambda module: elegy.jit(module)(X),
    ],
)
@pytest.mark.filterwarnings("ignore:.*was lost:UserWarning")
def test_transforms(transform: Any) -> None:
    module = with_policy(Spy().init(X))
    SEEN.clear()
    y = transform(module)
    assert {seen[:3] for seen in SEEN} == {("bfloat16",) * 3}
    assert y.dtype == jnp.float32 and concrete(module)
    assert module.w.dtype == jnp.float32


def test_stacks_and_remat_below() -> None:
    class Deep(elegy.Module):
        def call(self, x: Any) -> Any:
            x = elegy.nn.Stack(lambda: elegy.nn.Linear(3), 3, remat=True)(x)
            return elegy.remat(elegy.nn.Linear(3))(x)

    deep = with_policy(Deep())
    y = deep(X)
    plain = Deep().init(X, rng=elegy.RNG(42))
    assert_same(deep.get_parameters(), plain.get_parameters())
    assert_same(y, cast_by_hand(plain, X)[0])


def test_a_module_below_may_have_a_policy_of_its_own() -> None:
    class Pair(elegy.Module):
        def __init__(self) -> None:
            self.first, self.second = Spy(), Spy()

        def call(self, x: Any) -> Any:
            return self.second(self.first(x))

    pair = Pair().init(X)
    pair.dtype_policy = HALF
    pair.second.dtype_policy = elegy.DtypePolicy(compute_dtype=jnp.float32)
    SEEN.clear()
    pair(X)
    assert [seen[:3] for seen in SEEN] == [("bfloat16",) * 3, ("float32",) * 3]
    pair.second.dtype_policy = None
    SEEN.clear()
    pair(X)
    assert [seen[:3] for seen in SEEN] == [("bfloat16",) * 3] * 2


def test_policies_by_selection() -> None:
    net = Net().init(X)
    mixed = elegy.select(net, elegy.nn.Linear).with_dtype_policy(HALF)
    assert net.linear.dtype_policy is None
    assert mixed.linear.dtype_policy == mixed.linear_1.dtype_policy == HALF
    assert mixed.batch_normalization.dtype_policy is None
    assert jax.tree.structure(net) != jax.tree.structure(mixed)
    by_hand = net.copy()
    by_hand.linear.dtype_policy = by_hand.linear_1.dtype_policy = HALF
    assert jax.tree.structure(by_hand) == jax.tree.structure(mixed)
    assert_same(mixed(X), by_hand(X))
    assert (mixed(X) != net(X)).any()
    with pytest.raises(elegy.errors.SelectionError, match="only modules have a dtype policy"):
        elegy.select([jnp.ones(3)], "0").with_dtype_policy(HALF)


def test_frozen_parameters_are_cast_and_state_is_not() -> None:
    spy = Spy().init(X)
    spy.trainable = False
    spy.dtype_policy = HALF
    SEEN.clear()
    spy(X)
    assert SEEN == [("bfloat16", "bfloat16", "bfloat16", "float32")]


def test_layers_of_equinox_are_cast() -> None:
    class Foreign(elegy.Module):
        def __init__(self) -> None:
            self.layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))

        def call(self, x: Any) -> Any:
            SEEN.append(self.layer.weight.dtype)
            return jax.vmap(self.layer)(x)

    module = with_policy(Foreign())
    assert module(X).dtype == jnp.float32
    assert set(SEEN) == {jnp.dtype(jnp.bfloat16)}
    assert module.layer.weight.dtype == jnp.float32


def test_the_dtype_of_parameters() -> None:
    class Constructed(elegy.Module):
        def __init__(self) -> None:
            self.add_parameter("w", [3], initializer=elegy.initializers.RandomNormal())

        def call(self, x: Any) -> Any:
            return elegy.nn.Linear(2)(x * jnp.broadcast_to(self.w, x.shape))

    narrow = elegy.DtypePolicy(param_dtype=jnp.bfloat16)
    module = with_policy(Constructed(), narrow)
    assert module.w.dtype == jnp.bfloat16
    module.init(X.astype(jnp.bfloat16), rng=3)
    assert module.w.dtype == module.linear.w.dtype == jnp.bfloat16
    again = with_policy(Constructed(), narrow).init(X.astype(jnp.bfloat16), rng=3)
    assert_same(module.get_parameters(), again.get_parameters())
    other = with_policy(Constructed(), narrow).init(X.astype(jnp.bfloat16), rng=4)
    assert (module.w != other.w).any()
    assert module(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16

    norm = with_policy(elegy.nn.BatchNormalization(), narrow).init(X)
    assert norm.scale.dtype == jnp.bfloat16
    assert norm.mean.dtype == jnp.float32


def test_the_dtype_of_outputs() -> None:
    class Several(elegy.Module):
        def call(self, x: Any, flag: Any) -> Any:
            return {"x": elegy.nn.Linear(2)(x), "n": jnp.arange(3), "text": flag}

    assert Several()(X, "a")["x"].dtype == jnp.float32
    policy = elegy.DtypePolicy(output_dtype=jnp.float16)
    out = with_policy(Several(), policy)(X, "a")
    assert out["x"].dtype == jnp.float16 and out["n"].dtype == jnp.int32 and out["text"] == "a"
    kept = with_policy(Several(), elegy.DtypePolicy(compute_dtype=jnp.bfloat16))(X, "a")
    assert kept["x"].dtype == jnp.bfloat16


def test_an_error_leaves_nothing_cast() -> None:
    class Fails(elegy.Module):
        def call(self, x: Any) -> Any:
            x = elegy.nn.Linear(2)(x)
            if not elegy.is_initializing():
                raise RuntimeError("no")
            return x

    module = with_policy(Fails()).init(X)
    before = jax.tree.map(np.array, module.get_parameters())
    for run in (module, elegy.jit(module), jax.jit(lambda x: module(x))):
        with pytest.raises(RuntimeError, match="no"):
            run(X)
        assert concrete(module)
        assert_same(jax.tree.map(np.array, module.get_parameters()), before)


def test_what_the_call_sets_is_kept_in_its_own_dtype() -> None:
    class Sets(elegy.Module):
        def call(self, x: Any) -> Any:
            w = self.add_parameter("w", [3], initializer=jnp.ones)
            if not elegy.is_initializing():
                self.set_parameters({"w": w + jnp.ones_like(w)})
            return x

    module = with_policy(Sets())
    module(X)
    assert module.w.dtype == jnp.float32 and module.w.tolist() == [2, 2, 2]


def test_threads_do_not_see_each_other() -> None:
    module = with_policy(Spy().init(X))
    SEEN.clear()
    threads = [threading.Thread(target=lambda: [module.apply(X) for _ in range(5)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(SEEN) == {("bfloat16", "bfloat16", "bfloat16", "float32")}
    assert module.w.dtype == jnp.float32


def test_copies_pickles_and_compilation() -> None:
    net = with_policy(Net().init(X))
    for other in (net.copy(), pickle.loads(pickle.dumps(net)), jax.tree.map(lambda leaf: leaf, net)):
        assert other.dtype_policy == HALF
        assert_same(other(X), net.copy()(X))
    traces = []

    @functools.partial(elegy.jit, modules=net)
    def run() -> Any:
        traces.append(None)
        return net(X)

    run()
    net.dtype_policy = None
    run()
    net.dtype_policy = HALF
    run()
    assert len(traces) == 2


def test_it_is_shown() -> None:
    assert repr(with_policy(Spy())).startswith("Spy(uninitialised, computes in bfloat16")


def test_misuse() -> None:
    with pytest.raises(TypeError, match="compute_dtype must be a dtype of floating-point numbers, got int32"):
        elegy.DtypePolicy(compute_dtype=jnp.int32)
    net = Net().init(X)
    with pytest.raises(TypeError, match="dtype_policy"):
        net.dtype_policy = jnp.bfloat16

    def assign() -> None:
        net.dtype_policy = HALF

    with pytest.raises(StructureError, match="assign it outside"):
        elegy.jit(assign, modules=net)()
    with pytest.raises(TraceError, match="was given a dtype policy"):
        jax.jit(assign)()
    assert net.dtype_policy is None


def test_a_model_is_given_a_policy() -> None:
    """As if it were assigned; a function and a layer of Equinox take one too."""
    history, parameters = [], []
    for given in (True, False):
        spy = Spy().init(X)
        SEEN.clear()
        outputs = []

        def loss(y_true: Any, y_pred: Any, outputs: Any = outputs) -> Any:
            outputs.append(y_pred.dtype)
            return jnp.mean((y_true - y_pred) ** 2)

        with_policy(spy, None if given else HALF)
        options: Any = {"policy": HALF} if given else {}
        model = elegy.Model(spy, loss, optimizer=optax.sgd(0.1), **options)
        assert spy.dtype_policy == HALF and model.module is spy
        history.append(model.fit(X, X, batch_size=8, epochs=2, verbose=0).history)
        assert {seen[:3] for seen in SEEN} == {("bfloat16",) * 3}
        assert {jnp.dtype(dtype).name for dtype in outputs} == {"float32"}
        parameters.append(spy.get_parameters())
        assert spy.w.dtype == jnp.float32 and (spy.w != 1).any()
    assert history[0] == history[1]
    assert_same(*parameters)

    module = elegy.Model(lambda x: x, policy=HALF).module
    foreign = elegy.Model(eqx.nn.Linear(3, 2, key=jax.random.key(0)), policy=HALF).module
    assert module.dtype_policy == foreign.dtype_policy == HALF
    elegy.Model(module, policy=HALF)
    other = elegy.DtypePolicy(compute_dtype=jnp.float16)
    with pytest.raises(ValueError, match=r"=dtype\('float16'\).*has another one: .*=dtype\(bfloat16\)"):
        elegy.Model(module, policy=other)
    assert module.dtype_policy == HALF
    with pytest.raises(TypeError, match="positional"):
        elegy.Model(module, None, None, None, False, 42, True, HALF)  # type: ignore[misc]
    with pytest.raises((TypeError, elegy.errors.TypeCheckError), match="policy"):
        elegy.Model(Spy(), policy=jnp.bfloat16)  # type: ignore[arg-type]
