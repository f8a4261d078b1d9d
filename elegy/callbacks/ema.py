"""`EMA`: a moving average of the parameters."""

from __future__ import annotations

import typing as tp
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.callback import Callback, Logs
from elegy.errors import CheckpointWarning
from elegy.frames import warn
from elegy.module import Module
from elegy.precision import accumulating
from elegy.selections import parts_of_leaves

Arrays = dict[str, tp.Any]  # by path, "layers/0/w"
State = dict[str, tp.Any]  # of an `Average`


class EMA(Callback):
    r"""Keeps an exponential moving average of the trainable parameters, which often predicts better than the last ones.

    After step `t` it is the weighted mean of the parameters after the steps `i = 1, …, t`, with weights proportional to
    `decay ** (t - i)`: that of `optax.ema`, which corrects for its beginning (Kingma and Ba, *Adam* (2015), section 3).
    It is a part of the compiled step, in float32 at least, and nothing waits for it.

    **Arguments:**

    - `decay`: from 0 to 1, both excluded. The average spans about `1 / (1 - decay)` steps.
    - `validation`: whether the average stands in the module while validation data are evaluated, so that the values
      named `val_` are its own; of several `EMA` those of the last one in the list. Outside of validation the module has
      the parameters that are trained, also for `EarlyStopping`, which restores those.
    - `at_end`: whether the module has the average when training ends. Of several callbacks that change the parameters
      then, the last one in the list has the last word.

    With a schedule-free optimiser, for which a model evaluates other parameters than it trains, it is the trained ones
    that are averaged, and the average is evaluated as it is.

    State, such as running statistics, is not averaged. Parameters that are frozen keep the average that they had, and
    are not exchanged. Given to `evaluate`, the callback evaluates the average.

    **Raises:** `ValueError` if `decay` is out of range.

    ```python
    import elegy
    import jax
    import numpy as np

    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    average = elegy.callbacks.EMA(0.9)
    history = model.fit(x, 2 * x, validation_split=0.2, epochs=3, callbacks=[average], verbose=0)
    module = model.module.copy()
    module.set_parameters(average.parameters)
    assert abs(module.w - model.module.w).max() > 0
    ```
    """

    needs_state = True

    def __init__(self, decay: float | int = 0.999, validation: bool = True, at_end: bool = False):
        if not 0 < decay < 1:
            raise ValueError(f"EMA: decay must be between 0 and 1, both excluded, got {decay!r}.")
        self.decay = decay
        self.validation = validation
        self.at_end = at_end
        # What steps update; None while nothing trains. Then `_kept` has the average.
        self._average: Average | None = None
        self._kept: State | None = None
        self._own: tp.Any = None

    @property
    def parameters(self) -> dict[str, tp.Any]:
        """The average, for `module.set_parameters`: a nested dict in the form of `get_parameters`, with the dtypes of
        the parameters. Parameters that are not averaged yet are there as they are.

        **Raises:** `RuntimeError` before the first `fit` or `evaluate` that the callback is given to.
        """
        if not hasattr(self, "model"):
            raise RuntimeError(
                "EMA: it has no model yet whose parameters it would average.\n"
                "  Give it to fit first: fit(..., callbacks=[average])."
            )
        own = self.model.module.get_parameters(trainable=True)
        state = self._state
        values = {} if state is None else _begun(state)
        leaves = [_cast(values.get(path, leaf), leaf.dtype) for path, leaf in _by_path(own).items()]
        return jax.tree.structure(own).unflatten(leaves)

    @property
    def _state(self) -> State | None:
        return self._kept if self._average is None else self._average.state

    def _in_steps(self) -> Average:
        return self.model._average(self.decay)

    def on_train_begin(self) -> None:
        average = self._in_steps()
        state = self._kept if self._goes_on() else None
        average.begin(self.model.module, state)
        self._average, self._kept = average, None

    def on_test_begin(self) -> None:
        if self.validation:
            # Of several averages the last one is evaluated; the parameters that are trained the first one keeps.
            if not self.model._holds_average:
                self._own = self.model.module.get_parameters(trainable=True)
            self.model.module.set_parameters(self.parameters)
            self.model._holds_average = True

    def on_test_end(self, logs: Logs) -> None:
        self._put_back()

    def _after_failed_test(self) -> None:
        self._put_back()

    def _put_back(self) -> None:
        if self._own is not None:
            self.model.module.set_parameters(self._own)
            self._own = None
            self.model._holds_average = False

    def close(self) -> None:
        self._put_back()
        average, self._average = self._average, None
        if average is not None:
            try:
                self._kept = jax.tree.map(jnp.copy, average.state)
            except (RuntimeError, ValueError):  # lost with a step that failed, of which its own error tells
                self._kept = None

    def on_train_end(self) -> None:
        if self.at_end:
            self.model.module.set_parameters(self.parameters)
            self.model._begin_averages()

    def get_state(self) -> dict[str, tp.Any]:
        state = self._state
        if state is None:
            return {"steps": {}, "parameters": {}, "decay": float(self.decay)}
        steps = dict(zip(sorted(state["average"]), np.asarray(state["steps"]).tolist(), strict=True))
        average = jax.tree.map(jnp.copy, state["average"])
        return {"steps": steps, "parameters": average, "decay": float(self.decay)}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        steps = [state["steps"][path] for path in sorted(state["parameters"])]
        average = {path: jnp.copy(array) for path, array in state["parameters"].items()}
        self._kept = {"average": average, "steps": jnp.asarray(steps, jnp.int32)} if average else None
        before = state.get("decay", float(self.decay))
        if average and before != float(self.decay):
            warn(
                CheckpointWarning(
                    f"the average so far is one with decay={before}, and EMA now has decay={self.decay}, with which it "
                    f"goes on from there.\n  Go on with decay={before}; or train without resume= for another average."
                )
            )

    def _identity(self) -> float:
        return float(self.decay)


