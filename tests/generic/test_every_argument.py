"""Every argument of the constructor of every layer has an effect: with another value the parameters, the outputs or
what a call changes are others. What the effect is, the tests of each family say."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy import nn
from tests.generic.descriptors.descriptor import floats, labels
from tests.helpers import case_name

ONES, TWOS = elegy.initializers.Constant(1.0), elegy.initializers.Constant(2.0)

# Another value than the default, for all layers that have such an argument.
OTHERS: dict[str, Any] = {
    "activate_final": True,
    "activation": jnp.sin,
    "attention_dropout_rate": 0.5,
    "b_init": ONES,
    "create_offset": False,
    "create_scale": False,
    "data_format": "channels_first",
    "dropout_rate": 0.5,
    "eps": 0.5,
    "feedforward_size": 3,
    "final_norm": True,
    "gate_activation": jnp.sin,
    "head_size": 3,
    "kernel_shape": 2,
    "norm_first": True,
    "num_kv_heads": 1,
    "num_heads": 4,
    "num_layers": 2,
    "offset_init": ONES,
    "output_channels": 6,
    "output_size": 5,
    "padding": "VALID",
    "qk_norm": True,
    "rate": 2,
    "recurrent_init": ONES,
    "return_sequences": False,
    "return_state": True,
    "reverse": True,
    "rotary": True,
    "scale": 0.3,
    "scale_init": TWOS,
    "stateful": True,
    "stride": 2,
    "units": 5,
    "w_init": ONES,
    "window": 1,
    "with_bias": False,
}
# How the same numbers are computed, or how they are called.
WITHOUT_EFFECT = {"dtype", "implementation", "name", "remat", "unroll"}

line, image, volume = floats(2, 6, 4), floats(2, 6, 6, 4), floats(2, 5, 5, 5, 4)
convolution = {"output_channels": 4, "kernel_shape": 3}
depthwise = {"channel_multiplier": 2, "kernel_shape": 2}
transformer = {"num_heads": 2}
mask = np.triu(np.ones([3, 4, 4], np.float32))

# The arguments that a layer needs, its inputs, and other values of arguments that only it has, or that suit it.
LAYERS: dict[type, tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]] = {
    nn.ActivityRegularization: ({}, (line,), {"l1": 0.1, "l2": 0.1}),
    nn.AdaptiveAvgPool: ({"output_shape": [2, 3]}, (image,), {"output_shape": [3, 3]}),
    nn.AlphaDropout: ({"rate": 0.1}, (line,), {"rate": 0.5}),
    nn.AvgPool: (
        {"window_shape": [2, 2], "strides": 1, "padding": "SAME"},
        (image,),
        {"window_shape": [3, 3], "strides": 2, "padding": "VALID", "count_include_padding": True},
    ),
    nn.BatchNormalization: (
        {},
        (line,),
        {"decay_rate": 0.5, "axis": 0, "data_format": "NCW", "cross_replica_axis": "missing"},
    ),
    nn.Bilinear: ({"output_size": 3}, (line[:, 0], line[:, 1]), {}),
    nn.Conv1D: (convolution, (line,), {"groups": 2, "mask": mask}),
    nn.Conv2D: (convolution, (image,), {"groups": 2, "mask": mask[None, :, :1]}),
    nn.Conv3D: (convolution, (volume,), {"groups": 2, "mask": mask[None, None, :, :1], "data_format": "NCDHW"}),
    nn.Conv1DTranspose: (convolution, (line,), {"output_shape": 8, "mask": mask, "padding": "VALID"}),
    nn.Conv2DTranspose: (convolution, (image,), {"output_shape": 8, "mask": mask[None, :, :1]}),
    nn.Conv3DTranspose: (convolution, (volume,), {"output_shape": 7, "mask": mask[None, None, :, :1]}),
    nn.DepthwiseConv1D: ({"kernel_shape": 3}, (line,), {"channel_multiplier": 2}),
    nn.DepthwiseConv2D: ({"kernel_shape": 3}, (image,), {"channel_multiplier": 2}),
    nn.SeparableConv1D: (convolution, (line,), {"channel_multiplier": 2}),
    nn.SeparableConv2D: (convolution, (image,), {"channel_multiplier": 2}),
    nn.DropPath: ({"rate": 0.1}, (floats(32, 3),), {"rate": 0.5}),
    nn.Dropout: ({"rate": 0.1}, (line,), {"rate": 0.5, "shared_axes": 1}),
    nn.Einsum: (
        {"equation": "btd,dh->bth", "output_shape": (None, 3), "bias_axes": "h"},
        (line,),
        {"equation": "btd,hd->bth", "output_shape": (None, 5), "bias_axes": None},
    ),
    nn.Embedding: (
        {"vocab_size": 5, "embed_dim": 3},
        (labels(5, 4),),
        {"vocab_size": 6, "embed_dim": 4, "embedding_matrix": np.ones([5, 3], np.float32)},
    ),
    nn.Flatten: ({}, (line,), {"preserve_dims": 2}),
    nn.GEGLU: ({"output_size": 3, "with_bias": True}, (line,), {}),
    nn.GLU: ({"output_size": 3, "with_bias": True}, (line,), {}),
    nn.SwiGLU: ({"output_size": 3, "with_bias": True}, (line,), {}),
    nn.GlobalAvgPool: ({}, (image,), {"keepdims": True}),
    nn.GlobalMaxPool: ({}, (image,), {"keepdims": True}),
    nn.GroupNormalization: ({"groups": 2}, (image,), {"groups": 4, "data_format": "channels_first"}),
    nn.InstanceNormalization: ({}, (image,), {}),
    nn.LayerNormalization: ({}, (line,), {"axis": (1, 2)}),
    nn.RMSNormalization: ({}, (line,), {"axis": 1}),
    nn.Lambda: ({"function": jnp.sin}, (line,), {"function": jnp.cos}),
    nn.Linear: ({"output_size": 3}, (line,), {}),
    nn.LinearGeneral: ({"output_shape": 3}, (line,), {"output_shape": (2, 3), "axis": (1, 2)}),
    nn.MLP: ({"output_sizes": [3, 2]}, (line,), {"output_sizes": [4, 2], "activation": jnp.sin}),
    nn.MaxPool: ({"window_shape": [2, 2]}, (image,), {"window_shape": [3, 3], "strides": 1, "padding": 1}),
    nn.MultiHeadAttention: (transformer, (line,), {"cache_size": 6}),
    nn.PReLU: ({}, (line,), {"axis": -1, "negative_slope_init": ONES}),
    nn.PositionEmbedding: ({"max_length": 6}, (line,), {"max_length": 7}),
    nn.Reshape: ({"output_shape": [-1, 12]}, (line,), {"output_shape": [3, 8], "preserve_dims": 0}),
    nn.Resize: ({"shape": [3, 4]}, (image,), {"shape": [4, 4], "method": "nearest", "antialias": False}),
    nn.Upsample: ({"scale": 2}, (image,), {"scale": 3, "method": "bilinear"}),
    nn.RotaryEmbedding: ({}, (floats(2, 6, 1, 4),), {"base": 10.0}),
    nn.SinusoidalEmbedding: ({}, (line,), {"base": 10.0}),
    nn.SimpleRNN: ({"units": 3}, (line,), {}),
    nn.LSTM: ({"units": 3}, (line,), {}),
    nn.GRU: ({"units": 3}, (line,), {}),
    nn.TransformerEncoderLayer: (transformer, (line,), {"cache_size": 6}),
    nn.TransformerDecoderLayer: (transformer, (line, line), {"cache_size": 6}),
    nn.TransformerEncoder: ({"num_layers": 1, **transformer}, (line,), {"cache_size": 6}),
    nn.TransformerDecoder: ({"num_layers": 1, **transformer}, (line, line), {"cache_size": 6}),
}
# Their arguments are modules, or functions that make them; the tests of their families have each.
OF_MODULES = {
    "Bidirectional",
    "Ensemble",
    "LoRA",
    "RNN",
    "Sequential",
    "SpectralNormalization",
    "Stack",
    "Transformer",
    "WeightNormalization",
}
BASES = {"ConvND", "ConvNDTranspose", "RecurrentCell"}
# Seen in the layers that have such a cell; and the identity has no arguments.
CELLS = {"ConvLSTMCell", "GRUCell", "Identity", "LSTMCell", "SimpleRNNCell"}


def arguments_of(layer: Any) -> list[str]:
    parameters = list(inspect.signature(layer.__init__).parameters.values())[1:]
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [name for name in named if name not in WITHOUT_EFFECT]


def cases() -> list[Any]:
    found = []
    for layer, (_, _, own) in LAYERS.items():
        for name in dict.fromkeys([*arguments_of(layer), *own]):
            found.append(pytest.param(layer, name, id=f"{layer.__name__}-{name}"))
    return found


def test_every_layer_is_here() -> None:
    layers = {name for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
    assert layers == {layer.__name__ for layer in LAYERS} | OF_MODULES | BASES | CELLS


def seen(layer: Any, arguments: dict[str, Any]) -> Any:
    """What there is to see of a layer: its parameters; in both modes its outputs, its state and what it declares."""
    _, inputs, _ = LAYERS[layer]
    module = layer(**arguments).init(*inputs, rng=3)
    found: list[Any] = [module.get_parameters()]
    for training in (True, False):
        with elegy.hooks_context(), elegy.rng_context(5):
            outputs, updated = module.apply(*inputs, training=training)
            found.append((outputs, updated.get_parameters(), dict(elegy.get_losses() or {})))
    leaves, treedef = jax.tree.flatten(found)
    return treedef, [np.asarray(leaf) for leaf in leaves]


@functools.cache
def seen_by_default(layer: Any) -> Any:
    return seen(layer, LAYERS[layer][0])


@pytest.mark.parametrize(("layer", "argument"), cases())
def test_an_argument_has_an_effect(layer: Any, argument: str) -> None:
    given, _, own = LAYERS[layer]
    assert argument in own or argument in OTHERS, f"no other value of {case_name(argument)}"
    try:
        treedef, leaves = seen(layer, {**given, argument: own.get(argument, OTHERS.get(argument))})
    except (NameError, KeyError, ValueError) as error:
        assert argument in str(error) or "missing" in str(error)  # an axis of devices that is not there
        return
    default_treedef, default_leaves = seen_by_default(layer)
    assert treedef != default_treedef or any(
        a.shape != b.shape or (a != b).any() for a, b in zip(leaves, default_leaves, strict=True)
    )
