"""What users of other libraries write, and what to write instead: for the errors of names and arguments that are not
here. Used only where such an error is raised."""

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


_ACTIVATION = "Activations are functions of JAX, such as jax.nn.relu; in a Sequential they stand as they are."
_STATE = 'Write self.add_parameter("name", ..., trainable=False) and self.update_parameter("name", value).'
_KEYS = "Keys are given where they are used: init(x, rng=key), apply(x, rng=key); inside call, elegy.next_rng_key()."

LAYERS = _table(
    ("Dense", "Write elegy.nn.Linear."),
    ("DenseGeneral", "Write elegy.nn.LinearGeneral."),
    ("EinsumDense", "Write elegy.nn.Einsum."),
    ("BatchNorm BatchNorm1d BatchNorm2d BatchNorm3d", "Write elegy.nn.BatchNormalization."),
    ("LayerNorm", "Write elegy.nn.LayerNormalization."),
    ("RMSNorm", "Write elegy.nn.RMSNormalization."),
    ("GroupNorm", "Write elegy.nn.GroupNormalization."),
    ("InstanceNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d", "Write elegy.nn.InstanceNormalization."),
    ("SpectralNorm", "Write elegy.nn.SpectralNormalization around the layer."),
    ("WeightNorm", "Write elegy.nn.WeightNormalization around the layer."),
    ("Conv Convolution", "Write elegy.nn.Conv1D, elegy.nn.Conv2D or elegy.nn.Conv3D."),
    (
        "ConvTranspose ConvTranspose1D ConvTranspose2D ConvTranspose3D",
        "Write elegy.nn.Conv1DTranspose, elegy.nn.Conv2DTranspose or elegy.nn.Conv3DTranspose.",
    ),
    ("SeparableDepthwiseConv2D", "Write elegy.nn.SeparableConv2D."),
    (
        "Dropout1d Dropout2d Dropout3d SpatialDropout1D SpatialDropout2D SpatialDropout3D",
        "Write elegy.nn.Dropout with shared_axes= of the spatial axes: elegy.nn.Dropout(0.5, shared_axes=(1, 2)).",
    ),
    ("StochasticDepth", "Write elegy.nn.DropPath."),
    ("Embed", "Write elegy.nn.Embedding."),
    (
        "MultiHeadDotProductAttention SelfAttention Attention DotProductAttention GroupQueryAttention",
        "Write elegy.nn.MultiHeadAttention, or jax.nn.dot_product_attention without projections.",
    ),
    ("RotaryPositionalEmbedding RoPE", "Write elegy.nn.RotaryEmbedding."),
    ("MaxPool1d MaxPool2d MaxPool3d MaxPooling1D MaxPooling2D MaxPooling3D", "Write elegy.nn.MaxPool."),
    (
        "AvgPool1d AvgPool2d AvgPool3d AveragePooling1D AveragePooling2D AveragePooling3D",
        "Write elegy.nn.AvgPool.",
    ),
    ("GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D", "Write elegy.nn.GlobalAvgPool."),
    ("GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D", "Write elegy.nn.GlobalMaxPool."),
    ("AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d", "Write elegy.nn.AdaptiveAvgPool."),
    ("UpSampling1D UpSampling2D UpSampling3D", "Write elegy.nn.Upsample."),
    ("Resizing", "Write elegy.nn.Resize."),
    ("OptimizedLSTMCell", "Write elegy.nn.LSTMCell."),
    ("SimpleCell VanillaRNN", "Write elegy.nn.SimpleRNNCell."),
    ("ConvLSTM ConvLSTM1D ConvLSTM2D ConvLSTM3D", "Write elegy.nn.RNN(elegy.nn.ConvLSTMCell(...))."),
    ("dynamic_unroll static_unroll", "Write elegy.nn.RNN(cell)."),
    (
        "ReLU GELU SiLU Swish Softmax LogSoftmax Sigmoid Tanh LeakyReLU ELU Softplus Mish Activation",
        _ACTIVATION,
    ),
    ("swish log_softmax leaky_relu silu elu softplus", _ACTIVATION),
    ("ModuleList ModuleDict List Dict", "Lists, tuples and dicts of modules are attributes as they are."),
    ("LoRALinear LoRAParam", "Write elegy.nn.LoRA."),
    ("ZeroPadding1D ZeroPadding2D ZeroPadding3D pad", "Write jnp.pad in call, or padding= of the convolution."),
    ("Concatenate Add Multiply Average Subtract Permute", "Write the function of jax.numpy in call."),
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
    ("layers", "Layers are in elegy.nn."),
    ("Input InputLayer", "Inputs are not declared: sizes come from the first input."),
    (
        "load_model save_model",
        "Write model.save(directory) and model.load(directory, ...); for the module alone elegy.save and elegy.load.",
    ),
    ("optimizers", "Optimisers are those of Optax: elegy.Optimizer(optax.adam(1e-3))."),
    ("Policy mixed_precision DTypePolicy", "Write module.dtype_policy = elegy.DtypePolicy(...)."),
    ("nets ResNet resnet VGG", _not_here("Ready-made networks are")),
    ("datasets", _not_here("Data sets are")),
    ("tabulate summarize", "Write elegy.summary(module, x)."),
    ("no_grad stop_gradient", "Write jax.lax.stop_gradient, or module.trainable = False."),
)

