"""Tests `--distill` on whole runs: exact under kills, with new classes, averages and frozen layers."""

import json
import shutil

import keras
import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.errors import ImagesError, RunError, UsageError
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import family, kill_at_every_snapshot, make_interrupted, run_training

OPTIONS = {"batch_size": 5, "val_split": 0.25, "lr": 1e-3, "distill": 1.0}
NAMES = ("teacher.safetensors", "teacher.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    """Makes a folder with a parent run, and images of an old and a new class."""
    return family(tmp_path_factory.mktemp("taught"), pictures)


TAUGHT = [
    ({"precision": "mixed_float16", "ema": 0.9, "epochs": 1}, (1,)),
    ({"epochs": 2, "freeze": ["conv*"], "unfreeze_at": 1, "mixup": 0.2, "steps_per_execution": 2}, (0, -2)),
]


@pytest.mark.parametrize(("options", "kills"), few_under_jax(TAUGHT, TAUGHT[:1]))
@pytest.mark.sample("options0-kills0")
def test_a_taught_run_continues_exactly(tmp_path, place, options, kills):
    """Killed at any snapshot, it ends with the same bits: its teacher is in the run."""
    arguments = {**OPTIONS, "checkpoint": str(place / "parent"), "add": [str(place / "more")], "grow": True, **options}
    assert len(kill_at_every_snapshot(tmp_path, places=kills, **arguments)) == len(kills)
    whole = runs.open_run(tmp_path / "whole")
    assert whole.record.teaching.weight == 1.0
    assert whole.record.teaching.classes == (0, 1, 2)
    assert all((whole.path / name).is_file() for name in NAMES)  # the helper keeps them, to continue from copies
    make_interrupted(whole.path, "step-00000000")
    (whole.path / NAMES[0]).write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"teacher\.safetensors is damaged or gone"):
        run_training(out=str(whole.path))


@pytest.mark.one_backend(trains=True)
def test_the_parents_answers_are_kept(tmp_path, place):
    """A taught run answers more like its parent than one that only trains; a finished run holds no teacher."""
    bare = tmp_path / "parent.keras"
    shutil.copy(place / "parent" / "model.keras", bare)
    arguments = {"add": [str(place / "new")], "epochs": 4, "batch_size": 5, "val_split": 0.25, "lr": 3e-3}
    images = keras.utils.image_dataset_from_directory(
        place / "new", image_size=(10, 10), shuffle=False, batch_size=None, verbose=False
    )
    images = np.stack([np.asarray(image) for image, _ in images])
    before = keras.models.load_model(bare).predict(images, verbose=0)
    moved = {}
    for name, how in (("near", {"distill": 10.0}), ("free", {"new_only": True})):
        run_training(str(bare), out=str(tmp_path / name), **arguments, **how)
        assert not any((tmp_path / name / each).exists() for each in NAMES)
        after = keras.models.load_model(tmp_path / name / "model.keras").predict(images, verbose=0)
        moved[name] = np.abs(after - before).mean()
    assert moved["near"] < 0.7 * moved["free"], moved
    record = json.loads((tmp_path / "near" / "run.json").read_text())
    assert record["teaching"]["weight"] == 10
    plan = kresume.plan(str(tmp_path / "near"), add=[str(place / "more")], grow=True, quiet=True, lr=1e-3)
    assert "distill: " not in str(plan)  # a choice of that run alone
    assert "distill=None (the parent: 10.0)" in str(plan)


@pytest.mark.one_backend(trains=True)
def test_without_any_old_image_the_loss_is_over_the_new_classes(tmp_path, place):
    """Over all classes it would only teach that every picture is of a new one."""
    write_pictures(tmp_path / "alone", 6, 700, ("apple", "zebra"))
    bare = tmp_path / "parent.keras"
    shutil.copy(place / "parent" / "model.keras", bare)
    arguments = {"add": [str(tmp_path / "alone")], "grow": True, **OPTIONS, "epochs": 1}
    plan = kresume.plan(str(bare), quiet=True, **arguments)
    assert "the loss itself is over the new classes, because no image of the others is left" in str(plan)
    run_training(str(bare), out=str(tmp_path / "run"), **arguments)
    assert runs.open_run(tmp_path / "run").record.teaching.new_only
    slow = kresume.plan(str(bare), quiet=True, **{name: each for name, each in arguments.items() if name != "lr"})
    assert slow.rate.reason.startswith("0.3x the checkpoint's")
    mixed = kresume.plan(str(bare), quiet=True, **{**arguments, "add": [str(place / "more")]})
    assert "over the new classes" not in str(mixed)


@pytest.mark.one_backend(trains=True)
def test_the_plan_says_who_teaches(place):
    """The plan has a line with the weight and the classes that are compared."""
    plan = kresume.plan(str(place / "parent"), add=[str(place / "more")], grow=True, quiet=True, **OPTIONS)
    assert "distill:  loss + 1 x the distance to the checkpoint's answers over its 3 classes" in str(plan)
    assert "takes about a third longer" in plan.as_dict()["distilled"]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("checkpoint", "options", "error", "words"),
    [
        (
            None,
            {"distill": 1.0, "data": ["old"]},
            UsageError,
            "distill=1.0 keeps a run near its checkpoint, but there is none",
        ),
        (
            "parent",
            {"distill": 1.0, "new_head": True, "data": ["old"]},
            UsageError,
            "gives up the classes of the checkpoint",
        ),
        ("parent", {"distill": 0.0}, UsageError, "give a number above 0"),
        ("parent.keras", {"add": ["new"]}, ImagesError, r"distill=1.0, or accept that with new_only=True"),
        (
            "parent",
            {"distill": 1.0, "new_only": True, "add": ["new"]},
            UsageError,
            "trains without the old images, but",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused(place, monkeypatch, checkpoint, options, error, words):
    """A run without a parent or with other classes has nothing to keep; the error of missing old images names the option."""
    monkeypatch.chdir(place)
    shutil.copy(place / "parent" / "model.keras", place / "parent.keras")
    with pytest.raises(error, match=words):
        kresume.plan(checkpoint, quiet=True, **options)
