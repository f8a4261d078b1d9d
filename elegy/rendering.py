"""How a module is shown: `repr`, `wadler_lindig` documents, treescope."""

from __future__ import annotations

import typing as tp

from elegy.pytree import Node, is_array


def summarise(module: Node) -> str:
    return type(module).__name__
