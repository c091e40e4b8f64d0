"""Tells whether one model is better than another on the same images, or the difference is noise.

    verdict = judge(before, after)                                 # two Answers
    verdict.difference, verdict.low, verdict.high, verdict.p       # +0.042, +0.009, +0.075, 0.01
    str(verdict)                                                   # "better (+4.2 points, p = 0.01)"
    print(in_words(judge_origins(before, after, generation=2)))
    # better on new (+4.2 points, p = 0.01), unchanged on old within noise (-0.3 points, p = 0.8)

Both models answered the same images, so only images that one of them gets right tell them apart. p is McNemar's exact
test (1947) on their number: the probability of a difference at least as large if both models were equally good. The
interval of the difference is Bonett and Price's (2012), which Fagerland, Lydersen and Laake (2014, "Recommended tests and
confidence intervals for paired binomial proportions") recommend; it is no point where every image has the same result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Literal

import numpy as np

from kresume.evaluation.answers import Answers, on_same_images
from kresume.evaluation.intervals import Z

SIGNIFICANT = 0.05
"""A difference with a lower p is no noise."""
FEWEST = 6
"""With fewer images p is never below 0.05, even if one model is right on all of them and the other on none."""


@dataclass(frozen=True)
class Verdict:
    """How two models compare on one set of images.

    Attributes:
        images: the number of images.
        before: the accuracy of the first model; 0 without images, as all shares here.
        after: the accuracy of the second one.
        gained: images that only the second one gets right.
        lost: images that only the first one gets right.
        p: the probability of such a difference by chance; for classes adjusted for their number.
        low: lower end of the 95 % interval of the difference of the accuracies.
        high: its upper end.
    """

    images: int
    before: float
    after: float
    gained: int
    lost: int
    p: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Returns the difference of the accuracies, as a share: 0.01 is one point."""
        return self.after - self.before

    @property
    def kind(self) -> Literal["better", "worse", "unchanged", "too few"]:
        """Returns the verdict: `"unchanged"` if it may be noise, `"too few"` if nothing could be shown."""
        if self.images < FEWEST:
            return "too few"
        if self.p >= SIGNIFICANT:
            return "unchanged"
        return "better" if self.gained > self.lost else "worse"

    @property
    def facts(self) -> str:
        """Returns the difference in words: `"+4.2 points, p = 0.01"`."""
        return f"{describe_points(self.difference)}, {describe_p(self.p)}"

    def on(self, subset: str = "") -> str:
        """Returns the verdict in words.

        Args:
            subset: the name of the images: `"new"` gives `"better on new (+4.2 points, p = 0.01)"`.
        """
        on = f" on {subset}" if subset else ""
        if self.kind == "too few":
            count = f"{self.images} image{'' if self.images == 1 else 's'}"
            return f"too few images to tell{on} ({count}, {describe_points(self.difference)})"
        if self.kind == "unchanged":
            if not self.gained and not self.lost:
                return f"unchanged{on} (right on the same images)"
            return f"unchanged{on} within noise ({self.facts})"
        return f"{self.kind}{on} ({self.facts})"

    def __str__(self) -> str:
        return self.on()

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**vars(self), "difference": self.difference, "kind": self.kind, "words": str(self)}


@dataclass(frozen=True, eq=False)
class Pair:
    """The answers of two models to the same images.

    Attributes:
        before: those of the first model.
        after: those of the second one.
        generation: images with a lower origin are old.
    """

    before: Answers
    after: Answers
    generation: int

    def judge(self, metric: str) -> Verdict:
        """Compares the models on the images of a metric: `"old.accuracy"`, `"classes.rose.recall"`.

        Raises:
            KeyError: it is a metric of no subset and no class.
        """
        subset, _, rest = metric.partition(".")
        if subset != "classes":
            return judge_origins(self.before, self.after, self.generation)[subset]
        return judge_classes(self.before, self.after)[rest.rpartition(".")[0]]


def judge(before: Answers, after: Answers) -> Verdict:
    """Compares two models on the images that both have answered; rows are matched by content."""
    one, other = on_same_images(before, after)
    return judge_right(one.right, other.right)


def judge_right(before: np.ndarray, after: np.ndarray) -> Verdict:
    """Compares two models by which images they get right, `(n,) bool` in the same order."""
    from scipy.stats import binomtest

    images, gained, lost = len(before), int((after & ~before).sum()), int((before & ~after).sum())
    if not images:
        return Verdict(0, 0.0, 0.0, 0, 0, 1.0, -1.0, 1.0)
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    up, down = (gained + 1) / (images + 2), (lost + 1) / (images + 2)
    half = Z * sqrt((up + down - (up - down) ** 2) / (images + 2))
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Verdict(images, float(before.mean()), float(after.mean()), gained, lost, p, low, high)


def judge_origins(before: Answers, after: Answers, generation: int) -> dict[str, Verdict]:
    """Compares two models on new, old and all images.

    Args:
        before: answers of the first model.
        after: those of the second one.
        generation: images with a lower origin are old.

    Returns:
        `{"new": ..., "old": ..., "all": ...}` without subsets that have no images.
    """
    one, other = on_same_images(before, after)
    old = other.origins < generation
    masks = {"new": ~old, "old": old, "all": np.ones(len(old), bool)}
    return {name: judge_right(one.right[mask], other.right[mask]) for name, mask in masks.items() if mask.any()}


def judge_classes(before: Answers, after: Answers) -> dict[str, Verdict]:
    """Compares two models on the images of each class; classes without images are left out.

    p is adjusted for the number of classes (Holm 1979, "A simple sequentially rejective multiple test procedure"): of a
    hundred classes that only differ by chance, five would have a p below 0.05.
    """
    one, other = on_same_images(before, after)
    counts = np.bincount(other.labels, minlength=len(other.classes))
    ends, order = np.cumsum(counts), np.argsort(other.labels, kind="stable")
    rows = {name: order[end - count : end] for name, end, count in zip(other.classes, ends, counts, strict=True)}
    found = {name: judge_right(one.right[each], other.right[each]) for name, each in rows.items() if len(each)}
    adjusted = _adjusted(np.array([verdict.p for verdict in found.values()]))
    return {name: replace(each, p=float(p)) for (name, each), p in zip(found.items(), adjusted, strict=True)}


def _adjusted(p: np.ndarray) -> np.ndarray:
    """Returns Holm's adjusted values of several tests, in their order."""
    order = np.argsort(p, kind="stable")
    raised = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return raised[np.argsort(order, kind="stable")]


def in_words(verdicts: Mapping[str, Verdict]) -> str:
    """Puts the verdicts on new and old images in one line.

    For example `"better on new (+4.2 points, p = 0.01), unchanged on old within noise (-0.3 points, p = 0.8)"`. `"all"` is
    named if there is nothing else, and first where only all of them together show a difference.
    """
    named = {name: verdict for name, verdict in verdicts.items() if name != "all"}
    whole = verdicts.get("all")
    if len(named) < 2:
        return str(whole or "")
    parts = [verdict.on(name) for name, verdict in named.items()]
    shown = {"better", "worse"}
    if whole is not None and whole.kind in shown and not shown & {verdict.kind for verdict in named.values()}:
        parts.insert(0, whole.on("all"))
    return ", ".join(parts)


def describe_points(difference: float) -> str:
    """Formats a difference of shares: `"+4.2 points"`."""
    return f"{round(100 * difference, 1) + 0.0:+.1f} points"  # adding 0.0 turns -0.0 into 0.0


def describe_p(p: float) -> str:
    """Formats p: `"p = 0.012"`, `"p < 0.001"`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
