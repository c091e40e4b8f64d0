"""Tests checkpoints that do not record how their pictures were resized: what is assumed is told, and can be said.

The pictures are made so that averages of areas are grey in both classes, while `bilinear` meets the pixels that differ.
"""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kresume
from kresume.errors import UsageError

pytestmark = [pytest.mark.one_backend(trains=True), pytest.mark.optimized_graphs]

SIDE, FACTOR = 8, 4


def painted(bright):
    """Returns a picture whose blocks of 4x4 pixels have a mean of 128; `bilinear` averages the middle of each."""
    middle, others = (255, 86) if bright else (0, 171)
    block = np.full((FACTOR, FACTOR), others, np.uint8)
    block[1:3, 1:3] = middle
    return np.repeat(np.tile(block, (SIDE, SIDE))[..., None], 3, axis=2)


@pytest.fixture
def images(tmp_path):
    """Returns a folder with two classes of pictures, 20 of each, no two of them equal."""
    for bright, name in enumerate(("dark", "light")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(20):
            picture = painted(bright)
            picture[0, number] ^= 3
            Image.fromarray(picture).save(tmp_path / "in" / name / f"{number}.png")
    return tmp_path / "in"


@pytest.fixture
def model(tmp_path):
    """Returns a file of plain Keras that tells bright pictures from dark ones."""
    dense = keras.layers.Dense(2, activation="softmax")
    net = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), keras.layers.Rescaling(1 / 255), keras.layers.GlobalAveragePooling2D(), dense]
    )
    dense.set_weights([np.array([[-4, 4]] * 3, np.float32), np.array([6, -6], np.float32)])
    net.save(tmp_path / "m.keras")
    return str(tmp_path / "m.keras")


def accuracy_of_keras(model, images, interpolation):
    """Returns what plain Keras says, with its own loader."""
    data = keras.utils.image_dataset_from_directory(
        images, image_size=(SIDE, SIDE), interpolation=interpolation, verbose=False, shuffle=False
    )
    net, right = keras.models.load_model(model), []
    for pictures, labels in data:
        right += list(np.argmax(net.predict_on_batch(pictures), axis=1) == np.asarray(labels))
    return float(np.mean(right))


def test_an_interpolation_that_fits_better_is_told_and_can_be_given(model, images):
    """`eval` tries Keras's default where pictures shrink much, and says that it fits; with the option it agrees with Keras."""
    found = kresume.evaluate(model, data=images)
    assert "--interpolation bilinear" in found.note or "interpolation='bilinear'" in found.note
    assert "it does not record how its pictures were resized" in found.note
    assert found.scores["all"]["accuracy"] < 0.8
    for name, ours in (
        ("bilinear", "bilinear"),
        ("area", "kerasarea"),
        ("nearest", "nearest"),
        ("lanczos3", "lanczos3"),
    ):
        found = kresume.evaluate(model, data=images, interpolation=ours)
        assert found.scores["all"]["accuracy"] == accuracy_of_keras(model, images, name), name
        assert "resized" not in found.note
    assert kresume.evaluate(model, data=images, interpolation="bilinear").scores["all"]["accuracy"] == 1.0


def test_a_comparison_uses_it_for_whichever_model_does_not_record_its_own(model, images, tmp_path):
    """A run records how its pictures were resized, and a way that contradicts it, or that nothing uses, is an error."""
    run = kresume.resume(
        None, data=[images], model="convnet", image_size=SIDE, epochs=1, out=str(tmp_path / "run"), interpolation="nearest",
        quiet=True, augment="none",
    )  # fmt: skip
    both = kresume.evaluate(run, data=images, against=model, interpolation="bilinear")
    assert both.against.scores["all"]["accuracy"] == 1.0
    assert both.scores == kresume.evaluate(run, data=images).scores
    assert kresume.evaluate(run, data=images, interpolation="nearest").scores == both.scores
    with pytest.raises(UsageError, match=r"records .*nearest.*, with which it was trained: leave .*bilinear.* out"):
        kresume.evaluate(run, data=images, interpolation="bilinear")
    with pytest.raises(UsageError, match=r"is recorded, or done by the model: leave it out"):
        kresume.evaluate(run, data=images, against=run, resize="crop")
    alone = kresume.evaluate(
        model, data=images, against=model, interpolation="kerasarea", against_interpolation="bilinear"
    )
    assert alone.scores["all"]["accuracy"] < 0.8
    assert alone.against.scores["all"]["accuracy"] == 1.0
    told = kresume.evaluate(model, data=images, against=model, interpolation="bilinear", resize="stretch")
    assert not told.note
    assert not told.against.note
    assumed = kresume.evaluate(run, data=images, against=model).against
    assert "against-interpolation" in assumed.note or "against_interpolation" in assumed.note
    with pytest.raises(UsageError, match=r"run records .*nearest.*, with which it was trained"):
        kresume.evaluate(model, data=images, against=run, against_interpolation="bilinear")
    with pytest.raises(UsageError, match=r"interpolation.*area.*how pictures are resized for .*run is recorded"):
        kresume.evaluate(run, data=images, against=model, interpolation="area", against_interpolation="bilinear")


