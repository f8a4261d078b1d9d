"""What `elegy.jit(f).trace`, `lower` and `compile` give: the stages of JAX, with the modules of `f` carried through."""

from __future__ import annotations

import typing as tp

import jax
from jax.core import Tracer
from jax.sharding import Sharding

from elegy import tracing
from elegy.errors import CompiledForOthersError
from elegy.state import state
from elegy.transaction import lock
from elegy.transforms.core import View, is_reference, write_back

LEADING = 2  # arguments of a compiled function before those of the user's: leaves, random state; `Config` is gone


class Program:
    """One function traced for some arguments, and what was true of its modules then.

    - `jit`: the `JitFunction`.
    - `config`: its static part, as for a call.
    - `key`, `described`: what is static, to be compared, and in words for an error.
    """

    def __init__(self, jit: tp.Any, view: View, config: tp.Any, traced: tp.Any, key: tp.Any, described: dict[str, str]):
        self.jit = jit
        self.config = config
        self.traced = traced
        self.key = key
        self.described = described
        self._modules = {number: jax.tree.map(_struct, view.nodes[number]) for number in _references(traced)}

    def out_info(self, stage: tp.Any) -> tp.Any:
        resolve = lambda part: self._modules[part.position] if is_reference(part) else _struct(part)  # noqa: E731
        return jax.tree.map(resolve, stage.out_info[0], is_leaf=is_reference)

    def run(self, compiled: tp.Any, args: tp.Any, kwargs: tp.Any) -> tp.Any:
        jit = self.jit
        view = jit._threaded.view()
        traced = tracing.is_traced()
        if traced and any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            raise TypeError(
                f"{self._name()} was compiled ahead of time, and cannot be a part of a jax transform, which is "
                "traced.\n  Call elegy.jit(f) there."
            )
        with lock:
            leaves = view.read()
        stream = jit._stream(self.config, leaves, traced, args, kwargs)
        if jit._key(view) != self.key:
            raise self._misfit(view, leaves, stream)
        leaves = jit._given(leaves)
        try:
            out, effects = compiled(leaves, stream, *args, **kwargs)
        except (TypeError, ValueError):
            # JAX refuses before it runs anything. The stream follows the arrays, so these are looked at first.
            changes = self._changes(view, leaves, stream)
            before = leaves
            if all(change.startswith("random stream") for change in changes):
                leaves = self._moved(compiled, view, leaves)
            if changes:
                raise self._misfit(view, leaves, stream) from None
            if leaves is before:
                raise
            out, effects = compiled(leaves, stream, *args, **kwargs)
        if self.config.end is not None:
            state.frames[-1].index = self.config.end
        return write_back(view, out, effects, traced)

    def _changes(self, view: View, leaves: list[tp.Any], stream: tp.Any) -> list[str]:
        before, now = self.described, self.jit._describe(view, leaves, stream)
        names = [name for name in {**before, **now} if before.get(name) != now.get(name) and name != "jax.set_mesh"]
        return [f"{name}: {before.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names]

    def _misfit(self, view: View, leaves: list[tp.Any], stream: tp.Any) -> CompiledForOthersError:
        changes = self._changes(view, leaves, stream) or ["the place in the method that runs"]
        return self._error("\n  ".join(changes))

    def _error(self, what: str) -> CompiledForOthersError:
        return CompiledForOthersError(
            f"{self._name()} was compiled ahead of time for something else. Since then:\n  {what}\n"
            "  Lower and compile it again, elegy.jit(f).lower(...).compile(), or call elegy.jit(f), which does so by "
            "itself."
        )

    def _name(self) -> str:
        return getattr(self.jit.function, "__qualname__", type(self.jit.function).__name__)

    def _moved(self, compiled: tp.Any, view: View, leaves: list[tp.Any]) -> list[tp.Any]:
        """The arrays with the shardings for which the program was compiled. XLA may give an array back with
        another sharding, and must be given it again; arrays on other devices are refused."""
        wanted = compiled.input_shardings[0][0]
        moved = list(leaves)
        for index, (leaf, sharding) in enumerate(zip(leaves, wanted, strict=True)):
            if not isinstance(sharding, Sharding) or leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                continue
            if leaf.sharding.device_set != sharding.device_set:
                if leaf.committed:
                    raise self._error(f"{view.path(index)}: on {sharding} -> on {leaf.sharding}") from None
                continue
            moved[index] = jax.device_put(leaf, sharding)
        return leaves if all(new is old for new, old in zip(moved, leaves, strict=True)) else moved


def _references(traced: tp.Any) -> list[int]:
    """The positions of the modules that are among the outputs."""
    parts = jax.tree.leaves(traced.out_info[0], is_leaf=is_reference)
    return [part.position for part in parts if is_reference(part)]


def _struct(leaf: tp.Any) -> tp.Any:
    if isinstance(leaf, jax.ShapeDtypeStruct) or not hasattr(leaf, "shape"):
        return leaf
    options = {"weak_type": True} if getattr(leaf, "weak_type", False) else {}
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None), **options)


class Stage:
    """A stage of JAX. What is not defined here is an attribute of JAX's own object, and sees the arrays of the modules
    and the state of the random stream as two arguments before those of the function."""

    def __init__(self, program: Program, stage: tp.Any):
        self._program = program
        self._stage = stage

    @property
    def out_info(self) -> tp.Any:
        """The shapes and dtypes of what the function returns."""
        return self._program.out_info(self._stage)

    def __getattr__(self, name: str) -> tp.Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._stage, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self._stage) if not name.startswith("_"))})


class Traced(Stage):
    """As `jax.stages.Traced`: the `jaxpr` of a function, with its modules and the random stream as arguments."""

    def lower(self, **options: tp.Any) -> Lowered:
        """The computation as XLA is given it. `options` are those of `jax.stages.Traced.lower`."""
        return Lowered(self._program, self._stage.lower(**options))


class Lowered(Stage):
    """As `jax.stages.Lowered`: `as_text`, `cost_analysis` and `compile`."""

    def compile(self, *args: tp.Any, **options: tp.Any) -> Compiled:
        """The function, compiled. `options` are those of `jax.stages.Lowered.compile`."""
        return Compiled(self._program, self._stage.compile(*args, **options))


class Compiled(Stage):
    """As `jax.stages.Compiled`. It is called as the function is, without its static arguments, and changes the modules,
    the random stream and what is collected as the function does; it is never traced again.

    **Raises:** `CompiledForOthersError` if the modules, the mode or what is collected are not those for which it was
    compiled; what JAX raises if the arguments are not. Then nothing has changed.
    """

    def __call__(self, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return self._program.run(self._stage, args, kwargs)

    call = __call__

    @property
    def input_shardings(self) -> tp.Any:
        """The shardings of the positional arguments of the function, and those of its keyword arguments."""
        args, kwargs = self._stage.input_shardings
        return args[LEADING:], kwargs

    @property
    def output_shardings(self) -> tp.Any:
        """The shardings of what the function returns."""
        return self._stage.output_shardings[0]
