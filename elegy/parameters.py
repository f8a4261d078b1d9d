"""Creating, reading and writing the arrays of a module."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import typing as tp
from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy import tracing
from elegy.captures import check_constants, constants
from elegy.containers import is_plain_container, thaw
from elegy.drawn import remember
from elegy.errors import (
    HookError,
    NameCollisionError,
    ParameterError,
    StructureError,
    UninitialisedWarning,
)
from elegy.frames import RESERVED, RNG_ATTRIBUTE, Frame, is_taken, note_update, path_of, require_same_trace, warn
from elegy.hooks import rng_context
from elegy.layout import Slot, meta_of, slots, slots_by_attribute, walk
from elegy.leaves import Node, is_array, is_foreign, is_inexact, is_node, is_static, set_undrawn
from elegy.precision import cast
from elegy.pytree import forget_pending
from elegy.random import RNG, fold_in_path
from elegy.state import remove, state, transact, transaction, write, write_meta
from elegy.transaction import held, lock
from elegy.typechecking import scopes, switch
from elegy.typechecking.import_hook import no_type_check

Make = Callable[[], tp.Any]


# ---------------------------------------------------------------------------------------------------------------------
# Creating
# ---------------------------------------------------------------------------------------------------------------------


@no_type_check
def add_parameter(
    module: Node,
    name: str,
    shape: Sequence[tp.SupportsIndex] | None,
    dtype: tp.Any,
    initializer: tp.Any,
    trainable: bool,
) -> tp.Any:
    frame = state.frames[-1] if state.frames else None
    meta = meta_of(module)
    wanted = None if shape is None else tuple(operator.index(size) for size in shape)
    asked = None if dtype is None else _as_dtype(dtype)
    if name in meta.parameters and name in held(module) and name != RNG_ATTRIBUTE:
        value = held(module)[name]
        if is_array(value):
            _require_as_before(module, name, value, wanted, asked)
        return value
    constructing = frame is not None and frame.building and frame.module is module
    _require_creatable(module, name, frame, constructing)
    dtypes = meta.dtypes if asked is None else {**meta.dtypes, name: asked}
    if dtype is None:
        dtype = scopes.infer_dtype(module, name, tp.cast(tp.Any, module).dtype)
    if wanted is None and callable(initializer) and _positional(initializer):
        wanted = scopes.infer_shape(module, name)
    recipe = Recipe(wanted, dtype, asked, initializer)
    key = _key(module, name, constructing) if recipe.draws else None
    make, finish = recipe.maker(module, name, key)
    policy = state.dtype_policy if trainable else None
    if policy is not None and policy.param_dtype is not None:
        finish = functools.partial(_finish_in, policy.param_dtype, finish)
    if state.init_pass is not None:
        compute_dtype = None if policy is None else policy.compute_dtype
        value = state.init_pass.create(module, name, make, finish, key, compute_dtype)
    else:
        value = finish(make())
        if key is not None:
            value = _drawn(module, name, value, recipe)
        write(module, name, value, created=True)
    constructed = (*meta.constructed, name) if constructing else meta.constructed
    meta = dataclasses.replace(
        meta, parameters={**meta.parameters, name: bool(trainable)}, dtypes=dtypes, constructed=constructed
    )
    write_meta(module, meta, created=True)
    if switch.on:
        scopes.check_parameter(module, name, value)
    return value


def _finish_in(dtype: tp.Any, finish: Callable[[tp.Any], tp.Any], value: tp.Any) -> tp.Any:
    return cast(finish(value), dtype)


def _require_as_before(module: Node, name: str, value: tp.Any, shape: tuple[int, ...] | None, dtype: tp.Any) -> None:
    """Refuses to give a parameter to code that asks for another one. A shape or dtype of None asks for nothing."""
    if shape is not None and tuple(value.shape) != shape:
        raise ParameterError(
            f"{path_of(module, name)} has shape {tuple(value.shape)}, but {shape} is asked for now.\n"
            "  The shape was fixed by the first call; does this input have another size than that one?\n"
            "  Use another module for it, or module.reset() to start again."
        )
    # A module whose arrays were cast to another dtype since the first call goes on asking for the first one.
    first = meta_of(module).dtypes.get(name, dtype)
    if dtype is not None and dtype not in (first, value.dtype):
        raise ParameterError(
            f"{path_of(module, name)} has dtype {value.dtype}, but {dtype} is asked for now.\n"
            "  The dtype was fixed by the first call: give the module a dtype, or convert its input."
        )


def _require_creatable(module: Node, name: str, frame: Frame | None, constructing: bool) -> None:
    """Refuses to create a parameter where none can be created, or under a name that cannot be had."""
    if frame is None:
        overridden = getattr(type(module).__call__, "__module__", "") != "elegy.module"
        hint = f" {type(module).__name__} overrides __call__: define `call` instead." if overridden else ""
        raise HookError(
            f"{path_of(module)}: add_parameter({name!r}) was called while no module is running.{hint}\n"
            "  Call it in __init__, in call, or in a method marked @elegy.compact."
        )
    if is_taken(module, name) or name in RESERVED:
        raise NameCollisionError(
            f"{path_of(module)}: add_parameter({name!r}) would replace another attribute or a method of "
            f"{type(module).__name__}.\n  Choose another name."
        )
    if not name.isidentifier():
        raise NameCollisionError(f"{path_of(module)}: the parameter name {name!r} is not a Python identifier.")
    require_same_trace(module, f"created the parameter {name!r}")
    if not constructing and (state.init_pass is None or (frame.module is module and not frame.first)):
        raise ParameterError(
            f"{path_of(module, name)} does not exist, and parameters are created by the first run of a method only.\n"
            "  Call add_parameter unconditionally, so that the first run creates every parameter."
        )


def _as_dtype(dtype: tp.Any) -> tp.Any:
    return dtype if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype)


class Recipe(tp.NamedTuple):
    """How to make an initial value: what `add_parameter` was given, with the shape and dtype that it made of it.

    - `asked`: the dtype that was asked for, if one was.
    """

    shape: tuple[int, ...] | None
    dtype: tp.Any
    asked: tp.Any
    initializer: tp.Any

    @property
    def draws(self) -> bool:
        """Whether the initializer takes a key, or may draw one."""
        given = self.initializer
        return (
            callable(given) and bool(_positional(given)) and (_takes_key(given) or given not in (jnp.zeros, jnp.ones))
        )

    def maker(self, module: Node, name: str, key: Make | None) -> tuple[Make, Callable[[tp.Any], tp.Any]]:
        """The initial value as a function to be called in any trace, and the check of what it gives."""
        shape, dtype, asked, initializer = self
        size = () if shape is None else shape

        def make() -> tp.Any:
            if not callable(initializer):
                return initializer
            if not _positional(initializer):
                return initializer()
            if key is None:
                return initializer(size, dtype)
            if _takes_key(initializer):
                return initializer(key(), size, dtype)
            with rng_context(RNG(key())):
                return initializer(size, dtype)

        def finish(value: tp.Any) -> tp.Any:
            if jax.tree_util.all_leaves([value]):
                value = _in_dtype(module, name, value, dtype, asked, callable(initializer))
                sized = shape is not None or callable(initializer) and bool(_positional(initializer))
                if sized and value.shape != size:
                    raise ParameterError(
                        f"{path_of(module, name)}: the initializer gave shape {value.shape} instead of {size}."
                    )
                return value
            return jax.tree.map(strong, value)

        return make, finish


def _in_dtype(module: Node, name: str, value: tp.Any, dtype: tp.Any, asked: tp.Any, computed: bool) -> jax.Array:
    """An initial value in the dtype that was asked for, here or of the module. Without one it keeps its own."""
    value = strong(jnp.asarray(value, dtype=None if is_array(value) else dtype))
    if asked is None and "dtype" in module.__dict__ and is_inexact(value):
        asked = _as_dtype(module.__dict__["dtype"])
    if asked is None or value.dtype == jax.dtypes.canonicalize_dtype(asked):
        return value
    same_kind = any(jnp.issubdtype(value.dtype, kind) and jnp.issubdtype(asked, kind) for kind in _KINDS)
    if computed or not same_kind:
        raise ParameterError(
            f"{path_of(module, name)}: the dtype {jnp.dtype(asked)} was asked for, and the initializer gave "
            f"{value.dtype}.\n  Use the dtype that it is given: lambda shape, dtype: jnp.ones(shape, dtype)."
        )
    return value.astype(asked)


def strong(value: tp.Any) -> tp.Any:
    """An array without JAX's weak type, which would be another input to a compiled function than its own output."""
    return jnp.asarray(value, value.dtype) if getattr(value, "weak_type", False) else value


