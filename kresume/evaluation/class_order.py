"""Tests if a model's outputs are in another class order than assumed.

    found = judge_order({"0-1": predicted, "-1-1": ...}, labels, classes)
    found.order             # the order that fits beyond chance, if the assumed one does not; else None
    found.doubtful          # True if the assumed order may be wrong and these images cannot decide

A model restored bit for bit but read in the wrong class order gives wrong answers without an error, for all classes or
for a few. A fixed gap in accuracy would miss that, or report an order for a model that is merely poor. So the evidence
is tested statistically. A *candidate* is a possible input of the model (see `probe`).

The statistic. For each candidate, the best order is the assignment of outputs to classes with the largest excess over
chance: counts minus the product of their margins (Kuhn, The Hungarian method, 1955). It differs from the assumed order
by cycles of outputs. The evidence of a cycle is how much more often its outputs are right than in the assumed order, minus
what the margins alone explain, in units of its noise: `((b - c) - (eb - ec)) / sqrt(b + c + eb + ec)`. Here b counts
the images that are right only in the new order and c those that are right only in the assumed one; eb and ec are their
expectations for shuffled labels. This is McNemar's test (1947) without the margins, so that imbalanced samples and
models that always give the same answer show no evidence. The statistic is the largest evidence of any cycle, of all
cycles together, and of any candidate with an order of its own against the best candidate in the assumed order.

The null hypothesis. The labels are shuffled, and everything is computed again: all candidates, all orders, all cycles.
So every combination that is tried counts as a comparison, and the observed value must exceed the largest value by chance
(permutation test with the maximum statistic; Westfall and Young, Resampling-Based Multiple Testing, 1993). A poor model
in the right order gives less evidence than shuffled labels do. Shuffling stops early if the evidence is clearly
ordinary (Besag and Clifford, Sequential Monte Carlo p-values, 1991).

Few outputs of many. If a good model has two of twenty outputs exchanged, shuffling all labels is too strict. So a
second test shuffles only the labels of the images that the assumed order gets wrong: are these errors random? A poor
model may also confuse classes systematically; so this test reports an order only if the model, read in that order, is
right on most images of the moved classes. Otherwise the result is doubtful.

Evidence beyond chance does not have to come from another order: an untrained network also gives the same answer for
similar pictures. So an order is reported only if the model evidently knows the classes. That is: it is right on most
images (with eight classes or more, on more than untrained networks ever were); or many outputs are right with their
assumed class, which random meanings rarely are; or nearly all of five or more classes are recognised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb, perm

import numpy as np

from kresume.class_names import join_classes
from kresume.images.order import permutation
from kresume.spelling import option

SHUFFLES = 499
LEVEL = 1 / (SHUFFLES + 1)
"""An order is reported if no shuffle gives as much evidence."""
ORDINARY = 5
"""Number of shuffles with as much evidence that end the test."""
DOUBTS = 99
DOUBT = 0.05
KEPT_EVIDENCE = 1.5
"""The least evidence of a cycle that becomes part of an order: three images for it and none against it."""
KNOWS_MOST = {2: 0.75}
KNOWS = 0.7
KNOWS_OF_MANY = 0.55
"""The share of right images in the best order that untrained networks do not reach: with three classes they reached 0.70,
with five 0.58, with ten 0.39 (scikit-learn's digits; less on photos)."""
EIGHT = 8
"""Number of classes from which `KNOWS_OF_MANY` holds."""
RANDOM_MEANINGS = 0.05
MANY_CLASSES = 5
DOUBTED = 512
"""Number of images on which an order is tested; with a thousand classes, all images would take minutes."""
MOST_MOVED = 4
"""Number of moved outputs that are shown."""


@dataclass(frozen=True)
class OrderFound:
    """The evidence of a model's predictions on the class order.

    Attributes:
        order: the class names of the outputs, if another order than the assumed one fits beyond chance; else None.
        candidate: the candidate with the best order.
        explained: accuracy in the best order.
        assumed: accuracy in the assumed order, under the best candidate for it.
        doubtful: True if another order fits better, but these images cannot tell it from chance, or from an untrained model.
        likely: that order, if shuffled labels never fit so well; else empty.
    """

    order: tuple[str, ...] | None
    candidate: str
    explained: float
    assumed: float
    doubtful: bool
    likely: tuple[str, ...] = ()

    def describe_doubt(self) -> str:
        """Describes both orders: `"is right on 12.5 % in that order and on 46.0 % in another, ..."`."""
        reason = "more than by chance, though an untrained model may be" if self.likely else "which may be chance"
        return f"right on {100 * self.assumed:.1f} % in that order and on {100 * self.explained:.1f} % in another, {reason}"


def doubt_order(
    predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str], way: str, *, assumed: bool
) -> tuple[str, bool]:
    """Returns a note on the order of the outputs, and True if the images contradict it.

    Args:
        predicted: `(n,)` the predicted classes, as indices; -1 for none of them.
        labels: `(n,)` the classes of the images.
        classes: the order that was used.
        way: the option that gives the order.
        assumed: True if nobody gave it; an order that was given is doubted only if the images contradict it.
    """
    sample = permutation(0, 0, len(labels))[:DOUBTED]
    predicted, labels = predicted[sample], labels[sample]
    found = judge_order({"": predicted}, labels, classes)
    used = "the sorted class folders" if list(classes) == sorted(classes) else join_classes(classes)
    if found.order is not None:
        better = describe_order(
            found, classes, f"{len(labels)} images", assumed="the sorted order" if assumed else option(way)
        )
        given = option(way, join_classes(found.order))
        if assumed:
            return f"its outputs are not in the order of {used}: {better}: give {given}", True
        return (
            f"these images contradict the order that {option(way)} gives: {better}: {given} would be that order",
            True,
        )
    if found.doubtful and assumed:
        return (
            f"it does not name its outputs, and these images do not show whether {used} are their order: it is "
            f"{found.describe_doubt()}; give the order with {option(way, join_classes(found.likely) or 'a,b,c')}"
        ), False
    return "", False


