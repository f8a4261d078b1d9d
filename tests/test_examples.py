"""The examples, run as a newcomer runs them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_digits(tmp_path: Path) -> None:
    script = shutil.copy(EXAMPLES / "digits.py", tmp_path)  # it writes beside itself
    command = [sys.executable, "-W", "error", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"(?m)^Epoch \d+/25  .*loss: .*accuracy: .*val_accuracy: ", run.stdout)) == 25
    accuracy = re.search(r"(?m)^held-out accuracy: (0\.\d+|1\.0+)$", run.stdout)
    assert accuracy and float(accuracy[1]) > 0.96
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
