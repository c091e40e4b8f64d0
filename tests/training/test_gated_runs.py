"""Tests gates and `--until` on whole runs, and the weekly loop."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import kresume
from kresume import cli, runs
from kresume.checkpoints import inspect
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, GateFailed, ImagesError, UsageError
from kresume.evaluation import answers
from kresume.evaluation.live import LiveScorer
from kresume.evaluation.verdict import describe_p, in_words, judge_origins, judge_right
from kresume.images.manifest import Manifest
from kresume.training.plan import judging
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    kill_at_every_snapshot,
    lines_without_time,
    result_arrays,
    run_training,
    trained,
)


def main(words):
    """Runs a command; returns its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    return left.value.code


OPTIONS = {"epochs": 4, "batch_size": 5, "val_split": 0.25}


@pytest.fixture
def place(tmp_path, monkeypatch, pictures):
    """Makes a folder with `old/`, `new/` and a parent run, and works in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        shutil.copytree(pictures / name, name)
    trained("runs/1-shapes", data=["old"], **TINY)
    return tmp_path


def scripted(patch, old, losses):
    """Replaces old accuracy and loss in the scores of each epoch; the parent's are not changed."""
    score = LiveScorer.score

    def found(scorer, reporter, label, *arguments, **options):
        result, answers = score(scorer, reporter, label, *arguments, **options)
        if label == "scoring":
            epoch = found.epochs
            found.epochs += 1
            result["old"]["accuracy"], result["all"]["loss"] = old[epoch], losses[epoch]
        return result, answers

    found.epochs = 0
    patch.setattr(LiveScorer, "score", found)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("old", "losses", "options", "epoch", "status"),
    [
        ((0.9, 0.9, 0.9, 0.9), (4, 1, 2, 3), {}, 4, "accepted"),
        ((0.5, 0.9, 0.9, 0.5), (1, 3, 2, 1), {}, 3, "accepted"),
        ((0.9, 0.5, 0.9, 0.9), (4, 1, 2, 3), {"monitor": "val_loss"}, 3, "accepted"),
        ((0.5, 0.5, 0.5, 0.5), (4, 1, 2, 3), {"monitor": "val_loss"}, 4, "rejected"),
    ],
)
@pytest.mark.sample("old1-losses1-options1-3-accepted", "old3-losses3-options3-4-rejected")
def test_the_result_is_an_epoch_within_the_gates(place, monkeypatch, old, losses, options, epoch, status):
    """The last epoch if it meets them, else the best that does; with --monitor the best that does; else rejected."""
    scripted(monkeypatch, old, losses)
    result = run_training("runs/1-shapes", add=["new"], require=["old.accuracy>=0.8"], out="2", **OPTIONS, **options)
    run = runs.open_run("2")
    lines = runs.read_metrics(run.metrics)
    assert run.status == result.status == status
    assert run.result_step() == lines[epoch - 1]["step"]
    assert result.after["old"]["accuracy"] == old[epoch - 1]
    assert (result.exit_code, bool(result.failed)) == ((3, True) if status == "rejected" else (0, False))
    assert (place / "2" / "model.keras").is_file()


@pytest.mark.one_backend(trains=True)
def test_a_rejected_run_leaves_its_parent_the_accepted_one(place, capsys):
    """Exit 3; the failure is said and recorded; the folder means the parent; the images are offered again."""
    words = ["train", "--from", "runs", "--add", "new", "--epochs", "1", "--batch-size", "5"]
    assert main([*words, "--require", "old.accuracy>1"]) == 3
    said = capsys.readouterr().out
    assert "gate failed: old.accuracy" in said
    assert "images, required old.accuracy>1" in said
    assert "runs/2-shapes is rejected, runs/1-shapes stays the accepted one" in said
    record = json.loads(Path("runs/2-shapes/run.json").read_text())
    assert record["status"] == "rejected"
    assert record["failed"][0].startswith("old.accuracy")
    assert main([*words, "--require", "old.accuracy>=0"]) == 0
    again = runs.open_run("runs/3-shapes")
    assert again.parent_path().name == "1-shapes"
    assert again.record.images["added"] == 18
    with pytest.raises(GateFailed, match=r"old.accuracy .* required old.accuracy>1: runs/4-shapes is rejected"):
        kresume.resume("runs/1-shapes", add=["new"], require="old.accuracy>1", monitor="val_loss", epochs=1, quiet=True)
    with pytest.raises(CheckpointError, match=r"@best: .* because no epoch met its conditions: use runs/4-shapes@last"):
        kresume.evaluate("runs/4-shapes@best", data="new")


