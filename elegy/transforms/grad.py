"""`elegy.value_and_grad` and `elegy.grad`: derivatives with respect to the trainable parameters of modules."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp

from elegy.errors import NothingToDifferentiateError
from elegy.frames import Replay, name_of
from elegy.module import HasCall
from elegy.pytree import nodes_in
from elegy.selections import arranged, select_trainable
from elegy.transforms.core import (
    View,
    _threaded,
    check_function,
    check_modules,
    modules_of,
    rng_data,
    run,
    with_modules,
    write_back,
)

Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")
First = tp.TypeVar("First")


class GradFunction:
    """A function differentiated by `elegy.value_and_grad`."""

    def __init__(self, function, modules, parameters_fn, where, options):
        if parameters_fn is not None and where is not None:
            raise TypeError("give parameters_fn= or where=, not both: each says with respect to what")
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self._parameters_fn = parameters_fn
        self._where = where
        self._options = options
        threaded = modules_of(function, modules)
        self._view = None if threaded is None else View(threaded)

    def __call__(self, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        if self._view is not None:
            return self._differentiate(self.function, self._view, args, kwargs)
        if not args or not nodes_in(args[0]):
            raise TypeError(
                "without modules=, elegy.value_and_grad differentiates with respect to the modules in the first "
                "argument, "
                "and there are none.\n  Call it as value_and_grad(f)(module, ...), or use value_and_grad(f, "
                "modules=module)."
            )
        # The pure form is the shim over a copy.
        leaves, treedef = jax.tree.flatten(args[0])
        module = treedef.unflatten(leaves)
        function = functools.partial(self.function, module)
        out, grads = self._differentiate(function, View(module), args[1:], kwargs)
        return (out, module), grads

    def _differentiate(self, function: tp.Any, view: View, args: tp.Any, kwargs: tp.Any) -> tp.Any:
        replay = Replay()
        function = replay.of(function)
        result = with_modules(view, function, args, kwargs, lambda: self._attempt(function, view, args, kwargs))
        replay.finish()
        return result

    def _attempt(self, function: tp.Any, view: View, args: tp.Any, kwargs: tp.Any) -> tp.Any:
        leaves = view.read()
        tree = self._selected(view, leaves)
        indices, treedef = jax.tree.flatten(tree)
        if not indices:
            raise NothingToDifferentiateError(
                f"{', '.join(name_of(root) for root in view.roots) or 'modules'}: there is no trainable parameter to "
                "differentiate with respect to.\n  Are the modules frozen (module.trainable), or is the list of "
                "modules empty?"
            )

        rng = rng_data(leaves)

        def pure(selected):
            inside = list(leaves)
            for index, leaf in zip(indices, selected, strict=True):
                inside[index] = leaf
            out, effects = run(function, view, inside, rng, args, kwargs)
            return _loss(out, function), (out, effects)

        differentiate = jax.value_and_grad(pure, has_aux=True, **self._options)
        (_, (out, effects)), grads = differentiate([leaves[index] for index in indices])
        write_back(view, effects)
        return out, treedef.unflatten(grads)

    def _selected(self, view: View, leaves: list[tp.Any]) -> tp.Any:
        if self._where is not None:
            selection = select_trainable(view.modules, self._where)
            return arranged(selection, lambda place: view.index[id(place.owner), place.name, place.position])
        parameters_fn = self._parameters_fn
        if parameters_fn is None:
            return view.trainable_tree()
        found: list[tp.Any] = []

        def probe(leaves):
            # Inside a trace every array is an object of its own, so what the function picks can be recognised.
            with _threaded(view, leaves):
                places = {id(leaf): index for index, leaf in enumerate(leaves)}
                picked = parameters_fn(view.modules)
                found.append(jax.tree.map(lambda leaf: places.get(id(leaf)), picked))

        jax.eval_shape(probe, leaves)
        if any(index is None for index in jax.tree.leaves(found[0], is_leaf=lambda leaf: leaf is None)):
            raise ValueError("parameters_fn must return arrays of the listed modules as they are, in any structure")
        return found[0]


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
    function: HasCall[Arguments, Outputs, tp.Any],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    **options: tp.Any,
) -> Callable[Arguments, tuple[Outputs, tp.Any]]: ...
@tp.overload
def value_and_grad(
    function: Callable[tp.Concatenate[First, Arguments], Outputs],
    modules: None = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    **options: tp.Any,
) -> Callable[tp.Concatenate[First, Arguments], tuple[tuple[Outputs, First], tp.Any]]: ...
@tp.overload
def value_and_grad(
    function: Callable[Arguments, Outputs],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    **options: tp.Any,
) -> Callable[Arguments, tuple[Outputs, tp.Any]]: ...
def value_and_grad(
    function: tp.Any,
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    **options: tp.Any,
) -> tp.Any:
    """A function that gives the outputs of `function` and the gradients of its loss.

    **Arguments:**

    - `function`: returns a scalar loss, or a tuple whose first element is one.
    - `modules`: a module, or a list, tuple or dict of modules, that the function uses without taking them as arguments;
      their state is updated in place.
    - `parameters_fn`: given `modules`, returns the arrays to differentiate with respect to, in any structure. The
      default takes the trainable ones.
    - `where`: instead, a `Selection` of these arrays, or what `elegy.select` takes, in a tuple if it is several. It is
      looked up in the modules of each call, which may be others of the same paths.
    - `options`: those of `jax.value_and_grad`, such as `holomorphic`.

    **Returns:** with `modules`, a function that returns `(outputs, grads)`. Without, the modules are the first
    argument, and the function returns `((outputs, modules), grads)`, with the updated modules. `grads` has the
    structure of `module.get_parameters(trainable=True)`, or with `where` that of `selection.get()`; for a list, tuple
    or dict of modules, one such dict in the place of each.

    **Raises:** `NothingToDifferentiateError` if nothing is trainable; `SelectionError` if `where` selects nothing, or
    what is not trainable.

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)

    loss, grads = elegy.value_and_grad(lambda x: linear(x).sum(), modules=linear)(x)
    assert grads["w"].shape == (3, 2)

    (loss, updated), grads = elegy.value_and_grad(lambda linear, x: linear(x).sum())(linear, x)
    ```
    """
    _check("elegy.value_and_grad", function, modules, options)
    return GradFunction(function, modules, parameters_fn, where, options)


@tp.overload
def grad(
    function: HasCall[Arguments, tp.Any, tp.Any],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    **options: tp.Any,
) -> Callable[Arguments, tp.Any]: ...
@tp.overload
def grad(
    function: Callable[tp.Concatenate[First, Arguments], tp.Any],
    modules: None = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    **options: tp.Any,
) -> Callable[tp.Concatenate[First, Arguments], tuple[tp.Any, First]]: ...
@tp.overload
def grad(
    function: Callable[Arguments, tp.Any],
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
    **options: tp.Any,
) -> Callable[Arguments, tp.Any]: ...
def grad(
    function: tp.Any,
    modules: tp.Any = None,
    parameters_fn: Callable[[tp.Any], tp.Any] | None = None,
    where: tp.Any = None,
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
    _check("elegy.grad", function, modules, options)
    differentiated = GradFunction(function, modules, parameters_fn, where, options)

    @functools.wraps(function, updated=())
    def wrapper(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        value, grads = differentiated(*args, **kwargs)
        return grads if differentiated._view is not None else (grads, value[1])

    return wrapper


def _check(transform: str, function: tp.Any, modules: tp.Any, options: dict[str, tp.Any]) -> None:
    check_function(transform, function)
    for name in ("argnums", "has_aux"):
        if name in options:
            raise TypeError(
                f"{name}= has no meaning here: the gradient is taken with respect to modules, and what the "
                "function returns "
                "besides the loss is always part of the outputs"
            )
    check_modules(modules)
