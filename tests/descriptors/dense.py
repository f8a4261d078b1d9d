"""Layers that map one axis, and those that drop or rearrange elements."""

import elegy
from tests.descriptors.descriptor import Descriptor, floats

nn = elegy.nn

DESCRIPTORS = [
    Descriptor("Linear", lambda dtype: nn.Linear(4, dtype=dtype), (floats(3, 5),)),
    Descriptor("Linear, many axes", lambda dtype: nn.Linear(4, dtype=dtype), (floats(2, 3, 4, 5),)),
    Descriptor("Linear, one axis", lambda dtype: nn.Linear(4, dtype=dtype), (floats(5),)),
    Descriptor("Linear, no bias", lambda dtype: nn.Linear(4, with_bias=False, dtype=dtype), (floats(3, 5),)),
    Descriptor("Dropout", lambda dtype: nn.Dropout(0.5, dtype=dtype), (floats(4, 8),)),
    Descriptor("Dropout, rate 0", lambda dtype: nn.Dropout(0, dtype=dtype), (floats(4, 8),)),
    Descriptor("Flatten", lambda dtype: nn.Flatten(), (floats(2, 3, 4),)),
]
