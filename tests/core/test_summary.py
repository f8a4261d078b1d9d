"""`elegy.summary`: what it says of modules, and that nothing runs or changes meanwhile."""

import io
import subprocess
import sys

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from jax.core import Tracer

import elegy
from tests.generic.descriptors import DESCRIPTORS
from tests.helpers import Affine, Counter, Net, ones, summaries


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def row(summary, path):
    (found,) = (row for row in summary.rows if row.path == path)
    return found


class Residual(elegy.Module):
    """A block of a stack."""

    def call(self, x):
        return x + elegy.nn.Linear(x.shape[-1])(elegy.nn.LayerNormalization()(x))


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def test_a_row_says_what_a_module_returns_holds_and_multiplies():
    class Encoder(elegy.Module):
        def call(self, x):
            x = elegy.nn.Linear(8, dtype=jnp.bfloat16)(x)
            elegy.nn.BatchNormalization()(x)
            return {"mean": x, "size": elegy.nn.Linear(1)(x.astype(jnp.float32))}

    summary = elegy.summary(Encoder(), struct(4, 3, dtype=jnp.bfloat16))
    assert [(row.path, row.cls.__name__, row.level, row.runs) for row in summary.rows] == [
        ("encoder", "Encoder", 0, 1),
        ("encoder/linear", "Linear", 1, 1),
        ("encoder/batch_normalization", "BatchNormalization", 1, 1),
        ("encoder/linear_1", "Linear", 1, 1),
    ]
    outer, linear, norm, head = summary.rows
    assert outer.output == {"mean": struct(4, 8, dtype=jnp.bfloat16), "size": struct(4, 1)}
    assert (outer.trainable, outer.state, outer.bytes, outer.multiply_adds) == (0, 0, 0, 0)
    assert (linear.output, linear.trainable, linear.bytes) == (struct(4, 8, dtype=jnp.bfloat16), 32, 64)
    assert (norm.trainable, norm.state, norm.bytes) == (16, 16, 128)
    assert (linear.multiply_adds, norm.multiply_adds, head.multiply_adds) == (4 * 3 * 8, 0, 4 * 8)
    assert (summary.trainable, summary.frozen, summary.state) == (32 + 16 + 9, 0, 16)
    assert (summary.bytes, summary.multiply_adds) == (64 + 128 + 36, 128)


def test_frozen_parameters_are_counted_apart():
    net = Net().init(ones(2, 3))
    net.affine.trainable = False
    net = elegy.select(net, "affine_1/b").freeze()
    summary = elegy.summary(net, struct(2, 3))
    assert (row(summary, "net/affine").trainable, row(summary, "net/affine").frozen) == (0, 32)
    assert (row(summary, "net/affine_1").trainable, row(summary, "net/affine_1").frozen) == (32, 4)
    assert (summary.trainable, summary.frozen) == (32 + 5, 36)


class Shared(elegy.Module):
    """One layer on three paths, another one run several times, a third one that does not run."""

    class Holder(elegy.Module):
        def __init__(self, layer):
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    def __init__(self):
        layer = Affine(3)
        self.one, self.two = self.Holder(layer), self.Holder(layer)
        self.often = Affine(3)
        self.unused = Affine(3).init(ones(2, 3))
        self.never = Affine(3)

    def call(self, x):
        x = self.two(self.one(x))
        return self.often(self.often(self.often(x)))


def test_arrays_are_counted_once():
    summary = elegy.summary(Shared(), struct(2, 3))
    assert [(row.path, row.trainable, row.multiply_adds, row.notes) for row in summary.rows] == [
        ("shared", 0, 0, ""),
        ("shared/one", 0, 0, ""),
        ("shared/one/layer", 12, 18, "shared"),
        ("shared/two", 0, 0, ""),
        ("shared/two/layer", 0, 18, "same as shared/one/layer"),
        ("shared/often", 12, 54, "3 runs"),
        ("shared/unused", 12, 0, "did not run"),
    ]
    assert summary.trainable == Shared().init(ones(2, 3)).parameters_size() == 36
    assert [row.path for row in summary.at_depth(1).rows] == [
        *("shared", "shared/one", "shared/two", "shared/often", "shared/unused")
    ]
    assert [row.trainable for row in summary.at_depth(1).rows] == [0, 12, 0, 12, 12]
    (whole,) = summary.at_depth(0).rows
    assert (whole.trainable, whole.bytes, whole.multiply_adds) == (36, 144, 90)


