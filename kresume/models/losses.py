"""Chooses the loss that trains a model, which names its task and the form of targets.

    choice = choose_loss(model, saved=state.compiled, code=code)
    model.compile(loss=choice.keras_loss(), loss_weights=choice.weight, metrics=choice.keras_metrics())
    choice.head.probabilities(model.predict_on_batch(images))

The checkpoint's loss is kept, whether it is one of Keras's with its settings or a user's own. `from_logits` is read
from the model's outputs (`outputs.py`), not from the loss: `from_logits=True` behind a softmax is a mistake that only
TensorFlow's graphs correct. If a loss cannot be rebuilt, the error names it and says what to give.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from kresume.errors import ModelError, UsageError
from kresume.models.outputs import Outputs, output_count, read_outputs
from kresume.models.own_code import OwnCode
from kresume.models.saved_loss import (
    aims_at_0_and_1,
    find_form,
    find_loss,
    live_entry,
    make_loss,
    name_of,
    of_keras,
    snake,
)
from kresume.models.shapes import input_shape_of
from kresume.spelling import option, respelled
from kresume.tasks.table import LOSSES, class_count, form_of, head_of, task_of_loss, task_of_outputs
from kresume.tasks.task import Head
from kresume.values.loss import Loss

SHOWN = {"label_smoothing": 0.0, "ignore_class": None, "reduction": "sum_over_batch_size"}
"""Settings that the plan shows if they differ from these values."""
ALWAYS = frozenset(
    {"accuracy", "acc", "sparse_categorical_accuracy", "categorical_accuracy", "binary_accuracy", "crossentropy", "ce"}
    | {"sparsecategoricalaccuracy", "categoricalaccuracy", "binaryaccuracy"}
)
"""Names, in lower case, of metrics that are always computed."""


@dataclass(frozen=True)
class LossChoice(Loss):
    """A loss that trains.

    Attributes:
        live: loss object created by the user's code; None if the record describes it. Not recorded.
    """

    live: Any = field(default=None, compare=False, repr=False)

    @property
    def form(self) -> str:
        """Returns the form of targets that the loss expects."""
        return form_of(self)

    @property
    def head(self) -> Head:
        """Returns how the model answers."""
        return head_of(self)

    def target_spec(self, batch_size: int, classes: int) -> tuple[tuple[int, ...], str]:
        """Returns shape and dtype of a batch of targets."""
        return self.head.task.target_spec(self.form, batch_size, classes)

    def keras_loss(self) -> Any:
        """Creates the Keras loss object.

        Raises:
            UsageError: the loss is the user's own and its code was not given.
        """
        if self.live is not None:
            return self.live
        if self.settings is not None:
            return make_loss(self.settings, OwnCode())
        return self.head.task.keras_loss(self.kind, self.from_logits, self.label_smoothing)

    @classmethod
    def of_record(cls, record: Loss) -> LossChoice:
        """Returns the loss of a run without the object that the user's code creates; see `from_record`."""
        return cls(**record.as_dict())

    def portable(self) -> LossChoice:
        """Returns this loss if plain Keras finds it by name, else the matching cross-entropy."""
        if self.settings is None or "compiled_by" not in self.settings:
            return self
        kind = next(kind for kind, form in LOSSES.items() if form == self.form)
        lost = f"plain Keras cannot find the loss {self.kind} by its name"
        return replace(self, kind=kind, settings=None, live=None, lost=lost)

    def keras_metrics(self) -> list[Any]:
        """Returns the training metrics of the task."""
        return self.head.task.keras_metrics(self.form, self.from_logits)


def from_record(record: Loss, code: OwnCode) -> LossChoice:
    """Rebuilds the loss of a run from its record.

    Args:
        record: the loss that `run.json` stores.
        code: the user's code that the run names.

    Raises:
        UsageError: the user's own loss is no longer in that code.
    """
    choice = LossChoice.of_record(record)
    return choice if choice.settings is None else replace(choice, live=make_loss(choice.settings, code))


