"""`repr`, `wadler_lindig` documents and treescope figures of modules."""

import dataclasses
import functools
import gc
import textwrap
import typing as tp
import weakref

import beartype
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import treescope
import wadler_lindig as wl
from jaxtyping import Array, Float

import elegy
from elegy import pytree
from tests.helpers import Affine, Counter, Net, Norm


class Holder(elegy.Module):
    """A module that holds one value."""

    def __init__(self, value):
        self.value = value

    def call(self):
        pass


def shown(value):
    """How an attribute is shown."""
    text = repr(Holder(value))
    assert text.startswith("Holder(uninitialised, value=") and text.endswith(")")
    return text.removeprefix("Holder(uninitialised, value=").removesuffix(")")


def lines(text):
    return textwrap.dedent(text).strip()


def unflattened(module, *leaves):
    return jax.tree.structure(module).unflatten(leaves)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------------------


def test_an_initialised_module():
    assert repr(Affine(5).init(jnp.ones([1, 3]))) == "Affine(width=5, w=f32[3,5], b=f32[5])"


def test_an_uninitialised_module():
    assert repr(Affine(5)) == "Affine(uninitialised, width=5)"


def test_a_frozen_module():
    module = Net().init(jnp.ones([1, 3]))
    module.affine_1.trainable = False
    assert repr(module) == lines("""
        Net(
          affine=Affine(width=8, w=f32[3,8], b=f32[8]),
          affine_1=Affine(frozen, width=4, w=f32[8,4], b=f32[4]),
          affine_2=Affine(width=1, w=f32[4,1], b=f32[1])
        )
    """)


def test_state_is_told_from_parameters():
    module = Norm().init(jnp.ones([4, 3]))
    assert repr(module) == "Norm(mean=f32[3] (state), var=f32[3] (state), scale=f32[3])"
    module.trainable = False
    assert repr(module) == "Norm(frozen, mean=f32[3], var=f32[3], scale=f32[3])"
    assert repr(Counter().init()) == "Counter(n=i32[] (state))"


def test_print_ends_with_totals_by_kind():
    net = elegy.nn.Sequential(
        [elegy.nn.Linear(64), elegy.nn.BatchNormalization(), elegy.nn.Dropout(0.5), elegy.nn.Linear(1)]
    )
    assert str(net) == f"{net!r}\nParameters: none yet"
    net(jnp.ones([4, 3]))
    # Linear 3 * 64 + 64, BatchNormalization 4 * 64, of which one half is state, the key of Dropout 2, Linear 64 + 1.
    assert str(net) == f"{net!r}\nParameters: 449 trainable (1.754 KiB), 130 state (520 B); 579 in all (2.262 KiB)"
    net.submodules["layers/0"].trainable = False
    assert str(net).endswith(
        "\nParameters: 193 trainable (772 B), 130 state (520 B), 256 frozen (1 KiB); 579 in all (2.262 KiB)"
    )
    assert net.parameters_size() == 193 and net.states_size() == 130 + 256
    assert net.parameters_bytes() == 772 and net.states_bytes() == 520 + 1024
    net.trainable = False
    assert str(net).endswith("\nParameters: 130 state (520 B), 449 frozen (1.754 KiB); 579 in all (2.262 KiB)")


def test_totals_count_shared_modules_once_and_any_dtype():
    class Tied(elegy.Module):
        def __init__(self):
            self.first = self.second = Affine(2)
            self.table = {"half": jnp.ones([5], jnp.bfloat16), "key": jax.random.key(0)}

        def call(self, x):
            return self.second(self.first(x))

    tied = Tied()
    assert str(tied).endswith("\nParameters: 6 state (18 B); the first call may create more")
    tied(jnp.ones([1, 2]))
    assert str(tied).endswith("\nParameters: 6 trainable (24 B), 6 state (18 B); 12 in all (42 B)")
    assert str(Counter().init()) == "Counter(n=i32[] (state))\nParameters: 1 state (4 B)"
    assert str(unflattened(tied, *[None] * 4)).endswith("\nParameters: none")

    class Own(Affine):
        def __repr__(self):
            return "mine"

    assert str(Own(2)) == "mine"


def test_arrays_in_containers_and_in_layers_of_equinox():
    class Mixed(elegy.Module):
        def __init__(self):
            self.tables = {"b": jnp.ones(2), "a": [jnp.ones([1, 2]), 3]}
            self.layer = eqx.nn.Linear(2, 3, key=jax.random.key(0))

        def call(self):
            pass

    mixed = Mixed()
    mixed()
    assert repr(mixed) == lines("""
        Mixed(
          tables={'b': f32[2] (state), 'a': [f32[1,2] (state), 3]},
          layer=Linear(weight=f32[3,2], bias=f32[3], in_features=2, out_features=3, use_bias=True)
        )
    """)


