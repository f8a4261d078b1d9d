from __future__ import annotations

import enum
import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.frames import path_of
from elegy.losses.arguments import On, bind, mask_for, positional_count, select, takes, weights_for
from elegy.module import Module
from elegy.precision import at_least_float32


class Reduction(enum.Enum):
    """How a loss makes one number of the values of a batch, each of which was multiplied by its `sample_weight`.

    - `NONE`: not at all.
    - `SUM`: by their sum.
    - `SUM_OVER_BATCH_SIZE`, and `MEAN`, which is the same: by their sum divided by their number. As in Keras, the
      number counts values, not weights: a sample of weight zero counts. What a `mask` leaves out does not count.
    - `MEAN_WITH_SAMPLE_WEIGHT`: by their sum divided by the sum of the weights, as `numpy.average` does it.

    Where there is nothing to divide by, since all is masked or all weights are zero, the result is zero.
    """

    NONE = "none"
    SUM = "sum"
    SUM_OVER_BATCH_SIZE = "sum_over_batch_size"
    MEAN = "mean"
    MEAN_WITH_SAMPLE_WEIGHT = "mean_with_sample_weight"


class Reduced(tp.NamedTuple):
    """What a loss made of the values of a batch, and what it divided their sum by, if that is its own: a sum of
    weights, or the number of values that it counts itself. None for other means, where each sample counts alike, and
    for sums.
    """

    value: Float[Array, "..."]
    divisor: Float[Array, ""] | None


