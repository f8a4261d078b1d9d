"""The init pass: one abstract run of a function, in which modules create what they need.

The function is traced and thrown away, so nothing of the forward computation is executed. Each parameter is created
concretely by its initializer, from a key derived from its path, and journalled; afterwards every other change that the
function made is taken back, and the journalled values are put in place. An initial value that was made from arrays of
the call is computed afterwards, by the part of the trace on which it depends.

A function that fails after it has created something is run again, since it may have failed for want of a parameter
that it has created later. Only what it raises in a run that creates nothing reaches the caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing as tp
from collections.abc import Callable, Hashable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from elegy import tracing
from elegy.captures import placed_for
from elegy.drawn import recipe_of
from elegy.errors import IdenticalMembersWarning, ParameterError, TraceError, ways_out
from elegy.frames import RNG_ATTRIBUTE, name_of, parts_of, path_of, paths_below, require_same_trace, warn
from elegy.hooks import Collector
from elegy.layout import meta_of, nodes_in, slots, walk
from elegy.leaves import Node, is_array, is_node, set_undrawn, undrawn_of
from elegy.precision import cast
from elegy.random import fold_in_path
from elegy.state import state, transaction, write, write_meta
from elegy.transaction import Overlay, held, keep_created, visible, writable

Make = Callable[[], tp.Any]

# The name and the size of an axis over which the function of an init pass is mapped.
Axis = tuple[Hashable, int]


class Creation:
    """One entry of the journal: a parameter, and how to compute its initial value in whatever trace asks for it."""

    __slots__ = ("compute_dtype", "make", "module", "name", "stacked", "traced_key", "value")

    def __init__(self, module: Node, name: str, make: Make, value: tp.Any, traced_key: bool, compute_dtype: tp.Any):
        self.module = module
        self.name = name
        self.make = make
        self.value = value
        # Whether the key is a value of the code around the pass, as under jax.vmap over keys.
        self.traced_key = traced_key
        # Whether the value is that of several copies of the module, stacked.
        self.stacked = False
        # The dtype in which the running pass sees it, if that is not its own.
        self.compute_dtype = compute_dtype

    def show(self) -> tp.Any:
        """Puts the value in its place, as the running pass is to see it."""
        shown = cast(self.value, self.compute_dtype)
        write(self.module, self.name, shown, created=True)
        return shown


class Lane:
    """The number of the stacked copy for which an initial value is computed: a part of its path, and so of its key."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        self.index = 0

    def __str__(self) -> str:
        return str(self.index)


