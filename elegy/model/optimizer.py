"""`Optimizer`: an Optax transformation together with its state, as a module."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import typing as tp
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from elegy import tracing
from elegy.errors import ParameterError
from elegy.frames import path_of
from elegy.layout import nodes_in
from elegy.leaves import is_node
from elegy.model import optimizer_states as states
from elegy.module import Module
from elegy.parameters import collect
from elegy.selections import Selection, differences, names_of, parts_of_leaves, select_trainable
from elegy.state import transaction

# With what the state of an optimiser begins that is being initialised, where parameters have values and places.
_initial_state: contextvars.ContextVar[tp.Any] = contextvars.ContextVar("initial_state", default=None)

Parameters = tp.Any  # nested dicts of arrays, as `get_parameters` gives them


class Optimizer(Module):
    """An [Optax](https://optax.readthedocs.io) transformation that keeps its own state.

    The state is a parameter, `optimizer.state`, that is not trainable. It is created by the first update, for the
    parameters that are trainable then, on the devices where they are and sharded as they are. Like any module, an
    optimiser is listed in `modules=` of a transform that updates it.

    **Arguments:**

    - `transformation`: an `optax.GradientTransformation`, with or without extra arguments; an `optax.MultiSteps`; or
      another object with `init(parameters)` and `update(gradients, state, parameters)`.
    - `where`: what to update, if it is not all that is trainable: a `Selection`, or what `elegy.select` takes (a class,
      a path, a predicate; a tuple of several). The gradients must be those of the same arrays, as
      `elegy.value_and_grad(..., where=where)` gives them. Given by keyword.
    - `name`: as for every module. Given by keyword.

    Freezing a part of a module is possible at any time. The state of the frozen parameters is kept, unchanged, for
    when they are trainable again. Parameters that are trainable for the first time after the first update need
    `adapt`.

    ```python
    import elegy
    import jax.numpy as jnp
    import optax

    x, y = jnp.ones([8, 3]), jnp.zeros([8, 1])
    linear = elegy.nn.Linear(1)
    optimizer = elegy.Optimizer(optax.adam(0.1))


    def loss_fn(x, y):
        return jnp.mean((linear(x) - y) ** 2)


    def update(x, y):
        loss, gradients = elegy.value_and_grad(loss_fn, modules=linear)(x, y)
        optimizer.update(linear, gradients)
        return loss


    update_jit = elegy.jit(update, modules=[linear, optimizer])
    losses = [update_jit(x, y) for _ in range(20)]
    assert losses[-1] < losses[0]
    ```
    """

    def __init__(self, transformation: tp.Any, *more: tp.Any, where: tp.Any = None, name: str | None = None):
        super().__init__(name=name)
        if more:
            raise TypeError(_not_a_transformation(transformation, more))
        self.transformation = _as_transformation(transformation)
        # Whether an update may ask for the gradients and for the loss as a function of the parameters.
        self.takes_functions = isinstance(transformation, optax.GradientTransformationExtraArgs)
        if is_node(where):
            raise TypeError("where= of an optimiser takes no module, which would become a part of it: give its path.")
        # A selection holds arrays, so its paths are kept in its place.
        self.where = where.paths if isinstance(where, Selection) else where

    def call(self, gradients: Parameters, parameters: Parameters, **extra: tp.Any) -> Parameters:
        """The parameters after one step, without touching any module.

        **Arguments:**

        - `gradients`, `parameters`: two pytrees of one structure, with arrays of the same shapes; `parameters` may be
          `module.get_parameters(trainable=True)` or any other pytree of arrays. Either may be modules instead of the
          dict of their parameters, as `elegy.partition` and the pure form of `elegy.value_and_grad` give them. A
          transformation that reduces the gradients of single samples, as
          `optax.contrib.differentially_private_aggregate`, takes them with one more axis in front.
        - `extra`: what the transformation takes besides, such as `value` for `optax.contrib.reduce_on_plateau`.

        **Returns:** a pytree like `parameters`, of the same dtypes.

        **Raises:** `ParameterError` if the structures or the shapes differ, or if the state lacks some of the
        parameters. Then nothing has changed.
        """
        given = parameters
        # The state of the optimiser is by name, whether it is called with modules or updates them.
        parameters = _as_dicts(parameters)
        gradients = _by_name(gradients, parameters, given)
        _require_equal_structures(gradients, parameters)
        misfits = _misfits(gradients, parameters)
        if misfits and not _are_of_samples(gradients, parameters):
            raise _wrong_shapes(misfits)
        with _default_promotion():
            init = self.transformation.init
            begun = _initial_state.get()
            create = lambda: states.placed(init(parameters), parameters) if begun is None else begun  # noqa: E731
            whole = states.placed(self.add_parameter("state", initializer=create, trainable=False), parameters)
            if begun is not None:  # there is no step to make, for which `extra` might be needed
                return given
            state = states.select(whole, jax.eval_shape(init, parameters))
            updates, state = self.transformation.update(gradients, state, parameters, **extra)
            if misfits and _misfits(updates, parameters):
                raise _wrong_shapes(misfits)
            self.update_parameter("state", states.merge(whole, state))
            return _with_values(given, optax.apply_updates(parameters, updates))

    def update(self, modules: tp.Any, gradients: Parameters, **extra: tp.Any) -> None:
        """Gives the trainable parameters of modules their values after one step, in place.

        **Arguments:**

        - `modules`: a module, or a list, tuple or dict of modules.
        - `gradients`: what `elegy.value_and_grad(..., modules=modules)` gives; or the modules that its pure form gives
          where `modules` are the first argument.
        - `extra`: as for a call.

        **Raises:** as a call does. After any exception the modules and the state are what they were.
        """
        for leaf in jax.tree.leaves(modules, is_leaf=is_node):
            if not is_node(leaf):
                raise TypeError(
                    f"{path_of(self)}: update takes the modules first, then the gradients, update(module, gradients); "
                    f"got a {type(leaf).__name__} among the modules."
                )
        with transaction():
            parameters = self.parameters(modules)
            gradients = _by_name(gradients, parameters, modules)
            if not self.initialized and not tracing.is_traced():
                self._begin(gradients, parameters, extra)
            values = self(gradients, parameters, **extra)
            jax.tree.map(lambda module, new: module.set_parameters(new), modules, values, is_leaf=is_node)

    def parameters(self, modules: tp.Any) -> Parameters:
        """What it updates of modules: what is trainable, or what `where` selects.

        **Arguments:**

        - `modules`: as for `update`.

        **Returns:** for each module a nested dict, in the form of `get_parameters`.

        **Raises:** `SelectionError` if `where` selects nothing, or what is not trainable.
        """
        return trainable_parameters(modules) if self.where is None else select_trainable(modules, self.where).get()

    def evaluation_parameters(self, modules: tp.Any) -> Parameters:
        """The parameters to evaluate modules with, and to export. They are those that the modules have, unless the
        transformation is schedule-free (Defazio et al., *The Road Less Scheduled* (2024), section 2): then training
        takes gradients at parameters that keep moving, and what is to be evaluated is their average,
        `optax.contrib.schedule_free_eval_params`. The state of such a transformation is found wherever it is: in a
        chain, in `optax.MultiSteps`, in `optax.inject_hyperparams`. A `Model` evaluates and predicts with them.

        **Arguments:**

        - `modules`: what `update` is given.

        **Returns:** for each module a nested dict of what is trainable, for `set_parameters`. Parameters that are
        frozen, or that the optimiser does not update, are as they are. So are all before the state exists.

        **Raises:** `ParameterError` if several schedule-free transformations update one parameter.

        Training goes on with the parameters of the module, so give those for evaluation to a copy:

        ```python
        import elegy
        import numpy as np
        import optax

        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        optimizer = elegy.Optimizer(optax.contrib.schedule_free_sgd(0.1))
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError(), optimizer=optimizer)
        model.fit(x, 2 * x, epochs=5, verbose=0)
        exported = model.module.copy()
        exported.set_parameters(model.optimizer.evaluation_parameters(model.module))
        assert np.allclose(exported(x), model.predict(x), atol=1e-6)
        assert not np.allclose(model.module(x), model.predict(x), atol=1e-6)
        ```
        """
        parameters = trainable_parameters(modules)
        values = states.by_path(parameters)
        found: dict[tp.Any, tp.Any] = {}
        for state in self._schedule_free:
            pairs = {
                path: (values[path], leaf)
                for path, leaf in states.by_path(state.z).items()
                if path in values and values[path].shape == leaf.shape
            }
            if twice := found.keys() & pairs.keys():
                raise ParameterError(
                    f"several schedule-free transformations update {jax.tree_util.keystr(min(twice, key=str))}: which "
                    "of them says how to evaluate it cannot be told.\n  Keep one of them in the chain."
                )
            own, z = [pair[0] for pair in pairs.values()], [pair[1] for pair in pairs.values()]
            with _default_promotion():
                averages = optax.contrib.schedule_free_eval_params(state._replace(z=z), own)
            found.update({path: new.astype(values[path].dtype) for path, new in zip(pairs, averages, strict=True)})
        return jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(path, leaf), parameters)

    @property
    def _schedule_free(self) -> list[tp.Any]:
        """The states of schedule-free transformations within the state."""
        return states.schedule_free_states(self.state) if self.initialized else []

    def _is_of(self, module: Module) -> bool:
        """Whether all that schedule-free transformations update are parameters of a module."""
        shapes = {path: leaf.shape for path, leaf in states.by_path(module.get_parameters()).items()}
        updated = [pair for state in self._schedule_free for pair in states.by_path(state.z).items()]
        return all(shapes.get(path) == leaf.shape for path, leaf in updated)

    def _moving(self) -> dict[str, tp.Any]:
        """What the evaluation parameters depend on besides the parameters themselves, by path. It belongs to the
        parameters that a module has now."""
        leaves = [pair for state in self._schedule_free for pair in states.by_path(state.z).items()]
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}

    def _move(self, values: dict[str, tp.Any]) -> None:
        """Sets what `_moving` gives, as far as `values` has it."""
        if not self._schedule_free:
            return

        def moved(state: tp.Any) -> tp.Any:
            if not states.is_schedule_free(state):
                return state
            leaf = lambda path, old: states.moved(old, values.get(jax.tree_util.keystr(path)))  # noqa: E731
            return state._replace(z=jax.tree_util.tree_map_with_path(leaf, state.z))

        self.set_parameters({"state": jax.tree.map(moved, self.state, is_leaf=states.is_schedule_free)})

    @property
    def learning_rate(self) -> tp.Any:
        """The learning rate, a scalar array, where the transformation keeps one in its state: that is what
        `optax.inject_hyperparams` makes of it, anywhere in a chain. None where there is none, or several, or no state
        yet.

        **Raises:** `ParameterError` when it is assigned where there is not exactly one, or where a schedule computes
        it; the message says what to write.

        Assigning it, outside of transforms or within, gives the next update another one. Nothing is compiled anew.

        ```python
        import elegy
        import jax.numpy as jnp
        import optax

        linear = elegy.nn.Linear(1).init(jnp.ones([1, 3]))
        optimizer = elegy.Optimizer(optax.inject_hyperparams(optax.adam)(learning_rate=1e-3))
        optimizer.adapt(linear)  # creates the state
        optimizer.learning_rate = 0.5 * optimizer.learning_rate
        assert jnp.allclose(optimizer.learning_rate, 5e-4)
        ```
        """
        found = states.learning_rates(self.state) if self.initialized else {}
        return next(iter(found.values())) if len(found) == 1 else None

    @learning_rate.setter
    def learning_rate(self, value: tp.Any) -> None:
        state = self.state if self.initialized else None
        found = states.learning_rates(state)
        if len(found) != 1 or states.is_scheduled(state):
            raise ParameterError(states.no_learning_rate(state))
        ((place, old),) = found.items()
        new = states.scalar_like(old, value)
        change = lambda path, leaf: new if path == place else leaf  # noqa: E731
        self.set_parameters({"state": jax.tree_util.tree_map_with_path(change, state)})

    def __setattr__(self, name: str, value: tp.Any) -> None:
        if name == "learning_rate":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def adapt(self, modules: tp.Any) -> None:
        """Fits the state to the parameters that are trainable now; needed when some are for the first time.

        Parameters that the state covers keep theirs, and so do the counters. If the state covers all that is
        trainable, nothing changes; else what is frozen now is no longer covered. Call it outside of transforms, since
        the structure of the optimiser changes.

        **Arguments:**

        - `modules`: as for `update`.

        ```python
        import elegy
        import jax.numpy as jnp
        import optax

        x = jnp.ones([8, 3])
        body, head = elegy.nn.Linear(4).init(x), elegy.nn.Linear(1).init(jnp.ones([8, 4]))
        modules = [body, head]
        optimizer = elegy.Optimizer(optax.adam(0.1))
        loss_and_gradients = elegy.value_and_grad(lambda x: (head(body(x)) ** 2).mean(), modules=modules)

        body.trainable = False
        loss, gradients = loss_and_gradients(x)
        optimizer.update(modules, gradients)

        body.trainable = True
        optimizer.adapt(modules)
        loss, gradients = loss_and_gradients(x)
        optimizer.update(modules, gradients)
        ```
        """
        parameters = self.parameters(modules)
        old = self.state if self.initialized else None
        if old is not None:
            with _default_promotion():
                if not states.missing(old, jax.eval_shape(self.transformation.init, parameters)):
                    return
        with transaction():
            self.reset()
            state = self._begin(parameters, parameters, {})
            self.set_parameters({"state": state if old is None else states.merge(state, old)})

    def _begin(self, gradients: Parameters, parameters: Parameters, extra: dict[str, tp.Any]) -> tp.Any:
        """Creates the state from parameters that have values and places; an init pass alone knows their shapes."""
        with _default_promotion():
            state = states.placed(self.transformation.init(parameters), parameters)
        token = _initial_state.set(state)
        try:
            self.init(gradients, parameters, **extra)
        finally:
            _initial_state.reset(token)
        return state


def _as_transformation(given: tp.Any) -> optax.GradientTransformation:
    """What an optimiser uses of an object with `init` and `update`: these two, the second with extra arguments."""
    if isinstance(given, optax.MultiSteps):
        return given.gradient_transformation()
    if isinstance(given, optax.GradientTransformation):
        return _taking_more(optax.with_extra_args_support(given))
    methods = [getattr(given, name, None) for name in ("init", "update")]
    if is_node(given) or isinstance(given, type) or not all(map(callable, methods)):
        raise TypeError(_not_a_transformation(given, ()))
    init, update = tp.cast(list[Callable[..., tp.Any]], methods)
    _require_signature(given, init, "init", "parameters")
    _require_signature(given, update, "update", "gradients", "state", "parameters")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(update).parameters.values()):
        return optax.GradientTransformationExtraArgs(init, update)
    return optax.with_extra_args_support(optax.GradientTransformation(init, update))


def _taking_more(given: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A transformation of which `update` may be given more than it names."""
    parameters = inspect.signature(given.update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given

    def update(updates: tp.Any, state: tp.Any, params: tp.Any = None, **extra: tp.Any) -> tp.Any:
        named = {name: value for name, value in extra.items() if name in parameters}
        return given.update(updates, state, params, **named)

    return optax.GradientTransformationExtraArgs(given.init, update)


def _require_signature(given: tp.Any, method: Callable[..., tp.Any], name: str, *arguments: str) -> None:
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"elegy.Optimizer calls {name}({', '.join(arguments)}) of a transformation, and {type(given).__name__}."
            f"{name}{inspect.signature(method)} cannot be called so: {error}.\n"
            "  Give it the signatures of Optax, init(parameters) and update(gradients, state, parameters); the second "
            "returns the updates and the new state."
        ) from None


def _not_a_transformation(given: tp.Any, more: tuple[tp.Any, ...]) -> str:
    fix = ""
    if is_node(given):
        what = f"a module, {type(given).__name__}; parameters come with update(module, gradients)"
    elif more:
        what = f"{1 + len(more)} positional arguments; where= and name= are given by keyword"
    elif isinstance(given, type):
        what, fix = f"the class {given.__name__}", f"\n  Construct it: {given.__name__}(...)."
    elif inspect.isfunction(given):
        what, fix = f"the function {given.__name__}", f"\n  Call it: optax.{given.__name__}(...)."
        if getattr(given, "__module__", "").partition(".")[0] != "optax":
            fix = f"\n  Call it, if it returns a transformation: {given.__name__}(...)."
    else:
        what = repr(given)
        fix = f"\n  Call the function of that name: optax.{given}(...)." if _names_a_function(given) else ""
    return f"elegy.Optimizer takes an Optax transformation, such as optax.adam(1e-3), got {what}.{fix}"


def _names_a_function(given: tp.Any) -> bool:
    return isinstance(given, str) and inspect.isfunction(getattr(optax, given, None))


@contextlib.contextmanager
def _default_promotion() -> Iterator[None]:
    """Optax needs JAX's default promotion of dtypes and ranks; a program that forbids it can use Optax all the same."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def require_fixed(module: tp.Any, losses: dict[str, tp.Any]) -> None:
    """Refuses losses that have trainable parameters which are not those of the module: they would stay as they are.

    - `losses`: by where the user gave them.
    """
    named = [(name, loss) for name, loss in losses.items() if isinstance(loss, Module)]
    _, found = trainable_parameters([module, [loss for _, loss in named]])
    paths = ["/".join([named[int(number)][0], *below]) for number, *below in parts_of_leaves(found)]
    if paths:
        raise ParameterError(
            f"losses have trainable parameters, and training changes those of the module only: {', '.join(paths)}.\n"
            "  Put what is to be learnt into the module, which can declare the loss by elegy.add_loss; freeze what is "
            "not to be learnt, loss.trainable = False."
        )


def trainable_parameters(modules: tp.Any) -> Parameters:
    """`get_parameters(trainable=True)` in the place of each module; one met twice has them at the first place."""
    seen: set[int] = set()

    def parameters(module: Module) -> Parameters:
        if id(module) in seen:
            return {}
        return collect(module, True, lambda owner, name, index, value: value, seen)

    return jax.tree.map(parameters, modules, is_leaf=is_node)


def _as_dicts(tree: tp.Any) -> tp.Any:
    """A tree with the dict of its parameters in the place of each module; without modules, the tree itself."""
    if not nodes_in(tree):
        return tree
    seen: set[int] = set()
    values = lambda owner, name, index, value: value  # noqa: E731
    return jax.tree.map(
        lambda part: ({} if id(part) in seen else collect(part, None, values, seen)) if is_node(part) else part,
        tree,
        is_leaf=is_node,
    )


def _by_name(gradients: tp.Any, parameters: Parameters, modules: tp.Any) -> Parameters:
    """Gradients in the structure of the parameters; those that are no modules as they are.

    **Arguments:**

    - `modules`: what the parameters belong to. What two of these share has one name among the parameters, and two among
      gradients that are modules.
    """
    if not nodes_in(gradients):
        return gradients
    first_names = names_of(modules)
    given: dict[tuple[str, ...], tp.Any] = {}
    for parts, gradient in zip(parts_of_leaves(gradients), jax.tree.leaves(gradients), strict=True):
        given.setdefault(first_names.get(parts, parts), gradient)
    names = parts_of_leaves(parameters)
    if given.keys() != set(names):
        raise _other_parameters(list(given), names, "")
    return jax.tree.structure(parameters).unflatten([given[parts] for parts in names])


def _with_values(tree: tp.Any, values: Parameters) -> tp.Any:
    """A tree that may have modules, with the arrays that the dicts in the place of the modules have."""
    if not nodes_in(tree):
        return values
    first_names = names_of(tree)
    by_name = dict(zip(parts_of_leaves(values), jax.tree.leaves(values), strict=True))
    leaves = [by_name[first_names.get(parts, parts)] for parts in parts_of_leaves(tree)]
    return jax.tree.structure(tree).unflatten(leaves)


def _other_parameters(given: list[tuple[str, ...]], updated: list[tuple[str, ...]], otherwise: str) -> ParameterError:
    sides = {
        "only among the gradients": [parts for parts in given if parts not in updated],
        "only among the parameters": [parts for parts in updated if parts not in given],
    }
    return ParameterError(
        "the gradients are not those of the parameters that are to be updated:\n"
        f"{differences(sides) or otherwise}\n"
        "  Take them with respect to the same modules, with the same parts frozen, and with the where= of the "
        "optimiser."
    )


def _require_equal_structures(gradients: Parameters, parameters: Parameters) -> None:
    found, wanted = jax.tree.structure(gradients), jax.tree.structure(parameters)
    if found != wanted:
        otherwise = f"  gradients:  {found}\n  parameters: {wanted}"
        raise _other_parameters(parts_of_leaves(gradients), parts_of_leaves(parameters), otherwise)


def _misfits(gradients: Parameters, parameters: Parameters) -> list[str]:
    """A line of an error message for each gradient, or update, of another shape than its parameter."""
    paths = map("/".join, parts_of_leaves(parameters))
    pairs = zip(paths, jax.tree.leaves(gradients), jax.tree.leaves(parameters), strict=True)
    return [
        f"  {path or 'the array'}: the gradient has shape {jnp.shape(gradient)}, the parameter {jnp.shape(parameter)}"
        for path, gradient, parameter in pairs
        if jnp.shape(gradient) != jnp.shape(parameter)
    ]


def _are_of_samples(gradients: Parameters, parameters: Parameters) -> bool:
    """Whether each gradient has one more axis than its parameter, in front, and of one length."""
    shapes = [jnp.shape(gradient) for gradient in jax.tree.leaves(gradients)]
    wanted = [jnp.shape(parameter) for parameter in jax.tree.leaves(parameters)]
    return [shape[1:] for shape in shapes] == wanted and len({shape[:1] for shape in shapes}) == 1


def _wrong_shapes(misfits: list[str]) -> ParameterError:
    return ParameterError(
        "the gradients have other shapes than the parameters:\n" + "\n".join(misfits) + "\n"
        "  Take the gradients of one number, such as the mean over the samples, with respect to these parameters."
    )
