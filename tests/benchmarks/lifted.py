"""What the lifted transforms cost when compiled: each against its namesake in JAX, on the same arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

import elegy
from tests.benchmarks.timing import Arm, Budget, Row, compare, interleave, require_equal

WIDTH = 16
X = jnp.linspace(-1.0, 1.0, 8 * WIDTH).reshape(8, WIDTH)
Function = Callable[[jax.Array], jax.Array]


def dense(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w + b)


class Dense(elegy.Module):
    def call(self, x):
        w = self.add_parameter("w", [WIDTH, WIDTH], initializer=jax.nn.initializers.normal())
        b = self.add_parameter("b", [WIDTH])
        return dense(x, w, b)


# The transform, given the function that it runs, its argument, and what to hand to modules= if it takes that.
TRANSFORMS: dict[str, Callable[..., jax.Array]] = {
    "vmap": lambda library, f, **modules: library.vmap(f, **modules)(X),
    "scan": lambda library, f, **modules: library.scan(lambda c, x: (f(c + x), None), X[0], X, **modules)[0],
    "remat": lambda library, f, **modules: library.remat(f, **modules)(X),
    "cond": lambda library, f, **modules: library.cond(X[0, 0] < 0, f, lambda x: -f(x), X, **modules),
    "switch": lambda library, f, **modules: library.switch(jnp.argmax(X[0]), [f, lambda x: -f(x)], X, **modules),
    "while_loop": lambda library, f, **modules: library.while_loop(
        lambda c: c[0] < 4, lambda c: (c[0] + 1, f(c[1])), (jnp.array(0), X), **modules
    )[1],
    "fori_loop": lambda library, f, **modules: library.fori_loop(0, 4, lambda i, x: f(x), X, **modules),
}


class _Jax:
    """The namesakes, in one place."""

    vmap = staticmethod(jax.vmap)
    remat = staticmethod(jax.checkpoint)
    scan = staticmethod(jax.lax.scan)
    cond = staticmethod(jax.lax.cond)
    switch = staticmethod(jax.lax.switch)
    while_loop = staticmethod(jax.lax.while_loop)
    fori_loop = staticmethod(jax.lax.fori_loop)


def rows(quick: bool) -> Iterator[Row]:
    for name in TRANSFORMS:
        arms = make_arms(name)
        require_equal({arm: function() for arm, function in arms.items()})
        times = interleave(arms, Budget(rounds=2 if quick else 201, seconds=0.0 if quick else 2.5e-4))
        yield from compare("compiled call", [(f"`elegy.{name}`", f"`jax` {name} of arrays")], times)


def make_arms(name: str) -> dict[str, Arm]:
    """Both compiled by `elegy.jit`, so that what differs is the transform inside."""
    module = Dense().init(X)
    transform = TRANSFORMS[name]

    def lifted() -> jax.Array:
        return transform(elegy, module, modules=module)

    def plain() -> jax.Array:
        w, b = module.w, module.b
        return transform(_Jax, lambda x: dense(x, w, b))

    return {
        f"`elegy.{name}`": elegy.jit(lifted, modules=module),
        f"`jax` {name} of arrays": elegy.jit(plain, modules=module),
    }
