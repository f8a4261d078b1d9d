"""Runs what the documentation shows: README.md, docs/**/*.md and every docstring of the package.

A Markdown file is one program. Its ```` ```python ```` blocks run from top to bottom in one
namespace, which is empty at the start, as a reader would paste them. A docstring is a program too,
which has `elegy`, `jax`, `jnp` and `np` to begin with; it may also hold `>>>` examples.

A statement that must fail, or warn, says so in a comment on one of its lines. The words after the
colon are optional and must be a part of the message:

    layer.w = w  # raises FrozenModuleError: set_parameters
    old(x)  # warns DeprecationWarning

A block below a line `<!-- skip: the reason -->` does not run.
"""

import ast
import contextlib
import doctest
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("default_promotion")

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^\s*(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
SKIP = re.compile(r"^\s*<!--\s*skip:\s*\S.*-->\s*$")
EXPECTATION = re.compile(r"#\s*(?P<verb>raises|warns)\s+(?P<name>\w+)(?::\s*(?P<part>.*\S))?")


class Block(NamedTuple):
    """Python code of a document, and the number of the line before it."""

    code: str
    offset: int


class Expectation(NamedTuple):
    verb: str
    name: str
    part: str


class Docstring(NamedTuple):
    """A docstring of the package as it stands in its file, quotes included in the first line."""

    path: Path
    name: str
    text: str
    line: int


def read_blocks(text: str) -> Iterator[Block]:
    """The ```` ```python ```` blocks of a text that are not skipped."""
    lines = text.splitlines()
    ticks, language, start, above = "", "", 0, ""
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if not ticks and fence:
            ticks, language, start = fence["ticks"], fence["language"], number + 1
        elif ticks and line.strip() == ticks:
            if language in ("python", "py") and not SKIP.match(above):
                yield Block(textwrap.dedent("\n".join(lines[start:number])), start)
            ticks = ""
        if not ticks and line.strip():
            above = line
    if ticks:
        raise ValueError(f"the block that begins on line {start} has no end")


def read_expectations(block: Block) -> dict[int, Expectation]:
    """What the comments of a block announce, by line of the block."""
    expectations = {}
    for token in tokenize.generate_tokens(io.StringIO(block.code).readline):
        if token.type == tokenize.COMMENT and (match := EXPECTATION.match(token.string)):
            verb, name, part = match.group("verb", "name", "part")
            expectations[token.start[0]] = Expectation(verb, name, part or "")
    return expectations


def message_of(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@contextlib.contextmanager
def expect(expectation: Expectation, where: str) -> Iterator[None]:
    """Fails unless the code inside raises, or warns of, what was announced."""
    __tracebackhide__ = True
    verb, name, part = expectation
    if verb == "raises":
        with pytest.raises(Exception) as raised:  # noqa: B017, PT011
            yield
        found = [raised.value]
    else:
        with pytest.warns() as warned:
            yield
        found = [warning.message for warning in warned if isinstance(warning.message, Warning)]
    for error in found:
        if name in [cls.__name__ for cls in type(error).__mro__] and part in message_of(error):
            return
    shown = "\n".join(f"{type(error).__name__}: {message_of(error)}" for error in found)
    pytest.fail(f"{where}: {verb} {name}: {part}\nwas announced, but this came:\n{shown}", False)


def run_block(block: Block, path: Path, namespace: dict[str, object]) -> None:
    """Runs a block statement by statement; tracebacks show the lines of the document."""
    expectations = read_expectations(block)
    tree = ast.parse(block.code, filename=str(path))
    for statement in tree.body:
        lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        announced = [expectations.pop(line) for line in lines if line in expectations]
        where = f"{path}:{statement.lineno + block.offset}"
        ast.increment_lineno(statement, block.offset)
        code = compile(ast.Module([statement], []), str(path), "exec", dont_inherit=True)
        with contextlib.ExitStack() as stack:
            for expectation in announced:
                stack.enter_context(expect(expectation, where))
            exec(code, namespace)
    assert not expectations, f"{path}: a comment that stands on no statement: {expectations}"


def run_doctest(docstring: Docstring, namespace: dict[str, object]) -> None:
    """Runs the `>>>` examples of a docstring."""
    # A closing fence would be read as a line of the output.
    text = re.sub(r"(?m)^\s*(```|~~~).*$", "", docstring.text)
    test = doctest.DocTestParser().get_doctest(text, namespace, docstring.name, str(docstring.path), docstring.line - 1)
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=report.append, clear_globs=False)
    if report:
        pytest.fail("".join(report), pytrace=False)


def read_docstrings(path: Path) -> Iterator[Docstring]:
    """The docstrings of a file, from its source: decorators and re-exports hide none of them."""

    def visit(node: ast.AST, name: str) -> Iterator[Docstring]:
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and (text := ast.get_docstring(node, clean=False)):
            assert isinstance(node.body[0], ast.Expr)
            yield Docstring(path, name, text, node.body[0].lineno)
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}" if isinstance(child, kinds[1:]) else name
            yield from visit(child, inner)

    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    yield from visit(ast.parse(path.read_text(encoding="utf-8")), name)


