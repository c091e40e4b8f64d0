"""Tests `kresume eval`: its scores against scikit-learn on plain Keras's predictions, comparisons, gates and files."""

import csv
import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)

from kresume import cli
from kresume.errors import CheckpointError, ModelError, UsageError
from kresume.evaluation.against import Predicted
from kresume.evaluation.evaluate import evaluate
from kresume.evaluation.evaluation import Evaluation
from kresume.evaluation.gates import Gates
from kresume.evaluation.judging import failures_of
from kresume.evaluation.measure import by_generation, measure
from kresume.images.manifest import Manifest
from kresume.reporter import Reporter
from kresume.tasks.single_label import SINGLE_LABEL
from tests.helpers.pictures import draw, write_pictures
from tests.helpers.runs import TINY, run_training, trained

CLASSES = ("circle", "square", "stripes")
pytestmark = [pytest.mark.one_backend(trains=True), pytest.mark.optimized_graphs]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Trains a run and a child with a new class; `test/` holds pictures that neither has seen."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_pictures(folder / "old", 8, 0)
    write_pictures(folder / "new", 8, 500, classes=("circle", "stripes", "zz"))
    write_pictures(folder / "test", 10, 900, classes=(*CLASSES, "zz"))
    write_pictures(folder / "test3", 10, 900)
    trained(folder / "first", data=[str(folder / "old")], **TINY)
    run_training(
        str(folder / "first"),
        add=[str(folder / "new")],
        out=str(folder / "second"),
        **{**TINY, "image_size": None, "grow": ""},
    )
    return folder


@pytest.fixture(scope="module")
def evaluation(place):
    """Evaluates the child against its parent on the images of both, so that there are old and new ones."""
    return evaluate(place / "second", data=[place / "old", place / "new"], against=place / "first")


