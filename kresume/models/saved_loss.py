"""Reads and rebuilds the loss of a compile config: Keras's or a user's own.

    entry = find_loss(state.compiled)       # as Keras or tf_keras serialized it
    of_keras(entry, code)                   # (keras.losses.CategoricalFocalCrossentropy, {"alpha": ...})
    make_loss(entry, code)                  # the loss object, or the user's function

No file records which form of targets a loss expects. It is found by trying the loss on right and wrong answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kresume.errors import UsageError
from kresume.models.own_code import OwnCode, call_function, last_line
from kresume.spelling import option
from kresume.tasks.task import Head

TRIED = 6
"""Largest number of classes on which a loss is tried."""


class RecordedLoss(keras.losses.Loss):  # type: ignore[misc]  # keras is untyped
    """Stands for the loss of a compile config in a compiled model, until `make_loss` creates it.

    Attributes:
        entry: result of `find_loss`.
    """

    def __init__(self, entry: Any) -> None:
        super().__init__(name="recorded")
        self.entry = entry

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Raises, because the loss that trains is created from the entry."""
        raise NotImplementedError("a recorded loss is replaced before a training")


def find_loss(saved: Mapping[str, Any] | None) -> Any:
    """Returns a compile config's single loss; None if absent or chosen by the labels."""
    loss: Any = (saved or {}).get("loss")
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    elif isinstance(loss, Mapping) and "class_name" not in loss and "compiled_by" not in loss and len(loss) == 1:
        loss = next(iter(loss.values()))
    if isinstance(loss, str) and loss.lower() in {"crossentropy", "ce"}:
        return None
    return loss


def live_entry(loss: Any) -> Any:
    """Serializes a compiled model's loss the way a compile config holds it."""
    if isinstance(loss, RecordedLoss):
        return loss.entry
    if isinstance(loss, (list, tuple, Mapping)):
        loss = find_loss({"loss": loss})
    if loss is None or isinstance(loss, (str, Mapping)):
        return find_loss({"loss": loss})
    if getattr(loss, "__name__", "") == "<lambda>":
        return {"class_name": "__lambda__"}  # Keras would serialize its code
    return keras.saving.serialize_keras_object(loss)


def name_of(entry: Any) -> str:
    """Returns the name of a loss, for the plan."""
    if isinstance(entry, str):
        return entry
    if "compiled_by" in entry:
        return str(entry["name"])
    if entry.get("class_name") == "function":
        return str(entry["config"])
    if entry.get("class_name") == "__lambda__":
        return "lambda"
    return str(entry.get("class_name")).rpartition(">")[2]


def of_keras(entry: Any, code: OwnCode) -> tuple[type[keras.losses.Loss], dict[str, Any]] | None:
    """Returns class and settings of a Keras loss; None for a user's own.

    Args:
        entry: result of `find_loss`.
        code: the user's code; its functions take precedence over Keras's of the same name.
    """
    if isinstance(entry, Mapping) and "compiled_by" in entry:
        return None
    name = name_of(entry)
    registered = str(entry.get("registered_name") or "") if isinstance(entry, Mapping) else ""
    if name in code.objects or ">" in registered or (isinstance(entry, Mapping) and ">" in str(entry["class_name"])):
        return None
    cls = _class_of(name)
    if cls is None:
        return None
    config = entry.get("config") if isinstance(entry, Mapping) else None
    settings = dict(config) if isinstance(config, Mapping) else {}
    if settings.get("reduction") == "auto":  # tf_keras's name for the default
        settings.pop("reduction")
    known = inspect.signature(cls.__init__).parameters
    return cls, {key: value for key, value in settings.items() if key in known and key not in {"name", "dtype", "self"}}


def _class_of(name: str) -> type[keras.losses.Loss] | None:
    """Finds a Keras loss class by class name, function name or alias (`mse`)."""
    found: Any = getattr(keras.losses, name, None)
    if found is None:
        try:
            found = keras.losses.get(name)
        except ValueError:
            return None
    if inspect.isclass(found):
        return found if issubclass(found, keras.losses.Loss) else None
    wanted = str(getattr(found, "__name__", name)).replace("_", "").lower()
    classes = (each for each in vars(keras.losses).values() if inspect.isclass(each))
    return next((each for each in classes if each.__name__.lower() == wanted), None)


def snake(cls: type) -> str:
    """Converts `MeanSquaredError` to `mean_squared_error`."""
    return str(keras.src.utils.naming.to_snake_case(cls.__name__))


def make_loss(entry: Any, code: OwnCode) -> Any:
    """Creates the loss of a compile config or of a run's record.

    Args:
        entry: result of `find_loss`, or `{"compiled_by": FILE.py:FUNCTION, "name", "num_classes", "image_size"}`.
        code: the user's code.

    Raises:
        UsageError: the loss is unknown; the message says what to give.
    """
    if isinstance(entry, Mapping) and "compiled_by" in entry:
        size = entry["image_size"]
        offered = {"num_classes": entry["num_classes"], "image_size": tuple(size) if size else None}
        return call_function(str(entry["compiled_by"]), offered).loss
    if (found := of_keras(entry, code)) is not None:
        return found[0](**found[1])
    made = _made(entry, code)
    if not callable(made):
        raise UsageError(unknown(name_of(entry)))
    return made


