"""`Model.functional`: the steps as pure functions; and `Model.reset`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import StructureError
from tests.helpers import Affine, Stateful, assert_close, assert_same


def batches(number=4, size=6):
    """Inputs and targets of some batches, stacked."""
    x = np.random.default_rng(0).uniform(size=(number, size, 3)).astype(np.float32)
    return x, x.sum(axis=2, keepdims=True)


def flat(stacked):
    return stacked.reshape(-1, stacked.shape[-1])


def make_model(module=None, **kwargs):
    kwargs = {"loss": elegy.losses.MeanSquaredError(), "optimizer": optax.sgd(0.1, momentum=0.9), "seed": 3} | kwargs
    return elegy.Model(Stateful() if module is None else module, **kwargs)


class Pair(elegy.Model):
    """Two modules, one of which is an attribute and shares a layer with the other, and two optimisers."""

    def __init__(self):
        shared = Affine(4)
        super().__init__(elegy.nn.Sequential([shared, Affine(1)]), optimizer=optax.sgd(0.1))
        self.critic = elegy.nn.Sequential([shared, Affine(1)])
        self.of_critic = elegy.Optimizer(optax.sgd(0.1, momentum=0.9))

    def train_step(self, x, y, sample_weight):
        loss, gradients = elegy.value_and_grad(lambda: jnp.mean((self.module(x) - y) ** 2), modules=self.module)()
        self.optimizer.update(self.module, gradients)
        other, gradients = elegy.value_and_grad(lambda: jnp.mean((self.critic(x) + y) ** 2), modules=self.critic)()
        self.of_critic.update(self.critic, gradients)
        return {"loss": loss, "critic_loss": other}


def everything(model):
    return [module.get_parameters() for module in model._modules("train")]


@pytest.mark.parametrize("make", [make_model, Pair], ids=["Model", "a subclass"])
@pytest.mark.parametrize("transform", ["none", "jit", "scan"])
def test_steps_compute_what_fit_computes(make, transform):
    x, y = batches()
    model, peer = make(), make()
    history = peer.fit(flat(x), flat(y), batch_size=6, shuffle=False, verbose=0)

    functional = model.functional()
    state = functional.init(x[0], y[0])
    if transform == "scan":
        run = jax.jit(lambda state: jax.lax.scan(lambda state, b: functional.train_step(state, *b), state, (x, y)))
        state, logs = run(state)
    else:
        step = jax.jit(functional.train_step, donate_argnums=0) if transform == "jit" else functional.train_step
        found = []
        for batch in zip(x, y, strict=True):
            state, logs = step(state, *batch)
            found.append(logs)
        logs = jax.tree.map(lambda *values: jnp.stack(values), *found)
    assert np.mean(logs["loss"]) == pytest.approx(history.history["loss"][0], rel=1e-5)
    assert set(logs) == set(history.history)

    assert model.steps == 0
    functional.write(state)
    assert model.steps == peer.steps == 4
    assert_close(everything(model), everything(peer), rtol=1e-4, atol=1e-5)
    # From here both go on alike.
    after = [m.fit(flat(x), flat(y), batch_size=6, shuffle=False, verbose=0).history["loss"][0] for m in (model, peer)]
    assert after[0] == pytest.approx(after[1], rel=1e-4)


def test_nothing_but_write_changes_the_model():
    x, y = batches()
    model = make_model(metrics=elegy.metrics.MeanSquaredError())
    functional = model.functional()
    state = functional.init(x[0], y[0])
    before, generator = everything(model), elegy.get_rng().data
    kept = jax.tree.map(jnp.copy, state)
    functional.train_step(state, x[0], y[0])
    functional.eval_step(state, x[0], y[0])
    functional.predict(state, x[0])
    assert_same(state, kept)
    jax.jit(functional.train_step, donate_argnums=0)(state, x[0], y[0])  # a state is a copy
    assert_same(everything(model), before)
    assert (elegy.get_rng().data == generator).all()
    assert model.steps == 0

    functional.write(kept)
    jax.block_until_ready(jax.jit(lambda state: jax.tree.map(jnp.negative, state), donate_argnums=0)(kept))
    assert_same(everything(model), before)


def test_what_is_looked_at_is_that_of_the_model():
    x, y = batches()
    weights = np.linspace(0, 1, 6, dtype=np.float32)
    model = make_model(metrics=[elegy.metrics.MeanSquaredError(), lambda y_true, y_pred: jnp.abs(y_true - y_pred)])
    model.fit(flat(x), flat(y), batch_size=6, verbose=0)
    functional = model.functional()
    state = functional.read()
    logs = jax.jit(functional.eval_step)(state, x[0], y[0], weights)
    expected = model.evaluate(x[0], y[0], 6, weights)
    assert set(logs) == set(expected)
    for name, value in expected.items():
        assert float(logs[name]) == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(jax.jit(functional.predict)(state, x[0]), model.predict(x[0]), rtol=1e-5)
    assert state.step == model.steps == 4
    assert_same(state.module, model.module.get_parameters())


def test_metrics_add_up_until_they_are_reset():
    x, y = batches()
    model = make_model(Affine(1), metrics=elegy.metrics.MeanSquaredError(), optimizer=optax.sgd(0.0))
    functional = model.functional()
    state = functional.init(x[0], y[0])
    losses, values = [], []
    for batch in zip(x, y, strict=True):
        state, logs = functional.train_step(state, *batch)
        losses.append(float(logs["loss"]))
        values.append(float(logs["mean_squared_error"]))
    assert values == pytest.approx([np.mean(losses[: n + 1]) for n in range(4)], rel=1e-5)
    assert functional.eval_step(state, x[3], y[3])["mean_squared_error"] == pytest.approx(losses[3], rel=1e-5)
    _, logs = functional.train_step(functional.reset_metrics(state), x[1], y[1])
    assert float(logs["mean_squared_error"]) == pytest.approx(losses[1], rel=1e-5)
    functional.write(state)
    assert model.evaluate(x[0], y[0])["mean_squared_error"] == pytest.approx(losses[0], rel=1e-5)


def test_several_states_at_once():
    x, y = batches()
    functional = make_model(Affine(1)).functional()
    state = functional.init(x[0], y[0])
    other = jax.tree.map(lambda leaf: leaf + 1 if leaf.dtype == jnp.float32 else leaf, state)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, other)
    both, logs = jax.vmap(functional.train_step, in_axes=(0, None, None))(both, x[0], y[0])
    for number, alone in enumerate([state, other]):
        alone, of_it = functional.train_step(alone, x[0], y[0])
        assert_close(jax.tree.map(lambda leaf, number=number: leaf[number], (both, logs)), (alone, of_it))


def test_the_gradient_of_a_step():
    x, y = batches()
    functional = make_model(Affine(1)).functional()
    state = functional.init(x[0], y[0])

    def loss(w):
        changed = dataclasses.replace(state, module={**state.module, "w": w})
        return functional.eval_step(changed, x[0], y[0])["loss"]

    w, b = state.module["w"], state.module["b"]
    residual = x[0] @ np.asarray(w) + np.asarray(b) - y[0]
    np.testing.assert_allclose(jax.grad(loss)(w), 2 * x[0].T @ residual / 6, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_a_state_of_another_structure_is_refused():
    x, y = batches()
    model = make_model(elegy.nn.Sequential([Affine(4), Affine(1)]), optimizer=optax.sgd(0.1))
    functional = model.functional()
    with pytest.raises(RuntimeError, match="functional.init"):
        functional.read()
    state = functional.init(x[0], y[0])
    model.module.layers[0].trainable = False
    with pytest.raises(StructureError, match=r"functional.read\(\)"):
        functional.train_step(state, x[0], y[0])
    with pytest.raises(StructureError, match=r"functional.read\(\)"):
        functional.write(state)
    with pytest.raises(TypeError, match="the first argument is the state"):
        functional.predict(x[0], state)
    frozen = functional.read()
    after, _ = functional.train_step(frozen, x[0], y[0])
    first, last = ("layers", 0), ("layers", 1)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), frozen.module, after.module)
    assert same[first[0]][first[1]] == {"b": True, "w": True}
    assert same[last[0]][last[1]] == {"b": False, "w": False}
    model.module.layers[0].trainable = True
    functional.train_step(state, x[0], y[0])  # the structure of before


# ---------------------------------------------------------------------------------------------------------------------
# reset
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eagerly", [False, True])
def test_after_a_reset_everything_happens_again(eagerly):
    x, y = map(flat, batches())
    model = make_model(metrics=elegy.metrics.MeanSquaredError(), run_eagerly=eagerly)
    given = {"batch_size": 5, "epochs": 2, "validation_split": 0.25, "verbose": 0}
    first = model.fit(x, y, **given)
    trained, traces = everything(model), model.traces
    model.evaluate(x, y)
    model.reset()
    assert model.steps == 0 and model.history is None
    assert not model.module.initialized and not model.optimizer.initialized
    again = model.fit(x, y, **given)
    assert again.history == first.history
    assert_same(everything(model), trained)
    assert model.traces["train"] == traces["train"]


def test_reset_of_a_subclass_and_of_a_rate_that_was_assigned():
    x, y = map(flat, batches())
    model = Pair()
    first = model.fit(x, y, verbose=0)
    model.reset()
    assert not model.critic.initialized and not model.of_critic.initialized
    assert model.fit(x, y, verbose=0).history == first.history

    model = make_model(Affine(1), optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=0.1))
    average = elegy.callbacks.EMA(0.5)
    first = model.fit(x, y, callbacks=[average], verbose=0)
    model.optimizer.learning_rate = 0.01
    model.reset()
    assert model.fit(x, y, callbacks=[elegy.callbacks.EMA(0.5)], verbose=0).history == first.history


def test_reset_of_a_module_that_had_run_draws_from_the_seed():
    x, y = map(flat, batches())
    model = make_model(Affine(1).init(x, rng=7))
    given = model.module.get_parameters()
    model.fit(x, y, verbose=0)
    model.reset()
    history = model.fit(x, y, verbose=0).history
    assert history == make_model(Affine(1)).fit(x, y, verbose=0).history
    assert (given["w"] != model.module.w).any()
