from __future__ import annotations

import enum
import typing as tp

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.frames import path_of
from elegy.losses.arguments import On, bind, positional_count, select, takes, weights_for
from elegy.module import Module
from elegy.precision import at_least_float32


class Reduction(enum.Enum):
    """How a loss makes one number of the values of a batch.

    - `NONE`: not at all.
    - `SUM`: by their sum.
    - `SUM_OVER_BATCH_SIZE`: by their sum divided by their number. As in Keras, the number counts values, not weights: a
      sample of weight zero counts.
    """

    NONE = "none"
    SUM = "sum"
    SUM_OVER_BATCH_SIZE = "sum_over_batch_size"


class Loss(Module):
    """Base class of losses. Subclasses define `call`, which returns values that are not reduced yet.

    **Arguments:**

    - `reduction`: a `Reduction` or its name. The default is `"sum_over_batch_size"`.
    - `weight`: the factor of this loss among others.
    - `on`: which part of `y_true` and `y_pred` the loss is about, when they are dicts, lists or tuples: a key, an
      index, or a sequence of them for nested ones. The default is all.
    - `name`, `dtype`: those of `elegy.Module`.

    All but `reduction` are given by keyword.

    A loss is called with the arguments of its `call` and, by keyword or as one more positional argument, a
    `sample_weight`: one number for each example, or for each value. It multiplies the values before they are reduced,
    whether `call` has a parameter of this name or not. `call` may return a dict, of which each entry is reduced.

    ```python
    import elegy
    import jax.numpy as jnp


    class LogCosh(elegy.losses.Loss):
        def call(self, y_true, y_pred):
            return jnp.mean(jnp.log(jnp.cosh(y_pred - y_true)), axis=-1)


    loss = LogCosh(weight=0.5)
    value = loss(jnp.zeros([4, 1]), jnp.ones([4, 1]), sample_weight=jnp.array([1.0, 0.0, 1.0, 0.0]))
    assert jnp.allclose(value, 0.25 * jnp.log(jnp.cosh(1.0)))
    ```
    """

    def __init__(
        self,
        reduction: Reduction | str | None = None,
        *,
        weight: float | int = 1.0,
        on: On = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.reduction = (
            Reduction.SUM_OVER_BATCH_SIZE if reduction is None else _reduction(type(self).__name__, reduction)
        )
        self.weight = float(weight)
        self.on = on if on is None or isinstance(on, (str, int)) else tuple(on)

    if tp.TYPE_CHECKING:

        def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any: ...

    def __call__(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """The values of `call`, times `sample_weight`, reduced, times `weight`."""
        if takes(self, "sample_weight"):
            sample_weight = bind(self, args, kwargs).arguments.get("sample_weight")
        else:
            sample_weight = kwargs.pop("sample_weight", None)
            if sample_weight is None and len(args) - 1 == positional_count(self):
                args, sample_weight = args[:-1], args[-1]
        args, kwargs = select(self, self.on, args, kwargs)
        values = super().__call__(*args, **kwargs)
        return jax.tree.map(lambda values: self._reduce(values, sample_weight), values)

    def _reduce(
        self, values: Num[ArrayLike, "..."], sample_weight: Num[ArrayLike, "..."] | None
    ) -> Float[Array, "..."]:
        values = jnp.asarray(values)
        values = values.astype(at_least_float32(values.dtype))
        if sample_weight is not None:
            values = values * weights_for(lambda: path_of(self), values, sample_weight)
        if self.reduction is Reduction.SUM:
            values = jnp.sum(values)
        elif self.reduction is Reduction.SUM_OVER_BATCH_SIZE:
            values = jnp.mean(values)
        return self.weight * values


def _reduction(owner: str, reduction: Reduction | str) -> Reduction:
    try:
        return Reduction(reduction.lower() if isinstance(reduction, str) else reduction)
    except ValueError:
        names = ", ".join(repr(member.value) for member in Reduction)
        raise ValueError(f"elegy.losses.{owner}: reduction must be one of {names}, got {reduction!r}.") from None
