"""Adds the distance to the parent's answers to a model's loss (knowledge distillation).

    teacher = build_teacher(architecture, read_teacher(file), imports=())
    with taught(model, SecondModel(teacher), teaching, head) as feed:
        model.fit(feed(dataset))

The term is `weight * T^2 * KL(parent || model)` over the parent's classes, with both answers softened at the temperature T
(Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531). Without the old images it is "learning without forgetting"
(Li and Hoiem 2016, https://arxiv.org/abs/1606.09282), whose temperature of 2 is used. Both see the same augmented picture
(Beyer et al. 2022, https://arxiv.org/abs/2106.05237).

Where no image of an old class is left, the rest of the loss is over the new classes alone: over all classes it would only teach
that every picture is of a new one ("separated softmax", Ahn et al. 2021, https://arxiv.org/abs/2003.13947).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.backend.second_model import SecondModel
from kresume.errors import CheckpointError, UsageError
from kresume.models import build
from kresume.models.averages import averaged
from kresume.models.statistics import Statistics, used
from kresume.options.settings import DISTILL_TEMPERATURE
from kresume.spelling import option
from kresume.tasks.table import head_of
from kresume.tasks.task import Head
from kresume.values.teaching import Teaching


def check_teachable(model: keras.Model) -> None:
    """Checks that a term can be added to the loss of a model.

    Raises:
        UsageError: the model has a `train_step` of its own, which alone decides what is minimised.
    """
    if type(model).train_step is not keras.Model.train_step:
        raise UsageError(
            f"{option('distill')} adds a term to the loss, but {type(model).__name__} has its own train_step, which may not "
            f"use it: leave the option out, or use {option('replay')} with the old images"
        )


def teacher_arrays(model: keras.Model, optimizer: Any, statistics: Statistics) -> dict[str, np.ndarray]:
    """Copies the weights with which a model predicts, with averages and recomputed statistics.

    Args:
        model: built.
        optimizer: keeps the averages; None for the model's own.
        statistics: those of batch normalisation; empty for the moving averages.

    Returns:
        Arrays by index in `model.weights`.
    """
    with averaged(model, optimizer), used(model, statistics):
        return {str(index): np.array(live_state.host_array(each.value)) for index, each in enumerate(model.weights)}


def build_teacher(
    architecture: Mapping[str, Any], arrays: Mapping[str, np.ndarray], imports: Sequence[str], trust: bool
) -> keras.Model:
    """Builds a model that only predicts. No random draw of this process is used up.

    Args:
        architecture: the serialized model.
        arrays: from `teacher_arrays`.
        imports: Python files that register custom objects.
        trust: run code that the architecture holds.

    Raises:
        CheckpointError: the arrays are not those of this architecture.
    """
    with live_state.random_kept():
        model = build.from_architecture(copy.deepcopy(architecture), imports, trust=trust)  # Keras changes it
    shapes = [tuple(weight.shape) for weight in model.weights]
    if shapes != [arrays[str(index)].shape for index in range(len(arrays))]:
        raise CheckpointError(
            "the recorded teacher does not fit its architecture: the code of the model changed since the run began; restore "
            "that code"
        )
    live_state.assign(model.weights, [arrays[str(index)] for index in range(len(arrays))])
    live_state.renew_constants(model)
    model.trainable = False
    return model


@contextmanager
def taught(model: keras.Model, teacher: SecondModel, teaching: Teaching, head: Head) -> Iterator[Callable[[Any], Any]]:
    """Adds the term to the loss of a compiled model for a block.

    Args:
        model: compiled and built.
        teacher: the parent.
        teaching: what is compared, and how much it counts.
        head: how the model answers.

    Yields:
        A function that prepares a dataset of images and labels for `fit`.
    """
    loss, metrics = model.compute_loss, model.compute_metrics
    has_training = "training" in inspect.signature(loss).parameters
    answers = head_of(teaching.answers)

    def compute_loss(
        x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        labels, outputs = teacher.split(x, y)
        told, shown = _of_new_classes(teaching, head, labels, y_pred) if teaching.new_only else (labels, y_pred)
        own = loss(x, told, shown, sample_weight, **({"training": training} if has_training else {}))
        return own if outputs is None else own + distance(teaching, answers, outputs, head, y_pred)

    def compute_metrics(x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return metrics(x, teacher.labels(y), y_pred, sample_weight)

    replaced = {"compute_loss": compute_loss, "compute_metrics": compute_metrics}
    model.train_function = None  # one that was traced without the term does not have it
    for name, function in replaced.items():
        object.__setattr__(model, name, function)  # nothing that Keras should track
    try:
        yield teacher.feed
    finally:
        model.train_function = None
        for name in replaced:
            object.__delattr__(model, name)


def _of_new_classes(teaching: Teaching, head: Head, labels: Any, outputs: Any) -> tuple[Any, Any]:
    """Returns labels (indices or rows) and outputs of the new classes, which follow the parent's."""
    first = len(teaching.classes)
    shown = outputs[:, first:]
    if not head.from_logits:
        shown = shown / keras.ops.maximum(keras.ops.sum(shown, axis=-1, keepdims=True), keras.config.epsilon())
    rows = len(labels.shape) == 2 and labels.shape[-1] == outputs.shape[-1]
    return labels[:, first:] if rows else labels - first, shown


def distance(teaching: Teaching, answers: Head, taught: Any, head: Head, outputs: Any) -> Any:
    """Computes the term of the loss for a batch, a float32 scalar.

    Args:
        teaching: what is compared, and how much it counts.
        answers: how the parent answers.
        taught: the parent's outputs, `(batch, units)`.
        head: how the model answers.
        outputs: the model's outputs, `(batch, units)`.
    """
    ops = keras.ops
    parent = ops.stop_gradient(answers.log_probabilities(ops.cast(taught, "float32")))
    child = head.log_probabilities(ops.cast(outputs, "float32"))
    child = ops.take(child, np.array(teaching.classes, np.int32), axis=-1)
    # Log probabilities differ from logits by a number per image, which a softmax ignores.
    parent, child = (ops.log_softmax(each / DISTILL_TEMPERATURE, axis=-1) for each in (parent, child))
    divergence = ops.mean(ops.sum(ops.exp(parent) * (parent - child), axis=-1))
    return teaching.weight * DISTILL_TEMPERATURE**2 * divergence
