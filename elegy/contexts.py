"""What running code can ask about where it runs."""

from __future__ import annotations

import typing as tp

from elegy.draws import set_rng
from elegy.frames import scope
from elegy.random import RNG
from elegy.state import set_training, state, training


def is_initializing() -> bool:
    """Whether an init pass is running: the computation is abstract and its results are thrown away.

    ```python
    import elegy
    import jax.numpy as jnp


    class Block(elegy.Module):
        def call(self, x):
            seen.append(elegy.is_initializing())
            return x


    seen = []
    Block()(jnp.ones(3))
    assert seen == [True, False]
    ```
    """
    return state.init_pass is not None


def get_module() -> tp.Any:
    """The module whose method is running, or None.

    ```python
    import elegy
    import jax.numpy as jnp


    def scale(x):
        return x * elegy.get_module().add_parameter("scale", initializer=jnp.ones)


    module = elegy.to_module(scale)()
    module(jnp.ones(3))
    assert module.scale == 1 and elegy.get_module() is None
    ```
    """
    frames = state.frames
    return frames[-1].module if frames else None


class StaticContext(tp.NamedTuple):
    """The part of a thread's context that is plain Python."""

    training: bool
    initializing: bool
    collecting: bool
    summaries: bool
    names: tuple[str, ...]
    module: tp.Any


class DynamicContext(tp.NamedTuple):
    """The part of a thread's context that JAX computes with."""

    rng: RNG


def get_static_context() -> StaticContext:
    """Mode, collection and position of this thread.

    ```python
    import elegy

    with elegy.training_context(False):
        assert not elegy.get_static_context().training
    ```
    """
    collector = state.collector
    return StaticContext(
        training(),
        is_initializing(),
        collector is not None,
        collector is not None and collector.wants_summaries,
        tuple(scope()),
        get_module(),
    )


def get_dynamic_context() -> DynamicContext:
    """A copy of the random stream of this thread.

    ```python
    import elegy

    dynamic = elegy.get_dynamic_context()
    assert dynamic.rng() == elegy.next_rng_key()
    ```
    """
    return DynamicContext(state.rng.fork())


def set_context(static: StaticContext, dynamic: DynamicContext) -> None:
    """Restores the mode and the random stream of this thread. Collection and position belong to their `with` blocks.

    ```python
    import elegy

    static, dynamic = elegy.get_static_context(), elegy.get_dynamic_context()
    key = elegy.next_rng_key()
    elegy.set_context(static, dynamic)
    assert elegy.next_rng_key() == key
    ```
    """
    set_training(static.training)
    set_rng(dynamic.rng.fork())
