"""Losses, metrics, summaries, mode and position: right eagerly, on the tracing call, and on cached calls."""

import contextlib
import threading
import typing as tp

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from tests import helpers
from tests.helpers import Affine, Counter, Mask, assert_close, assert_same, batch, concrete


class Penalised(elegy.Module):
    """Declares one value of each kind, all of which depend on the input and on state."""

    def call(self, x):
        n = self.add_parameter("n", [], jnp.float32, jnp.zeros, trainable=False)
        self.update_parameter("n", n + 1)
        y = Affine(2)(x)
        elegy.add_loss("penalty", jnp.sum(y**2) + n)
        elegy.add_metric("mean", y.mean() + n)
        elegy.add_summary("activation", y)
        return y


def collected(function, summaries=True) -> tp.Any:
    with elegy.hooks_context(summaries=summaries):
        out = function()
        found = elegy.get_summaries()
        return (
            out,
            dict(helpers.losses()),
            dict(helpers.metrics()),
            None if found is None else [(name, value) for _, name, value in found],
        )


# ---------------------------------------------------------------------------------------------------------------------
# Collecting
# ---------------------------------------------------------------------------------------------------------------------


def test_nothing_is_collected_outside_a_context():
    elegy.add_loss("a", 1.0)
    elegy.add_metric("a", 1.0)
    elegy.add_summary("a", 1.0)
    assert elegy.get_losses() is None and elegy.get_metrics() is None and elegy.get_summaries() is None
    with elegy.hooks_context():
        assert elegy.get_losses() == {} and elegy.get_metrics() == {} and elegy.get_summaries() is None
    with elegy.hooks_context(summaries=True):
        assert elegy.get_summaries() == []
    assert elegy.get_losses() is None and elegy.get_metrics() is None and elegy.get_summaries() is None


def test_losses_are_suffixed_and_summed():
    with elegy.hooks_context():
        elegy.add_loss("l2", jnp.asarray(1.0))
        elegy.add_loss("l2", jnp.asarray(2.0))
        elegy.add_loss("l2_loss", jnp.asarray(4.0))
        elegy.add_loss("loss", jnp.asarray(8.0))
        elegy.add_loss("floss", jnp.asarray(16.0))
        assert elegy.get_losses() == {"l2_loss": 7.0, "loss": 8.0, "floss": 16.0}


def test_metrics_are_prefixed_and_numbered():
    class Inner(elegy.Module):
        def call(self, x):
            for _ in range(3):
                elegy.add_metric("norm", jnp.abs(x).sum())
            return x

    class Outer(elegy.Module):
        def __init__(self):
            self.items = [Inner(), Inner()]

        def call(self, x):
            for item in self.items:
                x = item(x)
            x = Inner(name="named")(x)
            elegy.add_metric("own", 1.0)
            return x

    _, _, metrics, _ = collected(lambda: Outer()(jnp.ones(2)))
    assert list(metrics) == [
        *("outer/items/0/norm" + number for number in ("", "_1", "_2")),
        *("outer/items/1/norm" + number for number in ("", "_1", "_2")),
        *("outer/named/norm" + number for number in ("", "_1", "_2")),
        "outer/own",
    ]


def test_a_metric_of_a_module_called_twice_is_numbered():
    class Twice(elegy.Module):
        def call(self, x):
            inner = Penalised()
            return inner(x).sum() + inner(x).sum()

    _, losses, metrics, _ = collected(lambda: Twice()(jnp.ones([1, 2])))
    assert list(metrics) == ["twice/penalised/mean", "twice/penalised/mean_1"]
    assert metrics["twice/penalised/mean_1"] - metrics["twice/penalised/mean"] == 1.0
    assert list(losses) == ["penalty_loss"]


def test_a_metric_outside_of_modules_keeps_its_name():
    with elegy.hooks_context():
        elegy.add_metric("accuracy", 0.5)
        elegy.add_metric("accuracy", 0.25)
        assert elegy.get_metrics() == {"accuracy": 0.5, "accuracy_1": 0.25}


def test_each_module_summarises_its_output():
    class Outer(elegy.Module):
        def call(self, x):
            x = Affine(3)(x)
            return Affine(2)(x)

    module = Outer().init(jnp.ones([1, 2]))
    with elegy.hooks_context(summaries=True):
        y = module(jnp.ones([1, 2]))
        summaries = helpers.summaries()
        assert [name for _, name, _ in summaries] == ["outer/affine", "outer/affine_1", "outer"]
        assert [found for found, _, _ in summaries] == [module.affine, module.affine_1, module]
        assert_same(summaries[-1][2], y)