def _key(module: Node, name: str, constructing: bool) -> Callable[[], jax.Array]:
    if state.init_pass is not None:
        journal = state.init_pass
        return journal.constructor_key(module, name) if constructing else journal.key_for(module, name)
    rng = state.rng
    if rng._born != tracing.current():
        return lambda: jax.random.key(0)  # for the shape of what cannot be drawn here
    base = rng.base_key()
    return lambda: fold_in_path(base(), name)


def _drawn(module: Node, name: str, value: tp.Any, recipe: Recipe) -> tp.Any:
    """A value that a constructor drew. Inside a jax transform, where the random stream is not, it stands for one that
    waits for `init`."""
    if state.rng._born != tracing.current():
        value = jax.tree.map(lambda array: jnp.full_like(array, jnp.nan if is_inexact(array) else 0), value)
        set_undrawn(module, {**getattr(module, "_elegy_undrawn", {}), name: value})
    remember(value, recipe)
    return value


_KEY_NAMES = ("key", "rng", "rng_key", "prng_key", "random_key", "k")


def _positional(initializer: tp.Any) -> list[inspect.Parameter]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    try:
        parameters = inspect.signature(initializer).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return [inspect.Parameter("shape", inspect.Parameter.POSITIONAL_ONLY)]
    return [parameter for parameter in parameters if parameter.kind in kinds]


