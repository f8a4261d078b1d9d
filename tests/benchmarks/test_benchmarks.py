"""That `make bench` runs and prints every row. How fast anything is decides no test."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import line
from tests.benchmarks.timing import Budget, Ratio, Row, compare, difference, interleave, median_ratio, require_equal

ROOT = Path(__file__).parents[2]

RAW = "loop of `jax.jit`"
NNX = "loop of `flax.nnx.jit`"
CACHED = "loop of `flax.nnx.cached_partial`"
KERAS = "Keras `fit`"
DIFFERENCE = "small step: microseconds"

ROWS = [
    ("training step, 2 layers", "`elegy.jit`", "`jax.jit` of a list of arrays"),
    ("training step, 2 layers", "`jax.jit` of an Elegy module", "`jax.jit` of a list of arrays"),
    ("training step, 2 layers", "`equinox.filter_jit`", "`jax.jit` of a list of arrays"),
    ("training step, 2 layers", "`flax.nnx.jit`", "`jax.jit` of a list of arrays"),
    ("training step, 2 layers", "`elegy.jit`", "`equinox.filter_jit`"),
    ("training step, 2 layers", "`elegy.jit`", "`flax.nnx.jit`"),
    ("training step, 2 layers", "`jax.jit` of an Elegy module", "`equinox.filter_jit`"),
    ("flatten, 2 arrays, 2 static attributes", "`elegy.Module`", "`equinox.Module`"),
    ("unflatten, 2 arrays, 2 static attributes", "`elegy.Module`", "`equinox.Module`"),
    ("both, 2 arrays, 2 static attributes", "`elegy.Module`", "`equinox.Module`"),
    ("flatten, tree of 3", "`elegy.Module`", "`equinox.Module`"),
    ("unflatten, tree of 3", "`elegy.Module`", "`equinox.Module`"),
    ("both, tree of 3", "`elegy.Module`", "`equinox.Module`"),
    ("flatten, list of 2", "`elegy.Module`", "`equinox.Module`"),
    ("unflatten, list of 2", "`elegy.Module`", "`equinox.Module`"),
    ("both, list of 2", "`elegy.Module`", "`equinox.Module`"),
    *(
        (computation, "Elegy", peer)
        for computation in ("attribute read", "eager call of 2 modules that do nothing", "eager call of a dense layer")
        for peer in ("Equinox", "Flax NNX")
    ),
    ("trace of the gradient, 1-block transformer", "Elegy", "dict of arrays"),
    ("trace of the gradient, 1-block transformer", "Haiku", "dict of arrays"),
    ("trace of the gradient, 1-block transformer", "Flax Linen", "dict of arrays"),
    ("trace of the gradient, 1-block transformer", "Flax NNX", "dict of arrays"),
    ("trace of the gradient, 1-block transformer", "Equinox", "dict of arrays"),
    *(
        (f"{what}, 3 blocks", arm, "`jax.lax.scan` of a dict of arrays")
        for what in ("trace of the gradient", "compilation of the gradient")
        for arm in ("`elegy.nn.Stack`", "list of Elegy blocks", "Equinox, stacked and scanned", "`flax.nnx.scan`")
    ),
    ("trace of the gradient", "`elegy.nn.Stack` of 3", "`elegy.nn.Stack` of 2"),
    ("compilation of the gradient", "`elegy.nn.Stack` of 3", "`elegy.nn.Stack` of 2"),
    *(
        ("gradient, 3 blocks", arm, "`jax.lax.scan` of a dict of arrays")
        for arm in ("`elegy.nn.Stack`", "list of Elegy blocks", "Equinox, stacked and scanned", "`flax.nnx.scan`")
    ),
    *(
        ("compiled call", f"`elegy.{name}`", f"`jax` {name} of arrays")
        for name in ("vmap", "scan", "remat", "cond", "switch", "while_loop", "fori_loop")
    ),
    *(
        (f"{layer}, {what}", "Elegy", peer)
        for layer in (
            "convolution",
            "batch normalisation",
            "layer normalisation",
            "attention",
            "LSTM",
            "transformer, 2 layers",
        )
        for what in ("forward", "gradient")
        for peer in ("Flax NNX", "Equinox", "Keras")
    ),
    ("import", "`import elegy`", "`import jax, equinox, optax`"),
    *(("cold initialisation, 5 convolutions", "Elegy", peer) for peer in ("Flax NNX", "Equinox", "Keras")),
    *(("epoch of small steps", arm, RAW) for arm in ("`Model.fit`", NNX, CACHED, KERAS)),
    *(("epoch of small steps", "`Model.fit`", peer) for peer in (NNX, CACHED, KERAS)),
    *((f"{DIFFERENCE} more", arm, RAW) for arm in ("`Model.fit`", NNX, CACHED, KERAS)),
    ("epoch of 2 loops of 50 small steps", "`Model.fit(steps_per_execution=50)`", "loop of `jax.lax.scan`"),
    *(
        (f"epoch, {network}", "`Model.fit`", peer)
        for network in ("dense network, 784-128-10", "convolutional network")
        for peer in (RAW, NNX, CACHED, KERAS)
    ),
    *(
        (what, arm, reference)
        for what in ("start of Python to the end of the first step", "peak of memory, 4.2 million parameters")
        for arm, reference in (
            ("Elegy", RAW),
            ("Flax NNX", RAW),
            ("Keras", RAW),
            ("Elegy", "Flax NNX"),
            ("Elegy", "Keras"),
        )
    ),
]
OPTIONAL = {"`flax.nnx.jit`", "Haiku", "Flax Linen", "Flax NNX", "`flax.nnx.scan`", "Keras", NNX, CACHED, KERAS}


@pytest.mark.slow
def test_a_quick_run_prints_every_row():
    # A process of its own: the annotations of the package are checked in this one.
    command = [sys.executable, "-m", "tests.benchmarks", "--quick"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    table = [line for line in run.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    of_processes = ("start of Python", "peak of memory")
    assert [tuple(row[:3]) for row in cells] == [row for row in ROWS if not row[0].startswith(of_processes)]
    for computation, arm, reference, ratio, _ in cells:
        if ratio == "not installed":
            assert {arm, reference} & OPTIONAL
        else:
            assert math.isfinite(float(ratio))
            assert float(ratio) > 0 or computation.startswith(DIFFERENCE)


def test_the_ratio_is_that_of_each_round():
    # One slow round slows both arms down, and leaves the ratio as it is.
    assert median_ratio([2.0, 200.0, 3.0], [1.0, 100.0, 1.0]) == Ratio(2.0, 2.0, 2.5)


def test_one_round_has_no_quartiles_of_its_own():
    assert median_ratio([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


def test_a_difference_is_that_of_each_round():
    (row,) = difference("step", [("ours", "floor")], {"ours": [3.0, 103.0, 4.0], "floor": [1.0, 100.0, 1.0]}, 10)
    assert row == Row("step", "ours", "floor", Ratio(30.0, 25.0, 30.0))


def test_every_round_times_every_arm():
    order = []
    arms = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = interleave(arms, Budget(rounds=2, seconds=0.0), prepare=lambda arm: order.append("prepared"))
    assert order[-8:] == ["prepared", "a", "prepared", "b", "prepared", "b", "prepared", "a"]
    assert [len(rounds) for rounds in times.values()] == [2, 2]


def test_arms_that_compute_something_else_are_refused():
    require_equal({"floor": [1.0, 2.0], "arm": [1.0, 2.0]})
    with pytest.raises(AssertionError, match="arm differs from floor"):
        require_equal({"floor": [1.0, 2.0], "arm": [1.0, 2.1]})


def test_a_missing_library_has_a_row_that_says_so():
    (row,) = compare("step", [("theirs", "floor")], {"floor": [1.0, 1.0]})
    assert line(row) == "| step | theirs | floor | not installed |  |"


def test_a_row_in_markdown():
    row = Row("step", "ours", "floor", Ratio(1.0, 0.05, 12.345))
    assert line(row) == "| step | ours | floor | 1.00 | 0.0500 to 12.3 |"
