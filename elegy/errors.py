"""One class per misuse. Each docstring shows the failing code and the fixed one, and each message links to both."""

import itertools
import typing as tp
from collections.abc import Iterator

import jax
import jaxtyping
import numpy as np

# Where the section of each class is; the anchor is the name of the class in lower case.
PAGE = "docs/errors.md"


def _link(cls: type) -> str:
    """Where to read on: the class itself, or for a class of somebody else's the nearest one of this file."""
    name = next(base.__name__ for base in cls.__mro__ if base.__module__ == __name__)
    return f"See {PAGE}#{name.lower()}, or help(elegy.errors.{name}), for an example that fails and its fix."


class ElegyError(Exception):
    """Base class of every error that Elegy raises on its own account.

    Its traceback ends with a link to the section of its class. The link is a note, so that `str(error)` is the
    message alone.

    ```python
    import elegy

    try:
        elegy.nn.Linear(3).width = 4
    except elegy.errors.ElegyError as error:
        assert "docs/errors.md#frozenmoduleerror" in error.__notes__[0]
    ```
    """

    def __init__(self, *args: object):
        super().__init__(*args)
        self.add_note(_link(type(self)))


class ElegyWarning(UserWarning):
    """Base class of every warning of Elegy. Its text ends with a link, as an error's does."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n  {_link(type(self))}"


def ways_out(*ways: str) -> str:
    """The end of a message that offers several ways out, numbered, a line each."""
    return "".join(f"\n  {number}. {way}" for number, way in enumerate(ways, 1))


_MOST_SHOWN = 8  # elements of a container
_LONGEST_STRING = 40


def show_value(value: tp.Any) -> str:
    """A value in an error message: an array by its dtype and shape, of long things the beginning."""
    if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        numpy = "NumPy " if isinstance(value, np.ndarray) else ""
        return f"{numpy}{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return f"{opening}{', '.join(_first(map(show_value, value), len(value)))}{closing}"
    if isinstance(value, dict):
        items = (f"{key}: {show_value(item)}" for key, item in value.items())
        return f"{{{', '.join(_first(items, len(value)))}}}"
    if isinstance(value, (bool, int, float, complex, str, type(None))):
        text = repr(value)
        return text if len(text) <= _LONGEST_STRING else f"{text[:_LONGEST_STRING]}…"
    return type(value).__name__


def _first(shown: Iterator[str], length: int) -> list[str]:
    return [*itertools.islice(shown, _MOST_SHOWN), *(["…"] if length > _MOST_SHOWN else [])]


class FrozenModuleError(ElegyError, AttributeError):
    """An attribute of a constructed module was assigned, deleted or mutated.

    A module is a value: once its `__init__` has returned, its attributes are fixed.

    Failing:

    ```python
    import elegy

    linear = elegy.nn.Linear(3)
    try:
        linear.output_size = 4
    except elegy.errors.FrozenModuleError as error:
        print(error)
    ```

    Fixed: build the module with the value that it should have.

    ```python
    linear = elegy.nn.Linear(4)
    ```

    To change arrays use `module.set_parameters(...)`; to get a changed copy use `equinox.tree_at`;
    to freeze or unfreeze parameters assign `module.trainable`.
    """


class ClassDefinitionError(ElegyError, TypeError):
    """A class is defined in a way that its instances could not follow.

    A class of modules defines `__call__` where Elegy runs `call`, it holds a module in its body, where all instances
    would share it, or it declares `__slots__`. A class of callbacks has a hook that only other libraries call.

    Failing:

    ```python
    import dataclasses

    import elegy

    try:

        class Net(elegy.Module):
            def __call__(self, x):
                return elegy.nn.Linear(3)(x)

    except elegy.errors.ClassDefinitionError as error:
        print(error)
    ```

    Fixed: define `call`, and make modules in `__init__`, in `call`, or by a factory.

    ```python
    class Net(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(3)(x)


    @dataclasses.dataclass
    class Block(elegy.Module):
        layer: elegy.Module = dataclasses.field(default_factory=lambda: elegy.nn.Linear(3))

        def call(self, x):
            return self.layer(x)
    ```
    """


class ModuleOrderError(ElegyError, ValueError):
    """The modules created inside `call` are not those of the first call.

    Modules created inside `call` are matched by their order of creation, so the same modules must be created,
    in the same order and with the same arguments, on every call.

    Failing:

    ```python
    import elegy
    import jax.numpy as jnp


    class Net(elegy.Module):
        def call(self, x):
            if x.shape[0] > 5:
                return elegy.nn.Linear(2)(x)
            return elegy.nn.Dropout(0.5)(x)


    net = Net()
    net(jnp.ones([8, 3]))
    try:
        net(jnp.ones([2, 3]))
    except elegy.errors.ModuleOrderError as error:
        print(error)
    ```

    Fixed: create unconditionally, use conditionally.

    ```python
    class Net(elegy.Module):
        def call(self, x):
            linear = elegy.nn.Linear(2)
            dropout = elegy.nn.Dropout(0.5)
            return linear(x) if x.shape[0] > 5 else dropout(x)


    net = Net()
    net(jnp.ones([8, 3]))
    net(jnp.ones([2, 3]))
    ```
    """


class TraceError(ElegyError, RuntimeError):
    """A module or context of an outer trace was changed inside a `jax` transform.

    Inside `jax.jit`, `jax.vmap`, `jax.grad`, `jax.lax.scan`, … a module of the outside may be read, not changed:
    the change would be a value of the trace and could not leave it.

    Failing:

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    norm = elegy.nn.BatchNormalization()
    x = jnp.ones([4, 3])
    norm(x)

    try:
        jax.jit(lambda x: norm(x))(x)
    except elegy.errors.TraceError as error:
        print(error)
    ```

    Fixed, either by passing the module and returning it

    ```python
    y, norm = jax.jit(lambda norm, x: (norm(x), norm))(norm, x)
    ```

    or by the transform of Elegy, which threads the listed modules in and out.

    ```python
    y = elegy.jit(lambda x: norm(x), modules=norm)(x)
    ```
    """


class HookError(ElegyError, RuntimeError):
    """A hook was called where it cannot work: no module is running, or a transform cannot carry what it declares.

    Failing:

    ```python
    import elegy

    linear = elegy.nn.Linear(3)
    try:
        linear.add_parameter("scale", [3])
    except elegy.errors.HookError as error:
        print(error)
    ```

    Fixed: call it in `__init__`, in `call`, or in a method marked `elegy.compact`.

    ```python
    import jax.numpy as jnp


    class Scale(elegy.Module):
        def call(self, x):
            return x * self.add_parameter("scale", [x.shape[-1]], initializer=jnp.ones)
    ```
    """


class ParameterError(ElegyError, ValueError):
    """A parameter does not exist, or a value has not its shape or dtype.

    Failing:

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(3).init(jnp.ones([1, 2]))
    try:
        linear.set_parameters({"w": jnp.ones([3, 2])})
    except elegy.errors.ParameterError as error:
        print(error)
    ```

    Fixed:

    ```python
    linear.set_parameters({"w": jnp.ones([2, 3])})
    ```
    """


class NameCollisionError(ElegyError, ValueError):
    """A parameter or module would take the name of another attribute or of a method.

    Failing:

    ```python
    import elegy
    import jax.numpy as jnp


    class Net(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(2, name="get_parameters")(x)


    try:
        Net()(jnp.ones([1, 2]))
    except elegy.errors.NameCollisionError as error:
        print(error)
    ```

    Fixed: choose a free name.

    ```python
    class Net(elegy.Module):
        def call(self, x):
            return elegy.nn.Linear(2, name="project")(x)


    Net()(jnp.ones([1, 2]))
    ```
    """


class StaticValueError(ElegyError, TypeError):
    """An attribute cannot be part of a module's static structure.

    What is not an array is static: it is compared with `==` to decide whether a compiled function can be used again.
    A value that hides arrays, or whose `==` is not a bool, cannot be compared.

    Failing:

    ```python
    import functools

    import elegy
    import jax.numpy as jnp


    class Net(elegy.Module):
        def __init__(self):
            self.shift = functools.partial(jnp.add, jnp.ones(3))


    try:
        Net()
    except elegy.errors.StaticValueError as error:
        print(error)
    ```

    Fixed: `jax.tree_util.Partial` is a pytree, so its arrays are seen.

    ```python
    import jax


    class Net(elegy.Module):
        def __init__(self):
            self.shift = jax.tree_util.Partial(jnp.add, jnp.ones(3))


    Net()
    ```
    """


class NothingToDifferentiateError(ElegyError, ValueError):
    """A gradient was asked for, and no leaf is trainable.

    Failing:

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(1).init(jnp.ones([1, 2]))
    linear.trainable = False
    try:
        elegy.value_and_grad(lambda x: linear(x).sum(), modules=linear)(jnp.ones([1, 2]))
    except elegy.errors.NothingToDifferentiateError as error:
        print(error)
    ```

    Fixed:

    ```python
    linear.trainable = True
    loss, grads = elegy.value_and_grad(lambda x: linear(x).sum(), modules=linear)(jnp.ones([1, 2]))
    ```
    """


class StructureError(ElegyError, RuntimeError):
    """The structure of modules does not allow what is asked for.

    The structure of a threaded module changed inside a compiled or differentiated function; modules that are to be
    stacked differ, or share a part; the output of a block of a stack does not have the structure,
    shapes and dtypes of its input.

    Failing:

    ```python
    import elegy
    import jax.numpy as jnp

    linear = elegy.nn.Linear(1).init(jnp.ones([1, 2]))


    def freeze(x):
        linear.trainable = False
        return linear(x)


    try:
        elegy.jit(freeze, modules=linear)(jnp.ones([1, 2]))
    except elegy.errors.StructureError as error:
        print(error)
    ```

    Fixed: freeze outside; the compiled function is compiled again for the new structure.

    ```python
    linear.trainable = False
    elegy.jit(lambda x: linear(x), modules=linear)(jnp.ones([1, 2]))
    ```
    """


class ReductionError(ElegyError, ValueError):
    """Lanes of `elegy.vmap` updated the state of a module that they share, and it is not said what becomes of it.

    Failing: each lane computes statistics of its own, and the module has room for one.

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.arange(24.0).reshape(4, 3, 2)
    norm = elegy.nn.BatchNormalization().init(x[0])
    try:
        elegy.vmap(norm, modules=norm)(x)
    except elegy.errors.ReductionError as error:
        print(error)
    ```

    Fixed: the statistics of all lanes are averaged.

    ```python
    y = elegy.vmap(norm, modules=norm, reduce_state="mean")(x)
    ```
    """


class SampleMaskError(ElegyError, ValueError):
    """A layer that looks at all samples of a batch, a loss or a metric got other rows than the sample mask has.

    Failing: the time steps of all samples are rows of their own, and which of them are real is not known.

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([3, 5, 2])
    norm = elegy.nn.BatchNormalization().init(x)
    mask = jnp.array([True, True, False])
    try:
        with elegy.sample_mask_context(mask):
            norm(x.reshape(15, 2))
    except elegy.errors.SampleMaskError as error:
        print(error)
    ```

    Fixed: the mask of these rows.

    ```python
    with elegy.sample_mask_context(jnp.repeat(mask, 5)):
        norm(x.reshape(15, 2))
    ```
    """


class TypeCheckError(ElegyError, jaxtyping.TypeCheckError):
    """A value is not what its annotation says; only where a run-time type checker is on.

    The message names the axes and where each got its size.

    Failing:

    ```python
    import beartype
    import elegy
    import jax.numpy as jnp
    from jaxtyping import Array, Float


    class Project(elegy.Module):
        w: Float[Array, "in out"]

        def call(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
            return x @ self.add_parameter("w", [x.shape[-1], 2])


    project = Project()
    with elegy.typechecker(beartype.beartype):
        project(jnp.ones([4, 3]))
        try:
            project(jnp.ones([4, 5]))
        except elegy.errors.TypeCheckError as error:
            print(error)
    ```

    Fixed: give it what it was made for, or use another module for another size.

    ```python
    with elegy.typechecker(beartype.beartype):
        project(jnp.ones([7, 3]))
        Project()(jnp.ones([4, 5]))
    ```
    """


class CheckpointError(ElegyError, ValueError):
    """A file does not fit the tree it is loaded into; every difference is listed at once.

    Of `elegy.Checkpoints` also: a checkpoint is damaged, comes from a later version of the format, or could not be
    written in the background, where the error that stopped it is the cause.

    Failing:

    ```python
    import os
    import tempfile

    import elegy
    import jax.numpy as jnp

    path = os.path.join(tempfile.mkdtemp(), "linear.safetensors")
    elegy.save(path, elegy.nn.Linear(3).init(jnp.ones([1, 2])))
    try:
        elegy.load(path, like=elegy.nn.Linear(4).init(jnp.ones([1, 2])))
    except elegy.errors.CheckpointError as error:
        print(error)
    ```

    Fixed: load into a tree of the shapes that were saved.

    ```python
    linear = elegy.load(path, like=elegy.nn.Linear(3).init(jnp.ones([1, 2])))
    ```
    """


class SelectionError(ElegyError, LookupError):
    """A selection is empty, or does not fit the modules that it is used with.

    Failing: a path that is nowhere.

    ```python
    import elegy
    import jax.numpy as jnp

    mlp = elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), elegy.nn.Linear(1)]).init(jnp.ones([1, 2]))
    try:
        elegy.select(mlp, "layer/0/w")
    except elegy.errors.SelectionError as error:
        print(error)
    ```

    Fixed: the message names what comes near.

    ```python
    weights = elegy.select(mlp, "layers/0/w").get()
    ```
    """


class CheckpointWarning(ElegyWarning):
    """A checkpoint is damaged, and an older one takes its place; the message says which file it is, and why.

    Folders that `elegy.Checkpoints` writes appear when they are complete. This one was changed later: by a disk, by
    somebody, or by a copy that stopped halfway.

    It also tells of checkpoints that a training does not fit, though it can go on: one that begins in a directory with
    those of a longer one, or goes on with other callbacks, or with another number of samples.

    Failing:

    ```python
    import os
    import tempfile
    import warnings

    import elegy
    import jax.numpy as jnp

    checkpoints = elegy.Checkpoints(tempfile.mkdtemp())
    checkpoints.save(1, {"w": jnp.ones(3)}, wait=True)
    checkpoints.save(2, {"w": jnp.zeros(3)}, wait=True)
    os.remove(os.path.join(checkpoints.directory, "step-0000000002", "arrays.safetensors"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tree, _ = checkpoints.load(like={"w": jnp.empty(3)})  # of step 1
    print(caught[0].message)
    ```

    Fixed: copy the folder anew, or remove it.

    ```python
    import shutil

    shutil.rmtree(os.path.join(checkpoints.directory, "step-0000000002"))
    tree, _ = checkpoints.load(like={"w": jnp.empty(3)})
    ```
    """


class LostUpdateWarning(ElegyWarning):
    """A module's state changed inside a `jax` transform and the changed copy was not returned.

    Failing:

    ```python
    import warnings

    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    norm = elegy.nn.BatchNormalization().init(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.jit(lambda norm, x: norm(x))(norm, x)
    print(caught[0].message)
    ```

    Fixed: return the module, or do without the update by `elegy.training_context(False)`.

    ```python
    y, norm = jax.jit(lambda norm, x: (norm(x), norm))(norm, x)
    ```
    """


class StaleClosureWarning(ElegyWarning):
    """The arrays of a module change, and a function that closes over it was traced by JAX with the old ones.

    JAX traces a function once and takes the arrays in its closure for constants, for as long as the function lives.
    The warning is given within `elegy.debug()` only, as it cannot tell a function that will run again from one that was
    only looked at.

    Failing:

    ```python
    import warnings

    import elegy
    import jax
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    linear = elegy.nn.Linear(2).init(x)
    with elegy.debug(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict = jax.jit(lambda x: linear(x))
        predict(x)
        linear.set_parameters({"b": jnp.ones(2)})  # predict(x) stays what it was
    print(caught[0].message)
    ```

    Fixed: make the module an argument, or list it.

    ```python
    predict = jax.jit(lambda linear, x: linear(x))
    predict(linear, x)

    predict = elegy.jit(lambda x: linear(x), modules=linear)
    predict(x)
    linear.set_parameters({"b": jnp.zeros(2)})
    ```
    """


class UncheckedAnnotationWarning(ElegyWarning):
    """An annotation could not be read, so the type checker that is on does not check it.

    Failing: the text of the annotation names something that does not exist where the class is defined.

    ```python
    import warnings

    import beartype
    import elegy
    import jax.numpy as jnp


    class Scale(elegy.Module):
        def call(self, x: "Float[Array, 'n']"):
            return 2 * x


    with elegy.typechecker(beartype.beartype), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Scale()(jnp.ones([3]))
    print(caught[0].message)
    ```

    Fixed: import the names in the module, not in a function or for static checkers only.

    ```python
    from jaxtyping import Array, Float


    class Scale(elegy.Module):
        def call(self, x: "Float[Array, 'n']"):
            return 2 * x


    with elegy.typechecker(beartype.beartype):
        Scale()(jnp.ones([3]))
    ```
    """


class CompiledForOthersError(ElegyError, ValueError):
    """What `elegy.jit(f).lower(...).compile()` gave was called for other modules than those it was compiled for.

    It is compiled once and for all: for the structure of the modules, for the mode, and for what hooks collect. The
    message says what changed.

    Failing:

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([4, 3])
    dropout = elegy.nn.Dropout(0.5)
    compiled = elegy.jit(dropout).lower(x).compile()
    try:
        with elegy.training_context(False):
            compiled(x)
    except elegy.errors.CompiledForOthersError as error:
        print(error)
    ```

    Fixed: compile for each.

    ```python
    with elegy.training_context(False):
        compiled = elegy.jit(dropout).lower(x).compile()
        compiled(x)
    ```
    """


class RecompilationWarning(ElegyWarning):
    """A function compiled by `elegy.jit` was traced ten times; the message says what changed last.

    Failing:

    ```python
    import warnings

    import elegy
    import jax.numpy as jnp

    double = elegy.jit(lambda x: 2 * x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in range(1, 11):
            double(jnp.ones([size]))
    print(caught[0].message)
    ```

    Fixed: keep shapes equal, for example by padding.

    ```python
    double = elegy.jit(lambda x: 2 * x)
    for size in range(1, 11):
        double(jnp.ones([10]))[:size]
    ```
    """


class IdenticalMembersWarning(ElegyWarning):
    """The members of an ensemble have the same parameters, so they compute the same and stay alike.

    Failing: every initializer is a constant.

    ```python
    import warnings

    import elegy
    import jax.numpy as jnp

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        elegy.nn.Ensemble(lambda: elegy.nn.Linear(1, w_init=jnp.zeros), 4)(jnp.ones([1, 2]))
    print(caught[0].message)
    ```

    Fixed: the weights are drawn, for each member from a key of its own.

    ```python
    elegy.nn.Ensemble(lambda: elegy.nn.Linear(1), 4)(jnp.ones([1, 2]))
    ```
    """


class UntrainedModuleWarning(ElegyWarning):
    """A module that is trained uses another one, which is no part of it, and so is not trained.

    Failing:

    ```python
    import warnings

    import elegy
    import numpy as np

    x = np.ones([4, 3], np.float32)
    head = elegy.nn.Linear(1).init(np.ones([4, 2], np.float32))


    class Net(elegy.Module):
        def call(self, x):
            return head(elegy.nn.Linear(2)(x))


    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        elegy.Model(Net(), elegy.losses.MeanSquaredError()).fit(x, x[:, :1], verbose=0)
    print(caught[0].message)
    ```

    Fixed: make it an attribute, or freeze it.

    ```python
    class Net(elegy.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def call(self, x):
            return self.head(elegy.nn.Linear(2)(x))


    elegy.Model(Net(head), elegy.losses.MeanSquaredError()).fit(x, x[:, :1], verbose=0)
    ```
    """


class SortedDataWarning(ElegyWarning):
    """`Model.fit` splits validation data off the end of data that are sorted by class.

    Failing: the last samples are those of the last classes.

    ```python
    import warnings

    import elegy
    import numpy as np

    x, y = np.ones([90, 2], np.float32), np.repeat([0, 1, 2], 30)
    model = elegy.Model(elegy.nn.Linear(3), loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, validation_split=0.2, verbose=0)
    print(caught[0].message)
    ```

    Fixed: the samples are shuffled before.

    ```python
    order = np.random.default_rng(0).permutation(len(x))
    model.fit(x[order], y[order], validation_split=0.2, verbose=0)
    ```
    """


class ResumptionWarning(ElegyWarning):
    """Training goes on in the middle of data that can only begin at their beginning, or whose state could not be saved.

    The batches before are made once more and dropped. What follows is right only if the data give the same batches each
    time, and it takes the time to make them.

    Failing: nobody knows where in the file this function was.

    ```python
    import warnings

    import elegy
    import numpy as np


    def batches():
        for step in range(10):
            yield np.full([4, 1], step, np.float32)


    source = elegy.data.as_source(batches)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        next(source.batches(epoch=1, start=7))
    print(caught[0].message)
    ```

    Fixed: data that can begin anywhere, as those of an `elegy.data.DataLoader` and of Grain can.

    ```python
    loader = elegy.data.DataLoader(np.arange(40, dtype=np.float32)[:, None], batch_size=4, shuffle=True)
    next(elegy.data.as_source(loader).batches(epoch=1, start=7))
    ```

    Where the batches are the same each time, filter the warning out by its class.
    """


class BatchCountWarning(ElegyWarning):
    """The length that data claim to have, in batches, is not how many they gave.

    Failing:

    ```python
    import warnings

    import elegy
    import numpy as np


    class Batches:
        def __len__(self):
            return 4

        def __iter__(self):
            return iter([np.zeros([8, 1], np.float32)] * 3)


    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(elegy.data.as_source(Batches()).batches())
    print(caught[0].message)
    ```

    Fixed: a length that is right, or none. The end of the iterator is what counts in any case.

    ```python
    class Right(Batches):
        def __len__(self):
            return 3


    list(elegy.data.as_source(Right()).batches())
    ```
    """


class UninitialisedWarning(ElegyWarning):
    """The trainable parameters of a module were asked for before it ever ran, and there are none yet.

    An optimiser that is initialised with them would know none, and fail at its first update.

    Failing:

    ```python
    import warnings

    import elegy
    import jax.numpy as jnp
    import optax

    linear = elegy.nn.Linear(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = optax.adam(1e-3).init(linear.get_parameters(trainable=True))
    print(caught[0].message)
    ```

    Fixed: initialise the module before.

    ```python
    linear.init(jnp.ones([4, 3]))
    state = optax.adam(1e-3).init(linear.get_parameters(trainable=True))
    ```
    """
