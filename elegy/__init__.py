"""Elegy: neural networks for JAX, with modules that are immutable pytrees, lazy shapes and hooks."""

import importlib.metadata
import typing as _tp

from elegy import (
    callbacks as callbacks,
    data as data,
    errors as errors,
    habits as _habits,
    initializers as initializers,
    losses as losses,
    metrics as metrics,
    model as model,
    nn as nn,
    regularizers as regularizers,
)
from elegy.calls import compact as compact
from elegy.captures import debug as debug
from elegy.checkpoints import Checkpoints as Checkpoints, load as load, save as save
from elegy.contexts import (
    get_dynamic_context as get_dynamic_context,
    get_module as get_module,
    get_static_context as get_static_context,
    is_initializing as is_initializing,
    set_context as set_context,
)
from elegy.draws import get_rng as get_rng, next_rng_key as next_rng_key, rng_context as rng_context, set_rng as set_rng
from elegy.dtype_policy import DtypePolicy as DtypePolicy
from elegy.hooks import (
    add_loss as add_loss,
    add_metric as add_metric,
    add_summary as add_summary,
    get_losses as get_losses,
    get_metrics as get_metrics,
    get_summaries as get_summaries,
    hooks_context as hooks_context,
    name_context as name_context,
)
from elegy.losses import Loss as Loss
from elegy.metrics import Metric as Metric
from elegy.model import Model as Model, Optimizer as Optimizer
from elegy.module import Module as Module, to_module as to_module
from elegy.random import RNG as RNG
from elegy.selections import Selection as Selection, select as select
from elegy.state import (
    is_training as is_training,
    sample_mask as sample_mask,
    sample_mask_context as sample_mask_context,
    set_training as set_training,
    training as training,
    training_context as training_context,
)
from elegy.summaries import summary as summary
from elegy.tables import Summary as Summary
from elegy.transforms import (
    cond as cond,
    fori_loop as fori_loop,
    grad as grad,
    jit as jit,
    remat as remat,
    scan as scan,
    switch as switch,
    value_and_grad as value_and_grad,
    vmap as vmap,
    while_loop as while_loop,
)
from elegy.trees import combine as combine, partition as partition, trainable_mask as trainable_mask
from elegy.typechecking.switch import typechecker as typechecker

__version__ = importlib.metadata.version("elegy")

__all__ = [
    "add_loss",
    "add_metric",
    "add_summary",
    "callbacks",
    "Checkpoints",
    "combine",
    "compact",
    "cond",
    "data",
    "debug",
    "DtypePolicy",
    "errors",
    "fori_loop",
    "get_dynamic_context",
    "get_losses",
    "get_metrics",
    "get_module",
    "get_rng",
    "get_static_context",
    "get_summaries",
    "grad",
    "hooks_context",
    "initializers",
    "is_initializing",
    "is_training",
    "jit",
    "load",
    "Loss",
    "losses",
    "Metric",
    "metrics",
    "Model",
    "model",
    "Module",
    "name_context",
    "next_rng_key",
    "nn",
    "Optimizer",
    "partition",
    "RNG",
    "regularizers",
    "remat",
    "rng_context",
    "sample_mask",
    "sample_mask_context",
    "save",
    "select",
    "Selection",
    "scan",
    "set_context",
    "set_rng",
    "set_training",
    "Summary",
    "summary",
    "switch",
    "to_module",
    "trainable_mask",
    "training",
    "training_context",
    "typechecker",
    "value_and_grad",
    "vmap",
    "while_loop",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute(
        "elegy",
        __all__,
        _habits.EVERYTHING | _habits.LAYERS | _habits.CALLBACKS,
        [
            "elegy.nn",
            "elegy.data",
            "elegy.losses",
            "elegy.metrics",
            "elegy.callbacks",
            "elegy.model",
            "elegy.initializers",
            "elegy.regularizers",
        ],
    )
