"""Hypothesis strategies for module trees of any shape.

A tree is drawn as plain data (`Spec`), from which `build` makes a class for each module and then the modules, so that
one spec can be built again and again: into equal structures with equal values from equal seeds.
"""

import dataclasses
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import elegy

X = np.asarray([0.25, -0.5], np.float32)


@dataclasses.dataclass(frozen=True)
class Parameter:
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    constructed: bool  # in __init__, or else by the first call


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in an attribute, which nobody declared to be a parameter."""

    shape: tuple[int, ...]
    dtype: str
    numpy: bool


@dataclasses.dataclass(frozen=True)
class Static:
    value: Any


@dataclasses.dataclass(frozen=True)
class Shared:
    """The n-th module that was constructed before this one, if there is one."""

    number: int


@dataclasses.dataclass(frozen=True)
class Container:
    kind: type
    items: tuple[Any, ...]
    keys: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Spec:
    """A module: what its attributes hold, what its call creates, draws and declares, and whether it is frozen."""

    held: tuple[Any, ...]
    created: tuple["Spec", ...]
    draws: bool
    declares: bool
    frozen: bool
    number: int  # sets classes of equal specs apart


shapes = st.sampled_from([(), (2,), (1, 2), (0,), (2, 1, 2)])
dtypes = st.sampled_from(["float32", "bfloat16", "int32", "bool", "uint32"])
keys = st.sampled_from(["a", "b", "a/b", "", "é", "w0", "0", "."])
statics = st.sampled_from(
    [0, 1, 1.0, True, None, "text", b"bytes", (1, (2, "x")), jnp.tanh, np.float32, jnp.dtype("int32"), 2j]
)

parameters = st.builds(Parameter, shapes, dtypes, st.booleans(), st.booleans())
arrays = st.builds(Array, shapes, dtypes, st.booleans())


@st.composite
def containers(draw, depth: int, levels: int):
    """Lists, tuples and dicts of all that may be held but declared parameters, which are attributes."""
    kind = draw(st.sampled_from([list, tuple, dict]))
    inside = [draw(held(depth, levels - 1, in_container=True)) for _ in range(draw(st.integers(0, 2)))]
    names = draw(st.lists(keys if draw(st.booleans()) else st.integers(0, 9), min_size=2, max_size=2, unique=True))
    return Container(kind, tuple(inside), tuple(names))


@st.composite
def held(draw, depth: int, levels: int, in_container: bool = False):
    """What an attribute holds: containers of at most `levels` levels, and modules of at most `depth`."""
    kinds = ["array", "static", "shared"]
    kinds += [] if in_container else ["parameter", "parameter"]
    kinds += ["container"] if levels > 0 else []
    kinds += ["module"] if depth > 0 else []
    match draw(st.sampled_from(kinds)):
        case "parameter":
            return draw(parameters)
        case "array":
            return draw(arrays)
        case "static":
            return Static(draw(statics))
        case "shared":
            return Shared(draw(st.integers(0, 3)))
        case "container":
            return draw(containers(depth, levels))
        case _:
            return draw(specs(depth))


@st.composite
def specs(draw, depth: int = 3):
    """Module trees of at most `depth` levels."""
    return Spec(
        held=tuple(draw(held(depth - 1, 2)) for _ in range(draw(st.integers(0, 3)))),
        created=tuple(draw(specs(depth - 1)) for _ in range(draw(st.integers(0, 2)) if depth > 1 else 0)),
        draws=draw(st.booleans()),
        declares=draw(st.booleans()),
        frozen=draw(st.integers(0, 3)) == 3,
        number=draw(st.integers(0, 3)),
    )


def value_of(shape, dtype, seed: int) -> np.ndarray:
    size = int(np.prod(shape))
    return np.linspace(0.25 + seed, 3.0, size).reshape(shape).astype(jnp.dtype(dtype))


def _initializer(parameter: Parameter):
    def initializer(key, shape, dtype):
        return jax.random.uniform(key, shape, jnp.float32, -2, 2).astype(dtype)

    return initializer


def _number(array: Any) -> jax.Array:
    """A small scalar that depends on all of an array."""
    return jnp.tanh(jnp.sum(jnp.asarray(array).astype(jnp.float32)) * 0.1)


_classes: dict[Spec, type[elegy.Module]] = {}


def class_of(spec: Spec) -> type[elegy.Module]:
    """The class of a spec; equal specs have one class."""
    if spec not in _classes:
        _classes[spec] = _make_class(spec)
    return _classes[spec]


def _make_class(spec: Spec) -> type[elegy.Module]:
    declared = {f"p{index}": item for index, item in enumerate(spec.held) if isinstance(item, Parameter)}

    def add(self, name):
        item = declared[name]
        dtype = jnp.dtype(item.dtype)
        return self.add_parameter(name, item.shape, dtype, initializer=_initializer(item), trainable=item.trainable)

    def __init__(self, pool):
        for index, item in enumerate(spec.held):
            if isinstance(item, Parameter):
                if item.constructed:
                    setattr(self, f"p{index}", add(self, f"p{index}"))
            else:
                setattr(self, f"h{index}", make(item, pool, index))

    def call(self, x):
        for name, item in declared.items():
            value = add(self, name)
            x = jnp.tanh(x + _number(value)[None])
            if not item.trainable and elegy.training():
                moved = value ^ True if item.dtype == "bool" else value + jnp.ones((), value.dtype)
                self.update_parameter(name, moved.reshape(item.shape))
        for name in sorted(vars(self)):
            if name.startswith("h"):
                for part in jax.tree.leaves(vars(self)[name], is_leaf=lambda leaf: isinstance(leaf, elegy.Module)):
                    if isinstance(part, elegy.Module):
                        x = part(x)
                    elif isinstance(part, (jax.Array, np.ndarray)):
                        x = x + _number(part)[None]
        for child in spec.created:
            x = class_of(child)([])(x)
        if spec.draws:
            x = x + 0.1 * jax.random.uniform(elegy.next_rng_key(), x.shape)
        if spec.declares:
            elegy.add_loss("size", jnp.sum(x**2))
            elegy.add_metric("mean", jnp.mean(x))
            elegy.add_summary("x", x)
        return x

    namespace = {"__init__": __init__, "call": call, "__module__": __name__}
    cls = type(elegy.Module)(f"Drawn{len(_classes)}", (elegy.Module,), namespace)
    globals()[cls.__name__] = cls  # pickle finds a class by its name
    return cls


def make(item: Any, pool: list[elegy.Module], seed: int) -> Any:
    match item:
        case Array(shape, dtype, numpy):
            value = value_of(shape, dtype, seed)
            return value if numpy else jnp.asarray(value)
        case Static(value):
            return value
        case Shared(number):
            return pool[number] if number < len(pool) else None
        case Container(kind, items, names):
            inside = [make(part, pool, seed + index) for index, part in enumerate(items)]
            return dict(zip(names, inside, strict=False)) if kind is dict else kind(inside)
        case Spec():
            module = class_of(item)(pool)
            if item.frozen:
                module.trainable = False
            pool.append(module)
            return module
    raise TypeError(item)


def build(spec: Spec, seed: int = 0, initialise: bool = True) -> elegy.Module:
    with elegy.rng_context(seed):
        module = make(spec, [], 0)
        if initialise:
            module.init(X)
    return module


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A module that was drawn and not built yet, since strategies must not do such work."""

    spec: Spec
    seed: int
    initialise: bool

    def build(self) -> elegy.Module:
        return build(self.spec, self.seed, self.initialise)