@pytest.mark.parametrize("case", ["best within", "until"])
def test_gated_runs_continue_exactly(tmp_path, pictures, case):
    """Killed after any snapshot, the same epoch is the result, and training stops at the same epoch."""
    gates = {
        "best within": {"require": ["all.accuracy>=0.2"], "monitor": "all.accuracy"},
        "until": {"until": "all.loss>=0"},
    }
    names = kill_at_every_snapshot(
        tmp_path, places=(4, -2), data=[str(pictures / "old")], **{**TINY, "epochs": 3}, **gates[case]
    )
    assert len(names) == 2
    assert len(lines_without_time(tmp_path / "whole")) == (1 if case == "until" else 3)


@pytest.mark.one_backend(trains=True)
def test_until_stops_after_the_epoch_that_reaches_it(place, monkeypatch, capsys):
    """Training ends after the epoch in which every condition holds; that epoch is the result."""
    # Three epochs of the first run, two of the second.
    scripted(monkeypatch, (0.5, 0.9, 0.95, 0.9, 0.9), (1, 2, 3, 1, 2))
    words = ["train", "--from", "runs/1-shapes", "--add", "new", "--epochs", "4", "--batch-size", "5", "--out", "2"]
    assert main([*words, "--until", "old.accuracy>=0.95 and all.loss>2"]) == 0
    said = capsys.readouterr().err
    assert said.index("epoch 3/4") < said.index("reached old.accuracy>=0.95 and all.loss>2 in epoch 3")
    assert main([*words[:-1], "3", "--patience", "1"]) == 0
    said = capsys.readouterr().err
    assert said.index("epoch 2/4") < said.index("no better val_loss for 1 epoch: stopped after epoch 2")
    run = runs.open_run("2")
    assert [line["epoch"] for line in runs.read_metrics(run.metrics)] == [1, 2, 3]
    assert run.result_step() == runs.read_metrics(run.metrics)[-1]["step"]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("checkpoint", "options", "words"),
    [
        (
            None,
            {"data": ["old"], "max_forgetting": 1},
            "max_forgetting= compares with the checkpoint of the first argument",
        ),
        ("runs/1-shapes", {"require": "old.acc>=0.5"}, "did you mean old.accuracy"),
        ("runs/1-shapes", {"until": "classes.zebra.recall>=0.5"}, "not a metric of a run"),
        (
            "runs/1-shapes",
            {"require": "new.accuracy>=0.5", "val_split": 0},
            "no validation images to measure new.accuracy on",
        ),
        ("bare.keras", {"data": ["old"], "max_forgetting": 1}, "was probably trained on .* old validation images"),
        ("bare.keras", {"data": ["old"], "require": ["old.loss<1"]}, "was probably trained on"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_training(place, checkpoint, options, words):
    """Gates without images, without a parent, or on images that the parent was trained on, are usage errors."""
    import keras

    keras.models.load_model("runs/1-shapes/model.keras").save("bare.keras")
    arguments = {"batch_size": 5, "val_split": 0.25, "add": ["new"] if checkpoint else None, **options}
    with pytest.raises(UsageError, match=words):
        kresume.plan(checkpoint, quiet=True, **arguments)


def week(*options):
    """Runs the command of the weekly loop; returns its exit code."""
    command = [
        "train",
        "--from",
        "runs",
        "--add",
        "inbox",
        "--epochs",
        "1",
        "--batch-size",
        "5",
        "--max-class-drop",
        "100",
    ]
    return main([*command, *options])


@pytest.mark.one_backend(trains=True)
def test_eight_weeks_of_one_growing_folder(tmp_path, monkeypatch, capsys):
    """One command each week: more pictures, none, a failed gate, a relabel, a deletion, a new class; one history."""
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("old"), 8, 0)
    trained("runs/1-shapes", data=["old"], **TINY)
    inbox = Path("inbox")
    codes, sizes = [], []
    for number in range(2, 10):
        options = []
        if number in {2, 4, 6, 9}:
            write_pictures(inbox, 3, 100 * number)
        if number == 4:
            options = ["--require", "all.loss<0"]
        if number == 5:
            options = ["--require", "all.loss>=0"]  # the pictures of week 4 are offered again
        if number == 6:
            moved = next((inbox / "circle").iterdir())
            moved.rename(inbox / "square" / moved.name)
        if number == 7:
            next((inbox / "stripes").iterdir()).unlink()
            options = ["--on-missing", "drop"]
            write_pictures(inbox, 1, 880)
        if number == 8:
            write_pictures(inbox, 4, 9000, ("zebra",))
            assert week() == 1  # unknown class folders are an error that names --grow
            assert "--grow" in capsys.readouterr().err
            options = ["--grow=zebra"]
        codes.append(week(*options))
        sizes.append(len(Manifest.read(runs.list_runs("runs").runs[-1].manifest)))
        capsys.readouterr()
    assert codes == [0, 4, 3, 0, 0, 0, 0, 0]
    history = [
        (Path(each.path).name, each.status, each.parent, each.classes) for each in kresume.lineage("runs").generations
    ]
    assert [status for _, status, _, _ in history].count("rejected") == 1
    assert history[0][3] == 4
    chain = [Path(each.path).name for each in kresume.lineage(f"runs/{history[0][0]}").generations]
    assert chain == [name for name, status, _, _ in history if status == "accepted"]
    last = Manifest.read(runs.list_runs("runs").runs[-1].manifest)
    assert len(set(last.sha256s.tolist())) == len(last)
    assert sizes == sorted(sizes)
    assert np.bincount(last.labels, minlength=4).min() > 0


@pytest.mark.one_backend(trains=True)
def test_new_images_alone_need_consent(place):
    """A bare checkpoint with only new images is an error that names `--new-only`, which trains on them and says so."""
    import keras

    keras.models.load_model("runs/1-shapes/model.keras").save("bare.keras")
    options = {"add": ["new"], "batch_size": 5, "val_split": 0.25, "epochs": 1, "classes": "circle,square,stripes"}
    with pytest.raises(ImagesError, match="or accept that with --new-only"):
        run_training("bare.keras", **options)
    plan = kresume.plan("bare.keras", new_only=True, quiet=True, **options)
    assert "what it forgets of them is not measured" in str(plan)
    run_training("bare.keras", new_only=True, out="alone", **options)
    assert set(Manifest.read(Path("alone/images.parquet")).origins.tolist()) == {1}
    for wrong, words in (({"data": ["old"]}, "--data gives them"), ({"replay": 0.5}, "needs old images")):
        with pytest.raises(UsageError, match=words):
            run_training("bare.keras", new_only=True, **options, **wrong)
    with pytest.raises(UsageError, match="the run records them"):
        run_training("runs/1-shapes", new_only=True, **options)


@pytest.mark.one_backend(trains=True)
def test_the_plan_says_how_small_a_difference_can_be_seen(place):
    """The plan has a line on the noise of the validation images, by origin too."""
    plan = kresume.plan("runs/1-shapes", add=["new"], quiet=True, **OPTIONS)
    images = plan.images["validation"]
    least, usual = 600 / images, 98 / images**0.5
    text = re.search(rf"{images} validation images: differences under ([\d.]+) points are noise(.*?) \(old", str(plan))
    assert float(text[1]) == pytest.approx(least, abs=0.5)
    assert ("they may be" in text[2]) is (usual > least)
    for count, words in (
        (
            186,
            "differences under 3.2 points are noise, under 7.2 points they may be (old 45: 13 and 15 points; "
            "new 141: 4.3 and 8.3 points)",
        ),
        (26, "differences under 23 points are noise"),
        (38, "differences under 16 points are noise (old 12: 50 points; new 26: 23 points)"),  # 15.8 and 15.9
        (8, "differences under 75 points are noise (old 4: any difference; new 4: any difference)"),
    ):
        new = {186: 141, 38: 26, 26: 26, 8: 4}[count]
        origins = np.r_[np.zeros(count - new, int), np.ones(new, int)]
        stand_in = SimpleNamespace(val_rows=lambda count=count: np.arange(count), origins=origins)
        assert judging.describe_noise(stand_in, 1) == f"{count} validation images: {words}"
    assert "noise" not in str(kresume.plan(None, data=["new"], val_split=0, quiet=True))
    few = kresume.plan(None, data=["new"], val_split=0.1, quiet=True)
    assert f"{few.images['validation']} validation images: too few to show any difference" in str(few)


@pytest.mark.one_backend
@pytest.mark.parametrize("images", [6, 7, 12, 24, 37])
def test_no_smaller_difference_is_called_significant(images):
    """Judges every difference below the plan's `noise:` as noise, in the sentence on a finished run too."""
    called = []
    for changed in range(images + 1):
        right = np.zeros(images, bool)
        right[:changed] = True
        if judge_right(np.zeros(images, bool), right).kind == "better":
            called.append(100 * changed / images)
    least, usual = judging._noise(images)
    assert min(called) == pytest.approx(least)
    assert usual >= least


@pytest.mark.one_backend(trains=True)
def test_the_plan_says_how_much_disk_a_run_needs(place):
    """The size of a snapshot is that of its file within a fifth; pixels of every image are counted; --cache off needs none."""
    plan = kresume.plan("runs/1-shapes", add=["new"], quiet=True, **OPTIONS)
    size = next(Path("runs/1-shapes/snapshots").glob("*/state.safetensors")).stat().st_size / 1000
    said = plan.disk.partition(" of ")[2].partition(" kB")[0]
    assert abs(float(said) - size) < 0.2 * size
    assert plan.disk.startswith("3 snapshots of ")
    assert plan.disk.endswith(f"{42 * 10 * 10 * 3 / 1000:.0f} kB of decoded images in the cache")
    small = kresume.plan("runs/1-shapes", add=["new"], quiet=True, cache_limit="10KB", **OPTIONS).disk
    assert small.endswith("no room for 13 kB of decoded images in a cache of 10 kB")
    assert "cache" not in kresume.plan("runs/1-shapes", add=["new"], quiet=True, cache="off", **OPTIONS).disk
    more = {"ema": 0.9, "accumulate": 2, "epochs": 1, "out": "more"}
    said = kresume.plan("runs/1-shapes", add=["new"], quiet=True, **more).disk.partition(" of ")[2].partition(" kB")[0]
    run_training("runs/1-shapes", add=["new"], **more, tensorboard=False)
    size = next(Path("more/snapshots").glob("*/state.safetensors")).stat().st_size / 1000
    assert abs(float(said) - size) < 0.2 * size


@pytest.mark.one_backend(trains=True)
def test_the_step_of_a_child_is_its_own(place):
    """Its snapshots count from 0, its optimizer goes on from its parents' steps: both are named, the own one first."""
    first = runs.open_run("runs/1-shapes").result_step()
    child = run_training("runs/1-shapes", add=["new"], epochs=1, out="child", tensorboard=False)
    both = f"{child.step}, {first + child.step} with its parents"
    found = inspect.describe(read_checkpoint("child"))
    assert f"step        {both}" in str(found)
    assert (found.step, found.earlier_steps) == (first + child.step, first)
    write_pictures(place / "more", 2, 900)
    assert f"(run, accepted, step {both})" in str(kresume.plan("child", add=["more"], quiet=True))
    assert f"step        {first}\n" in str(inspect.describe(read_checkpoint("runs/1-shapes")))


@pytest.mark.one_backend(trains=True)
def test_gates_of_the_parent_hold_for_its_child(place):
    """A child run inherits the gates of its parent; the same command gives equal bytes with and without a gate that is met."""
    run_training("runs/1-shapes", add=["new"], require=["all.accuracy>=0"], out="2", **OPTIONS)
    run_training("runs/1-shapes", add=["new"], out="free", **OPTIONS)
    assert_same_bytes(result_arrays(Path("2")), result_arrays(Path("free")))
    write_pictures(Path("more"), 3, 3000)
    run_training("2", add=["more"], out="3", epochs=1)
    assert runs.open_run("3").record.options["require"] == ["all.accuracy>=0"]


@pytest.mark.one_backend(trains=True)
def test_the_last_block_says_what_is_better_and_what_is_noise(place, capsys, monkeypatch):
    """The change on new and old images is judged image by image, as are the gates; a first training has no change."""
    words = ["train", "--from", "runs/1-shapes", "--add", "new", "--epochs", "1", "--batch-size", "5", "--lr", "0.5"]
    assert main([*words, "--out", "2"]) == 0
    said = capsys.readouterr().out
    before, after = (answers.read(runs.open_run("2").answers(which)) for which in ("before", "after"))
    verdicts = judge_origins(before, after, generation=1)
    assert f"\nchange: {in_words(verdicts)}\n" in said
    with monkeypatch.context() as patch:
        patch.setattr("kresume.evaluation.gates.falls", lambda *_: True)
        assert main([*words, "--out", "3", "--max-forgetting", "1", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["verdicts"]["new"]["images"] == verdicts["new"].images
    assert f"{describe_p(verdicts['old'].p)}" in told["failed"][0]
    assert "change:" not in str(run_training(data=["old"], out="4", **TINY))
