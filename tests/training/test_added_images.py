"""Tests the main job: train, then resume from a checkpoint with more images."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest

import kresume
from kresume import cli, runs
from kresume.checkpoints import snapshot
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ConfigMismatch, ImagesError, NothingNew, RunError, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.images.manifest import Manifest
from kresume.reports.page import curves
from tests.helpers import forking
from tests.helpers.pictures import CLASSES, write_pictures
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

OTHER = {"tensorflow": "jax", "jax": "tensorflow"}


@pytest.fixture(scope="module")
def parent(tmp_path_factory, pictures):
    """Trains a first run and returns its folder."""
    folder = tmp_path_factory.mktemp("parent")
    return trained(folder / "1-shapes", data=[str(pictures / "old")], **TINY)


def test_a_first_training_leaves_a_complete_run(parent):
    """A first training writes every file of the run directory, and the record describes the training."""
    run = runs.open_run(parent)
    assert (run.status, run.generation, run.record.parent) == ("accepted", 0, None)
    names = {path.name for path in parent.iterdir()}
    assert {"run.json", "images.parquet", "metrics.jsonl", "events.jsonl", "model.keras", "evaluation.json"} <= names
    assert "lock.json" not in names
    lines = runs.read_metrics(run.metrics)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["lr"] == 0.0
    assert lines[-1]["all"] == run.record.as_dict()["result"]["scores"]["all"]


@pytest.mark.one_backend(trains=True)
def test_extending_a_run_remembers_its_images(parent, tmp_path, pictures):
    """An extension remembers the old images, marks the new ones as new, and trains at the requested rate."""
    out = tmp_path / "2-shapes"
    result = run_training(
        str(parent), add=[str(pictures / "new")], lr=1e-4, lr_schedule="constant", epochs=1, out=str(out)
    )
    table, before = Manifest.read(out / "images.parquet"), Manifest.read(parent / "images.parquet")
    assert np.bincount(table.origins).tolist() == [24, 18]
    sides = dict(zip(table.sha256s.tolist(), table.is_val.tolist(), strict=True))
    assert all(sides[key] == side for key, side in zip(before.sha256s.tolist(), before.is_val.tolist(), strict=True))
    run = runs.open_run(out)
    assert run.generation == 1
    assert run.parent_path() == parent
    rate = run.record.as_dict()["rate"]
    assert rate == rate | {"peak": 1e-4, "checkpoint": 1e-3}
    assert runs.read_metrics(run.metrics)[-1]["lr"] == pytest.approx(1e-4)
    assert result.before["old"]["images"] > 0
    assert result.before["new"]["images"] > 0
    iterations = int(result_arrays(out)["optimizer/0"])
    assert iterations == int(result_arrays(parent)["optimizer/0"]) + run.result_step()


def test_scoring_is_traced_once(parent, tmp_path, pictures, monkeypatch):
    """One function scores the parent and every epoch, another recomputes statistics: tracing takes seconds."""
    traced, step = [], keras.Model.predict_step
    monkeypatch.setattr(keras.Model, "predict_step", lambda model, *data: traced.append(1) or step(model, *data))
    out = str(tmp_path / "2")
    run_training(str(parent), add=[str(pictures / "new")], lr=1e-4, epochs=2, out=out)
    assert len(traced) == 2


@pytest.mark.one_backend(trains=True)
def test_every_option_not_given_is_the_parents(parent, tmp_path, pictures):
    """Batch size and image size come from the parent; epochs and rate do not."""
    out = tmp_path / "2-shapes"
    run_training(str(parent), add=[str(pictures / "new")], out=str(out), epochs=1)
    record = runs.open_run(out).record.as_dict()
    assert record["options"]["batch_size"] == 5
    assert record["card"]["image_size"] == [10, 10]
    assert record["amount"]["epochs"] == 1
    assert record["rate"]["schedule"] == "rewarm-cosine"


def test_slots_and_iterations_survive_a_change_of_the_rate(parent, tmp_path, pictures):
    """The first snapshot of an extension holds the parent's optimizer bit for bit, for any schedule."""

    for schedule in ("constant", "cosine"):
        out = tmp_path / schedule
        patch = pytest.MonkeyPatch()
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        run_training(str(parent), add=[str(pictures / "new")], lr=1e-5, lr_schedule=schedule, epochs=1, out=str(out))
        patch.undo()
        first = snapshot.read_snapshot(out / "snapshots" / "step-00000000").arrays
        before = result_arrays(parent)
        for group in ("trainable", "non_trainable"):
            names = [name for name in before if name.startswith(f"{group}/")]
            assert_same_bytes({name: before[name] for name in names}, {name: first[name] for name in names})
        slots = [first[f"optimizer/{i}"].tobytes() for i in range(sum(name.startswith("optimizer/") for name in first))]
        theirs = [
            before[f"optimizer/{i}"].tobytes() for i in range(sum(name.startswith("optimizer/") for name in before))
        ]
        assert [slot for slot in slots if slot in theirs][: len(theirs)] == theirs


