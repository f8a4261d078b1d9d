"""The loss of a batch with all that is declared on the way, its gradients, and these in parts."""

from __future__ import annotations

import typing as tp
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from elegy.contexts import is_initializing
from elegy.hooks import get_losses, get_metrics, hooks_context
from elegy.model.data import Data
from elegy.model.objectives import Notes, Scalars, Sum, Total, Weighted, add_values, scalar_of
from elegy.model.placement import between, folded, unfolded
from elegy.precision import accumulating
from elegy.state import sample_mask, sample_mask_context
from elegy.tracing import evaluate
from elegy.transforms import scan, value_and_grad
from elegy.transforms.core import Threaded, rng_data, run

# A function of x, y and sample_weight. It gives a loss, or a dict of losses, and may give more: (loss, more).
LossFunction = Callable[..., tp.Any]


class Valued(tp.NamedTuple):
    """What a loss function gave for a batch, or for a part of it.

    - `values`: what is to be logged: under `"loss"` the sum of all losses, then these one by one, and metrics.
    - `apart`: the losses that are no means over all samples alike, by name; a loss without a name is there by `""`.
    - `rest`: the sum of the others; None if there are none.
    - `more`: what the function gave besides.
    """

    values: Scalars
    apart: dict[str, Weighted | Sum]
    rest: tp.Any
    more: tp.Any


class Shares(tp.NamedTuple):
    """By what losses of a part are multiplied, so that their sums over all parts are those of the batch.

    - `samples`: the share of its samples, for means over samples.
    - `weights`: the share of the weights, for each loss that is divided by weights of its own.
    """

    samples: tp.Any
    weights: dict[str, tp.Any]

    def of(self, found: Valued) -> Valued:
        """What a part adds to the batch."""
        apart = {name: self._of(name, part) for name, part in found.apart.items()}
        rest = None if found.rest is None else found.rest * self.samples
        values = {
            name: scalar_of(apart[name]) if name in apart else value * self.samples
            for name, value in found.values.items()
        }
        if "loss" in values:
            values["loss"] = sum(map(scalar_of, apart.values()), jnp.zeros([]) if rest is None else rest)
        return Valued(values, apart, rest, found.more)

    def _of(self, name: str, part: Weighted | Sum) -> Weighted | Sum:
        return part if isinstance(part, Sum) else Weighted(part.mean * self.weights[name], part.weight)


