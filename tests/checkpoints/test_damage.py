"""Tests the boundary around every reader: damaged bytes are an error in words, and a bug stays a bug."""

import errno
import io
import json
import re
import struct
import zipfile
import zlib
from dataclasses import replace

import pytest

from kresume.checkpoints import read
from kresume.errors import CheckpointError, ImagesError, MissingPackage
from kresume.images.sources import list_images
from kresume.reporter import Reporter
from kresume.storage.damage import interpreting, reading
from tests.helpers.paths import GOLDENS

pytestmark = pytest.mark.one_backend


def raised_by(module, statement):
    """Returns a function that runs a statement in a frame of a module of this name."""
    space = {"__name__": module, "json": json, "struct": struct, "zlib": zlib}
    exec(f"def function(error=None):\n    {statement}", space)
    return space["function"]


REFUSED = {
    "a library's own class": raised_by("kresume.fake", "struct.unpack('<Q', b'')"),
    "a library's own class, from C": raised_by("kresume.fake", "zlib.decompress(b'x')"),
    "text that is not UTF-8": raised_by("kresume.fake", r"b'\xff'.decode()"),
    "a look-up inside a library": raised_by("h5py.fake", "return {}['group']"),
    "an assertion inside a library": raised_by("torch.fake", "raise AssertionError"),
    "Python's own JSON": raised_by("kresume.fake", "json.loads('{')"),
    "a size beyond memory": raised_by("kresume.fake", "raise MemoryError"),
    "a size beyond 64 bits": raised_by("kresume.fake", "return b'' * 2**70"),
    "a text that ends": raised_by("pickle", "raise EOFError"),
    "a seek before the start": raised_by("zipfile", f"raise OSError({errno.EINVAL}, 'Invalid argument')"),
}
BUGS = {
    "KeyError": raised_by("kresume.fake", "return {}['misspelled']"),
    "TypeError": raised_by("kresume.fake", "return len(3)"),
    "ValueError": raised_by("kresume.fake", "return int('x')"),
    "AttributeError": raised_by("kresume.fake", "return ().misspelled"),
    "AssertionError": raised_by("kresume.fake", "raise AssertionError"),
    "NameError": raised_by("kresume.fake", "misspelled"),
    "ImportError": raised_by("h5py.fake", "raise ImportError('broken installation')"),
    "KeyboardInterrupt": raised_by("h5py.fake", "raise KeyboardInterrupt"),
    "UserWarning": raised_by("h5py.fake", "raise UserWarning('made an error by the user')"),
}


@pytest.mark.parametrize("fails", REFUSED.values(), ids=REFUSED)
def test_what_a_library_refuses_names_the_file(fails):
    """An exception that content causes is one line with the file and the original as its cause."""
    said = r"^x\.bin (is damaged, or is not|does not fit)"
    with pytest.raises(CheckpointError, match=said) as caught, reading("x.bin", "a file", CheckpointError):
        fails()
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_stays_a_bug(name):
    """An exception of kresume's own code passes unchanged, and so do broken installations and Ctrl-C."""
    with pytest.raises(BaseException) as caught, reading("x.bin", "a file", CheckpointError):  # noqa: PT011
        BUGS[name]()
    assert type(caught.value).__name__ == name


@pytest.mark.parametrize("error", [MissingPackage("torch"), ImagesError("said already")])
def test_an_error_in_words_passes_unchanged(error):
    """The words of a reader are kept, inside of both blocks."""
    with pytest.raises(type(error)) as caught, reading("x", "a", CheckpointError), interpreting("x", CheckpointError):
        raise error
    assert caught.value is error


def test_a_field_that_content_lacks_is_damage():
    """A look-up marked as one of foreign content is an error in words."""
    said = r"x: the head does not have the expected form \(KeyError: 'size'\)"
    with pytest.raises(CheckpointError, match=said), interpreting("x: the head", CheckpointError):
        {}["size"]


def test_the_systems_refusal_is_no_damage():
    """A file that the system does not give out is not called damaged."""
    said = r"^x: /a/b cannot be read \(Permission denied\)$"
    with pytest.raises(CheckpointError, match=said), reading("x", "a file", CheckpointError):
        raise PermissionError(errno.EACCES, "Permission denied", "/a/b")