@pytest.mark.one_backend(trains=True)
def test_a_bare_file_of_ours_explains_itself(parent, tmp_path, pictures):
    """A run's `model.keras` knows its classes and pixels; its images must be given."""
    bare = parent / "model.keras"
    with pytest.raises(UsageError, match="has no record of its images"):
        run_training(str(bare), out=str(tmp_path / "a"))
    with pytest.raises(ImagesError, match=r"only new ones were given.*--data OLD.*--from RUN"):
        run_training(str(bare), add=[str(pictures / "new")], out=str(tmp_path / "a"))
    result = run_training(
        str(bare),
        data=[str(pictures / "old")],
        add=[str(pictures / "new")],
        lr_scale=0.1,
        epochs=1,
        out=str(tmp_path / "b"),
        batch_size=5,
    )
    record = runs.open_run(result.run).record.as_dict()
    assert record["rate"]["peak"] == pytest.approx(1e-4)
    assert record["card"]["classes"] == ["circle", "square", "stripes"]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"add": ["old"]}, NothingNew, "nothing new: all 24 images"),
        (
            {"add": ["zebras"]},
            ImagesError,
            r"does not know: 'zebra' \(2 images\).*--grow .*--grow zebra\)",
        ),
        ({"add": ["new"], "classes": "a,b,c"}, UsageError, "other names would make right answers wrong"),
        ({"add": ["new"], "image_size": "16"}, UsageError, "fixed at 10x10"),
        ({"add": ["new"], "optimizer": "sgd"}, UsageError, "is AdamW's and does not apply to SGD: give --lr"),
        ({"add": ["new"], "lr": 1e-3, "lr_scale": 0.5}, UsageError, "give one of them"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(workplace, parent, arguments, error, words):
    """A refused command makes no run."""
    write_pictures(workplace / "zebras", 2, 900, ("zebra",))
    with pytest.raises(error, match=words):
        run_training(str(parent), **arguments)
    assert not (workplace / "runs").exists()


@pytest.mark.one_backend(trains=True)
def test_the_same_growing_folder_can_be_added_every_week(workplace):
    """A growing folder can be added every week: origin is decided by content.

    Known images stay old, and a folder of runs means its newest accepted run.
    """
    trained("runs/1-shapes", data=["old"], **TINY)
    write_pictures(workplace / "inbox", 3, 400)
    run_training("runs", add=["inbox"], epochs=1)
    write_pictures(workplace / "inbox", 2, 500)
    result = run_training("runs", add=["inbox"], epochs=1)
    assert Path(result.run).name == "3-shapes"
    assert np.bincount(Manifest.read(Path(result.run) / "images.parquet").origins).tolist() == [24, 9, 6]
    with pytest.raises(NothingNew, match=r"are already in runs/3-shapes$"):  # not "in runs"
        run_training("runs", add=["inbox"], epochs=1)
    names = [Path(line.path).name for line in kresume.lineage("runs/3-shapes").generations]
    assert names == ["3-shapes", "2-shapes", "1-shapes"]


@pytest.mark.one_backend(trains=True)
def test_out_that_holds_something_else(workplace, parent):
    """Other options for an existing run are an error that lists them and gives the command to extend it."""
    import shutil

    shutil.copytree(parent, workplace / "run")
    with pytest.raises(ConfigMismatch, match=r"--epochs: 2 -> 3.*kresume train --from run"):
        run_training(out="run", data=["old"], **{**TINY, "epochs": 3})
    result = run_training(out="run", data=["old"], overwrite=True, **TINY)
    assert result.status == "accepted"
    assert (workplace / "run.before-1" / "model.keras").is_file()


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("ends", ["finished", "interrupted"])
def test_the_command_that_a_mismatch_names_trains(workplace, monkeypatch, ends):
    """It names no source that the run remembers, and a rate where the run's own has come down."""
    shared = {"add": ["new"], "val": ["val"], "batch_size": 5, "out": "runs/2-shapes"}
    trained("runs/1-shapes", data=["old"], **TINY)
    if ends == "finished":
        run_training("runs/1-shapes", epochs=1, **shared)
    else:
        stopped_by(monkeypatch, lambda keeper: keeper.progress.step == 1, from_="runs/1-shapes", epochs=1, **shared)
    with pytest.raises(ConfigMismatch, match="--epochs") as raised:
        run_training("runs/1-shapes", epochs=2, **shared)
    command = re.search(r"start a new run from it with `kresume (.*)`", str(raised.value))[1]
    assert "--add" not in command
    assert ("--lr-scale 0.3" in command) == (ends == "finished")
    with pytest.raises(SystemExit) as left:
        cli.main([*shlex.split(command), "--no-trial"])
    assert left.value.code == 0
    assert (
        runs.open_run("runs/3-shapes").record.images["total"] == runs.open_run("runs/2-shapes").record.images["total"]
    )


@pytest.mark.one_backend(trains=True)
def test_what_a_parent_had_on_can_be_turned_off(workplace):
    """An option that is not given is the parent's; an option given as off is off."""
    run_training(data=["old"], strict_images=True, **TINY, out="runs/1-shapes")
    (workplace / "new" / "circle" / "page.png").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ImagesError, match="--strict-images"):
        run_training("runs", add=["new"], epochs=1)
    result = run_training("runs", add=["new"], epochs=1, strict_images=False)
    assert runs.open_run(result.run).record.as_dict()["options"]["strict_images"] is False
    assert "--no-strict-images" in runs.open_run(result.run).record.as_dict()["command"]