def describe_order(
    found: OrderFound, classes: Sequence[str], images: str, *, assumed: str = "the sorted order", fed: str = ""
) -> str:
    """Describes what another order changes and gains; empty if none was found.

    Args:
        found: the result of `judge_order`.
        classes: the assumed order.
        images: the images, for example `"256 old images"`.
        assumed: a name of the assumed order.
        fed: the candidate, for example `" with pixels torch"`.
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
    """The predictions of one candidate, read in its best order.

    Attributes:
        meanings: the class of each output.
        right: the images that are right in the best order.
        assumed: the images that are right in the assumed order.
        expected: the number of right images to expect by chance in the best order.
        expected_assumed: likewise in the assumed order.
        evidence: the largest evidence for the best order.
    """

    meanings: np.ndarray
    right: np.ndarray
    assumed: np.ndarray
    expected: float
    expected_assumed: float
    evidence: float


def judge_order(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str], seed: int = 0
) -> OrderFound:
    """Tests if another class order than the assumed one fits a model's predictions.

    Args:
        predictions: by candidate, `(n,)` the index of the highest output.
        labels: `(n,)` indices into `classes`.
        classes: the assumed order.
        seed: seed of the shuffles.
    """
    labels = np.asarray(labels)
    rows = {candidate: np.asarray(predicted) for candidate, predicted in predictions.items()}
    evidence, candidate, readings = _largest(rows, labels, len(classes))
    best = readings[candidate]
    explained = float(best.right.mean())
    assumed = max(float(reading.assumed.mean()) for reading in readings.values())
    nothing = OrderFound(None, candidate, explained, assumed, doubtful=False)
    if evidence <= 0.0 or explained <= assumed:
        return nothing
    random = np.random.default_rng(seed)
    everything = np.ones(len(labels), bool)
    if _is_beyond_chance(evidence, rows, labels, len(classes), everything, random, SHUFFLES, LEVEL):
        if _knows_the_classes(rows[candidate], labels, best.meanings, len(classes)):
            return OrderFound(_named(classes, best.meanings), candidate, explained, assumed, doubtful=False)
        return OrderFound(None, candidate, explained, assumed, doubtful=True, likely=_named(classes, best.meanings))
    best_assumed = max(readings, key=lambda name: int(readings[name].assumed.sum()))
    errors = ~readings[best_assumed].assumed
    if _knows_the_moved(rows[candidate], labels, best.meanings) and _is_beyond_chance(
        evidence, rows, labels, len(classes), errors, random, SHUFFLES, LEVEL
    ):
        return OrderFound(_named(classes, best.meanings), candidate, explained, assumed, doubtful=False)
    doubtful = _is_beyond_chance(evidence, rows, labels, len(classes), errors, random, DOUBTS, DOUBT)
    return OrderFound(None, candidate, explained, assumed, doubtful)


def best_accuracy(predicted: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Returns the accuracy in the order of classes that fits best, which is not tested against chance.

    Args:
        predicted: `(n,)` the index of the highest output.
        labels: `(n,)` class indices.
        count: number of classes.
    """
    return float(_read(predicted, labels, count).right.mean())


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
    """Returns True if few shuffles of the labels give as much evidence.

    At most a share `level` of them may. Only the labels of the images in the mask `shuffled` are shuffled.
    """
    exceeded = 0
    rows = np.nonzero(shuffled)[0]
    for done in range(1, shuffles + 1):
        permuted = labels.copy()
        permuted[rows] = labels[random.permutation(rows)]
        exceeded += _largest(predictions, permuted, count)[0] >= evidence
        if exceeded >= ORDINARY and exceeded > level * (done + 1):
            return False
    return (exceeded + 1) / (shuffles + 1) <= level


