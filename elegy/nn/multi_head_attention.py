from __future__ import annotations

import functools
import math
import operator
import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Inexact, Int, Num, Shaped

from elegy.contexts import is_initializing
from elegy.devices import sharded_like
from elegy.errors import show_value
from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.dropout import Dropout
from elegy.nn.inputs import Flag, boolean, positive, refuse_more, trains
from elegy.nn.linear import Linear
from elegy.nn.rotary_embedding import RotaryEmbedding
from elegy.precision import at_least_float32


class MultiHeadAttention(Module):
    """Attention of several heads: each is an average of values, weighted by how well keys fit a query.

    Head `i` computes `softmax(scale * q_i k_iᵀ) v_i` of the projections `q_i`, `k_i`, `v_i` of the inputs; the heads,
    side by side, are projected to the output. Vaswani et al., *Attention Is All You Need* (2017),
    [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), section 3.2.

    **Arguments:**

    - `num_heads`: the number of heads. The sizes of the inputs are inferred.
    - `head_size`: the size of queries, keys and values of one head. The default is the size of the last axis of the
      query, divided by `num_heads`. The other arguments are given by name.
    - `num_kv_heads`: the number of heads of keys and values, each of which serves `num_heads / num_kv_heads` heads of
      queries that follow one another. The default is `num_heads`. Shazeer 2019,
      [arXiv:1911.02150](https://arxiv.org/abs/1911.02150) (one head); Ainslie et al. 2023,
      [arXiv:2305.13245](https://arxiv.org/abs/2305.13245) (groups).
    - `output_size`: the size of the last axis of the output. The default is that of the query.
    - `dropout_rate`: the probability, in `[0, 1)`, with which a weight is dropped in training; see `elegy.nn.Dropout`.
    - `with_bias`: whether the four projections have a bias.
    - `qk_norm`: whether queries and keys are divided by their root mean square over the head, and multiplied by a
      learned scale. Henry et al. 2020, [arXiv:2010.04245](https://arxiv.org/abs/2010.04245), in the form of
      Zhang and Sennrich 2019, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467), equation 4, with 1e-6 under the
      root.
    - `rotary`: whether queries and keys are rotated by their positions, as `elegy.nn.RotaryEmbedding` does; or such a
      layer, of which a copy is taken.
    - `window`: the largest distance at which a query sees keys: an integer, or a pair of one for the keys before and
      one for those after. At 0 each sees the key of its own position only.
    - `scale`: the factor of the products. The default is `1 / sqrt(head_size)`.
    - `implementation`: that of `jax.nn.dot_product_attention`: `"cudnn"` asks for the fused kernel of NVIDIA's GPUs,
      which takes half precision; the default, as there, is that of XLA. The fused kernel drops no weights.
    - `cache_size`: the largest number of positions that can be decoded one after the other; see below.
    - `w_init`, `b_init`: the initializers of the projections, those of `elegy.nn.Linear`.
    - `name`, `dtype`: those of `elegy.Module`.

    **Parameters:** those of four `elegy.nn.Linear`: `query/w` of shape `[features, num_heads * head_size]`, `key/w`
    and `value/w` of shape `[features, num_kv_heads * head_size]`, `output/w` of shape
    `[num_heads * head_size, output_size]`, and a `b` for each. The elements of one head are next to each other. With
    `qk_norm` there are `query_scale` and `key_scale` of shape `[head_size]`.

    **State:** with `cache_size` there are `cache_key` and `cache_value` of shape
    `[*batch, cache_size, num_kv_heads, head_size]`, whose axes of the batch are those of the first call or of `init`,
    and `cache_index`, a number: how many positions are there.

    The softmax is computed in float32 at least. A query that may see no key at all gets zeros, before the output is
    projected, and passes on no gradient.

    **Decoding.** With `decode=True` the input is the next part of the sequences, of one position or more. Its keys and
    values are appended to the cache, and it sees what is there: the output is that of `causal=True` for all of the
    sequence at once. Other calls neither use the cache nor change it. To begin with other sequences empty the caches
    of a whole model by `elegy.select(model, "**/cache_*").apply(jnp.zeros_like)`, which gives a copy. The parameters
    do not depend on the cache: a model with caches, or with another batch, takes those of one that was trained by
    `set_parameters(trained.get_parameters(trainable=True))`.

    **Raises:** `ValueError` if the cache overflows. Where that cannot be seen, since the module is traced, the output
    is NaN from there on.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), [2, 5, 8])  # two sequences of five positions

    attention = elegy.nn.MultiHeadAttention(4, rotary=True, cache_size=5)
    y = attention(x, causal=True)
    assert y.shape == (2, 5, 8)
    assert attention.query.w.shape == (8, 8)

    one_by_one = [attention(x[:, i : i + 1], decode=True) for i in range(5)]
    assert jnp.allclose(jnp.concatenate(one_by_one, axis=1), y, atol=1e-5)
    assert attention.cache_index == 5
    ```
    """

    query_scale: Inexact[Array, "head_size"]
    key_scale: Inexact[Array, "head_size"]
    # Of the first call; another call may have another batch.
    cache_key: Inexact[Array, "..."]
    cache_value: Inexact[Array, "..."]
    cache_index: Int[Array, ""]

    def __init__(
        self,
        num_heads: int,
        head_size: int | None = None,
        *more: tp.Any,
        num_kv_heads: int | None = None,
        output_size: int | None = None,
        dropout_rate: float | int = 0.0,
        with_bias: Flag = True,
        qk_norm: Flag = False,
        rotary: Flag | RotaryEmbedding = False,
        window: int | Sequence[int] | None = None,
        scale: float | int | None = None,
        implementation: str | None = None,
        cache_size: int | None = None,
        w_init: tp.Any = None,
        b_init: tp.Any = jnp.zeros,
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        layer = "MultiHeadAttention"
        if more:
            given = {"num_heads": num_heads, "head_size": head_size}
            refuse_more(layer, given, more, "The sizes of the inputs are inferred", "dropout_rate=0.1")
        self.num_heads = positive(layer, "num_heads", num_heads)
        self.head_size = None if head_size is None else positive(layer, "head_size", head_size)
        self.num_kv_heads = self.num_heads if num_kv_heads is None else positive(layer, "num_kv_heads", num_kv_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"elegy.nn.MultiHeadAttention: num_heads={num_heads} cannot be split into groups for "
                f"num_kv_heads={num_kv_heads}.\n  Choose a divisor of num_heads."
            )
        self.output_size = None if output_size is None else positive(layer, "output_size", output_size)
        self.dropout_rate = probability(layer, "dropout_rate", dropout_rate)
        self.dropout = Dropout(self.dropout_rate) if self.dropout_rate else None
        self.with_bias = boolean(layer, "with_bias", with_bias)
        self.qk_norm = boolean(layer, "qk_norm", qk_norm)
        if isinstance(rotary, RotaryEmbedding):
            # A stack of layers that share a module could not be made.
            self.rotary: RotaryEmbedding | None = rotary.copy()
        else:
            self.rotary = RotaryEmbedding() if boolean(layer, "rotary", rotary) else None
        self.window = None if window is None else _window(window)
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
            raise ValueError(f"elegy.nn.MultiHeadAttention: scale must be a number, got {scale!r}.")
        self.scale = None if scale is None else float(scale)
        if implementation not in (None, "xla", "cudnn"):
            raise ValueError(
                f"elegy.nn.MultiHeadAttention: implementation must be 'xla', 'cudnn' or None, got {implementation!r}."
            )
        if implementation is not None and self.dropout_rate:
            raise ValueError(
                f"elegy.nn.MultiHeadAttention: implementation={implementation!r} is of attention without dropout of "
                f"the weights, and dropout_rate={dropout_rate}.\n  Leave out one of them."
            )
        self.implementation = implementation
        self.cache_size = None if cache_size is None else positive(layer, "cache_size", cache_size)
        self.w_init = w_init
        self.b_init = b_init

    def call(
        self,
        query: Num[ArrayLike, "*batch query_length features"],
        key: Num[ArrayLike, "*batch key_length key_features"] | None = None,
        value: Num[ArrayLike, "*batch key_length value_features"] | None = None,
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
        key_mask: Bool[ArrayLike, "..."] | None = None,
        causal: Flag = False,
        decode: Flag = False,
        training: Flag | None = None,
    ) -> Inexact[Array, "*batch query_length output_size"]:
        """**Arguments:**

        - `query`: what asks, an array of at least two axes; those before the last two are axes of a batch.
        - `key`: what is compared with it. The default is `query`: self-attention.
        - `value`: what is averaged. The default is `key`.
        - `mask`: bools of `[*batch, num_heads, query_length, key_length]`, of which any size may be 1: where a query
          sees a key. It has all of these axes: for a matrix of queries and keys give `matrix[None, None]`.
        - `key_mask`: bools of `[*batch, key_length]`: which keys are seen at all, and are no padding.
        - `causal`: whether a query sees the keys at its own position and before only.
        - `decode`: whether `query` is the next part of the sequences that are in the cache. It is causal. Then
          `key_length` is `cache_size` in both masks, whose keys are those of all positions.
        - `training`: whether to drop weights. The default is `elegy.training()`.

        **Returns:** an array of the shape of the query but for the last axis, in the dtype of the parameters.
        """
        causal = boolean(self, "causal", causal)
        decode = boolean(self, "decode", decode)
        if decode and (self.cache_size is None or key is not None or value is not None):
            raise ValueError(
                f"{path_of(self)}: decode=True is for self-attention with a cache.\n  "
                + ("Construct the layer with cache_size=." if self.cache_size is None else "Give it the query only.")
            )
        key = query if key is None else key
        value = key if value is None else value
        *batch, length, features = self._checked_shapes(query, key, value)
        head_size = self._head_size(features)
        q = self._projected("query", query, self.num_heads, head_size)
        k = self._projected("key", key, self.num_kv_heads, head_size)
        v = self._projected("value", value, self.num_kv_heads, head_size)
        if self.qk_norm:
            q, k = self._normalised("query_scale", q), self._normalised("key_scale", k)
        # The position of the first element; the cache is created by any call.
        first: tp.Any = self._cached(k) if self.cache_size is not None else 0
        first = first if decode else 0
        if self.rotary is not None:
            q, k = self.rotary(q, first), self.rotary(k, first)
        if decode:
            k, v = self._extended(first, k, v)
        given = self._given_mask(mask, key_mask, (*batch, self.num_heads, length, k.shape[-3]))
        q, k, v = (array.reshape(math.prod(batch), *array.shape[-3:]) for array in (q, k, v))
        attended = self._attended(q, k, v, given, first, causal or decode, decode, training)
        attended = attended.reshape(*batch, length, self.num_heads * head_size)
        if decode:
            attended = jnp.where(first + length > k.shape[1], jnp.nan, attended)
        return self._linear("output", features if self.output_size is None else self.output_size)(attended)

    # -----------------------------------------------------------------------------------------------------------------
    # Projections
    # -----------------------------------------------------------------------------------------------------------------

    def _checked_shapes(self, *arrays: Shaped[ArrayLike, "..."]) -> tuple[int, ...]:
        """The shape of the query, if those of keys and values fit it."""
        query, key, value = (jnp.shape(array) for array in arrays)
        if min(len(query), len(key), len(value)) < 2:
            raise ValueError(
                f"{path_of(self)}: the inputs of MultiHeadAttention must have the shape [*batch, length, features], "
                f"got {', '.join(map(str, dict.fromkeys((query, key, value))))}."
            )
        if key[:-2] != query[:-2] or value[:-1] != key[:-1]:
            raise ValueError(
                f"{path_of(self)}: query, key and value must have the same axes of the batch, and key and value the "
                f"same length, got {query}, {key} and {value}."
            )
        return query

    def _head_size(self, features: int) -> int:
        if self.head_size is not None:
            return self.head_size
        if features % self.num_heads:
            raise ValueError(
                f"{path_of(self)}: the {features} features of the query cannot be split into "
                f"num_heads={self.num_heads}.\n  Choose a divisor, or set head_size."
            )
        return features // self.num_heads

    def _linear(self, name: str, size: int) -> Linear:
        return Linear(
            size, with_bias=self.with_bias, w_init=self.w_init, b_init=self.b_init, name=name, dtype=self.dtype
        )

    def _projected(self, name: str, x: Num[ArrayLike, "..."], heads: int, head_size: int) -> Array:
        """`[*batch, length, heads, head_size]`"""
        y = self._linear(name, heads * head_size)(x)
        if jnp.iscomplexobj(y):
            raise TypeError(f"{path_of(self)}: MultiHeadAttention takes real numbers, got {y.dtype}.")
        return y.reshape(*y.shape[:-1], heads, head_size)

    def _normalised(self, name: str, x: Array) -> Array:
        scale = self.add_parameter(name, x.shape[-1:], initializer=jnp.ones)
        precise = x.astype(at_least_float32(x.dtype))
        factor = jax.lax.rsqrt(jnp.mean(jnp.square(precise), axis=-1, keepdims=True) + 1e-6)
        return (precise * factor * jnp.broadcast_to(scale.astype(precise.dtype), x.shape)).astype(x.dtype)

    # -----------------------------------------------------------------------------------------------------------------
    # The cache
    # -----------------------------------------------------------------------------------------------------------------

    def _cached(self, key: Array) -> Array:
        """The number of positions that are there. Creates the cache, for the batch of the first call."""
        shape = (*key.shape[:-3], self.cache_size, *key.shape[-2:])
        # No shape is asked for: a later call that does not decode may have another batch.
        for name in ("cache_key", "cache_value"):
            self.add_parameter(name, initializer=functools.partial(jnp.zeros, shape, key.dtype), trainable=False)
        return self.add_parameter("cache_index", [], jnp.int32, jnp.zeros, trainable=False)

    def _extended(self, index: Array, key: Array, value: Array) -> tuple[Array, Array]:
        """Appends to the cache, and returns it."""
        length, size = key.shape[-3], tp.cast(int, self.cache_size)
        batch, cached = key.shape[:-3], self.cache_key.shape[:-3]
        if batch != cached:
            raise ValueError(
                f"{path_of(self)}: the cache was made by the first call, for a batch of shape {cached}, and there is "
                f"one of shape {batch} to decode.\n"
                "  Make another module for it: other = ...; other.init(x); "
                "other.set_parameters(module.get_parameters(trainable=True))."
            )
        before = 0 if isinstance(index, Tracer) else int(index)
        if before + length > size:
            raise ValueError(
                f"{path_of(self)}: the cache is full: it has cache_size={size} positions, of which {before} are taken, "
                f"and {length} were to be added.\n"
                "  Set a larger cache_size, or empty it to begin with other sequences: "
                'elegy.select(module, "**/cache_*").apply(jnp.zeros_like).'
            )
        self.update_parameter("cache_index", index + length)
        for name, new in (("cache_key", key), ("cache_value", value)):
            old = getattr(self, name)
            new = sharded_like(new.astype(old.dtype), old)
            self.update_parameter(name, jax.lax.dynamic_update_slice_in_dim(old, new, index, axis=old.ndim - 3))
        keys, values = self.cache_key.astype(key.dtype), self.cache_value.astype(value.dtype)
        return sharded_like(keys, key), sharded_like(values, value)

    # -----------------------------------------------------------------------------------------------------------------
    # Masks
    # -----------------------------------------------------------------------------------------------------------------

    def _given_mask(self, mask: tp.Any, key_mask: tp.Any, shape: tuple[int, ...]) -> Array | None:
        """Both masks as one of `[batch, num_heads, query_length, key_length]`, of which all but the last may be 1."""
        *batch, _, _, keys = shape
        found = []
        if mask is not None:
            hint = (
                "\n  It has all of these axes: give a matrix of queries and keys as matrix[None, None], and what says "
                "which keys are padding as key_mask."
            )
            found.append(self._checked_mask("mask", mask, shape, "[*batch, num_heads, query_length, key_length]", hint))
        if key_mask is not None:
            mask = self._checked_mask("key_mask", key_mask, (*batch, keys), "[*batch, key_length]")
            found.append(jnp.expand_dims(mask, (-3, -2)))
        if not found:
            return None
        together = functools.reduce(operator.and_, found)
        axes = together.shape[:-3]
        axes = axes if all(size == 1 for size in axes) else batch
        together = jnp.broadcast_to(together, (*axes, *together.shape[-3:-1], keys))
        return together.reshape(math.prod(axes), *together.shape[-3:])

    def _checked_mask(self, name: str, mask: tp.Any, shape: tuple[int, ...], axes: str, hint: str = "") -> Array:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"{path_of(self)}: {name} holds bools, True where a key is seen, got {mask.dtype}.\n"
                "  Of one that is added to the products give the comparison: mask == 0."
            )
        fits = mask.ndim == len(shape) and all(size in (1, full) for size, full in zip(mask.shape, shape, strict=True))
        if not fits:
            raise ValueError(
                f"{path_of(self)}: {name} must have the shape {axes}, here {shape}, of which any size may be 1; "
                f"got {mask.shape}.{hint}"
            )
        return mask

    def _band(self, queries: int, keys: int, first: tp.Any, causal: bool) -> Array | None:
        """Which positions of queries, counted from `first`, see which of keys: `[1, 1, query_length, key_length]`."""
        if not causal and self.window is None:
            return None
        before, after = (keys, keys) if self.window is None else self.window
        of_queries, of_keys = (jnp.arange(length, dtype=jnp.int32) for length in (queries, keys))
        distance = of_keys[None, :] - of_queries[:, None] - first
        seen = distance <= (0 if causal else after)
        if self.window is not None:
            seen = seen & (distance >= -before)
        return seen[None, None]

    # -----------------------------------------------------------------------------------------------------------------
    # Attention
    # -----------------------------------------------------------------------------------------------------------------

    def _attended(
        self,
        q: Array,
        k: Array,
        v: Array,
        given: Array | None,
        first: tp.Any,
        causal: bool,
        decode: bool,
        training: tp.Any,
    ) -> Array:
        """The averages of the values for each head: `[batch, query_length, num_heads, head_size]`."""
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        training = trains(self, training)
        # As for Dropout by itself: an init pass in evaluation mode draws too.
        dropout = self.dropout if training or is_initializing() else None
        by_hand = dropout is not None or (self.implementation is None and not _is_for_jax(q.dtype))
        attend = functools.partial(
            jax.nn.dot_product_attention, scale=scale, implementation=tp.cast(tp.Any, self.implementation)
        )
        if not by_hand and given is None and not decode and q.shape[1] == k.shape[1]:
            # Every query sees itself at least, and what computes the whole thing may skip what is not seen.
            return attend(q, k, v, is_causal=causal, local_window_size=self.window)
        band = self._band(q.shape[1], k.shape[1], first, causal)
        masks = [mask for mask in (given, band) if mask is not None]
        mask = functools.reduce(operator.and_, masks) if masks else None
        if by_hand:
            weights = _weights(q, k, mask, scale).astype(v.dtype)
            if dropout is not None:
                weights = dropout(weights, training)
            attended = jnp.einsum("bkgqs,bskh->bqkgh", weights, v).reshape(q.shape)
        else:
            attended = attend(q, k, v, mask=mask)
        if mask is None:
            return attended
        # Without this, what sees nothing would get the mean of all.
        sees = jnp.any(mask, axis=-1, keepdims=True)
        return jnp.where(jnp.swapaxes(sees, 1, 2), attended, 0)


