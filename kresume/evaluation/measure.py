"""Measures one model on images: scores with intervals, calibration, confused classes, own metrics.

measured = measure(predictions, manifest, generation, metrics, reporter)
measured.scores["all"]["accuracy"], measured.scores["all"]["intervals"]["accuracy"]
measured.scores["classes"]["rose"]["recall"], measured.scores["old"]["classes"]["rose"]["recall"]
confused(measured.answers)[0]           # {"label": "rose", "answer": "tulip", "images": 12}
by_generation(measured.answers, known)  # [{"generation": 0, "images": 300, "accuracy": 0.94, ...}, ...]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.evaluation.against import Predicted
from kresume.evaluation.answers import NO_CLASS, TOP, Answers, answers_from
from kresume.evaluation.intervals import wilson
from kresume.evaluation.own_metrics import OwnMetric
from kresume.evaluation.score import score
from kresume.evaluation.sums import RESAMPLES, ImageSums, bootstrap
from kresume.images.manifest import Manifest
from kresume.reporter import Reporter

SHARES = ("accuracy", "recall", "precision", "top5", "ece")
"""Metrics that are shown in percent."""
MANY = 20_000
"""Images from which on intervals take seconds, so that their progress is shown."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The scores of one model.

    Attributes:
        scores: the shape of `score`, with `top5`, `ece` and `intervals` for each subset, `intervals` for each class, and
            `classes` for old and new images if there are both.
        answers: what they are computed from.
        calibration: the bins of confidence of all images; empty for a model that gives labels alone.
    """

    scores: dict[str, Any]
    answers: Answers
    calibration: list[dict[str, Any]]


def measure(
    predictions: Predicted,
    manifest: Manifest,
    generation: int,
    metrics: Sequence[OwnMetric],
    reporter: Reporter,
) -> Measured:
    """Computes every score of a model's predictions.

    Args:
        predictions: one for each image.
        manifest: the images, in the same classes.
        generation: images with a lower origin are old.
        metrics: further metrics.
        reporter: shows progress.

    Raises:
        KresumeError: a metric of the user's own fails.
    """
    task, labels, origins, classes = predictions.task, manifest.labels, manifest.origins, manifest.classes
    answers = answers_from(
        task,
        predictions.probabilities,
        labels,
        origins,
        manifest.sha256s,
        classes,
        chosen=predictions.chosen,
        confidences=predictions.confidences,
        losses=not predictions.labels_alone,
        lacks=predictions.lacks,
    )
    scores = score(
        task,
        predictions.probabilities,
        labels,
        origins=origins,
        generation=generation,
        classes=classes,
        answers=answers.chosen.astype(np.int64),
    )
    old = origins < generation
    masks = {"all": np.ones(len(labels), bool), "old": old, "new": ~old}
    both = bool(old.any() and not old.all())
    shown = Reporter(quiet=True) if len(labels) < MANY else reporter
    with shown.progress("confidence intervals", RESAMPLES * (1 + 2 * both), "resamples") as advance:
        for name, mask in masks.items():
            part, facts = answers.at(mask), scores[name]
            if name == "all" or both:
                own = scores["classes"]
                if name != "all":
                    own = facts["classes"] = task.class_scores(part.chosen.astype(np.int64), part.labels, classes)
                _complete(facts, own, part, advance)
            else:
                _copy(facts, scores["all"] if len(part) else None)
    for metric in metrics:
        for name, mask in masks.items():
            facts = scores[name]
            known = facts["images"] and not predictions.labels_alone
            facts[metric.name] = metric.compute(task, labels[mask], predictions.probabilities[mask]) if known else None
    sums = ImageSums.of(answers)
    return Measured(scores, answers, sums.bins() if sums.has_loss else [])


def _complete(
    facts: dict[str, Any], classes: Mapping[str, dict[str, Any]], answers: Answers, advance: Callable[[int], None]
) -> None:
    """Adds top-5 accuracy, calibration and intervals to the scores of a subset and of its classes."""
    count = len(answers)
    sums = ImageSums.of(answers)
    if not sums.has_loss:
        facts["loss"] = None
    facts |= {"top5": None, "ece": None, "intervals": {}}
    if not count:
        return
    ends = bootstrap(sums, advance)
    intervals = {"accuracy": wilson(answers.right.sum(), count), "f1": ends["f1"]}
    if sums.has_loss:
        facts["ece"] = float(sums.scores(np.ones((1, count)))["ece"][0])
        intervals |= {"loss": ends["loss"], "ece": ends["ece"]}
        if len(answers.classes) > TOP:
            among = (answers.top == answers.labels[:, None]).any(axis=1)
            facts["top5"] = float(among.mean())
            intervals["top5"] = wilson(among.sum(), count)
    facts["intervals"] = {name: _pair(*interval) for name, interval in intervals.items()}
    width = len(answers.classes)
    right = np.bincount(answers.labels[answers.right], minlength=width)
    occurs = np.bincount(answers.labels, minlength=width)
    chosen = np.bincount(answers.chosen[answers.chosen != NO_CLASS], minlength=width)
    shares = {"recall": wilson(right, occurs), "precision": wilson(right, chosen), "f1": ends["class_f1"]}
    for index, each in enumerate(classes.values()):
        each["intervals"] = (
            {name: _pair(low[index], high[index]) for name, (low, high) in shares.items()} if each["images"] else {}
        )


def _copy(facts: dict[str, Any], everything: Mapping[str, Any] | None) -> None:
    """Fills a subset that has all images, or none."""
    added = everything or {"top5": None, "ece": None, "loss": None, "intervals": {}}
    facts |= {name: added[name] for name in ("loss", "top5", "ece", "intervals")}


def _pair(low: Any, high: Any) -> list[float] | None:
    return None if np.isnan(low) else [float(low), float(high)]


def by_generation(answers: Answers, known: np.ndarray) -> list[dict[str, Any]]:
    """Scores the images of each generation of a run, the oldest first, then those it does not have.

    Args:
        answers: of the run.
        known: `(n,) bool`, which images the run has.

    Returns:
        Rows of `generation` (None for images that the run does not have), `images`, `accuracy`, `loss` and `interval`, that of
        the accuracy; empty if the run has none of the images.
    """
    if not known.any():
        return []
    rows = []
    for generation in [*np.unique(answers.origins[known]).tolist(), None]:
        part = answers.at(~known if generation is None else known & (answers.origins == generation))
        if not len(part):
            continue
        right, loss = int(part.right.sum()), float(part.losses.mean())
        rows.append(
            {
                "generation": generation,
                "images": len(part),
                "accuracy": right / len(part),
                "loss": None if np.isnan(loss) else loss,
                "interval": _pair(*wilson(right, len(part))),
            }
        )
    return rows


def confused(answers: Answers) -> list[dict[str, Any]]:
    """Lists the cells of the confusion matrix that have images: first mistakes, then right answers.

    `answer` is None for a class that the scored model does not have.
    """
    width = len(answers.classes) + 1  # the last column is another class
    chosen = np.where(answers.chosen == NO_CLASS, width - 1, answers.chosen)
    cells, counts = np.unique(answers.labels.astype(np.int64) * width + chosen, return_counts=True)
    found = [(*divmod(cell, width), count) for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)]
    names = (*answers.classes, None)
    return [
        {"label": names[label], "answer": names[answer], "images": count}
        for label, answer, count in sorted(found, key=lambda each: (each[0] == each[1], -each[2], each[0], each[1]))
    ]
