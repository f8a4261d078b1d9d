"""What one batch does: train, test, predict; and how that runs, compiled, as a pure function of arrays."""

from __future__ import annotations

import dataclasses
import functools
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from elegy.hooks import get_losses, get_metrics, hooks_context, rng_context
from elegy.initialise import run_init_pass
from elegy.model.data import Data, run_module
from elegy.model.objectives import Scalars, add_values
from elegy.module import Module
from elegy.pytree import walk
from elegy.random import RNG, fold_in_path
from elegy.state import training_context
from elegy.threads import looking
from elegy.transforms import jit, value_and_grad

# ---------------------------------------------------------------------------------------------------------------------
# Steps: they change modules in place, as code without transforms does
# ---------------------------------------------------------------------------------------------------------------------


class Parts(Module):
    """The modules of a model as one module, so that what two of them share, as a regulariser may, stays shared."""

    def __init__(self, module: Module, losses: tp.Any = None, metrics: tp.Any = None, optimizer: tp.Any = None):
        self.module = module
        self.losses = losses
        self.metrics = metrics
        self.optimizer = optimizer


class State(tp.NamedTuple):
    """All that a step reads and changes; a part that it has no use for is None.

    - `step`: how many batches went before.
    """

    parts: Parts
    step: Int[Array | np.ndarray, ""]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["sums", "so_far"], meta_fields=["names", "names_so_far"]
)
@dataclasses.dataclass(frozen=True)
class Totals:
    """What an epoch has added up, in two vectors: a handful of scalars makes a small step on a CPU half as long again.

    - `sums`: the number of samples, and for each of `names` the sum over samples.
    - `so_far`: for each of `names_so_far` a metric that adds up by itself.
    """

    # Float[Array, "1+names"] and Float[Array, "names_so_far"], not said as types: JAX also puts shapes in their places.
    sums: tp.Any
    so_far: tp.Any
    names: tuple[str, ...]
    names_so_far: tuple[str, ...]

    @classmethod
    def of_batch(cls, size: int, means: Scalars, so_far: Scalars) -> Totals:
        dtype = jnp.result_type(float)
        sums = size * jnp.stack([jnp.ones([], dtype), *means.values()])
        return cls(sums, jnp.stack([*so_far.values()]) if so_far else jnp.zeros([0], dtype), (*means,), (*so_far,))

    def after(self, before: Totals | None) -> Totals:
        """The totals of this batch and of those before."""
        return self if before is None else dataclasses.replace(self, sums=before.sums + self.sums)

    def logs(self) -> dict[str, float]:
        """The means, as floats: this waits for the device. `"loss"` comes first, and what it is the sum of last."""
        (samples, *sums), so_far = (vector.tolist() for vector in jax.device_get((self.sums, self.so_far)))
        values = {name: value / samples for name, value in zip(self.names, sums, strict=True)}
        values.update(zip(self.names_so_far, so_far, strict=True))
        return {name: values[name] for name in sorted(values, key=lambda name: (name != "loss", "_loss" in name))}


def train(parts: Parts, totals: Totals | None, batch: Data) -> Totals:
    """One step of the optimiser."""

    def loss_fn() -> tuple[Float[Array, ""], tp.Any, Scalars]:
        y_pred, values = _evaluate(parts, batch, training=True)
        if "loss" not in values:
            raise ValueError(
                "there is nothing to minimise: Model(loss=None), and no module called elegy.add_loss.\n"
                "  Give the model a loss, such as loss=elegy.losses.MeanSquaredError()."
            )
        return values["loss"], y_pred, values

    modules = {"module": parts.module, "losses": parts.losses}
    differentiated = value_and_grad(
        loss_fn, modules=modules, parameters_fn=lambda modules: parts.optimizer.parameters(modules["module"])
    )
    (loss, y_pred, values), gradients = differentiated()
    parts.optimizer.update(parts.module, gradients, value=loss)
    return _add(parts, totals, batch, y_pred, values)


def test(parts: Parts, totals: Totals | None, batch: Data) -> Totals:
    """Losses and metrics of a batch."""
    y_pred, values = _evaluate(parts, batch, training=False)
    return _add(parts, totals, batch, y_pred, values)


def predict(parts: Parts, totals: None, batch: Data) -> tp.Any:
    """The outputs of the module for a batch."""
    return run_module(parts.module, batch.x, training=False)


