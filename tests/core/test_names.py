"""Modules created inside a method: their names, their order, their arguments."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from tests.helpers import Affine, Counter, Mask, assert_close, assert_same, batch, concrete


def line_of(function, text):
    """`file:line` of the line of a function that holds `text`."""
    lines, start = inspect.getsourcelines(function)
    (offset,) = [number for number, line in enumerate(lines) if text in line]
    return f"{__file__}:{start + offset}"


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        ("Linear", "linear"),
        ("MLP", "mlp"),
        ("Conv2D", "conv2d"),
        ("BatchNormalization", "batch_normalization"),
        ("ResNet18", "res_net18"),
        ("LSTMCell", "lstm_cell"),
        ("HTTPServer", "http_server"),
        ("_Private", "private"),
        ("snake_case", "snake_case"),
    ],
)
def test_default_names(cls, name):
    def call(self, x):
        return self.add_parameter("w", x.shape) * x

    inner = type(cls, (elegy.Module,), {"call": call})

    class Outer(elegy.Module):
        def call(self, x):
            return inner()(inner()(x))

    module = Outer().init(jnp.ones(2))
    assert list(module.submodules) == [name, f"{name}_1"]
    assert inner().name == name


def test_names_follow_the_order_of_creation_and_references_are_kept():
    class Outer(elegy.Module):
        def call(self, x):
            for _ in range(12):
                x = Affine(2)(x)
            return Mask()(x)

    module = Outer()
    module(jnp.ones([1, 2]))
    names = ["affine", *(f"affine_{i}" for i in range(1, 12)), "mask"]
    assert list(module.submodules) == names
    before = list(module.submodules.values())
    module(jnp.ones([1, 2]))
    elegy.jit(module)(jnp.ones([1, 2]))
    elegy.grad(lambda: module(jnp.ones([1, 2])).sum(), modules=module)()
    assert all(a is b for a, b in zip(module.submodules.values(), before, strict=True))


def test_construction_gives_the_same_object_on_every_call():
    seen = []

    class Outer(elegy.Module):
        def call(self, x):
            inner = Affine(2)
            seen.append(inner)
            return inner(x)

    module = Outer()
    for _ in range(3):
        module(jnp.ones([1, 2]))
    assert len(seen) == 4  # the init pass ran the method too
    assert all(inner is module.affine for inner in seen)


def test_names_of_ones_own():
    class Outer(elegy.Module):
        def call(self, x):
            x = Affine(2, name="encoder")(x)
            x = Affine(2)(x)
            x = Affine(2, name="decoder")(x)
            return Affine(2)(x)

    module = Outer()
    module(jnp.ones([1, 2]))
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["encoder", "affine", "decoder", "affine_1"]
    assert module.encoder.name == "encoder"


def test_a_name_used_twice_is_numbered():
    class Outer(elegy.Module):
        def call(self, x):
            return Affine(2, name="layer")(Affine(2, name="layer")(x))

    module = Outer()
    module(jnp.ones([1, 2]))
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["layer", "layer_1"]


def test_a_name_of_ones_own_may_be_the_next_default_one():
    class Outer(elegy.Module):
        def call(self, x):
            x = Affine(2, name="affine_1")(x)
            x = Affine(3)(x)
            return Affine(4)(x)

    module = Outer()
    y = module(jnp.ones([1, 2]))
    assert y.shape == (1, 4) and len(module.submodules) == 3
    assert module.affine_1.width == 2 and module.affine.width == 3
    assert_same(module(jnp.ones([1, 2])), y)


@pytest.mark.parametrize("name", ["1a", "a b", "a/b", "", "a.b"])
def test_a_name_must_be_an_identifier(name):
    with pytest.raises(ValueError, match="identifier"):
        Affine(2, name=name)


@pytest.mark.parametrize(
    "name", ["width", "get_parameters", "call", "init", "trainable", "helper", "__init__", "shared"]
)
def test_a_name_that_is_taken_is_refused(name):
    class Outer(elegy.Module):
        shared = 3

        def __init__(self):
            self.width = 2

        def helper(self):
            pass

        def call(self, x):
            return Affine(2, name=name)(x)

    module = Outer()
    with pytest.raises(elegy.errors.NameCollisionError, match=name) as caught:
        module(jnp.ones([1, 2]))
    assert "outer" in str(caught.value) and line_of(Outer.call, "name=name") in str(caught.value)
    assert module.width == 2 and not module.initialized and module.submodules == {}


def test_a_default_name_that_is_taken_is_numbered():
    class Outer(elegy.Module):
        mask = None

        def __init__(self):
            self.affine = 3

        def call(self, x):
            return Mask()(Affine(2)(x))

    module = Outer()
    module(jnp.ones([1, 2]))
    assert module.affine == 3 and list(module.submodules) == ["mask_1", "affine_1"]


@pytest.mark.parametrize("name", ["width", "get_parameters", "call", "affine", "dtype_", "helper"])
def test_a_parameter_name_that_is_taken_is_refused(name):
    class Outer(elegy.Module):
        dtype_ = 3

        def __init__(self):
            self.width = 2

        def helper(self):
            pass

        def call(self, x):
            x = Affine(2)(x)
            return x * self.add_parameter(name, [])

    module = Outer()
    with pytest.raises(elegy.errors.NameCollisionError, match=name):
        module(jnp.ones([1, 2]))
    assert not module.initialized and module.submodules == {}


def test_a_module_name_may_not_be_that_of_a_parameter_made_before():
    class Outer(elegy.Module):
        def call(self, x):
            self.add_parameter("thing", [])
            return Affine(2, name="thing")(x)

    with pytest.raises(elegy.errors.NameCollisionError, match="thing"):
        Outer()(jnp.ones([1, 2]))


@pytest.mark.parametrize("name", ["a b", "1", "", "a/b"])
def test_a_parameter_name_must_be_an_identifier(name):
    class Outer(elegy.Module):
        def call(self):
            return self.add_parameter(name, [])

    with pytest.raises(elegy.errors.NameCollisionError, match="identifier"):
        Outer()()


def test_parameters_may_be_called_name_and_dtype():
    class Outer(elegy.Module):
        def call(self):
            return self.add_parameter("weight", []), self.add_parameter("names", [])

    module = Outer().init()
    assert list(module.get_parameters()) == ["weight", "names"]
    assert module.name == "outer"


def test_a_keyword_or_dunder_like_class_name():
    inner = type("__", (elegy.Module,), {"call": lambda self, x: x * self.add_parameter("w", [], initializer=jnp.ones)})

    class Outer(elegy.Module):
        def call(self, x):
            return inner()(x)

    module = Outer()
    assert module(jnp.asarray(2.0)) == 2.0
    (name,) = module.submodules
    assert name.isidentifier()
    # A class whose name in lower case is a keyword can still be read and set.
    keyword = type("Lambda", (elegy.Module,), {"call": inner.call})
    outer = type("Outer", (elegy.Module,), {"call": lambda self, x: keyword()(x)})()
    outer(jnp.asarray(1.0))
    outer.set_parameters({"lambda": {"w": jnp.asarray(3.0)}})
    assert outer(jnp.asarray(1.0)) == 3.0


# ---------------------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------------------


def test_another_class_at_a_position_names_both_lines():
    class Drifts(elegy.Module):
        def call(self, x):
            if x.shape[0] > 5:
                return Affine(2)(x)  # first
            return Mask()(x)  # then

    module = Drifts()
    module(jnp.ones([8, 3]))
    before = module.get_parameters()
    with pytest.raises(elegy.errors.ModuleOrderError) as caught:
        module(jnp.ones([2, 3]))
    message = str(caught.value)
    assert line_of(Drifts.call, "# first") in message and line_of(Drifts.call, "# then") in message
    assert "drifts" in message and "position 0" in message and "Affine" in message and "Mask" in message
    assert_same(module.get_parameters(), before)
    assert module(jnp.ones([8, 3])).shape == (8, 2)


def test_drift_in_a_submodule_names_its_path():
    class Drifts(elegy.Module):
        def call(self, x):
            return Affine(2)(x) if x.shape[0] > 5 else Mask()(x)

    class Outer(elegy.Module):
        def __init__(self):
            self.blocks = {"a": [Drifts()]}

        def call(self, x):
            return self.blocks["a"][0](x)

    module = Outer()
    module(jnp.ones([8, 3]))
    with pytest.raises(elegy.errors.ModuleOrderError, match="outer/blocks/a/0"):
        module(jnp.ones([2, 3]))


@pytest.mark.parametrize("compiled", [False, True])
def test_more_and_fewer_modules(compiled):
    class Varies(elegy.Module):
        def call(self, x):
            for _ in range(x.shape[0]):
                x = Affine(2)(x)  # here
            return x

    module = Varies()
    run = elegy.jit(module) if compiled else module
    run(jnp.ones([2, 2]))
    before = module.copy()
    with pytest.raises(elegy.errors.ModuleOrderError, match="only 2 modules") as caught:
        run(jnp.ones([3, 2]))
    assert line_of(Varies.call, "# here") in str(caught.value)
    with pytest.raises(elegy.errors.ModuleOrderError, match="fewer") as caught:
        run(jnp.ones([1, 2]))
    assert "affine_1" in str(caught.value) and line_of(Varies.call, "# here") in str(caught.value)
    assert_same(module, before)
    assert run(jnp.ones([2, 2])).shape == (2, 2)


def test_no_modules_at_all_where_there_were_some():
    class Varies(elegy.Module):
        def call(self, x):
            return Affine(2)(x) if x.shape[0] > 1 else x

    module = Varies()
    module(jnp.ones([2, 2]))
    with pytest.raises(elegy.errors.ModuleOrderError, match="fewer"):
        module(jnp.ones([1, 2]))

    other = Varies()
    other(jnp.ones([1, 2]))
    with pytest.raises(elegy.errors.ModuleOrderError):
        other(jnp.ones([2, 2]))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (2, 3),
        (2, 2.0),
        (True, 1),
        ("a", "b"),
        ((1, 2), (1, 3)),
        ([1, 2], [1, 2, 3]),
        (None, 1),
        (jnp.float32, jnp.bfloat16),
    ],
)
def test_other_constructor_arguments_are_refused(first, then):
    class Inner(elegy.Module):
        def __init__(self, setting, *, option=None):
            self.setting, self.option = setting, option

        def call(self, x):
            return x

    class Outer(elegy.Module):
        def call(self, x, setting):
            return Inner(setting)(x)  # positional

    class Keyword(elegy.Module):
        def call(self, x, setting):
            return Inner(0, option=setting)(x)

    module = Outer()
    module(1.0, first)
    module(1.0, first)
    with pytest.raises(elegy.errors.ModuleOrderError) as caught:
        module(1.0, then)
    message = str(caught.value)
    assert message.count(line_of(Outer.call, "# positional")) == 2 and "Inner" in message
    module = Keyword()
    module(1.0, first)
    with pytest.raises(elegy.errors.ModuleOrderError, match="option"):
        module(1.0, then)
    assert module(1.0, first) == 1.0


def test_constructor_arguments_that_are_not_plain_may_differ():
    # Functions and arrays have no comparison to rely on: a lambda is another one on every call.
    class Inner(elegy.Module):
        def __init__(self, function, array):
            self.function, self.array = function, array

        def call(self, x):
            return self.function(x)

    class Outer(elegy.Module):
        def call(self, x):
            return Inner(lambda x: 2 * x, np.ones(3))(x)

    module = Outer()
    assert module(1.0) == module(1.0) == 2.0
    assert isinstance(module.inner.array, (np.ndarray, jax.Array))


def test_a_nan_among_the_arguments_is_itself():
    class Inner(elegy.Module):
        def __init__(self, fill):
            self.fill = fill

        def call(self, x):
            return x

    class Outer(elegy.Module):
        def call(self, x):
            return Inner(float("nan"))(x)

    module = Outer()
    assert module(1.0) == module(1.0) == 1.0


def test_recursion_and_reentry():
    class Recursive(elegy.Module):
        def __init__(self, depth):
            self.depth = depth

        def call(self, x):
            x = Affine(2)(x)
            return Recursive(self.depth - 1)(x) if self.depth else x

    module = Recursive(3)
    x = jnp.ones([1, 2])
    assert_close(module(x), elegy.jit(module)(x))
    assert len(jax.tree.leaves(module)) == 8
    assert module.recursive.recursive.recursive.depth == 0


def test_creation_in_a_loop_of_calls_of_one_child():
    class Child(elegy.Module):
        def call(self, x):
            return Affine(x.shape[-1])(x)

    class Parent(elegy.Module):
        def call(self, x):
            child = Child()
            for _ in range(3):
                x = child(x)
            return x

    module = Parent()
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["child"] and list(module.child.submodules) == ["affine"]


def test_creation_in_a_comprehension_a_generator_and_a_helper():
    def helper(width):
        return Affine(width)

    class Outer(elegy.Module):
        def call(self, x):
            layers = [helper(2) for _ in range(2)] + list(helper(2) for _ in range(1))  # noqa: C400
            for layer in layers:
                x = layer(x)
            return x

    module = Outer()
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["affine", "affine_1", "affine_2"]


def test_modules_created_in_init_of_a_created_module_belong_to_it():
    class Inner(elegy.Module):
        def __init__(self):
            self.layers = [Affine(2), Affine(2)]
            self.affine = Affine(3)

        def call(self, x):
            for layer in (*self.layers, self.affine):
                x = layer(x)
            return x

    class Outer(elegy.Module):
        def call(self, x):
            return Inner()(x)

    module = Outer()
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["inner"]
    assert list(module.inner.submodules) == ["layers/0", "layers/1", "affine"]
    layer = module.inner.layers[0]
    module(jnp.ones([1, 2]))
    assert module.inner.layers[0] is layer


def test_a_module_created_outside_and_used_inside_keeps_its_place():
    outside = Affine(2)

    class Outer(elegy.Module):
        def call(self, x):
            return outside(x) + Affine(2)(x)

    module = Outer()
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["affine"] and module.affine is not outside
    assert outside.initialized


def test_an_initialised_module_used_from_outside_keeps_its_updates():
    counter = Counter().init()

    @elegy.to_module
    def counted(x):
        counter()
        return Affine(2)(x)

    module = counted()
    for call in range(2):
        module(jnp.ones([1, 2]))
        assert int(counter.n) == call + 1 and concrete(counter)
    assert list(module.submodules) == ["affine"]


# ---------------------------------------------------------------------------------------------------------------------
# Declared, and used later
# ---------------------------------------------------------------------------------------------------------------------


class Late(elegy.Module):
    def call(self, x, which):
        first, second = Affine(2, name="first"), Affine(2, name="second")
        return first(x) if which == "first" else second(x)


def test_a_module_declared_but_not_called_is_materialised_later():
    module = Late()
    x = jnp.ones([1, 3])
    module(x, "first")
    assert list(module.submodules) == ["first", "second"]
    assert module.first.initialized and not module.second.initialized
    before = module.first.get_parameters()
    assert module(x, "second").shape == (1, 2)
    assert module.second.w.shape == (3, 2)
    assert_same(module.first.get_parameters(), before)


def test_a_module_declared_but_not_called_is_materialised_later_under_jit():
    module = Late()
    x = jnp.ones([1, 3])
    step = elegy.jit(module, static_argnums=1)
    step(x, "first")
    assert step.traces == 1 and not module.second.initialized
    y = step(x, "second")
    assert module.second.initialized and concrete((y, module))
    np.testing.assert_allclose(y, module.second(x), rtol=1e-6)
    traces = step.traces
    step(x, "second")
    step(x, "first")
    assert step.traces <= traces + 1  # the other branch once more, for the new structure


def test_a_module_declared_but_not_called_is_materialised_later_under_value_and_grad():
    module = Late()
    x = jnp.ones([1, 3])
    loss_fn = elegy.value_and_grad(lambda which: module(x, which).sum(), modules=module)
    _, grads = loss_fn("first")
    assert len(jax.tree.leaves(grads)) == 2
    _, grads = loss_fn("second")
    assert jax.tree.structure(grads) == jax.tree.structure(module.get_parameters())
    assert not grads["first"]["w"].any() and grads["second"]["w"].all()

    module = Late()
    both = elegy.jit(
        lambda which: elegy.value_and_grad(lambda: module(x, which).sum(), modules=module)(),
        modules=module,
        static_argnums=0,
    )
    both("first")
    _, grads = both("second")
    assert grads["second"]["w"].all() and concrete((grads, module))


def test_the_same_seed_gives_the_same_values_whenever_a_part_is_first_used():
    x = jnp.ones([1, 3])
    early, late = Late(), Late()
    elegy.set_rng(elegy.RNG(0))
    early(x, "first")
    elegy.set_rng(elegy.RNG(0))
    elegy.jit(late, static_argnums=1)(x, "first")
    assert_same(early.first.get_parameters(), late.first.get_parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Keys by path
# ---------------------------------------------------------------------------------------------------------------------


def test_a_layer_more_does_not_change_its_neighbours():
    class Two(elegy.Module):
        def call(self, x):
            x = Affine(2)(x)
            return Affine(2, name="last")(x)

    class Three(elegy.Module):
        def call(self, x):
            x = Affine(2)(x)
            x = Affine(2, name="between")(x)
            return Affine(2, name="last")(x)

    x = jnp.ones([1, 2])
    two, three = Two().init(x, rng=0), Three().init(x, rng=0)
    assert_same(two.affine.get_parameters(), three.affine.get_parameters())
    assert_same(two.last.get_parameters(), three.last.get_parameters())
    assert not np.array_equal(three.between.w, three.last.w)


def test_a_parameter_more_does_not_change_its_neighbours():
    def net(names):
        class Net(elegy.Module):
            def call(self):
                return [self.add_parameter(name, [4], initializer=elegy.initializers.RandomUniform()) for name in names]

        return Net().init(rng=0)

    short, long = net(["a", "c"]), net(["a", "b", "c"])
    assert_same([short.a, short.c], [long.a, long.c])
    assert len({np.asarray(value).tobytes() for value in (long.a, long.b, long.c)}) == 3


def test_one_seed_gives_the_same_values_everywhere():
    class Net(elegy.Module):
        def __init__(self):
            self.listed = [Affine(3), {"deep": Affine(3)}]

        def call(self, x):
            x = self.listed[1]["deep"](self.listed[0](x))
            return Affine(2)(jnp.tanh(Affine(2)(x)))

    x, _ = batch()
    expected = Net().init(x, rng=7)

    def eager():
        module = Net()
        module(x)
        return module

    def compiled():
        module = Net()
        elegy.jit(module)(x)
        return module

    def differentiated():
        module = Net()
        elegy.jit(lambda: elegy.value_and_grad(lambda: module(x).sum(), modules=module)(), modules=module)()
        return module

    for make in (eager, compiled, differentiated):
        elegy.set_rng(elegy.RNG(7))
        assert_close(make(), expected, rtol=1e-6)
    elegy.set_rng(elegy.RNG(0))
    assert_close(Net().apply(x, rng=7)[1], expected, rtol=1e-6)
    assert_close(jax.jit(lambda key: Net().init(x, rng=key))(jax.random.key(7)), expected, rtol=1e-6)
    many = jax.vmap(lambda key: Net().init(x, rng=key))(jax.random.key(7)[None])
    assert_close(jax.tree.map(lambda leaf: leaf[0], many), expected, rtol=1e-6)
    assert not np.array_equal(Net().init(x, rng=8).affine.w, expected.affine.w)


# ---------------------------------------------------------------------------------------------------------------------
# Functions as modules
# ---------------------------------------------------------------------------------------------------------------------


def test_to_module():
    @elegy.to_module
    def residual_block(x, *, scale=1.0):
        """Adds."""
        return x + scale * Affine(x.shape[-1])(x)

    assert isinstance(residual_block, type) and issubclass(residual_block, elegy.Module)
    assert residual_block.__doc__ == "Adds." and residual_block.__name__ == "residual_block"
    x, _ = batch()
    module = residual_block()
    y = module(x)
    assert module.name == "residual_block" and list(module.get_parameters()) == ["affine"]
    np.testing.assert_allclose(module(x, scale=0.0), x)
    assert_close(elegy.jit(module)(x), y)
    assert_close(jax.jit(lambda m, x: m(x))(module, x), y)
    assert residual_block(name="other").name == "other"
    assert_same(module.copy()(x), y)


def test_to_module_inside_call_with_values_of_the_call():
    class Outer(elegy.Module):
        def call(self, x, factor):
            @elegy.to_module
            def block(x):
                return Affine(2)(x) * factor  # closes over a value of this call

            return block()(x)

    x, _ = batch()
    module = Outer()
    y = module(x, 1.0)
    np.testing.assert_allclose(module(x, 3.0), 3 * y, rtol=1e-6)
    assert list(module.submodules) == ["block"]
    # Values that are tracers are those of the running trace, and none stays behind.
    step = elegy.jit(module)
    for factor in (2.0, 5.0):
        np.testing.assert_allclose(step(x, jnp.asarray(factor)), factor * y, rtol=1e-5)
    assert step.traces == 1
    np.testing.assert_allclose(module(x, 3.0), 3 * y, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda m, x, f: m(x, f))(module, x, 4.0), 4 * y, rtol=1e-5)
    np.testing.assert_allclose(module(x, 3.0), 3 * y, rtol=1e-6)


def test_two_modules_with_functions_made_inside_call_do_not_mix():
    class Outer(elegy.Module):
        def __init__(self, factor):
            self.factor = factor

        def call(self, x):
            @elegy.to_module
            def block(x):
                return x * self.factor

            return block()(x)

    one, two = Outer(1.0), Outer(2.0)
    assert one(1.0) == 1.0 and two(1.0) == 2.0
    assert one.block(1.0) == 1.0 and two.block(1.0) == 2.0
    assert one(1.0) == 1.0 and two(1.0) == 2.0
    copy = one.copy()
    assert copy(1.0) == 1.0 and one(1.0) == 1.0


def test_a_module_inside_call_and_its_copy_close_over_values_of_their_own():
    class Outer(elegy.Module):
        def call(self, x, factor):
            @elegy.to_module
            def block(x):
                return x * factor

            return block()(x)

    module = Outer()
    module(1.0, 2.0)
    copy = module.copy()
    copy(1.0, 5.0)
    assert module.block(1.0) == 2.0


def test_no_tracer_stays_in_a_function_made_inside_call():
    class Outer(elegy.Module):
        def call(self, x, factor):
            @elegy.to_module
            def block(x):
                return x * factor

            return block()(x)

    module = Outer()
    module(1.0, 2.0)
    jax.jit(lambda m, x, f: m(x, f))(module, 1.0, 3.0)
    assert concrete(module.block(1.0))
    elegy.jit(module)(1.0, 3.0)
    assert concrete(module.block(1.0))


def test_to_module_of_a_class_made_inside_call_runs_and_compiles_once():
    class Outer(elegy.Module):
        def call(self, x):
            class Local(elegy.Module):
                def call(self, x):
                    return Affine(2)(x)

            return Local()(x)

    x, _ = batch()
    module = Outer()
    local = None
    for _ in range(3):
        module(x)
        local = module.local if local is None else local
        assert module.local is local
    step = elegy.jit(module)
    step(x)
    step(x)
    assert step.traces == 1
    stock = jax.jit(lambda m, x: m(x))
    stock(module, x)
    module(x)
    stock(module, x)
    assert stock._cache_size() == 1


def test_to_module_of_odd_functions():
    import functools

    double = elegy.to_module(lambda x: 2 * x)
    assert double()(3.0) == 6.0 and double().name.isidentifier()
    assert elegy.to_module(functools.partial(lambda a, b: a + b, 1.0))()(2.0) == 3.0
    assert elegy.to_module(jnp.tanh)()(jnp.zeros(2)).shape == (2,)

    class Callable:
        def __call__(self, x):
            return x + 1

    assert elegy.to_module(Callable())()(1.0) == 2.0

    class Outer(elegy.Module):
        def call(self, x):
            return double()(elegy.to_module(lambda x: x + 1)()(x))

    module = Outer()
    assert module(1.0) == module(1.0) == 4.0


def test_to_module_with_state():
    @elegy.to_module
    def counted(x):
        Counter()()
        return x

    module = counted().init(1.0)
    elegy.jit(module)(1.0)
    module(1.0)
    assert int(module.counter.n) == 2


def test_creation_inside_a_function_passed_to_a_module():
    # The owner is the module that runs the function.
    class Runner(elegy.Module):
        def call(self, function, x):
            return function(x)

    class Outer(elegy.Module):
        def call(self, x):
            return Runner()(lambda x: Affine(2)(x), x)

    module = Outer()
    module(jnp.ones([1, 2]))
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["runner"] and list(module.runner.submodules) == ["affine"]


# ---------------------------------------------------------------------------------------------------------------------
# Methods other than call
# ---------------------------------------------------------------------------------------------------------------------


class Encoder(elegy.Module):
    def call(self, x):
        x = jnp.tanh(Affine(4)(x))
        return Affine(2, name="mean")(x), Affine(2, name="log_std")(x)


class Decoder(elegy.Module):
    def __init__(self, size):
        self.size = size

    def call(self, z):
        return Affine(self.size)(jnp.tanh(Affine(4)(z)))


class VAE(elegy.Module):
    """Layers made in `call`; both halves can be taken out."""

    def call(self, x):
        mean, log_std = Encoder()(x)
        z = mean + jnp.exp(log_std) * jax.random.normal(elegy.next_rng_key(), mean.shape)
        elegy.add_loss("kl", 0.5 * jnp.mean(mean**2 + jnp.exp(2 * log_std) - 2 * log_std - 1))
        return Decoder(x.shape[-1])(z)


class CompactVAE(elegy.Module):
    """The same by methods."""

    def __init__(self, size):
        self.size = size

    @elegy.compact
    def encode(self, x):
        x = jnp.tanh(Affine(4)(x))
        return Affine(2, name="mean")(x), Affine(2, name="log_std")(x)

    @elegy.compact
    def decode(self, z):
        z = jnp.tanh(Affine(4, name="hidden")(z))
        return Affine(self.size, name="out")(z)

    def call(self, x):
        mean, log_std = self.encode(x)
        return self.decode(mean + jnp.exp(log_std) * jax.random.normal(elegy.next_rng_key(), mean.shape))


def test_the_decoder_of_an_autoencoder_is_used_alone():
    x, _ = batch(6, 5)
    module = VAE()
    loss_fn = elegy.value_and_grad(lambda: jnp.mean((module(x) - x) ** 2), modules=module)
    loss_fn()
    z = jax.random.normal(jax.random.key(0), [3, 2])
    samples = module.decoder(z)
    assert samples.shape == (3, 5)
    assert_close(elegy.jit(module.decoder)(z), samples)
    assert_close(jax.jit(lambda m, z: m(z))(module.decoder, z), samples)
    assert elegy.get_module() is None


def test_the_methods_of_an_autoencoder_are_used_alone():
    x, _ = batch(6, 5)
    module = CompactVAE(5)
    module(x)
    assert list(module.get_parameters(trainable=True)) == ["affine", "mean", "log_std", "hidden", "out"]
    hidden = module.hidden
    z = jnp.ones([3, 2])
    assert module.decode(z).shape == (3, 5)
    assert module.encode(x)[0].shape == (6, 2)
    assert module.hidden is hidden and len(module.submodules) == 5
    assert_close(elegy.jit(module.decode)(z), module.decode(z))
    assert_close(jax.jit(CompactVAE.decode)(module, z), module.decode(z))
    out, same = module.apply(z, method="decode")
    assert_close(out, module.decode(z))
    assert_same(same, module)


def test_a_method_may_run_before_call_and_by_itself():
    x, _ = batch(6, 5)
    module = CompactVAE(5)
    z = jnp.ones([3, 2])
    first = module.decode(z)
    assert list(module.get_parameters()) == ["hidden", "out"]
    parameters = module.get_parameters()
    module(x)
    assert_same({name: module.get_parameters()[name] for name in parameters}, parameters)
    assert_close(module.decode(z), first)


def test_the_owner_of_what_a_method_creates_is_the_module_of_the_method():
    class Owner(elegy.Module):
        @elegy.compact
        def project(self, x):
            return Affine(2)(x)

        def call(self, x):
            return self.project(x)

    class Outer(elegy.Module):
        def __init__(self):
            self.owner = Owner()

        def call(self, x):
            return self.owner.project(x)

    module = Outer()
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["owner"] and list(module.owner.submodules) == ["affine"]
    inner = module.owner.affine
    module.owner(jnp.ones([1, 2]))
    assert module.owner.affine is inner


def test_a_plain_method_gives_its_layers_to_the_module_that_runs():
    class Outer(elegy.Module):
        def helper(self, x):
            return Affine(2)(x)

        def call(self, x):
            return self.helper(self.helper(x))

    module = Outer()
    module(jnp.ones([1, 2]))
    assert list(module.submodules) == ["affine", "affine_1"]


def test_two_methods_create_modules_of_one_class():
    class Both(elegy.Module):
        @elegy.compact
        def a(self, x):
            return Affine(2)(x)

        @elegy.compact
        def b(self, x):
            return Affine(3)(x)

        def call(self, x):
            return self.b(self.a(x))

    x, _ = batch()
    module = Both()
    module.b(x)
    module.a(x)
    assert module.affine.width == 3 and module.affine_1.width == 2
    assert module.a(x).shape == (6, 2) and module.b(x).shape == (6, 3)


def test_a_method_called_twice_in_a_call_shares_its_layers():
    class Twice(elegy.Module):
        @elegy.compact
        def layer(self, x):
            return Affine(3)(x)

        def call(self, x):
            return self.layer(self.layer(x))

    x, _ = batch()
    module = Twice()
    module(x)
    assert list(module.submodules) == ["affine"]


def test_a_method_with_drift_names_itself():
    class Drifts(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return Affine(2)(x) if x.shape[0] > 1 else Mask()(x)

        def call(self, x):
            return self.encode(x)

    module = Drifts()
    module.encode(jnp.ones([2, 2]))
    with pytest.raises(elegy.errors.ModuleOrderError, match=re.escape("drifts.encode")):
        module.encode(jnp.ones([1, 2]))


def test_overridden_call_and_methods():
    class Base(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return Affine(2, name="base")(x)

        def call(self, x):
            return Affine(2, name="head")(self.encode(x))

    class Derived(Base):
        @elegy.compact
        def encode(self, x):
            return Affine(3, name="derived")(x)

        def call(self, x):
            return super().call(x) * 2

    module = Derived()
    x, _ = batch()
    module(x)
    assert list(module.submodules) == ["derived", "head"] or list(module.submodules) == ["head", "derived"]


def test_a_compact_method_that_extends_that_of_its_base():
    class Base(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return Affine(2, name="base")(x)

        def call(self, x):
            return self.encode(x)

    class Derived(Base):
        @elegy.compact
        def encode(self, x):
            return Affine(3, name="derived")(super().encode(x))

    module = Derived()
    x, _ = batch()
    y = module(x)
    assert y.shape == (6, 3) and set(module.submodules) == {"base", "derived"}
    assert_close(module(x), y)
    assert_close(module.encode(x), y)
    assert_close(elegy.jit(module)(x), y)


def test_a_compact_method_without_layers_and_with_odd_signatures():
    class Odd(elegy.Module):
        @elegy.compact
        def nothing(self):
            """Documented."""
            return 3

        @elegy.compact
        def variadic(self, *args, key=None, **kwargs):
            return len(args), key, sorted(kwargs)

        def call(self):
            return self.nothing()

    module = Odd()
    assert module.nothing() == 3 and Odd.nothing.__doc__ == "Documented."
    assert module.variadic(1, 2, key="k", a=1) == (2, "k", ["a"])
    assert module() == 3


def test_a_parameter_may_not_be_called_name_or_dtype():
    for name in ("name", "dtype"):

        class Takes(elegy.Module):
            def call(self, name=name):
                self.add_parameter(name, [2])
                return self.add_parameter("other", [2])

        with pytest.raises(elegy.errors.NameCollisionError, match=name):
            Takes()()


def test_the_key_of_a_module_does_not_mix_with_attributes_of_the_same_name():
    class Parameter(elegy.Module):
        def call(self, x):
            key = elegy.next_rng_key()
            own = self.add_parameter("rng_key", [2], initializer=jnp.ones)
            assert own.dtype == jnp.float32
            return x + jax.random.normal(key, x.shape)

    class Attribute(elegy.Module):
        def __init__(self):
            self.rng_key = 3

        def call(self, x):
            return x + self.rng_key * jax.random.normal(elegy.next_rng_key(), x.shape)

    # Either it works, as any other name would, or it is refused by name.
    x = jnp.ones([3])
    for cls in (Parameter, Attribute):
        try:
            module = cls()
            module(x)
            y, _ = jax.jit(lambda m, x: (m(x), m))(module, x)
        except elegy.errors.NameCollisionError as error:
            assert "rng_key" in str(error)
        else:
            assert np.isfinite(y).all()


@pytest.mark.parametrize("name", ["rng_key", "dtype", "name"])
def test_names_that_the_library_reads_cannot_be_given(name):
    class Net(elegy.Module):
        def call(self, x):
            return Affine(2, name=name)(x)

    x, _ = batch()
    with pytest.raises(elegy.errors.NameCollisionError, match=f"net: the name '{name}'"):
        Net()(x)


@pytest.mark.parametrize("way", ["class", "to_module"])
def test_a_class_made_in_call_uses_the_values_of_this_call(way):
    class Net(elegy.Module):
        def call(self, x):
            if way == "to_module":
                return elegy.to_module(lambda y: Affine(2)(y) * x.sum())()(x)

            class Scaled(elegy.Module):
                def call(self, y):
                    return Affine(2)(y) * x.sum()

            return Scaled()(x)

    x, _ = batch()
    net = Net()
    run = elegy.jit(net)
    for factor in (1.0, 2.0, 3.0):
        y = net(factor * x)
        (child,) = net.submodules.values()
        assert_close(y, child.affine(factor * x) * (factor * x).sum(), rtol=1e-4)
        assert_close(run(factor * x), y, rtol=1e-4)
        assert_close(child(x), child.affine(x) * (factor * x).sum(), rtol=1e-4)  # by itself: as it last ran
    assert run.traces == 1 and concrete(net)


# ---------------------------------------------------------------------------------------------------------------------
# Names of methods, and methods of one name
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["init", "copy", "apply", "call", "reset", "get_parameters", "set_parameters", "add_parameter", "submodules"],
)
@pytest.mark.parametrize("value", [lambda: Affine(3), lambda: jnp.cos, lambda: 3])
def test_an_attribute_named_like_a_method_of_every_module_is_refused(name, value):
    class Net(elegy.Module):
        def __init__(self):
            setattr(self, name, value())

        def call(self, x):
            return x

    with pytest.raises((elegy.errors.NameCollisionError, AttributeError), match=name) as raised:
        Net()
    # A property cannot be assigned at all: Python says so.
    assert isinstance(raised.value, elegy.errors.NameCollisionError) or name == "submodules"


def test_compact_methods_made_by_one_factory_have_layers_of_their_own():
    def head(activation):
        @elegy.compact
        def method(self, x):
            return activation(Affine(2)(x))

        return method

    class Net(elegy.Module):
        mean = head(lambda x: x)
        scale = head(jax.nn.softplus)

        def call(self, x):
            return self.mean(x), self.scale(x)

    class Child(Net):
        extra = head(jnp.tanh)

        def call(self, x):
            return (*super().call(x), self.extra(x))

    x, _ = batch()
    for cls, activations in ((Net, [lambda x: x, jax.nn.softplus]), (Child, [lambda x: x, jax.nn.softplus, jnp.tanh])):
        module = cls()
        outputs = module(x)
        layers = list(module.submodules.values())
        assert list(module.submodules) == ["affine", "affine_1", "affine_2"][: len(activations)]
        for y, layer, activation in zip(outputs, layers, activations, strict=True):
            assert_close(y, activation(x @ layer.w + jnp.broadcast_to(layer.b, (6, 2))))
        assert_close(module(x), outputs)
        assert_close(module.scale(x), outputs[1])
