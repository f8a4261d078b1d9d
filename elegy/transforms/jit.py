"""`elegy.jit`: `jax.jit` that carries modules, random stream and hooks through."""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from elegy import tracing
from elegy.devices import described as describe_array, described_mesh, home_of, is_placed, moved, place_of, replicated
from elegy.errors import RecompilationWarning
from elegy.frames import Replay, name_of, paths_below, warn
from elegy.hooks import trace_key
from elegy.initialise import NeedsInitPass
from elegy.layout import walk
from elegy.leaves import Node, is_array, is_node
from elegy.pytree import layout_of
from elegy.state import state, transact, transaction
from elegy.tracebacks import shorten
from elegy.transaction import is_changed, lock, structure, thread
from elegy.transforms.core import (
    Threaded,
    Transformed,
    View,
    check_function,
    check_modules,
    modules_of,
    require_threaded_here,
    rng_data,
    run,
    with_modules,
    write_back,
)
from elegy.transforms.stages import Lowered, Program, Traced

Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")

WARN_AT = 10


class Config:
    """What is known of one compiled version. It is a static argument of it, and compared by identity.

    - `end`: the position at which the running method goes on, if the function creates modules that belong to it.
    - `place`, `looked`: where the random stream goes if the first array of the modules was not put on devices, and
      whether the other arrays of the call were searched for that.
    """

    __slots__ = ("end", "looked", "place")

    def __init__(self) -> None:
        self.end: int | None = None
        self.place: tp.Any = None
        self.looked = False


class _Body:
    """What JAX compiles. Apart from the `JitFunction`, so that there is no circle of references."""

    def __init__(self, function: tp.Any, modules: tp.Any, explain: tp.Any, return_all: bool):
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.function = function
        self.threaded = Threaded(modules_of(function, modules))
        self.explain = print if explain is True else explain
        self.return_all = return_all
        self.traces = 0
        # Whether the function creates modules, which belong to the method that runs.
        self.creates = False
        self._described: dict[str, str] | None = None

    def __call__(
        self,
        elegy_config: Config,
        elegy_leaves: list[tp.Any],
        elegy_rng: tp.Any,
        /,
        *args: tp.Any,
        **kwargs: tp.Any,
    ) -> tp.Any:
        view = self.threaded.view()
        explained = self.explain or self.traces >= WARN_AT - 2  # else nobody will ask what changed
        described = _describe(self.key(view), view, elegy_leaves, elegy_rng, args, kwargs) if explained else None
        frame = state.frames[-1] if state.frames else None
        start, constructed = None if frame is None else frame.index, state.constructed
        result = run(self.function, self.threaded, view, elegy_leaves, elegy_rng, args, kwargs, self.return_all)
        self.creates = self.creates or state.constructed != constructed
        if frame is not None and frame.index != start:
            self.creates, elegy_config.end = True, frame.index
        self._note_trace(described)
        return result

    def key(self, view: View, place: tp.Any = None) -> tp.Any:
        """What is static besides the arguments. `place` is the position in a method, if not the present one."""
        return trace_key(), id(view.signature), (place or _position()) if self.creates else None

    def _note_trace(self, described: dict[str, str] | None) -> None:
        """Counts a trace, and says what changed since the last one where that is wanted."""
        self.traces += 1
        before, self._described = self._described, described
        if before is None or described is None:
            return
        names = [name for name in {**before, **described} if before.get(name) != described.get(name)]
        changes = [f"{name}: {before.get(name, 'absent')} -> {described.get(name, 'absent')}" for name in names]
        reason = "\n  ".join(changes) or "nothing that can be seen: a static argument, or a cleared cache"
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        if self.explain:
            self.explain(f"elegy.jit: {name} is traced again (trace {self.traces}), since the last trace:\n  {reason}")
        if self.traces == WARN_AT:
            warn(
                RecompilationWarning(
                    f"elegy.jit: {name} has been traced {WARN_AT} times. Since the last trace:\n  {reason}\n"
                    "  Each trace compiles again. elegy.jit(..., explain=True) says what changed at each of them."
                )
            )