@pytest.mark.one_backend(trains=True)
def test_overwrite_begins_once(workplace):
    """`--overwrite` moves a finished run aside, but continues an interrupted one.

    The command without `--overwrite` continues it, too.
    """
    trained("run", data=["old"], **TINY)
    for again in ({"overwrite": True}, {}):
        path = Path(run_training(data=["old"], out="run", overwrite=True, **TINY).run)
        make_interrupted(path, "none")
        run_training(data=["old"], out="run", **again, **TINY)
        assert [line["event"] for line in runs.read_metrics(path / "events.jsonl")][-2:] == ["continued", "finished"]
    assert sorted(path.name for path in workplace.glob("run.before-*")) == ["run.before-1", "run.before-2"]


@pytest.mark.one_backend(trains=True)
def test_a_damaged_line_of_the_metrics_is_named(workplace):
    """A damaged metrics line fails at the start of a continuation, not at its end.

    Snapshots do not hold the metrics.
    """
    path = trained("run", data=["old"], **TINY)
    (last,) = (path / "snapshots").glob("step-*")
    make_interrupted(path, last.name)
    lines = (path / "metrics.jsonl").read_bytes()
    (path / "metrics.jsonl").write_bytes(b"?" + lines[1:])
    with pytest.raises(RunError, match=r"line 1 of .*metrics.jsonl is damaged: restore the file"):
        run_training(out="run")
    (path / "metrics.jsonl").write_bytes(lines)
    assert run_training(out="run").status == "accepted"


@pytest.mark.one_backend(trains=True)
def test_a_run_goes_on_from_another_folder(workplace, monkeypatch, capfd):
    """A run continues from another working directory, and still watches its sources.

    The sources were given relative to the first command's directory.
    """
    path = Path(run_training(data=["old"], add=None, watch=True, out="run", **TINY).run)
    make_interrupted(path, "none")
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    run_training(out="../run", watch=True)
    assert "cannot be listed now" not in capfd.readouterr().err


@pytest.mark.one_backend(trains=True)
def test_what_lies_beside_a_run_is_nobodys_but_the_users(workplace):
    """Only a killed process's half-made run is removed, after a day; other hidden `.tmp` folders stay."""
    day = time.time() - 3 * 24 * 3600
    for name in (".tmp-mine", ".tmp-run-of-mine", ".tmp-run-0123abcd", ".tmp-running-0123abcd"):
        (workplace / name).mkdir()
        os.utime(workplace / name, (day, day))
    run_training(data=["old"], out="run", **TINY)
    assert sorted(path.name for path in workplace.glob(".tmp-*")) == [
        ".tmp-mine", ".tmp-run-of-mine", ".tmp-running-0123abcd",
    ]  # fmt: skip


@pytest.mark.one_backend(trains=True)
def test_off_is_what_holds_where_nothing_is_given(workplace):
    """Off equals not given: a run continues whether the command names the options that are off or not."""
    first = Path(run_training(data=["old"], out="run", strict_images=False, **TINY).run)
    make_interrupted(first, "none")
    assert run_training(data=["old"], out="run", **TINY).status == "accepted"
    make_interrupted(first, "none")
    assert run_training(data=["old"], out="run", strict_images=False, partial=False, **TINY).status == "accepted"


