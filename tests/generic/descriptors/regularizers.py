"""Regularisers that are modules."""

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats

regularizers = elegy.regularizers

DESCRIPTORS = [
    Descriptor("GlobalL1", lambda dtype: regularizers.GlobalL1(dtype=dtype), (floats(6, 4),), layer=False),
    Descriptor("GlobalL2", lambda dtype: regularizers.GlobalL2(dtype=dtype), (floats(6, 4),), layer=False),
    Descriptor(
        "GlobalL1L2", lambda dtype: regularizers.GlobalL1L2(0.1, 0.2, dtype=dtype), (floats(6, 4),), layer=False
    ),
    Descriptor(
        "ActivityRegularization",
        lambda dtype: elegy.nn.ActivityRegularization(0.1, 0.2, dtype=dtype),
        (floats(6, 4),),
    ),
]