def has_example(docstring: Docstring) -> bool:
    return ">>> " in docstring.text or any(read_blocks(docstring.text))


MARKDOWN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCSTRINGS = [
    docstring
    for path in sorted((ROOT / "elegy").rglob("*.py"))
    for docstring in read_docstrings(path)
    if has_example(docstring)
]


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """The names of a new module, which dataclasses and pickle can find, in an empty folder."""
    module = types.ModuleType("documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    return module.__dict__


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_markdown(path: Path, namespace: dict[str, object]) -> None:
    for block in read_blocks(path.read_text(encoding="utf-8")):
        run_block(block, path, namespace)


def test_the_guide_to_devices_on_automatic_axes(namespace: dict[str, object]) -> None:
    path = ROOT / "docs" / "guides" / "devices.md"
    text = path.read_text(encoding="utf-8")
    assert text.count("AxisType.Explicit, AxisType.Explicit") == 1
    for block in read_blocks(text.replace("AxisType.Explicit, AxisType.Explicit", "AxisType.Auto, AxisType.Auto")):
        run_block(block, path, namespace)


@pytest.mark.parametrize("docstring", DOCSTRINGS, ids=lambda docstring: docstring.name)
def test_docstring(docstring: Docstring, namespace: dict[str, object]) -> None:
    import elegy

    namespace.update(elegy=elegy, jax=jax, jnp=jnp, np=np)
    for block in read_blocks(docstring.text):
        if not block.code.lstrip().startswith(">>>"):
            offset = docstring.line - 1 + block.offset
            run_block(Block(block.code, offset), docstring.path, namespace)
    run_doctest(docstring, namespace)


def reference_entries() -> list[str]:
    """What the pages of the reference show: the names after `:::`."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    return [name for page in pages for name in re.findall(r"(?m)^::: (\S+)$", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("entry", reference_entries())
def test_an_entry_of_the_reference_is_what_it_says(entry: str) -> None:
    shown = pkgutil.resolve_name(entry)  # takes a submodule for a function of the same name, as the site does
    assert not inspect.ismodule(shown)
    home = getattr(shown, "__module__", None)
    if home is not None and home.endswith(f".{shown.__name__}"):
        # A re-export such as elegy.jit would show the submodule elegy.transforms.jit.
        assert entry == f"{home}.{shown.__name__}"


def test_the_reference_shows_each_public_object_once() -> None:
    import elegy

    shown = [id(pkgutil.resolve_name(entry)) for entry in reference_entries()]
    packages = elegy.data, elegy.nn, elegy.losses, elegy.metrics, elegy.initializers, elegy.model
    named = [(f"elegy.{name}", getattr(elegy, name)) for name in elegy.__all__]
    for package in packages:
        named += [(f"{package.__name__}.{name}", value) for name, value in vars(package).items() if name[0] != "_"]
    public = {
        name: value
        for name, value in named
        if not inspect.ismodule(value) and getattr(value, "__module__", "").startswith("elegy.")
    }
    assert {name: shown.count(id(value)) for name, value in public.items() if shown.count(id(value)) != 1} == {}
    assert len(shown) == len(set(shown))


def run_text(text: str, namespace: dict[str, object]) -> None:
    for block in read_blocks(textwrap.dedent(text)):
        run_block(block, Path("page.md"), namespace)


def test_blocks_of_a_page_share_their_names(namespace: dict[str, object]) -> None:
    text = """
    ```python
    x = 1
    ```

    !!! note
        ```python hl_lines="1"
        y = x + 1
        ```

    ```text
    not Python
    ```

    <!-- skip: needs a printer -->
    ```python
    y = 3
    ```
    """
    run_text(text, namespace)
    assert namespace["y"] == 2


def test_an_error_points_into_the_page(namespace: dict[str, object]) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run_text("\n\n```python\nx = 0\n1 / x\n```\n", namespace)
    last = raised.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 5)


@pytest.mark.parametrize(
    "statement",
    [
        "1 / 0  # raises ZeroDivisionError",
        "1 / 0  # raises ArithmeticError: by zero",
        "int(  # raises ValueError: invalid literal\n    'x'\n)",
        "import warnings; w = warnings.warn\nw('old', UserWarning)  # warns UserWarning: old",
    ],
    ids=["error", "base class and message", "several lines", "warning"],
)
def test_an_announced_failure(statement: str, namespace: dict[str, object]) -> None:
    run_text(f"```python\n{statement}\n```", namespace)


@pytest.mark.parametrize(
    "statement",
    [
        "1 / 1  # raises ZeroDivisionError",
        "1 / 0  # raises ValueError",
        "1 / 0  # raises ZeroDivisionError: by one",
        "1 / 1  # warns UserWarning",
    ],
    ids=["no error", "another error", "another message", "no warning"],
)
def test_an_announced_failure_that_does_not_come(statement: str, namespace: dict[str, object]) -> None:
    with pytest.raises(pytest.fail.Exception):
        run_text(f"```python\n{statement}\n```", namespace)


def test_an_announcement_that_stands_on_no_statement(namespace: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match="no statement"):
        run_text("```python\nx = 1\n# raises ValueError\n```", namespace)
