"""Contexts of MLIR that serve for several programs in turn, as those of JAX do from 0.12 on.

Before that each program is lowered in a new one, and to make one, and to fill it again with the types that all programs
have, was a fifth of what the tests took.
"""

import threading
from collections.abc import Callable
from typing import Any

from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir

PROGRAMS = 100  # after which a context is dropped, with all that it has made


class Contexts(threading.local):
    """What takes the place of `make_ir_context`. Each thread has its own."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._context: Any = None
        self._left = 0

    def __call__(self) -> Any:
        if ir.Context.current is not None:  # a program is lowered while another one is
            return self._make()
        if self._left == 0:
            self._context, self._left = self._make(), PROGRAMS
        self._left -= 1
        return self._context


if not hasattr(mlir, "_thread_local_context"):
    mlir.make_ir_context = Contexts(mlir.make_ir_context)
