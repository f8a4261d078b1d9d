"""Each way to misuse the library is either right, or says where, what, and how to fix it; and the fix works.

`MISUSES` is the table. A row has the code that is wrong, the error or warning that it must give, three parts of the
message (the path, the value, the fix), and the fixed code, which asserts what is right. What needs no error is
below it.
"""

import dataclasses
import functools
import gc
import os
import re
import threading
import typing as tp
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import (
    CheckpointError,
    ClassDefinitionError,
    FrozenModuleError,
    HookError,
    IdenticalMembersWarning,
    LostUpdateWarning,
    ModuleOrderError,
    NameCollisionError,
    NothingToDifferentiateError,
    ParameterError,
    RecompilationWarning,
    ReductionError,
    SampleMaskError,
    StaticValueError,
    StructureError,
    TraceError,
)

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(autouse=True)
def as_for_a_user(tmp_path, monkeypatch, unchecked) -> None:
    """No type checker stands between the user and the messages, and files go into a folder of the test."""
    monkeypatch.chdir(tmp_path)


class Misuse(tp.NamedTuple):
    error: type[BaseException]
    # Parts of the message or of its notes, as regular expressions.
    path: str
    value: str
    fix: str
    # Gives the wrong code and the fixed code.
    build: tp.Callable[[], tuple[tp.Callable[[], object], tp.Callable[[], None]]]


MISUSES: dict[str, Misuse] = {}


def misuse(error, path, value, fix):
    """Adds a row to the table. The decorated function returns the wrong and the fixed code."""

    def add(build):
        name = build.__name__.replace("_", " ")
        assert name not in MISUSES
        MISUSES[name] = Misuse(error, path, value, fix, build)
        return build

    return add


def message_of(error, wrong):
    """What the user is told when the wrong code runs."""
    if not issubclass(error, Warning):
        with pytest.raises(error) as raised:
            wrong()
        return "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrong()
        gc.collect(1)
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, error)]
    assert len(texts) == 1, caught
    return texts[0]


@pytest.mark.parametrize("name", MISUSES)
def test_the_message_says_where_what_and_how(name):
    row = MISUSES[name]
    wrong, _ = row.build()
    message = message_of(row.error, wrong)
    for part in (row.path, row.value, row.fix):
        assert re.search(part, message), f"{part!r} is not in:\n{message}"


@pytest.mark.parametrize("name", MISUSES)
def test_the_fixed_code_is_right(name):
    _, fixed = MISUSES[name].build()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fixed()
        gc.collect(1)
    assert not caught


class Net(elegy.Module):
    def call(self, x):
        return elegy.nn.Linear(2)(x)


class Counter(elegy.Module):
    """Counts its calls."""

    def call(self, x):
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        self.update_parameter("count", count + 1)
        return x


class Noise(elegy.Module):
    def call(self, x):
        return x + jax.random.normal(elegy.next_rng_key(), x.shape)


def net():
    return Net().init(X, rng=0)


def linear():
    return elegy.nn.Linear(3).init(X, rng=0)


# ---------------------------------------------------------------------------------------------------------------------
# Hooks where no module runs, or the wrong one
# ---------------------------------------------------------------------------------------------------------------------


@misuse(HookError, "^scale: ", r"add_parameter\('scale'\)", "Call it in __init__, in call, or in a method marked")
def a_parameter_outside_of_a_call():
    class Scale(elegy.Module):
        def call(self, x):
            return x

        def helper(self, x):
            return x * self.add_parameter("scale", initializer=jnp.ones)

        @elegy.compact
        def marked(self, x):
            return x * self.add_parameter("scale", initializer=jnp.ones)

    def fixed():
        module = Scale()
        np.testing.assert_array_equal(module.marked(X), X)
        assert module.scale == 1

    return lambda: Scale().helper(X), fixed


@misuse(HookError, "^threaded: ", r"add_parameter\('w'\)", "Call it in __init__, in call, or in a method marked")
def a_parameter_in_another_thread():
    class Threaded(elegy.Module):
        def __init__(self, aside):
            self.aside = aside

        def call(self, x):
            if not self.aside:
                return x * self.add_parameter("w", initializer=jnp.ones)
            errors = []

            def work():
                try:
                    self.add_parameter("w", initializer=jnp.ones)
                except HookError as error:
                    errors.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            raise errors[0]

    return lambda: Threaded(aside=True)(X), lambda: np.testing.assert_array_equal(Threaded(aside=False)(X), X)


@misuse(ClassDefinitionError, r"^class .*Over defines __call__", "no `call`", r"def call\(self")
def a_dunder_call_in_the_place_of_call():
    class Under(elegy.Module):
        def call(self, x):
            return x * self.add_parameter("w", initializer=jnp.ones)

    def wrong():
        class Over(elegy.Module):
            def __call__(self, x):
                return x * self.add_parameter("w", initializer=jnp.ones)

    return wrong, lambda: np.testing.assert_array_equal(Under()(X), X)


@misuse(
    ClassDefinitionError, r"Net\.layer is a module in the body of a class", "share it", r"in __init__ .*default_factory"
)
def a_module_in_the_body_of_a_class():
    def wrong():
        class Net(elegy.Module):
            layer = elegy.nn.Linear(2)

            def call(self, x):
                return self.layer(x)

    class Fixed(elegy.Module):
        def __init__(self):
            self.layer = elegy.nn.Linear(2)

        def call(self, x):
            return self.layer(x)

    def fixed():
        a, b = Fixed().init(X), Fixed().init(X)
        assert a.layer is not b.layer and a.get_parameters()["layer"]["w"].shape == (3, 2)

    return wrong, fixed


@misuse(ClassDefinitionError, r"Net\.layers is a module in the body of a class", "share it", "default_factory")
def a_module_as_the_default_of_a_field():
    def wrong():
        @dataclasses.dataclass
        class Net(elegy.Module):
            layers: tuple = dataclasses.field(default=(elegy.nn.Linear(2),))

            def call(self, x):
                return self.layers[0](x)

    @dataclasses.dataclass
    class Fixed(elegy.Module):
        layers: tuple = dataclasses.field(default_factory=lambda: (elegy.nn.Linear(2),))

        def call(self, x):
            return self.layers[0](x)

    def fixed():
        assert Fixed().layers[0] is not Fixed().layers[0] and Fixed()(X).shape == (4, 2)

    return wrong, fixed


