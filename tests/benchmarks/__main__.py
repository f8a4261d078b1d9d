"""Prints a Markdown table of ratios.

python -m tests.benchmarks            all of it, in a few minutes
python -m tests.benchmarks --quick    every row from very few measurements: that it runs, not how fast
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys

import jax

from tests.benchmarks import (
    cold_initialisation,
    eager,
    first_step,
    fit,
    flatten,
    import_time,
    layers,
    lifted,
    stack,
    trace_time,
    training_step,
)
from tests.benchmarks.timing import Row

LIBRARIES = ("jax", "jaxlib", "elegy", "equinox", "optax", "flax", "dm-haiku", "keras")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Prints ratios of times and of memory."
    )
    parser.add_argument("--quick", action="store_true", help="very few measurements")
    quick = parser.parse_args().quick
    print(f"{versions()}; {jax.default_backend()}.\n")
    print("| Computation | Arm | Relative to | Ratio | Quartiles |")
    print("| --- | --- | --- | --- | --- |")
    for benchmark in (
        training_step,
        flatten,
        eager,
        trace_time,
        stack,
        lifted,
        layers,
        import_time,
        cold_initialisation,
        fit,
        first_step,
    ):
        if quick and benchmark is first_step:
            continue  # it is about processes, each of which takes as long as in a whole run
        print(f"running {benchmark.__name__}", file=sys.stderr)
        for row in benchmark.rows(quick):
            print(line(row), flush=True)


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for library in LIBRARIES:
        try:
            found.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{library} not installed")
    return ", ".join(found)


def line(row: Row) -> str:
    """One row of the table, in Markdown."""
    ratio, quartiles = "not installed", ""
    if row.ratio is not None:
        ratio, quartiles = f"{row.ratio.median:#.3g}", f"{row.ratio.lower:#.3g} to {row.ratio.upper:#.3g}"
    return f"| {row.computation} | {row.arm} | {row.reference} | {ratio} | {quartiles} |"


if __name__ == "__main__":
    main()
