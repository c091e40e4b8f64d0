"""Finds a foreign model's pixel convention by scoring it on its training images.

    probe = probe_feedings(model.predict_on_batch, {"0-1": pictures_0_1, "-1-1": ...}, labels, head)
    probe.winner                                  # "0-1", or None

A *candidate* is a possible input of the model: a pixel convention, with an input layout if that is unknown too. A
restored model with wrong input values is useless, so nothing is guessed: without a clear winner the caller raises.

Two conventions can have the same accuracy and still be told apart, because the loss decreases with the confidence on
each image: candidates are compared image by image. Confidence alone is no evidence, though (`_not_only_surer`): larger
input values make most models more confident, and a model trained with early stopping or label smoothing is less
confident than it is accurate. `class_order` finds the order of the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.evaluation.score import predict_all
from kresume.tasks.one_class import SMALLEST_PROBABILITY
from kresume.tasks.task import Head

PROBE_BATCH = 32
PROBE_IMAGES = 256
CLEAR_ERRORS = 2.0
"""A winner's mean difference in loss, in standard errors; chance reaches this in one of 40 probes."""
CLEAR_POINTS = 0.05
TEMPERATURES = np.geomspace(1 / 16, 1.0, 24)
"""Temperatures tried on the logits of an underconfident candidate; `0-255` differs from the others by a larger factor."""
SMALL_LOSS, SMALL_SHARE = 0.05, 0.1
"""How much worse the usual convention may be, at most, to be preferred: in nats, or as a share of its loss."""
ROUNDING = 1e-5
SURE_SHARE = 0.2
"""Share of the loss of a guess; a model with a smaller loss counts as confident."""
MORE_ERRORS = 1.5
"""By how many standard errors a model must be right on more images under values of a larger scale: 3 more, if on none less."""
WEAK, AS_OFTEN = 0.6, 0.7
"""A model that is right less often than `WEAK` on what it was trained on does not show its convention, if it is right
`AS_OFTEN` times as often under another usual one: while a model learns, larger values or others suit it better by chance."""
KNOWS_THEM = 0.8
"""Accuracy on a first sample from which on the class order counts as right."""
MOST_SHOWN = 3


@dataclass(frozen=True)
class Probe:
    """The scores of a model for each candidate, best first.

    Attributes:
        accuracies: accuracy, by candidate.
        losses: mean cross-entropy in nats, by candidate.
        winner: the candidate that is clearly right, or None.
        above_chance: True if the best candidate is more accurate than chance explains.
        predictions: `(n,)` predicted classes, by candidate.
        fitting: the winner alone, or the candidates that the predictions cannot tell apart.
        tried: the candidates in the order given.
        image_losses: `(n,)` cross-entropy of each image, by candidate.
    """

    accuracies: Mapping[str, float]
    losses: Mapping[str, float]
    winner: str | None
    above_chance: bool
    predictions: Mapping[str, np.ndarray]
    fitting: tuple[str, ...]
    tried: tuple[str, ...]
    image_losses: Mapping[str, np.ndarray]

    @property
    def best(self) -> str:
        """Returns the candidate with the lowest loss among those of about the highest accuracy."""
        return next(iter(self.losses))

    @property
    def table(self) -> str:
        """Lists the best three candidates, the winner first.

        For example `"0-1 gives 80.9 % (loss 0.61); torch gives 80.5 % (loss 0.74)"`.
        """
        first = [self.winner] if self.winner is not None else []
        return self.show([*first, *(name for name in self.accuracies if name not in first)][:MOST_SHOWN])

    def show(self, names: Iterable[str]) -> str:
        """Lists accuracy and loss of these candidates."""
        return "; ".join(
            f"{name} gives {100 * self.accuracies[name]:.1f} % (loss {self.losses[name]:.2f})" for name in names
        )


