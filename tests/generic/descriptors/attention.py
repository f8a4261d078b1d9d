"""Attention, positions and transformers."""

import jax

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats

nn = elegy.nn

DESCRIPTORS = [
    Descriptor("MultiHeadAttention", lambda dtype: nn.MultiHeadAttention(2, dtype=dtype), (floats(2, 3, 4),)),
    Descriptor(
        "MultiHeadAttention, everything",
        lambda dtype: nn.MultiHeadAttention(
            4,
            head_size=2,
            num_kv_heads=2,
            output_size=3,
            dropout_rate=0.3,
            qk_norm=True,
            rotary=True,
            window=1,
            cache_size=5,
            with_bias=False,
            dtype=dtype,
        ),
        (floats(2, 3, 4),),
    ),
    Descriptor(
        "MultiHeadAttention, memory",
        lambda dtype: nn.MultiHeadAttention(2, num_kv_heads=1, dtype=dtype),
        (floats(3, 4), floats(5, 6)),
        layer=False,  # takes two inputs
    ),
    Descriptor("RotaryEmbedding", lambda dtype: nn.RotaryEmbedding(dtype=dtype), (floats(2, 3, 2, 4),)),
    Descriptor("SinusoidalEmbedding", lambda dtype: nn.SinusoidalEmbedding(dtype=dtype), (floats(2, 3, 5),)),
    Descriptor("PositionEmbedding", lambda dtype: nn.PositionEmbedding(4, dtype=dtype), (floats(2, 3, 5),)),
    Descriptor("TransformerEncoderLayer", lambda dtype: nn.TransformerEncoderLayer(2, dtype=dtype), (floats(2, 3, 4),)),
    Descriptor(
        "TransformerEncoderLayer, everything",
        lambda dtype: nn.TransformerEncoderLayer(
            4,
            feedforward_size=3,
            dropout_rate=0.3,
            activation=jax.nn.gelu,
            norm_first=True,
            head_size=2,
            num_kv_heads=2,
            attention_dropout_rate=0.2,
            with_bias=False,
            qk_norm=True,
            rotary=True,
            window=1,
            cache_size=5,
            dtype=dtype,
        ),
        (floats(2, 3, 4),),
    ),
    Descriptor(
        "TransformerDecoderLayer",
        lambda dtype: nn.TransformerDecoderLayer(2, cache_size=4, dtype=dtype),
        (floats(2, 3, 4), floats(2, 5, 6)),
        layer=False,  # takes two inputs
    ),
    Descriptor(
        "TransformerEncoder",
        lambda dtype: nn.TransformerEncoder(2, 2, norm_first=True, cache_size=4, remat=True, dtype=dtype),
        (floats(2, 3, 4),),
    ),
    Descriptor(
        "TransformerDecoder",
        lambda dtype: nn.TransformerDecoder(2, 2, dtype=dtype),
        (floats(2, 3, 4), floats(2, 5, 6)),
        layer=False,  # takes two inputs
    ),
    Descriptor(
        "Transformer",
        lambda dtype: nn.Transformer(1, 2, 2, norm_first=True, dropout_rate=0.1, dtype=dtype),
        (floats(2, 3, 4), floats(2, 5, 4)),
        layer=False,  # takes two inputs
    ),
]
