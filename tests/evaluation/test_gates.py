"""Tests conditions on scores and gates on forgetting, by themselves."""

import numpy as np
import pytest

from kresume.errors import UsageError
from kresume.evaluation.answers import answers_from
from kresume.evaluation.gates import Condition, Gates, check_metric, parse_conditions
from kresume.evaluation.verdict import Pair
from kresume.tasks.single_label import SINGLE_LABEL

pytestmark = pytest.mark.one_backend


def scores(old=(0.9, 50), new=(0.8, 50), **classes):
    """Makes nested scores from (accuracy, images) of old and new, and (recall, images) of each class."""
    images = old[1] + new[1]
    every = (old[0] * old[1] + new[0] * new[1]) / images
    facts = {
        name: {"loss": 0.5, "accuracy": value, "f1": value, "images": count}
        for name, (value, count) in {"all": (every, images), "old": old, "new": new}.items()
    }
    recalls = {
        name: {"recall": value, "precision": value, "f1": value, "images": n} for name, (value, n) in classes.items()
    }
    return {**facts, "classes": recalls}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("old.accuracy>=0.93", [("old.accuracy", ">=", 0.93)]),
        (" val_loss < 1.5 ", [("val_loss", "<", 1.5)]),
        ("old.accuracy >= 95% and new.accuracy>90%", [("old.accuracy", ">=", 0.95), ("new.accuracy", ">", 0.9)]),
        ("classes.rose bush.recall<=1", [("classes.rose bush.recall", "<=", 1.0)]),
        (
            "classes.salt and pepper.recall>=0.9 and all.loss<1",
            [("classes.salt and pepper.recall", ">=", 0.9), ("all.loss", "<", 1.0)],
        ),
        ("all.loss<=1e-2", [("all.loss", "<=", 0.01)]),
    ],
)
def test_conditions_are_read(text, expected):
    """Spaces, percent signs, `and`, names of classes with spaces and exponents are read."""
    assert parse_conditions(text, "require") == tuple(Condition(*each) for each in expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("old.accuracy", "'old.accuracy' is no condition: give METRIC, one of >= <= > < and a number"),
        ("old.accuracy=0.9", "is no condition"),
        ("old.accuracy>=", "is no condition"),
        ("old.accuracy>=0.9 or new.accuracy>=0.9", "is no condition"),
        ("old.accuracy>=0.9.1", "is no condition"),
        ("old.accuracy>=93", "old.accuracy is from 0 to 1: give 0.93 or 93%"),
        ("", "is no condition"),
    ],
)
def test_what_is_no_condition_is_refused(text, words):
    """A share above 1 is refused, because it would never hold."""
    with pytest.raises(UsageError, match=words.replace("'", ".")):
        parse_conditions(text, "until")


def test_unknown_metrics_get_the_nearest_name():
    """A typo in a metric, or a class that does not exist, is found before training."""
    for name in ("old.accuracy", "classes.rose.recall", "classes.min.f1", "val_loss", "val_accuracy"):
        check_metric(name, ("rose",), "--require ...")
    with pytest.raises(UsageError, match=r"--require old.acc>=1: not a metric of a run: did you mean old.accuracy\?"):
        check_metric("old.acc", ("rose",), "--require old.acc>=1")
    with pytest.raises(UsageError, match="not a metric"):
        check_metric("classes.tulip.recall", ("rose",), "--until ...")
    with pytest.raises(UsageError, match="not a metric"):
        check_metric("accuracy", ("rose",), "--require ...")


BEFORE = scores(old=(0.92, 50), rose=(0.91, 64), tulip=(0.5, 10), new=(0.0, 50), late=(0.0, 5), absent=(None, 0))
CASES = [
    (Gates(), scores(), ()),
    (Gates(parse_conditions("old.accuracy>=0.9", "require")), scores(), ()),
    (
        Gates(parse_conditions("old.accuracy>=0.95 and new.accuracy>=0.8", "require")),
        scores(),
        ("old.accuracy 0.9, 50 images, required old.accuracy>=0.95",),
    ),
    (
        Gates(parse_conditions("classes.min.recall>0.5", "require")),
        scores(rose=(0.9, 10), tulip=(0.4, 7)),
        ("classes.min.recall 0.4, 17 images, required classes.min.recall>0.5",),
    ),
    (
        Gates(parse_conditions("classes.rose.recall>0.5", "require")),
        scores(rose=(None, 0)),
        ("classes.rose.recall has no value, 0 images, required classes.rose.recall>0.5",),
    ),
    (Gates(max_forgetting=2.0), scores(old=(0.9, 50)), ()),
    (
        Gates(max_forgetting=1.9),
        scores(old=(0.9, 50)),
        ("old.accuracy 0.92 -> 0.90, 50 images, p = 1 (may be noise), allowed 1.9 points",),
    ),
    (
        Gates(max_class_drop=5.0),
        scores(rose=(0.72, 64), tulip=(0.45, 10), late=(0.0, 5), fresh=(0.1, 5), absent=(0.0, 3)),
        ("classes.rose.recall 0.91 -> 0.72, 64 images, p = 0.012, allowed 5 points",),
    ),
]


@pytest.mark.parametrize(("gates", "found", "expected"), CASES)
def test_failures_are_named_with_counts_and_chance(gates, found, expected):
    """A fall of exactly the allowed points passes; a class that the parent did not have cannot fall."""
    assert gates.failures(found, BEFORE) == expected
    assert bool(gates) == (gates != Gates())


def test_a_new_model_has_nothing_to_fall_behind():
    """Without a parent's scores only conditions are judged."""
    assert Gates(max_forgetting=0.0, max_class_drop=0.0).failures(scores(), None) == ()


def test_chance_is_judged_on_the_same_images():
    """With the answers to each image p is McNemar's, on the images of that gate; Fisher's is for runs without answers."""
    labels = np.repeat([0, 1], 50)
    origins = np.tile([0, 1], 50)
    before = np.ones(100, bool)
    after = np.arange(100) >= 16
    hashes = np.array([f"{each:064x}" for each in range(100)])

    def answers(right):
        chosen = np.where(right, labels, 1 - labels)
        return answers_from(SINGLE_LABEL, np.eye(2)[chosen], labels, origins, hashes, ("rose", "tulip"))

    pair = Pair(answers(before), answers(after), generation=1)
    then, now = scores(old=(1.0, 50), rose=(1.0, 50)), scores(old=(0.84, 50), rose=(0.68, 50))
    gates = Gates(max_forgetting=1.0, max_class_drop=1.0)
    assert gates.failures(now, then, pair) == (
        "old.accuracy 1.00 -> 0.84, 50 images, p = 0.0078, allowed 1 points",
        "classes.rose.recall 1.00 -> 0.68, 50 images, p < 0.001, allowed 1 points",
    )
    assert gates.failures(now, then)[0] == "old.accuracy 1.00 -> 0.84, 50 images, p = 0.0058, allowed 1 points"
