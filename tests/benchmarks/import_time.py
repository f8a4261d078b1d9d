"""`import elegy` in a fresh process, against the import of what it builds on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.timing import Row, compare

ELEGY = "`import elegy`"
PARTS = "`import jax, equinox, optax`"

PROGRAM = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def rows(quick: bool) -> Iterator[Row]:
    times: dict[str, list[float]] = {ELEGY: [], PARTS: []}
    for turn in range(1 if quick else 9):
        for statement in list(times)[:: -1 if turn % 2 else 1]:
            times[statement].append(import_time(statement.strip("`")))
    yield from compare("import", [(ELEGY, PARTS)], times)


def import_time(statement: str) -> float:
    """The seconds that an import takes in a process of its own, without the start of Python."""
    command = [sys.executable, "-c", PROGRAM.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
