"""Tests that no option is accepted that could have no effect: it works, or the command is refused before the first step."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import kresume
from kresume.errors import RunError, UsageError
from kresume.options.differences import describe_differences
from kresume.options.given import given as options_of
from kresume.options.resolve import from_arguments
from kresume.options.table import TrainConfig
from kresume.runs import open_run
from kresume.training.plan.amount import count_updates
from kresume.training.plan.images import val_split_of
from kresume.training.preview import make_plan
from kresume.training.start import start_or_continue
from tests.helpers.pictures import CLASSES
from tests.helpers.runs import TINY, run_training


@pytest.fixture(scope="module")
def parent(tmp_path_factory, pictures):
    """Trains a run on `old/` for two epochs."""
    path = tmp_path_factory.mktemp("options") / "1"
    run_training(None, data=[str(pictures / "old")], out=str(path), **TINY)
    return path


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("accumulate", "origin", "steps", "words"),
    [
        (None, 0, 5, ""),
        (1, 0, 5, ""),
        (2, 0, 6, "6 steps are 3 updates of 2 batches (--accumulate 2)"),
        (4, 8, 13, "13 steps are 3 updates of 4 batches (--accumulate 4); the gradients of the last 1 are not used"),
        (
            4,
            10,
            12,
            "12 steps are 3 updates of 4 batches (--accumulate 4); the first adds up 2, and divides by 4; "
            "the gradients of the last 2 are not used",
        ),
        (4, 3, 1, "1 step is 1 update of 4 batches (--accumulate 4); the first adds up 1, and divides by 4"),
    ],
)
def test_updates_are_counted_where_gradients_accumulate(accumulate, origin, steps, words):
    """Keras updates at multiples of the optimizer's own count."""
    assert count_updates(accumulate, origin, steps) == words
    assert "the first" not in count_updates(accumulate, origin, steps, carried=True)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"accumulate": 64}, "so no weight would change"),
        ({"val_split": 0, "patience": 1}, "--patience 1: there are no validation images"),
        ({"val_split": 0, "monitor": "val_accuracy"}, "--monitor val_accuracy: there are no validation images"),
        ({"monitor": "old.accuracy"}, "--monitor old.accuracy: there are no validation images"),
        ({"val_split": 0, "lr_schedule": "plateau"}, "--lr-schedule plateau: there are no validation images"),
        ({"new_rows": "random"}, "--new-rows random says how the outputs of new classes start: give --grow"),
        ({"head": "fc"}, "--head fc names the layer that --grow"),
        ({"metric": ["AUC"], "monitor": "auc"}, "--metric AUC is logged for the images of training"),
        ({"metric": ["AUC"], "monitor": "val_AUC"}, "--metric AUC is logged for the images of training"),
    ],
)
def test_what_could_do_nothing_is_refused_before_the_first_step(pictures, quiet, given, words):
    arguments = {"data": [str(pictures / "old")], **TINY, **given}
    with pytest.raises(UsageError) as raised:
        make_plan(from_arguments(None, arguments), quiet)
    assert words in str(raised.value)


@pytest.mark.one_backend(trains=True)
def test_what_is_measured_on_validation_images_may_be_monitored(pictures, quiet):
    """Also beside a metric of that name."""
    given = {"data": [str(pictures / "old")], **TINY, "metric": ["accuracy"], "monitor": "val_accuracy"}
    assert make_plan(from_arguments(None, given), quiet).amount.steps


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"map": "m.yaml"}, "--map m.yaml is about a checkpoint, and there is none: give --from, or leave it out"),
        ({"map_out": "m.yaml"}, "--map-out m.yaml is about a checkpoint, and there is none"),
        ({"optimizer_from": "o.pt"}, "--optimizer-from o.pt is about a checkpoint, and there is none"),
    ],
)
def test_options_about_a_checkpoint_need_one(pictures, quiet, given, words):
    """A new model has nothing that they could act on."""
    with pytest.raises(UsageError, match=words):
        make_plan(from_arguments(None, {"data": [str(pictures / "old")], **TINY, **given}), quiet)


