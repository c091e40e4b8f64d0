"""Finds the values that a foreign model was trained on by scoring it on images that it knows.

    probe = probe_feedings(model.predict_on_batch, {"0-1": pictures_0_1, "-1-1": ...}, labels, "probabilities")
    probe.winner                                  # "0-1", or None

A model restored bit for bit and fed the wrong values is worthless, so nothing is guessed: without a clear winner the caller
raises. Two conventions can be right equally often and still be told apart, because the loss falls with every image that
the model is surer of: ways of feeding are compared image by image. Sureness alone is no evidence, though (`_not_only_surer`):
larger values make most models surer, and one that stopped early or had its labels smoothed is less sure than it is right. The
order of the classes is `class_order`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.evaluation.score import SMALLEST_PROBABILITY, OutputKind, image_losses, predict_all

PROBE_BATCH = 32
CLEAR_ERRORS = 2.0
"""How many standard errors of the mean difference in loss make a winner: once in 40 probes chance does as much."""
CLEAR_POINTS = 0.05
TEMPERATURES = np.geomspace(1 / 16, 1.0, 24)
"""Temperatures tried on the logits of a way that is not sure enough; `0-255` differs from the others by a larger factor."""
SMALL_LOSS, SMALL_SHARE = 0.05, 0.1
"""How much worse a convention may be, at most, to be taken because it is the usual one: in nats, or as a share of its loss."""
ROUNDING = 1e-5
SURE_SHARE = 0.2
"""Of the loss of a guess: a model below it is sure of its answers."""
ONE_IMAGE = 1
"""So many images may chance to be right or wrong under values of another size."""
KNOWS_THEM = 0.8
"""Right so often on a first look, a model is read in the right order."""
MOST_SHOWN = 3


@dataclass(frozen=True)
class Probe:
    """How a model did under each way of feeding it, best first.

    Attributes:
        accuracies: share of right answers, by way.
        losses: mean cross-entropy in nats, by way.
        winner: the way that is clearly right, or None.
        above_chance: whether the best one is right more often than chance explains.
        predictions: `(n,)` the classes predicted, by way.
        fitting: the winner, or the ways between which the answers do not decide.
        tried: the ways in the order in which they were given.
    """

    accuracies: Mapping[str, float]
    losses: Mapping[str, float]
    winner: str | None
    above_chance: bool
    predictions: Mapping[str, np.ndarray]
    fitting: tuple[str, ...]
    tried: tuple[str, ...]

    @property
    def best(self) -> str:
        """The way with the lowest loss, among those that are right about as often as any."""
        return next(iter(self.losses))

    @property
    def table(self) -> str:
        """The best three: `"0-1 gives 80.9 % (loss 0.61); torch gives 80.5 % (loss 0.74)"`; the winner first."""
        first = [self.winner] if self.winner is not None else []
        return self.show([*first, *(name for name in self.accuracies if name not in first)][:MOST_SHOWN])

    def show(self, names: Iterable[str]) -> str:
        """Writes accuracy and loss of these ways."""
        return "; ".join(
            f"{name} gives {100 * self.accuracies[name]:.1f} % (loss {self.losses[name]:.2f})" for name in names
        )


def probe_feedings(
    predict: Callable[[Any], Any],
    feedings: Mapping[str, Callable[[], Any]],
    labels: np.ndarray,
    kind: OutputKind,
    usual: Collection[str] | None = None,
    twins: Iterable[tuple[str, str]] = (),
    louder: Iterable[tuple[str, str]] = (),
) -> Probe:
    """Scores a model on the same labelled images, fed in several ways.

    Args:
        predict: `(batch, height, width, channels) float32` -> outputs.
        feedings: by name, what gives the images as the model would take them, `(n, height, width, channels) float32`.
        labels: `(n,)` indices of classes.
        kind: what the outputs are.
        usual: the ways that are taken before others; default all.
        twins: a usual way and another that are nearly the same: the better of them stands for both.
        louder: ways with one whose values they give larger.

    Returns:
        Ways that are right clearly less often than the best one are out. The winner beats chance, and its loss is below that
        of every other by more than chance explains. Of the usual ways one wins so against the usual ways alone. Another way
        needs more, because there are many: its loss is below every usual one's at a level shared among them (Bonferroni), and
        clearly below the others'. Where it is a little better than the best usual one, but not so clearly, the usual one wins
        if it costs little at most (`SMALL_LOSS`); else nobody does. Who may only be surer does not win: `_not_only_surer`.
    """
    predictions: dict[str, np.ndarray] = {}
    losses: dict[str, np.ndarray] = {}
    fair: dict[str, np.ndarray] = {}
    for name, feeding in feedings.items():
        probabilities = predict_all(predict, _batches(np.asarray(feeding())), kind)
        predictions[name] = probabilities.argmax(axis=-1)
        losses[name] = image_losses(probabilities, labels)
        fair[name] = fair_losses(probabilities, labels)
    accuracies = {name: float((predicted == labels).mean()) for name, predicted in predictions.items()}
    ranked = sorted(feedings, key=lambda name: float(losses[name].mean()))
    right = _most_right(ranked, {name: (predicted != labels).astype(float) for name, predicted in predictions.items()})
    ranked = [*right, *(name for name in ranked if name not in right)]
    known = set(feedings if usual is None else usual)
    rivals = list(right)
    for pair in twins:
        if set(pair) <= set(rivals):
            better, other = sorted(pair, key=rivals.index)
            rivals.remove(other)
            known.add(better)
    fitting = _fitting(rivals, losses, known)
    guess = SURE_SHARE * float(np.log(max(len(np.unique(labels)), 2)))
    counts = {way: int((predicted == labels).sum()) for way, predicted in predictions.items()}
    sure = {way for way in rivals if losses[way].mean() < guess}
    compared = [way for way in rivals if way in known or fitting[0] not in known]
    fitting = _not_only_surer(fitting, compared, fair, counts, sure, louder)
    above_chance = accuracies[fitting[0]] > _chance(accuracies[fitting[0]], labels)
    return Probe(
        accuracies={name: accuracies[name] for name in ranked},
        losses={name: float(losses[name].mean()) for name in ranked},
        winner=fitting[0] if above_chance and len(fitting) == 1 else None,
        above_chance=above_chance,
        predictions={name: predictions[name] for name in ranked},
        fitting=fitting,
        tried=tuple(feedings),
    )


def promising(probe: Probe) -> tuple[str, ...]:
    """The ways that are worth more images after a first look at a few, in the order in which they were tried.

    All of them, unless the model is right on most images under one: else the order of the classes may be another, and the
    right way be the one that seems to be the worst.
    """
    if not probe.above_chance or probe.accuracies[probe.best] < KNOWS_THEM:
        return tuple(probe.tried)
    kept = {*list(probe.accuracies)[: MOST_SHOWN + 1], *probe.fitting}
    return tuple(name for name in probe.tried if name in kept)


def fair_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cross-entropy of each image, `(images,)`, had the model been as sure of its answers as they are right.

    A model that is too sure gains nothing: that is what wrong numbers do to it.

    Args:
        probabilities: `(images, classes)`.
        labels: `(images,)` indices of classes.
    """
    logits = np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1.0))
    logits -= logits.max(axis=-1, keepdims=True)

    def at(temperature: float) -> np.ndarray:
        scaled = logits / temperature
        return np.asarray(np.log(np.exp(scaled).sum(axis=-1)) - scaled[np.arange(len(labels)), labels])

    return min((at(temperature) for temperature in TEMPERATURES), key=lambda losses: float(losses.mean()))


