from __future__ import annotations

import dataclasses
import typing as tp

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Num

from elegy.initializers import RandomNormal
from elegy.layout import meta_of
from elegy.nn.inputs import converted, positive
from elegy.nn.linear import Linear
from elegy.state import write_meta
from elegy.transaction import held


class LoRA(Linear):
    """A `Linear` layer that is frozen, plus a trainable map of low rank: `y = x w + b + (alpha / rank) x A B`.

    Low-rank adaptation of Hu et al. 2021, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685), section 4.1, where the
    factors are written `B A` and act from the left. `B` is zero at the start, so the layer first computes what the
    wrapped one does.

    **Arguments:**

    - `linear`: the layer to adapt, initialised or not. It stays as it is; its arrays are shared.
    - `rank`: the rank of the added map.
    - `alpha`: the scale of the added map, before the division by `rank`. The default is `rank`.
    - `a_init`: the initializer of `A`. The default is normal with standard deviation `1 / sqrt(in)`; the paper asks for
      a normal one.

    **Parameters:** `w` and `b` of the `Linear`, under their names but frozen; `lora_a` of shape `[in, rank]` and
    `lora_b` of shape `[rank, out]`, of the dtype of `w`. A checkpoint of the model before is loaded by `strict=False`.

    Since a `LoRA` is a `Linear`, it may stand where a module creates a `Linear` inside `call`. So a trained model is
    adapted by `Selection.replace`, only the adapters are saved, and `merge` makes plain layers again:

    ```python
    import elegy
    import jax.numpy as jnp

    x = jnp.ones([2, 3])
    mlp = elegy.nn.Sequential(lambda: [elegy.nn.Linear(8), jnp.tanh, elegy.nn.Linear(1)]).init(x)

    adapted = elegy.select(mlp, elegy.nn.Linear).replace(lambda linear: elegy.nn.LoRA(linear, rank=2))
    adapters = elegy.select(adapted, "**/lora_*")
    assert adapters == elegy.select(adapted, trainable=True)
    elegy.save("adapters.safetensors", adapters)

    merged = elegy.select(adapted, elegy.nn.LoRA).replace(elegy.nn.LoRA.merge)
    assert type(merged.layers[0]) is elegy.nn.Linear
    ```
    """

    # In a stack or an ensemble the arrays have an axis more.
    w: Inexact[Array, "*layers in out"]
    b: Inexact[Array, "*layers out"]
    lora_a: Inexact[Array, "*layers in rank"]
    lora_b: Inexact[Array, "*layers rank out"]

    def __init__(self, linear: Linear, rank: int, *, alpha: float | int | None = None, a_init: tp.Any = None):
        if type(linear) is not Linear:
            raise TypeError(f"elegy.nn.LoRA adapts an elegy.nn.Linear, got {linear!r}.")
        given = {name: linear.__dict__[name] for name in ("name", "dtype") if name in linear.__dict__}
        super().__init__(
            linear.output_size, with_bias=linear.with_bias, w_init=linear.w_init, b_init=linear.b_init, **given
        )
        self.rank = positive("LoRA", "rank", rank)
        self.alpha = self.rank if alpha is None else alpha
        self.a_init = a_init
        meta = meta_of(linear)
        if meta.initialized:
            for name in meta.parameters:
                self.add_parameter(name, initializer=held(linear)[name])
            *axes, inputs, outputs = linear.w.shape
            self._add_factors(axes, inputs, outputs)
        frozen = frozenset({("w", 0), ("b", 0)})
        write_meta(
            self, dataclasses.replace(meta_of(self), frozen=frozen, initialized=meta.initialized, records=meta.records)
        )

    def _add_factors(self, axes: list[int], inputs: int, outputs: int) -> tuple[tp.Any, tp.Any]:
        dtype = self.w.dtype
        a_init = RandomNormal(inputs**-0.5) if self.a_init is None else self.a_init
        a = self.add_parameter("lora_a", [*axes, inputs, self.rank], dtype, a_init)
        return a, self.add_parameter("lora_b", [*axes, self.rank, outputs], dtype, jnp.zeros)

    def call(self, x: Num[ArrayLike, "*batch in"]) -> Inexact[Array, "*batch out"]:
        """**Arguments:**

        - `x`: an array of at least one axis.

        **Returns:** an array of the same shape but for the last axis, which has `output_size` elements.
        """
        y = super().call(x)
        a, b = self._add_factors([], jnp.shape(x)[-1], self.output_size)
        return y + self.alpha / self.rank * jnp.dot(jnp.dot(converted(self, x, a.dtype), a), b)

    def merge(self) -> Linear:
        """A `Linear` that computes the same: its `w` is `w + (alpha / rank) A B`. The layer itself stays as it is."""
        given = {name: self.__dict__[name] for name in ("name", "dtype") if name in self.__dict__}
        linear = Linear(self.output_size, with_bias=self.with_bias, w_init=self.w_init, b_init=self.b_init, **given)
        linear.init(jax.ShapeDtypeStruct([self.w.shape[-2]], self.w.dtype))
        w = self.w + self.alpha / self.rank * jnp.matmul(self.lora_a, self.lora_b)
        if not self.with_bias:
            return eqx.tree_at(lambda linear: linear.w, linear, w)
        return eqx.tree_at(lambda linear: (linear.w, linear.b), linear, (w, self.b))