def test_summaries_with_names_and_modules():
    module = Penalised().init(jnp.ones([1, 2]))
    with elegy.hooks_context(summaries=True):
        module(jnp.ones([1, 2]))
        elegy.add_summary("free", 1.0)
        elegy.add_summary("free", 2.0)
        elegy.add_summary(module.affine, 3.0)
        found = helpers.summaries()
    names = [name for _, name, _ in found]
    assert names == ["penalised/affine", "penalised/activation", "penalised", "free", "free_1", "affine"]
    assert found[-1][0] is module.affine and found[3][0] is None


def test_nested_contexts():
    with elegy.hooks_context(summaries=True):
        elegy.add_loss("a", 1.0)
        with elegy.hooks_context():
            elegy.add_loss("a", 2.0)
            elegy.add_summary("s", 1.0)
            assert elegy.get_losses() == {"a_loss": 2.0}
        with elegy.hooks_context(summaries=True):
            elegy.add_summary("t", 1.0)
            assert [name for _, name, _ in helpers.summaries()] == ["t"]
        assert elegy.get_losses() == {"a_loss": 1.0}
        # A context without summaries leaves those of the outer one open.
        assert [name for _, name, _ in helpers.summaries()] == ["s"]


def test_a_context_is_left_after_an_exception():
    with pytest.raises(KeyError), elegy.hooks_context():
        raise KeyError
    assert elegy.get_losses() is None


def test_name_context_adds_a_level_to_paths_of_values_only():
    class Inner(elegy.Module):
        def call(self, x):
            with elegy.name_context("deep"):
                y = Affine(2)(x)
                elegy.add_metric("m", 1.0)
            return y

    module = Inner()

    def run():
        with elegy.name_context("level"):
            elegy.add_metric("m", 0.0)
            return module(jnp.ones([1, 2]))

    _, _, metrics, summaries = collected(run)
    assert list(metrics) == ["level/m", "level/inner/deep/m"]
    assert list(module.get_parameters()) == ["affine"]
    assert "inner" in summaries[-1][0]
    run()  # harmless without a context


# ---------------------------------------------------------------------------------------------------------------------
# Out of transformed code
# ---------------------------------------------------------------------------------------------------------------------


def transforms(module):
    plain = lambda f: f  # noqa: E731
    jit = lambda f: elegy.jit(f, modules=module)  # noqa: E731

    def grad(f):
        def loss_fn(x):
            y = f(x)
            return y.sum(), y

        return lambda x: elegy.value_and_grad(loss_fn, modules=module)(x)[0][1]

    return {
        "eager": plain,
        "jit": jit,
        "value_and_grad": grad,
        "jit of value_and_grad": lambda f: jit(grad(f)),
        "value_and_grad of jit": lambda f: grad(jit(f)),
        "jit of jit": lambda f: jit(jit(f)),
    }


@pytest.mark.parametrize("kind", list(transforms(None)))
@pytest.mark.parametrize("initialised", [True, False])
def test_values_are_right_on_the_first_and_on_every_later_call(kind, initialised):
    x, _ = batch()
    module = Penalised()
    if initialised:
        module.init(x)
    step = transforms(module)[kind](lambda x: module(x))
    for call in range(3):
        inputs = x * (call + 1)
        y, losses, metrics, summaries = collected(lambda inputs=inputs: step(inputs))
        assert concrete((y, losses, metrics, summaries))
        np.testing.assert_allclose(losses["penalty_loss"], jnp.sum(y**2) + call, rtol=1e-5)
        np.testing.assert_allclose(metrics["penalised/mean"], y.mean() + call, rtol=1e-5)
        assert list(losses) == ["penalty_loss"] and list(metrics) == ["penalised/mean"]
        assert [name for name, _ in summaries] == ["penalised/affine", "penalised/activation", "penalised"]
        for _, value in summaries:
            assert_close(value, y)
    assert int(module.n) == 3


def test_summaries_out_of_compiled_code_name_the_modules():
    x, _ = batch()
    module = Penalised().init(x)
    step = elegy.jit(module)
    for _ in range(2):
        with elegy.hooks_context(summaries=True):
            step(x)
            found = helpers.summaries()
            assert [entry[0] for entry in found] == [module.affine, None, module]


