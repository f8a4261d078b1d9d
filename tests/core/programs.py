"""Random programs over random module trees, as source text.

A `Program` is data: classes, and the statements of a function over a module of the last of them. Its `repr` is the
source of both, which runs as it is printed in the namespace of `world`. All arrays have three entries, so that each
module takes what another one gives.
"""

import contextlib
import dataclasses
import gc
import itertools
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import elegy
from tests.strategies import occurrences, sharing

X = np.asarray([0.5, -0.25, 0.75], np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Faults of the package that programs keep away from. To delete a filter: set its constant to False, or remove what
# it guards. `tests/test_programs.py` has a test of each fault.
# ---------------------------------------------------------------------------------------------------------------------

# What a module that lives in the function creates (a copy of one without parameters, say) has other values in a
# compiled function, where other keys are drawn for it.
VALUES_OF_COPIES = True
# Where a module that exists has parts without parameters, a call that creates those and then fails raises
# ParameterError in a compiled function.
FAILURE_WHILE_CREATING = True
# The random key of a module that is created by a later call has another value in a compiled function.
KEYS_CREATED_LATE = True

# ---------------------------------------------------------------------------------------------------------------------
# What the source refers to
# ---------------------------------------------------------------------------------------------------------------------


def uniform(key: Any, shape: Any, dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, 0.5, 1.5)


class Scale(elegy.Module):
    """A parameter that the first call creates."""

    def call(self, x):
        return jnp.tanh(x * self.add_parameter("w", [3], initializer=uniform))


class Held(elegy.Module):
    """A parameter that the constructor creates."""

    def __init__(self, name=None):
        super().__init__(name=name)
        self.v = self.add_parameter("v", [3], initializer=uniform)

    def call(self, x):
        return jnp.tanh(x + self.v)


class Count(elegy.Module):
    """State that counts calls, and that the outputs depend on."""

    def call(self, x):
        n = self.add_parameter("n", [], initializer=jnp.zeros, trainable=False)
        self.update_parameter("n", n + 1)
        return x * (1 + n / 8)


class Norm(elegy.Module):
    """A running mean, updated in training mode only."""

    def call(self, x):
        mean = self.add_parameter("mean", [3], initializer=jnp.zeros, trainable=False)
        if elegy.training():
            self.update_parameter("mean", 0.5 * mean + 0.5 * x)
        return x - 0.5 * mean


class Noise(elegy.Module):
    """Draws in training mode only."""

    def call(self, x):
        return x + jax.random.uniform(elegy.next_rng_key(), [3]) if elegy.training() else x


class Speak(elegy.Module):
    """Declares a value of each kind."""

    def call(self, x):
        elegy.add_loss("size", jnp.sum(x**2))
        elegy.add_metric("mean", jnp.mean(x))
        elegy.add_summary("seen", x)
        return x


class Dense(elegy.nn.Linear):
    """A layer of the library, with a name alone."""

    def __init__(self, name=None):
        super().__init__(3, name=name)


class Drop(elegy.nn.Dropout):
    """A layer of the library that draws, with a name alone."""

    def __init__(self, name=None):
        super().__init__(0.5, name=name)


class BoomError(Exception):
    """What `trip` raises."""


_armed: list[int] = []


@contextlib.contextmanager
def armed(label: int) -> Iterator[None]:
    """Within it `trip(label)` raises."""
    _armed.append(label)
    try:
        yield
    finally:
        _armed.pop()


def trip(label: int) -> None:
    if label in _armed:
        raise BoomError(f"trip {label}")


def halved(values: Any) -> Any:
    """Other values of the same structure; keys of random streams stay as they are."""
    return jax.tree.map(lambda leaf: leaf * 0.5 if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, values)


def total(module: elegy.Module) -> jax.Array:
    """A number that depends on all values of a module."""
    leaves = [leaf for leaf in jax.tree.leaves(module.get_parameters()) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return sum([jnp.tanh(jnp.sum(leaf)) for leaf in leaves], start=jnp.float32(0))


def named(module: elegy.Module) -> dict[str, Any]:
    """All values by path, keys of random streams as the numbers that they consist of."""
    leaves = jax.tree.leaves_with_path(module.get_parameters())
    return {jax.tree_util.keystr(path, simple=True, separator="/"): plain(leaf) for path, leaf in leaves}


def plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def collected() -> Any:
    """What hooks have declared, with names and order.

    The modules of summaries are left out: one that lives in a compiled function does not come out of it.
    """
    summaries = enumerate((path, value) for _, path, value in elegy.get_summaries() or [])
    return (
        {f"{number}: {name}": value for number, (name, value) in enumerate((elegy.get_losses() or {}).items())},
        {f"{number}: {name}": value for number, (name, value) in enumerate((elegy.get_metrics() or {}).items())},
        {f"{number}: {path}": value for number, (path, value) in summaries},
    )


NAMES: dict[str, Any] = {
    value.__name__: value
    for value in (
        Scale,
        Held,
        Count,
        Norm,
        Noise,
        Speak,
        Dense,
        Drop,
        BoomError,
        armed,
        trip,
        halved,
        total,
        named,
        collected,
        uniform,
    )
} | {"jax": jax, "jnp": jnp, "elegy": elegy}
SIMPLE = ["Scale", "Held", "Count", "Norm", "Noise", "Speak", "Dense", "Drop"]


# ---------------------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A class: the lines of its methods, and what others may do with it."""

    name: str
    takes: bool  # its constructor is given a module
    init: tuple[str, ...]
    call: tuple[str, ...]
    extra: tuple[str, ...]  # a method marked compact, if there are lines
    remat: bool  # `call` is marked elegy.remat
    parts: tuple[str, ...]  # how to reach the modules that the constructor made, as ".a0" or ".a1[0]"
    creates_late: bool  # some of it may come to exist after the first call
    looks: bool  # it reads parameters while it runs
    trips: tuple[int, ...]

    def source(self) -> list[str]:
        given = ", given" if self.takes else ""
        lines = [f"class {self.name}(elegy.Module):", f"    def __init__(self{given}, name=None):"]
        lines += _indented(["super().__init__(name=name)", *self.init], 2)
        lines += ["", *(["    @elegy.remat"] if self.remat else []), "    def call(self, x):"]
        lines += _indented([*self.call, "return x"], 2)
        if self.extra:
            lines += ["", "    @elegy.compact", "    def extra(self, x):", *_indented([*self.extra, "return x"], 2)]
        return [*lines, "", ""]


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    classes: tuple[Drawn, ...]
    statements: tuple[str, ...]
    start: str  # "lazy", "init", or "called": what is done with the module before the function is
    freezes: tuple[tuple[int, bool], ...]  # between the second and the third call: which module, and whether it trains
    seed: int
    resets: bool = False  # then, as well

    def source(self) -> str:
        lines = list(itertools.chain.from_iterable(drawn.source() for drawn in self.classes))
        lines += ["def program(m, x, out):", *_indented(self.statements, 1)]
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        after = f"# module: {self.start}; seed: {self.seed}; then freezes: {self.freezes}{' and resets' * self.resets}"
        return f"\n{self.source()}\n\nm = {self.classes[-1].name}()  {after}\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what Hypothesis prints
        printer.text(repr(self))


def _indented(lines: Any, levels: int) -> list[str]:
    return ["    " * levels + line for text in lines for line in text.split("\n")]


@dataclasses.dataclass(frozen=True)
class Built:
    """A program, what makes its module, and its function."""

    program: Program
    make: Callable[[], elegy.Module]
    function: Callable[..., None]


_numbers = itertools.count()


@contextlib.contextmanager
def world(program: Program) -> Iterator[Built]:
    """The classes of a program, for as long as it runs. Two worlds of one program have different classes."""
    name = f"tests.drawn_program_{next(_numbers)}"
    space = types.ModuleType(name)
    vars(space).update(NAMES)
    sys.modules[name] = space  # pickle finds a class by its name
    source = program.source()
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), vars(space))
    try:
        yield Built(program, getattr(space, program.classes[-1].name), space.program)
    finally:
        del sys.modules[name], linecache.cache[name]
        gc.collect()