def probe_feedings(
    predict: Callable[[Any], Any],
    feedings: Mapping[str, Callable[[], Any]],
    labels: np.ndarray,
    head: Head,
    usual: Collection[str] | None = None,
    similar: Iterable[tuple[str, str]] = (),
    larger: Collection[tuple[str, str]] = (),
    *,
    unseen: bool = False,
) -> Probe:
    """Scores a model on the same labelled images under several input conventions.

    Args:
        predict: `(batch, height, width, channels) float32` -> outputs.
        feedings: by candidate, a function that returns the model input `(n, height, width, channels) float32`.
        labels: `(n,)` indices of classes.
        head: how the model answers.
        usual: the candidates that are preferred; default all.
        similar: pairs of a usual candidate and another that are nearly the same; the better of a pair represents both.
        larger: pairs of candidates; the first gives larger values than the second.
        unseen: True if the model may not have been trained on these images.

    Returns:
        The scores and the winner, by these rules:

        - A candidate that is clearly less accurate than the most accurate one is excluded.
        - The winner is more accurate than chance, and its loss is below that of every other candidate by more than
          chance explains.
        - A usual candidate needs to win only against the other usual candidates.
        - Another candidate needs more evidence, because there are many. Its loss must be below that of every usual one at
          a level shared among the others (Bonferroni), and clearly below that of the others. If it is better than the
          best usual one, but not so clearly, the usual one wins if it costs little at most (`SMALL_LOSS`); else none
          wins.
        - A model that is seldom right (`WEAK`) shows no winner if it is about as often right under another usual candidate.
        - A candidate that may only be more confident does not win: see `_not_only_surer`. On unseen images, where a model
          is often more confident than right, only its accuracy tells larger values from smaller ones.
    """
    predictions: dict[str, np.ndarray] = {}
    losses: dict[str, np.ndarray] = {}
    fair: dict[str, np.ndarray] = {}
    for name, feeding in feedings.items():
        probabilities = predict_all(predict, _batches(np.asarray(feeding())), head)
        predictions[name] = head.task.answers(probabilities)
        losses[name] = head.task.image_losses(probabilities, labels)
        fair[name] = fair_losses(probabilities, labels)
    accuracies = {name: float((predicted == labels).mean()) for name, predicted in predictions.items()}
    ranked = sorted(feedings, key=lambda name: float(losses[name].mean()))
    errors = {name: (predicted != labels).astype(float) for name, predicted in predictions.items()}
    right = most_right(ranked, errors)
    ranked = [*right, *(name for name in ranked if name not in right)]
    known = set(feedings if usual is None else usual)
    rivals = list(right)
    for pair in similar:
        if set(pair) <= set(rivals):
            better, other = sorted(pair, key=rivals.index)
            rivals.remove(other)
            known.add(better)
    fitting = _fitting(rivals, losses, known)
    guess = SURE_SHARE * float(np.log(max(len(np.unique(labels)), 2)))
    sure = {candidate for candidate in rivals if losses[candidate].mean() < losses[fitting[0]].mean() + guess}
    compared = [candidate for candidate in rivals if candidate in known or fitting[0] not in known]
    fitting = _not_only_surer(fitting, compared, fair, errors, sure, larger)
    if unseen:
        first, pairs = fitting[0], {*larger}
        unlike = [name for name in compared if name not in fitting and {(first, name), (name, first)} & pairs]
        fitting = (*fitting, *(name for name in unlike if not is_clearly_lower(errors[first], errors[name])))
    if (reached := accuracies[fitting[0]]) < WEAK:
        others = [name for name in feedings if name not in fitting and name in (feedings if usual is None else usual)]
        fitting = (*fitting, *(name for name in others if accuracies[name] >= AS_OFTEN * reached))
    above_chance = reached > _chance(reached, labels)
    return Probe(
        accuracies={name: accuracies[name] for name in ranked},
        losses={name: float(losses[name].mean()) for name in ranked},
        winner=fitting[0] if above_chance and len(fitting) == 1 else None,
        above_chance=above_chance,
        predictions={name: predictions[name] for name in ranked},
        fitting=fitting,
        tried=tuple(feedings),
        image_losses=losses,
    )


def promising(probe: Probe) -> tuple[str, ...]:
    """Returns the candidates to score on more images after a first probe.

    They are in the order tried. These are all candidates, unless the model is right on most images under one. Without
    such a candidate the class order may differ from the assumed one, and then the right candidate may seem the worst.
    """
    if not probe.above_chance or probe.accuracies[probe.best] < KNOWS_THEM:
        return tuple(probe.tried)
    kept = {*list(probe.accuracies)[: MOST_SHOWN + 1], *probe.fitting}
    return tuple(name for name in probe.tried if name in kept)


