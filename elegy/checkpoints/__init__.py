"""Trees of arrays on the disk: one file, or a folder of checkpoints."""

from elegy.checkpoints.file import load as load, save as save

__all__ = ["load", "save"]
