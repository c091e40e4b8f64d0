"""Tests what becomes of remembered images whose files are gone, moved or changed when nothing is given again.

The table: how the image is stored, what happened to its file, and whether the cache still holds its pixels.
"""

import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from kresume.errors import ImagesError
from kresume.images import corrections, merging
from kresume.images.cache import Cache
from kresume.images.prepare import prepare
from kresume.images.remembered import without_missing
from kresume.images.sources import list_images
from kresume.images.sources.moves import Moves
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.pictures import write_pictures

pytestmark = pytest.mark.one_backend
SPEC = DecodeSpec(24, 24)
AB = ("a", "b")
STORED = ("folder", "tar", "zip", "tar.gz")
COUNT = 6


def packed(folder, kind, path):
    """Writes the pictures of a folder as `kind`; returns the source."""
    if kind == "folder":
        return folder
    names = sorted(each.relative_to(folder) for each in folder.rglob("*.png"))
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(folder / name, name)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name in names:
                archive.add(folder / name, str(name))
    return path


def touched(path):
    os.utime(path, ns=(1, 1))


def other_picture(folder, kind, source):
    """Overwrites one picture with one of other bytes; archives are written again."""
    Image.effect_noise((40, 30), 90).save(folder / "a" / "1.png")
    packed(folder, kind, source)