class InitPass:
    """The journal of a running init pass: what it has created so far."""

    def __init__(self) -> None:
        self.outer = state.init_pass
        # The trace around the pass, and its own as soon as it runs.
        self.trace = self.inner = tracing.current()
        self.creations: list[Creation] = []
        self.modules: list[Node] = []
        # Inside elegy.jit the random stream is a traced value, and what is drawn in the pass must not leave it: initial
        # keys then derive from one that was drawn before the pass.
        self.drawn: jax.Array | None = None
        self.derived = [0]
        if self.outer is not None:
            self.drawn, self.derived = self.outer.drawn, self.outer.derived
        elif state.rng._root is None and state.rng._born == self.trace:
            self.drawn = state.rng()
        # The lanes of the stacked modules that are being initialised, by the id of the module that is stacked.
        self.lanes: dict[int, Lane] = {} if self.outer is None else self.outer.lanes
        # The base key of each method of an outermost module, and how many parameters constructors made at each place.
        self._bases: dict[tuple[int, str], Make] = {} if self.outer is None else self.outer._bases
        self._constructed: dict[tp.Any, int] = {} if self.outer is None else self.outer._constructed

    def create(
        self,
        module: Node,
        name: str,
        make: Make,
        finish: Callable[[tp.Any], tp.Any],
        key: Make | None = None,
        compute_dtype: tp.Any = None,
    ) -> tp.Any:
        def value() -> tp.Any:
            before, state.in_initializer = state.in_initializer, True
            try:
                with jax.ensure_compile_time_eval():
                    return finish(make())
            finally:
                state.in_initializer = before

        if tracing.current() not in (self.inner, self.trace) and visible(module)._elegy_born == tracing.current():
            raise TraceError(
                f"{path_of(module, name)} was created in a module of this trace, which would be lost with it: a copy "
                "that a transform made for itself, or one that the traced function constructs.\n"
                "  Initialise a module that is an argument before, module.init(x), or list it in modules= instead. "
                "Construct modules outside, as attributes, or in the call of another module."
            )
        first = value()
        with jax.ensure_compile_time_eval():
            traced_key = key is not None and has_tracer(first) and isinstance(key(), Tracer)
        creation = Creation(module, name, value, first, traced_key, compute_dtype)
        self.creations.append(creation)
        return creation.show()

    def show_as_kept(self, start: int) -> None:
        """Shows what was created since the `start`-th creation in the dtype in which it is kept."""
        for creation in self.creations[start:]:
            if creation.compute_dtype is not None:
                creation.compute_dtype = None
                creation.show()

    def take(self, inner: InitPass) -> None:
        """Takes over what a pass inside this one created."""
        self.creations.extend(inner.creations)
        self.modules.extend(inner.modules)

    def stack(self, modules: Sequence[Node], start: int, lane: Lane, size: int) -> None:
        """Turns what was created in `modules` since the `start`-th creation into `size` copies along a leading axis."""
        ids = {id(module) for module in modules}
        for creation in self.creations[start:]:
            if id(creation.module) in ids:
                creation.stacked = True
                creation.make = functools.partial(_stacked, creation.make, lane, size)
                creation.value = creation.make()
                creation.show()

    def draw_anew(self, root: Node) -> None:
        """Draws again, with keys of this pass, what constructors have drawn: in those modules at or below `root` that
        never ran."""
        paths = paths_below(root)
        for node in walk([root]):
            if meta_of(node).initialized:
                continue
            undrawn = undrawn_of(visible(node))
            for name in meta_of(node).constructed:
                recipe = recipe_of(held(node).get(name, undrawn.get(name)))
                if recipe is not None:
                    key = self._key([name_of(root), *paths[id(node)], name], root)
                    self.create(node, name, *recipe.maker(node, name, key), key)
            if undrawn:
                write_meta(node, ties=True, created=True)
                version = writable(node)
                set_undrawn(version, {})
                attributes = {name: version.__dict__[name] for name in (*undrawn, *version.__dict__)}
                version.__dict__.clear()  # the order of the attributes is that of the leaves
                version.__dict__.update(attributes)

    def create_rng_key(self, module: Node) -> None:
        """Gives a module that draws random numbers its own key, for use in the transforms of JAX itself."""
        if state.in_initializer or RNG_ATTRIBUTE in held(module):
            return
        require_same_trace(module, "created its random key")
        meta = meta_of(module)
        parameters = {**meta.parameters, RNG_ATTRIBUTE: False}
        key = self.key_for(module, RNG_ATTRIBUTE)
        self.create(module, RNG_ATTRIBUTE, lambda: _default_key_data(key()), lambda data: data, key)
        write_meta(module, dataclasses.replace(meta, parameters=parameters), created=True)

    def key_for(self, module: Node, name: str) -> Make:
        """The key of one parameter: the base key of the outermost module that runs, folded with the path below it."""
        return self._key([*self._with_lanes(parts_of(module)), name], module)

    def constructor_key(self, module: Node, name: str) -> Make:
        """The key of a parameter that is created in `__init__`, where the path is not known yet: it derives from the
        place in the method that constructs the module."""
        creator = next((frame for frame in reversed(state.frames) if not frame.building), None)
        if creator is None:
            base = self._new_base(module)
            return lambda: fold_in_path(base(), name)
        place = (*creator.parts, creator.method, creator.index)
        number = self._constructed[place] = self._constructed.get(place, -1) + 1
        return self._key([*self._with_lanes(creator.parts), f"{creator.index}({number})", name], module)

    def _key(self, path: list[str | Lane], module: Node) -> Make:
        frames = [frame for frame in state.frames if not frame.building]
        root, method = (frames[0].module, frames[0].method) if frames else (module, "call")
        # Each method that is run from outside has a key of its own, as it has where it runs by itself.
        if (id(root), method) not in self._bases:
            self._bases[id(root), method] = self._new_base(root)
        base, below = self._bases[id(root), method], path[1:]
        return lambda: fold_in_path(base(), "/".join(map(str, below)))

    def _with_lanes(self, parts: tuple[str, ...]) -> list[str | Lane]:
        """A path in which a stacked module is followed by the number of the copy: `cell/w` -> `cell/3/w`. Where the
        module is that of a stack, the number stands in its place, as in a list: `layers/blocks/w` -> `layers/3/w`."""
        path: list[str | Lane] = list(parts)
        for frame in reversed(state.frames if self.lanes else ()):
            lane = self.lanes.get(id(frame.module))
            if lane is not None and len(frame.parts) <= len(parts):
                parent = frame.parent.module if frame.parent is not None else None
                is_item = parent is not None and held(parent).get(parent._elegy_items) is frame.module
                end = len(frame.parts)
                path[end - is_item : end] = [lane]
        return path

    def _new_base(self, module: Node) -> Make:
        rng = state.rng
        if rng._born not in (self.trace, tracing.current()):
            raise TraceError(
                f"{path_of(module)}: parameters were created inside a jax transform, but the random stream belongs "
                "to the code outside of it. There are two ways out:"
                + ways_out(
                    "Pass a key as an argument of the transformed function: module.init(x, rng=key) or "
                    "module.apply(x, rng=key).",
                    "Initialise the module before: module.init(x).",
                )
            )
        if rng._root is None and self.drawn is not None:
            self.derived[0] += 1
            drawn, number = self.drawn, np.uint32(self.derived[0])
            return lambda: jax.random.fold_in(drawn, number)
        return rng.base_key()


