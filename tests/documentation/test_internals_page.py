"""Files of the package import those that the table of `docs/internals.md` has above them, and no others."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs/internals.md").read_text()
ORDER = re.findall(r"^\| `(\w+)` \|", PAGE[PAGE.index("## The files") :], re.MULTILINE)
MOST_WORDS = 20


def part_of(path: pathlib.Path) -> str:
    """The row of the table to which a file belongs."""
    return path.relative_to(ROOT / "elegy").parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """The files of the package that code imports, whenever it does; what only a type checker sees does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from imports(other)
        elif isinstance(node, ast.ImportFrom) and node.module == "elegy":
            yield from (f"elegy.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("elegy."):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("elegy."))
        else:
            yield from imports(node)


def test_the_table_has_every_file_once():
    found = {part_of(path) for path in (ROOT / "elegy").rglob("*.py")} - {"__init__"}
    assert sorted(ORDER) == sorted(found)


@pytest.mark.parametrize("part", ORDER)
def test_imports_point_up(part):
    above = {*ORDER[: ORDER.index(part)], part}
    for path in (ROOT / "elegy").rglob("*.py"):
        if part_of(path) == part:
            assert {name.split(".")[1] for name in imports(ast.parse(path.read_text()))} <= above, path


def test_no_file_of_a_folder_imports_in_a_circle():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "elegy").rglob("*.py")}
    edges = {name: {*imports(ast.parse(path.read_text()))} for name, path in files.items() if name.count(".") > 1}
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges


def test_the_glossary_is_short():
    glossary = PAGE[PAGE.index("## Glossary") : PAGE.index("## The files")]
    assert len(re.findall(r"^\| (?!word|---)", glossary, re.MULTILINE)) <= MOST_WORDS
