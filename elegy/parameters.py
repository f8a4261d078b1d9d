"""Reading and writing the arrays of a module."""

from __future__ import annotations

import dataclasses
import typing as tp
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy.captures import check_constants, constants
from elegy.containers import is_plain_container, thaw
from elegy.errors import (
    ParameterError,
    StructureError,
    UninitialisedWarning,
)
from elegy.frames import note_update, path_of, require_same_trace, warn
from elegy.layout import Slot, meta_of, slots_by_attribute, walk
from elegy.leaves import Node, is_array, is_foreign, is_node, is_static
from elegy.precision import NUMBERS, PYTHON_NUMBERS, strong
from elegy.pytree import forget_pending
from elegy.state import remove, state, transact, transaction, write, write_meta
from elegy.transaction import held, lock

# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


# What to put in the place of an array: given its module, the attribute, its position in the attribute, and the array.
Leaf = Callable[[Node, str, int, tp.Any], tp.Any]


def collect(module: Node, trainable: bool | None, leaf: Leaf, seen: set[int] | None = None) -> dict[str, tp.Any]:
    """A nested dict, by attribute name, of `leaf(...)` for each array of the kind that is asked for.

    What `leaf` gives `NOTHING` for is left out. A module that is reachable by two paths appears at the first.
    """
    seen = set() if seen is None else seen
    seen.add(id(module))
    parameters = meta_of(module).parameters

    def found_at(slot: Slot, value: tp.Any) -> tp.Any:
        if slot.holds == "module":
            return NOTHING if id(value) in seen else collect(value, trainable, leaf, seen)
        wanted = slot.holds == "array" and trainable in (None, slot.trainable)
        return leaf(module, slot.name, slot.position, value) if wanted else NOTHING

    result: dict[str, tp.Any] = {}
    for name, row in slots_by_attribute(module).items():
        found = [(slot.position, found_at(slot, value)) for slot, value in row]
        found = [(position, part) for position, part in found if part is not NOTHING]
        if not found:
            continue
        if row[0][0].keys is None:
            ((_, result[name]),) = found
            continue
        value = held(module)[name]
        parts = jax.tree.leaves(value, is_leaf=is_node)
        parts = [None if is_foreign(value) or name in parameters else ()] * len(parts)
        for position, part in found:
            parts[position] = part
        result[name] = thaw(jax.tree.structure(value, is_leaf=is_node).unflatten(parts))
    return result


NOTHING = object()


def get_parameters(module: Node, trainable: bool | None = None) -> dict[str, tp.Any]:
    with lock:
        if trainable is not True:
            forget_pending(module)
        found = collect(module, trainable, lambda module, name, index, value: value)
    if trainable is True and state.init_pass is None and not jax.tree.leaves(found):
        _warn_if_it_never_ran(module)
    return found


def _warn_if_it_never_ran(module: Node) -> None:
    """Warns that a module has no trainable parameters because it never ran, and not because all are frozen."""
    meta = meta_of(module)
    if meta.trainable and not meta.initialized:
        warn(
            UninitialisedWarning(
                f"{path_of(module)} has no trainable parameters yet, since it never ran: an optimiser that is "
                "initialised with them would know none.\n"
                "  Initialise the module before: module.init(x), or call it once."
            )
        )


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def check_value(path: str | Callable[[], str], old: tp.Any, new: tp.Any) -> tp.Any:
    """`new` as a replacement of the array `old`. A function gives the path where that is costly."""
    value: tp.Any = new
    if isinstance(new, (bool, int, float, complex)):
        value = _of_dtype(path, old, new)
    elif isinstance(new, np.generic):
        value = jnp.asarray(new)
    if not is_array(value) or (isinstance(value, jax.ShapeDtypeStruct) and not isinstance(old, jax.ShapeDtypeStruct)):
        path = path() if callable(path) else path
        raise ParameterError(f"{path}: expected an array of shape {tuple(old.shape)}, got {type(new).__name__}.")
    if tuple(value.shape) != tuple(old.shape) or value.dtype != old.dtype:
        path = path() if callable(path) else path
        raise ParameterError(
            f"{path} is {old.dtype}{list(old.shape)}, and the new value is {value.dtype}{list(value.shape)}.\n"
            "  Give a value of the same shape and dtype (reshape it, or use .astype)."
        )
    if isinstance(value, np.ndarray) and isinstance(old, jax.Array) and not isinstance(old, Tracer):
        # An array of JAX, as annotations demand. It is a copy, since the array of NumPy may be written to later.
        value = jax.device_put(np.array(value), old.sharding) if old.committed else jnp.array(value)
    return strong(value)


