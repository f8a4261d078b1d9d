"""What a cell of a recurrent network is, and what the cells of the library share."""

from __future__ import annotations

import dataclasses
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.calls import compact
from elegy.devices import for_product, for_sum
from elegy.draws import next_rng_key
from elegy.errors import show_value
from elegy.frames import path_of
from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.inputs import boolean, converted, positive
from elegy.precision import at_least_float32
from elegy.transaction import held


class RecurrentCell(Module):
    """One step of a recurrent network. Base class of the cells, and the protocol by which `elegy.nn.RNN` runs them.

    A cell has two methods:

    - `initial_state(batch_shape)` gives the state before the first step: an array, or a pytree of arrays.
      `batch_shape` is the shape of the input of one step without its last axis. The arrays of the state begin with the
      batch axes.
    - `call(state, x)` returns `(state, y)`: the state after the step, like the one before it, and the output.

    Any module with these methods will do; a subclass gets clear errors where it lacks one. Inside `call`, a cell may
    create layers, draw random numbers, keep state and declare losses like any other module.

    A cell may further have

    - `num_feature_axes`, the number of axes of the input that are neither batch nor time: 1 if it says nothing, and for
      images of `[height, width, channels]` 3.
    - `project(x)` and `step(state, projected)`, marked by `elegy.compact`, into which its `call` splits:
      `cell(state, x) == cell.step(state, cell.project(x))`. `RNN` then projects all steps at once, before the loop, as
      it does with the cells of the library: a step has one matrix product less, and the gradient of `w` is one product.
      In training that is faster, and a forward pass by itself is slower, since the products are written to memory and
      read again (see the benchmarks). `project` takes any number of leading axes. A subclass that overrides `call`
      alone is run by its `call`.

    ```python
    import elegy
    import jax.numpy as jnp


    class MovingAverage(elegy.nn.RecurrentCell):
        def initial_state(self, batch_shape):
            return jnp.zeros([*batch_shape, 3])

        def call(self, state, x):
            state = 0.9 * state + 0.1 * x
            return state, state


    averages = elegy.nn.RNN(MovingAverage())(jnp.ones([2, 50, 3]))
    assert averages.shape == (2, 50, 3)
    assert jnp.allclose(averages[:, -1], 1 - 0.9**50)
    ```
    """

    @property
    def num_feature_axes(self) -> int:
        """The number of axes of an input that are neither batch nor time."""
        return 1

    def initial_state(self, batch_shape: Sequence[int]) -> tp.Any:
        """The state before the first step.

        **Arguments:**

        - `batch_shape`: the shape of the input of one step, without its last axis.
        """
        raise NotImplementedError(
            f"{path_of(self)}: {type(self).__name__} does not define `initial_state`.\n"
            "  Define initial_state(self, batch_shape), which returns the state before the first step, such as "
            "jnp.zeros([*batch_shape, self.units])."
        )

    def call(self, state: tp.Any, x: tp.Any) -> tuple[tp.Any, tp.Any]:
        """One step.

        **Returns:** `(state, y)`.
        """
        raise NotImplementedError(
            f"{path_of(self)}: {type(self).__name__} does not define `call`.\n"
            "  Define call(self, state, x), which returns (state, y)."
        )


def runs_by_parts(cell: Module) -> bool:
    """Whether a step of a cell is `cell.step(state, cell.project(x))`: not where a subclass overrides `call` alone."""
    order = type(cell).__mro__
    first = {name: next((n for n, cls in enumerate(order) if name in vars(cls)), None) for name in _PARTS}
    project, step, call = (first[name] for name in _PARTS)
    return project is not None and step is not None and call is not None and call >= max(project, step)


_PARTS = ("project", "step", "call")


