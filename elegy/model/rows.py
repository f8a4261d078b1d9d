"""Whether the rows with which a batch is padded can have an effect on anything but themselves.

The samples of a batch stand along one axis of an array. What is computed of each for itself stays apart from that of
the others, also in the rows of the padding, whose values are garbage. This file follows the arrays through a traced
function and tells whether garbage may get into a result: by a mean over the batch, a sort of it, a scan through it.

It is an abstract interpretation: for each array it is known in which rows there may be garbage, and in which there is a
known value, such as the zeros that a mask leaves there. What is not known to be harmless counts as harmful. How that is
written down is in `row_values.py`, and what each operation makes of it in `row_rules.py`.

Only what is computed forwards is looked at. A result that does not depend on padded rows has no gradient by them, if
its derivative is its own: where gradients are taken, a `jax.custom_vjp` counts as harmful.

It rests on one assumption: what is computed in the rows of the padding, and of the mask, is finite, so that zero times
garbage is zero. It does not tell one zero from the other: -0.0 is 0.0.
"""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from elegy.errors import SampleMaskError
from elegy.model.row_rules import CALLS, CONTROL, EACH, OWN_DERIVATIVES, RULES
from elegy.model.row_values import CLEAN, Equation, Place, Value, of_literal, shape_of
from elegy.transforms import jit


def leaks(
    jaxpr: ClosedJaxpr,
    rows: Sequence[bool],
    mask: int | None,
    clean_outputs: Sequence[bool],
    is_differentiated: bool = False,
) -> str | None:
    """Whether padded rows may have an effect on the outputs of a traced function, or on what sees values on the host.

    **Arguments:**

    - `jaxpr`: the traced function, as `jax.make_jaxpr` gives it.
    - `rows`: for each input whether its first axis are the samples, with garbage in the rows of the padding. The other
      inputs have nothing to do with it.
    - `mask`: the number of the input that says, by bools, which samples are none of the padding, if there is one.
    - `clean_outputs`: for each output whether it must not depend on garbage.
    - `is_differentiated`: whether there may be no effect on gradients of the outputs either.

    **Returns:** None if they have none, provided that all values are finite; else a line that says where rows meet.

    That nothing depends on the padding does not make the results those of the batch without it: a sum over the samples
    that is divided by the number of rows is another one then.
    """
    outer = jaxpr.jaxpr
    shapes = [shape_of(variable) for number, variable in enumerate(outer.invars) if rows[number] or number == mask]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        return f"the arrays of a batch have different numbers of rows: {shapes}" if sizes else None
    analysis = Analysis(shapes[0][0], is_differentiated)
    first = Place(0)
    given = [
        Value(fixed=frozenset({(first, False)}))
        if number == mask
        else Value(rows=frozenset({first}))
        if is_padded
        else CLEAN
        for number, is_padded in enumerate(rows)
    ]
    results = analysis.run(outer, given)
    for number, (result, is_needed) in enumerate(zip(results, clean_outputs, strict=True)):
        if is_needed and not result.is_clean:
            return result.mixed or f"output {number} has a row for each sample"
    return analysis.seen


def leaks_of(
    function: Callable[..., tp.Any], modules: tp.Any, mask: tp.Any, *batch: tp.Any, is_differentiated: bool = False
) -> str | None:
    """Whether padded rows may have an effect on what `function(mask, *batch)` returns, and on the state of its modules.

    **Arguments:**

    - `function`: evaluates a batch, and opens the `sample_mask_context`.
    - `modules`: those that it uses without taking them as arguments, as for `elegy.jit`.
    - `mask`, `batch`: arrays, or `jax.ShapeDtypeStruct`s, whose first axis are the samples; those of the batch in any
      structure.
    - `is_differentiated`: whether gradients are taken of it.

    **Returns:** None if they have none, else a line that says why.
    """
    try:
        jaxpr = jit(function, modules=modules).trace(mask, *batch).jaxpr
    except SampleMaskError as error:
        return str(error).partition("\n")[0]
    inputs = len(jaxpr.jaxpr.invars)
    first = inputs - len(jax.tree.leaves(batch))
    rows = [number >= first for number in range(inputs)]
    found = leaks(jaxpr, rows, first - 1, [True] * len(jaxpr.jaxpr.outvars), is_differentiated)
    if found is not None:
        return found
    try:
        longer = jit(function, modules=modules).trace(*jax.tree.map(_with_another_row, (mask, *batch))).jaxpr
    except Exception:  # it is for batches of one size
        longer = None
    if longer is None or not _are_alike(jaxpr, longer):
        return "computes with the number of rows of the batch"
    return None


