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
from elegy.model.objectives import Scalars, Weighted, add_values
from elegy.state import sample_mask, sample_mask_context
from elegy.transforms import scan, value_and_grad
from elegy.transforms.core import Threaded, rng_data, run

# A function of x, y and sample_weight. It gives a loss, or a dict of losses, and may give more: (loss, more).
LossFunction = Callable[..., tp.Any]


def valued(function: LossFunction) -> Callable[..., tuple[Scalars, tp.Any]]:
    """A function that gives what is to be logged of a batch: under `"loss"` the sum of its losses and of those that
    modules declare, then these one by one, and what modules declare as metrics. And what else `function` gives."""

    def run(x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> tuple[Scalars, tp.Any]:
        with hooks_context():
            found = function(x, y, sample_weight)
            loss, more = found if isinstance(found, tuple) else (found, None)
            losses: Scalars = {}
            for name, value in loss.items() if isinstance(loss, dict) else []:
                add_values(losses, name, value)
            for name, value in (get_losses() or {}).items():
                add_values(losses, name, value)
            terms = [*losses.values()]
            if not isinstance(loss, dict) and loss is not None:
                terms.insert(0, jnp.asarray(loss, jnp.result_type(float)))
            values: Scalars = {"loss": sum(terms, jnp.zeros([]))} if terms else {}
            for name, value in (losses | (get_metrics() or {})).items():
                add_values(values, name, value)
        return values, more

    return run


def differentiated(
    function: LossFunction, modules: tp.Any, parameters_fn: Callable[[tp.Any], tp.Any], part: int | None
) -> Callable[..., tuple[tuple[Scalars, tp.Any], tp.Any]]:
    """A function that gives `(values, more), gradients`.

    **Arguments:**

    - `function`: as for `valued`.
    - `modules`: all modules that it may change.
    - `parameters_fn`: what of them is differentiated.
    - `part`: how many samples are looked at together; None: all of a batch. Values and gradients are those of the whole
      batch all the same, but for what mixes the samples of a batch.
    """
    of_batch = valued(function)

    def loss_fn(x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> tp.Any:
        values, more = of_batch(x, y, sample_weight)
        if "loss" not in values:
            raise ValueError(
                "there is nothing to minimise: Model(loss=None), and no module called elegy.add_loss.\n"
                "  Give the model a loss, such as loss=elegy.losses.MeanSquaredError()."
            )
        return values["loss"], values, more

    loss_fn.__qualname__ = getattr(function, "__qualname__", loss_fn.__qualname__)  # in error messages
    gradients_of = value_and_grad(loss_fn, modules=modules, parameters_fn=parameters_fn)

    def whole(x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> tp.Any:
        found, gradients = gradients_of(x, y, sample_weight)
        return found[1:], gradients

    def in_parts(x: tp.Any, y: tp.Any, sample_weight: tp.Any) -> tp.Any:
        data = Data(x, y, sample_weight)
        # An init pass computes nothing, and what has no parameters yet has no gradients to add up.
        if part is None or data.size <= part or is_initializing():
            return whole(x, y, sample_weight)
        return _added_up(whole, modules, parameters_fn(modules), data, part)

    return in_parts


def _added_up(whole: Callable[..., tp.Any], modules: tp.Any, like: tp.Any, data: Data, part: int) -> tp.Any:
    """Values and gradients of a batch, part by part: means over the samples that are no padding."""
    mask, size = sample_mask(), data.size
    number, rest = divmod(size, part)

    def of_part(data: Data, mask: tp.Any) -> tp.Any:
        with sample_mask_context(mask):
            (values, more), gradients = whole(*data)
        count = jnp.asarray(data.size if mask is None else jnp.sum(mask), jnp.result_type(float))
        weights = {name: value.weight if isinstance(value, Weighted) else count for name, value in values.items()}
        sums = {
            name: (value.mean if isinstance(value, Weighted) else value) * weights[name]
            for name, value in values.items()
        }
        kinds.append([name for name, value in values.items() if isinstance(value, Weighted)])
        return jax.tree.map(lambda leaf: leaf * count.astype(leaf.dtype), gradients), (sums, weights, count, more)

    def step(total: tp.Any, inputs: tp.Any) -> tp.Any:
        gradients, found = of_part(*inputs)
        return jax.tree.map(jnp.add, total, gradients), found

    kinds: list[list[str]] = []
    folded = jax.tree.map(lambda leaf: leaf[: number * part].reshape(number, part, *leaf.shape[1:]), (data, mask))
    zeros = jax.tree.map(jnp.zeros_like, like)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((folded, zeros))):
        gradients, found = scan(step, zeros, folded, modules=modules)
    else:  # without compilation each part runs as code without transforms does
        gradients, each = zeros, []
        for i in range(number):
            gradients, of_part_i = step(gradients, jax.tree.map(lambda leaf: leaf[i], folded))  # noqa: B023
            each.append(of_part_i)
        found = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    parts = [found]
    if rest:
        last, of_rest = of_part(*jax.tree.map(lambda leaf: leaf[number * part :], (data, mask)))
        gradients = jax.tree.map(jnp.add, gradients, last)
        parts.append(jax.tree.map(lambda leaf: leaf[None], of_rest))
    counted = [part[:3] for part in parts]
    sums, weights, count = jax.tree.map(lambda *leaves: sum(leaf.sum(0) for leaf in leaves), *counted)
    gradients = jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), gradients)
    means = {name: sums[name] / jnp.where(weights[name] == 0, jnp.ones([]), weights[name]) for name in sums}
    values = {name: Weighted(mean, weights[name]) if name in kinds[0] else mean for name, mean in means.items()}
    return (values, _joined([p[3] for p in parts], size)), gradients


def _joined(parts: Sequence[tp.Any], size: int) -> tp.Any:
    """What was given for each part, with the samples of all along the first axis."""

    def join(*leaves: tp.Any) -> tp.Any:
        if any(leaf.ndim < 2 for leaf in leaves):
            raise ValueError(
                "with accumulate=, what a loss function returns besides the loss must have the samples along its first "
                "axis, so that parts can be joined."
            )
        joined = jnp.concatenate([leaf.reshape(-1, *leaf.shape[2:]) for leaf in leaves])
        if len(joined) != size:
            raise ValueError(
                f"with accumulate=, what a loss function returns besides the loss must have one row for each sample: "
                f"there are {len(joined)} for {size} samples."
            )
        return joined

    return jax.tree.map(join, *parts)


def value_fn(function: LossFunction, module: tp.Any, modules: tp.Any, data: Data) -> Callable[[tp.Any], tp.Any]:
    """The loss of a batch as a function of the trainable parameters, which changes nothing: for optimisers that try
    several, as `optax.lbfgs` does."""
    threaded = Threaded(modules)

    def value(parameters: tp.Any) -> tp.Any:
        def evaluate() -> tp.Any:
            module.set_parameters(parameters)
            return valued(function)(*data)[0]["loss"]

        view = threaded.view()
        return run(evaluate, threaded, view, view.read(), rng_data(True), (), {})[0]

    return value
