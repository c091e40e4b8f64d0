"""Tests that pictures whose names begin with a dot are left out with a note, in sources of every kind."""

import shutil
import tarfile
import zipfile
from collections import Counter

import pytest

from kresume.errors import ImagesError
from kresume.images.sources import list_images
from kresume.images.unlabelled import list_unlabelled
from kresume.reporter import Reporter
from kresume.reports import data as report
from kresume.reports.data_check import check
from kresume.storage.stores import Bucket
from tests.helpers import flaky_bucket
from tests.helpers.pictures import write_pictures

pytestmark = pytest.mark.one_backend

TOLD = [
    "circle/.hidden.jpg", "circle/.a.b.PNG", "square/deep/.x.tiff", "circle/.jpg", "square/.2024/1.png",
    "square/.2024/in/2.png",
]  # fmt: skip
"""Pictures, as Keras's own loader reads them from class folders."""
SILENT = [
    "circle/._0.png", "circle/.DS_Store", "circle/.nothing", "circle/.keep.txt", "circle/.ipynb_checkpoints/0.png",
    "square/.git/x.png", "square/.Trash-1000/files/x.png", "square/.2024/._1.png", "square/.2024/notes.txt",
    ".thumbnails/circle/0.png", "__MACOSX/circle/._0.png",
]  # fmt: skip
"""Files of programs."""


@pytest.fixture
def set_of(tmp_path):
    """Returns a function that makes class folders with these files beside two pictures of each class."""

    def make(names):
        folder = write_pictures(tmp_path / "set", 2, 0, ("circle", "square"))
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "circle" / "0.png", folder / name)
        return folder

    return make


def as_folder(folder):
    return folder


def as_tar(folder):
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, "set")
    return folder.with_suffix(".tar")


def as_zip(folder):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


def as_bucket(folder):
    flaky_bucket.bucket.reset()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        Bucket("flaky://bucket").send(path.relative_to(folder.parent).as_posix(), path)
    return "flaky://bucket/set"


KINDS = [as_folder, as_tar, as_zip, as_bucket]


def told(notes):
    return [note.split(": ", 1)[1] for note in notes if "dot" in note]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
@pytest.mark.parametrize("names", [*([name] for name in TOLD), TOLD])
def test_a_picture_that_is_left_out_for_a_dot_is_told(set_of, quiet, kind, names):
    """A note counts the pictures that are left out, in a folder, an archive and a bucket."""
    listing = list_images([str(kind(set_of(names)))], quiet)
    assert Counter(each.label for each in listing.files) == {"circle": 2, "square": 2}
    many = "1 picture is" if len(names) == 1 else f"{len(names)} pictures are"
    assert told(listing.notes) == [
        f"{many} left out for a name that begins with a dot, of the file or a folder above it"
    ]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_files_of_programs_are_left_out_in_silence(set_of, quiet, kind):
    """Resource forks, trash and the folders of other programs hold no picture of the user's."""
    listing = list_images([str(kind(set_of(SILENT)))], quiet)
    assert len(listing.files) == 4
    assert not told(listing.notes)


def test_every_command_tells_them(set_of, quiet, tmp_path, capsys):
    """`data check`, `data scan`, and a class of which nothing is left; pictures without classes, too."""
    folder = str(set_of(TOLD))
    scanned = report.scan([folder], Reporter(quiet=True), cache="off")
    assert "6 pictures are left out for a name that begins with a dot" in str(check(scanned))
    asked = list_unlabelled([folder], quiet)
    assert len(list(asked.items())) == 4
    assert asked.left_out["/."] == 6
    (tmp_path / "alone" / "cat").mkdir(parents=True)
    shutil.copy(f"{folder}/circle/0.png", tmp_path / "alone" / "cat" / ".0.png")
    with pytest.raises(ImagesError, match="no images: 1 picture is left out for a name that begins with a dot"):
        list_images([str(tmp_path / "alone")], quiet)


def test_keras_reads_the_pictures_that_are_told(set_of):
    """The note names what training by `image_dataset_from_directory` has seen besides."""
    import keras

    theirs = keras.utils.image_dataset_from_directory(
        set_of([name for name in TOLD if "tiff" not in name]), verbose=False
    )
    assert len(theirs.file_paths) == 4 + len(TOLD) - 1
