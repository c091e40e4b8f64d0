"""Tests `kresume data scan | check | show`: which images exist, and their problems."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from kresume import cli
from kresume.errors import ImagesError
from kresume.images import prepare as preparing
from kresume.images.manifest import Manifest
from kresume.reports import data as report
from tests.helpers.pictures import save_photo, write_pictures
from tests.helpers.runs import TINY, run_training, trained


def run(capsys, *arguments):
    """Returns (exit code, stdout) of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return stop.value.code, capsys.readouterr().out


@pytest.mark.one_backend(trains=True)
def test_a_scan_writes_a_manifest_and_reads_each_file_once(pictures, tmp_path, capsys, monkeypatch):
    """A scan writes a manifest that equals its source, and reads each file once.

    A second scan of an unchanged folder reads nothing.
    """
    reads = []
    real = preparing.read_range
    monkeypatch.setattr(preparing, "read_range", lambda *arguments: reads.append(arguments) or real(*arguments))
    command = ("data", "scan", pictures / "old", "-o", tmp_path / "m.parquet", "--cache", tmp_path / "cache", "--json")
    code, out = run(capsys, *command)
    facts = json.loads(out)
    assert (code, facts["images"], len(reads)) == (0, 24, 24)
    assert facts["counts"]["circle"] == {"new": {"undecided": 8}}
    assert facts["sizes"] == {"short": [20, 20, 20], "long": [20, 20, 20]}
    assert run(capsys, *command) == (0, out)
    assert len(reads) == 24
    assert not list((tmp_path / "cache").glob("*/*.bin"))
    table = Manifest.read(tmp_path / "m.parquet")
    assert len(table) == 24
    run_training(out=str(tmp_path / "1"), data=[str(tmp_path / "m.parquet")], **TINY)
    trained(tmp_path / "2", data=[str(pictures / "old")], **TINY)
    one, other = (Manifest.read(tmp_path / name / "images.parquet") for name in ("1", "2"))
    assert one.digest() == other.digest()