def _most_right(ways: list[str], errors: Mapping[str, np.ndarray]) -> list[str]:
    """The ways that are not clearly less right than the most right one: a loss says nothing for a way that is wrong."""
    from scipy.stats import norm

    best = min(ways, key=lambda way: float(errors[way].mean()))
    level = float(norm.isf(norm.sf(CLEAR_ERRORS) / max(len(ways) - 1, 1)))
    return [way for way in ways if not is_clearly_lower(errors[best], errors[way], level)]


def _fitting(ranked: list[str], losses: Mapping[str, np.ndarray], usual: Collection[str]) -> tuple[str, ...]:
    """The ways between which the losses do not decide, best first; one alone is the winner."""
    known, others = [way for way in ranked if way in usual], [way for way in ranked if way not in usual]

    def alike(way: str, rivals: Iterable[str], errors: float) -> list[str]:
        return [name for name in rivals if name != way and not is_clearly_lower(losses[way], losses[name], errors)]

    best = ranked[0]
    if best in known:
        return (best, *alike(best, known, CLEAR_ERRORS))
    from scipy.stats import norm

    once_in_40 = float(norm.sf(CLEAR_ERRORS))
    rivals = alike(best, known, float(norm.isf(once_in_40 / len(others)))) + alike(best, others, CLEAR_ERRORS)
    if rivals and known and rivals[0] == known[0]:
        difference = losses[known[0]] - losses[best]
        at_most = difference.mean() + CLEAR_ERRORS * difference.std() / np.sqrt(len(difference))
        if at_most <= max(SMALL_LOSS, SMALL_SHARE * losses[known[0]].mean()):
            return (known[0], *alike(known[0], known, CLEAR_ERRORS))
    return (best, *sorted(rivals, key=ranked.index))