# ---------------------------------------------------------------------------------------------------------------------
# Strategies
# ---------------------------------------------------------------------------------------------------------------------


@st.composite
def classes(draw, name: str, others: tuple[Drawn, ...], labels: Iterator[int], takes: bool):
    """A class that may make modules of the others."""
    by_name = {other.name: other for other in others}
    parts: list[tuple[str, str]] = []  # how to reach a module, and its class, if that is known
    flags = {"creates_late": False, "looks": False}
    trips: list[int] = []

    def made(within_call: bool = False) -> tuple[str, str]:
        """An expression that makes a module, and its class."""
        kind = draw(st.sampled_from([*SIMPLE, "Scale", *by_name, *by_name]))
        argument = ""
        if kind in by_name:
            flags["creates_late"] |= by_name[kind].creates_late
            flags["looks"] |= by_name[kind].looks
            trips.extend(by_name[kind].trips)
            if by_name[kind].takes:
                argument = (
                    draw(st.sampled_from([part for part, _ in parts]))
                    if parts
                    else f"{draw(st.sampled_from(SIMPLE))}()"
                )
        if within_call and draw(st.integers(0, 3)) == 3:
            argument += (", " if argument else "") + f'name="n{next(labels)}"'
        return f"{kind}({argument})", kind

    def below(part: str, kind: str) -> list[tuple[str, str]]:
        return [(part, kind)] + [(part + inner, "") for inner in (by_name[kind].parts if kind in by_name else ())]

    init: list[str] = []
    if takes:
        init.append("self.given = given")
        parts.append(("self.given", ""))
    for number in range(draw(st.integers(0, 3))):
        target = f"self.a{number}"
        form = draw(
            st.sampled_from(["made", "made", "list", "dict", *(["alias", "alias in list", "pair"] if parts else [])])
        )
        if form == "made":
            expression, kind = made()
            init.append(f"{target} = {expression}")
            parts.extend(below(target, kind))
        elif form == "list":
            (one, kind), (two, other) = made(), made()
            init.append(f"{target} = [{one}, {two}]")
            parts.extend([*below(f"{target}[0]", kind), *below(f"{target}[1]", other)])
        elif form == "dict":
            (one, kind), (two, other) = made(), made()
            init.append(f'{target} = {{"k": {one}, "l": [{two}]}}')
            parts.extend([*below(f'{target}["k"]', kind), *below(f'{target}["l"][0]', other)])
        elif form == "alias":
            part, kind = draw(st.sampled_from(parts))
            init.append(f"{target} = {part}")
            parts.append((target, kind))
        elif form == "pair":
            init.append(f"{target} = [{draw(st.sampled_from(parts))[0]}, {draw(st.sampled_from(parts))[0]}]")
        else:
            part, _ = draw(st.sampled_from(parts))
            one, kind = made()
            init.append(f"{target} = [{part}, {one}]")
            parts.extend(below(f"{target}[1]", kind))

    def body(in_call: bool) -> list[str]:
        return [draw_line(in_call) for _ in range(draw(st.integers(1, 4)))]

    def draw_line(in_call: bool) -> str:
        number = next(labels)
        forms = [
            "create",
            "create",
            "declare",
            "twice",
            "loop",
            "parameter",
            "state",
            "key",
            "mode",
            "hooks",
            "trip",
            "trip",
        ]
        if parts:
            forms += ["use"] * 4 + ["use twice", "caught", "lifted", "lifted", "conditional", "context"]
            forms += ["look", "copied"] if looks else []
        if has_extra and in_call:
            forms += ["extra"]
        form = draw(st.sampled_from(forms))
        part = draw(st.sampled_from([part for part, _ in parts])) if parts else ""
        match form:
            case "create":
                return f"x = {made(True)[0]}(x)"
            case "declare":
                flags["creates_late"] = True
                test = draw(st.sampled_from(["elegy.training()", "not elegy.training()"]))
                return f"made = {made(True)[0]}\nx = made(x) if {test} else x"
            case "twice":
                return f"made = {made(True)[0]}\nx = made(made(x))"
            case "loop":
                return f"for made in [{made()[0]}, {made()[0]}]:\n    x = made(x)"
            case "parameter":
                return f'x = jnp.tanh(x * self.add_parameter("p{number}", [3], initializer=uniform))'
            case "state":
                return (
                    f'n = self.add_parameter("s{number}", [], trainable=False)\n'
                    f'self.update_parameter("s{number}", n + 1)\nx = x - n / 8'
                )
            case "key":
                return "x = x + jax.random.uniform(elegy.next_rng_key(), [3])"
            case "mode":
                return "x = 2 * x if elegy.training() else x"
            case "hooks":
                return draw(
                    st.sampled_from(
                        [
                            'elegy.add_loss("l", x[0] ** 2)',
                            'elegy.add_metric("m", x[1])',
                            'elegy.add_summary("s", x)',
                            "elegy.add_summary(self, x)",
                            'with elegy.name_context("in"):\n    elegy.add_metric("m", x[2])',
                        ]
                    )
                )
            case "trip":
                trips.append(number)
                return f"trip({number})"
            case "use":
                return f"x = {part}(x)"
            case "use twice":
                return f"x = {part}({part}(x))"
            case "caught":
                flags["creates_late"] = True
                inner = draw(lifted(part, "x", part)) if draw(st.booleans()) else f"x = {part}(x)"
                return f"try:\n    {inner}\nexcept BoomError:\n    x = -x"
            case "lifted":
                return draw(lifted(part, "x", draw(st.sampled_from([part, part, "self"]))))
            case "context":
                contexts = ["training_context(False)", "training_context(True)"]
                contexts += ["hooks_context(summaries=True)", "hooks_context()"]
                contexts += ["rng_context(7)"]
                context = draw(st.sampled_from(contexts))
                flags["creates_late"] = True
                return f"with elegy.{context}:\n    x = {part}(x)"
            case "copied":
                lines = draw(st.sampled_from([f"x = {part}.copy()(x)", f"x, _ = {part}.apply(x)"]))
                flags["looks"] = True
                used = f"x = {part}(x)\n" * VALUES_OF_COPIES
                return used + lines
            case "look":
                flags["looks"] = True
                if draw(st.booleans()):
                    return f"x = {part}(x) + total({part})"
                return f"x = {part}(x)\n{part}.set_parameters(halved({part}.get_parameters()))"
            case "conditional":
                flags["creates_late"] = True
                return f"x = {part}(x) if elegy.training() else x"
            case _:
                return "x = self.extra(x)"

    # Most programs must be free to start with a module that has no parameters yet.
    looks = draw(st.integers(0, 2)) == 2
    has_extra = draw(st.booleans())
    extra = body(False) if has_extra else []
    lines = body(True)
    return Drawn(
        name=name,
        takes=takes,
        init=tuple(init),
        call=tuple(lines),
        extra=tuple(extra),
        remat=draw(st.integers(0, 5)) == 5,
        parts=tuple(part.removeprefix("self") for part, _ in parts),
        creates_late=flags["creates_late"],
        looks=flags["looks"],
        trips=tuple(trips),
    )


