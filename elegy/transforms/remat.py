"""`elegy.remat`: `jax.checkpoint` that carries modules, random stream and hooks through."""

from __future__ import annotations

import inspect
import typing as tp
from collections.abc import Callable, Iterable

import jax

from elegy import tracing
from elegy.leaves import Node
from elegy.transforms.core import Transformed, View, rng_data, run, write_back
from elegy.transforms.jit import numbers_and_names
from elegy.transforms.lift import Lifted

_LEADING = 2  # arguments of the body before those of the user's function: leaves, random state


Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")


def remat(
    fun: Callable[Arguments, Outputs],
    *,
    prevent_cse: bool = True,
    policy: Callable[..., bool] | None = None,
    static_argnums: int | tuple[int, ...] = (),
    static_argnames: str | Iterable[str] = (),
    modules: tp.Any = None,
) -> Callable[Arguments, Outputs]:
    """Recomputes the intermediate values of a function in the backward pass instead of storing them.

    **Arguments:**

    - `fun`, `prevent_cse`, `policy`, `static_argnums`, `static_argnames`: those of `jax.checkpoint`; `prevent_cse` is
      one bool for all arguments. A flag that decides what is computed must be static: above a method,
      `@functools.partial(elegy.remat, static_argnames="flag")`.
    - `modules`: a module, or a list, tuple or dict of modules, that `fun` uses without taking them as arguments.

    **Returns:** the function, whose values, state updates, draws and hooks are what they are without it.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)
    block = elegy.remat(lambda x: jax.nn.relu(linear(x)), modules=linear)
    loss, grads = elegy.value_and_grad(lambda x: block(x).sum(), modules=linear)(x)
    ```
    """
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if any(number < 0 for number in numbers):
        raise ValueError(f"static_argnums={static_argnums}: count the arguments from the left, starting at 0")
    if not isinstance(prevent_cse, bool):
        raise TypeError(f"elegy.remat: prevent_cse is one bool for all arguments, got {prevent_cse!r}")
    names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
    numbers, names = numbers_and_names(fun, numbers, names)
    return _Checkpointed(fun, modules, {"prevent_cse": prevent_cse, "policy": policy}, numbers, names)


class _Checkpointed(Transformed[Arguments, Outputs]):
    def __init__(
        self,
        function: tp.Any,
        modules: tp.Any,
        options: dict[str, tp.Any],
        static: tuple[int, ...],
        static_names: tuple[str, ...],
    ):
        self._modules = modules
        self._options = options
        self._static = static
        self._static_names = static_names
        self._lifted = Lifted("elegy.remat", [function], modules)
        super().__init__(function, self._lifted.threaded)

    def _bound(self, method: tp.Any) -> _Checkpointed[..., tp.Any]:
        static = tuple(number - 1 for number in self._static if number)
        return _Checkpointed(method, self._modules, self._options, static, self._static_names)

    def _around(self, function: tp.Any) -> _Checkpointed[..., tp.Any]:
        return _Checkpointed(function, self._modules, self._options, self._static, self._static_names)

    def __call__(self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs:
        static = tuple(number + _LEADING for number in self._static if number < len(args))
        return _remat(self._lifted, {**self._options, "static_argnums": static}, self._static_names, args, kwargs)


def _remat(
    lifted: Lifted, options: dict[str, tp.Any], static_names: tuple[str, ...], args: tp.Any, kwargs: tp.Any
) -> tp.Any:
    # Static keyword arguments stay outside: jax.checkpoint of JAX 0.10 takes their names and ignores them.
    fixed = {name: value for name, value in kwargs.items() if name in static_names}

    def attempt(view: View, function: tp.Any) -> tp.Any:
        def body(leaves, rng, *args, **kwargs):
            return run(function, lifted.threaded, view, leaves, rng, args, {**kwargs, **fixed})

        traced = tracing.is_traced()
        moving = {name: value for name, value in kwargs.items() if name not in fixed}
        try:
            out, effects = jax.checkpoint(body, **options)(view.read(), rng_data(traced), *args, **moving)
        except TypeError as error:
            _name_flags(error, function, args, kwargs, options["static_argnums"], static_names)
            raise
        return write_back(view, out, effects, traced)

    return lifted.call(lambda functions, *args, **kwargs: functions[0](*args, **kwargs), attempt, args, kwargs)


def _name_flags(
    error: TypeError, function: tp.Any, args: tp.Any, kwargs: tp.Any, static: tuple[int, ...], names: tuple[str, ...]
) -> None:
    """Adds to an error which arguments are values of Python, and how `remat` leaves them as they are."""
    if getattr(error, "_elegy_flags_named", False):
        return
    if not (isinstance(error, jax.errors.JAXTypeError) or "valid JAX type" in str(error)):
        return
    try:
        signature = inspect.signature(getattr(function, "call") if isinstance(function, Node) else function)  # noqa: B009
        given = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return
    fixed = {*names, *(name for number, name in enumerate(given) if number + _LEADING in static)}
    flags = [name for name, value in given.items() if name not in fixed and isinstance(value, (bool, int, str))]
    if flags:
        error._elegy_flags_named = True  # type: ignore[attr-defined]
        shown = ", ".join(f"{name}={given[name]!r}" for name in flags)
        written = repr(flags[0]) if len(flags) == 1 else repr(tuple(flags))
        error.add_note(
            f"elegy.remat traces all arguments, values of Python too: {shown}. What decides what is computed, as flags "
            f"do, must be static:\n  elegy.remat(f, static_argnames={written}), or above a method "
            f"@functools.partial(elegy.remat, static_argnames={written})."
        )
