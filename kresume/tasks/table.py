"""Lists the tasks, and finds the task of a loss, of targets, of a number of outputs, or of a record.

    head_of(record.loss).task.name          # "single-label"
    task_of_outputs(1), class_count(1)      # BINARY, 2
    head_named("binary-logits")             # Head(BINARY, from_logits=True)

`run.json` records the form of the targets, which belongs to one task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kresume.tasks.binary import BINARY
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Head, Task
from kresume.values.loss import Loss

TASKS: Mapping[str, Task] = {task.name: task for task in (SINGLE_LABEL, BINARY)}
LOSSES: Mapping[str, str] = {name: form for task in TASKS.values() for name, form in task.losses.items()}
"""The losses of every task, with the form of targets that each expects."""


def task_of_loss(name: str) -> Task | None:
    """Returns the task of a Keras loss; None if the loss fits any task."""
    return next((task for task in TASKS.values() if name in task.losses or name in task.related_losses), None)


def task_of_outputs(count: int) -> Task:
    """Returns the task of a model with so many outputs: the first one with such a head.

    Raises:
        ValueError: no task has such a head.
    """
    for task in TASKS.values():
        if task.classes_of(count) is not None:
            return task
    raise ValueError(f"no task has a model with {count} outputs")


def class_count(outputs: int) -> int:
    """Returns the number of classes that a model with so many outputs tells apart."""
    return task_of_outputs(outputs).classes_of(outputs) or outputs


def form_of(loss: Loss) -> str:
    """Returns the form of targets that a loss expects; the records of older runs name only the loss."""
    return loss.labels or LOSSES[loss.kind]


def head_of(loss: Loss) -> Head:
    """Returns how a model with this loss answers."""
    form = form_of(loss)
    return Head(next(task for task in TASKS.values() if form in task.forms), loss.from_logits)


def to_targets(loss: Loss, classes: int) -> Callable[[Any], Any]:
    """Returns the function that converts class indices to the targets of a loss in a TensorFlow graph."""
    task, form = head_of(loss).task, form_of(loss)
    return lambda labels: task.graph_targets(labels, form, classes)


def head_named(kind: str) -> Head:
    """Returns the head whose outputs `export.json` calls `kind`.

    Raises:
        KeyError: no task has such outputs.
    """
    heads = (Head(task, from_logits) for task in TASKS.values() for from_logits in (False, True))
    return {head.kind: head for head in heads}[kind]