@st.composite
def recipes(draw, depth: int = 3, initialised: bool | None = None):
    return Recipe(
        draw(specs(depth)), draw(st.integers(0, 3)), draw(st.booleans()) if initialised is None else initialised
    )


# ---------------------------------------------------------------------------------------------------------------------
# What to compare
# ---------------------------------------------------------------------------------------------------------------------


def occurrences(module: elegy.Module, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], elegy.Module]]:
    """Each way in which each module is reachable, in one order."""
    found = [(path, module)]
    for name, value in vars(module).items():
        paths = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda leaf: isinstance(leaf, elegy.Module))[0]
        for below, part in paths:
            if isinstance(part, elegy.Module):
                found.extend(occurrences(part, (*path, name, jax.tree_util.keystr(below))))
    return found


def sharing(module: elegy.Module) -> list[tuple[tuple[Any, ...], int]]:
    """The paths, with the same number for the same object."""
    numbers: dict[int, int] = {}
    return [(path, numbers.setdefault(id(node), len(numbers))) for path, node in occurrences(module)]


def picture(module: elegy.Module) -> Any:
    """All that there is to a module: structure, sharing, static values, flags, and the bits of its arrays."""
    statics = [
        (path, type(node), node.trainable, node.initialized, sorted(vars(node)), _static_part(node))
        for path, node in occurrences(module)
    ]
    return jax.tree.structure(module), sharing(module), statics, bits(module)


def _static_part(node: elegy.Module) -> Any:
    def hide(part):
        return "*" if isinstance(part, (elegy.Module, jax.Array, np.ndarray)) else (type(part), part)

    return {
        name: jax.tree.map(hide, value, is_leaf=lambda leaf: leaf is None or isinstance(leaf, elegy.Module))
        for name, value in vars(node).items()
    }


def bits(tree: Any) -> list[Any]:
    return [(str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]
