"""Recurrent layers and their cells."""

from typing import Any

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats

nn = elegy.nn


class Steps(elegy.Module):
    """Two steps of a cell, without a layer: one input and one output, as the table has them."""

    def __init__(self, cell: Any):
        self.cell = cell

    def call(self, x: Any) -> Any:
        state = self.cell.initial_state(x.shape[:-1])
        for _ in range(2):
            state, x = self.cell(state, x)
        return x


steps, sequences = (floats(2, 3),), (floats(2, 4, 3),)

DESCRIPTORS = [
    Descriptor("SimpleRNNCell", lambda dtype: Steps(nn.SimpleRNNCell(3, dtype=dtype)), steps),
    Descriptor("LSTMCell", lambda dtype: Steps(nn.LSTMCell(3, dtype=dtype)), steps),
    Descriptor("GRUCell", lambda dtype: Steps(nn.GRUCell(3, dtype=dtype)), steps),
    Descriptor("ConvLSTMCell", lambda dtype: Steps(nn.ConvLSTMCell(2, [3, 2], dtype=dtype)), (floats(2, 4, 3, 2),)),
    Descriptor("SimpleRNN", lambda dtype: nn.SimpleRNN(3, dtype=dtype), sequences),
    Descriptor("LSTM", lambda dtype: nn.LSTM(3, dtype=dtype), sequences),
    Descriptor("LSTM, stateful", lambda dtype: nn.LSTM(3, stateful=True, dtype=dtype), sequences),
    Descriptor("GRU", lambda dtype: nn.GRU(3, dtype=dtype), sequences),
    Descriptor(
        "RNN",
        lambda dtype: nn.RNN(
            nn.GRUCell(3, with_bias=False, dtype=dtype), return_sequences=False, reverse=True, unroll=2
        ),
        sequences,
    ),
    Descriptor("RNN, images", lambda dtype: nn.RNN(nn.ConvLSTMCell(2, 2, dtype=dtype)), (floats(2, 3, 3, 3, 2),)),
    Descriptor("Bidirectional", lambda dtype: nn.Bidirectional(nn.LSTM(3, dtype=dtype)), sequences),
]
