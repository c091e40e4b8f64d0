"""Tests merging of old and new: conflicts, relabels, near-duplicates and corrections.

Each case is named, and none depends on chance.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

import kresume
from kresume.errors import UsageError
from kresume.images import corrections, keras_split, merging, near
from kresume.images.away import recorded_ever
from kresume.images.cache import Cache
from kresume.images.manifest import TRAIN, VAL, Manifest
from kresume.images.near import near_pairs
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.images.sources.moves import Moves
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.pictures import CLASSES, photo, save_photo, write_pictures
from tests.helpers.runs import TINY, trained

SPEC = DecodeSpec(24, 24)
AB = ("a", "b")


def merged(quiet, parent=None, *, data=None, add=None, val=None, generation=0, val_split=None, classes=AB, **options):
    prepared = [
        prepare(list_images([path], quiet).files, SPEC, None, quiet) if path else None for path in (data, add, val)
    ]
    return merging.merge(parent, *prepared, classes=classes, val_split=val_split, generation=generation, **options)


def sides(table):
    """Maps the last part of each path to its split."""
    names = [os.path.basename(path) for path in table.table.column("path").to_pylist()]
    return dict(zip(names, table.table.column("side").to_pylist(), strict=True))


# One image under two labels


@pytest.fixture
def doubled(tmp_path):
    """Writes `old/` with b/x.png, which `new/` holds as a/y.png; both have other images."""
    write_pictures(tmp_path / "old", 3, 0, AB)
    write_pictures(tmp_path / "new", 3, 50, AB)
    shutil.copy(tmp_path / "old" / "b" / "1000.png", tmp_path / "new" / "a" / "again.png")
    return tmp_path


@pytest.mark.parametrize(("policy", "label"), [("quarantine", None), ("old", "b"), ("new", "a")])
@pytest.mark.one_backend
def test_a_conflict_between_old_and_new_ends_as_asked(doubled, quiet, policy, label):
    """A conflict between old and new is named and ends as requested.

    Left out, or with the old or the new label.
    """
    result = merged(quiet, data=doubled / "old", add=doubled / "new", generation=1, on_conflict=policy)
    assert [pair[1:] for pair in result.facts.conflicts] == [("a", "b")]
    rows = {os.path.basename(row["path"]): row["label"] for row in result.manifest.table.to_pylist()}
    assert rows.get("1000.png") == label
    assert len(result.manifest) == (11 if label is None else 12)


@pytest.mark.parametrize(("policy", "label"), [("quarantine", "a"), ("old", "b"), ("new", "a")])
@pytest.mark.one_backend
def test_another_label_in_a_list_is_a_correction_unless_the_old_one_is_asked_for(tmp_path, quiet, policy, label):
    """The image stays at its place; only the list says something else."""
    write_pictures(tmp_path, 2, 0, AB)
    path = tmp_path / "a.csv"
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    path.write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    first = merged(quiet, data=path).manifest
    path.write_text(path.read_text().replace(f"{names[-1]},b", f"{names[-1]},a"))
    result = merged(quiet, first, add=path, generation=1, on_conflict=policy)
    labels = {row["path"]: row["label"] for row in result.manifest.table.to_pylist()}
    assert labels[str(tmp_path / names[-1])] == label
    assert len(result.facts.relabels) == (policy != "old")
    assert len(result.facts.conflicts) == (policy == "old")


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("kind", ["folder", "tar", "list"])
@pytest.mark.parametrize(("policy", "label"), [("quarantine", "a"), ("old", "a"), ("new", "b")])
@pytest.mark.one_backend
def test_a_folder_that_is_given_every_week_does_not_undo_a_correction(tmp_path, quiet, policy, label, kind, moved):
    """Its path says what it said when the image was recorded. A list that says so is another correction."""
    week = tmp_path / "week"
    write_pictures(week, 2, 0, AB)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in week.rglob("*.png"))
    source = shutil.make_archive(str(tmp_path / "week"), "tar", week) if kind == "tar" else week
    first = merged(quiet, data=source).manifest
    table = first.table.to_pylist()
    corrected = [{**row, "label": "a"} if "1001.png" in row["path"] + row["member"] else row for row in table]
    second = first.from_table(first.table.from_pylist(corrected, first.table.schema), AB)
    if moved:
        target = tmp_path / "elsewhere"
        shutil.move(week, target / "week")
        source = shutil.make_archive(str(target), "tar", target / "week") if kind == "tar" else target / "week"
    if kind == "list":
        source = (source.parent if moved else tmp_path) / "list.csv"
        source.write_text("path,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    result = merged(quiet, second, add=source, generation=2, on_conflict=policy)
    labels = [row["label"] for row in result.manifest.table.to_pylist() if "1001.png" in row["path"] + row["member"]]
    assert labels == ["b" if kind == "list" and (moved or policy == "quarantine") else label]
    told = [note for note in result.facts.notes if "keeps the label that corrected its source before" in note]
    assert len(told) == (policy != "new" and kind != "list")


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize(
    ("role", "policy", "label"),
    [("data", "quarantine", "a"), ("data", "old", "a"), ("data", "new", "b"), ("add", "quarantine", "b")],
)
@pytest.mark.one_backend
def test_an_old_list_that_is_given_again_does_not_undo_a_correction(tmp_path, quiet, role, policy, label, grows):
    """`--data` is old: what it said before the correction says nothing new. `--add` is new, and corrects once more."""
    write_pictures(tmp_path, 3, 0, AB)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    old, fix = tmp_path / "old.csv", tmp_path / "fix.csv"
    head, rows = "path,label\n", [f"{name},{name[0]}\n" for name in names]
    old.write_text(head + "".join(rows[1 if grows else 0 :]))
    fix.write_text(f"{head}{names[-1]},a\n")
    first = merged(quiet, data=old).manifest
    second = merged(quiet, first, data=old, add=fix, generation=1)
    assert [each[1:] for each in second.facts.relabels] == [("b", "a")]  # the old list beside it says nothing new
    old.write_text(head + "".join(rows))
    third = merged(quiet, second.manifest, **{role: old}, generation=2, on_conflict=policy)
    labels = {os.path.relpath(row["path"], tmp_path): row["label"] for row in third.manifest.table.to_pylist()}
    assert labels[names[-1]] == label
    told = "1 image keeps the label that corrected its source before; the first is "
    told += f"{tmp_path / names[-1]} (a; its source still says b)"
    assert any(note.startswith(told) for note in third.facts.notes) == (label == "a")


@pytest.mark.one_backend
def test_of_several_corrections_the_last_one_holds(tmp_path, quiet):
    """The old list undoes none of them; a list that changes its own word is news, there and back."""
    write_pictures(tmp_path, 2, 0, AB)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))

    def say(name, label, *others):
        rows = [f"{each},{each[0]}\n" for each in others]
        (tmp_path / name).write_text("path,label\n" + "".join([*rows, f"{names[-1]},{label}\n"]))
        return tmp_path / name

    old = say("old.csv", "b", *names[:-1])
    table, classes, given = None, ("a", "b", "c"), [{"data": old}]
    given += [{"data": old, "add": say("f1.csv", "a")}, {"data": old, "add": say("f2.csv", "c")}, {"data": old}]
    for generation, sources in enumerate(given):
        result = merged(quiet, table, **sources, generation=generation, classes=classes)
        table = result.manifest
    (row,) = [row for row in table.table.to_pylist() if row["path"].endswith(names[-1])]
    assert (row["label"], row["replaced"], row["source"]) == ("c", '["b", "a"]', str(tmp_path / "f2.csv"))
    assert any("1 image keeps the label" in note for note in result.facts.notes)
    say("f2.csv", "a")
    for label in ("c", "a", "c"):
        result = merged(quiet, table, data=say("f2.csv", label, *names[:-1]), generation=9, classes=classes)
        assert [row["label"] for row in result.manifest.table.to_pylist() if row["path"].endswith(names[-1])] == [label]
        table = result.manifest


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.one_backend
def test_an_image_that_moves_back_to_its_class_is_relabelled_again(tmp_path, quiet, packed):
    """A move corrects, and so does the move back; copies in both folders are two labels."""
    write_pictures(tmp_path / "in", 2, 0, AB)
    (tmp_path / "in" / "b" / "1000.png").rename(tmp_path / "in" / "b" / "x.png")

    def given():
        return shutil.make_archive(str(tmp_path / "in"), "tar", tmp_path / "in") if packed else tmp_path / "in"

    table = merged(quiet, data=given()).manifest
    for generation, (old, new) in enumerate([("b", "a"), ("a", "b"), ("b", "a")], 1):
        (tmp_path / "in" / old / "x.png").rename(tmp_path / "in" / new / "x.png")
        result = merged(quiet, table, data=given(), generation=generation)
        assert [each[1:] for each in result.facts.relabels] == [(old, new)]
        table = result.manifest
    shutil.copy(tmp_path / "in" / "a" / "x.png", tmp_path / "in" / "b" / "x.png")
    result = merged(quiet, table, data=given(), generation=9)
    assert (len(result.facts.undecided), len(result.manifest)) == (1, 3)


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize(("policy", "label"), [("quarantine", "a"), ("old", "b"), ("new", "a")])
@pytest.mark.one_backend
def test_old_holds_against_a_correction_that_is_given_beside_it(tmp_path, quiet, policy, label, away):
    """Also for an image that a generation did not have. The label that is used and recorded otherwise is counted."""
    write_pictures(tmp_path / "in", 2, 0, AB)
    (tmp_path / "fix.csv").write_text("path,label\nin/b/1000.png,a\n")
    (tmp_path / "rest.csv").write_text("path,label\nin/a/0.png,a\n")
    table = ever = merged(quiet, data=tmp_path / "in").manifest
    if away:
        table = merged(quiet, table, data=tmp_path / "rest.csv", generation=1, ever=ever).manifest
    options = {"data": tmp_path / "in", "add": tmp_path / "fix.csv", "generation": 2, "on_conflict": policy}
    result = merged(quiet, table, ever=ever, **options)
    labels = [row["label"] for row in result.manifest.table.to_pylist() if row["path"].endswith("1000.png")]
    assert labels == [label]
    assert [each[1:] for each in result.facts.relabels] == ([("b", "a")] if label == "a" else [])


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["folder", "list"])
@pytest.mark.one_backend
def test_a_corrected_image_that_was_away_comes_back_with_its_label(tmp_path, quiet, kind, corrected):
    """For a generation it was not given; what corrected it holds, and a label that nobody corrected is told."""
    write_pictures(tmp_path / "week", 2, 0, AB)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    full, rest = tmp_path / "full.csv", tmp_path / "rest.csv"
    rows = [f"{name},{name.split('/')[1]}\n" for name in names]
    full.write_text("path,label\n" + "".join(rows))
    rest.write_text("path,label\n" + "".join(rows[:-1]))
    source = tmp_path / "week" if kind == "folder" else full
    first = merged(quiet, data=source).manifest
    (tmp_path / "fix.csv").write_text(f"path,label\n{names[-1]},a\n")
    second = merged(quiet, first, data=source, add=tmp_path / "fix.csv", generation=1).manifest if corrected else first
    third = merged(quiet, second, data=rest, generation=2, ever=second)
    assert (len(third.manifest), len(third.away)) == (3, 1)
    if not corrected:
        full.write_text(full.read_text().replace(rows[-1], f"{names[-1]},a\n"))
        source = full
    ever = recorded_ever(third.manifest, Manifest.from_table(third.away, AB))
    fourth = merged(quiet, third.manifest, data=source, generation=3, ever=ever)
    row = next(row for row in fourth.manifest.table.to_pylist() if row["path"].endswith(names[-1]))
    assert (row["label"], row["replaced"]) == ("a", "" if kind == "list" and not corrected else '["b"]')
    assert [each[1:] for each in fourth.facts.relabels] == ([] if corrected else [("b", "a")])
    assert any("keeps the label that corrected its source" in note for note in fourth.facts.notes) == corrected


def _edit(path):
    save_photo(path, photo(77))


def _touch(path):
    os.utime(path, ns=(5, 5))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("role", "done", "moves"),
    [
        ("add", None, False),
        ("val", None, False),
        ("add", _touch, False),  # copied anew, with the same bytes
        ("add", _edit, True),  # it holds another picture
        ("add", os.remove, True),
        ("add", lambda path: shutil.rmtree(path.parents[1]), True),
        ("data", None, True),
    ],
)
@pytest.mark.one_backend
def test_a_copy_moves_nothing_while_the_image_is_at_its_place(tmp_path, quiet, role, done, moves, packed):
    """Deleting the copy later must not lose the image. `--data` moves the images: it says where the old ones are."""
    write_pictures(tmp_path / "old", 2, 0, AB)
    first = merged(quiet, data=tmp_path / "old").manifest
    copy = tmp_path / "week" / "a" / "copy.png"
    copy.parent.mkdir(parents=True)
    image = tmp_path / "old" / "a" / "1.png"
    shutil.copy(image, copy)
    source = Path(shutil.make_archive(str(tmp_path / "week"), "tar", tmp_path / "week")) if packed else copy.parents[1]
    if done is not None:
        done(image)
    result = merged(quiet, first, **{role: source}, generation=1)
    row = next(row for row in result.manifest.table.to_pylist() if row["sha256"] == _sha(copy))
    assert row["path"] == str((source if packed else copy) if moves else image)
    assert (row["length"] >= 0) == (packed and moves)
    if role == "data":  # given at both places it stays
        result = merged(quiet, first, data=tmp_path / "old", add=source, generation=1)
        assert str(image) in result.manifest.paths(np.arange(len(result.manifest)))


def _sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.one_backend
def test_an_image_that_moves_out_of_a_nested_folder_is_relabelled(tmp_path, quiet, stays):
    """Its path ends as before, in the folder `b`, but `a` gave its label: nothing was corrected. A copy is a conflict."""
    write_pictures(tmp_path / "old", 2, 0, AB)
    nested = tmp_path / "old" / "a" / "b" / "z.png"
    nested.parent.mkdir()
    shutil.move(tmp_path / "old" / "a" / "1.png", nested)
    first = merged(quiet, data=tmp_path / "old").manifest
    right = tmp_path / ("new" if stays else "old") / "b" / "z.png"
    right.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copy if stays else shutil.move)(nested, right)
    result = merged(quiet, first, add=right.parent.parent, generation=1)
    labels = [row["label"] for row in result.manifest.table.to_pylist() if row["path"].endswith("z.png")]
    assert labels == ([] if stays else ["b"])
    assert (len(result.facts.conflicts), len(result.facts.relabels)) == ((1, 0) if stays else (0, 1))


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.one_backend
def test_a_list_corrects_images_whose_folder_is_given_beside_it(tmp_path, quiet, again):
    """The folder says what the record says; without a record nothing tells which of the two is right."""
    write_pictures(tmp_path / "week", 2, 0, AB)
    (tmp_path / "right.csv").write_text("path,label\nweek/b/1001.png,a\n")
    first = merged(quiet, data=tmp_path / "week").manifest if again else None
    result = merged(quiet, first, data=tmp_path / "week", add=tmp_path / "right.csv", generation=1)
    labels = [row["label"] for row in result.manifest.table.to_pylist() if row["path"].endswith("1001.png")]
    assert labels == (["a"] if again else [])
    assert [each[1:] for each in result.facts.relabels] == ([("b", "a")] if again else [])
    if again:  # both are given once more
        result = merged(quiet, result.manifest, add=tmp_path / "week", data=tmp_path / "right.csv", generation=2)
        assert [row["label"] for row in result.manifest.table.to_pylist() if row["path"].endswith("1001.png")] == ["a"]
        assert not (result.facts.relabels)
        assert not (result.facts.conflicts)


@pytest.mark.parametrize(("policy", "label"), [("quarantine", None), ("old", "b"), ("new", "a")])
@pytest.mark.one_backend
def test_a_conflict_with_a_record_ends_as_asked(doubled, quiet, policy, label):
    """The same holds for an image that the parent remembers and that still exists."""
    first = merged(quiet, data=doubled / "old").manifest
    result = merged(quiet, first, add=doubled / "new", generation=1, on_conflict=policy)
    assert len(result.facts.relabels) == (policy == "new")
    assert not any("a new label" in note for note in result.facts.notes)  # the note on two labels says it
    rows = {row["sha256"]: row["label"] for row in result.manifest.table.to_pylist()}
    (sha,) = [row["sha256"] for row in first.table.to_pylist() if row["path"].endswith("1000.png")]
    assert rows.get(sha) == label


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.one_backend
def test_old_images_that_come_as_new_ones_are_counted_and_named(tmp_path, quiet, again):
    """Each file that was given is in a count: a new image, an old one or a duplicate; what validates goes on to."""
    write_pictures(tmp_path / "old", 3, 0, AB)
    write_pictures(tmp_path / "val", 1, 20, AB)
    first = merged(quiet, data=tmp_path / "old", val=tmp_path / "val").manifest
    write_pictures(tmp_path / "new", 2, 50, AB)
    for name, copies in (("old/a/0.png", ("x", "y")), ("val/b/1020.png", ("z",)), ("new/b/1050.png", ("w",))):
        for copy in copies:
            shutil.copy(tmp_path / name, tmp_path / "new" / name.split("/")[1] / f"{copy}.png")
    result = merged(quiet, first, data=tmp_path / "old" if again else None, add=tmp_path / "new", generation=1)
    facts = result.facts
    assert facts.added == 4
    assert facts.duplicates == (3 if again else 2)  # y repeats x, w an image of new/, and x one of old/
    (note,) = [note for note in facts.notes if "already" in note]
    assert "2 images of --add are among the parent's already, and count once" in note
    assert note.endswith("; 1 of them validates, as before")
    assert not any("already" in note for note in merged(quiet, first, data=tmp_path / "old", generation=1).facts.notes)


@pytest.mark.one_backend
def test_two_labels_within_one_role_cannot_be_decided(tmp_path, quiet):
    """--on-conflict old does not decide between two labels that came in together: both are left out.

    A note says so.
    """
    write_pictures(tmp_path, 3, 0, AB)
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "b" / "copy.png")
    result = merged(quiet, data=tmp_path, on_conflict="old")
    assert len(result.manifest) == 5
    assert any("cannot tell which" in note for note in result.facts.notes)


@pytest.mark.parametrize(("policy", "left_out"), [("quarantine", 2), ("old", 1), ("new", 1)])
@pytest.mark.one_backend
def test_what_is_decided_and_what_is_left_out_are_told_apart(doubled, quiet, policy, left_out):
    """Of two conflicts, one within a source: the note names the image that is left out, and lists have that alone."""
    shutil.copy(doubled / "new" / "a" / "50.png", doubled / "new" / "b" / "zz.png")
    facts = merged(quiet, data=doubled / "old", add=doubled / "new", generation=1, on_conflict=policy).facts
    assert len(facts.conflicts) == 2
    assert len(facts.undecided) == left_out
    assert "zz.png" in {os.path.basename(path) for path, _, _ in facts.undecided}
    told = [note for note in facts.notes if "two labels" in note]
    words = "image has two labels and is" if left_out == 1 else "images have two labels and are"
    assert told[0].startswith(f"{left_out} {words} left out")
    assert facts.undecided[0][0] in told[0]
    assert [f"1 file has two labels, the {policy} one is used" in note for note in told[1:]] == [True] * (2 - left_out)


@pytest.mark.one_backend
def test_a_conflict_that_is_left_out_is_not_said_to_validate(doubled, quiet):
    """An image given for training and, under another label, for validation is used for neither."""
    facts = merged(quiet, data=doubled / "old", val=doubled / "new").facts
    assert len(facts.undecided) == 1
    assert facts.both == ()


@pytest.mark.one_backend
def test_a_class_that_only_validates_is_named(doubled, quiet):
    """A class without images to train on may be forgotten; one without any image has another note."""
    facts = merged(quiet, data=doubled / "old", val=doubled / "new", classes=("a", "b", "c")).facts
    assert not any("all of them validate" in note for note in facts.notes)
    shutil.rmtree(doubled / "old" / "b")
    facts = merged(quiet, data=doubled / "old", val=doubled / "new", classes=("a", "b", "c")).facts
    assert any(note.startswith("no image of b trains, all of them validate") for note in facts.notes)
    assert any(note.startswith("no image of c:") for note in facts.notes)


@pytest.mark.one_backend
def test_a_file_that_moved_to_another_class_is_a_relabel(doubled, quiet):
    """A file that moved to another class gets its new label and keeps origin and split; it is listed.

    The old path is gone, and the same bytes are elsewhere.
    """
    first = merged(quiet, data=doubled / "old", val_split=0.5).manifest
    os.remove(doubled / "old" / "b" / "1000.png")
    result = merged(quiet, first, add=doubled / "new", generation=1)
    assert [pair[1:] for pair in result.facts.relabels] == [("b", "a")]
    before = {row["sha256"]: row for row in first.table.to_pylist()}
    changed = [
        row
        for row in result.manifest.table.to_pylist()
        if row["sha256"] in before and row["label"] != before[row["sha256"]]["label"]
    ]
    assert len(changed) == 1
    assert {name: changed[0][name] for name in ("origin", "side")} == {
        name: before[changed[0]["sha256"]][name] for name in ("origin", "side")
    }
    assert result.manifest.digest() != first.digest()


@pytest.mark.one_backend
def test_a_file_whose_name_another_picture_took_has_moved(doubled, quiet):
    """The recorded path exists, but holds another picture now: what it held is elsewhere, under its new label."""
    first = merged(quiet, data=doubled / "old").manifest
    write_pictures(doubled / "third", 1, 90, ("b",))
    (other,) = (doubled / "third" / "b").iterdir()
    os.replace(other, doubled / "old" / "b" / "1000.png")
    result = merged(quiet, first, add=doubled / "new", generation=1)
    assert [pair[1:] for pair in result.facts.relabels] == [("b", "a")]
    assert not result.facts.conflicts


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.one_backend
def test_an_image_has_another_label_in_an_archive_that_was_made_again(tmp_path, quiet, kind, keeps):
    """Its archive is at the old path: a relabel if the picture is under one class in it, a conflict if under both."""
    write_pictures(tmp_path / "old", 3, 0, AB)
    archive = shutil.make_archive(str(tmp_path / "photos"), kind, tmp_path / "old")
    first = merged(quiet, data=archive).manifest
    (shutil.copy if keeps else shutil.move)(tmp_path / "old" / "b" / "1001.png", tmp_path / "old" / "a" / "a.png")
    write_pictures(tmp_path / "old", 1, 80, AB)
    assert shutil.make_archive(str(tmp_path / "photos"), kind, tmp_path / "old") == archive
    result = merged(quiet, first, add=archive, generation=1)
    assert [pair[1:] for pair in result.facts.relabels] == ([] if keeps else [("b", "a")])
    assert [pair[1:] for pair in result.facts.conflicts] == ([("a", "b")] if keeps else [])


# Near-duplicates


@pytest.mark.one_backend
def test_a_copy_saved_again_takes_the_side_of_the_recorded_one(tmp_path, quiet):
    """A near-duplicate of a recorded image joins its split, whatever the split rate; a leak is named."""
    for seed in range(6):
        save_photo(tmp_path / "old" / AB[seed % 2] / f"{seed}.jpg", seed)
    first = merged(quiet, data=tmp_path / "old", val_split=0.4).manifest
    recorded = sides(first)
    assert set(recorded.values()) == {TRAIN, VAL}
    for seed in range(6):
        save_photo(tmp_path / "new" / AB[seed % 2] / f"again-{seed}.jpg", seed, quality=60, side=48)
    for share in (None, 0.9):
        result = merged(quiet, first, add=tmp_path / "new", generation=1, val_split=share)
        now = sides(result.manifest)
        assert all(now[f"again-{seed}.jpg"] == recorded[f"{seed}.jpg"] for seed in range(6))
    moved = {
        os.path.basename(leak.path) for leak in merged(quiet, first, add=tmp_path / "new", generation=1).facts.leaks
    }
    assert moved == {f"again-{seed}.jpg" for seed in range(6) if recorded[f"{seed}.jpg"] == VAL}


@pytest.mark.one_backend
def test_newcomers_near_each_other_take_one_side(tmp_path, quiet):
    """Near-duplicates that come together share one split, whatever the split rate."""
    for seed in range(8):
        for version, quality in enumerate((92, 80, 65)):
            save_photo(tmp_path / "old" / AB[seed % 2] / f"{seed}-{version}.jpg", seed, quality=quality)
    for share in (0.2, 0.5, 0.8):
        now = sides(merged(quiet, data=tmp_path / "old", val_split=share).manifest)
        assert len(now) == 24
        assert all(len({now[f"{seed}-{version}.jpg"] for version in range(3)}) == 1 for seed in range(8))
        assert set(now.values()) == {TRAIN, VAL}


@pytest.mark.parametrize("how", ["together", "later", "same label"])
@pytest.mark.one_backend
def test_a_near_duplicate_with_another_label_is_named(tmp_path, quiet, how):
    """A picture saved again under another class keeps its label, but a note names both files."""
    write_photos(tmp_path / "old", 3, 0)
    label = "a" if how == "same label" else "b"
    save_photo(tmp_path / "new" / label / "again.jpg", 0, quality=40)
    if how == "together":
        merge = merged(quiet, data=tmp_path / "old", add=tmp_path / "new", generation=1)
    else:
        first = merged(quiet, data=tmp_path / "old").manifest
        merge = merged(quiet, first, add=tmp_path / "new", generation=1)
    named = [note for note in merge.facts.notes if "another label" in note]
    assert len(merge.manifest) == 7
    if how == "same label":
        assert named == []
    else:
        assert "1 image looks like one with another label" in named[0]
        assert "0.jpg" in named[0]
        assert "again.jpg" in named[0]


@pytest.mark.one_backend
def test_an_image_near_one_given_to_validate_leaves_training(tmp_path, quiet):
    """If --val and --add hold versions of one picture, both validate and the leak is named."""
    save_photo(tmp_path / "val" / "a" / "1.jpg", 1)
    save_photo(tmp_path / "add" / "a" / "one.jpg", 1, quality=70)
    save_photo(tmp_path / "add" / "b" / "2.jpg", 2)
    result = merged(quiet, data=tmp_path / "add", val=tmp_path / "val")
    assert sides(result.manifest) == {"1.jpg": VAL, "one.jpg": VAL, "2.jpg": TRAIN}
    assert [(os.path.basename(leak.path), leak.outcome) for leak in result.facts.leaks] == [("one.jpg", "validates")]
    assert any("moved to validation" in note for note in result.facts.notes)


@pytest.mark.one_backend
def test_an_image_near_both_sides_is_left_out(tmp_path, quiet):
    """An image near a recorded training and a recorded validation image is left out and named."""
    save_photo(tmp_path / "old" / "a" / "1.jpg", 1)
    save_photo(tmp_path / "val" / "b" / "2.jpg", 2)
    save_photo(tmp_path / "old" / "a" / "3.jpg", 3)
    first = merged(quiet, data=tmp_path / "old", val=tmp_path / "val").manifest
    # An earlier kresume may have recorded two versions of one picture in both splits.
    thumbs = first.table.column("thumb").to_pylist()
    places = {os.path.basename(path): row for row, path in enumerate(first.table.column("path").to_pylist())}
    import pyarrow as pa

    thumbs[places["2.jpg"]] = thumbs[places["1.jpg"]]
    table = first.table.set_column(first.table.column_names.index("thumb"), "thumb", pa.array(thumbs, pa.binary()))
    parent = type(first).from_table(table, first.classes)
    save_photo(tmp_path / "new" / "a" / "again.jpg", 1, quality=75)
    result = merged(quiet, parent, add=tmp_path / "new", generation=1)
    assert "again.jpg" not in sides(result.manifest)
    assert [leak.outcome for leak in result.facts.leaks] == ["left out"]


@pytest.mark.one_backend
def test_what_is_near_an_image_that_is_away_takes_its_side(tmp_path, quiet):
    """The images of a generation before keep their split, and so do other versions of them, under any label."""
    for seed in range(4):
        save_photo(tmp_path / ("old" if seed % 2 else "val") / "a" / f"{seed}.jpg", seed)
        save_photo(tmp_path / "new" / "b" / f"again-{seed}.jpg", seed, quality=60)
    write_photos(tmp_path / "week", 3, 50)
    ever = merged(quiet, data=tmp_path / "old", val=tmp_path / "val").manifest
    week = merged(quiet, data=tmp_path / "week").manifest
    for share in (0.0, 1.0):
        merge = merged(quiet, week, add=tmp_path / "new", generation=2, val_split=share, ever=ever)
        now = sides(merge.manifest)
        assert {seed: now[f"again-{seed}.jpg"] for seed in range(4)} == {0: VAL, 1: TRAIN, 2: VAL, 3: TRAIN}
        assert not any("another label" in note for note in merge.facts.notes)
    forgotten = {sha.decode() for sha in ever.sha256s.tolist()}
    merge = merged(quiet, week, add=tmp_path / "new", generation=2, val_split=0.0, ever=ever, drop=forgotten)
    assert {sides(merge.manifest)[f"again-{seed}.jpg"] for seed in range(4)} == {TRAIN}


@given(some.integers(0, 2**32), some.integers(2, 40), some.integers(0, 40))
@settings(max_examples=30, deadline=None)
@pytest.mark.one_backend
def test_the_search_finds_what_comparing_each_with_each_finds(seed, fresh, old):
    """Multi-index hashing finds exactly the pairs of an exhaustive comparison."""
    rng = np.random.default_rng(seed)
    count = fresh + old
    shades = rng.integers(0, 256, (6, 64))
    noise = rng.integers(-6, 7, (count, 64)) * rng.integers(0, 2, (count, 1))
    thumbs = np.clip(shades[rng.integers(0, 6, count)] + noise, 0, 255).astype(np.uint8)
    is_new = np.arange(count) < fresh
    expected = set()
    alike = near.are_near(np.repeat(thumbs, count, axis=0), np.tile(thumbs, (count, 1))).reshape(count, count)
    bits = near.search_bits(thumbs)
    for one in range(count):
        for other in range(one + 1, count):
            close = int(bits[one] ^ bits[other]).bit_count() <= near.MAX_BITS
            if close and (is_new[one] or is_new[other]) and alike[one, other]:
                expected.add((one, other))
    found = near_pairs(thumbs, np.ones(count, bool), is_new)
    assert {tuple(pair) for pair in found.tolist()} == expected


@pytest.mark.one_backend
def test_images_that_the_parent_lacks_are_named_where_they_count_as_old(pictures, quiet):
    """`--data` says that images are old. Those that a run never had count as such, and a note says so."""
    old, new = (list_images([pictures / name], quiet).files for name in ("old", "new"))
    first = merged(quiet, data=pictures / "old", classes=CLASSES).manifest
    options = {"classes": CLASSES, "val_split": None, "generation": 1}
    for data, add, count in (((*old, *new), None, 18), (old, new, 0), ((*old, new[0]), None, 1), (None, new, 0)):
        parts = [prepare(files, SPEC, None, quiet) if files is not None else None for files in (data, add)]
        result = merging.merge(first, *parts, None, **options)
        assert (result.manifest.origins < 1).sum() == 24 + count
        said = [note for note in result.facts.notes if "the parent was trained or scored on" in note]
        assert [note.split()[0] for note in said] == ([str(count)] if count else [])


@pytest.mark.one_backend
def test_similar_photographs_are_not_taken_for_copies(real_data, quiet):
    """Among 1,473 similar photographs of hands, no two different pictures are near."""
    from kresume.images.near import thumb_array

    listing = list_images([real_data / "signdigits" / part for part in ("old", "new")], quiet)
    table = merged(quiet, data=real_data / "signdigits" / "old", classes=tuple("0123456789")).manifest
    assert len(listing.files) > len(table) > 600
    thumbs, usable = thumb_array(table.table.column("thumb"))
    pairs = near_pairs(thumbs, usable, np.ones(len(table), bool))
    assert len(pairs) == 0


def handwritten(seed, count):
    """Draws digits as in MNIST: 28x28, white on black, within 20x20, centred by mass."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    for place in np.random.default_rng(seed).permutation(len(images))[:count]:
        large = Image.fromarray((images[place] * (255 / 16)).astype(np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        strokes = np.clip((np.asarray(large, np.float32) - 90) * 2.2, 0, 255).astype(np.uint8)
        rows, columns = np.nonzero(strokes > 40)
        cut = Image.fromarray(strokes).crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        scale = 20 / max(cut.size)
        cut = cut.resize([max(1, round(side * scale)) for side in cut.size], Image.Resampling.LANCZOS)
        ink = np.asarray(cut, np.float32)
        middle = [(ink.sum(axis=1 - axis) @ np.arange(ink.shape[axis])) / ink.sum() for axis in (0, 1)]
        top, left = (int(np.clip(round(13.5 - m), 0, 28 - side)) for m, side in zip(middle, ink.shape, strict=True))
        picture = np.zeros((28, 28), np.uint8)
        picture[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        yield Image.fromarray(picture)


COPIES = {
    "JPEG of quality 90": lambda image: (image, "JPEG", {"quality": 90}),
    "JPEG of quality 50": lambda image: (image, "JPEG", {"quality": 50}),
    "PNG": lambda image: (image, "PNG", {"compress_level": 1}),
    "twice the size": lambda image: (image.resize((56, 56), Image.Resampling.BICUBIC), "PNG", {}),
    "darker": lambda image: (image.point(lambda level: level * 0.9), "JPEG", {"quality": 90}),
}


@pytest.mark.one_backend
def test_small_grey_drawings_are_told_apart_and_their_copies_found():
    """Small grey drawings are told apart, and their copies are found.

    Most of a digit is background, equal in all and noisy in a JPEG; neither may decide.
    """
    import io

    from kresume.images.decode import decode
    from kresume.images.likeness import likeness
    from kresume.values.decode_spec import DecodeSpec

    def thumbs_of(images):
        contents = []
        for image, kind, options in images:
            file = io.BytesIO()
            image.save(file, kind, **options)
            contents.append(decode(file.getvalue(), DecodeSpec(28, 28)))
        return likeness(contents)[1]

    images = list(handwritten(0, 400))
    thumbs = thumbs_of([COPIES["PNG"](image) for image in images])
    everything = np.ones(len(thumbs), bool)
    assert len(near_pairs(thumbs, everything, everything)) == 0
    for name, copy in COPIES.items():
        both = np.concatenate([thumbs[:60], thumbs_of([copy(image) for image in images[:60]])])
        pairs = near_pairs(both, np.ones(120, bool), np.arange(120) >= 60)
        assert pairs.tolist() == [[place, place + 60] for place in range(60)], name


@pytest.mark.one_backend
def test_flat_pictures_are_not_near_each_other(tmp_path, quiet):
    """Flat pictures are not near each other: each is assigned to a split on its own."""
    for place in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 200 + place, np.uint8)).save(tmp_path / "a" / f"{place}.png")
    assert set(sides(merged(quiet, data=tmp_path, val_split=0.5, classes=("a",)).manifest).values()) == {TRAIN, VAL}


def write_photos(folder, count, first):
    """Writes photos of two classes, none of which is near another."""
    for place, label in enumerate("ab"):
        for seed in range(first + 50 * place, first + 50 * place + count):
            save_photo(folder / label / f"{seed}.jpg", seed)


@pytest.mark.one_backend
def test_a_copy_that_validates_keeps_the_image_out_of_training(tmp_path, quiet):
    """Whatever file of an image says `val`, first or last, in one source or two, it validates, and a note says so."""
    write_photos(tmp_path / "in" / "train", 8, 0)
    write_photos(tmp_path / "in" / "val", 3, 100)
    held = sorted((tmp_path / "in" / "val" / "a").iterdir())
    for number, file in enumerate(held):
        shutil.copy(file, tmp_path / "in" / "train" / "a" / f"copy{number}.jpg")
    merge = merged(quiet, data=tmp_path / "in")
    assert np.bincount(merge.manifest.is_val).tolist() == [16, 6]
    assert any(note.startswith("3 images: given for training and for validation") for note in merge.facts.notes)
    shutil.copytree(tmp_path / "in" / "train", tmp_path / "first")
    shutil.copytree(tmp_path / "in" / "val", tmp_path / "second" / "val")
    write_photos(tmp_path / "second" / "train", 1, 300)
    table = merged(quiet, data=tmp_path / "first", add=tmp_path / "second", generation=1).manifest
    assert np.bincount(table.is_val).tolist() == [18, 6]
    assert table.origins.sum() == 3 + 2  # three of b that only the new source validates, two that it trains on


@pytest.mark.one_backend
@pytest.mark.parametrize("last", ["train", "val"])
def test_a_list_names_one_file_for_both_splits(tmp_path, quiet, last):
    """The order of the rows does not matter."""
    write_photos(tmp_path, 4, 0)
    files = [(f"{label}/{file.name}", label) for label in "ab" for file in sorted((tmp_path / label).iterdir())]
    rows = [(path, label, "train") for path, label in files]
    twice = [(path, label, "val") for path, label in files[:2]]
    written = [*twice, *rows] if last == "train" else [*rows, *twice]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(f"{','.join(row)}\n" for row in written))
    assert np.bincount(merged(quiet, data=tmp_path / "list.csv").manifest.is_val).tolist() == [6, 2]


