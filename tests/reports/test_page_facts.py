"""Tests the facts of the report against independent readings: scikit-learn, scipy, numpy."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import confusion_matrix, recall_score

from kresume import runs
from kresume.evaluation import answers as answers_file
from kresume.evaluation.answers import NO_CLASS
from kresume.evaluation.verdict import judge_right
from kresume.reports.page import charts, galleries, shift
from kresume.reports.page.confusion import CONDENSED, OTHERS, confusion_of
from kresume.reports.page.curves import curves_of
from kresume.reports.page.facts import collect
from kresume.reports.page.family import family_of
from kresume.reports.page.pictures import encode, read_pictures
from kresume.reports.page.render import render
from kresume.reports.page.source import in_classes, read_pair, read_run
from tests.helpers.page_runs import made_answers, write_images, write_run

pytestmark = pytest.mark.one_backend

CLASSES = ("rose", "tulip", "daisy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def manifest(folder):
    return write_images(folder, CLASSES)


@pytest.fixture(scope="module")
def run(folder, manifest):
    """A run that forgot: old images fell from 90 % to 50 %, new ones rose from 20 % to 90 %."""
    return write_run(
        folder / "runs" / "2-run", manifest, made_answers(manifest, 0.9, 0.2, 1), made_answers(manifest, 0.5, 0.9, 2)
    )


@pytest.fixture(scope="module")
def facts(run):
    return collect(read_run(run))


def test_the_confusion_is_that_of_scikit_learn(run, facts):
    """Before, after and their difference."""
    for which, matrix in (("before", facts.confusion.before), ("after", facts.confusion.after)):
        found = answers_file.read(run.answers(which))
        np.testing.assert_array_equal(matrix, confusion_matrix(found.labels, found.chosen, labels=range(3)))
    np.testing.assert_array_equal(facts.confusion.difference, facts.confusion.after - facts.confusion.before)
    for pair in facts.confusion.pairs:
        assert pair.label != pair.answer
        assert (pair.before, pair.after) == (
            facts.confusion.before[pair.label, pair.answer], facts.confusion.after[pair.label, pair.answer],
        )  # fmt: skip


def test_what_nobody_can_know_is_a_finding(run, facts):
    """Where no validation image is of a class that the parent knew, the page says so; here all are known."""
    assert "cannot be told" not in " ".join(finding.text for finding in facts.findings)
    added = replace(run.record, new_classes=facts.compared.after.answers.classes)
    blind = collect(replace(facts.source, run=replace(run, record=added)))
    text = "What it forgot cannot be told in full: no validation image is of a class that the parent knew."
    assert text in [finding.text for finding in blind.findings]


def test_the_headline_is_the_verdict_on_the_same_images(run, facts):
    """Each set of images has the verdict of a paired test, and the sentence says it."""
    before, after = (answers_file.read(run.answers(which)) for which in ("before", "after"))
    for change in facts.changes:
        mask = {"old": after.origins == 0, "new": after.origins == 1, "all": after.origins >= 0}[change.name]
        assert change.verdict == judge_right(before.right[mask], after.right[mask])
        assert change.images == mask.sum()
    assert [change.name for change in facts.changes] == ["new", "old", "all"]
    assert facts.verdict.startswith("Better on new (+")
    assert "worse on old (−" in facts.verdict
    assert facts.findings[0].kind == "bad"
    assert "Forgetting" in facts.findings[0].text
    assert json.loads(json.dumps(facts.as_dict(), allow_nan=False))["changes"]["old"]["verdict"]["kind"] == "worse"


def test_each_class_has_its_recall(run, facts):
    """As scikit-learn computes it."""
    for which in ("before", "after"):
        found = answers_file.read(run.answers(which))
        expected = recall_score(found.labels, found.chosen, labels=range(3), average=None)
        np.testing.assert_allclose([getattr(each, which) for each in facts.classes], expected)


def test_galleries_hold_what_their_names_say(run, facts):
    """Newly right, newly wrong, and mistakes by falling probability; the counts are of all."""
    before, after = (answers_file.read(run.answers(which)) for which in ("before", "after"))
    gained, lost, mistakes = facts.chosen.galleries
    np.testing.assert_array_equal(sorted(gained.rows), np.nonzero(~before.right & after.right)[0])
    np.testing.assert_array_equal(sorted(lost.rows), np.nonzero(before.right & ~after.right)[0])
    np.testing.assert_array_equal(sorted(mistakes.rows), np.nonzero(~after.right)[0])
    assert (np.diff(after.top_scores[list(mistakes.rows), 0]) <= 0).all()
    assert mistakes.sure == (~after.right & (after.top_scores[:, 0] >= galleries.CONFIDENT)).sum()
    for which, answers in (("before", before), ("after", after)):
        assert sum(map(len, facts.chosen.cells[which].values())) > 0
        for (label, chosen), rows in facts.chosen.cells[which].items():
            assert {(answers.labels[row], answers.chosen[row]) for row in rows} == {(label, chosen)}
            assert len(rows) == min(galleries.MOST_IN_CELL, facts.confusion.__dict__[which][label, chosen])


def test_the_difference_of_a_cell_is_what_came_and_what_left(run, facts, monkeypatch):
    """By the answers, not by the lists, which are cut; what came minus what left is the difference of the counts."""
    monkeypatch.setattr(galleries, "MOST_IN_CELL", 2)
    chosen = galleries.choose(read_run(run), facts.confusion)
    before, after = (answers_file.read(run.answers(which)) for which in ("before", "after"))
    for label, chosen_class in np.ndindex(3, 3):
        key = (label, chosen_class)
        inside = [(each.labels == label) & (each.chosen == chosen_class) for each in (before, after)]
        came, left = inside[1] & ~inside[0], inside[0] & ~inside[1]
        assert (chosen.moved["came"][key], chosen.moved["left"][key]) == (came.sum(), left.sum())
        assert facts.confusion.difference[key] == came.sum() - left.sum()
        for name, mask in (("came", came), ("left", left)):
            assert set(chosen.cells[name].get(key, ())) <= set(np.nonzero(mask)[0])
            assert len(chosen.cells[name].get(key, ())) == min(2, mask.sum())


def test_lists_are_cut_and_every_list_keeps_some(manifest, run, monkeypatch):
    """With room for few pictures each gallery and cell still has its first ones."""
    source = read_run(run)
    monkeypatch.setattr(galleries, "MOST_PICTURES", 12)
    chosen = galleries.choose(source, confusion_of(source))
    assert len(chosen.rows) == len(set(chosen.rows)) == 12
    assert {gallery.rows[0] for gallery in chosen.galleries} <= set(chosen.rows)
    assert all(set(rows) <= set(chosen.rows) for side in chosen.cells.values() for rows in side.values())


@pytest.mark.parametrize(("classes", "rows"), [(2, 2), (10, 10), (24, 24), (100, CONDENSED + 1)])
def test_many_classes_are_condensed_and_no_image_is_lost(tmp_path, classes, rows):
    """The matrix of 100 classes has a row for the most confused ones and one for all others."""
    names = tuple(f"class {index}" for index in range(classes))
    manifest = write_images(tmp_path, names, old=classes * 4, new=classes * 2, stored=False)
    after = made_answers(manifest, 0.7, 0.7, 3)
    confusion = confusion_of(read_run(write_run(tmp_path / "run", manifest, None, after)))
    assert len(confusion.names) == rows
    assert confusion.after.sum() == len(after)
    assert confusion.condensed == (confusion.names[-1] == OTHERS)
    for index, name in enumerate(confusion.names[:CONDENSED]):
        label = names.index(name)
        assert confusion.after[index, index] == (after.right & (after.labels == label)).sum()


def test_an_answer_that_is_no_class_has_its_own_column(run, manifest):
    """As of another model in a comparison."""
    source = read_run(run)
    top = source.after.answers.top.copy()
    top[0, 0] = NO_CLASS
    confusion = confusion_of(
        replace(source, after=replace(source.after, answers=replace(source.after.answers, top=top)))
    )
    assert confusion.names == (*CLASSES, "another class")
    assert confusion.after[:, -1].sum() == 1


def test_counts_are_those_of_the_table(facts, manifest):
    """Per class and origin, and how many of them train."""
    for index, row in enumerate(facts.counts.classes):
        mine, new, train = manifest.labels == index, manifest.origins == 1, ~manifest.is_val
        assert (row.old, row.new) == ((mine & ~new).sum(), (mine & new).sum())
        assert (row.old_train, row.new_train) == ((mine & ~new & train).sum(), (mine & new & train).sum())
    assert facts.counts.total.total == len(manifest)
    assert (facts.counts.duplicates.count, facts.counts.leaks.count, facts.counts.quarantine.count) == (3, 1, 1)
    assert facts.counts.leaks.rows == (("in/1.png", "near in/2.png: validates"),)


def test_the_shift_is_that_of_scipy_and_named(facts, manifest):
    """Brightness from the thumbnails; the effect is the share of pairs, by counting all of them."""
    thumbs = np.stack([np.frombuffer(each, np.uint8) for each in manifest.table["thumb"].to_pylist()]).mean(1)
    old, new = thumbs[manifest.origins == 0], thumbs[manifest.origins == 1]
    measures = {measure.name: measure for measure in facts.shift}
    assert list(measures) == ["brightness", "contrast", "sharpness", "shorter side", "aspect"]
    found = measures["brightness"]
    assert found.effect == pytest.approx((new[:, None] > old).mean() + (new[:, None] == old).mean() / 2, abs=1e-6)
    assert found.p == pytest.approx(mannwhitneyu(new, old).pvalue)
    assert found.medians == pytest.approx((np.median(old), np.median(new)))
    assert sum(found.old) == pytest.approx(1)
    assert found.strength == "large"
    assert measures["shorter side"].strength == "none"
    assert "new pictures are wider" in measures["aspect"].words
    assert "The largest difference: new pictures are" in shift.describe(facts.shift)


def test_equal_pictures_have_no_shift(tmp_path):
    """Pictures of one kind are not called different."""
    manifest = write_images(tmp_path, CLASSES, dark=False, stored=False)
    measures = [each for each in shift.shift_of(manifest, manifest.origins == 1, None) if each.name != "aspect"]
    assert {measure.strength for measure in measures} == {"none"}
    assert "look like the old ones" in shift.describe(measures)
    assert shift.shift_of(manifest, np.zeros(len(manifest), bool), None) == ()


def test_blurred_pictures_are_less_sharp():
    """The measure is zero without an edge, and that of the formula."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 3)).astype(np.uint8)
    grey = picture[0].astype(float).mean(-1)
    by_hand = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
        for y in range(1, 8)
        for x in range(1, 8)
    ]
    assert shift.sharpness(picture)[0] == pytest.approx(np.std(by_hand), rel=1e-5)
    assert shift.sharpness(np.full((1, 9, 9, 3), 7, np.uint8))[0] == 0


