"""Which loss judges a model, and what labels it wants.

choice = choose_loss(model, saved=state.compiled, requested=None)
model.compile(loss=choice.keras_loss(), metrics=choice.keras_metrics())
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras

from kresume.errors import ModelError, UsageError

Kind = Literal["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"]
KINDS: tuple[Kind, ...] = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")


@dataclass(frozen=True)
class LossChoice:
    """A cross-entropy.

    Attributes:
        kind: Keras's name of it.
        from_logits: whether the model's outputs are logits.
        label_smoothing: as Keras defines it; always 0 for the sparse kind.
        reason: why this one, for the plan.
    """

    kind: Kind
    from_logits: bool
    label_smoothing: float
    reason: str

    @property
    def one_hot(self) -> bool:
        """Whether labels are rows of probabilities rather than indices."""
        return self.kind == "categorical_crossentropy"

    @property
    def outputs(self) -> Literal["probabilities", "logits", "binary", "binary-logits"]:
        """What the model's outputs are, for scoring."""
        if self.kind == "binary_crossentropy":
            return "binary-logits" if self.from_logits else "binary"
        return "logits" if self.from_logits else "probabilities"

    def keras_loss(self) -> Any:
        """The Keras loss object."""
        if self.kind == "sparse_categorical_crossentropy":
            return keras.losses.SparseCategoricalCrossentropy(from_logits=self.from_logits)
        if self.kind == "categorical_crossentropy":
            return keras.losses.CategoricalCrossentropy(
                from_logits=self.from_logits, label_smoothing=self.label_smoothing
            )
        return keras.losses.BinaryCrossentropy(from_logits=self.from_logits, label_smoothing=self.label_smoothing)

    def keras_metrics(self) -> list[Any]:
        """The training accuracy in the form that these labels need."""
        if self.kind == "sparse_categorical_crossentropy":
            return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        if self.kind == "categorical_crossentropy":
            return [keras.metrics.CategoricalAccuracy(name="accuracy")]
        return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if self.from_logits else 0.5)]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, as `run.json` pins it."""
        return dict(vars(self))


def check_metrics(names: Sequence[str]) -> None:
    """Refuses a metric that Keras does not have.

    Raises:
        UsageError: the message gives the nearest name.
    """
    for name in names:
        try:
            keras.metrics.get(name)
        except ValueError as error:
            near = difflib.get_close_matches(name, [each for each in dir(keras.metrics) if each[0].isalpha()], 1)
            hint = f"did you mean {near[0]}?" if near else "AUC or top_k_categorical_accuracy, for example"
            raise UsageError(f"--metric {name}: Keras has no such metric: {hint}") from error


def last_activation(model: keras.Model) -> str | None:
    """The name of the activation that gives the model's outputs, through nested models; None if none can be read."""
    layer: Any = model
    while isinstance(layer, keras.Model) and layer.layers:
        layer = layer.layers[-1]
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", None)


def output_count(model: keras.Model) -> int:
    """How many numbers the model gives per image.

    Raises:
        ModelError: it has several outputs, or one that is no vector.
    """
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise ModelError(
            f"the model's output has the shape {shape}; kresume trains one image to one label, so it must be "
            "(batch, classes). Models with several outputs: use kresume.BackupAndRestore in your own fit"
        )
    return int(shape[1])


def compiled_by_function(model: keras.Model) -> Mapping[str, Any] | None:
    """Keras's compile config of a model that the user's own function compiled; None for one that nobody did."""
    config: Mapping[str, Any] | None = model.get_compile_config() if model.compiled else None
    return config


def _saved_choice(saved: Mapping[str, Any] | None) -> tuple[Kind, bool, float] | None:
    loss: Any = (saved or {}).get("loss")
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    if isinstance(loss, str):
        names: dict[str, Kind] = {kind: kind for kind in KINDS}
        return (names[loss], False, 0.0) if loss in names else None
    if isinstance(loss, Mapping):
        classes: dict[str, Kind] = {
            "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
            "CategoricalCrossentropy": "categorical_crossentropy",
            "BinaryCrossentropy": "binary_crossentropy",
        }
        config = loss.get("config") or {}
        if isinstance(config, str):  # a function such as keras.losses.categorical_crossentropy
            return _saved_choice({"loss": config})
        kind = classes.get(str(loss.get("class_name")))
        if kind is not None:
            return kind, bool(config.get("from_logits", False)), float(config.get("label_smoothing", 0.0))
    return None


def choose_loss(
    model: keras.Model,
    *,
    saved: Mapping[str, Any] | None = None,
    requested: str | None = None,
    soft_labels: bool = False,
) -> LossChoice:
    """Decides the loss: the one asked for, else the checkpoint's if it is a known cross-entropy, else by the outputs.

    Args:
        model: a built classifier.
        saved: Keras's compile config from the checkpoint.
        requested: `--loss`, one of `KINDS`.
        soft_labels: labels are rows of probabilities (MixUp), which the sparse kind cannot judge.

    Raises:
        UsageError: `requested` is none of `KINDS`, or does not fit the model's outputs.
        ModelError: the outputs are no row of classes.
    """
    count = output_count(model)
    activation = last_activation(model)
    if requested is not None:
        if requested not in KINDS:
            raise UsageError(f"--loss {requested}: kresume trains classifiers with one of {', '.join(KINDS)}")
        kind: Kind = next(kind for kind in KINDS if kind == requested)
        from_logits, smoothing, reason = activation not in {"softmax", "sigmoid"}, 0.0, "--loss"
    elif (found := _saved_choice(saved)) is not None:
        kind, from_logits, smoothing = found
        reason = "the checkpoint's"
    else:
        kind = "binary_crossentropy" if count == 1 else "sparse_categorical_crossentropy"
        from_logits, smoothing = activation not in {"softmax", "sigmoid"}, 0.0
        reason = f"from the last activation, {activation or 'unknown'}"
    if (kind == "binary_crossentropy") != (count == 1):
        raise UsageError(
            f"the loss {kind} does not fit a model with {count} output{'s' if count > 1 else ''} "
            f"({reason}): give --loss {'binary_crossentropy' if count == 1 else 'sparse_categorical_crossentropy'}"
        )
    if soft_labels and kind == "binary_crossentropy":
        raise UsageError("--mixup and --cutmix need a model with one output per class; this one has a single output")
    if soft_labels and kind == "sparse_categorical_crossentropy":
        kind, reason = "categorical_crossentropy", f"{reason}; for mixed labels"
    return LossChoice(kind, from_logits, smoothing, reason)