class Average(Module):
    """The average as a module, which training steps update.

    Its `state` has the arrays of `average` by path, and in `steps` how many steps each of them has, in the order of the
    sorted paths.
    """

    def __init__(self, decay: float | int):
        super().__init__()
        self.decay = float(decay)

    def follow(self, module: Module) -> None:
        """Takes the parameters of a module into account, as they are after a step."""
        self(_by_path(module.get_parameters(trainable=True)))

    def call(self, new: Arrays) -> None:
        state = self.add_parameter("state", initializer=lambda: _before(new), trainable=False)
        rows = {path: row for row, path in enumerate(sorted(state["average"]))}
        moving = jnp.asarray([path in new for path in rows])
        steps = state["steps"] + moving.astype(jnp.int32)
        weights = (1 - self.decay) / (1 - jnp.power(jnp.float32(self.decay), steps.astype(jnp.float32)))
        average = dict(state["average"])
        for path, value in new.items():
            old = average[path]
            average[path] = old + weights[rows[path]].astype(old.dtype) * (value.astype(old.dtype) - old)
        self.update_parameter("state", {"average": average, "steps": steps})

    def begin(self, module: Module, state: State | None) -> None:
        """Begins anew, or goes on from a state. What it lacks is added."""
        self._set(_zeros(_by_path(module.get_parameters(trainable=True))), state)

    def adapt(self, module: Module) -> None:
        """Fits the state to what is trainable now; what is frozen keeps the average that it had."""
        if not self.initialized:
            return
        zeros = _zeros(_by_path(module.get_parameters(trainable=True)))
        if not zeros["average"].keys() <= self.state["average"].keys():
            self._set(zeros, self.state)

    def _set(self, zeros: State, state: State | None) -> None:
        if state is not None:
            known = {path: row for row, path in enumerate(sorted(state["average"]))}
            average = {**zeros["average"], **state["average"]}
            average |= {path: _placed(average[path], zero) for path, zero in zeros["average"].items()}
            rows = [state["steps"][known[path]] if path in known else 0 for path in sorted(average)]
            zeros = {"average": average, "steps": jnp.asarray(rows, jnp.int32)}
        if self.initialized and self.state["average"].keys() != zeros["average"].keys():
            self.reset()
        if not self.initialized:
            self.init(zeros["average"])
        self.set_parameters({"state": jax.tree.map(jnp.copy, zeros)})


def _zeros(parameters: Arrays) -> State:
    """The state before the first step, sharded as the parameters are."""
    return _before({path: jnp.zeros_like(leaf) for path, leaf in parameters.items()})


def _before(values: Arrays) -> State:
    """A state without a step: in float32 at least."""
    average = {path: _cast(leaf, accumulating(leaf.dtype)) for path, leaf in values.items()}
    return {"average": average, "steps": jnp.zeros([len(average)], jnp.int32)}


def _placed(array: tp.Any, like: tp.Any) -> tp.Any:
    """An array where another one is, if that was put somewhere."""
    return jax.device_put(array, like.sharding) if like.committed else array


def _begun(state: State) -> Arrays:
    """The averages of those parameters that have one."""
    steps = np.asarray(state["steps"]).tolist()
    return {path: state["average"][path] for path, count in zip(sorted(state["average"]), steps, strict=True) if count}


def _by_path(parameters: tp.Any) -> Arrays:
    return dict(zip(map("/".join, parts_of_leaves(parameters)), jax.tree.leaves(parameters), strict=True))


def _cast(array: tp.Any, dtype: tp.Any) -> tp.Any:
    return array if array.dtype == dtype else array.astype(dtype)
