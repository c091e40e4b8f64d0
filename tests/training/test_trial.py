"""Tests the trial that estimates how long a run takes: it changes no bit of the run, and writes nothing."""

import json
import shutil
from pathlib import Path

import pytest

import kresume
from kresume import runs
from kresume.training import preview, trial
from kresume.values.estimate import Estimate, duration
from tests.helpers.backends import few_under_jax
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    assert_same_model,
    lines_without_time,
    result_arrays,
    run_training,
    trained,
)

DROPOUT = """
import keras

def build(num_classes=3, image_size=(10, 10)):
    layers = keras.layers
    body = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dropout(0.5)]
    return keras.Sequential([keras.Input((*image_size, 3)), layers.Rescaling(1 / 255), *body, layers.Dense(num_classes)])
"""
EXTENDED = {"batch_size": 5, "val_split": 0.25, "epochs": 2, "lr": 1e-3}


@pytest.fixture
def tried(monkeypatch):
    """Turns the trial on, which `conftest` turns off."""
    import importlib.util

    spec = importlib.util.find_spec("kresume.training.trial")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    for module in (trial, preview):
        monkeypatch.setattr(module, "estimate", fresh.estimate)
    return fresh


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    """Makes a folder with a parent run."""
    folder = tmp_path_factory.mktemp("trial")
    for name in ("old", "new"):
        shutil.copytree(pictures / name, folder / name)
    (folder / "own.py").write_text(DROPOUT)
    trained(folder / "parent", data=[str(folder / "old")], **TINY)
    return folder


TRIED = [
    {"model": "own.py:build", "augment": "strong", "rand_augment": 0.2, "data": ["old"], **TINY},
    {
        "from": "parent",
        "add": ["new"],
        "ema": 0.9,
        "distill": 0.5,
        "lr_schedule": "plateau",
        "freeze": ["conv*"],
        "unfreeze_at": 1,
        "mixup": 0.2,
        **EXTENDED,
    },
]


@pytest.mark.parametrize("options", few_under_jax(TRIED, TRIED[1:]))
@pytest.mark.sample("options0")
def test_a_trial_changes_no_bit(tmp_path, place, tried, monkeypatch, options):
    """Weights, slots, seeds, averages and scores are those of a run without a trial."""
    monkeypatch.chdir(place)
    options = dict(options)
    parent = options.pop("from", None)
    for name in ("with", "without"):
        run_training(parent, out=str(tmp_path / name), trial=name == "with", **options)
    assert_same_bytes(result_arrays(tmp_path / "without"), result_arrays(tmp_path / "with"))
    assert lines_without_time(tmp_path / "without") == lines_without_time(tmp_path / "with")
    assert_same_model(tmp_path / "without", tmp_path / "with")
    found = {name: runs.open_run(tmp_path / name).record.time for name in ("with", "without")}
    assert found["without"] is None
    assert found["with"].tried >= 2
    assert found["with"].seconds > found["with"].step > 0
    assert found["with"].thaws == options.get("unfreeze_at", 0)


@pytest.mark.one_backend(trains=True)
def test_a_plan_says_how_long_and_writes_nothing(place, tried, monkeypatch, tmp_path):
    """The plan has a line with the time, also as numbers; neither a run nor the cache is written."""
    monkeypatch.chdir(place)
    cache = tmp_path / "cache"
    before = sorted(Path().rglob("*"))
    plan = kresume.plan("parent", add=["new"], quiet=True, cache=str(cache), **EXTENDED)
    assert "time:     about " in str(plan)
    assert json.loads(json.dumps(plan.as_dict()["time"]))["step"] == plan.time.step
    assert sorted(Path().rglob("*")) == before
    assert not cache.exists()
    assert "time: " not in str(kresume.plan("parent", add=["new"], quiet=True, trial=False, **EXTENDED))


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (42.4, "42 s"), (99.6, "2 min"), (5940, "99 min"), (6000, "1 h 40 min"), (3600 * 50, "2 days 2 h")],
)
def test_durations_have_two_units_at_most(seconds, words):
    """Nobody needs the seconds of an hour."""
    assert duration(seconds) == words


@pytest.mark.one_backend
@pytest.mark.parametrize(("step", "words"), [(0.0042, "4.2 ms"), (0.21, "210 ms"), (2.34, "2.3 s")])
def test_the_estimate_in_words(step, words):
    """The step, how often it was measured, the share of scores, and compiling."""
    text = str(Estimate(240, step, 5, 12.2, 0.08))
    assert (
        text == f"about 4 min: {words} a step (measured on 5), 8 % of it for scores; compiling takes 12 s at each start"
    )
    later = "; from epoch 3 on, when all layers train, a step takes longer"
    assert str(Estimate(240, step, 5, 12.2, 0.08, thaws=2)) == text.replace("about", "at least") + later
