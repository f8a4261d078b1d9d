"""What is minimised and what is measured: losses and metrics, in any structure, as modules that give named numbers."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import operator
import re
import typing as tp
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from elegy.errors import show_value
from elegy.frames import name_of, path_of
from elegy.habits import object_for
from elegy.hooks import numbered
from elegy.leaves import is_array
from elegy.losses import Loss, Reduction
from elegy.losses.arguments import LabelRange, mask_for, missing_axis, takes, weights_for
from elegy.losses.loss import Reduced
from elegy.metrics import Adapted, Metric
from elegy.metrics.adapted import is_mergeable, maker_of
from elegy.module import Module
from elegy.state import sample_mask, transaction


class Weighted(tp.NamedTuple):
    """A weighted mean of the values of a batch, and the sum of the weights: by that it counts in the mean of all."""

    mean: Float[Array, ""]
    weight: Float[Array, ""]


class Sum(tp.NamedTuple):
    """A sum of the values of a batch: that of all batches is the sum of theirs."""

    value: Float[Array, ""]


class Total(tp.NamedTuple):
    """A sum of what adds up in different ways, and its terms: each is `Weighted`, a `Sum`, or a mean over samples."""

    value: Float[Array, ""]
    terms: tuple[tp.Any, ...]


class Notes:
    """What is known of scalars beside their values. Code of users gets plain scalars, computes with them or gives them
    on; those that come back as they were are found again, by their identity.

    - `divides`: whether there may be losses that are no means over all samples alike.
    - `shown`: how metrics are called that were declared under a name.

    **Attributes:** `names`, those of all that is logged with the losses.
    """

    def __init__(self, divides: bool = False, shown: Callable[[str], str] = str) -> None:
        self.divides = divides
        self.shown = shown
        self.names: set[str] = set()
        self._noted: list[tuple[tp.Any, tp.Any]] = []

    def note(self, value: tp.Any, about: tp.Any) -> None:
        self._noted.append((value, about))

    def about(self, value: tp.Any) -> tp.Any:
        """What was noted of a value; or the value, if that is nothing."""
        return next((about for noted, about in self._noted if noted is value), value)

    def all(self) -> list[tp.Any]:
        """The values of which something was noted."""
        return [value for value, _ in self._noted]

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Within it there are other notes: what is noted in one trace is not for the one around."""
        before, self._noted = self._noted, []
        try:
            yield
        finally:
            self._noted = before


# What is logged of a batch, by name: a `Weighted`, a `Sum`, a `Total`, or a mean over the samples.
Scalars = dict[str, tp.Any]

# What a loss or a metric may ask for, by the names of its parameters: those of Keras and scikit-learn, and of Optax.
INPUTS = {
    "x": ("x",),
    "y_true": ("y_true", "targets", "labels", "log_targets"),
    "y_pred": ("y_pred", "predictions", "logits", "log_predictions", "predictor_outputs", "scores"),
    "sample_weight": ("sample_weight", "sample_weights"),
    "parameters": ("parameters",),
}
# Those that have a value for each sample.
_OF_SAMPLES = {"x", "y_true", "y_pred"}


