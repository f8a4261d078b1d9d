"""Layers."""

import typing as _tp

from elegy import habits as _habits
from elegy.nn.batch_normalization import BatchNormalization as BatchNormalization
from elegy.nn.conv import (
    Conv1D as Conv1D,
    Conv2D as Conv2D,
    Conv3D as Conv3D,
    ConvND as ConvND,
)
from elegy.nn.dropout import Dropout as Dropout
from elegy.nn.ensemble import Ensemble as Ensemble
from elegy.nn.flatten import Flatten as Flatten
from elegy.nn.linear import Linear as Linear
from elegy.nn.lora import LoRA as LoRA
from elegy.nn.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from elegy.nn.position_embedding import PositionEmbedding as PositionEmbedding
from elegy.nn.rotary_embedding import RotaryEmbedding as RotaryEmbedding
from elegy.nn.sequential import Sequential as Sequential, sequential as sequential
from elegy.nn.sinusoidal_embedding import SinusoidalEmbedding as SinusoidalEmbedding
from elegy.nn.stack import Stack as Stack
from elegy.nn.transformer import Transformer as Transformer
from elegy.nn.transformer_decoder import (
    TransformerDecoder as TransformerDecoder,
    TransformerDecoderLayer as TransformerDecoderLayer,
)
from elegy.nn.transformer_encoder import (
    TransformerEncoder as TransformerEncoder,
    TransformerEncoderLayer as TransformerEncoderLayer,
)

__all__ = [
    "BatchNormalization",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvND",
    "Dropout",
    "Ensemble",
    "Flatten",
    "LoRA",
    "Linear",
    "MultiHeadAttention",
    "PositionEmbedding",
    "RotaryEmbedding",
    "Sequential",
    "SinusoidalEmbedding",
    "Stack",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "sequential",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.nn", __all__, _habits.LAYERS, ["elegy", "jax.nn"])
