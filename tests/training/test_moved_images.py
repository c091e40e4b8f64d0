"""Tests an interrupted run whose images have moved, or are gone."""

import json
import shutil
import subprocess
import sys

import pytest

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import ImagesError, UsageError
from kresume.images.manifest import Manifest
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    lines_without_time,
    make_interrupted,
    result_arrays,
    run_training,
    stopped_by,
    trained,
)

TRAINED = {**TINY, "cache": "off", "seed": 3}


@pytest.fixture
def moved(tmp_path, pictures):
    """Trains a run, copies it as it was after its third step, and renames the folder of its images."""
    shutil.copytree(pictures / "old", tmp_path / "old")
    whole = trained(tmp_path / "whole", every_snapshot=True, data=[str(tmp_path / "old")], **TRAINED)
    shutil.copytree(whole, tmp_path / "run")
    make_interrupted(tmp_path / "run", snapshot.list_snapshots(tmp_path / "run" / "snapshots")[3][1].name)
    (tmp_path / "old").rename(tmp_path / "new")
    return tmp_path


def assert_equal(folder):
    """Asserts that the continued run has the bytes and the lines of the undisturbed one."""
    assert_same_bytes(result_arrays(folder / "whole"), result_arrays(folder / "run"))
    assert lines_without_time(folder / "whole") == lines_without_time(folder / "run")


@pytest.mark.parametrize(("whole_command", "again"), [(False, False), (True, False), (True, True)])
def test_an_interrupted_run_continues_from_the_folder_to_which_its_images_moved(
    moved, whole_command, again, monkeypatch
):
    """The run goes on to the same bits, after a second kill too, with --remap given again or not."""
    run, pair = moved / "run", f"{moved / 'old'}={moved / 'new'}"
    with pytest.raises(
        ImagesError, match=r"none of the 24 images .* is there.*--remap OLD=NEW if their folder was moved"
    ):
        run_training(out=str(run))
    given = {"data": [str(moved / "old")], "snapshot_every": "1", **TRAINED} if whole_command else {}
    stopped_by(monkeypatch, lambda keeper: keeper.progress.step == 5, out=str(run), remap=[pair], **given)
    run_training(out=str(run), **given, **({"remap": [pair]} if again else {}))
    assert_equal(moved)
    now = runs.open_run(run)
    assert Manifest.read(now.manifest).digest() == now.record.manifest
    assert (now.record.options["data"], now.record.given["data"]) == ([str(moved / "new")], [str(moved / "old")])
    (event,) = now.events("images moved")
    assert (event["old"], event["new"], event["count"]) == (str(moved / "old"), str(moved / "new"), 24)


@pytest.mark.one_backend(trains=True)
def test_a_move_into_a_folder_of_the_old_name_is_applied_once(moved, monkeypatch):
    """Images in OLD/sub are not looked for in OLD/sub/sub when the pair is given again."""
    (moved / "old").mkdir()
    (moved / "new").rename(moved / "old" / "sub")
    arguments = {"out": str(moved / "run"), "remap": [f"{moved / 'old'}={moved / 'old' / 'sub'}"]}
    stopped_by(monkeypatch, lambda keeper: keeper.progress.step == 5, **arguments)
    run_training(**arguments)
    assert_equal(moved)


@pytest.mark.one_backend(trains=True)
def test_copies_with_other_times_are_compared_by_content(moved):
    """A copied folder has new times: its content is read. Another picture under a recorded name is refused by name."""
    shutil.copytree(moved / "new", moved / "copy", copy_function=shutil.copyfile)
    pair = f"{moved / 'old'}={moved / 'copy'}"
    first = next(iter(sorted((moved / "copy" / "circle").iterdir())))
    held = first.read_bytes()
    first.write_bytes(next(iter(sorted((moved / "copy" / "square").iterdir()))).read_bytes())
    before = (moved / "run" / "images.parquet").read_bytes()
    with pytest.raises(
        ImagesError, match=rf"1 of 24 files in .*copy hold other pictures than .*run recorded.*{first.name}"
    ):
        run_training(out=str(moved / "run"), remap=[pair])
    assert (moved / "run" / "images.parquet").read_bytes() == before
    first.write_bytes(held)
    run_training(out=str(moved / "run"), remap=[pair])
    assert_equal(moved)


@pytest.mark.one_backend(trains=True)
def test_a_folder_that_holds_none_of_the_images_is_refused(moved):
    """Neither an empty folder nor one without images of the run changes what is recorded."""
    before = json.loads((moved / "run" / "run.json").read_text())
    (moved / "empty").mkdir()
    with pytest.raises(ImagesError, match=r"none of the 24 images of .*run is in .*empty, the first would be"):
        run_training(out=str(moved / "run"), remap=[f"{moved / 'old'}={moved / 'empty'}"])
    with pytest.raises(UsageError, match=r"no image of .*run is in .*other; the first recorded path is"):
        run_training(out=str(moved / "run"), remap=[f"{moved / 'other'}={moved / 'empty'}"])
    write_pictures(moved / "wrong", 6, 4000)
    with pytest.raises(ImagesError, match=r"none of the 24 images|hold other pictures"):
        run_training(out=str(moved / "run"), remap=[f"{moved / 'old'}={moved / 'wrong'}"], on_missing="drop")
    assert json.loads((moved / "run" / "run.json").read_text()) == before


def test_a_run_without_any_training_image_says_so_before_it_begins(moved):
    """--on-missing drop does not begin where no training image is left, and records no image as broken."""
    with pytest.raises(
        ImagesError, match=r"none of the 19 training images of .*run is there or in the cache.*--remap OLD=NEW"
    ):
        run_training(out=str(moved / "run"), on_missing="drop")
    assert not runs.open_run(moved / "run").events(runs.BROKE)


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.sample("3")
def test_images_that_are_all_unreadable_end_the_process_in_one_line(moved, step):
    """An error within tf.data is one line without a traceback, and the process ends."""
    shutil.rmtree(moved / "run")
    shutil.copytree(moved / "whole", moved / "run")
    make_interrupted(moved / "run", snapshot.list_snapshots(moved / "run" / "snapshots")[step][1].name)
    (moved / "new").rename(moved / "old")
    for file in (moved / "old").rglob("*.png"):
        file.write_bytes(b"no picture")
    command = [sys.executable, "-m", "kresume", "train", "--out", moved / "run", "--on-missing", "drop"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert ended.stderr.splitlines()[-1].startswith("kresume: no training image can be read any more")