@pytest.mark.one_backend(trains=True)
def test_a_torn_line_hides_no_event(parent, tmp_path):
    """A torn line hides no event, nor does U+2028 in a name, which Python counts as the end of a line."""
    path = tmp_path / "run"
    shutil.copytree(parent, path)
    with (path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": "2026-01-01", "event": "fi')
    run = runs.open_run(path)
    run.event("file broke", path="a\u2028b.png")
    run.event("exported", path="serving/1")
    assert [line["path"] for kind in ("file broke", "exported") for line in run.events(kind)] == [
        "a\u2028b.png",
        "serving/1",
    ]
    assert len(run.events("finished")) == 1


@pytest.mark.one_backend(trains=True)
def test_nothing_new_says_what_could_not_be_used(workplace):
    """The "nothing new" error names unreadable files and label conflicts.

    Exit 4 every week must not hide a broken camera.
    """
    trained("runs/1-shapes", data=["old"], **TINY)
    inbox = workplace / "inbox"
    write_pictures(inbox, 2, 0)  # known
    (inbox / "circle" / "broken.png").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(NothingNew, match=r"nothing new that can be used: 6 images .*1 file cannot be used.*broken.png"):
        run_training("runs", add=["inbox"], epochs=1)
    (inbox / "circle" / "broken.png").unlink()
    shutil.copy(workplace / "old" / "circle" / "3.png", inbox / "square" / "moved.png")
    with pytest.raises(NothingNew, match=r"moved.png: square, and circle elsewhere \(--on-conflict new"):
        run_training("runs", add=["inbox"], epochs=1)
    result = run_training("runs", add=["inbox"], epochs=1, on_conflict="new")
    table = Manifest.read(Path(result.run) / "images.parquet")
    assert np.bincount(table.labels).tolist() == [7, 9, 8]


@pytest.mark.one_backend(trains=True)
def test_what_was_dropped_does_not_come_back(workplace):
    """A dropped image stays dropped although its folder is added again, and a note counts it."""
    trained("runs/1-shapes", data=["old"], **TINY)
    write_pictures(workplace / "inbox", 3, 400)
    (workplace / "drop.txt").write_text("inbox/circle/400.png\nold/circle/0.png\ninbox/circle/typo.png\n")
    plan = kresume.plan("runs", add=["inbox"], drop="drop.txt", quiet=True)
    assert any("2 images dropped" in note for note in plan.notes)
    assert "images:   31: 23 old, 8 new, 2 dropped\n" in str(plan)
    assert any("1 line of drop='drop.txt' without an image" in note and "typo.png" in note for note in plan.notes)
    run_training("runs", add=["inbox"], drop="drop.txt", epochs=1)
    left = "2 images are left out, because an earlier run dropped them$"
    with pytest.raises(NothingNew, match=f"31 images in inbox, old are already in .*; {left}"):
        run_training("runs", add=["inbox", "old"], epochs=1)
    write_pictures(workplace / "inbox", 1, 500)
    plan = kresume.plan("runs", add=["inbox", "old"], quiet=True)
    assert any("2 images are left out, because an earlier run dropped them" in note for note in plan.notes)
    result = run_training("runs", add=["inbox", "old"], epochs=1)
    assert len(Manifest.read(Path(result.run) / "images.parquet")) == 24 + 9 + 3 - 2
    assert len(runs.open_run(result.run).record.as_dict()["dropped"]) == 2


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("why", ["missing", "conflict", "replaced"])
@pytest.mark.sample("conflict")
def test_an_image_that_was_away_keeps_its_split(workplace, tmp_path, why):
    """Its split is decided once: also if it was gone, in conflict or not given for two weeks, whatever gives it back."""
    given = {**TINY, "epochs": 1, "val_split": 0.3}
    trained("runs/1", data=["old"], **given)
    rows = pq.read_table(runs.open_run("runs/1").manifest).to_pylist()
    validated = [row for row in rows if row["side"] == "val"]
    held = {row["sha256"]: row for row in [*validated, *[row for row in rows if row["side"] == "train"][:3]]}
    assert len(held) == len(validated) + 3 > 3
    if why == "conflict":
        for row in held.values():
            other = next(name for name in CLASSES if name != row["label"])
            (tmp_path / "wrong" / other).mkdir(parents=True, exist_ok=True)
            shutil.copy(row["path"], tmp_path / "wrong" / other / f"{row['sha256'][:9]}.png")
        week = {"add": [str(tmp_path / "wrong"), "new"]}
    else:
        for row in held.values():
            (tmp_path / "away" / row["label"]).mkdir(parents=True, exist_ok=True)
            shutil.move(row["path"], tmp_path / "away" / row["label"] / os.path.basename(row["path"]))
        week = {"add": ["new"], "on_missing": "drop"} if why == "missing" else {"data": ["old"], "add": ["new"]}
    run_training("runs/1", out="runs/2", **given, **week)
    second = runs.open_run("runs/2")
    assert not {row["sha256"] for row in pq.read_table(second.manifest).to_pylist()} & set(held)
    assert pq.read_table(second.path / "away.parquet").sort_by("sha256").to_pylist() == sorted(
        held.values(), key=lambda row: row["sha256"]
    )
    write_pictures(tmp_path / "third", 2, 900, CLASSES)
    run_training("runs/2", out="runs/3", add=[str(tmp_path / "third")], **given)
    back = "old" if why == "conflict" else str(tmp_path / "away")
    for role in ({"add": [back], "val_split": 0.0}, {"val": [back], "add": ["new"]}):
        plan = kresume.plan("runs/3", lr=1e-3, quiet=True, trial=False, **role)
        words = f"are back, recorded by an earlier run: 3 train and {len(held) - 3} validate, as there"
        assert words in str(plan), str(plan)
    run_training("runs/3", out="runs/4", add=[back], lr=1e-3, **{**given, "val_split": 0.0})
    fourth = runs.open_run("runs/4")
    again = {row["sha256"]: (row["side"], row["origin"]) for row in pq.read_table(fourth.manifest).to_pylist()}
    assert {sha: again[sha] for sha in held} == {sha: (row["side"], row["origin"]) for sha, row in held.items()}
    assert "% of the training images are new or back" in str(kresume.plan("runs/3", add=[back], lr=1e-3, quiet=True))
    assert not fourth.record.away
    assert not (fourth.path / "away.parquet").exists()
    (runs.open_run("runs/3").path / "away.parquet").unlink()
    with pytest.raises(ImagesError, match=r"away.parquet cannot be read"):
        kresume.plan("runs/3", add=[back], quiet=True, trial=False)


@pytest.mark.one_backend(trains=True)
def test_the_share_of_validation_images_is_the_parents(workplace):
    """As every option of a run; an empty list of images is nothing new, or an error."""
    run_training(data=["old"], out="runs/1", **{**TINY, "epochs": 1, "val_split": 0.4})
    plan = kresume.plan("runs/1", add=["new"], quiet=True, trial=False)
    assert plan.images["validation"] >= 0.3 * plan.images["total"]
    with pytest.raises(NothingNew, match="an empty list names no source"):
        kresume.plan("runs/1", add=[], lr=1e-3, quiet=True)
    with pytest.raises(UsageError, match="an empty list names no source: leave it out"):
        kresume.plan("runs/1", add=["new"], val=[], quiet=True)


@pytest.mark.one_backend(trains=True)
def test_a_drop_file_that_was_edited_after_a_kill_is_refused(workplace):
    """A continued run would train on what is to be forgotten. With the file as it was it goes on."""
    trained("runs/1-shapes", data=["old"], **TINY)
    write_pictures(workplace / "inbox", 3, 400)
    drop = workplace / "drop.txt"
    drop.write_text("old/circle/0.png\n")
    arguments = {"add": ["inbox"], "drop": "drop.txt", "epochs": 1, "out": "runs/2"}
    run_training("runs/1-shapes", **arguments)
    make_interrupted(workplace / "runs" / "2", "step-00000000")
    drop.write_text("old/circle/0.png\nold/circle/1.png\ninbox/circle/400.png\n")
    with pytest.raises(UsageError, match=r"names 2 images that .*runs/2 trains or scores on, so the file was edited"):
        run_training("runs/1-shapes", **arguments)
    drop.write_text("old/circle/0.png\n")
    assert runs.open_run(run_training("runs/1-shapes", **arguments).run).finished


@pytest.mark.one_backend(trains=True)
def test_or_new_starts_where_nothing_is_there(workplace, capfd):
    """`--or-new` starts a new training without a checkpoint, and says so."""
    from kresume.options.resolve import from_arguments
    from kresume.reporter import Reporter
    from kresume.training.resume import train

    train(from_arguments("checkpoint.keras", {"or_new": True, "data": ["old"], **TINY}), Reporter())
    told = capfd.readouterr().err
    assert "no checkpoint at checkpoint.keras: starting with initial weights" in told


@pytest.mark.one_backend(trains=True)
def test_the_same_command_without_out_continues_the_newest_interrupted_run(workplace):
    """Without --out, the same command continues an interrupted run; a finished run gets a successor."""
    from tests.helpers.runs import make_interrupted

    first = Path(run_training(data=["old"], **TINY).run)
    make_interrupted(first, "none")
    again = Path(run_training(data=["old"], **TINY).run)
    assert first == again
    third = Path(run_training(data=["old"], **TINY).run)
    assert third.name.startswith("2-")


@pytest.mark.one_backend
def test_a_missing_backend_package_is_named(monkeypatch):
    """A missing backend package is an error with the pip command that installs it."""
    import importlib.util

    from kresume.backend import selection
    from kresume.errors import MissingPackage

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="pip install jax"):
        selection.select("jax")