@pytest.mark.one_backend(trains=True)
def test_a_split_that_is_decided_elsewhere_is_told(parent, pictures, tmp_path, quiet):
    """Recorded splits hold, and so do those of folders; what is asked beside them is an error or a note."""
    with pytest.raises(UsageError, match=r"--val-like keras:0.5:1 says how .* records which of its images validate"):
        make_plan(from_arguments(str(parent), {"data": [str(pictures / "old")], "val_like": "keras:0.5:1"}), quiet)
    for name, source in (("train", "old"), ("val", "new")):
        shutil.copytree(pictures / source, tmp_path / "both" / name)
    for data, told in ((pictures / "old", False), (tmp_path / "both", True)):
        plan = make_plan(from_arguments(None, {"data": [str(data)], **TINY, "val_split": 0.5}), quiet)
        assert any("--val-split 0.5 splits nothing" in note for note in plan.notes) is told


@pytest.mark.one_backend(trains=True)
def test_the_option_that_decides_is_named(parent, pictures, quiet):
    """Of `--epochs` and `--steps` the one that ends the run first; pixels that the parent was not trained on are noted."""
    arguments = {"add": [str(pictures / "new")]}
    for given, reason in (({"epochs": 1, "steps": 100}, "--epochs"), ({"epochs": 9, "steps": 2}, "--steps")):
        assert make_plan(from_arguments(str(parent), {**arguments, **given}), quiet).amount.reason == reason
    told = "records that it was trained on pixels 0-255: --pixels 0-1 feeds it others"
    for pixels, noted in (("0-1", True), ("0-255", False)):
        plan = make_plan(from_arguments(str(parent), {**arguments, "epochs": 1, "pixels": pixels}), quiet)
        assert any(told in note for note in plan.notes) == noted


@pytest.mark.one_backend(trains=True)
def test_what_a_run_records_is_not_overridden_by_what_a_model_without_records_needs(parent, pictures, tmp_path):
    """Another order of the recorded classes, or another size than the fixed one, would give wrong answers in silence."""
    val, turned = str(pictures / "val"), CLASSES[::-1]
    size = json.loads((parent / "run.json").read_text())["card"]["image_size"][0]
    for answer in (
        lambda **options: kresume.evaluate(parent, data=val, **options),
        lambda **options: kresume.predict(parent, val, **options),
        lambda **options: kresume.export(parent, tmp_path / "out", format="keras", **options),
    ):
        with pytest.raises(UsageError, match=r"another order would make right answers wrong\. Leave classes= out"):
            answer(classes=turned)
        with pytest.raises(UsageError, match=r"is fixed at .*; leave it out"):
            answer(image_size=(size + 4, size + 4))
    expected = kresume.evaluate(parent, data=val).scores["all"]
    assert kresume.evaluate(parent, data=val, classes=CLASSES, image_size=(size, size)).scores["all"] == expected


@pytest.mark.one_backend
def test_arguments_of_python_have_the_forms_that_users_have():
    """Arrays, generators, views of mappings and numbers of numpy are what they hold; a set has no order."""
    given = {
        "data": np.array(["a", "b"]), "add": (Path(each) for each in ("c", "d")), "classes": {"x": 1, "y": 0}.keys(),
        "image_size": np.int64(16), "epochs": np.int64(2), "require": "all.accuracy>=0",
    }  # fmt: skip
    config = from_arguments("p", given)
    assert (config.data, config.add, config.classes) == (("a", "b"), ("c", "d"), "x,y")
    assert (config.image_size, config.epochs, config.require) == ("16", 2, ("all.accuracy>=0",))
    assert from_arguments(None, {"classes": np.array(["b", "a"]), "data": "a"}).classes == "b,a"


class Table:
    """Stands for a DataFrame."""

    columns = ("path", "label")


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": np.zeros((2, 4, 4, 3))}, "--data: give paths or names, not a ndarray: pictures are read from files"),
        ({"data": [object()]}, "--data: give paths or names, not a object"),
        ({"add": Table()}, r"--add: a Table is not read: write it as a list, table\.to_csv"),
        ({"data": "a", "classes": {"x", "y"}}, "classes: a set has no order"),
        ({"data": "a", "classes": b"ab"}, "classes: give the names in the order"),
        ({"data": {"a", "b"}}, "--data: give paths or names in a list, not a set"),
        ({"data": {"a": 1}}, "--data: give paths or names in a list, not a dict"),
        ({"data": (each for each in ())}, "--data: an empty list names no source"),
    ],
)
def test_what_cannot_be_an_argument_says_what_can(given, words):
    with pytest.raises(UsageError, match=words):
        from_arguments("p", given)