@misuse(ClassDefinitionError, r"Net\.layer is a module in the body of a class", "share it", "default_factory")
def a_module_put_into_a_class_later():
    class Net(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(2)(x)

    return lambda: setattr(Net, "layer", elegy.nn.Linear(2)), lambda: Net()(X)


@misuse(NotImplementedError, "torch_like", "TorchLike does not define `call`", r"(?i)define call\(self")
def a_class_without_call():
    class TorchLike(elegy.Module):
        def forward(self, x):
            return x

    class Fixed(elegy.Module):
        def call(self, x):
            return x

    return lambda: TorchLike()(X), lambda: np.testing.assert_array_equal(Fixed()(X), X)


@misuse(TraceError, r"^noise: next_rng_key\(\)", "the random stream belongs to the code outside", r"rng=key")
def a_key_inside_a_stock_transform():
    noise = Noise().init(X)

    def fixed():
        f = jax.jit(lambda x, key: noise.apply(x, rng=key)[0])
        a, b = f(X, jax.random.key(0)), f(X, jax.random.key(1))
        assert (a != b).all()
        np.testing.assert_array_equal(a, f(X, jax.random.key(0)))

    return lambda: jax.jit(lambda x: noise(x))(X), fixed


@misuse(TraceError, r"^elegy: next_rng_key\(\)", "every call would draw the same key", r"elegy\.rng_context\(key\)")
def a_key_in_a_plain_function_inside_a_stock_transform():
    def noisy(x):
        return x + jax.random.normal(elegy.next_rng_key(), x.shape)

    def with_key(x, key):
        with elegy.rng_context(key):
            return noisy(x)

    def fixed():
        assert (jax.jit(with_key)(X, jax.random.key(0)) != jax.jit(with_key)(X, jax.random.key(1))).all()
        f = elegy.jit(noisy)
        assert (f(X) != f(X)).all()

    return lambda: jax.jit(noisy)(X), fixed


@misuse(
    TraceError,
    r"^elegy: add_loss\('penalty_loss'\)|^elegy: add_loss",
    "collects it is outside",
    "return what it collects",
)
def a_loss_that_cannot_leave_a_stock_transform():
    def penalised(x):
        elegy.add_loss("penalty", jnp.mean(x**2))
        return x

    def wrong():
        with elegy.hooks_context():
            jax.jit(penalised)(X)

    def fixed():
        with elegy.hooks_context():
            f = elegy.jit(penalised)
            for _ in range(2):
                f(X)
            assert f.traces == 1
            np.testing.assert_allclose(elegy.get_losses()["penalty_loss"], 2 * np.mean(X**2), rtol=1e-6)

    return wrong, fixed


# ---------------------------------------------------------------------------------------------------------------------
# State and stock transforms
# ---------------------------------------------------------------------------------------------------------------------


@misuse(TraceError, "^counter: ", "updated the parameter 'count' inside a jax transform", r"\(m\(x\), m\)")
def state_of_a_module_that_is_closed_over():
    counter = Counter().init(X)

    def fixed():
        _, new = jax.jit(lambda m, x: (m(x), m))(counter, X)
        assert (new.count, counter.count) == (1, 0)
        f = elegy.jit(lambda x: counter(x), modules=counter)
        f(X), f(X)
        assert counter.count == 2

    return lambda: jax.jit(lambda x: counter(x))(X), fixed


@misuse(LostUpdateWarning, "^counter: ", "the update of count inside a jax transform was lost", "Return the module")
def state_that_is_dropped():
    counter = Counter().init(X)

    def fixed():
        _, new = jax.jit(lambda m, x: (m(x), m))(counter, X)
        _, new = jax.jit(lambda m, x: (m(x), m))(new, X)
        assert new.count == 2

    return lambda: jax.jit(lambda m, x: m(x))(counter, X), fixed


@misuse(LostUpdateWarning, "^batch_normalization: ", "the update of mean, var", "run the module in evaluation mode")
def running_averages_that_are_dropped():
    norm = elegy.nn.BatchNormalization(decay_rate=0.5).init(X)

    def fixed():
        _, new = jax.jit(lambda m, x: (m(x), m))(norm, X)
        np.testing.assert_allclose(new.mean, 0.5 * X.mean(axis=0), rtol=1e-6)
        evaluate = jax.jit(lambda m, x: m(x))
        with elegy.training_context(False):
            y = evaluate(new, X)
        wanted = (X - 0.5 * X.mean(axis=0)) / np.sqrt(0.5 + 0.5 * X.var(axis=0) + 1e-5)
        np.testing.assert_allclose(y, wanted, rtol=1e-5)

    return lambda: jax.jit(lambda m, x: m(x))(norm, X), fixed


@misuse(LostUpdateWarning, "^dropout: ", "the update of rng_key", r"pass a key \(m\.apply\(x, rng=key\)\)")
def a_mask_that_would_be_the_same_in_each_call():
    dropout = elegy.nn.Dropout(0.5).init(X)
    ones = np.ones(64, np.float32)

    def fixed():
        f = jax.jit(lambda m, x: (m(x), m))
        first, after = f(dropout, ones)
        second, _ = f(after, ones)
        assert (first != second).any()
        g = jax.jit(lambda m, x, key: m.apply(x, rng=key)[0])
        assert (g(dropout, ones, jax.random.key(0)) != g(dropout, ones, jax.random.key(1))).any()

    return lambda: jax.jit(lambda m, x: m(x))(dropout, ones), fixed


@misuse(TraceError, "^dropout: ", r"next_rng_key\(\)", r"module\.apply\(x, rng=key\)")
def one_mask_for_all_lanes_of_a_vmap():
    dropout = elegy.nn.Dropout(0.5).init(X)
    ones = np.ones([4, 32], np.float32)

    def fixed():
        keys = jax.random.split(jax.random.key(0), 4)
        y = jax.vmap(lambda m, x, key: m.apply(x, rng=key)[0], in_axes=(None, 0, 0))(dropout, ones, keys)
        assert len(np.unique(np.asarray(y), axis=0)) == 4

    # The module comes back, so that nothing is lost: but all lanes drew from the one key that it has.
    shared = jax.vmap(lambda m, x: (m(x), m), in_axes=(None, 0), out_axes=(0, None))
    return lambda: shared(dropout, ones), fixed


@misuse(LostUpdateWarning, "^linear: ", "the update of b inside a jax transform was lost", "Return the module")
def set_parameters_on_a_copy_that_is_dropped():
    module = linear()

    def change(m):
        m.set_parameters({"b": jnp.ones(3)})
        return m

    def fixed():
        np.testing.assert_array_equal(jax.jit(change)(module).b, np.ones(3))
        np.testing.assert_array_equal(module.b, np.zeros(3))

    return lambda: jax.jit(lambda m: change(m) and None)(module), fixed


# ---------------------------------------------------------------------------------------------------------------------
# Values of a trace that would outlive it
# ---------------------------------------------------------------------------------------------------------------------


@misuse(FrozenModuleError, "^last.last cannot be assigned", "immutable once its __init__", "update_parameter in call")
def a_value_kept_in_an_attribute():
    class Last(elegy.Module):
        def call(self, x):
            self.last = x
            return x

    class Fixed(elegy.Module):
        def call(self, x):
            self.add_parameter("last", x.shape, x.dtype, trainable=False)
            self.update_parameter("last", x)
            return x

    def fixed():
        module = Fixed()
        module.jit(X)
        np.testing.assert_array_equal(module.last, X)

    def wrong():
        module = Last()
        try:
            module.jit(X)
        finally:
            assert not hasattr(module, "last") and not module.initialized

    return wrong, fixed


@misuse(FrozenModuleError, r"seen is an attribute", "modules are immutable", "Fill it in __init__")
def a_value_kept_in_a_list():
    class History(elegy.Module):
        def __init__(self):
            self.seen = []

        def call(self, x):
            self.seen.append(x)
            return x

    class Fixed(elegy.Module):
        def call(self, x):
            elegy.add_summary("seen", x)
            return x

    def fixed():
        module = Fixed()
        with elegy.hooks_context(summaries=True):
            module.jit(X)
            values = {name: value for _, name, value in elegy.get_summaries()}
        np.testing.assert_array_equal(values["fixed/seen"], X)

    return lambda: History().jit(X), fixed


@misuse(TraceError, "^Shift.by ", "a value computed inside the call", "Pass the value when the module is called")
def a_value_kept_by_a_module_that_the_call_creates():
    class Shift(elegy.Module):
        def __init__(self, by=None):
            self.by = by

        def call(self, x, by=None):
            return x + (self.by if by is None else by)

    class Wrong(elegy.Module):
        def call(self, x):
            return Shift(x.mean())(x)

    class Fixed(elegy.Module):
        def call(self, x):
            return Shift()(x, x.mean())

    def fixed():
        module = Fixed()
        for x in (X, 2 * X + 1):
            np.testing.assert_allclose(module(x), x + x.mean(), rtol=1e-6)

    return lambda: Wrong()(X), fixed


@misuse(TraceError, "^linear: ", "set its parameters inside a jax transform", "return it")
def a_tracer_set_into_an_outer_module():
    module = linear()

    def fixed():
        def scale(module, factor):
            module.set_parameters({"w": factor * module.w})
            return module

        np.testing.assert_allclose(jax.jit(scale)(module, 2.0).w, 2 * module.w)

    return lambda: jax.jit(lambda w: module.set_parameters({"w": w}))(module.w), fixed


@misuse(TraceError, "^scanned/linear: ", "created the parameter 'w' inside a jax transform", "elegy")
def a_layer_first_called_inside_a_stock_scan():
    class Scanned(elegy.Module):
        def __init__(self, before):
            self.before = before

        def call(self, x):
            layer = elegy.nn.Linear(3)
            if self.before:
                layer.init(x)
            return jax.lax.scan(lambda x, _: (layer(x), None), x, length=3)[0]

    def wrong():
        module = Scanned(before=False)
        try:
            module(X)
        finally:
            assert not jax.tree.leaves(module)  # no tracer is left behind

    def fixed():
        module = Scanned(before=True)
        y = module(X)
        for _ in range(3):
            X_next = module.linear(X if _ == 0 else X_next)
        np.testing.assert_allclose(y, X_next, rtol=1e-5)

    return wrong, fixed


@misuse(TraceError, "^branches/linear: ", "created the parameter 'w' inside a jax transform", "elegy")
def layers_first_called_inside_the_branches_of_a_stock_cond():
    class Branches(elegy.Module):
        def __init__(self, before):
            self.before = before

        def call(self, x):
            one, two = elegy.nn.Linear(2), elegy.nn.Linear(2)
            if self.before:
                one.init(x), two.init(x)
            return jax.lax.cond(x.sum() > 1, lambda x: one(x), lambda x: two(x), x)

    def fixed():
        module = Branches(before=True)
        np.testing.assert_allclose(module(X), module.linear_1(X), rtol=1e-5)
        np.testing.assert_allclose(module(X + 1), module.linear(X + 1), rtol=1e-5)

    return lambda: Branches(before=False)(X), fixed


@misuse(TraceError, "^net: ", "created inside a jax transform", r"Initialise the module before: module\.init\(x\)")
def an_uninitialised_carry():
    def wrong():
        return jax.lax.scan(lambda module, x: (module, module(x)), Net(), X[None])

    def fixed():
        module = net()
        same, y = jax.lax.scan(lambda module, x: (module, module(x)), module, X[None])
        np.testing.assert_allclose(y[0], module(X), rtol=1e-5)
        np.testing.assert_array_equal(same.linear.w, module.linear.w)

    return wrong, fixed


# ---------------------------------------------------------------------------------------------------------------------
# Modules without parameters yet
# ---------------------------------------------------------------------------------------------------------------------


@misuse(TraceError, "^net: ", "parameters were created inside a jax transform", r"rng=key")
def a_first_call_inside_stock_jit():
    def fixed():
        y, new = jax.jit(lambda m, x, key: m.apply(x, rng=key))(Net(), X, jax.random.key(0))
        np.testing.assert_allclose(y, new(X), rtol=1e-5)

    return lambda: jax.jit(lambda m, x: (m(x), m))(Net(), X), fixed


@misuse(
    AttributeError, "'Net' object", "no attribute 'linear'", "not initialised: parameters appear with its first call"
)
def reading_parameters_that_are_not_there():
    return lambda: Net().linear.w, lambda: np.testing.assert_array_equal(net().linear.b, np.zeros(2))


@misuse(ParameterError, "net/linear: ", "Net has no such parameter", "The module is not initialised: call it or init")
def setting_parameters_that_are_not_there():
    values = {"linear": {"w": np.ones([3, 2], np.float32)}}

    def fixed():
        module = net()
        module.set_parameters(values)
        np.testing.assert_allclose(module(X), X @ np.ones([3, 2], np.float32), rtol=1e-6, atol=1e-6)

    return lambda: Net().set_parameters(values), fixed


@misuse(CheckpointError, "'': ", "nothing to save: this Net is not initialised", r"module\.init")
def saving_a_module_that_is_not_initialised(path="net.safetensors"):
    def fixed():
        module = net()
        elegy.save(path, module)
        np.testing.assert_array_equal(elegy.load(path, like=Net().init(X)).linear.w, module.linear.w)

    def wrong():
        try:
            elegy.save(path, Net())
        finally:
            assert not os.path.exists(path)

    return wrong, fixed


@misuse(ValueError, "Net", "different numbers of pytree children", "linear")
def the_state_of_an_optimiser_for_a_module_that_is_not_initialised():
    """JAX's own message, of the two structures."""
    adam = optax.sgd(0.1, momentum=0.9)

    def wrong():
        module = Net()
        state = adam.init(module)
        module.init(X)
        return adam.update(jax.tree.map(jnp.ones_like, module), state, module)

    def fixed():
        module = net()
        updates, _ = adam.update(jax.tree.map(jnp.ones_like, module), adam.init(module), module)
        np.testing.assert_allclose(updates.linear.b, -0.1 * np.ones(2))

    return wrong, fixed


# ---------------------------------------------------------------------------------------------------------------------
# Shapes, dtypes, names, order
# ---------------------------------------------------------------------------------------------------------------------


@misuse(
    ParameterError,
    r"^linear/w has shape \(3, 2\)",
    r"\(5, 2\) is asked.*(.|\n)*inputs: (NumPy )?float32\[4,5\]",
    "Use another module.*reset",
)
def an_input_of_another_size():
    module = elegy.nn.Linear(2).init(X)
    wide = np.ones([4, 5], np.float32)

    def fixed():
        assert elegy.nn.Linear(2)(wide).shape == (4, 2)
        module.reset()
        assert module(wide).shape == (4, 2)

    return lambda: module(wide), fixed


@misuse(ParameterError, "^scale/w has dtype float32", "bfloat16 is asked for now", "(?i)convert|astype|dtype=")
def an_input_of_another_dtype():
    class Scale(elegy.Module):
        def call(self, x):
            return self.add_parameter("w", [], x.dtype, jnp.ones)

    module = Scale().init(X)

    def fixed():
        assert module(jnp.asarray(X, jnp.bfloat16).astype(jnp.float32)).dtype == jnp.float32

    return lambda: module(jnp.asarray(X, jnp.bfloat16)), fixed


@misuse(ParameterError, "linear/w is float32", r"float32\[9, 9\]", "same shape and dtype")
def restoring_a_wrong_shape():
    module = linear()

    def fixed():
        module.set_parameters({"w": jnp.ones([3, 3])})
        np.testing.assert_allclose(module(X), X @ np.ones([3, 3], np.float32), rtol=1e-6, atol=1e-6)

    return lambda: module.set_parameters({"w": jnp.ones([9, 9])}), fixed


@misuse(ParameterError, "linear/w is float32", r"float16\[3, 3\]", r"\.astype")
def restoring_a_wrong_dtype():
    module = linear()
    half = np.ones([3, 3], np.float16)
    return lambda: module.set_parameters({"w": half}), lambda: module.set_parameters({"w": half.astype(np.float32)})


@misuse(ParameterError, "linear/kernal: ", "no such parameter", r"it has: .*w.*b|it has: .*b.*w")
def restoring_a_misspelt_name():
    module = linear()

    def wrong():
        before = module.w
        try:
            module.set_parameters({"kernal": jnp.ones([3, 3]), "w": jnp.ones([3, 3])})
        finally:
            assert module.w is before and not hasattr(module, "kernal")

    return wrong, lambda: module.set_parameters({"w": jnp.ones([3, 3])})


@misuse(
    CheckpointError,
    "'linear/w'",
    r"float32\[3,2\] in the file, float32\[3,4\]",
    r"(?s)linear_1.*linear_2|linear_2.*linear_1",
)
def restoring_a_checkpoint_of_another_model(path="model.safetensors"):
    """Missing, unexpected and mis-shaped names are listed together."""

    class Model(elegy.Module):
        def __init__(self, width, other):
            self.width, self.other = width, other

        def call(self, x):
            elegy.nn.Linear(1, name=self.other)(x)
            return elegy.nn.Linear(self.width)(x)

    def build():
        elegy.save(path, Model(2, "linear_1").init(X, rng=0))

    def wrong():
        build()
        elegy.load(path, like=Model(4, "linear_2").init(X))

    def fixed():
        build()
        found = elegy.load(path, like=Model(2, "linear_2").init(X), rename={"linear_1": "linear_2"})
        np.testing.assert_array_equal(found.linear.w, Model(2, "linear_1").init(X, rng=0).linear.w)

    return wrong, fixed


@misuse(
    ModuleOrderError,
    r"^residual\.call created fewer",
    r"dropout \(.*test_misuse\.py:\d+\)",
    "Create every module on every run",
)
def a_layer_under_a_condition():
    class Residual(elegy.Module):
        def __init__(self, always):
            self.always = always

        def call(self, x):
            x = elegy.nn.Linear(3)(x)
            if self.always:
                dropout = elegy.nn.Dropout(0.5)
                return dropout(x) if elegy.training() else x
            return elegy.nn.Dropout(0.5)(x) if elegy.training() else x

    def run(always):
        module = Residual(always)
        module(X)
        with elegy.training_context(False):
            np.testing.assert_allclose(module(X), module.linear(X), rtol=1e-6)

    return lambda: run(always=False), lambda: run(always=True)


@misuse(
    ModuleOrderError,
    r"^swapped\.call created Dropout at position 0 \(.*test_misuse\.py:\d+\)",
    r"its first run created Linear \(.*test_misuse\.py:\d+\)",
    "Create modules unconditionally",
)
def layers_in_another_order():
    class Swapped(elegy.Module):
        def call(self, x):
            kinds = [lambda: elegy.nn.Linear(3), lambda: elegy.nn.Dropout(0.0)]
            for make in kinds if len(x) == 4 else reversed(kinds):
                x = make()(x)
            return x

    class Fixed(elegy.Module):
        def call(self, x):
            linear, dropout = elegy.nn.Linear(3), elegy.nn.Dropout(0.0)
            return dropout(linear(x)) if len(x) == 4 else linear(dropout(x))

    def run(module):
        module(X)
        assert module(X[:2]).shape == (2, 3)

    return lambda: run(Swapped()), lambda: run(Fixed())


@misuse(
    ModuleOrderError, r"^deep\.call created Linear at position 2", "its first run created only 2", "Create every module"
)
def a_loop_of_varying_length():
    class Deep(elegy.Module):
        def __init__(self, most=None):
            self.most = most

        def call(self, x):
            layers = [elegy.nn.Linear(3) for _ in range(self.most or len(x))]
            for layer in layers[: len(x)]:
                x = layer(x)
            return x

    def run(module):
        module(X[:2])
        module(X[:3])

    return lambda: run(Deep()), lambda: run(Deep(most=3))


@misuse(
    ModuleOrderError,
    r"^widths\.call created Linear",
    r"with \(2\).*used \(4\)",
    "keeps the arguments of its first creation",
)
def arguments_that_drift():
    class Widths(elegy.Module):
        def __init__(self, width=None):
            self.width = width

        def call(self, x):
            return elegy.nn.Linear(self.width or len(x))(x)

    def run(module):
        module(X)
        assert module(X[:2]).shape == (2, 4)

    return lambda: run(Widths()), lambda: run(Widths(4))


@misuse(ParameterError, "^gated/gate does not exist", "created by the first run", "Call add_parameter unconditionally")
def a_parameter_under_a_condition():
    class Gated(elegy.Module):
        def __init__(self, always):
            self.always = always

        def call(self, x):
            if self.always or not elegy.training():
                gate = self.add_parameter("gate", initializer=jnp.ones)
            return x if elegy.training() else x * gate

    def run(module):
        module(X)
        before = set(module.get_parameters())
        with elegy.training_context(False):
            try:
                np.testing.assert_array_equal(module(X), X)
            finally:
                assert set(module.get_parameters()) == before

    return lambda: run(Gated(always=False)), lambda: run(Gated(always=True))


@misuse(NameCollisionError, "^named: ", "the name 'apply' given to Linear", "Choose another name")
def a_module_with_the_name_of_a_method():
    class Named(elegy.Module):
        def __init__(self, child):
            self.child = child

        def call(self, x):
            return elegy.nn.Linear(2, name=self.child)(x)

    return lambda: Named("apply")(X), lambda: np.testing.assert_array_equal(
        Named("project").init(X).project.b, np.zeros(2)
    )


@misuse(NameCollisionError, "^parameters: ", r"add_parameter\('trainable'\) would replace", "Choose another name")
def a_parameter_with_a_reserved_name():
    class Parameters(elegy.Module):
        def __init__(self, key):
            self.key = key

        def call(self, x):
            return x * self.add_parameter(self.key, initializer=jnp.ones)

    return lambda: Parameters("trainable")(X), lambda: np.testing.assert_array_equal(Parameters("scale")(X), X)


@misuse(ParameterError, "^twice/w has shape", r"\(2,\) is asked for now", "Use another")
def one_name_for_two_parameters():
    class Twice(elegy.Module):
        def __init__(self, second):
            self.second = second

        def call(self, x):
            self.add_parameter("w", [3], initializer=jnp.ones)
            return x, self.add_parameter(self.second, [2], initializer=jnp.ones)

    return lambda: Twice("w")(X), lambda: np.testing.assert_array_equal(Twice("v")(X)[1], np.ones(2))


@misuse(ValueError, "Spaced|a module", "'first layer'", "identifier")
def a_name_that_is_no_identifier():
    class Spaced(elegy.Module):
        pass

    return lambda: Spaced(name="first layer"), lambda: Spaced(name="first_layer")


# ---------------------------------------------------------------------------------------------------------------------
# Attributes
# ---------------------------------------------------------------------------------------------------------------------


@misuse(FrozenModuleError, r"^linear\.wegihts cannot be assigned", "immutable", r"set_parameters")
def a_misspelt_attribute():
    module = linear()

    def wrong():
        before = jax.tree.structure(module)
        try:
            module.wegihts = jnp.ones([3, 3])
        finally:
            assert jax.tree.structure(module) == before

    return wrong, lambda: module.set_parameters({"w": jnp.ones([3, 3])})


@misuse(FrozenModuleError, r"layers is an attribute of a module", "immutable", "build a new module")
def appending_a_layer():
    class Layers(elegy.Module):
        def __init__(self, layers):
            self.layers = layers

        def call(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    module = Layers([elegy.nn.Linear(3)]).init(X)

    def fixed():
        longer = Layers([*module.layers, elegy.nn.Linear(2)])
        assert longer(X).shape == (4, 2) and longer.layers[0] is module.layers[0]

    return lambda: module.layers.append(elegy.nn.Linear(2)), fixed


@misuse(StaticValueError, r"^Net\w*\.shift is a functools.partial", "holds an array", "(?i)Partial|attribute")
def an_array_hidden_in_a_static_value():
    class NetA(elegy.Module):
        def __init__(self, partial):
            self.shift = partial(jnp.add, jnp.ones(3))

        def call(self, x):
            return self.shift(x[0])

    def fixed():
        module = NetA(jax.tree_util.Partial)
        np.testing.assert_allclose(module(X), X[0] + 1)
        assert len(jax.tree.leaves(module)) == 1

    return lambda: NetA(functools.partial), fixed


@misuse(
    StaticValueError,
    r"^Holder\.config is a Config",
    "whose == gives a ndarray, not a bool",
    "__eq__ that returns a bool",
)
def a_static_value_that_cannot_be_compared():
    class Config:
        def __init__(self):
            self.sizes = np.array([1, 2])

        def __eq__(self, other):
            return self.sizes == other.sizes

    class Fixed(Config):
        def __eq__(self, other):
            return isinstance(other, Fixed) and bool((self.sizes == other.sizes).all())

    class Holder(elegy.Module):
        def __init__(self, config):
            self.config = config

        def call(self, x):
            return x

    def fixed():
        f = elegy.jit(lambda m, x: m(x))
        f(Holder(Fixed()), X), f(Holder(Fixed()), X)
        assert f.traces == 1

    return lambda: Holder(Config()), fixed


@misuse(
    ParameterError,
    r"^Alias\.again holds the parameter 'w'",
    "under another name",
    r"self\.again = self\.add_parameter\('again'",
)
def a_parameter_under_a_second_name():
    class Alias(elegy.Module):
        def __init__(self, name):
            self.again = self.add_parameter(name, [3])

        def call(self, x):
            return x + self.again[None]

    return lambda: Alias("w"), lambda: np.testing.assert_array_equal(Alias("again")(X), X)


@misuse(RecompilationWarning, "static part of argument 0", r"<lambda> at .* -> ", "explain=True")
def a_lambda_made_for_each_instance():
    class Activated(elegy.Module):
        def __init__(self, function=None):
            self.function = (lambda x: jnp.tanh(x)) if function is None else function

        def call(self, x):
            return self.function(x)

    def run(*function):
        f = elegy.jit(lambda m, x: m(x))
        for _ in range(10):
            y = f(Activated(*function), X)
        np.testing.assert_allclose(y, np.tanh(X), rtol=1e-6)
        return f.traces

    def fixed():
        assert run(jnp.tanh) == 1

    return run, fixed


@misuse(
    SampleMaskError, "^norm: ", r"the input has 6 rows \(shape \(6, 4\)\) and the sample mask 3", "sample_mask_context"
)
def statistics_of_other_rows_than_those_of_the_mask():
    norm, mask = elegy.nn.BatchNormalization(name="norm"), np.array([True, True, False])
    x = jnp.arange(24.0).reshape(3, 2, 4)
    norm.init(x)

    def run(mask):
        with elegy.sample_mask_context(mask):
            norm(x.reshape(6, 4))

    def fixed():
        run(np.repeat(mask, 2))
        np.testing.assert_allclose(norm.mean, 0.01 * x[:2].mean((0, 1)), rtol=1e-5)

    return lambda: run(mask), fixed


@misuse(
    RecompilationWarning,
    "double has been traced 10 times",
    r"argument 0: float32\[9\] -> float32\[10\]",
    "explain=True",
)
def a_storm_of_shapes():
    def run(padded):
        def double(x):
            return 2 * x

        f = elegy.jit(double)
        for size in range(1, 11):
            x = np.ones(10 if padded else size, np.float32)
            np.testing.assert_array_equal(f(x)[:size], 2 * np.ones(size))
        return f.traces

    def fixed():
        assert run(padded=True) == 1

    return lambda: run(padded=False), fixed


# ---------------------------------------------------------------------------------------------------------------------
# Gradients, optimisers, donation
# ---------------------------------------------------------------------------------------------------------------------


def loss_of(module):
    return lambda x: jnp.mean(module(x) ** 2)


@misuse(NothingToDifferentiateError, "^counter: ", "no trainable parameter", r"frozen \(module\.trainable\)")
def the_gradient_of_nothing():
    counter, module = Counter().init(X), linear()

    def fixed():
        grads = elegy.grad(loss_of(module), modules=module)(X)
        assert set(grads) == {"w", "b"}

    return lambda: elegy.grad(loss_of(counter), modules=counter)(X), fixed


@misuse(StructureError, "^linear: ", "trainable was assigned inside a function", "assign it outside")
def freezing_inside_a_compiled_function():
    module = linear()

    def freeze(x):
        module.trainable = False
        return module(x)

    def fixed():
        module.trainable = False
        y = elegy.jit(lambda x: module(x), modules=module)(X)
        np.testing.assert_allclose(y, X @ np.asarray(module.w), rtol=1e-5, atol=1e-6)

    return lambda: elegy.jit(freeze, modules=module)(X), fixed


@misuse(ParameterError, "optimizer", r"gradients(.|\n)*\bb\b", "Take them with respect to the same modules")
def gradients_of_other_parameters_than_those_to_update():
    module, optimizer = linear(), elegy.Optimizer(optax.sgd(0.1))

    def fixed():
        before = np.asarray(module.b)
        grads = elegy.grad(lambda x: module(x).sum(), modules=module)(X)
        optimizer.update(module, grads)
        np.testing.assert_allclose(module.b, before - 0.1 * 4 * np.ones(3), rtol=1e-6)

    return lambda: optimizer.update(module, {"w": jnp.ones([3, 3])}), fixed


@misuse(TypeError, "optimizer|Optimizer", r"modules", r"update\(module, gradients\)")
def gradients_before_modules():
    module, optimizer = linear(), elegy.Optimizer(optax.sgd(0.1))
    grads = elegy.grad(lambda x: module(x).sum(), modules=module)(X)
    return lambda: optimizer.update(grads, module), lambda: optimizer.update(module, grads)


@misuse(TypeError, "loss_without_mean", r"it returned float32\[4, 3\]", r"jnp\.mean")
def a_loss_that_is_no_scalar():
    module = linear()

    def loss_without_mean(x):
        return module(x)

    def fixed():
        loss, _ = elegy.value_and_grad(loss_of(module), modules=module)(X)
        np.testing.assert_allclose(loss, np.mean((X @ np.asarray(module.w)) ** 2), rtol=1e-5)

    return lambda: elegy.value_and_grad(loss_without_mean, modules=module)(X), fixed


@misuse(HookError, "^penalised/activity", r"add_loss\('activity'?.*float32\[4,? ?3\]", r"jnp\.mean")
def a_declared_loss_that_is_no_scalar():
    class Penalised(elegy.Module):
        def __init__(self, reduce):
            self.reduce = reduce

        def call(self, x):
            elegy.add_loss("activity", self.reduce(x**2))
            return x

    def run(reduce):
        with elegy.hooks_context():
            Penalised(reduce)(X)
            return elegy.get_losses()["activity_loss"]

    return lambda: run(jnp.asarray), lambda: np.testing.assert_allclose(run(jnp.mean), np.mean(X**2), rtol=1e-6)


@misuse(Exception, "in linear", "(?i)has been deleted", "use the module which that function returned")
def a_donated_module_used_again():
    def step():
        module = linear()
        return module, jax.jit(lambda m: jax.tree.map(lambda leaf: leaf + 1, m), donate_argnums=0)(module)

    def fixed():
        _, new = step()
        np.testing.assert_allclose(new.b, np.ones(3))

    return lambda: jax.block_until_ready(step()[0](X)), fixed


# ---------------------------------------------------------------------------------------------------------------------
# Classes in the place of modules, and arguments in another order
# ---------------------------------------------------------------------------------------------------------------------


@misuse(TypeError, r"^elegy\.jit", "got the class Net", "construct it first")
def jit_of_a_class():
    return lambda: elegy.jit(Net), lambda: np.testing.assert_array_equal(elegy.jit(net())(X).shape, (4, 2))


@misuse(TypeError, "^modules= takes a module", "it holds the class Net", "a list, tuple or dict of modules")
def a_class_among_the_modules():
    def fixed():
        module = net()
        elegy.jit(lambda x: module(x), modules=[module])(X)

    return lambda: elegy.jit(lambda x: x, modules=[Net]), fixed


@misuse(TypeError, r"^elegy\.Model takes a module", "Net", "Construct it")
def a_model_of_a_class():
    return lambda: elegy.Model(module=Net), lambda: elegy.Model(module=Net())


@misuse(ValueError, "Net", r"(?i)(array|tracer)", r"Net\(\)\(x\)")
def calling_the_class():
    return lambda: Net(X), lambda: np.testing.assert_array_equal(Net()(X).shape, (4, 2))


@misuse(
    TypeError, r"^without modules=, elegy\.value_and_grad", "there are none", r"value_and_grad\(f\)\(module, \.\.\.\)"
)
def a_module_that_is_not_the_first_argument():
    module = linear()

    def fixed():
        (loss, _), grads = elegy.value_and_grad(lambda m, x: m(x).sum())(module, X)
        np.testing.assert_allclose(grads.b, 4 * np.ones(3))

    return lambda: elegy.value_and_grad(lambda x, m: m(x).sum())(X, module), fixed


@misuse(TypeError, r"in net \(Net\.call\)", r"inputs: key<fry>\[\]", r"init\(x, rng=key\)")
def a_key_before_the_inputs():
    key = jax.random.key(0)
    return lambda: Net().init(key, X), lambda: np.testing.assert_array_equal(
        Net().init(X, rng=key).linear.b, np.zeros(2)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Lifted transforms
# ---------------------------------------------------------------------------------------------------------------------

if hasattr(elegy, "scan"):

    @misuse(TraceError, "^counter: ", "updated the parameter 'count' inside a jax transform", "list the module")
    def a_module_that_a_lifted_transform_does_not_list():
        counter = Counter().init(X)

        def run(**options):
            elegy.scan(lambda total, x: (total + counter(x).sum(), None), jnp.zeros(()), X, **options)

        def fixed():
            run(modules=counter)
            assert counter.count == 4

        return run, fixed

    @misuse(ReductionError, r"^counter/count \(int32\[\]\)", "each lane has a value of its own", r"reduce_state=")
    def state_updated_in_every_lane():
        counter = Counter().init(X)

        def fixed():
            elegy.vmap(counter, reduce_state="max")(X)
            assert counter.count == 1

        return lambda: elegy.vmap(counter)(X), fixed

    @misuse(ReductionError, r"^counter/count \(int32\[\]\)", "no mean", "lanes.max")
    def the_mean_of_counts():
        counter = Counter().init(X)

        def fixed():
            elegy.vmap(counter, reduce_state=lambda lanes: lanes.max(0))(X)
            assert counter.count == 1

        return lambda: elegy.vmap(counter, reduce_state="mean")(X), fixed

    @misuse(HookError, "while_loop", "updated counter/count", "Do it in the body")
    def a_condition_that_updates_state():
        counter = Counter().init(X)

        def fixed():
            y = elegy.while_loop(lambda x: x.sum() < 5, lambda x: counter(x) + 1, jnp.zeros(3), modules=counter)
            np.testing.assert_array_equal(y, 2 * np.ones(3))
            assert counter.count == 2

        def wrong():
            try:
                elegy.while_loop(lambda x: counter(x).sum() < 5, lambda x: x + 1, X, modules=counter)
            finally:
                assert counter.count == 0

        return wrong, fixed

    @misuse(HookError, "while_loop", r"summaries were declared.*size", r"Use elegy\.scan")
    def summaries_of_a_loop_of_unknown_length():
        module = linear()

        def sized(x):
            elegy.add_summary("size", x.size)
            return module(x)

        def collected(loop):
            with elegy.hooks_context(summaries=True):
                loop()
                return {name: value for _, name, value in elegy.get_summaries()}

        def fixed():
            found = collected(lambda: elegy.scan(lambda x, _: (module(x), None), X, length=3, modules=module))
            np.testing.assert_allclose(found["linear"][1], module(module(X)), rtol=1e-5, atol=1e-6)

        return lambda: collected(lambda: elegy.while_loop(lambda x: x.sum() > 9, sized, X, modules=module)), fixed

    @misuse(HookError, r"elegy\.cond", r"the summary a .*float32\[2\] and float32\[3\]", "Give them two names")
    def branches_that_declare_one_name_in_two_shapes():
        def declaring(name, size):
            def branch(x):
                elegy.add_summary(name, jnp.ones(size))
                return x

            return branch

        def run(one, two):
            with elegy.hooks_context(summaries=True):
                elegy.cond(True, declaring(one, 2), declaring(two, 3), X + 1)
                return {name: value for _, name, value in elegy.get_summaries()}

        def fixed():
            found = run("a", "b")
            np.testing.assert_array_equal(found["a"], np.ones(2))
            assert np.isnan(found["b"]).all()

        return lambda: run("a", "a"), fixed

    @misuse(
        ValueError, "^linear is among", "modules= and among stacked=", r"stacked= if its arrays have a leading axis"
    )
    def a_module_listed_as_shared_and_as_stacked():
        module = linear()

        def fixed():
            y = elegy.vmap(lambda x: module(x), modules=module)(X)
            np.testing.assert_allclose(y, module(X), rtol=1e-5, atol=1e-6)

        return lambda: elegy.vmap(lambda x: module(x), modules=module, stacked=module), fixed

    @misuse(ValueError, "linear/w has shape", r"\(3, 3, 2\)", "its first axis must have size 4")
    def as_many_members_as_there_are_not():
        members = jax.vmap(lambda key: elegy.nn.Linear(2).init(X, rng=key))(jax.random.split(jax.random.key(0), 3))

        def fixed():
            y = elegy.vmap(lambda x: members(x), stacked=members)(X[:3])
            np.testing.assert_allclose(y[1], X[1] @ np.asarray(members.w[1]), rtol=1e-5, atol=1e-6)

        return lambda: elegy.vmap(lambda x: members(x), stacked=members)(X), fixed

    @misuse(
        IdenticalMembersWarning,
        "^ensemble/members: ",
        "the 3 members have the same parameters",
        "initializers that draw random",
    )
    def members_that_are_alike():
        def run(w_init=None):
            ensemble = elegy.nn.Ensemble(lambda: elegy.nn.Linear(2, w_init=w_init), 3)
            ensemble(X)
            return np.asarray(ensemble.members.w).reshape(3, -1)

        def fixed():
            assert len(np.unique(run(), axis=0)) == 3

        return lambda: run(jnp.ones), fixed

    @misuse(TypeError, "^Stack: ", "must return a module", "Give a function that constructs one")
    def a_stack_of_functions():
        def fixed():
            stack = elegy.nn.Stack(lambda: elegy.nn.Linear(3), 2)
            y = stack(X)
            np.testing.assert_allclose(y, stack[1](stack[0](X)), rtol=1e-5, atol=1e-6)

        return lambda: elegy.nn.Stack(lambda: jnp.tanh, 2), fixed

    @misuse(StructureError, "number 1", "another structure than number 0", "(?i)factory|Sequential")
    def a_stack_of_different_blocks():
        blocks = [elegy.nn.Linear(3).init(X, rng=number) for number in range(2)]

        def fixed():
            stack = elegy.nn.Stack.from_blocks(blocks)
            np.testing.assert_allclose(stack(X), blocks[1](blocks[0](X)), rtol=1e-5, atol=1e-6)

        return lambda: elegy.nn.Stack.from_blocks([elegy.nn.Linear(3), elegy.nn.Linear(2)]), fixed

    @misuse(TypeError, r"elegy\.vmap", "class Net", "construct it first")
    def vmap_of_a_class():
        return lambda: elegy.vmap(Net)(X), lambda: np.testing.assert_array_equal(elegy.vmap(Net())(X).shape, (4, 2))

    @misuse(TypeError, r"elegy\.scan must return a pair", "got", r"\(carry, None\)")
    def a_scan_that_returns_its_carry_alone():
        module = linear()

        def fixed():
            y, _ = elegy.scan(lambda x, _: (module(x), None), X, length=2, modules=module)
            np.testing.assert_allclose(y, module(module(X)), rtol=1e-5, atol=1e-6)

        return lambda: elegy.scan(lambda x, _: module(x), X, length=2, modules=module), fixed

    @pytest.mark.parametrize("listed", ["the layer", "the module that runs"])
    def test_layers_first_called_inside_a_lifted_scan_are_those_of_a_loop(listed):
        class Repeated(elegy.Module):
            def call(self, x):
                layer = elegy.nn.Linear(3)
                modules = layer if listed == "the layer" else self
                return elegy.scan(lambda x, _: (layer(x), None), x, length=3, modules=modules)[0]

        module = Repeated()
        y = module(X)
        for _ in range(3):
            x = module.linear(X if _ == 0 else x)
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)

    def test_layers_of_the_branches_of_a_lifted_cond_are_all_created():
        class Branches(elegy.Module):
            def call(self, x):
                one, two = elegy.nn.Linear(2), elegy.nn.Linear(2)
                return elegy.cond(x.sum() > 1, lambda x: one(x), lambda x: two(x), x, modules=[one, two])

        module = Branches()
        np.testing.assert_allclose(module(X), module.linear_1(X), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(module(X + 1), module.linear(X + 1), rtol=1e-5, atol=1e-6)

    def test_each_lane_of_a_lifted_vmap_draws_for_itself():
        dropout = elegy.nn.Dropout(0.5)
        y = elegy.vmap(dropout)(jnp.ones([4, 32]))
        assert len(np.unique(np.asarray(y), axis=0)) == 4


# ---------------------------------------------------------------------------------------------------------------------
# What is right without further ado
# ---------------------------------------------------------------------------------------------------------------------


def test_reading_a_module_through_a_closure_is_allowed():
    module = linear()
    for transform in (jax.jit, jax.vmap, jax.checkpoint):
        np.testing.assert_allclose(transform(lambda x: module(x))(X), module(X), rtol=1e-5, atol=1e-6)


def test_tied_weights_stay_tied():
    class Tied(elegy.Module):
        def __init__(self):
            self.up = elegy.nn.Linear(3)
            self.again = self.up

        def call(self, x):
            return self.again(self.up(x))

    module = Tied().init(X, rng=0)
    w, b = np.asarray(module.up.w), np.asarray(module.up.b)
    for new in (jax.tree.map(lambda leaf: leaf, module), jax.jit(lambda m: m)(module)):
        assert new.again is new.up and len(jax.tree.leaves(new)) == 2
    # Of sum(x w w), both uses taken into account.
    grads = elegy.grad(lambda x: module(x).sum(), modules=module)(X)
    ones = np.ones([4, 3], np.float32)
    np.testing.assert_allclose(grads["up"]["w"], X.T @ ones @ w.T + (X @ w + b[None]).T @ ones, rtol=1e-5, atol=1e-5)


def test_members_made_without_keys_are_refused_and_with_keys_differ():
    with pytest.raises(TraceError, match=r"(?s)^linear: parameters were created.*module\.init\(x, rng=key\)"):
        jax.vmap(lambda _: elegy.nn.Linear(2).init(X))(jnp.arange(3))
    keys = jax.random.split(jax.random.key(0), 3)
    members = jax.vmap(lambda key: elegy.nn.Linear(2).init(X, rng=key))(keys)
    assert len(np.unique(np.asarray(members.w).reshape(3, -1), axis=0)) == 3


def test_a_summary_that_nobody_collects_is_dropped_and_one_that_is_collected_never():
    class Shown(elegy.Module):
        def call(self, x):
            elegy.add_summary("squares", x**2)
            return x

    module = Shown()
    f = elegy.jit(module)
    f(X)
    assert elegy.get_summaries() is None
    for number in (1, 2, 3):
        with elegy.hooks_context(summaries=True):
            f(np.float32(number) * X)
            values = {name: value for _, name, value in elegy.get_summaries()}
        np.testing.assert_allclose(values["shown/squares"], (number * X) ** 2, rtol=1e-6)
    with elegy.hooks_context(summaries=True), pytest.raises(TraceError, match="add_summary"):
        jax.jit(lambda m, x: m(x))(module, X)


def test_an_old_module_is_a_value_and_the_shim_always_moves_on():
    noise = Noise().init(X)
    f = jax.jit(lambda m, x: (m(x), m))
    first, after = f(noise, X)
    np.testing.assert_array_equal(first, f(noise, X)[0])  # the same module, hence the same draw
    assert (first != f(after, X)[0]).all()
    g = elegy.jit(noise)
    assert (g(X) != g(X)).all()


def test_the_base_constructor_need_not_be_called():
    class Bare(elegy.Module):
        def __init__(self, size):
            self.size = size

        def call(self, x):
            return elegy.nn.Linear(self.size)(x)

    assert Bare(2)(X).shape == (4, 2)


def test_modules_with_one_name_are_two_modules():
    class Named(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(2, name="layer")(elegy.nn.Linear(3, name="layer")(x))

    module = Named()
    module(X)
    assert set(module.submodules) == {"layer", "layer_1"}


def test_a_list_in_an_attribute_is_no_longer_the_list_that_was_given():
    class Sizes(elegy.Module):
        def __init__(self, sizes):
            self.sizes = sizes

        def call(self, x):
            return x

    given = [1, 2]
    one, two = Sizes(given), Sizes(given)
    given.append(3)
    assert one.sizes == two.sizes == [1, 2]
    f = elegy.jit(lambda m, x: m(x))
    f(one, X), f(two, X)
    assert f.traces == 1


def test_an_array_in_any_attribute_is_a_leaf():
    class Table(elegy.Module):
        def __init__(self, rows):
            self.rows = {"even": [rows, "a string"]}

        def call(self, x):
            return x + self.rows["even"][0]

    one, two = Table(np.float32(1) * X), Table(np.float32(2) * X)
    f = elegy.jit(lambda m, x: m(x))
    np.testing.assert_allclose(f(one, X), 2 * X)
    np.testing.assert_allclose(f(two, X), 3 * X)
    assert f.traces == 1


def test_frozen_parameters_receive_no_update_not_even_weight_decay():
    class Two(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(2)(elegy.nn.Linear(3)(x))

    module, optimizer = Two().init(X, rng=0), elegy.Optimizer(optax.adamw(0.1, weight_decay=1.0))
    module.linear.trainable = False
    before = module.get_parameters()
    _, grads = elegy.value_and_grad(lambda x: module(x).sum(), modules=module)(X)
    optimizer.update(module, grads)
    np.testing.assert_array_equal(module.linear.w, before["linear"]["w"])
    assert (module.linear_1.w != before["linear_1"]["w"]).all()


def test_a_model_predicts_in_evaluation_mode():
    model = elegy.Model(module=elegy.nn.Sequential(lambda: [elegy.nn.Dropout(0.5), elegy.nn.Linear(2)]), seed=0)
    ones = np.ones([8, 3], np.float32)
    first = model.predict(ones)
    np.testing.assert_array_equal(first, model.predict(ones))
    np.testing.assert_allclose(first, np.broadcast_to(first[:1], first.shape))
    assert elegy.training()


def test_the_mode_reaches_functions_that_were_compiled_in_the_other_one():
    dropout = elegy.nn.Dropout(0.5).init(X)
    f = jax.jit(lambda m, x, key: m.apply(x, rng=key)[0])
    ones = np.ones(64, np.float32)
    assert (f(dropout, ones, jax.random.key(0)) != ones).all()
    with elegy.training_context(False):
        np.testing.assert_array_equal(f(dropout, ones, jax.random.key(0)), ones)


def test_a_gradient_initialises_what_is_not():
    module = Net()
    _, grads = elegy.value_and_grad(lambda x: module(x).sum(), modules=module)(X)
    np.testing.assert_allclose(
        grads["linear"]["w"], np.broadcast_to(X.sum(axis=0)[:, None], (3, 2)), rtol=1e-6, atol=1e-6
    )


def test_a_value_hidden_in_a_static_object_is_caught_by_jax():
    """No library sees an assignment to an object that it does not own; but nothing comes of it silently."""

    class Box:
        pass

    class Hides(elegy.Module):
        def __init__(self):
            self.box = Box()

        def call(self, x):
            self.box.value = 2 * x
            return x

    module = Hides()
    module.jit(X)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        module.box.value + 1