def main(words):
    """Runs a command; returns its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    return left.value.code


def plain_predictions(run, found):
    """Returns what plain Keras predicts from the pictures of an evaluation, in its order."""
    from kresume.images.reader import PictureReader
    from kresume.runs import open_run

    record = open_run(run).record
    manifest = Manifest.read(run / "images.parquet")
    rows = np.array([np.nonzero(manifest.sha256s == sha.encode())[0][0] for sha in found.answers.hashes])
    pictures = PictureReader(manifest, record.card.spec, None)(rows).astype("float32")
    outputs = keras.models.load_model(run / "model.keras").predict(pictures, verbose=0)
    return np.asarray(outputs, np.float64), manifest.labels[rows], manifest.origins[rows]


def test_scores_are_those_of_scikit_learn_on_plain_predictions(place, evaluation):
    """Loss, accuracy, per class scores and the confusion matrix, on old, new and all images."""
    outputs, labels, origins = plain_predictions(place / "second", evaluation)
    outputs = outputs / outputs.sum(axis=1, keepdims=True)
    chosen, names = outputs.argmax(axis=1), evaluation.answers.classes
    for name, mask in (("all", origins >= 0), ("old", origins < 1), ("new", origins == 1)):
        facts = evaluation.scores[name]
        assert facts["images"] == mask.sum() > 0
        assert facts["accuracy"] == pytest.approx(accuracy_score(labels[mask], chosen[mask]))
        assert facts["loss"] == pytest.approx(log_loss(labels[mask], outputs[mask], labels=range(4)), rel=1e-4)
        assert facts["top5"] is None
        own = evaluation.scores["classes"] if name == "all" else facts["classes"]
        expected = precision_recall_fscore_support(labels[mask], chosen[mask], labels=range(4), zero_division=0.0)
        occurs = expected[3] > 0
        for index, metric in enumerate(("precision", "recall", "f1")):
            found = [own[each][metric] for each in names]
            np.testing.assert_allclose(np.array(found, float)[occurs], expected[index][occurs])
        assert facts["f1"] == pytest.approx(expected[2][occurs].mean())
    matrix = np.zeros((4, 4), int)
    for cell in evaluation.confused:
        matrix[names.index(cell["label"]), names.index(cell["answer"])] = cell["images"]
    np.testing.assert_array_equal(matrix, confusion_matrix(labels, chosen, labels=range(4)))


def test_each_generation_of_a_run_has_a_row(evaluation):
    """With only two generations these are old and new; images that the run does not have are a row of their own."""
    parts = [evaluation.scores["old"], evaluation.scores["new"]]
    assert [(row["generation"], row["images"], row["accuracy"]) for row in evaluation.generations] == [
        (index, part["images"], part["accuracy"]) for index, part in enumerate(parts)
    ]
    assert [row["interval"] for row in evaluation.generations] == [part["intervals"]["accuracy"] for part in parts]
    assert [row["loss"] for row in evaluation.generations] == [pytest.approx(part["loss"]) for part in parts]
    assert "by generation" not in str(evaluation)
    answers = evaluation.answers
    known = answers.origins < 1
    rows = by_generation(answers, known)
    assert [(row["generation"], row["images"]) for row in rows] == [(0, known.sum()), (None, (~known).sum())]
    assert rows[1]["accuracy"] == pytest.approx(answers.right[~known].mean())
    assert by_generation(answers, np.zeros(len(answers), bool)) == []
    assert "  by generation: 0 " in str(replace(evaluation, generations=rows))


def test_calibration_is_that_of_guo_and_others(evaluation):
    """The error is the weighted distance of confidence and accuracy over 15 bins, computed one by one here."""
    answers = evaluation.answers
    confidences, right = answers.top_scores[:, 0].astype(float), answers.right
    error, images = 0.0, 0
    for lower in np.arange(15) / 15:
        mask = (confidences > lower) & (confidences <= lower + 1 / 15)
        if mask.any():
            error += mask.mean() * abs(confidences[mask].mean() - right[mask].mean())
            bin_ = next(each for each in evaluation.calibration if each["from"] == pytest.approx(lower))
            assert bin_["images"] == mask.sum()
            assert bin_["accuracy"] == pytest.approx(right[mask].mean())
            assert bin_["confidence"] == pytest.approx(confidences[mask].mean())
            images += bin_["images"]
    assert images == len(answers)
    assert evaluation.scores["all"]["ece"] == pytest.approx(error)


def test_a_comparison_is_mcnemars_on_each_origin(evaluation):
    """A new class is wrong for the parent, whose own scores and note are there, too."""
    before, after = evaluation.against.answers, evaluation.answers
    for name, mask in (("old", after.origins < 1), ("new", after.origins == 1)):
        gained = (after.right & ~before.right)[mask].sum()
        lost = (before.right & ~after.right)[mask].sum()
        verdict = evaluation.verdicts[name]
        assert (verdict.gained, verdict.lost) == (gained, lost)
        assert verdict.p == (binomtest(int(gained), int(gained + lost)).pvalue if gained + lost else 1.0)
    zz = before.labels == before.classes.index("zz")
    assert not before.right[zz].any()
    assert evaluation.against.lacks == ("zz",)
    assert "does not have zz" in evaluation.against.note
    assert evaluation.class_verdicts["zz"].images == zz.sum() == 8


def test_a_user_reads_one_block(place, evaluation):
    """Overall first, the worst classes and confused pairs, images that it was trained on, then before -> after."""
    text = str(evaluation)
    assert text.startswith(f"{place / 'second'} on ")
    assert re.search(r"^  all  +\d+\.\d % \(\d+\.\d to \d+\.\d\) of 48 images, loss \d", text, re.M)
    assert text.index("  all ") < text.index("  old ") < text.index("  new ") < text.index("  class ")
    assert re.search(r"note: it was trained on \d+ of these 48 images", text)
    assert f"{place / 'first'} -> {place / 'second'}, on the same images" in text
    assert re.search(r"^  verdict: \w.* on new .*, \w.* on old ", text, re.M)


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        ({"require": "all.accuracy>=0"}, ""),
        ({"require": ["all.accuracy>=0", "all.ece<=0 and classes.min.recall>1"]}, "all.ece"),
        ({"max_class_drop": 100}, ""),
        ({"max_forgetting": 100}, ""),
    ],
)
def test_gates_judge_an_evaluation(place, options, failed):
    """Conditions and falls behind another model; the exit code is 3, and the block and the JSON name the gate."""
    found = evaluate(place / "second", data=place / "test3", against=place / "first", **options)
    assert bool(found.failed) == bool(failed)
    assert found.exit_code == (3 if failed else 0)
    if failed:
        assert found.failed[0].startswith(failed)
        assert f"gate failed: {found.failed[0]}" in str(found)
        assert found.as_dict()["failed"] == list(found.failed)


def synthetic(right, labels, origins, lacks=()):
    """Makes an evaluation whose answers are right where `right` says so; images of `lacks` are wrong."""
    right = right & ~np.isin(labels, [CLASSES.index(name) for name in lacks])
    images = SimpleNamespace(
        sha256s=np.array([f"{each:064x}" for each in range(len(labels))], "S64"),
        labels=labels,
        origins=origins,
        classes=CLASSES,
    )
    probabilities = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
    measured = measure(Predicted(SINGLE_LABEL, probabilities), images, 1, (), Reporter(quiet=True))
    return Evaluation("OTHER", (), measured.scores, 0, answers=measured.answers, generation=1, lacks=lacks)


@pytest.mark.parametrize(
    ("origins", "known", "lacks", "expected"),
    [
        ((0, 1), True, (), "old.accuracy 1.00 -> 0.80, 30 images, p = 0.031, allowed 10 points"),
        ((1, 1), False, (), "all.accuracy 1.00 -> 0.80, 60 images, p < 0.001, allowed 10 points"),
        (
            (1, 1),
            False,
            ("stripes",),
            "accuracy on the classes of OTHER 1.00 -> 0.80, 40 images, p = 0.0078, allowed 10 points",
        ),
        ((1, 1), True, (), None),
    ],
)
def test_forgetting_is_judged_on_images_that_can_show_it(origins, known, lacks, expected):
    """On old images; without any, on all images of classes that the other model has, unless the run added them itself."""
    labels, origins = np.arange(60) % 3, np.repeat(origins, 30)
    before = synthetic(np.ones(60, bool), labels, origins, lacks)
    after = synthetic(np.arange(60) % 10 > 1, labels, origins)
    known = np.full(60, known)
    if expected is None:
        with pytest.raises(UsageError, match="added all of these images itself"):
            failures_of(Gates(max_forgetting=10.0), after, before, known)
        return
    assert failures_of(Gates(max_forgetting=10.0), after, before, known) == (expected,)
    assert failures_of(Gates(max_forgetting=20.0), after, before, known) == ()
    assert len(failures_of(Gates(max_class_drop=10.0), after, before, known)) == (2 if lacks else 3)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ("test", {"max_forgetting": 1}, "max_forgetting= compares with another model: give against="),
        ("test", {"max_class_drop": 1}, "max_class_drop= compares with another model"),
        ("test", {"max_forgetting": -1, "against": "first"}, "max_forgetting=-1: give a number of at least 0"),
        ("test", {"require": "all.acc>=0.5"}, "did you mean all.accuracy"),
        ("test", {"require": "all.accuracy>=93"}, "is from 0 to 1"),
        ("test", {"require": "old.accuracy>=0.5"}, "there are no old images in data=.*all.accuracy is measured on all"),
        ("old", {"require": "new.accuracy>=0.5"}, "there are no new images in data="),
        ("only_new", {"max_forgetting": 1, "against": "first"}, "added all of these images itself"),
        ("test", {"metric": "AUK"}, "Keras has no such metric: did you mean AUC"),
        ("test", {"metric": "MeanIoU"}, "a name alone does not make it"),
        ("test", {"metric": "accuracy"}, "accuracy is computed in any case"),
        ("test", {"metric": ["AUC", "AUC"]}, "AUC is given twice"),
    ],
)
def test_what_cannot_be_judged_is_refused(place, data, options, words):
    """A gate without another model or without images, and metrics that do not exist, are usage errors."""
    if "against" in options:
        options = {**options, "against": place / options["against"]}
    with pytest.raises(UsageError, match=words):
        evaluate(place / "second", data=place / ("new" if data == "only_new" else data), **options)


METRICS = """
import numpy as np
def mistakes(labels, probabilities):
    labels += 0  # a copy: changing it changes nothing
    return np.sum(probabilities.argmax(axis=1) != labels)
