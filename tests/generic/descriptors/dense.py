"""Layers that map one axis, and those that drop or rearrange elements."""

import jax.numpy as jnp
import numpy as np

import elegy
from tests.generic.descriptors.descriptor import Descriptor, floats, labels

nn = elegy.nn

DESCRIPTORS = [
    Descriptor("Linear", lambda dtype: nn.Linear(4, dtype=dtype), (floats(3, 5),)),
    Descriptor("Linear, many axes", lambda dtype: nn.Linear(4, dtype=dtype), (floats(2, 3, 4, 5),)),
    Descriptor("Linear, one axis", lambda dtype: nn.Linear(4, dtype=dtype), (floats(5),)),
    Descriptor("Linear, no bias", lambda dtype: nn.Linear(4, with_bias=False, dtype=dtype), (floats(3, 5),)),
    Descriptor("LinearGeneral", lambda dtype: nn.LinearGeneral((2, 3), dtype=dtype), (floats(3, 5),)),
    Descriptor(
        "LinearGeneral, axes",
        lambda dtype: nn.LinearGeneral(4, axis=(-1, 1), with_bias=False, dtype=dtype),
        (floats(2, 3, 4, 5),),
    ),
    Descriptor("Einsum", lambda dtype: nn.Einsum("btd,dhk->bthk", (None, 2, 3), dtype=dtype), (floats(2, 4, 5),)),
    Descriptor(
        "Einsum, ellipsis",
        lambda dtype: nn.Einsum("...gd,edg->...ge", (None, 3), bias_axes="ge", dtype=dtype),
        (floats(3, 2, 4),),
    ),
    Descriptor(
        "Bilinear", lambda dtype: nn.Bilinear(4, dtype=dtype), (floats(2, 3), floats(2, 5, seed=1)), layer=False
    ),
    Descriptor("GLU", lambda dtype: nn.GLU(4, dtype=dtype), (floats(3, 5),)),
    Descriptor("GLU, bias", lambda dtype: nn.GLU(4, with_bias=True, dtype=dtype), (floats(3, 5),)),
    Descriptor("SwiGLU", lambda dtype: nn.SwiGLU(4, dtype=dtype), (floats(3, 5),)),
    Descriptor("GEGLU", lambda dtype: nn.GEGLU(4, dtype=dtype), (floats(3, 5),)),
    Descriptor("MLP", lambda dtype: nn.MLP([4, 2], activation=jnp.tanh, dtype=dtype), (floats(3, 5),)),
    Descriptor(
        "MLP, dropout",
        lambda dtype: nn.MLP([4, 2], activate_final=True, dropout_rate=0.2, with_bias=False, dtype=dtype),
        (floats(3, 5),),
    ),
    Descriptor("PReLU", lambda dtype: nn.PReLU(dtype=dtype), (floats(3, 5),)),
    Descriptor("PReLU, axes", lambda dtype: nn.PReLU(axis=(-1, 1), dtype=dtype), (floats(2, 3, 4, 5),)),
    Descriptor("Embedding", lambda dtype: nn.Embedding(7, 4, dtype=dtype), (labels(7, 3, 5),), layer=False),
    Descriptor(
        "Embedding, matrix",
        lambda dtype: nn.Embedding(7, 4, embedding_matrix=np.eye(7, 4, dtype=np.float32), dtype=dtype),
        (labels(7, 3, 5),),
        layer=False,
    ),
    Descriptor("Dropout", lambda dtype: nn.Dropout(0.5, dtype=dtype), (floats(4, 8),)),
    Descriptor("Dropout, rate 0", lambda dtype: nn.Dropout(0, dtype=dtype), (floats(4, 8),)),
    Descriptor("Dropout, shared", lambda dtype: nn.Dropout(0.5, shared_axes=1, dtype=dtype), (floats(8, 3, 4),)),
    Descriptor("AlphaDropout", lambda dtype: nn.AlphaDropout(0.5, dtype=dtype), (floats(4, 8),)),
    Descriptor("DropPath", lambda dtype: nn.DropPath(0.5, dtype=dtype), (floats(16, 3, 2),)),
    Descriptor("Flatten", lambda dtype: nn.Flatten(), (floats(2, 3, 4),)),
    Descriptor("Reshape", lambda dtype: nn.Reshape([2, -1]), (floats(2, 3, 4),), layer=False),
    Descriptor("Identity", lambda dtype: nn.Identity(), (floats(2, 3),), layer=False),
    Descriptor("Lambda", lambda dtype: nn.Lambda(jnp.tanh), (floats(2, 3),), layer=False),
]
