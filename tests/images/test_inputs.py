"""Tests models that expect grey pictures, rows of numbers, or channels first."""

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import kresume
from kresume.errors import UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.images import inputs
from kresume.models.load import Subject, load
from kresume.options.resolve import from_arguments
from kresume.training.preview import make_plan
from kresume.values.card import Card
from kresume.values.input_layout import RGB, InputLayout, read_layout
from tests.helpers.runs import kill_at_every_snapshot

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
DECODED = {"grey", "rgb-flat"}
"""Layouts that are served from files. What a graph decodes does not depend on the layout, and takes a second to trace."""
PIXELS = {"0-255": lambda x: x, "0-1": lambda x: x / 255.0, "-1-1": lambda x: x / 127.5 - 1.0}


def picture_of(image, place, channels):
    """Draws a noisy digit, grey or on a background whose colour does not depend on the class."""
    rng = np.random.default_rng(place)
    if channels == 1:
        return np.clip(40 + image * 11 + rng.normal(0, 45, image.shape), 0, 255).astype(np.uint8)
    coloured = image[..., None] * np.array([11, 8, 5]) + rng.integers(0, 80, 3) + rng.normal(0, 45, (*image.shape, 3))
    return np.clip(coloured, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Writes folders of PNG files by channels; returns other pictures and labels for training.

    The arrays are `(n, 8, 8[, 3]) uint8`.
    """
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
    """Computes the inputs for a layout, by numpy alone."""
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
            head = [keras.layers.Dense(32, "tanh"), keras.layers.Dense(4, "softmax")]
            model = keras.Sequential([keras.Input(layout.shape((SIDE, SIDE))), *layers, scale, *head])
            model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
            model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
            values = fed(pictures, layout, pixels)
            for _ in range(40):
                model.train_on_batch(values, labels)
            model.save(path)
        return path

    return write


def files_of(folder):
    """Reads every picture of a folder with its label, by Pillow."""
    paths = sorted(folder.glob("*/*.png"))
    return (
        paths,
        np.stack([np.asarray(Image.open(path)) for path in paths]),
        np.array([CLASSES.index(path.parent.name) for path in paths]),
    )


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("grey", "0-1"),
        ("grey-first", "0-255"),
        ("grey-no-channels", "-1-1"),
        ("grey-flat-columns", "0-1"),
        ("rgb-first", "-1-1"),
        ("rgb-flat", "0-1"),
    ],
)
@pytest.mark.sample("grey-0-1", "rgb-first--1-1", "grey-flat-columns-0-1")
def test_every_layout_is_found_and_scored_as_keras_scores_it(digits, trained, quiet, name, pixels):
    """Every layout is found: plan, eval and serving predict as plain Keras on arrays read by numpy."""
    from kresume.exports.graph import Served

    layout, folder = LAYOUTS[name], digits[0][LAYOUTS[name].channels]
    path = trained(layout, pixels)
    paths, pictures, labels = files_of(folder)
    expected = keras.saving.load_model(path).predict(fed(pictures, layout, pixels), verbose=0)
    accuracy = float((expected.argmax(axis=1) == labels).mean())
    assert accuracy > 0.8
    told = {"pixels": pixels} if layout.channels == 3 else {}  # digits hardly distinguish RGB conventions
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

        served = Served(loaded.model, loaded.card, loaded.loss.head, 4)
        if name in DECODED:
            graph = tf.function(served.from_bytes, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
            answers = graph(tf.constant([path.read_bytes() for path in paths]))["scores"]
        else:
            answers = served.from_pictures(
                tf.constant([np.asarray(Image.open(path).convert("RGB")) for path in paths])
            )["scores"]
        np.testing.assert_allclose(np.asarray(answers), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "size", "axes", "expected", "found"),
    [
        ((224, 224, 3), None, None, RGB, (224, 224)),
        ((3, 224, 224), None, None, InputLayout(3, "chw"), (224, 224)),
        ((96, 96, 1), None, None, InputLayout(1, "hwc"), (96, 96)),
        ((1, 20, 30), None, None, InputLayout(1, "chw"), (20, 30)),
        ((28, 28), None, None, InputLayout(1, "hw"), (28, 28)),
        ((20, 30), None, "wh", InputLayout(1, "wh"), (30, 20)),
        ((784,), None, None, InputLayout(1, "hw", True), (28, 28)),
        ((784,), None, "whc", InputLayout(1, "wh", True), (28, 28)),
        ((3072,), None, None, InputLayout(3, "hwc", True), (32, 32)),
        ((3072,), None, "chw", InputLayout(3, "chw", True), (32, 32)),
        ((600,), (20, 30), None, InputLayout(1, "hw", True), (20, 30)),
        ((1800,), (20, 30), None, InputLayout(3, "hwc", True), (20, 30)),
        ((None, None, 3), None, None, RGB, None),
        ((None, None, 1), (8, 8), None, InputLayout(1, "hwc"), None),
        ((3, 32, 3), None, None, RGB, (3, 32)),  # either axis may be the colours: the last, unless the size is known
        ((3, 32, 3), (32, 3), None, InputLayout(3, "chw"), (32, 3)),
    ],
)
@pytest.mark.one_backend
def test_a_shape_says_its_layout(shape, size, axes, expected, found):
    """A shape gives the likeliest layout; a known size or --axes decides between several."""
    assert read_layout(shape, size, axes) == (expected, found)


@pytest.mark.parametrize(
    ("shape", "size", "axes", "words"),
    [
        ((600,), None, None, "no square picture has so many, grey or RGB; give --image-size HEIGHTxWIDTH"),
        ((600,), (10, 10), None, "--image-size 10x10 has not so many pixels"),
        ((28, 28, 4), None, None, "RGB or grey"),
        ((28, 28, 3), None, "hw", "none of a picture with --axes hw"),
        ((28, 28), None, "xy", "--axes xy: give the order"),
        ((8, 28, 28, 3), None, None, "RGB or grey"),
    ],
)
@pytest.mark.one_backend
def test_a_shape_of_no_picture_says_what_to_give(shape, size, axes, words):
    """A shape that fits no picture is refused with a remedy."""
    with pytest.raises(UsageError, match=words):
        read_layout(shape, size, axes)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.one_backend
def test_the_way_back_undoes_the_way_there(name):
    """Converting to the model's layout and back returns the picture; a grey model returns it grey.

    The pictures are not square.
    """
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3)).astype(np.uint8)
    layout = LAYOUTS[name]
    expected = np.asarray(inputs.grey(pictures)) * np.ones(3) if layout.channels == 1 else pictures
    for pixels in PIXELS:
        values = inputs.to_input(pixels, layout)(pictures)
        assert tuple(values.shape) == (3, *layout.shape((4, 6)))
        plain = expected[..., 0] if layout.channels == 1 else expected
        np.testing.assert_allclose(np.asarray(values), fed(plain, layout, pixels), atol=1e-6)
        np.testing.assert_allclose(np.asarray(inputs.to_pictures(pixels, layout, (4, 6))(values)), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.one_backend
def test_grey_is_what_keras_reads_as_grayscale(tmp_path, kind):
    """A grey file gives the bytes of `color_mode="grayscale"`, a coloured one up to rounding.

    For a coloured JPEG, libjpeg returns the stored brightness, before colours outside 0..255 are clipped.
    """
    from kresume.images.decode import decode
    from kresume.values.decode_spec import DecodeSpec

    rng = np.random.default_rng(0)
    levels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    for mode, most, mean in (("L", 0, 0.0), ("RGB", 1 if kind == "PNG" else 10, 0.6)):
        folder = tmp_path / mode / "a"
        folder.mkdir(parents=True)
        Image.fromarray(levels).convert(mode).save(folder / f"picture.{kind.lower()}", kind)
        read = keras.utils.image_dataset_from_directory(
            tmp_path / mode, labels=None, color_mode="grayscale", image_size=(32, 32), verbose=False
        )
        expected = next(iter(read)).numpy()[0]
        data = next(folder.iterdir()).read_bytes()
        ours = np.asarray(inputs.grey(decode(data, DecodeSpec(32, 32, "stretch", "bilinear"))[None]))[0]
        assert np.abs(ours - expected).max() <= most
        assert np.abs(ours - expected).mean() <= mean
        data_set = kresume.image_dataset(
            tmp_path / mode, color_mode="grayscale", image_size=(32, 32), batch_size=1, label_mode=None, cache=None
        )
        assert np.abs(next(iter(data_set)).numpy()[0] - ours).max() <= (0 if mode == "L" else 0.51)


@pytest.mark.one_backend(trains=True)
def test_a_convention_of_colours_is_refused_for_grey(digits, trained, quiet):
    """A colour convention is refused for a model of one channel.

    `caffe` subtracts another number from each colour, so a grey model cannot have been trained with it.
    """
    path = trained(LAYOUTS["grey"], "0-1")
    with pytest.raises(UsageError, match="--pixels caffe is for RGB images, but the model expects grey images"):
        make_plan(from_arguments(str(path), {"data": [str(digits[0][1])], "lr": 1e-3, "pixels": "caffe"}), quiet)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("structure", ["dictionary", "list"])
def test_a_picture_that_the_model_takes_by_name(digits, tmp_path, structure):
    """A model whose one input is in a dictionary or a list is trained and scored in silence as any other."""
    picture = keras.Input((SIDE, SIDE, 1), name="image")
    scores = keras.layers.Dense(4, "softmax")(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(picture)))
    model = keras.Model({"image": picture} if structure == "dictionary" else [picture], scores)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "named.keras")
    folder = digits[0][1]
    run = kresume.resume(
        str(tmp_path / "named.keras"), data=str(folder), epochs=1, batch_size=40, out=str(tmp_path / "run"), quiet=True
    )
    trained = keras.saving.load_model(run.model)
    _, pictures, labels = files_of(folder)
    values = pictures[..., None].astype("float32")
    expected = trained.predict({"image": values} if structure == "dictionary" else [values], verbose=0)
    found = kresume.evaluate(str(run.path), data=str(folder), cache="off").scores["all"]["accuracy"]
    assert found == float((expected.argmax(axis=1) == labels).mean())


@pytest.mark.one_backend
def test_a_card_of_before_means_rgb():
    """A `kresume.json` or `run.json` without `input` means (height, width, 3); other fields round-trip."""
    card = Card(("a", "b"), (4, 6), "0-1", "stretch", "area", input=LAYOUTS["grey-flat-columns"])
    assert Card.from_dict(card.as_dict()) == card
    assert card.input_shape == (24,)
    old = {name: value for name, value in card.as_dict().items() if name != "input"}
    assert Card.from_dict(old).input == RGB


@pytest.mark.one_backend(trains=True)
def test_a_grey_run_is_exact_and_replaces_a_model_of_another_layout(digits, trained, tmp_path):
    """A grey run continues exactly, plain Keras scores it alike, and it serves clients of another layout.

    It trains with augmentation. The old model expected (8, 8) in 0-1, the new one expects 64 numbers in -1-1.
    """
    import tensorflow as tf

    from kresume import runs
    from kresume.exports.export import export

    layout, folder = LAYOUTS["grey-flat-columns"], digits[0][1]
    parent = trained(layout, "-1-1")
    options = {"data": [str(folder)], "epochs": 1, "batch_size": 16, "lr": 1e-3, "pixels": "-1-1", "val_split": 0.3}
    options |= {"axes": "wh", "augment": "light", "mixup": 0.2, "loss": "categorical_crossentropy"}
    options |= {"bn_stats": "moving"}  # recomputed ones make the model answer two conventions alike
    kill_at_every_snapshot(tmp_path, [1], checkpoint=str(parent), **options)
    run = runs.open_run(tmp_path / "whole")
    assert run.record.as_dict()["card"]["input"] == {"channels": 1, "axes": "wh", "flat": True}
    _, pictures, labels = files_of(folder)
    model = keras.saving.load_model(run.path / "model.keras")
    expected = model.predict(fed(pictures, layout, "-1-1"), verbose=0)
    accuracy = float((expected.argmax(axis=1) == labels).mean())
    assert evaluate(run, folder, cache="off").scores["all"]["accuracy"] == accuracy > 0.8

    weights = [tf.Variable(np.asarray(variable.value)) for variable in model.trainable_variables]
    moving = [tf.Variable(np.asarray(variable.value)) for variable in model.non_trainable_variables[:2]]
    module = tf.Module()
    module.held = [*weights, *moving]

    def old(images):
        row = tf.reshape(tf.transpose(images, (0, 2, 1)) * 2.0 - 1.0, (-1, SIDE * SIDE))
        scaled = (row - moving[0]) / tf.sqrt(moving[1] + 1e-3) * weights[0] + weights[1]
        return {"scores": tf.nn.softmax(tf.tanh(scaled @ weights[2] + weights[3]) @ weights[4] + weights[5])}

    spec = tf.TensorSpec((None, SIDE, SIDE), tf.float32, name="digits")
    tf.saved_model.save(
        module, str(tmp_path / "old"), signatures=tf.function(old, input_signature=[spec], autograph=False)
    )
    (tmp_path / "old" / "assets" / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    result = export(run, tmp_path / "serving" / "digits", like=tmp_path / "old", data=folder)
    assert result.parity.agreement == 1.0
    served = tf.saved_model.load(result.path)
    answers = served.signatures["serving_default"](digits=tf.constant(pictures / 255.0, tf.float32))["scores"]
    np.testing.assert_allclose(np.asarray(answers), expected, atol=1e-5)


@pytest.mark.one_backend
def test_arguments_of_python_are_one_or_several(tmp_path):
    """`evaluate`, `predict` and `export` take a size and files in the forms that `plan` and `resume` take."""
    for size in (64, "64", "64x64", (64, 64), [64, 64]):
        assert Subject.of("x", image_size=size).image_size == (64, 64)
    assert Subject.of("x").image_size is None
    for size in ("wide", 0, (0, 3), (1, 2, 3)):
        with pytest.raises(UsageError, match="give N or HEIGHTxWIDTH"):
            Subject.of("x", image_size=size)
    for given in ("own.py", Path("own.py"), ["own.py"], (Path("own.py"),)):
        assert Subject.of("x", imports=given).imports == ("own.py",)
    assert Subject.of("x", imports=["a.py", "b.py"], classes="b,a").classes == ("b", "a")
