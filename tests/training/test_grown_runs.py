"""Tests `--grow` from the command to the export: new class folders become outputs behind the old ones."""

import json
import shutil
import zipfile

import keras
import pytest

import kresume
from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import ImagesError, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.images.manifest import Manifest
from kresume.options.given import to_command
from kresume.options.resolve import from_arguments
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    assert_same_model,
    kill_at_every_snapshot,
    lines_without_time,
    result_arrays,
    run_training,
    trained,
)

NEW = ("apple", "zebra")
"""The first of them sorts before every class of the parent."""
ALL = ("circle", "square", "stripes", *NEW)
ONE_EPOCH = {"epochs": 1, "batch_size": 5, "val_split": 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Trains a parent, and writes `more/` with images of two new classes and of an old one."""
    folder = tmp_path_factory.mktemp("grown")
    trained(folder / "runs" / "1-shapes", data=[str(pictures / "old")], **TINY)
    write_pictures(folder / "more", 6, 700, NEW)
    write_pictures(folder / "more", 2, 950, ("circle",))
    return folder


@pytest.fixture(scope="module")
def grown(folder):
    """Trains the child with two more classes."""
    run_training(
        str(folder / "runs/1-shapes"), add=[str(folder / "more")], grow=True, out=str(folder / "2"), **ONE_EPOCH
    )
    return folder / "2"


def test_a_run_grows_the_head_of_its_parent(folder, grown):
    """Labels are appended, never reordered; step 0 holds the old rows and slots bit for bit; `before` is the parent's."""
    record, parent = runs.open_run(grown).record, runs.open_run(folder / "runs/1-shapes")
    assert (record.card.classes, record.new_classes, record.balance) == (ALL, NEW, "class")
    assert record.rate.peak == parent.record.rate.peak
    before = snapshot.read_snapshot(snapshot.snapshot_path(parent.snapshots, parent.result_step()))
    # The only snapshot of a finished run is its result, so step 0 is read from a run that was just created.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kresume.training.loop.session.Session.train", lambda session: None)
        patch.setattr("kresume.training.resume.finish", lambda session: None)
        arguments = {"add": [str(folder / "more")], "grow": True, "out": str(folder / "begun"), **ONE_EPOCH}
        run_training(str(folder / "runs/1-shapes"), **arguments)
    begun, state = runs.open_run(folder / "begun"), snapshot.read_snapshot(folder / "begun/snapshots/step-00000000")
    wider = 0
    for name, array in before.arrays.items():
        if name.split("/")[0] in {"trainable", "non_trainable", "optimizer"}:
            kept = state.arrays[name][tuple(slice(0, size) for size in array.shape)]
            assert kept.dtype == array.dtype
            assert kept.tobytes() == array.tobytes(), name
            wider += state.arrays[name].shape != array.shape
    assert wider == 6  # kernel and bias, and two slots of each
    assert begun.record.before["old"] == runs.open_run(folder / "runs/1-shapes").record.result.scores["all"]
    assert begun.record.before["classes"]["zebra"]["recall"] in {0.0, None}


@pytest.mark.one_backend(trains=True)
def test_every_part_of_the_run_knows_the_new_classes(folder, grown):
    """The manifest, plain Keras, `eval`, a child and `log` have five classes in the same order."""
    assert Manifest.read(grown / "images.parquet").classes == ALL
    plain = keras.models.load_model(grown / "model.keras")
    assert plain.output_shape == (None, len(ALL))
    against = evaluate(str(grown), [str(folder / "more")], against=str(folder / "runs/1-shapes"))
    assert set(against.scores["classes"]) == set(ALL)
    assert against.against.scores["classes"]["zebra"]["recall"] == 0.0
    write_pictures(folder / "later", 3, 1500, ("zebra", "circle"))
    child = run_training(str(grown), add=[str(folder / "later")], out=str(folder / "3"), **ONE_EPOCH)
    record = runs.open_run(child.run).record
    assert (record.card.classes, record.new_classes, record.balance) == (ALL, (), "none")
    assert kresume.lineage(str(folder / "3")).generations[1].classes == len(ALL)


def test_a_grown_run_continues_exactly(tmp_path, folder):
    """Killed after any step, with averages, it ends with the same bits, lines and model."""
    names = kill_at_every_snapshot(
        tmp_path, places=(0, 2), checkpoint=str(folder / "runs/1-shapes"), add=[str(folder / "more")], grow=True, ema=0.9,
        **{**ONE_EPOCH, "epochs": 2},
    )  # fmt: skip
    assert len(names) == 2


@pytest.mark.one_backend(trains=True)
def test_the_same_command_gives_the_same_bits(tmp_path, folder, grown):
    """The sample of images that new rows start from, and random rows, follow from the seed."""
    again = {"add": [str(folder / "more")], "grow": True, **ONE_EPOCH}
    run_training(str(folder / "runs/1-shapes"), out=str(tmp_path / "a"), **again)
    assert_same_bytes(result_arrays(grown), result_arrays(tmp_path / "a"))
    assert lines_without_time(grown) == lines_without_time(tmp_path / "a")
    assert_same_model(grown, tmp_path / "a")


@pytest.mark.one_backend(trains=True)
def test_the_plan_says_what_grows_and_writes_nothing(folder, monkeypatch):
    """`plan` names the layer, the new classes with their images, and the balance; nothing is written."""
    monkeypatch.chdir(folder)
    there = sorted(path for path in folder.rglob("*"))
    plan = kresume.plan("runs/1-shapes", add=["more"], grow=True, quiet=True, **ONE_EPOCH)
    text = str(plan)
    assert "classes:  5 (the parent's, and 2 new): circle, square, stripes, apple, zebra" in text
    assert "grow:     3 -> 5 classes in the layer head: apple (" in text
    assert "balanced by class, because classes are new (balance='none' turns it off)" in text
    assert plan.as_dict()["growth"]
    assert "by class: circle 8+2, square 8+0, stripes 8+0, apple 0+6, zebra 0+6 (old + new)" in text
    zebra = plan.as_dict()["per_class"]["zebra"]
    assert (zebra["old"], zebra["new"], zebra["train"] + zebra["validation"]) == (0, 6, 6)
    assert sorted(path for path in folder.rglob("*")) == there
    random = kresume.plan("runs/1-shapes", add=["more"], grow=True, new_rows="random", balance="none", quiet=True)
    assert "new ones start from small random numbers" in str(random)
    assert "balanced by class" not in str(random)
    assert random.balance == "none"


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ImagesError, r"does not know: 'apple' \(6 images\), 'zebra' \(6 images\).*grow='apple,zebra'\)"),
        ({"grow": "zebra"}, ImagesError, r"does not know: 'apple' \(6 images\).*grow='zebra,apple' adds them too"),
        ({"grow": True, "head": "nowhere"}, UsageError, "head='nowhere' is no layer of the model: name a Dense"),
        ({"grow": True, "classes": "a,b,c,apple"}, UsageError, "other names would make right answers wrong"),
        ({"grow": True, "classes": "circle,square,stripes,pear"}, ImagesError, r"new class pear \(0 files\)"),
        ({"grow": True, "monitor": "classes.zebra.recall"}, None, ""),
    ],
)
def test_what_is_not_accepted_is_refused(folder, monkeypatch, arguments, error, words):
    """An unknown folder is an error that gives the ways on; so is a class without an image."""
    monkeypatch.chdir(folder)
    if error is None:
        assert kresume.plan("runs/1-shapes", add=["more"], quiet=True, **arguments).growth
        return
    with pytest.raises(error, match=words):
        kresume.plan("runs/1-shapes", add=["more"], quiet=True, **arguments)


