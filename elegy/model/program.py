"""How steps are compiled: `elegy.jit(step, modules=...)` threads the modules of a model through each kind of step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import typing as tp
import weakref
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy.contexts import is_initializing
from elegy.draws import rng_context
from elegy.errors import StructureError
from elegy.initialise import run_init_pass
from elegy.layout import nodes_in, walk
from elegy.model.carry import Carry, Structure, stacked, summed
from elegy.model.data import Data
from elegy.model.objectives import Labels, NotMaskable
from elegy.model.placement import rows_of
from elegy.model.rows import leaks_of
from elegy.model.steps import Running, counted, outputs_of, put_evaluation_parameters, run_by, stream_of, values_of
from elegy.pytree import layout_of
from elegy.random import RNG
from elegy.state import sample_mask_context, training_context, transact
from elegy.transaction import lock, structure
from elegy.transforms import fori_loop, jit
from elegy.transforms.core import Threaded, check_structure

if tp.TYPE_CHECKING:
    from elegy.model.model import Model


class Listener(threading.local):
    """Who is told that a step is being traced, to be compiled then: for each thread somebody else."""

    def __init__(self) -> None:
        self._tell: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self._tell is not None:
            self._tell()

    @contextlib.contextmanager
    def telling(self, tell: Callable[[], None] | None) -> Iterator[None]:
        before, self._tell = self._tell, tell
        try:
            yield
        finally:
            self._tell = before


class Batch(tp.NamedTuple):
    """What a step gets.

    - `data`: the arrays of a batch; or of several, stacked, for a step that makes several.
    - `real`: how many samples of each batch are real; those after them are padding. None if all are.
    - `count`: of several batches, how many there are. Those after them are padding.
    - `source`: arrays from which `data` says the places, if they are on the device; else None.
    """

    data: tp.Any
    real: tp.Any = None
    count: tp.Any = None
    source: Data | None = None

    def example(self) -> Data:
        """A single batch of this shape."""
        if self.count is None:
            return self.data
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.data)


@dataclasses.dataclass
class Start:
    """What a pass over data begins with.

    - `structure`, `names`, `names_so_far`: those of its `Carry`.
    - `metrics`: the arrays of metrics that have counted nothing, on the host.
    - `can_pad`: whether a batch can be filled up; None while nobody has asked.
    - `labels`: which labels the targets may hold.
    """

    structure: Structure | None
    names: tuple[str, ...]
    names_so_far: tuple[str, ...]
    metrics: list[tp.Any]
    can_pad: bool | None = None
    labels: Sequence[Labels] = ()


class Program:
    """One kind of step, for the modules of one model.

    **Arguments:**

    - `model`: the model, which is not kept alive by it.
    - `kind`: `"train"`, `"test"` or `"predict"`.
    - `modules`: all modules that the step uses. If the optimiser is among those of a step that does not train, the
      step runs with the evaluation parameters.
    - `seed`: random keys derive from it, from the kind of step and from its number.
    - `initial`: the stream from which parameters are initialised.
    - `donates`: whether XLA may use the memory of the modules' arrays again.
    - `part`: for how many samples gradients are computed together; None: for all of a batch.
    - `is_many`: whether the step makes several steps, one for each of a stack of batches.
    - `followers`: modules of which `follow` is called with the module of the model after each step.
    """

    def __init__(
        self,
        model: Model,
        kind: str,
        modules: tp.Any,
        seed: int,
        initial: RNG,
        donates: bool,
        part: int | None = None,
        is_many: bool = False,
        followers: Sequence[tp.Any] = (),
    ):
        self.kind = kind
        self.donates = donates
        self.tracing = Listener()
        self._model = weakref.ref(model)
        self._roots = nodes_in([modules, [] if kind == "predict" else model._metrics])
        everything = [modules, list(followers)]
        self._threaded = Threaded(everything)
        self._initial = initial
        self._part = part
        self._metrics = model._metrics
        # The stream of initial keys is one for all threads: they take their turns.
        self._first = threading.RLock()
        # What passes begin with, by the shapes of a batch and the structure of the modules; and the last one that was
        # asked for, with the version of all structures then.
        self._starts: dict[tp.Any, Start] = {}
        self._latest: tuple[tp.Any, tp.Any, Start] | None = None
        self._structures: dict[tp.Any, Structure] = {}
        averages = kind != "train" and any(module is model.optimizer for module in modules)
        one = functools.partial(_one, self._model, kind, seed, self.tracing, part, followers, averages)
        if kind != "train":
            one = functools.partial(_unchanged, one, self._threaded)
        self._body = _named(functools.partial(_many, one, everything) if is_many else one, kind)
        self._everything = everything
        self._traces = 0  # of what was compiled before
        self.compiled = self._jitted()

    def _jitted(self) -> tp.Any:
        return jit(self._body, modules=self._everything, donate_modules=self.donates)

    def forget(self) -> None:
        """Forgets what was compiled, and how passes begin: the methods of the model do something else now."""
        with self._first:
            self._traces += self.compiled.traces
            self.compiled = self._jitted()
            self._starts.clear()
            self._latest = None

    @property
    def traces(self) -> int:
        return self._traces + self.compiled.traces

    def __call__(self, carry: Carry | None, batch: Batch, step: int, eagerly: bool = False) -> tp.Any:
        """Runs the step, before which `step` others came. **Returns:** the new carry; for `"predict"` the outputs."""
        try:
            return self._eagerly(carry, batch, step) if eagerly else self.compiled(carry, batch, step)
        except Exception as error:
            if type(error).__name__ == "ShardingTypeError" and _are_apart(batch, self.read()):
                error.add_note(
                    "The batch lies on a mesh of explicit axes, and the module does not. Put it there before Model is "
                    "given it: jax.device_put(module, jax.NamedSharding(mesh, jax.P())); or train within "
                    "jax.set_mesh(mesh)."
                )
            raise

    def _eagerly(self, carry: Carry | None, batch: Batch, step: int) -> tp.Any:
        # As in compiled steps, all is an array of JAX: also what users write `x.at[0]` for.
        converted = lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf  # noqa: E731
        carry, batch = jax.tree.map(converted, (carry, batch))

        def run() -> tp.Any:
            view = self._threaded.view()
            found = self._body(carry, batch, step)
            if structure.version is not view.version:
                check_structure(view)
            return found

        return transact(run)

    def can_pad(self, batch: Data) -> bool:
        """Whether samples can be added to a batch, and be left out of everything that is computed of it.

        **Arguments:**

        - `batch`: as for `prepare`.
        """
        model = self._model()
        assert model is not None
        if self._part is not None or not model._has_default_steps(self.kind):
            return False
        start = self.prepare(batch)
        if start.can_pad is None:
            start.can_pad = self._leaks(model, batch, start) is None
        return start.can_pad

    def _leaks(self, model: Model, batch: Data, start: Start) -> str | None:
        metrics = [jnp.asarray(leaf) for leaf in start.metrics]

        def evaluate(mask: tp.Any, batch: Data) -> tp.Any:
            counting = model._metrics if start.structure is None else start.structure.treedef.unflatten(metrics)
            step = Running(model, counting, None)
            with run_by(step), training_context(self.kind == "train"), sample_mask_context(mask):
                if self.kind == "predict":
                    outputs = model.pred_step(batch.x)
                    return jax.tree.map(lambda leaf: _without_padding(leaf, mask), outputs)
                values = values_of(step, "test_step", model.test_step(*batch))
                return summed(jnp.sum(mask), values)[0], stacked([*step.so_far.values()]), jax.tree.leaves(counting)

        try:
            mask = jax.ShapeDtypeStruct([batch.size], np.bool_)
            return leaks_of(evaluate, self._roots, mask, batch, is_differentiated=self.kind == "train")
        except NotMaskable as error:
            return str(error)

    def read(self) -> list[tp.Any]:
        """The arrays of the modules."""
        with lock:
            return self._threaded.view().read()

    def write(self, leaves: list[tp.Any]) -> None:
        """Gives the modules other arrays, in the order of `read`."""
        with lock:
            self._threaded.view().write(range(len(leaves)), leaves)

    def renew(self) -> None:
        """Gives the modules copies of their arrays: those of before stay with whoever holds them. Large ones are
        copied one by one, so that no more than one of them is there twice."""
        leaves = self.read()
        small = [i for i, leaf in enumerate(leaves) if not isinstance(leaf, jax.Array) or leaf.nbytes < _SMALL]
        copies: list[tp.Any] = list(leaves)
        for i, copy in zip(small, _copied([leaves[i] for i in small]), strict=True):
            copies[i] = copy
        self.write(copies)
        del leaves
        for i in sorted({*range(len(copies))} - {*small}):
            # Waited for, as what is copied cannot be freed before.
            copy, copies[i] = jax.block_until_ready(jnp.copy(copies[i])), None
            with lock:
                self._threaded.view().write([i], [copy])

    def start(self, batch: Data) -> Carry:
        """The carry before the first batch; `batch` is as for `prepare`."""
        start = self.prepare(batch)
        zeros = functools.partial(np.zeros, dtype=jax.dtypes.canonicalize_dtype(float))
        return Carry(
            start.metrics,
            zeros(2 * len(start.names)),
            zeros(len(start.names_so_far)) if start.names_so_far else None,
            start.structure,
            start.names,
            start.names_so_far,
        )

    def prepare(self, batch: Data) -> Start:
        """Creates what the modules lack, by an init pass for each new shape of a batch.

        **Arguments:**

        - `batch`: an example of the batches to come, arrays or `jax.ShapeDtypeStruct`s.
        """
        leaves, treedef = jax.tree.flatten(batch)
        shapes = (treedef, *((leaf.shape, leaf.dtype) for leaf in leaves))
        latest = self._latest
        if latest is not None and latest[0] is structure.version and latest[1] == shapes:
            return latest[2]
        with self._first:
            start = self._starts.get((shapes, self._signature()))
            if start is None:
                start = self._begin(batch)
                self._starts[shapes, self._signature()] = start
            self._latest = structure.version, shapes, start
        return start

    def _signature(self) -> tp.Any:
        return tuple(layout_of(node) for node in walk(self._roots))

    def _begin(self, batch: Data) -> Start:
        self.tracing()
        model = self._model()
        assert model is not None
        training = self.kind == "train"
        if training:
            model._adapt()
        names: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        labels: list[Labels] = []

        def run(batch: Data) -> None:
            nonlocal names
            if self.kind == "predict":
                outputs_of(model, batch.x)
                return
            labels.clear()
            found = counted(model, training, None, batch, None, self._part, labels)
            if training:
                _require_trained(model)
            names = found.names, found.names_so_far

        with rng_context(self._initial), training_context(training):
            try:
                transact(lambda: run_init_pass(run, (batch,), {}, self._roots))
            except (TypeError, ValueError) as error:
                if self.kind != "predict" and batch.y is None and isinstance(batch.x, dict) and len(batch.x) > 1:
                    error.add_note(_about_dict(list(batch.x)))
                raise
        if self.kind == "predict":
            return Start(None, *names, [])
        leaves, treedef = jax.tree.flatten(self._metrics)
        return Start(
            self._structures.setdefault(treedef, Structure(treedef)),
            *names,
            [_on_host(leaf) for leaf in leaves],
            labels=labels,
        )


def _about_dict(keys: list[tp.Any]) -> str:
    y = next((key for key in keys if key in ("y", "label", "labels", "target", "targets")), keys[-1])
    x = next(key for key in keys if key != y)
    return (
        f"Each batch is a dict with the keys {', '.join(map(repr, keys))}, which is x as a whole: its keys are those "
        "of arguments of the module, and there is no y.\n  To make inputs and targets of it: "
        f"elegy.data.as_source(data, transform=lambda batch: (batch[{x!r}], batch[{y!r}]))."
    )


def _are_apart(batch: Batch, modules: list[tp.Any]) -> bool:
    """Whether a batch lies on a mesh of explicit axes on which modules do not."""
    on_mesh = lambda leaf: isinstance(leaf, jax.Array) and not jax.typeof(leaf).sharding.mesh.empty  # noqa: E731
    return any(map(on_mesh, jax.tree.leaves(batch))) and not all(map(on_mesh, modules))


def _require_trained(model: Model) -> None:
    """Refuses a function that uses trainable modules of somebody else: steps would not train them."""
    inside = {id(node) for node in walk(nodes_in(model._modules("train")))}
    for name, module in model._used.items():
        if id(module) not in inside and jax.tree.leaves(module.get_parameters(trainable=True)):
            raise StructureError(
                f"the function that Model was given uses {name}, a {type(module).__name__} with trainable parameters "
                "that is not a part of the model: its parameters would be constants of the compiled steps.\n"
                f"  To train it, write a module: class Net(elegy.Module), with {name} as an attribute. To use it as it "
                f"is, freeze it: {name}.trainable = False."
            )


_SMALL = 1 << 16  # bytes
_copied = jax.jit(lambda arrays: [jnp.copy(array) for array in arrays])


def _without_padding(outputs: tp.Any, mask: tp.Any) -> tp.Any:
    if jnp.shape(outputs)[:1] != mask.shape:
        raise NotMaskable("an output has no axis of samples")
    shape = mask.shape + (1,) * (outputs.ndim - 1)
    return jnp.where(mask.reshape(shape), outputs, jnp.zeros_like(outputs))


def _named(function: Callable[..., tp.Any], kind: str) -> Callable[..., tp.Any]:
    def step(*args: tp.Any) -> tp.Any:
        return function(*args)

    step.__name__ = step.__qualname__ = f"Model: {kind}"  # in warnings of recompilation
    return step


def _on_host(leaf: tp.Any) -> tp.Any:
    """NumPy's memory is not given away, so it serves for every pass."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else np.asarray(leaf)


