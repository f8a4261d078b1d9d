"""Members of equal structure, run side by side."""

from __future__ import annotations

import operator
import typing as tp
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence

import jax
import numpy as np

from elegy.errors import IdenticalMembersWarning
from elegy.frames import path_of, user_level
from elegy.initialise import has_tracer
from elegy.module import Module
from elegy.nn.stacked import construct, take
from elegy.state import state
from elegy.transforms.vmap import vmap


class Ensemble(Module):
    """`n` members of equal structure and with parameters of their own, run side by side on the same input.

    **Arguments:**

    - `factory`: a function without arguments that constructs a member. Each call must construct the same structure.
    - `n`: the number of members.
    - `in_axes`: which axes of the inputs hold an entry for each member, as for `jax.vmap`. The default gives every
      member the whole input.
    - `out_axes`: where the outputs have the axis of the members.
    - `axis_name`: a name for that axis, for collective operations among members.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** those of a member below `members`, each with a leading axis of size `n`. Every member updates state
    of its own and draws from a random stream of its own. Losses and metrics are averaged over the members, summaries
    are stacked.

    **Warns:** `IdenticalMembersWarning` if the members have the same parameters, so that they would stay alike.

    `ensemble[3]` is a copy of a member as an ordinary module, `list(ensemble)` all of them, and
    `Ensemble.from_members` makes an ensemble of them.

    ```python
    import elegy
    import jax.numpy as jnp

    ensemble = elegy.nn.Ensemble(lambda: elegy.nn.Linear(2), 8)
    y = ensemble(jnp.ones([4, 3]))
    assert y.shape == (8, 4, 2)
    assert ensemble.members.w.shape == (8, 3, 2)
    ```
    """

    def __init__(
        self,
        factory: Callable[[], tp.Any],
        n: int,
        *,
        in_axes: int | None | Sequence[tp.Any] = None,
        out_axes: tp.Any = 0,
        axis_name: Hashable | None = None,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.n = operator.index(n)
        self.in_axes = tuple(in_axes) if isinstance(in_axes, Sequence) else in_axes
        self.out_axes = out_axes
        self.axis_name = axis_name
        self.members = construct(self, factory, self.n)

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """Runs the members on `args`, of which `in_axes` says what they share, and on the same `kwargs`.

        **Returns:** their outputs, with an axis of size `n` at `out_axes`.
        """
        run = vmap(
            lambda *args: self.members(*args, **kwargs),
            in_axes=self.in_axes,
            out_axes=self.out_axes,
            axis_name=self.axis_name,
            axis_size=self.n,
            stacked=self.members,
        )
        outputs = run(*args)
        if state.init_pass is not None:
            self._warn_if_identical()
        return outputs

    def _warn_if_identical(self) -> None:
        arrays = jax.tree.leaves(self.members.get_parameters(trainable=True))
        if self.n < 2 or not arrays or has_tracer(arrays):
            return
        if all(bool(np.all(array == array[:1])) for array in map(np.asarray, arrays)):
            warnings.warn(
                IdenticalMembersWarning(
                    f"{path_of(self)}: the {self.n} members have the same parameters, so they compute the same, and "
                    "training keeps them alike.\n"
                    "  Use initializers that draw random numbers, or members that were initialised with different keys."
                ),
                stacklevel=user_level(),
            )

    @classmethod
    def from_members(cls, members: Sequence[tp.Any], **options: tp.Any) -> Ensemble:
        """An ensemble of existing modules, which must have equal structures; its arrays are copies.

        **Arguments:**

        - `members`: modules of one class, initialised or not.
        - `options`: those of the constructor.
        """
        given = iter(list(members))
        ensemble = cls(lambda: next(given), len(members), **options)
        ensemble._warn_if_identical()
        return ensemble

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tp.Any]:
        return (self[index] for index in range(self.n))

    def __getitem__(self, index: int) -> tp.Any:
        number = operator.index(index)
        if not -self.n <= number < self.n:
            raise IndexError(f"member {number} of an ensemble of {self.n}")
        return take(self.members, number)