def _with_another_row(leaf: tp.Any) -> jax.ShapeDtypeStruct:
    rows, *shape = leaf.shape
    return jax.ShapeDtypeStruct((rows + 1, *shape), leaf.dtype)


def _are_alike(one: tp.Any, other: tp.Any) -> bool:
    """Whether two traced functions, of batches of other sizes, compute with the same numbers. Where they do not, such
    as in a sum that is divided by the length of an array, padding is counted although it has no effect."""
    numbers, others = _numbers(one), _numbers(other)
    return len(numbers) == len(others) and all(map(_are_equal, numbers, others))


def _are_equal(one: tuple[str, tp.Any], other: tuple[str, tp.Any]) -> bool:
    (name, a), (of_other, b) = one, other
    return name == of_other and np.shape(a) == np.shape(b) and np.array_equal(a, b, equal_nan=_is_inexact(a))


def _is_inexact(value: tp.Any) -> bool:
    return np.issubdtype(np.asarray(value).dtype, np.inexact)


def _numbers(jaxpr: tp.Any) -> list[tuple[str, tp.Any]]:
    """The constants of a traced function, and those that stand in its equations, in the order in which they come.
    What has no effect on the outputs is left out."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    live = {variable for variable in inner.outvars if not isinstance(variable, Literal)}
    equations = []
    for equation in reversed(inner.eqns):
        if equation.effects or any(variable in live for variable in equation.outvars):
            equations.append(equation)
            live.update(variable for variable in equation.invars if not isinstance(variable, Literal))
    constants = zip(inner.constvars, getattr(jaxpr, "consts", ()), strict=False)
    found = [("constant", _on_host(value)) for variable, value in constants if variable in live]
    for equation in reversed(equations):
        found.append((equation.primitive.name, len(equation.invars)))
        found += [("literal", _on_host(part.val)) for part in equation.invars if isinstance(part, Literal)]
        for parameter in equation.params.values():
            for part in parameter if isinstance(parameter, (tuple, list)) else [parameter]:
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    found += _numbers(part)
    return found + [("output", _on_host(part.val)) for part in inner.outvars if isinstance(part, Literal)]


def _on_host(value: tp.Any) -> tp.Any:
    dtype = getattr(value, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


# ---------------------------------------------------------------------------------------------------------------------
# Following the arrays
# ---------------------------------------------------------------------------------------------------------------------


class Analysis:
    """One analysis.

    - `samples`: how many rows the batch has.
    - `seen`: a line for the first garbage that the host may see.
    """

    def __init__(self, samples: int, is_differentiated: bool):
        self.samples = samples
        self._is_differentiated = is_differentiated
        self.seen: str | None = None
        # What became of the inputs of a function, which may be called many times. By its identity; so it is kept.
        self._known: dict[tuple[int, tuple[Value, ...]], tuple[tp.Any, list[Value]]] = {}

    def run(self, jaxpr: tp.Any, given: Sequence[Value]) -> list[Value]:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        key = id(jaxpr), tuple(given)
        if key not in self._known:
            self._known[key] = jaxpr, self._run(jaxpr, given)
        return self._known[key][1]

    def _run(self, jaxpr: tp.Any, given: Sequence[Value]) -> list[Value]:
        values: dict[tp.Any, Value] = dict.fromkeys(jaxpr.constvars, CLEAN)
        values.update(zip(jaxpr.invars, given, strict=True))

        def read(variable: tp.Any) -> Value:
            return of_literal(variable) if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            results = self._apply(Equation(self, equation, [read(variable) for variable in equation.invars]))
            for variable, result in zip(equation.outvars, results, strict=True):
                values[variable] = CLEAN if 0 in shape_of(variable) else result
        return [read(variable) for variable in jaxpr.outvars]

    def _apply(self, equation: Equation) -> list[Value]:
        mixed = next((value.mixed for value in equation.values if value.mixed), "")
        is_clean = all(value.is_clean for value in equation.values)
        if self._is_differentiated and equation.name in OWN_DERIVATIVES and not is_clean:
            return equation.mix("has a derivative of its own")
        if equation.name in CALLS:
            return equation.call()
        if equation.name in CONTROL:
            return equation.everywhere(CLEAN) if is_clean else CONTROL[equation.name](equation)
        if equation.effects and not is_clean:
            self.seen = self.seen or mixed or equation.line("shows padded rows to the host")
        if mixed and equation.name not in EACH:
            return equation.everywhere(Value(mixed=mixed))
        rule = RULES.get(equation.name)
        if rule is not None and (not is_clean or any(value != CLEAN for value in equation.values)):
            return rule(equation)
        return equation.everywhere(CLEAN) if is_clean else equation.mix()