@pytest.mark.one_backend
def test_old_images_given_to_validate_are_old_and_seen(tmp_path, quiet):
    """A copy of an image of `--data` under `--val` validates, but the checkpoint was trained on it."""
    write_photos(tmp_path / "old", 6, 0)
    (tmp_path / "val" / "a").mkdir(parents=True)
    shutil.copy(next((tmp_path / "old" / "a").iterdir()), tmp_path / "val" / "a" / "copy.jpg")
    write_photos(tmp_path / "val", 2, 500)
    table = merged(quiet, data=tmp_path / "old", val=tmp_path / "val", generation=1, seen=True).manifest
    assert (table.is_val & (table.origins == 0)).sum() == 1
    assert table.seen[table.is_val].sum() == 1
    assert table.seen.sum() == 12


@pytest.mark.parametrize("how", ["together", "later"])
@pytest.mark.one_backend
def test_a_near_duplicate_of_what_was_seen_was_seen(tmp_path, quiet, how):
    """A photo saved again under `--val` is not the file that the checkpoint was trained on, and shows it all the same."""
    write_photos(tmp_path / "old", 4, 0)
    save_photo(tmp_path / "val" / "a" / "again.jpg", 1, quality=60, side=48)
    save_photo(tmp_path / "val" / "a" / "other.jpg", 900)
    if how == "together":
        table = merged(quiet, data=tmp_path / "old", val=tmp_path / "val", generation=1, seen=True).manifest
    else:
        first = merged(quiet, data=tmp_path / "old", seen=True, generation=1).manifest
        table = merged(quiet, first, val=tmp_path / "val", generation=2).manifest
    seen = dict(zip(sides(table), table.seen.tolist(), strict=True))
    assert (seen["again.jpg"], seen["other.jpg"]) == (True, False)


