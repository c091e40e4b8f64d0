"""Tests where the records of a training go: the curves of TensorBoard, after kills too, and sinks that fail."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.reporter import lines as lines_view
from kresume.reports.sinks import Line, Point, Samples, event_files
from kresume.reports.sinks.jsonl import JsonLines
from kresume.reports.sinks.tensorboard import TensorBoard
from kresume.runs import read_metrics
from kresume.training.loop import recording
from kresume.training.resume import train
from tests.helpers.runs import TINY, lines_without_time, make_interrupted, run_training

GROUPS = ("train", "old", "new", "all")


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads every curve of a run with TensorBoard's own reader: (step, value) by group and tag."""
    found = {}
    for group in GROUPS:
        if (run / "tensorboard" / group).is_dir():
            for purge in (True, False):  # what is repeated is gone from the files, not only left out by a reader
                events = EventAccumulator(str(run / "tensorboard" / group), purge_orphaned_data=purge).Reload()
                read = {
                    tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]
                }
                assert purge or all(found[f"{group}/{tag}"] == values for tag, values in read.items())
                found |= {f"{group}/{tag}": values for tag, values in read.items()}
    return found


def of_epochs(found):
    """Returns the curves with one value per epoch that do not depend on the clock."""
    clock = ("/step/", "per_second", "waiting")
    return {tag: values for tag, values in found.items() if not any(word in tag for word in clock)}


@pytest.fixture
def every_moment(monkeypatch):
    """Records every step, not some of each second."""
    monkeypatch.setattr(recording, "POINT_SECONDS", 0.0)
    monkeypatch.setattr("kresume.training.loop.callbacks.LOSS_READ_SECONDS", 0.0)


@pytest.mark.one_backend(trains=True)
def test_a_continued_run_goes_on_in_the_same_curves(tmp_path, pictures, monkeypatch, every_moment):
    """After a kill, the curves have each step once and the values of a run that was never killed.

    Every second snapshot is tried: they lie inside epochs and before their scoring.
    """
    first = tmp_path / "first"
    run_training(data=[str(pictures / "old")], out=str(first), **{**TINY, "epochs": 1})
    whole = tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        run_training(
            str(first), add=[str(pictures / "new")], out=str(whole), epochs=2, snapshot_every="3", val_split=0.25
        )
    expected = curves(whole)
    lines = runs.read_metrics(whole / "metrics.jsonl")
    steps = list(range(1, lines[-1]["step"] + 1))
    assert [step for step, _ in expected["train/step/loss"]] == steps
    for name, tag in (("old", "accuracy"), ("new", "loss"), ("all", "f1")):
        assert expected[f"{name}/{tag}"] == [(line["step"], pytest.approx(line[name][tag])) for line in lines]
    assert expected["train/lr"] == [(line["step"], pytest.approx(line["lr"])) for line in lines]
    for _, folder in snapshot.list_snapshots(whole / "snapshots")[1::2]:
        killed = tmp_path / f"killed-{folder.name}"
        shutil.copytree(whole, killed)
        make_interrupted(killed, folder.name)
        run_training(out=str(killed))
        found = curves(killed)
        assert of_epochs(found) == of_epochs(expected), folder.name
        again = [step for step, _ in found["train/step/loss"]]
        assert again == steps, folder.name
        assert found["train/step/lr"] == expected["train/step/lr"], folder.name
        assert lines_without_time(killed) == lines_without_time(whole)


@pytest.fixture
def board(tmp_path):
    """Returns a sink with two lines and moments between, and its metrics."""
    sink = TensorBoard(tmp_path / "tensorboard", tmp_path / "metrics.jsonl")
    written = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(Samples(0, {"old": [("pictures/0-rose", np.full((4, 5, 3), 200, np.uint8))], "new": []}))
    for entry in (Point(2, 2.0, {"loss": 3.0}), Line(line(1, 4)), Point(6, 6.0, {"loss": 2.0}), Line(line(2, 8))):
        sink.write(entry)
        written.write(entry)
    return sink


