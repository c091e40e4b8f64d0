"""Judges an evaluation by gates: checks before any image is read, and the failures afterwards.

check_gates(gates, against)
check_conditions(gates, manifest, generation, metrics)
failures_of(gates, evaluation, against, known=known)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kresume.errors import UsageError
from kresume.evaluation.evaluation import Evaluation
from kresume.evaluation.gates import Gates, check_metric, describe_fall, falls
from kresume.evaluation.own_metrics import OwnMetric
from kresume.evaluation.verdict import Pair, judge_right
from kresume.images.manifest import Manifest
from kresume.spelling import option


def check_gates(gates: Gates, against: str | None) -> None:
    """Checks that there is a model to compare with, if a gate compares.

    Raises:
        UsageError: there is none, or a number of points is below 0.
    """
    for flag, points in (("max-forgetting", gates.max_forgetting), ("max-class-drop", gates.max_class_drop)):
        if points is not None and not points >= 0:
            raise UsageError(f"{option(flag, points)}: give a number of at least 0")
    if gates.compares and against is None:
        flag = "max-forgetting" if gates.max_forgetting is not None else "max-class-drop"
        raise UsageError(
            f"{option(flag)} compares with another model: give {option('against', 'OTHER')}, for example the run that this "
            f"one started from; {option('require', 'all.accuracy>=0.9')} judges one model alone"
        )


def check_conditions(gates: Gates, manifest: Manifest, generation: int, metrics: Sequence[OwnMetric]) -> None:
    """Checks that every metric of a condition exists, and that there are images to measure it on.

    Raises:
        UsageError: one does not, or there are none.
    """
    old = int((manifest.origins < generation).sum())
    counts = {"old": old, "new": len(manifest) - old}
    for condition in gates.require:
        given = option("require", str(condition))
        check_metric(
            condition.metric, manifest.classes, given, further=("top5", "ece", *(each.name for each in metrics))
        )
        subset = condition.metric.partition(".")[0]
        if counts.get(subset, 1) == 0:
            why = (
                "images are old if the scored run had them before its own generation, and none of these is"
                if subset == "old"
                else "the scored run had all of these images before its own generation"
            )
            metric = condition.metric.partition(".")[2]
            raise UsageError(
                f"{given}: there are no {subset} images in {option('data')}: {why}; all.{metric} is measured on all"
            )


def failures_of(
    gates: Gates, scored: Evaluation, against: Evaluation | None, known: np.ndarray | None = None
) -> tuple[str, ...]:
    """Describes the gates that an evaluation fails.

    Args:
        gates: the gates.
        scored: the evaluation.
        against: that of the model that it is compared with.
        known: `(n,) bool`, which images the scored run has.

    Raises:
        UsageError: forgetting is to be judged, and the scored run added all of the images itself.
    """
    if against is None or scored.answers is None or against.answers is None:
        return gates.failures(scored.scores, None)
    pair = Pair(against.answers, scored.answers, scored.generation)
    if gates.max_forgetting is None or scored.scores["old"]["images"]:
        return gates.failures(scored.scores, against.scores, pair)
    if known is not None and known.all():
        raise UsageError(
            f"{option('max-forgetting')}: {scored.model} added all of these images itself, so none shows what it forgot: "
            f"give images that {against.model} knew, or others of its classes, as {option('data')}"
        )
    others = replace(gates, max_forgetting=None).failures(scored.scores, against.scores, pair)
    return (*_forgotten(gates.max_forgetting, pair, against), *others)


def _forgotten(allowed: float, pair: Pair, against: Evaluation) -> tuple[str, ...]:
    """Judges forgetting on images that the scored run does not have, of classes of the other model."""
    lacks = [pair.after.classes.index(name) for name in against.lacks]
    mine = ~np.isin(pair.after.labels, lacks)
    verdict = judge_right(pair.before.right[mine], pair.after.right[mine])
    if not falls(verdict.before, verdict.after, allowed):
        return ()
    name = "all.accuracy" if mine.all() else f"accuracy on the classes of {against.model}"
    return (describe_fall(name, verdict.before, verdict.after, verdict.images, verdict.p, allowed),)
