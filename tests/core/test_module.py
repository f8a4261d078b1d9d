"""`Module` itself: construction, attributes, the call, copies, modules in every odd position."""

import copy
import dataclasses
import functools
import inspect
import pickle
import typing as tp
import weakref

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from tests import helpers
from tests.helpers import Affine, Counter, Mask, Net, Norm, assert_close, assert_same, batch, concrete

# ---------------------------------------------------------------------------------------------------------------------
# Construction
# ---------------------------------------------------------------------------------------------------------------------


def test_nothing_of_the_super_constructor_is_required():
    class Bare(elegy.Module):
        def __init__(self, width):
            self.width = width

        def call(self, x):
            return Affine(self.width)(x)

    module = Bare(3)
    assert module.name == "bare" and module.dtype == jnp.float32 and module.trainable and not module.initialized
    assert module(jnp.ones([1, 2])).shape == (1, 3)


def test_the_super_constructor_takes_name_and_dtype():
    module = elegy.Module(name="thing", dtype=jnp.bfloat16)
    assert module.name == "thing" and module.dtype == jnp.bfloat16
    with pytest.raises(NotImplementedError, match="Module does not define `call`"):
        module(1)


def test_attributes_may_be_set_in_init_in_any_way():
    class Sets(elegy.Module):
        def __init__(self):
            self.a = 1
            del self.a
            setattr(self, "b", 2)  # noqa: B010
            vars(self).update(c=3, d=4)
            self.layers = []
            for _ in range(2):
                self.layers.append(Affine(2))
            self.table = {}
            self.table["x"] = Affine(2)
            self.helper()

        def helper(self):
            self.e = 5

        def call(self, x):
            return x

    module = Sets()
    assert not hasattr(module, "a") and (module.b, module.c, module.d, module.e) == (2, 3, 4, 5)
    assert list(module.submodules) == ["layers/0", "layers/1", "table/x"]


def test_inheritance_mixins_and_abstract_classes():
    import abc

    class Base(elegy.Module):
        @abc.abstractmethod
        def width(self) -> int: ...

        def call(self, x):
            return Affine(self.width())(x)

    class Mixin:
        extra = 1

        def width(self):
            return 2 + self.extra

    class Derived(Mixin, Base):
        def __init__(self, extra):
            super().__init__()
            self.extra = extra

    with pytest.raises(TypeError, match="abstract"):
        Base()  # pyright: ignore[reportAbstractUsage]
    assert Derived(2)(jnp.ones([1, 1])).shape == (1, 4)
    assert Derived.extra == 1


def test_new_and_class_methods_and_properties_work():
    class Made(elegy.Module):
        def __new__(cls, size):
            module = super().__new__(cls)
            return module

        def __init__(self, size):
            self.size = size

        @classmethod
        def small(cls):
            return cls(1)

        @property
        def double(self):
            return 2 * self.size

        @functools.cached_property
        def heavy(self):
            return 3

        @staticmethod
        def helper(x):
            return x + 1

        def call(self, x):
            return self.helper(x) * self.double

    assert Made.small()(1.0) == 4.0
    assert Made.small().double == 2


def test_generic_modules():
    T = tp.TypeVar("T", bound=elegy.Module)

    class Box(elegy.Module, tp.Generic[T]):
        def __init__(self, inner: T):
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    box = Box[Affine](Affine(2))
    assert box(jnp.ones([1, 2])).shape == (1, 2)
    assert_same(jax.tree.map(lambda a: a, box), box)


def test_a_failing_constructor_leaves_nothing():
    class Fails(elegy.Module):
        def __init__(self, fail):
            self.inner = Affine(2)
            if fail:
                raise KeyError("no")

        def call(self, x):
            return self.inner(x)

    with pytest.raises(KeyError):
        Fails(True)
    assert elegy.get_module() is None
    assert Fails(False)(jnp.ones([1, 2])).shape == (1, 2)