CALLBACKS = _table(
    (
        "BackupAndRestore OrbaxCheckpoint",
        "Write elegy.callbacks.ModelCheckpoint(directory), and fit(..., resume=directory).",
    ),
    ("SwapEMAWeights WeightAveraging ExponentialMovingAverage StochasticWeightAveraging", "Write elegy.callbacks.EMA."),
    ("ProgbarLogger TQDMProgressBar RichProgressBar", "Write elegy.callbacks.ProgressBar."),
    ("LRScheduler", "Write elegy.callbacks.LearningRateScheduler."),
)

# Attributes of a model that trains.
MODEL = _table(
    ("compile", "What compile takes is given at the start: elegy.Model(module, loss=..., metrics=..., optimizer=...)."),
    (
        "get_weights weights variables trainable_variables trainable_weights parameters state_dict",
        "Write model.module.get_parameters(), a nested dict of arrays by name.",
    ),
    ("set_weights load_state_dict", "Write model.module.set_parameters(values), of a nested dict by name."),
    ("save_weights save_checkpoint", "Write model.save(directory); or elegy.save(file, model.module)."),
    ("load_weights load_checkpoint restore", "Write model.load(directory, x, y, weights_only=True)."),
    (
        "layers get_layer",
        "Layers are attributes of model.module; elegy.select(model.module, Class) finds arrays of theirs.",
    ),
    ("trainable", "Write model.module.trainable = False, or freeze what is in it."),
    ("count_params", "Write model.summary(x), which counts."),
    ("fit_generator", "Write model.fit, which takes generators."),
    ("evaluate_generator", "Write model.evaluate, which takes generators."),
    ("predict_generator call forward apply", "Write model.predict(x), or model.module(x) for one batch."),
    ("train eval", "fit trains, and evaluate and predict do not; else there is elegy.training_context(False)."),
)

# Methods of callbacks, which would never be called.
HOOKS = _table(
    ("on_batch_begin on_train_batch_start on_batch_start on_step_begin", "on_train_batch_begin"),
    ("on_batch_end on_step_end", "on_train_batch_end"),
    ("on_epoch_start on_train_epoch_start on_train_epoch_begin", "on_epoch_begin"),
    ("on_train_epoch_end", "on_epoch_end"),
    ("on_train_start on_fit_start on_fit_begin on_training_begin on_training_start", "on_train_begin"),
    ("on_fit_end on_training_end", "on_train_end"),
    ("on_validation_start on_validation_begin on_validation_epoch_start on_test_start", "on_test_begin"),
    ("on_validation_end on_validation_epoch_end on_test_epoch_end", "on_test_end"),
    ("on_validation_batch_start on_validation_batch_begin on_test_batch_start", "on_test_batch_begin"),
    ("on_validation_batch_end", "on_test_batch_end"),
    ("on_save_checkpoint", "get_state"),
    ("on_load_checkpoint", "set_state"),
    ("on_exception", "close"),
)

