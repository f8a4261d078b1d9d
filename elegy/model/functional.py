"""The steps of a model as pure functions of one state."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp

from elegy.draws import rng_context
from elegy.errors import StructureError
from elegy.layout import nodes_in
from elegy.leaves import is_node
from elegy.model.batches import Arrays
from elegy.model.data import Data, as_data, from_numbers, require_finite
from elegy.model.objectives import require_targets, scalar_of
from elegy.model.steps import made, outputs_of, put_evaluation_parameters, stream_of
from elegy.parameters import collect
from elegy.state import training_context
from elegy.transaction import lock
from elegy.transforms.core import Threaded, View, run

if tp.TYPE_CHECKING:
    from elegy.model.model import Model


class Kind:
    """The structure of the modules to which a state belongs. JAX compares it by identity.

    - `tree`: the numbers of the arrays in the view, in the place of the arrays of a state.
    """

    def __init__(self, view: View, modules: dict[str, tp.Any]):
        self.signature = view.signature
        seen: set[int] = set()
        number = lambda owner, name, position, _: view.index[id(owner), name, position]  # noqa: E731
        numbers_of = lambda node: {} if id(node) in seen else collect(node, None, number, seen)  # noqa: E731
        self.tree = {name: jax.tree.map(numbers_of, part, is_leaf=is_node) for name, part in modules.items()}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["module", "optimizer", "losses", "metrics", "others", "step"],
    meta_fields=["kind"],
)
@dataclasses.dataclass(frozen=True)
class FunctionalState:
    """All that training changes, as arrays.

    **Attributes:**

    - `module`, `optimizer`, `losses`, `metrics`: nested dicts of arrays in the form of `get_parameters()`.
    - `others`: a list of such dicts, of the modules that are attributes of a subclass. A module that several have in
      common is at its first place only.
    - `step`: how many training steps were made. Random keys derive from it.
    """

    module: tp.Any
    optimizer: tp.Any
    losses: tp.Any
    metrics: tp.Any
    others: tp.Any
    step: tp.Any
    kind: tp.Any = dataclasses.field(repr=False)


_PARTS = ("module", "optimizer", "losses", "metrics", "others")


class Functional:
    """What `Model.functional` returns: the steps of a model as pure functions.

    What is not an array is that of the model: a state belongs to the structure that the modules had when it was read.
    """

    def __init__(self, model: Model):
        module, losses, optimizer, *others = model._modules("train")
        self._model = model
        self._modules = {
            "module": module,
            "optimizer": optimizer,
            "losses": losses,
            "metrics": model._metrics,
            "others": others,
        }
        # In the order of the attributes of a state.
        self._threaded = Threaded(nodes_in([*self._modules.values()]))
        self._kinds: dict[int, Kind] = {}

    def init(self, x: tp.Any, y: tp.Any = None, sample_weight: tp.Any = None) -> FunctionalState:
        """The state with which training begins, or goes on. Parameters that the model lacks are created, in the model
        too, as `evaluate` does.

        **Arguments:**

        - `x`, `y`, `sample_weight`: a batch as for `Model.fit`.
        """
        data = require_finite(as_data(x, y, sample_weight))
        require_targets(self._model._losses, self._model._metrics, x, y)
        feed, program = Arrays(data, max(data.size, 1)), self._model._program("train")
        program.prepare(feed.example())
        with contextlib.suppress(Exception):  # that of a `test_step` which cannot run: `eval_step` will tell
            self._model._program("test").prepare(feed.example())
        if (check := self._model._label_check()) is not None:
            check(data)
            self._model._require_labels(program, feed, check)
        self._model._adapt()
        return self.read()

    def read(self) -> FunctionalState:
        """The state of the model as it is now, in copies: a step that donates them leaves the model alone.

        **Raises:** `RuntimeError` before the module and the optimiser have their arrays, which `init` creates.
        """
        view = self._threaded.view()
        if not self._model.module.initialized:
            raise RuntimeError(
                "the module has no parameters yet, so that there is no state to read.\n"
                "  functional.init(x, y), with a batch, creates them."
            )
        with lock:
            leaves = view.read()
        return self._state(view, [jnp.copy(leaf) for leaf in leaves], jnp.asarray(self._model.steps, jnp.int32))

    def write(self, state: FunctionalState) -> None:
        """Gives the model the arrays of a state, in copies, and its number of steps. Metrics stay as they are: each
        epoch of `fit` begins them anew.

        **Raises:** `StructureError` if the state is that of another structure. Then nothing has changed.
        """
        view, leaves = self._leaves(state)
        steps = int(state.step)
        kept = set(jax.tree.leaves(state.kind.tree["metrics"]))
        indices = [index for index in range(len(leaves)) if index not in kept]
        copies = [jnp.copy(leaves[index]) for index in indices]
        with self._model._turn, lock:
            view.write(indices, copies)
            self._model._steps = steps

    def reset_metrics(self, state: FunctionalState) -> FunctionalState:
        """The state with metrics that have counted nothing, for the begin of an epoch."""
        view, _ = self._leaves(state)
        leaves = view.read()
        metrics = jax.tree.map(lambda number: jnp.copy(leaves[number]), state.kind.tree["metrics"])
        return dataclasses.replace(state, metrics=metrics)

    def train_step(
        self, state: FunctionalState, x: tp.Any, y: tp.Any = None, sample_weight: tp.Any = None
    ) -> tuple[FunctionalState, dict[str, tp.Any]]:
        """One step of training.

        **Returns:** the new state, and what is logged of the batch: scalar arrays. An `elegy.metrics.Metric` gives its
        value for all batches since `reset_metrics`.
        """
        data = _batch(x, y, sample_weight)

        def step() -> dict[str, tp.Any]:
            return _logs(*made(self._model, True, self._model._metrics, data))

        view, leaves = self._leaves(state)
        logs, leaves = self._run("train", step, state.step, view, leaves)
        return self._state(view, leaves, jnp.add(state.step, 1)), logs

    def eval_step(
        self, state: FunctionalState, x: tp.Any, y: tp.Any = None, sample_weight: tp.Any = None
    ) -> dict[str, tp.Any]:
        """The losses and metrics of a batch, of which the state sees nothing.

        **Returns:** scalar arrays, of this batch alone.
        """
        data = _batch(x, y, sample_weight)

        def step() -> dict[str, tp.Any]:
            return _logs(*made(self._model, False, self._model._metrics, data))

        return self._run("test", step, 0, *self._leaves(self.reset_metrics(state)))[0]

    def predict(self, state: FunctionalState, x: tp.Any) -> tp.Any:
        """The outputs for a batch, as arrays of JAX. Random numbers are those of the first batch of `Model.predict`."""
        x = jax.tree.map(jnp.asarray, from_numbers(x))
        return self._run("predict", lambda: outputs_of(self._model, x), 0, *self._leaves(state))[0]

    def _run(
        self, kind: str, step: Callable[[], tp.Any], number: tp.Any, view: View, leaves: list[tp.Any]
    ) -> tuple[tp.Any, list[tp.Any]]:
        """What a step returns, and the arrays that it leaves behind."""

        def once() -> tp.Any:
            with rng_context(stream_of(self._model._seed, kind, number)), training_context(kind == "train"):
                if kind != "train" and self._model._has_evaluation_parameters():
                    put_evaluation_parameters(self._model)
                return step()

        out, effects = run(once, self._threaded, view, leaves, None, (), {}, return_all=True)
        return out, effects[0]

    def _kind(self, view: View) -> Kind:
        found = self._kinds.get(id(view.signature))
        return found or self._kinds.setdefault(id(view.signature), Kind(view, self._modules))

    def _state(self, view: View, leaves: list[tp.Any], step: tp.Any) -> FunctionalState:
        kind = self._kind(view)
        return FunctionalState(**jax.tree.map(lambda number: leaves[number], kind.tree), step=step, kind=kind)

    def _leaves(self, state: FunctionalState) -> tuple[View, list[tp.Any]]:
        """The arrays of a state in the order of the view."""
        view = self._threaded.view()
        if not isinstance(state, FunctionalState):
            raise TypeError(f"the first argument is the state, as init, read and train_step give it, got {state!r}.")
        if state.kind is not self._kind(view):
            raise StructureError(
                "the state belongs to another structure of the modules than they have now: they were initialised, "
                "frozen or changed since, or it is the state of another object.\n"
                "  functional.read() gives a state of the structure of now."
            )
        parts = {name: getattr(state, name) for name in _PARTS}
        numbers, leaves = jax.tree.leaves(state.kind.tree), jax.tree.structure(state.kind.tree).flatten_up_to(parts)
        found: list[tp.Any] = [None] * len(numbers)
        for number, leaf in zip(numbers, leaves, strict=True):
            found[number] = leaf
        return view, found


def _batch(x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> Data:
    given = Data(from_numbers(x), from_numbers(y, "y"), from_numbers(sample_weight, "sample_weight"))
    return jax.tree.map(jnp.asarray, given)


def _logs(values: dict[str, tp.Any], so_far: dict[str, tp.Any]) -> dict[str, tp.Any]:
    means = {name: scalar_of(value) for name, value in values.items()}
    return {**means, **{name: jnp.asarray(value, jnp.result_type(float)) for name, value in so_far.items()}}