def test_a_method_that_is_compact_has_a_row():
    summary = elegy.summary(elegy.nn.LSTM(5), struct(2, 7, 3))
    assert [(row.path, row.method, row.notes) for row in summary.rows] == [
        ("lstm", "call", ""),
        ("lstm/cell", "project", ""),
        ("lstm/cell", "step", "counted above, 7 runs"),
    ]
    assert summary.trainable == 4 * 5 * (3 + 5 + 1)
    assert summary.multiply_adds == 2 * 7 * 4 * 5 * (3 + 5)


def test_a_method_of_the_module_that_runs_has_none():
    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return Affine(2)(x)

        def call(self, x):
            return self.encode(x)

    assert [row.path for row in elegy.summary(Coder(), struct(2, 3)).rows] == ["coder", "coder/affine"]


def test_a_module_from_outside_is_not_taken_for_one_of_the_same_path():
    outside = elegy.nn.Linear(8).init(ones(5, 3))

    class Network(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(1)(outside(x))

    summary = elegy.summary(Network(), struct(5, 3))
    _, first, second = summary.rows
    assert first.path == second.path == "network/linear"
    assert (first.output.shape, first.is_part, first.trainable, first.multiply_adds) == ((5, 8), False, 0, 120)
    assert (second.output.shape, second.is_part, second.trainable, second.multiply_adds) == ((5, 1), True, 9, 40)
    assert summary.trainable == 9


def test_a_copy_that_a_transform_of_jax_makes_is_not_counted_twice():
    class Mapped(elegy.Module):
        def __init__(self):
            self.linear = elegy.nn.Linear(2)

        def call(self, x):
            return jax.vmap(lambda linear, x: linear(x), (None, 0))(self.linear, self.linear(x)[:, :2])

    summary = elegy.summary(Mapped().init(ones(4, 2)), struct(4, 2))
    assert summary.trainable == 6 and summary.multiply_adds == 2 * 4 * 2 * 2


# ---------------------------------------------------------------------------------------------------------------------
# What is counted
# ---------------------------------------------------------------------------------------------------------------------


def ragged(x):
    return jax.lax.ragged_dot(x, ones(2, 3, 5), jnp.asarray([2, 4]))


CASES = {
    "Linear": (elegy.nn.Linear(5), (4, 3), 4 * 3 * 5),
    "strides": (elegy.nn.Conv2D(8, 3, stride=2, padding="VALID"), (2, 9, 7, 3), 2 * 4 * 3 * 8 * 9 * 3),
    "padding": (elegy.nn.Conv2D(8, 3), (2, 9, 7, 3), 2 * 9 * 7 * 8 * 9 * 3),
    "groups": (elegy.nn.Conv2D(8, 3, groups=2, padding="VALID"), (1, 5, 5, 4), 3 * 3 * 8 * 9 * 2),
    "dilation": (elegy.nn.Conv1D(4, 3, rate=2, padding="VALID"), (2, 9, 3), 2 * 5 * 4 * 3 * 3),
    "depthwise": (elegy.nn.DepthwiseConv2D(3, padding="VALID"), (1, 5, 5, 6), 3 * 3 * 6 * 9),
    "transposed": (elegy.nn.Conv1DTranspose(4, 4, stride=2), (2, 5, 3), 2 * 5 * 4 * 3 * 4),
    "ragged": (elegy.to_module(ragged)(), (6, 3), 6 * 3 * 5),
    "attention": (elegy.nn.MultiHeadAttention(2), (2, 7, 8), 2 * (4 * 7 * 8 * 8 + 2 * 7 * 7 * 8)),
    "Stack": (elegy.nn.Stack(Residual, 6), (4, 8), 6 * 4 * 8 * 8),
    "rematerialised": (elegy.nn.Stack(Residual, 6, remat=True), (4, 8), 6 * 4 * 8 * 8),
    "Ensemble": (elegy.nn.Ensemble(Residual, 6), (4, 8), 6 * 4 * 8 * 8),
}


@pytest.mark.parametrize("case", CASES)
def test_multiply_adds(case):
    module, shape, expected = CASES[case]
    assert elegy.summary(module, struct(*shape)).multiply_adds == expected


@pytest.mark.parametrize(
    "module",
    [
        elegy.nn.Linear(5, with_bias=False),
        elegy.nn.Conv2D(9, 3, stride=2, groups=3, padding="VALID", with_bias=False),
        elegy.nn.Conv2D(8, 2, rate=2, padding="VALID", with_bias=False),
    ],
    ids=["Linear", "strides and groups", "dilation"],
)
def test_multiply_adds_are_those_of_xla(module):
    x = ones(2, 9, 7, 3)
    operations = elegy.jit(module).lower(x).cost_analysis()["flops"]
    assert elegy.summary(module, x).multiply_adds == operations / 2


@pytest.mark.parametrize("options", [{}, {"remat": True}], ids=["plain", "rematerialised"])
def test_blocks_of_a_stack_run_as_often_as_there_are_blocks(options):
    stack = elegy.nn.Stack(Residual, 6, **options)
    summary = elegy.summary(stack, struct(4, 8))
    assert [(row.path, row.runs, row.trainable) for row in summary.rows] == [
        ("stack", 1, 0),
        ("stack/blocks", 6, 0),
        ("stack/blocks/layer_normalization", 6, 6 * 16),
        ("stack/blocks/linear", 6, 6 * 72),
    ]


class Repeated(elegy.Module):
    """Runs one layer as a transform says."""

    def __init__(self, transform):
        self.transform = transform
        self.layer = Affine(3)

    def call(self, x):
        return self.layer(x) if elegy.is_initializing() else self.transform(self, x)


kept = jax.jit(lambda module, x: module(x))

# What runs, how many times, and whether it may be more often.
TRANSFORMS = {
    "elegy.jit": (lambda self, x: elegy.jit(self.layer)(self.layer.jit(x)), 2, False),
    "jax.jit": (lambda self, x: jax.jit(lambda x: self.layer(x))(x), 1, False),
    "jax.lax.scan": (lambda self, x: jax.lax.scan(lambda x, _: (self.layer(x), None), x, None, 5)[0], 5, False),
    "elegy.scan": (
        lambda self, x: elegy.scan(lambda x, _: (self.layer(x), None), x, None, 5, modules=self.layer)[0],
        5,
        False,
    ),
    "a scan in a scan": (
        lambda self, x: jax.lax.scan(
            lambda x, _: jax.lax.scan(lambda x, _: (self.layer(x), None), x, None, 5), x, None, 3
        )[0],
        15,
        False,
    ),
    "elegy.fori_loop": (
        lambda self, x: elegy.fori_loop(0, 5, lambda _, x: self.layer(x), x, modules=self.layer),
        5,
        False,
    ),
    "elegy.while_loop": (
        lambda self, x: elegy.while_loop(lambda x: x.sum() < 9, self.layer, x, modules=self.layer),
        1,
        True,
    ),
    "elegy.cond": (
        lambda self, x: elegy.cond(x.sum() < 9, self.layer, lambda x: x, x, modules=self.layer),
        1,
        False,
    ),
    "elegy.remat": (lambda self, x: elegy.remat(self.layer)(x), 1, False),
    "jax.custom_jvp": (lambda self, x: jax.nn.relu(self.layer(x)), 1, False),
    "jax.vmap": (lambda self, x: jax.vmap(lambda x: self.layer(x))(x), 1, False),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_runs_within_transforms(name):
    transform, runs, may_be_more = TRANSFORMS[name]
    module = Repeated(transform)
    first, second = elegy.summary(module, struct(2, 3)), elegy.summary(module.init(ones(2, 3)), ones(2, 3))
    assert first == second
    _, layer = first.rows
    assert (layer.path, layer.runs, layer.may_run_more) == ("repeated/layer", runs, may_be_more)
    assert (layer.multiply_adds, layer.may_multiply_more) == (runs * 2 * 3 * 3, may_be_more)
    assert (layer.trainable, first.trainable) == (12, 12)


def test_of_branches_the_most_expensive_one_counts():
    class Branches(elegy.Module):
        def __init__(self):
            self.small, self.large = Affine(3), Net()

        def call(self, x):
            return elegy.cond(x.sum() < 0, lambda x: self.small(x)[:, :1], self.large, x, modules=self)

    summary = elegy.summary(Branches(), struct(2, 3))
    assert row(summary, "branches/small").multiply_adds == 0 and row(summary, "branches/small").runs == 1
    assert summary.multiply_adds == 2 * (3 * 8 + 8 * 4 + 4 * 1)


def test_what_a_gradient_within_a_module_multiplies_is_counted():
    class Slope(elegy.Module):
        def call(self, x):
            affine = Affine(5)
            return elegy.grad(lambda x: affine(x).sum(), argnums=0, modules=affine)(x)

    summary = elegy.summary(Slope(), struct(4, 3))
    assert row(summary, "slope/affine").multiply_adds == 2 * 4 * 3 * 5


def test_shards_are_counted_all():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    class Sharded(elegy.Module):
        def call(self, x):
            affine = Affine(5)
            if elegy.is_initializing():
                return affine(x)
            spec = jax.sharding.PartitionSpec("data")
            return jax.shard_map(lambda x: affine(x), mesh=mesh, in_specs=spec, out_specs=spec)(x)

    summary = elegy.summary(Sharded().init(ones(8, 3)), ones(8, 3))
    assert summary.multiply_adds == 8 * 3 * 5
    assert row(summary, "sharded/affine").output.shape == (2, 5)


SOME_LAYERS = (
    *("BatchNormalization", "Embedding", "LSTM, stateful", "MultiHeadAttention, everything"),
    *("SpectralNormalization, of several layers", "TransformerEncoder", "WeightNormalization, of several layers"),
)


@pytest.mark.parametrize("name", SOME_LAYERS)
def test_all_arrays_of_a_layer_are_counted(name):
    (descriptor,) = (descriptor for descriptor in DESCRIPTORS if descriptor.name == name)
    module = descriptor.factory(None)
    before = elegy.summary(module, *(struct(*x.shape, dtype=x.dtype) for x in descriptor.inputs))
    assert not module.initialized
    module.init(*descriptor.inputs)
    assert before == elegy.summary(module, *descriptor.inputs)
    assert (before.trainable, before.state) == (module.parameters_size(), module.states_size())
    assert before.bytes == module.parameters_bytes() + module.states_bytes()


def test_counts_are_those_of_flax():
    class Theirs(flax.nnx.Module):
        def __init__(self, rngs):
            self.conv = flax.nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = flax.nnx.BatchNorm(8, rngs=rngs)
            self.linear = flax.nnx.Linear(8, 10, rngs=rngs)

    @elegy.to_module
    def ours(x):
        x = elegy.nn.BatchNormalization()(elegy.nn.Conv2D(8, 3)(x))
        return elegy.nn.Linear(10)(x.mean(axis=(1, 2)))

    abstract = flax.nnx.eval_shape(lambda: Theirs(flax.nnx.Rngs(0)))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(flax.nnx.state(abstract, kind))) for kind in KINDS]
    summary = elegy.summary(ours(), struct(2, 8, 8, 3))
    assert [summary.trainable, summary.state] == sizes