LOSSES = _table(
    ("MSE mse MSELoss MeanSquaredErrorLoss squared_error l2_loss L2Loss", "Write elegy.losses.MeanSquaredError."),
    (
        "CrossEntropy CrossEntropyLoss softmax_cross_entropy_with_integer_labels softmax_cross_entropy NLLLoss",
        "Write elegy.losses.SparseCategoricalCrossentropy for integer labels, and elegy.losses.CategoricalCrossentropy "
        "for others.",
    ),
    ("BCELoss BCEWithLogitsLoss sigmoid_binary_cross_entropy", "Write elegy.losses.BinaryCrossentropy."),
    ("HuberLoss SmoothL1Loss", "Write elegy.losses.Huber."),
    ("MAE L1Loss", "Write elegy.losses.MeanAbsoluteError."),
    ("MAPE", "Write elegy.losses.MeanAbsolutePercentageError."),
    ("MSLE", "Write elegy.losses.MeanSquaredLogarithmicError."),
    ("KLDivLoss KLD", "Write elegy.losses.KLDivergence."),
    ("PoissonNLLLoss", "Write elegy.losses.Poisson."),
    ("CTCLoss", "Write elegy.losses.CTC."),
    ("TripletMarginLoss TripletLoss", "Write elegy.losses.Triplet."),
    ("InfoNCE", "Write elegy.losses.NTXent."),
    ("ContrastiveLoss", "Write elegy.losses.Contrastive."),
    ("CosineEmbeddingLoss CosineSimilarityLoss", "Write elegy.losses.CosineSimilarity."),
    ("FocalLoss", "Write elegy.losses.BinaryFocalCrossentropy or elegy.losses.CategoricalFocalCrossentropy."),
)

METRICS = _table(
    ("acc", "Write elegy.metrics.SparseCategoricalAccuracy for integer labels and scores of classes."),
    ("F1Score FBetaScore", "Write elegy.metrics.F1."),
    ("MAE", "Write elegy.metrics.MeanAbsoluteError."),
    ("MSE", "Write elegy.metrics.MeanSquaredError."),
    ("RMSE", "Write elegy.metrics.RootMeanSquaredError."),
    ("R2Score", "Write elegy.metrics.R2."),
    ("ROCAUC AUROC AveragePrecision", "Write elegy.metrics.AUC."),
    ("JaccardIndex BinaryIoU OneHotMeanIoU", "Write elegy.metrics.IoU or elegy.metrics.MeanIoU."),
    ("MultiMetric", "Give elegy.Model a list or dict of metrics."),
    ("Reduce", "Write elegy.metrics.Mean or elegy.metrics.Sum."),
)

# Names of values that other libraries take as strings.
_STRINGS = {
    "loss": _table(
        ("mse mean_squared_error", "loss=elegy.losses.MeanSquaredError()"),
        (
            "sparse_categorical_crossentropy crossentropy cross_entropy",
            "loss=elegy.losses.SparseCategoricalCrossentropy(from_logits=True)",
        ),
        ("categorical_crossentropy", "loss=elegy.losses.CategoricalCrossentropy(from_logits=True)"),
        ("binary_crossentropy bce", "loss=elegy.losses.BinaryCrossentropy(from_logits=True)"),
        ("huber huber_loss", "loss=elegy.losses.Huber()"),
        ("mae mean_absolute_error l1", "loss=elegy.losses.MeanAbsoluteError()"),
    ),
    "metric": _table(
        (
            "accuracy acc sparse_categorical_accuracy",
            "metrics=elegy.metrics.SparseCategoricalAccuracy()",
        ),
        ("binary_accuracy", "metrics=elegy.metrics.BinaryAccuracy()"),
        ("categorical_accuracy", "metrics=elegy.metrics.CategoricalAccuracy()"),
        ("mse mean_squared_error", "metrics=elegy.metrics.MeanSquaredError()"),
        ("mae mean_absolute_error", "metrics=elegy.metrics.MeanAbsoluteError()"),
        ("auc", "metrics=elegy.metrics.AUC()"),
    ),
}
_DEFAULTS = {
    "loss": "loss=elegy.losses.MeanSquaredError(), or any function of y_true and y_pred",
    "metric": "metrics=elegy.metrics.SparseCategoricalAccuracy(), or any function of y_true and y_pred",
}


def object_for(kind: str, name: str) -> str:
    """What to give a `Model` instead of the name of a loss or metric."""
    return f"Give the object instead of its name: {_STRINGS[kind].get(_plain(name), _DEFAULTS[kind])}."