def cut(folder, kind, source):
    data = source.read_bytes() if kind != "folder" else (folder / "a" / "1.png").read_bytes()
    (source if kind != "folder" else folder / "a" / "1.png").write_bytes(data[: len(data) // 2])


def moved_away(folder, kind, source):
    (folder / "a" / "1.png" if kind == "folder" else source).unlink()


HAPPENED = {
    "nothing": (lambda *_: None, 0),
    "new times": (lambda folder, kind, source: touched(folder / "a" / "1.png" if kind == "folder" else source), 0),
    "written again": (packed, 0),
    "another picture": (other_picture, 1),
    "cut short": (cut, 1),
    "gone": (moved_away, 1),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("happened", HAPPENED)
@pytest.mark.parametrize("kind", STORED)
def test_a_remembered_image_is_the_recorded_one_or_missing(tmp_path, quiet, kind, happened, cached):
    """Equal bytes are the same image whatever the file's time; other bytes, half a file or none are a missing image.

    The default is an error that names a file; `drop` and `cache` do what they say. A second look reads nothing again.
    """
    write_pictures(tmp_path / "old", COUNT // 2, 0, AB)
    source = packed(tmp_path / "old", kind, tmp_path / f"old.{kind}")
    cache = Cache.open(SPEC, tmp_path / "cache")
    prepared = prepare(list_images([source], quiet).files, SPEC, cache, quiet)
    table = merging.merge(None, prepared, None, None, classes=AB, val_split=None, generation=0).manifest
    happens, least = HAPPENED[happened]
    happens(tmp_path / "old", kind, source)
    here = cache if cached else None
    if not least:
        kept, notes = without_missing(table, SPEC, here, quiet, "error", "runs/1")
        assert (kept.digest(), notes) == (table.digest(), [])
        assert {found.mtime_ns for found in kept.found(np.arange(COUNT))} == {
            os.stat(path).st_mtime_ns for path in kept.paths(np.arange(COUNT))
        }
        again = prepare(
            kept.found(np.arange(COUNT)), SPEC, here, quiet, known=kept.known_files(kept.found(np.arange(COUNT)))
        )
        assert again.read == 0
        return
    with pytest.raises(ImagesError, match=r"images? of runs/1 (is|are) missing.*--remap OLD=NEW") as raised:
        without_missing(table, SPEC, here, quiet, "error", "runs/1")
    assert ("overwritten" in str(raised.value)) == (happened != "gone")
    dropped, notes = without_missing(table, SPEC, here, quiet, "drop", "runs/1")
    assert len(dropped) < COUNT
    assert (len(dropped) == COUNT - 1) or kind != "folder"
    assert " dropped (" in notes[0]
    if cached:
        kept, notes = without_missing(table, SPEC, here, quiet, "cache", "runs/1")
        assert kept.digest() == table.digest()
        assert "from the cache" in notes[0]
    else:
        with pytest.raises(ImagesError, match="0 of them are in the cache"):
            without_missing(table, SPEC, here, quiet, "cache", "runs/1")


@pytest.mark.parametrize("kind", STORED)
def test_a_copied_folder_is_read_once_and_then_known(tmp_path, quiet, kind):
    """After --remap to a copy with other times the images are the same, and their new times are recorded."""
    write_pictures(tmp_path / "before" / "old", COUNT // 2, 0, AB)
    source = packed(tmp_path / "before" / "old", kind, tmp_path / "before" / f"old.{kind}")
    prepared = prepare(list_images([source], quiet).files, SPEC, None, quiet)
    table = merging.merge(None, prepared, None, None, classes=AB, val_split=None, generation=0).manifest
    shutil.copytree(tmp_path / "before", tmp_path / "after", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "before")
    with pytest.raises(ImagesError, match=rf"{COUNT} images? of runs/1 (is|are) missing, the first"):
        without_missing(table, SPEC, None, quiet, "error", "runs/1")
    moved = corrections.remap(table, Moves.parse([f"{tmp_path / 'before'}={tmp_path / 'after'}"]))
    kept, notes = without_missing(moved, SPEC, Cache.open(SPEC, tmp_path / "cache"), quiet, "error", "runs/1")
    assert (kept.digest(), notes) == (table.digest(), [])


def test_a_file_with_another_picture_is_not_the_recorded_one(tmp_path, quiet):
    """A recorded image whose file was overwritten is missing, unless the same image is given elsewhere or is dropped."""
    write_pictures(tmp_path / "old", 4, 0, AB)
    prepared = prepare(list_images([tmp_path / "old"], quiet).files, SPEC, None, quiet)
    table = merging.merge(None, prepared, None, None, classes=AB, val_split=None, generation=0).manifest
    first, second = sorted((tmp_path / "old" / "a").iterdir())[:2]
    first.rename(tmp_path / "old" / "a" / "moved.png")
    Image.new("RGB", (20, 20), "red").save(first)
    Image.new("RGB", (20, 20), "blue").save(second)
    images = prepare(list_images([tmp_path / "old"], quiet).files, SPEC, None, quiet).images
    now = {image.found.key: image.facts.sha256 for image in images}
    with pytest.raises(ImagesError, match=r"1 image of runs/1 is missing \(1 of them overwritten\).*--data with the"):
        without_missing(table, SPEC, None, quiet, "error", "runs/1", given=now)
    kept, _ = without_missing(table, SPEC, None, quiet, "drop", "runs/1", given=now)
    assert len(kept) == 7
    with pytest.raises(ImagesError, match=r"2 images? of runs/1 (is|are) missing \(2 of them overwritten\)"):
        without_missing(table, SPEC, None, quiet, "error", "runs/1")
    assert without_missing(table, SPEC, None, quiet, "error", "runs/1", {str(first), str(second)})[1] == []


def test_a_link_to_nowhere_is_a_missing_image(tmp_path, quiet):
    """Linked pictures are followed; a link whose target is gone holds no image."""
    write_pictures(tmp_path / "kept", 2, 0, AB)
    (tmp_path / "old" / "a").mkdir(parents=True)
    for picture in (tmp_path / "kept" / "a").iterdir():
        (tmp_path / "old" / "a" / picture.name).symlink_to(picture)
    prepared = prepare(list_images([tmp_path / "old"], quiet).files, SPEC, None, quiet)
    table = merging.merge(None, prepared, None, None, classes=AB, val_split=None, generation=0).manifest
    assert without_missing(table, SPEC, None, quiet, "error", "runs/1")[1] == []
    (tmp_path / "kept" / "a" / "0.png").unlink()
    with pytest.raises(ImagesError, match="1 image of runs/1 is missing, the first"):
        without_missing(table, SPEC, None, quiet, "error", "runs/1")
