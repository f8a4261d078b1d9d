"""The examples, run as a newcomer runs them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def output_of(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints, with warnings as errors."""
    script = shutil.copy(EXAMPLES / name, folder)  # some write beside themselves
    command = [sys.executable, "-W", "error", script, *arguments]
    # Those that compute more than they compile are faster as XLA is by itself.
    environment = {**os.environ, "XLA_FLAGS": ""} if name in ("digits.py", "gpt.py", "ppo.py") else None
    run = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=folder, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def numbers_after(text: str, output: str) -> list[float]:
    """The numbers on the line that begins with a text."""
    (line,) = re.findall(rf"(?m)^{re.escape(text)}(.*)$", output)
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


def test_digits(tmp_path: Path) -> None:
    output = output_of("digits.py", tmp_path)
    assert len(re.findall(r"(?m)^Epoch \d+/25  .*loss: .*accuracy: .*val_accuracy: ", output)) == 25
    accuracy = re.search(r"(?m)^held-out accuracy: (0\.\d+|1\.0+)$", output)
    assert accuracy and float(accuracy[1]) > 0.96
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_gpt(tmp_path: Path) -> None:
    output = output_of("gpt.py", tmp_path, "60")
    (first, first_held_out), (last, last_held_out) = numbers_after("step 1:", output), numbers_after("step 50:", output)
    assert first_held_out > 4 and last_held_out < 3.2 and last < first
    beginning, written = output.partition("The statement ")[1:]
    assert beginning and len(written.rstrip("\n")) > 300
    assert (tmp_path / "gpt.png").read_bytes().startswith(b"\x89PNG")


def test_neural_ode(tmp_path: Path) -> None:
    pytest.importorskip("diffrax")
    output = output_of("neural_ode.py", tmp_path)
    (first,), (last,) = numbers_after("step 1:", output), numbers_after("step 800:", output)
    assert last < 0.01 * first
    swing, error = numbers_after("six seconds from a new start", output)
    assert error < 0.1 * swing


def test_bayesian_regression(tmp_path: Path) -> None:
    pytest.importorskip("blackjax")
    output = output_of("bayesian_regression.py", tmp_path)
    for name in ("x", "x^2", "x^3", "1"):
        mean, deviation, sampled_mean, sampled_deviation = numbers_after(f"{name} ", output)
        assert abs(sampled_mean - mean) < 0.25 * deviation
        assert abs(sampled_deviation - deviation) < 0.2 * deviation
    inside, outside = (numbers_after(f"prediction at {at}:", output)[1] for at in (0.0, 1.5))
    assert outside > 3 * inside


def test_least_squares(tmp_path: Path) -> None:
    pytest.importorskip("optimistix")
    output = output_of("least_squares.py", tmp_path)
    (start,), (fitted,) = numbers_after("root mean square error", output), numbers_after("Levenberg-Marquardt", output)
    (by_adam,) = numbers_after("Adam", output)
    assert fitted < 0.1 * by_adam < 0.1 * start
    head, closed = numbers_after("the last layer alone", output)
    assert abs(head - closed) < 0.1 * closed


def test_lora(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "lora.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    base, adapted, loaded = (
        re.search(rf"(?m)^{name}: .*lying (\d\.\d+)", run.stdout) for name in ("base", "adapted", "loaded")
    )
    assert base and adapted and loaded
    assert float(base[1]) < 0.3 and float(adapted[1]) > 0.93 and adapted[1] == loaded[1]
    assert "trained: 4,392 of 85,002 parameters" in run.stdout
    sizes = [int(size.replace(",", "")) for size in re.findall(r"in ([\d,]+) bytes", run.stdout)]
    assert sizes[1] < sizes[0] / 15


def test_data_parallel(tmp_path: Path) -> None:
    output = output_of("data_parallel.py", tmp_path)
    first, last, first_alone, last_alone = numbers_after("eight devices: loss", output)
    assert last < 0.05 * first and abs(first - first_alone) < 1e-3 and abs(last - last_alone) < 1e-3
    assert "the weights lie on 8 devices, replicated: True" in output
    together, alone = numbers_after("held-out accuracy:", output)
    assert together > 0.97 and abs(together - alone) < 0.01
    assert (tmp_path / "data_parallel.png").read_bytes().startswith(b"\x89PNG")


def test_ppo(tmp_path: Path) -> None:
    output = output_of("ppo.py", tmp_path)
    first, last = numbers_after("after 2,048 steps", output), numbers_after("after 245,760 steps", output)
    assert len(first) == 3 and max(first) < 60 and min(last) > 300
    assert min(numbers_after("by the best actions", output)) > 450
    assert (tmp_path / "ppo.png").read_bytes().startswith(b"\x89PNG")
