"""Tests the printed line of code that feeds the model in plain Keras as it was trained."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kresume.images.decode import decode, shrinks_some
from kresume.images.inputs import to_input
from kresume.images.merging import merge
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.models.plain_keras import EXCEEDING, SHRINKS, feeding_line, takes_rows
from kresume.models.save import write_archive
from kresume.reporter import Reporter
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import RGB, InputLayout

CLASSES = ("ash", "elm", "yew")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Writes two noisy pictures of each class, larger than any model input here and not square."""
    folder = tmp_path_factory.mktemp("trees")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for index in range(2):
            array = rng.integers(0, 256, (40 + 7 * index, 30, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / name / f"{index}.png")
    return folder


def card(pixels="0-255", resize="stretch", interpolation="area", layout=RGB, classes=CLASSES):
    return Card(classes, (12, 10), pixels, resize, interpolation, input=layout)


def loaded(line, folder):
    """Runs the line; returns its arrays in the order of the folders."""
    code = line.replace('"IMAGES"', f'"{folder}", shuffle=False, verbose=False')
    values, labels = zip(*list(eval(code, {"keras": keras, "tf": tf})), strict=True)
    return np.concatenate([np.asarray(each) for each in values]), np.concatenate([np.asarray(each) for each in labels])


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    "case",
    [
        card(),
        card(interpolation="bilinear"),
        card(interpolation="nearest"),
        *[
            card(pixels, interpolation="nearest")
            for pixels in ("0-1", "-1-1", "torch", "caffe", "bgr-0-1", "0-1-inverted")
        ],
        card("0-1", layout=InputLayout(3, "chw"), interpolation="nearest"),
        card(layout=InputLayout(1, "hw"), interpolation="nearest"),
        card(interpolation="kerasarea"),
        card(interpolation="bicubic"),
        card(interpolation="lanczos3"),
        card(resize="crop"),
        card(resize="keraspad", interpolation="bilinear"),
        card("-1-1"),
        card("caffe"),
        card("torch"),
        card("bgr-0-1"),
        card("0-1-inverted"),
        card("mean=120,std=60,bgr"),
        card(classes=("yew", "ash", "elm")),
        card("torch", layout=InputLayout(3, "chw")),
        card("0-1", layout=InputLayout(1, "hwc")),
        card(layout=InputLayout(1, "hw")),
        card("0-1", layout=InputLayout(1, "hw")),
        card("mnist", layout=InputLayout(1, "hw", flat=True)),
        card("0-1", layout=InputLayout(1, "wh", flat=True)),
        card("0-1", layout=InputLayout(3, "chw", flat=True)),
    ],
    ids=str,
)
def test_the_line_gives_the_numbers_that_training_had(pictures, case):
    """The line gives the inputs of training by Keras's own loader, within two grey levels.

    Pixels, sampling, colours, axes and class order agree.
    """
    values, labels = loaded(feeding_line(case), pictures)
    if case.interpolation in EXCEEDING:
        assert feeding_line(case).endswith("# nearly: Keras's loader leaves the range 0 to 255 at edges")
        values = np.clip(values, 0, 255)
    files = [path for name in case.classes for path in sorted((pictures / name).iterdir())]
    spec = DecodeSpec(*case.image_size, case.resize, case.interpolation)
    trained = np.stack([decode(path.read_bytes(), spec) for path in files])
    ours = np.asarray(to_input(case.pixels, case.input)(trained))
    dark, bright = (np.asarray(to_input(case.pixels, case.input)(trained[:1] * 0 + shade)) for shade in (0, 1))
    level = abs(bright - dark).max()
    assert values.shape == ours.shape
    np.testing.assert_allclose(values, ours, atol=2.1 * level)
    assert abs(values - ours).mean() < 0.6 * level
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2, 2])


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("kind", "side", "interpolation", "shrinks"),
    [
        ("JPEG", 24, "area", True),
        ("JPEG", 23, "area", False),
        ("PNG", 24, "area", False),
        ("JPEG", 24, "bilinear", False),
        ("JPEG", 24, "kerasarea", False),
    ],
)
def test_pictures_that_shrink_while_they_are_decoded_are_told(tmp_path, kind, side, interpolation, shrinks):
    """Keras's loader decodes a JPEG whole: single scores differ."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(np.full((side, 40, 3), 90, np.uint8)).save(tmp_path / "in" / "a" / f"1.{kind.lower()}")
    spec, quiet = DecodeSpec(12, 10, "stretch", interpolation), Reporter(quiet=True)
    found = prepare(list_images([tmp_path / "in"], quiet).files, spec, None, quiet)
    manifest = merge(None, found, None, None, classes=("a",), val_split=None, generation=0).manifest
    assert shrinks_some(manifest, spec) == shrinks
    line = feeding_line(card(), shrinks=shrinks)
    told = f"  # nearly: Keras's loader {SHRINKS}"
    assert line.endswith(told) == shrinks


@pytest.mark.one_backend(trains=True)
def test_rows_of_labels_and_many_classes(pictures):
    """The loss decides the form of the labels; many class names are abbreviated in the last block."""
    _, labels = loaded(feeding_line(card(), rows=True), pictures)
    np.testing.assert_array_equal(labels, np.repeat(np.eye(3), 2, axis=0))
    many = card(classes=tuple(f"class {index}" for index in reversed(range(140))))
    assert len(feeding_line(many, short=True)) < 1700 < len(feeding_line(many))
    assert feeding_line(card("prepare.py:mine")).endswith(".map(lambda images, labels: (mine(images), labels))")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        ("sparse_categorical_crossentropy", False),
        ("categorical_crossentropy", True),
        (keras.losses.CategoricalFocalCrossentropy(), True),
        (keras.losses.SparseCategoricalCrossentropy(), False),
        (keras.losses.categorical_crossentropy, True),
        ("binary_crossentropy", False),
    ],
)
def test_the_file_says_the_line(tmp_path, loss, rows):
    """`kresume.json` in the archive holds the line, and the docs name the file."""
    model = keras.Sequential([keras.Input((12, 10, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", loss)
    assert takes_rows(model) is rows
    write_archive(model, tmp_path / "m.keras", card(), {"step": 3})
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        said = json.loads(archive.read("kresume.json"))
    assert said["feed"] == feeding_line(card(), rows=rows)
    assert Card.from_dict(said) == card()
