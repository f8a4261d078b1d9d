"""Losses: modules that compare targets and predictions, and the functions that they reduce."""

import typing as _tp

from elegy import habits as _habits
from elegy.losses.loss import Loss as Loss, Reduction as Reduction
from elegy.losses.mean_squared_error import (
    MeanSquaredError as MeanSquaredError,
    mean_squared_error as mean_squared_error,
)
from elegy.losses.sparse_categorical_crossentropy import (
    SparseCategoricalCrossentropy as SparseCategoricalCrossentropy,
    sparse_categorical_crossentropy as sparse_categorical_crossentropy,
)

__all__ = [
    "Loss",
    "mean_squared_error",
    "MeanSquaredError",
    "Reduction",
    "sparse_categorical_crossentropy",
    "SparseCategoricalCrossentropy",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.losses", __all__, _habits.LOSSES, ["optax.losses"])