@pytest.mark.one_backend(trains=True)
def test_images_of_an_old_class_become_a_new_one(folder, pictures, tmp_path, monkeypatch):
    """Those that lie in both folders are told as such; a class whose images all train is told to be unmeasured."""
    monkeypatch.chdir(folder)
    table = Manifest.read(runs.open_run("runs/1-shapes").manifest).table
    paths, labels, sides = (table.column(name).to_pylist() for name in ("path", "label", "side"))
    trains = [
        path for path, label, side in zip(paths, labels, sides, strict=True) if label == "circle" and side == "train"
    ]
    (tmp_path / "now" / "disc").mkdir(parents=True)
    for path in trains[:3]:
        shutil.copy(path, tmp_path / "now" / "disc")
    asked = {"data": [str(pictures / "old"), str(tmp_path / "now")], "grow": True, "lr": 1e-3, "trial": False}
    with pytest.raises(
        ImagesError, match=r"class disc \(3 files\): \d files have two labels, .*\(.*disc.*\).*on_conflict='new'"
    ):
        kresume.plan("runs/1-shapes", **asked)
    plan = kresume.plan("runs/1-shapes", **asked, on_conflict="new")
    assert plan.per_class["disc"] == {"old": 3, "new": 0, "train": 3, "validation": 0}
    assert "no validation image is of disc: it is trained and not measured (val='PATH' adds some)" in str(plan)


@pytest.mark.one_backend(trains=True)
def test_the_order_of_new_outputs_can_be_given(folder, monkeypatch):
    """`--classes` with the old names first gives new outputs their order, and a list accepts some folders."""
    monkeypatch.chdir(folder)
    order = "circle,square,stripes,zebra"
    plan = kresume.plan("runs/1-shapes", add=["more"], grow=True, classes=order, quiet=True)
    assert plan.card.classes == ("circle", "square", "stripes", "zebra", "apple")
    shutil.copytree("more/zebra", "some/zebra")
    plan = kresume.plan("runs/1-shapes", add=["some"], grow=["zebra", "tulip"], quiet=True)
    assert plan.card.classes == ("circle", "square", "stripes", "zebra")
    known = kresume.plan("runs/1-shapes", data=["more/../some"], grow="zebra", quiet=True)
    assert "no image of circle, square, stripes" in str(known)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["Circle", "circle_", "CIRCLE"])
