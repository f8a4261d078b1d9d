"""Penalties are compared with formulas written out in NumPy, and with Keras."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import elegy
from elegy.errors import SelectionError
from elegy.regularizers import L1, L1L2, L2, GlobalL1, GlobalL1L2, GlobalL2, Orthogonal

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype(np.float32)
X = RNG.normal(size=(6, 3)).astype(np.float32)


def mlp() -> elegy.Module:
    """Two linear layers with normalisation, whose running statistics are state, in between."""
    module = elegy.nn.Sequential(
        lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(), jax.nn.relu, elegy.nn.Linear(1)]
    )
    return module.init(X, rng=0)


# ---------------------------------------------------------------------------------------------------------------------
# Of one array
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (L1(0.3), keras.regularizers.L1(0.3)),
        (L2(0.3), keras.regularizers.L2(0.3)),
        (L1L2(0.3, 0.2), keras.regularizers.L1L2(0.3, 0.2)),
        (L1L2(l2=0.2), keras.regularizers.L1L2(l2=0.2)),
        (L1(), keras.regularizers.L1()),
        (L2(), keras.regularizers.L2()),
        (L1L2(), keras.regularizers.L1L2()),
        (Orthogonal(0.3), keras.regularizers.OrthogonalRegularizer(0.3)),
        (Orthogonal(0.3, "columns"), keras.regularizers.OrthogonalRegularizer(0.3, "columns")),
        (Orthogonal(), keras.regularizers.OrthogonalRegularizer()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_and_gradients_of_keras(ours: Any, theirs: Any) -> None:
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(W))
    expected, expected_gradient = jax.value_and_grad(theirs)(jnp.asarray(W))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_half_precision_is_summed_in_single() -> None:
    w = jnp.full([4096], 0.1, jnp.bfloat16)
    for regularizer, power in ((L1(2.0), 1), (L2(2.0), 2)):
        value, gradient = jax.value_and_grad(regularizer)(w)
        assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(value, 2 * 4096 * float(w[0]) ** power, rtol=1e-5)


def test_complex_numbers_have_a_magnitude() -> None:
    w = jnp.array([3 + 4j, 0])
    assert L1(1)(w) == 5 and L2(1)(w) == 25
    assert jnp.isfinite(jax.grad(L1L2(1, 1))(w)).all()


def test_numpy_integers_and_scalars() -> None:
    assert L2(0.5)(np.array([1, 2])) == 2.5 and L1(0.5)(3.0) == 1.5


def test_orthogonal_rows_and_degenerate_ones() -> None:
    assert Orthogonal(1.0)(jnp.eye(3)) == 0
    assert Orthogonal(1.0)(jnp.ones([1, 3])) == 0
    value, gradient = jax.value_and_grad(Orthogonal(1.0))(jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(value, 1 / 3)
    assert jnp.isfinite(gradient).all()


def test_a_penalty_of_a_layer() -> None:
    class Regularised(elegy.Module):
        def call(self, x: Any) -> Any:
            linear = elegy.nn.Linear(2)
            y = linear(x)
            elegy.add_loss("kernel", L2(0.1)(linear.w))
            return y

    module = Regularised().init(X, rng=0)
    w = np.asarray(module.linear.w)
    with elegy.hooks_context():
        module(X)
        np.testing.assert_allclose(elegy.get_losses()["kernel_loss"], 0.1 * (w**2).sum(), rtol=1e-6)

    model = elegy.Model(Regularised(), loss=elegy.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))
    logs = model.evaluate(X, X[:, :2])
    w = np.asarray(model.module.linear.w)
    np.testing.assert_allclose(logs["kernel_loss"], 0.1 * (w**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], logs["mean_squared_error_loss"] + logs["kernel_loss"], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Of all parameters
# ---------------------------------------------------------------------------------------------------------------------


def sums(leaves: Any) -> tuple[float, float]:
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
    return sum(np.abs(leaf).sum() for leaf in leaves), sum((leaf**2).sum() for leaf in leaves)


def test_all_trainable_parameters() -> None:
    module = mlp()
    absolute, squared = sums(jax.tree.leaves(module.get_parameters(trainable=True)))
    for parameters in (module, module.get_parameters(trainable=True), [module], [module, module]):
        np.testing.assert_allclose(GlobalL1(0.3)(parameters), 0.3 * absolute, rtol=1e-6)
        np.testing.assert_allclose(GlobalL2(0.3)(parameters), 0.3 * squared, rtol=1e-6)
        both = GlobalL1L2(0.3, 0.2, weight=2)(parameters)
        np.testing.assert_allclose(both, 2 * (0.3 * absolute + 0.2 * squared), rtol=1e-6)
    np.testing.assert_allclose(GlobalL2()(module), 0.01 * squared, rtol=1e-6)
    np.testing.assert_allclose(GlobalL1()(module), 0.01 * absolute, rtol=1e-6)
    assert GlobalL1L2()(module) == 0


def test_frozen_parameters_are_left_out() -> None:
    module = mlp()
    module.layers[0].trainable = False
    _, squared = sums(jax.tree.leaves(module.get_parameters(trainable=True)))
    np.testing.assert_allclose(GlobalL2(1.0)(module), squared, rtol=1e-6)
    module.trainable = False
    assert GlobalL2(1.0)(module) == 0


def test_shared_parameters_count_once() -> None:
    class Twice(elegy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = elegy.nn.Linear(3)
            self.second = self.first

        def call(self, x: Any) -> Any:
            return self.second(self.first(x))

    module = Twice().init(X, rng=0)
    _, squared = sums([module.first.w, module.first.b])
    np.testing.assert_allclose(GlobalL2(1.0)(module), squared, rtol=1e-6)


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("**/w", ["layers/0/w", "layers/3/w"]),
        (["layers/0", "**/b"], ["layers/0/w", "layers/0/b", "layers/3/b"]),
        (lambda path, value: value.ndim == 2, ["layers/0/w", "layers/3/w"]),
    ],
)
def test_where(where: Any, paths: list[str]) -> None:
    module = mlp()
    module.layers[0].set_parameters({"b": jnp.array([1.0, 2.0, 3.0, 4.0])})
    layers = module.layers
    leaves = [getattr(layers[int(path.split("/")[1])], path[-1]) for path in paths]
    absolute, squared = sums(leaves)
    for parameters in (module, module.get_parameters(trainable=True)):
        np.testing.assert_allclose(GlobalL2(1.0, where=where)(parameters), squared, rtol=1e-6)
        np.testing.assert_allclose(GlobalL1(1.0, where=where)(parameters), absolute, rtol=1e-6)


def test_where_nothing_fits() -> None:
    with pytest.raises(SelectionError, match="nothing at 'kernel'"):
        GlobalL2(where="kernel")(mlp())


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_in_a_model(run_eagerly: bool) -> None:
    """One step of gradient descent is that of the formula, with weights of the samples too, which do not touch it."""
    module = elegy.nn.Linear(1).init(X, rng=0)
    w, b = (jnp.asarray(leaf) for leaf in (module.w, module.b))
    y, weights = X[:, :1], np.arange(6, dtype=np.float32)

    def objective(w: Any, b: Any) -> Any:
        error = jnp.mean(weights[:, None] * (X @ w + b[None] - y) ** 2)
        return error + 0.3 * jnp.sum(w**2) + 0.1 * (jnp.sum(jnp.abs(w)) + jnp.sum(jnp.abs(b)))

    expected = jax.grad(objective, argnums=(0, 1))(w, b)
    model = elegy.Model(
        module,
        loss=[elegy.losses.MeanSquaredError(), GlobalL2(0.3, where="w"), GlobalL1(0.1), GlobalL1L2(name=None)],
        metrics=lambda parameters: optax.tree.norm(parameters),
        optimizer=optax.sgd(0.1),
        run_eagerly=run_eagerly,
    )
    logs = model.fit(X, y, sample_weight=weights, epochs=1, verbose=0).history
    np.testing.assert_allclose(logs["l2_regularization_loss"], [0.3 * jnp.sum(w**2)], rtol=1e-5)
    np.testing.assert_allclose(logs["l1_regularization_loss"], [0.1 * jnp.sum(jnp.abs(w))], rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], [objective(w, b)], rtol=1e-5)
    np.testing.assert_allclose(module.w, w - 0.1 * expected[0], rtol=1e-5)
    np.testing.assert_allclose(module.b, b - 0.1 * expected[1], rtol=1e-5)
    assert set(model.evaluate(X, y)) >= {"l1_regularization_loss", "l2_regularization_loss"}


def test_names_in_the_logs() -> None:
    model = elegy.Model(elegy.nn.Linear(1), loss=[GlobalL1L2(0.1), GlobalL2(name="decay")], optimizer=optax.sgd(0.1))
    assert set(model.evaluate(X)) == {"loss", "global_l1_l2_loss", "decay_loss"}


def test_by_hand_in_a_loss_function() -> None:
    module = mlp()
    regularizer = GlobalL2(0.5, where="**/w")
    _, gradients = elegy.value_and_grad(lambda: regularizer(module), modules=module)()
    np.testing.assert_allclose(gradients["layers"][0]["w"], module.layers[0].w, rtol=1e-6)
    np.testing.assert_array_equal(gradients["layers"][0]["b"], 0)
    np.testing.assert_array_equal(gradients["layers"][1]["scale"], 0)


def test_a_sum_of_several_dtypes_and_integers() -> None:
    tree = {"a": jnp.ones([2], jnp.bfloat16), "b": jnp.ones([3]), "counts": jnp.ones([5], int)}
    value = GlobalL2(1.0)(tree)
    assert value == 5 and value.dtype == jnp.float32


# ---------------------------------------------------------------------------------------------------------------------
# Of activities
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("default_promotion")
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4), (5,)])
def test_activity_regularization(shape: tuple[int, ...]) -> None:
    x = RNG.normal(size=shape).astype(np.float32)
    layer = keras.layers.ActivityRegularization(l1=0.3, l2=0.2)
    layer(x)
    with elegy.hooks_context():
        y = elegy.nn.ActivityRegularization(l1=0.3, l2=0.2)(x)
        np.testing.assert_allclose(elegy.get_losses()["activity_regularization_loss"], layer.losses[0], rtol=1e-6)
    np.testing.assert_array_equal(y, x)


def test_activities_of_a_scalar_and_of_no_samples() -> None:
    for x, expected in ((np.float32(-2), 1.0), (np.zeros([0, 3], np.float32), 0.0)):
        with elegy.hooks_context():
            elegy.nn.ActivityRegularization(l1=0.5)(x)
            assert elegy.get_losses() == {"activity_regularization_loss": expected}


def test_activities_of_two_layers_in_a_model() -> None:
    module = elegy.nn.Sequential(
        lambda: [elegy.nn.ActivityRegularization(l1=1.0), elegy.nn.ActivityRegularization(l2=1.0)]
    )
    logs = elegy.Model(module, optimizer=optax.sgd(0.1)).evaluate(X)
    expected = (np.abs(X).sum() + (X**2).sum()) / 6
    np.testing.assert_allclose(logs["activity_regularization_loss"], expected, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: L1(-1.0), r"elegy.regularizers.L1: l must be a number of at least 0, got -1.0"),
        (lambda: L2("0.1"), "elegy.regularizers.L2: l must be"),
        (lambda: L1L2(l2=float("nan")), "elegy.regularizers.L1L2: l2 must be"),
        (lambda: L1L2(l1=float("inf")), "elegy.regularizers.L1L2: l1 must be"),
        (lambda: GlobalL1(-1), "elegy.regularizers.GlobalL1: l must be"),
        (lambda: GlobalL2(-1), "elegy.regularizers.GlobalL2: l must be"),
        (lambda: GlobalL1L2(l2=-1), "elegy.regularizers.GlobalL1L2: l2 must be"),
        (lambda: Orthogonal(-1), "elegy.regularizers.Orthogonal: factor must be"),
        (lambda: Orthogonal(mode="row"), "mode must be 'rows' or 'columns', got 'row'"),
        (lambda: Orthogonal()(jnp.ones([3])), r"expected a matrix, got shape \(3,\)"),
        (lambda: elegy.nn.ActivityRegularization(-1), "elegy.nn.ActivityRegularization: l1 must be"),
        (lambda: elegy.nn.ActivityRegularization(l2=-1), "elegy.nn.ActivityRegularization: l2 must be"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
