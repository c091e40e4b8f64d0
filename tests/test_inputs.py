"""A model may take its pictures grey, as one row of numbers, or with the channels first: it is fed as its input says."""

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kresume.config import from_arguments
from kresume.evaluation.evaluate import evaluate
from kresume.evaluation.loaded import Subject, load
from kresume.input_layout import InputLayout
from kresume.training.plan import make_plan

SIDE = 8
CLASSES = ("seven", "six", "three", "zero")
DIGITS = (7, 6, 3, 0)

LAYOUTS = {
    "grey": InputLayout(1, "hwc"),
    "grey-first": InputLayout(1, "chw"),
    "grey-no-channels": InputLayout(1, "hw"),
    "grey-flat": InputLayout(1, "hw", flat=True),
    "grey-flat-columns": InputLayout(1, "wh", flat=True),
    "rgb-first": InputLayout(3, "chw"),
    "rgb-flat": InputLayout(3, "hwc", flat=True),
    "rgb-flat-first": InputLayout(3, "chw", flat=True),
}
PIXELS = {"0-255": lambda x: x, "0-1": lambda x: x / 255.0, "-1-1": lambda x: x / 127.5 - 1.0}


def picture_of(image, place, channels):
    """A noisy digit, grey or on a background whose colour says nothing about the class."""
    rng = np.random.default_rng(place)
    if channels == 1:
        return np.clip(40 + image * 11 + rng.normal(0, 45, image.shape), 0, 255).astype(np.uint8)
    coloured = image[..., None] * np.array([11, 8, 5]) + rng.integers(0, 80, 3) + rng.normal(0, 45, (*image.shape, 3))
    return np.clip(coloured, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folders of PNG files by channels, and arrays `(n, 8, 8[, 3]) uint8` with labels of other pictures to train on."""
    found = load_digits()
    folders, arrays = {}, {}
    for channels in (1, 3):
        folders[channels] = tmp_path_factory.mktemp(f"digits-{channels}")
        pictures, labels = [], []
        for index, (name, digit) in enumerate(zip(CLASSES, DIGITS, strict=True)):
            (folders[channels] / name).mkdir()
            for place in np.nonzero(found.target == digit)[0][:170]:
                picture = picture_of(found.images[place], place, channels)
                if len(list((folders[channels] / name).iterdir())) < 20:
                    Image.fromarray(picture).save(folders[channels] / name / f"{place}.png")
                else:
                    pictures.append(picture)
                    labels.append(index)
        arrays[channels] = (np.stack(pictures), np.array(labels))
    return folders, arrays


def fed(pictures, layout, pixels):
    """What a model of this layout was trained on, by numpy alone."""
    values = PIXELS[pixels](pictures.astype(np.float32))
    source = "hwc" if values.ndim == 4 else "hw"
    if source == "hw" and "c" in layout.axes:
        values, source = values[..., None], "hwc"
    values = values.transpose(0, *(1 + source.index(axis) for axis in layout.axes))
    return values.reshape(len(values), -1) if layout.flat else values


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Writes a `.keras` file that plain Keras trained on digits in a layout and a convention."""
    folder = tmp_path_factory.mktemp("trained")

    def write(layout, pixels):
        path = folder / f"{layout.channels}-{layout.axes}-{layout.flat}-{pixels}.keras"
        if not path.exists():
            keras.utils.set_random_seed(1)
            pictures, labels = digits[1][layout.channels]
            layers = [keras.layers.Flatten()] if not layout.flat else []
            scale = keras.layers.BatchNormalization(momentum=0.5)
            scale = keras.layers.BatchNormalization(momentum=0.5)
            head = [keras.layers.Dense(32, "tanh"), keras.layers.Dense(4, "softmax")]
            model = keras.Sequential([keras.Input(layout.shape((SIDE, SIDE))), *layers, scale, *head])
            model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
            values = fed(pictures, layout, pixels)
            for _ in range(40):
                model.train_on_batch(values, labels)
            model.save(path)
        return path

    return write


def files_of(folder):
    """Every picture of a folder with its label, read by Pillow."""
    paths = sorted(folder.glob("*/*.png"))
    return (
        paths,
        np.stack([np.asarray(Image.open(path)) for path in paths]),
        np.array([CLASSES.index(path.parent.name) for path in paths]),
    )


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("grey", "0-1"),
        ("grey-first", "0-255"),
        ("grey-no-channels", "-1-1"),
        ("grey-flat", "0-1"),
        ("grey-flat-columns", "0-1"),
        ("rgb-first", "-1-1"),
        ("rgb-flat", "0-1"),
        ("rgb-flat-first", "0-255"),
    ],
)
def test_every_layout_is_found_and_scored_as_keras_scores_it(digits, trained, quiet, name, pixels):
    """Planned, evaluated and served from a bare checkpoint: the predictions are those of plain Keras on numpy's reading."""
    from kresume.exports.graph import Served

    layout, folder = LAYOUTS[name], digits[0][LAYOUTS[name].channels]
    path = trained(layout, pixels)
    paths, pictures, labels = files_of(folder)
    expected = keras.saving.load_model(path).predict(fed(pictures, layout, pixels), verbose=0)
    accuracy = float((expected.argmax(axis=1) == labels).mean())
    assert accuracy > 0.8
    told = {"pixels": pixels} if layout.channels == 3 else {}  # digits hardly tell RGB conventions apart
    arguments = {"data": [str(folder)], "lr": 1e-3, "val_split": 0.5, **told}
    plan = make_plan(from_arguments(str(path), arguments), quiet)
    assert (plan.card.input, plan.card.pixels, plan.card.image_size) == (layout, pixels, (SIDE, SIDE))
    assert plan.before["all"]["accuracy"] > 0.75
    options = {"pixels": pixels, "classes": CLASSES, "axes": layout.axes if layout.flat else None}
    scores = evaluate(path, folder, cache="off", **options).scores["all"]
    assert scores["accuracy"] == accuracy
    loaded = load(Subject(str(path), **options))
    assert loaded.card.input == layout
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        served = Served(loaded.model, loaded.card, loaded.loss.outputs, 4)
        graph = tf.function(served.from_bytes, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        answers = graph(tf.constant([path.read_bytes() for path in paths]))["scores"]
        np.testing.assert_allclose(np.asarray(answers), expected, atol=1e-5)
