from __future__ import annotations

import re
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.devices import beside
from elegy.frames import path_of
from elegy.initializers import VarianceScaling
from elegy.module import Module
from elegy.nn.inputs import converted, positive
from elegy.nn.kernels import drawn_as_matrix

# Letters of axes, with at most one ellipsis among them.
_AXES = r"[a-zA-Z]*(?:\.\.\.)?[a-zA-Z]*"


class Einsum(Module):
    """A linear map that is written as an equation of `jnp.einsum`, whose second operand is the weight.

    `"btd,dhk->bthk"` maps vectors of `d` elements to `h` heads of `k` elements; `"bgd,gde->bge"` has weights of their
    own for each group.

    **Arguments:**

    - `equation`: the axes of the input, of `w` and of the output, `"input,w->output"`, by letters. An ellipsis in the
      input and the output stands for any number of axes, also for none.
    - `output_shape`: the sizes of the axes of the output, but for the first one, which is that of the batch, and for
      those of an ellipsis; where the output begins with an ellipsis, this stands for the batch. None stands for an axis
      of the input. (This is how the `EinsumDense` of Keras is given it.)
    - `bias_axes`: the letters of the output along which `b` differs. The default is no bias.
    - `w_init`: the initializer of `w`. It is asked for a matrix with a row for each input of the sum. The default is
      `elegy.initializers.VarianceScaling()`: a truncated normal of variance `1 / (inputs of the sum)`.
    - `b_init`: the initializer of `b`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** `w`, with the axes of the equation; `b`, with the axes `bias_axes`, in the order of the output.

    The layer computes in the dtype of its parameters, and converts the input to it.

    ```python
    import elegy
    import jax.numpy as jnp

    heads = elegy.nn.Einsum("btd,dhk->bthk", (None, 8, 16), bias_axes="hk")
    assert heads(jnp.ones([2, 7, 64])).shape == (2, 7, 8, 16)
    assert heads.w.shape == (64, 8, 16)
    assert heads.b.shape == (8, 16)

    last_axis = elegy.nn.Einsum("...d,de->...e", 32)
    assert last_axis(jnp.ones([2, 7, 64])).shape == (2, 7, 32)
    ```
    """

    w: Inexact[Array, "..."]
    b: Inexact[Array, "..."]

    def __init__(
        self,
        equation: str,
        output_shape: int | None | Sequence[int | None],
        *,
        bias_axes: str | None = None,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        sizes = output_shape if isinstance(output_shape, (list, tuple)) else (output_shape,)
        self.output_shape = tuple(None if size is None else positive("Einsum", "output_shape", size) for size in sizes)
        self.equation = equation.replace(" ", "")
        self.bias_axes = "" if bias_axes is None else bias_axes
        self.w_init = VarianceScaling() if w_init is None else w_init
        self.b_init = jnp.zeros if b_init is None else b_init
        self._check_equation()

    def call(self, x: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """**Arguments:**

        - `x`: an array with the axes of the equation.

        **Returns:** an array with the axes that the equation gives the output.
        """
        _, kernel, output = _terms(self.equation)
        sizes = self._sizes(jnp.shape(x))
        summed = [axis for axis, letter in enumerate(kernel) if letter not in output]
        shape = [sizes[letter] for letter in kernel]
        w = self.add_parameter("w", shape, initializer=drawn_as_matrix(self, self.w_init, summed))
        x = converted(self, x, w.dtype)
        y = jnp.einsum(self.equation, x, beside(x, w))
        if self.bias_axes:
            axes = {letter: axis for letter, axis in _positions(output, y.ndim).items() if letter in self.bias_axes}
            b = self.add_parameter("b", [sizes[letter] for letter in axes], initializer=self.b_init)
            y = y + jax.lax.broadcast_in_dim(beside(y, b), y.shape, tuple(axes.values()))
        return y

    def _check_equation(self) -> None:
        where = f"elegy.nn.Einsum: equation {self.equation!r}"
        if not re.fullmatch(f"{_AXES},[a-zA-Z]+->{_AXES}", self.equation):
            raise ValueError(
                f"{where} must have the form 'input,w->output', as 'btd,dhk->bthk' and '...d,de->...e' do."
            )
        x, w, y = _terms(self.equation)
        if any(len(set(letters)) < len(letters) for letters in (x.replace(".", ""), w, y.replace(".", ""))):
            raise ValueError(f"{where} has a letter twice in one operand.")
        if ("." in x) != ("." in y):
            raise ValueError(f"{where}: an ellipsis of the input must be in the output too, and the other way round.")
        for letter in sorted({*x, *w, *y} - {"."}):
            if (letter in x) + (letter in w) + (letter in y) < 2:
                raise ValueError(f"{where}: the letter {letter!r} must occur twice at least.")
        listed = _listed(y)
        if len(self.output_shape) != len(listed):
            raise ValueError(
                f"{where} needs an output_shape of {len(listed)} sizes, for the axes {listed!r} of the output (that of "
                f"the batch is not given), got {self.output_shape}."
            )
        given = dict(zip(listed, self.output_shape, strict=True))
        for letter in w:
            if letter not in x and given.get(letter) is None:
                fix = "give its size in output_shape" if letter in given else "let the output begin with the batch"
                raise ValueError(f"{where}: the size of {letter!r} cannot be inferred from the input: {fix}.")
        if set(self.bias_axes) - set(y) or "." in self.bias_axes or len(set(self.bias_axes)) < len(self.bias_axes):
            raise ValueError(
                f"{where}: bias_axes must be different letters of the output {y!r}, got {self.bias_axes!r}."
            )

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The size of each letter."""
        x, _, y = _terms(self.equation)
        letters = x.replace(".", "")
        if len(shape) < len(letters) or (len(shape) > len(letters) and "." not in x):
            raise ValueError(f"{path_of(self)}: the input of Einsum must have the axes {x!r}, got shape {shape}.")
        sizes = {letter: shape[axis] for letter, axis in _positions(x, len(shape)).items()}
        for letter, size in zip(_listed(y), self.output_shape, strict=True):
            if size is not None and sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{path_of(self)}: output_shape={self.output_shape} says that the axis {letter!r} of "
                    f"{self.equation!r} has {size} elements; it has {sizes[letter]} in the input, of shape {shape}."
                )
        return sizes


def _terms(equation: str) -> tuple[str, str, str]:
    operands, output = equation.split("->")
    x, w = operands.split(",")
    return x, w, output


def _listed(output: str) -> str:
    """The letters of the output whose sizes are given: all but that of the batch."""
    return (output if output.startswith(".") else output[1:]).replace(".", "")


def _positions(term: str, ndim: int) -> dict[str, int]:
    """The axis of each letter, of an array of `ndim` axes."""
    before, _, after = term.partition("...")
    return {
        **{letter: axis for axis, letter in enumerate(before)},
        **{letter: ndim - len(after) + axis for axis, letter in enumerate(after)},
    }
