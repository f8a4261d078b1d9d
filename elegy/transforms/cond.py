"""`elegy.cond` and `elegy.switch`: branches that carry modules, random stream and hooks through."""

from __future__ import annotations

import collections
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from elegy import tracing
from elegy.errors import HookError, show_value
from elegy.hooks import KINDS
from elegy.transforms.core import EffectsRecord, rng_data, write_back
from elegy.transforms.lift import Lifted, inlined

_ABSENT = object()


Outputs = tp.TypeVar("Outputs")


def cond(
    pred: tp.Any,
    true_fun: Callable[..., Outputs],
    false_fun: Callable[..., Outputs],
    *operands: tp.Any,
    operand: tp.Any = _ABSENT,
    modules: tp.Any = None,
) -> Outputs:
    """Runs one of two functions, as a traced condition says.

    **Arguments:**

    - `pred`, `true_fun`, `false_fun`, `operands`, `operand`: those of `jax.lax.cond`.
    - `modules`: a module, or a list, tuple or dict of modules, that the functions use without taking them as arguments.
      The state that the chosen function updates is updated; modules of both functions are initialised.

    **Returns:** what the chosen function returns. What only the other one declares is declared all the same: a loss
    as 0, a metric or a summary as NaN (0 where the dtype has none).

    **Raises:** `HookError` if the functions declare values of different shapes under one name.

    ```python
    import elegy
    import jax.numpy as jnp

    big, small = elegy.nn.Linear(8), elegy.nn.Linear(8)
    x = jnp.ones([4, 3])
    y = elegy.cond(x.sum() > 5, lambda x: big(x), lambda x: small(x), x, modules=(big, small))
    assert y.shape == (4, 8)
    ```
    """
    operands = operands if operand is _ABSENT else (*operands, operand)

    def choose(branches: Sequence[tp.Any]) -> tp.Any:
        return jax.lax.cond(pred, *branches, *operands)

    return _branch("elegy.cond", (true_fun, false_fun), choose, operands, modules)


def switch(
    index: tp.Any,
    branches: Sequence[Callable[..., Outputs]],
    *operands: tp.Any,
    operand: tp.Any = _ABSENT,
    modules: tp.Any = None,
) -> Outputs:
    """Runs one of several functions, as a traced index says; it is clamped to their number.

    **Arguments:**

    - `index`, `branches`, `operands`, `operand`: those of `jax.lax.switch`.
    - `modules`: as for `elegy.cond`, whose rules for state and hooks apply.

    ```python
    import elegy
    import jax.numpy as jnp

    experts = [elegy.nn.Linear(8) for _ in range(3)]
    y = elegy.switch(jnp.array(2), [lambda x, e=e: e(x) for e in experts], jnp.ones([4, 3]), modules=experts)
    assert y.shape == (4, 8)
    ```
    """
    operands = operands if operand is _ABSENT else (*operands, operand)

    def choose(branches: Sequence[tp.Any]) -> tp.Any:
        return jax.lax.switch(index, branches, *operands)

    return _branch("elegy.switch", tuple(branches), choose, operands, modules)


def _branch(transform, functions, choose, operands, modules):
    lifted = Lifted(transform, functions, modules)

    def attempt(view, *functions):
        leaves = view.read()
        traced = tracing.is_traced()
        rng = rng_data(traced)
        steps = [inlined(function, lifted, view) for function in functions]
        effects = [jax.eval_shape(step, leaves, rng, operands)[1] for step in steps]
        indices = sorted({index for _, _, _, record in effects for index in record.indices})
        draws = any(advanced is not None for _, advanced, _, _ in effects)
        declared = _declared(transform, [(record.events, values) for _, _, values, record in effects])
        # Where the branches run in the shards of a jax.shard_map, what varies in one of them varies in all.
        found = [values for values, _, _, _ in effects]
        places = [{index: number for number, index in enumerate(record.indices)} for _, _, _, record in effects]
        likes = {
            index: [values[at[index]] for values, at in zip(found, places, strict=True) if index in at]
            for index in indices
        }
        streams = [advanced for _, advanced, _, _ in effects if advanced is not None]
        events_of_all = jax.tree.leaves([values for _, _, values, _ in effects])
        has_references = any(record.has_references for _, _, _, record in effects)

        def complete(step):
            """A branch whose outputs have the form that all branches have."""

            def branch(*operands):
                out, (values, advanced, events, record) = step(leaves, rng, operands)
                changed = dict(zip(record.indices, values, strict=True))
                values = [tracing.varying_as(changed.get(index, leaves[index]), *likes[index]) for index in indices]
                own = dict(_keyed(record.events, events))
                events = [_completed(key, own.get(key), like) for key, like in declared.items()]
                events = jax.tree.map(lambda value: tracing.varying_as(value, *events_of_all), events)
                stream = tracing.varying_as(rng if advanced is None else advanced, *streams) if draws else None
                return out, values, stream, events

            return branch

        out, values, advanced, events = choose([complete(step) for step in steps])
        record = EffectsRecord(indices, [event for event, _ in declared], has_references)
        return write_back(view, out, (values, advanced, events, record), traced)

    return lifted.call(lambda functions, *operands: [f(*operands) for f in functions], attempt, operands)


def _keyed(events, values):
    """What one branch declares, each with a key: the declaration, and how many like it came before. Values that
    are added up share a key."""
    counts: collections.Counter[tp.Any] = collections.Counter()
    found: dict[tp.Any, tp.Any] = {}
    for event, value in zip(events, values, strict=True):
        if KINDS[event.kind].repeated == "sum" and (event, 0) in found:
            found[event, 0] = found[event, 0] + value
        else:
            found[event, counts[event]] = value
        counts[event] += 1
    return list(found.items())


def _declared(transform, branches):
    """The shapes and dtypes of what the branches declare together, by key."""
    found: dict[tp.Any, list[tp.Any]] = {}
    for events, values in branches:
        keys: list[tp.Any] = []

        def one_each(values, events=events, keys=keys):
            keyed = _keyed(events, values)
            keys.extend(key for key, _ in keyed)
            return [value for _, value in keyed]

        shapes = jax.eval_shape(one_each, values)
        for key, shape in zip(keys, shapes, strict=True):
            found.setdefault(key, []).append(shape)
    for (declared, _), shapes in found.items():
        first = jax.tree.structure(shapes[0]), [leaf.shape for leaf in jax.tree.leaves(shapes[0])]
        for other in shapes[1:]:
            if (jax.tree.structure(other), [leaf.shape for leaf in jax.tree.leaves(other)]) != first:
                raise HookError(
                    f"{transform}: its functions declare the {declared.kind} {declared.name} with values of different "
                    f"shapes: {show_value(shapes[0])} and {show_value(other)}.\n"
                    "  Which of them runs is not known while compiling. Give them two names."
                )
    return {key: jax.tree.map(_common, *shapes) for key, shapes in found.items()}


def _common(*likes):
    with jax.numpy_dtype_promotion("standard"):
        return jax.ShapeDtypeStruct(likes[0].shape, jnp.result_type(*(like.dtype for like in likes)))


def _completed(key, value, like):
    """What one branch declares under a key that some branch has."""
    if value is not None:
        return jax.tree.map(lambda leaf, like: jnp.asarray(leaf).astype(like.dtype), value, like)
    declared, _ = key
    absent = KINDS[declared.kind].absent
    return jax.tree.map(
        lambda like: jnp.full(like.shape, absent if jnp.issubdtype(like.dtype, jnp.inexact) else 0, like.dtype), like
    )