def no_value(labels, probabilities):
    return float("nan")
def table(labels, probabilities):
    return probabilities
def broken(labels, probabilities):
    return probabilities[:, 99]
"""


def test_metrics_of_the_user(place):
    """Keras's AUC is scikit-learn's; a function gets indices and probabilities, also for each origin; gates know both."""
    file = place / "metrics.py"
    file.write_text(METRICS)
    given = ["AUC", "sparse_top_k_categorical_accuracy", f"{file}:mistakes", f"{file}:no_value"]
    found = evaluate(place / "second", data=[place / "old", place / "new"], metric=given, require="all.mistakes<=48")
    answers, scores = found.answers, found.scores
    assert scores["all"]["mistakes"] == (~answers.right).sum()
    assert scores["old"]["mistakes"] + scores["new"]["mistakes"] == scores["all"]["mistakes"]
    assert scores["all"]["no_value"] is None
    assert scores["all"]["sparse_top_k_categorical_accuracy"] == 1.0
    shares = np.zeros((len(answers), 4))
    np.put_along_axis(shares, answers.top, answers.top_scores, axis=1)
    expected = roc_auc_score(np.eye(4)[answers.labels].ravel(), shares.ravel())
    assert scores["all"]["AUC"] == pytest.approx(expected, abs=0.02)  # Keras approximates by 200 thresholds
    assert found.failed == ()
    assert "mistakes" in str(found)
    for name, words in (("table", "returned ndarray of shape"), ("broken", "IndexError.*metrics.py, line 11")):
        with pytest.raises(ModelError, match=words):
            evaluate(place / "second", data=place / "test", metric=f"{file}:{name}")
    with pytest.raises(ModelError, match="has no function nothing"):
        evaluate(place / "second", data=place / "test", metric=f"{file}:nothing")


def test_the_command_writes_tables_and_exits_with_3(place, tmp_path, capsys):
    """One JSON value on stdout, one CSV row per subset and class of both models, answers as Parquet, and a page."""
    words = ["eval", place / "second", "--data", place / "old", "--data", place / "new", "--against", place / "first"]
    files = ["--csv", tmp_path / "s.csv", "--answers", tmp_path / "a.parquet"]
    assert main([*words, *files, "--require", "all.accuracy>1", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert {"all", "old", "new", "classes", "model", "data", "quarantined", "against", "comparison"} <= set(told)
    assert told["exit_code"] == 3
    assert told["comparison"]["old"]["words"]
    low, high = told["all"]["intervals"]["accuracy"]
    assert low < told["all"]["accuracy"] < high
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * 5
    keyed = {(row["model"], row["subset"], row["class"]): row for row in rows}
    own = str(place / "second")
    assert float(keyed[own, "all", ""]["accuracy"]) == told["all"]["accuracy"]
    assert float(keyed[own, "new", "circle"]["recall"]) == told["new"]["classes"]["circle"]["recall"]
    assert float(keyed[own, "all", "zz"]["p"]) == told["comparison"]["classes"]["zz"]["p"]
    assert keyed[own, "old", "zz"]["recall"] == ""
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 48
    page = place / "second" / "eval-against-first.html"
    page.unlink()
    assert main([*words, *files]) == 2
    assert "it already exists; give another name, or --overwrite" in capsys.readouterr().err
    assert main([*words, "--csv", tmp_path / "no" / "s.csv"]) == 2
    named = tmp_path / "page.html"
    assert main([*words, *files, "--overwrite", "--report", named]) == 0
    assert f"<h1>{place / 'second'} against {place / 'first'}</h1>" in named.read_text()
    assert not page.exists()
    assert main([*words[:-2], "--report", named]) == 2
    alone = [*words[:-2], "--report", named, "--overwrite"]
    assert main(alone) == 0
    assert f"<h1>{place / 'second'}</h1>" in named.read_text()


class Shown(Reporter):
    """Counts what each bar of progress was told."""

    def __init__(self):
        super().__init__(quiet=True)
        self.done = {}

    @contextmanager
    def progress(self, label, total, unit=""):
        """Counts."""

        def advance(count):
            self.done[label] = self.done.get(label, 0) + count

        yield advance


def test_a_saved_model_answers_like_its_run(place, tmp_path):
    """Through its signature it gives the run's scores and intervals, and no image tells the two apart."""
    from kresume.exports.export import export

    served = Path(export(place / "second", tmp_path / "serving").path)
    shown = Shown()
    found = evaluate(place / "second", data=place / "test", against=served, reporter=shown)
    images = found.scores["all"]["images"]
    assert shown.done[f"scoring {place / 'second'}"] == shown.done[f"scoring {served}"] == images
    assert found.verdicts["all"].gained == found.verdicts["all"].lost == 0
    assert str(found.verdicts["all"]) == "unchanged (right on the same images)"
    for metric in ("loss", "ece"):
        assert found.against.scores["all"][metric] == pytest.approx(found.scores["all"][metric], rel=1e-3)
    alone = evaluate(served, data=place / "test", require="all.accuracy>=0")
    assert alone.scores["all"]["accuracy"] == found.scores["all"]["accuracy"]
    grown = evaluate(place / "first", data=place / "test3", against=served)
    others = grown.against.answers.chosen == -1
    assert np.isfinite(grown.against.answers.top_scores[:, 0]).all()
    assert grown.against.scores["all"]["ece"] is not None
    assert others.sum() == sum(cell["images"] for cell in grown.against.confused if cell["answer"] is None)
    record = json.loads((served / "export.json").read_text())
    del record["sha256"]
    (served / "export.json").write_text(json.dumps({**record, "labels": [*CLASSES, "other"]}))
    older = evaluate(place / "second", data=place / "test", against=served).against
    assert older.lacks == ("zz",)
    assert "it does not have zz, whose images count as wrong" in older.note


