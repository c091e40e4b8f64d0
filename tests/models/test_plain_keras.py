"""Tests the printed line of code that feeds the model in plain Keras as it was trained."""

import json
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kresume.class_names import canonical
from kresume.exports.export import export
from kresume.images import collect
from kresume.images.decode import decode, shrinks_some
from kresume.images.folder_names import folder_names
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
from tests.helpers.runs import TINY, run_training

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


APPLE = "\u00c4pfel"
MAC = unicodedata.normalize("NFD", APPLE)
NAMES = {
    "decomposed": ((MAC, "Birnen", "Zitronen"), ("Birnen", "Zitronen", APPLE)),
    "decomposed, at the same place": (("B\u0061\u0308ume", "Aal", "Zitronen"), ("Aal", "B\u00e4ume", "Zitronen")),
    "composed": ((APPLE, "Birnen", "Zitronen"), ("Birnen", "Zitronen", APPLE)),
    "a blank before": ((" zwetschge", "apfel", "birne"), ("apfel", "birne", "zwetschge")),
    "a blank behind": (("a ", "a b", "c"), ("a", "a b", "c")),
    "a hard space": (("\u00a0b", "a", "c"), ("a", "b", "c")),
    "digits": (("10", "2", "1"), ("1", "10", "2")),
    "fractions": (("10.0", "2.0", "1.0"), ("1", "10", "2")),
    "the order of a checkpoint": (("cat", "Dog", "ant"), ("cat", "Dog", "ant")),
    "that of a checkpoint of Keras": ((MAC, "Birnen", "Zitronen"), (APPLE, "Birnen", "Zitronen")),
    "the user's spelling": ((APPLE, "Birnen", "Zitronen"), (MAC, "Birnen", "Zitronen")),
    "both cases": (("Ant", "bee", "Cow"), ("Ant", "Cow", "bee")),
}


def grey(folder, names, suffix=".png"):
    """Writes a picture for each class folder; its shade tells the name."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 10, 3), 20 * index + 10, np.uint8)).save(folder / name / f"{index}{suffix}")
    return folder


def table_of(classes, *sources):
    quiet = Reporter(quiet=True)
    listed = collect.Sources(list_images(list(sources), quiet)).named(classes)
    found = prepare(listed.data.files, DecodeSpec(12, 10), None, quiet)
    return merge(None, found, None, None, classes=classes, val_split=None, generation=0).manifest


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("where", ["folder", "train and val", "tar", "list"])
@pytest.mark.parametrize(("names", "classes"), NAMES.values(), ids=NAMES)
def test_the_line_names_the_folders_as_they_are_spelled(tmp_path, names, classes, where):
    """The line gives each picture the output of its class, however its folder spells the name of the class."""
    data = grey(tmp_path / "data" / ("train" if where == "train and val" else ""), names)
    source = tmp_path / "data"
    if where == "train and val":
        grey(source / "val", names[:1], ".bmp")
    if where == "tar":
        source = tmp_path / "data.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(data, "data")
    if where == "list":
        source = tmp_path / "list.csv"
        lines = [f'"{path}","{path.parent.name}"' for path in data.glob("*/*.png")]
        source.write_text("\n".join(["path,label", *lines]))
    folders = folder_names(table_of(classes, source))
    line = feeding_line(card(classes=classes, interpolation="nearest"), folders=folders)
    values, labels = loaded(line, data)
    shades = {canonical(name): 20 * index + 10 for index, name in enumerate(names)}
    assert {int(label): int(value[0, 0, 0]) for value, label in zip(values, labels, strict=True)} == {
        index: shades[canonical(name)] for index, name in enumerate(classes)
    }


@pytest.mark.one_backend(trains=True)
def test_a_folder_of_another_spelling_is_refused_by_keras_not_mixed_up(tmp_path):
    """Where another spelling of the folders gives another order, the line names them, and Keras refuses others."""
    for classes in ((APPLE, "Birnen", "Zitronen"), ("Birnen", "Zitronen", APPLE)):
        folders = folder_names(table_of(classes, grey(tmp_path / "mac", (MAC, "Birnen", "Zitronen"))))
        line = feeding_line(card(classes=classes), folders=folders)
        assert r"'A\u0308pfel'" in line  # MAC and APPLE look alike
        with pytest.raises(ValueError, match="class_names"):
            loaded(line, grey(tmp_path / "linux", (APPLE, "Birnen", "Zitronen")))


@pytest.mark.one_backend
def test_folders_that_spell_one_class_differently_are_told(tmp_path):
    """Keras takes two spellings of a name for two classes: the line says so, and names the usual one."""
    one = grey(tmp_path / "1", (MAC, "Birnen"))
    two = grey(tmp_path / "2", (APPLE,), ".bmp")
    grey(tmp_path / "1", (MAC, MAC), ".gif")
    folders = folder_names(table_of(("Birnen", APPLE), one, two))
    assert folders == {APPLE: (MAC, APPLE), "Birnen": ("Birnen",)}
    line = feeding_line(card(classes=("Birnen", APPLE)), folders=folders)
    assert r"class_names=['Birnen', 'A\u0308pfel']" in line
    assert line.endswith(rf"# nearly: Keras's loader takes 'A\u0308pfel' and '{APPLE}' for different classes")


@pytest.mark.one_backend
def test_pictures_in_no_folder_of_their_class_say_nothing_of_its_name(tmp_path):
    """Lists, corrected labels: the name of the class is the best guess."""
    data = grey(tmp_path / "data", ("cat", "Dog"))
    lines = [f"{path},{'dog' if path.parent.name == 'Dog' else 'emu'}" for path in data.glob("*/*.png")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    assert folder_names(table_of(("dog", "emu"), tmp_path / "list.csv")) == {}


def test_train_and_export_name_the_folders(tmp_path):
    """The last block, `model.keras`, its export and the export of that export name the folders as they are."""
    for index in range(6):
        grey(tmp_path / "data", (" zwetschge", "apfel"), f"{index}.png")
    run = Path(run_training(data=[str(tmp_path / "data")], out=str(tmp_path / "run"), **TINY).run)
    named = "class_names=['apfel', ' zwetschge']"
    assert named in str(json.loads(zipfile.ZipFile(run / "model.keras").read("kresume.json"))["feed"])
    shutil.copy(run / "model.keras", tmp_path / "model.keras")
    for index, source in enumerate((run, tmp_path / "model.keras")):
        out = tmp_path / f"exported-{index}"
        export(source, out, format="keras")
        assert named in str(json.loads(zipfile.ZipFile(out / "model.keras").read("kresume.json"))["feed"])
