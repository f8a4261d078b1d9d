"""A sequence of equal blocks, run by a scan."""

from __future__ import annotations

import types
import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from elegy import tracing
from elegy.errors import StructureError, show_value
from elegy.frames import path_of
from elegy.kept import compiled
from elegy.leaves import StaticKey, is_array, is_node
from elegy.nn.inputs import Flag, boolean
from elegy.nn.stacked import Stacked
from elegy.transforms.jit import JitFunction, jit
from elegy.transforms.remat import remat
from elegy.transforms.scan import scan


class Stack(Stacked):
    """`n` blocks of equal structure, one after the other. They are compiled once, whatever their number.

    **Arguments:**

    - `factory`: a function without arguments that constructs a block. Each call must construct the same structure.
    - `n`: the number of blocks.
    - `outputs`: whether a block returns a pair `(x, y)`. The stack then returns `(x, ys)`, where `ys` has the `y` of
      each block along a leading axis.
    - `remat`: True recomputes the inside of each block in the backward pass, so that only what goes from block to block
      is stored; a policy of `jax.checkpoint_policies` says what is stored besides.
    - `unroll`: how many blocks one step of the scan runs.
    - `name`: that of `elegy.Module`.

    **Parameters:** those of a block below `blocks`, each with a leading axis of size `n`. Initial values are those of
    separate blocks in a list: block 3 of the stack `layers` has the keys of `layers/3`. (Parameters that a constructor
    creates have no path yet; they differ from block to block.)

    A block is called as `block(x, *args, **kwargs)`, all blocks with the same `args` and `kwargs`. If the stack is
    given `layer_inputs`, a pytree of arrays with a leading axis of size `n`, block `i` is called as
    `block(x, layer_input, *args, **kwargs)` with entry `i`. Losses that blocks declare are summed, metrics are
    averaged, summaries are stacked.

    `stack[3]` is a copy of a block as an ordinary module, `stack[2:]` a shorter stack, `list(stack)` all blocks, and
    `Stack.from_blocks` makes a stack of them.

    **Raises:** `StructureError` if the blocks differ in structure, if two of them share a module, or if the
    output of a block does not have the structure, shapes and dtypes of its input.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp


    class Block(elegy.Module):
        def call(self, x):
            return x + jax.nn.relu(elegy.nn.Linear(x.shape[-1])(x))


    stack = elegy.nn.Stack(Block, 6)
    y = stack(jnp.ones([4, 3]))
    assert y.shape == (4, 3)
    assert stack.blocks.linear.w.shape == (6, 3, 3)
    assert stack[5].linear.w.shape == (3, 3)
    ```
    """

    _elegy_items = "blocks"
    blocks: tp.Any

    def __init__(
        self,
        factory: Callable[[], tp.Any],
        n: int,
        *,
        outputs: Flag = False,
        remat: Flag | Callable[..., bool] = False,
        unroll: int | bool = 1,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.outputs = boolean("Stack", "outputs", outputs)
        self.remat = remat if callable(remat) else boolean("Stack", "remat", remat)
        self.unroll = unroll
        self._hold(factory, n)

    def call(self, x: tp.Any, *args: tp.Any, layer_inputs: tp.Any = None, **kwargs: tp.Any) -> tp.Any:
        """Runs the blocks.

        **Arguments:**

        - `x`: the input of the first block, an array or a pytree of arrays; each block returns the like.
        - `layer_inputs`: a pytree of arrays with a leading axis of size `n`, an entry for each block.
        - `args`, `kwargs`: given to every block.

        **Returns:** the output of the last block, or with `outputs` that and what the blocks put out.
        """
        inputs = (x, layer_inputs, args, kwargs)
        leaves, treedef = jax.tree.flatten(inputs, is_leaf=is_node)
        if tracing.is_traced() or not all(is_array(leaf) or _is_constant(leaf) for leaf in leaves):
            return self._run(*inputs)
        # By itself a scan is compiled at each call, since the function that it scans is a new one. It is compiled once
        # where nothing but arguments can change: not where blocks close over arrays.
        run = compiled(self, "run", self._compile)
        if not run:
            return self._run(*inputs)
        static = [None if is_array(leaf) else leaf for leaf in leaves]
        arrays = [leaf if is_array(leaf) else None for leaf in leaves]
        out = run[0](arrays, StaticKey((treedef, *static)))
        if run[0].has_constants:
            run.clear()
        return out

    def _compile(self) -> list[JitFunction[..., tp.Any]]:
        function = jit(self._run_compiled, static_argnums=1)
        function.has_constants = False
        return [function]

    def _run_compiled(self, arrays: tp.Any, static: StaticKey) -> tp.Any:
        treedef, *others = static.value
        return self._run(
            *treedef.unflatten(other if array is None else array for array, other in zip(arrays, others, strict=True))
        )

    def _run(self, x: tp.Any, layer_inputs: tp.Any, args: tp.Any, kwargs: tp.Any) -> tp.Any:
        def block(x: tp.Any, layer_input: tp.Any) -> tp.Any:
            own = () if layer_inputs is None else (layer_input,)
            out = self.blocks(x, *own, *args, **kwargs)
            pair = out if self.outputs else (out, None)
            self._check_output(x, pair, out)
            return pair

        step = block
        if self.remat:
            policy = None if self.remat is True else self.remat
            step = remat(block, prevent_cse=False, policy=tp.cast(tp.Any, policy), modules=self.blocks)
        x, ys = scan(step, x, layer_inputs, length=self.n, unroll=self.unroll, stacked=self.blocks)
        return (x, ys) if self.outputs else x

    def _check_output(self, x: tp.Any, pair: tp.Any, out: tp.Any) -> None:
        """The output of a block is the input of the next one."""
        if self.outputs and not (isinstance(pair, tuple) and len(pair) == 2):
            raise StructureError(
                f"{path_of(self)}: outputs=True, so a block must return a pair (x, y); it returned {show_value(out)}."
            )
        if _kinds(x) != _kinds(pair[0]):
            hint = "" if self.outputs else "\n  If blocks return pairs (x, y), say outputs=True."
            raise StructureError(
                f"{path_of(self)}: a block must return a value with the structure, shapes and dtypes of its input, "
                f"since it is the input of the next block; it was given {show_value(x)} and returned {show_value(out)}."
                f"{hint if isinstance(out, tuple) else ''}"
            )

    @classmethod
    def from_blocks(cls, blocks: Sequence[tp.Any], **options: tp.Any) -> Stack:
        """A stack of existing blocks, which must have equal structures; its arrays are copies.

        **Arguments:**

        - `blocks`: modules of one class, initialised or not.
        - `options`: those of the constructor.
        """
        given = iter(list(blocks))
        return cls(lambda: next(given), len(blocks), **options)


def _is_constant(value: tp.Any) -> bool:
    """Whether an argument is plain data, or a function that depends on nothing."""
    plain = value is None or isinstance(value, (bool, int, float, complex, str, bytes))
    return plain or (isinstance(value, types.FunctionType) and value.__closure__ is None)


def _kinds(tree: tp.Any) -> tp.Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(jnp.shape(leaf), jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))) for leaf in leaves]
