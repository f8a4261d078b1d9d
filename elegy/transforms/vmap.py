"""`elegy.vmap`: `jax.vmap` that carries modules, random stream and hooks through."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from elegy import tracing
from elegy.errors import ReductionError
from elegy.frames import RNG_ATTRIBUTE, warn
from elegy.initialise import has_tracer, identical_members
from elegy.layout import walk
from elegy.leaves import Node
from elegy.parameters import get_parameters
from elegy.random import default_impl, lane_of, step_of
from elegy.state import state
from elegy.transaction import held
from elegy.transforms.core import Transformed, View, rng_data, run, write_back
from elegy.transforms.lift import Lifted, entry, reduce_events

Reduce = tp.Literal["mean", "max", "min"] | Callable[[jax.Array], jax.Array]


Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")


def vmap(
    fun: Callable[Arguments, Outputs],
    in_axes: int | None | Sequence[tp.Any] = 0,
    out_axes: tp.Any = 0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
    spmd_axis_name: tp.Any = None,
    *,
    modules: tp.Any = None,
    stacked: tp.Any = None,
    reduce_state: Reduce | None = None,
) -> Callable[Arguments, Outputs]:
    """Maps a function over axes of its arguments, carrying modules, the random stream and hooks through.

    **Arguments:**

    - `fun`, `in_axes`, `out_axes`, `axis_name`, `axis_size`, `spmd_axis_name`: those of `jax.vmap`.
    - `modules`: a module, or a list, tuple or dict of modules, that `fun` uses without taking them as arguments.
      Each lane sees the same arrays.
    - `stacked`: the same, for modules whose arrays have a leading axis with an entry for each lane. Their state is
      updated lane by lane. One that is not initialised gets parameters of its own in each lane.
    - `reduce_state`: what becomes of the state of `modules` that lanes have updated: `"mean"`, `"max"`, `"min"`, or a
      function from the values of all lanes, stacked along axis 0, to one.

    **Returns:** the mapped function. Each lane draws from a random stream of its own. Losses and metrics that the lanes
    declare are averaged, summaries are stacked along axis 0.

    **Raises:** `ReductionError` if lanes update the state of `modules` and `reduce_state` is not given.

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(2)
    y = elegy.vmap(linear)(jnp.ones([5, 3]))
    assert y.shape == (5, 2) and linear.w.shape == (3, 2)

    members = elegy.nn.Linear(2)
    y = elegy.vmap(members, in_axes=None, axis_size=4, stacked=members)(jnp.ones([5, 3]))
    assert y.shape == (4, 5, 2) and members.w.shape == (4, 3, 2)
    ```
    """
    if reduce_state is not None and not callable(reduce_state) and reduce_state not in _REDUCTIONS:
        raise ValueError(f"reduce_state={reduce_state!r}: it takes 'mean', 'max', 'min' or a function")
    options = _Options(
        tuple(in_axes) if isinstance(in_axes, list) else in_axes,
        out_axes,
        axis_name,
        axis_size,
        spmd_axis_name,
        reduce_state,
    )
    return _Mapped(fun, modules, stacked, options)


class _Options(tp.NamedTuple):
    in_axes: tp.Any
    out_axes: tp.Any
    axis_name: Hashable | None
    axis_size: int | None
    spmd_axis_name: tp.Any
    reduce_state: Reduce | None


class _Mapped(Transformed[Arguments, Outputs]):
    def __init__(self, function: tp.Any, modules: tp.Any, stacked: tp.Any, options: _Options):
        self._modules = (modules, stacked)
        self._options = options
        self._lifted = Lifted("elegy.vmap", [function], modules, stacked)
        super().__init__(function, self._lifted.threaded)

    def _bound(self, method: tp.Any) -> _Mapped[..., tp.Any]:
        axes = self._options.in_axes
        options = self._options._replace(in_axes=axes[1:] if isinstance(axes, tuple) else axes)
        return _Mapped(method, *self._modules, options)

    def _around(self, function: tp.Any) -> _Mapped[..., tp.Any]:
        return _Mapped(function, *self._modules, self._options)

    def __call__(self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs:
        return _vmap(self._lifted, self._options, args, kwargs)


def _vmap(lifted: Lifted, options: _Options, args: tp.Any, kwargs: tp.Any) -> tp.Any:
    axes, axis_size = options.in_axes, options.axis_size

    @functools.cache
    def mapped_sizes() -> list[int]:
        if args or kwargs:  # JAX checks the arguments, and says what is wrong with them
            jax.eval_shape(jax.vmap(lambda *args, **kwargs: None, axes, axis_size=axis_size), *args, **kwargs)
        sizes: list[int] = []
        _along((axes, 0), (args, kwargs), lambda axis, leaf: sizes.append(jnp.shape(leaf)[axis]))
        return sizes

    def size() -> int:
        return lifted.size([*mapped_sizes(), *([] if axis_size is None else [axis_size])], "axis_size=")

    def once(functions: tp.Any, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        with lifted.first_lane(size()):
            out = functions[0](*_first(axes, args), **_first(0, kwargs))
        if lifted.stacked and not mapped_sizes():
            warn_if_identical(lifted.stacked)
        return out

    def attempt(view: View, function: tp.Any) -> tp.Any:
        if lifted.stacked:
            lifted.check_sizes(view, size())
        before, state.maps = state.maps, state.maps + 1
        try:
            return _map(function, lifted, view, options, args, kwargs)
        finally:
            state.maps = before

    return lifted.call(once, attempt, args, kwargs, None if options.axis_name is None else (options.axis_name, size()))


def _map(function, lifted, view, options, args, kwargs):
    leaves, stacked = view.read(), lifted.stacked_flags(view)
    traced = tracing.is_traced()
    rng, impl = rng_data(traced), state.rng._impl
    # The name of the axis is a part of what JAX caches by, so it must be the same in each call.
    name = f"elegy.vmap {state.maps}" if options.axis_name is None else options.axis_name
    # Where the thread's stream cannot follow, modules draw from keys of their own, and lanes must not share them.
    own = [
        index
        for index, (_, attribute) in enumerate(view.owners)
        if rng is None and attribute == RNG_ATTRIBUTE and not stacked[index]
    ]

    def lane(data: jax.Array, impl: str = impl) -> jax.Array:
        return lane_of(data, jax.lax.axis_index(name), impl)

    def body(leaves, args, kwargs):
        leaves = list(leaves)
        for index in own:
            leaves[index] = lane(leaves[index], default_impl())
        return run(function, lifted.threaded, view, leaves, rng, args, kwargs, enter=lane)

    out, effects = jax.vmap(
        body,
        in_axes=([0 if flag else None for flag in stacked], options.in_axes, 0),
        out_axes=(options.out_axes, 0),
        axis_name=name,
        axis_size=options.axis_size,
        spmd_axis_name=options.spmd_axis_name,
    )(leaves, args, kwargs)
    values, advanced, _, record = effects
    reduced = []
    for index, value in zip(record.indices, values, strict=True):
        if index in own:
            value = step_of(leaves[index], default_impl())
        elif not stacked[index]:
            value = _reduce(options.reduce_state, value, leaves[index], view.path(index))
        reduced.append(value)
    events = reduce_events(effects, over="lanes")
    if advanced is not None:
        advanced = step_of(tp.cast(jax.Array, rng), impl)
    return write_back(view, out, (reduced, advanced, events, record), traced)


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=0).astype(values.dtype)  # added up in float32, if the values are of less precision


_REDUCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean": _mean,
    "max": functools.partial(jnp.max, axis=0),
    "min": functools.partial(jnp.min, axis=0),
}


def _reduce(reduce_state: Reduce | None, values: tp.Any, old: tp.Any, path: str) -> tp.Any:
    described = f"{path} ({old.dtype}{list(old.shape)})"
    if reduce_state is None:
        raise ReductionError(
            f"{described} was updated inside elegy.vmap: each lane has a value of its own, and the module holds one.\n"
            "  Say what becomes of them (reduce_state='mean'), give each lane a module of its own (stacked=module), or "
            "run in evaluation mode."
        )
    if reduce_state == "mean" and not jnp.issubdtype(old.dtype, jnp.inexact):
        raise ReductionError(
            f"{described} was updated inside elegy.vmap, and values of this dtype have no mean.\n"
            "  Give a function that treats it too, for example\n"
            "    reduce_state=lambda lanes: lanes.mean(0) if jnp.issubdtype(lanes.dtype, jnp.inexact) else lanes.max(0)"
        )
    value = _REDUCTIONS[reduce_state](values) if isinstance(reduce_state, str) else reduce_state(values)
    if getattr(value, "shape", None) != tuple(old.shape) or value.dtype != old.dtype:
        given = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise ReductionError(
            f"{described}: the function given as reduce_state returned {given} for the values of all lanes, "
            f"{values.dtype}{list(values.shape)}.\n  It must reduce axis 0 and keep the dtype."
        )
    return value


def _first(axes: tp.Any, args: tp.Any) -> tp.Any:
    """The arguments of the first lane."""
    return _along(axes, args, lambda axis, leaf: entry(jnp.asarray(leaf), axis))


def _along(axes: tp.Any, args: tp.Any, function: Callable[[int, tp.Any], tp.Any]) -> tp.Any:
    """`args` with `function(axis, leaf)` for each leaf that is mapped over an axis."""

    def mapped(axis: int | None, part: tp.Any) -> tp.Any:
        return part if axis is None else jax.tree.map(functools.partial(function, axis), part)

    return jax.tree.map(mapped, axes, args, is_leaf=lambda axis: axis is None)


def warn_if_identical(members: Sequence[Node]) -> None:
    """Warns if stacked modules have the same trainable parameters in each lane, and draw no random numbers."""
    nodes = walk(members)
    arrays = [jnp.asarray(leaf) for node in members for leaf in jax.tree.leaves(get_parameters(node, trainable=True))]
    if not arrays or len(arrays[0]) < 2 or any(RNG_ATTRIBUTE in held(node) for node in nodes) or has_tracer(arrays):
        return
    if all(bool(np.all(array == array[:1])) for array in map(np.asarray, arrays)):
        warn(identical_members(members[0], f"the {len(arrays[0])} members"))