def fair_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the cross-entropy of each image with confidence raised to match accuracy.

    Scales the logits by the temperature of the lowest mean loss (temperature scaling). Temperatures are at most 1, so
    an overconfident model gains nothing: overconfidence is an effect of wrong input values.

    Args:
        probabilities: `(images, classes)`.
        labels: `(images,)` indices of classes.

    Returns:
        `(images,)` losses in nats.
    """
    logits = np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1.0))
    logits -= logits.max(axis=-1, keepdims=True)

    def at(temperature: float) -> np.ndarray:
        scaled = logits / temperature
        return np.asarray(np.log(np.exp(scaled).sum(axis=-1)) - scaled[np.arange(len(labels)), labels])

    return min((at(temperature) for temperature in TEMPERATURES), key=lambda losses: float(losses.mean()))


def most_right(candidates: list[str], errors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the candidates whose accuracy is not clearly below the highest.

    The loss of a clearly less accurate candidate is no evidence.
    """
    from scipy.stats import norm

    best = min(candidates, key=lambda candidate: float(errors[candidate].mean()))
    level = float(norm.isf(norm.sf(CLEAR_ERRORS) / max(len(candidates) - 1, 1)))
    return [candidate for candidate in candidates if not is_clearly_lower(errors[best], errors[candidate], level)]


def _fitting(ranked: list[str], losses: Mapping[str, np.ndarray], usual: Collection[str]) -> tuple[str, ...]:
    """Returns the candidates that the losses cannot tell apart, best first.

    A single one is the winner.
    """
    known, others = (
        [candidate for candidate in ranked if candidate in usual],
        [candidate for candidate in ranked if candidate not in usual],
    )

    def alike(candidate: str, rivals: Iterable[str], errors: float) -> list[str]:
        return [
            name
            for name in rivals
            if name != candidate and not is_clearly_lower(losses[candidate], losses[name], errors)
        ]

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
    errors: Mapping[str, np.ndarray],
    sure: Collection[str],
    larger: Iterable[tuple[str, str]],
) -> tuple[str, ...]:
    """Corrects for confidence: a lower loss may come from higher confidence alone.

    First, each candidate gets the confidence that matches its accuracy (`fair_losses`). Those that are then clearly worse
    than the best one are excluded, and the best one is included. If the model is always right, this leaves nothing to
    compare. So a candidate does not win against one of smaller values under which the model is about as often right and as
    confident, because larger values alone would raise the confidence.

    Args:
        fitting: the candidates that the losses cannot tell apart, best first.
        rivals: the candidates to compare them with.
        fair: `fair_losses`, by candidate.
        errors: `(n,)` 1 for a wrong answer, else 0, by candidate.
        sure: the candidates under which the model is about as confident.
        larger: pairs of candidates; the first gives larger values than the second.
    """
    best = min([*fitting, *rivals], key=lambda candidate: float(fair[candidate].mean()))
    if fair[best].mean() > fair[fitting[0]].mean() - ROUNDING:
        best = fitting[0]
    candidates = (
        fitting if best in fitting else sorted((best, *fitting), key=lambda candidate: float(fair[candidate].mean()))
    )
    left = tuple(
        candidate for candidate in candidates if candidate == best or not is_clearly_lower(fair[best], fair[candidate])
    )
    first = left[0]
    smaller = (small for large, small in larger if large == first and small in sure and small not in left)
    return (
        *left,
        *(
            small
            for small in smaller
            if not is_clearly_lower(errors[first], errors[small], MORE_ERRORS)
            and not is_clearly_lower(fair[first], fair[small])
        ),
    )


def _batches(images: np.ndarray) -> Iterable[tuple[np.ndarray, int]]:
    for start in range(0, len(images), PROBE_BATCH):
        part = images[start : start + PROBE_BATCH]
        yield np.concatenate([part, np.repeat(part[-1:], PROBE_BATCH - len(part), axis=0)]), len(part)


def _chance(accuracy: float, labels: np.ndarray) -> float:
    """Returns the accuracy of always predicting the commonest class, plus a margin for luck."""
    commonest = max(np.bincount(labels).max() / len(labels), 1 / max(len(np.unique(labels)), 2))
    return float(commonest + max(CLEAR_POINTS, 2 * np.sqrt(accuracy * (1 - accuracy) / len(labels))))


def is_clearly_lower(one: np.ndarray, other: np.ndarray, errors: float = CLEAR_ERRORS) -> bool:
    """Returns True if `one` is lower than `other` on average, beyond chance.

    Compares the values pair by pair.
    """
    difference = other - one
    error = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() > max(errors * error, ROUNDING))