def test_slow_pictures_are_measured_in_part(manifest, run):
    """After the time limit, with as many old as new ones in proportion."""
    ticks = iter([0.0, *[99.0] * 9])
    reader, new = read_run(run).reader(), manifest.origins == 1
    found = shift._sharpness(manifest, new, reader, lambda: next(ticks))
    assert sum(found.counts) == shift.PART
    assert abs(found.counts[1] / shift.PART - new.mean()) < 0.05


def test_curves_and_marks(run, facts):
    """The parent is epoch 0; an interruption lies where it happened; images and the result are marked."""
    assert [epoch.number for epoch in facts.curves.epochs] == [0, 1, 2]
    assert [epoch.rate for epoch in facts.curves.epochs] == [None, 1e-3, 5e-4]
    lines = runs.read_metrics(run.metrics)
    assert facts.curves.epochs[2].accuracy["old"] == lines[1]["old"]["accuracy"]
    marks = [(mark.at, mark.kind) for mark in facts.curves.marks]
    assert marks == [(0.0, "origin"), (1.5, "interruption"), (2.0, "result")]
    assert "SIGTERM after step 15" in facts.curves.marks[1].text


def test_images_that_came_while_it_trained_are_marked(tmp_path, manifest):
    """At the epoch before which they came; the others came in at the start."""
    run = write_run(tmp_path / "run", manifest, None, made_answers(manifest, 0.5, 0.5, 1))
    run.event("images changed", epoch=2, arrived=7, validate=1, left=["0" * 64])
    marks = [(mark.at, mark.text) for mark in curves_of(read_run(run)).marks if mark.kind == "origin"]
    assert marks == [(0.0, "33 new images come in"), (1.0, "epoch 2: 7 images came in, 1 left")]