def test_collecting_compiles_once_and_going_back_is_free():
    x, _ = batch()
    module = Penalised().init(x)
    step = elegy.jit(module)
    step(x)
    assert step.traces == 1
    collected(lambda: step(x), summaries=False)
    assert step.traces == 2
    collected(lambda: step(x), summaries=True)
    assert step.traces == 3
    for _ in range(2):
        step(x)
        assert collected(lambda: step(x), summaries=False)[1] != {}
        assert len(collected(lambda: step(x), summaries=True)[3]) == 3
    assert step.traces == 3


def test_two_compiled_modules_in_one_context():
    x, _ = batch()
    a, b = Penalised(name="first").init(x), Penalised(name="second").init(x)
    jit_a, jit_b = elegy.jit(a), elegy.jit(b)
    for call in range(3):

        def both():
            return jit_a(x), jit_b(x), jit_a(x)

        outs, losses, metrics, _ = collected(both, summaries=False)
        assert list(metrics) == ["first/mean", "second/mean", "first/mean_1"]
        expected = sum(float(jnp.sum(y**2)) for y in outs) + 2 * call + call + 2 * call + 1
        np.testing.assert_allclose(losses["penalty_loss"], expected, rtol=1e-5)
        assert concrete((losses, metrics))
    assert jit_a.traces == jit_b.traces == 1


def test_eager_and_compiled_values_mix_in_one_context():
    x, _ = batch()
    module = Penalised().init(x)
    step = elegy.jit(module)
    for _ in range(2):
        with elegy.hooks_context():
            module(x)
            step(x)
            elegy.add_loss("penalty", 1.0)
            assert list(helpers.metrics()) == ["penalised/mean", "penalised/mean_1"]
            assert concrete(elegy.get_losses())


def test_a_context_inside_the_compiled_function():
    x, _ = batch()
    module = Penalised().init(x)

    def step(x):
        with elegy.hooks_context():
            module(x)
            return dict(helpers.losses()), dict(helpers.metrics())

    compiled = elegy.jit(step, modules=module)
    for call in range(2):
        losses, metrics = compiled(x)
        np.testing.assert_allclose(losses["penalty_loss"], jnp.sum(module.affine(x) ** 2) + call, rtol=1e-5)
        assert list(metrics) == ["penalised/mean"]
    # Neither does it spill into an outer context.
    _, losses, _, _ = collected(lambda: compiled(x))
    assert losses == {}


def test_a_context_inside_a_stock_jax_transform():
    x, _ = batch()
    module = Penalised().init(x)

    @jax.jit
    def step(module, x):
        with elegy.hooks_context():
            y = module(x)
            return y, dict(helpers.losses()), module

    y, losses, updated = step(module, x)
    np.testing.assert_allclose(losses["penalty_loss"], jnp.sum(y**2), rtol=1e-5)
    assert int(updated.n) == 1


def test_added_losses_are_differentiated_with_the_loss():
    x, _ = batch()
    module = Penalised().init(x)

    def loss_fn(x):
        with elegy.hooks_context():
            y = module(x)
            return y.sum() + sum(helpers.losses().values())

    grads = elegy.grad(loss_fn, modules=module)(x)

    def plain(p):
        y = x @ p["w"] + p["b"][None]
        return y.sum() + jnp.sum(y**2)

    assert_close(grads["affine"], jax.grad(plain)(module.affine.get_parameters()), rtol=1e-4)


def test_values_of_any_form_come_out():
    class Odd(elegy.Module):
        def call(self, x):
            elegy.add_summary("none", None)
            elegy.add_summary("text", "static")
            elegy.add_summary("tree", {"a": (x, 1), "b": [jnp.tanh]})
            elegy.add_loss("python", 2.0)
            elegy.add_metric("integer", 3)
            return x

    module = Odd().init(jnp.ones(2))
    step = elegy.jit(module)
    for _ in range(2):
        _, losses, metrics, summaries = collected(lambda: step(jnp.ones(2)))
        assert losses["python_loss"] == 2.0 and metrics["odd/integer"] == 3
        values = dict(summaries)
        assert values["odd/none"] is None and values["odd/text"] == "static"
        assert values["odd/tree"]["a"][1] == 1 and values["odd/tree"]["b"] == [jnp.tanh]


def test_losses_of_a_method_and_of_a_function_module():
    @elegy.to_module
    def regularise(x):
        elegy.add_loss("size", jnp.sum(x**2))
        elegy.add_metric("size", jnp.sum(x**2))
        return x

    class Coder(elegy.Module):
        @elegy.compact
        def encode(self, x):
            elegy.add_metric("input", x.mean())
            return regularise()(x)

        def call(self, x):
            return self.encode(x)

    module = Coder().init(jnp.ones(2))
    step = elegy.jit(module.encode)
    for _ in range(2):
        _, losses, metrics, _ = collected(lambda: step(jnp.ones(2)))
        assert losses == {"size_loss": 2.0}
        assert metrics == {"coder/input": 1.0, "coder/regularise/size": 2.0}


