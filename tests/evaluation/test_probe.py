"""Tests that a foreign model gets the pixels that it was trained on, or is not trained."""

import numpy as np
import pytest

from kresume.evaluation.probe import is_clearly_lower, probe_feedings, promising
from kresume.tasks.one_class import image_losses
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Head

pytestmark = pytest.mark.one_backend

LABELS = np.arange(120) % 3
SHARES = Head(SINGLE_LABEL)


def sure_of(certainty, wrong=0):
    """Returns a function whose outputs are right with this certainty, except for the first `wrong` images."""
    outputs = np.full((len(LABELS), 3), (1 - certainty) / 2)
    outputs[np.arange(len(LABELS)), (LABELS + (np.arange(len(LABELS)) < wrong)) % 3] = certainty
    return lambda: outputs


def test_equally_right_ways_are_told_apart_by_the_loss():
    """Between conventions with equal predictions, the one with the lower loss wins."""
    noise = np.random.default_rng(0).normal(0, 0.02, (len(LABELS), 3))
    probe = probe_feedings(
        lambda images: images, {"a": sure_of(0.7), "b": lambda: sure_of(0.9)() + abs(noise)}, LABELS, SHARES
    )
    assert probe.accuracies["a"] == probe.accuracies["b"] == 1.0
    assert (probe.winner, probe.best) == ("b", "b")
    assert probe.table.startswith("b gives 100.0 % (loss 0.09)")


def test_a_way_that_is_only_surer_does_not_win():
    """A convention that only makes the model more certain does not win.

    A model that stopped early is right on all images and uncertain. Larger inputs make it more certain, and wrong on
    two.
    """
    shy = noisy(0.7, 0.02, 1)()
    sure = noisy(0.95, 0.02, 1)()
    sure[:2] = [[0.3, 0.4, 0.3], [0.4, 0.3, 0.3]]
    probe = probe_feedings(lambda images: images, {"shy": lambda: shy, "sure": lambda: sure}, LABELS, SHARES)
    assert probe.losses["sure"] < probe.losses["shy"]
    assert (probe.winner, set(probe.fitting)) == (None, {"shy", "sure"})


def test_a_way_that_is_too_sure_is_not_excused():
    """Overconfidence is not excused: the right convention wins over a more certain one.

    Both predict the same classes; inputs that are too large make a model too certain.
    """
    rng = np.random.default_rng(3)
    right = rng.dirichlet((1, 1, 1), len(LABELS))
    right[np.arange(len(LABELS)), LABELS] += 1.0
    right /= right.sum(axis=1, keepdims=True)
    flipped = rng.random(len(LABELS)) < 0.2
    right[flipped] = right[flipped][:, [1, 2, 0]]
    sure = right**20 / (right**20).sum(axis=1, keepdims=True)
    probe = probe_feedings(lambda images: images, {"right": lambda: right, "sure": lambda: sure}, LABELS, SHARES)
    assert (probe.winner, probe.accuracies["sure"]) == ("right", probe.accuracies["right"])


def test_no_way_wins_that_is_no_better_than_chance():
    """No convention wins that is no better than chance, whatever its loss.

    The model always predicts the same class.
    """
    always = np.tile([[0.8, 0.1, 0.1]], (len(LABELS), 1))
    other = np.tile([[0.5, 0.25, 0.25]], (len(LABELS), 1))
    probe = probe_feedings(lambda images: images, {"a": lambda: always, "b": lambda: other}, LABELS, SHARES)
    assert probe.winner is None
    assert not probe.above_chance


def test_two_ways_that_fit_alike_have_no_winner():
    """Two conventions with the same outputs have no winner."""
    probe = probe_feedings(lambda images: images, {"a": sure_of(0.8, 5), "b": sure_of(0.8, 5)}, LABELS, SHARES)
    assert probe.winner is None
    assert probe.above_chance