@pytest.mark.one_backend(trains=True)
def test_functions_take_the_same_forms(parent, pictures):
    """Class names as an array, pictures as a generator; a picture in memory and an empty list are errors in words."""
    val = pictures / "val"
    expected = str(kresume.evaluate(parent, data=val))
    assert str(kresume.evaluate(parent, data=(val for _ in "1"), classes=np.array(CLASSES))) == expected
    assert kresume.predict(parent, sorted(val.rglob("*.png"))[:2]).images == 2
    with pytest.raises(UsageError, match="classes: a set has no order"):
        kresume.evaluate(parent, data=val, classes=set(CLASSES))
    for wrong, words in ((np.zeros((4, 4, 3)), "not a ndarray"), ([], "an empty list names no")):
        with pytest.raises(UsageError, match=words):
            kresume.predict(parent, wrong)
        with pytest.raises(UsageError, match=words):
            kresume.evaluate(parent, data=wrong)


@pytest.mark.one_backend(trains=True)
def test_a_run_is_found_from_another_folder(monkeypatch, tmp_path, pictures):
    """A notebook changes its folder; a run that a function returned stays where it is."""
    monkeypatch.chdir(tmp_path)
    run = kresume.resume(None, data=[str(pictures / "old")], out="1", quiet=True, trial=False, **{**TINY, "epochs": 1})
    count = len(run.events())
    with pytest.raises(RunError, match=r"extend it: `kresume.resume\('1', add='MORE_IMAGES'\)`"):
        kresume.resume(None, data=[str(pictures / "old")], out="1", trial=False, **{**TINY, "epochs": 1})
    monkeypatch.chdir(pictures)
    assert len(run.events()) == count > 0
    assert kresume.evaluate(run, data=pictures / "val").scores["all"]["images"] == 9


def inherited(run):
    """Returns the options of a run that extends this one and gives none."""
    return options_of(start_or_continue(from_arguments(str(run), {})).config)


