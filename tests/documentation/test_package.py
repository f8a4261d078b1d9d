"""What is installed: the public names, the version, and the contents of the wheel."""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import elegy

ROOT = Path(__file__).parents[2]


def test_every_public_name_exists() -> None:
    assert len(elegy.__all__) == len(set(elegy.__all__))
    for name in elegy.__all__:
        assert hasattr(elegy, name), name


def test_the_version_is_that_of_the_installed_package() -> None:
    assert elegy.__version__ == importlib.metadata.version("elegy")


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"elegy"}
    assert "elegy/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    in_source = {str(path.relative_to(ROOT)) for path in (ROOT / "elegy").rglob("*.py")}
    assert in_source <= set(names)
