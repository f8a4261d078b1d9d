"""Layers that run another one with weights computed from its own."""

from __future__ import annotations

import typing as tp
from collections.abc import Sequence

from jaxtyping import Array

from elegy.contexts import is_initializing
from elegy.errors import ParameterError, show_value
from elegy.frames import path_of, paths_below
from elegy.layout import meta_of, walk
from elegy.leaves import Node, is_array
from elegy.module import Module
from elegy.nn.inputs import trains
from elegy.nn.stacked import Stacked
from elegy.transaction import held, temporarily


class Weight(tp.NamedTuple):
    """A parameter of a wrapped layer: the module that has it, its name there, and the path from the layer to it."""

    owner: Node
    name: str
    parts: tuple[str, ...]

    def read(self) -> Array:
        return held(self.owner)[self.name]

    def beside(self, name: str) -> str:
        """The name of a parameter of the wrapper that belongs to this weight: `u` for the `w` of the layer itself,
        `u_layers_0_w` for one below it."""
        return name if self.parts == ("w",) else "_".join((name, *self.parts))


class Reparametrised(Module):
    """Base class of layers around another one, `layer`, which they run with other weights.

    The wrapped layer keeps its own weights, which are those that are trained: while it runs, others stand in their
    place. All else that it does is done as without the wrapper: its state changes, it draws random numbers, it declares
    losses.
    """

    layer: tp.Any

    def _wrap(self, layer: tp.Any, names: str | Sequence[str]) -> None:
        """Prepares the wrapped layer. `names` are those of the parameters that are weights."""
        wrapper = f"elegy.nn.{type(self).__name__}"
        made = layer if isinstance(layer, (Module, type)) or not callable(layer) else layer()
        if not isinstance(made, Module):
            hint = f"\n  Construct it: {layer.__name__}(...)." if isinstance(layer, type) else ""
            raise TypeError(
                f"{wrapper} takes a module, or a function without arguments that constructs one, got "
                f"{show_value(layer) if made is layer else f'a function that gives {show_value(made)}'}.{hint}"
            )
        self.names = names if isinstance(names, str) else tuple(names)
        if not self.names or not all(isinstance(name, str) for name in self.names):
            raise TypeError(f"{wrapper}: names must be the names of parameters, such as 'w', got {names!r}.")
        self.layer = made

    def call(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        """**Arguments:** those of the layer.

        **Returns:** what the layer returns.
        """
        training = trains(self, kwargs.get("training"))
        if is_initializing():
            outputs = self.layer(*args, **kwargs)
            for weight in self._weights():
                self._changed(weight, weight.read(), training)
            return outputs
        if "call" not in meta_of(self.layer).records:  # it was reset
            self.layer.init(*args, **kwargs)
        weights = self._weights()
        changed = [(weight.owner, weight.name, self._changed(weight, weight.read(), training)) for weight in weights]
        with temporarily(changed):
            return self.layer(*args, **kwargs)

    def _changed(self, weight: Weight, value: Array, training: bool) -> Array:
        """What stands in the place of a weight. Creates the parameters that belong to it, whatever the mode."""
        raise NotImplementedError

    def _weights(self) -> list[Weight]:
        """The weights of the layer, in the order in which it is walked."""
        names = (self.names,) if isinstance(self.names, str) else self.names
        paths, found = paths_below(self.layer), []
        for node in walk([self.layer]):
            if isinstance(node, Stacked):
                raise TypeError(
                    f"{path_of(self)}: the weights of a {type(node).__name__} are those of several modules, and would "
                    f"be taken for one.\n  Wrap each of them: {type(node).__name__}(lambda: "
                    f"{type(self).__name__}(...), n)."
                )
            for name, trainable in meta_of(node).parameters.items():
                value: tp.Any = held(node).get(name)
                if name in names and trainable and is_array(value) and value.ndim >= 2:
                    found.append(Weight(node, name, (*paths[id(node)], name)))
        if not found:
            raise ParameterError(
                f"{path_of(self)}: {type(self.layer).__name__} has no trainable parameter of two axes or more with "
                f"the name {' or '.join(map(repr, names))}.\n"
                f"  Say which: {type(self).__name__}(layer, names=...)."
            )
        if len({weight.beside("u") for weight in found}) < len(found):
            raise ParameterError(
                f"{path_of(self)}: two weights have paths that differ in '/' and '_' only: "
                f"{', '.join('/'.join(weight.parts) for weight in found)}.\n  Give their modules other names."
            )
        return found

    def _dtype_of(self, name: str, default: tp.Any) -> tp.Any:
        """The dtype of a parameter, which may have been cast since it was created with a default one."""
        value = held(self).get(name)
        return default if value is None else value.dtype
