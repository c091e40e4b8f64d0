"""Tests that a compiled file given as `--model` gives its loss and its optimizer's settings, as a user's function does."""

import json

import keras
import numpy as np
import pytest

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import ModelError
from kresume.models.build import build_model
from kresume.models.losses import choose_loss, compiled_by_function
from kresume.models.optimizers import describe
from kresume.options.resolve import from_arguments
from kresume.training.preview import make_plan
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import CLASSES
from tests.helpers.runs import run_training

SMOOTH = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)


@keras.saving.register_keras_serializable(package="recompile")
class Unknown(keras.optimizers.SGD):
    """An optimizer of the user's own."""


def network(optimizer=None, loss=SMOOTH, **options):
    """Returns a model for pictures of 4x4 pixels, compiled unless the optimizer is None."""
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((4, 4, 3)), *layers])
    if optimizer is not None:
        model.compile(optimizer, loss, **options)
    return model


def steps(model, count, first=0):
    """Trains a few steps on noise; returns the weights' bytes."""
    for step in range(first, first + count):
        rng = np.random.default_rng(step)
        model.train_on_batch(rng.uniform(0, 255, (6, 4, 4, 3)).astype("float32"), np.eye(3)[rng.integers(0, 3, 6)])
    return [np.array(each) for each in model.get_weights()]


def adamw():
    return keras.optimizers.AdamW(3e-3, weight_decay=0.07, clipnorm=1.0, beta_1=0.8)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("suffix", ["keras", "h5", "json"])
def test_a_files_compile_config_is_that_of_its_model(tmp_path, suffix):
    """Loss and its weight, optimizer, steps per execution: of a full file and of `to_json`."""
    path = tmp_path / f"model.{suffix}"
    model = network(adamw(), loss_weights=[0.5], steps_per_execution=4)
    model.save_weights(tmp_path / "later.weights.h5")
    path.write_text(model.to_json()) if suffix == "json" else model.save(path)
    state = read_checkpoint(tmp_path / "later.weights.h5")
    built = build_model(str(path), state=state, num_classes=3, image_size=None)
    choice = choose_loss(built)
    assert (choice.kind, choice.label_smoothing, choice.weight) == ("categorical_crossentropy", 0.2, 0.5)
    assert choice.reason.startswith("as --model compiles it")
    assert compiled_by_function(built)["steps_per_execution"] == 4
    found, expected = describe(built.optimizer), describe(model.optimizer)
    assert found.class_name == "AdamW"
    assert {**found.config, "name": ""} == {**expected.config, "name": ""}


@pytest.mark.one_backend(trains=True)
def test_what_is_not_compiled_stays_so(tmp_path):
    """An uncompiled file compiles nothing. An optimizer that Keras does not know is left out; the loss is kept."""
    network().save(tmp_path / "bare.keras")
    assert not build_model(str(tmp_path / "bare.keras"), state=None, num_classes=3, image_size=None).compiled
    network(Unknown(0.1)).save(tmp_path / "own.keras")
    keras.saving.get_custom_objects().pop("recompile>Unknown")
    built = build_model(str(tmp_path / "own.keras"), state=None, num_classes=3, image_size=None)
    assert built.optimizer is None
    assert choose_loss(built).label_smoothing == 0.2


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    "setting",
    [
        {"loss_weights": True},
        {"steps_per_execution": "two"},
        {"loss_weights": "x"},
        {
            "optimizer": {
                "module": "keras.optimizers",
                "class_name": "Adam",
                "config": {"learning_rate": {"module": True, "class_name": "CosineDecay", "config": {}}},
            }
        },
    ],
)
def test_a_setting_of_another_form_is_named(tmp_path, setting):
    """A compile config that was edited or damaged is an error in words, whichever setting it is."""
    path = tmp_path / "model.json"
    config = json.loads(network(adamw()).to_json())
    config["compile_config"].update(setting)
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the compile config of the architecture"):
        build_model(str(path), state=None, num_classes=3, image_size=None)


@pytest.mark.parametrize("suffix", few_under_jax(["keras", "h5"], ["h5"]))
def test_weights_and_the_compiled_file_train_on_as_plain_keras_does(tmp_path, pictures, quiet, suffix):
    """`.weights.h5` beside the compiled file of the same training: loss, settings and rate are those of the file."""
    model = network(adamw())
    steps(model, 3)
    model.save(tmp_path / f"model.{suffix}")
    model.save_weights(tmp_path / "later.weights.h5")
    arguments = {
        "model": str(tmp_path / f"model.{suffix}"),
        "data": [str(pictures / "old")],
        "classes": ",".join(CLASSES),
        "lr_schedule": "keep",
        "cache": "off",
        "val_split": 0,
        "batch_size": 6,
        "epochs": 1,
    }
    plan = make_plan(from_arguments(str(tmp_path / "later.weights.h5"), arguments), quiet)
    assert plan.loss == "categorical_crossentropy (as --model compiles it; label_smoothing=0.2)"
    assert plan.rate.peak == pytest.approx(3e-3)
    run = run_training(str(tmp_path / "later.weights.h5"), out=str(tmp_path / "run"), **arguments).run
    saved = read_checkpoint(run).optimizer
    assert saved.class_name == "AdamW"
    assert (saved.config["weight_decay"], saved.config["clipnorm"], saved.config["beta_1"]) == (0.07, 1.0, 0.8)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("rate", "peak"), [(1e-7, 1e-3), (keras.optimizers.schedules.CosineDecay(3e-3, 40), 3e-3)])
def test_a_new_model_is_compiled_as_its_file(tmp_path, pictures, quiet, rate, peak):
    """The plan names loss and optimizer. A rate at which another training ended is not where a new one begins."""
    network(keras.optimizers.AdamW(rate, weight_decay=0.07)).save(tmp_path / "model.keras")
    arguments = {"model": str(tmp_path / "model.keras"), "data": [str(pictures / "old")], "cache": "off", "epochs": 1}
    plan = make_plan(from_arguments(None, arguments), quiet)
    assert plan.loss == "categorical_crossentropy (as --model compiles it; label_smoothing=0.2)"
    assert plan.rate.peak == pytest.approx(peak)
    run = run_training(None, out=str(tmp_path / "run"), **arguments).run
    assert read_checkpoint(run).optimizer.config["weight_decay"] == 0.07
