"""Tests the first and the last block of a training: what differs from the parent, what came of it, what to do next."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from kresume.evaluation.verdict import Pair
from kresume.options.differences import describe_differences
from kresume.options.table import TrainConfig
from kresume.training.closing import TrainResult, closing_facts
from tests.helpers import page_runs

pytestmark = pytest.mark.one_backend


def test_only_what_differs_from_the_parents_options_is_listed():
    """An option that is given with the parent's value, or inherited, is no difference; a default is a value, too."""
    parent = TrainConfig(data=("old",), batch_size=64, augment="strong", until="all.accuracy>=0.9", epochs=3, seed=0)
    asked = TrainConfig(from_="runs/1", add=("new",), batch_size=64, augment="light", lr=1e-4, keep=3)
    child = asked.model_copy(update={"seed": 0})
    words = describe_differences(parent, child, asked)
    assert words == (
        "--add new --lr 0.0001 --augment light (the parent: strong) no --until (the parent: all.accuracy>=0.9); "
        "all others are the parent's"
    )
    assert describe_differences(parent, parent, TrainConfig(from_="runs/1")) == "all are the parent's"
    off = parent.model_copy(update={"trial": False})
    assert describe_differences(parent, off, off).endswith("--no-trial (the parent: on); all others are the parent's")
    assert describe_differences(off, parent, parent).endswith("--trial (the parent: off); all others are the parent's")
    watched = parent.model_copy(update={"monitor": "val_loss"})
    assert "--monitor val_loss (the parent: off)" in describe_differences(parent, watched, watched)
    frozen = parent.model_copy(update={"freeze": ("conv*",), "unfreeze_at": 2})
    assert describe_differences(frozen, parent, TrainConfig()) == "all are the parent's"  # its layers stay as they are
    assert "--freeze conv*" in describe_differences(parent, frozen, frozen)
    gated = parent.model_copy(update={"max_forgetting": 0.0, "replay": 0.0})
    assert describe_differences(parent, gated, gated).count("--max-forgetting 0") == 1


