"""Tests the answers to every image that a run keeps of its parent and of its result."""

import json
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from kresume import runs
from kresume.errors import ImagesError
from kresume.evaluation import answers
from kresume.evaluation.answers import NO_CLASS, answers_from, on_same_images
from kresume.images.manifest import Manifest
from kresume.tasks.binary import BINARY
from kresume.tasks.single_label import SINGLE_LABEL
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import TINY, answers_of, make_interrupted, run_training, trained

CLASSES = tuple("abcdefg")
EXTENDED = {**TINY, "image_size": None, "grow": ""}


def random_answers(count=30, seed=0, classes=CLASSES, **options):
    """Makes answers of random probabilities, and returns these, too."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(len(classes)), count)
    labels, origins = rng.integers(len(classes), size=count), rng.integers(3, size=count)
    hashes = np.array([f"{number:064x}" for number in rng.permutation(count)], "S64")
    return probabilities, answers_from(SINGLE_LABEL, probabilities, labels, origins, hashes, classes, **options)


@pytest.mark.one_backend
def test_the_most_probable_classes_are_kept():
    """`top` is numpy's stable sort, `right` an argmax, the loss a cross-entropy."""
    probabilities, found = random_answers()
    np.testing.assert_array_equal(found.top, np.argsort(-probabilities, axis=-1, kind="stable")[:, :5])
    np.testing.assert_array_equal(found.top_scores, -np.sort(-probabilities, axis=-1)[:, :5].astype(np.float32))
    np.testing.assert_array_equal(found.right, probabilities.argmax(axis=-1) == found.labels)
    chosen = probabilities[np.arange(30), found.labels]
    np.testing.assert_array_equal(found.label_scores, chosen.astype(np.float32))
    np.testing.assert_allclose(found.losses, -np.log(chosen), rtol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("count", "other", "labels", "told"), [(20, 0, 7, True), (20, 1, 7, False), (19, 0, 7, False), (20, 0, 1, False)]
)
def test_a_model_that_answers_one_class_alone_is_told(count, other, labels, told):
    """Not of a few images, and not if all of them are of one class."""
    probabilities = np.full((count, 7), 0.1)
    probabilities[:, 2] = 0.4
    probabilities[:other, 3] = 0.5
    hashes = np.array([f"{number:064x}" for number in range(count)], "S64")
    found = answers_from(SINGLE_LABEL, probabilities, np.arange(count) % labels, np.zeros(count), hashes, CLASSES)
    words = "all 20 images get the class c, so the model tells none of them apart"
    assert found.describe_sameness() == (words if told else "")


@pytest.mark.one_backend
def test_a_class_that_the_model_lacks_is_not_among_the_first_five():
    """Its probability is filled in with 0, as is that of further ones: it would be a hit by its place alone."""
    probabilities = np.zeros((4, 7))
    probabilities[:, 4:] = 0.5, 0.3, 0.2
    arguments = np.array([0, 4, 6, 1]), np.zeros(4), np.array(list("stuv")), CLASSES
    assert (answers_from(SINGLE_LABEL, probabilities, *arguments).top == [4, 5, 6, 0, 1]).all()
    found = answers_from(SINGLE_LABEL, probabilities, *arguments, lacks=("a", "b", "c", "d"))
    assert (found.top == [4, 5, 6, NO_CLASS, NO_CLASS]).all()
    assert (found.top == found.labels[:, None]).any(axis=1).tolist() == [False, True, True, False]
    assert np.isnan(found.top_scores[:, 3:]).all()


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("task", "probabilities", "expected"),
    [
        (SINGLE_LABEL, [[0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]], [[1, 2, 0], [0, 1, 2], [2, 0, 1]]),
        (BINARY, [[0.5, 0.5], [0.4, 0.6], [1.0, 0.0]], [[0, 1], [1, 0], [0, 1]]),
    ],
)
def test_of_equal_classes_the_lowest_comes_first(task, probabilities, expected):
    """The first of them is the task's own answer: 0.5 of two classes is the first one."""
    probabilities = np.array(probabilities)
    classes = CLASSES[: probabilities.shape[1]]
    found = answers_from(task, probabilities, np.zeros(3, int), np.zeros(3), np.array(["a", "b", "c"]), classes)
    assert found.top.tolist() == expected
    np.testing.assert_array_equal(found.chosen, task.answers(probabilities))


@pytest.mark.one_backend
def test_a_class_of_another_model_is_chosen():
    """An answer outside the classes is never right, and the known classes follow it."""
    probabilities, plain = random_answers()
    chosen = probabilities.argmax(axis=-1)
    chosen[::2] = NO_CLASS
    _, found = random_answers(chosen=chosen, losses=False)
    np.testing.assert_array_equal(found.chosen, chosen)
    assert not found.right[::2].any()
    np.testing.assert_array_equal(found.top[::2, 1:], plain.top[::2, :4])
    np.testing.assert_array_equal(found.top[1::2], plain.top[1::2])
    assert np.isnan(found.top_scores[::2, 0]).all()
    assert np.isnan(found.losses).all()


@pytest.mark.one_backend
@pytest.mark.parametrize("count", [0, 1, 30])
def test_a_file_holds_what_was_written(tmp_path, count):
    """Reading gives equal columns; equal answers have equal bytes; pyarrow reads the table."""
    _, written = random_answers(count)
    for name in ("one", "two"):
        answers.write(tmp_path / name, written)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = answers.read(tmp_path / "one")
    for name, column in vars(written).items():
        np.testing.assert_array_equal(getattr(read, name), column)
        if name != "classes":
            assert getattr(read, name).dtype == column.dtype, name
    table = pq.read_table(tmp_path / "one")
    assert table["sha256"].to_pylist() == written.hashes.tolist()
    assert table["top"].to_pylist() == written.top.tolist()


