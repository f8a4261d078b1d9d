"""The rules for the primitives of JAX: what is known of the outputs of an equation, by what is known of its inputs. The
tables at the end say which rule is for which primitive."""

from __future__ import annotations

import functools
import math
import typing as tp
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.extend.core import Literal

from elegy.model.row_values import (
    CLEAN,
    Equation,
    Place,
    PlaceMapping,
    Scalar,
    Shape,
    Value,
    all_joined,
    joined,
    plain,
    shape_of,
)

Rule = Callable[[Equation], list[Value]]


# ---------------------------------------------------------------------------------------------------------------------
# Element by element
# ---------------------------------------------------------------------------------------------------------------------

# These are exact: the same on each device.
_EXACT: dict[str, Callable[..., tp.Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "ceil": np.ceil,
    "eq": np.equal,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "sign": np.sign,
    "square": np.square,
    "sub": np.subtract,
    "xor": np.bitwise_xor,
}
# These are exact at some points.
_POINTS: dict[str, dict[Scalar, Scalar]] = {
    "erf": {0.0: 0.0},
    "exp": {0.0: 1.0, -math.inf: 0.0},
    "exp2": {0.0: 1.0, -math.inf: 0.0},
    "expm1": {0.0: 0.0, -math.inf: -1.0},
    "integer_pow": {1.0: 1.0},
    "log": {0.0: -math.inf, 1.0: 0.0},
    "log1p": {0.0: 0.0},
    "logistic": {-math.inf: 0.0},
    "sin": {0.0: 0.0},
    "sinh": {0.0: 0.0},
    "sqrt": {0.0: 0.0, 1.0: 1.0},
    "rsqrt": {1.0: 1.0},
    "tan": {0.0: 0.0},
    "tanh": {0.0: 0.0},
}
# Each output is an input, perhaps of another kind.
_SAME = set(
    "copy copy_p name pcast pvary reshard mesh_cast sharding_constraint layout_constraint stop_gradient".split()
)
_ELEMENTWISE = (
    set(_EXACT)
    | set(_POINTS)
    | _SAME
    | set(
        "acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt clamp clz complex conj convert_element_type "
        "cos cosh digamma div eq_to erf_inv erfc igamma igamma_grad_a igammac imag le_to lgamma log2 lt_to nextafter "
        "one_minus_square polygamma polynomial population_count pow real reduce_precision regularized_incomplete_beta "
        "rem round select_n shift_left shift_right_arithmetic shift_right_logical zeta".split()
    )
)


def _elementwise(equation: Equation) -> list[Value]:
    values, (out,) = equation.values, equation.out_shapes
    for value, shape in zip(values, equation.shapes, strict=True):
        # Axes of size 1 are broadcast. If that is the axis of the samples, all rows come from one.
        if shape and any(shape[place.axis] != out[place.axis] for place in (*value.rows, *value.places)):
            return equation.mix()
    selected: set[Place] = set()
    fixed: dict[Place, Scalar] = {}
    for place in {place for value in values for place in value.places}:
        known = [value.at(place) for value in values]
        result = _folded(equation, known)
        if result is not None:
            fixed[place] = result
        elif equation.name == "select_n" and known[0] is not None:
            if place not in values[1 + int(known[0])].rows:
                selected.add(place)
        elif _is_wild(equation, known, [place in value.rows for value in values]):
            return equation.mix("makes infinite values of padded rows")
    fills = [value.fill for value in values]
    fill = _folded(equation, fills)
    if fill is not None:
        return [Value(fill=fill)]
    rows = frozenset[Place]().union(*(value.rows for value in values)).difference(fixed, selected)
    if rows and _is_wild(equation, fills, [bool(value.rows) for value in values]):
        return equation.mix("makes infinite values of padded rows")
    return [Value(rows, frozenset(fixed.items()))]


def _folded(equation: Equation, known: Sequence[Scalar | None]) -> Scalar | None:
    """The result of an operation on these values, if it is known. None is a value that is not known; it is finite."""
    name, first = equation.name, known[0]
    if name == "select_n":
        _, *cases = known
        if first is not None:
            return cases[int(first)]
        return cases[0] if all(case == cases[0] for case in cases) else None
    if name in _SAME:
        return first
    if None not in known:
        return _computed(equation, known)
    some = [value for value in known if value is not None]
    if not some:
        return None
    value = some[0]
    if name == "mul":
        return value if value == 0 else None
    if name in ("add", "add_any", "sub"):
        return (-value if name == "sub" and first is None else value) if math.isinf(value) else None
    if name in ("max", "min"):
        return value if value == (math.inf if name == "max" else -math.inf) else None
    if name == "and":
        return value if value == 0 else None
    if name == "or":
        return value if value is True else None
    if name == "div":
        return value if value == 0 and first is not None and equation.values[1].is_clean else None
    return None


def _computed(equation: Equation, known: Sequence[tp.Any]) -> Scalar | None:
    name, value = equation.name, known[0]
    if name in _POINTS:
        if name == "integer_pow" and value == 0 and equation.params["y"] > 0:
            return value
        return _POINTS[name].get(value)
    if name == "div":
        return value if value == 0 and known[1] != 0 else None
    if name == "clamp":
        low, value, high = known
        return max(low, min(value, high)) if low <= high else None
    with np.errstate(all="ignore"):
        try:
            if name == "convert_element_type":
                dtype = np.dtype(equation.params["new_dtype"])
                is_safe = dtype.kind not in "iu" or (math.isfinite(value) and 0 <= value < 100)
                return plain(np.asarray(value).astype(dtype)) if is_safe else None
            if name in _EXACT:
                operands = [
                    np.asarray(value, variable.aval.dtype)
                    for value, variable in zip(known, equation.equation.invars, strict=True)
                ]
                return plain(_EXACT[name](*operands))
        except (TypeError, ValueError, OverflowError):
            pass  # a dtype that NumPy does not know
    return None


def _is_wild(equation: Equation, known: Sequence[Scalar | None], is_garbage: Sequence[bool]) -> bool:
    """Whether an operation of a known value and garbage is infinite, or no number: then zero times it is not zero."""
    if not any(is_garbage):
        return False
    if equation.name in ("div", "rem"):
        return known[1] == 0 or any(value is not None and math.isinf(value) for value in known)
    if equation.name == "pow":
        return any(value is not None for value in known) and not isinstance(equation.equation.invars[1], Literal)
    return equation.name == "mul" and any(value is not None and math.isinf(value) for value in known)


def _each(equation: Equation) -> list[Value]:
    """Each output is one of the inputs."""
    return list(equation.values)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


# What becomes of fixed values.


def _same(value: Scalar) -> Scalar | None:
    return value


def _zero(value: Scalar) -> Scalar | None:
    return value if value == 0 else None


def _broadcast_in_dim(equation: Equation) -> list[Value]:
    axes, (shape, *_), (new,) = equation.params["broadcast_dimensions"], equation.shapes, equation.out_shapes

    def mapping(place: Place) -> Place | None:
        axis = axes[place.axis]
        return place._replace(axis=axis) if shape[place.axis] == new[axis] else None

    return equation.moved(mapping, kept=_same, has_fill=True)


def _reshape(equation: Equation) -> list[Value]:
    (shape, *_), (new,) = equation.shapes, equation.out_shapes
    if equation.params.get("dimensions") is not None:
        return equation.mix()
    samples = equation.analysis.samples
    return equation.moved(lambda place: _reshaped(place, samples, shape, new), kept=_same, has_fill=True)


def _reshaped(place: Place, samples: int, shape: Shape, new: Shape) -> Place | None:
    """Where the samples are after a reshape, which keeps the order of all elements."""
    before = math.prod(shape[: place.axis]) * place.outer
    after = math.prod(shape[place.axis + 1 :]) * place.inner
    for axis, size in enumerate(new):
        outer, rest = divmod(before, math.prod(new[:axis]))
        inner, more = divmod(after, math.prod(new[axis + 1 :]))
        if not rest and not more and size == outer * samples * inner:
            return Place(axis, outer, inner)
    return None


def _transpose(equation: Equation) -> list[Value]:
    order = list(equation.params["permutation"])
    return equation.moved(lambda place: place._replace(axis=order.index(place.axis)), kept=_same, has_fill=True)


def _without(axes: Iterable[tp.SupportsInt], ndim: int) -> PlaceMapping:
    """Where places are when axes are gone."""
    gone = {int(axis) % ndim for axis in axes}

    def mapping(place: Place) -> Place | None:
        before = sum(axis < place.axis for axis in gone)
        return None if place.axis in gone else place._replace(axis=place.axis - before)

    return mapping


def _squeeze(equation: Equation) -> list[Value]:
    mapping = _without(equation.params["dimensions"], len(equation.shapes[0]))
    return equation.moved(mapping, kept=_same, has_fill=True)


def _but(axes: Iterable[tp.SupportsInt]) -> PlaceMapping:
    """Places stay, but those along some axes, whose rows meet, or are in another order."""
    touched = {int(axis) for axis in axes}
    return lambda place: None if place.axis in touched else place


def _rev(equation: Equation) -> list[Value]:
    return equation.moved(_but(equation.params["dimensions"]), kept=_same, has_fill=True)


def _changed(shape: Shape, new: Shape) -> list[int]:
    return [axis for axis, (old, size) in enumerate(zip(shape, new, strict=True)) if old != size]


def _slice(equation: Equation) -> list[Value]:
    return equation.moved(_but(_changed(equation.shapes[0], equation.out_shapes[0])), kept=_same, has_fill=True)


def _dynamic_slice(equation: Equation) -> list[Value]:
    if not all(index.is_clean for index in equation.values[1:]):
        return equation.mix("takes a part that depends on padded rows")
    return _slice(equation)


def _dynamic_update_slice(equation: Equation) -> list[Value]:
    operand, update, *indices = equation.values
    if not all(index.is_clean for index in indices):
        return equation.mix("changes a part that depends on padded rows")
    changed = equation.follow(_but(_changed(*equation.shapes[:2])), update, kept=_same)
    return [joined(operand._replace(fill=None), changed)]


def _pad(equation: Equation) -> list[Value]:
    value, padding = equation.values
    if not padding.is_clean:
        return equation.mix()
    touched = [axis for axis, config in enumerate(equation.params["padding_config"]) if any(config)]
    return equation.moved(_but(touched), value, kept=lambda value: value if value == padding.fill else None)


def _concatenate(equation: Equation) -> list[Value]:
    axis, values, shapes = equation.params["dimension"], equation.values, equation.shapes
    total = equation.out_shapes[0][axis]
    samples = equation.analysis.samples

    def mapping(place: Place) -> Place | None:
        if place.axis != axis:
            return place
        # The samples come round in all parts in the same way, or there is no one place for them.
        period = samples * place.inner
        return Place(axis, total // period, place.inner) if all(shape[axis] % period == 0 for shape in shapes) else None

    parts = [equation.follow(mapping, value, kept=_same) for value in values]
    # Where a part is a fill, it has that value also where others have a fixed one.
    parts = [part._replace(fill=value.fill) for part, value in zip(parts, values, strict=True)]
    return [functools.reduce(joined, parts)]


def _split(equation: Equation) -> list[Value]:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    samples = equation.analysis.samples
    results: list[Value] = []
    for size in sizes:

        def mapping(place: Place) -> Place | None:
            if place.axis != axis:
                return place
            period = samples * place.inner
            is_whole = all(size % period == 0 for size in sizes)
            return Place(axis, size // period, place.inner) if is_whole else None  # noqa: B023

        results.append(equation.follow(mapping, equation.values[0], kept=_same, has_fill=True))
    return results


def _stack(equation: Equation) -> list[Value]:
    new = equation.params["axis"] % len(equation.out_shapes[0])

    def mapping(place: Place) -> Place | None:
        return place._replace(axis=place.axis + (place.axis >= new))

    parts = [equation.follow(mapping, value, kept=_same, has_fill=True) for value in equation.values]
    return [functools.reduce(joined, parts)]


def _unstack(equation: Equation) -> list[Value]:
    mapping = _without([equation.params["axis"]], len(equation.shapes[0]))
    return equation.moved(mapping, kept=_same, has_fill=True)


def _tile(equation: Equation) -> list[Value]:
    times = equation.params["reps"]
    return equation.moved(
        lambda place: place._replace(outer=place.outer * times[place.axis]), kept=_same, has_fill=True
    )


# ---------------------------------------------------------------------------------------------------------------------
# Along axes
# ---------------------------------------------------------------------------------------------------------------------


def _reduction(equation: Equation) -> list[Value]:
    kept = {"reduce_sum": _zero, **dict.fromkeys(_IDEMPOTENT, _same)}.get(equation.name)
    return equation.moved(_without(equation.params["axes"], len(equation.shapes[0])), kept=kept)


_IDEMPOTENT = {"reduce_max", "reduce_min", "reduce_and", "reduce_or"}


def _reduce(equation: Equation) -> list[Value]:
    mapping = _without(equation.params["dimensions"], len(equation.shapes[0]))
    parts = [equation.follow(mapping, value) for value in equation.values if value.rows]
    return equation.everywhere(functools.reduce(joined, parts, CLEAN))


def _cumulative(equation: Equation) -> list[Value]:
    return equation.moved(_but([equation.params["axis"]]), kept=_zero if equation.name == "cumsum" else None)


def _sort(equation: Equation) -> list[Value]:
    """All arrays are put in one order."""
    mapping = _but([equation.params["dimension"]])
    parts = [equation.follow(mapping, value) for value in equation.values]
    return equation.everywhere(functools.reduce(joined, parts))


def _top_k(equation: Equation) -> list[Value]:
    return equation.moved(_but([equation.params.get("axis", -1) % len(equation.shapes[0])]))


def _reduce_window(equation: Equation) -> list[Value]:
    params, ndim = equation.params, len(equation.shapes[0])
    factors = [
        params["window_dimensions"],
        params["window_strides"],
        params["base_dilation"] or [1] * ndim,
        params["window_dilation"] or [1] * ndim,
    ]
    touched = [
        axis for axis in range(ndim) if any(params["padding"][axis]) or any(factor[axis] != 1 for factor in factors)
    ]
    parts = [equation.follow(_but(touched), value) for value in equation.values if value.rows]
    return equation.everywhere(functools.reduce(joined, parts, CLEAN))


def _last_axes(count: Callable[[Equation], int]) -> Rule:
    """A rule for what treats the last axes together, and each index of those before for itself."""

    def rule(equation: Equation) -> list[Value]:
        last = count(equation)
        parts = [
            equation.follow(_but(range(len(shape) - last, len(shape))), value)
            for value, shape in zip(equation.values, equation.shapes, strict=True)
        ]
        return equation.everywhere(functools.reduce(joined, parts))

    return rule


# ---------------------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------------------


def _dot_general(equation: Equation) -> list[Value]:
    contracted, batch = equation.params["dimension_numbers"]
    shared = len(batch[0])
    free = [
        [axis for axis in range(len(shape)) if axis not in {*contracted[side], *batch[side]}]
        for side, shape in enumerate(equation.shapes)
    ]
    sides: list[Value] = []
    for side, value in enumerate(equation.values):
        other = equation.values[1 - side]
        first = shared + (len(free[0]) if side else 0)
        axes = {axis: number for number, axis in enumerate(batch[side])}
        axes.update({axis: first + number for number, axis in enumerate(free[side])})
        for place in value.rows:
            if place.axis in contracted[side]:
                partner = contracted[1 - side][list(contracted[side]).index(place.axis)]
                if other.at(place._replace(axis=partner)) != 0:
                    return equation.mix()
        # What is contracted is left out: its rows met zeros.
        value = value._replace(rows=frozenset(place for place in value.rows if place.axis in axes))

        def mapping(place: Place) -> Place | None:
            return place._replace(axis=axes[place.axis]) if place.axis in axes else None  # noqa: B023

        sides.append(equation.follow(mapping, value, kept=_zero))
    one, other = sides
    fixed = one.fixed | other.fixed
    return [Value((one.rows | other.rows).difference(place for place, _ in fixed), fixed)]


def _convolution(equation: Equation) -> list[Value]:
    value, kernel = equation.values
    numbers = equation.params["dimension_numbers"]
    if kernel.is_clean and value.is_clean:
        return equation.everywhere(CLEAN)
    if not kernel.is_clean or equation.params["batch_group_count"] != 1:
        return equation.mix()
    batch, out = numbers.lhs_spec[0], numbers.out_spec[0]
    return equation.moved(lambda place: place._replace(axis=out) if place.axis == batch else None, value, kept=_zero)


# ---------------------------------------------------------------------------------------------------------------------
# Look-ups
# ---------------------------------------------------------------------------------------------------------------------


def _gather(equation: Equation) -> list[Value]:
    operand, indices = equation.values
    (shape, of_indices), (out,) = equation.shapes, equation.out_shapes
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    offset = sorted(numbers.offset_dims)
    looked_up = [axis for axis in range(len(out)) if axis not in offset]
    window = [
        axis
        for axis in range(len(shape))
        if axis not in {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    ]

    def of_index(place: Place) -> Place | None:
        return place._replace(axis=looked_up[place.axis]) if place.axis < len(of_indices) - 1 else None

    def of_operand(place: Place) -> Place | None:
        if place.axis in numbers.operand_batching_dims:
            number = list(numbers.operand_batching_dims).index(place.axis)
            return of_index(place._replace(axis=numbers.start_indices_batching_dims[number]))
        if place.axis in window and sizes[place.axis] == shape[place.axis]:
            return place._replace(axis=offset[window.index(place.axis)])
        return None

    return [joined(equation.follow(of_operand, operand), equation.follow(of_index, indices))]


_NEUTRAL: dict[str, Scalar] = {
    "scatter-add": 0,
    "scatter-sub": 0,
    "scatter-mul": 1,
    "scatter-max": -math.inf,
    "scatter-min": math.inf,
}


def _scatter(equation: Equation) -> list[Value]:
    operand, indices, updates = equation.values
    shape, _, of_updates = equation.shapes
    numbers = equation.params["dimension_numbers"]
    window = [
        axis
        for axis in range(len(shape))
        if axis not in {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    ]
    scattered = [axis for axis in range(len(of_updates)) if axis not in numbers.update_window_dims]
    # The places of the indices, as places of the updates; None for a part of an index.
    placed = {
        place: place._replace(axis=scattered[place.axis]) if place.axis < len(scattered) else None
        for place in indices.rows
    }
    if None in placed.values():
        return equation.mix()
    neutral = _NEUTRAL.get(equation.name)
    rows = updates.rows | {place for place in placed.values() if place is not None}
    # What changes nothing may be put anywhere.
    rows = frozenset(place for place in rows if neutral is None or updates.at(place) != neutral)

    def mapping(place: Place) -> Place | None:
        if place.axis in numbers.update_window_dims:
            axis = window[sorted(numbers.update_window_dims).index(place.axis)]
            return place._replace(axis=axis) if of_updates[place.axis] == shape[axis] else None
        index = scattered.index(place.axis)
        if index in numbers.scatter_indices_batching_dims:
            number = list(numbers.scatter_indices_batching_dims).index(index)
            return place._replace(axis=numbers.operand_batching_dims[number])
        return None

    return [joined(Value(operand.rows), equation.follow(mapping, Value(rows)))]


# ---------------------------------------------------------------------------------------------------------------------
# Control flow
# ---------------------------------------------------------------------------------------------------------------------


def _fixpoint(carry: Sequence[Value], step: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """What is known of what a loop carries, after any number of steps."""
    before, after = None, list(carry)
    while before != after:
        before = after
        after = all_joined(before, step(before))
    return after


def _scan(equation: Equation) -> list[Value]:
    inner, values = equation.params["jaxpr"], equation.values
    # By the shapes: the versions of JAX say it by different parameters.
    jaxpr = getattr(inner, "jaxpr", inner)
    is_scanned = [len(shape) != len(shape_of(own)) for shape, own in zip(equation.shapes, jaxpr.invars, strict=True)]
    carried = [len(shape) == len(shape_of(own)) for shape, own in zip(equation.out_shapes, jaxpr.outvars, strict=True)]
    count, first = sum(carried), len(values) - sum(is_scanned)
    constants, carry = values[: first - count], values[first - count : first]
    slices = [equation.follow(_without([0], 2), value, kept=_same, has_fill=True) for value in values[first:]]

    def step(carry: list[Value]) -> list[Value]:
        return equation.analysis.run(inner, [*constants, *carry, *slices])

    carry = _fixpoint(carry, lambda carry: step(carry)[:count])
    stacked = [
        equation.follow(lambda place: place._replace(axis=place.axis + 1), value, kept=_same, has_fill=True)
        for value in step(carry)[count:]
    ]
    return [*carry, *stacked]


def _while(equation: Equation) -> list[Value]:
    params, values = equation.params, equation.values
    of_cond, of_body = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    constants = values[of_cond:of_body]
    carry = _fixpoint(
        values[of_body:],
        lambda carry: equation.analysis.run(params["body_jaxpr"], [*constants, *carry]),
    )
    (goes_on,) = equation.analysis.run(params["cond_jaxpr"], [*values[:of_cond], *carry])
    if not goes_on.is_clean:
        return _decided(equation, goes_on)
    return carry


def _cond(equation: Equation) -> list[Value]:
    index, *operands = equation.values
    if not index.is_clean:
        return _decided(equation, index)
    branches = [equation.analysis.run(branch, operands) for branch in equation.params["branches"]]
    return functools.reduce(all_joined, branches)


def _expanded(equation: Equation) -> list[Value]:
    """What an operation does is traced, if it says that. JAX has no public name for this: where its private ones are
    missing, rows meet."""
    try:
        operation = equation.params["_prim"]
        given = [jax.ShapeDtypeStruct(shape_of(value), value.aval.dtype) for value in equation.equation.invars]
        expanded = jax.make_jaxpr(lambda *leaves: operation.expand(*operation.in_tree.unflatten(leaves)))(*given)
    except (AttributeError, KeyError, TypeError, NotImplementedError):
        return equation.mix()
    return equation.analysis.run(expanded, equation.values)


def _decided(equation: Equation, by: Value) -> list[Value]:
    """What comes of a decision that depends on garbage."""
    line = by.mixed or equation.line("is decided by padded rows")
    if equation.effects:
        equation.analysis.seen = equation.analysis.seen or line
    return equation.everywhere(Value(mixed=line))


CALLS = set(
    "call checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit pjit remat "
    "remat2".split()
)
OWN_DERIVATIVES = {"custom_vjp_call", "custom_vjp_call_jaxpr"}
CONTROL: dict[str, Rule] = {"scan": _scan, "while": _while, "cond": _cond}
EACH = {"optimization_barrier", "device_put"}
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(EACH, _each),
    **dict.fromkeys(["reduce_sum", "reduce_prod", "reduce_xor", "argmax", "argmin", *_IDEMPOTENT], _reduction),
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], _cumulative),
    **dict.fromkeys(["reduce_window", *(f"reduce_window_{kind}" for kind in ("sum", "max", "min"))], _reduce_window),
    **dict.fromkeys(["scatter", *_NEUTRAL], _scatter),
    **dict.fromkeys(
        "cholesky eig eigh hessenberg householder_product lu qr schur svd triangular_solve".split(),
        _last_axes(lambda equation: 2),
    ),
    "call_hi_primitive": _expanded,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "fft": _last_axes(lambda equation: len(equation.params["fft_lengths"])),
    "gather": _gather,
    "pad": _pad,
    "reduce": _reduce,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "top_k": _top_k,
    "transpose": _transpose,
    "unstack": _unstack,
}