def _largest(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, count: int
) -> tuple[float, str, dict[str, _Reading]]:
    """Returns the largest evidence for another order, its candidate, and all readings."""
    readings = {candidate: _read(predicted, labels, count) for candidate, predicted in predictions.items()}
    # The first of equal candidates: they are sorted by loss.
    best_assumed = max(readings, key=lambda candidate: int(readings[candidate].assumed.sum()))
    candidate = max(readings, key=lambda candidate: int(readings[candidate].right.sum()))
    best, usual = readings[candidate], readings[best_assumed]
    evidence = best.evidence if candidate == best_assumed else 0.0
    if candidate != best_assumed and (best.meanings != np.arange(count)).any():
        only_best = int((best.right & ~usual.assumed).sum())
        only_usual = int((usual.assumed & ~best.right).sum())
        evidence = _evidence(only_best, only_usual, best.expected, usual.expected_assumed)
    return evidence, candidate, readings


def _read(predicted: np.ndarray, labels: np.ndarray, count: int) -> _Reading:
    """Reads the predictions of one candidate in the order that explains most."""
    from scipy.optimize import linear_sum_assignment

    n = len(labels)
    used = np.union1d(predicted, labels)  # an output never chosen keeps the meaning of a class without images
    size = len(used)
    index_of = np.zeros(count, np.int64)
    index_of[used] = np.arange(size)
    counts = np.bincount(index_of[predicted] * size + index_of[labels], minlength=size * size).reshape(size, size)
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / n
    # Of equal orders, prefer the one that moves fewer outputs.
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
    """Returns how far `b` exceeds `c` beyond expectation, in units of the noise.

    `b` images are right only in the new order, `c` only in the assumed one; `eb` and `ec` are their expectations.
    """
    return float(((b - c) - (eb - ec)) / np.sqrt(b + c + eb + ec)) if b > c else 0.0


def _cycles(meanings: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the cycles of a permutation with more than one element."""
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
    """Returns True if the model, read in this order, has learned the classes.

    The predictions of an untrained model also depend on the classes.
    """
    n, seen = len(labels), len(np.unique(labels))
    enough = KNOWS_OF_MANY if seen >= EIGHT else KNOWS_MOST.get(seen, KNOWS)
    if (meanings[predicted] == labels).mean() >= enough:
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
    # An upper bound of the probability that so many of the recognised outputs mean their own class by chance.
    return bool(in_place and comb(len(recognised), in_place) / perm(count, in_place) <= RANDOM_MEANINGS)


def _knows_the_moved(predicted: np.ndarray, labels: np.ndarray, meanings: np.ndarray) -> bool:
    """Returns True if the model is right on most images of every moved class."""
    moved = np.nonzero(meanings != np.arange(len(meanings)))[0]
    right = meanings[predicted] == labels
    shares = [right[labels == label].mean() for label in moved if (labels == label).any()]
    return bool(len(shares) > 1 and min(shares) >= KNOWS)