def test_a_parent_calls_a_child_in_its_constructor():
    class Parent(elegy.Module):
        def __init__(self):
            self.child = Affine(2)
            self.example = self.child(jnp.ones([1, 3]))

        def call(self, x):
            return self.child(x)

    module = Parent()
    assert module.child.initialized and module.example.shape == (1, 2)
    assert module(jnp.ones([5, 3])).shape == (5, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Frozen attributes
# ---------------------------------------------------------------------------------------------------------------------


def test_attributes_are_frozen():
    module = Net().init(batch()[0])
    before = module.copy()

    def assign_new():
        module.extra = 1

    def assign_module():
        module.affine = Affine(8)

    def assign_array():
        module.affine.w = jnp.zeros([3, 8])

    def delete():
        del module.affine

    def augment():
        module.affine.w += 1

    def assign_private():
        module._cache = 1

    for change, name in [
        (assign_new, "net.extra"),
        (assign_module, "net.affine"),
        (assign_array, "affine.w"),
        (delete, "net.affine"),
        (augment, "affine.w"),
        (assign_private, "net._cache"),
    ]:
        with pytest.raises(elegy.errors.FrozenModuleError, match=name) as caught:
            change()
        assert isinstance(caught.value, AttributeError)
    with pytest.raises(elegy.errors.FrozenModuleError, match="set_parameters"):
        assign_array()
    with pytest.raises(elegy.errors.FrozenModuleError, match="equinox.tree_at"):
        assign_array()
    assert_same(module, before)
    assert not hasattr(module, "extra")


def test_an_error_of_a_submodule_names_its_path():
    class Sets(elegy.Module):
        def call(self, x):
            self.value = x

    class Outer(elegy.Module):
        def __init__(self):
            self.parts = {"a": [Sets()]}

        def call(self, x):
            return self.parts["a"][0](x)

    with pytest.raises(elegy.errors.FrozenModuleError, match="outer/parts/a/0.value"):
        Outer()(1.0)


def test_in_place_changes_of_numpy_attributes_do_not_go_unseen():
    # A NumPy array in a module can be written in place; what is compiled must read the new value.
    class Holds(elegy.Module):
        def __init__(self):
            self.table = np.zeros(2, np.float32)

        def call(self):
            return self.table + 1

    module = Holds().init()
    step = elegy.jit(module)
    np.testing.assert_array_equal(step(), [1, 1])
    copied = module.copy()
    try:
        module.table[0] = 5
    except ValueError:
        return  # read-only is right too
    np.testing.assert_array_equal(step(), [6, 1])
    np.testing.assert_array_equal(copied.table, [0, 0])


def test_unknown_attributes_have_no_side_effect():
    module = Net()
    for name in ("affine", "linear", "inference", "_private", "__wrapped__", "shape"):
        assert not hasattr(module, name)
        with pytest.raises(AttributeError, match=name):
            getattr(module, name)
    assert not module.initialized and jax.tree.leaves(module) == []
    assert getattr(module, "missing", 3) == 3


def test_modules_compare_by_identity_and_can_be_keys():
    a, b = Net(), Net()
    assert a == a and a != b and len({a, b, a}) == 2 and {a: 1}[a] == 1
    assert weakref.ref(a)() is a


# ---------------------------------------------------------------------------------------------------------------------
# Calling
# ---------------------------------------------------------------------------------------------------------------------


def test_arguments_of_every_form():
    class Takes(elegy.Module):
        def call(self, a, /, b, *rest, c=1, **more):
            total = a + b + sum(rest) + c + sum(more.values())
            return self.add_parameter("w", [], initializer=jnp.ones) * total

    module = Takes()
    expected = 1.0 + 2 + 3 + 4 + 5 + 6
    for run in (module, elegy.jit(module), module.jit, lambda *a, **k: module.apply(*a, **k)[0]):
        assert run(1.0, 2.0, 3.0, 4.0, c=5.0, d=6.0) == expected
    with pytest.raises(TypeError):
        module()


def test_arguments_named_self_function_module_and_method():
    class Takes(elegy.Module):
        def call(self, **named):
            return sum(named.values())

    module = Takes()
    named = dict.fromkeys(("module", "function", "args", "kwargs", "frame", "cls", "name", "values"), 1.0)
    assert module(**named) == len(named)
    assert elegy.jit(module)(**named) == len(named)
    assert Takes().init(**named).initialized


def test_inputs_and_outputs_of_every_form():
    class Echo(elegy.Module):
        def call(self, value):
            self.add_parameter("w", [])
            return value

    for value in [
        None,
        3,
        2.5,
        "text",
        jnp.ones(2),
        np.ones(2),
        (1, [2, {"a": jnp.ones(1)}]),
        jnp.tanh,
        object,
        {},
        [],
        Affine(2),
        jax.random.key(0),
        jnp.ones(2, jnp.bfloat16),
        True,
    ]:
        module = Echo()
        assert module(value) is value or jax.tree.structure(module(value)) == jax.tree.structure(value)
        assert module.initialized


def test_static_looking_inputs_keep_their_type_on_the_first_call():
    # Numbers, bools and strings decide branches of call; they are no tracers in the init pass.
    class Branches(elegy.Module):
        def call(self, x, flag, count, name):
            assert type(flag) is bool and type(count) is int and type(name) is str
            for _ in range(count):
                x = Affine(2)(x)
            return x if flag else -x

    assert Branches()(jnp.ones([1, 2]), True, 2, "a").shape == (1, 2)
    assert Branches().init(jnp.ones([1, 2]), True, 2, "a").initialized


def test_numpy_inputs():
    x = np.random.default_rng(0).uniform(size=(4, 3))
    module = Affine(2)
    with jax.numpy_dtype_promotion("standard"):
        assert module(x).shape == (4, 2) and elegy.jit(module)(x).shape == (4, 2)


def test_a_call_that_branches_on_a_value_needs_concrete_values_on_the_first_call():
    class Branches(elegy.Module):
        def call(self, x):
            w = self.add_parameter("w", [], initializer=jnp.ones)
            return x * w if elegy.is_initializing() or x.sum() > 0 else -x * w

    module = Branches()
    assert module(jnp.asarray(-2.0)) == 2.0 and module(jnp.asarray(2.0)) == 2.0


def test_a_module_as_an_argument_of_another_module():
    class Runs(elegy.Module):
        def call(self, inner, x):
            return Affine(1)(inner(x))

    x, _ = batch()
    inner, outer = Net(), Runs()
    y = outer(inner, x)
    assert inner.initialized and outer.initialized and concrete((inner, outer))
    assert list(outer.submodules) == ["affine"]
    assert_close(outer(inner, x), y)
    counter = Counter().init()
    outer = Runs()
    outer(counter, x)
    outer(counter, x)
    assert int(counter.n) == 2
    # Compiled, it is a value as any argument: updates are those of a copy.
    step = elegy.jit(lambda inner, x: (outer(inner, x), inner), modules=outer)
    _, updated = step(counter, x)
    assert int(updated.n) == 3 and int(counter.n) == 2
    # Listed, it is threaded.
    elegy.jit(lambda x: outer(counter, x), modules=[outer, counter])(x)
    assert int(counter.n) == 3


def test_modules_in_containers_as_arguments():
    class Runs(elegy.Module):
        def call(self, parts):
            return parts["a"][0](parts["x"])

    x, _ = batch()
    inner = Net()
    module = Runs()
    y = module({"a": [inner], "x": x})
    assert inner.initialized and module.submodules == {}
    assert_close(module({"a": [inner], "x": x}), y)


def test_a_module_as_an_output():
    class Makes(elegy.Module):
        def call(self, x):
            inner = Affine(2)
            inner(x)
            return inner

    module = Makes()
    x, _ = batch()
    assert module(x) is module.affine
    assert module(x) is module.affine
    made = elegy.jit(module)(x)
    assert_same(made.get_parameters(), module.affine.get_parameters())


def test_modules_without_parameters():
    class Nothing(elegy.Module):
        def call(self, x):
            return x

    module = Nothing()
    assert module(3) == 3 and module.initialized
    assert module.get_parameters() == {} and jax.tree.leaves(module) == []
    assert module.parameters_size() == module.states_size() == module.parameters_bytes() == 0
    assert elegy.jit(module)(jnp.ones([])) == 1 and module.jit(jnp.ones([])) == 1
    assert jax.jit(lambda m, x: m(x))(module, 1.0) == 1.0
    assert_same(pickle.loads(cloudpickle.dumps(module)), module)
    module.set_parameters({})
    module.trainable = False
    module.reset()
    assert elegy.partition(module)[0].get_parameters() == {}


def test_containers_without_elements():
    class Empty(elegy.Module):
        def __init__(self):
            self.layers, self.table, self.pair = [], {}, ()
            self.nested = {"a": [], "b": ({}, [()])}

        def call(self, x):
            for layer in self.layers:
                x = layer(x)
            return Affine(1)(x)

    x, _ = batch()
    module = Empty()
    step = elegy.jit(module)
    assert_close(step(x), module(x))
    assert list(module.get_parameters()) == ["affine"]
    moved = jax.jit(lambda m: m)(module)
    assert moved.nested == {"a": [], "b": ({}, [()])}


def test_modules_nested_in_dicts_of_lists_and_named_tuples():
    class Pair(tp.NamedTuple):
        a: tp.Any
        b: tp.Any

    class Deep(elegy.Module):
        def __init__(self):
            self.parts = {"z": [Affine(2), [Pair(Affine(3), {"q": (Affine(2), 5, None)})]], "y": Affine(2)}

        def call(self, x):
            x = self.parts["z"][0](x)
            x = self.parts["z"][1][0].a(x)
            x = self.parts["z"][1][0].b["q"][0](x)
            return self.parts["y"](x)

    x, _ = batch()
    module = Deep()
    y = module(x)
    moved = jax.jit(lambda m: m)(module)
    assert isinstance(moved.parts["z"][1][0], Pair) and moved.parts["z"][1][0].b["q"][1:] == (5, None)
    assert_close(moved(x), y)
    assert len(jax.tree.leaves(module)) == 8
    _, grads = elegy.value_and_grad(lambda: module(x).sum(), modules=module)()
    module.set_parameters(jax.tree.map(lambda p, g: p - g, module.get_parameters(), grads))
    assert not np.allclose(module(x), y)
    _, metrics = collected_paths(module, x)
    assert "deep/parts/z/1/0/b/q/0" in metrics or any("q" in path for path in metrics)


def test_dict_keys_of_several_types():
    class Holds(elegy.Module):
        def __init__(self):
            self.parts = {"a": Affine(2), 1: Affine(2)}

        def call(self, x):
            return self.parts[1](self.parts["a"](x))

    # JAX sorts the keys of dicts. It works, or the constructor says why not.
    x, _ = batch()
    try:
        module = Holds()
    except elegy.errors.ElegyError as error:
        assert "parts" in str(error)
        return
    _, grads = elegy.value_and_grad(lambda: module(x).sum(), modules=module)()
    module.set_parameters(grads)


def collected_paths(module, x):
    with elegy.hooks_context(summaries=True):
        y = module(x)
        return y, [name for _, name, _ in helpers.summaries()]


def test_other_containers():
    import collections

    class Holds(elegy.Module):
        def __init__(self):
            self.ordered = collections.OrderedDict(b=Affine(2), a=Affine(2))
            self.default = collections.defaultdict(list, {"x": [Affine(2)]})

        def call(self, x):
            for layer in (*self.ordered.values(), self.default["x"][0]):
                x = layer(x)
            return x

    x, _ = batch()
    module = Holds()
    module(x)
    assert len(jax.tree.leaves(module)) == 6
    assert_close(jax.jit(lambda m: m(x))(module), module(x))
    assert list(jax.tree.map(lambda a: a, module).ordered) == ["b", "a"]


def test_equinox_layers_in_containers_and_as_hooks():
    class Hybrid(elegy.Module):
        def __init__(self, key):
            self.layers = [eqx.nn.Linear(3, 3, key=key), Affine(3), jnp.tanh, eqx.nn.Dropout(0.0)]

        def call(self, x):
            x = jax.vmap(self.layers[0])(x)
            x = self.layers[2](self.layers[1](x))
            return self.layers[3](x, inference=True)

    x, _ = batch()
    module = Hybrid(jax.random.key(0))
    step = elegy.jit(module)
    assert_close(step(x), module(x))
    assert step.traces == 1
    grads = elegy.grad(lambda: module(x).sum(), modules=module)()
    assert len(jax.tree.leaves(grads)) == 4
    moved = copy.deepcopy(module)
    assert_close(moved(x), module(x))
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.layers[0].weight = 1


def test_an_equinox_layer_that_holds_an_elegy_module():
    class Inner(eqx.Module):
        layer: elegy.Module
        scale: float = 2.0

        def __call__(self, x):
            return self.layer(x) * self.scale

    class Outer(elegy.Module):
        def __init__(self):
            self.inner = Inner(Affine(2))

        def call(self, x):
            return Affine(1)(self.inner(x))

    x, _ = batch()
    module = Outer()
    y = module(x)
    assert module.inner.layer.initialized
    assert len(jax.tree.leaves(module.get_parameters(trainable=True))) == 4
    assert_close(elegy.jit(module)(x), y)
    assert_close(jax.jit(lambda m: m(x))(module), y)
    grads = elegy.grad(lambda: module(x).sum(), modules=module)()
    module.set_parameters(jax.tree.map(lambda p, g: p - g, module.get_parameters(), grads))
    assert not np.allclose(module(x), y)


def test_errors_say_in_which_module_they_happened():
    class Bad(elegy.Module):
        def call(self, x):
            w = self.add_parameter("w", [5, 2])
            return x @ w

    class Outer(elegy.Module):
        def call(self, x):
            return Bad(name="bad")(x)

    with pytest.raises(TypeError) as caught:
        Outer()(jnp.ones([2, 3]))
    notes = "\n".join(caught.value.__notes__)
    assert "outer/bad" in notes and "Bad.call" in notes and "w: float32[5,2]" in notes and "float32[2,3]" in notes
    assert notes.count("Bad.call") == 1 and "Outer.call" not in notes


# ---------------------------------------------------------------------------------------------------------------------
# Copies
# ---------------------------------------------------------------------------------------------------------------------


class Small(elegy.Module):
    """Parameters and state; at module level, so that pickle finds it."""

    def call(self, x):
        Counter()()
        return Affine(2)(x)


COPIES = {
    "copy": lambda m: m.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "cloudpickle": lambda m: cloudpickle.loads(cloudpickle.dumps(m)),
}


@pytest.mark.parametrize("kind", list(COPIES))
@pytest.mark.parametrize("initialised", [True, False])
def test_a_copy_is_independent(kind, initialised):
    x, _ = batch()
    module = Small()
    if initialised:
        module.init(x)
        module.affine.trainable = False
        module.jit(x)
    copied = COPIES[kind](module)
    assert type(copied) is Small and copied is not module
    assert_same(copied, module)
    assert jax.tree.structure(copied) == jax.tree.structure(module)
    before = module.copy()
    copied(x)
    copied.jit(x)
    copied.trainable = True
    copied.set_parameters(jax.tree.map(jnp.ones_like, copied.get_parameters()))
    assert_same(module, before)
    assert module.initialized == initialised
    before = copied.copy()
    module(x)
    assert_same(copied, before)
    assert concrete((module, copied))


def test_a_copy_initialises_itself():
    x, _ = batch()
    module = Net()
    for make in COPIES.values():
        copied = make(module)
        copied.init(x)
        assert copied.initialized and not module.initialized


def test_a_copy_keeps_the_order_of_its_hooks():
    x, _ = batch()
    for make in COPIES.values():
        module = Net().init(x)
        copied = make(module)
        layer = copied.affine
        copied(x)
        assert copied.affine is layer and list(copied.submodules) == ["affine", "affine_1", "affine_2"]


def test_tree_at_on_leaves_and_on_modules():
    x, _ = batch()
    module = Net().init(x)
    changed = eqx.tree_at(lambda m: m.affine.b, module, jnp.ones(8))
    assert (changed.affine.b == 1).all() and not module.affine.b.any()
    other = Affine(8).init(x)
    replaced = eqx.tree_at(lambda m: m.affine, module, other)
    assert_same(replaced.affine.get_parameters(), other.get_parameters())
    assert_close(replaced(x), jax.jit(lambda m: m(x))(replaced))
    y = replaced(x)
    assert replaced.affine_1.w is module.affine_1.w and y.shape == (6, 1)
    both = eqx.tree_at(lambda m: (m.affine.b, m.affine_2.b), module, replace_fn=lambda b: b + 1)
    assert (both.affine_2.b == 1).all()
    # Of another class than the one that call creates, it is refused by the call, with both named.
    strange = eqx.tree_at(lambda m: m.affine, module, Norm().init(x))
    with pytest.raises(elegy.errors.ModuleOrderError, match="Norm"):
        strange(x)


def test_repr_is_short_and_harmless():
    x, _ = batch()
    module = Net()
    assert "Net" in repr(module)
    module(x)
    for text in (repr(module), str(module), repr(jax.tree.map(lambda _: None, module)), repr(elegy.partition(module))):
        assert "Net" in text and len(text) < 1500
    assert concrete(module)


def test_the_signature_of_a_class_is_that_of_its_init():
    assert list(inspect.signature(Affine).parameters) == ["width", "name"]


def test_deleted_modules_are_freed():
    import gc

    x, _ = batch()
    module = Net().init(x)
    elegy.jit(lambda x: module(x), modules=module)(x)
    module.jit(x)
    elegy.value_and_grad(lambda: module(x).sum(), modules=module)()
    reference = weakref.ref(module.affine)
    del module
    gc.collect()
    assert reference() is None


def test_the_mask_of_a_copy_is_its_own():
    x = jnp.ones([2, 50])
    module = Mask().init(x)
    copied = module.copy()
    step = jax.jit(lambda m, x: (m(x), m))
    (a, _), (b, _) = step(module, x), step(copied, x)
    assert_same(a, b)


class Doubling(elegy.Module):
    """A base class that does something around the `call` of its subclasses."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Scaling(elegy.Module):
    def call(self, x):
        return Affine(3)(x) * self.add_parameter("scale", initializer=jnp.ones)


class DoublingScaling(Doubling, Scaling):
    pass


class Around(Scaling):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Direct(Scaling):
    def __call__(self, x):
        return 2 * self.call(x)


@pytest.mark.parametrize("cls", [DoublingScaling, Around, Direct])
def test_something_around_the_call(cls):
    x = jnp.ones((2, 3))
    module = cls().init(x)
    assert set(module.get_parameters()) == {"affine", "scale"}
    y = module(x)
    np.testing.assert_allclose(y, 2 * x @ module.affine.w, rtol=1e-6)
    np.testing.assert_allclose(elegy.jit(module)(x), y, rtol=1e-6)
    assert set(module.get_parameters()) == {"affine", "scale"}


def test_a_dunder_call_of_a_mixin_is_refused_too():
    class Mixin:
        def __call__(self, x):
            return x

    with pytest.raises(elegy.errors.ClassDefinitionError, match="Mixed defines __call__ and no `call`"):
        type("Mixed", (Mixin, elegy.Module), {})


def test_a_module_of_a_mixin_is_refused_too():
    class Mixin:
        layers = {"first": [Affine(2)]}

    with pytest.raises(elegy.errors.ClassDefinitionError, match=r"Mixed\.layers is a module in the body"):
        type("Mixed", (Mixin, elegy.Module), {})
    assert type("Fine", (elegy.Module,), {"kind": Affine, "sizes": [1, {"a": 2}]}).kind is Affine


# ---------------------------------------------------------------------------------------------------------------------
# The method `call`, called directly
# ---------------------------------------------------------------------------------------------------------------------


def test_the_method_called_directly_does_what_the_module_does():
    x = jnp.ones((2, 3))
    module = Scaling()
    y = module.call(x)
    assert module.initialized and set(module.get_parameters()) == {"affine", "scale"}
    np.testing.assert_array_equal(module(x), y)
    np.testing.assert_array_equal(module.call(x), y)
    np.testing.assert_allclose(elegy.jit(module.call)(x), y, rtol=1e-6)
    assert str(inspect.signature(module.call)) == "(x)" and module.call.__self__ is module
    assert module.call == module.call and inspect.signature(Scaling.call) == inspect.signature(lambda self, x: None)


def test_the_method_of_a_child_called_directly():
    class Outer(elegy.Module):
        def __init__(self):
            self.inner = Scaling()

        def call(self, x):
            return self.inner.call(x) + self.inner(x)

    x = jnp.ones((2, 3))
    outer = Outer()
    y = outer(x)
    assert set(outer.inner.get_parameters()) == {"affine", "scale"} and set(outer.submodules) == {"inner"}
    np.testing.assert_allclose(y, 2 * outer.inner(x), rtol=1e-6)


def test_the_method_called_by_another_method_of_the_module():
    class Net(Scaling):
        def call(self, x):
            return 3 * super().call(x)

        @elegy.compact
        def tripled(self, x):
            return self.call(x)

        @elegy.compact
        def plain(self, x):
            return super().call(x)

        def helper(self, x):
            return self.call(x)

    x = jnp.ones((2, 3))
    net = Net()
    y = net(x)
    np.testing.assert_array_equal(net.tripled(x), y)
    np.testing.assert_array_equal(net.helper(x), y)
    assert set(net.submodules) == {"affine"}
    assert net.plain(x).shape == (2, 3) and set(net.submodules) == {"affine", "affine_1"}


def test_a_function_of_the_user_called_call():
    def call(model, x):
        return model(x) + Affine(3)(x)

    class Outer(elegy.Module):
        def __init__(self):
            self.inner = Scaling()

        def call(self, x):
            return call(self.inner, x)

    outer = Outer()
    outer(jnp.ones((2, 3)))
    assert set(outer.submodules) == {"inner", "affine"}


# ---------------------------------------------------------------------------------------------------------------------
# Assigning what is there already
# ---------------------------------------------------------------------------------------------------------------------


def test_assigning_what_an_attribute_holds_is_no_change():
    class Net(elegy.Module):
        def call(self, x):
            self.bias = self.add_parameter("bias", [3], initializer=jnp.ones)
            self.tables = self.add_parameter("tables", initializer=lambda: [jnp.zeros(2)])
            self.affine = Affine(3)
            return self.affine(x + jnp.broadcast_to(self.bias, x.shape))

    x = jnp.ones((2, 3))
    for run in (lambda net: net, elegy.jit, lambda net: elegy.jit(lambda x: net(x), modules=net)):
        net = Net()
        run(net)(x)
        run(net)(x)
        assert set(net.get_parameters()) == {"bias", "tables", "affine"}
    with pytest.raises(elegy.errors.FrozenModuleError, match=r"net\.bias cannot be assigned"):
        net.bias = net.bias + 1
    with pytest.raises(elegy.errors.FrozenModuleError, match=r"net\.other cannot be assigned"):
        net.other = net.bias


# ---------------------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initialised", [True, False])
def test_an_attribute_that_a_property_lacks_is_named(initialised):
    class Sized(elegy.Module):
        @property
        def size(self):
            return self.weight.size

        def call(self, x):
            return x

    module = Sized()
    if initialised:
        module.init(1.0)
    with pytest.raises(AttributeError, match="'Sized' object has no attribute 'weight'"):
        module.size  # noqa: B018
    assert not hasattr(module, "size") and getattr(module, "size", 3) == 3


@pytest.mark.parametrize("how", ["eager", "elegy.jit", "jax.jit"])
def test_a_cached_property_of_a_mixin_keeps_no_arrays(how):
    class Mixin:
        @functools.cached_property
        def double(self):
            return 2 * self.w

        @functools.cached_property
        def label(self):
            return type(self).__name__.lower()

    class Net(Mixin, elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [3], initializer=jnp.ones)

        def call(self, x):
            assert self.label == "net"
            return x * self.double

    module = Net()
    run = {"eager": module, "elegy.jit": elegy.jit(module), "jax.jit": jax.jit(lambda x: module(x))}[how]
    with pytest.raises(elegy.errors.StaticValueError, match="net/double is a functools.cached_property"):
        run(jnp.ones(3))
    assert list(module.__dict__) == ["w"] and concrete(module)
    assert module.label == "net" and list(module.__dict__) == ["w"]


def test_a_cached_property_of_a_mixin_of_a_base_class():
    class Mixin:
        @functools.cached_property
        def label(self):
            return [type(self).__name__]

    class Base(Mixin, elegy.Module):
        def call(self, x):
            return x

    class Net(Base):
        pass

    module = Net()
    assert module.label == ["Net"] and module.label is module.label
    assert jax.tree.structure(module) == jax.tree.structure(Net()) and module.copy().label == ["Net"]


# ---------------------------------------------------------------------------------------------------------------------
# init of a class that overrides __call__
# ---------------------------------------------------------------------------------------------------------------------


def test_init_runs_an_overridden_call():
    class Scale(elegy.Module):
        def call(self, x):
            return x * self.add_parameter("w", x.shape, initializer=jnp.ones)

    class Twice(Scale):
        def __call__(self, x):
            return super().__call__(jnp.concatenate([x, x], -1))

    x = jnp.ones([2])
    module, other = Twice(), Twice().init(x)
    assert module(x).shape == module.w.shape == other.w.shape == (4,)
    assert Twice().apply(x)[1].w.shape == (4,)


def test_init_of_a_metric_of_one_of_several_outputs():
    truth, prediction = {"a": jnp.array([1])}, {"a": jnp.array([[0.1, 0.9]])}
    metric = elegy.metrics.SparseCategoricalAccuracy(on="a").init(truth, prediction)
    assert metric.initialized
    assert float(metric(truth, prediction)) == 1.0


def test_init_takes_a_method():
    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            return Affine(2)(x)

        @elegy.compact
        def decode(self, x):
            return Affine(3)(x)

        def call(self, x):
            return self.decode(self.encode(x))

    x, _ = batch()
    module = Coder()
    assert module.init(x, method="encode") is module
    assert list(module.submodules) == ["affine"]
    module.init(x[:, :2], method="decode")
    assert module.affine_1.w.shape == (2, 3)
    w = module.affine.w
    module.init(x)
    assert module.affine.w is w and module(x).shape == (6, 3)


def test_an_attribute_of_the_class_is_the_default_of_an_array():
    class Scaled(elegy.Module):
        scale = 2.0

        def __init__(self, scale=None):
            if scale is not None:
                self.scale = scale

        def call(self, x):
            return x * self.scale

    class Below(Scaled):
        pass

    x, own, plain, below = jnp.ones([2]), Scaled(jnp.full([2], 3.0)), Scaled(), Below()

    def assert_scales(default):
        for run in (lambda module: module(x), lambda module: elegy.jit(lambda x: module(x), modules=module)(x)):
            assert [float(run(module)[0]) for module in (own, plain, below)] == [3.0, default, default]
        assert Scaled.scale == Below.scale == plain.scale == below.scale == default

    assert_scales(2.0)
    Scaled.scale = 5.0
    assert_scales(5.0)
    del Scaled.scale
    assert not hasattr(Scaled, "scale") and not hasattr(plain, "scale") and (own(x) == 3).all()
    with pytest.raises(AttributeError):
        del Scaled.scale
    with pytest.raises(AttributeError, match="scale"):
        plain(x)
