"""Says how each class changed, and which gained and lost most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kresume.evaluation.verdict import Verdict, judge_classes
from kresume.reports.page.headline import Kind
from kresume.reports.page.source import Compared

MOST = 5
"""Classes named as those that gained or lost most."""


@dataclass(frozen=True)
class ClassChange:
    """How well one class is recognised, before and after. Shares are from 0 to 1.

    Attributes:
        name: the class.
        index: its place among the outputs.
        images: validation images of it.
        before: recall of the other model; None if unknown.
        after: recall of the run's model; None without images.
        precision: before and after, None where unknown.
        f1: likewise.
        verdict: how the two compare on its images; None if the answers were not kept.
    """

    name: str
    index: int
    images: int
    before: float | None
    after: float | None
    precision: tuple[float | None, float | None]
    f1: tuple[float | None, float | None]
    verdict: Verdict | None = None

    @property
    def kind(self) -> Kind:
        """Returns the verdict in one word."""
        return "unknown" if self.verdict is None else self.verdict.kind

    @property
    def difference(self) -> float | None:
        """Returns the change of the recall."""
        return None if self.before is None or self.after is None else self.after - self.before


def classes_of(source: Compared) -> tuple[ClassChange, ...]:
    """Returns the change of every class, in the order of the outputs."""
    was = (source.before.scores or {}).get("classes", {}) if source.before else {}
    now = (source.after.scores or {}).get("classes", {})
    after, before = source.after.answers, source.before_answers
    if after is not None and source.other is not None:
        was = now = {}  # the recorded scores are of other sets of images
    counts = np.bincount(after.labels, minlength=len(source.classes)) if after is not None else None
    verdicts = judge_classes(before, after) if before is not None and after is not None else {}
    found = []
    for index, name in enumerate(source.classes):
        old, new = was.get(name) or {}, now.get(name) or {}
        verdict = verdicts.get(name)
        found.append(
            ClassChange(
                name,
                index,
                int(new.get("images") or 0) if counts is None else int(counts[index]),
                verdict.before if verdict else old.get("recall"),
                verdict.after if verdict else new.get("recall"),
                (old.get("precision"), new.get("precision")),
                (old.get("f1"), new.get("f1")),
                verdict,
            )
        )
    return tuple(found)


def most_changed(classes: Sequence[ClassChange]) -> tuple[tuple[ClassChange, ...], tuple[ClassChange, ...]]:
    """Returns the classes that gained most and those that lost most, by points of recall."""
    known = [each for each in classes if each.difference]
    ranked = sorted(known, key=lambda each: -(each.difference or 0.0))
    gained = tuple(each for each in ranked if (each.difference or 0.0) > 0)[:MOST]
    lost = tuple(each for each in reversed(ranked) if (each.difference or 0.0) < 0)[:MOST]
    return gained, lost