@pytest.mark.one_backend(trains=True)
def test_show_counts_a_run_and_draws_its_sheet(pictures, tmp_path, capsys):
    """`show` counts images per class, origin and split as the run recorded them, and draws a sheet.

    The sheet has a row for each image.
    """
    trained(tmp_path / "1", data=[str(pictures / "old")], **{**TINY, "image_size": "12"})
    run_training(str(tmp_path / "1"), add=[str(pictures / "new")], out=str(tmp_path / "2"), epochs=1)
    code, out = run(capsys, "data", "show", tmp_path / "2", "--json", "--sheet", tmp_path / "s.png", "--erase", "1")
    counts = json.loads(out)["counts"]
    assert code == 0
    assert sum(sum(sides.values()) for by in counts.values() for sides in by.values()) == 42
    assert set(counts["circle"]) == {"old", "new"}
    with Image.open(tmp_path / "s.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (8 * (96 + 4 + 14), 8 * (96 + 4) + 4, 3)
    first, second = sheet[14 : 14 + 96, 4:100], sheet[14 : 14 + 96, 104:200]
    assert first.std() > 20
    assert (first != second).any()
    table = str(report.describe(report.open_run(str(tmp_path / "2"))))
    assert "new train" in table
    assert "old val" in table


@pytest.mark.one_backend
def test_check_names_every_problem_and_fails(tmp_path, capsys):
    """`check` names every problem and exits with 1.

    Tried: a conflict, a leak to --val, a near-duplicate pair under two labels and a broken file.
    """
    for seed in range(4):
        save_photo(tmp_path / "old" / "ab"[seed % 2] / f"{seed}.jpg", seed)
    save_photo(tmp_path / "val" / "a" / "v.jpg", 0, quality=70)
    shutil.copy(tmp_path / "old" / "a" / "2.jpg", tmp_path / "old" / "b" / "copy.jpg")
    save_photo(tmp_path / "old" / "a" / "three.jpg", 3, quality=60)
    (tmp_path / "old" / "a" / "broken.jpg").write_bytes(b"<html>")
    command = ("data", "check", tmp_path / "old", "--val", tmp_path / "val", "--cache", "off")
    code, out = run(capsys, *command, "--json")
    facts = json.loads(out)
    assert code == 1
    assert [row["label"] for row in facts["conflicts"]] == ["b"]
    assert [row["outcome"] for row in facts["leaks"]] == ["validates"]
    assert [row["labels_differ"] for row in facts["near"]].count(True) == 1
    assert "web page" in facts["quarantine"][0]["reason"]
    assert facts["problems"] == 4
    code, text = run(capsys, *command)
    assert "files have two labels" in text
    assert "4 problems" in text


@pytest.mark.one_backend(trains=True)
def test_check_of_clean_images_against_a_run_passes(pictures, tmp_path, capsys):
    """`check` of clean images against a run passes, and counts the known images."""
    trained(tmp_path / "1", data=[str(pictures / "old")], **TINY)
    shutil.copytree(pictures / "old", tmp_path / "more")
    write_pictures(tmp_path / "more", 2, 500)
    code, out = run(capsys, "data", "check", tmp_path / "more", "--from", tmp_path / "1", "--json")
    facts = json.loads(out)
    assert (code, facts["known"], facts["images"], facts["problems"]) == (0, 24, 30, 0)


@pytest.mark.one_backend(trains=True)
def test_check_names_a_class_that_the_run_does_not_have(pictures, tmp_path, capsys):
    """`check` names a class that the run does not have, before training.

    Labels that are output indices are the run's classes.
    """
    trained(tmp_path / "1", data=[str(pictures / "old")], **TINY)
    write_pictures(tmp_path / "inbox", 2, 700, ("circle", "triangle"))
    code, out = run(capsys, "data", "check", tmp_path / "inbox", "--from", tmp_path / "1", "--json")
    assert (code, json.loads(out)["unknown"], json.loads(out)["problems"]) == (1, {"triangle": 2}, 1)
    _, text = run(capsys, "data", "check", tmp_path / "inbox", "--from", tmp_path / "1")
    assert "1 class that the run does not have; `train` would refuse them:\n  triangle: 2 images" in text
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for place, path in enumerate(sorted((tmp_path / "inbox" / "circle").iterdir())):
            (tmp_path / f"{place}.cls").write_text("0")
            archive.add(path, f"{place}.png")
            archive.add(tmp_path / f"{place}.cls", f"{place}.cls")
    code, out = run(capsys, "data", "check", tmp_path / "shard.tar", "--from", tmp_path / "1", "--json")
    assert (code, json.loads(out)["unknown"]) == (0, {})


@pytest.mark.one_backend
def test_scan_and_check_tell_classes_that_are_spelled_alike_and_what_is_left_out(tmp_path, capsys):
    """`plan` told classes that differ in case alone, `data` did not; `check` kept the notes on left-out files to itself."""
    write_pictures(tmp_path / "set", 2, 0, ("Rose", "tulip"))
    write_pictures(tmp_path / "set", 2, 9, ("rose",))
    (tmp_path / "set" / "tulip" / "notes.txt").write_text("x")
    for command in (("scan", "-o", tmp_path / "m.parquet"), ("check",)):
        code, out = run(capsys, "data", *command, tmp_path / "set", "--cache", "off", "--json")
        notes = json.loads(out)["notes"]
        assert code == 0
        assert any(note.startswith("the classes Rose and rose differ in their spelling alone") for note in notes)
        assert any("files that are not images were left out" in note for note in notes)


@pytest.mark.one_backend
def test_nothing_usable_is_an_error(tmp_path, quiet):
    """A folder without a usable image is an error with the first reason."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(ImagesError, match=r"no usable images \(1 file cannot be used, the first is .*x\.jpg"):
        report.scan([str(tmp_path)], quiet, cache="off")
    shutil.rmtree(tmp_path / "a")
    write_pictures(tmp_path, 1, 0, ("a",))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(
        ImagesError, match=r"no usable images \(1 image has two labels, the first is .*0\.png: b and a\)"
    ):
        report.scan([str(tmp_path)], quiet, cache="off")
