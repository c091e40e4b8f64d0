"""Runs a SavedModel as its clients do: with only TensorFlow, through its own signature.

    prediction = predict_saved_model(folder, signature, labels, classes, {"files": [...]})
    prediction.indices           # (n,) indices into `classes`, -1 if another class was chosen

Each model runs in a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kresume.errors import CheckpointError
from kresume.runtimes.process import Answer, run_apart
from kresume.runtimes.signatures import Signature
from kresume.spelling import option
from kresume.tasks.binary import BINARY, two_logits
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Head

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """The predictions of another runtime.

    Attributes:
        scores: `(n, classes) float64`, zeros for an image that the model could not read; None if it gives only labels.
        indices: `(n,)` the chosen classes, -1 if none of them was chosen.
        failed: index of an image -> why it could not be read.
        facts: other values that the runtime reports.
        confidences: `(n,)` the scores of the chosen classes, also of those that are not among the classes, 0 for an image
            that the model could not read; None if it gives only labels.
    """

    scores: np.ndarray | None
    indices: np.ndarray
    failed: Mapping[int, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    confidences: np.ndarray | None = None


ScoreKind = Literal["probabilities", "logits", "independent"]
KINDS: Mapping[str, ScoreKind] = {
    "Softmax": "probabilities",
    "Sigmoid": "independent",
    **dict.fromkeys(("BiasAdd", "MatMul", "LogSoftmax"), "logits"),
}
"""Maps the operation that computes scores to their kind. Of other operations the values of the scores tell it."""


def score_kind(scores: np.ndarray) -> ScoreKind:
    """Determines the kind of scores from their values.

    Probabilities have sum 1 per row, logits exceed the range 0 to 1, independent scores rate each class by itself.
    """
    if not len(scores) or (scores.min() >= -1e-3 and np.abs(scores.sum(axis=-1) - 1).max() < 1e-2):
        return "probabilities"
    return "logits" if scores.min() < -1e-3 or scores.max() > 1 + 1e-3 else "independent"


def predict_saved_model(
    folder: Path,
    signature: Signature,
    labels: Sequence[str] | None,
    classes: Sequence[str],
    inputs: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    *,
    shares: bool = True,
    single: Head | None = None,
    advance: Callable[[int], None] | None = None,
) -> Prediction:
    """Runs images through a signature of a SavedModel.

    Args:
        folder: contains `saved_model.pb`.
        signature: the signature, from `read_signatures`.
        labels: the names of its outputs in order; None for `classes`.
        classes: the classes of the result.
        inputs: `{"files": [...]}` or `{"array": "x.npy"}`, as the signature's input requires.
        extra: further fields of the request.
        shares: convert logits to probabilities.
        single: how the model answers if it gives a single number for two classes; None if unknown.
        advance: called with the number of images that are done since the last call, from another thread.

    Raises:
        CheckpointError: the model does not load or run with only TensorFlow, or it is unknown if its single number is
            a logit.
    """
    request = {
        "path": str(folder),
        "signature": signature.name,
        "input": signature.input.name,
        "batch_size": BATCH,
        **inputs,
        **(extra or {}),
    }
    answer = _without_flagged(run_apart("saved_model", request, advance=advance), signature)
    count = len(inputs["files"]) if "files" in inputs else len(np.load(inputs["array"], mmap_mode="r"))
    names = tuple(labels or classes)
    row = signature.output("scores")
    kind = KINDS.get(row.operation) if row is not None else None
    if row is not None and len(names) == 2 and len(answer.indices) and answer.outputs[row.name].shape[1:] in {(), (1,)}:
        try:
            pairs = to_pairs(np.asarray(answer.outputs[row.name], np.float64), single, row.operation, shares=shares)
        except ValueError as error:
            raise CheckpointError(f"{folder}: its output {row.name} {error}") from error
        answer, kind = replace(answer, outputs={**answer.outputs, row.name: pairs}), "probabilities"
    return interpret(answer, signature, names, tuple(classes), count, kind=kind, shares=shares)


def _without_flagged(answer: Answer, signature: Signature) -> Answer:
    """Returns an answer without the images that the model itself calls unreadable; they are in `failed`.

    Its other outputs for them are no answers: scores of 0 would name the first class.
    """
    named = signature.output("error")
    if named is None or not len(answer.indices):
        return answer
    reasons = [text.decode("utf-8", "replace") for text in np.ravel(answer.outputs[named.name])]
    good = np.array([not reason for reason in reasons])
    flagged = {int(row): reason for row, reason in zip(answer.indices, reasons, strict=True) if reason}
    return replace(
        answer,
        outputs={name: values[good] for name, values in answer.outputs.items()},
        indices=answer.indices[good],
        failed={**answer.failed, **flagged},
    )


def to_pairs(given: np.ndarray, head: Head | None, operation: str, *, shares: bool = True) -> np.ndarray:
    """Converts one number per image to scores of two classes.

    The number is the score of the second class. Its value does not tell what it is: a logit may be between 0 and 1.

    Args:
        given: `(n,)` or `(n, 1)`.
        head: how the model answers, if that is known.
        operation: the operation that computes the number, which tells it otherwise; empty if unknown.
        shares: convert logits to probabilities; else to two logits.

    Returns:
        `(n, 2)`.

    Raises:
        ValueError: the numbers may be logits; the message is the rest of a sentence.
    """
    values = given.reshape(len(given), 1)
    if head is None or head.task is not BINARY:
        kind = KINDS.get(operation, "unknown")
        if kind not in {"independent", "logits"}:
            raise ValueError(
                f"is one number per image, from {values.min():.3g} to {values.max():.3g}, and it is unknown whether that is a "
                f"logit: give {option('model')} with the function that builds it, or save it with a sigmoid as its last layer"
            )
        head = Head(BINARY, from_logits=kind == "logits")
    return two_logits(values) if head.from_logits and not shares else head.probabilities(values)


def plain_reason(text: str) -> str:
    """Returns what TensorFlow says of a request in one line, without the places in the graph."""
    line = re.sub(r"^Graph execution error:.*?<stack traces unavailable>\s*", "", " ".join(text.split()))
    line = line.partition(" [[{{")[0]
    asserted = re.fullmatch(r"assertion failed: \[(.*)\]", line)
    return asserted[1] if asserted else line


def interpret(
    answer: Answer,
    signature: Signature,
    labels: tuple[str, ...],
    classes: tuple[str, ...],
    count: int,
    *,
    kind: ScoreKind | None,
    shares: bool = True,
) -> Prediction:
    """Converts the scores, labels or indices of a signature to the order of `classes`.

    With `shares`, logits become probabilities. The values tell what the scores are if `kind` is None.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    to_ours = np.array([index_of.get(name, -1) for name in labels])
    indices = np.full(count, -1)
    scores: np.ndarray | None = None
    confidences: np.ndarray | None = None
    rows = answer.indices
    row_of = signature.output("scores")
    chosen = signature.output("class_index", "class_indices")
    named = signature.output("labels")
    if row_of is not None and len(rows):
        given = np.asarray(answer.outputs[row_of.name], np.float64)
        if shares and (kind or score_kind(given)) == "logits":
            given = Head(SINGLE_LABEL, from_logits=True).probabilities(given)
        # The answer may be a class that only this model has: such an image gets -1.
        known = to_ours >= 0
        scores = np.zeros((count, len(classes)))
        scores[np.ix_(rows, to_ours[known])] = given[:, known]
        indices[rows] = to_ours[SINGLE_LABEL.answers(given)]
        confidences = np.zeros(count)
        confidences[rows] = given.max(axis=-1)
    elif chosen is not None and len(rows):
        best = np.asarray(answer.outputs[chosen.name])
        best = best[:, 0] if best.ndim == 2 else best
        indices[rows] = np.where(best >= 0, to_ours[np.clip(best, 0, len(labels) - 1)], -1)
    elif named is not None and len(rows):
        best = np.asarray(answer.outputs[named.name])
        best = best[:, 0] if best.ndim == 2 else best
        indices[rows] = [index_of.get(text.decode(), -1) for text in best]
    return Prediction(scores, indices, answer.failed, answer.facts, confidences)
