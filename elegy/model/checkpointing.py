"""What a checkpoint of a training holds, and how a model takes it."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.calling import Callbacks, Ending, EpochLogs, States
from elegy.checkpoints import Checkpoints
from elegy.checkpoints.file import Path, Rename
from elegy.errors import CheckpointError, CheckpointWarning
from elegy.frames import warn
from elegy.layout import nodes_in, walk
from elegy.model.batches import Feed
from elegy.model.carry import Carry
from elegy.model.loop import Position
from elegy.parameters import flags_of, set_flags
from elegy.state import transact

if tp.TYPE_CHECKING:
    from elegy.model.model import Model

Result = tp.TypeVar("Result")
_FORMAT = 2
_ABOUT_DATA = ("data", "source", "shapes", "validation")
# What a model knows of its training besides modules.
_ATTRIBUTES = ("_steps", "_orders", "_position", "_about_data", "_states", "_covered")


def snapshot(
    model: Model, position: Position | None, states: States, data: Mapping[str, tp.Any]
) -> tuple[tp.Any, tp.Any]:
    """The trees of arrays of a checkpoint, and what else it holds."""
    about: dict[str, tp.Any] = {
        "format": _FORMAT,
        "seed": model._seed,
        "steps": model._steps,
        "orders": model._orders,
        "callbacks": states,
        "trainable": flags(model),
        "covered": model._covered,
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
            "validations": position.validations,
            "ending": None if position.ending is None else _told(position.ending),
        }
    return trees(model), about


def about_data(feed: Feed, shuffle: bool, validation: Feed | None) -> dict[str, tp.Any]:
    """What a checkpoint says of the data: how many there are, in which steps, and where sources of batches are."""
    return {
        "data": _of_data(feed, shuffle),
        "source": None if feed.source is None else feed.source.get_state(),
        "shapes": feed.shapes(),
        "validation": _state_of(validation),
    }


def _of_data(feed: Feed, shuffle: bool) -> dict[str, tp.Any]:
    return {
        "samples": feed.samples,
        "steps": feed.steps,
        "batch_size": feed.batch_size,
        "accumulate": feed.joined,
        "shuffle": shuffle,
    }


def _state_of(validation: Feed | None) -> tp.Any:
    """Where validation data are that can be gone through once only; all others begin anew each time."""
    if validation is None or validation.source is None or not validation.is_one_shot:
        return None
    return validation.source.get_state()


def _told(ending: Ending) -> dict[str, tp.Any]:
    logs = ending.logs
    return {
        "logs": {**logs},
        "lacks_validation": logs.lacks_validation,
        "left": None if ending.left is None else [*ending.left],
    }


def _ending(told: tp.Any) -> Ending | None:
    if told is None:
        return None
    return Ending(EpochLogs(told["logs"], told["lacks_validation"]), told["left"])


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


def flags(model: Model) -> list[tp.Any]:
    """What is trainable of the modules, in plain values."""
    return [(trainable, sorted(frozen)) for trainable, frozen in map(flags_of, _nodes(model))]


def _freeze(model: Model, given: list[tp.Any]) -> None:
    pairs = zip(_nodes(model), given, strict=False)
    set_flags((node, (trainable, frozenset(map(tuple, frozen)))) for node, (trainable, frozen) in pairs)


def trees(model: Model) -> dict[str, tp.Any]:
    """The modules of a model by name; those without arrays are left out."""
    named = {"module": model.module, "optimizer": model.optimizer, "losses": model._losses, **model._others()}
    return {name: part for name, part in named.items() if name == "module" or jax.tree.leaves(part)}


def unless_it_fails(model: Model, function: Callable[[], Result]) -> Result:
    """Runs a function. After an exception the model, and all its modules, are what they were before."""
    before, stream = {name: getattr(model, name) for name in _ATTRIBUTES}, model._initial.snapshot()
    try:
        return transact(function)
    except BaseException:
        vars(model).update(before)
        model._initial.restore(stream)
        raise


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
        data, states = {key: about[key] for key in _ABOUT_DATA if key in about}, about["callbacks"]
        model._position = _position(about)
        model._about_data, model._states = lambda: data, lambda: states
    return about


def _position(about: Mapping[str, tp.Any]) -> Position | None:
    if "position" not in about:
        return None
    given = about["position"]
    carry = None if given["carry"] is None else jax.tree.map(_on_device, given["carry"])
    return Position(**{**given, "carry": carry, "ending": _ending(given.get("ending"))})


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
    if about["format"] == 1:
        about["callbacks"] = {found["name"]: {"state": found["state"]} for found in about["callbacks"]}
        about["trainable"] = [(trainable, []) for trainable in about.get("trainable", ())]


def warn_of_score(store: Checkpoints, step: int) -> None:
    """Warns that a checkpoint which counts among the best ones is about to be replaced by one that has no score."""
    if store.score(step) is not None:
        warn(
            CheckpointWarning(
                f"{store.directory}: the checkpoint of step {step} had a score, {store.score(step)}, and is replaced "
                "by one that has none: it is not among the best ones any more.\n  Save to another directory."
            )
        )


def resumed(
    model: Model,
    directory: Path,
    feed: Feed,
    shuffle: bool,
    validation: Feed | None,
    callbacks: Callbacks,
    initialise: Callable[[], None],
) -> Position | None:
    """Makes a model go on from the newest complete checkpoint of a directory.

    **Arguments:**

    - `validation`: the data to validate on, if there are any.
    - `shuffle`: whether samples come in another order in each epoch.
    - `initialise`: initialises the model for the data.

    **Returns:** where it stood; None if there is no checkpoint.
    """
    store = Checkpoints(directory)
    if not store.steps:
        return None
    about = store.extra()  # of the newest one that is not damaged
    _require_known(directory, about)
    if "position" not in about:
        raise CheckpointError(
            f"{directory}: the checkpoint of step {about['steps']} says nothing about a training: it was saved before "
            "the first `fit`.\n  Load it, model.load(...), and call fit without resume=."
        )
    _require_alike(directory, model, about, _of_data(feed, shuffle))
    position = _position(about)
    assert position is not None
    if feed.source is not None and about.get("source") is not None:
        feed.source.set_state(about["source"])
    feed.begin_at(position.epoch, position.made, about.get("shapes"))
    if validation is not None and validation.source is not None and validation.is_one_shot:
        if (state := about.get("validation")) is not None:
            validation.source.set_state(state)
        validation.begin_at(position.validations, 0, None)
    initialise()
    if (covered := about.get("covered")) is not None:
        _freeze(model, covered)
        model._adapt()
        model._covered = covered
    load(model, directory, about["steps"], False, True, None)
    # What was frozen, or thawed, while it trained is so again.
    _freeze(model, about.get("trainable", []))
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


def _require_alike(directory: Path, model: Model, about: Mapping[str, tp.Any], now: Mapping[str, tp.Any]) -> None:
    """Refuses to go on in another way than the training began."""
    if about["seed"] != model._seed:
        raise CheckpointError(
            f"{directory}: the training began with seed={about['seed']}, and this model has seed={model._seed}: the "
            "order of samples and random numbers would be others.\n"
            f"  Construct it with seed={about['seed']}; or load the parameters alone, model.load(...), and train anew."
        )
    then = about.get("data", {})
    # What is known of both: a source may have learnt to say how many samples it has.
    known = [name for name in now if None not in (then.get(name), now[name])]
    changed = [f"\n  {name}={then[name]}, and now {now[name]}" for name in known if then[name] != now[name]]
    if not changed:
        return
    if about["position"]["made"]:
        raise CheckpointError(
            f"{directory}: the checkpoint is of the middle of an epoch, and the place in it means nothing with other "
            f"data or other steps. There were{','.join(changed)}.\n  Resume with those of then."
        )
    warn(CheckpointWarning(f"{directory}: the epochs of the training were others:{','.join(changed)}."))
