"""Members of equal structure, run side by side."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Hashable, Sequence

from elegy.containers import thaw
from elegy.nn.stacked import Stacked
from elegy.transforms.vmap import vmap, warn_if_identical


class Ensemble(Stacked):
    """`n` members of equal structure and with parameters of their own, run side by side on the same input.

    **Arguments:**

    - `factory`: a function without arguments that constructs a member. Each call must construct the same structure.
    - `n`: the number of members.
    - `in_axes`: which axes of the inputs hold an entry for each member, as for `jax.vmap`. The default gives every
      member the whole input.
    - `out_axes`: where the outputs have the axis of the members.
    - `axis_name`: a name for that axis, for collective operations among members.
    - `name`: that of `elegy.Module`.

    **Parameters:** those of a member below `members`, each with a leading axis of size `n`. Every member updates state
    of its own and draws from a random stream of its own. Losses and metrics are averaged over the members, summaries
    are stacked.

    **Raises:** `StructureError` if the members differ in structure, or if two of them share a module.

    **Warns:** `IdenticalMembersWarning` if the members have the same parameters and see the same data, so that they
    would stay alike.

    `ensemble[3]` is a copy of a member as an ordinary module, `ensemble[:4]` a smaller ensemble, `list(ensemble)` all
    members, and `Ensemble.from_members` makes an ensemble of them.

    ```python
    import elegy
    import jax.numpy as jnp

    ensemble = elegy.nn.Ensemble(lambda: elegy.nn.Linear(2), 8)
    y = ensemble(jnp.ones([4, 3]))
    assert y.shape == (8, 4, 2)
    assert ensemble.members.w.shape == (8, 3, 2)
    ```
    """

    _elegy_items = "members"
    members: tp.Any

    def __init__(
        self,
        factory: Callable[[], tp.Any],
        n: int,
        *,
        in_axes: int | None | Sequence[tp.Any] = None,
        out_axes: tp.Any = 0,
        axis_name: Hashable | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.in_axes = tuple(in_axes) if isinstance(in_axes, Sequence) else in_axes
        self.out_axes = out_axes
        self.axis_name = axis_name
        self._hold(factory, n)

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """Runs the members on `args`, of which `in_axes` says what they share, and on the same `kwargs`.

        **Returns:** their outputs, with an axis of size `n` at `out_axes`.
        """
        run = vmap(
            lambda *args: self.members(*args, **kwargs),
            in_axes=thaw(self.in_axes),
            out_axes=thaw(self.out_axes),
            axis_name=self.axis_name,
            axis_size=self.n,
            stacked=self.members,
        )
        return run(*args)

    @classmethod
    def from_members(cls, members: Sequence[tp.Any], **options: tp.Any) -> Ensemble:
        """An ensemble of existing modules, which must have equal structures; its arrays are copies.

        **Arguments:**

        - `members`: modules of one class, initialised or not.
        - `options`: those of the constructor.
        """
        given = iter(list(members))
        ensemble = cls(lambda: next(given), len(members), **options)
        if ensemble.in_axes is None:
            warn_if_identical([ensemble.members])
        return ensemble
