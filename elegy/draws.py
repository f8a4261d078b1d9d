"""Random draws: the stream of a thread, and keys for running modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from elegy import tracing
from elegy.errors import TraceError, ways_out
from elegy.frames import RNG_ATTRIBUTE, note_update, path_of, scope
from elegy.leaves import Node
from elegy.random import RNG, KeyLike
from elegy.state import state, write
from elegy.transaction import held, visible


def get_rng() -> RNG:
    """The random stream of this thread.

    ```python
    import elegy

    key = elegy.get_rng()()  # a new key, as from elegy.next_rng_key
    ```
    """
    return state.rng


def set_rng(rng: RNG | KeyLike) -> None:
    """Replaces the random stream of this thread; a seed or a key is made into an `RNG`.

    Every thread starts with `RNG(42)`.

    **Raises:** `TraceError` inside a transform or an init pass, where `rng_context` sets it for a part of the code.

    ```python
    import elegy

    elegy.set_rng(0)
    key = elegy.next_rng_key()
    elegy.set_rng(0)
    assert elegy.next_rng_key() == key
    ```
    """
    if tracing.is_traced():
        raise TraceError(
            "elegy.set_rng was called inside a jax transform: the stream would be a value of the trace, and could not "
            "leave it.\n  Call it outside, or use `with elegy.rng_context(rng):` inside."
        )
    state.rng = rng if isinstance(rng, RNG) else RNG(rng)


@contextlib.contextmanager
def rng_context(rng: RNG | KeyLike) -> Iterator[RNG]:
    """Uses another random stream for the duration of a `with` block.

    **Arguments:**

    - `rng`: a seed, a key, or an `RNG`, which moves on with each draw.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp


    @jax.jit
    def noisy(x, key):
        with elegy.rng_context(key):
            return x + jax.random.normal(elegy.next_rng_key(), x.shape)


    x = jnp.ones(3)
    assert (noisy(x, jax.random.key(0)) != noisy(x, jax.random.key(1))).all()
    ```
    """
    before = state._rng
    state.rng = inner = rng if isinstance(rng, RNG) else RNG(rng)
    try:
        yield inner
    finally:
        state._rng = before


def next_rng_key() -> jax.Array:
    """A new typed key.

    It comes from the random stream of the thread, or from the `rng` given to `init` or `apply`. Inside a stock `jax`
    transform, which cannot carry that stream, a module that came in as an argument draws from a key of its own: an
    array of its state, made when the module was initialised, which it advances and which leaves with it.

    **Raises:** `TraceError` if there is no such key, and in the lanes of a `jax.vmap` and the shards of a
    `jax.shard_map` if all have the same one.

    ```python
    import elegy
    import jax

    noise = jax.random.normal(elegy.next_rng_key(), [3])
    ```
    """
    rng = state.rng
    frame = state.frames[-1] if state.frames else None
    if rng._born == tracing.current():
        if state.init_pass is not None and frame is not None and not frame.building:
            state.init_pass.create_rng_key(frame.module)
        return rng()
    if frame is not None and visible(frame.module)._elegy_born == tracing.current():
        return _own_key(frame.module)
    raise TraceError(
        f"{'/'.join(scope()) or 'elegy'}: next_rng_key() was called inside a jax transform, but the random stream "
        "belongs to the code outside of it, so every call would draw the same key. There are two ways out:"
        + ways_out(
            "Pass a key as an argument of the transformed function: m.apply(x, rng=key), or elegy.rng_context(key).",
            "Use the transform of the same name in elegy, which carries the stream through: elegy.jit(f, "
            f"modules=module).{_of_shards()}",
        )
    )


def _of_shards() -> str:
    axes = tracing.manual_axes()
    if not axes:
        return ""
    return (
        "\n  There is none of jax.shard_map. There, draw a key outside, and fold the number of the shard into it: "
        f"jax.random.fold_in(key, jax.lax.axis_index({axes[0]!r}))."
    )


def _own_key(module: Node) -> jax.Array:
    data = held(module).get(RNG_ATTRIBUTE)
    if data is None:
        raise TraceError(
            f"{path_of(module)}: next_rng_key() was called inside a jax transform, and the module has no key of "
            "its own, since it drew none when it was initialised.\n"
            "  Pass a key as an argument of the transformed function: m.apply(x, rng=key), or elegy.rng_context(key)."
        )
    require_lanes_apart(module)
    pair = jax.random.split(jax.random.wrap_key_data(data))
    write(module, RNG_ATTRIBUTE, jax.random.key_data(pair[0]))
    note_update(module, RNG_ATTRIBUTE)
    return pair[1]


def require_lanes_apart(module: Node) -> None:
    """Refuses to let a module draw from its own key in each lane of a `jax.vmap`, or each shard of a `jax.shard_map`,
    where it is the same in all of them."""
    if tracing.is_equal_in_all_shards(held(module)[RNG_ATTRIBUTE]):
        axis = tracing.manual_axes()[0]
        raise TraceError(
            f"{path_of(module)}: next_rng_key() was called in each shard of a jax.shard_map, and the key of the module "
            "is the same in all of them, so they would draw the same numbers. The ways out:"
            + ways_out(
                "Pass a key with the number of the shard folded in, key = jax.random.fold_in(key, "
                f"jax.lax.axis_index({axis!r})): m.apply(x, rng=key), or elegy.rng_context(key).",
                "If all shards are to draw the same, since they hold copies of the same activations, pass the key as "
                "it is.",
            )
        )
    if tracing.is_equal_in_all_lanes(held(module)[RNG_ATTRIBUTE]):
        raise TraceError(
            f"{path_of(module)}: next_rng_key() was called in each lane of a jax.vmap, and the key of the module is "
            "the same in all of them, so they would draw the same numbers. The ways out:"
            + ways_out(
                "Pass a key for each lane: jax.vmap(lambda key, x: module.apply(x, rng=key))(keys, xs).",
                "Use the transform of the same name in elegy, which splits the random stream: elegy.vmap(module)(xs).",
            )
        )
