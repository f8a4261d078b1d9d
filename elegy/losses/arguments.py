"""What losses and metrics do with their arguments: `on`, `sample_weight`, and targets that must fit predictions."""

from __future__ import annotations

import functools
import inspect
import math
import typing as tp
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num, Shaped

from elegy.errors import SampleMaskError, show_value
from elegy.frames import path_of
from elegy.leaves import is_array
from elegy.module import Module
from elegy.precision import at_least_float32

# Probabilities are not taken for less than this, as in Keras, so that their logarithms are finite.
EPSILON = 1e-7

On = str | int | Sequence[str | int] | None


# By the function, since the `call` of a class may be replaced.
_signature = functools.lru_cache(maxsize=256)(inspect.signature)


def takes(module: Module, name: str) -> bool:
    """Whether `call` of this module has a parameter of that name."""
    return name in _signature(type(module).call).parameters


def positional_count(module: Module) -> int | None:
    """How many positional arguments `call` takes besides `self`; None if any number."""
    parameters = list(_signature(type(module).call).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


def bind(module: Module, args: tp.Any, kwargs: tp.Any) -> inspect.BoundArguments:
    """The arguments of `call` by name."""
    return _signature(type(module).call).bind(module, *args, **kwargs)


def select(module: Module, on: On, args: tp.Any, kwargs: tp.Any) -> tuple[tp.Any, tp.Any]:
    """The arguments of `call`, with the part of `y_true` and `y_pred` that `on` names in their place."""
    if on is None:
        return args, kwargs
    bound = bind(module, args, kwargs)
    found = [name for name in ("y_true", "y_pred") if name in bound.arguments]
    if not found:
        raise ValueError(
            f"{path_of(module)}: on={on!r} selects a part of y_true and y_pred, and this call has neither.\n"
            "  Leave on= out. If a name was meant, give it by keyword: name=..."
        )
    for name in found:
        bound.arguments[name] = _part(module, name, on, bound.arguments[name])
    return bound.args[1:], bound.kwargs


def _part(module: Module, name: str, on: On, value: tp.Any) -> tp.Any:
    path = (on,) if isinstance(on, (str, int)) else tuple(tp.cast(tp.Any, on))
    for key in path:
        try:
            if is_array(value):  # a number would select a sample
                raise TypeError
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            has = f"has the keys {sorted(map(str, value))}" if isinstance(value, Mapping) else f"is {show_value(value)}"
            raise ValueError(
                f"{path_of(module)}: on={on!r} selects {key!r} of {name}, which {has} ({type(error).__name__})."
            ) from None
    return value


def comparable(owner: str, y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]) -> tuple[Array, Array]:
    """Targets and predictions in one dtype, of at least float32. Their shapes must be equal."""
    y_true, y_pred = jnp.asarray(y_true), jnp.asarray(y_pred)
    if y_true.shape != y_pred.shape:
        raise ValueError(
            f"{owner}: y_true has shape {y_true.shape} and y_pred {y_pred.shape}; they must be equal."
            + (missing_axis({"y_true": y_true.shape, "y_pred": y_pred.shape}) or _one_hot(y_true, y_pred))
        )
    if jnp.iscomplexobj(y_true) or jnp.iscomplexobj(y_pred):
        raise TypeError(f"{owner}: expected real numbers, got {y_true.dtype} and {y_pred.dtype}.")
    dtype = at_least_float32(y_pred.dtype)
    return y_true.astype(dtype), y_pred.astype(dtype)


