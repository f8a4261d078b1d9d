"""`Model`, which trains a module, with its optimiser."""

from elegy.callbacks import Callback as Callback, History as History
from elegy.model.model import Model as Model
from elegy.model.optimizer import Optimizer as Optimizer

__all__ = ["Callback", "History", "Model", "Optimizer"]
