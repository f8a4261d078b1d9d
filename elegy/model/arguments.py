"""Arguments of a `Model` and of its methods: what they may be, and what they say together."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Iterable

import numpy as np

from elegy.callbacks import Callback
from elegy.dtype_policy import DtypePolicy
from elegy.model.objectives import Losses
from elegy.module import Module


def give_policy(module: Module, policy: DtypePolicy) -> None:
    if module.dtype_policy not in (None, policy):
        raise ValueError(
            f"policy={policy!r} was given, and the module has another one: {module.dtype_policy!r}.\n"
            "  Give one of them; module.dtype_policy = None takes that of the module away."
        )
    module.dtype_policy = policy


def require_positive(name: str, value: tp.Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        kind = "a positive integer" if least else "an integer that is not negative"
        kind = f"an integer of at least {least}" if least > 1 else kind
        raise ValueError(f"{name} must be {kind}, got {value!r}.")


def require_optional(**values: tp.Any) -> None:
    for name, value in values.items():
        if value is not None:
            require_positive(name, value)


def list_of(callbacks: Iterable[Callback] | None) -> list[Callback]:
    if isinstance(callbacks, Callback):
        raise TypeError("callbacks is a list of callbacks, got one: callbacks=[callback].")
    return list(callbacks or ())


def steps_before(epochs: int, steps: int | None, so_far: int) -> int:
    """How many steps the epochs had that were made before.

    **Arguments:**

    - `steps`: how many an epoch has; None if that is not known.
    - `so_far`: how many the model has made.
    """
    if steps is not None or epochs == 0:
        return epochs * (steps or 0)
    if so_far == 0:
        raise ValueError(
            f"initial_epoch={epochs} of a model that has made no steps, and nobody knows how many batches an epoch of "
            "these data has: so it is not known how many steps were made before, from which random numbers derive.\n"
            "  Go on from a checkpoint, resume=directory; or say it, steps_per_epoch=."
        )
    return so_far


def validates_after(validation_freq: tp.Any) -> Callable[[int], bool]:
    """Whether there is a validation after an epoch, counted from 0."""
    if isinstance(validation_freq, (list, tuple, set, frozenset, range)):
        epochs = list(validation_freq)
        for epoch in epochs:
            require_positive("an epoch of validation_freq", epoch)
        return lambda epoch: epoch + 1 in epochs
    require_positive("validation_freq", validation_freq)
    return lambda epoch: (epoch + 1) % validation_freq == 0


def validation_of(data: tp.Any) -> tuple[tp.Any, ...]:
    if not isinstance(data, (tuple, list)) or not 1 <= len(data) <= 3:
        raise ValueError(
            "validation_data must be a tuple (x, y) or (x, y, sample_weight), or give batches, as x of fit may."
        )
    return tuple(data)


def require_unambiguous(x: tp.Any, validation: tp.Any) -> None:
    """Refuses a list of two tuples that are batches by their form, where batches have several inputs."""
    is_pair = isinstance(validation, list) and len(validation) == 2 and isinstance(x, tuple) and len(x) > 1
    of_arrays = lambda item: isinstance(item, tuple) and all(hasattr(part, "__array__") for part in item)  # noqa: E731
    if is_pair and all(map(of_arrays, validation)):
        raise ValueError(
            "validation_data is a list of two tuples of arrays, and so two batches (x, y) with one input each, while x "
            f"of fit is a tuple of {len(x)} inputs.\n"
            "  If the inputs and the targets are meant, write a tuple: validation_data=((x1, x2), (y1, y2)). If two "
            "batches are meant, each has all inputs: [((x1, x2), y), ((x1, x2), y)]."
        )


def require_unwatched(callbacks: Iterable[Callback], why: str) -> None:
    """Refuses callbacks that watch a value of validation data where there will be none."""
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.startswith("val_"):
            raise ValueError(f"{type(callback).__name__} watches {monitor!r}, and {why}.")


def require_apart(losses: Losses) -> None:
    """Refuses losses of which that of a batch is not made up of those of its parts."""
    for owner, loss in losses.owners():
        if getattr(loss, "across_samples", False):
            how = (
                " With axis=, the axes of one sample, each sample has a value of its own."
                if hasattr(loss, "axis")
                else ""
            )
            raise ValueError(
                f"accumulate= goes through a batch in parts, and {owner} looks at the samples of a batch together: in "
                "a part there are not those of the others.\n"
                f"  Train on whole batches, without accumulate.{how}"
            )