KINDS = (flax.nnx.Param, flax.nnx.BatchStat)


# ---------------------------------------------------------------------------------------------------------------------
# Nothing runs, nothing changes
# ---------------------------------------------------------------------------------------------------------------------


class Watched(elegy.Module):
    """Counts, draws, declares, and fails where it is computed."""

    def call(self, x):
        def abstract(key, shape, dtype):
            assert isinstance(key, Tracer)
            return jax.random.normal(key, shape, dtype)

        Counter()()
        x = x * self.add_parameter("scale", [], initializer=abstract)
        x = elegy.nn.Dropout(0.5)(x) + jax.random.normal(elegy.next_rng_key(), x.shape)
        elegy.add_loss("size", x.sum())
        elegy.add_metric("size", x.sum())
        elegy.add_summary("x", x)
        jax.debug.callback(self.fail)
        return elegy.jit(Affine(3))(x)

    @staticmethod
    def fail():
        raise AssertionError("the computation ran")


@pytest.mark.usefixtures("no_leaks")
def test_nothing_runs_and_nothing_changes():
    module = Watched()
    before, stream = repr(module), elegy.get_rng().data
    with elegy.hooks_context(summaries=True):
        summary = elegy.summary(module, struct(2, 3))
        assert elegy.get_losses() == elegy.get_metrics() == {} and summaries() == []
    assert summary.state == 1 + 2 + 2  # the counter, and a key for each module that draws
    assert not module.initialized and repr(module) == before
    assert elegy.get_rng().data is stream
    assert elegy.training()


