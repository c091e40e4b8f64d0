"""Reads and writes one file, on a disk or at an address.

read_bytes("s3://bucket/drop.txt")
send(Path("/tmp/page.html"), "s3://bucket/page.html")
require_local("write-model", "s3://bucket/model.py")        # an error that names the option
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kresume.addresses import MUST_BE_HERE, as_address, begins_as_address, normal
from kresume.errors import RunError, UsageError
from kresume.spelling import option
from kresume.storage.stores import file_system


def read_bytes(path: str) -> bytes:
    """Reads a file.

    Raises:
        FileNotFoundError: it does not exist.
        RunError: its address cannot be read.
        MissingPackage, UsageError: its scheme needs a package, or is unknown.
    """
    if not begins_as_address(path):
        return Path(path).read_bytes()
    return bytes(_call(path, "read", lambda fs, address: fs.cat_file(address)))


def read_text(path: str) -> str:
    """Reads a file in UTF-8, with or without a mark at its begin.

    Raises:
        UnicodeDecodeError: it is no text in UTF-8. Further errors are those of `read_bytes`.
    """
    return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def is_file(path: str) -> bool:
    """Returns True if there is a file.

    Raises:
        RunError, MissingPackage, UsageError: as for `read_bytes`.
    """
    if not begins_as_address(path):
        return Path(path).is_file()
    return bool(_call(path, "read", lambda fs, address: fs.isfile(address)))


def is_folder(path: str) -> bool:
    """Returns True if there is a folder; at an address, if something is below it.

    Raises:
        RunError, MissingPackage, UsageError: as for `read_bytes`.
    """
    if not begins_as_address(path):
        return Path(path).is_dir()
    return bool(_call(path, "read", lambda fs, address: fs.isdir(address)))


def send(local: Path, address: str) -> None:
    """Copies a file to an address, whole or not at all.

    Raises:
        RunError: the address cannot be written.
    """
    _call(address, "written", lambda fs, target: fs.put_file(str(local), target))


def require_local(flag: str, value: object) -> None:
    """Checks that an option names no address.

    Args:
        flag: its name without dashes.
        value: what it was given: a path, several, or None.

    Raises:
        UsageError: it is an address; the message names the option.
    """
    for each in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(each, (str, os.PathLike)) and begins_as_address(each):
            raise UsageError(f"{option(flag, os.fspath(each))}: {MUST_BE_HERE}")


def _call(path: str, doing: str, work: Callable[[Any, str], Any]) -> Any:
    """Calls `work` with the file system of an address; makes its errors a RunError that names the address."""
    address = normal(as_address(path))
    fs = file_system(address)
    try:
        return work(fs, address)
    except FileNotFoundError:
        if doing == "read":
            raise
        raise RunError(f"{address} cannot be {doing}: nothing holds it; is the name of the bucket right?") from None
    except Exception as error:  # every library has its own classes
        raise RunError(
            f"{address} cannot be {doing} ({error}): is the address right, are the credentials set, is the network there?"
        ) from error
