"""`elegy.scan`: `jax.lax.scan` that carries modules, random stream and hooks through."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable

import jax

from elegy.leaves import is_array
from elegy.transforms.core import rng_data, run, write_back
from elegy.transforms.lift import Lifted, entry, mean, reduce_events, struct, total

Carry = tp.TypeVar("Carry")
Y = tp.TypeVar("Y")


def scan(
    function: Callable[[Carry, tp.Any], tuple[Carry, Y]],
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

    - `function`: `(carry, x) -> (carry, y)`.
    - `init`, `xs`, `length`, `reverse`, `unroll`: those of `jax.lax.scan`.
    - `modules`: a module, or a list, tuple or dict of modules, that `function` uses without taking them as arguments.
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
    lifted = Lifted("elegy.scan", [function], modules, stacked)

    def once(functions: tp.Any, carry: tp.Any, xs: tp.Any) -> tp.Any:
        size = _length(lifted, xs, length)
        x = jax.tree.map(lambda leaf: entry(leaf, 0), xs)
        with lifted.first_lane(size):
            return functions[0](carry, x)

    def attempt(function: tp.Any) -> tp.Any:
        return _scan(function, lifted, init, xs, {"length": length, "reverse": reverse, "unroll": unroll})

    return lifted.call(once, attempt, (init, xs))


def _scan(function, lifted, init, xs, options):
    view = lifted.view
    leaves, stacked = view.read(), lifted.stacked_flags()
    if any(stacked):
        lifted.check_sizes(_length(lifted, xs, options["length"]))
        options = {**options, "length": _length(lifted, xs, options["length"])}
    rng = rng_data(leaves)

    def step(leaves, rng, carry, x):
        out, effects = run(function, view, leaves, rng, (carry, x), {})
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            given = "an array" if is_array(out) else f"a {type(out).__name__}"
            raise TypeError(
                f"the function of elegy.scan must return a pair (carry, y), got {given}.\n"
                "  Return (carry, None) if a step has no output."
            )
        return tuple(out), effects

    # Compiled inline, so that looking at the effects first costs no second trace.
    step = jax.jit(step, inline=True)
    slices = [struct(leaf) if flag else leaf for leaf, flag in zip(leaves, stacked, strict=True)]
    _, (_, _, _, record) = jax.eval_shape(step, slices, rng, init, jax.tree.map(struct, xs))
    carried = [index for index in record.indices if not stacked[index]]
    sliced = [index for index in record.indices if stacked[index]]

    def body(state, inputs):
        carry, moving, rng = state
        x, entries = inputs
        inside = [next_entry if flag else leaf for leaf, flag, next_entry in zip(leaves, stacked, entries, strict=True)]
        for index, value in zip(carried, moving, strict=True):
            inside[index] = value
        (carry, y), (values, advanced, events, record) = step(inside, rng, carry, x)
        changed = dict(zip(record.indices, values, strict=True))
        moving = [changed[index] for index in carried]
        return (carry, moving, rng if advanced is None else advanced), (y, [changed[index] for index in sliced], events)

    entries = [leaf if flag else None for leaf, flag in zip(leaves, stacked, strict=True)]
    (carry, moving, advanced), (ys, changed, events) = jax.lax.scan(
        body, (init, [leaves[index] for index in carried], rng), (xs, entries), **options
    )
    final = dict(zip((*carried, *sliced), (*moving, *changed), strict=True))
    values = [final[index] for index in record.indices]
    effects = (values, advanced, events, record)
    write_back(view, (values, advanced, reduce_events(effects, loss=total, metric=mean), record), (init, xs))
    return carry, ys


def _length(lifted: Lifted, xs: tp.Any, length: int | None) -> int:
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(xs)]
    if length is not None:
        sizes.insert(0, length)
    if not sizes:
        lifted.view.refresh()
        flagged = zip(lifted.view.read(), lifted.stacked_flags(), strict=True)
        sizes = [leaf.shape[0] for leaf, stacked in flagged if stacked]
    if not sizes and lifted.roots:
        raise ValueError("elegy.scan: there are no xs, and the stacked modules hold no arrays: give length=")
    return sizes[0] if sizes else 1
