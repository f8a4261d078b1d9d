"""What one batch does: train, test, predict; and how that runs, compiled, as a pure function of arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import typing as tp
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from elegy.draws import rng_context
from elegy.errors import ParameterError, StructureError
from elegy.frames import name_of, paths_below
from elegy.hooks import get_losses, get_metrics, hooks_context
from elegy.initialise import run_init_pass
from elegy.layout import walk
from elegy.model.data import Data, run_module
from elegy.model.objectives import Losses, Metrics, Scalars, Weighted, accepted, add_values
from elegy.model.optimizer import trainable_parameters
from elegy.module import Module
from elegy.pytree import layout_of
from elegy.random import RNG, fold_in_path
from elegy.selections import parts_of_leaves
from elegy.state import training_context
from elegy.transaction import lock
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

    - `sums`: for each of `names` the sum over samples, and then for each the number of samples, or the sum of their
      weights.
    - `so_far`: for each of `names_so_far` a metric that adds up by itself.
    """

    # Float[Array, "2*names"] and Float[Array, "names_so_far"], not said as types: JAX also puts shapes in their places.
    sums: tp.Any
    so_far: tp.Any
    names: tuple[str, ...]
    names_so_far: tuple[str, ...]

    @classmethod
    def of_batch(cls, size: int, means: Scalars, so_far: Scalars) -> Totals:
        dtype = jnp.result_type(float)
        values = [value.mean if isinstance(value, Weighted) else value for value in means.values()]
        counts = [
            value.weight if isinstance(value, Weighted) else jnp.full([], size, dtype) for value in means.values()
        ]
        sums = [value * count for value, count in zip(values, counts, strict=True)]
        stacked = lambda parts: jnp.stack(parts) if parts else jnp.zeros([0], dtype)  # noqa: E731
        return cls(stacked(sums + counts), stacked([*so_far.values()]), (*means,), (*so_far,))

    def after(self, before: Totals | None) -> Totals:
        """The totals of this batch and of those before."""
        if before is None:
            return self
        names, names_before = ((totals.names, totals.names_so_far) for totals in (self, before))
        if names != names_before:
            listed, listed_before = (", ".join(of_batch + so_far) for of_batch, so_far in (names, names_before))
            raise ValueError(
                f"the batches of one epoch log different values: {listed_before}; and then {listed}.\n"
                "  Losses, metrics, add_loss and add_metric must give the same names for every batch, of any size."
            )
        return dataclasses.replace(self, sums=before.sums + self.sums)

    def logs(self) -> dict[str, float]:
        """The means, as floats: this waits for the device. `"loss"` comes first, and what it is the sum of last."""
        sums, so_far = (vector.tolist() for vector in jax.device_get((self.sums, self.so_far)))
        pairs = zip(sums[: len(self.names)], sums[len(self.names) :], strict=True)
        values = {name: value / (count or 1) for name, (value, count) in zip(self.names, pairs, strict=True)}
        values.update(zip(self.names_so_far, so_far, strict=True))
        return {name: values[name] for name in sorted(values, key=lambda name: (name != "loss", "loss" in name))}


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
    _require_fixed(parts)
    parts.optimizer.update(parts.module, gradients, value=loss)
    return _add(parts, totals, batch, y_pred, values)


def _require_fixed(parts: Parts) -> None:
    """Refuses losses that have trainable parameters: the optimiser would leave them as they are."""
    named = zip(parts.losses.names, parts.losses.functions, strict=True)
    losses = [(name, function) for name, function in named if isinstance(function, Module)]
    _, found = trainable_parameters([parts.module, [loss for _, loss in losses]])
    paths = ["/".join([losses[int(number)][0], *below]) for number, *below in parts_of_leaves(found)]
    if paths:
        raise ParameterError(
            f"losses have trainable parameters, and training changes those of the module only: {', '.join(paths)}.\n"
            "  Put what is to be learnt into the module, which can declare the loss by elegy.add_loss; freeze what is "
            "not to be learnt, loss.trainable = False."
        )


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
        losses = parts.losses(**_inputs(parts, parts.losses, batch, y_pred))
        for name, value in (get_losses() or {}).items():
            add_values(losses, name, value)
        values = {"loss": sum(losses.values(), jnp.zeros([]))} if losses else {}
        for name, value in (losses | (get_metrics() or {})).items():
            add_values(values, name, value)
    return y_pred, values


def _inputs(parts: Parts, objectives: Losses | Metrics, batch: Data, y_pred: tp.Any) -> dict[str, tp.Any]:
    """What losses or metrics may ask for. Parameters are many, and in an error message too: only if one does."""
    inputs = {"x": batch.x, "y_true": batch.y, "y_pred": y_pred, "sample_weight": batch.sample_weight}
    if any("parameters" in accepted(function) for function in objectives.functions):
        inputs["parameters"] = parts.module.get_parameters(trainable=True)
    return inputs