def _takes_key(initializer: tp.Any) -> bool:
    """Whether the initializer is called as `(key, shape, dtype)`, like those of `jax.nn.initializers`."""
    parameters = _positional(initializer)
    required = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind is not p.VAR_POSITIONAL]
    return bool(parameters) and (parameters[0].name in _KEY_NAMES or len(required) >= 3)


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
    """Called where the trainable parameters of a module were asked for, as for an optimiser, and there are none."""
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
    """`new` as a replacement of the array `old`; a path that costs something is given as a function."""
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
        # What annotations call an Array. A copy, since that of NumPy may be written to.
        value = jax.device_put(np.array(value), old.sharding) if old.committed else jnp.array(value)
    return strong(value)


# Kinds of number, each of which holds those before.
_PYTHON_KINDS = (bool, int, float, complex)
_KINDS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def _of_dtype(path: str | Callable[[], str], old: tp.Any, number: bool | int | float | complex) -> jax.Array:
    """A Python number as an array of the dtype of `old`, if that can hold it."""
    needed = next(i for i, kind in enumerate(_PYTHON_KINDS) if isinstance(number, kind))
    if any(jnp.issubdtype(old.dtype, kind) for kind in _KINDS[needed:]):
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


def set_trainable(module: Node, trainable: bool) -> None:
    transact(lambda: _set_trainable(module, trainable))


