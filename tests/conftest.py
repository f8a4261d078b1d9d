"""Settings of every test: eight CPU devices, JAX's strict modes, a fresh seed.

Warnings are errors and the package's annotations are checked on every call: see pyproject.toml.
Nothing here may import `elegy` at the top, since the annotation checker must be in place first.
"""

import gc
import importlib.metadata
import os
import re
import tempfile

# All are read once, at the first import of matplotlib and Keras and the first use of a device. Tests compile much and
# compute little, so XLA is told to spend less on optimising: that makes the suite several times faster. Of the pinned
# versions, 0.10 has two kinds of code generators, of which the older compiles twice as fast; the others refuse that
# option.
os.environ["MPLBACKEND"] = "Agg"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["KERAS_HOME"] = os.path.join(tempfile.gettempdir(), "keras")  # it writes its settings there
# XLA's CPU has as many threads as this says, and at least one for each device. A run on eight devices takes one for
# each until all have met; with none to spare, a copy for which the last of them waits could wait behind them for ever.
os.environ["NPROC"] = "32"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
    ]
)

from collections.abc import Iterator

import hypothesis
import jax
import jaxtyping
import pytest

import tests.annotations
import tests.contexts  # noqa: F401

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Nearly half of the programs that tests compile were compiled before, by functions that are gone or before the caches
# were dropped. Each process of a run has a folder of its own, since JAX does not lock what it writes.
compiled_programs = tempfile.TemporaryDirectory(prefix="elegy-tests-")
jax.config.update("jax_compilation_cache_dir", compiled_programs.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A first call compiles, so that no deadline is right; the same examples are tried on each run.
# Shrinking a failure compiles hundreds of programs, for which a run of all checks has no time.
phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
if "CI" not in os.environ:
    phases.append(hypothesis.Phase.shrink)
hypothesis.settings.register_profile(
    "elegy", deadline=None, derandomize=True, database=None, max_examples=50, print_blob=True, phases=phases
)
hypothesis.settings.load_profile("elegy")

# A trace makes many objects and little garbage. Where a test wants garbage gone, it collects it.
gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Starts each test from the same seed and in the default mode, whatever ran before it."""
    import elegy

    if not hasattr(elegy, "set_training"):
        yield
        return
    training = elegy.training()
    elegy.set_rng(elegy.RNG(42))
    yield
    elegy.set_training(training)


@pytest.fixture(autouse=True, scope="module")
def small_caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drops what the tests of a file leave behind.

    Compiled programs would take gigabytes. Classes of modules, which JAX's registry keeps for good, are thousands in
    the end; each time a checker is switched on, all classes that it knows are looked through, and each time a test
    collects garbage, all that there is. So a file sees the classes of its own and of the package, and what outlives it
    is not searched for garbage again.
    """
    from elegy import checks

    classes, before = checks.classes, set(checks.classes)
    of_other_files = {cls for cls in before if re.match(r"tests\.(\w+\.)*test_", cls.__module__)}
    of_other_files -= {cls for cls in before if cls.__module__ == request.module.__name__}
    classes.difference_update(of_other_files)
    yield
    jax.clear_caches()
    classes.difference_update({cls for cls in classes if cls not in before and cls.__module__.split(".")[0] != "elegy"})
    classes.update(of_other_files)
    gc.collect()
    gc.freeze()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leaves the annotations of the package unchecked, as for a user without a type checker.

    Some tests ask for it to see the errors of the library itself, and others because the checks are a fifth of what
    they cost: families that run the same code once more, whose annotations other tests see with such arguments.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def no_checker_left_on() -> Iterator[None]:
    """Fails a test that leaves a type checker on, and switches it off."""
    from elegy.typechecking import switch

    yield
    left = switch._switched[:]
    switch._switched.clear()
    switch._switch()
    assert left == []


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails a test that lets a tracer escape. Not for all: it turns off caches and is slow."""
    with jax.checking_leaks():
        yield


@pytest.fixture
def default_promotion() -> Iterator[None]:
    """JAX as its users have it: dtypes and ranks are promoted without asking."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pytest_collection_finish() -> None:
    """Takes what was imported out of what is searched for garbage: many tests collect it, to see a module die."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    compiled_programs.cleanup()