TRANSFORMS = ["remat", "scan", "cond", "vmap", "jit", "grad"]


@st.composite
def lifted(draw, part: str, target: str, modules: str):
    """A lifted transform of the call of a module."""
    match draw(st.sampled_from(TRANSFORMS)):
        case "remat":
            return f"{target} = elegy.remat(lambda x: {part}(x), modules={modules})(x)"
        case "scan":
            return f"{target}, _ = elegy.scan(lambda x, _: ({part}(x), None), x, None, length=2, modules={modules})"
        case "cond":
            return f"{target} = elegy.cond(x[0] > 0, lambda x: {part}(x), lambda x: -x, x, modules={modules})"
        case "vmap":
            return (
                f"{target} = elegy.vmap(lambda x: {part}(x), modules={modules}, reduce_state='max')"
                "(jnp.stack([x, 2 * x]))[1]"
            )
        case "jit":
            return f"{target} = elegy.jit(lambda x: {part}(x), modules={modules})(x)"
        case _:
            return f"{target} = elegy.grad(lambda x: jnp.sum({part}(x)), modules={modules}, argnums=0)(x)"


@st.composite
def forms_of(draw, start: str, root: Drawn, drawn: list[Drawn]):
    """The statements that a program may have.

    A compiled function that looks at a module sees what only later lines of it create, so that a program either looks
    or creates, unless all has been created before.
    """
    late = any(one.creates_late for one in drawn)
    forms = ["call", "call", "lifted", "lifted", "evaluate", "seeded", "hooks"]
    if start == "called" or not (late and VALUES_OF_COPIES):
        forms += ["copy", "apply", "mapped", "pure"]
    looking = ["look", "set", "train", "pure gradient", "pure gradient"]
    creating = ["part", "part"] if root.parts else []
    if root.extra:
        creating += ["extra", "extra"]
    if root.trips and (start == "called" or not (FAILURE_WHILE_CREATING and late)):
        creating += ["attempt"] * 4
    if start == "called":
        return forms + looking + creating
    return forms + (creating if late or draw(st.booleans()) else looking)