def test_charts_keep_values_in_place(facts):
    """Higher values are drawn higher, inside the chart; labels do not cover each other."""
    drawn = charts.charts_of(facts.curves)
    assert [chart.key for chart in drawn] == ["accuracy", "loss", "gap", "rate"]
    for chart in drawn:
        assert all(
            charts.TOP - 1 <= y <= charts.HEIGHT - charts.BOTTOM + 1 for line in chart.lines for _, y in line.dots
        )
        places = sorted(line.label_at for line in chart.lines)
        assert (np.diff(places) >= charts.LABEL_GAP - 1e-6).all()
    accuracy = {line.key: line for line in drawn[0].lines}
    last = facts.curves.epochs[-1].accuracy
    assert sorted(last, key=last.get) == sorted(last, key=lambda name: -accuracy[name].dots[-1][1])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.913, 0.987), (-3, 44), (1e-5, 1e-3), (7, 7.0001)])
def test_ticks_are_round_and_span_the_values(low, high):
    """Between two and eight ticks, evenly spaced."""
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_two_runs_are_compared_on_their_common_images(folder, manifest, run, tmp_path):
    """Rows are matched by content, classes by name, in any order of either."""
    other = write_images(tmp_path, CLASSES, seed=5, stored=False)
    stranger = write_run(tmp_path / "3-other", other, None, made_answers(other, 0.5, 0.5, 1))
    assert "no validation image in common" in " ".join(read_pair(run, stranger).missing)
    after = answers_file.read(run.answers("after"))
    turned = in_classes(after, ("daisy", "rose", "tulip"))
    assert [turned.classes[index] for index in turned.chosen] == [after.classes[index] for index in after.chosen]
    assert (in_classes(after, ("rose",)).chosen == np.where(after.chosen == 0, 0, NO_CLASS)).all()
    again = write_run(
        folder / "runs" / "3-run",
        manifest,
        None,
        after.at(np.arange(len(after))[::-1][:40]),
        created="2026-02-01T00:00:00",
    )
    pair = read_pair(run, again)
    assert len(pair.before_answers) == 40
    np.testing.assert_array_equal(pair.before_answers.chosen, pair.after.answers.chosen)
    assert collect(pair).verdict.startswith("Unchanged")