def line(epoch, step):
    """Returns the line of an epoch."""
    scores = {"images": 4, "accuracy": 0.25 * epoch, "loss": 1.0 / epoch, "f1": None}
    return {
        "epoch": epoch, "step": step, "position": 4 * step, "lr": 0.1, "loss": float(epoch), "own": float("nan"),
        "old": scores, "new": scores, "all": scores, "classes": {"rose": {"recall": 0.5}}, "shares": {},
        "images_per_second": None, "time": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


@pytest.mark.one_backend
def test_the_names_of_curves_and_pictures(board, tmp_path):
    """Old, new and all are runs of TensorBoard with the same tags; classes, moments and pictures have tags of their own."""
    found = curves(tmp_path)
    assert found["train/loss"] == [(4, 1.0), (8, 2.0)]
    assert found["old/accuracy"] == found["all/accuracy"] == [(4, 0.25), (8, 0.5)]
    assert found["all/recall/rose"] == [(4, 0.5), (8, 0.5)]
    assert found["train/step/loss"] == [(2, 3.0), (6, 2.0)]
    assert not {"train/own", "train/images_per_second", "old/f1", "old/images"} & set(found)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "old")).Reload()
    (picture,) = events.Images("pictures/0-rose")
    assert (picture.width, picture.height) == (5, 4)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("lines", "step", "left", "within"),
    [(0, 0, [], []), (0, 3, [], [2]), (0, 4, [], [2]), (1, 4, [4], [2]), (1, 6, [4], [2, 6]), (2, 8, [4, 8], [2, 6])],
)
def test_what_is_repeated_is_removed(board, tmp_path, lines, step, left, within):
    """Epochs that the snapshot does not count and moments after it are removed, also if the epoch's scoring is repeated."""
    board.keep(lines, step)
    found = curves(tmp_path)
    assert [each for each, _ in found.get("all/accuracy", [])] == left
    assert [each for each, _ in found.get("train/step/loss", [])] == within
    board.write(Line(line(lines + 1, 4 * lines + 4)))
    assert [each for each, _ in curves(tmp_path)["all/accuracy"]] == [*left, 4 * lines + 4]


@pytest.mark.one_backend
@pytest.mark.parametrize("harm", ["gone", "torn", "other bytes"])
def test_lines_that_are_missing_are_added(board, tmp_path, harm):
    """A file that is lost, torn or damaged is completed from `metrics.jsonl` when the run continues."""
    (path,) = (tmp_path / "tensorboard" / "all").iterdir()
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-5] if harm == "torn" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    board.keep(2, 8)
    assert curves(tmp_path)["all/accuracy"] == [(4, 0.25), (8, 0.5)]


@pytest.mark.one_backend
def test_events_need_no_tensorflow(tmp_path):
    """Curves are written and read back without importing TensorFlow, Keras or JAX."""
    script = (
        "import sys, pathlib; from kresume.reports.sinks import event_files as files\n"
        "path = pathlib.Path(sys.argv[1]); files.append(path, [*files.start(0, 1.0), files.scalars(3, 2.0, {'a': 0.5})])\n"
        "print([event.step for event in files.read(path)], sorted({'tensorflow', 'keras', 'jax'} & set(sys.modules)))"
    )
    path = tmp_path / "events.out.tfevents.0"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 0, 3] []"
    import tensorflow as tf

    records = [tf.compat.v1.Event.FromString(each.numpy()) for each in tf.data.TFRecordDataset(str(path))]
    assert [event.step for event in records] == [0, 0, 3]
    assert records[0].file_version == event_files.VERSION


@pytest.mark.one_backend(trains=True)
def test_a_sink_that_fails_is_recorded_and_training_goes_on(tmp_path, pictures, monkeypatch):
    """A full disk for the curves loses no line and no snapshot; it is said once, and the exit code is 5."""

    def full(path, events):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_files, "append", full)
    result = run_training(data=[str(pictures / "old")], out=str(tmp_path / "run"), snapshot_every="2", **TINY)
    assert result.exit_code == 5
    assert [failure for failure in result.failures if "tensorboard" in failure] == list(result.failures)
    assert len(result.failures) == 1
    assert "No space left" in result.failures[0]
    assert len(runs.open_run(tmp_path / "run").events("not written")) == 1
    assert len(runs.read_metrics(tmp_path / "run" / "metrics.jsonl")) == TINY["epochs"]


@pytest.mark.one_backend(trains=True)
def test_no_tensorboard(tmp_path, pictures):
    """`--no-tensorboard` writes no curves; the share of time that steps waited is in the lines all the same."""
    run_training(data=[str(pictures / "old")], out=str(tmp_path / "run"), tensorboard=False, **TINY)
    assert not (tmp_path / "run" / "tensorboard").exists()
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert 0 <= line["waiting_for_images"] <= 1


@pytest.mark.one_backend
def test_a_number_that_json_has_not_is_null(tmp_path):
    """A metric of the user that is NaN leaves a line that every JSON reader reads."""
    JsonLines(tmp_path / "metrics.jsonl").write(Line({"own": float("nan"), "old": {"loss": float("inf")}, "epoch": 1}))
    refuse = {"parse_constant": pytest.fail}
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), **refuse) == {
        "own": None,
        "old": {"loss": None},
        "epoch": 1,
    }


@pytest.mark.one_backend(trains=True)
def test_a_training_says_what_lasts(tmp_path, pictures, monkeypatch):
    """The first step and the result are announced, each with its time; each epoch is one line."""
    monkeypatch.setattr(lines_view, "SHOWN_AFTER_SECONDS", 0.0)
    shown = io.StringIO()
    config = from_arguments(None, {"data": [str(pictures / "old")], "out": str(tmp_path / "run"), **TINY})
    train(config, Reporter(shown))
    said = shown.getvalue()
    for what in ("compiling the first step", f"writing the result of {tmp_path / 'run'}"):
        assert re.search(rf"^{re.escape(what)}: \d+\.\d s$", said, re.MULTILINE), said
    assert len(re.findall(r"^epoch \d/2  step ", said, re.MULTILINE)) == 2
