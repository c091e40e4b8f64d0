"""Fetches what is at an address into its stage.

    here("gs://bucket/runs/1-signs@best", reporter)      # "~/.cache/kresume/stages/gs/bucket/runs/1-signs@best"
    here("runs/1-signs")                                 # unchanged

Files that are there already, by digest, are not fetched again. A snapshot without its `meta.json` was not copied whole
and is not there. An address is looked at again half a minute later.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kresume.addresses import as_address, is_remote, normal, root, stage_of
from kresume.errors import RunError, UsageError
from kresume.reporter import Reporter
from kresume.runs import RECORD, move_aside
from kresume.storage import atomic, capture, mirror
from kresume.storage.mirror import Known
from kresume.storage.stores import Bucket, Store, store_of

NEVER_CHANGES = re.compile(
    r"(images|away)\.parquet|images/[^/]+|architecture\.json|teacher\..*|held\.safetensors|answers/before\.parquet"
)
"""Files of a run that are written once."""
ATTEMPTS = 5
MOST_BYTES = 100 * 2**30
"""A checkpoint with more bytes is probably a whole bucket that was named by mistake."""
FRESH_SECONDS = 30.0
"""How long what was fetched is used without looking again: one command asks for it several times."""
_here: dict[str, tuple[Path, float]] = {}
"""The local folder of an address, and until when it is used without looking."""


def note_of(folder: Path) -> Path:
    """Returns the file that says which writer has this stage."""
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:24]
    return root() / ".notes" / f"{name}.json"


def writer_of(folder: Path) -> str:
    """Returns the id under which this stage was copied to its place; empty if it never was."""
    try:
        return str(atomic.read_json(note_of(folder))["writer"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_ahead(store: Store, folder: Path) -> bool:
    """Returns True if nobody else has written to the place since this stage was copied to it."""
    writer = writer_of(folder)
    return bool(writer) and folder.is_dir() and mirror.read_marker(store).get("writer") == writer


def open_here(address: str, folder: Path | None) -> None:
    """Declares that this process works on an address in a folder; None ends that."""
    if folder is None:
        _here.pop(normal(address), None)
    else:
        _here[normal(address)] = folder, math.inf


def here(path: str | os.PathLike[str], reporter: Reporter | None = None) -> str:
    """Returns a local path with the content of a path or address; fetches it if necessary.

    Args:
        path: a local path, which is returned unchanged; or an address, with `@best` for example after it.
        reporter: shown progress.

    Raises:
        RunError: the place cannot be read.
        MissingPackage, UsageError: the scheme needs a package, or is unknown.
    """
    text = as_address(path)
    if (folder := _known(text)) is not None:
        return str(folder)
    if not is_remote(text):
        return text
    plain, mark, which = text.rpartition("@")
    if mark and "/" not in which and plain.partition("://")[2]:
        if (folder := _known(plain)) is not None:
            return f"{folder}@{which}"
        if not told(Bucket(text).exists, text, "read"):
            return f"{here(plain, reporter)}@{which}"
    address = normal(text)
    folder = stage_of(address)
    told(lambda: _fetch_any(address, folder, reporter or Reporter(quiet=True)), address, "read")
    _here[address] = folder, time.monotonic() + FRESH_SECONDS
    return str(folder)


def here_shown(path: str) -> str:
    """Does what `here` does, with progress on stderr if anything is fetched."""
    # Drawing progress takes a tenth of a second to import, which a local path does not need.
    return here(path, Reporter() if is_remote(path) else None)


def _known(address: str) -> Path | None:
    folder, until = _here.get(normal(address), (None, 0.0))
    return folder if time.monotonic() < until else None


def _fetch_any(address: str, folder: Path, reporter: Reporter) -> None:
    """Fetches a run, a folder of runs, or any checkpoint: a folder, a file with those beside it, a prefix."""
    store = store_of(address)
    names = store.names()
    runs = sorted(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == RECORD)
    if RECORD in names or mirror.MARKER in names:
        runs = [""]
    if runs:
        _drop_others(folder, runs)
        for name in runs:
            stage = folder / name if name else folder
            part = store_of(f"{address}/{name}") if name else store
            if not is_ahead(part, stage):
                fetch(part, stage, reporter, skip=("tensorboard/",))
        return
    if names:
        fetch(store, folder, reporter)
        return
    parent, _, name = address.rpartition("/")
    if parent.endswith(":/"):
        return
    beside = Bucket(parent)
    stem = name.partition(".")[0]
    wanted = [
        each
        for each in beside.names(deep=False)
        if (each.startswith(stem) or each.endswith(".json") or each == "checkpoint")
    ]
    if any(each.startswith(name) for each in wanted):
        fetch(beside, folder.parent, reporter, only=wanted)
    else:
        set_aside(folder)


def set_aside(folder: Path) -> None:
    """Removes what was fetched from an address that holds nothing any more.

    A run that was trained here is renamed instead.
    """
    if not writer_of(folder) or not folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        folder.unlink(missing_ok=True)
        return
    move_aside(folder)
    note_of(folder).unlink(missing_ok=True)


def _drop_others(folder: Path, runs: list[str]) -> None:
    """Removes fetched runs that are no longer at the address; those that were trained here stay."""
    for record in sorted(folder.rglob(RECORD)) if folder.is_dir() and "" not in runs else ():
        name = record.parent.relative_to(folder).as_posix()
        if name not in runs and not writer_of(record.parent):
            shutil.rmtree(record.parent, ignore_errors=True)


def fetch(
    store: Store, folder: Path, reporter: Reporter, *, skip: tuple[str, ...] = (), only: list[str] | None = None
) -> Known:
    """Makes a folder equal to what is at a place.

    Args:
        store: the place.
        folder: its local folder; other files in it are removed, unless `only` is given.
        reporter: shown progress.
        skip: beginnings of names that are not needed.
        only: the files to fetch; None for all.

    Returns:
        What is at the place.

    Raises:
        OSError: the place cannot be read.
        RunError: a file is not what was copied there.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _fetch_once(store, folder, reporter, skip, only)
        except FileNotFoundError:  # the training that writes it has removed a snapshot meanwhile
            if attempt == ATTEMPTS - 1:
                raise
        except OSError as error:
            if attempt == ATTEMPTS - 1:
                raise
            reporter.say(f"{store.address}: {error}; trying again")
            time.sleep(min(0.5 * 2**attempt, 5.0))
    raise AssertionError  # the last attempt returns or raises


