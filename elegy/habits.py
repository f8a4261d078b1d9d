"""What users of other libraries write, and what to write instead: for the errors of names and arguments that are not
here. Looked at only where such an error is raised."""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing as tp
from collections.abc import Callable, Iterable, Mapping, Sequence

MISSING = "docs/index.md#what-is-not-here-yet"


def _not_here(what: str, stand_in: str = "") -> str:
    return f"{what} not here yet ({MISSING}).{f' {stand_in}' if stand_in else ''}"


def _table(*rows: tuple[str, str]) -> dict[str, str]:
    """A text for each of the names of a row, which are compared without case and underscores."""
    return {_plain(name): text for names, text in rows for name in names.split()}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _equinox(name: str) -> str:
    return f"equinox.nn.{name} can stand in for it, as a child of a module."


_ACTIVATION = "Activations are functions of JAX, such as jax.nn.relu; in a Sequential they stand as they are."
_STATE = 'Write self.add_parameter("name", ..., trainable=False) and self.update_parameter("name", value).'
_FUNCTION = "A function of targets and predictions does as well, such as those of Optax."
_KEYS = "Keys are given where they are used: init(x, rng=key), apply(x, rng=key); inside call, elegy.next_rng_key()."

LAYERS = _table(
    ("Dense", "Write elegy.nn.Linear."),
    ("DenseGeneral LinearGeneral Einsum", "Write elegy.nn.Linear for the last axis, or add_parameter and jnp.einsum."),
    ("BatchNorm BatchNorm1d BatchNorm2d BatchNorm3d", "Write elegy.nn.BatchNormalization."),
    ("Conv Convolution", "Write elegy.nn.Conv1D, elegy.nn.Conv2D or elegy.nn.Conv3D."),
    ("ConvTranspose ConvTranspose1D ConvTranspose2D ConvTranspose3D", _not_here("Transposed convolutions are")),
    (
        "Dropout1d Dropout2d Dropout3d SpatialDropout1D SpatialDropout2D SpatialDropout3D DropPath",
        _not_here("Dropout of whole channels is", "elegy.nn.Dropout drops single elements."),
    ),
    ("Embed Embedding", _not_here("Embeddings are", _equinox("Embedding"))),
    ("LayerNorm LayerNormalization", _not_here("Layer normalisation is", _equinox("LayerNorm"))),
    ("GroupNorm GroupNormalization", _not_here("Group normalisation is", _equinox("GroupNorm"))),
    ("InstanceNorm InstanceNormalization", _not_here("Instance normalisation is", _equinox("GroupNorm"))),
    ("RMSNorm RMSNormalization", _not_here("RMS normalisation is", _equinox("RMSNorm"))),
    ("SpectralNorm SpectralNormalization WeightNorm", _not_here("This normalisation is")),
    (
        "MultiHeadDotProductAttention MultiHeadAttention SelfAttention Attention DotProductAttention",
        _not_here("Attention is", _equinox("MultiheadAttention")),
    ),
    (
        "Transformer TransformerEncoder TransformerDecoder TransformerEncoderLayer TransformerDecoderLayer",
        _not_here("Transformers are"),
    ),
    (
        "MaxPool MaxPool1d MaxPool2d MaxPool3d MaxPooling1D MaxPooling2D MaxPooling3D AvgPool AvgPool1d AvgPool2d "
        "AvgPool3d AveragePooling1D AveragePooling2D AveragePooling3D GlobalAveragePooling1D GlobalAveragePooling2D "
        "GlobalMaxPooling2D AdaptiveAvgPool2d avg_pool max_pool",
        _not_here("Pooling is", "jnp.mean and jax.lax.reduce_window compute it."),
    ),
    (
        "RNN LSTM GRU LSTMCell GRUCell OptimizedLSTMCell SimpleCell VanillaRNN Bidirectional SimpleRNN",
        _not_here("Recurrent layers are", "equinox.nn.LSTMCell and elegy.scan can stand in for them."),
    ),
    ("Reshape", _not_here("It is", "jnp.reshape in call does it; elegy.nn.Flatten flattens.")),
    (
        "ReLU GELU SiLU Swish Softmax LogSoftmax Sigmoid Tanh LeakyReLU ELU Softplus PReLU Mish Activation",
        _ACTIVATION,
    ),
    ("swish log_softmax leaky_relu silu elu softplus", _ACTIVATION),
    ("Identity", "Write lambda x: x."),
    ("Lambda", "Functions stand in a Sequential as they are; elegy.to_module(f) makes a module of one."),
    ("MLP", "Write elegy.nn.Sequential(lambda: [elegy.nn.Linear(64), jax.nn.relu, elegy.nn.Linear(1)])."),
    ("ModuleList ModuleDict List Dict", "Lists, tuples and dicts of modules are attributes as they are."),
    ("LoRALinear LoRAParam", "Write elegy.nn.LoRA."),
)

