"""What is kept for one module object and is no part of its value; and the protocol of objects that have a `call`."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable

from elegy.leaves import Node, set_compiled

Own_co = tp.TypeVar("Own_co", covariant=True)
Arguments = tp.ParamSpec("Arguments")
Outputs_co = tp.TypeVar("Outputs_co", covariant=True)


@tp.runtime_checkable
class HasCall(tp.Protocol[Arguments, Outputs_co, Own_co]):
    """Lets a static checker find the arguments and outputs of a module in its `call`, and its own class."""

    def call(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs_co: ...

    def copy(self) -> Own_co: ...


def compiled(module: Node, name: tp.Any, compute: Callable[[], tp.Any]) -> tp.Any:
    """What `compute` gives, kept under a name for this very object: copies of the module compute anew."""
    known = getattr(module, "_elegy_compiled", None)
    if known is None:
        set_compiled(module, known := {})
    if name not in known:
        known[name] = compute()
    return known[name]
