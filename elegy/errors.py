"""One class per misuse. Each docstring shows the failing code and the mended one."""


class ElegyError(Exception):
    """Base class of every error that Elegy raises on its own account."""


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

    Mended: build the module with the value that it should have.

    ```python
    linear = elegy.nn.Linear(4)
    ```

    To change arrays use `module.set_parameters(...)`; to get a changed copy use `equinox.tree_at`;
    to freeze or unfreeze parameters assign `module.trainable`.
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

    Mended: create unconditionally, use conditionally.

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

    Mended, either by passing the module and returning it

    ```python
    y, norm = jax.jit(lambda norm, x: (norm(x), norm))(norm, x)
    ```

    or by the transform of Elegy, which threads the listed modules in and out.

    ```python
    y = elegy.jit(lambda x: norm(x), modules=norm)(x)
    ```
    """


class HookError(ElegyError, RuntimeError):
    """A hook was called where no module is running.

    Failing:

    ```python
    import elegy

    linear = elegy.nn.Linear(3)
    try:
        linear.add_parameter("scale", [3])
    except elegy.errors.HookError as error:
        print(error)
    ```

    Mended: call it in `__init__`, in `call`, or in a method marked `elegy.compact`.

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

    Mended:

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

    Mended: choose a free name.

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

    Mended: `jax.tree_util.Partial` is a pytree, so its arrays are seen.

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

    Mended:

    ```python
    linear.trainable = True
    loss, grads = elegy.value_and_grad(lambda x: linear(x).sum(), modules=linear)(jnp.ones([1, 2]))
    ```
    """


class StructureError(ElegyError, RuntimeError):
    """The structure of a threaded module changed inside a compiled or differentiated function.

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

    Mended: freeze outside; the compiled function is compiled again for the new structure.

    ```python
    linear.trainable = False
    elegy.jit(lambda x: linear(x), modules=linear)(jnp.ones([1, 2]))
    ```
    """


class CheckpointError(ElegyError, ValueError):
    """A file does not fit the tree it is loaded into; every difference is listed at once.

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

    Mended: load into a tree of the shapes that were saved.

    ```python
    linear = elegy.load(path, like=elegy.nn.Linear(3).init(jnp.ones([1, 2])))
    ```
    """


class LostUpdateWarning(UserWarning):
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

    Mended: return the module, or do without the update by `elegy.training_context(False)`.

    ```python
    y, norm = jax.jit(lambda norm, x: (norm(x), norm))(norm, x)
    ```
    """


class RecompilationWarning(UserWarning):
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

    Mended: keep shapes equal, for example by padding.

    ```python
    double = elegy.jit(lambda x: 2 * x)
    for size in range(1, 11):
        double(jnp.ones([10]))[:size]
    ```
    """
