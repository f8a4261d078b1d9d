from __future__ import annotations

import functools
import typing as tp
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Inexact, Num

from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.dropout import Dropout
from elegy.nn.inputs import Flag, boolean, converted, dtype_of_new, positive, refuse_more
from elegy.nn.layer_normalization import LayerNormalization
from elegy.nn.linear import Linear
from elegy.nn.multi_head_attention import MultiHeadAttention, probability
from elegy.nn.rotary_embedding import RotaryEmbedding
from elegy.nn.stack import Stack

Activation = Callable[..., tp.Any]


class TransformerLayer(Module):
    """What a layer of the encoder and one of the decoder have in common: parts around which the input is added."""

    def __init__(
        self,
        num_heads: int,
        *more: tp.Any,
        feedforward_size: int | None = None,
        dropout_rate: float | int = 0.0,
        activation: Activation = jax.nn.relu,
        norm_first: Flag = False,
        eps: float | int = 1e-5,
        head_size: int | None = None,
        num_kv_heads: int | None = None,
        attention_dropout_rate: float | int = 0.0,
        with_bias: Flag = True,
        qk_norm: Flag = False,
        rotary: Flag | RotaryEmbedding = False,
        window: int | tuple[int, ...] | list[int] | None = None,
        implementation: str | None = None,
        cache_size: int | None = None,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = type(self).__name__
        if more:
            inferred = "The number of features is inferred"
            refuse_more(layer, {"num_heads": num_heads}, more, inferred, "feedforward_size=2048")
        if not callable(activation) or isinstance(activation, type):
            raise TypeError(
                f"elegy.nn.{layer}: activation must be a function, such as jax.nn.gelu, got {activation!r}."
            )
        if eps < 0:
            raise ValueError(f"elegy.nn.{layer}: eps must not be negative, got {eps}.")
        if feedforward_size is not None:
            feedforward_size = positive(layer, "feedforward_size", feedforward_size)
        self.feedforward_size = feedforward_size
        self.dropout_rate = probability(layer, "dropout_rate", dropout_rate)
        self.activation = activation
        self.norm_first = boolean(layer, "norm_first", norm_first)
        self.eps = float(eps)
        self.with_bias = boolean(layer, "with_bias", with_bias)
        self.w_init = w_init
        self.b_init = b_init
        attention = functools.partial(
            MultiHeadAttention,
            positive(layer, "num_heads", num_heads),
            head_size=head_size,
            num_kv_heads=num_kv_heads,
            dropout_rate=probability(layer, "attention_dropout_rate", attention_dropout_rate),
            with_bias=with_bias,
            qk_norm=qk_norm,
            implementation=implementation,
            w_init=w_init,
            b_init=b_init,
            dtype=dtype,
        )
        self._make_parts(attention, rotary=rotary, window=window, cache_size=cache_size)
        self._add_part("feedforward")

    def _make_parts(self, attention: Callable[..., MultiHeadAttention], **positional: tp.Any) -> None:
        """Makes the parts with attention; `positional` is for the one that attends to its own sequence."""
        self.attention = attention(**positional)
        self._add_part("attention")

    def _add_part(self, part: str) -> None:
        """The norm and the dropout of a part."""
        setattr(self, f"{part}_norm", LayerNormalization(eps=self.eps, dtype=self.dtype))
        setattr(self, f"{part}_dropout", Dropout(self.dropout_rate) if self.dropout_rate else None)

    def _added(self, part: str, run: Callable[[Array], Array], x: tp.Any, training: tp.Any) -> Array:
        """`norm(x + run(x))`, or `x + run(norm(x))` with `norm_first`."""
        norm, dropout = getattr(self, f"{part}_norm"), getattr(self, f"{part}_dropout")
        y = run(norm(x) if self.norm_first else x)
        if dropout is not None:
            y = dropout(y, training)
        y = converted(self, x, y.dtype) + y
        return y if self.norm_first else norm(y)

    def _feedforward(self, x: Array) -> Array:
        def linear(name: str, size: int) -> Linear:
            options: dict[str, tp.Any] = {"with_bias": self.with_bias, "w_init": self.w_init, "b_init": self.b_init}
            return Linear(size, name=name, dtype=self.dtype, **options)

        features = x.shape[-1]
        hidden = linear("expand", 4 * features if self.feedforward_size is None else self.feedforward_size)(x)
        return linear("contract", features)(self.activation(hidden))


def check_sequence(module: Module, x: tp.Any) -> None:
    if jnp.ndim(x) < 2:
        raise ValueError(
            f"{path_of(module)}: the input of {type(module).__name__} must have the shape [*batch, length, features], "
            f"got {jnp.shape(x)}."
        )


class TransformerEncoderLayer(TransformerLayer):
    """Attention of a sequence to itself, then two linear layers at each position; each part is added to its input.

    `y = norm(x + part(x))` for each of both parts, as in Vaswani et al., *Attention Is All You Need* (2017),
    [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), sections 3.1 and 3.3; or with `norm_first`
    `y = x + part(norm(x))`, as in Xiong et al. 2020, [arXiv:2002.04745](https://arxiv.org/abs/2002.04745), which can be
    trained without a warm-up of the learning rate, but needs a norm after the last layer. With `causal=True` in the
    call it is a layer of a language model such as GPT.

    **Arguments:**

    - `num_heads`: the number of heads of the attention. The number of features is inferred. The other arguments are
      given by name.
    - `feedforward_size`: the size between the two linear layers. The default is four times the number of features.
    - `dropout_rate`: that of dropout of the output of each part, before it is added (section 5.4).
    - `activation`: the function between the two linear layers.
    - `norm_first`: where the norm is; see above.
    - `eps`: that of the norms, which are `elegy.nn.LayerNormalization`.
    - `attention_dropout_rate`: that of dropout of the weights of the attention.
    - `head_size`, `num_kv_heads`, `qk_norm`, `rotary`, `window`, `implementation`, `cache_size`: those of
      `elegy.nn.MultiHeadAttention`.
    - `with_bias`, `w_init`, `b_init`: those of all linear layers, in the attention too.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** those of `attention`, an `elegy.nn.MultiHeadAttention`; of `expand` and `contract`, the two
    `elegy.nn.Linear`; of `attention_norm` and `feedforward_norm`.

    **State:** that of the attention, and the keys of the dropout where there is one.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    layer = elegy.nn.TransformerEncoderLayer(4, norm_first=True, activation=jax.nn.gelu)
    y = layer(jnp.ones([2, 10, 8]), causal=True)
    assert y.shape == (2, 10, 8)
    assert layer.expand.w.shape == (8, 32)
    ```
    """

    def call(
        self,
        x: Num[ArrayLike, "*batch length features"],
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
        key_mask: Bool[ArrayLike, "..."] | None = None,
        causal: Flag = False,
        decode: Flag = False,
        training: Flag | None = None,
    ) -> Inexact[Array, "*batch length features"]:
        """**Arguments:**

        - `x`: an array of at least two axes.
        - `mask`, `key_mask`, `causal`, `decode`: those of `elegy.nn.MultiHeadAttention`. A `key_mask` of
          `[*batch, length]` says which positions are no padding.
        - `training`: whether to drop. The default is `elegy.training()`.

        **Returns:** an array of the shape of `x`, in the dtype of the parameters.
        """
        check_sequence(self, x)
        attend = functools.partial(
            self.attention, mask=mask, key_mask=key_mask, causal=causal, decode=decode, training=training
        )
        x = self._added("attention", attend, x, training)
        return self._added("feedforward", self._feedforward, x, training)


class LayerStack(Module):
    """What the encoder and the decoder have in common: layers in a stack, and a norm at the end."""

    def __init__(
        self,
        layer: type[TransformerLayer],
        num_layers: int,
        num_heads: int,
        more: tuple[tp.Any, ...],
        final_norm: Flag | None,
        remat: Flag | Callable[..., bool],
        unroll: int | bool,
        name: str | None,
        dtype: tp.Any,
        options: dict[str, tp.Any],
    ):
        super().__init__(name=name, dtype=dtype)
        owner = type(self).__name__
        if more:
            given = {"num_layers": num_layers, "num_heads": num_heads}
            refuse_more(owner, given, more, "The number of features is inferred", "feedforward_size=2048")
        num_layers = positive(owner, "num_layers", num_layers)
        factory = functools.partial(layer, num_heads, dtype=dtype, **options)
        self.layers = Stack(factory, num_layers, remat=remat, unroll=unroll)
        blocks = tp.cast(TransformerLayer, self.layers.blocks)
        final_norm = blocks.norm_first if final_norm is None else boolean(owner, "final_norm", final_norm)
        self.final_norm = LayerNormalization(eps=blocks.eps, dtype=self.dtype) if final_norm else None

    def _parameter_dtype(self) -> tp.Any:
        """What goes from layer to layer has one dtype from the start: that of the parameters, once there are some."""
        norm = tp.cast(TransformerLayer, self.layers.blocks).feedforward_norm
        return norm.scale.dtype if norm.initialized else dtype_of_new(self)

    def _run(self, x: tp.Any, *args: tp.Any, **options: tp.Any) -> Array:
        check_sequence(self, x)
        x = self.layers(converted(self, x, self._parameter_dtype()), *args, **options)
        return x if self.final_norm is None else self.final_norm(x)


class TransformerEncoder(LayerStack):
    """Several layers of `elegy.nn.TransformerEncoderLayer`, one after the other, compiled as one.

    **Arguments:**

    - `num_layers`: the number of layers.
    - `num_heads`: the number of heads in each.
    - `final_norm`: whether there is a norm after the last layer. The default is `norm_first`.
    - `remat`, `unroll`: those of `elegy.nn.Stack`: `remat=True` computes the layers again in the backward pass, so that
      only what goes from layer to layer is stored.
    - `options`: those of `elegy.nn.TransformerEncoderLayer`, by name.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** those of a layer below `layers/blocks`, each with a leading axis of the layers; those of
    `final_norm`, an `elegy.nn.LayerNormalization`. `encoder.layers[3]` is a copy of a layer.

    ```python
    import elegy
    import jax.numpy as jnp

    encoder = elegy.nn.TransformerEncoder(6, 4, dropout_rate=0.1)
    is_word = jnp.array([[True] * 10, [True] * 7 + [False] * 3])
    y = encoder(jnp.ones([2, 10, 8]), key_mask=is_word)
    assert y.shape == (2, 10, 8)
    assert encoder.layers.blocks.attention.query.w.shape == (6, 8, 8)
    ```
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        *more: tp.Any,
        final_norm: Flag | None = None,
        remat: Flag | Callable[..., bool] = False,
        unroll: int | bool = 1,
        name: str | None = None,
        dtype: tp.Any = None,
        **options: tp.Any,
    ):
        super().__init__(
            TransformerEncoderLayer, num_layers, num_heads, more, final_norm, remat, unroll, name, dtype, options
        )

    def call(
        self,
        x: Num[ArrayLike, "*batch length features"],
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
        key_mask: Bool[ArrayLike, "..."] | None = None,
        causal: Flag = False,
        decode: Flag = False,
        training: Flag | None = None,
    ) -> Inexact[Array, "*batch length features"]:
        """**Arguments:** those of `elegy.nn.TransformerEncoderLayer`.

        **Returns:** an array of the shape of `x`, in the dtype of the parameters.
        """
        return self._run(x, mask=mask, key_mask=key_mask, causal=causal, decode=decode, training=training)
