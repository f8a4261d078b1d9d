"""The sample mask: which rows of a padded batch are samples. Statistics of the batch leave the others out."""

import functools
import gc
import threading
import weakref

import flax.linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import elegy
from elegy.errors import RecompilationWarning, SampleMaskError
from elegy.nn import ActivityRegularization, BatchNormalization, Conv1D, Ensemble, InstanceNormalization, Linear, Stack
from tests.helpers import assert_close, assert_same, losses

MASKS = [np.array(mask) for mask in ([True, True, True, False, False], [True, False, True, True, True])]


def samples(*shape, seed=0):
    return 3 + np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def padded(x, mask, garbage=0):
    """The samples in the rows of the mask, and in the others a copy of the first."""
    rows = np.repeat(x[:1], len(mask), axis=0) + np.float32(garbage)
    rows[mask] = x
    return rows


class MaskedSum(elegy.Module):
    """The sum of the real rows, by the mask that the code around set."""

    def call(self, x):
        mask = elegy.sample_mask()
        assert mask is not None
        return jnp.sum(jnp.where(mask[:, None], x, jnp.zeros_like(x)), axis=0)


X = samples(5, 3)


def masked_sum():
    """The module, initialised: stock transforms of JAX do not do that."""
    with elegy.sample_mask_context(MASKS[0]):
        return MaskedSum().init(X)


