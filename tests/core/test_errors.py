"""Every error class has an example that fails and its fix, and every message says where they are."""

import inspect
import pickle
import re
import traceback
import warnings
from pathlib import Path

import pytest

import elegy
from elegy.errors import ElegyError, ElegyWarning, FrozenModuleError, LostUpdateWarning

ROOT = Path(__file__).parents[2]
BASES = [ElegyError, ElegyWarning]
CLASSES = [
    value
    for value in vars(elegy.errors).values()
    if isinstance(value, type) and value.__module__ == elegy.errors.__name__ and value not in BASES
]

of_each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def sections():
    """The text of each section of the page, by its heading."""
    _, *parts = re.split(r"(?m)^## (\w+)$", (ROOT / elegy.errors.PAGE).read_text(encoding="utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


@of_each_class
def test_each_class_is_of_the_family(cls):
    assert issubclass(cls, tuple(BASES))
    builtin = [base for base in cls.__mro__ if base.__module__ == "builtins"]
    assert builtin[0] not in (Exception, Warning), "derive it from the built-in class that fits, too"


@of_each_class
def test_each_class_has_a_section_with_code_that_fails_and_its_mend(cls):
    section = sections()[cls.__name__]
    verb = "warns" if issubclass(cls, Warning) else "raises"
    failing = re.search(rf"(?m)^.*# {verb} {cls.__name__}\b", section)
    assert failing, f"docs/errors.md: no statement of the section {cls.__name__} {verb} it"
    assert re.search(r"Fixed.*?```python\n", section[failing.end() :], re.DOTALL), "no fixed code after it"


def test_the_page_has_no_section_of_a_class_that_is_gone():
    assert set(sections()) == {cls.__name__ for cls in [*BASES, *CLASSES]}


@of_each_class
def test_each_docstring_shows_code_that_fails_and_its_mend(cls):
    failing, fixed = inspect.getdoc(cls).split("Fixed")
    assert "Failing:" in failing and "```python" in failing and "```python" in fixed


@of_each_class
def test_the_guide_lists_each_class(cls):
    guide = (ROOT / "docs/guides/module-system.md").read_text(encoding="utf-8")
    assert f"| [`{cls.__name__}`](../errors.md#{cls.__name__.lower()}) |" in guide


@of_each_class
def test_the_link_of_each_class_leads_to_its_section(cls):
    error = cls("what happened")
    shown = str(error) if isinstance(error, Warning) else error.__notes__[0]
    page, anchor = re.search(r"See (\S+)#(\w+), or help\(elegy\.errors\.\w+\)", shown).groups()
    assert (ROOT / page).exists()
    assert anchor in [heading.lower() for heading in sections()]


def test_an_error_shows_its_link_below_the_message():
    with pytest.raises(FrozenModuleError) as raised:
        elegy.nn.Linear(3).width = 4
    assert str(raised.value).startswith("linear.width cannot be assigned") and "docs/" not in str(raised.value)
    last = traceback.format_exception(raised.value)[-1]
    assert "See docs/errors.md#frozenmoduleerror, or help(elegy.errors.FrozenModuleError)" in last


def test_an_error_keeps_one_link_through_pickle():
    error = pickle.loads(pickle.dumps(FrozenModuleError("a.b cannot be assigned")))
    assert str(error) == "a.b cannot be assigned" and len(error.__notes__) == 1


def test_a_class_of_somebody_else_links_to_its_base():
    class Mine(FrozenModuleError):
        pass

    class MyWarning(LostUpdateWarning):
        pass

    assert "#frozenmoduleerror" in Mine("x").__notes__[0]
    assert str(MyWarning("x")).startswith("x\n  See docs/errors.md#lostupdatewarning")


def test_one_filter_makes_all_warnings_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ElegyWarning)
        with pytest.raises(LostUpdateWarning, match="x\n  See docs/"):
            warnings.warn(LostUpdateWarning("x"), stacklevel=1)