@pytest.mark.one_backend(trains=True)
def test_without_leaves_out_an_option_of_the_parent(parent, pictures, tmp_path):
    """Options whose values have no `off` are switched off; the next generation does not have them either."""
    val = str(pictures / "val")
    given = {"patience": 3, "monitor": "val_loss", "max_forgetting": 90.0, "require": ["all.accuracy>=0"]}
    child, grandchild = tmp_path / "2", tmp_path / "3"
    run_training(str(parent), add=[str(pictures / "new")], val=[val], out=str(child), epochs=1, **given)
    assert given.keys() <= inherited(child).keys()
    run_training(
        str(child),
        out=str(grandchild),
        epochs=1,
        lr=1e-4,
        without=["patience", "--monitor", "max-forgetting", "require"],
    )
    record = json.loads((grandchild / "run.json").read_text())
    assert not given.keys() & record["options"].keys()
    assert record["options"]["batch_size"] == TINY["batch_size"]
    assert not given.keys() & inherited(grandchild).keys()


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("before", "given", "share", "words"),
    [
        ({"val_split": 0.3}, {}, 0.3, "all others are the parent's"),
        ({"val_split": 0.3}, {"val": ["v"]}, None, "no --val-split (the parent: 0.3)"),
        ({"val_split": 0.3}, {"val": ["v"], "without": ["val-split"]}, None, "no --val-split (the parent: 0.3)"),
        ({"val_split": 0.3}, {"without": ["val-split"]}, 0.1, "--val-split 0.1 (the parent: 0.3)"),
        ({"val_split": 0.3}, {"val": ["v"], "val_split": 0.2}, 0.2, "--val-split 0.2 (the parent: 0.3)"),
        ({"val_split": 0.3, "val": ["v"]}, {"val": ["v"]}, 0.3, "all others are the parent's"),
        ({"val_split": None, "val": ["v"]}, {"val": ["v"]}, None, "all others are the parent's"),
        ({"val_split": None, "val": ["v"]}, {}, 0.1, "--val-split 0.1 (the parent: off)"),
    ],
)
def test_validation_images_take_the_place_of_the_parents_share(parent, tmp_path, before, given, share, words):
    """The parent's `--val-split` took images of `--add` from training though the command gave `--val`, and no share."""
    shutil.copytree(parent, tmp_path / "1")
    run = open_run(tmp_path / "1")
    run.update(options={**{name: value for name, value in run.record.options.items() if name != "val_split"}, **before})
    start = start_or_continue(from_arguments(str(run.path), {"add": ["new"], **given}))
    assert val_split_of(start.config) == share
    options = TrainConfig(**open_run(run.path).record.options)
    assert words in describe_differences(options, start.config, start.given)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"without": ["patiense"]}, "did you mean patience"),
        ({"without": ["epochs"]}, "does not take --epochs over"),
        ({"without": ["patience"], "patience": 3}, "--patience is given, too"),
        (
            {"without": ["resize"]},
            "the checkpoint itself holds it, and trains with it: give another value with --resize",
        ),
        ({"without": ["nonsense"]}, "known are augment, .*patience"),
    ],
)
def test_without_names_an_option_that_a_child_takes_over(given, words):
    with pytest.raises(UsageError, match=words):
        from_arguments("runs/1", given)
    with pytest.raises(UsageError, match="about the options of a parent run"):
        from_arguments(None, {"without": ["patience"]})


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ""),
        ({"interpolation": "area"}, ""),  # the parent's own
        (
            {"interpolation": "nearest"},
            "trained with area, and `before` and the gates score it so; this run trains and is scored with nearest",
        ),
        ({"resize": "crop", "interpolation": "bilinear"}, "trained with area and stretch, and"),
    ],
)
def test_a_parent_is_scored_on_pictures_as_it_was_trained_on(parent, pictures, options, told):
    """Resized in another way for the run, its pictures are not: its score is the one that it has where it is used."""
    asked = {"add": [str(pictures / "new")], "trial": False, "quiet": True}
    plan = kresume.plan(str(parent), **asked, **options)
    # Which of the new ones are alike, and so validate, is decided on them as they are resized.
    assert plan.before["old"] == kresume.plan(str(parent), **asked, cache="off").before["old"]
    found = [note for note in plan.notes if "`before` and the gates" in note]
    assert len(found) == bool(told)
    assert told in "".join(found)


ANY_SIZE = """
import keras

def build():
    layers = keras.layers
    return keras.Sequential([
        keras.Input((None, None, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu"),
        layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax"),
    ])
"""


@pytest.mark.one_backend(trains=True)
def test_a_parent_that_takes_any_size_is_scored_at_its_own(pictures, tmp_path):
    """With another `--image-size` the run trains at that one; `before` and the gates compare with the parent as it is used."""
    (tmp_path / "own.py").write_text(ANY_SIZE)
    options = {**TINY, "model": f"{tmp_path / 'own.py'}:build", "image_size": "10", "epochs": 1}
    parent = run_training(data=[str(pictures / "old")], out=str(tmp_path / "parent"), **options).run
    asked = {"add": [str(pictures / "new")], "trial": False, "quiet": True}
    same, other = (kresume.plan(parent, **asked, **more) for more in ({}, {"image_size": 6}))
    assert other.card.image_size == (6, 6)
    assert other.before["old"] == same.before["old"]
    assert not [note for note in same.notes if "score it so" in note]
    (told,) = [note for note in other.notes if "score it so" in note]
    assert "trained with 10x10, and `before` and the gates score it so; this run trains and is scored with 6" in told


def test_an_unknown_argument_of_python_is_answered_with_the_name_of_an_argument():
    """A hyphen cannot be typed there."""
    with pytest.raises(UsageError, match=r"no option batch_sise: did you mean batch_size\?"):
        kresume.resume("runs/1", batch_sise=3)
    with pytest.raises(UsageError, match=r"known are .*bn_stats"):
        kresume.plan("runs/1", nonsense=3)
    with pytest.raises(UsageError, match=r"no option batch_sise: did you mean batch-size\?"):
        from_arguments("runs/1", {"batch_sise": 3})
