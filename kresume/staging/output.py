"""Writes the file that an option names, on this machine or at an address.

check_free("report", "s3://bucket/page.html", overwrite=False)       # before a command works for minutes
with output_file("s3://bucket/page.html") as path:
write(path)                                                      # a local file, which is copied at the end
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kresume.addresses import as_address, begins_as_address, normal
from kresume.errors import UsageError
from kresume.spelling import option
from kresume.storage import one_file


def check_free(flag: str, path: str | None, *, overwrite: bool, makes_folder: bool = False) -> None:
    """Checks that a file can be written.

    Args:
        flag: the option that names it, without dashes.
        path: the file; None if the option is not given.
        overwrite: True if an existing file may be replaced.
        makes_folder: True if the file's folder is created.

    Raises:
        UsageError: the file exists, or its folder does not.
        RunError: its address cannot be read.
        MissingPackage: its scheme needs a package.
    """
    if path is None:
        return
    if path.endswith("/") or one_file.is_folder(path):
        raise UsageError(f"{option(flag, path)}: this is a folder; give the name of a file, in it for example")
    if not overwrite and one_file.is_file(path):
        raise UsageError(f"{option(flag, path)}: it already exists; give another name, or {option('overwrite', True)}")
    if not makes_folder and not begins_as_address(path) and not (folder := Path(path).absolute().parent).is_dir():
        raise UsageError(f"{option(flag, path)}: the folder {folder} does not exist")


def shown(path: str | os.PathLike[str]) -> str:
    """Returns an output as messages name it: an address without doubled slashes."""
    text = as_address(path)
    return normal(text) if begins_as_address(text) else text


@contextmanager
def output_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the local path to write; a file for an address is copied there when the block succeeds.

    Raises:
        RunError: the address cannot be written.
    """
    if not begins_as_address(path):
        yield Path(path)
        return
    folder = Path(tempfile.mkdtemp(prefix="kresume-"))
    try:
        local = folder / (as_address(path).rpartition("/")[2] or "output")
        yield local
        one_file.send(local, as_address(path))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
