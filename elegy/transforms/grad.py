"""`elegy.value_and_grad` and `elegy.grad`: derivatives with respect to the trainable parameters of modules."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from elegy import tracing
from elegy.errors import NothingToDifferentiateError, StructureError
from elegy.frames import Replay, name_of
from elegy.kept import HasCall
from elegy.layout import nodes_in, walk
from elegy.leaves import Node, is_inexact, is_node
from elegy.pytree import copied
from elegy.selections import arranged, select_trainable
from elegy.transforms.core import (
    Threaded,
    Transformed,
    View,
    check_function,
    check_modules,
    inside,
    modules_of,
    rng_data,
    run,
    with_modules,
    write_back,
)
from elegy.trees import leaf_places

Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")
First = tp.TypeVar("First")


class GradFunction(Transformed[..., tp.Any]):
    """A function differentiated by `elegy.value_and_grad` or `elegy.grad`."""

    def __init__(self, function, modules, with_value, parameters_fn, where, argnums, options):
        self._threaded = Threaded(threaded) if (threaded := modules_of(function, modules)) is not None else None
        super().__init__(function, self._threaded)
        self._modules = modules
        self._with_value = with_value
        self._parameters_fn = parameters_fn
        self._where = where
        self._argnums = argnums
        self._options = options

    def _bound(self, method: tp.Any) -> GradFunction:
        numbers = jax.tree.leaves(self._argnums)
        if 0 in numbers:
            raise TypeError(
                f"argnums={self._argnums}: argument 0 of a method is its module. Gradients with respect to modules are "
                "taken without argnums=, and by where= for a part of them."
            )
        argnums = jax.tree.map(lambda number: number - (number > 0), self._argnums)
        return GradFunction(
            method, self._modules, self._with_value, self._parameters_fn, self._where, argnums, self._options
        )

    def _around(self, function: tp.Any) -> GradFunction:
        return GradFunction(
            function,
            self._modules,
            self._with_value,
            self._parameters_fn,
            self._where,
            self._argnums,
            self._options,
        )

    def __call__(self, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        if self._threaded is not None:
            out, grads = self._differentiate(self.function, self._threaded, self._argnums, args, kwargs)
            return (out, grads) if self._with_value else grads
        if not args or not nodes_in(args[0]):
            return self._without_modules(args, kwargs)
        # Without modules= nothing of the caller changes: a copy of the modules is threaded, and returned.
        tree, *rest = copied(args)
        first = FirstArgument(tree)
        function = functools.partial(_with_arrays, self.function, first)
        jax.tree.map(self._require_behind_the_modules, self._argnums)
        threaded = Threaded((tree, *(node for node in nodes_in((rest, kwargs)))))
        out, grads = self._differentiate(function, threaded, self._argnums, (first.arrays, *rest), kwargs, first)
        return ((out, tree), grads) if self._with_value else (grads, tree)

    def _without_modules(self, args: tp.Any, kwargs: tp.Any) -> tp.Any:
        if self._argnums is None:
            raise TypeError(
                "without modules=, elegy.value_and_grad differentiates with respect to the modules in the first "
                "argument, and there are none.\n"
                "  Call it as value_and_grad(f)(module, ...), or use value_and_grad(f, modules=module), or for the "
                "gradient with respect to an argument value_and_grad(f, argnums=0)."
            )
        out, grads = self._differentiate(self.function, Threaded(None), self._argnums, args, kwargs)
        return (out, grads) if self._with_value else grads

    def _require_behind_the_modules(self, number: int) -> None:
        if number < 1:
            raise ValueError(
                f"argnums={self._argnums}: count from the left, where argument 0 is the modules; with respect to these "
                "the gradient is taken without argnums=, or by where=."
            )

    def _differentiate(
        self,
        function: tp.Any,
        threaded: Threaded,
        argnums: tp.Any,
        args: tp.Any,
        kwargs: tp.Any,
        first: FirstArgument | None = None,
    ) -> tp.Any:
        replay = Replay()
        function = replay.of(function)

        def attempt(view: View) -> tp.Any:
            return self._attempt(function, threaded, view, argnums, list(args), kwargs, first)

        result = with_modules(threaded, function, args, kwargs, attempt)
        replay.finish()
        return result

    def _attempt(self, function, threaded, view, argnums, args, kwargs, first):
        leaves = view.read()
        tree = self._selected(threaded, view, leaves, first)
        numbers, treedef = jax.tree.flatten(tree)
        positions = _positions(argnums, args)
        if not numbers and not positions:
            raise NothingToDifferentiateError(
                f"{', '.join(name_of(root) for root in view.roots) or 'modules'}: there is no trainable parameter to "
                "differentiate with respect to.\n  Are the modules frozen (module.trainable), or is the list of "
                "modules empty?"
            )
        traced = tracing.is_traced()
        rng = rng_data(traced)
        # Behind the arrays of the view come those that stand beside the modules in the first argument.
        values = [*leaves, *(() if first is None else first.arrays)]

        def pure(selected, chosen):
            moved, given = list(values), list(args)
            for number, value in selected.items():
                moved[number] = value
            if first is not None:
                given[0] = moved[len(leaves) :]
            for position, argument in zip(positions, chosen, strict=True):
                given[position] = argument
            out, effects = run(function, threaded, view, moved[: len(leaves)], rng, given, kwargs)
            return _loss(out, self.function), (out, effects)

        differentiate = jax.value_and_grad(pure, argnums=(0, 1), has_aux=True, **self._options)
        # An array that stands at two places of the gradient is one input.
        selected = {number: values[number] for number in numbers}
        chosen = [args[position] for position in positions]
        (_, (out, effects)), (found, slopes) = differentiate(selected, chosen)
        if first is not None:
            _require_returned(view, effects[-1], first.tree)
        out = write_back(view, out, effects, traced)
        grads = treedef.unflatten(found[number] for number in numbers)
        slopes = tuple(slopes) if isinstance(argnums, tuple) else slopes[0] if slopes else None
        if argnums is None:
            return out, grads
        return out, (grads, slopes) if self._selects else slopes

    @property
    def _selects(self) -> bool:
        return self._where is not None or self._parameters_fn is not None

    def _selected(self, threaded: Threaded, view: View, leaves: list[tp.Any], first: FirstArgument | None) -> tp.Any:
        """The numbers of the arrays to differentiate with respect to, in the form of the gradient."""
        if self._argnums is not None and not self._selects:
            return ()
        modules = view.modules if first is None else first.tree
        if self._where is not None:
            selection = select_trainable(modules, self._where)
            if first is not None:
                return first.numbers(view, {place.identity for place in selection.places()})
            return arranged(selection, lambda place: view.index[id(place.owner), place.name, place.position])
        parameters_fn = self._parameters_fn
        if parameters_fn is None:
            return view.trainable_tree(modules) if first is None else first.numbers(view, None)
        found: list[tp.Any] = []

        def probe(leaves):
            # Inside a trace every array is an object of its own, so what the function picks can be recognised.
            with inside(threaded, view, leaves):
                places = {id(leaf): index for index, leaf in enumerate(leaves)}
                picked = parameters_fn(modules)
                found.append(jax.tree.map(lambda leaf: places.get(id(leaf), -1), picked))

        jax.eval_shape(probe, leaves)
        if -1 in jax.tree.leaves(found[0]):
            raise ValueError("parameters_fn must return arrays of the listed modules as they are, in any structure")
        return found[0]


class FirstArgument:
    """The first argument of a function without `modules=`: modules, and perhaps arrays beside them.

    The modules are threaded. The floating-point arrays, those of a layer of another library included, go along as an
    argument.

    **Attributes:**

    - `tree`: the argument.
    - `arrays`: the arrays beside the modules.
    """

    def __init__(self, tree: tp.Any):
        self.tree = tree
        parts, self._treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_node)
        self._keys = [keys for keys, _ in parts]
        self._parts = [part for _, part in parts]
        self._places = [place for place, part in enumerate(self._parts) if not is_node(part) and is_inexact(part)]
        self.arrays = [self._parts[place] for place in self._places]

    def with_arrays(self, arrays: Sequence[tp.Any]) -> tp.Any:
        """The argument with other arrays beside its modules."""
        if not arrays:
            return self.tree
        parts = list(self._parts)
        for place, array in zip(self._places, arrays, strict=True):
            parts[place] = array
        return self._treedef.unflatten(parts)

    def numbers(self, view: View, chosen: set[tp.Any] | None) -> tp.Any:
        """A tree like the argument with the number of each array that is trainable, and None in place of the others.

        Those of the modules are numbered as in the view, and those beside the modules come after.

        **Arguments:**

        - `chosen`: the places that a selection is about, or None for all.
        """
        beside = {place: len(view.owners) + number for number, place in enumerate(self._places)}

        def module(node: Node) -> Node:
            numbers = [
                view.index[identity] if place.trainable and (chosen is None or identity in chosen) else None
                for place in leaf_places(node)
                for identity in [(id(place.owner), place.name, place.position)]
            ]
            return jax.tree.structure(node).unflatten(numbers)

        return self._treedef.unflatten(
            module(part) if is_node(part) else beside.get(place) if chosen is None or keys in chosen else None
            for place, (keys, part) in enumerate(zip(self._keys, self._parts, strict=True))
        )


def _with_arrays(function: tp.Any, first: FirstArgument, arrays: tp.Any, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
    return function(first.with_arrays(arrays), *args, **kwargs)


def _positions(argnums: int | Sequence[int] | None, args: Sequence[tp.Any]) -> list[int]:
    """The positions of the arguments to differentiate with respect to."""
    numbers = [] if argnums is None else [argnums] if isinstance(argnums, int) else list(argnums)
    for number in numbers:
        if not -len(args) <= number < len(args):
            raise ValueError(f"argnums={argnums}, but there are {len(args)} positional arguments")
        if nodes_in(args[number]):
            raise TypeError(
                f"argnums={argnums}: argument {number} is a module. Gradients with respect to modules are taken by "
                "modules=, and by where= for a part of them."
            )
    return [number % len(args) for number in numbers]


def _require_returned(view: View, record: tp.Any, first: tp.Any) -> None:
    """Refuses changes of modules that are not in the first argument, which alone is returned without `modules=`."""
    returned = {id(node) for node in walk(nodes_in(first))}
    for node, name in (view.owners[index] for index in record.indices):
        if id(node) not in returned:
            raise StructureError(
                f"{name_of(node)}: {name} was updated, but elegy.value_and_grad(f)(modules, ...) returns the modules "
                "of its first argument only.\n"
                "  Put all that change into the first argument, value_and_grad(f)((module, other), ...), or list them "
                "in modules=."
            )


def _loss(out: tp.Any, function: tp.Any) -> tp.Any:
    loss: tp.Any = out[0] if isinstance(out, (tuple, list)) and out else out
    shape = getattr(loss, "shape", None)
    if isinstance(loss, (int, float)):
        return jnp.asarray(loss, jnp.result_type(float))
    if shape != () or not jnp.issubdtype(loss.dtype, jnp.inexact):
        given = f"{loss.dtype}{list(loss.shape)}" if shape is not None else type(loss).__name__
        raise TypeError(
            f"{getattr(function, '__qualname__', type(function).__name__)}: the function to differentiate must return "
            f"a scalar loss, or a tuple whose first element is one; it returned {given}.\n"
            "  Reduce it, for example with jnp.mean."
        )
    return loss


@tp.overload
def value_and_grad(
    f: HasCall[Arguments, Outputs, tp.Any],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> Callable[Arguments, tuple[Outputs, tp.Any]]: ...
@tp.overload
def value_and_grad(
    f: Callable[tp.Concatenate[First, Arguments], Outputs],
    modules: None = None,
    parameters_fn: None = None,
    where: tp.Any = None,
    argnums: None = None,
    **options: tp.Any,
) -> Callable[tp.Concatenate[First, Arguments], tuple[tuple[Outputs, First], First]]: ...
@tp.overload
def value_and_grad(
    f: Callable[tp.Concatenate[First, Arguments], Outputs],
    modules: None = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> Callable[tp.Concatenate[First, Arguments], tuple[tuple[Outputs, First], tp.Any]]: ...
@tp.overload
def value_and_grad(
    f: Callable[Arguments, Outputs],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> Callable[Arguments, tuple[Outputs, tp.Any]]: ...
def value_and_grad(
    f: tp.Any,
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> tp.Any:
    """A function that gives the outputs of `f` and the gradients of its loss.

    **Arguments:**

    - `f`: returns a scalar loss, or a tuple whose first element is one.
    - `modules`: a module, or a list, tuple or dict of modules, that `f` uses without taking them as arguments; their
      state is updated in place.
    - `parameters_fn`: given `modules`, returns the arrays to differentiate with respect to, in any structure. The
      default takes the trainable ones.
    - `where`: instead, a `Selection` of these arrays, or what `elegy.select` takes, in a tuple if it is several. It is
      looked up in the modules of each call, which may be others of the same paths.
    - `argnums`: the positions of arguments of `f` to differentiate with respect to, instead of parameters; with `where`
      or `parameters_fn` besides.
    - `options`: those of `jax.value_and_grad`, such as `holomorphic`.

    **Returns:** with `modules`, a function that returns `(outputs, grads)`. There `grads` has the structure of
    `module.get_parameters(trainable=True)`, or with `where` that of `selection.get()`; for a list, tuple or dict of
    modules, one such dict in the place of each.

    Without `modules`, they are the first argument, and the function returns `((outputs, modules), grads)`, with the
    updated modules. There `grads` has the structure of `elegy.partition(modules)[0]`: modules of the same classes, with
    None where there is nothing to differentiate, or with `where` nothing selected. Arrays beside the modules, as in a
    tuple of both, are differentiated too, as `partition` counts them. A module that two modules of a tuple share has
    its whole gradient in both.

    With `parameters_fn`, `grads` has the structure that this returns. With `argnums` it is what `jax.value_and_grad`
    gives for them; with `where` or `parameters_fn` besides, a pair of both.

    **Raises:** `NothingToDifferentiateError` if nothing is trainable; `SelectionError` if `where` selects nothing, or
    what is not trainable; `StructureError` if a module that is not returned was updated.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)

    loss, grads = elegy.value_and_grad(lambda x: linear(x).sum(), modules=linear)(x)
    assert grads["w"].shape == (3, 2)

    (loss, updated), grads = elegy.value_and_grad(lambda linear, x: linear(x).sum())(linear, x)
    assert grads.w.shape == (3, 2)
    parameters, rest = elegy.partition(updated)
    changed = elegy.combine(jax.tree.map(lambda p, g: p - 0.1 * g, parameters, grads), rest)

    loss, slope = elegy.value_and_grad(lambda x: linear(x).sum(), modules=linear, argnums=0)(x)
    assert slope.shape == x.shape
    ```
    """
    return _transform("elegy.value_and_grad", f, modules, True, parameters_fn, where, argnums, options)


@tp.overload
def grad(
    f: HasCall[Arguments, tp.Any, tp.Any],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> Callable[Arguments, tp.Any]: ...
@tp.overload
def grad(
    f: Callable[tp.Concatenate[First, Arguments], tp.Any],
    modules: None = None,
    parameters_fn: None = None,
    where: tp.Any = None,
    argnums: None = None,
    **options: tp.Any,
) -> Callable[tp.Concatenate[First, Arguments], tuple[First, First]]: ...
@tp.overload
def grad(
    f: Callable[tp.Concatenate[First, Arguments], tp.Any],
    modules: None = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> Callable[tp.Concatenate[First, Arguments], tuple[tp.Any, First]]: ...
@tp.overload
def grad(
    f: Callable[Arguments, tp.Any],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> Callable[Arguments, tp.Any]: ...
def grad(
    f: tp.Any,
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    argnums: int | tuple[int, ...] | None = None,
    **options: tp.Any,
) -> tp.Any:
    """As `value_and_grad`, without the outputs: gives `grads`, or without `modules` `(grads, modules)`.

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)
    grads = elegy.grad(lambda x: linear(x).sum(), modules=linear)(x)
    assert grads["b"].shape == (2,)
    ```
    """
    return _transform("elegy.grad", f, modules, False, parameters_fn, where, argnums, options)


def _transform(transform, f, modules, with_value, parameters_fn, where, argnums, options) -> GradFunction:
    check_function(transform, f)
    check_modules(modules)
    if parameters_fn is not None and where is not None:
        raise TypeError("give parameters_fn= or where=, not both: each says with respect to what")
    if "has_aux" in options:
        raise TypeError("has_aux= is not needed: what the function returns besides the loss is a part of the outputs")
    argnums = argnums if argnums is None or isinstance(argnums, int) else tuple(argnums)
    return GradFunction(f, modules, with_value, parameters_fn, where, argnums, options)
