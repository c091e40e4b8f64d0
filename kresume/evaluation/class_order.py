"""Finds the order of classes that a model was trained with, by its answers on labelled images.

    found = judge_order({"0-1": predicted, "-1-1": ...}, labels, classes)
    found.order             # the order that fits where the sorted one does not, beyond chance; else None
    found.doubtful          # whether the assumed order may be wrong and these images cannot tell

A model restored to the last bit and read in another order is wrong in silence, wholly or for a few classes. A fixed gap in
accuracy either misses that or invents an order for a model that is merely poor, so the evidence is tested.

The statistic. For each way of feeding, the order that explains most is the assignment of outputs to classes with the largest
excess over chance (counts less the product of their margins; Kuhn, The Hungarian method, 1955). It differs from the assumed
order in cycles of outputs. A cycle's evidence is how much more often its outputs are right than in the assumed order, less
what the margins alone explain, in units of its noise: `((b - c) - (eb - ec)) / sqrt(b + c + eb + ec)` with b images right
only in the new order, c only in the assumed one, and eb, ec what shuffled labels are expected to give (McNemar's test, 1947,
with the margins taken out, so that imbalanced samples and models that always answer alike show nothing). The statistic is the
largest evidence of any cycle, of all of them together, and of any way of feeding with an order of its own against the best
way in the assumed order.

The null. The labels are shuffled, and everything is computed anew: all ways of feeding, all orders, all cycles. So every
combination that is tried is a comparison, and the largest by chance is what the observed one has to beat (permutation test
with the maximum statistic; Westfall and Young, Resampling-Based Multiple Testing, 1993). A model that is poor but rightly
ordered gives less evidence than shuffled labels do. Shuffling ends early where the evidence is clearly ordinary (Besag and
Clifford, Sequential Monte Carlo p-values, 1991).

Few outputs of many: where a good model has two of twenty outputs exchanged, shuffling all labels is too harsh a null. So a
second test takes what the assumed order gets right as right and shuffles the labels of its errors alone: are they at random? A
poor model may confuse classes as a rule, too; so this names an order only where the model is right on most images of the moved
classes in it. Otherwise it is a doubt.

What chance does not explain need not be an order: an untrained network, too, answers alike on alike pictures. So an order is
named only where the model is seen to know the classes: it is right on most images; or many outputs are right where they were
assumed, which random meanings seldom are; or nearly every one of five or more classes is recognised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb, perm

import numpy as np

SHUFFLES = 499
LEVEL = 1 / (SHUFFLES + 1)
"""An order is named where no shuffle shows as much."""
ORDINARY = 5
"""So many shuffles that show as much end the test."""
DOUBTS = 99
DOUBT = 0.05
KEPT_EVIDENCE = 1.5
"""The least evidence of a cycle that is part of an order: three images for it and none against it."""
KNOWS_MOST = {2: 0.75}
KNOWS = 0.7
RANDOM_MEANINGS = 0.05
MANY_CLASSES = 5
MOST_MOVED = 4
"""So many moved outputs are shown."""


@dataclass(frozen=True)
class OrderFound:
    """Holds the evidence of the answers on the order of the classes.

    Attributes:
        order: the names of the outputs that fit, where another order than the assumed one fits beyond chance; else None.
        way: the way of feeding under which the best order was found.
        explained: how often the model is right in the best order.
        assumed: how often it is right in the assumed order, under the best way for that.
        doubtful: whether another order fits better than these images can tell from chance.
    """

    order: tuple[str, ...] | None
    way: str
    explained: float
    assumed: float
    doubtful: bool


def describe_order(
    found: OrderFound, classes: Sequence[str], images: str, *, assumed: str = "the sorted order", fed: str = ""
) -> str:
    """Writes what another order changes, and what it gains; an empty text where none is named.

    Args:
        found: what the answers say.
        classes: the assumed order.
        images: which ones, `"256 old images"` for example.
        assumed: what the assumed order is called.
        fed: the way of feeding, `" with pixels torch"` for example.
    """
    if found.order is None:
        return ""
    moved = [f"{index} as {name!r}" for index, name in enumerate(found.order) if classes[index] != name]
    more = f" and {len(moved) - MOST_MOVED} more" if len(moved) > MOST_MOVED else ""
    return (
        f"reading output {', '.join(moved[:MOST_MOVED])}{more}{fed} is right on {100 * found.explained:.0f} % of {images}, "
        f"{assumed} on {100 * found.assumed:.0f} %"
    )


@dataclass(frozen=True)
class _Reading:
    """One way of feeding, read in its best order: `meanings[output]` is a class; `right` and `assumed` say on which images."""

    meanings: np.ndarray
    right: np.ndarray
    assumed: np.ndarray
    expected: float
    expected_assumed: float
    evidence: float


def judge_order(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str], seed: int = 0
) -> OrderFound:
    """Tests whether another order of classes than the assumed one fits a model's answers.

    Args:
        predictions: by way of feeding, `(n,)` the output that was highest.
        labels: `(n,)` indices into `classes`.
        classes: the assumed order.
        seed: of the shuffles.
    """
    labels = np.asarray(labels)
    rows = {way: np.asarray(predicted) for way, predicted in predictions.items()}
    evidence, way, readings = _largest(rows, labels, len(classes))
    best = readings[way]
    explained = float(best.right.mean())
    assumed = max(float(reading.assumed.mean()) for reading in readings.values())
    nothing = OrderFound(None, way, explained, assumed, doubtful=False)
    if evidence <= 0.0 or explained <= assumed:
        return nothing
    random = np.random.default_rng(seed)
    everything = np.ones(len(labels), bool)
    if _is_beyond_chance(evidence, rows, labels, len(classes), everything, random, SHUFFLES, LEVEL):
        if _knows_the_classes(rows[way], labels, best.meanings, len(classes)):
            return OrderFound(_named(classes, best.meanings), way, explained, assumed, doubtful=False)
        return OrderFound(None, way, explained, assumed, doubtful=True)
    sorted_way = max(readings, key=lambda name: int(readings[name].assumed.sum()))
    errors = ~readings[sorted_way].assumed
    if _knows_the_moved(rows[way], labels, best.meanings) and _is_beyond_chance(
        evidence, rows, labels, len(classes), errors, random, SHUFFLES, LEVEL
    ):
        return OrderFound(_named(classes, best.meanings), way, explained, assumed, doubtful=False)
    doubtful = _is_beyond_chance(evidence, rows, labels, len(classes), errors, random, DOUBTS, DOUBT)
    return OrderFound(None, way, explained, assumed, doubtful)


def _named(classes: Sequence[str], meanings: np.ndarray) -> tuple[str, ...]:
    return tuple(classes[int(meaning)] for meaning in meanings)


def _is_beyond_chance(
    evidence: float,
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    count: int,
    shuffled: np.ndarray,
    random: np.random.Generator,
    shuffles: int,
    level: float,
) -> bool:
    """Tells whether at most a share `level` of label shuffles (among the images `shuffled`) give as much evidence."""
    exceeded = 0
    places = np.nonzero(shuffled)[0]
    for done in range(1, shuffles + 1):
        permuted = labels.copy()
        permuted[places] = labels[random.permutation(places)]
        exceeded += _largest(predictions, permuted, count)[0] >= evidence
        if exceeded >= ORDINARY and exceeded > level * (done + 1):
            return False
    return (exceeded + 1) / (shuffles + 1) <= level


def _largest(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, count: int
) -> tuple[float, str, dict[str, _Reading]]:
    """The largest evidence for another order, the way of feeding under which it is, and all readings."""
    readings = {way: _read(predicted, labels, count) for way, predicted in predictions.items()}
    # The first of equal ways: they come in the order of their losses.
    sorted_way = max(readings, key=lambda way: int(readings[way].assumed.sum()))
    way = max(readings, key=lambda way: int(readings[way].right.sum()))
    best, usual = readings[way], readings[sorted_way]
    evidence = best.evidence if way == sorted_way else 0.0
    if way != sorted_way and (best.meanings != np.arange(count)).any():
        only_best = int((best.right & ~usual.assumed).sum())
        only_usual = int((usual.assumed & ~best.right).sum())
        evidence = _evidence(only_best, only_usual, best.expected, usual.expected_assumed)
    return evidence, way, readings


def _read(predicted: np.ndarray, labels: np.ndarray, count: int) -> _Reading:
    """Reads the answers of one way of feeding in the order that explains most."""
    from scipy.optimize import linear_sum_assignment

    n = len(labels)
    used = np.union1d(predicted, labels)  # an output that never answers keeps the meaning of a class without images
    size = len(used)
    place = np.zeros(count, np.int64)
    place[used] = np.arange(size)
    counts = np.bincount(place[predicted] * size + place[labels], minlength=size * size).reshape(size, size)
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / n
    # Of equal orders the one that leaves more outputs where they are.
    _, meanings = linear_sum_assignment(counts - expected + 1e-6 * np.eye(size), maximize=True)
    evidence, b, c, eb, ec = 0.0, 0, 0, 0.0, 0.0
    kept = np.arange(size)
    for cycle in _cycles(meanings):
        new, old = (cycle, meanings[cycle]), (cycle, cycle)
        figures = (
            int(counts[new].sum()), int(counts[old].sum()), float(expected[new].sum()), float(expected[old].sum()),
        )  # fmt: skip
        found = _evidence(*figures)
        if found >= KEPT_EVIDENCE:
            kept[cycle] = meanings[cycle]
            b, c, eb, ec = b + figures[0], c + figures[1], eb + figures[2], ec + figures[3]
            evidence = max(evidence, found)
    if evidence > 0.0:
        evidence = max(evidence, _evidence(b, c, eb, ec))
    meaning = np.arange(count)
    meaning[used] = used[kept]
    diagonal = float(np.trace(expected))
    return _Reading(meaning, meaning[predicted] == labels, predicted == labels, diagonal + eb - ec, diagonal, evidence)


def _evidence(b: int, c: int, eb: float, ec: float) -> float:
    """How far `b` images for an order outweigh `c` against it, beyond what `eb` and `ec` were expected, in its noise."""
    return float(((b - c) - (eb - ec)) / np.sqrt(b + c + eb + ec)) if b > c else 0.0


def _cycles(meanings: np.ndarray) -> Iterator[np.ndarray]:
    """The cycles of a permutation that move anything."""
    done = meanings == np.arange(len(meanings))
    for start in np.nonzero(~done)[0]:
        if done[start]:
            continue
        cycle = [int(start)]
        while (following := int(meanings[cycle[-1]])) != start:
            cycle.append(following)
        done[cycle] = True
        yield np.array(cycle)


def _knows_the_classes(predicted: np.ndarray, labels: np.ndarray, meanings: np.ndarray, count: int) -> bool:
    """Tells whether a model that is read in this order has learned the classes; an untrained one answers by them, too."""
    n, seen = len(labels), len(np.unique(labels))
    if (meanings[predicted] == labels).mean() >= KNOWS_MOST.get(seen, KNOWS):
        return True
    recognised = []
    for output in np.unique(predicted):
        answered, meant = predicted == output, labels == meanings[output]
        expected = answered.sum() * meant.sum() / n
        if (answered & meant).sum() > max(expected + 2 * np.sqrt(expected), 1):
            recognised.append(int(output))
    if seen >= MANY_CLASSES and len(recognised) >= seen - seen // 7:
        return True
    in_place = sum(int(meanings[output]) == output for output in recognised)
    # At most this is the probability that so many of the recognised outputs mean their own class by chance.
    return bool(in_place and comb(len(recognised), in_place) / perm(count, in_place) <= RANDOM_MEANINGS)


def _knows_the_moved(predicted: np.ndarray, labels: np.ndarray, meanings: np.ndarray) -> bool:
    """Tells whether a model that is read in this order is right on most images of every class that the order moves."""
    moved = np.nonzero(meanings != np.arange(len(meanings)))[0]
    right = meanings[predicted] == labels
    shares = [right[labels == label].mean() for label in moved if (labels == label).any()]
    return bool(len(shares) > 1 and min(shares) >= KNOWS)