def test_a_reader_that_cannot_look_does_not_stop_the_others(monkeypatch, tmp_path):
    """A file is read although the reader before cannot look at it; without another reader its refusal is told."""
    path = next(GOLDENS.glob("keras-*/keras-cnn-adam/model.keras"))
    accepts = raised_by("h5py.fake", "return {}['group']")
    readers = {"first": replace(read.READERS["orbax"], accepts=accepts, called="a first format"), **read.READERS}
    monkeypatch.setattr(read, "READERS", readers)
    assert read.read_checkpoint(path).format == "keras"
    other = tmp_path / "x.bin"
    other.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.bin is damaged, or is not a first format: KeyError: 'group'; use"):
        read.read_checkpoint(other)
    assert read.recognise(str(other)) is None


def test_a_bug_of_a_reader_stays_a_bug(monkeypatch):
    """A reader's own mistake reaches the user with its traceback."""
    path = next(GOLDENS.glob("keras-*/keras-cnn-adam/model.keras"))
    broken = replace(read.READERS["keras"], read=raised_by("kresume.checkpoints.keras_file", "return {}[error]"))
    monkeypatch.setitem(read.READERS, "keras", broken)
    with pytest.raises(KeyError):
        read.read_checkpoint(path)


# The four kinds that a first fuzzing of the golden checkpoints found.


def torch_bytes():
    pytest.importorskip("torch")
    return (GOLDENS / "torch-2.13.0" / "plain-adam.pth").read_bytes()


def test_oserror_of_zipfile_in_the_torch_reader(tmp_path):
    """A directory that says that it begins later makes zipfile seek before the file: OSError."""
    data = bytearray(torch_bytes())
    at = data.rfind(b"PK\x06\x06") + 48
    data[at : at + 8] = (int.from_bytes(data[at : at + 8], "little") + 2**20).to_bytes(8, "little")
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.pth is .*damaged"):
        read.read_checkpoint(path)


def test_unicode_error_of_zipfile_in_the_keras_reader(tmp_path):
    """A member's name that is marked as UTF-8 and is not makes zipfile raise UnicodeDecodeError."""
    data = bytearray(next(GOLDENS.glob("keras-*/keras-cnn-adam/model.keras")).read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 9] |= 8
    data[at + 46] = 0xFF
    path = tmp_path / "x.keras"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.keras is .*damaged"):
        read.read_checkpoint(path)


def test_keyerror_of_h5py_where_the_format_is_recognised(tmp_path):
    """A root group of an unknown type makes h5py raise KeyError before any reader reads."""
    data = bytearray(next(GOLDENS.glob("keras-*/legacy-h5-*/model.h5")).read_bytes())
    data[112] ^= 0x80
    path = tmp_path / "x.h5"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.h5.*damaged"):
        read.read_checkpoint(path)


def test_assertionerror_of_torch(tmp_path):
    """A tensor whose metadata is a number makes torch raise AssertionError."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_bytes())) as good, zipfile.ZipFile(file, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("data.pkl"):
                content, count = re.subn(rb"(?<=\x89h\x03\)Rq.)(?=tq.R)", b"K\x05", content, count=1, flags=re.DOTALL)
                assert count == 1
            bad.writestr(zipfile.ZipInfo(name), content)
    path = tmp_path / "x.pth"
    path.write_bytes(file.getvalue())
    with pytest.raises(CheckpointError, match=r"x\.pth is damaged, or is not a PyTorch state dict .*AssertionError"):
        read.read_checkpoint(path)


def test_a_torch_file_with_a_name_twice_is_refused(tmp_path):
    """PyTorch could read another member than the one whose checksum was verified."""
    path = tmp_path / "x.pth"
    path.write_bytes(torch_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        content = archive.read(name)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"two members are named .*data\.pkl: refused"):
        read.read_checkpoint(path)


def test_a_list_that_names_an_impossible_file_sets_it_aside(tmp_path):
    """A path with a null byte, or one that is not text, is a missing file of the list."""
    (tmp_path / "a.png").write_bytes(b"x")
    rows = [{"path": "a.png", "label": "a"}, {"path": "a\0.png", "label": "a"}, {"path": "\ud800", "label": "a"}]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    listing = list_images([tmp_path / "list.jsonl"], Reporter(quiet=True))
    assert len(listing.files) == 1
    assert len(listing.quarantine) == 2
    (tmp_path / "list.jsonl").write_text('{"path": ["a.png"], "label": "a"}\n')
    with pytest.raises(ImagesError, match="row 1: expected a path in the column 'path'"):
        list_images([tmp_path / "list.jsonl"], Reporter(quiet=True))