@pytest.mark.one_backend(trains=True)
def test_a_plan_writes_nothing_and_says_what_train_does(workplace, parent):
    """A plan writes nothing and equals what train does: rate, images, amount and the parent's score."""
    before = sorted(workplace.rglob("*"))
    plan = kresume.plan(kresume.open_run(parent), add=["new"], lr=1e-4, quiet=True)
    assert sorted(workplace.rglob("*")) == before
    assert "0.001 (checkpoint) -> 0.0001" in str(plan)
    assert (plan.images["old"], plan.images["new"]) == (24, 18)
    assert plan.before["all"]["accuracy"] is not None
    json.dumps(plan.as_dict())
    result = run_training(str(parent), add=["new"], lr=1e-4)
    record = runs.open_run(result.run).record.as_dict()
    assert record["rate"] == plan.rate.as_dict()
    assert record["amount"] == plan.amount.as_dict()
    assert record["before"] == plan.before


def test_evaluate_scores_as_the_run_did(parent, pictures):
    """The same images give the scores of the run's last line; RUN@last is its snapshot."""
    evaluation = evaluate(parent, pictures / "old")
    assert evaluation.scores["all"]["images"] == 24
    with pytest.raises(CheckpointError, match=r"no such snapshot; the run has last and the steps 8"):
        evaluate(f"{parent}@3", pictures / "old")
    assert set(evaluation.as_dict()) >= {"all", "old", "new", "classes"}


