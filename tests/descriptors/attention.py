"""Attention, positions and transformers."""

import elegy
from tests.descriptors.descriptor import Descriptor, floats

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
]
