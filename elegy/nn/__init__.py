"""Layers."""

import typing as _tp

from elegy import habits as _habits
from elegy.nn.batch_normalization import BatchNormalization as BatchNormalization
from elegy.nn.bidirectional import Bidirectional as Bidirectional
from elegy.nn.conv import (
    Conv1D as Conv1D,
    Conv2D as Conv2D,
    Conv3D as Conv3D,
    ConvND as ConvND,
)
from elegy.nn.conv_lstm import ConvLSTMCell as ConvLSTMCell
from elegy.nn.dropout import Dropout as Dropout
from elegy.nn.ensemble import Ensemble as Ensemble
from elegy.nn.flatten import Flatten as Flatten
from elegy.nn.gru import GRU as GRU, GRUCell as GRUCell
from elegy.nn.linear import Linear as Linear
from elegy.nn.lora import LoRA as LoRA
from elegy.nn.lstm import LSTM as LSTM, LSTMCell as LSTMCell
from elegy.nn.recurrent_cell import RecurrentCell as RecurrentCell
from elegy.nn.rnn import RNN as RNN
from elegy.nn.sequential import Sequential as Sequential, sequential as sequential
from elegy.nn.simple_rnn import SimpleRNN as SimpleRNN, SimpleRNNCell as SimpleRNNCell
from elegy.nn.stack import Stack as Stack

__all__ = [
    "BatchNormalization",
    "Bidirectional",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvLSTMCell",
    "ConvND",
    "Dropout",
    "Ensemble",
    "Flatten",
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "LoRA",
    "Linear",
    "RNN",
    "RecurrentCell",
    "Sequential",
    "SimpleRNN",
    "SimpleRNNCell",
    "Stack",
    "sequential",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.nn", __all__, _habits.LAYERS, ["elegy", "jax.nn"])
