from __future__ import annotations

import typing as tp
from collections.abc import Callable

from jaxtyping import Array, ArrayLike, Bool, Inexact, Num

from elegy.module import Module
from elegy.nn.inputs import Flag, refuse_more
from elegy.nn.transformer_decoder import TransformerDecoder
from elegy.nn.transformer_encoder import TransformerEncoder


class Transformer(Module):
    """An encoder of a source sequence, and a decoder of a target sequence that attends to what the encoder gives.

    Vaswani et al., *Attention Is All You Need* (2017), [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), figure 1,
    without the embeddings at its beginning and the linear layer at its end. (With `norm_first=False` it has no norm
    after the last layers, as there; PyTorch has one.)

    **Arguments:**

    - `num_encoder_layers`, `num_decoder_layers`: the number of layers of each.
    - `num_heads`: the number of heads of each attention.
    - `final_norm`, `remat`, `unroll`: those of `elegy.nn.TransformerEncoder`, for both.
    - `cache_size`: that of the decoder: the largest number of positions that can be decoded one after the other.
    - `options`: those of `elegy.nn.TransformerEncoderLayer`, by name, for all layers.
    - `name`, `dtype`: those of `elegy.Module`.

    **Attributes:** `encoder`, an `elegy.nn.TransformerEncoder`, and `decoder`, an `elegy.nn.TransformerDecoder`. To
    generate call them by themselves: `memory = transformer.encoder(source)`, then for each part of the target
    `transformer.decoder(part, memory, decode=True)`.

    ```python
    import elegy
    import jax.numpy as jnp

    transformer = elegy.nn.Transformer(6, 6, 4, dropout_rate=0.1)
    source, target = jnp.ones([2, 12, 8]), jnp.ones([2, 10, 8])
    is_word = jnp.array([[True] * 12, [True] * 7 + [False] * 5])
    y = transformer(source, target, source_mask=is_word)
    assert y.shape == (2, 10, 8)
    ```
    """

    def __init__(
        self,
        num_encoder_layers: int,
        num_decoder_layers: int,
        num_heads: int,
        *more: tp.Any,
        final_norm: Flag | None = None,
        remat: Flag | Callable[..., bool] = False,
        unroll: int | bool = 1,
        cache_size: int | None = None,
        name: str | None = None,
        dtype: tp.Any = None,
        **options: tp.Any,
    ):
        super().__init__(name=name, dtype=dtype)
        if more:
            given = {
                "num_encoder_layers": num_encoder_layers,
                "num_decoder_layers": num_decoder_layers,
                "num_heads": num_heads,
            }
            refuse_more("Transformer", given, more, "The number of features is inferred", "feedforward_size=2048")
        options |= {"final_norm": final_norm, "remat": remat, "unroll": unroll, "dtype": dtype}
        self.encoder = TransformerEncoder(num_encoder_layers, num_heads, **options)
        self.decoder = TransformerDecoder(num_decoder_layers, num_heads, cache_size=cache_size, **options)

    def call(
        self,
        source: Num[ArrayLike, "*batch source_length source_features"],
        target: Num[ArrayLike, "*batch target_length features"],
        *,
        source_mask: Bool[ArrayLike, "..."] | None = None,
        target_mask: Bool[ArrayLike, "..."] | None = None,
        training: Flag | None = None,
    ) -> Inexact[Array, "*batch target_length features"]:
        """**Arguments:**

        - `source`, `target`: arrays of at least two axes. A position of the target sees those before it and itself.
        - `source_mask`: bools of `[*batch, source_length]`: which positions are no padding.
        - `target_mask`: bools of `[*batch, target_length]`.
        - `training`: whether to drop. The default is `elegy.training()`.

        **Returns:** an array of the shape of `target`, in the dtype of the parameters.
        """
        memory = self.encoder(source, key_mask=source_mask, training=training)
        return self.decoder(target, memory, key_mask=target_mask, memory_key_mask=source_mask, training=training)