def _add(parts: Parts, totals: Totals | None, batch: Data, y_pred: tp.Any, values: Scalars) -> Totals:
    of_batch, so_far = parts.metrics(**_inputs(parts, parts.metrics, batch, y_pred))
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
    """The structure of a state. One object stands for all equal ones: a compiled step compares it by identity."""

    def __init__(self, treedef: tp.Any):
        self.treedef = treedef


Leaves = list[Array | np.ndarray]


class Listener:
    """Who is told that a step is being traced, to be compiled then."""

    def __init__(self) -> None:
        self._tell: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self._tell is not None:
            self._tell()

    @contextlib.contextmanager
    def telling(self, tell: Callable[[], None] | None) -> Iterator[None]:
        before, self._tell = self._tell, tell
        try:
            yield
        finally:
            self._tell = before


class Step:
    """Runs one of the functions above as a pure function: `(leaves of a state, totals) -> (leaves, totals)`.

    A module costs a Python call whenever it is flattened. So a compiled step takes the leaves of its state and gives
    the new ones, and a state is flattened and put together once for a whole epoch.

    **Arguments:**

    - `function`: what to run. It changes the modules of its state in place, which here are copies.
    - `training`: the mode in which it runs.
    - `seed`: random keys derive from it, from the name of the function and from `State.step`.
    - `initial`: the stream from which parameters are initialised.

    **Attributes:** `eager` runs the step as it is, and `compiled` compiles it. Neither refers to this object, so there
    is no circle of references. `tracing` is called when the step is traced.
    """

    def __init__(self, function: Callable[..., tp.Any], training: bool, seed: int, initial: RNG):
        self._function = function
        self._training = training
        self._initial = initial
        self._structures: dict[tp.Any, Structure] = {}
        # The stream of initial keys is one for all threads: they take their turns.
        self._first = threading.RLock()
        # The shapes and dtypes of the outputs, by those of a batch and by the structure of the state.
        self._outputs: dict[tp.Any, tp.Any] = {}
        self.tracing = Listener()
        self.eager = _as_pure(function, training, seed, self.tracing)
        self.compiled = jit(self.eager, static_argnums=0)

    def flatten(self, state: State, examples: Sequence[Data]) -> tuple[Structure, Leaves, tp.Any]:
        """Takes a state apart. What its modules lack is created before, by an init pass for each new shape of a batch.

        **Arguments:**

        - `examples`: a batch of each shape.

        **Returns:** also the shapes and dtypes of what the step gives for the last example.
        """
        with self._first:
            return self._flatten(state, examples)

    def _flatten(self, state: State, examples: Sequence[Data]) -> tuple[Structure, Leaves, tp.Any]:
        leaves, treedef = _flatten(state)
        outputs: tp.Any = None
        for batch in examples:
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)), jax.tree.structure(batch)
            outputs = self._outputs.get((shapes, treedef))
            if outputs is None:
                self.tracing()
                outputs = self._initialise(state, batch)
                leaves, treedef = _flatten(state)
                self._outputs[shapes, treedef] = outputs
        return self._structures.setdefault(treedef, Structure(treedef)), leaves, outputs

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


def _flatten(state: State) -> tuple[Leaves, tp.Any]:
    with lock:  # else another thread that trains may write in between
        return jax.tree.flatten(state)


def _as_pure(
    function: Callable[..., tp.Any], training: bool, seed: int, tracing: Listener
) -> Callable[..., tuple[Leaves, tp.Any]]:
    """A step as a function of arrays."""

    def run(structure: Structure, leaves: Leaves, totals: tp.Any, batch: Data) -> tuple[Leaves, tp.Any]:
        tracing()
        state = structure.treedef.unflatten(leaves)
        stream = fold_in_path(jax.random.key(seed), function.__name__)
        with rng_context(jax.random.fold_in(stream, state.step)), training_context(training):
            totals = function(state.parts, totals, batch)
        new, treedef = jax.tree.flatten(state._replace(step=jnp.add(state.step, 1)))
        if treedef != structure.treedef:
            raise StructureError(
                f"{_changed(structure.treedef.unflatten(leaves).parts, state.parts)}: the structure of the module "
                "changed while the model ran it.\n"
                "  Change it outside, or in a callback: what is not an array is fixed while a step runs."
            )
        return new, totals

    run.__qualname__ = f"Model: {function.__name__}"  # in warnings of recompilation
    return run


def _changed(before: Parts, after: Parts) -> str:
    """The path of the first module whose structure is not what it was."""
    pairs = zip(walk([before]), walk([after]), strict=False)
    changed = next((new for old, new in pairs if layout_of(old) != layout_of(new)), after)
    part, *below = paths_below(after)[id(changed)] or ("module",)
    return "/".join([name_of(getattr(after, part)), *below])
