"""`elegy.jit`: `jax.jit` that carries modules, random stream and hooks through."""

from __future__ import annotations

import functools
import inspect
import typing as tp
import warnings

import jax
import numpy as np

from elegy.errors import RecompilationWarning
from elegy.hooks import _scope, lock, state
from elegy.initialise import NeedsInitPass, run_init_pass
from elegy.pytree import is_array, structure
from elegy.transforms.core import View, check_modules, modules_of, run, write_back

WARN_AT = 10


class Config:
    """What is static in one compiled version: compared by identity."""

    __slots__ = ("key", "signature")

    def __init__(self, key: tp.Any, signature: tp.Any):
        self.key = key
        self.signature = signature


class JitFunction:
    """A function compiled by `elegy.jit`. Call it as the function; `lower` is that of `jax.jit`."""

    def __init__(self, function, modules, explain, donate_modules, options):
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.traces = 0
        self._explain = print if explain is True else explain
        self._donate = donate_modules
        self._view = View(modules_of(function, modules))
        self._configs: dict[tp.Any, Config] = {}
        self._initialised: set[tp.Any] = set()
        self._described: dict[str, str] | None = None

        def body(config: Config, leaves: list[tp.Any], rng_data: tp.Any, *args: tp.Any, **kwargs: tp.Any):
            self._note_trace(config, leaves, args, kwargs)
            return run(self.function, self._view, leaves, rng_data, args, kwargs, return_all=self._donate)

        body.__name__ = getattr(function, "__name__", type(function).__name__)
        self._jitted = jax.jit(body, **_shifted(function, options, donate_modules))

    def __call__(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        view = self._view
        while True:
            if view.version != structure.version:
                view.refresh()
            rng = state.rng
            collector = state.collector
            collects = None if collector is None else (collector.wants_summaries, *_scope())
            key = (state.training, collects, rng._impl, view.signature_id)
            config = self._configs.get(key)
            try:
                if config is not None:
                    with lock:
                        leaves = view.read()
                    out, effects = self._jitted(config, leaves, rng._data, *args, **kwargs)
                else:
                    with lock:
                        if view.uninitialised() and view.signature_id not in self._initialised:
                            self._initialise(args, kwargs)
                            continue
                        config = Config(key, view.signature)
                        out, effects = self._jitted(config, view.read(), rng._data, *args, **kwargs)
                        self._configs[key] = config
            except NeedsInitPass as needs:
                if id(needs.module) not in view.ids:
                    raise
                self._initialise(args, kwargs)
                if view.version == structure.version:
                    raise AssertionError(f"the init pass did not reach {needs.module!r}") from None
                continue
            record = effects.record
            if record.indices or record.events or effects.rng is not None:
                write_back(view, effects)
            return out

    def lower(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """As `jax.jit(f).lower`: the computation for these arguments, to be looked at or compiled ahead of time."""
        view = self._view
        view.refresh()
        if view.uninitialised():
            self._initialise(args, kwargs)
            view.refresh()
        key = (state.training, None, state.rng._impl, view.signature_id)
        config = self._configs.get(key) or Config(key, view.signature)
        return self._jitted.lower(config, view.read(), state.rng._data, *args, **kwargs)

    def __get__(self, instance: tp.Any, owner: tp.Any = None) -> tp.Any:
        return self if instance is None else functools.partial(self, instance)

    def _initialise(self, args: tp.Any, kwargs: tp.Any) -> None:
        run_init_pass(self.function, args, kwargs, self._view.roots)
        self._view.refresh()
        self._initialised.add(self._view.signature_id)

    def _note_trace(self, config: Config, leaves, args, kwargs) -> None:
        """Runs while JAX traces: counts, and says what changed where that is wanted."""
        self.traces += 1
        described = _describe(config, self._view, leaves, args, kwargs)
        before, self._described = self._described, described
        if before is None:
            return
        names = [name for name in {**before, **described} if before.get(name) != described.get(name)]
        changes = [f"{name}: {before.get(name, 'absent')} -> {described.get(name, 'absent')}" for name in names]
        reason = "\n  ".join(changes) or "nothing that can be seen: a static argument, or a cleared cache"
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        if self._explain:
            self._explain(f"elegy.jit: {name} is traced again (trace {self.traces}), since the last trace:\n  {reason}")
        if self.traces == WARN_AT:
            warnings.warn(
                RecompilationWarning(
                    f"elegy.jit: {name} has been traced {WARN_AT} times. Since the last trace:\n  {reason}\n"
                    "  Each trace compiles again. elegy.jit(..., explain=True) says what changed at each of them."
                ),
                stacklevel=2,
            )


def _describe(config: Config, view: View, leaves, args, kwargs) -> dict[str, str]:
    training, collects, impl, _ = config.key
    described = {"training": str(training), "hooks": str(collects), "random implementation": impl}
    for node, layout in zip(view.nodes, config.signature, strict=True):
        described[f"static part of {_path(view, node)}"] = repr(layout)
    for (node, name), leaf in zip(view.owners, leaves, strict=True):
        described[f"{_path(view, node)}/{name}"] = _aval(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path((args, kwargs))[0]:
        kind, rest = ("argument ", path[1:]) if path[0] == jax.tree_util.SequenceKey(0) else ("keyword ", path[1:])
        described[kind + jax.tree_util.keystr(rest, simple=True, separator="/")] = _aval(leaf)
    return described


def _path(view: View, node: tp.Any) -> str:
    from elegy.hooks import name_of, path_below

    for root in view.roots:
        if root is node:
            return name_of(root)
        below = path_below(root, node)
        if below is not None:
            return "/".join((name_of(root), *below))
    return name_of(node)


def _aval(leaf: tp.Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if is_array(leaf) else repr(leaf)


_OURS = 3  # arguments of the compiled body before those of the user's function: config, leaves, rng_data


def _shifted(function: tp.Any, options: dict[str, tp.Any], donate_modules: bool) -> dict[str, tp.Any]:
    """The options of `jax.jit` for the body, which has three arguments before those of the function."""
    options = dict(options)
    shift = lambda numbers: tuple(number + _OURS if number >= 0 else number for number in _as_tuple(numbers))  # noqa: E731
    static = _as_tuple(options.pop("static_argnums", ()))
    names = _as_tuple(options.pop("static_argnames", ()))
    options["static_argnums"] = (0, *shift(static))
    options["static_argnames"] = tuple(dict.fromkeys((*names, *_names(function, static))))
    donated = _as_tuple(options.pop("donate_argnums", ()))
    donate_names = _as_tuple(options.pop("donate_argnames", ()))
    options["donate_argnums"] = (*((1,) if donate_modules else ()), *shift(donated))
    if donate_names:
        options["donate_argnames"] = donate_names
    if options.get("in_shardings") is not None:
        if not isinstance(options["in_shardings"], tuple):
            raise ValueError("in_shardings takes a tuple with one entry for each argument of the function")
        options["in_shardings"] = (None, None, *options["in_shardings"])
    if options.get("out_shardings") is not None:
        options["out_shardings"] = (options["out_shardings"], None)
    return options


def _as_tuple(value: tp.Any) -> tuple[tp.Any, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, (int, np.integer, str)) else tuple(value)


def _names(function: tp.Any, numbers: tp.Sequence[int]) -> list[str]:
    """The names of positional parameters, so that a static argument is static when given by keyword too."""
    try:
        call = function.call if hasattr(function, "call") else function
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return []
    keyworded = [p.name if p.kind is p.POSITIONAL_OR_KEYWORD else None for p in parameters]
    found = [keyworded[n] for n in numbers if -len(keyworded) <= n < len(keyworded)]
    return [name for name in found if name is not None]


def jit(
    function: tp.Callable[..., tp.Any],
    modules: tp.Any = None,
    *,
    donate_modules: bool = False,
    explain: bool | tp.Callable[[str], None] = False,
    **options: tp.Any,
) -> JitFunction:
    """Compiles a function, carrying modules, the random stream and hooks through.

    **Arguments:**

    - `function`: any function, a module, or a method of one.
    - `modules`: a module, or a list, tuple or dict of modules, that the function uses without taking them as arguments.
      They are threaded in and out, and updated in place, so the function behaves as if it were not compiled. If `function`
      is a module or a method of one, that module is threaded too. Without `modules` the function is pure: modules come
      in as arguments and updated ones must be returned.
    - `donate_modules`: lets XLA reuse the memory of the threaded arrays. Arrays taken from the modules before are deleted.
    - `explain`: True prints, at each trace after the first, what changed since the last one; a function gets that text.
    - `options`: those of `jax.jit`: `static_argnums`, `static_argnames`, `donate_argnums`, `in_shardings`, …; numbers count
      the arguments of `function`.

    **Returns:** the compiled function. It is traced again if, and only if, something static changed: the training mode, which
    hooks are collected, which parameters are trainable, a static attribute of a module, the shapes of arguments or
    parameters. It does not wait for the result.

    ```python
    import elegy
    import jax.numpy as jnp

    norm = elegy.nn.BatchNormalization()
    normalise = elegy.jit(norm)
    y = normalise(jnp.ones([8, 3]))
    ```
    """
    if isinstance(function, type):
        raise TypeError(f"elegy.jit takes a function or a module, got the class {function.__name__}: construct it first.")
    check_modules(modules)
    return JitFunction(function, modules, explain, donate_modules, options)
