"""Callbacks of `Model.fit`: what happens beside training."""

import typing as _tp

from elegy import habits as _habits
from elegy.callbacks.callback import Callback as Callback
from elegy.callbacks.early_stopping import EarlyStopping as EarlyStopping
from elegy.callbacks.ema import EMA as EMA
from elegy.callbacks.history import History as History
from elegy.callbacks.lambda_callback import LambdaCallback as LambdaCallback
from elegy.callbacks.learning_rate import (
    LearningRateScheduler as LearningRateScheduler,
    ReduceLROnPlateau as ReduceLROnPlateau,
)
from elegy.callbacks.log_files import CSVLogger as CSVLogger, JSONLogger as JSONLogger
from elegy.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
from elegy.callbacks.progress import ProgressBar as ProgressBar
from elegy.callbacks.remote_monitor import RemoteMonitor as RemoteMonitor
from elegy.callbacks.tensorboard import TensorBoard as TensorBoard
from elegy.callbacks.terminate_on_nan import TerminateOnNaN as TerminateOnNaN
from elegy.callbacks.tracking import MLflow as MLflow, WandB as WandB

__all__ = [
    "Callback",
    "CSVLogger",
    "EarlyStopping",
    "EMA",
    "History",
    "JSONLogger",
    "LambdaCallback",
    "LearningRateScheduler",
    "MLflow",
    "ModelCheckpoint",
    "ProgressBar",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "TensorBoard",
    "TerminateOnNaN",
    "WandB",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.callbacks", __all__, _habits.CALLBACKS)