def _not_only_surer(
    fitting: tuple[str, ...],
    rivals: Sequence[str],
    fair: Mapping[str, np.ndarray],
    right: Mapping[str, int],
    sure: Collection[str],
    louder: Iterable[tuple[str, str]],
) -> tuple[str, ...]:
    """Takes sureness out of the comparison: who has the lower loss may only be surer than the others.

    Each way is first given the sureness that its answers deserve (`fair_losses`). Ways that then answer clearly worse than
    the best one are out, and the best one is in. A model that is always right leaves nothing to compare by then. There a way
    does not win against one of smaller values on which the model is right and sure, too: larger values alone would do that.

    Args:
        fitting: the ways between which the losses do not decide, best first.
        rivals: the ways with which they are compared.
        fair: `fair_losses` of each.
        right: how many images are right, by way.
        sure: the ways under which the model is sure of its answers.
        louder: ways with one whose values they give larger.
    """
    best = min([*fitting, *rivals], key=lambda way: float(fair[way].mean()))
    if fair[best].mean() > fair[fitting[0]].mean() - ROUNDING:
        best = fitting[0]
    ways = fitting if best in fitting else sorted((best, *fitting), key=lambda way: float(fair[way].mean()))
    left = tuple(way for way in ways if way == best or not is_clearly_lower(fair[best], fair[way]))
    first = left[0]
    quieter = (quiet for loud, quiet in louder if loud == first and quiet in sure and quiet not in left)
    return (
        *left,
        *(
            quiet
            for quiet in quieter
            if right[quiet] >= right[first] - ONE_IMAGE and not is_clearly_lower(fair[first], fair[quiet])
        ),
    )


def _batches(images: np.ndarray) -> Iterable[tuple[np.ndarray, int]]:
    for start in range(0, len(images), PROBE_BATCH):
        part = images[start : start + PROBE_BATCH]
        yield np.concatenate([part, np.repeat(part[-1:], PROBE_BATCH - len(part), axis=0)]), len(part)


def _chance(accuracy: float, labels: np.ndarray) -> float:
    """What always answering the commonest class reaches, and what luck adds to it."""
    commonest = max(np.bincount(labels).max() / len(labels), 1 / max(len(np.unique(labels)), 2))
    return float(commonest + max(CLEAR_POINTS, 2 * np.sqrt(accuracy * (1 - accuracy) / len(labels))))


def is_clearly_lower(one: np.ndarray, other: np.ndarray, errors: float = CLEAR_ERRORS) -> bool:
    """Whether the mean of `one` is below that of `other` by more than chance explains, compared pair by pair."""
    difference = other - one
    error = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() > max(errors * error, ROUNDING))
