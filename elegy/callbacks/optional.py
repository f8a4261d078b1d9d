"""Libraries that are imported where they are used."""

from __future__ import annotations

import importlib
import typing as tp

from elegy.callbacks.callback import Callback


def imported(owner: Callback, library: str) -> tp.Any:
    """**Raises:** `ImportError`, which says how to install a library that is not there."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise  # the library is there, and lacks something itself
        raise ImportError(
            f"elegy.callbacks.{type(owner).__name__} needs the library {library}, which is not installed.\n"
            f"  Install it: pip install {library}",
            name=library,
        ) from None