def _evaluate(parts: Parts, batch: Data, training: bool) -> tuple[tp.Any, Scalars]:
    """The outputs for a batch, and what is to be logged of it so far: losses, and what the modules declared."""
    with hooks_context():
        y_pred = run_module(parts.module, batch.x, training)
        losses = parts.losses(**_inputs(batch, y_pred))
        for name, value in (get_losses() or {}).items():
            add_values(losses, name, value)
        values = {"loss": sum(losses.values(), jnp.zeros([]))} if losses else {}
        for name, value in (losses | (get_metrics() or {})).items():
            add_values(values, name, value)
    return y_pred, values


def _inputs(batch: Data, y_pred: tp.Any) -> dict[str, tp.Any]:
    return {"x": batch.x, "y_true": batch.y, "y_pred": y_pred, "sample_weight": batch.sample_weight}


def _add(parts: Parts, totals: Totals | None, batch: Data, y_pred: tp.Any, values: Scalars) -> Totals:
    of_batch, so_far = parts.metrics(**_inputs(batch, y_pred))
    for name, value in of_batch.items():
        add_values(values, name, value)
    running: Scalars = {}
    for name, value in so_far.items():
        add_values(running, name, value, taken=values)
    return Totals.of_batch(batch.size, values, running).after(totals)


# ---------------------------------------------------------------------------------------------------------------------
# Running a step
# ---------------------------------------------------------------------------------------------------------------------


class Structure:
    """The structure of a state. One object stands for all equal ones, so that a compiled step compares it by identity.

    - `outputs`: the shapes and dtypes of what the step gives.
    """

    def __init__(self, treedef: tp.Any, outputs: tp.Any):
        self.treedef = treedef
        self.outputs = outputs

    @functools.cached_property
    def zeros(self) -> tp.Any:
        """Totals before the first batch."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.outputs)


Leaves = list[Array | np.ndarray]


class Step:
    """Runs one of the functions above as a pure function: `(leaves of a state, totals) -> (leaves, totals)`.

    A module costs a Python call whenever it is flattened. So a compiled step takes the leaves of its state and gives
    the new ones, and a state is flattened and put together once for a whole epoch.

    **Arguments:**

    - `function`: what to run. It changes the modules of its state in place, which here are copies.
    - `training`: the mode in which it runs.
    - `seed`: random keys derive from it, from the name of the function and from `State.step`.
    - `initial`: the stream from which parameters are initialised.
    """

    def __init__(self, function: Callable[..., tp.Any], training: bool, seed: int, initial: RNG):
        self._function = function
        self._training = training
        self._seed = seed
        self._initial = initial
        self._structures: dict[tp.Any, Structure] = {}
        # The shapes and dtypes of the outputs, by those of a batch and by the structure of the state.
        self._outputs: dict[tp.Any, tp.Any] = {}
        self.compiled = jit(self.eager, static_argnums=0)

    def eager(self, structure: Structure, leaves: Leaves, totals: tp.Any, batch: Data) -> tuple[Leaves, tp.Any]:
        """Runs the step without compiling it."""
        state = structure.treedef.unflatten(leaves)
        stream = fold_in_path(jax.random.key(self._seed), self._function.__name__)
        with rng_context(jax.random.fold_in(stream, state.step)), training_context(self._training):
            totals = self._function(state.parts, totals, batch)
        leaves, treedef = jax.tree.flatten(state._replace(step=jnp.add(state.step, 1)))
        if treedef != structure.treedef:
            raise AssertionError(f"a step changed the structure of its state:\n  {structure.treedef}\n  {treedef}")
        return leaves, totals

    def flatten(self, state: State, examples: Sequence[Data]) -> tuple[Structure, Leaves]:
        """Takes a state apart. What its modules lack is created before, by an init pass for each new shape of a batch.

        **Arguments:**

        - `examples`: a batch of each shape.
        """
        outputs: tp.Any = None
        for batch in examples:
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)), jax.tree.structure(batch)
            outputs = self._outputs.get((shapes, jax.tree.structure(state)))
            if outputs is None:
                outputs = self._initialise(state, batch)
                self._outputs[shapes, jax.tree.structure(state)] = outputs
        with looking(lambda: walk([state.parts])):  # else another thread that trains may write in between
            leaves, treedef = jax.tree.flatten(state)
        return self._structures.setdefault(treedef, Structure(treedef, outputs)), leaves

    def _initialise(self, state: State, batch: Data) -> tp.Any:
        parts = state.parts
        if parts.optimizer is not None and parts.module.initialized:
            parts.optimizer.adapt(parts.module)
        outputs: list[tp.Any] = []

        def run(state: State, batch: Data) -> None:
            totals = self._function(state.parts, None, batch)
            shape = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))  # noqa: E731
            outputs.append(jax.tree.map(shape, totals))

        with rng_context(self._initial), training_context(self._training):
            run_init_pass(run, (state, batch), {}, [parts])
        return outputs[-1]
