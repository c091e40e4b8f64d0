"""Judges a model by conditions on its scores, and by how far it fell behind its parent.

    gates = Gates.of(("old.accuracy>=0.93",), max_forgetting=2.0, max_class_drop=5.0)
    gates.failures(scores, before)          # ("classes.rose.recall 0.91 -> 0.72, 64 images, p = 0.004, allowed 5 points",)

A condition is METRIC OPERATOR NUMBER; several are joined by `and`.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kresume.errors import UsageError
from kresume.evaluation.score import SUBSETS, flatten
from kresume.evaluation.verdict import SIGNIFICANT, Pair, describe_p
from kresume.spelling import option

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
CONDITION = re.compile(r"\s*(?P<metric>[^<>=]+?)\s*(?P<sign>[<>]=?)\s*(?P<bound>[-+.\deE]+)\s*(?P<percent>%?)\s*")
UNBOUNDED = ("loss",)
"""Metrics that may be greater than 1."""


@dataclass(frozen=True)
class Condition:
    """A condition on one metric.

    Attributes:
        metric: its name, as `flatten` gives it.
        sign: `">="`, `"<="`, `">"` or `"<"`.
        bound: the number to compare with; shares are from 0 to 1.
    """

    metric: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"

    def holds(self, flat: Mapping[str, float]) -> bool:
        """Returns True if the metric has a value and meets the condition."""
        return self.metric in flat and COMPARISONS[self.sign](flat[self.metric], self.bound)


def parse_conditions(text: str, flag: str, unbounded: Collection[str] = UNBOUNDED) -> tuple[Condition, ...]:
    """Parses `"old.accuracy>=0.95 and new.accuracy>=90%"`.

    Args:
        text: the conditions.
        flag: the option that holds them, for messages.
        unbounded: metrics that may be greater than 1.

    Raises:
        UsageError: it has another form, or a share is above 1.
    """
    found = []
    for part in re.split(r"(?<=[\d.%])\s+and\s+", text.strip()):
        match = CONDITION.fullmatch(part)
        try:
            bound = float(match["bound"]) if match else 0.0
        except ValueError:
            match = None
        if match is None:
            raise UsageError(
                f"{option(flag, text)}: {part!r} is no condition: give METRIC, one of >= <= > < and a number, for example "
                f"{option(flag, 'old.accuracy>=0.93')}; join several with `and`"
            )
        bound = bound / 100 if match["percent"] else bound
        if not 0 <= bound <= 1 and not match["metric"].endswith(tuple(unbounded)):
            raise UsageError(
                f"{option(flag, text)}: {match['metric']} is from 0 to 1: give {bound / 100:g} or {bound:g}%"
            )
        found.append(Condition(match["metric"], match["sign"], bound))
    return tuple(found)


def metrics_of(classes: Sequence[str], *, epoch: bool = False, further: Sequence[str] = ()) -> set[str]:
    """Returns the names of the metrics that a run has; the arguments are those of `check_metric`."""
    known = {"val_loss", "val_accuracy"} | ({"loss", "accuracy"} if epoch else set())
    known |= {f"{subset}.{metric}" for subset in SUBSETS for metric in ("loss", "accuracy", "f1", *further)}
    return known | {
        f"classes.{each}.{metric}" for each in (*classes, "min") for metric in ("recall", "precision", "f1")
    }


def check_metric(
    name: str, classes: Sequence[str], given: str, *, epoch: bool = False, further: Sequence[str] = ()
) -> None:
    """Checks that a run has a metric.

    Args:
        name: the metric.
        classes: the class names.
        given: the option with its value, for the message.
        epoch: True allows the averages of an epoch over training images, too.
        further: metrics of old, new and all images that only an evaluation has.

    Raises:
        UsageError: no run has such a metric; the message gives the nearest name.
    """
    known = metrics_of(classes, epoch=epoch, further=further)
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), 1)
        hint = f"did you mean {near[0]}?" if near else "val_loss, old.accuracy or classes.min.recall, for example"
        raise UsageError(f"{given}: not a metric of a run: {hint}")


@dataclass(frozen=True)
class Gates:
    """The conditions that a run must meet to be accepted.

    Attributes:
        require: conditions on its scores.
        max_forgetting: by how many points the accuracy on old images may be below the parent's; None for any.
        max_class_drop: the same for the recall of each class.
    """

    require: tuple[Condition, ...] = ()
    max_forgetting: float | None = None
    max_class_drop: float | None = None

    @classmethod
    def of(
        cls,
        require: Sequence[str] | None,
        max_forgetting: float | None = None,
        max_class_drop: float | None = None,
        *,
        unbounded: Collection[str] = (),
    ) -> Gates:
        """Parses the options; metrics in `unbounded` may be greater than 1, as the loss may.

        Raises:
            UsageError: a condition has another form.
        """
        names = (*UNBOUNDED, *(each.rpartition(":")[2] for each in unbounded))
        conditions = [each for text in require or () for each in parse_conditions(text, "require", names)]
        return cls(tuple(conditions), max_forgetting, max_class_drop)

    def __bool__(self) -> bool:
        return bool(self.require) or self.compares

    @property
    def compares(self) -> bool:
        """Returns True if the parent's scores are needed."""
        return self.max_forgetting is not None or self.max_class_drop is not None

    def failures(
        self, scores: Mapping[str, Any], before: Mapping[str, Any] | None, pair: Pair | None = None
    ) -> tuple[str, ...]:
        """Describes each gate that the scores fail; empty if they are within the gates.

        Args:
            scores: the nested scores of the model.
            before: those of the parent on the same images; None for a new model.
            pair: the answers of both to each image; without them p takes the two scores as independent.
        """
        flat, counts = flatten(scores), _images(scores)
        found = [
            f"{each.metric} {_number(flat.get(each.metric))}, {counts(each.metric):,} images, required {each}"
            for each in self.require
            if not each.holds(flat)
        ]
        if before is None:
            return tuple(found)
        if self.max_forgetting is not None:
            found += _fall("old.accuracy", before["old"], scores["old"], self.max_forgetting, pair)
        if self.max_class_drop is not None:
            for name, facts in scores["classes"].items():
                then = before["classes"].get(name, {})
                found += _fall(f"classes.{name}.recall", then, facts, self.max_class_drop, pair)
        return tuple(found)


