"""Values and gradients of recurrent layers are those of Flax, Keras and Equinox with the same weights; what holds of
every layer is in tests/generic/test_every_layer.py."""

import functools
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import elegy
from elegy.nn import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    ConvLSTMCell,
    GRUCell,
    Linear,
    LSTMCell,
    RecurrentCell,
    SimpleRNN,
    SimpleRNNCell,
)
from tests.helpers import assert_close, assert_same, case_name, concrete

Normal = elegy.initializers.RandomNormal(0.5)
RANDOM = {"w_init": Normal, "recurrent_init": Normal, "b_init": Normal}
LENGTHS = np.array([6, 3, 1, 2])


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = floats(4, 6, 3)


def weights(cell: Any) -> dict[str, Any]:
    return cell.get_parameters(trainable=True)


def replaced(cell: Any, values: dict[str, Any]) -> Any:
    """A copy of a cell with other weights, which may be traced."""
    return eqx.tree_at(lambda cell: [getattr(cell, name) for name in values], cell, list(values.values()))


def layer_with(layer: Any, values: dict[str, Any]) -> Any:
    return eqx.tree_at(lambda layer: layer.cell, layer, replaced(layer.cell, values))


def assert_alike(ours: Any, theirs: Any, *arguments: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Equal outputs, and equal gradients of something that depends on all of them, for all arguments."""
    results = []
    for function in (ours, theirs):

        def loss(arguments: Any, function: Any = function) -> Any:
            outputs = function(*arguments)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)), jax.tree.leaves(outputs)

        (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
        results.append((outputs, gradients))
    assert_close(*results, rtol=rtol, atol=atol)


def by_hand(cell: Any, xs: Any, state: Any = None) -> tuple[Any, Any]:
    """A Python loop over the steps of one batch `[batch, time, ...]`."""
    state = cell.initial_state(xs.shape[:1]) if state is None else state
    ys = []
    for t in range(xs.shape[1]):
        state, y = cell(state, xs[:, t])
        ys.append(y)
    return jnp.stack(ys, axis=1), state


# ---------------------------------------------------------------------------------------------------------------------
# Flax
# ---------------------------------------------------------------------------------------------------------------------


def flax_cell(kind: str) -> Any:
    classes = {
        "simple": nnx.SimpleCell,
        "lstm": nnx.LSTMCell,
        "optimized": nnx.OptimizedLSTMCell,
        "gru": nnx.GRUCell,
    }
    return classes[kind](3, 5, rngs=nnx.Rngs(0))


def fill(cell: Any, kind: str, values: dict[str, Any]) -> None:
    """Gives a cell of Flax our weights."""
    w, u, b = values["w"], values["recurrent_w"], values["b"]
    if kind == "lstm":
        for i, gate in enumerate(("i", "f", "g", "o")):
            part = slice(5 * i, 5 * (i + 1))
            getattr(cell, {"f": "if_"}.get(gate, f"i{gate}")).kernel[...] = w[:, part]
            getattr(cell, f"h{gate}").kernel[...] = u[:, part]
            getattr(cell, f"h{gate}").bias[...] = b[part]
        return
    cell.dense_i.kernel[...] = w
    cell.dense_h.kernel[...] = u
    (cell.dense_h if kind == "optimized" else cell.dense_i).bias[...] = b


def swapped(kind: str, state: Any) -> Any:
    """Flax has the state of an LSTM as (c, h)."""
    return state[::-1] if kind in ("lstm", "optimized") else state


OURS = {"simple": SimpleRNN, "lstm": LSTM, "optimized": LSTM, "gru": GRU}


def our_layer(kind: str, **options: Any) -> Any:
    layer = OURS[kind](5, **RANDOM, **options).init(X, rng=1)
    if kind == "gru":  # Flax NNX has no bias inside of the reset gate
        layer.cell.set_parameters({"recurrent_b": jnp.zeros(5)})
    return layer


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize(
    ("kind", "lengths", "reverse"),
    [
        ("simple", None, True),
        ("lstm", LENGTHS, True),
        ("optimized", LENGTHS, False),
        ("gru", LENGTHS, True),
    ],
    ids=case_name,
)
def test_layers_of_flax(kind: str, lengths: Any, reverse: bool) -> None:
    layer = our_layer(kind, return_state=True, reverse=reverse)
    graph, state = nnx.split(nnx.RNN(flax_cell(kind), return_carry=True, reverse=reverse, keep_order=True))
    valid = np.ones([4, 6], bool) if lengths is None else np.arange(6) < lengths[:, None]
    start = jax.tree.map(lambda zeros: floats(*zeros.shape, seed=zeros.size), layer.cell.initial_state([4]))

    def ours(values: Any, x: Any, start: Any) -> Any:
        return layer_with(layer, values)(x, lengths=lengths, initial_state=start)

    def theirs(values: Any, x: Any, start: Any) -> Any:
        model = nnx.merge(graph, state, copy=True)
        fill(model.cell, kind, values)
        carry, y = model(x, initial_carry=swapped(kind, start), seq_lengths=lengths)
        return jnp.where(valid[..., None], y, 0), swapped(kind, carry)

    values = {name: value for name, value in weights(layer.cell).items() if name != "recurrent_b"}
    assert_alike(ours, theirs, values, X, start)


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion")
def test_bidirectional_of_flax() -> None:
    layer = Bidirectional(our_layer("gru"), our_layer("gru", reverse=True))
    layer.backward.cell.set_parameters({"w": -layer.forward.cell.w})
    model = nnx.Bidirectional(nnx.RNN(flax_cell("gru")), nnx.RNN(flax_cell("gru")))
    fill(model.forward_rnn.cell, "gru", weights(layer.forward.cell))
    fill(model.backward_rnn.cell, "gru", weights(layer.backward.cell))
    graph, state = nnx.split(model)
    valid = (np.arange(6) < LENGTHS[:, None])[..., None]

    def theirs(x: Any) -> Any:
        return jnp.where(valid, nnx.merge(graph, state, copy=True)(x, seq_lengths=LENGTHS), 0)

    assert_alike(lambda x: layer(x, lengths=LENGTHS), theirs, X)


# ---------------------------------------------------------------------------------------------------------------------
# Keras
# ---------------------------------------------------------------------------------------------------------------------


def keras_weights(kind: str, values: dict[str, Any]) -> list[Any]:
    w, u, b = values["w"], values["recurrent_w"], values.get("b")
    if kind != "gru":
        return [w, u] if b is None else [w, u, b]

    def reordered(value: Any) -> Any:
        r, z, n = jnp.split(value, 3, axis=-1)
        return jnp.concatenate([z, r, n], axis=-1)

    if b is None:
        return [reordered(w), reordered(u)]
    second = jnp.concatenate([jnp.zeros(10), values["recurrent_b"]])
    return [reordered(w), reordered(u), jnp.stack([reordered(b), second])]


MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize(
    ("kind", "options", "masked"),
    [
        ("simple", {}, True),
        ("simple", {"with_bias": False, "activation": jax.nn.relu, "reverse": True}, False),
        ("lstm", {"reverse": True}, True),
        ("lstm", {"with_bias": False, "activation": jax.nn.softplus, "gate_activation": jax.nn.tanh}, False),
        ("gru", {"return_sequences": False}, True),
        ("gru", {"with_bias": False, "activation": jax.nn.relu, "gate_activation": jax.nn.softplus}, True),
    ],
    ids=case_name,
)
def test_layers_of_keras(kind: str, options: dict[str, Any], masked: bool) -> None:
    layer = OURS[kind](5, **RANDOM, return_state=True, **options).init(X, rng=1)
    mask = MASK if masked else None
    reverse, sequences = options.get("reverse", False), options.get("return_sequences", True)
    # Told to put zeros out where nothing is, Keras does so for the last output too.
    theirs_options: dict[str, Any] = {"use_bias": options.get("with_bias", True), "zero_output_for_mask": sequences}
    theirs_options |= {"activation": options.get("activation", jnp.tanh)}
    if kind != "simple":
        theirs_options |= {"recurrent_activation": options.get("gate_activation", jax.nn.sigmoid)}
    cls = {"simple": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind]
    model = cls(5, return_sequences=sequences, return_state=True, go_backwards=reverse, **theirs_options)
    model.build(X.shape)
    others = [variable.value for variable in model.non_trainable_variables]

    def ours(values: Any, x: Any) -> Any:
        return layer_with(layer, values)(x, mask=mask)

    def theirs(values: Any, x: Any) -> Any:
        outputs, _ = model.stateless_call(keras_weights(kind, values), others, x, mask=mask)
        y, *state = outputs
        return y[:, ::-1] if reverse and sequences else y, state

    assert_alike(ours, theirs, weights(layer.cell), X)


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize(
    ("shape", "kernel_shape", "options", "theirs_options"),
    [
        ((2, 3, 5, 4, 2), [3, 2], {}, {}),
        (
            (2, 3, 6, 5, 2),
            3,
            {"stride": 2, "padding": "valid", "with_bias": False},
            {"strides": 2, "padding": "valid", "use_bias": False},
        ),
        ((2, 3, 5, 2), [3], {"rate": [2], "activation": jax.nn.relu}, {"dilation_rate": 2, "activation": "relu"}),
        (
            (1, 2, 3, 4, 3, 2),
            2,
            {"num_spatial_dims": 3, "gate_activation": jax.nn.softplus},
            {"recurrent_activation": "softplus"},
        ),
    ],
    ids=case_name,
)
def test_convolutional_cells_of_keras(shape: Any, kernel_shape: Any, options: Any, theirs_options: Any) -> None:
    x, n = floats(*shape), len(shape) - 3
    cell = ConvLSTMCell(3, kernel_shape, **RANDOM, **options)
    layer = RNN(cell, return_state=True).init(x, rng=1)
    assert cell.num_spatial_dims == n
    cls = {1: keras.layers.ConvLSTM1D, 2: keras.layers.ConvLSTM2D, 3: keras.layers.ConvLSTM3D}[n]
    options = {"padding": "same", "recurrent_activation": "sigmoid"} | theirs_options
    model = cls(3, kernel_shape, return_sequences=True, return_state=True, **options)
    model.build(x.shape)
    others = [variable.value for variable in model.non_trainable_variables]

    def theirs(values: Any, x: Any) -> Any:
        (y, *state), _ = model.stateless_call(keras_weights("conv", values), others, x)
        return y, state

    assert_alike(lambda values, x: layer_with(layer, values)(x), theirs, weights(cell), x)


# ---------------------------------------------------------------------------------------------------------------------
# Equinox
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cells_of_equinox(kind: str) -> None:
    x = X[:, 0]
    cell: Any = {"lstm": LSTMCell, "gru": GRUCell}[kind](5, **RANDOM)
    start = jax.tree.map(lambda zeros: floats(*zeros.shape, seed=7), cell.initial_state([4]))
    cell.init(start, x, rng=1)
    cls = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[kind]
    model = cls(3, 5, key=jax.random.key(0))

    def ours(values: Any, start: Any, x: Any) -> Any:
        return replaced(cell, values)(start, x)[0]

    def theirs(values: Any, start: Any, x: Any) -> Any:
        names = {"w": "weight_ih", "recurrent_w": "weight_hh", "b": "bias", "recurrent_b": "bias_n"}
        filled = eqx.tree_at(
            lambda model: [getattr(model, names[name]) for name in values],
            model,
            [value.T for value in values.values()],
        )
        return jax.vmap(filled)(x, start)

    assert_alike(ours, theirs, weights(cell), start, x)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes and lengths
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_are_those_of_separate_sequences(reverse: bool) -> None:
    layer = LSTM(5, return_state=True, reverse=reverse).init(X, rng=0)
    last_layer = eqx.tree_at(lambda layer: layer.cell, LSTM(5, return_sequences=False, reverse=reverse), layer.cell)
    lengths = np.array([6, 0, 1, 4])
    start = jax.tree.map(lambda zeros: floats(*zeros.shape, seed=9), layer.cell.initial_state([4]))
    poison = np.where(np.arange(6)[:, None] < lengths[:, None, None], X, np.nan)
    y, state = layer(poison, lengths=lengths, initial_state=start)
    last = last_layer(poison, lengths=lengths, initial_state=start)
    for i, length in enumerate(lengths):
        own_start = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], start)
        own = X[i : i + 1, :length]
        if length == 0:
            expected, end = jnp.zeros([1, 0, 5]), own_start
        else:
            expected, end = by_hand(layer.cell, own[:, ::-1] if reverse else own, own_start)
        expected_last = expected[:, -1] if length else jnp.zeros([1, 5])
        expected = expected[:, ::-1] if reverse else expected
        np.testing.assert_allclose(y[i, :length], expected[0], atol=1e-6)
        assert (y[i, length:] == 0).all()
        np.testing.assert_allclose(last[i], expected_last[0], atol=1e-6)
        assert_close([leaf[i : i + 1] for leaf in state], list(end))


def test_what_padding_holds_leaves_no_trace_in_gradients() -> None:
    layer = GRU(5, return_sequences=False).init(X, rng=0)
    valid = (np.arange(6) < LENGTHS[:, None])[..., None]

    @jax.jit
    @jax.grad
    def gradient(arguments: Any) -> Any:
        layer, x = arguments
        return jnp.sum(layer(x, lengths=LENGTHS) ** 2)

    clean = gradient((layer, jnp.where(valid, X, 0)))
    poisoned = gradient((layer, jnp.where(valid, X, jnp.inf)))
    assert_same(jax.tree.leaves(poisoned), jax.tree.leaves(clean))
    assert (jnp.where(valid, 0, poisoned[1]) == 0).all()


def test_a_mask_and_lengths_say_the_same() -> None:
    layer = GRU(5, return_state=True).init(X, rng=0)
    by_lengths = layer(X, lengths=LENGTHS)
    assert_same(layer(X, mask=np.arange(6) < LENGTHS[:, None]), by_lengths)
    assert_same(layer(X, lengths=np.array([60, 3, 1, 2])), by_lengths)
    assert_same(layer(X, lengths=jnp.array([6, 3, 1, 2], jnp.uint8)), by_lengths)


def test_any_number_of_batch_axes() -> None:
    layer = GRU(5, return_state=True).init(X, rng=0)
    y, state = layer(X, lengths=LENGTHS)
    square = layer(X.reshape(2, 2, 6, 3), lengths=LENGTHS.reshape(2, 2))
    assert_close(square, (y.reshape(2, 2, 6, 5), state.reshape(2, 2, 5)))
    single = layer(X[1], lengths=3)
    assert_close(single, (y[1], state[1]))
    last = eqx.tree_at(lambda layer: layer.cell, GRU(5, return_sequences=False), layer.cell)
    np.testing.assert_allclose(last(X[1], lengths=3), y[1, 2], atol=1e-6)
    np.testing.assert_allclose(
        last(X.reshape(2, 2, 6, 3), lengths=LENGTHS.reshape(2, 2)).reshape(4, 5), state, atol=1e-6
    )


def test_images_have_any_number_of_batch_axes_and_lengths() -> None:
    x = floats(4, 3, 4, 3, 2)
    layer = RNN(ConvLSTMCell(2, 3), return_sequences=False, return_state=True).init(x, rng=0)
    lengths = np.array([3, 0, 1, 2])
    y, (h, c) = layer(x, lengths=lengths)
    assert_same(y, jnp.where((lengths > 0)[:, None, None, None], h, 0))
    square = layer(x.reshape(2, 2, 3, 4, 3, 2), lengths=lengths.reshape(2, 2))
    assert_close(jax.tree.map(lambda leaf: leaf.reshape(4, 4, 3, 2), square), (y, (h, c)))
    np.testing.assert_allclose(layer(x[3], lengths=2)[0], y[3], atol=1e-6)
    (h, c), y = layer.cell(layer.cell.initial_state([4, 3]), x[0, 0])
    assert h.shape == c.shape == y.shape == (4, 3, 2)


@pytest.mark.parametrize("lengths", [None, np.zeros(4, int)])
def test_no_steps(lengths: Any) -> None:
    start = floats(4, 5)
    layer = GRU(5, return_state=True)
    y, state = layer(X[:, :0], lengths=lengths, initial_state=start)
    assert y.shape == (4, 0, 5)
    np.testing.assert_array_equal(state, start)
    last = GRU(5, return_sequences=False)
    assert_same(last(X[:, :0], lengths=lengths), jnp.zeros([4, 5]))
    assert last.cell.w.shape == (3, 15)


def test_no_sequences() -> None:
    layer = LSTM(5, return_state=True)
    y, state = layer(X[:0], lengths=LENGTHS[:0])
    assert y.shape == (0, 6, 5) and [leaf.shape for leaf in state] == [(0, 5)] * 2


def test_one_step_is_a_step_of_the_cell() -> None:
    layer = LSTM(5, return_state=True).init(X, rng=0)
    y, state = layer(X[:, :1])
    expected_state, expected = layer.cell(layer.cell.initial_state([4]), X[:, 0])
    assert_close((y[:, 0], state), (expected, expected_state))


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def test_default_initialisation() -> None:
    layer = LSTM(5).init(floats(1, 1, 400))
    w, u, b = layer.cell.w, layer.cell.recurrent_w, layer.cell.b
    np.testing.assert_allclose(jnp.std(w), 1 / 20, rtol=0.03)
    for gate in jnp.split(u, 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(5), atol=1e-5)
    assert len(np.unique(np.round(u[0], 6))) == 20
    np.testing.assert_array_equal(b, np.repeat([0, 1, 0, 0], 5))
    gru = GRU(5).init(X)
    assert (gru.cell.b == 0).all() and (gru.cell.recurrent_b == 0).all()
    conv = ConvLSTMCell(2, 3, dtype=jnp.bfloat16)
    conv(conv.initial_state([1, 4, 4]), jnp.ones([1, 4, 4, 3]))
    gate = conv.recurrent_w[..., 2:4].astype(jnp.float32).reshape(18, 2)
    np.testing.assert_allclose(gate.T @ gate, np.eye(2), atol=0.02)
    np.testing.assert_array_equal(conv.b, np.repeat([0, 1, 0, 0], 2))


@pytest.mark.parametrize("layer", [SimpleRNN, LSTM, GRU])
def test_a_layer_gives_its_arguments_to_the_cell(layer: Any) -> None:
    inits = {"w_init": jnp.ones, "recurrent_init": elegy.initializers.Constant(2), "b_init": jnp.ones}
    rnn = layer(5, **inits, dtype=jnp.float16, name="encoder", unroll=3, reverse=True, stateful=True)
    cell = rnn.init(X).cell
    assert (cell.w == 1).all() and (cell.recurrent_w == 2).all() and (cell.b == 1).all()
    assert cell.w.dtype == cell.recurrent_w.dtype == cell.b.dtype == rnn(X).dtype == jnp.float16
    assert rnn.name == "encoder" and rnn.reverse and rnn.stateful and rnn.unroll == 3
    assert set(weights(layer(5, with_bias=False).init(X).cell)) == {"w", "recurrent_w"}
    if layer is GRU:
        assert (cell.recurrent_b == 1).all()
    functions = {"activation": jax.nn.relu} | ({} if layer is SimpleRNN else {"gate_activation": jax.nn.relu})
    cell = layer(5, **functions).cell
    assert all(getattr(cell, name) is jax.nn.relu for name in functions)


@pytest.mark.parametrize("cell", [SimpleRNNCell, LSTMCell, GRUCell, functools.partial(ConvLSTMCell, kernel_shape=3)])
def test_no_initializer_is_the_default_one(cell: Any) -> None:
    given = cell(5, w_init=None, recurrent_init=None, b_init=None)
    default = cell(5)
    for name in ("w_init", "recurrent_init", "b_init"):
        assert getattr(given, name) == getattr(default, name)
    named = cell(5, name="memory", dtype=jnp.bfloat16)
    assert named.name == "memory"
    assert {leaf.dtype for leaf in jax.tree.leaves(named.initial_state([2, 4, 4]))} == {jnp.dtype(jnp.bfloat16)}


def test_unrolled_loops() -> None:
    layer = GRU(5).init(X, rng=0)
    expected = layer(X)
    for unroll in (4, True):
        unrolled = eqx.tree_at(lambda layer: layer.cell, GRU(5, unroll=unroll), layer.cell)
        np.testing.assert_allclose(unrolled(X), expected, atol=1e-6)
    assert "unroll=4" in str(jax.make_jaxpr(GRU(5, unroll=4).init(X))(X))


def test_the_input_is_projected_before_the_loop() -> None:
    """The body of the loop has one product, with the state."""
    for layer in (SimpleRNN(5), LSTM(5), GRU(5)):
        jaxpr = jax.make_jaxpr(layer.init(X))(X)
        (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        assert str(scan.params["jaxpr"]).count("dot_general") == 1
        assert str(jaxpr).count("dot_general") == 2


def test_initial_state() -> None:
    layer = LSTM(5, return_state=True).init(X, rng=0)
    _, start = layer(X[:, :2])
    y, state = layer(X)
    rest, end = layer(X[:, 2:], initial_state=start)
    assert_close((rest, end), (y[:, 2:], state))
    double = [np.asarray(leaf, np.float64) for leaf in start]
    assert_same(layer(X[:, 2:], initial_state=tuple(double))[0], rest)


# ---------------------------------------------------------------------------------------------------------------------
# Cells of users
# ---------------------------------------------------------------------------------------------------------------------


class Everything(RecurrentCell):
    """A cell with layers, state, draws and losses; its own state is a dict of which one array is an integer."""

    def initial_state(self, batch_shape: Any) -> Any:
        return {"hidden": jnp.zeros([*batch_shape, 4]), "steps": jnp.zeros(batch_shape, jnp.int32)}

    def call(self, state: Any, x: Any) -> Any:
        hidden = Linear(4)(jnp.concatenate([state["hidden"], x], axis=-1))
        hidden = elegy.nn.BatchNormalization()(hidden)
        hidden = elegy.nn.Dropout(0.5)(jnp.tanh(hidden))
        elegy.add_loss("size", jnp.mean(hidden**2))
        return {"hidden": hidden, "steps": state["steps"] + 1}, {"y": hidden, "count": state["steps"]}


def test_a_cell_with_layers_state_draws_and_losses() -> None:
    results = []
    layer = RNN(Everything(), return_state=True).init(X, rng=0)
    for cell, run in ((layer.cell.copy(), by_hand), (layer.cell, lambda _, x: layer(x))):
        with elegy.hooks_context(), elegy.rng_context(5):
            if run is by_hand:
                state, ys = cell.initial_state([4]), []
                for t in range(6):
                    state, y = cell(state, X[:, t])
                    ys.append(y)
                outputs = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *ys), state
            else:
                outputs = layer(X)
            results.append((outputs, elegy.get_losses(), cell.get_parameters()))
    assert_close(*results)
    y, state = layer(X, lengths=LENGTHS)
    np.testing.assert_array_equal(state["steps"], LENGTHS)
    np.testing.assert_array_equal(y["count"][0], np.arange(6))
    assert not (y["y"][0, 1] == y["y"][0, 2]).all()


class Undressed(elegy.Module):
    """Has the methods of a cell and no base class."""

    def initial_state(self, batch_shape: Any) -> Any:
        return jnp.zeros([*batch_shape, 3])

    def call(self, state: Any, x: Any) -> Any:
        RUNS.append(None)
        return state + x, 2 * state


RUNS: list[None] = []


def test_a_cell_needs_no_base_class_and_is_traced_once() -> None:
    layer = RNN(Undressed(), return_state=True)
    y, state = layer(X)
    np.testing.assert_allclose(state, X.sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(y[:, 1:], 2 * np.cumsum(X, axis=1)[:, :-1], atol=1e-5)
    before = len(RUNS)
    layer(2 * X)
    assert len(RUNS) == before


def test_a_subclass_may_override_a_step_or_the_whole() -> None:
    class Clipped(GRUCell):
        def call(self, state, x):
            state, y = super().call(state, x)
            return jnp.clip(state, -0.1, 0.1), jnp.clip(y, -0.1, 0.1)

    class Slow(GRUCell):
        @elegy.compact
        def step(self, state, projected):
            after, _ = super().step(state, projected)
            after = (state + after) / 2
            return after, after

    cell = GRUCell(5).init(jnp.zeros([4, 5]), X[:, 0])
    for cls in (Clipped, Slow):
        layer = RNN(cls(5)).init(X)
        layer.cell.set_parameters(cell)
        expected, _ = by_hand(layer.cell, X)
        np.testing.assert_allclose(layer(X), expected, atol=1e-6)
        assert jnp.abs(layer(X) - by_hand(cell, X)[0]).max() > 0.01
    assert jnp.abs(RNN(Clipped(5))(X)).max() <= 0.1


def test_state_without_batch_axes_cannot_be_masked() -> None:
    class Counting(RecurrentCell):
        def initial_state(self, batch_shape):
            return jnp.zeros([])

        def call(self, state, x):
            return state + 1, x

    layer = RNN(Counting(), return_state=True)
    assert layer(X)[1] == 6
    with pytest.raises(ValueError, match=r"must begin with the batch axes \(4,\).*got f"):
        layer(X, lengths=LENGTHS)


# ---------------------------------------------------------------------------------------------------------------------
# Bidirectional
# ---------------------------------------------------------------------------------------------------------------------


def test_bidirectional() -> None:
    layer = Bidirectional(LSTM(5, return_state=True)).init(X, rng=0)
    assert layer.backward.reverse and not layer.forward.reverse
    starts = [(floats(4, 5, seed=seed), floats(4, 5, seed=seed + 1)) for seed in (1, 3)]
    forward, forward_state = layer.forward(X, lengths=LENGTHS, initial_state=starts[0])
    backward, backward_state = layer.backward(X, lengths=LENGTHS, initial_state=starts[1])
    expected = {
        "concat": jnp.concatenate([forward, backward], axis=-1),
        "sum": forward + backward,
        "mul": forward * backward,
        "average": (forward + backward) / 2,
        None: (forward, backward),
    }
    for merge, merged in expected.items():
        other = layer if merge == "concat" else Bidirectional(layer.forward, layer.backward, merge=merge)
        y, states = other(X, lengths=LENGTHS, initial_state=starts)
        assert_same(states, (forward_state, backward_state))
        assert_close(y, merged)


def test_the_other_direction_has_parameters_of_its_own() -> None:
    for forward in (LSTM(5), lambda: LSTM(5)):
        layer = Bidirectional(forward, name="both").init(X)
        assert layer.name == "both"
        assert layer.forward.cell is not layer.backward.cell
        assert (layer.forward.cell.w != layer.backward.cell.w).any()
    layer = Bidirectional(GRU(5, reverse=True), GRU(2))
    assert layer(X).shape == (4, 6, 7) and not layer.backward.reverse
    last = Bidirectional(LSTM(5, return_sequences=False)).init(X)
    sequences = [RNN(rnn.cell, reverse=rnn.reverse)(X) for rnn in (last.forward, last.backward)]
    np.testing.assert_allclose(last(X), np.concatenate([sequences[0][:, -1], sequences[1][:, 0]], axis=-1), atol=1e-6)


def test_bidirectional_made_inside_call() -> None:
    class Net(elegy.Module):
        def call(self, x):
            x = Bidirectional(RNN(GRUCell(4)))(x)
            return Bidirectional(lambda: LSTM(3), merge="sum")(x)

    net = Net()
    assert net(X).shape == net(X).shape == (4, 6, 3)
    assert net.bidirectional_1.forward.cell.w.shape == (8, 12)
    assert (net.bidirectional.forward.cell.w != net.bidirectional.backward.cell.w).any()
    np.testing.assert_allclose(elegy.jit(net)(X), net(X), atol=1e-6)


def test_bidirectional_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"forward has parameters already.*\n.*lambda: elegy.nn.LSTM"):
        Bidirectional(LSTM(5).init(X))
    with pytest.raises(ValueError, match="forward and backward both run from the first step to the last.\n.*=True"):
        Bidirectional(LSTM(5), LSTM(5))
    with pytest.raises(ValueError, match="both run from the last step to the first.\n.*reverse=False"):
        Bidirectional(LSTM(5, reverse=True), LSTM(5, reverse=True))
    with pytest.raises(ValueError, match="return_sequences=True and backward has return_sequences=False"):
        Bidirectional(LSTM(5), LSTM(5, reverse=True, return_sequences=False))
    with pytest.raises(ValueError, match="return_state=True and backward has return_state=False"):
        Bidirectional(LSTM(5, return_state=True), LSTM(5, reverse=True))
    with pytest.raises(ValueError, match="merge must be one of concat, sum, mul, average or None, got 'max'"):
        Bidirectional(LSTM(5), merge="max")
    with pytest.raises(ValueError, match="initial_state must be a pair"):
        Bidirectional(LSTM(5))(X, initial_state=jnp.zeros([4, 5]))


@pytest.mark.usefixtures("unchecked")
def test_bidirectional_takes_recurrent_layers() -> None:
    for arguments in ((LSTMCell(5),), (Linear(5),), (lambda: 5,), (5,)):
        with pytest.raises(TypeError, match="forward must be an elegy.nn.RNN, such as elegy.nn.LSTM"):
            Bidirectional(*arguments)
    with pytest.raises(TypeError, match="backward must be an elegy.nn.RNN"):
        Bidirectional(LSTM(5), LSTMCell(5))


# ---------------------------------------------------------------------------------------------------------------------
# State from call to call
# ---------------------------------------------------------------------------------------------------------------------


def pieces(run: Any) -> Any:
    return jnp.concatenate([run(X[:, :1]), run(X[:, 1:4]), run(X[:, 4:])], axis=1)


def test_a_stateful_layer_goes_on_where_it_stopped() -> None:
    plain = LSTM(5).init(X, rng=0)
    stateful = LSTM(5, stateful=True).init(X, rng=0)
    expected = plain(X)
    np.testing.assert_allclose(pieces(stateful), expected, atol=1e-6)
    assert jnp.abs(stateful(X) - expected).max() > 0.01
    stateful.reset_state()
    np.testing.assert_allclose(pieces(elegy.jit(stateful)), expected, atol=1e-6)
    assert set(stateful.get_parameters(trainable=True)) == {"cell"}
    loaded = pickle.loads(pickle.dumps(stateful))
    assert_same(loaded(X), stateful(X))


def test_a_stateful_layer_in_pure_code() -> None:
    plain, layer = LSTM(5).init(X, rng=0), LSTM(5, stateful=True).init(X, rng=0)

    @jax.jit
    def step(layer: Any, x: Any) -> Any:
        return layer(x), layer

    outputs, moved = [], layer
    for x in (X[:, :3], X[:, 3:]):
        y, moved = step(moved, x)
        outputs.append(y)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), plain(X), atol=1e-6)
    assert (layer.state[0] == 0).all() and (moved.state[0] != 0).any() and concrete(moved)
    _, again = moved.apply(method="reset_state")
    assert (again.state[0] == 0).all() and (moved.state[0] != 0).any()
    np.testing.assert_allclose(again(X), plain(X), atol=1e-6)
    end = jax.jit(lambda layer: layer.apply(method="reset_state")[1])(moved).state
    assert_same(end, layer.state)


def test_a_given_state_goes_before_the_kept_one() -> None:
    layer = GRU(5, stateful=True, return_state=True).init(X, rng=0)
    layer(X)
    start = floats(4, 5)
    y, state = layer(X, initial_state=start)
    assert_same(layer.state, state)
    layer.reset_state(start)
    assert_same(layer(X)[0], y)
    plain = RNN(layer.cell)
    np.testing.assert_allclose(y, plain(X, initial_state=start), atol=1e-6)


def test_lengths_of_a_stateful_layer() -> None:
    layer = GRU(5, stateful=True).init(X, rng=0)
    layer(X, lengths=LENGTHS)
    _, state = RNN(layer.cell, return_state=True)(X, lengths=LENGTHS)
    assert_same(layer.state, state)


def test_another_batch_of_a_stateful_layer() -> None:
    layer = LSTM(5, stateful=True)
    layer(X)
    with pytest.raises(ValueError, match=r"(?s)lstm: the state kept from the call before.*initial_state\(\[2\]\)"):
        layer(X[:2])
    resized = eqx.tree_at(lambda rnn: rnn.state, layer, layer.cell.initial_state([2]))
    np.testing.assert_allclose(resized(X[:2]), RNN(layer.cell)(X[:2]), atol=1e-6)


def test_reset_state() -> None:
    layer = LSTM(5, stateful=True)
    layer.reset_state()  # has none yet
    np.testing.assert_allclose(layer(X), RNN(layer.cell)(X), atol=1e-6)
    with pytest.raises(ValueError, match=r"reset_state\(\) of a layer that keeps no state.\n.*stateful=True"):
        LSTM(5).reset_state()

    class Net(elegy.Module):
        def __init__(self):
            self.rnn = LSTM(5, stateful=True)

        def call(self, x, new):
            if new:
                self.rnn.reset_state()
            return self.rnn(x)

    net = Net()
    first = net(X, False)
    assert jnp.abs(net(X, False) - first).max() > 0.01
    assert_same(net(X, True), first)


def test_state_has_no_gradient() -> None:
    layer = LSTM(5, stateful=True).init(X, rng=0)
    before = layer.state
    _, grads = elegy.value_and_grad(lambda x: jnp.sum(layer(x) ** 2), modules=layer)(X)
    assert set(grads) == {"cell"}
    assert (layer.state[0] != before[0]).any() and concrete(layer)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LSTMCell, GRUCell])
def test_a_cell_in_transforms(cls: Any) -> None:
    """The module as a value in jax.lax.scan, and by reference in elegy.scan and elegy.remat."""
    layer = RNN(cls(5), return_state=True).init(X, rng=0)
    cell, start = layer.cell, layer.cell.initial_state([4])
    y, state = layer(X)

    @jax.jit
    def stock(cell: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda state, x: cell(state, x), start, xs)

    expected = (state, jnp.moveaxis(y, 1, 0))
    assert_close(stock(cell, jnp.moveaxis(X, 1, 0)), expected)
    assert_close(elegy.scan(lambda state, x: cell(state, x), start, jnp.moveaxis(X, 1, 0), modules=cell), expected)
    lanes = jax.vmap(lambda x: layer(x))(X)
    assert_close(lanes, (y, state))

    def loss(layer: Any, x: Any) -> Any:
        return jnp.sum(layer(x)[0] ** 2)

    gradients = jax.jit(jax.grad(loss))(layer, X)
    again = elegy.jit(elegy.grad(elegy.remat(lambda x: jnp.sum(layer(x)[0] ** 2), modules=layer), modules=layer))(X)
    assert_close(gradients.get_parameters(), again, rtol=1e-4)


def test_a_layer_in_a_stack() -> None:
    class Residual(elegy.Module):
        def call(self, x):
            return x + GRU(3)(x)

    stack = elegy.nn.Stack(Residual, 2).init(X)
    y = X
    for block in stack:
        y = block(y)
    np.testing.assert_allclose(stack(X), y, atol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch(kind: AxisType) -> None:
    x, lengths = floats(8, 5, 3), np.arange(8) % 4
    layer = LSTM(5, return_sequences=False, return_state=True).init(x, rng=0)
    expected = layer(x, lengths=lengths)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        layer = jax.device_put(layer, NamedSharding(mesh, PartitionSpec()))
        outputs = layer(sharded, lengths=lengths)
    assert_close(outputs, expected)
    assert outputs[0].sharding.spec[0] == "data"


def test_a_batch_in_shard_map() -> None:
    x = floats(8, 5, 3)
    layer = GRU(5).init(x, rng=0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    run = jax.shard_map(lambda layer, x: layer(x), mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec)
    np.testing.assert_allclose(jax.jit(run)(layer, x), layer(x), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match=r"lstm: the input must have at least 2 axes, \[\*batch, time, features\]"):
        LSTM(5)(X[0, 0])
    with pytest.raises(ValueError, match=r"rnn: the input must have at least 4 axes, \[\*batch, time, \*spatial, ch"):
        RNN(ConvLSTMCell(5, 3))(X)
    with pytest.raises(ValueError, match="mask and lengths both say"):
        LSTM(5)(X, mask=MASK, lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"mask must be bool\[4, 6\]"):
        LSTM(5)(X, mask=MASK[:, :5])
    with pytest.raises(ValueError, match=r"lengths must be integers of shape \(4,\), one for each sequence, got i"):
        LSTM(5)(X, lengths=LENGTHS[:3])
    with pytest.raises(ValueError, match=r"initial_state is .*, and must be like \("):
        LSTM(5)(X, initial_state=jnp.zeros([4, 5]))
    with pytest.raises(ValueError, match=r"initial_state is float32\[1,5\].*must be like float32\[4,5\]"):
        GRU(5)(X, initial_state=jnp.zeros([1, 5]))


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_of_inputs() -> None:
    with pytest.raises(ValueError, match=r"mask must be bool\[4, 6\]"):
        LSTM(5)(X, mask=MASK.astype(int))
    with pytest.raises(ValueError, match="lengths must be integers"):
        LSTM(5)(X, lengths=LENGTHS.astype(np.float32))


def test_wrong_inputs_of_cells() -> None:
    x = X[:, 0]
    with pytest.raises(TypeError, match=r"lstm_cell: the state of LSTMCell is a pair \(h, c\), got float32\[4,5\]"):
        LSTMCell(5)(jnp.zeros([4, 5]), x)
    with pytest.raises(ValueError, match=r"the state hidden has shape \(1, 5\), and this input asks for \(4, 5\)"):
        GRUCell(5)(jnp.zeros([1, 5]), x)
    with pytest.raises(ValueError, match=r"the state c has shape \(4, 6\)"):
        LSTMCell(5)((jnp.zeros([4, 5]), jnp.zeros([4, 6])), x)
    with pytest.raises(ValueError, match="simple_rnn_cell: the input of SimpleRNNCell must have at least one axis"):
        SimpleRNNCell(5)(jnp.zeros([5]), 1.0)
    cell = ConvLSTMCell(5, 3)
    with pytest.raises(ValueError, match=r"initial_state needs the sizes of the 2 spatial axes.*got \[4\]"):
        cell.initial_state([4])
    with pytest.raises(ValueError, match="the input of ConvLSTMCell must have at least 3 axes"):
        cell(cell.initial_state([4, 4]), x)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LSTM(0), ValueError, "elegy.nn.LSTMCell: units must be a positive integer, got 0"),
        (lambda: LSTM(3, 5), TypeError, r"elegy.nn.LSTM: by position there is units only.*\n.*LSTM\(5\)"),
        (lambda: GRU(3, 5), TypeError, r"The size of the input is inferred: GRU\(5\)"),
        (lambda: SimpleRNN(3, 5), TypeError, r"The size of the input is inferred: SimpleRNN\(5\)"),
        (lambda: LSTMCell(3, 5), TypeError, r"The size of the input is inferred: LSTMCell\(5\)"),
        (lambda: GRUCell(3, 5), TypeError, r"The size of the input is inferred: GRUCell\(5\)"),
        (lambda: SimpleRNNCell(3, 5), TypeError, r"The size of the input is inferred: SimpleRNNCell\(5\)"),
        (lambda: ConvLSTMCell(3, 5, 2), TypeError, "The channels of the input are inferred"),
        (lambda: GRU(3, with_bias=1), TypeError, "elegy.nn.GRUCell: with_bias must be True or False"),
        (lambda: GRU(3, reverse=1), TypeError, "elegy.nn.GRU: reverse must be True or False"),
        (lambda: GRU(3, stateful=1), TypeError, "elegy.nn.GRU: stateful must be True or False"),
        (lambda: GRU(3, return_state=1), TypeError, "elegy.nn.GRU: return_state must be True or False"),
        (lambda: GRU(3, return_sequences=1), TypeError, "elegy.nn.GRU: return_sequences must be True or False"),
        (lambda: GRU(3, unroll=0), ValueError, "elegy.nn.GRU: unroll must be a positive integer, got 0"),
        (lambda: GRU(3, activation="relu"), TypeError, "elegy.nn.GRUCell: activation must be a function"),
        (lambda: LSTM(3, gate_activation="relu"), TypeError, "elegy.nn.LSTMCell: gate_activation must be a function"),
        (lambda: RNN(Linear(3)), TypeError, "elegy.nn.RNN: cell must be a module with the methods initial_state and"),
        (lambda: RNN(GRUCell), TypeError, "elegy.nn.RNN: cell must be a module with the methods"),
        (
            lambda: ConvLSTMCell(3, [3, 3], num_spatial_dims=1),
            ValueError,
            r"kernel_shape=\[3, 3\] has 2 sizes, and num",
        ),
        (lambda: ConvLSTMCell(3, 3, num_spatial_dims=4), ValueError, "there may be 1 to 3 spatial axes, got 4"),
        (lambda: ConvLSTMCell(3, 3, padding="full"), ValueError, "padding must be 'SAME' or 'VALID', got 'full'"),
        (lambda: ConvLSTMCell(3, 3, stride=0), ValueError, "elegy.nn.ConvLSTMCell: stride must be a positive integer"),
        (lambda: ConvLSTMCell(3, 3, rate=0), ValueError, "elegy.nn.ConvLSTMCell: rate must be a positive integer"),
        (lambda: ConvLSTMCell(0, 3), ValueError, "output_channels must be a positive integer"),
        (lambda: ConvLSTMCell(3, 0), ValueError, "kernel_shape must be a positive integer"),
    ],
)
def test_wrong_arguments(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_cells_that_lack_a_method() -> None:
    class Half(RecurrentCell):
        pass

    with pytest.raises(NotImplementedError, match="Half does not define `initial_state`.\n"):
        RNN(Half())(X)
    with pytest.raises(NotImplementedError, match="Half does not define `call`.\n"):
        Half()(1, 2)
