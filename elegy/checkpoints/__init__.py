"""Trees of arrays on the disk: one file, or a directory of checkpoints."""

from elegy.checkpoints.file import load as load, save as save
from elegy.checkpoints.store import Checkpoints as Checkpoints

__all__ = ["Checkpoints", "load", "save"]
