from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from elegy.nn.inputs import Flag, Nothing, refuse_more
from elegy.nn.recurrent_cell import DenseCell, is_function, product
from elegy.nn.rnn import RNN, refuse_sizes


class GRUCell(DenseCell):
    """A step of a gated recurrent unit: Cho et al., *Learning Phrase Representations using RNN Encoder-Decoder for
    Statistical Machine Translation* (2014), equations 5 to 8.

    With `σ` the sigmoid function, `·` the product of elements, and `w`, `u` and `b` cut into a part for each gate:

        r = σ(x w_r + h u_r + b_r)                the reset gate
        z = σ(x w_z + h u_z + b_z)                the update gate
        n = tanh(x w_n + b_n + r · (h u_n + d))   the candidate
        h' = (1 - z) · n + z · h

    The reset gate acts after the product with `u_n`, so that there is one product with the state for all gates. It is
    the variant of Flax, PyTorch, Equinox and Keras (`reset_after=True`); in the paper it acts before, on `h`.

    **Arguments:**

    - `units`: the size of the state and of the output. That of the input is inferred.
    - `activation`: the function in the place of `tanh`.
    - `gate_activation`: the function in the place of `σ`.
    - `with_bias`: whether there are `b` and `recurrent_b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`.
    - `recurrent_init`: the initializer of `recurrent_w`. The default is an orthogonal matrix for each gate.
    - `b_init`: the initializer of `b` and of `recurrent_b`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[in, 3 * units]`; `recurrent_w`, the `u` of the formulas, of shape `[units, 3 *
    units]`; `b` of shape `[3 * units]`; `recurrent_b`, the `d` of the candidate, of shape `[units]`. The gates are in
    the order `r, z, n`, that of PyTorch, Equinox and Flax; in Keras it is `z, r, n`. PyTorch and Keras have a second
    bias for all gates: for `r` and `z` it is only added to the first, and so is left out. Flax NNX has no `d`.

    The state is one array `[*batch, units]`, which is also the output.

    ```python
    import elegy
    import jax.numpy as jnp

    cell = elegy.nn.GRUCell(8)
    state, y = cell(cell.initial_state([4]), jnp.ones([4, 3]))
    assert y.shape == (4, 8)
    assert cell.w.shape == (3, 24)
    ```
    """

    recurrent_b: Inexact[Array, "units"]

    gates = 3

    def __init__(
        self,
        units: int,
        *more: Nothing,
        activation: Callable[..., tp.Any] = jnp.tanh,
        gate_activation: Callable[..., tp.Any] = jax.nn.sigmoid,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        recurrent_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        refuse_more("GRUCell", {"units": units}, more, "The size of the input is inferred", "with_bias=False")
        super().__init__(
            units,
            with_bias=with_bias,
            w_init=w_init,
            recurrent_init=recurrent_init,
            b_init=jnp.zeros if b_init is None else b_init,
            name=name,
            dtype=dtype,
        )
        self.activation = is_function("GRUCell", "activation", activation)
        self.gate_activation = is_function("GRUCell", "gate_activation", gate_activation)

    def initial_state(self, batch_shape: Sequence[int]) -> Inexact[Array, "..."]:
        """The state before the first step: zeros `[*batch_shape, units]`, in the dtype of the parameters.

        **Arguments:**

        - `batch_shape`: the batch axes.
        """
        return self._zeros(batch_shape)

    def _step(self, state: tp.Any, projected: Array, recurrent_w: Array) -> tuple[tp.Any, Array]:
        (hidden,) = self._fitted([state], projected, "hidden")
        of_input = jnp.split(projected, 3, axis=-1)
        of_state = jnp.split(product(hidden, recurrent_w), 3, axis=-1)
        reset = self.gate_activation(of_input[0] + of_state[0])
        update = self.gate_activation(of_input[1] + of_state[1])
        candidate = of_state[2]
        if self.with_bias:
            d = self.add_parameter("recurrent_b", [self.units], initializer=self.b_init)
            candidate = candidate + jnp.broadcast_to(d, candidate.shape)
        candidate = self.activation(of_input[2] + reset * candidate)
        hidden = (1 - update) * candidate + update * hidden
        return hidden, hidden


class GRU(RNN):
    """A layer of `elegy.nn.GRUCell`: `RNN(GRUCell(units, ...), ...)`.

    **Arguments:** `units`, `activation`, `gate_activation`, `with_bias`, `w_init`, `recurrent_init`, `b_init`, `dtype`
    are those of `elegy.nn.GRUCell`, and the others those of `elegy.nn.RNN`. As there, all outputs are returned, where
    Keras returns the last one.

    **Parameters:** those of the cell, below `cell`.

    ```python
    import elegy
    import jax.numpy as jnp

    layer = elegy.nn.GRU(8, return_sequences=False)
    assert layer(jnp.ones([4, 20, 3])).shape == (4, 8)
    assert layer.cell.w.shape == (3, 24)
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
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        refuse_sizes("GRU", units, return_sequences, more)
        cell = GRUCell(
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