def _set_trainable(module: Node, trainable: bool) -> None:
    modules = [node for node in walk([module]) if meta_of(node).trainable != trainable or meta_of(node).frozen]
    for node in modules:
        require_same_trace(node, "assigned trainable")
        if id(node) in state.threaded:
            raise StructureError(
                f"{path_of(node)}: trainable was assigned inside a function that elegy.jit or elegy.value_and_grad "
                "transforms.\n  Which parameters are trainable is fixed during compilation: assign it outside."
            )
    # What a constructor freezes is frozen from the start: an init pass keeps it, as it keeps what is created.
    created = bool(state.frames) and state.frames[-1].building
    for node in modules:
        meta = dataclasses.replace(meta_of(node), trainable=bool(trainable), frozen=frozenset())
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
        created = {record.attribute for records in meta.hooks.values() for record in records}
        created |= {name for name in meta.parameters if name not in meta.constructed}
        kept = {name: flag for name, flag in meta.parameters.items() if name in meta.constructed}
        dtypes = {name: dtype for name, dtype in meta.dtypes.items() if name in meta.constructed}
        for name in created:
            remove(node, name)
        meta = dataclasses.replace(meta, parameters=kept, dtypes=dtypes, hooks={}, initialized=False)
        write_meta(node, meta, ties=True)


# ---------------------------------------------------------------------------------------------------------------------
# Whole trees
# ---------------------------------------------------------------------------------------------------------------------


def trainable_mask(tree: tp.Any) -> tp.Any:
    """A pytree like `tree` with a bool for each array: whether it is trainable.

    Trainable are the trainable parameters of modules that are not frozen, and the inexact arrays of pytrees that are
    not modules of Elegy. Fits `optax.masked`.

    ```python
    import elegy
    import jax.numpy as jnp

    norm = elegy.nn.BatchNormalization().init(jnp.ones([4, 3]))
    mask = elegy.trainable_mask(norm)
    assert mask.scale is True and mask.mean is False
    ```
    """
    return jax.tree.map(_mask, tree, is_leaf=is_node)


def _mask(node: tp.Any) -> tp.Any:
    if not isinstance(node, Node):
        return is_inexact(node)
    return jax.tree.structure(node).unflatten(leaf_kinds(node))


class LeafPlace(tp.NamedTuple):
    """Where a leaf of a module is: a module, its attribute, and the position in this. And whether it is trainable."""

    owner: Node
    name: str
    position: int
    trainable: bool


def leaf_kinds(root: Node) -> list[bool]:
    """Whether each leaf of a module is trainable, in the order of `jax.tree.leaves`."""
    return [place.trainable for place in leaf_places(root)]


def leaf_places(root: Node) -> list[LeafPlace]:
    """Where each leaf of a module is, in the order of `jax.tree.leaves`. Does not recurse."""
    places: list[LeafPlace] = []
    seen: set[int] = set()
    stack: list[Node | LeafPlace] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, LeafPlace):
            places.append(item)
            continue
        if id(item) in seen:
            continue
        seen.add(id(item))
        below = [
            value if slot.holds == "module" else LeafPlace(item, slot.name, slot.position, slot.trainable)
            for slot, value in slots(item)
        ]
        stack.extend(reversed(below))
    return places


def partition(tree: tp.Any) -> tuple[tp.Any, tp.Any]:
    """Splits a pytree of modules into its trainable part and the rest.

    **Returns:** two trees of the same classes. Each array is in one of them, and None stands in the other.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)
    params, rest = elegy.partition(linear)
    grads = jax.grad(lambda params: elegy.combine(params, rest)(x).sum())(params)
    assert grads.w.shape == (3, 2)
    ```
    """
    return eqx.partition(tree, trainable_mask(tree))


def combine(*trees: tp.Any) -> tp.Any:
    """Puts together what `partition` split: at each place, the first value that is not None.

    **Arguments:**

    - `trees`: one or more pytrees of one structure, with None where another one has the array.

    **Returns:** a new tree of the structure of the first.

    **Raises:** `ValueError` if the structures differ: modules of other classes, with other static attributes or
    parameters, or frozen in other parts.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    norm = elegy.nn.BatchNormalization().init(x)
    parameters, rest = elegy.partition(norm)
    doubled = elegy.combine(jax.tree.map(lambda value: 2 * value, parameters), rest)
    assert (doubled.scale == 2).all() and (doubled.var == 1).all()

    other = elegy.nn.BatchNormalization(eps=1e-3).init(x)
    elegy.combine(parameters, elegy.partition(other)[1])  # raises ValueError: metadata
    ```
    """
    return eqx.combine(*trees)
