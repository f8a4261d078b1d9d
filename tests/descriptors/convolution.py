"""Convolutions and pooling."""

import numpy as np

import elegy
from tests.descriptors.descriptor import Descriptor, floats

nn = elegy.nn

DESCRIPTORS = [
    Descriptor("Conv1D", lambda dtype: nn.Conv1D(3, 3, dtype=dtype), (floats(2, 7, 2),)),
    Descriptor("Conv2D", lambda dtype: nn.Conv2D(3, [3, 2], stride=2, dtype=dtype), (floats(2, 5, 6, 2),)),
    Descriptor(
        "Conv2D, dilated groups",
        lambda dtype: nn.Conv2D(4, 3, rate=2, groups=2, padding="VALID", with_bias=False, dtype=dtype),
        (floats(2, 6, 6, 2),),
    ),
    Descriptor(
        "Conv2D, channels first",
        lambda dtype: nn.Conv2D(3, 3, padding=[1, (0, 2)], data_format="NCHW", dtype=dtype),
        (floats(2, 2, 5, 6),),
    ),
    Descriptor(
        "Conv2D, mask",
        lambda dtype: nn.Conv2D(3, 3, mask=np.triu(np.ones([3, 3], np.float32))[:, :, None, None], dtype=dtype),
        (floats(2, 5, 6, 2),),
    ),
    Descriptor("Conv3D", lambda dtype: nn.Conv3D(2, 2, dtype=dtype), (floats(2, 3, 3, 3, 2),)),
]