@st.composite
def statements(draw, root: Drawn, forms: list[str]):
    """A statement of a program over a module `m`."""
    see = "\nout(named(c))" if "look" in forms else ""
    match draw(st.sampled_from(forms)):
        case "call":
            return "out(m(x))"
        case "lifted":
            return draw(lifted("m", "y", "m")) + "\nout(y)"
        case "evaluate":
            return "with elegy.training_context(False):\n    out(m(x))"
        case "seeded":
            return "with elegy.rng_context(3):\n    out(m(x))"
        case "hooks":
            return "with elegy.hooks_context(summaries=True):\n    out(m(x))\n    out(collected())"
        case "copy":
            lines = "c = m.copy()\nout(c(x))" + see
            return lines
        case "apply":
            lines = "y, c = m.apply(x)\nout(y)" + see
            return lines
        case "mapped":
            lines = "c = jax.tree.map(lambda leaf: leaf, m)\nout(c(x))" + see
            return lines
        case "pure":
            lines = "y, c = elegy.jit(lambda m, x: (m(x), m))(m, x)\nout(y)" + see
            return lines
        case "pure gradient":
            lines = (
                "if jax.tree.leaves(m.get_parameters(trainable=True)):\n"
                "    (y, c), grads = elegy.value_and_grad(lambda m, x: jnp.sum(m(x)))(m, x)\n"
                "    out((y, named(c), grads.get_parameters()))"
            )
            return lines
        case "part":
            return f"out(m{draw(st.sampled_from(root.parts))}(x))"
        case "extra":
            return "out(m.extra(x))"
        case "attempt":
            label = draw(st.sampled_from(root.trips))
            what = draw(st.sampled_from(["m(x)", "elegy.jit(m)(x)", *(["m.extra(x)"] if root.extra else [])]))
            attempt = f"    try:\n        out({what})\n    except BoomError:\n        out(jnp.float32(-1))"
            return f"with armed({label}):\n{attempt}"
        case "look":
            return "out(named(m))"
        case "set":
            return "m.set_parameters(halved(m.get_parameters()))"
        case _:
            return (
                "if jax.tree.leaves(m.get_parameters(trainable=True)):\n"
                "    loss, grads = elegy.value_and_grad(lambda x: jnp.sum(m(x)), modules=m)(x)\n"
                "    values = m.get_parameters(trainable=True)\n"
                "    m.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, values, grads))\n"
                "    out((loss, grads))"
            )