def test_a_model_that_predicts_no_numbers_is_an_error(place, tmp_path):
    """The highest of values that are no numbers means nothing: the first such picture is named."""
    model = keras.models.load_model(place / "first" / "model.keras")
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    model.save(tmp_path / "broken.keras")
    with pytest.raises(CheckpointError, match=r"are not numbers for 30 of 30 images, the first is .*\.png"):
        evaluate(tmp_path / "broken.keras", data=place / "test3", classes=CLASSES, pixels="0-255")


def plain(path, pixels, order=CLASSES):
    """Saves a plain model that names neither its outputs nor, without a Rescaling layer, its pixels."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    scale = [layers.Rescaling(1 / 255)] if pixels == "0-255" else []
    body = [layers.Conv2D(12, 3, 2, activation="relu"), layers.Flatten(), layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((20, 20, 3)), *scale, *body])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    pictures = np.stack([draw(name, seed) for name in order for seed in range(20)]).astype("float32")
    fed = pictures if scale else pictures / 255
    model.fit(fed, np.repeat(np.arange(3), 20), epochs=12, verbose=0)
    model.save(path)


def alone(path, data, **options):
    return evaluate(path, data=data, **options).scores["all"]


def test_facts_of_one_model_are_not_used_for_the_other(place, tmp_path, monkeypatch, capsys):
    """`pixels` is for the model that does not show its own; each has its class order; the scores are those of each alone."""
    monkeypatch.chdir(tmp_path)
    turned = CLASSES[::-1]
    for name, pixels, order in (("shown", "0-255", CLASSES), ("bare", "0-1", CLASSES), ("turned", "0-255", turned)):
        plain(f"{name}.keras", pixels, order)
    data = place / "test3"
    shown, bare = alone("shown.keras", data), alone("bare.keras", data, pixels="0-1")
    for one, other, expected in (("shown", "bare", (shown, bare)), ("bare", "shown", (bare, shown))):
        found = evaluate(f"{one}.keras", data=data, against=f"{other}.keras", pixels="0-1")
        assert (found.scores["all"], found.against.scores["all"]) == expected
    found = evaluate("shown.keras", data=data, against="bare.keras", against_pixels="0-1")
    assert (found.scores["all"], found.against.scores["all"]) == (shown, bare)
    with pytest.raises(UsageError, match=r"both models record or show what they expect \(0-255, 0-255\)"):
        evaluate("shown.keras", data=data, against="turned.keras", pixels="0-1")
    wrong = evaluate("shown.keras", data=data, against="turned.keras").against
    assert "give against_classes=" in wrong.note or "give the order with against_classes=" in wrong.note
    assert "classes" not in evaluate("turned.keras", data=data, classes=turned, against=place / "first").against.note
    found = evaluate("shown.keras", data=data, against="turned.keras", against_classes=turned)
    assert found.against.scores["all"] == alone("turned.keras", data, classes=turned)
    assert (found.scores["all"], found.against.note) == (shown, "")
    keras.models.load_model("shown.keras").export("served", verbose=False)
    found = evaluate("bare.keras", data=data, against="served", pixels="0-1", against_pixels="0-255")
    assert (found.scores["all"], found.against.scores["all"]["accuracy"]) == (bare, shown["accuracy"])
    words = ["eval", "shown.keras", "--data", str(data), "--against", "bare.keras", "--against-pixels", "0-1"]
    assert main([*words, "--against-classes", ",".join(CLASSES)]) == 0
    assert f"{100 * bare['accuracy']:.1f} %" in capsys.readouterr().out


def test_pixels_that_the_first_layers_contradict_are_used_and_said(place, tmp_path):
    """Uses the pixels that were given, and notes that the model's first layers show others."""
    plain(tmp_path / "shown.keras", "0-255")
    found = evaluate(tmp_path / "shown.keras", data=place / "test3", pixels="0-1")
    assert "its first layers show that it expects 0-255, but pixels='0-1' was given" in found.note


