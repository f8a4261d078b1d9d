"""Mixed precision: the dtypes in which a module keeps its parameters, computes, and answers."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as tp
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from elegy.drawn import recipe_of, remember
from elegy.errors import StructureError
from elegy.frames import path_of, require_same_trace
from elegy.layout import children, meta_of, slots_by_attribute
from elegy.leaves import Node, is_array, is_node
from elegy.precision import cast
from elegy.state import state, transact, write, write_meta
from elegy.transaction import held, temporarily


@dataclasses.dataclass(frozen=True)
class DtypePolicy:
    """The dtypes of mixed-precision training. Micikevicius et al., *Mixed Precision Training* (2018), section 3.1.

    A module that has a policy, `module.dtype_policy = elegy.DtypePolicy(...)`, runs on arrays that are cast for the
    duration of the call: its own parameters and those of all modules below it that have no policy of their own, and the
    inputs. The arrays that it holds stay what they are, and gradients come in their dtype, since the cast is a part of
    the computation. State is not cast, running statistics for example, and what the call updates is written back.

    **Arguments:**

    - `param_dtype`: the dtype of the parameters that the module holds. The default leaves it to the modules.
    - `compute_dtype`: the dtype to which parameters and inputs are cast. The default casts nothing.
    - `output_dtype`: the dtype to which outputs are cast. The default leaves them as they are computed.

    All are dtypes of floating-point numbers. Arrays of other kinds, integers for example, are not cast.

    ```python
    import elegy
    import jax.numpy as jnp

    mlp = elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), jnp.tanh, elegy.nn.Linear(1)])
    mlp.dtype_policy = elegy.DtypePolicy(compute_dtype=jnp.bfloat16, output_dtype=jnp.float32)
    y = mlp(jnp.ones([2, 3]))
    assert y.dtype == mlp.layers[0].w.dtype == jnp.float32
    ```
    """

    param_dtype: tp.Any = None
    compute_dtype: tp.Any = None
    output_dtype: tp.Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            dtype = None if given is None else jnp.dtype(given)
            if dtype is not None and not jnp.issubdtype(dtype, np.floating):
                raise TypeError(
                    f"elegy.DtypePolicy: {field.name} must be a dtype of floating-point numbers, got {dtype.name}."
                )
            object.__setattr__(self, field.name, dtype)


def set_dtype_policy(module: Node, policy: DtypePolicy | None) -> None:
    """Gives a module a policy, or none, and casts the parameters that it holds to the `param_dtype` of the policy."""
    if policy is not None and not isinstance(policy, DtypePolicy):
        raise TypeError(f"{path_of(module)}: dtype_policy must be an elegy.DtypePolicy or None, got {policy!r}.")
    transact(lambda: _set_dtype_policy(module, policy))


def _set_dtype_policy(module: Node, policy: DtypePolicy | None) -> None:
    require_same_trace(module, "was given a dtype policy")
    if id(module) in state.threaded:
        raise StructureError(
            f"{path_of(module)}: dtype_policy was assigned inside a function that elegy.jit or "
            "elegy.value_and_grad transforms.\n  It is fixed during compilation: assign it outside."
        )
    created = bool(state.frames) and state.frames[-1].building
    write_meta(module, dataclasses.replace(meta_of(module), dtype_policy=policy), created=created)
    if policy is not None and policy.param_dtype is not None:
        for node, name, value in list(_parameters_of(module)):
            kept = _cast_parameters(node, name, value, policy.param_dtype)
            if (recipe := recipe_of(value)) is not None and kept is not value:
                remember(kept, recipe._replace(dtype=policy.param_dtype, asked=policy.param_dtype))
            write(node, name, kept, created=created)


def computing(policy: tp.Any, run: Callable[..., tp.Any]) -> Callable[..., tp.Any]:
    """`run(module, *args, **kwargs)` with parameters, inputs and outputs cast as a policy says."""

    def compute(module: Node, /, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        args, kwargs = cast((args, kwargs), policy.compute_dtype)
        before, state.dtype_policy = state.dtype_policy, policy
        journal = state.init_pass
        start = 0 if journal is None else len(journal.creations)
        try:
            with _cast_for_a_while(module, policy.compute_dtype):
                outputs = run(module, *args, **kwargs)
        finally:
            state.dtype_policy = before
            if journal is not None:  # later code of the pass, such as an optimiser, sees the dtypes that are kept
                journal.show_as_kept(start)
        return cast(outputs, policy.output_dtype)

    return compute


def _cast_for_a_while(module: Node, dtype: tp.Any) -> tp.Any:
    if dtype is None:
        return contextlib.nullcontext()
    values = [(node, name, _cast_parameters(node, name, value, dtype)) for node, name, value in _parameters_of(module)]
    # What the call itself sets is kept in the dtype that the attribute had.
    return temporarily(values, lambda new, old: jax.tree.map(_in_dtype_of, new, old, is_leaf=is_node))


def _in_dtype_of(new: tp.Any, old: tp.Any) -> tp.Any:
    return new.astype(old.dtype) if is_array(new) and is_array(old) and new.dtype != old.dtype else new


def _parameters_of(module: Node) -> Iterator[tuple[Node, str, tp.Any]]:
    """The attributes that hold parameters, of a module and of those below it that have no policy of their own."""
    found: dict[int, Node] = {id(module): module}
    waiting = [module]
    while waiting:
        node = waiting.pop()
        for name, row in slots_by_attribute(node).items():
            if any(slot.declared for slot, _ in row):
                yield node, name, held(node)[name]
        for _, child in children(node):
            if id(child) not in found and meta_of(child).dtype_policy is None:
                found[id(child)] = child
                waiting.append(child)


def _cast_parameters(node: Node, name: str, value: tp.Any, dtype: tp.Any) -> tp.Any:
    leaves, treedef = jax.tree.flatten(value, is_leaf=is_node)
    for slot, leaf in slots_by_attribute(node)[name]:
        if slot.declared:
            leaves[slot.position] = cast(leaf, dtype)
    return treedef.unflatten(leaves)
