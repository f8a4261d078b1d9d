"""The state of any Optax transformation, as a tree of which the paths tell what a leaf is.

A state names the parameters in its paths: `[0].mu['linear']['w']`. So the part that belongs to some of the parameters
is found by path, whatever the transformation is.
"""

from __future__ import annotations

import typing as tp

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from elegy.devices import is_placed, place_of
from elegy.errors import ParameterError


def by_path(state: tp.Any) -> dict[tp.Any, tp.Any]:
    return dict(jax.tree_util.tree_flatten_with_path(state)[0])


def placed(state: tp.Any, parameters: tp.Any) -> tp.Any:
    """`state` on the devices of the parameters: what is like a parameter is sharded as that is, the rest is whole.

    Some of it comes from nowhere in particular, as a counter does, and would be somewhere after the first step: so a
    compiled step would be traced for a second time.
    """
    if all(is_placed(leaf) for leaf in jax.tree.leaves(state)):
        return state
    of_path = {path: leaf for path, leaf in by_path(parameters).items() if is_placed(leaf)}
    if not of_path:
        return state
    place = place_of(of_path.values())

    def leaf(path: tp.Any, value: tp.Any) -> tp.Any:
        if not isinstance(value, jax.Array) or isinstance(value, Tracer) or value.committed:
            return value
        ends = [path[start:] for start in range(len(path) + 1)]
        like = next((of_path[end] for end in ends if end in of_path and of_path[end].shape == value.shape), None)
        sharding = place if like is None else like.sharding
        return value if sharding is None else jax.device_put(value, sharding)

    return jax.tree_util.tree_map_with_path(leaf, state)


def learning_rates(state: tp.Any) -> dict[tp.Any, tp.Any]:
    """What `optax.inject_hyperparams` keeps under this name, by path: not a parameter that has the name too."""
    return {path: leaf for path, leaf in by_path(state).items() if path[-2:] == _under("hyperparams")}


def is_scheduled(state: tp.Any) -> bool:
    """Whether each update computes a learning rate anew, so that one that is set would be lost."""
    pairs = (path[i : i + 2] for path in by_path(state) for i in range(len(path)))
    return _under("hyperparams_states") in pairs


def is_schedule_free(state: tp.Any) -> bool:
    return isinstance(state, optax.contrib.ScheduleFreeState)


def schedule_free_states(state: tp.Any) -> list[tp.Any]:
    return [node for node in jax.tree.leaves(state, is_leaf=is_schedule_free) if is_schedule_free(node)]


def moved(old: tp.Any, new: tp.Any) -> tp.Any:
    return old if new is None or new.shape != old.shape else jnp.array(new, old.dtype)


def _under(field: str) -> tuple[tp.Any, tp.Any]:
    return jax.tree_util.GetAttrKey(field), jax.tree_util.DictKey("learning_rate")


def scalar_like(old: tp.Any, value: tp.Any) -> tp.Any:
    """A scalar with the dtype and the place of another."""
    new = jnp.asarray(value, dtype=old.dtype)
    if new.shape != old.shape:
        raise ValueError(f"the learning rate of an optimiser is a scalar, got shape {new.shape}.")
    if isinstance(old, Tracer) or isinstance(new, Tracer) or not old.committed:
        return new
    return jax.device_put(new, old.sharding)


def no_learning_rate(state: tp.Any) -> str:
    many = len(learning_rates(state))
    if state is None:
        return (
            "the learning rate of an optimiser cannot be set before it has a state, which the first update creates.\n"
            "  Give it to the transformation, or call optimizer.adapt(module) before."
        )
    if is_scheduled(state):
        return (
            "the learning rate follows a schedule, which gives each update its own: one that is set would be lost.\n"
            "  Give the transformation a number: optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)."
        )
    if many > 1:
        return (
            f"there are {many} learning rates in the state of this optimiser, and one was given.\n"
            "  Change its parameter `state`, by get_parameters and set_parameters."
        )
    return (
        "this optimiser keeps no learning rate in its state: it is a constant of the compiled step.\n"
        "  Write optax.inject_hyperparams(optax.adam)(learning_rate=1e-3) instead of optax.adam(1e-3)."
    )


def missing(state: tp.Any, wanted: tp.Any) -> list[str]:
    """The paths of `wanted` for which `state` has no array of that shape."""
    have = by_path(state)
    return [
        jax.tree_util.keystr(path)
        for path, leaf in by_path(wanted).items()
        if path not in have or have[path].shape != leaf.shape
    ]


def select(state: tp.Any, wanted: tp.Any) -> tp.Any:
    """The part of `state` that has the structure of `wanted`."""
    if lacking := missing(state, wanted):
        raise ParameterError(
            f"the optimiser has no state for some of the parameters: {', '.join(lacking)}.\n"
            "  They were frozen, or not there, when it updated for the first time.\n"
            "  Call optimizer.adapt(modules), outside of transforms, when they have become trainable."
        )
    have = by_path(state)
    return jax.tree_util.tree_map_with_path(lambda path, _: have[path], wanted)


def merge(state: tp.Any, part: tp.Any) -> tp.Any:
    """`state` with the leaves that `part` has, as far as their shapes agree."""
    new = by_path(part)

    def leaf(path: tp.Any, old: tp.Any) -> tp.Any:
        return new[path] if path in new and new[path].shape == old.shape else old

    return jax.tree_util.tree_map_with_path(leaf, state)