@st.composite
def programs(draw, starts: tuple[str, ...] = ("lazy", "init", "called")):
    """Programs, of which those that start lazily call the module first."""
    labels = itertools.count()
    drawn: list[Drawn] = []
    for number in range(draw(st.sampled_from([0, 1, 1, 2, 2]))):
        drawn.append(draw(classes(f"C{number}", tuple(drawn), labels, takes=draw(st.booleans()))))
    root = draw(classes("R", tuple(drawn), labels, takes=False))
    start = draw(st.sampled_from(starts))
    if any(one.looks for one in [*drawn, root]):
        start = "called"
    forms = draw(forms_of(start, root, [*drawn, root]))
    lines = [draw(statements(root, forms)) for _ in range(draw(st.sampled_from([1, 2, 3, 3, 4, 4])))]
    if start == "lazy":
        lines.insert(0, "out(m(x))")
        if "attempt" in forms and draw(st.booleans()):
            lines.insert(0, draw(statements(root, ["attempt"])))
    late = any(one.creates_late for one in [*drawn, root]) or any(line.startswith("out(m.") for line in lines)
    source = "".join("".join(one.source()) for one in [*drawn, root])
    draws = any(word in source for word in ("next_rng_key", "Noise", "Drop"))
    if KEYS_CREATED_LATE and late and draws:
        start = "called"
    freezes = draw(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=2))
    resets = start == "lazy" and draw(st.booleans())
    return Program((*drawn, root), tuple(lines), start, tuple(freezes), draw(st.integers(0, 3)), resets)


# ---------------------------------------------------------------------------------------------------------------------
# Running a program, and what is compared
# ---------------------------------------------------------------------------------------------------------------------


def begin(built: Built) -> elegy.Module:
    """A module in the state in which the program starts."""
    m = built.make()
    if built.program.start == "init":
        m.init(X)
    elif built.program.start == "called":
        for training in (True, False):
            with elegy.training_context(training):
                m(X)
                if built.program.classes[-1].extra:
                    m.extra(X)
                built.function(m, X, lambda value: None)
    return m


def state_of(m: elegy.Module) -> dict[str, Any]:
    """All that there is to see of a module."""
    nodes = [(path, node) for path, node in occurrences(m)]
    values = named(m)
    trainable = sorted(jax.tree.leaves_with_path(m.get_parameters(trainable=True)), key=str)
    return {
        "values": values,
        "sharing": str(sharing(m)),
        "flags": str([(path, node.trainable, node.initialized) for path, node in nodes]),
        "trainable": str([jax.tree_util.keystr(path) for path, _ in trainable]),
        "leaves": len(jax.tree.leaves(m)),
        "leaves by path": len(values),
        "structure": jax.tree.structure(m),
        "is concrete": not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(m)),
    }


