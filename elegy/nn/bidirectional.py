from __future__ import annotations

import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Integer, Num

from elegy.errors import show_value
from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.rnn import RNN


class Bidirectional(Module):
    """Runs two recurrent layers over a sequence, one in each direction, and merges their outputs: Schuster and Paliwal,
    *Bidirectional Recurrent Neural Networks* (1997).

    **Arguments:**

    - `forward`: a layer such as `elegy.nn.LSTM(64)`, or a function without arguments that constructs one.
    - `backward`: a layer that runs in the other direction. The default is one like `forward`, with parameters of its
      own: a copy of it, which is possible as long as it has no parameters, or another one that the function constructs.
    - `merge`: what becomes of the outputs: `"concat"` puts them side by side along the last axis, `"sum"`, `"mul"` and
      `"average"` add, multiply and average them, and None gives the pair.
    - `name`: that of `elegy.Module`.

    **Parameters:** those of the two layers, below `forward` and `backward`.

    Output `t` has seen the inputs up to `t` in one direction, and from `t` on in the other. Without `return_sequences`
    the last outputs are merged: each layer has seen the whole sequence.

    ```python
    import elegy
    import jax.numpy as jnp

    layer = elegy.nn.Bidirectional(elegy.nn.LSTM(8))
    y = layer(jnp.ones([4, 20, 3]), lengths=jnp.array([20, 7, 1, 0]))
    assert y.shape == (4, 20, 16)
    assert layer.backward.cell.w.shape == (3, 32)
    assert bool(jnp.any(layer.backward.cell.w != layer.forward.cell.w))
    ```
    """

    def __init__(
        self,
        forward: RNN | Callable[[], RNN],
        backward: RNN | None = None,
        *,
        merge: str | None = "concat",
        name: str | None = None,
    ):
        super().__init__(name=name)
        first: tp.Any = forward if isinstance(forward, Module) or not callable(forward) else forward()
        second: tp.Any = backward
        for argument, layer in (("forward", first), ("backward", second)):
            if not isinstance(layer, RNN) and not (argument == "backward" and layer is None):
                raise TypeError(
                    f"elegy.nn.Bidirectional: {argument} must be an elegy.nn.RNN, such as elegy.nn.LSTM(64), got "
                    f"{show_value(layer)}."
                )
        if merge is not None and merge not in _MERGES:
            raise ValueError(
                f"elegy.nn.Bidirectional: merge must be one of {', '.join(_MERGES)} or None, got {merge!r}."
            )
        if second is None:
            second = _like(first) if first is forward else tp.cast(tp.Any, forward)().in_reverse()
        _check_pair(first, second)
        self.forward = first
        self.backward = second
        self.merge = merge

    def call(
        self,
        x: Num[ArrayLike, "..."],
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
        lengths: Integer[ArrayLike, "..."] | None = None,
        initial_state: tp.Any = (None, None),
    ) -> tp.Any:
        """**Arguments:**

        - `x`, `mask`, `lengths`: those of `elegy.nn.RNN`; both layers get the same.
        - `initial_state`: a pair, the initial state of `forward` and that of `backward`; None for that of the cell.

        **Returns:** the merged outputs; if the layers return their state, the pair of that and the pair of states.
        """
        if not isinstance(initial_state, (tuple, list)) or len(initial_state) != 2:
            raise ValueError(
                f"{path_of(self)}: initial_state must be a pair, that of forward and that of backward, got "
                f"{show_value(initial_state)}."
            )
        layers = (self.forward, self.backward)
        outputs = [
            layer(x, mask=mask, lengths=lengths, initial_state=state)
            for layer, state in zip(layers, initial_state, strict=True)
        ]
        if not self.forward.return_state:
            return self._merged(*outputs)
        (forward, forward_state), (backward, backward_state) = outputs
        return self._merged(forward, backward), (forward_state, backward_state)

    def _merged(self, forward: tp.Any, backward: tp.Any) -> tp.Any:
        if self.merge is None:
            return forward, backward
        return jax.tree.map(_MERGES[self.merge], forward, backward)


def _concat(forward: Array, backward: Array) -> Array:
    return jnp.concatenate([forward, backward], axis=-1)


_MERGES: dict[str, Callable[[tp.Any, tp.Any], tp.Any]] = {
    "concat": _concat,
    "sum": jnp.add,
    "mul": jnp.multiply,
    "average": lambda forward, backward: (forward + backward) / 2,
}


def _like(forward: RNN) -> RNN:
    """A layer that runs in the other direction, and gets parameters of its own."""
    if jax.tree.leaves(forward):
        raise ValueError(
            "elegy.nn.Bidirectional: forward has parameters already, and a copy of it would have the same ones.\n"
            "  Give the other layer, backward=..., or a function that constructs one: "
            "elegy.nn.Bidirectional(lambda: elegy.nn.LSTM(64))."
        )
    return forward.in_reverse()


def _check_pair(forward: RNN, backward: RNN) -> None:
    if forward.reverse == backward.reverse:
        direction = "from the last step to the first" if forward.reverse else "from the first step to the last"
        raise ValueError(
            f"elegy.nn.Bidirectional: forward and backward both run {direction}.\n"
            f"  Construct one of them with reverse={not forward.reverse}."
        )
    for name in ("return_sequences", "return_state"):
        if getattr(forward, name) != getattr(backward, name):
            raise ValueError(
                f"elegy.nn.Bidirectional: forward has {name}={getattr(forward, name)} and backward has "
                f"{name}={getattr(backward, name)}, so their outputs cannot be merged: they must be equal."
            )