def _one(
    reference: weakref.ref[Model],
    kind: str,
    seed: int,
    tracing: Listener,
    part: int | None,
    followers: Sequence[tp.Any],
    averages: bool,
    carry: tp.Any,
    batch: Batch,
    step: tp.Any,
) -> tp.Any:
    """One step, in place."""
    tracing()
    model = reference()
    assert model is not None
    data, real = batch.data, batch.real
    if batch.source is not None:
        data = jax.tree.map(lambda array: rows_of(array, batch.data), batch.source)
    mask = None if real is None else jnp.arange(data.size) < real
    # An init pass draws from the stream around.
    stream = contextlib.nullcontext() if is_initializing() else rng_context(stream_of(seed, kind, step))
    with stream, training_context(kind == "train"), sample_mask_context(mask):
        if averages:
            put_evaluation_parameters(model)
        if kind == "predict":
            return outputs_of(model, data.x)
        found = counted(model, kind == "train", carry, data, real, part)
        for follower in followers:
            follower.follow(model.module)
        return found


def _unchanged(one: Callable[..., tp.Any], threaded: Threaded, *args: tp.Any) -> tp.Any:
    """A step that leaves the modules as they are."""
    view = threaded.view()
    before = view.read()
    found = one(*args)
    if structure.version is not view.version:  # that of any module, such as a copy of a metric
        if is_initializing():
            return found
        check_structure(view)
    view.write(range(len(before)), before)
    return found


def _many(one: Callable[..., tp.Any], modules: tp.Any, carry: tp.Any, batch: Batch, first: tp.Any) -> tp.Any:
    """A step for each of the first `count` batches."""

    def step(number: tp.Any, carry: tp.Any) -> tp.Any:
        data, real = jax.tree.map(lambda array: array[number], (batch.data, batch.real))
        return one(carry, Batch(data, real, None, batch.source), first + number)

    if not isinstance(batch.count, Tracer):  # without compilation
        for number in range(int(batch.count)):
            carry = step(number, carry)
        return carry
    return fori_loop(0, batch.count, step, carry, modules=modules)