def between_calls(program: Program, m: elegy.Module, call: int) -> None:
    if call == 2:
        for number, trainable in program.freezes:
            nodes = occurrences(m)
            nodes[number % len(nodes)][1].trainable = trainable
        if program.resets:
            m.reset()


def record(
    built: Built, style: str, seeded: bool = False, calls: int = 3, trip: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """What a program does in a style: outputs, declared values, the next key, and the module, after each call.

    `seeded`: each call draws from a stream of its own, within the function, which the pure forms need. `trip`: what
    happens to the module after the first call.
    """
    found: dict[str, Any] = {}
    program = built.program
    with elegy.rng_context(program.seed), elegy.training_context(True):
        m = begin(built)
        found["start"] = state_of(m) if program.start != "lazy" else {}
        runner = RUNNERS[style](built.function, seeded)
        for call in range(calls):
            between_calls(program, m, call)
            collects = elegy.hooks_context(summaries=True) if style != "jax.jit" else contextlib.nullcontext()
            with collects:
                outputs, m = runner(m, X + np.float32(call), jax.random.key(call))
                declared = collected()
            found[f"call {call}: outputs"] = outputs
            found[f"call {call}: declared"] = declared
            found[f"call {call}: module"] = state_of(m)
            found[f"call {call}: next key"] = jax.random.key_data(elegy.next_rng_key())
            if trip is not None and call == 0:
                m = trip(m)
                found["after the trip"] = state_of(m)
    return found


def _outputs(function: Any, m: elegy.Module, x: Any, key: Any, seeded: bool) -> list[Any]:
    outputs: list[Any] = []
    with elegy.rng_context(key) if seeded else contextlib.nullcontext():
        function(m, x, outputs.append)
        outputs.append(jax.random.key_data(elegy.next_rng_key()))
    return outputs


def _eager(function: Any, seeded: bool) -> Any:
    return lambda m, x, key: (_outputs(function, m, x, key, seeded), m)


def _shim(function: Any, seeded: bool) -> Any:
    compiled: list[Any] = []
    structures: list[Any] = []

    def run(m: elegy.Module, x: Any, key: Any) -> Any:
        def inner(x, key):
            leaves, treedef = jax.tree.flatten(_outputs(function, m, x, key, seeded))
            structures.append(treedef)
            return leaves

        # A module that took the place of the first one needs a function of its own.
        if not compiled or compiled[-1][0] is not m:
            compiled.append((m, elegy.jit(inner, modules=m)))
        leaves = compiled[-1][1](x, key)
        return structures[-1].unflatten(leaves), m

    return run


def _pure(transform: Any) -> Any:
    def style(function: Any, seeded: bool) -> Any:
        structures: list[Any] = []

        def inner(m, x, key):
            leaves, treedef = jax.tree.flatten(_outputs(function, m, x, key, seeded))
            structures.append(treedef)
            return leaves, m

        compiled = transform(inner)

        def run(m: elegy.Module, x: Any, key: Any) -> Any:
            leaves, m = compiled(m, x, key)
            return structures[-1].unflatten(leaves), m

        return run

    return style


RUNNERS: dict[str, Any] = {
    "eager": _eager,
    "shim": _shim,
    "jax.jit": _pure(jax.jit),
    "elegy.jit": _pure(elegy.jit),
}


def differences(expected: Any, other: Any, ignore: tuple[str, ...] = ()) -> list[str]:
    """What differs between two records, as lines to read; arrays are equal to a tolerance."""
    found: list[str] = []
    for name in expected:
        if any(part in name for part in ignore):
            continue
        one, two = jax.tree.leaves_with_path(expected[name]), jax.tree.leaves_with_path(other[name])
        left = {jax.tree_util.keystr(path): leaf for path, leaf in one}
        right = {jax.tree_util.keystr(path): leaf for path, leaf in two}
        if list(left) != list(right):
            found.append(f"{name}: {[p for p in left if p not in right]} against {[p for p in right if p not in left]}")
        for path in left:
            if path in right and not _same(left[path], right[path]):
                found.append(f"{name}{path}: {left[path]} against {right[path]}")
    return found


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, (jax.Array, np.ndarray)):
        return bool(one == other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    return bool(np.allclose(np.asarray(one), np.asarray(other), rtol=2e-4, atol=2e-4, equal_nan=True))
