"""Layers."""

import typing as _tp

from elegy import habits as _habits
from elegy.nn.activity_regularization import ActivityRegularization as ActivityRegularization
from elegy.nn.adaptive_pooling import AdaptiveAvgPool as AdaptiveAvgPool
from elegy.nn.alpha_dropout import AlphaDropout as AlphaDropout
from elegy.nn.batch_normalization import BatchNormalization as BatchNormalization
from elegy.nn.bidirectional import Bidirectional as Bidirectional
from elegy.nn.bilinear import Bilinear as Bilinear
from elegy.nn.conv import Conv1D as Conv1D, Conv2D as Conv2D, Conv3D as Conv3D, ConvND as ConvND
from elegy.nn.conv_lstm import ConvLSTMCell as ConvLSTMCell
from elegy.nn.conv_transpose import (
    Conv1DTranspose as Conv1DTranspose,
    Conv2DTranspose as Conv2DTranspose,
    Conv3DTranspose as Conv3DTranspose,
    ConvNDTranspose as ConvNDTranspose,
)
from elegy.nn.depthwise_conv import DepthwiseConv1D as DepthwiseConv1D, DepthwiseConv2D as DepthwiseConv2D
from elegy.nn.drop_path import DropPath as DropPath
from elegy.nn.dropout import Dropout as Dropout
from elegy.nn.einsum import Einsum as Einsum
from elegy.nn.embedding import Embedding as Embedding
from elegy.nn.ensemble import Ensemble as Ensemble
from elegy.nn.flatten import Flatten as Flatten
from elegy.nn.global_pooling import GlobalAvgPool as GlobalAvgPool, GlobalMaxPool as GlobalMaxPool
from elegy.nn.glu import GEGLU as GEGLU, GLU as GLU, SwiGLU as SwiGLU
from elegy.nn.group_normalization import GroupNormalization as GroupNormalization
from elegy.nn.gru import GRU as GRU, GRUCell as GRUCell
from elegy.nn.identity import Identity as Identity
from elegy.nn.instance_normalization import InstanceNormalization as InstanceNormalization
from elegy.nn.lambda_ import Lambda as Lambda
from elegy.nn.layer_normalization import LayerNormalization as LayerNormalization
from elegy.nn.linear import Linear as Linear
from elegy.nn.linear_general import LinearGeneral as LinearGeneral
from elegy.nn.lora import LoRA as LoRA
from elegy.nn.lstm import LSTM as LSTM, LSTMCell as LSTMCell
from elegy.nn.mlp import MLP as MLP
from elegy.nn.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from elegy.nn.pooling import AvgPool as AvgPool, MaxPool as MaxPool
from elegy.nn.position_embedding import PositionEmbedding as PositionEmbedding
from elegy.nn.prelu import PReLU as PReLU
from elegy.nn.recurrent_cell import RecurrentCell as RecurrentCell
from elegy.nn.reshape import Reshape as Reshape
from elegy.nn.resize import Resize as Resize, Upsample as Upsample
from elegy.nn.rms_normalization import RMSNormalization as RMSNormalization
from elegy.nn.rnn import RNN as RNN
from elegy.nn.rotary_embedding import RotaryEmbedding as RotaryEmbedding
from elegy.nn.separable_conv import SeparableConv1D as SeparableConv1D, SeparableConv2D as SeparableConv2D
from elegy.nn.sequential import Sequential as Sequential, sequential as sequential
from elegy.nn.simple_rnn import SimpleRNN as SimpleRNN, SimpleRNNCell as SimpleRNNCell
from elegy.nn.sinusoidal_embedding import SinusoidalEmbedding as SinusoidalEmbedding
from elegy.nn.spectral_normalization import SpectralNormalization as SpectralNormalization
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
from elegy.nn.weight_normalization import WeightNormalization as WeightNormalization

__all__ = [
    "ActivityRegularization",
    "AdaptiveAvgPool",
    "AlphaDropout",
    "AvgPool",
    "BatchNormalization",
    "Bidirectional",
    "Bilinear",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "ConvLSTMCell",
    "ConvND",
    "ConvNDTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "Dropout",
    "DropPath",
    "Einsum",
    "Embedding",
    "Ensemble",
    "Flatten",
    "GEGLU",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GLU",
    "GroupNormalization",
    "GRU",
    "GRUCell",
    "Identity",
    "InstanceNormalization",
    "Lambda",
    "LayerNormalization",
    "Linear",
    "LinearGeneral",
    "LoRA",
    "LSTM",
    "LSTMCell",
    "MaxPool",
    "MLP",
    "MultiHeadAttention",
    "PositionEmbedding",
    "PReLU",
    "RecurrentCell",
    "Reshape",
    "Resize",
    "RMSNormalization",
    "RNN",
    "RotaryEmbedding",
    "SeparableConv1D",
    "SeparableConv2D",
    "Sequential",
    "sequential",
    "SimpleRNN",
    "SimpleRNNCell",
    "SinusoidalEmbedding",
    "SpectralNormalization",
    "Stack",
    "SwiGLU",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "Upsample",
    "WeightNormalization",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.nn", __all__, _habits.LAYERS, ["elegy", "jax.nn"])
