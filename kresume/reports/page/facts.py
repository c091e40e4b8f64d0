"""Collects all facts of a page, from a run or from two, as one value.

facts = collect(source)             # reads pictures, computes everything; writes nothing
facts.as_dict()                     # the numbers, for `--json`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.evaluation.forgetting import forgetting_of
from kresume.evaluation.verdict import Pair
from kresume.images.reader import PictureReader
from kresume.reports.page.by_class import ClassChange, classes_of
from kresume.reports.page.confusion import Confusion, confusion_of
from kresume.reports.page.counts import Counts, counts_of
from kresume.reports.page.curves import Curves, curves_of
from kresume.reports.page.family import Family, family_of
from kresume.reports.page.findings import Finding, findings_of
from kresume.reports.page.galleries import Chosen, choose
from kresume.reports.page.headline import Change, changes_of, sentence
from kresume.reports.page.pictures import Picture, read_pictures
from kresume.reports.page.shift import Measure, shift_of
from kresume.reports.page.source import Compared, Source, rows_of
from kresume.reports.page.story import Story, story_of


@dataclass(frozen=True, eq=False)
class Shown:
    """One picture of the page with all that is known about it.

    Attributes:
        row: row of the answers.
        path: of its file.
        label: index of its class.
        is_new: True if the run added it.
        before: classes with probabilities, the surest first; empty without the other model's answers.
        after: the same of the run's model.
        picture: the small picture.
    """

    row: int
    path: str
    label: int
    is_new: bool
    before: tuple[tuple[int, float], ...]
    after: tuple[tuple[int, float], ...]
    picture: Picture


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """All that a page shows of one model, or of two on the same images."""

    compared: Compared
    verdict: str
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]
    confusion: Confusion | None
    classes: tuple[ClassChange, ...]
    chosen: Chosen
    shown: dict[int, Shown]


@dataclass(frozen=True, eq=False, kw_only=True)
class Facts(Comparison):
    """All that the page of a run shows."""

    source: Source
    curves: Curves
    counts: Counts
    shift: tuple[Measure, ...]
    family: Family
    story: Story

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers of the page as JSON."""
        source = self.source
        return {
            "run": str(source.run.path),
            "against": source.before.name if source.before else None,
            "status": source.run.status,
            "verdict": self.verdict,
            "changes": {change.name: change.as_dict() for change in self.changes},
            "findings": [finding.text for finding in self.findings],
            "classes": {
                each.name: {"images": each.images, "before": each.before, "after": each.after, "verdict": each.kind}
                for each in self.classes
            },
            "confusion": None
            if self.confusion is None
            else {
                "classes": list(self.confusion.names),
                "before": None if self.confusion.before is None else self.confusion.before.tolist(),
                "after": self.confusion.after.tolist(),
            },
            "shift": {
                measure.name: {
                    "old": measure.medians[0],
                    "new": measure.medians[1],
                    "effect": measure.effect,
                    "p": measure.p,
                }
                for measure in self.shift
            },
            "missing": list(source.missing),
        }


def collect(source: Source) -> Facts:
    """Collects the facts of a page and reads its pictures."""
    changes = changes_of(source)
    curves, counts = curves_of(source), counts_of(source)
    reader = source.reader()
    manifest = source.manifest
    shift = shift_of(manifest, source.is_new(manifest.origins), reader) if manifest is not None else ()
    confusion, classes = confusion_of(source), classes_of(source)
    chosen = choose(source, confusion)
    failed = source.run.record.failed
    return Facts(
        compared=source,
        verdict=sentence(source, changes),
        changes=changes,
        findings=findings_of(failed, changes, shift, classes, chosen.galleries, counts, curves, _unknown(source)),
        confusion=confusion,
        classes=classes,
        chosen=chosen,
        shown=_shown(source, chosen, reader),
        source=source,
        curves=curves,
        counts=counts,
        shift=shift,
        family=family_of(source),
        story=story_of(source),
    )


def _unknown(source: Source) -> str:
    """Says why nobody can know what the run forgot of its parent; empty if that is known or there is none."""
    before, after = source.before_answers, source.after.answers
    if before is None or after is None:
        return ""
    return forgetting_of(Pair(before, after, source.run.generation), source.run.record.new_classes).unknown


def compare(compared: Compared, failed: Sequence[str]) -> Comparison:
    """Collects the facts of one model, or of two on the same images, and reads their pictures.

    Args:
        compared: the models and the images.
        failed: gates that failed.
    """
    changes = changes_of(compared)
    confusion, classes = confusion_of(compared), classes_of(compared)
    chosen = choose(compared, confusion)
    return Comparison(
        compared=compared,
        verdict=sentence(compared, changes),
        changes=changes,
        findings=findings_of(failed, changes, (), classes, chosen.galleries),
        confusion=confusion,
        classes=classes,
        chosen=chosen,
        shown=_shown(compared, chosen, compared.reader()),
    )


def _shown(source: Compared, chosen: Chosen, reader: PictureReader | None) -> dict[int, Shown]:
    after = source.after.answers
    if after is None or not chosen.rows:
        return {}
    before = source.before_answers
    rows = np.array(chosen.rows)
    where = rows_of(source.everything, after.hashes[rows])
    pictures = read_pictures(where.tolist(), reader)
    paths = ["" for _ in rows]
    if source.everything is not None:
        known = np.nonzero(where >= 0)[0]
        for index, found in zip(known.tolist(), source.everything.found(where[known]), strict=True):
            paths[index] = found.name
    new = source.is_new(after.origins)

    def top(answers: Any, row: int) -> tuple[tuple[int, float], ...]:
        pairs = zip(answers.top[row].tolist(), answers.top_scores[row].tolist(), strict=True)
        return tuple((label, score) for label, score in pairs)[:3]

    return {
        row: Shown(
            row,
            paths[index] or str(after.hashes[row])[:16],
            int(after.labels[row]),
            bool(new[row]),
            top(before, row) if before is not None else (),
            top(after, row),
            pictures[index],
        )
        for index, row in enumerate(rows.tolist())
    }