def test_hooks_of_the_init_pass_are_not_collected():
    _, losses, metrics, summaries = collected(lambda: Penalised().init(jnp.ones([1, 2])))
    assert losses == {} and metrics == {} and summaries == []


def test_a_collected_value_in_an_init_pass_is_seen_there():
    class Reads(elegy.Module):
        def call(self, x):
            elegy.add_loss("a", x.sum())
            return helpers.losses()["a_loss"]

    with elegy.hooks_context():
        assert Reads()(jnp.ones(3)) == 3.0
        assert elegy.get_losses() == {"a_loss": 3.0}


def test_position_and_mode_in_compiled_code_called_by_a_module():
    class Outer(elegy.Module):
        def __init__(self):
            self.inner = Penalised()

        def call(self, x):
            return elegy.jit(self.inner)(x)

    x, _ = batch()
    module = Outer()
    for call in range(2):
        y, losses, metrics, _ = collected(lambda: module(x))
        assert list(metrics) == ["outer/inner/mean"]
        np.testing.assert_allclose(losses["penalty_loss"], jnp.sum(y**2) + call, rtol=1e-5)


def test_one_compiled_function_at_two_positions():
    inner = Penalised().init(jnp.ones([1, 2]))
    step = elegy.jit(lambda x: inner(x), modules=inner)

    def run():
        with elegy.name_context("a"):
            step(jnp.ones([1, 2]))
        with elegy.name_context("b"):
            step(jnp.ones([1, 2]))

    for _ in range(2):
        _, _, metrics, _ = collected(run)
        assert list(metrics) == ["a/penalised/mean", "b/penalised/mean"]


# ---------------------------------------------------------------------------------------------------------------------
# Mode and position
# ---------------------------------------------------------------------------------------------------------------------


def test_training_mode():
    assert elegy.training() is True and elegy.is_training() is True
    with elegy.training_context(False):
        assert elegy.training() is False and elegy.is_training() is False
        with elegy.training_context(True):
            assert elegy.training()
        assert not elegy.training()
    assert elegy.training()
    elegy.set_training(False)
    assert not elegy.training()
    with pytest.raises(KeyError), elegy.training_context(True):
        raise KeyError
    assert not elegy.training()


def test_the_mode_is_that_of_the_thread():
    elegy.set_training(False)
    modes = []
    thread = threading.Thread(target=lambda: modes.append(elegy.training()))
    thread.start()
    thread.join()
    assert modes == [True] and not elegy.training()


def test_the_mode_can_be_set_inside_compiled_code():
    x = jnp.ones([3, 20])
    module = Mask().init(x)

    def both(x):
        with elegy.training_context(False):
            quiet = module(x)
        return quiet, module(x)

    step = elegy.jit(both, modules=module)
    for _ in range(2):
        quiet, noisy = step(x)
        assert_same(quiet, x)
        assert (noisy == 0).any()


def test_the_running_module_and_whether_it_initialises():
    seen = []

    class Spy(elegy.Module):
        def call(self, x):
            seen.append((elegy.get_module() is self, elegy.is_initializing()))
            return x

    assert elegy.get_module() is None and not elegy.is_initializing()
    Spy()(jnp.ones(1))
    assert seen == [(True, True), (True, False)]
    assert elegy.get_module() is None and not elegy.is_initializing()


def test_the_whole_context_can_be_saved_and_restored():
    static, dynamic = elegy.get_static_context(), elegy.get_dynamic_context()
    assert static.training and not static.initializing and static.module is None
    a = elegy.next_rng_key()
    elegy.set_training(False)
    elegy.next_rng_key()
    elegy.set_context(static, dynamic)
    assert elegy.training()
    assert_same(elegy.next_rng_key(), a)
    # The copy that was taken is not advanced by drawing.
    elegy.set_context(static, dynamic)
    assert_same(elegy.next_rng_key(), a)
    assert len(jax.tree.leaves(dynamic)) >= 1


def test_the_random_stream_crosses_compiled_code():
    x = jnp.ones([2, 10])
    module = Mask().init(x)
    elegy.set_rng(elegy.RNG(1))
    eager = [module(x), module(x), elegy.next_rng_key()]
    elegy.set_rng(elegy.RNG(1))
    step = elegy.jit(module)
    compiled = [step(x), step(x), elegy.next_rng_key()]
    assert_same(compiled, eager)


