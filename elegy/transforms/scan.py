"""`elegy.scan`: `jax.lax.scan` that carries modules, random stream and hooks through."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp

from elegy import tracing
from elegy.errors import show_value
from elegy.transforms.core import View, is_reference, rng_data, write_back
from elegy.transforms.lift import Lifted, entry, inlined, reduce_events, settled, struct

Carry = tp.TypeVar("Carry")
Y = tp.TypeVar("Y")


def scan(
    f: Callable[[Carry, tp.Any], tuple[Carry, Y]],
    init: Carry,
    xs: tp.Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    modules: tp.Any = None,
    stacked: tp.Any = None,
) -> tuple[Carry, Y]:
    """Scans a function over the leading axis of arrays, carrying modules, the random stream and hooks through.

    **Arguments:**

    - `f`: `(carry, x) -> (carry, y)`.
    - `init`, `xs`, `length`, `reverse`, `unroll`: those of `jax.lax.scan`.
    - `modules`: a module, or a list, tuple or dict of modules, that `f` uses without taking them as arguments.
      Their state is carried from step to step.
    - `stacked`: the same, for modules whose arrays have a leading axis with an entry for each step. Their state is
      updated entry by entry. One that is not initialised gets parameters of its own for each step.

    **Returns:** `(carry, ys)`. The random stream is carried from step to step, so the draws are those of a Python loop.
    Losses that the steps declare are summed, metrics are averaged, summaries are stacked along axis 0.

    ```python
    import elegy
    import jax.numpy as jnp

    cell = elegy.nn.Linear(3)


    def step(carry, x):
        carry = jnp.tanh(cell(carry + x))
        return carry, carry.sum()


    carry, sums = elegy.scan(step, jnp.zeros(3), jnp.ones([7, 3]), modules=cell)
    assert sums.shape == (7,)
    ```
    """
    lifted = Lifted("elegy.scan", [f], modules, stacked)

    def steps() -> int:
        sizes = [jnp.shape(leaf)[0] for leaf in jax.tree.leaves(xs) if jnp.ndim(leaf)]
        return lifted.size([*([] if length is None else [length]), *sizes], "length=")

    def once(functions: tp.Any, carry: tp.Any, xs: tp.Any) -> tp.Any:
        with lifted.first_lane(steps()):
            return functions[0](carry, jax.tree.map(lambda leaf: entry(jnp.asarray(leaf), 0), xs))

    def attempt(view: View, function: tp.Any) -> tp.Any:
        if lifted.stacked:
            lifted.check_sizes(view, steps())
        options = {"length": steps() if lifted.stacked else length, "reverse": reverse, "unroll": unroll}
        return _scan(function, lifted, view, init, xs, options)

    return lifted.call(once, attempt, (init, xs))


def _scan(function, lifted, view, init, xs, options):
    leaves, stacked = view.read(), lifted.stacked_flags(view)
    traced = tracing.is_traced()
    rng = rng_data(traced)
    step = inlined(_with_pair(function), lifted, view)
    ((shapes, _), (_, _, _, record)), leaves, rng = settled(
        step,
        leaves,
        rng,
        (init, jax.tree.map(struct, xs)),
        lambda index, leaf: struct(leaf) if stacked[index] else leaf,
    )
    _require_like(init, shapes)
    carried = [index for index in record.indices if not stacked[index]]
    sliced = [index for index in record.indices if stacked[index]]

    def body(state, inputs):
        carry, moving, rng = state
        x, entries = inputs
        inside = [next_entry if flag else leaf for leaf, flag, next_entry in zip(leaves, stacked, entries, strict=True)]
        for index, value in zip(carried, moving, strict=True):
            inside[index] = value
        (carry, y), (values, advanced, events, record) = step(inside, rng, (carry, x))
        changed = dict(zip(record.indices, values, strict=True))
        moving = [changed[index] for index in carried]
        return (carry, moving, rng if advanced is None else advanced), (y, [changed[index] for index in sliced], events)

    entries = [leaf if flag else None for leaf, flag in zip(leaves, stacked, strict=True)]
    (carry, moving, advanced), (ys, changed, events) = jax.lax.scan(
        body, (init, [leaves[index] for index in carried], rng), (xs, entries), **options
    )
    final = dict(zip((*carried, *sliced), (*moving, *changed), strict=True))
    values = [final[index] for index in record.indices]
    events = reduce_events((values, advanced, events, record), over="steps")
    return write_back(view, (carry, ys), (values, advanced, events, record), traced)


def _with_pair(function: Callable[..., tp.Any]) -> Callable[..., tp.Any]:
    def step(carry: tp.Any, x: tp.Any) -> tp.Any:
        out = function(carry, x)
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(
                f"the function of elegy.scan must return a pair (carry, y), got {show_value(out)}.\n"
                "  Return (carry, None) if a step has no output."
            )
        return tuple(out)

    return step


def _require_like(init: tp.Any, carry: tp.Any) -> None:
    """Refuses a carry that is not like the one before; JAX would show one with arrays of modules added."""
    if any(map(is_reference, jax.tree.leaves(carry, is_leaf=is_reference))):
        raise TypeError(
            f"the function of elegy.scan returned a carry with a module that is listed in modules=: {show_value(init)} "
            "went in.\n  The state of a listed module is carried anyway: leave the module out of the carry."
        )
    old, new = (jax.tree.structure(tree) for tree in (init, carry))
    kept = old == new and all(map(_fits, jax.tree.leaves(init), jax.tree.leaves(carry)))
    if not kept:
        raise TypeError(
            f"the function of elegy.scan must return a carry like the one that it is given: {show_value(init)} went "
            f"in, {show_value(carry)} came out."
        )


def _fits(old: tp.Any, new: tp.Any) -> bool:
    is_weak = isinstance(old, (bool, int, float, complex)) or getattr(old, "weak_type", False)
    return jnp.shape(old) == new.shape and (is_weak or jnp.result_type(old) == new.dtype)