def _is_for_jax(dtype: tp.Any) -> bool:
    """Whether `jax.nn.dot_product_attention` may be used. It computes the softmax in float32 whatever it is given, and
    of half precision it promotes dtypes, which JAX may have been told to refuse."""
    if dtype == jnp.float64:
        return False
    return dtype == jnp.float32 or tp.cast(tp.Any, jax.config).jax_numpy_dtype_promotion != "strict"


def _weights(q: Array, k: Array, mask: Array | None, scale: float) -> Array:
    """The softmax for each head of keys and each head of queries that belongs to it:
    `[batch, num_kv_heads, group, query_length, key_length]`."""
    heads = k.shape[2]
    group = q.shape[2] // heads
    q = q.reshape(*q.shape[:2], heads, group, q.shape[3])
    scores = scale * jnp.einsum("bqkgh,bskh->bkgqs", q, k, preferred_element_type=at_least_float32(q.dtype))
    if mask is not None:
        split = (1, 1) if mask.shape[1] == 1 else (heads, group)
        mask = mask.reshape(mask.shape[0], *split, *mask.shape[2:])
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


def probability(layer: str, name: str, value: tp.Any) -> float:
    """An argument that is a rate of dropout."""
    if isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"elegy.nn.{layer}: {name} is a probability and must be in [0, 1), got {value}.")
    return float(value)


def _window(window: tp.Any) -> tuple[int, int]:
    sides = tuple(window) if isinstance(window, (list, tuple)) else (window, window)
    is_whole = all(hasattr(side, "__index__") and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not is_whole or min(sides) < 0:
        raise ValueError(
            "elegy.nn.MultiHeadAttention: window must be an integer that is not negative, or two of them, for the keys "
            f"before and after, got {show_value(window)}."
        )
    return operator.index(sides[0]), operator.index(sides[1])