def test_larger_values_that_only_make_a_model_surer_do_not_win():
    """Larger inputs that only lower the loss do not win.

    A model that is always right is still right on inputs that are 255 times larger, and more certain.
    """
    ways = {"0-1": sure_of(0.97), "0-255": sure_of(1.0)}
    args = (lambda images: images, ways, LABELS, SHARES)
    assert probe_feedings(*args).winner == "0-255"
    told = probe_feedings(*args, larger=[("0-255", "0-1")])
    assert (told.winner, told.fitting) == (None, ("0-255", "0-1"))
    # If the model is uncertain or wrong on the smaller inputs, it was not trained on them.
    for quiet in (sure_of(0.4), sure_of(0.97, 30)):
        found = probe_feedings(args[0], {**ways, "0-1": quiet}, LABELS, SHARES, larger=[("0-255", "0-1")])
        assert found.winner == "0-255"


def test_louder_conventions_are_those_of_one_direction():
    """A convention is louder if its values are larger and its polarity is the same, for any colour order."""
    from kresume.images.conventions import is_louder

    pairs = [("0-255", "0-1"), ("0-255", "-1-1"), ("0-255-inverted", "0-1-inverted"), ("caffe", "bgr-0-1")]
    pairs += [("-1-1", "0-1"), ("cifar10", "-1-1"), ("caffe", "torch"), ("caffe", "0-1"), ("torch", "0-1")]
    assert all(is_louder(*pair) for pair in pairs)
    others = [("0-1", "0-255"), ("0-1", "-1-1"), ("0-255", "0-1-inverted"), ("0-1", "bgr-0-1"), ("bgr-0-1", "0-1")]
    assert not any(is_louder(*pair) for pair in others)


def test_larger_values_win_where_the_answers_are_better_than_sureness():
    """Larger inputs win if their predictions are better than certainty explains: by three images here, not by two."""
    for wrong, winner in ((2, None), (3, "loud")):
        ways = {"quiet": sure_of(0.97, wrong), "loud": sure_of(1.0)}
        probe = probe_feedings(lambda images: images, ways, LABELS, SHARES, larger=[("loud", "quiet")])
        assert probe.winner == winner


def test_larger_values_do_not_win_where_only_sureness_is_limited():
    """Outputs that are never sure (a `tanh` read as a logit) say no less about smaller values than confident ones do."""
    ways = {"quiet": sure_of(0.70, 2), "loud": sure_of(0.72)}
    args = (lambda images: images, ways, LABELS, SHARES)
    assert probe_feedings(*args).winner == "loud"
    assert probe_feedings(*args, larger=[("loud", "quiet")]).winner is None


def test_a_model_that_is_seldom_right_shows_no_convention():
    """Early in a training other values than its own may suit a model better; a rival that is seldom right does not matter."""
    for right, rival, winner in ((0.55, 0.5, None), (0.55, 0.35, "one"), (0.75, 0.7, "one")):
        ways = {
            name: sure_of(0.9, round((1 - share) * len(LABELS))) for name, share in (("one", right), ("other", rival))
        }
        probe = probe_feedings(lambda images: images, {"one": ways["one"], "other": ways["other"]}, LABELS, SHARES)
        assert probe.above_chance
        assert probe.winner == winner, (right, rival)


def test_fair_losses_decide_between_ways_whose_losses_do_not():
    """Calibrated losses decide between conventions whose raw losses do not.

    One is uncertain and always right. The other has as low a loss and is wrong on some.
    """
    rng = np.random.default_rng(4)
    right = noisy(0.67, 0.04, 1)()
    worse = noisy(0.7, 0.02, 2)()
    missed = rng.permutation(len(LABELS))[:3]
    worse[missed] = worse[missed][:, [1, 2, 0]]
    probe = probe_feedings(lambda images: images, {"right": lambda: right, "worse": lambda: worse}, LABELS, SHARES)
    losses = [image_losses(outputs, LABELS) for outputs in (right, worse)]
    assert not is_clearly_lower(*losses)
    assert not is_clearly_lower(*losses[::-1])
    assert probe.winner == "right"


def test_losses_are_compared_image_by_image():
    """Losses are compared image by image: a small consistent difference counts, two images do not."""
    rng = np.random.default_rng(1)
    losses = rng.exponential(1.0, 200)
    assert is_clearly_lower(losses, losses + 0.05 + rng.normal(0, 0.01, 200))
    outlier = losses.copy()
    outlier[:2] += 5
    assert not is_clearly_lower(losses, outlier)


