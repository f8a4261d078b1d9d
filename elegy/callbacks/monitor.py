"""What a callback watches: one value of the logs, and whether it has become better."""

from __future__ import annotations

import difflib
import math
import re
import typing as tp
from collections.abc import Mapping

import numpy as np

from elegy.callbacks.callback import Callback, Logs, as_number
from elegy.errors import CheckpointWarning
from elegy.frames import warn

# Words of the names of what is better when it is smaller, or larger. An unknown name is no reason to guess.
_WORDS = {
    "min": {"loss", "error", "mse", "mae", "rmse", "mape", "msle", "crossentropy", "perplexity"},
    "max": {"accuracy", "acc", "auc", "precision", "recall", "f1", "iou", "r2"},
}


class Monitor:
    """Reads one value of the logs of an epoch.

    **Arguments:**

    - `owner`: the callback that watches.
    - `name`: the name of the value in the logs.
    - `min_delta`: by how much a value must be better to count as better.
    - `mode`: `"min"`, `"max"`, or `"auto"`.
    """

    def __init__(self, owner: Callback, name: str, min_delta: float | int, mode: str):
        self._who = type(owner).__name__
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"{self._who}: mode must be 'auto', 'min' or 'max', got {mode!r}.")
        if not min_delta >= 0:
            raise ValueError(f"{self._who}: min_delta must not be negative, got {min_delta!r}.")
        self._owner = owner
        self._name = name
        self._min_delta = min_delta
        self._given_mode = mode

    def value(self, logs: Logs) -> float | None:
        """The value, or None after an epoch that is not validated if it is one of validation data.

        **Raises:** `ValueError` if there is no such value, or if its direction is unknown.
        """
        if self._name not in logs and self._name.startswith("val_") and getattr(logs, "lacks_validation", False):
            return None
        if self._name not in logs:
            raise ValueError(self._not_there(list(logs)))
        self._known_mode()
        return as_number(self._name, logs[self._name])

    def is_better(self, value: float, than: float | int | None) -> bool:
        """Whether a value is better than another; anything but `nan` is better than None."""
        if than is None:
            return not math.isnan(value)
        return value < than - self._min_delta if self._mode == "min" else value > than + self._min_delta

    def knows(self, state: Mapping[str, tp.Any]) -> bool:
        """Whether the state of the owner, of which a part is `monitor`, is of this value; if not, it warns."""
        before = state.get("monitor", self._name)
        if before != self._name:
            warn(
                CheckpointWarning(
                    f"{self._who} watched {before!r} so far, and now watches {self._name!r}, of which no value is "
                    f"known: it begins anew.\n  Go on with monitor={before!r} to go on as if nothing had happened."
                )
            )
        return before == self._name

    @property
    def direction(self) -> tp.Literal["min", "max"]:
        """Which values are better.

        **Raises:** `ValueError` if that is unknown.
        """
        return "max" if self._known_mode() == "max" else "min"

    def _known_mode(self) -> str:
        if self._mode is None:
            raise ValueError(
                f"{self._who}: whether a larger or a smaller value of {self._name!r} is better cannot be told from its "
                'name.\n  Say it: mode="max" or mode="min".'
            )
        return self._mode

    @property
    def _mode(self) -> str | None:
        if self._given_mode != "auto":
            return self._given_mode
        name = self._name.removeprefix("val_")
        return self._owner.model._metrics.direction(name) or _direction_of_words(name)

    def _not_there(self, names: list[str]) -> str:
        text = f"{self._who}: there is no {self._name!r} among the logs of this epoch: {', '.join(names)}."
        if self._name.startswith("val_") and not any(name.startswith("val_") for name in names):
            return f"{text}\n  Give fit validation_data= or validation_split=; or monitor a value of the training data."
        close = difflib.get_close_matches(self._name, names, n=1, cutoff=0)
        return f"{text}\n  Did you mean {close[0]!r}?" if close else text


def _direction_of_words(name: str) -> str | None:
    words = set(re.split(r"[_/\s]", name.lower()))
    found = [direction for direction, known in _WORDS.items() if words & known]
    return found[0] if len(found) == 1 else None


def require_at_least(owner: Callback, least: int, **values: tp.Any) -> None:
    """Refuses what is no integer, or less than `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{type(owner).__name__}: {name} must be an integer of at least {least}, got {value!r}.")