class Losses(Module):
    """Losses by name: `mean_squared_error_loss`, and under a key of a dict `key_loss/mean_squared_error`."""

    def __init__(self, losses: tp.Any):
        super().__init__(name="losses")
        named = list(_named("loss", losses))
        self.names = tuple("/".join([_as_loss(first), *rest]) for (first, *rest), _, _ in named)
        self.places = tuple(place for _, place, _ in named)
        self.functions = tuple(function for _, _, function in named)
        self._paths = {f"losses/functions/{number}/": f"{name}/" for number, name in enumerate(self.names)}

    def by_place(self) -> dict[str, tp.Any]:
        """The functions by where they were given."""
        return dict(zip(self.places, self.functions, strict=True))

    def shown(self, name: str) -> str:
        """A name that `elegy.add_metric` made of the path of a loss: with the name of the loss in its place."""
        path = next((path for path in self._paths if name.startswith(path)), None)
        return name if path is None else self._paths[path] + name.removeprefix(path)

    def owners(self) -> list[tuple[str, tp.Any]]:
        """The functions, each with what messages call it."""
        return [(_owner(*one), one[1]) for one in zip(self.places, self.functions, strict=True)]

    @property
    def divides(self) -> bool:
        """Whether some may be no means over all samples alike."""
        return any(
            isinstance(function, Loss) and (function.has_divisor or function.reduction is Reduction.SUM)
            for function in self.functions
        )

    def call(self, **inputs: tp.Any) -> tuple[Scalars, dict[str, Weighted | Sum]]:
        """**Returns:** the losses, and what is known of those that are no means over all samples alike."""
        values: Scalars = {}
        known: dict[str, Weighted | Sum] = {}
        for name, place, function in zip(self.names, self.places, self.functions, strict=True):
            with _explained(place, function, inputs):
                found = _evaluate(_owner(place, function), function, inputs, _mean_of_weighted)
                found, treedef = jax.tree.flatten(found, is_leaf=lambda part: isinstance(part, Reduced))
                scalars = [part.value if isinstance(part, Reduced) else part for part in found]
                names = add_values(values, name, treedef.unflatten(scalars))
            for full, part in zip(names, found, strict=True):
                if isinstance(part, Reduced) and part.divisor is not None:
                    known[full] = Weighted(values[full], part.divisor.astype(values[full].dtype))
                elif getattr(function, "reduction", None) is Reduction.SUM:
                    known[full] = Sum(values[full])
        return values, known


class Metrics(Module):
    """Metrics by name: `accuracy`, and under a key of a dict `key/accuracy`."""

    def __init__(self, metrics: tp.Any, losses: Iterable[str] = ()):
        super().__init__(name="metrics")
        self._taken = ("loss", *losses)
        named = list(_named("metrics", metrics))
        self.names = tuple("/".join(path) for path, _, _ in named)
        self.places = tuple(place for _, place, _ in named)
        # Metrics count what they are called with: these belong to the model, so the user's own ones stay as they are.
        self.functions = tuple(part.copy() if isinstance(part, Module) else part for _, _, part in named)
        for function in self.functions:
            if isinstance(function, Metric):
                function.reset()

    def owners(self) -> list[tuple[str, tp.Any]]:
        """The functions, each with what messages call it."""
        return [(_owner(*one), one[1]) for one in zip(self.places, self.functions, strict=True)]

    def call(self, **inputs: tp.Any) -> tuple[Scalars, Scalars]:
        """**Returns:** the values of this batch, from functions, and those of all batches so far, from `Metric`s."""
        of_batch: Scalars = {}
        so_far: Scalars = {}
        for name, place, function in zip(self.names, self.places, self.functions, strict=True):
            values, others = (so_far, of_batch) if isinstance(function, Metric) else (of_batch, so_far)
            with _explained(place, function, inputs):
                found = _evaluate(_owner(place, function), function, inputs, _weighted_mean)
                found = jax.tree.map(_of_loss, found, is_leaf=lambda part: isinstance(part, Reduced))
                if getattr(function, "reduction", None) is Reduction.SUM:
                    found = jax.tree.map(Sum, found)
                add_values(values, name, found, {*self._taken, *others})
        return of_batch, so_far

    def direction(self, name: str) -> str | None:
        """What the metric of this name says about itself: `"min"` or `"max"` is better. None if it says nothing."""
        of_name = dict(zip(self.names, self.functions, strict=True))
        return getattr(of_name.get(name), "direction", None)


def free_names(values: Scalars, taken: Iterable[str]) -> Scalars:
    """The values, those with a number whose name is taken."""
    found: Scalars = {}
    for name, value in values.items():
        found[numbered(name, {*taken, *found})[0]] = value
    return found


def _of_loss(part: tp.Any) -> tp.Any:
    """What is logged of a loss that is a metric."""
    if not isinstance(part, Reduced):
        return part
    return part.value if part.divisor is None else Weighted(part.value, part.divisor.astype(part.value.dtype))