def test_the_table_lists_three_and_names_all_that_fit():
    """The table lists three conventions and marks all between which nothing decides."""
    ways = {"a": sure_of(0.9), "b": sure_of(0.9), **{f"bad {index}": sure_of(0.6, 60) for index in range(6)}}
    probe = probe_feedings(lambda images: images, ways, LABELS, SHARES)
    assert probe.table.count("gives") == 3
    assert set(probe.fitting) == {"a", "b"}
    assert probe.winner is None


def test_a_way_that_is_right_less_often_never_wins_by_its_loss():
    """A convention with lower accuracy never wins by its loss.

    A certain model has a high loss where it is wrong, and is still right twice as often.
    """
    rng = np.random.default_rng(0)
    sure = np.full((len(LABELS), 3), 1e-6)
    answers = np.where(rng.random(len(LABELS)) < 0.8, LABELS, (LABELS + 1) % 3)
    sure[np.arange(len(LABELS)), answers] = 1.0
    probe = probe_feedings(lambda images: images, {"sure": lambda: sure, "shy": sure_of(0.4, 60)}, LABELS, SHARES)
    assert probe.losses["sure"] > probe.losses["shy"]
    assert probe.winner == "sure"


def noisy(certainty, scale, seed):
    """Returns a function whose outputs are right with about this certainty, varying by image."""
    noise = np.random.default_rng(seed).normal(0, scale, len(LABELS))
    chosen = np.clip(certainty + noise, 0.35, 0.999)
    outputs = np.repeat(((1 - chosen) / 2)[:, None], 3, axis=1)
    outputs[np.arange(len(LABELS)), LABELS] = chosen
    return lambda: outputs


def test_another_way_than_the_usual_ones_must_be_clearly_better():
    """An unusual convention wins only if it is clearly better than the usual ones.

    If it is as good, the usual one wins. If it is much better but not clearly, neither wins.
    """

    def winner(**ways):
        return probe_feedings(lambda images: images, ways, LABELS, SHARES, usual=("usual", "other"))

    other = noisy(0.5, 0.05, 1)
    assert winner(usual=noisy(0.8, 0.05, 2), other=other, strange=noisy(0.802, 0.05, 3)).winner == "usual"
    assert winner(usual=noisy(0.8, 0.05, 2), other=other, strange=noisy(0.9, 0.05, 3)).winner == "strange"
    assert winner(usual=noisy(0.8, 0.05, 2), other=other, strange=noisy(0.7, 0.05, 3)).winner == "usual"
    base = noisy(0.8, 0.02, 2)()
    lucky = base.copy()
    lucky[:2] = [[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]
    base[:2] = [[0.01, 0.98, 0.01], [0.98, 0.01, 0.01]]  # two images make all the difference
    probe = winner(usual=lambda: base, other=other, strange=lambda: lucky)
    assert (probe.winner, set(probe.fitting)) == (None, {"usual", "strange"})


def test_many_strange_ways_do_not_win_by_luck():
    """Eight unusual conventions as good as the usual one hardly ever win by chance, in 50 draws."""
    rng = np.random.default_rng(5)
    taken = 0
    for _ in range(50):
        ways = {"usual": noisy(0.8, 0.1, rng.integers(1 << 30))}
        ways |= {f"strange {index}": noisy(0.8, 0.1, rng.integers(1 << 30)) for index in range(8)}
        probe = probe_feedings(lambda images: images, ways, LABELS, SHARES, usual=("usual",))
        taken += probe.winner not in {"usual", None}
    assert taken <= 1


def test_a_first_look_keeps_what_may_win_and_everything_where_nothing_is_right():
    """A first look keeps the candidates that may win, and all if none is right.

    With another class order the right convention may seem the worst.
    """
    ways = {"good": sure_of(0.9), **{f"bad {index}": sure_of(0.5, 70 + index) for index in range(8)}}
    first = probe_feedings(lambda images: images, ways, LABELS, SHARES)
    assert "good" in promising(first)
    assert len(promising(first)) == 4
    none = {name: way for name, way in ways.items() if name != "good"}
    assert promising(probe_feedings(lambda images: images, none, LABELS, SHARES)) == tuple(none)
