"""Tests that all scores come from one prediction per image."""

import numpy as np
import pytest

from kresume.evaluation.score import flatten, predict_all, score
from kresume.tasks.one_class import as_shares, image_losses
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Head

pytestmark = pytest.mark.one_backend

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
LABELS = np.array([0, 1, 1, 2])
CLASSES = ("a", "b", "c")


def test_old_and_new_are_split_by_origin():
    """Origins below the generation are old, the generation itself is new, all is both."""
    scores = score(SINGLE_LABEL, PROBABILITIES, LABELS, origins=np.array([0, 0, 1, 1]), generation=1, classes=CLASSES)
    assert [scores[name]["images"] for name in ("old", "new", "all")] == [2, 2, 4]
    assert [scores[name]["accuracy"] for name in ("old", "new", "all")] == [1.0, 0.5, 0.75]
    assert scores["all"]["loss"] == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.6]).mean())
    assert scores["classes"]["b"]["recall"] == 0.5


def test_a_subset_without_images_has_no_score():
    """A subset without images is scored null, never 0 %."""
    scores = score(SINGLE_LABEL, PROBABILITIES, LABELS, origins=np.zeros(4), generation=0, classes=CLASSES)
    assert scores["old"] == {"images": 0, "loss": None, "accuracy": None, "f1": None}
    empty = score(SINGLE_LABEL, np.zeros((0, 0)), LABELS[:0], origins=LABELS[:0], generation=0, classes=CLASSES)
    assert empty["all"]["accuracy"] is None
    assert empty["classes"]["a"]["recall"] is None
    assert flatten(empty) == {}


def test_a_class_without_images_has_no_recall():
    """A class without images has no recall and does not count as missed."""
    scores = score(SINGLE_LABEL, PROBABILITIES[:1], LABELS[:1], origins=np.zeros(1), generation=0, classes=CLASSES)
    assert scores["classes"]["c"] == {"images": 0, "recall": None, "precision": None, "f1": None}


def test_names_of_gates_and_monitors():
    """Flat names of gates and monitors are DESIGN's, with Keras's val_ names beside them."""
    flat = flatten(
        score(SINGLE_LABEL, PROBABILITIES, LABELS, origins=np.array([0, 0, 1, 1]), generation=1, classes=CLASSES)
    )
    assert flat["old.accuracy"] == 1.0
    assert flat["new.loss"] > 0
    assert flat["classes.b.recall"] == flat["classes.min.recall"] == 0.5
    assert flat["val_accuracy"] == flat["all.accuracy"] == 0.75
    assert flat["val_loss"] == flat["all.loss"]


def test_padding_never_counts():
    """Only rows that are images are scored; the padding of a batch is dropped."""
    batches = [(PROBABILITIES[:3], 3), (np.concatenate([PROBABILITIES[3:], PROBABILITIES[:2]]), 1)]
    seen = []
    result = predict_all(lambda images: images, batches, Head(SINGLE_LABEL), advance=seen.append)
    np.testing.assert_array_equal(result, PROBABILITIES)
    assert seen == [3, 1]


def test_a_certain_mistake_has_a_finite_loss():
    """A probability of 0 for the true class costs the finite loss that Keras computes."""
    assert image_losses(np.array([[1.0, 0.0]]), np.array([1]))[0] == pytest.approx(-np.log(1e-7))


def test_an_answer_of_another_class_is_wrong():
    """An answer of -1, a class that the scored model does not have, is wrong and no other class's mistake."""
    answers = np.array([0, 1, -1, 2])
    scores = score(
        SINGLE_LABEL, PROBABILITIES, LABELS, origins=np.zeros(4), generation=0, classes=CLASSES, answers=answers
    )
    assert scores["all"]["accuracy"] == 0.75
    assert scores["all"]["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert [scores["classes"][name]["recall"] for name in CLASSES] == [1.0, 0.5, 1.0]
    assert [scores["classes"][name]["precision"] for name in CLASSES] == [1.0, 1.0, 1.0]


def test_outputs_that_do_not_add_up_to_1_have_keras_s_loss():
    """One sigmoid per class: Keras divides by the sum, too. Rows that add up to 1 keep their bits."""
    import keras

    sigmoids = np.random.default_rng(0).uniform(0.1, 0.9, (4, 3))
    found = image_losses(as_shares(sigmoids), LABELS)
    own = keras.losses.sparse_categorical_crossentropy(LABELS, sigmoids.astype("float32"))
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(own), rtol=1e-5)
    rounded = PROBABILITIES.astype(np.float16).astype(np.float64)
    assert as_shares(rounded) is rounded
    mixed = as_shares(np.concatenate([rounded, 2 * PROBABILITIES, np.zeros((1, 3))]))
    assert mixed[:4].tobytes() == rounded.tobytes()
    np.testing.assert_allclose(mixed[4:8], PROBABILITIES)
    assert (mixed[8] == 0).all()
