"""Tests that the plan names settings of an optimizer that change, and takes those that a model's function compiles."""

import keras
import numpy as np
import pytest

import kresume
from tests.helpers.pictures import CLASSES

OWN = """
import keras

def build(num_classes=3):
    layers = [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(num_classes, activation="softmax")]
    model = keras.Sequential(layers)
    rate = {rate}
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.02, clipnorm=0.7, beta_2=0.99)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model
"""


@pytest.fixture
def options(pictures):
    """Returns options of a plan.

    The cache is off: likenesses of pictures of 4x4 pixels would be those of the session's pictures.
    """
    return {"data": [str(pictures / "old")], "pixels": "0-1", "steps": 3, "trial": False, "quiet": True, "cache": "off"}


def written(folder, rate="3e-3"):
    """Writes a file with a function of a model; returns `--model`."""
    (folder / "own.py").write_text(OWN.replace("{rate}", rate))
    return f"{folder / 'own.py'}:build"


def trained_once():
    """Returns what the function builds, after a step."""
    names = {}
    exec(OWN.replace("{rate}", "3e-3"), names)
    model = names["build"]()
    model.train_on_batch(np.ones((2, 4, 4, 3)), np.zeros(2))
    return model


def checkpoint(folder):
    """Writes it as a `.keras` file."""
    trained_once().save(folder / "ckpt.keras")
    return str(folder / "ckpt.keras")


def settings(plan):
    """Returns the note on settings that change."""
    return next((note for note in plan.notes if note.startswith("settings of the optimizer change")), "")


CASES = {
    "kept": ({}, []),
    "reset": (
        {"optimizer": "adamw:reset"},
        ["weight_decay 0.02 -> 0.004", "clipnorm 0.7 -> none", "beta_2 0.99 -> 0.999"],
    ),
    "asked for": ({"optimizer": "adamw:reset", "weight_decay": 0.1}, ["clipnorm 0.7 -> none", "beta_2 0.99 -> 0.999"]),
    "another class": ({"optimizer": "adam"}, ["weight_decay 0.02 -> none"]),
    "another kind": ({"optimizer": "sgd", "lr": 0.01}, ["weight_decay 0.02 -> none"]),
    "averages": ({"ema": 0.9, "accumulate": 2}, []),
}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.sample("kept", "reset", "averages")
def test_settings_that_change_are_named(tmp_path, options, case):
    """Each with both values, unless an option sets it."""
    changes, expected = CASES[case]
    note = settings(kresume.plan(checkpoint(tmp_path), classes=",".join(CLASSES), **options, **changes))
    assert [each for each in expected if each not in note] == []
    assert note.count("->") == len(expected)
    assert ("weight_decay=0.02 keeps that one" in note) == ("weight_decay" in note)


@pytest.mark.one_backend(trains=True)
def test_a_fresh_optimizer_is_the_one_that_the_function_compiles(tmp_path, options):
    """With weights alone, `adamw:reset` has the settings and the rate of the function, and nothing to name."""
    bare = keras.Sequential([keras.Input((4, 4, 3)), *trained_once().layers])
    bare.save_weights(tmp_path / "bare.weights.h5")
    given = {**options, "model": written(tmp_path), "classes": ",".join(CLASSES), "optimizer": "adamw:reset"}
    plan = kresume.plan(str(tmp_path / "bare.weights.h5"), **given)
    assert settings(plan) == ""
    assert plan.rate.peak == pytest.approx(3e-3)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("rate", "changes", "peak", "reason"),
    [
        ("3e-3", {}, 3e-3, "the rate that --model compiles"),
        (
            "keras.optimizers.schedules.CosineDecay(2e-3, 40)",
            {},
            2e-3,
            "the start of the CosineDecay that --model compiles",
        ),
        ("1e-3", {}, 1e-3, "the default of AdamW"),
        ("3e-3", {"lr": 0.5}, 0.5, "--lr"),
        ("3e-3", {"optimizer": "sgd"}, 0.01, "the default of SGD"),
    ],
)
def test_a_new_model_starts_at_the_rate_that_its_function_compiles(tmp_path, options, rate, changes, peak, reason):
    """Unless an option asks for another rate or class; the reason is in the plan."""
    plan = kresume.plan(None, model=written(tmp_path, rate), **options, **changes)
    assert plan.rate.peak == pytest.approx(peak)
    assert plan.rate.reason == reason


@pytest.mark.one_backend(trains=True)
def test_averages_go_on_where_the_optimizer_starts_fresh(tmp_path, pictures):
    """They are the model that was scored: `before` is the parent's result, whatever the new class is."""
    common = {"batch_size": 5, "trial": False, "quiet": True, "lr": 0.01}
    first = {"image_size": "10", "val_split": 0.25, "epochs": 3, "ema": 0.8, "out": str(tmp_path / "1")}
    parent = kresume.resume(None, data=[str(pictures / "old")], **first, **common)
    expected = parent.record.result.scores["all"]["loss"]
    for optimizer in ("keep", "adamw:reset", "sgd:reset"):
        plan = kresume.plan(parent, add=[str(pictures / "new")], optimizer=optimizer, **common)
        assert plan.before["old"]["loss"] == expected
        assert ("its averages (EMA) go on" in plan.restored) == (optimizer != "keep")
    raw = kresume.read_checkpoint(parent)
    optimizer = raw.optimizer.config
    assert optimizer["use_ema"]
    assert any(
        array.tobytes() != raw.arrays[f"trainable/{index}"].tobytes() for index, array in averages_of(raw).items()
    )


def averages_of(state):
    """Returns the averages in a run's snapshot, by the index of their weight."""
    kinds = state.records["structure"]["optimizer"]
    return {
        weight: state.arrays[f"optimizer/{place}"]
        for place, (kind, weight, *_) in enumerate(kinds)
        if kind == "_model_variables_moving_average"
    }


@pytest.mark.one_backend(trains=True)
def test_averages_of_a_file_become_the_weights_where_no_ema_is_asked_for(tmp_path, pictures):
    """Its scores are those with which `eval` sees it."""
    inputs = keras.Input((4, 4, 3))
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(flat))
    model.compile(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9), "sparse_categorical_crossentropy")
    images, labels = np.random.default_rng(0).uniform(0, 255, (30, 4, 4, 3)), np.arange(30) % 3
    for _ in range(5):
        model.train_on_batch(images, labels)
    model.save(tmp_path / "m.keras")
    facts = {"classes": ["circle", "square", "stripes"], "resize": "stretch", "interpolation": "bilinear"}
    val = str(pictures / "val")
    scored = kresume.evaluate(tmp_path / "m.keras", val, **facts).scores["all"]["loss"]
    given = {"data": [str(pictures / "old")], "val": [val], "lr": 1e-3, "trial": False, "quiet": True, "epochs": 1}
    plan = kresume.plan(str(tmp_path / "m.keras"), optimizer="adam:reset", **given, **facts)
    assert "are the weights from here on" in plan.restored
    assert plan.before["all"]["images"] == 9
    assert plan.before["all"]["loss"] == pytest.approx(scored, rel=1e-6)
