"""What is known of an array and of the inputs of an equation, and what becomes of it when places of samples move."""

from __future__ import annotations

import sysconfig
import typing as tp
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

if tp.TYPE_CHECKING:
    from elegy.model.rows import Analysis


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------


class Place(tp.NamedTuple):
    """Where the samples are in an array: the index along `axis` is `(a * samples + sample) * inner + b`, with `a` below
    `outer` and `b` below `inner`, which are 1 but where the axis was merged with others."""

    axis: int
    outer: int = 1
    inner: int = 1


Scalar = bool | int | float
Shape = tuple[int, ...]


class Value(tp.NamedTuple):
    """What is known of an array.

    An element belongs to one sample by each place of `rows` and `fixed`.

    - `rows`: its elements may be garbage if one of these samples is padding.
    - `fixed`: its elements have the given value if that sample is padding, whatever the others are.
    - `fill`: the value of all elements, if that is known. Then there are no `rows`.
    - `mixed`: not empty if any element may be garbage; it says why.
    """

    rows: frozenset[Place] = frozenset()
    fixed: frozenset[tuple[Place, Scalar]] = frozenset()
    fill: Scalar | None = None
    mixed: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether no element can be garbage."""
        return not self.rows and not self.mixed

    @property
    def places(self) -> set[Place]:
        return {place for place, _ in self.fixed}

    def at(self, place: Place) -> Scalar | None:
        """The value in the padding along a place, if it is known."""
        return next((value for known, value in self.fixed if known == place), self.fill)


CLEAN = Value()
PlaceMapping = Callable[[Place], Place | None]


def shape_of(variable: tp.Any) -> Shape:
    return tuple(getattr(variable.aval, "shape", ()))


def of_literal(literal: tp.Any) -> Value:
    return Value(fill=plain(literal.val)) if np.ndim(literal.val) == 0 else CLEAN


def plain(value: tp.Any) -> Scalar | None:
    """A scalar of NumPy as one of Python. What is not exact on each device, and NaN, is not known."""
    try:
        value = np.asarray(value)
        if value.dtype.kind == "c":
            return float(value.real) if value.imag == 0 else None
        found = value.item() if value.dtype.kind in "biu" else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if found != found or 0 < abs(found) < 1e-30 else found


def joined(one: Value, other: Value) -> Value:
    """What is known of an array that is one or the other."""
    if one.mixed or other.mixed:
        return one if one.mixed else other
    fixed = {
        (place, value)
        for place in one.places | other.places
        if (value := one.at(place)) is not None and value == other.at(place)
    }
    return Value(one.rows | other.rows, frozenset(fixed), one.fill if one.fill == other.fill else None)


def all_joined(ones: Sequence[Value], others: Sequence[Value]) -> list[Value]:
    return [joined(one, other) for one, other in zip(ones, others, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Equations
# ---------------------------------------------------------------------------------------------------------------------

_MIXES = "mixes the rows of the batch"


class Equation:
    """One equation of a trace, with what is known of its inputs."""

    def __init__(self, analysis: Analysis, equation: tp.Any, values: list[Value]):
        self.analysis = analysis
        self.equation = equation
        self.values = values
        self.name: str = equation.primitive.name
        self.params: dict[str, tp.Any] = equation.params
        self.effects = bool(equation.effects)

    @property
    def shapes(self) -> list[Shape]:
        return [shape_of(variable) for variable in self.equation.invars]

    @property
    def out_shapes(self) -> list[Shape]:
        return [shape_of(variable) for variable in self.equation.outvars]

    def everywhere(self, value: Value) -> list[Value]:
        return [value] * len(self.equation.outvars)

    def mix(self, what: str = _MIXES) -> list[Value]:
        return self.everywhere(Value(mixed=self.line(what)))

    def line(self, what: str) -> str:
        where = _user_line(self.equation)
        return f"{self.name} {what}" + (f" ({where})" if where else "")

    def call(self) -> list[Value]:
        inner = next(self.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in self.params)
        return self.analysis.run(inner, self.values)

    def moved(
        self,
        mapping: PlaceMapping,
        value: Value | None = None,
        kept: Callable[[Scalar], Scalar | None] | None = None,
        has_fill: bool = False,
    ) -> list[Value]:
        """For each output, what becomes of an array, by default the first input: see `follow`."""
        return self.everywhere(self.follow(mapping, self.values[0] if value is None else value, kept, has_fill))

    def follow(
        self,
        mapping: PlaceMapping,
        value: Value,
        kept: Callable[[Scalar], Scalar | None] | None = None,
        has_fill: bool = False,
    ) -> Value:
        """What becomes of an array whose places go where `mapping` says; where that is None, rows meet.

        - `kept`: what becomes of a fixed value. The default forgets it.
        - `has_fill`: whether a fill stays the same.
        """
        if value.mixed:
            return value
        rows = [mapping(place) for place in value.rows]
        if None in rows:
            return Value(mixed=self.line(_MIXES))
        fixed = {
            (place, new)
            for old, was in value.fixed
            if kept is not None and (place := mapping(old)) is not None and (new := kept(was)) is not None
        }
        found = frozenset(place for place in rows if place is not None)
        return Value(found, frozenset(fixed), value.fill if has_fill else None)


_PACKAGES = tuple(
    str(path) + "/"
    for path in (
        Path(__file__).parents[1],
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    )
)


def _user_line(equation: tp.Any) -> str:
    """Where the user's code does what an equation does: `"train.py:12"`. JAX has no public name for this; where its
    private ones are missing, nothing."""
    try:
        frames = equation.source_info.traceback.frames
        names = [(frame.file_name, frame.line_num) for frame in frames]
    except AttributeError:
        return ""
    for name, number in names:
        if not name.startswith((*_PACKAGES, "<")):
            return f"{Path(name).name}:{number}"
    return ""