def _named(argument: str, functions: tp.Any) -> Iterator[tuple[tuple[str, ...], str, Callable[..., tp.Any]]]:
    """The functions of a nested structure, with the keys of dicts on the way and a name of their own, and with the
    place in the argument where they were given: `loss['aux'][1]`."""
    kind = argument.removesuffix("s") if argument == "metrics" else argument
    is_leaf = lambda part: callable(part) or is_mergeable(part)  # noqa: E731
    for path, function in jax.tree_util.tree_flatten_with_path(functions, is_leaf=is_leaf)[0]:
        if kind == "metric" and is_mergeable(function):
            function = Adapted(function)
        if not callable(function) or isinstance(function, type):
            hint = f"\n  Construct it: {function.__name__}(...)." if isinstance(function, type) else ""
            hint = f"\n  {object_for(kind, function)}" if isinstance(function, str) else hint
            raise TypeError(f"a {kind} must be a function or a module, got {function!r}.{hint}")
        if not accepted(function).keys() - {"sample_weight"} and not _takes_anything(function):
            known = "; ".join(", ".join(names) for key, names in INPUTS.items() if key != "sample_weight")
            raise TypeError(
                f"the {kind} {_name(function)}{_signature(function) or '(...)'} names none of the values that it could "
                f"be given: {known}.\n  Wrap it: lambda y_true, y_pred: f(y_true, y_pred), in the order that it takes."
            )
        keys = tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        yield (*keys, _name(function)), argument + jax.tree_util.keystr(path), function


def _name(function: tp.Any) -> str:
    name = name_of(function) if isinstance(function, Module) else _class_or_name(function)
    return "function" if name == "<lambda>" else name


def _owner(place: str, function: tp.Any) -> str:
    """What messages call a loss or a metric: where it was given, and what it is."""
    return f"{place} ({_class_or_name(function.metric if isinstance(function, Adapted) else function)})"


def _class_or_name(function: tp.Any) -> str:
    if isinstance(function, Module):
        return type(function).__name__
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _as_loss(name: str) -> str:
    """The rule of `elegy.add_loss`."""
    return name if name.endswith("loss") else f"{name}_loss"


def _evaluate(owner: str, function: tp.Any, inputs: dict[str, tp.Any], weighted: Callable[..., tp.Any]) -> tp.Any:
    """A loss or metric of a batch: scalars, in a dict if the function gives one. Those of a `Loss` are `Reduced`.

    `weighted(values, weights)` is what becomes of the values of a function that takes no `sample_weight` itself.
    """
    taken, mask = accepted(function), sample_mask()
    inputs = {**inputs, "sample_weight": (weight := _weight(owner, function, inputs["sample_weight"]))}
    if inputs["y_true"] is None and _needs_targets(taken):
        raise ValueError(_no_targets(owner))
    arguments = {
        parameter.name: inputs[key] for key, parameter in taken.items() if key != "sample_weight" or weight is not None
    }
    if _takes_anything(function):
        arguments = {
            name: inputs[key] for key, names in INPUTS.items() for name in names if inputs.get(key) is not None
        }
    is_of_samples = bool(_OF_SAMPLES & taken.keys())
    if mask is not None and is_of_samples and isinstance(function, (Loss, Metric)):
        if isinstance(function, Metric) and not takes(function, "mask"):
            raise NotMaskable(f"{owner} takes no mask")
        arguments["mask"] = mask
    if isinstance(function, Metric):
        return function(**arguments)
    if isinstance(function, Loss):
        of_values = lambda part: Reduced(_scalar(owner, part.value, mask), part.divisor)  # noqa: E731
        call = function.with_divisors
        if type(function).__call__ is not Loss.__call__:  # what a subclass makes of the numbers is not known
            call = lambda **given: jax.tree.map(lambda value: Reduced(jnp.asarray(value), None), function(**given))  # noqa: E731
        return jax.tree.map(of_values, call(**arguments), is_leaf=lambda part: isinstance(part, Reduced))
    value = _sample_by_sample(owner, function, arguments)
    if not is_of_samples:
        mask = None
    if weight is None or "sample_weight" in taken or not is_of_samples:
        return jax.tree.map(lambda value: _mean(owner, jnp.asarray(value, dtype=jnp.result_type(float)), mask), value)
    return jax.tree.map(lambda value: weighted(*_with_weights(owner, jnp.asarray(value), weight), mask), value)


