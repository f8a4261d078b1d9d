"""Code as users write it, for the static checker alone: `make types` and `test_static_types.py` check it.

`assert_type` says what the checker must find out. A line with `pyright: ignore[...]` must be an error: the checker is
told to complain of one that has nothing to ignore.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false, reportUnusedVariable=false
# pyright: reportUnusedClass=false, reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportArgumentType=true, reportCallIssue=true, reportAttributeAccessIssue=true
import dataclasses
from typing import Any, Generic, TypeVar, assert_type

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import elegy

x = jnp.ones([4, 3])


class Scale(elegy.Module):
    w: Float[Array, "in"]

    def __init__(self, factor: float, name: str | None = None):
        super().__init__(name=name)
        self.factor = factor

    def call(self, x: Float[Array, "*batch in"], bias: float = 0.0) -> Float[Array, "*batch in"]:
        return self.factor * x * self.add_parameter("w", initializer=jnp.ones) + bias

    @elegy.compact
    def encode(self, x: Array) -> tuple[Array, Array]:
        return x, x


scale = Scale(2.0)


def modules() -> None:
    assert_type(scale(x), Array)
    assert_type(scale(x, bias=1.0), Array)
    assert_type(scale.jit(x), Array)
    assert_type(scale.init(x), Scale)
    assert_type(scale.init(x, rng=0), Scale)
    assert_type(scale.copy(), Scale)
    assert_type(scale.apply(x), tuple[Array, Scale])
    assert_type(scale.apply(x, 1.0, rng=jax.random.key(0), training=True), tuple[Array, Scale])
    assert_type(scale.apply(x, method="encode"), tuple[Any, Scale])
    assert_type(scale.encode(x), tuple[Array, Array])
    assert_type(scale.w, Array)
    assert_type(scale.factor, float)
    assert_type(scale.trainable, bool)

    Scale("a")  # pyright: ignore[reportArgumentType]
    Scale()  # pyright: ignore[reportCallIssue]
    scale()  # pyright: ignore[reportCallIssue]
    scale("a")  # pyright: ignore[reportArgumentType]
    scale(x, bias="a")  # pyright: ignore[reportArgumentType]
    scale(x, offset=1.0)  # pyright: ignore[reportCallIssue]
    scale.jit(x, 1.0, 2.0)  # pyright: ignore[reportCallIssue]
    scale.encode()  # pyright: ignore[reportCallIssue]


T = TypeVar("T")


class Wrapped(elegy.Module, Generic[T]):
    def __init__(self, inner: T):
        self.inner = inner

    def call(self, x: Array) -> T:
        return self.inner


@dataclasses.dataclass
class Dense(elegy.Module):
    width: int
    scale: Scale = dataclasses.field(default_factory=lambda: Scale(1.0))

    def call(self, x: Array) -> Array:
        return self.scale(elegy.nn.Linear(self.width)(x))


def other_classes() -> None:
    assert_type(Wrapped(scale).inner, Scale)
    assert_type(Wrapped(scale)(x), Scale)
    assert_type(Dense(3)(x), Array)
    assert_type(Dense(3).apply(x), tuple[Array, Dense])
    assert_type(elegy.nn.Linear(3)(x), Array)
    Dense("a")  # pyright: ignore[reportArgumentType]
    elegy.nn.Linear(3)(x, x)  # pyright: ignore[reportCallIssue]

    @elegy.to_module
    def double(x: Array, times: int = 1) -> Array:
        return 2 * times * x

    assert_type(double(name="twice")(x, times=2), Array)
    double()("a")  # pyright: ignore[reportArgumentType]


def loss_fn(x: Array, weight: float = 1.0) -> Array:
    return weight * jnp.mean(scale(x) ** 2)


def pure_loss_fn(scale: Scale, x: Array) -> tuple[Array, str]:
    return jnp.mean(scale(x) ** 2), "aside"


class Trainer:
    @elegy.jit
    def step(self, x: Array) -> Array:
        return x


def transforms() -> None:
    compiled = elegy.jit(loss_fn, modules=scale)
    assert_type(compiled(x, weight=2.0), Array)
    assert_type(compiled.traces, int)
    assert_type(elegy.jit(scale)(x, bias=1.0), Array)
    assert_type(elegy.jit(scale.encode)(x), tuple[Array, Array])
    assert_type(Trainer().step(x), Array)
    compiled(x, y=2.0)  # pyright: ignore[reportCallIssue]
    elegy.jit(scale)("a")  # pyright: ignore[reportArgumentType]
    Trainer().step()  # pyright: ignore[reportCallIssue]

    assert_type(elegy.value_and_grad(loss_fn, modules=scale)(x), tuple[Array, Any])
    assert_type(elegy.value_and_grad(scale)(x), tuple[Array, Any])
    assert_type(elegy.value_and_grad(pure_loss_fn)(scale, x), tuple[tuple[tuple[Array, str], Scale], Scale])
    assert_type(elegy.grad(pure_loss_fn)(scale, x), tuple[Scale, Scale])
    assert_type(elegy.grad(pure_loss_fn, argnums=1)(scale, x), tuple[Any, Scale])
    elegy.value_and_grad(loss_fn, modules=scale)("a")  # pyright: ignore[reportArgumentType]

    assert_type(elegy.vmap(loss_fn, modules=scale)(x, weight=1.0), Array)
    assert_type(elegy.vmap(scale)(x), Array)
    assert_type(elegy.remat(loss_fn, modules=scale)(x), Array)
    assert_type(elegy.scan(lambda carry, x: (carry, "y"), x, x), tuple[Array, str])
    assert_type(elegy.cond(True, scale, loss_fn, x), Array)
    assert_type(elegy.switch(0, [scale, loss_fn], x), Array)
    assert_type(elegy.while_loop(lambda x: x.max() > 0, scale, x), Array)
    assert_type(elegy.fori_loop(0, 3, lambda i, x: x, x), Array)
    elegy.vmap(scale)("a")  # pyright: ignore[reportArgumentType]


def trees() -> None:
    assert_type(elegy.select(scale, "w").freeze(), Scale)
    assert_type(elegy.select([scale], "**/w").apply(jnp.tanh), list[Scale])
    assert_type(elegy.load("file", like=scale), Scale)
    assert_type(elegy.load("file", like=elegy.select(scale)), Scale)
    assert_type(elegy.training(), bool)
    assert_type(elegy.next_rng_key(), Array)
    elegy.select(scale, "w").frozen()  # pyright: ignore[reportAttributeAccessIssue]
