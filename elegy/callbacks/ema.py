"""`EMA`: a moving average of the parameters."""

from __future__ import annotations

import typing as tp
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.callback import Callback, Logs
from elegy.selections import parts_of_leaves

Arrays = dict[str, tp.Any]  # by path, "layers/0/w"


class EMA(Callback):
    r"""Keeps an exponential moving average of the trainable parameters, which often predicts better than the last ones.

    After step `t` it is the weighted mean of the parameters after the steps `i = 1, …, t`, with weights proportional to
    `decay ** (t - i)`: that of `optax.ema`, which corrects for its beginning (Kingma and Ba, *Adam* (2015), section 3).
    It is computed on the device after each step, in float32 at least, and nothing waits for it.

    **Arguments:**

    - `decay`: from 0 to 1, both excluded. The average spans about `1 / (1 - decay)` steps.
    - `validation`: whether the average stands in the module while validation data are evaluated, so that the values
      named `val_` are its own. Outside of validation the module has the parameters that are trained, also for
      `EarlyStopping`, which restores those.
    - `at_end`: whether the module has the average when training ends. Of several callbacks that change the parameters
      then, the last one in the list has the last word.

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

    def __init__(self, decay: float | int = 0.999, validation: bool = True, at_end: bool = False):
        if not 0 < decay < 1:
            raise ValueError(f"EMA: decay must be between 0 and 1, both excluded, got {decay!r}.")
        self.decay = decay
        self.validation = validation
        self.at_end = at_end
        self._reset()

    def _reset(self) -> None:
        self._steps: dict[str, int] = {}
        self._average: Arrays = {}
        self._own: tp.Any = None

    @property
    def parameters(self) -> dict[str, tp.Any]:
        """The average, for `module.set_parameters`: a nested dict in the form of `get_parameters`, with the dtypes of
        the parameters. Parameters that are not averaged yet are there as they are."""
        own = self.model.module.get_parameters(trainable=True)
        leaves = [_cast(self._average.get(path, leaf), leaf.dtype) for path, leaf in _by_path(own).items()]
        return jax.tree.structure(own).unflatten(leaves)

    def on_train_begin(self) -> None:
        if not self._goes_on():
            self._reset()

    def _after_step(self, module: tp.Any) -> None:
        new = _by_path(module.get_parameters(trainable=True))
        weights = []
        for path, leaf in new.items():
            steps = self._steps[path] = self._steps.get(path, 0) + 1
            self._average.setdefault(path, leaf)
            weights.append((1 - self.decay) / (1 - self.decay**steps))
        old = [self._average[path] for path in new]
        mixed = _mix(old, list(new.values()), np.asarray(weights, np.float32))
        self._average.update(zip(new, mixed, strict=True))

    def on_test_begin(self) -> None:
        if self.validation:
            self._own = self.model.module.get_parameters(trainable=True)
            self.model.module.set_parameters(self.parameters)

    def on_test_end(self, logs: Logs) -> None:
        self.close()

    def close(self) -> None:
        if self._own is not None:
            self.model.module.set_parameters(self._own)
            self._own = None

    def on_train_end(self) -> None:
        if self.at_end:
            self.model.module.set_parameters(self.parameters)

    def get_state(self) -> dict[str, tp.Any]:
        return {"steps": {**self._steps}, "parameters": _copied(self._average)}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        self._steps, self._average = {**state["steps"]}, _copied(state["parameters"])


def _by_path(parameters: tp.Any) -> Arrays:
    return dict(zip(map("/".join, parts_of_leaves(parameters)), jax.tree.leaves(parameters), strict=True))


def _copied(arrays: Mapping[str, tp.Any]) -> Arrays:
    return {path: jnp.copy(array) for path, array in arrays.items()}


def _cast(array: tp.Any, dtype: tp.Any) -> tp.Any:
    return array if array.dtype == dtype else array.astype(dtype)


@jax.jit
def _mix(old: list[tp.Any], new: list[tp.Any], weights: tp.Any) -> list[tp.Any]:
    """The first arrays, moved towards the second ones by their weights."""

    def mix(old: tp.Any, new: tp.Any, weight: tp.Any) -> tp.Any:
        dtype = new.dtype if jnp.finfo(new.dtype).bits >= 32 else jnp.float32
        old, new = old.astype(dtype), new.astype(dtype)
        return old + weight.astype(dtype) * (new - old)

    return [mix(a, b, weight) for a, b, weight in zip(old, new, weights, strict=True)]
