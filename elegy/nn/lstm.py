from __future__ import annotations

import dataclasses
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from elegy.nn.inputs import Flag, Nothing, refuse_more
from elegy.nn.recurrent_cell import DenseCell, is_function, product
from elegy.nn.rnn import RNN, refuse_sizes


class LSTMCell(DenseCell):
    """A step of a long short-term memory: Hochreiter and Schmidhuber, *Long Short-Term Memory* (1997), with the forget
    gate of Gers et al., *Learning to Forget* (2000).

    With `σ` the sigmoid function, `·` the product of elements, and `w`, `u` and `b` cut into a part for each gate:

        i = σ(x w_i + h u_i + b_i)        the input gate
        f = σ(x w_f + h u_f + b_f)        the forget gate
        g = tanh(x w_g + h u_g + b_g)     the candidate
        o = σ(x w_o + h u_o + b_o)        the output gate
        c' = f · c + i · g
        h' = o · tanh(c')

    **Arguments:**

    - `units`: the size of the state and of the output. That of the input is inferred.
    - `activation`: the function in the place of `tanh`.
    - `gate_activation`: the function in the place of `σ`.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`.
    - `recurrent_init`: the initializer of `recurrent_w`. The default is an orthogonal matrix for each gate.
    - `b_init`: the initializer of `b`. The default is ones for the forget gate, so that the cell remembers at the
      start, and zeros for the others, as in Keras (Jozefowicz et al., *An Empirical Exploration of Recurrent Network
      Architectures*, 2015, section 2.2). Flax starts with zeros: `b_init=jnp.zeros`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[in, 4 * units]`; `recurrent_w`, the `u` of the formulas, of shape `[units, 4 *
    units]`; `b` of shape `[4 * units]`. The gates are in the order `i, f, g, o`, that of PyTorch, Keras and Equinox.

    The state is a pair `(h, c)` of arrays `[*batch, units]`, as in PyTorch, Keras and Equinox; in Flax it is `(c, h)`.
    The output is `h`.

    ```python
    import elegy
    import jax.numpy as jnp

    cell = elegy.nn.LSTMCell(8)
    (h, c), y = cell(cell.initial_state([4]), jnp.ones([4, 3]))
    assert y.shape == c.shape == (4, 8)
    assert cell.w.shape == (3, 32)
    assert cell.b[8:16].sum() == cell.b.sum() == 8
    ```
    """

    gates = 4

    def __init__(
        self,
        units: int,
        *more: Nothing,
        activation: Callable[..., tp.Any] = jnp.tanh,
        gate_activation: Callable[..., tp.Any] = jax.nn.sigmoid,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        recurrent_init: tp.Any = None,
        b_init: tp.Any = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        refuse_more("LSTMCell", {"units": units}, more, "The size of the input is inferred", "with_bias=False")
        super().__init__(
            units,
            with_bias=with_bias,
            w_init=w_init,
            recurrent_init=recurrent_init,
            b_init=Remembering() if b_init is None else b_init,
            name=name,
            dtype=dtype,
        )
        self.activation = is_function("LSTMCell", "activation", activation)
        self.gate_activation = is_function("LSTMCell", "gate_activation", gate_activation)

    def initial_state(self, batch_shape: Sequence[int]) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."]]:
        """The state before the first step: a pair of zeros `[*batch_shape, units]`, in the dtype of the parameters.

        **Arguments:**

        - `batch_shape`: the batch axes.
        """
        return self._zeros(batch_shape), self._zeros(batch_shape)

    def _step(self, state: tp.Any, projected: Array, recurrent_w: Array) -> tuple[tp.Any, Array]:
        hidden, memory = self._fitted(state, projected, "h c")
        gates = projected + product(hidden, recurrent_w)
        return next_state(gates, memory, self.activation, self.gate_activation)


@dataclasses.dataclass(frozen=True)
class Remembering:
    """Ones for the forget gate, zeros for the others."""

    def __call__(self, shape: Sequence[int], dtype: tp.Any) -> Inexact[Array, "..."]:
        units = shape[0] // 4
        return jnp.zeros(shape, dtype).at[units : 2 * units].set(1)


def next_state(gates: Array, memory: Array, activation: tp.Any, gate_activation: tp.Any) -> tuple[tp.Any, Array]:
    """The state and output of a long short-term memory, given its gates before their functions and the last `c`."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    memory = gate_activation(f) * memory + gate_activation(i) * activation(g)
    hidden = gate_activation(o) * activation(memory)
    return (hidden, memory), hidden


class LSTM(RNN):
    """A layer of `elegy.nn.LSTMCell`: `RNN(LSTMCell(units, ...), ...)`.

    **Arguments:** `units`, `activation`, `gate_activation`, `with_bias`, `w_init`, `recurrent_init`, `b_init`, `dtype`
    are those of `elegy.nn.LSTMCell`, and the others those of `elegy.nn.RNN`. As there, all outputs are returned, where
    Keras returns the last one.

    **Parameters:** those of the cell, below `cell`.

    ```python
    import elegy
    import jax.numpy as jnp

    layer = elegy.nn.LSTM(8, return_state=True)
    y, (h, c) = layer(jnp.ones([4, 20, 3]))
    assert y.shape == (4, 20, 8)
    assert bool(jnp.all(y[:, -1] == h))
    assert layer.cell.w.shape == (3, 32)
    ```
    """

    def __init__(
        self,
        units: int,
        return_sequences: Flag = True,
        *more: Nothing,
        return_state: Flag = False,
        reverse: Flag = False,
        stateful: Flag = False,
        unroll: int | bool = 1,
        activation: Callable[..., tp.Any] = jnp.tanh,
        gate_activation: Callable[..., tp.Any] = jax.nn.sigmoid,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        recurrent_init: tp.Any = None,
        b_init: tp.Any = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        refuse_sizes("LSTM", units, return_sequences, more)
        cell = LSTMCell(
            units,
            activation=activation,
            gate_activation=gate_activation,
            with_bias=with_bias,
            w_init=w_init,
            recurrent_init=recurrent_init,
            b_init=b_init,
            dtype=dtype,
        )
        super().__init__(
            cell,
            return_sequences=return_sequences,
            return_state=return_state,
            reverse=reverse,
            stateful=stateful,
            unroll=unroll,
            name=name,
        )
