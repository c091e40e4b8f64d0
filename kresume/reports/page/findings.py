"""Names what is worth a look first, each with the part of the page that shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kresume.reports.page.by_class import ClassChange, most_changed
from kresume.reports.page.counts import Counts
from kresume.reports.page.curves import Curves
from kresume.reports.page.galleries import Gallery
from kresume.reports.page.headline import Change
from kresume.reports.page.shift import Measure, describe

GAP = 0.1
"""Accuracy that training may be ahead of validation before it is worth a look."""


@dataclass(frozen=True)
class Finding:
    """Something worth a look: a kind, a text, and the part of the page that shows it."""

    kind: Literal["good", "bad", "look"]
    text: str
    section: str


def findings_of(
    failed: Sequence[str],
    changes: Sequence[Change],
    shift: Sequence[Measure],
    classes: Sequence[ClassChange],
    galleries: Sequence[Gallery],
    counts: Counts | None = None,
    curves: Curves | None = None,
    unknown: str = "",
) -> tuple[Finding, ...]:
    """Returns the findings, the gravest first.

    Args:
        failed: gates that failed.
        changes: on old, new and all images.
        shift: how new pictures differ from old ones.
        classes: how each class changed.
        galleries: the lists of pictures.
        counts: the images of a run.
        curves: of a run.
        unknown: why nobody can know what a run forgot, or some of it.
    """
    found = [
        *(Finding("bad", f"Gate failed: {failure}.", "headline") for failure in failed),
        *_forgetting(changes, shift),
        *([Finding("look", f"What it forgot cannot be told in full: {unknown}.", "headline")] if unknown else ()),
        *_classes(classes),
        *_mistakes(galleries),
        *(_data(counts) if counts is not None else ()),
        *(_gap(curves) if curves is not None else ()),
    ]
    return tuple(sorted(found, key=lambda each: {"bad": 0, "look": 1, "good": 2}[each.kind]))


def _forgetting(changes: Sequence[Change], shift: Sequence[Measure]) -> Iterator[Finding]:
    old = next((change for change in changes if change.name == "old"), None)
    if old is not None and old.kind == "worse" and old.verdict is not None:
        lost = f" ({old.verdict.lost:,} that were right are wrong now)" if old.paired else ""
        reason = " The new pictures differ from the old ones, which is the usual reason." if _shifted(shift) else ""
        points = -100 * old.verdict.difference
        yield Finding(
            "bad", f"Forgetting: accuracy on old images fell by {points:.1f} points{lost}.{reason}", "classes"
        )
    if _shifted(shift):
        yield Finding("look", describe(shift), "data")


def _shifted(shift: Sequence[Measure]) -> bool:
    return any(measure.strength in {"medium", "large"} for measure in shift)


def _classes(classes: Sequence[ClassChange]) -> Iterator[Finding]:
    gained, lost = most_changed(classes)
    for each in lost[:2]:
        if each.kind == "worse":
            yield Finding(
                "bad", f"Class {each.name} lost {-100 * (each.difference or 0):.1f} points of recall.", "classes"
            )
    for each in gained[:1]:
        if each.kind == "better":
            yield Finding(
                "good", f"Class {each.name} gained {100 * (each.difference or 0):.1f} points of recall.", "classes"
            )


def _mistakes(galleries: Sequence[Gallery]) -> Iterator[Finding]:
    for gallery in galleries:
        if gallery.sure:
            each = (
                "mistake that the model is sure of: it"
                if gallery.sure == 1
                else "mistakes that the model is sure of: each"
            )
            yield Finding("look", f"{gallery.sure:,} {each} is a candidate for a wrong label.", "g-mistakes")


def _data(counts: Counts) -> Iterator[Finding]:
    for listed, one, many in (
        (counts.broken, "file could no longer be read while training", "files could no longer be read while training"),
        (
            counts.quarantine,
            "file could not be used and is in quarantine.csv",
            "files could not be used and are in quarantine.csv",
        ),
        (
            counts.leaks,
            "newcomer is nearly equal to an image in the other split",
            "newcomers are nearly equal to images in the other split",
        ),
        (
            counts.waiting,
            "file or class in the watched sources waits for the next generation",
            "files and classes in the watched sources wait for the next generation",
        ),
        (counts.conflicts, "image is given under two labels", "images are given under two labels"),
    ):
        if listed.count:
            yield Finding("look", f"{listed.count:,} {one if listed.count == 1 else many}.", "data")
    if counts.seen:
        yield Finding(
            "look", f"{counts.seen:,} validation images were probably trained on: their accuracy is too high.", "data"
        )


def _gap(curves: Curves) -> Iterator[Finding]:
    if not curves.epochs:
        return
    last = curves.epochs[-1].accuracy
    gap = last.get("train", 0.0) - last.get("all", 1.0)
    if gap > GAP:
        yield Finding(
            "look",
            f"Training accuracy is {100 * gap:.0f} points above validation: the model memorises. More images, augmentation "
            "or fewer epochs help.",
            "curves",
        )
