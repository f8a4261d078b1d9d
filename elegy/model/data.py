"""Arrays in, batches out."""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing as tp
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree, Shaped

from elegy.data import Source
from elegy.data.batch import as_array, as_batch, is_numbers
from elegy.errors import SortedDataWarning
from elegy.frames import warn
from elegy.leaves import is_array
from elegy.losses.arguments import LabelRange
from elegy.model.placement import between
from elegy.module import Module
from elegy.state import training

if tp.TYPE_CHECKING:
    from elegy.model.objectives import Labels

Samples = Shaped[np.ndarray, "samples *shape"] | Shaped[jax.Array, "samples *shape"]


class Data(tp.NamedTuple):
    """Inputs, targets and weights: pytrees of NumPy arrays with one first axis, that of the samples; or None."""

    x: PyTree[Samples]
    y: PyTree[Samples] | None
    sample_weight: PyTree[Samples] | None

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(jax.tree.leaves(self)[0])


def as_data(x: tp.Any, y: tp.Any = None, sample_weight: tp.Any = None) -> Data:
    """Checks arrays, and brings them to the dtypes that JAX computes with."""
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if isinstance(value, Iterator):
            raise TypeError(
                f"{name} is a {type(value).__name__}, which gives its values one by one.\n  Give an array; or let x "
                "give batches (x, y) or (x, y, sample_weight), and leave y and sample_weight out."
            )
    try:
        return on_one_side(Data(*as_batch((x, y, sample_weight))))
    except ValueError as error:
        if (hint := _of_samples(x)) and "differ in length" in str(error):
            raise ValueError(f"{error}\n  {hint}") from None
        raise


def _of_samples(x: tp.Any) -> str:
    """What a list of arrays of one shape, that are no inputs of a module, may be meant for."""
    if not is_list_of_arrays(x) or len(x) < 2 or len({np.shape(part) for part in x}) > 1:
        return ""
    return f"If the {len(x)} arrays in x are the samples, one by one, make one array of them: np.stack(x)."


def is_list_of_arrays(x: tp.Any) -> bool:
    return isinstance(x, list) and bool(x) and all(map(is_array, x))


def from_numbers(tree: tp.Any, name: str = "x") -> tp.Any:
    """The tree with an array in the place of each nested list of numbers."""
    of_numbers = lambda part: isinstance(part, list) and is_numbers(part)  # noqa: E731
    return jax.tree.map(lambda part: as_array(part, (name,)) if of_numbers(part) else part, tree, is_leaf=of_numbers)


def gives_batches(x: tp.Any) -> bool:
    """Whether `x` is no array, and no tuple or dict of arrays, but gives batches one by one.

    Numbers in nested lists are an array.
    """
    if isinstance(x, list):
        # Tuples of more are batches too, to be told so.
        are_batches = all(isinstance(item, tuple) or (isinstance(item, list) and 1 <= len(item) <= 3) for item in x)
        return bool(x) and are_batches and not is_numbers(x)
    return isinstance(x, Source) or (
        (hasattr(x, "__iter__") or callable(x))
        and not hasattr(x, "__array__")
        and not isinstance(x, (str, Sequence, Mapping))
    )


def on_one_side(data: Data) -> Data:
    """The data with arrays of JAX, if all are, else with arrays of NumPy."""
    leaves = jax.tree.leaves(data)
    if all(isinstance(leaf, jax.Array) for leaf in leaves):
        return data
    return jax.tree.map(np.asarray, data)