FOREIGN = """
import sys, numpy as np, keras
keras.utils.set_random_seed(0)
data = keras.utils.image_dataset_from_directory(sys.argv[1], image_size=(12, 12), batch_size=6, seed=1, verbose=False)
model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(8, 3, activation="relu"),
                          keras.layers.BatchNormalization(momentum=0.8), keras.layers.Flatten(),
                          keras.layers.Dense(3)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(1e-2), loss)
model.fit(data, epochs=25, verbose=0)
model.save(sys.argv[2])
"""


@pytest.mark.one_backend(trains=True)
def test_a_foreign_model_is_fed_what_it_was_trained_on(tmp_path, pictures):
    """A foreign model's pixels are found by scoring it on its images, then printed and pinned.

    The table shows the other conventions, too. The loss is the model's own.
    """
    (tmp_path / "foreign.py").write_text(FOREIGN)
    path = tmp_path / "foreign.keras"
    forking.run([sys.executable, tmp_path / "foreign.py", pictures / "old", path], check=True)
    result = run_training(
        str(path),
        data=[str(pictures / "old")],
        add=[str(pictures / "new")],
        lr=1e-3,
        epochs=1,
        out=str(tmp_path / "run"),
        batch_size=6,
    )
    record = runs.open_run(result.run).record.as_dict()
    assert record["card"]["pixels"] == "0-255"
    assert re.match(
        r"on 24 old images 0-255 gives 100.0 % \(loss .*\); \S+ gives .*; \S+ gives", record["plan"]["pixels_reason"]
    )
    assert record["loss"]["from_logits"] is True
    assert result.before["old"]["accuracy"] == 1.0


def command(folder, *arguments, backend=None):
    environment = {**os.environ, "KERAS_BACKEND": backend or os.environ["KERAS_BACKEND"]}
    return [sys.executable, "-m", "kresume", *map(str, arguments)], {"cwd": folder, "env": environment}


