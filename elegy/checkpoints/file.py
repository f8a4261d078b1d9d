"""Trees of arrays in a file: one safetensors file, read and written by name.

Safetensors holds a flat mapping from names to arrays of the common dtypes. What it cannot say stands in its metadata,
as JSON under the key `elegy`:

- `format`: the version of this layout, and `elegy`: the version of the library that wrote the file.
- `arrays`: for each array that is stored as something else, its `dtype` and `shape`; and for a PRNG key its
  implementation, `key`. Keys are stored as their key data, the other dtypes as bytes along a new last axis.
- `values`: for each Python scalar, its `type`, and its `value` as text.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import secrets
import typing as tp
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy.checkpoints import disk
from elegy.errors import CheckpointError
from elegy.layout import child_parts, meta_of
from elegy.leaves import Node, is_array, is_node
from elegy.selections import Selection
from elegy.transaction import lock

Tree = tp.TypeVar("Tree")
Path = str | os.PathLike[str]
Rename = Mapping[str, str] | Callable[[str], str]

_FORMAT = 1
_HEADER = "elegy"
_LARGEST_TABLE = 100_000_000  # bytes: what safetensors reads

# The dtypes that every supported version of safetensors writes and reads, by its own name for them.
_NATIVE = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
CODES = {name: code for code, name in _NATIVE.items()}
# In files of other programs only.
_READABLE = {**_NATIVE, "C64": "complex64"}

# The Python scalars, and how to read them from what `str` makes of them.
_SCALARS: dict[type, Callable[[str], tp.Any]] = {
    bool: {"True": True, "False": False}.__getitem__,
    int: int,
    float: float,
    str: str,
}


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------


def save(path: Path, tree: tp.Any) -> None:
    """Writes the arrays of a pytree to a file, by name, in the safetensors format.

    **Arguments:**

    - `path`: the file. Its folder must exist. A file that is there is replaced, all at once, when the new one is
      complete: if anything fails, the old one stays.
    - `tree`: any pytree: a module, an optimiser state, a dict of those. Its leaves are JAX or NumPy arrays of any shape
      and any numeric dtype, typed PRNG keys, and Python's `bool`, `int`, `float` and `str`. None is structure, as it is
      everywhere in JAX. Of a `Selection` only the selected arrays are written.

    The name of an array is its path in the tree: `module/encoder/w`. A module that is reachable from another by two
    paths is saved once, at the first. Neither classes nor static attributes are saved: they come from the code.

    **Raises:** `CheckpointError` if two leaves have one name or a leaf cannot be saved; `OSError` if the file cannot be
    written.

    ```python
    import elegy
    import jax.numpy as jnp
    import optax

    module = elegy.nn.Linear(3).init(jnp.ones([1, 2]))
    state = optax.adam(1e-3).init(module.get_parameters())
    elegy.save("checkpoint.safetensors", {"module": module, "optimizer": state})
    ```
    """
    if not isinstance(path, (str, os.PathLike, bytes)):
        raise TypeError(f"elegy.save takes the path first, elegy.save(path, tree); got a {type(path).__name__}")
    location = os.fsdecode(path)
    _write(location, collect(tree, location))


class Content(tp.NamedTuple):
    """What a file is to hold: arrays of dtypes that safetensors has, by name, and what stands in the metadata."""

    arrays: dict[str, np.ndarray]
    header: str


def collect(tree: tp.Any, location: str, copy: bool = False) -> Content:
    """The content of a file with the leaves of a tree. With `copy`, nothing of it is shared with them."""
    if isinstance(tree, Selection):
        tree = tree.get()
    arrays: dict[str, np.ndarray] = {}
    entries: dict[str, tp.Any] = {}
    values: dict[str, tp.Any] = {}
    leaves, _ = _named_leaves(tree)
    problems = _problems_of_saving(tree, leaves)
    if problems:
        raise CheckpointError(message(f"{location} was not written", problems))
    request(leaf for _, leaf in leaves)
    for name, leaf in leaves:
        if type(leaf) in _SCALARS:
            values[name] = {"type": type(leaf).__name__, "value": str(leaf)}
            continue
        arrays[name], entry = encode(leaf, copy)
        if entry is not None:
            entries[name] = entry
    header = {"format": _FORMAT, "elegy": version(), "arrays": entries, "values": values}
    return Content(arrays, json.dumps(header))


def request(leaves: Iterable[tp.Any]) -> None:
    """Begins to copy arrays from their devices, all at once."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()


def version() -> str:
    import elegy

    return elegy.__version__


