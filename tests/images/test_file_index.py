"""Tests the index of known image files: what it remembers never depends on which command ran before."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from kresume.images.cache import Cache
from kresume.images.file_index import INDEX_NAME
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.values.decode_spec import DecodeSpec

SPEC = DecodeSpec(12, 12)
OTHERS = {
    "smaller": DecodeSpec(4, 4),
    "larger": DecodeSpec(64, 64),
    "wider": DecodeSpec(12, 24),
    "cropped": DecodeSpec(12, 12, "crop"),
    "nearest": DecodeSpec(12, 12, interpolation="nearest"),
}
COLUMNS = (
    "bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, width INTEGER, height INTEGER, format TEXT, phash TEXT, thumb BLOB"
)


@pytest.fixture
def folder(tmp_path):
    """Writes six pictures of noise, whose likenesses differ with the size at which they are computed."""
    for label in ("a", "b"):
        (tmp_path / "noise" / label).mkdir(parents=True)
        for number in range(3):
            noise = np.random.default_rng([ord(label), number]).integers(0, 256, (37, 53, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "noise" / label / f"{number}.png")
    return tmp_path / "noise"


def facts(folder, spec, cache, quiet, **options):
    """Returns the facts of the pictures, and how many files were read."""
    prepared = prepare(list_images([folder], quiet).files, spec, cache, quiet, **options)
    return [image.facts for image in prepared.images], prepared.read


@pytest.mark.one_backend
@pytest.mark.parametrize("before", OTHERS)
@pytest.mark.parametrize("options", [{}, {"pixels": False}], ids=["trained", "checked"])
@pytest.mark.parametrize("way", ["cached", "facts alone", "looked at", "uncached"])
def test_facts_do_not_depend_on_an_earlier_size(folder, tmp_path, quiet, before, options, way):
    """A likeness comes from decoded pixels, and decides what is a near-duplicate and so the split."""
    fresh, _ = facts(folder, SPEC, None, quiet)
    other = OTHERS[before]
    earlier, _ = facts(folder, other, Cache.open(other, tmp_path / "cache"), quiet, **options)
    assert [each.thumb for each in earlier] != [each.thumb for each in fresh]
    cache = None if way == "uncached" else Cache.open(SPEC, tmp_path / "cache")
    asked = {"facts alone": {"pixels": False}, "looked at": {"writes": False}}.get(way, {})
    assert facts(folder, SPEC, cache, quiet, **asked) == (fresh, 6)
    if way in ("cached", "facts alone"):
        assert facts(folder, SPEC, cache, quiet, **asked) == (fresh, 0)
        again = Cache.open(other, tmp_path / "cache")
        assert facts(folder, other, again, quiet, **options) == (earlier, 0)


@pytest.mark.one_backend
def test_the_index_of_an_earlier_version_is_replaced(folder, tmp_path, quiet):
    """It had one row for all sizes. A command that writes nothing leaves it and reads the files."""
    cache = Cache.open(SPEC, tmp_path / "cache")
    index = tmp_path / "cache" / INDEX_NAME
    with closing(sqlite3.connect(index)) as connection:
        connection.execute(f"CREATE TABLE files (path TEXT PRIMARY KEY, {COLUMNS})")
        listed = list_images([folder], quiet).files
        rows = [(found.key, found.bytes, found.mtime_ns, "0" * 64, 1, 1, "PNG", "0", b"1" * 64) for found in listed]
        connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    fresh, _ = facts(folder, SPEC, None, quiet)
    written = index.read_bytes()
    assert facts(folder, SPEC, cache, quiet, writes=False) == (fresh, 6)
    assert index.read_bytes() == written
    assert facts(folder, SPEC, cache, quiet) == (fresh, 6)
    with closing(sqlite3.connect(index)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("images",)]
    assert facts(folder, SPEC, cache, quiet) == (fresh, 0)