def test_another_spelling_of_a_class_is_no_new_class(folder, tmp_path, monkeypatch, name):
    """A folder of another case would add a class beside the one that it means, unless it is named."""
    monkeypatch.chdir(folder)
    write_pictures(tmp_path, 2, 40, (name, "pear"))
    with pytest.raises(UsageError, match=rf"would add the class {name} beside circle: rename .*grow='{name}'"):
        kresume.plan("runs/1-shapes", add=[str(tmp_path)], grow=True, quiet=True)
    with pytest.raises(ImagesError, match=rf"Rename '{name}' to 'circle' in .*; if they are two classes .*grow="):
        kresume.plan("runs/1-shapes", add=[str(tmp_path)], quiet=True)
    plan = kresume.plan("runs/1-shapes", add=[str(tmp_path)], grow=[name, "pear"], quiet=True)
    assert plan.card.classes == ("circle", "square", "stripes", *sorted([name, "pear"]))


@pytest.mark.one_backend(trains=True)
def test_a_checkpoint_without_names_grows_by_the_further_names(folder, pictures, tmp_path, monkeypatch):
    """`--classes` gives the names of its outputs, then those of the new ones, as for a run."""
    monkeypatch.chdir(folder)
    with zipfile.ZipFile("runs/1-shapes/model.keras") as whole, zipfile.ZipFile(tmp_path / "bare.keras", "w") as bare:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            bare.writestr(name, whole.read(name))
    given = {"data": [str(pictures / "old")], "add": ["more"], "grow": True, "pixels": "0-255", "quiet": True}
    plan = kresume.plan(tmp_path / "bare.keras", classes="circle,square,stripes,zebra", **given)
    assert plan.card.classes == ("circle", "square", "stripes", "zebra", "apple")


@pytest.mark.one_backend(trains=True)
def test_a_lineage_goes_on_after_a_binary_parent_has_grown(tmp_path, folder):
    """The parent's --classes and --loss are not asked of a child that has more classes and another loss."""
    write_pictures(tmp_path / "two", 6, 60, ("circle", "square"))
    given = {"classes": "circle,square", "loss": "binary_crossentropy", "model": f"{tmp_path}/single.py:build"}
    (tmp_path / "single.py").write_text(
        "import keras\nL = keras.layers\n\ndef build():\n    return keras.Sequential([keras.Input((10, 10, 3)), "
        "L.Rescaling(1 / 255), L.Flatten(), L.Dense(1, activation='sigmoid')])\n"
    )
    run_training(data=[str(tmp_path / "two")], out=str(tmp_path / "1"), **{**TINY, "image_size": None}, **given)
    options = {"add": [str(folder / "more")], "grow": True, **ONE_EPOCH}
    run_training(str(tmp_path / "1"), out=str(tmp_path / "2"), **options)
    record = runs.open_run(tmp_path / "2").record
    assert record.card.classes == ("circle", "square", *NEW)
    assert record.loss.kind == "sparse_categorical_crossentropy"
    write_pictures(tmp_path / "later", 3, 5700, ("zebra",))
    child = kresume.plan(str(tmp_path / "2"), add=[str(tmp_path / "later")], quiet=True)
    assert child.card.classes == record.card.classes
    misspelt = kresume.plan(str(tmp_path / "2"), add=[str(tmp_path / "later")], grow="zebr", quiet=True)
    assert "names zebr: there is no such class folder" in str(misspelt)


@pytest.mark.one_backend(trains=True)
def test_a_bare_checkpoint_grows(folder, pictures, monkeypatch):
    """A `model.keras` without a record takes its classes from --data; those of --add are new."""
    monkeypatch.chdir(folder)
    model = keras.models.load_model("runs/1-shapes/model.keras")
    model.save("bare.keras")
    plan = kresume.plan("bare.keras", data=[str(pictures / "old")], add=["more"], grow=True, quiet=True)
    assert plan.card.classes == ALL
    assert plan.before["classes"]["apple"]["recall"] in {0.0, None}


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("given", "held", "written"),
    [
        (True, True, "--grow"),
        ("", True, "--grow"),
        ("rose", ("rose",), "--grow=rose"),
        ("rose,tulip", ("rose", "tulip"), "--grow=rose,tulip"),
        (["a b", "c,d"], ("a b", "c,d"), """--grow='a b,"c,d"'"""),
    ],
)
def test_the_option_is_read_and_written(given, held, written):
    """`--grow` stands alone or with names, in Python, YAML and the recorded command."""
    config = from_arguments("ckpt", {"grow": given})
    assert config.grow == held
    assert to_command(config) == f"kresume train --from ckpt {written}"
    assert type(config)(**json.loads(config.model_dump_json())).grow == held


@pytest.mark.one_backend
def test_the_command_line_accepts_both_forms(monkeypatch):
    """`--grow` before another option takes no value from it."""
    from click.testing import CliRunner

    from kresume import cli

    seen = []
    monkeypatch.setattr("kresume.training.preview.make_plan", lambda config, reporter: seen.append(config) or 1 / 0)
    for words in (["--grow", "--add", "x"], ["--add", "x", "--grow"], ["--grow=rose,tulip", "--add", "x"]):
        CliRunner().invoke(cli.cli, ["plan", "--from", "y", *words])
    assert [config.grow for config in seen] == [True, True, ("rose", "tulip")]