def _of_dtype(path: str | Callable[[], str], old: tp.Any, number: bool | int | float | complex) -> jax.Array:
    """A Python number as an array of the dtype of `old`, if that can hold it."""
    needed = next(i for i, kind in enumerate(PYTHON_NUMBERS) if isinstance(number, kind))
    if any(jnp.issubdtype(old.dtype, kind) for kind in NUMBERS[needed:]):
        try:
            return jnp.asarray(number, old.dtype)
        except OverflowError:
            pass
    path = path() if callable(path) else path
    raise ParameterError(
        f"{path} is {old.dtype}{list(old.shape)}, and cannot hold the Python {type(number).__name__} {number!r}.\n"
        "  Give a value of its dtype."
    )


class _Write(tp.NamedTuple):
    module: Node
    name: str
    value: tp.Any
    path: str


def set_parameters(module: Node, values: tp.Any) -> None:
    """Checks everything, then writes everything."""
    writes: list[_Write] = []
    problems: list[str] = []
    with transaction():
        _plan(module, values, path_of(module), writes, problems)
        if problems:
            raise ParameterError("set_parameters changed nothing:\n  " + "\n  ".join(problems))
        for owner, _, _, path in writes:
            require_same_trace(owner, "set its parameters", path)
        if constants:
            check_constants([owner for owner, *_ in writes])
        for owner, name, value, path in writes:
            write(owner, name, value)
            note_update(owner, name, path)


def _plan(module: Node, values: tp.Any, path: str, writes: list[_Write], problems: list[str]) -> None:
    if isinstance(values, Node):
        values = get_parameters(values)
    if not isinstance(values, Mapping):
        problems.append(f"{path}: expected a dict of parameters, got {type(values).__name__}.")
        return
    for name, value in values.items():
        attributes = held(module)
        old = attributes.get(name)
        if not isinstance(old, Node) and (name not in attributes or is_static(old)):
            known = ", ".join(slots_by_attribute(module)) or "none"
            hint = "" if meta_of(module).initialized else " The module is not initialised: call it or init first."
            problems.append(f"{path}/{name}: {type(module).__name__} has no such parameter (it has: {known}).{hint}")
            continue
        if not is_array(old) and _is_absent(value, old):
            continue
        new = _replaced(old, value, f"{path}/{name}", writes, problems)
        if new is not old:
            writes.append(_Write(module, name, new, path))


def _replaced(old: tp.Any, value: tp.Any, path: str, writes: list[_Write], problems: list[str]) -> tp.Any:
    """What an attribute, or an entry of a container, becomes. Modules keep their identity: their writes are planned."""
    if isinstance(old, Node):
        _plan(old, value, path, writes, problems)
        return old
    if is_array(old):
        try:
            return check_value(path, old, value)
        except ParameterError as error:
            problems.append(str(error))
            return old
    if isinstance(old, dict) and isinstance(value, Mapping):
        unknown = [key for key in value if key not in old]
        problems.extend(f"{path}/{key}: {_no_such_entry(key, old)}" for key in unknown)
        items = {
            key: _replaced_entry(item, value.get(key, NOTHING), f"{path}/{key}", writes, problems)
            for key, item in old.items()
        }
        return old if all(items[key] is old[key] for key in old) else type(old)(items)
    if is_plain_container(old) and isinstance(value, (list, tuple)) and len(value) == len(old):
        pairs = enumerate(zip(old, value, strict=True))
        parts = [_replaced_entry(item, new, f"{path}/{index}", writes, problems) for index, (item, new) in pairs]
        if all(part is item for part, item in zip(parts, old, strict=True)):
            return old
        return type(old)(*parts) if hasattr(old, "_fields") else type(old)(parts)
    if is_foreign(old):
        return _replaced_foreign(old, value, path, writes, problems)
    problems.append(f"{path}: the value ({type(value).__name__}) has another structure than the attribute.")
    return old


def _no_such_entry(key: tp.Any, entries: Mapping[tp.Any, tp.Any]) -> str:
    """Says which entries there are, and which of them is meant where the keys differ in their type only: 10, '10'."""
    meant = next((repr(other) for other in entries if str(other) == str(key)), None)
    if meant is not None:
        return f"no such entry: the key is {key!r}, and should be {meant}."
    return f"no such entry (there is: {', '.join(map(str, entries))})."


