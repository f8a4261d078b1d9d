"""`elegy.nn.LoRA`: its numbers, and how a trained model is adapted, trained, saved and merged."""

import functools
from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from tests.helpers import assert_close, assert_same, batch, concrete

pytestmark = pytest.mark.slow

X, Y = batch()
select = elegy.select
LoRA, Linear = elegy.nn.LoRA, elegy.nn.Linear


class MLP(elegy.Module):
    """Layers made in `call`."""

    def call(self, x):
        x = jnp.tanh(Linear(4)(x))
        x = elegy.nn.BatchNormalization()(x)
        return Linear(1)(x)


def adapt(module, rank=2, **options):
    return select(module, Linear).replace(lambda linear: LoRA(linear, rank, **options))


def moved(layer, seed=1):
    """The layer with factors that are not zero."""
    keys = iter(jax.random.split(jax.random.key(seed), 2))
    return select(layer, "lora_*").apply(lambda value: jax.random.normal(next(keys), value.shape, value.dtype))


def loss_of(module):
    return jnp.mean((module(X) - Y) ** 2)


def train(module, steps=20):
    optimizer = elegy.Optimizer(optax.adam(0.05))

    def step():
        loss, grads = elegy.value_and_grad(lambda: loss_of(module), modules=module)()
        optimizer.update(module, grads)
        return loss

    step = elegy.jit(step, modules=[module, optimizer])
    return [float(step()) for _ in range(steps)]


# ---------------------------------------------------------------------------------------------------------------------
# One layer
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("alpha", [None, 1, 8.0])
def test_the_formula_of_the_paper(with_bias, alpha):
    layer = moved(LoRA(Linear(5, with_bias=with_bias).init(X), rank=2, alpha=alpha))
    w, a, b = (np.asarray(value, np.float64) for value in (layer.w, layer.lora_a, layer.lora_b))
    delta = (2 if alpha is None else alpha) / 2 * a @ b
    expected = np.asarray(X, np.float64) @ (w + delta) + (np.asarray(layer.b) if with_bias else 0)
    np.testing.assert_allclose(layer(X), expected, rtol=1e-5)
    assert ("b" in layer.get_parameters()) == with_bias


def test_the_numbers_of_flax():
    layer = moved(LoRA(Linear(5).init(X), rank=2))
    peer = flax.nnx.LoRALinear(3, 5, lora_rank=2, rngs=flax.nnx.Rngs(0))
    peer.kernel[...], peer.bias[...] = layer.w, layer.b
    peer.lora.lora_a[...], peer.lora.lora_b[...] = layer.lora_a, layer.lora_b
    with jax.numpy_rank_promotion("allow"):
        assert_close(layer(X), peer(X))


@pytest.mark.parametrize("initialised", [True, False])
def test_it_starts_as_the_layer_that_it_wraps(initialised):
    linear = Linear(5, b_init=jnp.ones)
    if initialised:
        linear.init(X)
    layer = LoRA(linear, rank=2).init(X)
    assert_same(layer(X), jnp.dot(X, layer.w) + 1.0)
    assert layer.lora_a.shape == (3, 2) and layer.lora_a.any()
    assert layer.lora_b.shape == (2, 5) and not layer.lora_b.any()
    if initialised:
        assert layer.w is linear.w and layer.b is linear.b and "lora_a" not in linear.get_parameters()


def test_the_spread_of_the_first_factor():
    layer = LoRA(Linear(2).init(jnp.ones([1, 400])), rank=50)
    assert abs(float(layer.lora_a.std()) * 20 - 1) < 0.02 and abs(float(layer.lora_a.mean())) < 2e-3
    constant = LoRA(Linear(2).init(X), rank=2, a_init=elegy.initializers.Constant(0.5))
    assert (constant.lora_a == 0.5).all()


@pytest.mark.parametrize("initialised", [True, False])
def test_the_wrapped_parameters_are_frozen(initialised):
    linear = Linear(5)
    layer = LoRA(linear.init(X) if initialised else linear, rank=2).init(X)
    assert select(layer, trainable=True).paths == ("lora_a", "lora_b")
    assert set(elegy.grad(lambda: layer(X).sum(), modules=layer)()) == {"lora_a", "lora_b"}
    assert select(select(layer, "b").unfreeze(), trainable=True).paths == ("b", "lora_a", "lora_b")
    if initialised:
        assert select(linear, trainable=True).paths == ("w", "b")


def test_half_precision():
    layer = LoRA(Linear(5, dtype=jnp.bfloat16).init(X), rank=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(layer)} == {jnp.dtype(jnp.bfloat16)}
    assert layer(X).dtype == jnp.bfloat16


def test_in_compiled_functions():
    layer = moved(LoRA(Linear(5).init(X), rank=2))
    expected = layer(X)
    compiled, again = jax.jit(lambda layer: (layer(X), layer))(layer)
    assert_close(compiled, expected)
    assert jax.tree.structure(again) == jax.tree.structure(layer)
    assert_close(elegy.jit(layer)(X), expected)
    assert_close(jax.vmap(layer)(X), expected)


