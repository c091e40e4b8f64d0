"""Tests verdicts on two models: the difference, its interval, and whether it is noise."""

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from kresume.evaluation.answers import answers_from
from kresume.evaluation.intervals import wilson
from kresume.evaluation.verdict import in_words, judge, judge_classes, judge_origins, judge_right
from kresume.tasks.single_label import SINGLE_LABEL

pytestmark = pytest.mark.one_backend

CLASSES = ("a", "b", "c")


def results(gained, lost, both=0, neither=0):
    """Makes which images two models get right, in random order."""
    before = np.repeat([False, True, True, False], [gained, lost, both, neither])
    after = np.repeat([True, False, True, False], [gained, lost, both, neither])
    order = np.random.default_rng(0).permutation(len(before))
    return before[order], after[order]


def answers(right, labels=None, origins=None, hashes=None):
    """Makes answers that are right where `right` says so."""
    count = len(right)
    labels = np.zeros(count, int) if labels is None else labels
    chosen = np.where(right, labels, (labels + 1) % 3)
    hashes = np.array([f"{each:064x}" for each in range(count)]) if hashes is None else hashes
    origins = np.zeros(count, int) if origins is None else origins
    return answers_from(SINGLE_LABEL, np.eye(3)[chosen], labels, origins, hashes, CLASSES)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((30, 5, 100, 40), "better (+14.3 points, p < 0.001)"),
        ((5, 16, 200, 10), "worse (-4.8 points, p = 0.027)"),
        ((6, 0, 94, 0), "better (+6.0 points, p = 0.031)"),
        ((5, 0, 95, 0), "unchanged within noise (+5.0 points, p = 0.062)"),
        ((4, 4, 50, 0), "unchanged within noise (+0.0 points, p = 1)"),
        ((0, 0, 90, 10), "unchanged (right on the same images)"),
        ((5, 0, 0, 0), "too few images to tell (5 images, +100.0 points)"),
        ((0, 1, 0, 0), "too few images to tell (1 image, -100.0 points)"),
        ((0, 0, 0, 0), "too few images to tell (0 images, +0.0 points)"),
    ],
)
def test_a_difference_is_named_noise_or_not(counts, words):
    """McNemar's exact test decides; so few images that nothing could be shown are said to be too few."""
    verdict = judge_right(*results(*counts))
    assert str(verdict) == words
    assert verdict.as_dict()["words"] == words
    assert (verdict.images, verdict.gained, verdict.lost) == (sum(counts), *counts[:2])


@pytest.mark.parametrize("counts", [(30, 5, 100, 40), (5, 16, 200, 10), (400, 350, 5000, 100), (1, 0, 3, 3)])
def test_the_test_is_mcnemars(counts):
    """p is the exact binomial test of discordant pairs, near the chi-squared form where there are many."""
    verdict = judge_right(*results(*counts))
    gained, lost = counts[:2]
    assert verdict.p == binomtest(gained, gained + lost).pvalue
    if gained + lost > 500:
        assert verdict.p == pytest.approx(chi2.sf((abs(gained - lost) - 1) ** 2 / (gained + lost), 1), rel=0.02)
    assert verdict.low < verdict.difference < verdict.high


@pytest.mark.parametrize("counts", [(30, 5, 100, 40), (5, 16, 200, 10), (40, 35, 500, 10), (0, 0, 90, 10)])
def test_the_interval_is_near_that_of_resampled_images(counts):
    """A bootstrap over images gives nearly the same ends; where both agree on every image it would give a point."""
    before, after = results(*counts)
    verdict = judge_right(before, after)
    rng = np.random.default_rng(1)
    drawn = rng.integers(len(before), size=(4000, len(before)))
    ends = np.quantile((after.astype(int) - before)[drawn].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose([verdict.low, verdict.high], ends, atol=0.03 if sum(counts[:2]) == 0 else 0.012)
    assert verdict.high - verdict.low > 0.01


def test_origins_and_classes_are_judged_apart():
    """New, old and all, each on its own images; the words name new and old."""
    one, other = results(30, 5, 100, 40)
    origins = np.where(np.arange(len(one)) < 60, 1, 0)
    labels = np.arange(len(one)) % 2
    before, after = answers(one, labels, origins), answers(other, labels, origins)
    found = judge_origins(before, after, generation=1)
    assert list(found) == ["new", "old", "all"]
    assert found["new"] == judge_right(one[:60], other[:60])
    assert found["old"] == judge_right(one[60:], other[60:])
    assert found["all"] == judge(before, after) == judge_right(one, other)
    assert in_words(found) == f"{found['new'].on('new')}, {found['old'].on('old')}"
    assert in_words(judge_origins(before, after, generation=0)) == str(found["all"])
    assert in_words({}) == ""
    by_class = judge_classes(before, after)
    assert list(by_class) == ["a", "b"]
    assert by_class["b"] == judge_right(one[1::2], other[1::2])


def test_a_difference_that_only_all_images_show_comes_first():
    """Parts of 100 images that gain 4 each prove nothing; the 200 do."""
    before = np.array([True] * 90 + [False] * 10)
    after = before | (np.arange(100) >= 96)
    parts = {name: judge_right(before, after) for name in ("new", "old")}
    whole = judge_right(np.tile(before, 2), np.tile(after, 2))
    assert (parts["new"].kind, whole.kind) == ("unchanged", "better")
    words = in_words({**parts, "all": whole})
    assert words.startswith("better on all (+4.0 points, p = 0.0078), unchanged on new within")


def test_images_are_matched_by_content():
    """The order of the images, and images that only one model has seen, do not matter."""
    one, other = results(30, 5, 100, 40)
    before, after = answers(one), answers(other)
    shuffled = after.at(np.random.default_rng(2).permutation(len(one))[:-10])
    kept = np.isin(before.hashes, shuffled.hashes)
    assert judge(before, shuffled) == judge_right(one[kept], other[kept])
    assert judge(shuffled, before).gained == int((one & ~other)[kept].sum())


@pytest.mark.parametrize(("right", "images"), [(0, 5), (5, 5), (93, 100), (1, 2), (999, 1000)])
def test_shares_have_wilsons_interval(right, images):
    """It is scipy's, elementwise; without images it is the whole range."""
    expected = binomtest(right, images).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(right, images), [expected.low, expected.high], atol=1e-12)
    low, high = wilson(np.array([right, 0]), np.array([images, 0]))
    np.testing.assert_allclose([low[0], high[0], low[1], high[1]], [expected.low, expected.high, 0, 1], atol=1e-12)


def test_the_p_of_classes_is_adjusted_for_their_number():
    """Holm's values: the smallest p times the number of classes, and so on, never falling. Checked by hand."""
    from kresume.evaluation.verdict import _adjusted

    np.testing.assert_allclose(_adjusted(np.array([0.04, 0.01, 0.03, 0.5])), [0.09, 0.04, 0.09, 0.5])
    assert _adjusted(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert _adjusted(np.zeros(0)).tolist() == []
