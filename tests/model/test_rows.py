"""Whether the padding of a batch can have an effect: of layers, losses, metrics, and of random programs, for which the
answer is compared with what happens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import elegy
from elegy.model import row_values
from elegy.model.row_rules import RULES
from elegy.model.row_values import Equation
from elegy.model.rows import Analysis, leaks, leaks_of
from tests.generic.descriptors import FAMILIES, Descriptor

N = 6
MASK = jax.ShapeDtypeStruct((N,), jnp.bool)
squared = elegy.losses.MeanSquaredError()


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def leak(function, *batch):
    """What the analysis says of `function(mask, *batch)`, where each array of the batch has padded rows."""
    jaxpr = jax.make_jaxpr(function)(MASK, *batch)
    padded = [False] + [True] * len(jax.tree.leaves(batch))
    return leaks(jaxpr, padded, 0, [True] * len(jaxpr.jaxpr.outvars))


def masked_mean(mask, values):
    """The mean of the values of real rows."""
    kept = jnp.where(mask.reshape(-1, *[1] * (values.ndim - 1)), values, jnp.zeros_like(values))
    return jnp.sum(kept) / jnp.sum(mask, dtype=values.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Layers, losses, metrics
# ---------------------------------------------------------------------------------------------------------------------

# Families of layers; of losses and metrics, which take a mask.
LAYERS = [
    descriptor
    for family in ("attention", "composition", "convolution", "dense", "normalization", "recurrence")
    for descriptor in FAMILIES[family]
]
MIXING = {
    "RMSNormalization, no parameters": "reduce_sum mixes",  # over axis 0, as it was asked to
    "LSTM, stateful": "has a row for each sample",  # its state
}
WITHOUT_A_BATCH = {"MultiHeadAttention, memory", "Conv2D, circular", "Linear, one axis"}


def by_name(descriptors):
    return pytest.mark.parametrize("descriptor", descriptors, ids=lambda descriptor: descriptor.name)


def says(line, expected):
    if expected is None:
        assert line is None
    else:
        assert line is not None and expected in line


def leak_of_layer(layer, *batch):
    def evaluate(mask, *batch):
        with elegy.sample_mask_context(mask):
            outputs = layer(*batch)
        return [squared(jnp.zeros_like(y), y, mask=mask) for y in jax.tree.leaves(outputs)]

    return leaks_of(evaluate, layer, spec(len(batch[0]), dtype=jnp.bool), *batch)


@by_name([descriptor for descriptor in LAYERS if descriptor.name not in WITHOUT_A_BATCH])
def test_rows_of_layers_stay_apart(descriptor: Descriptor, unchecked):
    line = leak_of_layer(descriptor.factory(jnp.float32), *map(jnp.asarray, descriptor.inputs))
    says(line, MIXING.get(descriptor.name))


# All pairs of samples count, and which are alike, which the loss does not ask the mask.
MIXING_LOSSES = {"NTXent": "mixes the rows"}
WITHOUT_A_MASK = {"Tversky", "Triplet", "Contrastive"}


@by_name([descriptor for descriptor in FAMILIES["losses"] if descriptor.name not in WITHOUT_A_MASK])
def test_masked_losses_are_clean(descriptor: Descriptor, unchecked):
    loss = descriptor.factory(jnp.float32)
    inputs = [jnp.asarray(value) for value in descriptor.inputs]
    line = leaks_of(lambda mask, *inputs: loss(*inputs, mask=mask), loss, spec(len(inputs[0]), dtype=jnp.bool), *inputs)
    says(line, MIXING_LOSSES.get(descriptor.name))


@pytest.mark.parametrize("is_weighted", [False, True], ids=["", "weighted"])
@by_name(FAMILIES["metrics"])
def test_masked_metrics_are_clean(descriptor: Descriptor, is_weighted, unchecked):
    metric = descriptor.factory(jnp.float32)
    *inputs, weights = (jnp.asarray(value) for value in descriptor.inputs)

    def evaluate(mask, weights, *inputs):
        return metric(*inputs, mask=mask, **({"sample_weight": weights} if is_weighted else {}))

    assert leaks_of(evaluate, metric, spec(len(inputs[0]), dtype=jnp.bool), weights, *inputs) is None


NETWORKS = {
    "perceptron": (lambda: elegy.nn.MLP([8, 3], dropout_rate=0.1), spec(N, 4)),
    "convolutions": (
        lambda: elegy.nn.Sequential(
            lambda: [
                elegy.nn.Conv2D(4, 3),
                elegy.nn.BatchNormalization(),
                jax.nn.relu,
                elegy.nn.MaxPool(2),
                elegy.nn.Conv2D(4, 3, stride=2),
                elegy.nn.GroupNormalization(2),
                jax.nn.gelu,
                elegy.nn.Flatten(),
                elegy.nn.Dropout(0.5),
                elegy.nn.Linear(3),
            ]
        ),
        spec(N, 8, 8, 3),
    ),
    "stack with batch normalisation": (
        lambda: elegy.nn.Stack(
            lambda: elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(), jnp.tanh]), 3
        ),
        spec(N, 4),
    ),
    "token model": (
        lambda: elegy.nn.Sequential(
            lambda: [
                elegy.nn.Embedding(11, 8),
                elegy.nn.PositionEmbedding(7),
                elegy.nn.TransformerEncoder(2, 2, dropout_rate=0.1),
                elegy.nn.Bidirectional(elegy.nn.GRU(4)),
                elegy.nn.Linear(3),
            ]
        ),
        spec(N, 5, dtype=jnp.int32),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_networks_stay_apart(name, unchecked):
    make, x = NETWORKS[name]
    assert leak_of_layer(make(), jnp.zeros(x.shape, x.dtype)) is None


def test_batch_normalisation_without_the_mask_mixes(unchecked):
    norm = elegy.nn.BatchNormalization()

    def evaluate(mask, x):
        return squared(jnp.zeros_like(x), norm(x), mask=mask)

    says(leaks_of(evaluate, norm, MASK, spec(N, 3)), "reduce_sum mixes the rows of the batch (test_rows.py:")
    with elegy.training_context(False):
        assert leaks_of(evaluate, norm, MASK, spec(N, 3)) is None


def test_the_update_of_a_running_value_counts(unchecked):
    class Largest(elegy.Module):
        def call(self, mask, x):
            largest = self.add_parameter("largest", [], initializer=jnp.zeros, trainable=False)
            kept = jnp.where(mask[:, None], x, jnp.full_like(x, -jnp.inf)) if self.masked else x
            self.update_parameter("largest", jnp.maximum(largest, jnp.max(kept)))
            return masked_mean(mask, x)

        def __init__(self, masked):
            self.masked = masked

    masked, unmasked = Largest(True), Largest(False)
    assert leaks_of(masked, masked, MASK, spec(N, 3)) is None
    says(leaks_of(unmasked, unmasked, MASK, spec(N, 3)), "reduce_max mixes")


def test_a_layer_that_refuses_the_mask_leaks(unchecked):
    norm = elegy.nn.BatchNormalization(name="norm")

    def evaluate(mask, x):
        with elegy.sample_mask_context(mask):
            return masked_mean(mask, norm(x.reshape(-1, 3)).reshape(x.shape))

    says(leaks_of(evaluate, norm, MASK, spec(N, 4, 3)), "norm: the input has 24 rows")


def test_a_batch_may_have_any_structure():
    def evaluate(mask, x, y):
        return masked_mean(mask, x["a"] + x["b"][0] - y)

    assert leaks_of(evaluate, None, MASK, {"a": spec(N), "b": [spec(N)]}, spec(N)) is None
    says(leaks_of(lambda mask, x: x["a"].sum(), None, MASK, {"a": spec(N), "b": [spec(N)]}), "reduce_sum mixes")


# ---------------------------------------------------------------------------------------------------------------------
# Functions that are clean, and functions that mix
# ---------------------------------------------------------------------------------------------------------------------


def bilinear(x):
    return jnp.einsum("nti,nuj->ntu", x, x)


@jax.custom_vjp
def custom(x):
    return jnp.sin(x)


custom.defvjp(lambda x: (custom(x), x), lambda x, g: (g * jnp.cos(x),))


APART = {
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=(1, 2), keepdims=True),
    "sort": lambda x: jnp.sort(x, axis=1),
    "argsort": lambda x: jnp.argsort(x, axis=-1).astype(jnp.float32),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "top k": lambda x: lax.top_k(x, 2)[0],
    "flip": lambda x: x[:, ::-1],
    "roll": lambda x: jnp.roll(x, 1, axis=1),
    "flatten": lambda x: x.reshape(N, -1),
    "merge and part": lambda x: jnp.tanh(x.reshape(N * 4, 3) @ jnp.ones([3, 2])).reshape(N, 4, 2),
    "merge behind another axis": lambda x: jnp.swapaxes(x, 0, 1).reshape(4 * N, 3).reshape(4, N, 3).swapaxes(0, 1),
    "split heads": lambda x: x.reshape(N, 2, 2, 3).transpose(0, 2, 1, 3).reshape(N * 2, 2, 3).reshape(N, 2, 6),
    "attention": lambda x: jax.nn.softmax(bilinear(x)) @ x,
    "stock vmap": lambda x: jax.vmap(lambda row: jnp.linalg.norm(row @ row.T))(x),
    "mapped convolution": lambda x: jax.vmap(lambda row: jnp.convolve(row[:, 0], jnp.ones(2), mode="same"))(x),
    "scan over time": lambda x: lax.scan(lambda c, t: (jnp.tanh(c + t), c), x[:, 0], x.swapaxes(0, 1))[1].swapaxes(
        0, 1
    ),
    "loop": lambda x: lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + x, x),
    "unknown length": lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 0.5), (0, x))[1],
    "condition": lambda x: lax.cond(jnp.ones([]) > 0, jnp.sin, jnp.cos, x),
    "remat": lambda x: jax.checkpoint(jnp.sin)(x),
    "custom derivative": lambda x: custom(x),
    "gradient of each": lambda x: jax.vmap(jax.grad(lambda row: jnp.sum(jnp.sin(row) ** 2)))(x),
    "take of a table": lambda x: jnp.arange(5.0)[jnp.clip(x.astype(jnp.int32), 0, 4)],
    "take along": lambda x: jnp.take_along_axis(x, jnp.argmax(x, axis=1, keepdims=True), axis=1),
    "one hot": lambda x: jax.nn.one_hot(jnp.argmax(x, axis=1), 5),
    "at": lambda x: x.at[:, 1].set(0.0),
    "stacked": lambda x: jnp.stack([x, -x], axis=1),
    "unstacked": lambda x: sum(jnp.unstack(x, axis=1)),
    "concatenated": lambda x: jnp.concatenate([x, 2 * x], axis=-1),
    "twice along the batch": lambda x: jnp.sin(jnp.concatenate([x, -x])).reshape(2, N, 4, 3).swapaxes(0, 1),
    "parts along the batch": lambda x: jnp.split(jnp.concatenate([x, -x]), 2)[1],
    "tiled": lambda x: jnp.tile(x, (2, 1, 1)).reshape(2, N, 4, 3)[0],
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))),
    "windows": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 1), (1, 2, 1), "VALID"),
    "updated part": lambda x: lax.dynamic_update_slice(jnp.zeros_like(x), x[:, :1], (0, 1, 0)),
    "part": lambda x: lax.dynamic_slice(x, (0, 1, 0), (N, 2, 3)),
    "cholesky": lambda x: jnp.linalg.cholesky(bilinear(x) + 99 * jnp.broadcast_to(jnp.eye(4), (N, 4, 4))),
    "fourier": lambda x: jnp.abs(jnp.fft.rfft(x, axis=1)),
    "dropout": lambda x: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x, 0.0),
    "searched": lambda x: jnp.searchsorted(jnp.arange(5.0), x).astype(jnp.float32),
    "clipped": lambda x: jnp.clip(x, 0.0, 1.0) ** 3,
    "barrier": lambda x: lax.optimization_barrier((x, x))[1],
}


@pytest.mark.parametrize("name", APART)
def test_what_is_done_to_each_row_is_clean_where_it_is_masked(name):
    assert leak(lambda mask, x: masked_mean(mask, APART[name](x)), spec(N, 4, 3)) is None
    says(leak(lambda mask, x: jnp.mean(APART[name](x)), spec(N, 4, 3)), "reduce_sum mixes the rows of the batch")
    says(leak(lambda mask, x: APART[name](x), spec(N, 4, 3)), "has a row for each sample")


def masked_softmax(mask, x):
    """A softmax over the samples."""
    scores = jnp.where(mask, x, -jnp.inf)
    return jnp.sum(jax.nn.softmax(scores) * jnp.where(mask, x, 0.0))


def masked_pairs(mask, x):
    """The mean distance of all pairs."""
    distances = jnp.abs(x[:, None] - x[None, :])
    pairs = mask[:, None] & mask[None, :]
    return jnp.sum(jnp.where(pairs, distances, 0.0)) / jnp.sum(pairs)


def masked_matrix(mask, x):
    weights = mask.astype(jnp.float32)
    return jnp.einsum("n,n,m,m->", weights, x, x, weights)


CLEAN = {
    "product with the mask": lambda mask, x: jnp.sum(mask.astype(x.dtype) * x),
    "product of vectors": lambda mask, x: mask.astype(x.dtype) @ x,
    "sum where": lambda mask, x: jnp.sum(x, where=mask),
    "mean where": lambda mask, x: jnp.mean(x, where=mask),
    "variance where": lambda mask, x: jnp.var(x, where=mask),
    "max where": lambda mask, x: jnp.max(x, where=mask, initial=-9.0),
    "complement": lambda mask, x: jnp.sum(jnp.where(~mask, 0.0, x)),
    "logical": lambda mask, x: jnp.any(mask & (x > 0)) | jnp.all((x > 0) | ~mask),
    "infinities": lambda mask, x: jnp.max(x + jnp.where(mask, 0.0, -jnp.inf)),
    "count": lambda mask, x: jnp.bincount(jnp.where(mask, x > 0, 2).astype(jnp.int32), length=3),
    "segments": lambda mask, x: jax.ops.segment_sum(jnp.where(mask, x, 0.0), (x > 0).astype(jnp.int32), 3),
    "softmax over samples": masked_softmax,
    "pairs": masked_pairs,
    "matrix": masked_matrix,
    "sorted": lambda mask, x: jnp.sort(jnp.where(mask, x, jnp.inf))[0],
    "scan": lambda mask, x: lax.scan(lambda c, t: (jnp.maximum(c, t), None), 0.0, jnp.where(mask, x, 0.0))[0],
    "normalised weights": lambda mask, x: jnp.sum(x * (mask / jnp.sum(mask))),
    "selected by the mask": lambda mask, x: jnp.sum(jnp.where(mask, x, jnp.arange(N, dtype=x.dtype))),
    "only the mask": lambda mask, x: jnp.cumsum(mask)[-1],
    "twice": lambda mask, x: jnp.sum(jnp.where(jnp.concatenate([mask, mask]), jnp.concatenate([x, -x]), 0.0)),
    "jit": jax.jit(lambda mask, x: jnp.sum(jax.jit(jnp.where)(mask, x, 0.0))),
}


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_masked_is_clean(name, default_promotion):
    assert leak(CLEAN[name], spec(N)) is None


def contrastive(x):
    return jax.nn.logsumexp(x @ x.T, axis=1)


MIXED = {
    "mean": lambda x: x - x.mean(0),
    "softmax": lambda x: jax.nn.softmax(x, axis=0),
    "sort": lambda x: jnp.sort(x, axis=0),
    "sort by the first": lambda x: x[jnp.argsort(x[:, 0])],
    "products of rows": lambda x: contrastive(x)[:, None],
    "roll": lambda x: jnp.roll(x, 1, axis=0),
    "flip": lambda x: x[::-1],
    "shuffle": lambda x: jax.random.permutation(jax.random.key(0), x),
    "scan": lambda x: lax.scan(lambda c, row: (c + row, c), jnp.zeros(3), x)[1],
    "cumsum": lambda x: jnp.cumsum(x, axis=0),
    "differences": lambda x: jnp.diff(x, axis=0, append=0),
    "largest": lambda x: x / jnp.max(x),
    "argmax": lambda x: x + jnp.argmax(x, axis=0).astype(x.dtype),
    "parts": lambda x: x.reshape(N // 2, 2, 3).mean(1, keepdims=True) + jnp.zeros([N // 2, 2, 3]),
    "other order": lambda x: x.reshape(3, N).T,
    "first row": lambda x: x + x[:1],
    "row by its number": lambda x: x + lax.dynamic_slice(x, (x[0, 0].astype(jnp.int32), 0), (1, 3)),
    "window": lambda x: lax.reduce_window(x, 0.0, lax.add, (3, 1), (1, 1), "SAME"),
    "loop until all are small": lambda x: lax.while_loop(lambda x: jnp.any(x > 1), lambda x: x / 2, x),
    "decision": lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    "loop with a mean": lambda x: lax.fori_loop(0, 3, lambda i, y: y - y.mean(0), x),
    "callback": lambda x: jax.pure_callback(lambda x: x, spec(N, 3), x),
    "put by values": lambda x: jnp.zeros_like(x).at[x[:, 0].astype(jnp.int32)].add(1.0),
    "table of rows": lambda x: x[jnp.arange(N)],
    "convolution over the batch": lambda x: jax.vmap(lambda column: jnp.convolve(column, jnp.ones(3), "same"), 1, 1)(x),
    "fourier": lambda x: jnp.abs(jnp.fft.fft(x, axis=0)),
    "inverse": lambda x: x @ jnp.linalg.inv(x[:3]),
    "infinite": lambda x: x / jnp.zeros_like(x),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_rows_is_found(name, default_promotion):
    def masked(mask, x):
        y = MIXED[name](x).reshape(N, -1)
        return jnp.sum(y * mask[:, None].astype(y.dtype))

    line = leak(masked, spec(N, 3))
    assert line is not None
    if name == "infinite":
        assert "infinite" in line


def test_a_product_with_the_mask_does_not_mend_what_is_infinite():
    says(leak(lambda mask, x: jnp.sum(x / mask.astype(x.dtype) * mask.astype(x.dtype)), spec(N)), "div makes infinite")
    assert leak(lambda mask, x: jnp.sum(jnp.where(mask, x / 3, 0)), spec(N)) is None


@pytest.mark.parametrize(
    "show",
    [
        lambda x: jax.debug.print("{}", x),
        lambda x: jax.debug.callback(lambda x: None, x),
        lambda x: jax.experimental.io_callback(lambda x: None, None, x),
        lambda x: lax.fori_loop(0, 2, lambda i, x: jax.debug.callback(lambda x: None, x) or x, x),
        lambda x: lax.cond(x[0] > 0, lambda: jax.debug.callback(lambda: None), lambda: None),
    ],
)
def test_what_the_host_sees_counts(show):
    def function(mask, x):
        show(x)
        return masked_mean(mask, x)

    assert leak(function, spec(N)) is not None
    assert leak(lambda mask, x: [show(jnp.where(mask, x, 0.0)), masked_mean(mask, x)][1], spec(N)) is None


def test_a_loop_may_show_what_is_clean_to_the_host():
    def function(mask, x):
        def step(total, row):
            jax.debug.callback(lambda total: None, total)
            return total + row, None

        return lax.scan(step, jnp.zeros([]), jnp.where(mask, x, 0.0))[0] + masked_mean(
            mask, lax.map(jnp.sin, x[None])[0]
        )

    assert leak(function, spec(N)) is None
    says(
        leak(lambda mask, x: lax.scan(lambda c, t: (jax.debug.print("{}", t), c)[::-1], 0, x[None])[0], spec(N)), "host"
    )


def test_complex_numbers():
    assert leak(lambda mask, x: jnp.sum(jnp.abs(jnp.where(mask, x, 0.0) + 1j)), spec(N, dtype=jnp.complex64)) is None
    assert leak(lambda mask, x: jnp.sum(mask.astype(jnp.complex64) * x).real, spec(N, dtype=jnp.complex64)) is None


def test_outputs_that_may_have_rows_are_not_asked():
    jaxpr = jax.make_jaxpr(lambda mask, x: (masked_mean(mask, x), 2 * x))(MASK, spec(N))
    assert leaks(jaxpr, [False, True], 0, [True, False]) is None
    assert leaks(jaxpr, [False, True], 0, [True, True]) == "output 1 has a row for each sample"


def test_inputs_that_are_no_batch_are_clean():
    jaxpr = jax.make_jaxpr(lambda w, x: (jnp.sum(w), x))(spec(3, 3), spec(N))
    assert leaks(jaxpr, [False, True], None, [True, False]) is None
    assert leaks(jaxpr, [False, False], None, [True, True]) is None


def test_arrays_of_other_sizes_are_no_batch():
    says(leak(lambda mask, x: masked_mean(mask, x[:N]), spec(N + 1)), "different numbers of rows: [(6,), (7,)]")
    says(leak(lambda mask, x: mask.sum(), spec()), "different numbers of rows")


def test_the_line_of_the_user_is_named():
    line = leak(lambda mask, x: jax.nn.softmax(x, axis=0).sum(), spec(N))
    number = test_the_line_of_the_user_is_named.__code__.co_firstlineno + 1
    assert line == f"reduce_max mixes the rows of the batch (test_rows.py:{number})"


def test_a_line_without_a_place_where_jax_has_another_traceback():
    class WithoutTraceback:
        source_info = None

    assert row_values._user_line(WithoutTraceback()) == ""


def test_an_operation_that_does_not_say_what_it_does_mixes():
    equation = jax.make_jaxpr(jnp.sin)(1.0).jaxpr.eqns[0]
    (value,) = RULES["call_hi_primitive"](Equation(Analysis(N, False), equation, [row_values.CLEAN]))
    says(value.mixed, "sin mixes the rows")


def test_each_layer_of_a_deep_network_is_looked_at_once(monkeypatch):
    seen = []
    run = Analysis._run
    monkeypatch.setattr(Analysis, "_run", lambda self, jaxpr, given: [seen.append(1), run(self, jaxpr, given)][1])
    block = jax.jit(lambda x: jnp.sin(x) * 2)

    def deep(mask, x):
        for _ in range(20):
            x = block(x)
        return masked_mean(mask, x)

    assert leak(deep, spec(N)) is None
    assert len(seen) <= 4


# ---------------------------------------------------------------------------------------------------------------------
# Random programs
# ---------------------------------------------------------------------------------------------------------------------

# Operations on arrays of two axes, of N and of C, and what else there is in the program. All give moderate values.
C = 4


def small(x):
    return jnp.tanh(x)


UNARY = [
    jnp.sin,
    small,
    jnp.abs,
    lambda x: jnp.flip(x, 0),
    lambda x: jnp.flip(x, 1),
    lambda x: jnp.roll(x, 1, 0),
    lambda x: jnp.roll(x, 1, 1),
    lambda x: jnp.sort(x, 0),
    lambda x: jnp.sort(x, 1),
    lambda x: small(jnp.cumsum(x, 0)),
    lambda x: small(jnp.cumsum(x, 1)),
    lambda x: x - x.mean(0, keepdims=True),
    lambda x: x - x.mean(1, keepdims=True),
    lambda x: jax.nn.softmax(x, 0),
    lambda x: jax.nn.softmax(x, 1),
    lambda x: jnp.broadcast_to(x.max(0, keepdims=True), x.shape),
    lambda x: jnp.broadcast_to(x.max(1, keepdims=True), x.shape),
    lambda x: x.reshape(C, N).T,
    lambda x: x.reshape(N * C, 1).reshape(N, C),
    lambda x: x.T.reshape(N, C),
    lambda x: x.T.reshape(C * N).reshape(C, N).T,
    lambda x: x.reshape(N // 2, 2, C).swapaxes(0, 1).reshape(N, C),
    lambda x: jnp.concatenate([x[1:], x[:1]]),
    lambda x: jnp.concatenate([x[:, 1:], x[:, :1]], 1),
    lambda x: jnp.concatenate([x, -x]).reshape(2, N, C)[1],
    lambda x: jnp.concatenate([x, -x]).reshape(N, 2, C)[:, 1],
    lambda x: jnp.tile(x, (2, 1))[N:],
    lambda x: jnp.tile(x, (2, 1)).reshape(2, N, C).sum(0),
    lambda x: jnp.stack([x, x + 1], 1)[:, 0],
    lambda x: jnp.repeat(x, 2, axis=0).reshape(N, 2, C).mean(1),
    lambda x: jnp.pad(x, ((0, 0), (1, 0)))[:, :C],
    lambda x: jnp.pad(x, ((1, 0), (0, 0)))[:N],
    lambda x: small(jnp.matmul(x, x.T) @ x),
    lambda x: small(x @ jnp.ones([C, C])),
    lambda x: small(jnp.einsum("ni,nj->ij", x, x)[0] + x),
    lambda x: lax.scan(lambda c, row: (small(c + row), c), jnp.zeros(C), x)[1],
    lambda x: lax.scan(lambda c, column: (small(c + column), c), jnp.zeros(N), x.T)[1].T,
    lambda x: lax.fori_loop(0, 2, lambda i, y: small(y + x), x),
    lambda x: lax.fori_loop(0, 2, lambda i, y: jnp.roll(y, 1, 0) * 0.5, x),
    lambda x: lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, small(c[1]) + c[1].mean(1, keepdims=True)), (0, x)
    )[1],
    lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    lambda x: jax.vmap(lambda row: jnp.sort(row) * row.sum())(x),
    lambda x: jax.vmap(lambda column: jnp.sort(column), 1, 1)(x),
    lambda x: x[jnp.argsort(x[:, 0])],
    lambda x: x[jnp.clip((3 * x[:, 0]).astype(jnp.int32), 0, N - 1)],
    lambda x: jnp.take_along_axis(x, jnp.argmax(x, axis=1, keepdims=True), axis=1) + x,
    lambda x: jnp.take_along_axis(x, jnp.argmax(x, axis=0, keepdims=True), axis=0) + x,
    lambda x: jnp.linspace(-1, 1, 9)[jnp.clip((3 * x).astype(jnp.int32), 0, 8)],
    lambda x: x.at[:, 1].set(x[:, 0]),
    lambda x: x.at[1].set(x[0]),
    lambda x: x.at[jnp.arange(N), 0].add(1.0),
    lambda x: small(jnp.zeros_like(x).at[jnp.clip((3 * x[:, 0]).astype(jnp.int32), 0, N - 1)].add(x)),
    lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME"),
    lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 1), (1, 1), "SAME"),
    lambda x: lax.dynamic_update_slice(x, x[:, :1], (0, 1)),
    lambda x: lax.dynamic_update_slice(x, x[:1], (1, 0)),
    lambda x: jax.checkpoint(small)(x),
    lambda x: jax.nn.relu(x),
    lambda x: 1 / (1 + jnp.square(x)),
    lambda x: small(lax.conv(x[:, :, None].transpose(0, 2, 1), jnp.ones([1, 1, 3]), (1,), "SAME")[:, 0]),
    lambda x: small(lax.conv(x.T[:, None], jnp.ones([1, 1, 3]), (1,), "SAME")[:, 0].T),
]
BINARY = [
    jnp.add,
    jnp.multiply,
    jnp.maximum,
    jnp.subtract,
    lambda x, y: jnp.where(x > 0, x, y),
    lambda x, y: jnp.where(y[:1] > 0, x, y),
    lambda x, y: small(x @ y.T @ y),
    lambda x, y: small(x @ (x.T @ y)),
    lambda x, y: small(jnp.einsum("nc,nd->nd", x, y)),
    lambda x, y: jnp.concatenate([x, y]).reshape(2, N, C).mean(0),
    lambda x, y: jnp.concatenate([x, y], 1)[:, 2 : C + 2],
    lambda x, y: lax.dynamic_update_slice(x, y[:, :2], (0, 1)),
    lambda x, y: lax.cond(jnp.sum(y) > 0, lambda: x, lambda: y),
    lambda x, y: jnp.take_along_axis(x, jnp.argsort(y, axis=1), axis=1),
    lambda x, y: lax.sort((x, y), dimension=1)[1],
    lambda x, y: lax.sort((x, y), dimension=0)[1],
    lambda x, y: small(jnp.zeros_like(x).at[jnp.clip((3 * x[:, 0]).astype(jnp.int32), 0, N - 1)].add(y)),
    lambda x, y: jax.ops.segment_sum(y, jnp.clip((3 * x[:, 0]).astype(jnp.int32), 0, 3), N) * 0.3,
]
WITH_MASK = [
    lambda mask, x: jnp.where(mask[:, None], x, 0.0),
    lambda mask, x: jnp.where(mask[:, None], 0.5, x),
    lambda mask, x: jnp.where(~mask[:, None], 0.5, x),
    lambda mask, x: jnp.where(mask[:, None], x, jnp.arange(float(C))),
    lambda mask, x: x * mask[:, None].astype(x.dtype),
    lambda mask, x: x * (1 - mask[:, None].astype(x.dtype)),
    lambda mask, x: x + mask[:, None].astype(x.dtype),
    lambda mask, x: jnp.maximum(x, jnp.where(mask, 0.0, jnp.inf)[:, None]) * mask[:, None],
    lambda mask, x: jnp.broadcast_to(jnp.max(x, axis=0, where=mask[:, None], initial=-9.0), x.shape),
    lambda mask, x: jnp.broadcast_to(jnp.sum(x, axis=0, where=mask[:, None]), x.shape) * 0.2,
    lambda mask, x: small(mask.astype(x.dtype) @ x + x),
    lambda mask, x: jnp.where(jnp.cumsum(mask)[:, None] > 2, x, 0.0),
    lambda mask, x: jax.nn.softmax(jnp.where(mask[:, None], x, -jnp.inf), axis=0),
    lambda mask, x: jnp.where(mask[:, None] & (x > 0), x, 0.0),
    lambda mask, x: jnp.where(mask[:, None] | (x > 0), x, 0.0),
    lambda mask, x: jnp.where(mask[None, :C], x, 0.0),
    lambda mask, x: jnp.where(jnp.roll(mask, 1)[:, None], x, 0.0),
]
ENDS = [
    lambda mask, x: masked_mean(mask, x),
    lambda mask, x: jnp.sum(x * mask[:, None].astype(x.dtype)),
    lambda mask, x: jnp.sum(x),
    lambda mask, x: x[0],
    lambda mask, x: jnp.max(jnp.where(mask[:, None], x, -jnp.inf), axis=0),
    lambda mask, x: jnp.argmax(jnp.where(mask[:, None], x, -jnp.inf), axis=0),
    lambda mask, x: jnp.where(mask[:, None], x, 0.0),
    lambda mask, x: x,
    lambda mask, x: mask.astype(x.dtype) @ x,
    lambda mask, x: jnp.max(jnp.abs(x), axis=1, where=mask[:, None], initial=0.0).sum(),
]


def program(seed):
    """A random program of a few operations, and a random end."""
    random = np.random.default_rng(seed)

    def run(mask, x, y, w):
        values = [x, y, jnp.broadcast_to(w, x.shape)]
        for _ in range(random.integers(1, 6)):
            kind = random.integers(4)
            if kind == 0:
                function, arguments = WITH_MASK, [mask, values[random.integers(len(values))]]
            elif kind == 1:
                function, arguments = BINARY, [values[random.integers(len(values))] for _ in range(2)]
            else:
                function, arguments = UNARY, [values[random.integers(len(values))]]
            values.append(function[random.integers(len(function))](*arguments))
        return ENDS[random.integers(len(ENDS))](mask, values[-1])

    return run


MASKS = [np.array([True] * 4 + [False] * 2), np.array([False, True, True, False, True, True])]


def outcome(seed):
    """What the analysis says of a program, and whether garbage changes what it computes."""
    random = np.random.default_rng(seed)
    w = random.normal(size=C).astype(np.float32)
    inputs = [random.normal(size=(N, C)).astype(np.float32) for _ in range(2)]
    traced = jax.jit(program(seed)).trace(MASKS[0], *inputs, w)
    line = leaks(traced.jaxpr, [False, True, True, False], 0, [True] * len(traced.jaxpr.jaxpr.outvars))
    if line is not None:
        return line, None
    compiled = traced.lower().compile()
    changes = False
    for mask in MASKS:
        before = [np.asarray(part) for part in jax.tree.leaves(compiled(mask, *inputs, w))]
        for scale in (1, -3, 30):
            others = [value.copy() for value in inputs]
            for value in others:
                value[~mask] = scale * random.normal(size=value[~mask].shape)
            after = [np.asarray(part) for part in jax.tree.leaves(compiled(mask, *others, w))]
            changes |= not all(map(functools.partial(np.array_equal, equal_nan=True), before, after))
    return line, changes


PROGRAMS = 400


@pytest.mark.parametrize("part", range(4))
def test_what_the_analysis_calls_clean_does_not_depend_on_padded_rows(part, default_promotion):
    found = [outcome(seed) for seed in range(part, PROGRAMS // 2, 4)]
    assert [number for number, (_, changes) in enumerate(found) if changes] == []
    clean = sum(line is None for line, _ in found)
    assert len(found) / 20 < clean < len(found)


def forgets_rows(equation):
    return equation.everywhere(row_values.CLEAN)


def keeps_places(equation):
    return equation.everywhere(equation.values[0])


BROKEN = {
    "reduce_sum": forgets_rows,
    "reduce_max": forgets_rows,
    "dot_general": forgets_rows,
    "sort": keeps_places,
    "cumsum": keeps_places,
    "rev": keeps_places,
    "gather": forgets_rows,
    "scatter-add": forgets_rows,
    "slice": forgets_rows,
    "transpose": keeps_places,
    "reshape": keeps_places,
    "select_n": forgets_rows,
    "add": keeps_places,
    "concatenate": forgets_rows,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_caught_by_random_programs(name, monkeypatch, default_promotion):
    monkeypatch.setitem(RULES, name, BROKEN[name])
    assert any(shows_a_broken_rule(seed) for seed in range(PROGRAMS))


def shows_a_broken_rule(seed):
    """Whether a program shows that a rule is broken: a place that an array does not have is one way."""
    try:
        return outcome(seed)[1]
    except IndexError:
        return True