@pytest.mark.parametrize(
    "value, text",
    [
        (jnp.ones([3, 64]), "f32[3,64] (state)"),
        (jnp.ones((), jnp.bfloat16), "bf16[] (state)"),
        (jnp.zeros([0], bool), "bool[0] (state)"),
        (np.ones(2), "f64[2](numpy) (state)"),
        (jax.ShapeDtypeStruct([2], jnp.int8), "i8[2](struct) (state)"),
        (jax.random.key(0), "key<fry>[] (state)"),
        (None, "None"),
        (1.5, "1.5"),
        ("text", "'text'"),
        (jnp.bfloat16, "bfloat16"),
        (np.dtype("int8"), "int8"),
        (int, "int"),
        (jax.nn.relu, "relu"),
        (jnp.tanh, "tanh"),
        (len, "len"),
        (lambda x: x, "<lambda>"),
        (functools.partial(jax.nn.gelu, approximate=True), "partial(gelu, approximate=True)"),
        ((), "()"),
        ((1,), "(1,)"),
        ([1, (2, 2)], "[1, (2, 2)]"),
        ({}, "{}"),
        ({"a": None, "b": [4]}, "{'a': None, 'b': [4]}"),
        (jax.tree_util.Partial, "Partial"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_values(value, text):
    assert shown(value) == text


def test_named_tuples():
    class Size(tp.NamedTuple):
        height: int
        module: tp.Any

    assert shown(Size(3, Affine(2))) == "Size(height=3, module=Affine(uninitialised))"


def test_arguments_with_their_defaults_are_not_shown():
    class Layer(elegy.Module):
        def __init__(self, size, rate=0.5, bias=True, name=None):
            super().__init__(name=name)
            self.size = size
            self.rate = rate
            self.bias = bias
            self.table = None
            self._cache = "private"

    assert repr(Layer(3)) == "Layer(uninitialised, size=3, table=None)"
    assert repr(Layer(3, 0.1, name="x")) == "Layer(uninitialised, name='x', size=3, rate=0.1, table=None)"
    assert "bias=True" in wl.pformat(Layer(3), hide_defaults=False)


def test_a_dataclass():
    @dataclasses.dataclass
    class Layer(elegy.Module):
        size: int
        rate: float = 0.5

    assert repr(Layer(3)) == "Layer(uninitialised, size=3)"
    assert repr(Layer(3, 0.1)) == "Layer(uninitialised, size=3, rate=0.1)"


def test_a_function_as_a_module():
    @elegy.to_module
    def block(x):
        return Affine(2)(x)

    assert repr(block().init(jnp.ones([1, 3]))) == "block(affine=Affine(w=f32[3,2], b=f32[2]))"


def test_a_shared_module_is_shown_once():
    class Tied(elegy.Module):
        def __init__(self):
            self.encoder = Holder(Affine(3))
            self.layers = [self.encoder.value, Affine(4)]
            self.last = self.layers[1]

    assert repr(Tied()) == lines("""
        Tied(
          uninitialised,
          encoder=Holder(uninitialised, value=Affine(uninitialised, width=3)),
          layers=[Affine(same as encoder/value), Affine(uninitialised, width=4)],
          last=Affine(same as layers/1)
        )
    """)


def test_equal_neighbours_are_counted():
    layers = [Affine(3), *(Affine(4) for _ in range(12)), Affine(5)]
    assert shown(layers[1:-1]) == "[12 x Affine(uninitialised, width=4)]"
    assert shown(layers[1:3] + [1, 1]) == "[2 x Affine(uninitialised, width=4), 1, 1]"
    assert repr(Holder(layers)) == lines("""
        Holder(
          uninitialised,
          value=[
            Affine(uninitialised, width=3),
            12 x Affine(uninitialised, width=4),
            Affine(uninitialised, width=5)
          ]
        )
    """)


# ---------------------------------------------------------------------------------------------------------------------
# Bounds
# ---------------------------------------------------------------------------------------------------------------------


def chain(levels):
    module = None
    for _ in range(levels):
        module = Holder(module)
    return module


def test_forty_levels():
    text = repr(chain(40))
    assert text.count("Holder(") == 17
    assert "value=Holder(...)" in text


def test_forty_levels_after_a_transform():
    module = Holder(jnp.ones(3))
    for _ in range(39):
        module = Holder([module])
    assert repr(jax.tree.map(jnp.sin, module)) == repr(module)
    assert len(repr(module)) < 5000


def test_forty_levels_of_static_containers():
    value = 1
    for _ in range(40):
        value = [value]
    assert shown(value) == "[" * 15 + "[...]" + "]" * 15


def test_a_thousand_children_in_a_list():
    text = repr(Holder([Affine(width + 1) for width in range(1000)]))
    assert "Affine(uninitialised, width=40)" in text and "width=41" not in text
    assert "... 960 more" in text
    assert shown([Affine(7) for _ in range(1000)]) == "[1000 x Affine(uninitialised, width=7)]"


def test_a_thousand_attributes():
    class Wide(elegy.Module):
        def call(self, x):
            for width in range(1000):
                Affine(width + 1)
            return x

    text = repr(Wide().init(jnp.ones(1)))
    assert text.count("\n") == 42
    assert text.endswith("affine_39=Affine(uninitialised, width=40),\n  ... 960 more\n)")


def test_a_million_elements():
    assert shown(range(10**6)) == "range(0, 1000000)"
    text = repr(Holder({index: index for index in range(10**4)}))
    assert text.count("\n") == 45 and "... 9960 more" in text


def test_a_tree_that_is_both_deep_and_wide():
    def tree(levels):
        return Holder([Holder([level, tree(levels - 1) if levels else None]) for level in range(5)])

    text = repr(tree(4))
    assert 300 < text.count("\n") < 1000


def test_a_long_text():
    assert repr(Holder("x" * 1000)) == f"Holder(\n  uninitialised,\n  value='{'x' * 80}'...\n)"


def test_an_object_with_a_long_repr():
    @dataclasses.dataclass(frozen=True)
    class Config:
        values: tuple[int, ...]

    assert shown(Config((1, 2))) == "Config(values=(1, 2))"
    assert shown(Config(tuple(range(10_000)))) == "Config(...)"


# ---------------------------------------------------------------------------------------------------------------------
# Nothing makes it fail
# ---------------------------------------------------------------------------------------------------------------------


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


def test_an_attribute_without_a_repr():
    assert shown(Unprintable()) == "<Unprintable>"
    assert shown([1, Unprintable()]) == "[1, <Unprintable>]"


@pytest.mark.parametrize(
    "leaf, text",
    [
        (None, "None"),
        (0, "0"),
        ("axis", "'axis'"),
        ((1, 2), "(1, 2)"),
        (Unprintable(), "<Unprintable>"),
        (jax.ShapeDtypeStruct([2], jnp.float32), "f32[2](struct)"),
        (jax.sharding.PartitionSpec("data"), repr(jax.sharding.PartitionSpec("data"))),
        (np.ones(3), "f64[3](numpy)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_object_may_stand_for_a_leaf(leaf, text):
    module = Affine(2).init(jnp.ones([1, 2]))
    for other in (jax.tree.map(lambda _: leaf, module), unflattened(module, leaf, leaf)):
        assert repr(other) == f"Affine(w={text}, b={text})"


def test_any_object_may_stand_for_a_module():
    net = Net().init(jnp.ones([1, 2]))
    _, layout = pytree.flatten(net)
    sentinel = object()
    assert repr(pytree.unflatten(layout, [sentinel, None, 1])) == f"Net(affine={sentinel}, affine_1=None, affine_2=1)"


def test_any_object_may_stand_for_a_container():
    holder = Holder([jnp.ones(1), 2])
    _, layout = pytree.flatten(holder)
    assert repr(pytree.unflatten(layout, [3])) == "Holder(uninitialised, value=3)"


def test_traced_modules():
    texts = []

    def f(module, x):
        texts.append(repr(module))
        return module(x).sum()

    module = Affine(2).init(jnp.ones([1, 3]))
    jax.jit(f)(module, jnp.ones([1, 3]))
    jax.grad(f)(module, jnp.ones([1, 3]))
    jax.vmap(f, in_axes=(None, 0))(module, jnp.ones([5, 1, 3]))
    jax.eval_shape(f, module, jnp.ones([2, 3]))
    assert texts == ["Affine(w=f32[3,2], b=f32[2])"] * 4


def test_while_it_is_constructed_and_initialised():
    texts = []

    class Talkative(elegy.Module):
        def __init__(self):
            texts.append(repr(self))
            self.size = 3
            texts.append(repr(self))

        def call(self, x):
            self.add_parameter("w", [self.size])
            texts.append(repr(self))
            return x

    Talkative().init(jnp.ones(2))
    assert texts == [
        "Talkative(uninitialised)",
        "Talkative(uninitialised, size=3)",
        "Talkative(uninitialised, size=3, w=f32[3])",
    ]


def test_a_repr_keeps_nothing_alive():
    class Temporary(elegy.Module):
        pass

    module = Temporary()
    repr(module)
    reference = weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None


def test_a_repr_changes_nothing():
    module = Net().init(jnp.ones([1, 2]))
    before = jax.tree.structure(module)
    repr(module)
    assert jax.tree.structure(module) == before


# ---------------------------------------------------------------------------------------------------------------------
# Other printers
# ---------------------------------------------------------------------------------------------------------------------


def test_equinox_shows_modules():
    tree = {"net": Affine(2).init(jnp.ones([1, 3])), "x": jnp.ones(2)}
    assert eqx.tree_pformat(tree) == "{'net': Affine(w=f32[3,2], b=f32[2]), 'x': f32[2]}"


def test_the_options_of_equinox():
    module = Affine(2).init(jnp.ones([1, 3]))
    abstract = jax.eval_shape(lambda: module)
    assert eqx.tree_pformat(abstract) == "Affine(w=f32[3,2](struct), b=f32[2](struct))"
    assert eqx.tree_pformat(abstract, struct_as_array=True) == "Affine(w=f32[3,2], b=f32[2])"
    assert "Array([0., 0.], dtype=float32)" in eqx.tree_pformat(module, short_arrays=False)
    assert eqx.tree_pformat(Holder(module), truncate_leaf=lambda x: isinstance(x, Affine)) == (
        "Holder(uninitialised, value=Affine(...))"
    )
    assert eqx.tree_pformat(module, width=20, indent=4) == "Affine(\n    w=f32[3,2],\n    b=f32[2]\n)"


def test_a_module_in_a_layer_of_equinox():
    class Outer(eqx.Module):
        first: elegy.Module
        second: elegy.Module

    module = Affine(2).init(jnp.ones([1, 3]))
    assert "second=Affine(w=f32[3,2], b=f32[2])" in repr(Outer(module, module))
    assert shown(Outer(module, module)) == "Outer(first=Affine(w=f32[3,2], b=f32[2]), second=Affine(same as value))"


def test_messages_of_jaxtyping():
    @jaxtyping.jaxtyped(typechecker=beartype.beartype)
    def f(module: elegy.Module, x: Float[Array, "3"]):
        return x

    with pytest.raises(jaxtyping.TypeCheckError) as caught:
        f(Affine(2).init(jnp.ones([1, 3])), jnp.ones(4))
    assert "Affine(w=f32[3,2], b=f32[2])" in str(caught.value)


# Treescope looks at every type that NumPy has, a deprecated one among them.
quiet_numpy = pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")


def treescope_text(module):
    with treescope.using_expansion_strategy(max_height=None):
        return treescope.render_to_text(module)


@quiet_numpy
def test_treescope_shows_the_attributes_and_their_kinds():
    class Small(elegy.Module):
        def __init__(self, size):
            self.size = size
            self.w = self.add_parameter("w", [1])
            self.n = self.add_parameter("n", [], jnp.int32, trainable=False)

    small = Small(3)
    text = treescope_text([small])
    assert [line.strip() for line in text.splitlines()] == [
        "[",
        "Small(  # uninitialised",
        "size=3,",
        "w=<jax.Array([0.], dtype=float32)>,",
        "n=<jax.Array(0, dtype=int32)>,  # state",
        "),",
        "]",
    ]
    small.trainable = False
    assert "Small(  # uninitialised, frozen\n" in treescope_text(small)
    assert "# state" not in treescope_text(small)
    assert "treescope" in treescope.render_to_html(small)


def test_treescope_gives_paths():
    module = Net().init(jnp.ones([1, 3]))
    paths = []

    def renderer(value, path):
        paths.append(path)
        return treescope.rendering_parts.RenderableAndLineAnnotations(
            treescope.rendering_parts.text(repr(value)), treescope.rendering_parts.empty_part()
        )

    module.__treescope_repr__("root.net", renderer)
    assert paths == ["root.net.affine", "root.net.affine_1", "root.net.affine_2"]


@quiet_numpy
@pytest.mark.parametrize("render", [treescope.render_to_text, treescope.render_to_html])
def test_treescope_on_forty_levels(render):
    deep = chain(40)
    render(deep)
    render(jax.tree.map(lambda x: x, deep))
    assert "value=Holder(...)" in treescope.render_to_text(deep)
    assert "Holder(...)" not in treescope_text(chain(20))
