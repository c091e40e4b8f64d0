"""Maps addresses to local folders: a run in a bucket is worked on in a local folder, its stage.

    stage_of("gs://bucket/runs/1-signs")         # ~/.cache/kresume/stages/gs/bucket/runs/1-signs
    address_of(stage)                            # "gs://bucket/runs/1-signs"
    public(f"{stage} is finished")               # "gs://bucket/runs/1-signs is finished"

The folder of an address follows from the address alone, and the reverse. Code that works on local paths therefore needs
no other names: messages and records are translated where they leave the program. Relative paths between two runs of a
bucket are those between their stages.

The environment variable KRESUME_STAGE names the folder of all stages; `off` turns them off for drives, which are then
written in place.
"""

from __future__ import annotations

import os
import posixpath
import re
from functools import lru_cache
from pathlib import Path

VARIABLE = "KRESUME_STAGE"
OFF = "off"
LOCAL = "file"
"""The folder of the stages of drives, in place of a scheme."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BEGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
BUCKETS = ("gs:/", "gcs:/", "s3:/", "s3a:/", "az:/", "abfs:/", "abfss:/", "memory:/")
"""The begins of addresses of buckets."""
MUST_BE_HERE = (
    "this must be on this machine or on a mounted drive; runs, checkpoints and images may also be in a bucket. Copy it here "
    "first, or mount it"
)
"""The rest of the message for an address of what cannot be at one."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns True if a path has a scheme."""
    return "://" in os.fspath(path)


def begins_as_address(path: str | os.PathLike[str]) -> bool:
    """Returns True if a path begins with a scheme, which class names with `://` in them do not.

    Of an address `pathlib.Path` takes one of two slashes away: for buckets that counts, too.
    """
    return _BEGIN.match(text := os.fspath(path)) is not None or text.lower().startswith(BUCKETS)


def as_address(path: str | os.PathLike[str]) -> str:
    """Returns a path as text, with both slashes of an address that `pathlib.Path` was given."""
    text = os.fspath(path)
    if is_remote(text) or not begins_as_address(text):
        return text
    scheme, _, rest = text.partition(":/")
    return f"{scheme}://{rest}"


def root() -> Path:
    """Returns the folder of all stages."""
    named = os.environ.get(VARIABLE, "")
    if named and named != OFF:
        return _folder(os.path.expanduser(named))
    caches = os.environ.get("XDG_CACHE_HOME") or _expanded("~/.cache", os.environ.get("HOME"))
    return _folder(os.path.join(caches, "kresume", "stages"))


@lru_cache(maxsize=8)
def _expanded(path: str, home: str | None) -> str:
    """Returns a path with the user's folder, which depends on `home`."""
    return os.path.expanduser(path)


def _folder(path: str) -> Path:
    """Returns an absolute folder; a relative one depends on the current folder, so it is not kept."""
    return _absolute(path) if os.path.isabs(path) else Path(os.path.abspath(path))


@lru_cache(maxsize=8)
def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def normal(path: str | os.PathLike[str]) -> str:
    """Returns an address without `.`, `..` and doubled slashes, or an absolute local path."""
    text = os.fspath(path)
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return os.path.abspath(os.path.expanduser(text))
    inside = posixpath.normpath(f"/{match[2]}").lstrip("/")
    return f"{match[1].lower()}://{inside}"


def stage_of(address: str | os.PathLike[str]) -> Path:
    """Returns the local folder of an address or of a path on a slow drive; it may not exist."""
    text = normal(address)
    match = _ADDRESS.fullmatch(text)
    scheme, inside = (match[1], match[2]) if match else (LOCAL, text.lstrip("/"))
    return root() / scheme / inside


def address_of(path: str | os.PathLike[str]) -> str:
    """Returns the address that a stage stands for; any other path or address unchanged but absolute."""
    text = normal(path)
    return public(text) if _pattern(str(root())).match(text) else text


def is_stage(path: str | os.PathLike[str]) -> bool:
    """Returns True for a local path within the stages."""
    return _pattern(str(root())).match(os.path.abspath(path)) is not None


@lru_cache(maxsize=8)
def _pattern(folder: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(folder)}/([a-z][a-z0-9+.-]*)/")


def public(text: str) -> str:
    """Replaces the paths of stages in a text by the addresses that they stand for."""
    folder = str(root())
    if folder not in text:
        return text
    return _pattern(folder).sub(lambda match: "/" if match[1] == LOCAL else f"{match[1]}://", text)


def relative(path: str | os.PathLike[str], start: str | os.PathLike[str]) -> str:
    """Returns the path as the run at `start` records it: relative if it can be.

    A bucket is no place relative to a disk or to another bucket: then the address is returned.
    """
    there, here = address_of(path), address_of(start)
    if not is_remote(there) and not is_remote(here):
        return os.path.relpath(there, here)
    one, other = _ADDRESS.fullmatch(there), _ADDRESS.fullmatch(here)
    if one is None or other is None or one[1] != other[1] or one[2].split("/")[0] != other[2].split("/")[0]:
        return there
    return posixpath.relpath(f"/{one[2]}", f"/{other[2]}")


def resolved(recorded: str, folder: Path) -> Path:
    """Returns the local path of what the run in `folder` recorded with `relative`."""
    if is_remote(recorded):
        return stage_of(recorded)
    if not is_stage(folder):
        return Path(os.path.normpath(folder / recorded))
    address = address_of(folder)
    if is_remote(address):
        return stage_of(f"{address}/{recorded}")
    return Path(os.path.normpath(os.path.join(address, recorded)))