def test_hooks_of_a_counter_below_a_function():
    # Not all that runs inside a context is a module.
    counter = Counter().init()

    @elegy.to_module
    def twice():
        counter()
        counter()
        elegy.add_metric("n", counter.n)

    module = twice()
    step = elegy.jit(module, modules=counter)
    for call in range(2):
        _, _, metrics, _ = collected(step)
        assert metrics == {"twice/n": 2 * (call + 1)}


# ---------------------------------------------------------------------------------------------------------------------
# The mode, and what JAX has compiled
# ---------------------------------------------------------------------------------------------------------------------


def modes_of(stock):
    """The mode, and the one of the compiled function that runs."""
    return elegy.training(), bool(stock(jnp.zeros([])))


def test_the_mode_and_compiled_functions_agree_whatever_sets_it():
    stock = jax.jit(lambda x: x + float(elegy.training()))
    assert modes_of(stock) == (True, True)
    with elegy.hooks_context():
        elegy.set_training(False)
        assert modes_of(stock) == (False, False)
    assert modes_of(stock) == (False, False)
    static, dynamic = elegy.get_static_context(), elegy.get_dynamic_context()
    elegy.set_training(True)
    assert modes_of(stock) == (True, True)
    elegy.set_context(static, dynamic)
    assert modes_of(stock) == (False, False)
    with elegy.training_context(True):
        with elegy.hooks_context(summaries=True):
            assert modes_of(stock) == (True, True)
            elegy.set_training(False)
            assert modes_of(stock) == (False, False)
    assert modes_of(stock) == (False, False)
    elegy.set_training(True)


@pytest.mark.parametrize("name", ["set_training", "set_rng", "set_context"])
@pytest.mark.parametrize("transform", [jax.jit, elegy.jit, jax.eval_shape])
def test_what_would_outlive_a_trace_is_refused(name, transform):
    context = elegy.get_static_context(), elegy.get_dynamic_context()
    setter = {
        "set_training": lambda x: elegy.set_training(False),
        "set_rng": lambda x: elegy.set_rng(jax.random.key(x)),
        "set_context": lambda x: elegy.set_context(*context),
    }[name]
    key = elegy.get_rng().key
    with pytest.raises(elegy.errors.TraceError, match="inside a jax transform"):
        transform(lambda x: setter(x) or x, jnp.int32(3)) if transform is jax.eval_shape else transform(
            lambda x: setter(x) or x
        )(jnp.int32(3))
    assert elegy.training()
    assert_same(elegy.get_rng().key, key)


def test_a_name_context_reaches_the_outputs_of_modules():
    class Outer(elegy.Module):
        def call(self, x):
            with elegy.name_context("block"):
                return Affine(2)(x)

    x, _ = batch()
    *_, summaries = collected(lambda: Outer()(x))
    assert [name for name, _ in summaries] == ["outer/block/affine", "outer"]


class Fails(elegy.Module):
    """Its submodule is through when it fails, but not in the init pass."""

    def call(self, x):
        elegy.add_loss("before", jnp.sum(x))
        Affine(2)(x)
        if not elegy.is_initializing():
            raise RuntimeError("as asked")
        return x


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("kind", ["eager", "elegy.jit"])
def test_summaries_of_a_failed_call_are_forgotten_whatever_is_around_it(levels, kind):
    x, _ = batch()
    module = Fails()
    call = module if kind == "eager" else elegy.jit(module)
    with elegy.hooks_context(summaries=True):
        elegy.add_summary("mine", x)
        with contextlib.ExitStack() as contexts:
            for _ in range(levels):
                contexts.enter_context(elegy.hooks_context())
            for _ in range(2):
                with pytest.raises(RuntimeError, match="as asked"):
                    call(x)
                assert helpers.losses() == {}
        assert [name for _, name, _ in helpers.summaries()] == ["mine"]


def test_what_was_collected_is_given_as_a_copy():
    with elegy.hooks_context():
        elegy.add_loss("size", jnp.float32(1))
        elegy.add_metric("size", jnp.float32(2))
        helpers.losses().clear()
        helpers.metrics().clear()
        before = helpers.losses(), helpers.metrics()
        assert before == ({"size_loss": 1}, {"size": 2})
        elegy.add_loss("size", jnp.float32(4))
        elegy.add_metric("other", jnp.float32(5))
        assert before == ({"size_loss": 1}, {"size": 2})
        assert (helpers.losses(), helpers.metrics()) == ({"size_loss": 5}, {"size": 2, "other": 5})