@pytest.mark.parametrize("given", [3, Linear, "linear"])
def test_what_is_no_linear_is_refused(given):
    with pytest.raises(Exception, match="Linear"):
        LoRA(given, 2)


def test_a_layer_is_wrapped_once():
    with pytest.raises(TypeError, match="adapts an elegy.nn.Linear, got LoRA"):
        LoRA(LoRA(Linear(2), 2), 2)
    with pytest.raises(ValueError, match="rank must be a positive integer, got 0"):
        LoRA(Linear(2), 0)


@pytest.mark.parametrize("with_bias", [True, False])
def test_merged(with_bias):
    layer = moved(LoRA(Linear(5, with_bias=with_bias, name="head").init(X), rank=2, alpha=3))
    linear = layer.merge()
    assert type(linear) is Linear and linear.name == "head"
    assert_close(linear(X), layer(X))
    paths = ("w", "b") if with_bias else ("w",)
    assert select(linear, trainable=True).paths == paths and len(select(layer)) == len(paths) + 2


# ---------------------------------------------------------------------------------------------------------------------
# A model
# ---------------------------------------------------------------------------------------------------------------------


def sequential():
    return elegy.nn.Sequential(lambda: [Linear(4), elegy.nn.BatchNormalization(), jnp.tanh, Linear(1)])


@functools.cache
def initialised(make, seed=0):
    return make().init(X, rng=seed)


@pytest.fixture(params=[MLP, sequential], ids=["in call", "in __init__"])
def model(request: Any) -> Any:
    return initialised(request.param).copy()


def test_an_adapted_model_computes_the_same(model):
    adapted = adapt(model)
    assert_same(adapted.apply(X)[0], model.apply(X)[0])
    assert len(select(adapted, "**/lora_*")) == 4 and len(select(model)) == len(select(adapted)) - 4
    factors = [value for path, value in _by_path(adapted).items() if path.endswith("lora_a")]
    assert factors[0].shape == (3, 2) and factors[1].shape == (4, 2)


def _by_path(module):
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(module)
    }


def test_only_the_adapters_are_trained(model):
    adapted = adapt(model)
    adapted = (~select(adapted, "**/lora_*")).freeze()
    before = _by_path(adapted.copy())
    losses = train(adapted)
    assert losses[-1] < 0.95 * losses[0]
    after = _by_path(adapted)
    changed = {path for path in before if (before[path] != after[path]).any()}
    assert {path for path in changed if path.endswith(("mean", "var"))} == changed - set(
        select(adapted, "**/lora_*").paths
    )
    assert set(select(adapted, "**/lora_*").paths) <= changed
    assert concrete(adapted)


def test_adapters_are_saved_alone_and_loaded_on_a_fresh_base(model, tmp_path):
    path = tmp_path / "adapters.safetensors"
    adapted = adapt(model)
    with elegy.training_context(False):
        train(adapted, 3)
        elegy.save(path, select(adapted, "**/lora_*"))
        fresh = adapt(model)
        assert (fresh(X) != adapted(X)).any()
        loaded = elegy.load(path, like=select(fresh, "**/lora_*"))
        # The other layers were trained too: their values are not in the file.
        norm = select(adapted, elegy.nn.BatchNormalization)
        assert_close(select(loaded, norm).set(norm.get())(X), adapted(X))


def test_the_base_is_loaded_from_a_checkpoint_of_the_plain_model(model, tmp_path):
    path = tmp_path / "base.safetensors"
    elegy.save(path, model)
    other = adapt(initialised(MLP if type(model) is MLP else sequential, seed=7))
    loaded = elegy.load(path, like=other, strict=False)
    assert_same(loaded.apply(X)[0], model.apply(X)[0])


def test_merged_it_is_a_plain_model_again(model):
    adapted = adapt(model)
    with elegy.training_context(False):
        train(adapted, 3)
        merged = select(adapted, LoRA).replace(LoRA.merge)
        assert select(merged).paths == select(model).paths
        assert_close(merged(X), adapted(X))
    if type(model) is MLP:
        assert jax.tree.structure(merged) == jax.tree.structure(model)


def test_a_model_that_is_adapted_before_its_first_call():
    module = elegy.nn.Sequential(lambda: [LoRA(Linear(4), 2), jnp.tanh, LoRA(Linear(1), 2)])
    losses = train(module)
    assert losses[-1] < losses[0]
    assert select(module, trainable=True) == select(module, "**/lora_*")


def test_some_layers_are_adapted(model):
    path = next(path for path in select(model, Linear).paths if path.endswith("w"))
    adapted = select(model, path).replace(lambda linear: LoRA(linear, 1))
    assert len(select(adapted, LoRA)) == 4 and len(select(adapted, "**/lora_*")) == 2
    adapted(X)


def test_order_of_creation_is_still_checked():
    class Fickle(elegy.Module):
        narrow = True

        def call(self, x):
            return Linear(2)(x) if type(self).narrow else LoRA(Linear(2), 1)(x)

    module = adapt(Fickle().init(X))
    module(X)
    Fickle.narrow = False
    with pytest.raises(elegy.errors.ModuleOrderError, match="LoRA"):
        module(X)
