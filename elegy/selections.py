"""`elegy.select`: some of the arrays of modules, by class, path or predicate, to read, change, freeze, mask or train.

A selection is a tree and a set of *places* in it, one for each selected array. All that it does is done by place, so it
means the same arrays to `get`, to a gradient, to an optimiser and to a checkpoint.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing as tp
from collections.abc import Callable, Collection, Iterable, Mapping

import equinox as eqx
import jax
from jax.tree_util import DictKey, GetAttrKey, keystr, tree_flatten_with_path, tree_map_with_path

from elegy.compounds import as_in_containers
from elegy.dtype_policy import DtypePolicy, set_dtype_policy
from elegy.errors import ParameterError, SelectionError
from elegy.frames import name_of
from elegy.layout import Meta, Slot, children, meta_of, nodes_in, slots, walk
from elegy.leaves import Node, is_array, is_inexact, is_node
from elegy.parameters import NOTHING, check_value, collect
from elegy.pytree import copied, fresh, joined
from elegy.state import write_meta
from elegy.transaction import lock

Tree = tp.TypeVar("Tree")
KeyPath = tuple[tp.Any, ...]

# What `select` takes: a class, a path pattern, a predicate of a path and an array, a module, or another selection.
What = tp.Union[str, type, Callable[[str, tp.Any], tp.Any], Node, "Selection[tp.Any]"]


# ---------------------------------------------------------------------------------------------------------------------
# Places
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where an array is: an attribute of a module, and a position in the leaves of that attribute."""

    # The key paths of JAX: several where two modules of a list share a module, since JAX sees its arrays in both.
    keys: list[KeyPath]
    # None, "" and 0 for an array that no module holds.
    owner: Node | None
    name: str
    position: int
    # How many of the keys lead to the owner.
    depth: int
    value: tp.Any
    trainable: bool

    @property
    def path(self) -> str:
        return _path(self.keys[0])

    @property
    def identity(self) -> tp.Any:
        return self.keys[0] if self.owner is None else (id(self.owner), self.name, self.position)


def _path(keys: KeyPath) -> str:
    return keystr(keys, simple=True, separator="/")


def _parts(keys: KeyPath) -> tuple[str, ...]:
    return tuple(keystr((key,), simple=True) for key in keys)


def _places(tree: tp.Any) -> list[Place]:
    """The arrays of a tree in the order of `get_parameters`, each once."""
    found: dict[tp.Any, Place] = {}

    def add(place: Place) -> None:
        known = found.setdefault(place.identity, place)
        if known is not place:
            known.keys.extend(place.keys)

    def visit(node: Node, keys: KeyPath, seen: set[int]) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        for slot, value in slots(node):
            here = (*keys, GetAttrKey(slot.name), *(slot.keys or ()))
            if slot.holds == "module":
                visit(value, here, seen)
            elif slot.holds == "array":
                add(Place([here], node, slot.name, slot.position, len(keys), value, slot.trainable))

    with lock:
        for position, (keys, part) in enumerate(tree_flatten_with_path(tree, is_leaf=is_node)[0]):
            if isinstance(part, Node):
                visit(part, keys, set())
            elif is_array(part):
                add(Place([keys], None, "", position, 0, part, is_inexact(part)))
    return list(found.values())


# ---------------------------------------------------------------------------------------------------------------------
# Selecting
# ---------------------------------------------------------------------------------------------------------------------


