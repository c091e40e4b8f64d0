"""Tests how lines of a `--drop` file name images: as they are, in quotes, with Windows' slashes."""

from pathlib import Path

import pytest

import kresume
from kresume.errors import UsageError
from kresume.images import corrections
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.pictures import save_photo
from tests.helpers.runs import TINY

SPEC = DecodeSpec(12, 12)
SHA = "0123456789abcdef" * 4
LINES = [
    # a line, and the picture that it names
    ("set/a/1.png", "a/1.png"),
    ("  ./set//a/1.png\r", "a/1.png"),
    ('"set/a/1.png"', "a/1.png"),
    ("'set/a/1.png'", "a/1.png"),
    ("set\\a\\1.png", "a/1.png"),
    (".\\set\\a\\1.png", "a/1.png"),
    ('"set\\a\\1.png"', "a/1.png"),
    ("set/a/a b.png", "a/a b.png"),
    ('"set/a/a b.png"', "a/a b.png"),
    ('"{here}/set/a/a b.png"', "a/a b.png"),
    ('set/a/"2".png', 'a/"2".png'),
    ("set/b/x\\y.png", "b/x\\y.png"),  # a name with such a sign is meant before a folder
    ("set\\b\\x\\y.png", "b/x/y.png"),
    ("set/a", None),
    ('"set\\a"', None),
    ("1.png", None),
    ("'set/a/1.png", None),
    ('"', None),
]


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Writes pictures with names that quotes and slashes are for."""
    monkeypatch.chdir(tmp_path)
    names = ("a/1.png", "a/a b.png", 'a/"2".png', "b/x\\y.png", "b/x/y.png", "b/3.png")
    for seed, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        save_photo(tmp_path / "set" / name, seed)
    return names


@pytest.mark.one_backend
@pytest.mark.parametrize(("line", "named"), LINES)
def test_a_line_names_one_picture(names, tmp_path, quiet, line, named):
    """A line that names a picture drops that one and no other; any other line is told as it is read."""
    prepared = prepare(list_images(["set"], quiet).files, SPEC, None, quiet)
    sha = {image.found.path.rpartition("/set/")[2]: image.facts.sha256 for image in prepared.images}
    assert set(sha) == set(names)
    Path("drop.txt").write_text(f"# comment\n{line.replace('{here}', str(tmp_path))}\n")
    drop = corrections.read_drop("drop.txt")
    hashes, nowhere = corrections.hashes_in(drop, None, prepared)
    assert hashes == ({sha[named]} if named else set())
    assert len(nowhere) == (0 if named else 1)
    if named is None:
        with pytest.raises(UsageError, match="no line of it names an image"):
            corrections.check_found(drop, nowhere, "drop.txt")
    else:
        corrections.check_found(drop, nowhere, "drop.txt")


@pytest.mark.one_backend
@pytest.mark.parametrize("line", [SHA, SHA.upper(), f'"{SHA}"'])
def test_a_hash_counts_although_its_image_is_not_there(names, quiet, line):
    """Its image will never join, so the line has an effect; only a note says that none is there."""
    Path("drop.txt").write_text(line)
    drop = corrections.read_drop("drop.txt")
    hashes, nowhere = corrections.hashes_in(drop, None, prepare((), SPEC, None, quiet))
    assert (hashes, nowhere) == ({SHA}, [SHA])
    corrections.check_found(drop, nowhere, "drop.txt")


@pytest.mark.one_backend(trains=True)
def test_a_drop_file_that_names_nothing_is_an_error(workplace):
    """Nothing that was asked for would happen. A line that names a folder is told as such, also in the note."""
    lines = {
        "typo.png\nold/circle/none.png\n": "the first is .*none.png",
        "typo.png\nold/circle/\n": "circle is a folder",
    }
    for text, told in lines.items():
        Path("drop.txt").write_text(text)
        with pytest.raises(UsageError, match=f"no line of it names an image; .*{told}"):
            kresume.plan(data="old", drop="drop.txt", quiet=True, **TINY)
        Path("drop.txt").write_text(f'{text}"old\\circle\\0.png"\n')
        notes = kresume.plan(data="old", drop="drop.txt", quiet=True, **TINY).notes
        assert any("1 image dropped" in note for note in notes)
        assert any("2 lines of" in note for note in notes)
        assert any("is a folder, which is not dropped as a whole" in note for note in notes) is ("folder" in told)
