"""What code written for Elegy 0.3 relies on: the names of `Module`, of the contexts and of the transforms."""

import inspect
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
import elegy.module
from tests import helpers
from tests.helpers import Affine, Counter, Mask, Net, Norm, Stateful, assert_close, assert_same, batch, concrete

# ---------------------------------------------------------------------------------------------------------------------
# Names and signatures
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("Module", "to_module", "jit", "value_and_grad", "RNG"),
        *("add_loss", "add_metric", "add_summary", "get_losses", "get_metrics", "get_summaries", "hooks_context"),
        *("training_context", "set_training", "is_training", "training", "name_context"),
        *("get_rng", "set_rng", "next_rng_key", "get_static_context", "get_dynamic_context", "set_context"),
        *("initializers", "losses", "metrics", "model", "module", "nn", "Model"),
    ],
)
def test_top_level_names(name):
    assert hasattr(elegy, name)


@pytest.mark.parametrize(
    "name",
    [
        *("call", "__call__", "init", "jit", "init_jit", "add_parameter", "update_parameter", "get_parameters"),
        *("set_parameters", "reset", "initialized", "trainable", "submodules", "parameters_size", "parameters_bytes"),
        *("states_size", "states_bytes", "name", "dtype"),
    ],
)
def test_names_of_a_module(name):
    assert hasattr(Affine(2), name)


def test_names_of_the_module_file():
    for name in ("is_initializing", "get_module", "rng_context"):
        assert hasattr(elegy, name)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (elegy.Module.__init__, ["self", "name", "dtype"]),
        (elegy.Module.add_parameter, ["self", "name", "shape", "dtype", "initializer", "trainable"]),
        (elegy.Module.update_parameter, ["self", "name", "value"]),
        (elegy.Module.get_parameters, ["self", "trainable"]),
        (elegy.Module.set_parameters, ["self", "values"]),
        (elegy.Module.parameters_size, ["self", "include_submodules"]),
        (elegy.jit, ["f", "modules"]),
        (elegy.value_and_grad, ["f", "modules", "parameters_fn"]),
        (elegy.add_loss, ["name", "value"]),
        (elegy.add_metric, ["name", "value"]),
        (elegy.add_summary, ["module_or_name", "value"]),
        (elegy.hooks_context, ["summaries"]),
        (elegy.training_context, ["training"]),
        (elegy.name_context, ["name"]),
        (elegy.set_rng, ["rng"]),
    ],
)
def test_arguments(function, names):
    assert list(inspect.signature(function).parameters)[: len(names)] == names


# ---------------------------------------------------------------------------------------------------------------------
# Modules as they were written
# ---------------------------------------------------------------------------------------------------------------------