def select(tree: Tree, *what: What, trainable: bool | None = None) -> Selection[Tree]:
    """Selects arrays of modules.

    **Arguments:**

    - `tree`: a module; or a list, tuple or dict of modules, or any other pytree.
    - `what`: any number of the following; what any of them fits is selected, and without them everything.
        - A class: all arrays of its instances, those of their submodules included. A class of another library, such as
          `equinox.nn.Linear`, or of arrays, such as `np.ndarray`, will do too.
        - A path, such as `"encoder/layers/0/w"`: the array there, or all arrays of the module or container there. `*`
          stands for any text within one part, `**` for any number of parts: `"encoder/**/w"`, `"**/lora_*"`.
        - A function of a path and an array that returns a bool.
        - A module of the tree: all its arrays.
        - A selection: the same paths, in this tree.
    - `trainable`: True keeps what is trainable now, False what is state or frozen.

    Arrays alone are selected, parameters and state alike. Paths are those of `get_parameters` and of checkpoints: parts
    are attributes, list indices and dict keys. A module that is reachable by two paths has the first.

    **Returns:** a `Selection`, which combines with others of the same tree by `&`, `|` and `~`.

    **Raises:** `SelectionError` if nothing is selected, or one of `what` fits nothing; it names what comes near.

    ```python
    import elegy
    import jax.numpy as jnp

    mlp = elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), jnp.tanh, elegy.nn.Linear(1)]).init(jnp.ones([1, 3]))

    assert elegy.select(mlp, "**/w").paths == ("layers/0/w", "layers/2/w")
    assert elegy.select(mlp, elegy.nn.Linear) == elegy.select(mlp)

    head = elegy.select(mlp, mlp.layers[2])
    frozen = (~head).freeze()
    assert elegy.select(frozen, trainable=True).paths == head.paths
    ```
    """
    places = _places(tree)
    chosen: set[KeyPath] = set()
    for item in what or ("**",):
        fitting = _fitting(tree, places, item)
        if not fitting:
            raise SelectionError(_nothing_fits(tree, places, item))
        chosen |= fitting
    kept = {place.keys[0] for place in places if trainable in (None, place.trainable)} & chosen
    if not kept:
        kind = "trainable: each is state, or frozen" if trainable else "state or frozen: each is trainable"
        raise SelectionError(f"none of these arrays is {kind}: {_listed(sorted(map(_path, chosen)))}.")
    return Selection(tree, frozenset(kept))


def _fitting(tree: tp.Any, places: list[Place], what: tp.Any) -> set[KeyPath]:
    if isinstance(what, Selection):
        return what._in(tree, places)
    if isinstance(what, str):
        pattern = _compiled(what)
        return {place.keys[0] for place in places if pattern.match(place.path + "/")}
    if isinstance(what, type):
        instances = walk([node for node in walk(nodes_in(tree)) if isinstance(node, what)])
        others = tree_flatten_with_path(tree, is_leaf=lambda part: isinstance(part, what))[0]
        prefixes = {as_in_containers(keys) for keys, part in others if isinstance(part, what)}
        return _owned(places, instances) | {
            place.keys[0]
            for place in places
            if any(keys[:size] in prefixes for keys in place.keys for size in range(len(keys) + 1))
        }
    if isinstance(what, Node):
        return _owned(places, walk([what]))
    if callable(what):
        return {place.keys[0] for place in places if what(place.path, place.value)}
    raise TypeError(
        "elegy.select takes classes, paths, functions of a path and an array, modules and selections, "
        f"got {type(what).__name__}: {what!r}"
    )


def _owned(places: list[Place], modules: Iterable[Node]) -> set[KeyPath]:
    owners = {id(module) for module in modules}
    return {place.keys[0] for place in places if id(place.owner) in owners}