def _made(entry: Any, code: OwnCode) -> Any:
    """Finds a user's own loss in their files, else in Keras's registry, else None."""
    name = name_of(entry)
    config = entry.get("config") if isinstance(entry, Mapping) else None
    registered = str(entry.get("registered_name") or entry["class_name"]) if isinstance(entry, Mapping) else name
    found: Any = code.objects.get(name)
    if found is None:
        found = keras.saving.get_registered_object(name if registered == "function" else registered)
    if not inspect.isclass(found):
        return found
    cls: Any = found
    try:
        with keras.saving.custom_object_scope(dict(code.objects)):
            return cls.from_config(dict(config)) if isinstance(config, Mapping) else cls()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"the checkpoint's loss {name} cannot be created from {config}: {last_line(error)}") from error


def unknown(name: str) -> str:
    """Returns the error message for a loss that cannot be built."""
    return (
        f"the checkpoint was trained with a custom loss, {name}: give the file that defines it with "
        f"{option('import', 'FILE.py')} (or {option('model', 'FILE.py:FUNCTION')} that compiles the model with it), or replace "
        f"it with {option('loss', 'NAME')}"
    )


def find_form(loss: Any, name: str, head: Head, count: int) -> str:
    """Finds the form of targets with which a loss tells right from wrong.

    Args:
        loss: the loss object, or a function of targets and predictions.
        name: its name, for messages.
        head: how the model answers.
        count: number of the model's outputs.

    Raises:
        UsageError: the loss cannot be computed, no form tells right from wrong, or two do and differ.
    """
    wrapped = loss if isinstance(loss, keras.losses.Loss) else keras.src.losses.losses.LossFunctionWrapper(loss)
    told: dict[str, np.ndarray | None] = {}
    reasons = []
    for form in head.task.forms:
        try:
            told[form] = _tells(wrapped, form, head, count)
        except Exception as error:  # the user's code may raise anything for labels that it does not expect
            reasons.append(f"with {form} {last_line(error)}")
    right = {form: losses for form, losses in told.items() if losses is not None}
    found = list(right.values())
    if found and all(np.allclose(found[0], losses, rtol=1e-4) for losses in found):
        return next(iter(right))
    why = (
        "is lower for right answers than for wrong ones with class indices and with rows of probabilities, but not alike"
        if right
        else "is no lower for right answers than for wrong ones, with class indices or with rows of probabilities"
    )
    raise UsageError(
        f"the checkpoint's loss {name} {why}{f' ({reasons[-1]})' if reasons else ''}, so it is unknown which labels it "
        f"expects: replace it with {option('loss', 'NAME')}, or use kresume.BackupAndRestore in your own fit"
    )


def aims_at_0_and_1(loss: Any) -> bool:
    """Returns True if a loss is least where a single output is the label itself, as for a squared error.

    Else an output beyond the label costs less, as for logits, or for a hinge, whose labels stand for -1 and 1.

    Args:
        loss: the loss object, or a function of targets and predictions.
    """
    wrapped = loss if isinstance(loss, keras.losses.Loss) else keras.src.losses.losses.LossFunctionWrapper(loss)

    def cost(label: int, output: float) -> float:
        return _mean(wrapped(np.full(7, label, np.int32), np.full((7, 1), output, np.float32)))

    try:
        beyond = cost(1, 1) <= cost(1, 4) and cost(0, 0) <= min(cost(0, -1), cost(0, -4))  # equal where a loss clips
        return beyond and cost(1, 1) < cost(1, 0) and cost(0, 0) < cost(0, 1)
    except Exception:  # the user's code may raise anything; `find_form` says so
        return False


def _tells(loss: Any, form: str, head: Head, count: int) -> np.ndarray | None:
    """Returns the losses of right answers if wrong ones cost more, else None."""
    classes = head.task.classes_of(count) or count
    batch = 7 if classes != 7 else 5
    chosen = range(classes) if classes <= TRIED else [*range(TRIED - 1), classes - 1]

    def loss_of(answer: int, label: int) -> float:
        outputs = np.tile(head.task.confident(answer, count, head.from_logits), (batch, 1))
        return _mean(loss(head.task.targets(np.full(batch, label, np.int32), form, classes), outputs))

    pairs = [[loss_of(answer, label) for answer in (label, (label + 1) % classes)] for label in chosen]
    right, wrong = np.array(pairs).T
    if not np.isfinite(pairs).all():
        return None
    margin = 1e-5 * np.maximum(np.abs(wrong), 1e-3)
    lower = right < wrong - margin
    # A class that is ignored, or has the weight 0, costs the same either way.
    return right if not (right > wrong + margin).any() and 2 * lower.sum() > len(chosen) - 1 else None


def _mean(value: Any) -> float:
    return float(np.mean(np.asarray(keras.ops.convert_to_numpy(value), np.float64)))
