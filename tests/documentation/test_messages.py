"""The messages in docs/guides/messages.md are those that the libraries give.

`python -m tests.documentation.test_messages` makes every mistake again and writes what it gets into the page.

The code of a section of the page is the mistake in Elegy; below are the same mistakes in other libraries. All are made
in a process of its own, where the layers of Elegy are not checked but by `elegy.typechecker`, as for a user.
"""

import ast
import contextlib
import difflib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "messages.md"

HEADING = re.compile(r"^## (.*)$")
PYTHON = re.compile(r"^```python$")
MESSAGE = re.compile(r'^```text title="(.*)"$')
# What the last statement of the code of a section says of its message.
RAISES = re.compile(r"# raises (\w+)(, with a checker)?: (.*)$", re.MULTILINE)
# The page names the versions whose messages it shows.
VERSION = re.compile(r"\b(jax|flax|dm-haiku|equinox|optax|jaxtyping) (\d+(?:\.\d+)+)")
PACKAGES = {"Flax": "flax", "Haiku": "dm-haiku", "Equinox": "equinox", "Optax": "optax", "jaxtyping": "jaxtyping"}
OURS = ("Elegy", "Elegy, with a checker")

MOST_LINES = 4  # of a message of another library


class Block(NamedTuple):
    """A fenced block of the page: the heading above it, its title, or "python", and its lines."""

    heading: str
    title: str
    start: int
    end: int

    def text(self, page: str) -> str:
        return "\n".join(page.splitlines()[self.start : self.end])


def read_blocks(page: str) -> Iterator[Block]:
    heading, title, start = "", "", 0
    for number, line in enumerate(page.splitlines()):
        if match := HEADING.match(line):
            heading = match[1]
        elif line == "```" and title:
            yield Block(heading, title, start, number)
            title = ""
        elif PYTHON.match(line):
            title, start = "python", number + 1
        elif match := MESSAGE.match(line):
            title, start = match[1], number + 1


def versions(page: str) -> dict[str, str]:
    return {name: version for name, version in VERSION.findall(page)}


# ---------------------------------------------------------------------------------------------------------------------
# Making the mistakes
# ---------------------------------------------------------------------------------------------------------------------


def message(mistake: Callable[[], Any]) -> str:
    """What a mistake says: the class of the error, its message and its notes; or what comes out."""
    try:
        output = mistake()
    except Exception as error:
        return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    return f"no error: the output is {output.dtype}{list(output.shape)}"


def shortened(text: str) -> str:
    text = re.sub(r"__main__\.\w+\.<locals>\.", "", text)  # where this file defines the class
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], "[...]"])


def elegy(page: str) -> dict[str, dict[str, str]]:
    """The mistakes of the page itself: the last statement of the code of each section."""
    import beartype

    import elegy

    namespace: dict[str, Any] = {}
    found: dict[str, dict[str, str]] = {}
    for block in read_blocks(page):
        if block.title != "python":
            continue
        code = block.text(page)
        body = ast.parse(code).body
        last = body.pop() if block.heading and RAISES.search(code) else None
        exec(compile(ast.Module(body, []), "net.py", "exec"), namespace)
        if last is not None:
            mistake = compile(ast.Expression(last.value), "net.py", "eval")  # type: ignore[attr-defined]
            messages = [message(lambda mistake=mistake: eval(mistake, namespace))]
            with elegy.typechecker(beartype.beartype):
                messages.append(message(lambda mistake=mistake: eval(mistake, namespace)))
            found[block.heading] = dict(zip(OURS, dict.fromkeys(messages), strict=False))
    return found


def flax() -> dict[str, dict[str, Callable[[], Any]]]:
    import jax
    import jax.numpy as jnp
    from flax import linen, nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 8, rngs=rngs)
            self.output = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.output(jax.nn.relu(self.hidden(x)))

    class Attention(nnx.Module):
        def __call__(self, query, memory):
            return jnp.einsum("btf,bsf->bts", query, memory)

    class Dense(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, name="output")(x)

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x, deep):
            if deep:
                x = jax.nn.relu(linen.Dense(3)(x))
            return linen.Dense(2)(x)

    def conv():
        return nnx.Conv(1, 8, (3, 3), rngs=nnx.Rngs(0))

    def updated(values):
        net = Net(nnx.Rngs(0))
        nnx.update(net, values)
        return net(jnp.ones([4, 3]))

    def drift():
        block, x = Block(), jnp.ones([4, 3])
        return block.apply(block.init(jax.random.key(0), x, True), x, False)

    return {
        "An input of another size": {"Flax NNX": lambda: Net(nnx.Rngs(0))(jnp.ones([4, 5]))},
        "An image without a batch axis": {"Flax NNX": lambda: conv()(jnp.ones([28, 28, 1]))},
        "Rows of pixels for a convolution": {"Flax NNX": lambda: conv()(jnp.ones([4, 784]))},
        "Integers for floating-point numbers": {"Flax NNX": lambda: Net(nnx.Rngs(0))(jnp.ones([4, 3], jnp.uint8))},
        "Two inputs that do not match": {"Flax NNX": lambda: Attention()(jnp.ones([2, 5, 8]), jnp.ones([2, 7, 6]))},
        "A parameter before the first call": {"Flax Linen": lambda: Dense().output},
        "A restored weight of another shape": {"Flax NNX": lambda: updated({"hidden": {"kernel": jnp.ones([8, 3])}})},
        "A misspelt parameter": {"Flax NNX": lambda: updated({"hidden": {"weight": jnp.ones([3, 8])}})},
        "Layers that depend on the input": {"Flax Linen": drift},
    }


