"""Tests the single folder at the top of a source: skipped above class folders, unless it is a class itself."""

import zipfile
from collections import Counter

import pytest
from PIL import Image

from kresume.drop_in.image_dataset import image_dataset
from kresume.errors import ImagesError
from kresume.images.collect import list_sources
from kresume.images.sources import list_images
from kresume.images.sources.found import Source
from kresume.reports.data import scan
from kresume.storage.stores import Bucket
from tests.helpers import flaky_bucket
from tests.helpers.archives import write_tar
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import TINY, run_training, trained

pytestmark = pytest.mark.one_backend(trains=True)

CLASSES = ("1", "10", "2")
OF_CLASS, SKIPPED, HOLDS_ITSELF = "all images in", "was skipped, and the folders", "was skipped, though"
TABLE = [
    # files, known classes, (label, split) of each or the error, what a note says
    ("10/a.png", "", ["10"], ""),
    ("10/a.png", "1 10 2", ["10"], ""),
    ("1/2024-05/a.png 1/2024-06/b.png", "", ["2024-05", "2024-06"], SKIPPED),
    ("1/2024-05/a.png 1/2024-06/b.png", "1 10 2", ["1", "1"], OF_CLASS),
    ("1/a/b/c.png", "1 10 2", ["1"], OF_CLASS),
    ("01/2024-05/a.png", "1 10 2", ["01"], OF_CLASS),  # the label is as spelled: unknown, and told
    ("Cat/x/a.png Cat/y/b.png", "cat dog", ["Cat", "Cat"], OF_CLASS),
    ("10/1/a.png 10/2/b.png", "", ["1", "2"], SKIPPED),
    ("10/1/a.png 10/2/b.png", "1 10 2", "which has the name of a class, and so have", ""),
    ("10/1/x/a.png", "1 10 2", "which has the name of a class, and so have", ""),
    ("10/set/1/a.png 10/set/2/b.png", "1 10 2", "which has the name of a class, and so have", ""),
    ("10/1/a.png 10/front/b.png", "1 10 2", "which has the name of a class, and so have", ""),
    ("2/1/a.png 2/2/b.png 2/10/c.png", "", ["1", "2", "10"], SKIPPED),
    ("2/1/a.png 2/2/b.png 2/10/c.png", "1 10 2", ["1", "2", "10"], HOLDS_ITSELF),
    ("set/1/a.png set/2/b.png", "", ["1", "2"], SKIPPED),
    ("set/1/a.png set/2/b.png", "1 10 2", ["1", "2"], ""),
    ("set/1/a.png set/3/b.png", "1 10 2", ["1", "3"], SKIPPED),
    ("set/10/x/a.png set/10/y/a.png", "1 10 2", ["10", "10"], OF_CLASS),
    ("10/train/a.png 10/val/b.png", "1 10 2", [("10", "train"), ("10", "val")], ""),
    ("10/train/x/a.png 10/val/x/b.png", "1 10 2", [("10", "train"), ("10", "val")], OF_CLASS),
    ("10/train/1/a.png 10/val/2/b.png", "1 10 2", "which has the name of a class, and so have", ""),
    ("10/train/1/a.png 10/val/10/b.png", "1 10 2", [("1", "train"), ("10", "val")], HOLDS_ITSELF),
    ("train/10/x/a.png", "1 10 2", ["10"], OF_CLASS),
    ("train/10/x/a.png val/10/x/b.png", "1 10 2", [("10", "train"), ("10", "val")], ""),
]


def make(folder, files):
    for name in files.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def pack(folder, kind):
    items = [(f"{path.relative_to(folder)}", path.read_bytes()) for path in sorted(folder.rglob("*.png"))]
    if kind == "folder":
        return folder
    if kind == "bucket":
        flaky_bucket.bucket.reset()
        for name, _ in items:
            Bucket("flaky://bucket").send(f"in/{name}", folder / name)
        return "flaky://bucket/in"
    path = folder.parent / ("shards/a.tar" if kind == "shards" else f"in.{kind}")
    path.parent.mkdir(exist_ok=True)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in items:
                archive.writestr(name, data)
    else:
        write_tar(path, items, "w:gz" if kind == "tar.gz" else "w")
    return path.parent if kind == "shards" else path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "shards", "bucket"])
@pytest.mark.parametrize(("files", "known", "expected", "told"), TABLE)
def test_a_top_folder_of_the_name_of_a_class_is_that_class(tmp_path, quiet, kind, files, known, expected, told):
    """Known classes decide, in every kind of source; what may be meant otherwise is told or refused."""
    path = pack(make(tmp_path / "in", files), kind)
    if isinstance(expected, str):
        with pytest.raises(ImagesError, match=expected):
            list_images([path], quiet, classes=known.split())
        return
    listing = list_images([path], quiet, classes=known.split())
    wanted = Counter(each if isinstance(each, tuple) else (each, None) for each in expected)
    assert Counter((found.label, found.split) for found in listing.files) == wanted
    notes = [note for note in listing.notes if OF_CLASS in note or "was skipped" in note]
    assert all(told and told in note for note in notes), notes
    assert bool(notes) is bool(told)