def test_files_that_are_not_scored_are_counted(place, tmp_path):
    """A copy counts once; an image under two labels is left out and named; both are in the text and in the JSON."""
    shutil.copytree(place / "test3", tmp_path / "in")
    first, second, *_ = sorted((tmp_path / "in" / "circle").iterdir())
    shutil.copy(first, tmp_path / "in" / "circle" / "copy.png")
    shutil.copy(second, tmp_path / "in" / "square" / "other.png")
    (tmp_path / "in" / "square" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    found = evaluate(place / "first", data=tmp_path / "in")
    facts = found.as_dict()
    assert facts["all"]["images"] == 29
    assert (facts["quarantined"], facts["duplicates"], len(facts["conflicts"])) == (1, 1, 1)
    assert facts["conflicts"][0][1:] in (["circle", "square"], ["square", "circle"])
    for words in (
        "1 file could not be read",
        "1 file with the content of another",
        "1 label conflict, whose image is left out",
    ):
        assert words in str(found)


def test_a_run_without_its_table_of_images_is_compared(place, tmp_path):
    """The other model's own table of images is only used for the note on what it was trained on."""
    shutil.copytree(place / "first", tmp_path / "run")
    (tmp_path / "run" / "images.parquet").unlink()
    found = evaluate(place / "second", data=place / "test3", against=tmp_path / "run")
    assert "trained on" not in found.against.note
    assert "zz" in found.against.note


def test_top_5_is_counted_with_more_than_five_classes():
    """It is scikit-learn's; with five classes it would always be 1 and is left out."""
    rng = np.random.default_rng(0)
    for classes in (5, 8):
        probabilities, labels = rng.dirichlet(np.ones(classes), 60), rng.integers(classes, size=60)
        images = SimpleNamespace(
            sha256s=np.array([f"{each:064x}" for each in range(60)], "S64"),
            labels=labels,
            origins=np.zeros(60, int),
            classes=tuple(map(str, range(classes))),
        )
        found = measure(Predicted(SINGLE_LABEL, probabilities), images, 0, (), Reporter(quiet=True)).scores["all"]
        if classes == 5:
            assert found["top5"] is None
            assert "top5" not in found["intervals"]
        else:
            assert found["top5"] == top_k_accuracy_score(labels, probabilities, k=5)
            assert found["intervals"]["top5"][0] < found["top5"] < found["intervals"]["top5"][1]
