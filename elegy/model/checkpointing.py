"""What a checkpoint of a training holds, and how a model takes it."""

from __future__ import annotations

import typing as tp
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.calling import Callbacks
from elegy.checkpoints import Checkpoints
from elegy.checkpoints.file import Path, Rename
from elegy.errors import CheckpointError, CheckpointWarning
from elegy.frames import warn
from elegy.layout import nodes_in, walk
from elegy.model.batches import Feed
from elegy.model.carry import Carry
from elegy.model.loop import Position

if tp.TYPE_CHECKING:
    from elegy.model.model import Model

_FORMAT = 1


def snapshot(
    model: Model, position: Position | None, states: list[tp.Any], data: Mapping[str, tp.Any]
) -> tuple[tp.Any, tp.Any]:
    """The trees of arrays of a checkpoint, and what else it holds."""
    about: dict[str, tp.Any] = {
        "format": _FORMAT,
        "seed": model._seed,
        "steps": model._steps,
        "orders": model._orders,
        "callbacks": states,
        "trainable": [node.trainable for node in _nodes(model)],
        **data,
    }
    if position is not None:
        about["position"] = {
            "epoch": position.epoch,
            "made": position.made,
            "done": position.done,
            "order": position.order,
            "carry": _counted(position.carry) if position.made else None,
            "tested": position.tested,
            "is_validated": position.is_validated,
        }
    return trees(model), about


def about_data(feed: Feed) -> dict[str, tp.Any]:
    """What a checkpoint says of the data: how many there are, and where a source of batches is."""
    return {
        "data": {"samples": feed.samples, "steps": feed.steps},
        "source": None if feed.source is None else feed.source.get_state(),
        "size": feed.size,
    }


def _counted(carry: tp.Any) -> tp.Any:
    if not isinstance(carry, Carry):
        return carry
    return {
        "metrics": [*carry.metrics],
        "sums": carry.sums,
        "so_far": carry.so_far,
        "names": [*carry.names],
        "names_so_far": [*carry.names_so_far],
    }


def _nodes(model: Model) -> list[tp.Any]:
    """All modules that training changes, in an order that depends on their structure alone."""
    return list(walk(nodes_in(trees(model))))


def trees(model: Model) -> dict[str, tp.Any]:
    """The modules of a model by name; those without arrays are left out."""
    named = {"module": model.module, "optimizer": model.optimizer, "losses": model._losses, **model._others()}
    return {name: part for name, part in named.items() if name == "module" or jax.tree.leaves(part)}


def load(
    model: Model, directory: Path, step: int | None, weights_only: bool, strict: bool, rename: Rename | None
) -> dict[str, tp.Any]:
    """Gives a model, which is initialised, what a checkpoint holds. **Returns:** what the checkpoint says besides."""
    store = Checkpoints(directory)
    like = {"module": model.module} if weights_only else trees(model)
    loaded, about = store.load_part(step, like, strict, rename, part=weights_only)
    _require_known(directory, about)
    pairs: tp.Any = zip(nodes_in(like), nodes_in(loaded), strict=True)
    for module, found in pairs:
        module.set_parameters(found.get_parameters())
    if not weights_only:
        model._steps, model._orders = about["steps"], about["orders"]
    return about


def _require_known(directory: Path, about: tp.Any) -> None:
    if not isinstance(about, dict) or "format" not in about:
        raise CheckpointError(
            f"{directory}: these checkpoints were not written by a Model. elegy.Checkpoints({str(directory)!r}).load "
            "reads them."
        )
    if about["format"] > _FORMAT:
        raise CheckpointError(
            f"{directory}: the checkpoint was written by a newer version of elegy (format {about['format']} of "
            f"trainings, this one knows {_FORMAT}).\n  Upgrade elegy."
        )


def resumed(model: Model, directory: Path, feed: Feed, callbacks: Callbacks, initialise: tp.Any) -> Position | None:
    """Makes a model go on from the newest complete checkpoint of a directory.

    **Arguments:**

    - `initialise`: initialises the model for the data.

    **Returns:** where it stood; None if there is no checkpoint.
    """
    store = Checkpoints(directory)
    if store.latest() is None:
        return None
    about = store.extra()  # of the newest one that is not damaged
    _require_known(directory, about)
    if "position" not in about:
        raise CheckpointError(
            f"{directory}: the checkpoint of step {about['steps']} says nothing about a training: it was saved before "
            "the first `fit`.\n  Load it, model.load(...), and call fit without resume=."
        )
    _require_alike(directory, model, feed, about)
    position = Position(**about["position"])
    position.carry = None if position.carry is None else jax.tree.map(_on_device, position.carry)
    if feed.source is not None and about.get("source") is not None:
        feed.source.set_state(about["source"])
    feed.begin_at(position.epoch, position.made, about.get("size"))
    initialise()
    load(model, directory, about["steps"], False, True, None)
    # What was frozen, or thawed, while it trained is so again.
    for node, trainable in zip(_nodes(model), about.get("trainable", ()), strict=False):
        if node.trainable != trainable:
            node.trainable = trainable
    model._orders = position.order
    left = callbacks.restore(about["callbacks"])
    if left:
        warn(
            CheckpointWarning(
                f"{directory}: the checkpoint has states of callbacks that are not there now: {', '.join(left)}.\n"
                "  They are lost. Give fit the callbacks of then to go on as if nothing had happened."
            )
        )
    return position


def _on_device(leaf: tp.Any) -> tp.Any:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _require_alike(directory: Path, model: Model, feed: Feed, about: Mapping[str, tp.Any]) -> None:
    """Refuses to go on in another way than the training began."""
    if about["seed"] != model._seed:
        raise CheckpointError(
            f"{directory}: the training began with seed={about['seed']}, and this model has seed={model._seed}: the "
            "order of samples and random numbers would be others.\n"
            f"  Construct it with seed={about['seed']}; or load the parameters alone, model.load(...), and train anew."
        )
    then, now = about.get("data"), {"samples": feed.samples, "steps": feed.steps}
    # What is known of both: a source may have learnt to say how many samples it has.
    if then is not None and any(None not in (then[key], now[key]) and then[key] != now[key] for key in now):
        what = (
            f"{then['samples']} samples in {then['steps']} steps, and now there are {now['samples']} in {now['steps']}"
        )
        if about["position"]["made"]:
            raise CheckpointError(
                f"{directory}: the checkpoint is of the middle of an epoch of {what}: the place in it means nothing "
                "there.\n  Resume with the data and the batch_size of then."
            )
        warn(CheckpointWarning(f"{directory}: the epochs of the training had {what}."))