EVERYTHING = _table(
    ("nnx linen", "Modules are classes derived from elegy.Module, and layers are in elegy.nn."),
    ("transform transform_with_state without_apply_rng", "Nothing is to be transformed: module.init, module.apply."),
    ("filter_jit", "Write elegy.jit, or jax.jit: it takes modules as they are."),
    ("filter_grad", "Write elegy.grad."),
    ("filter_value_and_grad", "Write elegy.value_and_grad."),
    ("filter_vmap", "Write elegy.vmap, or jax.vmap."),
    ("filter_pmap pmap", "Write elegy.jit with shardings: jax.set_mesh, in_shardings=."),
    ("filter_checkpoint checkpoint", "Write elegy.remat."),
    ("filter_eval_shape eval_shape", "Write jax.eval_shape: it takes modules as they are."),
    ("filter is_array is_inexact_array split", "Write elegy.partition, which knows what is trainable."),
    ("merge", "Write elegy.combine."),
    ("tree_at", "equinox.tree_at works on modules; see also elegy.select and module.set_parameters."),
    ("tree_serialise_leaves serialise", "Write elegy.save."),
    ("tree_deserialise_leaves deserialise restore", "Write elegy.load."),
    ("static_field field", "Declare nothing: what is not an array is static."),
    ("Rngs PRNGSequence", f"Write elegy.RNG. {_KEYS}"),
    ("make_rng next_rng_keys maybe_next_rng_key", "Write elegy.next_rng_key()."),
    (
        "Param Parameter Variable get_parameter param",
        'Write self.add_parameter("name", shape, initializer=...) in call.',
    ),
    ("BatchStat State StateIndex get_state set_state variable", _STATE),
    ("sow Intermediate capture_intermediates", "Write elegy.add_summary, and read it in elegy.hooks_context."),
    ("inference_mode", "Write elegy.training_context(False), or module.apply(x, training=False)."),
    ("make_with_state", "State is a part of a module: apply returns the module with its new state."),
    ("TrainState", "Write a module and elegy.Optimizer(optax.adam(1e-3))."),
    ("Layer", "Write elegy.Module, and define call."),
    ("Callback callbacks EarlyStopping ModelCheckpoint", "Derive from elegy.model.Callback."),
    ("History", "It is elegy.model.History."),
    ("optimizers", "Optimisers are those of Optax: elegy.Optimizer(optax.adam(1e-3))."),
    ("regularizers L1 L2 L1L2 GlobalL2", _not_here("Regularisers are", "elegy.add_loss in call does it.")),
    ("nets ResNet resnet VGG", _not_here("Ready-made networks are")),
    ("data datasets Dataset DataLoader", _not_here("Data sets and loaders are")),
    ("tabulate summary summarize", "Write print(module)."),
    ("no_grad stop_gradient", "Write jax.lax.stop_gradient, or module.trainable = False."),
)

LOSSES = _table(
    ("MSE mse MSELoss MeanSquaredErrorLoss squared_error l2_loss L2Loss", "Write elegy.losses.MeanSquaredError."),
    (
        "CrossEntropy CrossEntropyLoss softmax_cross_entropy_with_integer_labels softmax_cross_entropy NLLLoss",
        "Write elegy.losses.SparseCategoricalCrossentropy for integer labels; for others give the function of Optax.",
    ),
    (
        "CategoricalCrossentropy CategoricalCrossEntropy",
        _not_here("It is", "optax.softmax_cross_entropy works in a Model as it is."),
    ),
    (
        "BinaryCrossentropy BinaryCrossEntropy BCELoss BCEWithLogitsLoss sigmoid_binary_cross_entropy",
        _not_here("It is", "optax.sigmoid_binary_cross_entropy works in a Model as it is."),
    ),
    ("Huber HuberLoss huber_loss SmoothL1Loss", _not_here("It is", "optax.huber_loss works in a Model as it is.")),
    (
        "MeanAbsoluteError MAE L1Loss MeanAbsolutePercentageError MeanSquaredLogarithmicError CosineSimilarity "
        "KLDivergence",
        _not_here("It is", _FUNCTION),
    ),
)