@contextlib.contextmanager
def _explained(place: str, function: tp.Any, inputs: dict[str, tp.Any]) -> Iterator[None]:
    """Says in an error of a loss or a metric which one it is, as the user gave it; and which outputs there are, if it
    was given all of them."""
    try:
        yield
    except Exception as error:
        if isinstance(function, Module):
            _rename(error, path_of(function), place, _owner(place, function))
        if not getattr(error, "_elegy_noted", False):  # it happened in no call of a module, or in none yet
            named = ", ".join(f"{name}={show_value(value)}" for name, value in inputs.items() if value is not None)
            with contextlib.suppress(Exception):  # an error that takes no attribute
                error._elegy_noted = True  # type: ignore[attr-defined]
                error.add_note(f"in {_owner(place, function)}; inputs: {named}")
        with contextlib.suppress(Exception):  # outputs of any kind must not hide the error itself
            if hint := _hint(_owner(place, function), function, **inputs):
                error.add_note(hint)
        raise


def _hint(owner: str, function: tp.Any, x: tp.Any, y_true: tp.Any, y_pred: tp.Any, **_: tp.Any) -> str:
    """What may be wrong with the outputs that a loss or a metric was given."""
    nested = (dict, list, tuple)
    if isinstance(y_pred, nested) and isinstance(function, (Loss, Metric)) and not _on(function):
        keys = [*y_pred] if isinstance(y_pred, dict) else [*range(len(y_pred))]
        one = f"{type(function).__name__}(..., on={keys[0] if keys else 0!r})"
        return (
            f"{owner} was given all outputs, a {type(y_pred).__name__} with {', '.join(map(repr, keys))}. If it is "
            f"about one of them, say which, as by {one}; the same is taken of the targets."
        )
    if isinstance(y_true, nested) and is_array(y_pred):
        return (
            f"{owner} was given y_true, a {type(y_true).__name__}, and y_pred, one array, since the module has one "
            "output: give one array of targets."
        )
    samples = [len(leaf) for leaf in jax.tree.leaves((x, y_true)) if np.ndim(leaf)]
    shape = tuple(getattr(y_pred, "shape", ()))
    if samples and is_array(y_pred) and shape[:1] != (samples[0],):
        column = " A row of numbers, one for each sample, becomes a column by x[:, None]." if np.ndim(x) == 1 else ""
        return f"y_pred has shape {shape} for a batch of {samples[0]} samples: its first axis is not theirs." + column
    return ""


def _rename(error: Exception, path: str, place: str, owner: str) -> None:
    """Puts the place where the user gave a module for its path, in the text of an error."""
    found = re.compile(rf"(?<![\w/]){re.escape(path)}(?!\w)")
    if error.args and isinstance(error.args[0], str):
        text = error.args[0]
        text = owner + text.removeprefix(path) if text.startswith(f"{path}: ") else text
        error.args = (found.sub(lambda _: place, text), *error.args[1:])
    if notes := getattr(error, "__notes__", None):
        notes[:] = [found.sub(lambda _: place, note) for note in notes]


def _weight(owner: str, function: tp.Any, weight: tp.Any) -> tp.Any:
    """The weights for a loss or a metric: where outputs have weights of their own, those of the output it is about."""
    if not isinstance(weight, (dict, list, tuple)):
        return weight
    on = _on(function)
    if on:
        try:
            return functools.reduce(operator.getitem, on, tp.cast(tp.Any, weight))
        except (KeyError, IndexError, TypeError):
            given = ", ".join(map(repr, weight if isinstance(weight, dict) else range(len(weight))))
            raise ValueError(
                f"{owner} is about the output {'/'.join(map(str, on))}, and sample_weight has no weights of it; it has "
                f"those of {given}.\n  Give None for an output whose samples weigh alike."
            ) from None
    if not isinstance(function, (Loss, Metric)) and "sample_weight" in accepted(function):
        return weight  # it knows what to do with them
    raise ValueError(
        f"{owner} takes one array of weights, and sample_weight is a {type(weight).__name__} of several, one for each "
        "output.\n  Say by on= which output it is about, or give one array for all."
    )


