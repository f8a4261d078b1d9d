"""Normalisations."""

import elegy
from tests.descriptors.descriptor import Descriptor, floats

nn = elegy.nn

DESCRIPTORS = [
    Descriptor("BatchNormalization", lambda dtype: nn.BatchNormalization(dtype=dtype), (floats(8, 3),)),
    Descriptor(
        "BatchNormalization, channels first",
        lambda dtype: nn.BatchNormalization(data_format="channels_first", decay_rate=0.5, dtype=dtype),
        (floats(4, 3, 2, 2),),
    ),
    Descriptor(
        "BatchNormalization, no parameters",
        lambda dtype: nn.BatchNormalization(create_scale=False, create_offset=False, axis=0, dtype=dtype),
        (floats(4, 2, 3),),
    ),
]