@pytest.mark.one_backend
def test_what_keras_held_out_and_what_a_folder_says_count_alike(tmp_path, quiet):
    """An image that trained in Keras's split validates if the new source says so, and was seen in training."""
    write_photos(tmp_path / "old", 3, 0)
    write_photos(tmp_path / "new" / "train", 1, 300)
    (tmp_path / "new" / "val" / "a").mkdir(parents=True)
    shutil.copy(tmp_path / "old" / "a" / "0.jpg", tmp_path / "new" / "val" / "a" / "copy.jpg")
    options = {"generation": 1, "held_out": {str(tmp_path / "old" / "b" / "50.jpg")}, "seen": True}
    table = merged(quiet, data=tmp_path / "old", add=tmp_path / "new", **options).manifest
    assert {name for name, side in sides(table).items() if side == VAL} == {"0.jpg", "50.jpg"}
    seen = dict(zip(sides(table), table.seen.tolist(), strict=True))
    assert (seen["0.jpg"], seen["50.jpg"]) == (True, False)


# Corrections


@pytest.mark.one_backend
def test_moved_images_are_found_again(pictures, tmp_path, quiet):
    """--remap replaces the beginning of paths by whole folder names; a pair that fits nothing is an error."""
    shutil.copytree(pictures / "old", tmp_path / "before")
    table = merged(quiet, data=tmp_path / "before", classes=CLASSES).manifest
    shutil.move(tmp_path / "before", tmp_path / "after")
    again = corrections.remap(table, Moves.parse([f"{tmp_path / 'before'}={tmp_path / 'after'}"]))
    assert again.digest() == table.digest()
    assert all(os.path.exists(path) for path in again.table.column("path").to_pylist())
    listed = Moves.parse(["/listed=/x", f"{tmp_path / 'before'}={tmp_path / 'after'}"])
    assert corrections.remap(table, listed, {"/listed"}).digest() == table.digest()
    with pytest.raises(UsageError, match="no recorded image is in /listed"):
        corrections.remap(table, listed)
    with pytest.raises(UsageError, match="no recorded image is in"):
        corrections.remap(table, Moves.parse([f"{tmp_path / 'bef'}=/x"]))


