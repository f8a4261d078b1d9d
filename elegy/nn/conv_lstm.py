from __future__ import annotations

import functools
import math
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from elegy.frames import path_of
from elegy.nn.inputs import Flag, Nothing, positive, positives, refuse_more
from elegy.nn.lstm import Remembering, next_state
from elegy.nn.recurrent_cell import GatedCell, is_function

# By the number of spatial axes; the channels are last.
_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


class ConvLSTMCell(GatedCell):
    """A step of a long short-term memory whose products are convolutions, for sequences of images: Shi et al.,
    *Convolutional LSTM Network* (2015), equation 3, without the peephole terms `w_c · c`, as in Keras.

    The formulas are those of `elegy.nn.LSTMCell`, with `x * w` and `h * u` for the products `x w` and `h u`.

    **Arguments:**

    - `output_channels`: the number of channels of the state and of the output. That of the input is inferred.
    - `kernel_shape`: the size of the window: one integer for each spatial axis, or a single one for all.
    - `num_spatial_dims`: the number of spatial axes, 1 to 3. The default is the length of `kernel_shape`, or 2 if that
      is a single integer.
    - `stride`, `rate`: those of `elegy.nn.ConvND`, for the convolution of the input. That of the state has stride and
      rate 1.
    - `padding`: `"SAME"` or `"VALID"`, for the convolution of the input. That of the state keeps the size.
    - `activation`: the function in the place of `tanh`.
    - `gate_activation`: the function in the place of `σ`.
    - `with_bias`: whether there is a `b`.
    - `w_init`: the initializer of `w`. The default is `elegy.initializers.VarianceScaling()`.
    - `recurrent_init`: the initializer of `recurrent_w`. The default is, for each gate, orthogonal as a matrix from the
      inputs of the window to the outputs.
    - `b_init`: the initializer of `b`. The default is ones for the forget gate and zeros for the others.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w` of shape `[*kernel_shape, in, 4 * out]`; `recurrent_w` of shape `[*kernel_shape, out, 4 * out]`;
    `b` of shape `[4 * out]`. The gates are in the order `i, f, g, o`.

    The input of a step is `[*batch, *spatial, channels]`, with any number of batch axes; `elegy.nn.RNN` takes `[*batch,
    time, *spatial, channels]`. The state is a pair `(h, c)` of arrays `[*batch, *spatial, out]`, where the spatial
    sizes are those after the convolution of the input. The output is `h`.

    ```python
    import elegy
    import jax.numpy as jnp

    cell = elegy.nn.ConvLSTMCell(8, [3, 3])
    (h, c), y = cell(cell.initial_state([4, 16, 16]), jnp.ones([4, 16, 16, 3]))
    assert y.shape == (4, 16, 16, 8)
    assert cell.w.shape == (3, 3, 3, 32)

    rnn = elegy.nn.RNN(cell, return_sequences=False)
    assert rnn(jnp.ones([4, 10, 16, 16, 3])).shape == (4, 16, 16, 8)
    ```
    """

    gates = 4

    def __init__(
        self,
        output_channels: int,
        kernel_shape: int | Sequence[int],
        *more: Nothing,
        num_spatial_dims: int | None = None,
        stride: int | Sequence[int] = 1,
        rate: int | Sequence[int] = 1,
        padding: str = "SAME",
        activation: Callable[..., tp.Any] = jnp.tanh,
        gate_activation: Callable[..., tp.Any] = jax.nn.sigmoid,
        with_bias: Flag = True,
        w_init: tp.Any = None,
        recurrent_init: tp.Any = None,
        b_init: tp.Any = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = "ConvLSTMCell"
        given = {"output_channels": output_channels, "kernel_shape": kernel_shape}
        refuse_more(layer, given, more, "The channels of the input are inferred", "padding='VALID'")
        self.output_channels = positive(layer, "output_channels", output_channels)
        n = _spatial_dims(kernel_shape, num_spatial_dims)
        self.kernel_shape = positives(layer, "kernel_shape", kernel_shape, n)
        self.stride = positives(layer, "stride", stride, n)
        self.rate = positives(layer, "rate", rate, n)
        if not isinstance(padding, str) or padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"elegy.nn.ConvLSTMCell: padding must be 'SAME' or 'VALID', got {padding!r}.")
        self.padding = padding.upper()
        self._set_up(with_bias, w_init, recurrent_init, Remembering() if b_init is None else b_init)
        self.activation = is_function(layer, "activation", activation)
        self.gate_activation = is_function(layer, "gate_activation", gate_activation)

    @property
    def _size(self) -> int:
        return self.output_channels

    @property
    def _window(self) -> tuple[int, ...]:
        return self.kernel_shape

    @property
    def num_spatial_dims(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel_shape)

    @property
    def num_feature_axes(self) -> int:
        """The number of axes of an input that are neither batch nor time: the spatial ones and that of channels."""
        return self.num_spatial_dims + 1

    def initial_state(self, batch_shape: Sequence[int]) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."]]:
        """The state before the first step: a pair of zeros, in the dtype of the parameters.

        **Arguments:**

        - `batch_shape`: the batch axes and the spatial axes of the input, which is the shape of the input of one step
          without its channels.
        """
        n = self.num_spatial_dims
        if len(batch_shape) < n:
            raise ValueError(
                f"{path_of(self)}: initial_state needs the sizes of the {n} spatial axes of the input, after those of "
                f"the batch, got {list(batch_shape)}."
            )
        x = jax.ShapeDtypeStruct((1, *batch_shape[len(batch_shape) - n :], 1), jnp.float32)
        w = jax.ShapeDtypeStruct((*self._window, 1, 1), jnp.float32)
        spatial = jax.eval_shape(self._of_input, x, w).shape[1:-1]
        shape = (*batch_shape[: len(batch_shape) - n], *spatial)
        return self._zeros(shape), self._zeros(shape)

    def _step(self, state: tp.Any, projected: Array, recurrent_w: Array) -> tuple[tp.Any, Array]:
        hidden, memory = self._fitted(state, projected, "h c")
        gates = projected + self._convolved(hidden, recurrent_w, padding="SAME")
        return next_state(gates, memory, self.activation, self.gate_activation)

    def _of_input(self, x: Array, w: Array) -> Array:
        return self._convolved(x, w, window_strides=self.stride, padding=self.padding, rhs_dilation=self.rate)

    def _convolved(self, x: Array, w: Array, **options: tp.Any) -> Array:
        """A convolution of images with any number of batch axes."""
        n = self.num_spatial_dims
        layout = f"N{_SPATIAL[n]}C"
        options.setdefault("window_strides", (1,) * n)
        convolve = functools.partial(
            jax.lax.conv_general_dilated, dimension_numbers=(layout, f"{_SPATIAL[n]}IO", layout), **options
        )
        batch = x.shape[: x.ndim - n - 1]
        y = convolve(x.reshape(math.prod(batch), *x.shape[x.ndim - n - 1 :]), w)
        return y.reshape(*batch, *y.shape[1:])

    def _check_rank(self, shape: tuple[int, ...]) -> None:
        if len(shape) < self.num_feature_axes:
            raise ValueError(
                f"{path_of(self)}: the input of ConvLSTMCell must have at least {self.num_feature_axes} axes, "
                f"[*batch, *spatial, channels] with {self.num_spatial_dims} spatial axes, got shape {shape}."
            )


def _spatial_dims(kernel_shape: tp.Any, given: tp.Any) -> int:
    """The number of spatial axes."""
    n = len(kernel_shape) if hasattr(kernel_shape, "__len__") else 2
    if given is not None:
        if hasattr(kernel_shape, "__len__") and n != given:
            raise ValueError(
                f"elegy.nn.ConvLSTMCell: kernel_shape={kernel_shape!r} has {n} sizes, and num_spatial_dims={given!r}."
            )
        n = positive("ConvLSTMCell", "num_spatial_dims", given)
    if n not in _SPATIAL:
        raise ValueError(f"elegy.nn.ConvLSTMCell: there may be 1 to 3 spatial axes, got {n}.")
    return n