@dataclasses.dataclass(frozen=True)
class OrthogonalGates:
    """An orthogonal matrix for each gate, side by side."""

    gates: int

    def __call__(self, shape: Sequence[int], dtype: tp.Any) -> Inexact[Array, "..."]:
        each = (*shape[:-1], shape[-1] // self.gates)
        # The decomposition that makes a matrix orthogonal has no half precision.
        draw = jax.nn.initializers.orthogonal()
        gates = [draw(next_rng_key(), each, at_least_float32(dtype)) for _ in range(self.gates)]
        return jnp.concatenate(gates, axis=-1).astype(dtype)


class GatedCell(RecurrentCell):
    """A cell whose gates are computed together: by one product with the input, and one with the hidden state.

    Subclasses fix the number of gates and say how a step follows from them.
    """

    w: Inexact[Array, "*window in columns"]
    recurrent_w: Inexact[Array, "*window units columns"]
    b: Inexact[Array, "columns"]

    gates: tp.ClassVar[int]

    @property
    def _size(self) -> int:
        """The size of the last axis of the state."""
        raise NotImplementedError

    @property
    def _window(self) -> tuple[int, ...]:
        """The axes of a weight before that of its inputs."""
        return ()

    def _set_up(self, with_bias: tp.Any, w_init: tp.Any, recurrent_init: tp.Any, b_init: tp.Any) -> None:
        """Takes the arguments that all cells have. Called by the constructor."""
        self.with_bias = boolean(type(self).__name__, "with_bias", with_bias)
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.recurrent_init = OrthogonalGates(self.gates) if recurrent_init is None else recurrent_init
        self.b_init = b_init

    def call(self, state: tp.Any, x: Num[ArrayLike, "..."]) -> tuple[tp.Any, Inexact[Array, "..."]]:
        """One step.

        **Arguments:**

        - `state`: that of `initial_state`, or of the step before.
        - `x`: the input of the step.

        **Returns:** `(state, y)`, the next state and the output.
        """
        return self.step(state, self.project(x))

    @compact
    def project(self, x: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """What the input adds to the gates, `x w + b`, for one step or for many.

        **Arguments:**

        - `x`: inputs, with any number of leading axes.
        """
        self._check_rank(jnp.shape(x))
        columns = self.gates * self._size
        w = self.add_parameter("w", [*self._window, jnp.shape(x)[-1], columns], initializer=self.w_init)
        y = self._of_input(converted(self, x, w.dtype), w)
        if self.with_bias:
            b = self.add_parameter("b", [columns], initializer=self.b_init)
            y = y + jnp.broadcast_to(for_sum(b, y), y.shape)
        return y

    @compact
    def step(self, state: tp.Any, projected: Inexact[Array, "..."]) -> tuple[tp.Any, Inexact[Array, "..."]]:
        """One step, given what `project` made of its input.

        **Arguments:**

        - `state`: as in `call`.
        - `projected`: an output of `project`.

        **Returns:** `(state, y)`.
        """
        shape = [*self._window, self._size, self.gates * self._size]
        recurrent_w = self.add_parameter("recurrent_w", shape, initializer=self.recurrent_init)
        return self._step(state, projected, recurrent_w)

    def initial_state(self, batch_shape: Sequence[int]) -> tp.Any:
        """The state before the first step: zeros, in the dtype of the parameters."""
        raise NotImplementedError

    def _step(self, state: tp.Any, projected: Array, recurrent_w: Array) -> tuple[tp.Any, Array]:
        raise NotImplementedError

    def _of_input(self, x: Array, w: Array) -> Array:
        return product(x, w)

    def _check_rank(self, shape: tuple[int, ...]) -> None:
        if len(shape) == 0:
            raise ValueError(
                f"{path_of(self)}: the input of {type(self).__name__} must have at least one axis, got a scalar."
            )

    def _zeros(self, shape: Sequence[int]) -> Array:
        dtype = self.recurrent_w.dtype if "recurrent_w" in held(self) else self.dtype
        return jnp.zeros((*shape, self._size), dtype)

    def _fitted(self, states: tp.Any, projected: Array, names: str) -> tuple[Array, ...]:
        """The arrays of a state, in the dtype of the cell. `names` says what they are."""
        shape = (*projected.shape[:-1], self._size)
        count = len(names.split())
        if not isinstance(states, (tuple, list)) or len(states) != count:
            raise TypeError(
                f"{path_of(self)}: the state of {type(self).__name__} is a pair ({', '.join(names.split())}), got "
                f"{show_value(states)}.\n  The first state is that of initial_state, and a cell is called as "
                "cell(state, x)."
            )
        for name, array in zip(names.split(), states, strict=True):
            if jnp.shape(array) != shape:
                raise ValueError(
                    f"{path_of(self)}: the state {name} has shape {jnp.shape(array)}, and this input asks for {shape}."
                    "\n  The first state is that of initial_state, given the shape of the input of one step without "
                    "its last axis."
                )
        return tuple(converted(self, array, projected.dtype) for array in states)


class DenseCell(GatedCell):
    """A gated cell of vectors."""

    def __init__(
        self,
        units: int,
        *,
        with_bias: tp.Any,
        w_init: tp.Any,
        recurrent_init: tp.Any,
        b_init: tp.Any,
        name: str | None,
        dtype: tp.Any,
    ):
        super().__init__(name=name, dtype=dtype)
        self.units = positive(type(self).__name__, "units", units)
        self._set_up(with_bias, w_init, recurrent_init, b_init)

    @property
    def _size(self) -> int:
        return self.units


def product(x: Array, w: Array) -> Array:
    """`x w`, on an explicit mesh too."""
    w, out_sharding = for_product(x, w)
    return jnp.dot(x, w, out_sharding=out_sharding)


def is_function(layer: str, name: str, value: tp.Any) -> tp.Any:
    """An argument that must be a function of an array."""
    if not callable(value):
        raise TypeError(f"elegy.nn.{layer}: {name} must be a function, such as jnp.tanh, got {show_value(value)}.")
    return value
