"""Tests archives that try to reach out of themselves or to fill the memory: nothing is unpacked, followed or believed."""

import contextlib
import io
import stat
import tarfile
import tracemalloc
import warnings
import zipfile

import numpy as np
import PIL.Image
import pytest

from kresume.errors import ImagesError
from kresume.images.prepare import content_of
from kresume.images.sources import list_images
from kresume.reporter import Reporter

pytestmark = pytest.mark.one_backend
BOUND = 2**30
"""The limit for one image is 256 MB, and unpacking needs twice as much for a moment."""
INNER = b"PK\x03\x04" + bytes(100)


def png(grey):
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


def in_tar(path, name="a/evil.png", kind=tarfile.REGTYPE, target="", size=None):
    """Writes a tar with two good pictures and one special member."""
    with tarfile.open(path, "w") as archive:
        for member, data in (("a/1.png", png(1)), ("b/1.png", png(2))):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        data = png(9) if kind == tarfile.REGTYPE else b""
        info.size = len(data)
        if size is None:
            archive.addfile(info, io.BytesIO(data))
        else:
            info.size = size
            archive.fileobj.write(info.tobuf() + data)


def in_zip(path, name="a/evil.png", mode=0, data=None, size=None):
    """Writes a zip with two good pictures and one special member."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # a name twice
        archive.writestr("a/1.png", png(1))
        archive.writestr("b/1.png", png(2))
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(info, png(9) if data is None else data)
        if size is not None:
            archive.filelist[-1].file_size = size


def bomb():
    return bytes(300 * 2**20)


TRICKS = {
    "tar absolute": lambda path: in_tar(path, "/tmp/kresume-evil/a/evil.png"),
    "tar dots": lambda path: in_tar(path, "../../a/evil.png"),
    "tar symbolic link": lambda path: in_tar(path, kind=tarfile.SYMTYPE, target="/etc/passwd"),
    "tar hard link": lambda path: in_tar(path, kind=tarfile.LNKTYPE, target="/etc/passwd"),
    "tar device": lambda path: in_tar(path, kind=tarfile.CHRTYPE),
    "tar pipe": lambda path: in_tar(path, kind=tarfile.FIFOTYPE),
    "tar name twice": lambda path: in_tar(path, "a/1.png"),
    "tar 4 GB claimed": lambda path: in_tar(path, size=2**32 + 1),
    "zip absolute": lambda path: in_zip(path, "/tmp/kresume-evil/a/evil.png"),
    "zip dots": lambda path: in_zip(path, "../../a/evil.png"),
    "zip symbolic link": lambda path: in_zip(path, mode=stat.S_IFLNK | 0o777, data=b"/etc/passwd"),
    "zip name twice": lambda path: in_zip(path, "a/1.png"),
    "zip 4 GB claimed": lambda path: in_zip(path, size=2**32 - 2),
    "zip bomb": lambda path: in_zip(path, data=bomb()),
    "zip in a zip": lambda path: in_zip(path, "a/evil.zip", data=INNER),
}


@pytest.mark.parametrize("name", TRICKS)
def test_an_archive_gives_its_own_bytes_or_an_error(name, tmp_path):
    """Good members are read; a special one is its own bytes, or is left out or refused; no file outside is touched."""
    path = tmp_path / f"x.{name[:3]}"
    TRICKS[name](path)
    before = sorted(tmp_path.rglob("*"))
    contents, refused = [], ""
    tracemalloc.start()
    try:
        for found in list_images([path], Reporter(quiet=True)).files:
            with contextlib.suppress(ImagesError):
                contents.append(content_of(found, None))
    except ImagesError as error:
        refused = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path) in refused if refused else contents
    assert set(contents) <= {png(1), png(2), png(9), b"/etc/passwd", INNER}
    assert peak < BOUND
    assert sorted(tmp_path.rglob("*")) == before