def haiku() -> dict[str, dict[str, Callable[[], Any]]]:
    import haiku as hk
    import jax
    import jax.numpy as jnp

    class Net(hk.Module):
        def __call__(self, x):
            x = jax.nn.relu(hk.Linear(8, name="hidden")(x))
            return hk.Linear(2, name="output")(x)

    def block(x, deep):
        if deep:
            x = jax.nn.relu(hk.Linear(3)(x))
        return hk.Linear(2)(x)

    net = hk.without_apply_rng(hk.transform(lambda x: Net()(x)))
    conv = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(8, 3)(x)))
    attention = hk.without_apply_rng(hk.transform(lambda query, memory: jnp.einsum("btf,bsf->bts", query, memory)))
    drift = hk.without_apply_rng(hk.transform(block))
    key, x = jax.random.key(0), jnp.ones([4, 3])

    def run(function, *args):
        return function.apply(function.init(key, *args), *args)

    def changed(old, new, value):
        params = net.init(key, x)
        params["net/hidden"].pop(old)
        params["net/hidden"][new] = value
        return net.apply(params, x)

    return {
        "An input of another size": {"Haiku": lambda: net.apply(net.init(key, x), jnp.ones([4, 5]))},
        "An image without a batch axis": {"Haiku": lambda: run(conv, jnp.ones([28, 28, 1]))},
        "Rows of pixels for a convolution": {"Haiku": lambda: run(conv, jnp.ones([4, 784]))},
        "Integers for floating-point numbers": {"Haiku": lambda: run(net, jnp.ones([4, 3], jnp.uint8))},
        "Two inputs that do not match": {"Haiku": lambda: run(attention, jnp.ones([2, 5, 8]), jnp.ones([2, 7, 6]))},
        "A parameter before the first call": {"Haiku": lambda: Net().output},
        "A restored weight of another shape": {"Haiku": lambda: changed("w", "w", jnp.ones([8, 3]))},
        "A misspelt parameter": {"Haiku": lambda: changed("w", "weight", jnp.ones([3, 8]))},
        "Layers that depend on the input": {"Haiku": lambda: drift.apply(drift.init(key, x, True), x, False)},
    }


def equinox() -> dict[str, dict[str, Callable[[], Any]]]:
    import beartype
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from jaxtyping import Array, Float, jaxtyped

    class Net(eqx.Module):
        hidden: eqx.nn.Linear
        output: eqx.nn.Linear

        def __init__(self, key):
            self.hidden = eqx.nn.Linear(3, 8, key=key)
            self.output = eqx.nn.Linear(8, 2, key=key)

        def __call__(self, x):
            return self.output(jax.nn.relu(self.hidden(x)))

    class Image(eqx.Module):
        net: Net

        @jaxtyped(typechecker=beartype.beartype)
        def __call__(self, x: Float[Array, "batch features"]):
            return jax.vmap(self.net)(x)

    class Attention(eqx.Module):
        def __call__(self, query, memory):
            return jnp.einsum("btf,bsf->bts", query, memory)

    class TypedAttention(eqx.Module):
        @jaxtyped(typechecker=beartype.beartype)
        def __call__(self, query: Float[Array, "batch time size"], memory: Float[Array, "batch steps size"]):
            return jnp.einsum("btf,bsf->bts", query, memory)

    net = Net(jax.random.key(0))
    conv = eqx.nn.Conv2d(1, 8, 3, key=jax.random.key(0))
    query, memory, integers = jnp.ones([2, 5, 8]), jnp.ones([2, 7, 6]), jnp.ones([4, 3], jnp.uint8)

    def restored():
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, eqx.tree_at(lambda net: net.hidden.weight, net, jnp.ones([3, 8])))
        file.seek(0)
        return eqx.tree_deserialise_leaves(file, net)

    return {
        "An input of another size": {"Equinox": lambda: jax.vmap(net)(jnp.ones([4, 5]))},
        "An image without a batch axis": {"Equinox": lambda: jax.vmap(conv)(jnp.ones([1, 28, 28]))},
        "Rows of pixels for a convolution": {"Equinox": lambda: jax.vmap(conv)(jnp.ones([4, 784]))},
        "Integers for floating-point numbers": {
            "Equinox": lambda: jax.vmap(net)(integers),
            "Equinox, with jaxtyping": lambda: Image(net)(integers),
        },
        "Two inputs that do not match": {
            "Equinox": lambda: Attention()(query, memory),
            "Equinox, with jaxtyping": lambda: TypedAttention()(query, memory),
        },
        "A restored weight of another shape": {"Equinox": restored},
        "A misspelt parameter": {"Equinox": lambda: eqx.tree_at(lambda net: net.hidden.wieght, net, jnp.ones([8, 3]))},
    }