def _is_absent(value: tp.Any, old: tp.Any) -> bool:
    """Whether `value` is what `get_parameters` puts where there is nothing of the kind that was asked for."""
    return value is NOTHING or (isinstance(value, tuple) and len(value) == 0) or (value is None and old is None)


def _replaced_entry(old: tp.Any, value: tp.Any, path: str, writes: list[_Write], problems: list[str]) -> tp.Any:
    """As `_replaced`, for an entry of a container, where arrays may be left out: None or `()` stands for them then."""
    return old if value is None or _is_absent(value, old) else _replaced(old, value, path, writes, problems)


def _replaced_foreign(old: tp.Any, value: tp.Any, path: str, writes: list[_Write], problems: list[str]) -> tp.Any:
    leaves, treedef = jax.tree.flatten(old, is_leaf=is_node)
    try:
        given = treedef.flatten_up_to(value)
    except (TypeError, ValueError) as error:
        problems.append(f"{path}: the value has another structure than the attribute: {error}")
        return old
    pairs = enumerate(zip(leaves, given, strict=True))
    return treedef.unflatten(
        leaf if new is None else _replaced_entry(leaf, new, f"{path}/{i}", writes, problems) for i, (leaf, new) in pairs
    )


def update_parameter(module: Node, name: str, value: tp.Any) -> None:
    if name not in meta_of(module).parameters or name not in held(module):
        known = ", ".join(meta_of(module).parameters) or "none"
        raise ParameterError(
            f"{path_of(module)}: update_parameter({name!r}), but there is no such parameter (there is: {known}).\n"
            f"  Create it first: self.add_parameter({name!r}, ..., trainable=False)."
        )
    require_same_trace(module, f"updated the parameter {name!r}")
    old = held(module)[name]
    if is_array(old):
        value = check_value(lambda: path_of(module, name), old, value)
    elif jax.tree.structure(old) != jax.tree.structure(value):
        raise ParameterError(
            f"{path_of(module, name)}: the new value has another structure.\n"
            f"  old: {jax.tree.structure(old)}\n  new: {jax.tree.structure(value)}"
        )
    else:
        path = lambda: path_of(module, name)  # noqa: E731
        value = jax.tree.map(lambda a, b: check_value(path, a, b) if is_array(a) else b, old, value)
    if constants:
        check_constants([module])
    write(module, name, value)
    note_update(module, name)


# Whether the parameters of a module by itself are trainable, and which of its arrays are frozen besides.
Flags = tuple[bool, frozenset[tuple[str, int]]]


def flags_of(module: Node) -> Flags:
    meta = meta_of(module)
    return meta.trainable, meta.frozen


def set_trainable(module: Node, trainable: bool) -> None:
    transact(lambda: set_flags((node, (bool(trainable), frozenset())) for node in walk([module])))


def set_flags(pairs: Iterable[tuple[Node, Flags]]) -> None:
    """Freezes and thaws modules, each by itself."""
    changed = [(node, flags) for node, flags in pairs if flags_of(node) != flags]
    for node, _ in changed:
        require_same_trace(node, "assigned trainable")
        if id(node) in state.threaded:
            raise StructureError(
                f"{path_of(node)}: trainable was assigned inside a function that elegy.jit or elegy.value_and_grad "
                "transforms.\n  Which parameters are trainable is fixed during compilation: assign it outside."
            )
    # What a constructor freezes is frozen from the start: an init pass keeps it, as it keeps what is created.
    created = bool(state.frames) and state.frames[-1].building
    for node, (trainable, frozen) in changed:
        meta = dataclasses.replace(meta_of(node), trainable=trainable, frozen=frozen)
        write_meta(node, meta, ties=True, created=created)


def reset(module: Node) -> None:
    """Removes what first calls created; parameters that `__init__` created keep their values."""
    transact(lambda: _reset(module))


def _reset(module: Node) -> None:
    for node in walk([module]):
        require_same_trace(node, "reset")
        if id(node) in state.threaded:
            raise StructureError(f"{path_of(node)}: reset() inside a transformed function. Reset the module outside.")
    for node in walk([module]):
        meta = meta_of(node)
        created = {record.attribute for records in meta.records.values() for record in records}
        created |= {name for name in meta.parameters if name not in meta.constructed}
        kept = {name: flag for name, flag in meta.parameters.items() if name in meta.constructed}
        dtypes = {name: dtype for name, dtype in meta.dtypes.items() if name in meta.constructed}
        for name in created:
            remove(node, name)
        meta = dataclasses.replace(meta, parameters=kept, dtypes=dtypes, records={}, initialized=False)
        write_meta(node, meta, ties=True)
