"""Convolutions and pooling."""

import numpy as np

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats

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
    Descriptor(
        "Conv1D, causal",
        lambda dtype: nn.Conv1D(3, 3, rate=2, padding="CAUSAL", dtype=dtype),
        (floats(2, 2, 7, 2),),
    ),
    Descriptor(
        "Conv2D, circular",
        lambda dtype: nn.Conv2D(3, 3, padding="CIRCULAR", data_format="CHW", dtype=dtype),
        (floats(2, 5, 6),),
    ),
    Descriptor("Conv1DTranspose", lambda dtype: nn.Conv1DTranspose(3, 3, stride=2, dtype=dtype), (floats(2, 4, 2),)),
    Descriptor(
        "Conv2DTranspose",
        lambda dtype: nn.Conv2DTranspose(3, [3, 2], stride=2, dtype=dtype),
        (floats(2, 3, 4, 2),),
    ),
    Descriptor(
        "Conv2DTranspose, output shape",
        lambda dtype: nn.Conv2DTranspose(
            3,
            2,
            stride=2,
            output_shape=[5, 7],
            mask=np.triu(np.ones([2, 2], np.float32))[:, :, None, None],
            data_format="NCHW",
            dtype=dtype,
        ),
        (floats(2, 2, 3, 4),),
    ),
    Descriptor(
        "Conv3DTranspose",
        lambda dtype: nn.Conv3DTranspose(2, 2, padding="VALID", with_bias=False, dtype=dtype),
        (floats(2, 2, 2, 2, 2),),
    ),
    Descriptor("DepthwiseConv1D", lambda dtype: nn.DepthwiseConv1D(3, dtype=dtype), (floats(2, 7, 2),)),
    Descriptor(
        "DepthwiseConv2D",
        lambda dtype: nn.DepthwiseConv2D([3, 2], channel_multiplier=2, stride=2, dtype=dtype),
        (floats(2, 5, 6, 2),),
    ),
    Descriptor(
        "SeparableConv1D",
        lambda dtype: nn.SeparableConv1D(3, 3, padding="CAUSAL", dtype=dtype),
        (floats(2, 7, 2),),
    ),
    Descriptor(
        "SeparableConv2D",
        lambda dtype: nn.SeparableConv2D(3, [3, 2], channel_multiplier=2, stride=2, dtype=dtype),
        (floats(2, 5, 6, 2),),
    ),
    Descriptor("MaxPool", lambda dtype: nn.MaxPool(2), (floats(2, 5, 6, 2),)),
    Descriptor(
        "MaxPool, padding",
        lambda dtype: nn.MaxPool([3], 2, "SAME", data_format="channels_first"),
        (floats(2, 2, 2, 7),),
    ),
    Descriptor("AvgPool", lambda dtype: nn.AvgPool(2, dtype=dtype), (floats(2, 5, 6, 2),)),
    Descriptor(
        "AvgPool, padding",
        lambda dtype: nn.AvgPool([3], 2, "SAME", data_format="CW", dtype=dtype),
        (floats(2, 7),),
    ),
    Descriptor(
        "AvgPool, counted padding",
        lambda dtype: nn.AvgPool([3, 2], 2, 1, count_include_padding=True, dtype=dtype),
        (floats(2, 5, 6, 2),),
    ),
    Descriptor("GlobalMaxPool", lambda dtype: nn.GlobalMaxPool(), (floats(2, 5, 6, 2),)),
    Descriptor("GlobalAvgPool", lambda dtype: nn.GlobalAvgPool(keepdims=True, dtype=dtype), (floats(2, 5, 6, 2),)),
    Descriptor("AdaptiveAvgPool", lambda dtype: nn.AdaptiveAvgPool([2, 4], dtype=dtype), (floats(2, 5, 3, 2),)),
    Descriptor("Upsample", lambda dtype: nn.Upsample(2, dtype=dtype), (floats(2, 3, 4, 2),)),
    Descriptor(
        "Upsample, bicubic",
        lambda dtype: nn.Upsample([2, 1], "bicubic", data_format="CHW", dtype=dtype),
        (floats(2, 3, 4),),
    ),
    Descriptor("Resize", lambda dtype: nn.Resize([2, 5], dtype=dtype), (floats(2, 3, 4, 2),)),
]
