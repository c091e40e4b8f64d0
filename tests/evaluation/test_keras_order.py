"""Tests the order of the outputs that is assumed for a checkpoint of plain Keras: that of its sorted folders."""

import shutil
import tarfile
import unicodedata
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from kresume.class_names import as_known, canonical, read_classes
from kresume.drop_in.image_dataset import image_dataset
from kresume.errors import UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.exports.export import export
from kresume.images.collect import list_sources
from kresume.options.resolve import from_arguments
from kresume.reports import data
from kresume.runs import open_run
from kresume.training.preview import make_plan
from tests.helpers.archives import write_tar
from tests.helpers.runs import run_training

APPLE = "\u00c4pfel"
MAC = unicodedata.normalize("NFD", APPLE)
FRUIT = (MAC, "Birnen", "Zitronen")
TABLE = {
    "decomposed": FRUIT,
    "composed": (APPLE, "Birnen", "Zitronen"),
    "a blank before": (" zwetschge", "apfel", "birne"),
    "a blank behind": ("a ", "a b", "a"[:1] + "\u0308"),
    "a hard space": ("\u00a0b", "a", "c"),
    "digits": ("10", "2", "1"),
    "fractions": ("10.0", "2.0", "1.5"),
    "cases": ("ant", "Bee", "cow"),
    "letters behind z": ("\u00e9", "e\u0301a", "f"),
}
LAYOUTS = ("folder", "top folder", "train and val", "tar", "zip", "shards", "manifest")


def write(folder, names, pictures=1, *, ending="png"):
    """Writes pictures into folders; the shade tells the index of the name."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(pictures):
            array = np.full((12, 12, 3), 60 * index + 20, np.uint8)
            array[0, 0] = number, 100 * (ending == "bmp"), 0
            Image.fromarray(array).save(folder / name / f"{index}-{number}.{ending}")
    return folder


def laid_out(tmp_path, names, layout, quiet):
    """Writes the folders and returns `(the folder for Keras, the source for kresume)`."""
    below = {"top folder": "in/set", "train and val": "in/train"}.get(layout, "in")
    folder, source = write(tmp_path / below, names), tmp_path / "in"
    if layout == "train and val":  # the folders that validate are spelled otherwise
        write(source / "val", map(canonical, names), ending="bmp")
    if layout in {"tar", "shards"}:
        source = tmp_path / ("packed.tar" if layout == "tar" else "shards/1.tar")
        source.parent.mkdir(exist_ok=True)
        with tarfile.open(source, "w") as archive:
            archive.add(folder, "")
        source = source if layout == "tar" else source.parent
    if layout == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder))
    if layout == "manifest":
        source = tmp_path / "packed.parquet"
        data.write(data.scan([str(folder)], quiet), str(source))
    return folder, source


def order_of_keras(folder):
    """Returns the class names of Keras's loader, in canonical form."""
    found = keras.utils.image_dataset_from_directory(str(folder), image_size=(8, 8), verbose=False).class_names
    return tuple(map(canonical, found))