def expected(mask, x=X):
    return x[mask].sum(axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# The context
# ---------------------------------------------------------------------------------------------------------------------


def test_there_is_no_mask_outside_of_a_context():
    assert elegy.sample_mask() is None
    with elegy.sample_mask_context(MASKS[0]):
        assert_same(elegy.sample_mask(), jnp.array(MASKS[0]))
        with elegy.sample_mask_context(jnp.array(MASKS[1])):
            assert_same(elegy.sample_mask(), jnp.array(MASKS[1]))
        with elegy.sample_mask_context(None):
            assert elegy.sample_mask() is None
        assert_same(elegy.sample_mask(), jnp.array(MASKS[0]))
    assert elegy.sample_mask() is None


@pytest.mark.parametrize("wrong", [[True], np.ones(3), np.ones([3, 1], bool), np.True_, 3], ids=repr)
def test_a_mask_is_an_array_of_bools(wrong, unchecked):
    with pytest.raises(TypeError, match="an array of bools, one for each row"):
        elegy.sample_mask_context(wrong).__enter__()
    assert elegy.sample_mask() is None


def test_an_exception_ends_the_context():
    with pytest.raises(KeyError), elegy.sample_mask_context(MASKS[0]):
        raise KeyError
    assert elegy.sample_mask() is None

    @jax.jit
    def failing(mask):
        with elegy.sample_mask_context(mask):
            raise KeyError

    with pytest.raises(KeyError):
        failing(MASKS[0])
    assert elegy.sample_mask() is None


def test_other_threads_do_not_see_it():
    seen = []
    with elegy.sample_mask_context(MASKS[0]):
        thread = threading.Thread(target=lambda: seen.append(elegy.sample_mask()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_mask_given_inside_a_trace_as_a_constant_stays_concrete():
    @jax.jit
    def step(x):
        with elegy.sample_mask_context(MASKS[0]):
            assert not isinstance(elegy.sample_mask(), jax.core.Tracer)
            return MaskedSum()(x)

    assert_close(step(X), jnp.array(expected(MASKS[0])))


def test_no_tracer_is_kept_alive():
    inner = elegy.jit(masked_sum())
    references = []

    @jax.jit
    def step(x, mask):
        references.append(weakref.ref(mask))
        with elegy.sample_mask_context(mask):
            return inner(x)

    step(X, MASKS[0])
    keys = [*inner._configs]
    assert not any(isinstance(part, jax.core.Tracer) for key in keys for part in jax.tree.leaves(key))
    del inner, keys
    gc.collect()
    assert references[0]() is None


# ---------------------------------------------------------------------------------------------------------------------
# Functions that were traced with another mask
# ---------------------------------------------------------------------------------------------------------------------


def run_vmap(module, x):
    return elegy.vmap(lambda factor, x: module(factor * x), modules=module, in_axes=(0, None))(jnp.ones(2), x)[1]


def run_stock_vmap(module, x):
    return jax.vmap(lambda factor: module(factor * x))(jnp.ones(2))[1]


def run_scan(module, x):
    return elegy.scan(
        lambda total, factor: (total + module(factor * x), None), jnp.zeros(3), jnp.ones(1), modules=module
    )[0]


def run_stock_scan(module, x):
    return jax.lax.scan(lambda total, factor: (total + module(factor * x), None), jnp.zeros(3), jnp.ones(1))[0]


def run_cond(module, x):
    branch = lambda x: module(x)  # noqa: E731
    return elegy.cond(x[0, 0] > -100, branch, lambda x: 0 * branch(x), x, modules=module)


def run_gradient(module, x):
    f = elegy.value_and_grad(lambda x: (module(x) ** 2 / 2).sum(), argnums=0, modules=module)
    return f(x)[1].sum(axis=0) / elegy.sample_mask().sum().astype(jnp.float32)


def run_loop(module, x):
    return elegy.fori_loop(0, 1, lambda _, total: total + module(x), jnp.zeros(3), modules=module)


RUNS = {
    "jit": lambda module, x: elegy.jit(module)(x),
    "stock jit": lambda module, x: jax.jit(lambda x: module(x))(x),
    "remat": lambda module, x: elegy.remat(module)(x),
    "stock remat": lambda module, x: jax.checkpoint(lambda x: module(x))(x),
    "vmap": run_vmap,
    "stock vmap": run_stock_vmap,
    "scan": run_scan,
    "stock scan": run_stock_scan,
    "cond": run_cond,
    "loop": run_loop,
    "gradient": run_gradient,
}


@pytest.mark.parametrize("around", ["eager", "jit", "stock jit", "gradient of jit"])
@pytest.mark.parametrize("run", RUNS.values(), ids=[*RUNS])
def test_transforms_inside_the_context_see_the_mask(run, around):
    module = masked_sum()

    def step(x, mask):
        with elegy.sample_mask_context(mask):
            return run(module, x)

    if around == "jit":
        step = elegy.jit(step, modules=module)
    elif around == "stock jit":
        step = jax.jit(step)
    elif around == "gradient of jit":
        plain = step
        step = lambda x, mask: jax.jvp(lambda x: jax.jit(plain)(x, mask), [x], [x])[0]  # noqa: E731
    for mask in [*MASKS, MASKS[0]]:
        x = X.copy()
        assert_close(jnp.asarray(step(jnp.asarray(x), jnp.asarray(mask))), jnp.array(expected(mask)), rtol=1e-4)


@pytest.mark.parametrize("compiled", [lambda f: jax.jit(f), lambda f: elegy.jit(f)], ids=["stock jit", "jit"])
@pytest.mark.parametrize("outer", ["eager", "traced"])
def test_a_compiled_function_is_traced_again_for_another_mask(compiled, outer):
    traces = []
    module = masked_sum()

    @compiled
    def inner(x):
        traces.append(1)
        return module(x)

    def step(x, mask):
        with elegy.sample_mask_context(mask):
            return inner(x)

    for mask in MASKS:
        run = step if outer == "eager" else jax.jit(lambda x, mask: step(x, mask))
        assert_close(run(X, jnp.array(mask)), jnp.array(expected(mask)))
    before = len(traces)
    if outer == "eager":  # the same values again, in another array
        assert_close(step(X, MASKS[0].copy()), jnp.array(expected(MASKS[0])))
        assert len(traces) == before


def test_a_step_with_the_mask_as_an_argument_is_traced_once():
    module = masked_sum()

    @functools.partial(elegy.jit, modules=module)
    def step(x, mask):
        with elegy.sample_mask_context(mask):
            return module(x)

    for mask in MASKS:
        assert_close(step(X, mask), jnp.array(expected(mask)))
    assert step.traces == 1


def test_nothing_is_traced_again_where_there_is_no_mask():
    traces = []

    @jax.jit
    def f(x):
        traces.append(1)
        return x

    f(X)
    with elegy.sample_mask_context(None):
        f(X)
    with elegy.sample_mask_context(MASKS[0]), elegy.sample_mask_context(None):
        f(X)
    assert len(traces) == 1


def test_a_storm_of_masks_is_explained():
    f, rows = elegy.jit(lambda x: x), np.eye(10, dtype=bool)
    with pytest.warns(RecompilationWarning, match=r"sample_mask\(\): the rows 0, 8 -> the rows 0, 9"):
        for row in range(10):
            with elegy.sample_mask_context(rows[0] | rows[row]):
                f(X)


def test_a_compiled_stage_belongs_to_its_mask():
    module = masked_sum()
    with elegy.sample_mask_context(MASKS[0]):
        compiled = elegy.jit(module).lower(X).compile()
        assert_close(compiled(X), jnp.array(expected(MASKS[0])))
    with elegy.sample_mask_context(MASKS[1]), pytest.raises(elegy.errors.CompiledForOthersError, match="sample_mask"):
        compiled(X)


# ---------------------------------------------------------------------------------------------------------------------
# Batch normalisation
# ---------------------------------------------------------------------------------------------------------------------


def loss_of(norm, x, mask=None):
    """A loss that only real rows enter, with the outputs."""
    y = norm(x)
    weights = jnp.reshape(jnp.linspace(-1, 2, y[0].size, dtype=y.dtype), y.shape[1:])
    weighted = jnp.sin(y) * jnp.broadcast_to(weights, y.shape)
    if mask is not None:
        weighted = jnp.where(jnp.reshape(mask, [-1] + [1] * (y.ndim - 1)), weighted, jnp.zeros_like(weighted))
    return jnp.sum(weighted), y


def stepped(norm, x, mask):
    """Loss, outputs, gradients of the parameters, and the state after a step."""

    @functools.partial(elegy.jit, modules=norm)
    def step(x, mask):
        with elegy.sample_mask_context(mask):
            f = elegy.value_and_grad(lambda x: loss_of(norm, x, mask), modules=norm)
            (loss, y), gradients = f(x)
            return loss, y, gradients

    return *step(x, mask), norm.get_parameters(trainable=False)


SHAPES = {
    "flat": ({}, [3], (-1,)),
    "image": ({}, [4, 2, 3], (-1,)),
    "channels first": ({"data_format": "channels_first"}, [3, 4], (1,)),
    "only the batch": ({"axis": 0}, [4, 3], (1, 2)),
    "batch and channels": ({"axis": (0, 2)}, [4, 3], (1,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS, ids=["at the end", "inside"])
@pytest.mark.parametrize("case", SHAPES)
def test_a_padded_batch_is_normalised_as_the_short_one(case, mask):
    arguments, shape, _ = SHAPES[case]
    x = samples(mask.sum(), *shape)
    norm = BatchNormalization(decay_rate=0.9, **arguments).init(x)
    short = norm.copy()
    loss, y, gradients, state = stepped(norm, padded(x, mask, garbage=50), mask)
    short_loss, short_y, short_gradients, short_state = stepped(short, x, None)
    assert_close(loss, short_loss, 1e-5, 1e-5)  # a sum of many terms
    assert_close(y[mask], short_y, 1e-6, 1e-6)
    assert_close(gradients, short_gradients, 1e-5, 2e-6)
    assert_close(state, short_state, 1e-6, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", SHAPES)
def test_a_padded_batch_is_normalised_as_flax_does(case):
    arguments, shape, kept = SHAPES[case]
    mask = MASKS[0]
    x = samples(mask.sum(), *shape)
    norm = BatchNormalization(decay_rate=0.9, **arguments).init(x)
    _, y, _, state = stepped(norm, padded(x, mask, garbage=7), mask)
    axis = kept if len(kept) > 1 else kept[0]
    theirs = flax.linen.BatchNorm(use_running_average=False, momentum=0.9, axis=axis, use_fast_variance=False)
    expected, updated = theirs.apply(theirs.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    assert_close(y[mask], expected, 1e-5, 2e-6)
    assert_close(state, {name: value for name, value in updated["batch_stats"].items()}, 1e-5, 1e-6)


def test_a_padded_batch_is_normalised_as_keras_does():
    mask, x = MASKS[1], samples(4, 6, 3)
    norm = BatchNormalization(decay_rate=0.9, eps=1e-3).init(x)
    _, y, _, state = stepped(norm, padded(x, mask), mask)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    assert_close(y[mask], jnp.asarray(theirs(x, training=True)), 1e-5, 2e-6)
    means = {"mean": jnp.asarray(theirs.moving_mean.value), "var": jnp.asarray(theirs.moving_variance.value)}
    assert_close(state, means, 1e-5, 1e-6)


def test_the_variance_of_a_large_mean_keeps_its_digits():
    x = np.array([[0.0], [1.0], [2.0], [0.0], [0.0]], np.float32) + np.float32(1e5)
    with elegy.sample_mask_context(MASKS[0]):
        norm = BatchNormalization(decay_rate=0.0).init(x)
        norm(x)
    assert_close(norm.var, jnp.array([2 / 3]), 1e-3)


def test_padded_values_are_not_read():
    x = padded(samples(3, 2), MASKS[0])
    norm = BatchNormalization().init(x)
    other = norm.copy()
    x[3:] = 1e30
    for layer, values in ((norm, x), (other, padded(samples(3, 2), MASKS[0]))):
        with elegy.sample_mask_context(MASKS[0]):
            y = layer(values)
    assert_same(norm.get_parameters(), other.get_parameters())
    assert jnp.isfinite(y[:3]).all()


def test_replicas_with_different_numbers_of_samples_are_one_batch():
    x = samples(10, 3)
    masks = np.stack(MASKS)
    norm = BatchNormalization(cross_replica_axis="replicas").init(x)
    whole = BatchNormalization().init(x)

    def lane(x, mask):
        with elegy.sample_mask_context(mask):
            return norm(x)

    y = elegy.vmap(lane, modules=norm, axis_name="replicas", reduce_state="mean")(x.reshape(2, 5, 3), masks)
    with elegy.sample_mask_context(masks.ravel()):
        expected = whole(x)
    assert_close(y.reshape(10, 3), expected)
    assert_close(norm.get_parameters(), whole.get_parameters())


def test_statistics_outside_of_training_leave_out_the_padding():
    mask, x = MASKS[0], samples(3, 2)
    norm = BatchNormalization().init(x)
    with elegy.training_context(False):
        expected = norm(x, test_local_stats=True)
        with elegy.sample_mask_context(mask):
            assert_close(norm(padded(x, mask, 9), test_local_stats=True)[mask], expected)
            assert_close(norm(padded(x, mask, 9))[mask], norm(x))


def test_the_program_is_the_same_without_a_mask():
    norm = BatchNormalization().init(X)
    plain = str(jax.make_jaxpr(lambda x: norm.apply(x))(X))
    with elegy.sample_mask_context(None):
        assert str(jax.make_jaxpr(lambda x: norm.apply(x))(X)) == plain
    with elegy.sample_mask_context(MASKS[0]):
        assert str(jax.make_jaxpr(lambda x: norm.apply(x))(X)) != plain


def test_other_rows_than_those_of_the_mask_are_refused():
    x = samples(5, 3, 2)
    norm = elegy.nn.Sequential(lambda: [BatchNormalization()]).init(x)
    before = norm.get_parameters()
    with elegy.sample_mask_context(MASKS[0]):
        with pytest.raises(SampleMaskError, match=r"^sequential/layers/0: the input has 15 rows.*\n.*_context\(None\)"):
            norm(x.reshape(15, 2))
        assert_same(norm.get_parameters(), before)
        # Not over the batch: the mask does not matter.
        BatchNormalization(axis=1)(samples(4, 3, 2))
        with elegy.training_context(False):
            norm(x.reshape(15, 2))


def test_a_first_call_with_a_mask_initialises():
    mask, x = MASKS[0], samples(3, 2)
    with elegy.sample_mask_context(mask):
        norm = BatchNormalization()
        norm(padded(x, mask, 4))
    assert_close(norm.mean, jnp.array(0.01 * x.mean(axis=0)), 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ensemble(lambda: elegy.nn.Sequential(lambda: [Linear(2), BatchNormalization()]), 3),
        lambda: Stack(lambda: elegy.nn.Sequential(lambda: [Linear(3), BatchNormalization(), jnp.tanh]), 2),
        lambda: elegy.nn.Sequential(lambda: [Conv1D(2, 3), BatchNormalization(), InstanceNormalization()]),
        lambda: elegy.nn.SpectralNormalization(elegy.nn.Sequential(lambda: [Linear(2), BatchNormalization()])),
    ],
    ids=["ensemble", "stack", "convolution", "reparametrised"],
)
def test_modules_with_batch_normalisation_inside(make):
    mask, x = MASKS[1], samples(4, 6, 3)
    elegy.set_rng(1)
    net = make().init(x)
    short = net.copy()
    with elegy.sample_mask_context(mask):
        y = net(padded(x, mask, 5))
    short_y = short(x)
    assert_close(jnp.compress(mask, y, axis=y.shape.index(5)), short_y, 1e-5, 1e-5)
    assert_close(net.get_parameters(), short.get_parameters(), 1e-5, 1e-6)


@pytest.mark.parametrize("axes", [jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto], ids=str)
@pytest.mark.parametrize("mask_spec", [jax.P(), jax.P("data")], ids=["replicated", "sharded"])
def test_a_batch_on_a_mesh(axes, mask_spec):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axes,))
    mask, x = np.array([True, True, False, True, False, True, True, False]), samples(8, 3)
    norm = BatchNormalization().init(x)
    short = norm.copy()
    short_y = short(x[mask])

    @functools.partial(elegy.jit, modules=norm)
    def step(x, mask):
        with elegy.sample_mask_context(mask):
            return norm(x)

    place = lambda value, spec: jax.device_put(value, jax.NamedSharding(mesh, spec))  # noqa: E731
    with jax.set_mesh(mesh):
        norm.set_parameters(jax.tree.map(lambda value: place(value, jax.P()), norm.get_parameters()))
        y = step(place(x, jax.P("data")), place(mask, mask_spec))
    assert_close(jnp.asarray(np.asarray(y)[mask]), short_y)
    assert_close(jax.tree.map(np.asarray, norm.get_parameters()), jax.tree.map(np.asarray, short.get_parameters()))


# ---------------------------------------------------------------------------------------------------------------------
# Activity regularisation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=str)
def test_padded_rows_are_not_penalised(shape):
    mask, x = MASKS[0], samples(3, *shape)
    layer = ActivityRegularization(l1=0.5, l2=0.25)
    with elegy.hooks_context():
        y = layer(x)
        expected = losses()
    with elegy.hooks_context(), elegy.sample_mask_context(mask):
        assert layer(padded(x, mask, 3)).shape == (5, *shape)
        assert_close(losses(), expected)
    assert_same(y, jnp.asarray(x))


def test_a_penalty_without_a_batch_needs_no_mask():
    with elegy.hooks_context(), elegy.sample_mask_context(MASKS[0]):
        ActivityRegularization(l1=1.0)(jnp.float32(2))
        assert_close(losses(), {"activity_regularization_loss": jnp.float32(2)})


def test_a_penalty_of_other_rows_is_refused():
    with elegy.hooks_context(), elegy.sample_mask_context(MASKS[0]):
        with pytest.raises(SampleMaskError, match="activity_regularization: the input has 4 rows"):
            ActivityRegularization(l1=1.0)(jnp.ones([4, 2]))
