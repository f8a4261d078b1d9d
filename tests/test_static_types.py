"""That a static checker understands code which uses the library: basedpyright on `typed_code.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("basedpyright")

ROOT = Path(__file__).parent.parent
CODE = Path(__file__).parent / "typed_code.py"


def problems(code: Path) -> list[str]:
    """What the checker finds, as `line: rule`."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(code)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, run.stdout + run.stderr
    lines = code.read_text().splitlines()
    return [
        f"{lines[found['range']['start']['line']].strip()}: {found['rule']}" for found in report["generalDiagnostics"]
    ]


def test_code_of_users_has_the_types_that_it_says():
    assert problems(CODE) == []


def test_the_checker_would_notice(tmp_path: Path):
    code = CODE.read_text()
    for right, wrong in {
        "assert_type(scale.apply(x), tuple[Array, Scale])": "assert_type(scale.apply(x), Scale)",
        "scale()  # pyright: ignore[reportCallIssue]": "scale()",
        'elegy.select(scale, "w").frozen()': 'elegy.select(scale, "w").freeze()',
    }.items():
        assert code.count(f"    {right}") == 1
        code = code.replace(f"    {right}", f"    {wrong}")
    (tmp_path / "wrong.py").write_text(code)
    assert sorted(problems(tmp_path / "wrong.py")) == [
        "assert_type(scale.apply(x), Scale): reportAssertTypeFailure",
        'elegy.select(scale, "w").freeze()  # pyright: ignore[reportAttributeAccessIssue]: '
        "reportUnnecessaryTypeIgnoreComment",
        "scale(): reportCallIssue",
    ]
