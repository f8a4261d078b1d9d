"""Losses: modules that compare targets and predictions, and the functions that they reduce."""

import typing as _tp

from elegy import habits as _habits
from elegy.losses.binary_crossentropy import (
    BinaryCrossentropy as BinaryCrossentropy,
    binary_crossentropy as binary_crossentropy,
)
from elegy.losses.binary_focal_crossentropy import (
    BinaryFocalCrossentropy as BinaryFocalCrossentropy,
    binary_focal_crossentropy as binary_focal_crossentropy,
)
from elegy.losses.categorical_crossentropy import (
    CategoricalCrossentropy as CategoricalCrossentropy,
    categorical_crossentropy as categorical_crossentropy,
)
from elegy.losses.categorical_focal_crossentropy import (
    CategoricalFocalCrossentropy as CategoricalFocalCrossentropy,
    categorical_focal_crossentropy as categorical_focal_crossentropy,
)
from elegy.losses.contrastive import Contrastive as Contrastive, contrastive as contrastive
from elegy.losses.cosine_similarity import CosineSimilarity as CosineSimilarity, cosine_similarity as cosine_similarity
from elegy.losses.ctc import CTC as CTC, ctc as ctc
from elegy.losses.hinge import (
    CategoricalHinge as CategoricalHinge,
    Hinge as Hinge,
    SquaredHinge as SquaredHinge,
    categorical_hinge as categorical_hinge,
    hinge as hinge,
    squared_hinge as squared_hinge,
)
from elegy.losses.huber import Huber as Huber, huber as huber
from elegy.losses.kl_divergence import KLDivergence as KLDivergence, kl_divergence as kl_divergence
from elegy.losses.log_cosh import LogCosh as LogCosh, log_cosh as log_cosh
from elegy.losses.loss import Loss as Loss, Reduction as Reduction
from elegy.losses.mean_absolute_error import (
    MeanAbsoluteError as MeanAbsoluteError,
    mean_absolute_error as mean_absolute_error,
)
from elegy.losses.mean_absolute_percentage_error import (
    MeanAbsolutePercentageError as MeanAbsolutePercentageError,
    mean_absolute_percentage_error as mean_absolute_percentage_error,
)
from elegy.losses.mean_squared_error import (
    MeanSquaredError as MeanSquaredError,
    mean_squared_error as mean_squared_error,
)
from elegy.losses.mean_squared_logarithmic_error import (
    MeanSquaredLogarithmicError as MeanSquaredLogarithmicError,
    mean_squared_logarithmic_error as mean_squared_logarithmic_error,
)
from elegy.losses.nt_xent import NTXent as NTXent, nt_xent as nt_xent
from elegy.losses.overlap import Dice as Dice, Tversky as Tversky, dice as dice, tversky as tversky
from elegy.losses.poisson import Poisson as Poisson, poisson as poisson
from elegy.losses.sparse_categorical_crossentropy import (
    SparseCategoricalCrossentropy as SparseCategoricalCrossentropy,
    sparse_categorical_crossentropy as sparse_categorical_crossentropy,
)
from elegy.losses.triplet import Triplet as Triplet, triplet as triplet

__all__ = [
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_hinge",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalHinge",
    "Contrastive",
    "contrastive",
    "cosine_similarity",
    "CosineSimilarity",
    "CTC",
    "ctc",
    "Dice",
    "dice",
    "Hinge",
    "hinge",
    "Huber",
    "huber",
    "kl_divergence",
    "KLDivergence",
    "log_cosh",
    "LogCosh",
    "Loss",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "nt_xent",
    "NTXent",
    "Poisson",
    "poisson",
    "Reduction",
    "sparse_categorical_crossentropy",
    "SparseCategoricalCrossentropy",
    "squared_hinge",
    "SquaredHinge",
    "Triplet",
    "triplet",
    "Tversky",
    "tversky",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.losses", __all__, _habits.LOSSES, ["optax.losses"])