def valued(function: LossFunction, notes: Notes) -> Callable[..., tuple[Scalars, tp.Any]]:
    """A function that gives what is to be logged of a batch: under `"loss"` the sum of its losses and of those that
    modules declare, then these one by one, and what modules declare as metrics. And what else `function` gives.

    - `notes`: where losses are noted that are no means over all samples alike.
    """

    def run(x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> tuple[Scalars, tp.Any]:
        return _noted(_of_batch(function, notes, x, y, sample_weight), notes)

    return run


def _of_batch(
    function: LossFunction, notes: Notes, x: tp.Any, y: tp.Any, sample_weight: tp.Any, is_part: bool = False
) -> Valued:
    with hooks_context(), notes.apart():
        found = function(x, y, sample_weight)
        loss, more = found if isinstance(found, tuple) else (found, None)
        losses: Scalars = {}
        apart: dict[str, Weighted | Sum] = {}
        used: list[tp.Any] = []

        def add(names: list[str], given: tp.Any) -> None:
            for name, leaf in zip(names, jax.tree.leaves(given), strict=True):
                about = notes.about(leaf)
                if isinstance(about, (Weighted, Sum)):
                    apart[name] = about
                    used.append(leaf)

        for name, value in loss.items() if isinstance(loss, dict) else []:
            add(add_values(losses, name, value), value)
        for name, value in (get_losses() or {}).items():
            add_values(losses, name, value)
        terms = dict(losses)
        if not isinstance(loss, dict) and loss is not None:
            add([""], loss)
            terms = {"": jnp.asarray(loss, jnp.result_type(float)), **losses}
        if is_part and any(all(value is not leaf for leaf in used) for value in notes.all()):
            raise ValueError(_CHANGED)
        values: Scalars = {"loss": sum(terms.values(), jnp.zeros([]))} if terms else {}
        for name, value in losses.items():
            (full,) = add_values(values, name, value)
            if name in apart and full != name:
                apart[full] = apart.pop(name)
        for name, value in (get_metrics() or {}).items():
            add_values(values, notes.shown(name), value)
        others = [value for name, value in terms.items() if name not in apart]
    return Valued(values, apart, sum(others[1:], others[0]) if others else None, more)


_CHANGED = (
    "with accumulate=, a loss that is a sum, or whose sum is divided by weights or counts of its own, is put together "
    "from those of parts, so the loss function must return it as compute_losses gave it.\n"
    "  Return the dict of compute_losses, with more entries if you like; or train on whole batches."
)


def _noted(found: Valued, notes: Notes) -> tuple[Scalars, tp.Any]:
    """What is to be logged, after it is noted what is no mean over all samples alike."""
    values, apart = found.values, found.apart
    notes.names.update(values)
    for name, part in apart.items():
        if name:
            notes.note(values[name], part)
    if apart:
        terms = [] if found.rest is None else [found.rest]
        notes.note(values["loss"], Total(values["loss"], (*terms, *apart.values())))
    return values, found.more


def differentiated(
    function: LossFunction,
    modules: tp.Any,
    parameters_fn: Callable[[tp.Any], tp.Any],
    notes: Notes,
    part: int | None,
) -> Callable[..., tuple[tuple[Scalars, tp.Any], tp.Any]]:
    """A function that gives `(values, more), gradients`.

    **Arguments:**

    - `function`, `notes`: as for `valued`.
    - `modules`: all modules that it may change.
    - `parameters_fn`: what of them is differentiated.
    - `part`: how many samples are looked at together; None: all of a batch. Values and gradients are those of the whole
      batch all the same, but for what mixes the samples of a batch.
    """

    def loss_fn(x: tp.Any, y: tp.Any, sample_weight: tp.Any, shares: Shares | None) -> tp.Any:
        found = _of_batch(function, notes, x, y, sample_weight, shares is not None)
        if "loss" not in found.values:
            raise ValueError(
                "there is nothing to minimise: Model(loss=None), and no module called elegy.add_loss.\n"
                "  Give the model a loss, such as loss=elegy.losses.MeanSquaredError()."
            )
        found = found if shares is None else shares.of(found)
        return found.values["loss"], found

    loss_fn.__qualname__ = getattr(function, "__qualname__", loss_fn.__qualname__)  # in error messages
    gradients_of = value_and_grad(loss_fn, modules=modules, parameters_fn=parameters_fn)

    def of_data(data: Data, shares: Shares | None) -> tuple[Valued, tp.Any]:
        (_, found), gradients = gradients_of(*data, shares)
        return found, gradients

    def weights_of(data: Data) -> tp.Any:
        """The weights by which losses count that have their own."""
        apart = _of_batch(function, notes, *data, is_part=True).apart
        return {name: part.weight for name, part in apart.items() if isinstance(part, Weighted)}

    def in_parts(x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> tp.Any:
        data = Data(x, y, sample_weight)
        # An init pass computes nothing, and what has no parameters yet has no gradients to add up.
        if part is None or data.size <= part or is_initializing():
            found, gradients = of_data(data, None)
        else:
            weights = _unchanging(weights_of, modules) if notes.divides else lambda data: {}
            found, gradients = _added_up(of_data, weights, modules, parameters_fn(modules), data, part)
        return _noted(found, notes), gradients

    return in_parts


def _unchanging(function: Callable[[Data], tp.Any], modules: tp.Any) -> Callable[[Data], tp.Any]:
    """A function of a batch that computes what its result depends on, and nothing else; it changes nothing."""
    threaded = Threaded(modules)

    def once(data: Data, mask: tp.Any) -> tp.Any:
        view = threaded.view()
        with sample_mask_context(mask):
            return run(lambda: function(data), threaded, view, view.read(), rng_data(True), (), {})[0]

    def found(data: Data) -> tp.Any:
        inputs = data, sample_mask()
        traced, shapes = jax.make_jaxpr(once, return_shape=True)(*inputs)
        leaves, treedef = jax.tree.flatten(shapes)
        return treedef.unflatten(evaluate(traced, range(len(leaves)), inputs) if leaves else [])

    return found


def _added_up(
    of_data: Callable[[Data, Shares], tuple[Valued, tp.Any]],
    weights_of: Callable[[Data], tp.Any],
    modules: tp.Any,
    like: tp.Any,
    data: Data,
    part: int,
) -> tuple[Valued, tp.Any]:
    """Values and gradients of a batch, part by part."""
    mask, size = sample_mask(), data.size
    number, rest = divmod(size, part)
    parts_of = jax.tree.map(lambda leaf: folded(leaf, number, part), (data, mask))
    last = jax.tree.map(lambda leaf: between(leaf, number * part, size), (data, mask)) if rest else None
    # A sum of many parts needs more digits than parameters of 16 bits have.
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, accumulating(leaf.dtype)), like)
    is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((parts_of, zeros)))
    at = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
    stacked = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731

    def counts_of(inputs: tuple[Data, tp.Any]) -> Shares:
        data, mask = inputs
        with sample_mask_context(mask):
            weights = weights_of(data)
        return Shares(jnp.asarray(data.size if mask is None else jnp.sum(mask), jnp.result_type(float)), weights)

    counts = (
        jax.lax.map(counts_of, parts_of) if is_traced else stacked([counts_of(at(parts_of, i)) for i in range(number)])
    )
    if last is not None:
        counts = jax.tree.map(lambda many, one: jnp.append(many, one), counts, counts_of(last))
    shares = jax.tree.map(lambda counts: counts / _or_one(jnp.sum(counts)), counts)

    def step(total: tp.Any, inputs: tp.Any) -> tp.Any:
        (data, mask), of_part = inputs
        with sample_mask_context(mask):
            found, gradients = of_data(data, of_part)
        return jax.tree.map(lambda total, leaf: total + leaf.astype(total.dtype), total, gradients), found

    of_whole = jax.tree.map(lambda share: share[:number], shares)
    if is_traced:
        gradients, found = scan(step, zeros, (parts_of, of_whole), modules=modules)
    else:  # without compilation each part runs as code without transforms does
        gradients, each = zeros, []
        for i in range(number):
            gradients, of_part = step(gradients, at((parts_of, of_whole), i))
            each.append(of_part)
        found = stacked(each)
    parts = [found]
    if last is not None:
        gradients, of_rest = step(gradients, (last, at(shares, number)))
        parts.append(jax.tree.map(lambda leaf: leaf[None], of_rest))
    summed = jax.tree.map(lambda *leaves: sum(leaf.sum(0) for leaf in leaves), *(part[:3] for part in parts))
    values, apart, others = summed
    gradients = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), gradients, like)
    return Valued(values, apart, others, _joined([part.more for part in parts], size)), gradients