class Loss(Module):
    """Base class of losses. Subclasses define `call`, which returns values that are not reduced yet.

    **Arguments:**

    - `reduction`: a `Reduction` or its name. The default is `"sum_over_batch_size"`.
    - `weight`: the factor of this loss among others.
    - `on`: which part of `y_true` and `y_pred` the loss is about, when they are dicts, lists or tuples: a key, an
      index, or a sequence of them for nested ones. The default is all.
    - `name`, `dtype`: those of `elegy.Module`.

    **Attributes:**

    - `across_samples`: whether the value of a sample depends on the others of the batch, as where they are compared
      with each other. Such a loss of a batch is not made up of those of its parts, so `fit(accumulate=k)` refuses it.
      It is False unless a subclass says otherwise.

    A loss is called with the arguments of its `call` and, by keyword or as one more positional argument, a
    `sample_weight`: one number for each example, or for each value. It multiplies the values before they are reduced,
    whether `call` has a parameter of this name or not. `call` may return a dict, of which each entry is reduced.

    By keyword there is also a `mask` of bools, in the shapes that `sample_weight` may have. Values where it is false
    are zero, whatever they were, and a mean is over the others only, as in Keras.

    ```python
    import elegy
    import jax.numpy as jnp


    class LogCosh(elegy.losses.Loss):
        def call(self, y_true, y_pred):
            return jnp.mean(jnp.log(jnp.cosh(y_pred - y_true)), axis=-1)


    loss = LogCosh(weight=0.5)
    y_true, y_pred = jnp.zeros([4, 1]), jnp.ones([4, 1])
    value = loss(y_true, y_pred, sample_weight=jnp.array([1.0, 0.0, 1.0, 0.0]))
    assert jnp.allclose(value, 0.25 * jnp.log(jnp.cosh(1.0)))
    value = loss(y_true, y_pred, mask=jnp.array([True, False, True, False]))
    assert jnp.allclose(value, 0.5 * jnp.log(jnp.cosh(1.0)))
    ```
    """

    across_samples: bool = False

    def __init__(
        self,
        reduction: Reduction | str | None = None,
        weight: float | int = 1.0,
        on: On = None,
        *,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.reduction = (
            Reduction.SUM_OVER_BATCH_SIZE if reduction is None else _reduction(type(self).__name__, reduction)
        )
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)):
            raise TypeError(
                f"elegy.losses.{type(self).__name__}: weight must be a number, got {weight!r}.\n"
                "  By position there are reduction, weight and on; the others are given by name: name=..."
            )
        self.weight = float(weight)
        self.on = on if on is None or isinstance(on, (str, int)) else tuple(on)

    if tp.TYPE_CHECKING:

        def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any: ...

    def __call__(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """The values of `call`, times `sample_weight`, reduced, times `weight`."""
        reduced = self._around(super().__call__, args, kwargs)
        return jax.tree.map(lambda part: part.value, reduced, is_leaf=lambda part: isinstance(part, Reduced))

    def with_divisors(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """What a call with these arguments gives, each number as a `Reduced`: with what the sum of a mean was divided
        by. `elegy.Model` asks for it, to put the loss of a whole together from those of its parts."""
        return self._around(super().__call__, args, kwargs)

    def _around(self, call: Callable[..., tp.Any], args: tuple[tp.Any, ...], kwargs: dict[str, tp.Any]) -> tp.Any:
        mask = bind(self, args, kwargs).arguments.get("mask") if takes(self, "mask") else kwargs.pop("mask", None)
        if takes(self, "sample_weight"):
            sample_weight = bind(self, args, kwargs).arguments.get("sample_weight")
        else:
            sample_weight = kwargs.pop("sample_weight", None)
            if sample_weight is None and len(args) - 1 == positional_count(self):
                args, sample_weight = args[:-1], args[-1]
        args, kwargs = select(self, self.on, args, kwargs)
        values = call(*args, **kwargs)
        counted = self._counted(*args, **kwargs)
        return jax.tree.map(lambda values: self._reduce(values, sample_weight, mask, counted), values)

    @property
    def has_divisor(self) -> bool:
        """Whether a mean may be over something else than all samples alike."""
        return self.reduction is Reduction.MEAN_WITH_SAMPLE_WEIGHT or type(self)._counted is not Loss._counted

    def _counted(self, *args: tp.Any, **kwargs: tp.Any) -> Bool[Array, "..."] | None:
        """A mask of the values that the arguments of `call` themselves tell; None if all values count."""
        return None

    def _reduce(
        self,
        values: Num[ArrayLike, "..."],
        sample_weight: Num[ArrayLike, "..."] | None,
        mask: tp.Any,
        own: Bool[Array, "..."] | None,
    ) -> Reduced:
        values = jnp.asarray(values)
        values = values.astype(at_least_float32(values.dtype))
        weights = None
        if sample_weight is not None:
            weights = weights_for(lambda: path_of(self), values, sample_weight)
            values = values * weights
        counted = None
        for part in (mask, own):
            if part is not None:
                part = mask_for(lambda: path_of(self), values, part)
                counted = part if counted is None else counted & part
        if counted is not None:
            values = jnp.where(counted, values, 0)
        value, divisor = self._reduced(values, weights, counted)
        is_own = own is not None or self.reduction is Reduction.MEAN_WITH_SAMPLE_WEIGHT and weights is not None
        return Reduced(self.weight * value, divisor if is_own else None)

    def _reduced(
        self, values: Float[Array, "..."], weights: Float[Array, "..."] | None, counted: Bool[Array, "..."] | None
    ) -> Reduced:
        """One number, of values that are weighted and masked, and the divisor of a mean."""
        if self.reduction is Reduction.NONE:
            return Reduced(values, None)
        if self.reduction is Reduction.SUM:
            return Reduced(jnp.sum(values), None)
        if self.reduction is Reduction.MEAN_WITH_SAMPLE_WEIGHT and weights is not None:
            divisor = jnp.sum(weights, where=counted)
        elif counted is not None:
            divisor = jnp.sum(counted).astype(values.dtype)
        else:
            return Reduced(jnp.mean(values), None)
        # Both are chosen, as a division by zero that is not chosen would still give NaN as a gradient.
        return Reduced(jnp.where(divisor == 0, 0, jnp.sum(values) / jnp.where(divisor == 0, 1, divisor)), divisor)


def _reduction(owner: str, reduction: Reduction | str) -> Reduction:
    try:
        return Reduction(reduction.lower() if isinstance(reduction, str) else reduction)
    except ValueError:
        names = ", ".join(repr(member.value) for member in Reduction)
        raise ValueError(f"elegy.losses.{owner}: reduction must be one of {names}, got {reduction!r}.") from None
