"""What docs/guides/names.md says of the layers, losses, metrics and initialisers of other libraries.

Its tables are read, and each name in them has a check: the layer of the other library is made with random weights,
these are carried over as the table of weights says, and values and gradients are compared. PyTorch is not there: its
layers are written down here from their documented formulas, with their documented defaults.
"""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import elegy
from elegy import nn

pytestmark = [
    pytest.mark.usefixtures("default_promotion", "unchecked"),
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning"),  # by metrics of Keras
    pytest.mark.filterwarnings("ignore:.*unspecified it defaults to 'ema'.*"),
]

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "names.md"
LIBRARIES = ("Keras", "Flax NNX", "Equinox", "PyTorch", "Optax")
CODE = re.compile(r"`([^`]+)`")
GENERATOR = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Whichever tests ran before, and on each run: Keras draws from a seed of its own, which is random."""
    GENERATOR.bit_generator.state = np.random.default_rng(0).bit_generator.state
    keras.utils.set_random_seed(0)


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A name of another library, and what is the same in Elegy."""

    elegy: str
    library: str
    name: str


class Row(NamedTuple):
    family: str
    elegy: str
    names: dict[str, list[str]]  # by library
    differs: str


def tables(text: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The tables of a page: the heading above, the cells of the first line, and those of the lines below."""
    heading, lines = "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif lines:
            yield heading, lines[0], lines[2:]
            lines = []
        if line.startswith("## "):
            heading = line.removeprefix("## ")


TEXT = PAGE.read_text()
ROWS: list[Row] = []
RECIPES: dict[tuple[str, str, str], list[str]] = {}  # by name of Elegy, library, and name there or "" for all
for heading, head, lines in tables(TEXT):
    for line in lines:
        assert len(line) == len(head), f"{heading}: {line} has {len(line)} cells"
        cells = dict(zip(head, line, strict=True))
        if head[-1] == "What differs":
            names = {library: CODE.findall(cells[library]) for library in head[1:-1]}
            ROWS.append(Row(heading, CODE.findall(line[0])[0], names, line[-1]))
        elif head[0] == "Weights of":
            own, *only = CODE.findall(line[0])
            for library in head[1:]:
                for name in only or [""]:
                    if cells[library] != "—":
                        RECIPES[own, library, name] = [code for code in CODE.findall(cells[library]) if " = " in code]

PLACES: dict[str, dict[str, Any]] = {
    "Losses": {"Elegy": elegy.losses, "Keras": keras.losses, "Optax": optax.losses},
    "Metrics": {"Elegy": elegy.metrics, "Keras": keras.metrics, "Flax NNX": nnx.metrics},
    "Initialisers": {"Elegy": elegy.initializers, "Keras": keras.initializers, "Flax NNX": nnx.initializers},
    "Regularisers": {"Elegy": elegy.regularizers, "Keras": keras.regularizers},
}
LAYERS_OF = {"Elegy": elegy.nn, "Keras": keras.layers, "Flax NNX": nnx, "Equinox": eqx.nn}
TORCH: dict[str, Any] = {}  # what stands for torch.nn here
CHECKS: dict[Key, Any] = {}


def thing(family: str, library: str, name: str) -> Any:
    if library == "PyTorch":
        return TORCH[name]
    name = name.partition("(")[0]  # as in `Dropout(shared_axes=...)`
    return getattr(PLACES.get(family, LAYERS_OF)[library], name)


def keys_of(row: Row) -> Iterator[Key]:
    for library, names in row.names.items():
        for name in names:
            kind = {"Losses": ", loss", "Metrics": ", metric"}.get(row.family, "")
            yield Key(row.elegy + kind, library, name)


def blocks() -> dict[str, Any]:
    """What the Python blocks of the page define."""
    namespace: dict[str, Any] = {"np": np}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        for statement in ast.parse(block).body:
            if isinstance(statement, ast.FunctionDef):
                exec(ast.unparse(statement), namespace)
    return namespace


HELPERS = blocks()


# ---------------------------------------------------------------------------------------------------------------------
# Carrying weights over
# ---------------------------------------------------------------------------------------------------------------------


class Attributes(Mapping[str, Any]):
    """The attributes of a layer, with arrays as those of NumPy."""

    def __init__(self, layer: Any):
        self.layer = layer

    def __getitem__(self, name: Any) -> Any:
        if isinstance(self.layer, (dict, nnx.Dict)):
            return plain(self.layer[name])
        try:
            return plain(getattr(self.layer, name))
        except AttributeError:
            raise KeyError(name) from None

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


def plain(value: Any) -> Any:
    if isinstance(value, nnx.Variable):
        return np.asarray(value[...])
    if isinstance(value, keras.Variable):
        return np.asarray(value.value)
    if isinstance(value, (jax.Array, np.ndarray)):
        return np.asarray(value)
    return value if isinstance(value, (int, float, str, tuple)) else Attributes(value)


def carried_over(recipe: list[str], layer: Any) -> dict[str, Any]:
    """The parameters that a recipe such as `w = kernel`, `b = bias` makes of those of a layer."""
    parameters: dict[str, Any] = {}
    for assignment in recipe:
        targets, _, expression = assignment.partition(" = ")
        values = eval(expression, HELPERS, Attributes(layer))
        names = targets.split(", ")
        for name, value in zip(names, values if len(names) > 1 else [values], strict=True):
            *path, last = name.split(".")
            functools.reduce(lambda place, part: place.setdefault(part, {}), path, parameters)[last] = jnp.array(value)
    return parameters


def random(*shape: int) -> np.ndarray:
    return GENERATOR.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return GENERATOR.uniform(0.5, 1.5, size=shape).astype(np.float32)


def like(array: Any) -> Any:
    """Random values; what could be a variance is positive."""
    return jnp.asarray(random(*array.shape) if array.ndim > 1 else positive(*array.shape))


def randomise(library: str, layer: Any) -> Any:
    """The layer with random weights."""
    if library == "Keras":
        for variable in layer.weights:
            variable.assign(like(variable))
    elif library == "Flax NNX" and isinstance(layer, nnx.Module):
        nnx.update(layer, jax.tree.map(like, nnx.state(layer, (nnx.Param, nnx.BatchStat))))
    elif library == "Equinox":
        return jax.tree.map(lambda leaf: like(leaf) if eqx.is_inexact_array(leaf) else leaf, layer)
    return layer  # those of PyTorch begin with random ones


def value_and_gradients(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """Outputs, and the gradient of a number on which all of them have different influence."""

    def loss(inputs: Any) -> Any:
        outputs = jax.tree.leaves(function(*inputs))
        return sum(jnp.sum(jnp.sin(output)) for output in outputs), outputs

    inexact = all(jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact) for x in inputs)
    if not inexact:
        return jax.tree.leaves(function(*inputs)), ()
    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    return outputs, gradients


def assert_close(found: Any, expected: Any, rtol: float = 5e-4, atol: float = 2e-5) -> None:
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


class Case(NamedTuple):
    """A layer of another library and the one here, in that order, and how they are called."""

    theirs: Callable[[], Any]
    ours: Callable[[], Any]
    inputs: tuple[Any, ...]
    call_theirs: Callable[..., Any] | None = None
    call_ours: Callable[..., Any] | None = None
    copy: Callable[[Any], dict[str, Any]] | None = None

    def check(self, key: Key) -> None:
        def run(layer: Any) -> Callable[..., Any]:
            if self.call_theirs is not None:
                return functools.partial(self.call_theirs, layer)
            return jax.vmap(layer) if key.library == "Equinox" else layer

        theirs = self.theirs()
        if key.library == "Keras":  # it makes its weights now
            theirs.build(self.inputs[0].shape) if self.call_theirs is None else run(theirs)(*self.inputs)
        theirs = randomise(key.library, theirs)
        ours = self.ours()
        call = self.call_ours or (lambda layer, *inputs: layer.apply(*inputs, training=False)[0])
        if self.call_ours is None:
            ours.init(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.inputs))
        elif not ours.initialized:
            call(ours, *self.inputs)
        specific = (key.elegy, key.library, key.name)
        recipe = RECIPES.get(specific, RECIPES.get((*specific[:2], ""), []))
        values = self.copy(theirs) if self.copy else carried_over(recipe, theirs)
        assert set(flat(values)) >= set(flat(ours.get_parameters(trainable=True))), f"{key}: {recipe} is not all"
        ours.set_parameters(values)
        expected = value_and_gradients(run(theirs), self.inputs)
        found = value_and_gradients(functools.partial(call, ours), self.inputs)
        assert_close(found, expected)


def flat(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def case(
    elegy: str, library: str, names: str, theirs: Callable[[], Any], ours: Callable[[], Any], *inputs: Any, **more: Any
) -> None:
    for name in names.split():
        CHECKS[Key(elegy, library, name)] = Case(theirs, ours, inputs, **more)


def check(elegy: str, library: str, *names: str) -> Callable[[Any], Any]:
    """Registers a function of the key as the check of some names."""

    def register(function: Any) -> Any:
        for name in names:
            CHECKS[Key(elegy, library, name)] = function
        return function

    return register


def channels_last(x: Any) -> Any:
    return jnp.moveaxis(x, 1, -1)


def channels_first(x: Any) -> Any:
    return jnp.moveaxis(x, -1, 1)


RNGS = nnx.Rngs(0)
KEY = jax.random.key(0)
X = random(4, 3)
SEQUENCES = random(2, 5, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Dense and embedding
# ---------------------------------------------------------------------------------------------------------------------


class TorchLinear:
    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        self.weight = random(out_features, in_features)
        self.bias = random(out_features) if bias else None

    def __call__(self, x: Any) -> Any:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class TorchBilinear:
    def __init__(self, in1_features: int, in2_features: int, out_features: int, bias: bool = True):
        self.weight, self.bias = random(out_features, in1_features, in2_features), random(out_features)

    def __call__(self, x: Any, y: Any) -> Any:
        outputs = [jnp.sum((x @ matrix) * y, axis=-1) for matrix in self.weight]
        return jnp.stack(outputs, axis=-1) + self.bias


class TorchEmbedding:
    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None):
        self.weight = random(num_embeddings, embedding_dim)

    def __call__(self, ids: Any) -> Any:
        return jnp.asarray(self.weight)[ids]


class TorchPReLU:
    def __init__(self, num_parameters: int = 1, init: float = 0.25):
        self.weight = np.full(num_parameters, init, np.float32)

    def __call__(self, x: Any) -> Any:
        return jnp.maximum(0, x) + self.weight[0] * jnp.minimum(0, x)


class TorchFlatten:
    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim = start_dim

    def __call__(self, x: Any) -> Any:
        return x.reshape(*x.shape[: self.start_dim], -1)


class TorchIdentity:
    def __call__(self, x: Any) -> Any:
        return x


TORCH |= {
    "Linear": TorchLinear,
    "Bilinear": TorchBilinear,
    "Embedding": TorchEmbedding,
    "PReLU": TorchPReLU,
    "Flatten": TorchFlatten,
    "Identity": TorchIdentity,
}

case("Linear", "Keras", "Dense", lambda: keras.layers.Dense(5), lambda: nn.Linear(5), X)
case("Linear", "Flax NNX", "Linear", lambda: nnx.Linear(3, 5, rngs=RNGS), lambda: nn.Linear(5), X)
case("Linear", "Equinox", "Linear", lambda: eqx.nn.Linear(3, 5, key=KEY), lambda: nn.Linear(5), X)
case("Linear", "PyTorch", "Linear", lambda: TorchLinear(3, 5), lambda: nn.Linear(5), X)
case(
    "LinearGeneral",
    "Flax NNX",
    "LinearGeneral",
    lambda: nnx.LinearGeneral((3, 4), (2, 5), axis=(1, 2), rngs=RNGS),
    lambda: nn.LinearGeneral((2, 5), axis=(1, 2)),
    random(2, 3, 4),
)
case(
    "Einsum",
    "Keras",
    "EinsumDense",
    lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de"),
    lambda: nn.Einsum("abc,cde->abde", (None, 2, 4), bias_axes="de"),
    SEQUENCES,
)
case(
    "Einsum",
    "Flax NNX",
    "Einsum",
    lambda: nnx.Einsum("abc,cd->abd", (4, 6), (6,), rngs=RNGS),
    lambda: nn.Einsum("abc,cd->abd", (None, 6), bias_axes="d"),
    SEQUENCES,
)
case("Bilinear", "PyTorch", "Bilinear", lambda: TorchBilinear(3, 4, 5), lambda: nn.Bilinear(5), X, random(4, 4))


def layers_of_equinox(mlp: Any) -> dict[str, Any]:
    return {"layers": [carried_over(RECIPES["Linear", "Equinox", ""], layer) for layer in mlp.layers]}


case(
    "MLP",
    "Equinox",
    "MLP",
    lambda: eqx.nn.MLP(3, 2, 6, depth=2, key=KEY),
    lambda: nn.MLP([6, 6, 2]),
    X,
    copy=layers_of_equinox,
)
case(
    "PReLU",
    "Keras",
    "PReLU",
    lambda: keras.layers.PReLU(),
    lambda: nn.PReLU(axis=(1, 2)),
    SEQUENCES,
)
case("PReLU", "Flax NNX", "PReLU", lambda: nnx.PReLU(0.1), lambda: nn.PReLU(), X)
case("PReLU", "Equinox", "PReLU", lambda: eqx.nn.PReLU(0.1), lambda: nn.PReLU(), X)
case("PReLU", "PyTorch", "PReLU", lambda: TorchPReLU(init=0.1), lambda: nn.PReLU(), X)
case("Flatten", "Keras", "Flatten", lambda: keras.layers.Flatten(), lambda: nn.Flatten(), SEQUENCES)
case("Flatten", "PyTorch", "Flatten", lambda: TorchFlatten(), lambda: nn.Flatten(), SEQUENCES)
case("Reshape", "Keras", "Reshape", lambda: keras.layers.Reshape((4, 5)), lambda: nn.Reshape((4, 5)), SEQUENCES)
case("Identity", "Keras", "Identity", lambda: keras.layers.Identity(), lambda: nn.Identity(), X)
case("Identity", "Equinox", "Identity", lambda: eqx.nn.Identity(), lambda: nn.Identity(), X)
case("Identity", "PyTorch", "Identity", lambda: TorchIdentity(), lambda: nn.Identity(), X)


@check("LoRA", "Flax NNX", "LoRALinear")
def check_lora(key: Key) -> None:
    theirs = randomise("Flax NNX", nnx.LoRALinear(3, 5, lora_rank=2, rngs=RNGS))
    ours = nn.LoRA(nn.Linear(5).init(X), 2).init(X)
    ours.set_parameters(carried_over(RECIPES["LoRA", "Flax NNX", ""], theirs))
    assert_close(value_and_gradients(lambda x: ours(x), (X,)), value_and_gradients(theirs, (X,)))
    assert set(ours.get_parameters(trainable=True)) == {"lora_a", "lora_b"}
    assert "kernel" in nnx.state(theirs, nnx.Param)
    doubled = nn.LoRA(nn.Linear(5).init(X), 2, alpha=4)
    assert doubled.alpha / doubled.rank == 2


def gradients_of_tables(ours: Any, theirs: Callable[[Any], Any], ids: Any) -> None:
    """Values, and the gradient with respect to the table, of which `theirs` is a function."""
    table = ours.w
    y, gradient = jax.value_and_grad(lambda table: jnp.sum(jnp.sin(theirs(table))))(table)
    found, by_parameters = elegy.value_and_grad(lambda: jnp.sum(jnp.sin(ours(ids))), modules=ours)()
    assert_close((found, by_parameters["w"]), (y, gradient))


IDS = np.array([[3, 1, 3, 0], [3, 6, 0, 3]])


@check("Embedding", "Keras", "Embedding")
@check("Embedding", "Flax NNX", "Embed")
@check("Embedding", "Equinox", "Embedding")
@check("Embedding", "PyTorch", "Embedding")
def check_embedding(key: Key) -> None:
    make = {
        "Keras": lambda: keras.layers.Embedding(7, 4),
        "Flax NNX": lambda: nnx.Embed(7, 4, rngs=RNGS),
        "Equinox": lambda: eqx.nn.Embedding(7, 4, key=KEY),
        "PyTorch": lambda: TorchEmbedding(7, 4),
    }
    theirs: Any = make[key.library]()
    if key.library == "Keras":
        theirs.build()
    theirs = randomise(key.library, theirs)
    ours = nn.Embedding(7, 4).init(IDS)
    ours.set_parameters(carried_over(RECIPES["Embedding", key.library, ""], theirs))

    def with_table(table: Any) -> Any:
        if key.library == "Keras":
            return theirs.stateless_call([table], [], IDS)[0]
        if key.library == "Equinox":
            return jax.vmap(jax.vmap(eqx.tree_at(lambda layer: layer.weight, theirs, table)))(IDS)
        if key.library == "Flax NNX":
            graph, _ = nnx.split(theirs)
            return nnx.merge(graph, nnx.State({"embedding": nnx.Param(table)}))(IDS)
        return jnp.asarray(table)[IDS]

    plain_table = carried_over(RECIPES["Embedding", key.library, ""], theirs)["w"]
    assert_close(ours(IDS), with_table(plain_table))
    gradients_of_tables(ours, with_table, IDS)
    with pytest.raises(IndexError, match="out of range"):
        ours(np.array([7]))
    assert jnp.isnan(jax.jit(lambda ids: ours(ids))(jnp.array([7]))).all()


# ---------------------------------------------------------------------------------------------------------------------
# Convolution
# ---------------------------------------------------------------------------------------------------------------------


class TorchConv:
    """`weight` of shape `[out, in, *kernel]` slides over the input, which is padded by zeros at both ends."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ):
        self.weight, self.bias = random(out_channels, in_channels, *kernel_size), random(out_channels)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def __call__(self, x: Any) -> Any:
        kernel, n = self.weight.shape[2:], x.ndim - 2
        x = jnp.pad(x, [(0, 0), (0, 0), *[(self.padding, self.padding)] * n])
        sizes = [
            (size - self.dilation * (k - 1) - 1) // self.stride + 1 for size, k in zip(x.shape[2:], kernel, strict=True)
        ]
        y = 0
        for offset in np.ndindex(*kernel):
            start = [self.dilation * o for o in offset]
            window = [
                slice(s, s + self.stride * (size - 1) + 1, self.stride) for s, size in zip(start, sizes, strict=True)
            ]
            y = y + jnp.einsum("ni...,oi->no...", x[(slice(None), slice(None), *window)], self.weight[:, :, *offset])
        return y + self.bias.reshape(-1, *[1] * n)


class TorchConvTranspose:
    """The gradient of a convolution with respect to its input; `weight` is of shape `[in, out, *kernel]`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        bias: bool = True,
        dilation: int = 1,
    ):
        self.weight, self.bias = random(in_channels, out_channels, *kernel_size), random(out_channels)
        self.stride, self.padding, self.dilation, self.output_padding = stride, padding, dilation, output_padding

    def __call__(self, x: Any) -> Any:
        kernel, n = self.weight.shape[2:], x.ndim - 2
        # Without padding; output_padding makes the last end longer.
        sizes = [
            (size - 1) * self.stride + self.dilation * (k - 1) + 1 + self.output_padding
            for size, k in zip(x.shape[2:], kernel, strict=True)
        ]
        y = jnp.zeros([x.shape[0], self.weight.shape[1], *sizes])
        for offset in np.ndindex(*kernel):
            start = [self.dilation * o for o in offset]
            window = [
                slice(s, s + self.stride * (m - 1) + 1, self.stride) for s, m in zip(start, x.shape[2:], strict=True)
            ]
            part = jnp.einsum("ni...,io->no...", x, self.weight[:, :, *offset])
            y = y.at[(slice(None), slice(None), *window)].add(part)
        inner = [slice(self.padding, size - self.padding) for size in sizes]
        return y[(slice(None), slice(None), *inner)] + self.bias.reshape(-1, *[1] * n)


TORCH |= {f"Conv{n}d": TorchConv for n in (1, 2, 3)} | {f"ConvTranspose{n}d": TorchConvTranspose for n in (1, 2, 3)}

FIRST: dict[str, Any] = {"data_format": "channels_first"}
for n in (1, 2, 3):
    kernel, last = (3, 2, 2)[:n], random(2, *(5, 4, 3)[:n], 3)
    first = np.moveaxis(last, -1, 1)
    ours: Any = getattr(nn, f"Conv{n}D")
    transposed: Any = getattr(nn, f"Conv{n}DTranspose")

    def convolve(ours: Any = ours, kernel: Any = kernel, **options: Any) -> Callable[[], Any]:
        return lambda: ours(4, kernel, **options)

    case(
        f"Conv{n}D",
        "Keras",
        f"Conv{n}D",
        lambda n=n, kernel=kernel: getattr(keras.layers, f"Conv{n}D")(4, kernel, strides=2),
        convolve(stride=2, padding="VALID"),
        last,
    )
    case(
        f"Conv{n}D",
        "Flax NNX",
        "Conv",
        lambda kernel=kernel, n=n: nnx.Conv(3, 4, kernel, strides=2, rngs=RNGS),
        convolve(stride=2),
        last,
    )
    case(
        f"Conv{n}D",
        "Equinox",
        f"Conv{n}d",
        lambda n=n, kernel=kernel: getattr(eqx.nn, f"Conv{n}d")(3, 4, kernel, stride=2, padding=1, key=KEY),
        convolve(stride=2, padding=1, **FIRST),
        first,
    )
    case(
        f"Conv{n}D",
        "PyTorch",
        f"Conv{n}d",
        lambda kernel=kernel: TorchConv(3, 4, kernel, stride=2, padding=1),
        convolve(stride=2, padding=1, **FIRST),
        first,
    )
    case(
        f"Conv{n}DTranspose",
        "Keras",
        f"Conv{n}DTranspose",
        lambda n=n, kernel=kernel: getattr(keras.layers, f"Conv{n}DTranspose")(4, kernel, strides=2),
        convolve(transposed, stride=2, padding="VALID"),
        last,
    )
    case(
        f"Conv{n}DTranspose",
        "Flax NNX",
        "ConvTranspose",
        lambda n=n, kernel=kernel: nnx.ConvTranspose(3, 4, kernel, strides=2, rngs=RNGS),
        convolve(transposed, stride=2),
        last,
    )
    case(
        f"Conv{n}DTranspose",
        "Equinox",
        f"ConvTranspose{n}d",
        lambda n=n, kernel=kernel: getattr(eqx.nn, f"ConvTranspose{n}d")(
            3, 4, kernel, stride=2, padding=1, output_padding=1, key=KEY
        ),
        convolve(transposed, stride=2, padding=[(k - 2, k - 2 + 1) for k in kernel], **FIRST),
        first,
    )
    case(
        f"Conv{n}DTranspose",
        "PyTorch",
        f"ConvTranspose{n}d",
        lambda kernel=kernel: TorchConvTranspose(3, 4, kernel, stride=2, padding=1, output_padding=1),
        convolve(transposed, stride=2, padding=[(k - 2, k - 2 + 1) for k in kernel], **FIRST),
        first,
    )
    if n < 3:
        case(
            f"DepthwiseConv{n}D",
            "Keras",
            f"DepthwiseConv{n}D",
            lambda n=n, kernel=kernel: getattr(keras.layers, f"DepthwiseConv{n}D")(kernel, depth_multiplier=2),
            lambda n=n, kernel=kernel: getattr(nn, f"DepthwiseConv{n}D")(kernel, channel_multiplier=2, padding="VALID"),
            last,
        )
        case(
            f"SeparableConv{n}D",
            "Keras",
            f"SeparableConv{n}D",
            lambda n=n, kernel=kernel: getattr(keras.layers, f"SeparableConv{n}D")(4, kernel, depth_multiplier=2),
            lambda n=n, kernel=kernel: getattr(nn, f"SeparableConv{n}D")(
                4, kernel, channel_multiplier=2, padding="VALID"
            ),
            last,
        )


def test_padding_of_dilated_transposed_convolutions() -> None:
    """It is `rate * (kernel - 1) - p`, also for the two libraries that count it at the output."""
    theirs = TorchConvTranspose(3, 4, (3, 2), stride=2, padding=1, dilation=3)
    ours = nn.Conv2DTranspose(4, (3, 2), stride=2, rate=3, padding=[3 * 2 - 1, 3 * 1 - 1], **FIRST)
    x = random(2, 3, 5, 4)
    ours.init(x).set_parameters(carried_over(RECIPES["Conv2DTranspose", "PyTorch", ""], theirs))
    assert_close(ours(x), theirs(x))


def test_same_padding_of_strides_is_more_at_the_end() -> None:
    x, w = np.arange(1.0, 7.0, dtype=np.float32)[None, :, None], jnp.ones([3, 1, 1])
    theirs = TorchConv(1, 1, (3,), stride=2, padding=1)
    theirs.weight, theirs.bias = np.ones([1, 1, 3], np.float32), np.zeros(1, np.float32)
    assert theirs(channels_first(x))[0, 0].tolist() == [3, 9, 15]
    for padding, expected in (("SAME", [6, 12, 11]), (1, [3, 9, 15])):
        ours = nn.Conv1D(1, 3, stride=2, padding=padding).init(x)
        ours.set_parameters({"w": w})
        assert ours(x)[0, :, 0].tolist() == expected


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation
# ---------------------------------------------------------------------------------------------------------------------


def normalised(x: Any, axes: Any, eps: float) -> Any:
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + eps)


def along_channels(values: Any, x: Any) -> Any:
    """Of an input with the channels first."""
    return values.reshape(-1, *[1] * (x.ndim - 2))


class TorchBatchNorm:
    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        self.weight, self.bias, self.running_mean, self.running_var = (positive(num_features) for _ in range(4))
        self.eps, self.momentum = eps, momentum

    def __call__(self, x: Any, training: bool = False) -> Any:
        mean, var = self.running_mean, self.running_var
        if training:
            axes = (0, *range(2, x.ndim))
            mean, var = x.mean(axes), x.var(axes)
            unbiased = x.var(axes, ddof=1)
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * np.asarray(mean)
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * np.asarray(unbiased)
        y = (x - along_channels(mean, x)) / jnp.sqrt(along_channels(var, x) + self.eps)
        return y * along_channels(self.weight, x) + along_channels(self.bias, x)


class TorchLayerNorm:
    def __init__(self, normalized_shape: tuple[int, ...], eps: float = 1e-5, elementwise_affine: bool = True):
        self.weight, self.bias, self.eps = random(*normalized_shape), random(*normalized_shape), eps

    def __call__(self, x: Any) -> Any:
        return normalised(x, tuple(range(-self.weight.ndim, 0)), self.eps) * self.weight + self.bias


class TorchRMSNorm:
    def __init__(self, normalized_shape: int, eps: float | None = None, elementwise_affine: bool = True):
        self.weight, self.eps = random(normalized_shape), eps

    def __call__(self, x: Any) -> Any:
        eps = jnp.finfo(x.dtype).eps if self.eps is None else self.eps
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * self.weight


class TorchGroupNorm:
    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True):
        self.weight, self.bias, self.num_groups, self.eps = random(num_channels), random(num_channels), num_groups, eps

    def __call__(self, x: Any) -> Any:
        groups = x.reshape(x.shape[0], self.num_groups, -1)
        y = normalised(groups, -1, self.eps).reshape(x.shape)
        return y * along_channels(self.weight, x) + along_channels(self.bias, x)


class TorchInstanceNorm:
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
    ):
        self.weight, self.bias = (random(num_features), random(num_features)) if affine else (np.ones(1), np.zeros(1))
        self.eps = eps

    def __call__(self, x: Any) -> Any:
        y = normalised(x, tuple(range(2, x.ndim)), self.eps)
        return y * along_channels(self.weight, x) + along_channels(self.bias, x)


TORCH |= {"LayerNorm": TorchLayerNorm, "RMSNorm": TorchRMSNorm, "GroupNorm": TorchGroupNorm}
TORCH |= {f"BatchNorm{n}d": TorchBatchNorm for n in (1, 2, 3)}
TORCH |= {f"InstanceNorm{n}d": TorchInstanceNorm for n in (1, 2, 3)}

IMAGES = random(2, 3, 4, 6)  # channels last
FIRST_IMAGES = np.moveaxis(IMAGES, -1, 1)


def batch_norm(library: str, rate: float, eps: float) -> tuple[Any, Callable[[Any], Any]]:
    """A layer of another library, and what runs it in training."""
    if library == "Keras":
        layer: Any = keras.layers.BatchNormalization(momentum=rate, epsilon=eps)
        layer.build(IMAGES.shape)
        return layer, lambda x: layer(x, training=True)
    if library == "Flax NNX":
        layer = nnx.BatchNorm(6, momentum=rate, epsilon=eps, rngs=RNGS)
        return layer, layer
    layer = TorchBatchNorm(6, eps, momentum=1 - rate)
    return layer, lambda x: channels_last(layer(channels_first(x), training=True))


@check("BatchNormalization", "Keras", "BatchNormalization")
@check("BatchNormalization", "Flax NNX", "BatchNorm")
@check("BatchNormalization", "PyTorch", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
def check_batch_norm(key: Key) -> None:
    """Training, what it leaves in the running statistics, and evaluation."""
    n = int(key.name[-2]) if key.library == "PyTorch" else 2
    images = random(4, *(3, 2, 2)[:n], 6)
    theirs, train = batch_norm(key.library, 0.9, 1e-2)
    theirs = randomise(key.library, theirs)
    recipe = RECIPES["BatchNormalization", key.library, ""]
    ours = nn.BatchNormalization(decay_rate=0.9, eps=1e-2).init(images)
    ours.set_parameters(carried_over(recipe, theirs))
    assert_close(ours(images), train(jnp.asarray(images)))
    after = carried_over(recipe, theirs)
    assert_close(ours.mean, after["mean"])
    if key.library == "PyTorch":
        m = images.size // 6
        before = (ours.var - 0.1 * images.var(axis=tuple(range(n + 1)))) / 0.9
        unbiased = 0.9 * before + 0.1 * m / (m - 1) * images.var(axis=tuple(range(n + 1)))
        assert_close(after["var"], unbiased)
        ours.set_parameters({"var": after["var"]})
    else:
        assert_close(ours.var, after["var"])

    def evaluate(x: Any) -> Any:
        if key.library == "Flax NNX":
            return theirs(x, use_running_average=True)
        return channels_last(theirs(channels_first(x))) if key.library == "PyTorch" else theirs(x)

    expected = value_and_gradients(evaluate, (images,))
    assert_close(value_and_gradients(lambda x: ours(x, training=False), (images,)), expected)


@check("BatchNormalization", "Equinox", "BatchNorm")
def check_batch_norm_of_equinox(key: Key) -> None:
    theirs, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(6, "batch", momentum=0.9, eps=1e-2, mode="batch")
    theirs = randomise("Equinox", theirs)

    def run(x: Any, state: Any, inference: bool) -> Any:
        run = functools.partial(theirs, inference=inference)
        return jax.vmap(run, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, state)

    ours = nn.BatchNormalization(decay_rate=0.9, eps=1e-2, data_format="channels_first").init(FIRST_IMAGES)
    ours.set_parameters({"scale": theirs.weight, "offset": theirs.bias})
    for _ in range(2):
        y, state = run(FIRST_IMAGES, state, False)
        assert_close(ours(FIRST_IMAGES), y)
    hidden_mean, hidden_var = state.get(theirs.batch_state_index)
    assert_close((ours.mean, ours.var), (hidden_mean, hidden_var))  # the correction is made where they are used
    ours.set_parameters({"mean": hidden_mean / (1 - 0.9**2), "var": hidden_var / (1 - 0.9**2)})
    expected = value_and_gradients(lambda x: run(x, state, True)[0], (FIRST_IMAGES,))
    assert_close(value_and_gradients(lambda x: ours(x, training=False), (FIRST_IMAGES,)), expected)

    default, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(6, "batch", momentum=0.9)
    assert default.mode == "ema"
    theirs = default
    _, state = run(FIRST_IMAGES, state, False)
    other = 3 * FIRST_IMAGES
    y, _ = run(other, state, False)
    assert np.abs(y - nn.BatchNormalization(data_format="channels_first")(other)).max() > 0.1


case(
    "LayerNormalization",
    "Keras",
    "LayerNormalization",
    lambda: keras.layers.LayerNormalization(axis=(1, 2), epsilon=0.1),
    lambda: nn.LayerNormalization(axis=(1, 2), eps=0.1),
    SEQUENCES,
)
case(
    "LayerNormalization",
    "Flax NNX",
    "LayerNorm",
    lambda: nnx.LayerNorm(4, epsilon=0.1, rngs=RNGS),
    lambda: nn.LayerNormalization(eps=0.1),
    SEQUENCES,
)
case(
    "LayerNormalization",
    "Equinox",
    "LayerNorm",
    lambda: eqx.nn.LayerNorm((5, 4), eps=0.1),
    lambda: nn.LayerNormalization(axis=(1, 2), eps=0.1),
    SEQUENCES,
)
case(
    "LayerNormalization",
    "PyTorch",
    "LayerNorm",
    lambda: TorchLayerNorm((5, 4), eps=0.1),
    lambda: nn.LayerNormalization(axis=(1, 2), eps=0.1),
    SEQUENCES,
)
case(
    "RMSNormalization",
    "Keras",
    "RMSNormalization",
    lambda: keras.layers.RMSNormalization(epsilon=0.1),
    lambda: nn.RMSNormalization(eps=0.1),
    X,
)
case(
    "RMSNormalization",
    "Flax NNX",
    "RMSNorm",
    lambda: nnx.RMSNorm(3, epsilon=0.1, rngs=RNGS),
    lambda: nn.RMSNormalization(eps=0.1),
    X,
)
case(
    "RMSNormalization",
    "Equinox",
    "RMSNorm",
    lambda: eqx.nn.RMSNorm(3, eps=0.1, use_bias=False),
    lambda: nn.RMSNormalization(eps=0.1),
    X,
)
case(
    "RMSNormalization",
    "PyTorch",
    "RMSNorm",
    lambda: TorchRMSNorm(3),
    lambda: nn.RMSNormalization(eps=float(np.finfo(np.float32).eps)),
    1e-4 * X,
)
case(
    "GroupNormalization",
    "Keras",
    "GroupNormalization",
    lambda: keras.layers.GroupNormalization(2, epsilon=0.1),
    lambda: nn.GroupNormalization(2, eps=0.1),
    IMAGES,
)
case(
    "GroupNormalization",
    "Flax NNX",
    "GroupNorm",
    lambda: nnx.GroupNorm(6, num_groups=2, epsilon=0.1, rngs=RNGS),
    lambda: nn.GroupNormalization(2, eps=0.1),
    IMAGES,
)
case(
    "GroupNormalization",
    "Equinox",
    "GroupNorm",
    lambda: eqx.nn.GroupNorm(2, 6, eps=0.1),
    lambda: nn.GroupNormalization(2, eps=0.1, **FIRST),
    FIRST_IMAGES,
)
case(
    "GroupNormalization",
    "PyTorch",
    "GroupNorm",
    lambda: TorchGroupNorm(2, 6, eps=0.1),
    lambda: nn.GroupNormalization(2, eps=0.1, **FIRST),
    FIRST_IMAGES,
)
case(
    "InstanceNormalization",
    "Keras",
    "GroupNormalization",
    lambda: keras.layers.GroupNormalization(groups=-1, epsilon=0.1),
    lambda: nn.InstanceNormalization(eps=0.1),
    IMAGES,
)
case(
    "InstanceNormalization",
    "Flax NNX",
    "InstanceNorm",
    lambda: nnx.InstanceNorm(6, epsilon=0.1, rngs=RNGS),
    lambda: nn.InstanceNormalization(eps=0.1),
    IMAGES,
)
for n in (1, 2, 3):
    case(
        "InstanceNormalization",
        "PyTorch",
        f"InstanceNorm{n}d",
        lambda: TorchInstanceNorm(3, eps=0.1, affine=True),
        lambda: nn.InstanceNormalization(eps=0.1, **FIRST),
        random(2, 3, *(4, 2, 2)[:n]),
    )


@check("SpectralNormalization", "Keras", "SpectralNormalization")
@check("SpectralNormalization", "Flax NNX", "SpectralNorm")
def check_spectral_norm(key: Key) -> None:
    """Twice in training, and then in evaluation."""
    if key.library == "Keras":
        theirs: Any = keras.layers.SpectralNormalization(keras.layers.Dense(5), power_iterations=2)
        theirs.build(X.shape)
        randomise("Keras", theirs.layer)
    else:
        theirs = nnx.SpectralNorm(nnx.Linear(3, 5, rngs=RNGS), n_steps=2, rngs=RNGS)
    ours = nn.SpectralNormalization(nn.Linear(5), iterations=2).init(X)
    ours.set_parameters(carried_over(RECIPES["SpectralNormalization", key.library, ""], theirs))
    kernel = jnp.asarray(ours.layer.w)
    for _ in range(2):
        if key.library == "Keras":
            assert_close(ours(X), theirs(X, training=True))
            assert_close(theirs.layer.kernel.value, kernel / ours.sigma)
            assert_close(theirs(X), X @ theirs.layer.kernel.value + theirs.layer.bias.value)
        else:  # it has written over its kernel
            theirs.layer_instance.kernel[...] = kernel
            assert_close(ours(X), theirs(X, update_stats=True))
            assert_close(theirs.layer_instance.kernel[...], kernel / ours.sigma)
    if key.library == "Flax NNX":
        theirs.layer_instance.kernel[...] = kernel
        assert_close(ours.apply(X, training=False)[0], theirs(X, update_stats=False))


@check("SpectralNormalization", "Equinox", "SpectralNorm")
def check_spectral_norm_of_equinox(key: Key) -> None:
    """It begins at the other end, so that the same values come after many iterations."""
    make = eqx.nn.make_with_state(eqx.nn.SpectralNorm)
    theirs, state = make(eqx.nn.Linear(3, 5, key=KEY), "weight", num_power_iterations=50, key=KEY)
    ours = nn.SpectralNormalization(nn.Linear(5), iterations=50).init(X)
    ours.set_parameters(carried_over(RECIPES["SpectralNormalization", "Equinox", ""][:2], theirs))
    assert theirs.layer.weight.shape == (5, 3) and ours.layer.w.shape == (3, 5)
    u, v = state.get(theirs.uv_index)
    y = jax.vmap(lambda x: theirs(x, state, inference=True)[0])(X)
    assert_close(y, X @ theirs.layer.weight.T / (u @ theirs.layer.weight @ v) + theirs.layer.bias)
    run = jax.vmap(lambda x: theirs(x, state)[0])
    assert_close(value_and_gradients(lambda x: ours.apply(x, training=True)[0], (X,)), value_and_gradients(run, (X,)))


@check("WeightNormalization", "Flax NNX", "WeightNorm")
def check_weight_norm(key: Key) -> None:
    linear = nnx.Linear(3, 5, rngs=RNGS)
    theirs = nnx.WeightNorm(linear, scale_init=lambda _, shape: positive(*shape), rngs=RNGS)
    ours = nn.WeightNormalization(nn.Linear(5)).init(X)
    ours.set_parameters(carried_over(RECIPES["WeightNormalization", "Flax NNX", ""], theirs))
    kernel = np.asarray(linear.kernel[...])
    assert_close(ours(X), theirs(jnp.asarray(X)))
    assert np.abs(linear.kernel[...] - kernel).max() > 1e-3  # it has written over its kernel
    around = nnx.WeightNorm(nnx.Linear(3, 5, rngs=RNGS), rngs=RNGS)
    assert (jax.tree.leaves(around.scales)[0] == 1).all()


@check("WeightNormalization", "Equinox", "WeightNorm")
def check_weight_norm_of_equinox(key: Key) -> None:
    theirs = eqx.nn.WeightNorm(eqx.nn.Linear(3, 5, key=KEY))
    linear = nn.Linear(5).init(X)
    linear.set_parameters(carried_over(RECIPES["Linear", "Equinox", ""], theirs.layer))
    ours = nn.WeightNormalization(linear).init(X)
    assert_close(ours.scale, theirs.g.ravel())  # both begin with the lengths
    theirs = eqx.tree_at(lambda layer: layer.g, theirs, 2 * theirs.g)
    ours.set_parameters(carried_over(RECIPES["WeightNormalization", "Equinox", ""], theirs))
    expected = value_and_gradients(jax.vmap(theirs), (X,))
    assert_close(value_and_gradients(lambda x: ours(x), (X,)), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Pooling and resizing
# ---------------------------------------------------------------------------------------------------------------------


class TorchPool:
    """A function of each window of an input with the channels first."""

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0):
        self.size, self.stride, self.padding = kernel_size, kernel_size if stride is None else stride, padding

    def windows(self, x: Any, fill: float) -> Any:
        n = x.ndim - 2
        x = jnp.pad(x, [(0, 0), (0, 0), *[(self.padding, self.padding)] * n], constant_values=fill)
        sizes = [(size - self.size) // self.stride + 1 for size in x.shape[2:]]
        parts = []
        for offset in np.ndindex(*[self.size] * n):
            window = [
                slice(o, o + self.stride * (size - 1) + 1, self.stride) for o, size in zip(offset, sizes, strict=True)
            ]
            parts.append(x[(slice(None), slice(None), *window)])
        return jnp.stack(parts)


class TorchMaxPool(TorchPool):
    def __call__(self, x: Any) -> Any:
        return self.windows(x, -np.inf).max(0)


class TorchAvgPool(TorchPool):
    def __init__(
        self, kernel_size: int, stride: int | None = None, padding: int = 0, *, count_include_pad: bool = True
    ):
        super().__init__(kernel_size, stride, padding)
        self.count_include_pad = count_include_pad

    def __call__(self, x: Any) -> Any:
        y = self.windows(x, 0).mean(0)
        return y if self.count_include_pad else y / self.windows(jnp.ones_like(x), 0).mean(0)


class TorchAdaptiveAvgPool:
    """Window `i` goes from `floor(i * size / wanted)` to `ceil((i + 1) * size / wanted)`."""

    def __init__(self, output_size: int):
        self.output_size = output_size

    def __call__(self, x: Any) -> Any:
        for axis in range(2, x.ndim):
            size, wanted = x.shape[axis], self.output_size
            ends = [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
            parts = [jax.lax.slice_in_dim(x, start, end, axis=axis).mean(axis) for start, end in ends]
            x = jnp.stack(parts, axis)
        return x


class TorchUpsample:
    def __init__(self, scale_factor: int, mode: str = "nearest"):
        self.scale_factor = scale_factor

    def __call__(self, x: Any) -> Any:
        for axis in range(2, x.ndim):
            x = jnp.repeat(x, self.scale_factor, axis)
        return x


TORCH["Upsample"] = TorchUpsample
for n in (1, 2, 3):
    TORCH |= {
        f"MaxPool{n}d": TorchMaxPool,
        f"AvgPool{n}d": TorchAvgPool,
        f"AdaptiveAvgPool{n}d": TorchAdaptiveAvgPool,
    }
    last = random(2, *(7, 6, 4)[:n], 2)
    first = np.moveaxis(last, -1, 1)
    for ours, theirs, torch_pool in (
        ("MaxPool", "MaxPooling", TorchMaxPool),
        ("AvgPool", "AveragePooling", TorchAvgPool),
    ):
        counted: dict[str, Any] = {"count_include_padding": True} if ours == "AvgPool" else {}
        case(
            ours,
            "Keras",
            f"{theirs}{n}D",
            lambda n=n, theirs=theirs: getattr(keras.layers, f"{theirs}{n}D")(3, strides=2, padding="same"),
            lambda ours=ours: getattr(nn, ours)(3, 2, "SAME"),
            last,
        )
        case(
            ours,
            "Equinox",
            f"{ours}{n}d",
            lambda n=n, ours=ours: getattr(eqx.nn, f"{ours}{n}d")(3, padding=1),
            lambda ours=ours, counted=counted: getattr(nn, ours)(3, 1, 1, **FIRST, **counted),
            first,
        )
        case(
            ours,
            "PyTorch",
            f"{ours}{n}d",
            lambda torch_pool=torch_pool: torch_pool(3, padding=1),
            lambda ours=ours, counted=counted: getattr(nn, ours)(3, padding=1, **FIRST, **counted),
            first,
        )
    for kind, theirs in (("Avg", "Average"), ("Max", "Max")):
        case(
            f"Global{kind}Pool",
            "Keras",
            f"Global{theirs}Pooling{n}D",
            lambda n=n, theirs=theirs: getattr(keras.layers, f"Global{theirs}Pooling{n}D")(),
            lambda kind=kind: getattr(nn, f"Global{kind}Pool")(),
            last,
        )
    case(
        "AdaptiveAvgPool",
        "Keras",
        f"AdaptiveAveragePooling{n}D",
        lambda n=n: getattr(keras.layers, f"AdaptiveAveragePooling{n}D")(3),
        lambda: nn.AdaptiveAvgPool(3),
        last,
    )
    case(
        "AdaptiveAvgPool",
        "Equinox",
        f"AdaptiveAvgPool{n}d",
        lambda n=n: getattr(eqx.nn, f"AdaptiveAvgPool{n}d")(2),
        lambda: nn.AdaptiveAvgPool(2, **FIRST),
        random(2, 3, *(8, 6, 4)[:n]),
    )
    case(
        "AdaptiveAvgPool",
        "PyTorch",
        f"AdaptiveAvgPool{n}d",
        lambda: TorchAdaptiveAvgPool(3),
        lambda: nn.AdaptiveAvgPool(3, **FIRST),
        first,
    )
    case(
        "Upsample",
        "Keras",
        f"UpSampling{n}D",
        lambda n=n: getattr(keras.layers, f"UpSampling{n}D")(2),
        lambda: nn.Upsample(2),
        last,
    )
case("MaxPool", "Flax NNX", "max_pool", lambda: lambda x: nnx.max_pool(x, (3, 3)), lambda: nn.MaxPool(3, 1), IMAGES)
case(
    "AvgPool",
    "Flax NNX",
    "avg_pool",
    lambda: lambda x: nnx.avg_pool(x, (3, 3), padding="SAME"),
    lambda: nn.AvgPool(3, 1, "SAME", count_include_padding=True),
    IMAGES,
)
case("Upsample", "PyTorch", "Upsample", lambda: TorchUpsample(3), lambda: nn.Upsample(3, **FIRST), FIRST_IMAGES)
case(
    "Resize",
    "Keras",
    "Resizing",
    lambda: keras.layers.Resizing(2, 2, antialias=True),
    lambda: nn.Resize((2, 2)),
    random(1, 5, 4, 2),
)


def test_unequal_parts_of_adaptive_pooling() -> None:
    x = np.arange(1.0, 5.0, dtype=np.float32)[None]
    assert nn.AdaptiveAvgPool(3, data_format="CW")(x)[0].tolist() == [1.5, 2.5, 3.5]
    assert eqx.nn.AdaptiveAvgPool1d(3)(x)[0].tolist() == [1.5, 3, 4]


# ---------------------------------------------------------------------------------------------------------------------
# Attention and transformers
# ---------------------------------------------------------------------------------------------------------------------


def softmax(x: Any) -> Any:
    exp = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True)))
    return exp / jnp.sum(exp, axis=-1, keepdims=True)


class TorchMultiheadAttention:
    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, batch_first: bool = False
    ):
        self.in_proj_weight, self.in_proj_bias = random(3 * embed_dim, embed_dim), random(3 * embed_dim)
        self.out_proj, self.num_heads, self.batch_first = TorchLinear(embed_dim, embed_dim), num_heads, batch_first

    def __call__(self, query: Any, key: Any, value: Any, attn_mask: Any = None) -> Any:
        """`attn_mask` is of shape `[queries, keys]`, and true where nothing is seen."""
        if not self.batch_first:
            query, key, value = (jnp.swapaxes(x, 0, 1) for x in (query, key, value))
        heads = []
        weights, biases = np.split(self.in_proj_weight, 3), np.split(self.in_proj_bias, 3)
        q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
        size = q.shape[-1] // self.num_heads
        for i in range(self.num_heads):
            part = np.s_[..., i * size : (i + 1) * size]
            scores = q[part] @ jnp.swapaxes(k[part], -1, -2) / np.sqrt(size)
            if attn_mask is not None:
                scores = jnp.where(attn_mask, -jnp.inf, scores)
            heads.append(softmax(scores) @ v[part])
        y = self.out_proj(jnp.concatenate(heads, axis=-1))
        return y if self.batch_first else jnp.swapaxes(y, 0, 1)


class TorchEncoderLayer:
    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = jax.nn.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
    ):
        self.self_attn = TorchMultiheadAttention(d_model, nhead, batch_first=batch_first)
        self.linear1, self.linear2 = TorchLinear(d_model, dim_feedforward), TorchLinear(dim_feedforward, d_model)
        self.norm1, self.norm2, self.norm3 = (TorchLayerNorm((d_model,), layer_norm_eps) for _ in range(3))

    def feedforward(self, x: Any) -> Any:
        return self.linear2(jax.nn.relu(self.linear1(x)))

    def __call__(self, x: Any) -> Any:
        x = self.norm1(x + self.self_attn(x, x, x))
        return self.norm2(x + self.feedforward(x))


class TorchDecoderLayer(TorchEncoderLayer):
    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = jax.nn.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
    ):
        super().__init__(d_model, nhead, dim_feedforward, layer_norm_eps=layer_norm_eps, batch_first=batch_first)
        self.multihead_attn = TorchMultiheadAttention(d_model, nhead, batch_first=batch_first)

    def __call__(self, x: Any, memory: Any, tgt_mask: Any = None) -> Any:
        x = self.norm1(x + self.self_attn(x, x, x, tgt_mask))
        x = self.norm2(x + self.multihead_attn(x, memory, memory))
        return self.norm3(x + self.feedforward(x))


TORCH |= {
    "MultiheadAttention": TorchMultiheadAttention,
    "TransformerEncoderLayer": TorchEncoderLayer,
    "TransformerDecoderLayer": TorchDecoderLayer,
}
QUERY, MEMORY = random(2, 3, 8), random(2, 5, 8)
MASK = np.array([[1, 0, 0, 1, 1], [1, 1, 0, 1, 0], [0, 0, 1, 0, 0]], bool)


def attend(attention: Any, query: Any, memory: Any) -> Any:
    mask = jnp.asarray(np.broadcast_to(MASK, (2, 1, 3, 5)))
    return attention.apply(query, memory, mask=mask, training=False)[0]


case(
    "MultiHeadAttention",
    "Keras",
    "MultiHeadAttention",
    lambda: keras.layers.MultiHeadAttention(2, 3),
    lambda: nn.MultiHeadAttention(2, head_size=3).init(QUERY, MEMORY),
    QUERY,
    MEMORY,
    call_theirs=lambda layer, query, memory: layer(query, memory, attention_mask=MASK[None]),
    call_ours=attend,
)
case(
    "MultiHeadAttention",
    "Flax NNX",
    "MultiHeadAttention",
    lambda: nnx.MultiHeadAttention(2, 8, decode=False, rngs=RNGS),
    lambda: nn.MultiHeadAttention(2).init(QUERY, MEMORY),
    QUERY,
    MEMORY,
    call_theirs=lambda layer, query, memory: layer(query, memory, mask=MASK[None, None]),
    call_ours=attend,
)
BIASES: dict[str, Any] = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
case(
    "MultiHeadAttention",
    "Equinox",
    "MultiheadAttention",
    lambda: eqx.nn.MultiheadAttention(2, 8, **BIASES, key=KEY),
    lambda: nn.MultiHeadAttention(2).init(QUERY, MEMORY),
    QUERY,
    MEMORY,
    call_theirs=lambda layer, query, memory: jax.vmap(lambda q, m: layer(q, m, m, MASK))(query, memory),
    call_ours=attend,
)
case(
    "MultiHeadAttention",
    "PyTorch",
    "MultiheadAttention",
    lambda: TorchMultiheadAttention(8, 2, batch_first=True),
    lambda: nn.MultiHeadAttention(2).init(QUERY, MEMORY),
    QUERY,
    MEMORY,
    call_theirs=lambda layer, query, memory: layer(query, memory, memory, ~MASK),
    call_ours=attend,
)


def grouped_of_keras(layer: Any) -> dict[str, Any]:
    class Public:
        query_dense, key_dense, value_dense = layer._query_dense, layer._key_dense, layer._value_dense
        output_dense = layer._output_dense

    return carried_over(RECIPES["MultiHeadAttention", "Keras", ""], Public)


case(
    "MultiHeadAttention",
    "Keras",
    "GroupQueryAttention",
    lambda: keras.layers.GroupQueryAttention(3, 4, 2),
    lambda: nn.MultiHeadAttention(4, head_size=3, num_kv_heads=2).init(QUERY, MEMORY),
    QUERY,
    MEMORY,
    call_theirs=lambda layer, query, memory: layer(query, memory, attention_mask=MASK[None]),
    call_ours=attend,
    copy=grouped_of_keras,
)
case(
    "RotaryEmbedding",
    "Equinox",
    "RotaryPositionalEmbedding",
    lambda: eqx.nn.RotaryPositionalEmbedding(4),
    lambda: nn.RotaryEmbedding(),
    random(2, 5, 3, 4),
    call_theirs=lambda layer, x: jax.vmap(jax.vmap(layer, 1, 1))(x),
)


def layer_of_torch(layer: Any) -> dict[str, Any]:
    name = "TransformerDecoderLayer" if hasattr(layer, "multihead_attn") else "TransformerEncoderLayer"
    values = carried_over(RECIPES[name, "PyTorch", ""], layer)
    attention = RECIPES["MultiHeadAttention", "PyTorch", ""]
    values["attention"] = carried_over(attention, layer.self_attn)
    if hasattr(layer, "multihead_attn"):
        values["cross_attention"] = carried_over(attention, layer.multihead_attn)
    return values


case(
    "TransformerEncoderLayer",
    "PyTorch",
    "TransformerEncoderLayer",
    lambda: TorchEncoderLayer(8, 2, 16, batch_first=True),
    lambda: nn.TransformerEncoderLayer(2, feedforward_size=16),
    QUERY,
    copy=layer_of_torch,
)
case(
    "TransformerDecoderLayer",
    "PyTorch",
    "TransformerDecoderLayer",
    lambda: TorchDecoderLayer(8, 2, 16, batch_first=True),
    lambda: nn.TransformerDecoderLayer(2, feedforward_size=16),
    QUERY,
    MEMORY,
    call_theirs=lambda layer, x, memory: layer(x, memory, np.triu(np.ones([3, 3], bool), 1)),
    copy=layer_of_torch,
)


def test_queries_that_see_nothing() -> None:
    x, nothing = QUERY[:, :2], np.zeros([2, 2], bool)
    ours = nn.MultiHeadAttention(2).init(x)
    assert (ours(x, mask=jnp.zeros([2, 1, 2, 2], bool)) == 0).all()
    assert np.isnan(TorchMultiheadAttention(8, 2, batch_first=True)(x, x, x, ~nothing)).all()
    of_keras, of_flax = keras.layers.MultiHeadAttention(2, 4), nnx.MultiHeadAttention(2, 8, decode=False, rngs=RNGS)
    of_equinox = eqx.nn.MultiheadAttention(2, 8, key=KEY)
    for y in (
        of_keras(x, x, attention_mask=nothing[None]),
        of_flax(x, mask=nothing[None, None]),
        jax.vmap(lambda x: of_equinox(x, x, x, nothing))(x),
    ):
        assert np.isfinite(y).all() and (np.asarray(y) != 0).any()
        assert_close(y[:, 0], y[:, 1])  # both see the same: everything


def test_order_of_the_inputs_of_keras() -> None:
    assert list(inspect.signature(keras.layers.MultiHeadAttention.call).parameters)[1:4] == ["query", "value", "key"]
    assert list(inspect.signature(nn.MultiHeadAttention.call).parameters)[1:4] == ["query", "key", "value"]
    for peer in (nnx.MultiHeadAttention, eqx.nn.MultiheadAttention):
        names = list(inspect.signature(peer.__call__).parameters)[1:4]
        assert [name.removeprefix("inputs_")[0] for name in names] == ["q", "k", "v"]


# ---------------------------------------------------------------------------------------------------------------------
# Recurrence
# ---------------------------------------------------------------------------------------------------------------------


def sigmoid(x: Any) -> Any:
    return 1 / (1 + jnp.exp(-x))


class TorchCell:
    """`weight_ih` of shape `[gates * hidden, input]`, `weight_hh` of shape `[gates * hidden, hidden]`."""

    gates = 1

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True):
        rows = self.gates * hidden_size
        self.weight_ih, self.weight_hh = random(rows, input_size), random(rows, hidden_size)
        self.bias_ih, self.bias_hh = random(rows), random(rows)

    def products(self, x: Any, h: Any) -> tuple[Any, Any]:
        of_input, of_state = x @ self.weight_ih.T + self.bias_ih, h @ self.weight_hh.T + self.bias_hh
        return jnp.split(of_input, self.gates, axis=-1), jnp.split(of_state, self.gates, axis=-1)


class TorchRNNCell(TorchCell):
    def __call__(self, x: Any, h: Any) -> Any:
        (of_input,), (of_state,) = self.products(x, h)
        return jnp.tanh(of_input + of_state)


class TorchLSTMCell(TorchCell):
    gates = 4

    def __call__(self, x: Any, state: Any) -> Any:
        h, c = state
        i, f, g, o = (a + b for a, b in zip(*self.products(x, h), strict=True))
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c


class TorchGRUCell(TorchCell):
    gates = 3

    def __call__(self, x: Any, h: Any) -> Any:
        of_input, of_state = self.products(x, h)
        r, z = (sigmoid(a + b) for a, b in zip(of_input[:2], of_state[:2], strict=True))
        n = jnp.tanh(of_input[2] + r * of_state[2])
        return (1 - z) * n + z * h


class TorchRecurrent:
    """All outputs; the time is the first axis unless told otherwise."""

    cell: Any

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = False):
        self.run, self.units, self.batch_first = self.cell(input_size, hidden_size), hidden_size, batch_first
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self, f"{name}_l0", getattr(self.run, name))

    def __call__(self, x: Any) -> Any:
        x = jnp.swapaxes(x, 0, 1) if self.batch_first else x
        zeros = jnp.zeros([x.shape[1], self.units])
        state: Any = (zeros, zeros) if self.cell is TorchLSTMCell else zeros
        outputs = []
        for step in x:
            state = self.run(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        y = jnp.stack(outputs)
        return jnp.swapaxes(y, 0, 1) if self.batch_first else y


class TorchRNN(TorchRecurrent):
    cell = TorchRNNCell


class TorchLSTM(TorchRecurrent):
    cell = TorchLSTMCell


class TorchGRU(TorchRecurrent):
    cell = TorchGRUCell


TORCH |= {"RNNCell": TorchRNNCell, "LSTMCell": TorchLSTMCell, "GRUCell": TorchGRUCell}
TORCH |= {"RNN": TorchRNN, "LSTM": TorchLSTM, "GRU": TorchGRU}

STATE, MEMORY_CELL = random(4, 5), random(4, 5)
CELLS: dict[tuple[str, str, str], Callable[[], Any]] = {
    ("SimpleRNNCell", "Keras", "SimpleRNNCell"): lambda: keras.layers.SimpleRNNCell(5),
    ("LSTMCell", "Keras", "LSTMCell"): lambda: keras.layers.LSTMCell(5),
    ("GRUCell", "Keras", "GRUCell"): lambda: keras.layers.GRUCell(5),
    ("SimpleRNNCell", "Flax NNX", "SimpleCell"): lambda: nnx.SimpleCell(3, 5, rngs=RNGS),
    ("LSTMCell", "Flax NNX", "LSTMCell"): lambda: nnx.LSTMCell(3, 5, rngs=RNGS),
    ("LSTMCell", "Flax NNX", "OptimizedLSTMCell"): lambda: nnx.OptimizedLSTMCell(3, 5, rngs=RNGS),
    ("GRUCell", "Flax NNX", "GRUCell"): lambda: nnx.GRUCell(3, 5, rngs=RNGS),
    ("LSTMCell", "Equinox", "LSTMCell"): lambda: eqx.nn.LSTMCell(3, 5, key=KEY),
    ("GRUCell", "Equinox", "GRUCell"): lambda: eqx.nn.GRUCell(3, 5, key=KEY),
    ("SimpleRNNCell", "PyTorch", "RNNCell"): lambda: TorchRNNCell(3, 5),
    ("LSTMCell", "PyTorch", "LSTMCell"): lambda: TorchLSTMCell(3, 5),
    ("GRUCell", "PyTorch", "GRUCell"): lambda: TorchGRUCell(3, 5),
}


def step_of(library: str, cell: Any, x: Any, *state: Any) -> Any:
    """The next state as `(h, c)` or `(h,)`, whatever the order in the library."""
    if library == "Elegy":
        (new, _) = cell(state if len(state) > 1 else state[0], x)
    elif library == "Keras":
        (_, new) = cell(x, list(state))
    elif library == "Flax NNX":
        (new, _) = cell(state[::-1] if len(state) > 1 else state[0], x)
        new = new[::-1] if len(state) > 1 else new
    else:
        run = jax.vmap(cell) if library == "Equinox" else cell
        new = run(x, state if len(state) > 1 else state[0])
    return tuple(new) if isinstance(new, (tuple, list)) else (new,)


for name, library, peer in CELLS:
    case(
        name,
        library,
        peer,
        CELLS[name, library, peer],
        lambda name=name: getattr(nn, name)(5),
        X,
        *([STATE, MEMORY_CELL] if name == "LSTMCell" else [STATE]),
        call_theirs=functools.partial(step_of, library),
        call_ours=functools.partial(step_of, "Elegy"),
    )

for name, torch_layer in (("SimpleRNN", TorchRNN), ("LSTM", TorchLSTM), ("GRU", TorchGRU)):
    case(
        name,
        "Keras",
        name,
        lambda name=name: getattr(keras.layers, name)(3, return_sequences=True),
        lambda name=name: getattr(nn, name)(3),
        SEQUENCES,
    )
    case(
        name,
        "PyTorch",
        torch_layer.__name__.removeprefix("Torch"),
        lambda torch_layer=torch_layer: torch_layer(4, 3, batch_first=True),
        lambda name=name: getattr(nn, name)(3),
        SEQUENCES,
    )


def run_copy(layer: Any, x: Any) -> Any:
    """Inside of a transformed function, where a layer of Flax that draws keys must have been made."""
    return nnx.merge(*nnx.split(layer), copy=True)(x)


def of_cells(cell: str, library: str, /, **parts: str) -> Callable[[Any], dict[str, Any]]:
    """The weights of a cell at some places of ours, each from a place of theirs."""

    def copy(layer: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for ours, theirs in parts.items():
            cells = carried_over(RECIPES[cell, library, ""], functools.reduce(getattr, theirs.split("."), layer))
            values |= {ours: cells} if ours == "cell" else {ours: {"cell": cells}}
        return values

    return copy


case(
    "RNN",
    "Keras",
    "RNN",
    lambda: keras.layers.RNN(keras.layers.GRUCell(3), return_sequences=True),
    lambda: nn.RNN(nn.GRUCell(3)),
    SEQUENCES,
    copy=of_cells("GRUCell", "Keras", cell="cell"),
)
case(
    "RNN",
    "Flax NNX",
    "RNN",
    lambda: nnx.RNN(nnx.GRUCell(4, 3, rngs=RNGS), reverse=True, keep_order=True),
    lambda: nn.RNN(nn.GRUCell(3), reverse=True),
    SEQUENCES,
    call_theirs=run_copy,
    copy=of_cells("GRUCell", "Flax NNX", cell="cell"),
)
case(
    "Bidirectional",
    "Keras",
    "Bidirectional",
    lambda: keras.layers.Bidirectional(keras.layers.GRU(3, return_sequences=True)),
    lambda: nn.Bidirectional(nn.GRU(3)),
    SEQUENCES,
    copy=of_cells("GRUCell", "Keras", forward="forward_layer.cell", backward="backward_layer.cell"),
)
case(
    "Bidirectional",
    "Flax NNX",
    "Bidirectional",
    lambda: nnx.Bidirectional(*(nnx.RNN(nnx.GRUCell(4, 3, rngs=RNGS)) for _ in range(2))),
    lambda: nn.Bidirectional(nn.GRU(3)),
    SEQUENCES,
    call_theirs=run_copy,
    copy=of_cells("GRUCell", "Flax NNX", forward="forward_rnn.cell", backward="backward_rnn.cell"),
)
for n in (1, 2, 3):
    case(
        "RNN(ConvLSTMCell(...))",
        "Keras",
        f"ConvLSTM{n}D",
        lambda n=n: getattr(keras.layers, f"ConvLSTM{n}D")(2, 2, return_sequences=True),
        lambda n=n: nn.RNN(nn.ConvLSTMCell(2, 2, num_spatial_dims=n, padding="VALID")),
        random(1, 2, *(4, 3, 3)[:n], 2),
    )


def test_the_bias_of_the_forget_gate() -> None:
    forget = slice(5, 10)
    ours = nn.LSTMCell(5)
    ours(ours.initial_state([4]), X)
    of_keras = keras.layers.LSTMCell(5)
    of_keras.build((4, 3))
    for b in (ours.b, of_keras.bias.value):
        assert (b[forget] == 1).all() and b.sum() == 5
    assert (nnx.LSTMCell(3, 5, rngs=RNGS).hf.bias[...] == 0).all()
    assert (nnx.OptimizedLSTMCell(3, 5, rngs=RNGS).dense_h.bias[...] == 0).all()
    of_equinox = eqx.nn.LSTMCell(3, 5, key=KEY).bias
    assert (of_equinox != 0).all() and np.abs(of_equinox).max() <= 1 / 5**0.5


def test_biases_inside_of_the_reset_gate() -> None:
    assert nnx.GRUCell(3, 5, rngs=RNGS).dense_h.bias is None
    of_keras = keras.layers.GRUCell(5)
    of_keras.build((4, 3))
    assert of_keras.bias.shape == (2, 15)


def test_backwards() -> None:
    """With `reverse=True` the outputs stay in the order of the inputs, unlike with those of others."""
    theirs = randomise("Keras", keras_layer := keras.layers.LSTM(3, return_sequences=True, go_backwards=True))
    theirs(SEQUENCES)
    ours = nn.LSTM(3, reverse=True).init(SEQUENCES)
    ours.set_parameters(carried_over(RECIPES["LSTM", "Keras", ""], keras_layer))
    assert_close(ours(SEQUENCES)[:, ::-1], theirs(SEQUENCES))
    of_flax = nnx.RNN(nnx.GRUCell(4, 3, rngs=RNGS), reverse=True)
    ours = nn.RNN(nn.GRUCell(3), reverse=True).init(SEQUENCES)
    ours.set_parameters(of_cells("GRUCell", "Flax NNX", cell="cell")(of_flax))
    assert_close(ours(SEQUENCES)[:, ::-1], of_flax(SEQUENCES))


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------


class TorchDropout:
    def __init__(self, p: float = 0.5, inplace: bool = False):
        self.p = p


TORCH |= {name: TorchDropout for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")}


def assert_dropped(y: Any, x: Any, rate: float, shared: tuple[int, ...] = ()) -> None:
    """What is not zero is divided by `1 - rate`, and the mask is the same along some axes."""
    y, dropped = np.asarray(y), np.asarray(y) == 0
    np.testing.assert_allclose(y[~dropped], x[~dropped] / (1 - rate), rtol=1e-5)
    assert abs(dropped.mean() - rate) < 0.1
    assert (dropped == dropped.any(shared, keepdims=True)).all()


@check("Dropout", "Keras", "Dropout")
@check("Dropout", "Flax NNX", "Dropout")
@check("Dropout", "Equinox", "Dropout")
@check("Dropout", "PyTorch", "Dropout")
def check_dropout(key: Key) -> None:
    x = random(40, 50)
    assert_dropped(nn.Dropout(0.3)(x), x, 0.3)
    assert (nn.Dropout(0.3)(x, training=False) == x).all()
    if key.library == "Keras":
        assert_dropped(keras.layers.Dropout(0.3)(x, training=True), x, 0.3)
        assert (keras.layers.Dropout(0.3)(x) == x).all()
    elif key.library == "Flax NNX":
        assert_dropped(nnx.Dropout(0.3, rngs=RNGS)(x), x, 0.3)
    elif key.library == "Equinox":
        assert_dropped(eqx.nn.Dropout(0.3)(jnp.asarray(x), key=KEY), x, 0.3)
        with pytest.raises(RuntimeError, match="key"):
            eqx.nn.Dropout(0.3)(jnp.asarray(x))


for n in (1, 2, 3):

    @check("Dropout(shared_axes=...)", "Keras", f"SpatialDropout{n}D")
    @check("Dropout(shared_axes=...)", "PyTorch", f"Dropout{n}d")
    def check_spatial_dropout(key: Key, n: int = n) -> None:
        x, axes = positive(40, *(2, 2, 2)[:n], 20), tuple(range(1, n + 1))
        assert_dropped(nn.Dropout(0.3, shared_axes=axes)(x), x, 0.3, axes)
        if key.library == "Keras":
            assert_dropped(getattr(keras.layers, key.name)(0.3)(x, training=True), x, 0.3, axes)


@check("AlphaDropout", "Keras", "AlphaDropout")
@check("AlphaDropout", "PyTorch", "AlphaDropout")
def check_alpha_dropout(key: Key) -> None:
    """What is dropped becomes one value, and what is kept `a * x + b`, so that the moments stay."""
    x, rate = random(40, 50), 0.3
    low = -1.0507009873554805 * 1.6732632423543772
    a = ((1 - rate) * (1 + rate * low**2)) ** -0.5
    b = -a * low * rate
    runs = [nn.AlphaDropout(rate)(x)]
    if key.library == "Keras":
        runs.append(keras.layers.AlphaDropout(rate)(x, training=True))
    for y in map(np.asarray, runs):
        dropped = np.isclose(y, a * low + b, rtol=1e-5)
        np.testing.assert_allclose(y[~dropped], a * x[~dropped] + b, rtol=1e-4, atol=1e-5)
        assert abs(dropped.mean() - rate) < 0.1


@check("DropPath", "Flax NNX", "Dropout")
def check_drop_path(key: Key) -> None:
    x = random(40, 3, 2)
    theirs = nnx.Dropout(0.3, broadcast_dims=(1, 2), rngs=RNGS)(x)
    for y in (nn.DropPath(0.3)(x), theirs):
        dropped = np.asarray(y == 0)
        assert (dropped == dropped.any((1, 2), keepdims=True)).all() and 0 < dropped.mean() < 1
        np.testing.assert_allclose(np.asarray(y)[~dropped], x[~dropped] / 0.7, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def loss_case(
    name: str, library: str, peer: str, theirs: Callable[[Any], Any], y_true: Any, y_pred: Any, **own: Any
) -> None:
    """`theirs` is a function of the predictions, and what it gives is the loss, or has it as its mean."""

    def check_loss(key: Key) -> None:
        ours = getattr(elegy.losses, name)(**own)
        pred = jnp.asarray(y_pred)
        found = jax.jit(jax.value_and_grad(lambda pred: jnp.mean(ours(y_true, pred))))(pred)
        assert_close(found, jax.jit(jax.value_and_grad(lambda pred: jnp.mean(jnp.asarray(theirs(pred)))))(pred))

    CHECKS[Key(f"{name}, loss", library, peer)] = check_loss


def mean(x: Any, reduction: str = "mean") -> Any:
    return jnp.mean(x) if reduction == "mean" else jnp.sum(x)


class TorchLoss:
    """Called as `loss(input, target)`."""

    def __init__(self, reduction: str = "mean"):
        self.reduction = reduction


class TorchBCELoss(TorchLoss):
    def __call__(self, x: Any, y: Any) -> Any:
        return mean(-(y * jnp.maximum(jnp.log(x), -100) + (1 - y) * jnp.maximum(jnp.log(1 - x), -100)))


class TorchBCEWithLogitsLoss(TorchLoss):
    def __call__(self, x: Any, y: Any) -> Any:
        return mean(-(y * jnp.log(sigmoid(x)) + (1 - y) * jnp.log(1 - sigmoid(x))))


class TorchNLLLoss(TorchLoss):
    """The classes are on axis 1."""

    def __init__(self, ignore_index: int = -100, reduction: str = "mean"):
        super().__init__(reduction)
        self.ignore_index = ignore_index

    def __call__(self, x: Any, labels: Any) -> Any:
        counts = labels != self.ignore_index
        picked = jnp.take_along_axis(x, jnp.where(counts, labels, 0)[:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(counts, picked, 0)) / counts.sum()


class TorchCrossEntropyLoss(TorchLoss):
    def __init__(self, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0):
        super().__init__(reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def __call__(self, x: Any, y: Any) -> Any:
        logs = jnp.log(jnp.moveaxis(softmax(jnp.moveaxis(x, 1, -1)), -1, 1))
        if jnp.issubdtype(y.dtype, jnp.integer):
            return TorchNLLLoss(self.ignore_index)(logs, y)
        y = (1 - self.label_smoothing) * y + self.label_smoothing / x.shape[1]
        return mean(-jnp.sum(y * logs, axis=1))


class TorchMSELoss(TorchLoss):
    def __call__(self, x: Any, y: Any) -> Any:
        return mean((x - y) ** 2)


class TorchL1Loss(TorchLoss):
    def __call__(self, x: Any, y: Any) -> Any:
        return mean(jnp.abs(x - y))


class TorchHuberLoss:
    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        self.delta = delta

    def __call__(self, x: Any, y: Any) -> Any:
        distance = jnp.abs(x - y)
        return mean(jnp.where(distance < self.delta, distance**2 / 2, self.delta * (distance - self.delta / 2)))


class TorchSmoothL1Loss:
    def __init__(self, reduction: str = "mean", beta: float = 1.0):
        self.beta = beta

    def __call__(self, x: Any, y: Any) -> Any:
        distance = jnp.abs(x - y)
        return mean(jnp.where(distance < self.beta, distance**2 / (2 * self.beta), distance - self.beta / 2))


class TorchKLDivLoss(TorchLoss):
    def __call__(self, x: Any, y: Any) -> Any:
        values = y * (jnp.log(y) - x)
        return jnp.sum(values) / len(values) if self.reduction == "batchmean" else jnp.mean(values)


class TorchPoissonNLLLoss:
    def __init__(self, log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: str = "mean"):
        self.log_input, self.epsilon = log_input, eps

    def __call__(self, x: Any, y: Any) -> Any:
        return mean(jnp.exp(x) - y * x if self.log_input else x - y * jnp.log(x + self.epsilon))


class TorchCTCLoss:
    """Of logarithms of probabilities `[time, batch, classes]`: minus that of the sum over all ways to write labels."""

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False):
        self.blank = blank

    def value(self, logs: Any, labels: list[int]) -> Any:
        total = 0
        for path in np.ndindex(*[logs.shape[1]] * len(logs)):
            merged = [label for i, label in enumerate(path) if i == 0 or label != path[i - 1]]
            if [label for label in merged if label != self.blank] == labels:
                total = total + jnp.exp(sum(logs[t, label] for t, label in enumerate(path)))
        return -jnp.log(total)

    def __call__(self, logs: Any, targets: list[list[int]]) -> Any:
        return mean(jnp.stack([self.value(logs[:, i], labels) / len(labels) for i, labels in enumerate(targets)]))


class TorchTripletMarginLoss:
    def __init__(self, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6, reduction: str = "mean"):
        self.margin, self.epsilon = margin, eps

    def distance(self, x: Any, y: Any) -> Any:
        return jnp.sqrt(jnp.sum((x - y + self.epsilon) ** 2, axis=-1))

    def __call__(self, anchor: Any, positive: Any, negative: Any) -> Any:
        return mean(jnp.maximum(0, self.margin + self.distance(anchor, positive) - self.distance(anchor, negative)))


TORCH |= {
    cls.__name__.removeprefix("Torch"): cls
    for cls in (
        TorchBCELoss,
        TorchBCEWithLogitsLoss,
        TorchNLLLoss,
        TorchCrossEntropyLoss,
        TorchMSELoss,
        TorchL1Loss,
        TorchHuberLoss,
        TorchSmoothL1Loss,
        TorchKLDivLoss,
        TorchPoissonNLLLoss,
        TorchCTCLoss,
        TorchTripletMarginLoss,
    )
}

NUMBERS, OTHERS = random(6, 5), random(6, 5)
CHANCES, BINARY = sigmoid(random(6, 5)), (random(6, 5) > 0).astype(np.float32)
PROBABILITIES, TARGETS = np.asarray(softmax(random(6, 5))), np.asarray(softmax(random(6, 5)))
LABELS = GENERATOR.integers(0, 5, 6)
ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]
COUNTS, RATES = GENERATOR.poisson(2.0, (6, 5)).astype(np.float32), positive(6, 5)
LOGITS_IN = {"from_logits": True}
SMOOTHED = {"label_smoothing": 0.2}
SEQUENCE_LABELS, STEPS = np.array([[1, 2], [2, 0]]), random(2, 4, 3)


def of_keras(name: str, y_true: Any, y_pred: Any, own: dict[str, Any] | None = None, **options: Any) -> None:
    loss_case(
        name,
        "Keras",
        name,
        lambda pred: getattr(keras.losses, name)(**options)(y_true, pred),
        y_true,
        y_pred,
        **(options if own is None else own),
    )


of_keras("BinaryCrossentropy", BINARY, CHANCES, label_smoothing=0.2)
of_keras("CategoricalCrossentropy", ONE_HOT, NUMBERS, from_logits=True, label_smoothing=0.2)
of_keras("SparseCategoricalCrossentropy", LABELS, NUMBERS, from_logits=True, ignore_class=2)
of_keras(
    "BinaryFocalCrossentropy",
    BINARY,
    CHANCES,
    {"alpha": 0.3, "gamma": 3},
    alpha=0.3,
    gamma=3,
    apply_class_balancing=True,
)
of_keras("CategoricalFocalCrossentropy", ONE_HOT, PROBABILITIES, gamma=3, alpha=0.3)
for name in ("MeanSquaredError", "MeanAbsoluteError", "MeanAbsolutePercentageError", "CosineSimilarity", "LogCosh"):
    of_keras(name, NUMBERS, OTHERS)
of_keras("MeanSquaredLogarithmicError", RATES, positive(6, 5))
of_keras("Huber", NUMBERS, OTHERS, delta=0.3)
for name in ("Hinge", "SquaredHinge"):
    of_keras(name, BINARY, OTHERS)
of_keras("CategoricalHinge", ONE_HOT, OTHERS)
of_keras("KLDivergence", TARGETS, PROBABILITIES)
of_keras("Poisson", COUNTS, RATES)
of_keras("Dice", BINARY, CHANCES)
of_keras("Tversky", BINARY, CHANCES, {"alpha": 0.3, "beta": 0.8}, alpha=0.8, beta=0.3)
of_keras("CTC", SEQUENCE_LABELS, STEPS)


def of_optax(name: str, peer: str, y_true: Any, y_pred: Any, own: dict[str, Any] | None = None, **options: Any) -> None:
    function = getattr(optax.losses, peer)
    loss_case(
        name,
        "Optax",
        peer,
        lambda pred: function(pred, jnp.asarray(y_true), **options),
        y_true,
        y_pred,
        **(options if own is None else own),
    )


of_optax("BinaryCrossentropy", "sigmoid_binary_cross_entropy", BINARY, NUMBERS, LOGITS_IN)
of_optax("CategoricalCrossentropy", "softmax_cross_entropy", TARGETS, NUMBERS, LOGITS_IN)
of_optax("SparseCategoricalCrossentropy", "softmax_cross_entropy_with_integer_labels", LABELS, NUMBERS, LOGITS_IN)
of_optax("BinaryFocalCrossentropy", "sigmoid_focal_loss", BINARY, NUMBERS, LOGITS_IN | {"alpha": 0.3}, alpha=0.3)
of_optax("MeanSquaredError", "squared_error", NUMBERS, OTHERS)
of_optax("Huber", "huber_loss", NUMBERS, OTHERS, delta=0.3)
of_optax("LogCosh", "log_cosh", NUMBERS, OTHERS)
of_optax("Hinge", "hinge_loss", 2 * BINARY - 1, OTHERS)
of_optax("NTXent", "ntxent", np.array([0, 1, 2, 0, 1, 2]), NUMBERS)
for name, peer, theirs, y_true, y_pred in (
    ("MeanSquaredError", "l2_loss", lambda pred: 2 * optax.losses.l2_loss(pred, NUMBERS), NUMBERS, OTHERS),
    (
        "CosineSimilarity",
        "cosine_similarity",
        lambda pred: -optax.losses.cosine_similarity(pred, NUMBERS),
        NUMBERS,
        OTHERS,
    ),
    (
        "KLDivergence",
        "kl_divergence",
        lambda pred: optax.losses.kl_divergence(jnp.log(pred), TARGETS),
        TARGETS,
        PROBABILITIES,
    ),
    (
        "CTC",
        "ctc_loss",
        lambda pred: optax.losses.ctc_loss(pred, np.zeros([2, 4]), SEQUENCE_LABELS, SEQUENCE_LABELS == 0),
        SEQUENCE_LABELS,
        STEPS,
    ),
):
    loss_case(name, "Optax", peer, theirs, y_true, y_pred)

loss_case("BinaryCrossentropy", "PyTorch", "BCELoss", lambda pred: TorchBCELoss()(pred, BINARY), BINARY, CHANCES)
loss_case(
    "BinaryCrossentropy",
    "PyTorch",
    "BCEWithLogitsLoss",
    lambda pred: TorchBCEWithLogitsLoss()(pred, BINARY),
    BINARY,
    NUMBERS,
    **LOGITS_IN,
)
PIXELS = random(2, 5, 3)  # classes on axis 1
loss_case(
    "CategoricalCrossentropy",
    "PyTorch",
    "CrossEntropyLoss",
    lambda pred: TorchCrossEntropyLoss(label_smoothing=0.2)(pred, np.moveaxis(ONE_HOT.reshape(2, 3, 5), -1, 1)),
    np.moveaxis(ONE_HOT.reshape(2, 3, 5), -1, 1),
    PIXELS,
    axis=1,
    **LOGITS_IN,
    **SMOOTHED,
)
loss_case(
    "SparseCategoricalCrossentropy",
    "PyTorch",
    "CrossEntropyLoss",
    lambda pred: TorchCrossEntropyLoss()(pred, LABELS),
    LABELS,
    NUMBERS,
    **LOGITS_IN,
)
loss_case(
    "SparseCategoricalCrossentropy",
    "PyTorch",
    "NLLLoss",
    lambda pred: TorchNLLLoss()(pred - jax.nn.logsumexp(pred, axis=1, keepdims=True), LABELS),
    LABELS,
    np.log(PROBABILITIES),
    **LOGITS_IN,
)
loss_case("MeanSquaredError", "PyTorch", "MSELoss", lambda pred: TorchMSELoss()(pred, NUMBERS), NUMBERS, OTHERS)
loss_case("MeanAbsoluteError", "PyTorch", "L1Loss", lambda pred: TorchL1Loss()(pred, NUMBERS), NUMBERS, OTHERS)
loss_case(
    "Huber", "PyTorch", "HuberLoss", lambda pred: TorchHuberLoss(delta=0.3)(pred, NUMBERS), NUMBERS, OTHERS, delta=0.3
)
loss_case(
    "Huber",
    "PyTorch",
    "SmoothL1Loss",
    lambda pred: 0.3 * TorchSmoothL1Loss(beta=0.3)(pred, NUMBERS),
    NUMBERS,
    OTHERS,
    delta=0.3,
)
loss_case(
    "KLDivergence",
    "PyTorch",
    "KLDivLoss",
    lambda pred: TorchKLDivLoss("batchmean")(jnp.log(pred), TARGETS),
    TARGETS,
    PROBABILITIES,
)
loss_case(
    "Poisson",
    "PyTorch",
    "PoissonNLLLoss",
    lambda pred: TorchPoissonNLLLoss()(jnp.log(pred), COUNTS),
    COUNTS,
    RATES,
)
loss_case(
    "CTC",
    "PyTorch",
    "CTCLoss",
    lambda pred: jnp.stack(
        [TorchCTCLoss().value(jax.nn.log_softmax(pred[i]), ls) for i, ls in enumerate([[1, 2], [2]])]
    ),
    SEQUENCE_LABELS,
    STEPS,
)


@check("Triplet, loss", "Optax", "triplet_margin_loss")
@check("Triplet, loss", "PyTorch", "TripletMarginLoss")
def check_triplet(key: Key) -> None:
    embeddings = tuple(random(6, 5) for _ in range(3))
    theirs = optax.losses.triplet_margin_loss if key.library == "Optax" else TorchTripletMarginLoss(margin=0.5)
    options = {"margin": 0.5} if key.library == "Optax" else {}
    expected = jax.value_and_grad(lambda *e: jnp.mean(theirs(*e, **options)), argnums=(0, 1, 2))(*embeddings)
    found = jax.value_and_grad(lambda *e: elegy.losses.Triplet(margin=0.5)(y_pred=e), argnums=(0, 1, 2))(*embeddings)
    assert_close(found, expected)


def test_ignored_labels_and_the_mean() -> None:
    labels, options = np.where(np.arange(6) < 2, 2, 1), {"from_logits": True, "ignore_class": 2}
    found = elegy.losses.SparseCategoricalCrossentropy(**options)(labels, NUMBERS)
    assert_close(found, TorchCrossEntropyLoss(ignore_index=2)(NUMBERS, labels))
    assert_close(found, jnp.asarray(keras.losses.SparseCategoricalCrossentropy(**options)(labels, NUMBERS)))


def test_means_of_pytorch_that_are_others() -> None:
    logs = jnp.log(PROBABILITIES)
    assert_close(TorchKLDivLoss()(logs, TARGETS) * 5, elegy.losses.KLDivergence()(TARGETS, PROBABILITIES))
    logs = jnp.moveaxis(jax.nn.log_softmax(STEPS), 1, 0)
    values = elegy.losses.ctc(SEQUENCE_LABELS, STEPS)
    assert_close(TorchCTCLoss()(logs, [[1, 2], [2]]), (values[0] / 2 + values[1]) / 2)


def test_what_keras_does_with_alpha() -> None:
    ours, theirs = elegy.losses.BinaryFocalCrossentropy, keras.losses.BinaryFocalCrossentropy
    assert_close(ours()(BINARY, CHANCES), jnp.asarray(theirs()(BINARY, CHANCES)))
    assert_close(jnp.asarray(theirs(alpha=0.9)(BINARY, CHANCES)), jnp.asarray(theirs()(BINARY, CHANCES)))


def test_labels_of_hinge() -> None:
    ours, theirs = elegy.losses.Hinge(), keras.losses.Hinge()
    assert_close(ours(BINARY, OTHERS), ours(2 * BINARY - 1, OTHERS))
    assert_close(jnp.asarray(theirs(BINARY, OTHERS)), ours(BINARY, OTHERS))
    assert abs(optax.losses.hinge_loss(OTHERS, BINARY).mean() - ours(BINARY, OTHERS)) > 0.01


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def metric_case(
    name: str,
    y_true: Any,
    y_pred: Any,
    own: dict[str, Any] | None = None,
    peer: str | None = None,
    theirs_true: Any = None,
    rtol: float = 1e-5,
    **options: Any,
) -> None:
    """Both are updated by two batches."""

    def check_metric(key: Key) -> None:
        ours = getattr(elegy.metrics, name)(**(options if own is None else own))
        theirs = getattr(keras.metrics, key.name)(**options)
        found: Any = None
        for part in (slice(0, 4), slice(4, None)):
            found = ours(y_true[part], y_pred[part]) if y_true is not None else ours(y_pred[part])
            targets = y_true if theirs_true is None else theirs_true
            theirs.update_state(*([] if targets is None else [targets[part]]), y_pred[part])
        found = found[1] if name == "IoU" else found
        np.testing.assert_allclose(found, np.asarray(theirs.result()), rtol=rtol)

    CHECKS[Key(f"{name}, metric", "Keras", peer or name)] = check_metric


for name in ("Mean", "Sum"):
    metric_case(name, None, NUMBERS)
GUESSES = np.array([0, 1, 2, 1, 1, 0])
TRUTH = np.array([0, 1, 2, 2, 1, 1])
metric_case("Accuracy", TRUTH, GUESSES)
metric_case("BinaryAccuracy", BINARY, np.where(BINARY == 1, CHANCES, 0.3), threshold=0.3)
metric_case("CategoricalAccuracy", ONE_HOT, NUMBERS)
metric_case("SparseCategoricalAccuracy", LABELS, NUMBERS)
metric_case("TopKCategoricalAccuracy", ONE_HOT, NUMBERS, k=2)
metric_case("SparseTopKCategoricalAccuracy", LABELS, NUMBERS, k=2)
metric_case("BinaryCrossentropy", BINARY, NUMBERS, from_logits=True)
metric_case("CategoricalCrossentropy", ONE_HOT, NUMBERS, from_logits=True)
metric_case("SparseCategoricalCrossentropy", LABELS, NUMBERS, from_logits=True)
for name in ("MeanSquaredError", "RootMeanSquaredError", "MeanAbsoluteError", "CosineSimilarity"):
    metric_case(name, NUMBERS, OTHERS)
metric_case("MeanAbsolutePercentageError", NUMBERS, OTHERS)
for name in ("Precision", "Recall"):
    metric_case(name, BINARY, np.asarray(CHANCES), {"threshold": 0.4}, thresholds=0.4)
SCORES3, TRUTH3 = random(6, 3), np.eye(3, dtype=np.float32)[TRUTH]
metric_case(
    "F1", TRUTH, SCORES3, {"average": "macro", "num_classes": 3}, "F1Score", theirs_true=TRUTH3, average="macro"
)
metric_case("AUC", BINARY, np.asarray(CHANCES), {}, rtol=0.01, num_thresholds=2000)
metric_case("IoU", TRUTH, GUESSES, {"num_classes": 3}, num_classes=3, target_class_ids=[1])
metric_case("MeanIoU", TRUTH, GUESSES, num_classes=3)
metric_case("R2", NUMBERS, OTHERS, {}, "R2Score")


@check("Mean, metric", "Flax NNX", "Average")
@check("BinaryAccuracy, metric", "Flax NNX", "Accuracy")
@check("SparseCategoricalAccuracy, metric", "Flax NNX", "Accuracy")
def check_metric_of_flax(key: Key) -> None:
    ours = getattr(elegy.metrics, key.elegy.removesuffix(", metric"))()
    binary = key.elegy.startswith("Binary")
    theirs = nnx.metrics.Average() if key.name == "Average" else nnx.metrics.Accuracy(0.5 if binary else None)
    found: Any = None
    for part in (slice(0, 4), slice(4, None)):
        if key.name == "Average":
            found = ours(NUMBERS[part])
            theirs.update(values=jnp.asarray(NUMBERS[part]))
        else:
            labels, scores = (BINARY.astype(np.int32), CHANCES) if binary else (LABELS.astype(np.int32), NUMBERS)
            found = ours(labels[part], scores[part])
            theirs.update(logits=jnp.asarray(scores[part]), labels=jnp.asarray(labels[part]))
    np.testing.assert_allclose(found, theirs.compute(), rtol=1e-5)


def test_scores_at_the_threshold() -> None:
    one, half = np.ones(1, np.int32), np.full(1, 0.5, np.float32)
    of_keras, of_flax = keras.metrics.BinaryAccuracy(), nnx.metrics.Accuracy(0.5)
    of_keras.update_state(one, half)
    of_flax.update(logits=jnp.asarray(half), labels=jnp.asarray(one))
    assert elegy.metrics.BinaryAccuracy()(one, half) == np.asarray(of_keras.result()) == 0
    assert of_flax.compute() == 1


# ---------------------------------------------------------------------------------------------------------------------
# Regularisers
# ---------------------------------------------------------------------------------------------------------------------


@check("L1", "Keras", "L1")
@check("L2", "Keras", "L2")
@check("L1L2", "Keras", "L1L2")
@check("Orthogonal", "Keras", "OrthogonalRegularizer")
def check_regulariser(key: Key) -> None:
    options = (0.3, 0.2) if key.name == "L1L2" else (0.3,)
    ours = getattr(elegy.regularizers, key.elegy)(*options)
    theirs = getattr(keras.regularizers, key.name)(*options)
    w = jnp.asarray(NUMBERS)
    assert_close(jax.value_and_grad(ours)(w), jax.value_and_grad(theirs)(w))


@check("ActivityRegularization", "Keras", "ActivityRegularization")
def check_activity_regularisation(key: Key) -> None:
    theirs = keras.layers.ActivityRegularization(l1=0.3, l2=0.2)
    theirs(NUMBERS)
    with elegy.hooks_context():
        assert (nn.ActivityRegularization(l1=0.3, l2=0.2)(NUMBERS) == NUMBERS).all()
        assert_close(elegy.get_losses()["activity_regularization_loss"], jnp.asarray(theirs.losses[0]))


# ---------------------------------------------------------------------------------------------------------------------
# Initialisers
# ---------------------------------------------------------------------------------------------------------------------

SHAPE = (120, 200)  # in, out
# Standard deviation, and the bound if there is one, by the documentation of PyTorch.
OF_TORCH: dict[str, tuple[float, float | None]] = {
    "xavier_uniform_": ((2 / 320) ** 0.5, (6 / 320) ** 0.5),
    "xavier_normal_": ((2 / 320) ** 0.5, None),
    "kaiming_uniform_": ((2 / 120) ** 0.5, (6 / 120) ** 0.5),
    "kaiming_normal_": ((2 / 120) ** 0.5, None),
    "normal_": (1.0, None),
    "uniform_": (12**-0.5, 1.0),
    "trunc_normal_": (0.8796, 2.0),
    "constant_": (0.0, 0.5),
    "zeros_": (0.0, 0.0),
    "ones_": (0.0, 1.0),
    "orthogonal_": (200**-0.5, None),
}


def kaiming(tensor: Any, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> None:
    """The gain is `sqrt(2 / (1 + a ** 2))`, and the bound of the uniform one `gain * sqrt(3 / fan_in)`."""


def xavier(tensor: Any, gain: float = 1.0) -> None: ...


def of_mean(tensor: Any, mean: float = 0.0, std: float = 1.0) -> None: ...


def of_bounds(tensor: Any, a: float = 0.0, b: float = 1.0) -> None: ...


def of_truncated(tensor: Any, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> None: ...


def of_orthogonal(tensor: Any, gain: float = 1) -> None: ...


def of_value(tensor: Any, val: float) -> None: ...


TORCH |= dict.fromkeys(["kaiming_uniform_", "kaiming_normal_"], kaiming)
TORCH |= dict.fromkeys(["xavier_uniform_", "xavier_normal_"], xavier)
TORCH |= {"normal_": of_mean, "uniform_": of_bounds, "trunc_normal_": of_truncated, "orthogonal_": of_orthogonal}
TORCH |= dict.fromkeys(["constant_", "zeros_", "ones_"], of_value)

# The same arguments for all, where they have no defaults or others.
ARGUMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "VarianceScaling": (
        {"scale": 2.0, "mode": "fan_out", "distribution": "uniform"},
        {"scale": 2.0, "mode": "fan_out", "distribution": "uniform"},
        {"scale": 2.0, "mode": "fan_out", "distribution": "uniform"},
    ),
    "RandomNormal": ({"stddev": 0.3}, {"stddev": 0.3}, {"stddev": 0.3}),
    "RandomUniform": ({"maxval": 0.3}, {"minval": 0.0, "maxval": 0.3}, {"scale": 0.3}),
    "TruncatedNormal": ({"stddev": 0.3}, {"stddev": 0.3}, {"stddev": 0.3}),
    "Orthogonal": ({"scale": 2.0}, {"gain": 2.0}, {"scale": 2.0}),
    "DeltaOrthogonal": ({"scale": 2.0}, {}, {"scale": 2.0}),
    "Constant": ({"constant": 0.5}, {"value": 0.5}, {"value": 0.5}),
}


def own_initialiser(name: str, options: dict[str, Any]) -> Any:
    made = getattr(elegy.initializers, name)
    return made if name in ("zeros", "ones") else made(**options)


def check_initialiser(key: Key) -> None:
    own, of_keras, of_flax = ARGUMENTS.get(key.elegy, ({}, {}, {}))
    shape: Any = (3, 4, 6) if key.elegy == "DeltaOrthogonal" else SHAPE
    if key.library == "PyTorch":
        own = own if key.elegy == "Constant" else {}
    ours = np.asarray(own_initialiser(key.elegy, own)(KEY, shape, jnp.float32))
    if key.library == "Flax NNX":
        made = getattr(nnx.initializers, key.name)
        theirs = made if key.name in ("zeros", "ones") else made(**of_flax)
        np.testing.assert_allclose(ours, theirs(KEY, shape, jnp.float32), rtol=1e-6)
    elif key.library == "Keras":
        cls = getattr(keras.initializers, key.name)
        theirs = np.asarray((cls() if key.name in ("Zeros", "Ones") else cls(**of_keras))(shape))
        np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.02, atol=1e-6)
        # Of samples without bounds the largest is a matter of chance.
        rtol = 0.15 if "rthog" in key.name or key.name == "RandomNormal" else 0.08
        np.testing.assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=rtol)
        if key.elegy == "Orthogonal":
            assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-4)
    else:
        std, bound = OF_TORCH[key.name]
        np.testing.assert_allclose(ours.std(), std, rtol=0.02, atol=1e-6)
        if bound is not None:
            assert np.abs(ours).max() <= bound * (1 + 1e-6) and np.abs(ours).max() >= 0.98 * bound
        if key.name == "orthogonal_":
            assert_close(ours @ ours.T, np.eye(120), atol=1e-4)


for row in ROWS:
    if row.family == "Initialisers":
        CHECKS |= dict.fromkeys(keys_of(row), check_initialiser)


def assert_uniform(values: Any, bound: float) -> None:
    values = np.abs(np.asarray(values))
    assert 0.8 * bound < values.max() <= bound * (1 + 1e-6)


def test_initial_values_of_dense_layers() -> None:
    x = jnp.ones([1, 120])
    ours, of_keras, of_flax = nn.Linear(200).init(x), keras.layers.Dense(200), nnx.Linear(120, 200, rngs=RNGS)
    of_keras.build((1, 120))
    of_equinox = eqx.nn.Linear(120, 200, key=KEY)
    for w in (ours.w, of_flax.kernel[...]):
        np.testing.assert_allclose([w.std(), jnp.abs(w).max()], [120**-0.5, 2 * 120**-0.5 / 0.8796], rtol=0.02)
    kernel = np.asarray(of_keras.kernel.value)
    np.testing.assert_allclose([kernel.std(), np.abs(kernel).max()], [(2 / 320) ** 0.5, (6 / 320) ** 0.5], rtol=0.02)
    assert_uniform(of_equinox.weight, 120**-0.5)
    assert_uniform(of_equinox.bias, 120**-0.5)
    assert (ours.b == 0).all() and (of_flax.bias[...] == 0).all() and (np.asarray(of_keras.bias.value) == 0).all()


def test_initial_values_of_convolutions() -> None:
    x = jnp.ones([1, 4, 4, 8])
    ours, of_keras = nn.Conv2D(64, 3).init(x), keras.layers.Conv2D(64, 3)
    of_keras.build(x.shape)
    of_flax, of_equinox = nnx.Conv(8, 64, (3, 3), rngs=RNGS), eqx.nn.Conv2d(8, 64, 3, key=KEY)
    for w in (ours.w, of_flax.kernel[...]):
        np.testing.assert_allclose(w.std(), 72**-0.5, rtol=0.03)
    np.testing.assert_allclose(np.abs(np.asarray(of_keras.kernel.value)).max(), (6 / (72 + 576)) ** 0.5, rtol=0.02)
    assert_uniform(of_equinox.weight, 72**-0.5)
    assert_uniform(of_equinox.bias, 72**-0.5)


def test_initial_values_of_embeddings() -> None:
    of_keras = keras.layers.Embedding(300, 100)
    of_keras.build()
    np.testing.assert_allclose(nn.Embedding(300, 100).init(IDS).w.std(), 0.1, rtol=0.02)
    np.testing.assert_allclose(nnx.Embed(300, 100, rngs=RNGS).embedding[...].std(), 0.1, rtol=0.02)
    np.testing.assert_allclose(eqx.nn.Embedding(300, 100, key=KEY).weight.std(), 1, rtol=0.02)
    assert_uniform(of_keras.embeddings.value, 0.05)


def test_initial_values_of_recurrent_weights() -> None:
    ours = nn.LSTMCell(5)
    ours(ours.initial_state([4]), X)
    of_keras = keras.layers.LSTMCell(5)
    of_keras.build((4, 3))
    of_flax = nnx.LSTMCell(3, 5, rngs=RNGS)
    whole = [np.asarray(of_keras.recurrent_kernel.value), nnx.OptimizedLSTMCell(3, 5, rngs=RNGS).dense_h.kernel[...]]
    for w in (*np.split(np.asarray(ours.recurrent_w), 4, axis=1), of_flax.hi.kernel[...], *whole):
        np.testing.assert_allclose(w @ w.T, np.eye(5), atol=1e-5)
    for w in whole:
        assert np.abs(w[:, :5] @ w[:, :5].T - np.eye(5)).max() > 0.1
    assert_uniform(eqx.nn.LSTMCell(3, 5, key=KEY).weight_hh, 5**-0.5)


# ---------------------------------------------------------------------------------------------------------------------
# The tests of every row
# ---------------------------------------------------------------------------------------------------------------------


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    told = [key for row in ROWS for key in keys_of(row)]
    assert len(told) == len(set(told))
    assert sorted(set(told) - set(CHECKS)) == []
    assert sorted(set(CHECKS) - set(told)) == []


def test_every_recipe_has_a_row() -> None:
    told = {(row.elegy, library) for row in ROWS for library, names in row.names.items() if names}
    assert {recipe[:2] for recipe in RECIPES} <= told


@pytest.mark.parametrize("key", CHECKS, ids=lambda key: "-".join(key))
def test_values_and_gradients(key: Key) -> None:
    found = CHECKS[key]
    found.check(key) if isinstance(found, Case) else found(key)


CLAIMS = re.compile(rf"\b(Elegy|{'|'.join(LIBRARIES)}): ((?:`\w+=[^`]+`(?:, )?)+)")
# Our argument, and what the same is called elsewhere.
SYNONYMS = {
    "eps": ["eps", "epsilon"],
    **{
        name: [name]
        for name in "from_logits label_smoothing alpha beta gamma delta margin temperature threshold k mode curve "
        "num_thresholds mean stddev minval maxval lower upper distribution factor l1 l2".split()
    },
    "blank": ["blank", "blank_id"],
    "scale": ["scale", "gain"],
    "decay_rate": ["momentum"],
    "padding": ["padding"],
    "stride": ["stride", "strides"],
    "strides": ["stride", "strides"],
    "count_include_padding": ["count_include_pad"],
    "antialias": ["antialias"],
    "method": ["mode", "interpolation"],
    "dropout_rate": ["dropout", "dropout_p", "dropout_rate"],
    "base": ["theta"],
    "norm_first": ["norm_first"],
    "return_sequences": ["return_sequences"],
    "return_state": ["return_state", "return_carry"],
    "reverse": ["reverse", "go_backwards"],
    "merge": ["merge_mode"],
    "channel_multiplier": ["depth_multiplier"],
    "rate": ["rate", "p", "dilation", "dilation_rate"],
    "groups": ["groups", "num_groups"],
    "with_bias": ["use_bias", "bias"],
    "iterations": ["power_iterations", "n_steps", "num_power_iterations"],
    "create_scale": ["scale", "use_scale", "affine"],
}

NONE_IS = {("Flax NNX", "strides"): 1}


def defaults_of(function: Any) -> dict[str, Any]:
    """The arguments that have a default, and it."""
    parameters = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def simple(value: Any) -> Any:
    """One value for a tuple of equal ones, and text in small letters."""
    if isinstance(value, (tuple, list)) and value and len(set(value)) == 1:
        value = value[0]
    return value.lower() if isinstance(value, str) else value


def claims_of(row: Row) -> Iterator[tuple[str, str, Any]]:
    """What a row says of defaults: library, argument and value."""
    for library, claims in CLAIMS.findall(row.differs):
        for claim in CODE.findall(claims):
            argument, _, value = claim.partition("=")
            yield library, argument, ast.literal_eval(value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.family}-{row.elegy}")
def test_defaults(row: Row) -> None:
    """Those that are told are true, and those that differ are told."""
    told = {}
    for library, argument, value in claims_of(row):
        names = [row.elegy] if library == "Elegy" else row.names[library]
        for name in names:
            defaults = defaults_of(thing(row.family, library, name))
            assert argument in defaults, f"{library} {name} has no {argument}"
            assert simple(defaults[argument]) == simple(value), f"{library} {name}: {argument}={defaults[argument]}"
            told[library, argument] = value
    own = defaults_of(thing(row.family, "Elegy", row.elegy))
    for key in keys_of(row):
        theirs = defaults_of(thing(row.family, key.library, key.name))
        for argument, synonyms in SYNONYMS.items():
            for synonym in set(synonyms) & set(theirs) if argument in own else ():
                default = NONE_IS.get((key.library, synonym)) if theirs[synonym] is None else theirs[synonym]
                default = "valid" if (synonym, default) == ("padding", 0) else default
                if simple(default) != simple(own[argument]):
                    assert (key.library, synonym) in told, f"{key}: {synonym}={theirs[synonym]} is not told"


def test_every_default_on_the_page_is_read() -> None:
    """None is in a form that the tests do not know."""
    for row in ROWS:
        for library in ("Elegy", *LIBRARIES):
            count = len(re.findall(rf"\b{library}: `", row.differs))
            assert count == sum(library == found for found, _ in CLAIMS.findall(row.differs)), row
