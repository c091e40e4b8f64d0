"""Tests what one week's run leaves for the next: images to forget, options, rates, and sources that are gone."""

import os
import shutil

import pyarrow.parquet as pq
import pytest

import kresume
from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import ImagesError
from kresume.reports.lineage import lineage
from tests.helpers.pictures import CLASSES, write_pictures
from tests.helpers.runs import TINY, make_interrupted, run_training, trained


def rows_of(run):
    return {row["sha256"]: row for row in pq.read_table(runs.open_run(run).manifest).to_pylist()}


@pytest.mark.one_backend(trains=True)
def test_what_a_rejected_run_dropped_stays_dropped(workplace):
    """The next run from the same parent leaves the images out; a run from another parent knows nothing of them."""
    trained("runs/1-shapes", data=["old"], **TINY)
    trained("runs/2-others", data=["old"], **TINY)
    (workplace / "drop.txt").write_text("old/circle/0.png\nold/circle/1.png\n")
    dropped = {
        row["sha256"] for row in rows_of("runs/1-shapes").values() if row["path"].endswith(("e/0.png", "e/1.png"))
    }
    assert len(dropped) == 2
    asked = {"add": ["new"], "epochs": 1, "lr": 1e-3}
    result = run_training(
        "runs/1-shapes", out="runs/3", drop="drop.txt", require=["all.accuracy>=1.0 and all.loss<=0.0"], **asked
    )
    assert result.status == "rejected"
    assert "the images that it added are new to the next run, what --drop named stays dropped" in str(result)
    plan = kresume.plan("runs/1-shapes", quiet=True, **asked)
    assert any("2 images are left out, because an earlier run dropped them" in note for note in plan.notes), plan.notes
    run_training("runs/1-shapes", out="runs/4", **asked)
    assert not dropped & rows_of("runs/4").keys()
    assert set(runs.open_run("runs/4").record.dropped) == dropped
    assert "40 (+18 from new, 2 of the parent's left out)" in str(lineage("runs/4"))
    other = kresume.plan("runs/2-others", quiet=True, **asked)
    assert "42: 24 old, 18 new" in str(other)


@pytest.mark.one_backend(trains=True)
def test_a_growing_folder_given_as_data_warms_up_again(workplace):
    """New pictures in `--data` count as old, as a note says, and are trained on at the checkpoint's rate."""
    trained("runs/1-shapes", data=["old"], **TINY)
    same = {"data": ["old"], "epochs": 1, "quiet": True}
    with pytest.raises(kresume.KresumeError, match=r"has ended at 0 .*lr_schedule='rewarm-cosine', which warms up"):
        kresume.plan("runs/1-shapes", **same)
    assert "rewarm-cosine" in str(kresume.plan("runs/1-shapes", lr_schedule="rewarm-cosine", **same))
    write_pictures(workplace / "old", 2, 700)
    plan = kresume.plan("runs/1-shapes", **same)
    assert (plan.rate.schedule, plan.rate.peak) == ("rewarm-cosine", 1e-3)
    assert any("6 images of data=" in note and "count as old all the same" in note for note in plan.notes), plan.notes


@pytest.mark.one_backend(trains=True)
def test_the_log_names_no_model_that_a_run_did_not_change(workplace):
    """A child has its parent's model, whatever `--model` built that."""
    (workplace / "tiny.py").write_text(
        "import keras\n\n\ndef build(num_classes, image_size):\n    layers = keras.layers\n    return keras.Sequential("
        "[keras.Input((*image_size, 3)), layers.Rescaling(1 / 255), layers.Flatten(), "
        "layers.Dense(num_classes, activation='softmax')])\n"
    )
    trained("runs/1-shapes", data=["old"], model="tiny.py:build", **TINY)
    run_training("runs/1-shapes", out="runs/2", add=["new"], epochs=1, lr=1e-3, augment="none")
    changes = [change.name for each in lineage("runs").generations for change in each.changes]
    assert "--augment" in changes
    assert "--model" not in changes


