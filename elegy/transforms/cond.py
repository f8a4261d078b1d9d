"""`elegy.cond` and `elegy.switch`: branches that carry modules, random stream and hooks through."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from elegy.errors import HookError
from elegy.transforms.core import Record, rng_data, run, write_back
from elegy.transforms.lift import Lifted

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

    **Returns:** what the chosen function returns. A loss that it does not declare counts as zero if the other one
    declares it. Metrics and summaries must be declared by both.

    **Raises:** `HookError` if the functions declare different metrics or summaries.

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

    def attempt(*functions: tp.Any) -> tp.Any:
        view = lifted.view
        leaves = view.read()
        rng = rng_data(leaves)
        steps = [_step(function, view) for function in functions]
        effects = [jax.eval_shape(step, leaves, rng, operands)[1] for step in steps]
        indices = sorted({index for _, _, _, record in effects for index in record.indices})
        draws = any(advanced is not None for _, advanced, _, _ in effects)
        declared, losses = _declared([(values, record.events) for _, _, values, record in effects])

        def complete(step):
            """A branch whose outputs have the form that all branches have."""

            def branch(*operands):
                out, (values, advanced, events, record) = step(leaves, rng, operands)
                changed = dict(zip(record.indices, values, strict=True))
                values = [changed.get(index, leaves[index]) for index in indices]
                events = _complete(events, record.events, losses)
                return out, values, (rng if advanced is None else advanced) if draws else None, events

            return branch

        out, values, advanced, events = choose([complete(step) for step in steps])
        write_back(view, (values, advanced, events, Record(indices, declared)), operands)
        return out

    return lifted.call(lambda functions, *operands: [f(*operands) for f in functions], attempt, operands)


def _step(function, view):
    # Compiled inline, so that looking at the effects first costs no second trace.
    return jax.jit(lambda leaves, rng, operands: run(function, view, leaves, rng, operands, {}), inline=True)


def _declared(branches):
    """What the branches declare together, and the shape of each loss by name."""
    losses: dict[str, tp.Any] = {}
    others: list[tp.Any] = []
    for values, events in branches:
        for (kind, name, _), value in zip(events, values, strict=True):
            if kind == "loss":
                losses.setdefault(name, jax.eval_shape(jnp.asarray, value))
        others.append([event for event in events if event[0] != "loss"])
    for number, other in enumerate(others):
        if [(kind, name, id(module)) for kind, name, module in other] != [
            (kind, name, id(module)) for kind, name, module in others[0]
        ]:
            one, two = (
                ", ".join(f"{kind} {name}" for kind, name, _ in events) or "none" for events in (others[0], other)
            )
            raise HookError(
                "the branches of elegy.cond or elegy.switch declare different metrics or summaries: branch 0 declares "
                f"{one}, branch {number} declares {two}.\n"
                "  Which branch runs is not known while compiling, so each must declare the same ones, in one order."
            )
    return [*(("loss", name, None) for name in losses), *others[0]], losses


def _complete(events, declared, losses):
    """The values of one branch in the order of what all branches declare, with zero for a loss that is not its own."""
    sums = {name: jnp.zeros(like.shape, like.dtype) for name, like in losses.items()}
    own: set[str] = set()
    others = []
    for (kind, name, _), value in zip(declared, events, strict=True):
        if kind != "loss":
            others.append(value)
        else:
            sums[name] = sums[name] + value if name in own else jnp.asarray(value)
            own.add(name)
    return [*sums.values(), *others]