def optax() -> dict[str, dict[str, Callable[[], Any]]]:
    import jax.numpy as jnp
    import optax

    def loss():
        return optax.squared_error(jnp.ones([4, 1]), jnp.ones([4])).mean()

    return {
        "Targets of another shape": {"Optax": loss, "JAX": lambda: jnp.mean((jnp.ones([4, 1]) - jnp.ones([4])) ** 2)}
    }


def make_mistakes(page: str) -> dict[str, dict[str, str]]:
    """The messages by heading and title, those of libraries that are not installed left out."""
    found = elegy(page)
    for library in (flax, haiku, equinox, optax):
        with contextlib.suppress(ImportError):
            for heading, mistakes in library().items():
                for title, mistake in mistakes.items():
                    found[heading][title] = shortened(message(mistake))
    return found


def messages() -> dict[str, dict[str, str]]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off"}
    command = [sys.executable, "-m", "tests.documentation.test_messages", "--print"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---------------------------------------------------------------------------------------------------------------------
# Writing the page
# ---------------------------------------------------------------------------------------------------------------------


def written(page: str, found: dict[str, dict[str, str]]) -> str:
    """The page with the messages at the end of each section, and with the versions that are installed."""
    head, *sections = re.split(r"(?m)^(?=## )", page)
    for section in sections:
        messages = found[section.splitlines()[0].removeprefix("## ")]
        blocks = [f'```text title="{title}"\n{text}\n```\n' for title, text in messages.items()]
        head += "\n".join([section.split("```text title=")[0].rstrip("\n") + "\n", *blocks, ""])
    return VERSION.sub(lambda match: f"{match[1]} {importlib.metadata.version(match[1])}", head.rstrip("\n") + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------------------

TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [block for block in read_blocks(TEXT) if block.title != "python"]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, str]]:
    return messages()


def skip_unless_pinned(title: str) -> None:
    """Other libraries word their messages as they please: they are compared on the versions that the page names."""
    package = next((package for name, package in PACKAGES.items() if title.startswith(name)), "jax")
    for name in (package, "jax"):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        if installed != versions(TEXT)[name]:
            pytest.skip(f"the page is about {name} {versions(TEXT)[name]}, and {installed} is installed")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.heading}-{block.title}")
def test_a_message_of_the_page(block: Block, found: dict[str, dict[str, str]]) -> None:
    if block.title not in OURS:
        skip_unless_pinned(block.title)
    shown, real = block.text(TEXT), found[block.heading].get(block.title, "")
    difference = "\n".join(difflib.unified_diff(shown.splitlines(), real.splitlines(), "the page", "now", lineterm=""))
    if difference:
        advice = "`python -m tests.documentation.test_messages` writes the page anew."
        pytest.fail(f"{difference}\n\n{advice}", pytrace=False)


def test_the_page_has_every_message(found: dict[str, dict[str, str]]) -> None:
    shown: dict[str, list[str]] = {}
    for block in BLOCKS:
        shown.setdefault(block.heading, []).append(block.title)
    installed = {heading: list(titles) for heading, titles in found.items()}
    for heading, titles in installed.items():
        assert [title for title in shown.pop(heading) if title in titles] == titles
    assert shown == {}


@pytest.mark.parametrize("block", [block for block in read_blocks(TEXT) if block.title == "python" and block.heading])
def test_the_code_of_the_page_announces_its_message(block: Block) -> None:
    match = RAISES.search(block.text(TEXT))
    assert match is not None
    title = OURS[1] if match[2] else OURS[0]
    [ours] = [other.text(TEXT) for other in BLOCKS if other[:2] == (block.heading, title)]
    assert ours.startswith(f"{match[1]}: ") and match[3] in ours


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    if "--print" in sys.argv:
        print(json.dumps(make_mistakes(page)))
    else:
        PAGE.write_text(written(page, messages()), encoding="utf-8")
