"""What vmap, scan, loops, branches and remat share: their modules, shared or stacked, and how values of hooks leave."""

from __future__ import annotations

import contextlib
import functools
import typing as tp
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from elegy import tracing
from elegy.errors import StructureError
from elegy.frames import Replay, path_of
from elegy.hooks import KINDS
from elegy.initialise import Axis, Lane
from elegy.layout import nodes_in, slots, walk
from elegy.leaves import Node
from elegy.state import state, transaction
from elegy.transaction import Overlay, keep_created
from elegy.transforms.core import (
    Effects,
    Threaded,
    View,
    check_function,
    check_modules,
    modules_of,
    run,
    with_modules,
)


class Lifted:
    """Functions that a transform runs, with the modules that it threads.

    The arrays of `modules` are the same in each lane or step. Those of `stacked` have a leading axis, of which each
    lane or step sees one entry.
    """

    def __init__(
        self, transform: str, functions: Sequence[Callable[..., tp.Any]], modules: tp.Any, stacked: tp.Any = None
    ):
        check_modules(modules)
        check_modules(stacked)
        threaded = (modules, stacked)
        for function in functions:
            check_function(transform, function)
            threaded = modules_of(function, threaded)
        self.transform = transform
        self.stacked = nodes_in(stacked)
        self.threaded = Threaded(threaded)
        self._functions = functions
        if self.stacked:
            below = {id(node) for node in walk(nodes_in(modules))}
            for node in walk(self.stacked):
                if id(node) in below:
                    raise ValueError(
                        f"{path_of(node)} is among modules= and among stacked=.\n"
                        "  List it in stacked= if its arrays have a leading axis, and in modules= if they have not."
                    )

    def stacked_flags(self, view: View) -> list[bool]:
        """For each array of the view, whether it has a leading axis."""
        ids = {id(node) for node in walk(self.stacked)} if self.stacked else ()
        return [id(node) in ids for node, _ in view.owners]

    def call(
        self,
        once: Callable[..., tp.Any],
        attempt: Callable[..., tp.Any],
        args: tuple[tp.Any, ...],
        kwargs: dict[str, tp.Any] | None = None,
        axis: Axis | None = None,
    ) -> tp.Any:
        """`attempt(view, *functions)`, after an init pass over `once(functions, *args, **kwargs)` where one is due.

        `axis` is the one over which the functions are mapped, if it has a name.
        """
        replay = Replay()
        functions = [replay.of(function, number) for number, function in enumerate(self._functions)]

        def initialise(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            return once(functions, *args, **kwargs)

        result = with_modules(
            self.threaded, initialise, args, kwargs or {}, lambda view: attempt(view, *functions), axis
        )
        replay.finish()
        return result

    @contextlib.contextmanager
    def first_lane(self, size: int) -> Iterator[None]:
        """Within an init pass: the stacked modules hold the first entries of their arrays. What is created meanwhile
        gets `size` entries, each from a key of its own."""
        if not self.stacked:
            yield
            return
        journal = tp.cast(tp.Any, state.init_pass)
        lane, start = Lane(), len(journal.creations)
        view = self.threaded.view()
        places = {(id(node), name) for node, name in view.owners}
        self.check_sizes(view, size)
        saved = view.read()
        indices = [index for index, stacked in enumerate(self.stacked_flags(view)) if stacked]
        outer = dict(journal.lanes)
        journal.lanes.update((id(root), lane) for root in self.stacked)
        overlay = Overlay(tracing.current())
        try:
            with transaction():
                with overlay:
                    view.write(indices, [entry(saved[index], 0) for index in indices])
                    yield
                keep_created(overlay)
        finally:
            journal.lanes.clear()
            journal.lanes.update(outer)
        modules = walk(self.stacked)
        _refuse_hidden(modules, places, {(id(c.module), c.name) for c in journal.creations[start:]})
        journal.stack(modules, start, lane, size)

    def size(self, sizes: Sequence[int], how_to_say: str) -> int:
        """The number of lanes or steps: the first of `sizes`, or else that of the stacked arrays."""
        if sizes:
            return sizes[0]
        view = self.threaded.view()
        for leaf, stacked in zip(view.read(), self.stacked_flags(view), strict=True):
            if stacked and leaf.ndim:
                return leaf.shape[0]
        if self.stacked:
            raise ValueError(
                f"{self.transform}: no argument is mapped, and the stacked modules hold no arrays: give {how_to_say}"
            )
        return 1

    def check_sizes(self, view: View, size: int) -> None:
        for (node, name), leaf, stacked in zip(view.owners, view.read(), self.stacked_flags(view), strict=True):
            if stacked and (leaf.ndim == 0 or leaf.shape[0] != size):
                raise ValueError(
                    f"{path_of(node, name)} has shape {tuple(leaf.shape)}, but it is stacked: its first axis must "
                    f"have size {size}."
                )


def _refuse_hidden(modules: Sequence[Node], before: set[tuple[int, str]], created: set[tuple[int, str]]) -> None:
    for node in modules:
        for slot, _ in slots(node):
            place = id(node), slot.name
            if slot.holds == "array" and place not in before and place not in created:
                raise StructureError(
                    f"{path_of(node, slot.name)}: the constructor of a module that was created inside a stacked one "
                    "stored an array, which has no leading axis.\n"
                    "  Create it by add_parameter, or construct the module before the transform."
                )


def entry(leaf: tp.Any, axis: int) -> tp.Any:
    """The first entry along an axis; zeros if there is none."""
    if leaf.shape[axis] == 0:
        return jnp.zeros(leaf.shape[:axis] + leaf.shape[axis:][1:], leaf.dtype)
    return jax.lax.index_in_dim(leaf, 0, axis, keepdims=False)


def struct(leaf: tp.Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one entry along the first axis."""
    return jax.eval_shape(lambda leaf: entry(leaf, 0), leaf)


def inlined(function: Callable[..., tp.Any], lifted: Lifted, view: View) -> Callable[..., tp.Any]:
    """`(leaves, rng, args) -> (outputs, effects)`. Compiled inline, so that looking at the effects first, by
    `jax.eval_shape`, costs no second trace."""
    return jax.jit(lambda leaves, rng, args: run(function, lifted.threaded, view, leaves, rng, args, {}), inline=True)


def settled(step: tp.Any, leaves: list[tp.Any], rng: tp.Any, args: tp.Any, entry_of: Callable[[int, tp.Any], tp.Any]):
    """The shapes of what a repeated step gives, as `jax.eval_shape` has them, and the `leaves` and the random state to
    begin with. Those that a step makes vary over the shards of a `jax.shard_map` are marked as varying from the start.

    `entry_of` gives what one step sees of an array, by its number.
    """
    while True:
        shapes = jax.eval_shape(step, [entry_of(*pair) for pair in enumerate(leaves)], rng, args)
        if not tracing.manual_axes():
            return shapes, leaves, rng
        _, (values, advanced, _, record) = shapes
        before, leaves = leaves, list(leaves)
        for index, value in zip(record.indices, values, strict=True):
            leaves[index] = tracing.varying_as(leaves[index], value)
        next_rng = rng if advanced is None else tracing.varying_as(rng, advanced)
        if next_rng is rng and all(new is old for new, old in zip(leaves, before, strict=True)):
            return shapes, leaves, rng
        rng = next_rng


def reduce_events(effects: Effects, over: tp.Literal["lanes", "steps"]) -> list[tp.Any]:
    """The values that hooks declared in all lanes or steps, which are stacked along axis 0, reduced as their kinds
    say."""
    _, _, events, record = effects
    return [
        jax.tree.map(_REDUCTIONS[getattr(KINDS[declared.kind], over)], value)
        for declared, value in zip(record.events, events, strict=True)
    ]


_REDUCTIONS: dict[str, Callable[[tp.Any], tp.Any]] = {
    "sum": functools.partial(jnp.sum, axis=0),
    "mean": functools.partial(jnp.mean, axis=0),
    "stack": lambda value: value,
}