def _stacked(make: Make, lane: Lane, size: int) -> tp.Any:
    values = []
    for lane.index in range(size):
        values.append(make())
    lane.index = 0
    with jax.ensure_compile_time_eval():
        return jax.tree.map(lambda *copies: jnp.stack(copies), *values)


def _default_key_data(key: jax.Array) -> jax.Array:
    """Raw data of a key of the default implementation, which `wrap_key_data` reads back without being told."""
    default = jax.random.key(0)
    if jax.random.key_impl(default) != jax.random.key_impl(key):
        key = jax.random.key(jax.random.bits(key, dtype=np.uint32))
    return jax.random.key_data(key)


class NeedsInitPass(BaseException):
    """Raised inside the trace of a transform that threads a module whose parameters do not exist yet."""

    def __init__(self, module: Node, method: str):
        super().__init__(f"{type(module).__name__}.{method} needs an init pass")
        self.module = module
        self.method = method


def run_init_pass(
    function: Callable[..., tp.Any],
    args: tp.Any,
    kwargs: tp.Any,
    roots: Sequence[Node],
    axis: Axis | None = None,
    anew: Node | None = None,
) -> bool:
    """Runs `function` abstractly; afterwards the modules that it ran hold their initial parameters, and nothing else
    changed.

    **Arguments:**

    - `args`, `kwargs`: arrays among them may be `jax.ShapeDtypeStruct`s.
    - `roots`: the modules that the function may initialise.
    - `axis`: a mapped axis to which the function may refer by its name, as in `jax.lax.pmean`.
    - `anew`: a module in which the parameters that constructors have drawn are drawn again.

    **Returns:** whether anything was created.
    """
    created_before = False
    with transaction():
        while True:
            created, failure = _attempt(function, args, kwargs, roots, axis, anew)
            if failure is None:
                return created or created_before
            created_before, anew = True, None


def _trace(body: Callable[[tp.Any], None], arrays: Sequence[tp.Any], journal: InitPass) -> None:
    """Traces the body, and computes the initial values that came out of the trace."""
    abstract: list[Creation] = []

    def values(arrays):
        body(arrays)
        abstract.extend(creation for creation in journal.creations if has_tracer(creation.value))
        found = [creation.value for creation in abstract]
        for creation in abstract:  # a tracer must not outlive the trace
            creation.value = _ABSTRACT
            creation.show()
        return found

    closed, shapes = jax.make_jaxpr(values, return_shape=True)(arrays)
    missing: list[int] = []
    for index, creation in enumerate(abstract):
        try:
            if creation.traced_key:
                creation.value = creation.make()
        except jax.errors.UnexpectedTracerError:
            pass
        if creation.value is _ABSTRACT:
            missing.append(index)
    if missing:
        _compute(closed, shapes, arrays, abstract, missing)


_ABSTRACT = object()  # stands for a value that is not computed yet


def _compute(closed: tp.Any, shapes: tp.Any, arrays: tp.Any, creations: Sequence[Creation], wanted: list[int]) -> None:
    """Computes the values of the wanted creations, which are outputs of a trace."""
    sizes = [len(jax.tree.leaves(shape)) for shape in shapes]
    ends = np.cumsum(sizes)
    outputs = [range(end - size, end) for end, size in zip(ends.tolist(), sizes, strict=True)]
    for index in wanted:
        if tracing.depends_on_inputs(closed, outputs[index]):
            _require_data(creations[index], arrays)
    values = iter(tracing.evaluate(closed, [number for index in wanted for number in outputs[index]], arrays))
    for index in wanted:
        leaves, treedef = jax.tree.flatten(shapes[index])
        creations[index].value = treedef.unflatten([jnp.asarray(next(values), leaf.dtype) for leaf in leaves])


def _require_data(creation: Creation, arrays: Sequence[tp.Any]) -> None:
    """Refuses an initial value that depends on data of the call where there are none to compute it from."""
    path = path_of(creation.module, creation.name)
    if creation.stacked:
        raise ParameterError(
            f"{path}: the initializer uses data of the call, but the module is stacked, and all copies are initialised "
            "by one run.\n"
            "  Use an initializer of the shape alone, or a list of modules."
        )
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
        raise ParameterError(
            f"{path}: the initializer uses data of the call, and init was given shapes only.\n"
            "  Give init real arrays, or use an initializer of the shape alone."
        )


