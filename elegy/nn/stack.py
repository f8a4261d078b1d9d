"""A sequence of equal blocks, run by a scan."""

from __future__ import annotations

import operator
import typing as tp
from collections.abc import Callable, Iterator, Sequence

from elegy.module import Module
from elegy.nn.stacked import construct, take
from elegy.transforms.remat import remat
from elegy.transforms.scan import scan


class Stack(Module):
    """`n` blocks of equal structure, one after the other. They are compiled once, whatever their number.

    **Arguments:**

    - `factory`: a function without arguments that constructs a block. Each call must construct the same structure.
    - `n`: the number of blocks.
    - `outputs`: whether a block returns a pair `(x, y)`. The stack then returns `(x, ys)`, where `ys` has the `y` of
      each block along a leading axis.
    - `remat`: True recomputes the inside of each block in the backward pass, so that only what goes from block to block
      is stored; a policy of `jax.checkpoint_policies` says what is stored besides.
    - `unroll`: how many blocks one step of the scan runs.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** those of a block below `blocks`, each with a leading axis of size `n`. Initial values are those of
    separate blocks in a list: block 3 of the stack `layers` has the keys of `layers/3`.

    A block is called as `block(x, *args, **kwargs)`, all blocks with the same `args` and `kwargs`. If the stack is
    given `layer_inputs`, a pytree of arrays with a leading axis of size `n`, block `i` is called as
    `block(x, layer_input, *args, **kwargs)` with entry `i`. Losses that blocks declare are summed, metrics are
    averaged, summaries are stacked.

    `stack[3]` is a copy of a block as an ordinary module, `stack[2:]` a shorter stack, `list(stack)` all blocks, and
    `Stack.from_blocks` makes a stack of them.

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

    def __init__(
        self,
        factory: Callable[[], tp.Any],
        n: int,
        *,
        outputs: bool = False,
        remat: bool | Callable[..., bool] = False,
        unroll: int | bool = 1,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.n = operator.index(n)
        self.outputs = bool(outputs)
        self.remat = remat
        self.unroll = unroll
        self.blocks = construct(self, factory, self.n)

    def call(self, x: tp.Any, *args: tp.Any, layer_inputs: tp.Any = None, **kwargs: tp.Any) -> tp.Any:
        """Runs the blocks.

        **Arguments:**

        - `x`: the input of the first block, an array or a pytree of arrays; each block returns the like.
        - `layer_inputs`: a pytree of arrays with a leading axis of size `n`, an entry for each block.
        - `args`, `kwargs`: given to every block.

        **Returns:** the output of the last block, or with `outputs` that and what the blocks put out.
        """

        def block(x: tp.Any, layer_input: tp.Any) -> tp.Any:
            own = () if layer_inputs is None else (layer_input,)
            out = self.blocks(x, *own, *args, **kwargs)
            return out if self.outputs else (out, None)

        step = block
        if self.remat:
            policy = None if self.remat is True else self.remat
            step = remat(block, prevent_cse=False, policy=tp.cast(tp.Any, policy), modules=self.blocks)
        x, ys = scan(step, x, layer_inputs, length=self.n, unroll=self.unroll, stacked=self.blocks)
        return (x, ys) if self.outputs else x

    @classmethod
    def from_blocks(cls, blocks: Sequence[tp.Any], **options: tp.Any) -> Stack:
        """A stack of existing blocks, which must have equal structures; its arrays are copies.

        **Arguments:**

        - `blocks`: modules of one class, initialised or not.
        - `options`: those of the constructor.
        """
        given = iter(list(blocks))
        return cls(lambda: next(given), len(blocks), **options)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tp.Any]:
        return (self[index] for index in range(self.n))

    def __getitem__(self, index: int | slice) -> tp.Any:
        if isinstance(index, slice):
            blocks = [self[number] for number in range(*index.indices(self.n))]
            options = {"outputs": self.outputs, "remat": self.remat, "unroll": self.unroll}
            return type(self).from_blocks(blocks, **options)
        number = operator.index(index)
        if not -self.n <= number < self.n:
            raise IndexError(f"block {number} of a stack of {self.n}")
        return take(self.blocks, number)