def of_keras(path, names=FRUIT):
    """Saves a model that tells the shades of `write`, with its outputs in the order of the sorted folders."""
    shades = np.array([60.0 * index + 20 for index in range(len(names))])
    model = keras.Sequential(
        [keras.Input((12, 12, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(len(names), "softmax")]
    )
    model.layers[-1].set_weights([np.tile(2 * shades / 3, (3, 1)) / 100, -(shades**2) / 100])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    return path


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", TABLE.values(), ids=TABLE)
def test_the_assumed_order_is_that_of_kerass_loader(tmp_path, names, layout, quiet):
    """Classes are in the order in which Keras sorts their folders, however they are spelled and packed."""
    folder, source = laid_out(tmp_path, names, layout, quiet)
    sources = list_sources(quiet, data=[str(source)])
    assert sources.assumed_order() == order_of_keras(folder)
    assert sources.classes == tuple(sorted(map(canonical, names)))  # a new model's, the same on every machine


@pytest.mark.one_backend(trains=True)
def test_lists_are_sorted_by_their_labels(tmp_path, quiet):
    """A list and shards with labels have no class folders: names are sorted, and numbers of outputs by value."""
    pictures = sorted(write(tmp_path / "in", FRUIT).glob("*/*"))
    lines = [f"{path},{label}" for path, label in zip(pictures, (APPLE, "b", "c"), strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    assert list_sources(quiet, data=[str(tmp_path / "list.csv")]).assumed_order() == ("b", "c", APPLE)
    items = [(f"{path.stem}.png", path.read_bytes()) for path in pictures]
    labels = [(f"{path.stem}.cls", label) for path, label in zip(pictures, (b"10", b"2", b"1"), strict=True)]
    write_tar(tmp_path / "shard.tar", sorted(items + labels))
    assert list_sources(quiet, data=[str(tmp_path / "shard.tar")]).assumed_order() == ("1", "2", "10")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("names", [FRUIT, (" zwetschge", "apfel", "birne")], ids=["decomposed", "blank"])
def test_a_model_of_keras_is_right_in_every_command(tmp_path, names, quiet):
    """Nothing names the outputs: `eval`, `--against`, `plan` and `train` read them as Keras's loader gave them."""
    folder, model = str(write(tmp_path / "in", names, 8)), of_keras(tmp_path / "m.keras", names)
    given = {"data": [folder], "pixels": "0-255"}
    assert evaluate(model, **given).scores["all"]["accuracy"] == 1.0
    compared = evaluate(model, **given, against=of_keras(tmp_path / "other.keras", names)).against
    assert compared.scores["all"]["accuracy"] == 1.0
    order = order_of_keras(folder)
    write(tmp_path / "val", map(canonical, names), 2, ending="bmp")
    options = {**given, "val": [str(tmp_path / "val")], "epochs": 1, "lr": 1e-9, "augment": "none"}
    plan = make_plan(from_arguments(str(model), options), quiet)
    assert plan.card.classes == order
    assert plan.classes_reason.startswith("assumed: the class folders, sorted by their names as Keras reads them; ")
    result = run_training(str(model), **options, out=str(tmp_path / "run"))
    assert open_run(result.run).record.card.classes == order
    assert result.after["all"]["accuracy"] == 1.0
    exported = export(model, tmp_path / "exported", format="keras", data=[folder])
    assert exported.parity.holds


@pytest.mark.one_backend(trains=True)
def test_a_model_that_is_right_by_chance_is_read_in_that_order_too(tmp_path, quiet):
    """A weak model cannot contradict a wrong order: it has to be right from the start."""
    model = keras.models.load_model(of_keras(tmp_path / "m.keras"))
    model.layers[-1].set_weights([np.zeros((3, 3)), np.zeros(3)])
    model.save(tmp_path / "weak.keras")
    options = {"data": [str(write(tmp_path / "in", FRUIT, 8))], "pixels": "0-255", "epochs": 1}
    assert make_plan(from_arguments(str(tmp_path / "weak.keras"), options), quiet).card.classes == (
        APPLE,
        "Birnen",
        "Zitronen",
    )


@pytest.mark.one_backend(trains=True)
def test_folders_of_several_spellings_need_the_order(tmp_path, quiet):
    """Of `a` and `b` with other spellings nobody knows which Keras sorted: an error has both orders."""
    model = of_keras(tmp_path / "m.keras")
    one, two = write(tmp_path / "a", FRUIT, 8), write(tmp_path / "b", map(canonical, FRUIT), 8, ending="bmp")
    given = {"data": [str(one), str(two)], "pixels": "0-255"}
    orders = (f"{APPLE},Birnen,Zitronen", f"Birnen,Zitronen,{APPLE}")
    config = from_arguments(str(model), {**given, "epochs": 1})
    for command in (lambda: evaluate(model, **given), lambda: make_plan(config, quiet)):
        with pytest.raises(UsageError) as raised:
            command()
        assert "A\\u0308pfel" in str(raised.value)
        assert all(order in str(raised.value) for order in orders)
    for order in (orders[0], orders[0].replace(APPLE, MAC)):
        assert evaluate(model, **given, classes=order).scores["all"]["accuracy"] == 1.0
        asked = from_arguments(str(model), {**given, "epochs": 1, "classes": order})
        assert make_plan(asked, quiet).card.classes == tuple(order.split(","))
    config = from_arguments(None, {"data": given["data"], "epochs": 1})
    assert make_plan(config, quiet).card.classes == ("Birnen", "Zitronen", APPLE)  # a new model may have any order
    for path in (one, two):  # sorted alike, whichever it was
        (path / "Birnen").rename(path / "Aal")
        shutil.rmtree(path / "Zitronen")
    two_outputs = of_keras(tmp_path / "two.keras", ("Aal", APPLE))
    assert evaluate(two_outputs, **given).scores["all"]["images"] == 32


@pytest.mark.one_backend(trains=True)
def test_image_dataset_gives_the_labels_of_kerass_loader(tmp_path):
    """A script that changes to `kresume.image_dataset` trains on with the same labels, with class_names or without."""
    folder = write(tmp_path / "in", FRUIT)
    options = {"image_size": (12, 12), "batch_size": 1, "shuffle": False, "verbose": False}
    for names in (None, ["Zitronen", MAC, "Birnen"], ["Zitronen", MAC]):
        theirs = keras.utils.image_dataset_from_directory(str(folder), class_names=names, **options)
        ours = image_dataset(folder, class_names=names, cache=None, **options)
        assert list(map(canonical, ours.class_names)) == list(map(canonical, theirs.class_names))
        count = len(theirs.class_names)
        read = [{int(y[0]): int(x[0, 5, 5, 0]) for x, y in each.take(count)} for each in (ours, theirs)]
        assert read[0] == read[1]
        assert len(read[0]) == count
    with pytest.raises(UsageError, match="one class stands twice"):
        image_dataset(folder, class_names=[MAC, APPLE, "Birnen"], **options)


@pytest.mark.one_backend(trains=True)
def test_classes_may_be_given_in_either_spelling(tmp_path, quiet):
    """The names of a run are the same in another spelling; one class is not named in two."""
    folder = str(write(tmp_path / "in", FRUIT, 8))
    run = run_training(data=[folder], image_size="12", epochs=1, out=str(tmp_path / "run")).run
    for names in (("Birnen", "Zitronen", APPLE), ("Birnen", " Zitronen", MAC)):
        config = from_arguments(run, {"data": [folder], "classes": names, "epochs": 1, "lr": 1e-3})
        assert make_plan(config, quiet).card.classes == ("Birnen", "Zitronen", APPLE)
        assert set(evaluate(run, data=[folder], classes=names).scores["classes"]) == {"Birnen", "Zitronen", APPLE}
    wrong = (MAC, "Birnen", "Zitronen")
    with pytest.raises(UsageError, match="another order would make right answers wrong"):
        evaluate(run, data=[folder], classes=wrong)
    with pytest.raises(UsageError, match="other names would make right answers wrong"):
        make_plan(from_arguments(run, {"data": [folder], "classes": wrong, "epochs": 1, "lr": 1e-3}), quiet)
    with pytest.raises(UsageError, match="stands twice"):
        read_classes(f"{APPLE},{MAC}")
    assert as_known((MAC, "x"), (APPLE, "b")) == (APPLE, "x")
    kiwi = unicodedata.normalize("NFD", "K\u00efwi")
    write(tmp_path / "more", (kiwi,), 4, ending="bmp")
    for grow in (kiwi, canonical(kiwi)):
        config = from_arguments(run, {"add": [str(tmp_path / "more")], "grow": grow, "epochs": 1, "lr": 1e-3})
        assert make_plan(config, quiet).card.classes == ("Birnen", "Zitronen", APPLE, canonical(kiwi))
    (tmp_path / "inbox" / MAC).mkdir(parents=True)
    shutil.copytree(tmp_path / "more" / kiwi, tmp_path / "inbox" / MAC / "2024-05")
    assert list_sources(quiet, data=[str(tmp_path / "inbox")], known=(APPLE,)).classes == (APPLE,)
