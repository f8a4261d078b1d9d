"""`Model`, which trains a module, with its optimiser."""

from elegy.callbacks import Callback as Callback, History as History
from elegy.model.functional import Functional as Functional, FunctionalState as FunctionalState
from elegy.model.lr_find import LearningRates as LearningRates
from elegy.model.model import Model as Model
from elegy.model.optimizer import Optimizer as Optimizer

__all__ = ["Callback", "Functional", "FunctionalState", "History", "LearningRates", "Model", "Optimizer"]
