"""Tests that a file is read again if another one of equal size and modification time is in its place.

Uncompressed pictures have one size, tools unpack them with fixed times, and `mv` keeps times: so two pictures that were
swapped to correct their labels look unchanged by size and time.
"""

import os
import shutil
import sqlite3
import struct
import tarfile
import zipfile
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from kresume.errors import ImagesError
from kresume.images import merging
from kresume.images.cache import Cache
from kresume.images.collect import Sources, collect
from kresume.images.file_index import COLUMNS, INDEX_NAME
from kresume.images.manifest import Manifest
from kresume.images.prepare import prepare
from kresume.images.remembered import without_missing
from kresume.images.sources import list_images
from kresume.images.sources.examples import example_class
from kresume.images.sources.records import masked_crc
from kresume.images.sources.tables import still_there
from kresume.storage import locations, stores
from kresume.storage.remote_paths import FsspecPath
from kresume.training.loop.watch import Watch
from kresume.values.decode_spec import DecodeSpec

pytestmark = pytest.mark.one_backend
SPEC = DecodeSpec(12, 12)
AB = ("a", "b")
TIME = 315532800 * 10**9
KINDS = ("folder", "list", "zip", "tar", "tar.gz", "TFRecord", "manifest")


def photo(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    os.utime(path, ns=(TIME, TIME))


@pytest.fixture
def folder(tmp_path):
    """Writes two pictures of each of two classes: BMP, so of one size, and of one time."""
    for seed, name in enumerate(("a/1.bmp", "a/2.bmp", "b/1.bmp", "b/2.bmp")):
        photo(tmp_path / "set" / name, seed)
    return tmp_path / "set"


def records_of(folder, path):
    example = example_class()()
    with path.open("wb") as file:
        for name in sorted(folder.rglob("*.bmp")):
            example.Clear()
            feature = example.features.feature
            feature["image/encoded"].bytes_list.value.append(name.read_bytes())
            feature["image/class/text"].bytes_list.value.append(name.parent.name.encode())
            data = example.SerializeToString(deterministic=True)
            size = struct.pack("<Q", len(data))
            file.write(size + struct.pack("<I", masked_crc(size)) + data + struct.pack("<I", masked_crc(data)))


def source_of(folder, kind, quiet):
    """Writes the pictures of a folder as a source, or says where it is; a source that exists is replaced."""
    path = folder.parent / f"source.{kind}"
    names = sorted(each.relative_to(folder) for each in folder.rglob("*.bmp"))
    new = path.with_name("new")
    if kind == "folder":
        return folder
    if kind == "list":
        path = path.with_suffix(".csv")
        path.write_text("path,label\n" + "".join(f"set/{name},{name.parent}\n" for name in names))
        return path
    if kind == "manifest":
        path = path.with_suffix(".parquet")
        if not path.exists():
            prepared = prepare(list_images([folder], quiet).files, SPEC, None, quiet)
            merged(prepared).manifest.write(path)
        return path
    if kind == "zip":
        with zipfile.ZipFile(new, "w") as archive:
            for name in names:
                archive.writestr(zipfile.ZipInfo(str(name)), (folder / name).read_bytes())
    elif kind == "TFRecord":
        records_of(folder, new)
    else:
        with tarfile.open(new, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name in names:
                archive.add(folder / name, str(name))
    if kind == "tar.gz":  # whatever the packer does: as long as the one before
        new.write_bytes(new.read_bytes().ljust(16384, b"\0"))
    os.utime(new, ns=(TIME, TIME))
    new.replace(path)
    return path


def swap(folder):
    """Swaps two pictures by renaming, as a person does who corrects labels."""
    one, other = folder / "a" / "1.bmp", folder / "b" / "1.bmp"
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def replace_by_another(folder):
    photo(folder / "a" / "new.bmp", 100)
    (folder / "a" / "new.bmp").rename(folder / "a" / "1.bmp")


def write_in_place(folder):
    path, other = folder / "a" / "1.bmp", folder / "other.bmp"
    photo(other, 100)
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    other.unlink()
    os.utime(path, ns=(TIME, TIME))


HAPPENED = {"swapped": swap, "replaced": replace_by_another, "written in place": write_in_place}


def merged(prepared, **options):
    return merging.merge(None, prepared, None, None, classes=AB, val_split=None, generation=0, **options)


def contents(prepared):
    return sorted((image.found.label, image.facts.sha256) for image in prepared.images)


@pytest.mark.parametrize("happened", HAPPENED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["index", "facts of the index alone", "recorded", "recorded and index"])
def test_another_picture_of_equal_size_and_time_is_read(folder, tmp_path, quiet, kind, happened, way):
    """Reads a file again when another one is in its place, whatever the index and the manifest know of it."""
    cache = Cache.open(SPEC, tmp_path / "cache") if "index" in way else None
    memory = tmp_path / "listings"
    path = source_of(folder, kind, quiet)

    def read(recorded=None):
        listing = list_images([path], quiet, memory=memory)
        pixels = "alone" not in way
        return collect(Sources(data=listing), SPEC, cache, quiet, recorded=recorded, pixels=pixels).data

    if kind == "tar.gz" and cache is None:
        pytest.skip("a file that is compressed as a whole needs the cache")
    first = read()
    record = merged(first).manifest if "recorded" in way else None
    assert (read(record).read, contents(read(record))) == (0, contents(first))
    before = {each.path: (each.bytes, each.mtime_ns) for each in list_images([path], quiet).files}
    HAPPENED[happened](folder)
    source_of(folder, kind, quiet)
    assert before == {each.path: (each.bytes, each.mtime_ns) for each in list_images([path], quiet).files}
    now = read(record)
    truth = prepare(list_images([folder], quiet).files, SPEC, None, quiet)
    if kind != "manifest":
        assert contents(now) == contents(truth) != contents(first)
    else:  # its rows say the label; the content is what the file holds today
        assert {image.facts.sha256 for image in now.images} == {image.facts.sha256 for image in truth.images}
    if kind == "manifest" and cache is None:
        return  # the manifest that is the source stays as it is
    again = read(merged(now).manifest if record is not None else None)
    assert (again.read, contents(again)) == (0, contents(now))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_remembered_image_that_was_replaced_is_missing(folder, quiet, kind):
    """Nothing is given again: the recorded images are looked for, and one of them is not there any more."""
    path = source_of(folder, kind, quiet)
    record = merged(prepare(list_images([path], quiet).files, SPEC, None, quiet)).manifest
    rows = record.table.to_pylist()
    assert all(map(still_there, rows))
    assert without_missing(record, SPEC, None, quiet, "error", "runs/1") == (record, [])
    replace_by_another(folder)
    source_of(folder, kind, quiet)
    assert [still_there(row) for row in rows].count(False) == 1
    with pytest.raises(ImagesError, match="1 image of runs/1 is missing \\(1 of them overwritten\\)"):
        without_missing(record, SPEC, None, quiet, "error", "runs/1")


def test_swapped_pictures_correct_their_labels(folder, quiet):
    """A parent's folder is given again: both labels are corrected, as with other sizes and times."""
    before = merged(prepare(list_images([folder], quiet).files, SPEC, None, quiet)).manifest
    swap(folder)
    listing = list_images([folder], quiet)
    now = collect(Sources(data=listing), SPEC, None, quiet, recorded=before).data
    result = merging.merge(before, now, None, None, classes=AB, val_split=None, generation=1)
    assert len(result.facts.relabels) == 2
    assert len(result.manifest) == 4


def permissions(folder):
    for path in folder.rglob("*.bmp"):
        path.chmod(0o640)


def links(folder):
    for path in folder.rglob("*.bmp"):
        os.link(path, folder.parent / f"{path.parent.name}{path.name}")


def copied(folder):
    shutil.copytree(folder, folder.with_name("copy"), copy_function=shutil.copy2)
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


@pytest.mark.parametrize("happened", [permissions, links, copied])
@pytest.mark.parametrize("kind", KINDS)
def test_new_facts_of_the_same_content_cost_another_look(folder, tmp_path, quiet, kind, happened):
    """Permissions, links and copies change what a file system says, not the pixels: nothing is decoded, lost or an error."""
    cache, path = Cache.open(SPEC, tmp_path / "cache"), source_of(folder, kind, quiet)
    first = prepare(list_images([path], quiet).files, SPEC, cache, quiet)
    record = merged(first).manifest
    happened(folder)
    if happened is permissions:
        path.chmod(0o750)
    listing = list_images([path], quiet)
    assert not listing.quarantine
    again = prepare(listing.files, SPEC, cache, quiet, known=listing.known)
    assert (again.decoded, contents(again)) == (0, contents(first))
    assert again.read in {0, 4}
    assert prepare(list_images([path], quiet).files, SPEC, cache, quiet).read == 0
    kept, notes = without_missing(record, SPEC, cache, quiet, "error", "runs/1")
    assert (kept.digest(), notes) == (record.digest(), [])
    assert without_missing(kept, SPEC, None, quiet, "error", "runs/1")[0] is kept


def test_a_packed_archive_whose_permissions_changed_is_still_that_of_its_manifest(folder, tmp_path, quiet):
    """Members of a `.tar.gz` cannot be looked at one by one: the archive is read once. With other content it is told."""
    cache, path = Cache.open(SPEC, tmp_path / "cache"), source_of(folder, "tar.gz", quiet)
    merged(prepare(list_images([path], quiet).files, SPEC, cache, quiet)).manifest.write(tmp_path / "m.parquet")
    path.chmod(0o640)
    listing = list_images([tmp_path / "m.parquet"], quiet)
    assert (len(listing.files), listing.quarantine) == (4, ())
    swap(folder)
    source_of(folder, "tar.gz", quiet)
    listing = list_images([tmp_path / "m.parquet"], quiet)
    assert len(listing.files) == 2
    assert all("has changed since" in row.reason for row in listing.quarantine)


def test_an_index_of_an_earlier_version_is_kept(folder, tmp_path, quiet):
    """It has no stamps: each file is read once more, and no picture is decoded again."""
    cache = Cache.open(SPEC, tmp_path / "cache")
    first = prepare(list_images([folder], quiet).files, SPEC, cache, quiet)
    with closing(sqlite3.connect(tmp_path / "cache" / INDEX_NAME)) as connection:
        connection.execute(
            "CREATE TABLE pictures (path TEXT, spec TEXT, bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, width INTEGER, "
            "height INTEGER, format TEXT, phash TEXT, thumb BLOB, PRIMARY KEY (path, spec))"
        )
        connection.execute(f"INSERT INTO pictures SELECT {COLUMNS} FROM images")
        connection.execute("DROP TABLE images")
        connection.commit()
    again = prepare(list_images([folder], quiet).files, SPEC, cache, quiet)
    assert (again.read, again.decoded, again.images) == (4, 0, first.images)
    assert prepare(list_images([folder], quiet).files, SPEC, cache, quiet).read == 0
    with closing(sqlite3.connect(tmp_path / "cache" / INDEX_NAME)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("images",)]


def test_a_manifest_of_an_earlier_version_is_checked_once(folder, tmp_path, quiet):
    """Without a stamp a file is looked at, and the index remembers it: also where the manifest stays as it is."""
    cache = Cache.open(SPEC, tmp_path / "cache")
    first = prepare(list_images([folder], quiet).files, SPEC, cache, quiet)
    table = merged(first).manifest.table
    old = Manifest.from_table(table.drop_columns(["stamp"]), AB)
    assert set(old.table.column("stamp").to_pylist()) == {0}
    assert all(map(still_there, old.table.to_pylist()))
    listing = list_images([folder], quiet)
    assert collect(Sources(data=listing), SPEC, cache, quiet, recorded=old).data.read == 0  # the index has the stamps
    assert collect(Sources(data=listing), SPEC, None, quiet, recorded=old).data.read == 4
    kept, _ = without_missing(old, SPEC, None, quiet, "error", "runs/1")
    assert without_missing(kept, SPEC, None, quiet, "error", "runs/1")[0] is kept


def test_watch_looks_again_at_a_file_that_was_replaced(folder, quiet):
    """An image that was judged is judged again once another one is in its place."""
    found = list_images([folder], quiet).files
    watch = Watch.__new__(Watch)
    watch._judged = {each.key: each.version for each in found}
    watch._seen, watch._judged_other = {}, {}
    assert watch._ready(found, ()) == []
    swap(folder)
    ready = watch._ready(list_images([folder], quiet).files, ())
    assert [each.path.rpartition("set/")[2] for each in ready] == ["a/1.bmp", "b/1.bmp"]


def test_a_tag_of_a_store_tells_a_replaced_file():
    """Stores tell whole seconds: what they say of the content tells two files of one second and one size apart."""

    class Store:
        tag = '"1"'

        def info(self, path):
            return {"size": 3, "LastModified": 10.0, "ETag": self.tag}

    store = Store()

    def version():
        facts = FsspecPath("s3://bucket/a.png", store).stat()
        return locations.version(locations._of_store(facts))

    first = version()
    assert first == version()
    store.tag = '"2"'
    assert version()[:2] == first[:2]
    assert version() != first


def test_a_drive_in_user_space_has_no_stamps(folder, tmp_path, monkeypatch):
    """Google Drive may number its files anew with each mount: all would be read again."""
    facts = os.stat(folder)
    number = f"{os.major(facts.st_dev)}:{os.minor(facts.st_dev)}"
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(stores, "DEVICES", str(table))
    found = {}
    for kind in ("ext4", "fuse.drive", "fuse", "fuse.fuse-overlayfs", "overlay"):
        stores.is_on_drive.cache_clear()
        table.write_text(
            f"30 1 0:999999 / /other rw - fuse other rw\n36 35 {number} / /a\\040b rw,noatime master:1 - {kind} x rw\n"
        )
        found[kind] = locations.version(facts)[2] != 0
    stores.is_on_drive.cache_clear()
    assert found == {"ext4": True, "fuse.drive": False, "fuse": False, "fuse.fuse-overlayfs": True, "overlay": True}
