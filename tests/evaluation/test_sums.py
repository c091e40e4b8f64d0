"""Tests intervals of scores by resampling images, against scipy and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score

from kresume.evaluation.answers import answers_from
from kresume.evaluation.sums import ImageSums, bins_of, bootstrap
from kresume.tasks.single_label import SINGLE_LABEL

pytestmark = pytest.mark.one_backend

CLASSES = tuple("abcd")


def make(count=200, seed=0, **options):
    """Makes answers that are right for about two thirds of the images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)  # no image of the last class
    probabilities = rng.dirichlet(np.ones(4), count) * 0.5
    probabilities[np.arange(count), np.where(rng.random(count) < 0.6, labels, rng.integers(4, size=count))] += 0.5
    hashes = np.array([f"{each:064x}" for each in range(count)])
    return answers_from(SINGLE_LABEL, probabilities, labels, np.zeros(count), hashes, CLASSES, **options)


def f1_of(answers):
    return lambda rows: f1_score(
        answers.labels[rows], answers.chosen[rows], labels=np.unique(answers.labels[rows]), average="macro"
    )


def test_scores_of_resampled_images_are_those_of_the_images():
    """Loss, F1 and calibration of any resample are scikit-learn's and numpy's on those images."""
    answers = make()
    sums = ImageSums.of(answers)
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(200, size=200)
        found = sums.scores(np.bincount(rows, minlength=200)[None])
        assert found["loss"][0] == pytest.approx(answers.losses[rows].mean(), rel=1e-6)
        assert found["f1"][0] == pytest.approx(f1_of(answers)(rows))
        expected = f1_score(answers.labels[rows], answers.chosen[rows], labels=range(4), average=None, zero_division=0)
        np.testing.assert_allclose(found["class_f1"][0][:3], expected[:3])
        assert np.isnan(found["class_f1"][0][3])
        confidences, right = answers.top_scores[rows, 0].astype(float), answers.right[rows]
        true, mean = calibration_curve(right, confidences, n_bins=15)
        counts = np.bincount(bins_of(confidences), minlength=15)
        assert found["ece"][0] == pytest.approx((counts[counts > 0] * abs(true - mean)).sum() / 200)


@pytest.mark.parametrize("metric", ["loss", "f1", "ece"])
def test_intervals_are_those_of_scipy(metric):
    """scipy's percentile bootstrap gives nearly the same ends; a second call gives equal ones."""
    answers = make()
    sums = ImageSums.of(answers)
    statistic = {
        "loss": lambda rows: answers.losses[rows].mean(),
        "f1": f1_of(answers),
        "ece": lambda rows: sums.scores(np.bincount(rows, minlength=200)[None])["ece"][0],
    }[metric]
    expected = scipy_bootstrap(
        (np.arange(200),),
        statistic,
        vectorized=False,
        n_resamples=600,
        method="percentile",
        random_state=3,
    ).confidence_interval
    low, high = bootstrap(sums)[metric]
    near = 0.25 * float(expected.high - expected.low)
    np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=near)
    assert bootstrap(sums)[metric] == (low, high)


def test_a_class_that_never_occurs_has_no_interval():
    """Neither has the loss of a model that gives labels alone."""
    low, high = bootstrap(ImageSums.of(make()))["class_f1"]
    assert np.isnan([low[3], high[3]]).all()
    assert (low[:3] < high[:3]).all()
    assert "loss" not in bootstrap(ImageSums.of(make(losses=False)), resamples=10)


def test_parts_do_not_change_the_intervals(monkeypatch):
    """Resamples that do not fit into memory at once are drawn in parts, with the same result."""
    from kresume.evaluation import sums as module

    whole = bootstrap(ImageSums.of(make()), resamples=100)
    counted = []
    monkeypatch.setattr(module, "CELLS", 3000)
    parts = bootstrap(ImageSums.of(make()), counted.append, resamples=100)
    assert sum(counted) == 100
    assert len(counted) > 5
    for name, ends in whole.items():
        np.testing.assert_array_equal(ends, parts[name])