def test_the_lineage_is_a_graph_of_relatives(tmp_path, manifest):
    """Lanes part where a run has two children; a foreign parent is the last row; a stranger is not shown."""
    after = made_answers(manifest, 0.5, 0.5, 1)

    def make(name, parent, hour):
        changes = {"parent": parent, "created": f"2026-01-01T0{hour}:00:00"}
        return write_run(tmp_path / name, manifest, None, after, **changes)

    foreign = runs.open_run(make("1-a", None, 1).path).record
    base = write_run(tmp_path / "0-x", manifest, None, after, created="2026-01-01T00:30:00")

    def parent_of(name):
        return type(base.record.parent)(f"../{name}", "run", 20, "d" * 64)

    make("2-a", parent_of("1-a"), 2)
    make("3-b", parent_of("1-a"), 3)
    last = make("4-a", parent_of("2-a"), 4)
    family = family_of(read_run(last))
    assert foreign.parent is None
    assert [node.name for node in family.rows] == ["4-a", "3-b", "2-a", "1-a"]
    assert [node.lane for node in family.rows] == [0, 1, 0, 0]
    assert {(link.row, link.to_row) for link in family.links} == {(0, 2), (1, 3), (2, 3)}
    alone = family_of(read_run(base))
    assert [node.status for node in alone.rows] == ["accepted", "checkpoint"]


def test_pictures_keep_within_their_budget(manifest, run):
    """A picture that does not fit, or cannot be read, has a reason instead."""
    reader = read_run(run).reader()
    found = read_pictures(range(80), reader, budget=20_000)
    assert sum(len(picture.uri) for picture in found) <= 20_000
    assert found[0].uri.startswith("data:image/")
    assert all(bool(picture.uri) != bool(picture.reason) for picture in found)
    assert read_pictures([-1], reader)[0].reason
    assert read_pictures([0], None)[0].reason
    ticks = iter([0.0, 0.0, 99.0, 99.0, 99.0])
    slow = read_pictures(range(80), reader, clock=lambda: next(ticks))
    assert slow[0].uri
    assert "took long" in slow[79].reason
    assert len(encode(np.zeros((300, 200, 3), np.uint8), 64)) < 2000


def test_a_run_of_an_older_version_has_what_it_has(request):
    """Without answers there are no pictures; scores, curves and images are there."""
    golden = next((request.config.rootpath / "tests/golden/runs/0.1.0").rglob("run.json")).parent
    found = collect(read_run(runs.open_run(golden)))
    assert found.counts.classes
    assert found.confusion is None
    assert "not recorded by the version that made this run" in render(found)
