"""Prepares the page of an evaluation: its models, its images and its summary.

facts = compare(compared_of(evaluation), evaluation.failed)
render_evaluation(facts, told_of(evaluation))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kresume.errors import ImagesError
from kresume.evaluation.block import NAMES, ORDER
from kresume.evaluation.evaluation import Evaluation
from kresume.evaluation.measure import SHARES
from kresume.reports.page.source import Compared, Side


@dataclass(frozen=True)
class Number:
    """A metric of all, old or new images.

    Attributes:
        name: for the user.
        is_share: True if it is shown in percent.
        before: of the other model; None where unknown.
        after: of the scored model; None where unknown.
        interval: 95 % interval of `after`; None without one.
    """

    name: str
    is_share: bool
    before: float | None
    after: float | None
    interval: Sequence[float] | None


@dataclass(frozen=True)
class Told:
    """Holds what a page says of an evaluation as a whole.

    Attributes:
        model: the scored model.
        against: the other one; empty without one.
        data: the sources of the images.
        images: how many there are.
        quarantined: files that could not be read.
        notes: on each model, with its name.
        failed: gates that failed.
        numbers: the metrics of all, old and new images; only those of all if there are no two kinds.
        generations: scores of the images of each generation of a run.
    """

    model: str
    against: str
    data: tuple[str, ...]
    images: int
    quarantined: int
    notes: tuple[tuple[str, str], ...]
    failed: tuple[str, ...]
    numbers: Mapping[str, tuple[Number, ...]]
    generations: Sequence[Mapping[str, Any]]


def compared_of(evaluation: Evaluation) -> Compared:
    """Returns the models of an evaluation as a page compares them.

    Raises:
        ImagesError: the evaluation holds no images, because it was not made by `evaluate`.
    """
    if evaluation.answers is None or evaluation.manifest is None or evaluation.spec is None:
        raise ImagesError("this evaluation holds no answers to single images: make it with kresume.evaluate")
    other = evaluation.against
    return Compared(
        after=Side(evaluation.model, evaluation.scores, evaluation.answers),
        before=None if other is None else Side(other.model, other.scores, other.answers),
        classes=evaluation.answers.classes,
        generation=evaluation.generation,
        everything=evaluation.manifest,
        spec=evaluation.spec,
        cache=evaluation.cache,
    )


def told_of(evaluation: Evaluation) -> Told:
    """Returns what the page says of the evaluation as a whole."""
    other = evaluation.against
    scores = evaluation.scores
    both = scores["old"]["images"] and scores["new"]["images"]
    notes = [(each.model, each.note) for each in (evaluation, other) if each is not None and each.note]
    return Told(
        evaluation.model,
        other.model if other is not None else "",
        evaluation.data,
        scores["all"]["images"],
        evaluation.quarantined,
        tuple(notes),
        evaluation.failed,
        {
            name: tuple(_numbers(scores[name], other.scores[name] if other is not None else {}))
            for name in (ORDER if both else ORDER[:1])
        },
        evaluation.generations,
    )


def _numbers(after: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[Number]:
    for metric, value in after.items():
        if metric in {"images", "intervals", "classes"}:
            continue
        interval = after["intervals"].get(metric)
        yield Number(NAMES.get(metric, metric), metric in SHARES, before.get(metric), value, interval)