def _named_leaves(tree: tp.Any) -> tuple[list[tuple[str, tp.Any]], tp.Any]:
    with lock:  # else another thread that trains may write in between
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [(_name(path), leaf) for path, leaf in leaves], structure


def _name(path: tp.Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _problems_of_saving(tree: tp.Any, leaves: Sequence[tuple[str, tp.Any]]) -> list[str]:
    problems = [f"{name!r}: {problem}" for name, leaf in leaves if (problem := why_not(leaf)) is not None]
    problems += [f"{name!r}: two leaves have this name. Rename one of them." for name in _repeated(leaves)]
    if any(name == "__metadata__" for name, _ in leaves):
        problems.append("'__metadata__': this name is reserved by the file format. Choose another one.")
    problems += [f"{name!r}: this name is not valid Unicode." for name, _ in leaves if not _is_unicode(name)]
    if not leaves:
        problems.extend(
            f"{prefix!r}: there is nothing to save: this {type(module).__name__} is not initialised. "
            f"{_how_to_initialise(module)}"
            for prefix, module in _uninitialised(tree)
        )
    return problems


def _is_unicode(name: str) -> bool:
    return name.isascii() or name.encode(errors="replace").decode() == name


def _repeated(leaves: Iterable[tuple[str, tp.Any]]) -> list[str]:
    counts = collections.Counter(name for name, _ in leaves)
    return [name for name, count in counts.items() if count > 1]


def why_not(leaf: tp.Any) -> str | None:
    """Why a leaf cannot be saved."""
    if type(leaf) in _SCALARS:
        return None
    if isinstance(leaf, Tracer):
        return "the array is being traced and has no value yet. Call save outside of jax transforms."
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "a jax.ShapeDtypeStruct has no value."
    if isinstance(leaf, np.ma.MaskedArray):
        return "a masked array would lose its mask. Save its data and its mask as two arrays."
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return f"a {type(leaf).__name__} is not an array. Save the arrays only: equinox.filter(tree, equinox.is_array)."
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            return "the array was donated to a compiled function. Save before that call, or save what it returns."
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return (
                "parts of the array belong to other processes. "
                "Gather it first: jax.experimental.multihost_utils.process_allgather(tree, tiled=True)."
            )
    if _is_key(leaf):
        is_named = isinstance(jax.random.key_impl(leaf), str)
        return None if is_named else "its PRNG implementation is not registered by a name."
    return None if _is_numeric(leaf.dtype) else f"the dtype {leaf.dtype} is not a numeric one."


def _is_numeric(dtype: np.dtype) -> bool:
    return dtype == np.bool_ or (dtype.kind not in "mM" and jnp.issubdtype(dtype, np.number))


def _is_key(leaf: tp.Any) -> tp.TypeGuard[jax.Array]:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def encode(leaf: tp.Any, copy: bool) -> tuple[np.ndarray, dict[str, tp.Any] | None]:
    """An array of a dtype that safetensors has, and the header's entry if it is not the leaf itself."""
    entry = {"dtype": leaf.dtype.name, "shape": list(leaf.shape)}
    if _is_key(leaf):
        return _on_host(jax.random.key_data(leaf), copy), {**entry, "key": jax.random.key_impl(leaf)}
    array = _on_host(leaf, copy)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.name in CODES:
        return array, None
    return array.reshape(*array.shape, 1).view(np.uint8), entry


def _on_host(leaf: tp.Any, copy: bool) -> np.ndarray:
    # Not ascontiguousarray, which gives an array of rank 0 an axis.
    array = np.asarray(leaf, order="C")
    # On a CPU this is a view of the buffer, which could not be donated while there is one. From other devices it came
    # as a copy, which the JAX array keeps and nobody writes to.
    if copy and not (isinstance(leaf, jax.Array) and array.flags.owndata):
        array = array.copy()
    return array


def metadata(header: str) -> dict[str, str]:
    return {_HEADER: header}


def serialised(content: Content) -> Iterator[tp.Any]:
    """The parts of a safetensors file: the length of its table, the table, and the bytes of each array.

    Not by the library, which copies each array first, and from which a checksum would have to be read back.
    """
    arrays = content.arrays
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that each array is aligned
    table: dict[str, tp.Any] = {"__metadata__": metadata(content.header)}
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        code = CODES[arrays[name].dtype.name]
        table[name] = {"dtype": code, "shape": list(arrays[name].shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LARGEST_TABLE:
        raise CheckpointError(
            f"names, shapes and Python values of the {len(arrays)} arrays take {len(text)} bytes, and nobody could "
            f"read the file: safetensors takes up to {_LARGEST_TABLE}.\n"
            "  Stack arrays that are alike, or write several files; and let long texts be arrays of bytes."
        )
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield arrays[name].reshape(-1).view(np.uint8)


def _write(path: str, content: Content) -> None:
    with _replacing(path) as temporary:
        try:
            disk.write(temporary, serialised(content))
        except OSError as error:
            error.add_note(f"{path} was not written.")
            raise


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """The path of a new file, which takes the place of `path` when the block has ended without an error."""
    path = os.path.realpath(path)  # a link stays a link
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"{path} is a folder. Give the path of a file: {os.path.join(path, 'model.safetensors')}"
        )
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"the folder {folder} does not exist. Create it first: os.makedirs({folder!r})")
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        disk.do(os.replace, temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            disk.do(os.unlink, temporary)
        raise
    disk.synchronise_folder(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


@tp.overload
def load(path: Path, like: Selection[Tree], strict: bool = True, rename: Rename | None = None) -> Tree: ...
@tp.overload
def load(path: Path, like: Tree, strict: bool = True, rename: Rename | None = None) -> Tree: ...
def load(path: Path, like: tp.Any, strict: bool = True, rename: Rename | None = None) -> tp.Any:
    """Reads a file that `save` wrote, or any safetensors file, into a tree of a known structure.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree with the structure, the shapes and the dtypes that are wanted. It is not modified. Its arrays may
      be `jax.ShapeDtypeStruct`s, as `jax.eval_shape` gives them. A module must be initialised, and gives the static
      attributes and the frozen flags. Of a `Selection` only the selected arrays are wanted, and what is returned is a
      copy of the tree that they were selected from.
    - `strict`: whether the names of the file must be those of `like`. With False, what the file lacks keeps the value
      that it has in `like`, and what `like` lacks is ignored. Shapes and dtypes must be equal in any case.
    - `rename`: from the names in the file to the names in `like`. Either a function of a name, or a dict of names or
      prefixes of them: `{"encoder": "backbone/encoder"}` moves all below `encoder/`, and `{"module": ""}` takes what is
      below `module/` to the top. Of two entries that fit, the longer one is taken.

    **Returns:** a tree like `like` with the values of the file. Where `like` has a NumPy array there is a NumPy array,
    and elsewhere a JAX array, laid out over devices as the one in `like`. Python scalars come back as what they were;
    their types must be equal too.

    **Raises:** `CheckpointError`, listing every name that is missing, unexpected, or has another shape or dtype; also
    if the file is damaged, or an entry of `rename` fits no name. `FileNotFoundError` or `IsADirectoryError` if there is
    no such file.

    In the object-oriented style, copy the values into the module that you have:

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    module = elegy.nn.Linear(3).init(jnp.ones([1, 2]))
    elegy.save("linear.safetensors", module)

    other = elegy.nn.Linear(3).init(jax.ShapeDtypeStruct([1, 2], jnp.float32))
    other.set_parameters(elegy.load("linear.safetensors", like=other).get_parameters())
    assert (other.w == module.w).all()
    ```
    """
    location = os.fsdecode(path)
    with opened(location) as file:
        return restore(file, location, like, strict, rename)


@tp.runtime_checkable
class File(tp.Protocol):
    """An open file, as safetensors has it."""

    def metadata(self) -> dict[str, str] | None: ...
    def keys(self) -> Iterable[str]: ...
    def get_slice(self, name: str, /) -> tp.Any: ...
    def get_tensor(self, name: str, /) -> np.ndarray: ...


def restore(file: File, location: str, like: tp.Any, strict: bool, rename: Rename | None, part: bool = False) -> tp.Any:
    """A tree like `like` with what is in an open file."""
    if isinstance(like, Selection):
        return like.set(restore(file, location, like.get(), strict, rename, part))
    leaves, structure = _named_leaves(like)
    stored = read_entries(file, location)
    if rename is not None:
        stored = _renamed(stored, rename, location)
    problems = _problems_of_loading(like, leaves, stored, strict, part)
    if problems:
        raise CheckpointError(message(f"{location} does not fit the tree given as `like`", problems))
    return structure.unflatten([decode(file, stored[name], leaf) if name in stored else leaf for name, leaf in leaves])


class Entry(tp.NamedTuple):
    """What the file says of one name."""

    name: str  # in the file
    dtype: str  # the name of a dtype, or the type of a Python scalar
    shape: tuple[int, ...] | None = None  # None for a Python scalar
    encoded: tuple[int, ...] | None = None  # the shape of what is stored, if that is something else
    key: str | None = None  # the PRNG implementation of a key
    value: tp.Any = None  # of a Python scalar

    def __str__(self) -> str:
        return _description(self.dtype, self.shape)


def _description(dtype: str, shape: Iterable[int] | None) -> str:
    return f"Python {dtype}" if shape is None else f"{dtype}[{','.join(map(str, shape))}]"


def _describe(leaf: tp.Any) -> str:
    if is_array(leaf) or isinstance(leaf, np.generic):
        return _description(leaf.dtype.name, leaf.shape)
    return _description(type(leaf).__name__, None)


@contextlib.contextmanager
def opened(path: str) -> Iterator[File]:
    import safetensors

    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder. Give the path of a file in it.")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged, or not a safetensors file: {error}") from error


def read_entries(file: File, path: str) -> dict[str, Entry]:
    """What is in a file, by name. Reads no array."""
    try:
        header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
        version, writer = int(header.get("format", _FORMAT)), header.get("elegy")
        entries = _parse(file, header) if version <= _FORMAT else {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged: {type(error).__name__}: {error}") from error
    if version > _FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, and this version of Elegy reads formats up to {_FORMAT}.\n"
            f"  Upgrade to Elegy {writer}, which wrote it."
        )
    return entries


def _parse(file: File, header: tp.Any) -> dict[str, Entry]:
    described = header.get("arrays", {})
    entries: dict[str, Entry] = {}
    for name in file.keys():  # noqa: SIM118  (not a mapping)
        part = file.get_slice(name)
        stored, code = tuple(part.get_shape()), str(part.get_dtype())
        if name not in described:
            entries[name] = Entry(name, _READABLE.get(code, code), stored)
            continue
        dtype, shape, key = described[name]["dtype"], tuple(described[name]["shape"]), described[name].get("key")
        rest = stored[len(shape) :]
        if stored != (*shape, *rest) or not (
            key or (_is_numeric(np.dtype(dtype)) and rest == (np.dtype(dtype).itemsize,))
        ):
            raise ValueError(f"{name!r} cannot be {_description(dtype, shape)}: it is stored as {code}{list(stored)}")
        entries[name] = Entry(name, dtype, shape, stored, key)
    scalars = {kind.__name__: read for kind, read in _SCALARS.items()}
    for name, entry in header.get("values", {}).items():
        entries[name] = Entry(name, entry["type"], value=scalars[entry["type"]](entry["value"]))
    return entries


def _renamed(stored: dict[str, Entry], rename: Rename, path: str) -> dict[str, Entry]:
    renamed: dict[str, Entry] = {}
    problems: list[str] = []
    used: set[str] = set()
    for name, entry in stored.items():
        if isinstance(rename, Mapping):
            fitting = [old for old in rename if old in ("", name) or name.startswith(f"{old}/")]
            old = max(fitting, key=len, default=None)
            new = name if old is None else _moved(name, old, rename[old])
            used.update(() if old is None else (old,))
        else:
            new = rename(name)
        if not isinstance(new, str):
            problems.append(f"{name!r}: rename gives {new!r}, which is not a name.")
        elif new in renamed:
            problems.append(f"{new!r}: both {renamed[new].name!r} and {name!r} would have this name.")
        else:
            renamed[new] = entry
    if isinstance(rename, Mapping):
        problems += [
            f"{old!r}: no name in the file is this or begins with {old + '/'!r}." for old in rename if old not in used
        ]
        if not used.issuperset(rename):
            problems.append(f"The file has: {', '.join(map(repr, stored)) or 'nothing'}.")
    if problems:
        raise CheckpointError(message(f"{path} cannot be renamed so", problems))
    return renamed


def _moved(name: str, old: str, new: str) -> str:
    if name == old:
        return new
    rest = name.removeprefix(f"{old}/") if old else name
    return f"{new}/{rest}" if new else rest


def _problems_of_loading(
    like: tp.Any, leaves: Sequence[tuple[str, tp.Any]], stored: dict[str, Entry], strict: bool, part: bool
) -> list[str]:
    wanted = dict(leaves)
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted]
    unexpected = [] if part else unexpected
    problems, unexpected = _uninitialised_targets(like, unexpected)
    problems += [f"{name!r}: two leaves of `like` have this name. Rename one of them." for name in _repeated(leaves)]
    for name, leaf in wanted.items():
        if name in stored and (problem := misfit(stored[name], leaf)) is not None:
            problems.append(f"{name!r}: {problem}")
    if strict and (missing or unexpected):
        problems += [f"{name!r}: not in the file ({_describe(wanted[name])} in `like`)." for name in missing]
        problems += [f"{name!r}: not in `like` ({stored[name]} in the file)." for name in unexpected]
        problems.append(
            "If only a part is wanted, pass strict=False: it keeps the value in `like` of what is missing, and ignores "
            "what is unexpected. If names have changed, pass rename={old: new}."
        )
    return problems


def misfit(entry: Entry, leaf: tp.Any) -> str | None:
    """Why an entry of the file cannot take the place of a leaf."""
    if str(entry) != _describe(leaf):
        return f"{entry} in the file, {_describe(leaf)} in `like`."
    return unreadable(entry, leaf)


def unreadable(entry: Entry, leaf: tp.Any) -> str | None:
    """Why an entry of the file cannot be had here as the kind of array that a leaf is."""
    if entry.key is not None:
        data = jax.ShapeDtypeStruct(entry.encoded or (), jnp.uint32)
        try:
            jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl=entry.key), data)
        except (TypeError, ValueError) as error:
            return f"the file has keys of the implementation {entry.key!r}, which cannot be made here: {error}"
    elif entry.shape is not None and not isinstance(leaf, (np.ndarray, np.generic)):
        if jax.dtypes.canonicalize_dtype(entry.dtype) != np.dtype(entry.dtype):
            return f"JAX has no {entry.dtype} here. Enable it: jax.config.update('jax_enable_x64', True)."
    return None