def _on(function: tp.Any) -> tuple[str | int, ...]:
    """The keys and indices of the output that a loss or a metric is about; none if it is about all."""
    on = getattr(function, "on", None)
    return () if on is None else (on,) if isinstance(on, (str, int)) else tuple(on)


def _needs_targets(taken: dict[str, inspect.Parameter]) -> bool:
    return "y_true" in taken and taken["y_true"].default is inspect.Parameter.empty


def _no_targets(owner: str) -> str:
    return (
        f"{owner} compares predictions with targets, and there are none.\n"
        "  Give y, as in fit(x, y) or validation_data=(x, y)."
    )


def require_targets(losses: Losses, metrics: Metrics, x: tp.Any, y: tp.Any) -> None:
    """Refuses data without targets before anything runs on them."""
    if y is not None:
        return
    for objectives in (losses, metrics):
        for owner, function in objectives.owners():
            if _needs_targets(accepted(function)):
                pair = isinstance(x, (tuple, list)) and len(x) == 2
                raise ValueError(_no_targets(owner) + (" Is it in x, as (x, y)? Then write fit(*x)." if pair else ""))


class Labels(tp.NamedTuple):
    """Which labels an objective takes, of the part of the targets that it is about.

    - `owner`: what messages call the loss or the metric.
    - `on`: the keys and indices of that part.
    """

    owner: str
    on: tuple[str | int, ...]
    range: LabelRange


def have_labels(*objectives: Losses | Metrics) -> bool:
    """Whether some take labels of classes."""
    return any(hasattr(function, "label_range") for part in objectives for function in part.functions)


def labels_of(objectives: Losses | Metrics, y: tp.Any, inputs: dict[str, tp.Any]) -> list[Labels]:
    """Which labels the targets `y` of the data may hold, where it is these that losses or metrics are given."""
    given, targets = (jax.tree.flatten(tree) for tree in (inputs["y_true"], y))
    if given[1] != targets[1] or any(a is not b for a, b in zip(given[0], targets[0], strict=True)):
        return []
    found: list[Labels] = []
    for owner, function in objectives.owners():
        label_range = getattr(function, "label_range", None)
        if label_range is not None:
            on = _on(function)
            y_pred = functools.reduce(operator.getitem, on, inputs["y_pred"])
            if (taken := label_range(y_pred)) is not None:
                found.append(Labels(owner, on, taken))
    return found


def _sample_by_sample(owner: str, function: Callable[..., tp.Any], arguments: dict[str, tp.Any]) -> tp.Any:
    """Calls a function, unless it would broadcast the samples of one argument against those of another.

    For labels of shape (256,) and logits of shape (256, 1) NumPy's rules give (256, 256) values, and the mean of them
    teaches a module nothing. Whether a function applies these rules to its arguments JAX says, told to raise; only in
    `jnp.where` it does not look.
    """
    shapes = {key: jnp.shape(value) for key, value in arguments.items() if is_array(value)}
    crossing = [pair for pair in itertools.combinations(shapes, 2) if _would_cross(*(shapes[key] for key in pair))]
    if not crossing:
        return function(**arguments)
    try:
        with transaction(), jax.numpy_rank_promotion("raise"):
            return function(**arguments)
    except ValueError as error:
        text = str(error)
        for pair in crossing:
            met = {key: shapes[key] for key in pair}
            if "rank_promotion" in text and all(str(shape) in text for shape in met.values()):
                raise ValueError(
                    f"{owner} would compare each sample with every other one: it broadcasts "
                    + " and ".join(f"{key} of shape {shape}" for key, shape in met.items())
                    + f" to {np.broadcast_shapes(*met.values())}. Give it arrays of one shape.{missing_axis(met)}"
                ) from None
    return function(**arguments)