def test_an_initialised_module_stays_as_it_is():
    module = Counter()
    module()
    leaves, structure = jax.tree.flatten(module)
    elegy.summary(module)
    after, same = jax.tree.flatten(module)
    assert same == structure and all(new is old for new, old in zip(after, leaves, strict=True))


def test_a_compiled_function_in_a_module_is_not_traced():
    affine = Affine(3)
    compiled = elegy.jit(affine)

    class Compiled(elegy.Module):
        def __init__(self):
            self.affine = affine

        def call(self, x):
            return compiled(x)

    module = Compiled()
    module(ones(2, 3))
    traces = compiled.traces
    for _ in range(12):  # more than those of which elegy.jit warns
        elegy.summary(module, ones(2, 3))
    assert compiled.traces == traces


def test_a_function_that_jax_has_traced_is_traced_again():
    class Kept(elegy.Module):
        def __init__(self):
            self.affine = Affine(3)

        def call(self, x):
            return self.affine(x) if elegy.is_initializing() else kept(self.affine, x)

    module = Kept()
    module(ones(2, 3))
    first, second = elegy.summary(module, ones(2, 3)), elegy.summary(module, ones(2, 3))
    assert first == second and [row.multiply_adds for row in first.rows] == [0, 18]


def test_a_module_of_shapes_alone():
    module = jax.eval_shape(lambda module: module, Net().init(ones(2, 3)))
    assert elegy.summary(module, struct(2, 3)) == elegy.summary(Net(), ones(2, 3))


