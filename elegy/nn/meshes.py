"""Parameters on explicit meshes, for what is no product of matrices: see `elegy.devices`."""

from __future__ import annotations

import typing as tp

from jaxtyping import Array

from elegy.devices import _explicit, _over, _to


def for_lookup(ids: Array, w: Array) -> tuple[Array, tp.Any]:
    """A matrix whose rows can be looked up on an explicit mesh, and the sharding of what is found, which JAX has to be
    told. Of the matrix only the columns stay sharded, over axes that do not shard the ids."""
    of_ids, of_w = _explicit(ids), _explicit(w)
    if of_w is None or (of_ids is not None and of_ids[0] != of_w[0]):
        return w, None
    axes = [()] * ids.ndim if of_ids is None else of_ids[1]
    used = {axis for part in axes for axis in part}
    columns = tuple(axis for axis in of_w[1][1] if axis not in used)
    if of_w[1] != [(), columns]:
        w = _to(w, [(), columns])
    return w, _over([*axes, columns], w)


def beside(x: Array, w: Array) -> Array:
    """A parameter of any number of axes that can be used together with `x` on an explicit mesh: it is gathered over the
    axes of the mesh that shard `x`."""
    of_x, of_w = _explicit(x), _explicit(w)
    if of_x is None or of_w is None or of_x[0] != of_w[0]:
        return w
    used = {axis for part in of_x[1] for axis in part}
    kept = [tuple(axis for axis in part if axis not in used) for part in of_w[1]]
    return w if kept == of_w[1] else _to(w, kept)