@pytest.mark.one_backend(trains=True)
def test_a_picture_moved_into_a_folder_for_training_still_validates(workplace):
    """Its side is recorded; a note says so, as it does for the other direction."""
    layout = workplace / "yolo"
    write_pictures(layout / "train", 4, 0)
    write_pictures(layout / "val", 2, 500)
    trained("runs/1-shapes", data=["yolo"], **{**TINY, "val_split": None})
    shutil.move(layout / "val" / "circle" / "500.png", layout / "train" / "circle" / "moved.png")
    shutil.move(layout / "train" / "circle" / "0.png", layout / "val" / "circle" / "other.png")
    notes = kresume.plan("runs/1-shapes", data=["yolo"], lr=1e-3, quiet=True).notes
    [note] = [each for each in notes if "moved.png" in each]
    assert "1 image: in a folder for training, but recorded for validation, and still used for validation" in note
    [note] = [each for each in notes if "other.png" in each]
    assert "given for validation, but recorded for training, and still used for training" in note


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("gone", ["source", "source, cached", "file"])
@pytest.mark.sample("source, cached")
def test_a_source_that_is_gone_stops_an_interrupted_run(workplace, tmp_path, monkeypatch, gone):
    """A drive that is not mounted is an error before anything is trained; a single file leaves when it is missed."""
    trained("runs/1-shapes", data=["old"], **TINY)
    options = {"add": ["new"], "epochs": 3, "lr": 1e-3}
    run = trained("runs/2", every_snapshot=True, checkpoint="runs/1-shapes", **options)
    make_interrupted(run, snapshot.list_snapshots(run / "snapshots")[1][1].name)
    if gone != "source, cached":
        monkeypatch.setenv("KRESUME_CACHE", str(tmp_path / "empty"))
    if gone == "file":
        next((workplace / "new" / "circle").iterdir()).unlink()
    else:
        shutil.move(workplace / "new", workplace / "away")
    if gone == "source":
        with pytest.raises(
            ImagesError, match=r"none of the 18 images that runs/2 has from .*new is there, and 18 of them"
        ):
            run_training("runs/1-shapes", out="runs/2", **options)
    allowed = {"on_missing": "drop"} if gone == "source" else {}
    result = run_training("runs/1-shapes", out="runs/2", **options, **allowed)
    assert result.unread == {"source": 18, "source, cached": 0, "file": 1}[gone]
    assert (f"unread: {result.unread} image" in str(result)) == bool(result.unread)


@pytest.mark.one_backend(trains=True)
def test_what_is_back_is_recorded_whatever_gives_it(workplace):
    """Given to train and to validate it keeps its side, as notes and `data check` say; a path names what is there now."""
    trained("runs/1-shapes", data=["old"], **TINY)
    week = workplace / "week"
    write_pictures(week, 3, 700)
    first = {"epochs": 1, "lr": 1e-3, "val_split": 0.4}
    run_training("runs/1-shapes", add=["week"], out="runs/2", **first)
    shutil.move(week, workplace / "before")
    write_pictures(week, 3, 800)
    for label in CLASSES:  # this week's pictures have the names of last week's
        for path, old in zip(
            sorted((week / label).iterdir()), sorted((workplace / "before" / label).iterdir()), strict=True
        ):
            path.rename(path.with_name(old.name))
    run_training("runs/2", add=["week"], out="runs/3", on_missing="drop", **first)
    away = {row["sha256"]: row for row in pq.read_table("runs/3/away.parquet").to_pylist()}
    assert len(away) == 9
    sides = sorted(row["side"] for row in away.values())
    assert len(set(sides)) == 2
    plan = kresume.plan("runs/3", add=["before"], val=["before"], lr=1e-3, quiet=True)
    trains, validates = sides.count("train"), sides.count("val")
    said = " ".join(plan.notes)
    assert f"9 images are back, recorded by an earlier run: {trains} train and {validates} validate, as there" in said
    assert f"{trains} images: given for validation, but recorded for training, and still used for training" in said
    assert "used for validation; the first" not in said.replace("still used for validation", "")
    (workplace / "drop.txt").write_text(f"week/circle/{min(os.listdir(week / 'circle'))}\n")
    run_training("runs/3", add=["new"], drop="drop.txt", out="runs/4", epochs=1, lr=1e-3)
    dropped = runs.open_run("runs/4").record.dropped
    assert len(dropped) == 1
    assert not {*dropped} & away.keys()
    gone = min(away)
    (workplace / "drop.txt").write_text(f"{gone}\n")
    plan = kresume.plan("runs/3", add=["new"], drop="drop.txt", lr=1e-3, quiet=True)
    assert any("1 image dropped" in note for note in plan.notes), plan.notes
