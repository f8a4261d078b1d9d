from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from elegy.nn.inputs import Flag, Nothing, refuse_more
from elegy.nn.recurrent_cell import DenseCell, is_function, product
from elegy.nn.rnn import RNN, refuse_sizes


class SimpleRNNCell(DenseCell):
    """A step of the recurrent network of Elman, *Finding Structure in Time* (1990): `h' = tanh(x w + h u + b)`.

    **Arguments:**

    - `units`: the size of the state and of the output. That of the input is inferred.
    - `activation`: the function in the place of `tanh`.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`.
    - `recurrent_init`: the initializer of `recurrent_w`. The default is an orthogonal matrix.
    - `b_init`: the initializer of `b`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[in, units]`; `recurrent_w`, the `u` of the formula, of shape `[units, units]`; `b` of
    shape `[units]`.

    The state is one array `[*batch, units]`, which is also the output.

    ```python
    import elegy
    import jax.numpy as jnp

    cell = elegy.nn.SimpleRNNCell(8)
    state, y = cell(cell.initial_state([4]), jnp.ones([4, 3]))
    assert y.shape == (4, 8)
    assert cell.recurrent_w.shape == (8, 8)
    ```
    """

    gates = 1

    def __init__(
        self,
        units: int,
        *more: Nothing,
        activation: Callable[..., tp.Any] = jnp.tanh,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        recurrent_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        refuse_more("SimpleRNNCell", {"units": units}, more, "The size of the input is inferred", "with_bias=False")
        super().__init__(
            units,
            with_bias=with_bias,
            w_init=w_init,
            recurrent_init=recurrent_init,
            b_init=jnp.zeros if b_init is None else b_init,
            name=name,
            dtype=dtype,
        )
        self.activation = is_function("SimpleRNNCell", "activation", activation)

    def initial_state(self, batch_shape: Sequence[int]) -> Inexact[Array, "..."]:
        """The state before the first step: zeros `[*batch_shape, units]`, in the dtype of the parameters.

        **Arguments:**

        - `batch_shape`: the batch axes.
        """
        return self._zeros(batch_shape)

    def _step(self, state: tp.Any, projected: Array, recurrent_w: Array) -> tuple[tp.Any, Array]:
        (hidden,) = self._fitted([state], projected, "hidden")
        hidden = self.activation(projected + product(hidden, recurrent_w))
        return hidden, hidden


class SimpleRNN(RNN):
    """A layer of `elegy.nn.SimpleRNNCell`: `RNN(SimpleRNNCell(units, ...), ...)`.

    **Arguments:** `units`, `activation`, `with_bias`, `w_init`, `recurrent_init`, `b_init`, `dtype` are those of
    `elegy.nn.SimpleRNNCell`, and the others those of `elegy.nn.RNN`. As there, all outputs are returned, where Keras
    returns the last one.

    **Parameters:** those of the cell, below `cell`.

    ```python
    import elegy
    import jax.numpy as jnp

    layer = elegy.nn.SimpleRNN(8)
    assert layer(jnp.ones([4, 20, 3])).shape == (4, 20, 8)
    assert layer.cell.w.shape == (3, 8)
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
        with_bias: Flag = True,
        w_init: tp.Any = None,
        recurrent_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        refuse_sizes("SimpleRNN", units, return_sequences, more)
        cell = SimpleRNNCell(
            units,
            activation=activation,
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