METRICS = _table(
    ("Accuracy acc", "Write elegy.metrics.SparseCategoricalAccuracy for integer labels."),
    (
        "CategoricalAccuracy BinaryAccuracy TopKCategoricalAccuracy Precision Recall F1 F1Score AUC BinaryCrossentropy "
        "MeanAbsoluteError MeanSquaredError ConfusionMatrix",
        _not_here("It is", _FUNCTION),
    ),
    ("MultiMetric Reduce", "Give elegy.Model a list or dict of metrics."),
    ("Sum", "Derive from elegy.metrics.Metric."),
)

# Names of values that other libraries take as strings.
_STRINGS = {
    "loss": _table(
        ("mse mean_squared_error", "loss=elegy.losses.MeanSquaredError()"),
        (
            "sparse_categorical_crossentropy crossentropy cross_entropy",
            "loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True)",
        ),
        ("categorical_crossentropy", "loss=optax.softmax_cross_entropy"),
        ("binary_crossentropy bce", "loss=optax.sigmoid_binary_cross_entropy, which takes logits"),
        ("huber huber_loss", "loss=optax.huber_loss"),
        ("mae mean_absolute_error l1", "loss=lambda y_true, y_pred: jnp.abs(y_true - y_pred)"),
    ),
    "metric": _table(
        (
            "accuracy acc sparse_categorical_accuracy",
            "metrics=elegy.metrics.SparseCategoricalAccuracy()",
        ),
        ("mse mean_squared_error", "metrics=elegy.losses.mean_squared_error"),
        ("mae mean_absolute_error", "metrics=lambda y_true, y_pred: jnp.abs(y_true - y_pred)"),
    ),
}
_DEFAULTS = {
    "loss": "loss=elegy.losses.MeanSquaredError(), or any function of y_true and y_pred",
    "metric": "metrics=elegy.metrics.SparseCategoricalAccuracy(), or any function of y_true and y_pred",
}


def object_for(kind: str, name: str) -> str:
    """What to give a `Model` instead of the name of a loss or metric."""
    return f"Give the object instead of its name: {_STRINGS[kind].get(_plain(name), _DEFAULTS[kind])}."


def optimizer_for(name: str) -> str:
    """What to give a `Model` instead of the name of an optimiser."""
    import optax

    given = name.lower() if isinstance(getattr(optax, name.lower(), None), types.FunctionType) else "adam"
    return f"Give the object instead of its name: optimizer=optax.{given}(1e-3)."


# ---------------------------------------------------------------------------------------------------------------------
# Names in modules of Python
# ---------------------------------------------------------------------------------------------------------------------


def missing_attribute(
    namespace: str, public: Iterable[str], table: Mapping[str, str], elsewhere: Sequence[str] = ()
) -> Callable[[str], tp.Any]:
    """The `__getattr__` of a module of Python: it raises `AttributeError`, and says what to write instead.

    **Arguments:**

    - `namespace`: the name of the module, `elegy.nn`.
    - `public`: its public names.
    - `table`: what to write instead of names of other libraries.
    - `elsewhere`: other modules, whose names may have been looked for in this one.
    """

    def __getattr__(name: str) -> tp.Any:
        message = f"module {namespace!r} has no attribute {name!r}"
        if not name.startswith("_") and (hint := _instead(name, namespace, public, table, elsewhere)):
            message += f".\n  {hint}"
        # Without obj=, by which Python would add a guess of its own to the traceback.
        raise AttributeError(message, name=name)

    return __getattr__


def _instead(
    name: str, namespace: str, public: Iterable[str], table: Mapping[str, str], elsewhere: Sequence[str]
) -> str | None:
    others = {place: _public_names(place) for place in elsewhere}
    for place, names in others.items():
        if name in names:
            return f"Write {place}.{name}."
    here = {_plain(known): f"{namespace}.{known}" for known in public}
    if _plain(name) in here:
        return f"Write {here[_plain(name)]}."
    if hint := table.get(_plain(name)):
        return hint
    for place, names in others.items():
        here = {_plain(known): f"{place}.{known}" for known in names} | here
    close = difflib.get_close_matches(_plain(name), here, n=1, cutoff=0.75)
    return f"Did you mean {here[close[0]]}?" if close else None


