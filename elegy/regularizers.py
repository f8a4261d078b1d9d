"""Regularisers: penalties for the size of parameters, of one at a time or of all."""

from __future__ import annotations

import dataclasses
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, Shaped

from elegy.layout import nodes_in
from elegy.leaves import is_inexact
from elegy.losses.arguments import number
from elegy.losses.loss import Loss
from elegy.module import Module
from elegy.precision import at_least_float32
from elegy.selections import select

Where = str | Callable[[str, tp.Any], tp.Any] | Sequence[str | Callable[[str, tp.Any], tp.Any]]

# ---------------------------------------------------------------------------------------------------------------------
# Of one array
# ---------------------------------------------------------------------------------------------------------------------


def _magnitudes(x: Shaped[ArrayLike, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The absolute values and their squares, of float32 at least."""
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        return jnp.abs(x), jnp.real(x) ** 2 + jnp.imag(x) ** 2
    x = x.astype(at_least_float32(x.dtype))
    return jnp.abs(x), x**2


def _l1_l2(x: Shaped[ArrayLike, "..."], l1: float | int, l2: float | int) -> Float[Array, ""]:
    absolute, squared = _magnitudes(x)
    return l1 * jnp.sum(absolute) + l2 * jnp.sum(squared)


@dataclasses.dataclass(frozen=True)
class L1:
    """`l · sum(|w|)` of an array, which favours zeros.

    **Arguments:**

    - `l`: the factor, not negative.

    It is called with an array of any shape and gives a scalar, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.regularizers.L1(0.5)(jnp.array([[1.0, -3.0]])) == 2
    ```
    """

    l: float | int = 0.01  # noqa: E741

    def __post_init__(self) -> None:
        number("regularizers.L1", "l", self.l)

    def __call__(self, w: Num[ArrayLike, "..."]) -> Float[Array, ""]:
        return _l1_l2(w, self.l, 0)


@dataclasses.dataclass(frozen=True)
class L2:
    """`l · sum(w²)` of an array, which favours small numbers. As in Keras there is no factor of 1/2.

    **Arguments:**

    - `l`: the factor, not negative.

    It is called with an array of any shape and gives a scalar, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp


    class Regularised(elegy.Module):
        def call(self, x):
            w = self.add_parameter("w", [x.shape[-1], 2], initializer=jnp.ones)
            elegy.add_loss("kernel", elegy.regularizers.L2(0.5)(w))
            return x @ w


    with elegy.hooks_context():
        Regularised()(jnp.ones([4, 3]))
        assert elegy.get_losses() == {"kernel_loss": 3}
    ```
    """

    l: float | int = 0.01  # noqa: E741

    def __post_init__(self) -> None:
        number("regularizers.L2", "l", self.l)

    def __call__(self, w: Num[ArrayLike, "..."]) -> Float[Array, ""]:
        return _l1_l2(w, 0, self.l)


@dataclasses.dataclass(frozen=True)
class L1L2:
    """`l1 · sum(|w|) + l2 · sum(w²)` of an array.

    **Arguments:**

    - `l1`, `l2`: the factors, not negative.

    It is called with an array of any shape and gives a scalar, of float32 at least.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.regularizers.L1L2(l1=0.5, l2=0.1)(jnp.array([[1.0, -3.0]])) == 3
    ```
    """

    l1: float | int = 0.0
    l2: float | int = 0.0

    def __post_init__(self) -> None:
        number("regularizers.L1L2", "l1", self.l1)
        number("regularizers.L1L2", "l2", self.l2)

    def __call__(self, w: Num[ArrayLike, "..."]) -> Float[Array, ""]:
        return _l1_l2(w, self.l1, self.l2)


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """`factor` times the mean of `|cos|` of the angles between the rows of a matrix, over all pairs of them.

    It is zero if they are orthogonal. Their lengths do not matter.

    **Arguments:**

    - `factor`: not negative.
    - `mode`: `"rows"` or `"columns"`. The columns of the weight of a `Linear` layer belong to its outputs.

    It is called with a matrix and gives a scalar, of float32 at least: zero if there is only one row. A row of zeros is
    orthogonal to all.

    ```python
    import elegy
    import jax.numpy as jnp

    w = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert jnp.allclose(elegy.regularizers.Orthogonal(0.3)(w), 0.1)
    ```
    """

    factor: float | int = 0.01
    mode: str = "rows"

    def __post_init__(self) -> None:
        number("regularizers.Orthogonal", "factor", self.factor)
        if self.mode not in ("rows", "columns"):
            raise ValueError(f"elegy.regularizers.Orthogonal: mode must be 'rows' or 'columns', got {self.mode!r}.")

    def __call__(self, w: Num[ArrayLike, "..."]) -> Float[Array, ""]:
        w = jnp.asarray(w)
        if w.ndim != 2:
            raise ValueError(
                f"elegy.regularizers.Orthogonal: expected a matrix, got shape {w.shape}.\n"
                "  Of a convolution take its filters as columns: w.reshape(-1, w.shape[-1])."
            )
        if self.mode == "columns":
            w = w.T
        if w.shape[0] < 2:
            return jnp.zeros([], at_least_float32(w.dtype))
        w = w.astype(at_least_float32(w.dtype))
        squared = jnp.sum(w**2, axis=-1, keepdims=True)
        # The length of a row of zeros has no gradient, so it is not asked for.
        unit = w / jnp.sqrt(jnp.where(squared == 0, 1, squared))
        pairs = jnp.triu_indices(w.shape[0], 1)
        return self.factor * jnp.mean(jnp.abs(unit @ unit.T)[pairs])


# ---------------------------------------------------------------------------------------------------------------------
# Of all parameters
# ---------------------------------------------------------------------------------------------------------------------


class GlobalL1L2(Loss):
    """`l1 · sum(|w|) + l2 · sum(w²)` over all trainable parameters of a module.

    In a `Model` it is one of the losses: the model gives it the parameters. What is shared by several modules counts
    once, and what is frozen and what is state, such as running statistics, does not count.

    **Arguments:**

    - `l1`, `l2`: the factors, not negative.
    - `where`: which of the parameters count, as for `elegy.select`: a path with wildcards, such as `"**/w"`, by which
      biases are left out, or a function of a path and an array; or several of these. The default is all.
    - `weight`, `name`, `dtype`: those of `elegy.losses.Loss`. The default name is `"global_l1_l2"`, so that a model
      logs `"global_l1_l2_loss"`.

    All but the factors are given by keyword. `sample_weight` has no part in it, nor has the size of a batch.

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(2, w_init=elegy.initializers.Constant(2.0)).init(jnp.ones([1, 3]))
    assert elegy.regularizers.GlobalL1L2(l1=1, l2=0.5, where="w")(linear) == 12 + 0.5 * 24
    ```
    """

    def __init__(
        self,
        l1: float | int = 0.0,
        l2: float | int = 0.0,
        *,
        where: Where | None = None,
        weight: float | int = 1.0,
        name: str | None = "global_l1_l2",
        dtype: tp.Any = None,
    ):
        super().__init__(weight=weight, name=name, dtype=dtype)
        owner = f"regularizers.{type(self).__name__}"
        self.l1, self.l2 = number(owner, "l1", l1), number(owner, "l2", l2)
        self.where = where if where is None or isinstance(where, str) or callable(where) else tuple(where)

    def call(self, parameters: tp.Any) -> Float[Array, ""]:
        """**Arguments:**

        - `parameters`: a module or a list, tuple or dict of modules, or `module.get_parameters(trainable=True)`, or any
          other pytree of arrays.

        **Returns:** a scalar, of float32 at least; zero if there is no parameter at all.

        **Raises:** `SelectionError` if `where` fits none of them.
        """
        if isinstance(parameters, Module):
            parameters = parameters.get_parameters(trainable=True)
        elif nodes_in(parameters):
            parameters = select(parameters, trainable=True).get()
        if self.where is not None:
            parts = self.where if isinstance(self.where, tuple) else (self.where,)
            parameters = select(parameters, *parts).get()
        penalties = [_l1_l2(leaf, self.l1, self.l2) for leaf in jax.tree.leaves(parameters) if is_inexact(leaf)]
        dtype = at_least_float32(*(penalty.dtype for penalty in penalties))
        return sum((penalty.astype(dtype) for penalty in penalties), jnp.zeros([], dtype))


class GlobalL1(GlobalL1L2):
    """`l · sum(|w|)` over all trainable parameters of a module: `GlobalL1L2(l1=l)`.

    **Arguments:**

    - `l`: the factor, not negative.
    - `where`, `weight`, `name`, `dtype`: those of `elegy.regularizers.GlobalL1L2`. The default name is
      `"l1_regularization"`, so that a model logs `"l1_regularization_loss"`.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.regularizers.GlobalL1(0.5)({"w": jnp.array([1.0, -3.0]), "b": jnp.array([2.0])}) == 3
    ```
    """

    def __init__(
        self,
        l: float | int = 0.01,  # noqa: E741
        *,
        where: Where | None = None,
        weight: float | int = 1.0,
        name: str | None = "l1_regularization",
        dtype: tp.Any = None,
    ):
        l = number("regularizers.GlobalL1", "l", l)  # noqa: E741
        super().__init__(l1=l, where=where, weight=weight, name=name, dtype=dtype)


class GlobalL2(GlobalL1L2):
    """`l · sum(w²)` over all trainable parameters of a module: `GlobalL1L2(l2=l)`.

    **Arguments:**

    - `l`: the factor, not negative.
    - `where`, `weight`, `name`, `dtype`: those of `elegy.regularizers.GlobalL1L2`. The default name is
      `"l2_regularization"`, so that a model logs `"l2_regularization_loss"`.

    ```python
    import elegy
    import jax.numpy as jnp

    assert elegy.regularizers.GlobalL2(0.5)({"w": jnp.array([1.0, -3.0]), "b": jnp.array([2.0])}) == 7
    ```
    """

    def __init__(
        self,
        l: float | int = 0.01,  # noqa: E741
        *,
        where: Where | None = None,
        weight: float | int = 1.0,
        name: str | None = "l2_regularization",
        dtype: tp.Any = None,
    ):
        l = number("regularizers.GlobalL2", "l", l)  # noqa: E741
        super().__init__(l2=l, where=where, weight=weight, name=name, dtype=dtype)
