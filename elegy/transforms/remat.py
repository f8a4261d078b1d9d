"""`elegy.remat`: `jax.checkpoint` that carries modules, random stream and hooks through."""

from __future__ import annotations

import functools
import typing as tp
from collections.abc import Callable

import jax

from elegy.transforms.core import rng_data, run, write_back
from elegy.transforms.lift import Lifted

_OURS = 2  # arguments of the body before those of the user's function: leaves, random state


Arguments = tp.ParamSpec("Arguments")
Outputs = tp.TypeVar("Outputs")


def remat(
    function: Callable[Arguments, Outputs],
    *,
    prevent_cse: bool = True,
    policy: Callable[..., bool] | None = None,
    static_argnums: int | tuple[int, ...] = (),
    modules: tp.Any = None,
) -> Callable[Arguments, Outputs]:
    """Recomputes the intermediate values of a function in the backward pass instead of storing them.

    **Arguments:**

    - `function`, `prevent_cse`, `policy`, `static_argnums`: those of `jax.checkpoint`.
    - `modules`: a module, or a list, tuple or dict of modules, that `function` uses without taking them as arguments.

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
    lifted = Lifted("elegy.remat", [function], modules)
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if any(number < 0 for number in numbers):
        raise ValueError(f"static_argnums={static_argnums}: count the arguments from the left, starting at 0")

    @functools.wraps(function, updated=())
    def checkpointed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Outputs:
        def attempt(function: tp.Any) -> tp.Any:
            view = lifted.view
            leaves = view.read()

            def body(leaves, rng, *args, **kwargs):
                return run(function, view, leaves, rng, args, kwargs)

            body = jax.checkpoint(
                body,
                prevent_cse=prevent_cse,
                policy=policy,
                static_argnums=tuple(number + _OURS for number in numbers),
            )
            out, effects = body(leaves, rng_data(leaves), *args, **kwargs)
            write_back(view, effects, args)
            return out

        return lifted.call(lambda functions, *args, **kwargs: functions[0](*args, **kwargs), attempt, args, kwargs)

    return checkpointed