# What JAX raises where Python needs the value of an array.
_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _attempt(function, args, kwargs, roots, axis, anew) -> tuple[bool, Exception | None]:
    """One pass: whether it created anything, and what the function raised after it had."""
    for node in roots:
        require_same_trace(node, "created its parameters")
    leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=is_node)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    journal = InitPass()
    nodes = walk([*roots, *nodes_in((args, kwargs))])
    failures: list[Exception] = []

    def body(arrays):
        stream = iter(arrays)
        args, kwargs = treedef.unflatten([next(stream) if is_array(leaf) else leaf for leaf in leaves])
        with _inside(journal), placed_for({id(node): node for node in nodes}):
            if anew is not None:
                journal.draw_anew(anew)
            drawn = len(journal.creations)
            try:
                function(*args, **kwargs)
            except Exception as error:
                # Only what was created in a module that outlasts the pass can let the next pass get further.
                lasting = {id(node) for node in walk([*roots, *nodes_in((args, kwargs))])}
                if not any(id(creation.module) in lasting for creation in journal.creations[drawn:]):
                    raise
                failures.append(error.with_traceback(None))

    with transaction():
        try:
            _trace(body if axis is None else _within(axis, body), arrays, journal)
        except _CONCRETE as error:
            if journal.outer is None and not getattr(error, "_elegy_explained", False):
                error._elegy_explained = True  # type: ignore[attr-defined]
                error.add_note(
                    "The first call of a module runs `call` abstractly, to create its parameters, and there arrays "
                    "have no values.\n"
                    "  Put what needs values under `if not elegy.is_initializing():`, or use jax.lax.cond and its kin."
                )
            raise
        _refuse_stored_tracers(journal)
        for creation in journal.creations:
            creation.compute_dtype = creation.compute_dtype if journal.outer is not None else None
            creation.show()
    if journal.outer is not None:
        journal.outer.take(journal)
    elif _are_identical(journal):
        warn(identical_members(roots[0], "the modules of all lanes"))
    return bool(journal.creations or journal.modules), next(iter(failures), None)


def _are_identical(journal: InitPass) -> bool:
    """Whether the code around is mapped by `jax.vmap`, and each lane got the same parameters."""
    trainable = [c.value for c in journal.creations if meta_of(c.module).parameters.get(c.name)]
    return bool(trainable) and all(map(tracing.is_equal_in_all_lanes, trainable))


def identical_members(module: Node, who: str) -> IdenticalMembersWarning:
    return IdenticalMembersWarning(
        f"{path_of(module)}: {who} have the same parameters, so of the same inputs they compute the same, and "
        "training on them keeps them alike.\n"
        "  Use initializers that draw random numbers, and a key for each: "
        "jax.vmap(lambda key: module.copy().init(x, rng=key))(keys).\n"
        "  A module that all lanes are to share is initialised before the map."
    )


def _within(axis: Axis, body: Callable[[tp.Any], None]) -> Callable[[tp.Any], None]:
    """`body` with a named axis around it, though nothing is mapped."""
    name, size = axis

    def mapped(arrays: tp.Any) -> None:
        jax.vmap(lambda _: body(arrays), axis_name=name)(np.zeros(size))

    return mapped


@contextlib.contextmanager
def _inside(journal: InitPass) -> Iterator[None]:
    """Within the abstract trace: what is not a creation is dropped, draws advance a fork, and nothing is collected."""
    before = state.init_pass, state._rng, state.collector, state.threaded, state.unreached
    rng = state.rng
    state.init_pass, state.threaded, state.unreached = journal, {}, frozenset()
    if state.collector is not None:
        state.collector = Collector(state.collector.wants_summaries)
    if rng._born == journal.trace:
        state.rng = rng.fork()
    journal.inner = tracing.current()
    overlay = Overlay(journal.inner, outer=journal.trace)
    try:
        with overlay:
            yield
        keep_created(overlay)
    finally:
        state.init_pass, state._rng, state.collector, state.threaded, state.unreached = before


def has_tracer(value: tp.Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def _refuse_stored_tracers(journal: InitPass) -> None:
    """A module made inside `call` that stored a value of the call would keep the abstract value of the init pass."""
    if journal.trace != tracing.EAGER:
        return
    for module in journal.modules:
        parameters = meta_of(module).parameters
        for slot, value in slots(module):
            if slot.name not in parameters and isinstance(value, Tracer):
                raise TraceError(
                    f"{type(module).__name__}.{slot.name} was given a value computed inside the call that created "
                    "the module.\n"
                    "  A module is created once, so it would hold the value of the first call for ever.\n"
                    "  Pass the value when the module is called, or create a parameter by add_parameter."
                )