def _fall(
    name: str, before: Mapping[str, Any], now: Mapping[str, Any], allowed: float, pair: Pair | None
) -> tuple[str, ...]:
    """Describes a fall by more points than allowed."""
    metric = name.rpartition(".")[2]
    one, other = before.get(metric), now.get(metric)
    if one is None or other is None or not falls(one, other, allowed):
        return ()
    p = pair.judge(name).p if pair is not None else _chance(one, int(before["images"]), other, int(now["images"]))
    return (describe_fall(name, one, other, int(now["images"]), p, allowed),)


def falls(before: float, now: float, allowed: float) -> bool:
    """Returns True if a share fell by more points than allowed; a fall of exactly that many is allowed."""
    return round(100 * (before - now), 6) > allowed


def describe_fall(name: str, before: float, now: float, images: int, p: float, allowed: float) -> str:
    """Describes a fall: `"old.accuracy 0.92 -> 0.90, 50 images, p = 1 (may be noise), allowed 1 points"`."""
    noise = "" if p < SIGNIFICANT else " (may be noise)"
    return f"{name} {before:.2f} -> {now:.2f}, {images:,} images, {describe_p(p)}{noise}, allowed {allowed:g} points"


def _chance(one: float, images: int, other: float, others: int) -> float:
    """Returns the probability of such a difference by chance: Fisher's exact test, two-sided.

    For runs of earlier versions, which kept no answers: it takes the two scores as independent. They are of the same
    images, so the true probability is lower.
    """
    from scipy.stats import fisher_exact

    right, now = round(one * images), round(other * others)
    return float(fisher_exact([[right, images - right], [now, others - now]])[1])


def _images(scores: Mapping[str, Any]) -> Callable[[str], int]:
    """Returns how many images a metric is computed from, by its name."""

    def count(name: str) -> int:
        subset, _, rest = name.partition(".")
        if subset == "classes":
            classes = scores.get("classes") or {}
            each = rest.rpartition(".")[0]
            return sum(facts["images"] for facts in classes.values()) if each == "min" else classes[each]["images"]
        return int((scores.get(subset if subset in SUBSETS else "all") or {}).get("images", 0))

    return count


def _number(value: float | None) -> str:
    return "has no value" if value is None else f"{value:.4g}"