class Classic(elegy.Module):
    """The usual form: options passed on, everything made in `call`, state by `update_parameter`."""

    w: jnp.ndarray

    def __init__(self, units: int, with_bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.with_bias = with_bias
        self.input_size = None

    def call(self, x, training=None):
        training = training if training is not None else elegy.is_training()
        w = self.add_parameter("w", [x.shape[-1], self.units], self.dtype, elegy.initializers.RandomUniform())
        n = self.add_parameter("n", (), jnp.int32, initializer=jnp.zeros, trainable=False)
        if training:
            self.update_parameter("n", n + 1)
        y = x @ w
        if self.with_bias:
            b = self.add_parameter("b", [self.units], initializer=jnp.zeros)
            y = y + jnp.broadcast_to(b, y.shape)
        elegy.add_metric("mean", y.mean())
        return y


def test_a_classic_module():
    x, _ = batch()
    module = Classic(2, name="classic_one", dtype=jnp.float32)
    assert module.name == "classic_one" and module.input_size is None
    assert module(x).shape == (6, 2) and int(module.n) == 1
    assert module(x, training=False).shape == (6, 2) and int(module.n) == 1
    with elegy.training_context(training=False):
        module(x)
    assert int(module.n) == 1
    assert module.jit(x).shape == (6, 2) and int(module.n) == 2
    assert list(module.get_parameters(trainable=True)) == ["w", "b"]
    assert list(module.get_parameters(trainable=False)) == ["n"]


def test_init_and_init_jit():
    x, _ = batch()
    for init in (lambda m: m.init(x), lambda m: m.init_jit(x)):
        module = Classic(2)
        init(module)
        assert module.initialized and int(module.n) == 0 and module.w.shape == (3, 2)


def test_init_of_a_copy_initialises_the_copy():
    import copy

    x, _ = batch()
    module = Classic(2)
    copied = copy.deepcopy(module)
    copied.init(x)
    assert copied.initialized and not module.initialized


def test_a_private_attribute_that_holds_a_module_is_seen():
    class Private(elegy.Module):
        def __init__(self):
            self._inner = Affine(2)

        def call(self, x):
            return self._inner(x)

    module = Private()
    module(jnp.ones([1, 2]))
    assert len(jax.tree.leaves(module)) == 2
    assert list(module.get_parameters()) == ["_inner"]


def test_assigning_a_module_in_call_says_how_to_name_it():
    class Assigns(elegy.Module):
        def call(self, x):
            self.encoder = Affine(2)
            return self.encoder(x)

    with pytest.raises(elegy.errors.FrozenModuleError, match="name="):
        Assigns()(jnp.ones([1, 2]))


def test_initialized_is_not_for_assignment():
    module = Affine(2)
    with pytest.raises(elegy.errors.FrozenModuleError, match="initialized"):
        module.initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    assert not module.initialized


def test_submodules():
    x, _ = batch()
    module = Stateful().init(x)
    assert module.submodules == {
        "affine": module.affine,
        "norm": module.norm,
        "mask": module.mask,
        "counter": module.counter,
        "affine_1": module.affine_1,
    }


def test_reset_can_be_repeated_and_repaired():
    x, _ = batch()
    module = Net().init(x)
    module.reset()
    module.reset()
    assert not module.initialized
    with pytest.raises(elegy.errors.ParameterError):
        module.set_parameters({"affine": {"w": jnp.zeros([3, 8])}})
    assert module(x).shape == (6, 1)


def test_a_state_that_counts_keeps_its_dtype_and_compiles_once():
    module = Counter()
    step = elegy.jit(module)
    for _ in range(4):
        step(jnp.ones(2))
    assert module.n.dtype == jnp.int32 and int(module.n) == 4 and step.traces == 1


def test_a_fresh_module_compiles_once():
    runs = []

    class Spy(elegy.Module):
        def call(self, x):
            runs.append(elegy.is_initializing())
            return Affine(2)(x)

    module = Spy()
    for _ in range(3):
        module.jit(jnp.ones([1, 2]))
    assert runs == [True, False]


def test_attributes_of_python_are_part_of_what_is_compiled():
    class Scale(elegy.Module):
        def __init__(self, k):
            self.k = k

        def call(self, x):
            return x * self.k

    step = elegy.jit(lambda module, x: module(x))
    assert [float(step(Scale(k).init(1.0), 1.0)) for k in (1.0, 5.0, 1.0)] == [1.0, 5.0, 1.0]
    assert step.traces == 2


def test_values_stay_arrays_after_compiled_calls():
    class Holds(elegy.Module):
        def __init__(self):
            self.v = self.add_parameter("v", [2])

        def call(self, x):
            self.update_parameter("v", self.v + x)
            return self.v

    module = Holds()
    elegy.jit(module)(jnp.ones(2))
    assert concrete(module) and (module.v == 1).all()
    assert_same(module.get_parameters()["v"], module.v)


def test_a_python_number_as_initial_value_is_an_array():
    class Holds(elegy.Module):
        def call(self):
            return self.add_parameter("a", initializer=3), self.add_parameter("b", initializer=2.5)

    module = Holds()
    a, b = module()
    assert isinstance(module.a, jax.Array) and module.parameters_size() == 2
    assert (a, b) == (3, 2.5)
    assert module.parameters_bytes() == 8


# ---------------------------------------------------------------------------------------------------------------------
# Contexts
# ---------------------------------------------------------------------------------------------------------------------


def test_training_is_on_by_default_in_every_thread():
    modes = []
    thread = threading.Thread(target=lambda: modes.append((elegy.is_training(), elegy.get_losses())))
    thread.start()
    thread.join()
    assert modes == [(True, None)]


def test_an_rng():
    rng = elegy.RNG(42)
    key = rng.key
    drawn = rng()
    assert not np.array_equal(jax.random.key_data(drawn), jax.random.key_data(key))
    assert not np.array_equal(jax.random.key_data(rng.key), jax.random.key_data(key))
    assert elegy.RNG(jax.random.key(0)) is not None and elegy.RNG(jax.random.PRNGKey(0)) is not None
    elegy.set_rng(rng)
    assert elegy.get_rng() is rng
    leaves, treedef = jax.tree.flatten(elegy.RNG(1))
    restored = treedef.unflatten(leaves)
    assert_same(restored(), elegy.RNG(1)())


def test_keys_work_with_every_function_of_jax_random():
    elegy.set_rng(elegy.RNG(0))
    key = elegy.next_rng_key()
    assert jax.random.uniform(key, [2]).shape == (2,)
    a, b = jax.random.split(key)
    assert not np.array_equal(jax.random.normal(a), jax.random.normal(b))


def test_hooks_out_of_a_compiled_call_are_there_each_time():
    x, _ = batch()
    module = Classic(2)
    means, y = [], jnp.zeros([])
    for _ in range(3):
        with elegy.hooks_context(summaries=True):
            y = module.jit(x)
            metrics = dict(helpers.metrics())
            (summary,) = helpers.summaries()
        assert list(metrics) == ["classic/mean"] and concrete(metrics)
        assert summary[0] is module and summary[1] == "classic"
        assert_close(summary[2], y)
        means.append(metrics["classic/mean"])
    np.testing.assert_allclose(means, [y.mean()] * 3, rtol=1e-6)


def test_a_recorded_loss_before_a_compiled_call():
    x, _ = batch()
    a, b = Classic(2), Norm()
    with elegy.hooks_context():
        elegy.add_loss("before", jnp.asarray(1.0))
        a.jit(x)
        b.jit(x)
        elegy.add_loss("after", jnp.asarray(2.0))
        assert elegy.get_losses() == {"before_loss": 1.0, "after_loss": 2.0}
        assert list(helpers.metrics()) == ["classic/mean"]


def test_paths_of_metrics_are_those_of_attributes():
    class MyModule(elegy.Module):
        def __init__(self):
            self.linear1 = Classic(2)
            self.linear2 = Classic(2)

        def call(self, x):
            return Classic(1, name="last")(self.linear2(self.linear1(x)))

    with elegy.hooks_context():
        MyModule()(jnp.ones([1, 2]))
        assert list(helpers.metrics()) == [
            "my_module/linear1/mean",
            "my_module/linear2/mean",
            "my_module/last/mean",
        ]


# ---------------------------------------------------------------------------------------------------------------------
# Transforms
# ---------------------------------------------------------------------------------------------------------------------


def test_jit_takes_keywords_and_leaves_lists_alone():
    x, _ = batch()
    module, other = Classic(2).init(x), Counter().init()
    modules = [other]
    step = elegy.jit(module, modules=modules)
    assert step(x, training=None).shape == step(x=x).shape == (6, 2)
    assert modules == [other]


def test_jit_without_modules_is_no_error():
    assert elegy.jit(lambda x: 2 * x)(jnp.ones([])) == 2


def test_gradients_of_a_fresh_module():
    x, y = batch()
    module = Net()
    loss, grads = elegy.value_and_grad(lambda: jnp.mean((module(x) - y) ** 2), modules=module)()
    assert jax.tree.structure(grads) == jax.tree.structure(module.get_parameters(trainable=True))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads)) and np.isfinite(loss)


def test_gradients_with_a_list_of_modules_and_outputs():
    x, y = batch()
    a, b = Net(), Net()

    def loss_fn(x):
        prediction = a(x) + b(x)
        return jnp.mean((prediction - y) ** 2), prediction

    (loss, prediction), grads = elegy.value_and_grad(loss_fn, modules=[a, b])(x)
    assert len(grads) == 2 and prediction.shape == (6, 1) and loss.shape == ()
    assert_close(prediction, a(x) + b(x))


def test_random_layers_in_compiled_code_go_on_from_call_to_call():
    x = jnp.ones([2, 40])
    module = Mask()
    a, b = module.jit(x), module.jit(x)
    assert not np.array_equal(a, b)
    with elegy.training_context(False):
        assert_same(module.jit(x), x)