def attribute_of_model(name: str) -> str | None:
    """What to write instead of an attribute that models of other libraries have; None for other names."""
    return None if name.startswith("_") else MODEL.get(_plain(name))


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
    ("features out_features units output_dim out_size output_features", "output_size output_channels embed_dim units"),
    ("out_channels channels filters output_size", "output_channels output_size"),
    ("output_channels", "output_size"),
    ("kernel_size kernel", "kernel_shape"),
    ("pool_size window_size", "window_shape"),
    ("strides window_strides stride", "stride strides"),
    ("dilation dilation_rate kernel_dilation rhs_dilation", "rate"),
    ("use_bias bias", "with_bias"),
    ("kernel_init weight_init kernel_initializer weight_initializer embedding_init", "w_init"),
    ("recurrent_kernel_init recurrent_initializer", "recurrent_init"),
    ("num_groups", "groups"),
    ("num_embeddings input_dim", "vocab_size"),
    ("embedding_dim output_dim", "embed_dim"),
    ("hidden_features hidden_size", "units"),
    ("n_heads nhead heads", "num_heads"),
    ("head_dim key_dim", "head_size"),
    ("num_key_value_heads num_query_groups", "num_kv_heads"),
    ("dim_feedforward intermediate_dim mlp_dim", "feedforward_size"),
    ("go_backwards", "reverse"),
    ("broadcast_dims noise_shape", "shared_axes"),
    ("dropout", "dropout_rate"),
    ("bias_init bias_initializer", "b_init"),
    ("feature_group_count", "groups"),
    ("p drop_rate drop_prob", "rate"),
    ("momentum decay", "decay_rate decay"),
    ("epsilon", "eps"),
    ("use_scale scale", "create_scale"),
    ("center offset use_offset", "create_offset"),
    ("gamma_init gamma_initializer", "scale_init"),
    ("beta_init beta_initializer", "offset_init"),
    ("axis_name", "cross_replica_axis"),
    ("param_dtype", "dtype"),
    ("n_layers num_layers length size num", "n"),
    ("restore_best_weights", "restore_best"),
    ("min_lr", "min_learning_rate"),
    ("log_dir logdir save_dir dirpath root", "directory url"),
    ("filename filepath", "path directory"),
    ("save_best_only", "best_only"),
    ("save_top_k max_to_keep", "keep"),
    ("histogram_freq", "histograms"),
    ("profile_batch", "profile"),
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


_OF_CALLBACKS = _table(
    ("verbose", "Callbacks print nothing; fit(verbose=...) shows the progress."),
    ("save_freq period", "Write every_epochs=1, or every_steps= for a number of batches."),
    (
        "save_weights_only",
        "A checkpoint has all that training depends on. For the parameters alone write elegy.save(path, model.module).",
    ),
    (
        "write_graph write_images write_steps_per_second embeddings_freq embeddings_metadata",
        "It writes logs, histograms= and profile= only.",
    ),
    ("field send_as_json", "Logs are sent to the url as JSON."),
    ("swap_on_epoch", "The average stands in during validation, and with at_end=True after training."),
)


def hook_for(name: str, hooks: Iterable[str]) -> str | None:
    """What a method of a callback is to be called that has a name which other libraries have for a hook, or nearly that
    of one of `hooks`, those that there are; None for any other name."""
    if not name.startswith("on"):
        return None
    here = {_plain(hook): hook for hook in hooks}
    close = difflib.get_close_matches(_plain(name), here, n=1, cutoff=0.9)  # a letter or two
    return HOOKS.get(_plain(name)) or (here[close[0]] if close else None)


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
    where = next(
        (f"{place}." for place in ("elegy.nn", "elegy.callbacks") if cls.__module__.startswith(f"{place}.")), ""
    )
    of_kind = _OF_CALLBACKS if where == "elegy.callbacks." else {}
    where = f"{where}{cls.__name__}" if where else cls.__qualname__
    if not unknown:
        return _too_many(where, args, parameters)
    hints = [of_kind.get(_plain(name)) or _instead_of_keyword(name, known) for name in unknown]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and len(args) > 1 and all(map(_is_size, args)):
        hints.append("The size of the input is inferred by the first call: give none.")
    hints.append(f"Its arguments are {', '.join(known)}." if known else "It takes none by name.")
    what = "an unexpected keyword argument" if len(unknown) == 1 else "unexpected keyword arguments"
    lines = "\n  ".join(dict.fromkeys(filter(None, hints)))
    return TypeError(f"{where} got {what} {', '.join(map(repr, unknown))}.\n  {lines}")


def _too_many(where: str, args: tuple[tp.Any, ...], parameters: list[inspect.Parameter]) -> TypeError | None:
    """An error that says which arguments are given by name, if they were given by their places."""
    placed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [f"{p.name}=" for p in parameters if p.kind is p.KEYWORD_ONLY]
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if takes_all or not named or len(args) <= len(placed):
        return None
    taken = f"only {', '.join(placed)}" if placed else "nothing"
    return TypeError(
        f"{where} got {len(args)} positional arguments, where it takes {taken}.\n"
        f"  Give the others by name: {', '.join(named)}."
    )


def _is_size(value: tp.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _instead_of_keyword(name: str, known: list[str]) -> str | None:
    candidates = [word for word in _KEYWORDS.get(_plain(name), "").split() if word in known]
    if not candidates and (hook := hook_for(name, known)) in known:
        candidates = [hook]
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