def missing_axis(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The line of an error message that says how the first of two arrays, or the second, gets the shape of the other;
    nothing if it lacks something else than a last axis of size 1."""
    (first, a), (second, b) = shapes.items()
    name = first if (*a, 1) == b else second if (*b, 1) == a else None
    return "" if name is None else f"\n  The missing last axis of {name} is added by {name}[..., None]."


def _one_hot(y_true: Shaped[Array, "..."], y_pred: Num[Array, "..."]) -> str:
    """The line of an error message that says what becomes of labels where rows are compared; nothing for others."""
    are_labels = jnp.issubdtype(y_true.dtype, jnp.integer) and y_pred.shape[-1:] > (1,)
    if not are_labels or y_true.shape not in (y_pred.shape[:-1], (*y_pred.shape[:-1], 1)):
        return ""
    return (
        "\n  Integer labels of classes are for the loss or metric whose name begins with sparse; or make them rows by "
        "jax.nn.one_hot."
    )


def class_labels(
    owner: str, y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]
) -> tuple[Num[Array, "*batch"], Float[Array, "*batch classes"]]:
    """Labels of the shape of the batch, and scores with one axis more, of at least float32.

    Labels may have a last axis of size 1, as a column of a table has.
    """
    y_true, y_pred = jnp.asarray(y_true), jnp.asarray(y_pred)
    if y_pred.ndim == 0:
        raise ValueError(f"{owner}: y_pred must have an axis of classes, got a scalar.")
    if not jnp.issubdtype(y_true.dtype, jnp.integer):
        raise TypeError(
            f"{owner}: y_true must hold integer class labels, got {y_true.dtype}{list(y_true.shape)}.\n"
            "  Convert labels by y_true.astype(int); of one-hot rows take y_true.argmax(-1)."
        )
    if y_true.shape == (*y_pred.shape[:-1], 1):
        y_true = jnp.squeeze(y_true, -1)
    if y_true.shape != y_pred.shape[:-1]:
        raise ValueError(
            f"{owner}: y_true has shape {y_true.shape} and y_pred {y_pred.shape}; y_true must have the shape of y_pred "
            f"without its last axis, {y_pred.shape[:-1]}."
            + ("\n  Of one-hot rows take y_true.argmax(-1)." if y_true.shape == y_pred.shape else "")
        )
    if y_true.dtype.itemsize < 4:  # int8 cannot be compared with the number of classes, which may be 1000
        y_true = y_true.astype(jnp.int32)
    return y_true, y_pred.astype(at_least_float32(y_pred.dtype))


class LabelRange(tp.NamedTuple):
    """Which labels an objective takes: those from 0 to `classes - 1`, and `ignored`.

    - `counts_all`: whether a label out of range matters also where its weight is 0.
    - `left_out`: what leaves labels out that are no classes, as padding is not.
    - `is_binary`: whether they are 0, 1, or probabilities, each of its own prediction.
    """

    classes: int
    ignored: int | None = None
    counts_all: bool = False
    left_out: str = "by sample_weight, which is 0 there"
    is_binary: bool = False


BINARY = LabelRange(2, is_binary=True)


def one_number_each(
    y_true: Shaped[ArrayLike, "..."], y_pred: Num[ArrayLike, "..."]
) -> tuple[Shaped[ArrayLike, "..."], Num[ArrayLike, "..."]]:
    """Targets and predictions of at most one axis as columns, so that each number is an example of its own."""
    if jnp.ndim(y_true) < 2 and jnp.shape(y_true) == jnp.shape(y_pred):
        return jnp.asarray(y_true)[..., None], jnp.asarray(y_pred)[..., None]
    return y_true, y_pred


def axis_last(owner: str, axis: int, array: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """The array with one axis moved to the end."""
    array = jnp.asarray(array)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"{owner}: axis={axis} is not an axis of y_pred, which has shape {array.shape}.")
    return jnp.moveaxis(array, axis, -1)


def smoothed(y_true: Float[Array, "..."], label_smoothing: float | int, classes: int) -> Float[Array, "..."]:
    """Targets, of which a part is spread evenly over the classes (Szegedy et al., 2015, section 7)."""
    return y_true if label_smoothing == 0 else (1 - label_smoothing) * y_true + label_smoothing / classes


def weights_for(
    owner: str | Callable[[], str],
    values: Float[Array, "*shape"],
    sample_weight: Shaped[ArrayLike, "..."],
    argument: str = "sample_weight",
) -> Float[Array, "*shape"]:
    """`sample_weight`, or what `argument` names, in the shape and dtype of `values`; a name of the owner that costs
    something is a function.

    The weight may have the leading axes of the values only, as one number for each example has, axes of size 1, and
    further last axes of size 1.
    """
    weight = jnp.asarray(sample_weight)
    shape = weight.shape
    while len(shape) > values.ndim and shape[-1] == 1:
        shape = shape[:-1]
    shape = (*shape, *(1,) * (values.ndim - len(shape)))
    if len(shape) > values.ndim or any(
        size not in (1, wanted) for size, wanted in zip(shape, values.shape, strict=True)
    ):
        owner = owner() if callable(owner) else owner
        verb = "weights" if argument == "sample_weight" else "selects from"
        fix = "Its axes must be the first ones of the values, for example (batch,)."
        if values.ndim == 0:
            fix = "There is one number for all examples, so that none of them has a value of its own."
        raise ValueError(
            f"{owner}: {argument} has shape {weight.shape}, and the values that it {verb} {values.shape}.\n  {fix}"
        )
    return jnp.broadcast_to(weight.reshape(shape).astype(values.dtype), values.shape)


def mask_for(
    owner: Callable[[], str], values: Float[Array, "*shape"], mask: Shaped[ArrayLike, "..."]
) -> Bool[Array, "*shape"]:
    """`mask` in the shape of `values`."""
    dtype = jnp.result_type(mask)
    if not (dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{owner()}: mask must hold bools, got {dtype}.\n  Write mask > 0, or give sample_weight.")
    try:
        return weights_for(owner, values, mask, "mask") != 0
    except ValueError as error:
        raise SampleMaskError(str(error)) from None


# ---------------------------------------------------------------------------------------------------------------------
# Arguments of constructors
# ---------------------------------------------------------------------------------------------------------------------


def number(
    loss: str,
    name: str,
    value: tp.Any,
    least: float | int = 0,
    most: float | int = math.inf,
    exclusive: bool = False,
) -> float:
    """An argument that must be a number from `least`, or above it where that is exclusive, to `most`."""
    fits = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not fits or not least <= value <= most or (exclusive and value == least) or math.isinf(value):
        above = f"greater than {least:g}" if exclusive else f"of at least {least:g}"
        wanted = above if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"elegy.{loss}: {name} must be a number {wanted}, got {value!r}.")
    return float(value)


def flag(loss: str, name: str, value: tp.Any) -> bool:
    """An argument that must be a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"elegy.{loss}: {name} must be True or False, got {value!r}.")
    return bool(value)