def _position() -> tp.Any:
    """The running method, and how many modules it has created so far."""
    frame = state.frames[-1] if state.frames else None
    return None if frame is None else (id(frame.module), frame.method, frame.index)


class JitFunction(Transformed[Arguments, Outputs]):
    """A function compiled by `elegy.jit`. Call it as the function; `trace`, `lower` and `eval_shape` are those of
    `jax.jit`."""

    def __init__(self, function: Callable[Arguments, Outputs], modules, explain, donate_modules, options):
        self._body = _Body(function, modules, explain, donate_modules)
        super().__init__(function, self._body.threaded)
        self._how = modules, explain, donate_modules, options
        self._donate = donate_modules
        self._threaded = self._body.threaded
        self._configs: dict[tp.Any, Config] = {}
        # Whether a trace holds arrays from the closure of the function, which then does not see them change. It is only
        # found out after somebody has set it to False.
        self.has_constants: bool | None = None
        # The structures for which an init pass was made, each with the place in a method.
        self._initialised: set[tp.Any] = set()
        self._jitted = jax.jit(self._body, **_shifted(function, options, donate_modules))

    def _bound(self, method: tp.Any) -> JitFunction[..., tp.Any]:
        modules, explain, donate_modules, options = self._how
        options = dict(options)
        for name in ("static_argnums", "donate_argnums"):
            if options.get(name) is not None:
                options[name] = tuple(number - (number > 0) for number in _as_tuple(options[name]) if number != 0)
        if isinstance(options.get("in_shardings"), tuple):
            options["in_shardings"] = options["in_shardings"][1:]
        return JitFunction(method, modules, explain, donate_modules, options)

    def _around(self, function: tp.Any) -> JitFunction[..., tp.Any]:
        return JitFunction(function, *self._how)

    @property
    def traces(self) -> int:
        """How many times the function was traced."""
        return self._body.traces

    def __call__(self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs:
        if state.init_pass is not None or state.watch is not None:
            return self.function(*args, **kwargs)  # an abstract run needs no compilation
        view = self._threaded.latest
        if view is None or view.version is not structure.version or (thread.top is not None and is_changed()):
            return self._first_call(args, kwargs)
        config = self._configs.get(self._body.key(view))
        if config is None:
            return self._first_call(args, kwargs)
        try:
            return self._run(view, config, args, kwargs)
        except NeedsInitPass as needs:
            return self._first_call(args, kwargs, require_threaded_here(needs, view))
        except Exception as error:
            shorten(error)
            raise

    def _run(self, view: View, config: Config, args: tp.Any, kwargs: tp.Any) -> tp.Any:
        with lock:
            leaves = view.read()
        if self._donate:
            leaves = _distinct(leaves)
        traced = tracing.is_traced()
        out, effects = self._jitted(config, leaves, _stream(config, leaves, traced, args, kwargs), *args, **kwargs)
        if config.end is not None:
            state.frames[-1].index = config.end
        return write_back(view, out, effects, traced)

    def _first_call(self, args: tp.Any, kwargs: tp.Any, needs: NeedsInitPass | None = None) -> tp.Any:
        """A call for which the modules must be looked at again, or initialised."""
        replay = Replay()
        try:
            while True:
                try:
                    # Committed before the program runs: callbacks on the host may look at the modules.
                    view, config = transact(functools.partial(self._prepare, args, kwargs, needs, replay))
                    out = replay.of(self._run)(view, config, args, kwargs)
                    self._config(view, replay, config)  # a trace that created modules added the position to the key
                    replay.finish()
                    return out
                except NeedsInitPass as found:
                    needs = require_threaded_here(found, self._threaded.view())
        except Exception as error:
            shorten(error)
            raise

    def _prepare(
        self, args: tp.Any, kwargs: tp.Any, needs: NeedsInitPass | None, replay: Replay
    ) -> tuple[View, Config]:
        """Initialises and traces."""
        threaded = self._threaded
        place = threaded.view().signature, replay.place
        if needs is not None or (threaded.uninitialised() and place not in self._initialised):
            known = threaded.view().read()
            threaded.initialise(replay.of(self.function), args, kwargs, needs)
            _place_created(threaded.view(), known, (args, kwargs))
            self._initialised.add((threaded.view().signature, replay.place))
        view = threaded.view()
        config, leaves = self._config(view, replay), view.read()
        if not tp.cast(tp.Any, jax.config).jax_disable_jit:
            config.place, config.looked = None, False
            stream = _stream(config, leaves, tracing.is_traced(), args, kwargs)
            traced = replay.of(self._jitted.trace)(config, leaves, stream, *args, **kwargs)
            if self.has_constants is False:
                self.has_constants = tracing.has_constants(traced.jaxpr)
        return view, config

    def _config(self, view: View, replay: Replay, config: Config | None = None) -> Config:
        """The config for the position at which the function began. Threads that ask at the same time get one object."""
        return replay.of(lambda: self._configs.setdefault(self._body.key(view), config or Config()))()

    def trace(self, /, *args: tp.Any, **kwargs: tp.Any) -> Traced:
        """As `jax.jit(f).trace`: the function traced for these arguments, arrays or `jax.ShapeDtypeStruct`s.

        Modules that are not initialised are initialised, and nothing else changes.
        """
        return with_modules(
            self._threaded, self.function, args, kwargs, lambda view: Traced(*self._traced(view, args, kwargs))
        )

    def lower(self, /, *args: tp.Any, **kwargs: tp.Any) -> Lowered:
        """As `jax.jit(f).lower`: the computation for these arguments, to be looked at or compiled ahead of time.

        ```python
        import elegy
        import jax
        import jax.numpy as jnp

        linear = elegy.nn.Linear(2)
        compiled = elegy.jit(linear).lower(jax.ShapeDtypeStruct([4, 3], jnp.float32)).compile()
        assert (compiled(jnp.ones([4, 3])) == linear(jnp.ones([4, 3]))).all()
        ```
        """
        return self.trace(*args, **kwargs).lower()

    def eval_shape(self, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """As `jax.jit(f).eval_shape`: the shapes and dtypes of what the function returns. Nothing changes, and modules
        that are not initialised stay so."""
        found: list[tp.Any] = []
        with contextlib.suppress(_Undone), transaction():
            found.append(self.trace(*args, **kwargs).out_info)
            raise _Undone
        return found[0]

    def _traced(self, view: View, args: tp.Any, kwargs: tp.Any) -> tuple[Program, tp.Any]:
        config, leaves, place = Config(), view.read(), _position()
        stream = _stream(config, leaves, tracing.is_traced(), args, kwargs)
        traced = self._jitted.trace(config, leaves, stream, *args, **kwargs)
        key = self._body.key(view, place)
        return Program(self, view, config, traced, key, self._describe(view, leaves, stream)), traced

    # What follows is for `elegy.transforms.stages`.

    def _key(self, view: View) -> tp.Any:
        return self._body.key(view)

    def _describe(self, view: View, leaves: list[tp.Any], stream: tp.Any) -> dict[str, str]:
        return _describe(self._body.key(view), view, leaves, stream, (), {})

    def _given(self, leaves: list[tp.Any]) -> list[tp.Any]:
        return _distinct(leaves) if self._donate else leaves

    def _stream(self, config: Config, leaves: list[tp.Any], traced: bool, args: tp.Any, kwargs: tp.Any) -> tp.Any:
        return _stream(config, leaves, traced, args, kwargs)


class _Undone(Exception):
    """Ends a block of which nothing shall remain."""


def _place_created(view: View, known: list[tp.Any], arguments: tp.Any) -> None:
    """Puts the arrays that an init pass created on the mesh of the others. The compiled function returns them there, so
    else the second call would be traced for another sharding."""
    if tracing.is_traced():
        return
    place = home_of([*known, *jax.tree.leaves(arguments)])
    if not isinstance(place, NamedSharding):
        return
    before = {id(leaf) for leaf in known}
    created = [
        (index, leaf)
        for index, leaf in enumerate(view.read())
        if id(leaf) not in before and isinstance(leaf, jax.Array) and not leaf.committed
    ]
    view.write([index for index, _ in created], [jax.device_put(leaf, place) for _, leaf in created])


def _stream(config: Config, leaves: list[tp.Any], traced: bool, args: tp.Any, kwargs: tp.Any) -> tp.Any:
    """The state of the random stream, on the devices where the function computes. It comes back from there, and has
    to be there before, or the second call would be traced for another sharding."""
    data = rng_data(traced)
    if data is None or traced:
        return data
    place = replicated(leaves[0].sharding) if leaves and is_placed(leaves[0]) else config.place
    if place is None and (not config.looked or data.committed):
        config.looked, place = True, place_of([*leaves, *jax.tree.leaves((args, kwargs))])
        config.place = place
    return moved(data, place)


def _describe_mask(masked: tp.Any) -> str:
    if not isinstance(masked, tuple):
        return "None" if masked is None else "a mask of another trace"
    values, _ = masked
    return f"the rows {', '.join(str(row) for row, value in enumerate(values) if value)}"


def _describe(key: tp.Any, view: View, leaves, rng, args, kwargs) -> dict[str, str]:
    (mode, collects, impl, masked), *_ = key
    described = {"training": str(mode), "hooks": str(collects), "random implementation": impl}
    described["elegy.sample_mask()"] = _describe_mask(masked)
    mesh = jax.sharding.get_abstract_mesh()
    described["jax.set_mesh"] = "no mesh" if mesh.empty else described_mesh(mesh)
    if rng is not None:
        described["random stream"] = _aval(rng)
    paths: dict[int, str] = {}
    for root in view.roots:
        for identity, parts in paths_below(root).items():
            paths.setdefault(identity, "/".join((name_of(root), *parts)))
    for node, layout in zip(view.nodes, view.signature, strict=True):
        described[f"static part of {paths[id(node)]}"] = repr(layout)
    for (node, name), leaf in zip(view.owners, leaves, strict=True):
        described[f"{paths[id(node)]}/{name}"] = _aval(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=is_node)[0]:
        kind = "argument " if path[0] == jax.tree_util.SequenceKey(0) else "keyword "
        name = kind + jax.tree_util.keystr(path[1:], simple=True, separator="/")
        described.update(_describe_module(name, leaf) if isinstance(leaf, Node) else {name: _aval(leaf)})
    return described


def _describe_module(name: str, module: Node) -> dict[str, str]:
    described: dict[str, str] = {}
    paths = paths_below(module)
    for node in walk([module]):
        described[f"static part of {'/'.join((name, *paths[id(node)]))}"] = repr(layout_of(node))
    for path, leaf in jax.tree_util.tree_flatten_with_path(module)[0]:
        described[f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = _aval(leaf)
    return described


def _aval(leaf: tp.Any) -> str:
    return describe_array(leaf) if is_array(leaf) else repr(leaf)


def _distinct(leaves: list[tp.Any]) -> list[tp.Any]:
    """Copies an array that stands in two places: XLA takes each donated buffer once."""
    seen: set[int] = set(map(id, leaves))
    if len(seen) == len(leaves):
        return leaves
    seen.clear()
    distinct = []
    for leaf in leaves:
        distinct.append(jnp.copy(leaf) if id(leaf) in seen else leaf)
        seen.add(id(leaf))
    return distinct


_LEADING = 3  # arguments of the compiled body before those of the user's function: config, leaves, random state


def _shifted(function: tp.Any, options: dict[str, tp.Any], donate_modules: bool) -> dict[str, tp.Any]:
    """The options of `jax.jit` for the body, which has three arguments before those of the function."""
    options = dict(options)
    for kind, leading in (("static", (0,)), ("donate", (1,) if donate_modules else ())):
        numbers, names = numbers_and_names(
            function, _as_tuple(options.pop(f"{kind}_argnums", ())), _as_tuple(options.pop(f"{kind}_argnames", ()))
        )
        options[f"{kind}_argnums"] = (*leading, *(n + _LEADING if n >= 0 else n for n in numbers))
        options[f"{kind}_argnames"] = names
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


def numbers_and_names(function: tp.Any, numbers: tuple[int, ...], names: tuple[str, ...]):
    """Adds names of numbered arguments and numbers of named ones: they may be passed either way, as in `jax.jit`."""
    try:
        called = getattr(function, "call") if isinstance(function, Node) else function  # noqa: B009
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return numbers, names
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = {p.name: number for number, p in enumerate(positional)}
    keyworded = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = {p.name for p in parameters}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is not an argument of the function, whose arguments are {sorted(known)}")
    named = [p.name for n in numbers if -len(positional) <= n < len(positional) for p in [positional[n]]]
    all_numbers = dict.fromkeys((*numbers, *(by_name[name] for name in names if name in by_name)))
    all_names = dict.fromkeys((*names, *(name for name in named if name in keyworded)))
    return tuple(all_numbers), tuple(all_names)


def jit(
    f: Callable[Arguments, Outputs],
    modules: tp.Any = None,
    *,
    donate_modules: bool = False,
    explain: bool | Callable[[str], None] = False,
    **options: tp.Any,
) -> JitFunction[Arguments, Outputs]:
    """Compiles a function, carrying modules, the random stream and hooks through.

    **Arguments:**

    - `f`: any function, a module, or a method of one.
    - `modules`: a module, or a list, tuple or dict of modules, that the function uses without taking them as arguments.
      They are threaded in and out, and updated in place, so the function behaves as if it were not compiled. If
      `f` is a module or a method of one, that module is threaded too, and if `f` is a function transformed by Elegy, so
      are its modules. Without `modules` the function is pure: modules come in as arguments and updated ones must be
      returned.
    - `donate_modules`: lets XLA reuse the memory of the threaded arrays. Arrays taken from the modules before are
      deleted.
    - `explain`: True prints, at each trace after the first, what changed since the last one; a function gets that text.
    - `options`: those of `jax.jit`: `static_argnums`, `static_argnames`, `donate_argnums`, `in_shardings`, …; numbers
      count the arguments of `f`.

    **Returns:** the compiled function. It is traced again if, and only if, something static changed: the training
    mode, which hooks are collected, which parameters are trainable, a static attribute of a module, a static argument,
    or what JAX takes into account of arguments, parameters and the random stream: their structure, shapes, dtypes, weak
    types and meshes, on an explicit mesh how they are sharded, and the mesh of `jax.set_mesh` and other settings of JAX
    that were in force. It does not wait for the result. Its `traces` counts the traces so far. Its `trace`,
    `lower` and `eval_shape` are those of `jax.jit`; what `lower(...).compile()` gives is called like the function, and
    updates the modules as it does.

    ```python
    import elegy
    import jax.numpy as jnp

    norm = elegy.nn.BatchNormalization()
    normalise = elegy.jit(norm)
    y = normalise(jnp.ones([8, 3]))
    y = normalise(jnp.zeros([8, 3]))
    assert normalise.traces == 1
    ```
    """
    check_function("elegy.jit", f)
    check_modules(modules)
    return JitFunction(f, modules, explain, donate_modules, options)
