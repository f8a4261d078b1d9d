from __future__ import annotations

import typing as tp
from collections.abc import Callable, Iterable, Sequence

from elegy.hooks import add_summary
from elegy.module import Module
from elegy.nn.inputs import Nothing

Layer = Callable[..., tp.Any]


class Sequential(Module):
    """Runs layers one after another: the first takes the inputs, each other one the output of the one before.

    **Arguments:**

    - `layers`: a function without arguments that returns the layers: modules, or plain functions such as `jax.nn.relu`.
      It runs once, when the `Sequential` is constructed, so the modules that it creates belong to the `Sequential`
      wherever that is constructed. A list or tuple of layers may be given too; if it is written inside `call`, its
      modules belong to the module that is running, and are shared with the `Sequential`.
    - `name`: that of `elegy.Module`.

    **Attributes:** `layers`, a tuple; the parameters of the first layer are found at `layers/0`.

    Without layers it returns its input.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    mlp = elegy.nn.Sequential(
        lambda: [
            elegy.nn.Linear(64),
            jax.nn.relu,
            elegy.nn.Linear(1),
        ]
    )
    y = mlp(jnp.ones([15, 3]))
    assert y.shape == (15, 1)
    assert mlp.layers[0].w.shape == (3, 64)
    ```
    """

    def __init__(
        self,
        layers: Callable[[], Iterable[Layer]] | list[Layer] | tuple[Layer, ...],
        *more: Nothing,
        name: str | None = None,
    ):
        super().__init__(name=name)
        if more or isinstance(layers, (Module, type)):
            raise TypeError(
                "elegy.nn.Sequential takes a function that returns the layers, or a list of them: "
                "Sequential(lambda: [layer, ...]). For layers as arguments there is elegy.nn.sequential(layer, ...)."
            )
        made = layers() if callable(layers) else layers
        if not isinstance(made, (list, tuple)):
            raise TypeError(f"elegy.nn.Sequential: expected a list of layers, got {type(made).__name__}.")
        self.layers = _checked("Sequential", made)

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """**Arguments:** those of the first layer.

        **Returns:** what the last layer returns.
        """
        return _run(self.layers, args, kwargs)


def sequential(*layers: Layer) -> Callable[..., tp.Any]:
    """The composition of layers, first to last, as a function.

    It is no module: inside `call` its modules are kept by the module that is running, under their own names.

    **Arguments:**

    - `layers`: modules, or plain functions such as `jax.nn.relu`.

    **Returns:** a function that takes the arguments of the first layer.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp


    class MLP(elegy.Module):
        def call(self, x):
            return elegy.nn.sequential(
                elegy.nn.Linear(64),
                jax.nn.relu,
                elegy.nn.Linear(1),
            )(x)


    mlp = MLP()
    mlp(jnp.ones([15, 3]))
    assert mlp.linear_1.w.shape == (64, 1)
    ```
    """
    checked = _checked("sequential", layers)

    def composed(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return _run(checked, args, kwargs)

    return composed


def _checked(owner: str, layers: Sequence[tp.Any]) -> tuple[Layer, ...]:
    for position, layer in enumerate(layers):
        if isinstance(layer, type) and issubclass(layer, Module):
            raise TypeError(
                f"elegy.nn.{owner}: layer {position} is the class {layer.__name__}.\n"
                f"  Construct it: {layer.__name__}(...)."
            )
        if not callable(layer):
            raise TypeError(f"elegy.nn.{owner}: layer {position} cannot be called: {layer!r}.")
    return tuple(layers)


def _run(layers: Sequence[Layer], args: tuple[tp.Any, ...], kwargs: dict[str, tp.Any]) -> tp.Any:
    if not layers:
        return _identity(*args, **kwargs)
    outputs = None
    for position, layer in enumerate(layers):
        outputs = layer(outputs) if position else layer(*args, **kwargs)
        if not isinstance(layer, Module):  # a module declares its outputs itself
            add_summary(getattr(layer, "__name__", type(layer).__name__), outputs)
    return outputs


def _identity(x: tp.Any) -> tp.Any:
    return x
