"""`elegy.while_loop` and `elegy.fori_loop`: loops that carry modules, random stream and hooks through."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from elegy import tracing
from elegy.errors import HookError
from elegy.hooks import KINDS
from elegy.precision import at_least_float32
from elegy.state import state
from elegy.transforms.core import View, check_function, modules_of, rng_data, write_back
from elegy.transforms.lift import Lifted, inlined, settled
from elegy.transforms.scan import scan

Value = tp.TypeVar("Value")


def while_loop(
    cond_fun: Callable[[Value], tp.Any],
    body_fun: Callable[[Value], Value],
    init_val: Value,
    *,
    modules: tp.Any = None,
) -> Value:
    """Repeats a function while a condition holds.

    **Arguments:**

    - `cond_fun`, `body_fun`, `init_val`: those of `jax.lax.while_loop`. `cond_fun` may run modules, but may not update
      state, draw random keys or declare anything.
    - `modules`: a module, or a list, tuple or dict of modules, that the functions use without taking them as arguments.
      Their state is carried from iteration to iteration, and so is the random stream.

    **Returns:** the last value. Losses that the iterations declare are summed, and metrics are averaged; without an
    iteration they are 0 and NaN. The outputs of modules are not recorded, since their number is not known.

    **Raises:** `HookError` if a summary is declared by name while summaries are collected, or if `cond_fun` does more
    than read.

    ```python
    import elegy
    import jax.numpy as jnp

    half = elegy.nn.Linear(3, w_init=lambda shape, dtype: 0.5 * jnp.eye(*shape, dtype=dtype))
    x = elegy.while_loop(lambda x: x.max() > 0.1, lambda x: half(x), jnp.ones([3]), modules=half)
    assert x.max() == 0.0625
    ```
    """
    lifted = Lifted("elegy.while_loop", [cond_fun, body_fun], modules)

    def attempt(view: View, cond_fun: tp.Any, body_fun: tp.Any) -> tp.Any:
        leaves = view.read()
        traced = tracing.is_traced()
        rng = rng_data(traced)
        test = inlined(_without_summaries(cond_fun), lifted, view)
        step = inlined(_without_summaries(body_fun), lifted, view)
        _check_reads(view, jax.eval_shape(test, leaves, rng, (init_val,))[1])
        (_, (_, _, shapes, record)), leaves, rng = settled(step, leaves, rng, (init_val,), lambda _, leaf: leaf)

        def insert(moving):
            inside = list(leaves)
            for index, value in zip(record.indices, moving, strict=True):
                inside[index] = value
            return inside

        def body(state):
            value, moving, rng, sums, count = state
            value, (moving, advanced, events, _) = step(insert(moving), rng, (value,))
            sums = jax.tree.map(lambda total, value: total + jnp.asarray(value, total.dtype), sums, events)
            return value, moving, rng if advanced is None else advanced, sums, count + 1

        def zero(like):
            return tracing.varying_as(jnp.zeros(like.shape, _sum_dtype(like.dtype)), like)

        sums = jax.tree.map(zero, shapes)
        start = (init_val, [leaves[index] for index in record.indices], rng, sums, jnp.zeros((), jnp.int32))
        value, moving, advanced, sums, count = jax.lax.while_loop(
            lambda state: test(insert(state[1]), rng, (state[0],))[0], body, start
        )
        events = [
            jax.tree.map(functools.partial(_reduced, declared.kind, count), total, like)
            for declared, total, like in zip(record.events, sums, shapes, strict=True)
        ]
        return write_back(view, value, (moving, advanced, events, record), traced)

    return lifted.call(lambda functions, value: (functions[0](value), functions[1](value)), attempt, (init_val,))


def _without_summaries(function: Callable[..., tp.Any]) -> Callable[..., tp.Any]:
    """A function that records no outputs of modules, which cannot be stacked for an unknown number of iterations. It
    refuses a summary that is declared by name."""

    def quiet(value: tp.Any) -> tp.Any:
        out = function(value)
        if state.collector is not None:
            for kind in (kind for kind, rules in KINDS.items() if rules.steps == "stack"):
                named = [event.name for event in state.collector.collected(kind) if not event.is_of_module]
                if named:
                    raise HookError(
                        f"{KINDS[kind].plural} were declared inside elegy.while_loop ({', '.join(named)}), and the "
                        "number of its iterations is not known while compiling.\n"
                        "  Use elegy.scan, or elegy.hooks_context() without summaries."
                    )
                state.collector.drop(kind)
        return out

    return quiet


def _sum_dtype(dtype: tp.Any) -> tp.Any:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype
    return at_least_float32(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


def _reduced(kind: str, count: tp.Any, total: tp.Any, like: tp.Any) -> tp.Any:
    """The sum of losses or the mean of metrics, in the dtype that a scan gives it."""
    value = total if KINDS[kind].steps == "sum" else total / count.astype(total.dtype)
    return value.astype(like.dtype) if jnp.issubdtype(like.dtype, jnp.inexact) else value


def _check_reads(view, effects):
    values, advanced, _, record = effects
    done = [f"updated {view.path(index)}" for index in record.indices]
    done += ["drew a random key"] if advanced is not None else []
    done += [f"declared the {declared.kind} {declared.name}" for declared in record.events]
    if done:
        raise HookError(
            f"the condition of elegy.while_loop {', '.join(done)}: a condition may only read.\n"
            "  Do it in the body, and carry what the condition needs in the value."
        )


def fori_loop(
    lower: tp.Any,
    upper: tp.Any,
    body_fun: Callable[[tp.Any, Value], Value],
    init_val: Value,
    *,
    unroll: int | bool | None = None,
    modules: tp.Any = None,
) -> Value:
    """Repeats a function for a range of integers.

    **Arguments:**

    - `lower`, `upper`, `body_fun`, `init_val`, `unroll`: those of `jax.lax.fori_loop`. If `lower` and `upper` are
      Python integers, the loop is a scan, which can be differentiated in reverse; else it is a `while_loop`.
    - `modules`: as for `elegy.scan` and `elegy.while_loop`, whose rules for state and hooks apply.

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(3)
    x = elegy.fori_loop(0, 4, lambda i, x: jnp.tanh(linear(x)), jnp.ones([3]), modules=linear)
    assert x.shape == (3,)
    ```
    """
    check_function("elegy.fori_loop", body_fun)
    modules = modules_of(body_fun, modules)
    if isinstance(lower, (int, np.integer)) and isinstance(upper, (int, np.integer)):

        def step(carry: tp.Any, _: None) -> tp.Any:
            index, value = carry
            return (index + 1, body_fun(index, value)), None

        start = jnp.asarray(lower)  # weakly typed, as JAX's index is
        length = max(int(upper) - int(lower), 0)
        return scan(step, (start, init_val), None, length, unroll=1 if unroll is None else unroll, modules=modules)[0][
            1
        ]
    if unroll is not None:
        raise ValueError("unroll= needs bounds that are Python integers: those of this loop are traced values")

    def body(carry: tp.Any) -> tp.Any:
        index, value = carry
        return index + 1, body_fun(index, value)

    lower, upper = jnp.asarray(lower), jnp.asarray(upper)
    start = (lower, init_val)
    return while_loop(lambda carry: carry[0] < upper, body, start, modules=modules)[1]
