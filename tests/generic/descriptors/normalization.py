"""Normalisations."""

import jax.numpy as jnp

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats

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
    Descriptor("LayerNormalization", lambda dtype: nn.LayerNormalization(dtype=dtype), (floats(4, 5),)),
    Descriptor(
        "LayerNormalization, several axes",
        lambda dtype: nn.LayerNormalization(axis=[-3, 2], create_offset=False, dtype=dtype),
        (floats(2, 3, 4, 2),),
    ),
    Descriptor(
        "LayerNormalization, no parameters",
        lambda dtype: nn.LayerNormalization(create_scale=False, create_offset=False, dtype=dtype),
        (floats(4, 5),),
    ),
    Descriptor("RMSNormalization", lambda dtype: nn.RMSNormalization(dtype=dtype), (floats(4, 5),)),
    Descriptor(
        "RMSNormalization, no parameters",
        lambda dtype: nn.RMSNormalization(axis=[0, 2], create_scale=False, dtype=dtype),
        (floats(4, 2, 3),),
    ),
    Descriptor("GroupNormalization", lambda dtype: nn.GroupNormalization(2, dtype=dtype), (floats(2, 3, 3, 4),)),
    Descriptor(
        "GroupNormalization, channels first",
        lambda dtype: nn.GroupNormalization(3, create_scale=False, data_format="NCW", dtype=dtype),
        (floats(2, 6, 4),),
    ),
    Descriptor(
        "GroupNormalization, no positions", lambda dtype: nn.GroupNormalization(2, dtype=dtype), (floats(3, 6),)
    ),
    Descriptor("InstanceNormalization", lambda dtype: nn.InstanceNormalization(dtype=dtype), (floats(2, 3, 3, 2),)),
    Descriptor(
        "InstanceNormalization, channels first",
        lambda dtype: nn.InstanceNormalization(create_offset=False, data_format="channels_first", dtype=dtype),
        (floats(2, 3, 5),),
    ),
    # With a single output the power iteration is exact: only then are `u` and `v`, which gradients take as constants,
    # such constants.
    Descriptor(
        "SpectralNormalization", lambda dtype: nn.SpectralNormalization(nn.Linear(1, dtype=dtype)), (floats(4, 3),)
    ),
    Descriptor(
        "SpectralNormalization, of several layers",
        lambda dtype: nn.SpectralNormalization(
            nn.Sequential([nn.Conv1D(1, 2, dtype=dtype), jnp.tanh, nn.Linear(1, dtype=dtype)]), iterations=2
        ),
        (floats(2, 4, 3),),
    ),
    Descriptor("WeightNormalization", lambda dtype: nn.WeightNormalization(nn.Linear(4, dtype=dtype)), (floats(4, 3),)),
    Descriptor(
        "WeightNormalization, of several layers",
        lambda dtype: nn.WeightNormalization(
            nn.Sequential([nn.Conv1D(4, 2, dtype=dtype), nn.BatchNormalization(dtype=dtype), nn.Dropout(0.5)]),
            axis=[-2, -1],
        ),
        (floats(2, 4, 3),),
    ),
    Descriptor(
        "WeightNormalization, one length",
        lambda dtype: nn.WeightNormalization(nn.Linear(4, dtype=dtype), axis=None, create_scale=False),
        (floats(4, 3),),
    ),
]