def test_predictions_and_exports_resize_as_they_are_told(model, images, tmp_path):
    """A note names the assumed way of resizing; an exported model resizes files as the options say."""
    files = sorted(images.rglob("*.png"))
    told = kresume.predict(model, [images], classes=("dark", "light"))
    assert any("stretch and area are assumed" in note for note in told.notes)
    asked = {"classes": ("dark", "light"), "interpolation": "bilinear"}
    assert "stretch is assumed" in kresume.predict(model, [images], **asked).notes[0]
    asked["resize"] = "stretch"
    found = kresume.predict(model, [images], **asked)
    assert not found.notes
    assert len(found.rows) == len(files)
    assert all(Path(row.path).parent.name == row.label for row in found.rows)
    kresume.export(model, tmp_path / "serving", data=images, **asked)
    served = tf.saved_model.load(str(tmp_path / "serving" / "1"))
    answer = served.signatures["serving_default"](tf.constant([path.read_bytes() for path in files]))
    labels = next(np.asarray(value) for value in answer.values() if value.dtype == tf.string)
    assert [text.decode() for text in labels.reshape(len(files), -1)[:, 0]] == [path.parent.name for path in files]
    card = json.loads((tmp_path / "serving" / "1" / "export.json").read_text())["card"]
    assert card["interpolation"] == "bilinear"
    with pytest.raises(UsageError, match="done by the model"):
        kresume.evaluate(tmp_path / "serving", data=images, interpolation="area")
    with pytest.raises(UsageError, match=r"against.resize.*crop.*done by the model"):
        kresume.evaluate(model, data=images, against=tmp_path / "serving", against_resize="crop")
    with pytest.raises(UsageError, match="done by the model"):
        kresume.predict(tmp_path / "serving", [images], interpolation="area")


def test_a_saved_model_that_takes_numbers_is_fed_as_said(model, images, tmp_path):
    """A SavedModel of plain Keras records nothing: its pictures are resized as the user says."""
    keras.models.load_model(model).export(str(tmp_path / "plain"), verbose=False)
    asked = {"classes": ("dark", "light"), "pixels": "0-255"}
    found = kresume.evaluate(tmp_path / "plain", data=images, interpolation="bilinear", **asked)
    assert found.scores["all"]["accuracy"] == 1.0
    assert "resized" not in found.note
    found = kresume.evaluate(tmp_path / "plain", data=images, **asked)
    assert found.scores["all"]["accuracy"] < 0.8
    assert "it does not record how its pictures were resized" in found.note
    found = kresume.predict(tmp_path / "plain", [images], interpolation="bilinear", resize="stretch", **asked)
    assert all(Path(row.path).parent.name == row.label for row in found.rows)
    assert not found.notes
    assert kresume.predict(tmp_path / "plain", [images], **asked).notes


@pytest.fixture
def oblong(tmp_path):
    """Returns a folder with pictures twice as wide as high, which differ in their middle alone; borders hide it."""
    for bright, name in enumerate(("dark", "light")):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for number in range(20):
            picture = np.full((2 * SIDE, 4 * SIDE, 3), 0 if bright else 255, np.uint8)
            picture[:, SIDE : 3 * SIDE] = 255 if bright else 0
            picture[0, number] ^= 3
            Image.fromarray(picture).save(tmp_path / "wide" / name / f"{number}.png")
    return tmp_path / "wide"


def test_a_crop_that_fits_better_is_told_and_trains(model, oblong, tmp_path):
    """Of pictures of another shape than the model's input ways of resizing are compared, in `eval` and `train --from`."""
    found = kresume.evaluate(model, data=oblong)
    assert found.scores["all"]["accuracy"] < 0.8
    assert "resize='crop'" in found.note
    assert "better than stretch: 100.0 % of 40 are right" in found.note
    right = kresume.evaluate(model, data=oblong, resize="crop")
    assert right.scores["all"]["accuracy"] == 1.0
    assert "resized" not in right.note
    data = keras.utils.image_dataset_from_directory(
        oblong, image_size=(SIDE, SIDE), crop_to_aspect_ratio=True, verbose=False, batch_size=40
    )
    pictures, labels = next(iter(data))
    assert (np.argmax(keras.models.load_model(model).predict_on_batch(pictures), axis=1) == np.asarray(labels)).all()
    plan = kresume.plan(model, data=[oblong], optimizer="adam:reset", lr=1e-3, epochs=1, quiet=True, trial=False)
    assert plan.card.resize == "crop"
    assert re.search(r"8x8, crop, area \(stretch gives loss [\d.]+, crop gives loss [\d.]+\)", str(plan)), str(plan)
    asked = kresume.plan(
        model, data=[oblong], optimizer="adam:reset", lr=1e-3, epochs=1, quiet=True, trial=False, resize="stretch"
    )
    assert asked.card.resize == "stretch"