def check_metrics(names: Sequence[str]) -> None:
    """Checks that Keras has every metric.

    Raises:
        UsageError: a metric is unknown; the message gives the nearest name.
    """
    for name in names:
        try:
            keras.metrics.get(name)
        except ValueError as error:
            near = difflib.get_close_matches(name, [each for each in dir(keras.metrics) if each[0].isalpha()], 1)
            hint = f"did you mean {near[0]}?" if near else "AUC or top_k_categorical_accuracy, for example"
            raise UsageError(f"{option('metric', name)}: Keras has no such metric: {hint}") from error
        except TypeError as error:
            raise UsageError(f"{option('metric', name)}: a name alone does not make it ({error})") from error


def unused_metrics(saved: Mapping[str, Any] | None, asked: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the checkpoint's metrics that are not computed.

    Args:
        saved: Keras's compile config from the checkpoint.
        asked: metrics requested by `--metric`.
    """
    found = [*_metrics((saved or {}).get("metrics")), *_metrics((saved or {}).get("weighted_metrics"))]
    known = {*ALWAYS, *(name.lower() for name in asked)}
    left = [name for name, what in found if not {name.lower(), what.lower()} & known]
    return tuple(dict.fromkeys(left))


def _metrics(saved: Any) -> list[tuple[str, str]]:
    """Returns (name, class or function) of each metric in a compile config."""
    if isinstance(saved, str):
        return [(saved, saved)]
    if isinstance(saved, (list, tuple)):
        return [found for item in saved for found in _metrics(item)]
    if not isinstance(saved, Mapping):
        return []
    if "class_name" not in saved:  # a mapping by output name
        return [found for item in saved.values() for found in _metrics(item)]
    config = saved.get("config")
    if not isinstance(config, Mapping):
        return [(str(config), str(config))]
    what = config["fn"] if isinstance(config.get("fn"), str) else saved["class_name"]
    return [(str(config.get("name") or what), str(what))]


def compiled_by_function(model: keras.Model) -> Mapping[str, Any] | None:
    """Returns the compile config of a model from a user's function or file; None if uncompiled."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The object being serialized includes a `lambda`")  # it is not stored
        config: Mapping[str, Any] | None = model.get_compile_config() if model.compiled else None
    return config


def choose_loss(
    model: keras.Model,
    *,
    saved: Mapping[str, Any] | None = None,
    requested: str | None = None,
    soft_labels: bool = False,
    code: OwnCode | None = None,
    trains: bool = True,
) -> LossChoice:
    """Chooses the loss to train with.

    The order is: the requested loss, the checkpoint's, that of the user's function, a default for the outputs.

    Args:
        model: a built classifier; compiled if the user's function compiles it.
        saved: Keras's compile config from the checkpoint.
        requested: `--loss`, the loss of a task.
        soft_labels: True if labels are mixed (MixUp), which only some losses accept.
        code: the user's code, which may define a loss.
        trains: False if nothing is trained; a loss that cannot be built is then named in `lost` and replaced.

    Raises:
        UsageError: `requested` is no task's loss, or the loss does not fit the model's outputs or cannot be built.
        ModelError: the output does not have the shape `(batch, classes)`.
    """
    count, outputs, code = output_count(model), read_outputs(model), code or OwnCode()
    default = task_of_outputs(count).default_loss
    entry, reason, weights = find_loss(saved), "the checkpoint's", (saved or {}).get("loss_weights")
    if entry is None and model.compiled:
        entry, reason = live_entry(model.loss), "as --model compiles it"
        weights = (compiled_by_function(model) or {}).get("loss_weights")
    if requested is not None:
        if requested not in LOSSES:
            raise UsageError(f"{option('loss', requested)}: kresume trains classifiers with one of {', '.join(LOSSES)}")
        _check_count(requested, count, "--loss")
        choice = _by_kind(requested, outputs, "--loss")
        choice = replace(choice, note=_replaced(entry, requested, code))
    elif entry is None:
        words = f"from the last activation, {outputs.activation}" if outputs.activation else outputs.because
        choice = _by_kind(default, outputs, words or "from the last activation, unknown")
    else:
        try:
            choice = _as_saved(entry, reason, model, count, outputs, code)
        except (UsageError, ModelError) as error:
            if trains:
                raise
            read = "the model's one output is read as a logit: above 0 it means the second class"
            choice = replace(
                _by_kind(default, outputs, "in place of the checkpoint's"),
                lost=str(error),
                note=f"{error}; {read}" if count == 1 and outputs.are != "probabilities" else "",
            )
        choice = _weighed(choice, weights)
    return _for_mixed_labels(choice) if soft_labels else choice


def _for_mixed_labels(choice: LossChoice) -> LossChoice:
    """Returns the choice, or the same loss for mixed targets.

    Raises:
        UsageError: the task or the loss has no mixed targets.
    """
    mixed = choice.head.task.mixed_loss
    if mixed is None:
        raise UsageError(
            f"{option('mixup')} and {option('cutmix')} need a model with one output per class; this one has a single output"
        )
    if choice.form == LOSSES[mixed]:
        return choice
    if choice.settings is not None:
        used = f"{choice.kind} ({respelled(choice.reason)})"
        raise UsageError(
            f"{option('mixup')} and {option('cutmix')} mix labels, but the loss {used} expects one class per image: "
            f"leave them out, or give {option('loss', mixed)}"
        )
    return replace(choice, kind=mixed, labels=LOSSES[mixed], reason=f"{choice.reason}; for mixed labels")


def _by_kind(kind: str, outputs: Outputs, reason: str) -> LossChoice:
    return LossChoice(kind, outputs.are != "probabilities", 0.0, reason, labels=LOSSES[kind])


def _check_count(kind: str, count: int, reason: str) -> None:
    """Raises UsageError if a loss of a task does not fit the number of outputs."""
    task = task_of_loss(kind)
    if task is not None and task.classes_of(count) is None:
        raise UsageError(f"the loss {kind} ({respelled(reason)}) {task.misfit(kind, count)}")


def _as_saved(entry: Any, reason: str, model: keras.Model, count: int, outputs: Outputs, code: OwnCode) -> LossChoice:
    """Returns the loss of a compile config; only `from_logits` follows the outputs."""
    found = of_keras(entry, code)
    if found is None:
        return _own(entry, reason, model, count, outputs, code)
    cls, settings = found
    kind, note = snake(cls), ""
    borrowed = outputs.exclusive and kind in task_of_outputs(count).borrowed_losses
    if not borrowed:
        _check_count(kind, count, reason)
    from_logits = outputs.are == "logits"
    if "from_logits" in inspect.signature(cls.__init__).parameters:
        said = bool(settings.get("from_logits", False))
        from_logits = said if outputs.are is None else from_logits
        if said != from_logits:
            note = (
                f"the loss is compiled with from_logits={said}, but the model gives {outputs.are}: {outputs.because}; "
                f"from_logits={not said} is used"
            )
        settings = {**settings, "from_logits": from_logits}
    else:
        from_logits, note = _meant(cls(**settings), kind, count, outputs)
    words = [f"{name}={settings[name]}" for name, default in SHOWN.items() if settings.get(name, default) != default]
    reason = "; ".join([reason, *words])
    default = cls()  # every Keras loss can be created without arguments
    plain = {name: value for name, value in settings.items() if value != default.get_config().get(name)}
    if kind in LOSSES and not borrowed and not plain.keys() - {"from_logits", "label_smoothing"}:
        smoothing = float(settings.get("label_smoothing") or 0.0)
        return LossChoice(kind, from_logits, smoothing, reason, labels=LOSSES[kind], note=note)
    full = {"module": "keras.losses", "class_name": cls.__name__, "config": settings, "registered_name": None}
    known = None if borrowed else LOSSES.get(kind)
    labels = known or find_form(cls(**settings), kind, Head(task_of_outputs(count), from_logits), count)
    smoothing = float(settings.get("label_smoothing") or 0.0)
    return LossChoice(kind, from_logits, smoothing, reason, settings=full, labels=labels, note=note)


def _meant(loss: Any, kind: str, count: int, outputs: Outputs) -> tuple[bool, str]:
    """Returns True if a loss that does not say so reads the outputs as logits, and a note for the user.

    Raises:
        UsageError: it compares one output with the label, and the output stays between -1 and 1.
    """
    if outputs.are == "probabilities" or count > 1 or not aims_at_0_and_1(loss):
        return outputs.are == "logits", ""
    if outputs.bounded:
        default = task_of_outputs(count).default_loss
        raise UsageError(
            f"the loss {kind} compares the one output with the label, and {outputs.because}: whether its labels were 0 "
            f"and 1 or -1 and 1 is unknown. Give {option('loss', default)}, which reads it as a logit, or "
            "use kresume.BackupAndRestore in your own fit"
        )
    return False, f"{kind} trains the model's one output to be 0 or 1: above 0.5 it means the second class"


def _own(entry: Any, reason: str, model: keras.Model, count: int, outputs: Outputs, code: OwnCode) -> LossChoice:
    """Returns a user's own loss, from its file or as `--model` compiles it."""
    name = name_of(entry)
    compiled = model.loss if model.compiled and code.function is not None else None
    live, settings = None, dict(entry) if isinstance(entry, Mapping) else {"class_name": "function", "config": entry}
    try:
        live = make_loss(entry, code)
    except UsageError:
        if compiled is None or name_of(live_entry(compiled)) != name:
            raise
        # A closure or lambda cannot be found by name: the record names the user's function, which is then called again.
        live, reason = compiled, f"{reason}, as --model compiles it" if reason == "the checkpoint's" else reason
        size = input_shape_of(model)[1:3]
        settings = {
            "compiled_by": code.function,
            "name": name,
            "num_classes": class_count(count),
            "image_size": list(size) if all(size) else None,
        }
    from_logits, note = _meant(live, name, count, outputs)
    from_logits = from_logits or (outputs.are is None and not note)
    labels = find_form(live, name, Head(task_of_outputs(count), from_logits), count)
    choice = LossChoice(name, from_logits, 0.0, reason, settings=settings, labels=labels, live=live)
    stand_in = choice.portable()
    lost = f"{stand_in.lost}: saved models are compiled with {stand_in.kind}" if stand_in.lost else ""
    return replace(choice, note="; ".join(filter(None, [note, lost])))


def _weighed(choice: LossChoice, weights: Any) -> LossChoice:
    """Returns the choice with the weight that `loss_weights` gives."""
    found = list(weights.values()) if isinstance(weights, Mapping) else weights
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    if not found or not isinstance(found[0], (int, float)) or isinstance(found[0], bool):
        return choice
    weight = float(found[0])
    note = ""
    if len(found) > 1:
        note = (
            f"loss_weights={found} are weights of outputs, not of classes: Keras used the first, {weight:g}, and so does "
            "this run"
        )
    return replace(choice, weight=weight if weight != 1.0 else None, note="; ".join(filter(None, [choice.note, note])))


def _replaced(entry: Any, kind: str, code: OwnCode) -> str:
    """Describes the loss that `--loss` replaces; empty if nothing is lost."""
    if entry is None:
        return ""
    found = of_keras(entry, code)
    if found is None:
        return f"the checkpoint's own loss, {name_of(entry)}, is replaced by {kind}"
    cls, settings = found
    default = cls().get_config()
    changed = [
        f"{name}={value}" for name, value in settings.items() if name != "from_logits" and value != default.get(name)
    ]
    if snake(cls) == kind and not changed:
        return ""
    inside = f" ({', '.join(changed)})" if changed else ""
    return f"the checkpoint's {snake(cls)}{inside} is replaced by {kind}"