def _public_names(place: str) -> list[str]:
    module = importlib.import_module(place)
    package = place.partition(".")[0]
    return getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and str(getattr(value, "__module__", "")).partition(".")[0] == package
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Arguments of constructors
# ---------------------------------------------------------------------------------------------------------------------

_KEYWORDS = _table(
    ("features out_features units output_dim out_size output_features", "output_size output_channels"),
    ("out_channels channels filters output_size", "output_channels output_size"),
    ("output_channels", "output_size"),
    ("kernel_size kernel", "kernel_shape"),
    ("strides window_strides", "stride"),
    ("dilation dilation_rate kernel_dilation rhs_dilation", "rate"),
    ("use_bias bias", "with_bias"),
    ("kernel_init weight_init kernel_initializer weight_initializer", "w_init"),
    ("bias_init bias_initializer", "b_init"),
    ("feature_group_count", "groups"),
    ("p drop_rate drop_prob", "rate"),
    ("momentum decay", "decay_rate"),
    ("epsilon", "eps"),
    ("use_scale scale", "create_scale"),
    ("center offset use_offset", "create_offset"),
    ("gamma_init gamma_initializer", "scale_init"),
    ("beta_init beta_initializer", "offset_init"),
    ("axis_name", "cross_replica_axis"),
    ("param_dtype", "dtype"),
    ("n_layers num_layers length size num", "n"),
)
_EXPLAINED = _table(
    ("key rng rngs seed", "Constructors take no keys: parameters are drawn by init(x, rng=key), or by the first call."),
    (
        "in_features in_channels input_size in_size input_dim input_shape num_features num_channels",
        "The size of the input is inferred by the first call.",
    ),
    (
        "deterministic inference use_running_average training is_training train",
        "The mode is no argument of a constructor: elegy.training_context(False), apply(x, training=False).",
    ),
    ("activation", "Call the activation on the output: jax.nn.relu(layer(x))."),
)


def better_error(cls: type, args: tuple[tp.Any, ...], kwargs: dict[str, tp.Any]) -> TypeError | None:
    """An error that says which arguments a constructor has, if it was given one that it has not; else None."""
    try:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [name for name in kwargs if name not in known]
    if not unknown:
        return None
    where = f"elegy.nn.{cls.__name__}" if cls.__module__.startswith("elegy.nn.") else cls.__qualname__
    hints = [_instead_of_keyword(name, known) for name in unknown]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and len(args) > 1 and all(map(_is_size, args)):
        hints.append("The size of the input is inferred by the first call: give none.")
    hints.append(f"Its arguments are {', '.join(known)}." if known else "It takes none by name.")
    what = "an unexpected keyword argument" if len(unknown) == 1 else "unexpected keyword arguments"
    lines = "\n  ".join(dict.fromkeys(filter(None, hints)))
    return TypeError(f"{where} got {what} {', '.join(map(repr, unknown))}.\n  {lines}")


def _is_size(value: tp.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _instead_of_keyword(name: str, known: list[str]) -> str | None:
    candidates = [word for word in _KEYWORDS.get(_plain(name), "").split() if word in known]
    candidates = candidates or difflib.get_close_matches(name, known, n=1)
    if candidates:
        return f"For {name}= write {candidates[0]}=."
    return _EXPLAINED.get(_plain(name))


_IN_CALLS = _table(
    (
        "key rng rngs",
        "Keys are given to init(x, rng=key) and apply(x, rng=key); in call, elegy.next_rng_key() draws one.",
    ),
    (
        "train training is_training deterministic inference use_running_average eval",
        "The mode is given to apply(x, training=False), or set by elegy.training_context(False); in call, "
        "elegy.training() reads it.",
    ),
    ("mutable", "Nothing is to be declared mutable: apply(x) returns the module with its new state."),
)


def hint_for_call(error: Exception, kwargs: Iterable[str]) -> str | None:
    """What to write instead of an argument that a `call` does not have."""
    if not isinstance(error, TypeError) or "unexpected keyword argument" not in str(error):
        return None
    return next(
        (_IN_CALLS[_plain(name)] for name in kwargs if repr(name) in str(error) and _plain(name) in _IN_CALLS), None
    )