@pytest.mark.one_backend
def test_dropped_images_leave_the_manifest_and_the_cache(pictures, tmp_path, quiet):
    """Images dropped by path or hash leave the manifest and the cache; an empty list is refused.

    The other pictures of the shard keep their bytes.
    """
    cache = Cache.open(SPEC, tmp_path / "cache")
    prepared = prepare(list_images([pictures / "old"], quiet).files, SPEC, cache, quiet)
    table = merging.merge(None, prepared, None, None, classes=CLASSES, val_split=None, generation=0).manifest
    before = cache.read(cache.find(table.sha256s))
    gone = table.sha256s[5].decode()
    (tmp_path / "drop").write_text(f"# twice\n{pictures / 'old' / 'circle' / '0.png'}\n{gone.upper()}\n/no/such.png\n")
    lines = corrections.read_drop(str(tmp_path / "drop"))
    drop, nowhere = corrections.hashes_in(lines, table, prepared)
    assert (len(drop), nowhere) == (2, ["/no/such.png"])
    result = merging.merge(table, None, prepared, None, classes=CLASSES, val_split=None, generation=1, drop=drop)
    assert (len(result.manifest), result.facts.dropped) == (22, 2)
    again = merging.merge(None, prepared, None, None, classes=CLASSES, val_split=None, generation=0, drop=drop)
    assert again.manifest.digest() == result.manifest.digest()
    other = Cache.open(DecodeSpec(16, 16), tmp_path / "cache")
    prepare(list_images([pictures / "old"], quiet).files, other.spec, other, quiet)
    assert corrections.forget(cache, drop) == drop
    assert len(Cache.open(other.spec, tmp_path / "cache")) == 22
    thumbs = [row["thumb"] for row in table.table.to_pylist() if row["sha256"] == gone]
    assert thumbs[0] not in (tmp_path / "cache" / "pictures.sqlite").read_bytes()
    for each in (cache, Cache.open(SPEC, tmp_path / "cache")):
        found = each.find(table.sha256s)
        assert (found < 0).sum() == 2
        assert each.read(found[found >= 0]).tobytes() == before[found >= 0].tobytes()
    (tmp_path / "empty").write_text("")
    with pytest.raises(UsageError, match="the file is empty"):
        corrections.read_drop(str(tmp_path / "empty"))


