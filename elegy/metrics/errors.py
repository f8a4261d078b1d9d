"""Means of the errors of a regression."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from elegy.frames import path_of
from elegy.losses.arguments import comparable
from elegy.metrics.arguments import Mask, Weights
from elegy.metrics.average import Average

_EPSILON = 1e-7


class _Errors(Average):
    direction = "min"

    def update(
        self,
        y_true: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
        y_pred: Num[ArrayLike, "*shape"],
        sample_weight: Weights = None,
        mask: Mask = None,
    ) -> None:
        """**Arguments:**

        - `y_true`: the targets.
        - `y_pred`: the predictions, of the same shape.
        - `sample_weight`, `mask`: weights of the examples, or of each number of them, and which of them count, as for
          `elegy.metrics.Average.count_values`.
        """
        y_true, y_pred = comparable(path_of(self), y_true, y_pred)
        self.count_values(self._errors(y_true, y_pred), sample_weight, mask)

    def _errors(self, y_true: Float[Array, "*shape"], y_pred: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        raise NotImplementedError


class MeanSquaredError(_Errors):
    """The mean of `(y_pred - y_true)**2` over all numbers; 0 if there were none.

    As a loss it is [`elegy.losses.MeanSquaredError`][elegy.losses.MeanSquaredError].

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    error = elegy.metrics.MeanSquaredError()
    assert error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])) == 2
    ```
    """

    def _errors(self, y_true: Float[Array, "*shape"], y_pred: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.square(y_pred - y_true)


class RootMeanSquaredError(MeanSquaredError):
    """The square root of the mean of `(y_pred - y_true)**2` over all numbers; 0 if there were none.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    error = elegy.metrics.RootMeanSquaredError()
    assert error(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 4.0, 3.0, 4.0])) == 1
    ```
    """

    def compute(self) -> Float[Array, ""]:
        """The square root of the mean so far."""
        return jnp.sqrt(self.mean())


class MeanAbsoluteError(_Errors):
    """The mean of `|y_pred - y_true|` over all numbers; 0 if there were none.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    error = elegy.metrics.MeanAbsoluteError()
    assert error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])) == 1
    ```
    """

    def _errors(self, y_true: Float[Array, "*shape"], y_pred: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.abs(y_pred - y_true)


class MeanAbsolutePercentageError(_Errors):
    """The mean of `100 |y_pred - y_true| / |y_true|` over all numbers; 0 if there were none.

    As in Keras it is in per cent, and targets are not taken for less than 1e-7. That of scikit-learn is a fraction.

    **Arguments:** those of `elegy.metrics.Metric`.

    **State:** that of `elegy.metrics.Average`.

    ```python
    import elegy
    import jax.numpy as jnp

    error = elegy.metrics.MeanAbsolutePercentageError()
    assert error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])) == 50
    ```
    """

    def _errors(self, y_true: Float[Array, "*shape"], y_pred: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 100 * jnp.abs(y_pred - y_true) / jnp.maximum(jnp.abs(y_true), _EPSILON)