def test_trained_under_one_backend_extended_under_the_other(parent, tmp_path, pictures):
    """A parent's state is bit for bit the same under the other backend, and training continues from it."""
    other = OTHER[os.environ["KERAS_BACKEND"]]
    arguments, options = command(
        tmp_path,
        "train",
        "--from",
        parent,
        "--add",
        pictures / "new",
        "--backend",
        other,
        "--epochs",
        1,
        "--out",
        "run",
        "--snapshot-every",
        "1",
        backend=other,
    )
    forking.run(arguments, check=True, **options)
    record = runs.open_run(tmp_path / "run").record.as_dict()
    assert record["backend"] == other
    assert record["parent"]["step"] == runs.open_run(parent).result_step()
    ours = evaluate(parent, pictures / "val").scores["all"]
    here = evaluate(tmp_path / "run" / "model.keras", pictures / "val").scores["all"]
    assert ours["images"] == here["images"] == 9
    table = dict(read_checkpoint(tmp_path / "run" / "model.keras").arrays)
    assert int(table["optimizer/vars/0"]) == record["parent"]["step"] + record["result"]["step"]


KILLED = """
import os, signal, sys
from pathlib import Path
from kresume import cli
from kresume.checkpoints import snapshot
from kresume.training.loop.callbacks import Keeper

step_done = Keeper.on_train_batch_end

def then_die(keeper, batch, logs=None):
    step_done(keeper, batch, logs)
    if keeper.progress.step > 8 and snapshot.list_snapshots(Path("killed/snapshots")):
        os.kill(os.getpid(), signal.SIGKILL)

Keeper.on_train_batch_end = then_die
cli.main(sys.argv[1:])
"""