def _would_cross(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether NumPy's rules give two arrays, whose first axis is that of the samples, a second axis of samples."""
    try:
        size = math.prod(np.broadcast_shapes(a, b))
    except ValueError:
        return False
    return len(a) != len(b) and size > max(math.prod(a), math.prod(b))


def _takes_anything(function: tp.Any) -> bool:
    """Whether this is a metric of another library that takes what it needs out of all inputs, by any of their names."""
    signature = _signature(function) if isinstance(function, Adapted) else None
    return signature is not None and any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _signature(function: tp.Any) -> inspect.Signature | None:
    if isinstance(function, Adapted):
        function = maker_of(function.metric)
    try:
        return inspect.signature(function.call if isinstance(function, Module) else function)
    except (TypeError, ValueError):  # some builtins have no signature
        return None


def accepted(function: tp.Any) -> dict[str, inspect.Parameter]:
    """The inputs that a function names among its parameters, with these parameters.

    Any loss takes a weight of samples, if it is about samples: a penalty of the parameters alone is not.
    """
    signature = _signature(function)
    parameters = {} if signature is None else signature.parameters
    found = {
        key: parameters[name]
        for key, names in INPUTS.items()
        if (name := next((name for name in names if name in parameters), None)) is not None
    }
    if isinstance(function, Loss) and _OF_SAMPLES & found.keys():
        found.setdefault("sample_weight", inspect.Parameter("sample_weight", inspect.Parameter.KEYWORD_ONLY))
    return found


class NotMaskable(Exception):
    """A loss or a metric cannot leave out the padding of a batch."""


def _mean(owner: str, values: Float[Array, "*shape"], mask: Bool[Array, "samples"] | None) -> Float[Array, ""]:
    """The mean over the samples that are no padding."""
    if mask is None:
        return jnp.mean(values)
    if values.ndim == 0:
        raise NotMaskable(f"{owner} returns a scalar")
    counted = mask_for(lambda: owner, values, mask)
    return jnp.sum(jnp.where(counted, values, 0)) / jnp.sum(counted).astype(values.dtype)


def _scalar(owner: str, value: Array, mask: Bool[Array, "samples"] | None) -> Float[Array, ""]:
    """A loss, or the mean of one that is not reduced."""
    return _mean(owner, value.astype(jnp.result_type(float)), None if value.ndim == 0 else mask)


def _mean_of_weighted(
    values: Float[Array, "*shape"], weights: Float[Array, "*shape"], mask: Bool[Array, "samples"] | None
) -> Float[Array, ""]:
    """The mean of the values, each times its weight: that of a loss."""
    return _mean("", values * weights, mask)


def _weighted_mean(
    values: Float[Array, "*shape"], weights: Float[Array, "*shape"], mask: Bool[Array, "samples"] | None
) -> Weighted:
    """The weighted mean of the values, and 0 where all weights are 0: that of a metric."""
    if mask is not None:
        weights = jnp.where(mask_for(lambda: "", weights, mask), weights, 0)
    weight = jnp.sum(weights)
    return Weighted(jnp.sum(values * weights) / jnp.where(weight == 0, jnp.ones_like(weight), weight), weight)


def _with_weights(owner: str, values: Array, weight: Array) -> tuple[Array, Array]:
    if values.ndim == 0:
        raise ValueError(
            f"{owner}: there is a sample_weight, but the function takes none and returned a scalar.\n"
            "  Return one value for each example, or take a parameter `sample_weight`."
        )
    values = values.astype(jnp.result_type(float))
    return values, weights_for(owner, values, weight)


def add_values(values: Scalars, name: str, value: tp.Any, taken: Iterable[str] = ()) -> list[str]:
    """Adds a scalar, or each entry of a nested dict of scalars, under a name that is not taken.

    **Returns:** the names.
    """
    names: list[str] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(value, is_leaf=_is_logged)[0]:
        leaf = leaf if _is_logged(leaf) else jnp.asarray(leaf, dtype=jnp.result_type(float))
        full = "/".join([name, *(jax.tree_util.keystr((key,), simple=True) for key in path)])
        if not _is_logged(leaf) and leaf.shape != ():
            raise ValueError(f"{full}: what is logged must be a scalar, got shape {leaf.shape}. Reduce it.")
        names.append(numbered(full, {*values, *taken})[0])
        values[names[-1]] = leaf
    return names


def _is_logged(value: tp.Any) -> bool:
    return isinstance(value, (Weighted, Sum, Total))


def scalar_of(value: tp.Any) -> tp.Any:
    """The number that a value in `Scalars` is."""
    return value.mean if isinstance(value, Weighted) else value.value if isinstance(value, (Sum, Total)) else value
