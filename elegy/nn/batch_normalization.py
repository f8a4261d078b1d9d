from __future__ import annotations

import typing as tp
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from elegy.contexts import is_initializing
from elegy.devices import sharded_like
from elegy.errors import ParameterError
from elegy.frames import path_of
from elegy.module import Module
from elegy.nn.inputs import Flag, boolean, trains
from elegy.nn.samples import real_only, real_rows
from elegy.nn.standardise import (
    Axes,
    affine,
    aligned,
    axes_of,
    channel_axis_of,
    check_not_empty,
    not_negative,
    other_axes,
    real,
)
from elegy.precision import at_least_float32


class BatchNormalization(Module):
    """Normalises each channel over the batch: `y = scale * (x - mean) / sqrt(var + eps) + offset`.

    In training `mean` and `var` are those of the batch, and running averages of them are kept as state:
    `running = decay_rate * running + (1 - decay_rate) * batch`. Outside of training the running averages are used, and
    nothing changes; before the first training step they are 0 and 1. Ioffe and Szegedy, *Batch Normalization* (2015),
    algorithms 1 and 2; as in Flax, and unlike algorithm 2, the running variance averages the *biased* variance
    (divided by the number of elements, not by one less). Of a padded batch only the samples count, by
    `elegy.sample_mask`, if the first axis is among those averaged over.

    **Arguments:**

    - `create_scale`, `create_offset`: whether there is a parameter `scale`, and `offset`.
    - `decay_rate`: the weight of the past in the running averages, in `[0, 1]`. Other libraries call it `momentum`.
    - `eps`: added to the variance.
    - `scale_init`, `offset_init`: initializers; the defaults are ones and zeros.
    - `axis`: the axis or axes to average over. The default is all but the channel axis. The parameters and the state
      have the shape of the other axes.
    - `cross_replica_axis`: the name of a mapped axis (`jax.vmap(..., axis_name=...)`, `jax.shard_map`) over which
      statistics are averaged too.
    - `data_format`: where the channel axis is: `"channels_last"` or `"channels_first"` (or a layout such as `"NHWC"`).
    - `name`, `dtype`: those of `elegy.Module`; `dtype` is that of `scale`, `offset` and the output.

    **Parameters:** `scale` and `offset` of shape `[channels]`.

    **State:** `mean` and `var` of shape `[channels]`, in float32 at least: statistics of half-precision inputs are
    computed, and averaged, in float32.

    **Raises:** in training, `ParameterError` if `mean` or `var` was cast to half precision; `SampleMaskError` if the
    layer averages over the first axis, and that has another size than the sample mask.

    ```python
    import elegy
    import jax
    import jax.numpy as jnp

    norm = elegy.nn.BatchNormalization()
    x = 3 + jax.random.normal(jax.random.key(0), [256, 4])
    y = norm(x)
    assert abs(y.mean()) < 1e-4
    assert norm.mean.shape == (4,)

    with elegy.training_context(False):
        y = norm(x)
    ```
    """

    scale: Float[Array, "..."]
    offset: Float[Array, "..."]
    mean: Float[Array, "..."]
    var: Float[Array, "..."]

    def __init__(
        self,
        *,
        create_scale: Flag = True,
        create_offset: Flag = True,
        decay_rate: float | int = 0.99,
        eps: float | int = 1e-5,
        scale_init: tp.Any = jnp.ones,
        offset_init: tp.Any = jnp.zeros,
        axis: Axes | None = None,
        cross_replica_axis: str | Sequence[str] | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
        dtype: tp.Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        if not 0 <= decay_rate <= 1:
            raise ValueError(f"elegy.nn.BatchNormalization: decay_rate must be in [0, 1], got {decay_rate}.")
        self.create_scale = boolean("BatchNormalization", "create_scale", create_scale)
        self.create_offset = boolean("BatchNormalization", "create_offset", create_offset)
        self.decay_rate = float(decay_rate)
        self.eps = not_negative("BatchNormalization", "eps", eps)
        self.scale_init = jnp.ones if scale_init is None else scale_init
        self.offset_init = jnp.zeros if offset_init is None else offset_init
        self.axis = axis if axis is None or isinstance(axis, int) else tuple(axis)
        self.cross_replica_axis = (
            tuple(cross_replica_axis) if isinstance(cross_replica_axis, (list, tuple)) else cross_replica_axis
        )
        self.data_format = data_format
        self.channel_axis = channel_axis_of("BatchNormalization", data_format)

    def call(
        self,
        x: Num[ArrayLike, "*shape"],
        training: Flag | None = None,
        test_local_stats: Flag = False,
        scale: Num[ArrayLike, "..."] | None = None,
        offset: Num[ArrayLike, "..."] | None = None,
    ) -> Float[Array, "*shape"]:
        """**Arguments:**

        - `x`: an array of at least two axes (of at least one if `axis` is given).
        - `training`: whether to normalise by the batch and to update the running averages. The default is
          `elegy.training()`.
        - `test_local_stats`: normalise by the batch outside of training too. The running averages stay as they are.
        - `scale`, `offset`: values to use where there is no such parameter: a number, or an array of `[channels]` or
          of the shape of `x`.

        **Returns:** an array of the shape of `x`, in the dtype of the layer.
        """
        x = real(self, x)
        axes = self._reduced_axes(x)
        training = trains(self, training)
        test_local_stats = boolean(self, "test_local_stats", test_local_stats)
        shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
        precise = at_least_float32(self.dtype)
        mean = self.add_parameter("mean", shape, precise, jnp.zeros, trainable=False)
        var = self.add_parameter("var", shape, precise, jnp.ones, trainable=False)
        scale = self._parameter("scale", self.create_scale, self.scale_init, shape, scale)
        offset = self._parameter("offset", self.create_offset, self.offset_init, shape, offset)
        dtype = self.scale.dtype if self.create_scale else self.offset.dtype if self.create_offset else self.dtype
        x = x.astype(at_least_float32(x.dtype, dtype))
        if training or test_local_stats:
            x, batch_mean, var_now = self._centred(x, axes)
            if training:
                self._update("mean", mean, batch_mean)
                self._update("var", var, var_now)
        else:
            x, var_now = x - aligned(mean, x, axes), var.astype(x.dtype)
        factor = jax.lax.rsqrt(var_now + self.eps)
        if scale is not None and jnp.shape(scale) in ((), shape):
            # Before either meets the whole array, which is then multiplied once.
            factor, scale = factor * jnp.broadcast_to(jnp.asarray(scale).astype(x.dtype), shape), None
        return affine(x * aligned(factor, x, axes), scale, offset, axes).astype(dtype)

    def _reduced_axes(self, x: Array) -> tuple[int, ...]:
        if self.axis is not None:
            return axes_of(self, self.axis, x.shape)
        if x.ndim < 2:
            raise ValueError(
                f"{path_of(self)}: the input of BatchNormalization needs an axis of the batch and one of channels, "
                f"got shape {x.shape}.\n  Give it a batch, or state the axis to average over: axis=0."
            )
        return other_axes([self.channel_axis % x.ndim], x.ndim)

    def _parameter(self, name: str, create: bool, initializer: tp.Any, shape: tuple[int, ...], given: tp.Any) -> tp.Any:
        """The parameter `name`, or the value that the call was given in its place, or None."""
        if not create:
            return given
        if given is not None:
            raise ValueError(
                f"{path_of(self)}: {name} was given in the call, but the layer has a parameter of that name.\n"
                f"  Construct it by BatchNormalization(create_{name}=False)."
            )
        return self.add_parameter(name, shape, initializer=initializer)

    def _centred(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """`x` without its mean, the mean, and the biased variance. Two passes: E[x²] - E[x]² loses all digits where the
        mean is large."""
        check_not_empty(self, x.shape, axes)
        real = real_rows(self, x) if 0 in axes else None
        mean = self._mean(x, real, axes)
        x = x - jnp.broadcast_to(mean, x.shape)
        var = self._mean(jnp.square(x), real, axes)
        return x, jnp.squeeze(mean, axes), jnp.squeeze(var, axes)

    def _mean(self, x: Array, real: Array | None, axes: tuple[int, ...]) -> Array:
        # In the init pass the mapped axis need not exist, and the values are thrown away.
        replicas = None if is_initializing() else self.cross_replica_axis
        if real is None:
            mean = jnp.mean(x, axes, keepdims=True)
            return mean if replicas is None else jax.lax.pmean(mean, replicas)
        # Replicas may have different numbers of real samples.
        parts = jnp.sum(real_only(x, real), axes, keepdims=True), jnp.sum(real, axes, x.dtype, keepdims=True)
        total, count = parts if replicas is None else jax.lax.psum(parts, replicas)
        return total / jnp.maximum(count, 1)

    def _update(self, name: str, running: Array, batch: Array) -> None:
        if jnp.finfo(running.dtype).bits < 32:
            raise ParameterError(
                f"{path_of(self, name)} is {running.dtype}, which is too coarse for a running average: it moves in "
                "small steps, and would stop moving.\n"
                "  Keep it in float32, and cast the trainable arrays only:\n"
                "    parameters, rest = elegy.partition(module)\n"
                f"    module = elegy.combine(jax.tree.map(lambda w: w.astype(jnp.{running.dtype}), parameters), rest)"
            )
        average = self.decay_rate * running + (1 - self.decay_rate) * batch.astype(running.dtype)
        self.update_parameter(name, sharded_like(average, running))
