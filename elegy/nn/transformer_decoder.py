from __future__ import annotations

import functools
import typing as tp
from collections.abc import Callable

from jaxtyping import Array, ArrayLike, Bool, Inexact, Num

from elegy.nn.inputs import Flag
from elegy.nn.multi_head_attention import MultiHeadAttention
from elegy.nn.transformer_encoder import LayerStack, TransformerLayer, check_sequence


class TransformerDecoderLayer(TransformerLayer):
    """Attention of a sequence to what is before in it, attention to another one, the memory, and two linear layers.

    Vaswani et al., *Attention Is All You Need* (2017), [arXiv:1706.03762](https://arxiv.org/abs/1706.03762),
    section 3.1. For a model without a memory there is `elegy.nn.TransformerEncoderLayer` with `causal=True`.

    **Arguments:** those of `elegy.nn.TransformerEncoderLayer`. `rotary`, `window` and `cache_size` are those of the
    first attention alone, since the memory has positions of its own.

    **Parameters:** those of `elegy.nn.TransformerEncoderLayer`; of `cross_attention`, an
    `elegy.nn.MultiHeadAttention`, and of `cross_attention_norm`.

    ```python
    import elegy
    import jax.numpy as jnp

    layer = elegy.nn.TransformerDecoderLayer(4)
    y = layer(jnp.ones([2, 10, 8]), memory=jnp.ones([2, 7, 6]))
    assert y.shape == (2, 10, 8)
    assert layer.cross_attention.key.w.shape == (6, 8)
    ```
    """

    def _make_parts(self, attention: Callable[..., MultiHeadAttention], **positional: tp.Any) -> None:
        super()._make_parts(attention, **positional)
        self.cross_attention = attention()
        self._add_part("cross_attention")

    def call(
        self,
        x: Num[ArrayLike, "*batch length features"],
        memory: Num[ArrayLike, "*batch memory_length memory_features"],
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
        key_mask: Bool[ArrayLike, "..."] | None = None,
        memory_mask: Bool[ArrayLike, "..."] | None = None,
        memory_key_mask: Bool[ArrayLike, "..."] | None = None,
        causal: Flag = True,
        decode: Flag = False,
        training: Flag | None = None,
    ) -> Inexact[Array, "*batch length features"]:
        """**Arguments:**

        - `x`: an array of at least two axes.
        - `memory`: the sequence that is attended to, such as the output of an encoder.
        - `mask`, `key_mask`, `causal`, `decode`: those of `elegy.nn.MultiHeadAttention`, for the first attention.
        - `memory_mask`, `memory_key_mask`: its `mask` and `key_mask` for the attention to the memory. A
          `memory_key_mask` of `[*batch, memory_length]` says which positions of the memory are no padding.
        - `training`: whether to drop. The default is `elegy.training()`.

        **Returns:** an array of the shape of `x`, in the dtype of the parameters.
        """
        check_sequence(self, x)
        attend = functools.partial(
            self.attention, mask=mask, key_mask=key_mask, causal=causal, decode=decode, training=training
        )

        def attend_to_memory(x: Array) -> Array:
            return self.cross_attention(x, memory, mask=memory_mask, key_mask=memory_key_mask, training=training)

        x = self._added("attention", attend, x, training)
        x = self._added("cross_attention", attend_to_memory, x, training)
        return self._added("feedforward", self._feedforward, x, training)


class TransformerDecoder(LayerStack):
    """Several layers of `elegy.nn.TransformerDecoderLayer`, one after the other, compiled as one.

    **Arguments:** those of `elegy.nn.TransformerEncoder`.

    **Parameters:** those of a layer below `layers/blocks`, each with a leading axis of the layers; those of
    `final_norm`, an `elegy.nn.LayerNormalization`.

    ```python
    import elegy
    import jax.numpy as jnp

    decoder = elegy.nn.TransformerDecoder(6, 4, norm_first=True)
    y = decoder(jnp.ones([2, 10, 8]), jnp.ones([2, 7, 8]))
    assert y.shape == (2, 10, 8)
    ```
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        *more: tp.Any,
        final_norm: Flag | None = None,
        remat: Flag | Callable[..., bool] = False,
        unroll: int | bool = 1,
        name: str | None = None,
        dtype: tp.Any = None,
        **options: tp.Any,
    ):
        super().__init__(
            TransformerDecoderLayer, num_layers, num_heads, more, final_norm, remat, unroll, name, dtype, options
        )

    def call(
        self,
        x: Num[ArrayLike, "*batch length features"],
        memory: Num[ArrayLike, "*batch memory_length memory_features"],
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
        key_mask: Bool[ArrayLike, "..."] | None = None,
        memory_mask: Bool[ArrayLike, "..."] | None = None,
        memory_key_mask: Bool[ArrayLike, "..."] | None = None,
        causal: Flag = True,
        decode: Flag = False,
        training: Flag | None = None,
    ) -> Inexact[Array, "*batch length features"]:
        """**Arguments:** those of `elegy.nn.TransformerDecoderLayer`.

        **Returns:** an array of the shape of `x`, in the dtype of the parameters.
        """
        masks = {"mask": mask, "key_mask": key_mask, "memory_mask": memory_mask, "memory_key_mask": memory_key_mask}
        return self._run(x, memory, **masks, causal=causal, decode=decode, training=training)