def _uninitialised_targets(like: tp.Any, unexpected: Sequence[str]) -> tuple[list[str], list[str]]:
    """The problems of modules that lack arrays of the file because they have not been initialised, and the unexpected
    names that these do not explain."""
    problems: list[str] = []
    for prefix, module in _uninitialised(like) if unexpected else ():
        rest = [name for name in unexpected if prefix and not name.startswith(f"{prefix}/")]
        if len(rest) < len(unexpected):
            problems.append(
                f"{prefix!r}: this {type(module).__name__} of `like` is not initialised, and the file has arrays below "
                f"it ({len(unexpected) - len(rest)}). {_how_to_initialise(module)}"
            )
        unexpected = rest
    return problems, list(unexpected)


def _how_to_initialise(module: Node) -> str:
    if hasattr(module, "adapt"):  # an optimiser
        return "Create its state first: optimizer.adapt(module)."
    return "Initialise it first: module.init(jax.ShapeDtypeStruct(shape, dtype))."


def _uninitialised(tree: tp.Any) -> Iterator[tuple[str, Node]]:
    """The topmost modules that have not been initialised, each once, with their names."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_node)[0]
    stack = [(_name(path), leaf) for path, leaf in reversed(found) if isinstance(leaf, Node)]
    seen: set[int] = set()
    while stack:
        prefix, node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if not meta_of(node).initialized:
            yield prefix, node
            continue
        for parts, child in child_parts(node):
            stack.append(("/".join(filter(None, [prefix, *parts])), child))


def decode(file: File, entry: Entry, like: tp.Any) -> tp.Any:
    """The value of an entry that fits `like`, as the kind of array that `like` is."""
    if entry.shape is None:
        return entry.value
    array = file.get_tensor(entry.name)
    if entry.key is not None:
        return _placed(jax.random.wrap_key_data(jnp.asarray(array), impl=entry.key), like)
    if entry.encoded is not None:
        array = array.view(np.dtype(entry.dtype)).reshape(entry.shape)
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray):
        return array.astype(like.dtype, copy=False)
    return _placed(array, like)


def _placed(array: tp.Any, like: tp.Any) -> jax.Array:
    """A JAX array on the devices that were chosen for `like`, if any were."""
    if isinstance(like, jax.ShapeDtypeStruct):
        sharding = like.sharding
    elif isinstance(like, jax.Array) and not isinstance(like, Tracer) and like.committed:
        sharding = like.sharding
    else:
        sharding = None
    if getattr(like, "weak_type", False):
        array = _weakly_typed(array)
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def _weakly_typed(array: np.ndarray) -> tp.Any:
    """An array that, like a Python number, takes the dtype of what it is added to: a learning rate in an optimiser."""
    weak = jnp.full(array.shape, array.dtype.type(0).item())
    return weak.at[...].set(array) if weak.dtype == array.dtype else array


def message(what: str, problems: Sequence[str]) -> str:
    return f"{what}:\n  " + "\n  ".join(problems)