@pytest.mark.one_backend
def test_what_keras_had_held_out_validates(pictures, quiet):
    """--val-like keras:F:SEED gives exactly the validation subset of Keras's loader."""
    import keras

    theirs = keras.utils.image_dataset_from_directory(
        pictures / "old", validation_split=0.3, subset="validation", seed=7, verbose=False
    )
    held = keras_split.held_out("keras:0.3:7", [str(pictures / "old")])
    table = merged(quiet, data=pictures / "old", classes=CLASSES, val_split=0.9, held_out=held).manifest
    assert {os.path.basename(path) for path in theirs.file_paths} == {
        name for name, side in sides(table).items() if side == VAL
    }
    for wrong in ("keras", "keras:2:1", "torch:0.2:1"):
        with pytest.raises(UsageError, match=r"keras:0\.2:123"):
            keras_split.held_out(wrong, [str(pictures / "old")])


@pytest.mark.one_backend
def test_old_images_of_a_bare_checkpoint_are_marked_as_seen(pictures, quiet):
    """Old training images of a bare checkpoint are marked as seen; validation and new images are not."""
    result = merged(
        quiet,
        data=pictures / "old",
        add=pictures / "new",
        val=pictures / "val",
        classes=CLASSES,
        generation=1,
        seen=True,
    )
    rows = result.manifest.table.to_pylist()
    assert {row["origin"] for row in rows if row["seen"]} == {0}
    assert sum(row["seen"] for row in rows) == 24


