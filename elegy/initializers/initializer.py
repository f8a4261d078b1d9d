from __future__ import annotations

import operator
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from elegy.draws import next_rng_key

Shape = Sequence[int]


class Initializer:
    """Base class of initial values: functions of `(shape, dtype)`, or of `(key, shape, dtype)`.

    Without a key one is drawn by `elegy.next_rng_key`. Inside `add_parameter` that is the parameter's own: it depends
    on the seed and on the path of the parameter alone. Called with a key, as those of `jax.nn.initializers` are, it
    suits other libraries too. Subclasses define `draw`.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    initializer = elegy.initializers.RandomNormal(stddev=0.02)
    linear = elegy.nn.Linear(2, w_init=initializer)
    w = initializer(jax.random.key(0), (3, 2), jnp.float32)
    assert w.shape == (3, 2)
    ```
    """

    # Whether the values are random.
    draws: tp.ClassVar[bool] = True

    def __call__(self, *arguments: tp.Any, dtype: tp.Any = None) -> Num[Array, "..."]:
        """**Arguments:**

        - `key`: may be left out.
        - `shape`: a sequence of sizes.
        - `dtype`: the default is float32, or float64 where JAX has it enabled.

        **Returns:** an array of that shape and dtype.
        """
        key, shape, dtype = _arguments(type(self).__name__, arguments, dtype)
        if key is None and self.draws:
            key = next_rng_key()
        return self.draw(key, shape, jax.dtypes.canonicalize_dtype(float if dtype is None else dtype))

    def draw(self, key: tp.Any, shape: tuple[int, ...], dtype: tp.Any) -> Num[Array, "..."]:
        """The values. The key is None if `draws` is False and none was given."""
        raise NotImplementedError(f"{type(self).__qualname__} must define draw(self, key, shape, dtype).")


def _arguments(name: str, arguments: tuple[tp.Any, ...], dtype: tp.Any) -> tuple[tp.Any, tuple[int, ...], tp.Any]:
    has_key = bool(arguments) and (len(arguments) == 3 or isinstance(arguments[0], jax.Array))
    key, rest = (arguments[0], arguments[1:]) if has_key else (None, arguments)
    if len(rest) == 2 and dtype is None:
        rest, dtype = rest[:1], rest[1]
    if len(rest) != 1:
        raise TypeError(
            f"elegy.initializers.{name} is called as (shape, dtype) or as (key, shape, dtype), got "
            f"{len(arguments)} arguments by position."
        )
    shape = rest[0]
    try:
        return key, tuple(map(operator.index, (shape,) if isinstance(shape, (int, np.integer)) else shape)), dtype
    except TypeError:
        raise TypeError(
            f"elegy.initializers.{name}: the shape must be a sequence of integers, got {shape!r}."
        ) from None


def is_real(dtype: tp.Any) -> bool:
    """Whether a dtype is one of real floating-point numbers."""
    return jnp.issubdtype(dtype, np.floating)


def require_not_negative(owner: object, name: str, value: float | int) -> None:
    """Refuses a negative argument of a constructor."""
    if value < 0:
        raise ValueError(f"elegy.initializers.{type(owner).__name__}: {name} must not be negative, got {value}.")