def test_a_summary_within_a_trace():
    found = []
    net = Net()

    @jax.jit
    def function(x):
        found.append(elegy.summary(net, x))
        return x

    function(ones(2, 3))
    assert found == [elegy.summary(net, ones(2, 3))] and not net.initialized


def test_a_summary_within_a_call():
    found = []

    class Curious(elegy.Module):
        def call(self, x):
            affine = Affine(2)
            found.append(elegy.summary(affine, x))
            return affine(x)

    curious = Curious()
    curious(ones(2, 3))
    curious(ones(2, 3))
    elegy.summary(curious, ones(2, 3))
    assert found == [elegy.summary(Affine(2), ones(2, 3))] * 4  # the first call runs twice
    assert [row.path for row in found[0].rows] == ["affine"]


def test_arguments_of_all_kinds():
    class Call(elegy.Module):
        def call(self, x, other, *, times, training):
            assert type(times) is int and training == "never" and not elegy.training()
            return times * other(x["a"]), elegy.RNG

    other = Affine(2)
    with elegy.training_context(False):
        summary = elegy.summary(Call(), {"a": np.ones([2, 3], np.float32)}, other, times=2, training="never")
    call, affine = summary.rows
    assert call.output == (struct(2, 2), elegy.RNG)
    assert (affine.path, affine.trainable, affine.multiply_adds) == ("call/affine", 8, 12)
    assert not other.initialized


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def test_a_module_that_fails_is_named():
    module = elegy.nn.Sequential(lambda: [elegy.nn.Linear(4), elegy.nn.Reshape([3])])
    with pytest.raises(Exception, match="does not fit") as raised:
        elegy.summary(module, struct(2, 3))
    assert any("in sequential/layers/1 (Reshape.call)" in note for note in raised.value.__notes__)
    assert not module.initialized
    module.layers[0](ones(2, 3))  # nobody looks on any more