def test_the_code_of_the_parents_model_is_no_difference(tmp_path, monkeypatch):
    """A child imports the file that its parent gave as the model; another file is one that the user added."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.py", "more.py"):
        Path(name).touch()
    parent, child = TrainConfig(data=("old",), model="model.py:build"), TrainConfig(imports=("model.py",))
    assert describe_differences(parent, child, TrainConfig()) == "all are the parent's"
    more = TrainConfig(imports=("model.py", "more.py"))
    assert describe_differences(parent, more, more).startswith(
        "--import model.py --import more.py (the parent: model.py)"
    )


def result_of(run, before=None, after=None):
    """Returns the result of a run on disk, as the last block prints it."""
    facts = closing_facts(run, None if before is None else Pair(before, after, run.generation))
    record = run.record
    return TrainResult(str(run.path), record.status, 20, 2, record.before, record.result.scores, **facts)


CASES = {
    "better": (
        0.3,
        0.1,
        0.95,
        0.95,
        r"better on new \(\+.*points, p < 0.001\), better on old",
        "nothing by more than noise",
    ),
    "forgets": (0.95, 0.1, 0.3, 0.95, r"better on new .*, worse on old \(-", "old images (-"),
    "noise": (
        0.7,
        0.7,
        0.7,
        0.7,
        r"unchanged on new within noise .*, unchanged on old within noise",
        "nothing by more",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_block_says_what_is_noise_and_what_was_forgotten(tmp_path, case):
    """The verdicts are those of the kept answers; classes that fell by more than noise are named."""
    old, new, old_after, new_after, change, forgot = CASES[case]
    manifest = page_runs.write_images(tmp_path / "in", ("a", "b"), old=400, new=400, stored=False)
    before = page_runs.made_answers(manifest, old, new, seed=1)
    after = page_runs.made_answers(manifest, old_after, new_after, 2)
    run = page_runs.write_run(tmp_path / "1-run", manifest, before, after)
    text = str(result_of(run, before, after))
    lines = dict(line.split(":", 1) for line in text.splitlines())
    assert re.search(change, lines["change"]), text
    assert lines["forgot"].strip().startswith(forgot), text
    assert (
        lines["next"] == f"   kresume export {run.path} serving/, or kresume train --from {run.path} --add MORE_IMAGES"
    )
    assert text.splitlines()[0].endswith("result is step 20 (epoch 2, the last)")
    json.dumps(result_of(run, before, after).as_dict(), allow_nan=False)
    run.record.images["seen"] = 60
    seen = "; 60 of the validation images were probably seen in training before"
    assert f"{lines['change']}{seen}\n" in str(result_of(run, before, after))


KNOWN_ALL = ("a", "b", "c")


@pytest.mark.parametrize(
    ("old", "judged", "added", "words"),
    [
        (400, "abc", (), "nothing by more than noise"),
        (400, "ab", (), "nothing by more than noise; no validation image of c"),
        (0, "abc", (), "nothing by more than noise; no validation image is old"),
        (0, "c", ("c",), "unknown: no validation image is of a class that the parent knew"),
        (400, "abc", ("c",), "nothing by more than noise"),
    ],
)
def test_what_cannot_be_judged_is_not_called_kept(tmp_path, old, judged, added, words):
    """Nothing is said to be kept of images and classes that no validation image shows."""
    manifest = page_runs.write_images(tmp_path / "in", KNOWN_ALL, old=old, new=400, stored=False)
    others = np.array([KNOWN_ALL[label] not in judged for label in manifest.labels])
    shown = manifest.changed(manifest.table[:0], [sha.decode() for sha in manifest.sha256s[others]])
    before, after = (page_runs.made_answers(shown, 0.7, 0.7, seed) for seed in (1, 2))
    run = page_runs.write_run(tmp_path / "1-run", shown, before, after, new_classes=added)
    assert closing_facts(run, Pair(before, after, run.generation))["forgot"] == words


def test_the_last_block_of_a_new_model_compares_nothing(tmp_path):
    """A new model has scores, no change and nothing forgotten."""
    manifest = page_runs.write_images(tmp_path / "in", ("a", "b"), stored=False)
    run = page_runs.write_run(tmp_path / "1-run", manifest, None, page_runs.made_answers(manifest, 0.8, 0.8, 1))
    text = str(result_of(run))
    assert not {"change", "forgot", "before"} & {line.split(":")[0] for line in text.splitlines()}
    assert "after: " in text


def test_a_better_epoch_than_the_result_is_named(tmp_path):
    """Where the last epoch is the result, an epoch with a lower validation loss is named, and what chooses it."""
    manifest = page_runs.write_images(tmp_path / "in", ("a", "b"), stored=False)
    run = page_runs.write_run(tmp_path / "1-run", manifest, None, page_runs.made_answers(manifest, 0.8, 0.8, 1))
    path = run.path / "metrics.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert closing_facts(run, None)["best"] == ""
    first["all"]["loss"] = 0.125
    path.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    assert closing_facts(run, None)["best"].startswith("epoch 1 had the lowest validation loss (0.125, the result ")
    assert "--monitor val_loss" in closing_facts(run, None)["best"]


def test_a_rejected_run_names_the_accepted_one(tmp_path):
    """A run that fails a gate has no next command, but the run that stays."""
    result = TrainResult("runs/2", "rejected", 5, 1, None, {"all": {"images": 0}}, failed=("x",), parent="runs/1")
    last = "runs/2 is rejected, runs/1 stays the accepted one"
    assert str(result).splitlines()[-1] == last
    of_more = f"{last}; the images that it added are new to the next run"
    assert str(dataclasses.replace(result, added=3)).splitlines()[-1] == of_more
    assert dataclasses.replace(result, failures=("disk",)).exit_code == 3
