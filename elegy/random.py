"""The random state of a thread: an `RNG` of typed keys, and the derivation of keys by path."""

from __future__ import annotations

import contextlib
import hashlib
import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy import tracing
from elegy.errors import TraceError

KeyLike = int | np.integer | jax.Array | np.ndarray


def as_key(key: KeyLike) -> jax.Array:
    """A typed key from a seed, a typed key or the raw `uint32` data of one."""
    if isinstance(key, (int, np.integer)):
        return jax.random.key(int(key))
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape != ():
                raise ValueError(f"expected one key, got an array of keys of shape {key.shape}")
            return tp.cast(jax.Array, key)
        if key.dtype == np.uint32 and key.ndim == 1:
            return jax.random.wrap_key_data(jnp.asarray(key))
        if key.ndim == 0 and jnp.issubdtype(key.dtype, np.integer):
            return jax.random.key(key)
    raise TypeError(f"expected a seed or a key such as jax.random.key(0), got {key!r}")


def _split(data: jax.Array, impl: str) -> tuple[jax.Array, jax.Array]:
    pair = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(data, impl=impl)))
    return pair[0], pair[1]


_split = jax.jit(_split, static_argnums=1, inline=True)


def _fold(data: jax.Array, number: tp.Any, impl: str) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(data, impl=impl), number)
    return jax.random.key_data(key)


_fold = jax.jit(_fold, static_argnums=2, inline=True)


def _of_this_mesh(data: jax.Array) -> jax.Array:
    """The state of a stream where the running code can use it: under `jax.set_mesh` JAX refuses arrays that another
    mesh has left."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or isinstance(data, Tracer):
        return data
    own = jax.typeof(data).sharding.mesh
    return data if own.empty or own == mesh else jnp.asarray(np.asarray(data))


def lane_of(data: jax.Array, lane: jax.Array, impl: str) -> jax.Array:
    """The stream of one lane of a mapped function: derived from one half of a split, later draws from the other."""
    return _fold(_split(data, impl)[1], lane.astype(np.uint32), impl)


def step_of(data: jax.Array, impl: str) -> jax.Array:
    """The stream after its lanes have branched off."""
    return _split(data, impl)[0]


def default_impl() -> str:
    """The implementation of `jax.random.key`, in which modules keep keys of their own."""
    return str(jax.random.key_impl(jax.random.key(0)))


def fold_in_path(key: jax.Array, path: str) -> jax.Array:
    """The key of one parameter: `key` folded with 32 bits of the SHA-256 of its path."""
    number = np.uint32(int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big"))
    impl = str(jax.random.key_impl(key))
    return jax.random.wrap_key_data(_fold(jax.random.key_data(key), number, impl), impl=impl)


class RNG:
    """A stream of typed keys.

    **Arguments:**

    - `key`: an integer seed, a typed key (`jax.random.key(0)`) or raw `uint32` key data.

    Calling it returns a new key and advances the stream. The key that is returned is never one from which the
    stream derives further keys: each step splits the state in two, keeps one half and hands out the other.

    ```python
    import elegy
    import jax

    rng = elegy.RNG(42)
    a, b = rng(), rng()
    assert (jax.random.key_data(a) != jax.random.key_data(b)).any()
    ```
    """

    __slots__ = ("__weakref__", "_born", "_count", "_data", "_enter", "_impl", "_root")

    def __init__(self, key: KeyLike):
        # Inside a trace too a seed is a constant, so that initial keys which derive from it can outlive the trace.
        with contextlib.nullcontext() if isinstance(key, Tracer) else jax.ensure_compile_time_eval():
            key = as_key(key)
            self._impl = str(jax.random.key_impl(key))
            # Raw data, since a typed key costs several times as much to pass to a compiled function.
            self._data = jax.random.key_data(key)
        # The keys of initialisation derive from the root and a count, so that a first call draws the same dropout masks
        # whether it initialises eagerly or inside a transform. Forks share the count. None in a threaded stream.
        self._root: jax.Array | None = self._data
        # Derives the stream of one lane from that of all, the first time that the lane draws.
        self._enter: Callable[[jax.Array], jax.Array] | None = None
        self._count = [0]
        self._born = tracing.current()

    @property
    def data(self) -> jax.Array:
        """The state of the stream as raw data, to be carried by a transform."""
        if self._enter is not None:
            self._data, self._enter = self._enter(self._data), None
        return self._data

    @property
    def key(self) -> jax.Array:
        """The state of the stream as a typed key. Do not draw from it: call the `RNG` instead."""
        return jax.random.wrap_key_data(self.data, impl=self._impl)

    def __call__(self) -> jax.Array:
        """A new typed key; the stream advances."""
        if self._born != tracing.current():
            raise TraceError(
                "elegy.RNG: a key was drawn inside a jax transform from an RNG that was made outside of it.\n"
                "  The new state could not leave the transform, so every call would draw the same key.\n"
                "  Either pass a key as an argument of the transformed function, and draw from elegy.RNG(key),\n"
                "  or use the transform of the same name in elegy, which carries the RNG through."
            )
        self._data, drawn = _split(_of_this_mesh(self.data), self._impl)
        return jax.random.wrap_key_data(drawn, impl=self._impl)

    def base_key(self) -> Callable[[], jax.Array]:
        """The key of one more initialisation, as a function that computes it in the trace that asks."""
        if self._root is None:
            drawn = self()
            return lambda: drawn
        root, count, impl = _of_this_mesh(self._root), np.uint32(self._count[0]), self._impl
        self._count[0] += 1

        def key() -> jax.Array:
            # 0x696E6974 is "init" in ASCII: it sets these keys apart from a user's own fold_in(key, 0).
            return jax.random.wrap_key_data(_fold(_fold(root, np.uint32(0x696E6974), impl), count, impl), impl=impl)

        return key

    def fork(self) -> RNG:
        """A copy that draws on its own, while initialisations are counted together."""
        fork = _restore(self._impl, (self.data, self._root, self._count[0]))
        fork._count = self._count
        return fork

    def threaded(self, data: jax.Array, enter: Callable[[jax.Array], jax.Array] | None = None) -> RNG:
        """A stream whose state, `data`, is an argument of a compiled function. Initialisations draw from it as well."""
        rng = _restore(self._impl, (data, None, 0))
        rng._enter = enter
        return rng

    def snapshot(self) -> tuple[tp.Any, ...]:
        return (self._data, self._root, self._count[0], self._enter)

    def restore(self, snapshot: tuple[tp.Any, ...]) -> None:
        self._data, self._root, self._count[0], self._enter = snapshot

    def __repr__(self) -> str:
        return f"RNG({self._impl}, {self.data})"

    def __getstate__(self):
        return (self._impl, (self.data, self._root, self._count[0]))

    def __setstate__(self, state):
        self._impl, (self._data, self._root, count) = state
        self._count = [count]
        self._enter = None
        self._born = tracing.current()


def _restore(impl: str, snapshot: tuple[tp.Any, ...]) -> RNG:
    rng = object.__new__(RNG)
    rng.__setstate__((impl, snapshot))
    return rng


jax.tree_util.register_pytree_node(
    RNG,
    lambda rng: ((rng.data, rng._root), (rng._impl, rng._count[0])),
    lambda aux, children: _restore(aux[0], (*children, aux[1])),
)
