"""Tracebacks about the code of the user: the frames of this package are taken out of them, as JAX takes out its own.

A frame of the package says nothing that the message does not say, and there are several of them for each module and
transform. The layers, losses and metrics stay, since they are what a user would write too. All frames stay where
`jax_traceback_filtering` is "off".
"""

from __future__ import annotations

import os
import types
import typing as tp

import jax

from elegy.errors import ElegyError
from elegy.state import state

_HOME = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_SHOWN = tuple(os.path.join(_HOME, room, "") for room in ("nn", "losses", "metrics"))


def shorten(error: BaseException) -> None:
    """Takes the frames of this package out of the traceback of an error, from the frame that caught it on.

    To be called where an error leaves the package, followed by a bare `raise`. Inside the call of a module it does
    nothing, since the outermost call will do it for the whole traceback.
    """
    if state.frames or tp.cast(tp.Any, jax.config).jax_traceback_filtering == "off":
        return
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        error_or_cause = pending.pop()
        if error_or_cause is None or id(error_or_cause) in seen:
            continue
        seen.add(id(error_or_cause))
        error_or_cause.__traceback__ = _filtered(error_or_cause)
        pending += [error_or_cause.__cause__, error_or_cause.__context__]


class shortened:  # noqa: N801
    """A block out of which errors leave the package. It is a class, since `contextlib.contextmanager` puts back the
    traceback that an error had."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception):
            shorten(error)


def _filtered(error: BaseException) -> types.TracebackType | None:
    entries: list[types.TracebackType] = []
    entry = error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    # The last frame stays unless the error is one of Elegy: the place where it was raised says what is wrong.
    last = len(entries) if isinstance(error, ElegyError) else len(entries) - 1
    kept = [entry for number, entry in enumerate(entries) if number == last or _is_shown(entry.tb_frame.f_code)]
    if len(kept) == len(entries):
        return error.__traceback__
    traceback: types.TracebackType | None = None
    for entry in reversed(kept):
        traceback = types.TracebackType(traceback, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return traceback


def _is_shown(code: types.CodeType) -> bool:
    return not code.co_filename.startswith(_HOME) or code.co_filename.startswith(_SHOWN)
