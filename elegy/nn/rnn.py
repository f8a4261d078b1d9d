from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Integer, Num

from elegy import tracing
from elegy.devices import sharded_like
from elegy.errors import show_value
from elegy.frames import path_of
from elegy.kept import compiled
from elegy.layout import change
from elegy.module import Module
from elegy.nn.inputs import Flag, boolean, positive, refuse_more
from elegy.nn.recurrent_cell import runs_by_parts
from elegy.transaction import held
from elegy.transforms.jit import jit
from elegy.transforms.scan import scan


def refuse_sizes(layer: str, units: int, return_sequences: tp.Any, more: tuple[tp.Any, ...]) -> None:
    """Refuses arguments by position after `return_sequences`, and a size in its place, as other libraries have it."""
    if more or (isinstance(return_sequences, int) and return_sequences > 1):
        given = (return_sequences, *more)
        refuse_more(layer, {"units": units}, given, "The size of the input is inferred", "reverse=True")


class RNN(Module):
    """Runs a recurrent cell over the steps of a sequence, by a scan: the cell is compiled once.

    **Arguments:**

    - `cell`: a module with the two methods of `elegy.nn.RecurrentCell`, such as `elegy.nn.LSTMCell(64)`.
    - `return_sequences`: whether to return the outputs of all steps, else that of the last one. (The default of Keras
      is False.)
    - `return_state`: whether to return the final state too.
    - `reverse`: whether to run from the last step to the first. Output `t` is still that of input `t`; the *last*
      output is that of the first input. (Keras, and Flax by default, return the outputs in the order in which they
      were computed.)
    - `stateful`: whether the final state is kept, and is the initial state of the next call.
    - `unroll`: how many steps one iteration of the loop runs; True for all.
    - `name`: that of `elegy.Module`.

    **Parameters:** those of the cell, below `cell`.

    **State:** with `stateful`, `state`, which is like the state of the cell.

    **Sequences of different lengths** are padded to one length, and `lengths` or `mask` says which steps are there.
    Steps that are not keep the state as it is, and their outputs are zeros (as in PyTorch's packed sequences; Keras
    repeats the output before unless told `zero_output_for_mask`). What the input holds there does not matter. The last
    output is that of the last step that is there. With `reverse`, the steps that are there run in reverse. A sequence
    of length 0 ends in the initial state, and its last output is zeros. (The cell computes a step for everything, with
    zeros as input where nothing is: its own state, losses and metrics, if it has such, count those steps too.)

    **A layer that is stateful** starts from the initial state of the cell, and keeps its final state from call to call
    in `state`, which is no trainable parameter: long sequences can be fed piece by piece. `reset_state()` starts again;
    `rnn.apply(method="reset_state")[1]` is a copy that does. The batch must keep its shape.

    If the cell has `project` and `step`, as those of the library have, all steps are projected before the loop. Else
    the loop runs the cell itself; it may use layers that draw random numbers, keep state or declare losses, as
    `elegy.scan` allows.

    ```python
    import elegy
    import jax.numpy as jnp

    rnn = elegy.nn.RNN(elegy.nn.GRUCell(8), return_state=True)
    x = jnp.ones([4, 20, 3])
    y, state = rnn(x, lengths=jnp.array([20, 7, 1, 0]))
    assert y.shape == (4, 20, 8) and state.shape == (4, 8)
    assert bool(jnp.all(y[1, 6] == state[1]) and jnp.all(y[1, 7:] == 0))
    ```

    A sequence in pieces:

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([4, 20, 3])
    stateful = elegy.nn.RNN(elegy.nn.GRUCell(8), stateful=True)
    first, second = stateful(x[:, :10]), stateful(x[:, 10:])
    stateful.reset_state()
    assert jnp.allclose(stateful(x)[:, 10:], second, atol=1e-5)
    ```
    """

    def __init__(
        self,
        cell: tp.Any,
        return_sequences: Flag = True,
        return_state: Flag = False,
        reverse: Flag = False,
        *,
        stateful: Flag = False,
        unroll: int | bool = 1,
        name: str | None = None,
    ):
        super().__init__(name=name)
        layer = type(self).__name__
        if not isinstance(cell, Module) or not callable(getattr(cell, "initial_state", None)):
            raise TypeError(
                f"elegy.nn.{layer}: cell must be a module with the methods initial_state and call, got "
                f"{show_value(cell)}.\n"
                "  Give it a cell, such as elegy.nn.LSTMCell(64); elegy.nn.RecurrentCell says what a cell of your own "
                "needs."
            )
        self.return_sequences = boolean(layer, "return_sequences", return_sequences)
        self.return_state = boolean(layer, "return_state", return_state)
        self.reverse = boolean(layer, "reverse", reverse)
        self.stateful = boolean(layer, "stateful", stateful)
        self.unroll = unroll if isinstance(unroll, bool) else positive(layer, "unroll", unroll)
        self.cell = cell

    def call(
        self,
        x: Num[ArrayLike, "..."],
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
        lengths: Integer[ArrayLike, "..."] | None = None,
        initial_state: tp.Any = None,
    ) -> tp.Any:
        """**Arguments:**

        - `x`: sequences `[*batch, time, features]`, with any number of batch axes; `[*batch, time, *spatial, channels]`
          for a cell of images. There may be no steps at all.
        - `mask`: `[*batch, time]`, True where a step is there.
        - `lengths`: `[*batch]`, the number of steps that are there, from the first. Beyond `time` it counts as `time`.
        - `initial_state`: the state before the first step, like what `cell.initial_state` gives. The default is that,
          or with `stateful` the final state of the call before.

        **Returns:** the outputs `[*batch, time, units]`, or without `return_sequences` the last one `[*batch, units]`;
        with `return_state` the pair of that and the final state.
        """
        x = jnp.asarray(x)
        feature_axes = getattr(self.cell, "num_feature_axes", 1)
        if x.ndim < feature_axes + 1:
            axes = "[*batch, time, features]" if feature_axes == 1 else "[*batch, time, *spatial, channels]"
            raise ValueError(
                f"{path_of(self)}: the input must have at least {feature_axes + 1} axes, {axes}, got shape {x.shape}."
            )
        *batch, time = x.shape[: x.ndim - feature_axes]
        mask = self._mask((*batch, time), mask, lengths)
        start = self._start((*batch, *x.shape[x.ndim - feature_axes : -1]), initial_state)
        y, final = self._compiled(x, mask, start)
        if self.stateful:
            # In its own dtype, which the parameters need not have: they may have been cast since.
            old = jax.tree.map(jnp.asarray, self.state)
            kept = jax.tree.map(lambda new, old: sharded_like(new.astype(old.dtype), old), final, old)
            self.update_parameter("state", kept)
        return (y, final) if self.return_state else y

    def _mask(self, shape: tuple[int, ...], mask: tp.Any, lengths: tp.Any) -> Array | None:
        """Which steps are there, `[*batch, time]`; None for all."""
        if mask is not None and lengths is not None:
            raise ValueError(f"{path_of(self)}: mask and lengths both say which steps are there: give one of them.")
        if mask is not None:
            mask = jnp.asarray(mask)
            if mask.dtype != jnp.bool_ or mask.shape != shape:
                raise ValueError(
                    f"{path_of(self)}: mask must be bool{list(shape)}, with an entry for each step, got "
                    f"{show_value(mask)}."
                )
            return mask
        if lengths is None:
            return None
        lengths = jnp.asarray(lengths)
        if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != shape[:-1]:
            raise ValueError(
                f"{path_of(self)}: lengths must be integers of shape {shape[:-1]}, one for each sequence, got "
                f"{show_value(lengths)}."
            )
        steps = jax.lax.broadcasted_iota(lengths.dtype, shape, len(shape) - 1)
        return steps < jnp.broadcast_to(lengths[..., None], shape)

    def _start(self, batch_shape: tuple[int, ...], given: tp.Any) -> tp.Any:
        """The state before the first step."""
        fresh = self.cell.initial_state(batch_shape)
        start = fresh
        if self.stateful:
            start = self.add_parameter("state", initializer=lambda: fresh, trainable=False)
            if _shapes(start) != _shapes(fresh):
                raise ValueError(
                    f"{path_of(self)}: the state kept from the call before is {show_value(start)}, and this batch asks "
                    f"for {show_value(fresh)}.\n"
                    "  A stateful layer takes batches of one shape. For another one use a copy with another state: "
                    f"equinox.tree_at(lambda rnn: rnn.state, rnn, rnn.cell.initial_state({list(batch_shape)}))."
                )
        if given is not None:
            start = given
        if _shapes(start) != _shapes(fresh):
            raise ValueError(
                f"{path_of(self)}: initial_state is {show_value(given)}, and must be like {show_value(fresh)}, which "
                "is what the cell starts with."
            )
        return jax.tree.map(lambda leaf, like: jnp.asarray(leaf).astype(like.dtype), start, fresh)

    def reset_state(self, state: tp.Any = None) -> None:
        """Sets the state of a stateful layer to that before the first call.

        **Arguments:**

        - `state`: what to start from. The default is zeros, as the cells of the library do.
        """
        if not self.stateful:
            raise ValueError(
                f"{path_of(self)}: reset_state() of a layer that keeps no state.\n"
                f"  Construct it by {type(self).__name__}(..., stateful=True)."
            )
        if "state" in held(self):  # else it never ran, and starts from the beginning anyway
            state = jax.tree.map(jnp.zeros_like, self.state) if state is None else state
            self.set_parameters({"state": state})

    def _compiled(self, x: Array, mask: Array | None, start: tp.Any) -> tuple[tp.Any, tp.Any]:
        """As `_run`, which is compiled once where only the arguments can change: by itself a scan is compiled at each
        call, since the function that it scans is a new one."""
        if tracing.is_traced():
            return self._run(x, mask, start)
        run = compiled(self, "run", self._compile)
        if not run:
            return self._run(x, mask, start)
        out = run[0](x, mask, start)
        if run[0].has_constants:
            run.clear()
        return out

    def _compile(self) -> list[tp.Any]:
        function: tp.Any = jit(self._run)
        function.has_constants = False
        return [function]

    def _run(self, x: Array, mask: Array | None, start: tp.Any) -> tuple[tp.Any, tp.Any]:
        """The outputs, or the last one, and the final state."""
        time_axis = x.ndim - getattr(self.cell, "num_feature_axes", 1) - 1
        xs, there = jnp.moveaxis(x, time_axis, 0), None
        start = jax.tree.map(lambda leaf: _beside(xs, leaf, range(1, time_axis + 1)), start)
        if mask is not None:
            # What is not there is zeros, since infinities would come back as NaN in the gradient.
            there = _beside(xs, jnp.moveaxis(mask, -1, 0), range(time_axis + 1))
            xs = self._where(there, xs, jnp.zeros_like(xs))
        run = self.cell
        if runs_by_parts(self.cell):
            xs, run = self.cell.project(xs), self.cell.step

        def step(state: tp.Any, inputs: tp.Any) -> tp.Any:
            x, there = inputs
            after, y = run(state, x)
            if there is not None:
                after = jax.tree.map(lambda new, old: self._where(there, new, old), after, state)
                y = jax.tree.map(lambda leaf: self._where(there, leaf, jnp.zeros_like(leaf)), y)
            return after, y

        final, ys = scan(
            step, start, (xs, there), length=len(xs), reverse=self.reverse, unroll=self.unroll, modules=self.cell
        )
        if self.return_sequences:
            return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, time_axis), ys), final
        return jax.tree.map(lambda leaf: self._last(leaf, there), ys), final

    def _last(self, ys: Array, there: Array | None) -> Array:
        """The output of the last step that is there; zeros if none is."""
        if len(ys) == 0:
            return jnp.zeros(ys.shape[1:], ys.dtype)
        if there is None:
            return ys[0 if self.reverse else -1]
        first = jnp.argmax(there if self.reverse else there[::-1], axis=0)
        index = first if self.reverse else len(ys) - 1 - first
        index = jnp.expand_dims(index[None], tuple(range(index.ndim + 1, ys.ndim)))
        return jnp.take_along_axis(ys, index, axis=0)[0]

    def _where(self, there: Array, new: Array, old: Array) -> Array:
        """For each sequence of the batch one of two arrays, which begin with the batch axes."""
        if new.shape[: there.ndim] != there.shape:
            raise ValueError(
                f"{path_of(self)}: with mask or lengths, each array of the state and of the output must begin with the "
                f"batch axes {there.shape}, so that it can be kept where a step is not there; got {show_value(new)}."
            )
        there = jnp.expand_dims(there, tuple(range(there.ndim, new.ndim)))
        return jnp.where(jnp.broadcast_to(there, new.shape), new, old)

    def in_reverse(self: Own) -> Own:
        """A copy that runs in the other direction. Parameters are shared, if there are any yet."""
        reversed_copy = self.copy()
        attributes: tp.Any = reversed_copy.__dict__
        attributes["reverse"] = not self.reverse
        change(reversed_copy)
        return reversed_copy


Own = tp.TypeVar("Own", bound=RNN)


def _beside(xs: Array, array: Array, axes: Sequence[int]) -> Array:
    """`array`, whose first axes are these `axes` of `xs`, distributed over devices as those are: on an explicit mesh
    and in `jax.shard_map` JAX asks for that where both are used together."""
    array = tracing.varying_as(array, xs)
    sharding = jax.typeof(xs).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types or array.ndim < len(axes):
        return array
    spec = PartitionSpec(*(sharding.spec[axis] for axis in axes))
    if isinstance(array, Tracer) or isinstance(xs, Tracer):
        return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))
    return jax.device_put(array, NamedSharding(tp.cast(tp.Any, xs.sharding).mesh, spec))


def _shapes(tree: tp.Any) -> tp.Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [jnp.shape(leaf) for leaf in leaves]
