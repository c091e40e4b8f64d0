"""A foreign model is fed what it was trained on, or nothing is trained."""

import numpy as np
import pytest

from kresume.evaluation.probe import explain_labels, is_clearly_lower, probe_feedings

LABELS = np.arange(120) % 3


def sure_of(certainty, wrong=0):
    """What gives outputs that are right with this certainty, but for the first `wrong` images."""
    outputs = np.full((len(LABELS), 3), (1 - certainty) / 2)
    outputs[np.arange(len(LABELS)), (LABELS + (np.arange(len(LABELS)) < wrong)) % 3] = certainty
    return lambda: outputs


def test_equally_right_ways_are_told_apart_by_the_loss():
    """Both answer alike; the way under which the model is surer is the one that it was trained with."""
    noise = np.random.default_rng(0).normal(0, 0.02, (len(LABELS), 3))
    probe = probe_feedings(
        lambda images: images, {"a": sure_of(0.7), "b": lambda: sure_of(0.9)() + abs(noise)}, LABELS, "probabilities"
    )
    assert probe.accuracies["a"] == probe.accuracies["b"] == 1.0
    assert (probe.winner, probe.best) == ("b", "b")
    assert probe.table.startswith("b gives 100.0 % (loss 0.09)")


def test_no_way_wins_that_is_no_better_than_chance():
    """A model that always answers the same class has no winner, whatever its losses."""
    always = np.tile([[0.8, 0.1, 0.1]], (len(LABELS), 1))
    other = np.tile([[0.5, 0.25, 0.25]], (len(LABELS), 1))
    probe = probe_feedings(lambda images: images, {"a": lambda: always, "b": lambda: other}, LABELS, "probabilities")
    assert probe.winner is None
    assert not probe.above_chance


def test_two_ways_that_fit_alike_have_no_winner():
    """The same outputs either way: nothing is guessed."""
    probe = probe_feedings(lambda images: images, {"a": sure_of(0.8, 5), "b": sure_of(0.8, 5)}, LABELS, "probabilities")
    assert probe.winner is None
    assert probe.above_chance


def test_losses_are_compared_image_by_image():
    """A small difference that every image shows is clear; a large one that two images make is not."""
    rng = np.random.default_rng(1)
    losses = rng.exponential(1.0, 200)
    assert is_clearly_lower(losses, losses + 0.05 + rng.normal(0, 0.01, 200))
    outlier = losses.copy()
    outlier[:2] += 5
    assert not is_clearly_lower(losses, outlier)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_a_permutation_that_explains_the_answers_is_proposed(order):
    """The model's outputs mean other classes than assumed: the proposal is their order."""
    names = ("cat", "dog", "rose")
    predicted = np.array([order.index(label) for label in LABELS])
    assert explain_labels(predicted, LABELS, names) == tuple(names[place] for place in order)
    assert explain_labels(LABELS, LABELS, names) is None