def _compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression for a path, each part of which ends with a slash. It fits what is below the path too."""
    parts = [
        "(?:[^/]*/)*" if part == "**" else re.escape(part).replace(r"\*", "[^/]*") + "/" for part in pattern.split("/")
    ]
    return re.compile("".join(parts), re.DOTALL)


# ---------------------------------------------------------------------------------------------------------------------
# Selections
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Selection(tp.Generic[Tree]):
    """Some of the arrays of a tree of modules, at least one. Made by `elegy.select`.

    A selection is a set of paths, fixed when it was made. Values are those that the modules have now. It is immutable,
    and what it does is pure: `set`, `apply`, `freeze`, `unfreeze` and `replace` return a new tree, independent of the
    old one and with the same sharing.

    `a & b`, `a | b` and `~a` select what both select, what one of them selects, and the other arrays of the tree. They
    raise `SelectionError` if that is nothing, or if `a` and `b` belong to different trees.

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(2).init(jnp.ones([1, 3]))
    weight = elegy.select(linear, "w")
    assert weight.paths == ("w",) and (~weight).paths == ("b",)
    assert (weight.apply(jnp.zeros_like).w == 0).all()
    assert elegy.select(weight.freeze(), trainable=True).paths == ("b",)
    ```
    """

    tree: Tree
    _keys: frozenset[KeyPath]

    # -----------------------------------------------------------------------------------------------------------------
    # What is selected
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of each selected array, in the order of `get_parameters`."""
        return _paths(self.places())

    def __len__(self) -> int:
        """The number of selected arrays."""
        return len(self._keys)

    def __repr__(self) -> str:
        return f"Selection({_listed([_path(place.keys[0]) for place in _places(self.tree) if self._has(place)])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self._keys == other._keys and _is_same(self.tree, other.tree)

    def __hash__(self) -> int:
        return hash(self._keys)

    def _has(self, place: Place) -> bool:
        return place.keys[0] in self._keys

    def places(self) -> list[Place]:
        everything = _places(self.tree)
        self._in(self.tree, everything)
        return [place for place in everything if self._has(place)]

    def _in(self, tree: tp.Any, places: list[Place]) -> set[KeyPath]:
        """The selected paths in a tree, which must have them all."""
        missing = self._keys.difference(place.keys[0] for place in places)
        if missing:
            raise SelectionError(
                f"{_name(tree)} has no array at {_listed(sorted(map(_path, missing)))}, which are selected.\n"
                f"  {_inventory(places)}\n  Select again, in the module as it is now."
            )
        return set(self._keys)

    # -----------------------------------------------------------------------------------------------------------------
    # Combinations
    # -----------------------------------------------------------------------------------------------------------------

    def __and__(self, other: Selection[tp.Any]) -> Selection[Tree]:
        self._require_same_tree(other, "&")
        common = self._keys & other._keys
        if not common:
            raise SelectionError(f"& selects nothing: {self!r} and {other!r} have no array in common.")
        return Selection(self.tree, common)

    def __or__(self, other: Selection[tp.Any]) -> Selection[Tree]:
        self._require_same_tree(other, "|")
        return Selection(self.tree, self._keys | other._keys)

    def __invert__(self) -> Selection[Tree]:
        rest = frozenset(place.keys[0] for place in _places(self.tree)) - self._keys
        if not rest:
            raise SelectionError(f"~ selects nothing: all {len(self)} arrays of {_name(self.tree)} were selected.")
        return Selection(self.tree, rest)

    def _require_same_tree(self, other: Selection[tp.Any], sign: str) -> None:
        if not isinstance(other, Selection):
            raise TypeError(f"{sign} combines two selections, got a {type(other).__name__}: elegy.select(tree, ...)")
        if not _is_same(self.tree, other.tree):
            raise SelectionError(
                f"{sign} combines selections of one tree, and these belong to two: {self!r} of {_name(self.tree)} and "
                f"{other!r} of {_name(other.tree)}.\n"
                "  A selection moves to another tree of the same paths by elegy.select(tree, selection)."
            )

    # -----------------------------------------------------------------------------------------------------------------
    # Values
    # -----------------------------------------------------------------------------------------------------------------

    def get(self) -> tp.Any:
        """The selected arrays, in the form of `get_parameters`: a nested dict by attribute name, with `()` or None in
        containers where nothing is selected. For a list, tuple or dict of modules, one such dict for each."""
        return arranged(self, lambda place: place.value)

    def set(self, values: tp.Any) -> Tree:
        """A copy of the tree in which selected arrays have other values.

        **Arguments:**

        - `values`: what `get` returns, or a part of it, with arrays of the same shapes and dtypes.

        **Raises:** `ParameterError`, naming every array that is not selected or has another shape or dtype.
        """
        places = {_parts(keys): place for keys, place in tree_flatten_with_path(arranged(self, lambda place: place))[0]}
        given = [(_parts(keys), value) for keys, value in tree_flatten_with_path(values)[0]]
        unknown = ["/".join(parts) or "the value" for parts, _ in given if parts not in places]
        problems = [f"{path}: not selected (selected: {_listed(self.paths)})." for path in unknown]
        return self._changed([(places[parts], value) for parts, value in given if parts in places], problems)

    def apply(self, function: Callable[[tp.Any], tp.Any]) -> Tree:
        """A copy of the tree with `function(array)` in the place of each selected array.

        **Raises:** `ParameterError`, naming every array whose shape or dtype would change.
        """
        return self._changed([(place, function(place.value)) for place in self.places()], [])

    def _changed(self, changes: list[tuple[Place, tp.Any]], problems: list[str]) -> Tree:
        new: dict[KeyPath, tp.Any] = {}
        for place, value in changes:
            try:
                new.update(dict.fromkeys(place.keys, check_value(place.path, place.value, value)))
            except ParameterError as error:
                problems.append(str(error))
        if problems:
            raise ParameterError("nothing was changed:\n  " + "\n  ".join(problems))
        return copied(self.tree, lambda keys, leaf: fresh(new.get(keys, leaf)))

    # -----------------------------------------------------------------------------------------------------------------
    # Freezing
    # -----------------------------------------------------------------------------------------------------------------

    def freeze(self) -> Tree:
        """A copy of the tree in which no selected array is trainable.

        A part of a module may be frozen: its weights, and not its bias. `module.trainable` stays what it was, and
        assigning it decides for all arrays of the module again.
        """
        return self._with_meta(lambda owner, arrays: _frozen(meta_of(owner), arrays))

    def unfreeze(self) -> Tree:
        """A copy of the tree in which the selected arrays are what they were declared: parameters are trainable, state
        is not. Of a module that is frozen as a whole, the other arrays stay frozen."""
        return self._with_meta(_unfrozen)

    def with_dtype_policy(self, policy: DtypePolicy | None) -> Tree:
        """A copy of the tree in which each module that holds a selected array itself has a policy of its own.

        ```python
        import elegy
        import jax.numpy as jnp

        mlp = elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), jnp.tanh, elegy.nn.Linear(1)]).init(jnp.ones([1, 3]))
        half = elegy.DtypePolicy(compute_dtype=jnp.bfloat16)
        mixed = elegy.select(mlp, "layers/0").with_dtype_policy(half)
        assert mixed.layers[0].dtype_policy == half and mixed.layers[2].dtype_policy is None
        ```
        """
        tree = copied(self.tree, lambda _, leaf: fresh(leaf))
        self.places()
        for place in filter(self._has, _places(tree)):
            if place.owner is None:
                raise SelectionError(f"{place.path} is not in a module, and only modules have a dtype policy.")
            set_dtype_policy(place.owner, policy)
        return tree

    def _with_meta(self, change: Callable[[Node, set[tuple[str, int]]], Meta]) -> Tree:
        self.places()
        tree = copied(self.tree, lambda _, leaf: fresh(leaf))
        arrays: dict[int, tuple[Node, set[tuple[str, int]]]] = {}
        for place in filter(self._has, _places(tree)):
            if place.owner is None:
                raise SelectionError(f"{place.path} is not in a module, and only arrays of modules can be frozen.")
            slot = _slot(place)
            if slot.declared:
                arrays.setdefault(id(place.owner), (place.owner, set()))[1].add((slot.name, slot.number))
        for owner, names in arrays.values():
            write_meta(owner, change(owner, names))
        return tree

    # -----------------------------------------------------------------------------------------------------------------
    # Masks
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def mask(self) -> Tree:
        """A pytree like the tree with a bool for each leaf: whether it is selected. Fits `equinox.partition`, and
        `optax.masked` where the parameters are the tree itself."""
        selected = {keys for place in self.places() for keys in place.keys}
        return tree_map_with_path(lambda keys, _: as_in_containers(keys) in selected, self.tree)

    def mask_for(self, parameters: tp.Any) -> tp.Any:
        """A pytree like `parameters` with a bool for each leaf: whether it is selected. The function itself fits
        `optax.masked` and `optax.partition`, which call it.

        **Arguments:**

        - `parameters`: parameters or gradients by the names of this tree: what `get_parameters` or `get` returns,
          gradients of `elegy.value_and_grad`, or modules of the same paths.

        **Raises:** `SelectionError`, naming what is selected and not in `parameters`, and the other way round what is
        in `parameters` and not in the tree.
        """
        given = parts_of_leaves(parameters)
        known = {_parts(place.keys[0]): self._has(place) for place in _places(self.tree)}
        missing = [parts for parts, selected in known.items() if selected and parts not in given]
        unknown = [parts for parts in given if parts not in known]
        if missing or unknown:
            raise SelectionError(
                "the parameters are not those that were selected from:\n"
                + differences({"selected, but not among them": missing, f"not in {_name(self.tree)}": unknown})
            )
        return jax.tree.unflatten(jax.tree.structure(parameters), [known[parts] for parts in given])

    # -----------------------------------------------------------------------------------------------------------------
    # Modules
    # -----------------------------------------------------------------------------------------------------------------

    def replace(self, function: Callable[[tp.Any], tp.Any]) -> Tree:
        """A copy of the tree with `function(module)` in the place of each module that holds a selected array itself.

        **Arguments:**

        - `function`: is given a copy of the module. It may return a module of any class; where the parent creates the
          module inside `call`, one of the same class or of a subclass.

        **Raises:** `SelectionError` if one of these modules is below another.

        ```python
        import elegy
        import jax.numpy as jnp

        mlp = elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), elegy.nn.Linear(1)]).init(jnp.ones([1, 3]))
        adapted = elegy.select(mlp, elegy.nn.Linear).replace(lambda linear: elegy.nn.LoRA(linear, rank=2))
        assert adapted.layers[0].lora_a.shape == (3, 2)
        ```
        """
        owners = {place.keys[0][: place.depth]: place.owner for place in self.places()}
        for keys, owner in owners.items():
            if owner is None:
                raise SelectionError("replace takes modules, and some of the selected arrays are in none.")
            above = [_path(keys[:size]) or _name(self.tree) for size in range(len(keys)) if keys[:size] in owners]
            if above:
                raise SelectionError(f"{_path(keys)} is below {above[0]}, so they cannot both be replaced.")
        replaced = eqx.tree_at(
            lambda together: [_at(together.tree, keys) for keys in owners],
            joined(self.tree),
            [function(copied(owner, lambda _, leaf: fresh(leaf))) for owner in owners.values()],
        )
        return copied(replaced.tree, lambda _, leaf: fresh(leaf))


def _at(tree: tp.Any, keys: KeyPath) -> tp.Any:
    for key in keys:
        tree = (
            getattr(tree, key.name)
            if isinstance(key, GetAttrKey)
            else tree[key.key if isinstance(key, DictKey) else key.idx]
        )
    return tree


def _frozen(meta: Meta, arrays: set[tuple[str, int]]) -> Meta:
    return dataclasses.replace(meta, frozen=meta.frozen | arrays) if meta.trainable else meta


def _unfrozen(owner: Node, arrays: set[tuple[str, int]]) -> Meta:
    meta = meta_of(owner)
    if meta.trainable:
        return dataclasses.replace(meta, frozen=meta.frozen - arrays)
    declared = {(slot.name, slot.number) for slot, _ in slots(owner) if slot.declared}
    return dataclasses.replace(meta, trainable=True, frozen=frozenset(declared - arrays))


def _is_same(a: tp.Any, b: tp.Any) -> bool:
    """Whether two trees are the same modules, in the same containers."""
    (parts, treedef), (others, other_treedef) = (jax.tree.flatten(tree, is_leaf=is_node) for tree in (a, b))
    return treedef == other_treedef and all(part is other for part, other in zip(parts, others, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# For gradients and optimisers
# ---------------------------------------------------------------------------------------------------------------------


def arranged(selection: Selection[tp.Any], leaf: Callable[[Place], tp.Any]) -> tp.Any:
    """`leaf(place)` for each selected array, in the form of `get_parameters`."""
    chosen = {place.identity: place for place in selection.places()}
    seen: set[int] = set()

    def at(owner: Node, name: str, position: int, value: tp.Any) -> tp.Any:
        place = chosen.get((id(owner), name, position))
        return NOTHING if place is None else leaf(place)

    def part(keys: KeyPath, part: tp.Any) -> tp.Any:
        keys = as_in_containers(keys)
        if isinstance(part, Node):
            return {} if id(part) in seen else collect(part, None, at, seen)
        return leaf(chosen[keys]) if keys in chosen else None

    return tree_map_with_path(part, selection.tree, is_leaf=is_node)


def select_trainable(tree: Tree, where: tp.Any) -> Selection[Tree]:
    """What is trainable of the selection `where`, or of a tuple of what `select` takes.

    State below a selected module is left out. Each entry must select a parameter, and none that is frozen.
    """
    if isinstance(where, (tuple, list)) and not where:
        raise SelectionError(
            f"where={where!r} selects nothing of {_name(tree)}. For all that is trainable leave it out."
        )
    chosen: frozenset[KeyPath] = frozenset()
    for part in where if isinstance(where, (tuple, list)) else (where,):
        places = list(select(tree, part).places())
        trainable = frozenset(place.keys[0] for place in places if place.trainable)
        others = {place.path: _why_not_trainable(place) for place in places if not place.trainable}
        frozen = [path for path, why in others.items() if why == _FROZEN]
        if frozen:
            raise SelectionError(
                f"where= selects what is frozen: {_listed(frozen)}.\n"
                "  Select the trainable part, elegy.select(module, ..., trainable=True), or unfreeze it: "
                "elegy.select(module, ...).unfreeze()."
            )
        if not trainable:
            kinds = _listed([f"{path} ({why})" for path, why in others.items()])
            raise SelectionError(f"where= selects nothing that can be trained: {kinds}.\n  Select parameters.")
        chosen |= trainable
    return Selection(tree, chosen)


_FROZEN = "frozen"


def _why_not_trainable(place: Place) -> str:
    if place.owner is None:
        return f"of dtype {place.value.dtype}"
    return _FROZEN if _slot(place).declared else "state"


def _slot(place: Place) -> Slot:
    owner = tp.cast(Node, place.owner)
    return next(slot for slot, _ in slots(owner) if slot.name == place.name and slot.position == place.position)


def parts_of_leaves(parameters: tp.Any) -> list[tuple[str, ...]]:
    """The path of each leaf, the same for a module and for the dict of its parameters."""
    return [_parts(keys) for keys, _ in tree_flatten_with_path(parameters)[0]]


def names_of(tree: tp.Any) -> dict[tuple[str, ...], tuple[str, ...]]:
    """For the path of each array that a tree has at several places, as where two modules share one, the first path."""
    return {_parts(keys): _parts(place.keys[0]) for place in _places(tree) for keys in place.keys[1:]}


def differences(paths: Mapping[str, Collection[tuple[str, ...]]]) -> str:
    """Lines of an error message: what each side has that the other one lacks."""
    return "\n".join(
        f"  {side}: {_listed(['/'.join(parts) for parts in found])}" for side, found in paths.items() if found
    )


# ---------------------------------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------------------------------

_MOST_LISTED = 12


def _paths(places: Iterable[Place]) -> tuple[str, ...]:
    return tuple(place.path for place in places)


def _listed(items: Collection[str]) -> str:
    shown = ", ".join(list(items)[:_MOST_LISTED])
    return shown if len(items) <= _MOST_LISTED else f"{shown}, … ({len(items)} in all)"


def _name(tree: tp.Any) -> str:
    return name_of(tree) if isinstance(tree, Node) else f"the {type(tree).__name__}"


def _inventory(places: list[Place]) -> str:
    return f"There is: {_listed(_paths(places))}." if places else "There is no array."


def _nothing_fits(tree: tp.Any, places: list[Place], what: tp.Any) -> str:
    name, nodes = _name(tree), walk(nodes_in(tree))
    if isinstance(what, str):
        near = " or ".join(map(repr, _near_misses(places, what)))
        lines = [f"{name} has nothing at {what!r}." + (f" Did you mean {near}?" if near else "")]
        if sum(len(children(node)) for node in nodes) >= len(nodes):
            lines.append("A module that is reachable by two paths is found under its first path only.")
    elif isinstance(what, type):
        classes = dict.fromkeys(type(node).__name__ for node in nodes)
        lines = [f"{name} has no {what.__name__}. Its modules are: {_listed(classes)}."]
    elif isinstance(what, Node):
        lines = [f"{name} has no array in {name_of(what)}, or {name_of(what)} is not one of its modules."]
    else:
        lines = [f"{name}: {getattr(what, '__name__', what)!r} is true of no array."]
    lines.append(_inventory(places))
    lines += [
        f"{name_of(node)} is not initialised: call it, or init, before."
        for node in nodes_in(tree)
        if not meta_of(node).initialized
    ]
    return "\n  ".join(lines)


def _near_misses(places: list[Place], path: str) -> list[str]:
    parts = [path.split("/") for path in _paths(places)]
    known = {"/".join(names[:size]) for names in parts for size in range(1, len(names) + 1)}
    return difflib.get_close_matches(path, sorted(known), n=3)