@pytest.mark.one_backend
def test_exif_bytes_do_not_make_another_picture(tmp_path, quiet):
    """A copy with other EXIF bytes and the same pixels is a near-duplicate, so both share a split."""
    (tmp_path / "a").mkdir()
    for number in range(6):
        Image.fromarray(photo(1)).save(tmp_path / "a" / f"{number}.jpg", "JPEG", quality=92, comment=b"%d" % number)
    save_photo(tmp_path / "a" / "other.jpg", 2)
    now = sides(merged(quiet, data=tmp_path, val_split=0.5, classes=("a",)).manifest)
    assert len({now[f"{number}.jpg"] for number in range(6)}) == 1


@pytest.mark.one_backend(trains=True)
def test_a_score_on_images_that_were_trained_on_says_so(pictures, tmp_path):
    """A score on images that were trained on says so.

    For a bare checkpoint old validation images count as seen; with --val-like those that Keras held out do not.
    """
    trained(tmp_path / "1", data=[str(pictures / "old")], **TINY)
    bare = {"data": [str(pictures / "old")], "add": [str(pictures / "new")], "epochs": 1, "quiet": True}
    plan = kresume.plan(str(tmp_path / "1" / "model.keras"), val_split=0.4, **bare)
    assert plan.images["seen"] > 0
    assert "of them seen in training" in str(plan)
    fair = kresume.plan(str(tmp_path / "1" / "model.keras"), val_like="keras:0.3:7", **bare)
    assert fair.images["seen"] == 0
    assert fair.before["old"]["images"] == 7
    assert "seen in training" not in str(fair)
