"""Tests `--rename`: a class has another name from now on, and its output, images and scores stay what they are."""

import json
import shutil

import keras
import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.class_renames import in_metrics, join_rename, of_labels, read_renames
from kresume.errors import ImagesError, NothingNew, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.images.manifest import Manifest
from kresume.options.resolve import from_arguments, resolve
from kresume.reports.differences import compare_runs
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    kill_at_every_snapshot,
    result_arrays,
    run_training,
    trained,
)

OLD, NOW = ("circle", "square", "stripes"), ("circle", "square", "Streifen")
RENAME = ["stripes=Streifen"]
ONE_EPOCH = {"epochs": 1, "batch_size": 5, "lr": 1e-3, "trial": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Trains a parent; `now/` holds its images, the folder of one class renamed; `more/` new images of both spellings."""
    folder = tmp_path_factory.mktemp("renamed")
    shutil.copytree(pictures / "old", folder / "old")
    conditions = {"require": ["classes.stripes.recall>=0"], "monitor": "classes.stripes.f1"}
    trained(folder / "1-shapes", data=[str(folder / "old")], **conditions, **TINY)
    shutil.copytree(folder / "old", folder / "now")
    (folder / "now" / "stripes").rename(folder / "now" / "Streifen")
    write_pictures(folder / "more-old", 6, 700, OLD)
    shutil.copytree(folder / "more-old", folder / "more")
    (folder / "more" / "stripes").rename(folder / "more" / "Streifen")
    return folder


@pytest.fixture(scope="module")
def renamed(folder):
    """Trains the child in which a class has another name."""
    sources = {"data": [str(folder / "now")], "add": [str(folder / "more")]}
    run_training(str(folder / "1-shapes"), **sources, rename=RENAME, out=str(folder / "2-shapes"), **ONE_EPOCH)
    return folder / "2-shapes"


def test_the_child_differs_in_the_name_alone(folder, renamed):
    """Weights, scores of the parent and rows of images are those of the same command with the old name."""
    sources = {"data": [str(folder / "old")], "add": [str(folder / "more-old")]}
    run_training(str(folder / "1-shapes"), **sources, out=str(folder / "as-it-was"), **ONE_EPOCH)
    assert_same_bytes(result_arrays(folder / "as-it-was"), result_arrays(renamed))
    plain, now = runs.open_run(folder / "as-it-was").record, runs.open_run(renamed).record
    for one, other in ((plain.before, now.before), (plain.result.scores, now.result.scores)):
        assert list(other["classes"]) == list(NOW)
        assert list(one["classes"].values()) == list(other["classes"].values())
        assert one["all"] == other["all"]
    parent = runs.open_run(folder / "1-shapes").record
    assert now.before["old"] == parent.result.scores["all"]
    tables = [Manifest.read(folder / name / "images.parquet") for name in ("as-it-was", "2-shapes")]
    assert (tables[0].classes, tables[1].classes) == (OLD, NOW)
    assert tables[0].labels.tolist() == tables[1].labels.tolist()
    assert set(tables[1].table.column("label").to_pylist()) == set(NOW)


@pytest.mark.one_backend(trains=True)
def test_every_part_of_the_run_has_the_new_name(folder, renamed, tmp_path):
    """The card, conditions taken over, `model.keras`, an export, `log` and `compare` know the class by its new name."""
    record = runs.open_run(renamed).record
    assert (record.card.classes, record.new_classes) == (NOW, ())
    assert record.options["require"] == ["classes.Streifen.recall>=0"]
    assert (record.options["monitor"], record.options["rename"]) == ("classes.Streifen.f1", RENAME)
    assert "stripes" not in json.dumps(record.result.scores)
    keras.models.load_model(renamed / "model.keras")
    assert "stripes" not in json.dumps(kresume.read_checkpoint(str(renamed / "model.keras")).card.as_dict())
    kresume.export(str(renamed), str(tmp_path / "served"), format="keras")
    assert kresume.read_checkpoint(str(next((tmp_path / "served").rglob("*.keras")))).card.classes == NOW
    log = kresume.lineage(str(renamed))
    assert [each.renamed for each in log.generations if each.renamed] == [{"stripes": "Streifen"}]
    assert "renamed stripes -> Streifen" in str(log)
    differences = compare_runs(folder / "1-shapes", renamed)
    assert differences.images.relabelled == 0
    assert list(differences.images.classes) == list(NOW)
    assert None not in differences.results["classes.Streifen.recall"]
    assert {change.name for change in differences.options} & {"--require", "--monitor"} == set()
    assert "classes renamed: stripes -> Streifen" in str(differences)
    against = evaluate(str(renamed), [str(folder / "now")], against=str(folder / "1-shapes"))
    assert against.against.scores["classes"]["Streifen"] is not None
    own = evaluate(str(folder / "1-shapes"), [str(folder / "old")])
    assert against.against.scores["classes"]["Streifen"] == own.scores["classes"]["stripes"]


def test_a_child_and_one_of_a_checkpoint_alone_go_on_with_the_new_name(folder, renamed, tmp_path):
    """A child inherits the name, not the option; `model.keras` takes the option as a run does."""
    write_pictures(folder / "later", 3, 1500, NOW[:2])
    child = run_training(str(renamed), add=[str(folder / "later")], out=str(tmp_path / "3"), **ONE_EPOCH)
    record = runs.open_run(child.run).record
    assert (record.card.classes, "rename" in record.options) == (NOW, False)
    bare = shutil.copy(renamed / "model.keras", tmp_path / "bare.keras")
    plan = kresume.plan(bare, data=[str(folder / "old")], rename={"Streifen": "stripes"}, quiet=True, **ONE_EPOCH)
    assert plan.card.classes == OLD
    with pytest.raises(UsageError, match=r"rename=\['stripes=Streifen'\]: .* calls the class Streifen already"):
        kresume.plan(str(renamed), rename=RENAME, quiet=True, **ONE_EPOCH)


def test_a_renamed_run_continues_exactly(tmp_path, folder):
    """Killed after any step, it ends with the same bits and lines."""
    sources = {"data": [str(folder / "now")], "add": [str(folder / "more")], "rename": RENAME}
    names = kill_at_every_snapshot(
        tmp_path, places=(0, 2), checkpoint=str(folder / "1-shapes"), **sources, **{**ONE_EPOCH, "epochs": 2}
    )
    assert len(names) == 2


@pytest.mark.one_backend(trains=True)
def test_the_plan_tells_the_new_name_and_takes_folders_of_both(folder):
    """A folder of the old name, of a colleague who has not renamed it, is the class; a note asks to rename it."""
    plan = kresume.plan(
        str(folder / "1-shapes"),
        data=[str(folder / "now")],
        add=[str(folder / "more-old")],
        rename=RENAME,
        quiet=True,
        trial=False,
    )
    assert "classes:  3 (the parent's, 1 renamed: stripes -> Streifen): circle, square, Streifen" in str(plan)
    assert plan.per_class["Streifen"]["new"] == 6
    assert any(
        note.startswith("6 images are still under the name stripes and count as Streifen") for note in plan.notes
    )
    assert "require" not in str(plan.differs)
    assert "monitor" not in str(plan.differs)


@pytest.mark.one_backend(trains=True)
def test_a_rename_alone_is_work_for_a_run_with_known_images(folder):
    """`--add` with a renamed folder of known images makes a run with the option, and names it without."""
    given = {"add": [str(folder / "old")], "quiet": True, "epochs": 1, "trial": False}
    for add in ([str(folder / "old")], []):
        assert kresume.plan(str(folder / "1-shapes"), rename=RENAME, **{**given, "add": add}).images["new"] == 0
    with pytest.raises(NothingNew):
        kresume.plan(str(folder / "1-shapes"), **given)


@pytest.mark.one_backend(trains=True)
def test_folders_that_keep_the_old_name_lose_no_class_later(folder, tmp_path):
    """A later run without the option knows the images in a folder of the old name; new ones there are an error."""
    given = {"data": [str(folder / "old")], "rename": RENAME}
    run_training(str(folder / "1-shapes"), out=str(tmp_path / "2"), **given, **ONE_EPOCH)
    shutil.copytree(folder / "more" / "circle", tmp_path / "more" / "circle")
    shutil.copytree(folder / "more" / "square", tmp_path / "more" / "square")
    later = {"data": [str(folder / "old")], "quiet": True, **ONE_EPOCH}
    plan = kresume.plan(str(tmp_path / "2"), add=[str(tmp_path / "more")], **later)
    assert plan.per_class["Streifen"]["old"] == 8
    with pytest.raises(ImagesError, match=r"does not know: 'stripes' \(6 images\)"):
        kresume.plan(str(tmp_path / "2"), add=[str(folder / "more-old")], **later)


@pytest.mark.one_backend(trains=True)
def test_two_classes_swap_their_names(folder, tmp_path):
    """The names change at once; images in a folder of a name are of the class that has it now."""
    shutil.copytree(folder / "old", tmp_path / "swapped")
    (tmp_path / "swapped" / "circle").rename(tmp_path / "swapped" / "x")
    (tmp_path / "swapped" / "square").rename(tmp_path / "swapped" / "circle")
    (tmp_path / "swapped" / "x").rename(tmp_path / "swapped" / "square")
    before = Manifest.read(folder / "1-shapes" / "images.parquet")
    swap = {"rename": ["circle=square", "square=circle"], "data": [str(tmp_path / "swapped")]}
    run_training(str(folder / "1-shapes"), **swap, out=str(tmp_path / "2"), **ONE_EPOCH)
    after = Manifest.read(tmp_path / "2" / "images.parquet")
    assert after.classes == ("square", "circle", "stripes")
    assert np.array_equal(before.labels, after.labels)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("grow", [None, True])
@pytest.mark.parametrize("copied", [True, False])
def test_a_renamed_folder_is_found_without_the_option(folder, tmp_path, grow, copied):
    """Its images are all of one known class: neither left out nor given an output of their own; the way is named."""
    root = tmp_path / "copy"
    shutil.copytree(folder / "old", root / "old")
    trained(root / "run", data=[str(root / "old")], **TINY)
    if copied:
        shutil.copytree(root / "old", root / "now")
    else:
        (root / "old").rename(root / "now")
    (root / "now" / "stripes").rename(root / "now" / "Streifen")
    for role in ("data", "add") if copied else ("data",):
        with pytest.raises(
            ImagesError,
            match=r"class stripes \(8 recorded images\) .* Streifen now.*rename=\['stripes=Streifen'\] keeps",
        ):
            kresume.plan(str(root / "run"), **{role: [str(root / "now")]}, grow=grow, quiet=True, epochs=1)


@pytest.mark.one_backend(trains=True)
def test_part_of_a_class_under_another_name_is_a_mixture(folder, tmp_path):
    """Some images of a class under an unknown name stay what they were: two labels; the message names both ways."""
    some = tmp_path / "part" / "Streifen"
    some.mkdir(parents=True)
    for path in sorted((folder / "old" / "stripes").iterdir())[:3]:
        shutil.copy(path, some)
    shutil.copytree(folder / "old" / "circle", tmp_path / "part" / "circle")
    with pytest.raises(NothingNew, match=r"on_conflict='new' uses the new label; rename=\['stripes=Streifen'\] if"):
        kresume.plan(str(folder / "1-shapes"), add=[str(tmp_path / "part")], quiet=True, epochs=1)


@pytest.mark.one_backend(trains=True)
def test_a_checkpoint_without_images_gets_a_hint(folder, tmp_path):
    """One unknown class beside one known class without images may be it."""
    bare = shutil.copy(folder / "1-shapes" / "model.keras", tmp_path / "bare.keras")
    with pytest.raises(
        ImagesError, match=r"'Streifen' \(8 images\).*if Streifen is the class stripes under a new name, ren"
    ):
        kresume.plan(bare, data=[str(folder / "now")], quiet=True, **ONE_EPOCH)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (["strips=Streifen"], r"has no class strips; did you mean stripes\? It knows circle, square, stripes"),
        (["stripes=circle"], "has a class circle beside stripes, .* renaming merges no classes"),
        (["stripes=a", "stripes=b"], "stripes is renamed twice, to a and to b"),
        (["stripes=a", "circle=a"], "stripes would be a, too"),
        (["stripes"], "give OLD=NEW"),
        (["stripes=stripes"], "its name already"),
    ],
)
def test_names_that_cannot_be_given_are_refused(folder, rename, message):
    """Nothing is trained for a name that is unknown, taken, or given twice."""
    with pytest.raises(UsageError, match=message):
        kresume.plan(str(folder / "1-shapes"), rename=rename, quiet=True, **ONE_EPOCH)


@pytest.mark.one_backend
def test_a_rename_needs_a_checkpoint_and_its_head(folder):
    """Without `--from`, and with `--new-head`, there is no class to rename."""
    with pytest.raises(UsageError, match=r"there is none: give the first argument"):
        kresume.plan(data=[str(folder / "now")], rename=RENAME, quiet=True)
    with pytest.raises(UsageError, match="new_head=True drops them all"):
        kresume.plan(str(folder / "1-shapes"), data=[str(folder / "now")], rename=RENAME, new_head=True, quiet=True)


@pytest.mark.one_backend
def test_names_are_read_as_given():
    """Quotes protect `=` and commas; a mapping of Python or YAML is the same as pairs."""
    names = {"a=b": 'c,"d', "plum": "Pflaume"}
    pairs = [join_rename(*pair) for pair in names.items()]
    assert read_renames(pairs) == names
    assert from_arguments("x", {"rename": names}).rename == tuple(pairs)
    assert resolve({}, sets=["rename={plum: Pflaume}"]).rename == ("plum=Pflaume",)
    assert of_labels({"a": "b", "b": "c"}) == {"a": "b"}
    swapped = in_metrics("classes.a.f1>=0.5 and classes.b.recall>0.1 and classes.a.b.f1>0", {"a": "b", "b": "a"})
    assert swapped == "classes.b.f1>=0.5 and classes.a.recall>0.1 and classes.a.b.f1>0"


@pytest.mark.one_backend(trains=True)
def test_watched_folders_of_the_old_name_hold_images_of_the_class(folder, tmp_path):
    """`--watch` reads labels as the listing before the first epoch did: nothing waits for the next generation."""
    given = {"data": [str(folder / "now")], "add": [str(folder / "more-old")], "rename": RENAME, "watch": True}
    run_training(str(folder / "1-shapes"), out=str(tmp_path / "2"), **given, **{**ONE_EPOCH, "epochs": 2})
    run = runs.open_run(tmp_path / "2")
    assert run.waiting() == (0, [])
    assert run.record.images["new"] == 18