def split(data: Data, fraction: float) -> tuple[Data, Data]:
    """All but the last `fraction` of the samples, and these."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation_split must be between 0 and 1, got {fraction}.")
    at = int(data.size * (1 - fraction))
    if at in (0, data.size):
        purpose, change = ("train", "smaller") if at == 0 else ("validate", "larger")
        raise ValueError(
            f"validation_split={fraction} of {data.size} samples leaves none to {purpose} on.\n"
            f"  Give more samples, a {change} fraction, or validation_data=(x, y)."
        )
    _require_unsorted(data.y, at, fraction)
    first, last = ((0, at), (at, data.size))
    return jax.tree.map(lambda array: between(array, *first), data), jax.tree.map(
        lambda array: between(array, *last), data
    )


def _require_unsorted(y: tp.Any, at: int, fraction: float) -> None:
    """Warns if targets are labels of classes, and all samples of a class come in a row, so that those from `at` on are
    of the last ones."""
    labels: tp.Any = None
    y = np.asarray(y) if isinstance(y, jax.Array) else y
    if not isinstance(y, np.ndarray):
        return
    if y.shape[1:] in ((), (1,)) and (y.dtype.kind in "uib" or (y.dtype.kind == "f" and (y == np.round(y)).all())):
        labels = y.reshape(-1)
    elif _is_one_hot(y):
        labels = y.argmax(axis=1)
    else:
        return
    classes, runs = len(np.unique(labels)), 1 + np.count_nonzero(labels[1:] != labels[:-1])
    if 1 < classes == runs <= len(labels) / 2:  # with fewer samples of each they are hardly classes
        warn(
            SortedDataWarning(
                f"y is sorted by class, and validation_split={fraction} takes the last samples: these are of "
                f"{len(np.unique(labels[at:]))} of the {classes} classes.\n"
                "  Shuffle the samples before: order = np.random.default_rng(0).permutation(len(x)); "
                "fit(x[order], y[order], ...)."
            )
        )


def _is_one_hot(y: np.ndarray) -> bool:
    return y.ndim == 2 and y.shape[1] > 1 and bool(np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())


def require_finite(data: Data, of: str = "", on_device: bool = False) -> Data:
    """Refuses weights of samples that are no finite real numbers: one of them would make all of a batch so.

    **Arguments:**

    - `of`: what follows `sample_weight` in messages.
    - `on_device`: whether to look at arrays of JAX too, which are to be copied for that.
    """
    for path, weight in jax.tree_util.tree_flatten_with_path(data.sample_weight)[0]:
        if jnp.issubdtype(weight.dtype, jnp.complexfloating):
            raise TypeError(f"sample_weight{of} holds real numbers, got {weight.dtype}{list(weight.shape)}.")
        if isinstance(weight, jax.Array):
            if not on_device or isinstance(weight, Tracer) or not weight.is_fully_addressable:
                continue
            weight = np.asarray(weight)
        finite = np.isfinite(weight)
        if not finite.all():
            name, places = f"sample_weight{jax.tree_util.keystr(path)}", np.argwhere(~finite)
            at = tuple(map(int, places[0]))
            raise ValueError(
                f"{name}{of}: {len(places)} of {weight.size} weights are not finite, the first of which is "
                f"{name}[{', '.join(map(str, at))}] = {weight[at]}.\n  What is not to count has the weight 0."
            )
    return data


def with_class_weight(data: Data, class_weight: tp.Any, are_labels: bool = True) -> Data:
    """The data with a weight for each label, that of its class times `sample_weight`. None changes nothing.

    - `are_labels`: whether losses or metrics take labels. Else rows of integers may be one-hot.

    **Raises:** `TypeError` or `ValueError` if the targets are no labels of classes, or the weights not those of them.
    """
    if class_weight is None:
        return data
    resident = isinstance(data.y, jax.Array)
    data = data._replace(y=np.asarray(data.y)) if resident else data
    weights = _by_class(class_weight)
    labels, classes = _labels(data.y, are_labels)
    unknown = [label for label in weights if classes is not None and label >= classes]
    if unknown:
        raise ValueError(
            f"class_weight has a weight for class {unknown[0]}, and y has {classes} columns, one for each class."
        )
    used, places = np.unique(labels, return_inverse=True)
    found = np.asarray([weights.get(int(label), 1.0) for label in used], np.float32)[places].reshape(labels.shape)
    if isinstance(data.sample_weight, (dict, list, tuple)):
        raise TypeError("class_weight weighs one array of targets, and sample_weight has weights of several outputs.")
    if data.sample_weight is not None:
        given = np.asarray(data.sample_weight)
        found = found.reshape(found.shape + (1,) * (given.ndim - found.ndim))
        found = found * given.reshape(given.shape + (1,) * (found.ndim - given.ndim)).astype(np.float32)
    if resident:
        return data._replace(y=jnp.asarray(data.y), sample_weight=jnp.asarray(found))
    return data._replace(sample_weight=found)


def _by_class(class_weight: tp.Any) -> dict[int, float]:
    """The weights by label, of a dict or of something with a weight for each label from 0 on."""
    pairs: Iterable[tuple[tp.Any, tp.Any]] = ()
    if isinstance(class_weight, Mapping):
        pairs = class_weight.items()
    elif isinstance(class_weight, (list, tuple)) or hasattr(class_weight, "__array__"):
        pairs = enumerate(np.asarray(class_weight).tolist())
    found: dict[int, float] = {}
    for label, weight in pairs:
        is_label = isinstance(label, (int, np.integer)) and not isinstance(label, bool) and label >= 0
        if not is_label or not isinstance(weight, (int, float, np.number)) or not 0 <= weight < np.inf:
            raise ValueError(
                f"class_weight takes labels, which are integers from 0 on, and weights, which are not negative; it has "
                f"the weight {weight!r} for {label!r}."
            )
        found[int(label)] = float(weight)
    if not found:
        raise TypeError(f"class_weight is a dict from labels to weights, or a list of weights, got {class_weight!r}.")
    return found


def _labels(y: tp.Any, are_labels: bool) -> tuple[np.ndarray, int | None]:
    """The labels of classes that targets hold, and the number of classes if they are one-hot rows."""
    if not isinstance(y, np.ndarray):
        what = "there is none" if y is None else f"y is a {type(y).__name__}"
        raise TypeError(
            f"class_weight weighs the classes of one array of targets, and {what}.\n  Give sample_weight instead."
        )
    if y.dtype.kind in "bui":
        if not are_labels and _is_one_hot(y):
            return y.argmax(axis=1), y.shape[1]
        return y.astype(np.int64), None
    if y.ndim > 1 and y.shape[-1] > 1:
        if not (y >= 0).all() or not np.allclose(y.sum(axis=-1, dtype=np.float64), 1, atol=1e-3):
            raise ValueError(
                f"class_weight: the targets are rows of {y.shape[-1]} numbers which are no probabilities of classes: "
                "some are negative, or a row does not add up to 1.\n  Give sample_weight instead, a number for each "
                "sample or for each value."
            )
        return y.argmax(axis=-1), y.shape[-1]
    if not (y == np.round(y)).all():
        raise ValueError(
            "class_weight: the targets are no labels of classes, since they are no whole numbers.\n"
            "  Give sample_weight instead, a number for each sample."
        )
    return y.astype(np.int64), None


class LabelCheck:
    """Looks at the labels of data on the host: they must be classes of what a module predicts. How many classes there
    are the trace of a step tells; what comes before is looked at then.

    **Arguments:**

    - `name`: that of the targets, in messages.
    - `class_weight`: weights of classes, which must be classes of it too.
    """

    def __init__(self, name: str, class_weight: tp.Any = None):
        self._name = name
        self._weighted = [] if class_weight is None else sorted(_by_class(class_weight))
        self._labels: Sequence[Labels] | None = None
        self._waiting: list[Data] = []

    def __call__(self, data: Data) -> Data:
        if self._labels is None:
            self._waiting.append(data)
        else:
            self._require(data, self._labels)
        return data

    def learn(self, labels: Sequence[Labels]) -> None:
        """**Raises:** `ValueError` if labels that came before are out of range, or classes that have weights."""
        for owner, on, taken in labels:
            if self._weighted and not on and self._weighted[-1] >= taken.classes:
                raise ValueError(
                    f"class_weight has a weight for class {self._weighted[-1]}, and of {owner} y_pred has "
                    f"{taken.classes} classes, which are 0 to {taken.classes - 1}."
                )
        self._labels, waiting, self._waiting = labels, self._waiting, []
        for data in waiting:
            self._require(data, labels)

    def _require(self, data: Data, labels: Sequence[Labels]) -> None:
        for owner, on, taken in labels:
            found: tp.Any = functools.reduce(lambda tree, key: tree[key], on, tp.cast(tp.Any, data.y))
            if isinstance(found, jax.Array) and (isinstance(found, Tracer) or not found.is_fully_addressable):
                continue
            if data.sample_weight is None or taken.counts_all:
                _require_classes(owner, self._name + "".join(f"[{key!r}]" for key in on), np.asarray(found), taken)


def _require_classes(owner: str, name: str, labels: np.ndarray, taken: LabelRange) -> None:
    if taken.is_binary and labels.dtype.kind == "f" and labels.size > len(labels):
        return  # pictures, for example: to go through them takes time, and they are seldom labels
    least, most = labels.min(), labels.max()
    if 0 <= least and most < taken.classes and not (taken.is_binary and most > 1):
        return
    wrong = (labels < 0) | (labels > taken.classes - 1)
    if taken.ignored is not None:
        wrong &= labels != taken.ignored
    if not wrong.any():
        return
    outside = labels[wrong]
    place = ", ".join(map(str, np.argwhere(wrong)[0]))
    number = f"{outside.size} of {labels.size} labels {'is' if outside.size == 1 else 'are'} out of range"
    known = f"y_pred has {taken.classes} classes, which are 0 to {taken.classes - 1}"
    hints = []
    if taken.is_binary:
        known = "a label is 0 or 1, or a probability"
        hints.append(f"Of labels {least} and {most} make 0 and 1, for example by ({name} > {least}).astype(int).")
    elif least == 1 and most == taken.classes:
        hints.append(f"Labels that begin at 1 become classes by {name} - 1.")
    elif most >= taken.classes:
        hints.append(f"Labels are 0 to n - 1: the module must predict {most + 1} classes, or labels from 1 on lose 1.")
    if least < 0:
        hints.append(f"Labels that are to be left out, as padding is, are left out {taken.left_out}.")
    raise ValueError(
        f"{owner}: {name} has labels from {least} to {most}, and {known}. {number}, the first of which is "
        f"{name}[{place}] = {outside[0]}.\n  {' '.join(hints)}"
    )


def arguments_of(module: Module, x: tp.Any) -> tuple[tuple[tp.Any, ...], dict[str, tp.Any]]:
    """How a module is called with `x`: a tuple holds its arguments, a dict those by keyword, anything else is the only
    one."""
    signature = inspect.signature(module.call)
    kwargs = {"training": training()} if "training" in signature.parameters else {}
    if isinstance(x, list) and not _binds(signature, [x], kwargs) and _binds(signature, x, kwargs):
        raise TypeError(
            f"{type(module).__name__} takes {len(x)} arguments, and x is a list of {len(x)}, which is one of them.\n"
            f"  {_TUPLE}, as in fit((a, b), y)."
        )
    if isinstance(x, tuple):
        return x, kwargs
    if isinstance(x, dict):
        return (), {**kwargs, **x}
    return (x,), kwargs


_TUPLE = "Give a tuple of inputs"


def _binds(signature: inspect.Signature, args: Sequence[tp.Any], kwargs: dict[str, tp.Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def hinting_at_tuples(x: tp.Any) -> Iterator[None]:
    """Says in an error of a step that a list of arrays was given, which is one argument of the module."""
    try:
        yield
    except Exception as error:
        if is_list_of_arrays(x) and _TUPLE not in str(error):
            error.add_note(
                f"x is a list of {len(x)} arrays, and so one argument of the module, a list. For a module that takes "
                "several arguments give a tuple, fit((a, b), y); samples, one by one, become one array by np.stack(x)."
            )
        raise