@pytest.mark.optimized_graphs
def test_sigkill_in_the_middle_and_the_same_command_again(tmp_path, pictures):
    """A process killed by SIGKILL continues by the same command to the bytes of an undisturbed one.

    Its writer may be at work, and JAX compiles anew in the process that continues: other tests share what it compiled.
    """
    given = {"image_size": "10", "batch_size": 5, "epochs": 3, "snapshot_every": "3"}
    whole = trained(tmp_path / "whole", data=[str(pictures / "old")], **given)
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    again, options = command(tmp_path, "train", "--data", pictures / "old", *flags, "--out", "killed")
    assert (
        forking.run([sys.executable, "-c", KILLED, *again[3:], "--no-trial"], **options).returncode == -signal.SIGKILL
    )
    assert runs.open_run(tmp_path / "killed").status == "running"
    options["env"]["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    done = subprocess.run([*again, "--no-trial"], check=True, capture_output=True, text=True, **options)
    assert "continuing at step" in done.stderr
    assert_same_bytes(result_arrays(whole), result_arrays(tmp_path / "killed"))
    assert lines_without_time(whole) == lines_without_time(tmp_path / "killed")


@pytest.mark.one_backend(trains=True)
def test_sigterm_writes_a_snapshot_and_says_how_to_go_on(tmp_path, pictures):
    """SIGTERM writes a snapshot, prints the command to continue and exits with 75; no step is lost."""
    arguments = [
        "train",
        "--data",
        pictures / "old",
        "--image-size",
        12,
        "--batch-size",
        5,
        "--epochs",
        200,
        "--out",
        "run",
    ]
    full, options = command(tmp_path, *arguments)
    process = forking.start(full, **options)
    while process.poll() is None and len(runs.read_metrics(tmp_path / "run" / "metrics.jsonl")) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, process.stderr
    assert "snapshot written; continue with: kresume train --out run" in process.stderr
    run = runs.open_run(tmp_path / "run")
    assert run.status == "interrupted"
    assert "stopped" in (tmp_path / "run" / "events.jsonl").read_text()


@pytest.mark.one_backend(trains=True)
def test_two_processes_on_one_run(tmp_path, pictures, parent):
    """A second process on a run is refused with the holder's pid, and disturbs nothing."""
    import shutil

    from kresume.lock import Lock
    from tests.helpers.runs import make_interrupted

    shutil.copytree(parent, tmp_path / "run")
    make_interrupted(tmp_path / "run", "none")
    with Lock(tmp_path / "run"), pytest.raises(RunError, match=f"being trained by pid {os.getpid()}"):
        run_training(out=str(tmp_path / "run"))


@pytest.mark.one_backend(trains=True)
def test_old_images_that_are_gone(tmp_path, pictures, monkeypatch):
    """Missing old images are an error by default; --on-missing reads them from the cache or drops them."""
    shutil.copytree(pictures / "old", tmp_path / "old")
    # Not `trained`: another worker may have trained that run, with a cache of its own.
    parent = run_training(data=[str(tmp_path / "old")], out=str(tmp_path / "parent"), **TINY).run
    (tmp_path / "old" / "circle" / "0.png").unlink()
    (tmp_path / "old" / "square" / "1001.png").unlink()
    arguments = {"add": [str(pictures / "new")], "epochs": 1, "lr": 1e-3}
    with pytest.raises(ImagesError, match=r"2 images of .* are missing, .*\(2 of them are in the cache\)"):
        run_training(parent, out=str(tmp_path / "error"), **arguments)
    cached = run_training(parent, out=str(tmp_path / "cached"), on_missing="cache", **arguments).run
    assert len(Manifest.read(Path(cached) / "images.parquet")) == 24 + 18
    dropped = run_training(parent, out=str(tmp_path / "dropped"), on_missing="drop", **arguments).run
    assert len(Manifest.read(Path(dropped) / "images.parquet")) == 22 + 18
    # The cache is enough; without it the missing images are named.
    monkeypatch.setenv("KRESUME_CACHE", str(tmp_path / "another-cache"))
    with pytest.raises(ImagesError, match=r"2 images of .* are missing, .*\(0 of them are in the cache\)"):
        run_training(parent, out=str(tmp_path / "elsewhere"), on_missing="cache", **arguments)


@pytest.mark.one_backend(trains=True)
def test_data_beside_a_run_says_what_it_replaces(parent, pictures, tmp_path):
    """--data replaces the remembered images; the plan counts those that it does not hold."""
    plan = kresume.plan(str(parent), data=[str(pictures / "new")], lr=1e-3, quiet=True)
    assert any("24 of its 24 images are not in it and are not trained on" in note for note in plan.notes)
    same = kresume.plan(str(parent), data=[str(pictures / "old")], lr=1e-3, quiet=True)
    assert not any("replaces what" in note for note in same.notes)


@pytest.mark.one_backend(trains=True)
def test_the_same_images_to_train_and_to_validate_are_named(parent, pictures):
    """Images given to both splits go to validation; images that the parent trained on stay in training.

    Notes name both.
    """
    both = kresume.plan(str(parent), add=[str(pictures / "new")], val=[str(pictures / "new")], lr=1e-3, quiet=True)
    assert any("18 images: given for training and for validation, used for validation" in note for note in both.notes)
    old = kresume.plan(str(parent), add=[str(pictures / "new")], val=[str(pictures / "old")], lr=1e-3, quiet=True)
    assert any("given for validation, but recorded for training" in note for note in old.notes)


@pytest.mark.one_backend(trains=True)
def test_a_picture_that_moved_to_another_class_is_a_relabel_not_a_loss(tmp_path, pictures):
    """An image that moved to another class is relabelled, not missing, and this alone justifies a run."""
    shutil.copytree(pictures / "old", tmp_path / "old")
    first = trained(tmp_path / "first", data=[str(tmp_path / "old")], **TINY)
    (tmp_path / "old" / "circle" / "0.png").rename(tmp_path / "old" / "square" / "was-a-circle.png")
    child = run_training(first, add=[str(tmp_path / "old")], epochs=1, lr=1e-3, out=str(tmp_path / "child")).run
    table = Manifest.read(Path(child) / "images.parquet")
    assert len(table) == 24
    assert table.table.column("label").to_pylist().count("square") == 9
    history = kresume.lineage(str(tmp_path))
    assert [each.relabelled for each in history.generations] == [1, 0]
    assert ", 1 with a new label); " in " ".join(str(history).replace("|", "").split())
    assert [curves._brought(runs.open_run(path).record) for path in (first, child)] == [24, 0]


@pytest.mark.one_backend(trains=True)
def test_scores_of_a_run_that_is_not_finished_say_so(tmp_path, pictures):
    """Evaluating an unfinished run scores its newest snapshot, or its parent, and says so."""
    path = trained(tmp_path / "run", data=[str(pictures / "old")], **TINY)
    assert "not finished" not in str(evaluate(path, data=str(pictures / "new")))
    make_interrupted(path, "none")
    scored = str(evaluate(path, data=str(pictures / "new")))
    assert "is not finished: its newest snapshot is used" in scored


@pytest.mark.one_backend(trains=True)
def test_a_killed_parent_is_not_called_running(tmp_path, pictures):
    """The plan says at which step a killed parent is restored, and how far it had trained without a snapshot."""
    path = trained(tmp_path / "run", data=[str(pictures / "old")], **TINY)
    make_interrupted(path, "none")
    step = runs.read_metrics(Path(path) / "metrics.jsonl")[-1]["step"]

    def plan():
        return kresume.plan(str(path), add=[str(pictures / "new")], quiet=True)

    assert plan().parent.endswith(f"(run, unfinished, step {step})")
    with (Path(path) / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"epoch": 9, "step": step + 66}) + "\n")
    assert plan().parent.endswith(f"(run, unfinished, step {step}; it had trained to step {step + 66})")