@pytest.mark.parametrize("module, hint", [(Net, "Construct it"), (jnp.tanh, r"elegy\.to_module")], ids=["class", "f"])
def test_what_is_no_module_is_refused(module, hint):
    with pytest.raises(TypeError, match=rf"elegy\.summary takes a module.*\n.*{hint}"):
        elegy.summary(module, struct(2, 3))


# ---------------------------------------------------------------------------------------------------------------------
# How it is shown
# ---------------------------------------------------------------------------------------------------------------------


def test_text():
    text = elegy.summary(Shared(), struct(2, 3)).text(100)
    assert text.splitlines() == [
        "Module     Class   Output    Notes                     Trainable  Bytes  Multiply-adds",
        "--------------------------------------------------------------------------------------",
        "shared     Shared  f32[2,3]                                    -      -              -",
        "  one      Holder  f32[2,3]                                    -      -              -",
        "    layer  Affine  f32[2,3]  shared                           12   48 B             18",
        "  two      Holder  f32[2,3]                                    -      -              -",
        "    layer  Affine  f32[2,3]  same as shared/one/layer          -      -             18",
        "  often    Affine  f32[2,3]  3 runs                           12   48 B             54",
        "  unused   Affine            did not run                      12   48 B              -",
        "--------------------------------------------------------------------------------------",
        "Total: 36 trainable (144 B); 90 multiply-adds",
    ]


def test_text_fits_the_terminal(monkeypatch):
    summary = elegy.summary(Shared(), struct(2, 3))
    for width in (70, 80, 86):
        monkeypatch.setenv("COLUMNS", str(width))
        assert max(map(len, str(summary).splitlines())) == width
    assert "same as shared/on…  " in summary.text(80)
    assert summary.text(10) == summary.text(60)  # numbers are never cut
    assert repr(summary) == str(summary)


def test_large_and_open_numbers():
    large = elegy.summary(elegy.nn.Linear(20_000), struct(100_000, 50_000))
    assert large.text(80).splitlines()[2].endswith("1 G  3.725 GiB          100 T")
    assert large.text(80).endswith("Total: 1,000,020,000 trainable (3.725 GiB); 100,000,000,000,000 multiply-adds")
    loop = elegy.summary(Repeated(TRANSFORMS["elegy.while_loop"][0]), struct(2, 3))
    assert loop.text(80).splitlines()[3].split()[-6:] == ["or", "more", "runs", "12", "48", "B", ">=18"][-6:]
    assert loop.text(80).endswith("; >=18 multiply-adds")
    assert elegy.summary(elegy.nn.Flatten(), struct(2, 3)).text(80).endswith("Total: no parameters; 0 multiply-adds")


def test_rich_shows_the_same_cells():
    summary = elegy.summary(Shared(), struct(2, 3))
    for width in (80, 120):
        file = io.StringIO()
        rich.console.Console(file=file, width=width).print(summary)
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width and "Multiply-adds" in lines[1]
        assert "90 multiply-adds" in lines[-1]
    cells = [cell.strip() for cell in lines[5].strip("│").split("│")]
    assert cells == ["layer", "Affine", "f32[2,3]", "shared", "12", "48 B", "18"]


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "file"])
@pytest.mark.parametrize("is_installed", [True, False], ids=["rich", "no rich"])
def test_show(is_terminal, is_installed, monkeypatch, capsys):
    summary = elegy.summary(Affine(2), struct(2, 3))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    if not is_installed:
        monkeypatch.setitem(sys.modules, "rich", None)
    summary.show()
    shown = capsys.readouterr().out
    assert ("│" in shown) == (is_terminal and is_installed)
    assert (shown == f"{summary}\n") == (not is_terminal or not is_installed)


def test_rich_is_not_imported_with_the_package():
    code = "import sys, elegy; print([name for name in sys.modules if name.split('.')[0] == 'rich'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_html():
    @elegy.to_module
    def compare(x):
        return Affine(2)(x)

    compare.__name__ = "a<b"
    text = elegy.summary(compare(), struct(2, 3))._repr_html_()
    assert text.count("<tr>") == 3 and '<td style="text-align: left">a&lt;b</td>' in text
    assert "&nbsp;&nbsp;affine" in text and "Total: 8 trainable (32 B)" in text