def _fetch_once(store: Store, folder: Path, reporter: Reporter, skip: tuple[str, ...], only: list[str] | None) -> Known:
    found = store.names()
    if only is not None:
        found = {name: size for name, size in found.items() if name in only}
    marker = mirror.read_marker(store) if mirror.MARKER in found else {}
    digests: Mapping[str, Any] = marker.get("files", {})
    listed = {name: size for name, size in found.items() if not capture.STAYS.fullmatch(name.rpartition("/")[2])}
    junk = {name for name in listed if _is_torn(name, listed)}
    wanted = {name: size for name, size in listed.items() if name not in junk and not name.startswith(skip or ("\0",))}
    total = sum(wanted.values())
    if total > MOST_BYTES:
        raise UsageError(
            f"{store.address} holds {len(wanted):,} files of {total / 2**30:.0f} GB: name the checkpoint in it, not its folder"
        )
    known = Known(
        files={name: dict(digests[name]) for name in listed if name in digests and name not in junk}, junk=junk
    )
    with reporter.progress(f"fetching {store.address}", max(total, 1), "bytes") as advance:
        for name, size in wanted.items():
            known.files[name] = _fetch_file(store, name, folder / name, digests.get(name))
            known.signatures[name] = capture.signature(folder / name)
            advance(size)
    if only is None:
        for name, path in capture.files_of(folder):
            if name not in listed or name in junk:
                path.unlink(missing_ok=True)
        _remove_empty(folder)
    return known


def _is_torn(name: str, listed: Mapping[str, int]) -> bool:
    """Returns True for a file of a snapshot that was not copied whole, or that another replaced."""
    match = capture.SNAPSHOT.fullmatch(name)
    if match is None:
        return False
    parent = f"{match[1]}/" if match[1] else ""
    whole = match[2].removeprefix(capture.REPLACED)
    if whole != match[2] and f"{parent}{whole}/{capture.META}" in listed:
        return True
    return f"{parent}{match[2]}/{capture.META}" not in listed


def _fetch_file(store: Store, name: str, path: Path, digest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fetches a file unless it is there; returns its size and digest."""
    if digest is not None and path.is_file() and _describe(path) == digest:
        return dict(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.new_file(path) as temporary:
        store.fetch(name, temporary)
        facts = _describe(temporary)
        if digest is not None and facts != digest and NEVER_CHANGES.fullmatch(name):
            raise RunError(
                f"{store.address}/{name} is not what was copied there ({facts['bytes']:,} bytes, expected {digest['bytes']:,}"
                f"{'' if facts['bytes'] != digest['bytes'] else ', of another digest'}): restore it from a copy"
            )
    return facts


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": atomic.sha256_of_file(path)}


def _remove_empty(folder: Path) -> None:
    for place, _, _ in os.walk(folder, topdown=False):
        if place != str(folder) and not os.listdir(place):
            os.rmdir(place)


def told(work: Callable[[], Any], address: str, doing: str) -> Any:
    """Calls `work`; makes an OSError of the place a RunError that names it."""
    try:
        return work()
    except OSError as error:
        raise RunError(
            f"{address} cannot be {doing} ({error}): is the address right, are the credentials set, is the network there?"
        ) from error
