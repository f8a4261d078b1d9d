"""The base class of callbacks."""

from __future__ import annotations

import inspect
import typing as tp
from collections.abc import Mapping

from elegy.errors import ClassDefinitionError
from elegy.habits import better_error, hook_for

if tp.TYPE_CHECKING:
    from elegy.model.model import Model

# From names to floats. Not said in the type, lest a type checker look into them and wait for the device.
Logs = Mapping


class Callback:
    """Base class of callbacks: override what is wanted. `self.model` is the model that trains.

    A callback may change the parameters of the module, freeze parts of it, set the learning rate, or set
    `self.model.stop_training`; training goes on with what it finds. Logs are read from the device when a callback looks
    into them, and not before.

    Before and after each hook of a batch the module is brought up to date, which waits for the device. A callback that
    has such hooks and looks at logs only says so by `sees_module = False` in its class.

    A callback that remembers something from epoch to epoch forgets it when training begins, unless `fit` is told that
    it goes on, by `initial_epoch=`. What it remembers is its `get_state`.

    ```python
    import elegy
    import numpy as np
    import optax


    class StopBelow(elegy.callbacks.Callback):
        def __init__(self, loss):
            self.loss = loss

        def on_epoch_end(self, epoch, logs):
            if logs["loss"] < self.loss:
                self.model.stop_training = True


    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    history = model.fit(x, 2 * x, epochs=1000, callbacks=[StopBelow(0.1)], verbose=0)
    assert history.history["loss"][-1] < 0.1
    ```
    """

    model: Model
    params: Mapping[str, tp.Any]
    sees_module = True
    # Whether the parameters and the state of the optimiser must be there when training begins. Else the first batch
    # creates them.
    needs_state = False
    # Whether it writes files or sends logs. `fit(fast_dev_run=...)` does without those that do, and where JAX runs in
    # several processes, the first one alone calls them: they must not change what is trained.
    writes = False

    def __new__(cls, *args: tp.Any, **kwargs: tp.Any):
        # Arguments that other libraries have get a hint; those of a class of a user are left to Python.
        if cls.__module__.startswith("elegy.") and (error := better_error(cls, args, kwargs)) is not None:
            raise error
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: tp.Any) -> None:
        super().__init_subclass__(**kwargs)
        # Bases that are callbacks were looked at when they were defined; mixins were not.
        bases = [base for base in cls.__mro__ if base is cls or not issubclass(base, Callback)]
        hooks = [name for name in vars(Callback) if name.startswith("on_")]
        for name, value in (item for base in bases for item in vars(base).items()):
            is_method = callable(value) or isinstance(value, classmethod)
            if is_method and name not in hooks and (hook := hook_for(name, hooks)) is not None:
                raise ClassDefinitionError(
                    f"class {cls.__qualname__} defines {name}, which is no hook of a callback here and would never be "
                    f"called.\n  Name it {hook}; or _{name}, if it is a method of your own."
                )

    def __init__(self) -> None:
        pass

    def on_train_begin(self) -> None:
        """Before the first epoch. `self.params` has `epochs`, `initial_epoch`, `batch_size`, `steps` (per epoch) and
        `samples`."""

    def on_train_end(self) -> None:
        """After the last epoch; not after an exception."""

    def on_epoch_begin(self, epoch: int) -> None:
        """**Arguments:** `epoch`, counted from 0."""

    def on_epoch_resume(self, epoch: int) -> None:
        """In the place of `on_epoch_begin` where training goes on in the middle of an epoch, from a checkpoint.

        **Arguments:** `epoch`, counted from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """**Arguments:** `epoch`, counted from 0, and `logs`, its means; those of validation data begin with `val_`."""

    def on_train_batch_begin(self, batch: int) -> None:
        """**Arguments:** `batch`, counted from 0 in each epoch."""

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """**Arguments:** `batch`, counted from 0 in each epoch, and `logs`, the means of the epoch so far.

        Reading a value of `logs` blocks until it is computed.
        """

    def on_test_begin(self) -> None:
        """Before a pass over validation data, or that of `evaluate`."""

    def on_test_end(self, logs: Logs) -> None:
        """**Arguments:** `logs`, the means of the pass, by names without `val_`."""

    def on_test_batch_begin(self, batch: int) -> None:
        """**Arguments:** `batch`, counted from 0 in each pass."""

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """**Arguments:** `batch`, counted from 0 in each pass, and `logs`, the means of the pass so far.

        Reading a value of `logs` blocks until it is computed.
        """

    def close(self) -> None:
        """At the end of `fit` or `evaluate`, after an exception too: what was opened is closed here."""

    def get_state(self) -> dict[str, tp.Any]:
        """What the callback needs to go on after an interruption: plain values and arrays, in dicts and lists."""
        return {}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        """Goes on from a state that `get_state` gave. Training is to begin after it, with `initial_epoch=`.

        **Arguments:** `state`, as `get_state` gave it.
        """

    def _identity(self) -> tp.Any:
        """A plain value that tells it from others of its class in a list of callbacks; None if nothing does."""
        return None

    def _in_steps(self) -> tp.Any:
        """A module that takes part in each training step: its `follow` is called with the module that is trained, after
        the update; None."""
        return None

    def _after_failed_test(self) -> None:
        """After an exception between `on_test_begin` and `on_test_end`."""

    def _goes_on(self) -> bool:
        """Whether the training that begins is the rest of another."""
        return self.params["initial_epoch"] > 0 or self.params.get("resumes", False)


def as_number(name: str, value: tp.Any) -> float:
    """A value of the logs, into which callbacks may put others.

    **Raises:** `TypeError` if it is no number.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"the value of {name!r} in the logs must be a number, got {value!r}.\n"
            "  A callback has put it there: have that keep it elsewhere, such as in an attribute."
        ) from None


def require_hook(owner: Callback, name: str) -> None:
    """Refuses a hook that cannot be called with what a hook of this name is given. One that does not say what it takes
    is left alone.

    **Raises:** `TypeError`, which says how to write it.
    """
    hook = getattr(owner, name)
    given = [*inspect.signature(getattr(Callback, name)).parameters][1:]
    try:
        # What a decorator puts around a function may take other arguments than the function itself.
        signature = inspect.signature(hook, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        names = ", ".join(given)
        write = f"def {name}({', '.join(['self', *given])})"
        if not inspect.ismethod(hook):
            write = f"{name}=lambda {names}".rstrip() + ": ..."
        raise TypeError(
            f"{type(owner).__name__}: {name} is given {names or 'nothing'}, and cannot be called with that: {error}.\n"
            f"  Write {write}. Arguments of other libraries, such as logs, need a default here: logs=None."
        ) from None
