"""Says whether a run is better on old, new and all images, and what is noise.

    changes = changes_of(source)            # one per set of images
    sentence(source, changes)               # "Better on new (+21.4 points, p < 0.001), unchanged on old within noise ..."

Where both models' answers were kept, `evaluation.verdict` judges them image by image. A run of an earlier version has
only its scores: then nothing tells whether the same images are right, and the test is a weaker one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kresume.evaluation.intervals import Z, wilson
from kresume.evaluation.verdict import Verdict, describe_points, in_words, judge_right
from kresume.reports.page.source import Compared

Kind = Literal["better", "worse", "unchanged", "too few", "unknown"]
Two = tuple[float | None, float | None]


@dataclass(frozen=True)
class Change:
    """How the accuracy on one set of images changed. Accuracies are from 0 to 1.

    Attributes:
        name: `"old"`, `"new"` or `"all"`.
        images: how many there are.
        before: accuracy of the other model, None without one.
        after: accuracy of the run's model; None without images.
        around: 95 % interval of `after`; None without images.
        verdict: how the two compare; None without another model.
        paired: False if single answers are unknown, so the verdict compares numbers of right images only.
        loss: mean loss before and after, None where unknown.
        f1: macro F1 before and after, None where unknown.
    """

    name: str
    images: int
    before: float | None
    after: float | None
    around: tuple[float, float] | None = None
    verdict: Verdict | None = None
    paired: bool = False
    loss: Two = (None, None)
    f1: Two = (None, None)

    @property
    def difference(self) -> float | None:
        """Returns after minus before."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def kind(self) -> Kind:
        """Returns the verdict in one word."""
        return "unknown" if self.verdict is None else self.verdict.kind

    @property
    def words(self) -> str:
        """Returns the verdict in a few words."""
        if not self.images:
            return "no validation images"
        if self.difference is None:
            return "nothing to compare with"
        ends = {"unchanged": "within noise", "too few": "too few images to tell"}
        return f"{minus(describe_points(self.difference))}: {ends.get(self.kind, self.kind)}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "images": self.images,
            "before": self.before,
            "after": self.after,
            "interval": self.around,
            "paired": self.paired,
            "verdict": None if self.verdict is None else self.verdict.as_dict(),
        }


def minus(text: str) -> str:
    """Sets minus signs as such, and keeps numbers together, for a page."""
    text = (
        text.replace("(-", "(−")
        .replace(" = ", "\u00a0=\u00a0")
        .replace(" < ", "\u00a0<\u00a0")
        .replace(" points", "\u00a0points")
    )
    return f"−{text[1:]}" if text.startswith("-") else text


def changes_of(source: Compared) -> tuple[Change, ...]:
    """Returns the change on new, old and all images; only that on all if there are no old or no new ones."""
    new, old, whole = (_change(source, name) for name in ("new", "old", "all"))
    return (new, old, whole) if new.images and old.images else (whole,)


def _change(source: Compared, name: str) -> Change:
    before, after = source.before, source.after
    was, now = _of(before.scores if before else None, name), _of(after.scores, name)
    loss, f1 = (was.get("loss"), now.get("loss")), (was.get("f1"), now.get("f1"))
    if after.answers is None:
        images = int(now.get("images") or 0)
        if source.other is not None and was.get("images") != images:
            was = {}  # scored on other images: not comparable
        return _unpaired(name, images, was.get("accuracy"), now.get("accuracy"), loss, f1)
    new = source.is_new(after.answers.origins)
    mask = {"old": ~new, "new": new, "all": np.ones(len(new), bool)}[name]
    right = after.answers.right[mask]
    answers = source.before_answers
    if answers is None:
        share = float(right.mean()) if len(right) else None
        return _unpaired(name, len(right), was.get("accuracy"), share, loss, f1)
    if source.other is not None:  # the recorded scores are those of other sets of images
        loss, f1 = (_mean(answers.losses[mask]), _mean(after.answers.losses[mask])), (None, None)
    if not len(right):
        return Change(name, 0, None, None)
    verdict = judge_right(answers.right[mask], right)
    around = interval(int(right.sum()), len(right))
    return Change(name, len(right), verdict.before, verdict.after, around, verdict, True, loss, f1)


def _of(scores: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    return (scores or {}).get(name) or {}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None


def interval(right: int, images: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share."""
    low, high = wilson(right, images)
    return float(low), float(high)


def _unpaired(name: str, images: int, was: float | None, now: float | None, loss: Two, f1: Two) -> Change:
    """Compares two accuracies on as many images, where single answers are unknown."""
    if not images or now is None:
        return Change(name, images, None, None)
    right = round(now * images)
    around = interval(right, images)
    if was is None:
        return Change(name, images, None, now, around, loss=loss, f1=f1)
    from scipy.stats import fisher_exact

    wrong = round(was * images)
    p = float(fisher_exact([[right, images - right], [wrong, images - wrong]]).pvalue)
    # Agresti and Caffo 2000: Wald's interval with one right and one wrong image added to each.
    shares = [(count + 1) / (images + 2) for count in (right, wrong)]
    half = Z * float(np.sqrt(sum(share * (1 - share) for share in shares) / (images + 2)))
    middle = shares[0] - shares[1]
    verdict = Verdict(images, was, now, max(right - wrong, 0), max(wrong - right, 0), p, middle - half, middle + half)
    return Change(name, images, was, now, around, verdict, loss=loss, f1=f1)


def sentence(source: Compared, changes: Sequence[Change]) -> str:
    """Returns the verdict as one sentence."""
    whole = changes[-1]
    if source.after.scores is None:
        return "Nothing was scored yet: no epoch is done."
    if not whole.images or whole.after is None or whole.around is None:
        return f"Nothing can be measured: there are no {source.images_called}."
    if whole.verdict is None:
        low, high = whole.around
        return (
            f"Right on {100 * whole.after:.1f} % of {whole.images:,} {source.images_called} "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)."
        )
    text = minus(in_words({change.name: change.verdict for change in changes if change.verdict is not None}))
    return f"{text[0].upper()}{text[1:]}."