def _or_one(number: tp.Any) -> tp.Any:
    return jnp.where(number == 0, jnp.ones_like(number), number)


def _joined(parts: Sequence[tp.Any], size: int) -> tp.Any:
    """What was given for each part, with the samples of all along the first axis."""

    def join(*leaves: tp.Any) -> tp.Any:
        if any(leaf.ndim < 2 for leaf in leaves):
            raise ValueError(
                "with accumulate=, what a loss function returns besides the loss must have the samples along its first "
                "axis, so that parts can be joined."
            )
        joined = jnp.concatenate([unfolded(leaf) for leaf in leaves])
        if len(joined) != size:
            raise ValueError(
                f"with accumulate=, what a loss function returns besides the loss must have one row for each sample: "
                f"there are {len(joined)} for {size} samples."
            )
        return joined

    return jax.tree.map(join, *parts)


def value_fn(
    function: LossFunction, module: tp.Any, modules: tp.Any, data: Data, notes: Notes
) -> Callable[[tp.Any], tp.Any]:
    """The loss of a batch as a function of the trainable parameters, which changes nothing: for optimisers that try
    several, as `optax.lbfgs` does. State and random numbers are those of now, so it is to be made before gradients are
    taken."""
    threaded = Threaded(modules)
    view, rng = threaded.view(), rng_data(True)
    leaves = view.read()
    dtypes = {path: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(module.get_parameters())}

    def value(parameters: tp.Any) -> tp.Any:
        def loss() -> tp.Any:
            # Optimisers may compute what they try in a dtype of their own.
            tried = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.astype(dtypes[path]), parameters)
            module.set_parameters(tried)
            return _of_batch(function, notes, *data).values["loss"]

        return run(loss, threaded, view, leaves, rng, (), {})[0]

    return value