@pytest.mark.one_backend
def test_what_is_no_file_of_answers(tmp_path):
    """A run of an earlier version has none; a damaged one, or another table, is named."""
    assert answers.read(tmp_path / "none") is None
    (tmp_path / "damaged").write_bytes(b"PAR1")
    with pytest.raises(ImagesError, match=r"the table of answers .*damaged cannot be read"):
        answers.read(tmp_path / "damaged")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(ImagesError, match="other is not a table of answers of kresume"):
        answers.read(tmp_path / "other")


@pytest.mark.one_backend
def test_two_models_are_compared_on_the_same_images():
    """Rows are matched by content, whatever their order; images of one alone are left out."""
    _, one = random_answers(30)
    _, other = random_answers(40, seed=1)
    mine, theirs = on_same_images(one.at(np.arange(5, 30)), other.at(other.hashes != one.hashes[7]))
    assert mine.hashes.tolist() == theirs.hashes.tolist()
    assert mine.hashes.tolist() == [each for each in one.hashes[5:].tolist() if each != one.hashes[7]]
    np.testing.assert_array_equal(theirs.labels, [other.labels[other.hashes == each][0] for each in mine.hashes])


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """Trains a run, and a child with new pictures and a new class."""
    folder = tmp_path_factory.mktemp("answers")
    write_pictures(folder / "old", 8, 0)
    write_pictures(folder / "new", 8, 500, classes=("circle", "stripes", "zz"))
    trained(folder / "first", data=[str(folder / "old")], **TINY)
    run_training(str(folder / "first"), add=[str(folder / "new")], out=str(folder / "second"), **EXTENDED)
    return folder


def assert_scored(found, expected, generation):
    """Asserts that recorded scores are those of the answers."""
    for name, mask in (("all", slice(None)), ("old", found.origins < generation), ("new", found.origins >= generation)):
        part, scores = found.at(mask), expected[name]
        assert len(part) == scores["images"] > 0
        assert part.right.mean() == pytest.approx(scores["accuracy"], abs=1e-12)
        assert part.losses.mean() == pytest.approx(scores["loss"], rel=1e-5)
        f1 = f1_score(part.labels, part.chosen, labels=np.unique(part.labels), average="macro", zero_division=0.0)
        assert f1 == pytest.approx(scores["f1"], abs=1e-12)


@pytest.mark.one_backend(trains=True)
def test_a_run_keeps_the_answers_that_its_scores_are_computed_from(extended):
    """Before and after, on the same validation images, in the child's classes; scores are scikit-learn's."""
    run = runs.open_run(extended / "second")
    recorded = json.loads((run.path / "evaluation.json").read_text())
    manifest = Manifest.read(run.manifest)
    rows = manifest.val_rows()
    for which in ("before", "after"):
        found = answers.read(run.answers(which))
        assert found.classes == run.record.card.classes
        assert found.hashes.tolist() == [sha256.decode() for sha256 in manifest.sha256s[rows].tolist()]
        np.testing.assert_array_equal(found.labels, manifest.labels[rows])
        assert_scored(found, recorded[which], run.generation)
    before = answers.read(run.answers("before"))
    added = before.classes.index("zz")
    assert (before.label_scores[before.labels == added] == 0).all()
    assert (before.chosen != added).all()


def test_answers_are_those_of_plain_keras(extended):
    """`model.predict` of `model.keras` on Keras's own loading gives the same classes and probabilities."""
    run = runs.open_run(extended / "second")
    found = answers.read(run.answers("after"))
    manifest = Manifest.read(run.manifest)
    size, rows = run.record.card.image_size, manifest.val_rows()
    pixels = [
        keras.utils.img_to_array(keras.utils.load_img(path, target_size=size, interpolation="box"))
        for path in manifest.paths(rows)
    ]
    outputs = keras.models.load_model(run.model).predict(np.stack(pixels), verbose=0)
    probabilities = np.asarray(keras.ops.softmax(outputs)) if outputs.min() < 0 else outputs
    near = np.abs(probabilities[np.arange(len(rows)), found.labels] - found.label_scores)
    assert np.median(near) < 0.02  # Pillow's averages differ from TensorFlow's in the last grey level
    assert (probabilities.argmax(axis=-1) == found.chosen).mean() > 0.9


def test_a_killed_process_writes_the_same_answers(extended, tmp_path):
    """If the last process only finishes the run, it predicts again, with equal bytes; a new model has no parent's."""
    run = extended / "second"
    expected = answers_of(run)
    last = sorted((run / "snapshots").glob("step-*"))[-1].name
    make_interrupted(run, last)
    assert sorted(answers_of(run)) == ["before.parquet"]
    run_training(out=str(run))
    assert answers_of(run) == expected
    assert sorted(answers_of(extended / "first")) == ["after.parquet"]


@pytest.mark.one_backend(trains=True)
def test_the_best_epoch_is_the_one_that_answers(extended):
    """With a monitor the answers are those of the chosen epoch, which is not the last."""
    out = extended / "best"
    options = {**EXTENDED, "epochs": 3, "lr": 0.3, "monitor": "all.loss"}
    run_training(str(extended / "first"), add=[str(extended / "new")], out=str(out), **options)
    run = runs.open_run(out)
    assert_scored(answers.read(run.answers("after")), json.loads((out / "evaluation.json").read_text())["after"], 1)


@pytest.mark.one_backend(trains=True)
def test_without_validation_images_there_are_no_answers(extended):
    """Nothing was scored, so no file is written."""
    run_training(data=[str(extended / "old")], out=str(extended / "unscored"), **{**TINY, "val_split": 0, "epochs": 1})
    assert not Path(extended / "unscored" / "answers").exists()
