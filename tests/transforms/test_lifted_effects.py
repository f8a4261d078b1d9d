"""What leaves a lifted transform besides outputs: state, draws, hooks, new modules; and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.nn import Dropout, Linear

X = jax.random.normal(jax.random.key(1), [4, 3])
ONES = jnp.ones([64])


class Counter(elegy.Module):
    """Counts its calls, and nothing else."""

    def call(self, x):
        n = self.add_parameter("n", [], jnp.float32, trainable=False)
        self.update_parameter("n", n + 1)
        return x


class Noise(elegy.Module):
    def call(self, x):
        return x + jax.random.normal(elegy.next_rng_key(), x.shape)


class Reports(elegy.Module):
    def call(self, x):
        elegy.add_loss("size", jnp.sum(x))
        elegy.add_metric("size", jnp.sum(x))
        elegy.add_summary("x", x)
        return x


# ---------------------------------------------------------------------------------------------------------------------
# Draws
# ---------------------------------------------------------------------------------------------------------------------


def scanned(f, x, modules):
    return elegy.scan(lambda carry, x: (carry, f(x)), None, x, modules=modules)[1]


def mapped(f, x, modules):
    return elegy.vmap(f, modules=modules)(x)


@pytest.mark.parametrize("transform", [mapped, scanned])
@pytest.mark.parametrize("style", ["eager", "elegy.jit", "jax.jit", "apply"])
def test_each_lane_or_step_draws_its_own(transform, style):
    class Net(elegy.Module):
        def __init__(self):
            self.noise = Noise()

        def call(self, x):
            return transform(self.noise, x, self.noise)

    net = Net()
    xs = jnp.zeros([3, 5])
    net.init(xs)
    run = {
        "eager": lambda: net(xs),
        "elegy.jit": lambda: elegy.jit(net)(xs),
        "jax.jit": lambda: jax.jit(lambda m, x: (m(x), m))(net, xs),
        "apply": lambda: net.apply(xs, rng=0),
    }[style]
    y = run()
    if isinstance(y, tuple):
        y, net = y
    assert len(np.unique(y)) == 15
    if style == "jax.jit":  # the key of the module moves on, so the next call draws others
        assert not np.isin(jax.jit(lambda m, x: (m(x), m))(net, xs)[0], y).any()
    elif style != "apply":
        assert not np.isin(run(), y).any()


def test_the_steps_of_a_scan_draw_what_a_loop_draws():
    noise = Noise()
    xs = jnp.zeros([3, 5])
    with elegy.rng_context(0) as stream:
        y = scanned(noise, xs, noise)
        after = stream.key
    with elegy.rng_context(0) as stream:
        expected = jnp.stack([noise(x) for x in xs])
        assert (jax.random.key_data(after) == jax.random.key_data(stream.key)).all()
    np.testing.assert_allclose(y, expected)


@pytest.mark.parametrize("transform", [mapped, scanned])
def test_the_stream_moves_on_if_and_only_if_something_is_drawn(transform):
    stream = elegy.get_rng()
    before = stream.key
    transform(lambda x: x, X, None)
    assert (jax.random.key_data(stream.key) == jax.random.key_data(before)).all()
    transform(lambda x: jax.random.normal(elegy.next_rng_key(), x.shape), X, None)
    assert (jax.random.key_data(stream.key) != jax.random.key_data(before)).any()


def test_keys_of_lanes_are_not_derived_again():
    """Neither by later draws, nor by lanes of lanes."""
    keys = []

    def draw(_):
        return jax.random.key_data(elegy.next_rng_key())

    with elegy.rng_context(0):
        lanes = jnp.arange(3)
        keys.extend(elegy.vmap(draw)(lanes))
        keys.extend(elegy.vmap(elegy.vmap(draw), in_axes=(None,), axis_size=3)(lanes).reshape(-1, 2))
        keys.extend(elegy.scan(lambda c, x: (c, draw(x)), None, lanes)[1])
        keys.extend(draw(None) for _ in range(4))
        keys.append(jax.random.key_data(elegy.get_rng().key))
    assert len(np.unique(np.stack(keys), axis=0)) == len(keys) == 20


def test_a_rematerialised_draw_is_the_same_in_both_passes():
    dropout = Dropout(0.5)
    parameter = Linear(64, with_bias=False).init(ONES[None])

    def loss(remat):
        def f(x):
            return dropout(parameter(x))

        f = elegy.remat(f, modules=(dropout, parameter)) if remat else f
        with elegy.rng_context(3):
            return elegy.value_and_grad(lambda x: jnp.sum(f(x) ** 2), modules=(dropout, parameter))(ONES[None])

    (value, grads), (expected, expected_grads) = loss(True), loss(False)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grads[1]["w"], expected_grads[1]["w"], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# State under vmap
# ---------------------------------------------------------------------------------------------------------------------


def test_an_update_without_a_reduction_is_refused():
    counter = Counter().init(X)
    with pytest.raises(
        elegy.errors.ReductionError, match=r"counter/n \(float32\[\]\).*\n.*reduce_state='mean'.*stacked"
    ):
        elegy.vmap(counter, modules=counter)(X)
    assert counter.n == 0


@pytest.mark.parametrize(
    ("reduce_state", "expected"), [("mean", 1.5), ("max", 3.0), ("min", 0.0), (lambda lanes: lanes[1], 1.0)]
)
def test_reductions_of_state(reduce_state, expected):
    class Keeps(elegy.Module):
        def call(self, x):
            self.add_parameter("x", [], jnp.float32, trainable=False)
            self.update_parameter("x", x)

    keeps = Keeps()
    elegy.vmap(keeps, modules=keeps, reduce_state=reduce_state)(jnp.arange(4.0))
    assert keeps.x == expected


def test_what_is_no_reduction_is_refused():
    class Counts(elegy.Module):
        def call(self, x):
            self.update_parameter("n", self.add_parameter("n", [], jnp.int32, trainable=False) + 1)

    counts = Counts().init(X)
    with pytest.raises(elegy.errors.ReductionError, match=r"returned int32\[4\]"):
        elegy.vmap(counts, modules=counts, reduce_state=lambda lanes: lanes)(X)
    with pytest.raises((ValueError, TypeError), match="median"):
        elegy.vmap(counts, modules=counts, reduce_state="median")
    elegy.vmap(counts, modules=counts, reduce_state="max")(X)
    assert counts.n == 1


def test_stacked_modules_need_no_reduction():
    counters = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), Counter().init(X[0]))
    elegy.vmap(lambda x: counters(x), stacked=counters)(X)
    np.testing.assert_array_equal(counters.n, [1, 1, 1, 1])
    elegy.scan(lambda carry, x: (carry, counters(x)), None, X, stacked=counters)
    np.testing.assert_array_equal(counters.n, [2, 2, 2, 2])


def test_one_module_shared_and_one_stacked():
    shared, own = Linear(2), Linear(2)

    def f(x):
        return shared(x) + own(x)

    y = elegy.vmap(f, modules=shared, stacked=own)(X)
    assert shared.w.shape == (3, 2) and own.w.shape == (4, 3, 2)
    expected = X @ shared.w + jnp.einsum("bi,bio->bo", X, own.w)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a_stacked_array_of_the_wrong_size_is_refused():
    own = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), Linear(2).init(X[0]))
    with pytest.raises(ValueError, match=r"linear/w has shape \(3, 3, 2\).*first axis must have size 4"):
        elegy.scan(lambda c, x: (c, own(x)), None, X, stacked=own)


# ---------------------------------------------------------------------------------------------------------------------
# Hooks
# ---------------------------------------------------------------------------------------------------------------------


def collected(run):
    with elegy.hooks_context(summaries=True):
        run()
        return elegy.get_losses(), elegy.get_metrics(), {path: value for _, path, value in elegy.get_summaries()}


HOOKS = {
    "vmap": (lambda m: elegy.vmap(m, modules=m)(X), X.sum() / 4, X.sum() / 4, X),
    "scan": (lambda m: scanned(m, X, m), X.sum(), X.sum() / 4, X),
    "remat": (lambda m: elegy.remat(m, modules=m)(X), X.sum(), X.sum(), X),
    "cond": (lambda m: elegy.cond(True, m, m, X, modules=m), X.sum(), X.sum(), X),
    "switch": (lambda m: elegy.switch(jnp.array(1), [m, m, m], X, modules=m), X.sum(), X.sum(), X),
    "fori_loop": (
        lambda m: elegy.fori_loop(0, 2, lambda i, x: m(x), X, modules=m),
        2 * X.sum(),
        X.sum(),
        jnp.stack([X, X]),
    ),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", HOOKS)
def test_reductions_of_hooks(name, jitted):
    run, loss, metric, summary = HOOKS[name]
    module = Reports()
    function = elegy.jit(lambda: run(module), modules=module) if jitted else lambda: run(module)
    for _ in range(2):  # the tracing call and a cached one
        losses, metrics, summaries = collected(function)
        np.testing.assert_allclose(losses["size_loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["reports/size"], metric, rtol=1e-5)
        np.testing.assert_allclose(summaries["reports/x"], summary, rtol=1e-5)
        np.testing.assert_allclose(summaries["reports"], summary, rtol=1e-5)


def test_a_while_loop_sums_losses_and_averages_metrics():
    module = Reports()

    def loop(n):
        return elegy.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1, 2 * module(c[1])), (0, jnp.ones(2)), modules=module
        )

    for n, loss, metric in ((3, 2 + 4 + 8, 14 / 3), (0, 0, np.nan)):
        with elegy.hooks_context():
            loop(n)
            np.testing.assert_allclose(elegy.get_losses()["size_loss"], loss)
            np.testing.assert_allclose(elegy.get_metrics()["reports/size"], metric)


def test_a_loss_of_one_branch_counts_when_it_is_chosen():
    def one(x):
        elegy.add_loss("one", x)
        elegy.add_loss("both", 2 * x)

    def other(x):
        elegy.add_loss("both", 3 * x)
        elegy.add_loss("both", 3 * x)

    for pred, expected in ((True, {"one_loss": 5.0, "both_loss": 10.0}), (False, {"one_loss": 0.0, "both_loss": 30.0})):
        with elegy.hooks_context():
            elegy.jit(lambda pred: elegy.cond(pred, one, other, jnp.array(5.0)))(pred)
            assert elegy.get_losses() == expected


@pytest.mark.parametrize("index", range(3))
def test_what_branches_declare_is_declared_whichever_runs(index):
    """Also where the paths of two modules differ, as those of two experts do."""

    class Expert(elegy.Module):
        def call(self, x):
            elegy.add_metric("mean", x.mean())
            elegy.add_summary("input", x)
            elegy.add_loss("size", x.mean())
            return x * self.add_parameter("w", [], initializer=jnp.ones)

    class Routed(elegy.Module):
        def __init__(self):
            self.experts = [Expert(), Expert()]

        def call(self, index, x):
            def aside(x):
                elegy.add_loss("size", 1)
                elegy.add_loss("size", 2)
                elegy.add_metric("count", 7)
                return x

            return elegy.switch(index, [*self.experts, aside], x)

    routed = Routed()
    with elegy.hooks_context(summaries=True):
        elegy.jit(routed)(jnp.array(index), X)
        losses, metrics = elegy.get_losses(), elegy.get_metrics()
        summaries = {name: value for _, name, value in elegy.get_summaries()}
    assert losses["size_loss"] == [X.mean(), X.mean(), 3.0][index]
    for number in range(2):
        path = f"routed/experts/{number}"
        assert metrics[f"{path}/mean"] == X.mean() if number == index else jnp.isnan(metrics[f"{path}/mean"])
        assert (summaries[f"{path}/input"] == X).all() == (number == index)
        assert jnp.isnan(summaries[path]).all() == (number != index)
    assert metrics["routed/count"] == (7 if index == 2 else 0)


def test_branches_may_declare_other_shapes_where_nobody_collects():
    def declaring(x):
        return lambda _: elegy.add_summary("one", x)

    elegy.cond(True, declaring(jnp.ones(2)), declaring(jnp.ones(3)), X)


def test_a_condition_that_does_more_than_read_is_refused():
    def run(cond_fun):
        return elegy.while_loop(cond_fun, lambda x: x + 1, jnp.array(0))

    assert run(lambda x: x < 3) == 3
    with pytest.raises(elegy.errors.HookError, match="drew a random key"):
        run(lambda x: jax.random.uniform(elegy.next_rng_key()) < 0.5)
    with elegy.hooks_context(), pytest.raises(elegy.errors.HookError, match="declared the loss a_loss"):
        run(lambda x: elegy.add_loss("a", 1.0) is None)


# ---------------------------------------------------------------------------------------------------------------------
# Creation
# ---------------------------------------------------------------------------------------------------------------------


CREATING = {
    "vmap": lambda f, x, m: elegy.vmap(f, modules=m)(x),
    "scan": scanned,
    "remat": lambda f, x, m: elegy.remat(f, modules=m)(x),
    "cond": lambda f, x, m: elegy.cond(x.sum() > 0, f, lambda x: f(2 * x), x, modules=m),
    "switch": lambda f, x, m: elegy.switch(jnp.array(1), [f, f], x, modules=m),
    "fori_loop": lambda f, x, m: elegy.fori_loop(0, 2, lambda i, x: f(x), x, modules=m),
    "while_loop": lambda f, x, m: elegy.while_loop(lambda x: x.sum() < 0, f, x, modules=m),
    "jit": lambda f, x, m: elegy.jit(f, modules=m)(x),
    "value_and_grad": lambda f, x, m: elegy.value_and_grad(lambda x: f(x).sum(), modules=m)(x)[0],
}


# Each transform eagerly and in one of the other styles, which take turns.
@pytest.mark.parametrize(
    ("name", "style"),
    [(name, "eager") for name in CREATING]
    + [*zip(CREATING, itertools.cycle(["elegy.jit", "init", "jax.jit"]), strict=False)],
)
def test_modules_are_created_inside_a_transform_inside_call(name, style):
    """Each function of the transform creates its modules once, however often it is traced."""

    class Net(elegy.Module):
        def call(self, x):
            before = Linear(3)(x)
            y = CREATING[name](lambda x: jnp.tanh(Linear(3)(x)), before, self)
            return y, Linear(2)(before)

    net = Net()
    if style == "jax.jit":
        net.init(X)
    run = {
        "eager": lambda: net(X),
        "elegy.jit": lambda: elegy.jit(net)(X),
        "init": lambda: net.init(X)(X),
        "jax.jit": lambda: jax.jit(lambda m, x: m(x))(net, X),
    }[style]
    for _ in range(2):
        run()
    created = 2 if name in ("cond", "switch") else 1
    assert list(net.submodules) == ["linear", "linear_1", "linear_2", "linear_3"][: 2 + created]
    assert list(net.submodules.values())[-1].w.shape == (3, 2)


@pytest.mark.parametrize("name", [name for name in CREATING if name not in ("jit", "value_and_grad")])
def test_a_module_that_is_not_listed_is_refused(name):
    counter = Counter().init(X)
    with pytest.raises(elegy.errors.TraceError, match="counter.*\n.*\n.*\n.*elegy"):
        CREATING[name](lambda x: counter(x), X, None)
    assert counter.n == 0


def test_what_is_listed_must_be_modules():
    for transform in (elegy.vmap, elegy.remat):
        with pytest.raises(TypeError, match="modules= takes a module"):
            transform(lambda x: x, modules=[3])
    with pytest.raises(TypeError, match="the class Linear"):
        elegy.scan(lambda c, x: (c, x), 0, X, stacked=Linear)


# ---------------------------------------------------------------------------------------------------------------------
# Cost and safety
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CREATING if name not in ("value_and_grad", "cond", "switch")])
def test_a_function_is_traced_once(name):
    traces = []
    linear = Linear(3).init(X[0])

    def f(x):
        traces.append(1)
        return linear(x)

    elegy.jit(lambda x: CREATING[name](f, x, linear), modules=linear)(X)
    assert len(traces) == 1


@pytest.mark.parametrize("name", CREATING)
def test_an_exception_leaves_everything_as_it_was(name):
    counter, noise, linear = Counter().init(X), Noise().init(X), Linear(3).init(X)
    before = elegy.get_rng().key

    def fails(x):
        linear(noise(counter(x)))
        elegy.add_loss("a", 1.0)
        raise RuntimeError("on purpose")

    with elegy.hooks_context():
        with pytest.raises(RuntimeError, match="on purpose"):
            CREATING[name](fails, X, (counter, noise, linear))
        assert not elegy.get_losses()
    assert counter.n == 0 and isinstance(counter.n, jax.Array)
    assert (jax.random.key_data(elegy.get_rng().key) == jax.random.key_data(before)).all()
    counter(X)
    assert counter.n == 1


@pytest.mark.parametrize("name", CREATING)
def test_no_tracer_is_left_behind(name, no_leaks):
    class Net(elegy.Module):
        def call(self, x):
            x = CREATING[name](lambda x: Dropout(0.1)(Linear(3)(x)), x, self)
            return jnp.sum(x)

    net = Net()
    for _ in range(2):
        elegy.jit(elegy.value_and_grad(net), modules=net)(X) if name != "while_loop" else elegy.jit(net)(X)


def test_the_pure_form_carries_modules_as_values():
    """Without modules=, a module is an argument like any other, and comes back if it is returned."""
    counter = Counter().init(X[0])
    y, counters = elegy.vmap(lambda m, x: (m(x), m), in_axes=(None, 0))(counter, X)
    np.testing.assert_array_equal(counters.n, [1, 1, 1, 1])
    after, _ = elegy.scan(lambda m, x: (m, m(x)), counter, X)
    assert after.n == 4 and counter.n == 0
    again = elegy.remat(lambda m, x: (m(x), m)[1])(counter, X)
    assert again.n == 1 and counter.n == 0


def test_the_arguments_of_the_namesakes():
    linear = Linear(3).init(X[0])
    y = elegy.vmap(lambda x, *, y: linear(x) + y.sum(), modules=linear, in_axes=1, out_axes=1)(X.T, y=X)
    np.testing.assert_allclose(
        y, jax.vmap(lambda x, y: linear(x) + y.sum(), in_axes=(1, 0), out_axes=1)(X.T, X), rtol=1e-6
    )
    y = elegy.vmap(lambda x: linear(x) / jax.lax.psum(1.0, "batch"), modules=linear, axis_name="batch")(X)
    np.testing.assert_allclose(y, linear(X) / 4, rtol=1e-6)
    ys = elegy.scan(lambda c, x: (c + 1, c * linear(x)), 0.0, X, reverse=True, unroll=2, modules=linear)[1]
    np.testing.assert_allclose(ys, jnp.array([3.0, 2, 1, 0])[:, None] * linear(X), rtol=1e-5)
    y = elegy.remat(lambda n, x: n * linear(x), static_argnums=0, modules=linear)(2, X)
    np.testing.assert_allclose(y, 2 * linear(X), rtol=1e-6)
    assert elegy.cond(True, lambda x: x, lambda x: -x, operand=3) == 3
    assert elegy.fori_loop(jnp.array(2), jnp.array(5), lambda i, x: x + i, 0) == 9
    assert elegy.scan(lambda c, x: (c + 1, None), 0, length=0)[0] == 0
    with pytest.raises(ValueError, match="unroll= needs bounds that are Python integers"):
        elegy.fori_loop(jnp.array(2), jnp.array(5), lambda i, x: x, 0, unroll=2)


def test_values_of_branches_have_a_common_dtype():
    with elegy.hooks_context():
        elegy.cond(
            jnp.array(True),
            lambda x: elegy.add_loss("a", 1) or elegy.add_metric("b", x[0, 0].astype(jnp.bfloat16)),
            lambda x: elegy.add_loss("a", x.sum()) or elegy.add_metric("b", x[0, 0]),
            X,
        )
        assert elegy.get_losses()["a_loss"].dtype == elegy.get_metrics()["b"].dtype == jnp.float32
        assert elegy.get_losses()["a_loss"] == 1


def test_a_loop_runs_modules_while_summaries_are_collected():
    linear = Linear(3).init(X)
    with elegy.hooks_context(summaries=True):
        elegy.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, linear(c[1])), (0, X), modules=linear)
        assert elegy.get_summaries() == []


def test_arguments_that_cannot_be_mapped_are_told_by_jax():
    linear = Linear(3)
    with pytest.raises(ValueError, match="rank should be at least 1"):
        elegy.vmap(linear)(1.0)
    with pytest.raises(ValueError, match="inconsistent sizes"):
        elegy.vmap(lambda x, y: linear(x) + y, modules=linear)(X, X[:2])
    assert not linear.initialized


def test_the_index_of_a_loop_is_weakly_typed_as_in_jax():
    start = jnp.zeros([], jnp.int8)
    with jax.numpy_dtype_promotion("standard"):
        assert elegy.fori_loop(0, 4, lambda i, x: x + i, start) == jax.lax.fori_loop(0, 4, lambda i, x: x + i, start)


def test_a_module_is_the_body_of_a_loop():
    class Step(elegy.Module):
        def call(self, index, x):
            return x + elegy.nn.Linear(3)(x)

    step = Step()
    y = elegy.fori_loop(0, 2, step, X)
    x = X + step.linear(X)
    np.testing.assert_allclose(y, x + step.linear(x), rtol=1e-5)
    with pytest.raises(TypeError, match="elegy.fori_loop takes a function or a module, got the class Step"):
        elegy.fori_loop(0, 2, Step, X)


def test_transforms_in_each_other_list_the_modules_once():
    linear = Linear(3)
    rows = elegy.vmap(lambda x: linear(x), modules=linear)
    loss, grads = elegy.jit(elegy.value_and_grad(lambda x: rows(x).sum(), modules=linear))(X)
    assert grads["w"].shape == (3, 3) and linear.initialized
    counter = Counter()
    elegy.jit(elegy.remat(counter))(X)
    assert counter.n == 1


# ---------------------------------------------------------------------------------------------------------------------
# Means in few bits
# ---------------------------------------------------------------------------------------------------------------------


def count_by_while_loop(body, n):
    elegy.while_loop(lambda i: i < n, lambda i: [body(i), i + 1][1], jnp.int32(0))


def count_by_fori_loop(body, n):
    elegy.fori_loop(0, jnp.int32(n), lambda i, c: [body(i), c][1], 0.0)


def count_by_scan(body, n):
    elegy.scan(lambda c, i: [body(i), (c, None)][1], 0.0, jnp.arange(n))


@pytest.mark.parametrize("loop", [count_by_while_loop, count_by_fori_loop])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_metrics_of_half_precision_are_averaged_in_full(loop, dtype):
    def body(i):
        elegy.add_metric("one", jnp.ones([], dtype))
        elegy.add_metric("large", jnp.full([], 30000, dtype))
        elegy.add_metric("parity", (i % 2).astype(dtype))

    found = []
    for run in (loop, count_by_scan):
        with elegy.hooks_context():
            run(body, 3000)
            found.append(elegy.get_metrics())
    assert all(value.dtype == dtype for value in found[0].values())
    expected = {"one": dtype(1), "large": dtype(30000), "parity": dtype(0.5)}
    for metrics in found:
        assert {name: float(value) for name, value in metrics.items()} == {n: float(v) for n, v in expected.items()}


@pytest.mark.parametrize("loop", [count_by_while_loop, count_by_fori_loop])
def test_metrics_that_are_integers_are_averaged(loop):
    """The suite runs under strict promotion."""
    with elegy.hooks_context():
        loop(lambda i: elegy.add_metric("i", i), 4)
        np.testing.assert_allclose(elegy.get_metrics()["i"], 1.5)


def test_the_mean_of_state_of_half_precision_does_not_overflow():
    class State(elegy.Module):
        def call(self, x):
            self.add_parameter("s", [], jnp.float16, jnp.zeros, trainable=False)
            self.update_parameter("s", x)
            return x

    module = State()
    elegy.vmap(module, reduce_state="mean")(jnp.full([8], 30000, jnp.float16))
    assert module.s.dtype == jnp.float16 and float(module.s) == 30000


@pytest.mark.parametrize("place", ["carry", "part of the carry"])
def test_a_listed_module_in_the_carry_is_refused(place):
    module = Linear(3).init(X)
    carry = module if place == "carry" else (jnp.zeros([]), module)
    with pytest.raises(TypeError, match="leave the module out of the carry"):
        elegy.scan(lambda _, x: (carry, module(x)), carry, X, modules=module)
    # As it should be.
    _, y = elegy.scan(lambda carry, x: (carry, module(x)), None, X, modules=module)
    np.testing.assert_allclose(y, module(X), rtol=1e-5, atol=1e-6)