@pytest.mark.parametrize("role", ["data", "add", "val"])
def test_the_other_sources_know_the_classes(tmp_path, quiet, role):
    """A source that shows all classes settles what the single folder of another one is, in whatever order and role."""
    whole = make(tmp_path / "whole", "set/1/a.png set/2/b.png set/10/c.png")
    inbox = make(tmp_path / "inbox", "1/2024-05/a.png 1/2024-06/b.png")
    for order in (1, -1):
        data = [str(whole), str(inbox)][::order] if role == "data" else [str(whole)]
        given = {"data": data} | ({} if role == "data" else {role: [str(inbox)]})
        sources = list_sources(quiet, **given)
        assert {found.label for listing in sources for found in listing.files} == {"1", "2", "10"}
        notes = [note for listing in sources for note in listing.notes]
        assert sum(OF_CLASS in note for note in notes) == 1
        assert sum(SKIPPED in note for note in notes) == 1


def test_two_sources_that_name_each_other_are_told(tmp_path, quiet):
    """Neither of the two top folders can be settled: the first is skipped, and a note says so."""
    one, other = make(tmp_path / "one", "1/2/a.png"), make(tmp_path / "other", "2/1/b.png")
    notes = list_images([one, other], quiet).notes
    assert len([note for note in notes if "one: 1/ was skipped" in note]) == 1


def test_shards_know_the_classes_of_each_other(tmp_path, quiet):
    """A shard whose pictures are all of one class, in folders, is no data set of the name of that class."""
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", [("cat/a.png", b"1"), ("dog/b.png", b"2")])
    write_tar(tmp_path / "shards" / "1.tar", [("cat/x/a.png", b"3"), ("cat/y/b.png", b"4")])
    listing = list_images([tmp_path / "shards"], quiet)
    assert Counter(found.label for found in listing.files) == {"cat": 3, "dog": 1}


def test_labels_of_a_webdataset_and_pictures_without_classes_know_no_top_folder(tmp_path, quiet):
    """Labels beside the pictures count, and `predict` asks for none."""
    write_tar(tmp_path / "a.tar", [("10/1/a.png", b"1"), ("10/1/a.cls", b"2")])
    assert list_images([tmp_path / "a.tar"], quiet, classes=CLASSES).files[0].label == "2"
    folder = make(tmp_path / "in", "10/1/a.png 10/2/b.png")
    assert len(list_images([folder], quiet, with_classes=False, classes=CLASSES).files) == 2


def test_what_the_checkpoint_knows_counts_once_it_is_read(tmp_path, quiet):
    """Listing comes first, so that typos are found: it is done again where a class turns out to be known."""
    inbox = make(tmp_path / "inbox", "1/2024-05/a.png")
    sources = list_sources(quiet, add=[str(inbox)])
    assert [found.label for found in sources.add.files] == ["2024-05"]
    assert [found.label for found in sources.knowing(CLASSES).add.files] == ["1"]
    assert not any(SKIPPED in note for note in sources.knowing(["2024-05"]).add.notes)
    assert Source("", "").classes == frozenset()


def photos(folder, *names, seed=0):
    import numpy as np

    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed + number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains a tiny model of three shapes."""
    folder = tmp_path_factory.mktemp("top")
    write_pictures(folder / "old", 8, 0)
    trained(folder / "1", data=[str(folder / "old")], **TINY)
    return folder / "1"


def test_commands_on_a_run_know_its_classes(run, tmp_path, quiet):
    """`train`, `eval` and `data scan` of an inbox with one class, in folders by date, read the same label."""
    from kresume.evaluation.evaluate import evaluate
    from kresume.images.manifest import Manifest
    from kresume.images.scans import remembered

    inbox = photos(tmp_path / "inbox", "circle/2024-05/a.png", "circle/2024-06/b.png", seed=900)
    before = Manifest.read(run / "images.parquet").classes
    assert before[0] == "circle"
    scores = evaluate(run, inbox, reporter=quiet).scores
    assert scores["all"]["images"] == 2
    known = scan([inbox], quiet, against=remembered(run))
    assert known.unknown == {}
    run_training(str(run), add=[inbox], grow=True, lr=1e-4, epochs=1, out=str(tmp_path / "2"))
    after = Manifest.read(tmp_path / "2" / "images.parquet")
    assert after.classes == before
    came = [row for row in after.table.to_pylist() if row["path"].startswith(inbox)]
    assert [row["label"] for row in came] == ["circle", "circle"]
    ambiguous = photos(tmp_path / "more", *(f"circle/{name}/a.png" for name in before[1:]), seed=950)
    with pytest.raises(ImagesError, match="name of a class, and so have"):
        run_training(str(run), add=[ambiguous], lr=1e-4, epochs=1, out=str(tmp_path / "3"))
    assert not (tmp_path / "3").exists()


def test_image_dataset_reads_new_images_by_the_old_classes(tmp_path):
    """`add` with one class is of that class; before, its folders were unexpected classes."""
    old = photos(tmp_path / "old", *(f"{name}/{each}.png" for name in CLASSES for each in range(3)))
    inbox = photos(tmp_path / "inbox", "10/cam1/a.png", "10/cam2/b.png", seed=70)
    dataset = image_dataset(old, add=inbox, image_size=(8, 8), batch_size=4, cache=None, verbose=False)
    assert dataset.class_names == sorted(CLASSES)
    named = image_dataset(inbox, class_names=["10"], image_size=(8, 8), batch_size=2, cache=None, verbose=False)
    assert len(named.file_paths) == 2
