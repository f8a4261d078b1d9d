"""That a static checker understands code which uses the library: basedpyright on `typed_code.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("basedpyright")

ROOT = Path(__file__).parents[2]
CODE = Path(__file__).parent / "typed_code.py"


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[str]]:
    """What the checker finds in the code of users, and in `wrong.py` which it is made into, as `line: rule`."""
    wrong = tmp_path_factory.mktemp("code") / "wrong.py"
    wrong.write_text(spoiled(CODE.read_text()))
    files = [CODE, wrong]
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 2, run.stdout + run.stderr
    found: dict[Path, list[str]] = {code: [] for code in files}
    for problem in report["generalDiagnostics"]:
        code = Path(problem["file"])
        line = code.read_text().splitlines()[problem["range"]["start"]["line"]]
        found[code].append(f"{line.strip()}: {problem['rule']}")
    return found


def spoiled(code: str) -> str:
    """The code of users with three mistakes."""
    for right, wrong in {
        "assert_type(scale.apply(x), tuple[Array, Scale])": "assert_type(scale.apply(x), Scale)",
        "scale()  # pyright: ignore[reportCallIssue]": "scale()",
        'elegy.select(scale, "w").frozen()': 'elegy.select(scale, "w").freeze()',
    }.items():
        assert code.count(f"    {right}") == 1
        code = code.replace(f"    {right}", f"    {wrong}")
    return code


def test_code_of_users_has_the_types_that_it_says(problems: dict[Path, list[str]]):
    assert problems[CODE] == []


def test_the_checker_would_notice(problems: dict[Path, list[str]]):
    (wrong,) = (found for code, found in problems.items() if code != CODE)
    assert sorted(wrong) == [
        "assert_type(scale.apply(x), Scale): reportAssertTypeFailure",
        'elegy.select(scale, "w").freeze()  # pyright: ignore[reportAttributeAccessIssue]: '
        "reportUnnecessaryTypeIgnoreComment",
        "scale(): reportCallIssue",
    ]
