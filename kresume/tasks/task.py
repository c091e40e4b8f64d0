"""Defines what a task is, and how a model of it answers.

    targets = task.targets(labels, "rows", 3)                               # for the loss
    probabilities = Head(task, from_logits=True).probabilities(outputs)     # (images, classes)
    task.right(task.answers(probabilities), labels)                         # (images,) bool

Scoring computes with numpy, exports and the images' pipeline build TensorFlow graphs, a loss uses `keras.ops`. So targets and
probabilities exist in these forms. A new task is one file beside this one and one entry in `table.TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Task:
    """A task: which question about an image a model is trained to answer.

    Attributes:
        name: its name in `table.TASKS`.
        losses: Keras's losses of the task, the default first; by name, the form of targets that each expects.
        related_losses: further Keras losses that need this head; their form of targets is found by trial.
        borrowed_losses: losses of another task that train this one where the outputs add up to 1.
        mixed_loss: the loss that accepts mixed targets, as MixUp makes them; None if the task has none.
        kinds: names of the model's outputs in `export.json`: if they are probabilities, and if they are logits.
        activation: the activation of the head, by its name in Keras.
        units: returns the number of outputs for a number of classes.
        classes_of: returns the number of classes for a number of outputs; None if the task has no such head.
        targets: converts class indices to targets of a form: `(labels, form, classes) -> array`.
        graph_targets: the same for a TensorFlow graph.
        probabilities: converts float64 outputs to `(images, classes)`: `(outputs, from_logits) -> array`.
        graph_probabilities: the same for a TensorFlow graph.
        log_probabilities: converts float32 outputs to `(images, classes)` logarithms with `keras.ops`, for a loss.
        answers: returns the model's answer for each row of probabilities, as class indices.
        right: compares answers with labels: `(answers, labels) -> (images,) bool`.
        image_losses: returns the loss of each image in nats: `(probabilities, labels) -> (images,)`.
        scores: computes the metrics of a set of images: `(probabilities, answers, labels) -> dict`.
        class_scores: computes the metrics of each class: `(answers, labels, class names) -> dict`.
        keras_loss: creates the Keras loss: `(name, from_logits, label_smoothing)`.
        keras_metrics: creates the training metrics for a form of targets: `(form, from_logits)`.
        for_metric: returns targets and probabilities as a metric of Keras expects them:
            `(targets, outputs, form, from_logits, True if it takes indices)`.
        confident: returns the outputs of a model that is sure of a class: `(class, outputs, from_logits) -> row`.
        misfit: explains why a loss of the task does not fit a number of outputs: `(loss, outputs) -> str`.
    """

    name: str
    losses: Mapping[str, str]
    related_losses: frozenset[str]
    borrowed_losses: frozenset[str]
    mixed_loss: str | None
    kinds: tuple[str, str]
    activation: str
    units: Callable[[int], int]
    classes_of: Callable[[int], int | None]
    targets: Callable[[np.ndarray, str, int], np.ndarray]
    graph_targets: Callable[[Any, str, int], Any]
    probabilities: Callable[[np.ndarray, bool], np.ndarray]
    graph_probabilities: Callable[[Any, bool], Any]
    log_probabilities: Callable[[Any, bool], Any]
    answers: Callable[[np.ndarray], np.ndarray]
    right: Callable[[np.ndarray, np.ndarray], np.ndarray]
    image_losses: Callable[[np.ndarray, np.ndarray], np.ndarray]
    scores: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, Any]]
    class_scores: Callable[[np.ndarray, np.ndarray, Any], dict[str, dict[str, Any]]]
    keras_loss: Callable[[str, bool, float], Any]
    keras_metrics: Callable[[str, bool], list[Any]]
    for_metric: Callable[[Any, Any, str, bool, bool], tuple[Any, Any]]
    confident: Callable[[int, int, bool], np.ndarray]
    misfit: Callable[[str, int], str]

    @property
    def default_loss(self) -> str:
        """Returns the name of the loss for a model that was compiled with none."""
        return next(iter(self.losses))

    @property
    def forms(self) -> tuple[str, ...]:
        """Returns the forms of targets, the default first."""
        return tuple(dict.fromkeys(self.losses.values()))

    def target_spec(self, form: str, batch_size: int, classes: int) -> tuple[tuple[int, ...], str]:
        """Returns shape and dtype of a batch of targets."""
        example = self.targets(np.zeros(batch_size, np.int32), form, classes)
        return example.shape, str(example.dtype)


@dataclass(frozen=True)
class Head:
    """How a model answers.

    Attributes:
        task: its task.
        from_logits: True if its outputs are logits instead of probabilities.
    """

    task: Task
    from_logits: bool = False

    @property
    def kind(self) -> str:
        """Returns the name of the outputs that `export.json` records."""
        return self.task.kinds[self.from_logits]

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Converts a model's outputs to `(images, classes) float64`."""
        return self.task.probabilities(np.asarray(outputs, dtype=np.float64), self.from_logits)

    def graph_probabilities(self, outputs: Any) -> Any:
        """Converts outputs to probabilities in a TensorFlow graph."""
        return self.task.graph_probabilities(outputs, self.from_logits)

    def log_probabilities(self, outputs: Any) -> Any:
        """Converts float32 outputs to the logarithms of probabilities, `(images, classes)`, with `keras.ops`."""
        return self.task.log_probabilities(outputs, self.from_logits)
